"""The frontier of anything by search: against the closed form, against scipy, on an ODE, and exponents with uncertainty."""

from __future__ import annotations

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from benchmarks.random_features import measure
from odescale import InputError
from odescale.analysis.frontier.numeric import LawRisk
from odescale.frontier import (
    RiskLaw,
    compare_frontiers,
    compute_frontier,
    compute_optimal,
    critical_compute,
    envelope_of_curves,
    frontier_exponent,
    numeric_frontier,
    risk_law,
    yang_v3,
)


def example(**changes) -> RiskLaw:
    given = {"decay": 50.0, "rate": 0.8, "time_cost": 1.0, "floors": (100.0, 1000.0), **changes}
    return risk_law((1.0, 1.0), (0.5, 0.5), (2.0, 1.0), **given)


LAWS = {
    "floors": example(),
    "no floors": example(floors=None),
    "yang_v3": yang_v3(amplitudes=(2.0, 0.5), unit=6.0),
    "one pass": risk_law((1.0, 2.0), (0.5, 0.5), (2.0, 1.0), decay=50.0, rate=0.1, time_cost=0.5).tie(
        "data", "time", factor=32.0
    ),
    "width with depth": risk_law(
        (1.0, 2.0, 0.5), (0.5, 0.8, 0.4), (2.0, 1.0, 1.0), names=("width", "depth", "data"), time_amplitude=3.0,
        time_exponent=0.7, time_cost=1.0,
    ).tie("width", "depth", factor=64.0),
}  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_search_and_formula_agree(name):
    found = compare_frontiers(LAWS[name], np.geomspace(1.2e7, 1e14, 9))
    assert found.points == 9
    assert found.risk_error < 1e-11 and found.exponent_error < 1e-8
    assert found.size_error < 1e-8 and found.time_error < 1e-8
    assert "at 9 computes" in str(found)


def test_a_wrong_formula_would_be_seen():
    """The search on a law whose exponent is off by 1 % differs from the formula by far more than the tolerance above."""
    law, other = example(), risk_law((1.0, 1.0), (0.505, 0.5), (2.0, 1.0), decay=50.0, rate=0.8, time_cost=1.0)
    C = np.geomspace(1e9, 1e12, 9)
    bounds = {"width": (100.0, 1e6), "data": (1e3, 1e8), "time": (2.0, 1e3)}
    found = numeric_frontier(LawRisk(other), C, bounds, {"width": 2.0, "data": 1.0, "time": 1.0})
    assert np.abs(np.asarray(found.risk / compute_frontier(law, C).risk) - 1).min() > 1e-3


def test_critical_compute_is_where_the_search_leaves_the_bounds():
    critical = critical_compute(example())
    C = critical.compute * np.exp(1e-3 * np.array([-4, -3, -2, -1, 1, 2, 3, 4, 5]))
    bounds = {"width": (100.0, 1e4), "data": (1e3, 1e5), "time": (2.0, 100.0)}
    found = numeric_frontier(LawRisk(example()), C, bounds, {"width": 2.0, "data": 1.0, "time": 1.0})
    assert np.asarray(found.held).tolist() == 4 * [[True, True, False]] + 5 * [[False, True, False]]
    assert np.asarray(found.released).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_any_cost():
    """C = 6 (m^2 + 50 m) n: a callable that is no power law, against a bounded scalar search of scipy."""

    def risk(width, data):
        return 3 * width**-0.4 + 20 * data**-0.3 + 0.1 * (width + data) ** -0.1

    def cost(width, data):
        return 6 * (width**2 + 50 * width) * data

    C = np.geomspace(1e8, 1e14, 5)
    found = numeric_frontier(risk, C, {"width": (2.0, 1e5), "data": (10.0, 1e11)}, cost)
    for i, compute in enumerate(C):

        def given(x, compute=compute):
            m = np.exp(x)
            return float(risk(m, compute / (6 * (m**2 + 50 * m))))

        best = minimize_scalar(given, bounds=(np.log(2), np.log(1e5)), method="bounded", options={"xatol": 1e-10})
        assert float(found.risk[i]) == pytest.approx(best.fun, rel=1e-12)
        assert float(found.sizes[i, 0]) == pytest.approx(np.exp(best.x), rel=1e-6)
        m, n = np.asarray(found.sizes)[i]
        assert cost(m, n) == pytest.approx(compute, rel=1e-12)
    h, box = 1e-3, {"width": (2.0, 1e5), "data": (10.0, 1e11)}
    low, high = (np.log(np.asarray(numeric_frontier(risk, C * np.exp(x), box, cost).risk)) for x in (-h, h))
    np.testing.assert_allclose(found.exponent, (low - high) / (2 * h), rtol=1e-6)


class Relaxation(eqx.Module):
    """m^-1/2 of width plus what an ODE dr/dt = -r^2/(1 + r), r(0) = 5, has left at t: neither power nor exponential."""

    start: jax.Array

    def __call__(self, width, time):
        term = diffrax.ODETerm(lambda t, r, args: -(r**2) / (1 + r))
        done = diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, time, 0.01, self.start, max_steps=400,
            stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-12),
        )  # fmt: skip
        assert done.ys is not None
        return width**-0.5 + done.ys[0]


@pytest.mark.slow
def test_a_system_that_is_an_ODE():
    """r solves log r - 1/r = log 5 - 1/5 - t, so that the optimum is known to scipy without any ODE."""
    C = np.geomspace(1e4, 1e8, 5)
    bounds = {"width": (1.0, 1e5), "time": (1.0, 1e4)}
    found = numeric_frontier(
        Relaxation(jnp.asarray(5.0)), C, bounds, {"width": 2.0, "time": 1.0}, rounds=40, smooth=False
    )
    assert bool(found.valid.all()) and not bool(found.held.any())

    def given(log_r, compute):
        r = np.exp(log_r)
        t = 1 / r - 1 / 5 - np.log(r / 5)
        return (compute / t) ** -0.25 + r

    for compute, R in zip(C, found.risk, strict=True):
        best = minimize_scalar(given, args=(compute,), bounds=(-9, 1.5), method="bounded", options={"xatol": 1e-10})
        assert float(R) == pytest.approx(best.fun, rel=1e-7)


def test_bounds_and_budgets():
    law = LawRisk(example(floors=None))
    bounds, powers = (
        {"width": (10.0, 1e3), "data": (10.0, 1e4), "time": (2.0, 50.0)},
        {"width": 2.0, "data": 1.0, "time": 1.0},
    )
    found = numeric_frontier(law, [1e3, 1.9e3, 2.1e3, 1e4, 1e6, 1e8, 1e10, 6e11, 1e14], bounds, powers)
    assert np.asarray(found.valid).tolist() == 2 * [False] + 7 * [True]  # 100 * 10 * 2 is the least
    assert np.asarray(found.held)[-2:].all() and float(found.exponent[-1]) == 0.0  # more than the box can spend
    assert float(found.risk[-1]) == pytest.approx(float(law(width=1e3, data=1e4, time=50.0)), rel=1e-12)


def test_bad_input_is_named():
    law, powers = LawRisk(example()), {"width": 2.0, "data": 1.0, "time": 1.0}
    bounds = {"width": (10.0, 1e3), "data": (10.0, 1e4), "time": (2.0, 50.0)}
    for call in (
        lambda: numeric_frontier(law, [1e8], {}, powers),
        lambda: numeric_frontier(law, [1e8], {**bounds, "time": (2.0, 1.0)}, powers),
        lambda: numeric_frontier(law, [1e8], bounds, {"width": 2.0}),
        lambda: numeric_frontier(law, [-1e8], bounds, powers),
        lambda: numeric_frontier(law, [1e8], bounds, powers, smooth=False),
        lambda: compare_frontiers(example(), [1e-9]),
    ):
        with pytest.raises(InputError):
            call()


# ---------------------------------------------------------------------------------------------------------------------
# Exponents with uncertainty
# ---------------------------------------------------------------------------------------------------------------------


def test_exponent_of_a_power_law_has_no_width():
    C = np.geomspace(1e6, 1e12, 30)
    found = frontier_exponent(C, compute_frontier(yang_v3(), C).risk)
    assert found.exponent == pytest.approx(1 / 7, rel=1e-12) and found.stderr < 1e-10 and found.power_law
    np.testing.assert_allclose(found.local, 1 / 7, rtol=1e-10)


def test_exponent_knows_of_drift():
    """Through C* the frontier is no power law: said so; long after, the interval covers the local exponents."""
    law = example()
    C = np.geomspace(2e7, 1e10, 40)
    found = frontier_exponent(C, compute_frontier(law, C).risk)
    assert not found.power_law and "no single power law" in str(found) and found.stderr > 0.05
    late = np.geomspace(1e10, 1e16, 40)
    truth = compute_frontier(law, late)
    found = frontier_exponent(late, truth.risk)
    assert found.power_law and found.interval[0] < float(truth.exponent[20]) < found.interval[1]
    assert found.limit == pytest.approx(float(truth.exponent[-1]), abs=2e-4)


def test_exponent_interval_covers_the_truth_under_noise():
    C = np.geomspace(1e6, 1e10, 25)
    rng = np.random.default_rng(3)
    inside, widths, errors = 0, [], []
    for _ in range(40):
        rows = C**-0.3 * np.exp(0.02 * rng.standard_normal((8, 25)))
        found = frontier_exponent(C, rows, draws=100)
        inside += found.interval[0] < 0.3 < found.interval[1]
        widths.append(found.stderr)
        errors.append(abs(found.exponent - 0.3))
    assert inside >= 35 and np.median(widths) < 4 * np.median(errors)


def test_exponent_refuses():
    C = np.geomspace(1, 10, 6)
    for risk, window in ((C[:3], None), (-C, None), (1 / C, (1.0, 2.0)), (np.full(6, np.nan), None)):
        with pytest.raises(InputError):
            frontier_exponent(C, risk, window=window)
    with pytest.raises(InputError):
        frontier_exponent(C[::-1], C)


def test_envelope_of_runs_is_the_frontier():
    """Loss curves at 300 widths: their lower envelope has the risk and, where it is interior, the exponent of the optimum."""
    law = risk_law((1.0,), (0.5,), (2.0,), decay=50.0, rate=0.8, time_cost=1.0)
    widths, t = np.geomspace(10, 1e5, 300), np.geomspace(0.5, 100, 400)
    sizes = np.broadcast_to(widths[:, None, None], (300, 400, 1))
    found = envelope_of_curves(law.compute(sizes, t), law.risk(sizes, t), points=40)
    kept = found.interior & (found.compute > 1e5) & (found.compute < 1e9)
    assert kept.sum() > 10
    truth = np.asarray(compute_frontier(law, found.compute[kept]).risk)
    assert np.all(found.loss[kept] > truth * (1 - 1e-9)) and np.max(found.loss[kept] / truth) < 1.003
    measured = frontier_exponent(found.compute[kept], found.loss[kept])
    assert measured.exponent == pytest.approx(frontier_exponent(found.compute[kept], truth).exponent, abs=2e-3)
    with pytest.raises(InputError):
        envelope_of_curves(np.ones((2, 3)), np.ones((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("a, b", [(1.8, 1.5), (2.8, 1.5)])
def test_random_features_at_finite_size(a, b):
    """Widths to 400: the exponent is within 0.1 of its limit, below it in phase II by more than its error; d* grows as predicted.

    The same frontier without mixing (W = the first N modes) would have the exponent (a-1)/(b+1) at any a, and the formula of the
    other phase is (a-1)/a or that: the measurement tells them apart.
    """
    found = measure(a, b, largest=400, sizes=7, seeds=24)
    law, exponent = compute_optimal(a, b), found["measured"].exponent
    assert found["limit"] == law.exponent and found["widths"][1] > 4 * found["widths"][0]
    assert abs(found["bias"]) < 0.1 and found["measured"].stderr < 0.03
    assert found["growth"] == pytest.approx(law.width, abs=0.06)
    other = (a - 1) / a if law.phase == "Ia" else (a - 1) / (b + 1)
    assert abs(exponent - other) > 4 * found["measured"].stderr
    if law.phase == "II":
        assert found["bias"] < -2 * found["measured"].stderr
