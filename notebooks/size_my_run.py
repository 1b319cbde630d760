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
# # Size my run: from a table of finished runs to a plan
#
# A table of finished runs, a budget, and questions: which size, how many tokens, what does one more GPU-hour buy, and how far is
# the answer to be believed? The table here is made of a known law with noise, so that every answer can be held against the truth;
# put the path of your own into `table`.
#
# Theory and what held: `docs/tables.md`; the planner: `docs/planner.md`.

# %%
import os

import jax

jax.config.update("jax_enable_x64", True)  # odescale never changes this for you

import numpy as np

import odescale
from odescale.compare.table_report import report_table
from odescale.laws import approach2_bias, compare_approaches, cost_of_size, optimum, scaling_table, theories_beside

# %% [markdown]
# ## Parameters

# %%
small = os.environ.get("ODESCALE_NOTEBOOK_SIZE", "full") == "small"

truth = {"E": 1.7, "A": 420.0, "B": 980.0, "alpha": 0.34, "beta": 0.31}
budgets = np.geomspace(1e18, 1e21, 7)  # FLOP of the runs
sizes = 9  # of each budget
scatter = 0.003  # of the loss, from run to run
draws = 200 if small else 4000
table = None  # or odescale.read_table("runs.csv")

# %% [markdown]
# ## The table

# %%
if table is None:
    rng = np.random.default_rng(0)
    centre = optimum(truth, budgets).params.value
    N = (centre[:, None] * np.geomspace(0.25, 4, sizes)).reshape(-1)
    C = np.repeat(budgets, sizes)
    D = C / (6 * N)
    L = truth["E"] + truth["A"] * N ** -truth["alpha"] + truth["B"] * D ** -truth["beta"]
    L = L * np.exp(scatter * rng.standard_normal(N.size))
    L[11] *= 1.08  # one run went wrong
    table = scaling_table(params=N, flop=C, loss=L)
print(table)

# %% [markdown]
# ## The law, and what the rows do not tell
#
# Read outliers, open exponents and `unstable` before the numbers.

# %%
fit = odescale.fit_table(table, leave_out="outliers", bootstrap=draws)
print(fit)
odescale.plot(fit)
odescale.plot(fit, kind="residuals")

# %% [markdown]
# ## Three approaches side by side, and the bias of the second on this very grid

# %%
print(compare_approaches(table, fit=fit, bootstrap=draws))
print(approach2_bias(fit, table))

# %% [markdown]
# ## Theory beside it
#
# An interval that excludes a theory's exponent speaks against the theory or against the form of the fit.

# %%
for verdict in theories_beside(fit):
    if verdict.answer != "cannot tell":
        print(verdict)

# %% [markdown]
# ## What size, and what does another one cost?

# %%
best = optimum(fit, [1e21, 1e22, 1e23])
print(best)
print("the truth:", optimum(truth, [1e21, 1e22, 1e23]).params.value)
print("with 1e12 tokens to serve:", optimum(fit, 1e22, served=1e12))
off = cost_of_size(fit, 1e22, np.array([0.5, 2.0]))
print("half and twice the best size waste", off.wasted.value, "of the compute")

# %% [markdown]
# ## All of it as a page
#
# `odescale laws runs.csv` on the command line does the same.

# %%
report = report_table(table, forms="chinchilla", compute=[1e21, 1e22, 1e23], bootstrap=draws)
odescale.plot(report)
print("\n".join(report.answers))

# %% [markdown]
# ## A plan under budgets
#
# Compute, memory, wall-clock and data at once: what binds, and what more of each is worth. Every assumption is printed with it.

# %%
budgets_of_mine = {"flop": 1e22, "memory": 80e9, "devices": 64, "hours": 240, "unique_tokens": 3e11}
found = odescale.plan(fit, budgets_of_mine, draws=20 if small else 100)
print(found)
odescale.plot(found)
