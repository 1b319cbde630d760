"""Rows of the validity table as tests: the bounds that they must keep, minutes each (`make validate`); and its page.

The rows of the mean-field engine: tests/test_mean_field_against_sgd.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.validity import PAGE, ROWS, finite_context, page, spectrum, value_rows
from benchmarks.validity_mean_field import CASES
from odescale import attention, integrate
from odescale.networks import build_architecture
from odescale.spectra import power_law, source_overlaps
from odescale.systems.initial import teacher_student_overlaps


def test_a_page_without_results_keeps_every_line() -> None:
    """Results are not in the repository: what a partial run has not computed stays as it is."""
    before = PAGE.read_text(encoding="utf-8")
    assert page({}, before) == before


def test_a_result_replaces_its_own_line_alone() -> None:
    before = PAGE.read_text(encoding="utf-8").splitlines()
    names = [line.split("`")[1] for line in before if line.startswith("| `")]
    expected = [*ROWS, *(f"{name} without {term}" for name, case in CASES.items() for term in case.without)]
    assert sorted(names) == sorted(expected)
    result = {
        "parameters": {"depth": 7, "tokens": 32, "dimension": 300}, "seeds": 8, "fall": 54.9, "uncorrected": [1.0, 1.5],
        "corrected": [0.9, 1.0], "stderr": 0.015, "z_closer": 10.2,
    }  # fmt: skip
    after = page({"context_32": result}, "\n".join(before)).splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 1 and changed[0][1].startswith("| `context_32` | 7 | 32 |")


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [16, 32, 64])
def test_one_layer_runs_follow_the_corrected_ode(tokens: int) -> None:
    """At finite context the runs are significantly closer to the ODE with its 1/T terms."""
    assert finite_context(tokens)["z_closer"] > 3


@pytest.mark.slow
def test_value_rows_follow_their_ode_within_five_percent() -> None:
    """The test loss of a network with value and output rows, over the run."""
    result = value_rows()
    assert result["fall"] > 8
    assert 0.95 < result["ratio"][0] and result["ratio"][1] < 1.05


@pytest.mark.slow
def test_power_law_spectrum_to_a_million_steps() -> None:
    """Noise off: exponent 0.5, the clock formula, few steps, positive semi-definite overlaps."""
    result = spectrum(0.0)
    assert result["accepted"] <= 500
    assert abs(result["exponent_last_two_decades"] - 0.5) < 0.02
    low, high = result["loss_over_clock_formula_last_two_decades"]
    assert 0.97 < low and high < 1.03
    assert result["lowest_eigenvalue"] > -1e-12


@pytest.mark.slow
def test_bins_and_cut_off_of_the_spectrum_do_not_show() -> None:
    """Twice as many bins per decade, and ten times as many modes, move the loss by less than 0.1 % up to 1e6 steps."""
    rows = build_architecture(2)
    covariance = np.asarray(teacher_student_overlaps(rows, strength=0.5, alignment=0.3, scale=1.0)[0])
    times = np.concatenate([[0.0], np.geomspace(1e2, 1e6, 9)])
    losses = []
    for modes, per_decade in ((1e8, 20), (1e8, 40), (1e9, 20)):
        spectrum = power_law(1.5, modes, per_decade=per_decade)
        start = source_overlaps(spectrum, covariance, source=0.5, capacity=1.5)
        system = attention(spectrum=spectrum, initial_overlaps=start, noise=0.0, learning_rate=0.1)
        losses.append(integrate(system, ts=times, rtol=3e-4).loss)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-3)


@pytest.mark.slow
def test_power_law_spectrum_with_noise_completes() -> None:
    """Noise on: the run ends, in few steps, with overlaps positive semi-definite."""
    result = spectrum(1.0)
    assert result["accepted"] <= 500 and result["lowest_eigenvalue"] > -1e-12
