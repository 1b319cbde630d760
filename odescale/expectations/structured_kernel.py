r"""The tangent kernel from activations and back-propagated signals, without a Jacobian over the matrices of the network.

Theta(n c, m c') = sum_W sum_{t t'} (delta^W_{nct} . delta^W_{mc't'}) (x^W_{nt} . x^W_{mt'}),   delta^W_{ct} = df_c/d(W x_t)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree, Real

from odescale.errors import InputError, require_number
from odescale.expectations.structured_kernel_walk import Use, Walk
from odescale.expectations.tangent_kernel import (
    KEPT,
    MEMORY_LIMIT,
    Blocks,
    Piece,
    checked_samples,
    flat_outputs,
    kernel_by_blocks,
)
from odescale.networks.sequence_model import trainable as default_trainable


class KernelStructure(eqx.Module):
    """How `structured_kernel` treats each trainable array of a network.

    - `names`, `sizes`: path and number of entries of each array. `reasons`: in words.
    - `treatment`: "matrix" (activations and signals) or "jacobian" (entry by entry: gains, biases, positional rows, arrays with
      fewer entries than their signals, and arrays used in a way that is not recognised).
    - `row_numbers`, `sample_numbers`: numbers held per output of a sample (signals, Jacobian) and per sample (activations).
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    treatment: tuple[Literal["matrix", "jacobian"], ...]
    reasons: tuple[str, ...]
    row_numbers: int
    sample_numbers: int

    @property
    def parameters(self) -> int:
        """Numbers per output of a sample that `tangent_kernel` holds."""
        return sum(self.sizes)


class _Product(NamedTuple):
    """A use of a matrix, all static: where its signal lies, and the product it belongs to."""

    shape: tuple[int, ...]
    dtype: Any
    laid_out: tuple[int, int, int]
    outputs_first: bool
    group: int
    flipped: bool


class _Plan(NamedTuple):
    shifted: tuple[int, ...]
    dense: tuple[int, ...]
    products: tuple[_Product, ...]
    groups: int


def structured_kernel(
    network: eqx.Module,
    x: Real[ArrayLike, "n ..."],
    x2: Real[ArrayLike, "m ..."] | None = None,
    *,
    trainable: PyTree | None = None,
    output: Callable[[Array], Array] | None = None,
    memory_limit: int = MEMORY_LIMIT,
    progress: bool = False,
) -> Float[np.ndarray, "nK mK"]:
    r"""Theta = J(x) J(x2)^T = sum_W sum_{tt'} (delta . delta')(x . x') + sum over other parameters of their Jacobian products.

    The kernel of `tangent_kernel`, same arguments and order of rows, to rounding: of T positions and width d it holds of the order
    of n K T d numbers where the Jacobian holds n K P, P of the order of d^2 parameters.

    Matrices are found in the network's own computation: any array of parameters that is multiplied with activations, or whose rows
    are looked up, transposed, reshaped, sliced, scaled or shared as it may be. All others (gains, biases, convolutions, scanned
    layers, arrays with fewer entries than their signals) take the Jacobian, so that the result is that of any network;
    `kernel_structure` tells which. A computation hidden from `jax.make_jaxpr`, or a network that is not
    deterministic, is outside, as it is for `tangent_kernel`.

    **Arguments**, **errors**: those of `tangent_kernel`. `memory_limit` bounds factors and computation, not the result.

    **Cost**: one backward pass per row; n m K (K + T) T d multiplications per matrix, n m K^2 d^2 for the Jacobian. **Good
    values**: T K well above one and T below d. **Failure regime**: T >= d saves nothing. Source: Novak, Sohl-Dickstein &
    Schoenholz, arXiv 2206.08720.
    """
    first = checked_samples("x", x)
    others = first if x2 is None else checked_samples("x2", x2)
    if others.shape[1:] != first.shape[1:]:
        raise InputError("x2", expected=f"samples of shape {first.shape[1:]}", got=others.shape[1:], remedy="as in x")
    moved, rest = _parts(network, trainable)
    one = jax.eval_shape(lambda m, s: flat_outputs(m, rest, output, s), moved, first[0])
    blocks, factors, contract = _planned(moved, rest, output, first, one.shape[0], memory_limit)
    arrays = eqx.filter(rest, eqx.is_array)

    def side(samples: Array, piece: Piece) -> PyTree:
        return factors(moved, arrays, samples[blocks.picks(piece)], jnp.asarray(piece.first))

    sides = (first, None if x2 is None else others)
    return kernel_by_blocks(*sides, blocks, one, side, contract, progress=progress, words="structured kernel")


def kernel_structure(
    network: eqx.Module,
    x: Real[ArrayLike, "n ..."],
    *,
    trainable: PyTree | None = None,
    output: Callable[[Array], Array] | None = None,
) -> KernelStructure:
    """Which arrays of the network `structured_kernel` treats as matrices, which by their Jacobian and why; nothing is computed.

    **Arguments**, **errors**: those of `structured_kernel`. `row_numbers` against `parameters` is what it saves in memory.
    """
    moved, rest = _parts(network, trainable)
    return _analysed(moved, rest, output, checked_samples("x", x)[0])[1]


def _parts(network: eqx.Module, trainable: PyTree | None) -> tuple[PyTree, PyTree]:
    moved, rest = eqx.partition(network, default_trainable(network) if trainable is None else trainable)
    if sum(leaf.size for leaf in jax.tree.leaves(moved)) == 0:
        raise InputError("network", expected="at least one trainable array", got="none", remedy="check `trainable`")
    return moved, rest


def _walked(
    moved: PyTree, rest: PyTree, output: Callable | None, sample: Array, walk: Walk, leaves: list[Array]
) -> Array:
    """Flat outputs of one sample, with the parameters `leaves` in the place of those of `moved`."""
    structure = jax.tree.structure(moved)
    arrays, static = eqx.partition(rest, eqx.is_array)

    def outputs(leaves: list[Array], arrays: PyTree, sample: Array) -> Array:
        return flat_outputs(jax.tree.unflatten(structure, leaves), eqx.combine(arrays, static), output, sample)

    closed = jax.make_jaxpr(outputs)(leaves, arrays, sample)
    return walk(closed, [*leaves, *jax.tree.leaves(arrays), sample], len(leaves))[0]


def _analysed(moved: PyTree, rest: PyTree, output: Callable | None, sample: Array) -> tuple[_Plan, KernelStructure]:
    """Uses of every parameter, which of them are products, and the products that share a matrix."""
    walk = Walk()
    leaves = jax.tree.leaves(moved)
    value = eqx.filter_eval_shape(
        lambda m, r, s: _walked(m, r, output, s, walk, jax.tree.leaves(m)), moved, rest, sample
    )
    treatment, reasons, found = [], [], {}
    groups = 0
    for i, leaf in enumerate(leaves):
        uses = [use for use in walk.uses if use.leaf == i]
        signals = sum(_size(use.shape) for use in uses)
        held = signals + sum(use.activation.size for use in uses) / max(_size(value.shape), 1)
        arranged = _arrangement(uses)
        if i in walk.refused:
            reason = walk.refused[i]
        elif arranged is None:
            reason = "used in overlapping parts"
        elif held >= leaf.size and uses:
            reason = f"{leaf.size} entries, its signals {signals}"
        else:
            found[i] = [(groups + group, flipped) for group, flipped in arranged]
            groups += 1 + max((group for group, _ in arranged), default=-1)
            treatment.append("matrix")
            reasons.append(f"{len(uses)} product{'s' * (len(uses) != 1)}, signals {signals} numbers")
            continue
        treatment.append("jacobian")
        reasons.append(reason)
    uses = [use for use in walk.uses if use.leaf in found]
    places = {i: iter(p) for i, p in found.items()}
    products = tuple(_product_of(use, *next(places[use.leaf])) for use in uses)
    dense = tuple(i for i in range(len(leaves)) if i not in found)
    row = sum(_size(p.shape) for p in products) + sum(leaves[i].size for i in dense)
    names = tuple(jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(moved))
    structure = KernelStructure(
        names, tuple(leaf.size for leaf in leaves), tuple(treatment), tuple(reasons), row,
        sum(use.activation.size for use in uses),
    )  # fmt: skip
    return _Plan(tuple(sorted(found)), dense, products, groups), structure


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=int))


def _product_of(use: Use, group: int, flipped: bool) -> _Product:
    B, T, _ = use.activation.shape
    return _Product(use.shape, use.dtype, (B, T, use.entries.shape[2]), use.outputs_first, group, flipped)


def _arrangement(uses: list[Use]) -> list[tuple[int, bool]] | None:
    """(group, flipped) of each use: one group holds uses of the same entries as (k, o) or, flipped, as (o, k).

    Groups have no entry in common. None when uses overlap in any other way.
    """
    known: list[np.ndarray] = []
    places = []
    for use in uses:
        for group, entries in enumerate(known):
            if np.array_equal(entries, use.entries):
                places.append((group, False))
                break
            if np.array_equal(entries, use.entries.transpose(0, 2, 1)):
                places.append((group, True))
                break
            if np.intersect1d(entries, use.entries).size:
                return None
        else:
            places.append((len(known), False))
            known.append(use.entries)
    return places


def _factors(
    moved: PyTree, rest: PyTree, output: Callable | None, plan: _Plan, samples: Array, first: Array, count: int
) -> PyTree:
    """Activations (s, b, t, k) and signals (s, count, b, t, o) of every group, and the Jacobian of the rest."""

    def of(sample: Array) -> PyTree:
        leaves = jax.tree.leaves(moved)

        def shifted(shifts: list[Array], dense: list[Array]) -> tuple[Array, PyTree]:
            walk = Walk(plan.shifted, shifts)
            values = list(leaves)
            for i, leaf in zip(plan.dense, dense, strict=True):
                values[i] = leaf
            return _walked(moved, rest, output, sample, walk, values), [(u.activation, u.scale) for u in walk.uses]

        zeros = [jnp.zeros(p.shape, p.dtype) for p in plan.products]
        value, pull, known = jax.vjp(shifted, zeros, [leaves[i] for i in plan.dense], has_aux=True)
        basis = jax.nn.one_hot(first + jnp.arange(count), value.shape[0], dtype=value.dtype)
        signals, rows = jax.vmap(pull)(basis)
        parts: list[tuple[list, list]] = [([], []) for _ in range(plan.groups)]
        for product, signal, (activation, scale) in zip(plan.products, signals, known, strict=True):
            B, T, outs = product.laid_out
            if product.outputs_first:
                signal = signal.reshape(count, B, outs, T).swapaxes(2, 3)
            parts[product.group][product.flipped].append((activation, scale * signal.reshape(count, B, T, outs)))
        # The same entries at several places: positions one after the other.
        joined = [
            tuple(
                (jnp.concatenate([a for a, _ in s], axis=1), jnp.concatenate([d for _, d in s], axis=2)) if s else None
                for s in sides
            )
            for sides in parts
        ]
        # Of no entries at all when there is nothing of them: the kernel of a network that uses no parameter is zero.
        return joined, jnp.concatenate(
            [jnp.zeros((count, 0), value.dtype), *(row.reshape(count, -1) for row in rows)], axis=1
        )

    return jax.vmap(of)(samples)


def _signals(groups: PyTree) -> PyTree:
    return [[None if part is None else part[1] for part in sides] for sides in groups]


def _contraction(left: PyTree, right: PyTree) -> Array:
    """The kernel of two blocks, (rows, rows)."""
    (groups, dense), (others, others_dense) = left, right

    def product(spec: str, *arrays: Array) -> Array:
        return jnp.einsum(spec, *arrays, precision="highest")

    # Signals of the right as (samples, b t o, outputs): one matrix product per pair of samples.
    turned = jax.tree.map(lambda d: d.transpose(0, 2, 3, 4, 1).reshape(d.shape[0], -1, d.shape[1]), _signals(others))

    def straight(here: tuple[Array, Array], there: tuple[Array, Array], signals: Array) -> Array:
        """Signals of the left summed over their positions first: no table of all pairs of rows and positions."""
        (x, signal), (x2, _) = here, there
        (count, B, T, outs), (samples, _, S, _) = signal.shape, x2.shape
        overlap = product("btk,mbsk->bmst", x, x2).reshape(B, samples * S, T)
        summed = jnp.matmul(overlap, signal.transpose(1, 2, 0, 3).reshape(B, T, -1), precision="highest")
        summed = summed.reshape(B, samples, S, count, outs).transpose(1, 3, 0, 2, 4).reshape(samples, count, -1)
        return jnp.matmul(summed, signals, precision="highest").swapaxes(0, 1)

    def row(groups: PyTree) -> Array:
        """One sample of the left against the right block, (outputs, samples, outputs)."""
        total = jnp.zeros(())
        for mine, theirs, signals in zip(groups, others, turned, strict=True):
            for i, here in enumerate(mine):
                for j, there in enumerate(theirs):
                    if here is None or there is None:
                        continue
                    if i == j:
                        total = total + straight(here, there, signals[j])
                    else:
                        # (k, o) against (o, k): an activation meets a signal.
                        crossed = product("btk,mdbsk->mdbts", here[0], there[1])
                        total = total + product("cbto,mbso,mdbts->cmd", here[1], there[0], crossed)
        return total

    flat, flat2 = (v.reshape(v.shape[0] * v.shape[1], -1) for v in (dense, others_dense))
    total = jnp.matmul(flat, flat2.T, precision="highest")
    if jax.tree.leaves(groups):
        total = total + jax.lax.map(row, groups).reshape(total.shape)
    return total


_Compiled = tuple[Blocks, Callable[..., PyTree], Callable[..., Array]]
_compiled: OrderedDict[Any, _Compiled] = OrderedDict()
"""Plans of this process by shapes: the kernel of the same network at another step compiles nothing."""


def _planned(moved: PyTree, rest: PyTree, output: Callable | None, x: Array, outputs: int, limit: float) -> _Compiled:
    require_number("memory_limit", limit, open_=True)
    leaves, structure = jax.tree.flatten((moved, rest, output))
    shapes = tuple((leaf.shape, leaf.dtype) if eqx.is_array(leaf) else leaf for leaf in leaves)
    key = (structure, shapes, x.shape, x.dtype, limit)
    if key not in _compiled:
        _compiled[key] = _measured(moved, rest, output, x, outputs, limit)
        if len(_compiled) > KEPT:
            _compiled.popitem(last=False)
    return _compiled[key]


def _measured(moved: PyTree, rest: PyTree, output: Callable | None, x: Array, outputs: int, limit: float) -> _Compiled:
    """The largest blocks whose two sides, and the larger of making and contracting them, stay below the limit."""
    plan, numbers = _analysed(moved, rest, output, x[0])
    arrays, static = eqx.partition(rest, eqx.is_array)
    size = jnp.result_type(*jax.tree.leaves(moved)).itemsize
    row = size * max(numbers.row_numbers + numbers.sample_numbers / outputs, 1.0)
    rows = max(min(x.shape[0] * outputs, int(limit // (3 * row))), 1)
    while True:
        blocks = Blocks(rows // outputs, outputs) if rows >= outputs else Blocks(1, rows)
        rows = blocks.samples * blocks.outputs

        def factors(m: PyTree, a: PyTree, s: Array, f: Array, count: int = blocks.outputs) -> PyTree:
            return _factors(m, eqx.combine(a, static), output, plan, s, f, count)

        samples = jnp.zeros((blocks.samples, *x.shape[1:]), x.dtype)
        lowered = jax.jit(factors).lower(moved, arrays, samples, jnp.asarray(0))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), lowered.out_info)
        made, contracted = lowered.compile(), jax.jit(_contraction).lower(shapes, shapes).compile()
        analyses = [made.memory_analysis(), contracted.memory_analysis()]
        held = 2 * sum(_size(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
        needed = held + max(0 if a is None else a.temp_size_in_bytes for a in analyses)
        if needed <= limit:
            return blocks, made, contracted
        if rows == 1:
            raise InputError(
                "memory_limit", expected=f"at least {needed:.3g} bytes, one output of one sample and its computation",
                got=limit, remedy="raise it, or take a smaller network",
            )  # fmt: skip
        rows = max(min(rows - 1, int(rows * limit / needed)), 1)
