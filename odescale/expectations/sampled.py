"""The closure at finite context by fixed Gaussian nodes: any depth, to all orders in 1/T, with a Monte Carlo error."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.networks.architecture import Architecture
from odescale.networks.fields import apply_on_queries
from odescale.networks.infinite import infinite_functionals

JITTER = 1e-11
"""Added to the unit diagonal before factorising: overlaps of rank below P have no Cholesky factor otherwise."""


class SampledContext(eqx.Module):
    """D = E sum_t g_t phi_t^T, V = E sum_t g_t g_t^T, L = E l over fixed nodes, g = dl/dphi, tokens ~ N(0, C).

    The nodes z (sequences, 2 T, P) stay the same at every C, phi = chol(C) z: the ODE's right-hand side is a smooth,
    deterministic function of the overlaps, and two node sets give the sampling error of a whole trajectory.

    One sequence has T context tokens and T queries that share them; D and L average over all queries, V takes the first.
    The query's own part of D and L is known at infinite context in closed form and serves as control variate.
    """

    nodes: Float[Array, "sequences n P"]
    tokens: int = eqx.field(static=True)
    chunk: int = eqx.field(static=True, default=32)

    def moments(
        self, C: Float[Array, "P P"], architecture: Architecture
    ) -> tuple[Float[Array, "P P"], Float[Array, "P P"], Float[Array, ""]]:
        """(D, V, L) at field covariance C, value = identity; D and V are zero on rows that do not move."""
        student, teacher = architecture.student, architecture.teacher
        size, T = C.shape[0], self.tokens
        moves = jnp.asarray(architecture.trained_mask)
        # Teacher and frozen rows first: their part of the factor then does not move along the trajectory.
        order = np.argsort(np.asarray(architecture.trained), kind="stable")
        scale = jnp.sqrt(jnp.diag(C))
        unit = (C / (scale[:, None] * scale))[order][:, order] + JITTER * jnp.eye(size)
        root = (scale[order][:, None] * jnp.linalg.cholesky(unit))[np.argsort(order)]
        a = infinite_functionals(C, C, student)
        b = a - infinite_functionals(C, C, teacher)

        def sample_loss(phi, queries):
            errors = [apply_on_queries(network, phi, C, T)[:queries] for network in (student, teacher)]
            return 0.5 * jnp.sum((errors[0] - errors[1]) ** 2) / queries

        def one(z):
            phi = z @ root.T
            loss, g = jax.value_and_grad(sample_loss)(phi, T)
            single = jax.grad(sample_loss)(phi[: T + 1], 1)
            seen = phi[T:].T @ phi[T:] / T
            control = a.T @ (b @ seen)
            return g.T @ phi - control, single.T @ single, loss - 0.5 * jnp.sum(b @ seen * b)

        D, V, loss = jax.tree_util.tree_map(
            lambda x: x.mean(axis=0), jax.lax.map(one, self.nodes, batch_size=self.chunk)
        )
        D = moves[:, None] * (D + a.T @ (b @ C))
        return D, moves[:, None] * V * moves, loss + 0.5 * jnp.sum(b @ C * b)


def sample_context(size: int, tokens: int, sequences: int = 512, seed: int = 0) -> SampledContext:
    """Nodes for P = `size` rows, T = `tokens`: `sequences` x 2 T standard normal vectors. 512 sequences: about 1 % on D."""
    nodes = jax.random.normal(jax.random.key(seed), (sequences, 2 * tokens, size))
    return SampledContext(nodes, tokens)
