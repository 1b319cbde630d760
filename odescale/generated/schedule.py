"""Loss under a learning-rate schedule: written by `python -m derivations`, do not edit.

From one-pass SGD on a power-law spectrum with any learning rate eta(t) to L = L0 + A tau^-alpha + n: the slow modes
become one power law in intrinsic time, the noise a power-law mixture of relaxing modes, one mode, or B eta.
"""

# derivation: schedule | api: 1 | sha256: e0b630eb13be4b700141e18e71fdb85af835efa03b7fb73bec3ceb84d1fe60fa
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
