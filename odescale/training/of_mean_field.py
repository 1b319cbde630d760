"""Direct SGD of the real d-dimensional network behind a mean-field system: same rows, same start, same clock."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import stats

from odescale.clock import ConstantSchedule
from odescale.errors import InputError
from odescale.networks.teacher_student import TeacherStudent
from odescale.precision import resolve_dtype
from odescale.systems.mean_field import MeanField
from odescale.training.initial import measure_overlaps, rows_from_overlaps
from odescale.training.loop import check_seeds, choose_record_steps, require_positive, run_loop, session
from odescale.training.of_system import LARGEST_DIMENSION
from odescale.training.run import TrainingRun, clock_of
from odescale.training.sgd import AbstractObjective, SeedsInParallel

MEASURED = ("overlaps", "row_overlaps", "loss", "loss_stderr")


class MeanFieldObjective(AbstractObjective):
    """Mean over B sequences of l(f(x), f*(x)), x_t = Sigma^(1/2) xi rho^(1/2), labels drawn as the loss says."""

    problem: TeacherStudent
    deviations: Float[Array, " d"] | None
    dimension: int = eqx.field(static=True)
    batch: int = eqx.field(static=True)
    trace: float = eqx.field(static=True)

    @property
    def moved(self) -> np.ndarray:
        return self.problem.moved

    @property
    def scale(self) -> float:
        return self.trace

    def sample_loss(self, trained: Float[Array, "p d"], rows: Float[Array, "P d"], key: Array) -> Float[Array, ""]:
        rows = rows.at[self.moved].set(trained)
        first, second = jax.random.split(key)
        x = jax.random.normal(first, (self.batch, self.problem.tokens, self.dimension), rows.dtype)
        root = self.problem.token_root
        if not np.array_equal(root, np.eye(self.problem.tokens)):
            x = jnp.einsum("ts,bsd->btd", jnp.asarray(root, rows.dtype), x)
        if self.deviations is not None:
            x = x * self.deviations.astype(rows.dtype)
        normal = jax.random.normal(second, (self.batch, self.problem.label_normals), rows.dtype)
        return jnp.mean(jax.vmap(lambda x, z: self.problem.sample_loss(rows, x, z, self.trace))(x, normal))


def train_mean_field(
    system: MeanField,
    t1: float,
    *,
    seeds: int | Sequence[int] = 16,
    record_times: Float[np.ndarray, " n"] | None = None,
    records: int = 16,
    precision: str = "float32",
    checkpoint: str | os.PathLike | None = None,
    checkpoint_seconds: float = 60.0,
    resume: bool = True,
    progress: bool = True,
) -> TrainingRun:
    r"""u <- mu u + grad_W mean_B l, W <- W - eta s(t) u - (w/N) W on the real network of `system.problem`, up to time t1.

    One unit of t is N = tr Sigma SGD steps. With `friction` gamma: mu = 1 - gamma/N and step eta/N.

    **Arguments**

    - `system`: its problem, start, learning rate, batch, schedule, weight decay, momentum and spectrum are the run's; the
      flags `noise` and `write_back` are the theory's alone. Each bin's eigenvalue is repeated; up to 20 000 dimensions.
    - `t1` > 0; `record_times`: increasing, in (0, t1]; default `records` times log-spaced from t1/60.
    - `seeds`: how many, or which; the start meets the theory's overlaps exactly for every seed (`rows_from_overlaps`).
    - `precision`, `checkpoint`, `resume`, `progress`: as in `odescale.train`.

    **Returns** a `TrainingRun`: `loss` is the excess population loss at the measured overlaps, by the system's own closure
    (the d -> infinity loss of these rows), `loss_stderr` the standard error of that quadrature.
    **Errors**: `InputError` before anything is compiled; `SolveError` when a seed diverges.
    """
    require_positive("t1", t1)
    system.check()
    if float(system.batch) != int(system.batch):
        raise InputError("batch", expected="a whole number of sequences", got=float(system.batch), remedy="batch=4")
    dtype = resolve_dtype(precision, "train_mean_field")
    seed_list = check_seeds(range(seeds) if isinstance(seeds, int) else seeds)
    lam, bins = _spectrum(system)
    times = np.geomspace(t1 / 60, t1, records) if record_times is None else record_times
    steps = choose_record_steps(None, t1, times, system.trace)
    overlaps = np.asarray(system.initial_overlaps)
    where: dict[str, Any] = {"dimension": lam.size} if bins is None else {"eigenvalues": lam, "bins": bins}
    start = np.stack([rows_from_overlaps(overlaps, **where, seed=seed) for seed in seed_list]).astype(dtype)
    constant = isinstance(system.schedule, ConstantSchedule)
    friction = float(system.friction)
    memory = 1 - friction / system.trace if system.inertial else float(system.momentum)
    step_size = float(system.learning_rate) / (system.trace if system.inertial else 1.0)
    config = _configuration(system, lam, steps, seed_list, precision, None if constant else system.schedule)
    objective = MeanFieldObjective(
        problem=system.problem,
        deviations=None if bins is None else jnp.asarray(np.sqrt(lam)),
        dimension=lam.size,
        batch=int(system.batch),
        trace=system.trace,
    )
    advance = SeedsInParallel(
        objective,
        seeds=seed_list,
        learning_rate=step_size,
        weight_decay=float(system.weight_decay),
        schedule=None if constant else system.schedule,
        dtype=dtype,
        memory=memory,
    )
    spectrum = None if bins is None else lam

    def measure(rows: np.ndarray, step: int) -> dict[str, np.ndarray]:
        C, R = measure_overlaps(rows, spectrum)
        loss, error = population_loss(system, C, R)
        return {"overlaps": C, "row_overlaps": R, "loss": loss, "loss_stderr": error}

    done = run_loop(
        advance, measure, start, moved=system.problem.moved.size, names=MEASURED, seeds=seed_list, record_steps=steps,
        scale=system.trace, config=config, checkpoint=checkpoint, checkpoint_seconds=checkpoint_seconds, resume=resume,
        progress=progress, callback=None,
    )  # fmt: skip
    return TrainingRun(
        step=steps,
        t=steps / system.trace,
        seeds=np.asarray(seed_list),
        **done.records,
        loss_infinite=None,
        rows=done.rows,
        clock=clock_of(config, None if constant else system.schedule),
        config=config,
        meta=session(done),
    )


@eqx.filter_jit
def _losses(system: MeanField, C: Float[Array, "s P P"], R: Float[Array, "s P P"]) -> Float[Array, "s r"]:
    return jax.lax.map(lambda pair: system.population_loss(*pair), (C, R))


def population_loss(
    system: MeanField, C: Float[np.ndarray, "s P P"], R: Float[np.ndarray, "s P P"]
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"]]:
    """(excess loss, standard error of the quadrature) of each seed at its measured overlaps."""
    values = np.asarray(_losses(system, jnp.asarray(C), jnp.asarray(R)))
    mean, half = (np.asarray(x) for x in system.estimate(jnp.asarray(values.T)))
    R = values.shape[1]
    return mean, half / (stats.t.ppf(0.975, R - 1) if R > 2 else 2.0)


def _spectrum(system: MeanField) -> tuple[np.ndarray, np.ndarray | None]:
    multiplicity = np.asarray(system.weights) * system.trace
    counts = np.rint(multiplicity).astype(int)
    if np.abs(counts - multiplicity).max() > 1e-6 * counts.max() or counts.sum() > LARGEST_DIMENSION:
        raise InputError(
            "spectrum", expected=f"at most {LARGEST_DIMENSION} whole eigenvalues in a real run",
            got=f"{multiplicity.sum():.6g}", remedy="use fewer modes",
        )  # fmt: skip
    if counts.size == 1:
        return np.ones(counts[0]), None
    bins = np.repeat(np.arange(counts.size), counts)
    return np.asarray(system.eigenvalues)[bins], bins


def _configuration(
    system: MeanField, lam: np.ndarray, steps: np.ndarray, seeds: list[int], precision: str, schedule: Any
) -> dict[str, Any]:
    """Everything that decides the numbers, as plain JSON types; a callable block is known by its printed form."""
    samples = None
    if schedule is not None:
        times = np.linspace(0.0, steps[-1] / system.trace, 513)
        samples = {"t": times.tolist(), "s": np.asarray(jax.vmap(schedule)(jnp.asarray(times)), dtype=float).tolist()}
    numbers = ("learning_rate", "batch", "weight_decay", "momentum", "friction")
    return {
        "problem": repr(system.problem),
        "initial_overlaps": np.asarray(system.initial_overlaps).tolist(),
        "dimension": int(lam.size),
        "scale": system.trace,
        "tokens": system.problem.tokens,
        "eigenvalues": lam.tolist() if np.ptp(lam) > 0 else None,
        "record_steps": steps.tolist(),
        "seeds": seeds,
        "precision": precision,
        "schedule": samples,
    } | {name: float(getattr(system, name)) for name in numbers}
