"""Pruned streams and the largest margin: written by `python -m derivations`, do not edit.

A perceptron that learns a teacher from examples kept by the teacher's margin: one pass of logistic SGD as a closed
ODE of R and Q, and the condition of the largest margin on a fixed pool.
"""

# derivation: pruning | api: 1 | sha256: 6d7edbfba93e259bfadcf855f124a5dd7f4139c46df08b8b786d8ac69a69f903
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

API = 1


def slope(field: Array) -> Array:
    """g = -dl/dlambda of the logistic loss log(1 + e^-lambda)."""
    return jax.nn.sigmoid(-field)  # 1 / (jnp.exp(field) + 1), without its overflow


def student_field(R: Array, Q: Array, t: Array, z: Array) -> Array:
    """lambda of a kept example with the teacher's margin t: Gaussian around R t with variance Q - R^2."""
    return R * t + z * jnp.sqrt(Q - R ** 2)


def overlap_flow(eta: Array, cross: Array) -> Array:
    """dR/dt, `cross` = E[g |t|]; one unit of t is d steps."""
    return eta * cross


def norm_flow(eta: Array, own: Array, square: Array) -> Array:
    """dQ/dt, `own` = E[g lambda], `square` = E[g^2]."""
    return 2 * eta * own + eta ** 2 * square


def error(R: Array, Q: Array) -> Array:
    """arccos(R/sqrt Q)/pi by the arctangent, which keeps its digits where student and teacher are nearly parallel."""
    return jnp.arctan2(jnp.sqrt(Q - R ** 2), R) / jnp.pi
