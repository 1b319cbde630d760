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
# # Exponential decay, then a power law: theory and training of a two-layer softmax transformer
#
# One student, one teacher, plain SGD on fresh Gaussian sequences. The student's readout must learn the teacher's: alone, it does
# so exponentially. Its two attention layers are too much and must vanish, through a product of weights that nothing else absorbs:
# that part of the loss decays as a power law. This notebook goes from the symbols to the verdict:
# derive, integrate, find the phases and where one hands over, differentiate that time, sweep a parameter, train, compare.
#
# Theory: `docs/attention.md`; what counts as a phase: `docs/transition.md`; clocks and units: `docs/conventions.md`.

# %%
import os

import jax

jax.config.update("jax_enable_x64", True)  # odescale never changes this for you

import matplotlib.pyplot as plt
import numpy as np

import odescale
from odescale import train
from odescale.analysis.phases.transition import transition_of_trajectory
from odescale.solve.integrate import traces
from odescale.systems.attention_build import quickstart_loss

# %% [markdown]
# ## Parameters
#
# Change them here. `ODESCALE_NOTEBOOK_SIZE=small` is what the tests run: shorter contexts and fewer records. One unit of t is
# `dimension` SGD steps. `last` is the end of the run in u = learning_rate t, the time of the closed form.

# %%
small = os.environ.get("ODESCALE_NOTEBOOK_SIZE", "full") == "small"

learning_rate, batch = 0.4, 8
readout, surplus, value_scale = 14.0, 0.3, 4.0
dimension, tokens = 64, 8 if small else 32
last = 34.0
seeds = 2 if small else 4
records, test_sequences = (25, 256) if small else (33, 2048)
sweep_members = 8 if small else 24

# %% [markdown]
# ## Where the equations come from
#
# The derivation starts from the SGD update and takes limits and expectations step by step, with sympy. Two of its steps, carried
# out here. The first: one SGD step moves the product of two weights; average over a batch, count time in units of N = tr Sigma
# steps, let N go to infinity.

# %%
try:
    import sympy

    from odescale.symbolic import Gaussian, covariance_symbols, overlap_flow
except ModuleNotFoundError:  # odescale itself runs without sympy
    sympy = None

if sympy is not None:
    flow = overlap_flow()
    print("d<A_i A_j>/dt =", flow.flow)
    print("with the SGD noise switched off:", overlap_flow(noise=False).flow)

# %% [markdown]
# The second: with many context tokens the softmax average is an expectation under an exponentially tilted Gaussian, and tilting a
# Gaussian only shifts its mean. So softmax attention becomes the field of the query times a covariance.

# %%
if sympy is not None:
    v, k, s = sympy.symbols("v k s", real=True)
    fields = Gaussian((v, k), sympy.ImmutableMatrix(covariance_symbols((v, k))))
    tilted = sympy.simplify(fields.expect(v * sympy.exp(s * k)) / fields.expect(sympy.exp(s * k)))
    print("E[v e^(s k)] / E[e^(s k)] =", tilted)

# %% [markdown]
# All steps, as shipped: `odescale derive attention`, or docs/derivations/attention.md. What they wrote is plain JAX in
# `odescale/generated/attention.py`. Without SGD noise this system has a closed form,
# L(u) = A/2 e^(-2 u) + y^2/(1 + 2 y sqrt(R) u)^2 with A = readout, y = surplus, R = value_scale.

# %%
t1 = last / learning_rate


def closed_form(u):
    return quickstart_loss(u, readout, surplus, value_scale)


# %% [markdown]
# ## Build and integrate

# %%
parameters = {
    "learning_rate": learning_rate, "batch": batch, "readout": readout, "surplus": surplus, "value_scale": value_scale,
    "dimension": dimension, "tokens": tokens,
}  # fmt: skip
system = odescale.quickstart(**parameters)
print("rows:", ", ".join(system.architecture.rows))
print(system.clock.describe())

theory = odescale.integrate(system, t1, points=400)
entry = theory.meta["ladder"][-1]
print(f"{entry['solver']}: {entry['accepted']} steps; loss {theory.loss[0]:.4f} -> {theory.loss[-1]:.3e}")

noiseless = odescale.integrate(odescale.quickstart(**parameters, noise=0.0), t1, points=400, rtol=1e-11)
gap = np.max(np.abs(noiseless.loss / np.asarray(closed_form(noiseless.t * learning_rate)) - 1))
print(f"without SGD noise, against the closed form: {gap:.1e} relative")

# %% [markdown]
# ## The phases, and where one hands over to the other
#
# p = -dlog L/dlog t and q = dlog p/dlog t: q = 1 is exponential, q = 0 a power law. A phase is a stretch on which q stays within
# 0.2 of one of these for long enough, and t_x is where q falls through 1/2 between the two. Once from the closed form (no noise),
# once from the ODE (with SGD noise), there by solving again within a grid cell: no fit and no grid enters.

# %%
formula = odescale.find_transition(closed_form, last, time_unit="u = learning_rate t")
print(f"closed form, exact: u_x = {formula.t_x:.6f}; {formula.name}")
transition = odescale.find_transition(system, t1)
print(f"ODE with SGD noise, exact: t_x = {transition.t_x:.6f}, u_x = {transition.t_x * learning_rate:.6f}")
print(f"{transition.name}:")
for phase in transition.phases.list:
    print("   ", phase)
print(transition)

# %% [markdown]
# The loss, and q beside it. Between the two phases q falls far below 0 before it comes back: p, which grew as the exponential's
# rate times t, has to come down to the exponent of the power law. Had q come back to 1 instead, there would be two exponentials.

# %%
figure, axes = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
odescale.plot(theory, axes[0], transition=transition)
odescale.plot(theory, axes[1], kind="index", transition=transition)
plt.close(figure)  # shown once, by the next line
figure

# %% [markdown]
# ## A derivative of the transition time
#
# t_x is a differentiable function of every parameter. If the learning rate only rescaled time, dlog t_x/dlog eta would be
# exactly -1; the difference is the SGD noise.

# %%
gradient = odescale.transition_gradient(system, transition)
slope = float(gradient.learning_rate)
print(f"dt_x/d learning_rate = {slope:.4f}, dlog t_x/dlog learning_rate = {slope * learning_rate / transition.t_x:.5f}")

# %% [markdown]
# ## A sweep: many learning rates, one compilation
#
# Without noise every learning rate has the same u_x; the SGD noise moves it. The phases of each member are read off the sweep's
# output times, by interpolation of its own p and q, so there are more of these times.

# %%
rates = np.geomspace(0.25 * learning_rate, 2 * learning_rate, sweep_members)
before = traces["tsit5"]
family = odescale.sweep("quickstart", 4 * t1, {"learning_rate": rates}, points=1000, **parameters)
print(f"{sweep_members} members, compiled {traces['tsit5'] - before} time(s), failed: {family.meta['failed']}")

found = [transition_of_trajectory(family.member(i)) for i in range(sweep_members)]
u_x = [np.nan if each.t_x is None else each.t_x * rate for each, rate in zip(found, rates, strict=True)]
print("names:", ", ".join(sorted({each.name for each in found})))

figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
axes.plot(rates, u_x, "o-", label="ODE with SGD noise")
axes.axhline(formula.t_x, color="black", linestyle="--", label="closed form, no noise")
axes.set(xscale="log", xlabel="learning rate", ylabel="transition in intrinsic time  u_x")
axes.set_xticks([learning_rate / 4, learning_rate / 2, learning_rate, 2 * learning_rate], minor=False)
axes.xaxis.set_major_formatter("{x:g}")
axes.xaxis.set_minor_formatter("")
axes.legend()
plt.close(figure)  # shown once, by the next line
figure

# %% [markdown]
# ## Train the real network
#
# The same rows as a real transformer: d-dimensional tokens, softmax over `tokens` context tokens, SGD, seeds side by side. It
# starts at exactly the theory's overlaps, and its overlaps are measured along the run.

# %%
run = train(
    system,
    t1,
    seeds=seeds,
    record_times=np.geomspace(0.05, last, records) / learning_rate,
    test_sequences=test_sequences,
    progress=False,
)
print(f"{len(run.seeds)} seeds, {run.step[-1]} SGD steps each; loss {run.mean()[0]:.4f} -> {run.mean()[-1]:.3e}")

# %% [markdown]
# ## Compare
#
# Theory and run on one clock, pointwise ratio with its standard error, and a verdict. The phases of the runs come from their points
# alone, by a contest of models; the theory, sampled at the same points, goes through the model that won. An estimate from points
# is compared with that, and not with the exact t_x. At `small` size corrections of order 1/tokens are large, and the verdict may
# say so.

# %%
comparison = odescale.compare(system, run)
print(comparison.verdict)
print(f"run/theory: {comparison.loss.ratio.min():.3f} to {comparison.loss.ratio.max():.3f}")
print("theory, exact:      ", comparison.transitions["exact"])
print("theory, same points:", comparison.transitions["theory"])
print("run:                ", comparison.transitions["run"])

# %%
t = np.geomspace(0.05, last, 200) / learning_rate
odescale.plot(
    comparison,
    title="Two-layer softmax transformer: theory and training",
    formula=(t, np.asarray(closed_form(t * learning_rate))),
)["loss"].figure
