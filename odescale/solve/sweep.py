"""Batches of parameters: one compilation, one vmapped solve, one `Trajectory` with a leading axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odescale.clock import Clock
from odescale.errors import InputError
from odescale.precision import resolve_dtype
from odescale.solve.integrate import (
    DEFAULT_MAX_STEPS,
    FINISHED,
    atol_share,
    first_time,
    output_times,
    positive_integer,
    require_choice,
    solve_arrays,
    step_tolerances,
)
from odescale.solve.trajectory import Trajectory
from odescale.systems.catalog import find_system


def sweep(
    system: str,
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

    - `system`: name of a system; `fixed`: parameters common to all members.
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
    entry = find_system(system)
    build, parameters = entry.build, entry.parameters
    known = {parameter.name: parameter for parameter in parameters}
    arrays = {name: _column(name, column) for name, column in values.items()}
    if not arrays:
        raise InputError("values", expected="at least one parameter with its values", got={}, remedy="or use integrate")
    members = {column.shape for column in arrays.values()}
    if len(members) != 1 or len(next(iter(members))) != 1 or next(iter(members)) == (0,):
        raise InputError("values", expected="1-d arrays of equal length", got=sorted(members), remedy="ravel the grid")
    for name, column in arrays.items():
        if name not in known:
            build(**fixed, **{name: column[0]})  # raises the error with its hint
        if known[name].kind is not float:
            raise InputError(
                name, expected="a parameter that keeps all shapes", got="a sweep over it", remedy="loop over it"
            )
        for value in np.unique(column):
            known[name].check(value)
    sample = build(**{**fixed, **{name: column[0] for name, column in arrays.items()}})
    sample.check()
    require_choice("solver", solver, ("auto", *DEFAULT_MAX_STEPS))
    rung = sample.solvers[0] if solver == "auto" else solver
    cap = DEFAULT_MAX_STEPS[rung] if max_steps is None else positive_integer("max_steps", max_steps)
    times = output_times(t1, points, first=first_time(sample))
    tolerances = step_tolerances(rung, rtol, atol, np.dtype("float64"), atol_share(sample))
    size = next(iter(members))[0]
    if chunk is not None:
        positive_integer("chunk", chunk)
    batch = chunk or (size if jax.default_backend() != "cpu" else min(64, size))
    # A last chunk of another size would be compiled again: fill it up with copies of the last member.
    padding = -size % batch
    columns = {name: jnp.asarray(np.pad(column, (0, padding), mode="edge")) for name, column in arrays.items()}
    others = {name: value for name, value in fixed.items() if name not in arrays}
    if unkept := [name for name, value in others.items() if isinstance(value, (np.ndarray, jax.Array, list))]:
        raise InputError(
            "fixed",
            expected="numbers and words common to all members",
            got=unkept,
            remedy="arrays belong into integrate",
        )
    frozen = _Fixed(build, tuple(sorted(others.items(), key=lambda item: item[0])))
    _keeps_shapes(frozen, columns)
    out = _solve_all(frozen, columns, jnp.asarray(times), *tolerances, rung, cap, batch)
    out = jax.tree_util.tree_map(lambda leaf: leaf[:size], out)
    host = {name: np.asarray(out[name]) for name in ("state", "loss", "exponent", "index", "valid", "code")}
    meta = {
        "system": system,
        "solver": rung,
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


def _column(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise InputError(name, expected="numbers, shape (members,)", got=values, remedy="pass an array") from None


def _keeps_shapes(fixed: _Fixed, columns: dict[str, Any]) -> None:
    """Refuses parameters on whose values the builder branches: a spectrum's exponent, or its source."""
    try:
        jax.eval_shape(lambda member: fixed.build(**dict(fixed.values), **member).initial_state(),
                       {name: column[0] for name, column in columns.items()})  # fmt: skip
    except jax.errors.JAXTypeError:
        raise InputError(
            ", ".join(columns), expected="parameters that keep all shapes", got="a sweep over them",
            remedy="loop over them",
        ) from None  # fmt: skip


class _Fixed(eqx.Module):
    """Builder and common parameters, static under jit: a change of either is a change of program."""

    build: Any = eqx.field(static=True)
    values: tuple = eqx.field(static=True)


@eqx.filter_jit
def _solve_all(fixed, columns, times, rtol, atol, solver, max_steps, batch):
    def one(member):
        system = fixed.build(**dict(fixed.values), **member)
        return solve_arrays(system, system.initial_state(), times, rtol, atol, solver, max_steps)

    return jax.lax.map(one, columns, batch_size=batch)
