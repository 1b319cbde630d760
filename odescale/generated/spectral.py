"""Exact SGD on any spectrum: written by `python -m derivations`, do not edit.

One-pass SGD of a linear model on Gaussian features of any covariance: the exact recursion of the excess modes at
any dimension and batch size, the ODE that reproduces every step, its Volterra form, the bound of stability, and
heavy-ball momentum.
"""

# derivation: spectral | api: 1 | sha256: e9ec507ce94d74bb493b5fb69a1623830a2e1d2a0d3a77d7d13aeb62e3eade36
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

API = 1


def shrinkage(lam: Array, eta: Array, batch: Array) -> Array:
    """g = 1 - G of rho -> G rho + c P, one SGD step. `batch` = inf drops the noise. Scalars, or arrays that broadcast."""
    per_batch = 1 / batch
    return 2 * eta * lam - eta ** 2 * lam ** 2 - eta ** 2 * lam ** 2 * per_batch


def force(square: Array, eta: Array, batch: Array) -> Array:
    """c of e -> (1 - g) e + c P, e = lam rho the excess risk of a mode, `square` = lam^2 (a bin: the sum of lam^2).
    `batch` = inf drops the noise. Scalars, or arrays that broadcast.
    """
    per_batch = 1 / batch
    return eta ** 2 * per_batch * square


def log_rate(g: Array) -> tuple[Array, Array]:
    """(a, a/g) of d e/dr = -a e + (a/g) c P, r in SGD steps, from `shrinkage` 0 <= g < 1: exact where P is constant."""
    small = g < 1e-3
    safe = jnp.where(small, 0.5, jnp.minimum(g, 1 - 1e-16))
    ratio = jnp.where(small, 1 + g / 2 + g ** 2 / 3 + g ** 3 / 4 + g ** 4 / 5, -jnp.log1p(-safe) / safe)
    return g * ratio, ratio


def kernel_mass(lam: Array, square: Array, eta: Array, batch: Array) -> Array:
    """kappa_k, the integral of the noise kernel of a mode; stable where all g > 0 and the sum is < 1. `batch` = inf drops the noise. Scalars, or arrays that broadcast."""
    per_batch = 1 / batch
    return square * -eta * per_batch / (lam * (eta * lam + eta * lam * per_batch - 2))


def momentum_step(mode: Array, cross: Array, speed: Array, risk: Array, lam: Array, eta: Array, batch: Array, momentum: Array) -> tuple[Array, Array, Array]:
    """(E d^2, E d v, E v^2) after v -> beta v - eta ghat, d -> d + v, d the error of a weight; `risk` = s^2 +
    sum lam E d^2. `batch` = inf drops the noise. Scalars, or arrays that broadcast.
    """
    per_batch = 1 / batch
    new_mode = mode + 2 * momentum * cross + momentum ** 2 * speed - 2 * eta * lam * mode + eta ** 2 * lam ** 2 * mode + risk * eta ** 2 * lam * per_batch - 2 * momentum * cross * eta * lam + eta ** 2 * lam ** 2 * per_batch * mode
    new_cross = momentum * cross + momentum ** 2 * speed - eta * lam * mode + eta ** 2 * lam ** 2 * mode + risk * eta ** 2 * lam * per_batch - 2 * momentum * cross * eta * lam + eta ** 2 * lam ** 2 * per_batch * mode
    new_speed = momentum ** 2 * speed + eta ** 2 * lam ** 2 * mode + risk * eta ** 2 * lam * per_batch - 2 * momentum * cross * eta * lam + eta ** 2 * lam ** 2 * per_batch * mode
    return new_mode, new_cross, new_speed


def momentum_mass(lam: Array, eta: Array, batch: Array, momentum: Array) -> Array:
    """kappa_k of heavy-ball SGD: lam E d^2/P at its fixed point. `batch` = inf drops the noise. Scalars, or arrays that broadcast."""
    per_batch = 1 / batch
    return -eta * lam * per_batch * (momentum + 1) / (2 * momentum ** 2 + eta * lam - momentum * eta * lam + eta * lam * per_batch + momentum * eta * lam * per_batch - 2)


def stored_step(mean: Array, variance: Array, square: Array, lam: Array, eta: Array, batch: Array) -> tuple[Array, Array]:
    """Mean and variance of a mode's error after a step on stored samples; `square` = mean over samples of z^2 E r^2.
    `batch` = inf drops the noise. Scalars, or arrays that broadcast.
    """
    per_batch = 1 / batch
    return mean - eta * lam * mean, variance - 2 * variance * eta * lam + variance * eta ** 2 * lam ** 2 + square * eta ** 2 * per_batch - variance * eta ** 2 * lam ** 2 * per_batch - eta ** 2 * lam ** 2 * mean ** 2 * per_batch
