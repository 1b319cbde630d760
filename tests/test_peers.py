"""The comparison with other programs: tolerances are matched by errors, peers that fail are named, the table says both errors."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.__main__ import main
from benchmarks.peers import Case, Side, measure, table


class Clock:
    """Seconds that only go by in a call."""

    def __init__(self) -> None:
        self.now = 0.0

    def side(self, name: str, seconds: float, error: float, **more) -> Side:
        """A program whose error is `error` times the tolerance, the first time ten times as slow."""
        calls: list[float] = []

        def call(rtol: float) -> np.ndarray:
            self.now += seconds * (10 if not calls else 1)
            calls.append(rtol)
            return np.array([1.0, 0.5]) * error * rtol

        return Side(name, call, clock=lambda: self.now, **more)


def broken(rtol: float) -> np.ndarray:
    raise RuntimeError("no such\nvalue")


def test_peers_run_at_the_tolerance_that_gives_them_the_same_error() -> None:
    clock = Clock()
    sides = [
        clock.side("own", 2.0, 1.0),
        clock.side("sloppy", 6.0, 50.0),
        clock.side("exact", 3.0, 0.01, share=1),
        clock.side("fixed", 1.0, 7.0, level=None),
        Side("broken", broken),
    ]
    found = measure(Case("a title", 1e-6, 2, np.abs, "of a number", sides, ["absent does not import"]))
    rows = {row["side"]: row for row in found["rows"]}
    # at most twice the error of 1e-6: 50 rtol <= 2e-6 and .01 rtol <= 2e-6, in steps of 3
    assert [rows[name]["rtol"] for name in ("own", "sloppy", "exact", "fixed")] == [1e-6, 3e-8, 1e-4, 1e-6]
    assert (rows["own"]["cold"], rows["own"]["warm"], rows["own"]["ratio"]) == pytest.approx((20.0, 1.0, 1.0))
    assert (rows["sloppy"]["warm"], rows["sloppy"]["ratio"]) == pytest.approx((3.0, 3.0))
    assert rows["exact"]["warm"] == pytest.approx(3.0)  # it solves one member of two
    assert (rows["sloppy"]["error"], rows["sloppy"]["middle"]) == pytest.approx((1.5e-6, 1.125e-6))
    assert found["missing"] == ["absent does not import", "broken failed (RuntimeError: no such value)"]


def test_the_table_has_both_errors_and_a_line_for_every_peer_left_out() -> None:
    clock = Clock()
    case = Case(
        "two members",
        1e-6,
        2,
        np.abs,
        "of a number",
        [clock.side("own", 2.0, 1.0), clock.side("peer", 0.5, 1.0)],
        ["x left out"],
    )
    page = table({"committee": measure(case), "kernel": {"failed": "no memory | left"}})
    assert "| committee | own | 1e-06 | 20.00 s | 1 s (1 s to 1 s) | 1 | 1.0e-06 | 7.5e-07 |" in page
    assert "|  | peer | 1e-06 | 5.00 s | 250 ms (250 ms to 250 ms) | 0.25 | 1.0e-06 | 7.5e-07 |" in page
    assert "| kernel | failed: no memory / left |" in page
    assert "- `committee`: x left out" in page and "two members; warm a member, 5 turns. Error: of a number." in page


def test_without_odescale_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(RuntimeError):
        measure(Case("", 1e-6, 1, np.abs, "", [Side("own", broken)], []))


def test_the_command_runs_every_case_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def run_case(name, device, size, limit=None, module="", more=()):
        asked.append((name, device, size, module, list(more)))
        return measure(Case(name, 1e-6, 1, np.abs, "of a number", [Clock().side("own", 1.0, 1.0)], []), int(more[0]))

    monkeypatch.setattr("benchmarks.__main__.run_case", run_case)
    path = tmp_path / "new" / "peers.md"
    words = [
        "--peers",
        "--size",
        "small",
        "--repeats",
        "6",
        "--output",
        str(path),
        "--tangents-python",
        "p",
        "--without",
        "heyoka",
    ]
    assert main(words) == 0
    assert [name for name, *_ in asked] == list(peers.CASES)
    assert asked[0][1:] == ("cpu", "small", "benchmarks.peers", ["6", "p", "heyoka"])
    assert path.read_text() == capsys.readouterr().out and "6 turns" in path.read_text()


@pytest.mark.slow
def test_odescale_and_scipy_solve_the_same_problem(tmp_path: Path) -> None:
    path = tmp_path / "peers.md"
    assert (
        main(
            [
                "--peers",
                "--only",
                "spectral",
                "committee",
                "--size",
                "small",
                "--without",
                "heyoka",
                "diffrax",
                "--output",
                str(path),
            ]
        )
        == 0
    )
    page = path.read_text()
    assert "scipy LSODA" in page and "heyoka left out" in page
    errors = [float(row.split("|")[-3]) for row in page.splitlines() if re.match(r"\| .*\d\.\de-\d\d \|", row)]
    assert len(errors) == 7 and max(errors) < 1e-4
