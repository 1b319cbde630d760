"""Scalar sympy expressions to JAX source, by an explicit list of functions: everything else is refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import sympy
from sympy import S

from odescale.errors import InputError

# sympy's own JAX printer falls through to bare names (`erf`) for what it does not know; those bind Python's math
# module.
FUNCTIONS: dict[type, str] = {
    sympy.exp: "jnp.exp",
    sympy.log: "jnp.log",
    sympy.sin: "jnp.sin",
    sympy.cos: "jnp.cos",
    sympy.tan: "jnp.tan",
    sympy.asin: "jnp.arcsin",
    sympy.acos: "jnp.arccos",
    sympy.atan: "jnp.arctan",
    sympy.sinh: "jnp.sinh",
    sympy.cosh: "jnp.cosh",
    sympy.tanh: "jnp.tanh",
    sympy.erf: "jax.scipy.special.erf",
    sympy.Abs: "jnp.abs",
}
_ATOM, _POWER, _PRODUCT, _SUM = 3, 2, 1, 0


def to_jax(expression: sympy.Basic, names: Mapping[sympy.Basic, str] | None = None) -> str:
    """JAX source of a scalar expression. `names` maps symbols to code; other symbols print under their own name.

    Raises `InputError` naming the function when it is not in `FUNCTIONS`.
    """
    text, _ = _scalar(sympy.sympify(expression), dict(names or {}))
    return text


def _scalar(e: sympy.Basic, names: dict[sympy.Basic, str]) -> tuple[str, int]:
    if e in names:
        return names[e], _ATOM
    if isinstance(e, sympy.Symbol):
        if not e.name.isidentifier():
            raise InputError("symbol", expected="a Python name, or an entry of `names`", got=e.name, remedy="map it")
        return e.name, _ATOM
    if isinstance(e, sympy.Integer):
        return (str(int(e)), _ATOM) if e >= 0 else (str(int(e)), _SUM)
    if isinstance(e, sympy.Rational):
        number = float(e)
        if sympy.Rational(number) == e:
            return (repr(number), _ATOM) if e >= 0 else (repr(number), _SUM)
        return f"{e.p} / {e.q}", _SUM if e < 0 else _PRODUCT
    if isinstance(e, sympy.Float):
        return repr(float(e)), _ATOM if e >= 0 else _SUM
    if e is S.Pi:
        return "jnp.pi", _ATOM
    if e is S.Exp1:
        return "jnp.e", _ATOM
    if isinstance(e, sympy.Add):
        return _sum(e, names), _SUM
    if isinstance(e, sympy.Mul):
        return _product(e, names)
    if isinstance(e, sympy.Pow):
        return _power(e.base, e.exp, names)
    if isinstance(e, sympy.Function) and type(e) in FUNCTIONS:
        return f"{FUNCTIONS[type(e)]}({', '.join(_scalar(a, names)[0] for a in e.args)})", _ATOM
    name = type(e).__name__ if not isinstance(e, sympy.Function) else str(e.func)
    raise InputError(
        "function",
        expected=f"one of {', '.join(sorted(f.__name__ for f in FUNCTIONS))}",
        got=f"{name} in {e}",
        remedy="rewrite the expression, e.g. with .rewrite(sympy.exp) or .doit()",
    )


def _wrap(pair: tuple[str, int], level: int) -> str:
    return pair[0] if pair[1] >= level else f"({pair[0]})"


def _sum(e: sympy.Add, names: dict[sympy.Basic, str]) -> str:
    terms = sorted(e.args, key=sympy.default_sort_key)
    terms = [t for t in terms if not t.is_number] + [t for t in terms if t.is_number]
    text = ""
    for term in terms:
        negative = term.could_extract_minus_sign() and not isinstance(term, sympy.Add)
        part = _wrap(_scalar(-term if negative else term, names), _PRODUCT)
        if not text:
            text = f"-{part}" if negative else part
        else:
            text += f" - {part}" if negative else f" + {part}"
    return text


def _product(e: sympy.Mul, names: dict[sympy.Basic, str]) -> tuple[str, int]:
    coefficient, factors = e.as_coeff_mul()
    if coefficient.is_negative:
        inner, level = _scalar(-e, names)
        return f"-{_wrap((inner, level), _PRODUCT)}", _SUM
    above, below = [], []
    if isinstance(coefficient, sympy.Rational) and sympy.Rational(float(coefficient)) != coefficient:
        above += [str(coefficient.p)] if coefficient.p != 1 else []
        below += [str(coefficient.q)]
    elif coefficient != 1:
        above.append(_wrap(_scalar(coefficient, names), _POWER))
    for factor in sorted(factors, key=sympy.default_sort_key):
        base, power = factor.as_base_exp()
        if not isinstance(factor, sympy.exp) and factor not in names and power.is_Rational and power.is_negative:
            below.append(_wrap(_power(base, -power, names), _POWER))
        else:
            above.append(_wrap(_scalar(factor, names), _POWER))
    text = " * ".join(above) or "1"
    if below:
        text += " / " + (below[0] if len(below) == 1 else f"({' * '.join(below)})")
    return text, _PRODUCT


def _power(base: sympy.Basic, power: sympy.Basic, names: dict[sympy.Basic, str]) -> tuple[str, int]:
    if power == 1:
        return _scalar(base, names)
    if power.is_Rational and power.is_negative:
        return f"1 / {_wrap(_power(base, -power, names), _POWER)}", _PRODUCT
    if power == sympy.Rational(1, 2):
        return f"jnp.sqrt({_scalar(base, names)[0]})", _ATOM
    if base is S.Exp1:
        return f"jnp.exp({_scalar(power, names)[0]})", _ATOM
    return f"{_wrap(_scalar(base, names), _ATOM)} ** {_wrap(_scalar(power, names), _ATOM)}", _POWER


def assignments(
    targets: Sequence[tuple[str, sympy.Basic]],
    names: Mapping[sympy.Basic, str] | None = None,
    prefix: str = "t",
) -> list[str]:
    """Lines `t0 = ...` for the common sub-expressions, then `target = ...` in the order given.

    The sub-expressions come from `sympy.cse` in canonical order, so that the text depends on the expressions alone.
    """
    names = dict(names or {})
    temporaries, reduced = sympy.cse(
        [e for _, e in targets], symbols=sympy.numbered_symbols(prefix), order="canonical", optimizations=None
    )
    lines = [f"{symbol.name} = {to_jax(e, names)}" for symbol, e in temporaries]
    return lines + [f"{name} = {to_jax(e, names)}" for (name, _), e in zip(targets, reduced, strict=True)]


def count_operations(expressions: Iterable[sympy.Basic]) -> int:
    """Arithmetic operations of the expressions as they stand (no sub-expression is shared here)."""
    return int(sum(sympy.count_ops(e) for e in expressions))
