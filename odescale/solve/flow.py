"""The exact flow of the overlaps of every mode while the coefficients are frozen, by Taylor series and doubling.

    dq_k/dt = M_k q_k + q_k M_k^T + N_k(t),    M_k = lam_k M1 + M0,    N_k(t) = lam_k N(t), linear in t,
    q_k(t + h) = E_k q_k(t) E_k^T + int_0^h exp(u M_k) N_k(t + h - u) exp(u M_k)^T du,    E_k = exp(h M_k)

A congruence plus an integral of positive semi-definite matrices: q stays positive semi-definite whatever the step.
Only trained rows move, so E = [[E_ss, E_st], [0, 1]] and the teacher block never changes. Arrays carry the modes last:
the small matrices multiply by elementwise operations that vectorise over the modes.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

TAYLOR_DEGREE = 12
TAYLOR_RADIUS = 0.125
MAX_DOUBLINGS = 64
"""h |M| up to 2^61: beyond any run; a larger or non-finite norm is not resolved and shows as a failed step."""


class Overlaps(eqx.Module):
    """Overlaps of all modes in blocks: s the p trained rows, o the other rows; modes last."""

    ss: Float[Array, "p p modes"]
    so: Float[Array, "p o modes"]
    oo: Float[Array, "o o modes"]


class Coefficients(eqx.Module):
    """M_k = lam_k (slope_s | slope_o) + (base_s | base_o) on trained rows, and the noise N of `N_k = lam_k N`."""

    slope_s: Float[Array, "p p"]
    slope_o: Float[Array, "p o"]
    base_s: Float[Array, "p p"]
    base_o: Float[Array, "p o"]
    noise: Float[Array, "p p"]


def split(q: Float[Array, "modes P P"], trained: tuple[bool, ...]) -> Overlaps:
    """Blocks of q by trained and other rows."""
    s, o = _rows(trained)
    q = jnp.moveaxis(q, 0, -1)
    return Overlaps(q[np.ix_(s, s)], q[np.ix_(s, o)], q[np.ix_(o, o)])


def join(x: Overlaps, trained: tuple[bool, ...]) -> Float[Array, "modes P P"]:
    """The inverse of `split`."""
    order = np.argsort(np.concatenate(_rows(trained)))
    q = jnp.block([[jnp.moveaxis(x.ss, -1, 0), jnp.moveaxis(x.so, -1, 0)],
                   [jnp.swapaxes(jnp.moveaxis(x.so, -1, 0), 1, 2), jnp.moveaxis(x.oo, -1, 0)]])  # fmt: skip
    return q[:, order][:, :, order]


def _rows(trained: tuple[bool, ...]) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " o"]]:
    mask = np.asarray(trained, dtype=bool)
    return np.flatnonzero(mask), np.flatnonzero(~mask)


def propagate(
    x: Overlaps,
    lam: Float[Array, " modes"],
    K: Coefficients,
    h: Float[Array, " segments"],
    noise: Float[Array, "segments+1 p p"],
    noisy: Bool[Array, ""],
) -> Overlaps:
    """Exact flow through consecutive segments of lengths h, with M frozen in each and the noise linear through its knots.

    `K` has a leading axis of segments; its own noise is not used. Noise knots must be positive semi-definite.
    """

    def through(x: Overlaps, segment) -> tuple[Overlaps, None]:
        K, h, start, end = segment
        return congruence(x, propagator(lam, K, h), noise_integral(lam, K, h, start, end, noisy)), None

    x, _ = lax.scan(through, x, (K, h, noise[:-1], noise[1:]))
    return x


def propagator(
    lam: Float[Array, " modes"], K: Coefficients, h: Float[Array, ""]
) -> tuple[Float[Array, "p p modes"], Float[Array, "p o modes"]]:
    """(E_ss - 1, E_so). E - 1 is carried, so that slow modes keep the digits of their small moves."""
    A, B = _exponents(lam, K, h)
    count, shrink = _doublings(A)
    F, S = _taylor(A * shrink, B * shrink)

    def double(FS):
        F, S = FS
        return 2 * F + mul(F, F), 2 * S + mul(F, S)

    return _repeat(double, count, (F, S))


def noise_integral(
    lam: Float[Array, " modes"],
    K: Coefficients,
    h: Float[Array, ""],
    start: Float[Array, "p p"],
    end: Float[Array, "p p"],
    noisy: Bool[Array, ""],
) -> Float[Array, "p p modes"]:
    """int_0^h exp(u M) lam (end + (start - end) u/h) exp(u M)^T du over the trained rows; zero when not `noisy`."""

    def integrate():
        A, B = _exponents(lam, K, h)
        count, shrink = _doublings(A)
        F, _ = _taylor(A * shrink, B * shrink)
        level, slope = (jnp.broadcast_to((h * N)[..., None], A.shape) * lam for N in (end, start - end))

        def lie(X):
            Y = mul(A * shrink, X)
            return Y + jnp.swapaxes(Y, 0, 1)

        def term(j, state):
            level0, slope0, slope1, level, slope, factor = state
            level0 = level0 + factor / (j + 1) * level
            slope0 = slope0 + factor / (j + 1) * slope
            slope1 = slope1 + factor * shrink / (j + 2) * slope
            return level0, slope0, slope1, lie(level), lie(slope), factor / (j + 1)

        zero = jnp.zeros_like(A)
        # rolled up: an unrolled series takes XLA four times as long to compile and runs no faster
        level0, slope0, slope1, *_ = lax.fori_loop(0, TAYLOR_DEGREE, term, (zero, zero, zero, level, slope, shrink))

        def double(state):
            F, level0, slope0, slope1, width = state
            return (
                2 * F + mul(F, F),
                level0 + sandwich(F, level0),
                slope0 + sandwich(F, slope0),
                slope1 + sandwich(F, slope1 + width * slope0),
                2 * width,
            )

        _, level0, _, slope1, _ = _repeat(double, count, (F, level0, slope0, slope1, shrink))
        return level0 + slope1

    return lax.cond(noisy, integrate, lambda: jnp.zeros((*end.shape, lam.shape[0]), lam.dtype))


def congruence(
    x: Overlaps, E: tuple[Float[Array, "p p modes"], Float[Array, "p o modes"]], added: Float[Array, "p p modes"]
) -> Overlaps:
    """E q E^T + added, with E given as (E_ss - 1, E_so)."""
    F, S = E
    moved = mul(S, x.oo)
    so = x.so + mul(F, x.so) + moved
    # E_ss x_ss E_ss^T + E_ss x_so E_so^T + (..)^T + E_so x_oo E_so^T, gathered so that the result is symmetric
    cross = mul(x.so + mul(F, x.so), jnp.swapaxes(S, 0, 1))
    ss = sandwich(F, x.ss) + cross + jnp.swapaxes(cross, 0, 1) + mul(moved, jnp.swapaxes(S, 0, 1)) + added
    return Overlaps(0.5 * (ss + jnp.swapaxes(ss, 0, 1)), so, x.oo)


def mul(X: Float[Array, "i j modes"], Y: Float[Array, "j k modes"]) -> Float[Array, "i k modes"]:
    """Matrix product per mode, modes last."""
    if X.shape[1] == 0:
        return jnp.zeros((X.shape[0], *Y.shape[1:]), X.dtype)
    total = X[:, 0, None] * Y[0][None]
    for j in range(1, X.shape[1]):
        total = total + X[:, j, None] * Y[j][None]
    return total


def sandwich(F: Float[Array, "p p modes"], X: Float[Array, "p p modes"]) -> Float[Array, "p p modes"]:
    """(1 + F) X (1 + F)^T per mode."""
    Y = X + mul(F, X)
    return Y + mul(Y, jnp.swapaxes(F, 0, 1))


def _exponents(lam, K: Coefficients, h):
    A = h * (K.slope_s[..., None] * lam + K.base_s[..., None])
    B = h * (K.slope_o[..., None] * lam + K.base_o[..., None])
    return A, B


def _doublings(A: Float[Array, "p p modes"]) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """How often to double, and the power of two that brings the row-sum norm of A below `TAYLOR_RADIUS`."""
    norm = lax.stop_gradient(jnp.max(jnp.sum(jnp.abs(A), axis=1)))
    norm = jnp.where(jnp.isfinite(norm), norm, 0.0)
    count = jnp.ceil(jnp.log2(jnp.maximum(norm / TAYLOR_RADIUS, 1.0)))
    count = jnp.minimum(count, MAX_DOUBLINGS).astype(jnp.int32)
    return count, jnp.exp2(-count.astype(A.dtype))


def _taylor(A, B):
    """(exp(A) - 1, phi(A) B) with phi(A) = (exp(A) - 1)/A, by Horner's rule."""
    identity = jnp.eye(A.shape[0], dtype=A.dtype)[..., None]
    phi = lax.fori_loop(
        0,
        TAYLOR_DEGREE - 2,
        lambda i, phi: identity + mul(A, phi) / (TAYLOR_DEGREE - 1 - i),
        identity + A / TAYLOR_DEGREE,
    )
    return mul(A, phi), mul(phi, B)


def _repeat(step: Callable, count: Int[Array, ""], state):
    # a traced count, bounded by MAX_DOUBLINGS: the passes that a small step does not need are not paid for
    return lax.fori_loop(0, count, lambda _, s: step(s), state)
