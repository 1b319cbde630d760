"""The command line: its grammar, what it costs, one JSON object on stdout, one line on stderr, exit status 0 on success only."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import odescale
from odescale.cli.arguments import COMMANDS
from odescale.cli.derivation import shipped_derivations, shipped_text
from odescale.cli.output import KEYS
from odescale.cli.terminal import as_text, plain_formula
from odescale.systems.register import SYSTEMS

ROOT = Path(__file__).parents[1]


def record_of(text: str) -> dict:
    """The one JSON object of stdout, without NaN."""
    assert text.count("\n") == 1 and text.endswith("\n")
    record = json.loads(text, parse_constant=lambda token: pytest.fail(f"{token} is no JSON"))
    assert set(record) >= set(KEYS)
    return record


def program(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """The command as a program, and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "odescale.cli.main", *arguments], capture_output=True, text=True, cwd=ROOT
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.parametrize(
    "words", ["--help", "--version", "systems", "systems peaked --json", "compare --help", "derive peaked"]
)
def test_what_needs_no_numbers_is_there_at_once(words):
    """A tenth of a second and less; the import of JAX alone takes a whole one."""
    done, seconds = program(*words.split())
    assert done.returncode == 0 and done.stderr == "" and done.stdout
    assert seconds < 1.0


def test_help_of_every_command_imports_neither_jax_nor_numpy():
    lines = [
        "import sys", "from odescale.cli.main import main", "def call(*words):", "    try: main(words)",
        "    except SystemExit as stop: assert not stop.code", f"for name in {[*COMMANDS]}: call(name, '--help')",
        "call('systems'); call('systems', 'quickstart'); call('derive', 'frontier')",
        "assert not {'jax', 'numpy', 'sympy', 'matplotlib'} & {*sys.modules}",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for derivation in shipped_derivations():
        assert derivation in done.stdout


def test_as_a_program_it_needs_no_setting_of_jax_and_fails_with_status_two():
    bad, _ = program("solve", "logistic_pair", "--t1", "0")
    assert bad.returncode == 2 and bad.stdout == "" and bad.stderr.count("\n") == 1


def test_version(cli):
    assert cli("--version") == (0, f"odescale {odescale.__version__}\n", "")


def test_systems_lists_all_and_one_with_every_domain(cli):
    status, listed, _ = cli("systems")
    assert status == 0
    for name, entry in SYSTEMS.items():
        status, out, err = cli("systems", name)
        assert status == 0 and err == "" and out.startswith(f"{name}: {entry.description}")
        assert f"{name}: {entry.description}" in listed
        for parameter in entry.parameters:
            assert parameter.name in listed
            assert f"\n    {parameter.name} " in out and parameter.domain in out and parameter.meaning in out
    record = record_of(cli("systems", "--json")[1])["systems"]
    assert {name: len(entry["parameters"]) for name, entry in record.items()} == {
        name: len(entry.parameters) for name, entry in SYSTEMS.items()
    }
    one = record_of(cli("systems", "peaked", "--json")[1])
    assert one["system"] == "peaked" and one["parameters"]["classes"] == 10 and [*one["systems"]] == ["peaked"]


def test_a_system_of_a_file(cli):
    where = f"{Path(__file__).with_name('phase_retrieval.py')}:phase_retrieval"
    status, out, err = cli("systems", where)
    assert status == 0 and err == "" and "alignment" in out and "a number in (0, 0.7)" in out


def test_derive_is_readable_and_ships_its_markdown(cli):
    status, out, err = cli("derive", "attention")
    assert status == 0 and err == "" and out.startswith("Infinite-context softmax transformer\n====")
    assert "    dq_k/dt = (eta^2 lambda/B) V - eta lambda G q - eta H q" in out
    assert cli("derive", "attention", "--markdown")[1] == shipped_text("attention")
    assert record_of(cli("derive", "attention", "--json")[1])["derivation"] == shipped_text("attention")


@pytest.mark.parametrize("name", shipped_derivations())
def test_derivations_have_no_markup_left_and_nothing_of_their_words_lost(name):
    text = as_text(shipped_text(name))
    assert max(map(len, text.splitlines())) <= 100
    assert not {*"\\$`"} & {*text} and "**" not in text and "<!--" not in text
    plain = " ".join(text.split())
    for line in shipped_text(name).splitlines():
        if line and not line.startswith(("#", "|", "<", "$", "\\")) and not {*"$`*\\"} & {*line} and len(line) > 120:
            assert line in plain


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\frac{\eta^{2} s_{i} v_{ij}}{B N}", "eta^2 s_i v_ij/(B N)"),
        (r"\frac{a + 1}{2} b - \frac{1}{3}", "((a + 1)/2) b - 1/3"),
        (r"\frac{\partial}{\partial \theta_{1}} F_{1}{\left(\theta_{1},x \right)}", "(d/dtheta_1) F_1(theta_1,x)"),
        (r"\sqrt[3]{3} \sqrt{K - 1}\,\lambda^{-\alpha}", "3^(1/3) sqrt(K - 1) lambda^(-alpha)"),
        (r"\frac{d}{dt}\langle A_iA_j\rangle", "(d/dt)<A_i A_j>"),
        (r"A_{l+1}-A_l\ \text{(value = identity)}", "A_(l+1)-A_l (value = identity)"),
        (r"\operatorname{tr}\left(b C b^{T} \right) \le \infty", "tr(b C b^T) <= inf"),
    ],
)
def test_formulas_in_plain_letters(latex, text):
    assert plain_formula(latex) == text


def test_an_unknown_exception_is_one_line_with_please_report_and_debug_shows_it(cli, monkeypatch):
    def broken(options):
        raise TypeError("unhashable\ntype")

    monkeypatch.setattr("odescale.cli.systems.list_systems", broken)
    status, out, err = cli("systems", "--json")
    assert status == 1 and out == ""
    assert (
        err == "odescale: internal error: TypeError: unhashable type; please report it with the command and --debug\n"
    )
    for arguments in (("--debug", "systems"), ("systems", "--debug")):
        status, out, err = cli(*arguments)
        assert status == 1 and err.startswith("Traceback") and "in broken" in err and "please report" in err


def test_debug_shows_where_a_bad_value_was_refused(cli):
    status, _, err = cli("systems", "quickstrat", "--debug")
    assert status == 2 and err.startswith("Traceback") and err.splitlines()[-1].endswith("did you mean quickstart?")


def test_stopped_and_unread(cli, monkeypatch):
    def stop(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("odescale.cli.systems.list_systems", stop)
    assert cli("systems") == (130, "", "odescale: stopped\n")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        words = [sys.executable, "-m", "odescale.cli.main", "derive", "peaked"]
        done = subprocess.run(words, stdout=closed, stderr=subprocess.PIPE, cwd=ROOT)
    assert done.returncode == 1 and done.stderr == b""


QUICK, TINY = ("solve", "logistic_pair"), ("solve", "transformer", *(
    word for pair in ("depth=1", "tokens=2", "nodes=64", "dimension=40") for word in ("--set", pair)
))  # fmt: skip
RATE = ("--vary", "learning_rate=0.1:0.2:2")
BAD = {
    "unknown command": (("slove", "quickstart"), "invalid choice"),
    "no command": ((), "required"),
    "cut option": ((*QUICK, "--poi", "3"), "unrecognized arguments: --poi"),
    "option of another verb": ((*QUICK, "--seeds", "3"), "unrecognized arguments: --seeds"),
    "unknown system": (("solve", "quickstrat"), "did you mean quickstart"),
    "no file": (("train", "nowhere.py:build"), "system: expected a Python file"),
    "no builder": (("compare", "odescale.clock:build"), "system: expected a builder"),
    "unknown parameter": ((*QUICK, "--set", "learning_rat=1"), "did you mean learning_rate"),
    "out of domain": ((*QUICK, "--set", "learning_rate=-1"), "learning_rate: expected a positive"),
    "not a number": ((*QUICK, "--set", "learning_rate=fast"), "learning_rate: expected a positive"),
    "nan": ((*QUICK, "--set", "learning_rate=nan"), "learning_rate: expected a positive"),
    "infinite dimension": ((*QUICK, "--set", "dimension=inf"), "dimension: expected an integer"),
    "no value": ((*QUICK, "--set", "learning_rate"), "NAME=VALUE"),
    "twice": ((*QUICK, "--set", "batch=4", "--set", "batch=5"), "batch: expected one value"),
    "bad schedule": ((*QUICK, "--set", "schedule=cosine:0"), "schedule: expected"),
    "t1 zero": ((*QUICK, "--t1", "0"), "t1: expected a positive"),
    "t1 negative": ((*QUICK, "--t1=-5"), "t1: expected a positive"),
    "t1 no number": ((*QUICK, "--t1", "soon"), "expected a number"),
    "t1 nan": ((*QUICK, "--t1", "nan"), "t1: expected a positive"),
    "points": ((*QUICK, "--points", "1"), "points: expected a whole number"),
    "points no number": ((*QUICK, "--points", "many"), "expected a whole number"),
    "clock": ((*QUICK, "--clock", "epochs"), "--clock: expected t, steps or tau"),
    "tau beyond the schedule": ((*QUICK, "--set", "schedule=cosine:10:0", "--clock", "tau", "--t1", "5"), "tau: expected"),
    "solver": ((*QUICK, "--solver", "euler"), "solver: expected one of"),
    "accuracy": ((*QUICK, "--accuracy", "best"), "accuracy: expected one of"),
    "tolerance too small": ((*QUICK, "--rtol", "1e-17"), "rtol: expected at least"),
    "tolerance in float32": ((*QUICK, "--rtol", "1e-8", "--precision", "float32"), "rtol: expected at least"),
    "unstable": ((*QUICK, "--set", "learning_rate=100", "--set", "batch=1"), "outgrows the drift"),
    "no picture": ((*QUICK, "--plot", "picture.txt"), "--plot: expected a file ending in"),
    "transition in float32": (("transition", "logistic_pair", "--precision", "float32"), "float64 for a transition"),
    "transition depth": (("transition", "logistic_pair", "--threshold", "efolds=-1"), "thresholds.efolds: expected"),
    "context outside": (
        ("solve", "attention", "--set", "depth=1", "--set", "context=finite", "--set", "strength=1"), "2 C_kk C_qq < 1",
    ),
    "nothing varied": (("sweep", "logistic_pair"), "--vary"),
    "no range": (("sweep", "logistic_pair", "--vary", "learning_rate=0.1"), "--vary: expected NAME=LO:HI:N"),
    "no number of values": (("sweep", "logistic_pair", "--vary", "learning_rate=0.1:0.2:x"), "--vary: expected NAME=LO:HI:N"),
    "unknown spacing": (("sweep", "logistic_pair", "--vary", "learning_rate=0.1:0.2:3:lin"), "--vary: expected NAME=LO:HI:N"),
    "log of zero": (("sweep", "logistic_pair", "--vary", "noise=0:1:3:log"), "above 0 with log"),
    "varied twice": (("sweep", "logistic_pair", *RATE, *RATE), "learning_rate: expected one --vary of it"),
    "varied and set": (("sweep", "logistic_pair", *RATE, "--set", "learning_rate=0.1"),
                       "learning_rate: expected one --vary of it alone, got a --set"),
    "unequal": (("sweep", "logistic_pair", *RATE, "--vary", "noise=0:1:3"), "equally many values of each"),
    "unknown varied": (("sweep", "logistic_pair", "--vary", "learning_rat=0.1:0.2:2"), "did you mean learning_rate"),
    "varied out of domain": (("sweep", "logistic_pair", "--vary", "noise=0:2:3"), "noise: expected a number in [0, 1]"),
    "varied shape": (("sweep", "logistic_pair", "--vary", "dimension=20:40:2"),
                     "--vary: expected a number that logistic_pair keeps its shapes"),
    "clocks of members": (("sweep", "logistic_pair", *RATE, "--clock", "tau"), "--clock: expected t"),
    "steps of members": (
        ("sweep", "peaked", "--set", "classes=3", "--vary", "dimension=100:200:2", "--clock", "steps"), "--clock: expected t",
    ),
    "unknown derivation": (("derive", "attentoin"), "NAME: expected one of attention"),
    "infinite tokens cannot be trained": (("train", "logistic_pair", "--set", "tokens=inf"), "tokens: expected a whole number"),
    "no seeds": (("train", "logistic_pair", "--seeds", "0"), "expected a whole number >= 1"),
    "seeds of what is not random": (("train", "kernel", "--seeds", "2"), "seeds: expected"),
    "tolerance": (("compare", "committee", "--tolerance", "0"), "tolerance: expected a finite number > 0 and below 1"),
    "tolerance no number": (("compare", "spectral", "--tolerance", "loss=x"), "--tolerance: expected a number"),
    "two tolerances": (("compare", "spectral", "--tolerance", "0.1", "--tolerance", "0.2"), "--tolerance: expected one number"),
    "depth of a comparison": (("compare", "spectral", "--threshold", "efold=2"), "--threshold: expected one of"),
    "missing log": (("report", "no_such_file.csv"), "LOG: expected a CSV file"),
    "depth": (("solve", "transformer", "--set", "depth=0"), "depth: expected an integer from 1 to 8"),
    "rank": (("solve", "transformer", "--set", "rank=0"), "rank: expected an integer from 1 to 16"),
    "shared keys": (
        ("solve", "transformer", "--set", "heads=4", "--set", "key_value_heads=3"),
        "key_value_heads: expected a divisor of heads = 4",
    ),
    "rank at order 1/T": (("solve", "attention", "--set", "depth=1", "--set", "rank=2", "--set", "context=finite"), "context: "),
    "tokens": (("train", "transformer", "--set", "tokens=inf"), "tokens: expected an integer"),
    "word": (("solve", "transformer", "--set", "readout=first"), "readout: expected one of query"),
    "flag": (("solve", "transformer", "--set", "causal=maybe"), "causal: expected true or false"),
    "nodes": (("solve", "transformer", "--set", "nodes=1000"), "nodes: expected 0 (automatic) or a power of two"),
    "outputs": (("solve", "transformer", "--set", "loss=cross_entropy", "--set", "outputs=1"), "outputs: expected two or more"),
    "labels": (("solve", "transformer", "--set", "labels=hard"), "labels: expected soft with loss=square"),
    "correlation": (("solve", "transformer", "--set", "correlation=1"), "correlation: expected a number in (-1, 1)"),
    "closed": (("solve", "transformer", "--set", "closure=closed"), "for a closed form"),
    "both momenta": ((*TINY, "--set", "momentum=0.5", "--set", "friction=1"), "momentum: expected 0 with friction"),
    "perfect start": ((*TINY, "--set", "alignment=1"), "initial_overlaps: expected a student"),
    "whole batch": (("train", *TINY[1:], "--set", "batch=1.5"), "batch: expected a whole number"),
    "too many modes": (("train", *TINY[1:], "--set", "capacity=1.5"), "at most 20000 whole eigenvalues"),
    "units": (("solve", "committee", "--set", "units=0"), "units: expected an integer from 1 to 16"),
    "classes": (("solve", "peaked", "--set", "classes=1"), "classes: expected"),
    "temperature": (("solve", "peaked", "--set", "inverse_temperature=-3"), "inverse_temperature: expected"),
    "peaked loss": (("solve", "peaked", "--set", "loss=focal", "--set", "labels=soft"), "loss: expected"),
    "spectral rate": (("solve", "spectral", "--set", "learning_rate=3"), "learning_rate: expected"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_two(cli, case, tmp_path, monkeypatch):
    arguments, words = BAD[case]
    monkeypatch.chdir(tmp_path)
    status, out, err = cli(*arguments, *(("--json",) if arguments else ()))
    assert status == 2 and out == ""
    assert err.startswith("odescale: ") and err.count("\n") == 1 and words in err
    assert not list(tmp_path.iterdir())


def test_a_learning_rate_that_diverges_is_said_in_one_line(cli):
    status, out, err = cli(
        *TINY, "--set", "learning_rate=5", "--set", "batch=1", "--t1", 30, "--max-steps", 300, "--json"
    )
    assert status == 1 and out == "" and err.count("\n") == 1 and "stopped after t =" in err


@pytest.mark.parametrize("content", [b"", b"step,loss\n1,2\n", b"PK\x03\x04"])
def test_an_unreadable_checkpoint_is_one_line(cli, tmp_path, content):
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(content)
    small = ("--set", "tokens=16", "--t1", 4, "--seeds", 2, "--records", 12)
    status, out, err = cli("train", "logistic_pair", *small, "--checkpoint", path, "--out", tmp_path / "out")
    assert status == 2 and out == "" and err.count("\n") == 1 and "checkpoint" in err


@pytest.mark.parametrize(
    "text", ["", "epoch,loss\n1,2\n", "step,loss\n1,2\nx,3\n", "step,loss\n1,nan\n2,1\n", "step,loss\n1,2\n"]
)
def test_a_broken_log_is_one_line(cli, tmp_path, text):
    path = tmp_path / "log.csv"
    path.write_text(text, encoding="utf-8")
    status, out, err = cli("report", path, "--json")
    assert status == 2 and out == "" and err.count("\n") == 1 and "log.csv" in err


def test_an_unwritable_target_is_one_line(cli, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    status, out, err = cli("solve", "logistic_pair", "--save", tmp_path / "file" / "run.npz", "--json")
    assert status == 2 and out == "" and err.count("\n") == 1 and err.startswith("odescale: ")


def test_report_finds_the_transition_of_a_loss_curve(cli, tmp_path):
    path, step = tmp_path / "log.csv", np.unique(np.geomspace(1, 1e4, 120).astype(int))
    loss = np.exp(-step / 30) + 0.02 / (1 + step / 100)
    path.write_text(
        "step,loss\n" + "".join(f"{s},{x:.9g}\n" for s, x in zip(step, loss, strict=True)), encoding="utf-8"
    )
    status, out, err = cli("report", path, "--json", "--out", tmp_path / "json")
    record = record_of(out)
    assert status == 0 and err == ""
    (entry,) = record["logs"].values()
    assert entry["transition"]["estimator"] and entry["transition"]["found"] and entry["t_x_step"] > 30
    assert [row["phase"] for row in entry["phases"]] == ["exponential", "between", "power law"]
    assert record["t"][0] == 1 and record["time_unit"] == "SGD steps of the log"
    status, out, _ = cli("report", path, "--out", tmp_path / "words")
    assert status == 0 and "e-folds" in out and "column loss" in out
