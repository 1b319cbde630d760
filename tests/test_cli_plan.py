"""`odescale sweep PLAN.toml`: what a plan says is swept, what it cannot say is refused, engines are given its chunks."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from two_rates import exact_loss

from odescale.sweeps.sweep import open_sweep

PLAN = """
system = "two_rates.py:two_rates"
t1 = 20.0
points = 40
atol = 1e-16
chunk = 4
lanes = 4
keep = ["transition"]
store = "out/rates.zarr"
[set]
tail = 0.01
"""
GRID = PLAN + '[grid]\nrate = "0.5:2:3"\nstart = [1.0, 2.0]\n'


@pytest.fixture
def folder(tmp_path) -> Path:
    shutil.copy(Path(__file__).with_name("two_rates.py"), tmp_path)
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def test_a_grid_is_swept_into_the_store_and_gone_on_with(folder, cli):
    status, out, err = cli("sweep", written(folder, GRID), "--json")
    assert status == 0 and err == "", err
    record = json.loads(out)
    data = open_sweep(folder / "out" / "rates.zarr")
    np.testing.assert_allclose(data["rate"], [0.5, 0.5, 1.25, 1.25, 2, 2])
    np.testing.assert_allclose(data["start"], [1, 2] * 3)
    exact = exact_loss(20.0, data["rate"].values, tail=0.01, start=data["start"].values)
    np.testing.assert_allclose(data["loss_end"], exact, rtol=1e-6)
    assert record["members"] == 6 and record["failed"] == 0 and sum(record["transitions"].values()) == 6
    assert record["time_unit"] == "one unit of t = 10 SGD steps" and record["system"] == "two rates"
    before = (folder / "out" / "rates.csv").stat().st_mtime_ns, data["seconds"].values
    status, out, err = cli("sweep", folder / "plan.toml")
    assert status == 0 and "6 members in" in out and out.count("\n") < 8
    np.testing.assert_array_equal(open_sweep(folder / "out" / "rates.zarr")["seconds"], before[1])


def test_a_table_and_members_that_fail(folder, cli):
    (folder / "members.csv").write_text("rate,start\n1,1\n2,-0.1\n")
    status, out, err = cli("sweep", written(folder, 'table = "members.csv"\n' + PLAN))
    assert status == 1 and err == "odescale: 1 of 2 members did not finish: see their codes\n"
    assert "1 members with code 6: the overlaps run off" in out


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ("system = ", (), "plan: expected TOML"),
        ('t1 = 1.0\n[vary]\nrate = "1:2:3"', (), "plan: expected a system"),
        (GRID.replace("keep", "kept"), (), "plan: expected some of system, t1"),
        (PLAN, (), "plan: expected one of [vary], [grid], table"),
        (GRID.replace("rate =", "rat ="), (), "rat: expected a parameter of system"),
        (GRID.replace("0.5:2:3", "0.5:2"), (), "rate: expected numbers"),
        (GRID.replace("tail = 0.01", "tial = 0.01"), (), "tial: expected a parameter of system"),
        (GRID.replace("t1 = 20.0", "t1 = -1"), (), "t1: expected a finite number > 0"),
        (GRID.replace('"0.5:2:3"', '"1:2:9999999"'), (), "grid: expected at most"),
        (GRID.replace("[grid]", "[vary]"), (), "values: expected 1-d arrays of equal length"),
        ("grid = 3\n" + PLAN, (), "grid: expected a table [grid]"),
        (GRID, ("--vary", "rate=1:2:3"), "--vary: expected it in the plan"),
        (GRID, ("--plot", "a.png"), "--plot: expected it in the plan"),
        (GRID, ("--executor", "threads"), "--executor: expected dask or submitit"),
        (GRID, ("--address", "tcp://a:1"), "--address: expected --executor dask"),
    ],
)
def test_what_a_plan_cannot_say_is_refused(text, more, words, folder, cli):
    status, out, err = cli("sweep", written(folder, text), *more)
    assert status == 2 and out == "" and words in err and err.count("\n") == 1, err
    assert not (folder / "out").exists()


@pytest.mark.parametrize("engine", ["dask", "submitit"])
def test_a_missing_engine_names_the_command_that_installs_it(engine, folder, cli, monkeypatch):
    monkeypatch.setitem(sys.modules, {"dask": "distributed"}.get(engine, engine), None)
    status, _, err = cli("sweep", written(folder, GRID), "--executor", engine)
    assert status == 2 and 'pip install "odescale[cluster]"' in err and err.count("\n") == 1


def test_an_engine_is_for_a_plan(cli):
    vary = ("--vary", "learning_rate=0.1:0.2:2")
    status, _, err = cli("sweep", "committee", *vary, "--executor", "dask")
    assert status == 2 and err.startswith("odescale: --executor: expected a plan for it")
    assert cli("sweep", "no_such_plan.toml")[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["dask", "submitit"])
def test_an_engine_of_the_command_line(engine, folder, cli):
    extra = "[dask]\nn_workers = 1\n[submitit]\ncluster = 'local'\ntimeout_min = 10\n"
    assert cli("sweep", written(folder, GRID + extra), "--executor", engine)[0] == 0
    data = open_sweep(folder / "out" / "rates.zarr")
    exact = exact_loss(20.0, data["rate"].values, tail=0.01, start=data["start"].values)
    np.testing.assert_allclose(data["loss_end"], exact, rtol=1e-6)
