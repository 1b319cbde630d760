"""Repeated data and oversized models: R_D and R_N, with the size that unique tokens can use taken from the law itself."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from odescale.analysis.tables.audit import robust_scale, why_open
from odescale.analysis.tables.fit import fit_table, resample, widened
from odescale.analysis.tables.forms import Columns
from odescale.analysis.tables.relatives import REPEATED, effective, repetition_form
from odescale.analysis.tables.result import TableFit, quantiles
from odescale.analysis.tables.robust import minimise
from odescale.analysis.tables.table import ScalingTable
from odescale.errors import InputError

ROUNDS = 12
SETTLED = 0.02
"""Change of log U_N from which the law and the size that its data can use agree well enough to start the joint fit."""


class UniqueSize(eqx.Module):
    """U_N(U) = G (G U)^(beta/alpha), G = (alpha A/(beta B))^(1/(alpha + beta)): the compute-optimal size for U tokens."""

    scale: float
    slope: float

    def __call__(self, unique: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """U_N in parameters."""
        return self.scale * np.asarray(unique, float) ** self.slope


def unique_size(a: float, b: float, alpha: float, beta: float) -> UniqueSize:
    """U_N of A, B, alpha, beta (C = 6 N D). **Errors**: `InputError` where a term is gone."""
    if not (a > 0 and b > 0):
        raise InputError(
            "table", expected="rows that show both terms, A and B > 0", got=(a, b), remedy="vary N and D apart"
        )
    ratio = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    return UniqueSize(float(ratio ** (1 + beta / alpha)), float(beta / alpha))


def fit_repetition(table: ScalingTable, *, sizes: bool = True, **options: Any) -> TableFit:
    """L = E + A/N'^alpha + B/D'^beta: repeated tokens, and parameters in excess of the data, are worth less and less (R_D, R_N).

    **Arguments**: `table` with params, tokens and unique_tokens or epochs. `sizes`: False leaves N' = N. `options`: of
    `fit_table`. U_N is the law's own compute-optimal size for U tokens: fitted with U_N held, until both agree, then all seven
    numbers together, in every draw. Where no run has N > U_N the form without R_N is fitted, and the notes say so.

    **Returns** `TableFit`; R_D without a repeated run is `unidentified`, like R_N without an oversized one. **Errors**:
    `InputError` for a missing column. **Failure regime**: losses that rise with the epochs (overfitting): the form falls or
    stays. Source: Muennighoff et al. 2023, arXiv 2305.16264: R_D 15.39, R_N 5.31 at alpha = beta = 0.353 on C4.

    ```python
    import numpy as np
    from odescale.laws import fit_repetition, scaling_table
    rng = np.random.default_rng(0)
    N, U, epochs = 10 ** rng.uniform(7.5, 9, 60), 10 ** rng.uniform(9, 10, 60), rng.integers(1, 40, 60)
    D = U + U * 15 * (1 - np.exp(-(epochs - 1) / 15))
    L = 1.87 + 521 / N**0.353 + 1488 / D**0.353
    table = scaling_table(params=N, tokens=U * epochs, epochs=epochs, loss=L)
    print(fit_repetition(table, sizes=False, bootstrap=200).values["R_D"])
    ```
    """
    n, u = table.column("params"), table.column("unique_tokens")
    if not sizes:
        return fit_table(table, repetition_form(), **options)
    quick = {**options, "bootstrap": 2, "starts": min(int(options.get("starts", 8)), 8)}
    first = fit_table(table, repetition_form(), **quick).values
    size = unique_size(first["A"], first["B"], first["alpha"], first["beta"])
    for _ in range(ROUNDS):
        if not (n > REPEATED * size(u)).any():
            said = "no run is larger than its unique tokens can use: N' = N, no R_N"
            return _changed(fit_table(table, repetition_form(), **options), (said,))
        now = fit_table(table, repetition_form(size), **quick).values
        new = unique_size(now["A"], now["B"], now["alpha"], now["beta"])
        moved = float(np.max(np.abs(np.log(new(u) / size(u)))))
        size = new
        if moved < SETTLED:
            break
    return _together(fit_table(table, repetition_form(size), **{**options, "bootstrap": 2}), options)


class _Joint(eqx.Module):
    """All seven numbers, U_N among what they determine: theta = log (E, A, B, alpha, beta, R_D, R_N)."""

    columns: Columns
    log_loss: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " p"]
    high: Float[np.ndarray, " p"]

    def log_loss_of(self, theta: Float[np.ndarray, "d 7"]) -> Float[np.ndarray, "d n"]:
        log_e, log_a, log_b, log_alpha, log_beta, log_data, log_size = np.moveaxis(theta[:, None, :], -1, 0)
        alpha, beta = np.exp(log_alpha), np.exp(log_beta)
        n, d, u = (self.columns[name] for name in ("params", "tokens", "unique_tokens"))
        ratio = (log_alpha + log_a - log_beta - log_b) / (alpha + beta)
        own = np.exp(ratio + beta / alpha * (ratio + np.log(u)))
        data = effective(d, u, np.exp(log_data))
        size = effective(np.broadcast_to(n, own.shape), own, np.exp(log_size))
        return np.logaddexp(log_e, np.logaddexp(log_a - alpha * size, log_b - beta * data))

    def residual(self, theta: Float[np.ndarray, "d 7"]) -> tuple[Float[np.ndarray, "d n"], Float[np.ndarray, "d n 7"]]:
        """r = log L(theta) - log L and its slopes, by central differences."""
        jacobian = np.empty((theta.shape[0], self.log_loss.size, theta.shape[1]))
        for k in range(theta.shape[1]):
            step = np.zeros(theta.shape[1])
            step[k] = 1e-5
            jacobian[..., k] = (self.log_loss_of(theta + step) - self.log_loss_of(theta - step)) / 2e-5
        return self.log_loss_of(theta) - self.log_loss, jacobian


def _together(fit: TableFit, options: dict[str, Any]) -> TableFit:
    """The fit with U_N held, followed to the minimum over all seven numbers; draws likewise."""
    form, table = fit.form, fit.table
    columns = form.read({name: table.column(name) for name in form.columns})
    start = np.log(np.maximum(fit.vector, 1e-12))[None]
    # The law's numbers move by less than e^8 about the start; exponents and R stay in the form's ranges.
    low = np.concatenate([start[0, :3] - 8, [np.log(e.low) for e in form.exponents]])
    high = np.concatenate([start[0, :3] + 8, [np.log(e.high) for e in form.exponents]])
    problem: Any = _Joint(columns, np.log(table.loss), low, high)
    held = np.isfinite(fit.residual).astype(float)
    if options.get("weights") is not None:
        held = held * np.asarray(options["weights"], float)
        held /= held.mean()
    delta = float(options.get("robust", 1e-3))
    best = minimise(problem, start, held[None], delta)
    rng = np.random.default_rng(int(options.get("seed", 0)))
    counts, drawn_as = resample(table, held, int(options.get("bootstrap", 4000)), rng)
    found = minimise(problem, np.repeat(best.theta, counts.shape[0], axis=0), counts, delta, path=(3.0, 1.0))
    values, p = np.exp(best.theta[0]), len(form.names)
    residual = np.where(held > 0, -problem.residual(best.theta)[0][0], np.nan)
    sample = widened(np.exp(found.theta), values, residual[held > 0], delta, p)
    size = unique_size(*values[1:5])
    named = dict(zip(form.names, map(float, values), strict=True))
    intervals = {n: (float(a), float(b)) for n, a, b in zip(form.names, *quantiles(sample, fit.level), strict=True)}
    shown = repetition_form(size)
    return _changed(
        fit, (*drawn_as, f"U_N = {size.scale:.4g} U^{size.slope:.3f}, the law's compute-optimal size"), form=shown, values=named,
        stderr=dict(zip(form.names, map(float, sample.std(axis=0, ddof=1)), strict=True)), draws=sample, residual=residual,
        scale=robust_scale(residual[held > 0], p), cost=float(best.cost[0]), failed=float(1 - found.converged.mean()),
        unidentified=why_open(shown, {n: v[held > 0] for n, v in columns.items()}, named, sample, intervals),
    )  # fmt: skip


def _changed(fit: TableFit, notes: tuple[str, ...], **changes: Any) -> TableFit:
    kept: dict[str, Any] = {name: getattr(fit, name) for name in fit.__dataclass_fields__}
    kept |= changes
    kept["notes"] = notes if "draws" in changes else (*fit.notes, *notes)
    return TableFit(**kept)
