"""A bare problem for the structure-preserving solver, its loss, and its right-hand side written out once more."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from oracles import oracle_closure, oracle_functionals, oracle_loss

from odescale.networks import Architecture, build_architecture
from odescale.spectra import Spectrum


class Ramp(eqx.Module):
    """1 until `start`, then a straight line that meets .1 after .9 `length`: two kinks; start = inf is constant."""

    start: jax.Array
    length: jax.Array

    def __call__(self, t: jax.Array) -> jax.Array:
        return jnp.clip(1.0 - (t - self.start) / self.length, 0.1, 1.0)


class Problem(eqx.Module):
    eigenvalues: jax.Array
    weights: jax.Array
    learning_rate: jax.Array
    batch: jax.Array
    noise: jax.Array
    weight_decay: jax.Array
    architecture: Architecture
    schedule: Ramp
    trained: tuple[bool, ...] = eqx.field(static=True)
    writes_back: bool = eqx.field(static=True)

    def closure(self, C: jax.Array, R: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return oracle_closure(C, R, self.architecture)

    @property
    def kinks(self) -> jax.Array:
        return jnp.stack([self.schedule.start, self.schedule.start + 0.9 * self.schedule.length])

    def drift(self, t: jax.Array, C: jax.Array, R: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        G, H, V = self.closure(C, R)
        eta = self.learning_rate * self.schedule(t)
        decay = self.weight_decay * jnp.diag(jnp.asarray(self.architecture.trained_mask))
        return -eta * G, -eta * H - decay, self.noise * eta**2 / self.batch * V


def make_problem(
    spectrum: Spectrum,
    *,
    learning_rate: float = 0.5,
    batch: float = 8.0,
    noise: float = 0.0,
    weight_decay: float = 0.0,
    architecture: Architecture | None = None,
    ramp: tuple[float, float] = (1e9, 1.0),
) -> Problem:
    architecture = architecture or build_architecture(2, 1)
    arrays = (
        jnp.asarray(v) for v in (spectrum.eigenvalues, spectrum.weights, learning_rate, batch, noise, weight_decay)
    )
    schedule = Ramp(jnp.asarray(ramp[0]), jnp.asarray(ramp[1]))
    return Problem(*arrays, architecture, schedule, architecture.trained, architecture.writes_back)


def couplings(problem: Problem, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    w = problem.weights
    return jnp.einsum("k,kij->ij", w * problem.eigenvalues, q), jnp.einsum("k,kij->ij", w, q)


def losses(problem: Problem, ys: jax.Array) -> np.ndarray:
    return np.asarray(jax.vmap(lambda q: oracle_loss(*couplings(problem, q), problem.architecture))(ys))


def vector_field(t: jax.Array, q: jax.Array, problem: Problem) -> jax.Array:
    G, H, V = problem.closure(*couplings(problem, q))
    eta = problem.learning_rate * problem.schedule(t)
    lam = problem.eigenvalues[:, None, None]
    S = jnp.diag(jnp.asarray(problem.architecture.trained_mask))
    M = -eta * (lam * G + H) - problem.weight_decay * S
    return M @ q + q @ jnp.swapaxes(M, 1, 2) + problem.noise * eta**2 / problem.batch * lam * V


def clock_formula(problem: Problem, ts: np.ndarray, ys: jax.Array) -> np.ndarray:
    """1/2 sum w lam (b_t^T q(0) b_t) exp(-2 eta lam theta), theta = int |S a|^2 dt, along a solution from ys[0] at t = 0."""

    def functionals(q):
        C, R = couplings(problem, q)
        student = oracle_functionals(C, R, problem.architecture.student)[0]
        return student, student - oracle_functionals(C, R, problem.architecture.teacher)[0]

    a, b = (np.asarray(v) for v in jax.vmap(functionals)(ys))
    c = np.sum((a * problem.architecture.trained_mask) ** 2, axis=1)
    # the trapezium in log t from the second point on: c is smooth there
    theta = np.concatenate([[0.0, c[0] * ts[1]], np.diff(np.log(ts[1:])) * 0.5 * ((c * ts)[1:-1] + (c * ts)[2:])])
    lam = np.asarray(problem.eigenvalues)
    risk = np.asarray(problem.weights) * lam * np.einsum("ni,kij,nj->nk", b, np.asarray(ys[0]), b)
    rate = 2 * float(problem.learning_rate) * lam
    return 0.5 * np.sum(risk * np.exp(-rate * np.cumsum(theta)[:, None]), axis=1)


def aligned_start(
    depth: int = 2, *, attention: float = 0.5, correlation: float = 0.5, overlap: float = 0.5, size: float = 1.0
) -> Float[np.ndarray, "P P"]:
    """C0 for a student and a teacher of `depth` one-head layers and one readout each, all of unit role.

    Teacher rows (q_l*, k_l*, r*): r* has variance 1; q_l*, k_l* have variance `attention` and correlate with r* by
    `correlation` and not otherwise among themselves, so that every layer's attention changes the function. The student's row i is

        size * (overlap * teacher row i + sqrt(1 - overlap^2) * independent row of the same variance).

    **Arguments**

    - `depth`: number of layers; rows come as q0, k0, q1, k1, ..., r, then the same of the teacher, P = 2 (2 depth + 1).
    - `attention`: variance of the teacher's query and key fields, > 0.
    - `correlation`: of q_l*, k_l* with r*, in (-1, 1).
    - `overlap`: student-teacher correlation at the start, in [-1, 1].
    - `size`: student's standard deviation over the teacher's, > 0.
    """
    p = 2 * depth + 1
    loading = np.full(p, correlation)
    loading[-1] = 1.0
    shape = np.outer(loading, loading)
    np.fill_diagonal(shape, 1.0)
    scale = np.full(p, np.sqrt(attention))
    scale[-1] = 1.0
    teacher = scale[:, None] * shape * scale
    cross = size * overlap * teacher
    student = size**2 * (overlap**2 * teacher + (1 - overlap**2) * np.diag(np.diag(teacher)))
    return np.block([[student, cross], [cross.T, teacher]])
