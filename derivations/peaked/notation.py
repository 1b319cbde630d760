"""Symbols of the derivation of peaked distributions, and the algebra of class-symmetric matrices."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from odescale.symbolic.sgd import batch, decay, eta

D = sympy.Symbol("D", real=True)
DELTA, SIZE = sympy.symbols("Delta s", nonnegative=True)
"""Overlap with the teacher, spread at right angles to it, and s = sqrt(D^2 + Delta)."""
K = sympy.Symbol("K", positive=True)
OTHERS, PER_BATCH = sympy.symbols("n b", positive=True)
"""K - 1 and 1/B, in which the flows are polynomials with no cancellation and no division by an infinite batch."""
DIMENSION = sympy.Symbol("d", positive=True)
SMOOTHING = sympy.Symbol("epsilon", nonnegative=True)
BETA, TEACHER_BETA = sympy.symbols("beta b_*", positive=True)
"""Inverse temperatures of student and teacher."""
MEAN_TOP, CURVATURE, SECOND_MOMENT = sympy.symbols("m H G", positive=True)
"""m = E[y.lam*], H = E[1 - |p|^2], G = E[|p - y|^2]."""
GAP = sympy.Symbol("m_gap", positive=True)
"""m - beta s H, tabulated, so that nothing cancels late."""
EXCESS = sympy.Symbol("s_minus_D", nonnegative=True)
RATE = sympy.Symbol("ell", positive=True)
"""Adam's learning rate per weight."""
TIME = sympy.Symbol("alpha", positive=True)
SOFTPLUS_MEAN = sympy.Symbol("E_softplus", positive=True)
"""E softplus(sqrt(2 Delta) xi), xi standard normal."""
DRIFT_CONSTANT = sympy.Symbol("c", positive=True)
"""c = pi^2 m_K/12."""

CODE = {
    D: "D", DELTA: "Delta", SIZE: "s", K: "classes", DIMENSION: "dimension", SMOOTHING: "smoothing", BETA: "beta",
    MEAN_TOP: "m", CURVATURE: "H", SECOND_MOMENT: "G", GAP: "mean_gap", EXCESS: "excess", RATE: "learning_rate",
    eta: "eta", batch: "batch", decay: "weight_decay", DRIFT_CONSTANT: "c", TIME: "alpha",
    TEACHER_BETA: "inverse_temperature", OTHERS: "others", PER_BATCH: "per_batch",
}  # fmt: skip
"""Names of the symbols in generated code."""


def compact(expression: sympy.Expr) -> sympy.Expr:
    """The expression in n = K - 1 and b = 1/B, multiplied out."""
    return sympy.expand(sympy.simplify(sympy.expand(expression.subs({K: OTHERS + 1, batch: 1 / PER_BATCH}))))


def readable(expression: sympy.Expr) -> sympy.Expr:
    """A compact expression with K and B back in it: K - 1 stays in one piece."""
    return expression.subs({OTHERS: K - 1, PER_BATCH: 1 / batch})


@dataclass(frozen=True)
class ClassMatrix:
    """A K x K matrix that any permutation of the classes leaves alone: one diagonal and one off-diagonal entry."""

    diagonal: sympy.Expr
    off: sympy.Expr

    def trace_of_product(self, other: ClassMatrix) -> sympy.Expr:
        """tr(A B), K a symbol."""
        return sympy.simplify(K * self.diagonal * other.diagonal + K * (K - 1) * self.off * other.off)

    def multiple_of(self, other: ClassMatrix) -> sympy.Expr:
        """The number x of A = x B; raises `ValueError` when A is no multiple of B."""
        ratio = sympy.simplify(self.diagonal / other.diagonal)
        if sympy.simplify(self.off - ratio * other.off) != 0:
            raise ValueError(f"{self} is no multiple of {other}")
        return ratio


CENTRING = ClassMatrix(1 - 1 / K, -1 / K)
"""P = I - 11^T/K."""
