"""The coupled unknowns of an implicit step and their simplified Newton iteration.

u_i = pack(q(u_1 .. u_s))_i,      u: the entries of C (and R) that move, at the s stages
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from odescale.solve.collocation import after

NEWTON_ITERATIONS = 16


class Couplings(eqx.Module):
    """The entries of C (and R) that move, as a vector u, and the matrices that hold those that do not."""

    trained: tuple[bool, ...] = eqx.field(static=True)
    writes_back: bool = eqx.field(static=True)
    lam: Float[Array, " modes"]
    weights: Float[Array, " modes"]
    C: Float[Array, "P P"]
    R: Float[Array, "P P"]

    @classmethod
    def of(cls, problem: Any, q: Float[Array, "modes P P"]) -> Couplings:
        """Those of a `StructuredProblem` with the fixed entries of q."""
        lam, weights = (jnp.asarray(v, q.dtype) for v in (problem.eigenvalues, problem.weights))
        trained = tuple(bool(flag) for flag in np.asarray(problem.trained))
        C, R = (jnp.tensordot(measure, q, axes=1) for measure in (weights * lam, weights))
        return cls(trained, bool(problem.writes_back), lam, weights, C, R)

    @property
    def rows(self) -> Float[Array, "p P"]:
        """Picks the moving rows."""
        return jnp.asarray(np.eye(len(self.trained))[np.flatnonzero(self.trained)], self.lam.dtype)

    def pack(self, q: Float[Array, "modes *k P P"]) -> Float[Array, "*k u"]:
        """The unknowns of overlaps q."""
        i, j = self.entries
        measures = (self.weights * self.lam, self.weights) if self.writes_back else (self.weights * self.lam,)
        moving = q[..., i, j]
        return jnp.concatenate([jnp.tensordot(measure, moving, axes=1) for measure in measures], axis=-1)

    def unpack(self, u: Float[Array, " u"]) -> tuple[Float[Array, "P P"], Float[Array, "P P"]]:
        """(C, R); R is zero where it does not enter."""
        i, j = self.entries
        C = self.C.at[i, j].set(u[: i.size]).at[j, i].set(u[: i.size])
        if not self.writes_back:
            return C, jnp.zeros_like(C)
        return C, self.R.at[i, j].set(u[i.size :]).at[j, i].set(u[i.size :])

    def scale(self, u: Float[Array, " u"]) -> Float[Array, " u"]:
        """sqrt(C_ii C_jj) per entry, with a floor: what an entry of the couplings is to be compared with."""
        i, j = self.entries

        def per(M: Array) -> Array:
            d = jnp.sqrt(jnp.abs(jnp.diag(M)))
            d = jnp.maximum(d, 1e-3 * jnp.max(d) + jnp.finfo(d.dtype).tiny)
            return d[i] * d[j]

        C, R = self.unpack(u)
        return jnp.concatenate([per(C), per(R)]) if self.writes_back else per(C)

    @property
    def entries(self) -> tuple[Int[np.ndarray, " u"], Int[np.ndarray, " u"]]:
        """(i, j), i <= j, of the entries that move."""
        i, j = np.triu_indices(len(self.trained))
        moves = np.asarray(self.trained)
        keep = moves[i] | moves[j]
        return i[keep], j[keep]


class Newton(eqx.Module):
    """What a simplified Newton iteration ended with; `rate` is its slowest contraction."""

    inverse: Float[Array, "n n"]
    rate: Float[Array, ""]
    iterations: Int[Array, ""]
    jacobians: Int[Array, ""]
    converged: Bool[Array, ""]


def newton(
    residual: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    jacobian: Callable[[Float[Array, " n"]], Float[Array, "n n"]],
    guess: Float[Array, " n"],
    inverse: Float[Array, "n n"],
    refresh: Bool[Array, ""],
    scale: Float[Array, " n"],
    tolerance: Float[Array, ""],
) -> tuple[Float[Array, " n"], Newton]:
    """Solves residual(u) = 0 with a frozen inverse Jacobian, renewed at the guess when `refresh` or when it fails."""

    def proceed(carry):
        *_, n, _, done, bad = carry
        return ~done & ~bad & (n < 2 * NEWTON_ITERATIONS)

    def build(u):
        return jnp.linalg.inv(jacobian(u))

    def iterate(carry):
        u, inverse, renew, fresh, last, worst, since, n, jacobians, _, _ = carry
        inverse = lax.cond(renew, build, lambda _: inverse, u)
        fresh = fresh | renew
        move = -inverse @ residual(after(u, inverse))
        size = jnp.max(jnp.abs(move) / scale)
        first = since == 0
        rate = jnp.where(first, 0.5, size / last)
        # near rounding a ratio of two moves says nothing about the Jacobian
        worst = jnp.where(~first & (size > tolerance), jnp.maximum(worst, rate), worst)
        done = size * rate / jnp.maximum(1 - rate, 0.05) <= tolerance
        stuck = (~first & (rate > 0.9)) | (since >= NEWTON_ITERATIONS)
        bad = ~done & (~jnp.isfinite(size) | stuck | (size > 1e3))
        again = bad & ~fresh
        u = jnp.where(again, guess, u + move)
        since = jnp.where(again, 0, since + 1)
        worst = jnp.where(again, 0.0, worst)
        return u, inverse, again, fresh, size, worst, since, n + 1, jacobians + renew, done, bad & ~again

    zero, no = jnp.asarray(0, jnp.int32), jnp.asarray(False)
    inf = jnp.asarray(jnp.inf, guess.dtype)
    start = (guess, inverse, refresh, no, inf, jnp.zeros_like(inf), zero, zero, zero, no, no)
    u, inverse, _, _, _, worst, _, n, jacobians, done, _ = lax.while_loop(proceed, iterate, start)
    usable = jnp.all(jnp.isfinite(inverse))
    inverse = jnp.where(usable, inverse, jnp.eye(inverse.shape[0], dtype=inverse.dtype))
    return u, Newton(inverse, worst, n, jacobians, done & usable)


@jax.custom_jvp
def implicit(
    root: Float[Array, " n"], residual: Float[Array, " n"], jacobian: Float[Array, "n n"]
) -> Float[Array, " n"]:
    """The root, with the derivative `-jacobian^-1 d residual` of the implicit function theorem.

    `residual` at the root held fixed carries the dependence on everything else; it and the Jacobian are evaluated only
    where a derivative is taken.
    """
    return root


@implicit.defjvp
def _implicit_jvp(primals, tangents):
    root, _, jacobian = primals
    return root, -jnp.linalg.solve(jacobian, tangents[1])


def extrapolate(weights: Float[Array, "s n"], values: Float[Array, "n u"]) -> Float[Array, "s u"]:
    """The polynomial through past couplings at the next stages: where Newton starts."""
    return weights @ values
