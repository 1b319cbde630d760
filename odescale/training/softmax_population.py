r"""Population loss and error of a real softmax layer at its measured overlaps, by importance-weighted Sobol nodes.

The fields of student and teacher are jointly Gaussian whatever the weights are, and these averages use nothing else:
neither class symmetry nor the closure of the theory.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax.scipy import special as jspecial
from jaxtyping import Array, Float, Int
from scipy import special

from odescale.errors import InputError
from odescale.precision import require_x64

LARGEST = 4000
"""Classes up to which nodes are made: Sobol points of 2 K coordinates."""


class Population(NamedTuple):
    """Excess cross-entropy and misclassification rate against the teacher's argmax, each with its standard error."""

    loss: float
    loss_stderr: float
    error: float
    error_stderr: float


class _Nodes(NamedTuple):
    """Replicates r of n nodes: runner-up, uniform number of the gap, fields below in places, noise, place of the largest."""

    runner_up: Float[Array, "r n"]
    gap_uniform: Float[Array, "r n"]
    fields: Float[Array, "r n K"]
    noise: Float[Array, "r n K"]
    top: Int[Array, "r n"]


class FieldNodes:
    r"""Nodes for averages over (lam, lam*), lam* ~ N(0, I_K), with the small gaps of lam* drawn more often.

    The loss of a trained layer comes from the inputs whose two largest teacher fields nearly tie. Draw the runner-up from
    its law (Phi(z) ~ Beta(K - 1, 2)), the gap g to the top from a mixture of its law p(g) and of exponentials as wide as
    the boundary layer, weigh by p/q, the rest below the runner-up, and permute the classes. The weights stay below the
    number of parts of the mixture.

    **Arguments**: `classes` K from 2 to 4000, `replicates` independent scrambles (their scatter is the standard error),
    `nodes` per replicate, a power of two (default: 2^14, fewer where K is large), `seed` of the scrambles. The same nodes
    serve all seeds and times of a run: their error is common to them. Needs float64.
    """

    def __init__(self, classes: int, *, replicates: int = 8, nodes: int | None = None, seed: int = 0) -> None:
        require_x64("FieldNodes")
        if not 2 <= classes <= LARGEST:
            raise InputError("classes", expected=f"from 2 to {LARGEST} in a real run", got=classes, remedy="use fewer")
        if nodes is not None and (nodes < 2 or nodes & (nodes - 1)):
            raise InputError("nodes", expected="a power of two (Sobol points)", got=nodes, remedy="16384 is good")
        K = classes
        count = nodes or int(np.clip(2 ** int(np.log2(2e7 / (replicates * K))), 256, 2**14))
        random = np.random.default_rng([seed, 0x9EA4ED])
        scrambles = [
            scipy.stats.qmc.Sobol(2 * K, scramble=True, rng=np.random.default_rng([seed, r])) for r in range(replicates)
        ]
        # Scrambled points may round to 0, where a quantile is infinite.
        uniform = np.clip(np.stack([one.random(count) for one in scrambles]), 2.0**-54, 1 - 2.0**-53)
        below = special.betaincinv(K - 1, 2, uniform[..., 0])
        runner_up = special.ndtri(below)
        rest = special.ndtri(uniform[..., 2:K] * below[..., None])
        sorted_fields = np.concatenate([np.zeros((*below.shape, 1)), runner_up[..., None], rest], axis=-1)
        order = np.argsort(random.random(sorted_fields.shape), axis=-1)

        def placed(columns: np.ndarray) -> Array:
            places = np.empty_like(columns)
            np.put_along_axis(places, order, columns, axis=-1)
            return jnp.asarray(places)

        # Noise goes with its field: else the random order would cut the link between gap and noise coordinates that
        # makes the nodes better than random ones.
        self.classes = K
        self.nodes = _Nodes(
            jnp.asarray(runner_up), jnp.asarray(uniform[..., 1]), placed(sorted_fields),
            placed(special.ndtri(uniform[..., K:])), jnp.asarray(order[..., 0]),
        )  # fmt: skip

    def population(
        self,
        cross: Float[np.ndarray, "K K"],
        own: Float[np.ndarray, "K K"],
        *,
        soft: bool,
        inverse_temperature: float = np.inf,
        scale: float = 1.0,
    ) -> Population:
        r"""Excess cross-entropy of p = softmax(scale lam) and P(argmax lam != argmax lam*) at R = `cross`, Q = `own`.

            hard labels:  E[-log p_y],  y = argmax lam*           soft and sampled:  E[KL(softmax(b* lam*) || p)]

        lam = R lam* + (Q - R R^T)^(1/2) xi: the teacher's rows are orthonormal. Labels are not smoothed here.
        """
        cross, own = scale * np.asarray(cross, float), scale**2 * np.asarray(own, float)
        K = self.classes
        along = (np.trace(cross) - cross.sum() / K) / (K - 1)
        wide = np.sqrt(max((np.trace(own) - own.sum() / K) / (K - 1) - along**2, 0.0))
        sharp = [max(along, 1.0) / (1 + wide)] + ([max(inverse_temperature, 1.0)] if soft else [])
        widths = [min(2 / x, 1.0) for x in sharp]
        # A common shift of all logits changes nothing: as much of it as of the rest makes the noise invertible.
        noise = own - cross @ cross.T
        values, vectors = np.linalg.eigh(noise + (wide**2 - noise.sum() / K) / K)
        root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        smooth = values[0] > 1e-9 * values[-1]
        inverse = (vectors / np.sqrt(values)) @ vectors.T if smooth else np.zeros_like(root)
        arrays = (jnp.asarray(x) for x in (np.asarray(widths), cross, root, inverse))
        beta = jnp.asarray(inverse_temperature if soft else 1.0)
        loss, error = np.asarray(_averages(self.nodes, *arrays, beta, soft=soft, smooth=bool(smooth)))
        r = len(loss)
        return Population(
            float(loss.mean()), float(loss.std(ddof=1) / np.sqrt(r)),
            float(error.mean()), float(error.std(ddof=1) / np.sqrt(r)),
        )  # fmt: skip


@partial(jax.jit, static_argnames=("soft", "smooth"))
def _averages(
    nodes: _Nodes,
    widths: Float[Array, " w"],
    cross: Float[Array, "K K"],
    root: Float[Array, "K K"],
    inverse: Float[Array, "K K"],
    inverse_temperature: Float[Array, ""],
    *,
    soft: bool,
    smooth: bool,
) -> Float[Array, "2 r"]:
    """(loss, error) of every replicate; `smooth` where the noise can be inverted."""
    parts, K = 1 + widths.size, cross.shape[0]
    tiny = 2.0**-50

    def one(nodes: _Nodes) -> tuple[Array, Array]:
        part = jnp.minimum((nodes.gap_uniform * parts).astype(int), parts - 1)
        u = jnp.clip(nodes.gap_uniform * parts - part, tiny, 1 - tiny)
        above = jspecial.ndtr(-nodes.runner_up)
        gap = jnp.where(part == 0, -jspecial.ndtri(above * u) - nodes.runner_up, -widths[part - 1] * jnp.log(u))
        gap = jnp.maximum(gap, 0.0)
        law = jnp.exp(-0.5 * (nodes.runner_up + gap) ** 2) / np.sqrt(2 * np.pi) / above
        proposal = (law + jnp.sum(jnp.exp(-gap[:, None] / widths) / widths, axis=1)) / parts
        weight = law / proposal
        is_top = jax.nn.one_hot(nodes.top, K, dtype=bool)
        teacher = jnp.where(is_top, (nodes.runner_up + gap)[:, None], nodes.fields)
        lam = teacher @ cross.T + nodes.noise @ root
        own = jnp.sum(lam * is_top, axis=1)
        margin = own - jnp.max(jnp.where(is_top, -jnp.inf, lam), axis=1)
        if soft:
            log_q = jax.nn.log_softmax(inverse_temperature * teacher, axis=1)
            loss = jnp.sum(jnp.exp(log_q) * (log_q - jax.nn.log_softmax(lam, axis=1)), axis=1)
        else:
            loss = jspecial.logsumexp(lam - own[:, None], axis=1)
        if smooth:
            # P(lam_y < the others | the others): a smooth function of the nodes, where the count of errors jumps.
            precision = jnp.diag(inverse @ inverse)[nodes.top]
            pull = jnp.sum((nodes.noise @ inverse) * is_top, axis=1) / precision
            wrong = jspecial.ndtr((pull - margin) * jnp.sqrt(precision))
        else:
            wrong = (margin < 0).astype(lam.dtype)
        return jnp.mean(weight * loss), jnp.mean(weight * wrong)

    return jnp.stack(jax.lax.map(one, nodes))
