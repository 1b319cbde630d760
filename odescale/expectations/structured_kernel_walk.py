r"""Where a network uses its parameters: its jaxpr evaluated equation by equation, every product with a parameter matrix recorded.

A *view* of a parameter is the array itself, transposed, reshaped, sliced or times a number. A *use* is a dot product of a view
with an activation, y_t = W x_t, or a row looked up in it (x one-hot). Everything else an array of parameters meets leaves it to
the Jacobian, which is right for any network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun
from jaxtyping import Array, Int

# `jit` was called `pjit`, `checkpoint` is called `remat2` in some versions. Inlining changes memory, never numbers.
INLINED = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2")
RELABELLED = ("reshape", "squeeze", "expand_dims", "convert_element_type", "copy", "copy_p")


class View(NamedTuple):
    """scale * leaf.ravel()[entries], in the shape of `entries`: no entry twice."""

    leaf: int
    entries: Int[np.ndarray, "..."]
    scale: Any


class Use(NamedTuple):
    """y_bto = sum_k x_btk W_bko of a view W; `entries` (b, k, o) of the leaf, `outputs_first` when y is laid out (b, o, t)."""

    leaf: int
    entries: Int[np.ndarray, "b k o"]
    shape: tuple[int, ...]
    dtype: Any
    outputs_first: bool
    activation: Array
    scale: Any


class Walk:
    """Uses met while a jaxpr is evaluated, and `refused` leaves with the reason; shifts[i] is added to y of use i of `shifted`."""

    def __init__(self, shifted: Sequence[int] | None = None, shifts: Sequence[Array] = ()) -> None:
        self.shifted, self.shifts = shifted, shifts
        self.uses: list[Use] = []
        self.refused: dict[int, str] = {}

    def __call__(self, closed: ClosedJaxpr, values: Sequence[Any], leaves: int) -> list[Array]:
        """Outputs of the jaxpr whose first `leaves` arguments are the parameters."""
        views: list[View | None] = [None] * len(values)
        for i, leaf in enumerate(values[:leaves]):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                views[i] = View(i, np.arange(leaf.size, dtype=np.int64).reshape(leaf.shape), 1.0)
            else:
                self.refused[i] = f"of dtype {leaf.dtype}"
        outputs, left = self._evaluate(closed.jaxpr, closed.consts, values, views)
        for view in left:
            self._refuse(view, "an output itself")
        return outputs

    def _evaluate(
        self, jaxpr: Jaxpr, consts: Sequence[Any], values: Sequence[Any], views: Sequence[View | None]
    ) -> tuple[list[Any], list[View | None]]:
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values], strict=True))
        seen = dict(zip(jaxpr.invars, views, strict=True))
        needed = {v for eqn in jaxpr.eqns for v in eqn.invars if isinstance(v, Var)} | {
            v for v in jaxpr.outvars if isinstance(v, Var)
        }

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else known[atom]

        def view(atom: Any) -> View | None:
            return None if isinstance(atom, Literal) else seen.get(atom)

        for eqn in jaxpr.eqns:
            inputs, met = [read(v) for v in eqn.invars], [view(v) for v in eqn.invars]
            kept = [v for v in eqn.outvars if v in needed]
            moved: list[View | None] = [None] * len(kept)
            inner = eqn.params.get("jaxpr") if eqn.primitive.name in INLINED else None
            if inner is not None and any(v is not None for v in met):
                inside = (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())
                everything = self._evaluate(*inside, inputs, met)
                places = [i for i, v in enumerate(eqn.outvars) if v in needed]
                outputs, moved = ([part[i] for i in places] for part in everything)
            else:
                # One equation as a jaxpr of its own: custom derivative rules and control flow stay what they are.
                arguments = dict(
                    zip((v for v in eqn.invars if isinstance(v, Var)), self._variables(eqn, inputs), strict=True)
                )
                single = jaxpr.replace(constvars=[], invars=list(arguments), outvars=kept, eqns=[eqn])
                outputs = jaxpr_as_fun(ClosedJaxpr(single, []))(*arguments.values())
                if kept and any(v is not None for v in met):
                    again = _moved(eqn, inputs, met)
                    if again is None:
                        outputs = [self._use(eqn, inputs, met, outputs[0]), *outputs[1:]]
                    else:
                        at, again = again
                        moved = [again]
                        for other in (*met[:at], *met[at + 1 :]):
                            self._refuse(other, f"an argument of {eqn.primitive.name}")
            known.update(zip(kept, outputs, strict=True))
            seen.update(zip(kept, moved, strict=True))
        return [read(v) for v in jaxpr.outvars], [view(v) for v in jaxpr.outvars]

    @staticmethod
    def _variables(eqn: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
        return [value for value, v in zip(inputs, eqn.invars, strict=True) if isinstance(v, Var)]

    def _refuse(self, view: View | None, reason: str) -> None:
        if view is not None:
            self.refused.setdefault(view.leaf, reason)

    def _use(self, eqn: JaxprEqn, inputs: Sequence[Any], met: Sequence[View | None], y: Array) -> Array:
        """y, with the shifts of the uses that this equation is."""
        of = {"dot_general": _product, "gather": _row}.get(eqn.primitive.name)
        shifted = y
        for i, view in enumerate(met):
            if view is None:
                continue
            found = None if of is None else of(eqn, inputs, view, i, y)
            if found is None:
                self._refuse(view, f"an argument of {eqn.primitive.name}")
            elif self.shifted is None or view.leaf in self.shifted:
                if self.shifts:
                    shifted = shifted + self.shifts[len(self.uses)]
                self.uses.append(found)
        return shifted


def _moved(eqn: JaxprEqn, inputs: Sequence[Any], met: Sequence[View | None]) -> tuple[int, View] | None:
    """Which argument the equation makes another view of, and that view; or None."""
    name, view = eqn.primitive.name, met[0]
    if name in ("mul", "div"):
        at = 0 if view is not None and np.ndim(inputs[1]) == 0 else 1
        view, factor = met[at], inputs[1 - at]
        # Division is a multiple only of what stands above the line; a number that meets a number is no matrix.
        if view is None or np.ndim(factor) != 0 or view.entries.ndim == 0 or (name == "div" and at == 1):
            return None
        return at, view._replace(scale=view.scale * factor if name == "mul" else view.scale / factor)
    if view is None:
        return None
    if name == "neg":
        return 0, view._replace(scale=-view.scale)
    if name == "transpose":
        return 0, view._replace(entries=view.entries.transpose(eqn.params["permutation"]))
    if name == "slice":
        starts, stops, strides = (eqn.params[k] for k in ("start_indices", "limit_indices", "strides"))
        steps = (1,) * len(starts) if strides is None else strides
        return 0, view._replace(entries=view.entries[tuple(map(slice, starts, stops, steps))])
    shape = eqn.outvars[0].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
    unchanged = name in RELABELLED and eqn.params.get("dimensions") in (None, tuple(range(view.entries.ndim)))
    if name == "squeeze" or unchanged:
        if not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):  # pyright: ignore[reportAttributeAccessIssue]
            return None
        return 0, view._replace(entries=view.entries.reshape(shape))
    if name == "broadcast_in_dim" and int(np.prod(shape)) == view.entries.size:
        # Axes of length one only: their order stays, as broadcast dimensions increase.
        return 0, view._replace(entries=view.entries.reshape(shape))
    return None


def _product(eqn: JaxprEqn, inputs: Sequence[Any], view: View, at: int, y: Array) -> Use:
    contract, batch = (tuple(map(tuple, pair)) for pair in eqn.params["dimension_numbers"])
    entries, (B, K, outs) = _arranged(view.entries, batch[at], contract[at], False)
    x, (_, _, T) = _arranged(jnp.asarray(inputs[1 - at]), batch[1 - at], contract[1 - at], True)
    assert y.size == B * T * outs and x.shape == (B, T, K)
    return Use(view.leaf, entries, y.shape, y.dtype, at == 0, x, view.scale)


def _arranged(a: Any, batch: tuple, contract: tuple, free_second: bool) -> tuple[Any, tuple[int, int, int]]:
    """`a` as (batch, contracted, free), or (batch, free, contracted); and the sizes of the three."""
    free = tuple(i for i in range(a.ndim) if i not in batch + contract)
    sizes = [int(np.prod([a.shape[i] for i in axes], dtype=int)) for axes in (batch, contract, free)]
    parts, shape = (batch + contract + free, sizes) if not free_second else (
        batch + free + contract, [sizes[0], sizes[2], sizes[1]])  # fmt: skip
    return a.transpose(parts).reshape(shape), (sizes[0], sizes[1], sizes[2])


def _row(eqn: JaxprEqn, inputs: Sequence[Any], view: View, at: int, y: Array) -> Use | None:
    """E[i] along the first axis is a product with one-hot rows."""
    numbers, entries = eqn.params["dimension_numbers"], view.entries
    rest = entries.shape[1:]
    trailing = tuple(range(y.ndim - len(rest), y.ndim))
    plain = (
        at == 0 and entries.ndim >= 1 and tuple(eqn.params["slice_sizes"]) == (1, *rest)
        and tuple(numbers.collapsed_slice_dims) == (0,) and tuple(numbers.start_index_map) == (0,)
        and tuple(numbers.offset_dims) == trailing and not tuple(getattr(numbers, "operand_batching_dims", ()))
    )  # fmt: skip
    if not plain:
        return None
    index = inputs[1].reshape(-1)
    if eqn.params["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP:
        index = jnp.clip(index, 0, entries.shape[0] - 1)
    x = jax.nn.one_hot(index, entries.shape[0], dtype=y.dtype)[None]
    return Use(view.leaf, entries.reshape(1, entries.shape[0], -1), y.shape, y.dtype, False, x, view.scale)
