"""A table of finished runs read from a file: one run a row; every guess, unit and dropped row said."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odescale.analysis.tables.table import ScalingTable, scaling_table, sensible
from odescale.errors import InputError
from odescale.logs.columns import plain
from odescale.logs.files import FORMATS, open_tables
from odescale.logs.limits import check_bytes, check_columns
from odescale.logs.numbers import MISSING, is_numbers, parse_column
from odescale.logs.run_columns import (
    DATASETS,
    KINDS,
    MARKS,
    NAMES,
    ORIGINS,
    RUNS,
    SIZES,
    choose_run_columns,
    find,
    looks_like_runs,
    numbers_of,
)
from odescale.logs.table import Table, ranges, short_path

ALL = "*"
"""`where={"dataset": "*"}`: all labels of that column together."""
Where = Mapping[str, Any]


def read_table(
    path: str | os.PathLike,
    *,
    params: str | None = None,
    tokens: str | None = None,
    flop: str | None = None,
    loss: str | None = None,
    run: str | None = None,
    dataset: str | None = None,
    where: Where | None = None,
    format: str | None = None,
    max_bytes: int | None = None,
    **columns: str,
) -> ScalingTable:
    """A `ScalingTable` of a file with one finished run a row.

    **Formats** (told by the content): CSV with , ; tab | or spaces, JSON lines, a JSON list or dict of lists, any of them gzipped;
    Parquet with the extra `odescale[parquet]`.

    **Arguments**

    - `params`, `tokens`, `flop`, `loss`: names of columns, guessed where None (params, N, model_size, ...; tokens, D, ...; flop, C,
      train_flop, budget, ...; val_loss, loss, bpb, ...). Units in a name ("params (M)", "tokens_b", "train_pflops") or in a cell
      ("70M", "1.4B") are read. Of N, D, C the missing one is C = 6 N D, said in `notes`.
    - `columns`: further ones by the laws' names: batch="tokens_per_step", rate=, epochs=, unique_tokens=, steps=, width=, depth=,
      heads=, vocabulary=, context=, embedding=; guessed as well.
    - `run`: the column that names the training run of a row, where several rows are of one run. `dataset`: a column of labels.
    - `where`: {column: label, or a list of labels} to keep; "*" keeps all. A column that says which loss, data set or experiment a
      row is of, with several labels, has to stand here: laws of different losses are not mixed silently.
    - `format`: csv, tsv, jsonl, json, where the guess is wrong. `max_bytes`: as in `read_logs`.

    **Returns** the table; read `notes`. Rows without a finite number > 0 in any of N, D, C and the loss are dropped, and said.
    **Raises** `InputError` in one line: what is missing, which columns there are, how to name them.

    ```python
    from pathlib import Path
    from odescale import read_table
    Path("runs.csv").write_text("N,D,loss\\n70M,1.4B,3.41\\n160M,3.2B,3.12\\n410M,8.2B,2.83\\n")
    print(read_table("runs.csv"))
    ```
    """
    if format is not None and format not in FORMATS:
        raise InputError("format", expected=f"one of {', '.join(FORMATS)}", got=format, remedy="leave it out")
    for role in columns:
        if role not in NAMES:
            raise InputError(
                role, expected=f"one of {', '.join(NAMES)}, run, dataset", got=columns[role], remedy="name a role"
            )
    table = _open(Path(path), FORMATS.get(format or ""), check_bytes(max_bytes))
    notes = list(table.notes)
    table, marked = _select(table, dict(where or {}), notes)
    given = {"params": params, "tokens": tokens, "flop": flop, "loss": loss, **columns}
    chosen, picked = choose_run_columns(table, given)
    notes += picked
    _require(table, chosen)
    numbers: dict[str, np.ndarray] = {}
    for role, column in chosen.items():
        values, unit, bad = numbers_of(table, column)
        if bad and role in (*SIZES, "loss"):
            cell = table.broken.get(column, {}).get(int(table.rows[bad[0]]), str(table.columns[column][bad[0]]))
            raise _refuse(
                f"numbers in column {column!r}", f"{table.at(bad[0])}: {cell!r}", "mend it, or leave the row out"
            )
        numbers[role] = values
        if unit != 1:
            notes.append(f"column {column!r} times {unit:g}")
    notes.append("columns: " + ", ".join(f"{role} = {column}" for role, column in chosen.items()))
    held = [numbers[role] for role in (*SIZES, "loss") if role in numbers]
    good = np.all([sensible(v) for v in held], axis=0)
    if not good.any():
        raise _refuse(
            "runs with finite numbers > 0", f"{table.file} with none", "check the columns named in read_table"
        )
    if not good.all():
        count = int((~good).sum())
        rows = ranges(table.rows[~good], table.unit)
        notes.append(f"{count} row{'s' if count > 1 else ''} without finite numbers > 0 dropped ({rows})")
    if (size := numbers.get("params")) is not None and np.median(size[good]) < 1e4:
        notes.append(
            f"params {size[good].min():g} to {size[good].max():g}: taken as counts; a unit in the name would say more"
        )
    labels = {
        role: _labels(table, find(table, role, name)) if name else _first(table, known)
        for role, name, known in (("runs", run, RUNS), ("dataset", dataset, DATASETS))
    }
    if run is None and labels["runs"] is not None:
        distinct = np.unique(labels["runs"][good]).size
        if distinct in (1, int(good.sum())):
            labels["runs"] = None
        else:
            notes.append(f"{distinct} runs with several rows: fits draw whole runs")
    if marked is not None and marked[good].any():
        rows = f"outliers by the file's own column: {int(marked[good].sum())}"
        notes.append(f'{rows}, kept; fit_table(..., leave_out="marked") leaves them out')
    extra = {role: numbers[role][good] for role in numbers if role not in (*SIZES, "loss")}
    sizes: dict[str, Any] = {role: numbers[role][good] for role in (*SIZES, "loss") if role in numbers}
    labels = {role: None if values is None else values[good] for role, values in labels.items()}
    return scaling_table(
        **sizes, **extra, runs=labels["runs"], dataset=labels["dataset"],
        marked=None if marked is None else marked[good], notes=notes, source=table.file,
    )  # fmt: skip


def is_table(path: str | os.PathLike, *, max_bytes: int | None = None) -> bool:
    """Whether a file holds finished runs, one a row (a loss and two of N, D, C), and not the curve of one run or of several.

    False for a file that is no table at all; **raises** `InputError` for a path that is no file.
    """
    if not Path(path).is_file():
        raise _refuse("a file", short_path(Path(path)), "check the path")
    try:
        return looks_like_runs(_open(Path(path), None, check_bytes(max_bytes))) is not None
    except InputError:
        return False


def _open(path: Path, kind: str | None, most: int) -> Table:
    """The one table of a file."""
    try:
        if path.is_dir():
            raise _refuse("one file with a run a row", f"folder {short_path(path)}", "pass the table itself")
        if path.is_file() and _is_parquet(path):
            return _parquet(path, most)
        (table,) = open_tables(path, kind, most)
    except OSError as error:
        raise _refuse("a readable path", f"{short_path(path)}: {error.strerror}", "check it") from error
    except InputError as error:
        if error.argument != "LOG":
            raise
        raise _refuse(error.expected.replace("log", "table"), str(error.got), error.remedy) from error
    return table


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"PAR1"


def _parquet(path: Path, most: int) -> Table:
    """The columns of a Parquet file, by pandas and pyarrow."""
    file = short_path(path)
    if path.stat().st_size > most:
        raise _refuse(f"at most {most} bytes", f"{file}, which is longer", "thin it out, or raise max_bytes")
    try:
        import pandas as pd

        frame = pd.read_parquet(path, engine="pyarrow")
    except ImportError as error:
        remedy = "pip install 'odescale[parquet]', or export it as CSV"
        raise _refuse("pyarrow, which reads Parquet", f"{file} and no pyarrow", remedy) from error
    except (OSError, ValueError, TypeError, KeyError) as error:  # what pyarrow raises for a damaged file
        raise _refuse("an intact Parquet file", f"{file}: {' '.join(str(error).split())}", "copy it again") from error
    check_columns(frame.shape[1], file)
    if not len(frame):
        raise _refuse("runs", f"{file} without rows", "check the export")
    columns, broken = {}, {}
    rows = np.arange(1, len(frame) + 1)
    for i, name in enumerate(map(str, frame.columns)):
        values = frame.iloc[:, i].to_numpy()
        if values.dtype.kind in "fiu":
            columns[name] = values.astype(float)
            continue
        cells = np.array([None if _gone(cell) else cell for cell in values], dtype=object)
        numbers, bad, _ = parse_column(cells)
        if is_numbers(numbers, bad):
            columns[name], broken[name] = numbers, {int(rows[k]): text for k, text in bad.items()}
        else:
            columns[name] = np.array(["" if cell is None else str(cell) for cell in cells], dtype=object)
    return Table(file, path.stem, columns, rows, "row", broken)


def _gone(cell: object) -> bool:
    return cell is None or bool(np.isscalar(cell) and cell != cell)


def _require(table: Table, chosen: dict[str, str]) -> None:
    """A loss and two sizes, or one line that says what is missing and which columns there are."""
    sizes = [role for role in SIZES if role in chosen]
    columns = ", ".join(list(table.columns)[:10]) or "none"
    if "loss" not in chosen:
        raise _refuse(
            "a column with the final loss",
            f"{table.file} with columns {columns}",
            'name it: read_table(path, loss="...")',
        )
    if not sizes:
        raise _refuse(
            "columns of two of parameters, tokens and FLOP", f"{table.file} with columns {columns}",
            'name them: read_table(path, params="...", tokens="...")',
        )  # fmt: skip


def _select(table: Table, where: dict[str, Any], notes: list[str]) -> tuple[Table, np.ndarray | None]:
    """(the rows that `where` keeps, which of them the file marks as outliers); several labels without a choice are refused."""
    for name, wanted in where.items():
        column = find(table, "where", name)
        if isinstance(wanted, str) and wanted == ALL:
            continue
        labels = _labels(table, column)
        listed = [wanted] if isinstance(wanted, str) or not isinstance(wanted, Sequence) else list(wanted)
        kept = np.isin(labels, [_label(value) for value in listed])
        if not kept.any():
            held = ", ".join(map(str, np.unique(labels)[:8]))
            raise InputError(
                "where", expected=f"labels of column {column!r} of {table.file}: {held}", got=wanted, remedy="name one"
            )
        if not kept.all():
            notes.append(f"{int(kept.sum())} of {kept.size} rows with {column} = {', '.join(map(_label, listed))}")
        table = table.take(kept)
    chosen = {find(table, "where", name) for name in where}
    for name in table.columns:
        if name in chosen or not (KINDS.fullmatch(plain(name)) or ORIGINS.fullmatch(plain(name))):
            continue
        if table.columns[name].dtype.kind != "O":
            continue
        labels = np.unique(_labels(table, name))
        if labels.size > 1 and labels.size < table.rows.size:
            shown = ", ".join(map(str, labels[:6])) + (", ..." if labels.size > 6 else "")
            remedy = f'choose: where={{"{name}": "{labels[0]}"}}, or "{ALL}" for all together'
            raise _refuse("rows of one kind", f"{table.file}, column {name!r} with {shown}", remedy)
    marks = [name for name in table.columns if plain(name) in MARKS]
    if not marks:
        return table, None
    return table, np.isin(np.char.lower(_labels(table, marks[0]).astype(str)), ("true", "1", "yes", "x", "t"))


def _label(value: object) -> str:
    """Labels as text: 1.0 and "1" are one label, so are True and "True"."""
    if isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool):
        return f"{float(value):g}"
    return str(value).strip()


def _labels(table: Table, column: str) -> np.ndarray:
    values = table.columns[column]
    if values.dtype.kind != "O":
        texts = table.broken.get(column, {})
        return np.array(
            [texts.get(int(row), _label(v)) for row, v in zip(table.rows, values, strict=True)], dtype=object
        )
    return np.array(["" if str(cell).lower() in MISSING else _label(cell) for cell in values], dtype=object)


def _first(table: Table, known: tuple[str, ...]) -> np.ndarray | None:
    """The labels of the first column of such a name that holds text, or numbers for a run."""
    for name in table.columns:
        if plain(name) in known and (table.columns[name].dtype.kind == "O" or known is RUNS):
            return _labels(table, name)
    return None


def _refuse(expected: str, got: str, remedy: str) -> InputError:
    return InputError("TABLE", expected=expected, got=got, remedy=remedy)
