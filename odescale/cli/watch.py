"""`odescale watch`: a growing log, looked at again and again; one line a refresh, a page that reloads itself, a gate for CI."""

from __future__ import annotations

import argparse
import html
import re
import time
from dataclasses import replace
from pathlib import Path

from odescale.cli.logs import read_options
from odescale.cli.output import emit
from odescale.compare.watch import Look, band, look
from odescale.errors import InputError, require_number
from odescale.files import whole_file
from odescale.logs.follow import Follower
from odescale.logs.read import TrainingLog, log_names, read_logs
from odescale.plain_text import one_line

AHEAD = 1.25
"""Without --final a forecast is for a quarter beyond the last row, so that rows to come can be held against it."""
DIVERGED, ABOVE, LEFT = 3, 4, 5
"""Exit statuses of --gate: the loss diverged, the forecast's interval lies above --limit, the loss left its earlier forecast."""

MARK = 1e30
NO_NUMBER = re.compile(r"(?<![\w.])[+-]?(?:nan|inf|infinity)(?![\w.])", re.IGNORECASE)


def watch_run(options: argparse.Namespace) -> int:
    """Follows one log until it reaches its final step, is idle, or --once; 0 where no gate closed."""
    require_number("--every", options.every, open_=True)
    for name in ("final", "limit", "idle"):
        if (value := getattr(options, name)) is not None:
            require_number(f"--{name}", value, open_=True)
    if options.limit is not None and not options.gate:
        raise InputError("--limit", expected="to come with --gate", got=options.limit, remedy="add --gate")
    follower = Follower(options.log, options.out)
    finished = read_logs(options.beside, **read_options(options)) if options.beside else ()
    quiet_since, shown, seen = time.monotonic(), None, ""
    while True:
        grown = follower.poll()
        if grown or shown is None:
            quiet_since = time.monotonic() if grown else quiet_since
            try:
                shown = _refresh(options, follower, finished)
                said = shown.line()
            except InputError as error:
                if options.once:
                    raise
                said = f"waiting: {error}"
            if said != seen and not options.json:
                print(one_line(said), flush=True)
            seen = said
            if shown is not None and options.gate and (status := _gate(options, shown)):
                return _end(options, shown, status)
        if shown is not None and options.final is not None and shown.log.step[-1] >= options.final:
            return _end(options, shown, 0)
        if options.once or (options.idle is not None and time.monotonic() - quiet_since > options.idle):
            if shown is None:
                raise InputError(
                    "LOG", expected="rows with a step and a loss", got=seen, remedy="wait for the run to log"
                )
            return _end(options, shown, 0)
        time.sleep(options.every)


def _refresh(options: argparse.Namespace, follower: Follower, finished: tuple) -> Look:
    logs = read_logs(follower.copy, **read_options(options))
    if len(logs) != 1:
        raise InputError("LOG", expected="one run", got=f"{len(logs)}: {log_names(logs)}", remedy="name one with --run")
    log = replace(logs[0], name=follower.log.stem) if options.run is None else logs[0]
    final = options.final if options.final is not None else AHEAD * float(log.step[-1])
    held = [tuple(row) for row in follower.state.get("held", [])]
    lost = _not_finite(options, follower, log)
    found = look(
        log, final, finished=finished, schedule=options.schedule, law=options.law, held=held, not_finite=lost,  # type: ignore[arg-type]
    )  # fmt: skip
    if not held or found.left is not None:  # the forecast that is held is the first one, until it fails
        follower.keep(held=band(found.forecast))
    _write_page(options, follower, found)
    return found


def _not_finite(options: argparse.Namespace, follower: Follower, log: TrainingLog) -> float | None:
    """The first step after the last finite loss whose loss was logged as NaN or infinite.

    The reader drops such rows, as it does rows whose loss is empty, and only the first are a divergence. So the copy is read again
    with a number that no loss has in the place of every NaN: what then has that loss is where it was.
    """
    text = follower.copy.read_text(encoding="utf-8", errors="replace")
    marked = NO_NUMBER.sub(f"{MARK:g}", text)
    if marked == text:
        return None
    path = follower.folder / f"marked.{follower.copy.name}"
    path.write_text(marked, encoding="utf-8")
    try:
        (again,) = read_logs(path, **read_options(options))
    except (InputError, ValueError):  # the mark stood where the reader takes no such number
        return None
    finally:
        path.unlink()
    after = again.step[(again.loss >= MARK) & (again.step > log.step[-1])]
    return float(after[0]) if after.size else None


def _gate(options: argparse.Namespace, shown: Look) -> int:
    if shown.diverged:
        return DIVERGED
    if options.limit is not None and shown.final is not None and shown.final[2] > options.limit:
        return ABOVE
    return LEFT if shown.left is not None else 0


def _end(options: argparse.Namespace, shown: Look, status: int) -> int:
    record = {"system": "watch", "time_unit": "SGD steps", "t": shown.log.step, "exit": status} | shown.record()
    lines = [] if shown.spikes is None else [str(shown.spikes)]
    emit(record, "\n".join([*lines, f"page: {Path(options.out) / 'index.html'}"]), options.json)
    return status


def _write_page(options: argparse.Namespace, follower: Follower, shown: Look) -> None:
    """The page, replaced whole; a browser that has it open loads it again at every refresh."""
    from odescale.plot.watch import draw_look

    folder = Path(options.out)
    with whole_file(folder / "run.png") as stream:
        draw_look(shown, stream)
    every = max(2, round(options.every))
    notes = [*shown.log.notes, *follower.notes, f"learning rate {shown.rate}"]
    spikes = "" if shown.spikes is None else str(shown.spikes)
    body = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><meta http-equiv='refresh' content='{every}'>"
        f"<title>{html.escape(shown.log.name)}</title></head><body style='font-family:sans-serif;max-width:60em;margin:auto'>"
        f"<h1>{html.escape(shown.log.name)}</h1><p>{html.escape(shown.line())}</p>"
        f"<img src='run.png?{shown.log.step[-1]:g}' alt='loss, forecast and spikes' style='max-width:100%'>"
        f"<h2>Spikes</h2><pre>{html.escape(spikes or 'too few rows')}</pre>"
        f"<h2>Notes</h2><ul>{''.join(f'<li>{html.escape(note)}</li>' for note in notes)}</ul></body></html>\n"
    )
    with whole_file(folder / "index.html", "w", encoding="utf-8") as stream:
        stream.write(body)
