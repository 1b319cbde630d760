r"""The closure of a mean-field theory: population loss, drift and noise as functions of the overlaps, by quadrature.

    L = E l,   Z = E[sum_t g_t z_t^T],   V = sum_ts rho_ts E[g_t g_s^T],   H = E[dl/dR + (dl/dR)^T],   g_t = dl/dphi_t
    phi_t = F z_t,   F F^T = C,   E[z_t z_s^T] = rho_ts I,   E[sum_t g_t phi_t^T] = Z F^T = G C,   G = Z F^+

Everything is in difference rows, `T C T^T` with T taking student - teacher of paired rows: where student and teacher meet,
C is singular in the plain rows and sums cancel; in difference rows small things stay small.
"""

from __future__ import annotations

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.expectations.nodes import Nodes
from odescale.expectations.over_nodes import over_nodes
from odescale.networks.teacher_student import TeacherStudent

PIVOT = 1e-8
"""Pivots of the factor below this share of a field's variance are taken as dependent directions: F F^T = C to PIVOT/4."""


class SignOfAverage(eqx.Module):
    """G, H, V of the gradient itself; `gain` (p,) of the sign in the average; `cross` (p, p): E sign(c_i) gradient_j given it."""

    G: Float[Array, "*R p P"]
    H: Float[Array, "*R p P"]
    V: Float[Array, "*R p p"]
    gain: Float[Array, "*R p"]
    cross: Float[Array, "*R p p"]


class StepOfAverage(eqx.Module):
    """`P` (p, p): mean of what multiplies an average; what drift (G, H) and noise V are more than with P, at rate 1."""

    P: Float[Array, "*R p p"]
    G: Float[Array, "*R p P"]
    H: Float[Array, "*R p P"]
    V: Float[Array, "*R p p"]


class Moments(eqx.Module):
    """L, D = E[sum_t g_t phi_t^T], G, H on the columns of the difference rows, V: rows of G, D, H, V are the p trained rows.

    With a leading axis of replicates where they come from several node sets. `of_average`, `of_step`: what signs and
    orthogonal factors of an average of gradients ask for too.
    """

    loss: Float[Array, "*R"]
    D: Float[Array, "*R p P"]
    G: Float[Array, "*R p P"]
    H: Float[Array, "*R p P"]
    V: Float[Array, "*R p p"]
    of_average: SignOfAverage | None = None
    of_step: StepOfAverage | None = None


class AbstractClosure(eqx.Module):
    """From overlaps in difference rows to `Moments`."""

    @property
    @abc.abstractmethod
    def replicates(self) -> int:
        """Number of independent node sets."""

    @abc.abstractmethod
    def moments(self, problem: TeacherStudent, C: Float[Array, "P P"], R: Float[Array, "P P"], replicate) -> Moments:
        """L, D, G, H, V at C = T A Sigma A^T T^T/N and R = T A A^T T^T/N, by the nodes of one replicate."""

    @abc.abstractmethod
    def loss(
        self, problem: TeacherStudent, C: Float[Array, "P P"], R: Float[Array, "P P"], replicate
    ) -> Float[Array, ""]:
        """L alone, by forward passes."""

    @abc.abstractmethod
    def estimate(self, values: Float[Array, "R ..."]) -> tuple[Array, Array]:
        """(value, half width of its 95 % interval) from one value per replicate."""


class Quadrature(AbstractClosure):
    """Expectations over fixed nodes; `chunk` nodes are evaluated at once, which bounds the memory and not the numbers.

    Nodes have T P + m dimensions: the fields of T tokens and the m normal numbers behind random labels.
    """

    nodes: Nodes
    chunk: int = eqx.field(static=True)

    @property
    def replicates(self) -> int:
        return self.nodes.replicates

    def moments(self, problem: TeacherStudent, C: Float[Array, "P P"], R: Float[Array, "P P"], replicate) -> Moments:
        root = factor(C, problem.trained)
        loss, Z, V, H = self._average(problem, root, R, replicate, gradients=True)
        G = solve_right(Z, root, problem.trained)
        # Not Z F^T: where C is singular its rounding may be negative, F F^T is not C there, and the error would grow.
        return Moments(loss, G @ C, G, H, V)

    def loss(
        self, problem: TeacherStudent, C: Float[Array, "P P"], R: Float[Array, "P P"], replicate
    ) -> Float[Array, ""]:
        return self._average(problem, factor(C, problem.trained), R, replicate, gradients=False)[0]

    def estimate(self, values: Float[Array, "R ..."]) -> tuple[Array, Array]:
        return self.nodes.mean(values), self.nodes.half_width(values)

    def _average(self, problem: TeacherStudent, root, R, replicate, *, gradients: bool) -> tuple[Array, ...]:
        points, weights = self.nodes.points[replicate], self.nodes.weights[replicate]
        dtype, T, P = root.dtype, problem.tokens, problem.size
        back = jnp.asarray(2 * np.eye(P) - problem.difference_basis(), dtype)  # difference rows -> plain rows
        plain_root, token_root = back @ root, jnp.asarray(problem.token_root, dtype)
        mixed = not np.array_equal(problem.token_root, np.eye(T))
        moved, both = problem.moved, problem.student.writes_back
        one = at_fields(problem, back @ R @ back.T, gradients=gradients)

        def add(total, block):
            nodes, w = block
            nodes = nodes.astype(dtype)
            z = nodes[: T * P].reshape(T, P, -1)
            if mixed:
                z = jnp.einsum("ts,sin->tin", token_root, z)
            values = over_nodes(one, jnp.einsum("ij,tjn->tin", plain_root, z), nodes[T * P :])
            new = [total[0] + values[0] @ w]
            if gradients:
                _, g, spread, *slope = values
                if mixed:
                    spread = jnp.einsum("st,sin->tin", token_root, spread)
                new.append(total[1] + _sum_of_products(w * g, z))
                new.append(total[2] + _sum_of_products(w * spread, spread))
                new.append(total[3] + (slope[0] @ w if both else 0.0))
            return tuple(new), None

        p = moved.size
        zeros = (jnp.zeros((), dtype),)
        if gradients:
            zeros += (jnp.zeros((p, P), dtype), jnp.zeros((p, p), dtype), jnp.zeros((P, P), dtype))
        blocks = points.shape[0] // self.chunk
        # The axis of nodes last (see over_nodes), all at once: within the loop the turn would be taken for every number read.
        turned = jnp.swapaxes(points.reshape(blocks, self.chunk, -1), 1, 2)
        split = (turned, weights.astype(dtype).reshape(blocks, self.chunk))
        with jax.default_matmul_precision("highest"):  # else an accelerator rounds products of tokens
            total, _ = jax.lax.scan(add, zeros, split)
        if not gradients:
            return total
        loss, Z, V, slope = total  # type: ignore[misc]
        # dl/dA_i = sum_j (dl/dR + dl/dR^T)_ij A_j/N, with the plain rows A_j in terms of the difference rows.
        return loss, Z, V, (slope + slope.T)[moved] @ back


def at_node(
    problem: TeacherStudent, root: Float[Array, "P P"], R: Float[Array, "P P"], *, gradients: bool, drawn: bool = False
) -> Callable[[Float[Array, " D"]], tuple[Array, ...]]:
    """The function of a node (T P + m,) that an average is taken of, at fields root z and overlaps R in difference rows.

    It returns (excess loss,), and with `gradients` also g (T, p), z (T, P), g' (T, p) with g'^T g' = sum_ts rho_ts g_t g_s^T for
    drawn labels, and where the student writes back dl/dR (P, P). `drawn`: the labels of g are drawn too, not averaged.
    """
    dtype = root.dtype
    T, P = problem.tokens, problem.size
    back = jnp.asarray(2 * np.eye(P) - problem.difference_basis(), dtype)
    plain_root, token_root = back @ root, jnp.asarray(problem.token_root, dtype)
    on_fields = at_fields(problem, back @ R @ back.T, gradients=gradients, drawn=drawn)

    def one(node: Float[Array, " D"]) -> tuple[Array, ...]:
        z = token_root @ node[: T * P].reshape(T, P)
        parts = on_fields(z @ plain_root.T, node[T * P :])
        if not gradients:
            return parts
        loss, g, noisy, *slope = parts
        return loss, g, z, token_root.T @ noisy, *slope

    return one


def at_fields(
    problem: TeacherStudent, R: Float[Array, "P P"], *, gradients: bool, drawn: bool = False
) -> Callable[[Float[Array, "T P"], Float[Array, " m"]], tuple[Array, ...]]:
    """The same of fields phi (T, P) and label normals (m,), at overlaps R in plain rows.

    It returns (excess loss,), and with `gradients` also g (T, p), that for drawn labels, and where the student writes back dl/dR.
    """
    moved, s = problem.moved, problem.student_columns

    def one(phi: Float[Array, "T P"], normals: Float[Array, " m"]) -> tuple[Array, ...]:
        f_teacher = problem.teacher.on_fields(*_of_teacher(problem, phi, R))

        def student(columns, overlaps):
            rho = jnp.asarray(problem.correlation, phi.dtype)
            return problem.student.on_fields(_with_columns(phi, moved, columns, s), overlaps[np.ix_(s, s)], rho)

        start = _columns(phi, moved)
        if not gradients:
            return (problem.loss.excess(student(start, R), f_teacher),)
        if problem.student.writes_back:
            f, pull = jax.vjp(student, start, R)
        else:
            f, pull = jax.vjp(lambda columns: student(columns, R), start)
        slopes = pull(jax.grad(problem.loss.mean)(f, f_teacher))
        g = noisy = slopes[0]
        # Labels are averaged in the drift and drawn in the noise.
        if problem.label_normals:
            (noisy, *more) = pull(jax.grad(problem.loss.sample)(f, f_teacher, normals))
            if drawn:
                slopes, g = (noisy, *more), noisy
        return (problem.loss.excess(f, f_teacher), g, noisy, *slopes[1:])

    return one


def _sum_of_products(a: Float[Array, "T p n"], b: Float[Array, "T P n"]) -> Float[Array, "p P"]:
    """sum_tn a_tin b_tjn, a product of matrices for every token: one over both axes would copy them first."""
    total = jnp.zeros((a.shape[1], b.shape[1]), a.dtype)
    for first, second in zip(a, b, strict=True):
        total = total + first @ second.T
    return total


def _columns(x: Float[Array, "T P"], which: np.ndarray) -> Float[Array, "T p"]:
    """x[:, which]; neighbours as a slice."""
    if np.array_equal(which, np.arange(which[0], which[0] + which.size)):
        return jax.lax.slice_in_dim(x, int(which[0]), int(which[-1]) + 1, axis=1)
    return jnp.stack([x[:, int(i)] for i in which], axis=1)


def _with_columns(
    x: Float[Array, "T P"], moved: np.ndarray, columns: Float[Array, "T p"], which: np.ndarray
) -> Float[Array, "T q"]:
    """Columns `which` of x, those among `moved` from `columns`."""
    if np.array_equal(which, moved):
        return columns
    place = {int(row): i for i, row in enumerate(moved)}
    return jnp.stack([columns[:, place[i]] if i in place else x[:, i] for i in map(int, which)], axis=1)


def _of_teacher(problem: TeacherStudent, phi: Array, R: Array) -> tuple[Array, Array, Array]:
    t = problem.teacher_columns
    return _columns(phi, t), R[np.ix_(t, t)], jnp.asarray(problem.correlation, phi.dtype)


def factor(C: Float[Array, "P P"], trained: tuple[bool, ...]) -> Float[Array, "P P"]:
    """F with F F^T = C up to `PIVOT`/4, smooth in C: Cholesky of the unit-diagonal matrix, rows that do not move first.

    Pivots below `PIVOT` go to zero linearly instead of as a square root: overlaps of rank below P, or positive only to
    rounding, have no Cholesky factor.
    """
    order = np.argsort(np.asarray(trained), kind="stable")
    scale = jnp.sqrt(jnp.maximum(jnp.diag(C), jnp.finfo(C.dtype).tiny))
    rest = (C / (scale[:, None] * scale))[order][:, order]
    below, smallest = jnp.arange(C.shape[0]), max(PIVOT, 100 * float(jnp.finfo(C.dtype).eps))
    columns = []
    for j in range(C.shape[0]):  # Cholesky, one column at a time
        column = jnp.where(below >= j, rest[:, j], 0.0) / jnp.sqrt(jnp.maximum(jnp.abs(rest[j, j]), smallest))
        rest = rest - column[:, None] * column
        columns.append(column)
    return (scale[order][:, None] * jnp.stack(columns, axis=1))[np.argsort(order)]


def solve_right(Z: Float[Array, "p P"], root: Float[Array, "P P"], trained: tuple[bool, ...]) -> Float[Array, "p P"]:
    """G with G F = Z, zero along directions that F lacks: pivots below sqrt(PIVOT) of their row count as none."""
    order = np.argsort(np.asarray(trained), kind="stable")
    L = root[order]  # lower triangular
    scale = jnp.sqrt(jnp.maximum(jnp.sum(L**2, axis=1), jnp.finfo(L.dtype).tiny))
    alive = jnp.abs(jnp.diag(L)) > PIVOT**0.5 * scale
    columns: list[Array] = [jnp.zeros_like(Z[:, 0])] * L.shape[0]
    # Back substitution by hand: a triangular solve of LAPACK would be called in batches, which XLA may run against each
    # other on its own threads until none is left to finish (seen on two cores).
    for j in range(L.shape[0] - 1, -1, -1):
        rest = Z[:, j] - sum((columns[i] * L[i, j] for i in range(j + 1, L.shape[0])), jnp.zeros_like(Z[:, j]))
        columns[j] = jnp.where(alive[j], rest / jnp.where(alive[j], L[j, j], 1.0), 0.0)
    return jnp.stack(columns, axis=1)[:, np.argsort(order)]
