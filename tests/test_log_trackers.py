"""Stores that trackers leave on disk: by hand to the letter of their formats, and by the trackers where installed."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from odescale import InputError, read_log, read_logs

STEPS = np.arange(10, 210, 10)
LOSSES = 2.5 + 8.0 * STEPS**-0.4
RATES = 3e-4 * (1 - STEPS / 250)
PYTHON = os.environ.get("ODESCALE_TRACKERS_PYTHON", sys.executable)
"""An interpreter with the extra `trackers`; without it the tests of real stores are skipped."""


def field(number: int, content: bytes | int) -> bytes:
    def varint(value: int) -> bytes:
        out = b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def item(key: str, value: object, *, nested: bool = False) -> bytes:
    names = b"".join(field(2, part.encode()) for part in key.split("/")) if nested else field(1, key.encode())
    return names + field(16, json.dumps(value).encode())


def wandb_file(name: str = "tiny-1") -> bytes:
    """A run file: LevelDB's framing over protobuf records, one of which spans two blocks."""
    run = field(17, field(1, b"abc123") + field(4, field(1, item("lr", 3e-4))) + field(8, name.encode()))
    filler = field(4, b"x" * 40_000)  # console output, longer than a block
    records = [run, filler]
    for s, x, r in zip(STEPS.tolist(), LOSSES.tolist(), RATES.tolist(), strict=True):
        items = [
            item("train/loss", x),
            item("optim/lr", r, nested=True),
            item("_step", s),
            item("_runtime", 1.5),
            item("note", "text"),
        ]
        records.append(field(2, b"".join(field(1, entry) for entry in items) + field(2, field(1, s))))
        if s % 100 == 0:
            records.append(
                field(
                    2, field(1, item("val/loss", "NaN")) + field(1, item("acc", {"top1": 0.3})) + field(2, field(1, s))
                )
            )
    out = bytearray(b":W&B" + struct.pack("<HB", 0xBEE1, 0))
    for record in records:
        begun = False
        while True:
            left = 32768 - len(out) % 32768
            if left < 7:
                out += bytes(left)
                continue
            part, record = record[: left - 7], record[left - 7 :]
            kind = (3 if record else 4) if begun else (2 if record else 1)
            out += struct.pack("<IHB", zlib.crc32(part, zlib.crc32(bytes([kind]))), len(part), kind) + part
            begun = True
            if not record:
                break
    return bytes(out)


def same(log: object, name: str) -> None:
    assert log.name == name  # type: ignore[attr-defined]
    assert log.step.tolist() == STEPS.tolist() and log.loss.tolist() == LOSSES.tolist()  # type: ignore[attr-defined]
    assert log.learning_rate.tolist() == RATES.tolist()  # type: ignore[attr-defined]


def test_a_wandb_run_by_hand(tmp_path: Path) -> None:
    for number in (1, 2):
        folder = tmp_path / "wandb" / f"offline-run-2031010{number}_000000-abc{number}"
        folder.mkdir(parents=True)
        (folder / f"run-abc{number}.wandb").write_bytes(wandb_file(f"tiny-{number}"))
    for path in (tmp_path, tmp_path / "wandb"):
        for number, log in enumerate(read_logs(path), 1):
            same(log, f"tiny-{number}")
    same(read_log(folder), "tiny-2")
    same(read_log(folder / "run-abc2.wandb"), "tiny-2")


def test_a_killed_wandb_run_is_read_up_to_its_end_and_a_damaged_one_refused(tmp_path: Path) -> None:
    whole = wandb_file()
    path = tmp_path / "run-x.wandb"
    path.write_bytes(whole[: len(whole) - 30])
    log = read_log(path)
    assert log.loss.tolist() == LOSSES[: log.loss.size].tolist() and any(
        "ends within a record" in note for note in log.notes
    )
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        place = int(rng.integers(7, len(whole)))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            same(read_log(path), "tiny-1")
        except InputError as error:
            refused += 1
            assert "run-x.wandb" in str(error)
    # A length can be off by one at a block's end, where the bytes that follow are the filler's.
    assert refused >= 195


def mlflow_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE experiments (experiment_id INTEGER, name VARCHAR(256));"
        "CREATE TABLE runs (run_uuid VARCHAR(32), name VARCHAR(250), start_time BIGINT, "
        "lifecycle_stage VARCHAR(20), experiment_id INTEGER);"
        "CREATE TABLE metrics (key VARCHAR(250), value FLOAT, timestamp BIGINT, run_uuid VARCHAR(32), step BIGINT, is_nan BOOLEAN);"
    )
    for run, stage in (("aaaa1111bbbb", "active"), ("aaaa2222bbbb", "active"), ("dead", "deleted")):
        connection.execute("INSERT INTO runs VALUES (?, 'tiny', 1, ?, 1)", (run, stage))
        for s, x, r in zip(STEPS.tolist(), LOSSES.tolist(), RATES.tolist(), strict=True):
            connection.executemany(
                "INSERT INTO metrics VALUES (?, ?, ?, ?, ?, 0)", [("train/loss", x, s, run, s), ("lr", r, s, run, s)]
            )
        connection.execute("INSERT INTO metrics VALUES ('val_loss', 0, 5, ?, 50, 1)", (run,))
    connection.commit()
    connection.close()


def mlflow_folder(folder: Path) -> None:
    for run, stage in (("aaaa1111bbbb", "active"), ("aaaa2222bbbb", "active"), ("dead", "deleted")):
        place = folder / "7" / run
        (place / "metrics" / "train").mkdir(parents=True)
        (place / "meta.yaml").write_text(f"lifecycle_stage: {stage}\nrun_name: tiny\nrun_id: {run}\n")
        pairs = list(zip(STEPS.tolist(), LOSSES.tolist(), RATES.tolist(), strict=True))
        (place / "metrics" / "train" / "loss").write_text("".join(f"17{s} {x!r} {s}\n" for s, x, _ in pairs))
        (place / "metrics" / "lr").write_text("".join(f"17{s} {r!r} {s}\n" for s, _, r in pairs) + "17200 0.5 20")


def test_a_trackio_project_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "project.db"
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE metrics (id INTEGER PRIMARY KEY, run_id TEXT, timestamp TEXT, run_name TEXT, step INTEGER, metrics TEXT)"
    )
    for s, x, r in zip(STEPS.tolist(), LOSSES.tolist(), RATES.tolist(), strict=True):
        for run in ("tiny", "other"):
            logged = json.dumps({"train/loss": x, "lr": r, "val_loss": "NaN", "note": "text"})
            row = (run * 8, "2031", run, s, logged)
            connection.execute(
                "INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) VALUES (?, ?, ?, ?, ?)", row
            )
    connection.commit()
    for log, name in zip(read_logs(path), ("tiny", "other"), strict=True):
        same(log, name)
    connection.execute("UPDATE metrics SET metrics = '{' WHERE id = 7")
    connection.commit()
    connection.close()
    with pytest.raises(InputError, match="row 7 of"):
        read_log(path)


@pytest.mark.parametrize("kind", ["folder", "database"])
def test_mlflow_stores_by_hand(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("mlruns" if kind == "folder" else "mlflow.db")
    (mlflow_folder if kind == "folder" else mlflow_database)(path)
    first, second = read_logs(path)
    same(first, "tiny aaaa1111")
    same(second, "tiny aaaa2222")
    assert any("1 deleted run left out" in note for note in first.notes)


def test_damaged_stores_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    mlflow_database(path)
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"\xff" * 400 + data[500:])
    with pytest.raises(InputError, match="SQLite"):
        read_log(path)
    other = tmp_path / "other.db"
    sqlite3.connect(other).executescript("CREATE TABLE things (a INTEGER); INSERT INTO things VALUES (1);")
    with pytest.raises(InputError, match="no such table"):
        read_log(other)
    mlflow_folder(tmp_path / "mlruns")
    (tmp_path / "mlruns" / "7" / "aaaa1111bbbb" / "metrics" / "lr").write_text("1 x 3\n1 2 3\n")
    with pytest.raises(InputError, match="line 1 of"):
        read_log(tmp_path / "mlruns")


WRITERS = {
    "wandb": """
import wandb
run = wandb.init(project="p", name="tiny", mode="offline", dir=folder, config={"lr": 3e-4})
for s, x, r in rows:
    wandb.log({"train/loss": x, "optim": {"lr": r}}, step=s)
run.finish()
""",
    "mlflow": """
import mlflow
mlflow.set_tracking_uri(uri)
mlflow.set_experiment("e")
with mlflow.start_run(run_name="tiny"):
    for s, x, r in rows:
        mlflow.log_metrics({"train/loss": x, "lr": r}, step=s)
""",
    "trackio": """
import trackio
trackio.init(project="p", name="tiny")
for s, x, r in rows:
    trackio.log({"train/loss": x, "lr": r}, step=s)
trackio.finish()
""",
}


@pytest.mark.parametrize("store", ["wandb", "sqlite", "mlruns", "trackio"])
def test_stores_that_the_trackers_wrote_are_read_back_equal(tmp_path: Path, store: str) -> None:
    library = store if store in WRITERS else "mlflow"
    found = subprocess.run([PYTHON, "-c", f"import {library}"], capture_output=True, cwd=tmp_path, check=False)
    if found.returncode:
        pytest.skip(f"{library} is not installed: the extra `trackers`")
    uri = f"sqlite:///{tmp_path}/mlflow.db" if store == "sqlite" else f"file://{tmp_path}/mlruns"
    rows = list(zip(STEPS.tolist(), LOSSES.tolist(), RATES.tolist(), strict=True))
    script = f"folder, uri, rows = {str(tmp_path)!r}, {uri!r}, {rows!r}\n{WRITERS[library]}"
    wanted = {"MLFLOW_ALLOW_FILE_STORE": "true", "WANDB_SILENT": "true", "PYTHONPATH": "", "TRACKIO_DIR": str(tmp_path)}
    done = subprocess.run(
        [PYTHON, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=os.environ | wanted, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    same(read_log(tmp_path / {"sqlite": "mlflow.db", "trackio": "p.db"}.get(store, store)), "tiny")
