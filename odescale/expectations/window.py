r"""Averages over the batches that a momentum remembers: what makes Muon's step orthogonal is no average over all of them.

A momentum m_n = sum_j w_j gradient_(n-j) has the Gram matrix K_n = sum_j w_j^2 S_(n-j) + K_mean, S the matrix of one batch given
its fields, which fluctuates with the fields of 1/(1 - mu) batches at any d. A gradient moves its row over all steps that hold it:

    A_j = sum_n w_(n-j) P(K_n),      P(K) = K^-1/2 or Newton and Schulz's polynomial
    drift E[A_j D_j],     noise E[A_j S_j A_j^T],     P = E P(K_n)

Windows are runs of consecutive nodes in a random order, closed into a circle: both sums over them are circular convolutions.
Derived in derivations/optimizers.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class WindowRule(eqx.Module):
    """The momentum of an optimiser that divides by its own size, on `blocks` of rows each by itself.

    - `beta`, `nesterov`: of the momentum. `blocks`: numbers of rows among those that move. `coefficients`, `iterations`: of P(K).
    - `average` (p, p): R_UU/N of the velocities, where they are carried; `filled`: share of its noise that a momentum holds.
    """

    beta: Float[Array, ""]
    nesterov: bool = eqx.field(static=True)
    blocks: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    coefficients: tuple[float, float, float] = eqx.field(static=True)
    iterations: int = eqx.field(static=True)
    average: Float[Array, "p p"] | None = None
    filled: Float[Array, ""] | None = None

    def weights(self, count: int) -> Float[Array, " n"]:
        """w_j, j = 0 ... count - 1."""
        powers = (1 - self.beta) * self.beta ** jnp.arange(count)
        if not self.nesterov:
            return powers
        return (self.beta * powers).at[0].add(1 - self.beta)


def windows(
    rule: WindowRule, S: Float[Array, "n p p"], mean: Float[Array, "p p"], order: np.ndarray
) -> tuple[Float[Array, "n p p"], Float[Array, "p p"]]:
    """(A_j of every batch, P): `S` of all batches, `mean` K_mean, `order` the order in which batches follow each other."""
    n = len(S)
    w = rule.weights(n)
    spectrum, squares = jnp.fft.rfft(w), jnp.fft.rfft(w**2)
    # The present gradient is there at once.
    filled = 1.0 if rule.filled is None else 1 - rule.beta**2 * (1 - rule.filled)
    past = jnp.fft.irfft(jnp.fft.rfft(S[order], axis=0) * squares[:, None, None], n, axis=0) * filled
    P = jnp.zeros_like(S)
    for rows in rule.blocks:
        pair = (slice(None), *np.ix_(rows, rows))
        K = past[pair] + mean[np.ix_(rows, rows)]
        P = P.at[pair].set(jax.vmap(lambda K: newton_schulz(K, rule.coefficients, rule.iterations))(K))
    # Forward in time: the conjugate transform runs the convolution the other way round.
    ahead = jnp.fft.irfft(jnp.fft.rfft(P, axis=0) * jnp.conj(spectrum)[:, None, None], n, axis=0)
    return ahead[np.argsort(order)], P.mean(axis=0)


def newton_schulz(
    K: Float[Array, "b b"], coefficients: tuple[float, float, float], iterations: int
) -> Float[Array, "b b"]:
    """Q with Q X = the Newton-Schulz iterate of X/|X|_F, for X X^T = K: K^-1/2 where the iteration converges."""
    a, b, c = coefficients
    size = jnp.trace(K)
    one = jnp.eye(len(K), dtype=K.dtype)

    def body(carry, _):
        Q, gram = carry
        factor = a * one + b * gram + c * gram @ gram
        gram = factor @ gram @ factor
        return (factor @ Q, (gram + gram.T) / 2), None

    (Q, _), _ = jax.lax.scan(body, (one, K / size), None, length=iterations)
    return Q / jnp.sqrt(size)
