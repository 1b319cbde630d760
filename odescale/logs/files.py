"""Files and folders opened: gzip, text or events, which reader takes which; told by the content, not by the name."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

from odescale.errors import InputError
from odescale.logs.columns import choose_columns
from odescale.logs.console import read_printed
from odescale.logs.events import looks_like_events, read_events
from odescale.logs.json_lines import read_json
from odescale.logs.limits import MOST_BYTES, MOST_FILES, check_runs, refuse_bytes
from odescale.logs.recognise import shape_of, without_noise
from odescale.logs.table import Table, refuse, short_path
from odescale.logs.text import decode, read_delimited
from odescale.logs.trackers.mlflow_store import SQLITE, mlflow_runs, read_mlflow_database, read_mlflow_folder
from odescale.logs.trackers.trackio_store import is_trackio, read_trackio
from odescale.logs.trackers.wandb_run import HEAD, read_wandb, wandb_files

FORMATS = {
    "csv": "csv", "tsv": "csv", "wandb": "csv", "mlflow": "csv", "jsonl": "jsonl", "json": "json", "trainer_state": "json",
    "tensorboard": "tensorboard", "printed": "printed",
}  # fmt: skip
SUFFIXES = (".csv", ".tsv", ".txt", ".dat", ".log", ".jsonl", ".ndjson", ".json")
# Files of these kinds in a folder may be something else (a configuration, a read-me): what is no log is left out and said.
MAYBE = (".txt", ".dat", ".log", ".json")
PIECE = 1 << 20
CONTAINERS = {
    b"PK\x03\x04": "zip archive or Excel",
    b"PAR1": "Parquet",
    b"\x89HDF": "HDF5",
    b"BZh": "bzip2",
    b"\xfd7zX": "xz",
}


def open_tables(path: Path, kind: str | None, max_bytes: int = MOST_BYTES) -> list[Table]:
    """The tables of a file or of all logs in a folder; `kind` is a value of `FORMATS`, or None: told by the content.

    A file of more than `max_bytes`, unpacked, is refused.
    """
    try:
        if path.is_dir():
            if kind is None and (tracked := _tracked(path, max_bytes)):
                return tracked
            return _folder(path, kind, max_bytes)
        if not path.is_file():
            raise refuse(
                "a CSV file, another log or a folder of them", f"{short_path(path)}, which does not exist",
                "check the path",
            )  # fmt: skip
        return [_file(path, kind, max_bytes)]
    except OSError as error:
        raise refuse("a readable path", f"{short_path(path)}: {error.strerror}", "check it") from error


def _tracked(folder: Path, max_bytes: int) -> list[Table]:
    """The runs that a tracker left in the folder; none where it is a folder of logs."""
    if files := wandb_files(folder):
        check_runs(len(files), short_path(folder))
        return [_file(path, None, max_bytes) for path in files]
    runs = mlflow_runs(folder)
    return [read_mlflow_folder(folder, runs)] if runs else []


def _folder(folder: Path, kind: str | None, max_bytes: int) -> list[Table]:
    def logs_in(paths: list[Path]) -> list[Path]:
        return [
            p for p in paths if p.is_file() and not p.name.startswith(".") and (_suffix(p) in SUFFIXES or _is_event(p))
        ]

    found = logs_in(_some(folder, folder.iterdir())) or logs_in(_some(folder, folder.rglob("*")))
    if not found:
        raise refuse(
            f"logs ({', '.join(SUFFIXES)}, events.out.tfevents.*)",
            f"{short_path(folder)} without any",
            "check the path",
        )
    tables, skipped = [], []
    events: dict[Path, list[Path]] = {}
    for path in found:
        if _is_event(path) and kind in (None, "tensorboard"):
            events.setdefault(path.parent, []).append(path)
            continue
        try:
            tables.append(_file(path, kind, max_bytes))
        except InputError as error:
            if _suffix(path) not in MAYBE:
                raise
            skipped.append(f"{path.name} left out: {error}")
    for parent, files in events.items():
        tables.append(read_events([(short_path(path), _bytes(path, max_bytes)[0]) for path in files], parent.name))
    if not tables:
        raise refuse("logs in the folder", f"{short_path(folder)}: {skipped[0]}", "pass the file itself")
    # A JSON or text file without a loss is a configuration; alone, it is an error below.
    others = [t for t in tables if not (Path(t.file).suffix in MAYBE and "loss" not in choose_columns(t, {})[0])]
    gone = [f"{Path(t.file).name} left out: no loss" for t in tables if t not in others] if others else []
    tables = others or tables
    return [replace(t, notes=(*t.notes, *skipped, *gone)) for t in tables]


def _some(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """Sorted; refused where there are more than a folder of logs has."""
    found = list(islice(paths, MOST_FILES + 1))
    if len(found) > MOST_FILES:
        raise refuse(f"a folder of at most {MOST_FILES} files", short_path(folder), "pass the folder of the runs")
    return sorted(found)


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _is_event(path: Path) -> bool:
    return "tfevents" in path.name


def _bytes(path: Path, limit: int) -> tuple[bytes, bool]:
    """The content, unpacked where it is a gzip file, and whether it was; never more than `limit` bytes in memory."""
    file = short_path(path)
    try:
        with path.open("rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            source = gzip.GzipFile(fileobj=stream) if packed else stream
            # Piece by piece: a single read would take the memory of the limit first.
            pieces, size = [], 0
            while size <= limit and (piece := source.read(min(PIECE, limit + 1 - size))):
                pieces.append(piece)
                size += len(piece)
            data = b"".join(pieces)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise refuse("an intact gzip file", f"{file}: {error}", "copy it again") from error
    except OSError as error:
        raise refuse("a readable file", f"{file}: {error.strerror}", "check its permissions") from error
    if len(data) > limit:
        raise refuse_bytes(file, limit, packed=packed)
    return data, packed


def _file(path: Path, kind: str | None, max_bytes: int) -> Table:
    file, name, notes = short_path(path), path.name, []
    data, packed = _bytes(path, max_bytes)
    if packed:
        name = re.sub(r"\.gz$", "", name, flags=re.I)
        notes = ["gzip unpacked"]
    if data.startswith(HEAD):
        return read_wandb(data, file, Path(name).stem)
    if data.startswith(SQLITE):
        return read_trackio(path) if is_trackio(path) else read_mlflow_database(path)
    for mark, container in CONTAINERS.items():
        if data.startswith(mark):
            raise refuse("a text log", f"{container} file {file}", "unpack it or export it as CSV")
    name = path.resolve().parent.name if name == "trainer_state.json" or _is_event(path) else Path(name).stem
    if kind == "tensorboard" or (kind is None and looks_like_events(data)):
        if not data:
            raise refuse("TensorBoard events", f"empty file {file}", "check that the run wrote it")
        return read_events([(file, data)], name)
    if kind is None and _is_event(path):
        raise refuse("TensorBoard events", f"{file} with a damaged first record", "copy it again")
    data, more = decode(data, file)
    notes += more
    shape = kind or shape_of(data)
    if shape == "printed":
        return read_printed(data, file, name, notes)
    if shape in ("json", "jsonl"):
        return read_json(data, file, name, notes, lines=kind == "jsonl" if kind else None)
    if kind is None:
        data, gone = without_noise(data)
        notes += [f"{gone} lines that are no rows of the table left out"] if gone else []
    return read_delimited(data, file, name, notes)
