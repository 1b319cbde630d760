"""A scalar tape: named assignments, its reverse-mode adjoint, evaluation with plain Python floats, operation counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import sympy
from sympy import S

from odescale.errors import InputError


class Tape:
    """Assignments `name = expression` in order; an expression uses inputs and earlier names only.

    Nothing is ever expanded: the degree of a network's loss triples with each layer, its tape grows linearly.
    An entry that is a bare input is still an entry, or the adjoint of the input would miss what flows through it.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[sympy.Symbol, sympy.Expr]] = []
        self._known: dict[sympy.Symbol, int] = {}

    def record(self, name: str, expression: sympy.Expr | int) -> sympy.Symbol:
        """Appends `name = expression` and returns the symbol of the entry."""
        symbol = sympy.Symbol(name)
        if symbol in self._known:
            raise InputError("name", expected="a new name", got=name, remedy="number the entries")
        self._known[symbol] = len(self.entries)
        self.entries.append((symbol, sympy.sympify(expression)))
        return symbol

    def adjoint(self, output: sympy.Symbol, inputs: Sequence[sympy.Symbol], prefix: str = "d") -> list[sympy.Expr]:
        """Appends the entries of the reverse sweep from `output`; returns d output/d input for every input."""
        wanted = set(inputs)
        bars: dict[sympy.Symbol, sympy.Expr] = {output: S.One}
        for symbol, expression in reversed(list(self.entries)):
            if symbol not in bars:
                continue
            bar = bars.pop(symbol)
            if not bar.is_Atom:
                bar = self.record(f"{prefix}_{symbol.name}", bar)
            for source in sorted(expression.free_symbols, key=lambda s: s.name):
                if source in wanted or source in self._known:
                    bars[source] = bars.get(source, S.Zero) + bar * sympy.diff(expression, source)
        return [bars.get(symbol, S.Zero) for symbol in inputs]

    def evaluate(self, inputs: Mapping[sympy.Symbol, float], outputs: Sequence[sympy.Expr]) -> list[float]:
        """Values of `outputs` with Python floats: an evaluation that shares nothing with the JAX writer."""
        scope: dict[str, object] = {"math": math}
        scope.update({symbol.name: float(value) for symbol, value in inputs.items()})
        lines = [f"{symbol.name} = {sympy.pycode(expression)}" for symbol, expression in self.entries]
        lines.append("result = [" + ", ".join(sympy.pycode(sympy.sympify(e)) for e in outputs) + "]")
        exec("\n".join(lines), scope)
        return [float(value) for value in scope["result"]]  # pyright: ignore[reportGeneralTypeIssues]

    def live(self, outputs: Sequence[sympy.Expr]) -> list[tuple[sympy.Symbol, sympy.Expr]]:
        """The entries that `outputs` depend on, in order."""
        needed: set[sympy.Basic] = set().union(*(sympy.sympify(e).free_symbols for e in outputs))
        kept = []
        for symbol, expression in reversed(self.entries):
            if symbol in needed:
                kept.append((symbol, expression))
                needed |= expression.free_symbols
        return kept[::-1]

    def operations(self, outputs: Sequence[sympy.Expr]) -> int:
        """Arithmetic operations that lead to `outputs`, common sub-expressions shared, dead entries left out."""
        expressions = [expression for _, expression in self.live(outputs)] + [sympy.sympify(e) for e in outputs]
        temporaries, reduced = sympy.cse(expressions, order="none")
        return int(sum(sympy.count_ops(e) for _, e in temporaries) + sum(sympy.count_ops(e) for e in reduced))
