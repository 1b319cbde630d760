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
# # Your own run: phases, laws, a forecast, the best schedule, and whether to believe it
#
# You have loss curves. Which phases have they, which law describes them, what would another learning-rate schedule or a longer
# run give, and may you trust the answer? Put your own files into `LOGS` and the names of the runs into `FIT_ON` and `PREDICT`
# below. Without files the notebook trains a small language model on the sources of Python's standard library first, under
# three schedules, and forecasts the third from the other two.
#
# Formats and what the reader repairs: `docs/logs.md`. The laws, how they are chosen and where they fail: `docs/forecasting.md`.

# %%
import os
import tempfile
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)  # odescale never changes this for you

import numpy as np

import odescale
from odescale import OutsideTheoryError
from odescale.compare.log_phases import phases_of_log
from odescale.compare.log_report import first_step
from odescale.language import LanguageModel
from odescale.schedules import ConstantSchedule, CosineSchedule, StepDownSchedule, WarmedSchedule

# %% [markdown]
# ## Parameters
#
# Change them here. `ODESCALE_NOTEBOOK_SIZE=small` is what the tests run: a tiny network for a few hundred steps, whose noise is
# too large to identify much. That, too, is an answer.

# %%
small = os.environ.get("ODESCALE_NOTEBOOK_SIZE", "full") == "small"

LOGS: list[str] = []  # files or folders of your own
FIT_ON = ["constant", "step_down"]
PREDICT = ["cosine"]

width, steps, batch, length = (16, 300, 8, 16) if small else (32, 3000, 16, 64)
peak, seeds = 3e-3, (0,) if small else (0, 1)
warmup = 0.05 * steps

# %% [markdown]
# ## Without logs: train some
#
# A pre-norm transformer reads characters. Three runs from the same start: constant rate, a step-down to a tenth at 60 %, a
# cosine. Their mean test loss over seeds goes into one CSV each, with column names as anybody might have chosen them.

# %%
if not LOGS:
    folder = Path(tempfile.mkdtemp())
    text = odescale.language.source_text(length=length, most=500_000 if small else 20_000_000)
    plans = {
        "constant": WarmedSchedule(ConstantSchedule(), warmup),
        "step_down": WarmedSchedule(StepDownSchedule(0.6 * steps, 0.1), warmup),
        "cosine": WarmedSchedule(CosineSchedule(steps, 0.1), warmup),
    }
    records = np.unique(np.linspace(0, steps, 61).astype(int)[1:])
    for name, schedule in plans.items():
        model = odescale.language.language(
            lambda key: LanguageModel(text.vocabulary, width, 2, 4, length, positions="rotary", key=key),
            text, batch=batch, learning_rate=peak, optimizer="adamw", schedule=schedule, held_out=64 if small else 512,
        )  # fmt: skip
        run = odescale.train(model, steps, record_times=records, seeds=seeds, progress=not small)
        rate = peak * np.asarray(jax.vmap(schedule)(run.step - 1))
        table = np.column_stack([run.step, rate, run.mean("loss"), run.mean("noise_share"), run.mean("kernel_drift")])
        np.savetxt(folder / f"{name}.csv", table, delimiter=",", comments="", fmt="%.8g",
                   header="iters,LR,Val Loss,noise share,kernel drift")  # fmt: skip
        print(f"{name}: loss {run.mean('loss')[-1]:.3f}, noise share {run.mean('noise_share')[-1]:.2f}, "
              f"kernel drift {run.mean('kernel_drift')[-1]:.1f}")  # fmt: skip
    LOGS = [str(folder)]

# %% [markdown]
# The kernel drift is far above 1: a frozen kernel describes none of this, and what follows fits laws instead of assuming it.
#
# ## Read
#
# Every guess and every repair is said.

# %%
logs = odescale.read_logs(LOGS, warmup_steps=warmup)
for log in logs:
    print(log)

# %% [markdown]
# ## Phases
#
# Is there an exponential phase, and where does it end? It is looked for in intrinsic time, after warm-up and before the learning
# rate decays: what the loss does in a decay is the schedule's doing. Most language-model curves have no exponential phase, and the
# answer says why.

# %%
by_name = {log.name: log for log in logs}
first = by_name[FIT_ON[0]]
phases = phases_of_log(first)
print(phases.sentence())
for row in phases.rows:
    print(f"    {row['phase']}: steps {row['from step']:.6g} to {row['to step']:.6g}")
odescale.plot(logs)["loss"].figure

# %% [markdown]
# ## Laws
#
# Time runs in intrinsic time, the sum of learning rates. `L = L0 + A tau^-alpha + n` with a noise n that follows the learning
# rate at once (instant), at a speed C (relaxing), or as a power law of speeds (spectral); a power law without noise beside them.
# A law that the runs cannot identify has no numbers.

# %%
start = first_step([by_name[name].curve() for name in FIT_ON])
fitted = [by_name[name].curve().between(start, np.inf) for name in FIT_ON]
table = odescale.laws.compare_laws(fitted, laws=("instant", "relaxing", "power_tau"), draws=20)
print(table)
known = [law for law, fit in table.fits.items() if fit.identified]
if known:
    odescale.plot(table.fits[known[0]], curves=fitted)

# %% [markdown]
# ## Forecast
#
# Laws are chosen by cross-validation inside the fitted runs, and their mean forecasts; the run to predict is never looked at. If
# nothing is identified there is no forecast.

# %%
found = None
held = [by_name[name].curve().between(start, np.inf) for name in PREDICT]
try:
    found = odescale.forecast(fitted, held, draws=20)
    print(found)
    odescale.plot(found.runs[0], rate=held[0].rate)
except OutsideTheoryError as error:
    print(error)

# %% [markdown]
# ## The best schedule for the same budget
#
# By the gradient through the law, in a staircase that may only fall. It is an extrapolation wherever it leaves the rates that
# were fitted: train it before you believe it (`python -m benchmarks.language_forecast` does).

# %%
if found is not None and {"relaxing", "spectral"} & set(found.mean.weights):
    best = odescale.best_schedule(found.mean, steps=float(first.step[-1]), peak=peak, warmup=warmup)
    print(best)
    odescale.plot(best)
else:
    print("no identified law with a noise that takes time: no best schedule")

# %% [markdown]
# ## All of it as a page
#
# `odescale report FILES --fit-on constant,step_down --predict cosine` writes the same: one HTML file, Markdown and JSON.

# %%
report = odescale.report_logs(logs, fit_on=FIT_ON, predict=PREDICT, draws=20)
print(report.verdict)
with tempfile.TemporaryDirectory() as place:
    page = odescale.write_report(report, place, title="My runs")
    print(page.name, f"{page.stat().st_size / 1e3:.0f} kB")
