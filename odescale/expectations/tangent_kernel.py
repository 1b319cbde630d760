r"""The empirical tangent kernel of any equinox network, Theta(x a, x' b) = sum_p df_a(x)/dtheta_p df_b(x')/dtheta_p.

Blocked over samples and outputs, with the memory of the blocks measured by the compiler and bounded by an argument.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree, Real
from tqdm import tqdm

from odescale.cache.programs import program
from odescale.errors import InputError, require_number
from odescale.networks.sequence_model import trainable as default_trainable

MEMORY_LIMIT = 1_000_000_000
ROWS_AT_ONCE, FEW_ROWS = 128, 32
"""Rows of a Jacobian block, and where three such do not fit: more are no faster, and of fewer more can be kept."""


class Piece(NamedTuple):
    """Rows start..stop of the kernel: outputs from `first` on of the samples first_sample..last_sample."""

    start: int
    stop: int
    first_sample: int
    last_sample: int
    first: int


class Blocks(eqx.Module):
    """Jacobian blocks of `samples` whole samples, or of one sample and `outputs` of its outputs; `held` of them kept at once."""

    samples: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    held: int = eqx.field(static=True, default=1)

    def pieces(self, samples: int, outputs: int) -> list[Piece]:
        """The blocks of all rows, in order."""
        if self.outputs == outputs:
            ends = [(a, min(a + self.samples, samples)) for a in range(0, samples, self.samples)]
            return [Piece(a * outputs, b * outputs, a, b, 0) for a, b in ends]
        return [
            Piece(i * outputs + a, i * outputs + min(a + self.outputs, outputs), i, i + 1, a)
            for i in range(samples)
            for a in range(0, outputs, self.outputs)
        ]

    def picks(self, piece: Piece) -> Int[np.ndarray, " samples"]:
        """The samples of a block; the last one repeats a sample up to the size of the others: one shape, compiled once."""
        return np.minimum(np.arange(piece.first_sample, piece.first_sample + self.samples), piece.last_sample - 1)


def tangent_kernel(
    network: eqx.Module,
    x: Real[ArrayLike, "n ..."],
    x2: Real[ArrayLike, "m ..."] | None = None,
    *,
    trainable: PyTree | None = None,
    output: Callable[[Array], Array] | None = None,
    memory_limit: int = MEMORY_LIMIT,
    progress: bool = False,
) -> Float[np.ndarray, "nK mK"]:
    r"""Theta = J(x) J(x2)^T, J = df/dtheta: rows are the outputs of all samples in x, sample by sample, each flattened.

    `reshape(n, *outputs, m, *outputs)` gives it by sample and output. Of x with itself it is symmetric to the last bit.

    **Arguments**

    - `network`: any equinox module; called on one sample, `network(x[i])`, it gives an array of any shape (K numbers).
    - `x` (n, ...), `x2` (m, ...): samples along the first axis; x2 = None is x itself, at half the work.
    - `trainable`: tree of booleans, which arrays are parameters; default all inexact arrays (the copy inside a `LazyNetwork` not).
    - `output`: applied to each output before differentiation, e.g. `lambda f: f[-1]` for the last position.
    - `memory_limit`: bytes that Jacobian blocks and their computation may take, the result (n K m K numbers) not counted. As many
      blocks as fit are kept and meet all others in turn.
    - `progress`: a bar on stderr, one tick per pair of blocks.

    **Returns** an array of the network's precision, on the host. **Cost**: one backward pass per row, more when blocks must be
    recomputed (memory_limit below n K rows of P parameters); and n K m K P multiplications, half of them without x2.

    **Errors**: `InputError` before any heavy work: empty or mismatched samples, no parameter, a limit too small for one row (it
    says what one row takes). **Good values**: memory_limit 1e9. Source: Jacot, Gabriel & Hongler, arXiv 1806.07572.
    """
    first = checked_samples("x", x)
    others = first if x2 is None else checked_samples("x2", x2)
    if others.shape[1:] != first.shape[1:]:
        raise InputError("x2", expected=f"samples of shape {first.shape[1:]}", got=others.shape[1:], remedy="as in x")
    moved, rest = eqx.partition(network, default_trainable(network) if trainable is None else trainable)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(moved))
    if parameters == 0:
        raise InputError("network", expected="at least one trainable array", got="none", remedy="check `trainable`")
    one = jax.eval_shape(lambda m, s: flat_outputs(m, rest, output, s), moved, first[0])
    blocks, compiled = _plan(moved, rest, output, first, one.shape[0], parameters, memory_limit)

    def jacobian(samples: Array, piece: Piece) -> list[Array]:
        return compiled(moved, rest, output, samples[blocks.picks(piece)], jnp.asarray(piece.first), blocks.outputs)

    sides = (first, None if x2 is None else others)
    return kernel_by_blocks(*sides, blocks, one, jacobian, _contract, progress=progress, words="tangent kernel")


def kernel_by_blocks(
    first: Array,
    others: Array | None,
    blocks: Blocks,
    one: jax.ShapeDtypeStruct,
    side: Callable[[Array, Piece], PyTree],
    contract: Callable[[PyTree, PyTree], Array],
    *,
    progress: bool,
    words: str,
) -> Float[np.ndarray, "N M"]:
    """The kernel from `contract(side(samples, row), side(samples, column))`, block by block.

    **Arguments**: `first` (n, ...) and `others` (m, ...), or None for the same samples: half of the blocks then follow from the
    other half; `one`: shape (outputs,) and dtype of the outputs of a sample; `words` of the progress bar.
    """
    same_samples = others is None
    second = first if others is None else others
    rows, columns = (blocks.pieces(samples.shape[0], one.shape[0]) for samples in (first, second))
    result = np.empty((first.shape[0] * one.shape[0], second.shape[0] * one.shape[0]), one.dtype)
    pairs = len(rows) * (len(rows) + 1) // 2 if same_samples else len(rows) * len(columns)
    with tqdm(total=pairs, disable=not progress, desc=words, unit="block") as bar:
        for begin in range(0, len(rows), blocks.held):
            group = range(begin, min(begin + blocks.held, len(rows)))
            kept = [side(first, rows[i]) for i in group]
            for j in range(begin if same_samples else 0, len(columns)):
                column = columns[j]
                right = kept[j - begin] if same_samples and j in group else side(second, column)
                for i, left in zip(group, kept, strict=True):
                    if same_samples and i > j:
                        continue
                    row = rows[i]
                    block = np.asarray(contract(left, right))[: row.stop - row.start, : column.stop - column.start]
                    if same_samples and i == j:
                        block = (block + block.T) / 2
                    result[row.start : row.stop, column.start : column.stop] = block
                    if same_samples:
                        result[column.start : column.stop, row.start : row.stop] = block.T
                    bar.update()
    return result


def network_outputs(network: eqx.Module, x: Real[ArrayLike, "n ..."], output: Callable | None = None) -> Array:
    """f(x_i) of all samples, (n, ...) in the network's own output shape."""
    return _outputs(network, checked_samples("x", x), output)


@program
def _outputs(network: Any, x: Array, output: Callable | None) -> Array:
    return jax.vmap(network if output is None else lambda s: output(network(s)))(x)


def flat_outputs(moved: PyTree, rest: PyTree, output: Callable | None, sample: Array) -> Array:
    """The outputs for one sample in one row."""
    value = eqx.combine(moved, rest)(sample)
    return jnp.ravel(value if output is None else output(value))


def _block(moved: PyTree, rest: PyTree, output: Callable | None, samples: Array, first: Array, count: int) -> PyTree:
    """Jacobian rows of outputs first..first+count of every sample, leaves (samples * count, size of the leaf)."""

    def of(sample: Array) -> PyTree:
        value, pull = jax.vjp(lambda m: flat_outputs(m, rest, output, sample), moved)
        basis = jax.nn.one_hot(first + jnp.arange(count), value.shape[0], dtype=value.dtype)
        return jax.vmap(lambda v: pull(v)[0])(basis)

    leaves = jax.tree.leaves(jax.vmap(of)(samples))
    return [leaf.reshape(leaf.shape[0] * leaf.shape[1], -1) for leaf in leaves]


_jacobian = eqx.filter_jit(_block)


@jax.jit
def _contract(left: list[Array], right: list[Array]) -> Array:
    return sum((jnp.matmul(a, b.T, precision="highest") for a, b in zip(left, right, strict=True)), jnp.zeros(()))


_compiled: OrderedDict[Any, tuple[Blocks, Callable[..., list[Array]]]] = OrderedDict()
"""Plans of this process by shapes: the kernel of the same network at another step compiles nothing."""
KEPT = 16


def _plan(
    moved: PyTree, rest: PyTree, output: Callable | None, x: Array, outputs: int, parameters: int, limit: float
) -> tuple[Blocks, Callable[..., list[Array]]]:
    """The largest blocks whose compiled computation, twice the block included, stays below the limit; and that computation."""
    require_number("memory_limit", limit, open_=True)
    size = jnp.result_type(*jax.tree.leaves(moved)).itemsize
    leaves, structure = jax.tree.flatten((moved, rest, output))
    shapes = tuple((leaf.shape, leaf.dtype) if eqx.is_array(leaf) else leaf for leaf in leaves)
    key = (structure, shapes, x.shape, x.dtype, outputs, limit)
    if key not in _compiled:
        _compiled[key] = _measured_plan(moved, rest, output, x, outputs, parameters * size, limit)
        if len(_compiled) > KEPT:
            _compiled.popitem(last=False)
    return _compiled[key]


def _measured_plan(
    moved: PyTree, rest: PyTree, output: Callable | None, x: Array, outputs: int, row_size: int, limit: float
) -> tuple[Blocks, Callable[..., list[Array]]]:
    """Compiles blocks of at most `ROWS_AT_ONCE` rows, fewer until two of them fit; as many more as then fit are held."""
    most = int(limit // (3 * row_size))
    rows = min(ROWS_AT_ONCE if most >= ROWS_AT_ONCE else FEW_ROWS, x.shape[0] * outputs, most)
    while rows >= 1:
        blocks = _equal_blocks(x.shape[0], outputs, rows)
        rows = blocks.samples * blocks.outputs
        # The blocks, and what the compiler says that making one takes besides.
        samples = jnp.zeros((blocks.samples, *x.shape[1:]), x.dtype)
        compiled = _jacobian.lower(moved, rest, output, samples, jnp.asarray(0), blocks.outputs).compile()
        memory = compiled.compiled.memory_analysis()
        besides = 0 if memory is None else memory.temp_size_in_bytes
        needed = 2 * rows * row_size + besides
        if needed <= limit:
            return Blocks(blocks.samples, blocks.outputs, int((limit - besides) // (rows * row_size)) - 1), compiled
        if rows == 1:
            raise _too_small(limit, needed)
        rows = max(min(rows - 1, int(rows * limit / needed)), 1)
    raise _too_small(limit, 3 * row_size)


def _equal_blocks(samples: int, outputs: int, rows: int) -> Blocks:
    """Blocks of at most `rows` rows, as equal as can be: what is left over by others is filled up, and computed for nothing."""
    if rows >= outputs:
        return Blocks(-(-samples // -(-samples // (rows // outputs))), outputs)
    return Blocks(1, -(-outputs // -(-outputs // rows)))


def _too_small(limit: float, needed: float) -> InputError:
    return InputError(
        "memory_limit", expected=f"at least {needed:.3g} bytes, one row of the Jacobian twice and its computation",
        got=limit, remedy="raise it, or take a smaller network",
    )  # fmt: skip


def checked_samples(name: str, x: Any) -> Array:
    """`x` as an array with samples along its first axis; `InputError` otherwise."""
    shape = np.shape(x)
    if len(shape) < 1 or shape[0] < 1:
        raise InputError(name, expected="samples along the first axis", got=shape, remedy="pass at least one sample")
    return jnp.asarray(x)
