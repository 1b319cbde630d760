"""The command line: one JSON object on stdout, one line on stderr for bad input, exit status 0 on success only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from odescale.cli.main import main
from odescale.solve.trajectory import Trajectory
from odescale.systems.register import SYSTEMS

KEYS = {"system", "parameters", "time_unit", "t", "loss", "exponent", "observables", "error", "code"}
ROOT = Path(__file__).parents[1]


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
    """The one JSON object of stdout, without NaN."""
    assert text.count("\n") == 1 and text.endswith("\n")

    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    record = json.loads(text, parse_constant=refuse)
    assert set(record) >= KEYS
    return record


# Those of the mean-field engine carry an error bar and remarks: tests/test_cli_mean_field.py.
@pytest.mark.parametrize(
    "system", [name for name in SYSTEMS if name not in ("transformer", "committee", "peaked", "kernel", "spectral")]
)
def test_every_system_solves_with_its_defaults_alone(run, system):
    status, out, err = run("solve", system, "--json")
    record = record_of(out)
    assert status == 0 and err == ""
    assert record["system"] == system and record["code"] == 0 and record["error"] is None
    assert record["time_unit"] == "one unit of t = 200 SGD steps"
    assert record["t"][0] == 0 and record["t"][-1] == SYSTEMS[system].t1 and len(record["t"]) == 200
    loss = np.array(record["loss"])
    assert np.isfinite(loss).all() and loss[-1] < 0.1 * loss[0]
    rows = record["parameters"]["rows"]
    assert np.shape(record["observables"]["overlaps"]) == (200, len(rows), len(rows))
    assert {parameter.name for parameter in SYSTEMS[system].parameters} >= {
        "learning_rate",
        "batch",
        "tokens",
        "dimension",
    }


def test_the_kernel_of_a_transformer_solves_and_compares(run, tmp_path):
    small = ("--set", "width=16", "--set", "samples=4", "--t1", 50, "--json")
    status, out, err = run("solve", "kernel", *small)
    record = record_of(out)
    assert status == 0 and err == "" and record["loss"][-1] < record["loss"][0]
    status, out, err = run("compare", "kernel", *small, "--records", 8, "--tolerance", 0.4, "--out", tmp_path)
    found = record_of(out)["quantities"]
    assert status == 0 and err == "" and found["train"]["tolerance"] == found["test"]["tolerance"] == 0.4
    assert found["train"]["verdict"]["status"] == "agrees" and (tmp_path / "report.md").is_file()


def test_the_spectral_system_solves_with_its_defaults_and_compares(run, tmp_path):
    status, out, err = run("solve", "spectral", "--json")
    record = record_of(out)
    assert status == 0 and err == "" and record["code"] == 0 and record["solver"][0]["solver"] == "rank_one"
    assert record["time_unit"] == "one unit of t = 1 SGD steps" and record["t"][-1] == SYSTEMS["spectral"].t1
    loss = np.array(record["loss"])
    assert len(loss) == 200 and np.isfinite(loss).all() and loss[-1] < 1e-3 * loss[0]
    assert record["parameters"]["modes"] == 1024
    status, out, err = run("compare", "spectral", "--set", "modes=32", "--t1", 200, "--records", 8, "--seeds", 16,
                           "--min-depth", 2, "--out", tmp_path, "--json")  # fmt: skip
    found = record_of(out)
    assert status == 0 and err == "" and found["transition"]["run"]["min_depth"] == 2
    assert found["verdict"]["status"] in ("agrees", "undecided") and found["quantities"]["loss"]["rms_z"] < 2
    assert run("solve", "spectral", "--set", "learning_rate=3")[0] == 2


@pytest.mark.slow
def test_transition_of_the_spectral_system_names_its_cut_off(run):
    status, out, err = run("transition", "spectral", "--json")
    found = record_of(out)["transition"]
    assert status == 0 and err == "" and not found["found"] and found["reason"].startswith("no exponential phase")
    # 2 eta lam_d t is of order one where the last of the 1024 modes is learned.
    assert 0.3 < 2 * 0.1 * 1024**-1.5 * found["finite_size_cutoff"] < 3


def test_solve_prints_a_table_and_saves_and_draws(run, tmp_path):
    status, out, err = run(
        "solve",
        "quickstart",
        "--t1",
        12,
        "--save",
        tmp_path / "run.npz",
        "--plot",
        tmp_path / "run.png",
        "--accuracy",
        "check",
    )
    assert status == 0 and err == ""
    lines = out.splitlines()
    assert lines[0].startswith("quickstart: one unit of t = 200 SGD steps") and lines[1].startswith("solved by tsit5 (")
    assert lines[2].split() == ["t", "loss", "p", "q", "error"] and len(lines) == 3 + 16
    saved = Trajectory.load(tmp_path / "run.npz")
    assert saved.t[-1] == 12 and float(lines[-1].split()[1]) == pytest.approx(saved.loss[-1], rel=1e-5)
    assert (tmp_path / "run.png").stat().st_size > 5000


def test_clocks_convert_what_goes_in_and_what_comes_out(run):
    by_t = record_of(run("solve", "quickstart", "--t1", 15, "--json")[1])
    by_steps = record_of(run("solve", "quickstart", "--t1", 3000, "--clock", "steps", "--json")[1])
    by_tau = record_of(run("solve", "quickstart", "--t1", 3, "--clock", "tau", "--json")[1])
    np.testing.assert_allclose(by_steps["t"], 200 * np.array(by_t["t"]), rtol=1e-12)
    np.testing.assert_allclose(by_tau["t"], 0.2 * np.array(by_t["t"]), rtol=1e-12)
    np.testing.assert_allclose(by_steps["loss"], by_t["loss"], rtol=1e-9)
    np.testing.assert_allclose(by_tau["loss"], by_t["loss"], rtol=1e-9)
    assert by_steps["time_unit"] == "SGD steps" and "intrinsic" in by_tau["time_unit"]


def test_set_changes_a_parameter(run):
    record = record_of(run("solve", "quickstart", "--set", "learning_rate=0.1", "--set", "noise=0", "--json")[1])
    assert record["parameters"]["learning_rate"] == 0.1 and record["parameters"]["noise"] == 0.0


@pytest.mark.slow
def test_transition_says_depth_steps_and_intrinsic_time(run):
    status, out, err = run("transition", "quickstart", "--min-depth", 2, "--json")
    record = record_of(out)
    found = record["transition"]
    assert status == 0 and err == "" and found["found"]
    assert found["t_x"] * 0.4 == pytest.approx(2.153729, abs=5e-7)
    assert found["steps"] == pytest.approx(200 * found["t_x"]) and found["tau"] == pytest.approx(0.2 * found["t_x"])
    status, out, _ = run("transition", "quickstart")
    assert status == 0 and out.startswith(
        "exponential to power law at t_x = 5.38432, depth 2.692 e-folds (min_depth 2.5)"
    )
    status, out, _ = run("transition", "quickstart", "--min-depth", 3)
    assert status == 0 and out.startswith("no exponential phase") and "e-folds down (min_depth 3)" in out


def test_systems_lists_every_parameter_with_its_domain(run):
    status, out, _ = run("systems")
    assert status == 0
    for name, entry in SYSTEMS.items():
        assert name in out
        for parameter in entry.parameters:
            assert parameter.name in out and parameter.domain in out
    listed = record_of(run("systems", "--json")[1])["systems"]
    assert {name: len(entry["parameters"]) for name, entry in listed.items()} == {
        name: len(entry.parameters) for name, entry in SYSTEMS.items()
    }


def test_derive_prints_the_shipped_derivation(run):
    status, out, err = run("derive", "attention")
    shipped = (ROOT / "odescale" / "generated" / "attention.md").read_text(encoding="utf-8")
    assert status == 0 and err == "" and out.rstrip() == shipped.rstrip()
    assert record_of(run("derive", "attention", "--json")[1])["derivation"] == shipped


SMALL = ("--set", "tokens=16", "--t1", 4, "--seeds", 2, "--records", 12)


def test_compare_writes_its_report_and_train_goes_on_from_its_checkpoint(run, tmp_path):
    given = (*SMALL, "--checkpoint", tmp_path / "checkpoint.npz", "--json")
    status, out, err = run("compare", "quickstart", *given, "--out", tmp_path / "compare")
    compared = record_of(out)
    assert status == 0 and err == ""
    assert compared["verdict"]["status"] in ("agrees", "differs", "undecided", "outside the theory")
    assert {path.name for path in (tmp_path / "compare").iterdir()} >= {
        "report.md",
        "comparison.png",
        "comparison.json",
    }
    status, out, err = run("train", "quickstart", *given, "--out", tmp_path / "train")
    record = record_of(out)
    assert status == 0 and err == ""
    assert len(record["loss"]) == len(record["t"]) == len(record["error"]) == 12
    assert record["steps"][-1] == 4 * 200 and Path(record["path"]).is_file()
    assert record["loss"] == compared["quantities"]["loss"]["measured"]


def curve(path: Path) -> Path:
    step = np.unique(np.geomspace(1, 1e4, 120).astype(int))
    loss = np.exp(-step / 30) + 0.02 / (1 + step / 100)
    path.write_text(
        "step,loss\n" + "".join(f"{s},{x:.9g}\n" for s, x in zip(step, loss, strict=True)), encoding="utf-8"
    )
    return path


def test_report_finds_the_transition_of_a_loss_curve(run, tmp_path):
    path = curve(tmp_path / "log.csv")
    status, out, err = run("report", path, "--json")
    record = record_of(out)
    assert status == 0 and err == ""
    (entry,) = record["logs"].values()
    assert entry["fit"]["estimator"] and "found" in entry["spline"]
    assert record["t"][0] == 1 and record["time_unit"] == "SGD steps of the log"
    status, out, _ = run("report", path)
    assert status == 0 and "e-folds" in out and "column loss" in out


BAD = {
    "unknown command": (("slove", "quickstart"), "invalid choice"),
    "no command": ((), "required"),
    "unknown system": (("solve", "quickstrat"), "did you mean quickstart"),
    "unknown parameter": (("solve", "quickstart", "--set", "learning_rat=1"), "did you mean learning_rate"),
    "out of domain": (("solve", "quickstart", "--set", "learning_rate=-1"), "learning_rate: expected a positive"),
    "not a number": (("solve", "quickstart", "--set", "learning_rate=fast"), "learning_rate: expected a positive"),
    "nan": (("solve", "quickstart", "--set", "learning_rate=nan"), "learning_rate: expected a positive"),
    "infinite dimension": (("solve", "quickstart", "--set", "dimension=inf"), "dimension: expected an integer"),
    "no value": (("solve", "quickstart", "--set", "learning_rate"), "NAME=VALUE"),
    "twice": (("solve", "quickstart", "--set", "batch=4", "--set", "batch=5"), "batch: expected one value"),
    "bad schedule": (("solve", "quickstart", "--set", "schedule=cosine:0"), "schedule: expected"),
    "t1 zero": (("solve", "quickstart", "--t1", "0"), "t1: expected a positive"),
    "t1 negative": (("solve", "quickstart", "--t1=-5"), "t1: expected a positive"),
    "t1 no number": (("solve", "quickstart", "--t1", "soon"), "expected a number"),
    "t1 nan": (("solve", "quickstart", "--t1", "nan"), "t1: expected a positive"),
    "points": (("solve", "quickstart", "--points", "1"), "points: expected an integer"),
    "points no number": (("solve", "quickstart", "--points", "many"), "expected a whole number"),
    "clock": (("solve", "quickstart", "--clock", "epochs"), "--clock: expected t, steps or tau"),
    "tau beyond the schedule": (
        ("solve", "quickstart", "--set", "schedule=cosine:10:0", "--clock", "tau", "--t1", "5"), "tau: expected",
    ),
    "solver": (("solve", "quickstart", "--solver", "euler"), "solver: expected one of"),
    "accuracy": (("solve", "quickstart", "--accuracy", "best"), "accuracy: expected one of"),
    "tolerance too small": (("solve", "quickstart", "--rtol", "1e-17"), "rtol: expected at least"),
    "tolerance in float32": (("solve", "quickstart", "--rtol", "1e-8", "--precision", "float32"), "rtol: expected at least"),
    "unstable": (("solve", "quickstart", "--set", "learning_rate=100", "--set", "batch=1"), "outgrows the drift"),
    "transition in float32": (("transition", "quickstart", "--precision", "float32"), "float64 for a transition"),
    "transition depth": (("transition", "quickstart", "--min-depth", "-1"), "min_depth: expected"),
    "context outside": (
        ("solve", "attention", "--set", "depth=1", "--set", "context=finite", "--set", "strength=1"), "2 C_kk C_qq < 1",
    ),
    "unknown derivation": (("derive", "attentoin"), "NAME: expected one of attention"),
    "infinite tokens cannot be trained": (("train", "quickstart", "--set", "tokens=inf"), "tokens: expected a whole number"),
    "no seeds": (("train", "quickstart", "--seeds", "0"), "expected a whole number >= 1"),
    "missing log": (("report", "no_such_file.csv"), "LOG: expected a CSV file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_two(run, case, tmp_path, monkeypatch):
    arguments, words = BAD[case]
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments, *(("--json",) if arguments else ()))
    assert status == 2 and out == ""
    assert err.startswith("odescale: ") and err.count("\n") == 1 and words in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"step,loss\n1,2\n", b"PK\x03\x04"])
def test_an_unreadable_checkpoint_is_one_line(run, tmp_path, content):
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(content)
    status, out, err = run("train", "quickstart", *SMALL, "--checkpoint", path, "--out", tmp_path / "out")
    assert status == 2 and out == "" and err.count("\n") == 1 and "checkpoint" in err


@pytest.mark.parametrize(
    "text", ["", "epoch,loss\n1,2\n", "step,loss\n1,2\nx,3\n", "step,loss\n1,nan\n2,1\n", "step,loss\n1,2\n"]
)
def test_a_broken_log_is_one_line(run, tmp_path, text):
    path = tmp_path / "log.csv"
    path.write_text(text, encoding="utf-8")
    status, out, err = run("report", path, "--json")
    assert status == 2 and out == "" and err.count("\n") == 1 and "log.csv" in err


def test_an_unwritable_target_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    status, out, err = run("solve", "quickstart", "--save", tmp_path / "file" / "run.npz", "--json")
    assert status == 2 and err.count("\n") == 1 and err.startswith("odescale: ")
    status, out, err = run("solve", "quickstart", "--plot", tmp_path / "picture.nonsense", "--json")
    assert status == 2 and err.count("\n") == 1 and err.startswith("odescale: ")


def test_as_a_program_it_needs_no_setting_of_jax_and_fails_with_status_two():
    def program(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "odescale.cli.main", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )

    good = program("systems", "--json")
    assert good.returncode == 0 and good.stderr == "" and record_of(good.stdout)
    bad = program("solve", "quickstart", "--t1", "0")
    assert bad.returncode == 2 and bad.stdout == "" and bad.stderr.count("\n") == 1


@pytest.mark.slow
def test_quickstart_writes_its_report_in_the_time_promised(run, tmp_path):
    """The whole line with one seed; the acceptance figures are those of `make quickstart`."""
    status, out, err = run("quickstart", "--seeds", 2, "--out", tmp_path / "quickstart", "--json")
    record = record_of(out)
    assert status == 0 and err == ""
    assert record["quickstart"]["t_x_ode_S"] == pytest.approx(2.153729, abs=5e-7)
    assert record["quickstart"]["ode_against_formula"] < 1e-6
    assert record["verdict"]["status"] in ("agrees", "undecided")
