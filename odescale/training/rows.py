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
from odescale.optimizers.flow import RowOptimizers
from odescale.training.experiment import AbstractExperiment, rate_at

LARGEST_DIMENSION = 20_000
"""Dimensions of tokens up to which a real run is made."""


class RowRates(eqx.Module):
    """W <- W - step u - (decay/N) W, u <- memory u + grad: plain SGD has memory 0 and step eta."""

    step: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, float))
    memory: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, float), default=0.0)  # type: ignore[assignment]
    decay: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, float), default=0.0)  # type: ignore[assignment]

    def begin(self, trained: Float[Array, "p d"]) -> Float[Array, "p d"]:
        """The velocities at rest."""
        return np.zeros(trained.shape)  # type: ignore[return-value]

    def move(
        self,
        trained: Float[Array, "p d"],
        velocity: Float[Array, "p d"],
        gradient: Float[Array, "p d"],
        rate: Array,
        trace: float,
    ) -> tuple[Float[Array, "p d"], Float[Array, "p d"]]:
        """(rows, velocities) after one step; `rate` s(t)."""
        velocity = self.memory * velocity + gradient
        return trained - self.step * rate * velocity - (self.decay / trace) * trained, velocity


class OptimizerRates(eqx.Module):
    r"""Each block of rows by an optax transformation: W <- W - step s(t) direction - s(t) (decay/N) W, gradients clipped before.

    - `kinds`: of each block its rows among those that move, the class of its optimiser, and the numbers behind its update.
    - `step`: the rate a of the system; `steps`, `decays` (blocks,). `clip`: largest norm of the whole gradient, inf for none.
    """

    kinds: tuple[tuple[tuple[int, ...], type, tuple[tuple[str, Any], ...]], ...] = eqx.field(static=True)
    step: Float[Array, ""]
    steps: Float[Array, " blocks"]
    decays: Float[Array, " blocks"]
    clip: Float[Array, ""]

    def words(self) -> list[dict[str, Any]]:
        """What tells two experiments apart: rows, class and numbers of every block."""
        parts = zip(self.kinds, np.asarray(self.steps), np.asarray(self.decays), strict=True)
        each = [
            {"rows": list(rows), "rule": kind.__name__, "step": float(step), "decay": float(decay)}
            | {name: list(value) if isinstance(value, tuple) else value for name, value in numbers}
            for (rows, kind, numbers), step, decay in parts
        ]
        return [*each, {"clip": float(self.clip)}]

    def _updates(self) -> list[tuple[np.ndarray, Any]]:
        return [(np.asarray(rows), kind.transformation(dict(numbers))) for rows, kind, numbers in self.kinds]

    def begin(self, trained: Float[Array, "p d"]) -> Any:
        """The optimisers' states before the first step."""
        return tuple(update.init(jnp.asarray(trained)[rows]) for rows, update in self._updates())

    def move(
        self, trained: Float[Array, "p d"], memory: Any, gradient: Float[Array, "p d"], rate: Array, trace: float
    ) -> tuple[Any, Any]:
        """(rows, the optimisers' states) after one step; `rate` s(t)."""
        norm = jnp.sqrt(jnp.sum(gradient**2))
        gradient = jnp.where(norm > self.clip, gradient * (self.clip / norm), gradient)
        moved, states = trained, []
        for number, ((rows, update), state) in enumerate(zip(self._updates(), memory, strict=True)):
            direction, state = update.update(gradient[rows], state, trained[rows])
            change = self.steps[number] * rate * direction + (self.decays[number] / trace) * rate * trained[rows]
            moved = moved.at[rows].add(-change)
            states.append(state)
        return moved, tuple(states)


def rates_of(optimizers: RowOptimizers, rate: Any) -> OptimizerRates:
    """The updates behind the optimisers of a system whose learning rate is `rate`."""
    kinds, steps = [], []
    for block in optimizers.blocks:
        numbers = {name: value for name, value in block.rule.numbers().items() if name not in ("rate", "decay")}
        kinds.append((block.rows, type(block.rule), tuple(numbers.items())))
        steps.append(block.rule.step(optimizers.trace) * block.ratio * rate)
    decays = jnp.stack([block.rule.decay for block in optimizers.blocks])
    return OptimizerRates(tuple(kinds), jnp.asarray(rate, float), jnp.stack(steps), decays, optimizers.clip)


class RowState(NamedTuple):
    """Rows that move (p, d), what their update remembers, and the table of all rows (P, d) at the start, whose frozen ones stay."""

    trained: Float[Array, "p d"]
    memory: Any
    rows: Float[Array, "P d"]


class AbstractRowSgd(AbstractExperiment):
    r"""W <- W - step s(t) direction - (w/N) W with t = n/N, direction by `rates`; frozen rows untouched."""

    rates: eqx.AbstractVar[RowRates | OptimizerRates]

    @property
    @abc.abstractmethod
    def moved(self) -> np.ndarray:
        """Numbers of the rows that SGD moves."""

    @abc.abstractmethod
    def sample_loss(self, trained: Float[Array, "p d"], rows: Float[Array, "P d"], key: Array) -> Float[Array, ""]:
        """Mean loss of one batch drawn from `key`; `trained` replace the `moved` ones among `rows`."""

    def begin(self, rows: Float[np.ndarray, "P d"]) -> RowState:
        """The state at rest on these rows."""
        trained: Any = rows[self.moved]
        return RowState(trained, self.rates.begin(trained), rows)  # type: ignore[arg-type]

    def step(self, state: RowState, key: Array, n: Int[Array, ""]) -> tuple[RowState, Float[Array, ""]]:
        trained, memory, rows = state
        loss, gradient = jax.value_and_grad(self.sample_loss)(trained, rows, key)
        rate = rate_at(self.clock, n, rows.dtype)
        trained, memory = self.rates.move(trained, memory, gradient, rate, self.clock.steps_per_unit)
        return RowState(trained, memory, rows), loss

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
