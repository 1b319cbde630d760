"""The derivation of learning in context: its checks, exact moments, depth, closed forms; and terms spoilt one by one."""

from __future__ import annotations

import itertools
import math
import time

import diffrax
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import sympy

from derivations.in_context import checks
from derivations.in_context import script as in_context
from derivations.in_context.moments import CONTEXT, DIMENSION, RATIO, limit_moment, trace_average, wishart_moment
from odescale.generated import in_context as generated
from odescale.symbolic import run_checks

GAMMA = in_context.GAMMA


def test_numeric_checks_pass():
    results = run_checks(in_context.derive())
    assert set(results) == {"stream", "moments", "flow", "modes"}
    assert all(result.passed for result in results.values()), {k: str(v) for k, v in results.items()}


def test_the_checks_fail_on_spoilt_formulas():
    _, factor = in_context.stream()
    assert not checks.stream(factor.subs(in_context.DEPTH, in_context.DEPTH + 1)).passed
    assert not checks.moments({3: wishart_moment(3) - 4 / CONTEXT**2}).passed
    gammas = in_context.strengths(3, tied=False)
    flow = -sympy.diff(in_context.loss_in_moments(factor, 3, tied=False), gammas[0])
    assert not checks.descent(flow.subs(in_context.moment_symbol(6), 0), gammas).passed
    _, mode = in_context.modes(factor)
    assert not checks.mode(mode["flow"], mode["closed"].subs(in_context.TIME, in_context.TIME * 1.01)).passed


def test_moments_are_exact():
    for k in range(1, 13):
        narayana = sum(sympy.Rational(math.comb(k, r + 1) * math.comb(k, r), k) * RATIO**-r for r in range(k))
        assert sympy.expand(limit_moment(k) - narayana) == 0, k
    D, P = DIMENSION, CONTEXT
    assert sympy.simplify(wishart_moment(2) - (D + P + 1) / P) == 0
    assert sympy.simplify(wishart_moment(3) - (D**2 + 3 * D * P + 3 * D + P**2 + 3 * P + 4) / P**2) == 0
    # One dimension: chi-squared with P degrees of freedom, E S^k = P (P + 2) ... (P + 2k - 2). X and X^T share traces.
    for k in range(1, 9):
        trace = trace_average((k,)).as_expr(D, P)
        chi = sympy.Mul(*(P + 2 * j for j in range(k)))
        assert sympy.expand(trace.subs(D, 1) - chi) == 0
        assert sympy.expand(trace - trace.subs({D: P, P: D}, simultaneous=True)) == 0


@pytest.mark.parametrize("tied", [True, False])
def test_depth_eight_under_five_seconds_and_equal_to_brute_force(tied):
    start = time.process_time()
    _, factor = in_context.stream()
    loss = in_context.loss_in_moments(factor, 8, tied)
    flow = [-sympy.diff(loss, g) for g in dict.fromkeys(in_context.strengths(8, tied))]
    for k in range(17):
        wishart_moment(k)
    assert time.process_time() - start < 5.0
    # A point mass at lam = 0.6 has m_k = lam^k: the loss is the product itself.
    at = np.full(8, 1.3) if tied else np.linspace(0.4, 1.8, 8)
    values = {in_context.moment_symbol(k): 0.6**k for k in range(1, 17)}
    values |= {GAMMA: 1.3} if tied else dict(zip(in_context.strengths(8, False), at, strict=True))
    factors = 1 - at * 0.6 / 8
    slopes = 2 * np.prod(factors) ** 2 / factors * 0.6 / 8
    np.testing.assert_allclose(float(loss.subs(values)), np.prod(factors) ** 2, rtol=1e-9)
    np.testing.assert_allclose(
        [float(f.subs(values)) for f in flow], [slopes.sum()] if tied else slopes, rtol=1e-9
    )  # fmt: skip


def gauss(moments: list[int | sympy.Rational], count: int) -> tuple[jax.Array, jax.Array]:
    """Gauss nodes from moments in 80 digits: the roots of the orthogonal polynomial, and Vandermonde weights."""
    with mpmath.workdps(80):
        m = [mpmath.mpf(int(v.p)) / int(v.q) for v in map(sympy.Rational, moments)]
        hankel = mpmath.matrix(count, count)
        for i, j in itertools.product(range(count), repeat=2):
            hankel[i, j] = m[i + j]
        low = mpmath.lu_solve(hankel, mpmath.matrix([-m[count + i] for i in range(count)]))
        nodes = mpmath.polyroots([1, *(low[count - 1 - i] for i in range(count))], maxsteps=500, extraprec=400)
        powers = mpmath.matrix(count, count)
        for i, j in itertools.product(range(count), repeat=2):
            powers[i, j] = nodes[j] ** i
        weights = mpmath.lu_solve(powers, mpmath.matrix(m[:count]))
        return jnp.array([float(v) for v in nodes]), jnp.array([float(v) for v in weights])


@pytest.mark.parametrize("depth", [1, 4, 8])
def test_gauss_nodes_give_the_loss_and_flow_of_the_moments(depth):
    exact = [wishart_moment(k).subs({DIMENSION: 32, CONTEXT: 64}) for k in range(2 * depth + 2)]
    lam, weights = gauss(exact, depth + 1)
    # Strong enough for the highest moments to count.
    gamma = jnp.linspace(4.0, 8.0, depth)
    _, factor = in_context.stream()
    loss = in_context.loss_in_moments(factor, depth, tied=False)
    symbols = in_context.strengths(depth, tied=False)
    values = {g: sympy.Rational(float(v)) for g, v in zip(symbols, gamma, strict=True)}
    values |= {in_context.moment_symbol(k): exact[k] for k in range(1, 2 * depth + 1)}
    np.testing.assert_allclose(generated.loss(gamma, lam, weights), float(loss.subs(values)), rtol=1e-10)
    slope = -jax.grad(generated.loss)(gamma, lam, weights)
    np.testing.assert_allclose(generated.flow(gamma, lam, weights), slope, rtol=1e-10)
    # One node too few is not exact.
    short = generated.loss(gamma, *gauss(exact, depth))
    assert abs(float(short) / float(loss.subs(values)) - 1) > 1e-7


@pytest.mark.parametrize("depth", [1, 2, 4, 16])
def test_closed_forms_against_diffrax(depth):
    """Infinite context, isotropic: one node at 1, tied layers."""
    one = jnp.ones(1)
    times = jnp.linspace(0.0, 2.0, 9)
    solution = diffrax.diffeqsolve(
        # Tied: all strengths are one, which moves by the sum of the layers' slopes.
        diffrax.ODETerm(lambda t, g, _: jnp.full(depth, jnp.sum(generated.flow(g, one, one)))),
        diffrax.Dopri8(), 0.0, 2.0, 1e-3, jnp.zeros(depth), saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-12),
    )  # fmt: skip
    got = jax.vmap(lambda g: generated.loss(g, one, one))(solution.ys)
    closed = jnp.exp(-4 * times) if depth == 1 else generated.mode_loss(times, *jnp.array([1.0, 1.0, depth]))
    np.testing.assert_allclose(got, closed, rtol=1e-6)
    if depth > 1:
        handover = generated.hand_over(*jnp.array([0.5, 2.0, depth]))
        np.testing.assert_allclose(handover, depth / ((depth - 1) * 4 * 2 * 0.125), rtol=1e-14)
