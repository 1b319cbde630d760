"""The committee machine: Saad & Solla's problem against scipy, K = M = 1 in closed form, late times, and a spoiled noise."""

from __future__ import annotations

from dataclasses import replace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odescale
from benchmarks.saad_solla import SaadSolla, committee_overlaps, saad_solla
from odescale import InputError, mean_field
from odescale.generated import mean_field as generated
from odescale.solve.codes import Code
from odescale.systems.closed_form import ClosedForm
from tests.scipy_committee import Oracle, saad_solla_start
from tests.test_closed_form import committee as network
from tests.test_closed_form import teacher_student

jax.config.update("jax_enable_x64", True)

TIMES = np.array([0.0, 10, 100, 200, 400, 500, 700, 2000])
PUBLISHED = (0.061337035, 0.057670171, 0.057362846, 0.052216176, 0.024649841, 1.29367e-5)
"""Generalisation error at alpha = 10 ... 700 of K = M = 4, eta = 0.5; scipy's DOP853 at 1e-12 gives the same."""


def solve(system: SaadSolla, times: np.ndarray, rtol: float = 1e-11, field=None):
    """States (n, K, P), by Dopri8, without the library's mask of losses below rounding."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field or (lambda t, y, args: args.vector_field(t, y))), diffrax.Dopri8(), times[0], times[-1], None,
        system.initial_state(), args=system, saveat=diffrax.SaveAt(ts=jnp.asarray(times)), max_steps=100_000,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol / 1e3),
    )  # fmt: skip
    return solution.ys


@eqx.filter_jit
def slope(system: SaadSolla, y):
    """dy/dt, compiled."""
    return system.vector_field(jnp.zeros(()), y)


@eqx.filter_jit
def error(system: SaadSolla, y):
    """L, compiled."""
    return system.excess_loss(jnp.zeros(()), y)


@pytest.fixture(scope="module")
def golden():
    """States of the golden problem at `TIMES`."""
    return np.asarray(eqx.filter_jit(solve)(saad_solla(), TIMES))


def test_saad_solla_problem(golden) -> None:
    system = saad_solla()
    losses = [float(error(system, jnp.asarray(y))) for y in golden]
    for loss, expected in zip(losses[1:-1], PUBLISHED, strict=True):
        assert loss == pytest.approx(expected, rel=2e-6 if expected < 1e-3 else 2e-8)
    assert abs(losses[-1]) < 1e-12


def test_specialises_and_stays_there(golden) -> None:
    """Late-time fixed point: R is a permutation of the teacher, Q the identity, and nothing moves."""
    system = saad_solla()
    y = jnp.asarray(golden[-1])
    assert np.abs(np.sort(y[:, 4:], axis=1) - np.array([0, 0, 0, 1.0])).max() < 1e-7
    assert np.abs(y[:, :4] - np.eye(4)).max() < 1e-7
    assert np.abs(slope(system, y)).max() < 1e-8
    assert float(system.observables(jnp.zeros(()), y)["specialisation"]) == pytest.approx(1.0, abs=1e-7)


@pytest.mark.slow
def test_integrate_gives_the_same_and_stops_at_rounding(golden) -> None:
    run = odescale.integrate(saad_solla(), ts=TIMES)
    assert np.abs(run.loss[1:7] / np.array(PUBLISHED) - 1).max() < 1e-5
    # The last loss is below the rounding of its start, 2e-14 x 1.06, and says so instead of being a number.
    assert int(run.code) == Code.LOSS_NOT_POSITIVE and not run.valid[-1]
    assert np.abs(run.state[6] - golden[6]).max() < 1e-6


def test_right_hand_side_against_numpy() -> None:
    """Saad & Solla's printed integrals, no tilt and no Hessian in them."""
    oracle = Oracle(4, np.eye(4))
    rng = np.random.default_rng(0)
    for eta in (0.2, 1.4):
        rows = rng.standard_normal((8, 30)) / 30**0.5
        rows[4:] = np.linalg.qr(rows[4:].T)[0].T
        y = (rows @ rows.T)[:4]
        system = eqx.tree_at(lambda s: s.learning_rate, saad_solla(), jnp.asarray(eta))
        expected = oracle.slope(0.0, y.ravel(), eta).reshape(4, 8)
        assert np.abs(slope(system, jnp.asarray(y)) - expected).max() < 1e-14
        assert float(error(system, jnp.asarray(y))) == pytest.approx(oracle.loss(y), rel=1e-13)


@pytest.mark.slow
def test_trajectory_against_scipy() -> None:
    times = np.array([0.0, 5.0, 50.0, 120.0])
    system = saad_solla(units=3, teacher_units=2, learning_rate=0.8)
    expected = Oracle(3, np.eye(2)).solve(saad_solla_start(3, 2), 0.8, times, 1e-11, "DOP853")
    got = np.asarray(eqx.filter_jit(solve)(system, times)).reshape(4, -1)
    assert np.abs(got - expected).max() < 1e-8


def test_engine_with_the_closed_form_agrees() -> None:
    """`MeanField` with the closed form, in difference rows, beside `SaadSolla`: overlaps to 1e-8 up to t = 700."""
    problem = teacher_student(network(4), tokens=1)
    ours, times = saad_solla(), TIMES[:7]
    engine = mean_field(
        problem, closure="closed", initial_overlaps=np.asarray(ours.initial_overlaps), learning_rate=0.5, batch=1.0
    )  # fmt: skip
    states = eqx.filter_jit(solve)(engine, times)[:, 0]
    expected = eqx.filter_jit(solve)(ours, times)
    assert np.abs(engine.to_overlaps(states)[:, 0, :4] - expected).max() < 1e-8
    losses = jax.jit(jax.vmap(lambda y: engine.excess_loss(jnp.zeros(()), y[None])))(states)[1:]
    assert np.abs(losses / np.array(PUBLISHED) - 1).max() < 2e-6


@pytest.mark.parametrize("friction", [0.0, 3.0])
def test_rates_of_the_engine_are_the_derived_ones(friction: float) -> None:
    """(M1, M0, N) of `MeanField` against the generated plain SGD and heavy ball, in difference rows, decay included."""
    problem = teacher_student(network(2), tokens=1, frozen=("w0",))
    engine = mean_field(problem, closure="closed", learning_rate=0.4, batch=2.0, weight_decay=0.1, friction=friction)
    C, R = (jnp.asarray(x[0]) for x in (engine.initial_state()[0], engine.initial_state()[0]))
    got = jax.jit(lambda C: engine.rates(jnp.zeros(()), C, C))(C)
    moments = ClosedForm().moments(problem, C[:4, :4], R[:4, :4])
    own = jnp.asarray(np.linalg.inv(problem.difference_basis())[problem.moved])
    arguments = (moments.G, moments.H, moments.V, own, tuple(problem.moved), 0.4, 2.0, 0.1)
    expected = generated.heavy_ball(*arguments, friction) if friction else generated.plain_sgd(*arguments)
    for found, derived in zip(got, expected, strict=True):
        assert found.shape == derived.shape and np.abs(found - derived).max() < 1e-15


def test_one_unit_in_closed_form() -> None:
    """K = M = 1, the formulas of Biehl & Schwarze 1995: arcsine loss, and the slopes of q and r written out."""
    q, r, T, eta = 0.6, 0.2, 1.0, 0.7
    system = saad_solla(units=1, initial_overlaps=committee_overlaps([[q]], [[r]], [[T]]), learning_rate=eta)
    loss = (np.arcsin(q / (1 + q)) + np.arcsin(T / (1 + T)) - 2 * np.arcsin(r / np.sqrt((1 + q) * (1 + T)))) / np.pi
    y = system.initial_state()
    assert float(error(system, y)) == pytest.approx(loss, rel=1e-14)
    root = np.sqrt((1 + q) * (1 + T) - r**2)
    rate = 2 * eta / (np.pi * (1 + q))
    d_r = rate * ((T * (1 + q) - r**2) / root - r / np.sqrt(1 + 2 * q))
    drift = 2 * rate * (r / root - q / np.sqrt(1 + 2 * q))
    big, c = np.sqrt(1 + 2 * q), 2 * (q * T - r**2)
    noise = np.arcsin(q / (1 + 3 * q)) + np.arcsin((T + c) / (1 + 2 * q + T + c)) - 2 * np.arcsin(
        r / np.sqrt((1 + 3 * q) * (1 + 2 * q + T + c))
    )  # fmt: skip
    flow = np.asarray(slope(system, y))[0]
    assert flow[1] == pytest.approx(d_r, rel=1e-13)
    assert flow[0] == pytest.approx(drift + 4 * eta**2 / np.pi**2 * noise / big, rel=1e-13)


def test_without_the_noise_the_comparison_fails(golden) -> None:
    """Negative test: V dropped, or a tenth of it, gives another trajectory by far more than the tolerance."""
    expected = np.array(PUBLISHED[:5])
    for noise in (0.0, 0.9):
        y = eqx.filter_jit(solve)(saad_solla(noise=noise), TIMES[:6], 1e-9)
        losses = jax.vmap(lambda y: error(saad_solla(), y))(y)[1:]
        assert np.abs(np.asarray(losses) / expected - 1).max() > 1e-2


@pytest.mark.parametrize("activation", ["erf", "quadratic"])
def test_small_rates_follow_the_gradient(activation: str) -> None:
    """Without noise the loss falls along the flow; weight decay adds -2 w Q and -w R."""
    system = saad_solla(units=2, activation=activation, noise=0.0, learning_rate=0.1)
    y = system.initial_state()
    assert float(jax.jvp(lambda y: error(system, y), (y,), (slope(system, y),))[1]) < 0
    decayed = saad_solla(units=2, activation=activation, noise=0.0, learning_rate=0.1, weight_decay=0.3)
    change = slope(decayed, y) - slope(system, y)
    expected = -0.3 * np.concatenate([2 * y[:, :2], y[:, 2:]], axis=1)
    assert np.abs(change - expected).max() < 1e-15


def test_label_noise_heats_the_fixed_point() -> None:
    """At the teacher, dQ/dt = (eta^2/B) sigma^2 E[g'_i g'_j] alone."""
    eye = np.eye(2)
    start = committee_overlaps(eye, eye, eye)
    system = saad_solla(units=2, initial_overlaps=start, label_noise=0.5, learning_rate=0.4, batch=2.0)
    flow = np.asarray(slope(system, system.initial_state()))
    expected = 0.4**2 / 2 * 0.25 * 2 / np.pi / np.sqrt(np.array([[3.0, 4.0], [4.0, 3.0]]))
    assert np.abs(flow[:, :2] - expected).max() < 1e-15 and np.abs(flow[:, 2:]).max() < 1e-15


@pytest.mark.slow
def test_sgd_of_a_real_committee() -> None:
    """N = 1000, 16 runs of one-pass SGD from exactly the initial overlaps, to t = 40: losses within 4 standard errors."""
    N, runs, eta = 1000, 16, 0.5
    i, n = np.arange(2)[:, None], np.arange(2)[None, :]
    start = committee_overlaps(np.diag([0.3, 0.4]), 0.2 * np.sin(1 + 3 * i + 5 * n), np.eye(2))
    system = saad_solla(units=2, initial_overlaps=start, learning_rate=eta)
    rng = np.random.default_rng(3)
    rows = np.stack([np.linalg.qr(rng.standard_normal((N, 4)))[0].T for _ in range(runs)])
    rows = np.linalg.cholesky(np.asarray(start)) @ rows * N**0.5
    from scipy.special import erf

    times, found = [10.0, 20.0, 40.0], []
    W, teacher = rows[:, :2].copy(), rows[:, 2:]
    for step in range(1, int(times[-1] * N) + 1):
        x = rng.standard_normal((runs, N, 1)) / N**0.5
        u, v = (W @ x)[..., 0], (teacher @ x)[..., 0]
        miss = erf(u / 2**0.5).sum(1) - erf(v / 2**0.5).sum(1)
        g = miss[:, None] * (2 / np.pi) ** 0.5 * np.exp(-(u**2) / 2)
        W -= eta * g[..., None] * x[:, None, :, 0]
        if step / N in times:
            both = np.concatenate([W, teacher], axis=1)
            states = jnp.asarray((both @ np.swapaxes(both, 1, 2) / N)[:, :2])
            found.append(np.asarray(jax.vmap(lambda y: error(system, y))(states)))
    theory = eqx.filter_jit(solve)(system, np.array([0.0, *times]))[1:]
    for values, y in zip(found, theory, strict=True):
        expected = float(error(system, y))
        # 2 %: corrections of order 1/N, amplified on the way.
        assert abs(values.mean() - expected) < 4 * values.std(ddof=1) / runs**0.5 + 0.02 * expected


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: saad_solla(learning_rate=-1.0), "learning_rate"),
        (lambda: saad_solla(units=0), "units"),
        (lambda: saad_solla(units=2, initial_overlaps=jnp.eye(3)), "initial_overlaps"),
        (lambda: saad_solla(nonsense=1.0), "nonsense"),
        (lambda: committee_overlaps(np.eye(2), np.eye(2), 0.1 * np.eye(2)), "initial_overlaps"),
        (lambda: committee_overlaps(np.eye(2), np.eye(3), np.eye(2)), "cross"),
        (lambda: saad_solla(units=1, initial_overlaps=jnp.ones((2, 2))).check(), "initial_overlaps"),
        (lambda: replace(saad_solla(), units=8).check(), "units"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(call, argument: str) -> None:
    with pytest.raises(InputError, match=f"^{argument}: ") as caught:
        call()
    assert "\n" not in str(caught.value)
