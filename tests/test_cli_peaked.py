"""The command line on peaked distributions: solve with its law, the cut-off, a small run beside the theory, one-line errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from odescale.cli.main import main
from odescale.solve.trajectory import Trajectory


@pytest.fixture
def run(capsys):
    """Runs a command in this process: (exit status, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        out = capsys.readouterr()
        return status, out.out, out.err

    return call


def test_solve_says_which_law_holds(run, tmp_path):
    path = tmp_path / "peaked.npz"
    status, out, _ = run("solve", "peaked", "--set", "classes=3", "--points", 12, "--t1", 1e6, "--save", path, "--json")
    record = json.loads(out)
    assert status == 0 and record["system"] == "peaked"
    assert record["law"]["inside"] and record["law"]["loss_exponent"] == pytest.approx(1 / 3)
    assert record["exponent"][-1] == pytest.approx(1 / 3, abs=1e-3)
    np.testing.assert_allclose(Trajectory.load(path).loss, record["loss"])


def test_a_schedule_that_the_spread_cannot_follow_is_said_to_be_outside(run):
    given = ("--set", "classes=3", "--set", "schedule=power:0.8")
    status, out, _ = run("solve", "peaked", *given, "--points", 12, "--t1", 1e6, "--json")
    law = json.loads(out)["law"]
    assert status == 0 and not law["inside"] and any("spread" in reason for reason in law["reasons"])


@pytest.mark.slow
def test_train_and_compare(run, tmp_path):
    given = ("--set", "classes=3", "--set", "dimension=60", "--t1", 3, "--seeds", 2, "--records", 6)
    status, out, _ = run("train", "peaked", *given, "--out", tmp_path, "--json")
    assert status == 0 and len(json.loads(out)["loss"]) == 6
    status, out, _ = run("compare", "peaked", *given, "--out", tmp_path)
    assert status == 0 and "overlap:" in out and (tmp_path / "report.md").is_file()


@pytest.mark.parametrize(
    ("pair", "name"), [("classes=1", "classes"), ("inverse_temperature=-3", "inverse_temperature"), ("loss=focal", "loss")]
)  # fmt: skip
def test_outside_the_theory_is_one_line(run, pair, name):
    status, _, err = run("solve", "peaked", "--set", pair, "--set", "labels=hard")
    assert status == 2 and err.count("\n") == 1 and name in err
