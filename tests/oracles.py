"""Independent evaluations that the library is tested against: plain forward passes and autodiff, no generated code."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from odescale.networks import Architecture, FieldNetwork


def oracle_functionals(C: jax.Array, R: jax.Array, network: FieldNetwork) -> jax.Array:
    """a (K, P): the linear functionals of the input fields that an infinite-context softmax network reads out."""
    size = C.shape[0]
    A = jnp.eye(size)
    for layer in network.layers:
        covariance = A @ C @ A.T
        update = jnp.zeros((size, size))
        for head in layer:
            if head.query is None:
                continue
            # (P, r) keys and (r, P) queries: a head of rank r is a product of two matrices.
            queries, keys = (jnp.asarray(rows).reshape(-1) for rows in (head.query, head.key))
            written = covariance[:, keys]
            if head.output is not None:
                written = jnp.outer(R[:, head.output], covariance[head.value, keys])
            update = update + written @ A[queries]
        A = A + update
    return A[jnp.asarray(network.readouts)]


def oracle_loss(C: jax.Array, R: jax.Array, architecture: Architecture) -> jax.Array:
    """L(C, R) = 1/2 sum_i b_i^T C b_i."""
    b = oracle_functionals(C, R, architecture.student) - oracle_functionals(C, R, architecture.teacher)
    return 0.5 * jnp.einsum("ip,pq,iq->", b, C, b)


def oracle_closure(C: jax.Array, R: jax.Array, architecture: Architecture) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(G, H, V) by automatic differentiation of `oracle_loss`."""
    dC, dR = jax.grad(oracle_loss, argnums=(0, 1))(C, R, architecture)
    S = jnp.diag(jnp.asarray(architecture.trained_mask))
    a = oracle_functionals(C, R, architecture.student)
    b = a - oracle_functionals(C, R, architecture.teacher)
    V = S @ jnp.einsum("ij,ip,jq->pq", b @ C @ b.T, a, a) @ S
    return S @ (dC + dC.T), S @ (dR + dR.T), V


def random_overlaps(key: jax.Array, size: int, scale: float = 0.5) -> jax.Array:
    """A random positive-definite P x P matrix with entries of order `scale`."""
    rows = jax.random.normal(key, (size, size + 2)) * jnp.sqrt(scale / (size + 2))
    return rows @ rows.T
