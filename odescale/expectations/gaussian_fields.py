"""Exact draws of local fields: phi ~ N(0, C) for overlaps C that may be singular."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.errors import InputError


def overlap_root(C: Float[np.ndarray, "P P"], argument: str = "C") -> Float[np.ndarray, "P P"]:
    """B = U sqrt(w) with C = U diag(w) U^T, so that B B^T = C, for C positive semi-definite and possibly singular.

    Eigenvalues below rounding, |w| < P 1e-15 max w, are set to zero; columns come in decreasing order of w.

    **Arguments**: `C` `(P, P)` symmetric; `argument` the name in the error message.

    **Errors**: `InputError` for a wrong shape, entries that are not finite, asymmetry, or an eigenvalue below
    -1e-9 max |w|.
    """
    C = np.asarray(C, dtype=np.float64)
    if C.ndim != 2 or C.shape[0] != C.shape[1]:
        raise InputError(
            argument, expected="a square (P, P) matrix", got=f"shape {C.shape}", remedy="pass P x P overlaps"
        )
    if not np.isfinite(C).all():
        raise InputError(argument, expected="finite overlaps", got="NaN or infinity", remedy="check how they were made")
    size = np.abs(C).max(initial=0.0)
    if np.abs(C - C.T).max(initial=0.0) > 1e-8 * size:
        raise InputError(
            argument,
            expected="a symmetric matrix",
            got=f"asymmetry {np.abs(C - C.T).max():.2e}",
            remedy="symmetrise it",
        )
    w, U = np.linalg.eigh((C + C.T) / 2)
    if w[0] < -1e-9 * np.abs(w).max():
        raise InputError(
            argument,
            expected="positive semi-definite overlaps",
            got=f"smallest eigenvalue {w[0]:.3e}",
            remedy="an overlap is larger than the lengths of its two rows allow: reduce it or raise the diagonal",
        )
    w = np.where(w > len(w) * 1e-15 * np.abs(w).max(), w, 0.0)
    return (U * np.sqrt(w))[:, ::-1]


def sample_fields(
    key: Array, C: Float[np.ndarray, "P P"], sequences: int, tokens: int, dtype: np.dtype | type = np.float64
) -> Float[Array, "sequences tokens P"]:
    """phi ~ N(0, C), independent over sequences and tokens: the law of Gaussian tokens' fields for every spectrum.

    **Arguments**: `key` JAX random key; `C` `(P, P)` overlaps with metric Sigma, singular allowed (`overlap_root`);
    `sequences`, `tokens` counts. The memory is `sequences * tokens * P` numbers.
    """
    root = jnp.asarray(overlap_root(C), dtype=dtype)
    return jax.random.normal(key, (sequences, tokens, root.shape[0]), dtype) @ root.T
