"""Moments of the sample covariance of a context: exact at finite (D, P), and in the limit of large ones."""

from __future__ import annotations

from functools import cache

import sympy
from sympy.polys.domains import ZZ
from sympy.polys.rings import PolyElement, ring

DIMENSION, CONTEXT, RATIO = sympy.symbols("D P alpha", positive=True)
RING, D, P = ring("D, P", ZZ)


@cache
def trace_average(parts: tuple[int, ...]) -> PolyElement:
    r"""E of the product of tr S^p over `parts`, S = X X^T with X a D x P matrix of standard normals.

    Stein's lemma on the first X of the largest trace, t_k = sum_ia X_ia (X^T S^(k-1))_ai: E[t_k T] = (P + k - 1) E[t_(k-1) T] +
    sum_(j=1)^(k-1) E[t_j t_(k-1-j) T] + sum_i 2 p_i E[t_(k+p_i-1) T/t_(p_i)], t_0 = D. Each step lowers the degree by one.
    """
    if not parts:
        return RING(1)
    k, rest = parts[0], parts[1:]
    total = (P + (k - 1)) * _average((k - 1, *rest))
    for j in range(1, k):
        total += _average((j, k - 1 - j, *rest))
    for i, p in enumerate(rest):
        total += 2 * p * _average((k + p - 1, *rest[:i], *rest[i + 1 :]))
    return total


def _average(parts: tuple[int, ...]) -> PolyElement:
    """The same for parts in any order, zeros among them: each is a factor D."""
    ordered = tuple(sorted((p for p in parts if p), reverse=True))
    return D ** (len(parts) - len(ordered)) * trace_average(ordered)


def wishart_moment(k: int) -> sympy.Expr:
    """m_k = E tr (S/P)^k / D, exact."""
    return sympy.expand(
        trace_average((k,) if k else ()).as_expr(DIMENSION, CONTEXT) / (DIMENSION * CONTEXT**k)
        if k
        else sympy.Integer(1)
    )


def limit_moment(k: int) -> sympy.Expr:
    """What is left of m_k as D, P -> infinity with P = alpha D: its terms of the highest total degree."""
    if k == 0:
        return sympy.Integer(1)
    terms = trace_average((k,)).terms()
    return sympy.Add(*(c * RATIO ** (p - k) for (d, p), c in terms if d + p == k + 1))


def marchenko_pastur(k: int) -> sympy.Expr:
    """The printed sum: C(k, r) C(k - 1, r)/(r + 1) alpha^-r over r."""
    if k == 0:
        return sympy.Integer(1)
    return sympy.Add(
        *(sympy.binomial(k, r) * sympy.binomial(k - 1, r) / sympy.Integer(r + 1) * RATIO ** (-r) for r in range(k))
    )
