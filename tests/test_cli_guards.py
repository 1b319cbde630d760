"""What a command must not break on: a package that does not import, a step cap, a sweep of what is computed anew each time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from odescale.systems import register
from odescale.systems.register import SYSTEMS, find_system, systems

SMALL = ("--set", "width=8", "--set", "depth=1", "--set", "samples=4", "--set", "test_samples=0", "--set", "tokens=2")


@pytest.fixture
def broken_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An entry point whose module raises, one whose module ends the process, and one that registers."""
    (tmp_path / "broken_theory.py").write_text("raise RuntimeError('no GPU\\nhere \\x1b[31m')\n")
    (tmp_path / "ending_theory.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "sound_theory.py").write_text(
        "import odescale\n\n@odescale.register('sound', t1=3.0, description='of a sound package')\n"
        "def sound(x: float = 1.0): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("broken", "ending", "sound")
    points = [EntryPoint(name, f"{name}_theory", register.GROUP) for name in names]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points if group == register.GROUP else [])
    monkeypatch.setattr(register, "_loaded", set())
    monkeypatch.setattr(register, "_failed", {})
    yield
    for table in (SYSTEMS, register.HOOKS):
        table.pop("sound", None)


@pytest.mark.usefixtures("broken_package")
def test_a_package_that_does_not_import_is_listed_and_left_out(cli) -> None:
    assert "sound" in systems() and "quickstart" in systems() and "broken" not in systems()
    status, out, err = cli("systems")
    assert status == 0 and err == "" and "sound: of a sound package" in out and "\x1b" not in out
    assert "broken: left out, its package does not import: broken_theory: RuntimeError: no GPU here" in out
    assert "ending: left out, its package does not import: ending_theory: SystemExit: 3" in out
    status, out, err = cli("systems", "--json")
    assert set(json.loads(out)["failed"]) == {"broken", "ending"}
    status, out, err = cli("solve", "broken")
    assert status == 2 and out == "" and err.count("\n") == 1 and "the package of broken to import" in err
    assert find_system("sound").t1 == 3.0


def test_a_builder_from_outside_that_fails_is_described_all_the_same(cli, tmp_path: Path) -> None:
    path = tmp_path / "theory.py"
    path.write_text("def build(x: float = 1.0):\n    raise RuntimeError('no data\\nhere')\n")
    status, out, err = cli("systems", f"{path}:build")
    assert (
        status == 0 and err == "" and "unknown, its builder fails (RuntimeError: no data here)" in out and "x " in out
    )


def test_a_solve_that_hits_its_cap_names_an_option_that_exists(cli) -> None:
    # Not the stiff solver after it, whose program takes long to make.
    line = ("solve", "logistic_pair", "--t1", "30", "--points", "20", "--solver", "tsit5")
    status, out, err = cli(*line, "--max-steps", "5")
    assert status == 1 and "raise max_steps (--max-steps of solve and sweep)" in err and err.count("\n") == 1
    assert cli(*line, "--max-steps", "5000")[0] == 0
    vary = ("sweep", "logistic_pair", "--t1", "30", "--points", "20", "--vary", "learning_rate=0.1:0.2:2")
    status, out, err = cli(*vary, "--max-steps", "5")
    assert status == 1 and "--max-steps" in out and "2 of 2 members did not finish" in err


def test_a_sweep_of_the_kernel_solves_one_kernel_at_each_rate(cli) -> None:
    line = ("kernel", "--t1", "20", "--points", "9", *SMALL, "--json")
    status, out, err = cli("sweep", *line, "--vary", "learning_rate=0.01:0.02:2")
    assert status == 0, err
    found = json.loads(out)
    assert found["members"] == {"learning_rate": [0.01, 0.02]} and found["codes"] == [0, 0]
    for rate, loss in zip((0.01, 0.02), found["loss"], strict=True):
        alone = json.loads(cli("solve", *line, "--set", f"learning_rate={rate}")[1])
        assert np.allclose(loss, alone["loss"], rtol=1e-6)
    assert found["loss"][0][-1] > 1.01 * found["loss"][1][-1]


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        ("scale=1:2:2", "a number that kernel keeps its shapes and tables under: learning_rate, got scale; solve once"),
        ("width=8:16:2", "learning_rate, got width"),
        ("learning_rate=0:1:3", "values of learning_rate above 0"),
    ],
)
def test_a_sweep_that_would_need_a_kernel_for_each_value_is_refused_before_one_is_made(
    cli, monkeypatch: pytest.MonkeyPatch, vary: str, words: str
) -> None:
    monkeypatch.setattr("odescale.cli.verbs.as_system", lambda *_, **__: pytest.fail("built"))
    status, out, err = cli("sweep", "kernel", "--vary", vary)
    assert status == 2 and out == "" and words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ("solve", "--solver", "euler"), ("solve", "--accuracy", "slow"), ("solve", "--precision", "float16"),
        ("solve", "--rtol", "nan"), ("solve", "--points", "1"), ("solve", "--t1", "nan"),
        ("transition", "--threshold", "efolds=nan"), ("compare", "--tolerance", "x"), ("compare", "--tolerance", "nan"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_before_a_system_is_built(
    cli, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr("odescale.cli.verbs.as_system", lambda *_, **__: pytest.fail("built"))
    verb, *rest = options
    status, out, err = cli(verb, "transformer", *rest)
    assert status == 2 and out == "" and err.count("\n") == 1
