"""The compute-optimal frontier: written by `python -m derivations`, do not edit.

The least risk R = sum A_i x_i^-alpha_i + D exp(-lam t) at compute C = c prod x_i^q_i t^q_t: exponent 1/S for power
laws, 1/(S + q_t/(lam t)) with exponential time, a true exponential phase with an end C* only where sizes have
floors, and the compute-optimal phases of power-law features.
"""

# derivation: frontier | api: 1 | sha256: 7a892f69e47b0bb97a390b80566a3c171925007f7668b49852e7a9f49fd1c502
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

API = 1


def size_of_multiplier(multiplier: Array, amplitude: Array, exponent: Array, cost: Array) -> Array:
    """x = (alpha A/(q mu))^(1/alpha), the size of a term A x^-alpha at multiplier mu."""
    return (amplitude * exponent / (multiplier * cost)) ** (1 / exponent)


def release_multiplier(floor: Array, amplitude: Array, exponent: Array, cost: Array) -> Array:
    """g = alpha A x_0^-alpha/q: the multiplier at which a size leaves its floor (inf without one)."""
    return amplitude * exponent * floor ** (-exponent) / cost


def log_scale(amplitude: Array, exponent: Array, cost: Array) -> Array:
    """(q/alpha) log(alpha A/q): the part of one size in K."""
    return cost * jnp.log(amplitude * exponent / cost) / exponent


def power_multiplier(log_budget: Array, S: Array, log_scale: Array) -> Array:
    """mu = exp((K - b)/S) of power laws alone; R* = S mu."""
    return jnp.exp((log_scale - log_budget) / S)


def time_multiplier(t: Array, decay: Array, rate: Array, time_cost: Array) -> Array:
    """mu = lam t D exp(-lam t)/q_t."""
    return decay * rate * t * jnp.exp(-rate * t) / time_cost


def time_balance(log_budget: Array, S: Array, log_scale: Array, decay: Array, rate: Array, time_cost: Array) -> tuple[Array, Array, Array]:
    """(s, k, r) of s t + k log t = r, whose larger root is the optimal time."""
    return S * rate, -S + time_cost, -log_scale + log_budget + S * jnp.log(decay) + S * jnp.log(rate) - S * jnp.log(time_cost)


def least_rapidity(S: Array, time_cost: Array) -> Array:
    """lam t above which the stationary point is a minimum."""
    return -time_cost / S + 1


def rapidity_constant(multiplier: Array, decay: Array, time_cost: Array) -> Array:
    """r of y - log y = r, whose larger root is lam t at multiplier mu; none where r < 1."""
    return jnp.log(decay) - jnp.log(multiplier) - jnp.log(time_cost)


def local_exponent(S: Array, rapidity: Array, time_cost: Array) -> Array:
    """-dlog R*/dlog C = 1/(S + q_t/(lam t)) without floors; `rapidity` = lam t."""
    return rapidity / (time_cost + S * rapidity)


def held_exponent(multiplier: Array, held: Array, S: Array, rapidity: Array, time_cost: Array) -> Array:
    """-dlog R*/dlog C with terms F (`held`) at their floors; `rapidity` = lam t."""
    return 1 / (S + held / multiplier + time_cost / rapidity)


def exponent_log_slope(p: Array, S: Array, rapidity: Array, time_cost: Array) -> Array:
    """dlog p/dlog C where p is the local exponent; `rapidity` = lam t."""
    return p + (-rapidity + 1) / (-S + time_cost + S * rapidity)


def exponent_jump(S: Array, rapidity: Array, time_cost: Array) -> Array:
    """Jump of dlog p/dlog C at C*, S = q/alpha of the size released there; `rapidity` = lam t*."""
    return S * (rapidity - 1) ** 2 / (time_cost * (-S + time_cost + S * rapidity))


def phase_ia(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """(p, w, s) of phase Ia: L ~ C^-p, d ~ C^w, t ~ C^s; bias = width."""
    return (a - 1) / (b + 1), 1 / (b + 1), b / (b + 1)


def phase_ii(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """(p, w, s) of phase II: L ~ C^-p, d ~ C^w, t ~ C^s; bias = features."""
    return (a - 1) / a, (a - b) / a, b / a


def phase_iii(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """(p, w, s) of phase III: L ~ C^-p, d ~ C^w, t ~ C^s; noise = features."""
    return 0.5 * (2 * b - 1) / b, jnp.asarray(0.5), jnp.asarray(0.5)
