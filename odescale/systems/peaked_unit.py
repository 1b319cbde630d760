r"""Signs and Muon on the rows of `Peaked`: per step, logits W x, W* W*^T = I, l the learning rate.

    sign            dD = sqrt(2/pi) l sigma,     dDelta = -2 sqrt(2/pi) l beta h Delta + l^2 d (1 - rho)
    Muon, K = 2     dD = l q sigma/sqrt(2 d),    dDelta = -2 l q beta h Delta/sqrt(2 d) + l^2 q^2          (momentum 0)
    Muon            dD = l q A/sqrt(v),          dDelta = -2 l q beta^2 Delta H/(n sqrt v) + l^2 q_2^2 d beta^2 G/(n B v),  n = K-1

sigma, h, rho are averages over a batch of B samples (`odescale.expectations.unit_steps`); q is what Newton and Schulz's polynomial
makes of a small mean, q_2 its root mean square, v P = M M^T of the average M of gradients. Derived in `derivations/peaked/unit.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.errors import InputError, OutsideTheoryError, whole
from odescale.expectations.unit_steps import LARGEST_BATCH, MOST_CLASSES, UnitSteps, unit_steps
from odescale.generated import optimizers as averages
from odescale.generated import peaked as formulas
from odescale.optimizers.adam import Adam
from odescale.optimizers.muon import Muon
from odescale.optimizers.signs import Sign
from odescale.systems.parameters import is_traced

LEAST_SAMPLES = 32.0
"""Samples B/nu that a whitened step must divide by: its matrix is taken for its mean."""
UNIT = ("sign", "muon")
"""Words of optimisers whose step is as long as the batch makes it."""


class PeakedArguments(NamedTuple):
    """Arguments of the generated flows: moments of the state; batch, classes, dimension; decay, smoothing, beta."""

    moments: tuple[Array, Array, Array, Array, Array, Array]
    sizes: tuple[Array, Array, Array]
    options: tuple[Array, Array, Array]


class UnitRule(eqx.Module):
    """What signs and Muon have beside the parameters of `Peaked`.

    `steps`: averages over a batch (signs; Muon without momentum on two classes), or None, where Muon's matrix is its mean.
    `gain` q, `length` q_2, `strength` nu the squared weights of Muon's average. `muon`: the numbers of the real update.
    """

    steps: UnitSteps | None
    gain: float = eqx.field(static=True, default=1.0)
    length: float = eqx.field(static=True, default=1.0)
    strength: float = eqx.field(static=True, default=1.0)
    muon: tuple[tuple[str, Any], ...] = eqx.field(static=True, default=())

    def flow(
        self, word: str, dimension: float, now: PeakedArguments, rate: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(dD, dDelta) per step."""
        D, spread = now.moments[:2]
        decay, _, beta = now.options
        d = jnp.asarray(dimension)
        if self.steps is None:
            batch, classes = now.sizes[:2]
            gain, length, strength = (jnp.asarray(x) for x in (self.gain, self.length, self.strength))
            return formulas.muon_flow(*now.moments, rate, gain, length, strength, batch, classes, d, *now.options)
        sigma, h, centred = self.steps(beta * D, beta**2 * spread)
        if word == "sign":
            return formulas.sign_flow(D, spread, sigma, h, centred, rate, d, decay, beta)
        return formulas.muon_pair_flow(D, spread, sigma, h, rate, jnp.asarray(self.gain), d, decay, beta)

    def speed(self, word: str, dimension: float) -> Float[Array, ""]:
        """A size of dD per step and learning rate at the start."""
        if self.steps is None:
            return jnp.asarray(self.gain)
        sigma = jnp.abs(self.steps(0.0, 0.0)[0])
        return sigma if word == "sign" else sigma * self.gain / jnp.sqrt(2 * dimension)

    @property
    def settings(self) -> dict[str, Any]:
        """Muon's numbers, as a JSON file keeps them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.muon}

    @property
    def samples(self) -> float:
        """1/nu: a batch counts for so many in what the step divides by."""
        return 1 / self.strength


def of_object(optimizer: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Muon | None]:
    """(the words behind an optimiser object, further fields, Muon itself); numbers beside it and other objects are refused."""
    if not isinstance(optimizer, (Adam, Sign, Muon)):
        raise OutsideTheoryError(
            "optimizer", expected="sgd, adam, normalised, sign, muon, or Adam, Sign or Muon of odescale.optimizers",
            got=optimizer, remedy="peaked targets have a closure for these",
        )  # fmt: skip
    for name in ("learning_rate", "memory", "weight_decay"):
        if name in given:
            raise InputError(
                name, expected="nothing beside an optimizer object, which has its own numbers", got=given[name],
                remedy="give it to the object",
            )  # fmt: skip
    words = {"optimizer": optimizer.word, "learning_rate": optimizer.rate, "weight_decay": optimizer.decay}
    if isinstance(optimizer, Adam):
        fields = {"beta1": float(optimizer.beta1), "eps": float(optimizer.eps)}
        return {**given, **words, "memory": optimizer.beta2}, fields, None
    return {**given, **words}, {}, optimizer if isinstance(optimizer, Muon) else None


def unit_rule(values: Mapping[str, Any], labels: str, muon: Muon | None) -> UnitRule | None:
    """The rule of the words of `peaked`; None for optimisers whose step follows the gradient."""
    word = values["optimizer"]
    if word not in UNIT:
        return None
    if values["loss"] != "cross_entropy":
        raise OutsideTheoryError("loss", expected=f"cross_entropy with optimizer={word}", got=values["loss"],
                                 remedy="it has a closure for these")  # fmt: skip
    peaked = labels == "hard" and not is_traced(values["smoothing"]) and values["smoothing"] == 0
    if word == "sign":
        _require_sign(values, labels, peaked)
        return UnitRule(unit_steps(int(values["classes"]), int(values["batch"])))
    muon = Muon() if muon is None else muon
    numbers = muon.numbers()
    mu, classes, batch = numbers["momentum"], int(values["classes"]), values["batch"]
    pair = classes == 2 and mu == 0 and peaked and not is_traced(batch) and values["noise"] == 1
    pair = pair and batch == int(batch) and batch <= LARGEST_BATCH
    strength = float(averages.average_noise(mu, averages.present_share(mu, muon.nesterov)))  # type: ignore[arg-type]
    gain, length = gains(classes - 1, float(values["dimension"]), muon.coefficients, muon.iterations)
    kept = tuple((name, numbers[name]) for name in ("momentum", "nesterov", "coefficients", "iterations"))
    rule = UnitRule(unit_steps(2, int(batch)) if pair else None, gain, length, strength, kept)
    if rule.steps is None and not is_traced(batch) and not is_traced(values["noise"]) and values["noise"] > 0:
        if batch * rule.samples < LEAST_SAMPLES:
            raise OutsideTheoryError(
                "batch", expected=f"B/nu >= {LEAST_SAMPLES:g} with optimizer=muon, nu = {strength:.3g} the squared weights of its "
                "average: the matrix that it makes orthogonal is taken for its mean", got=float(batch),
                remedy="raise batch or momentum; two classes with momentum 0 and hard labels take any batch",
            )  # fmt: skip
    return rule


def _require_sign(values: Mapping[str, Any], labels: str, peaked: bool) -> None:
    if not peaked:
        name = "labels" if labels != "hard" else "smoothing"
        raise OutsideTheoryError(
            name, expected="hard labels without smoothing with optimizer=sign: elsewhere a slope changes its sign within a class",
            got=labels if labels != "hard" else values["smoothing"], remedy="labels=hard, smoothing=0",
        )  # fmt: skip
    if is_traced(values["batch"]) or is_traced(values["noise"]) or values["noise"] != 1:
        raise OutsideTheoryError("noise", expected="1 with optimizer=sign: drift and noise come from one batch",
                                 got=values["noise"], remedy="leave it out")  # fmt: skip
    whole("batch", values["batch"], 1, LARGEST_BATCH, remedy="signs see whole batches, averaged by a table")
    whole("classes", values["classes"], 2, MOST_CLASSES, remedy="signs have a table up to there")


def gains(
    rows: int, dimension: float, coefficients: tuple[float, float, float], iterations: int
) -> tuple[float, float]:
    """(q, q_2) of Newton and Schulz's quintic on Gaussian matrices rows x d, by Bartlett's triangle; one value for one row."""
    a, b, c = coefficients
    rng, count = np.random.default_rng(19), 4000 if rows > 1 else 1
    size = np.ones((count, 1))
    if rows > 1:
        triangle = np.tril(rng.standard_normal((count, rows, rows)), -1)
        places = np.arange(rows)
        triangle[:, places, places] = np.sqrt(rng.chisquare(dimension - places, (count, rows)))
        size = np.linalg.svd(triangle, compute_uv=False) / dimension**0.5
    found = size / np.sqrt(np.sum(size**2, axis=1, keepdims=True))
    for _ in range(iterations):
        found = found * (a + b * found**2 + c * found**4)
    return float(np.mean(found * size)), float(np.sqrt(np.mean(found**2)))
