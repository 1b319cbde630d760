"""Integration: closed forms, error estimates, one compilation per shape, the ladder, masks, gradients, saved files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odescale import (
    CheckpointError,
    InputError,
    PrecisionError,
    SolveError,
    Trajectory,
    attention,
    integrate,
    logistic_pair,
)
from odescale.cache.programs import made
from odescale.generated.attention import logistic_pair_loss
from odescale.networks import Architecture, FieldNetwork
from odescale.solve.codes import Code
from odescale.solve.integrate import output_times, solve_arrays
from odescale.spectra import listed, source_overlaps

S_PER_T = 0.2 * 2.0  # learning_rate sqrt(readout_scale) of the quickstart system


def linear(**given):
    """One row against one row: L = exp(-(2 eta - noise eta^2/B) t) L(0). Compiles fast, for what is not about physics."""
    rows = Architecture(("r", "r*"), (True, False), FieldNetwork((), (0,)), FieldNetwork((), (1,)), pairs=((0, 1),))
    return attention(architecture=rows, **({"learning_rate": 0.5} | given))


def rate(eta: float, batch: float = 4.0, noise: float = 1.0) -> float:
    return 2 * eta - noise * eta**2 / batch


@pytest.fixture(scope="module")
def silent() -> Trajectory:
    return integrate(logistic_pair(noise=0.0), 30.0, rtol=1e-11, accuracy="check")


@pytest.fixture(scope="module")
def deep() -> Trajectory:
    return integrate(attention(noise=0.0), 40.0)


def test_quickstart_without_noise_is_its_closed_form(silent):
    exact = np.asarray(logistic_pair_loss(jnp.asarray(silent.t * S_PER_T), 1.0, 0.05, 0.3))
    np.testing.assert_allclose(silent.loss, exact, rtol=1e-9)
    assert silent.loss[0] == pytest.approx(0.49625, rel=1e-12)
    assert silent.loss[-1] == pytest.approx(6.6924e-4, rel=1e-4)
    assert silent.meta["solver"] == "tsit5" and silent.meta["ladder"][0]["accepted"] > 100
    assert silent.code == Code.OK and silent.valid.all()


def test_local_exponents_are_the_derivatives_of_the_closed_form(silent):
    def log_loss(u):
        return jnp.log(logistic_pair_loss(jnp.exp(u) * S_PER_T, 1.0, 0.05, 0.3))

    u = jnp.log(jnp.asarray(silent.t[1:]))
    p = -jax.vmap(jax.grad(log_loss))(u)
    q = jax.vmap(jax.grad(jax.grad(log_loss)))(u) / -p
    np.testing.assert_allclose(silent.exponent[1:], np.asarray(p), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(silent.index[1:], np.asarray(q), rtol=1e-5, atol=1e-5)
    assert silent.exponent[0] == 0.0 and silent.index[0] == 1.0


def test_error_estimate_bounds_the_true_error_within_a_factor():
    loose = integrate(logistic_pair(noise=0.0), 30.0, rtol=1e-6)
    checked = integrate(logistic_pair(noise=0.0), 30.0, rtol=1e-6, accuracy="check")
    exact = np.asarray(logistic_pair_loss(jnp.asarray(loose.t * S_PER_T), 1.0, 0.05, 0.3))
    true = np.abs(loose.loss / exact - 1)
    assert loose.error is None and checked.error is not None
    # the estimate is the error of the solve at rtol; what is returned is the solve at rtol/100
    assert np.max(checked.error) == pytest.approx(np.max(true), rel=0.2)
    assert np.max(np.abs(checked.loss / exact - 1)) < 0.2 * np.max(true)


def test_the_loss_alone_leaves_out_what_is_derived_along_the_flow():
    ts = np.concatenate([[0.0], np.geomspace(0.05, 3.0, 199)])
    full, alone = (integrate(linear(), ts=ts, exponents=flag) for flag in (True, False))
    np.testing.assert_array_equal(alone.state, full.state)
    np.testing.assert_allclose(alone.loss, full.loss, rtol=1e-14)
    # slopes of the exponential on the output times: p = rate t (1 + h^2/6), q = 1, h the spacing in log t
    assert "differences" in alone.meta["exponents"] and "exact" in full.meta["exponents"]
    h = np.log(ts[2] / ts[1])
    np.testing.assert_allclose(alone.exponent[2:-1], rate(0.5) * ts[2:-1], rtol=0.2 * h**2)
    np.testing.assert_allclose(alone.index[3:-2], 1.0, atol=h**2)
    assert alone.exponent[0] == 0.0 and alone.index[0] == 1.0


def test_the_loss_alone_asks_for_no_derivative(monkeypatch):
    def refused(*given):
        raise AssertionError("derivatives along the flow")

    monkeypatch.setattr("odescale.solve.integrate.local_exponents", refused)
    system, numbers = linear(), [jnp.asarray(x) for x in (1e-8, 1e-12)]

    def solve(exponents):
        times = jnp.linspace(0.0, 3.0, 5)
        return jax.eval_shape(
            lambda y: solve_arrays(system, y, times, *numbers, "tsit5", CAP, exponents=exponents)["loss"],
            system.initial_state(),
        )

    assert solve(False).shape == (5,)
    with pytest.raises(AssertionError, match="along the flow"):
        solve(True)


def test_slopes_never_reach_beyond_the_time_reached():
    trajectory = integrate(
        linear(), 20.0, max_steps=CAP, rtol=1e-11, solver="tsit5", on_failure="mask", exponents=False
    )
    reached = int(trajectory.valid.sum())
    assert 10 < reached < trajectory.t.size
    h = np.log(trajectory.t[2] / trajectory.t[1])
    np.testing.assert_allclose(
        trajectory.exponent[2 : reached - 1], rate(0.5) * trajectory.t[2 : reached - 1], rtol=0.2 * h**2
    )
    assert np.isnan(trajectory.exponent[reached - 1 :]).all() and np.isnan(trajectory.index[reached - 2 :]).all()


def test_noise_moves_the_loss_by_eta_squared_over_batch(silent):
    # the run of the theory page: noise raises the loss in the drop by up to some 30 %
    noisy = integrate(logistic_pair(), 30.0)
    ratio = noisy.loss / silent.loss
    assert 1.05 < ratio.max() < 1.6 and ratio.min() > 0.99


def test_given_times_and_a_start_of_ones_own():
    system = linear()
    ts = np.concatenate([[0.0], np.linspace(0.5, 4.0, 199)])
    whole = integrate(system, ts=ts)
    np.testing.assert_array_equal(whole.t, ts)
    np.testing.assert_allclose(whole.loss, whole.loss[0] * np.exp(-rate(0.5) * ts), rtol=1e-7)
    # without its start, t0 is put in front
    np.testing.assert_array_equal(integrate(system, ts=ts[1:]).t, ts)
    # go on from the middle: the same curve
    later = np.linspace(ts[100], 4.0, 200)
    rest = integrate(system, ts=later, t0=later[0], start=whole.state[100])
    np.testing.assert_allclose(rest.loss[-1], whole.loss[-1], rtol=1e-7)


def test_neither_tolerances_nor_times_nor_parameters_compile_again():
    integrate(linear(), 4.0)
    before = dict(made)
    for eta, t1, rtol in ((0.5, 4.0, 1e-6), (0.3, 7.0, 1e-9), (0.7, 2.0, None)):
        trajectory = integrate(linear(learning_rate=eta), t1, rtol=rtol, atol=1e-13)
        assert trajectory.loss[-1] / trajectory.loss[0] == pytest.approx(np.exp(-rate(eta) * t1), rel=1e-5)
    integrate(linear(learning_rate=0.1, batch=2.0, noise=0.0, weight_decay=0.1, tokens=9.0), 4.0)
    assert dict(made) == before


CAP = 14  # steps; one cap for all tests that run out of them, since another one compiles anew


def test_failure_names_the_ladder_the_time_the_steps_and_the_remedy():
    with pytest.raises(SolveError) as error:
        integrate(linear(), 20.0, max_steps=CAP, rtol=1e-11)
    text = str(error.value)
    assert text.startswith("tsit5 then kvaerno5 stopped after t = ") and " of 20 " in text
    assert "step cap reached" in text and "raise max_steps" in text and "\n" not in text


def test_the_implicit_rung_finishes_where_the_explicit_one_ran_out_of_steps():
    # loose tolerances: the explicit step is limited by stability, the implicit one is not
    trajectory = integrate(linear(), 40.0, max_steps=CAP, rtol=1e-2, atol=1e-2)
    first, second = trajectory.meta["ladder"]
    assert (first["solver"], first["code"]) == ("tsit5", Code.MAX_STEPS)
    assert (second["solver"], second["code"]) in (("kvaerno5", Code.OK), ("kvaerno5", Code.LOSS_NOT_POSITIVE))
    assert trajectory.meta["solver"] == "kvaerno5"


def test_what_was_not_reached_is_masked_and_said():
    trajectory = integrate(linear(), 20.0, max_steps=CAP, rtol=1e-11, solver="tsit5", on_failure="mask")
    assert trajectory.code == Code.MAX_STEPS
    reached = int(trajectory.valid.sum())
    assert 0 < reached < trajectory.t.size and not trajectory.valid[reached:].any()
    for values in (trajectory.loss, trajectory.exponent, trajectory.index, trajectory.observables["learning_speed"]):
        assert np.isfinite(values[:reached]).all() and np.isnan(values[reached:]).all()
    assert np.isnan(trajectory.overlaps[reached:]).all()
    exact = trajectory.loss[0] * np.exp(-rate(0.5) * trajectory.t[:reached])
    np.testing.assert_allclose(trajectory.loss[:reached], exact, rtol=1e-6)


def test_a_loss_that_fell_to_its_rounding_is_masked_from_there():
    trajectory = integrate(linear(), 100.0)
    assert trajectory.code == Code.LOSS_NOT_POSITIVE
    kept = trajectory.valid
    assert not kept[-1] and (np.diff(kept.astype(int)) <= 0).all()
    assert np.isnan(trajectory.loss[~kept]).all() and np.isnan(trajectory.exponent[~kept]).all()
    # what is left is right: 14 decades of an exponential, its exponent too
    assert trajectory.loss[kept][-1] < 1e-12 * trajectory.loss[0]
    np.testing.assert_allclose(trajectory.exponent[kept], rate(0.5) * trajectory.t[kept], rtol=0.02, atol=1e-9)


def test_single_precision_is_single_and_agrees():
    double = integrate(linear(), 4.0)
    single = integrate(linear(), 4.0, precision="float32")
    for values in (single.t, single.state, single.loss, single.exponent, single.overlaps):
        assert values.dtype == np.float32
    np.testing.assert_allclose(single.loss, double.loss, rtol=1e-4)
    np.testing.assert_allclose(single.overlaps, double.overlaps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"t1": 0.0}, "t1: expected a finite time > 0"),
        ({"t1": -3.0}, "t1: expected a finite time > 0"),
        ({"t1": np.inf}, "t1: expected a finite time > 0"),
        ({"t1": np.nan}, "t1: expected a finite time > 0"),
        ({"t1": "soon"}, "t1: expected a finite time > 0"),
        ({}, "t1: expected an end time"),
        ({"ts": [0.0, 2.0, 1.0]}, "ts: expected"),
        ({"ts": [0.0, np.nan]}, "ts: expected"),
        ({"ts": [-1.0, 1.0]}, "ts: expected"),
        ({"ts": [1.0, 2.0], "t0": 1.5}, "ts: expected"),
        ({"ts": [1.0, 2.0], "t1": 3.0}, "ts: expected"),
        ({"t1": 1.0, "points": 1}, "points: expected a whole number"),
        ({"t1": 1.0, "points": 2.5}, "points: expected a whole number"),
        ({"t1": 1.0, "rtol": 0.0}, "rtol: expected a positive"),
        ({"t1": 1.0, "rtol": 1e-17}, "rtol: expected at least 10 eps"),
        ({"t1": 1.0, "rtol": 1e-8, "precision": "float32"}, "rtol: expected at least 10 eps"),
        ({"t1": 1.0, "atol": -1.0}, "atol: expected"),
        ({"t1": 1.0, "solver": "euler"}, "solver: expected one of"),
        ({"t1": 1.0, "accuracy": "best"}, "accuracy: expected one of"),
        ({"t1": 1.0, "precision": "half"}, "precision: expected"),
        ({"t1": 1.0, "on_failure": "ignore"}, "on_failure: expected one of"),
        ({"t1": 1.0, "max_steps": 0}, "max_steps: expected"),
        ({"t1": 1.0, "start": np.zeros((2, 2))}, "start: expected shape"),
        ({"t1": 1.0, "start": np.full((1, 2, 2), np.nan)}, "start: expected finite"),
    ],
)
def test_bad_requests_are_refused_before_compilation(given, words):
    # The system's own check computes its loss at the start; which test of a process traces that first is chance. What a bad request
    # must not reach is the solve.
    solves = "odescale.solve.integrate:solve_arrays"
    before = made.get(solves, 0)
    with pytest.raises(InputError) as error:
        integrate(linear(), **given)
    assert str(error.value).startswith(words) and "\n" not in str(error.value)
    assert isinstance(error.value, PrecisionError) == ("10 eps" in words)
    assert made.get(solves, 0) == before


def test_a_request_that_is_not_refused_compiles_one_solve():
    """With 77 output times, which no other test has: the count that bad requests leave alone is one that a good one raises."""
    before = made.get("odescale.solve.integrate:solve_arrays", 0)
    integrate(linear(), 1.0, points=77)
    assert made["odescale.solve.integrate:solve_arrays"] == before + 1


def test_with_64_bit_numbers_off_the_remedy_is_named():
    code = "from odescale.systems.attention_build import quickstart\nquickstart()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1]
    )
    assert done.returncode != 0
    assert "PrecisionError: quickstart: expected float64" in done.stderr
    assert 'jax.config.update("jax_enable_x64", True)' in done.stderr


def test_output_times_are_log_spaced_and_end_exactly():
    t = output_times(30.0, 5, 1.0)
    assert t[0] == 1.0 and t[-1] == 30.0
    np.testing.assert_allclose(np.diff(np.log(t[1:] - 1.0)), np.log(1e4) / 3, rtol=1e-12)


def test_saved_trajectory_comes_back(tmp_path):
    saved = integrate(linear(), 4.0, accuracy="check")
    loaded = Trajectory.load(saved.save(tmp_path / "run.npz"))
    for name in ("t", "state", "loss", "exponent", "index", "valid", "error", "code"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))
    assert set(loaded.observables) == set(saved.observables)
    np.testing.assert_array_equal(loaded.overlaps, saved.overlaps)
    assert loaded.meta == saved.meta
    np.testing.assert_allclose(loaded.clock.tau(loaded.t), saved.clock.tau(saved.t))
    assert loaded.clock.describe() == saved.clock.describe()
    whole = (tmp_path / "run.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="compute it again"):
        Trajectory.load(tmp_path / "cut.npz")


def test_a_trajectory_is_a_labelled_dataset(deep):
    dataset = deep.to_xarray()
    rows = ("q0", "k0", "q1", "k1", "r0", "q0*", "k0*", "q1*", "k1*", "r0*")
    assert dataset["loss"].dims == ("t",) and dataset["overlaps"].dims == ("t", "row", "column")
    assert tuple(dataset["row"].values) == rows
    np.testing.assert_allclose(dataset["steps"].values, 200 * deep.t)
    np.testing.assert_allclose(dataset["tau"].values, 0.2 * deep.t)
    first = dataset["overlaps"].sel(row="q0", column="q0*").isel(t=0)
    assert float(first) == pytest.approx(deep.overlaps[0, 0, 5])
    assert "200 SGD steps" in dataset["t"].attrs["long_name"]


def test_isotropic_trained_readouts_end_exponentially_at_the_linearised_rate(deep):
    late = deep.t > 20
    assert deep.loss[-1] < 1e-7 * deep.loss[0]
    np.testing.assert_allclose(deep.index[late], 1.0, atol=3e-3)
    rates = deep.exponent[late] / deep.t[late]
    # linearised at the teacher an output error falls as exp(-eta c t) with c = |S a|^2, the loss at twice that rate
    np.testing.assert_allclose(rates, 2 * 0.2 * deep.observables["learning_speed"][-1], rtol=1e-3)


def test_gradients_through_integration_are_finite_differences():
    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(system):
        return jnp.log(integrate(system, ts=[0.0, 1.0, 3.0], rtol=1e-10, solver="tsit5").loss[-1])

    system = linear()
    slopes = gradient(system)
    # log L = log L(0) - (2 eta - eta^2/B) t
    assert float(slopes.learning_rate) == pytest.approx(-3.0 * (2 - 2 * 0.5 / 4), rel=1e-6)
    assert float(slopes.batch) == pytest.approx(-3.0 * 0.5**2 / 16, rel=1e-6)
    # L(0) = 1/2 (q_rr - q_rs - q_sr + q_ss), and the rate does not depend on the start
    start = 2 * float(system.excess_loss(jnp.asarray(0.0), system.initial_state()))
    np.testing.assert_allclose(slopes.initial_overlaps[0], np.array([[1, -1], [-1, 1]]) / start, rtol=1e-6)


@pytest.fixture(scope="module")
def spectral():
    from odescale.networks import build_architecture
    from odescale.systems.initial import teacher_student_overlaps

    rows = build_architecture(1)
    spectrum = listed([2.0, 0.7, 0.3])
    covariance = np.asarray(teacher_student_overlaps(rows, strength=0.5, alignment=0.3, scale=1.0)[0])
    overlaps = source_overlaps(spectrum, covariance, source=0.5, capacity=1.5)
    return attention(architecture=rows, spectrum=spectrum, initial_overlaps=jnp.asarray(overlaps))


@pytest.mark.slow
def test_structure_preserving_solver_agrees_with_the_explicit_one_on_three_modes(spectral):
    ts = np.concatenate([[0.0], np.geomspace(0.1, 40.0, 39)])
    explicit = integrate(spectral, ts=ts, solver="tsit5")
    implicit = integrate(spectral, ts=ts, rtol=1e-5)
    assert spectral.integration.solvers == ("structured",) and implicit.meta["solver"] == "structured"
    assert explicit.loss[-1] < 0.02 * explicit.loss[0]
    np.testing.assert_allclose(implicit.loss, explicit.loss, rtol=2e-4)
    np.testing.assert_allclose(implicit.overlaps, explicit.overlaps, atol=2e-4)
    assert implicit.meta["ladder"][0]["min_eigenvalue"] > -1e-12
    inner = slice(2, -2)
    np.testing.assert_allclose(implicit.exponent[inner], explicit.exponent[inner], rtol=0.03, atol=0.01)


@pytest.mark.slow
def test_finite_context_system_integrates_and_differs_by_order_one_over_tokens():
    """The right-hand side with its 1/T terms takes XLA some 20 s to compile."""
    ts = np.linspace(0.0, 10.0, 12)
    infinite = integrate(attention(depth=1, strength=0.3), ts=ts).loss
    shifts = []
    for tokens in (64.0, 128.0):
        trajectory = integrate(attention(depth=1, strength=0.3, context="finite", tokens=tokens), ts=ts)
        assert trajectory.code == Code.OK and trajectory.valid.all()
        shifts.append(tokens * (trajectory.loss - infinite))
    np.testing.assert_allclose(shifts[0], shifts[1], rtol=0.1, atol=0.02 * np.abs(shifts[1]).max())
    assert np.abs(shifts[1]).max() > 0.1 * infinite[0]
