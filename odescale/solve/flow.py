"""One collocated step of the overlaps of every mode, for given coefficients at its stages.

    dq/dt = M q + q M^T + lam N,      M = lam M1 + M0,      q = D + S        (per mode; D signal, S noise content)
    E' = M E, E(t_n) = 1:             D_i = E_i D_n E_i^T                    a congruence: positive semi-definite
    S' = M S + S M^T + lam N:         S_i collocated from S_n, then projected onto the positive matrices

A row of weights obeys W' = M W, so the congruence is Radau IIA collocation of the weights themselves. The noise content
is collocated as a solution in its own right and not as an integral over the step: slaved modes of S start on the
manifold that holds them, and nothing grows with lam h. Only the p trained rows move; `rows` (p, P) picks them.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.solve.collocation import (
    Tableau,
    after,
    lyapunov,
    pack_symmetric,
    stage_solve,
    unpack_symmetric,
)


class Coefficients(eqx.Module):
    """M1, M0 (moving rows) and N (moving rows and columns) at one or more times (leading axes)."""

    slope: Float[Array, "*t p P"]
    base: Float[Array, "*t p P"]
    noise: Float[Array, "*t p p"]


def drift_matrices(lam: Float[Array, " modes"], K: Coefficients) -> Float[Array, "modes *t p P"]:
    """lam M1 + M0 of every mode."""
    lam = lam.reshape(-1, *(1,) * K.slope.ndim)
    return lam * K.slope + K.base


def factors(
    M: Float[Array, "modes s p P"], trained: tuple[bool, ...], h: Float[Array, ""], rule: Tableau
) -> Float[Array, "modes s p P"]:
    """E_i - 1 on the moving rows. The difference is carried, so that slow modes keep the digits of their small moves."""
    own = h * M[..., np.flatnonzero(trained)]
    return stage_solve(lambda X: own @ X, own, h * M, rule.inverse)


def noise_content(
    M: Float[Array, "modes s p p"],
    lam: Float[Array, " modes"],
    N: Float[Array, "s p p"],
    start: Float[Array, "modes p p"],
    h: Float[Array, ""],
    rule: Tableau,
) -> Float[Array, "modes s p p"]:
    """S at the stages, before the projection."""
    p = M.shape[-1]

    def apply(v):
        half = M @ unpack_symmetric(v[..., 0], p)
        return h * pack_symmetric(half + jnp.swapaxes(half, -1, -2))[..., None]

    packed = stage_solve(apply, h * lyapunov(M), noise_source(lam, N, start, h, rule)[..., None], rule.inverse)
    return unpack_symmetric(packed[..., 0], p)


def noise_source(
    lam: Float[Array, " modes"],
    N: Float[Array, "s p p"],
    start: Float[Array, "modes p p"],
    h: Float[Array, ""],
    rule: Tableau,
) -> Float[Array, "modes s m"]:
    """Right-hand side of the stage equations of the noise content, packed."""
    first = jnp.asarray(rule.inverse.sum(1), lam.dtype)[:, None] * pack_symmetric(start)[:, None]
    return h * lam[:, None, None] * pack_symmetric(N) + first


def congruence(
    q: Float[Array, "*#k P P"], X: Float[Array, "*#k p P"], rows: Float[Array, "p P"]
) -> Float[Array, "*k P P"]:
    """(1 + X) q (1 + X)^T, with X on the moving rows; the block of the others is returned bit for bit."""
    moved = X @ q
    half = jnp.swapaxes(rows.T @ moved, -1, -2)
    cross = half + jnp.swapaxes(half, -1, -2)
    own = moved @ jnp.swapaxes(X, -1, -2)
    return q + cross + embed(0.5 * (own + jnp.swapaxes(own, -1, -2)), rows)


def embed(S: Float[Array, "*k p p"], rows: Float[Array, "p P"]) -> Float[Array, "*k P P"]:
    """S on the moving rows and columns, zero elsewhere."""
    return rows.T @ S @ rows


def embedded_error(
    D: Float[Array, "modes P P"],
    X: Float[Array, "modes s p P"],
    S: Float[Array, "modes s p p"],
    start: Float[Array, "modes p p"],
    M: Float[Array, "modes p P"],
    N: Float[Array, "p p"],
    lam: Float[Array, " modes"],
    h: Float[Array, ""],
    rows: Float[Array, "p P"],
    rule: Tableau,
) -> Float[Array, "modes P P"]:
    """Difference to the rule of order s that uses f(t_n) too, damped by (1 - gamma h L)^-1 where it is stiff.

    M (moving rows), N: coefficients at t_n. Of order h^(s + 1), one less than the step's own error.
    """
    p = M.shape[1]
    own = M @ rows.T
    weights = jnp.asarray(rule.weights, D.dtype)
    lever = rule.gamma * h
    one = np.ones((1, 1))

    right = lever * M + jnp.einsum("i,kipq->kpq", weights, X)
    filtered = stage_solve(lambda Z: lever * own[:, None] @ Z, lever * own[:, None], right[:, None], one)[:, 0]
    moved = filtered @ D
    half = jnp.swapaxes(rows.T @ (moved + moved @ jnp.swapaxes(rows.T @ X[:, -1], -1, -2)), -1, -2)
    error = half + jnp.swapaxes(half, -1, -2)

    def apply(v):
        product = lever * own[:, None] @ unpack_symmetric(v[..., 0], p)
        return pack_symmetric(product + jnp.swapaxes(product, -1, -2))[..., None]

    own = after(own, filtered)
    change = own @ start
    change = change + jnp.swapaxes(change, -1, -2) + lam[:, None, None] * N
    right = pack_symmetric(lever * change + jnp.einsum("i,kipq->kpq", weights, S - start[:, None]))
    damped = stage_solve(apply, lever * lyapunov(own)[:, None], right[:, None, :, None], one)[:, 0, :, 0]
    return error + embed(unpack_symmetric(damped, p), rows)
