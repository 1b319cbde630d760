"""The report on a user's own logs: what it says of curves of known law, its pages, and the commands around it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.log_report import measure
from odescale import InputError, read_logs, report_logs
from odescale.cli.main import main
from odescale.compare.log_pages import write_log_report
from odescale.compare.log_report import LogReport, thinned
from odescale.logs import TrainingLog

WARMUP, PEAK = 100, 1e-3
L0, A, ALPHA, B, C = 2.0, 0.9, 0.5, 150.0, 8.0


def rates(name: str, step: np.ndarray) -> np.ndarray:
    """Learning rate of SGD step r of a run of 6000 steps."""
    shape = {
        "constant": np.ones(step.size),
        "down": np.where(step < 3000, 1.0, 0.2),
        "cosine": 0.1 + 0.45 * (1 + np.cos(np.pi * step / 6000)),
    }[name]
    return PEAK * np.minimum((step + 1) / WARMUP, 1) * shape


def rows(name: str, seed: int, noise: float = 0.002) -> np.ndarray:
    """(step, rate, loss) every 40 steps of L = L0 + A tau^-alpha + n, dn/dtau = -C (n - B eta), stepped exactly."""
    eta = rates(name, np.arange(6000.0))
    tau, n = np.cumsum(eta), np.zeros(6000)
    for r in range(1, 6000):
        n[r] = B * eta[r] + (n[r - 1] - B * eta[r]) * np.exp(-C * eta[r])
    at = np.arange(200, 6000, 40)
    loss = (L0 + A * tau[at] ** -ALPHA + n[at]) * (1 + noise * np.random.default_rng(seed).standard_normal(at.size))
    return np.column_stack([at + 1, eta[at], loss])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three runs as a user would have them: columns of other names."""
    place = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("constant", "down", "cosine")):
        np.savetxt(
            place / f"{name}.csv",
            rows(name, seed),
            delimiter=",",
            header="iters,LR,Train Loss",
            comments="",
            fmt="%.9g",
        )
    return place


@pytest.fixture(scope="module")
def report(folder) -> LogReport:
    logs = read_logs(folder, warmup_steps=WARMUP)
    return report_logs(logs, fit_on=("constant", "down"), predict="cosine", law="relaxing", draws=20)


def test_a_held_out_schedule_is_forecast(report):
    """The law that made the curves is identified and forecasts the cosine run; the power law in tau does not."""
    assert report.table is not None and report.forecast is not None
    fit = report.table.fits["relaxing"]
    assert fit.identified and fit.parameters["B"] == pytest.approx(B, rel=0.1)
    errors, rival = report.forecast.errors(), report.forecast.errors("power_tau")
    assert errors["mean_absolute"] < 0.006 and errors["mean_absolute"] < rival["mean_absolute"] / 4
    assert report.verdict.status == "agrees"
    assert report.window is not None and report.window[0] >= 0.05 * 5961


def test_the_page_is_one_file_and_says_what_the_record_says(report, tmp_path):
    page = write_log_report(report, tmp_path / "page", title="Runs <of mine>")
    text = page.read_text(encoding="utf-8")
    assert "Runs &lt;of mine&gt;" in text and not re.search(r'(src|href)="(?!data:)', text)
    assert text.count("data:image/png;base64,") == 6  # all runs, exponents of each of three, residuals, one forecast
    record = json.loads((tmp_path / "page" / "report.json").read_text(encoding="utf-8"))
    assert record["verdict"]["status"] == "agrees" and set(record["runs"]) == {"constant", "down", "cosine"}
    assert record["runs"]["down"]["columns"] == {"step": "iters", "loss": "Train Loss", "learning_rate": "LR"}
    assert all(len(run["sha256"]) == 64 for run in record["runs"].values())
    for word in ("Details of cosine", "Answer", "Phases", "intrinsic time", "90 %", "sha256", "odescale 0"):
        assert word in text, word
    markdown = (tmp_path / "page" / "report.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\((.+?\.png)\)", markdown):
        assert (tmp_path / "page" / name).stat().st_size > 5000


def test_one_constant_rate_identifies_nothing(folder):
    """B and L0 are one column then: no law of the theory has numbers, and no forecast follows."""
    logs = [log for log in read_logs(folder, warmup_steps=WARMUP) if log.name != "down"]
    assert len(logs) == 2
    found = report_logs(logs, fit_on="constant", predict="cosine", draws=20)
    assert found.forecast is None and "unidentified" in found.forecast_reason
    assert found.verdict.status == "undecided" and any("unidentified" in reason for reason in found.verdict.reasons)
    assert found.table is not None and not any(
        found.table.fits[law].identified for law in ("instant", "relaxing", "spectral")
    )


def test_logs_without_rates_and_short_logs_are_reported_in_words(tmp_path):
    step = np.arange(1, 400.0)
    bare = TrainingLog("bare", step, 2 + 3 / step)
    short = TrainingLog("short", step[:5], 2 + 3 / step[:5])
    found = report_logs((bare, short))
    assert found.table is None and "no learning rate in bare" in found.table_reason
    assert found.runs[1].reason == "5 points after step 0, 8 are needed"
    assert write_log_report(found, tmp_path).exists()
    with pytest.raises(InputError, match="fit_on: expected a run among bare, short"):
        report_logs((bare, short), fit_on="other")
    with pytest.raises(InputError, match="predict: expected runs that fit_on does not hold"):
        report_logs((bare, short), fit_on="bare", predict="bare")


def test_thinning_keeps_the_means():
    step = np.arange(1.0, 5001.0)
    loss = np.random.default_rng(0).uniform(1, 2, 5000)
    log = thinned(TrainingLog("long", step, loss, learning_rate=loss * 1e-3), 700)
    assert log.step.size == 625 and "means over 8 rows" in log.notes[-1]
    np.testing.assert_allclose(log.loss, loss.reshape(-1, 8).mean(axis=1))
    np.testing.assert_allclose(log.step, step.reshape(-1, 8).mean(axis=1))


def test_the_commands(folder, tmp_path, capsys, monkeypatch):
    """Forecast of a planned run, and the best schedule for its budget, from the command line."""
    monkeypatch.chdir(tmp_path)
    common = [str(folder), "--warmup-steps", str(WARMUP), "--fit-on", "constant,down", "--law", "relaxing", "--json"]
    plan = ["--steps", "6000", "--peak", str(PEAK), "--warmup", str(WARMUP)]
    assert main(["forecast", *common, "--schedule", "cosine:6000:0.1", *plan, "--plot", "planned.png"]) == 0
    planned = json.loads(capsys.readouterr().out)
    truth = rows("cosine", 0, noise=0.0)[-1, 2]
    low, high = planned["horizons"][-1]["low"], planned["horizons"][-1]["high"]
    assert low < truth < high and abs(planned["loss"][-1] - truth) < 0.01
    assert main(["schedule", *common, *plan, "--save", "best.csv", "--plot", "best.svg"]) == 0
    best = json.loads(capsys.readouterr().out)
    assert min(Path(name).stat().st_size for name in ("planned.png", "best.svg")) > 5000
    assert best["loss"] < min(best["references"].values())
    saved = np.loadtxt("best.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(saved[:, 1], best["rate"])
    log, both = str(folder), ["--fit-on", "down", "--predict", "down"]
    plans = ("--steps", "--peak", "--warmup")
    for bad, words in (
        *((["forecast", log, *both, name, "5"], f"{name}: expected to be left out") for name in plans),
        (["forecast", str(folder)], "--fit-on"),
        (["forecast", str(folder), "--fit-on", "down"], "--predict"),
        (["forecast", str(folder), "--fit-on", "down", "--schedule", "cosine:10"], "--steps"),
        (["forecast", str(folder), "--fit-on", "down", "--predict", "cosine", "--plot", "a.csv"], "--plot"),
        (["schedule", str(folder), "--fit-on", "nothing"], "--fit-on: expected a run among"),
    ):
        assert main(bad) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and words in said.err


@pytest.mark.slow
def test_a_million_rows_stay_within_a_gibibyte():
    _, peak = measure(1_000_000)
    assert peak < 1024
