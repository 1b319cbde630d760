"""Batches of parameters: one compilation, one vmapped solve, one `Trajectory` with a leading axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odescale.clock import Clock
from odescale.errors import InputError, whole
from odescale.precision import resolve_dtype
from odescale.solve.integrate import FINISHED, first_time, output_times, solve_arrays
from odescale.solve.solvers import cap_on_steps, ladder_of, step_tolerances
from odescale.solve.trajectory import Trajectory
from odescale.systems.base import AbstractSystem
from odescale.systems.register import entry_of


def sweep(
    system: AbstractSystem | str | Callable[..., AbstractSystem],
    t1: float,
    values: Mapping[str, Any],
    *,
    points: int = 200,
    rtol: float | None = None,
    atol: float | None = None,
    solver: str = "auto",
    max_steps: int | None = None,
    chunk: int | None = None,
    **fixed: Any,
) -> Trajectory:
    """y(t; theta_m) for m = 1..members: the same integration as `integrate`, vmapped over parameter values.

    One unit of t is tr Sigma SGD steps. Compiles once per shape, whatever the values.

    **Arguments**

    - `system`: the name of a system or its builder, with `fixed` parameters common to all members; or a system as it stands, whose
      own numbers are then varied (`learning_rate`, `batch`, ...: every field that is one number).
    - `values`: name -> (members,) arrays of equal length, varied together (use `numpy.meshgrid(...)` raveled for a grid).
    - `solver`: "auto" is the first of the system's ladder; a failed member is not solved again by the next.
    - `max_steps`: lower it where some members may diverge: a batch takes the steps of its slowest member.
    - `chunk`: members solved at once, the rest in turn (memory; on a CPU 32 to 128 is faster than all at once, since
      a vmapped solve waits for its slowest member). Default: 64 on a CPU, all on a GPU.

    **Returns** a `Trajectory` whose arrays have a leading axis of members; `code` tells which members failed and
    `valid` masks what they did not reach. **Raises** `InputError` for a parameter that changes shapes (depth, heads,
    dimension): loop over those.
    """
    resolve_dtype("float64", "sweep")
    arrays = {name: _column(name, column) for name, column in values.items()}
    if not arrays:
        raise InputError("values", expected="at least one parameter with its values", got={}, remedy="or use integrate")
    members = {column.shape for column in arrays.values()}
    if len(members) != 1 or len(next(iter(members))) != 1 or next(iter(members)) == (0,):
        raise InputError("values", expected="1-d arrays of equal length", got=sorted(members), remedy="ravel the grid")
    family = (
        _replacing(system, arrays, fixed) if isinstance(system, AbstractSystem) else _building(system, arrays, fixed)
    )
    sample = family({name: column[0] for name, column in arrays.items()})
    sample.check()
    asked = sample.integration
    rung = ladder_of(asked, solver, sample.label)[0]
    cap = cap_on_steps(rung, replace(asked, most_steps=None), max_steps)
    times = output_times(t1, points, first=first_time(sample))
    tolerances = step_tolerances(rung, rtol, atol, np.dtype("float64"), asked.atol_share)
    size = next(iter(members))[0]
    if chunk is not None:
        chunk = whole("chunk", chunk, 1, 1_000_000, remedy="leave it out for the default")
    batch = chunk or (size if jax.default_backend() != "cpu" else min(64, size))
    # A last chunk of another size would be compiled again: fill it up with copies of the last member.
    padding = -size % batch
    columns = {name: jnp.asarray(np.pad(column, (0, padding), mode="edge")) for name, column in arrays.items()}
    _keeps_shapes(family, columns)
    out = _solve_all(family, columns, jnp.asarray(times), *tolerances, rung, cap, batch)
    out = jax.tree_util.tree_map(lambda leaf: leaf[:size], out)
    host = {name: np.asarray(out[name]) for name in ("state", "loss", "exponent", "index", "valid", "code")}
    meta = {
        "system": sample.label,
        "solver": rung,
        "loss": getattr(sample, "loss_label", "excess loss L"),
        "time_unit": f"one unit of t = {sample.clock.steps_per_unit:g} SGD steps",
        "members": {name: column.tolist() for name, column in arrays.items()},
        "parameters": {name: value for name, value in sample.summary().items() if name not in arrays},
        "failed": int(np.sum(~np.isin(host["code"], FINISHED))),
        "stats": {name: np.asarray(value).tolist() for name, value in out["stats"].items()},
    }
    observables = {name: np.asarray(value) for name, value in out["observables"].items()}
    of_clock = {name: arrays[name] for name in ("learning_rate", "batch", "tokens") if name in arrays}
    clock = Clock(**{**{name: getattr(sample.clock, name) for name in sample.clock.__dataclass_fields__}, **of_clock})
    # An ensemble of node sets carries its error bar along, as in `integrate`.
    error = np.asarray(out["half_width"]) / np.abs(host["loss"]) if "half_width" in out else None
    return Trajectory(t=times, observables=observables, error=error, clock=clock, meta=meta, **host)


class _Building(eqx.Module):
    """Member -> system by a builder and common parameters, static under jit: a change of either is a change of program."""

    build: Any = eqx.field(static=True)
    fixed: tuple = eqx.field(static=True)

    def __call__(self, member: dict[str, Any]) -> AbstractSystem:
        return self.build(**dict(self.fixed), **member)


class _Replacing(eqx.Module):
    """Member -> the template with some of its numbers replaced."""

    template: AbstractSystem

    def __call__(self, member: dict[str, Any]) -> AbstractSystem:
        names = tuple(member)
        like = [getattr(self.template, name).dtype for name in names]
        new = [jnp.asarray(member[name], dtype) for name, dtype in zip(names, like, strict=True)]
        return eqx.tree_at(lambda system: [getattr(system, name) for name in names], self.template, new)


def _building(system: Any, arrays: dict[str, np.ndarray], fixed: dict[str, Any]) -> _Building:
    entry = entry_of(system)
    known = {parameter.name: parameter for parameter in entry.parameters}
    for name, column in arrays.items():
        if name not in known:
            entry.build(**fixed, **{name: column[0]})  # raises the error with its hint
            raise InputError(
                name, expected=f"one of {', '.join(known)}", got=name, remedy="a parameter in the register"
            )
        if known[name].kind is not float:
            raise InputError(
                name, expected="a parameter that keeps all shapes", got="a sweep over it", remedy="loop over it"
            )
        for value in np.unique(column):
            known[name].check(value)
    others = {name: value for name, value in fixed.items() if name not in arrays}
    if unkept := [name for name, value in others.items() if isinstance(value, (np.ndarray, jax.Array, list))]:
        raise InputError(
            "fixed",
            expected="numbers and words common to all members",
            got=unkept,
            remedy="build the system with them and sweep that",
        )
    return _Building(entry.build, tuple(sorted(others.items(), key=lambda item: item[0])))


def _replacing(system: AbstractSystem, arrays: dict[str, np.ndarray], fixed: dict[str, Any]) -> _Replacing:
    if fixed:
        raise InputError(
            next(iter(fixed)), expected="a parameter of a name or builder", got=f"a built {system.label}",
            remedy="build the system with it",
        )  # fmt: skip
    numbers = [n for n, v in vars(system).items() if eqx.is_inexact_array(v) and v.ndim == 0]
    known = {parameter.name: parameter for parameter in system.parameters}
    for name, column in arrays.items():
        if name not in numbers:
            raise InputError(
                name, expected=f"one of its numbers: {', '.join(numbers)}", got=name, remedy="sweep its builder instead"
            )
        for value in np.unique(column) if name in known else ():
            known[name].check(value)
    return _Replacing(system)


def _column(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise InputError(name, expected="numbers, shape (members,)", got=values, remedy="pass an array") from None


def _keeps_shapes(family: Any, columns: dict[str, Any]) -> None:
    """Refuses parameters on whose values the builder branches: a spectrum's exponent, or its source."""
    try:
        jax.eval_shape(
            lambda member: family(member).initial_state(), {name: column[0] for name, column in columns.items()}
        )
    except jax.errors.JAXTypeError:
        raise InputError(
            ", ".join(columns), expected="parameters that keep all shapes", got="a sweep over them",
            remedy="loop over them, or build the system and sweep its own numbers",
        ) from None  # fmt: skip


@eqx.filter_jit
def _solve_all(family, columns, times, rtol, atol, solver, max_steps, batch):
    def one(member):
        system = family(member)
        return solve_arrays(system, system.initial_state(), times, rtol, atol, solver, max_steps)

    return jax.lax.map(one, columns, batch_size=batch)
