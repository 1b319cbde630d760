r"""What the heuristics in use lose against the best strategy at every batch: rollouts simulated round by round.

A round with n live requests and strategy s takes tau(n, s) e^(noise); each request takes 1 + k tokens, k of d drafted ones
accepted one after another with a_i, and leaves when its length is reached. regret = T of the heuristic - T of the oracle.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float, Int

from odescale.analysis.rollout.rounds import round_times, values_of
from odescale.errors import InputError, require_number, whole
from odescale.precision import require_x64
from odescale.systems.rollout.cost import MOST_DEPTH, Acceptance, Costs

Strategy = tuple[float, float]
GROUPS = (*range(1, 32), *range(32, 128, 8), *range(128, 257, 32))
"""Batches at which a group of its own begins in fastrl (`eagle_mab.py`): a bandit learns within a group only."""
BUCKETS = (1, 2, 5, 21)
"""Batches at which fastrl's bucketed bandit turns to fewer verified tokens."""
SCORES = ("pooled", "median", "mean")
MOST_ROUNDS = 10_000_000


class Heuristic(abc.ABC):
    """A rule for the strategy of a round; index 0 is plain decoding, the others are the strategies as they were listed."""

    @abc.abstractmethod
    def start(self, seeds: int, strategies: int, rng: np.random.Generator) -> Any:
        """Memory of `seeds` rollouts side by side."""

    @abc.abstractmethod
    def choose(self, memory: Any, live: Int[np.ndarray, " s"]) -> Int[np.ndarray, " s"]:
        """Strategy of the next round by the number of live requests (0: finished, ignored)."""

    def learn(  # noqa: B027 - most rules learn nothing
        self,
        memory: Any,
        live: Int[np.ndarray, " s"],
        chosen: Int[np.ndarray, " s"],
        brought: Float[np.ndarray, " s"],
        took: Float[np.ndarray, " s"],
    ) -> None:
        """Tokens that the round brought, of all live requests, and the time that it took; nothing where `live` is 0."""


@dataclass(frozen=True, eq=False)
class Mapped(Heuristic):
    """`chosen[n]` with n live requests: a table known beforehand. The oracle is one, and so is a fixed threshold."""

    chosen: Int[np.ndarray, " n"]

    def start(self, seeds: int, strategies: int, rng: np.random.Generator) -> None:
        del seeds, rng
        if self.chosen.max() > strategies:
            raise InputError(
                "heuristic", expected=f"strategies 0 to {strategies}", got=int(self.chosen.max()), remedy="list more"
            )

    def choose(self, memory: Any, live: Int[np.ndarray, " s"]) -> Int[np.ndarray, " s"]:
        del memory
        return self.chosen[np.minimum(live, self.chosen.size - 1)]


@dataclass(frozen=True, eq=False)
class EpsilonGreedy(Heuristic):
    """With chance `epsilon` any allowed strategy, else the one of the best score in the batch's group; unseen ones first.

    `score` of a strategy in a group: "median" or "mean" of its last `window` rewards there, a reward being tokens of the round
    over its time; "pooled" (fastrl): the median too, but each reward with the median tokens a request of the strategy's last
    `window` rounds at any batch. `allowed` (n + 1, strategies + 1): strategies that may be taken with n live (default: all).
    `groups`: batches at which a group begins.
    """

    epsilon: float = 0.1
    score: str = "pooled"
    window: int = 100
    allowed: Bool[np.ndarray, "n m"] | None = None
    groups: tuple[int, ...] = GROUPS

    def __post_init__(self) -> None:
        if not 0 <= require_number("epsilon", self.epsilon) <= 1:
            raise InputError("epsilon", expected="a chance in [0, 1]", got=self.epsilon, remedy="0.1")
        if self.score not in SCORES:
            raise InputError("score", expected=f"one of {', '.join(SCORES)}", got=self.score, remedy="choose one")
        whole("window", self.window, 1)
        if self.groups[:1] != (1,) or any(b <= a for a, b in zip(self.groups, self.groups[1:], strict=False)):
            raise InputError("groups", expected="rising batches from 1", got=self.groups, remedy="e.g. (1, 2, 4, 8)")

    def start(self, seeds: int, strategies: int, rng: np.random.Generator) -> Any:
        shape = (seeds, len(self.groups), strategies + 1)
        edge = np.array(self.groups)
        return {
            "rng": rng, "edge": edge, "rewards": np.full((*shape, self.window), np.nan), "count": np.zeros(shape, int),
            "score": np.full(shape, np.inf), "row": np.arange(seeds), "rounds": np.zeros((seeds, strategies + 1), int),
            "tokens": np.full((seeds, strategies + 1, self.window), np.nan),
        }  # fmt: skip

    def choose(self, memory: Any, live: Int[np.ndarray, " s"]) -> Int[np.ndarray, " s"]:
        rng, row = memory["rng"], memory["row"]
        group = np.maximum(np.searchsorted(memory["edge"], live, side="right") - 1, 0)
        open_ = np.ones((row.size, memory["score"].shape[-1]), bool)
        if self.allowed is not None:
            open_ = self.allowed[np.minimum(live, len(self.allowed) - 1)]
        # Ties, and those not yet seen, by lot.
        lot = rng.random(open_.shape)
        score = np.where(open_, memory["score"][row, group], -np.inf)
        top = score >= score.max(axis=1, keepdims=True)
        greedy = np.argmax(np.where(top & open_, lot, -1.0), axis=1)
        anything = np.argmax(np.where(open_, lot, -1.0), axis=1)
        return np.where(rng.random(row.size) < self.epsilon, anything, greedy)

    def learn(
        self,
        memory: Any,
        live: Int[np.ndarray, " s"],
        chosen: Int[np.ndarray, " s"],
        brought: Float[np.ndarray, " s"],
        took: Float[np.ndarray, " s"],
    ) -> None:
        row = np.flatnonzero(live)
        group = np.searchsorted(memory["edge"], live[row], side="right") - 1
        tokens = brought[row] / live[row]
        if self.score == "pooled":
            tokens = _median_of_last(memory["tokens"], memory["rounds"], (row, chosen[row]), tokens)
        at, reward = (row, group, chosen[row]), tokens * live[row] / took[row]
        if self.score == "mean":
            memory["score"][at] = _mean_of_last(memory["rewards"], memory["count"], at, reward)
        else:
            memory["score"][at] = _median_of_last(memory["rewards"], memory["count"], at, reward)


def _put(
    ring: np.ndarray, count: np.ndarray, at: tuple[np.ndarray, ...], value: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(what the rings hold with `value` in the place of the oldest, how many of it); empty places are NaN."""
    window = ring.shape[-1]
    ring[(*at, count[at] % window)] = value
    count[at] += 1
    return ring[at], np.minimum(count[at], window)


def _mean_of_last(ring: np.ndarray, count: np.ndarray, at: tuple[np.ndarray, ...], value: np.ndarray) -> np.ndarray:
    kept, held = _put(ring, count, at, value)
    return np.nansum(kept, axis=1) / held


def _median_of_last(ring: np.ndarray, count: np.ndarray, at: tuple[np.ndarray, ...], value: np.ndarray) -> np.ndarray:
    kept, held = _put(ring, count, at, value)
    # NaN sort to the end.
    ordered, row = np.sort(kept, axis=1), np.arange(held.size)
    return (ordered[row, (held - 1) // 2] + ordered[row, held // 2]) / 2


def fixed_threshold(batch: float, strategy: int = 1) -> Mapped:
    """One strategy up to `batch` live requests, plain decoding above: fastrl's `bs_threshold` (32 in its examples)."""
    top = whole("batch", batch, 0, 1_000_000)
    return Mapped(np.append(np.full(top + 1, whole("strategy", strategy, 1)), 0))


def bucketed(
    strategies: Sequence[Strategy],
    requests: int,
    *,
    buckets: Sequence[int] = BUCKETS,
    epsilon: float = 0.1,
    score: str = "pooled",
    plain_above: int | None = None,
) -> EpsilonGreedy:
    """fastrl's bucketed epsilon-greedy: the more live, the fewer verified tokens, epsilon-greedy among those of the same V.

    **Arguments**: `strategies` (depth, verified), as many different V as `buckets`, batches at which the next smaller V begins;
    `requests`: the most that are live; `plain_above`: plain decoding above that many. **Raises** `InputError`.
    """
    verified = sorted({float(v) for _, v in strategies}, reverse=True)
    if len(verified) != len(buckets) or list(buckets) != sorted(set(buckets)) or buckets[0] != 1:
        raise InputError(
            "buckets",
            expected=f"{len(verified)} rising batches from 1, one for each V",
            got=list(buckets),
            remedy="match them",
        )
    live = np.arange(whole("requests", requests, 1) + 1)
    place = np.maximum(np.searchsorted(np.array(buckets), live, side="right") - 1, 0)
    own = np.array([float(v) for _, v in strategies])
    allowed = np.concatenate([np.zeros((live.size, 1), bool), own[None] == np.array(verified)[place][:, None]], axis=1)
    if plain_above is not None:
        allowed[live > plain_above] = np.eye(1, len(own) + 1, dtype=bool)
    return EpsilonGreedy(epsilon, score, allowed=allowed)


class Regret(eqx.Module):
    """Time that heuristics `names` (h) lose in rollouts one after another (r), against the best strategy at every batch.

    `oracle` (r,): mean time of the latter, in plain rounds at batch 1. `regret` (h, r): mean of T/T_oracle - 1, `error`: its
    standard error over `seeds`. `best` (h, r): share of a heuristic's time in which it used the oracle's strategy.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    oracle: Float[np.ndarray, " r"]
    regret: Float[np.ndarray, "h r"]
    error: Float[np.ndarray, "h r"]
    best: Float[np.ndarray, "h r"]
    seeds: int

    def __str__(self) -> str:
        last = self.regret.shape[1]
        places = sorted({1, 2, max(2, last // 2), last} & set(range(1, last + 1)))
        lines = ["time lost against the best strategy at every batch, by rollout".ljust(34)]
        lines.append(" " * 30 + "".join(f"{f'rollout {k}':>18}" for k in places))
        for name, r, e in zip(self.names, self.regret, self.error, strict=True):
            lines.append(f"{name:<30}" + "".join(f"{r[k - 1]:>10.2%} +-{e[k - 1]:>6.2%}" for k in places))
        lines.append(f"{self.seeds} seeds; oracle: {self.oracle[-1]:.5g} plain rounds at batch 1")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: getattr(self, name) if name in ("names", "seeds") else getattr(self, name).tolist()
                for name in self.__dataclass_fields__}  # fmt: skip


def oracle(costs: Costs, acceptance: Acceptance, strategies: Sequence[Strategy], requests: int) -> Mapped:
    """argmin of tau(n, s)/A(s) at every n up to `requests`, plain decoding among the strategies."""
    pairs = _pairs(strategies)
    live = np.arange(1.0, whole("requests", requests, 1) + 1)
    values = values_of(costs)[None]
    A = np.asarray(acceptance.tokens(pairs[:, 0]))
    g = np.stack([round_times(values, live, np.full_like(live, d), np.full_like(live, v))[0] / a
                  for (d, v), a in zip(pairs, A, strict=True)])  # fmt: skip
    return Mapped(np.append(0, np.argmin(g, axis=0)))


def regrets(
    costs: Costs,
    acceptance: Acceptance,
    strategies: Sequence[Strategy],
    heuristics: Mapping[str, Heuristic],
    lengths: Callable[[np.random.Generator, tuple[int, int]], np.ndarray],
    *,
    requests: int = 128,
    rollouts: int = 10,
    seeds: int = 16,
    noise: float = 0.0,
    seed: int = 0,
) -> Regret:
    """Time that each heuristic loses against the oracle in rollouts one after another, what it learned kept between them.

    **Arguments**: `strategies` (depth, verified); plain decoding is added as number 0. `heuristics` by name.
    `lengths(rng, shape)`: draws lengths in tokens. `noise`: standard deviation of the log of a round's time. `seeds` independent
    histories; all heuristics and the oracle have the same lengths. **Returns** `Regret`. **Raises** `InputError`.
    **Failure regime**: switching is free here, and the drafter does not change between rollouts. **Source** of the bandits: code of
    Hu et al. 2025 (arXiv 2511.16665), `eagle_mab.py`: the median of the last rewards.
    """
    require_x64("regrets")
    pairs = _pairs(strategies)
    N, R, S = (whole(n, v, 1) for n, v in (("requests", requests), ("rollouts", rollouts), ("seeds", seeds)))
    noise = require_number("noise", noise)
    if S < 2 or not heuristics:
        raise InputError("seeds", expected="2 or more, and a heuristic", got=(S, len(heuristics)), remedy="16 seeds")
    best = oracle(costs, acceptance, strategies, N)
    live = np.arange(1.0, N + 1)
    times = np.stack(
        [round_times(values_of(costs)[None], live, np.full_like(live, d), np.full_like(live, v))[0] for d, v in pairs],
        1,
    )
    times = np.concatenate([np.zeros((1, len(pairs))), times])
    kept = np.asarray(acceptance.kept())[: int(pairs[:, 0].max())]
    drawn = np.ceil(np.asarray(lengths(np.random.default_rng(seed), (R * S, N)), float)).reshape(R, S, N)
    if not (np.isfinite(drawn) & (drawn >= 1)).all():
        raise InputError("lengths", expected="finite lengths >= 1 token", got="others", remedy="mend the law")
    runs = {"": best} | dict(heuristics)
    total, right = np.zeros((len(runs), R, S)), np.zeros((len(runs), R, S))
    for h, rule in enumerate(runs.values()):
        rng = np.random.default_rng([seed, 1, h])
        memory = rule.start(S, len(pairs) - 1, rng)
        for r in range(R):
            total[h, r], right[h, r] = _rollout(
                rule, memory, drawn[r], times, pairs[:, 0], kept, best.chosen, noise, rng
            )
    excess = total[1:] / total[0] - 1
    return Regret(
        names=tuple(heuristics), oracle=total[0].mean(axis=1), regret=excess.mean(axis=2),
        error=excess.std(axis=2, ddof=1) / np.sqrt(S), best=right[1:].mean(axis=2), seeds=S,
    )  # fmt: skip


def _pairs(strategies: Sequence[Strategy]) -> Float[np.ndarray, "m 2"]:
    """The strategies behind plain decoding, which is number 0."""
    pairs = np.array([(0.0, 1.0), *((float(d), float(v)) for d, v in strategies)])
    d, v = pairs[1:].T
    if len(pairs) < 2 or not ((d >= 1) & (d <= MOST_DEPTH) & (d == np.round(d)) & (v >= d)).all():
        raise InputError(
            "strategies", expected=f"(depth 1 to {MOST_DEPTH}, verified >= depth)", got=strategies, remedy="e.g. (4, 5)"
        )
    return pairs


def _rollout(
    rule: Heuristic, memory: Any, lengths: np.ndarray, times: np.ndarray, depth: np.ndarray, kept: np.ndarray, best: np.ndarray,
    noise: float, rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(time (s,), share of it under the oracle's strategy (s,)) of one rollout of every seed."""
    left = np.sort(lengths, axis=1)
    clock, right = np.zeros(len(left)), np.zeros(len(left))
    ladder = kept[::-1]
    for _ in range(MOST_ROUNDS):
        live = (left > 0).sum(axis=1)
        if not live.any():
            break
        chosen = rule.choose(memory, live)
        took = times[live, chosen]
        took = took * np.exp(noise * rng.standard_normal(took.size)) if noise else took
        # k or more are accepted with chance kept[k-1], which falls with k: one uniform number says how many.
        k = ladder.size - np.searchsorted(ladder, rng.random(left.shape))
        tokens = 1 + np.minimum(k, depth[chosen][:, None])
        running = left > 0
        brought = np.where(running, np.minimum(tokens, left), 0).sum(axis=1)
        left = np.where(running, left - tokens, left)
        clock += took
        right += np.where(chosen == best[live], took, 0.0)
        rule.learn(memory, live, chosen, brought, took)
        # Columns that are done in every seed need no numbers any more; lengths rise from left to right.
        done = (left <= 0).all(axis=0)
        if 4 * done.sum() > done.size:
            left = left[:, ~done]
    return clock, right / clock
