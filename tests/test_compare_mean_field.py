"""`compare` of mean-field systems: its arithmetic and verdicts on runs made by hand, refusals, and one small real comparison."""

from __future__ import annotations

import functools
import json
from typing import Any

import equinox as eqx
import numpy as np
import pytest
from scipy import stats

from odescale import (
    Clock,
    Comparison,
    InputError,
    MeanField,
    Run,
    Trajectory,
    aligned_overlaps,
    compare,
    mean_field,
    teacher_student,
    train,
)
from odescale.compare.report import to_json
from odescale.compare.rules.mean_field import quadrature_stderr
from odescale.compare.same import schedule_of
from odescale.networks import HeadRows, QueryToken, RowNetwork, SelfAttention, TeacherStudent
from odescale.schedules import ConstantSchedule

TIMES = np.geomspace(0.5, 8.0, 6)
SLOPE = 1.5


def problem(tokens: int = 2) -> TeacherStudent:
    network = RowNetwork(("q", "k", "r"), (SelfAttention((HeadRows("q", "k"),), asking="last"),), QueryToken(("r",)))
    return teacher_student(network, tokens=tokens)


@functools.cache
def theory_of(**given: Any) -> MeanField:
    pair = problem(given.pop("tokens", 2))
    given = {"dimension": 400, "learning_rate": 0.1, "nodes": 64} | given
    start = aligned_overlaps(pair, alignment=given.pop("alignment", 0.4), cosines={("k", "r"): 0.5}, lengths={"q": 0.5})
    return mean_field(pair, initial_overlaps=start, **given)


def curve(system: MeanField, error: float | None = 0.01) -> Trajectory:
    """L = (1 + t)^-1.5 with a relative half width, as if it had been integrated."""
    t = np.concatenate([[0.0], TIMES])
    loss = (1 + t) ** -SLOPE
    return Trajectory(
        t=t,
        state=np.zeros((t.size, 1)),
        loss=loss,
        exponent=SLOPE * t / (1 + t),
        index=np.ones_like(t),
        observables={},
        valid=np.ones(t.size, bool),
        code=np.asarray(0),
        error=None if error is None else np.full(t.size, error),
        clock=system.clock,
        meta={},
    )


def run_of(system: MeanField, factor: Any = 1.0, *, scatter: float = 0.01, seeds: int = 16, **changes: Any) -> Run:
    """A run whose mean is `factor` times the curve, with exactly this relative scatter over the seeds."""
    noise = np.random.default_rng(0).standard_normal((seeds, TIMES.size))
    if seeds > 1:
        noise = (noise - noise.mean(axis=0)) / noise.std(axis=0, ddof=1)
    loss = (1 + TIMES) ** -SLOPE * (factor + scatter * noise)
    config: dict[str, Any] = {
        "problem": repr(system.problem),
        "initial_overlaps": np.asarray(system.initial_overlaps).tolist(),
        "dimension": int(system.dimension),
        "scale": system.trace,
        "schedule": None,
    } | {
        name: float(getattr(system, name))
        for name in ("learning_rate", "batch", "weight_decay", "momentum", "friction")
    }
    config |= changes
    schedule = ConstantSchedule() if config["schedule"] is None else schedule_of(config["schedule"])
    clock = Clock(config["scale"], config["learning_rate"], schedule, config["batch"], 1.0)
    records = {"loss": loss, "loss_common_stderr": np.zeros_like(loss)}
    return Run(np.rint(TIMES * system.trace).astype(int), TIMES, np.arange(seeds), records, None, clock, config, {})


def compared(factor: Any = 1.0, *, error: float | None = 0.01, half: Run | None = None, **how: Any) -> Comparison:
    system = theory_of()
    options = {name: how.pop(name) for name in ("tolerance", "window") if name in how}
    return compare(system, run_of(system, factor, **how), theory=curve(system, error), half=half, **options)


def test_errors_and_z_are_what_they_say() -> None:
    found = compared(1.02)
    loss = found.loss
    np.testing.assert_allclose(loss.ratio, 1.02, rtol=1e-12)
    assert set(loss.errors) == {"seeds", "quadrature"} and set(loss.neglected) == {"finite_size"}
    np.testing.assert_allclose(loss.errors["seeds"], 0.01 / 4, rtol=1e-9)
    np.testing.assert_allclose(loss.errors["quadrature"], 0.01 / stats.t.ppf(0.975, 3), rtol=1e-12)
    np.testing.assert_allclose(loss.neglected["finite_size"], (1 + SLOPE * TIMES / (1 + TIMES)) / 400, rtol=1e-12)
    expected = 0.02 / np.sqrt(sum(x**2 for x in (*loss.errors.values(), *loss.neglected.values())))
    np.testing.assert_allclose(loss.z, expected, rtol=1e-9)
    assert np.isclose(loss.max_z, expected.max()) and np.isclose(loss.rms_z, np.sqrt(np.mean(expected**2)))
    assert np.isclose(loss.max_deviation, 0.02) and np.isclose(found.fall, 9**SLOPE)
    assert loss.extrapolated is None and found.transitions == {}


def test_a_theory_without_error_bar_has_no_quadrature_error() -> None:
    np.testing.assert_array_equal(compared(error=None).loss.errors["quadrature"], 0)
    np.testing.assert_array_equal(quadrature_stderr(theory_of(), curve(theory_of(), None)), 0)


def test_a_run_at_half_the_dimension_measures_the_finite_size_error() -> None:
    """1 + c/d at d and 1 + 2c/d at d/2: the shift at d is c/d, and the extrapolation is free of it."""
    loss = compared(1.02, half=run_of(theory_of(dimension=200), 1.04)).loss
    np.testing.assert_allclose(loss.neglected["finite_size"], 0.02, rtol=1e-6)
    assert loss.extrapolated is not None
    np.testing.assert_allclose(loss.extrapolated, 1.0, rtol=1e-6)
    assert loss.max_z < 1


@pytest.mark.parametrize(
    ("factor", "how", "status"),
    [
        (1.02, {}, "agrees"),
        (0.98, {}, "agrees"),
        (1.06, {}, "differs"),
        (0.94, {}, "differs"),
        (1.06, {"tolerance": 0.1}, "agrees"),
        (1.035, {"scatter": 0.02}, "agrees"),  # beyond, but within its errors
        (1.0, {"scatter": 0.4}, "undecided"),
        (1.0, {"error": 0.3}, "undecided"),
        (1.0, {"seeds": 1}, "undecided"),
        (1.5, {"seeds": 1}, "undecided"),
        (1 + 0.1 * (TIMES > 7), {}, "differs"),
        (1 + 0.1 * (TIMES > 7), {"window": (0.1, 7.0)}, "agrees"),
    ],
)
def test_verdicts(factor: Any, how: dict[str, Any], status: str) -> None:
    assert compared(factor, **how).verdict.status == status


def test_a_system_that_the_theory_does_not_cover() -> None:
    """Whatever the run says: a learning rate at which SGD is unstable is outside the theory."""
    system = theory_of(learning_rate=20.0)
    found = compare(system, run_of(system), theory=curve(system))
    assert found.verdict.status == "outside the theory" and found.verdict.reasons


def test_the_report_is_json() -> None:
    found = compared(1.01)
    read = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert read["verdict"]["status"] == "agrees" and len(read["seeds"]) == 16 and read["dimension"] == 400
    loss = read["quantities"]["loss"]
    assert len(loss["ratio"]) == TIMES.size and loss["extrapolated"] is None and "finite_size" in loss["neglected"]


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("learning_rate", {"learning_rate": 0.2}),
        ("batch", {"batch": 2.0}),
        ("weight_decay", {"weight_decay": 0.1}),
        ("momentum", {"momentum": 0.5}),
        ("friction", {"friction": 1.0}),
        ("problem", {"problem": "another"}),
        ("run", {"subject": "peaked"}),
        ("dimension", {"scale": 200.0}),
        ("initial_overlaps", {"initial_overlaps": np.eye(6)[None].tolist()}),
        ("schedule", {"schedule": {"t": [0.0, 8.0], "s": [1.0, 0.5]}}),
    ],
)
def test_another_experiment_is_refused_by_name(argument: str, changes: dict[str, Any]) -> None:
    system = theory_of()
    with pytest.raises(InputError) as raised:
        compare(system, run_of(system, **changes), theory=curve(system))
    assert raised.value.argument == argument


def test_other_refusals() -> None:
    system = theory_of()
    run, theory = run_of(system), curve(system)
    with pytest.raises(InputError, match="tolerance"):
        compare(system, run, theory=theory, tolerance=0.0)
    with pytest.raises(InputError, match="window"):
        compare(system, run, theory=theory, window=(7.0, 9.0))
    with pytest.raises(InputError, match="theory"):
        compare(system, run, theory=eqx.tree_at(lambda x: x.t, theory, theory.t * 1.1))
    with pytest.raises(InputError, match="half"):
        compare(system, run, theory=theory, half=run)
    with pytest.raises(InputError, match="half"):
        other = run_of(theory_of(dimension=200), learning_rate=0.2)
        compare(system, run, theory=theory, half=other)
    config = {name: value for name, value in run.config.items() if name != "problem"}
    foreign = Run(run.step, run.t, run.seeds, run.records, None, run.clock, config, {})
    with pytest.raises(InputError, match="theory 'mean_field'"):
        compare(system, foreign, theory=theory)


def test_transitions_are_there_for_the_asking() -> None:
    """An exponential, then a power law: the same estimate on both sides, as of any other theory."""
    system = theory_of()
    t = np.geomspace(0.1, 100, 24)
    shape = 0.02 / (1 + np.append(0.0, t)) + np.exp(-np.append(0.0, t))
    theory = eqx.tree_at(
        lambda x: (x.t, x.loss, x.exponent, x.index, x.valid, x.error, x.state),
        curve(system),
        (np.append(0.0, t), shape, np.ones(25), np.ones(25), np.ones(25, bool), np.full(25, 1e-3), np.zeros((25, 1))),
    )
    few = run_of(system)
    noise = 1 + 0.01 * np.random.default_rng(1).standard_normal((16, t.size))
    run = Run(np.arange(24), t, few.seeds, {"loss": shape[1:] * noise}, None, few.clock, few.config, {})
    found = compare(system, run, theory=theory, transitions=True)
    assert found.transitions["theory"].found and found.transition_agrees and "run" in found.exponents
    with pytest.raises(InputError, match="8 record times"):
        compare(system, few, theory=curve(system), transitions=True)


@pytest.mark.slow
def test_a_small_real_comparison() -> None:
    """Eight seeds at d = 400: agrees, and the error that both sides share through the nodes cancels in the ratio."""
    system = theory_of(nodes=1024)
    run = train(system, 4.0, seeds=8, record_times=np.geomspace(0.5, 4.0, 6), progress=False)
    found = compare(system, run, tolerance=0.05)
    assert found.verdict.status == "agrees", found.verdict
    assert found.loss.rms_z < 2 and found.loss.max_z < 4 and found.fall > 1.5
    prediction = quadrature_stderr(system, found.theory)[found.at]
    assert np.all(found.loss.errors["quadrature"][:3] < prediction[:3])
    # Measured with other nodes the errors are independent, and those of both sides count in full.
    coarse = theory_of(nodes=512)
    other = compare(coarse, run, tolerance=0.05)
    assert np.all(other.loss.errors["quadrature"] > quadrature_stderr(coarse, other.theory)[other.at])
