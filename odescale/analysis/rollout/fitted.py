"""What a fit of costs found: the costs, the tokens of a round of each strategy, and what follows at a batch."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float

from odescale.analysis.rollout.rounds import NAMES, Numbers, round_times, values_of
from odescale.analysis.rollout.table import CostTable
from odescale.errors import InputError
from odescale.systems.rollout.cost import Costs

UNITS = {
    "saturation": "tokens a pass", "sharpness": "", "context": "rounds a request", "fixed": "rounds",
    "draft": "rounds a drafted token", "crowding": "of it a request",
}  # fmt: skip


class Strategies(eqx.Module):
    """Strategies (s,) of a table: `depth`, `verified`, tokens of a round `accepted`, if that is `fitted`, its `draws` (c, s)."""

    depth: Float[np.ndarray, " s"]
    verified: Float[np.ndarray, " s"]
    accepted: Float[np.ndarray, " s"]
    fitted: Bool[np.ndarray, " s"]
    draws: Float[np.ndarray, "c s"]

    def tokens(self, depth: float, verified: float) -> tuple[float, Float[np.ndarray, " c"]]:
        """(A, its draws): the strategy's own, else by 1/(A - 1) straight in 1/V through those of the same depth.

        A tree of V tokens that saturates: A - 1 = (A_inf - 1)/(1 + V_0/V). **Raises** `InputError` where that has no two points.
        """
        here = np.flatnonzero((self.depth == depth) & (self.verified == verified))
        if here.size:
            return float(self.accepted[here[0]]), self.draws[:, here[0]]
        near = (self.depth == depth) & (self.accepted > 1)
        if near.sum() < 2:
            known = ", ".join(f"{d:g}x{v:g}" for d, v in zip(self.depth, self.verified, strict=True)) or "none"
            raise InputError(
                "strategy", expected=f"one of {known}, or two of its depth", got=f"{depth:g}x{verified:g}",
                remedy="measure its accepted length and pass it",
            )  # fmt: skip
        A = np.concatenate([self.accepted[None, near], self.draws[:, near]])
        x = np.stack([np.ones(int(near.sum())), 1 / self.verified[near]], axis=1)
        line = (1 / np.maximum(A - 1, 1e-9)) @ np.linalg.pinv(x).T
        at = line @ np.array([1.0, 1 / verified])
        tokens = 1 + 1 / np.where(at > 0, at, np.inf)
        tokens = np.minimum(np.where(at > 0, tokens, depth + 1.0), depth + 1.0)
        return float(tokens[0]), tokens[1:]


class CostFit(eqx.Module):
    """`costs` of rounds that a table measured, with what the table says of them.

    - `interval` of every fitted cost at `level`; `draws` (c, 6) of all costs in the order of `rounds.NAMES`. `strategies`: tokens
      of a round, see `Strategies`. `unit`: plain rounds per second at batch 1 (None: speed-ups).
    - `rms`: of log speed over the `rows` that were fitted with `free` numbers; `residual` (n,): log measured - log fitted.
    - `held_out` (k,): measured/forecast - 1 of the rows that were not fitted. `notes`: what was held, filled in, or misses.
    """

    costs: Costs
    interval: dict[str, tuple[float, float]]
    draws: Float[np.ndarray, "c 6"]
    strategies: Strategies
    unit: float | None
    rms: float
    residual: Float[np.ndarray, " n"]
    rows: int
    free: int
    held_out: Float[np.ndarray, " k"]
    batches: tuple[float, float]
    level: float
    notes: tuple[str, ...] = eqx.field(static=True)
    source: str = eqx.field(static=True)
    measure: str = eqx.field(static=True)

    def gain(self, batch: Numbers, depth: float, verified: float) -> Float[np.ndarray, "..."]:
        """A tau(b)/tau(b; d, V) at batches b: the fitted speed-up over plain decoding."""
        b = np.atleast_1d(np.asarray(batch, float))
        d, v = np.full_like(b, depth), np.full_like(b, verified)
        values = values_of(self.costs)[None]
        ratio = round_times(values, b, np.zeros_like(b), v)[0] / round_times(values, b, d, v)[0]
        return np.reshape(ratio * (self.strategies.tokens(depth, verified)[0] if depth > 0 else 1.0), np.shape(batch))

    def speed(self, batch: Numbers, depth: float, verified: float) -> Float[np.ndarray, "..."]:
        """Tokens per second of all requests together. **Raises** `InputError` where only speed-ups were measured."""
        if self.unit is None:
            raise InputError("table", expected="tokens per second", got="speed-ups", remedy="ask for gain")
        b = np.atleast_1d(np.asarray(batch, float))
        plain = round_times(values_of(self.costs)[None], b, np.zeros_like(b), np.ones_like(b))[0]
        return np.reshape(self.unit * b / plain * self.gain(b, depth, verified), np.shape(batch))

    def with_held_out(self, table: CostTable) -> CostFit:
        """This fit with the errors of its forecasts of other rows."""
        forecast = self.gain if table.measure == "speedup" else self.speed
        rows = zip(table.batch, table.depth, table.verified, strict=True)
        expected = np.array([float(forecast(b, d, v)) for b, d, v in rows])
        errors = table.speed / expected
        # A measured accepted length of the row itself is no forecast of the costs' business: it is used.
        own = [
            self.strategies.tokens(d, v)[0] if d > 0 else 1.0 for d, v in zip(table.depth, table.verified, strict=True)
        ]
        known = np.isfinite(table.accepted)
        errors = np.where(known, errors * np.array(own) / np.where(known, table.accepted, 1.0), errors) - 1
        return eqx.tree_at(lambda fit: fit.held_out, self, errors)

    def __str__(self) -> str:
        what = self.measure.replace("_", " ")
        head = f"{self.source}: costs from {self.rows} rows of {what}, {self.free} numbers, rms {self.rms:.2%}"
        lines = [head + (f"; {self.unit:.4g} plain rounds per second at batch 1" if self.unit else "")]
        for name in NAMES:
            value = float(getattr(self.costs, name))
            ends = self.interval.get(name)
            between = "held" if ends is None else f"{ends[0]:.3g} to {ends[1]:.3g} at {self.level:.0%}"
            lines.append(f"    {name:<11}{value:<10.4g}{between:<32}{UNITS[name]}".rstrip())
        s = self.strategies
        for d, v, a, fitted in zip(s.depth, s.verified, s.accepted, s.fitted, strict=True):
            lines.append(f"    {d:g}x{v:g}: {a:.3f} tokens a round, {'fitted' if fitted else 'given'}")
        if self.held_out.size:
            lines.append(
                f"    held out: {self.held_out.size} rows, largest error {np.abs(self.held_out).max():.1%}, "
                f"rms {np.sqrt(np.mean(self.held_out**2)):.1%}"
            )
        return "\n".join([*lines, *(f"    {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the draws."""
        s = self.strategies
        return {
            "costs": {name: float(getattr(self.costs, name)) for name in NAMES}, "interval": self.interval, "rms": self.rms,
            "rows": self.rows, "free": self.free, "unit": self.unit, "level": self.level, "notes": list(self.notes),
            "accepted": [[float(d), float(v), float(a)] for d, v, a in zip(s.depth, s.verified, s.accepted, strict=True)],
            "held_out": self.held_out.tolist(), "measure": self.measure, "source": self.source,
        }  # fmt: skip
