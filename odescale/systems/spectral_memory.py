r"""What Adam's second moment remembers of a falling loss, mode by mode: its spread, and its covariances with the weights.

With v the weighted sum of a mode's past squared gradients, W_j their shares in it, w that of the present one, k4 - 1 = 2 + 6/B:

    S = sum W^2                       dS/dt = -2 w S + w^2
    c = Cov(v, phi^2)/v               dc/dt = -(w + 2 r) c + (k4 - 1) [w (heat - 2 r e) + S (r e - heat)] + w (1 + 2/B) X/h
    R = Cov(v_0, phi^2)/v_0           the same with 2/B in the place of k4 - 1 and w X/P as its last term

r = A lam the rate of the mode, heat its noise, h = P/B + (1 + 1/B) e, X = 2 (e^2 - m^4) the variance of phi^2 between runs, m the
mean of phi, v_0 the part of v that modes have in common. Drift -2 r (e - c/2)/(1 + (k4 - 1)(w/2 - 3 S/8)); noise
heat/(1 + (k4 - 1)(w - S) + sum R/P). In a steady state S = w/2 and c = 0: a gradient's own square is in v, but phi^2 gains nothing.
Derived in derivations/optimizers, step `memory of v`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

ROWS = ("spread", "moved", "shared", "mean")
"""S, c, R and m^2."""


class Remembered(NamedTuple):
    """Divisors of the drift and of the noise, and the covariance c that drift sees."""

    drift: Float[Array, " modes"]
    noise: Float[Array, " modes"]
    covariance: Float[Array, " modes"]


def remembered(
    row: dict[str, Array], share: Float[Array, " modes"], risk: Float[Array, ""], batch: Float[Array, ""]
) -> Remembered:
    """What the rows say; `share` w of the present square in every mode's second moment."""
    excess = 2 + 6 / batch
    return Remembered(
        1 + excess * (share / 2 - 3 * row["spread"] / 8),
        1 + excess * (share - row["spread"]) + jnp.sum(row["shared"]) / risk,
        row["moved"],
    )


def moves_of_memory(
    row: dict[str, Array],
    share: Float[Array, " modes"],
    rate: Float[Array, " modes"],
    square: Float[Array, " modes"],
    risk: Float[Array, ""],
    batch: Float[Array, ""],
    held: Remembered,
) -> list[Array]:
    """Time derivatives of `ROWS`; `rate` r of every mode, `square` h, `risk` P."""
    e, S, own = row["e"], row["spread"], 2 + 6 / batch
    heat = rate**2 * square / held.noise
    gained, kept = heat - 2 * rate * e, rate * e - heat
    between = 2 * jnp.maximum(e**2 - row["mean"] ** 2, 0.0)
    # The mode that adds least to the squares of the residual has what all share.
    least = jnp.argmin(row["second"])
    common, wide = share[least], S[least]
    moved = own * (share * gained + S * kept) + share * (1 + 2 / batch) * between / square
    shared = 2 / batch * (common * gained + wide * kept) + common * between / risk
    return [
        share**2 - 2 * share * S,
        moved - (share + 2 * rate) * row["moved"],
        shared - (common + 2 * rate) * row["shared"],
        -2 * rate / held.drift * row["mean"],
    ]
