"""Nodes for Gaussian expectations: scrambled Sobol points in replicates, or tensor Gauss-Hermite points in low dimension.

    E f(z),  z ~ N(0, I_D)   ~   (1/n) sum_i f(z_i)   per replicate (Sobol),     sum_i w_i f(z_i) at two orders (Gauss-Hermite)

The nodes are numbers fixed once, so that whatever is averaged over them is a smooth, deterministic function of the overlaps;
independent scramblings give independent results, whose scatter is the error bar, carried through a whole trajectory.
"""

from __future__ import annotations

from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float
from scipy import special

from odescale.errors import InputError, whole

GAUSS_HERMITE_NODES = 250_000
"""Largest tensor grid that is worth it: beyond, Sobol points do better."""


class Nodes(eqx.Module):
    """n nodes in D dimensions, in R replicates.

    - `points` (R, n, D) standard normal nodes, stored in float32 (a node is a number like any other; its rounding is no
      error). `weights` (R, n), sum 1 in each replicate. `kind`: "sobol" or "gauss_hermite".
    """

    points: Float[Array, "R n D"]
    weights: Float[Array, "R n"]
    kind: Literal["sobol", "gauss_hermite"] = eqx.field(static=True)

    @property
    def replicates(self) -> int:
        """R: independent scramblings; for Gauss-Hermite two orders, the lower one first."""
        return self.points.shape[0]

    @property
    def count(self) -> int:
        """n, nodes of one replicate."""
        return self.points.shape[1]

    def mean(self, values: Any) -> Any:
        """The estimate from values (R, ...): mean over scramblings; the higher order of Gauss-Hermite."""
        return values.mean(axis=0) if self.kind == "sobol" else values[-1]

    def half_width(self, values: Any, confidence: float = 0.95) -> Any:
        """Half width of the confidence interval of `mean` from values (R, ...).

        Student's t with R - 1 degrees of freedom over the scramblings (infinite for one); for Gauss-Hermite the difference
        of the two orders.
        """
        if self.kind == "gauss_hermite":
            return abs(values[-1] - values[0])
        R = self.replicates
        if R < 2:
            return values[0] * 0 + np.inf  # one node set says nothing of its error
        factor = float(special.stdtrit(R - 1, 0.5 + confidence / 2)) / R**0.5
        return factor * values.std(axis=0, ddof=1)


def sobol_nodes(dimension: int, count: int, replicates: int = 4, seed: int = 0) -> Nodes:
    """R independently scrambled Sobol sequences (Owen-type scrambling), mapped to N(0, I_D) by the inverse distribution.

    **Arguments**

    - `dimension`: D from 1 to 21201. `count`: n, a power of two from 16 to 2^22. `replicates`: R >= 1; 4 gives the error
      bar three degrees of freedom. `seed`: integer >= 0; another seed is another set of nodes.

    Memory: 4 R n D bytes. Errors fall about as 1/n in low dimension and as 1/sqrt(n) to 1/n^0.75 in tens of dimensions.
    Source: Owen, J. Complexity 14, 466 (1998).
    """
    whole("dimension", dimension, 1, scipy.stats.qmc.Sobol.MAXDIM)
    whole("count", count, 16, 2**22)
    whole("replicates", replicates, 1, 1024)
    whole("seed", seed, 0, 2**31)
    if count & (count - 1):
        raise InputError("count", expected="a power of two", got=count, remedy=f"use {2 ** int(np.log2(count))}")
    points = np.empty((replicates, count, dimension), np.float32)
    for r in range(replicates):
        engine = scipy.stats.qmc.Sobol(dimension, scramble=True, rng=np.random.default_rng((seed, r, 0x50B01)))
        # Half a cell off the corner: a scrambled point may be exactly 0, whose normal quantile is -inf.
        uniform = engine.random_base2(int(np.log2(count)))
        points[r] = special.ndtri(np.clip(uniform, 2.0**-33, 1 - 2.0**-33))
    weights = np.full((replicates, count), 1.0 / count)
    return Nodes(jnp.asarray(points), jnp.asarray(weights), "sobol")


def gauss_hermite_nodes(dimension: int, order: int) -> Nodes:
    """Tensor grids of `order` - 2 and `order` nodes per dimension: exact for polynomials of degree 2 order - 1.

    Two replicates, padded with weight zero to one length: the difference is the error estimate. `dimension` * log(order) is
    bounded by `GAUSS_HERMITE_NODES`.
    """
    whole("dimension", dimension, 1, 16)
    whole("order", order, 4, 256)
    if order**dimension > GAUSS_HERMITE_NODES:
        raise InputError(
            "order", expected=f"at most {GAUSS_HERMITE_NODES} nodes in all", got=f"{order}^{dimension}",
            remedy="use Sobol nodes",
        )  # fmt: skip
    points = np.zeros((2, order**dimension, dimension), np.float64)
    weights = np.zeros((2, order**dimension))
    for place, n in enumerate((order - 2, order)):
        x, w = np.polynomial.hermite_e.hermegauss(n)
        w = w / w.sum()
        points[place, : n**dimension] = np.stack(np.meshgrid(*[x] * dimension, indexing="ij"), -1).reshape(
            -1, dimension
        )
        product = np.ones(1)
        for _ in range(dimension):
            product = np.multiply.outer(product, w).ravel()
        weights[place, : n**dimension] = product
    return Nodes(jnp.asarray(points), jnp.asarray(weights), "gauss_hermite")


def largest_order(dimension: int, budget: int) -> int:
    """Most Gauss-Hermite nodes per dimension within `budget` nodes in all; 0 when fewer than 8 would fit."""
    order = int(np.floor(min(budget, GAUSS_HERMITE_NODES) ** (1 / dimension) + 1e-9))
    return min(order, 128) if order >= 8 else 0
