r"""How often a single SGD step throws a network off its path: the tail of the gradient, which no mean curvature sees.

    jump of row i:  |dW_i|^2 over |W_i|^2, in the metric of the tokens  =  (eta/B)^2 sum_ts rho_ts g_ti g_si/(d_eff C_ii)
    jumps:          N B P(largest of them > 0.3),  per unit of t

A step that moves a row by half its length or more leaves the drift no time to bring it back, and where gradients are polynomials of
the rows the next one is larger. Gradients of softmax and erf networks have short tails, those of polynomials of high degree long
ones: for two layers of linear attention the rate hardly falls as d grows.

Events of a probability of 1e-4 to 1e-7 are met by importance sampling: the normal numbers behind the fields are drawn from
Gaussians whose covariance is that of the rarest events so far, and weighted back by the ratio of the densities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

JUMP = 0.3
"""Squared move of a row in one step, over its squared length, that counts as a jump."""
ROUNDS = 3
"""Gaussians beside the first, each fitted to what the ones before have met."""
KEPT = 200
"""Events that a covariance is taken of: where fewer exceed the level that is asked for, the largest that many."""


class Wide(NamedTuple):
    """N(0, U diag(lam) U^T), lam >= 1."""

    lam: Float[np.ndarray, " D"]
    U: Float[np.ndarray, "D D"]

    def over_standard(self, z: Float[np.ndarray, "n D"]) -> Float[np.ndarray, " n"]:
        """Its density over that of standard normal numbers."""
        along = (z @ self.U) ** 2
        # Far out where a wide part lies the weight is zero, whatever the number.
        return np.exp(np.minimum(np.sum(along * (1 - 1 / self.lam), axis=1) / 2 - np.log(self.lam).sum() / 2, 600.0))


def rare_share(
    size: Callable[[Float[np.ndarray, "n D"]], Float[np.ndarray, " n"]],
    first: Float[np.ndarray, "n D"],
    level: float = 1.0,
) -> float:
    """P(size(z) > level), z standard normal, from 4 n evaluations, for probabilities down to 1e-7.

    To 15 % where a few directions of z decide, within a factor of two where twenty do.

    `first` (n, D): standard normal points to begin with. `size`: even in z, or nearly.
    """
    n, dimension = first.shape
    random = np.random.default_rng(0)
    parts = [Wide(np.ones(dimension), np.eye(dimension))]
    points, sizes = first, np.asarray(size(first))
    for _ in range(ROUNDS):
        parts.append(_fitted(points, sizes, _weights(points, parts), level))
        drawn = (random.standard_normal((n, dimension)) * np.sqrt(parts[-1].lam)) @ parts[-1].U.T
        points, sizes = np.concatenate([points, drawn]), np.concatenate([sizes, np.asarray(size(drawn))])
    return float(np.mean(_weights(points, parts) * (sizes > level)))


def _weights(points: Float[np.ndarray, "n D"], parts: Sequence[Wide]) -> Float[np.ndarray, " n"]:
    """Standard density over that of the mixture of the parts, at most their number."""
    return 1 / np.mean([part.over_standard(points) for part in parts], axis=0)


def _fitted(points: np.ndarray, sizes: np.ndarray, weights: np.ndarray, level: float) -> Wide:
    """The covariance of the events beyond the level, where it exceeds that of standard numbers and its own noise."""
    sizes = np.nan_to_num(sizes, nan=np.inf)
    reached = min(level, np.sort(sizes)[-KEPT - 1]) if sizes.size > KEPT else level
    events = sizes > reached
    z, w = points[events], weights[events]
    if not w.size:
        return Wide(np.ones(points.shape[1]), np.eye(points.shape[1]))
    lam, U = np.linalg.eigh((z * w[:, None]).T @ z / w.sum())
    effective = w.sum() ** 2 / np.sum(w**2)
    noise = (1 + np.sqrt(points.shape[1] / effective)) ** 2  # largest eigenvalue of as many standard numbers
    # Directions that do not stand out have their mean in common: events of many small fields show in it alone.
    rest = lam[lam <= noise]
    common = rest.mean() if rest.size and rest.mean() - 1 > 3 / np.sqrt(rest.size * effective) else 1.0
    return Wide(np.maximum(np.where(lam > noise, lam, common), 1.0), U)
