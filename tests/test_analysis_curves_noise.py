"""Transitions from noisy points: intervals, model comparison, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from test_analysis_curves import POINTS, correlated, gap_like, quickstart

from odescale import InputError, find_transition_curve
from odescale.analysis.phases.bootstrap import block_bootstrap, correlated_noise, seed_bootstrap, student_factor
from odescale.analysis.phases.fits import compare_models


def test_spline_on_the_quickstart_grid():
    # "formula 2.138" of the theory note: natural cubic spline through 31 log-spaced points in [.2, 12].
    found = find_transition_curve(POINTS, quickstart(POINTS), min_depth=2, bootstrap=0)
    assert found.t_x == pytest.approx(2.138, abs=1e-3)
    fit = find_transition_curve(POINTS, quickstart(POINTS), min_depth=2, bootstrap=0, estimator="fit")
    assert fit.t_x == pytest.approx(2.148782, abs=1e-5)
    assert fit.tail_exponent == pytest.approx(2.0, abs=1e-5) and fit.exponential_rate == pytest.approx(4.0, abs=1e-5)


def test_loss_at_zero_gives_the_full_depth():
    later = find_transition_curve(POINTS, quickstart(POINTS), min_depth=2, bootstrap=0)
    full = find_transition_curve(POINTS, quickstart(POINTS), min_depth=2, bootstrap=0, loss_start=quickstart(0.0))
    assert full.depth - later.depth == pytest.approx(np.log(quickstart(0.0) / quickstart(0.2)), abs=1e-9)


def test_long_curves_are_binned():
    t = np.linspace(0, 12, 6001)
    found = find_transition_curve(t, quickstart(t), min_depth=2, bootstrap=0)
    assert "binned from 6000" in found.grid
    assert found.t_x == pytest.approx(2.1488, abs=0.02)


@pytest.mark.parametrize(("curve", "start"), [
    (np.exp(-POINTS), "no exponential-to-power transition"),
    (np.exp(-2 * POINTS) + 1e-3, "no exponential-to-power transition"),
    ((1 + POINTS) ** -2.0, "no exponential phase"),
    (np.full(31, 0.3), "no exponential phase: the loss is constant"),
])  # fmt: skip
@pytest.mark.parametrize("estimator", ["spline", "fit"])
def test_curves_without_transition(curve, start, estimator):
    found = find_transition_curve(POINTS, curve, estimator=estimator)
    assert not found.found and found.t_x is None and found.interval is None
    assert found.reason.startswith(start)


def test_aic_gap_decides():
    rng = np.random.default_rng(2)
    floor = (np.exp(-2 * POINTS) + 1e-3) * np.exp(correlated(rng, (31,), 0.03))
    _, gap, _ = compare_models(POINTS, floor)
    assert gap < 10
    found = find_transition_curve(POINTS, floor, bootstrap=0, min_depth=2)
    assert not found.found
    _, gap, fits = compare_models(POINTS, gap_like(POINTS) * np.exp(correlated(rng, (31,), 0.03)))
    assert gap > 10 and fits["two-term"].aic == min(fit.aic for fit in fits.values() if fit.model != "escape+power")
    # The demand itself: refused when it is set above the gap, with the number in the reason.
    strict = find_transition_curve(POINTS, gap_like(POINTS), bootstrap=0, min_aic_gap=1e9)
    assert not strict.found and "AIC gap" in strict.reason


def test_correlated_noise_on_a_power_law_is_no_transition():
    rng = np.random.default_rng(3)
    rows = [(1 + POINTS) ** -2.0 * np.exp(correlated(rng, (31,), 0.03, rho=0.8)) for _ in range(6)]
    assert not any(find_transition_curve(POINTS, row, bootstrap=0).found for row in rows)


@pytest.mark.parametrize(("seeds", "least"), [(4, 0.8), (2, 0.8)])
def test_interval_covers_the_truth(seeds, least):
    # 24 curves, nominal 95 %: fewer than 80 % has probability .004.
    rng = np.random.default_rng(4)
    hits, z = [], []
    for _ in range(24):
        rows = quickstart(POINTS) * np.exp(correlated(rng, (seeds, 31), 0.04))
        run = find_transition_curve(POINTS, rows, min_depth=2, bootstrap=60, min_aic_gap=None)
        truth = find_transition_curve(
            POINTS, quickstart(POINTS), min_depth=1, bootstrap=0, smoothing=run.smoothing, min_aic_gap=None
        )
        assert run.interval is not None
        hits.append(run.interval[0] <= truth.t_x <= run.interval[1])
        z.append((run.t_x - truth.t_x) / run.stderr)
    assert np.mean(hits) >= least
    assert abs(np.mean(z)) < 1.0 and 0.3 < np.std(z) < 2.5


def test_fit_interval_covers_the_truth():
    rng = np.random.default_rng(5)
    truth = find_transition_curve(POINTS, gap_like(POINTS), estimator="fit", bootstrap=0).t_x
    hits = []
    for _ in range(6):
        rows = gap_like(POINTS) * np.exp(correlated(rng, (4, 31), 0.04))
        run = find_transition_curve(POINTS, rows, estimator="fit", bootstrap=40)
        assert run.interval is not None
        hits.append(run.interval[0] <= truth <= run.interval[1])
    assert sum(hits) >= 4


def test_same_seed_same_interval():
    rows = quickstart(POINTS) * np.exp(correlated(np.random.default_rng(6), (4, 31), 0.03))
    one, two, other = (find_transition_curve(POINTS, rows, min_depth=2, bootstrap=50, seed=s) for s in (0, 0, 1))
    assert one.interval == two.interval != other.interval


def test_one_curve_says_what_its_interval_lacks():
    row = quickstart(POINTS) * np.exp(correlated(np.random.default_rng(7), (31,), 0.02))
    found = find_transition_curve(POINTS, row, min_depth=2, bootstrap=50)
    assert "scatter between seeds" in found.caveat
    given = find_transition_curve(POINTS, row, min_depth=2, bootstrap=50, stderr=0.05 * row, smoothing=1e-4)
    wider = find_transition_curve(POINTS, row, min_depth=2, bootstrap=50, stderr=0.10 * row, smoothing=1e-4)
    assert given.stderr is not None and wider.stderr is not None and wider.stderr > 1.4 * given.stderr


def test_irreducible_loss_moves_the_transition():
    base = find_transition_curve(POINTS, gap_like(POINTS), bootstrap=0, estimator="fit")
    assert base.t_x is not None
    wrong = 0.04 * gap_like(base.t_x)
    moved = [find_transition_curve(POINTS[POINTS < 6], gap_like(POINTS[POINTS < 6]), irreducible=sign * wrong, bootstrap=0,
                                   min_aic_gap=None) for sign in (1, -1)]  # fmt: skip
    plain = find_transition_curve(POINTS[POINTS < 6], gap_like(POINTS[POINTS < 6]), bootstrap=0, min_aic_gap=None)
    assert moved[0].t_x > plain.t_x > moved[1].t_x, "subtracting too much lengthens the exponential"
    assert all(0.005 < abs(m.t_x / plain.t_x - 1) < 0.2 for m in moved)


def test_bootstrap_keeps_size_and_correlation():
    rng = np.random.default_rng(8)
    noise = correlated(rng, (4000,), 1.0, rho=0.8)
    drawn = block_bootstrap(noise, 50, rng, block=40)
    assert drawn.std() == pytest.approx(noise.std(), rel=0.05)
    neighbours = (drawn[:, 1:] * drawn[:, :-1]).mean() / (drawn**2).mean()
    assert neighbours == pytest.approx(0.8, abs=0.05), "single points would give 0"
    assert np.ptp(block_bootstrap(np.zeros(20), 5, rng)) == 0
    given = correlated_noise(np.full(300, 0.1), 400, rng, length=4.0)
    assert given.std() == pytest.approx(0.1, rel=0.05)
    # The spread of the mean of 5 seeds, averaged over many sets, is sigma/sqrt(5).
    spread = [seed_bootstrap(1 + 0.01 * rng.standard_normal((5, 1)), 400, rng).var() for _ in range(200)]
    assert np.sqrt(np.mean(spread)) == pytest.approx(0.01 / np.sqrt(5), rel=0.1)
    assert student_factor(4) == pytest.approx(1.624, abs=1e-3)
    with pytest.raises(InputError):
        seed_bootstrap(np.ones((2, 5)), 10, rng)
    with pytest.raises(InputError):
        block_bootstrap(np.ones(5), 10, rng, block=6)


def _broken(place: int, value: float) -> np.ndarray:
    loss = quickstart(POINTS)
    loss[place] = value
    return loss


@pytest.mark.parametrize(("t", "loss", "options", "argument"), [
    (POINTS, _broken(7, np.nan), {}, "loss"),
    (POINTS, _broken(7, np.inf), {}, "loss"),
    (POINTS, _broken(7, -1.0), {}, "loss"),
    (POINTS, quickstart(POINTS), {"irreducible": 1e-3}, "loss"),
    (POINTS, quickstart(POINTS), {"irreducible": np.nan}, "irreducible"),
    (POINTS[::-1], quickstart(POINTS), {}, "t"),
    (np.repeat(POINTS[:16], 2)[:31], quickstart(POINTS), {}, "t"),
    (POINTS[:7], quickstart(POINTS[:7]), {}, "t"),
    (POINTS, quickstart(POINTS)[:-1], {}, "loss"),
    (POINTS, quickstart(POINTS), {"estimator": "magic"}, "estimator"),
    (POINTS, quickstart(POINTS), {"bootstrap": 3}, "bootstrap"),
    (POINTS, quickstart(POINTS), {"window": (1.0, 2.0)}, "window"),
    (POINTS, quickstart(POINTS), {"stderr": np.full(31, np.nan)}, "stderr"),
    (POINTS, quickstart(POINTS), {"min_depth": -1.0}, "min_depth"),
    (POINTS, quickstart(POINTS), {"loss_start": np.nan}, "loss_start"),
])  # fmt: skip
def test_bad_input_names_the_argument(t, loss, options, argument):
    with pytest.raises(InputError) as caught:
        find_transition_curve(t, loss, **options)
    assert caught.value.argument == argument and "\n" not in str(caught.value)
