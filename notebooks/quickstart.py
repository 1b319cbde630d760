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
# One student, one teacher, plain SGD on fresh Gaussian sequences. The student's first layer must learn the teacher's
# attention: that part of the loss decays exponentially. Its second layer is too much and must vanish, through a product of
# weights that nothing else absorbs: that part decays as a power law. This notebook goes from the symbols to the verdict:
# derive, integrate, find the transition, differentiate it, sweep a parameter, train the real network, compare.
#
# Theory: `docs/attention.md`; the definition of the transition: `docs/transition.md`; clocks and units: `docs/conventions.md`.

# %%
import os

import jax

jax.config.update("jax_enable_x64", True)  # odescale never changes this for you

import matplotlib.pyplot as plt
import numpy as np

import odescale
from odescale import train
from odescale.analysis.phases.transition import transition_of_trajectory
from odescale.generated.attention import quickstart_loss
from odescale.solve.integrate import traces

# %% [markdown]
# ## Parameters
#
# Change them here. `ODESCALE_NOTEBOOK_SIZE=small` is what the tests run: a smaller network for a shorter time, where finite
# size shows. One unit of t is `dimension` SGD steps. `last` is the end of the run in S = learning_rate sqrt(readout_scale) t,
# the natural time of the closed form.

# %%
small = os.environ.get("ODESCALE_NOTEBOOK_SIZE", "full") == "small"

learning_rate, batch = 0.2, 4
strength, aligned, surplus, readout_scale = 1.0, 0.05, 0.3, 4.0
dimension, tokens = (60, 16) if small else (200, 64)
last = 4.0 if small else 12.0
seeds = 2
records, test_sequences = (16, 512) if small else (31, 4096)
sweep_members = 8 if small else 24
min_depth = 2.0  # e-folds; the exponential phase of this system is 2.7 to 2.8 deep

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
# `odescale/generated/attention.py`; the closed form of this system comes from there too.

# %%
S_per_t = learning_rate * np.sqrt(readout_scale)
t1 = last / S_per_t


def closed_form(S):
    return quickstart_loss(S, strength, aligned, surplus)


# %% [markdown]
# ## Build and integrate

# %%
parameters = {
    "learning_rate": learning_rate, "batch": batch, "strength": strength, "aligned": aligned, "surplus": surplus,
    "readout_scale": readout_scale, "dimension": dimension, "tokens": tokens,
}  # fmt: skip
system = odescale.quickstart(**parameters)
print("rows:", ", ".join(system.architecture.rows))
print(system.clock.describe())

theory = odescale.integrate(system, t1, points=400)
entry = theory.meta["ladder"][-1]
print(f"{entry['solver']}: {entry['accepted']} steps; loss {theory.loss[0]:.4f} -> {theory.loss[-1]:.3e}")

noiseless = odescale.integrate(odescale.quickstart(**parameters, noise=0.0), t1, points=400, rtol=1e-11)
gap = np.max(np.abs(noiseless.loss / np.asarray(closed_form(noiseless.t * S_per_t)) - 1))
print(f"without SGD noise, against the closed form: {gap:.1e} relative")

# %% [markdown]
# ## The transition
#
# p = -dlog L/dlog t and q = dlog p/dlog t: q = 1 is exponential, q = 0 a power law, and t_x is where q falls through 1/2.
# Once from the closed form (no noise), once from the ODE (with SGD noise). The depth in e-folds says how much of an
# exponential phase there was.

# %%
formula = odescale.find_transition(closed_form, last, min_depth=min_depth, time_unit="S")
print(f"closed form: S_x = {formula.t_x:.6f}, {formula.depth:.3f} e-folds deep")
transition = odescale.find_transition(system, t1, min_depth=min_depth)
print(f"ODE with SGD noise: S_x = {transition.t_x * S_per_t:.6f}, {transition.depth:.3f} e-folds deep")
print(transition)

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
# Without noise every learning rate has the same S_x; the SGD noise moves it. The transition of each member is interpolated on
# the sweep's output times, so there are more of them.

# %%
rates = np.geomspace(0.5 * learning_rate, 2 * learning_rate, sweep_members)
before = traces["tsit5"]
family = odescale.sweep("quickstart", 2 * t1, {"learning_rate": rates}, points=1000, **parameters)
print(f"{sweep_members} members, compiled {traces['tsit5'] - before} time(s), failed: {family.meta['failed']}")

found = [transition_of_trajectory(family.member(i), min_depth=min_depth) for i in range(sweep_members)]
S_x = [
    np.nan if each.t_x is None else each.t_x * rate * np.sqrt(readout_scale)
    for each, rate in zip(found, rates, strict=True)
]

figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
axes.plot(rates, S_x, "o-", label="ODE with SGD noise")
axes.axhline(formula.t_x, color="black", linestyle="--", label="closed form, no noise")
axes.set(xscale="log", xlabel="learning rate", ylabel="transition in natural time  S_x")
axes.set_xticks([learning_rate / 2, learning_rate, 2 * learning_rate], minor=False)
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
    system, t1, seeds=seeds, record_times=np.geomspace(0.2, last, records) / S_per_t, test_sequences=test_sequences
)
print(f"{len(run.seeds)} seeds, {run.step[-1]} SGD steps each; loss {run.mean()[0]:.4f} -> {run.mean()[-1]:.3e}")

# %% [markdown]
# ## Compare
#
# Theory and run on one clock, pointwise ratio with its standard error, the transition by the same estimator on the same
# points, and a verdict. At `small` size the corrections of order 1/tokens and 1/dimension are large, and the verdict may say so.

# %%
comparison = odescale.compare(system, run, min_depth=min_depth)
print(comparison.verdict)
print(f"run/theory: {comparison.loss.ratio.min():.3f} to {comparison.loss.ratio.max():.3f}")
print("theory, same points:", comparison.transitions["theory"])
print("run:                ", comparison.transitions["run"])

# %%
t = np.geomspace(0.2, last, 200) / S_per_t
odescale.plot(
    comparison,
    title="Two-layer softmax transformer: theory and training",
    formula=(t, np.asarray(closed_form(t * S_per_t))),
)["loss"].figure
