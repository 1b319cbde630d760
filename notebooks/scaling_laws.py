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
# # Scaling laws: kernel, spectrum, transition, compute frontier
#
# How does loss fall with steps, width, data and compute? Four answers, each beside what it describes: the frozen tangent kernel
# of a small transformer and its real training; exact SGD on a power-law spectrum under a schedule; the transition from an
# exponential to a power law; the compute-optimal frontier of a risk law with its critical compute C*, and the phases of
# power-law features.
#
# Theory, units and what was tested against what: `docs/scaling_laws.md`.

# %%
import os

import jax

jax.config.update("jax_enable_x64", True)  # odescale never changes this for you

import matplotlib.pyplot as plt
import numpy as np

import odescale
from odescale.analysis.frontier.compute import fixed_size_risk
from odescale.frontier import phase_map
from odescale.plot.frontier import plot_compute_phases, plot_isolated_laws
from odescale.training.patch_digits import source_text_sequences

# %% [markdown]
# ## Parameters
#
# Change them here. `ODESCALE_NOTEBOOK_SIZE=small` is what the tests run: a narrower network, fewer steps, a smaller spectrum.

# %%
small = os.environ.get("ODESCALE_NOTEBOOK_SIZE", "full") == "small"

samples, context, characters = (6, 3, 4) if small else (16, 6, 8)
width, depth, scale, descent_steps = (16, 1, 4.0, 60) if small else (64, 2, 4.0, 400)

modes, steps = (500, 1e4) if small else (20_000, 1e6)
spectrum_exponent, risk_exponent = 1.5, 2.0  # lam_j = j^-b, lam_j rho_j(0) = j^-a
learning_rate, batch, noise = 0.1, 4.0, 0.3

tail_modes, seeds, run_steps = (100, 8, 1500) if small else (380, 64, 5000)
compute_points = 40 if small else 200

# %% [markdown]
# ## The kernel of a real transformer
#
# Characters of Python's own source, the next one at each position, square loss. `kernel_system` takes the tangent kernel of the
# network at its start; full-batch gradient descent is then a linear recursion in function space. `kernel_regime` says
# without training whether the kernel will stay where it is. One unit of t is one step of gradient descent.

# %%
task = source_text_sequences(samples, samples, context=context, characters=characters)
sets = (task.x, task.y, task.x_test, task.y_test)
transformer = odescale.networks.SequenceTransformer(
    characters, characters, context, width=width, depth=depth, key=jax.random.key(0)
)
network = odescale.kernels.lazy_network(
    transformer, scale
)  # scale * (f - f at the start): weights move scale times less

system = odescale.kernel_system(network, *sets)
regime = odescale.kernels.kernel_regime(network, system, task.x, task.x_test, steps=descent_steps)
print(f"{task.source}; {system.eigenvalues.size} outputs, learning rate {float(system.learning_rate):.3g}")
print("without training:", regime.verdict)

# %% [markdown]
# Now the real thing, at the same learning rate, and the verdict with the error that was measured. What to see: the points of
# training on the line of the frozen kernel, distances of the outputs below the tolerance, an expected error near the measured one.

# %%
at = np.unique(np.round(np.geomspace(1, descent_steps, 50)))
run = odescale.train(system, descent_steps, record_times=[0, *at], precision="float64", progress=False)
comparison = odescale.compare(system, run, regime=regime)
print("after training:  ", comparison.verdict)
train_error, test_error = comparison.loss.max_deviation, comparison["test_loss"].max_deviation
print(
    f"train loss {run.mean('train_loss')[0]:.4f} -> {run.mean('train_loss')[-1]:.4f}; off: train {train_error:.2%}, "
    f"test {test_error:.2%}"
)

odescale.plot(comparison, title="The frozen kernel and training")["loss"].figure

# %% [markdown]
# The other side: the same network as it comes, with its random outputs at the start and scale 1. Its kernel moves, and the verdict
# says so before any training.

# %%
plain = odescale.kernels.lazy_network(transformer, 1.0, centred=False)
plain_system = odescale.kernel_system(plain, *sets)
print(odescale.kernels.kernel_regime(plain, plain_system, task.x, task.x_test, steps=5 * descent_steps).verdict)

# %% [markdown]
# ## SGD on a power-law spectrum, with a schedule
#
# Features N(0, diag lam), lam_j = j^-b, target power j^-a, one-pass SGD with label noise. `solve_spectral` integrates the log-rate
# ODE, one unit of t being one SGD step; `exact_recursion` runs every step. What to see: a power law of (a-1)/b that ends on
# the noise floor at a constant rate, and that the cosine schedule goes below it at the end.

# %%
words = {"modes": modes, "spectrum_exponent": spectrum_exponent, "risk_exponent": risk_exponent,
         "learning_rate": learning_rate, "batch": batch, "noise": noise}  # fmt: skip
at = np.unique(np.round(np.geomspace(1, steps, 60)))
curves = {}
for schedule in ("constant", f"cosine:{steps:g}"):
    sgd = odescale.spectral(**words, schedule=schedule)
    curves[schedule] = odescale.linear.solve_spectral(sgd, at)
    print(
        f"{schedule}: excess risk {curves[schedule].loss[-1]:.3e} at step {at[-1]:.0f}, {curves[schedule].accepted} steps"
    )
early = at <= 1e4  # every step is run
exact = np.asarray(odescale.linear.exact_recursion(sgd, at[early]))
print(f"ODE against every step of SGD: {np.max(np.abs(curves[schedule].loss[early] / exact - 1)):.1e} at most")

figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
for schedule, curve in curves.items():
    axes.loglog(at, curve.loss, label=f"log-rate ODE, {schedule.split(':')[0]}")
axes.loglog(at[early], exact, "k.", markersize=4, label="exact recursion, cosine")
guide = at[(at > 30) & (at < 3000)]
power = (risk_exponent - 1) / spectrum_exponent
axes.loglog(
    guide, curves["constant"].loss[at > 30][0] * 1.6 * (guide / guide[0]) ** -power, "k:", label=f"t^-{power:.3g}"
)
axes.set(xlabel="SGD steps", ylabel="excess risk E")
axes.legend()
plt.close(figure)  # shown once, by the next line
figure

# %% [markdown]
# A spectrum of any size in bins: `solve_binned` puts the modes into logarithmic bins and measures what that costs.

# %%
ranks = np.arange(1.0, 1e4 + 1 if small else 1e6 + 1)
binned = odescale.linear.solve_binned(
    ranks**-spectrum_exponent, ranks ** (spectrum_exponent - risk_exponent), at, per_decade=10,
    learning_rate=learning_rate, batch=batch,
)  # fmt: skip
print(f"{ranks.size} modes in {binned.nodes} nodes, error of the bins at most {binned.error.max():.1e}")

# %% [markdown]
# ## The transition: an exponential, then a power law
#
# 20 modes with lam = 1 hold nearly all of the risk, the others are a power law. t_x is where the local exponent stops growing, the
# index q = dlog p/dlog t falling through 1/2. Once from the ODE, once from real SGD runs, with an interval. What to
# see: the mean of the runs crosses over where the theory says.

# %%
tail = np.arange(1, tail_modes + 1)
lam = np.concatenate([np.ones(20), tail**-1.5])
risk = np.concatenate([np.full(20, 0.05), 1e-3 * tail**-2.1])
gap = odescale.spectral(eigenvalues=lam, excess=risk / lam, learning_rate=0.02, batch=8.0)
theory = odescale.find_transition(gap, 4.0 * run_steps, points=150)
print(f"theory: t_x = {theory.t_x:.2f} SGD steps, {theory.depth:.2f} e-folds deep")

at = np.unique(np.round(np.geomspace(5, run_steps, 60)))
sgd_runs = odescale.train(gap, run_steps, record_times=at, seeds=seeds, progress=False)
measured = odescale.find_transition_curve(sgd_runs.step, sgd_runs["loss"], time_unit="SGD steps")
print(f"mean of {seeds} runs: {measured}")

figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
axes.loglog(at, odescale.linear.solve_spectral(gap, at).loss, label="theory")
axes.errorbar(
    at, sgd_runs.mean(), 2 * sgd_runs.stderr(), fmt=".", markersize=4, linewidth=1, label=f"SGD, {seeds} runs, 2 s.e."
)
axes.axvline(theory.t_x, color="C0", linestyle="--", label=f"t_x = {theory.t_x:.4g}")
if measured.interval is not None:
    axes.axvspan(*measured.interval, color="C1", alpha=0.15, label="t_x of the runs, 95 %")
axes.set(xlabel="SGD steps", ylabel="risk")
axes.legend()
plt.close(figure)  # shown once, by the next line
figure

# %% [markdown]
# ## The compute frontier and its critical compute
#
# R = m^-1/2 + n^-1/2 + 50 exp(-0.8 t) at a cost C = m^2 n t, width m >= 100, data n >= 1000. Up to C* only the time
# grows and the risk falls exponentially; then the sizes are released one after the other. What to see: a grey model of fixed
# sizes is on the frontier only where they are the best, and the local exponent on the right drops to 0.186 at C*, then to just
# below 1/S when the data are released too. The same from the command line:
# `odescale frontier --term width:1:.5:2:100 --term data:1:.5:1:1000 --decay 50 --rate .8 --time-cost 1 --compute 1e7:1e12`.

# %%
law = odescale.frontier.risk_law((1, 1), (0.5, 0.5), (2, 1), decay=50, rate=0.8, time_cost=1, floors=(100, 1000))
critical = odescale.frontier.critical_compute(law)
print(law)
print(critical)

C = np.geomspace(1e7, 1e12, compute_points)
frontier = odescale.frontier.compute_frontier(law, C)
models = {}
for compute in (1e8, 1e9, 1e10):
    sizes = np.asarray(frontier.sizes)[np.argmin(np.abs(C - compute))]
    models[f"width {sizes[0]:.0f}, data {sizes[1]:.0f}"] = (C, fixed_size_risk(law, sizes, C))
odescale.plot(frontier, critical=critical, curves=models, asymptote=float(1 / law.S), compute_unit="")["loss"].figure

# %% [markdown]
# The same frontier from R and C alone, by search instead of formulas:

# %%
print(odescale.frontier.compare_frontiers(law, np.geomspace(3e8, 1e12, 5)))

# %% [markdown]
# Each term alone, and two published laws whose exponents follow from their terms: nothing is typed in.

# %%
for name, preset in (("version 1", odescale.frontier.yang_v1()), ("version 3", odescale.frontier.yang_v3())):
    print(f"{name}: {preset}; exponent 1/S = {1 / float(preset.S):.6f}")
    print("   ", odescale.frontier.critical_compute(preset))

x = np.geomspace(100, 1e6, 60)
ranges = {"width": x, "data": 10 * x, "time": np.geomspace(0.5, 16, 60)}
plot_isolated_laws([(odescale.frontier.isolated_law(law, name), values) for name, values in ranges.items()])[
    "width"
].figure

# %% [markdown]
# ## Phases of power-law features
#
# d random features of a spectrum j^-b, target power j^-a, C = d t: which two terms balance at the optimum depends on (a, b).
# What to see: lines of equal exponent that bend at both boundaries; the orange point is the spectrum above.

# %%
optimal = odescale.frontier.compute_optimal(risk_exponent, spectrum_exponent)
print(optimal)
a, b = np.linspace(1.02, 5, 160), np.linspace(1.02, 3, 120)
marks = {
    f"a = {risk_exponent:g}, b = {spectrum_exponent:g}: {optimal.exponent:.3g}": (risk_exponent, spectrum_exponent)
}
plot_compute_phases(a, b, *phase_map(a, b), marks=marks).figure
