"""The loop of `odescale.solve.lockstep` as one kernel: every block of members runs to its own end, with its state in registers.

Under plain JAX each operation of a step is a kernel of its own, and all members wait for the last. Here Pallas (Triton on a GPU)
gets the whole loop: the same step function, output times, codes and dense output, entry by entry (`odescale.solve.lanes`). For
systems of few numbers whose right-hand side is a formula; tables, sampled nodes and large matrices have no such form (`NoLanes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.solve import lockstep
from odescale.solve.lanes import on_lanes, shaped, spread

BLOCK = 32
"""Members in one kernel instance: a warp."""

ROUTES = {"cpu": ("lockstep", 0), "gpu": ("lockstep", 16)}
"""Platform -> the route that a sweep takes, and up to how many numbers of a state `fused` is offered. No GPU has judged it yet."""

_asked: ContextVar[str | None] = ContextVar("route of a batch", default=None)


@contextmanager
def routed(route: str) -> Iterator[None]:
    """Sweeps of this block take the route: "lockstep", "fused", or "interpreted", which runs the kernel without a GPU, slowly."""
    token = _asked.set(route)
    try:
        yield
    finally:
        _asked.reset(token)


def route_of(platform: str, numbers: int) -> str:
    """The route of a batch of systems with so many numbers of state; `fused` beyond what is offered there is `lockstep`."""
    usual, most = ROUTES.get(platform, ROUTES["cpu"])
    asked = _asked.get() or usual
    return "lockstep" if asked == "fused" and numbers > most else asked


def solve_fused(
    field: Callable[[Any, Array, Array], Array],
    systems: Any,
    starts: Float[Array, "m ..."],
    times: Float[Array, "m n"],
    method: Any,
    controller: Any,
    max_steps: int,
    *,
    interpret: bool = False,
    block: int = BLOCK,
) -> lockstep.Outcome:
    """As `lockstep.solve_together`.

    **Arguments**: `field`: (arrays of one member, t, y) -> dy/dt; `systems`: the arrays of all members, each with a leading axis m.
    `interpret`: by XLA operations instead of a kernel, on any device. **Raises** `NoLanes`.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    members, points = times.shape
    size = int(np.prod(starts.shape[1:]))
    tuning, fixed = eqx.partition(controller, eqx.is_array)
    of_all = jax.vmap(field)
    first, last = times[:, 0], times[:, -1]
    start = lockstep.begin(lambda t, y: of_all(systems, t, y), starts, first, last, method, controller)
    common = jax.tree_util.tree_map(lambda x: jnp.broadcast_to(x, (members, *jnp.shape(x))), tuning)
    given = (systems, common, last, lockstep.nearly(last), start)
    leaves, tree = jax.tree_util.tree_flatten(given)
    changing = len(jax.tree_util.tree_leaves(start))
    shapes, kinds = [leaf.shape[1:] for leaf in leaves], [leaf.dtype for leaf in leaves]
    # The tree of a member's control is the same, its arrays have an axis of one member within the step.
    padded = -(-members // block) * block

    def rows(x: Array) -> Array:
        """(numbers, members), filled up with the last member."""
        flat = x.reshape(members, -1).T.astype(times.dtype)
        return jnp.pad(flat, ((0, 0), (0, padded - members)), mode="edge")

    platform = "cpu" if interpret else "cuda"

    def lanes(function: Callable[..., Any]) -> Callable[..., Any]:
        return on_lanes(function, block, platform)

    def lift(x: Any) -> Any:
        return jax.tree_util.tree_map(lambda leaf: leaf[None], x)

    def drop(x: Any) -> Any:
        return jax.tree_util.tree_map(lambda leaf: leaf[0], x)

    def going(last: Array, now: Any) -> Array:
        return lockstep.going(lift(now), last[None], max_steps)[0]

    def step(system: Any, tuning: Any, last: Array, floor: Array, now: Any) -> tuple[Any, ...]:
        def one(t: Array, y: Array) -> Array:
            return field(system, t[0], y[0])[None]

        control = eqx.combine(tuning, fixed)
        taken = lockstep.advance(one, lift(now), last[None], floor[None], method, control, max_steps)
        return drop(taken.after), taken.moved[0], taken.y[0], taken.ks[:, 0]

    def shares(t0: Array, t1: Array, t: Array) -> Array:
        return lockstep.weights(method, method.tableau.b_sol.size, t0, t1, t)

    def kernel(members_ref: Any, times_ref: Any, states_ref: Any, ends_ref: Any) -> None:
        read, at = [], 0
        for shape, kind in zip(shapes, kinds, strict=True):
            count = int(np.prod(shape))
            flat = [members_ref[at + i, :].astype(kind) for i in range(count)]
            read.append(shaped(flat, shape))
            at += count
        held, moving = read[:-changing], read[-changing:]

        def unpacked(flat: list[list[Array]]) -> Any:
            now = [shaped(values, shape) for values, shape in zip(flat, shapes[-changing:], strict=True)]
            return jax.tree_util.tree_unflatten(tree, [*held, *now])

        def packed(now: Any) -> list[list[Array]]:
            found = jax.tree_util.tree_leaves(now, is_leaf=lambda x: isinstance(x, np.ndarray))
            return [[spread(x, block) for x in value.flat] for value in found]

        lane = jnp.arange(block)

        def active(flat: list[list[Array]]) -> Array:
            _, _, last, _, now = unpacked(flat)
            return jnp.max(jnp.where(spread(lanes(going)(last, now)[()], block), 1, 0)) > 0

        def body(loop: tuple[Any, Array]) -> tuple[Any, Array]:
            flat, saved = loop
            now = unpacked(flat)[-1]
            after, moved, y, ks = lanes(step)(*unpacked(flat))
            pieces = [now.y.ravel(), y.ravel(), *(ks[i].ravel() for i in range(len(ks)))]
            save = (spread(moved[()], block), now.t, now.end, pieces)
            return packed(after), _save(save, saved)

        def _save(step: Any, saved: Array) -> Array:
            moved, t, end, pieces = step

            def due(saved: Array) -> tuple[Array, Array]:
                time = times_ref[jnp.minimum(saved, points - 1), lane]
                return moved & (saved < points) & (time <= end[()]), time

            def put(saved: Array) -> Array:
                take, time = due(saved)
                w = lanes(shares)(t, end, shaped([time], ()))
                for j in range(size):
                    value = sum(spread(w[i], block) * spread(piece[j], block) for i, piece in enumerate(pieces))
                    # Not due: to a row of their own beyond the end.
                    states_ref[jnp.where(take, saved * size + j, points * size), lane] = value
                return saved + jnp.where(take, 1, 0).astype(saved.dtype)

            return jax.lax.while_loop(lambda saved: jnp.max(jnp.where(due(saved)[0], 1, 0)) > 0, put, saved)

        flat = [[spread(x, block) for x in value.flat] for value in moving]
        flat, saved = jax.lax.while_loop(lambda loop: active(loop[0]), body, (flat, jnp.zeros((block,), jnp.int32)))
        numbers = [x for values in flat for x in values]
        for i, value in enumerate([*numbers, saved]):
            ends_ref[i, :] = value.astype(times.dtype)

    inputs = jnp.concatenate([rows(leaf) for leaf in leaves])
    count = sum(int(np.prod(shape)) for shape in shapes[-changing:]) + 1

    def spec(rows: int) -> Any:
        return pl.BlockSpec((rows, block), lambda i: (0, i))

    states, ends = pl.pallas_call(
        kernel,
        grid=(padded // block,),
        in_specs=[spec(len(inputs)), spec(points)],
        out_specs=[spec(points * size + 1), spec(count)],
        out_shape=[
            jax.ShapeDtypeStruct((points * size + 1, padded), times.dtype),
            jax.ShapeDtypeStruct((count, padded), times.dtype),
        ],
        compiler_params=triton.CompilerParams(num_warps=1),
        interpret=interpret,
    )(inputs, rows(times))
    saved = ends[-1, :members]
    back, at = [], 0
    for shape, kind in zip(shapes[-changing:], kinds[-changing:], strict=True):
        wide = int(np.prod(shape))
        back.append(ends[at : at + wide, :members].T.reshape(members, *shape).astype(kind))
        at += wide
    now = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(start), back)
    found = (
        states[:-1, :members]
        .reshape(points, size, members)
        .transpose(2, 0, 1)
        .reshape(members, points, *starts.shape[1:])
    )
    reached = (jnp.arange(points) < saved[:, None]).reshape(members, points, *(1,) * (starts.ndim - 1))
    return lockstep.Outcome(
        jnp.where(reached, found, jnp.inf), lockstep.verdicts(now, last), now.accepted, now.rejected
    )
