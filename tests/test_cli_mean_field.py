"""The command line on systems of the mean-field engine: error bars, nodes and coverage in words and in JSON, one-line errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from odescale.cli.main import main
from odescale.run import Run
from odescale.solve.trajectory import Trajectory
from odescale.systems.register import SYSTEMS

KEYS = {"system", "parameters", "time_unit", "t", "loss", "exponent", "observables", "error", "code"}
TINY = ("depth=1", "tokens=2", "nodes=64", "dimension=40")


def settings(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


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


def record_of(text: str) -> dict:
    assert text.count("\n") == 1 and text.endswith("\n")
    record = json.loads(text, parse_constant=lambda token: pytest.fail(f"{token} is no JSON"))
    assert set(record) >= KEYS
    return record


def test_systems_lists_domains_and_units(run):
    status, out, err = run("systems")
    assert status == 0 and err == ""
    assert "transformer: " in out and "committee: " in out
    for name in ("tokens", "mlp", "correlation", "friction", "accuracy", "labels", "capacity"):
        assert f"\n    {name} " in out


def test_the_committee_solves_with_its_defaults_alone(run):
    status, out, err = run("solve", "committee", "--json")
    record = record_of(out)
    assert status == 0 and err == "" and record["code"] == 0
    assert record["t"][-1] == SYSTEMS["committee"].t1 and record["loss"][-1] < 0.1 * record["loss"][0]
    assert record["nodes"]["kind"] == "closed form" and record["coverage"]["inside"]
    assert not any(record["error"])


@pytest.mark.slow
def test_the_transformer_solves_with_its_defaults_alone(run):
    status, out, err = run("solve", "transformer", "--json")
    record = record_of(out)
    assert status == 0 and err == "" and record["code"] == 0
    assert record["loss"][-1] < 0.1 * record["loss"][0] and max(record["error"]) < 0.2
    assert record["coverage"]["inside"]


def test_solve_prints_nodes_coverage_and_error_and_saves_and_draws(run, tmp_path):
    status, out, err = run(
        "solve", "transformer", *settings(*TINY), "--t1", 2, "--points", 12, "--save", tmp_path / "a.npz",
        "--plot", tmp_path / "a.png",
    )  # fmt: skip
    assert status == 0 and err == ""
    lines = out.splitlines()
    assert lines[0].startswith("transformer: one unit of t = 40 SGD steps") and lines[1].startswith("solved by bosh3")
    assert lines[2].startswith("expectations by 4 x 64 scrambled Sobol points in 12 dimensions")
    assert lines[3].startswith("outside the theory: 0.15 rows per dimension")  # 6 rows in 40 dimensions
    assert lines[4].split() == ["t", "loss", "p", "q", "error"] and len(lines) == 5 + 12
    assert Trajectory.load(tmp_path / "a.npz").error.shape == (12,)
    assert (tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.slow
def test_solve_in_json_says_nodes_and_coverage(run):
    words = ("mlp=1", "loss=cross_entropy", "labels=sampled", "causal=true", "correlation=0.5", "readout=per_token")
    status, out, err = run("solve", "transformer", *settings(*TINY, *words), "--t1", 40, "--clock", "steps",
                           "--points", 6, "--json")  # fmt: skip
    record = record_of(out)
    assert status == 0 and err == "" and record["time_unit"] == "SGD steps" and record["t"][-1] == 40
    # 2 tokens, 14 rows (q, k, unit in and out, 3 readouts; twice), and one normal number per position for its label
    assert record["nodes"] == {"kind": "sobol", "replicates": 4, "nodes": 64, "dimensions": 30}
    assert not record["coverage"]["inside"] and "rows per dimension" in record["coverage"]["reasons"][0]
    assert len(record["error"]) == 6 and min(record["error"]) > 0
    assert np.shape(record["observables"]["overlaps"]) == (6, 14, 14)
    assert record["loss"][-1] < record["loss"][0]


def test_transition_has_an_interval_or_a_reason(run):
    status, out, err = run("transition", "committee", "--min-depth", 1, "--json")
    record = record_of(out)
    assert status == 0 and err == ""
    assert record["transition"]["found"] in (True, False) and record["transition"]["reason"]
    assert record["nodes"]["kind"] == "closed form"


@pytest.mark.slow
def test_train_saves_resumes_and_compare_reports(run, tmp_path):
    common = (*settings(*TINY), "--t1", 2, "--seeds", 2, "--records", 6, "--checkpoint", tmp_path / "c.npz", "--json")
    status, out, err = run("train", "transformer", *common, "--out", tmp_path / "train")
    record = record_of(out)
    assert status == 0 and err == "" and len(record["t"]) == 6 and record["time_unit"] == "one unit of t = 40 SGD steps"
    saved = Run.load(record["path"])
    assert saved["loss"].shape == (2, 6) and (tmp_path / "c.npz").exists()
    # The same experiment again: nothing is left to train, and the comparison reads the checkpoint.
    status, out, err = run("compare", "transformer", *common, "--out", tmp_path / "compare")
    record = record_of(out)
    assert status == 0 and err == ""
    assert record["verdict"]["status"] == "outside the theory"  # 6 rows in 40 dimensions
    loss = record["quantities"]["loss"]
    np.testing.assert_allclose(loss["measured"], saved.mean(), rtol=1e-12)
    assert {"ratio", "rms_z", "max_z", "max_deviation"} <= set(loss) and {"nodes", "coverage"} <= set(record)
    assert len(loss["ratio"]) == 6 and "quadrature" in loss["errors"]
    folder = tmp_path / "compare"
    assert {path.name for path in folder.iterdir()} == {
        "report.md", "comparison.png", "comparison.json", "theory.npz", "run.npz",
    }  # fmt: skip
    page = (folder / "report.md").read_text()
    assert "**Verdict: outside the theory.**" in page and "| step | t | theory |" in page
    # Another experiment must not go on from that checkpoint.
    other = (
        *settings(*TINY, "learning_rate=0.1"),
        "--t1",
        2,
        "--seeds",
        2,
        "--records",
        6,
        "--checkpoint",
        tmp_path / "c.npz",
    )
    status, out, err = run("train", "transformer", *other, "--json", "--out", tmp_path / "other")
    assert status == 2 and out == "" and err.count("\n") == 1 and "checkpoint" in err


BAD = {
    "unknown parameter": (("solve", "transformer", *settings("learning_rat=1")), "did you mean learning_rate"),
    "unknown system": (("solve", "transfromer"), "did you mean transformer"),
    "depth": (("solve", "transformer", *settings("depth=0")), "depth: expected an integer from 1 to 8"),
    "tokens": (("train", "transformer", *settings("tokens=inf")), "tokens: expected an integer"),
    "word": (("solve", "transformer", *settings("readout=first")), "readout: expected one of query"),
    "flag": (("solve", "transformer", *settings("causal=maybe")), "causal: expected true or false"),
    "nodes": (("solve", "transformer", *settings("nodes=1000")), "nodes: expected 0 (automatic) or a power of two"),
    "classes": (("solve", "transformer", *settings("loss=cross_entropy", "outputs=1")), "outputs: expected two or more"),
    "labels": (("solve", "transformer", *settings("labels=hard")), "labels: expected soft with loss=square"),
    "correlation": (("solve", "transformer", *settings("correlation=1")), "correlation: expected a number in (-1, 1)"),
    "closed": (("solve", "transformer", *settings("closure=closed")), "for a closed form"),
    "both momenta": (
        ("solve", "transformer", *settings(*TINY, "momentum=0.5", "friction=1")), "momentum: expected 0 with friction",
    ),
    "perfect start": (("solve", "transformer", *settings(*TINY, "alignment=1")), "initial_overlaps: expected a student"),
    "whole batch": (("train", "transformer", *settings(*TINY, "batch=1.5")), "batch: expected a whole number"),
    "too many modes": (
        ("train", "transformer", *settings(*TINY, "capacity=1.5")), "at most 20000 whole eigenvalues",
    ),
    "tolerance": (("compare", "transformer", *settings(*TINY), "--tolerance", "0"), "tolerance: expected numbers between 0 and 1"),
    "units": (("solve", "committee", *settings("units=0")), "units: expected an integer from 1 to 16"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_two(run, case, tmp_path, monkeypatch):
    arguments, words = BAD[case]
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments, "--json")
    assert status == 2 and out == ""
    assert err.startswith("odescale: ") and err.count("\n") == 1 and words in err
    assert not list(tmp_path.iterdir())


def test_a_learning_rate_that_diverges_is_said_in_one_line(run):
    status, out, err = run("solve", "transformer", *settings(*TINY, "learning_rate=5", "batch=1"), "--t1", 30, "--json")
    assert status == 1 and out == "" and err.count("\n") == 1 and "stopped after t =" in err
