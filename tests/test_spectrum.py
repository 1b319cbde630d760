"""Spectra: what a bin conserves, the effective dimension, and the source condition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import zeta
from structured_problem import aligned_start

from odescale import InputError
from odescale.spectra import isotropic, listed, power_law, source_overlaps
from odescale.systems.spectrum import power_sums, source_profile


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.5, 2.5])
def test_power_sums_equal_the_sum_term_by_term(exponent):
    edges = np.array([1, 2, 7, 40, 44, 500, 20_000])
    direct = [
        np.sum(np.arange(a, b, dtype=np.longdouble) ** -exponent) for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]
    np.testing.assert_allclose(power_sums(exponent, edges), np.asarray(direct, dtype=float), rtol=1e-14)


@pytest.mark.parametrize("trace", [1.0, None])
def test_binned_power_law_conserves_count_trace_and_squares(trace):
    a, d = 1.5, 30_000
    spectrum = power_law(a, d, trace=trace)
    lam = np.arange(1, d + 1.0) ** -a
    lam *= (1.0 if trace else d) / lam.sum()
    assert spectrum.modes < 100
    assert spectrum.dimension == d
    assert abs(np.sum(spectrum.weights * spectrum.eigenvalues) - 1) < 1e-14
    np.testing.assert_allclose(np.sum(spectrum.multiplicity * spectrum.eigenvalues), lam.sum(), rtol=1e-14)
    np.testing.assert_allclose(spectrum.effective_dimension, lam.sum() ** 2 / np.sum(lam**2), rtol=1e-13)
    first = np.concatenate([[0], np.cumsum(spectrum.multiplicity)]).astype(int)
    sums = np.array([lam[i:j].sum() for i, j in zip(first[:-1], first[1:], strict=True)])
    np.testing.assert_allclose(spectrum.multiplicity * spectrum.eigenvalues, sums, rtol=1e-12)


def test_effective_dimension_never_exceeds_its_limit():
    # lam ~ k^-1.2: 12.4 at d = 500, 15.8 at d = 5000, 23.9 in the limit
    assert abs(power_law(1.2, 500).effective_dimension - 12.4) < 0.05
    assert abs(power_law(1.2, 5000).effective_dimension - 15.8) < 0.05
    assert power_law(1.2, 1e15).effective_dimension < zeta(1.2) ** 2 / zeta(2.4) < 23.95


def test_isotropic_and_listed():
    one = isotropic(300)
    assert (one.modes, one.dimension, one.trace, one.effective_dimension) == (1, 300, 300, 300)
    spectrum = listed([1.0, 3.0, 2.0])
    np.testing.assert_array_equal(spectrum.eigenvalues, [3, 2, 1])
    np.testing.assert_allclose(spectrum.weights, 1 / 6)
    assert spectrum.trace == 6


def test_source_profile_is_the_exact_sum_over_every_bin():
    s, a, d = 0.5, 1.5, 5000
    spectrum = power_law(a, d)
    risk = np.arange(1, d + 1.0) ** (-s * a - 1)
    risk /= risk.sum()
    first = np.concatenate([[0], np.cumsum(spectrum.multiplicity)]).astype(int)
    sums = np.array([risk[i:j].sum() for i, j in zip(first[:-1], first[1:], strict=True)])
    g = source_profile(spectrum, s, a)
    np.testing.assert_allclose(spectrum.weights * spectrum.eigenvalues * g, sums, rtol=1e-12)


def test_source_overlaps_start_with_the_covariance_asked_for():
    spectrum, C0 = power_law(1.5, 1e8), aligned_start(2)
    q = source_overlaps(spectrum, C0, source=0.5, capacity=1.5)
    assert q.shape == (spectrum.modes, 10, 10)
    np.testing.assert_allclose(np.einsum("k,kij->ij", spectrum.weights * spectrum.eigenvalues, q), C0, atol=1e-14)
    assert np.linalg.eigvalsh(q).min() > 0
    # correlation .5 between r* and k*: the teacher's attention does something
    assert abs(C0[9, 6] - 0.5 * np.sqrt(0.5)) < 1e-15


@pytest.mark.parametrize(
    "call",
    [
        lambda: power_law(-1.0, 100),
        lambda: power_law(1.5, 10.5),
        lambda: power_law(1.5, np.nan),
        lambda: power_law(1.5, 100, per_decade=0),
        lambda: isotropic(0),
        lambda: listed([1.0, -1.0]),
        lambda: listed([]),
        lambda: source_profile(power_law(1.5, 10), 0.0, 1.5),
        lambda: source_overlaps(power_law(1.5, 10), np.diag([1.0, -1.0]), source=0.5, capacity=1.5),
        lambda: source_overlaps(power_law(1.5, 10), np.full((2, 2), np.nan), source=0.5, capacity=1.5),
    ],
)
def test_bad_input_is_one_line(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
