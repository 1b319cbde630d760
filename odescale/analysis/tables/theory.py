"""What theories of scaling laws say beside a fit to a table: which exponents its intervals contain, exclude, or leave open."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import numpy as np

from odescale.analysis.frontier.power_law_phases import PHASES, compute_optimal
from odescale.analysis.frontier.risk_law import isolated_law, yang_v1, yang_v3
from odescale.analysis.tables.result import TableFit, quantiles
from odescale.analysis.tables.terms import COSTS, Powers, powers_of
from odescale.errors import require_number
from odescale.precision import require_x64

WIDE = 0.5
"""Width of an interval over the theory's exponent from which holding it says nothing."""
Answer = Literal["contains", "excludes", "cannot tell"]

_YANG = "Yang 2025, arXiv 2512.22088"
_PAQUETTE = "Paquette et al. 2024, arXiv 2405.15074"
_SQUARE = "params ~ width^2, depth fixed or growing as little as in theory"
_ONE_PASS = "steps ~ tokens: batch and rate schedule alike in every run"
_FEATURES = "params ~ features, tokens ~ steps of one pass"


class Verdict(eqx.Module):
    """One statement of a theory beside the fit.

    - `theory`, `source`; `statement`: what it says of `quantity`, an expression in the names of the fit; `assumption`: what ties
      the theory's variables to the columns.
    - `expected`: the range that the theory allows, both ends alike for a number. `value`, `interval`: of the fit, None where it has
      none. `level` of the interval.
    - `answer`: "excludes" if the interval and the range do not meet; "contains" if the range, or the interval in it, is held by an
      interval that could have told; else "cannot tell", with the `reason`.
    """

    theory: str = eqx.field(static=True)
    statement: str = eqx.field(static=True)
    quantity: str = eqx.field(static=True)
    expected: tuple[float, float]
    value: float | None
    interval: tuple[float, float] | None
    level: float
    answer: Answer = eqx.field(static=True)
    reason: str = eqx.field(static=True)
    assumption: str = eqx.field(static=True)
    source: str = eqx.field(static=True)

    def __str__(self) -> str:
        found = (
            "" if self.interval is None else f": {self.value:.3g} ({self.interval[0]:.3g} to {self.interval[1]:.3g})"
        )
        given = f"; given {self.assumption}" if self.assumption else ""
        reason = f" ({self.reason})" if self.reason else ""
        sure = "" if self.answer == "cannot tell" else f" at {self.level:.0%}"
        return f"{self.theory}, {self.statement}: {self.answer}{sure}{reason}; {self.quantity}{found}{given}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class Implied(eqx.Module):
    """A number that follows from the fit: `name`, `meaning` (what its interval says), `value`, `interval`; else `reason`."""

    name: str = eqx.field(static=True)
    meaning: str = eqx.field(static=True)
    value: float | None
    interval: tuple[float, float] | None
    reason: str = eqx.field(static=True, default="")

    def __str__(self) -> str:
        if self.value is None or self.interval is None:
            return f"{self.name}: cannot tell ({self.reason})"
        return f"{self.name} = {self.value:.3g} ({self.interval[0]:.3g} to {self.interval[1]:.3g}): {self.meaning}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class _Quantity(NamedTuple):
    """A number of the fit in words, its draws, and why it has none."""

    text: str
    value: float
    draws: np.ndarray
    reason: str = ""

    def interval(self, level: float) -> tuple[float, float]:
        low, high = quantiles(self.draws, level)
        return float(low), float(high)


def theories_beside(fit: TableFit, *, level: float | None = None) -> tuple[Verdict, ...]:
    r"""Isolated laws, frontier exponents and phases of theories against the intervals of a fit: contains, excludes, or neither.

    With exponents alpha_x of the columns x alone and C = prod x^q_x (6 N D: q = 1, 1): L - E ~ C^-1/S, S = sum q_x/alpha_x.

        width alone     1/2    (`yang_v1`, `yang_v3`), read as 2 alpha of the parameters
        data alone      1/2    time alone 1 (`yang_v3`; needs steps beside tokens)
        frontier        1/6 (`yang_v1`), 1/7 (`yang_v3`): 1/S of their laws
        time            1/3    in tokens at a fixed batch, or in steps: softmax on peaked distributions
        depth           1      (ensemble averaging), where the form has a depth
        features        Ia: capacity alpha/beta > 1; II, III: frontier exponent above 1/2 (`compute_optimal`)

    **Arguments**: `fit` of `fit_table`; `level` of the intervals (default: that of the fit): a true exponent is excluded in a share
    1 - level of tables, so that of ten true statements one is at .9.
    **Returns** a `Verdict` each. "Cannot tell": a form without the column, an exponent that the rows leave open, an unstable fit,
    an interval wider than half of the exponent, one that holds another theory's exponent too.
    **Raises** `InputError`; `PrecisionError` without 64-bit numbers.
    **Failure regime**: intervals know the scatter of the runs, not the error of the form: an exponent may be excluded, or held,
    because the form is wrong; a free constant E and an exponent trade against each other.
    **Source**: Yang 2025; Paquette et al. 2024; Liu et al. 2026 (one third, arXiv 2602.03685; depth, arXiv 2602.05970).
    """
    require_x64("theories_beside")
    level = fit.level if level is None else require_number("level", level, 0.0, 1.0, open_=True)
    powers = powers_of(fit)
    first, third = yang_v1(), yang_v3()
    q_width = float(first.costs[0])
    width = _width(powers, q_width)
    time = _one_of(powers, ("steps", "tokens"))
    apart = powers.has("steps") and (powers.has("tokens") or powers.has("unique_tokens"))
    both = time if apart else time._replace(
        reason=time.reason or "data and time are one column in runs of one pass: the slower of the two rules"
    )  # fmt: skip
    depth, frontier = _one_of(powers, ("depth",)), _frontier(powers)
    alone = {name: float(isolated_law(third, name).exponents[0]) for name in ("width", "data", "time")}
    steps = "" if powers.has("steps") else _ONE_PASS
    statements: tuple[tuple[str, str, _Quantity, tuple[float, float], str, str], ...] = (
        ("width alone", f"an exponent {alone['width']:g}", width, _at(alone["width"]),
         "" if powers.has("width") else _SQUARE, _YANG),
        ("data alone", f"an exponent {alone['data']:g}", _one_of(powers, ("tokens",)), _at(alone["data"]), "", _YANG),
        ("time alone (yang_v3)", f"an exponent {alone['time']:g}", both, _at(alone["time"]), "", _YANG),
        ("frontier of yang_v1", "1/6", frontier, _at(float(1 / first.S)), _SQUARE, _YANG),
        ("frontier of yang_v3", "1/7", frontier, _at(float(1 / third.S)), _SQUARE, _YANG),
        ("one-third law in time", "1/3", time, _at(1 / 3), steps, "Liu et al. 2026, arXiv 2602.03685"),
        ("inverse depth", "an exponent 1", depth, _at(1.0), "", "Liu et al. 2026, arXiv 2602.05970"),
        ("features, phase Ia", "capacity above 1", _capacity(powers), (1.0, math.inf), _FEATURES, _PAQUETTE),
        ("features, phases II and III", "a frontier exponent of 1/2 to 1", frontier, (0.5, 1.0), _FEATURES, _PAQUETTE),
    )  # fmt: skip
    points: dict[str, dict[float, str]] = {}
    for name, _, quantity, (low, high), *_ in statements:
        if low == high:
            points.setdefault(quantity.text, {})[low] = name
    return tuple(_judge(fit, level, *statement, points.get(statement[2].text, {})) for statement in statements)


def _at(value: float) -> tuple[float, float]:
    return value, value


def _judge(
    fit: TableFit, level: float, theory: str, statement: str, quantity: _Quantity, span: tuple[float, float],
    assumption: str, source: str, points: dict[float, str],
) -> Verdict:  # fmt: skip
    value, interval, answer, reason = None, None, "cannot tell", quantity.reason
    if not reason:
        value, interval = quantity.value, quantity.interval(level)
        low, high = interval
        rivals = [name for other, name in points.items() if other != span[0] and low <= other <= high]
        if not fit.stable:
            reason = f"the fit is unstable: {fit.unstable[0]}"
        elif high < span[0] or low > span[1]:
            answer = "excludes"
        elif span[0] < span[1]:
            inside = span[0] <= low and high <= span[1]
            answer = "contains" if inside else "cannot tell"
            reason = "" if inside else "only a part of the interval is in that range"
        elif high - low > WIDE * abs(span[0]):
            reason = f"the interval is {(high - low) / abs(span[0]):.0%} of the exponent wide"
        elif rivals:
            reason = f"it holds that of {', '.join(rivals)} too"
        else:
            answer = "contains"
    return Verdict(
        theory, statement, quantity.text, span, value, interval, level, answer, reason, assumption, source
    )  # fmt: skip


def implied_exponents(fit: TableFit, *, level: float | None = None) -> tuple[Implied, ...]:
    r"""What follows from the fitted exponents if its form is right: frontier, tokens per parameter, source and capacity, schedule.

        L - E ~ C^-1/S,   N* ~ C^(1/(alpha S)),   D* ~ C^(1/(beta S)),   D*/N* ~ C^((alpha - beta)/(alpha + beta))
        source s = beta, capacity b = alpha/beta  (phase Ia: width floor N^-(a - 1), bias t^-(a - 1)/b, a = s b + 1)

    **Arguments**, failure regime: as in `theories_beside`. **Returns** an `Implied` each, its meaning no stronger than its
    interval: a sign is named only where the whole interval has it. `schedule`: s - (1 - 1/b), >= 0 where `optimal_schedule`
    wants a power decay. **Raises** `InputError`; `PrecisionError`.
    """
    require_x64("implied_exponents")
    level = fit.level if level is None else require_number("level", level, 0.0, 1.0, open_=True)
    powers = powers_of(fit)
    frontier, capacity = _frontier(powers), _capacity(powers)
    size, data = _one_of(powers, ("params",)), _one_of(powers, ("tokens", "steps"))
    both = frontier.reason or size.reason or data.reason
    out = [_implied(fit, level, "frontier exponent", frontier, lambda low, high: "L - E ~ C^-1/S at the best sizes")]
    for name, one in (("params", size), ("tokens", data)):
        share = _combined(f"1/(S {one.text})", lambda p, x: p / x, (frontier, one), both)
        out.append(_implied(fit, level, f"{name} exponent", share, lambda low, high, n=name: f"best {n} ~ C to this"))
    trend = _combined("(alpha - beta)/(alpha + beta)", lambda a, b: (a - b) / (a + b), (size, data), both)
    ratio = ("tokens per parameter fall with C", "tokens per parameter grow with C",
             "tokens per parameter may grow or fall; a constant ratio is inside")  # fmt: skip
    out.append(_implied(fit, level, "tokens per parameter", trend, _signs(ratio)))
    source = data._replace(text="s")
    out.append(_implied(fit, level, "source", source, lambda low, high: "of the bias, the exponent of the tokens"))
    above = ("below 1: a trace that grows with the size, outside the phases Ia, II, III", "phase Ia is possible",
             "whether the trace converges is open")  # fmt: skip
    out.append(_implied(fit, level, "capacity", capacity, _signs(above, 1.0)))
    out.append(_phase(fit, level, powers, capacity))
    border = _combined("s - 1 + 1/b", lambda s, b: s - 1 + 1 / b, (source, capacity), source.reason or capacity.reason)
    if not border.reason and capacity.interval(level)[0] <= 1:
        border = border._replace(
            reason="the interval of the capacity reaches 1, where the noise has no memory of that kind"
        )
    schedule = ("hard: a plateau and a late decay", "easy: a power decay", "both phases are inside")
    out.append(_implied(fit, level, "schedule", border, _signs(schedule)))
    return tuple(out)


def _phase(fit: TableFit, level: float, powers: Powers, capacity: _Quantity) -> Implied:
    """Exponent of `compute_optimal` at the implied (a, b), where the whole interval of b is above 1."""
    size = _one_of(powers, ("params",))
    reason = capacity.reason or size.reason or ("" if fit.stable else f"the fit is unstable: {fit.unstable[0]}")
    if not reason and capacity.interval(level)[0] <= 1:
        reason = "the interval of the capacity reaches 1"
    if reason:
        return Implied("compute-optimal phase", "", None, None, reason)
    found = compute_optimal(1 + size.value, capacity.value)
    kept = capacity.draws > 1
    a, b = 1 + size.draws[kept], capacity.draws[kept]
    phase = np.where(a <= b + 1, 0, np.where(a <= 2 * b, 1, 2))
    drawn = np.choose(phase, [(a - 1) / (b + 1), 1 - 1 / a, 1 - 1 / (2 * b)])
    low, high = quantiles(drawn, level)
    same = float(np.mean(np.array(PHASES)[phase] == found.phase))
    said = f"phase {found.phase}" + ("" if same > level else f" in {same:.0%} of the draws")
    return Implied("compute-optimal phase", said, found.exponent, (float(low), float(high)))


def _implied(
    fit: TableFit, level: float, name: str, quantity: _Quantity, meaning: Callable[[float, float], str]
) -> Implied:
    reason = quantity.reason or ("" if fit.stable else f"the fit is unstable: {fit.unstable[0]}")
    if reason:
        return Implied(name, "", None, None, reason)
    interval = quantity.interval(level)
    return Implied(name, meaning(*interval), quantity.value, interval)


def _signs(words: tuple[str, str, str], at: float = 0.0) -> Callable[[float, float], str]:
    """Below, above, or both sides of `at`."""
    return lambda low, high: words[0] if high < at else words[1] if low > at else words[2]


def _combined(text: str, rule: Callable[..., Any], parts: tuple[_Quantity, ...], reason: str) -> _Quantity:
    if reason:
        return _Quantity(text, math.nan, np.empty(0), reason)
    return _Quantity(text, float(rule(*(p.value for p in parts))), rule(*(p.draws for p in parts)))


def _one_of(powers: Powers, columns: tuple[str, ...]) -> _Quantity:
    """The exponent of the first of `columns` that the form has."""
    for column in columns:
        if powers.has(column):
            return _Quantity(powers.text(column), *powers.exponent(column), powers.why_open(column))
    why = powers.why_none(columns[0])
    return _Quantity(f"exponent of {columns[0]}", math.nan, np.empty(0), why)


def _width(powers: Powers, q: float) -> _Quantity:
    """Exponent of the width, or q times that of the parameters."""
    if powers.has("width"):
        return _one_of(powers, ("width",))
    size = _one_of(powers, ("params",))
    return _combined(f"{q:g} {size.text}", lambda a: q * a, (size,), size.reason)


def _frontier(powers: Powers) -> _Quantity:
    """1/S = 1/sum q_x/alpha_x over the columns that cost compute: params and tokens (or steps), or width, depth and tokens."""
    size = ("params",) if powers.has("params") else ("width", "depth")
    parts = (*(_one_of(powers, (name,)) for name in size), _one_of(powers, ("tokens", "steps")))
    reason = next((p.reason for p in parts if p.reason), "")
    weights = (*(COSTS[name] for name in size), 1.0)
    names = " + ".join(f"{q:g}/{p.text}" for q, p in zip(weights, parts, strict=True))
    return _combined(
        f"1/({names})", lambda *a: 1 / sum(q / x for q, x in zip(weights, a, strict=True)), parts, reason
    )  # fmt: skip


def _capacity(powers: Powers) -> _Quantity:
    """alpha/beta: the power b of the spectrum, if params are features and tokens steps."""
    size, data = _one_of(powers, ("params",)), _one_of(powers, ("tokens", "steps"))
    text = f"{size.text}/{data.text}"
    return _combined(text, lambda a, b: a / b, (size, data), size.reason or data.reason)
