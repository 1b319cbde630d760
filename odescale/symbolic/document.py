"""A derivation as text, LaTeX or Markdown (with LaTeX maths)."""

from __future__ import annotations

import textwrap

import sympy

from odescale.symbolic.matrix import chains
from odescale.symbolic.record import Derivation, Equation, Parameter, Step, Table


def _latex(side: sympy.Basic | str) -> str:
    if isinstance(side, str):
        return side
    if isinstance(side, sympy.MatrixExpr):
        return _matrix_latex(side)
    return sympy.latex(side, order="lex")


def _matrix_latex(expression: sympy.MatrixExpr) -> str:
    """A sum of chains, multiplied out: sympy's printer leaves `+ -` and brackets."""
    text = ""
    for chain in chains(expression):
        negative = chain.coefficient.could_extract_minus_sign()
        size = -chain.coefficient if negative else chain.coefficient
        product = " ".join(sympy.latex(s) + ("^{T}" if flipped else "") for s, flipped in chain.factors)
        scale = "" if size == 1 else sympy.latex(size, order="lex") + " "
        if isinstance(size, sympy.Add):
            scale = rf"\left({scale.strip()}\right) "
        text += (" - " if negative else " + " if text else "") + scale + product
    return text.strip() or "0"


def _plain(side: sympy.Basic | str) -> str:
    return side if isinstance(side, str) else sympy.sstr(side, order="lex")


def _equation(equation: Equation) -> str:
    return f"{_latex(equation.lhs)} = {_latex(equation.rhs)}"


def to_markdown(derivation: Derivation) -> str:
    """The whole derivation as Markdown with `$$` maths: what `docs/derivations/NAME.md` holds."""
    parts = [
        f"# {derivation.title}",
        f"<!-- written by `python -m derivations` from derivation `{derivation.name}`; do not edit -->",
        derivation.summary,
        "## States and parameters",
        _parameter_table((*derivation.states, *derivation.parameters)),
        "## Assumptions",
        "\n".join(f"- **{a.key}**: {a.text}" for a in derivation.assumptions),
        "## Steps",
    ]
    parts += [_markdown_step(number, step) for number, step in enumerate(derivation.steps, 1)]
    for table in derivation.tables:
        parts += [f"## {table.title}", _markdown_table(table)]
    parts += ["## Generated functions", "\n".join(f"- `{output.name}`" for output in derivation.outputs)]
    parts += ["## Sources", "\n".join(f"- {source}" for source in derivation.sources)]
    return "\n\n".join(parts) + "\n"


def _parameter_table(parameters: tuple[Parameter, ...]) -> str:
    rows = tuple((f"${_latex(p.symbol)}$", p.meaning, p.domain, p.unit) for p in parameters)
    return _markdown_table(Table("", ("symbol", "meaning", "domain", "unit"), rows))


def _markdown_table(table: Table) -> str:
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in table.rows])


def _markdown_step(number: int, step: Step) -> str:
    parts = [f"### {number}. {step.title}", step.prose]
    parts += [f"$$\n{_equation(e)}\n$$" for e in step.equations]
    notes = [f"Uses: {', '.join(step.uses)}."] if step.uses else []
    if step.check is not None:
        notes.append("Checked numerically by `python -m derivations --check`.")
    return "\n\n".join(parts + ([" ".join(notes)] if notes else []))


def to_latex(derivation: Derivation) -> str:
    """The whole derivation as a LaTeX section with one subsection per step."""
    lines = [f"\\section{{{derivation.title}}}", derivation.summary, "\\paragraph{Assumptions}", "\\begin{itemize}"]
    lines += [f"\\item \\textbf{{{a.key}}}: {a.text}" for a in derivation.assumptions]
    lines.append("\\end{itemize}")
    for step in derivation.steps:
        lines += [f"\\subsection{{{step.title}}}", step.prose]
        lines += [f"\\begin{{equation}}\n{_equation(e)}\n\\end{{equation}}" for e in step.equations]
    lines += ["\\paragraph{Sources}", "; ".join(derivation.sources) + "."]
    return "\n".join(lines) + "\n"


def to_text(derivation: Derivation, width: int = 100) -> str:
    """The whole derivation as plain text for a terminal."""
    lines = [
        derivation.title,
        "=" * len(derivation.title),
        "",
        textwrap.fill(derivation.summary, width),
        "",
        "Assumptions",
    ]
    lines += [textwrap.fill(f"- {a.key}: {a.text}", width, subsequent_indent="  ") for a in derivation.assumptions]
    for number, step in enumerate(derivation.steps, 1):
        lines += ["", f"{number}. {step.title}", textwrap.fill(step.prose, width)]
        lines += [f"    {_plain(e.lhs)} = {_plain(e.rhs)}" for e in step.equations]
    lines += ["", "Sources", *(f"- {source}" for source in derivation.sources)]
    return "\n".join(lines) + "\n"
