"""Derived formulas by another way than deriving: enumeration of batches, sums over modes, Lagrange's conditions."""

from __future__ import annotations

from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest
import sympy

from odescale.analysis.frontier.compute import compute_frontier
from odescale.analysis.frontier.risk_law import risk_law
from odescale.analysis.frontier.tied import tied_frontier
from odescale.analysis.peaked.one_third import predict_law, stationary_spread
from odescale.analysis.peaked.schedules import sgd
from odescale.clock import GrowthSchedule, PowerSchedule
from odescale.generated import schedule, spectral
from odescale.symbolic.sgd import MEAN, SECOND, batch, batch_average, overlap_flow, trace


@pytest.mark.parametrize("size", [1, 2, 3])
def test_averages_over_batches_are_those_of_all_batches(size: int) -> None:
    """Two samples with gradients (1, 2) and (-.5, 1) in two rows: all batches of independent draws, N = 7."""
    samples = np.array([[1.0, 2.0], [-0.5, 1.0]])
    X = sympy.symbols("X_i X_j")
    expression = 3 * X[0] * X[1] + 2 * X[0] - X[1] + 5
    batches = [sum(samples[i] for i in drawn) for drawn in product(range(2), repeat=size)]
    expected = np.mean([3 * x * y + 2 * x - y + 5 for x, y in batches])
    mean, second = samples.mean(axis=0), np.mean(samples[:, 0] * samples[:, 1])
    found = batch_average(expression, X).subs(
        {MEAN[0]: 7 * mean[0], MEAN[1]: 7 * mean[1], SECOND: 7 * second, batch: size, trace: 7}
    )
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_decay_alone_shrinks_overlaps_at_twice_its_rate() -> None:
    """Two rows that SGD moves, no gradient: d(A_i A_j)/dt = -2 w A_i A_j; one of them frozen: -w."""
    flow = overlap_flow().flow.subs({MEAN[0]: 0, MEAN[1]: 0, SECOND: 0})
    numbers = {str(s): s for s in flow.free_symbols}
    A = {numbers["A_i"]: 2, numbers["A_j"]: 3}
    w = next(symbol for name, symbol in numbers.items() if name == "w")
    assert flow.subs(A | {numbers["s_i"]: 1, numbers["s_j"]: 1}) == -12 * w
    assert flow.subs(A | {numbers["s_i"]: 1, numbers["s_j"]: 0}) == -6 * w


def test_rates_of_small_modes_keep_their_digits() -> None:
    """a = -log(1 - g) and a/g on both sides of where the series takes over, against 40 digits."""
    for g in (1e-6, 3e-4, 9.9e-4, 1.01e-3, 0.1, 0.9):
        exact = -sympy.log(1 - sympy.Rational(g))
        rate, ratio = spectral.log_rate(jnp.asarray(g))
        assert float(rate) == pytest.approx(float(exact.evalf(40)), rel=1e-13)
        assert float(ratio) == pytest.approx(float((exact / sympy.Rational(g)).evalf(40)), rel=1e-13)


def test_exponents_of_power_law_spectra_are_the_slopes_of_their_sums() -> None:
    """lam_k = k^-b, e_k(0) = k^-a: sum e_k exp(-lam_k tau) ~ tau^-alpha; sum lam_k exp(-lam_k tau) ~ tau^-beta."""
    a, b = 2.8, 2.2
    rank = np.arange(1, 200_001.0)
    lam, tau = rank**-b, np.array([1e5, 2e5])
    for weights, exponent in ((rank**-a, schedule.bias_exponent(a, b)), (lam, schedule.memory_exponent(b))):  # type: ignore[arg-type]
        first, second = (np.sum(weights * np.exp(-lam * t)) for t in tau)
        assert -np.log(second / first) / np.log(2) == pytest.approx(float(exponent), rel=2e-3)


def test_sizes_on_a_frontier_meet_lagranges_conditions() -> None:
    """alpha_i A_i x_i^-alpha_i/q_i = mu for all sizes, product of x_i^q_i = C/c, and no neighbour on the budget is better."""
    A, alpha, q, c = np.array([20.0, 0.3]), np.array([0.4, 0.7]), np.array([2.0, 1.5]), 6.0
    law = risk_law(A, alpha, q, unit=c)
    C = np.array([1e4, 1e9])
    found = compute_frontier(law, C)
    for x, R, mu, budget in zip(*map(np.asarray, (found.sizes, found.risk, found.multiplier)), C, strict=True):
        np.testing.assert_allclose(alpha * A * x**-alpha / q, mu, rtol=1e-10)
        assert c * np.prod(x**q) == pytest.approx(budget, rel=1e-10)
        assert R == pytest.approx(np.sum(A * x**-alpha), rel=1e-10)
        for factor in (0.9, 1.1):
            moved = np.array([x[0] * factor, x[1] * factor ** (-q[0] / q[1])])
            assert np.sum(A * moved**-alpha) > R


def test_the_slower_of_two_terms_in_one_size_rules() -> None:
    """x^-.5 + 2 x^-.25 at C = x^3: R ~ C^(-.25/3) late, and S = 3/.25 says so."""
    law = risk_law((1.0, 2.0), (0.5, 0.25), (2.0, 1.0)).tie("data", "width")
    assert float(law.S) == pytest.approx(12.0)
    first, second = (np.exp(-0.5 * x) + 2 * np.exp(-0.25 * x) for x in (np.log(1e60) / 3, np.log(1e61) / 3))
    found = tied_frontier(law, [1e60, 1e61])
    np.testing.assert_allclose(found.risk, [first, second], rtol=1e-10)
    assert -np.log10(second / first) == pytest.approx(1 / 12, rel=1e-4)


def test_the_overlap_of_the_one_third_law_is_its_integral() -> None:
    """Two classes, no noise: D^3 = 3 int eta m (pi^2/12)/beta dt with m = 1/sqrt(pi), and L = m pi^2/(12 beta D)."""
    kappa = np.pi**2 / 12 / np.pi**0.5
    t = 1e6
    for g, h in ((0.0, 0.0), (0.3, 0.0), (0.4, 0.2)):
        system = sgd(2, 0.7, power=PowerSchedule(g), heat=GrowthSchedule(h), noise=0.0)
        law = predict_law(system, t)
        total = 0.7 * ((1 + t) ** (1 - g - h) - 1) / (1 - g - h)
        D = (1 + t) ** h * (3 * kappa * total) ** (1 / 3)
        assert law.overlap == pytest.approx(D, rel=1e-3)
        assert law.loss == pytest.approx(kappa / D, rel=1e-3)
        assert law.loss_exponent == pytest.approx((1 - g - h) / 3 + h, rel=1e-9)


def test_the_spread_at_rest_belongs_to_the_rate_over_the_batch() -> None:
    law = predict_law(sgd(3, 1.5, batch=3.0), 1e6)
    assert law.stationary_spread == pytest.approx(stationary_spread(0.5), rel=1e-6)
