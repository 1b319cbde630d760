"""Many members at once: a vmapped solve of so many lanes on every local device, each taking the next lanes when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odescale.cache.programs import in_one_thread, program
from odescale.clock import Clock
from odescale.errors import whole
from odescale.precision import resolve_dtype, with_x64
from odescale.solve.fused import route_of
from odescale.solve.integrate import FINISHED, first_time, output_times, solve_arrays
from odescale.solve.members import Columns, Family, columns_of, family_of, require_one_shape
from odescale.solve.solvers import cap_on_steps, ladder_of, step_tolerances
from odescale.solve.trajectory import Trajectory
from odescale.systems.base import AbstractSystem, losses

LANES = 64
"""Members solved side by side on a CPU: a vmapped solve takes the steps of its slowest member."""

FEW = 4
"""Lanes full of members up to which none are solved first, to learn from."""

WHOLE = ("state", "loss", "exponent", "index", "valid")
"""What `solve_arrays` gives at every output time, beside the observables."""


class Problem(NamedTuple):
    """What all members of a sweep share: their systems by parameters, the first of them, output times, how they are solved."""

    family: Family
    sample: AbstractSystem
    times: Float[np.ndarray, " n"]
    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    solver: str
    max_steps: int


def problem_of(
    system: Any,
    t1: float,
    arrays: Columns,
    fixed: Mapping[str, Any],
    *,
    points: int = 200,
    rtol: float | None = None,
    atol: float | None = None,
    solver: str = "auto",
    max_steps: int | None = None,
) -> Problem:
    """Everything checked before compilation; the first member stands for all in what concerns solver and output times."""
    resolve_dtype("float64", "sweep")
    family = family_of(system, arrays, fixed)
    sample = family({name: column[0] for name, column in arrays.items()})
    sample.check()
    asked = sample.integration
    rung = ladder_of(asked, solver, sample.label)[0]
    cap = cap_on_steps(rung, replace(asked, most_steps=None), max_steps)
    times = output_times(t1, points, first=first_time(sample))
    tolerances = step_tolerances(rung, rtol, atol, np.dtype("float64"), asked)
    require_one_shape(family, arrays)
    return Problem(family, sample, times, *tolerances, rung, cap)


def sweep_in_memory(
    system: AbstractSystem | str | Callable[..., AbstractSystem],
    t1: float,
    values: Mapping[str, Any],
    fixed: Mapping[str, Any],
    *,
    lanes: int | None = None,
    exponents: bool = True,
    **settings: Any,
) -> Trajectory:
    """All outputs of all members as one `Trajectory` with a leading axis; see `odescale.sweep`."""
    arrays = columns_of(values)
    if lanes is not None:
        lanes = whole("lanes", lanes, 1, 1_000_000, remedy="leave it out for the default")
    problem = problem_of(system, t1, arrays, fixed, **settings)
    out = solve_members(problem, arrays, lanes=lanes, exponents=exponents)
    sample, clock = problem.sample, problem.sample.clock
    meta = {
        "system": sample.label,
        "solver": problem.solver,
        "loss": getattr(sample, "loss_label", "excess loss L"),
        "time_unit": f"one unit of t = {clock.unit}",
        "members": {name: column.tolist() for name, column in arrays.items()},
        "parameters": {name: value for name, value in sample.summary().items() if name not in arrays},
        "failed": int(np.sum(~np.isin(out["code"], FINISHED))),
        "stats": {name: value.tolist() for name, value in out["stats"].items()},
    }
    of_clock = {name: arrays[name] for name in ("learning_rate", "batch", "tokens") if name in arrays}
    own = Clock(**{**{name: getattr(clock, name) for name in clock.__dataclass_fields__}, **of_clock})
    # An ensemble of node sets carries its error bar along, as in `integrate`.
    error = out["half_width"] / np.abs(out["loss"]) if "half_width" in out else None
    host = {name: out[name] for name in (*WHOLE, "code")}
    return Trajectory(t=problem.times, observables=out["observables"], error=error, clock=own, meta=meta, **host)


def solve_members(
    problem: Problem,
    arrays: Columns,
    *,
    wanted: tuple[str, ...] | None = None,
    exponents: bool = True,
    lanes: int | None = None,
    most: int | None = None,
) -> dict[str, Any]:
    """What `solve_arrays` gives for every member, as numpy arrays with a leading axis of members in their own order.

    **Arguments**: `wanted`: names of `WHOLE` and of observables to be kept, all by default; code, stats, and the half width of an
    ensemble come always, and `end`: the place of the last valid output time. `lanes`: members solved side by side on each device
    (64 on a CPU, all on an accelerator). `most`: members of the largest of several calls, whose program this one shares.
    `exponents`: see `solve_arrays`.

    Members that need about equally many steps go side by side: of many, the first lanes, spread over all, tell how the number of
    steps depends on the parameters. Who goes with whom depends on `lanes` alone, not on the devices: lanes that are computed
    together may differ from others in the last digits.
    """
    size = next(iter(arrays.values())).size
    devices, most = _devices(), most or size
    if lanes is None:
        lanes = LANES if devices[0].platform == "cpu" else -(-most // len(devices))
    lanes = min(lanes, most)
    numbers_of_one = int(np.prod(problem.sample.initial_state().shape))
    route = route_of(devices[0].platform, numbers_of_one)
    plan = (problem.solver, problem.max_steps, wanted, exponents, route)
    numbers = (jnp.asarray(problem.times), problem.rtol, problem.atol)

    def solve(members: Int[np.ndarray, " k"]) -> Any:
        # A last group of another size would be compiled again: fill it up with copies of its last member.
        padded = np.pad(members, (0, lanes - members.size), mode="edge")
        columns = {name: jnp.asarray(column[padded]) for name, column in arrays.items()}
        with in_one_thread():
            return _solve_group(problem.family, columns, *numbers, plan)

    groups, found, rest = [], [], np.arange(size)
    if size > FEW * lanes:
        groups = [np.unique(np.linspace(0, size - 1, lanes).round().astype(int))]
        found = [solve(groups[0])]
        taken = found[0]["stats"]
        steps = (np.asarray(taken["accepted"]) + np.asarray(taken["rejected"]))[: groups[0].size]
        rest = np.setdiff1d(rest, groups[0])
        rest = rest[np.argsort(_expected_steps(arrays, groups[0], steps)[rest], kind="stable")]
    further = [rest[start : start + lanes] for start in range(0, rest.size, lanes)]
    groups += further
    found += _on_devices(solve, further, devices)
    order = np.argsort(np.concatenate(groups), kind="stable")

    def joined(*parts: Array) -> np.ndarray:
        trimmed = [np.asarray(part)[: members.size] for part, members in zip(parts, groups, strict=True)]
        return np.concatenate(trimmed)[order]

    return jax.tree_util.tree_map(joined, *found)


def shapes_of(problem: Problem, arrays: Columns) -> dict[str, jax.ShapeDtypeStruct]:
    """name -> shape and dtype of everything that one member can give at the output times, observables by their names."""

    def one(member):
        system, times = problem.family(member), jnp.asarray(problem.times)
        states = jnp.broadcast_to(start := system.initial_state(), (times.size, *start.shape))
        return states, losses(system, times, states), jax.vmap(system.observables)(times, states)

    states, (loss, half_width, replicates), observables = jax.eval_shape(
        one, {name: jnp.asarray(column[0]) for name, column in arrays.items()}
    )
    further = {"half_width": half_width, "replicate_loss": replicates}
    found = {"state": states} | dict.fromkeys(WHOLE[1:], loss) | observables
    return found | {name: value for name, value in further.items() if value is not None}


def _expected_steps(
    arrays: Columns, members: Int[np.ndarray, " k"], steps: Float[np.ndarray, " k"]
) -> Float[np.ndarray, " m"]:
    """log(steps) of all members, by least squares on those known: quadratic in the parameters, in logarithms where all are > 0."""
    scaled = []
    for column in arrays.values():
        x = np.log(column) if column.min() > 0 else column
        spread = float(np.std(x))
        scaled.append((x - np.mean(x)) / (spread or 1.0))
    squares = [a * b for i, a in enumerate(scaled) for b in scaled[i:]]
    terms = [np.ones(scaled[0].size), *scaled, *squares]
    if len(terms) > members.size / 2:
        terms = terms[: 1 + len(scaled)]
    features = np.stack(terms, axis=1)
    weights = np.linalg.lstsq(features[members], np.log(np.maximum(steps, 1)), rcond=None)[0]
    return features @ weights


def _devices() -> tuple[Any, ...]:
    """All local devices, or the one that the user chose as default."""
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if chosen is None:
        return tuple(jax.local_devices())
    return (jax.local_devices(backend=chosen)[0] if isinstance(chosen, str) else chosen,)


def _on_devices(solve: Callable[[Any], Any], groups: list[Any], devices: tuple[Any, ...]) -> list[Any]:
    """`solve` of every group, in their order.

    One thread a device, each taking the next group when it is done: in one program for all (`shard_map`) every device waits at the
    end of each group for the slowest of them.
    """
    if len(devices) == 1 or len(groups) < 2:
        return [solve(group) for group in groups]
    waiting: SimpleQueue[int] = SimpleQueue()
    for place in range(len(groups)):
        waiting.put(place)
    found: list[Any] = [None] * len(groups)

    def work(device: Any) -> None:
        # JAX's own contexts belong to a thread.
        with with_x64(), jax.default_device(device):
            while True:
                try:
                    place = waiting.get_nowait()
                except Empty:
                    return
                found[place] = jax.tree_util.tree_map(np.asarray, solve(groups[place]))

    with ThreadPoolExecutor(len(devices)) as pool:
        for done in [pool.submit(copy_context().run, work, device) for device in devices]:
            done.result()
    return found


@program
def _solve_group(family, columns, times, rtol, atol, plan):
    solver, max_steps, wanted, exponents, route = plan
    parts, static = eqx.partition(family, eqx.is_array)

    def one(parts, member, times, rtol, atol):
        system = eqx.combine(parts, static)(member)
        out = solve_arrays(
            system, system.initial_state(), times, rtol, atol, solver, max_steps, exponents=exponents, together=True,
            route=route,
        )  # fmt: skip
        return _kept(out, wanted)

    return jax.vmap(one, in_axes=(None, 0, None, None, None))(parts, columns, times, rtol, atol)


def _kept(out: dict[str, Any], wanted: tuple[str, ...] | None) -> dict[str, Any]:
    """What is not kept is not computed either: the compiler drops it."""
    end = jnp.maximum(jnp.sum(out["valid"]) - 1, 0)
    always = {name: out[name] for name in ("code", "stats", "half_width") if name in out} | {"end": end}
    if wanted is None:
        return {name: out[name] for name in (*WHOLE, "observables")} | always
    known = {name: out[name] for name in WHOLE} | out["observables"]
    return {name: known[name] for name in wanted} | always
