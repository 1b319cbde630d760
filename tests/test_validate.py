"""Slow validation with real training: what `make validate` adds to `make test`. Each row takes minutes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.validity import finite_context, spectrum, value_rows
from odescale.cli.main import main
from odescale.compare.comparison import compare
from odescale.solve.integrate import integrate
from odescale.systems.catalog import quickstart
from odescale.training.of_system import train_system

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


@pytest.fixture(scope="module")
def noisy_run():
    """A real run at a learning rate where the SGD noise matters: the noise-free theory is far below it in the drop."""
    system = quickstart(learning_rate=0.8, tokens=64)
    times = np.geomspace(0.2, 6.0, 16) / 1.6
    return system, train_system(system, times[-1], seeds=3, record_times=times, progress=False, test_sequences=1024)


def test_theory_without_its_noise_differs_from_the_run(noisy_run) -> None:
    """Negative test: the comparison must notice that the noise term is missing."""
    system, run = noisy_run
    silent = quickstart(learning_rate=0.8, tokens=64, noise=0.0)
    theory = integrate(silent, ts=np.concatenate([[0.0], run.t]))
    broken = compare(system, run, theory=theory, min_depth=2, exact=False, tolerance=0.2)
    whole = compare(system, run, min_depth=2, exact=False, tolerance=0.2)
    assert broken.verdict.status == "differs", broken.verdict
    assert whole.verdict.status == "agrees", whole.verdict


def test_theory_with_frozen_overlaps_differs_from_the_run(noisy_run) -> None:
    """Negative test: a theory whose overlaps never move is told apart."""
    system, run = noisy_run
    moving = integrate(system, ts=np.concatenate([[0.0], run.t]))
    frozen = type(moving)(
        **{
            name: getattr(moving, name)
            for name in ("t", "exponent", "index", "valid", "code", "error", "clock", "meta")
        },
        state=np.broadcast_to(moving.state[0], moving.state.shape),
        loss=np.full_like(moving.loss, moving.loss[0]),
        observables={name: np.broadcast_to(value[0], value.shape) for name, value in moving.observables.items()},
    )
    assert compare(system, run, theory=frozen, min_depth=2, exact=False).verdict.status == "differs"


def test_quickstart_with_four_seeds(tmp_path, capsys) -> None:
    """The acceptance run: four seeds of the real transformer against the ODE at the run's context."""
    assert main(["quickstart", "--seeds", "4", "--out", str(tmp_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    figures = record["quickstart"]
    assert abs(figures["t_x_formula_S"] - 2.148782) < 5e-7
    assert abs(figures["t_x_ode_S"] - 2.153729) < 5e-7
    assert figures["ode_against_formula"] < 1e-6
    assert figures["fall"] > 100
    assert abs(figures["tail"]["exponent"] - 2) < 0.1
    assert record["transition"]["agrees"]
    assert record["verdict"]["status"] == "agrees"
