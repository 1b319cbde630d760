"""Softmax expectations by the race of clocks, against direct quadrature, sampling, order statistics and limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from odescale.expectations.margin import MARGIN_LOSSES, margin_moments
from odescale.expectations.softmax_race import (
    Clocks,
    defeat,
    disagreement,
    disagreement_table,
    largest_field,
    race_integrals,
    softmax_race,
)


def two_class(integrand, s: float) -> float:
    """E f(|u|), u ~ N(0, 2) the margin of two standard normals, by scipy."""
    reach = min(30.0, 60 / s)
    return quad(lambda u: integrand(u) * np.exp(-u * u / 4) / np.sqrt(np.pi), 0, reach, epsabs=1e-15, epsrel=1e-12)[0]


@pytest.mark.parametrize("s", [0.05, 0.7, 3.0, 40.0, 2e3])
def test_two_classes_against_direct_quadrature(s):
    """The closure of K = 2 to 1e-9: m - Phi(s), H(s), the aligned loss and Phi'."""
    race = softmax_race(2)
    gap = two_class(lambda u: u / (1 + np.exp(s * u)), s)
    loss = two_class(lambda u: np.log1p(np.exp(-s * u)), s)
    response = two_class(lambda u: 2 / ((1 + np.exp(s * u)) * (1 + np.exp(-s * u))), s)
    curvature = two_class(lambda u: u**2 / ((1 + np.exp(s * u)) * (1 + np.exp(-s * u))), s)
    np.testing.assert_allclose(race.gap(s), gap, rtol=1e-9)
    np.testing.assert_allclose(race.aligned_loss(s), loss, rtol=1e-9)
    np.testing.assert_allclose(race.response(s), response, rtol=1e-9)
    np.testing.assert_allclose(race.curvature(s), curvature, rtol=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 10, 128, 100_000])
def test_density_of_the_top_gap_is_the_largest_field(classes):
    """rho_K(0) = K (K - 1) int phi^2 Phi^(K-2) equals m_K = K int x phi Phi^(K-1), to 1e-8 (Stein)."""
    from scipy.special import log_ndtr

    def integrand(x):
        return classes * x * np.exp(-0.5 * x * x + (classes - 1) * log_ndtr(x)) / np.sqrt(2 * np.pi)

    mean = quad(integrand, -9, 12, epsabs=1e-14, epsrel=1e-12, points=[0.0, 2.0, 4.0, 6.0])[0]
    assert abs(largest_field(classes) / mean - 1) < 1e-8


def test_largest_field_of_two_and_three():
    np.testing.assert_allclose(largest_field(2), 1 / np.sqrt(np.pi), rtol=1e-13)
    np.testing.assert_allclose(largest_field(3), 1.5 / np.sqrt(np.pi), rtol=1e-13)


@pytest.mark.parametrize("classes", [3, 128, 100_000])
def test_tables_against_their_integrals_between_the_nodes(classes):
    race = softmax_race(classes)
    for s in np.exp(np.random.default_rng(3).uniform(np.log(1e-2), np.log(1e6), 8)):
        gap, loss = race_integrals(s, classes)
        np.testing.assert_allclose(race.gap(s), gap, rtol=1e-9)
        np.testing.assert_allclose(race.aligned_loss(s), loss, rtol=1e-9)
        # Phi = F' and Phi' = -(m - Phi)': the tables belong together.
        np.testing.assert_allclose(-jax.grad(race.aligned_loss)(s), race.gap(s), rtol=1e-7)
        np.testing.assert_allclose(-jax.grad(race.gap)(s), race.curvature(s), rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 10, 128])
def test_low_temperature_limit(classes):
    """m - Phi -> c/s^2, F - s m -> c/s with c = pi^2 m/12, the correction falling as 1/s (1/s^2 for two classes)."""
    race = softmax_race(classes)
    excess = [float(race.gap(s) * s**2 / race.c) - 1 for s in (1e3, 1e4)]
    assert abs(excess[1]) < 1e-3
    np.testing.assert_allclose(excess[0] / excess[1], 100 if classes == 2 else 10, rtol=0.02)


@pytest.mark.slow
def test_many_classes_against_sampling():
    """K = 128: H, F, C and G from 2e5 samples, within four standard errors."""
    K, D, spread, samples = 128, 4.0, 0.3, 200_000
    race, table = softmax_race(K), disagreement_table(K)
    s = np.sqrt(D**2 + spread)
    rng = np.random.default_rng(11)
    sums = np.zeros((4, 2))
    for _ in range(20):
        z = rng.standard_normal((samples // 20, K))
        fields = D * z + np.sqrt(spread) * rng.standard_normal(z.shape)
        top, rows = z.argmax(1), np.arange(z.shape[0])
        peak = fields.max(1)
        p = np.exp(fields - peak[:, None])
        log_sum = peak + np.log(p.sum(1))
        p /= p.sum(1, keepdims=True)
        label = np.zeros_like(p)
        label[rows, top] = 1
        values = (1 - (p**2).sum(1), log_sum - fields[rows, top], 1 - p[rows, top], ((p - label) ** 2).sum(1))
        values = (*values[:3], values[3])
        sums += [[v.sum(), (v**2).sum()] for v in values]
    mean = sums[:, 0] / samples
    stderr = np.sqrt((sums[:, 1] / samples - mean**2) / samples)
    H, U = float(race.response(s)), float(table(D, spread))
    loss = float(race.aligned_loss(s) + (s - D) * race.m)
    z = (np.array([H, loss, U, 2 * U - H]) - mean) / stderr
    assert np.abs(z).max() < 4, z


@pytest.mark.parametrize("classes", [3, 128])
def test_error_of_two_correlated_rankings(classes):
    """P(argmax z != argmax(z + r xi)): sampling, and m r/sqrt(pi) at small r; 1 - 1/K at large r."""
    race = softmax_race(classes)
    rng = np.random.default_rng(5)
    z = rng.standard_normal((40_000, classes))
    for ratio in (0.1, 1.0):
        differ = z.argmax(1) != (z + ratio * rng.standard_normal(z.shape)).argmax(1)
        assert abs(differ.mean() - race.error(ratio)) < 4 * differ.std() / 200
    np.testing.assert_allclose(race.error(1e-6) / 1e-6, race.m / np.sqrt(np.pi), rtol=1e-5)
    np.testing.assert_allclose(race.error(np.inf), 1 - 1 / classes, rtol=1e-6)


def test_disagreement_of_hard_labels_between_the_nodes():
    table, rng = disagreement_table(3), np.random.default_rng(2)
    for D, deviation in zip(np.exp(rng.uniform(-2, 8, 8)), np.exp(rng.uniform(-3, 3, 8)), strict=True):
        np.testing.assert_allclose(table(D, deviation**2), defeat(D, Clocks.noisy(deviation), 3), rtol=1e-7)
    assert float(table(0.0, 0.0)) == pytest.approx(2 / 3, rel=1e-9)


def test_disagreement_of_soft_labels():
    """At the teacher itself U = H(b*); elsewhere sampling."""
    K, b = 3, 4.0
    H = float(softmax_race(K).response(b))
    np.testing.assert_allclose(disagreement(b, b, Clocks.noisy(0.0), K), H, atol=1e-7)
    rng = np.random.default_rng(8)
    z, xi = rng.standard_normal((2, 100_000, K))

    def softmax(x):
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    values = 1 - (softmax(b * z) * softmax(2.5 * z + 0.6 * xi)).sum(1)
    exact = disagreement(b, 2.5, Clocks.noisy(0.6), K)
    assert abs(exact - values.mean()) < 4 * values.std() / np.sqrt(values.size)


@pytest.mark.parametrize("loss", list(MARGIN_LOSSES))
def test_margin_moments_against_scipy(loss):
    """Drift, response and second moment of two classes by nested quadrature, in and out of the boundary layer."""
    from scipy.integrate import dblquad

    focusing = jnp.asarray(2.0)
    slope = jax.jit(jax.grad(lambda u: MARGIN_LOSSES[loss](u, focusing)))
    for D, spread in ((0.5, 0.3), (6.0, 0.1)):

        def mean(value, D=D, spread=spread):
            def integrand(xi, margin):
                u = D * margin + np.sqrt(2 * spread) * xi
                return value(float(slope(u)), margin) * np.exp(-(margin**2) / 4 - xi**2 / 2) / np.sqrt(2) / np.pi

            return dblquad(integrand, 0, 9, -6, 6, epsabs=3e-5, epsrel=3e-5)[0]

        moments = margin_moments(loss, jnp.asarray(D), jnp.asarray(spread), focusing)
        np.testing.assert_allclose(moments.drift, mean(lambda g, margin: -g * margin), rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(moments.second_moment, mean(lambda g, margin: 2 * g * g), rtol=2e-3, atol=1e-4)


def test_margin_moments_far_into_the_layer():
    """At D = 1e4 the nodes still follow the layer: D^2 drift is the boundary-layer constant of the loss."""
    moments = margin_moments("brier", jnp.asarray(1e4), jnp.asarray(0.0), jnp.asarray(2.0))
    # l = sigma(-u)^2: -int l'(u) u du = int l(u) du = ln 2 - 1/2, times the density 1/sqrt(pi) of |u*| at zero.
    np.testing.assert_allclose(moments.drift * 1e8, (np.log(2) - 0.5) / np.sqrt(np.pi), rtol=1e-6)


def test_margin_losses_have_the_slopes_of_the_derivation():
    """Automatic derivatives of the losses against the generated ones, which come from sympy."""
    from odescale.generated import peaked as formulas

    u, focusing = jnp.linspace(-4, 6, 11), jnp.asarray(2.5)
    derived = {
        "focal": formulas.focal_slopes(u, focusing), "brier": formulas.brier_slopes(u), "square": formulas.square_slopes(u)
    }  # fmt: skip
    for name, (value, first, second) in derived.items():

        def loss(x, name=name):
            return MARGIN_LOSSES[name](x, focusing)

        np.testing.assert_allclose(jax.vmap(loss)(u), value, rtol=1e-9)
        np.testing.assert_allclose(jax.vmap(jax.grad(loss))(u), first, rtol=1e-9)
        np.testing.assert_allclose(jax.vmap(jax.grad(jax.grad(loss)))(u), second, rtol=1e-8)
