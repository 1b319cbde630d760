r"""Which strategy at which batch, and up to which batch speculation pays.

gain(b, s) = A(s) tau(b)/tau(b; s),   best s(b) = argmax,   threshold: gain = 1
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float

from odescale.analysis.rollout.accepted import AcceptanceFit
from odescale.analysis.rollout.fitted import CostFit
from odescale.analysis.rollout.rounds import round_times, values_of
from odescale.errors import InputError, require_number
from odescale.precision import require_x64
from odescale.systems.rollout.cost import MOST_DEPTH, Acceptance, Costs
from odescale.systems.rollout.strategies import Numbers as Batches
from odescale.systems.rollout.strategies import Policy

Strategy = tuple[float, float]
"""(depth d, verified tokens V); (0, 1) is plain decoding."""
CHAINS: tuple[Strategy, ...] = tuple((float(d), float(d + 1)) for d in range(1, 17))
MOST_BATCH = 65536.0
GRID = 400
"""Batches, evenly in log b, between which gain = 1 is looked for."""


class PolicyTable(eqx.Module):
    """Best strategy by batch: `batch` (n,) up to which `depth` d and `verified` V are best (depth 0: plain), `gain` over plain.

    `interval` (n, 2) of the gain at `level`, `sure` (n,): share of the calibration's draws in which this strategy is the best,
    `regret` (n,): mean share of the speed that it loses against the best in a draw; NaN without draws.
    """

    batch: Float[np.ndarray, " n"]
    depth: Float[np.ndarray, " n"]
    verified: Float[np.ndarray, " n"]
    gain: Float[np.ndarray, " n"]
    interval: Float[np.ndarray, "n 2"]
    sure: Float[np.ndarray, " n"]
    regret: Float[np.ndarray, " n"]
    level: float

    def policy(self, fit: CostFit | None = None) -> Policy:
        """The policy of a rollout: each row up to its batch, plain decoding above the last; with the tokens of a round of `fit`."""
        rows = zip(self.batch, self.depth, self.verified, strict=True)
        kept: list[tuple[float, float, float]] = []
        for b, d, v in rows:
            if kept and kept[-1][1:] == (d, v):
                kept.pop()
            kept.append((float(b), float(d), float(v)))
        if kept and kept[-1][1] == 0:
            kept.pop()
        if not kept:
            return Policy()
        batch, depth, verified = zip(*kept, strict=True)
        if fit is None:
            return Policy(batch, depth, verified)
        tokens = [fit.strategies.tokens(d, v)[0] if d > 0 else float("nan") for _, d, v in kept]
        return Policy(batch, depth, verified, tokens)

    def __str__(self) -> str:
        known = np.isfinite(self.sure).all()
        head = "   batch  strategy     gain" + (
            f"   {self.level:.0%} interval     sure  loss if wrong" if known else ""
        )
        lines = [head]
        for k, b in enumerate(self.batch):
            name = "plain" if self.depth[k] == 0 else f"{self.depth[k]:g}x{self.verified[k]:g}"
            low, high = self.interval[k]
            more = f"   {low:6.3f} to {high:6.3f}  {self.sure[k]:6.0%}  {self.regret[k]:12.2%}" if known else ""
            lines.append(f"{b:8g}  {name:<9}{self.gain[k]:8.3f}{more}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: np.asarray(getattr(self, name)).tolist() for name in self.__dataclass_fields__}


class Threshold(eqx.Module):
    """Batches at which a strategy pays: from 1 up to `batch` (0: not at batch 1, inf: at all up to `most`), `interval` at `level`.

    `ranges`: every stretch of batches with a gain above 1. `gain`: at batch 1.
    """

    batch: float
    interval: tuple[float, float]
    ranges: tuple[tuple[float, float], ...]
    gain: float
    level: float
    most: float
    strategy: Strategy = eqx.field(static=True)

    def __str__(self) -> str:
        d, v = self.strategy
        spread = (
            ""
            if math.isnan(self.interval[0])
            else f" ({self.interval[0]:.4g} to {self.interval[1]:.4g} at {self.level:.0%})"
        )
        where = ", ".join(f"{a:.4g} to {b:.4g}" for a, b in self.ranges) or "nowhere"
        return (
            f"{d:g}x{v:g} pays up to batch {self.batch:.4g}{spread}; gain {self.gain:.3g} at batch 1; above 1: {where}"
        )


class _Known(eqx.Module):
    """Costs (c, 6) and tokens (c, s) of the strategies, first row: the estimate, then draws."""

    values: Float[np.ndarray, "c 6"]
    tokens: Float[np.ndarray, "c s"]
    depth: Float[np.ndarray, " s"]
    verified: Float[np.ndarray, " s"]

    def gains(self, batch: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "c s n"]:
        """Gain over plain decoding at batches alike for all rows (n,), or at its own of each (c, n)."""
        plain = round_times(self.values, batch, np.zeros_like(batch), np.ones_like(batch))
        rounds = [
            round_times(self.values, batch, np.full_like(batch, d), np.full_like(batch, v))
            for d, v in zip(self.depth, self.verified, strict=True)
        ]
        return self.tokens[:, :, None] * plain[:, None] / np.stack(rounds, axis=1)


def best_strategies(
    costs: Costs | CostFit,
    accepted: Acceptance | AcceptanceFit | None = None,
    *,
    batches: Batches | None = None,
    strategies: Sequence[Strategy] | None = None,
    level: float = 0.9,
) -> PolicyTable:
    r"""argmax_s A(s) tau(b)/tau(b; s) over the strategies and plain decoding, at every batch.

    **Arguments**: `costs`, or a fit of a table: its draws then say how sure each choice is. `accepted`: law of acceptance (default:
    the fit's own strategies and their tokens). `batches` (n,) >= 1, rising (default: powers of 2 to the table's largest, or 512).
    `strategies`: (depth, verified) (default: those of the table, else chains of depth 1 to 16). **Returns** `PolicyTable`.
    **Raises** `InputError`. **Failure regime**: by a law of the depth alone A does not grow with V, so that of one depth the least
    V always wins: trees need accepted lengths of their own. Source: Hu et al. 2025, arXiv 2511.16665.

    ```python
    import jax
    jax.config.update("jax_enable_x64", True)
    from odescale.rollouts import Acceptance, Costs, best_strategies
    print(best_strategies(Costs(), Acceptance(0.85, 0.02)))
    ```
    """
    require_x64("best_strategies")
    level = require_number("level", level, 0.5, 1.0)
    most = costs.batches[1] if isinstance(costs, CostFit) else 512.0
    usual = 2.0 ** np.arange(int(np.floor(np.log2(most))) + 1)
    b = usual if batches is None else np.atleast_1d(np.asarray(batches, float))
    if b.ndim != 1 or not b.size or not (np.isfinite(b) & (b >= 1)).all() or (np.diff(b) <= 0).any():
        raise InputError(
            "batches", expected="numbers >= 1, rising", got=np.asarray(b).tolist(), remedy="e.g. [1, 2, 4, 8]"
        )
    known = _known(costs, accepted, strategies)
    gains = known.gains(b)
    # Plain decoding first: it wins ties.
    gains = np.concatenate([np.ones_like(gains[:, :1]), gains], axis=1)
    best = np.argmax(gains[0], axis=0)
    chosen = np.take_along_axis(gains, np.broadcast_to(best, (len(gains), 1, b.size)), axis=1)[:, 0]
    drawn = chosen[1:]
    interval, sure, regret = np.full((b.size, 2), np.nan), np.full(b.size, np.nan), np.full(b.size, np.nan)
    if len(drawn):
        interval = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull").T
        top = gains[1:].max(axis=1)
        sure, regret = np.mean(drawn >= top, axis=0), np.mean(1 - drawn / top, axis=0)
    depth, verified = np.append(0.0, known.depth)[best], np.append(1.0, known.verified)[best]
    return PolicyTable(b, depth, verified, chosen[0], interval, sure, regret, level)


def pays_until(
    costs: Costs | CostFit,
    strategy: Strategy,
    accepted: Acceptance | AcceptanceFit | None = None,
    *,
    most: float = MOST_BATCH,
    level: float = 0.9,
) -> Threshold:
    """The batch b with A(s) tau(b) = tau(b; s): below it the strategy pays, by bisection to the last digits, with its interval.

    **Arguments**: as for `best_strategies`; `strategy` (depth, verified), depth >= 1; `most`: batches are searched up to there.
    **Returns** `Threshold`. **Raises** `InputError`. **Failure regime**: gains can rise again where keys and values take over (long
    contexts): `ranges` has every stretch; stretches narrower than 3 % of a batch may be missed.
    """
    require_x64("pays_until")
    level, most = require_number("level", level, 0.5, 1.0), require_number("most", most, 1.0, open_=True)
    known = _known(costs, accepted, [strategy])
    grid = np.geomspace(1.0, most, GRID)
    above = known.gains(grid)[:, 0] > 1
    ends = _first_end(known, grid, above)
    first = _Known(known.values[:1], known.tokens[:1], known.depth, known.verified)
    change = np.flatnonzero(np.diff(above[0].astype(int)))
    roots = [_root(first, np.log(grid[[i]]), np.log(grid[[i + 1]]))[0] for i in change]
    edges = ([1.0] if above[0, 0] else []) + roots + ([float("inf")] if above[0, -1] else [])
    ranges = tuple((float(a), float(b)) for a, b in zip(edges[::2], edges[1::2], strict=True))
    drawn = ends[1:]
    # Order statistics, not means of two: an end may be infinite.
    interval = (float("nan"), float("nan"))
    if drawn.size:
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], method="nearest")
        interval = (float(low), float(high))
    return Threshold(
        batch=float(ends[0]), interval=interval, ranges=ranges, gain=float(known.gains(np.ones(1))[0, 0, 0]), level=level,
        most=most, strategy=(float(strategy[0]), float(strategy[1])),
    )  # fmt: skip


def _known(
    costs: Costs | CostFit, accepted: Acceptance | AcceptanceFit | None, strategies: Sequence[Strategy] | None
) -> _Known:
    """Estimate and draws of costs and of the tokens of each strategy, draws of the two paired as they come."""
    fit = costs if isinstance(costs, CostFit) else None
    if fit is None and accepted is None:
        raise InputError(
            "accepted", expected="a law of acceptance beside costs", got="none", remedy="Acceptance(0.85, 0.02)"
        )
    own = fit is not None and accepted is None
    listed = strategies
    if listed is None:
        listed = (
            list(zip(fit.strategies.depth, fit.strategies.verified, strict=True)) if own and fit is not None else CHAINS
        )
    pairs = [(float(d), float(v)) for d, v in listed if float(d) != 0]
    for d, v in pairs:
        if not (1 <= d <= MOST_DEPTH and d == int(d) and math.isfinite(v) and v >= d):
            raise InputError(
                "strategies", expected=f"(depth 1 to {MOST_DEPTH}, verified >= depth)", got=(d, v), remedy="e.g. (4, 5)"
            )
    if not pairs:
        raise InputError(
            "strategies", expected="a strategy with a depth above 0", got="none", remedy="e.g. [(4, 5), (8, 32)]"
        )
    depth, verified = np.array(pairs).T
    values = (
        values_of(costs)[None]
        if isinstance(costs, Costs)
        else np.concatenate([values_of(costs.costs)[None], costs.draws])
    )
    if own and fit is not None:
        found = [fit.strategies.tokens(d, v) for d, v in pairs]
        tokens = np.stack([np.append(one, drawn) for one, drawn in found], axis=1)
        return _Known(values, tokens, depth, verified)
    law = accepted.acceptance if isinstance(accepted, AcceptanceFit) else accepted
    assert law is not None
    one = np.asarray(law.tokens(depth))[None]
    laws = accepted.draws if isinstance(accepted, AcceptanceFit) else np.zeros((0, 2))
    drawn = _tokens(laws, depth) if len(laws) else np.zeros((0, depth.size))
    count = max(len(values) - 1, len(drawn))
    more = np.resize(values[1:], (count, 6)) if len(values) > 1 else np.tile(values[:1], (count, 1))
    less = np.resize(drawn, (count, depth.size)) if len(drawn) else np.tile(one, (count, 1))
    return _Known(np.concatenate([values[:1], more]), np.concatenate([one, less]), depth, verified)


def _tokens(laws: Float[np.ndarray, "c 2"], depth: Float[np.ndarray, " s"]) -> Float[np.ndarray, "c s"]:
    place = np.arange(int(depth.max()))
    a = np.minimum(laws[:, :1] * np.exp(-laws[:, 1:] * place), 1.0)
    return (1 + np.cumsum(np.cumprod(a, axis=1), axis=1))[:, depth.astype(int) - 1]


def _first_end(known: _Known, grid: Float[np.ndarray, " g"], above: Bool[np.ndarray, "c g"]) -> Float[np.ndarray, " c"]:
    """End of the stretch that begins at batch 1: 0 where it does not pay there, inf where it has no end."""
    ends = np.where(above[:, 0], np.inf, 0.0)
    place = np.argmin(above, axis=1)
    crossing = np.flatnonzero(above[:, 0] & ~above.all(axis=1))
    if crossing.size:
        some = _Known(known.values[crossing], known.tokens[crossing], known.depth, known.verified)
        at = place[crossing]
        ends[crossing] = _root(some, np.log(grid[at - 1]), np.log(grid[at]))
    return ends


def _root(known: _Known, low: Float[np.ndarray, " c"], high: Float[np.ndarray, " c"]) -> Float[np.ndarray, " c"]:
    """exp of the root of log gain between `low` and `high`, row by row, halved to the last digit."""

    def pays(log_batch: np.ndarray) -> np.ndarray:
        return known.gains(np.exp(log_batch)[:, None])[:, 0, 0] > 1

    left = pays(low)
    for _ in range(60):
        middle = (low + high) / 2
        same = pays(middle) == left
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return np.exp((low + high) / 2)
