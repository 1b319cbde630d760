"""Programs of a small system on lanes: every entry of its arrays becomes an array of its own over the members of a block.

A kernel of a GPU that holds a whole integration in registers knows no small matrices: no gather, no concatenation, no product of
matrices. `on_lanes` evaluates the jaxpr of one member with numpy arrays of entries instead: what moves entries moves them here, at
trace time; what computes is done entry by entry. Numbers known while tracing stay numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

MOVES = {
    "broadcast_in_dim", "reshape", "transpose", "slice", "squeeze", "rev", "expand_dims", "concatenate", "pad", "copy", "stack",
    "dynamic_slice", "dynamic_update_slice", "gather", "scatter", "split",
}  # fmt: skip
"""Primitives that only move entries: run once on the numbers of the entries."""

OPERANDS = {"dynamic_slice": 1, "dynamic_update_slice": 2, "gather": 1}
"""How many of the arguments are entries to be moved, where the rest says where to; of a scatter the first and the third."""

FOLDS = {
    "reduce_sum": jnp.add, "reduce_max": jnp.maximum, "reduce_min": jnp.minimum, "reduce_or": jnp.logical_or,
    "reduce_and": jnp.logical_and, "reduce_prod": jnp.multiply,
}  # fmt: skip

MOST_CHOICES = 16
"""Places among which one that is computed is found by comparison: the stages of a method, not a table."""

Entries = np.ndarray
"""Of objects: a numpy number, the same for all lanes, or a traced array (block,)."""


class NoLanes(NotImplementedError):
    """A program that has no form on lanes."""


def on_lanes(function: Callable[..., Any], block: int, platform: str) -> Callable[..., Any]:
    """The function of one member as one of pytrees of `Entries`; `platform` picks the branch of what depends on it."""

    def evaluate(*given: Any) -> Any:
        leaves, tree = jax.tree_util.tree_flatten(given, is_leaf=lambda x: isinstance(x, np.ndarray))
        avals = jax.tree_util.tree_unflatten(tree, [jax.ShapeDtypeStruct(leaf.shape, _dtype(leaf)) for leaf in leaves])
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*avals)
        out = _Evaluation(block, platform).closed(closed, leaves)
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(shapes), out)

    return evaluate


def entries(values: Any, dtype: Any = None) -> Entries:
    """An array of known numbers."""
    values = np.asarray(values, dtype)
    found = np.empty(values.shape, object)
    for place in np.ndindex(values.shape):
        found[place] = values[place]
    return found


def known(value: Any) -> bool:
    """Whether an entry is a number."""
    return isinstance(value, np.generic)


def spread(value: Any, block: int) -> jax.Array:
    """The entry on every lane."""
    return jnp.full((block,), value) if known(value) else value


def _dtype(found: Entries) -> np.dtype:
    return np.dtype(found.flat[0].dtype)


class _Evaluation:
    def __init__(self, block: int, platform: str) -> None:
        self.block, self.platform = block, platform

    def closed(self, closed: ClosedJaxpr, arguments: list[Entries]) -> list[Entries]:
        return self.open(closed.jaxpr, [entries(const) for const in closed.consts], arguments)

    def open(self, jaxpr: Jaxpr, consts: list[Entries], arguments: list[Entries]) -> list[Entries]:
        held: dict[Any, Entries] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

        def read(atom: Any) -> Entries:
            aval: Any = atom.aval
            return entries(atom.val, aval.dtype) if isinstance(atom, Literal) else held[atom]

        for equation in jaxpr.eqns:
            found = self.equation(equation, [read(atom) for atom in equation.invars])
            held.update(zip(equation.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, given: list[Entries]) -> list[Entries]:
        name, params = equation.primitive.name, equation.params
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        if name == "scan":
            return self.scan(params, given)
        if name == "platform_index":
            return [entries(self.branch(params["platforms"]), np.int32)]
        if name == "cond":
            if not known(given[0][()]):
                raise NoLanes("cond")
            return self.closed(params["branches"][int(given[0][()])], given[1:])
        if inner is not None and name != "while":
            closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
            return self.closed(closed, given)
        if name in MOVES:
            return self.move(equation, given)
        if name in FOLDS:
            return [self.fold(FOLDS[name], given[0], tuple(params["axes"]))]
        if name == "dot_general":
            return [self.product(given, params["dimension_numbers"])]
        if name == "scatter-add":
            return [self.scatter_add(equation, given)]
        if name == "iota":
            with jax.ensure_compile_time_eval():
                return [entries(np.asarray(self.bind(equation, [])[0]))]
        if name == "while":
            raise NoLanes(name)
        return self.each(equation, given)

    def branch(self, platforms: Any) -> int:
        for i, names in enumerate(platforms):
            if names is None or self.platform in names:
                return i
        raise NoLanes("platform_index")

    @staticmethod
    def bind(equation: Any, values: list[Any]) -> list[Any]:
        found = equation.primitive.bind(*values, **equation.params)
        return list(found) if equation.primitive.multiple_results else [found]

    def each(self, equation: Any, given: list[Entries]) -> list[Entries]:
        """Entry by entry; what is no such primitive has another shape or fails on lanes."""
        shape = equation.outvars[0].aval.shape
        results = [np.empty(shape, object) for _ in equation.outvars]
        given = [np.broadcast_to(value, shape) for value in given]
        for place in np.ndindex(shape):
            values = [value[place] for value in given]
            for result, one in zip(results, self.apply(equation, values), strict=True):
                result[place] = one
        return results

    def apply(self, equation: Any, values: list[Any]) -> list[Any]:
        if all(map(known, values)):
            with jax.ensure_compile_time_eval():
                return [np.asarray(one)[()] for one in self.bind(equation, [jnp.asarray(v) for v in values])]
        return self.bind(equation, [spread(value, self.block) for value in values])

    def combine(self, function: Any, a: Any, b: Any) -> Any:
        """Two entries to one."""
        if known(a) and known(b):
            with jax.ensure_compile_time_eval():
                return np.asarray(function(a, b))[()]
        return function(spread(a, self.block), spread(b, self.block))

    def move(self, equation: Any, given: list[Entries]) -> list[Entries]:
        name = equation.primitive.name
        count = OPERANDS.get(name, len(given))
        places = (0, 2) if name == "scatter" else tuple(range(count))
        rest = [value for i, value in enumerate(given) if i not in places]
        if not all(known(x) for value in rest for x in value.flat):
            return [self.chosen(equation, given)]
        pool = [x for i in places for x in given[i].flat]
        numbers, start = [], 0
        for i, value in enumerate(given):
            if i in places:
                numbers.append(np.arange(start, start + value.size).reshape(value.shape))
                start += value.size
            else:
                numbers.append(np.array(value.tolist(), _dtype(value)).reshape(value.shape))
        with jax.ensure_compile_time_eval():
            found = [np.asarray(one) for one in self.bind(equation, [jnp.asarray(n) for n in numbers])]
        if any(one.size and (one.min() < 0 or one.max() >= len(pool)) for one in found):
            raise NoLanes(f"{name} beyond an end")
        results = []
        for one in found:
            result = np.empty(one.shape, object)
            for place in np.ndindex(one.shape):
                result[place] = pool[one[place]]
            results.append(result)
        return results

    def chosen(self, equation: Any, given: list[Entries]) -> Entries:
        """A slice along the first axis at a place that is computed: by comparison with every place there is."""
        name = equation.primitive.name
        held, where = given[0], given[OPERANDS.get(name, 0)] if name in OPERANDS else None
        if (
            where is None
            or name == "gather"
            or any(not known(x[()]) or x[()] != 0 for x in given[OPERANDS[name] + 1 :])
        ):
            raise NoLanes(name)
        width = equation.params["slice_sizes"] if name == "dynamic_slice" else given[1].shape
        if width != (1, *held.shape[1:]) or len(held) > MOST_CHOICES:
            raise NoLanes(name)
        at = jnp.clip(spread(where[()], self.block), 0, len(held) - 1)
        here = [at == i for i in range(len(held))]
        if name == "dynamic_update_slice":
            result = np.empty(held.shape, object)
            for place in np.ndindex(held.shape):
                new = spread(given[1][(0, *place[1:])], self.block)
                result[place] = jnp.where(here[place[0]], new, spread(held[place], self.block))
            return result
        result = np.empty(width, object)
        for place in np.ndindex(width):
            value = spread(held[(0, *place[1:])], self.block)
            for i in range(1, len(held)):
                value = jnp.where(here[i], spread(held[(i, *place[1:])], self.block), value)
            result[place] = value
        return result

    def fold(self, function: Any, value: Entries, axes: tuple[int, ...]) -> Entries:
        moved = np.moveaxis(value, axes, range(len(axes)))
        moved = moved.reshape(-1, *moved.shape[len(axes) :])
        result = np.empty(moved.shape[1:], object)
        for place in np.ndindex(result.shape):
            result[place] = functools.reduce(functools.partial(self.combine, function), moved[(slice(None), *place)])
        return result

    def product(self, given: list[Entries], numbers: Any) -> Entries:
        ((left, right), (batch, other)) = numbers
        a, b = given
        a = np.moveaxis(a, (*batch, *left), (*range(len(batch)), *range(-len(left), 0)))
        b = np.moveaxis(b, (*other, *right), (*range(len(other)), *range(-len(right), 0)))
        n, k = len(batch), len(left)
        shape = (*a.shape[: a.ndim - k], *b.shape[n : b.ndim - k])
        zero = _dtype(given[0]).type(0)
        result = np.empty(shape, object)
        for place in np.ndindex(shape):
            free = a.ndim - n - k
            row, column = a[(*place[: n + free], ...)].ravel(), b[(*place[:n], *place[n + free :], ...)].ravel()
            terms = [self.times(x, y) for x, y in zip(row, column, strict=True)]
            terms = [term for term in terms if not (known(term) and term == 0)]
            result[place] = functools.reduce(functools.partial(self.combine, jnp.add), terms) if terms else zero
        return result

    def times(self, x: Any, y: Any) -> Any:
        for one, other in ((x, y), (y, x)):
            if known(one) and one in (0, 1):
                return one if one == 0 else other
        return self.combine(jnp.multiply, x, y)

    def scatter_add(self, equation: Any, given: list[Entries]) -> Entries:
        held, where, updates = given
        if not all(map(known, where.flat)):
            raise NoLanes("scatter-add")
        places = np.array(where.tolist(), _dtype(where)).reshape(where.shape)
        result, ones = held.copy(), np.eye(updates.size)
        for one, update in zip(ones, updates.flat, strict=True):
            with jax.ensure_compile_time_eval():
                values = [jnp.asarray(x) for x in (np.zeros(held.shape), places, one.reshape(updates.shape))]
                target = np.asarray(self.bind(equation, values)[0]) != 0
            for place in zip(*np.nonzero(target), strict=True):
                result[place] = self.combine(jnp.add, result[place], update)
        return result

    def scan(self, params: Any, given: list[Entries]) -> list[Entries]:
        """A loop of known length: rolled up where it carries all it changes, written out otherwise."""
        consts, carries = params["num_consts"], params["num_carry"]
        fixed, carry, xs = given[:consts], given[consts : consts + carries], given[consts + carries :]
        inner = params["jaxpr"]
        if not xs and len(inner.jaxpr.outvars) == carries:
            return self.rolled(inner, fixed, carry, params["length"])
        outputs: list[list[Entries]] = []
        order = range(params["length"])
        for i in reversed(order) if params["reverse"] else order:
            out = self.closed(inner, [*fixed, *carry, *(x[i] if x.ndim > 1 else shaped([x[i]], ()) for x in xs)])
            carry = out[:carries]
            outputs.append(out[carries:])
        if params["reverse"]:
            outputs.reverse()
        stacked = [np.stack(each) for each in zip(*outputs, strict=True)]
        return [*carry, *stacked]

    def rolled(self, inner: ClosedJaxpr, fixed: list[Entries], carry: list[Entries], length: int) -> list[Entries]:
        shapes = [value.shape for value in carry]

        def pack(values: list[Entries]) -> list[Any]:
            return [[spread(x, self.block) for x in value.flat] for value in values]

        def unpack(flat: list[Any]) -> list[Entries]:
            return [shaped(values, shape) for values, shape in zip(flat, shapes, strict=True)]

        def body(_: Any, flat: list[Any]) -> list[Any]:
            return pack(self.closed(inner, [*fixed, *unpack(flat)]))

        return unpack(jax.lax.fori_loop(0, length, body, pack(carry)))


def shaped(values: list[Any], shape: tuple[int, ...]) -> Entries:
    """An array of these entries."""
    found = np.empty(len(values), object)
    for i, value in enumerate(values):
        found[i] = value
    return found.reshape(shape)
