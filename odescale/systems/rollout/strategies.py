"""Which strategy of speculation is used at which number of live requests."""

from __future__ import annotations

import re
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from odescale.errors import InputError
from odescale.generated import rollout as formulas
from odescale.systems.parameters import is_traced
from odescale.systems.rollout.cost import MOST_DEPTH, Acceptance, Costs, round_time

Numbers = ArrayLike | Sequence[ArrayLike]

FORM = "BATCH:DEPTHxVERIFIED[@TOKENS], e.g. 8:12x64,32:6x16 or 32:6x16@4.2"


class Policy(eqx.Module):
    """Up to `batch[k]` live requests, and more than `batch[k-1]`: draft `depth[k]`, verify `verified[k]`; above all of them: plain.

    Arrays (k,), `batch` rising. A depth of 0 is plain decoding. V tokens of each request are verified in one pass: d + 1 for a
    chain, more for a tree. `tokens` A of a round where they were measured, in (1, d + 1]; NaN: by the acceptance of the system.
    All places are then taken to be accepted `alike`, with the chance that gives A. **Errors**: `InputError` naming the argument.
    Source: threshold of Hu et al. 2025, arXiv 2511.16665.
    """

    batch: Float[Array, " k"]
    depth: Float[Array, " k"]
    verified: Float[Array, " k"]
    tokens: Float[Array, " k"]
    alike: Float[Array, " k"]

    def __init__(
        self, batch: Numbers = (), depth: Numbers = (), verified: Numbers = (), tokens: Numbers | None = None
    ) -> None:
        rows = (batch, depth, verified)
        self.batch, self.depth, self.verified = (jnp.atleast_1d(jnp.asarray(x, float)) for x in rows)
        given = jnp.full(self.batch.shape, jnp.nan) if tokens is None else jnp.asarray(tokens, float)
        self.tokens = jnp.atleast_1d(given)
        self.alike = jnp.full(self.batch.shape, jnp.nan) if tokens is None else _alike(self.depth, self.tokens)

    def __check_init__(self) -> None:
        arrays = (self.batch, self.depth, self.verified, self.tokens)
        if len({x.shape for x in arrays}) > 1:
            raise InputError("policy", expected="as many depths, verified and tokens as batches",
                             got=[x.shape for x in arrays], remedy=FORM)  # fmt: skip
        if any(is_traced(x) for x in arrays):
            return
        known = ~jnp.isnan(self.tokens)
        within = (self.tokens > 1) & (self.tokens <= self.depth + 1)
        for name, holds, expected in (
            ("batch", jnp.all(jnp.diff(self.batch) > 0) & jnp.all(self.batch >= 0), "batches >= 0, rising"),
            ("depth", jnp.all((self.depth >= 0) & (self.depth <= MOST_DEPTH)), f"depths from 0 to {MOST_DEPTH}"),
            ("verified", jnp.all((self.verified >= 1) & (self.verified >= self.depth)),
             "verified tokens, at least as many as are drafted one after another, and 1"),
            ("tokens", jnp.all(~known | within), "tokens of a round above 1, and at most depth + 1"),
        ):  # fmt: skip
            if not bool(holds):
                raise InputError(name, expected=expected, got=getattr(self, name).tolist(), remedy=FORM)

    def at(self, live: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """(depth, verified) with so many live requests; (0, 1) above the last batch."""
        place = self._place(live)
        depth = jnp.concatenate([self.depth, jnp.zeros(1)])[place]
        return depth, jnp.concatenate([self.verified, jnp.ones(1)])[place]

    def acceptance(self, live: Float[Array, " n"], own: Acceptance) -> Acceptance:
        """The acceptance with so many live requests: `own`, or where tokens were measured, that of places that are alike. (n,)."""
        found = jnp.concatenate([self.alike, jnp.full(1, jnp.nan)])[self._place(live)]
        known = ~jnp.isnan(found)
        first = jnp.where(known, jnp.where(known, found, 0.5), own.first)
        hazard = jnp.where(known, 0.0, own.hazard)
        return Acceptance(first, hazard[..., None])

    def _place(self, live: Float[Array, " n"]) -> Int[Array, " n"]:
        return jnp.sum(live[:, None] > self.batch, axis=1)

    def text(self) -> str:
        """The policy in the form that `parse_policy` reads."""
        rows = zip(*(x.tolist() for x in (self.batch, self.depth, self.verified, self.tokens)), strict=True)
        return ",".join(f"{b:g}:{d:g}x{v:g}" + (f"@{a:g}" if a == a else "") for b, d, v, a in rows) or "plain"


def _alike(depth: Float[Array, " k"], tokens: Float[Array, " k"]) -> Float[Array, " k"]:
    """a with 1 + a + ... + a^d = A, by halving: the chance of places that are all accepted alike. NaN where A is."""
    power = jnp.arange(MOST_DEPTH + 1, dtype=float)
    low, high = jnp.zeros_like(tokens), jnp.ones_like(tokens)
    for _ in range(60):
        middle = (low + high) / 2
        total = jnp.sum(jnp.where(power <= depth[:, None], middle[:, None] ** power, 0.0), axis=1)
        low, high = jnp.where(total < tokens, middle, low), jnp.where(total < tokens, high, middle)
    return jnp.where(jnp.isnan(tokens), jnp.nan, (low + high) / 2)


def parse_policy(text: str | Sequence[Sequence[float]]) -> Policy:
    """The policy behind "32:6x16" (up to 32 live: depth 6, verify 16), "32:6x16@4.2" with its measured tokens of a round, several
    by commas, "plain" for none; or behind (batch, depth, verified[, tokens])."""
    if not isinstance(text, str):
        rows = [tuple(map(float, row)) for row in text]
    elif text.strip() in ("", "plain"):
        return Policy()
    else:
        rows = []
        for part in text.split(","):
            match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|inf)\s*:\s*(\d+)\s*x\s*(\d+)\s*(?:@\s*(\d+(?:\.\d+)?)\s*)?", part)
            if match is None:
                raise InputError("policy", expected=FORM, got=part, remedy='or "plain"')
            rows.append(tuple(float(x) for x in match.groups() if x is not None))
    if not all(len(row) in (3, 4) for row in rows):
        raise InputError("policy", expected="(batch, depth, verified[, tokens]) each", got=rows, remedy=FORM)
    filled = sorted((*row, float("nan"))[:4] for row in rows)
    if not filled:
        return Policy()
    batch, depth, verified, tokens = zip(*filled, strict=True)
    return Policy(batch, depth, verified, tokens if any(a == a for a in tokens) else None)


def round_spread(
    acceptance: Acceptance, policy: Policy, requests: int
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """(v, Delta L) with 0 ... `requests` live, in tokens: Var k/A of the tokens k of a round, the scatter of a request's place per
    token, and what its last round brings too much. Both 0 without speculation."""
    live = jnp.arange(requests + 1, dtype=float)
    depth, _ = policy.at(live)
    own = policy.acceptance(live, acceptance)
    mean, square = own.tokens(depth), own.square(depth)
    return formulas.scatter(mean, square), formulas.overshoot(mean, square)


def token_times(
    costs: Costs, acceptance: Acceptance, policy: Policy, requests: int
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
    """(g, tau, A) with 0 ... `requests` live, (requests + 1,): time of a token of all live ones, of a round, tokens of a round.

    g = tau/A in plain rounds at batch 1; g(0) = tau(0) = 0: nobody waits for nothing.
    """
    live = jnp.arange(requests + 1, dtype=float)
    depth, verified = policy.at(live)
    tokens = policy.acceptance(live, acceptance).tokens(depth)
    time = jnp.where(live > 0, round_time(costs, jnp.maximum(live, 1.0), depth, verified), 0.0)
    return time / tokens, time, tokens
