"""Optimisers as preconditioners per mode: written by `python -m derivations`, do not edit.

As d grows the noise of a coordinate's gradient sets its second moment, a function of the overlaps: an optimiser is
a preconditioner P_k for each eigenmode. From the update of the weights: momentum, Adam and AdamW, Muon, Shampoo's
left factor, sign and Lion at any batch, clipping; what stays outside; exponents and floors of the loss.
"""

# derivation: optimizers | api: 1 | sha256: cc66ea53eeaf7161a68daa91b0a8cf2aa34304df4d911b1286de74af190c40d4
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln

from odescale.expectations.arcsine import arcsine

Number = Any
"""An array or a float."""

API = 1


def velocity_damping(trace: Number, beta: Number) -> Array:
    """gamma per unit of t, which keeps the mean delay of the average."""
    return trace * (-beta + 1)


def present_share(beta: Number, nesterov: bool = False) -> Array:
    """s of a move by s g + (1 - s) m, m the average before the step: 1 - beta, or 1 - beta^2 with Nesterov's look-ahead."""
    return -beta ** 2 + 1 if nesterov else -beta + 1


def average_bias(share: Number, damping: Number, t: Number) -> Array:
    """What an average that began with zero velocities weighs in all: Adam divides by it."""
    return -(-share + 1) * jnp.exp(-damping * t) + 1


def average_noise(beta: Number, share: Number) -> Array:
    """Squared weights of the average, its noise in units of lam V/(B N)."""
    return share ** 2 + (-beta + 1) * (-share + 1) ** 2 / (beta + 1)


def second_moment_target(eigenvalue: Number, noise: Number, batch: Number, mean: Number, trace: Number) -> Array:
    """What N times the second moment relaxes to: noise lam V_ii/B, and (h_k q_k h_k^T)_ii/N of the mean."""
    return mean / trace + noise * eigenvalue / batch


def second_moment_forgetting(trace: Number, beta2: Number) -> Array:
    """g2 per unit of t."""
    return -trace * jnp.log(beta2)


def second_moment(kept: Number, target: Number, beta2: Number, forgetting: Number, t: Number) -> Array:
    """Bias-corrected moment of the step at t, its own gradient included; `kept` obeys du/dt = g2 (target - u), u(0) = 0."""
    return (kept + (-beta2 + 1) * (target - kept)) / (-beta2 * jnp.exp(-forgetting * t) + 1)


def second_moment_of_drift(second: Number, mean: Number, trace: Number) -> Array:
    """What the drift divides by in place of v: the square of the mean counts three times, once in v."""
    return second + 2 * mean / trace


def adam_preconditioner(rate: Number, second: Number, eps: Number, trace: Number) -> Array:
    """Diagonal of P_k: a/(sqrt v + eps sqrt N)."""
    return rate / (jnp.sqrt(second) + jnp.sqrt(trace) * eps)


def gram_of_average(strength: Number, noise: Number, batch: Number, mean: Number, trace: Number) -> Array:
    """K = nu N V/B + m, `strength` nu of `average_noise`, `mean` m = sum_k w_k h_k q_k h_k^T."""
    return mean + trace * noise * strength / batch


def missing_noise(beta: Number, share: Number, damping: Number, t: Number) -> Array:
    """What K = r + this N V/B needs beside the overlaps r of s h + (1 - s) U, velocities U from zero at t = 0."""
    return share ** 2 + (-beta + 1) ** 2 * (-share + 1) ** 2 * (-jnp.exp(-2 * damping * t) + 1) / (2 * beta + 2)


def newton_schulz_factor(gram: Array, a: Number, b: Number, c: Number) -> Array:
    """f(A), A (b, b) the Gram matrix of X: one iteration is X <- f(A) X, A <- f(A) A f(A)."""
    one = jnp.eye(len(gram), dtype=gram.dtype)
    return a * one + b * gram + c * gram @ gram


def exact_coefficients() -> tuple[float, float, float]:
    """(a, b, c) of the quintic whose fixed point 1 is of third order."""
    return 1.875, -1.25, 0.375


def sign_weight(square: Number) -> Array:
    """Weight sqrt(2/pi)/|g|_i of a batch in drift, `square` = |g|_i^2 = g_ii (Lion: `lion_square`)."""
    return jnp.sqrt(2) / (jnp.sqrt(jnp.pi) * jnp.sqrt(square))


def sign_noise(cosine: Number) -> Array:
    """E[sgn sgn] of two rows whose coordinates correlate by `cosine` given the fields."""
    return 2 * arcsine(cosine) / jnp.pi


def lion_square(square: Number, noise: Number, batch: Number, beta1: Number, beta2: Number) -> Array:
    """sigma_i^2: variance of Lion's c over lam/N given the fields of the present batch; entry i, j with g_ij and V_ij."""
    return square * (-beta1 + 1) ** 2 + noise * beta1 ** 2 * (-beta2 + 1) / (batch * (beta2 + 1))


def lion_past(beta1: Number, beta2: Number) -> Array:
    """Squared weights of the past in c; carried velocities take this linear part of the noise."""
    return beta1 ** 2 * (-beta2 + 1) / (beta2 + 1)


def lion_lags(beta1: Number, beta2: Number) -> Array:
    """sum over l != 0 of the correlations of c at lag l (first order of the arcsine), where velocities are not carried."""
    return (-beta1 ** 2 * (-beta2 + 1) / (beta2 + 1) - (-beta1 + 1) ** 2 + 1) / (beta1 ** 2 * (-beta2 + 1) / (beta2 + 1) + (-beta1 + 1) ** 2)


def clip_weight(square: Number, clip: Number) -> Array:
    """min(1, c/|g|) of a batch, `square` |g|^2 = sum_i g_ii over all rows that move."""
    return jnp.minimum(1.0, clip / jnp.sqrt(square))


def adam_exponent(c: Number, b: Number) -> Array:
    """2 alpha of 2L = A tau^(-2 alpha), lam_k = k^-b, lam_k q_k(0) = k^-c."""
    return 2 * (c - 1) / b


def adam_exponent_of_time(alpha: Number) -> Array:
    """-d log L/d log t at a constant rate before the floor, alpha < 1."""
    return 2 * alpha / (-alpha + 1)


def adam_loss_slope(loss: Number, rate: Number, batch: Number, amplitude: Number, alpha: Number) -> Array:
    """dL/dt of the bias alone, `amplitude` A of 2L = A tau^(-2 alpha), alpha = (c - 1)/b."""
    return -jnp.sqrt(2) * jnp.sqrt(batch) * jnp.sqrt(loss) * rate * alpha * (2 * loss / amplitude) ** (0.5 / alpha)


def adam_floor(rate: Number, batch: Number, root: Number) -> Array:
    """L at rest under Adam in the eigenbasis, `root` = (1/N) sum_k sqrt lam_k."""
    return 0.125 * root ** 2 * rate ** 2 / batch


def sign_gain(batch: Number) -> Array:
    """c_B: the sign's drift is -a c_B sqrt(lam_k/V), linear model, one row."""
    return 2 * jnp.exp(-gammaln(batch / 2) + gammaln(batch / 2 + 0.5)) / jnp.sqrt(jnp.pi)


def sign_floor(rate: Number, batch: Number, root: Number) -> Array:
    """L at rest under the sign, linear model, one row; `root` = (1/N) sum_k sqrt lam_k."""
    return 0.125 * root ** 2 * rate ** 2 / sign_gain(batch) ** 2
