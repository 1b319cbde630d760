"""Rollouts with a long tail, speculation, and a drafter that learns in the idle time: written by `python -m derivations`, do not edit.

The time of a rollout of N requests of random lengths on a device whose rounds take a time that depends on the batch
and on the strategy of speculation, as an ODE in tokens; the tokens of a speculative round; and the misalignment of
a drafter that is trained in the idle time while the policy moves.
"""

# derivation: rollout | api: 1 | sha256: 4c078bd033b7206f933baf5a7e3b706a96077019febb4f00bea9b04d1d663a94
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

API = 1


def roofline(m: Array, m0: Array, q: Array) -> Array:
    """T(m): a pass of m tokens; reading the weights is 1."""
    return ((m / m0) ** q + 1) ** (1 / q)


def plain_time(b: Array, m0: Array, q: Array, kv: Array) -> Array:
    """tau(b): a plain round of b requests."""
    return kv * (b - 1) + ((b / m0) ** q + 1) ** (1 / q)


def speculative_time(b: Array, depth: Array, verified: Array, m0: Array, q: Array, kv: Array, c0: Array, c1: Array, c2: Array) -> Array:
    """tau(b; d, V): d tokens drafted, V of each request verified."""
    return c0 + kv * (b - 1) + c1 * depth * (b * c2 + 1) + ((verified * b / m0) ** q + 1) ** (1 / q)


def kept(i: Array, first: Array, hazard: Array) -> Array:
    """P(i or more drafted tokens are accepted)."""
    return jnp.exp(0.5 * i * (2 * hazard - hazard * (i + 1) + 2 * jnp.log(first)))


def overshoot(accepted: Array, square: Array) -> Array:
    """Tokens of its rounds beyond a request's length; `square` = E k^2."""
    return 0.5 * (-accepted + square) / accepted


def scatter(accepted: Array, square: Array) -> Array:
    """dw/dl: variance of a request's place per token of the fluid."""
    return -accepted + square / accepted


def after_idle(kappa: Array, floor: Array, rate: Array, idle: Array) -> Array:
    """kappa after an idle time."""
    return floor + (kappa - floor) * jnp.exp(-rate * idle)


def drafter_flow(kappa: Array, floor: Array, drift: Array, rate: Array, idle: Array) -> Array:
    """dkappa/dt, one unit of t is one update of the policy."""
    return -rate * idle * (kappa - floor - drift / (-jnp.exp(-rate * idle) + 1))


def total_variation(kappa: Array, shape: Array) -> Array:
    """TV = c sqrt(kappa/pi)."""
    return shape * jnp.sqrt(kappa) / jnp.sqrt(jnp.pi)


def end_to_end(share: Array, gain: Array) -> Array:
    """Gain of the whole step from that of the rollout, a share f of it."""
    return 1 / (-share + share / gain + 1)
