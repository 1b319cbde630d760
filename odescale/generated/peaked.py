"""Peaked distributions: the one-third law: written by `python -m derivations`, do not edit.

Online SGD of softmax cross-entropy with K classes on Gaussian inputs and a linear teacher: the closed flow of
overlap D and spread Delta, its exact representation without cancellation, the power law of its late stage from a
balance of powers, where that ends (finite teacher temperature, weight decay), and what would beat it.
"""

# derivation: peaked | api: 1 | sha256: 77bf05e4ccdd2c0bcbe53099403f9bfd2be60e2a27a681a40810ca56b8df794a
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

API = 1


def overlap_flow(D: Array, Delta: Array, m: Array, mean_gap: Array, H: Array, G: Array, eta: Array, batch: Array, classes: Array, weight_decay: Array | float = 0.0, smoothing: Array | float = 0.0, beta: Array | float = 1.0) -> tuple[Array, Array]:
    """(dD/dalpha, dDelta/dalpha) of online SGD; one unit of alpha is d SGD steps W <- W - (eta/sqrt d) mean_B g x^T.

    `m` = E[y.lam*] of the labels before smoothing (hard: m_K; soft, sampled: Phi(b*)), `mean_gap` = m - beta s H, `H` = E[1 -
    |p|^2] at beta s, s = sqrt(D^2 + Delta), `G` = E|p - y|^2 with the smoothed label (`second_moment`). `classes` K,
    `smoothing` eps, p = softmax(beta lam). `batch` = inf drops the noise. Scalars, or arrays that broadcast.
    `weight_decay` w: W <- W - (w/d) W in each step.
    """
    others, per_batch = classes - 1, 1 / batch
    square = D ** 2 + Delta
    s = jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0)
    total = s + jnp.abs(D)
    excess = jnp.where(D >= 0, Delta / jnp.where(total > 0, total, 1.0), s - D)
    dD = -D * weight_decay + beta * eta * mean_gap / others + H * beta ** 2 * eta * excess / others - beta * smoothing * eta * m / others
    dDelta = -2 * Delta * weight_decay - 2 * Delta * H * beta ** 2 * eta / others + G * per_batch * beta ** 2 * eta ** 2 / others
    return dD, dDelta


def second_moment(H: Array, disagreement: Array, label_response: Array, classes: Array, smoothing: Array | float = 0.0) -> Array:
    """G = E|p - (1 - eps) y - eps/K|^2 from H = E[1 - |p|^2], `disagreement` U = 1 - E[p.y] and `label_response` 1 - E|y|^2
    (zero for hard and sampled labels, H(b*) for soft ones).
    """
    u0 = smoothing ** 2
    G = -H + 2 * disagreement - label_response + u0 - u0 / classes - 2 * disagreement * smoothing + 2 * label_response * smoothing - label_response * u0
    return G


def adam_flow(D: Array, Delta: Array, m: Array, mean_gap: Array, H: Array, G: Array, learning_rate: Array, batch: Array, classes: Array, dimension: Array, weight_decay: Array | float = 0.0, smoothing: Array | float = 0.0, beta: Array | float = 1.0, remembered: Array | None = None) -> tuple[Array, Array]:
    """(dD, dDelta) per Adam step, logits W x with `dimension` inputs, W* W*^T = I; `learning_rate` per weight.

    `m` = E[y.lam*] of the labels before smoothing (hard: m_K; soft, sampled: Phi(b*)), `mean_gap` = m - beta s H, `H` = E[1 -
    |p|^2] at beta s, s = sqrt(D^2 + Delta), `G` = E|p - y|^2 with the smoothed label (`second_moment`). `classes` K,
    `smoothing` eps, p = softmax(beta lam). `batch` = inf drops the noise. Scalars, or arrays that broadcast.
    `weight_decay` w: W <- W - w W in each step (decoupled). `remembered`: Adam's average of v; None: v of now.
    """
    others, per_batch = classes - 1, 1 / batch
    square = D ** 2 + Delta
    s = jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0)
    total = s + jnp.abs(D)
    excess = jnp.where(D >= 0, Delta / jnp.where(total > 0, total, 1.0), s - D)
    drift = beta * mean_gap / others + H * beta ** 2 * excess / others - beta * smoothing * m / others
    v = (drift ** 2 * others - drift ** 2 * per_batch * others + Delta * H ** 2 * beta ** 4 / others + G * per_batch * beta ** 2 * dimension - Delta * H ** 2 * per_batch * beta ** 4 / others) / (classes * dimension) if remembered is None else remembered
    dD = -D * weight_decay + drift * learning_rate / jnp.sqrt(v)
    dDelta = -2 * Delta * weight_decay - 2 * Delta * H * beta ** 2 * learning_rate / (others * jnp.sqrt(v)) + G * per_batch * beta ** 2 * dimension * learning_rate ** 2 / (others * v)
    return dD, dDelta


def adam_second_moment(D: Array, Delta: Array, m: Array, mean_gap: Array, H: Array, G: Array, batch: Array, classes: Array, dimension: Array, smoothing: Array | float = 0.0, beta: Array | float = 1.0) -> Array:
    """v, the mean square of a minibatch gradient's entries, logits W x with `dimension` inputs; Adam remembers it.

    `m` = E[y.lam*] of the labels before smoothing (hard: m_K; soft, sampled: Phi(b*)), `mean_gap` = m - beta s H, `H` = E[1 -
    |p|^2] at beta s, s = sqrt(D^2 + Delta), `G` = E|p - y|^2 with the smoothed label (`second_moment`). `classes` K,
    `smoothing` eps, p = softmax(beta lam). `batch` = inf drops the noise. Scalars, or arrays that broadcast.
    """
    others, per_batch = classes - 1, 1 / batch
    square = D ** 2 + Delta
    s = jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0)
    total = s + jnp.abs(D)
    excess = jnp.where(D >= 0, Delta / jnp.where(total > 0, total, 1.0), s - D)
    drift = beta * mean_gap / others + H * beta ** 2 * excess / others - beta * smoothing * m / others
    return (drift ** 2 * others - drift ** 2 * per_batch * others + Delta * H ** 2 * beta ** 4 / others + G * per_batch * beta ** 2 * dimension - Delta * H ** 2 * per_batch * beta ** 4 / others) / (classes * dimension)


def normalised_flow(D: Array, Delta: Array, m: Array, mean_gap: Array, H: Array, G: Array, eta: Array, batch: Array, classes: Array, dimension: Array, weight_decay: Array | float = 0.0, smoothing: Array | float = 0.0, beta: Array | float = 1.0) -> tuple[Array, Array]:
    """(dD/dalpha, dDelta/dalpha) of W <- W - (eta/sqrt d) ghat/|ghat|, |ghat| the Frobenius norm of ghat = mean_B g x^T;
    one unit of alpha is d = `dimension` steps.

    `m` = E[y.lam*] of the labels before smoothing (hard: m_K; soft, sampled: Phi(b*)), `mean_gap` = m - beta s H, `H` = E[1 -
    |p|^2] at beta s, s = sqrt(D^2 + Delta), `G` = E|p - y|^2 with the smoothed label (`second_moment`). `classes` K,
    `smoothing` eps, p = softmax(beta lam). `batch` = inf drops the noise. Scalars, or arrays that broadcast.
    `weight_decay` w: W <- W - (w/d) W in each step. Needs B >> 1: the norm must not fluctuate.
    """
    others, per_batch = classes - 1, 1 / batch
    square = D ** 2 + Delta
    s = jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0)
    total = s + jnp.abs(D)
    excess = jnp.where(D >= 0, Delta / jnp.where(total > 0, total, 1.0), s - D)
    drift = beta * mean_gap / others + H * beta ** 2 * excess / others - beta * smoothing * m / others
    v = drift ** 2 * others - drift ** 2 * per_batch * others + Delta * H ** 2 * beta ** 4 / others + G * per_batch * beta ** 2 * dimension - Delta * H ** 2 * per_batch * beta ** 4 / others
    dD = -D * weight_decay + drift * eta / jnp.sqrt(v)
    dDelta = -2 * Delta * weight_decay - 2 * Delta * H * beta ** 2 * eta / (others * jnp.sqrt(v)) + G * per_batch * beta ** 2 * eta ** 2 / (others * v)
    return dD, dDelta


def sign_flow(D: Array, Delta: Array, sigma: Array, h: Array, centred: Array, learning_rate: Array, dimension: Array, weight_decay: Array | float = 0.0, beta: Array | float = 1.0) -> tuple[Array, Array]:
    """(dD, dDelta) of W <- W - l sgn(ghat) per step, logits W x with `dimension` inputs, W* W*^T = I; `centred` = 1 - rho.

    `sigma`, `h`, at (beta D, beta^2 Delta) of `odescale.expectations.unit_steps`. `weight_decay` w: W <- W - w W.
    """
    dD = -D * weight_decay + jnp.sqrt(2) * learning_rate * sigma / jnp.sqrt(jnp.pi)
    dDelta = -2 * Delta * weight_decay + centred * dimension * learning_rate ** 2 - 2 * jnp.sqrt(2) * Delta * beta * learning_rate * h / jnp.sqrt(jnp.pi)
    return dD, dDelta


def muon_pair_flow(D: Array, Delta: Array, sigma: Array, h: Array, learning_rate: Array, gain: Array, dimension: Array, weight_decay: Array | float = 0.0, beta: Array | float = 1.0) -> tuple[Array, Array]:
    """(dD, dDelta) of Muon without momentum on two classes per step, logits W x with `dimension` inputs, W* W*^T = I; `gain` its polynomial at 1.

    `sigma`, `h`, at (beta D, beta^2 Delta) of `odescale.expectations.unit_steps`. `weight_decay` w: W <- W - w W.
    """
    dD = -D * weight_decay + 0.5 * jnp.sqrt(2) * learning_rate * gain * sigma / jnp.sqrt(dimension)
    dDelta = -2 * Delta * weight_decay + learning_rate ** 2 * gain ** 2 - jnp.sqrt(2) * Delta * beta * learning_rate * h * gain / jnp.sqrt(dimension)
    return dD, dDelta


def muon_flow(D: Array, Delta: Array, m: Array, mean_gap: Array, H: Array, G: Array, learning_rate: Array, gain: Array, length: Array, strength: Array, batch: Array, classes: Array, dimension: Array, weight_decay: Array | float = 0.0, smoothing: Array | float = 0.0, beta: Array | float = 1.0) -> tuple[Array, Array]:
    """(dD, dDelta) of Muon per step, logits W x with `dimension` inputs, W* W*^T = I; `gain` q, `length` q_2
    of its polynomial.

    `m` = E[y.lam*] of the labels before smoothing (hard: m_K; soft, sampled: Phi(b*)), `mean_gap` = m - beta s H, `H` = E[1 -
    |p|^2] at beta s, s = sqrt(D^2 + Delta), `G` = E|p - y|^2 with the smoothed label (`second_moment`). `classes` K,
    `smoothing` eps, p = softmax(beta lam). `batch` = inf drops the noise. Scalars, or arrays that broadcast.
    `strength` nu: squared weights of its average; B/nu well above D.
    """
    others, per_batch = classes - 1, 1 / batch
    square = D ** 2 + Delta
    s = jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0)
    total = s + jnp.abs(D)
    excess = jnp.where(D >= 0, Delta / jnp.where(total > 0, total, 1.0), s - D)
    drift = beta * mean_gap / others + H * beta ** 2 * excess / others - beta * smoothing * m / others
    v = drift ** 2 - drift ** 2 * per_batch * strength + Delta * H ** 2 * beta ** 4 / others ** 2 - Delta * H ** 2 * per_batch * beta ** 4 * strength / others ** 2 + G * per_batch * beta ** 2 * dimension * strength / others
    dD = -D * weight_decay + drift * learning_rate * gain / jnp.sqrt(v)
    dDelta = -2 * Delta * weight_decay - 2 * Delta * H * beta ** 2 * learning_rate * gain / (others * jnp.sqrt(v)) + G * per_batch * beta ** 2 * dimension * learning_rate ** 2 * length ** 2 / (others * v)
    return dD, dDelta


def hardest_drift(m: Array, J: Array, batch: Array, classes: Array) -> Array:
    """sigma as D -> infinity: the hardest of `batch` samples is the step; `J` of two that tie."""
    return (2 * batch * m - J * classes) / (classes - 1)


def hardest_contraction(J: Array, classes: Array) -> Array:
    """h D as D -> infinity."""
    return J * classes / (classes - 1)


def margin_flow(D: Array, Delta: Array, drift: Array, curvature: Array, square: Array, eta: Array, batch: Array, weight_decay: Array | float = 0.0) -> tuple[Array, Array]:
    """(dD/dalpha, dDelta/dalpha) of a loss l(z) of the margin, K = 2; one unit of alpha is d SGD steps.

    z = D u + sqrt(2 Delta) xi, u >= 0 half-normal of variance two (density exp(-u^2/4)/sqrt(pi)), xi standard normal;
    `drift` = E[-l'(z) u], `curvature` = E[l''(z)], `square` = E[l'(z)^2]. `batch` = inf drops the noise.
    """
    per_batch = 1 / batch
    dD = -D * weight_decay + drift * eta
    dDelta = -2 * Delta * weight_decay - 4 * Delta * curvature * eta + 2 * per_batch * eta ** 2 * square
    return dD, dDelta


def focal_slopes(z: Array, focusing: Array) -> tuple[Array, Array, Array]:
    """(l, dl/dz, d^2 l/dz^2) of l = (1 - p)^focusing (-log p), p = sigma(z), z the margin of the right class of two."""
    p, q = 1 / (1 + jnp.exp(-z)), 1 / (1 + jnp.exp(z))
    surprise = jnp.logaddexp(0.0, -z)
    return q ** focusing * surprise, -q * q ** focusing - focusing * p * q ** focusing * surprise, p * q * q ** focusing + 2 * focusing * p * q * q ** focusing + focusing ** 2 * p ** 2 * q ** focusing * surprise - focusing * p * q * q ** focusing * surprise


def brier_slopes(z: Array) -> tuple[Array, Array, Array]:
    """(l, dl/dz, d^2 l/dz^2) of l = (1 - p)^2 = |p - y|^2/2, p = sigma(z), z the margin of the right class of two."""
    p, q = 1 / (1 + jnp.exp(-z)), 1 / (1 + jnp.exp(z))
    return q ** 2, -2 * p * q ** 2, -2 * p * q ** 3 + 4 * p ** 2 * q ** 2


def square_slopes(z: Array) -> tuple[Array, Array, Array]:
    """(l, dl/dz, d^2 l/dz^2) of l = (z - 1)^2/4: |lam - y|^2/2 of centred logits, p = sigma(z), z the margin of the right class of two."""
    return 0.25 * (z - 1) ** 2, 0.5 * z - 0.5, 0.5 + 0 * z


def drift_constant(m: Array) -> Array:
    """c = pi^2 m/12 of m_K - Phi(s) = c/s^2 as s -> infinity; `m` = m_K, mean of the largest of K standard normals."""
    return jnp.pi ** 2 * m / 12


def layer_drift(m: Array, Delta: Array) -> Array:
    """kappa = m (pi^2/12 + Delta/2): late loss kappa/D and dD = eta kappa/((K-1) D^2), hard labels."""
    return m * (0.5 * Delta + jnp.pi ** 2 / 12)


def layer_noise(m: Array, softplus_mean: Array) -> Array:
    """D G as D -> infinity, hard labels; `softplus_mean` = E log(1 + exp(sqrt(2 Delta) xi)), xi standard normal."""
    return m * (2 * softplus_mean - 1)


def layer_error(D: Array, Delta: Array, m: Array) -> Array:
    """Late probability m sqrt(Delta/pi)/D that student and teacher differ in the largest logit."""
    return jnp.sqrt(Delta) * m / (jnp.sqrt(jnp.pi) * D)


def stationary_spread_residual(Delta: Array, eta: Array, batch: Array, softplus_mean: Array) -> Array:
    """(eta/B)(2 E softplus(sqrt(2 Delta) xi) - 1) - 2 Delta: zero at the late spread Delta_inf of SGD on hard labels."""
    return -2 * Delta + eta * (2 * softplus_mean - 1) / batch


def power_law_overlap(alpha: Array, eta: Array, c: Array, classes: Array) -> Array:
    """D = (3 eta c alpha/(K-1))^(1/3) of the aligned, noiseless student. `c` from `drift_constant`; alpha in units of d SGD steps, eta constant."""
    return 3 ** (1 / 3) * alpha ** (1 / 3) * c ** (1 / 3) * eta ** (1 / 3) / (classes - 1) ** (1 / 3)


def power_law_loss(alpha: Array, eta: Array, c: Array, classes: Array) -> Array:
    """L = c^(2/3) ((K-1)/(3 eta alpha))^(1/3) of the aligned, noiseless student. `c` from `drift_constant`; alpha in units of d SGD steps, eta constant."""
    return 3 ** (2 / 3) * c ** (2 / 3) * (classes - 1) ** (1 / 3) / (3 * alpha ** (1 / 3) * eta ** (1 / 3))


def weight_decay_overlap(eta: Array, c: Array, classes: Array, weight_decay: Array) -> Array:
    """D_inf = (eta c/((K-1) w))^(1/3), where weight decay w > 0 per unit of alpha stops the aligned student."""
    return c ** (1 / 3) * eta ** (1 / 3) / ((classes - 1) ** (1 / 3) * weight_decay ** (1 / 3))


def artanh_ratio(x: Array) -> Array:
    """(artanh x - x)/x^3 for 0 <= x < 1, by 14 terms of its series below 0.25."""
    square = x ** 2
    series = 1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9 + square * (1 / 11 + square * (1 / 13 + square * (1 / 15 + square * (1 / 17 + square * (1 / 19 + square * (1 / 21 + square * (1 / 23 + square * (1 / 25 + square * (1 / 27 + square * (1 / 29)))))))))))))
    large = jnp.where(x < 0.25, 0.25, x)
    direct = (-large - 0.5 * jnp.log(-large + 1) + 0.5 * jnp.log(large + 1)) / large ** 3
    return jnp.where(x < 0.25, series, direct)


def finite_temperature_time(x: Array, eta: Array, c: Array, classes: Array, inverse_temperature: Array) -> Array:
    """alpha at which x = D/b_*, 0 <= x < 1, of the aligned, noiseless student of soft labels: (K-1) b_*^3/(eta c)
    (artanh x - x). Valid for b_* large, D large.
    """
    return inverse_temperature ** 3 * (classes - 1) * artanh_ratio(x) * x ** 3 / (c * eta)


def finite_temperature_loss(x: Array, c: Array, inverse_temperature: Array) -> Array:
    """KL = c (1 - x)^2/(b_* x) to the soft teacher, x = D/b_*."""
    return c * (x - 1) ** 2 / (inverse_temperature * x)


def finite_temperature_exponent(x: Array) -> Array:
    """-dlog KL/dlog alpha = (1 + x)^2 (artanh x - x)/x^3, x = D/b_*: 1/3 at x = 0."""
    return artanh_ratio(x) * (x + 1) ** 2


def hand_over_time(eta: Array, c: Array, classes: Array, inverse_temperature: Array) -> Array:
    """alpha_c = (K-1) b_*^3/(3 eta c): scale of the hand-over from power law to exponential."""
    return inverse_temperature ** 3 * (classes - 1) / (3 * c * eta)


def cutoff_time(eta: Array, c: Array, classes: Array, inverse_temperature: Array) -> Array:
    """alpha at which dlog(local exponent)/dlog alpha passes 1/2, a number times alpha_c (`hand_over_time`)."""
    return 0.21700854871729283 * inverse_temperature ** 3 * (classes - 1) / (c * eta)
