r"""Likelihood of the drafter's slow map under noise: a scalar state, two observations a step, exact by a Kalman filter.

x_n: kappa before the idle phase of step n.  phi_n = e^(-r idle_n)
b_n = x_n + e_n,   a_n = y_n + rho e_n + g_n,   y_n = kappa_inf + phi_n (x_n - kappa_inf),   x_(n+1) = y_n + delta + v_n
e, g, v independent Gaussians: before and after are often measured on the same sequences, whose luck e they share.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from odescale.cache.programs import program

NAMES = ("log_r", "kappa_inf", "delta", "log_noise", "log_step", "log_drift", "share")
"""log(r mean idle), kappa_inf, delta, log of the standard deviations of e, g and v, and rho."""
# Weak Gaussian prior (mean, width): of no weight where the data speak, an end for what they leave open.
CENTRE = np.array([-1.0, 0.0, 0.0, -3.0, -3.0, -3.0, 0.5])
WIDTH = np.array([3.0, 30.0, 30.0, 3.0, 3.0, 3.0, 1.0])


class Series(NamedTuple):
    """`before`, `after` (n,) in units of the mean of `before`; `idle` (n,) in units of its mean."""

    before: Float[Array, "... n"] | Float[np.ndarray, "... n"]
    after: Float[Array, "... n"] | Float[np.ndarray, "... n"]
    idle: Float[Array, "... n"] | Float[np.ndarray, "... n"]


class Gains(NamedTuple):
    """What the filter needs of a parameter vector at every step, whatever was observed: arrays (n, ...) of numpy."""

    phi: np.ndarray
    tilt: np.ndarray  # phi - rho: by it a - rho b sees the state
    first: np.ndarray  # standard deviation of b given the past
    second: np.ndarray  # of a - rho b given the past and b
    take_first: np.ndarray
    take_second: np.ndarray


def negative_log(theta: Float[Array, " 7"], series: Series) -> Float[Array, ""]:
    """-log likelihood (constants left out) and prior. The first b is the start: nothing is predicted of it."""
    log_r, level, delta, log_noise, log_step, log_drift, rho = theta
    phi = jnp.exp(-jnp.exp(log_r) * series.idle)
    noise, step, drift = jnp.exp(2 * log_noise), jnp.exp(2 * log_step), jnp.exp(2 * log_drift)

    def one(carry: tuple[Array, Array], seen: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        (m, P), (b, a, phi, is_first) = carry, seen
        spread = P + noise
        cost = jnp.where(is_first, 0.0, 0.5 * (jnp.log(spread) + (b - m) ** 2 / spread))
        gain = jnp.where(is_first, 1.0, P / spread)
        m, P = m + gain * (b - m), jnp.where(is_first, noise, (1 - gain) * P)
        # a - rho b is free of e: a second, independent observation.
        tilt = phi - rho
        rest = a - rho * b - level * (1 - phi) - tilt * m
        spread = tilt**2 * P + step
        cost = cost + 0.5 * (jnp.log(spread) + rest**2 / spread)
        gain = tilt * P / spread
        m, P = m + gain * rest, (1 - gain * tilt) * P
        return (level + phi * (m - level) + delta, phi**2 * P + drift), cost

    before, after = jnp.asarray(series.before), jnp.asarray(series.after)
    _, costs = lax.scan(one, (before[0], noise), (before, after, phi, jnp.arange(before.size) == 0))
    return costs.sum() + 0.5 * jnp.sum(((theta - CENTRE) / WIDTH) ** 2)


@program
def minimise(
    starts: Float[Array, "k 7"], series: Series, iterations: int
) -> tuple[Float[Array, "k 7"], Float[Array, " k"]]:
    """Damped Newton from every start, each with a series of its own (k, n): (ends, values there)."""

    def single(theta: Array, series: Series) -> tuple[Array, Array]:
        objective = partial(negative_log, series=series)

        def one(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            theta, value, damping, count, _ = carry
            gradient, curvature = jax.grad(objective)(theta), jax.hessian(objective)(theta)
            sizes, axes = jnp.linalg.eigh(curvature)
            # By the size of the curvature: a saddle is left downhill.
            step = -axes @ ((axes.T @ gradient) / (jnp.abs(sizes) + damping))
            step = step * jnp.minimum(1.0, 1.0 / jnp.linalg.norm(step))
            new = objective(theta + step)
            better = new < value
            left = jnp.where(better, value - new, jnp.where(damping > 1e6, 0.0, jnp.inf))
            damping = jnp.clip(jnp.where(better, damping / 8, damping * 8), 1e-6, 1e9)
            theta, value = jnp.where(better, theta + step, theta), jnp.where(better, new, value)
            return theta, value, damping, count + 1, left

        def more(carry: tuple[Array, ...]) -> Array:
            # A part of the log likelihood that no interval would feel.
            return (carry[3] < iterations) & (carry[4] > 1e-9)

        start = (theta, objective(theta), jnp.asarray(1.0), jnp.asarray(0), jnp.asarray(jnp.inf))
        end, value, *_ = lax.while_loop(more, one, start)
        return end, value

    return jax.vmap(single)(starts, series)


def gains(
    theta: Float[np.ndarray, "k 7"], idle: Float[np.ndarray, " n"], P: Float[np.ndarray, " k"] | None
) -> tuple[Gains, np.ndarray]:
    """The `Gains` (n, k) along `idle` and the variance after it; `P` of the state before the first step, None where b starts it."""
    phi = np.exp(-np.exp(theta[:, 0]) * idle[:, None])
    noise, step, drift = np.exp(2 * theta[:, 3:6]).T
    tilt, rows = phi - theta[:, 6], []
    known = np.full_like(noise, np.inf) if P is None else P
    for n in range(idle.size):
        if P is None and n == 0:
            first, gain, known = np.zeros_like(noise), np.ones_like(noise), noise
        else:
            first = known + noise
            gain = known / first
            known = (1 - gain) * known
        second = tilt[n] ** 2 * known + step
        take = tilt[n] * known / second
        known = phi[n] ** 2 * (1 - take * tilt[n]) * known + drift
        rows.append((np.sqrt(first), np.sqrt(second), gain, take))
    columns = np.array(rows).transpose(1, 0, 2)
    return Gains(phi, tilt, *columns), known


def innovations(
    theta: Float[np.ndarray, "k 7"], series: Series, gain: Gains
) -> tuple[Float[np.ndarray, "n k 2"], Float[np.ndarray, " k"]]:
    """Standardised errors of prediction of b given the past and of a given b too, and the mean of the state after the last step."""
    level, delta, rho = theta[:, 1], theta[:, 2], theta[:, 6]
    before, after = np.asarray(series.before), np.asarray(series.after)
    m, found = np.full(theta.shape[0], before[0]), []
    for n in range(before.size):
        error = before[n] - m
        first = np.divide(error, gain.first[n], out=np.zeros_like(m), where=gain.first[n] > 0)
        m = m + gain.take_first[n] * error
        error = after[n] - rho * before[n] - level * (1 - gain.phi[n]) - gain.tilt[n] * m
        found.append(np.stack([first, error / gain.second[n]], axis=1))
        m = level + gain.phi[n] * (m + gain.take_second[n] * error - level) + delta
    return np.array(found), m


def generate(
    theta: Float[np.ndarray, "k 7"], gain: Gains, m: Float[np.ndarray, " k"], z: Float[np.ndarray, "n k 2"]
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """(before, after) of the map with standardised innovations `z`, from the predicted mean `m` of the first state."""
    level, delta, rho = theta[:, 1], theta[:, 2], theta[:, 6]
    befores, afters = [], []
    for n in range(z.shape[0]):
        error = gain.first[n] * z[n, :, 0]
        before = m + error
        m = m + gain.take_first[n] * error
        error = gain.second[n] * z[n, :, 1]
        after = rho * before + level * (1 - gain.phi[n]) + gain.tilt[n] * m + error
        m = level + gain.phi[n] * (m + gain.take_second[n] * error - level) + delta
        befores.append(before)
        afters.append(after)
    return np.array(befores), np.array(afters)
