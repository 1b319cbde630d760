"""Trackio's project file on disk (`PROJECT.db`), read without trackio.

SQLite with a table `metrics`: run_name, step, timestamp, and `metrics`, one JSON object of everything that was logged at once.
Newer versions have a run_id beside the name. Source: trackio/sqlite_storage.py.
"""

from __future__ import annotations

import json
from pathlib import Path

from odescale.logs.limits import check_runs
from odescale.logs.table import Table, refuse, short_path
from odescale.logs.trackers.mlflow_store import Point, distinct, long_table, select


def is_trackio(path: Path) -> bool:
    """Whether the SQLite file has trackio's table."""
    return {"run_name", "step", "metrics"} <= _columns(path)


def read_trackio(path: Path) -> Table:
    """One long table of every run of the project."""
    file = short_path(path)
    identity = "run_id" if "run_id" in _columns(path) else "run_name"
    rows = select(path, f"SELECT {identity}, run_name, step, metrics FROM metrics ORDER BY id")
    found = list(dict.fromkeys((row[1], str(row[0])) for row in rows))
    check_runs(len(found), file)
    names = dict(zip((identity for _, identity in found), distinct(found), strict=True))
    points: list[Point] = []
    for number, (run, _, step, text) in enumerate(rows, 1):
        try:
            entry = json.loads(text)
            for key, value in entry.items():
                # Numbers that JSON has no word for are kept in quotes.
                value = float(value) if value in ("NaN", "Infinity", "-Infinity") else value
                if isinstance(value, int | float) and not isinstance(value, bool):
                    points.append((names[str(run)], key, float(value), float(step)))
        except (ValueError, TypeError, AttributeError) as error:
            raise refuse(
                "a JSON object of metrics", f"row {number} of {file}: {str(text)[:40]}", "copy it again"
            ) from error
    return long_table(points, file, path.stem, "Trackio project", 0)


def _columns(path: Path) -> set[str]:
    return {row[1] for row in select(path, "PRAGMA table_info(metrics)")}
