"""MLflow's stores on disk: the folder `mlruns/` and the SQLite file `mlflow.db`, read without mlflow.

Folder: `EXPERIMENT/RUN/metrics/NAME` has a line "timestamp value step" a point (`NAME` may have folders in it),
`meta.yaml` the name.
SQLite: table `metrics` (key, value, timestamp, run_uuid, step, is_nan) beside `runs` and `experiments`. Source: the stores'
own sources in mlflow/store/tracking.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from odescale.logs.limits import MOST_FILES, check_runs
from odescale.logs.table import Table, refuse, short_path

SQLITE = b"SQLite format 3\0"
Point = tuple[str, str, float, float]
"""(run, metric, value, step)."""


def mlflow_runs(folder: Path) -> list[Path]:
    """The run folders of a store, of one experiment or of one run; none where the folder is something else."""
    for pattern in (".", "*", "*/*", "mlruns/*/*"):
        found = [
            path.parent for path in sorted(folder.glob(f"{pattern}/metrics")) if (path.parent / "meta.yaml").is_file()
        ]
        if found:
            check_runs(len(found), short_path(folder))
            return found
    return []


def read_mlflow_folder(folder: Path, runs: Sequence[Path]) -> Table:
    """One long table of every run that is not deleted."""
    points: list[Point] = []
    names = [_named(run / "meta.yaml", run.name) for run in runs]
    kept = [(run, name) for run, (name, gone) in zip(runs, names, strict=True) if not gone]
    deleted = len(runs) - len(kept)
    for (run, _), name in zip(kept, distinct([(name, run.name) for run, name in kept]), strict=True):
        files = sorted(path for path in (run / "metrics").rglob("*") if path.is_file())
        if len(files) > MOST_FILES:
            raise refuse(f"at most {MOST_FILES} metrics in a run", short_path(run), "pass one run's folder")
        for path in files:
            points += _lines(path, name, path.relative_to(run / "metrics").as_posix())
    return long_table(points, short_path(folder), folder.name, "MLflow file store", deleted)


def read_mlflow_database(path: Path) -> Table:
    """One long table of every run of the store that is not deleted; the file is opened for reading only."""
    file = short_path(path)
    query = (
        "SELECT r.run_uuid, r.name, m.key, m.value, m.step, m.is_nan FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid "
        "WHERE r.lifecycle_stage = 'active' ORDER BY r.start_time, r.run_uuid, m.key, m.step, m.timestamp"
    )
    rows = select(path, query)
    deleted = select(path, "SELECT count(*) FROM runs WHERE lifecycle_stage = 'deleted'")[0][0]
    found = list(dict.fromkeys((row[1] or row[0], row[0]) for row in rows))
    names = dict(zip((identity for _, identity in found), distinct(found), strict=True))
    check_runs(len(names), file)
    points = [
        (names[run], str(key), float("nan") if nan else float(value), float(step))
        for run, _, key, value, step, nan in rows
    ]
    return long_table(points, file, path.stem, "MLflow SQLite store", deleted)


def select(path: Path, query: str) -> list[tuple]:
    """The rows of a query; the file is opened for reading only, and refused where it is damaged or has no such table."""
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise refuse(
            "the SQLite store of a tracker", f"{short_path(path)}: {error}", "pass mlflow.db, or copy it again"
        ) from error


def long_table(points: Iterable[Point], file: str, name: str, kind: str, deleted: int) -> Table:
    """Rows (run, key, value, step), which `reshape` turns into a table per run."""
    rows = list(points)
    if not rows:
        raise refuse("metrics in the store", f"{file} without any", "check that the run logged its loss")
    runs, keys, values, steps = zip(*rows, strict=True)
    columns = {
        "run": np.array(runs, dtype=object), "key": np.array(keys, dtype=object), "value": np.array(values),
        "step": np.array(steps),
    }  # fmt: skip
    notes = [kind] + ([f"{deleted} deleted run{'s' if deleted > 1 else ''} left out"] if deleted else [])
    return Table(file, name, columns, np.arange(1, len(rows) + 1), "point", notes=tuple(notes))


def _lines(path: Path, run: str, metric: str) -> Iterable[Point]:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        cells = line.split()
        # The last piece has no line end: cut off while it was written, and "20" may have been "200".
        if not cells or number == len(lines):
            continue
        try:
            value, step = float(cells[1]), float(cells[2])
        except (IndexError, ValueError) as error:
            where = f"line {number} of {short_path(path)}: {line[:40]}"
            raise refuse("a line 'timestamp value step'", where, "mend it") from error
        yield run, metric, value, step


def _named(meta: Path, identity: str) -> tuple[str, bool]:
    """(name, whether the run is deleted) from the two lines of its `meta.yaml` that say so."""
    text = meta.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^run_name:[ \t]*['\"]?([^'\"\n]+)", text, re.M)
    stage = re.search(r"^lifecycle_stage:[ \t]*(\w+)", text, re.M)
    return (found[1].strip() if found else identity), stage is not None and stage[1] == "deleted"


def distinct(runs: Sequence[tuple[str, str]]) -> list[str]:
    """Names; where several runs have one, with the beginning of their identities."""
    counts = Counter(name for name, _ in runs)
    return [name if counts[name] == 1 else f"{name} {identity[:8]}" for name, identity in runs]
