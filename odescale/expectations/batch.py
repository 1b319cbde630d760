r"""Averages over whole batches: what sign descent, Lion and clipping ask for, which see the gradient of B sequences at once.

Given the fields of the B sequences of a batch, a coordinate of the mean gradient of row i is Gaussian with variance lam_k S_ii/N,

    S_ij = (1/B^2) sum_b sum_ts rho_ts g_bti g_bsj,      and its norm concentrates, |gradient|^2 = sum_i S_ii

    D~ = E[ w_i (1/B) sum_bt g_bti phi_bt ] = G~ C,    H~ = E[ w_i (1/B) sum_b (dl/dR + dl/dR^T)_i ]

    clip:  w = min(1, c/sqrt(sum_i S_ii)),          V = B E[ w^2 S ]
    sign:  w_i = sqrt(2/pi)/sqrt(S_ii),             V = (2/pi) E asin(S_ij/sqrt(S_ii S_jj))
    Lion:  w_i = sqrt(2/pi) (1 - beta1)/sigma_i,    sigma_i^2 = (1 - beta1)^2 S_ii + s V_ii/B,   s = beta1^2 (1 - beta2)/(1 + beta2)

Labels are drawn here, also in the drift: weights depend on the draw. Nodes have B (T P + m) dimensions. Derived in
derivations/optimizers.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.expectations.closure import (
    AbstractClosure,
    Moments,
    SignOfAverage,
    StepOfAverage,
    at_node,
    factor,
    solve_right,
)
from odescale.expectations.nodes import Nodes
from odescale.expectations.window import WindowRule, windows
from odescale.networks.teacher_student import TeacherStudent

HALF_NORMAL = (2 / np.pi) ** 0.5
"""E sign(x + m) = sqrt(2/pi) m/sigma for a small mean m of a Gaussian x."""


class AbstractBatchRule(eqx.Module):
    """What a batch's gradient is turned into. `usual`: V of the plain gradient, which Lion asks for."""

    @abc.abstractmethod
    def weights(self, S: Float[Array, "p p"], usual: Float[Array, "p p"], batch: int) -> Float[Array, " p"]:
        """What multiplies the mean gradient of every row in the drift, given S."""

    @abc.abstractmethod
    def noise(self, S: Float[Array, "p p"], usual: Float[Array, "p p"], batch: int) -> Float[Array, "p p"]:
        """V of this batch, given S."""


class SignRule(AbstractBatchRule):
    """The sign of every coordinate."""

    def weights(self, S: Float[Array, "p p"], usual: Float[Array, "p p"], batch: int) -> Float[Array, " p"]:
        return HALF_NORMAL * _inverse_root(jnp.diag(S))

    def noise(self, S: Float[Array, "p p"], usual: Float[Array, "p p"], batch: int) -> Float[Array, "p p"]:
        return arcsine_noise(S)


class LionRule(AbstractBatchRule):
    """The sign of c = beta1 m + (1 - beta1) gradient, m <- beta2 m + (1 - beta2) gradient: noise at equal times alone.

    `average` (p, p): second moment of m's coordinates over lam_k/N, noise and mean, where it is carried; None: noise at rest.
    """

    beta1: Float[Array, ""]
    beta2: Float[Array, ""]
    average: Float[Array, "p p"] | None = None

    def spread(self, S: Float[Array, "p p"], usual: Float[Array, "p p"], batch: int) -> Float[Array, "p p"]:
        """Covariance of c's coordinates over lam_k/N, given the fields of the last batch."""
        past = (1 - self.beta2) / (1 + self.beta2) * usual / batch if self.average is None else self.average
        return (1 - self.beta1) ** 2 * S + self.beta1**2 * past

    def weights(self, S: Float[Array, "p p"], usual: Float[Array, "p p"], batch: int) -> Float[Array, " p"]:
        return HALF_NORMAL * (1 - self.beta1) * _inverse_root(jnp.diag(self.spread(S, usual, batch)))

    def noise(self, S: Float[Array, "p p"], usual: Float[Array, "p p"], batch: int) -> Float[Array, "p p"]:
        return arcsine_noise(self.spread(S, usual, batch))


class ClipRule(AbstractBatchRule):
    """The whole gradient shortened to the norm `largest` where it is longer."""

    largest: Float[Array, ""]

    def weights(self, S: Float[Array, "p p"], usual: Float[Array, "p p"], batch: int) -> Float[Array, " p"]:
        return jnp.full(len(S), self._weight(S))

    def noise(self, S: Float[Array, "p p"], usual: Float[Array, "p p"], batch: int) -> Float[Array, "p p"]:
        return batch * self._weight(S) ** 2 * S

    def _weight(self, S: Float[Array, "p p"]) -> Array:
        size = jnp.trace(S)
        long = size > self.largest**2  # never at a gradient of zero, whatever the largest norm
        return jnp.where(long, self.largest / jnp.sqrt(jnp.where(long, size, 1.0)), 1.0)


def _inverse_root(x: Float[Array, " n"]) -> Float[Array, " n"]:
    return jnp.where(x > 0, 1 / jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def arcsine_noise(S: Float[Array, "p p"]) -> Float[Array, "p p"]:
    """(2/pi) asin of the correlations of S: E sign(x_i) sign(x_j) of Gaussians x with covariance S."""
    root = _inverse_root(jnp.diag(S))
    cosine = S * root[:, None] * root
    # A row is wholly correlated with itself, whatever rounding says; arcsine has no derivative there.
    inside = jnp.abs(cosine) < 1
    arc = jnp.where(inside, jnp.arcsin(jnp.where(inside, cosine, 0.0)) * (2 / np.pi), jnp.sign(cosine))
    return jnp.where(np.eye(len(S), dtype=bool), jnp.sign(root)[:, None], arc)


class Sums(NamedTuple):
    """Averages over the nodes of one replicate: loss, Z (drift along z), V, H~; E w/sqrt(2/pi) (p,) and E S_ij w_i/sqrt(2/pi)."""

    loss: Array
    Z: Array
    V: Array
    H: Array
    size: Array
    shared: Array


class BatchQuadrature(AbstractClosure):
    """Expectations over fixed nodes of `batch` sequences each; `chunk` nodes are evaluated at once."""

    nodes: Nodes
    rule: AbstractBatchRule | WindowRule
    batch: int = eqx.field(static=True)
    chunk: int = eqx.field(static=True)

    @property
    def replicates(self) -> int:
        return self.nodes.replicates

    def estimate(self, values: Float[Array, "R ..."]) -> tuple[Array, Array]:
        return self.nodes.mean(values), self.nodes.half_width(values)

    def loss(
        self, problem: TeacherStudent, C: Float[Array, "P P"], R: Float[Array, "P P"], replicate
    ) -> Float[Array, ""]:
        root = factor(C, problem.trained)
        sequence = at_node(problem, root, R, gradients=False)
        return self._mean(lambda node: jnp.mean(jax.vmap(sequence)(node.reshape(self.batch, -1))[0]), replicate, root)

    def moments(self, problem: TeacherStudent, C: Float[Array, "P P"], R: Float[Array, "P P"], replicate) -> Moments:
        root = factor(C, problem.trained)
        if isinstance(self.rule, WindowRule):
            return self._over_windows(problem, C, root, R, replicate, self.rule)
        usual, of_average = jnp.zeros((problem.moved.size,) * 2, root.dtype), None
        if isinstance(self.rule, LionRule):
            plain = self._sums(problem, root, R, replicate, ClipRule(jnp.asarray(jnp.inf, root.dtype)), usual)
            usual = plain.V
        sums = self._sums(problem, root, R, replicate, self.rule, usual)
        if isinstance(self.rule, LionRule):
            gain = HALF_NORMAL * self.rule.beta1 / (1 - self.rule.beta1) * sums.size
            own = solve_right(plain.Z, root, problem.trained)
            of_average = SignOfAverage(own, plain.H, plain.V, gain, HALF_NORMAL * sums.shared)
        G = solve_right(sums.Z, root, problem.trained)
        return Moments(sums.loss, G @ C, G, sums.H, sums.V, of_average)

    def _over_windows(self, problem: TeacherStudent, C, root, R, replicate, rule: WindowRule) -> Moments:
        """What `odescale.expectations.window` adds to the plain moments of the gradient."""
        points, w = self.nodes.points[replicate], self.nodes.weights[replicate].astype(root.dtype)
        one = self._of_batch(problem, root, R)
        blocks = points.reshape(points.shape[0] // self.chunk, self.chunk, -1)
        with jax.default_matmul_precision("highest"):
            excess, Z, H, S = jax.lax.map(lambda nodes: jax.vmap(one)(nodes.astype(root.dtype)), blocks)
        excess, Z, H, S = (x.reshape(points.shape[0], *x.shape[2:]) for x in (excess, Z, H, S))
        plain = [jnp.tensordot(w, x, axes=1) for x in (excess, Z, H, S)]
        usual = self.batch * plain[3]
        mean = jnp.zeros_like(usual)
        if rule.average is not None and rule.filled is not None:  # its noise, at rest (1 - mu)/2 V/B, is in the windows
            mean = rule.average - rule.filled * (1 - rule.beta) / 2 * plain[3]
        order = np.random.default_rng(0).permutation(points.shape[0])
        ahead, P = windows(rule, S, mean, order)
        drift, written = (jnp.einsum("n,nij,njp->ip", w, ahead, x) for x in (Z, H))
        noise = self.batch * jnp.einsum("n,nij,njk,nlk->il", w, ahead, S, ahead)
        G, extra = (solve_right(x, root, problem.trained) for x in (plain[1], drift - P @ plain[1]))
        more = StepOfAverage(P, extra, written - P @ plain[2], noise - P @ usual @ P.T)
        return Moments(plain[0], G @ C, G, plain[2], usual, of_step=more)

    def _of_batch(self, problem: TeacherStudent, root, R) -> Callable[[Array], tuple[Array, Array, Array, Array]]:
        """(excess loss, drift along z (p, P), H (p, P), S (p, p)) of the mean gradient of one batch."""
        B, moved, both = self.batch, problem.moved, problem.student.writes_back
        sequence = at_node(problem, root, R, gradients=True, drawn=True)
        back = jnp.asarray(2 * np.eye(problem.size) - problem.difference_basis(), root.dtype)

        def one(node: Float[Array, " D"]) -> tuple[Array, Array, Array, Array]:
            excess, g, z, spread, *slope = jax.vmap(sequence)(node.reshape(B, -1))
            S = jnp.einsum("bti,btj->ij", spread, spread) / B**2
            Z = jnp.einsum("bti,btj->ij", g, z) / B
            rows = jnp.mean(slope[0], axis=0) if both else jnp.zeros((problem.size,) * 2, root.dtype)
            return jnp.mean(excess), Z, (rows + rows.T)[moved] @ back, S

        return one

    def _sums(self, problem: TeacherStudent, root, R, replicate, rule: AbstractBatchRule, usual: Array) -> Sums:
        of_batch = self._of_batch(problem, root, R)

        def one(node: Float[Array, " D"]) -> Sums:
            excess, Z, H, S = of_batch(node)
            w = rule.weights(S, usual, self.batch)
            size = w / HALF_NORMAL
            noise = rule.noise(S, usual, self.batch)
            return Sums(excess, w[:, None] * Z, noise, w[:, None] * H, size, size[:, None] * S)

        return self._mean(one, replicate, root)

    def _mean(self, function, replicate, like: Array):
        """The average of a function of a node over those of one replicate, `chunk` at a time."""
        points, weights = self.nodes.points[replicate], self.nodes.weights[replicate].astype(like.dtype)

        def add(total, block):
            nodes, w = block
            values = jax.vmap(function)(nodes.astype(like.dtype))
            return jax.tree_util.tree_map(lambda a, v: a + jnp.tensordot(w, v, axes=1), total, values), None

        shapes = jax.eval_shape(function, jax.ShapeDtypeStruct(points.shape[1:], like.dtype))
        zeros = jax.tree_util.tree_map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        blocks = points.shape[0] // self.chunk
        split = (points.reshape(blocks, self.chunk, -1), weights.reshape(blocks, self.chunk))
        with jax.default_matmul_precision("highest"):  # else an accelerator rounds products of tokens
            return jax.lax.scan(add, zeros, split)[0]
