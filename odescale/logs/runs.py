"""Which rows belong to which run: charts of Weights & Biases, long tables of MLflow, columns of text that name runs."""

from __future__ import annotations

import re

import numpy as np

from odescale.logs.columns import plain
from odescale.logs.limits import check_runs
from odescale.logs.table import Table, refuse

# Always told apart by these; by any other column only where the steps alone do not tell.
RUN_NAMES = frozenset(
    ("run", "runid", "runname", "runs", "model", "modelname", "seed", "seeds", "experiment", "experimentname", "job", "jobid",
     "trial", "trialid", "replica")
)  # fmt: skip
# Numbers that tell runs apart, looked at only where the steps alone do not.
_SIZES = re.compile(
    r"(width|depth|dmodel|nlayers?|nhead|nheads|nembd|params?|numparams|nparams|parameters|batch(size)?|lrpeak|peaklr|maxlr|"
    r"chinchillamultiple|fold)"
)
_KEYS = ("key", "metric", "metrickey", "metricname", "tag", "name", "variable")
_SPLITS = ("split", "phase", "mode", "subset", "stage", "set", "part")
_TRAIN = ("train", "training", "trn", "fit")
_HELD_OUT = ("val", "valid", "validation", "eval", "evaluation", "test", "dev", "heldout")
_TIMES = re.compile(r"time|date|stamp|message|msg|text|event|level|logger|host|comment|note")
_CHART = re.compile(r"(?P<run>.+?) - (?P<metric>[^ ].*)")
_BAND = ("__MIN", "__MAX")


def reshape(table: Table) -> list[Table]:
    """One table per run where the layout itself tells runs apart (charts, long tables); else the table as it is."""
    charts = [name for name in table.columns if _CHART.fullmatch(name)]
    if charts and len(charts) >= len(table.columns) - 2:
        return _split_charts(table, charts)
    known = {plain(name): name for name in table.columns}
    key = next((known[k] for k in _KEYS if k in known and table.columns[known[k]].dtype.kind == "O"), None)
    if key and "value" in known and "step" in known:
        return _pivot(table, key, known)
    return [table]


def _split_charts(table: Table, charts: list[str]) -> list[Table]:
    """The columns "RUN - METRIC" (and their bands "__MIN", "__MAX", which are left out) beside the shared step column."""
    charted = set(charts)
    shared = [name for name in table.columns if name not in charted]
    means = [name for name in charts if not name.endswith(_BAND)] or charts
    # The metric of a chart is one for all its runs; a run's own name may hold " - " too.
    split = {name: name.rsplit(" - ", 1) for name in means}
    result = []
    members: dict[str, list[tuple[str, str]]] = {}
    for name, (run, metric) in split.items():
        members.setdefault(run, []).append((name, metric))
    check_runs(len(members), table.file)
    for run, held in members.items():
        columns = {name: table.columns[name] for name in shared}
        broken = {name: table.broken[name] for name in shared if name in table.broken}
        for name, metric in held:
            columns[metric if metric not in columns else f"{metric} (chart)"] = table.columns[name]
            broken[metric] = table.broken.get(name, {})
        own = [columns[key] for key in columns if key not in shared]
        filled = np.any([column == column if column.dtype.kind == "f" else column != "" for column in own], axis=0)
        notes = (*table.notes, "Weights & Biases chart export")
        whole = Table(table.file, run, columns, table.rows, table.unit, broken, notes, "chart")
        result.append(whole.take(filled))
    return result


def join_charts(tables: list[Table]) -> list[Table]:
    """Charts of the same run in several exports (one of the loss, one of the rate) as one table, sorted by step."""
    result: list[Table] = []
    named: dict[str, list[int]] = {}
    for table in tables:
        place = next((i for i in named.get(table.name, ()) if _joins(result[i], table)), None)
        if place is None:
            named.setdefault(table.name, []).append(len(result))
            result.append(table)
            continue
        first = result[place]
        columns = {}
        for name in dict.fromkeys([*first.columns, *table.columns]):
            parts = [t.columns.get(name, np.full(t.rows.size, np.nan)) for t in (first, table)]
            columns[name] = np.concatenate(parts)
        step = next(iter(first.columns))
        notes = (*first.notes, *(n for n in table.notes if n not in first.notes), f"joined with {table.file}")
        both = Table(
            first.file, first.name, columns, np.concatenate([first.rows, table.rows]), first.unit,
            first.broken | table.broken, notes, "chart",
        )  # fmt: skip
        result[place] = both.take(np.argsort(columns[step], kind="stable"))
    return result


def _joins(first: Table, second: Table) -> bool:
    """Two charts of one run from different files, with the same step column and different metrics."""
    same = first.source == second.source == "chart" and first.name == second.name and first.file != second.file
    shared = set(first.columns) & set(second.columns)
    return same and shared == {next(iter(first.columns))} and next(iter(second.columns)) in shared


def _pivot(table: Table, key: str, known: dict[str, str]) -> list[Table]:
    """Long rows (run, key, value, step) to a table per run with a column per key; a row per step, in order of appearance."""
    value, step = known["value"], known["step"]
    names = [known[k] for k in ("runid", "runuuid", "run", "runname", "experiment") if k in known and known[k] != key]
    for role in (value, step):
        if table.columns[role].dtype.kind == "O" or table.broken.get(role):
            row = min(table.broken.get(role) or {int(table.rows[0]): str(table.columns[role][0])})
            raise refuse("numbers", f"{table.unit} {row} of {table.file}, column {role}", "mend it")
    result = []
    groups = _groups(table, names)
    check_runs(len(groups), table.file)
    for run, index in groups.items():
        part = table.take(index)
        # A new row where a key comes again or the step changes.
        places = np.zeros(part.rows.size, int)
        held: dict[float, tuple[int, set[str]]] = {}
        firsts: list[int] = []
        for i, (k, s) in enumerate(zip(part.columns[key], part.columns[step], strict=True)):
            row = held.get(s)
            if row is None or k in row[1]:
                row = held[s] = (len(firsts), set())
                firsts.append(i)
            row[1].add(k)
            places[i] = row[0]
        columns: dict[str, np.ndarray] = {"step": part.columns[step][firsts]}
        for metric in dict.fromkeys(part.columns[key]):
            column = np.full(len(firsts), np.nan)
            mine = part.columns[key] == metric
            column[places[mine]] = part.columns[value][mine]
            columns[metric if metric != "step" else "step (key)"] = column
        notes = (*table.notes, f"long table: one column per {key}")
        rows = part.rows[firsts]
        order = np.argsort(columns["step"], kind="stable") if _metric_by_metric(part, key) else np.arange(rows.size)
        result.append(Table(table.file, run or table.name, columns, rows, table.unit, {}, notes).take(order))
    return result


def _metric_by_metric(table: Table, key: str) -> bool:
    """Whether the keys come one after the other (all of the loss, then all of the rate): then file order says nothing."""
    keys = table.columns[key]
    return int(np.sum(keys[1:] != keys[:-1])) < 2 * np.unique(keys.astype(str)).size


def split_runs(table: Table, step: str) -> list[Table]:
    """The runs of a table: training rows only where a column names the split, then the columns that name runs.

    A column called run, model, seed, experiment, job or trial names runs. Where steps still repeat or jump back, the other
    columns of text with few values, and then sizes (width, depth, batch), are taken as long as they tell rows apart: a column
    of phases ("warm-up", "decay") in one run does not.
    """
    table = _training_rows(table)
    # Infinite steps tell no order, and their differences are no numbers.
    steps = np.where(np.isfinite(table.columns[step]), table.columns[step], np.nan)
    named = [n for n in table.columns if plain(n) in RUN_NAMES and _few(table.columns[n], number=True) and n != step]
    text = [n for n in table.text() if n not in named and _few(table.columns[n]) and not _TIMES.search(plain(n))]
    sizes = [
        n for n in table.numeric() if _SIZES.fullmatch(plain(n)) and n != step and _few(table.columns[n], number=True)
    ]
    used = list(named)
    for more in (text, sizes):
        if all((np.diff(steps[index]) > 0).all() for index in _groups(table, used).values()):
            break
        best = _repeats(steps, _groups(table, used))
        for name in more:
            trial = _repeats(steps, _groups(table, [*used, name]))
            if trial < best:
                used, best = [*used, name], trial
    used = [name for name in table.columns if name in used]
    groups = _groups(table, used)
    if len(groups) == 1:
        return [table]
    check_runs(len(groups), table.file)
    note = f"runs told apart by {', '.join(used)}"
    return [table.take(index, name, (note,)) for name, index in groups.items()]


def _training_rows(table: Table) -> Table:
    for name in table.text():
        values = np.array([plain(v) for v in table.columns[name]], dtype=object)
        kinds = set(values)
        if plain(name) not in _SPLITS or len(kinds) < 2 or not kinds <= {*_TRAIN, *_HELD_OUT}:
            continue
        keep = next(k for k in (*_TRAIN, *_HELD_OUT) if k in kinds)
        rest = sorted(kinds - {keep})
        return table.take(values == keep, notes=(f"column {name}: rows of {keep!r} taken, {', '.join(rest)} left out",))
    return table


def _few(values: np.ndarray, number: bool = False) -> bool:
    """More than one value, each on two rows or more on average."""
    if values.dtype.kind == "f" and not number:
        return False
    found = np.unique(values.astype(str) if values.dtype.kind == "O" else values[np.isfinite(values)])
    return 1 < found.size <= values.size / 2


def _repeats(steps: np.ndarray, groups: dict[str, np.ndarray]) -> int:
    """Rows whose step does not go beyond the row before, over all groups."""
    return int(sum(np.sum(np.diff(steps[index]) <= 0) for index in groups.values()))


def _groups(table: Table, names: list[str]) -> dict[str, np.ndarray]:
    """Run name -> positions, in order of appearance; the name joins the values that differ between runs."""
    if not names:
        return {"": np.arange(table.rows.size)}
    codes = np.zeros(table.rows.size, int)
    words = {}
    for name in names:
        values = table.columns[name]
        text = np.array([_word(name, v) for v in values]) if values.dtype.kind == "f" else values.astype(str)
        found, inverse = np.unique(text, return_inverse=True)
        words[name] = text
        codes = codes * found.size + inverse
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    varying = [name for name in names if np.unique(words[name]).size > 1] or names[:1]
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(first.size + 1))
    result = {}
    for group in np.argsort(first, kind="stable"):
        name = "/".join(words[key][first[group]] for key in varying)
        result[name] = order[starts[group] : starts[group + 1]]
    return result


def _word(name: str, value: float) -> str:
    return f"{name} {value:g}" if np.isfinite(value) else f"{name} none"
