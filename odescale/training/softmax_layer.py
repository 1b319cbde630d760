r"""Online SGD of the real softmax layer that `Peaked` predicts: same classes, labels, start, schedules and clock.

W <- W - (eta s(t)/sqrt d) mean_B beta g(beta lam, y) x^T - (w/N) W,    lam = W x/sqrt d,  x ~ N(0, I_d) fresh every step
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odescale.clock import Clock, ConstantSchedule
from odescale.errors import InputError
from odescale.networks.softmax_layer import SoftmaxHead
from odescale.precision import resolve_dtype
from odescale.systems.peaked import Peaked
from odescale.training.checkpoint import read_arrays, write_arrays
from odescale.training.loop import check_seeds, choose_record_steps, run_loop, session
from odescale.training.run import clock_of
from odescale.training.sgd import DIVERGED, cores, seed_key
from odescale.training.softmax_population import FieldNodes

MEASURED = ("overlap", "spread", "loss", "loss_stderr", "error", "error_stderr", "asymmetry")
ARRAYS = ("step", "t", "seeds", *MEASURED, "rows")
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Decay of Adam's two moments and the number added to its square root: the defaults of the common implementations."""
BLOCK = 65_536
"""Numbers that one call of the generator draws: a single step's thousand would cost three times as much each."""
LARGEST_BATCH = 200_000_000
"""Numbers in one minibatch, batch times dimension, that are held at once."""


class LayerStep(eqx.Module):
    """One step of SGD, Adam or normalised gradient descent on rows W of K logits, with the scalars that it needs."""

    head: SoftmaxHead
    learning_rate: Float[Array, ""]
    decay: Float[Array, ""]
    schedule: Callable | None
    logit_schedule: Callable | None
    steps_per_unit: float = eqx.field(static=True)
    batch: int = eqx.field(static=True)
    optimizer: Literal["sgd", "adam", "normalised"] = eqx.field(static=True)

    def __call__(
        self,
        rows: Float[Array, "K d"],
        moments: Float[Array, "m d"],
        teacher: Float[Array, "K d"],
        x: Float[Array, "B d"],
        gumbel: Float[Array, "B K"] | None,
        step: Int[Array, ""],
    ) -> tuple[Float[Array, "K d"], Float[Array, "m d"], Float[Array, ""]]:
        """(rows, moments, mean loss of the batch before the step)."""
        K, d = rows.shape
        dtype, root = rows.dtype, d**0.5
        t = step.astype(dtype) / self.steps_per_unit

        def at(schedule: Callable | None) -> Array | float:
            return 1.0 if schedule is None else jnp.asarray(schedule(t), dtype)

        beta, rate = at(self.logit_schedule), self.learning_rate * at(self.schedule)
        fields = x @ jnp.concatenate([rows, teacher]).T / root
        loss, g = self.head.value_and_gradient(beta * fields[:, :K], self.head.target(fields[:, K:], gumbel))
        gradient = beta * g.T @ x / self.batch  # by the weights of logits that are plain inner products, W/sqrt d
        if self.optimizer == "adam":
            first = BETAS[0] * moments[:K] + (1 - BETAS[0]) * gradient
            second = BETAS[1] * moments[K:] + (1 - BETAS[1]) * gradient**2
            moments, count = jnp.concatenate([first, second]), step.astype(dtype) + 1
            first, second = first / (1 - BETAS[0] ** count), second / (1 - BETAS[1] ** count)
            move = root * rate * first / (jnp.sqrt(second) + EPSILON)
        elif self.optimizer == "normalised":
            norm = jnp.sqrt(jnp.sum(gradient**2))
            move = rate / root * gradient / jnp.where(norm > 0, norm, 1.0)
        else:
            move = rate / root * gradient
        return rows - move - (self.decay / self.steps_per_unit) * rows, moments, jnp.mean(loss)


class _Progress(NamedTuple):
    rows: Float[Array, "P d"]
    moments: Float[Array, "m d"]
    loss_sum: Float[Array, ""]
    diverged_at: Int[Array, ""]


def _advance(
    update: LayerStep, rows: Float[Array, "P d"], moments: Float[Array, "m d"], key: Array, first: Array, count: Array
) -> _Progress:
    """`count` steps from `first`; `rows` are the student's K and the teacher's K.

    Steps share a draw by blocks of fixed length, counted from step 0: how steps are cut into calls changes nothing.
    """
    d, dtype, B = rows.shape[1], rows.dtype, update.batch
    K = rows.shape[0] // 2
    teacher = rows[K:]
    length = max(1, min(64, BLOCK // (B * d)))
    sampled = update.head.labels == "sampled"

    def block(number: Array, carry: tuple) -> tuple:
        inputs, labels = jax.random.split(jax.random.fold_in(key, number))
        x = jax.random.normal(inputs, (length, B, d), dtype)
        gumbel = jax.random.gumbel(labels, (length, B, K), dtype) if sampled else None

        def body(place: Array, carry: tuple) -> tuple:
            student, moments, loss_sum, diverged_at = carry
            step = number * length + place
            noise = None if gumbel is None else gumbel[place]
            student, moments, loss = update(student, moments, teacher, x[place], noise, step)
            bad = (diverged_at < 0) & ~(loss < DIVERGED)  # written so that NaN counts as diverged
            return student, moments, loss_sum + loss, jnp.where(bad, step, diverged_at)

        begin = jnp.maximum(first - number * length, 0)
        end = jnp.minimum(first + count - number * length, length)
        return jax.lax.fori_loop(begin, end, body, carry)

    start = (rows[:K], moments, jnp.zeros((), dtype), jnp.full((), -1, first.dtype))
    with jax.default_matmul_precision("highest"):  # else an accelerator rounds float32 products to 10 bits
        blocks = (first // length, (first + count + length - 1) // length)
        student, moments, loss_sum, diverged_at = jax.lax.fori_loop(*blocks, block, start)
    return _Progress(rows.at[:K].set(student), moments, loss_sum, diverged_at)


_advance_one = eqx.filter_jit(_advance)
_advance_together = eqx.filter_jit(eqx.filter_vmap(_advance, in_axes=(None, 0, 0, 0, None, None)))


class LayersInParallel:
    """Advances all seeds by some steps: one vmapped loop on an accelerator, one thread per core on a CPU."""

    def __init__(self, update: LayerStep, seeds: Sequence[int]) -> None:
        self._update = update
        self._keys = [seed_key(seed) for seed in seeds]
        self._threads = jax.default_backend() == "cpu"
        self._compiled = False

    def __call__(
        self, rows: Float[np.ndarray, "s P d"], moments: Float[np.ndarray, "s m d"], first: int, count: int
    ) -> tuple[Float[np.ndarray, "s P d"], Float[np.ndarray, "s m d"], Float[np.ndarray, " s"], Int[np.ndarray, " s"]]:
        """`(rows, moments, mean sample loss, first diverged step or -1)` of every seed after `count` more steps."""
        begin, steps = jnp.asarray(first, jnp.int32), jnp.asarray(count, jnp.int32)
        if not self._threads:
            arrays = (jnp.asarray(rows), jnp.asarray(moments), jnp.stack(self._keys))
            out = _advance_together(self._update, *arrays, begin, steps)
            return (
                np.asarray(out.rows), np.asarray(out.moments), np.asarray(out.loss_sum) / max(count, 1),
                np.asarray(out.diverged_at),
            )  # fmt: skip

        def one(seed: tuple[np.ndarray, np.ndarray, Array], n: Array = steps) -> _Progress:
            W, u, key = seed
            return jax.block_until_ready(_advance_one(self._update, jnp.asarray(W), jnp.asarray(u), key, begin, n))

        each = list(zip(rows, moments, self._keys, strict=True))
        if not self._compiled:  # once, with no steps, before the threads: else each of them would compile for itself
            one(each[0], jnp.zeros_like(steps))
            self._compiled = True
        with ThreadPoolExecutor(min(len(each), cores())) as pool:
            done = list(pool.map(one, each))
        return (
            np.stack([np.asarray(p.rows) for p in done]),
            np.stack([np.asarray(p.moments) for p in done]),
            np.array([float(p.loss_sum) for p in done]) / max(count, 1),
            np.array([int(p.diverged_at) for p in done]),
        )


class PeakedRun(eqx.Module):
    r"""Seeds s, record times n of a real softmax layer.

    - `step`, `t` (n,): SGD steps and t = step/N, N = `clock.steps_per_unit` (d; 1 for Adam). `seeds` (s,).
    - `overlap`, `spread` (s, n): D = tr(P R)/(K-1) and Delta = tr(P Q)/(K-1) - D^2 with R = W W*^T/d, Q = W W^T/d, in float64.
    - `loss` (s, n): excess cross-entropy of softmax(beta lam) at the measured overlaps (KL to the teacher for soft and
      sampled labels), whatever loss was trained; `error` (s, n): P(argmax lam != argmax lam*). `loss_stderr`, `error_stderr`:
      standard errors of their nodes, common to all seeds and times.
    - `asymmetry` (s, n): |P R P - D P|_F/|D P|_F, how far from the class symmetry that the theory assumes (nan at D = 0).
    - `rows` (s, 2 K, d): final W and W*. `config`: what was trained; `meta`: machine, versions, seconds.
    """

    step: Int[np.ndarray, " n"]
    t: Float[np.ndarray, " n"]
    seeds: Int[np.ndarray, " s"]
    overlap: Float[np.ndarray, "s n"]
    spread: Float[np.ndarray, "s n"]
    loss: Float[np.ndarray, "s n"]
    loss_stderr: Float[np.ndarray, "s n"]
    error: Float[np.ndarray, "s n"]
    error_stderr: Float[np.ndarray, "s n"]
    asymmetry: Float[np.ndarray, "s n"]
    rows: Float[np.ndarray, "s P d"]
    clock: Clock
    config: dict[str, Any] = eqx.field(static=True)
    meta: dict[str, Any] = eqx.field(static=True)

    def __check_init__(self) -> None:
        shape = (len(self.seeds), len(self.step))
        for name in MEASURED:
            if getattr(self, name).shape != shape:
                raise InputError(
                    name, expected=f"shape {shape}", got=getattr(self, name).shape, remedy="(seeds, times)"
                )

    def mean(self, name: str) -> Float[np.ndarray, " n"]:
        """Mean over seeds of "overlap", "spread", "loss" or "error"."""
        return getattr(self, name).mean(axis=0)

    def stderr(self, name: str) -> Float[np.ndarray, " n"]:
        """Standard error of `mean`: the scatter of the seeds and, for loss and error, of the common nodes; 2 or more seeds."""
        if len(self.seeds) < 2:
            raise InputError(
                "seeds", expected="at least two for a spread", got=len(self.seeds), remedy="train more seeds"
            )
        scatter = getattr(self, name).std(axis=0, ddof=1) / np.sqrt(len(self.seeds))
        if name not in ("loss", "error"):
            return scatter
        return np.hypot(scatter, getattr(self, f"{name}_stderr").mean(axis=0))

    def save(self, path: str | os.PathLike) -> Path:
        """One npz with all arrays and a JSON header, written atomically."""
        arrays = {name: np.asarray(getattr(self, name)) for name in ARRAYS}
        return write_arrays(path, "softmax layer run", arrays, {"config": self.config, "meta": self.meta})

    @classmethod
    def load(cls, path: str | os.PathLike) -> PeakedRun:
        """Reads what `save` wrote; `CheckpointError` for a file that is missing, cut short or altered."""
        arrays, header = read_arrays(path, "softmax layer run", "path", "train again, or check the path")
        return cls(**arrays, clock=clock_of(header["config"]), config=header["config"], meta=header["meta"])  # type: ignore[arg-type]


def layer_start(
    classes: int, dimension: int, overlap: float, spread: float, seed: int
) -> tuple[Float[np.ndarray, "K d"], Float[np.ndarray, "K d"]]:
    """(W, W*) with W* W*^T/d = I, P R = D P and P Q = (D^2 + Delta) P exactly; rows of W sum to zero. Haar-random."""
    K, d = classes, dimension
    random = np.random.default_rng([seed, 0x50F73A])
    directions, triangle = np.linalg.qr(random.normal(size=(d, 2 * K)))
    basis = np.sqrt(d) * (directions * np.sign(np.diag(triangle))).T
    W = overlap * basis[:K] + np.sqrt(spread) * basis[K:]
    return W - W.mean(axis=0), basis[:K]


def train_peaked(
    system: Peaked,
    t1: float,
    *,
    seeds: int | Sequence[int] = 8,
    record_times: Sequence[float] | Float[np.ndarray, " n"] | None = None,
    records: int = 16,
    precision: str = "float32",
    nodes: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_seconds: float = 60.0,
    resume: bool = True,
    progress: bool = True,
) -> PeakedRun:
    r"""W <- W - (eta s(t)/sqrt d) M - (w/N) W, M = mean_B beta(t) g(beta(t) lam, y) x^T, lam = W x/sqrt d, up to time t1.

    One unit of t is N SGD steps: N = d for "sgd" and "normalised", 1 for "adam".

        normalised: M/|M|_F instead of M         adam: W <- W - sqrt(d) lr s(t) m^/(sqrt v^ + 1e-8), moments of M, .9 and .999

    **Arguments**

    - `system`: a `Peaked`; classes, labels, b*, learning rate, batch, optimizer, weight decay, label smoothing, loss, both
      schedules, dimension d >= 2 K and the start D(0), Delta(0) are the run's. Its `noise` is the theory's alone.
    - `t1` > 0. `record_times`: times in [0, t1]; default `records` times log-spaced from t1/60.
    - `seeds`: how many (0, 1, ...), or which; they rotate the teacher and draw the inputs.
    - `precision`: of inputs and weights; overlaps, losses and errors are float64 always. `nodes`: per scramble, for these.
    - `checkpoint`: path of an npz, written atomically at every record and every `checkpoint_seconds`; with `resume` a
      run found there goes on, to the same numbers bit for bit on the same machine. `progress`: a bar on a terminal.

    **Returns** a `PeakedRun`. **Errors**: `InputError` for a system without a real run (d < 2 K, a fractional batch),
    before anything is compiled; `CheckpointError`; `SolveError` naming seed and step when a seed diverges.
    **Good values**: d = 1000, K = 3, eta = 1, t1 = 80 (80 000 steps), 8 seeds: ten seconds on two cores. **Failure regime**:
    a finite d shifts D, Delta and losses by O(K/d). float32 is enough while a row grows by more than 1e-7 of itself in d
    steps. Source: the model of `Peaked`.
    """
    system.check()
    dtype = resolve_dtype(precision, "train_peaked")
    K, d, batch = _whole("classes", system.classes, 2), _whole("dimension", system.dimension, 1), _batch(system)
    if d < 2 * K:
        raise InputError(
            "dimension", expected=f"at least 2 K = {2 * K}: orthonormal rows for teacher and student", got=d,
            remedy="raise it",
        )  # fmt: skip
    if not (np.isfinite(t1) and t1 > 0):
        raise InputError("t1", expected="a positive finite time", got=t1, remedy="one unit is d SGD steps (Adam: one)")
    seed_list = check_seeds(range(seeds) if isinstance(seeds, int) else seeds)
    scale = float(system.clock.steps_per_unit)
    times = np.geomspace(t1 / 60, t1, records) if record_times is None else record_times
    steps = choose_record_steps(None, t1, times, scale)
    config = _configuration(system, steps, seed_list, precision, nodes)
    start = [layer_start(K, d, float(system.overlap), float(system.spread), seed) for seed in seed_list]
    rows = np.stack([np.concatenate(pair) for pair in start]).astype(dtype)
    update = _step_of(system, batch, dtype)
    sample = FieldNodes(K, nodes=nodes)
    done = run_loop(
        cast(Any, LayersInParallel(update, seed_list)), lambda rows, step: _measure(system, sample, rows, step / scale), rows,
        moved=2 * K if system.optimizer == "adam" else 0, names=MEASURED, seeds=seed_list, record_steps=steps, scale=scale,
        config=config, checkpoint=checkpoint, checkpoint_seconds=checkpoint_seconds, resume=resume, progress=progress,
        callback=None,
    )  # fmt: skip
    return PeakedRun(
        step=steps, t=steps / scale, seeds=np.asarray(seed_list), **done.records, rows=done.rows,
        clock=clock_of(config, None if _constant(system.schedule) else system.schedule), config=config, meta=session(done),
    )  # fmt: skip


def _step_of(system: Peaked, batch: int, dtype: np.dtype) -> LayerStep:
    head = SoftmaxHead(
        jnp.asarray(system.inverse_temperature, dtype), jnp.asarray(system.smoothing, dtype),
        jnp.asarray(system.focusing, dtype), labels=cast(Any, system.labels), loss=cast(Any, system.loss),
    )  # fmt: skip
    return LayerStep(
        head, jnp.asarray(system.learning_rate, dtype), jnp.asarray(system.weight_decay, dtype),
        None if _constant(system.schedule) else system.schedule,
        None if _constant(system.logit_schedule) else system.logit_schedule,
        float(system.clock.steps_per_unit), batch, cast(Any, system.optimizer),
    )  # fmt: skip


def _measure(
    system: Peaked, sample: FieldNodes, rows: Float[np.ndarray, "s P d"], t: float
) -> dict[str, Float[np.ndarray, " s"]]:
    W = np.asarray(rows, float)
    K, d = W.shape[1] // 2, W.shape[2]
    beta = 1.0 if _constant(system.logit_schedule) else float(system.logit_schedule(jnp.asarray(t)))
    soft = system.labels != "hard"
    P = np.eye(K) - 1 / K

    def one(pair: Float[np.ndarray, "P d"]) -> tuple[float, ...]:
        student, teacher = pair[:K], pair[K:]
        R, Q = student @ teacher.T / d, student @ student.T / d
        D = np.trace(P @ R) / (K - 1)
        spread = np.trace(P @ Q) / (K - 1) - D**2
        found = sample.population(
            R, Q, soft=soft, inverse_temperature=float(system.inverse_temperature), scale=beta
        )  # fmt: skip
        off = np.linalg.norm(P @ R @ P - D * P) / (abs(D) * np.sqrt(K - 1)) if D != 0 else np.nan
        return (D, spread, found.loss, found.loss_stderr, found.error, found.error_stderr, off)

    values = np.array([one(pair) for pair in W])
    return dict(zip(MEASURED, values.T, strict=True))


def _constant(schedule: Any) -> bool:
    return schedule is None or isinstance(schedule, ConstantSchedule)


def _batch(system: Peaked) -> int:
    batch = _whole("batch", system.batch, 1)
    largest = LARGEST_BATCH // int(system.dimension)
    if batch > largest:
        raise InputError("batch", expected=f"at most {largest} in a real run", got=batch, remedy="lower d or B")
    return batch


def _whole(name: str, value: Any, least: int) -> int:
    number = float(value)
    if not np.isfinite(number) or number != int(number) or number < least:
        raise InputError(name, expected=f"a whole number >= {least} in a real run", got=number, remedy="round it")
    return int(number)


def _configuration(
    system: Peaked, steps: Int[np.ndarray, " n"], seeds: list[int], precision: str, nodes: int | None
) -> dict[str, Any]:
    """Everything that decides the numbers, as plain JSON types; schedules by 513 samples."""
    scale = float(system.clock.steps_per_unit)
    times = np.linspace(0.0, steps[-1] / scale, 513)

    def samples(schedule: Any) -> dict[str, list[float]] | None:
        if _constant(schedule):
            return None
        values = np.asarray([float(schedule(jnp.asarray(t))) for t in times])
        return {"t": times.tolist(), "s": values.tolist()}

    numbers = ("learning_rate", "weight_decay", "overlap", "spread", "smoothing", "focusing", "inverse_temperature")
    return {
        "theory": "peaked",
        "classes": int(system.classes),
        "dimension": int(system.dimension),
        "labels": system.labels,
        "loss": system.loss,
        "optimizer": system.optimizer,
        "batch": int(system.batch),
        "scale": scale,
        "tokens": 0,
        "record_steps": steps.tolist(),
        "seeds": seeds,
        "precision": precision,
        "nodes": nodes,
        "schedule": samples(system.schedule),
        "logit_schedule": samples(system.logit_schedule),
    } | {name: float(getattr(system, name)) for name in numbers}
