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
# # Which optimiser: one network, five optimisers, five ODEs
#
# The same student learns the same teacher under SGD, with its gradient clipped, under Adam, sign descent and Muon. Each has its
# own ODE, and each trained network follows it. Then the question that decides: which of them reaches a given loss first, and where
# does each stop?
#
# Theory: `docs/optimisers.md`; clocks and units: `docs/conventions.md`.

# %%
import os

import jax

jax.config.update("jax_enable_x64", True)  # odescale never changes this for you

import matplotlib.pyplot as plt
import numpy as np

import odescale
from odescale.optimizers import SGD, Adam, Muon, Sign

# %% [markdown]
# ## Parameters
#
# `ODESCALE_NOTEBOOK_SIZE=small` is what the tests run. One unit of t is `dimension` SGD steps, for every optimiser. The rates are
# those numbers that stay fixed as the width grows: the learning rate itself for SGD and Muon, times sqrt(N) for the others.

# %%
small = os.environ.get("ODESCALE_NOTEBOOK_SIZE", "full") == "small"

dimension = 100 if small else 600
batch, alignment = 4.0, 0.3
nodes = 256 if small else 2048  # of one replicate; for signs and Muon, which see whole batches
t1 = 2.0 if small else 8.0
seeds, records = (2, 5) if small else (8, 14)

optimisers = {
    "SGD": {"optimizer": SGD(rate=0.5)},
    "SGD, clipped at .2": {"optimizer": SGD(rate=0.5), "clip": 0.2},
    "Adam": {"optimizer": Adam(rate=0.1)},
    "sign": {"optimizer": Sign(rate=0.1)},
    "Muon": {"optimizer": Muon(rate=0.04)},
}

# %% [markdown]
# ## The five ODEs, and networks on top
#
# An erf committee of two units. `optimizer=` and `clip=` are all that changes: the theory takes its preconditioner from the object,
# the training its update (optax).

# %%
systems = {
    name: odescale.committee(**rule, alignment=alignment, batch=batch, dimension=dimension, nodes=nodes, budget=nodes)
    for name, rule in optimisers.items()
}
theories, runs = {}, {}
for name, system in systems.items():
    runs[name] = odescale.train(system, t1, seeds=seeds, records=records, progress=False)
    comparison = odescale.compare(system, runs[name], tolerance=0.05)
    theories[name] = comparison.theory
    print(f"{name:<19}", comparison.verdict)

# %% [markdown]
# Lines are ODEs, marks are means of trained networks with three standard errors.

# %%
figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
for number, name in enumerate(optimisers):
    theory, run = theories[name], runs[name]
    axis.plot(theory.t[1:], theory.loss[1:], color=f"C{number}", lw=1.5, label=name)
    axis.errorbar(run.t, run.mean("loss"), 3 * run.scatter("loss"), color=f"C{number}", fmt="o", ms=4, lw=1)
axis.set(
    xscale="log",
    yscale="log",
    xlim=(0.2, None),
    xlabel=f"t  (one unit = {dimension} steps)",
    ylabel="excess loss L  (half squared error)",
    title=f"Erf committee, d = {dimension}, B = {batch:g}: lines ODE, marks trained ({seeds} seeds)",
)
ticks = [0.2, 0.5, 1, 2, 5]
axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
axis.minorticks_off()
axis.legend(frameon=False, loc="lower left")
figure

# %% [markdown]
# ## Where a constant rate stops
#
# The step of sign, Adam and Muon does not shrink with the gradient: at a constant rate their noise holds the loss at a floor, where
# that of noiseless SGD goes on falling. So they want a schedule that ends low. Adam at a constant rate and with a cosine to 2 %:

# %%
long = 3 * t1
schedules = {"constant": "constant", "cosine to 2 %": f"cosine:{long:g}:0.02"}
figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
for name, rule in (("Adam", Adam(rate=0.1)), ("SGD", SGD(rate=0.5))):
    for schedule, text in schedules.items():
        system = odescale.committee(
            optimizer=rule, schedule=text, alignment=alignment, batch=batch, dimension=dimension, closure="closed"
        )
        theory = odescale.integrate(system, long, points=60, exponents=False)
        print(f"{name:<5} {schedule:<14} loss at t = {long:g}: {theory.loss[-1]:.3g}")
        axis.plot(theory.t[1:], theory.loss[1:], "--" if "cosine" in schedule else "-", label=f"{name}, {schedule}",
                  color="C2" if name == "Adam" else "C0")  # fmt: skip
axis.set(xscale="log", yscale="log", xlabel=f"t  (one unit = {dimension} steps)", ylabel="excess loss L")
axis.legend(frameon=False)
figure

# %% [markdown]
# ## Carrying a learning rate over to another width
#
# In these units the best rate hardly depends on the width, if Adam's memory is counted in them too: its learning rate goes as
# 1/sqrt(d), and 1 - beta2 as 1/d. At one beta2 for all widths the best rate moves, and the ODE says where to.

# %%
rates = 0.08 * 1.4 ** np.arange(3 if small else 7)
for words, beta2 in (("beta2 = .999", lambda width: 0.999), ("1 - beta2 = .064/d", lambda width: 1 - 0.064 / width)):
    for width in (100, 1000):
        losses = []
        for rate in rates:
            rule = Adam(rate=rate, beta2=beta2(width))
            system = odescale.committee(
                optimizer=rule, alignment=alignment, batch=batch, dimension=width, closure="closed"
            )
            losses.append(float(odescale.integrate(system, ts=[0.0, 4.0], exponents=False).loss[-1]))
        best = rates[int(np.argmin(losses))]
        print(f"{words}, d = {width}: best rate a = {best:.2f} (of a grid), a/sqrt(d) = {best / width**0.5:.2g}")
