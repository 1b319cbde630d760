"""Systems under the schedules that escapes are made of: power, hot start, decay phase, growing inverse temperature.

Times are in units of t, d SGD steps; eta(t) and the inverse temperature beta(t) of p = softmax(beta lam) as products of a base
value and a schedule.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.clock import GrowthSchedule, PowerSchedule, WarmupStableDecaySchedule
from odescale.systems.peaked import Peaked, peaked

DECAY_LEVEL = 1e-3
"""Rate at the end of a decay phase, relative to the stable one."""


def sgd(classes: int, rate: float, *, power: PowerSchedule | None = None, heat: GrowthSchedule | None = None,
        **given: Any) -> Peaked:  # fmt: skip
    """SGD with a power schedule of eta and a growing inverse temperature, both constant unless given: one compilation."""
    return peaked(
        classes=classes, learning_rate=rate, schedule=power or PowerSchedule(0.0), logit_schedule=heat or GrowthSchedule(0.0),
        **given,
    )  # fmt: skip


def heated(classes: int, rate: float, h: float, onset: float, **given: Any) -> Peaked:
    """beta = (1 + t/onset)^h with eta = rate (1 + t/onset)^(-2h): eta beta^2 constant."""
    return sgd(classes, rate, power=PowerSchedule(2 * h, onset), heat=GrowthSchedule(h, onset), **given)


class GrowthUntil(eqx.Module):
    """beta = (1 + min(t, stop)/onset)^h, times in units of t: a growth that ends where the logits have the teacher's scale."""

    power: float
    onset: float
    stop: float

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return (1 + jnp.minimum(jnp.asarray(t), self.stop) / self.onset) ** self.power


class MatchedRate(eqx.Module):
    """eta/rate = beta^-2 (1 + t/stop)^-g: eta beta^2 constant up to `stop` (units of t), then falling."""

    growth: GrowthUntil
    decay: float

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return self.growth(t) ** -2.0 * (1 + jnp.asarray(t) / self.growth.stop) ** -self.decay


def heated_until(classes: int, rate: float, h: float, stop: float, g: float, **given: Any) -> Peaked:
    """For a finite teacher temperature: beta = (1 + t)^h up to `stop`, constant later; eta beta^2 = rate (1 + t/stop)^-g."""
    growth = GrowthUntil(h, 1.0, stop)
    return peaked(classes=classes, learning_rate=rate, schedule=MatchedRate(growth, g), logit_schedule=growth, **given)


def decayed(classes: int, rate: float, horizon: float, fraction: float, **given: Any) -> Peaked:
    """Warm-up-stable-decay without warm-up: eta constant, the last `fraction` of the horizon linear to 1e-3 of it."""
    schedule = WarmupStableDecaySchedule(0.0, (1 - fraction) * horizon, horizon, DECAY_LEVEL)
    return peaked(classes=classes, learning_rate=rate, schedule=schedule, **given)


def hot_start(classes: int, rate: float, g: float, horizon: float, **given: Any) -> Peaked:
    """eta = rate ((1 + T)/(1 + t))^g: a power schedule that ends at `rate`, whose start depends on the horizon T."""
    return sgd(classes, rate * (1 + horizon) ** g, power=PowerSchedule(g), **given)
