"""Derivatives of matrix expressions by sympy, brought to one deterministic normal form: sums of weighted chains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sympy
from sympy.matrices.expressions import MatAdd, MatMul, MatrixSymbol, Trace, Transpose, ZeroMatrix

from odescale.errors import InputError


@dataclass(frozen=True)
class Chain:
    """`coefficient * X1 X2^T ...`: the factors in order, each with its transpose flag."""

    coefficient: sympy.Expr
    factors: tuple[tuple[MatrixSymbol, bool], ...]

    @property
    def shape(self) -> tuple[sympy.Expr, sympy.Expr]:
        """Rows and columns of the product."""
        return rows(self.factors[0]), columns(self.factors[-1])


def rows(factor: tuple[MatrixSymbol, bool]) -> sympy.Expr:
    """Number of rows of a factor."""
    return factor[0].shape[1 if factor[1] else 0]


def columns(factor: tuple[MatrixSymbol, bool]) -> sympy.Expr:
    """Number of columns of a factor."""
    return factor[0].shape[0 if factor[1] else 1]


def chains(expression: sympy.Basic, symmetric: Iterable[MatrixSymbol] = ()) -> tuple[Chain, ...]:
    """The expression as a sum of chains, like chains collected, in an order that depends only on names.

    Transposes of matrices in `symmetric` are dropped.
    """
    symmetric = set(symmetric)
    expanded = sympy.expand(expression.doit()) if isinstance(expression, MatMul | MatAdd) else expression.doit()
    collected: dict[tuple[tuple[MatrixSymbol, bool], ...], sympy.Expr] = {}
    for term in expanded.args if isinstance(expanded, MatAdd) else (expanded,):
        if isinstance(term, ZeroMatrix):
            continue
        coefficient, matrices = term.as_coeff_matrices() if isinstance(term, MatMul) else (sympy.S.One, [term])
        factors = []
        for matrix in matrices:
            flipped = isinstance(matrix, Transpose)
            symbol = matrix.arg if isinstance(matrix, Transpose) else matrix
            if not isinstance(symbol, MatrixSymbol):
                raise InputError(
                    "expression",
                    expected="sums of products of matrix symbols and transposes",
                    got=str(matrix),
                    remedy="expand the product first",
                )
            factors.append((symbol, flipped and symbol not in symmetric))
        key = tuple(factors)
        collected[key] = collected.get(key, sympy.S.Zero) + coefficient
    ordered = sorted(collected.items(), key=lambda item: (len(item[0]), [(s.name, t) for s, t in item[0]]))
    return tuple(Chain(c, f) for f, c in ordered if c != 0)


def assemble(parts: Iterable[Chain], shape: tuple[sympy.Expr, sympy.Expr]) -> sympy.MatrixExpr:
    """The sum of chains as a sympy expression."""
    total: sympy.MatrixExpr = ZeroMatrix(*shape)
    for part in parts:
        product = MatMul(*(Transpose(s) if t else s for s, t in part.factors)).doit()
        total = total + part.coefficient * product
    return total


def adjoint(
    function: sympy.MatrixExpr,
    cotangent: MatrixSymbol,
    variable: MatrixSymbol,
    symmetric: Iterable[MatrixSymbol] = (),
) -> sympy.MatrixExpr:
    """`d tr(B^T F)/dX`: what the cotangent B of F(X) becomes on X, by sympy's matrix differentiation.

    **Arguments**: `function` F, a sum of products of matrix symbols; `cotangent` B of the shape of F; `variable` X;
    `symmetric`: symbols whose transpose is dropped *after* differentiation (entries are varied independently).
    """
    gradient = Trace(cotangent.T * function).diff(variable)
    if gradient == 0 or isinstance(gradient, ZeroMatrix):
        return ZeroMatrix(*variable.shape)
    return assemble(chains(gradient, symmetric), variable.shape)
