"""The whole loop as one kernel: without a GPU it is interpreted, and lowered for one; both need what a matrix has on lanes."""

from __future__ import annotations

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_gpu import accelerator
from test_lockstep import kicked

import odescale
from odescale.solve import fused
from odescale.solve.fused import ROUTES, route_of, routed, solve_fused
from odescale.solve.integrate import solve_arrays
from odescale.solve.lanes import NoLanes, on_lanes, shaped, spread
from odescale.solve.lockstep import solve_together
from odescale.solve.step_control import patient
from odescale.solve.sweep import problem_of

MEMBERS = 8


def pendulum(number, t, y):
    return kicked(t, y, number)


def given(rtol: float = 1e-7):
    starts = jnp.asarray(np.random.default_rng(0).normal(size=(MEMBERS, 2)))
    times = jnp.linspace(0.0, 5.0, 30) * jnp.linspace(0.7, 1.1, MEMBERS)[:, None]
    control = patient(diffrax.PIDController(rtol=jnp.asarray(rtol), atol=jnp.asarray(1e-4 * rtol)), jnp.inf)
    return starts, times, control, jnp.arange(MEMBERS, dtype=float)


@pytest.fixture(scope="module")
def both():
    """Outcomes by one loop and by the interpreted kernel in blocks of 4; a cap that the last members reach."""
    starts, times, control, numbers = given()

    def together(starts, times):
        return solve_together(
            lambda t, y: jax.vmap(pendulum)(numbers, t, y), starts, times, diffrax.Tsit5(), control, 200
        )

    def kernel(starts, times):
        return solve_fused(pendulum, numbers, starts, times, diffrax.Tsit5(), control, 200, interpret=True, block=4)

    return jax.jit(together)(starts, times), jax.jit(kernel)(starts, times)


def test_the_kernel_takes_the_steps_of_the_loop(both) -> None:
    loop, kernel = both
    assert kernel.accepted.tolist() == loop.accepted.tolist() and len(set(loop.accepted.tolist())) == MEMBERS
    assert kernel.rejected.tolist() == loop.rejected.tolist() and min(loop.rejected.tolist()) > 0


def test_it_gives_the_states_and_says_how_each_member_ended(both) -> None:
    loop, kernel = both
    assert kernel.result._value.tolist() == loop.result._value.tolist()
    assert len(set(loop.result._value.tolist())) == 2  # some at the cap
    reached = np.isfinite(loop.states)
    assert (np.isfinite(kernel.states) == reached).all() and 0 < np.sum(~reached) < reached.size
    np.testing.assert_allclose(
        np.where(reached, kernel.states, 0), np.where(reached, loop.states, 0), rtol=0, atol=1e-12
    )


def test_it_lowers_for_a_gpu_without_one() -> None:
    starts, times, control, numbers = given()
    call = jax.jit(lambda s, t: solve_fused(pendulum, numbers, s, t, diffrax.Tsit5(), control, 200).states)
    text = call.trace(starts, times).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 1


def test_a_cpu_never_takes_the_kernel() -> None:
    assert route_of("cpu", 2) == "lockstep" and ROUTES["cpu"] == ("lockstep", 0)
    with routed("fused"):
        assert [route_of("cpu", 2), route_of("tpu", 2)] == ["lockstep", "lockstep"]
        assert [route_of("gpu", n) for n in (1, 16, 17)] == ["fused", "fused", "lockstep"]
    # until a GPU has been seen to win
    assert route_of("gpu", 2) == "lockstep"


def lanes_of(function, block, *arrays):
    """`function` of every row of the arrays, on lanes."""
    entries = [
        shaped([jnp.asarray(array[:, i]) for i in range(array[0].size)], shape)
        for array, shape in ((a.reshape(block, -1), a.shape[1:]) for a in arrays)
    ]
    found = on_lanes(function, block, "cpu")(*entries)
    return np.stack([spread(x, block) for x in found.flat], axis=1).reshape(block, *found.shape)


def of_everything(A, b):
    """Products, moved entries, sums to a place, loops, branches that depend on the platform, reductions."""
    i, j = np.triu_indices(3)
    V = jnp.zeros((3, 3)).at[i, j].set(A[i, j] * b[j])
    V = V + V.T + jnp.concatenate([A[:1] @ A, A[1:]]) + jnp.einsum("ij,jk,k->ij", A, np.diag([0.0, 1.0, 2.0]), b)
    V = V.at[np.array([0, 2, 0]), np.array([1, 1, 1])].add(jnp.sqrt(jnp.abs(b)))
    _, rows = jax.lax.scan(lambda c, row: (c + row, c * jnp.sum(row)), b, A)
    powers = jax.lax.fori_loop(0, 3, lambda n, held: held * b + n, b)
    one = jax.lax.platform_dependent(b, cpu=lambda x: 2 * x, default=lambda x: 3 * x)
    last = jax.lax.dynamic_index_in_dim(
        A, 1 + jnp.floor(10 * b[1] ** 2).astype(int), 0, keepdims=False
    )  # often beyond the end
    pad = jnp.pad(b, (1, 0))[:3] + jnp.where(jnp.any(b > 0), jnp.max(b), jnp.min(b)) + jnp.asarray([3, 1, 2])
    return V + rows + last + powers + one[:, None] + pad[::-1] + jnp.prod(b) + A[np.array([2, 0, 1])].T + b**3


def test_a_matrix_on_lanes_is_the_matrix() -> None:
    random = np.random.default_rng(1)
    A, b = random.normal(size=(5, 3, 3)), random.normal(size=(5, 3))
    np.testing.assert_allclose(lanes_of(of_everything, 5, A, b), jax.vmap(of_everything)(A, b), rtol=1e-13, atol=1e-13)


def test_a_table_has_no_form_on_lanes() -> None:
    table = jnp.arange(100.0)
    for function in (
        lambda b: table[jnp.floor(b[0]).astype(int)],
        lambda b: jax.lax.while_loop(lambda x: x < 3, lambda x: x + b[0], b[1]),
        lambda b: jax.lax.cond(b[0] > 1, jnp.sin, jnp.cos, b[1]),
    ):
        with pytest.raises(NoLanes):
            lanes_of(lambda b, f=function: f(b)[None], 2, np.ones((2, 2)))


def test_a_sweep_is_told_its_route(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(*arguments, **named):
        asked.append(named["interpret"])
        raise NoLanes("spied")

    monkeypatch.setattr("odescale.solve.integrate.solve_fused", spy)
    with routed("interpreted"), pytest.raises(NoLanes, match="spied"):
        odescale.sweep("committee", 1.0, {"learning_rate": [0.1, 0.2]}, points=3, units=1, teacher_units=1)
    assert set(asked) == {True}  # once for the program that would be kept, once for the one that is not


@pytest.mark.slow
@pytest.mark.parametrize("units", [1, 2])
def test_a_sweep_of_committees_by_the_kernel(units: int) -> None:
    values = {"learning_rate": np.linspace(0.1, 0.6, MEMBERS)}

    def run():
        return odescale.sweep("committee", 10.0, values, points=20, exponents=False, units=units, teacher_units=units)

    loop = run()
    with fused.routed("interpreted"):
        kernel = run()
    assert kernel.meta["stats"] == loop.meta["stats"] and kernel.code.tolist() == loop.code.tolist() == [0] * MEMBERS
    np.testing.assert_allclose(kernel.state, loop.state, rtol=0, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("units", [1, 2])
def test_a_committee_lowers_for_a_gpu(units: int) -> None:
    values = {"learning_rate": np.linspace(0.1, 0.6, MEMBERS)}
    problem = problem_of("committee", 10.0, values, {"units": units, "teacher_units": units}, points=20)

    def one(rate, times):
        system = problem.family({"learning_rate": rate})
        numbers = (problem.rtol, problem.atol, problem.solver, problem.max_steps)
        start = system.initial_state()
        return solve_arrays(system, start, times, *numbers, exponents=False, together=True, route="fused")["loss"]

    call = jax.jit(jax.vmap(one, (0, None)))
    lowered = call.trace(jnp.asarray(values["learning_rate"]), jnp.asarray(problem.times)).lower(
        lowering_platforms=("cuda",)
    )
    assert lowered.as_text().count("xla.gpu.triton") == 1


@pytest.mark.gpu
def test_the_kernel_on_a_gpu_is_the_loop_there() -> None:
    device = accelerator()
    values = {"learning_rate": np.linspace(0.1, 0.6, 100)}

    def run():
        return odescale.sweep("committee", 10.0, values, points=20, exponents=False)

    with jax.default_device(device):
        loop = run()
        with fused.routed("fused"):
            kernel = run()
    np.testing.assert_allclose(kernel.state, loop.state, rtol=0, atol=1e-10)
