"""The list of formula mutations is up to date, and its runner tells a killed mutation from one that survives."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.mutants import ROOT, Mutant, chosen, healthy_killers, judge, main, read_list, run

MUTANTS = read_list()
REMEDY = "mend its entry in benchmarks/mutants.toml (`make mutants` runs them)"


def test_the_list_covers_the_rooms() -> None:
    assert len(MUTANTS) >= 70
    assert not [name for name, count in Counter(m.name for m in MUTANTS).items() if count > 1]
    rooms = Counter(m.room for m in MUTANTS)
    assert set(rooms) >= {
        "analysis", "clock", "compare", "expectations", "generated", "logs", "networks", "plot", "solve", "symbolic",
        "systems", "training",
    }  # fmt: skip
    for m in MUTANTS:
        assert Path(m.file).parts[0] == "odescale" and m.room in m.file


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_an_entry_is_not_stale(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.before) == 1, f"`before` does not stand once in {mutant.file}: {REMEDY}"
    assert ast.dump(ast.parse(mutant.applied(text))) != ast.dump(ast.parse(text))
    for node in mutant.killer:
        file, name = node.split("::", 1)
        assert f"def {name.split('[')[0]}(" in (ROOT / file).read_text(), f"no test {node}: {REMEDY}"


def test_the_choice_is_by_name_room_or_file() -> None:
    one = MUTANTS[0]
    assert chosen(MUTANTS, [one.name]) == [one]
    assert chosen(MUTANTS, ()) == MUTANTS
    assert {m.room for m in chosen(MUTANTS, ["clock"])} == {"clock"}
    assert one in chosen(MUTANTS, [one.file])


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--only", "nothing-of-the-kind"])
    assert stop.value.code == 2 and "nothing-of-the-kind" in capsys.readouterr().err


def test_the_runner_tells_the_four_outcomes_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A package of one formula, a test that checks its value and one that does not."""
    package, tests = tmp_path / "package", tmp_path / "tests"
    package.mkdir()
    tests.mkdir()
    (package / "__init__.py").write_text("def area(a, b):\n    return a * b\n")
    (tests / "test_area.py").write_text(
        "import package\n\n\ndef test_value():\n    assert package.area(2, 3) == 6\n\n\ndef test_runs():\n    package.area(2, 3)\n"
        "\n\ndef test_fails():\n    assert False\n"
    )
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')

    def mutant(name: str, before: str, after: str, test: str) -> Mutant:
        return Mutant(name, "package", "package/__init__.py", before, after, (f"tests/test_area.py::{test}",))

    tried = [
        mutant("sum", "a * b", "a + b", "test_value"),
        mutant("unseen", "a * b", "a + b", "test_runs"),
        mutant("gone", "a / b", "a + b", "test_value"),
        mutant("a name error", "a * b", "a * c", "test_value"),
        mutant("always fails", "a * b", "a + b", "test_fails"),
    ]
    outcomes = run(tried, 2, root=tmp_path, copied=("package", "tests", "pyproject.toml"))
    assert [o.status for o in outcomes] == ["killed", "survived", "stale", "broken", "broken"]
    assert "NameError" in outcomes[3].reason and "without the mutation" in outcomes[4].reason
    assert (package / "__init__.py").read_text() == "def area(a, b):\n    return a * b\n"
    assert capsys.readouterr().out.count("\n") == 5


def test_one_unknown_killer_does_not_silence_the_others() -> None:
    """Of several tests of which one is unknown pytest runs none: they are asked one by one then."""

    class Copy:
        def run(self, nodes: list[str], *, stop: bool) -> tuple[int, dict[str, str], str]:
            known = [node for node in nodes if "nothing" not in node]
            return (0, dict.fromkeys(known, "passed"), "") if known == nodes else (4, {}, "no tests ran")

    one = Mutant("one", "", "", "", "", ("t.py::test_a", "t.py::test_nothing"))
    found = healthy_killers(Copy(), [one])  # type: ignore[arg-type]
    assert found["t.py::test_a"] == "" and "did not run" in found["t.py::test_nothing"]


def test_skipped_killers_are_no_survivors() -> None:
    assert judge(0, {"test": "skipped"}, "")[0] == "broken"
    assert judge(1, {"one": "passed", "two": "asserted"}, "")[0] == "killed"
    assert judge(2, {}, "a collection error")[0] == "broken"
