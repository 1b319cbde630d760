"""The `Derivation` record: what a theory assumes, the steps from the SGD update to its ODE, and what is written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import sympy

from odescale.errors import InputError


@dataclass(frozen=True)
class Parameter:
    """A symbol with its meaning, its domain and its unit."""

    symbol: sympy.Basic
    meaning: str
    domain: str
    unit: str = "1"


@dataclass(frozen=True)
class Assumption:
    """Something taken for granted: `key` is what a step quotes, `text` says it in one sentence."""

    key: str
    text: str


@dataclass(frozen=True)
class Equation:
    """`lhs = rhs`; each side is a sympy expression or a string that is already LaTeX."""

    lhs: sympy.Basic | str
    rhs: sympy.Basic | str


@dataclass(frozen=True)
class CheckResult:
    """A number measured by a numeric check and the bound that it must not exceed, with what the number is."""

    value: float
    bound: float
    what: str

    @property
    def passed(self) -> bool:
        """True when the measured number is finite and at most the bound."""
        return bool(self.value <= self.bound)

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}: {self.what} {self.value:.3g} (bound {self.bound:.3g})"


@dataclass(frozen=True)
class Step:
    """One step: prose, the equations it arrives at, the assumptions it used, and a numeric check of the result."""

    name: str
    title: str
    prose: str
    equations: tuple[Equation, ...] = ()
    uses: tuple[str, ...] = ()
    check: Callable[[], CheckResult] | None = field(default=None, compare=False)

    def checked(self, check: Callable[..., CheckResult], *arguments: Any) -> Step:
        """The step with the numeric check `check(*arguments)`: formula and check then need not know each other."""
        return replace(self, check=partial(check, *arguments))


@dataclass(frozen=True)
class Output:
    """A function to be written: its name and its source text."""

    name: str
    source: str


@dataclass(frozen=True)
class Table:
    """A table shown with the derivation (operation counts, for example)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Derivation:
    """A theory from its first line to its code.

    **Fields**

    - `name`, `title`, `summary`: the file name of what is written, a headline, two or three sentences.
    - `states`, `parameters`: the symbols that move and those that do not, with domains and units.
    - `assumptions`, `steps`, `sources`, `tables`: the text; a step may quote only assumptions that are listed.
    - `outputs`: functions for the generated module, in order; `imports`: the module's import lines.

    Print it with `to_text`, `to_markdown`, `to_latex`; test it with `run_checks`; write it with `to_jax_module`.
    """

    name: str
    title: str
    summary: str
    states: tuple[Parameter, ...]
    parameters: tuple[Parameter, ...]
    assumptions: tuple[Assumption, ...]
    steps: tuple[Step, ...]
    sources: tuple[str, ...]
    outputs: tuple[Output, ...]
    tables: tuple[Table, ...] = ()
    imports: tuple[str, ...] = ("import jax.numpy as jnp",)

    def __post_init__(self) -> None:
        known = {assumption.key for assumption in self.assumptions}
        names: set[str] = set()
        for step in self.steps:
            for key in step.uses:
                if key not in known:
                    raise InputError(
                        "uses",
                        expected=f"one of {', '.join(sorted(known))} in step {step.name}",
                        got=key,
                        remedy="list the assumption",
                    )
            if step.name in names:
                raise InputError("steps", expected="distinct step names", got=step.name, remedy="rename one")
            names.add(step.name)

    def step(self, name: str) -> Step:
        """The step of that name."""
        for candidate in self.steps:
            if candidate.name == name:
                return candidate
        raise InputError(
            "name", expected=f"one of {', '.join(s.name for s in self.steps)}", got=name, remedy="pick a listed step"
        )

    def output(self, name: str) -> Output:
        """The generated function of that name."""
        for candidate in self.outputs:
            if candidate.name == name:
                return candidate
        raise InputError(
            "name",
            expected=f"one of {', '.join(o.name for o in self.outputs)}",
            got=name,
            remedy="pick a listed function",
        )


def run_checks(derivation: Derivation) -> dict[str, CheckResult]:
    """Runs the numeric check of every step that has one; returns step name -> `CheckResult`, failures included."""
    return {step.name: step.check() for step in derivation.steps if step.check is not None}
