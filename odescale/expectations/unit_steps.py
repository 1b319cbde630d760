r"""Steps whose length is that of the batch, not of its gradient: averages over B samples at once, for signs on K peaked classes.

    E[sum_b g_b X_b/|g|] = E[sgn(g) Psi(log|g|) X],    Psi(l) = (2 B/sqrt pi) int_0^inf e^(-v^2) chi(v e^-l)^(B-1) dv

with |g|^2 = sum_b g_b^2 and chi(u) = E e^(-u^2 g^2), both of one row of slopes g = p - y: 1/|g| is a Gaussian integral, so that a
batch costs what one sample does. Late in training log|g| spreads over D, Psi is the chance that a sample is the hardest of its
batch, and one of them is the whole step. Source: derivations/peaked/unit.py.
"""

from __future__ import annotations

from functools import lru_cache

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real
from numpy.polynomial import hermite_e, legendre
from scipy.interpolate import CubicSpline
from scipy.special import ndtr, ndtri
from scipy.stats import qmc

from odescale.cache.tables import kept
from odescale.expectations.softmax_race import Surface, largest_field

LARGEST_OVERLAP, LARGEST_DEVIATION = 1e5, 1e3
"""Ends of the table in D and sqrt(Delta); beyond them the averages depend on D/sqrt(Delta) alone."""
GRID = (21, 15)
"""Places of the table, equally far apart in log(1 + D) and log(1 + sqrt Delta)."""
SAMPLES = 2**15
"""Rows of slopes behind one place of the table: samples times classes."""
LARGEST_BATCH, MOST_CLASSES = 1024, 64
"""What a table is made for."""


class UnitSteps(eqx.Module):
    r"""Averages of w_i = -sum_b g_bi X_b/|g_i| over batches, student fields D lam* + sqrt(Delta) xi, hard labels of lam*.

    `drift` sigma: E[w lam*^T] = sigma P. `contraction` h: E[w lam_perp^T] = -Delta h P. `noise` 1 - rho, rho the correlation of
    the signs of two rows, (2/pi) E asin(cos). One sample: sigma = 2 m/(K - 1), h = 0, 1 - rho = 4/K, at any D and Delta.
    Error .3 % (sampled fields), of the noise 1 %.
    """

    first: Float[Array, ""]
    last: Float[Array, ""]
    surfaces: tuple[Surface, Surface, Surface] | None

    def __call__(
        self, overlap: Real[ArrayLike, ""], spread: Real[ArrayLike, ""]
    ) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        """(sigma, h, 1 - rho) at D >= 0 and Delta >= 0 of the effective logits."""
        if self.surfaces is None:
            return self.first, jnp.zeros(()), self.last
        deviation = jnp.sqrt(jnp.maximum(spread, 1e-24))
        overlap = jnp.maximum(overlap, 0.0)
        beyond = jnp.maximum(1.0, jnp.maximum(overlap / LARGEST_OVERLAP, deviation / LARGEST_DEVIATION))
        across = jnp.log1p(overlap / beyond) / np.log1p(LARGEST_OVERLAP)
        up = jnp.log1p(deviation / beyond) / np.log1p(LARGEST_DEVIATION)
        sigma, response, noise = (surface(across, up) for surface in self.surfaces)
        return sigma, response / (1 + overlap + deviation), noise


@lru_cache(maxsize=16)
def unit_steps(classes: int, batch: int) -> UnitSteps:
    """The averages for one K and B, once per process (seconds), or from the cache; `classes` <= 64, `batch` <= 1024."""
    m = largest_field(classes)
    first, last = jnp.asarray(2 * m / (classes - 1)), jnp.asarray(4 / classes)
    if batch == 1:
        return UnitSteps(first, last, None)
    values = _unit_steps(classes, batch)
    return UnitSteps(first, last, tuple(_surface(values[name]) for name in ("drift", "contraction", "noise")))  # type: ignore[arg-type]


def ties(classes: int, batch: int) -> float:
    r"""J = B (B - 1) int_0^inf f^2 (1 - F)^(B - 2) dr, f and F of r = |lam_i - max_(j != i) lam_j|: two hardest samples tie."""
    if batch == 1:
        return 0.0
    # Panels that resolve the smallest of B gaps.
    edges = np.concatenate([[0.0], np.geomspace(0.02 / batch, 16.0, 60)])
    nodes, weights = legendre.leggauss(8)
    half = np.diff(edges) / 2
    r, w = (edges[:-1, None] + half[:, None] * (nodes + 1)).ravel(), (half[:, None] * weights).ravel()
    z, at = hermite_e.hermegauss(120)
    at = at / at.sum()
    # lam_i = M + delta, M the largest of K - 1: density of delta by the normal lam_i itself.
    others = classes - 1

    def density(delta: np.ndarray) -> np.ndarray:
        x = z - delta[:, None]
        return (others * np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi) * ndtr(x) ** (others - 1)) @ at

    f = density(r) + density(-r)
    survival = (1 - ndtr(z + r[:, None]) ** others + ndtr(z - r[:, None]) ** others) @ at
    return float(batch * (batch - 1) * np.sum(w * f * f * np.clip(survival, 0.0, 1.0) ** (batch - 2)))


def _surface(values: np.ndarray) -> Surface:
    w, q = (np.linspace(0, 1, size) for size in values.shape)
    along = CubicSpline(w, values, axis=0).c
    both = CubicSpline(q, along, axis=2).c
    return Surface(jnp.asarray(both.transpose(3, 1, 2, 0)))


@kept
def _unit_steps(classes: int, batch: int) -> dict[str, np.ndarray]:
    """`drift` sigma, `contraction` h (1 + D + sqrt Delta) and `noise` 1 - rho on the grid."""
    classes, batch = int(classes), int(batch)
    fields = sampled_fields(classes)
    found = np.empty((3, *GRID))
    for i, overlap in enumerate(np.expm1(np.linspace(0, np.log1p(LARGEST_OVERLAP), GRID[0]))):
        for j, deviation in enumerate(np.expm1(np.linspace(0, np.log1p(LARGEST_DEVIATION), GRID[1]))):
            sigma, response, noise = averages(overlap, deviation, batch, *fields)
            found[:, i, j] = sigma, response * (1 + overlap + deviation), noise
    return dict(zip(("drift", "contraction", "noise"), found, strict=True))


def sampled_fields(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(lam*, centred xi), each (n, K): scrambled Sobol points, in random order, so that neighbours may make a batch."""
    count = 2 ** int(np.log2(SAMPLES / classes))
    points = qmc.Sobol(2 * classes, rng=np.random.default_rng(16)).random(count)
    z = ndtri(np.clip(np.random.default_rng(17).permutation(points), 1e-12, 1 - 1e-12))
    teacher, other = z[:, :classes], z[:, classes:]
    return teacher, other - other.mean(axis=1, keepdims=True)


def log_slopes(logits: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(log|g|, sgn g, -sgn(g) dlog|g|/dlam) of every entry of g = p - y, without cancellation at any scale; (..., K) each."""
    hot = np.arange(logits.shape[-1]) == label[..., None]
    top = logits.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=-1, keepdims=True)) + top
    others = np.where(hot, -np.inf, logits)
    best = others.max(axis=-1, keepdims=True)
    missed = np.log(np.exp(others - best).sum(axis=-1, keepdims=True)) + best - log_sum
    p = np.exp(logits - log_sum)
    return np.where(hot, missed, logits - log_sum), np.where(hot, -1.0, 1.0), np.where(hot, p, 1 - p)


def averages(
    overlap: float, deviation: float, batch: int, teacher: np.ndarray, other: np.ndarray
) -> tuple[float, float, float]:
    """(sigma, h, 1 - rho) at one D and sqrt(Delta), from sampled fields (n, K)."""
    classes = teacher.shape[1]
    size, sign, response = log_slopes(overlap * teacher + deviation * other, teacher.argmax(axis=1))
    chosen, slope = _weights(size.ravel(), batch, step=max(0.1, 0.01 * overlap))
    sigma = -np.mean(sign.ravel() * chosen * teacher.ravel()) * classes / (classes - 1)
    h = np.mean(slope * response.ravel()) * classes / (classes - 1)
    return float(sigma), float(h), 1 - _correlation(size, sign, batch)


def _weights(size: np.ndarray, batch: int, step: float) -> tuple[np.ndarray, np.ndarray]:
    """(Psi, dPsi/dlog|g|) at every one of the log|g|."""
    if batch == 1:
        return np.ones_like(size), np.zeros_like(size)
    ordered = np.sort(size)
    shares = (np.arange(ordered.size) + 0.5) / ordered.size
    # chi(u) = E exp(-e^(2 (log u + l))) = int k(z) P(l < z - log u) dz, k(z) = 2 e^(2z - e^(2z)).
    z, weight = legendre.leggauss(32)
    z, weight = 4.4 * (z + 1) - 7.2, 4.4 * weight
    weight = weight * 2 * np.exp(2 * z - np.exp(2 * z))
    weight /= weight.sum()
    places = np.concatenate([np.quantile(ordered, np.linspace(0, 1, 500)), np.linspace(-8, 8, 120) + ordered[-1]])
    low, high = ordered[0] - 12 - step, ordered[-1] + 12 + step
    places = np.unique(np.concatenate([places, np.linspace(low, high, 300)]))
    logs = -places[::-1]  # log u, rising
    chi = np.interp(z - logs[:, None], ordered, shares, left=0.0, right=1.0) @ weight
    v, share = legendre.leggauss(24)
    v, share = 1.7 * (v + 1), 1.7 * share
    share = share * np.exp(-v * v)
    share /= share.sum()

    def psi(at: np.ndarray) -> np.ndarray:
        return batch * np.interp(np.log(v) - at[:, None], logs, chi) ** (batch - 1) @ share

    return (
        np.interp(size, places, psi(places)),
        np.interp(size, places, (psi(places + step) - psi(places - step)) / (2 * step)),
    )


def _correlation(size: np.ndarray, sign: np.ndarray, batch: int) -> float:
    """rho: mean over pairs of rows of (2/pi) asin of the cosine of their slopes in a batch."""
    classes = size.shape[1]
    if classes == 2:
        return -1.0
    found, rng = [], np.random.default_rng(18)
    for _ in range(min(16, 1 + batch // 8)):
        order = rng.permutation(len(size))[: len(size) // batch * batch].reshape(-1, batch)
        slopes = sign[order] * np.exp(size[order] - size[order].max(axis=1, keepdims=True))
        slopes /= np.sqrt((slopes**2).sum(axis=1, keepdims=True))
        cosine = np.einsum("nbi,nbj->nij", slopes, slopes)
        angles = 2 / np.pi * np.arcsin(np.clip(cosine, -1, 1))
        total = angles.sum(axis=(1, 2)) - np.trace(angles, axis1=1, axis2=2)
        found.append(total.mean() / (classes * (classes - 1)))
    return float(np.mean(found))
