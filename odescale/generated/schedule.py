"""Loss under a learning-rate schedule: written by `python -m derivations`, do not edit.

From one-pass SGD on a power-law spectrum with any learning rate eta(t) to L = L0 + A tau^-alpha + n: the slow modes
become one power law in intrinsic time, the noise a power-law mixture of relaxing modes, one mode, or B eta. Then
the schedule of least final loss: a power decay, or a plateau and a late decay.
"""

# derivation: schedule | api: 1 | sha256: e2c16d73c867fa1a4d7ac1014fd4e269d3f9041a6f9400b4d0ff49ce8649d8c1
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

API = 1


def bias_power(tau: Array, alpha: Array) -> Array:
    """tau^-alpha."""
    return tau ** (-alpha)


def noise_decay(lag: Array, speed: Array) -> Array:
    """Share of n - B eta that is left after a stretch `lag` of tau at a constant rate."""
    return jnp.exp(-speed * lag)


def noise_memory(lag: Array, speed: Array, memory: Array) -> Array:
    """(1 + C s)^-beta, what the mixture of noise modes remembers after s."""
    return (speed * lag + 1) ** (-memory)


def noise_slope(noise: Array, rate: Array, speed: Array, level: Array) -> Array:
    """dn/dtau = -C (n - B eta)."""
    return -speed * (noise - level * rate)


def bias_exponent(a: Array, b: Array) -> Array:
    """alpha of lam_k = k^-b, e_k(0) = k^-a."""
    return (a - 1) / b


def memory_exponent(b: Array) -> Array:
    """beta of lam_k = k^-b."""
    return (b - 1) / b


def best_rate_at_lag(lag: Array, last: Array, speed: Array, memory: Array) -> Array:
    """c (1 + C s)^((beta + 1)/2), the best rate s before the end."""
    return last * (speed * lag + 1) ** (0.5 * memory + 0.5)


def best_rate_left(left: Array, last: Array, speed: Array, memory: Array) -> Array:
    """The best rate with r steps left, beta other than 1."""
    return last * (0.5 * speed * last * left * (-memory + 1) + 1) ** ((memory + 1) / (-memory + 1))


def step_price(last: Array, speed: Array, memory: Array, level: Array) -> Array:
    """mu = B C beta c^2, the noise that a step of the decay adds."""
    return level * speed * memory * last ** 2


def easy_exponent(alpha: Array, memory: Array) -> Array:
    """Exponent of the best loss in the horizon, alpha >= beta."""
    return alpha / (alpha - memory + 1)


def peak_exponent(alpha: Array, memory: Array) -> Array:
    """d log peak/d log horizon, alpha >= beta."""
    return -(alpha - memory) / (alpha - memory + 1)


def share_exponent(alpha: Array, memory: Array) -> Array:
    """d log (share of the decay)/d log horizon, alpha < beta."""
    return (alpha - memory) / (memory + 1)
