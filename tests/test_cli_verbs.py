"""The verbs on systems: what they print, save and draw, clocks, sweeps, and what a theory remarks. All pairs: test_contract.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_cli import record_of

from odescale import Run, Trajectory, sweep
from odescale.systems.register import SYSTEMS


def settings(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


TINY = settings("depth=1", "tokens=2", "nodes=64", "dimension=40")
# The kernel of a network of the default width takes long where the compiler does not optimise: below, at a small size.
SOLVED = [
    pytest.param(name, marks=pytest.mark.slow if name == "transformer" else ()) for name in SYSTEMS if name != "kernel"
]


@pytest.mark.parametrize("system", SOLVED)
def test_every_system_solves_with_its_defaults_alone(cli, system):
    status, out, err = cli("solve", system, "--json")
    record, entry = record_of(out), SYSTEMS[system]
    assert status == 0 and err == "" and record["system"] == system and record["code"] == 0
    assert record["t"][0] == 0 and record["t"][-1] == entry.t1 and len(record["t"]) == entry.points
    loss = np.array(record["loss"])
    # A drafter settles at a fixed point above its floor.
    assert np.isfinite(loss).all() and loss[-1] < (0.5 if system == "drafter" else 0.1) * loss[0]
    step = {"rollout": "token of every live request", "drafter": "update of the policy"}.get(system, "SGD step")
    assert record["time_unit"].startswith("one unit of t = ") and step in record["time_unit"]
    if system in ("attention", "quickstart", "logistic_pair"):
        rows = record["parameters"]["rows"]
        steps = 64 if system == "quickstart" else 200
        assert record["time_unit"] == f"one unit of t = {steps} SGD steps" and record["error"] is None
        assert np.shape(record["observables"]["overlaps"]) == (200, len(rows), len(rows))
    if system == "spectral":
        assert record["solver"][0]["solver"] == "rank_one" and record["parameters"]["modes"] == 1024
        assert loss[-1] < 1e-3 * loss[0]
    if system == "committee":
        assert record["nodes"]["kind"] == "closed form" and record["coverage"]["inside"] and max(record["error"]) == 0
    if system == "transformer":
        assert record["coverage"]["inside"] and max(record["error"]) < 0.2


def test_the_kernel_of_a_small_transformer_solves(cli):
    status, out, err = cli("solve", "kernel", *settings("width=16", "samples=4"), "--t1", 50, "--json")
    record = record_of(out)
    assert status == 0 and err == "" and record["loss"][-1] < record["loss"][0]


def without_coverage(out: str) -> list[str]:
    """The lines of an answer but the one that says whether the theory covers the system."""
    return [line for line in out.splitlines() if "side the theory" not in line]


def test_solve_prints_a_table_and_saves_and_draws(cli, tmp_path):
    status, out, err = cli(
        "solve", "logistic_pair", "--t1", 12, "--save", tmp_path / "run.npz", "--plot", tmp_path / "run.png",
        "--accuracy", "check",
    )  # fmt: skip
    assert status == 0 and err == ""
    assert "\ninside the theory; " in out
    lines = without_coverage(out)
    assert lines[0].startswith("logistic_pair: one unit of t = 200 SGD steps") and lines[1].startswith(
        "solved by tsit5 ("
    )
    assert lines[2].split() == ["t", "loss", "p", "q", "error"] and len(lines) == 3 + 16
    saved = Trajectory.load(tmp_path / "run.npz")
    assert saved.t[-1] == 12 and float(lines[-1].split()[1]) == pytest.approx(saved.loss[-1], rel=1e-5)
    assert (tmp_path / "run.png").stat().st_size > 5000


def test_clocks_convert_what_goes_in_and_what_comes_out(cli):
    by_t = record_of(cli("solve", "logistic_pair", "--t1", 15, "--json")[1])
    by_steps = record_of(cli("solve", "logistic_pair", "--t1", 3000, "--clock", "steps", "--json")[1])
    by_tau = record_of(cli("solve", "logistic_pair", "--t1", 3, "--clock", "tau", "--json")[1])
    np.testing.assert_allclose(by_steps["t"], 200 * np.array(by_t["t"]), rtol=1e-12)
    np.testing.assert_allclose(by_tau["t"], 0.2 * np.array(by_t["t"]), rtol=1e-12)
    np.testing.assert_allclose(by_steps["loss"], by_t["loss"], rtol=1e-9)
    np.testing.assert_allclose(by_tau["loss"], by_t["loss"], rtol=1e-9)
    assert by_steps["time_unit"] == "SGD steps" and "intrinsic" in by_tau["time_unit"]


def test_set_changes_a_parameter(cli):
    record = record_of(cli("solve", "logistic_pair", *settings("learning_rate=0.1", "noise=0"), "--json")[1])
    assert record["parameters"]["learning_rate"] == 0.1 and record["parameters"]["noise"] == 0.0


def test_sweep_is_solve_at_every_value(cli, tmp_path):
    """Two parameters together, log-spaced and linear; each member is what `solve` gives at its values."""
    given = ("--t1", 1600, "--clock", "steps", "--points", 40)
    vary = ("--vary", "batch=2:8:3:log", "--vary", "noise=0:1:3")
    status, out, err = cli(
        "sweep", "logistic_pair", *given, *vary, "--json", "--save", tmp_path / "s.npz", "--plot", tmp_path / "s.pdf"
    )
    record = record_of(out)
    assert status == 0 and err == "" and record["codes"] == [0, 0, 0] and record["time_unit"] == "SGD steps"
    assert record["members"] == {"batch": pytest.approx([2, 4, 8]), "noise": [0, 0.5, 1]}
    one = record_of(cli("solve", "logistic_pair", *given, *settings("batch=8", "noise=1"), "--json")[1])
    np.testing.assert_allclose(record["t"], one["t"], rtol=1e-12)
    np.testing.assert_allclose(record["loss"][2], one["loss"], rtol=1e-6)
    np.testing.assert_allclose(Trajectory.load(tmp_path / "s.npz").loss, record["loss"])
    assert (tmp_path / "s.pdf").stat().st_size > 5000
    status, out, _ = cli("sweep", "logistic_pair", *given, *vary)
    lines = without_coverage(out)
    assert status == 0 and lines[2].split() == ["batch", "noise", "steps", "loss", "p", "q", "code"] and len(lines) == 6
    assert float(lines[-1].split()[3]) == pytest.approx(one["loss"][-1], rel=1e-5)


def test_a_member_that_does_not_finish_is_named_and_is_no_success(cli, monkeypatch):
    """A rate far beyond the stable one makes the ODE stiff; few steps are allowed, that it fails soon."""
    monkeypatch.setattr(
        "odescale.cli.sweep.sweep", lambda *words, **options: sweep(*words, **options | {"max_steps": 400})
    )
    given = ("--set", "batch=1", "--t1", 4, "--points", 12)
    status, out, err = cli("sweep", "logistic_pair", *given, "--vary", "learning_rate=0.1:100:2", "--json")
    record = record_of(out)
    assert status == 1 and err == "odescale: 1 of 2 members did not finish: see their codes\n"
    assert record["codes"] == [0, 1] and record["code"] == 1 and record["loss"][1][-1] is None
    assert record["loss"][0][-1] < record["loss"][0][0]


def test_remarks_of_a_sweep_are_those_of_both_ends(cli):
    """The judgement of the theory at the default learning rate says nothing of a member's."""
    status, out, err = cli(
        "sweep", "committee", "--set", "batch=1", "--vary", "learning_rate=0.2:200:2", "--t1", 1, "--points", 4
    )
    assert status == 0 and err == ""
    assert "\nfirst member: inside the theory" in out and "\nlast member: outside the theory" in out


@pytest.mark.slow
def test_transition_says_phases_steps_and_intrinsic_time(cli, tmp_path):
    status, out, err = cli("transition", "quickstart", "--clock", "steps", "--json", "--plot", tmp_path / "t.png")
    record = record_of(out)
    found = record["transition"]
    assert status == 0 and err == "" and found["found"] and (tmp_path / "t.png").stat().st_size > 5000
    assert found["t_x"] == pytest.approx(7.322016, abs=5e-7)
    assert found["steps"] == pytest.approx(64 * found["t_x"]) and found["tau"] == pytest.approx(0.4 * found["t_x"])
    assert record["t"] == found["steps"] and record["time_unit"] == "SGD steps"
    status, out, _ = cli("transition", "quickstart")
    assert status == 0 and "\nexponential, then power law: t_x = 7.322016, 5.549 e-folds down" in out
    assert "= 468.609 SGD steps" in out and "\n  exponential from 0.0085 to 5.995 (4.59 e-folds, rate 0.781)" in out
    status, out, _ = cli("transition", "quickstart", "--threshold", "efolds=5")
    assert status == 0 and "\nno exponential phase: power law" in out and "4.59 e-folds at the most (5 count)" in out
    status, out, _ = cli("transition", "logistic_pair")
    assert status == 0 and "\nno exponential phase: " in out and "0.27 e-folds at the most (1.5 count)" in out


@pytest.mark.slow
def test_transition_of_the_spectral_system_names_its_cut_off(cli):
    status, out, err = cli("transition", "spectral", "--json")
    found = record_of(out)["transition"]
    assert status == 0 and err == "" and not found["found"] and found["reason"].startswith("no exponential phase")
    # 2 eta lam_d t is of order one where the last of the 1024 modes is learned.
    assert 0.3 < 2 * 0.1 * 1024**-1.5 * found["finite_size_cutoff"] < 3


def test_transition_of_a_mean_field_system_has_a_reason_and_its_remarks(cli):
    status, out, err = cli("transition", "committee", "--threshold", "efolds=1", "--json")
    record = record_of(out)
    assert status == 0 and err == ""
    assert record["transition"]["found"] in (True, False) and record["transition"]["reason"]
    assert record["nodes"]["kind"] == "closed form" and record["coverage"]["inside"]


RUN = (*settings("dimension=40", "tokens=6"), "--t1", 4, "--seeds", 2, "--records", 9)


def test_compare_and_train_share_a_checkpoint_and_honour_their_options(cli, tmp_path):
    checkpoint = ("--checkpoint", tmp_path / "checkpoint.npz")
    given = (*RUN, *checkpoint, "--json")
    # What is asked for is what is used: tolerance and length of the phases. The defaults are those of `test_contract`.
    words = ("--tolerance", "loss=0.0001", "--threshold", "efolds=1", "--out", tmp_path / "compare")
    status, out, err = cli("compare", "logistic_pair", *given, *words, "--plot", tmp_path / "c.svg")
    compared = record_of(out)
    assert status == 0 and err == "" and compared["transition"]["exact"]["thresholds"]["efolds"] == 1
    assert compared["quantities"]["loss"]["tolerance"] == 0.0001
    assert compared["verdict"]["status"] in ("agrees", "differs", "undecided", "outside the theory")
    names = {"report.md", "comparison.png", "comparison.json", "theory.npz", "run.npz"}
    assert {path.name for path in (tmp_path / "compare").iterdir()} == names and (
        tmp_path / "c.svg"
    ).stat().st_size > 5000
    status, out, err = cli(
        "train", "logistic_pair", *given, "--out", tmp_path / "train", "--plot", tmp_path / "t.png", "--clock", "t"
    )
    record = record_of(out)
    assert status == 0 and err == "" and len(record["loss"]) == len(record["t"]) == len(record["error"]) == 9
    assert record["steps"][-1] == 4 * 40 and record["t"][-1] == 4 and Path(record["path"]).is_file()
    saved = Run.load(record["path"])
    np.testing.assert_allclose(compared["quantities"]["loss"]["measured"], saved.mean())
    np.testing.assert_allclose(record["loss"], saved.mean())
    assert (tmp_path / "t.png").stat().st_size > 5000
    # And times on the clock.
    status, out, _ = cli(
        "train", "logistic_pair", *RUN, *checkpoint, "--t1", 160, "--clock", "steps", "--out", tmp_path / "train"
    )
    rows = [line.split() for line in without_coverage(out)[1:-1]]
    assert status == 0 and rows[0][:3] == ["step", "loss", "+-"] and rows[-1][0] == "160" and len(rows) == 10
    # Another experiment must not go on from that checkpoint.
    status, out, err = cli(
        "train", "logistic_pair", *settings("learning_rate=0.1"), *given, "--out", tmp_path / "other"
    )
    assert status == 2 and out == "" and err.count("\n") == 1 and "checkpoint" in err


def test_a_theory_without_transitions_looks_for_them_when_asked(cli, tmp_path):
    given = (*settings("modes=16"), "--t1", 60, "--seeds", 2, "--records", 9, "--json", "--out", tmp_path)
    assert record_of(cli("compare", "spectral", *given)[1])["transition"] is None
    found = record_of(cli("compare", "spectral", *given, "--threshold", "efolds=1.25", "--tolerance", 0.2)[1])
    assert (
        found["transition"]["run"]["thresholds"]["efolds"] == 1.25 and found["quantities"]["loss"]["tolerance"] == 0.2
    )


def test_solve_prints_nodes_coverage_and_error_and_saves_and_draws(cli, tmp_path):
    status, out, err = cli(
        "solve", "transformer", *TINY, "--t1", 2, "--points", 12, "--save", tmp_path / "a.npz", "--plot", tmp_path / "a.png",
    )  # fmt: skip
    assert status == 0 and err == ""
    lines = out.splitlines()
    assert lines[0].startswith("transformer: one unit of t = 40 SGD steps") and lines[3].startswith("solved by tsit5")
    assert lines[1].startswith("expectations by 4 x 64 scrambled Sobol points in 12 dimensions")
    assert lines[2].startswith("outside the theory: 0.15 rows per dimension")  # 6 rows in 40 dimensions
    assert lines[4].split() == ["t", "loss", "p", "q", "error"] and len(lines) == 5 + 12
    assert np.shape(Trajectory.load(tmp_path / "a.npz").error) == (12,)
    assert (tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.slow
def test_solve_in_json_says_nodes_and_coverage(cli):
    words = ("mlp=1", "loss=cross_entropy", "labels=sampled", "causal=true", "correlation=0.5", "readout=per_token")
    status, out, err = cli(
        "solve", "transformer", *TINY, *settings(*words), "--t1", 40, "--clock", "steps", "--points", 6, "--json"
    )
    record = record_of(out)
    assert status == 0 and err == "" and record["time_unit"] == "SGD steps" and record["t"][-1] == 40
    # 2 tokens, 14 rows (q, k, unit in and out, 3 readouts; twice), and one normal number per position for its label
    assert record["nodes"] == {"kind": "sobol", "replicates": 4, "nodes": 64, "dimensions": 30}
    assert not record["coverage"]["inside"] and "rows per dimension" in record["coverage"]["reasons"][0]
    assert len(record["error"]) == 6 and min(record["error"]) > 0
    assert np.shape(record["observables"]["overlaps"]) == (6, 14, 14)
    assert record["loss"][-1] < record["loss"][0]


@pytest.mark.slow
def test_the_transformer_is_outside_its_theory_at_few_dimensions(cli, tmp_path):
    common = (*TINY, "--t1", 2, "--records", 6, "--seeds", 2, "--checkpoint", tmp_path / "c.npz", "--json")
    status, out, err = cli("train", "transformer", *common, "--out", tmp_path / "train")
    record = record_of(out)
    assert status == 0 and err == "" and len(record["t"]) == 6 and record["time_unit"] == "one unit of t = 40 SGD steps"
    saved = Run.load(record["path"])
    assert saved["loss"].shape == (2, 6) and (tmp_path / "c.npz").exists()
    status, out, err = cli("compare", "transformer", *common, "--out", tmp_path / "compare")
    record = record_of(out)
    assert status == 0 and err == "" and record["verdict"]["status"] == "outside the theory"  # 6 rows in 40 dimensions
    np.testing.assert_allclose(record["quantities"]["loss"]["measured"], saved.mean(), rtol=1e-12)
    assert {"nodes", "coverage"} <= set(record) and len(record["quantities"]["loss"]["ratio"]) == 6
    page = (tmp_path / "compare" / "report.md").read_text()
    assert "**Verdict: outside the theory.**" in page and "| step | t | theory |" in page


def test_solve_says_which_law_of_peaked_distributions_holds(cli, tmp_path):
    path, given = tmp_path / "peaked.npz", ("--set", "classes=3", "--points", 12, "--t1", 1e6, "--json")
    status, out, _ = cli("solve", "peaked", *given, "--save", path)
    record = record_of(out)
    assert status == 0 and record["system"] == "peaked"
    assert record["law"]["inside"] and record["law"]["loss_exponent"] == pytest.approx(1 / 3)
    assert record["exponent"][-1] == pytest.approx(1 / 3, abs=1e-3)
    np.testing.assert_allclose(Trajectory.load(path).loss, record["loss"])
    status, out, _ = cli("solve", "peaked", *given, "--set", "schedule=power:0.8")
    law = record_of(out)["law"]
    assert status == 0 and not law["inside"] and any("spread" in reason for reason in law["reasons"])


@pytest.mark.slow
def test_train_and_compare_peaked_in_words(cli, tmp_path):
    given = (*settings("classes=3", "dimension=60"), "--t1", 3, "--seeds", 2, "--records", 6)
    status, out, _ = cli("compare", "peaked", *given, "--out", tmp_path)
    assert status == 0 and "\noverlap: " in out and "\nlaw at t = 3" in out and (tmp_path / "report.md").is_file()


@pytest.mark.slow
def test_quickstart_writes_its_report_in_the_time_promised(cli, tmp_path):
    """The whole line with two seeds; the acceptance figures are those of `make quickstart`."""
    status, out, err = cli("quickstart", "--seeds", 2, "--out", tmp_path / "quickstart", "--json")
    record = record_of(out)
    assert status == 0 and err == ""
    assert record["quickstart"]["t_x_ode"] == pytest.approx(7.322016, abs=5e-7)
    assert record["quickstart"]["name_run"] == record["quickstart"]["name_ode"] == "exponential, then power law"
    assert record["quickstart"]["ode_against_formula"] < 1e-6
    assert record["verdict"]["status"] in ("agrees", "undecided")
