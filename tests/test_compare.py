"""Comparison: ratios, errors, verdicts and the report, on runs made from the theory so that the answer is known."""

from __future__ import annotations

import json

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from odescale import (
    Clock,
    InputError,
    Rules,
    Run,
    Thresholds,
    Trajectory,
    attention,
    compare,
    integrate,
    logistic_pair,
    train,
    write_report,
)
from odescale.compare.report import to_json, to_markdown
from odescale.compare.verdict import judge
from odescale.files import plain
from odescale.schedules import ConstantSchedule
from odescale.systems.attention_build import quickstart_loss
from odescale.systems.register import HOOKS

POINTS = 200
T1 = 30.0


def times() -> np.ndarray:
    """t = 0 and 199 times at whole steps, of which every sixth is a record time of the run."""
    return np.concatenate([[0.0], np.rint(200 * np.geomspace(0.5, T1, POINTS - 1)) / 200])


@pytest.fixture(scope="module")
def theory() -> Trajectory:
    return integrate(logistic_pair(), ts=times(), accuracy="check")


def run_of(system, truth: Trajectory, *, seeds: int = 4, scatter: float = 0.01, random: int = 0, **config) -> Run:
    """A run whose seeds scatter by `scatter` around a trajectory, with the fields of a real one."""
    at = np.arange(1, POINTS, 6)
    step = np.rint(truth.t[at] * 200).astype(int)
    noise = 1 + scatter * np.random.default_rng(random).normal(size=(seeds, at.size))
    loss = truth.loss[at] * noise
    overlaps = np.broadcast_to(truth.overlaps[at], (seeds, at.size, 8, 8)).copy()
    records = {"loss": loss, "loss_stderr": 1e-3 * loss, "overlaps": overlaps}
    settings = {
        "learning_rate": float(system.learning_rate), "batch": float(system.batch), "tokens": 64, "dimension": 200,
        "weight_decay": 0.0, "initial_overlaps": np.asarray(system.initial_overlaps).tolist(),
    } | config  # fmt: skip
    clock = Clock(200.0, settings["learning_rate"], ConstantSchedule(), settings["batch"], settings["tokens"])
    return Run(step, truth.t[at], np.arange(seeds), records, None, clock, settings, {})


def changed(run: Run, **records) -> Run:
    return eqx.tree_at(lambda r: r.records, run, run.records | records)


@pytest.fixture(scope="module")
def agreeing(theory):
    return compare(logistic_pair(), run_of(logistic_pair(), theory), theory=theory)


def test_a_run_of_the_theory_agrees(agreeing, theory):
    loss = agreeing.loss
    assert agreeing.verdict.status == "agrees" and set(agreeing.quantities) == {"loss", "overlaps"}
    np.testing.assert_allclose(loss.ratio, agreeing.run.mean() / theory.loss[1::6], rtol=1e-14)
    # four seeds of 1 %: half a per cent of standard error, pooled over five neighbours
    assert 0.003 < np.median(loss.stderr) < 0.007
    np.testing.assert_allclose(loss.z_of_data, (loss.ratio - 1) / loss.stderr, rtol=1e-12)
    assert np.abs(loss.z_of_data).max() < 5 and 0.5 < np.std(loss.z_of_data) < 2
    # the neglected terms (1/T + 1/d)(1 + |p|) count as one more error
    p = theory.exponent[1::6]
    np.testing.assert_allclose(loss.neglected["finite_context"], (1 + np.abs(p)) / 64, rtol=1e-12)
    np.testing.assert_allclose(loss.allowance, (1 / 64 + 1 / 200) * (1 + np.abs(p)), rtol=1e-12)
    np.testing.assert_allclose(loss.z, (loss.ratio - 1) / np.hypot(loss.stderr, loss.allowance), rtol=1e-12)
    overlaps = agreeing["overlaps"]
    np.testing.assert_allclose(overlaps.measured, 0.0, atol=1e-14)
    assert overlaps.verdict is None and overlaps.max_deviation < 1e-14


def test_sources_of_error_are_kept_apart(agreeing, theory):
    errors = agreeing.loss.errors
    assert set(errors) == {"seeds", "monte_carlo", "numerical"}
    np.testing.assert_allclose(errors["monte_carlo"], 1e-3 / 2, rtol=0.05)
    np.testing.assert_allclose(errors["numerical"], theory.error[1::6])
    statistical = np.maximum(errors["seeds"], errors["monte_carlo"])
    np.testing.assert_allclose(agreeing.loss.stderr, np.hypot(statistical, errors["numerical"]))


def test_few_seeds_pool_their_variance_and_many_do_not(theory):
    few, many = (compare(logistic_pair(), run_of(logistic_pair(), theory, seeds=n), theory=theory).loss for n in (4, 8))
    run = run_of(logistic_pair(), theory, seeds=8)
    np.testing.assert_allclose(many.errors["seeds"], run.scatter() / theory.loss[1::6], rtol=1e-12)
    assert np.std(few.errors["seeds"]) < 0.6 * np.std(run_of(logistic_pair(), theory).scatter() / theory.loss[1::6])


def test_both_transitions_come_from_one_model_on_the_same_points(theory):
    """Losses of the quickstart's closed form under the name of another system: only the curves matter here."""
    closed = np.asarray(quickstart_loss(1.2 * theory.t, 14.0, 0.3, 4.0))
    both = eqx.tree_at(lambda tr: tr.loss, theory, closed)
    found = compare(logistic_pair(), run_of(logistic_pair(), both), theory=both).transitions
    predicted, run = found["theory"], found["run"]
    assert "exact" not in found  # another theory's trajectory was given
    assert predicted.found and run.found and predicted.model == run.model
    assert predicted.t_x * 1.2 == pytest.approx(2.836739, rel=0.03) and predicted.interval is None
    assert run.interval is not None and run.interval[0] < run.t_x < run.interval[1]
    assert run.t_x == pytest.approx(predicted.t_x, rel=0.03)


def test_frozen_theory_overlaps_differ(theory):
    system = logistic_pair()
    still = eqx.tree_at(
        lambda tr: (tr.loss, tr.exponent, tr.observables["overlaps"]), theory,
        (np.full(POINTS, theory.loss[0]), np.zeros(POINTS), np.broadcast_to(theory.overlaps[0], theory.overlaps.shape)),
    )  # fmt: skip
    result = compare(system, run_of(system, theory), theory=still)
    assert result.verdict.status == "differs"
    assert "outside 1 +- 0.1 by more than 3 standard errors" in str(result.verdict)
    assert result["overlaps"].measured.max() > 0.5 and result.transition_agrees is not True


def test_theory_without_its_noise_differs_where_the_noise_matters():
    # at learning_rate 0.6 the noise eta^2/B raises the loss by far more than 10 %
    system = logistic_pair(learning_rate=0.6)
    truth = integrate(system, ts=times())
    silent = integrate(logistic_pair(learning_rate=0.6, noise=0.0), ts=times())
    run = run_of(system, truth)
    assert compare(system, run, theory=truth).verdict.status == "agrees"
    result = compare(logistic_pair(learning_rate=0.6, noise=0.0), run, theory=silent)
    assert result.verdict.status == "differs" and result.loss.ratio.max() > 1.3


def test_wide_error_bars_leave_it_undecided(theory):
    wide = compare(logistic_pair(), run_of(logistic_pair(), theory, scatter=0.4), theory=theory)
    assert wide.verdict.status == "undecided" and "train more seeds" in str(wide.verdict)


def test_one_seed_leaves_it_undecided(theory):
    one = compare(logistic_pair(), run_of(logistic_pair(), theory, seeds=1), theory=theory)
    assert one.verdict.status == "undecided" and "one seed" in one.verdict.reasons[0]
    assert set(one.loss.errors) == {"monte_carlo", "numerical"} and to_json(one)["verdict"]["status"] == "undecided"


def test_logits_too_large_for_an_infinite_context_are_outside_the_theory(theory):
    # readout_scale 1 puts |q|^2/N = |k|^2/N = strength on the teacher: 2 C_kk C_qq = 2 strength^2
    system = logistic_pair(strength=1.0, readout_scale=1.0, learning_rate=0.4)
    truth = integrate(system, ts=times())
    result = compare(system, run_of(system, truth), theory=truth)
    assert result.verdict.status == "outside the theory"
    assert "2 C_kk C_qq = " in result.verdict.reasons[0] and "teacher" in result.verdict.reasons[0]


def test_too_small_a_run_is_outside_the_theory(theory):
    small = run_of(logistic_pair(), theory, tokens=4)
    result = compare(logistic_pair(tokens=4.0), small, theory=theory)
    assert result.verdict.status == "outside the theory" and "too small" in result.verdict.reasons[0]


def test_a_window_leaves_points_out(theory):
    run = run_of(logistic_pair(), theory)
    spoilt = changed(run, loss=np.where(run.t > 15.0, 2.0, 1.0) * run["loss"])
    assert compare(logistic_pair(), spoilt, theory=theory).verdict.status == "differs"
    kept = compare(logistic_pair(), spoilt, theory=theory, window=(0.5, 15.0))
    assert kept.verdict.status == "agrees" and not kept.kept[run.t > 15.0].any()
    with pytest.raises(InputError, match="at least 8 record times"):
        compare(logistic_pair(), run, theory=theory, window=(29.0, 30.0))


@pytest.mark.parametrize(
    ("system", "config", "argument"),
    [
        (lambda: logistic_pair(learning_rate=0.21), {}, "learning_rate"),
        (lambda: logistic_pair(batch=5.0), {}, "batch"),
        (lambda: logistic_pair(weight_decay=0.1), {}, "weight_decay"),
        (lambda: logistic_pair(dimension=100), {}, "dimension"),
        (lambda: logistic_pair(tokens=32.0), {}, "tokens"),
        (lambda: logistic_pair(noise=0.5), {}, "noise"),
        (lambda: logistic_pair(schedule="power:0.5"), {}, "schedule"),
        (lambda: logistic_pair(surplus=0.4), {}, "initial_overlaps"),
        (lambda: logistic_pair(), {"subject": "peaked"}, "run"),
        (lambda: attention(), {}, "initial_overlaps"),
    ],
)
def test_another_experiment_is_refused(theory, system, config, argument):
    with pytest.raises(InputError) as error:
        compare(system(), run_of(logistic_pair(), theory, **config))
    assert error.value.argument == argument and "\n" not in str(error.value)


def test_other_times_and_options_are_refused(theory):
    run = run_of(logistic_pair(), theory)
    late = eqx.tree_at(lambda r: r.t, run, run.t * 1.001)
    with pytest.raises(InputError, match="at the run's record times"):
        compare(logistic_pair(), late, theory=theory)
    for argument, given in {
        "tolerance": {"tolerance": 2.0}, "seed": {"seed": 3, "transitions": False}, "regime": {"regime": None},
        "thresholds": {"thresholds": Thresholds(), "transitions": False},
        "context": {"context": theory.member}, "half": {"half": run},
    }.items():  # fmt: skip
        if argument == "context":
            given = {"context": eqx.tree_at(lambda tr: tr.t, theory, theory.t * 1.1)}
        with pytest.raises(InputError) as error:
            compare(logistic_pair(), run, theory=theory, **given)
        assert error.value.argument == argument
    with pytest.raises(InputError, match="quantities among loss"):
        compare(logistic_pair(), run, theory=theory, tolerance={"speed": 0.1})
    with pytest.raises(InputError, match="a Run"):
        compare(logistic_pair(), theory)


def test_every_option_is_honoured(theory):
    run = run_of(logistic_pair(), theory)
    strict = compare(logistic_pair(), changed(run, loss=1.05 * run["loss"]), theory=theory, tolerance=0.02)
    assert strict.verdict.status == "differs" and strict.loss.tolerance == 0.02
    judged = compare(logistic_pair(), run, theory=theory, tolerance={"overlaps": 0.1}, transitions=False)
    assert judged["overlaps"].verdict.status == "agrees" and judged.transitions == {} and judged.exponents == {}
    asked = Thresholds(efolds=20.0)
    deep = compare(logistic_pair(), run, theory=theory, thresholds=asked)
    assert not deep.transitions["run"].found and deep.transitions["run"].thresholds == asked
    half = eqx.tree_at(lambda r: r.records, run_of(logistic_pair(), theory, dimension=100), run.records)
    half = changed(half, loss=1.01 * run["loss"])
    found = compare(logistic_pair(), run, theory=theory, half=half)
    np.testing.assert_allclose(found.loss.neglected["finite_size"], 0.01 * found.loss.ratio, rtol=1e-6)
    second = compare(logistic_pair(), run, theory=theory, context=theory)
    np.testing.assert_allclose(second.context_ratio, second.loss.ratio)


def test_the_systems_own_theory_has_its_exact_transition(theory):
    result = compare(logistic_pair(), run_of(logistic_pair(), theory))
    assert result.transitions["exact"].reason.startswith("no exponential phase"), "its rate climbs all along its fall"
    assert result.verdict.status == "agrees" and "agrees" in str(result) and len(str(result).splitlines()) == 5
    assert result.coverage.inside and f"before the run: {result.coverage}" in str(result)


def test_a_theory_from_outside_brings_its_sheet(theory, monkeypatch):
    system, run = logistic_pair(), run_of(logistic_pair(), theory)
    mine = Rules(tolerance={"loss": 0.2}, predict=lambda system, t: theory)
    monkeypatch.setitem(HOOKS, "attention", {"rules": mine})
    found = compare(system, run)
    assert found.verdict.status == "agrees" and found.loss.tolerance == 0.2 and found.loss.neglected == {}
    monkeypatch.undo()
    with pytest.raises(InputError, match="rule sheet") as error:
        compare(object(), run)
    assert error.value.argument == "system"


def test_judge_needs_deviation_and_significance():
    t, ones = np.linspace(1, 2, 10), np.ones(10)
    far = np.where(np.arange(10) == 4, 1.25, 1.0)

    def status(ratio, stderr, **more):
        return judge(t, ratio, stderr, tolerance=0.1, **more).status

    assert status(ones, 0.01 * ones) == "agrees"
    assert status(far, 0.01 * ones) == "differs"
    assert status(far, 0.09 * ones) == "agrees"  # 25 % off, but 2.8 standard errors
    assert status(ones, 0.2 * ones) == "undecided"
    assert status(far, 0.01 * ones, outside=("too large",)) == "outside the theory"
    assert status(far, 0.01 * ones, kept=np.arange(10) != 4) == "agrees"
    assert status(np.where(np.arange(10) == 4, np.nan, 1.0), 0.01 * ones) == "differs"
    # a deviation of less than the tolerance is none, however small the error bars
    assert status(1.08 * ones, 1e-4 * ones) == "agrees"


def test_report_is_a_page_a_picture_and_numbers(agreeing, tmp_path):
    page = write_report(agreeing, tmp_path / "report", title="Quickstart", notes=("a note",), extra={"own": {"x": 1.5}})
    names = {path.name for path in page.parent.iterdir()}
    assert names == {"report.md", "comparison.json", "comparison.png", "theory.npz", "run.npz"}
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Quickstart\n\n**Verdict: agrees.**") and "- a note" in text
    assert (
        "e-folds" in text
        and "one unit of t = 200 SGD steps" in text
        and "nan" not in text.lower().replace("finance", "")
    )
    table = [line for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(table) == agreeing.kept.sum()

    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    record = json.loads((page.parent / "comparison.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert record["verdict"]["status"] == "agrees" and record["own"] == {"x": 1.5}
    np.testing.assert_allclose(record["quantities"]["loss"]["ratio"], agreeing.loss.ratio)
    assert record["steps"] == agreeing.run.step.tolist() and record["transition"]["run"]["name"]
    np.testing.assert_allclose(record["tau"], 0.2 * agreeing.run.t)
    np.testing.assert_allclose(record["tokens"], agreeing.run.step * 4 * 65)
    assert (page.parent / "comparison.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    again = Run.load(page.parent / "run.npz")
    np.testing.assert_array_equal(again["loss"], agreeing.run["loss"])
    assert Trajectory.load(page.parent / "theory.npz").meta["solver"] == "tsit5"
    # the same record, so that a report can be written twice and compared
    assert to_markdown(agreeing, title="Quickstart", notes=("a note",)) == text


def test_plain_has_no_nan_in_it():
    assert plain({"a": np.array([1.0, np.nan, np.inf]), "b": jnp.asarray(2.0), 3: (None, True, "x", np.float64(0.5))}) == {
        "a": [1.0, None, None], "b": 2.0, "3": [None, True, "x", 0.5],
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    """The acceptance run of the quickstart: d = 200, T = 64, four seeds, S up to 12. About a minute."""
    return train(logistic_pair(), T1, seeds=4, record_times=np.geomspace(0.5, T1, 31), progress=False)


@pytest.mark.slow
def test_real_training_agrees_with_the_theory(trained):
    result = compare(logistic_pair(), trained)
    assert result.verdict.status == "agrees", result.verdict
    assert result.loss.ratio.min() > 0.9 and result.loss.ratio.max() < 1.1
    assert np.abs(result.loss.ratio[trained.t * 0.4 > 6] - 1).max() < 0.03
    assert not result.transitions["exact"].found and not result.transitions["run"].found
    assert result.fall > 100


@pytest.mark.slow
def test_real_training_differs_from_frozen_overlaps(trained):
    system = logistic_pair()
    frozen = logistic_pair(learning_rate=1e-12)
    ts = np.concatenate([[0.0], trained.t])
    still = integrate(frozen, ts=ts)
    result = compare(system, trained, theory=still)
    assert result.verdict.status == "differs", result.verdict


@pytest.mark.slow
def test_real_training_differs_from_a_theory_without_noise_at_a_higher_learning_rate():
    given = {"learning_rate": 0.6, "batch": 4.0}
    system = logistic_pair(**given)
    run = train(system, 12.0, seeds=4, record_times=np.geomspace(0.2, 12.0, 31), progress=False)
    with_noise = compare(system, run, tolerance=0.15)
    without = compare(logistic_pair(**given, noise=0.0), run, tolerance=0.15)
    assert without.verdict.status == "differs", without.verdict
    assert with_noise.verdict.status == "agrees", with_noise.verdict
