"""Power laws of a system of equations: monomials, and a consistent balance of them with its exponents and prefactors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy
from sympy import S
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from odescale.errors import InputError
from odescale.symbolic.inequalities import Inequality, from_relational, implied


@dataclass(frozen=True)
class Monomial:
    """`coefficient * t^power * prod X^exponent`; `derivative`: the term dX/dt - h X/t, of coefficient h - theta."""

    coefficient: sympy.Expr
    power: sympy.Expr
    exponents: tuple[sympy.Expr, ...]
    derivative: bool = False
    source: sympy.Expr = S.Zero

    def order(self, theta: Sequence[sympy.Expr]) -> sympy.Expr:
        """Its power of t when X_j ~ t^theta_j."""
        return sympy.expand(self.power + sum(e * x for e, x in zip(self.exponents, theta, strict=True)))


@dataclass(frozen=True)
class Discarded:
    """A term left out: smaller than the balance of its equation by t^-gap."""

    term: sympy.Expr
    gap: sympy.Expr


@dataclass(frozen=True)
class Balance:
    """X ~ C t^theta for every unknown, with what balances and what it takes.

    **Fields**

    - `exponents`, `prefactors`: unknown -> theta, C. A C may hold a function of `constants[Y]` (implicit: solve it
      numerically) or `constants[Y]` of a `free` Y (set by the start).
    - `dominant`, `discarded`: unknown -> terms of its equation; the derivative is `Derivative(X, t)`.
    - `conditions`: inequalities between symbols of exponents that it needs beyond what was assumed.
    - `slaved`: unknowns whose derivative is discarded. `free`: unknowns whose prefactor the start sets.
    """

    time: sympy.Symbol
    exponents: dict[sympy.Symbol, sympy.Expr]
    prefactors: dict[sympy.Symbol, sympy.Expr]
    constants: dict[sympy.Symbol, sympy.Symbol]
    dominant: dict[sympy.Symbol, tuple[sympy.Expr, ...]]
    discarded: dict[sympy.Symbol, tuple[Discarded, ...]]
    conditions: tuple[Relational, ...]
    slaved: tuple[sympy.Symbol, ...]
    free: tuple[sympy.Symbol, ...]
    given: tuple[Inequality, ...]

    def leading(self, quantity: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
        """(c, p) of `quantity ~ c t^p`, a sum of monomials of unknowns and time: its largest term, or equal ones' sum.

        Raises `InputError` when the conditions leave open which term is the largest.
        """
        unknowns = tuple(self.exponents)
        theta = tuple(self.exponents.values())
        terms = monomials(quantity, unknowns, self.time, "quantity")
        given = [*self.given, *(from_relational(c) for c in self.conditions)]
        largest = [terms[0]]
        for term in terms[1:]:
            gap = sympy.expand(largest[0].order(theta) - term.order(theta))
            if gap == 0:
                largest.append(term)
            elif implied(Inequality(-gap), given):
                largest = [term]
            elif not implied(Inequality(gap), given):
                raise InputError(
                    "quantity",
                    expected="one term that is the largest under the conditions",
                    got=f"{largest[0].source} and {term.source}",
                    remedy="assume more about the exponents",
                )
        at = {**dict(self.prefactors), self.time: S.One}
        total = sum(term.source.subs(at, simultaneous=True) for term in largest)
        return sympy.powsimp(sympy.simplify(total)), tidy(largest[0].order(theta))

    def exponent(self, quantity: sympy.Expr) -> sympy.Expr:
        """p of `quantity ~ t^p`."""
        return self.leading(quantity)[1]

    def power_law(self, quantity: sympy.Expr) -> sympy.Expr:
        """`c t^p` of the quantity."""
        coefficient, power = self.leading(quantity)
        return coefficient * self.time**power


def monomials(
    expression: sympy.Expr, unknowns: Sequence[sympy.Symbol], time: sympy.Symbol, name: str
) -> list[Monomial]:
    """The terms of a sum; a factor that is neither a power of an unknown nor free of them is refused by name."""
    moving = {*unknowns, time}
    found = []
    for term in sympy.Add.make_args(sympy.expand(sympy.expand_power_base(sympy.expand(expression), force=True))):
        if term == 0:
            continue
        coefficient, power, exponents = S.One, S.Zero, dict.fromkeys(unknowns, S.Zero)
        for factor in sympy.Mul.make_args(term):
            base, exponent = factor.as_base_exp()
            inside = factor.free_symbols & moving
            if not inside:
                coefficient *= factor
            elif base == time and not exponent.free_symbols & moving:
                power += exponent
            elif base in exponents and not exponent.free_symbols & moving:
                exponents[base] += exponent
            elif isinstance(base, AppliedUndef) and not inside & {time} and not exponent.free_symbols & moving:
                coefficient *= factor
            else:
                raise InputError(
                    name,
                    expected=f"a sum of monomials of {', '.join(map(str, unknowns))} and {time}",
                    got=str(factor),
                    remedy="expand it for late times first, or make it an unknown with an equation of its own",
                )
        found.append(Monomial(coefficient, power, tuple(exponents.values()), source=term))
    return _collected(found)


def _collected(terms: list[Monomial]) -> list[Monomial]:
    """Equal powers in one term: 2 ln 2 X - X is one term, of one sign."""
    kept: dict[tuple[sympy.Expr, ...], Monomial] = {}
    for term in terms:
        key = (sympy.expand(term.power), *(sympy.expand(e) for e in term.exponents))
        if key in kept:
            total = sympy.factor_terms(kept[key].coefficient + term.coefficient)
            term = Monomial(
                total, term.power, term.exponents, source=sympy.factor_terms(kept[key].source + term.source)
            )
        kept[key] = term
    return [term for term in kept.values() if term.coefficient != 0]


def tidy(exponent: sympy.Expr) -> sympy.Expr:
    """Multiplied out when it is a polynomial of its symbols, else one fraction."""
    exponent = sympy.together(sympy.expand(exponent))
    below = sympy.fraction(exponent)[1]
    return sympy.factor(exponent) if below.free_symbols else sympy.expand(exponent)
