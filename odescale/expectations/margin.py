r"""Two classes, any loss of the margin: expectations of l'(u), l''(u) and l'(u)^2 over the margins of a student.

The label is the sign of the teacher's margin u* ~ N(0, 2); given it, u = D |u*| + sqrt(2 Delta) xi. At large D only the
boundary layer |u*| ~ 1/D contributes: the nodes follow it.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

MarginLoss = Callable[[Float[Array, ""], Float[Array, ""]], Float[Array, ""]]


def focal(u: Float[Array, ""], focusing: Float[Array, ""]) -> Float[Array, ""]:
    """(1 - p)^focusing (-log p), p = sigmoid(u)."""
    return jnp.exp(-focusing * jax.nn.softplus(u)) * jax.nn.softplus(-u)


def brier(u: Float[Array, ""], focusing: Float[Array, ""]) -> Float[Array, ""]:
    """1/2 |p - y|^2 = (1 - p)^2, p = sigmoid(u)."""
    return jax.nn.sigmoid(-u) ** 2


def square(u: Float[Array, ""], focusing: Float[Array, ""]) -> Float[Array, ""]:
    """1/2 |lambda - y|^2 on the centred logits, up to a constant: (u - 1)^2/4."""
    return 0.25 * (u - 1) ** 2


MARGIN_LOSSES: dict[str, MarginLoss] = {"focal": focal, "brier": brier, "square": square}


class MarginMoments(eqx.Module):
    """`drift` -E[l'(u) u*] (u* > 0), `response` 2 E[l''(u)], `second_moment` G = 2 E[l'(u)^2]."""

    drift: Float[Array, ""]
    response: Float[Array, ""]
    second_moment: Float[Array, ""]


def _nodes(panels: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(order)
    edges = np.linspace(0, 1, panels + 1)
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (nodes + 1)).ravel(), (half * weights).ravel()


_SHARE, _WEIGHT = _nodes(14, 10)
_NORMAL = np.arange(-8, 8.01, 0.2)
_DENSITY = 0.2 * np.exp(-0.5 * _NORMAL**2) / np.sqrt(2 * np.pi)


def margin_moments(
    loss: str, overlap: Float[Array, ""], spread: Float[Array, ""], focusing: Float[Array, ""]
) -> MarginMoments:
    """Moments of a named margin loss at (D, Delta), to 1e-10 for sqrt(Delta) <= 3.

    `square` has no boundary layer and is exact: drift 1/sqrt(pi) - D, response 1, G = (2 D^2 + 2 Delta - 4 D/sqrt(pi) + 1)/2.
    """
    if loss == "square":
        m = 1 / jnp.sqrt(jnp.pi)
        return MarginMoments(m - overlap, jnp.ones_like(overlap), overlap**2 + spread - 2 * m * overlap + 0.5)
    slope = jax.grad(lambda u: MARGIN_LOSSES[loss](u, focusing))
    deviation = jnp.sqrt(2 * jnp.maximum(spread, 1e-24))
    # The loss has died out 45 margins beyond the layer; teacher margins beyond 17 do not occur.
    reach = jnp.minimum(17.0, (45 + 8 * deviation) / jnp.maximum(overlap, 1e-3))
    margin = reach * jnp.asarray(_SHARE)
    weights = reach * jnp.asarray(_WEIGHT) * jnp.exp(-(margin**2) / 4) / jnp.sqrt(jnp.pi)
    u = overlap * margin[:, None] + deviation * jnp.asarray(_NORMAL)
    first = jax.vmap(jax.vmap(slope))(u)
    second = jax.vmap(jax.vmap(jax.grad(slope)))(u)
    density = jnp.asarray(_DENSITY)
    return MarginMoments(
        -(weights * margin) @ (first @ density),
        2 * weights @ (second @ density),
        2 * weights @ (first**2 @ density),
    )
