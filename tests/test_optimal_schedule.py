"""Closed-form schedules: against the gradient search, quadrature, exact SGD, published exponents; what is refused."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.optimal_schedules import exact_excess, law_fit, rates_of, sgd_case
from odescale import InputError, OutsideTheoryError, best_schedule, integrate, spectral
from odescale.analysis.forecast.laws import LAWS, law_named
from odescale.analysis.forecast.optimal_schedule import _best
from odescale.clock import Clock, schedule_integral, schedule_kinks
from odescale.laws import LawFit, optimal_schedule_of
from odescale.schedules import ConstantSchedule, OptimalSchedule, WarmedSchedule, optimal_schedule

EASY, HARD = (1.0, 1.5), (0.3, 3.0)


@pytest.mark.parametrize(("task", "steps"), [(EASY, 1e4), (HARD, 1e4), ((0.5, 2.0), 1e3)])
def test_gradient_search_finds_the_same_loss(task: tuple[float, float], steps: float) -> None:
    """Both sides of the transition and on it: the search over 200 stairs is above the closed form, by less than 0.1 %."""
    found = optimal_schedule(*task, steps, max_rate=0.1)
    searched = best_schedule(law_fit(found), steps=steps, peak=0.1).loss - 1
    assert 0 <= searched / float(found.loss) - 1 < 1e-3


def test_no_neighbour_is_better() -> None:
    """Other rates of the last step, other powers, other onsets: all lose under the law, read by quadrature."""
    for task in (EASY, HARD):
        found = optimal_schedule(*task, 1e4, max_rate=0.1)
        own = found.loss_of(found, float(found.peak))
        assert own == pytest.approx(float(found.loss), rel=1e-5)  # stairs, by the midpoint
        left = jnp.linspace(0.0, 1.0, 7)
        bumps = (
            lambda t: 1 + 0.05 * jnp.sin(7 * t / 1e4),
            lambda t: 1 - 0.1 * (t > 8e3),
            lambda t: 1 - 0.1 * (t < 2e3),
        )
        for bump in bumps:
            assert found.loss_of(partial(_bumped, found, bump), float(found.peak) * 0.95) > own
        assert found.loss_of(found, float(found.peak) * 0.9) > own
        assert np.all(np.diff(np.asarray(found((1 - left) * 1e4))) >= 0)


def _bumped(schedule, bump, t):
    return schedule(t) * bump(t)


def test_it_is_a_schedule() -> None:
    """Its integral is that of its values, with the clock's unit; kinks; the horizon's rate stays; pytree of arrays."""
    for task, unit in ((EASY, 1.0), (HARD, 50.0)):
        found = optimal_schedule(*task, 5e3, max_rate=0.1, steps_per_unit=unit)
        end = 5e3 / unit
        fine = np.linspace(0, end, 200_001)
        values = np.asarray(found(fine))
        assert values[0] == pytest.approx(1.0, abs=1e-12) and values.max() <= 1
        total = np.concatenate([[0], np.cumsum(0.5 * (values[1:] + values[:-1]) * np.diff(fine))])
        places = [1, 60_000, 150_000, 199_000, 200_000]
        np.testing.assert_allclose(np.asarray(found.integral(fine[places])), total[places], rtol=1e-6)
        assert float(found.integral(end)) * unit * float(found.peak) == pytest.approx(float(found.tau), rel=1e-9)
        assert float(found(2 * end) * found.peak) == pytest.approx(float(found.last), rel=1e-9)
        assert float(found.integral(2 * end) - found.integral(end)) == pytest.approx(
            end * float(found.last / found.peak)
        )
        onset, last = (float(k) for k in schedule_kinks(found))
        assert last == end and onset == pytest.approx(end * (1 - found.decay_share))
        clock = Clock(unit, found.peak, found)
        assert float(clock.tau(end)) == pytest.approx(float(found.peak * schedule_integral(found, end)))
        leaves = jax.tree_util.tree_leaves(found)
        assert len(leaves) == len(OptimalSchedule.__dataclass_fields__)
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)


def test_powers_of_the_steps_left() -> None:
    """2b - 1: the slope of log eta against log(1 - step/N) away from the last steps; an exponential at beta = 1."""
    for b in (1.5, 2.0, 3.0):
        found = optimal_schedule(1.2 - 1 / b, b, 1e30, max_rate=1.0)
        assert found.shape == "power decay" and found.power == pytest.approx(2 * b - 1)
        share = np.array([0.5, 1.0])
        slope = np.diff(np.log(found((1 - share) * 1e30))) / np.log(2)
        assert float(slope[0]) == pytest.approx(2 * b - 1, rel=1e-3)
    flat = _best(0.3, 1.0, 1e4, 0.1, 1.0, 1.0, 5.0, 0.0, 1.0)
    left = np.linspace(0.0, 0.9, 5) * float(flat.decay)
    rate = np.log(np.asarray(flat(1e4 - left)) * float(flat.peak) / float(flat.last))
    np.testing.assert_allclose(rate[1:] / left[1:], float(flat.last * flat.speed), rtol=1e-5)


def test_exponents_of_both_phases() -> None:
    """Li et al. 2026: loss and peak of easy tasks, loss and share of hard ones, from horizons far apart."""
    s, b = EASY
    ends = [optimal_schedule(s, b, n, max_rate=0.1) for n in (1e14, 1e15)]
    assert {end.phase for end in ends} == {"easy"} and ends[0].decay_share == 1
    slope = {n: float(np.log10(getattr(ends[1], n) / getattr(ends[0], n))) for n in ("loss", "peak")}
    assert slope["loss"] == pytest.approx(-s / (s + 1 / b), abs=1e-3) and ends[0].exponent == pytest.approx(0.6)
    assert slope["peak"] == pytest.approx(-(s - 1 + 1 / b) / (s + 1 / b), abs=1e-3)
    assert ends[0].peak_exponent == pytest.approx(-0.4)
    s, b = HARD
    ends = [optimal_schedule(s, b, n, max_rate=0.1) for n in (1e15, 1e16)]
    assert {end.phase for end in ends} == {"hard"} and float(ends[0].peak) == 0.1
    assert float(np.log10(ends[1].loss / ends[0].loss)) == pytest.approx(-s, abs=2e-3)
    share = np.log10(ends[1].decay_share / ends[0].decay_share)
    assert share == pytest.approx(ends[0].share_exponent, abs=5e-3)
    assert ends[0].share_exponent == pytest.approx((0.3 - 2 / 3) / (5 / 3))
    assert optimal_schedule(0.5, 2.0, 1e3, max_rate=0.1).phase == "easy"  # the border belongs to the easy ones


@pytest.mark.parametrize("task", ["easy", "hard"])
def test_exact_sgd_prefers_it(task: str) -> None:
    """Nothing fitted: 500 modes, 1500 steps; constant, cosine and WSD lose at the bound and at their best peaks."""
    case = sgd_case(task, 1500, modes=500, peaks=5)
    assert case["exact"] == pytest.approx(case["predicted"], rel=0.1)
    for name, (bound, best, _) in case["references"].items():
        assert best > case["exact"] and bound > case["exact"], (name, bound, best)
    assert case["references"]["constant"][1] > 1.15 * case["exact"]
    if task == "easy":
        assert all(other > case["exact"] for other in case["own"].values()), case["own"]


def test_recursion_is_that_of_sgd() -> None:
    """`exact_excess` against gradient descent on drawn samples, 2000 runs: z below 4."""
    rng = np.random.default_rng(0)
    modes, steps, runs, source, capacity = 6, 40, 4000, 1.0, 1.5
    k = np.arange(1.0, modes + 1)
    lam = k**-capacity
    rates = 0.1 * (1 - np.arange(steps) / (2 * steps))
    gap = np.tile(np.sqrt(k ** -(source * capacity + 1) / lam), (runs, 1))
    for h in rates:
        x = rng.standard_normal((runs, modes)) * np.sqrt(lam)
        gap -= h * x * ((x * gap).sum(1) - rng.standard_normal(runs))[:, None]
    risk = (gap**2) @ lam
    exact = exact_excess(rates[None], source, capacity, modes)[0]
    assert abs(risk.mean() - exact) < 4 * risk.std() / np.sqrt(runs)


def test_the_ode_runs_with_it() -> None:
    """`integrate` of one-pass SGD under the schedule ends where the exact recursion does."""
    source, capacity, modes, steps = 1.0, 1.5, 64, 500
    found = optimal_schedule(source, capacity, steps, max_rate=0.05)
    system = spectral(
        modes=modes, spectrum_exponent=capacity, risk_exponent=source * capacity + 1, noise=1.0, batch=1,
        learning_rate=float(found.peak), schedule=found,
    )  # fmt: skip
    run = integrate(system, steps)
    exact = exact_excess(float(found.peak) * rates_of(found, steps)[None], source, capacity, modes)[0]
    assert float(run.loss[-1]) == pytest.approx(exact, rel=1e-2)


def _fit(law: str, **values: float) -> LawFit:
    names = law_named(law).names
    return LawFit(
        law, {n: values[n] for n in names}, dict.fromkeys(names), True, "", 0.0, 0.0, 100, 1.0, 3.0, 10.0, 1.0, ("run",),
        np.array([values[n] for n in names]), np.zeros(100), np.zeros((0, len(names))),
    )  # fmt: skip


TRUTH = {"L0": 3.0, "A": 0.5, "B": 400.0, "alpha": 0.5, "C": 30.0, "beta": 0.7}


@pytest.mark.parametrize("law", ["relaxing", "spectral"])
def test_of_a_fitted_law(law: str) -> None:
    """At the numbers of a real fit, beta at infinity included: the search is above it by less than 1e-4 of the loss."""
    fit = _fit(law, **TRUTH)
    found = optimal_schedule_of(fit, 2e4, max_rate=3e-4)
    searched = best_schedule(fit, steps=2e4, peak=3e-4)
    assert 0 <= searched.loss - float(found.loss) < 1e-4
    assert found.phase == "hard" and found.loss_of(ConstantSchedule(), 3e-4) > searched.loss
    assert "over the last" in str(found)
    if law == "relaxing":
        left = np.linspace(0, 0.9, 5) * float(found.decay)
        pace = TRUTH["C"] * float(found.last) * left / 2
        np.testing.assert_allclose(found(2e4 - left) * found.peak / found.last, 1 / (1 - pace), rtol=1e-4)
    warmed = WarmedSchedule(found, 500)
    assert float(warmed(250.0)) == pytest.approx(0.5)


def test_what_is_refused() -> None:
    with pytest.raises(OutsideTheoryError, match="fit"):
        optimal_schedule_of(_fit("instant", **TRUTH), 1e4, max_rate=1e-3)
    assert "instant" in LAWS
    good = {"source": 1.0, "capacity": 1.5, "horizon": 1e3, "max_rate": 0.1}
    bad = {"source": 0.0, "capacity": 1.0, "horizon": -1, "max_rate": 0.0, "signal": 0.0, "noise": np.nan, "speed": "x",
           "steps_per_unit": 0, "floor": np.inf}  # fmt: skip
    for name, value in bad.items():
        with pytest.raises(InputError, match=name):
            optimal_schedule(**{**good, name: value})
