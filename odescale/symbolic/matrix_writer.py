"""Matrix expressions to JAX source: chains associated so that vectors come first, repeated sub-chains named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import sympy
from sympy.matrices.expressions import MatrixSymbol

from odescale.symbolic.matrix import Chain, chains, columns, rows
from odescale.symbolic.scalar_writer import to_jax

Factors = tuple[tuple[MatrixSymbol, bool], ...]


@dataclass(frozen=True)
class Selector:
    """A unit column `e_i`: `index` is the code of i, `vector` the code of the column. `X^T e_i` prints as `X[i]`."""

    index: str
    vector: str


@dataclass
class MatrixWriter:
    """Prints assignments of matrix expressions; columns and rows are one-dimensional arrays in the code.

    **Arguments**

    - `names`: code of matrix symbols and scalars that do not print under their own name.
    - `selectors`: matrix symbols (n x 1) that are unit columns.
    - `diagonals`: matrix symbols that are diagonal, mapped to the code of their diagonal.
    - `symmetric`: matrix symbols whose transpose is dropped.
    - `sizes`: a typical number for every symbolic dimension; decides the association of a chain.
    """

    names: Mapping[sympy.Basic, str] = field(default_factory=dict)
    selectors: Mapping[MatrixSymbol, Selector] = field(default_factory=dict)
    diagonals: Mapping[MatrixSymbol, str] = field(default_factory=dict)
    symmetric: frozenset[MatrixSymbol] = frozenset()
    sizes: Mapping[sympy.Symbol, int] = field(default_factory=dict)

    def lines(
        self, targets: Iterable[tuple[str, sympy.MatrixExpr]], taken: Iterable[str] = (), accumulate: bool = False
    ) -> list[str]:
        """Lines of code: first the sub-chains that occur more than once, then `target = ...` in the order given.

        `taken`: names in scope that temporaries must avoid. `accumulate`: write `target += ...`, and nothing for zero.
        """
        targets = [(name, self._chains(e)) for name, e in targets]
        uses: dict[Factors, int] = {}
        for _, parts in targets:
            for part in parts:
                self._count(part.factors, uses)
        named: dict[Factors, str] = {}
        out: list[str] = []
        used = set(taken) | {name for name, _ in targets} | set(self.names.values()) | {s.name for s in self.symmetric}
        for _, parts in targets:
            for part in parts:
                self._name(part.factors, uses, named, out, used)
        for name, parts in targets:
            if parts or not accumulate:
                out.append(f"{name} {'+=' if accumulate else '='} {self._sum(parts, named)}")
        return out

    def trace(self, expression: sympy.MatrixExpr) -> str:
        """Code of `tr(expression)`, as sums over entries: `tr(X Y) = sum(X * Y^T)`, the product never formed."""
        text = []
        for part in self._chains(expression):
            last, flipped = part.factors[-1]
            turned = ((last, not flipped and last not in self.symmetric),)
            left = self._chain(part.factors[:-1], {}) if len(part.factors) > 1 else ""
            inner = (
                f"({left}) * {self._chain(turned, {})}" if left else f"jnp.diagonal({self._chain(part.factors, {})})"
            )
            text.append(("" if part.coefficient == 1 else f"{to_jax(part.coefficient)} * ") + f"jnp.sum({inner})")
        return " + ".join(text) or "0.0"

    def _chains(self, expression: sympy.MatrixExpr) -> tuple[Chain, ...]:
        return chains(expression, set(self.symmetric) | set(self.diagonals))

    def _dimension(self, n: sympy.Expr) -> int:
        return int(sympy.sympify(n).subs(dict(self.sizes)).subs({s: 16 for s in sympy.sympify(n).free_symbols}))

    def _canonical(self, factors: Factors) -> Factors:
        """A row vector is stored as the column it is the transpose of: both are the same one-dimensional array."""
        if self._dimension(rows(factors[0])) == 1 and self._dimension(columns(factors[-1])) != 1:
            fixed = set(self.symmetric) | set(self.diagonals)
            return tuple((s, not t and s not in fixed) for s, t in reversed(factors))
        return factors

    def _split(self, factors: Factors) -> int:
        """Where the outermost product of a chain is cut: fewest multiplications, by dynamic programming."""
        n = len(factors)
        sizes = [self._dimension(rows(f)) for f in factors] + [self._dimension(columns(factors[-1]))]
        cost = [[0] * n for _ in range(n)]
        best = [[0] * n for _ in range(n)]
        for length in range(2, n + 1):
            for i in range(n - length + 1):
                j = i + length - 1
                pick = length == 2 and (factors[i][0] in self.selectors) != (factors[j][0] in self.selectors)
                options = [
                    # Taking a row or a column of a matrix costs nothing.
                    (cost[i][m] + cost[m + 1][j] + (0 if pick else sizes[i] * sizes[m + 1] * sizes[j + 1]), m)
                    for m in range(i, j)
                ]
                cost[i][j], best[i][j] = min(options)
        return best[0][n - 1] + 1

    def _count(self, factors: Factors, uses: dict[Factors, int]) -> None:
        factors = self._canonical(factors)
        if len(factors) == 1:
            return
        uses[factors] = uses.get(factors, 0) + 1
        if uses[factors] == 1:
            cut = self._split(factors)
            self._count(factors[:cut], uses)
            self._count(factors[cut:], uses)

    def _name(
        self, factors: Factors, uses: dict[Factors, int], named: dict[Factors, str], out: list[str], used: set[str]
    ) -> None:
        factors = self._canonical(factors)
        if len(factors) == 1 or factors in named:
            return
        cut = self._split(factors)
        self._name(factors[:cut], uses, named, out, used)
        self._name(factors[cut:], uses, named, out, used)
        if uses[factors] > 1 and not self._is_pick(factors):
            code = self._chain(factors, named)
            name = "_".join(s.name for s, _ in factors)
            while name in used:
                name += "_"
            used.add(name)
            named[factors] = name
            out.append(f"{name} = {code}")

    def _is_pick(self, factors: Factors) -> bool:
        return len(factors) == 2 and factors[1][0] in self.selectors and factors[0][0] not in self.selectors

    def _chain(self, factors: Factors, named: Mapping[Factors, str], operand: bool = False) -> str:
        factors = self._canonical(factors)
        if factors in named:
            return named[factors]
        if len(factors) == 1:
            symbol, flipped = factors[0]
            if symbol in self.selectors:
                return self.selectors[symbol].vector
            if symbol in self.diagonals:
                return f"jnp.diag({self.diagonals[symbol]})"
            return self._code(symbol) + (".T" if flipped and self._dimension(columns(factors[0])) != 1 else "")
        if self._is_pick(factors):
            (matrix, flipped), (unit, _) = factors
            index = self.selectors[unit].index
            row_like = flipped or matrix in self.symmetric
            return f"{self._code(matrix)}[{index}]" if row_like else f"{self._code(matrix)}[:, {index}]"
        first, last = factors[0], factors[-1]
        if first[0] in self.diagonals:
            scale = self.diagonals[first[0]]
            vector = self._dimension(columns(last)) == 1
            text = f"{scale if vector else f'{scale}[:, None]'} * {self._chain(factors[1:], named, True)}"
            return f"({text})" if operand else text
        if last[0] in self.diagonals:
            text = f"{self._chain(factors[:-1], named, True)} * {self.diagonals[last[0]]}"
            return f"({text})" if operand else text
        cut = self._split(factors)
        left, right = factors[:cut], factors[cut:]
        inner = self._dimension(columns(left[-1]))
        outer = inner == 1 and self._dimension(rows(left[0])) != 1 and self._dimension(columns(right[-1])) != 1
        if outer:
            return f"jnp.outer({self._chain(left, named)}, {self._chain(right, named)})"
        sign = "*" if inner == 1 else "@"
        text = f"{self._chain(left, named, True)} {sign} {self._chain(right, named, True)}"
        return f"({text})" if operand else text

    def _code(self, symbol: sympy.Basic) -> str:
        return self.names.get(symbol, getattr(symbol, "name", str(symbol)))

    def _sum(self, parts: tuple[Chain, ...], named: Mapping[Factors, str]) -> str:
        if not parts:
            return "0.0"
        groups: dict[sympy.Expr, list[str]] = {}
        for part in parts:
            groups.setdefault(part.coefficient, []).append(self._chain(part.factors, named))
        text = ""
        for coefficient, members in groups.items():
            negative = coefficient.could_extract_minus_sign()
            size = -coefficient if negative else coefficient
            body = " + ".join(members)
            if size != 1:
                scale = to_jax(size, dict(self.names))
                scale = f"({scale})" if isinstance(size, sympy.Add) else scale
                simple = len(members) == 1 and " " not in members[0].split("(")[0]
                body = f"{scale} * {body if simple else f'({body})'}"
            elif negative and len(members) > 1:
                body = f"({body})"
            text += (" - " if text else "-") + body if negative else (" + " if text else "") + body
        return text
