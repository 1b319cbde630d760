"""Transitions from noisy points: intervals, model comparison, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from test_analysis_curves import GRID, POINTS, correlated, gap_like, logistic_pair

from odescale import InputError, find_transition_curve
from odescale.analysis.phases.bootstrap import block_bootstrap, seed_bootstrap, student_factor


def test_loss_at_zero_gives_the_full_depth():
    later = find_transition_curve(GRID, gap_like(GRID))
    full = find_transition_curve(GRID, gap_like(GRID), loss_start=gap_like(0.0))
    assert full.depth - later.depth == pytest.approx(np.log(gap_like(0.0) / gap_like(GRID[0])), abs=1e-9)


def test_long_curves_are_binned():
    t = np.linspace(0, 200, 20_001)
    found = find_transition_curve(t, gap_like(t))
    assert "binned from 20000" in found.grid
    assert found.t_x == pytest.approx(find_transition_curve(GRID, gap_like(GRID)).t_x, rel=0.02)


@pytest.mark.parametrize(("curve", "name"), [
    (np.exp(-POINTS), "exponential to the end"),
    (np.exp(-2 * GRID) + 1e-3, "exponential, then a floor"),
    ((1 + POINTS) ** -2.0, "power law"),
    (np.full(31, 0.3), "constant"),
])  # fmt: skip
def test_curves_without_transition(curve, name):
    found = find_transition_curve(POINTS if curve.size == POINTS.size else GRID, curve)
    assert not found.found and found.t_x is None and found.interval is None
    assert found.name in (name, "cannot be told apart") and found.reason.startswith("no exponential")


def test_the_lead_that_is_asked_decides():
    rows = gap_like(GRID) * np.exp(correlated(np.random.default_rng(2), (60,), 0.03))
    found = find_transition_curve(GRID, rows)
    assert found.found and (found.aic_gap is None or found.aic_gap > 10)
    strict = find_transition_curve(GRID, rows, aic_gap=1e9)
    assert not strict.found and strict.name == "cannot be told apart" and len(strict.contenders) > 1


def test_correlated_noise_on_a_power_law_is_no_transition():
    rng = np.random.default_rng(3)
    rows = [(1 + POINTS) ** -2.0 * np.exp(correlated(rng, (31,), 0.03, rho=0.8)) for _ in range(6)]
    assert not any(find_transition_curve(POINTS, row).found for row in rows)


@pytest.mark.parametrize("seeds", [4, 1])
def test_intervals_cover_the_truth(seeds):
    """Nominal 95 % over 24 curves: fewer than 20 has a probability of .006, z of a wrong standard error leaves its band."""
    rng = np.random.default_rng(4)
    truth = {"t_x": find_transition_curve(GRID, gap_like(GRID)).t_x, "rate": 2.0, "exponent": 1.3}
    hits: dict[str, list[bool]] = {name: [] for name in truth}
    z = []
    for _ in range(24):
        run = find_transition_curve(GRID, gap_like(GRID) * np.exp(correlated(rng, (seeds, 60), 0.04)))
        if not run.found:
            continue
        z.append((run.t_x - truth["t_x"]) / run.stderr)
        for name, interval in (("t_x", run.interval), ("rate", run.rate_interval), ("exponent", run.exponent_interval)):
            if name == "t_x" or run.model.startswith("exponential + power law"):
                hits[name].append(interval[0] <= truth[name] <= interval[1])
    assert len(z) >= 20
    for name, held in hits.items():
        assert sum(held) >= 0.8 * len(held), name
    assert abs(np.mean(z)) < 0.7 and 0.5 < np.std(z) < 1.6


def test_the_model_of_a_run_on_the_theory():
    rows = gap_like(GRID) * np.exp(correlated(np.random.default_rng(6), (4, 60), 0.03))
    run = find_transition_curve(GRID, rows)
    theory = find_transition_curve(GRID, gap_like(GRID), model=run.model)
    assert theory.model == run.model and theory.t_x == pytest.approx(run.t_x, rel=0.1)
    assert theory.without_intervals().interval is None
    assert find_transition_curve(GRID, rows).interval == run.interval, "the same draws"


def test_one_curve_says_what_its_interval_lacks():
    row = gap_like(GRID) * np.exp(correlated(np.random.default_rng(7), (60,), 0.02))
    assert "scatter between seeds" in find_transition_curve(GRID, row).caveat


def test_irreducible_loss_moves_the_transition():
    base = find_transition_curve(GRID, gap_like(GRID))
    assert base.t_x is not None
    wrong = 0.001 * gap_like(base.t_x)
    short = GRID[GRID < 60]
    model = "exponential + power law"
    plain, more, less = (
        find_transition_curve(short, gap_like(short), irreducible=x, model=model).t_x for x in (0.0, wrong, -wrong)
    )
    assert more > plain > less, "subtracting too much lengthens the exponential"


def test_bootstrap_keeps_size_and_correlation():
    rng = np.random.default_rng(8)
    noise = correlated(rng, (4000,), 1.0, rho=0.8)
    drawn = block_bootstrap(noise, 50, rng, block=40)
    assert drawn.std() == pytest.approx(noise.std(), rel=0.05)
    neighbours = (drawn[:, 1:] * drawn[:, :-1]).mean() / (drawn**2).mean()
    assert neighbours == pytest.approx(0.8, abs=0.05), "single points would give 0"
    assert np.ptp(block_bootstrap(np.zeros(20), 5, rng)) == 0
    # The spread of the mean of 5 seeds, averaged over many sets, is sigma/sqrt(5).
    spread = [seed_bootstrap(1 + 0.01 * rng.standard_normal((5, 1)), 400, rng).var() for _ in range(200)]
    assert np.sqrt(np.mean(spread)) == pytest.approx(0.01 / np.sqrt(5), rel=0.1)
    assert student_factor(4) == pytest.approx(1.624, abs=1e-3)
    with pytest.raises(InputError):
        seed_bootstrap(np.ones((2, 5)), 10, rng)
    with pytest.raises(InputError):
        block_bootstrap(np.ones(5), 10, rng, block=6)


def _broken(place: int, value: float) -> np.ndarray:
    loss = logistic_pair(POINTS)
    loss[place] = value
    return loss


@pytest.mark.parametrize(("t", "loss", "options", "argument"), [
    (POINTS, _broken(7, np.nan), {}, "loss"),
    (POINTS, _broken(7, np.inf), {}, "loss"),
    (POINTS, _broken(7, -1.0), {}, "loss"),
    (POINTS, logistic_pair(POINTS), {"irreducible": 1e-3}, "loss"),
    (POINTS, logistic_pair(POINTS), {"irreducible": np.nan}, "irreducible"),
    (POINTS[::-1], logistic_pair(POINTS), {}, "t"),
    (np.repeat(POINTS[:16], 2)[:31], logistic_pair(POINTS), {}, "t"),
    (POINTS[:7], logistic_pair(POINTS[:7]), {}, "t"),
    (POINTS, logistic_pair(POINTS)[:-1], {}, "loss"),
    (POINTS, logistic_pair(POINTS), {"model": "magic"}, "model"),
    (POINTS, logistic_pair(POINTS), {"aic_gap": np.nan}, "aic_gap"),
    (POINTS, logistic_pair(POINTS), {"window": (1.0, 2.0)}, "window"),
    (POINTS, logistic_pair(POINTS), {"stderr": np.full(31, np.nan)}, "stderr"),
    (POINTS, logistic_pair(POINTS), {"loss_start": np.nan}, "loss_start"),
])  # fmt: skip
def test_bad_input_names_the_argument(t, loss, options, argument):
    with pytest.raises(InputError) as caught:
        find_transition_curve(t, loss, **options)
    assert caught.value.argument == argument and "\n" not in str(caught.value)
