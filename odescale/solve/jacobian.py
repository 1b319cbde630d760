"""Jacobian of the stage equations for the couplings, u - pack(q(u)), written out.

    dX_i = sum_j Z_ij h dM_j E_j,                     Z = (A^-1 - h M)^-1        dq_i = dX_i D E_i^T + transpose
    dS_i = sum_j Y_ij h (dM_j S_j + S_j dM_j^T + lam dN_j),      Y = (A^-1 - h (M . + . M^T))^-1
    du_i = sum_k w_k lam_k dq_i        (and w_k for R),        dM = lam dM1 + dM0

The sums over modes come first and leave tensors without a mode index: automatic differentiation would push every one of
the s u directions through every mode, a hundred times the work.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.solve.collocation import Tableau, after, lyapunov, pack_symmetric, stage_matrix, unpack_symmetric
from odescale.solve.flow import Coefficients, drift_matrices, embed, noise_source
from odescale.solve.stages import Couplings


def coupling_jacobian(
    frame: Couplings,
    D: Float[Array, "modes P P"],
    start: Float[Array, "modes p p"],
    K: Coefficients,
    slopes: Coefficients,
    h: Float[Array, ""],
    rule: Tableau,
) -> Float[Array, "n n"]:
    """d residual / d u, n = s u.

    `K` holds the coefficients at the stages, `slopes` their derivatives by the couplings there (last axis), `start` the
    noise content at t_n.
    """
    rows, lam = frame.rows, frame.lam
    M = drift_matrices(lam, K)
    modes, s, p, P = M.shape
    own = h * (M @ rows.T)
    Z = jnp.linalg.inv(stage_matrix(own, rule.inverse)).reshape(modes, s, p, s, p)
    m = p * (p + 1) // 2
    Y = jnp.linalg.inv(stage_matrix(lyapunov(after(own, Z)), rule.inverse)).reshape(modes, s, m, s, m)
    X = jnp.einsum("kiajb,kjbc->kiac", Z, h * M)
    first, second = np.triu_indices(p)
    source = noise_source(lam, K.noise, start, h, rule)
    S = unpack_symmetric(jnp.einsum("kiajb,kjb->kia", Y, source), p)
    E = jnp.eye(P, dtype=D.dtype) + rows.T @ X
    between = jnp.einsum("kjdx,kxy,kiby->kjidb", E, D, E)
    noise_slopes = jnp.moveaxis(pack_symmetric(jnp.moveaxis(slopes.noise, -1, 1)), 1, -1)

    blocks = []
    for measure in (frame.weights * lam, frame.weights) if frame.writes_back else (frame.weights * lam,):
        half, content = 0.0, 0.0
        for power, dM in ((1, slopes.slope), (0, slopes.base)):
            share = h * measure * lam**power
            signal = jnp.einsum("kiajc,kjidb->ijacdb", share[:, None, None, None, None] * Z, between)
            half = half + jnp.einsum("ijacdb,jcdu->iabju", signal, dM)
            shared = share[:, None, None, None, None] * Y
            for left, right in ((first, second), (second, first)):
                fed = jnp.einsum("kimjn,kjdn->ijmnd", shared, S[..., right])
                content = content + jnp.einsum(
                    "ijmnd,jndu->imju", fed, dM[:, left][:, :, np.flatnonzero(frame.trained)]
                )
        fed = jnp.einsum("k,kimjn->imjn", h * measure * lam, Y)
        content = content + jnp.einsum("imjn,jnu->imju", fed, noise_slopes)
        blocks.append(_entries(frame, half, content, rows, p))
    total = jnp.concatenate(blocks, axis=1)
    n = total.shape[0] * total.shape[1]
    return jnp.eye(n, dtype=D.dtype) - total.reshape(n, n)


def _entries(frame: Couplings, half: Array, content: Array, rows: Float[Array, "p P"], p: int) -> Array:
    """(s, u, s, u): the moving entries of `half` + its transpose (moving rows first) and of the noise content."""
    i, j = frame.entries
    full = jnp.einsum("ap,iabju->ijupb", rows, half)
    full = full + jnp.swapaxes(full, -1, -2)
    full = full + embed(unpack_symmetric(jnp.moveaxis(content, 1, -1), p), rows)
    return jnp.moveaxis(full[..., i, j], -1, 1)
