r"""The best depth over batch and acceptance: argmax_d A(d) tau(b)/tau(b; d, V), on a grid."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from odescale.errors import InputError, whole
from odescale.precision import require_x64
from odescale.systems.rollout.cost import MOST_DEPTH, Acceptance, Costs, speedup
from odescale.systems.rollout.strategies import Numbers


class PolicyMap(eqx.Module):
    """`depth` (a, b) of the best strategy (0: plain) and its `gain` (a, b) over plain decoding, at acceptances `first` (a,) and
    batches `batch` (b,); `verified` tokens are depth + 1 + `extra`."""

    batch: Float[np.ndarray, " b"]
    first: Float[np.ndarray, " a"]
    depth: Float[np.ndarray, "a b"]
    gain: Float[np.ndarray, "a b"]
    extra: int = eqx.field(static=True)

    def __str__(self) -> str:
        return (
            f"best depth: batch {self.batch[0]:g} to {self.batch[-1]:g}, a_1 {self.first[0]:g} to {self.first[-1]:g}: "
            f"plain in {np.mean(self.depth == 0):.0%} of it, up to depth {self.depth.max():g}, gain up to {self.gain.max():.2f}"
        )


def policy_map(
    costs: Costs, *, hazard: float = 0.02, batches: Numbers | None = None, firsts: Numbers | None = None, deepest: int = 16,
    extra: int = 0,
) -> PolicyMap:  # fmt: skip
    """argmax_d A(d) tau(b)/tau(b; d, V), V = d + 1 + extra, at all batches and acceptances of a grid; plain where none pays.

    **Arguments**: `costs`; `hazard` h of further places; `batches` >= 1 (default 1 to 512), `firsts` in (0, 1] (default .4 to .99);
    `deepest` d tried; `extra` tokens verified beside the chain. **Returns** `PolicyMap`, drawn by `plot`. **Raises** `InputError`.
    Source: Hu et al. 2025, arXiv 2511.16665 (strategy by batch).
    """
    require_x64("policy_map")
    deepest, extra = whole("deepest", deepest, 1, MOST_DEPTH), whole("extra", extra, 0)
    b = np.unique(np.geomspace(1, 512, 73)) if batches is None else np.atleast_1d(np.asarray(batches, float))
    a = np.linspace(0.4, 0.99, 60) if firsts is None else np.atleast_1d(np.asarray(firsts, float))
    for name, values, holds, expected in (
        ("batches", b, (b >= 1).all(), "numbers >= 1"), ("firsts", a, ((a > 0) & (a <= 1)).all(), "probabilities in (0, 1]"),
    ):  # fmt: skip
        if not (values.ndim == 1 and values.size and np.isfinite(values).all() and holds):
            raise InputError(name, expected=expected, got=values.tolist()[:5], remedy="leave it out for the default")
    depths = jnp.arange(1, deepest + 1, dtype=float)

    def gains(first: jax.Array) -> jax.Array:
        return speedup(costs, Acceptance(first, hazard), b[:, None], depths, depths + 1 + extra)

    found = np.asarray(jax.vmap(gains)(jnp.asarray(a)))
    best, gain = found.argmax(axis=2), found.max(axis=2)
    return PolicyMap(b, a, np.where(gain > 1, best + 1.0, 0.0), np.maximum(gain, 1.0), extra)
