r"""SGD on the real transformer behind an `Attention` system: same rows, same start, same clock, d and T finite.

W <- W - eta s(t) grad_W [mean over B of 1/2 sum_i (f_i - f*_i)^2] - (w/N) W,   fresh Gaussian tokens every step
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Real

from odescale.cache.aside import Aside
from odescale.clock import Clock, Schedule
from odescale.errors import InputError, require_number, whole
from odescale.expectations.finite_context import finite_context_loss
from odescale.networks.architecture import Architecture
from odescale.networks.infinite import infinite_loss
from odescale.networks.transformer import Transformer
from odescale.systems.attention import Attention
from odescale.training.experiment import as_schedule
from odescale.training.initial import measure_overlaps, rows_from_overlaps
from odescale.training.rows import AbstractRowSgd, OptimizerRates, RowRates, RowState, bins_of_modes, rates_of
from odescale.training.runner import over_seeds, seed_key
from odescale.training.task import TeacherTask


class AttentionExperiment(AbstractRowSgd):
    """1/(2B) sum over the batch of sum_i (f_i - f*_i)^2 at the query of a `Transformer`, on tokens of a `TeacherTask`.

    Records: `overlaps` C = A Sigma A^T/N and `row_overlaps` R = A A^T/N (s, n, P, P); `loss` of the finite-context network at
    those overlaps and `loss_stderr`, its Monte Carlo error from the seed's own `test_sequences`; `loss_infinite`: L(C) of the
    infinite-context theory there. One unit of t is N = tr Sigma steps.
    """

    architecture: Architecture
    task: TeacherTask
    rates: RowRates | OptimizerRates
    schedule: Schedule
    start_at: Aside[tuple[np.ndarray, np.ndarray | None]]
    test_sequences: int = eqx.field(static=True)
    label: str = eqx.field(static=True)

    subject: ClassVar[str] = "attention"

    @property
    def clock(self) -> Clock:
        return Clock(self.task.scale, self.rates.step, self.schedule, float(self.task.batch), float(self.task.tokens))

    @property
    def moved(self) -> np.ndarray:
        return np.flatnonzero(self.architecture.trained_mask)

    @property
    def eigenvalues(self) -> Float[np.ndarray, " d"] | None:
        """(d,) spectrum of the tokens, None for isotropic ones."""
        return None if self.task.deviations is None else self.task.eigenvalues

    def config(self, t1: float) -> dict[str, Any]:
        def heads(network: Any) -> list:
            return [[[h.query, h.key, h.value, h.output] for h in layer] for layer in network.layers]

        architecture, (overlaps, bins) = self.architecture, self.start_at.value
        return {
            "label": self.label,
            "rows": list(architecture.rows),
            "trained": list(architecture.trained),
            "student": {"layers": heads(architecture.student), "readouts": list(architecture.student.readouts)},
            "teacher": {"layers": heads(architecture.teacher), "readouts": list(architecture.teacher.readouts)},
            "initial_overlaps": overlaps.tolist(),
            "dimension": self.task.dimension,
            "tokens": self.task.tokens,
            "weight_decay": float(self.rates.decay) if isinstance(self.rates, RowRates) else 0.0,
            "optimizers": self.rates.words() if isinstance(self.rates, OptimizerRates) else None,
            "eigenvalues": None if self.eigenvalues is None else self.eigenvalues.tolist(),
            "bins": None if bins is None else bins.tolist(),
            "test_sequences": self.test_sequences,
        }

    def start(self, seed: int) -> RowState:
        overlaps, bins = self.start_at.value
        return self.begin(
            rows_from_overlaps(
                overlaps, dimension=self.task.dimension, eigenvalues=self.eigenvalues, bins=bins, seed=seed
            )
        )

    def sample_loss(self, trained: Float[Array, "p d"], rows: Float[Array, "P d"], key: Array) -> Float[Array, ""]:
        tokens, labels = self.task.sample_batch(key, rows)
        student = Transformer.from_rows(self.architecture.student, rows.at[self.moved].set(trained), self.task.scale)
        errors = jax.vmap(student)(tokens) - labels
        return 0.5 * jnp.mean(jnp.sum(errors**2, axis=-1))

    def measure(self, states: list[RowState], seeds: list[int], step: int) -> dict[str, np.ndarray]:
        C, R = measure_overlaps(self.table(states), self.eigenvalues)

        def test_loss(i: int) -> tuple[float, float]:
            # A stream of its own, apart from all training tokens (steps stay below 2^31).
            key = jax.random.fold_in(jax.random.fold_in(seed_key(seeds[i]), 2**32 - 1), step)
            return finite_context_loss(
                self.architecture, C[i], R[i], self.task.tokens, key, self.test_sequences, precision="float32"
            )

        losses = np.array(over_seeds(test_loss, len(seeds)))
        infinite = [float(infinite_loss(C[i], R[i], self.architecture)) for i in range(len(seeds))]  # type: ignore[arg-type]
        return {
            "loss": losses[:, 0],
            "loss_stderr": losses[:, 1],
            "loss_infinite": np.array(infinite),
            "overlaps": C,
            "row_overlaps": R,
        }


def attention_experiment(
    architecture: Architecture,
    initial_overlaps: Real[ArrayLike, "*bins P P"],
    *,
    tokens: int,
    batch: int,
    learning_rate: float,
    dimension: int | None = None,
    eigenvalues: Float[np.ndarray, " d"] | None = None,
    bins: Int[np.ndarray, " d"] | None = None,
    schedule: Schedule | str | None = None,
    weight_decay: float = 0.0,
    test_sequences: int = 4096,
    label: str = "attention",
    rates: RowRates | OptimizerRates | None = None,
) -> AttentionExperiment:
    r"""W <- W - eta s(t) grad_W [mean over B of 1/2 sum_i (f_i - f*_i)^2] - (w/N) W of any student and teacher, for `train`.

    One unit of t is N = tr Sigma SGD steps: d steps for isotropic tokens, one step when `eigenvalues` sum to 1.

    **Arguments**

    - `architecture`: student, teacher and which rows move. `initial_overlaps`: `(P, P)` or `(bins, P, P)`, met exactly at every
      d >= rank by `rows_from_overlaps` (also for `eigenvalues`, `bins`); each seed rotates them differently.
    - `tokens`: T context tokens of the query. `batch`: B sequences per step. `dimension`: d.
    - `learning_rate`: plain eta on the mean sample loss. `schedule`: JAX-traceable s(t), its text, None for constant.
      `rates`: an optimiser's in their place.
      `weight_decay`: w, pulls a row to zero at rate w per unit of t. `test_sequences`: of the test loss at each record.

    **Errors**: `InputError` naming the argument. **Failure regime**: finite d and T shift the run by O(1/d) and O(1/T).
    """
    task = TeacherTask(architecture.teacher, tokens=tokens, batch=batch, dimension=dimension, eigenvalues=eigenvalues)
    overlaps = np.asarray(initial_overlaps, dtype=float)
    if overlaps.ndim < 2 or overlaps.shape[-1] != architecture.size:
        raise InputError(
            "initial_overlaps", expected=f"P = {architecture.size} rows", got=overlaps.shape, remedy="match the rows"
        )
    return AttentionExperiment(
        architecture=architecture,
        task=task,
        rates=rates
        or RowRates(
            require_number("learning_rate", learning_rate, open_=True),
            0.0,
            require_number("weight_decay", weight_decay),
        ),
        schedule=as_schedule(schedule),
        start_at=Aside((overlaps, None if bins is None else np.asarray(bins))),
        test_sequences=whole("test_sequences", test_sequences, 2, remedy="4096 is a good value"),
        label=label,
    )


def experiment(system: Attention, *, test_sequences: int = 4096) -> AttentionExperiment:
    """The finite network of a system; a spectrum is trained with each bin's eigenvalue repeated, up to 20 000 dimensions."""
    lam, bins = bins_of_modes(system.eigenvalues, system.weights, system.trace)
    where: dict[str, Any] = {"dimension": lam.size} if bins is None else {"eigenvalues": lam, "bins": bins}
    return attention_experiment(
        system.architecture,
        np.asarray(system.initial_overlaps),
        tokens=whole("tokens", system.tokens, remedy="tokens=64"),
        batch=whole("batch", system.batch, remedy="batch=4"),
        learning_rate=float(system.learning_rate),
        weight_decay=float(system.weight_decay),
        schedule=system.schedule,
        test_sequences=test_sequences,
        label=system.label,
        rates=None if system.optimizers is None else rates_of(system.optimizers, system.learning_rate),
        **where,
    )
