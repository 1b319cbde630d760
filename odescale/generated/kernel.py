"""Kernel ODE of a real network: written by `python -m derivations`, do not edit.

Full-batch gradient descent of any network in the space of its outputs: the tangent kernel, the kernel ODE for
square loss and cross-entropy, its eigenmodes in discrete and continuous time, the largest stable learning rate, the
drift of the kernel and what it does to the outputs.
"""

# derivation: kernel | api: 1 | sha256: b849a16f65204306339551540a1ed3b6cb4614906e5c22676a31357eb9b151cb
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

API = 1


def kernel_velocity(kernel: Array, slopes: Array, eta: Array, samples: Array) -> Array:
    """dF/dt = -(eta/n) Theta g, one unit of t is one step: `kernel` (M, N) between the outputs that move and those trained,
    `slopes` g (N,) of the sample loss in the trained outputs.
    """
    return -eta / samples * (kernel @ slopes)


def square_slopes(F: Array, Y: Array) -> Array:
    """g = F - Y of |F - Y|^2/2."""
    return F - Y


def cross_entropy_slopes(F: Array, Y: Array) -> Array:
    """g = softmax F - Y of log sum_k exp F_k - Y.F over the last axis; Y sums to one there."""
    return jax.nn.softmax(F, axis=-1) - Y


def descent_modes(a: Array, r: Array) -> tuple[Array, Array]:
    """(factor, sum) of a mode after r steps of gradient descent, a = eta lambda/n >= 0: (1 - a)^r and
    (1 - (1 - a)^r)/a (r at a = 0).
    """
    factor = (-a + 1) ** r
    small = a < 0.5
    safe = jnp.where(a > 0, a, 1.0)
    log_factor = r * jnp.log1p(-jnp.where(small, a, 0.0))
    lost = jnp.where(small, -jnp.expm1(log_factor), 1 - factor)
    return factor, jnp.where(a > 0, lost / safe, r)


def flow_modes(a: Array, t: Array) -> tuple[Array, Array]:
    """(factor, sum) of a mode after time t of gradient flow, a = eta lambda/n >= 0: e^(-a t) and (1 - e^(-a t))/a (t at a = 0)."""
    factor = jnp.exp(-a * t)
    safe = jnp.where(a > 0, a, 1.0)
    return factor, jnp.where(a > 0, -jnp.expm1(-a * t) / safe, t)


def stability_ratio(eigenvalue: Array, eta: Array, samples: Array) -> Array:
    """eta lambda_max/n; stable below `stability_bound(loss)`."""
    return eta * eigenvalue / samples


def stability_bound(loss: str) -> float:
    """Largest stable eta lambda_max/n of the "square" loss or of "cross_entropy" (curvature at most 1 and 1/2)."""
    return {'square': 2.0, 'cross_entropy': 4.0}[loss]
