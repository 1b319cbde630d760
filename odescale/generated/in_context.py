"""Regression learned in context by linear attention: written by `python -m derivations`, do not edit.

L layers of linear attention that learn to regress on the labelled tokens of their context: the closed ODE of the
layer strengths gamma_1..gamma_L, with the exact moments of a context of P tokens in D dimensions.
"""

# derivation: in_context | api: 1 | sha256: ec097cf0fd8b19c74f0d530279a18041957ef1b64ccbee2c99188609ad0a6d1a
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

API = 1


def remainder(gamma: Array, lam: Array) -> Array:
    """prod_l (1 - gamma_l lam/L), shape of `lam`; gamma has shape (L,)."""
    return jnp.prod(-gamma[:, None] * lam[None, :] / gamma.shape[0] + 1, axis=0)


def loss(gamma: Array, lam: Array, weights: Array) -> Array:
    """Mean squared error: the average of remainder^2 over eigenvalues `lam` with `weights`."""
    return jnp.sum(weights * remainder(gamma, lam) ** 2)


def flow(gamma: Array, lam: Array, weights: Array) -> Array:
    """dgamma_l/dt = -dLoss/dgamma_l of untied layers, shape (L,); tied layers move by the sum."""
    factors = -gamma[:, None] * lam[None, :] / gamma.shape[0] + 1
    others = jnp.where(jnp.eye(gamma.shape[0], dtype=bool)[:, :, None], 1.0, factors[None])
    slopes = jnp.broadcast_to(lam[None, :] / gamma.shape[0], factors.shape)
    return jnp.sum(2 * weights * jnp.prod(factors, axis=0) * slopes * jnp.prod(others, axis=1), axis=1)


def mode_flow(gamma: Array, lam: Array, om: Array, L: Array) -> Array:
    """dgamma/dt of a mode at infinite context, tied."""
    return 2 * lam ** 2 * om * (-gamma * lam / L + 1) ** (2 * L - 1)


def mode_loss(t: Array, lam: Array, om: Array, L: Array) -> Array:
    """Loss of a mode at time t, started at gamma = 0, L >= 2."""
    return lam * om * (2 * lam ** 3 * om * t * (2 * L - 2) / L + 1) ** (-L / (L - 1))


def hand_over(lam: Array, om: Array, L: Array) -> Array:
    """t_c of a mode, L >= 2."""
    return 0.25 * L / (lam ** 3 * om * (L - 1))


def second_moment(D: Array, P: Array) -> Array:
    """m_2 of a real Wishart matrix, exact."""
    return (D + P + 1) / P


def third_moment(D: Array, P: Array) -> Array:
    """m_3 of a real Wishart matrix, exact."""
    return (3 * D + D ** 2 + 3 * P + P ** 2 + 3 * D * P + 4) / P ** 2
