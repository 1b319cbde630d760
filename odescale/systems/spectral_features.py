r"""Finite width and finite data as spectra: random features of Gaussian inputs, and a stored data set passed over again and again.

random features   z = W x:   spectrum of W Lam W^T,   s^2 + F_0,   F_0 = min_theta E(theta*.x - theta.z)^2     exact, given W
stored data       spectrum of X^T X/n,   s^2 -> mean squared residual of least squares                           n, d large
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from odescale.errors import InputError, whole
from odescale.systems.spectral import Spectral, spectral

ZERO = 1e-13
"""Eigenvalues below this share of the largest are those of directions that no sample has."""


def gaussian_projection(width: int, dimension: int, seed: int = 0) -> Float[np.ndarray, "N d"]:
    """W (width, dimension) with independent N(0, 1/width) entries: the eigenvalues of W Lam W^T tend to those of Lam."""
    shape = whole("width", width, 1, 1_000_000), whole("dimension", dimension, 1, 1_000_000)
    seed = whole("seed", seed, 0)
    return np.random.default_rng([seed, 0x5EC7]).standard_normal(shape) / width**0.5


def random_features(
    eigenvalues: Float[np.ndarray, " d"],
    target: Float[np.ndarray, " d"],
    projection: Float[np.ndarray, "N d"],
    *,
    start: Float[np.ndarray, " N"] | None = None,
    **given: Any,
) -> Spectral:
    r"""SGD on theta.(W x), x ~ N(0, diag lam), target theta*.x plus noise: a `Spectral` that is exact for the given W.

        mu_j, u_j of W Lam W^T,     rho_j(0) = (u_j.(theta(0) - theta_opt))^2,     F_0 = |sqrt(Lam) theta*|^2 outside the span

    What the projection leaves of the target is Gaussian and independent of the features: it acts as label noise. Its floor on the
    loss is `Spectral.floor`; `excess_loss` is the rest. One unit of t is one SGD step.

    **Arguments**: `eigenvalues` (d,) > 0, `target` theta* (d,), `projection` W (N, d) such as `gaussian_projection`, `start`
    theta(0) (N,), zeros by default; the other words of `spectral` (learning_rate, batch, noise, schedule).
    """
    lam, W = _vector("eigenvalues", eigenvalues), np.asarray(projection, dtype=float)
    theta = _vector("target", target, lam.size)
    if W.ndim != 2 or W.shape[1] != lam.size or not np.all(np.isfinite(W)):
        raise InputError(
            "projection", expected=f"finite numbers, shape (N, {lam.size})", got=W.shape, remedy="transpose it"
        )
    if np.any(lam <= 0):
        raise InputError("eigenvalues", expected="positive numbers", got=lam.min(), remedy="drop zeros")
    begin = np.zeros(W.shape[0]) if start is None else _vector("start", start, W.shape[0])
    left, size, right = np.linalg.svd(W * lam**0.5, full_matrices=False)
    kept = size**2 > ZERO * size[0] ** 2
    left, size, right = left[:, kept], size[kept], right[kept]
    goal = right @ (lam**0.5 * theta)
    error = left.T @ begin - goal / size
    outside = lam**0.5 * theta - right.T @ goal
    return spectral(eigenvalues=size**2, excess=error**2, floor=float(outside @ outside), **given)


class StoredData:
    r"""n samples in the eigenbasis of X^T X/n: what `stored_spectrum` and `repeated_passes` read.

    **Arguments**: `features` X (n, d), `targets` y (n,), `start` theta(0) (d,), zeros by default.

    **Fields**: `eigenvalues` sigma (p,), `basis` V (d, p), `best` theta_ls (d,), the least-squares solution nearest to the start,
    `error` (p,) = V^T (theta(0) - theta_ls), `residual` (n,) = y - X theta_ls, `rotated` (n, p) = X V.
    """

    def __init__(
        self,
        features: Float[np.ndarray, "n d"],
        targets: Float[np.ndarray, " n"],
        start: Float[np.ndarray, " d"] | None = None,
    ) -> None:
        X = np.asarray(features, dtype=float)
        if X.ndim != 2 or min(X.shape) < 1 or not np.all(np.isfinite(X)):
            raise InputError(
                "features", expected="finite numbers, shape (n, d)", got=X.shape, remedy="one row per sample"
            )
        y = _vector("targets", targets, X.shape[0])
        begin = np.zeros(X.shape[1]) if start is None else _vector("start", start, X.shape[1])
        left, size, right = np.linalg.svd(X, full_matrices=False)
        kept = size**2 > ZERO * size[0] ** 2
        self.eigenvalues, self.basis = size[kept] ** 2 / X.shape[0], right[kept].T
        self.error = self.basis.T @ begin - (left[:, kept].T @ y) / size[kept]
        self.best = begin - self.basis @ self.error
        self.rotated = left[:, kept] * size[kept]
        self.residual = y - X @ self.best
        self.start = begin

    @property
    def samples(self) -> int:
        """n."""
        return self.rotated.shape[0]


def stored_spectrum(data: StoredData, **given: Any) -> Spectral:
    r"""The training loss of SGD that draws its batches, with replacement, from n stored samples: `Spectral` of X^T X/n.

    `excess_loss` is the mean square residual over the data above that of least squares, `noise` the latter (zero where the data
    can be fitted). Exact drift; the noise of the gradient is that of samples whose residual knows nothing of the sample's
    direction beyond Isserlis: right for n, d -> infinity and Gaussian-like data, a few percent off at n = 1000.
    `odescale.solve.spectral.passes.repeated_passes` uses the samples themselves. One pass is n/batch units of t.

    **Arguments**: `data`, and the words of `spectral` (learning_rate, batch, schedule; no noise).
    """
    if "noise" in given:
        raise InputError("noise", expected="to be left out: it is in the targets", got=given["noise"], remedy="drop it")
    residual = float(np.mean(data.residual**2))
    return spectral(eigenvalues=data.eigenvalues, excess=data.error**2, noise=residual, **given)


def _vector(name: str, values: Any, size: int | None = None) -> np.ndarray:
    numbers = np.asarray(values, dtype=float)
    if numbers.ndim != 1 or numbers.size == 0 or (size is not None and numbers.size != size):
        raise InputError(
            name, expected=f"shape ({size if size else 'd'},)", got=numbers.shape, remedy="one number each"
        )
    if not np.all(np.isfinite(numbers)):
        raise InputError(name, expected="finite numbers", got="NaN or infinity", remedy="mend it")
    return numbers
