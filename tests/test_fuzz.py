"""Generated damage: readers of logs and the command line answer, or refuse in one line, in time.

`python -m benchmarks.fuzz` does the same with 10^4 inputs.
"""

from __future__ import annotations

import gzip
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import odescale
from benchmarks import fuzz, fuzz_inputs
from odescale import InputError, fit_law, frontier, laws, linear, read_logs, spectra
from odescale.analysis.phases.exponents import local_exponent, tail_exponent
from odescale.errors import OdescaleError
from odescale.laws import curve_from_rates
from odescale.logs import limits

COUNT = 120
HEAD = "step,loss\n"
LINES = "step 1 loss 4\nstep 2 loss 3\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    fuzz_inputs.prepare(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["read", "command"])
def test_a_seeded_sample_is_answered_or_refused(folder: Path, kind: str) -> None:
    real = fuzz_inputs.real_shapes(fuzz_inputs.data_folder())
    numbers = range(kind == "command", 2 * COUNT, 2)
    found = [fuzz.outcome(7, number, folder, real) for number in numbers]
    ended = Counter(one.ended for one in found)
    # Time is judged below, on inputs made to take it: a machine may be busy with something else.
    faults = [one for one in found if one.fault and one.ended != "too slow"]
    assert not faults, faults[0]
    assert ended["answered"] >= COUNT // 20 and ended["refused"] >= COUNT // 4, ended


def test_the_judge_finds_faults() -> None:
    assert fuzz._ended(["solve"], 1, "", "odescale: x\n") == "status 1"
    assert fuzz._ended(["solve"], 2, "", "odescale: x\nTraceback\n") == "not one line"
    assert fuzz._ended(["solve"], 2, "x", "odescale: x\n") == "refused with output"
    assert fuzz._ended(["solve", "--json"], 0, '{"t": NaN}', "") == "no valid JSON"
    assert fuzz._ended(["solve"], 0, "\x1b[31m", "") == "an escape code for the terminal"
    assert fuzz._ended(["solve", "--json"], 0, '{"t": 1}', "") == "answered"


# name of the case: (file name, content, words of the error; none: it is read)
HARD: dict[str, tuple[str, str | bytes, str]] = {
    "cell of 20 000 letters": ("a.csv", f"{HEAD}1,{'a' * 20_000}\n2,3\n", "numbers in column 'loss'"),
    "note of 20 000 letters": ("a.csv", f"step,loss,note\n1,2,{'a' * 20_000}\n2,3,b\n", ""),
    "printed line of letters": ("a.log", f"{LINES}step 3 loss 2 {'a' * 100_000}\n", ""),
    "printed line of blanks": ("a.log", f"{LINES}step 3 loss 2 a{' ' * 100_000}\n", ""),
    "printed line of digits": ("a.log", f"{LINES}step 3 loss 2 a {'1' * 100_000}x\n", ""),
    "printed line of near pairs": ("a.log", f"{LINES}step 3 loss 2 {'_ 1' * 15_000}\n", ""),
    "open printed tensor": ("a.csv", f"{HEAD}1,tensor({'a' * 100_000}\n2,3\n", "'tensor(aaa"),
    "cell beyond the reader's limit": ("a.csv", f"{HEAD}1,{'9' * 140_000}\n2,3\n", "cells of at most 131072 characters"),
    "quoted cell beyond it": ("a.csv", f'{HEAD}1,"{"9" * 140_000}"\n2,3\n', "cells of at most 131072 characters"),
    "name beyond it": ("a.csv", f"step,loss,{'x' * 140_000}\n1,2,3\n2,3,4\n", "cells of at most 131072 characters"),
    "JSON 990 deep": ("a.json", '{"a":' * 990 + "1" + "}" * 990, "nested at most 32 deep"),
    "JSON lists 60 000 deep": ("a.json", "[" * 60_000 + "]" * 60_000, "nested at most 32 deep"),
    "JSON line 990 deep": ("a.jsonl", ('{"a":' * 990 + "1" + "}" * 990 + "\n") * 2, "nested at most 32 deep"),
    "a column per line": (
        "a.jsonl", "".join(f'{{"step":{i},"loss":2.5,"k{i}":1}}\n' for i in range(6000)), "at most 2048 columns",
    ),
    "a table of empty cells": (
        "a.jsonl", "".join(f'{{"step":{i},"loss":2.5,"k{i % 2000}":1}}\n' for i in range(9000)), "one filled cell in ten",
    ),
    "a run per two rows": (
        "a.csv", "run,step,loss\n" + "".join(f"r{i // 2},{i % 2},2\n" for i in range(4000)), "at most 1000 runs",
    ),
    "steps that jump back 10 000 times": ("a.csv", HEAD + "".join(f"{i % 9},{2 + i % 7}\n" for i in range(90_000)), ""),
    "gzip bomb": ("a.csv.gz", gzip.compress(bytes(1 << 28), 9), f"at most {limits.MOST_BYTES} bytes unpacked"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARD)
def test_what_is_large_deep_or_long_is_read_or_refused_in_time(tmp_path: Path, name: str) -> None:
    file, content, words = HARD[name]
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    read_logs(_small(tmp_path))  # what is imported on first use
    began = time.process_time()
    try:
        read_logs(path)
        said = ""
    except InputError as error:
        said = str(error)
    assert time.process_time() - began < fuzz.LIMIT
    assert bool(said) == bool(words) and words in said and "\n" not in said


def _small(folder: Path) -> Path:
    path = folder / "small.csv"
    path.write_text(f"{HEAD}1,2\n2,1\n")
    return path


def test_the_limit_of_bytes_is_an_argument_and_counts_what_is_unpacked(tmp_path: Path) -> None:
    text = HEAD + "".join(f"{i},{2 + i % 3}\n" for i in range(1000))
    plain, packed = tmp_path / "a.csv", tmp_path / "b.csv.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    for path, words in (
        (plain, f"at most {len(text) - 1} bytes, got"),
        (packed, f"at most {len(text) - 1} bytes unpacked"),
    ):
        assert read_logs(path, max_bytes=len(text))[0].step.size == 1000
        with pytest.raises(InputError, match="raise max_bytes") as caught:
            read_logs(path, max_bytes=len(text) - 1)
        assert words in str(caught.value)
    for bad in (0, -1, 1.5, float("nan"), "x", 10**30):
        with pytest.raises(InputError, match="max_bytes"):
            read_logs(plain, max_bytes=bad)  # type: ignore[arg-type]


def test_printed_names_and_numbers_are_those_of_a_plain_search() -> None:
    """Against the definition, tried at every place: letters, one separator, a number that no word goes on from."""
    from odescale.logs.lines import pairs

    assert pairs("step:100/ 50000 loss: 3.25, lr 1e-3 12tok tok/s=3.5k, grad-norm=.5") == {
        "step": 100, "loss": 3.25, "lr": 1e-3, "grad-norm": 0.5,
    }  # fmt: skip
    found = pairs("INFO - step = 7  val loss : -inf, train_loss  nan x  +4 tokens=1,234,567 lr_1: 2 a-2")
    assert found.pop("train_loss") != found.get("train_loss")
    assert found == {"step": 7, "val loss": float("-inf"), "x": 4, "tokens": 1234567, "lr_1": 2}
    assert pairs("a1b: 2 _: 3 a:: 4 a 5. b 1.5.2x c 2e c2 7") == {"a1b": 2, "a": 5, "c2": 7}


def test_an_event_record_with_a_number_of_endless_bytes(tmp_path: Path) -> None:
    import struct

    from odescale.logs.events import masked_crc

    for record in (b"\x10" + b"\xff" * 5000, b"\x28\x05", b"\x2a\x02\x08\x01"):
        head = struct.pack("<Q", len(record))
        data = head + struct.pack("<I", masked_crc(head)) + record + struct.pack("<I", masked_crc(record))
        path = tmp_path / "events.out.tfevents.1"
        path.write_bytes(data)
        with pytest.raises(InputError, match="a TensorBoard event|scalars in the event file"):
            read_logs(path)


# names from files


NASTY = "a|b`c`<img src=x>*d* \x1b[31m[l](http://e)\u202e$\\frac$"


def test_names_from_files_have_no_meaning_on_terminal_and_pages(tmp_path: Path, cli) -> None:
    rows = [(i * 10, 2 + 6 / (1 + i) ** 0.4) for i in range(8)]
    path = tmp_path / "run.jsonl"
    path.write_text(
        "".join(json.dumps({"step": s, "loss": x, "run": run}) + "\n" for run in (NASTY, "plain") for s, x in rows)
    )
    status, out, err = cli("report", path, "--out", tmp_path / "page", "--title", f"# {NASTY}")
    assert status == 0 and err == ""
    assert "a|b`c`<img src=x>*d* [l](http://e)$" in out and "\x1b" not in out and "\u202e" not in out
    page = (tmp_path / "page" / "report.md").read_text()
    assert "\x1b" not in page and "<img" not in page and "\u202e" not in page
    safe = r"a\|b\`c\`&lt;img src=x&gt;\*d\* \[l\](http://e)\$\\frac\$"
    assert page.startswith(rf"# \# {safe}") and f"| {safe} | 8 |" in page
    table = [line for line in page.splitlines() if line.startswith("| ") and "| 8 |" in line]
    assert table and {line.replace(r"\|", "").count("|") for line in table} == {6}
    html = (tmp_path / "page" / "report.html").read_text()
    assert "<img src=x>" not in html and "\x1b" not in html and "&lt;img src=x&gt;" in html
    status, out, err = cli("report", path, "--json", "--out", tmp_path / "page")
    assert NASTY in json.loads(out)["names"]


def test_errors_show_no_escape_codes(tmp_path: Path, cli) -> None:
    for words in (["solve", "\x1b[2Jx"], ["report", "\x1b]0;t\x07no.csv"], ["\x1b[31m"], ["derive", "\x9b31mx"]):
        status, out, err = cli(*words)
        assert status == 2 and out == "" and err.count("\n") == 1
        assert not {"\x1b", "\x9b", "\x07"} & set(err)


def test_damage_is_seeded() -> None:
    first, second = (fuzz_inputs.log_file(random.Random("1 2")) for _ in range(2))
    assert first == second != fuzz_inputs.log_file(random.Random("1 3"))


# numbers

T = np.geomspace(1, 1e3, 60)
STEP = 50.0 * np.arange(1, 61)
RATE = np.where(STEP > 1500, 2e-4, 1e-3)
CURVE = curve_from_rates("run", STEP, 2 + 3 * np.cumsum(50 * RATE) ** -0.4 + 100 * RATE, RATE)
MODES = {"eigenvalues": np.array([1.0, 0.5, 0.2]), "excess": np.ones(3)}
BAD_NUMBERS = (
    float("nan"),
    float("inf"),
    float("-inf"),
    -1,
    0,
    1e308,
    5e-324,
    10**30,
    -(10**30),
    1.5,
    -1e-3,
    np.float32("nan"),
)
NUMBERS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "fit_power_floor": (lambda **k: laws.fit_power_floor(T, 2 + 5 * T**-0.5, **{"draws": 3, **k}), ("draws", "seed")),
    "local_exponent": (
        lambda at=5.0, **k: local_exponent(T, T**-0.5, at=[at], **k), ("at", "smoothing", "irreducible"),
    ),
    "tail_exponent": (lambda **k: tail_exponent(T, T**-0.5, **k), ("shift", "irreducible")),
    "fit_law": (lambda **k: fit_law(CURVE, law="instant", **{"draws": 2, **k}), ("draws", "seed")),
    "compare_laws": (
        lambda **k: laws.compare_laws(CURVE, laws=("power_tau",), validate=False, **{"draws": 0, **k}), ("draws", "memory"),
    ),
    "curve_from_rates": (lambda **k: curve_from_rates("run", STEP, STEP, RATE, **k), ("warmup", "parameters")),
    "risk_law": (
        lambda **k: frontier.risk_law((1,), (0.5,), (2,), **{"decay": 50, "rate": 0.8, "time_cost": 1, **k}),
        ("decay", "rate", "time_cost", "unit"),
    ),
    "compute_optimal": (lambda a=2.0, b=1.5: frontier.compute_optimal(a, b), ("a", "b")),
    "frontier_exponent": (
        lambda first=1.0, **k: frontier.frontier_exponent(T, T**-0.3, window=(first, 900.0), **{"draws": 9, **k}),
        ("first", "draws", "seed"),
    ),
    "power_law": (
        lambda **k: spectra.power_law(**{"exponent": 1.5, "modes": 20, **k}), ("exponent", "modes", "trace", "per_decade"),
    ),
    "listed": (lambda value: spectra.listed([value, 1.0]), ("value",)),
    "spectral": (
        lambda **k: odescale.spectral(**{"modes": 5, **k}),
        ("modes", "learning_rate", "batch", "noise", "floor", "per_decade", "spectrum_exponent", "risk_exponent"),
    ),
    "exact_recursion": (lambda **k: linear.exact_recursion(odescale.spectral(**MODES), np.arange(3), **k), ("momentum",)),
    "solve_spectral": (
        lambda **k: linear.solve_spectral(odescale.spectral(**MODES), np.array([0.0, 2.0]), **k), ("rtol", "max_steps"),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "argument"), [(name, one) for name, (_, words) in NUMBERS.items() for one in words])
def test_a_bad_number_is_an_answer_without_nan_or_an_error_that_names_it(name: str, argument: str) -> None:
    """No error or warning of numpy, scipy or JAX: an `OdescaleError` on one line, or numbers."""
    call, refused = NUMBERS[name][0], 0
    for bad in BAD_NUMBERS:
        try:
            found = call(**{argument: bad})
        except OdescaleError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            kept = (found.log_loss, found.exponent) if name == "local_exponent" else ()
            assert all(np.isfinite(values).all() for values in kept), bad
    assert refused >= 2  # nan among them, unless the argument cannot be a number at all
    with pytest.raises(OdescaleError):
        call(**{argument: float("nan")})


@pytest.mark.parametrize("law", ["two_phase", "relaxing", "multi_power"])
@pytest.mark.filterwarnings("error")
def test_laws_fit_a_clean_step_down_log(law: str) -> None:
    """Terms of a law vanish to less than any number at the end of a searched range: no error of scipy, and the fit is right."""
    step = 10.0 * np.arange(300)
    rate = np.where(np.arange(300) > 200, 1e-4, 1e-3)
    curve = curve_from_rates("run", step, 2 + 6 / (1 + np.arange(300)) ** 0.4, rate).between(150, np.inf)
    fit = fit_law(curve, law=law, draws=3)
    assert np.isfinite(fit.vector).all() and np.isfinite(fit.rms) and fit.rms < 0.02
    assert np.isfinite(fit_law(CURVE.between(100, np.inf), law=law, draws=0).rms)


def test_a_report_of_a_clean_step_down_log_is_written(folder: Path, cli) -> None:
    status, _, err = cli("report", folder / "good.csv", "--out", folder / "page")
    assert status == 0 and err == "" and "two_phase" in (folder / "page" / "report.md").read_text()
