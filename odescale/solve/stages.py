"""The parts of an implicit step of exact flows: the coupled unknowns, simplified Newton, the embedded error, interpolation.

u = pack(flow(u)),      u: the entries of C (and R) that move, upper student-student triangle and student-other block
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from odescale.solve.flow import Coefficients, Overlaps, join, propagate

GAMMA = 1.0 - 1.0 / np.sqrt(2.0)
NEWTON_ITERATIONS = 12


class Couplings(eqx.Module):
    """The entries of C (and R) that move, as one vector u, and the blocks that do not."""

    trained: tuple[bool, ...] = eqx.field(static=True)
    writes_back: bool = eqx.field(static=True)
    lam: Float[Array, " modes"]
    weights: Float[Array, " modes"]
    C_oo: Float[Array, "o o"]
    R_oo: Float[Array, "o o"]

    def pack(self, x: Overlaps) -> Float[Array, " u"]:
        p = x.ss.shape[0]
        upper = np.triu_indices(p)
        measures = (self.weights * self.lam, self.weights) if self.writes_back else (self.weights * self.lam,)
        return jnp.concatenate([jnp.concatenate([x.ss[upper] @ m, (x.so @ m).ravel()]) for m in measures])

    def unpack(self, u: Float[Array, " u"]) -> tuple[Float[Array, "P P"], Float[Array, "P P"]]:
        C = self._matrix(u, self.C_oo)
        if not self.writes_back:
            return C, jnp.zeros_like(C)
        return C, self._matrix(u[u.shape[0] // 2 :], self.R_oo)

    def scale(self, u: Float[Array, " u"]) -> Float[Array, " u"]:
        """sqrt(C_ii C_jj) per entry, with a floor: what an entry of the couplings is to be compared with."""

        def per(M: Array) -> Array:
            d = jnp.sqrt(jnp.abs(jnp.diag(M)))
            d = jnp.maximum(d, 1e-3 * jnp.max(d) + 1e-30)
            s, o = np.flatnonzero(self.trained), np.flatnonzero(~np.asarray(self.trained))
            table = jnp.outer(d, d)
            upper = np.triu_indices(s.size)
            return jnp.concatenate([table[np.ix_(s, s)][upper], table[np.ix_(s, o)].ravel()])

        C, R = self.unpack(u)
        return jnp.concatenate([per(C), per(R)]) if self.writes_back else per(C)

    def _matrix(self, u: Array, oo: Array) -> Array:
        p, o = sum(self.trained), len(self.trained) - sum(self.trained)
        rows, columns = np.triu_indices(p)
        half = p * (p + 1) // 2
        ss = jnp.zeros((p, p), u.dtype).at[rows, columns].set(u[:half]).at[columns, rows].set(u[:half])
        so = u[half : half + p * o].reshape(p, o)
        block = Overlaps(ss[..., None], so[..., None], oo[..., None])
        return join(block, self.trained)[0]


def newton(
    flow: Callable[[Array], Overlaps],
    pack: Callable[[Overlaps], Array],
    guess: Array,
    x: Overlaps,
    inverse: Array,
    scale: Array,
    tolerance: Array,
) -> tuple[Array, Overlaps, Int[Array, ""], Float[Array, ""], Bool[Array, ""]]:
    """Solves u = pack(flow(u)) with a frozen inverse Jacobian: (u, flow at it, iterations, contraction rate, converged)."""

    def proceed(carry):
        *_, n, done, bad = carry
        return ~done & ~bad & (n < NEWTON_ITERATIONS)

    def iterate(carry):
        u, _, last, worst, n, _, _ = carry
        end = flow(u)
        move = inverse @ (pack(end) - u)
        size = lax.stop_gradient(jnp.max(jnp.abs(move) / scale))
        rate = jnp.where(n == 0, 0.5, size / last)
        # near rounding a ratio of two moves says nothing about the Jacobian
        worst = jnp.where((n > 0) & (size > tolerance), jnp.maximum(worst, rate), worst)
        done = size * rate / jnp.maximum(1 - rate, 0.05) <= tolerance
        bad = ~jnp.isfinite(size) | ((n > 0) & (rate > 0.95) & ~done) | (size > 1e3)
        return u + move, end, size, worst, n + 1, done, bad

    inf = jnp.asarray(jnp.inf, guess.dtype)
    start = (guess, x, inf, jnp.zeros_like(inf), jnp.asarray(0, jnp.int32), jnp.asarray(False), jnp.asarray(False))
    u, end, _, worst, n, done, bad = lax.while_loop(proceed, iterate, start)
    return u, end, n, worst, done & ~bad


def lagrange(times: Array, t: Array) -> Array:
    """Weights at t of the quadratic through three times."""
    a, b, c = times[0], times[1], times[2]
    return jnp.stack(
        [
            (t - b) * (t - c) / ((a - b) * (a - c)),
            (t - a) * (t - c) / ((b - a) * (b - c)),
            (t - a) * (t - b) / ((c - a) * (c - b)),
        ]
    )


def extrapolate(times: Array, history: Array, t: Array) -> Array:
    """The quadratic through three past couplings, at t: where Newton starts."""
    return lagrange(times, t) @ history


def interpolate(K0: Coefficients, K1: Coefficients, K2: Coefficients, s: Array) -> Coefficients:
    """Coefficients at the fraction s of a step from those at its start, first stage and end."""
    w = lagrange(jnp.asarray([0.0, GAMMA, 1.0]), s)
    return jax.tree.map(lambda a, b, c: w[0] * a + w[1] * b + w[2] * c, K0, K1, K2)


def embedded(x: Overlaps, lam, K0: Coefficients, K1: Coefficients, K2: Coefficients, h, noisy) -> Overlaps:
    """The step with the coefficients integrated as a quadratic through start and stages; the end's are kept."""
    g = GAMMA
    w1 = 1 / (6 * g * (1 - g))
    w2 = (1 / 3 - g / 2) / (1 - g)
    w0 = 1 - w1 - w2
    K = jax.tree.map(lambda a, b, c: b + (w0 * a + (w1 + g - 1) * b + (w2 - g) * c) / (1 - g), K0, K1, K2)
    # a quadratic's bulge over the line through start and end has mean w1 of its height at the first stage
    bulge = K1.noise - (1 - g) * K0.noise - g * K2.noise
    middle = g * K0.noise + (1 - g) * K2.noise + 2 * w1 * bulge
    knots = jnp.stack([K0.noise, middle, K2.noise])
    return propagate(x, lam, both(K, K2), h * jnp.asarray([1 - g, g]), knots, noisy)


def both(first: Coefficients, second: Coefficients) -> Coefficients:
    """The two on a leading axis of segments, as `propagate` takes them."""
    return jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second)


def step_error(before: Overlaps, after: Overlaps, check: Overlaps, rtol: Array, atol: Array) -> Float[Array, ""]:
    """Largest difference over all modes and entries in units of atol + rtol sqrt(q_ii q_jj)."""

    def diagonal(block: Array) -> Array:
        return jnp.abs(jnp.diagonal(block, axis1=0, axis2=1)).T

    d_s = jnp.maximum(diagonal(before.ss), diagonal(after.ss))
    d_o = diagonal(after.oo)
    top = jnp.maximum(jnp.max(d_s, axis=0), jnp.max(d_o, axis=0, initial=0.0))
    # a row that starts at zero is measured against its mode, not against itself
    d_s, d_o = (jnp.sqrt(jnp.maximum(d, 1e-3 * top)) for d in (d_s, d_o))
    worst_ss = jnp.max(jnp.abs(after.ss - check.ss) / (atol + rtol * d_s[:, None] * d_s[None]))
    worst_so = jnp.max(jnp.abs(after.so - check.so) / (atol + rtol * d_s[:, None] * d_o[None]), initial=0.0)
    return jnp.maximum(worst_ss, worst_so)


def lowest_eigenvalue(q: Float[Array, "modes P P"]) -> Float[Array, ""]:
    """Smallest eigenvalue of any mode over the largest entry of that mode's diagonal."""
    q = lax.stop_gradient(q)
    top = jnp.max(jnp.diagonal(q, axis1=1, axis2=2), axis=1)
    return jnp.min(jnp.linalg.eigvalsh(q)[:, 0] / jnp.maximum(top, jnp.finfo(q.dtype).tiny))
