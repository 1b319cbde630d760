"""A function of one node at many nodes, the axis of nodes last: the one that vector registers run along.

`jax.vmap` puts the axis first. What is left inside, a few tokens and rows, is too short for a register, and products of
such matrices become loops of single numbers. Here every operation of the function is repeated with one more axis behind its
own, and a product is written as a sum of elementwise ones: the same numbers to rounding, in a third of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jaxtyping import Array

ELEMENTWISE = frozenset({
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "clamp",
    "convert_element_type", "copy", "cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor",
    "ge", "gt", "integer_pow", "is_finite", "le", "lgamma", "digamma", "log", "log1p", "logistic", "lt", "max", "min", "mul",
    "ne", "neg", "nextafter", "not", "or", "pow", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt",
    "square", "stop_gradient", "sub", "tan", "tanh", "xor",
})  # fmt: skip
"""Primitives that act number by number: with one more axis they are the same."""

ALONG_AXES = frozenset({
    "argmax", "argmin", "concatenate", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "reduce_and", "reduce_max",
    "reduce_min", "reduce_or", "reduce_prod", "reduce_sum", "rev",
})  # fmt: skip
"""Primitives whose axes are counted from the front: with one more axis behind they are the same."""

CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""Where primitives that call a function keep it."""

CALLERS = frozenset({
    "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "checkpoint",
    "remat", "remat2",
})  # fmt: skip

LONGEST_SUM = 32
"""Terms up to which a product is written out; a longer one is left to `vmap`, lest programs grow with the tokens."""

Value = tuple[Any, bool]


def over_nodes(function: Callable[..., Any], *given: Array) -> Any:
    """function(*x) of every node: arrays of shape (..., n) in, the same tree of arrays (..., n) out.

    **Arguments**: `function`: of arrays without the last axis, traceable; what it reads besides is common to all nodes. Primitives
    that are not listed above go through `jax.vmap`, one by one.
    """
    shapes = [jax.ShapeDtypeStruct(x.shape[:-1], x.dtype) for x in given]
    closed, out = jax.make_jaxpr(function, return_shape=True)(*shapes)
    n = given[0].shape[-1]
    values = _run(closed.jaxpr, closed.consts, [(x, True) for x in given], n)
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(out), [_spread(value, n) for value in values])


def _run(jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Value], n: int) -> list[Value]:
    """(value, whether it has the axis of nodes) of every output."""
    known: dict[Any, Value] = {var: (value, False) for var, value in zip(jaxpr.constvars, constants, strict=True)}
    known |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(var: Any) -> Value:
        return (var.val, False) if isinstance(var, core.Literal) else known[var]

    for equation in _needed(jaxpr):
        values = [read(var) for var in equation.invars]
        inner = _called(equation)
        if inner is not None:
            found = _run(*inner, values, n)
        elif any(batched for _, batched in values):
            found = _repeat(equation, values, n)
        else:
            found = [
                (x, False)
                for x in _outputs(equation, equation.primitive.bind(*(x for x, _ in values), **equation.params))
            ]
        known.update(zip(equation.outvars, found, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _needed(jaxpr: Any) -> list[Any]:
    """Equations that some output depends on, in order: what differentiation leaves over costs compilation."""
    alive = {var for var in jaxpr.outvars if not isinstance(var, core.Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(var in alive for var in equation.outvars):
            kept.append(equation)
            alive.update(var for var in equation.invars if not isinstance(var, core.Literal))
    return kept[::-1]


def _called(equation: Any) -> tuple[Any, Sequence[Any]] | None:
    if equation.primitive.name not in CALLERS:
        return None
    for name in CALLS:
        inner = equation.params.get(name)
        if inner is not None:
            return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
    return None


def _outputs(equation: Any, found: Any) -> list[Any]:
    return list(found) if equation.primitive.multiple_results else [found]


def _spread(value: Value, n: int) -> Array:
    """The value with its axis of nodes."""
    x, batched = value
    return x if batched else jnp.broadcast_to(jnp.asarray(x)[..., None], (*np.shape(x), n))


def _repeat(equation: Any, values: list[Value], n: int) -> list[Value]:
    name, params = equation.primitive.name, equation.params
    x = values[0][0]
    if name in ELEMENTWISE:
        shape = equation.outvars[0].aval.shape
        return [(equation.primitive.bind(*(_level(value, shape, n) for value in values), **params), True)]
    if name in ALONG_AXES:
        return [
            (y, True) for y in _outputs(equation, equation.primitive.bind(*(_spread(v, n) for v in values), **params))
        ]
    if name == "broadcast_in_dim" and len(values) == 1:
        shape, axes = params["shape"], params["broadcast_dimensions"]
        return [(lax.broadcast_in_dim(x, (*shape, n), (*(int(axis) for axis in axes), len(shape))), True)]
    if name == "reshape" and params["dimensions"] is None:
        return [(lax.reshape(x, (*params["new_sizes"], n)), True)]
    if name == "squeeze":
        return [(lax.squeeze(x, [axis % (x.ndim - 1) for axis in params["dimensions"]]), True)]
    if name == "transpose":
        order = params["permutation"]
        return [(lax.transpose(x, (*order, len(order))), True)]
    if name == "slice":
        strides = params["strides"]
        ends = (*params["start_indices"], 0), (*params["limit_indices"], n)
        return [(lax.slice(x, *ends, None if strides is None else (*strides, 1)), True)]
    if name == "pad" and not values[1][1]:
        return [(lax.pad(x, jnp.asarray(values[1][0], x.dtype), (*params["padding_config"], (0, 0, 0))), True)]
    if name == "stack":
        return [(jnp.stack([_spread(value, n) for value in values], axis=params["axis"]), True)]
    if name == "unstack":
        axis = params["axis"]
        return [(lax.index_in_dim(x, i, axis, keepdims=False), True) for i in range(x.shape[axis])]
    if name == "dot_general" and (product := _product(values, params["dimension_numbers"])) is not None:
        return [(product.astype(equation.outvars[0].aval.dtype), True)]

    axes = tuple(-1 if batched else None for _, batched in values)
    found = jax.vmap(lambda *each: equation.primitive.bind(*each, **params), axes, -1)(*(x for x, _ in values))
    return [(y, True) for y in _outputs(equation, found)]


def _level(value: Value, shape: tuple[int, ...], n: int) -> Array:
    """An operand with the axis of nodes and the rank of the result."""
    x, batched = value
    x = x if batched else jnp.asarray(x)
    own = x.ndim - batched
    if own == 0 and (shape or not batched):  # a number beside an array
        return lax.broadcast_in_dim(x, (*shape, n), (len(shape),) if batched else ())
    return x if batched else lax.broadcast_in_dim(x, (*x.shape, n), tuple(range(own)))


def _product(values: list[Value], dimensions: Any) -> Array | None:
    """sum_k a_k b_k written out, the axes of both as `lax.dot_general` orders them; None where the sum is long."""
    (over_a, over_b), (beside_a, beside_b) = dimensions
    (a, many_a), (b, many_b) = values
    own_a, own_b = np.ndim(a) - many_a, np.ndim(b) - many_b
    left = [i for i in range(own_a) if i not in over_a and i not in beside_a]
    right = [i for i in range(own_b) if i not in over_b and i not in beside_b]
    terms = int(np.prod([np.shape(a)[i] for i in over_a], dtype=int))
    if not 0 < terms <= LONGEST_SUM:
        return None
    a = jnp.transpose(a, [*beside_a, *left, *over_a, *([own_a] * many_a)])
    b = jnp.transpose(b, [*beside_b, *right, *over_b, *([own_b] * many_b)])
    beside, c = a.shape[: len(beside_a)], len(beside_a)
    rows, columns = a.shape[c : c + len(left)], b.shape[c : c + len(right)]
    a = a.reshape(*beside, *rows, *(1,) * len(right), terms, a.shape[-1] if many_a else 1)
    b = b.reshape(*beside, *(1,) * len(left), *columns, terms, b.shape[-1] if many_b else 1)
    total = a[..., 0, :] * b[..., 0, :]
    for k in range(1, terms):
        total = total + a[..., k, :] * b[..., k, :]
    return total
