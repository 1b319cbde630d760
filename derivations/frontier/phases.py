"""Compute-optimal phases of power-law features: every exponent from the balance of two terms of the loss at C = d t."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from derivations.frontier.notation import CAPACITY, SOURCE
from odescale.symbolic.record import Equation, Step, Table

AL, BE = sympy.symbols("alpha_s beta_s", positive=True)
"""b = 2 alpha_s, a = 2 alpha_s + 2 beta_s."""
SHARE = sympy.Symbol("xi", positive=True)
"""t ~ C^xi, d ~ C^(1 - xi)."""


@dataclass(frozen=True)
class Term:
    """A term d^-width t^-time of the loss."""

    name: str
    width: sympy.Expr
    time: sympy.Expr

    def decay(self) -> sympy.Expr:
        """-dlog/dlog C at the share xi."""
        return self.width * (1 - SHARE) + self.time * SHARE


BIAS = Term("bias", sympy.S.Zero, (SOURCE - 1) / CAPACITY)
NOISE = Term("noise", sympy.S.Zero, 2 - 1 / CAPACITY)
CAPACITY_LIMIT = Term("width", SOURCE - 1, sympy.S.Zero)
FEATURES = Term("features", sympy.S.One, 1 - 1 / CAPACITY)


@dataclass(frozen=True)
class Phase:
    """Which two terms balance, the exponent of the loss and of the optimal width in C, and where."""

    name: str
    terms: tuple[Term, Term]
    share: sympy.Expr
    exponent: sympy.Expr
    where: tuple[str, str]


def balance(first: Term, second: Term) -> tuple[sympy.Expr, sympy.Expr]:
    """(xi, exponent) where two terms are equal."""
    (share,) = sympy.solve(sympy.Eq(first.decay(), second.decay()), SHARE)
    return sympy.simplify(share), sympy.factor(sympy.simplify(first.decay().subs(SHARE, share)))


def phases() -> tuple[Step, Table, tuple[Phase, ...]]:
    """Ia: bias against width; II: bias against features; III: noise against features."""
    found = []
    for name, terms, where in (
        ("Ia", (BIAS, CAPACITY_LIMIT), ("a < b + 1", r"\beta_s<1/2")),
        ("II", (BIAS, FEATURES), ("b + 1 < a < 2b", r"1/2<\beta_s<\alpha_s")),
        ("III", (NOISE, FEATURES), ("a > 2b", r"\beta_s>\alpha_s")),
    ):
        share, exponent = balance(*terms)
        found.append(Phase(name, terms, share, exponent, where))
    rows = []
    for phase in found:
        spectral = sympy.factor(phase.exponent.subs({SOURCE: 2 * AL + 2 * BE, CAPACITY: 2 * AL}))
        width = sympy.factor(sympy.simplify(1 - phase.share))
        rows.append(
            (
                phase.name,
                f"${phase.where[0]}$",
                f"${phase.where[1]}$",
                " = ".join(t.name for t in phase.terms),
                f"${sympy.latex(phase.exponent)}$",
                f"${sympy.latex(spectral)}$",
                f"$C^{{{sympy.latex(width)}}}$",
            )
        )
    step = Step(
        "phases",
        "Compute-optimal phases of power-law features",
        "Eigenvalues j^-b, target power j^-a, width d, one-pass SGD at C = d t. The loss is a sum of bias t^-((a-1)/b), SGD "
        "noise t^-(2-1/b), width limit d^-min(a-1,b) and, for a > b + 1, feature noise d^-1 t^-(1-1/b). With t ~ C^xi the "
        "exponent is the max over xi of the min over terms, a corner where two terms are equal: a linear "
        "programme whose solution is the phase.",
        tuple(Equation(rf"p_{{\mathrm{{{p.name}}}}}", p.exponent) for p in found),
        ("terms",),
    )
    columns = ("phase", "where", "in $(\\alpha_s, \\beta_s)$", "balance", "exponent p", "the same", "width $d^*$")
    title = r"Phases, $b = 2\alpha_s > 1$, $a = 2\alpha_s + 2\beta_s > 1$"
    return step, Table(title, columns, tuple(rows)), tuple(found)
