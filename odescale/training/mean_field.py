r"""SGD on the real d-dimensional network behind a mean-field system: same rows, same start, same clock.

u <- mu u + grad_W mean_B l,   W <- W - eta s(t) u - (w/N) W;   with `friction` gamma: mu = 1 - gamma/N and step eta/N;
with `optimizers` their own updates by optax, block by block
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import special

from odescale.cache.aside import Aside
from odescale.cache.programs import program
from odescale.clock import Clock, Schedule
from odescale.errors import whole
from odescale.networks.teacher_student import TeacherStudent
from odescale.systems.mean_field import MeanField
from odescale.training.initial import measure_overlaps, rows_from_overlaps
from odescale.training.rows import AbstractRowSgd, OptimizerRates, RowRates, RowState, bins_of_modes, rates_of


class MeanFieldExperiment(AbstractRowSgd):
    """Mean over B sequences of l(f(x), f*(x)), x_t = Sigma^(1/2) xi rho^(1/2), labels drawn as the loss says.

    Records: `overlaps` C and `row_overlaps` R (s, n, P, P); `loss`: the excess population loss at them by the system's own
    closure (the d -> infinity loss of these rows), `loss_common_stderr` the standard error of that quadrature, whose nodes all
    seeds share. One unit of t is N = tr Sigma steps.
    """

    system: Aside[MeanField]
    problem: TeacherStudent
    schedule: Schedule
    rates: RowRates | OptimizerRates
    deviations: Float[Array, " d"] | None
    spectrum: Aside[tuple[np.ndarray, np.ndarray | None]]
    batch: int = eqx.field(static=True)
    trace: float = eqx.field(static=True)

    subject: ClassVar[str] = "mean_field"

    @property
    def clock(self) -> Clock:
        system = self.system.value
        return Clock(self.trace, system.learning_rate, self.schedule, float(self.batch), system.clock.tokens)

    @property
    def moved(self) -> np.ndarray:
        return self.problem.moved

    def config(self, t1: float) -> dict[str, Any]:
        system, lam = self.system.value, self.spectrum.value[0]
        # A callable block is known by its printed form.
        return {
            "label": system.label,
            "problem": repr(system.problem),
            "initial_overlaps": np.asarray(system.initial_overlaps).tolist(),
            "dimension": int(lam.size),
            "tokens": system.problem.tokens,
            "eigenvalues": lam.tolist() if np.ptp(lam) > 0 else None,
            "optimizers": None if system.optimizers is None else system.optimizers.words(),
        } | {name: float(getattr(system, name)) for name in ("weight_decay", "momentum", "friction")}

    def start(self, seed: int) -> RowState:
        overlaps, (lam, bins) = np.asarray(self.system.value.initial_overlaps), self.spectrum.value
        where: dict[str, Any] = {"dimension": lam.size} if bins is None else {"eigenvalues": lam, "bins": bins}
        return self.begin(rows_from_overlaps(overlaps, **where, seed=seed))

    def sample_loss(self, trained: Float[Array, "p d"], rows: Float[Array, "P d"], key: Array) -> Float[Array, ""]:
        rows = rows.at[self.moved].set(trained)
        first, second = jax.random.split(key)
        x = jax.random.normal(first, (self.batch, self.problem.tokens, rows.shape[1]), rows.dtype)
        root = self.problem.token_root
        if not np.array_equal(root, np.eye(self.problem.tokens)):
            x = jnp.einsum("ts,bsd->btd", jnp.asarray(root, rows.dtype), x)
        if self.deviations is not None:
            x = x * self.deviations.astype(rows.dtype)
        normal = jax.random.normal(second, (self.batch, self.problem.label_normals), rows.dtype)
        return jnp.mean(jax.vmap(lambda x, z: self.problem.sample_loss(rows, x, z, self.trace))(x, normal))

    def measure(self, states: list[RowState], seeds: list[int], step: int) -> dict[str, np.ndarray]:
        lam, bins = self.spectrum.value
        C, R = measure_overlaps(self.table(states), None if bins is None else lam)
        loss, error = population_loss(self.system.value, C, R)
        return {"loss": loss, "loss_common_stderr": error, "overlaps": C, "row_overlaps": R}


def experiment(system: MeanField) -> MeanFieldExperiment:
    """The real network of a system: problem, start, optimiser and spectrum are the run's; each bin's eigenvalue is repeated."""
    lam, bins = bins_of_modes(system.eigenvalues, system.weights, system.trace)
    memory = 1 - float(system.friction) / system.trace if system.inertial else float(system.momentum)
    rates: Any = RowRates(
        system.learning_rate / (system.trace if system.inertial else 1.0), memory, system.weight_decay
    )
    if system.optimizers is not None:
        rates = rates_of(system.optimizers, system.learning_rate)
    return MeanFieldExperiment(
        system=Aside(system),
        problem=system.problem,
        schedule=system.schedule,
        rates=rates,
        deviations=None if bins is None else jnp.asarray(np.sqrt(lam)),
        spectrum=Aside((lam, bins)),
        batch=whole("batch", system.batch, remedy="batch=4"),
        trace=system.trace,
    )


@program
def _losses(system: MeanField, C: Float[Array, "s P P"], R: Float[Array, "s P P"]) -> Float[Array, "s r"]:
    return jax.lax.map(lambda pair: system.population_loss(*pair), (C, R))


def population_loss(
    system: MeanField, C: Float[np.ndarray, "s P P"], R: Float[np.ndarray, "s P P"]
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"]]:
    """(excess loss, standard error of the quadrature) of each seed at its measured overlaps."""
    values = np.asarray(_losses(system, jnp.asarray(C), jnp.asarray(R)))
    mean, half = (np.asarray(x) for x in system.estimate(jnp.asarray(values.T)))
    replicates = values.shape[1]
    return mean, half / (special.stdtrit(replicates - 1, 0.975) if replicates > 2 else 2.0)
