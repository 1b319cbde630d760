r"""What an optimiser is to the theory: a preconditioner per mode that depends on the overlaps, and rows that remember.

    W <- W - step P^ m,    m = beta m + (1 - beta) gradient        dq_k/dt = M_k q_k + q_k M_k^T + lam_k L V L^T/B

`odescale.optimizers.flow` puts P_k, momentum and decay of every block of rows together. One unit of t is N = tr Sigma steps; the
`rate` a of an optimiser is the number that stays fixed as N grows, `step(N)` the learning rate of the real update.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.core
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from odescale.errors import InputError, require_number
from odescale.expectations.batch import AbstractBatchRule
from odescale.expectations.window import WindowRule

LARGEST_DAMPING = 1000.0
"""gamma = N (1 - beta) up to which velocities are carried; beyond, their lag is below .001 of a unit of t and left out."""


class Seen(NamedTuple):
    """What an optimiser sees of its b rows at one time.

    - `rate`: a s(t). `trace`: N. `batch`: B. `eigenvalues` (modes,).
    - `noise` V (b, b); `mean` (b, b): sum_k w_k (lam_k G + H) q_k (lam_k G + H)^T, overlaps of the mean gradients.
    - `second` (modes, b): N times Adam's bias-corrected second moment; `gram` (b, b): R of the velocities. None without.
    """

    rate: Array
    trace: float
    batch: Array
    eigenvalues: Float[Array, " modes"]
    noise: Float[Array, "b b"]
    mean: Float[Array, "b b"]
    second: Float[Array, "modes b"] | None
    gram: Float[Array, "b b"] | None


class AbstractOptimizer(eqx.Module):
    """One optimiser: its numbers, its rule in the theory, its update in a training.

    `rate` a > 0 stays O(1) as d grows; `decay` w >= 0 is decoupled and follows the schedule: W <- W - s(t) (w/N) W per step.
    """

    rate: eqx.AbstractVar[Float[Array, ""]]
    decay: eqx.AbstractVar[Float[Array, ""]]
    word: eqx.AbstractClassVar[str]
    """Its name on the command line."""

    averages: ClassVar[str] = "gradient"
    """The closure that it needs: "gradient" (G, H, V) or "sign"."""

    @abc.abstractmethod
    def step(self, trace: float) -> Float[Array, ""]:
        """Learning rate of the real update at N = `trace`."""

    @staticmethod
    @abc.abstractmethod
    def transformation(numbers: Mapping[str, Any]) -> optax.GradientTransformation:
        """The optax transformation of the gradient of a block (b, d) into the direction that the step multiplies."""

    def update(self) -> optax.GradientTransformation:
        """`transformation` at its own numbers."""
        return self.transformation(self.numbers())

    @abc.abstractmethod
    def preconditioner(self, seen: Seen) -> Float[Array, "modes b b"]:
        """P_k, the rate included."""

    def batch_rule(self) -> AbstractBatchRule | None:
        """What it makes of the gradient of a whole batch where it is not linear in it; None: it is."""
        return None

    def window(self, blocks: tuple[tuple[int, ...], ...]) -> WindowRule | None:
        """Its momentum where the step divides by the size of what is remembered, on these blocks of rows; None: it does not."""
        return None

    @property
    def beta(self) -> Any:
        """beta of the average of gradients that moves the rows; None: the gradient itself."""
        return None

    @property
    def nesterov(self) -> bool:
        """Whether the average takes the present gradient twice."""
        return False

    @property
    def second_beta(self) -> Any:
        """beta2 of the average of squared gradients; None where there is none."""
        return None

    def numbers(self) -> dict[str, Any]:
        """Its numbers and words by name, for reports."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: float(value) if eqx.is_array(value) else value for name, value in found.items()}

    def words(self) -> dict[str, Any]:
        """`numbers` without the rate, as a JSON file keeps them: what tells two experiments apart."""
        named = {name: value for name, value in self.numbers().items() if name != "rate"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}

    def __repr__(self) -> str:
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree_util.tree_leaves(self)):
            return f"{type(self).__name__}(...)"
        words = (f"{k}={v:g}" if isinstance(v, float) else f"{k}={v!r}" for k, v in self.numbers().items())
        return f"{type(self).__name__}({', '.join(words)})"


def alike(seen: Seen, size: Any) -> Float[Array, "modes b b"]:
    """P_k = `size` times the identity, in every mode."""
    return jnp.broadcast_to(size * jnp.eye(len(seen.noise)), (len(seen.eigenvalues), *seen.noise.shape))


def as_number(value: Any) -> Any:
    """A field's value as an array of one number."""
    try:
        return jnp.asarray(value, dtype=float)
    except (TypeError, ValueError):
        return value  # refused by name in `require`


def require(name: str, value: Any, least: float = 0.0, below: float = float("inf"), *, open_: bool = False) -> None:
    """`odescale.errors.require_number` for a field; what is only known inside a JAX transformation passes."""
    if not isinstance(value, jax.core.Tracer):
        if jnp.shape(value) != ():
            raise InputError(name, expected="one number", got=f"shape {jnp.shape(value)}", remedy="one object per rate")
        require_number(name, value, least, below, open_=open_)
