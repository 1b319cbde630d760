r"""What a round takes and what it brings, with and without speculation.

    tau(b) = T(b) + k_v (b-1),   tau(b; d, V) = T(b V) + k_v (b-1) + c_0 + c_1 d (1 + c_2 b),   T(m) = (1 + (m/m_0)^q)^(1/q)
    A(d) = 1 + sum_{j<=d} prod_{i<=j} a_i,   a_i = a_1 e^(-h (i-1))

Derived in `derivations/rollout/script.py`. The unit of time is a plain round at batch 1, far below saturation.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.errors import InputError
from odescale.generated import rollout as formulas
from odescale.systems.parameters import is_traced

MOST_DEPTH = 64
"""Drafted tokens of a round: A(d) is a sum of that many terms whatever d is, so that depths can be swept in one program."""


COSTS = ("saturation", "sharpness", "context", "fixed", "draft", "crowding")
"""The numbers of `Costs`, which stand in a system under the same names: a sweep finds them there."""


def _number(x: ArrayLike) -> Float[Array, "..."]:
    return jnp.asarray(x, float)


def _domain(name: str, value: Array, expected: str, holds: ArrayLike) -> None:
    if not bool(holds):
        raise InputError(name, expected=expected, got=np.asarray(value).tolist(), remedy="see odescale.rollouts.Costs")


class Costs(eqx.Module):
    """tau(b; d, V) = T(b V) + k_v (b-1) + c_0 + c_1 d (1 + c_2 b), T(m) = (1 + (m/m_0)^q)^(1/q): the time of a round.

    Units: a plain round of one request is 1 (weights read once). **Fields**: `saturation` m_0 > 0, tokens of one pass at which
    computing takes over from reading weights; `sharpness` q > 0 of the roofline; `context` k_v >= 0, the keys and values of one
    more request; `fixed` c_0 >= 0 of a speculative round; `draft` c_1 >= 0, one pass of the drafter; `crowding` c_2 >= 0.
    **Good values**: m_0 100 to 600 on a present GPU, q 1 to 4, k_v .002 to .02 (it grows with the context), c_1 .01 to .1.
    **Failure regime**: prefill, scheduling and memory limits are not in it. Source: Williams et al. 2009 (roofline); form of
    Hu et al. 2025, arXiv 2511.16665.
    """

    saturation: Float[Array, ""] = eqx.field(converter=_number, default=256.0)  # type: ignore[assignment]
    sharpness: Float[Array, ""] = eqx.field(converter=_number, default=2.0)  # type: ignore[assignment]
    context: Float[Array, ""] = eqx.field(converter=_number, default=0.008)  # type: ignore[assignment]
    fixed: Float[Array, ""] = eqx.field(converter=_number, default=0.1)  # type: ignore[assignment]
    draft: Float[Array, ""] = eqx.field(converter=_number, default=0.03)  # type: ignore[assignment]
    crowding: Float[Array, ""] = eqx.field(converter=_number, default=0.0)  # type: ignore[assignment]

    def __check_init__(self) -> None:
        for name in COSTS:
            value = getattr(self, name)
            if is_traced(value):
                continue
            least = 0.0 if name in ("saturation", "sharpness") else -np.inf
            holds = np.all(np.isfinite(value)) and np.all(value > least) and np.all(value >= 0)
            _domain(name, value, "a positive number" if least == 0 else "a number >= 0", holds)


def costs_in(system: Any) -> Costs:
    """The costs that stand in a system under their own names."""
    return Costs(**{name: getattr(system, name) for name in COSTS})


class Acceptance(eqx.Module):
    """a_i = a_1 e^(-h (i-1)): the i-th drafted token is accepted with that probability if those before it were.

    `first` a_1 in [0, 1], `hazard` h >= 0. One token alone: 1 - TV(target, drafter) (Leviathan et al. 2023, arXiv 2211.17192). With
    several candidates at a place it is the chance that one of them is accepted.
    """

    first: Float[Array, ""] = eqx.field(converter=_number, default=0.85)  # type: ignore[assignment]
    hazard: Float[Array, ""] = eqx.field(converter=_number, default=0.02)  # type: ignore[assignment]

    def __check_init__(self) -> None:
        if not is_traced(self.first):
            _domain("first", self.first, "a probability in [0, 1]", np.all((self.first >= 0) & (self.first <= 1)))
        if not is_traced(self.hazard):
            _domain("hazard", self.hazard, "a number >= 0", np.all(np.isfinite(self.hazard) & (self.hazard >= 0)))

    def kept(self) -> Float[Array, "... D"]:
        """P(j or more of unlimited drafted tokens are accepted), j = 1 ... `MOST_DEPTH`; leading axes of an array `first`."""
        place = jnp.arange(1, MOST_DEPTH + 1, dtype=float)
        first = self.first[..., None]
        safe = jnp.where(first > 0, first, 1.0)
        return jnp.where(first > 0, formulas.kept(place, safe, self.hazard), 0.0)

    def tokens(self, depth: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """A(d) = 1 + sum_{j<=d} P(j or more are accepted): tokens that a request takes from a round, 1 at depth 0."""
        place = jnp.arange(1, MOST_DEPTH + 1, dtype=float)
        return 1 + jnp.sum(jnp.where(place <= jnp.asarray(depth)[..., None], self.kept(), 0.0), axis=-1)

    def square(self, depth: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """E k^2 of the tokens k of a round."""
        place = jnp.arange(1, MOST_DEPTH + 1, dtype=float)
        return 1 + jnp.sum(
            jnp.where(place <= jnp.asarray(depth)[..., None], (2 * place + 1) * self.kept(), 0.0), axis=-1
        )


def round_time(
    costs: Costs, batch: Real[ArrayLike, "..."], depth: Real[ArrayLike, "..."] = 0, verified: Real[ArrayLike, "..."] = 1
) -> Float[Array, "..."]:
    """tau(b; d, V), in plain rounds at batch 1; depth 0 is plain decoding, whatever `verified` says. Arguments broadcast."""
    b, d, V = (jnp.asarray(x, float) for x in (batch, depth, verified))
    c = costs
    plain = formulas.plain_time(b, c.saturation, c.sharpness, c.context)
    speculative = formulas.speculative_time(b, d, V, c.saturation, c.sharpness, c.context, c.fixed, c.draft, c.crowding)
    return jnp.where(d > 0, speculative, plain)


def speedup(
    costs: Costs,
    acceptance: Acceptance,
    batch: Real[ArrayLike, "..."],
    depth: Real[ArrayLike, "..."],
    verified: Real[ArrayLike, "..."],
) -> Float[Array, "..."]:
    """A(d) tau(b)/tau(b; d, V): tokens per second with the strategy over those of plain decoding at the same batch."""
    return acceptance.tokens(depth) * round_time(costs, batch) / round_time(costs, batch, depth, verified)
