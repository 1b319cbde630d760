"""Plain one-pass SGD on the rows of a real transformer: many steps in one compiled loop, seeds side by side."""

from __future__ import annotations

import abc
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


class AbstractObjective(eqx.Module):
    """What SGD minimises: a sample loss on fresh data, as a function of the rows that move."""

    @property
    @abc.abstractmethod
    def moved(self) -> np.ndarray:
        """Numbers of the rows that SGD moves."""

    @property
    @abc.abstractmethod
    def scale(self) -> float:
        """N = tr Sigma, SGD steps in one unit of t."""

    @abc.abstractmethod
    def sample_loss(self, trained: Float[Array, "p d"], rows: Float[Array, "P d"], key: Array) -> Float[Array, ""]:
        """Mean loss of one batch drawn from `key`; `trained` replace the `moved` ones among `rows`."""


class TransformerObjective(AbstractObjective):
    """1/(2B) sum over the batch of sum_i (f_i - f*_i)^2 at the query of a `Transformer`, on tokens of a `TeacherTask`."""

    architecture: Architecture
    task: TeacherTask

    @property
    def moved(self) -> np.ndarray:
        return np.flatnonzero(self.architecture.trained_mask)

    @property
    def scale(self) -> float:
        return self.task.scale

    def sample_loss(self, trained: Float[Array, "p d"], rows: Float[Array, "P d"], key: Array) -> Float[Array, ""]:
        tokens, labels = self.task.sample_batch(key, rows)
        student = Transformer.from_rows(self.architecture.student, rows.at[self.moved].set(trained), self.task.scale)
        errors = jax.vmap(student)(tokens) - labels
        return 0.5 * jnp.mean(jnp.sum(errors**2, axis=-1))


class Rates(eqx.Module):
    """W <- W - step u - (decay/N) W, u <- memory u + grad: plain SGD has memory 0 and step eta."""

    step: Float[Array, ""]
    memory: Float[Array, ""]
    decay: Float[Array, ""]


class Progress(eqx.Module):
    """What one seed carries through the loop: rows, velocities of those that move, summed loss, first diverged step (-1: none)."""

    rows: Float[Array, "P d"]
    velocity: Float[Array, "p d"]
    loss_sum: Float[Array, ""]
    diverged_at: Int[Array, ""]


def _advance(
    objective: AbstractObjective,
    schedule: Callable | None,
    rates: Rates,
    rows: Float[Array, "P d"],
    velocity: Float[Array, "p d"],
    key: Array,
    first: Int[Array, ""],
    count: Int[Array, ""],
) -> Progress:
    r"""`count` steps u <- mu u + grad l, W <- W - eta s(t) u - (w/N) W from step `first`, t = step/N; frozen rows untouched.

    Step n draws its data from `fold_in(key, n)`: how steps are cut into calls changes nothing.
    """
    moved, dtype = objective.moved, rows.dtype

    def body(i: Array, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        trained, velocity, loss_sum, diverged_at = carry
        step = first + i
        loss, gradient = jax.value_and_grad(objective.sample_loss)(trained, rows, jax.random.fold_in(key, step))
        rate = rates.step
        if schedule is not None:
            rate = rate * jnp.asarray(schedule(step.astype(dtype) / objective.scale), dtype)
        velocity = rates.memory * velocity + gradient
        trained = trained - rate * velocity - (rates.decay / objective.scale) * trained
        bad = (diverged_at < 0) & ~(loss < DIVERGED)  # written so that NaN counts as diverged
        return trained, velocity, loss_sum + loss, jnp.where(bad, step, diverged_at)

    start = (rows[moved], velocity, jnp.zeros((), dtype), jnp.full((), -1, first.dtype))
    with jax.default_matmul_precision("highest"):  # else an accelerator rounds float32 products to 10 bits
        trained, velocity, loss_sum, diverged_at = jax.lax.fori_loop(0, count, body, start)
    return Progress(rows.at[moved].set(trained), velocity, loss_sum, diverged_at)


_advance_one = eqx.filter_jit(_advance)
_advance_together = eqx.filter_jit(eqx.filter_vmap(_advance, in_axes=(None, None, None, 0, 0, 0, None, None)))


class SeedsInParallel:
    """Advances all seeds by some steps: one vmapped loop on an accelerator, one thread per core on a CPU.

    Both give every seed the numbers that it has alone. On a CPU threads win: XLA runs one small loop on one core.
    """

    def __init__(
        self,
        objective: AbstractObjective,
        *,
        seeds: Sequence[int],
        learning_rate: float,
        weight_decay: float,
        schedule: Callable | None,
        dtype: np.dtype,
        memory: float = 0.0,
    ) -> None:
        numbers = (jnp.asarray(x, dtype) for x in (learning_rate, memory, weight_decay))
        self._fixed = (objective, schedule, Rates(*numbers))
        self._keys = [seed_key(seed) for seed in seeds]
        self._threads = jax.default_backend() == "cpu"
        self._compiled = False

    def __call__(
        self, rows: Float[np.ndarray, "s P d"], velocity: Float[np.ndarray, "s p d"], first: int, count: int
    ) -> tuple[Float[np.ndarray, "s P d"], Float[np.ndarray, "s p d"], Float[np.ndarray, " s"], Int[np.ndarray, " s"]]:
        """`(rows, velocities, mean sample loss, first diverged step or -1)` of every seed after `count` more steps."""
        begin, steps = jnp.asarray(first, jnp.int32), jnp.asarray(count, jnp.int32)
        if not self._threads:
            arrays = (jnp.asarray(rows), jnp.asarray(velocity), jnp.stack(self._keys))
            out = _advance_together(*self._fixed, *arrays, begin, steps)
            loss = np.asarray(out.loss_sum) / max(count, 1)
            return np.asarray(out.rows), np.asarray(out.velocity), loss, np.asarray(out.diverged_at)

        def one(seed: tuple[np.ndarray, np.ndarray, Array], n: Array = steps) -> Progress:
            W, u, key = seed
            return jax.block_until_ready(_advance_one(*self._fixed, jnp.asarray(W), jnp.asarray(u), key, begin, n))

        each = list(zip(rows, velocity, self._keys, strict=True))
        if not self._compiled:  # once, with no steps, before the threads: else each of them would compile for itself
            one(each[0], jnp.zeros_like(steps))
            self._compiled = True
        with ThreadPoolExecutor(min(len(each), cores())) as pool:
            done = list(pool.map(one, each))
        return (
            np.stack([np.asarray(p.rows) for p in done]),
            np.stack([np.asarray(p.velocity) for p in done]),
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
