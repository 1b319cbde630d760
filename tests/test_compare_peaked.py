"""`compare` of peaked systems: arithmetic and verdicts on runs made by hand, refusals, and real runs against the ODE."""

from __future__ import annotations

import functools
import json
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from odescale import Comparison, InputError, Peaked, Run, Trajectory, compare, integrate, peaked, train, write_report
from odescale.compare.rules.peaked import lagging_spread
from odescale.compare.same import schedule_of
from odescale.schedules import GrowthSchedule, PowerSchedule

QUANTITIES = ("overlap", "spread", "loss", "error")
TIMES = np.geomspace(0.5, 20.0, 10)


@functools.cache
def silent(**given: Any) -> Peaked:
    """Without noise no table is made."""
    return peaked(**{"classes": 3, "dimension": 1000, "noise": 0.0} | given)


@functools.cache
def curve() -> Trajectory:
    return integrate(silent(spread=0.2), ts=np.concatenate([[0.0], TIMES]))


def by_hand(factors: dict[str, Any], *, scatter: float = 1e-3, seeds: int = 8, **changes: Any) -> Run:
    """Means `factors` times the theory, with exactly this relative scatter over the seeds."""
    system = silent(spread=0.2)
    noise = np.random.default_rng(0).standard_normal((seeds, TIMES.size))
    if seeds > 1:
        noise = (noise - noise.mean(axis=0)) / noise.std(axis=0, ddof=1)
    values = {}
    for name in QUANTITIES:
        theory = np.asarray(curve().loss if name == "loss" else curve().observables[name])[1:]
        values[name] = theory * (factors.get(name, 1.0) + scatter * noise)
    values |= {f"{name}_common_stderr": np.zeros_like(noise) for name in ("loss", "error")}
    words = ("labels", "loss", "optimizer")
    numbers = ("classes", "dimension", "batch", "learning_rate", "weight_decay", "overlap", "spread", "smoothing",
               "focusing", "inverse_temperature")  # fmt: skip
    config: dict[str, Any] = {"subject": "peaked", "schedule": None, "logit_schedule": None}
    config |= {name: getattr(system, name) for name in words} | {name: float(getattr(system, name)) for name in numbers}
    config |= changes
    clock = eqx.tree_at(lambda c: c.schedule, system.clock, schedule_of(config["schedule"]))
    return Run(np.rint(TIMES * 1000).astype(int), TIMES, np.arange(seeds), values, None, clock, config, {})


def compared(factors: dict[str, Any] | None = None, **how: Any) -> Comparison:
    options = {name: how.pop(name) for name in ("tolerance", "window", "transitions") if name in how}
    return compare(silent(spread=0.2), by_hand(factors or {}, **how), theory=curve(), **options)


def test_errors_and_z_are_what_they_say() -> None:
    loss = compared({"loss": 1.005}).loss
    np.testing.assert_allclose(loss.ratio, 1.005, rtol=1e-9)
    np.testing.assert_allclose(loss.errors["seeds"], 1e-3 / np.sqrt(8), rtol=1e-9)
    slope = np.abs(curve().exponent[1:])
    np.testing.assert_allclose(loss.neglected["finite_size"], (1 + slope) * 2 / 1000, rtol=1e-9)
    expected = 0.005 / np.hypot(loss.stderr, loss.neglected["finite_size"])
    np.testing.assert_allclose(loss.z, expected, rtol=1e-6)
    assert np.isclose(loss.max_deviation, 0.005) and np.isclose(loss.max_z, expected.max())


def test_quantities_without_an_exponent_of_their_own_take_their_slope_on_the_points() -> None:
    found = compared()["overlap"]
    slope = np.abs(np.gradient(np.log(curve().observables["overlap"][1:]), np.log(TIMES)))
    np.testing.assert_allclose(found.neglected["finite_size"], (1 + slope) * 2 / 1000, rtol=1e-9)


@pytest.mark.parametrize(
    ("factors", "how", "status"),
    [
        ({}, {}, "agrees"),
        ({"overlap": 1.01, "spread": 0.97, "loss": 1.008, "error": 1.015}, {}, "agrees"),
        ({"overlap": 1.02}, {}, "differs"),
        ({"spread": 0.93}, {}, "differs"),
        ({"loss": 0.98}, {}, "differs"),
        ({"error": 1.03}, {}, "differs"),
        ({"loss": 0.98}, {"tolerance": {"loss": 0.03}}, "agrees"),
        ({"loss": 0.98}, {"tolerance": 0.03}, "agrees"),
        ({}, {"transitions": True}, "agrees"),
        ({"loss": 1 + 0.1 * (TIMES > 15)}, {"window": (0.5, 15.0)}, "agrees"),
        ({}, {"scatter": 0.2}, "undecided"),
        ({}, {"seeds": 1}, "undecided"),
        ({"loss": 1.5}, {"seeds": 1}, "undecided"),
    ],
)
def test_verdicts(factors: dict[str, Any], how: dict[str, Any], status: str) -> None:
    assert compared(factors, **how).verdict.status == status


def test_exponents_of_both_by_the_same_estimate() -> None:
    found = compared({"loss": TIMES**-0.05}, scatter=1e-5)
    run, theory = found.tail("loss")
    assert np.isclose(run.exponent - theory.exponent, 0.05, atol=1e-4)
    run, theory = found.local("loss")
    np.testing.assert_allclose(run.exponent - theory.exponent, 0.05, atol=2e-3)
    assert run.smoothing == theory.smoothing


@pytest.mark.parametrize(
    ("given", "inside"),
    [
        ({"schedule": PowerSchedule(0.6, 1.0)}, True),
        ({"schedule": PowerSchedule(0.7, 1.0)}, False),
        ({"schedule": PowerSchedule(1.2, 1.0), "logit_schedule": GrowthSchedule(0.6, 1.0)}, True),
        ({"schedule": PowerSchedule(0.8, 1.0), "smoothing": 0.1}, True),
    ],
)
def test_a_lagging_spread_is_outside_the_theory(given: dict[str, Any], inside: bool) -> None:
    system = eqx.tree_at(lambda s: s.noise, peaked(classes=3, noise=0.0, **given), jnp.asarray(1.0))
    assert (not lagging_spread(system, 1e3)) == inside
    assert not lagging_spread(peaked(classes=3, noise=0.0, **given), 1e3)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"classes": 4}, "classes"),
        ({"batch": 2}, "batch"),
        ({"labels": "sampled"}, "labels"),
        ({"spread": 0.3}, "spread"),
        ({"schedule": {"t": [0.0, 20.0], "s": [1.0, 0.5]}}, "schedule"),
        ({"subject": "attention"}, "run"),
    ],
)
def test_another_experiment_is_refused(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError) as caught:
        compared(**changes)
    assert caught.value.argument == name


@pytest.mark.parametrize(
    ("how", "name"),
    [({"window": (1.0, 1.1)}, "window"), ({"tolerance": {"loss": 0.0}}, "tolerance"), ({"tolerance": {"x": 0.1}}, "tolerance")],
)  # fmt: skip
def test_bad_options_are_named(how: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError) as caught:
        compared(**how)
    assert caught.value.argument == name


def test_the_report_is_written(tmp_path: Any) -> None:
    page = write_report(compared({"error": 1.03}), tmp_path / "report", title="One third").read_text()
    assert "**Verdict: differs.**" in page and page.count("\n| ") > TIMES.size
    record = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert record["quantities"]["error"]["verdict"]["status"] == "differs"
    assert (tmp_path / "report" / "comparison.png").stat().st_size > 10_000


# Real runs


@pytest.mark.slow
def test_normalised_descent_with_a_large_batch_grows_linearly_and_follows_the_flow() -> None:
    """Batch 5e4 in 20 dimensions, steps of the same length: D = eta t/sqrt(K - 1) to 1 %, loss to 2 % of the ODE."""
    system = silent(dimension=20, batch=50_000, optimizer="normalised", learning_rate=4.0)
    run = train(system, 1.4, seeds=1, record_times=np.geomspace(0.5, 1.4, 5), progress=False)
    flow = integrate(system, ts=np.concatenate([[0.0], run.t]))
    np.testing.assert_allclose(run["overlap"][0], np.asarray(flow.observables["overlap"])[1:], rtol=0.01)
    np.testing.assert_allclose(run["overlap"][0], 4.0 * run.t / np.sqrt(2), rtol=0.02)
    np.testing.assert_allclose(run["loss"][0], np.asarray(flow.loss)[1:], rtol=0.02)


@pytest.mark.slow
def test_online_sgd_at_a_thousand_dimensions() -> None:
    """K = 3, eta = 1, alpha in [1, 80], 8 seeds: D 1.5 %, Delta 4 %, loss 1 %, error 2 %; every z of the seeds alone below 4.

    The negative control: the flow without SGD noise is refused.
    """
    system = peaked(classes=3, dimension=1000)
    run = train(system, 80.0, record_times=np.geomspace(1, 80, 12), seeds=8, progress=False)
    found = compare(system, run)
    assert found.verdict.status == "agrees"
    for name, limit in {"overlap": 0.015, "spread": 0.04, "loss": 0.01, "error": 0.02}.items():
        one = found[name]
        assert one.max_deviation < limit
        assert np.abs((one.ratio - 1) / one.stderr).max() < 4
    quiet = peaked(classes=3, dimension=1000, noise=0.0)
    wrong = compare(quiet, run)
    assert wrong["loss"].verdict.status == wrong["spread"].verdict.status == wrong.verdict.status == "differs"


@pytest.mark.slow
@pytest.mark.parametrize("h", [0.6, 0.7])
def test_a_growing_logit_temperature_gives_exponent_h(h: float) -> None:
    """p = softmax(beta lam), beta = (1 + t)^h, eta = (1 + t)^-2h: loss exponent h; from t = 100 on within .03, as the ODE's is."""
    system = peaked(classes=3, dimension=500, schedule=PowerSchedule(2 * h, 1.0), logit_schedule=GrowthSchedule(h, 1.0))
    run = train(system, 2000.0, record_times=np.geomspace(10, 2000, 20), seeds=8, progress=False)
    found = compare(system, run, window=(100.0, 2000.0))
    assert found.verdict.status == "agrees"
    for name in ("loss", "error"):
        own, theirs = found.tail(name)
        assert abs(own.exponent - theirs.exponent) < 0.02
    own, _ = found.tail("loss", (400.0, 2000.0))
    assert abs(own.exponent - h) < 0.02


@pytest.mark.slow
def test_smoothed_labels_give_the_error_half_the_exponent_of_the_rate() -> None:
    """eps = .3, eta = 8 (1 + t)^-0.6, batch 8: D stays finite, Delta ~ eta, error exponent g/2 = .3 within .02."""
    system = peaked(
        classes=3, dimension=500, smoothing=0.3, learning_rate=8.0, batch=8, schedule=PowerSchedule(0.6, 1.0)
    )
    run = train(system, 300.0, record_times=np.geomspace(10, 300, 16), seeds=8, progress=False)
    found = compare(system, run, window=(10.0, 300.0))
    own, theirs = found.tail("error")
    assert abs(own.exponent - 0.3) < 0.02 and abs(own.exponent - theirs.exponent) < 0.02
    assert run.mean("overlap")[-1] < 1.3
