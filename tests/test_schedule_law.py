"""Laws of the loss under a schedule on synthetic curves: closed forms against diffrax, recovery, what must be refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import lfilter

from odescale import InputError, OutsideTheoryError, best_schedule, fit_law, forecast
from odescale.analysis.forecast.best_schedule import final_loss
from odescale.analysis.forecast.fit import evaluate
from odescale.analysis.forecast.laws import LAWS, course_of, law_named
from odescale.analysis.forecast.ode import mixture
from odescale.analysis.forecast.predict import unseen_part
from odescale.laws import LawFit, LossCurve, choose_law, curve_from_rates, fit_isolated, planned_curve, solve_schedule

TRUTH = {"L0": 3.0, "A": 0.5, "B": 400.0, "alpha": 0.5, "C": 30.0}
PEAK, WARMUP = 3e-4, 500


def run(
    name: str, rate, steps: int = 20000, sigma: float = 0.0, seed: int = 0, law: str = "relaxing", truth=TRUTH
) -> LossCurve:
    """A run of 120 points from step 1000 on with AR(1) noise of memory .5."""
    step = np.linspace(1000, steps, 120)
    plan = curve_from_rates(name, step, np.full(step.size, np.nan), np.array([rate(s) for s in step]), warmup=WARMUP)
    vector = np.array([truth[n] for n in law_named(law).names])
    clean = evaluate(law_named(law), course_of(plan), vector)
    draws = np.random.default_rng(seed).standard_normal(step.size)
    noise = sigma * np.sqrt(1 - 0.25) * lfilter([1.0], [1.0, -0.5], draws)
    return curve_from_rates(name, step, clean * (1 + noise), np.array([rate(s) for s in step]), warmup=WARMUP)


def constant(s: float) -> float:
    return PEAK


def step_down(s: float) -> float:
    return PEAK if s < 8000 else 0.3 * PEAK


def cosine(s: float) -> float:
    return PEAK * (0.1 + 0.45 * (1 + np.cos(np.pi * s / 20000)))


def pair(sigma: float = 5e-4, seed: int = 0) -> list[LossCurve]:
    return [
        run("constant", constant, sigma=sigma, seed=2 * seed),
        run("down", step_down, sigma=sigma, seed=2 * seed + 1),
    ]


@pytest.fixture(scope="module")
def fit() -> LawFit:
    return fit_law(pair(), law="relaxing", draws=40)


def test_intrinsic_time_counts_the_warm_up_and_keeps_its_past() -> None:
    curve = run("constant", constant)
    assert curve.tau[0] == pytest.approx(PEAK * (1000 - WARMUP / 2)) and np.all(np.diff(curve.tau) > 0)
    part = curve.between(5000, 9000)
    np.testing.assert_allclose(part.tau, curve.tau[(curve.step >= 5000) & (curve.step <= 9000)], rtol=1e-12)
    vector = np.array([*TRUTH.values()])
    inside = (curve.step >= 5000) & (curve.step <= 9000)
    whole = evaluate(LAWS["relaxing"], course_of(curve), vector)[inside]
    np.testing.assert_allclose(evaluate(LAWS["relaxing"], course_of(part), vector), whole, rtol=1e-12)


@pytest.mark.parametrize("law", ["relaxing", pytest.param("spectral", marks=pytest.mark.slow)])
def test_closed_form_is_the_ode(law: str) -> None:
    step = np.array([100.0, 400, 900, 1500, 2600, 4000])
    rate = PEAK * np.array([1, 1, 0.9, 0.4, 0.4, 0.1])
    fine_step, fine_rate = np.concatenate([[0, 50], step]), np.concatenate([[0, 1e-4], rate])
    curve = LossCurve("stairs", step, np.full(6, np.nan), rate, 0.02, None, None, fine_step, fine_rate)
    values = TRUTH | {"beta": 0.8}
    closed = evaluate(LAWS[law], course_of(curve), np.array([values[n] for n in LAWS[law].names]))
    np.testing.assert_allclose(np.asarray(solve_schedule(law, values, curve)), closed, rtol=0, atol=1e-8)


def test_noise_modes_add_up_to_the_power_law() -> None:
    speeds, weights = mixture(30.0, 0.8)
    tau = np.geomspace(1e-4, 10, 50)
    np.testing.assert_allclose(np.exp(-np.outer(tau, speeds)) @ weights, (1 + 30 * tau) ** -0.8, atol=1e-8)


def test_laws_meet_in_their_limits() -> None:
    """C to infinity: relaxing and spectral are instant; multi-power with gamma = 0 is spectral."""
    course = course_of(run("cosine", cosine))
    fast = np.array([3.0, 0.5, 400.0, 0.5, 1e8])
    base = evaluate(LAWS["instant"], course, fast[:4])
    np.testing.assert_allclose(evaluate(LAWS["relaxing"], course, fast), base, rtol=1e-10)
    np.testing.assert_allclose(evaluate(LAWS["spectral"], course, np.array([*fast, 1.5])), base, rtol=1e-7)
    spectral = np.array([3.0, 0.5, 400.0, 0.5, 30.0, 0.7])
    np.testing.assert_allclose(
        evaluate(LAWS["multi_power"], course, np.array([*spectral, 0.0])), evaluate(LAWS["spectral"], course, spectral), rtol=1e-12
    )  # fmt: skip


def test_parameters_come_back_within_their_errors(fit: LawFit) -> None:
    assert fit.identified and fit.reason == ""
    for i, name in enumerate(law_named("relaxing").names):
        z = (fit.vector[i] - TRUTH[name]) / fit.draws[:, i].std()
        assert abs(z) < 4, (name, z)
        bounds = fit.interval[name]
        assert bounds is not None and bounds[0] < fit.vector[i] < bounds[1]
    exact = fit_law(pair(sigma=1e-9), law="relaxing", draws=0)
    np.testing.assert_allclose(exact.vector, [*TRUTH.values()], rtol=1e-4)


def test_forecast_of_another_schedule(fit: LawFit) -> None:
    truth = run("cosine", cosine)
    made = forecast(pair(), truth, law="relaxing", draws=20, baselines=("power_tau",))
    errors, rival = made["cosine"].errors(), made["cosine"].errors("power_tau")
    assert errors["mean_absolute"] < 1.5e-3 < 0.25 * rival["mean_absolute"]
    assert np.mean([row["covered"] for row in made.at_horizons()]) >= 0.75
    assert "cosine" in str(made)


def test_one_run_forecasts_another_length_and_another_schedule() -> None:
    """A step-down alone identifies the law: its interval holds the truth and grows with time."""
    truths = [run("longer", lambda s: PEAK if s < 30000 else 0.1 * PEAK, steps=40000), run("cosine", cosine)]
    made = forecast(pair()[1], truths, law="relaxing", draws=10, baselines=())
    assert np.mean([row["covered"] for row in made.at_horizons()]) >= 0.75
    before_the_drop = [row["high"] - row["low"] for row in made["longer"].at_horizons((0.1, 0.3, 0.6))]
    assert np.all(np.diff(before_the_drop) > 0), before_the_drop


def test_a_law_without_a_noise_term_says_nothing_of_another_rate() -> None:
    flat = run("constant", constant, sigma=5e-4)
    longer = run("longer", constant, steps=40000)
    made = forecast(flat, longer, law="power_tau", draws=5, baselines=())
    assert np.all(made["longer"].high > made["longer"].low)
    with pytest.raises(OutsideTheoryError, match="identify no noise term"):
        forecast(flat, run("cosine", cosine), law="power_tau", draws=5, baselines=())


def test_a_law_that_is_wrong_shows_in_residuals_and_forecast() -> None:
    """Negative: the power law in tau cannot follow a step-down."""
    wrong, right = (fit_law(pair(), law=name, draws=0) for name in ("power_tau", "relaxing"))
    assert wrong.rms > 5 * right.rms and right.rms == pytest.approx(5e-4, rel=0.3)


@pytest.mark.slow
def test_choice_sees_through_instant_noise() -> None:
    runs = [
        run(n, r, sigma=3e-4, seed=s, law="instant")
        for s, (n, r) in enumerate((("constant", constant), ("cosine", cosine)))
    ]
    choice = choose_law(runs, laws=("instant", "relaxing"), draws=20)
    assert choice.law == "instant"
    assert not choice.table.fits["relaxing"].identified or choice.table.fits["relaxing"].vector[-1] > 100
    assert "cross-validated" in str(choice.table)


def test_unidentified_is_an_answer_without_numbers() -> None:
    flat = run("constant", constant, sigma=5e-4)
    step = np.linspace(1000, 20000, 120)
    rates = np.array([step_down(s) for s in step])
    noise = 3.0 * (1 + 1e-3 * np.random.default_rng(5).standard_normal(step.size))
    cases = {
        "B: the learning rate": fit_law(flat, law="relaxing"),
        "points, fewer than": fit_law(flat.between(1000, 2500), law="relaxing"),
        "tau changes by": fit_law(pair()[1].between(7000, 12000), law="relaxing"),
        "A: ": fit_law(curve_from_rates("noise", step, noise, rates, warmup=WARMUP), law="relaxing", draws=30),
    }
    for reason, found in cases.items():
        assert not found.identified and reason in found.reason, (reason, found.reason)
        assert all(v is None for v in found.parameters.values()) and all(v is None for v in found.interval.values())
        with pytest.raises(OutsideTheoryError, match="unidentified"):
            found.loss(flat)
    with pytest.raises(OutsideTheoryError, match="unidentified"):
        choose_law(flat, draws=0)


def test_unseen_parts() -> None:
    runs = pair()
    assert not unseen_part(runs, runs[0]).any()
    late = run("later", lambda s: PEAK if s < 12000 else 0.5 * PEAK)
    unseen = unseen_part(runs, late)
    assert late.step[unseen][0] == pytest.approx(12000, abs=200) and unseen[-1]
    longer = unseen_part(runs, run("longer", constant, steps=40000))
    assert 0.4 < longer.mean() < 0.6


@pytest.mark.slow
def test_best_schedule_is_monotone_and_no_other_is_better(fit: LawFit) -> None:
    best = best_schedule(fit, steps=20000, peak=PEAK, warmup=WARMUP)
    decay = best.rate[best.step > WARMUP]
    assert np.all(np.diff(decay) <= 1e-15) and decay[0] <= PEAK and decay[-1] >= 0
    assert best.loss < min(best.references.values()) and best.interval[0] < best.loss < best.interval[1]
    width = jnp.asarray(np.diff(best.step, prepend=0.0))
    vector = jnp.asarray(fit.vector)
    assert float(final_loss("relaxing", vector, jnp.asarray(best.rate), width)) == pytest.approx(best.loss, abs=1e-9)
    place = (best.step - WARMUP) / (20000 - WARMUP)
    for share in np.linspace(0.05, 0.5, 10):
        linear = np.where(place <= 0, best.rate, PEAK * np.clip((1 - place) / share, 0, 1))
        assert float(final_loss("relaxing", vector, jnp.asarray(linear), width)) > best.loss - 1e-5
    slope = jax.grad(final_loss, argnums=2)("relaxing", vector, jnp.asarray(best.rate), width)
    assert np.all(np.isfinite(slope))


def test_final_loss_is_that_of_the_law_and_has_a_gradient() -> None:
    """The differentiable closed form against the fit's own; an early cut of the rate costs, one at the end saves."""
    edges, vector = np.linspace(1000, 20000, 40), np.array([*TRUTH.values()])
    rate = np.array([step_down(s) for s in edges])
    plan = planned_curve("plan", edges, rate, edges[-1:])
    width = jnp.asarray(np.diff(edges, prepend=0.0))
    for law, values in (("relaxing", vector), ("spectral", np.array([*vector, 0.8]))):
        own = float(final_loss(law, jnp.asarray(values), jnp.asarray(rate), width))
        assert own == pytest.approx(float(evaluate(LAWS[law], course_of(plan), values)[-1]), rel=1e-12)
    slope = np.asarray(jax.grad(final_loss, argnums=2)("relaxing", jnp.asarray(vector), jnp.asarray(rate), width))
    assert slope[0] < 0 < slope[-1]


def test_best_schedule_refuses_noise_without_memory() -> None:
    instant = fit_law(pair(), law="instant", draws=0)
    with pytest.raises(OutsideTheoryError, match="relax"):
        best_schedule(instant, steps=20000, peak=PEAK)


def test_isolated_laws() -> None:
    rng = np.random.default_rng(3)
    width, depth = (np.exp(rng.uniform(0, 2.5, 40)) * scale for scale in (128, 4))
    loss = (2 + 8 * width**-0.5 + 1.5 * depth**-0.8) * (1 + 1e-3 * rng.standard_normal(40))
    found = fit_isolated({"width": width, "depth": depth}, loss, draws=60)
    for i, (name, true) in enumerate((("width", 0.5), ("depth", 0.8))):
        value = found[name].exponent
        assert value is not None and abs(value - true) < 4 * found.draws[:, i].std(), (name, value)
    assert found["width"].agrees(0.5) is not None
    noise = fit_isolated(
        {"width": width, "depth": np.full(40, 8.0) * (1 + 0.01 * rng.uniform(size=40))}, loss, draws=20
    )
    assert not noise["depth"].identified and noise["depth"].exponent is None and "factor" in noise["depth"].reason


def test_bad_input_is_named() -> None:
    curve = run("constant", constant)
    with pytest.raises(InputError, match="law"):
        fit_law(curve, law="nonsense")
    with pytest.raises(InputError, match="step"):
        LossCurve("x", [2.0, 1.0], [1.0, 1.0])
    with pytest.raises(InputError, match="learning_rate"):
        _ = LossCurve("x", [1.0, 2.0], [1.0, 1.0]).tau
    with pytest.raises(InputError, match="loss"):
        LossCurve("x", [1.0, 2.0], [1.0, np.nan])
    with pytest.raises(InputError, match="losses > 0"):
        fit_law(LossCurve("x", [1.0, 2.0], [1.0, -1.0], [1e-3, 1e-3], 1.0))


def test_chinchilla_of_several_sizes_finds_its_numbers():
    """L = E + A N^-a + B D^-b on four sizes, noise of .05 %: every number within four standard errors of its bootstrap."""
    rng = np.random.default_rng(4)
    truth = {"E": 1.8, "A": 400.0, "B": 2000.0, "a": 0.34, "b": 0.37}
    curves = []
    for size in (1e7, 4e7, 1.6e8, 6.4e8):
        step = np.geomspace(500, 50_000, 40)
        tokens = 2e5 * step
        loss = truth["E"] + truth["A"] * size ** -truth["a"] + truth["B"] * tokens ** -truth["b"]
        loss = loss * (1 + 5e-4 * rng.standard_normal(step.size))
        curves.append(LossCurve(f"{size:g}", step, loss, np.full(40, 1e-3), 0.5, tokens, size))
    fit = fit_law(curves, law="chinchilla", draws=30)
    assert fit.identified, fit.reason
    for name, value in truth.items():
        error = np.diff(fit.interval[name])[0] / (2 * 1.645)
        assert abs(fit.parameters[name] - value) < 4 * error < 0.1 * value, name
    alone = fit_law(curves[:2], law="chinchilla")
    assert (
        not alone.identified and "fewer than three sizes" in alone.reason and set(alone.parameters.values()) == {None}
    )
