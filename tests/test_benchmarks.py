"""The benchmarks run and write their table; no time is tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES, main
from benchmarks.cases import CASES


def test_every_case_has_a_name() -> None:
    assert tuple(CASES) == NAMES


@pytest.mark.slow
def test_writes_a_table_with_cold_and_warm_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # the timings are thrown away
    assert main(["--only", "single", "--size", "small", "--folder", str(tmp_path)]) == 0
    page = (tmp_path / "benchmarks.md").read_text()
    assert page == capsys.readouterr().out
    assert "| cold | cold, CPU | warm |" in page
    assert re.search(r"\| single \| `attention`, 2 layers[^|]*(\| [\d.]+ m?s ){3}\|", page)


def test_without_the_device_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")
    assert main(["--device", "gpu", "--only", "single", "--size", "small"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1 and "JAX finds no gpu here" in said.err
