"""s t + k log t = r, the equation in which an exponential meets a budget: Lambert's function without its overflow."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

_STEPS = 14
"""Newton's method on a convex function from the right of its root: monotone; 8 steps are enough from these starts."""


def lambert_lower(constant: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
    """y >= 1 with y - log y = r: y = -W_-1(-e^-r) for r >= 1, NaN below. Differentiable, dy/dr = y/(y - 1).

    The start is the upper bound 1 + sqrt(2u) + u with u = r - 1 (I. Chatzigeorgiou, IEEE Commun. Lett. 17 (2013) 1505).
    """
    return _lower(jnp.asarray(constant, float))


@jax.custom_jvp
def _lower(r: Array) -> Array:
    u = jnp.maximum(r - 1, 0.0)
    d = jnp.sqrt(2 * u) + u

    def newton(_: Array, d: Array) -> Array:
        # f = d - log1p(d) - u, f' = d/(1 + d)
        step = jnp.where(d > 0, (d - jnp.log1p(d) - u) * (1 + d) / jnp.where(d > 0, d, 1.0), 0.0)
        return jnp.maximum(d - step, 0.0)

    d = jax.lax.fori_loop(0, _STEPS, newton, d)
    return jnp.where(r >= 1, 1 + d, jnp.nan)


@_lower.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y = _lower(primals[0])
    return y, tangents[0] * y / (y - 1)


def lambert_upper(constant: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
    """y > 0 with y + log y = r: y = W_0(e^r), without overflow for large r. Differentiable, dy/dr = y/(1 + y)."""
    return _upper(jnp.asarray(constant, float))


@jax.custom_jvp
def _upper(r: Array) -> Array:
    # In u = log y: e^u + u = r is convex and increasing; both starts lie to the right of the root.
    u = jnp.where(r > 1, jnp.log(jnp.maximum(r, 1.0)), jnp.minimum(r, 1.0))

    def newton(_: Array, u: Array) -> Array:
        y = jnp.exp(u)
        return u - (y + u - r) / (y + 1)

    return jnp.exp(jax.lax.fori_loop(0, _STEPS, newton, u))


@_upper.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y = _upper(primals[0])
    return y, tangents[0] * y / (1 + y)


def solve_balance(
    linear: Real[ArrayLike, "..."], logarithm: Real[ArrayLike, "..."], right: Real[ArrayLike, "..."]
) -> Float[Array, "..."]:
    """t > 0 with s t + k log t = r, the larger root where there are two (k < 0); NaN where there is none.

    `linear` s >= 0, `logarithm` k of any sign, `right` r. k < 0: y = s t/|k| is -W_-1; k > 0: y = s t/k is W_0; k = 0: t = r/s;
    s = 0: t = e^(r/k).
    """
    s, k, r = jnp.broadcast_arrays(*(jnp.asarray(x, float) for x in (linear, logarithm, right)))
    size = jnp.where(k == 0, 1.0, jnp.abs(k))
    slope = jnp.where(s > 0, s, 1.0)
    shift = jnp.log(slope / size)
    low = lambert_lower(jnp.where(k < 0, r / size - shift, 2.0)) * size / slope
    high = lambert_upper(jnp.where(k > 0, r / size + shift, 0.0)) * size / slope
    t = jnp.where(k < 0, low, jnp.where(k > 0, high, r / slope))
    free = jnp.where(k == 0, jnp.nan, jnp.exp(r / jnp.where(k == 0, 1.0, k)))
    return jnp.where(s > 0, jnp.where(t > 0, t, jnp.nan), free)
