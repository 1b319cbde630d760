r"""Losses of student outputs f against teacher outputs f*, both of shape (positions, K), averaged over positions.

Each loss has three faces, with one set of labels behind them: `mean`, averaged over the labels at given f* (its gradient
is the drift); `sample`, with labels drawn from standard normal numbers (what SGD sees; its gradient is the noise); and
`excess`, the mean minus its irreducible part.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from odescale.errors import InputError


class AbstractLoss(eqx.Module):
    """l(f, f*) with `mean`, `sample` and `excess` as in the module's docstring."""

    @abc.abstractmethod
    def normals(self, positions: int, outputs: int) -> int:
        """How many standard normal numbers one sample's labels take; 0 when the labels are a function of f*."""

    @abc.abstractmethod
    def mean(self, f: Float[Array, "n K"], target: Float[Array, "n K"]) -> Float[Array, ""]:
        """The loss averaged over the labels, up to a constant that does not depend on f."""

    @abc.abstractmethod
    def sample(
        self, f: Float[Array, "n K"], target: Float[Array, "n K"], normal: Float[Array, " m"]
    ) -> Float[Array, ""]:
        """The loss with labels made from `normals(n, K)` standard normal numbers."""

    @abc.abstractmethod
    def excess(self, f: Float[Array, "n K"], target: Float[Array, "n K"]) -> Float[Array, ""]:
        """`mean` minus its irreducible part: what the theory reports as the loss."""


class SquareLoss(AbstractLoss):
    """l = (1/2n) sum_t sum_i (f_ti - f*_ti - sigma xi_ti)^2, xi standard normal.

    `label_noise` = sigma >= 0. Excess: half the mean squared distance to the teacher.
    """

    label_noise: float = eqx.field(static=True, default=0.0)

    label: ClassVar[str] = "half squared error"

    def __check_init__(self) -> None:
        if not self.label_noise >= 0:
            raise InputError("label_noise", expected="a number >= 0", got=self.label_noise, remedy="0 switches it off")

    def normals(self, positions: int, outputs: int) -> int:
        return positions * outputs if self.label_noise > 0 else 0

    def mean(self, f: Float[Array, "n K"], target: Float[Array, "n K"]) -> Float[Array, ""]:
        return 0.5 * jnp.sum((f - target) ** 2) / f.shape[0]

    def sample(
        self, f: Float[Array, "n K"], target: Float[Array, "n K"], normal: Float[Array, " m"]
    ) -> Float[Array, ""]:
        if self.label_noise == 0:
            return self.mean(f, target)
        return self.mean(f, target + self.label_noise * normal.reshape(target.shape))

    def excess(self, f: Float[Array, "n K"], target: Float[Array, "n K"]) -> Float[Array, ""]:
        return self.mean(f, target)


class CrossEntropy(AbstractLoss):
    r"""l = -(1/n) sum_t sum_c p_tc log softmax(f_t)_c over K classes.

        soft: p = softmax(beta f*)      hard: p = class of the largest f*      sampled: one class drawn from softmax(beta f*)

    **Arguments**

    - `labels`: "soft", "hard" or "sampled" (same drift as soft, more noise).
    - `inverse_temperature`: beta > 0 of the teacher.

    Excess: the Kullback-Leibler divergence from the teacher for soft and sampled labels; for hard labels the cross-entropy
    itself, less `irreducible` (the Bayes risk, where labels are not a function of what the student sees).
    """

    labels: Literal["soft", "hard", "sampled"] = eqx.field(static=True, default="soft")
    inverse_temperature: float = eqx.field(static=True, default=1.0)
    irreducible: float = eqx.field(static=True, default=0.0)

    label: ClassVar[str] = "cross-entropy, nats"

    def __check_init__(self) -> None:
        if self.labels not in ("soft", "hard", "sampled"):
            raise InputError("labels", expected="soft, hard or sampled", got=self.labels, remedy="use soft")
        if not self.inverse_temperature > 0:
            raise InputError(
                "inverse_temperature", expected="a positive number", got=self.inverse_temperature,
                remedy="labels=hard is the limit of a cold teacher",
            )  # fmt: skip

    def normals(self, positions: int, outputs: int) -> int:
        return positions if self.labels == "sampled" else 0

    def _distribution(self, target: Float[Array, "n K"]) -> Float[Array, "n K"]:
        if self.labels == "hard":
            return jax.nn.one_hot(jnp.argmax(target, axis=-1), target.shape[-1], dtype=target.dtype)
        return jax.nn.softmax(self.inverse_temperature * target, axis=-1)

    def mean(self, f: Float[Array, "n K"], target: Float[Array, "n K"]) -> Float[Array, ""]:
        return -jnp.sum(self._distribution(target) * jax.nn.log_softmax(f, axis=-1)) / f.shape[0]

    def sample(
        self, f: Float[Array, "n K"], target: Float[Array, "n K"], normal: Float[Array, " m"]
    ) -> Float[Array, ""]:
        if self.labels != "sampled":
            return self.mean(f, target)
        below = jnp.cumsum(self._distribution(target), axis=-1)[:, :-1]
        drawn = jnp.sum(jax.scipy.special.ndtr(normal)[:, None] > below, axis=-1)
        label = jax.nn.one_hot(drawn, target.shape[-1], dtype=target.dtype)
        return -jnp.sum(label * jax.nn.log_softmax(f, axis=-1)) / f.shape[0]

    def excess(self, f: Float[Array, "n K"], target: Float[Array, "n K"]) -> Float[Array, ""]:
        if self.labels == "hard":
            return self.mean(f, target) - self.irreducible
        logs = jax.nn.log_softmax(self.inverse_temperature * target, axis=-1)
        # term by term p (log p - log s) - p + s >= 0: no cancellation when student and teacher agree to rounding
        gap = jax.nn.log_softmax(f, axis=-1) - logs
        return jnp.sum(jnp.exp(logs) * (jnp.expm1(gap) - gap)) / f.shape[0]


class FunctionLoss(AbstractLoss):
    """l = function(f, f*), any JAX-traceable function of student and teacher outputs (positions, K) -> scalar.

    `irreducible`: its smallest mean, subtracted in the excess.
    """

    function: Callable[[Array, Array], Array] = eqx.field(static=True)
    irreducible: float = eqx.field(static=True, default=0.0)

    def normals(self, positions: int, outputs: int) -> int:
        return 0

    def mean(self, f: Float[Array, "n K"], target: Float[Array, "n K"]) -> Float[Array, ""]:
        return self.function(f, target)

    def sample(
        self, f: Float[Array, "n K"], target: Float[Array, "n K"], normal: Float[Array, " m"]
    ) -> Float[Array, ""]:
        return self.function(f, target)

    def excess(self, f: Float[Array, "n K"], target: Float[Array, "n K"]) -> Float[Array, ""]:
        return self.function(f, target) - self.irreducible
