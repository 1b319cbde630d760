"""Linear inequalities between exponents: is a set of them possible, which of them say something, how they read.

An inequality is `expression > 0` (strict) or `expression >= 0`, the expression linear in free symbols with rational
coefficients. Fourier-Motzkin elimination decides exactly; the sets here have a handful of members.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import sympy
from sympy import S
from sympy.core.relational import Relational

from odescale.errors import InputError


@dataclass(frozen=True)
class Inequality:
    """`expression > 0`, or `>= 0` when not `strict`."""

    expression: sympy.Expr
    strict: bool = True

    @property
    def linear(self) -> bool:
        """True when elimination can use it: degree one, rational coefficients."""
        symbols = sorted(self.expression.free_symbols, key=lambda s: s.name)
        if not symbols:
            return bool(self.expression.is_Rational)
        try:
            polynomial = sympy.Poly(self.expression, *symbols)
        except sympy.PolynomialError:
            return False
        return polynomial.total_degree() <= 1 and all(c.is_Rational for c in polynomial.coeffs())

    def negated(self) -> Inequality:
        """The opposite statement."""
        return Inequality(-self.expression, not self.strict)

    def relational(self) -> Relational | sympy.logic.boolalg.Boolean:
        """A sympy relational; solved for the symbol when there is one, else negative terms on the other side."""
        e = sympy.expand(self.expression)
        symbols = e.free_symbols
        if self.linear and len(symbols) == 1:
            (symbol,) = symbols
            slope = e.coeff(symbol)
            root = -e.subs(symbol, 0) / slope
            if slope > 0:
                return sympy.Gt(symbol, root) if self.strict else sympy.Ge(symbol, root)
            return sympy.Lt(symbol, root) if self.strict else sympy.Le(symbol, root)
        if self.linear and symbols:
            e = sympy.Poly(e, *sorted(symbols, key=lambda s: s.name)).primitive()[1].as_expr()
        terms = sympy.Add.make_args(e)
        below = sympy.Add(*(-t for t in terms if t.could_extract_minus_sign()))
        above = e + below
        return sympy.Lt(below, above) if self.strict else sympy.Le(below, above)


def from_relational(condition: Relational) -> Inequality:
    """`g < 1` and its like; equalities and unequalities are refused."""
    if isinstance(condition, (sympy.Gt, sympy.Ge)):
        return Inequality(sympy.expand(condition.lhs - condition.rhs), isinstance(condition, sympy.Gt))
    if isinstance(condition, (sympy.Lt, sympy.Le)):
        return Inequality(sympy.expand(condition.rhs - condition.lhs), isinstance(condition, sympy.Lt))
    raise InputError("assume", expected="inequalities such as g < 1", got=str(condition), remedy="use <, <=, > or >=")


def of_symbols(symbols: Iterable[sympy.Symbol]) -> list[Inequality]:
    """What the symbols' own assumptions say."""
    found = []
    for s in sorted(symbols, key=lambda s: s.name):
        if s.is_positive:
            found.append(Inequality(s))
        elif s.is_nonnegative:
            found.append(Inequality(s, False))
        elif s.is_negative:
            found.append(Inequality(-s))
    return found


def possible(inequalities: Sequence[Inequality]) -> bool:
    """False when no values of the symbols meet all linear members; members that are not linear are passed over."""
    rows = [(sympy.expand(i.expression), i.strict) for i in inequalities if i.linear]
    while True:
        symbols = sorted({s for e, _ in rows for s in e.free_symbols}, key=lambda s: s.name)
        if not symbols:
            return all(e > 0 if strict else e >= 0 for e, strict in rows)
        x = symbols[0]
        lower, upper, rest = [], [], []
        for e, strict in rows:
            slope = e.coeff(x)
            if slope == 0:
                rest.append((e, strict))
            else:
                bound = (sympy.expand(e / abs(slope) - sympy.sign(slope) * x), strict)
                (lower if slope > 0 else upper).append(bound)
        # x > -a and x < b: a + b > 0.
        rows = rest + [
            (sympy.expand(a + b), strict or also) for (a, strict), (b, also) in product(lower, upper)
        ]  # fmt: skip


def implied(inequality: Inequality, by: Sequence[Inequality]) -> bool:
    """True when `by` leave no room for the opposite."""
    return inequality.linear and not possible([*by, inequality.negated()])


def informative(inequalities: Sequence[Inequality], given: Sequence[Inequality]) -> list[Inequality]:
    """The members that neither `given` nor the others imply, in a canonical order without repetition."""
    kept: list[Inequality] = []
    for i in sorted(
        set(inequalities), key=lambda i: (sympy.count_ops(i.expression), sympy.default_sort_key(i.expression))
    ):
        if not implied(i, given):
            kept.append(i)
    for i in list(reversed(kept)):
        others = [j for j in kept if j is not i]
        if implied(i, [*given, *others]):
            kept = others
    return kept


def _probed(factor: sympy.Expr) -> int:
    """Sign of a factor with roots, such as 1 - sqrt(1 + 4 a b), that sympy leaves open: 0 when it differs between probes.

    Symbols are put at 24 sets of numbers between 2^-12 and 2^12 that their own assumptions allow.
    """
    roots = [e for e in factor.atoms(sympy.Pow) if not e.exp.is_integer and not e.exp.free_symbols]
    symbols = sorted(factor.free_symbols, key=lambda s: s.name)
    if not roots or not symbols or not all(s.is_positive for s in symbols):
        return 0
    signs = set()
    for n in range(1, 25):
        values = {s: S(2) ** ((n * (7 + 5 * k)) % 25 - 12) for k, s in enumerate(symbols)}
        signs.add(sympy.sign(sympy.N(factor.subs(values), 30)))
    return int(signs.pop()) if len(signs) == 1 and signs <= {S.One, S.NegativeOne} else 0


def sign_conditions(expression: sympy.Expr, given: Sequence[Inequality]) -> list[list[Inequality]]:
    """The ways in which `expression` is positive: each a list of inequalities on its factors. Empty: never."""
    expression = sympy.factor(sympy.together(expression))
    sign, open_factors = S.One, []
    for factor in sympy.Mul.make_args(expression):
        base, power = factor.as_base_exp()
        if factor.is_positive or (power.is_even and base.is_real and base.is_nonzero):
            continue
        if factor.is_zero:
            return []
        if factor.is_negative or _probed(factor) < 0:
            sign = -sign
        elif _probed(factor) > 0:
            continue
        elif power.is_integer:
            if power.is_odd:
                open_factors.append(base)
        else:
            open_factors.append(base)
    ways = []
    for signs in product((1, -1), repeat=len(open_factors)):
        if sympy.Mul(sign, *signs) != 1:
            continue
        conditions = [Inequality(sympy.expand(s * f)) for s, f in zip(signs, open_factors, strict=True)]
        if possible([*given, *conditions]):
            ways.append(conditions)
    return ways
