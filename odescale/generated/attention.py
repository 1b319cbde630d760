"""Infinite-context softmax transformer: written by `python -m derivations`, do not edit.

Mean-field ODE of online SGD on a transformer with softmax attention, any depth and number of heads, square loss on
K readout rows against a teacher of the same kind, Gaussian tokens of any covariance spectrum.
"""

# derivation: attention | api: 1 | sha256: 8265339513bafe6422c9312e3582858d8561b2b3d24ef8def7093fd14bff28ec
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

API = 1


def layers(C: Array, R: Array, network) -> list[Array]:
    """[A_0, ..., A_L], each (P, P): the linear maps from the fields of a token to its fields after each layer."""
    unit = jnp.eye(C.shape[0], dtype=C.dtype)
    A = unit
    maps = [A]
    for layer in network.layers:
        update = jnp.zeros_like(C)
        for head in layer:
            if head.query is None:
                continue
            if head.output is None:
                update += jnp.outer(A @ (C @ A[head.key]), A[head.query])
            else:
                update += jnp.outer(R[head.output], A[head.query] * (A[head.key] @ (C @ A[head.value])))
        A = A + update
        maps.append(A)
    return maps


def functionals(C: Array, R: Array, network) -> Array:
    """a (K, P): output i of the network at the query token is a_i . phi."""
    return layers(C, R, network)[-1][jnp.asarray(network.readouts)]


def population_loss(C: Array, R: Array, student, teacher) -> Array:
    """L = 1/2 sum_i b_i^T C b_i, the excess loss at infinite context; C (P, P) field covariance, R (P, P) overlaps."""
    b = functionals(C, R, student) - functionals(C, R, teacher)
    return 0.5 * jnp.sum(b @ C * b)


def closure(C: Array, R: Array, student, teacher, trained: Array) -> tuple[Array, Array, Array]:
    """(G, H, V), each (P, P): G = S (dL/dC + dL/dC^T), H = S (dL/dR + dL/dR^T), V = S E[g g^T] S at the query token.

    `trained` (P,): 1 for rows that SGD moves, 0 for the others.
    """
    unit = jnp.eye(C.shape[0], dtype=C.dtype)
    maps = layers(C, R, student)
    E = unit[jnp.asarray(student.readouts)]
    a = maps[-1][jnp.asarray(student.readouts)]
    b = a - functionals(C, R, teacher)
    B = E.T @ (b @ C)
    dC = 0.5 * (b.T @ b)
    dR = jnp.zeros_like(C)
    for A, layer in zip(reversed(maps[:-1]), reversed(student.layers), strict=True):
        below = B
        for head in layer:
            if head.query is None:
                continue
            if head.output is None:
                B_A_q = B @ A[head.query]
                C_A_k = C @ A[head.key]
                A_B_A_q = A.T @ B_A_q
                below += jnp.outer(B_A_q, C_A_k) + jnp.outer(unit[head.key], C @ A_B_A_q) + jnp.outer(unit[head.query], B.T @ (A @ C_A_k))
                dC += jnp.outer(A_B_A_q, A[head.key])
            else:
                B_A_q = B @ A[head.query]
                v_A_C_A_k = A[head.value] @ (C @ A[head.key])
                A_k_q_A_B_R_o = A[head.key] * (A[head.query] @ (B.T @ R[head.output]))
                below += jnp.outer(unit[head.key], C @ (A[head.value] * (R[head.output] @ B_A_q))) + jnp.outer(unit[head.query], B.T @ (R[head.output] * v_A_C_A_k)) + jnp.outer(unit[head.value], C @ A_k_q_A_B_R_o)
                dC += jnp.outer(A[head.value], A_k_q_A_B_R_o)
                dR += jnp.outer(B_A_q, unit[head.output] * v_A_C_A_k)
        B = below
    G = trained[:, None] * (dC + dC.T)
    H = trained[:, None] * (dR + dR.T)
    V = trained[:, None] * ((a.T @ ((b @ (C @ b.T)) @ a)) * trained)
    return G, H, V


def overlap_flow(q: Array, lam: Array, G: Array, H: Array, V: Array, eta: Array, batch: Array, weight_decay: Array, trained: Array) -> Array:
    """dq/dt (modes, P, P) with q (modes, P, P), lam (modes,) eigenvalues, eta = eta(t); one unit of t is N SGD steps."""
    def one_mode(q, eigenvalue):
        flow = eta ** 2 * eigenvalue / batch * V - eta * eigenvalue * (G @ q + q @ G.T) - eta * (H @ q + q @ H.T) - weight_decay * (trained[:, None] * q + q * trained)
        return flow

    return jax.vmap(one_mode)(q, lam)
