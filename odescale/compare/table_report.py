"""What a table of finished runs says: laws side by side, best sizes with intervals, theories beside the exponents."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from odescale.analysis.tables.batch_law import BatchLaw, fit_batch_law
from odescale.analysis.tables.decision import Detour, Optimum, as_record, cost_of_size, optimum
from odescale.analysis.tables.fit import fit_table
from odescale.analysis.tables.isoflop import Approaches, compare_approaches
from odescale.analysis.tables.named import FORMS
from odescale.analysis.tables.rate_law import RateLaw, fit_rate_law
from odescale.analysis.tables.result import TableFit
from odescale.analysis.tables.table import Numbers, ScalingTable
from odescale.analysis.tables.theory import Implied, Verdict, implied_exponents, theories_beside
from odescale.errors import InputError, OdescaleError, require_number
from odescale.files import plain

BASE = "chinchilla"
FACTORS = (0.25, 0.5, 2.0, 4.0)
"""Sizes beside the best one whose price is told."""
BEYOND = (1.0, 10.0, 100.0)
"""Computes that are answered for unless asked, in units of the largest of the table."""
ON_FRONTIER = 60
"""Computes of the drawn frontier."""
FAR = 30.0
"""Compute over the table's largest from which an answer is called far from what was measured."""
VERSIONS = ("odescale", "numpy", "scipy")


class TableReport(eqx.Module):
    """The whole workbench page; `write_report` makes a page of it.

    - `table`; `fits`: by form, `refused`: form -> why it was not fitted. `trimmed`: the Chinchilla fit without the rows called
      outliers, where these move its exponents.
    - `approaches`: best runs, parabolas and law side by side. `best`: sizes at the computes asked, `frontier`: from the least
      compute of the table to the largest asked, `detours`: what other sizes cost at the largest compute of the table; None with
      the reason in `open`.
    - `rate`: the best learning rate against size and tokens, `batch`: the critical batch along the loss, where the table has what
      they need; `further`: why not, where it has a part of it.
    - `verdicts`, `implied`: what theories say of the exponents. `law`: the fit that all of these are of. `versions`,
      `seconds`.
    """

    table: ScalingTable
    fits: dict[str, TableFit]
    refused: dict[str, str]
    trimmed: TableFit | None
    approaches: Approaches | None
    best: Optimum | None
    frontier: Optimum | None
    detours: Detour | None
    open: str
    verdicts: tuple[Verdict, ...]
    implied: tuple[Implied, ...]
    rate: RateLaw | None
    batch: BatchLaw | None
    further: tuple[str, ...]
    versions: dict[str, str]
    seconds: float

    @property
    def law(self) -> TableFit | None:
        """The law that sizes and verdicts are of: the trimmed one where there is one."""
        return self.trimmed if self.trimmed is not None else self.fits.get(BASE)

    @property
    def answers(self) -> tuple[str, ...]:
        """What follows, in sentences: first what the sizes should be, then every reason to doubt it."""
        return _answers(self)

    def __str__(self) -> str:
        parts = [str(self.table), *map(str, self.fits.values())]
        parts += [f"without its outliers: {self.trimmed}"] if self.trimmed is not None else []
        parts += [f"{name}: not fitted, {why}" for name, why in self.refused.items()]
        parts += [str(self.approaches)] if self.approaches is not None else []
        return "\n".join([*parts, *self.answers])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        shown = self.approaches
        ways = () if shown is None else (shown.envelope, shown.parabola, shown.law)
        return plain({
            "table": {"source": self.table.source, "rows": len(self.table), "notes": list(self.table.notes)},
            "fits": {name: fit.to_dict() for name, fit in self.fits.items()}, "refused": self.refused,
            "trimmed": None if self.trimmed is None else self.trimmed.to_dict(),
            "approaches": {
                way.name: {
                    "exponent": way.exponent, "interval": way.interval, "flop": way.flop, "params": way.params,
                    "params_interval": way.params_interval, "reason": way.reason, "notes": list(way.notes),
                }
                for way in ways
            },
            "parabola_bias": None if shown is None or shown.bias is None else {
                "error": shown.bias.error, "wasted": shown.bias.wasted, "exponent": shown.bias.exponent,
                "true_exponent": shown.bias.true_exponent, "flop": shown.bias.flop,
            },
            "optimum": None if self.best is None else as_record(self.best), "open": self.open,
            "theories": [one.to_dict() for one in self.verdicts], "implied": [one.to_dict() for one in self.implied],
            "learning_rate": None if self.rate is None else str(self.rate),
            "critical_batch": None if self.batch is None else str(self.batch),
            "further": list(self.further), "answers": list(self.answers), "versions": self.versions, "seconds": self.seconds,
        })  # fmt: skip


def report_table(
    table: ScalingTable,
    *,
    forms: str | Sequence[str] | None = None,
    leave_out: Numbers | str | None = None,
    compute: Numbers | None = None,
    served: float = 0.0,
    bootstrap: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> TableReport:
    """Laws of the loss against size, data and compute; best sizes for a budget; and how far to believe them.

    **Arguments**

    - `table`: of `read_table`. `forms`: names of `odescale.laws.FORMS`; None: the Chinchilla form and whichever else the columns
      allow. `leave_out`, `bootstrap`, `level`, `seed`: as in `fit_table`.
    - `compute`: budgets in FLOP, a number or (n,), whose best sizes are told; default the largest of the table, 10 and 100
      times that.
    - `served`: tokens of inference that the same budget pays for.

    **Returns** `TableReport`; `write_report` makes a page of it. **Raises** `InputError` for a table that no form can be fitted to.

    ```python
    import numpy as np
    from odescale.compare.table_report import report_table
    from odescale.laws import scaling_table
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(7.5, 9.5, 40), 10 ** rng.uniform(9, 11, 40)
    L = (1.8 + 480 / N**0.35 + 2100 / D**0.37) * np.exp(0.003 * rng.normal(size=40))
    print(report_table(scaling_table(params=N, tokens=D, loss=L), bootstrap=100).answers[0])
    ```
    """
    began = time.perf_counter()
    asked = (forms,) if isinstance(forms, str) else forms
    named = tuple(FORMS) if asked is None else tuple(asked)
    for name in named:
        if name not in FORMS:
            raise InputError("forms", expected=f"names of {', '.join(FORMS)}", got=name, remedy="drop it")
    served = require_number("served", served)
    budgets = _budgets(table, compute)
    words: dict[str, Any] = {"bootstrap": bootstrap, "level": level, "seed": seed}
    fits: dict[str, TableFit] = {}
    refused: dict[str, str] = {}
    for name in named:
        missing = [column for column in FORMS[name].columns if not table.has(column)]
        if missing:
            refused[name] = f"the table has no {', '.join(missing)} in every row"
            continue
        try:
            fits[name] = fit_table(table, name, leave_out=leave_out, **words)
        except InputError as error:
            if asked is not None:
                raise
            refused[name] = str(error)
    if not fits:
        raise InputError("table", expected="columns that a law reads", got="; ".join(refused.values()),
                         remedy="name them in read_table, or choose another form")  # fmt: skip
    base = fits.get(BASE)
    trimmed = None
    if base is not None and base.outliers and base.unstable:
        trimmed = fit_table(table, BASE, leave_out=_with_outliers(table, base), **words)
    law = base if trimmed is None else trimmed
    approaches, best, frontier, detours, open_ = None, None, None, None, f"no fit of the form {BASE}"
    verdicts: tuple[Verdict, ...] = ()
    implied: tuple[Implied, ...] = ()
    if law is not None:
        kept = table.take(np.isfinite(law.residual))
        approaches = compare_approaches(
            kept, fit=law, level=level, at=float(kept.column("flop").max()), bootstrap=bootstrap
        )
        try:
            best = optimum(law, budgets, served=served)
            span = np.geomspace(
                float(kept.column("flop").min()), max(budgets.max(), float(kept.column("flop").max())), ON_FRONTIER
            )
            frontier = optimum(law, span, served=served)
            detours = cost_of_size(law, float(kept.column("flop").max()), np.array(FACTORS))
            open_ = ""
        except OdescaleError as error:
            open_ = str(error)
        verdicts, implied = theories_beside(law), implied_exponents(law)
    return TableReport(
        table, fits, refused, trimmed, approaches, best, frontier, detours, open_, verdicts, implied, *_further(table, level),
        {name: version(name) for name in VERSIONS}, time.perf_counter() - began,
    )  # fmt: skip


def _further(table: ScalingTable, level: float) -> tuple[RateLaw | None, BatchLaw | None, tuple[str, ...]]:
    """Best rate and critical batch, and why one of them cannot be told although the table has a rate, or a batch."""
    rate, batch, why = None, None, []
    if table.has("rate") and np.unique(table.column("rate")).size > 1:
        try:
            rate = fit_rate_law(*(table.column(name) for name in ("params", "tokens", "rate", "loss")), level=level)
        except InputError as error:
            why.append(f"best learning rate: {error}")
    if table.has("batch") and np.unique(table.column("batch")).size > 1:
        try:
            steps = table.column("steps")
            batch = fit_batch_law(table.column("batch"), steps, table.loss, runs=table.runs, level=level)
        except InputError as error:
            why.append(f"critical batch: {error}")
    return rate, batch, tuple(why)


def _budgets(table: ScalingTable, compute: Numbers | None) -> Float[np.ndarray, " n"]:
    if compute is None:
        return np.array(BEYOND) * (float(table.flop.max()) if table.flop is not None else 1e21)
    found = np.atleast_1d(np.asarray(compute, float))
    if found.ndim != 1 or not found.size or not (np.isfinite(found) & (found > 0)).all():
        raise InputError("compute", expected="FLOP > 0, a number or (n,)", got=compute, remedy="e.g. 1e21")
    return found


def _with_outliers(table: ScalingTable, fit: TableFit) -> np.ndarray:
    """Rows left out before, and those that the fit calls outliers."""
    mask = ~np.isfinite(fit.residual)
    mask[[one.row for one in fit.outliers]] = True
    return mask


def _answers(report: TableReport) -> tuple[str, ...]:
    law = report.law
    if law is None:
        return tuple(f"{name}: {'; '.join(fit.unidentified.values()) or 'fitted'}" for name, fit in report.fits.items())
    said = []
    if report.best is None:
        said.append(f"No best size can be told: {report.open}")
    else:
        largest = float(report.table.column("flop").max())
        for i, budget in enumerate(report.best.flop):
            n, d = report.best.params, report.best.tokens
            far = (
                f", {budget / largest:.0f} times the largest run: the form is not tested there"
                if budget > FAR * largest
                else ""
            )
            said.append(
                f"At {budget:.3g} FLOP: {n.value[i]:.3g} parameters ({n.low[i]:.3g} to {n.high[i]:.3g}) on "
                f"{d.value[i]:.3g} tokens ({d.low[i]:.3g} to {d.high[i]:.3g}){far}"
            )
    if report.trimmed is not None:
        said.append(
            f"With its {len(report.fits[BASE].outliers)} outliers the fit is unstable; sizes are of the fit without them: "
            + "; ".join(report.fits[BASE].unstable)
        )
    else:
        said += [f"Unstable: {reason}" for reason in law.unstable]
    if law.held_out is not None:
        error = law.held_out.error
        beyond = abs(float(error.mean())) > 3 * law.scale / np.sqrt(error.size) + 0.002
        said.append(
            f"Fitted without the largest compute, the law misses it by {error.mean():+.2%}"
            + (
                ": more than the scatter of the runs explains, so it extrapolates worse than its interval says"
                if beyond
                else ""
            )
        )
    bias = None if report.approaches is None else report.approaches.bias
    if bias is not None and abs(bias.error) > 0.02:
        said.append(
            f"Parabolas at fixed compute would be off by {bias.error:+.1%} in size on this very grid, without any noise"
        )
    return tuple(said)
