"""Intervals of the analysis: how often they cover the truth on simulated curves, and their parts one by one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from scipy.signal import lfilter

from odescale.analysis.forecast import best_schedule as best_module
from odescale.analysis.forecast import fit as fit_module
from odescale.analysis.forecast.choice import compare_laws
from odescale.analysis.forecast.fit import LawFit, fit_law
from odescale.analysis.forecast.isolated import fit_isolated
from odescale.analysis.forecast.laws import course_of
from odescale.analysis.forecast.loss_curve import LossCurve
from odescale.analysis.forecast.predict import interval
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


def known_fit(rms: float, draws: np.ndarray) -> LawFit:
    return LawFit(
        "one_third", {"L0": 1.0, "A": 2.0}, {"L0": None, "A": None}, True, "", rms, 0.0, 48, 1.0, 1.0, 100.0, 10.0, ("a run",),
        np.array([1.0, 2.0]), np.zeros(48), draws,
    )  # fmt: skip


def test_a_forecast_interval_is_made_of_its_parts() -> None:
    """s^2 = s_fit^2 + L^2 max(rms, [unseen] bias sqrt(1 + h))^2 with h = log(tau/last fitted tau), here 10; +- z_.95 s."""
    draws = np.array([[1.0, 2.0], [1.1, 1.9], [0.9, 2.2], [1.0, 1.8]])
    fit, run, bias = known_fit(0.01, draws), curve(np.ones(9), np.geomspace(2, 200, 9)), 0.02
    unseen = np.arange(9) >= 3
    middle, low, high = interval(fit, run, bias, unseen)
    for i, tau in enumerate(run.tau):
        model = 1.0 + 2.0 * tau ** (-1 / 3)
        fitted = np.array([a + b * tau ** (-1 / 3) for a, b in draws])
        ahead = max(np.log(tau / 10.0), 0.0)
        own = max(0.01, 0.02 * (1 + ahead) ** 0.5 if unseen[i] else 0.0) * model
        half = stats.norm.ppf(0.95) * (np.mean((fitted - fitted.mean()) ** 2) + own**2) ** 0.5
        np.testing.assert_allclose([middle[i], low[i], high[i]], [model, model - half, model + half], rtol=1e-12)


def test_a_forecast_interval_covers_its_own_noise() -> None:
    """Misses drawn as the interval says they are, parameters and noise: 90 % of 20 000 lie inside."""
    rng = np.random.default_rng(1)
    scatter = rng.multivariate_normal([1.0, 2.0], [[4e-4, -5e-4], [-5e-4, 1e-3]], size=4000)
    run = curve(np.ones(5), np.array([20.0, 30.0, 50.0, 90.0, 150.0]))
    _, low, high = interval(known_fit(0.01, scatter), run, 0.03, np.ones(5, bool))
    truth = rng.multivariate_normal([1.0, 2.0], [[4e-4, -5e-4], [-5e-4, 1e-3]], size=20_000)
    model = 1.0 + 2.0 * run.tau ** (-1 / 3)
    off = 0.03 * np.sqrt(1 + np.log(run.tau / 10.0)) * model * rng.standard_normal((20_000, 1))
    losses = truth[:, :1] + truth[:, 1:] * run.tau ** (-1 / 3) + off
    inside = ((losses > low) & (losses < high)).sum(axis=0)
    assert all(within(int(n), 20_000, 0.9, slack=0.004) for n in inside), inside / 20_000


def test_the_interval_of_a_best_schedule_is_made_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """s^2 = s_fit^2 + L^2 (rms^2 + bias^2 (1 + h)); along a constant rate L = L0 + A tau^-alpha + B eta (1 - exp(-C tau))."""
    peak, steps, end = 0.01, 2000.0, 5.0
    monkeypatch.setattr(best_module, "_minimise", lambda *given: np.full(best_module.STAIRS, peak))
    vectors = np.array([[3.0, 0.5, 4.0, 0.5, 0.1], [3.02, 0.48, 4.0, 0.5, 0.1], [2.97, 0.52, 4.4, 0.5, 0.1]])
    names = ("L0", "A", "B", "alpha", "C")
    fit = LawFit(
        "relaxing", dict(zip(names, vectors[0], strict=True)), dict.fromkeys(names), True, "", 0.004, 0.0, 48, 1.0, 2.0, 9.0, end,
        ("a run",), vectors[0], np.zeros(48), vectors,
    )  # fmt: skip
    found = best_module.best_schedule(fit, steps=steps, peak=peak, bias=0.003)
    tau = peak * steps
    losses = [v[0] + v[1] * tau ** -v[3] + v[2] * peak * (1 - np.exp(-v[4] * tau)) for v in vectors]
    spread = np.mean((losses - np.mean(losses)) ** 2)
    own = (0.004**2 + 0.003**2 * (1 + np.log(tau / end))) * losses[0] ** 2
    half = stats.norm.ppf(0.95) * (spread + own) ** 0.5
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
    fits: list[tuple[float, float, float]] = []
    own = power_floor._fit
    monkeypatch.setattr(power_floor, "_fit", lambda x, y: fits.append(own(x, y)) or fits[-1])
    t = np.geomspace(1, 1e4, 60)
    noise = 0.01 * np.random.default_rng(8).standard_normal(60)
    loss = (2 * t**-0.34 + 1.5) * np.exp(noise)
    found = power_floor.fit_power_floor(t, loss / loss[0], draws=80)
    drawn = np.array(fits[2:])  # after the curve and its later half
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
