r"""Muon: the momentum of a block of rows made orthogonal, which whitens it by the overlaps of the velocities.

    P = a sqrt(N) K^-1/2,    K = R_UU + (kappa N - gamma/2) V/B,    kappa = (1 - mu)/(1 + mu)

R_UU are the overlaps of the velocities U = N m, carried as rows: their noise gamma V/(2 B) and their mean, which is the 1/N term of
the closure. A momentum in steps has the noise kappa N V/B, of which the continuous one lacks a share (1 - mu)/2.
Newton and Schulz's iteration is a polynomial of the Gram matrix: b x b here, whatever d.

This is the leading order in 1 - mu, as a closed form has it (`closure="closed"`). By quadrature K is what a momentum remembers, one
run of batches at a time (`odescale.expectations.window`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from odescale.errors import InputError, whole
from odescale.expectations.window import WindowRule, newton_schulz
from odescale.generated import optimizers as derived
from odescale.optimizers.base import AbstractOptimizer, Seen, as_number, require

STANDARD = (3.4445, -4.775, 2.0315)
"""Coefficients in use (Jordan 2024): five iterations take singular values to .7 to 1.2."""
EXACT = derived.exact_coefficients()
"""The quintic whose fixed point 1 is of third order: twenty iterations are exact from 1e-4 of the norm on."""


class Muon(AbstractOptimizer):
    r"""W <- W - a s(t) Q(m) - s(t) (w/N) W on a block of rows, Q the Newton-Schulz polynomial of m/|m| on its singular values.

    - `rate` a > 0: length that a row moves in one step, O(1) at any width. `momentum` mu in [0, 1), `nesterov`: its look-ahead.
    - `coefficients`, `iterations`: of Newton-Schulz; `Muon.exact(...)` orthogonalises to rounding.
    - `decay` w >= 0: decoupled weight decay per unit of t.

    A block is one matrix: the rows that are made orthogonal to each other. Source: Jordan et al. 2024; derivations/optimizers.
    """

    rate: Float[Array, ""] = eqx.field(converter=as_number, default=0.05)  # type: ignore[assignment]
    momentum: Float[Array, ""] = eqx.field(converter=as_number, default=0.95)  # type: ignore[assignment]
    nesterov: bool = eqx.field(static=True, default=True)
    coefficients: tuple[float, float, float] = eqx.field(static=True, default=STANDARD)
    iterations: int = eqx.field(static=True, default=5)
    decay: Float[Array, ""] = eqx.field(converter=as_number, default=0.0)  # type: ignore[assignment]

    word: ClassVar[str] = "muon"

    def __check_init__(self) -> None:
        require("rate", self.rate, open_=True)
        require("momentum", self.momentum, 0.0, 1.0)
        require("decay", self.decay)
        whole("iterations", self.iterations, 1, 100)
        if len(self.coefficients) != 3:
            raise InputError("coefficients", expected="three numbers", got=self.coefficients, remedy=f"{STANDARD}")

    @classmethod
    def exact(cls, **given: Any) -> Muon:
        """Muon with the orthogonal factor itself, to rounding from singular values of 1e-4 of the norm on."""
        return cls(**({"coefficients": EXACT, "iterations": 20} | given))

    @property
    def beta(self) -> Any:
        return self.momentum

    def window(self, blocks: tuple[tuple[int, ...], ...]) -> WindowRule | None:
        return WindowRule(self.momentum, self.nesterov, blocks, self.coefficients, self.iterations)

    def step(self, trace: float) -> Float[Array, ""]:
        return self.rate

    @staticmethod
    def transformation(numbers: Mapping[str, Any]) -> optax.GradientTransformation:
        return optax.contrib.scale_by_muon(
            numbers["coefficients"], numbers["iterations"], numbers["momentum"], nesterov=numbers["nesterov"]
        )

    def preconditioner(self, seen: Seen) -> Float[Array, "modes b b"]:
        mu, N = self.momentum, seen.trace
        strength = derived.average_noise(mu, derived.present_share(mu, self.nesterov))
        # The velocities hold (1 - mu)/2 of it, and the means.
        held, mean = (0.0, seen.mean) if seen.gram is None else ((1 - mu) / 2, seen.gram)
        K = derived.gram_of_average(strength - held, seen.noise, seen.batch, mean, N)
        Q = newton_schulz(K, self.coefficients, self.iterations)
        return jnp.broadcast_to(seen.rate * N**0.5 * Q, (len(seen.eigenvalues), *Q.shape))
