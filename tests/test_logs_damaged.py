"""Damaged logs: one line that names file and row, or a stated repair with the right numbers; nothing else is raised."""

from __future__ import annotations

import gzip
import json
import os
import struct
from pathlib import Path

import pytest
from test_logs import events, trainer_state

from odescale import InputError, read_log, read_logs

GOOD = "step,lr,loss\n0,0.1,9\n10,0.1,5\n20,0.1,4\n"


def put(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def history(**change: object) -> str:
    return json.dumps(trainer_state() | change)


# name of the case: (file name, content, words of the error)
REFUSED: dict[str, tuple[str, str | bytes, tuple[str, ...]]] = {
    "empty": ("log.csv", "", ("empty file",)),
    "blank lines only": ("log.csv", "\n \n\n", ("empty file",)),
    "comments only": ("log.csv", "# step\n# loss\n", ("comments only",)),
    "only a header": ("log.csv", "step,loss\n", ("no rows", "at least two rows")),
    "one row": ("log.csv", "step,loss\n1,2\n", ("at least two rows",)),
    "one step twice": ("log.csv", "step,loss\n1,2\n1,3\n", ("one step", "at least two rows")),
    "NaN everywhere": ("log.csv", "step,loss\n1,nan\n2,\n3,NaN\n", ("at least two rows", "with 0")),
    "infinite everywhere": ("log.csv", "step,loss\n1,inf\n2,-inf\n3,inf\n", ("at least two rows", "with 0")),
    "no loss column": ("log.csv", "step,accuracy\n1,.2\n2,.3\n", ("a loss column", "step, accuracy", 'loss="..."')),
    "no step column": ("log.csv", "epoch,loss\n1,2\n2,1\n", ("a step column", "epoch, loss", 'step="row"')),
    "only tokens": ("log.csv", "tokens,loss\n5,2\n9,1\n", ("a step column", "batch_tokens")),
    "text among the losses": ("log.csv", "step,loss\n1,2\n2,oops\n3,1\n", ("row 3", "'oops'", "loss")),
    "text among the steps": ("log.csv", "step,loss\n1,2\nx,3\n3,1\n", ("row 3", "'x'", "step")),
    "text as losses": ("log.csv", "step,loss\n1,a\n2,b\n3,c\n", ("row 2", "'a'")),
    "words as rates": ("log.csv", "step,lr,loss\n1,.1,2\n2,high,3\n3,.1,1\n", ("row 3", "'high'", "lr")),
    "true and false": ("log.csv", "step,loss\n1,True\n2,False\n3,True\n", ("row 2", "True")),
    "negative step": ("log.csv", "step,loss\n1,2\n-2,3\n3,1\n", ("row 3", "-2", "step >= 0")),
    "negative rate": ("log.csv", "step,lr,loss\n1,1,2\n2,-1,1\n", ("row 3", "learning_rate >= 0")),
    "short row": ("log.csv", "step,loss\n1,2\n2\n3,1\n", ("row 3", "2 fields")),
    "long row": ("log.csv", "step,loss\n1,2\n2,3,4\n3,1\n", ("row 3", "with 3: 2,3,4")),
    "short row after comments": ("log.csv", "# run 7\nstep,loss\n\n1,2\n# resumed\n2\n3,1\n", ("row 6",)),
    "another delimiter below": ("log.csv", "step,loss\n0;9\n1;8\n", ("row 2", "with 1: 0;9")),
    "decimal commas between commas": ("log.csv", "step,loss\n0,9,1\n1,8,7\n", ("row 2", "decimal commas")),
    "quote left open": ("log.csv", 'step,loss\n1,"2\n2,3\n3,1\n', ("quote",)),
    "line end in a cell": ("log.csv", 'step,loss,note\n1,2,"a\nb"\n2,3,c\n', ("quote",)),
    "binary": ("log.csv", bytes(range(256)) * 4, ("binary",)),
    "PNG": ("log.csv", b"\x89PNG\r\n\x1a\n" + bytes(64), ("binary",)),
    "UTF-16 cut in a character": ("log.csv", GOOD.encode("utf-16")[:-1], ("damaged utf-16",)),
    "Excel": ("log.csv", b"PK\x03\x04" + bytes(40), ("zip archive or Excel",)),
    "Parquet": ("log.parquet", b"PAR1" + bytes(40), ("Parquet",)),
    "gzip cut off": ("log.csv.gz", gzip.compress(GOOD.encode() * 50)[:-12], ("intact gzip",)),
    "JSON lines broken in the middle": (
        "log.jsonl",
        '{"step":0,"loss":9}\n{"step":1,"lo\n{"step":2,"loss":7}\n',
        ("line 2",),
    ),
    "JSON lines broken at the first": (
        "log.jsonl",
        '{"step":0,"lo\n{"step":1,"loss":8}\n{"step":2,"loss":7}\n',
        ("line 1",),
    ),
    "JSON lines with a number": ("log.jsonl", '{"step":0,"loss":9}\n17\n{"step":2,"loss":7}\n', ("line 2", "object")),
    "JSON lines with a list": ("log.jsonl", '{"step":0,"loss":9}\n[1,2]\n', ("line 2", "object")),
    "JSON lines with text for a loss": (
        "log.jsonl",
        '{"step":0,"loss":9}\n{"step":1,"loss":"x"}\n{"step":2,"loss":7}\n',
        ("line 2", "'x'"),
    ),
    "JSON document cut off": ("log.json", json.dumps(trainer_state(), indent=1)[:150], ("row ",)),
    "JSON list of numbers": ("log.json", "[1, 2, 3]", ("entry 1",)),
    "JSON empty list": ("log.json", "[]", ("none",)),
    "JSON lists of two lengths": ("log.json", '{"step": [1, 2], "loss": [3]}', ("lists of one length",)),
    "JSON configuration": ("log.json", '{"width": 64}', ("width",)),
    "trainer state without history": (
        "trainer_state.json",
        '{"best_metric": null, "global_step": 3}',
        ("log_history",),
    ),
    "trainer state with an empty history": ("trainer_state.json", history(log_history=[]), ("none",)),
    "trainer state with nothing but speeds": (
        "trainer_state.json",
        history(log_history=[{"step": 1, "samples_per_second": 3}] * 3),
        ("a loss column",),
    ),
    "event file with a flipped bit": (
        "events.out.tfevents.1.h",
        events()[:70] + b"\xff" + events()[71:],
        ("record 2", "checksum"),
    ),
    "event file with a damaged start": ("events.out.tfevents.1.h", b"\x01" + events()[1:], ("first record",)),
    "event file that is empty": ("events.out.tfevents.1.h", b"", ("events.out.tfevents.1.h",)),
    "event file without scalars": ("events.out.tfevents.1.h", events()[:40], ("scalars",)),
    "MLflow long table with text": ("m.csv", "run_id,key,value,step\na,loss,2,0\na,loss,x,1\na,loss,1,2\n", ("row 3",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_one_clear_line(tmp_path, case):
    name, content, words = REFUSED[case]
    path = put(tmp_path, name, content)
    with pytest.raises(InputError) as error:
        read_log(path)
    text = str(error.value)
    assert error.value.argument == "LOG" and "\n" not in text and path.name in text, text
    assert all(word in text for word in words), text
    # The row must survive the line's length limit however long the path is.
    deep = tmp_path / ("d" * 80) / ("e" * 80)
    deep.mkdir(parents=True)
    with pytest.raises(InputError) as error:
        read_log(put(deep, name, content))
    assert all(word in str(error.value) for word in words if word.startswith(("row", "line", "entry", "record"))), (
        error.value
    )


# name of the case: (file name, content, steps, losses, words of the notes)
READ: dict[str, tuple[str, str | bytes, list[float], list[float], tuple[str, ...]]] = {
    "byte-order mark": ("log.csv", b"\xef\xbb\xbf" + GOOD.encode(), [0, 10, 20], [9, 5, 4], ("byte-order mark",)),
    "UTF-16": ("log.csv", GOOD.encode("utf-16"), [0, 10, 20], [9, 5, 4], ("UTF-16",)),
    "UTF-16 without a mark": ("log.csv", GOOD.encode("utf-16-le"), [0, 10, 20], [9, 5, 4], ("UTF-16",)),
    "Latin-1": (
        "log.csv",
        "run,step,loss\nm\xfcller,0,2\nm\xfcller,1,1\n".encode("latin-1"),
        [0, 1],
        [2, 1],
        ("Latin-1",),
    ),
    "Windows line ends": ("log.csv", GOOD.replace("\n", "\r\n"), [0, 10, 20], [9, 5, 4], ()),
    "old Mac line ends": ("log.csv", GOOD.replace("\n", "\r"), [0, 10, 20], [9, 5, 4], ()),
    "no line end at the end": ("log.csv", GOOD[:-1], [0, 10, 20], [9, 5, 4], ()),
    "cut off between cells": ("log.csv", GOOD + "30,0.", [0, 10, 20], [9, 5, 4], ("cut-off last row 5",)),
    "cut off in an exponent": ("log.csv", GOOD + "30,0.1,3.2e-", [0, 10, 20], [9, 5, 4], ("cut-off last row 5",)),
    "NaN and empty losses": (
        "log.csv",
        "step,loss\n0,9\n1,nan\n2,\n3,null\n4,7\n5,N/A\n6,6\n",
        [0, 4, 6],
        [9, 7, 6],
        ("4 rows", "rows 3 to 5, 7"),
    ),
    "one infinite loss": (
        "log.csv",
        "step,loss\n0,9\n1,inf\n2,7\n",
        [0, 2],
        [9, 7],
        ("row 3", "without a finite loss"),
    ),
    "loss without a step": ("log.csv", "step,loss\n0,9\n,8\n2,7\n", [0, 2], [9, 7], ("no step", "row 3")),
    "header again in the middle": (
        "log.csv",
        GOOD + "step,lr,loss\n30,0.1,3\n",
        [0, 10, 20, 30],
        [9, 5, 4, 3],
        ("header repeated at row 5",),
    ),
    "column twice": ("log.csv", "step,loss,loss\n0,9,1\n1,8,2\n", [0, 1], [9, 8], ("more than once",)),
    "quoted numbers": ("log.csv", '"step","loss"\n"0","9.5"\n"1","8.5"\n', [0, 1], [9.5, 8.5], ()),
    "spaces around": ("log.csv", " step ,  loss\n  0 ,  9.5 \n  1 , 8.5\n", [0, 1], [9.5, 8.5], ()),
    "comments": ("log.csv", "# run 7\nstep,loss\n0,9\n# resumed\n1,8\n", [0, 1], [9, 8], ("2 comment lines",)),
    "header in a comment": ("log.txt", "# step loss\n0 9\n1 8\n", [0, 1], [9, 8], ("header taken from the comment",)),
    "no header": (
        "log.csv",
        "0,9.5\n10,5.5\n20,4.5\n",
        [0, 10, 20],
        [9.5, 5.5, 4.5],
        ("no header", "taken by its values"),
    ),
    "delimiter at the end of rows": ("log.csv", "step,loss\n0,9,\n1,8,\n", [0, 1], [9, 8], ("end on a delimiter",)),
    "wrong suffix": ("log.csv", '{"step":0,"loss":9}\n{"step":1,"loss":8}\n', [0, 1], [9, 8], ()),
    "gzip": ("log.csv.gz", gzip.compress(GOOD.encode()), [0, 10, 20], [9, 5, 4], ("gzip",)),
    "JSON lines cut off": (
        "log.jsonl",
        '{"step":0,"loss":9}\n{"step":1,"loss":8}\n{"step":2,"lo',
        [0, 1],
        [9, 8],
        ("cut-off last line 3",),
    ),
    "JSON lines with NaN": (
        "log.jsonl",
        '{"step":0,"loss":9}\n{"step":1,"loss":NaN}\n{"step":2,"loss":null}\n{"step":3,"loss":7}\n',
        [0, 3],
        [9, 7],
        ("lines 2 to 3",),
    ),
    "JSON number beyond any float": (
        "log.jsonl",
        '{"step":0,"loss":9}\n{"step":1,"loss":' + "9" * 400 + '}\n{"step":2,"loss":1e308}\n{"step":3,"loss":7}\n',
        [0, 3],
        [9, 7],
        ("lines 2 to 3",),
    ),
    "JSON lines with blank lines": ("log.jsonl", '\n{"step":0,"loss":9}\n\n{"step":1,"loss":8}\n', [0, 1], [9, 8], ()),
    "JSON numbers as text": ("log.json", '[{"step":"0","loss":"9"},{"step":"1","loss":"8"}]', [0, 1], [9, 8], ()),
    "event file cut off": (
        "events.out.tfevents.1.h",
        events()[:-20],
        [0, 100, 200, 300],
        [8.5, 5.25, 4.125, 3.75],
        ("cut-off last record",),
    ),
    "event file with a tail of zeros": (
        "events.out.tfevents.1.h",
        events() + bytes(500),
        [0, 100, 200, 300],
        [8.5, 5.25, 4.125, 3.75],
        ("cut-off last record",),
    ),
    "loss below zero": ("log.csv", "step,loss\n0,1\n1,-2\n", [0, 1], [1, -2], ("loss <= 0 at row 3",)),
    "steps as floats": ("log.csv", "step,loss\n0.0,2\n1e3,1\n", [0, 1000], [2, 1], ()),
}


@pytest.mark.parametrize("case", READ)
def test_read_with_the_repair_said(tmp_path, case):
    name, content, steps, losses, words = READ[case]
    log = read_log(put(tmp_path, name, content))
    assert log.step.tolist() == steps and log.loss.tolist() == losses, log
    assert all(any(word in note for note in log.notes) for word in words), log.notes
    if not words:
        assert not [note for note in log.notes if "TensorBoard" not in note], log.notes


def test_paths_that_hold_no_log(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, words in ((tmp_path / "none.csv", "does not exist"), (tmp_path / "empty", "empty without any")):
        with pytest.raises(InputError, match=words):
            read_logs(path)
    with pytest.raises(InputError, match="empty list"):
        read_logs([])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission(tmp_path):
    path = put(tmp_path, "log.csv", GOOD)
    path.chmod(0)
    with pytest.raises(InputError, match="log.csv.*permission"):
        read_log(path)


def test_a_broken_file_in_a_folder_is_named(tmp_path):
    put(tmp_path, "a.csv", GOOD)
    put(tmp_path, "b.csv", "step,loss\n0,1\n2\n3,1\n")
    with pytest.raises(InputError, match="row 3 of .*b.csv"):
        read_logs(tmp_path)


def test_every_cut_of_a_file_is_read_or_refused(tmp_path):
    """Whatever byte a killed run stopped at: the complete rows are read, or one line says why not."""
    texts = {
        "log.csv": GOOD.encode(),
        "log.jsonl": b"".join(b'{"step": %d, "loss": %d}\n' % (s, 9 - s) for s in range(3)),
        "events.out.tfevents.1.h": events(),
        "trainer_state.json": history().encode(),
    }
    for name, data in texts.items():
        full = read_log(put(tmp_path, name, data))
        for end in range(0, len(data), 1 if len(data) < 100 else 7):
            try:
                log = read_log(put(tmp_path, name, data[:end]))
            except InputError as error:
                assert name in str(error)
                continue
            complete = log.step.size - (name == "log.csv")  # a number cut in its digits is still a number
            assert log.loss[:complete].tolist() == full.loss[:complete].tolist()


def test_numbers_cut_by_other_bytes_never_raise_anything_else(tmp_path):
    """One byte changed at a time: read, or refused in one line."""
    for name, data in (("log.csv", GOOD.encode()), ("log.jsonl", b'{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n')):
        for place in range(len(data)):
            for byte in (b'"', b"\n", b"\xff", b"#", b"-", b"}"):
                path = put(tmp_path, name, data[:place] + byte + data[place + 1 :])
                try:
                    read_logs(path)
                except InputError as error:
                    assert "\n" not in str(error) and error.argument == "LOG"


def test_a_record_longer_than_its_file_is_a_cut(tmp_path):
    head = struct.pack("<Q", 1 << 40)
    from odescale.logs.events import masked_crc

    path = put(tmp_path, "events.out.tfevents.1.h", events() + head + struct.pack("<I", masked_crc(head)) + b"x")
    assert read_log(path).step.size == 4
