"""Verbs x systems x options: each is honoured or refused by name, none is accepted and dropped; and the pages' commands parse."""

from __future__ import annotations

import argparse
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from odescale import Thresholds, sweep
from odescale.cli.arguments import COMMANDS, build_parser
from odescale.cli.main import main
from odescale.errors import InputError
from odescale.systems.register import SYSTEMS, as_system

ROOT = Path(__file__).parents[1]
OUTSIDE = f"{ROOT / 'tests' / 'phase_retrieval.py'}:phase_retrieval"
NAMES = (*(name for name in SYSTEMS if name != "phase_retrieval"), OUTSIDE)
KNOBS = {"rollout": "context", "drafter": "drift"}
"""What is varied of systems that no SGD trains."""


def varied(text: str, name: str) -> str:
    return text.replace("learning_rate", KNOBS.get(name, "learning_rate"))


def needed_by(verb: str, name: str) -> tuple[str, ...]:
    return ("--vary", varied("learning_rate=0.01:0.02:2", name)) if verb == "sweep" else ()


# Option -> (a value outside its domain, a good one, the argument of the verb that it becomes and its value there).
TABLE: dict[str, tuple[str | None, str | None, tuple[str, Any] | None]] = {
    "--set": ("no_such_parameter=1", None, None),
    "--t1": ("-1", "0.75", ("t1", 0.75)),
    "--clock": ("epochs", None, None),
    "--points": ("1", "7", ("points", 7)),
    "--rtol": ("0", "1e-4", ("rtol", 1e-4)),
    "--solver": ("euler", "kvaerno5", ("solver", "kvaerno5")),
    "--max-steps": ("0", "77", ("max_steps", 77)),
    "--precision": ("float16", "float32", ("precision", "float32")),
    "--accuracy": ("best", "check", ("accuracy", "check")),
    "--threshold": ("efolds=0", "efolds=1.75", ("thresholds", Thresholds(efolds=1.75))),
    "--vary": ("learning_rate=0.1:0.2", "learning_rate=0.01:0.02:2", ("values", [0.01, 0.02])),
    "--executor": ("threads", None, None),
    "--address": ("tcp://127.0.0.1:1", None, None),
    "--seeds": ("0", "3", ("seeds", 3)),
    "--records": ("1", "9", ("records", 9)),
    "--checkpoint": (None, "c.npz", ("checkpoint", "c.npz")),
    "--tolerance": ("1", "0.25", ("tolerance", 0.25)),
    "--plot": ("a.txt", None, None),
    "--save": (None, None, None),
    "--out": (None, None, None),
}
"""What is None here is of the files that a command writes, and of its clock: tests/test_cli_verbs.py."""


def options_of(command: str) -> list[str]:
    """Every option of a command beside those that all of them have."""
    (parsers,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    names = [action.option_strings[-1] for action in parsers.choices[command]._actions if action.option_strings]
    return [name for name in names if name not in ("--help", "--json", "--debug", "--no-cache")]


OPTIONS = {name: options_of(name) for name in COMMANDS}
VERBS = [name for name in COMMANDS if "--clock" in OPTIONS[name]]
PAIRS = [(verb, name) for verb in VERBS for name in NAMES]


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[Any, str, str]:
    capsys.readouterr()
    try:
        status: Any = main([str(word) for word in words])
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


@cache
def logistic_pair() -> Any:
    return as_system("logistic_pair")


@pytest.fixture
def one_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The entry of the register is that of the name; one system, built once, stands for all that they build."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("odescale.cli.verbs.as_system", lambda *_, **__: logistic_pair())
    monkeypatch.setattr(
        "odescale.cli.sweep.sweep", lambda builder, t1, values, **how: sweep(logistic_pair(), t1, values, **how)
    )


def test_the_table_has_every_option() -> None:
    assert set(VERBS) == {"solve", "sweep", "transition", "train", "compare"}
    assert {option for verb in VERBS for option in OPTIONS[verb]} == set(TABLE)


@pytest.mark.parametrize(("verb", "name"), PAIRS)
def test_a_value_outside_its_domain_is_refused_by_name(verb, name, one_system, tmp_path, capsys) -> None:
    needed = needed_by(verb, name)
    for option in OPTIONS[verb]:
        bad = TABLE[option][0]
        if bad is not None:
            status, out, err = call(
                capsys, verb, name, *(needed if option != "--vary" else ()), option, varied(bad, name)
            )
            assert status == 2 and out == "" and err.count("\n") == 1, (option, err)
            known = "no_such_parameter" if option == "--set" else option.removeprefix("--")
            assert known in err or known.replace("-", "_") in err, (option, err)
    status, out, err = call(capsys, verb, name, *needed, "--no-such-option", "1")
    assert status == 2 and "--no-such-option" in err
    assert not list(tmp_path.iterdir())


class Reached(InputError):
    """The verb of the library was called."""

    def __init__(self) -> None:
        super().__init__("verb", expected="nothing more", got="reached", remedy="stop")


RUN = object()
PLACES = {
    "solve": "integrate",
    "transition": "find_transition",
    "sweep": "sweep",
    "train": "train",
    "compare": "compare",
}


@pytest.mark.parametrize(("verb", "name"), PAIRS)
def test_a_good_value_reaches_the_verb(verb, name, one_system, monkeypatch, capsys) -> None:
    """The verb of the library is replaced by one that notes its arguments."""
    reached: dict[str, Any] = {}

    def note(system: Any, *positions: Any, **named: Any) -> Any:
        training = RUN not in positions
        reached.update(zip(("t1", "values"), positions, strict=False) if training else ())
        reached.update(named)
        if verb == "compare" and training:
            return RUN
        raise Reached

    monkeypatch.setattr(f"odescale.cli.{verb}.{PLACES[verb]}", note)
    if verb == "compare":
        monkeypatch.setattr("odescale.cli.train.train", note)
    for option in OPTIONS[verb]:
        _, good, wanted = TABLE[option]
        # A kernel is built once, and swept in the unit of its own field: tests/test_cli_guards.py.
        if wanted is None or (name == "kernel" and option == "--vary"):
            continue
        reached.clear()
        status, _, err = call(
            capsys, verb, name, *(needed_by(verb, name) if option != "--vary" else ()), option, varied(good, name)
        )
        assert status == 2 and "nothing more" in err, (option, err)
        found = reached[wanted[0]]
        assert (list(found[varied("learning_rate", name)]) if option == "--vary" else found) == wanted[1], option


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))])
def test_commands_of_the_pages_parse(page) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    for command in re.findall(r"`odescale ([^`]+)`", text):
        words = shlex.split(command)
        if words[0] in COMMANDS and (len(words) > 1 or words[0] == "systems"):
            assert build_parser().parse_args(words).command == words[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_system_says_what_one_unit_of_t_is(name, capsys) -> None:
    status, out, _ = call(capsys, "systems", name)
    unit = SYSTEMS[name].unit if name in SYSTEMS else "400 SGD steps"  # from outside: that of its clock
    assert status == 0 and unit and f"one unit of t = {unit}\n" in out
