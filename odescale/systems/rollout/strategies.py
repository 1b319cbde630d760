"""Which strategy of speculation is used at which number of live requests."""

from __future__ import annotations

import re
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from odescale.errors import InputError
from odescale.systems.parameters import is_traced
from odescale.systems.rollout.cost import MOST_DEPTH, Acceptance, Costs, round_time

Numbers = ArrayLike | Sequence[float]

FORM = "BATCH:DEPTHxVERIFIED, e.g. 8:12x64,32:6x16"


class Policy(eqx.Module):
    """Up to `batch[k]` live requests, and more than `batch[k-1]`: draft `depth[k]`, verify `verified[k]`; above all of them: plain.

    Arrays (k,), `batch` rising. A depth of 0 is plain decoding. V tokens of each request are verified in one pass: d + 1 for a
    chain, more for a tree. **Errors**: `InputError` naming the argument. Source: threshold of Hu et al. 2025, arXiv 2511.16665.
    """

    batch: Float[Array, " k"]
    depth: Float[Array, " k"]
    verified: Float[Array, " k"]

    def __init__(self, batch: Numbers = (), depth: Numbers = (), verified: Numbers = ()) -> None:
        self.batch, self.depth, self.verified = (
            jnp.atleast_1d(jnp.asarray(x, float)) for x in (batch, depth, verified)
        )

    def __check_init__(self) -> None:
        if not self.batch.shape == self.depth.shape == self.verified.shape:
            shapes = [x.shape for x in (self.batch, self.depth, self.verified)]
            raise InputError("policy", expected="as many depths and verified as batches", got=shapes, remedy=FORM)
        if any(is_traced(x) for x in (self.batch, self.depth, self.verified)):
            return
        for name, holds, expected in (
            ("batch", jnp.all(jnp.diff(self.batch) > 0) & jnp.all(self.batch >= 0), "batches >= 0, rising"),
            ("depth", jnp.all((self.depth >= 0) & (self.depth <= MOST_DEPTH)), f"depths from 0 to {MOST_DEPTH}"),
            ("verified", jnp.all((self.verified >= 1) & (self.verified >= self.depth)),
             "verified tokens, at least as many as are drafted one after another, and 1"),
        ):  # fmt: skip
            if not bool(holds):
                raise InputError(name, expected=expected, got=getattr(self, name).tolist(), remedy=FORM)

    def at(self, live: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """(depth, verified) with so many live requests; (0, 1) above the last batch."""
        place = jnp.sum(live[:, None] > self.batch, axis=1)
        depth = jnp.concatenate([self.depth, jnp.zeros(1)])[place]
        return depth, jnp.concatenate([self.verified, jnp.ones(1)])[place]

    def text(self) -> str:
        """The policy in the form that `parse_policy` reads."""
        rows = zip(self.batch.tolist(), self.depth.tolist(), self.verified.tolist(), strict=True)
        return ",".join(f"{b:g}:{d:g}x{v:g}" for b, d, v in rows) or "plain"


def parse_policy(text: str | Sequence[tuple[float, float, float]]) -> Policy:
    """The policy behind "32:6x16" (up to 32 live: depth 6, verify 16), several by commas, "plain" for none; or behind triples."""
    if not isinstance(text, str):
        rows = [tuple(map(float, row)) for row in text]
        return Policy(*zip(*rows, strict=True)) if rows else Policy()
    if text.strip() in ("", "plain"):
        return Policy()
    rows = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|inf)\s*:\s*(\d+)\s*x\s*(\d+)\s*", part)
        if match is None:
            raise InputError("policy", expected=FORM, got=part, remedy='or "plain"')
        rows.append(tuple(map(float, match.groups())))
    return Policy(*zip(*sorted(rows), strict=True))


def token_times(
    costs: Costs, acceptance: Acceptance, policy: Policy, requests: int
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
    """(g, tau, A) with 0 ... `requests` live, (requests + 1,): time of a token of all live ones, of a round, tokens of a round.

    g = tau/A in plain rounds at batch 1; g(0) = tau(0) = 0: nobody waits for nothing.
    """
    live = jnp.arange(requests + 1, dtype=float)
    depth, verified = policy.at(live)
    tokens = acceptance.tokens(depth)
    time = jnp.where(live > 0, round_time(costs, jnp.maximum(live, 1.0), depth, verified), 0.0)
    return time / tokens, time, tokens
