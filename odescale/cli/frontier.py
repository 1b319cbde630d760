"""`odescale frontier`: the risk law that the options describe, its critical compute, its frontier as a table, a picture."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from jaxtyping import Float

from odescale.analysis.frontier.compute import (
    CriticalCompute,
    Frontier,
    compute_frontier,
    critical_compute,
    fixed_size_risk,
)
from odescale.analysis.frontier.power_law_phases import ComputeOptimal, compute_optimal, phase_map
from odescale.analysis.frontier.risk_law import TIME, RiskLaw, risk_law, yang_v1, yang_v3
from odescale.cli.output import draw, emit, require_picture, save_axes, table
from odescale.errors import InputError
from odescale.plot.frontier import plot_compute_phases

PRESETS = {"yang_v1": yang_v1, "yang_v3": yang_v3}
POINTS, DRAWN, MODELS = 13, 400, 5
TIME_UNITS = {
    "exponential": "that of the rate lam: with lam per SGD step one unit of t is one SGD step",
    "power": "that of the power law in t",
    "none": None,
}
EXAMPLE = "--term width:1:.5:2:100"


def show_frontier(options: argparse.Namespace) -> int:
    """Prints C* and the frontier of a law, or the compute-optimal phase of a spectrum."""
    require_picture(options.plot)
    chosen = [name for name in ("preset", "term", "spectrum") if getattr(options, name)]
    if len(chosen) != 1:
        got = " and ".join(f"--{name}" for name in chosen) or "neither"
        raise InputError("frontier", expected="one of --preset, --term, --spectrum", got=got, remedy=f"e.g. {EXAMPLE}")
    if options.spectrum:
        return _spectrum(options)
    law = law_of(options)
    critical = critical_compute(law)
    values = None if options.compute is None else computes(options.compute)
    record: dict[str, Any] = {
        "parameters": parameters(law), "law": str(law), "S": float(law.S), "critical": critical.to_dict(),
        "time_unit": TIME_UNITS[law.time_kind],
    }  # fmt: skip
    lines = [str(law), str(critical)]
    if values is None:
        if options.plot:
            raise InputError("--compute", expected="LO:HI[:N] with --plot", got="none", remedy="--compute 1e6:1e12")
        record |= {"frontier": None}
    else:
        found = compute_frontier(law, values)
        record |= {"t": found.time, "loss": found.risk, "exponent": found.exponent, "frontier": found.to_dict()}
        lines += rows_of(law, found)
        if options.plot:
            _draw(law, critical, values, options)
    emit(record, "\n".join(lines), options.json)
    return 0


def law_of(options: argparse.Namespace) -> RiskLaw:
    """The risk law of --preset, or of --term with --decay, --rate, --time-cost, --unit. **Raises** `InputError`."""
    given = {name: getattr(options, name) for name in ("decay", "rate", "time_cost")}
    unit = 1.0 if options.unit is None else options.unit
    if options.preset:
        if options.preset not in PRESETS:
            raise InputError("--preset", expected=" or ".join(PRESETS), got=options.preset, remedy="or use --term")
        for name, value in given.items():
            if value is not None:
                raise InputError(_flag(name), expected="to be left out with --preset", got=value, remedy="use --term")
        return PRESETS[options.preset](unit=unit)
    terms = [_term(text) for text in options.term]
    names = [name for name, _ in terms]
    for name in set(names):
        if names.count(name) > 1:
            raise InputError("--term", expected="one term per name", got=f"two of {name}", remedy="rename one")
    sizes = [(name, numbers) for name, numbers in terms if name != TIME]
    words: dict[str, Any] = {}
    for name, (A, alpha, q, floor) in terms:
        if name == TIME:
            for other, value in given.items():
                if value is not None:
                    raise InputError(_flag(other), expected=f"to be left out with --term {TIME}:...", got=value,
                                     remedy="the time is a power law or an exponential")  # fmt: skip
            words = {"time_amplitude": A, "time_exponent": alpha, "time_cost": q, "time_floor": floor}
    if not words:
        missing = [_flag(name) for name, value in given.items() if value is None]
        if missing and len(missing) < len(given):
            raise InputError(missing[0], expected="--decay, --rate and --time-cost together", got="none",
                             remedy="all three make the time exponential")  # fmt: skip
        words = {} if missing else given
    rows = np.array([numbers for _, numbers in sizes]).reshape(-1, 4)
    return risk_law(
        rows[:, 0], rows[:, 1], rows[:, 2], names=[name for name, _ in sizes], floors=rows[:, 3], unit=unit, **words
    )


def computes(text: str) -> Float[np.ndarray, " N"]:
    """LO:HI[:N] as N log-spaced computes, 13 without N; `InputError` for anything else."""
    parts = text.split(":")
    try:
        low, high = float(parts[0]), float(parts[1])
        number = int(parts[2]) if len(parts) == 3 else POINTS
        good = len(parts) <= 3 and 0 < low < high < np.inf and 2 <= number <= 100_000
    except (ValueError, IndexError):
        good, low, high, number = False, 1.0, 1.0, 2
    if not good:
        raise InputError("--compute", expected="LO:HI[:N] with 0 < LO < HI, N from 2 to 100000", got=text,
                         remedy="e.g. --compute 1e6:1e12:13")  # fmt: skip
    return np.geomspace(low, high, number)


def parameters(law: RiskLaw) -> dict[str, Any]:
    """The numbers of a law, JSON-ready."""
    where = (*law.names, TIME)
    terms = [
        {"name": where[v], "amplitude": float(A), "exponent": float(alpha)}
        for v, A, alpha in zip(law.variable, law.amplitudes, law.exponents, strict=True)
    ]
    sizes = {
        name: {"cost": float(q), "floor": float(floor)}
        for name, q, floor in zip(law.names, law.costs, law.floors, strict=True)
    }
    words = ("time_cost", "time_floor", "decay", "rate", "unit")
    return {"terms": terms, "sizes": sizes} | {name: float(getattr(law, name)) for name in words}


def rows_of(law: RiskLaw, found: Frontier) -> list[str]:
    """One line per compute: C, R, sizes, t, local exponent, what is held at its floor; or why there is no optimum."""
    sizes, held = np.asarray(found.sizes), np.asarray(found.held)
    timed, names = law.time_kind != "none", np.array([*law.names, TIME])
    rows = []
    for i, C in enumerate(np.asarray(found.compute)):
        if found.valid[i]:
            numbers = [C, found.risk[i], *sizes[i], *([found.time[i]] if timed else []), found.exponent[i]]
            rows.append([*numbers, ", ".join(names[held[i]]) or "-"])
        else:
            rows.append([C, *[None] * (len(law.names) + timed + 2), "no optimum: below the floors, or no gain yet"])
    return table(("C", "risk R", *law.names, *(["t"] if timed else []), "exponent", "held"), rows)


def model_curves(law: RiskLaw, found: Frontier, count: int = MODELS) -> dict[str, tuple[Any, Any]]:
    """label -> (compute, risk) of `count` optimal models of the frontier, each trained ever longer; none without time."""
    if law.time_kind == "none" or not law.names:
        return {}
    kept = np.flatnonzero(np.asarray(found.valid))
    picks = np.unique(kept[np.linspace(0, kept.size - 1, count + 2).astype(int)[:-2]])
    C, curves = np.asarray(found.compute), {}
    for i in picks:
        x = np.asarray(found.sizes)[i]
        label = ", ".join(f"{name} {_number(value)}" for name, value in zip(law.names, x, strict=True))
        curves[label] = (C, np.asarray(fixed_size_risk(law, x, C)))
    return curves


def _draw(law: RiskLaw, critical: CriticalCompute, values: np.ndarray, options: argparse.Namespace) -> None:
    dense = compute_frontier(law, np.geomspace(values[0], values[-1], max(DRAWN, values.size)))
    curves = model_curves(law, dense) if np.sum(np.asarray(dense.valid)) > 1 else {}
    draw(dense, options.plot, critical=critical, curves=curves, asymptote=float(1 / law.S),
         compute_unit="" if options.unit is None else "FLOP")  # fmt: skip


def _spectrum(options: argparse.Namespace) -> int:
    for name in ("decay", "rate", "time_cost", "unit", "compute"):
        if getattr(options, name) is not None:
            raise InputError(_flag(name), expected="to be left out with --spectrum", got=getattr(options, name),
                             remedy="a spectrum gives exponents, no amplitudes")  # fmt: skip
    try:
        a, b = (float(part) for part in options.spectrum.split(","))
    except ValueError:
        raise InputError("--spectrum", expected="two numbers A,B", got=options.spectrum, remedy="2,1.5") from None
    phase = compute_optimal(a, b)
    if options.plot:
        _draw_phases(phase, options.plot)
    remark = f"{phase.margin:.3g} from the nearest boundary; C = d t, d random features, t in SGD steps"
    record = {"parameters": {"a": a, "b": b}, "time_unit": "SGD steps", "exponent": phase.exponent}
    emit(record | {"phase": phase.to_dict()}, f"{phase}\n{remark}", options.json)
    return 0


def _draw_phases(phase: ComputeOptimal, file: str) -> None:
    a, b = np.linspace(1.02, max(5.0, 1.2 * phase.a), 300), np.linspace(1.02, max(3.0, 1.2 * phase.b), 250)
    label = f"a = {phase.a:g}, b = {phase.b:g}: exponent {phase.exponent:.4g}"
    save_axes(plot_compute_phases(a, b, *phase_map(a, b), marks={label: (phase.a, phase.b)}), file)


def _number(value: float) -> str:
    return f"{value:.0f}" if 100 <= value < 1e6 else f"{value:.3g}"


def _term(text: str) -> tuple[str, list[float]]:
    """name and (A, alpha, q, floor) of NAME:A:ALPHA:Q[:FLOOR]."""
    name, *numbers = text.split(":")
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        values = []
    if not name.strip() or len(values) not in (3, 4):
        raise InputError("--term", expected="NAME:A:ALPHA:Q[:FLOOR]", got=text, remedy=f"e.g. {EXAMPLE}")
    return name.strip(), [*values, 0.0][:4]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
