# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The one-third law: why a softmax learns peaked targets as t^(-1/3), where that ends, and what would beat it
#
# One linear layer, K classes, Gaussian inputs, cross-entropy, online SGD. The labels are the largest of the teacher's K logits
# (hard), or a softmax of them at inverse temperature b* (soft). The student must become infinitely cold; the softmax saturates, and
# the gradient comes from the thin layer of inputs where two logits tie. So the loss falls as t^(-1/3), whatever K, learning rate or
# noise. This notebook derives the law, integrates it over decades, finds its end, tries to escape from it, and trains the layer.
#
# Theory and units: `docs/one_third_law.md`. One unit of t is `dimension` SGD steps; with logits W x and a learning rate lr on d
# inputs, learning_rate = lr d.

# %%
import os

import jax

jax.config.update("jax_enable_x64", True)  # odescale never changes this for you

import numpy as np

import odescale
from odescale import train
from odescale.analysis.phases.transition import transition_of_trajectory
from odescale.expectations.softmax_race import softmax_race
from odescale.generated.peaked import (
    cutoff_time,
    finite_temperature_exponent,
    hand_over_time,
    layer_drift,
    layer_error,
    power_law_loss,
)

# %% [markdown]
# ## Parameters
#
# `ODESCALE_NOTEBOOK_SIZE=small` is what the tests run: fewer classes, coarser map, a smaller layer for a shorter time.

# %%
small = os.environ.get("ODESCALE_NOTEBOOK_SIZE", "full") == "small"

last = 1e8
class_numbers = (2, 3, 10, 128)
noisy_classes = 3
map_members, map_points, map_last = (16, 120, 1e8) if small else (80, 400, 1e10)
dimension, t1, seeds = (500, 10.0, 4) if small else (1000, 80.0, 8)

# %% [markdown]
# ## Where 1/3 comes from
#
# The centred rows of the student have an overlap D with the teacher's and a spread Delta of their own, s^2 = D^2 + Delta. Aligned
# and without noise, s = D and dD/dt = eta/(K-1) (m - Phi(D)); at low temperature the derivation finds m - Phi = c/D^2 with
# c = pi^2 m/12, m the mean of the largest of K normals. The balance of powers is then sympy's:

# %%
try:
    import sympy

    from odescale.symbolic import dominant_balances
except ModuleNotFoundError:  # odescale itself runs without sympy
    sympy = None

if sympy is not None:
    D, c, eta, K, alpha = sympy.symbols("D c eta K alpha", positive=True)
    others = sympy.Symbol("n", positive=True)  # K - 1
    (balance,) = dominant_balances({D: eta * c / (others * D**2)}, alpha)
    print("D =", balance.power_law(D))
    print("L =", balance.power_law(c / D))
    print("exponent of the loss:", -balance.exponent(c / D))

# %% [markdown]
# All steps, from the SGD update to the ends of the law: `odescale derive peaked`, or docs/derivations/peaked.md. What they wrote
# is plain JAX in `odescale/generated/peaked.py`; the formulas below come from there.
#
# ## Integrate: any number of classes, eight decades
#
# `noise=0` is gradient flow. The dashed lines are c^(2/3) ((K-1)/(3 eta t))^(1/3): nothing is fitted.

# %%
flows = {f"K = {K}": odescale.integrate(odescale.peaked(classes=K, noise=0.0), last) for K in class_numbers}
laws = {}
for K in class_numbers:
    run, c = flows[f"K = {K}"], float(softmax_race(K).c)
    laws[f"K = {K}"] = np.append(np.inf, np.asarray(power_law_loss(run.t[1:], 1.0, c, K)))
    at = [int(np.argmin(np.abs(run.t - t))) for t in (1e3, 1e5, last)]
    words = ", ".join(f"{run.exponent[i]:.5f} at {run.t[i]:.2g}" for i in at)
    print(f"K = {K}: p = {words}; loss/law at the end {run.loss[-1] / laws[f'K = {K}'][-1]:.6f}")

odescale.plot(
    flows, kind="law", asymptotes=laws, exponent=1 / 3, exponents=(0.2, 0.6), title="Gradient flow on hard labels"
)["loss"].figure

# %% [markdown]
# ## With SGD noise: the same exponent, a larger prefactor, and errors
#
# Noise feeds the spread, which tends to a constant Delta_inf that depends on eta/B alone. The loss is then kappa/D with
# kappa = m (pi^2/12 + Delta/2), and the error m sqrt(Delta/pi)/D: both fall with 1/3.

# %%
system = odescale.peaked(classes=noisy_classes, learning_rate=1.0, batch=1.0)
noisy = odescale.integrate(system, last)
m, spread, overlap = float(system.race.m), noisy.observables["spread"][-1], noisy.observables["overlap"][-1]
print(system.clock.describe())
print(f"Delta_inf = {spread:.5f}, local exponent {noisy.exponent[-1]:.5f}")
print(f"L D/kappa = {noisy.loss[-1] * overlap / float(layer_drift(m, spread)):.5f}")
print(f"error / (m sqrt(Delta/pi)/D) = {noisy.observables['error'][-1] / float(layer_error(overlap, spread, m)):.5f}")

# %% [markdown]
# ## Where the law ends: a teacher of finite temperature
#
# A soft teacher can be reached: D stops at b*. One sweep over b*, compiled once; colour is the local exponent. Below
# b* = sqrt(2 ln K) the decay is exponential from the start, above it a power law of 1/3 that turns exponential at alpha_c, where
# the power law would arrive at D = b*.

# %%
classes = 10
c = float(softmax_race(classes).c)
temperatures = np.geomspace(0.3, 1e4, map_members)
phase = odescale.sweep(
    "peaked",
    map_last,
    {"inverse_temperature": temperatures},
    classes=classes,
    labels="soft",
    noise=0.0,
    points=map_points,
)
ends = [transition_of_trajectory(phase.member(i)).finite_size_cutoff for i in range(map_members)]
alpha_c = np.asarray(hand_over_time(1.0, c, classes, temperatures))
for b, end, scale in zip(temperatures, ends, alpha_c, strict=True):
    if end is not None:
        print(f"b* = {b:8.4g}: power law ends at t = {end:9.4g} = {end / scale:.3f} alpha_c")

odescale.plot(
    phase,
    kind="phases",
    hand_over=alpha_c,
    cutoff=ends,
    peaked_from=float(np.sqrt(2 * np.log(classes))),
    title=f"{classes} classes, soft labels",
).figure

# %% [markdown]
# The transition finder on one system: phases and the cut-off, located on the flow itself. The low-temperature formula is
# eta c t/((K-1) b*^3) = artanh x - x with x = D/b*; it puts the cut-off at 0.651 alpha_c.

# %%
cold = odescale.peaked(classes=classes, labels="soft", inverse_temperature=200.0, noise=0.0)
found = odescale.find_transition(cold, 3e8)
print(found.phases)
print(f"cut-off at t = {found.finite_size_cutoff:.5g}, formula {float(cutoff_time(1.0, c, classes, 200.0)):.5g}")
flow = odescale.integrate(cold, 3e8)
x = flow.observables["overlap"] / 200.0
middle = (flow.t > 1e5) & (x < 0.99)
ratio = flow.exponent[middle] / np.asarray(finite_temperature_exponent(x[middle]))
print(f"local exponent against (1+x)^2 (artanh x - x)/x^3: ratio {ratio.min():.4f} to {ratio.max():.4f}")

# %% [markdown]
# ## Schedules: a falling learning rate costs loss and gains accuracy
#
# eta(t) ~ t^-g: loss exponent (1-g)/3, error exponent 1/3 + g/6. The exponents of the flow at the end of the run:

# %%


def late_slope(t, values):
    """-dlog/dlog t over the last tenth of the output times."""
    tail = slice(-len(t) // 10, None)
    return -np.polyfit(np.log(t[tail]), np.log(values[tail]), 1)[0]


for g in (0.3, 0.6):
    run = odescale.integrate(odescale.peaked(classes=noisy_classes, schedule=f"power:{g}"), last)
    loss, error = run.exponent[-1], late_slope(run.t, run.observables["error"])
    print(
        f"g = {g}: loss {loss:.4f} ((1-g)/3 = {(1 - g) / 3:.4f}), error {error:.4f} (1/3 + g/6 = {1 / 3 + g / 6:.4f})"
    )

# %% [markdown]
# ## An escape: let the logits grow by themselves
#
# In the softmax(beta lam) with beta growing as t^h the weights need not grow: the layer becomes cold by its temperature. The
# step in the logits is eta beta^2, which the learning rate has to compensate, here eta ~ t^-1.2 for h = 0.6.
# Others, with their costs: `docs/escapes.md`.

# %%
plain = odescale.integrate(odescale.peaked(classes=noisy_classes), 1e6)
escape = odescale.integrate(
    odescale.peaked(classes=noisy_classes, logit_schedule="growth:.6:10", schedule="power:1.2:10"), 1e6
)
for name, run in (("constant", plain), ("beta ~ t^0.6, eta ~ t^-1.2", escape)):
    error = run.observables["error"][-1]
    print(f"{name}: loss {run.loss[-1]:.3e}, error {error:.3e}, exponents {run.exponent[-1]:.3f} and "
          f"{late_slope(run.t, run.observables['error']):.3f}")  # fmt: skip

odescale.plot({"constant": plain, "growing logits": escape}, kind="law", exponents=(0.0, 1.0))["loss"].figure

# %% [markdown]
# ## A real layer beside it
#
# The same experiment as SGD on K rows of d weights: fresh Gaussian inputs, seeds side by side, overlaps measured along the run.
# Finite d shifts every quantity by O(K/d), and few seeds scatter: at `small` size the verdict may say so.

# %%
experiment = odescale.peaked(classes=noisy_classes, dimension=dimension)
run = train(experiment, t1, seeds=seeds, progress=False)
comparison = odescale.compare(experiment, run)
print(comparison)

title = f"Softmax layer, K = {noisy_classes}, d = {dimension}: theory and SGD"
odescale.plot(comparison, title=title)["loss"].figure
