"""Members of a batch side by side in one loop: the steps that diffrax takes for each alone, without what `vmap` makes of its loop.

Under `vmap` diffrax carries every buffer of its loop through a selection at each step, and its own arithmetic costs as much as six
evaluations of a small vector field. Here only what a step changes is carried. The method, its dense output, the choice of the first
step and the step control are diffrax's own: a member takes the steps that it takes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

FIRST_STEP = 0.01
"""Of diffrax 0.7 when it is given none: its choice by the size of f applies to plain terms only, and it wraps every term."""


class Outcome(NamedTuple):
    """Of every member: states at the output times, inf where they were not reached; how it ended; its steps."""

    states: Float[Array, "m n ..."]
    result: diffrax.RESULTS
    accepted: Int[Array, " m"]
    rejected: Int[Array, " m"]


class Lanes(NamedTuple):
    """What a step changes, a leading axis of members on each."""

    t: Float[Array, " m"]
    end: Float[Array, " m"]
    y: Float[Array, "m ..."]
    slope: Float[Array, "m ..."]
    control: Any
    result: diffrax.RESULTS
    accepted: Int[Array, " m"]
    rejected: Int[Array, " m"]


class Step(NamedTuple):
    """Lanes after a step; which members moved, from where to where, with the stages in between: what dense output needs."""

    after: Lanes
    moved: Array
    y: Float[Array, "m ..."]
    ks: Float[Array, "s m ..."]


def can_step(method: Any) -> bool:
    """Whether the loop below knows the method: an explicit Runge-Kutta pair with dense output."""
    return isinstance(method, diffrax.AbstractERK)


def begin(
    field: Callable[[Array, Array], Array], starts: Array, first: Array, last: Array, method: Any, controller: Any
) -> Lanes:
    """All members before their first step."""
    members, order = starts.shape[0], _order(method)

    def one(t0: Array, t1: Array, y: Array) -> Any:
        return controller.init(None, t0, t1, y, FIRST_STEP, None, lambda *given: None, order)

    end, control = jax.vmap(one)(first, last, starts)
    none = jnp.zeros(members, jnp.int32)
    return Lanes(
        t=first,
        end=jnp.minimum(end, last),
        y=starts,
        slope=field(first, starts),
        control=jax.tree_util.tree_map(lambda x: jnp.broadcast_to(x, (members, *jnp.shape(x)[1:])), control),
        result=jax.vmap(lambda _: diffrax.RESULTS.where(True, diffrax.RESULTS.successful, diffrax.RESULTS.successful))(
            none
        ),
        accepted=none,
        rejected=none,
    )


def nearly(last: Array) -> Array:
    """As diffrax: what ends within 100 roundings of the end ends there."""
    return last - 100 * (last - jnp.nextafter(last, jnp.asarray(-jnp.inf, last.dtype)))


def going(now: Lanes, last: Array, max_steps: int) -> Array:
    """Which members have steps to take."""
    return (now.t < last) & _fine(now.result) & (now.accepted + now.rejected < max_steps)


def advance(
    field: Callable[[Array, Array], Array],
    now: Lanes,
    last: Array,
    floor: Array,
    method: Any,
    controller: Any,
    max_steps: int,
) -> Step:
    """One step of every member that has one to take."""
    tableau, order, members = method.tableau, _order(method), now.t.shape[0]
    stages = tableau.b_sol.size
    # One row a stage, zeros where a stage does not look: the loop over stages then has one program.
    a = np.zeros((stages, stages))
    for row, coefficients in enumerate(tableau.a_lower):
        a[row + 1, : row + 1] = coefficients
    a, c = jnp.asarray(a, now.y.dtype), jnp.asarray(np.append(0.0, tableau.c), now.t.dtype)

    def pick(keep: Array, new: Any, old: Any) -> Any:
        return jax.tree_util.tree_map(
            lambda a, b: jnp.where(keep.reshape(-1, *(1,) * (jnp.ndim(a) - 1)), a, b), new, old
        )

    active, h = going(now, last, max_steps), (now.end - now.t).reshape(members, *(1,) * (now.y.ndim - 1))
    ks = jnp.zeros((stages, *now.y.shape), now.y.dtype).at[0].set(h * now.slope)

    def stage(i: Array, ks: Array) -> Array:
        y = now.y + jnp.tensordot(a[i], ks, axes=1)
        return jax.lax.dynamic_update_index_in_dim(ks, h * field(now.t + c[i] * (now.end - now.t), y), i, 0)

    ks = jax.lax.fori_loop(1, stages, stage, ks)
    y = now.y + jnp.tensordot(jnp.asarray(tableau.b_sol, ks.dtype), ks, axes=1)
    if tableau.fsal:
        slope = ks[-1] / jnp.where(h == 0, 1.0, h)
    else:
        slope = field(now.end, y)
    error = jnp.tensordot(jnp.asarray(tableau.b_error, ks.dtype), ks, axes=1)
    error = jnp.where(jnp.isnan(error), jnp.inf, error)
    keep, t, end, _, control, verdict = jax.vmap(
        lambda *given: controller.adapt_step_size(*given[:4], None, given[4], order, given[5])
    )(now.t, now.end, now.y, y, error, now.control)
    t = jnp.minimum(t, last)
    end = jnp.where(end > floor, jnp.where(keep, last, t + 0.5 * (last - t)), end)
    moved = active & keep
    after = Lanes(
        t=jnp.where(active, t, now.t),
        end=jnp.where(active, end, now.end),
        y=pick(moved, y, now.y),
        slope=pick(moved, slope, now.slope),
        control=pick(active, control, now.control),
        result=jax.vmap(diffrax.RESULTS.where)(active, verdict, now.result),
        accepted=now.accepted + moved,
        rejected=now.rejected + (active & ~keep),
    )
    return Step(after, moved, y, ks)


def verdicts(now: Lanes, last: Array) -> diffrax.RESULTS:
    """How the members ended, once none is going."""
    capped = (now.t < last) & _fine(now.result)
    return jax.vmap(lambda c, r: diffrax.RESULTS.where(c, diffrax.RESULTS.max_steps_reached, r))(capped, now.result)


def solve_together(
    field: Callable[[Array, Array], Array],
    starts: Float[Array, "m ..."],
    times: Float[Array, "m n"],
    method: Any,
    controller: Any,
    max_steps: int,
) -> Outcome:
    """y at its `times` of every member, from `starts` at the first, until the last member is done.

    **Arguments**: `field`: (t (m,), y (m, ...)) -> dy/dt of all members; `controller`: a step-size controller of diffrax, the same
    for all.
    """
    first, last = times[:, 0], times[:, -1]
    floor = nearly(last)

    def step(loop: tuple[Lanes, Array, Array]) -> tuple[Lanes, Array, Array]:
        now, states, saved = loop
        taken = advance(field, now, last, floor, method, controller, max_steps)
        return taken.after, *_save(now, taken, method, times, states, saved)

    now, states, _ = jax.lax.while_loop(
        lambda loop: jnp.any(going(loop[0], last, max_steps)),
        step,
        (
            begin(field, starts, first, last, method, controller),
            jnp.full((*times.shape, *starts.shape[1:]), jnp.inf, starts.dtype),
            jnp.zeros(starts.shape[0], jnp.int32),
        ),
    )
    return Outcome(states, verdicts(now, last), now.accepted, now.rejected)


def _order(method: Any) -> Any:
    return method.error_order(diffrax.ODETerm(lambda t, y, args: y))


def _fine(results: diffrax.RESULTS) -> Any:
    return jax.vmap(lambda result: result == diffrax.RESULTS.successful)(results)


def weights(method: Any, stages: int, t0: Array, t1: Array, t: Array) -> Float[Array, " s"]:
    """Of y0, y1 and the stages in y(t): dense output is linear in them, and here they are unit vectors."""
    unit = jnp.eye(2 + stages, dtype=t.dtype)
    return method.interpolation_cls(t0=t0, t1=t1, y0=unit[0], y1=unit[1], k=unit[2:]).evaluate(t)


def _save(
    now: Lanes, taken: Step, method: Any, times: Float[Array, "m n"], states: Array, saved: Array
) -> tuple[Float[Array, "m n ..."], Int[Array, " m"]]:
    """The states at the output times that the step of each member has passed, by the method's own dense output."""
    lanes, points = jnp.arange(times.shape[0]), times.shape[1]
    y, ks = taken.y, taken.ks

    def next_time(saved: Array) -> Array:
        return times[lanes, jnp.minimum(saved, points - 1)]

    def due(saved: Array) -> Array:
        return taken.moved & (saved < points) & (next_time(saved) <= now.end)

    def body(given: tuple[Array, Array]) -> tuple[Array, Array]:
        states, saved = given
        take = due(saved)
        t = next_time(saved)
        w = jax.vmap(lambda *given: weights(method, ks.shape[0], *given))(now.t, now.end, t)
        w = w.astype(y.dtype).reshape(*t.shape, -1, *(1,) * (y.ndim - 1))
        values = w[:, 0] * now.y + w[:, 1] * y
        for i in range(ks.shape[0]):
            values = values + w[:, 2 + i] * ks[i]
        place = jnp.where(take, saved, points)  # beyond the end: dropped
        return states.at[lanes, place].set(values, mode="drop", unique_indices=True), saved + take

    return jax.lax.while_loop(lambda given: jnp.any(due(given[1])), body, (states, saved))
