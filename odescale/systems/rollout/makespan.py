"""Drawn rollouts: tokens with n requests live, and what a policy makes of them; the same draws for every policy."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.systems.rollout.lengths import AbstractLengths

MOST_NUMBERS = 2**21
"""Lengths of one set of draws, in all."""


def draw_chances(requests: tuple[int, ...], draws: int, seed: int) -> Float[np.ndarray, "d w n"]:
    """Shares u of answers longer than each request's, falling along the last axis; 0 for requests that a worker has not.

    The u of one worker are sorted uniform numbers: lengths of any law are quantiles of them, so that laws and policies are compared
    on the same draws.
    """
    rng, most = np.random.default_rng(seed), max(requests)
    u = rng.random((draws, len(requests), most))
    for w, n in enumerate(requests):
        u[:, w, n:] = 0.0
    return -np.sort(-u, axis=2)


def tokens_by_live(
    lengths: AbstractLengths,
    chances: Float[Array, "d w n"],
    requests: tuple[int, ...],
    ends: Callable[[Float[Array, "d w n"]], Float[Array, "d w n"]] | None = None,
) -> Float[Array, "d w m"]:
    """Tokens that pass while 0 ... N requests of a worker are live, from `draw_chances`; N is the largest number of `requests`.

    `ends`: from drawn lengths to the tokens of the fluid at which they end (default: the same).

    With them T = sum_n g(n) x tokens(n): the sum over order statistics.
    """
    most = max(requests)
    drawn = lengths.quantile(jnp.where(chances > 0, chances, 0.5))
    ended = drawn if ends is None else ends(drawn)
    rows = []
    for w, n in enumerate(requests):
        own = ended[:, w, :n] if ends is None else jnp.sort(ended[:, w, :n], axis=1)
        between = jnp.diff(own, axis=1, prepend=0.0)
        # The first stretch has all n live, the last one has one.
        rows.append(
            jnp.concatenate([jnp.zeros((len(drawn), 1)), between[:, ::-1], jnp.zeros((len(drawn), most - n))], axis=1)
        )
    return jnp.stack(rows, axis=1)


def worker_times(tokens: Float[Array, "d w m"], g: Float[Array, " m"]) -> Float[Array, "d w"]:
    """T of every worker, in plain rounds at batch 1; g of `token_times`."""
    return tokens @ g


def idle_time(tokens: Float[Array, "d w m"], g: Float[Array, " m"]) -> Float[Array, ""]:
    """Time that a worker waits for the slowest one, on average over workers and draws."""
    times = worker_times(tokens, g)
    return jnp.mean(times.max(axis=1) - times.mean(axis=1))
