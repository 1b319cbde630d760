"""The golden problem of one-pass SGD as a `StructuredProblem`, and its exact solution by one eigendecomposition.

    d rho_j/dt = -2 eta lam_j rho_j + (eta^2/B) lam_j P,   P = sum_j lam_j rho_j,   lam_j = j^-1.5, rho_j(0) = j^-.5

One unit of t is one SGD step. `rows` = 1 carries the difference student - teacher; `rows` = 2 carries both, with
M1 = -eta [[1, -1], [0, 0]] and P = (1, -1) C (1, -1)^T.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float


class Golden(eqx.Module):
    eigenvalues: jax.Array
    weights: jax.Array
    learning_rate: jax.Array
    batch: jax.Array
    rows: int = eqx.field(static=True)
    writes_back: bool = eqx.field(static=True, default=False)
    kinks: tuple[float, ...] = eqx.field(static=True, default=())

    @property
    def trained(self) -> tuple[bool, ...]:
        return (True,) if self.rows == 1 else (True, False)

    @property
    def error(self) -> jax.Array:
        return jnp.asarray([1.0]) if self.rows == 1 else jnp.asarray([1.0, -1.0])

    def drift(self, t: jax.Array, C: jax.Array, R: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        student = jnp.zeros(self.rows).at[0].set(1.0)
        population = self.error @ C @ self.error
        noise = self.learning_rate**2 / self.batch * population
        slope = -self.learning_rate * jnp.outer(student, self.error)
        return slope, jnp.zeros_like(C), noise * jnp.outer(student, student)

    def excess(self, q: jax.Array) -> jax.Array:
        """rho_j (..., d)."""
        return jnp.einsum("i,...ij,j->...", self.error, q, self.error)

    def loss(self, q: jax.Array) -> jax.Array:
        """P."""
        return self.excess(q) @ (self.weights * self.eigenvalues)


def golden(dimension: int = 1024, *, rows: int = 1, batch: float = 1.0) -> tuple[Golden, jax.Array]:
    """The problem and its start: the student of `rows` = 2 starts at zero."""
    j = jnp.arange(1.0, dimension + 1)
    lam = j**-1.5
    problem = Golden(lam, jnp.ones_like(lam), 0.5 / jnp.sum(lam), jnp.asarray(batch), rows)
    last = jnp.zeros((rows, rows)).at[-1, -1].set(1.0)
    return problem, j[:, None, None] ** -0.5 * last


def exact(problem: Golden, rho: np.ndarray, ts: np.ndarray) -> Float[np.ndarray, "n d"]:
    """rho_j(t): the matrix -2 eta diag(lam) + (eta^2/B) lam lam^T is symmetric."""
    lam, eta = np.asarray(problem.eigenvalues), float(problem.learning_rate)
    matrix = np.diag(-2 * eta * lam) + eta**2 / float(problem.batch) * np.outer(lam, lam)
    values, vectors = scipy.linalg.eigh(matrix)
    return (np.exp(np.outer(ts, values)) * (rho @ vectors)) @ vectors.T
