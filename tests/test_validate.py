"""Rows of the validity table as tests: the bounds that they must keep. Minutes each; run by `make validate`."""

from __future__ import annotations

import pytest

from benchmarks.validity import finite_context, spectrum, value_rows

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("tokens", [16, 32, 64])
def test_one_layer_runs_follow_the_corrected_ode(tokens: int) -> None:
    """At finite context the runs are significantly closer to the ODE with its 1/T terms."""
    assert finite_context(tokens)["z_closer"] > 3


def test_value_rows_follow_their_ode_within_five_percent() -> None:
    """The test loss of a network with value and output rows, over the run."""
    result = value_rows()
    assert result["fall"] > 8
    assert 0.95 < result["ratio"][0] and result["ratio"][1] < 1.05


def test_power_law_spectrum_to_a_million_steps() -> None:
    """Noise off: exponent 0.5, the clock formula, few steps, positive semi-definite overlaps."""
    result = spectrum(0.0)
    assert result["accepted"] <= 500
    assert abs(result["exponent_last_two_decades"] - 0.5) < 0.02
    low, high = result["loss_over_clock_formula_last_two_decades"]
    assert 0.97 < low and high < 1.03
    assert result["lowest_eigenvalue"] > -1e-12


def test_power_law_spectrum_with_noise_completes() -> None:
    """Noise on: the run ends, in few steps, with overlaps positive semi-definite."""
    result = spectrum(1.0)
    assert result["accepted"] <= 500 and result["lowest_eigenvalue"] > -1e-12
