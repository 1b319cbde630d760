"""A system in closed form, compiled in a second, for tests of sweeps: L = exp(-rate t) + tail (start/(1 + start t))^2.

With start < 0 it runs off at t = -1/start. In a file of its own, so that processes elsewhere find its builder by path.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import odescale
from odescale.systems.parameters import Parameter

PARAMETERS = (
    Parameter("rate", 1.0, "a positive number", lambda x: x > 0, "1/t", "of the exponential"),
    Parameter("tail", 1e-3, "a number >= 0", lambda x: x >= 0, "1", "size of the power law"),
    Parameter("start", 1.0, "a number", lambda x: True, "1", "of the power law"),
)


class TwoRates(odescale.AbstractSystem):
    """a' = -rate a, b' = -b^2, L = a + tail b^2."""

    rate: Float[Array, ""]
    tail: Float[Array, ""]
    start: Float[Array, ""]
    label: str = eqx.field(static=True, default="two rates")

    name: ClassVar[str] = "two_rates"
    parameters: ClassVar = PARAMETERS
    sources: ClassVar = ()

    @property
    def integration(self):
        return odescale.Integration(growth=1e6)

    @property
    def clock(self):
        return odescale.Clock(10.0, jnp.asarray(0.1))

    def initial_state(self):
        return jnp.stack([jnp.ones_like(self.start), self.start])

    def vector_field(self, t, y, args=None):
        return jnp.stack([-self.rate * y[0], -(y[1] ** 2)])

    def excess_loss(self, t, y):
        return y[0] + self.tail * y[1] ** 2

    def observables(self, t, y):
        return {"power_law": y[1]}

    def check(self):
        pass

    def summary(self):
        return {name: float(getattr(self, name)) for name in ("rate", "tail", "start")}


def two_rates(rate=1.0, tail=1e-3, start=1.0):
    return TwoRates(*(jnp.asarray(value, float) for value in (rate, tail, start)))


def exact_loss(t, rate, tail=1e-3, start=1.0):
    return np.exp(-rate * t) + tail * (start / (1 + start * t)) ** 2
