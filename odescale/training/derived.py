r"""SGD on the real rows behind a theory that was derived from a sample loss of their local fields.

W <- W - eta s(t) grad_W mean_B l(W x/sqrt N) - (w/N) W,    x ~ N(0, Sigma) fresh every step
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.cache.aside import Aside
from odescale.clock import Clock, Schedule
from odescale.errors import whole
from odescale.systems.derived import Derived, functions_of
from odescale.training.initial import measure_overlaps, rows_from_overlaps
from odescale.training.rows import AbstractRowSgd, RowRates, RowState, bins_of_modes


class DerivedExperiment(AbstractRowSgd):
    """Mean over B samples of l(phi), phi = W x/sqrt N: automatic differentiation of the sample loss, nothing of its closure.

    Records: `overlaps` C (s, n, P, P), measured in float64; `loss`: L(C) - floor of the theory's closed form at the run's own
    overlaps. One unit of t is N = tr Sigma steps.
    """

    system: Aside[Derived]
    schedule: Schedule
    rates: RowRates
    deviations: Float[Array, " d"] | None
    constants: dict[str, Float[Array, ""]]
    spectrum: Aside[tuple[np.ndarray, np.ndarray | None]]
    source: str = eqx.field(static=True)
    students: int = eqx.field(static=True)
    trace: float = eqx.field(static=True)
    batch: int = eqx.field(static=True)

    subject: ClassVar[str] = "derived"

    @property
    def clock(self) -> Clock:
        return Clock(self.trace, self.system.value.learning_rate, self.schedule, float(self.batch), 0.0)

    @property
    def moved(self) -> np.ndarray:
        return np.arange(self.students)

    def config(self, t1: float) -> dict[str, Any]:
        system = self.system.value
        # `noise` is the theory's alone.
        numbers = {name: value for name, value in system.summary().items() if name != "noise"}
        return numbers | {
            "label": system.label,
            "theory": hashlib.sha256(system.source.encode()).hexdigest(),
            "constants": {name: float(value) for name, value in system.constants.items()},
            "initial_overlaps": np.asarray(system.initial_overlaps).tolist(),
            "dimension": int(self.spectrum.value[0].size),
            "tokens": 0,
            "eigenvalues": np.asarray(system.eigenvalues).tolist(),
        }

    def start(self, seed: int) -> RowState:
        overlaps, (lam, bins) = np.asarray(self.system.value.initial_overlaps), self.spectrum.value
        where: dict[str, Any] = {"dimension": lam.size} if bins is None else {"eigenvalues": lam, "bins": bins}
        return self.begin(rows_from_overlaps(overlaps if bins is not None else overlaps[0], **where, seed=seed))

    def sample_loss(self, trained: Float[Array, "p d"], rows: Float[Array, "P d"], key: Array) -> Float[Array, ""]:
        W = rows.at[self.moved].set(trained)
        x = jax.random.normal(key, (self.batch, rows.shape[1]), rows.dtype)
        if self.deviations is not None:
            x = x * self.deviations.astype(rows.dtype)
        loss = functions_of(self.source)["sample_loss"]
        values = jax.vmap(lambda phi: loss(phi, **self.constants))(x @ W.T / self.trace**0.5)
        return jnp.mean(values).astype(rows.dtype)

    def measure(self, states: list[RowState], seeds: list[int], step: int) -> dict[str, np.ndarray]:
        system, (lam, bins) = self.system.value, self.spectrum.value
        C, _ = measure_overlaps(self.table(states), None if bins is None else lam)
        return {"overlaps": C, "loss": np.asarray([float(system.loss_at(jnp.asarray(one))) for one in C])}


def experiment(system: Derived) -> DerivedExperiment:
    """The experiment behind a derived system: its rows in `trace` dimensions (or one per eigenvalue), its sample loss."""
    lam, bins = bins_of_modes(system.eigenvalues, system.weights, system.trace)
    return DerivedExperiment(
        system=Aside(system),
        schedule=system.schedule,
        rates=RowRates(system.learning_rate, 0.0, system.weight_decay),  # type: ignore[arg-type]
        deviations=None if bins is None else jnp.asarray(np.sqrt(lam)),
        spectrum=Aside((lam, bins)),
        constants=system.constants,
        source=system.source,
        students=system.students,
        trace=system.trace,
        batch=whole("batch", system.batch),
    )
