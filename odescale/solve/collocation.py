"""Radau IIA collocation of linear equations, mode by mode: the tableau, the stage systems, the projection onto PSD.

    sum_j W_ij Z_j - h L_i Z_i = F_i,      W = A^-1,      A the Radau IIA matrix,      nodes c_1 < ... < c_s = 1

The solution polynomial through Z_0 at c = 0 and the stages Z_i satisfies `Z' = L Z + f` at every node. The rule is A- and
L-stable and stiffly accurate: of order 2 s - 1, and for constraints that fast modes impose (index 2) as well. L_i is
either a matrix per mode, or the Lyapunov operator S -> M S + S M^T on symmetric matrices.

Source: E. Hairer, G. Wanner, Solving Ordinary Differential Equations II, chapters IV.5, IV.8 (estimator), VII.4 (index 2).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int


class Tableau(NamedTuple):
    """Constants of the rule with s stages, NumPy.

    - `nodes` (s,): c. `inverse` (s, s): A^-1.
    - `gamma`, `weights` (s,): the embedded error `gamma h f(t_n) + sum_i weights_i (Z_i - Z_0)`, of order h^(s + 1).
    """

    nodes: Float[np.ndarray, " s"]
    inverse: Float[np.ndarray, "s s"]
    gamma: float
    weights: Float[np.ndarray, " s"]


@lru_cache
def radau(stages: int) -> Tableau:
    """The Radau IIA rule with 2 or more stages; 2 has order 3, 3 has order 5."""
    polynomial = np.poly1d([1.0, 0.0]) ** (stages - 1) * np.poly1d([1.0, -1.0]) ** stages
    nodes = np.sort(np.real(polynomial.deriv(stages - 1).roots))
    nodes[-1] = 1.0
    powers = nodes[:, None] ** np.arange(stages)
    A = (nodes[:, None] ** np.arange(1, stages + 1) / np.arange(1, stages + 1)) @ np.linalg.inv(powers)
    inverse = np.linalg.inv(A)
    gamma = float(np.linalg.det(A)) ** (1 / stages)
    # a rule with weight gamma at t_n and the rest at the stages, exact for one degree less
    moments = 1.0 / np.arange(1, stages + 1) - gamma * (np.arange(stages) == 0)
    embedded = np.linalg.solve(powers.T, moments)
    return Tableau(nodes, inverse, gamma, (embedded - A[-1]) @ inverse)


def lagrange(nodes: Float[np.ndarray, " n"], x: Float[Array, ""]) -> Float[Array, " n"]:
    """Weights at x of the polynomial through the nodes; exactly one and zeros at a node."""
    basis = []
    for i in range(nodes.size):
        others = jnp.asarray(np.delete(nodes, i), x.dtype)
        basis.append(jnp.prod((x - others) / (jnp.asarray(nodes[i], x.dtype) - others)))
    return jnp.stack(basis)


def stage_solve(
    matvec: Callable[[Float[Array, "modes s n r"]], Float[Array, "modes s n r"]],
    operators: Float[Array, "modes s n n"],
    rhs: Float[Array, "modes s n r"],
    inverse: Float[np.ndarray, "s s"],
) -> Float[Array, "modes s n r"]:
    """Z with `sum_j inverse_ij Z_j - operators_i Z_i = rhs_i`; `matvec` applies the operators and carries the derivatives.

    One LU factorisation per mode serves the solve, its derivatives in any number of directions, and the transposed ones.
    """
    modes, s, n, r = rhs.shape
    lu = jax.scipy.linalg.lu_factor(stage_matrix(lax.stop_gradient(operators), inverse))

    def back(transposed: int):
        def solve(_, b):
            return jax.scipy.linalg.lu_solve(lu, b.reshape(modes, s * n, r), trans=transposed).reshape(b.shape)

        return solve

    def system(Z):
        return jnp.einsum("ij,kjar->kiar", jnp.asarray(inverse, Z.dtype), Z) - matvec(Z)

    return lax.custom_linear_solve(system, rhs, back(0), back(1))


def after(value: Array, done: Array) -> Array:
    """`value`, not before `done` is there.

    XLA's CPU runtime runs independent operations at once, and its batched LAPACK calls then wait for one another's threads
    for ever when there are no more of those than calls (seen on two cores). A dependence of no weight puts them in a row.
    """
    first = lax.stop_gradient(done).ravel()[0]
    return value + 0.0 * jnp.where(jnp.isfinite(first), first, 0.0).astype(value.dtype)


def stage_matrix(
    operators: Float[Array, "modes s n n"], inverse: Float[np.ndarray, "s s"]
) -> Float[Array, "modes s*n s*n"]:
    """The matrix of the stage system of every mode."""
    modes, s, n, _ = operators.shape
    constant = np.einsum("ij,ab->iajb", inverse, np.eye(n)).reshape(s * n, s * n)
    diagonal = jnp.einsum("ij,kiab->kiajb", jnp.eye(s, dtype=operators.dtype), operators).reshape(modes, s * n, s * n)
    return jnp.asarray(constant, operators.dtype) - diagonal


def pack_symmetric(S: Float[Array, "... p p"]) -> Float[Array, "... m"]:
    """Upper triangle, row by row, m = p (p + 1)/2."""
    i, j = np.triu_indices(S.shape[-1])
    return S[..., i, j]


def unpack_symmetric(v: Float[Array, "... m"], p: int) -> Float[Array, "... p p"]:
    """The inverse of `pack_symmetric`."""
    return v[..., _symmetric_index(p)]


def lyapunov(M: Float[Array, "... p p"]) -> Float[Array, "... m m"]:
    """The matrix of S -> M S + S M^T on packed symmetric matrices."""
    p = M.shape[-1]
    first, second = _lyapunov_index(p)
    flat = M.reshape(*M.shape[:-2], p * p)
    padded = jnp.concatenate([flat, jnp.zeros_like(flat[..., :1])], axis=-1)
    return padded[..., first] + padded[..., second]


@lru_cache
def _symmetric_index(p: int) -> Int[np.ndarray, "p p"]:
    index = np.zeros((p, p), dtype=int)
    i, j = np.triu_indices(p)
    index[i, j] = index[j, i] = np.arange(i.size)
    return index


@lru_cache
def _lyapunov_index(p: int) -> tuple[Int[np.ndarray, "m m"], Int[np.ndarray, "m m"]]:
    """Where the two contributions to every entry stand in M.ravel(); p p stands for none."""
    index, m = _symmetric_index(p), p * (p + 1) // 2
    first, second = np.full((m, m), p * p), np.full((m, m), p * p)
    for row, (i, j) in enumerate(zip(*np.triu_indices(p), strict=True)):
        for a in range(p):
            first[row, index[a, j]] = i * p + a  # M_ia S_aj
            second[row, index[i, a]] = j * p + a  # S_ia M_ja
    return first, second


@jax.custom_jvp
def positive_part(S: Float[Array, "... p p"]) -> Float[Array, "... p p"]:
    """The nearest positive semi-definite matrix (Frobenius norm).

    The cone is convex, so the projection never moves a matrix away from a positive one: applied to the collocated noise
    content, whose exact value is positive, it cannot enlarge the error.
    """
    values, vectors = jnp.linalg.eigh(S)
    return (vectors * jnp.maximum(values, 0.0)[..., None, :]) @ jnp.swapaxes(vectors, -1, -2)


@positive_part.defjvp
def _positive_part_jvp(primals, tangents):
    # Loewner matrix of divided differences of max(x, 0): finite where eigenvalues meet, unlike the derivative of eigh.
    # At zero the derivative towards the positive side: noise that is not there yet can only grow.
    (S,), (dS,) = primals, tangents
    values, vectors = jnp.linalg.eigh(S)
    clipped = jnp.maximum(values, 0.0)
    gap = values[..., :, None] - values[..., None, :]
    rise = clipped[..., :, None] - clipped[..., None, :]
    same = jnp.where(values >= 0, 1.0, 0.0).astype(values.dtype)
    share = jnp.where(gap == 0, same[..., :, None], rise / jnp.where(gap == 0, 1.0, gap))
    turned = jnp.swapaxes(vectors, -1, -2)
    change = vectors @ (share * (turned @ dS @ vectors)) @ turned
    return (vectors * clipped[..., None, :]) @ turned, change
