"""The critical batch along a training run: B_crit = B* L^-z at several target losses, from the loss curves at several batches."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import optimize, special

from odescale.analysis.tables.batch import CriticalBatch, fit_critical_batch
from odescale.errors import InputError, require_number

TARGETS = 8
LEAST_RUNS = 5


class BatchLaw(eqx.Module):
    """B_crit = B* L^-z and B_crit = c E_min^y over `targets`, each with its `fits` entry.

    `exponent` z (Kaplan et al. write 1/alpha_B), `prefactor` B*; `examples_exponent` y, `examples_prefactor` c; intervals at
    `level`; None with a `reason` where fewer than 3 targets or 5 runs are left. `rms`: of log B_crit about the law in the loss:
    large where B_crit is no power of the whole loss (SGD theory makes it one of the excess).
    """

    targets: Float[np.ndarray, " k"]
    fits: tuple[CriticalBatch, ...]
    exponent: float | None
    interval: tuple[float, float] | None
    prefactor: float | None
    examples_exponent: float | None
    examples_interval: tuple[float, float] | None
    examples_prefactor: float | None
    rms: float | None
    runs: int
    level: float
    identified: bool
    reason: str

    def critical_batch(self, loss: ArrayLike) -> Float[np.ndarray, "..."]:
        """B* L^-z at any loss: an extrapolation outside `targets`."""
        if self.exponent is None or self.prefactor is None:
            raise InputError("loss", expected="an identified law", got=self.reason, remedy="add runs at other batches")
        return self.prefactor * np.asarray(loss, float) ** -self.exponent

    def __str__(self) -> str:
        if self.exponent is None or self.interval is None:
            return f"B_crit over {self.targets.size} targets: unidentified ({self.reason})"
        low, high = self.interval
        head = f"B_crit = {self.prefactor:.4g} L^-{self.exponent:.3f} ({low:.3f} to {high:.3f})"
        if self.examples_exponent is not None and self.examples_interval is not None:
            head += f", E_min^{self.examples_exponent:.3f} ({self.examples_interval[0]:.3f} to {self.examples_interval[1]:.3f})"
        return (
            f"{head}; losses {self.targets.min():.4g} to {self.targets.max():.4g}, {self.runs} runs, rms {self.rms:.2%}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return plain | {"targets": self.targets.tolist(), "fits": [fit.to_dict() for fit in self.fits]}


def fit_batch_law(
    batch: ArrayLike,
    steps: ArrayLike,
    loss: ArrayLike,
    *,
    targets: ArrayLike | None = None,
    runs: ArrayLike | None = None,
    level: float = 0.95,
) -> BatchLaw:
    """B_crit = B* L^-z: `fit_critical_batch` at every target loss, then a line through log B_crit against log L.

    **Arguments**: `batch`, `steps`, `loss`, each (n,): the points of several runs; `runs (n,)`: their labels, by default the
    batch itself; `targets (k,)`: losses, by default eight between what all runs pass. Noise along a curve is taken out by the
    falling curve that is nearest to it (isotonic regression of log L), between whose values the steps are interpolated.

    **Returns** `BatchLaw`. The targets share their runs, so their errors move together: intervals are from leaving out one run at
    a time (jackknife, Student's t), not from the scatter about the line. **Errors**: `InputError` for bad columns or no common
    losses.
    **Failure regime**: one rate for all batches; targets so early or so late that the batches stop straddling B_crit.
    Source: Kaplan et al. 2020, arXiv:2001.08361, section 5.1 (B* about 2e8 tokens, 1/z = 0.21); against tokens: Zhang et al.
    2024, arXiv:2410.21676.
    """
    level = require_number("level", level, 0.5, 1.0)
    columns = [np.atleast_1d(np.asarray(c, float)) for c in (batch, steps, loss)]
    size, count, value = columns
    if size.ndim != 1 or any(c.shape != size.shape or not np.isfinite(c).all() or (c <= 0).any() for c in columns):
        raise InputError(
            "batch, steps, loss", expected="positive numbers of one shape (n,)", got=[c.shape for c in columns],
            remedy="one row a point of a curve",
        )  # fmt: skip
    label = np.unique(size if runs is None else np.asarray(runs), return_inverse=True)[1]
    if label.shape != size.shape:
        raise InputError("runs", expected=f"shape {size.shape}", got=label.shape, remedy="one label a row")
    curves = [_falling(count[label == i], value[label == i]) for i in range(label.max() + 1)]
    batches = np.array([size[label == i][0] for i in range(label.max() + 1)])
    wanted = _targets(curves) if targets is None else np.sort(np.atleast_1d(np.asarray(targets, float)))[::-1]
    if wanted.ndim != 1 or not wanted.size or not np.isfinite(wanted).all() or (wanted <= 0).any():
        raise InputError("targets", expected="losses > 0, shape (k,)", got=wanted, remedy="mend them")
    table = np.array([_crossings(*curve, wanted) for curve in curves])
    enough = [
        int(np.isfinite(column).sum()) >= 4 and np.unique(batches[np.isfinite(column)]).size >= 3 for column in table.T
    ]
    if not any(enough):
        raise InputError(
            "targets",
            expected="a loss that 4 runs at 3 batches or more reach",
            got=wanted,
            remedy="choose losses that the runs pass",
        )
    wanted, table = wanted[enough], table[:, enough]
    fits = tuple(fit_critical_batch(batches, column, level=level) for column in table.T)
    good = np.array([fit.identified for fit in fits])
    reason = ""
    if good.sum() < 3:
        reason = f"{int(good.sum())} of {good.size} targets give a critical batch, 3 are needed"
    elif batches.size < LEAST_RUNS:
        reason = f"{batches.size} runs, {LEAST_RUNS} are needed to say how far the line can be trusted"
    if reason:
        return BatchLaw(wanted, fits, None, None, None, None, None, None, None, int(batches.size), level, False, reason)
    whole = _lines(batches, table[:, good], wanted[good])
    without = np.array([
        _lines(np.delete(batches, i), np.delete(table[:, good], i, axis=0), wanted[good]) for i in range(batches.size)
    ])  # fmt: skip
    spread = np.sqrt((batches.size - 1) * np.mean((without - without.mean(axis=0)) ** 2, axis=0))
    wide = float(special.stdtrit(batches.size - 2, 0.5 + level / 2)) * spread
    loss_slope, loss_shift, all_slope, all_shift = whole
    centres = np.log([fit.critical_batch for fit in fits if fit.critical_batch is not None])
    rms = float(np.sqrt(np.mean((centres - loss_shift - loss_slope * np.log(wanted[good])) ** 2)))
    return BatchLaw(
        wanted, fits, float(-loss_slope), (float(-loss_slope - wide[0]), float(-loss_slope + wide[0])),
        float(np.exp(loss_shift)), float(all_slope), (float(all_slope - wide[2]), float(all_slope + wide[2])),
        float(np.exp(all_shift)), rms, int(batches.size), level, True, "",
    )  # fmt: skip


def _falling(steps: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log steps and log loss of the falling curve nearest to a run, one point for every level of it."""
    order = np.argsort(steps, kind="stable")
    x, y = np.log(steps[order]), np.log(loss[order])
    fitted = optimize.isotonic_regression(y, increasing=False)
    starts = fitted.blocks[:-1]
    lengths = np.diff(fitted.blocks)
    return np.add.reduceat(x, starts) / lengths, fitted.x[starts]


def _crossings(x: np.ndarray, y: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Steps at which the curve passes each target; inf where it starts below it or never gets there."""
    wanted = np.log(targets)
    found = np.exp(np.interp(-wanted, -y, x))
    return np.where((wanted > y[0]) | (wanted < y[-1]), np.inf, found)


def _targets(curves: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    first, last = min(y[0] for _, y in curves), max(y[-1] for _, y in curves)
    if not last < first:
        raise InputError(
            "loss", expected="losses that all runs pass", got=f"starts down to {np.exp(first):.4g}, ends up to {np.exp(last):.4g}",
            remedy="pass targets, or leave out the runs that are too short",
        )  # fmt: skip
    return np.exp(np.linspace(first, last, TARGETS + 2))[1:-1]


def _lines(batches: np.ndarray, table: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Slope and shift of log B_crit against log L, and against log E_min, over all the targets."""
    x = np.log(batches)
    grid = np.linspace(x.min() - 3.0, x.max() + 3.0, 2000)
    centre, least = [], []
    for column in table.T:
        kept = np.isfinite(column)
        rest = np.log(column[kept]) - np.logaddexp(0.0, grid[:, None] - x[kept])
        shift = rest.mean(axis=1)
        misfit = np.sum((rest - shift[:, None]) ** 2, axis=1)
        i = int(np.clip(np.argmin(misfit), 1, grid.size - 2))
        bend = misfit[i - 1] - 2 * misfit[i] + misfit[i + 1]
        move = 0.5 * (misfit[i - 1] - misfit[i + 1]) / bend if bend > 0 else 0.0
        best = grid[i] + np.clip(move, -1, 1) * (grid[1] - grid[0])
        centre.append(best)
        least.append(float(np.mean(np.log(column[kept]) - np.logaddexp(0.0, best - x[kept]))))
    return np.concatenate([
        np.polyfit(np.log(targets), centre, 1), np.polyfit(np.array(centre) + np.array(least), centre, 1)
    ])  # fmt: skip
