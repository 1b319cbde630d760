"""From one SGD step of the weights to the flow of the overlaps: an algebra of rows.

Student row i, entry k (eigenmode k of the token covariance, eigenvalue lam): one step of plain SGD with batch B is

    A_ik -> A_ik - (eta/B) sum_b gamma_ib - (w/N) A_ik,     gamma_ib = g_ib x_bk / sqrt(N),   g_ib = dl_b/dphi_i

`overlap_flow` multiplies out `A_ik A_jk`, averages over the batch (independent samples), puts in the single-sample
moments, multiplies by N (one unit of t is N steps) and takes N to infinity. `stein_moments` derives the single-sample
moments of gamma for any sample loss that is a function of Gaussian fields.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy
from sympy import S
from sympy.matrices.expressions import MatrixSymbol

from odescale.errors import InputError
from odescale.symbolic.gaussian import Gaussian

eta, batch, decay, trace, lam = sympy.symbols("eta B w N lambda", positive=True)


def _pair(name: str) -> tuple[sympy.Symbol, sympy.Symbol]:
    return sympy.Symbol(f"{name}_i"), sympy.Symbol(f"{name}_j")


@dataclass(frozen=True)
class OverlapFlow:
    """dq_ij/dt of one mode, as a scalar and as a matrix expression.

    **Fields**

    - `increment`: N E[Delta(A_i A_j)] before the limit; `flow`: the limit N -> infinity.
    - `matrix`: the same as `M q + q M^T + ...` with `G, H, V, S, q` matrix symbols of size P.
    - `rate`: M, the matrix that moves every row, `dA/dt = M A`.
    """

    increment: sympy.Expr
    flow: sympy.Expr
    matrix: sympy.MatrixExpr
    rate: sympy.MatrixExpr


# A: entry of a row; u: N E[gamma], the mean gradient; v: V_ij lam; s: 1 for a row that SGD moves.
ENTRY, MEAN, FLAG = _pair("A"), _pair("u"), _pair("s")
SECOND = sympy.Symbol("v_ij")
SIZE = sympy.Symbol("P", integer=True, positive=True)
G, H, V, S_ROWS, Q = (MatrixSymbol(n, SIZE, SIZE) for n in ("G", "H", "V", "S", "q"))


def batch_average(expression: sympy.Expr, sums: tuple[sympy.Symbol, sympy.Symbol]) -> sympy.Expr:
    """Average of a polynomial of degree at most (1, 1) in `X_i = sum_b gamma_ib`, samples independent.

    `E[X_i] = B u_i/N`, `E[X_i X_j] = B v_ij/N + B (B - 1) u_i u_j/N^2`.
    """
    polynomial = sympy.Poly(sympy.expand(expression), *sums)
    total = S.Zero
    for (i, j), coefficient in polynomial.terms():
        if i > 1 or j > 1:
            raise InputError(
                "expression", expected="degree one in each sum", got=str(expression), remedy="use one row per factor"
            )
        moment = S.One
        if i and j:
            moment = batch * SECOND / trace + batch * (batch - 1) * MEAN[0] * MEAN[1] / trace**2
        elif i or j:
            moment = batch * (MEAN[0] if i else MEAN[1]) / trace
        total += coefficient * moment
    return sympy.expand(total)


def overlap_flow(*, noise: bool = True, weight_decay: bool = True, write_back: bool = True) -> OverlapFlow:
    """Derives dq/dt of one mode from the SGD step; see the module for the update.

    **Arguments**: assumptions. `noise=False` drops the fluctuation of the gradient (infinite batch at fixed eta);
    `weight_decay=False` sets w = 0; `write_back=False` says that the overlaps R do not enter (H = 0).
    """
    sums = _pair("X")
    w = decay if weight_decay else S.Zero
    after = [a - s * (eta / batch * x + w / trace * a) for a, s, x in zip(ENTRY, FLAG, sums, strict=True)]
    increment = trace * batch_average(sympy.expand(after[0] * after[1] - ENTRY[0] * ENTRY[1]), sums)
    increment = sympy.expand(increment)
    if not noise:
        increment = sympy.expand(increment.subs(SECOND, MEAN[0] * MEAN[1] / trace))
    flow = sympy.expand(sympy.limit(increment, trace, sympy.oo))
    return OverlapFlow(increment, flow, *_lift(flow, write_back))


def _lift(flow: sympy.Expr, write_back: bool) -> tuple[sympy.MatrixExpr, sympy.MatrixExpr]:
    """Entries (i, j) to matrices: `u_i A_j -> (gradient) q`, with `u = (lam G + H) A`; `v_ij -> lam V`."""
    gradient = lam * G + (H if write_back else sympy.ZeroMatrix(SIZE, SIZE))
    matrix: sympy.MatrixExpr = sympy.ZeroMatrix(SIZE, SIZE)
    rate: sympy.MatrixExpr = sympy.ZeroMatrix(SIZE, SIZE)
    for term in sympy.Add.make_args(sympy.expand(flow)):
        coefficient, monomial = term.as_independent(*ENTRY, *MEAN, *FLAG, SECOND)
        # Rows of G, H and V of frozen rows are zero already, so the flags of trained rows are absorbed there.
        if monomial == FLAG[0] * MEAN[0] * ENTRY[1]:
            matrix, rate = matrix + coefficient * gradient * Q, rate + coefficient * gradient
        elif monomial == FLAG[1] * MEAN[1] * ENTRY[0]:
            matrix = matrix + coefficient * Q * gradient.T
        elif monomial == FLAG[0] * ENTRY[0] * ENTRY[1]:
            matrix, rate = matrix + coefficient * S_ROWS * Q, rate + coefficient * S_ROWS
        elif monomial == FLAG[1] * ENTRY[0] * ENTRY[1]:
            matrix = matrix + coefficient * Q * S_ROWS
        elif monomial == FLAG[0] * FLAG[1] * SECOND:
            matrix = matrix + coefficient * lam * V
        else:
            raise InputError(
                "flow", expected="terms linear in the moments", got=str(term), remedy="check the order in N of the step"
            )
    return matrix.doit(), rate.doit()


@dataclass(frozen=True)
class SampleMoments:
    """N E[gamma_i] and N E[gamma_i gamma_j] of one sample, before and after N -> infinity."""

    mean: sympy.Expr
    second: sympy.Expr
    mean_limit: sympy.Expr
    second_limit: sympy.Expr


def stein_moments(loss: sympy.Expr, gaussian: Gaussian, i: int, j: int) -> SampleMoments:
    """Moments of `gamma_i = g_i x_k/sqrt(N)`, `g_i = dl/dphi_i`, with `Cov(x_k, phi_j) = lam A_jk/sqrt(N)`, `Var x_k = lam`.

    Stein's identity in disguise: the mean is `lam sum_j E[d^2 l/dphi_i dphi_j] A_jk`, whatever the loss, and the second
    moment is `lam E[g_i g_j] + O(1/N)`. The entries of the rows are the symbols `A_<field>`.
    """
    x = sympy.Dummy("x")
    entries = [sympy.Symbol(f"A_{f.name}") for f in gaussian.fields]
    cross = [lam * a / sympy.sqrt(trace) for a in entries]
    covariance = sympy.Matrix(gaussian.covariance).row_join(sympy.Matrix(cross))
    covariance = covariance.col_join(sympy.Matrix([[*cross, lam]]))
    joint = Gaussian((*gaussian.fields, x), sympy.ImmutableMatrix(covariance))
    slopes = [sympy.diff(loss, gaussian.fields[m]) for m in (i, j)]
    mean = sympy.expand(trace * joint.expect(slopes[0] * x) / sympy.sqrt(trace))
    second = sympy.expand(trace * joint.expect(slopes[0] * slopes[1] * x**2) / trace)
    return SampleMoments(mean, second, sympy.limit(mean, trace, sympy.oo), sympy.limit(second, trace, sympy.oo))
