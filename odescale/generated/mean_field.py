"""Mean-field ODE of a finite-rank network: written by `python -m derivations`, do not edit.

Online SGD on any network whose weights are rows, read and written through local fields: the closed ODE for the
overlaps of the rows under plain SGD and momentum, for Gaussian tokens of any spectrum and any separable
correlation; and its expectations in closed form for committees and for one layer of linear attention.
"""

# derivation: mean_field | api: 1 | sha256: 1d86a8ee780ade8df444f361df0dc2e9d0b0dfa82224506a70e9e5c1ad6073f4
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from odescale.expectations.arcsine import arcsine

API = 1


def overlap_flow(q: Array, lam: Array, G: Array, H: Array, V: Array, eta: Array, batch: Array, weight_decay: Array, trained: Array) -> Array:
    """dq/dt (modes, P, P) = M q + q M^T + (eta^2/B) lam V, M = -eta (lam G + H) - weight_decay S, in plain rows.

    q (modes, P, P), lam (modes,), G, H, V (P, P) with zero rows where `trained` (P,) is 0. One unit of t is N SGD steps.
    """
    def one_mode(q, eigenvalue):
        flow = eta ** 2 * eigenvalue / batch * V - eta * eigenvalue * (G @ q + q @ G.T) - eta * (H @ q + q @ H.T) - weight_decay * (trained[:, None] * q + q * trained)
        return flow

    return jax.vmap(one_mode)(q, lam)


def plain_sgd(G: Array, H: Array, V: Array, own: Array, moved: tuple[int, ...], eta: Array, batch: Array, weight_decay: Array) -> tuple[Array, Array, Array]:
    """(M1, M0, N1), each (P, P): dq/dt = M q + q M^T + lam N1 with M = lam M1 + M0, for every eigenmode.

    `G`, `H` (p, P) and `V` (p, p) for the p trained rows, numbers `moved` in the table; `own` (p, P): these rows in the
    basis of the table (unit rows; rows of T^-1 in difference rows). One unit of t is N SGD steps.
    """
    rows = np.asarray(moved)
    zero = jnp.zeros((G.shape[1], G.shape[1]), G.dtype)
    M1 = zero.at[rows].set(-eta * G)
    M0 = zero.at[rows].set(-eta * H + (-weight_decay) * own)
    N1 = zero.at[np.ix_(rows, rows)].set(eta ** 2 / batch * V)
    return M1, M0, N1


def heavy_ball(G: Array, H: Array, V: Array, own: Array, moved: tuple[int, ...], eta: Array, batch: Array, weight_decay: Array, damping: Array) -> tuple[Array, Array, Array]:
    """(M1, M0, N1), each (P + p, P + p), the table's rows followed by the velocities of the trained ones, for
    u <- (1 - damping/N) u + gradient, W <- W - (eta/N) u - (w/N) W.

    `G`, `H` (p, P) and `V` (p, p) for the p trained rows, numbers `moved` in the table; `own` (p, P): these rows in the
    basis of the table (unit rows; rows of T^-1 in difference rows). One unit of t is N SGD steps.
    """
    rows = np.asarray(moved)
    p, P = G.shape
    velocities = np.arange(P, P + p)
    zero = jnp.zeros((P + p, P + p), G.dtype)
    M1 = zero.at[velocities, :P].set(1 * G)
    M0 = zero.at[velocities, :P].set(1 * H)
    M0 = M0.at[velocities, velocities].set(-damping)
    M0 = M0.at[rows, velocities].set(-eta)
    M0 = M0.at[rows, :P].add((-weight_decay) * own)
    N1 = zero.at[P:, P:].set(1 / batch * V)
    return M1, M0, N1


def erf_committee_loss(C: Array, c: Array) -> Array:
    """L = 1/2 E[(sum_a c_a erf(phi_a/sqrt 2))^2] (scalar); C (P, P) covariance of the fields, c (P,) output weights, the
    teacher's with a minus. Rounding: 1e-16 times sum |c|^2, not relative to L.
    """
    root = 1 / jnp.sqrt(1 + jnp.diagonal(C))
    cosine = C * root[:, None] * root
    kernel = 2 * arcsine(cosine) / jnp.pi
    return 0.5 * jnp.sum(c[:, None] * c * kernel)


def erf_committee_closure(C: Array, c: Array, moved: tuple[int, ...], label_noise: Array) -> tuple[Array, Array]:
    """(G, V), (p, P) and (p, p), for the p trained rows `moved`: E[g phi^T] = G C and V = E[g g^T], g_i = c_i g'(phi_i) Delta.

    `label_noise`: standard deviation sigma of labels, Delta - sigma xi in V.
    """
    rows = np.asarray(moved)
    variance = jnp.diagonal(C)
    C_ii, C_jj, C_ij = variance[rows][:, None], variance[None, :], C[rows]
    slopes = 2 / (jnp.pi * jnp.sqrt(C_ii - C_ij ** 2 + C_jj + C_ii * C_jj + 1))
    C_aa, C_ia = C_jj, C_ij
    curvature = -2 * C_ia / (jnp.pi * (C_ii + 1) * jnp.sqrt(C_aa - C_ia ** 2 + C_ii + C_aa * C_ii + 1))
    own = np.eye(C.shape[0], dtype=C.dtype)[rows]
    G = c[rows][:, None] * (c * slopes + own * jnp.sum(c * curvature, axis=1)[:, None])

    # The tilt of each pair of slopes, then the arcsine law of each pair of units under it.
    i, j = np.triu_indices(rows.size)
    at_i, at_j = C[rows[i]], C[rows[j]]
    C_ii, C_jj, C_ij = (x[:, None] for x in (variance[rows[i]], variance[rows[j]], C[rows[i], rows[j]]))
    u0 = C_jj + 1
    u1 = C_ii - C_ij ** 2 + u0 + C_ii * C_jj
    u2 = 1 / u1
    k_ii = -u0 * u2
    k_jj = u2 * (-C_ii - 1)
    k_ij = C_ij * u2
    weight = 2 / (jnp.pi * jnp.sqrt(u1))
    tilted_variance = variance + at_i ** 2 * k_ii + at_j ** 2 * k_jj + 2 * at_i * at_j * k_ij
    tilted_root = 1 / jnp.sqrt(1 + tilted_variance)
    tilted = C + k_ij[:, None] * (at_i[:, :, None] * at_j[:, None] + at_i[:, None] * at_j[:, :, None]) + at_i[:, :, None] * at_i[:, None] * k_ii[:, None] + at_j[:, :, None] * at_j[:, None] * k_jj[:, None]
    cosine = tilted * tilted_root[:, :, None] * tilted_root[:, None]
    law = 2 * arcsine(cosine) / jnp.pi
    # Both orders of a pair of units: picking one costs more than its arcsine.
    upper = weight[:, 0] * jnp.sum(c[:, None] * c * law, axis=(1, 2)) + label_noise**2 * slopes[i, rows[j]]
    place = np.zeros((rows.size, rows.size), dtype=int)
    place[i, j] = place[j, i] = np.arange(i.size)
    V = c[rows][:, None] * c[rows] * upper[place]
    return G, V


def quadratic_committee_loss(C: Array, A: Array, offset: Array) -> Array:
    """L = 1/2 E[Delta^2] (scalar), Delta = (phi^T A phi - offset)/2: A (P, P) is diag(c) in plain rows, B^T diag(c) B for fields with plain = B phi; offset
    is sum(c) in every basis.
    """
    deviation = jnp.sum((A) * C) - offset
    square = jnp.sum((A @ (C @ A)) * C)
    return 0.125 * (2 * square + deviation ** 2)


def quadratic_committee_closure(C: Array, A: Array, offset: Array, moved: tuple[int, ...], label_noise: Array) -> tuple[Array, Array]:
    """(G, V), (p, P) and (p, p), for the p trained rows `moved`: E[g phi^T] = G C and V = E[g g^T].

    Delta = (phi^T A phi - offset)/2: A (P, P) is diag(c) in plain rows, B^T diag(c) B for fields with plain = B phi; offset
    is sum(c) in every basis.
    """
    rows = np.asarray(moved)
    deviation = jnp.sum((A) * C) - offset
    square = jnp.sum((A @ (C @ A)) * C)
    A_C_A = A @ (C @ A)
    A_C_A_C_A = A @ (C @ A_C_A)
    G = 0.5 * deviation * A + A_C_A
    V = (label_noise ** 2 + 0.5 * square + 0.25 * deviation ** 2) * A_C_A + deviation * A_C_A_C_A + 2 * (A @ (C @ A_C_A_C_A))
    return G[rows], V[np.ix_(rows, rows)]


def token_moment(C: Array, fields: np.ndarray, singles: int, tokens: Array) -> Array:
    """E[prod x prod U_bc] (n,) for n products of `singles` fields of the query token and averages
    U_bc = (1/T) sum_t b_t c_t; `fields` (n, singles + 2 averages): rows of C (P, P), the averages' two by two. By Stein's identity.
    """
    pair = C[fields[:, :, None], fields[:, None, :]]
    known = {}

    def moment(single, forms):
        key = (single[:1], frozenset(single[1:]), frozenset(forms))
        if key in known:
            return known[key]
        total = jnp.zeros(fields.shape[0], C.dtype)
        if single:
            x, others = single[0], single[1:]
            for n, y in enumerate(others):
                total += pair[:, x, y] * moment(others[:n] + others[n + 1 :], forms)
            for n, (b, c) in enumerate(forms):
                left = forms[:n] + forms[n + 1 :]
                for met, free in ((b, c), (c, b)):
                    total += 1 / tokens * pair[:, x, met] * moment((free, *others), left)
        elif forms:
            (b, c), rest = forms[0], forms[1:]
            total += 1 * pair[:, b, c] * moment((), rest)
            for n, (e, f) in enumerate(rest):
                left = rest[:n] + rest[n + 1 :]
                for met, free in ((e, f), (f, e)):
                    total += 1 / tokens * pair[:, b, met] * moment((), ((c, free), *left))
        else:
            total = jnp.ones(fields.shape[0], C.dtype)
        known[key] = total
        return total

    start = tuple((n, n + 1) for n in range(singles, fields.shape[1], 2))
    return moment(tuple(range(singles)), start)


def linear_attention_loss(C: Array, tokens: Array) -> Array:
    """L = 1/2 E[(f - f*)^2] (scalar), every term the product of two covariances with differences. C (6, 6): covariance of the fields of rows (q - q*, k - k*, r - r*, q*, k*, r*); `tokens` T >= 1, the query token
    among them.
    """
    rows = jnp.array([[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1], [1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1]], dtype=C.dtype)  # and the student's rows as sums
    C = rows @ C @ rows.T
    u0 = 0.5 * C[2, 2]
    u1 = C[1, 8] * C[2, 3]
    u2 = C[0, 2] * C[7, 8]
    u3 = C[2, 4] * C[2, 3]
    u4 = C[0, 3] * C[7, 8]
    u5 = C[1, 8] * u4
    u6 = 0.5 * C[3, 3]
    u7 = C[1, 8] ** 2 * u6
    u8 = 0.5 * C[0, 0]
    u9 = C[7, 8] ** 2 * u8
    u10 = C[2, 4] ** 2 * u6
    u11 = 1 / tokens
    u12 = C[1, 2] * u11
    u13 = C[2, 8] * u11
    u14 = C[0, 8] * u11
    u15 = C[3, 4] * u11
    u16 = C[0, 3] * u11
    u17 = 1 / tokens ** 2
    u18 = C[8, 8] * u17
    u19 = C[1, 3] * C[7, 8]
    u20 = C[0, 8] * u17
    u21 = C[1, 8] * C[0, 7]
    u22 = C[3, 8] * u17
    u23 = C[3, 8] * u11
    u24 = C[1, 8] * C[3, 7]
    u25 = C[0, 1] * C[7, 8]
    u26 = C[4, 8] * u17
    u27 = C[2, 4] * u23
    u28 = C[2, 3] * u26
    u29 = C[2, 8] * u17
    u30 = C[3, 4] * u29
    u31 = C[8, 8] * u11
    u32 = 2 * u22
    u33 = 2 * u20
    u34 = C[1, 3] * C[1, 8]
    u35 = 2 * C[1, 3]
    u36 = 2 * u15
    u37 = C[0, 7] * C[7, 8]
    loss = u0 + u1 + u10 + u2 + u3 + u5 + u7 + u9 + C[1, 3] * u13 + C[1, 3] ** 2 * u18 + C[0, 7] * u13 + C[0, 7] * u27 + C[0, 7] * u28 + C[0, 7] * u30 + C[0, 7] ** 2 * u18 + C[2, 2] * u15 + C[2, 7] * u14 + C[2, 4] * u4 + C[3, 8] * u12 + u1 * u36 + u10 * u11 + u11 * u3 + u11 * u5 + u11 * u7 + u11 * u9 + u14 * u19 + u14 * u24 + 2 * u14 * u37 + u15 * u2 + u19 * u20 + u20 * u24 + u21 * u22 + u21 * u23 + u22 * u25 + u23 * u25 + 2 * u23 * u34 + u27 * u35 + u28 * u35 + u3 * u36 + u30 * u35 + u32 * u34 + u33 * u37 + C[1, 1] * C[3, 8] ** 2 * u17 + C[1, 1] * u31 * u6 + C[1, 2] * C[3, 4] * u32 + C[1, 7] * C[3, 8] * u33 + C[1, 7] * C[8, 8] * u16 + C[1, 4] * C[2, 3] * u32 + C[1, 4] * C[3, 3] * u13 + C[1, 3] * C[0, 7] * u18 + C[1, 8] * C[2, 4] * C[3, 3] + C[0, 1] * C[3, 7] * u18 + C[0, 2] * C[4, 7] * u22 + C[0, 2] * C[3, 7] * u26 + C[0, 4] * C[2, 7] * u22 + C[0, 4] * C[3, 7] * u29 + C[0, 3] * C[4, 7] * u13 + C[0, 8] ** 2 * C[7, 7] * u17 + C[2, 2] * C[3, 4] ** 2 * u17 + C[2, 7] * C[4, 8] * u16 + C[2, 7] * C[3, 4] * u20 + C[2, 4] * C[3, 7] * u14 + C[2, 3] * C[4, 7] * u20 + C[2, 3] ** 2 * C[4, 4] * u17 + C[4, 8] * C[3, 3] * u12 + C[7, 7] * u31 * u8 + 2 * C[3, 4] * u17 * u3 + C[0, 4] * C[2, 3] * C[7, 8] * u11 + C[4, 4] * C[3, 3] * u0 * u11
    return loss


def linear_attention_closure(C: Array, tokens: Array, label_noise: Array) -> tuple[Array, Array]:
    """(G, V), (3, 6) and (3, 3), for the student's rows q, k, r: sum_t E[g_t phi_t^T] = G C, V = sum_t E[g_t g_t^T].

    `label_noise`: standard deviation of labels. C (6, 6): covariance of the fields of rows (q - q*, k - k*, r - r*, q*, k*, r*); `tokens` T >= 1, the query token
    among them.
    """
    rows = jnp.array([[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1], [1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1]], dtype=C.dtype)  # and the student's rows as sums
    C = rows @ C @ rows.T
    u0 = 0.5 * C[7, 8] ** 2
    u1 = 1 / tokens
    u2 = C[8, 8] * u1
    u3 = 0.5 * u2
    u4 = 1 / tokens ** 2
    u5 = C[3, 8] * u4
    u6 = C[3, 8] * u1
    u7 = C[3, 7] * u4
    u8 = C[3, 4] * u1
    u9 = C[1, 8] * C[7, 8]
    u10 = C[2, 7] * u1
    u11 = C[2, 8] * u1
    u12 = C[2, 3] * u1
    u13 = C[1, 3] * u4
    u14 = C[8, 8] * u13
    u15 = C[1, 8] * u5
    u16 = C[1, 8] * u6
    u17 = C[2, 4] * u6
    u18 = C[2, 3] * u4
    u19 = C[4, 8] * u18
    u20 = C[3, 4] * u4
    u21 = C[2, 8] * u20
    u22 = C[0, 7] * u4
    u23 = C[8, 8] * u22
    u24 = C[0, 8] * u4
    u25 = C[7, 8] * u24
    u26 = C[0, 8] * u1
    u27 = C[7, 8] * u26
    u28 = C[1, 3] * u1
    u29 = C[2, 4] * u1
    u30 = 2 * u5
    u31 = 2 * C[7, 8]
    u32 = C[0, 7] * u1
    u33 = 2 * u24
    u34 = C[4, 8] * u1
    u35 = C[1, 8] * C[3, 3]
    u36 = C[0, 3] * C[7, 8]
    u37 = C[2, 4] * C[3, 3]
    u38 = 2 * C[1, 3]
    u39 = 2 * u8
    u40 = C[2, 3] + u35 + u36 + u37 + C[0, 7] * u6 + C[2, 3] * u39 + C[3, 7] * u26 + u38 * u6
    u41 = C[3, 3] * u1
    u42 = 0.5 * C[4, 4]
    u43 = C[7, 8] * u1
    u44 = 2 * u13
    u45 = 2 * u20
    u46 = 2 * u18
    u47 = C[0, 3] * u1
    u48 = 0.5 * C[1, 8] ** 2
    u49 = 0.5 * C[2, 4] ** 2
    u50 = C[1, 2] * u1
    u51 = C[2, 2] * u1
    u52 = 2 * C[1, 8]
    u53 = C[0, 1] * u4
    u54 = C[0, 2] * u4
    u55 = C[0, 4] * u4
    u56 = C[1, 8] * C[0, 3]
    u57 = C[0, 0] * C[7, 8]
    d_0_0 = u0 + C[7, 7] * u3 + u0 * u1
    d_0_1 = C[7, 8] * u5 + C[7, 8] * u6 + C[8, 8] * u7
    d_0_2 = C[7, 8] + C[4, 7] * u5 + C[4, 8] * u7 + C[7, 8] * u8
    d_0_3 = u9 + C[1, 7] * u2 + C[2, 4] * C[7, 8] + C[4, 7] * u11 + C[4, 8] * u10 + u1 * u9
    d_0_4 = C[2, 7] * u5 + C[2, 8] * u7 + C[7, 8] * u12
    d_0_7 = u11 + u14 + u15 + u16 + u17 + u19 + u21 + 2 * u23 + 2 * u25 + 2 * u27
    d_0_8 = u10 + C[1, 7] * u30 + C[1, 8] * u7 + C[2, 7] * u20 + C[4, 7] * u18 + C[7, 7] * u33 + C[7, 8] * u13 + C[7, 8] * u28 + C[3, 7] * u29 + u22 * u31 + u31 * u32 + C[1, 8] * C[3, 7] * u1
    d_1_1 = C[3, 3] * u3 + C[3, 8] ** 2 * u4
    d_1_2 = u6 + C[3, 4] * u30 + C[3, 3] * u34
    d_1_3 = u11 + 2 * u14 + 2 * u15 + 2 * u16 + 2 * u17 + 2 * u19 + 2 * u21 + u23 + u25 + u27
    d_1_4 = C[2, 3] * u30 + C[3, 3] * u11
    d_1_7 = C[0, 3] * u2 + C[0, 8] * u30
    d_1_8 = u40 + C[1, 3] * u30 + C[0, 7] * u5 + C[0, 8] * u7 + u1 * u35 + u1 * u36
    d_2_2 = u8 + C[3, 4] ** 2 * u4 + u41 * u42 + 0.5
    d_2_3 = C[1, 8] + C[2, 4] + u29 + C[1, 4] * u30 + C[1, 8] * u39 + C[0, 4] * u43 + C[2, 4] * u39 + C[2, 4] * u45 + C[4, 7] * u24 + C[4, 4] * u46 + C[4, 8] * u22 + C[4, 8] * u44
    d_2_4 = u12 + u40 + C[3, 4] * u46 + u1 * u37
    d_2_7 = u26 + C[0, 4] * u5 + C[0, 3] * u34 + C[0, 8] * u20
    d_2_8 = u28 + u32 + C[1, 4] * u41 + C[0, 7] * u20 + C[0, 4] * u7 + C[4, 7] * u47 + C[3, 4] * u44
    d_3_3 = u48 + u49 + C[1, 1] * u3 + C[1, 4] * u11 + C[1, 8] * C[2, 4] + C[4, 8] * u50 + u1 * u48 + u1 * u49 + u42 * u51
    d_3_4 = u51 + C[1, 2] * u30 + C[0, 2] * u43 + C[2, 2] * u45 + C[2, 7] * u24 + C[2, 4] * u46 + 2 * C[2, 3] * u29 + C[2, 8] * u22 + C[2, 8] * u44 + u12 * u52
    d_3_7 = C[1, 8] * u24 + C[1, 8] * u26 + C[0, 8] * u29 + C[2, 8] * u55 + C[4, 8] * u54 + C[8, 8] * u53
    d_3_8 = u50 + C[1, 1] * u30 + C[1, 2] * u45 + C[1, 7] * u33 + C[1, 4] * u46 + C[1, 8] * u22 + C[1, 8] * u32 + C[1, 8] * u44 + C[0, 1] * u43 + C[0, 7] * u29 + C[2, 7] * u55 + C[4, 7] * u54 + C[7, 8] * u53 + u28 * u52 + u29 * u38
    d_4_4 = C[2, 3] ** 2 * u4 + 0.5 * C[3, 3] * u51
    d_4_7 = C[0, 2] * u5 + C[0, 3] * u11 + C[0, 8] * u18
    d_4_8 = C[0, 2] * u7 + C[0, 7] * u18 + C[0, 3] * u10 + C[2, 3] * u44 + C[3, 3] * u50
    d_7_7 = C[0, 0] * u3 + C[0, 8] ** 2 * u4
    d_7_8 = C[0, 2] + u56 + u57 + C[1, 3] * u26 + C[0, 1] * u5 + C[0, 1] * u6 + C[0, 2] * u8 + 2 * C[0, 7] * u26 + C[0, 4] * u12 + C[0, 3] * C[2, 4] + C[0, 8] * u13 + 2 * C[0, 8] * u22 + u1 * u56 + u1 * u57
    d_8_8 = 0.5 * C[1, 1] * u41 + C[1, 7] * u47 + C[1, 3] ** 2 * u4 + C[0, 1] * u7 + C[0, 7] * u13 + C[0, 7] ** 2 * u4 + 0.5 * C[0, 0] * C[7, 7] * u1
    slope = jnp.array([
        [d_0_0, d_0_1, d_0_2, d_0_3, d_0_4, 0.0, 0.0, d_0_7, d_0_8],
        [0.0, d_1_1, d_1_2, d_1_3, d_1_4, 0.0, 0.0, d_1_7, d_1_8],
        [0.0, 0.0, d_2_2, d_2_3, d_2_4, 0.0, 0.0, d_2_7, d_2_8],
        [0.0, 0.0, 0.0, d_3_3, d_3_4, 0.0, 0.0, d_3_7, d_3_8],
        [0.0, 0.0, 0.0, 0.0, d_4_4, 0.0, 0.0, d_4_7, d_4_8],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, d_7_7, d_7_8],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, d_8_8],
    ])
    G = (rows.T @ (slope + slope.T) @ rows)[:3]

    # V = E[Delta^2 h]: rows of fields, coefficients and the entry 3 i + j, by numbers of single fields and averages.
    total = jnp.zeros(9, C.dtype)
    fields = np.array([[]], dtype=int)
    weight = jnp.stack([jnp.asarray(x, C.dtype) for x in [label_noise ** 2]])
    place = np.array([8])
    total = total.at[place].add(weight * token_moment(C, fields.reshape(1, 0), 0, tokens))
    fields = np.array([[7, 8]], dtype=int)
    weight = jnp.stack([jnp.asarray(x, C.dtype) for x in [label_noise ** 2]])
    place = np.array([2])
    total = total.at[place].add(weight * token_moment(C, fields.reshape(1, 2), 0, tokens))
    fields = np.array([[7, 8, 7, 8]], dtype=int)
    weight = jnp.stack([jnp.asarray(x, C.dtype) for x in [label_noise ** 2]])
    place = np.array([0])
    total = total.at[place].add(weight * token_moment(C, fields.reshape(1, 4), 0, tokens))
    fields = np.array([[6, 8], [6, 7], [2, 2]], dtype=int)
    weight = jnp.stack([jnp.asarray(x, C.dtype) for x in [label_noise ** 2 / tokens, 2 * label_noise ** 2 / tokens, 1]])
    place = np.array([5, 8, 8])
    total = total.at[place].add(weight * token_moment(C, fields.reshape(3, 2), 2, tokens))
    fields = np.array([[6, 8, 7, 8], [6, 7, 7, 8], [2, 2, 7, 8], [6, 6, 8, 8], [6, 6, 7, 8], [6, 6, 7, 7], [2, 0, 7, 8], [2, 3, 1, 8], [2, 3, 4, 2]], dtype=int)
    weight = jnp.stack([jnp.asarray(x, C.dtype) for x in [label_noise ** 2 / tokens, label_noise ** 2 / tokens, 1, label_noise ** 2 / tokens, label_noise ** 2 / tokens, label_noise ** 2 / tokens, 2, 2, 2]])
    place = np.array([1, 2, 2, 4, 5, 8, 8, 8, 8])
    total = total.at[place].add(weight * token_moment(C, fields.reshape(9, 4), 2, tokens))
    fields = np.array([[2, 2, 7, 8, 7, 8], [2, 0, 7, 8, 7, 8], [2, 3, 1, 8, 7, 8], [2, 3, 4, 2, 7, 8], [0, 0, 7, 8, 7, 8], [0, 3, 7, 8, 1, 8], [0, 3, 7, 8, 4, 2], [3, 3, 1, 8, 1, 8], [3, 3, 1, 8, 4, 2], [3, 3, 4, 2, 4, 2]], dtype=int)
    weight = jnp.stack([jnp.asarray(x, C.dtype) for x in [1, 2, 2, 2, 1, 2, 2, 1, 2, 1]])
    place = np.array([0, 2, 2, 2, 8, 8, 8, 8, 8, 8])
    total = total.at[place].add(weight * token_moment(C, fields.reshape(10, 6), 2, tokens))
    fields = np.array([[2, 0, 7, 8, 7, 8, 7, 8], [2, 3, 1, 8, 7, 8, 7, 8], [2, 3, 4, 2, 7, 8, 7, 8], [0, 0, 7, 8, 7, 8, 7, 8], [0, 3, 7, 8, 1, 8, 7, 8], [0, 3, 7, 8, 4, 2, 7, 8], [3, 3, 1, 8, 1, 8, 7, 8], [3, 3, 1, 8, 4, 2, 7, 8], [3, 3, 4, 2, 4, 2, 7, 8]], dtype=int)
    weight = jnp.stack([jnp.asarray(x, C.dtype) for x in [2, 2, 2, 1, 2, 2, 1, 2, 1]])
    place = np.array([0, 0, 0, 2, 2, 2, 2, 2, 2])
    total = total.at[place].add(weight * token_moment(C, fields.reshape(9, 8), 2, tokens))
    fields = np.array([[0, 0, 7, 8, 7, 8, 7, 8, 7, 8], [0, 3, 7, 8, 1, 8, 7, 8, 7, 8], [0, 3, 7, 8, 4, 2, 7, 8, 7, 8], [3, 3, 1, 8, 1, 8, 7, 8, 7, 8], [3, 3, 1, 8, 4, 2, 7, 8, 7, 8], [3, 3, 4, 2, 4, 2, 7, 8, 7, 8]], dtype=int)
    weight = jnp.stack([jnp.asarray(x, C.dtype) for x in [1, 2, 2, 1, 2, 1]])
    place = np.array([0, 0, 0, 0, 0, 0])
    total = total.at[place].add(weight * token_moment(C, fields.reshape(6, 10), 2, tokens))
    fields = np.array([[2, 2, 6, 8], [2, 2, 6, 7]], dtype=int)
    weight = jnp.stack([jnp.asarray(x, C.dtype) for x in [1 / tokens, 2 / tokens]])
    place = np.array([5, 8])
    total = total.at[place].add(weight * token_moment(C, fields.reshape(2, 4), 4, tokens))
    fields = np.array([[2, 2, 6, 8, 7, 8], [2, 2, 6, 7, 7, 8], [2, 2, 6, 6, 8, 8], [2, 2, 6, 6, 7, 8], [2, 0, 6, 8, 7, 8], [2, 3, 6, 8, 1, 8], [2, 3, 6, 8, 4, 2], [2, 2, 6, 6, 7, 7], [2, 0, 6, 7, 7, 8], [2, 3, 6, 7, 1, 8], [2, 3, 6, 7, 4, 2]], dtype=int)
    weight = jnp.stack([jnp.asarray(x, C.dtype) for x in [1 / tokens, 1 / tokens, 1 / tokens, 1 / tokens, 2 / tokens, 2 / tokens, 2 / tokens, 1 / tokens, 4 / tokens, 4 / tokens, 4 / tokens]])
    place = np.array([1, 2, 4, 5, 5, 5, 5, 8, 8, 8, 8])
    total = total.at[place].add(weight * token_moment(C, fields.reshape(11, 6), 4, tokens))
    fields = np.array([[2, 0, 6, 8, 7, 8, 7, 8], [2, 3, 6, 8, 1, 8, 7, 8], [2, 3, 6, 8, 4, 2, 7, 8], [2, 0, 6, 7, 7, 8, 7, 8], [2, 3, 6, 7, 1, 8, 7, 8], [2, 3, 6, 7, 4, 2, 7, 8], [2, 0, 6, 6, 7, 8, 8, 8], [2, 3, 6, 6, 1, 8, 8, 8], [2, 3, 6, 6, 4, 2, 8, 8], [2, 0, 6, 6, 7, 8, 7, 8], [2, 3, 6, 6, 1, 8, 7, 8], [2, 3, 6, 6, 4, 2, 7, 8], [0, 0, 6, 8, 7, 8, 7, 8], [0, 3, 6, 8, 7, 8, 1, 8], [0, 3, 6, 8, 7, 8, 4, 2], [3, 3, 6, 8, 1, 8, 1, 8], [3, 3, 6, 8, 1, 8, 4, 2], [3, 3, 6, 8, 4, 2, 4, 2], [2, 0, 6, 6, 7, 8, 7, 7], [2, 3, 6, 6, 1, 8, 7, 7], [2, 3, 6, 6, 4, 2, 7, 7], [0, 0, 6, 7, 7, 8, 7, 8], [0, 3, 6, 7, 7, 8, 1, 8], [0, 3, 6, 7, 7, 8, 4, 2], [3, 3, 6, 7, 1, 8, 1, 8], [3, 3, 6, 7, 1, 8, 4, 2], [3, 3, 6, 7, 4, 2, 4, 2]], dtype=int)
    weight = jnp.stack([jnp.asarray(x, C.dtype) for x in [2 / tokens, 2 / tokens, 2 / tokens, 2 / tokens, 2 / tokens, 2 / tokens, 2 / tokens, 2 / tokens, 2 / tokens, 2 / tokens, 2 / tokens, 2 / tokens, 1 / tokens, 2 / tokens, 2 / tokens, 1 / tokens, 2 / tokens, 1 / tokens, 2 / tokens, 2 / tokens, 2 / tokens, 2 / tokens, 4 / tokens, 4 / tokens, 2 / tokens, 4 / tokens, 2 / tokens]])
    place = np.array([1, 1, 1, 2, 2, 2, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 8, 8, 8, 8, 8, 8, 8, 8, 8])
    total = total.at[place].add(weight * token_moment(C, fields.reshape(27, 8), 4, tokens))
    fields = np.array([[0, 0, 6, 8, 7, 8, 7, 8, 7, 8], [0, 3, 6, 8, 7, 8, 1, 8, 7, 8], [0, 3, 6, 8, 7, 8, 4, 2, 7, 8], [3, 3, 6, 8, 1, 8, 1, 8, 7, 8], [3, 3, 6, 8, 1, 8, 4, 2, 7, 8], [3, 3, 6, 8, 4, 2, 4, 2, 7, 8], [0, 0, 6, 7, 7, 8, 7, 8, 7, 8], [0, 3, 6, 7, 7, 8, 1, 8, 7, 8], [0, 3, 6, 7, 7, 8, 4, 2, 7, 8], [3, 3, 6, 7, 1, 8, 1, 8, 7, 8], [3, 3, 6, 7, 1, 8, 4, 2, 7, 8], [3, 3, 6, 7, 4, 2, 4, 2, 7, 8], [0, 0, 6, 6, 7, 8, 7, 8, 8, 8], [0, 3, 6, 6, 7, 8, 1, 8, 8, 8], [0, 3, 6, 6, 7, 8, 4, 2, 8, 8], [3, 3, 6, 6, 1, 8, 1, 8, 8, 8], [3, 3, 6, 6, 1, 8, 4, 2, 8, 8], [3, 3, 6, 6, 4, 2, 4, 2, 8, 8], [0, 0, 6, 6, 7, 8, 7, 8, 7, 8], [0, 3, 6, 6, 7, 8, 1, 8, 7, 8], [0, 3, 6, 6, 7, 8, 4, 2, 7, 8], [3, 3, 6, 6, 1, 8, 1, 8, 7, 8], [3, 3, 6, 6, 1, 8, 4, 2, 7, 8], [3, 3, 6, 6, 4, 2, 4, 2, 7, 8], [0, 0, 6, 6, 7, 8, 7, 8, 7, 7], [0, 3, 6, 6, 7, 8, 1, 8, 7, 7], [0, 3, 6, 6, 7, 8, 4, 2, 7, 7], [3, 3, 6, 6, 1, 8, 1, 8, 7, 7], [3, 3, 6, 6, 1, 8, 4, 2, 7, 7], [3, 3, 6, 6, 4, 2, 4, 2, 7, 7]], dtype=int)
    weight = jnp.stack([jnp.asarray(x, C.dtype) for x in [1 / tokens, 2 / tokens, 2 / tokens, 1 / tokens, 2 / tokens, 1 / tokens, 1 / tokens, 2 / tokens, 2 / tokens, 1 / tokens, 2 / tokens, 1 / tokens, 1 / tokens, 2 / tokens, 2 / tokens, 1 / tokens, 2 / tokens, 1 / tokens, 1 / tokens, 2 / tokens, 2 / tokens, 1 / tokens, 2 / tokens, 1 / tokens, 1 / tokens, 2 / tokens, 2 / tokens, 1 / tokens, 2 / tokens, 1 / tokens]])
    place = np.array([1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 8, 8, 8, 8, 8, 8])
    total = total.at[place].add(weight * token_moment(C, fields.reshape(30, 10), 4, tokens))
    upper = total.reshape(3, 3)
    V = upper + upper.T - jnp.diag(jnp.diagonal(upper))
    return G, V
