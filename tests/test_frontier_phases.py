"""Compute-optimal phases: limits, boundaries, the sum of terms optimised numerically, and truncated modes."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odescale import InputError, OutsideTheoryError
from odescale.analysis.frontier.power_law_phases import asymptotic_terms
from odescale.frontier import compute_optimal, frontier_exponent, numeric_frontier, phase_map, truncated_modes


@pytest.mark.parametrize(
    "al, be, phase, exponent, width",
    [  # arXiv 2405.15074: phases Ia, II and III at equal cost per sample and parameter
        (1.0, 0.3, "Ia", (2 * 1.0 + 2 * 0.3 - 1) / (2 * 1.0 + 1), 1 / (2 * 1.0 + 1)),
        (1.0, 0.7, "II", (2 * 1.0 + 2 * 0.7 - 1) / (2 * (1.0 + 0.7)), 0.7 / (1.0 + 0.7)),
        (0.75, 1.2, "III", 1 - 1 / (4 * 0.75), 0.5),
    ],
)
def test_published_exponents(al, be, phase, exponent, width):
    found = compute_optimal(al=al, be=be)
    assert found.phase == phase and found.exponent == pytest.approx(exponent, rel=1e-14)
    assert found.width == pytest.approx(width, rel=1e-14) and found.width + found.time == pytest.approx(1.0)
    same = compute_optimal(a=2 * al + 2 * be, b=2 * al)
    assert same.exponent == pytest.approx(found.exponent, rel=1e-14)
    assert (same.al, same.be) == pytest.approx((al, be))


def test_exponents_are_continuous_across_the_boundaries():
    for b in (1.2, 2.0, 3.0):
        for edge in (b + 1, 2 * b):
            low, high = compute_optimal(edge - 1e-9, b), compute_optimal(edge + 1e-9, b)
            assert low.phase != high.phase and low.exponent == pytest.approx(high.exponent, abs=1e-8)
            assert low.margin < 1e-8


class SumOfTerms(eqx.Module):
    """sum of c_k d^-w_k t^-s_k, `powers` (k, 2)."""

    scales: jax.Array
    powers: jax.Array

    def __call__(self, width, time):
        return jnp.sum(self.scales * width ** -self.powers[:, 0] * time ** -self.powers[:, 1])


@pytest.mark.parametrize("a, b", [(1.5, 1.4), (2.2, 2.0), (2.9, 1.7), (3.6, 2.2), (3.6, 1.3), (4.5, 1.8)])
def test_phases_are_the_optimum_of_the_sum_of_terms(a, b):
    """sum of c_k d^-w_k t^-s_k minimised at C = d t, prefactors of order one, at C = 10^60 to 10^80."""
    terms = asymptotic_terms(a, b)
    scales = {"bias": 1.0, "noise": 0.7, "width": 1.4, "features": 0.5}
    powers = [terms.get(name, (0.0, 0.0)) for name in scales]
    risk = SumOfTerms(jnp.asarray([scales[name] if name in terms else 0.0 for name in scales]), jnp.asarray(powers))

    C = np.geomspace(1e60, 1e80, 7)
    found = numeric_frontier(risk, C, {"width": (1.0, 1e80), "time": (1.0, 1e80)}, {"width": 1.0, "time": 1.0})
    law = compute_optimal(a, b)
    p = frontier_exponent(C, found.risk)
    assert p.exponent == pytest.approx(law.exponent, abs=1e-3)
    grows = np.polyfit(np.log(C), np.log(np.asarray(found.size("width"))), 1)[0]
    assert grows == pytest.approx(law.width, abs=5e-3)


@pytest.mark.parametrize("a, b", [(1.6, 1.3), (2.0, 1.5)])
def test_truncated_modes(a, b):
    """The integral against the plain sum over modes, then its frontier: (a-1)/(b+1) within .005."""
    modes = truncated_modes(a, b)
    j = np.arange(1.0, 2e5 + 1)
    for N, t in ((100, 30.0), (3000, 5e3)):
        plain = (
            np.sum(j[:N] ** -a * np.exp(-2 * t * j[:N] ** -b))
            + np.sum(j[N:] ** -a)
            + (j[-1] + 0.5) ** (1 - a) / (a - 1)
        )
        assert float(modes(N, t)) == pytest.approx(plain, rel=1e-5)
    C = np.geomspace(1e10, 1e16, 15)
    found = numeric_frontier(modes, C, {"width": (64.0, 1e9), "time": (1.0, 1e14)}, {"width": 1.0, "time": 1.0})
    assert bool(found.valid.all()) and not bool(found.held.any())
    law, measured = compute_optimal(a, b), frontier_exponent(C, found.risk)
    assert law.phase == "Ia" and measured.exponent == pytest.approx(law.exponent, abs=5e-3)
    assert measured.power_law and measured.stderr < 1e-3
    grows = np.polyfit(np.log(C), np.log(np.asarray(found.size("width"))), 1)[0]
    assert grows == pytest.approx(law.width, abs=5e-3)
    # The time exponent of gradient flow at infinite width: (a-1)/b.
    t = np.geomspace(1e5, 1e7, 3)
    slope = -np.diff(np.log([float(modes(1e12, x)) for x in t])) / np.diff(np.log(t))
    np.testing.assert_allclose(slope, (a - 1) / b, atol=5e-3)


def test_truncated_modes_have_no_phase_II():
    """The negative case: without features that mix, a > b + 1 follows (a-1)/(b+1) still, far from phase II."""
    a, b = 2.9, 1.5
    C = np.geomspace(1e8, 1e13, 15)
    found = numeric_frontier(
        truncated_modes(a, b), C, {"width": (64.0, 1e7), "time": (1.0, 1e11)}, {"width": 1.0, "time": 1.0}
    )
    p = frontier_exponent(C, found.risk).exponent
    assert p == pytest.approx((a - 1) / (b + 1), abs=5e-3)
    assert abs(p - compute_optimal(a, b).exponent) > 0.05


def test_phase_map():
    a, b = np.linspace(0.5, 4.0, 8), np.array([0.8, 1.2, 2.0])
    p, which = phase_map(a, b)
    assert p.shape == (3, 8) and np.isnan(p[0]).all() and np.isnan(p[:, 0]).all()
    for i in (1, 2):
        for k, value in enumerate(a):
            if value > 1:
                law = compute_optimal(value, b[i])
                assert p[i, k] == pytest.approx(law.exponent) and ("Ia", "II", "III")[int(which[i, k])] == law.phase


def test_outside_and_bad_input():
    for a, b in ((2.0, 1.0), (2.0, 0.5), (1.0, 2.0), (0.5, 1.5)):
        with pytest.raises(OutsideTheoryError):
            compute_optimal(a, b)
    for given in (
        {"a": 2.0},
        {"a": 2.0, "b": 1.5, "al": 1.0},
        {"al": 1.0},
        {},
        {"a": np.nan, "b": 2.0},
        {"a": True, "b": 2.0},
    ):
        with pytest.raises(InputError):
            compute_optimal(**given)
    with pytest.raises(InputError):
        truncated_modes(0.9, 1.5)
