"""`integrate`: one verb for every system, diffrax underneath, with a recorded ladder of solvers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.cache.programs import program
from odescale.errors import InputError, SolveError, require_number, whole
from odescale.expectations.nodes import Nodes
from odescale.precision import resolve_dtype
from odescale.solve.codes import Code, code_of, explain
from odescale.solve.fused import solve_fused
from odescale.solve.lockstep import Outcome, can_step, solve_together
from odescale.solve.remarks import remarks_of_solve
from odescale.solve.sampled_exponents import sampled_exponents
from odescale.solve.solvers import SOLVERS, cap_on_steps, ladder_of, method_of, step_tolerances
from odescale.solve.spectral.solver import solve_with_diffrax
from odescale.solve.step_control import patient
from odescale.solve.structure import solve_structured
from odescale.solve.trajectory import Trajectory
from odescale.systems.base import AbstractSystem, local_exponents, losses, over_times
from odescale.systems.parameters import is_traced
from odescale.systems.register import as_system

FINISHED = (Code.OK, Code.LOSS_NOT_POSITIVE)
"""Done, or the loss is zero to rounding (masked from there on)."""
FINAL = (*FINISHED, Code.DIVERGED)
"""Codes that a further solver cannot improve: the flow itself may end at a finite time."""

ROUNDING_FLOOR = 100
"""In eps of the loss at the start: below it the loss is masked (2e-14 of the start in float64, 1e-5 in float32)."""

SHORTEST, LONGEST = 1e-250, 1e250
"""Spans of time whose shares and multiples are still numbers."""

MOST_POINTS = 10_000_000
"""Output times: more than fill memory."""

LANE_NUMBERS = 200
"""Of the states of one member of a batch at the output times that are evaluated at once: 64 members then stay in the cache."""


def output_times(t1: float, points: int = 200, t0: float = 0.0, first: float | None = None) -> Float[np.ndarray, " n"]:
    """t0, then `points` - 1 times log-spaced over the last four decades of (t0, t1], or from t0 + `first` on if that is earlier."""
    t0 = require_number("t0", t0, -LONGEST, LONGEST)
    if isinstance(t1, bool) or not (isinstance(t1, (int, float, np.number)) and t0 + SHORTEST < t1 <= LONGEST):
        raise InputError("t1", expected=f"a finite time > {t0:g}", got=t1, remedy="one unit of t is tr Sigma SGD steps")
    t1 = float(t1)
    points = whole("points", points, 2, MOST_POINTS, remedy="200 is a good value")
    if points == 2:
        return np.array([t0, t1], float)
    start = (t1 - t0) * 1e-4 if first is None else min(first, (t1 - t0) * 1e-4)
    return np.concatenate([[t0], t0 + np.geomspace(start, t1 - t0, int(points) - 1)])


def first_time(system: AbstractSystem) -> float | None:
    """Where the output of a system that is followed in log time begins; None for the others, and inside a transformation."""
    scale = system.integration.time_scale
    return None if scale is None or is_traced(scale) else float(scale)


def integrate(
    system: AbstractSystem | str,
    t1: Real[ArrayLike, ""] | None = None,
    *,
    t0: float = 0.0,
    ts: Real[ArrayLike, " n"] | Sequence[float] | None = None,
    points: int = 200,
    start: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
    solver: str = "auto",
    accuracy: str = "fast",
    max_steps: int | None = None,
    precision: str = "float64",
    exponents: bool = True,
    progress: bool = False,
    on_failure: str = "raise",
) -> Trajectory:
    """y(t) of `dy/dt = f(t, y)`, with the loss, its local exponents and the observables at the output times.

    One unit of t is `system.clock.steps_per_unit` SGD steps. Runs on whatever device JAX uses; compiled once per shape
    (tolerances, times and parameters are arrays). Differentiable: `jax.grad` of any output with respect to the arrays
    of `system` works (`eqx.filter_grad`); under a transformation only the first solver of the ladder is used. `t1` may be traced
    too, e.g. the time of a risk that `numeric_frontier` minimises: `integrate(system, time, points=2).loss[-1]`.

    **Arguments**

    - `system`: a system, or the name of one in the register, taken with its defaults.
    - `t1`: end time > t0; or `ts` (n,): increasing output times, at or after t0, which is put in front when missing.
    - `points`: number of log-spaced output times when `ts` is not given. `start`: y(t0), default the initial state.
    - `rtol`, `atol`: tolerances; defaults 1e-8 and rtol/10000 (1e-3 for the structure-preserving solver and where the loss is an
      average over node sets, 3e-4 for bosh3, 1e-6 for rank_one, whose losses are then good to 1e-6).
    - `solver`: "auto" climbs the system's ladder until one finishes (recorded in `meta["ladder"]`); or "tsit5",
      "bosh3", "dopri8", "kvaerno5" (stiff), "structured" (spectra; implicit, keeps overlaps positive semi-definite),
      "rank_one" (`Spectral`: modes coupled through one number; implicit, a thousand modes in milliseconds).
    - `accuracy`: "check" solves once more at rtol/100 (rtol/10 for "structured"), returns that and, in `error`, the
      relative change of the loss. A sampled closure is solved once more on an independent node set instead: `error` is
      then the relative difference of the two losses, sqrt(2) standard errors in the mean square. An ensemble of node
      sets (`MeanField`) has its relative 95 % half width in `error` always; "check" adds the change in squares.
    - `precision`: "float64" or, on purpose, "float32" (rtol >= 1.2e-6; p and q are then unreliable late in a run).
    - `exponents`: False leaves out the exact derivatives along the flow, which can cost more than the solve; p and q are then
      slopes of the loss on the output times, good to the square of their spacing in log t (`meta["exponents"]` says which).
    - `on_failure`: "raise" `SolveError`, or "mask" what lies beyond the time reached and set `code`.

    **Returns** a `Trajectory`; `meta["remarks"]` says where a spectrum's ODE is more than 2 % off exact SGD because a step is not
    small (`odescale.solve.spectral.step_error`). **Raises** `InputError` before compilation, `SolveError` when every solver failed.
    """
    dtype = resolve_dtype(precision, "integrate")
    system = as_system(system)
    require_choice("accuracy", accuracy, ("fast", "check"))
    require_choice("on_failure", on_failure, ("raise", "mask"))
    asked = system.integration
    ladder = ladder_of(asked, solver, system.label)
    system.check()
    times = _times(t0, t1, ts, points, first_time(system)).astype(dtype)
    traced = is_traced(times) or any(is_traced(leaf) for leaf in jax.tree_util.tree_leaves(system))
    cast = _cast(system, dtype)
    state = cast.initial_state() if start is None else _start(start, cast.initial_state())
    traced = traced or is_traced(state)
    record: list[dict[str, Any]] = []
    for rung in ladder:
        tolerances = step_tolerances(rung, rtol, atol, dtype, asked)
        cap = cap_on_steps(rung, asked, max_steps)
        began = time.perf_counter()
        values = _solve(cast, state, jnp.asarray(times), *tolerances, rung, cap, progress, exponents)
        # An ensemble of node sets carries its error bar along.
        error = values["half_width"] / jnp.abs(values["loss"]) if "half_width" in values else None
        if accuracy == "check" and asked.resampled:
            again = cast.resampled()  # type: ignore[attr-defined]
            other = _solve(again, state, jnp.asarray(times), *tolerances, rung, cap, progress, exponents)
            error = jnp.abs(values["loss"] - other["loss"]) / jnp.abs(other["loss"])
        elif accuracy == "check":
            factor = SOLVERS[rung].finer
            floor = 10 * float(jnp.finfo(dtype).eps)
            finer = (jnp.maximum(tolerances[0] / factor, floor), tolerances[1] / factor)
            # Another cap is another compilation: raise it only where the finer solve might need more.
            taken = None if traced else sum(int(values["stats"][name]) for name in ("accepted", "rejected"))
            finer_cap = cap if taken is not None and 10 * taken <= cap else 10 * cap
            better = _solve(cast, state, jnp.asarray(times), *finer, rung, finer_cap, progress, exponents)
            change = jnp.abs(values["loss"] - better["loss"]) / jnp.abs(better["loss"])
            error = change if error is None else jnp.sqrt(change**2 + error**2)
            values = better
        if traced:
            return _trajectory(system, times, values, error, record, rung, tolerances, exponents)
        entry = {name: _number(values["stats"][name]) for name in values["stats"]}
        entry |= {"solver": rung, "code": int(values["code"]), "meaning": explain(values["code"])}
        record.append(entry | {"seconds": round(time.perf_counter() - began, 4), "rtol": float(tolerances[0])})
        if int(values["code"]) in FINAL:
            break
    trajectory = _trajectory(system, times, values, error, record, rung, tolerances, exponents)
    further, lines = remarks_of_solve(system, times, np.asarray(state))
    trajectory.meta.update(further, remarks=lines)
    if int(trajectory.code) not in FINISHED and on_failure == "raise":
        raise SolveError(failure_text(trajectory))
    return trajectory


def failure_text(trajectory: Trajectory) -> str:
    """Time reached, steps taken, likely cause and remedy of an integration that did not finish."""
    reached = trajectory.t[np.asarray(trajectory.valid)]
    last = trajectory.meta["ladder"][-1]
    return (
        f"{' then '.join(entry['solver'] for entry in trajectory.meta['ladder'])} stopped after t = "
        f"{(reached[-1] if reached.size else trajectory.t[0]):.6g} of {trajectory.t[-1]:.6g} with {last.get('accepted', 0)} "
        f"accepted and {last.get('rejected', 0)} rejected steps: {explain(int(trajectory.code))}"
    )


def solve_arrays(
    system: AbstractSystem,
    state: Array,
    times: Float[Array, " n"],
    rtol: Float[Array, ""],
    atol: Float[Array, ""],
    solver: str,
    max_steps: int,
    progress: bool = False,
    exponents: bool = True,
    together: bool = False,
    route: str = "lockstep",
) -> dict[str, Any]:
    """The pure function under `integrate`: arrays in, arrays out, made for `jit`, `vmap` and `grad`.

    `exponents` False: p and q are slopes of the loss on the output times instead of second derivatives along the flow, here too.
    `together`: under `vmap` the members of a batch are stepped by one loop made for that (`odescale.solve.lockstep`), where the
    solver is an explicit one: the same steps, several times faster, no reverse-mode gradient. `route`: `lockstep`, or one of
    `odescale.solve.fused`.

    **Returns** state (n, ...), loss, exponent, index (n,), observables, valid (n,), code, stats.
    """
    if SOLVERS[solver].method is None:
        numbers: dict[str, Any] = {"t0": times[0], "rtol": rtol, "atol": atol, "max_steps": max_steps}
        numbers["growth"] = system.integration.growth
        # Every member takes its own steps; what the slowest did is recorded.
        each: Any = system
        starts = each.members(state)
        solution = jax.lax.map(
            lambda pair: solve_structured(each.member(pair[0]), pair[1], times, **numbers),
            (jnp.arange(starts.shape[0]), starts),
        )
        states, reached = each.of_members(solution.ys), jnp.min(solution.t_reached)
        stats = {"accepted": jnp.max(solution.accepted), "rejected": jnp.max(solution.rejected)}
        stats |= {"newton": jnp.max(solution.newton_iterations), "min_eigenvalue": jnp.min(solution.min_eigenvalue)}
        code = jnp.max(solution.code)
    else:
        meter = diffrax.TqdmProgressMeter() if progress else diffrax.NoProgressMeter()
        if solver == "rank_one":
            solution = solve_with_diffrax(
                system, times, rtol=rtol, atol=atol, start=state, onto_outputs=True, max_steps=max_steps,
                progress_meter=meter, throw=False,
            )  # fmt: skip
        elif together and can_step(method_of(solver, system.integration)):
            solution = _in_lanes(system, state, times, solver, rtol, atol, max_steps, route)
        else:
            solution = _by_diffrax(system, state, times, solver, rtol, atol, max_steps, meter)
        if isinstance(solution, Outcome):
            states, stats = solution.states, {"accepted": solution.accepted, "rejected": solution.rejected}
        else:
            states = solution.ys
            stats = {name: solution.stats[f"num_{name}_steps"] for name in ("accepted", "rejected")}
        assert states is not None
        finite = jnp.all(jnp.isfinite(states), axis=tuple(range(1, states.ndim)))
        # Beyond the last accepted step diffrax leaves inf: those times are "not reached", not "not finite".
        reached = jnp.max(jnp.where(finite, times, times[0]))
        unfinished = solution.result != diffrax.RESULTS.successful
        code = code_of(solution.result, jnp.all(finite) | unfinished)
    valid = jnp.all(jnp.isfinite(states), axis=tuple(range(1, states.ndim))) & (times <= reached)
    # The exponents differentiate through the masked entries too: give those a harmless state, then mask the values.
    shape = (-1,) + (1,) * (states.ndim - 1)
    safe = jnp.where(valid.reshape(shape), states, state)
    half_width = replicates = None
    # Beside one another in a batch, times go a few at once: what is computed of all of them does not fit the cache.
    few = max(1, LANE_NUMBERS // state.size) if together else times.size
    if exponents and along_the_flow(system, solver):
        loss, exponent, index = over_times(lambda t, y: local_exponents(system, t, y), times, safe, few)
        exponent = jnp.where(times == 0, 0.0, exponent)
    else:
        loss, half_width, replicates = losses(system, times, safe, few)
        exponent, index = sampled_exponents(times, loss, valid)
    observables = over_times(system.observables, times, safe, few)
    if replicates is not None:
        observables["replicate_loss"] = replicates
    # From the first loss within the rounding of the overlaps, whose flow is summed in the plain basis, nothing later can
    # be trusted either: its exponents are noise well before it turns negative.
    floor = ROUNDING_FLOOR * jnp.finfo(loss.dtype).eps * loss[0]
    # A start without risk (label noise alone) is no loss of digits.
    positive = jnp.cumprod((loss > floor) | ~valid | ((loss == 0) & (times == times[0]))).astype(bool)
    code = jnp.where((code == Code.OK) & ~jnp.all(positive), int(Code.LOSS_NOT_POSITIVE), code)
    valid = valid & positive

    def mask(values):
        return jnp.where(valid.reshape((-1,) + (1,) * (values.ndim - 1)), values, jnp.nan)

    return {
        "state": mask(states),
        "loss": mask(loss),
        "exponent": mask(exponent),
        "index": mask(index),
        "observables": jax.tree_util.tree_map(mask, observables),
        "valid": valid,
        "code": code,
        "stats": stats,
    } | ({} if half_width is None else {"half_width": mask(half_width)})


_solve = program(solve_arrays)


def along_the_flow(system: AbstractSystem, solver: str) -> bool:
    """Whether p and q are exact derivatives along the flow; slopes of the loss on the output times otherwise."""
    return system.integration.exponents == "flow" and SOLVERS[solver].derivatives


def _by_diffrax(system, state, times, solver, rtol, atol, max_steps, meter) -> diffrax.Solution:
    term, own_times = _term_and_time(system, times)
    return diffrax.diffeqsolve(
        term,
        method_of(solver, system.integration),
        own_times[0],
        own_times[-1],
        None,
        state,
        args=system,
        saveat=diffrax.SaveAt(ts=own_times),
        stepsize_controller=patient(diffrax.PIDController(rtol=rtol, atol=atol), system.integration.growth),
        max_steps=max_steps,
        progress_meter=meter,
        throw=False,
    )


def _in_lanes(system, state, times, solver, rtol, atol, max_steps, route) -> Outcome:
    """One member of a batch: under `vmap` all of them in one loop, otherwise diffrax."""
    arrays, static = eqx.partition(system, eqx.is_array)
    # Read here: within the rule the arrays of `system` itself belong to a trace that has ended.
    method, growth = method_of(solver, system.integration), system.integration.growth

    def alone(arrays, state, times, rtol, atol):
        member = eqx.combine(arrays, static)
        found = _by_diffrax(member, state, times, solver, rtol, atol, max_steps, diffrax.NoProgressMeter())
        assert found.ys is not None
        return Outcome(found.ys, found.result, *(found.stats[f"num_{name}_steps"] for name in ("accepted", "rejected")))

    run = jax.custom_batching.custom_vmap(alone)

    @run.def_vmap
    def of_all(size, batched, *given):
        axes = jax.tree_util.tree_map(lambda mapped: 0 if mapped else None, batched)
        if any(batched[3:]):  # tolerances of their own
            found = jax.vmap(alone, axes)(*given)
        else:
            arrays, state, times, rtol, atol = given

            def one(arrays, t, y):
                member = eqx.combine(arrays, static)
                return _term_and_time(member, times)[0].vf(t, y, member)

            def field(t, y):
                return jax.vmap(one, (axes[0], 0, 0))(arrays, t, y)

            own = jax.vmap(
                lambda arrays, times: _term_and_time(eqx.combine(arrays, static), times)[1],
                (axes[0], axes[2]), axis_size=size,
            )(arrays, times)  # fmt: skip
            starts = state if batched[1] else jnp.broadcast_to(state, (size, *state.shape))
            control = patient(diffrax.PIDController(rtol=rtol, atol=atol), growth)
            if route == "lockstep":
                found = solve_together(field, starts, own, method, control, max_steps)
            else:
                systems = jax.tree_util.tree_map(
                    lambda leaf, mapped: leaf if mapped else jnp.broadcast_to(leaf, (size, *leaf.shape)),
                    arrays,
                    batched[0],
                )
                found = solve_fused(
                    one, systems, starts, own, method, control, max_steps, interpret=route == "interpreted"
                )  # fmt: skip
        return found, jax.tree_util.tree_map(lambda _: True, found)

    return run(arrays, state, times, rtol, atol)


def _term_and_time(system: AbstractSystem, times: Float[Array, " n"]) -> tuple[diffrax.ODETerm, Float[Array, " n"]]:
    """dy/dt and t; with a time scale tau dy/dtheta = (t + tau) f and theta = log(1 + t/tau)."""
    scale = system.integration.time_scale
    if scale is None:
        return diffrax.ODETerm(lambda t, y, args: args.vector_field(t, y)), times

    def field(theta, y, args):
        t = scale * jnp.expm1(theta)
        return (t + scale) * args.vector_field(t, y)

    # Taken once: the logarithm of one time and of an array of them may round differently.
    return diffrax.ODETerm(field), jnp.log1p(times / scale)


def _trajectory(system, times, values, error, record, rung, tolerances, exponents) -> Trajectory:
    arrays = {name: _host(values[name]) for name in ("state", "loss", "exponent", "index", "valid", "code")}
    observables = {name: _host(value) for name, value in values["observables"].items()}
    traced = any(is_traced(leaf) for leaf in jax.tree_util.tree_leaves(system))
    exact = exponents and along_the_flow(system, rung)
    meta = {
        "system": system.label,
        "solver": rung,
        "ladder": record,
        "rtol": _number(tolerances[0]),
        "atol": _number(tolerances[1]),
        "parameters": {} if traced else system.summary(),
        "loss": getattr(system, "loss_label", "excess loss L"),
        "time_unit": f"one unit of t = {system.clock.unit}",
        "exponents": "exact along the flow" if exact else "differences on the output times",
        "versions": dict(_versions()),
        "device": jax.default_backend(),
    }
    return Trajectory(
        t=times,
        observables=observables,
        error=None if error is None else _host(error),
        clock=system.clock,
        meta=meta,
        **arrays,
    )


@cache
def _versions() -> dict[str, str]:
    # Read from files: milliseconds each time.
    return {name: version(name) for name in ("jax", "diffrax", "equinox")}


def _host(value: Any) -> Any:
    return value if is_traced(value) else np.asarray(value)


def _number(value: Any) -> Any:
    if is_traced(value):
        return None
    number = np.asarray(value)
    return number.item() if number.ndim == 0 else number.tolist()


def _times(t0: float, t1: Any, ts: Any, points: int, first: float | None) -> Any:
    if is_traced(t1) and ts is None:
        return t0 + (t1 - t0) * jnp.asarray(output_times(1.0, points))
    if is_traced(ts):
        raise InputError("ts", expected="numbers", got="a traced array", remedy="trace t1, with points for the grid")
    if ts is None:
        if t1 is None:
            raise InputError("t1", expected="an end time, or ts", got=None, remedy="pass t1=...")
        return output_times(t1, points, float(t0), first)
    values = np.asarray(ts, dtype=float)
    if values.ndim != 1 or values.size < 2 or not np.all(np.isfinite(values)) or not np.all(np.diff(values) > 0):
        raise InputError("ts", expected="two or more finite increasing times", got=ts, remedy="sort them")
    if values[0] < t0 or (t1 is not None and t1 != values[-1]):
        raise InputError("ts", expected=f"times from t0 = {t0:g} on that end at t1", got=ts, remedy="mend ts, t0 or t1")
    return values if values[0] == t0 else np.concatenate([[float(t0)], values])


def _start(start: Any, like: Array) -> Array:
    state = start if is_traced(start) else np.asarray(start)
    if state.shape != like.shape:
        raise InputError("start", expected=f"shape {like.shape}", got=state.shape, remedy="e.g. trajectory.state[-1]")
    if not is_traced(state) and not np.all(np.isfinite(state)):
        raise InputError("start", expected="finite numbers", got="NaN or infinity", remedy="take a valid time")
    return jnp.asarray(state, dtype=like.dtype)


def _cast(system: AbstractSystem, dtype: np.dtype) -> AbstractSystem:
    def convert(leaf):
        return leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf

    # Nodes keep their own format: a copy in the state's would double the memory of a large quadrature.
    return jax.tree_util.tree_map(convert, system, is_leaf=lambda node: isinstance(node, Nodes))


def require_choice(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuses a word that is not among the allowed ones."""
    if value not in allowed:
        raise InputError(argument, expected=f"one of {', '.join(allowed)}", got=value, remedy=f"use {allowed[0]}")
