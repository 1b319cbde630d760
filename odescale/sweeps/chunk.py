"""One chunk of a sweep: solved, and reduced to what is kept of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from odescale.analysis.phases.numbers import TransitionCode, fitted_transition_numbers, transition_numbers
from odescale.errors import InputError
from odescale.solve.members import Columns
from odescale.solve.sweep import Problem, shapes_of, solve_members

CURVES = ("loss", "exponent", "index")
SUMMARIES = ("transition", "end")
"""Outputs that are a few numbers a member: t_x with its depth and code; p and q at the last time reached."""


class Array(NamedTuple):
    """How one output stands in the store: shape of one member, its dimensions, dtype and what stands for "not computed"."""

    shape: tuple[int, ...]
    dimensions: tuple[str, ...]
    dtype: str
    fill: Any


def require_outputs(outputs: Any, problem: Problem, columns: Columns) -> tuple[tuple[str, ...], dict[str, Array]]:
    """(outputs without repetitions, every array of the store by name); an unknown output is refused with the known ones."""
    shapes = shapes_of(problem, columns)
    wanted = unrepeated(outputs)
    observables = [name for name in shapes if name not in (*CURVES, "valid", "half_width")]
    for name in wanted:
        if name not in (*CURVES, *SUMMARIES, *observables):
            known = ", ".join((*CURVES, *SUMMARIES, *observables))
            raise InputError("keep", expected=f"some of {known}", got=name, remedy="leave it out")
    arrays = arrays_of(wanted, shapes)
    if both := sorted({*arrays, "t", "steps"} & {*columns}):
        raise InputError("keep", expected="names that are no parameter's", got=both, remedy="leave them out")
    return wanted, arrays


def unrepeated(outputs: Any) -> tuple[str, ...]:
    """The names of outputs, each once."""
    return tuple(dict.fromkeys([outputs] if isinstance(outputs, str) else outputs))


def arrays_of(outputs: tuple[str, ...], shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Array]:
    """Every array that a chunk writes, by name."""
    number = Array((), (), "float64", np.nan)
    found = {
        "code": Array((), (), "int8", -1),
        "solver_steps": Array((), (), "int32", -1),
        "t_end": number,
        "loss_end": number,
    }
    if "end" in outputs:
        found |= {"exponent_end": number, "index_end": number}
    if "transition" in outputs:
        found |= {"t_x": number, "transition_depth": number, "transition": Array((), (), "int8", -1)}
    for name in outputs:
        if name not in SUMMARIES:
            shape = shapes[name].shape
            found[name] = Array(shape, _dimensions(name, len(shape)), "float64", np.nan)
    if "loss" in outputs and "half_width" in shapes:
        found["error"] = found["loss"]
    return found


def _dimensions(name: str, ndim: int) -> tuple[str, ...]:
    """As in `Trajectory.to_xarray`."""
    if name == "state":
        return ("t", *(f"state_{i}" for i in range(1, ndim)))
    further = ("replicate",) if name == "replicate_loss" else ("row", "column")
    return ("t", *further[: ndim - 1])


def solve_chunk(
    problem: Problem, columns: Columns, outputs: tuple[str, ...], lanes: int | None = None, most: int | None = None
) -> dict[str, np.ndarray]:
    """What the store keeps of some members, by name: a leading axis of members, then as `arrays_of` says.

    `most`: members of a full chunk, whose program the shorter last one shares.
    """
    summaries = [name for name in SUMMARIES if name in outputs]
    asked = problem.sample.integration
    # A loss over nodes has no derivatives worth having: its transition is that of a model fitted to it.
    fitted = asked.over_nodes
    slopes = "end" in outputs or ("transition" in outputs and not fitted)
    wanted = [name for name in outputs if name not in SUMMARIES] + ["loss"]
    wanted += [*CURVES[1:]] * slopes + ["valid"] * bool(summaries)
    exponents = slopes or any(name in outputs for name in CURVES[1:])
    out = solve_members(
        problem, columns, wanted=tuple(dict.fromkeys(wanted)), exponents=exponents, lanes=lanes, most=most
    )
    members, end = np.arange(out["code"].size), out["end"]
    found = {"code": out["code"].astype("int8"), "t_end": problem.times[end], "loss_end": out["loss"][members, end]}
    found["solver_steps"] = (out["stats"]["accepted"] + out["stats"]["rejected"]).astype("int32")
    found |= {name: out[name] for name in outputs if name not in SUMMARIES}
    if "loss" in outputs and "half_width" in out:
        found["error"] = out["half_width"] / np.abs(out["loss"])
    if "end" in outputs:
        found |= {f"{name}_end": out[name][members, end] for name in CURVES[1:]}
    if "transition" in outputs:
        found |= _transitions(problem.times, out, fitted)
    return found


def _transitions(times: np.ndarray, out: dict[str, Any], fitted: bool) -> dict[str, np.ndarray]:
    if fitted:
        each = [fitted_transition_numbers(times, *pair) for pair in zip(out["loss"], out["valid"], strict=True)]
    else:
        curves = zip(*(out[name] for name in (*CURVES, "valid")), strict=True)
        each = [transition_numbers(times, *four) for four in curves]
    t_x, depth, codes = zip(*each, strict=True)
    return {
        "t_x": np.array(t_x),
        "transition_depth": np.array(depth),
        "transition": np.array([int(TransitionCode(code)) for code in codes], dtype="int8"),
    }
