"""The structure-preserving integrator: exact flow, agreement with an independent solver, order, definiteness, codes."""

from __future__ import annotations

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import random_overlaps
from scipy.linalg import expm
from structured_problem import aligned_start, clock_formula, losses, make_problem, vector_field

from odescale.errors import InputError
from odescale.networks.architecture import build_architecture
from odescale.solve.codes import Code
from odescale.solve.flow import Coefficients, join, propagate, split
from odescale.solve.structure import solve_structured
from odescale.systems.spectrum import isotropic, power_law, source_overlaps

TIMES = jnp.asarray([0.0, 0.5, 3.0, 10.0, 50.0, 200.0])


def few_modes(**parameters):
    spectrum = power_law(1.5, 1000, per_decade=5)
    y0 = jnp.asarray(source_overlaps(spectrum, aligned_start(2), source=0.5, capacity=1.5))
    return make_problem(spectrum, **parameters), y0


@eqx.filter_jit
def reference(problem, y0, ts):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field), diffrax.Tsit5(), 0.0, ts[-1], 0.01, y0, args=problem,
        saveat=diffrax.SaveAt(ts=ts), max_steps=100_000,
        stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-13),
    ).ys  # fmt: skip


@pytest.mark.parametrize("h", [1e-3, 1.0, 30.0, 1e6])
def test_flow_equals_the_matrix_exponential(h):
    rng = np.random.default_rng(0)
    trained = (True, False, True, False)
    lam = np.array([1e-6, 1e-2, 1.0])
    row = rng.normal(size=(2, 1))
    slope_s, slope_o = -row @ row.T - 0.1 * np.eye(2), rng.normal(size=(2, 2))
    base_s, base_o = -0.01 * np.eye(2), 0.1 * rng.normal(size=(2, 2))
    start, end = row @ row.T, np.diag([0.3, 0.1])
    q = np.stack([np.asarray(random_overlaps(jax.random.key(i), 4)) for i in range(3)])
    K = Coefficients(*(jnp.asarray(v)[None] for v in (slope_s, slope_o, base_s, base_o, end)))
    noise = jnp.asarray(np.stack([start, end]))
    moved = propagate(split(jnp.asarray(q), trained), jnp.asarray(lam), K, jnp.asarray([h]), noise, jnp.asarray(True))
    moved = np.asarray(join(moved, trained))
    s, o = [0, 2], [1, 3]
    for k in range(3):
        M, N0, N1 = np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((4, 4))
        M[np.ix_(s, s)], M[np.ix_(s, o)] = lam[k] * slope_s + base_s, lam[k] * slope_o + base_o
        N0[np.ix_(s, s)], N1[np.ix_(s, s)] = lam[k] * start, lam[k] * (end - start)
        # (vec q, 1, t/h) moves linearly: q' = M q + q M^T + N0 + N1 t/h
        generator = np.zeros((18, 18))
        generator[:16, :16] = h * (np.kron(M, np.eye(4)) + np.kron(np.eye(4), M))
        generator[:16, 16], generator[:16, 17], generator[17, 16] = h * N0.ravel(), h * N1.ravel(), 1.0
        exact = (expm(generator) @ np.concatenate([q[k].ravel(), [1.0, 0.0]]))[:16].reshape(4, 4)
        # an exponential of norm h is known to h eps at best, in scipy too
        np.testing.assert_allclose(moved[k], exact, rtol=0, atol=(1e-12 + 1e-15 * h) * np.abs(exact).max())


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_second_order_against_an_independent_integrator(noise):
    problem, y0 = few_modes(noise=noise, weight_decay=1e-4, batch=2.0)
    exact = reference(problem, y0, TIMES)
    expected = losses(problem, exact)
    assert expected[-1] < 0.1 * expected[0]
    errors, steps = [], []
    for rtol in (1e-4, 1e-6, 1e-7):
        solution = solve_structured(problem, y0, TIMES, rtol=rtol)
        assert int(solution.code) == 0
        assert float(solution.min_eigenvalue) > -1e-13
        np.testing.assert_array_equal(solution.ys[0], y0)
        errors.append(np.max(np.abs(losses(problem, solution.ys) / expected - 1)))
        steps.append(int(solution.accepted))
    assert errors[0] < 4e-4
    assert errors[-1] < 4e-6
    assert steps[0] < 70
    order = np.log(errors[0] / errors[-1]) / np.log(steps[-1] / steps[0])
    assert 1.8 < order < 2.6
    np.testing.assert_allclose(solution.ys, exact, atol=3e-5)


@pytest.mark.slow
def test_write_back_rows_agree_with_an_independent_integrator():
    architecture = build_architecture(1, 1, value="rows")
    spectrum = power_law(1.2, 20, per_decade=3, trace=None)
    C0 = random_overlaps(jax.random.key(3), architecture.size, 0.5)
    y0 = jnp.asarray(source_overlaps(spectrum, np.asarray(C0), source=1.0, capacity=1.2))
    problem = make_problem(spectrum, architecture=architecture, learning_rate=0.2, noise=1.0)
    ts = jnp.asarray([1.0, 4.0])
    exact = reference(problem, y0, ts)
    solution = solve_structured(problem, y0, ts, rtol=1e-6)
    assert int(solution.code) == 0
    np.testing.assert_allclose(losses(problem, solution.ys), losses(problem, exact), rtol=1e-4)
    assert float(jnp.max(jnp.abs(problem.closure(C0, C0)[1]))) > 0.01


def test_isotropic_data_is_one_mode():
    problem = make_problem(isotropic(200), noise=1.0, batch=4.0, learning_rate=0.2)
    y0 = jnp.asarray(aligned_start(2))[None]
    ts = jnp.asarray([1.0, 5.0, 20.0])
    solution = solve_structured(problem, y0, ts, rtol=1e-7)
    assert int(solution.code) == 0
    loss, expected = losses(problem, solution.ys), losses(problem, reference(problem, y0, ts))
    # in an exponential phase the error of the rate multiplies t: at 1e-4 of the start the loss is right to 1e-3
    np.testing.assert_allclose(loss[:2], expected[:2], rtol=1e-5)
    np.testing.assert_allclose(loss[2], expected[2], rtol=2e-3)


def test_schedule_with_a_kink_is_crossed_by_rejection():
    problem, y0 = few_modes(noise=1.0, batch=2.0, ramp=(20.0, 40.0))
    exact = reference(problem, y0, TIMES)
    solution = solve_structured(problem, y0, TIMES, rtol=1e-6)
    assert int(solution.code) == 0
    assert int(solution.rejected) > 0
    np.testing.assert_allclose(losses(problem, solution.ys), losses(problem, exact), rtol=1e-4)


def test_outputs_do_not_change_the_steps():
    problem, y0 = few_modes(noise=1.0)
    few = solve_structured(problem, y0, jnp.full(6, 200.0), rtol=1e-4)
    many = solve_structured(problem, y0, jnp.asarray([0.1, 3.0, 10.0, 41.0, 199.0, 200.0]), rtol=1e-4)
    assert int(few.accepted) == int(many.accepted)
    np.testing.assert_allclose(few.ys[-1], many.ys[-1], rtol=1e-12, atol=1e-14)
    assert np.linalg.eigvalsh(np.asarray(many.ys)).min() > -1e-13
    loss = losses(problem, many.ys)
    assert np.all(np.diff(loss) < 0)


def test_step_cap_returns_a_code_and_nothing_beyond_the_last_step():
    problem, y0 = few_modes()
    solution = solve_structured(problem, y0, TIMES, rtol=1e-4, max_steps=15)
    assert int(solution.code) == Code.MAX_STEPS
    assert int(solution.accepted) + int(solution.rejected) == 15
    reached = float(solution.t_reached)
    assert 0.5 < reached < 200
    for t, y in zip(TIMES, solution.ys, strict=True):
        assert bool(jnp.all(jnp.isfinite(y))) == (float(t) <= reached)


def test_divergence_returns_a_code():
    # eta |S a|^2 / 2B > 1: the noise multiplies
    problem = make_problem(isotropic(100), noise=1.0, batch=1.0, learning_rate=3.0)
    y0 = jnp.asarray(aligned_start(2))[None]
    solution = solve_structured(problem, y0, jnp.asarray([0.0, 1.0, 1e4]), rtol=1e-4, max_steps=1000)
    assert int(solution.code) in (Code.MAX_STEPS, Code.STEP_TOO_SMALL)
    assert not bool(jnp.any(jnp.isfinite(solution.ys[-1])))


def test_not_finite_at_the_start_is_a_code():
    problem, y0 = few_modes()
    assert int(solve_structured(problem, y0.at[0, 0, 0].set(jnp.nan), TIMES, rtol=1e-4).code) == Code.NOT_FINITE


@pytest.mark.parametrize("change", [{"y0": jnp.ones((3, 10, 10))}, {"ts": jnp.asarray([2.0, 1.0])}, {"t0": 1.0}])
def test_bad_input_is_one_line(change):
    problem, y0 = few_modes()
    arguments = {"y0": y0, "ts": TIMES, **change}
    with pytest.raises(InputError) as caught:
        solve_structured(problem, arguments.pop("y0"), arguments.pop("ts"), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_forward_derivative_with_respect_to_the_learning_rate():
    spectrum = power_law(1.5, 1000, per_decade=5)
    y0 = jnp.asarray(source_overlaps(spectrum, aligned_start(2), source=0.5, capacity=1.5))

    def final(eta):
        problem = make_problem(spectrum, noise=1.0, batch=2.0, learning_rate=eta)
        q = solve_structured(problem, y0, jnp.asarray([30.0]), rtol=1e-5).ys[-1]
        return jnp.einsum("k,kij->ij", problem.weights * problem.eigenvalues, q)[0, 5]

    eta = jnp.asarray(0.5)
    _, slope = jax.jvp(final, (eta,), (jnp.ones_like(eta),))
    difference = (final(eta + 1e-3) - final(eta - 1e-3)) / 2e-3
    np.testing.assert_allclose(slope, difference, rtol=1e-3)


@pytest.mark.parametrize("noise", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_power_law_to_a_million_steps(noise):
    """Depth 2, all rows trained, lam ~ k^-1.5, lam beta^2 ~ k^-1.75: exponent .5 and the clock formula."""
    spectrum = power_law(1.5, 1e8)
    y0 = jnp.asarray(source_overlaps(spectrum, aligned_start(2), source=0.5, capacity=1.5))
    problem = make_problem(spectrum, noise=noise)
    ts = jnp.concatenate([jnp.zeros(1), jnp.logspace(0, 6, 121)])
    solution = solve_structured(problem, y0, ts, rtol=3e-4)
    assert int(solution.code) == 0
    assert int(solution.accepted) <= 500
    q = np.asarray(solution.ys)
    relative = np.linalg.eigvalsh(q)[..., 0] / np.diagonal(q, axis1=2, axis2=3).max(-1)
    assert min(relative.min(), float(solution.min_eigenvalue)) > -1e-13
    loss, late = losses(problem, solution.ys), np.asarray(ts) >= 0.99e4
    log_t, log_loss = np.log(np.asarray(ts)[late]), np.log(loss[late])
    assert abs(-np.polyfit(log_t, log_loss, 1)[0] - 0.5) < 0.02
    assert np.max(np.abs(-np.gradient(log_loss, log_t) - 0.5)) < 0.02
    if noise == 0:
        np.testing.assert_allclose(loss[late], clock_formula(problem, np.asarray(ts), solution.ys)[late], rtol=0.01)
    print(f"noise {noise}: {int(solution.accepted)} steps, {int(solution.rejected)} rejected")
