"""Every notebook runs from top to bottom, as a script at its small size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


# They compile for a minute or two each: `make validate` runs them.
RUNS = [pytest.param(path, marks=pytest.mark.slow) for path in NOTEBOOKS]


@pytest.mark.parametrize("notebook", RUNS, ids=lambda path: path.stem)
def test_runs(notebook: Path, tmp_path: Path) -> None:
    # Another working directory: a notebook may not rely on being started in the checkout, nor write into it.
    settings = {"ODESCALE_NOTEBOOK_SIZE": "small", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    # Nearly all of the time is compilation of programs that then run for milliseconds: compile them with less effort.
    settings["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(notebook)],
        cwd=tmp_path,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    assert ran.stdout.strip(), "a notebook shows something"
    assert not list(tmp_path.iterdir())
