"""A table of finished runs: one run a row, its size, its tokens, its compute and the loss that it ended with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from odescale.errors import InputError

FLOP_PER_PARAMETER_TOKEN = 6.0
"""C = 6 N D: two FLOP of the forward and four of the backward pass per parameter and token (Kaplan et al. 2020, section 2.1)."""
Numbers = ArrayLike | Sequence[Any]
"""A number, an array or a list of numbers."""
SIZES = ("params", "tokens", "flop")
COLUMNS = (
    "batch", "rate", "epochs", "unique_tokens", "steps", "width", "depth", "heads", "vocabulary", "context", "embedding",
)  # fmt: skip
"""Names of the columns that the laws know beside N, D, C: `batch` in tokens per step, `rate` at its peak, `embedding` the
parameters of the embeddings, the others counts. A table may hold more."""

QUOTIENTS = {"unique_tokens": ("tokens", "epochs"), "epochs": ("tokens", "unique_tokens"), "steps": ("tokens", "batch")}
"""Columns that a table without them has as a quotient of two others."""


class ScalingTable(eqx.Module):
    """One finished run a row: N = `params`, D = `tokens`, C = `flop`, L = `loss`, each (n,) and > 0.

    - `params`: parameters, `tokens`: tokens seen (repeats included), `flop`: FLOP of the training. None where the table neither has
      the column nor the other two to derive it from. `loss`: at the end of the run, in the table's own unit (nats per token as a
      rule).
    - `columns`: further numbers by name (`COLUMNS`), (n,), NaN where a row has none.
    - `dataset`: label of every row or None; `runs`: label of the training run that a row is from or None (every row a run of its
      own): rows of one run are not independent, and fits draw whole runs. `marked` (n,): rows that the file itself calls outliers.
    - `notes`: what was derived, dropped or guessed, in words. `source`: the file.
    """

    loss: Float[np.ndarray, " n"]
    params: Float[np.ndarray, " n"] | None = None
    tokens: Float[np.ndarray, " n"] | None = None
    flop: Float[np.ndarray, " n"] | None = None
    columns: dict[str, np.ndarray] = eqx.field(default_factory=dict)
    dataset: np.ndarray | None = None
    runs: np.ndarray | None = None
    marked: Bool[np.ndarray, " n"] | None = None
    notes: tuple[str, ...] = eqx.field(static=True, default=())
    source: str = eqx.field(static=True, default="")

    def __check_init__(self) -> None:
        n = self.loss.shape
        if len(n) != 1 or not n[0]:
            raise _bad("loss", "one number a run, shape (n,)", self.loss.shape, "pass the last loss of every run")
        for name in (*SIZES, "loss"):
            values = getattr(self, name)
            if values is None:
                continue
            if values.shape != n or not sensible(values).all():
                shown = values.shape if values.shape != n else values[~sensible(values)][0]
                raise _bad(name, f"finite numbers > 0, shape {n}", shown, "one per run; leave out failed runs")
        for name, values in self.columns.items():
            if name in (*SIZES, "loss") or values.shape != n or values.dtype.kind != "f":
                raise _bad(name, f"numbers of shape {n} beside params, tokens, flop, loss", values.shape, "rename it")
        for name in ("dataset", "runs", "marked"):
            values = getattr(self, name)
            if values is not None and values.shape != n:
                raise _bad(name, f"one per run, shape {n}", values.shape, "match the rows")

    def __len__(self) -> int:
        return self.loss.size

    def __str__(self) -> str:
        parts = [f"{name} {v.min():.3g} to {v.max():.3g}" for name in SIZES if (v := getattr(self, name)) is not None]
        more = f"; also {', '.join(self.columns)}" if self.columns else ""
        head = (
            f"{self.source or 'table'}: {len(self)} runs, {', '.join(parts)}, "
            f"loss {self.loss.min():.4g} to {self.loss.max():.4g}{more}"
        )
        return "\n".join([head, *(f"    {note}" for note in self.notes)])

    def column(self, name: str) -> Float[np.ndarray, " n"]:
        """The numbers of a column by name, or the quotient that it is. **Errors**: `InputError` if the table has none, or not in
        every row."""
        values = self._find(name)
        if values is None:
            held = [n for n in SIZES if getattr(self, n) is not None] + list(self.columns)
            raise _bad(
                name, f"a column {name} in {self.source or 'the table'}", f"{', '.join(held)}", f"pass {name}=..."
            )
        if not np.isfinite(values).all():
            got = f"{int((~np.isfinite(values)).sum())} of {values.size} rows without"
            raise _bad(name, "a number in every row", got, "take the rows that have one")
        return values

    def _find(self, name: str) -> np.ndarray | None:
        values = self._held(name)
        over, under = (self._held(part) for part in QUOTIENTS.get(name, ("", "")))
        return over / under if values is None and over is not None and under is not None else values

    def _held(self, name: str) -> np.ndarray | None:
        return getattr(self, name) if name in (*SIZES, "loss") else self.columns.get(name)

    def has(self, name: str) -> bool:
        """Whether `column(name)` has a number in every row."""
        values = self._find(name)
        return values is not None and bool(np.isfinite(values).all())

    def take(self, index: Numbers, note: str | None = None) -> ScalingTable:
        """The rows `index` (a mask or positions)."""
        rows = np.asarray(index)
        picked: dict[str, Any] = {
            name: None if (values := getattr(self, name)) is None else values[rows]
            for name in (*SIZES, "loss", "dataset", "runs", "marked")
        }
        columns = {name: values[rows] for name, values in self.columns.items()}
        notes = (*self.notes, note) if note else self.notes
        return ScalingTable(**picked, columns=columns, notes=notes, source=self.source)


def scaling_table(
    *,
    loss: Numbers,
    params: Numbers | None = None,
    tokens: Numbers | None = None,
    flop: Numbers | None = None,
    dataset: Sequence[str] | np.ndarray | None = None,
    runs: Sequence[Any] | np.ndarray | None = None,
    marked: Numbers | None = None,
    notes: Sequence[str] = (),
    source: str = "",
    **columns: Numbers,
) -> ScalingTable:
    """A `ScalingTable` of arrays; of N, D and C the missing one by C = 6 N D, said in `notes`.

    **Arguments**: `loss` (n,) at the end of every run; two of `params` N, `tokens` D, `flop` C (n,) for most laws; any further
    column (n,) by its name, e.g. `batch` (tokens per step), `rate`, `unique_tokens`, `width`, `depth`. `dataset`, `runs`: labels.
    **Returns** the table; a note where a given C is not 6 N D. **Raises** `InputError`.
    **Failure regime**: 6 N D counts no attention, and N with or without embeddings changes it by tens of per cent in small models:
    pass the C that was spent where it is known. Source: Kaplan et al. 2020, arXiv 2001.08361.

    ```python
    import numpy as np
    from odescale.laws import scaling_table
    N, D = np.array([1e8, 3e8, 1e9]), np.array([2e9, 6e9, 2e10])
    print(scaling_table(params=N, tokens=D, loss=1.8 + 480 / N**0.35 + 2100 / D**0.37))
    ```
    """
    given: dict[str, Any] = {}
    for name, values in {"params": params, "tokens": tokens, "flop": flop, "loss": loss, **columns}.items():
        if values is None:
            continue
        try:
            given[name] = np.atleast_1d(np.asarray(values, dtype=float))
        except (TypeError, ValueError):
            raise _bad(name, "one number a run", type(values).__name__, "pass an array of numbers") from None
    said = list(notes)
    sizes = {name: given.get(name) for name in SIZES}
    sizes |= derive_sizes(sizes, said)
    more = {name: given[name] for name in columns if name in given}
    return ScalingTable(
        given["loss"], **sizes, columns=more,
        dataset=None if dataset is None else np.asarray(dataset), runs=None if runs is None else np.asarray(runs),
        marked=None if marked is None else np.asarray(marked, dtype=bool), notes=tuple(said), source=source,
    )  # fmt: skip


def derive_sizes(sizes: Mapping[str, np.ndarray | None], notes: list[str]) -> dict[str, np.ndarray]:
    """The one of N, D, C that is missing, by C = 6 N D; what was derived, or does not agree, goes to `notes`."""
    have = {name: values for name, values in sizes.items() if values is not None}
    shapes = {values.shape for values in have.values()}
    positive = all(sensible(values).all() for values in have.values())
    if len(shapes) > 1 or not positive:
        return {}  # said by the invariants of the table, by name
    k = FLOP_PER_PARAMETER_TOKEN
    if len(have) == 3:
        ratio = have["flop"] / (k * have["params"] * have["tokens"])
        if np.abs(np.log(ratio)).max() > np.log(1.05):
            notes.append(f"flop is {ratio.min():.3g} to {ratio.max():.3g} times 6 params tokens: kept as given")
        return {}
    if len(have) < 2:
        return {}
    if "flop" not in have:
        notes.append("flop = 6 params tokens")
        return {"flop": k * have["params"] * have["tokens"]}
    missing, other = ("tokens", "params") if "params" in have else ("params", "tokens")
    notes.append(f"{missing} = flop/(6 {other})")
    return {missing: have["flop"] / (k * have[other])}


def sensible(values: np.ndarray) -> Bool[np.ndarray, "..."]:
    """Finite numbers > 0 whose products and powers are still numbers: 1e-100 to 1e100."""
    return (values > 1e-100) & (values < 1e100)


def _bad(name: str, expected: str, got: object, remedy: str) -> InputError:
    return InputError(name, expected=expected, got=got, remedy=remedy)
