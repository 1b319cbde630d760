"""`compare` of linear SGD and of a user's own derivation: runs made from the exact answer, without a term, of other experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odescale.compare.comparison import compare
from odescale.compare.rules.derived import RULES as OF_DERIVED
from odescale.compare.rules.spectral import RULES as OF_SPECTRAL
from odescale.errors import InputError
from odescale.files import plain
from odescale.run import Run
from odescale.solve.integrate import integrate
from odescale.solve.spectral.exact import exact_recursion, ode_distance
from odescale.systems.base import AbstractSystem
from odescale.systems.register import as_system
from odescale.systems.spectral import spectral

STEPS = np.unique(np.rint(np.geomspace(1, 300, 14)).astype(int))
OUTSIDE = f"{Path(__file__).with_name('phase_retrieval.py')}:phase_retrieval"
LINEAR = {"modes": 16, "learning_rate": 0.3}


def run_of(
    system: AbstractSystem, settings: dict[str, Any], step: np.ndarray, truth: np.ndarray, **changes: Any
) -> Run:
    """16 seeds around a curve with exactly 2 % of scatter, and the config of a real run."""
    noise = np.random.default_rng(0).standard_normal((16, step.size))
    noise = (noise - noise.mean(axis=0)) / noise.std(axis=0, ddof=1)
    config = plain({"subject": system.name} | settings | changes)
    t = step / float(system.clock.steps_per_unit)
    return Run(step, t, np.arange(16), {"loss": truth * (1 + 0.02 * noise)}, None, system.clock, config, {})


def linear(truth: np.ndarray | None = None, **changes: Any) -> Run:
    system = spectral(**LINEAR)
    truth = np.asarray(exact_recursion(system, STEPS)) if truth is None else truth
    return run_of(system, OF_SPECTRAL.same(system), STEPS, truth, **changes)


def test_linear_sgd_agrees_and_the_distance_of_the_ode_is_known():
    system = spectral(**LINEAR)
    loss = compare(system, linear()).loss
    assert loss.verdict.status == "agrees"
    np.testing.assert_allclose(loss.errors["seeds"], 0.02 / 4 * loss.ratio, rtol=1e-6)
    np.testing.assert_allclose(loss.neglected["time_step"], np.abs(ode_distance(system, STEPS)), rtol=1e-6)
    # The whole deviation of the exact answer is that of the ODE's time step.
    assert loss.max_deviation > 1e-3 and loss.max_z < 1.5
    assert loss.max_deviation < 1.1 * loss.allowance.max()


def test_linear_sgd_differs_from_a_flow_without_its_noise():
    quiet = integrate(spectral(**LINEAR, batch=1e9), ts=np.append(0.0, STEPS))
    found = compare(spectral(**LINEAR), linear(), theory=quiet)
    assert found.verdict.status == "differs" and found.loss.ratio.max() > 1.1


@pytest.mark.parametrize(
    ("changes", "argument"),
    [({"batch": 2.0}, "batch"), ({"noise": 0.5}, "noise"), ({"momentum": 0.5}, "momentum"),
     ({"eigenvalues": np.ones(16).tolist()}, "eigenvalues"), ({"subject": "attention"}, "run")],
)  # fmt: skip
def test_another_linear_experiment_is_refused(changes: dict[str, Any], argument: str):
    with pytest.raises(InputError) as error:
        compare(spectral(**LINEAR), linear(np.ones(STEPS.size), **changes))
    assert error.value.argument == argument


@pytest.fixture(scope="module")
def own():
    """(system, trajectory, run) of a derivation from outside the package, at a rate where its noise matters."""
    system = as_system(OUTSIDE, learning_rate=0.2)
    steps = np.rint(400 * np.geomspace(0.5, 40, 12)).astype(int)
    theory = integrate(system, ts=np.append(0.0, steps / 400))
    config = OF_DERIVED.same(system) | {"dimension": 400}
    return system, theory, run_of(system, config, steps, theory.loss[1:])


def test_a_derived_theory_agrees_with_its_run(own):
    system, theory, run = own
    loss = compare(system, run, theory=theory).loss
    assert loss.verdict.status == "agrees" and loss.tolerance == 0.05 and loss.max_deviation < 1e-9
    np.testing.assert_allclose(loss.neglected["finite_size"], (1 + np.abs(theory.exponent[1:])) / 400, rtol=1e-9)


def test_a_derived_theory_without_its_noise_differs(own):
    system, _, run = own
    quiet = integrate(as_system(OUTSIDE, learning_rate=0.2, noise=0.0), ts=np.append(0.0, run.t))
    assert compare(system, run, theory=quiet).verdict.status == "differs"


def test_another_derivation_or_start_is_refused(own):
    system, theory, run = own
    for changes, argument in (({"theory": "0" * 64}, "theory"), ({"students": 2}, "students")):
        other = Run(run.step, run.t, run.seeds, run.records, None, run.clock, run.config | changes, {})
        with pytest.raises(InputError) as error:
            compare(system, other, theory=theory)
        assert error.value.argument == argument
    with pytest.raises(InputError, match="initial_overlaps"):
        compare(as_system(OUTSIDE, learning_rate=0.2, alignment=0.3), run, theory=theory)
