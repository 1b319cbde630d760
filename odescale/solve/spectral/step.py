r"""One Radau IIA step (three stages, order 5) of modes that are coupled through one number.

    de_k/dt = -a_k(t) e_k + b_k(t) P,     P = s^2 + sum_k e_k

At given P at the three stages every mode is a 3 x 3 system, solved by cofactors; what remains is one 3 x 3 system for P. No
iteration, no Jacobian of size d: some 100 operations per mode and step. L-stable; the fast modes may relax within a step.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.solve.collocation import radau

RULE = radau(3)
NODES = np.concatenate([[0.0], RULE.nodes])


@runtime_checkable
class RankOneProblem(Protocol):
    """What the step reads of a system; `Spectral` is one.

    - `residual_noise`: s^2. `rate(t)`: eta. `coefficients(eta)`: (a, b), each (..., modes), at learning rates eta (...).
    """

    @property
    def residual_noise(self) -> Array: ...

    def rate(self, t: Array) -> Array: ...

    def coefficients(self, eta: Array) -> tuple[Array, Array]: ...


class Step(NamedTuple):
    """e at the end; e at the stages; sum_k |error_k|; (E', E'') at the start (right) and at the end (left)."""

    end: Float[Array, " modes"]
    stages: Float[Array, "3 modes"]
    error: Float[Array, " modes"]
    slopes: Float[Array, "2 2"]


def _derivative_weights() -> np.ndarray:
    """(2, 4): the derivative at c = 0 and c = 1 of the cubic through the values at `NODES`."""
    powers = NODES[:, None] ** np.arange(4)
    slopes = np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    return slopes @ np.linalg.inv(powers)


_SLOPES = _derivative_weights()
_ROW_SUMS = RULE.inverse @ np.ones(3)


def rank_one_step(problem: RankOneProblem, t0: Array, t1: Array, e0: Float[Array, " modes"]) -> Step:
    """The step from t0 to t1; the learning rate may jump at either end, and is read from inside."""
    h = t1 - t0
    noise = problem.residual_noise
    times = (t0 + jnp.asarray(NODES) * h).at[-1].set(t1 * (1 - 2 * jnp.finfo(t1.dtype).eps))
    decay, force = problem.coefficients(jax.vmap(problem.rate)(times))
    x, d = h * decay[1:], h * force[1:]
    q = RULE.inverse
    n00, n11, n22 = q[0, 0] + x[0], q[1, 1] + x[1], q[2, 2] + x[2]
    # Adjugate: entry (i, j) of the inverse times the determinant.
    adjugate = (
        (n11 * n22 - q[1, 2] * q[2, 1], q[0, 2] * q[2, 1] - q[0, 1] * n22, q[0, 1] * q[1, 2] - q[0, 2] * n11),
        (q[1, 2] * q[2, 0] - q[1, 0] * n22, n00 * n22 - q[0, 2] * q[2, 0], q[0, 2] * q[1, 0] - n00 * q[1, 2]),
        (q[1, 0] * q[2, 1] - n11 * q[2, 0], q[0, 1] * q[2, 0] - n00 * q[2, 1], n00 * n11 - q[0, 1] * q[1, 0]),
    )
    inverse_det = 1 / (n00 * adjugate[0][0] + q[0, 1] * adjugate[1][0] + q[0, 2] * adjugate[2][0])
    free = [sum(adjugate[i][j] * _ROW_SUMS[j] for j in range(3)) * inverse_det * e0 for i in range(3)]
    driven = [[adjugate[i][j] * inverse_det * d[j] for j in range(3)] for i in range(3)]
    columns = jnp.stack([*free, *(entry for row in driven for entry in row)])
    sums = columns @ jnp.ones_like(e0)
    P = _solve_three(jnp.eye(3) - sums[3:].reshape(3, 3), noise + sums[:3])
    stages = columns[:3] + jnp.einsum("ijk,j->ik", columns[3:].reshape(3, 3, -1), P)
    end = stages[2]
    E0 = jnp.sum(e0)
    slope0 = -decay[0] * e0 + force[0] * (noise + E0)
    error = RULE.gamma * h * slope0 + jnp.asarray(RULE.weights) @ (stages - e0)
    # The slowest rate of the step: where the learning rate falls to zero, its first rate would damp what does not decay.
    error = error / (1 + RULE.gamma * h * jnp.min(decay, axis=0))
    # Slopes of E at the nodes: those of the collocation polynomial, not sum_k f_k, whose rounding the fast modes multiply.
    at_nodes = jnp.concatenate([jnp.sum(slope0)[None], jnp.asarray(RULE.inverse) @ (P - noise - E0) / h])
    second = jnp.asarray(_SLOPES) @ at_nodes / h
    return Step(end, stages, error, jnp.stack([at_nodes[jnp.array([0, 3])], second], axis=1))


def _solve_three(matrix: Float[Array, "3 3"], rhs: Float[Array, " 3"]) -> Float[Array, " 3"]:
    """x with matrix x = rhs, by cross products: no call into LAPACK for nine numbers that are close to the identity."""
    first, second, third = matrix.T
    normals = jnp.stack([jnp.cross(second, third), jnp.cross(third, first), jnp.cross(first, second)])
    return (normals @ rhs) / (first @ normals[0])
