"""Symbols of the derivation of optimisers as preconditioners per mode."""

from __future__ import annotations

import sympy
from sympy.matrices.expressions import MatrixSymbol

from odescale.symbolic.sgd import SIZE, batch, lam, trace

RATE, TIME = sympy.symbols("a t", positive=True)
"""What stays fixed as N grows, the schedule included; t is counted in N steps."""
BETA, SHARE = sympy.symbols("beta s", positive=True)
"""Memory of the average of gradients, and the share of the present gradient in what moves the rows."""
DAMPING = sympy.Symbol("gamma", positive=True)
BETA1, BETA2, EPS = sympy.symbols("beta_1 beta_2 epsilon", positive=True)
FORGETTING = sympy.Symbol("g_2", positive=True)
NOISE, MEAN_SQUARE = sympy.symbols("V_ii m_ii", positive=True)
"""Entry of V, and of h_k q_k h_k^T averaged over the mode's entries."""
SECOND, KEPT, TARGET = sympy.symbols("v u T", positive=True)
"""N times the second moment: of the step, remembered from before it, and what it relaxes to."""
SQUARE, CROSS = sympy.Symbol("g_ii", positive=True), sympy.Symbol("g_ij", real=True)
"""|g|_ij^2 = sum_b sum_ts rho_ts g_bti g_bsj/B^2 of one batch."""
CLIP = sympy.Symbol("c_g", positive=True)
KURTOSIS = sympy.Symbol("k_4", positive=True)
"""E[ghat^4]/E[ghat^2]^2 of a coordinate."""
PRECONDITIONER = MatrixSymbol("P_k", SIZE, SIZE)

SOURCE, CAPACITY = sympy.symbols("c b", positive=True)
"""lam_k = k^-b, lam_k q_k(0) = k^-c."""
ALPHA, AMPLITUDE, INTRINSIC = sympy.symbols("alpha A tau", positive=True)
"""SGD's exponent (c - 1)/b; 2L = A tau^(-2 alpha); intrinsic time int a sqrt(B/V) dt."""
ROOT = sympy.Symbol("Lambda", positive=True)
"""<sqrt lam> = (1/N) sum_k sqrt lam_k."""
LOSS, VARIANCE = sympy.symbols("L V", positive=True)

CODE: dict[sympy.Basic, str] = {
    RATE: "rate", TIME: "t", BETA: "beta", SHARE: "share", DAMPING: "damping", BETA1: "beta1", BETA2: "beta2", EPS: "eps",
    FORGETTING: "forgetting", NOISE: "noise", MEAN_SQUARE: "mean", SECOND: "second", KEPT: "kept", TARGET: "target",
    SQUARE: "square", CLIP: "clip", SOURCE: "c", CAPACITY: "b", ALPHA: "alpha", AMPLITUDE: "amplitude", ROOT: "root",
    LOSS: "loss", VARIANCE: "V", batch: "batch", trace: "trace", lam: "eigenvalue",
}  # fmt: skip
"""Names of the symbols in generated code."""
