"""The same closure written out in scalars: a tape for display, operation counts and as an independent check.

`A_l[j] = e_j + sum_m alpha_jm e_m`: a network is a handful of coefficients alpha; every one is an entry of the tape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import sympy

from odescale.networks.architecture import Architecture, FieldNetwork, build_architecture
from odescale.symbolic.record import Table
from odescale.symbolic.tape import Tape

eta, batch = sympy.symbols("eta B", positive=True)
Sparse = dict[int, sympy.Expr]


@dataclass(frozen=True)
class ScalarClosure:
    """The tape with its outputs: loss, G, H, V (P x P nested lists) and dC/dt of the dynamic pairs (isotropic
    tokens)."""

    tape: Tape
    loss: sympy.Symbol
    G: list[list[sympy.Expr]]
    H: list[list[sympy.Expr]]
    V: list[list[sympy.Expr]]
    flow: dict[tuple[int, int], sympy.Expr]
    forward: int


def entry(letter: str, i: int, j: int) -> sympy.Symbol:
    """The symbol of an entry of a symmetric P x P matrix."""
    return sympy.Symbol(f"{letter}_{min(i, j)}_{max(i, j)}")


def _needed(network: FieldNetwork, layer: int) -> list[int]:
    """Rows whose functionals are read after `layer`."""
    rows = set(network.readouts)
    for later in network.layers[layer + 1 :]:
        for head in later:
            rows |= set(head.reads)
    return sorted(rows)


def _functionals(tape: Tape, network: FieldNetwork, size: int, tag: str, scale: sympy.Expr | int) -> list[Sparse]:
    maps: dict[int, Sparse] = {j: {j: sympy.S.One} for j in range(size)}
    for depth, layer in enumerate(network.layers):
        added: dict[int, Sparse] = {j: {} for j in range(size)}
        for number, (head, query, key) in enumerate((one, *pair) for one in layer for pair in one.terms):
            name = f"{tag}{depth}h{number}"
            rows = _needed(network, depth)
            writes = None if head.value is None or head.output is None else (head.value, head.output)
            sources = rows if writes is None else [writes[0]]
            support = sorted({m for j in sources for m in maps[j]})
            through = {
                m: tape.record(f"y{name}_{m}", sum(c * entry("C", m, n) for n, c in maps[key].items())) for m in support
            }
            cov = {
                j: tape.record(f"c{name}_{j}", scale * sum(c * through[m] for m, c in maps[j].items())) for j in sources
            }
            for j in rows:
                weight = cov[j] if writes is None else entry("R", j, writes[1]) * cov[writes[0]]
                for m, c in maps[query].items():
                    added[j][m] = added[j].get(m, 0) + weight * c
        maps = {
            j: {
                m: (
                    tape.record(f"alpha{tag}{depth}_{j}_{m}", maps[j].get(m, 0) + added[j][m])
                    if m in added[j]
                    else maps[j][m]
                )
                for m in sorted({*maps[j], *added[j]})
            }
            for j in range(size)
        }
    return [maps[r] for r in network.readouts]


def scalar_closure(architecture: Architecture, scale: sympy.Expr | int = 1) -> ScalarClosure:
    """Forward tape of student and teacher, loss, reverse sweep, noise and isotropic flow; `scale` of the logits."""
    size = architecture.size
    trained = architecture.trained
    tape = Tape()
    a = _functionals(tape, architecture.student, size, "s", scale)
    a_star = _functionals(tape, architecture.teacher, size, "t", scale)
    b: list[Sparse] = []
    for i, (own, other) in enumerate(zip(a, a_star, strict=True)):
        keys = sorted({*own, *other})
        difference = {m: sympy.expand(own.get(m, 0) - other.get(m, 0)) for m in keys}
        # Plain numbers have no adjoint and stay as they are.
        b.append({m: d if d.is_number else tape.record(f"b{i}_{m}", d) for m, d in difference.items() if d != 0})
    through = [
        {m: tape.record(f"z{i}_{m}", sum(c * entry("C", m, n) for n, c in bi.items())) for m in range(size)}
        for i, bi in enumerate(b)
    ]
    products = {
        (i, j): tape.record(f"K{i}_{j}", sum(c * through[j][m] for m, c in b[i].items()))
        for i in range(len(b))
        for j in range(i, len(b))
    }
    loss = tape.record("L", sum(products[i, i] for i in range(len(b))) / 2)
    forward = len(tape.entries)
    pairs = [(i, j) for i in range(size) for j in range(i, size)]
    slopes = {
        letter: dict(zip(pairs, values, strict=True))
        for letter, values in zip(
            "CR", _split(tape.adjoint(loss, [entry(x, *p) for x in "CR" for p in pairs]), len(pairs)), strict=True
        )
    }

    def gradient(letter: str) -> list[list[sympy.Expr]]:
        # The symbol C_ij stands for both entries, so its derivative is L_ij + L_ji already; the diagonal counts once.
        return [
            [
                slopes[letter][min(i, j), max(i, j)] * (2 if i == j else 1) if trained[i] else sympy.S.Zero
                for j in range(size)
            ]
            for i in range(size)
        ]

    G, H = gradient("C"), gradient("R")
    G = [[_entry_of(tape, f"G_{i}_{j}", G[i][j]) for j in range(size)] for i in range(size)]
    V = [
        [
            sum(
                products[min(m, n), max(m, n)] * a[m].get(i, 0) * a[n].get(j, 0)
                for m in range(len(a))
                for n in range(len(a))
            )
            if trained[i] and trained[j]
            else sympy.S.Zero
            for j in range(size)
        ]
        for i in range(size)
    ]
    flow = {
        (i, j): -eta * sum(G[i][m] * entry("C", m, j) + G[j][m] * entry("C", m, i) for m in range(size))
        + eta**2 / batch * V[i][j]
        for i, j in pairs
        if trained[i] or trained[j]
    }
    return ScalarClosure(tape, loss, G, H, [[sympy.sympify(e) for e in row] for row in V], flow, forward)


def _entry_of(tape: Tape, name: str, expression: sympy.Expr) -> sympy.Expr:
    return expression if expression.is_Atom else tape.record(name, expression)


def _split(values: list[sympy.Expr], size: int) -> list[list[sympy.Expr]]:
    return [values[i : i + size] for i in range(0, len(values), size)]


@cache
def operation_table(scale: sympy.Expr | int = 1, depths: tuple[int, ...] = (1, 2, 3, 4)) -> Table:
    """Dynamic order parameters and operations of dC/dt for one head, value = identity, one trained readout."""
    rows = []
    for depth in depths:
        closure = scalar_closure(build_architecture(depth, 1), scale)
        flow = list(closure.flow.values())
        rows.append((str(depth), str(len(flow)), str(closure.tape.operations(flow))))
    return Table(
        "Size of the scalar form",
        ("layers L", "order parameters that move", "operations of their right-hand side"),
        tuple(rows),
    )


def scalar_table(architecture: Architecture, scale: sympy.Expr | int = 1) -> Table:
    """The forward tape of one architecture, entry by entry, down to the loss."""
    closure = scalar_closure(architecture, scale)
    live = closure.tape.live([closure.loss])
    network = architecture.student
    heads = len(network.layers[0])
    what = f"{network.depth} layer{'s' if network.depth > 1 else ''}, {heads} head{'s' if heads > 1 else ''} each"
    rows = ", ".join(f"{i} = {name}" for i, name in enumerate(architecture.rows))
    return Table(
        f"The loss in scalars: {what} (rows {rows})",
        ("entry", "value"),
        tuple((f"`{symbol}`", f"`{sympy.sstr(e, order='lex')}`") for symbol, e in live),
    )
