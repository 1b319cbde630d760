"""`odescale watch`: a log that another process appends to, rotates and truncates; spikes beside noise that is none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from odescale import InputError, read_log
from odescale.cli.main import main
from odescale.laws import find_spikes
from odescale.logs.follow import Follower

STEPS = np.arange(10.0, 4010.0, 10.0)
PEAK = 6e-4
RATES = PEAK * np.where(STEPS <= 2000, np.minimum(1.0, STEPS / 200), np.where(STEPS <= 3000, 0.3, 0.05))
TAU = np.cumsum(RATES * 10)
# A step-down identifies the instant law: L0 + A tau^-a + B eta.
LOSSES = np.round(2.0 + 1.0 * TAU**-0.5 + 300 * RATES + 0.004 * np.random.default_rng(0).normal(size=STEPS.size), 5)
ROWS = [f"iter {s:.0f}: loss {x}, lr {r:.9g}\n" for s, x, r in zip(STEPS, LOSSES, RATES, strict=True)]

WRITER = """
import json, os, sys, time
path, rows = sys.argv[1], open(sys.argv[2]).read().splitlines(True)
stream = open(path, "a")
for place, row in enumerate(rows):
    stream.write(row[: len(row) // 2]); stream.flush(); time.sleep(.003)
    stream.write(row[len(row) // 2 :]); stream.flush()
    if place in (90, 250, 251):  # logrotate: renamed, a new file
        stream.close(); os.rename(path, f"{path}.{place}"); stream = open(path, "a")
    if place == 170:  # copytruncate, once everything has been read: what is cut before that is lost to everybody
        written = sum(map(len, rows[: place + 1]))
        while json.load(open(sys.argv[3]))["copied"] < written:
            time.sleep(.05)
        os.truncate(path, 0)
"""


COPIER = """
import sys, time
from odescale.logs.follow import Follower
follower = Follower(*sys.argv[1:])
while True:
    follower.poll(); time.sleep(.02)
"""


def test_a_log_that_another_process_appends_to_rotates_and_truncates(tmp_path: Path) -> None:
    log, rows = tmp_path / "run.log", tmp_path / "rows.txt"
    rows.write_text("".join(ROWS))
    log.touch()
    Follower(log, tmp_path / "out").poll()  # what was rotated away before the first look is nobody's to know
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(log), str(rows), str(tmp_path / "out" / "state.json")])
    killed = 0
    # The follower is killed wherever it happens to be, and another one goes on.
    while writer.poll() is None:
        process = subprocess.Popen([sys.executable, "-c", COPIER, str(log), str(tmp_path / "out")])
        time.sleep(1.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    assert writer.returncode == 0 and killed >= 2
    follower = Follower(log, tmp_path / "out")
    follower.poll()
    assert follower.copy.read_text() == "".join(ROWS)  # nothing lost, nothing twice, no half line
    assert any("rotated" in note for note in follower.notes) and any("truncated" in note for note in follower.notes)
    found = read_log(follower.copy)
    assert found.step.tolist() == STEPS.tolist() and found.loss.tolist() == LOSSES.tolist()


def test_the_final_forecast_is_right_and_the_page_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "run.log"
    log.write_text("".join(ROWS[:330]))
    out = tmp_path / "out"
    # The rest of the run at its last rate, which is what is assumed without a schedule.
    assert main(["watch", str(log), "--final", "4000", "--once", "--law", "instant", "--out", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["final"]["low"] <= np.mean(LOSSES[-20:]) <= record["final"]["high"]
    assert record["final"]["high"] - record["final"]["low"] < 0.1 and record["final"]["step"] == 4000
    assert record["spikes"] == [] and record["diverged_at"] is None and record["left"] is None
    page = (out / "index.html").read_text()
    assert "http-equiv='refresh'" in page and (out / "run.png").stat().st_size > 5000
    # The run goes on as forecast: nothing left. Then it does not.
    log.write_text("".join(ROWS))
    assert (
        main(
            [
                "watch",
                str(log),
                "--final",
                "4000",
                "--once",
                "--law",
                "instant",
                "--out",
                str(out),
                "--gate",
                "--limit",
                "9",
            ]
        )
        == 0
    )
    with log.open("a") as stream:
        stream.write("".join(f"iter {s}: loss {2.9 + (s - 4000) / 400}, lr 3e-5\n" for s in range(4010, 5000, 10)))
    assert main(["watch", str(log), "--final", "5000", "--once", "--law", "instant", "--out", str(out), "--gate"]) == 3


def test_gates_and_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "run.log"
    log.write_text("".join(ROWS))
    options = ["watch", str(log), "--once", "--law", "instant", "--final", "4000"]
    assert main([*options, "--gate", "--limit", "1.5", "--out", str(tmp_path / "a")]) == 4
    assert main([*options, "--limit", "1.5", "--out", str(tmp_path / "b")]) == 2
    assert main(["watch", str(tmp_path / "none.log"), "--out", str(tmp_path / "c")]) == 2
    assert main(["watch", str(tmp_path), "--out", str(tmp_path / "d")]) == 2
    other = tmp_path / "other.log"
    other.write_text("".join(ROWS))
    assert main(["watch", str(other), "--once", "--out", str(tmp_path / "a")]) == 2
    assert "of another log" in capsys.readouterr().err
    (tmp_path / "a" / "state.json").write_text("{")
    assert main([*options, "--out", str(tmp_path / "a")]) == 2


@pytest.mark.parametrize("word", ["nan", "NaN", "inf"])
@pytest.mark.parametrize("kind", ["printed", "csv", "jsonl"])
def test_a_loss_that_is_no_number_closes_the_gate(tmp_path: Path, word: str, kind: str) -> None:
    """The reader drops such rows; a gate that saw only the finite ones would pass a dead run."""
    shape = {"printed": ("", "iter {}: loss {}, lr {}\n"), "csv": ("step,loss,lr,grad\n", "{},{},{},1\n"),
             "jsonl": ("", '{{"step": {}, "loss": {}, "lr": {}}}\n')}[kind]  # fmt: skip
    word = "Infinity" if (kind, word) == ("jsonl", "inf") else "NaN" if kind == "jsonl" else word
    rows = [shape[1].format(f"{s:.0f}", x, r) for s, x, r in zip(STEPS, LOSSES, RATES, strict=True)]
    bad = [shape[1].format(s, word, 3e-5) for s in range(4010, 4060, 10)]
    log = tmp_path / f"run.{ {'printed': 'log'}.get(kind, kind) }"
    options = ["watch", str(log), "--once", "--gate", "--law", "instant"]
    log.write_text(shape[0] + "".join([*rows, *bad]))
    assert main([*options, "--out", str(tmp_path / "dead")]) == 3
    # One such row with finite ones after it is no divergence, and neither is an empty cell at the end.
    log.write_text(shape[0] + "".join([*rows[:-20], shape[1].format(f"{STEPS[-20]:.0f}", word, 3e-5), *rows[-19:]]))
    assert main([*options, "--out", str(tmp_path / "alive")]) == 0
    if kind == "csv":
        log.write_text(shape[0] + "".join([*rows, "4010,,3e-5,nan\n"]))
        assert main([*options, "--out", str(tmp_path / "empty")]) == 0


def test_a_line_is_not_cut_where_the_file_is_renamed(tmp_path: Path) -> None:
    """The writer keeps its stream through a rename: the half line is finished in the old file, beside an empty new one or none."""
    for made in (False, True):
        log = tmp_path / f"run{made:d}.log"
        writer = log.open("a")
        print(ROWS[0], end="", file=writer, flush=True)
        follower = Follower(log, tmp_path / f"out{made:d}")
        follower.poll()
        print(ROWS[1][:14], end="", file=writer, flush=True)
        log.rename(f"{log}.1")
        if made:
            log.touch()
        follower.poll()
        print(ROWS[1][14:], end="", file=writer, flush=True)
        follower.poll()
        writer.close()
        log.write_text(ROWS[2])
        follower.poll()
        assert follower.copy.read_text() == "".join(ROWS[:3])


def test_a_file_truncated_and_then_renamed_between_two_looks(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("".join(ROWS[:20]))
    follower = Follower(log, tmp_path / "out")
    follower.poll()
    os.truncate(log, 0)
    with log.open("a") as stream:
        stream.write("".join(ROWS[20:60]))
    log.rename(f"{log}.1")
    log.write_text("".join(ROWS[60:70]))
    follower.poll()
    assert follower.copy.read_text() == "".join(ROWS[:70])


def test_rotations_while_the_files_are_gone_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new file is rotated away after it was chosen and before it is opened: it is read where it then lies."""
    log = tmp_path / "run.log"
    log.write_text(ROWS[0])
    follower = Follower(log, tmp_path / "out")
    follower.poll()
    log.rename(f"{log}.1")
    log.write_text(ROWS[1])
    files = follower._files

    def rotated():
        for found in files():
            if found[0] == log:
                log.rename(f"{log}.2")
                log.write_text(ROWS[2])
            yield found

    monkeypatch.setattr(follower, "_files", rotated)
    follower.poll()
    monkeypatch.undo()
    follower.poll()
    assert follower.copy.read_text() == "".join(ROWS[:3])


def test_a_file_renamed_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "run.log"
    log.write_text(ROWS[0])
    follower = Follower(log, tmp_path / "out")
    follower.poll()
    files = follower._files

    def renamed():
        for found in files():
            log.rename(f"{log}.1")
            yield found

    with log.open("a") as stream:
        stream.write(ROWS[1])
    monkeypatch.setattr(follower, "_files", renamed)
    assert not follower.poll()
    monkeypatch.undo()
    log.write_text(ROWS[2])
    assert follower.poll() and follower.copy.read_text() == "".join(ROWS[:3])


def curve(seed: int, noise: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    step = np.arange(10.0, 10010.0, 10.0)
    law = 2.5 + 8 * step**-0.3
    size = step.size
    draws = {
        "gauss": lambda: 0.02 * rng.normal(size=size),
        "t5": lambda: 0.02 * rng.standard_t(5, size=size),
        "laplace": lambda: 0.02 * rng.laplace(size=size),
        "skew": lambda: 0.01 * (rng.gamma(4, size=size) - 4),
        "falling": lambda: 0.03 * (law - 2.4) * rng.normal(size=size),
    }
    return step, law + draws[noise]()


@pytest.mark.parametrize("noise", ["gauss", "t5", "laplace", "skew", "falling"])
def test_noise_is_no_spike_and_a_spike_is_one(noise: str) -> None:
    """At level .01 a log has a false spike in one of a hundred: more than 6 of 60 would be a wrong quantile (p < 1e-5 at .01)."""
    assert sum(bool(find_spikes(*curve(seed, noise)).spikes) for seed in range(60)) <= 6
    found = 0
    for seed in range(20):
        step, loss = curve(seed, noise)
        loss[600:604] += 4.0
        spikes = find_spikes(step, loss).spikes
        found += [(s.first_step, s.last_step, s.returned) for s in spikes] == [(6010.0, 6040.0, True)]
    assert found >= 15


@pytest.mark.parametrize("noise", ["gauss", "falling"])
@pytest.mark.parametrize("level", [0.5, 0.99])
def test_false_spikes_are_no_more_than_the_level_says_and_no_quarter_of_it(noise: str, level: float) -> None:
    """Over 200 logs: not above level * 200 by three standard errors, and not so careful that the level says nothing."""
    nominal = 200 * level
    many = sum(len(find_spikes(*curve(seed, noise), level=level).spikes) for seed in range(200))
    assert nominal / 4 < many < nominal + 3 * nominal**0.5


def test_cost_delay_and_no_return() -> None:
    step, loss = curve(1, "gauss")
    loss[600:604] += [1.0, 3.0, 2.0, 1.0]
    (spike,) = find_spikes(step, loss, tau=1e-3 * step).spikes
    assert abs(spike.cost - 7.0 * 0.01) < 0.002 and spike.returned is True
    assert abs(spike.delay) < 4 * spike.delay_error
    # Set back by 2000 steps: the curve afterwards is the one of 2000 steps earlier.
    law = 2.5 + 8 * np.where(step > 6000, step - 2000, step) ** -0.3
    late = law + 0.002 * np.random.default_rng(0).normal(size=step.size)
    late[600:604] += 1.0
    (spike,) = find_spikes(step, late).spikes
    assert spike.returned is False
    assert abs(spike.delay - 2000) < 0.1 * 2000  # to first order in the set-back: 5 % here


def test_a_bump_of_the_rate_is_no_spike_and_growth_is_divergence() -> None:
    step, loss = curve(2, "gauss")
    bump = loss + 0.3 * np.exp(-(((step - 6000) / 800) ** 2))
    assert find_spikes(step, bump).spikes == ()
    assert find_spikes(step, loss).diverged_at is None
    grown = loss + np.where(step > 8000, (step - 8000) / 400, 0.0)
    at = find_spikes(step, grown).diverged_at
    assert at is not None and 7800 < at < 8500
    grown[-5:] = np.nan
    assert find_spikes(step, grown).diverged_at == step[-5]
    with pytest.raises(InputError, match="loss"):
        find_spikes(step[:20], loss[:20])


@pytest.mark.parametrize("final", [True, False])
def test_a_loss_that_leaves_its_forecast_closes_the_gate(tmp_path: Path, final: bool) -> None:
    log, out = tmp_path / "run.log", tmp_path / "out"
    command = [
        "watch",
        str(log),
        "--once",
        "--law",
        "instant",
        "--gate",
        "--out",
        str(out),
        *(["--final", "4000"] if final else []),
    ]
    log.write_text("".join(ROWS[:330]))
    assert main(command) == 0
    log.write_text("".join(ROWS[:360]))
    assert main(command) == 0
    with log.open("a") as stream:  # better than forecast: no divergence
        stream.write(
            "".join(
                f"iter {s:.0f}: loss {x - 0.2}, lr {r:.9g}\n"
                for s, x, r in zip(STEPS[360:380], LOSSES[360:380], RATES[360:380], strict=True)
            )
        )
    assert main(command) == 5
