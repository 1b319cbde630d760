"""The fit of a drafter's slow map: its likelihood against dense Gaussians, what it recovers, covers, notices and refuses."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from odescale.analysis.rollout.drafter import DrafterFit, fit_drafter
from odescale.analysis.rollout.slow_map import CENTRE, WIDTH, Series, gains, generate, innovations, negative_log
from odescale.errors import InputError

R, KAPPA, DELTA = 0.05, 0.1, 0.05


def simulate(
    n: int, seed: int, *, noise=0.02, step=0.003, drift=0.01, delta=DELTA, growth=0.0, power=1.0, low=2.0, high=20.0
):
    """A drafter in loops: (before, after, idle), with noise shared by before and after, and a delta that may grow."""
    rng = np.random.default_rng(seed)
    x, rows = 0.3, []
    for i, idle in enumerate(rng.uniform(low, high, n)):
        luck = rng.normal(0, noise)
        after = KAPPA + (x - KAPPA) * np.exp(-((R * idle) ** power))
        rows.append((x + luck, after + luck + rng.normal(0, step), idle))
        x = after + delta + growth * i + rng.normal(0, drift)
    return np.abs(np.transpose(rows))


def test_the_filter_gives_the_likelihood_of_a_dense_gaussian():
    """-log p of (a_0, b_1, a_1, ...) given b_0, from the covariance of all of them."""
    rng = np.random.default_rng(0)
    n = 5
    b, a, idle = rng.uniform(0.5, 1.5, (3, n))
    for theta in (CENTRE, CENTRE + np.array([0.7, 0.3, 0.2, 0.5, 1.0, 1.5, 0.6])):
        log_r, level, delta = theta[:3]
        sizes, share = np.exp(theta[3:6]), theta[6]

        def course(luck, theta=theta, level=level, delta=delta, sizes=sizes, share=share, log_r=log_r):
            """What is seen after b_0 for standard normal `luck` (3, n): linear in it."""
            e, g, v = sizes[:, None] * luck
            x, seen = b[0] - e[0], []
            for i in range(n):
                after = level + (x - level) * np.exp(-np.exp(log_r) * idle[i])
                seen += [x + e[i], after + share * e[i] + g[i]]
                x = after + delta + v[i]
            return np.array(seen[1:])

        mean = course(np.zeros((3, n)))
        slopes = np.array([course(one.reshape(3, n)) - mean for one in np.eye(3 * n)])
        rest = np.stack([b, a], axis=1).ravel()[1:] - mean
        covariance = slopes.T @ slopes
        dense = 0.5 * (np.linalg.slogdet(covariance)[1] + rest @ np.linalg.solve(covariance, rest))
        prior = 0.5 * np.sum(((theta - CENTRE) / WIDTH) ** 2)
        assert float(negative_log(jnp.asarray(theta), Series(b, a, idle))) == pytest.approx(dense + prior, rel=1e-9)
        # Innovations and what is made of them are inverse to each other.
        gain, P = gains(theta[None], idle, None)
        z, _ = innovations(theta[None], Series(b, a, idle), gain)
        again = generate(theta[None], gain, np.array([b[0]]), z)
        np.testing.assert_allclose(np.array(again)[..., 0], [b, a], rtol=1e-12)
        assert 0.5 * np.sum(z**2) == pytest.approx(0.5 * rest @ np.linalg.solve(covariance, rest), rel=1e-9)


@pytest.fixture(scope="module")
def fit() -> DrafterFit:
    return fit_drafter(*simulate(120, 1), draws=100)


def test_it_finds_the_map(fit):
    for value, (low, high), true in (
        (fit.r, fit.r_interval, R), (fit.kappa_inf, fit.kappa_inf_interval, KAPPA), (fit.delta, fit.delta_interval, DELTA)
    ):  # fmt: skip
        assert low < value < high and low < true < high
        assert high - low < 0.5 * true
    assert fit.noise == pytest.approx(0.02, rel=0.3) and fit.drift == pytest.approx(0.01, rel=0.5)
    assert fit.identified and fit.verdict.startswith("the map holds")
    # A hundred rounds of the map end at its fixed point; with little noise the numbers are exact.
    x = 1.0
    for _ in range(100):
        x = fit.kappa_inf + (x + fit.delta - fit.kappa_inf) * np.exp(-8 * fit.r)
    assert fit.fixed_point(8) == pytest.approx(x, rel=1e-9)
    sharp = fit_drafter(*simulate(120, 2, noise=1e-4, step=1e-5, drift=1e-4), draws=20)
    assert (sharp.r, sharp.kappa_inf, sharp.delta) == pytest.approx((R, KAPPA, DELTA), rel=2e-3)


def test_units_of_idle_and_of_kappa(fit):
    before, after, idle = simulate(120, 1)
    other = fit_drafter(3 * before, 3 * after, idle / 60, draws=20)
    assert other.r == pytest.approx(60 * fit.r, rel=1e-6) and other.delta == pytest.approx(3 * fit.delta, rel=1e-6)


def test_a_regression_of_after_on_before_would_be_biased():
    """The noise of `before` is in both: with idle constant, the slope of the regression is nowhere near e^(-r idle)."""
    before, after, _ = simulate(120, 0, low=8.0, high=8.0, noise=0.03)
    slope = np.polyfit(before, after, 1)[0]
    assert -np.log(slope) / 8 < 0.5 * R
    found = fit_drafter(before, after, 8.0, draws=100)
    assert found.r_interval[0] < R < found.r_interval[1] and found.r_interval[0] > -np.log(slope) / 8


def test_forecasts_cover_as_they_say():
    """Fitted to 60 steps, the next 60, measured: 50 and 95 % intervals hold their share and not another."""
    shares = {0.5: [], 0.95: []}
    for seed in range(10):
        before, after, idle = simulate(120, 100 + seed)
        fit = fit_drafter(before[:60], after[:60], idle[:60], draws=20)
        for level, found in shares.items():
            told = replace(fit, level=level).forecast(60, idle[60:])
            found.append(told.covered(before[60:], after[60:]))
    # 10 runs of 120 correlated values: the scatter between runs is the error.
    for level, found in shares.items():
        assert abs(np.mean(found) - level) < 3 * max(np.std(found, ddof=1), 0.01) / np.sqrt(10), level
    assert np.std(shares[0.5], ddof=1) / np.sqrt(10) < 0.04


def test_it_says_when_the_map_does_not_hold():
    growing = fit_drafter(*simulate(120, 4, growth=1e-3), draws=20)
    assert "delta changes along the run" in growing.verdict and growing.checks["delta"] < 1e-4
    for power, bounds in ((3.0, (0.0, 1e-3)), (1.0, (0.1, 1.0))):
        words = {"power": power, "low": 5.0, "high": 40.0, "delta": 0.2}
        fits = [fit_drafter(*simulate(120, seed, **words), draws=20) for seed in range(3)]
        low, high = bounds
        assert low <= np.median([fit.checks["exponential"] for fit in fits]) <= high
        assert sum("not exponential" in fit.verdict for fit in fits) == 3 if power > 1 else "holds" in fits[0].verdict


def test_still_drafters_leave_r_open():
    fit = fit_drafter(*simulate(20, 6, low=8.0, high=8.0, noise=0.05, drift=1e-4, step=0.05), draws=20)
    assert not fit.identified and "cannot be told apart" in fit.verdict


def test_bad_input_is_one_line():
    before, after, idle = simulate(20, 0)
    for word, arguments in {
        "before": (before[:5], after[:5], idle[:5]),
        "after": (before, after[:15], idle),
        "idle": (before, after, idle[:3]),
    }.items():
        with pytest.raises(InputError, match=f"^{word}: "):
            fit_drafter(*arguments)
    for word, arguments in (
        ("idle", (before, after, 0.0)), ("idle", (before, after, -1.0)), ("idle", (before, after, "often")),
        ("before", (np.append(before[1:], np.inf), after, idle)), ("after", (before, -after, idle)),
        ("before", (np.full(20, 0.1), np.full(20, 0.1), idle)), ("before", (np.zeros(20), np.zeros(20), idle)),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"^{word}: "):
            fit_drafter(*arguments)
    for word, wrong in (("level", {"level": 1.0}), ("draws", {"draws": 3}), ("seed", {"seed": -1})):
        with pytest.raises(InputError, match=f"^{word}: "):
            fit_drafter(before, after, idle, **wrong)
    fit = fit_drafter(before, after, idle, draws=20)
    for word, arguments in (("steps", (0, 1.0)), ("idle", (3, [1.0, 2.0]))):
        with pytest.raises(InputError, match=f"^{word}: "):
            fit.forecast(*arguments)
