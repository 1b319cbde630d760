"""Stopping and sharing a budget: random splits, closed forms, plateaus, the online perceptron against its simulation."""

from __future__ import annotations

import numpy as np
import pytest
from online_perceptron import simulation, theory

from benchmarks.planner import TASKS, WEIGHTS
from odescale.errors import InputError
from odescale.resources import reallocate, stop_time


def power(a: float, p: float, c0: float):
    return lambda c: a * (1 + c / c0) ** -p


def test_four_tasks_against_random_splits() -> None:
    curves = [power(*t) for t in TASKS]
    found = reallocate(curves, 100.0, weights=WEIGHTS)
    splits = 100 * np.random.default_rng(0).dirichlet(np.ones(4), 200_000)
    totals = np.sum([w * f(splits[:, i]) for i, (w, f) in enumerate(zip(WEIGHTS, curves, strict=True))], axis=0)
    assert found.total <= totals.min()
    assert found.spent.sum() == pytest.approx(100, rel=1e-12)
    # -w L' = w a p/c0 (1 + c/c0)^(-p-1), written out: equal for all.
    own = [
        w * a * p / c0 * (1 + c / c0) ** (-p - 1) for w, (a, p, c0), c in zip(WEIGHTS, TASKS, found.spent, strict=True)
    ]
    assert np.ptp(own) < 1e-4 * found.multiplier
    ends = [reallocate(curves, 100.0 + s, weights=WEIGHTS).total for s in (-0.1, 0.1)]
    assert found.multiplier == pytest.approx((ends[0] - ends[1]) / 0.2, rel=1e-3)
    assert 0 <= found.gap < 1e-4 * found.total
    assert found.to_dict()["gap"] == found.gap and "nu" in str(found)


def test_a_run_that_is_worth_nothing_gets_nothing() -> None:
    found = reallocate([power(5.0, 0.5, 1.0), power(0.01, 0.5, 10.0)], 3.0)
    assert found.spent[1] < 1e-6
    assert found.values[1] < found.multiplier and found.residual < 1e-4


def test_a_plateau_before_a_fall() -> None:
    """Two sigmoids: the present slope says start neither; the best split finishes one, then the other."""

    def fall(c):
        return 1 / (1 + np.exp((c - 10) / 0.8))

    small = reallocate([fall, fall], 15.0)
    assert small.spent.max() > 14.0
    halves = 2 * fall(np.array(7.5))
    assert small.total < halves - 0.5
    scan = np.linspace(0, 15, 20001)
    assert small.total <= (fall(scan) + fall(15 - scan)).min() + 1e-9
    assert small.gap > 0.05
    large = reallocate([fall, fall], 26.0)
    assert np.allclose(large.spent, 13.0, atol=1e-3)


def test_tables_as_curves() -> None:
    c = np.linspace(0, 60, 200)
    tables = [(c, power(*t)(c)) for t in TASKS[:2]]
    found, exact = reallocate(tables, 50.0), reallocate([power(*t) for t in TASKS[:2]], 50.0)
    assert np.allclose(found.spent, exact.spent, rtol=0.02)
    assert found.total == pytest.approx(exact.total, rel=1e-5)


def test_stop_in_closed_form() -> None:
    nu = 0.01
    exact = (1.5 / nu) ** (1 / 1.5) - 1
    found = stop_time(lambda c: 3 * (c + 1) ** -0.5, nu, end=1000.0)
    assert found.at == pytest.approx(exact, rel=1e-5) and found.first == pytest.approx(exact, rel=1e-2)
    assert found.convex and not found.running
    early = stop_time(lambda c: 3 * (c + 1) ** -0.5, nu, end=10.0)
    assert early.running and early.at == pytest.approx(10.0, rel=1e-6)


def test_stop_looks_over_a_plateau() -> None:
    def loss(c):
        return 1 / (1 + np.exp((c - 10) / 0.8)) + 0.5 * np.exp(-c)

    found = stop_time(loss, 0.02, end=40.0)
    assert found.first < 4 < found.at and not found.convex and "first falls" in str(found)
    grid = np.linspace(0, 40, 400_001)
    assert found.at == pytest.approx(grid[np.argmin(loss(grid) + 0.02 * grid)], abs=2e-4)


def test_online_perceptron_stops_where_its_simulation_does() -> None:
    """Order-parameter equations against the network itself: within 5 % or one recording step."""
    every = 0.2
    t, predicted = theory(2.5, 0.01, 8.0, every)
    s, measured = simulation(2.5, 0.01, 8.0, every, dimension=150, runs=160, rng=np.random.default_rng(1))
    for nu, note in ((0.04, 2.3), (0.02, 3.9), (0.01, 6.3)):
        by_theory = stop_time((t, predicted), nu)
        # Slopes of a noisy mean: a parabola through log error over 1.2 units on either side.
        slope = []
        for at in s:
            near = np.abs(s - at) < 1.3
            fit = np.polyfit(s[near] - at, np.log(measured[near]), 2)
            slope.append(-np.exp(fit[2]) * fit[1])
        in_simulation = s[np.flatnonzero(np.array(slope) > nu)[-1]]
        assert by_theory.at == pytest.approx(note, abs=0.12)
        assert abs(by_theory.at - in_simulation) <= max(0.05 * in_simulation, every)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: stop_time(lambda c: c, 0.1), "end"),
        (lambda: stop_time(([0, 1, 2], [3, 2, 1]), 0.0), "multiplier"),
        (lambda: stop_time(([0, 2, 1], [3, 2, 1]), 0.1), "curve"),
        (lambda: reallocate([], 1.0), "curves"),
        (lambda: reallocate([np.exp], -1.0), "budget"),
        (lambda: reallocate([np.exp], 1.0, weights=[1, 2]), "weights"),
        (lambda: reallocate([np.exp, np.exp], 1.0, least=[1, 1]), "budget"),
        (lambda: reallocate([lambda c: np.where(c > 0, c, np.nan)], 1.0), "least"),
    ],
)
def test_bad_arguments_are_named(call, word) -> None:
    with pytest.raises(InputError) as told:
        call()
    assert told.value.argument == word
