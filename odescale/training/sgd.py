"""Plain one-pass SGD on the rows of a real transformer: many steps in one compiled loop, seeds side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odescale.networks.architecture import Architecture
from odescale.networks.transformer import Transformer
from odescale.training.task import TeacherTask

# A sample loss beyond this is a run away: outputs of a working run are of order one.
DIVERGED = 1e8


def sample_loss(
    trained: Float[Array, "p d"], rows: Float[Array, "P d"], architecture: Architecture, task: TeacherTask, key: Array
) -> Float[Array, ""]:
    """1/(2B) sum over the batch of sum_i (f_i - f*_i)^2 at the query, on fresh tokens drawn from `key`.

    `trained` are the rows that SGD moves, in the order of the table; they replace their places in `rows`, of which only
    the frozen ones are read.
    """
    tokens, labels = task.sample_batch(key, rows)
    moved = np.flatnonzero(architecture.trained_mask)
    student = Transformer.from_rows(architecture.student, rows.at[moved].set(trained), task.scale)
    errors = jax.vmap(student)(tokens) - labels
    return 0.5 * jnp.mean(jnp.sum(errors**2, axis=-1))


class Progress(eqx.Module):
    """What one seed carries through the loop: rows, summed sample loss, first diverged step (-1: none)."""

    rows: Float[Array, "P d"]
    loss_sum: Float[Array, ""]
    diverged_at: Int[Array, ""]


def _advance(
    architecture: Architecture,
    task: TeacherTask,
    schedule: Callable | None,
    learning_rate: Float[Array, ""],
    weight_decay: Float[Array, ""],
    rows: Float[Array, "P d"],
    key: Array,
    first: Int[Array, ""],
    count: Int[Array, ""],
) -> Progress:
    r"""`count` steps W <- W - eta s(t) grad l - (w/N) W from step `first`, t = step/N; frozen rows untouched.

    Step n draws its tokens from `fold_in(key, n)`: how steps are cut into calls changes nothing.
    """
    moved = np.flatnonzero(architecture.trained_mask)
    dtype = rows.dtype

    def body(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        trained, loss_sum, diverged_at = carry
        step = first + i
        loss, gradient = jax.value_and_grad(sample_loss)(
            trained, rows, architecture, task, jax.random.fold_in(key, step)
        )
        rate = learning_rate
        if schedule is not None:
            rate = rate * jnp.asarray(schedule(step.astype(dtype) / task.scale), dtype)
        trained = trained - rate * gradient - (weight_decay / task.scale) * trained
        bad = (diverged_at < 0) & ~(loss < DIVERGED)  # written so that NaN counts as diverged
        return trained, loss_sum + loss, jnp.where(bad, step, diverged_at)

    start = (rows[moved], jnp.zeros((), dtype), jnp.full((), -1, first.dtype))
    with jax.default_matmul_precision("highest"):  # else an accelerator rounds float32 products to 10 bits
        trained, loss_sum, diverged_at = jax.lax.fori_loop(0, count, body, start)
    return Progress(rows.at[moved].set(trained), loss_sum, diverged_at)


_advance_one = eqx.filter_jit(_advance)
_advance_together = eqx.filter_jit(eqx.filter_vmap(_advance, in_axes=(None, None, None, None, None, 0, 0, None, None)))


class SeedsInParallel:
    """Advances all seeds by some steps: one vmapped loop on an accelerator, one thread per core on a CPU.

    Both give every seed the numbers that it has alone. On a CPU threads win: XLA runs one small loop on one core.
    """

    def __init__(
        self,
        architecture: Architecture,
        task: TeacherTask,
        *,
        seeds: Sequence[int],
        learning_rate: float,
        weight_decay: float,
        schedule: Callable | None,
        dtype: np.dtype,
    ) -> None:
        self._fixed = (
            architecture,
            task,
            schedule,
            jnp.asarray(learning_rate, dtype),
            jnp.asarray(weight_decay, dtype),
        )
        self._keys = [seed_key(seed) for seed in seeds]
        self._threads = jax.default_backend() == "cpu"
        self._compiled = False

    def __call__(
        self, rows: Float[np.ndarray, "s P d"], first: int, count: int
    ) -> tuple[Float[np.ndarray, "s P d"], Float[np.ndarray, " s"], Int[np.ndarray, " s"]]:
        """`(rows, mean sample loss, first diverged step or -1)` of every seed after `count` more steps."""
        begin, steps = jnp.asarray(first, jnp.int32), jnp.asarray(count, jnp.int32)
        if not self._threads:
            out = _advance_together(*self._fixed, jnp.asarray(rows), jnp.stack(self._keys), begin, steps)
            return np.asarray(out.rows), np.asarray(out.loss_sum) / max(count, 1), np.asarray(out.diverged_at)

        def one(pair: tuple[np.ndarray, Array], n: Array = steps) -> Progress:
            return jax.block_until_ready(_advance_one(*self._fixed, jnp.asarray(pair[0]), pair[1], begin, n))

        pairs = list(zip(rows, self._keys, strict=True))
        if not self._compiled:  # once, with no steps, before the threads: else each of them would compile for itself
            one(pairs[0], jnp.zeros_like(steps))
            self._compiled = True
        with ThreadPoolExecutor(min(len(pairs), cores())) as pool:
            done = list(pool.map(one, pairs))
        return (
            np.stack([np.asarray(p.rows) for p in done]),
            np.array([float(p.loss_sum) for p in done]) / max(count, 1),
            np.array([int(p.diverged_at) for p in done]),
        )


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def seed_key(seed: int) -> Array:
    """Stream of a seed: step n draws its tokens from `fold_in(seed_key, n)`. Threefry whatever JAX's default generator."""
    return jax.random.key(seed, impl="threefry2x32")


def loss_key(seed: int, step: int) -> Array:
    """Stream of test fields of a seed at a step, apart from all training tokens (steps stay below 2^31)."""
    return jax.random.fold_in(jax.random.fold_in(seed_key(seed), 2**32 - 1), step)
