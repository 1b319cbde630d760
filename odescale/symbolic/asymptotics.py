"""Long-time power laws of ordinary differential equations by dominant balance.

    dX_i/dt = sum_k a_k t^p_k prod_j X_j^e_kj      ->      X_i ~ C_i t^theta_i,  t -> infinity

In each equation two or more terms balance and all others are smaller by a power of t; the time derivative counts as a term.
`dominant_balances` tries every choice, solves the linear equations for the exponents and those for the prefactors, and keeps
what is consistent: discarded terms really smaller, prefactors positive, a slaved unknown attracted to its balance. What that
asks of symbols in the exponents (a schedule's power g) comes out as inequalities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

import sympy
from sympy import S
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from odescale.errors import InputError
from odescale.symbolic.inequalities import (
    Inequality,
    from_relational,
    implied,
    informative,
    of_symbols,
    possible,
    sign_conditions,
)
from odescale.symbolic.power_laws import Balance, Discarded, Monomial, monomials, tidy

Growth = Literal["vanishing", "constant", "growing"]


# ---------------------------------------------------------------------------------------------------------------------
# Reading equations
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Equation:
    unknown: sympy.Symbol
    terms: tuple[Monomial, ...]
    # h of the terms h X/t, which scale as the derivative whatever theta is.
    euler: sympy.Expr
    algebraic: bool


def _equations(
    equations: Mapping[sympy.Symbol, sympy.Expr], time: sympy.Symbol, algebraic: Sequence[sympy.Symbol]
) -> tuple[_Equation, ...]:
    unknowns = tuple(equations)
    if not unknowns or time in unknowns or not set(algebraic) <= set(unknowns):
        raise InputError(
            "equations",
            expected="a right-hand side for each unknown, time not among them",
            got=str(unknowns),
            remedy="map every unknown to its right-hand side",
        )
    read = []
    for place, (unknown, rhs) in enumerate(equations.items()):
        unit = tuple(S.One if j == place else S.Zero for j in range(len(unknowns)))
        terms, euler = [], S.Zero
        for term in monomials(sympy.sympify(rhs), unknowns, time, f"equation of {unknown}"):
            if unknown not in algebraic and term.exponents == unit and term.power == -1:
                euler += term.coefficient
            else:
                terms.append(term)
        if unknown not in algebraic:
            derivative = sympy.Derivative(unknown, time)
            terms.insert(0, Monomial(S.One, -S.One, unit, True, derivative - euler * unknown / time))
        read.append(_Equation(unknown, tuple(terms), euler, unknown in algebraic))
    return tuple(read)


# ---------------------------------------------------------------------------------------------------------------------
# The search
# ---------------------------------------------------------------------------------------------------------------------


class _Inconsistent(Exception):
    """Why a choice of balances is none."""


def dominant_balances(
    equations: Mapping[sympy.Symbol, sympy.Expr],
    time: sympy.Symbol,
    *,
    algebraic: Sequence[sympy.Symbol] = (),
    assume: Sequence[Relational] = (),
    growth: Mapping[sympy.Symbol, Growth] | None = None,
) -> tuple[Balance, ...]:
    """All X_i ~ C_i t^theta_i, t -> infinity, of dX_i/dt = (sum of monomials), that are consistent.

    **Arguments**

    - `equations`: unknown -> right-hand side, a sum of `coefficient t^p prod X^e`. Exponents are numbers or linear in
      symbols; a coefficient may be a function of unknowns that tend to constants.
    - `algebraic`: unknowns whose equation is `0 = rhs`.
    - `assume`: inequalities such as `g < 1`; positive and nonnegative symbols say so themselves. Coefficients count as
      positive only if sympy can tell.
    - `growth`: unknown -> "vanishing", "constant" or "growing", when the equations hold for such alone.

    **Returns** the balances, those with the fewest conditions first. **Raises** `InputError` for what is no sum of monomials,
    and, with every balance tried and why it fails, when none is consistent. Solutions that are no power laws (logarithms,
    exponentials, finite-time blow-up) are not seen. Source: Bender & Orszag, Advanced Mathematical Methods, ch. 3-4.

    >>> D, c, t = sympy.symbols("D c t", positive=True)
    >>> dominant_balances({D: c / D**2}, t)[0].exponents
    {D: 1/3}
    """
    system = _equations(equations, time, algebraic)
    parameters = {s for e in system for m in e.terms for x in (m.power, *m.exponents) for s in x.free_symbols}
    parameters |= {s for e in system for s in e.euler.free_symbols}
    given = [*of_symbols(parameters), *(from_relational(c) for c in assume)]
    for unknown, kind in (growth or {}).items():
        if unknown not in equations or kind not in ("vanishing", "constant", "growing"):
            raise InputError(
                "growth",
                expected="unknown -> 'vanishing', 'constant' or 'growing'",
                got=f"{unknown}: {kind}",
                remedy="name an unknown of the equations",
            )
    found: list[Balance] = []
    met: set = set()
    tried: dict[str, str] = {}
    for choice in product(*(_choices(e) for e in system)):
        label = "; ".join(" ~ ".join(str(e.terms[k].source) for k in c) for e, c in zip(system, choice, strict=True))
        try:
            theta = _exponents(system, choice)
            found += _consistent(system, choice, theta, time, given, growth or {}, met)
        except _Inconsistent as reason:
            tried[label] = str(reason)
    if not found:
        raise InputError(
            "equations",
            expected="a consistent balance of powers",
            got="no consistent balance",
            remedy="tried: " + "; ".join(f"[{label}] {reason}" for label, reason in tried.items()),
        )
    return tuple(sorted(found, key=lambda b: (len(b.conditions), str(b.exponents))))


def _choices(equation: _Equation) -> Iterator[tuple[int, ...]]:
    """Two terms that balance, or the derivative alone (the unknown keeps what it has, but for terms h X/t)."""
    yield from combinations(range(len(equation.terms)), 2)
    if not equation.algebraic:
        yield (0,)


def _exponents(system: tuple[_Equation, ...], choice: tuple[tuple[int, ...], ...]) -> tuple[sympy.Expr, ...]:
    size = len(system)
    rows, right = [], []
    for place, (equation, pair) in enumerate(zip(system, choice, strict=True)):
        if len(pair) == 1:
            rows.append([S.One if j == place else S.Zero for j in range(size)])
            right.append(equation.euler)
            continue
        a, b = (equation.terms[k] for k in pair)
        rows.append([x - y for x, y in zip(a.exponents, b.exponents, strict=True)])
        right.append(b.power - a.power)
    matrix = sympy.Matrix(rows)
    if _vanishes(matrix.det()):
        raise _Inconsistent("does not fix the exponents")
    return tuple(tidy(x) for x in matrix.LUsolve(sympy.Matrix(right)))


def _same(a: sympy.Expr, b: sympy.Expr) -> bool:
    return _vanishes(a - b)


def _vanishes(value: sympy.Expr) -> bool:
    """value = 0. Exponents are rational in their symbols: one fraction decides as surely as `simplify`, and sooner."""
    if value.is_Rational:
        return value == 0
    return (sympy.cancel(value) if value.is_rational_function() else sympy.simplify(value)) == 0


def _consistent(
    system: tuple[_Equation, ...],
    choice: tuple[tuple[int, ...], ...],
    theta: tuple[sympy.Expr, ...],
    time: sympy.Symbol,
    given: list[Inequality],
    growth: Mapping[sympy.Symbol, Growth],
    met: set,
) -> list[Balance]:
    """The balances with these exponents, one for each way in which the prefactors come out positive.

    Three terms that balance are met in three pairs: `met` holds those seen.
    """
    unknowns = [e.unknown for e in system]
    needs: list[Inequality] = []
    for unknown, kind in growth.items():
        x = theta[unknowns.index(unknown)]
        if kind == "constant":
            if x != 0:
                raise _Inconsistent(f"{unknown} ~ {time}^({x}) is not constant")
        else:
            needs.append(Inequality(x if kind == "growing" else -x))
            if not possible([*given, *needs]):
                raise _Inconsistent(f"{unknown} ~ {time}^({x}) is not {kind}")
    dominant: list[list[Monomial]] = []
    left_out: list[list[Discarded]] = []
    slaved, free = [], []
    for place, (equation, pair) in enumerate(zip(system, choice, strict=True)):
        inner, smaller, asks = _split(equation, pair, theta, theta[place], [*given, *needs])
        needs += asks
        dominant.append(inner)
        left_out.append(smaller)
        if len(pair) == 1:
            free.append(equation.unknown)
        elif not equation.algebraic and not any(m.derivative for m in inner):
            slaved.append(equation.unknown)
    key = (theta, *(tuple(m.source for m in inner) for inner in dominant))
    if key in met:
        return []
    met.add(key)
    _functions_at_rest(system, theta)
    constants = {u: sympy.Symbol(f"C_{u}", positive=True) for u in unknowns}
    found = []
    for prefactors, signs in _prefactors(system, theta, dominant, free, constants, [*given, *needs]):
        if not possible([*given, *needs, *signs]):
            continue
        if _repelled(system, dominant, slaved, {**constants, **prefactors}, time):
            raise _Inconsistent("the slaved unknown is repelled from it")
        conditions = informative([*needs, *signs], given)
        found.append(
            Balance(
                time,
                dict(zip(unknowns, theta, strict=True)),
                {u: prefactors.get(u, constants[u]) for u in unknowns},
                constants,
                {e.unknown: tuple(m.source for m in inner) for e, inner in zip(system, dominant, strict=True)},
                {e.unknown: tuple(out) for e, out in zip(system, left_out, strict=True)},
                tuple(c.relational() for c in conditions),
                tuple(slaved),
                tuple(free),
                tuple(given),
            )
        )
    if not found:
        raise _Inconsistent("no positive prefactors")
    return found


def _split(
    equation: _Equation,
    pair: tuple[int, ...],
    theta: tuple[sympy.Expr, ...],
    own: sympy.Expr,
    known: list[Inequality],
) -> tuple[list[Monomial], list[Discarded], list[Inequality]]:
    """(terms that balance, terms left out, what that needs) when the terms `pair` are the largest."""
    terms = equation.terms
    orders = [m.order(theta) for m in terms]
    # A derivative of coefficient theta - h = 0 is no term of a balance; what is left of it is smaller than it looks.
    vanishing = next((k for k, m in enumerate(terms) if m.derivative and _same(own, equation.euler)), None)
    if len(pair) == 2 and vanishing in pair:
        raise _Inconsistent(f"the derivative of {equation.unknown} vanishes")
    top = orders[pair[0]]
    inner = [k for k in range(len(terms)) if k in pair or (len(pair) > 1 and k != vanishing and _same(orders[k], top))]
    needs, out = [], []
    for k in range(len(terms)):
        if k in inner:
            continue
        gap = tidy(top - orders[k])
        ask = Inequality(gap, k != vanishing)
        if not possible([*known, *needs, ask]):
            raise _Inconsistent(f"{terms[k].source} is not smaller")
        needs.append(ask)
        out.append(Discarded(terms[k].source, gap))
    return [terms[k] for k in inner], out, needs


def _functions_at_rest(system: tuple[_Equation, ...], theta: tuple[sympy.Expr, ...]) -> None:
    """A coefficient that is a function of an unknown is a constant only when the unknown tends to one."""
    for equation in system:
        for term in equation.terms:
            for function in term.coefficient.atoms(AppliedUndef):
                for other, x in zip(system, theta, strict=True):
                    if other.unknown in function.free_symbols and x != 0:
                        raise _Inconsistent(f"{function} is no constant")


def _prefactors(
    system: tuple[_Equation, ...],
    theta: tuple[sympy.Expr, ...],
    dominant: list[list[Monomial]],
    free: list[sympy.Symbol],
    constants: dict[sympy.Symbol, sympy.Symbol],
    given: list[Inequality],
) -> Iterator[tuple[dict[sympy.Symbol, sympy.Expr], list[Inequality]]]:
    """Prefactors of the unknowns that are not free, with the conditions under which they are positive."""
    at_rest = {e.unknown: constants[e.unknown] for e in system}
    live = [n for n, e in enumerate(system) if e.unknown not in free]

    def coefficient(n: int, m: Monomial) -> sympy.Expr:
        value = (system[n].euler - theta[n]) if m.derivative else m.coefficient
        kept = sympy.Mul(*(constants[system[j].unknown] ** m.exponents[j] for j in range(len(system)) if j not in live))
        return value.subs(at_rest) * kept

    if all(len(dominant[n]) == 2 for n in live):
        ratios = []
        for n in live:
            a, b = dominant[n]
            ratios.append(sympy.factor(-coefficient(n, b) / coefficient(n, a)))
        ways = [sign_conditions(r, given) for r in ratios]
        matrix = sympy.Matrix(
            [[dominant[n][0].exponents[j] - dominant[n][1].exponents[j] for j in live] for n in live]
        )  # fmt: skip
        if matrix.shape[0] and _vanishes(matrix.det()):
            raise _Inconsistent("does not fix the prefactors")
        inverse = matrix.inv() if matrix.shape[0] else matrix
        values = {
            system[n].unknown: sympy.powsimp(sympy.Mul(*(r ** inverse[row, k] for k, r in enumerate(ratios))))
            for row, n in enumerate(live)
        }
        for way in product(*ways):
            yield values, [c for conditions in way for c in conditions]
        return
    total = [
        sympy.Add(
            *(
            coefficient(n, m) * sympy.Mul(*(constants[system[j].unknown] ** m.exponents[j] for j in live))
            for m in dominant[n]
            )
        )
        for n in live
    ]  # fmt: skip
    symbols = [constants[system[n].unknown] for n in live]
    for equation in total:
        signs = {1 if term.is_positive else -1 if term.is_negative else 0 for term in equation.args}
        if equation.is_Add and signs in ({1}, {-1}):
            raise _Inconsistent("no positive prefactors")
    for solution in sympy.solve(total, symbols, dict=True):
        if set(solution) != set(symbols):
            continue
        ways = [sign_conditions(x, given) for x in solution.values()]
        for way in product(*ways):
            yield (
                {u: solution[c] for u, c in constants.items() if c in solution},
                [c for conditions in way for c in conditions],
            )


def _repelled(
    system: tuple[_Equation, ...],
    dominant: list[list[Monomial]],
    slaved: list[sympy.Symbol],
    values: dict[sympy.Symbol, sympy.Expr],
    time: sympy.Symbol,
) -> bool:
    """True when one unknown is slaved and its right-hand side surely grows with it at the balance."""
    if len(slaved) != 1:
        return False
    place = [e.unknown for e in system].index(slaved[0])
    names = [e.unknown for e in system]
    slope = sum(
        m.exponents[place]
        * m.coefficient.subs(values)
        * sympy.Mul(*(values[u] ** x for u, x in zip(names, m.exponents, strict=True)))
        for m in dominant[place]
    )
    return bool(sympy.simplify(slope).is_positive)


# ---------------------------------------------------------------------------------------------------------------------
# The next order
# ---------------------------------------------------------------------------------------------------------------------


def next_order(
    equations: Mapping[sympy.Symbol, sympy.Expr], balance: Balance, *, algebraic: Sequence[sympy.Symbol] = ()
) -> tuple[dict[sympy.Symbol, sympy.Expr], sympy.Expr]:
    """(epsilon, gamma) of `X = C t^theta (1 + epsilon t^-gamma + ...)`: what the largest discarded terms do.

    Memory of the start (a shift of t: relative order 1/t) is not part of it. Raises `InputError` when the size of gaps is
    not decided, when nothing was discarded, or at a resonance, where the next order carries a logarithm.
    """
    system = _equations(equations, balance.time, algebraic)
    unknowns = tuple(equations)
    theta, C = tuple(balance.exponents.values()), balance.prefactors
    gaps = {d.gap for out in balance.discarded.values() for d in out}
    if not gaps:
        raise InputError("balance", expected="discarded terms", got="none", remedy="the power law is exact")
    given = [*balance.given, *(from_relational(c) for c in balance.conditions)]
    smallest = [g for g in gaps if all(g == o or implied(Inequality(o - g), given) for o in gaps)]
    if len(smallest) != 1:
        raise InputError("balance", expected="one smallest gap", got=str(gaps), remedy="put numbers for the exponents")
    gamma = smallest[0]
    shift = sympy.symbols(f"epsilon:{len(unknowns)}")
    rows = []
    for n, equation in enumerate(system):
        row = S.Zero
        for m in equation.terms:
            size = sympy.Mul(*(C[u] ** e for u, e in zip(unknowns, m.exponents, strict=True)))
            if m.source in balance.dominant[equation.unknown]:
                if m.derivative:
                    row -= size * (theta[n] - gamma - equation.euler) * shift[n]
                else:
                    row += size * m.coefficient * sum(e * x for e, x in zip(m.exponents, shift, strict=True))
            elif any(_same(d.gap, gamma) and d.term == m.source for d in balance.discarded[equation.unknown]):
                row += size * ((equation.euler - theta[n]) if m.derivative else m.coefficient)
        rows.append(row)
    matrix, right = sympy.linear_eq_to_matrix(rows, shift)
    if _vanishes(matrix.det()):
        raise InputError("balance", expected="no resonance", got=f"gamma = {gamma}", remedy="expect a logarithm")
    return dict(zip(unknowns, (sympy.simplify(x) for x in matrix.LUsolve(right)), strict=True)), gamma
