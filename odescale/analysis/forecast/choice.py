"""Which laws of a loss curve to forecast with: cross-validation inside the fitted runs, never the predicted ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np

from odescale.analysis.forecast.fit import LawFit, evaluate, fit_law
from odescale.analysis.forecast.laws import course_of, law_named
from odescale.analysis.forecast.loss_curve import LossCurve
from odescale.errors import OutsideTheoryError, require_number

THEORY = ("instant", "relaxing", "spectral")
"""The laws of `derivations/schedule/script.py`: candidates of `choose_law`."""
CUTS = (0.35, 0.5, 0.7)
"""Shares of the last tau at which the runs are cut and continued."""
CLOSE = 1.15
"""Cross-validated errors this near to the least are a draw: all of them are kept."""


class Fold(eqx.Module):
    """A part left out: `error`, root mean square of (L - forecast)/L on it."""

    name: str = eqx.field(static=True)
    error: float
    points: int


class CrossValidation(eqx.Module):
    """`error`: root mean square over the folds of a law's relative errors on parts left out; inf without a fold.

    `skipped`: what could not be left out, and why.
    """

    law: str = eqx.field(static=True)
    error: float
    folds: tuple[Fold, ...]
    skipped: tuple[str, ...]


def cross_validate(curves: Sequence[LossCurve], *, law: str = "relaxing") -> CrossValidation:
    """The law's error on what it was not fitted to, inside the runs given: last segments and whole runs left out.

    Last segment left out: all runs cut at 35, 50 and 70 % of the last tau, the law fitted before and compared behind. One run left
    out, with two or more. A fold whose rest cannot carry the law (no change of the learning rate, too few points) is skipped.
    """
    runs = tuple(curves)
    taus = [c.tau for c in runs]
    end = max(float(t[-1]) for t in taus)
    folds, skipped = [], []
    for share in CUTS:
        left = [(c, t <= share * end) for c, t in zip(runs, taus, strict=True)]
        kept = [c.between(c.step[0], c.step[k][-1]) for c, k in left if k.sum() > 1]
        rest = [(c, ~k) for c, k in left if (~k).any()]
        _fold(f"last segment from {share:.0%}", law, kept, rest, folds, skipped)
    for i, curve in enumerate(runs):
        others = [c for j, c in enumerate(runs) if j != i]
        if others:
            _fold(f"run {curve.name}", law, others, [(curve, np.ones(curve.step.size, bool))], folds, skipped)
    if not folds:
        return CrossValidation(law, float("inf"), (), tuple(skipped))
    error = float(np.sqrt(np.mean([f.error**2 for f in folds])))
    return CrossValidation(law, error, tuple(folds), tuple(skipped))


def _fold(
    name: str,
    law: str,
    kept: list[LossCurve],
    rest: list[tuple[LossCurve, np.ndarray]],
    folds: list[Fold],
    skipped: list[str],
) -> None:
    if not kept:
        skipped.append(f"{name}: nothing left")
        return
    fit = fit_law(kept, law=law, draws=0)
    if not np.isfinite(fit.rms):
        skipped.append(f"{name}: {fit.reason}")
        return
    errors = []
    for curve, part in rest:
        course = course_of(curve, law)
        errors.append(((curve.loss - evaluate(law_named(law), course, fit.vector)) / curve.loss)[part])
    error = np.concatenate(errors)
    folds.append(Fold(name, float(np.sqrt(np.mean(error**2))), error.size))


class LawTable(eqx.Module):
    """Laws side by side on the same runs: `fits`, `validations` by name and `aic`, with one `memory` for all of them."""

    fits: dict[str, LawFit]
    validations: dict[str, CrossValidation]
    aic: dict[str, float]
    memory: float

    def beside(self, other: LawTable) -> LawTable:
        """Both tables as one; `other` must have been made with this memory."""
        return LawTable(self.fits | other.fits, self.validations | other.validations, self.aic | other.aic, self.memory)

    def of(self, laws: Sequence[str]) -> LawTable:
        """The part of these laws."""
        return LawTable(
            {law: self.fits[law] for law in laws if law in self.fits},
            {law: self.validations[law] for law in laws if law in self.validations},
            {law: self.aic[law] for law in laws if law in self.aic},
            self.memory,
        )

    def rows(self) -> list[dict[str, Any]]:
        """law, parameters, rms, aic, cross-validated error (relative), identified, reason."""
        return [
            {
                "law": name, "parameters": len(fit.parameters), "rms": fit.rms, "aic": self.aic[name],
                "cross_validated": self.validations[name].error if name in self.validations else None,
                "identified": fit.identified, "reason": fit.reason,
            }
            for name, fit in self.fits.items()
        ]  # fmt: skip

    def __str__(self) -> str:
        lines = ["law          par     rms     AIC-min   cross-validated  identified"]
        least = min((a for a in self.aic.values() if np.isfinite(a)), default=0.0)
        for r in self.rows():
            held = "-" if r["cross_validated"] is None else f"{r['cross_validated']:.3%}"
            what = "yes" if r["identified"] else f"no: {r['reason']}"
            lines.append(
                f"{r['law']:12s} {r['parameters']:3d} {r['rms']:8.3%} {r['aic'] - least:10.1f} {held:>12s}     {what}"
            )
        return "\n".join(lines)


def compare_laws(
    curves: LossCurve | Sequence[LossCurve],
    *,
    laws: Sequence[str] = (*THEORY, "two_phase", "power_tau", "one_third", "multi_power"),
    draws: int = 60,
    seed: int = 0,
    validate: bool = True,
    memory: float | None = None,
) -> LawTable:
    """AIC and cross-validated errors of laws on the same runs.

    AIC = n log(innovation variance) + ... of AR(1) residuals, 2 per parameter, **with one memory for all laws**: that of the law
    with the least residuals, or `memory`, of another table. With its own, a bad law would count its misfit as noise with a long
    memory and win. `validate`: cross-validate; `draws`: of the bootstrap, 0 for none.
    """
    runs = (curves,) if isinstance(curves, LossCurve) else tuple(curves)
    if memory is not None:
        require_number("memory", memory, below=1.0)
    fits = {law: fit_law(runs, law=law, draws=draws, seed=seed) for law in laws}
    done = {law: fit for law, fit in fits.items() if np.isfinite(fit.rms)}
    best = min(done.values(), key=lambda fit: fit.rms, default=None)
    if memory is None:
        memory = 0.0 if best is None else best.memory
    sizes = [c.step.size for c in runs]
    aic = {law: _aic(fit, sizes, memory) if law in done else float("inf") for law, fit in fits.items()}
    held = {law: cross_validate(runs, law=law) for law in done if law != "chinchilla"} if validate else {}
    return LawTable(fits, held, aic, memory)


def _aic(fit: LawFit, sizes: Sequence[int], memory: float) -> float:
    total, logarithm = 0.0, 0.0
    for r in np.split(fit.residual, np.cumsum(sizes)[:-1]):
        innovation = r[1:] - memory * r[:-1]
        total += float((1 - memory**2) * r[0] ** 2 + innovation @ innovation)
        logarithm += float(np.log(1 - memory**2))
    square = max(total / fit.residual.size, 1e-14)
    return float(fit.residual.size * np.log(square) - logarithm + 2 * (len(fit.parameters) + 2))


class Choice(eqx.Module):
    """`weights`: of the laws to forecast with, by name, summing to 1; the `table` of all candidates."""

    weights: dict[str, float]
    table: LawTable

    @property
    def law(self) -> str:
        """The heaviest law."""
        return max(self.weights, key=lambda name: self.weights[name])

    @property
    def fit(self) -> LawFit:
        """Its fit."""
        return self.table.fits[self.law]


def choose_law(
    curves: LossCurve | Sequence[LossCurve], *, laws: Sequence[str] = THEORY, draws: int = 60, seed: int = 0
) -> Choice:
    """The laws to forecast with and their weights, by a rule that sees the fitted runs only.

    1. Candidates are the laws of the theory (instant, relaxing, spectral) that the runs identify (`fit_law`).
    2. Each gets its cross-validated error: last segments and whole runs left out (`cross_validate`). One run often has no part
       that can be left out; all candidates go on then.
    3. All within 15 % of the least error are kept, with weights ~ 1/rms^2.

    Set on runs of six sizes from four families (docs/forecasting.md has the table): the mean of what cannot be told apart errs
    less than any one law and than the one with the lowest AIC. The multi-power law is no candidate: its seven
    numbers are rarely identified.

    **Raises** `OutsideTheoryError`, "unidentified", with the reason per law, where no candidate is left: one constant rate, a few
    points, noise, the first tenth of a cosine.
    """
    return choose_from(compare_laws(curves, laws=laws, draws=draws, seed=seed))


def choose_from(table: LawTable) -> Choice:
    """`choose_law` of a table that is there already, of the theory's laws alone. **Raises** `OutsideTheoryError` as it does."""
    known = {law: fit for law, fit in table.fits.items() if fit.identified}
    if not known:
        reasons = "; ".join(f"{law}: {fit.reason}" for law, fit in table.fits.items())
        raise OutsideTheoryError(
            "curves", expected="runs that identify a law", got=f"unidentified: {reasons}",
            remedy="add a run whose learning rate falls, or a longer window",
        )  # fmt: skip
    errors = {law: table.validations[law].error for law in known if law in table.validations}
    finite = {law: error for law, error in errors.items() if np.isfinite(error)}
    kept = [law for law, error in finite.items() if error <= CLOSE * min(finite.values())] or list(known)
    weights = {law: max(known[law].rms, 1e-12) ** -2 for law in kept}
    return Choice({law: weight / sum(weights.values()) for law, weight in weights.items()}, table)
