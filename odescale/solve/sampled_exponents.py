"""Local exponents of a loss that is known at its output times only, or not well enough between them."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def sampled_exponents(
    times: Float[Array, " n"], loss: Float[Array, " n"], valid: Bool[Array, " n"] | None = None
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """(p, q) from the loss at the output times: three-point differences of log L in log t, of second order in the spacing.

    q is one more difference, of log p, so its ends are one-sided. At t = 0, p = 0 and q = 1. `valid`: False from the first time on
    that was not reached; p is NaN at the last time before it, q at the last two, whose differences would reach beyond.
    """
    started = times > 0
    # t = 0 has no logarithm: place it one spacing before the first time, and give it its exact values afterwards.
    log_t = jnp.log(jnp.where(started, times, times[1] ** 2 / times[2]))
    exponent = -_difference(jnp.log(loss), log_t)
    index = _difference(jnp.log(jnp.abs(exponent)), log_t)
    exponent, index = jnp.where(started, exponent, 0.0), jnp.where(started, index, 1.0)
    if valid is None:
        return exponent, index
    # Masked afterwards: a NaN that goes into a difference makes gradients of everything else NaN.
    known = valid & jnp.append(valid[1:], True)
    return jnp.where(known, exponent, jnp.nan), jnp.where(known & jnp.append(known[1:], True), index, jnp.nan)


def _difference(values: Float[Array, " n"], at: Float[Array, " n"]) -> Float[Array, " n"]:
    slopes = jnp.diff(values) / jnp.diff(at)
    steps = jnp.diff(at)
    inner = (steps[1:] * slopes[:-1] + steps[:-1] * slopes[1:]) / (steps[1:] + steps[:-1])
    first = slopes[0] + (slopes[0] - inner[0]) if values.shape[0] > 2 else slopes[0]
    last = slopes[-1] + (slopes[-1] - inner[-1]) if values.shape[0] > 2 else slopes[-1]
    return jnp.concatenate([first[None], inner, last[None]])
