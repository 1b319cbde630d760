"""`odescale frontier`: the worked example from the command line, its picture, spectra, presets, one-line errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from odescale import InputError, OutsideTheoryError
from odescale.analysis.frontier.compute import fixed_size_risk
from odescale.frontier import compute_frontier, risk_law, yang_v1

EXAMPLE = (
    "--term", "width:1:.5:2:100", "--term", "data:1:.5:1:1000", "--decay", "50", "--rate", ".8", "--time-cost", "1",
)  # fmt: skip


@pytest.fixture
def run(cli):
    """`odescale frontier`."""
    return lambda *arguments: cli("frontier", *arguments)


def refuse(token):
    raise AssertionError(f"{token} is no JSON")


def test_the_worked_example(run, tmp_path):
    picture = tmp_path / "frontier.png"
    status, out, err = run(*EXAMPLE, "--compute", "1e4:1e12:9", "--json", "--plot", picture)
    record = json.loads(out, parse_constant=refuse)
    assert status == 0 and err == "" and out.count("\n") == 1
    assert record["critical"]["compute"] == pytest.approx(1.23659e8, rel=5e-6)
    assert record["critical"]["time"] == pytest.approx(12.36587, rel=5e-7) and record["S"] == 6
    assert record["critical"]["releases"][0][0] == "width" and "SGD step" in record["time_unit"]
    found = record["frontier"]
    # 1e4 buys t = 0.001 at the floors, no better than none; at 1e12 both sizes are free. R and C are those of the law.
    assert found["valid"] == [False, *[True] * 8] and found["risk"][0] is None and record["loss"][0] is None
    assert found["held"] == {"width": [True] * 5 + [False] * 4, "data": [True] * 5 + [False] * 4, "time": [False] * 9}
    m, n, t = found["sizes"]["width"][-1], found["sizes"]["data"][-1], found["time"][-1]
    assert m**2 * n * t == pytest.approx(1e12, rel=1e-10)
    assert m**-0.5 + n**-0.5 + 50 * np.exp(-0.8 * t) == pytest.approx(found["risk"][-1], rel=1e-10)
    assert found["exponent"][-1] == pytest.approx(1 / (6 + 1 / (0.8 * t)), rel=1e-9)
    assert picture.stat().st_size > 20_000


def test_the_table_says_what_is_held_and_without_computes_c_star_alone(run):
    status, out, _ = run(*EXAMPLE, "--compute", "1e4:1e12:9")
    rows = out.splitlines()
    assert status == 0 and "C* = 1.236587e+08 at t* = 12.36587: width is released" in rows[1]
    assert "no optimum" in rows[3] and rows[4].endswith("width, data") and rows[-1].endswith("  -")
    assert len(rows) == 3 + 9
    status, out, _ = run(*EXAMPLE)
    assert status == 0 and out.count("\n") == 2 and "C* = 1.236587e+08" in out
    # Another floor is another C*: the numbers above come from the options.
    assert "C* = 1.236587e+08" not in run(*EXAMPLE[:1], "width:1:.5:2:200", *EXAMPLE[2:])[1]


@pytest.mark.parametrize(
    ("options", "exponent", "reason"),
    [(("--preset", "yang_v1"), 1 / 6, "no time"), (("--preset", "yang_v3", "--unit", 6), 1 / 7, "no exponential"),
     (("--term", "width:2:.4:1", "--term", "time:3:.8:1"), 1 / 3.75, "no exponential")],
)  # fmt: skip
def test_power_laws(run, options, exponent, reason):
    status, out, _ = run(*options, "--compute", "1e6:1e9", "--json")
    record = json.loads(out, parse_constant=refuse)
    assert status == 0 and len(record["loss"]) == 13 and not record["critical"]["found"]
    assert reason in record["critical"]["reason"]
    slope = -np.diff(np.log(record["loss"])) / np.diff(np.log(record["frontier"]["compute"]))
    np.testing.assert_allclose(slope, exponent, rtol=1e-9)
    np.testing.assert_allclose(record["exponent"], exponent, rtol=1e-9)


def test_a_spectrum_has_a_phase(run, tmp_path):
    picture = tmp_path / "phases.png"
    status, out, _ = run("--spectrum", "2,1.5", "--json", "--plot", picture)
    record = json.loads(out, parse_constant=refuse)
    assert status == 0 and record["phase"]["phase"] == "Ia" and record["exponent"] == pytest.approx(0.4)
    assert picture.stat().st_size > 20_000
    for spectrum, phase in (("3,2.5", "Ia"), ("4,2.5", "II"), ("4,1.5", "III")):
        assert run("--spectrum", spectrum)[1].startswith(f"phase {phase} ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "one of --preset, --term, --spectrum"),
        (("--preset", "yang_v1", "--spectrum", "2,1.5"), "--preset and --spectrum"),
        (("--preset", "yang_v2"), "yang_v1 or yang_v3"),
        (("--preset", "yang_v1", "--rate", "1"), "--rate"),
        (("--term", "width:1:.5"), "NAME:A:ALPHA:Q[:FLOOR]"),
        (("--term", "width:1:x:2"), "NAME:A:ALPHA:Q[:FLOOR]"),
        (("--term", "width:1:-.5:2"), "exponents"),
        (("--term", "w:1:.5:2", "--term", "w:1:.5:1"), "two of w"),
        (("--term", "w:1:.5:2", "--decay", "50"), "--rate"),
        (("--term", "w:1:.5:2", "--term", "time:1:1:1", "--decay", "50"), "--decay"),
        (("--preset", "yang_v1", "--compute", "1e9:1e6"), "LO:HI[:N]"),
        (("--preset", "yang_v1", "--compute", "1e6"), "LO:HI[:N]"),
        (("--preset", "yang_v1", "--plot", "law.png"), "--compute"),
        (("--preset", "yang_v1", "--compute", "1e6:1e9", "--plot", "law.txt"), "--plot"),
        (("--spectrum", "2"), "A,B"),
        (("--spectrum", "2,.5"), "b > 1"),
        (("--spectrum", "2,1.5", "--compute", "1e6:1e9"), "--compute"),
    ],
)
def test_bad_input_is_one_line(run, options, words):
    status, out, err = run(*options)
    assert status == 2 and out == "" and err.count("\n") == 1 and words in err


def test_fixed_sizes_touch_the_frontier_and_never_pass_it():
    law = risk_law((1, 1), (0.5, 0.5), (2, 1), decay=50, rate=0.8, time_cost=1, floors=(100, 1000))
    C = np.geomspace(2e7, 1e12, 400)  # as many as a picture has: compiled once
    found = compute_frontier(law, C)
    for i in (50, 300):
        ratio = np.asarray(fixed_size_risk(law, found.sizes[i], C) / found.risk)
        assert ratio[i] == pytest.approx(1, rel=1e-12) and ratio.min() > 1 - 1e-12 and ratio[-1] > 1.2
    with pytest.raises(OutsideTheoryError, match="time that costs"):
        fixed_size_risk(yang_v1(), (10.0, 10.0), C)
    with pytest.raises(InputError, match="sizes"):
        fixed_size_risk(law, (10.0,), C)
