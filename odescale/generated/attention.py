"""Infinite-context softmax transformer: written by `python -m derivations`, do not edit.

Mean-field ODE of online SGD on a transformer with softmax attention, any depth, number and rank of heads, square
loss on K readout rows against a teacher of the same kind, Gaussian tokens of any covariance spectrum.
"""

# derivation: attention | api: 1 | sha256: a4f8289c4cf6a07f96b516f56ecaea258739e1d8e757dfb10912b3aafb8e241e
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from odescale.errors import InputError

API = 1


def layers(C: Array, R: Array, network) -> list[Array]:
    """[A_0, ..., A_L], each (P, P): the linear maps from the fields of a token to its fields after each layer."""
    unit = jnp.eye(C.shape[0], dtype=C.dtype)
    A = unit
    maps = [A]
    for layer in network.layers:
        update = jnp.zeros_like(C)
        for head in layer:
            for query, key in head.terms:
                if head.output is None:
                    update += jnp.outer(A @ (C @ A[key]), A[query])
                else:
                    update += jnp.outer(R[head.output], A[query] * (A[key] @ (C @ A[head.value])))
        A = A + update
        maps.append(A)
    return maps


def functionals(C: Array, R: Array, network) -> Array:
    """a (K, P): output i of the network at the query token is a_i . phi."""
    return layers(C, R, network)[-1][jnp.asarray(network.readouts)]


def population_loss(C: Array, R: Array, student, teacher) -> Array:
    """L = 1/2 sum_i b_i^T C b_i, the excess loss at infinite context; C (P, P) field covariance, R (P, P) overlaps."""
    b = functionals(C, R, student) - functionals(C, R, teacher)
    return 0.5 * jnp.sum((b @ C) * b)


def pull_back(on_outputs: Array, C: Array, R: Array, network) -> tuple[Array, Array]:
    """(dC, dR): the cotangent (K, P) of the functionals a, pulled back to the overlaps, layer by layer."""
    unit = jnp.eye(C.shape[0], dtype=C.dtype)
    maps = layers(C, R, network)
    E = unit[jnp.asarray(network.readouts)]
    B = E.T @ on_outputs
    dC = jnp.zeros_like(C)
    dR = jnp.zeros_like(C)
    for A, layer in zip(reversed(maps[:-1]), reversed(network.layers), strict=True):
        below = B
        for head in layer:
            for query, key in head.terms:
                if head.output is None:
                    B_A_q = B @ A[query]
                    C_A_k = C @ A[key]
                    A_B_A_q = A.T @ B_A_q
                    below += jnp.outer(B_A_q, C_A_k) + jnp.outer(unit[key], C @ A_B_A_q) + jnp.outer(unit[query], B.T @ (A @ C_A_k))
                    dC += jnp.outer(A_B_A_q, A[key])
                else:
                    B_A_q = B @ A[query]
                    v_A_C_A_k = A[head.value] @ (C @ A[key])
                    A_k_q_A_B_R_o = A[key] * (A[query] @ (B.T @ R[head.output]))
                    below += jnp.outer(unit[key], C @ (A[head.value] * (R[head.output] @ B_A_q))) + jnp.outer(unit[query], B.T @ (R[head.output] * v_A_C_A_k)) + jnp.outer(unit[head.value], C @ A_k_q_A_B_R_o)
                    dC += jnp.outer(A[head.value], A_k_q_A_B_R_o)
                    dR += jnp.outer(B_A_q, unit[head.output] * v_A_C_A_k)
        B = below
    return dC, dR


def closure(C: Array, R: Array, student, teacher, trained: Array) -> tuple[Array, Array, Array]:
    """(G, H, V), each (P, P): G = S (dL/dC + dL/dC^T), H = S (dL/dR + dL/dR^T), V = S E[g g^T] S at the query token.

    `trained` (P,): 1 for rows that SGD moves, 0 for the others.
    """
    a = functionals(C, R, student)
    b = a - functionals(C, R, teacher)
    on_outputs = b @ C
    dC, dR = pull_back(on_outputs, C, R, student)
    dC += 0.5 * (b.T @ b)
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


def pair_covariance(kappa: Array, x: Array, y: Array, z: Array, vw: Array, vl: Array, kw: Array) -> Array:
    """T E Cov(m_g, m_h) over the query token."""
    u0 = kappa ** 2
    u1 = x * y
    u2 = z ** 2
    u3 = 2 * kappa * z + u0 * u1 - u0 * u2 - 1
    value = (vw + kw * vl * (-z - kappa * u1 + kappa * u2) / u3) / jnp.sqrt(-u3)
    return value


def pair_slopes(kappa: Array, x: Array, y: Array, z: Array, vw: Array, vl: Array, kw: Array) -> tuple[Array, Array, Array, Array, Array, Array, Array]:
    """Derivatives of `pair_covariance` in its arguments."""
    u0 = x * y
    u1 = z ** 2
    u2 = z + kappa * u0 - kappa * u1
    u3 = kappa ** 2
    u4 = 2 * z
    u5 = kappa * u4 - 1
    u6 = u5 + u0 * u3 - u1 * u3
    u7 = -u6
    u8 = -u2
    u9 = 1 / u6
    u10 = kw * u9
    u11 = vl * u10
    u12 = (vw + u11 * u8) / u7 ** 1.5
    u13 = 1 / jnp.sqrt(u7)
    u14 = 2 * kappa
    u15 = kw * vl * u8 / u6 ** 2
    u16 = u3 * y
    u17 = 0.5 * u12
    u18 = kappa * u11
    u19 = u3 * x
    u20 = u13 * u8
    d_kappa = u12 * u2 + u13 * (u11 * (-u0 + u1) + u15 * (-u4 + 2 * kappa * u1 - u0 * u14))
    d_x = u13 * (-u15 * u16 - u18 * y) + u16 * u17
    d_y = u13 * (-u15 * u19 - u18 * x) + u17 * u19
    d_z = u12 * (kappa - u3 * z) + u13 * (u11 * u5 + u15 * (-u14 + u3 * u4))
    d_vw = u13
    d_vl = u10 * u20
    d_kw = vl * u20 * u9
    return d_kappa, d_x, d_y, d_z, d_vw, d_vl, d_kw


def bias_product(r: Array, x: Array, kk: Array, vk: Array) -> Array:
    """T E[Delta (E[m] - m at infinite context)] over the query token."""
    value = -vk * r / (-2 * kk * x + 1) ** 1.5
    return value


def bias_slopes(r: Array, x: Array, kk: Array, vk: Array) -> tuple[Array, Array, Array, Array]:
    """Derivatives of `bias_product` in its arguments."""
    u0 = -2 * kk * x + 1
    u1 = 1 / u0 ** 1.5
    u2 = 3 * vk * r / u0 ** 2.5
    d_r = -vk * u1
    d_x = -kk * u2
    d_kk = -u2 * x
    d_vk = -r * u1
    return d_r, d_x, d_kk, d_vk


def query_tilt(kappa: Array, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array, Array]:
    """n and the response W of `M_uw = C_uw + (C_us, C_ut) W (C_sw, C_tw)^T`."""
    u0 = kappa * z
    u1 = kappa ** 2
    u2 = u1 * y
    u3 = 2 * u0 - u1 * z ** 2 + u2 * x - 1
    u4 = 1 / u3
    n = 1 / jnp.sqrt(-u3)
    W_ss = -u2 * u4
    W_st = kappa * u4 * (u0 - 1)
    W_tt = -u1 * u4 * x
    return n, W_ss, W_st, W_tt


def moment_bias(M_as: Array, vk: Array) -> Array:
    """T E[a bias] / n."""
    value = -vk * M_as
    return value


def moment_bias_slope(M_ab: Array, M_as: Array, M_bs: Array, M_ss: Array, kk: Array, vk: Array) -> Array:
    """T E[a b d bias/ds] / n."""
    value = -vk * M_ab - 2 * kk * vk * (M_ab * M_ss + 2 * M_as * M_bs)
    return value


def moment_kernel(M_st: Array, vw: Array, vl: Array, kw: Array) -> Array:
    """T E[Cov(m_g, m_h)] / n."""
    value = vw + kw * vl * M_st
    return value


def moment_kernel_slope(M_as: Array, M_at: Array, M_ss: Array, M_st: Array, kl: Array, vw: Array, vl: Array, kw: Array) -> Array:
    """T E[a d Cov(m_g, m_h)/dt] / n."""
    u0 = kw * vl
    value = M_as * u0 + kl * vw * M_as + kl * u0 * (2 * M_as * M_st + M_at * M_ss)
    return value


def moment_kernel_slopes(M_ab: Array, M_as: Array, M_at: Array, M_bs: Array, M_bt: Array, M_ss: Array, M_st: Array, M_tt: Array, kl: Array, vw: Array, vl: Array, kw: Array) -> Array:
    """T E[a b d2 Cov(m_g, m_h)/ds dt] / n."""
    u0 = kw * vl
    u1 = kl ** 2
    u2 = M_ab * M_st + M_as * M_bt + M_at * M_bs
    u3 = 2 * M_st
    value = M_ab * u0 + kl * vw * M_ab + 3 * kl * u0 * u2 + vw * u1 * u2 + u0 * u1 * (M_ab * (2 * M_st ** 2 + M_ss * M_tt) + 2 * M_as * (M_bs * M_tt + M_bt * u3) + 2 * M_at * (M_bs * u3 + M_bt * M_ss))
    return value


def moment_read_read(M_ab: Array) -> Array:
    """context noise, readout with readout."""
    value = M_ab
    return value


def moment_read_key(M_ab: Array, M_as: Array, M_at: Array, M_bs: Array, M_bt: Array, M_st: Array, kw: Array) -> Array:
    """context noise, readout (g) with key (h)."""
    value = kw * (M_ab * M_st + M_as * M_bt + M_at * M_bs)
    return value


def moment_key_key(M_ab: Array, M_as: Array, M_at: Array, M_bs: Array, M_bt: Array, M_ss: Array, M_st: Array, M_tt: Array, vw: Array, vl: Array, kw: Array) -> Array:
    """context noise, key with key."""
    u0 = 2 * M_st
    value = vw * (M_ab * M_st + M_as * M_bt + M_at * M_bs) + kw * vl * (M_ab * (2 * M_st ** 2 + M_ss * M_tt) + 2 * M_as * (M_bs * M_tt + M_bt * u0) + 2 * M_at * (M_bs * u0 + M_bt * M_ss))
    return value


def finite_context_loss(C: Array, tokens: Array, student, teacher) -> Array:
    """L_T (scalar) to order 1/T: one layer, value = identity, `tokens` = T context tokens.

    The expansion diverges where (1 - kappa z)^2 <= kappa^2 x y for a pair of heads, for one head where
    2 C_kk C_qq >= 1 (query and key rows of student or teacher); values there are meaningless or NaN.
    """
    for network in (student, teacher):
        if len(network.layers) != 1 or any(head.output is not None or head.rank > 1 for head in network.layers[0]):
            raise InputError("tokens", expected="one layer of rank-one heads, value = identity, for the order-1/T correction",
                             got=f"{len(network.layers)} layers, value/output rows or a higher rank", remedy="use the infinite-context theory (tokens = inf)")
    b = functionals(C, C, student) - functionals(C, C, teacher)
    sides = [(1.0, head, student) for head in student.layers[0]] + [(-1.0, head, teacher) for head in teacher.layers[0]]
    sign = jnp.asarray([side[0] for side in sides], dtype=C.dtype)
    active = jnp.asarray([0.0 if side[1].query is None else 1.0 for side in sides], dtype=C.dtype)
    query = jnp.asarray([side[1].query or 0 for side in sides])
    key = jnp.asarray([side[1].key or 0 for side in sides])
    read = jnp.asarray([[side[2].readouts[i] for side in sides] for i in range(len(student.readouts))])
    x = active[:, None] * C[query, query][:, None] + 0 * active
    y = x.T
    z = active[:, None] * active * C[query[:, None], query]
    kl = C[key[:, None], key]
    vw = C[read[:, None, :, None], read[None, :, None, :]]
    vl = C[read[:, :, None], key]
    r = active * (b @ C)[:, query]
    kappa = kl
    vw = vw[jnp.arange(read.shape[0]), jnp.arange(read.shape[0])]
    vk = vl[:, jnp.arange(len(sides)), jnp.arange(len(sides))]
    kk = jnp.diagonal(kl)
    variance = jnp.diagonal(x)
    covariance = pair_covariance(kappa, x, y, z, vw, vl, jnp.swapaxes(vl, 1, 2))
    bias = bias_product(r, variance, kk, vk)
    correction = jnp.sum(bias * sign) + 0.5 * jnp.einsum("igh,g,h->", covariance, sign, sign)
    return population_loss(C, C, student, teacher) + correction / tokens


def finite_context_closure(C: Array, tokens: Array, student, teacher, trained: Array) -> tuple[Array, Array]:
    """(G, V), each (P, P), to order 1/T: one layer, value = identity, `tokens` = T context tokens.

    G = S (dL_T/dC + dL_T/dC^T) with L_T of `finite_context_loss` (same domain); V = S E[sum_s g_s g_s^T] S over the
    query token and the T context tokens.
    """
    for network in (student, teacher):
        if len(network.layers) != 1 or any(head.output is not None or head.rank > 1 for head in network.layers[0]):
            raise InputError("tokens", expected="one layer of rank-one heads, value = identity, for the order-1/T correction",
                             got=f"{len(network.layers)} layers, value/output rows or a higher rank", remedy="use the infinite-context theory (tokens = inf)")
    unit = jnp.eye(C.shape[0], dtype=C.dtype)
    a = functionals(C, C, student)
    b = a - functionals(C, C, teacher)
    sides = [(1.0, head, student) for head in student.layers[0]] + [(-1.0, head, teacher) for head in teacher.layers[0]]
    sign = jnp.asarray([side[0] for side in sides], dtype=C.dtype)
    active = jnp.asarray([0.0 if side[1].query is None else 1.0 for side in sides], dtype=C.dtype)
    query = jnp.asarray([side[1].query or 0 for side in sides])
    key = jnp.asarray([side[1].key or 0 for side in sides])
    read = jnp.asarray([[side[2].readouts[i] for side in sides] for i in range(len(student.readouts))])
    x = active[:, None] * C[query, query][:, None] + 0 * active
    y = x.T
    z = active[:, None] * active * C[query[:, None], query]
    kl = C[key[:, None], key]
    vw = C[read[:, None, :, None], read[None, :, None, :]]
    vl = C[read[:, :, None], key]
    r = active * (b @ C)[:, query]
    full_vw = vw
    kappa = kl
    vw = vw[jnp.arange(read.shape[0]), jnp.arange(read.shape[0])]
    vk = vl[:, jnp.arange(len(sides)), jnp.arange(len(sides))]
    kk = jnp.diagonal(kl)
    variance = jnp.diagonal(x)
    dC = jnp.zeros_like(C)
    weight = 0.5 * sign[:, None] * sign / tokens
    d_kappa, d_x, d_y, d_z, d_vw, d_vl, d_kw = pair_slopes(kappa, x, y, z, vw, vl, jnp.swapaxes(vl, 1, 2))
    d_r, d_xx, d_kk, d_vk = bias_slopes(r, variance, kk, vk)
    q_g, q_h, k_g, k_h = query[:, None], query[None, :], key[:, None], key[None, :]
    v_g, v_h = read[:, :, None], read[:, None, :]
    on = active[:, None] * active
    shape = (read.shape[0], len(sides), len(sides))
    for row, column, slope in (
        (k_g, k_h, d_kappa),
        (q_g, q_g, active[:, None] * d_x),
        (q_h, q_h, active * d_y),
        (q_g, q_h, on * d_z),
        (v_g, v_h, d_vw),
        (v_g, k_h, d_vl),
        (k_g, v_h, d_kw),
    ):
        dC = dC.at[jnp.broadcast_to(row, shape), jnp.broadcast_to(column, shape)].add(weight * slope)
    d_r = active * sign * d_r / tokens
    for row, column, slope in ((query, query, active * d_xx), (key, key, d_kk), (read, key, d_vk)):
        indices = jnp.broadcast_to(row, read.shape), jnp.broadcast_to(column, read.shape)
        dC = dC.at[indices].add(sign * slope / tokens)
    on_outputs = d_r @ C[query]
    dC = dC + b.T @ (d_r @ unit[query])
    G0, H0, V0 = closure(C, C, student, teacher, trained)
    dC = dC + pull_back(on_outputs, C, C, student)[0]
    G = G0 + trained[:, None] * (dC + dC.T)
    n, W_ss, W_st, W_tt = query_tilt(kappa, x, y, z)
    r_s, r_t = r[:, :, None], r[:, None, :]
    K = b @ C @ b.T
    M_s = r_s + W_ss * r_s * x + W_st * r_s * z + W_st * r_t * x + W_tt * r_t * z
    M_t = r_t + W_ss * r_s * z + W_st * r_s * y + W_st * r_t * z + W_tt * r_t * y
    M_ss = x + W_ss * x ** 2 + W_tt * z ** 2 + 2 * W_st * x * z
    M_tt = y + W_ss * z ** 2 + W_tt * y ** 2 + 2 * W_st * y * z
    M_st = z + W_st * z ** 2 + W_ss * x * z + W_st * x * y + W_tt * y * z
    M_ab = K[:, :, None, None] + W_ss * r_s[:, None] * r_s + W_st * r_s[:, None] * r_t + W_st * r_t[:, None] * r_s + W_tt * r_t[:, None] * r_t
    kw = jnp.swapaxes(vl, 1, 2)
    own = jnp.arange(len(sides))
    m = len(student.layers[0])
    A_s, A_t, B_s, B_t = M_s[:, None], M_t[:, None], M_s[None], M_t[None]
    kernel = n * moment_kernel(M_st, full_vw, vl[:, None], kw[None])
    residuals = jnp.einsum("ijgh,g,h->ij", kernel, sign, sign)
    bias = jnp.sum(sign * n[own, own] * moment_bias(M_s[:, None, own, own], vk[None]), axis=-1)
    residuals = residuals + bias + bias.T
    slope = n[own, own] * moment_bias_slope(
        M_ab[:, :, own, own], M_s[:, None, own, own], M_s[None, :, own, own], M_ss[own, own], kk, vk[None])
    slope = slope + jnp.sum((sign[:, None] * n * (
        moment_kernel_slope(A_s, A_t, M_ss, M_st, kl, vw[None], vl[None], kw[None])
        + moment_kernel_slope(B_s, B_t, M_ss, M_st, kl, full_vw, vl[:, None], kw[None]))), axis=2)
    mixed = (active * jnp.sum(slope, axis=1))[:, :m]
    slopes = n * moment_kernel_slopes(
        M_ab, A_s, A_t, B_s, B_t, M_ss, M_st, M_tt, kl, full_vw, vl[:, None], kw[None])
    slopes = (on * jnp.sum(slopes, axis=(0, 1)))[:m, :m]
    read_read = jnp.sum((n * moment_read_read(M_ab))[:, :, :m, :m], axis=(2, 3))
    read_key = n * moment_read_key(M_ab, A_s, A_t, B_s, B_t, M_st, kw[None])
    read_key = (active * jnp.sum(read_key[:, :, :m], axis=(1, 2)))[:, :m]
    key_key = n * moment_key_key(M_ab, A_s, A_t, B_s, B_t, M_ss, M_st, M_tt, full_vw, vl[:, None], kw[None])
    key_key = (on * jnp.sum(key_key, axis=(0, 1)))[:m, :m]
    U_q, U_k, U_r = unit[query[:m]], unit[key[:m]], unit[jnp.asarray(student.readouts)]
    across = a.T @ mixed @ U_q + U_r.T @ read_key @ U_k
    V = a.T @ residuals @ a + U_q.T @ slopes @ U_q + U_r.T @ read_read @ U_r + U_k.T @ key_key @ U_k
    V = V + across + across.T
    V = V0 + trained[:, None] * V * trained / tokens
    return G, V


def logistic_pair_loss(S: Array, beta: Array, y0: Array, y1: Array) -> Array:
    """L(S) of the noise-free logistic_pair system, S = eta sqrt(R) t; 0 < y0 < beta, y1 > 0."""
    u0 = 2 * S
    u1 = jnp.exp(-beta * u0)
    loss = 0.5 * y1 ** 2 / (u0 * y1 + 1) ** 2 + 0.5 * beta ** 2 * (-beta + y0) ** 2 * jnp.exp(-4 * S * beta) / (-y0 - beta * u1 + u1 * y0) ** 2
    return loss
