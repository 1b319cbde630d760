"""Many seeds of one experiment, side by side: threads on a CPU, one vectorised loop on an accelerator, a key for each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from odescale.cache.programs import program
from odescale.training.experiment import AbstractTraining, Carry


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def seed_key(seed: int) -> Array:
    """Stream of a seed: step n draws its data from `fold_in(seed_key, n)`. Threefry whatever JAX's default generator."""
    return jax.random.key(seed, impl="threefry2x32")


def in_precision(tree: PyTree, dtype: np.dtype) -> PyTree:
    """All floating-point arrays of a pytree in `dtype`."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if eqx.is_inexact_array(x) else x, tree)


def _advance(experiment: AbstractTraining, carry: Carry, key: Array, first: Array, count: Array) -> Carry:
    with jax.default_matmul_precision("highest"):  # else an accelerator rounds float32 products to 10 bits
        carry = experiment.advance(carry, key, first, count)
    # The loss of a batch is taken before its step: weights that the last step threw away show here.
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(carry.state) if eqx.is_inexact_array(leaf)]
    lost = (carry.diverged_at < 0) & ~jnp.all(jnp.stack(finite)) & (count > 0)
    return carry._replace(diverged_at=jnp.where(lost, first + count - 1, carry.diverged_at))


_advance_one = program(_advance)


@program
def _advance_together(experiment: AbstractTraining, carries: Carry, keys: Array, first: Array, count: Array) -> Carry:
    each = eqx.filter_vmap(_advance, in_axes=(None, eqx.if_array(0), 0, None, None), out_axes=eqx.if_array(0))
    return each(experiment, carries, keys, first, count)


class Seeds:
    """All seeds of a run: `advance` moves them, `states` shows them, `arrays` and `restore` take them to a file and back.

    A seed has the numbers that it has alone: on a CPU every seed is a loop of its own, or where the experiment asks for more
    `together`, a place in a loop of that fixed width. Threads win there: XLA runs one small loop on one core.
    """

    def __init__(self, experiment: AbstractTraining, seeds: Sequence[int], dtype: np.dtype) -> None:
        self.experiment, self.seeds = experiment, list(seeds)
        self._fixed = in_precision(experiment, dtype)
        # The sum of sample losses is carried in double precision where JAX has it, else a long record would round it.
        zero, never = jnp.zeros((), jnp.result_type(float)), jnp.full((), -1, jnp.int32)
        carries = [
            Carry(in_precision(jax.tree.map(_device, experiment.start(s)), dtype), zero, never) for s in self.seeds
        ]
        self._width = experiment.together if jax.default_backend() == "cpu" else len(self.seeds)
        self._compiled = False
        self._set(carries)

    def _set(self, carries: list[Carry]) -> None:
        width, self._groups, self._keys = self._width, [], []
        for begin in range(0, len(carries), width):
            members = list(range(begin, min(begin + width, len(carries))))
            members += members[-1:] * (width - len(members))  # a last group that is not full repeats its last seed
            self._groups.append(_stack([carries[i] for i in members]) if width > 1 else carries[begin])
            keys = [seed_key(self.seeds[i]) for i in members]
            self._keys.append(jnp.stack(keys) if width > 1 else keys[0])

    @property
    def carries(self) -> list[Carry]:
        """What every seed carries."""
        if self._width == 1:
            return list(self._groups)
        # Views of arrays on the host: slicing on the device would be a call for every seed and leaf.
        groups = [jax.tree.map(lambda x: np.asarray(x) if eqx.is_array(x) else x, group) for group in self._groups]
        members = [divmod(i, self._width) for i in range(len(self.seeds))]
        return [jax.tree.map(lambda x, p=p: x[p] if eqx.is_array(x) else x, groups[g]) for g, p in members]

    @property
    def states(self) -> list[PyTree]:
        """The state of every seed."""
        return [carry.state for carry in self.carries]

    def advance(self, first: int, count: int) -> None:
        """`count` more steps of every seed, from step number `first`."""
        begin = jnp.asarray(first, jnp.int32)
        advance = _advance_together if self._width > 1 else _advance_one

        def one(group: int, steps: int = count) -> Carry:
            arguments = (self._fixed, self._groups[group], self._keys[group], begin, jnp.asarray(steps, jnp.int32))
            return jax.block_until_ready(advance(*arguments))

        if not self._compiled:  # once, with no steps, before the threads: else each of them would compile for itself
            one(0, 0)
            self._compiled = True
        with ThreadPoolExecutor(min(len(self._groups), cores())) as pool:
            self._groups = list(pool.map(one, range(len(self._groups))))

    def _numbers(self, name: str) -> np.ndarray:
        values = [np.atleast_1d(np.asarray(getattr(group, name))) for group in self._groups]
        return np.concatenate(values)[: len(self.seeds)]

    @property
    def loss_sums(self) -> Float[np.ndarray, " s"]:
        """Sums of sample losses since the last record."""
        return self._numbers("loss_sum")

    @property
    def diverged_at(self) -> Int[np.ndarray, " s"]:
        """First step of every seed that was no training any more, or -1."""
        return self._numbers("diverged_at")

    def take_losses(self, steps: int) -> Float[np.ndarray, " s"]:
        """Mean sample losses over the `steps` since the last record; begins a new sum. NaN over no steps."""
        sums = self.loss_sums
        self._groups = [group._replace(loss_sum=jnp.zeros_like(group.loss_sum)) for group in self._groups]
        return sums / steps if steps else np.full(len(sums), np.nan)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that the seeds carry, stacked over seeds."""
        each = [jax.tree.leaves(eqx.filter(carry, eqx.is_array)) for carry in self.carries]
        return {f"leaf_{i}": np.stack([np.asarray(x) for x in leaf]) for i, leaf in enumerate(zip(*each, strict=True))}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """The way back from `arrays`."""
        held, rest = eqx.partition(self.carries[0], eqx.is_array)
        structure, count = jax.tree.structure(held), len(jax.tree.leaves(held))
        self._set([
            eqx.combine(jax.tree.unflatten(structure, [jnp.asarray(arrays[f"leaf_{i}"][s]) for i in range(count)]), rest)
            for s in range(len(self.seeds))
        ])  # fmt: skip


def over_seeds(function: Any, seeds: int) -> list[Any]:
    """`function(i)` of all seeds in threads; the first alone, since it compiles for the others."""
    found = [function(0)]
    with ThreadPoolExecutor(cores()) as pool:
        return found + list(pool.map(function, range(1, seeds)))


def _device(leaf: Any) -> Any:
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


def _stack(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *trees)
