"""The result of a fit to a table of runs: numbers with their errors, and what the rows do not tell."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from odescale.analysis.tables.audit import Outlier
from odescale.analysis.tables.forms import Form
from odescale.analysis.tables.projection import Projection
from odescale.analysis.tables.table import Numbers, ScalingTable
from odescale.errors import InputError, whole


class LossPrediction(eqx.Module):
    """`loss` (n,) of the law, `low` and `high` (n,) of its interval: of the law, without the scatter of one more run."""

    loss: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]


class HeldOut(eqx.Module):
    """The rows of the largest compute, predicted by a fit to the others: `rows` (positions in the table), `error` (n,): log of
    measured over predicted loss; `values` of that fit by name."""

    rows: np.ndarray
    error: Float[np.ndarray, " n"]
    values: dict[str, float]

    def __str__(self) -> str:
        return (
            f"{self.rows.size} rows of the largest compute, left out and predicted: {self.error.mean():+.2%} on average"
        )


class TableFit(eqx.Module):
    """A form fitted to a table: numbers with errors, and what the rows do not tell.

    - `values`, `stderr` by name (units: the table's loss; params, tokens to the power of the exponent). `draws` (d, p): the values
      of every resampled table, in the order of `form.names`.
    - `outliers`: rows that are no part of the law of the others, with the reason. `without`: the values without them.
    - `unidentified`: name -> reason, exponents and amplitudes; empty if all are determined. `unstable`: reasons, `stable`: none.
    - `least_squares`: the same law by variable projection (relative errors, no robust loss), with condition numbers.
    - `held_out`: the rows of the largest compute predicted by the others, or None where too few rows are left.
    - `residual` (n,): log of measured over fitted loss of every row of `table`, NaN for rows left out; `scale`: their robust width.
    - `agreement`: share of the starts that end at the best minimum. `failed`: share of the draws that did not converge.
    """

    form: Form
    table: ScalingTable
    values: dict[str, float]
    stderr: dict[str, float]
    draws: Float[np.ndarray, "d p"]
    level: float = eqx.field(static=True)
    residual: Float[np.ndarray, " n"]
    scale: float
    cost: float
    least_squares: Projection
    outliers: tuple[Outlier, ...]
    without: dict[str, float]
    unidentified: dict[str, str]
    unstable: tuple[str, ...] = eqx.field(static=True)
    held_out: HeldOut | None
    agreement: float
    failed: float
    notes: tuple[str, ...] = eqx.field(static=True)

    @property
    def stable(self) -> bool:
        """Whether nothing in `unstable` speaks against the numbers."""
        return not self.unstable

    @property
    def identified(self) -> bool:
        """Whether the rows determine every exponent."""
        return not self.unidentified

    @property
    def vector(self) -> Float[np.ndarray, " p"]:
        """The values in the order of `form.names`."""
        return np.array([self.values[name] for name in self.form.names])

    def interval(self, name: str, level: float | None = None) -> tuple[float, float]:
        """The central interval of one value over the draws, at `level` (default: that of the fit)."""
        if name not in self.form.names:
            raise InputError("name", expected=f"one of {', '.join(self.form.names)}", got=name, remedy="name one")
        low, high = quantiles(self.draws[:, self.form.names.index(name)], self.level if level is None else level)
        return float(low), float(high)

    def predict(self, level: float | None = None, **columns: Numbers) -> LossPrediction:
        """The loss at new rows, `params=..., tokens=...` and what else the form reads, each (n,) or a number."""
        at = self.form.read({name: np.asarray(values, float) for name, values in columns.items()})
        loss = np.exp(self.form.log_loss(self.vector, at))
        drawn = np.exp(self.form.log_loss(self.draws, at))
        low, high = quantiles(drawn, self.level if level is None else level)
        return LossPrediction(loss, low, high)

    def residuals_by(self, name: str, bins: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(centres, means, standard errors) of log(measured/fitted loss) over `bins` stretches of a column, equal in rows.

        Means far from 0 against their errors along params or tokens say that the form bends where the runs do not.
        """
        used = np.flatnonzero(np.isfinite(self.residual))
        values = self.table.column(name)[used]
        parts = [p for p in np.array_split(np.argsort(values, kind="stable"), whole("bins", bins)) if p.size]
        own = [self.residual[used][part] for part in parts]
        errors = [part.std(ddof=1) / np.sqrt(part.size) if part.size > 1 else np.nan for part in own]
        centres = [float(np.exp(np.log(values[part]).mean())) for part in parts]
        return np.array(centres), np.array([part.mean() for part in own]), np.array(errors)

    def require_identified(self, purpose: str) -> None:
        """**Errors**: `InputError` with the reasons if the rows leave an exponent open."""
        if self.unidentified:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.unidentified.items())
            raise InputError("fit", expected=f"a law that the table determines, for {purpose}", got=reasons,
                             remedy="add runs that tell them apart")  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{self.form.equation}: {int(np.isfinite(self.residual).sum())} runs of {len(self.table)}"]
        for name in self.form.names:
            low, high = self.interval(name)
            said = f"  {name} = {self.values[name]:.4g} +- {self.stderr[name]:.2g} ({low:.4g} to {high:.4g})"
            lines.append(f"  {name}: unidentified, {why}" if (why := self.unidentified.get(name)) else said)
        lines.append(
            f"  scatter of the runs {self.scale:.2%} of the loss; {self.level:.0%} intervals over {len(self.draws)} draws"
        )
        lines += [f"  unstable: {reason}" for reason in self.unstable]
        if self.outliers:
            lines.append(f"  {len(self.outliers)} outliers: " + "; ".join(map(str, self.outliers[:5])))
        if self.held_out is not None:
            lines.append(f"  {self.held_out}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the draws."""
        return {
            "form": self.form.name, "equation": self.form.equation, "rows": len(self.table), "values": self.values,
            "stderr": self.stderr, "level": self.level,
            "intervals": {name: self.interval(name) for name in self.form.names}, "scale": self.scale,
            "outliers": [{"row": o.row, "deviation": o.deviation, "reason": o.reason} for o in self.outliers],
            "without_outliers": self.without, "unidentified": self.unidentified, "unstable": list(self.unstable),
            "least_squares": dict(zip(self.form.names, map(float, self.least_squares.values), strict=True)),
            "conditioning": [self.least_squares.conditioning, self.least_squares.reduced],
            "held_out_error": None if self.held_out is None else self.held_out.error.tolist(),
            "failed": self.failed, "notes": list(self.notes),
        }  # fmt: skip


def quantiles(draws: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the central interval over the first axis."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.asarray(low), np.asarray(high)
