"""Intervals of the analysis: how often they cover the truth on simulated curves, and their parts one by one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from scipy.signal import lfilter

from odescale.analysis.forecast import best_schedule as best_module
from odescale.analysis.forecast import fit as fit_module
from odescale.analysis.forecast.choice import CrossValidation, LawTable, choose_from, compare_laws
from odescale.analysis.forecast.discrepancy import LENGTHS, SIZE, discrepancy_of, log_slopes
from odescale.analysis.forecast.fit import LawFit, fit_law
from odescale.analysis.forecast.isolated import fit_isolated
from odescale.analysis.forecast.law_mean import LawMean
from odescale.analysis.forecast.laws import Course, course_of, law_named
from odescale.analysis.forecast.loss_curve import LossCurve, planned_curve
from odescale.analysis.frontier.exponent import frontier_exponent
from odescale.analysis.phases import power_floor
from odescale.analysis.phases.bootstrap import seed_bootstrap
from odescale.analysis.phases.exponents import local_exponent, tail_exponent


def within(covered: int, count: int, nominal: float, sigmas: float = 3.5, slack: float = 0.0) -> bool:
    """Whether `covered` of `count` is what an interval of that coverage gives, within `sigmas` standard errors and `slack`."""
    return abs(covered / count - nominal) < sigmas * (nominal * (1 - nominal) / count) ** 0.5 + slack


def curve(loss: np.ndarray, tau: np.ndarray | None = None) -> LossCurve:
    tau = np.geomspace(1, 100, loss.size) if tau is None else tau
    return LossCurve("a run", tau, loss, np.ones(loss.size), start_tau=float(tau[0]))


TAU = np.geomspace(1, 100, 48)


def test_the_interval_of_a_law_holds_90_percent_of_its_draws() -> None:
    loss = (1.0 + 2.0 * TAU ** (-1 / 3)) * (1 + 0.01 * np.random.default_rng(0).standard_normal(TAU.size))
    fit = fit_law(curve(loss), law="one_third", draws=200)
    for name, drawn in zip(("L0", "A"), fit.draws.T, strict=True):
        bounds = fit.interval[name]
        assert bounds is not None
        assert np.mean((drawn >= bounds[0]) & (drawn <= bounds[1])) == pytest.approx(0.9, abs=0.006)


@pytest.mark.parametrize(("memory", "share"), [(0.0, 0.8), (0.5, 0.7)])
def test_parameters_of_a_law_lie_in_their_intervals_as_often_as_is_said(memory: float, share: float) -> None:
    """L0 + A tau^(-1/3), 120 runs of 48 points: below 90 %, for blocks of residuals lack the slow noise that a fit follows."""
    rng, covered, count = np.random.default_rng(0), 0, 120
    for _ in range(count):
        noise = lfilter([(1 - memory**2) ** 0.5], [1.0, -memory], rng.standard_normal(TAU.size + 50))[50:]
        loss = (1.0 + 2.0 * TAU ** (-1 / 3)) * (1 + 0.01 * noise)
        bounds = fit_law(curve(loss), law="one_third", draws=60, seed=int(rng.integers(2**31))).interval["A"]
        assert bounds is not None
        covered += bounds[0] <= 2.0 <= bounds[1]
    assert within(covered, count, share, sigmas=2.5), covered


def test_the_bootstrap_gives_back_what_the_fit_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deviation of 1 % common to all points moves both amplitudes by 1 % times sqrt(n/(n - p)), p = 2 fitted numbers."""
    monkeypatch.setattr(
        fit_module, "block_bootstrap", lambda residual, draws, rng: np.full((draws, residual.size), 0.01)
    )
    points = TAU[::2]
    loss = (1.0 + 2.0 * points ** (-1 / 3)) * (1 + 1e-6 * np.cos(9 * points))
    fit = fit_law(curve(loss, points), law="one_third", draws=3)
    np.testing.assert_allclose(fit.vector, [1.0, 2.0], rtol=1e-5)
    moved = fit.draws / fit.vector - 1
    np.testing.assert_allclose(moved, 0.01 * (points.size / (points.size - 2)) ** 0.5, rtol=1e-9)


def known_fit(law: str, vector: np.ndarray, rms: float, draws: np.ndarray | None = None, end: float = 10.0) -> LawFit:
    names = law_named(law).names
    drawn = np.zeros((0, len(names))) if draws is None else draws
    return LawFit(
        law, dict(zip(names, vector.tolist(), strict=True)), dict.fromkeys(names), True, "", rms, 0.0, 48, 1.0, 2.0, 100.0, end,
        ("a run",), vector, np.zeros(48), drawn,
    )  # fmt: skip


def test_a_forecast_interval_is_made_of_its_parts() -> None:
    """L = sum w_l L_l; half^2/L^2 = z_.95^2 (s_fit^2 + rms^2) + [unseen] ((size reach)^2 + away^2)."""
    draws = np.array([[1.0, 2.0, 0.3, 0.5], [1.1, 1.9, 0.3, 0.5], [0.9, 2.2, 0.2, 0.5], [1.0, 1.8, 0.4, 0.6]])
    instant = known_fit("instant", draws[0], 0.01, draws)
    relaxing = known_fit("relaxing", np.array([1.05, 2.1, 0.4, 0.5, 0.7]), 0.02)
    fitted, run = curve(np.ones(30)), curve(np.ones(9), np.geomspace(2, 200, 9))
    mean = LawMean({"instant": instant, "relaxing": relaxing}, {"instant": 0.75, "relaxing": 0.25}, (fitted,))
    parts, unseen = mean.parts(run), np.arange(9) >= 3
    half = parts.half(unseen, 0.02)
    for i, tau in enumerate(run.tau):
        first = np.array([a + b * tau**-alpha + n for a, b, n, alpha in draws])
        # The rate is 1 from the first point on, where the noise starts at B eta: it stays there.
        loss = 0.75 * first[0] + 0.25 * (1.05 + 2.1 * tau**-0.5 + 0.4)
        spread = 0.75 * np.mean((first - np.mean(first)) ** 2) / loss**2
        noise = 0.75 * 0.01**2 + 0.25 * 0.02**2
        own = stats.norm.ppf(0.95) ** 2 * (spread + noise)
        missed = (0.02 * parts.reach[i]) ** 2 if unseen[i] else 0.0
        np.testing.assert_allclose([parts.loss[i], half[i]], [loss, (own + missed) ** 0.5], rtol=1e-12)
    assert mean.law == "instant" and np.all(parts.away == 0) and np.all(parts.reach > 0)
    # A law without a noise term is off by its distance from the relaxing one, too.
    tau_law = LawMean(
        {"power_tau": known_fit("power_tau", np.array([1.4, 2.0, 0.5]), 0.01), "relaxing": relaxing},
        {"power_tau": 1.0},
        (fitted,),
    )
    parts = tau_law.parts(run)
    expected = (1.45 + 2.1 * run.tau**-0.5) / (1.4 + 2.0 * run.tau**-0.5) - 1
    np.testing.assert_allclose(parts.away, expected, rtol=1e-10)
    own = stats.norm.ppf(0.95) ** 2 * 0.01**2
    np.testing.assert_allclose(
        parts.half(np.ones(9, bool), 0.02) ** 2, own + (0.02 * parts.reach) ** 2 + expected**2, rtol=1e-10
    )


def test_what_a_law_misses_is_the_error_of_its_fit_to_a_random_discrepancy() -> None:
    """log L = log(1 + 2 tau^(-1/3)) + delta, delta a Gaussian process in (log tau/1.5, rate/.5): the error of least squares on 24
    points of two rates, at three places, over 4000 draws of delta. The fit is redone here, with its own derivatives."""
    rng, law = np.random.default_rng(0), law_named("one_third")
    tau = np.tile(np.geomspace(1, 30, 12), 2)
    rate = np.repeat([1.0, 0.4], 12)
    ahead, its_rate = np.array([2.0, 60.0, 200.0]), np.array([0.7, 1.0, 0.1])

    def course(points: np.ndarray, rates: np.ndarray) -> Course:
        grid = np.concatenate([[0.0], points])
        none = np.zeros(0)
        return Course("a run", points, rates, np.concatenate([[1.0], rates]), grid, np.arange(1, points.size + 1), none, none, none,
                      1.0, 0, None, None)  # fmt: skip

    courses = [course(tau[:12], rate[:12]), course(tau[12:], rate[12:])]
    found = discrepancy_of(law, np.array([1.0, 2.0]), courses, float("inf")).reach(course(ahead, its_rate), (1.5, 0.5))
    points = np.stack([np.log(np.append(tau, ahead)) / 1.5, np.append(rate, its_rate) / 0.5], axis=1)
    cover = np.exp(-0.5 * ((points[:, None] - points) ** 2).sum(axis=2))
    delta = rng.standard_normal((4000, 27)) @ np.linalg.cholesky(cover + 1e-9 * np.eye(27)).T
    value = 1 + 2 * np.append(tau, ahead) ** (-1 / 3)
    slopes = np.stack([1 / value, np.append(tau, ahead) ** (-1 / 3) / value], axis=1)
    moved = np.linalg.lstsq(slopes[:24], delta[:, :24].T, rcond=None)[0]
    error = delta[:, 24:].T - slopes[24:] @ moved
    fitted = value[:24]
    measured = (error**2).mean(axis=1) * (fitted.max() / fitted.min() - 1) / found**2
    assert np.all(np.abs(measured - 1) < 4 * (2 / 4000) ** 0.5), measured


def test_slopes_of_a_law_are_its_derivatives() -> None:
    """d log L/d theta of the relaxing law after a step-down, by hand: n = eta_1 + (eta_0 - eta_1) exp(-C (tau - tau_1))."""
    steps = np.arange(10.0, 61.0)
    run = LossCurve("down", steps, np.ones(steps.size), np.where(steps <= 30, 1.0, 0.2), start_tau=10.0)
    values = np.array([1.0, 2.0, 0.5, 0.6, 0.3])
    found = log_slopes(law_named("relaxing"), course_of(run), values)
    tau = np.where(steps <= 30, steps, 30 + 0.2 * (steps - 30))
    lag = np.maximum(tau - 30, 0.0)
    noise = np.where(steps <= 30, 1.0, 0.2 + 0.8 * np.exp(-0.3 * lag))
    bias = tau**-0.6
    loss = 1.0 + 2.0 * bias + 0.5 * noise
    by_speed = np.where(steps <= 30, 0.0, -0.8 * 0.3 * lag * np.exp(-0.3 * lag)) * 0.5
    expected = np.stack([np.ones(51), bias, noise, -2.0 * bias * np.log(tau) * 0.6, by_speed], axis=1) / loss[:, None]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_forecast_interval_covers_laws_that_are_wrong_by_its_own_size() -> None:
    """Runs that leave the instant law by a Gaussian process of standard deviation SIZE S^(1/2)/z_.95, and noise: nine of ten are
    held."""
    rng, held, count = np.random.default_rng(2), 0, 100
    tau, ahead = np.geomspace(1, 30, 24), np.array([20.0, 90.0])
    for _ in range(count):
        runs = [
            LossCurve("high", tau, np.ones(24), np.ones(24), start_tau=1.0),
            LossCurve("low", tau / 0.4, np.ones(24), np.full(24, 0.4), start_tau=1.0),
        ]
        target = LossCurve("ahead", ahead / 0.7, np.ones(2), np.full(2, 0.7), start_tau=20.0)
        every = np.concatenate([tau, tau, ahead])
        rate = np.concatenate([np.ones(24), np.full(24, 0.4), np.full(2, 0.7)])
        places = np.stack([np.log(every) / LENGTHS[0], rate / LENGTHS[1]], axis=1)
        cover = np.exp(-0.5 * ((places[:, None] - places) ** 2).sum(axis=2))
        missed = np.linalg.cholesky(cover + 1e-9 * np.eye(50)) @ rng.standard_normal(50) / stats.norm.ppf(0.95)
        clean = 2 + 2 * every**-0.5 + 0.3 * rate
        missed *= SIZE * (clean[:48].max() / clean[:48].min() - 1) ** 0.5
        loss = clean * np.exp(missed + 1e-3 * rng.standard_normal(50))
        runs = [replace(run, loss=part) for run, part in zip(runs, (loss[:24], loss[24:48]), strict=True)]
        fit = fit_law(runs, law="instant", draws=0)
        parts = LawMean({"instant": fit}, {"instant": 1.0}, tuple(runs)).parts(target)
        held += abs(loss[49] / parts.loss[1] - 1) < parts.half(np.ones(2, bool))[1]
    assert within(held, count, 0.9, sigmas=2.5), held


def test_laws_that_cannot_be_told_apart_are_averaged() -> None:
    """Kept within 15 % of the least cross-validated error, weights ~ 1/rms^2; an unidentified one never."""
    errors = {"instant": 0.0112, "relaxing": 0.01, "spectral": 0.0118}
    vectors = {"instant": np.ones(4), "relaxing": np.ones(5), "spectral": np.ones(6)}
    fits = {
        name: known_fit(name, vectors[name], rms)
        for name, rms in (("instant", 0.02), ("relaxing", 0.01), ("spectral", 0.01))
    }
    validations = {name: CrossValidation(name, error, (), ()) for name, error in errors.items()}
    choice = choose_from(LawTable(fits, validations, dict.fromkeys(fits, 0.0), 0.0))
    assert choice.weights == pytest.approx({"instant": 0.2, "relaxing": 0.8}) and choice.law == "relaxing"
    unknown = replace(fits["relaxing"], identified=False, reason="C: wide")
    choice = choose_from(LawTable(fits | {"relaxing": unknown}, validations, dict.fromkeys(fits, 0.0), 0.0))
    assert choice.weights == pytest.approx({"instant": 0.2, "spectral": 0.8})
    nothing = {name: CrossValidation(name, float("inf"), (), ()) for name in fits}
    choice = choose_from(LawTable(fits, nothing, dict.fromkeys(fits, 0.0), 0.0))
    assert choice.weights == pytest.approx({"instant": 1 / 9, "relaxing": 4 / 9, "spectral": 4 / 9})


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_interval_of_a_best_schedule_is_made_of_its_parts(
    monkeypatch: pytest.MonkeyPatch, calibrated: bool
) -> None:
    """Along a constant rate L = L0 + A tau^-alpha + B eta (1 - exp(-C tau)); that of a forecast, or of noise and fit alone."""
    peak, steps, end = 0.01, 2000.0, 5.0
    monkeypatch.setattr(best_module, "_minimise", lambda *given: np.full(best_module.STAIRS, peak))
    vectors = np.array([[3.0, 0.5, 4.0, 0.5, 0.1], [3.02, 0.48, 4.0, 0.5, 0.1], [2.97, 0.52, 4.4, 0.5, 0.1]])
    fit = known_fit("relaxing", vectors[0], 0.004, vectors, end)
    steps_fitted = np.geomspace(100, 500, 20)
    mean = LawMean(
        {"relaxing": fit}, {"relaxing": 1.0}, (planned_curve("fitted", steps_fitted, np.full(20, peak), steps_fitted),)
    )
    found = best_module.best_schedule(mean if calibrated else fit, steps=steps, peak=peak)
    tau = peak * steps
    losses = np.array([v[0] + v[1] * tau ** -v[3] + v[2] * peak * (1 - np.exp(-v[4] * tau)) for v in vectors])
    own = stats.norm.ppf(0.95) ** 2 * (np.mean((losses - np.mean(losses)) ** 2) + (0.004 * losses[0]) ** 2)
    end_plan = planned_curve("end", np.array([steps]), np.array([peak]), np.array([steps]))
    missed = SIZE * mean.parts(end_plan).reach[0] * losses[0] if calibrated else 0.0
    half = (own + missed**2) ** 0.5
    assert found.loss == pytest.approx(losses[0], rel=1e-9)
    np.testing.assert_allclose(found.interval, [losses[0] - half, losses[0] + half], rtol=1e-5)
    assert found.gain["constant"] == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)


def test_the_interval_of_an_isolated_law_holds_90_percent_of_its_draws() -> None:
    width = np.geomspace(10, 1000, 16)
    loss = (1 + 3 * width**-0.5) * (1 + 0.002 * np.random.default_rng(2).standard_normal(16))
    fit = fit_isolated({"width": width}, loss, draws=100)
    bounds = fit.laws["width"].interval
    assert bounds is not None
    assert np.mean((fit.draws[:, 0] >= bounds[0]) & (fit.draws[:, 0] <= bounds[1])) == pytest.approx(0.9, abs=0.011)


def test_aic_is_that_of_the_dense_gaussian() -> None:
    """-2 log L of residuals with covariance s^2 rho^|i-j|, s fitted, and 2 per parameter: the same differences between two laws."""
    rng = np.random.default_rng(5)
    runs = [curve((1 + 2 * TAU**-0.4) * (1 + 0.01 * rng.standard_normal(TAU.size))) for _ in range(2)]
    table = compare_laws(runs, laws=("power_tau", "one_third"), draws=0, validate=False, memory=0.6)
    dense = {}
    for name, fit in table.fits.items():
        precision, determinant = np.zeros((96, 96)), 0.0
        for place in (slice(0, 48), slice(48, 96)):
            block = 0.6 ** np.abs(np.subtract.outer(np.arange(48), np.arange(48))) / (1 - 0.6**2)
            precision[place, place] = np.linalg.inv(block)
            determinant += np.linalg.slogdet(block)[1]
        square = fit.residual @ precision @ fit.residual / 96
        dense[name] = 96 * np.log(square) + determinant + 2 * (len(fit.parameters) + 2)
    for name in dense:
        assert table.aic[name] == pytest.approx(dense[name], rel=1e-9)


def test_exponents_of_frontiers_lie_in_their_95_percent_intervals() -> None:
    """Four runs with noise of their own in amplitude and slope, 300 times: Student's factor for so few included."""
    rng = np.random.default_rng(3)
    C, covered, count = np.geomspace(1, 1e4, 12), 0, 400
    x = np.log(C) - np.log(C).mean()
    for _ in range(count):
        logs = -0.5 * x + 0.1 * rng.standard_normal((4, 1)) + 0.03 * rng.standard_normal((4, 1)) * x
        found = frontier_exponent(C, np.exp(logs), draws=100, seed=int(rng.integers(2**31)))
        covered += found.interval[0] <= 0.5 <= found.interval[1]
    assert within(covered, count, 0.95), covered
    # The bend of a curve without noise counts as a uniform distribution: (1.96/sqrt 12) |drift| to either side.
    bent = frontier_exponent(C, np.exp(-0.5 * x - 0.01 * x**2), draws=20)
    half = 1.959964 * 0.02 * np.ptp(x) / 12**0.5
    assert bent.interval[1] - bent.exponent == pytest.approx(half, rel=1e-3)
    assert bent.exponent == pytest.approx(0.5, abs=1e-9) and bent.drift == pytest.approx(0.02 * np.ptp(x), rel=1e-9)


def test_seeds_drawn_again_scatter_as_their_mean() -> None:
    """Variance of the drawn means, times s/(s - 1), is the variance of the mean of s seeds: z-scored over 400 sets of 4."""
    rng = np.random.default_rng(6)
    seen = []
    for _ in range(400):
        losses = np.exp(0.05 * rng.standard_normal((4, 1)))
        seen.append(seed_bootstrap(losses, 400, rng).var())
    ratio = np.asarray(seen) / (0.05**2 / 4)
    assert abs(ratio.mean() - 1) < 3.5 * ratio.std() / 20
    assert abs(0.75 - 1) > 6 * ratio.std() / 20  # without the factor


def test_the_error_of_a_tail_counts_its_memory() -> None:
    """AR(1) noise of memory .6 along a power law, 600 curves: the z-scores of the exponent have variance one, not four."""
    rng = np.random.default_rng(7)
    t, z = np.geomspace(10, 1000, 120), []
    for _ in range(600):
        noise = [rng.standard_normal()]
        for kick in rng.standard_normal(t.size - 1):
            noise.append(0.6 * noise[-1] + 0.8 * kick)
        found = tail_exponent(t, t**-0.7 * np.exp(0.02 * np.array(noise)))
        z.append((found.exponent - 0.7) / found.stderr)
    assert 0.8 < np.var(z) < 1.4


def test_local_exponents_of_a_stretched_exponential() -> None:
    """L = exp(-t^.5): p = t^.5/2 and q = 1/2; seeds that differ in the power of t: the error of p is that of their mean."""
    t = np.geomspace(1, 100, 120)
    found = local_exponent(t, np.exp(-(t**0.5)), smoothing=0.0, at=t[20:-20])
    np.testing.assert_allclose(found.exponent, 0.5 * t[20:-20] ** 0.5, rtol=1e-4)
    np.testing.assert_allclose(found.index, 0.5, atol=2e-3)
    powers = 0.7 + 0.003 * np.array([1.0, -0.5, 0.2, -1.1, 0.9])
    seeds = local_exponent(t, t ** -powers[:, None], smoothing=0.0, at=t[40:80])
    assert seeds.exponent_stderr is not None
    np.testing.assert_allclose(seeds.exponent_stderr, powers.std(ddof=1) / 5**0.5, rtol=0.03)


def test_two_seeds_have_students_factor() -> None:
    t = np.geomspace(10, 1000, 60)
    rows = np.stack([t**-0.6, t**-0.8])
    found = tail_exponent(t, rows)
    slopes = [-np.polyfit(np.log(t), np.log(row), 1)[0] for row in rows]
    width = abs(slopes[0] - slopes[1]) / 2 * stats.t.ppf(0.975, 1) / stats.norm.ppf(0.975)
    assert found.stderr == pytest.approx(width, rel=1e-9)


def test_the_interval_of_a_power_with_floor_holds_95_percent_of_its_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[np.ndarray] = []
    own = power_floor._fit
    monkeypatch.setattr(power_floor, "_fit", lambda x, y: fits.append(own(x, y)) or fits[-1])
    t = np.geomspace(1, 1e4, 60)
    noise = 0.01 * np.random.default_rng(8).standard_normal(60)
    loss = (2 * t**-0.34 + 1.5) * np.exp(noise)
    found = power_floor.fit_power_floor(t, loss / loss[0], draws=80)
    drawn = np.concatenate(fits[2:])  # after the curve and its later half
    assert drawn.shape == (80, 3)
    for place, (low, high) in ((0, found.interval), (2, found.floor_interval)):
        assert np.mean((drawn[:, place] >= low) & (drawn[:, place] <= high)) == pytest.approx(0.95, abs=0.013)


def test_intrinsic_time_is_a_sum_of_rates() -> None:
    """tau between two logged steps: rate times steps, the rate that ends there; the noise of a staircase relaxes piece by piece."""
    step, rate = np.array([10.0, 14.0, 20.0, 21.0]), np.array([0.5, 0.25, 0.1, 0.4])
    run = LossCurve("a run", step, np.ones(4), rate, start_tau=3.0)
    taus = [3.0]
    for (a, b), eta in zip(pairwise(step), rate[1:], strict=True):
        taus.append(taus[-1] + eta * (b - a))
    np.testing.assert_allclose(run.tau, taus, rtol=1e-14)
    np.testing.assert_allclose(course_of(run).rate, rate)
