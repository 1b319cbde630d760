"""The infinite-context limit as a plain forward pass, for control variates and for the loss of measured overlaps.

The right-hand sides of the theory live in the generated code; this is the forward half, written once by hand because
the expectations stand to the left of the generated code and may not import it. NumPy arrays are evaluated by NumPy, in
float64 whatever JAX's setting, so that measured overlaps of float32 runs are judged exactly.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from odescale.networks.architecture import Architecture, FieldNetwork


def infinite_functionals(
    C: Float[Array | np.ndarray, "P P"], R: Float[Array | np.ndarray, "P P"], network: FieldNetwork
) -> Float[Array | np.ndarray, "K P"]:
    r"""a (K, P) with f_i = a_i . phi at the query token, T -> infinity, Gaussian tokens.

        A <- A + sum_i (A C A^T e_k_i) (e_q_i^T A)                      per head, value = identity, A_0 = I
        A <- A + sum_i (R e_o) (e_v^T A C A^T e_k_i) (e_q_i^T A)        per head with value row v and output row o

    over the (query, key) pairs of the head. A softmax average of Gaussian tokens tilts their law,
    E[v exp(sum_i s_i k_i)] / E[exp(sum_i s_i k_i)] = sum_i s_i Cov(v, k_i); a uniform head averages to zero.

    **Arguments**: `C`, `R` `(P, P)` overlaps with metric Sigma and I, JAX or NumPy; `network` student or teacher.
    """
    xp: ModuleType = C.__array_namespace__()  # type: ignore[attr-defined]
    A = xp.eye(C.shape[0], dtype=C.dtype)
    for heads in network.layers:
        update = xp.zeros_like(A)
        for head in heads:
            for query, key in head.terms:
                covariance = A @ (C @ A[key])
                written = covariance if head.output is None else R[:, head.output] * covariance[head.value]
                update = update + xp.outer(written, A[query])
        A = A + update
    return A[np.asarray(network.readouts)]


def infinite_loss(
    C: Float[Array | np.ndarray, "P P"], R: Float[Array | np.ndarray, "P P"], architecture: Architecture
) -> Float[ArrayLike, ""]:
    """L = 1/2 sum_i b_i^T C b_i with b = a(student) - a(teacher): the population loss at infinite context.

    **Arguments**: `C`, `R` `(P, P)` overlaps with metric Sigma and I.

    **Returns** the mean square loss (half the squared error summed over outputs), dimensionless.
    """
    b = infinite_functionals(C, R, architecture.student) - infinite_functionals(C, R, architecture.teacher)
    return 0.5 * (b @ C * b).sum()
