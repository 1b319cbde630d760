"""One-pass SGD on rows of d numbers, with memory, schedule and decay: what attention, mean-field and derived experiments share."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odescale.errors import InputError
from odescale.training.experiment import AbstractExperiment, rate_at

LARGEST_DIMENSION = 20_000
"""Dimensions of tokens up to which a real run is made."""


class RowRates(eqx.Module):
    """W <- W - step u - (decay/N) W, u <- memory u + grad: plain SGD has memory 0 and step eta."""

    step: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, float))
    memory: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, float), default=0.0)  # type: ignore[assignment]
    decay: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, float), default=0.0)  # type: ignore[assignment]


class RowState(NamedTuple):
    """Rows that move and their velocities (p, d), and the table of all rows (P, d) at the start, whose frozen ones stay."""

    trained: Float[Array, "p d"]
    velocity: Float[Array, "p d"]
    rows: Float[Array, "P d"]


class AbstractRowSgd(AbstractExperiment):
    r"""u <- mu u + grad_W l, W <- W - eta s(t) u - (w/N) W with t = n/N; frozen rows untouched."""

    rates: eqx.AbstractVar[RowRates]

    @property
    @abc.abstractmethod
    def moved(self) -> np.ndarray:
        """Numbers of the rows that SGD moves."""

    @abc.abstractmethod
    def sample_loss(self, trained: Float[Array, "p d"], rows: Float[Array, "P d"], key: Array) -> Float[Array, ""]:
        """Mean loss of one batch drawn from `key`; `trained` replace the `moved` ones among `rows`."""

    def begin(self, rows: Float[np.ndarray, "P d"]) -> RowState:
        """The state at rest on these rows."""
        return RowState(rows[self.moved], np.zeros((self.moved.size, rows.shape[1])), rows)  # type: ignore[arg-type]

    def step(self, state: RowState, key: Array, n: Int[Array, ""]) -> tuple[RowState, Float[Array, ""]]:
        trained, velocity, rows = state
        loss, gradient = jax.value_and_grad(self.sample_loss)(trained, rows, key)
        rate = self.rates.step * rate_at(self.clock, n, rows.dtype)
        velocity = self.rates.memory * velocity + gradient
        trained = trained - rate * velocity - (self.rates.decay / self.clock.steps_per_unit) * trained
        return RowState(trained, velocity, rows), loss

    def table(self, states: list[RowState]) -> Float[np.ndarray, "s P d"]:
        """All rows of every seed as they stand."""
        rows = np.stack([np.asarray(state.rows) for state in states])
        rows[:, self.moved] = np.stack([np.asarray(state.trained) for state in states])
        return rows

    def model(self, states: list[RowState]) -> dict[str, Any]:
        return {"rows": self.table(states)}


def bins_of_modes(
    eigenvalues: Float[Array, " modes"], weights: Float[Array, " modes"], trace: float
) -> tuple[Float[np.ndarray, " d"], Int[np.ndarray, " d"] | None]:
    """(eigenvalue, bin) of each of the d dimensions behind lam_k and w_k = multiplicity/trace; bins None for isotropic tokens."""
    multiplicity = np.asarray(weights) * trace
    counts = np.rint(multiplicity).astype(int)
    dimension = int(counts.sum())
    if np.abs(counts - multiplicity).max() > 1e-6 * max(counts.max(), 1) or dimension > LARGEST_DIMENSION:
        raise InputError(
            "modes", expected=f"at most {LARGEST_DIMENSION} whole eigenvalues in a real run", got=f"{multiplicity.sum():.6g}",
            remedy="set modes to a few thousand",
        )  # fmt: skip
    if counts.size == 1:
        return np.ones(dimension), None
    bins = np.repeat(np.arange(counts.size), counts)
    return np.asarray(eigenvalues)[bins], bins
