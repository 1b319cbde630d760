"""Tables of finished runs: what is read, guessed and derived, what is refused; thirty damaged files."""

from __future__ import annotations

import gzip
import sys

import numpy as np
import pytest
from real_curves import folder

from odescale import read_log, read_table
from odescale.errors import InputError
from odescale.laws import scaling_table
from odescale.logs import is_table


def test_the_missing_size_is_derived_and_said():
    N, D, L = np.array([1e8, 2e8]), np.array([2e9, 5e9]), np.array([3.0, 2.8])
    C = 6 * N * D
    for given in ({"params": N, "tokens": D}, {"params": N, "flop": C}, {"tokens": D, "flop": C}):
        table = scaling_table(loss=L, **given)
        assert table.params == pytest.approx(N) and table.tokens == pytest.approx(D) and table.flop == pytest.approx(C)
        assert "6 " in table.notes[0]
    assert not scaling_table(loss=L, params=N, tokens=D, flop=C).notes
    other = scaling_table(loss=L, params=N, tokens=D, flop=1.2 * C)
    assert other.flop == pytest.approx(1.2 * C) and "1.2" in other.notes[0]
    alone = scaling_table(loss=L, params=N)
    assert alone.tokens is None
    with pytest.raises(InputError, match="tokens"):
        alone.column("tokens")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"loss": []}, "loss"), ({"loss": [1.0, np.nan]}, "loss"), ({"loss": [1.0, 0.0]}, "loss"),
        ({"loss": [[1.0], [2.0]]}, "loss"), ({"loss": ["a", "b"]}, "loss"), ({"params": [1e8]}, "params"),
        ({"params": [1e8, -1.0]}, "params"), ({"params": [1e8, 1e200]}, "params"),
        ({"tokens": [np.inf, 1.0]}, "tokens"), ({"batch": [1.0]}, "batch"),
        ({"runs": ["a"]}, "runs"), ({"dataset": ["a"]}, "dataset"), ({"marked": [True]}, "marked"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_by_name(fields, name):
    whole = {"loss": [3.0, 2.8], "params": [1e8, 2e8], "tokens": [2e9, 5e9]}
    with pytest.raises(InputError) as error:
        scaling_table(**(whole | fields))
    assert error.value.argument == name


def test_rows_are_taken_with_all_their_columns():
    table = scaling_table(
        loss=[3.0, 2.8, 2.7], params=[1e8, 2e8, 3e8], tokens=[2e9, 5e9, 6e9], batch=[1.0, 2.0, np.nan], runs=["a", "b", "b"],
        marked=[0, 1, 0],
    )  # fmt: skip
    part = table.take(~table.marked, "marked rows dropped")
    assert len(part) == 2 and part.runs.tolist() == ["a", "b"] and part.notes[-1] == "marked rows dropped"
    assert table.take([0, 1]).has("batch") and not table.has("batch")
    with pytest.raises(InputError, match="batch"):
        table.column("batch")
    assert "3 runs" in str(table) and "batch" in str(table)


GOOD = "N,D,loss\n1e8,2e9,3.1\n2e8,4e9,2.9\n4e8,8e9,2.7\n"


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def csv_of(header, *rows):
    return "\n".join([header, *rows]) + "\n"


# name of the case: (file name, content, options, params, tokens, words of the notes)
READ = {
    "letters": ("t.csv", GOOD, {}, [1e8, 2e8, 4e8], [2e9, 4e9, 8e9], ("flop = 6", "params = N")),
    "semicolons and decimal commas": (
        "t.csv", "params;tokens;val_loss\n1e8;2e9;3,1\n2e8;4e9;2,9\n", {}, [1e8, 2e8], [2e9, 4e9], ("decimal commas",),
    ),
    "tabs": ("t.tsv", GOOD.replace(",", "\t"), {}, [1e8, 2e8, 4e8], [2e9, 4e9, 8e9], ()),
    "FLOP alone": (
        "t.csv", csv_of("model_size,train_flop,loss", "1e8,1.2e18,3.1", "2e8,4.8e18,2.9"), {}, [1e8, 2e8], [2e9, 4e9],
        ("tokens = flop/(6 params)",),
    ),
    "units in the cells": (
        "t.csv", csv_of("model,tokens,final_loss", "70M,1.4B,3.41", "1.4b,28 B,2.6", "300k,2T,4.5"), {}, [7e7, 1.4e9, 3e5],
        [1.4e9, 2.8e10, 2e12], (),
    ),
    "units in some cells": (
        "t.csv", csv_of("params,tokens,loss", "1e8,2e9,3.1", "2e8,4e9,2.9", "1B,2e10,2.5"), {}, [1e8, 2e8, 1e9],
        [2e9, 4e9, 2e10], (),
    ),
    "units in the names": (
        "t.csv", csv_of("params (M),tokens_b,train_pflops,loss", "100,2,1200,3.1", "200,4,4800,2.9"), {}, [1e8, 2e8], [2e9, 4e9],
        ("times 1e+06", "times 1e+09", "times 1e+15"),
    ),
    "named by the caller": (
        "t.csv", csv_of("grösse,menge,verlust", "1e8,2e9,3.1", "2e8,4e9,2.9"),
        {"params": "grösse", "tokens": "menge", "loss": "verlust"}, [1e8, 2e8], [2e9, 4e9], (),
    ),
    "JSON lines": (
        "t.jsonl", '{"n_params": 1e8, "tokens": 2e9, "eval": {"loss": 3}}\n{"n_params": 2e8, "tokens": 4e9, "eval": {"loss": 2}}\n',
        {},
        [1e8, 2e8], [2e9, 4e9], (),
    ),
    "JSON lists": (
        "t.json", '{"params": [1e8, 2e8], "tokens": [2e9, 4e9], "loss": [3.1, 2.9]}', {}, [1e8, 2e8], [2e9, 4e9], (),
    ),
    "gzip": ("t.csv.gz", gzip.compress(GOOD.encode()), {}, [1e8, 2e8, 4e8], [2e9, 4e9, 8e9], ("gzip",)),
    "rows without a number": (
        "t.csv", csv_of("N,D,loss", "1e8,2e9,3.1", "2e8,4e9,nan", "3e8,,2.8", "4e8,inf,2.7", "5e8,0,2.6"), {}, [1e8], [2e9],
        ("4 rows without finite numbers > 0 dropped (rows 3 to 6)",),
    ),
    "validation before training loss": (
        "t.csv", csv_of("N,D,train_loss,val_loss", "1e8,2e9,9.1,3.1", "2e8,4e9,9.9,2.9"), {}, [1e8, 2e8], [2e9, 4e9],
        ("'val_loss'", "train_loss"),
    ),
    "one label of two": (
        "t.csv", csv_of("loss_kind,N,D,loss", "raw,1e8,2e9,3.1", "bpb,1e8,2e9,.9", "raw,2e8,4e9,2.9"),
        {"where": {"loss_kind": "raw"}}, [1e8, 2e8], [2e9, 4e9], ("2 of 3 rows with loss_kind = raw",),
    ),
    "all labels": (
        "t.csv", csv_of("dataset,N,D,loss", "a,1e8,2e9,3.1", "a,3e8,2e9,3.0", "b,2e8,4e9,2.9"), {"where": {"dataset": "*"}},
        [1e8, 3e8, 2e8], [2e9, 2e9, 4e9], (),
    ),
    "marked rows": (
        "t.csv", csv_of("N,D,loss,outlier", "1e8,2e9,3.1,False", "2e8,4e9,2.9,True"), {}, [1e8, 2e8], [2e9, 4e9],
        ("outliers by the file's own column: 1",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_a_table_is_read_and_what_was_guessed_is_said(tmp_path, case):
    name, content, options, params, tokens, words = READ[case]
    table = read_table(put(tmp_path, name, content), **options)
    assert table.params.tolist() == pytest.approx(params) and table.tokens == pytest.approx(tokens)
    assert table.flop == pytest.approx(6 * table.params * table.tokens)
    assert table.loss.max() < 5
    assert all(any(word in note for note in table.notes) for word in words), table.notes


def test_further_columns_runs_and_data_sets_come_along(tmp_path):
    text = csv_of(
        "run,dataset,N,D,batch_size,lr,n_layers,d_model,vocab_size,loss",
        "a,c4,1e8,2e9,5e5,1e-3,12,768,50257,3.1", "a,c4,1e8,4e9,5e5,1e-3,12,768,50257,3.0", "b,c4,2e8,4e9,1e6,,16,1024,50257,2.9",
    )  # fmt: skip
    table = read_table(put(tmp_path, "t.csv", text))
    assert set(table.columns) == {"batch", "rate", "depth", "width", "vocabulary"}
    assert table.runs.tolist() == ["a", "a", "b"] and table.dataset.tolist() == ["c4"] * 3
    assert table.has("batch") and not table.has("rate") and any("whole runs" in note for note in table.notes)
    assert read_table(put(tmp_path, "t.csv", text), rate="n_layers").columns["rate"].tolist() == [12, 12, 16]


# name of the case: (file name, content, options, words of the error)
REFUSED = {
    "empty": ("t.csv", "", {}, "empty"),
    "header only": ("t.csv", "N,D,loss\n", {}, "no rows"),
    "no loss": ("t.csv", csv_of("N,D,accuracy", "1e8,2e9,.5"), {}, "final loss"),
    "no size": ("t.csv", csv_of("width,loss", "128,3.1", "256,3.0"), {}, "two of parameters"),
    "text for a loss": ("t.csv", csv_of("N,D,loss", "1e8,2e9,3.1", "2e8,4e9,diverged", "3e8,4e9,2"), {}, "row 3"),
    "text for a size": ("t.csv", csv_of("N,D,loss", "1e8,2e9,3.1", "2e8,many,3.0", "3e8,4e9,2"), {}, "'many'"),
    "only losses that are NaN": ("t.csv", csv_of("N,D,loss", "1e8,2e9,nan", "2e8,4e9,nan"), {}, "finite numbers > 0"),
    "negative sizes": ("t.csv", csv_of("N,D,loss", "-1e8,2e9,3.1"), {}, "finite numbers > 0"),
    "losses of zero": ("t.csv", csv_of("N,D,loss", "1e8,2e9,0", "2e8,2e9,0"), {}, "finite numbers > 0"),
    "a row too long": ("t.csv", csv_of("N,D,loss", "1e8,2e9,3.1", "2e8,4e9,3.0,7"), {}, "row 3"),
    "a row too short": ("t.csv", csv_of("N,D,loss", "1e8,2e9,3.1", "2e8", "4e8,1e9,3"), {}, "row 3"),
    "an open quote": ("t.csv", 'N,D,loss\n1e8,2e9,"3.1\n2e8,4e9,3.0\n', {}, "quote"),
    "binary": ("t.csv", bytes(range(32)) * 20, {}, "binary"),
    "zip": ("t.csv", b"PK\x03\x04 nothing", {}, "zip"),
    "damaged gzip": ("t.csv.gz", b"\x1f\x8b\x08 nothing", {}, "gzip"),
    "damaged Parquet": ("t.parquet", b"PAR1 nothing PAR1", {}, "arquet"),
    "cut JSON": ("t.json", '[{"N": 1e8, "D": 2e9, "lo', {}, "JSON"),
    "JSON of numbers": ("t.json", "[1, 2, 3]", {}, "objects"),
    "JSON lists of two lengths": ("t.json", '{"N": [1e8, 2e8], "D": [2e9], "loss": [3, 2]}', {}, "one length"),
    "deep JSON": ("t.json", "[" + '{"a":' * 200 + "1" + "}" * 200 + "]", {}, "nested"),
    "broken JSON line": ("t.jsonl", '{"N":1e8,"D":2e9,"loss":3}\n{"N":2e8,\n{"N":3e8,"D":1e9,"loss":2}\n', {}, "line 2"),
    "two kinds of loss": ("t.csv", csv_of("kind,N,D,loss", "a,1e8,2e9,3", "b,1e8,2e9,1", "a,2e8,2e9,3"), {}, "where="),
    "two data sets": ("t.csv", csv_of("dataset,N,D,loss", "a,1e8,2e9,3", "b,1e8,2e9,1", "b,2e8,2e9,3"), {}, "where="),
    "an unknown label": ("t.csv", csv_of("kind,N,D,loss", "a,1e8,2e9,3"), {"where": {"kind": "c"}}, "labels of column"),
    "a label of no column": ("t.csv", GOOD, {"where": {"kind": "c"}}, "a column of"),
    "a column that is not there": ("t.csv", GOOD, {"params": "size"}, "a column of"),
    "a role that is none": ("t.csv", GOOD, {"colour": "N"}, "colour"),
    "a format that is none": ("t.csv", GOOD, {"format": "xml"}, "format"),
    "JSON told to be CSV": ("t.json", '[{"N": 1e8, "D": 2e9, "loss": 3}]', {"format": "csv"}, "TABLE"),
    "too long": ("t.csv", GOOD, {"max_bytes": 10}, "10 bytes"),
    "Latin-1 with a broken number": ("t.csv", "N,D,loss\n1e8,2e9,3\n2e8,\xfc,3\n3e8,1e9,2\n".encode("latin-1"), {}, "row 3"),
    "a curve": ("t.csv", csv_of("step,lr,loss", "1,.1,9", "2,.1,8"), {}, "two of parameters"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_damaged_table_is_refused_in_one_line(tmp_path, case):
    name, content, options, words = REFUSED[case]
    with pytest.raises(InputError) as error:
        read_table(put(tmp_path, name, content), **options)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_every_cut_and_every_changed_byte_is_read_or_refused(tmp_path):
    assert len(REFUSED) >= 30
    for place in range(len(GOOD)):
        for data in [GOOD[:place]] + [GOOD[:place] + byte + GOOD[place + 1 :] for byte in ('"', "\n", ";", "-", "x")]:
            path = put(tmp_path, "t.csv", data)
            try:
                read_table(path)
            except InputError as error:
                assert "\n" not in str(error)


def test_paths_that_are_no_table(tmp_path):
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(InputError):
            read_table(path)
        with pytest.raises(InputError):
            is_table(path)


def test_a_table_of_runs_is_no_curve_and_a_curve_is_no_table(tmp_path):
    table = put(tmp_path, "table.csv", GOOD)
    assert is_table(table)
    with pytest.raises(InputError, match="table of finished runs.*read_table"):
        read_log(table)
    curves = {
        "one run": csv_of("tokens,flops,loss", "1e6,1e12,9", "2e6,2e12,8", "3e6,3e12,7"),
        "steps": csv_of("step,N,D,loss", "1,1e8,1e6,9", "2,1e8,2e6,8", "1,2e8,1e6,8", "2,2e8,2e6,7"),
        "one size": csv_of("params,tokens,loss", "1e8,1e6,9", "1e8,2e6,8", "1e8,3e6,7"),
        "counted": csv_of(
            "params,tokens,batches,loss", *(f"{n}e8,{t}e6,{t},{9 - t}" for n in (1, 2) for t in range(1, 8))
        ),
    }
    for name, text in curves.items():
        assert not is_table(put(tmp_path, "curve.csv", text)), name
    read_log(put(tmp_path, "steps.csv", "step,N,D,loss\n1,1e8,1e6,9\n2,1e8,2e6,8\n"))
    # A caller who names the step means a curve.
    assert read_log(table, step="D").step.tolist() == [2e9, 4e9, 8e9]
    by_tokens = put(tmp_path, "tokens.csv", "params,tokens,loss\n1e8,2e6,3.1\n2e8,4e6,2.9\n4e8,8e6,2.7\n")
    assert is_table(by_tokens) and read_log(by_tokens, batch_tokens=1e6).step.tolist() == [2, 4, 8]


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    frame = pd.DataFrame({"N": [1e8, 2e8], "D": ["2B", "4B"], "loss": [3.1, 2.9], "kind": ["a", None]})
    frame.to_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert table.tokens.tolist() == [2e9, 4e9] and table.loss.tolist() == [3.1, 2.9]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="odescale\\[parquet\\]"):
        read_table(put(tmp_path, "t.parquet", b"PAR1 and more PAR1"))


@pytest.mark.parametrize("name", ["logs/table_CNDL.csv", "logs/table_isoflop.csv", "chinchilla_points.csv"])
def test_tables_as_people_have_them(name):
    path = folder() / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    table = read_table(path)
    assert len(table) == (245 if "chinchilla" in name else 42) and is_table(path)
    assert table.flop == pytest.approx(6 * table.params * table.tokens, rel=1e-5)
    with pytest.raises(InputError, match="read_table"):
        read_log(path)
