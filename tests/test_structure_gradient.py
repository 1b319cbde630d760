"""Derivatives through the structure-preserving integrator, reverse and forward, against finite differences."""

from __future__ import annotations

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_problem import golden
from oracles import oracle_loss, random_overlaps
from structured_problem import aligned_start, couplings, make_problem

from odescale.networks import build_architecture
from odescale.solve.collocation import radau
from odescale.solve.flow import Coefficients, congruence, drift_matrices, embed, factors, noise_content
from odescale.solve.jacobian import coupling_jacobian
from odescale.solve.stages import Couplings
from odescale.solve.structure import solve_structured
from odescale.spectra import power_law, source_overlaps


def differences(final, theta, width):
    """Central differences of fourth order, one direction after the other."""
    slopes = []
    for i in range(theta.size):
        unit = jnp.zeros_like(theta).at[i].set(width)
        near, far = (final(theta + k * unit) - final(theta - k * unit) for k in (1, 2))
        slopes.append((8 * near - far) / (12 * width))
    return np.asarray(slopes)


def golden_loss(theta, adjoint=None):
    """By the learning rate, the batch size and the scale of the start."""
    problem, q = golden(32, rows=1)
    changed = eqx.tree_at(lambda p: (p.learning_rate, p.batch), problem, (theta[0], theta[1]))
    y = solve_structured(changed, theta[2] * q, jnp.asarray([200.0]), rtol=1e-5, max_steps=512, adjoint=adjoint).ys
    return changed.loss(y[-1])


THETA = jnp.asarray([0.2, 2.0, 1.0])


@pytest.mark.slow
def test_reverse_derivative_of_the_golden_loss():
    value, gradient = jax.value_and_grad(golden_loss)(THETA)
    np.testing.assert_allclose(gradient, differences(golden_loss, THETA, 1e-3), rtol=1e-5)
    # without a floor the problem is linear in its start
    np.testing.assert_allclose(gradient[2], value, rtol=1e-6)


@pytest.mark.slow
def test_forward_derivative_is_the_reverse_one():
    ahead = jax.jvp(lambda x: golden_loss(x, diffrax.ForwardMode()), (THETA,), (jnp.asarray([1.0, 0.0, 0.0]),))[1]
    np.testing.assert_allclose(ahead, jax.grad(golden_loss)(THETA)[0], rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_reverse_derivative_of_the_attention_loss(noise):
    """By the learning rate and an initial overlap; at noise 0 by the noise as well, which is not yet there."""
    architecture = build_architecture(1, 1)
    spectrum = power_law(1.5, 1000, per_decade=2)
    q = jnp.asarray(source_overlaps(spectrum, aligned_start(1), source=0.5, capacity=1.5))
    first = jnp.zeros(6).at[0].set(1.0)

    @jax.jit
    def final(theta):
        problem = make_problem(spectrum, learning_rate=theta[0], noise=theta[2], batch=2.0, architecture=architecture)
        start = q * (1 + theta[1] * jnp.outer(first, first))
        y = solve_structured(problem, start, jnp.asarray([30.0]), rtol=1e-6, max_steps=512, stages=3).ys[-1]
        return oracle_loss(*couplings(problem, y), architecture)

    theta = jnp.asarray([0.5, 0.1, noise])
    gradient = jax.grad(final)(theta)
    np.testing.assert_allclose(gradient[:2], differences(final, theta, 1e-3)[:2], rtol=1e-5)
    # noise is not negative: one-sided differences of third order
    values = [final(theta.at[2].add(k * 0.01)) for k in range(4)]
    slope = (-11 * values[0] + 18 * values[1] - 9 * values[2] + 2 * values[3]) / 0.06
    np.testing.assert_allclose(gradient[2], slope, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [2, 3])
def test_jacobian_of_the_couplings_is_that_of_automatic_differentiation(stages):
    """With write-back rows: C and R, M1 and M0, signal and noise."""
    architecture = build_architecture(1, 1, value="rows")
    spectrum = power_law(1.2, 20, per_decade=1, trace=None)
    C0 = random_overlaps(jax.random.key(3), architecture.size, 0.5)
    q = jnp.asarray(source_overlaps(spectrum, np.asarray(C0), source=1.0, capacity=1.2))
    problem = make_problem(spectrum, architecture=architecture, learning_rate=0.2, noise=1.0)
    frame, rule, h = Couplings.of(problem, q), radau(stages), jnp.asarray(0.5)
    moving = np.flatnonzero(frame.trained)
    start = 0.1 * q[:, moving][:, :, moving]
    u0 = frame.pack(q)
    u = u0 * (1 + 0.01 * jnp.arange(stages)[:, None])

    def coefficients(v):
        M1, M0, N = problem.drift(0.0, *frame.unpack(v))
        return Coefficients(M1[moving], M0[moving], N[np.ix_(moving, moving)])

    def residual(v):
        K = jax.vmap(coefficients)(v)
        M = drift_matrices(frame.lam, K)
        S = noise_content(M[..., moving], frame.lam, K.noise, start, h, rule)
        return v - frame.pack(
            congruence(q[:, None], factors(M, frame.trained, h, rule), frame.rows) + embed(S, frame.rows)
        )

    @jax.jit
    def both(u, direction):
        slopes = jax.vmap(jax.jacfwd(coefficients))(u)
        J = coupling_jacobian(frame, q, start, jax.vmap(coefficients)(u), slopes, h, rule)
        return J @ direction.ravel(), jax.jvp(residual, (u,), (direction,))[1].ravel()

    ours, expected = both(u, jax.random.normal(jax.random.key(0), u.shape))
    np.testing.assert_allclose(ours, expected, atol=1e-12)
