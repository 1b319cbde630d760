r"""Repeated passes over finite data: mean and variance of every mode, with the gradient noise of the stored samples themselves.

    m <- (1 - eta sigma) m                                                                     exact
    M_jj <- (1 - 2 eta sigma_j) M_jj + eta^2 [Q_j/B + (1 - 1/B) sigma_j^2 M_jj],   M_jj = m_j^2 + D_j
    Q_j = (1/n) sum_i z_ij^2 [(z_i.m - e_i)^2 + sum_k z_ik^2 D_k]

in the eigenbasis of X^T X/n, z_i its samples, e_i their least-squares residuals. Left out: covariances between different modes
that gradient noise creates, D_jk with j != k.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Real

from odescale.cache.programs import program
from odescale.errors import InputError
from odescale.generated import spectral as formulas
from odescale.precision import require_x64
from odescale.solve.spectral.exact import whole_steps
from odescale.systems.spectral import Spectral
from odescale.systems.spectral_features import StoredData, stored_spectrum


class Passes(NamedTuple):
    """Mean square error over the stored data and on fresh data (None without a covariance), both (n,) with their noise."""

    train: Float[np.ndarray, " n"]
    test: Float[np.ndarray, " n"] | None


class _Data(NamedTuple):
    sigma: Array
    rotated: Array
    residual: Array
    shift: Array
    covariance: Array


def repeated_passes(
    data: StoredData,
    steps: Real[np.ndarray, " n"],
    *,
    covariance: Float[np.ndarray, "d d"] | None = None,
    target: Float[np.ndarray, " d"] | None = None,
    test_noise: float = 0.0,
    **given: Any,
) -> Passes:
    """Training and test error after `steps` SGD steps on n stored samples, batches drawn with replacement. A pass is n/B steps.

    **Arguments**: `data`; `steps` (n,) increasing whole numbers; `covariance` (d, d) of fresh inputs, `target` theta* (d,) and
    `test_noise` s^2 for the test error; learning_rate, batch, schedule as in `spectral`. n p operations per step.

    **Failure regime**: sampling without replacement (shuffled epochs) has less noise at small learning rates than this.
    """
    require_x64("repeated_passes")
    times = whole_steps(steps)
    system = stored_spectrum(data, **given)
    if (covariance is None) != (target is None):
        raise InputError(
            "covariance", expected="to be given with target", got=covariance, remedy="pass both, or neither"
        )
    p = data.eigenvalues.size
    rotated_covariance, shift, offset = np.zeros((p, p)), np.zeros(p), 0.0
    if covariance is not None and target is not None:
        C, b = np.asarray(covariance, dtype=float), data.best - np.asarray(target, dtype=float)
        if C.shape != (b.size, b.size):
            raise InputError(
                "covariance", expected=f"shape ({b.size}, {b.size})", got=C.shape, remedy="of the features"
            )
        rotated_covariance, shift = data.basis.T @ C @ data.basis, data.basis.T @ (C @ b)
        offset = float(b @ C @ b) + test_noise
    arrays = _Data(
        *(jnp.asarray(x) for x in (data.eigenvalues, data.rotated, data.residual, shift, rotated_covariance))
    )
    train, test = _run(system, arrays, jnp.asarray(data.error), jnp.asarray(times))
    return Passes(np.asarray(train), None if covariance is None else offset + np.asarray(test))


@program
def _run(system: Spectral, data: _Data, start: Array, times: Array) -> tuple[Array, Array]:
    sigma, squares = data.sigma, data.rotated**2
    samples = squares.shape[0]

    def errors(m: Array, D: Array) -> Array:
        """E r_i^2 of every sample."""
        return (data.rotated @ m - data.residual) ** 2 + squares @ D

    def one(r: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        m, D = state
        eta = system.learning_rate * system.schedule(r.astype(float))
        noise = errors(m, D) @ squares / samples
        return formulas.stored_step(m, D, noise, sigma, eta, system.batch)

    def advance(carry, until):
        r, state = carry
        m, D = lax.fori_loop(r, until, one, state)
        test = m @ data.covariance @ m + 2 * data.shift @ m + jnp.diagonal(data.covariance) @ D
        return (until, (m, D)), (jnp.mean(errors(m, D)), test)

    begin = (jnp.zeros((), times.dtype), (start, jnp.zeros_like(start)))
    return lax.scan(advance, begin, times)[1]
