"""The structure-preserving integrator: exact linear systems, independent solvers, definiteness, kinks, codes, interfaces."""

from __future__ import annotations

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_problem import Golden, exact, golden
from oracles import random_overlaps
from scipy.linalg import expm
from structured_problem import aligned_start, losses, make_problem, vector_field

from odescale import InputError
from odescale.clock import schedule_kinks
from odescale.networks import build_architecture
from odescale.schedules import CosineSchedule, PowerSchedule, WarmupStableDecaySchedule
from odescale.solve.codes import Code
from odescale.solve.collocation import positive_part
from odescale.solve.structure import solve_structured
from odescale.solve.structured_solver import OverlapController, StructuredSolver, overlap_flow
from odescale.spectra import isotropic, power_law, source_overlaps

# one shape for most tests: a shape is a compilation
TIMES = jnp.asarray([0.0, 0.5, 3.0, 10.0, 50.0, 200.0])
MODES = 128


class Linear(eqx.Module):
    """Constant M1, M0, N: every mode has an exact solution."""

    eigenvalues: jax.Array
    weights: jax.Array
    M1: jax.Array
    M0: jax.Array
    N: jax.Array
    trained: tuple[bool, ...] = eqx.field(static=True)
    writes_back: bool = eqx.field(static=True, default=True)
    kinks: tuple[float, ...] = eqx.field(static=True, default=())

    def drift(self, t, C, R):
        return self.M1, self.M0, self.N

    def solution(self, q: np.ndarray, t: float) -> np.ndarray:
        P, answer = q.shape[1], []
        for lam, start in zip(np.asarray(self.eigenvalues), q, strict=True):
            M, one = lam * np.asarray(self.M1) + np.asarray(self.M0), np.eye(P)
            generator = np.zeros((P * P + 1, P * P + 1))
            generator[:-1, :-1] = t * (np.kron(M, one) + np.kron(one, M))
            generator[:-1, -1] = t * lam * np.asarray(self.N).ravel()
            answer.append((expm(generator) @ np.append(start.ravel(), 1.0))[:-1].reshape(P, P))
        return np.stack(answer)


def heavy_ball() -> tuple[Linear, jax.Array]:
    """Rows (W, U, W*): U' = -gamma U + lam (W - W*), W' = -eta U. Fast modes oscillate, damped by gamma/2."""
    eta, gamma = 0.5, 0.2
    M1, M0, N = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros((3, 3))
    M1[1], M0[0, 1], M0[1, 1], N[1, 1] = [1.0, 0.0, -1.0], -eta, -gamma, 0.1
    lam = jnp.asarray([1e-4, 1e-2, 1.0, 30.0])
    q = jnp.stack([random_overlaps(jax.random.key(i), 3) for i in range(4)])
    q = q.at[:, 1].set(0.0).at[:, :, 1].set(0.0)
    return Linear(lam, jnp.ones(4), jnp.asarray(M1), jnp.asarray(M0), jnp.asarray(N), (True, True, False)), q


def few_modes(depth=1, **parameters):
    spectrum = power_law(1.5, 1000, per_decade=5)
    y0 = jnp.asarray(source_overlaps(spectrum, aligned_start(depth), source=0.5, capacity=1.5))
    return make_problem(spectrum, architecture=build_architecture(depth, 1), **parameters), y0


@eqx.filter_jit
def reference(problem, y0, ts):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field), diffrax.Tsit5(), 0.0, ts[-1], 0.01, y0, args=problem,
        saveat=diffrax.SaveAt(ts=ts), max_steps=100_000,
        stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-13),
    ).ys  # fmt: skip


@pytest.mark.parametrize("stages", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_momentum_rows_follow_the_matrix_exponential(stages):
    problem, q = heavy_ball()
    ts = jnp.asarray([0.0, 0.3, 5.0, 20.0])
    solution = solve_structured(problem, q, ts, rtol=1e-5, stages=stages)
    assert int(solution.code) == Code.OK
    np.testing.assert_array_equal(solution.ys[0], q)
    for t, y in zip(ts, solution.ys, strict=True):
        np.testing.assert_allclose(y, problem.solution(np.asarray(q), float(t)), rtol=0, atol=3e-4)
    assert float(solution.min_eigenvalue) > -1e-13


def test_stiff_oscillation_is_damped_at_steps_far_beyond_it():
    """Ten steps over 1e6 units, where the fast modes turn 1e7 times: they end at rest, noise and all."""
    problem, q = heavy_ball()
    end = diffrax.diffeqsolve(
        diffrax.ODETerm(overlap_flow), StructuredSolver(), 0.0, 1e6, 1e5, q, args=problem,
        stepsize_controller=diffrax.ConstantStepSize(),
    ).ys  # fmt: skip
    assert end is not None
    # at rest: E U^2 = lam V/(2 gamma), E (W - W*)^2 = eta V/(2 gamma), teacher as it was
    lam, q, end = np.asarray(problem.eigenvalues), np.asarray(q), np.asarray(end[-1])
    np.testing.assert_allclose(end[:, 1, 1], lam * 0.1 / 0.4, rtol=1e-6)
    np.testing.assert_allclose(end[:, 0, 0] - q[:, 2, 2], 0.5 * 0.1 / 0.4, rtol=1e-6)
    np.testing.assert_allclose(end[:, 0, 2], q[:, 2, 2], rtol=1e-9)


@pytest.mark.parametrize("depth", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("noise", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
def test_attention_against_an_independent_integrator(noise, depth):
    problem, y0 = few_modes(depth, noise=noise, weight_decay=1e-4, batch=2.0)
    exact_ys = reference(problem, y0, TIMES)
    expected = losses(problem, exact_ys)
    assert expected[-1] < 0.3 * expected[0]
    errors, steps = [], []
    for rtol in (1e-3, 1e-4, 1e-6):
        solution = solve_structured(problem, y0, TIMES, rtol=rtol)
        assert int(solution.code) == Code.OK
        assert float(solution.min_eigenvalue) > -1e-13
        np.testing.assert_array_equal(solution.ys[0], y0)
        errors.append(np.max(np.abs(losses(problem, solution.ys) / expected - 1)))
        steps.append(int(solution.accepted))
    assert errors[0] < 1e-3
    assert errors[-1] < 2e-6
    assert steps[0] < 60
    np.testing.assert_allclose(solution.ys, exact_ys, atol=1e-5)


@pytest.mark.slow
def test_write_back_rows_agree_with_an_independent_integrator():
    architecture = build_architecture(1, 1, value="rows")
    spectrum = power_law(1.2, 20, per_decade=3, trace=None)
    C0 = random_overlaps(jax.random.key(3), architecture.size, 0.5)
    y0 = jnp.asarray(source_overlaps(spectrum, np.asarray(C0), source=1.0, capacity=1.2))
    problem = make_problem(spectrum, architecture=architecture, learning_rate=0.2, noise=1.0)
    ts = jnp.asarray([1.0, 4.0])
    solution = solve_structured(problem, y0, ts, rtol=1e-6)
    assert int(solution.code) == Code.OK
    np.testing.assert_allclose(losses(problem, solution.ys), losses(problem, reference(problem, y0, ts)), rtol=1e-5)
    assert float(jnp.max(jnp.abs(problem.closure(C0, C0)[1]))) > 0.01


def test_positive_at_any_tolerance_from_a_start_of_low_rank():
    """The student starts at zero: nothing but exact arithmetic keeps its noise content positive."""
    problem, q = golden(MODES, rows=2)
    for rtol in (0.1, 1e-3):
        solution = solve_structured(problem, q, jnp.geomspace(1.0, 1e5, 100), rtol=rtol)
        y = np.asarray(solution.ys)
        relative = np.linalg.eigvalsh(y)[..., 0] / np.diagonal(y, axis1=2, axis2=3).max(-1)
        assert min(relative.min(), float(solution.min_eigenvalue)) > -1e-14


def test_projection_onto_the_positive_matrices_and_its_derivative():
    S = jax.random.normal(jax.random.key(0), (3, 4, 4))
    S = S + jnp.swapaxes(S, 1, 2)
    nearest = positive_part(S)
    assert float(jnp.min(jnp.linalg.eigvalsh(nearest))) > -1e-14
    np.testing.assert_allclose(jnp.sum(nearest * (S - nearest), axis=(1, 2)), 0.0, atol=1e-12)
    way = 1e-6 * S[::-1]
    slope = jax.jvp(positive_part, (S,), (way,))[1]
    np.testing.assert_allclose(slope, 0.5 * (positive_part(S + way) - positive_part(S - way)), atol=1e-14)
    # eigenvalues that meet, where the derivative of the eigenvectors is infinite
    assert bool(jnp.all(jnp.isfinite(jax.vjp(positive_part, jnp.eye(3))[1](jnp.ones((3, 3)))[0])))


class Ramped(Golden):
    """The golden problem without noise and with eta falling linearly between two kinks."""

    kinks: tuple[float, ...] = eqx.field(static=True, default=(30.0, 50.0))

    def drift(self, t, C, R):
        M1, M0, N = super().drift(t, C, R)
        return jnp.clip(1.0 - 0.9 * (t - 30.0) / 20.0, 0.1, 1.0) * M1, M0, 0.0 * N

    def tau(self, t: np.ndarray) -> np.ndarray:
        falling = np.clip(t - 30.0, 0.0, 20.0)
        return np.minimum(t, 30.0) + falling - 0.9 * falling**2 / 40.0 + 0.1 * np.maximum(t - 50.0, 0.0)


def test_steps_end_on_the_kinks_of_the_schedule():
    plain, q = golden(16)
    problem = Ramped(plain.eigenvalues, plain.weights, plain.learning_rate, plain.batch, plain.rows)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(overlap_flow), StructuredSolver(), 0.0, 200.0, 0.1, q, args=problem,
        saveat=diffrax.SaveAt(steps=True), max_steps=1024,
        stepsize_controller=diffrax.ClipStepSizeController(OverlapController(1e-4, 1e-12), jump_ts=problem.kinks),
    )  # fmt: skip
    assert solution.ts is not None and solution.ys is not None
    for kink in problem.kinks:
        assert float(jnp.min(jnp.abs(solution.ts - kink))) < 1e-13 * kink
    assert int(solution.stats["num_rejected_steps"]) <= 3
    ts = np.asarray(solution.ts)[np.isfinite(solution.ts)]
    rates = 2 * float(problem.learning_rate) * np.asarray(problem.eigenvalues)
    expected = np.asarray(q)[:, 0, 0] * np.exp(-rates * problem.tau(ts)[:, None])
    np.testing.assert_allclose(problem.loss(solution.ys[: ts.size]), expected @ problem.eigenvalues, rtol=1e-4)


def test_kinks_of_the_schedules():
    assert [float(t) for t in schedule_kinks(WarmupStableDecaySchedule(1.0, 5.0, 9.0))] == [1.0, 5.0, 9.0]
    assert [float(t) for t in schedule_kinks(CosineSchedule(7.0))] == [7.0]
    assert schedule_kinks(PowerSchedule(0.5)) == ()
    assert schedule_kinks(lambda t: 1.0) == ()


@pytest.mark.slow
def test_outputs_do_not_change_the_steps():
    problem, q = golden(MODES)
    few = solve_structured(problem, q, jnp.full(6, 200.0), rtol=1e-4)
    many = solve_structured(problem, q, jnp.asarray([0.1, 3.0, 10.0, 41.0, 199.0, 200.0]), rtol=1e-4)
    assert int(few.accepted) == int(many.accepted)
    np.testing.assert_allclose(few.ys[-1], many.ys[-1], rtol=1e-12)
    expected = exact(problem, np.asarray(problem.excess(q)), np.asarray([0.1, 3.0, 10.0, 41.0, 199.0, 200.0]))
    np.testing.assert_allclose(problem.excess(many.ys), expected, rtol=2e-4)


@pytest.mark.parametrize(
    "controller",
    [
        OverlapController(1e-5, 1e-12),
        pytest.param(diffrax.PIDController(rtol=1e-5, atol=1e-8), marks=pytest.mark.slow),
    ],
)
def test_as_a_diffrax_solver_with_the_same_term_as_tsit5(controller):
    problem, q = golden(32, rows=2)

    def solve(solver, control):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(overlap_flow), solver, 0.0, 100.0, None, q, args=problem,
            saveat=diffrax.SaveAt(dense=True), stepsize_controller=control, max_steps=4096,
        )  # fmt: skip

    ours = solve(StructuredSolver(), controller)
    theirs = solve(diffrax.Tsit5(), diffrax.PIDController(rtol=1e-9, atol=1e-12))
    ts = jnp.linspace(0.0, 100.0, 37)
    np.testing.assert_allclose(jax.vmap(ours.evaluate)(ts), jax.vmap(theirs.evaluate)(ts), atol=2e-5)
    np.testing.assert_allclose(ours.evaluate(3.0, 5.0), ours.evaluate(5.0) - ours.evaluate(3.0), atol=1e-14)


@pytest.mark.slow
def test_one_compilation_for_all_parameters_and_ensembles_by_vmap_and_map():
    problem, q = golden(32)
    ts = jnp.asarray([1.0, 100.0])

    def final(eta, rtol):
        changed = eqx.tree_at(lambda p: p.learning_rate, problem, eta)
        return solve_structured(changed, q, ts, rtol=rtol).ys[-1]

    etas, rtols = jnp.asarray([0.1, 0.2, 0.25]), jnp.asarray([1e-3, 1e-4, 1e-5])
    alone = jnp.stack([final(*pair) for pair in zip(etas, rtols, strict=True)])
    np.testing.assert_allclose(jax.vmap(final)(etas, rtols), alone, rtol=1e-9)
    np.testing.assert_allclose(jax.lax.map(lambda pair: final(*pair), (etas, rtols)), alone, rtol=1e-9)


@pytest.mark.slow
def test_single_precision_stays_single():
    problem, q = golden(32)
    problem = jax.tree.map(lambda x: x.astype(jnp.float32), problem)
    solution = solve_structured(problem, q.astype(jnp.float32), jnp.asarray([1.0, 1e3]), rtol=1e-3)
    assert solution.ys.dtype == jnp.float32 and int(solution.code) == Code.OK
    expected = exact(problem, np.asarray(problem.excess(q)), np.asarray([1.0, 1e3]))
    np.testing.assert_allclose(problem.excess(solution.ys), expected, rtol=3e-3)


def test_step_cap_returns_a_code_and_nothing_beyond_the_last_step():
    problem, q = golden(64)
    solution = solve_structured(problem, q, TIMES, rtol=1e-4, max_steps=15)
    assert int(solution.code) == Code.MAX_STEPS
    assert int(solution.accepted) + int(solution.rejected) == 15
    reached = float(solution.t_reached)
    assert 0.5 < reached < 200
    for t, y in zip(TIMES, solution.ys, strict=True):
        assert bool(jnp.all(jnp.isfinite(y))) == (float(t) <= reached)


@pytest.mark.slow
def test_divergence_returns_a_code():
    # eta |S a|^2 / 2B > 1: the noise multiplies, and attention lets it blow up at a finite time
    problem = make_problem(isotropic(100), noise=1.0, batch=1.0, learning_rate=3.0)
    y0 = jnp.asarray(aligned_start(2))[None]
    solution = solve_structured(problem, y0, jnp.asarray([0.0, 1.0, 1e4]), rtol=1e-4, max_steps=1000)
    assert int(solution.code) in (Code.MAX_STEPS, Code.STEP_TOO_SMALL)
    assert not bool(jnp.any(jnp.isfinite(solution.ys[-1])))
    assert float(solution.t_reached) < 1e4


@pytest.mark.slow
def test_a_tolerance_below_rounding_is_a_code():
    problem, q = golden(MODES)
    solution = solve_structured(problem, q, TIMES, rtol=1e-17, atol=0.0)
    assert int(solution.code) in (Code.MAX_STEPS, Code.STEP_TOO_SMALL)
    assert not bool(jnp.any(jnp.isfinite(solution.ys[-1])))


def test_not_finite_at_the_start_is_a_code():
    problem, q = golden(MODES)
    solution = solve_structured(problem, q.at[0, 0, 0].set(jnp.nan), TIMES, rtol=1e-4)
    assert int(solution.code) == Code.NOT_FINITE
    assert int(solution.accepted) == 0 and not bool(jnp.any(jnp.isfinite(solution.ys[1:])))


@pytest.mark.parametrize("change", [{"y0": jnp.ones((3, 10, 10))}, {"ts": jnp.asarray([2.0, 1.0])}, {"t0": 1.0}])
def test_bad_input_is_one_line(change):
    problem, y0 = few_modes()
    arguments = {"y0": y0, "ts": TIMES, **change}
    with pytest.raises(InputError) as caught:
        solve_structured(problem, arguments.pop("y0"), arguments.pop("ts"), **arguments)
    assert "\n" not in str(caught.value)
