"""The fast solver of the log-rate ODE: against eigenmodes, against scipy, its order, and how it fails."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from odescale import SolveError, spectral
from odescale.linear import constant_rate, solve_spectral
from odescale.solve.codes import Code
from odescale.solve.spectral.solver import solve_with_diffrax
from odescale.solve.spectral.step import rank_one_step

ETA = 0.5 / np.sum(np.arange(1, 1025.0) ** -1.5)
TIMES = np.geomspace(1, 1e6, 400)
WSD = "wsd:1e4:8e5:1e6"


def by_scipy(system, rate, kinks, times, rtol=1e-9):
    """E by LSODA, restarted at the kinks; the right-hand side written out anew."""
    lam, B = np.asarray(system.eigenvalues), float(system.batch)

    def field(t, e):
        eta = rate(max(t - 0.5, 0.0))
        g = 2 * eta * lam - eta**2 * (1 + 1 / B) * lam**2
        decay = -np.log1p(-g)
        ratio = np.divide(decay, g, out=np.ones_like(g), where=g > 0)
        return -decay * e + ratio * eta**2 / B * lam**2 * (float(system.noise) + e.sum())

    y, found, stops = np.asarray(system.start), [], [0.0, *(k + 0.5 for k in kinks), times[-1]]
    for begin, end in zip(stops[:-1], stops[1:], strict=True):
        inside = times[(times > begin) & (times <= end)]
        at = np.unique(np.append(inside, end))
        course = solve_ivp(field, (begin, end), y, method="LSODA", rtol=rtol, atol=1e-24, t_eval=at)
        y = course.y[:, -1]
        found.append(course.y.sum(axis=0)[: inside.size])
    return np.concatenate(found)


def cosine(eta, total):
    return lambda t: eta * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * min(t / total, 1))))


def warm_stable_decay(eta, warm, start, end):
    return lambda t: eta * min(t / warm, 1) * (1 - np.clip((t - start) / (end - start), 0, 1))


@pytest.fixture(scope="module")
def golden():
    return spectral(learning_rate=ETA)


def test_constant_rate_against_eigenmodes(golden) -> None:
    """d = 1024, 400 log-spaced times up to 1e6 steps, over nine decades of E: 1e-4, with the default tolerance."""
    expected = constant_rate(golden, discrete=False)(TIMES)
    curve = solve_spectral(golden, TIMES)
    error = np.abs(curve.loss / expected - 1)
    assert error.max() < 1e-5 and curve.accepted < 200
    assert np.max(np.abs(solve_spectral(golden, TIMES, rtol=1e-8).loss / expected - 1)) < 1e-8


@pytest.mark.parametrize(
    ("schedule", "rate", "kinks"),
    [
        ("cosine:1e6:0.1", cosine(0.2, 1e6), ()),
        (WSD, warm_stable_decay(0.2, 1e4, 8e5, 1e6), (1e4, 8e5)),
    ],
)
def test_schedules_against_scipy(schedule, rate, kinks) -> None:
    system = spectral(learning_rate=0.2, modes=48, noise=1e-3, batch=2, schedule=schedule)
    expected = by_scipy(system, rate, kinks, TIMES)
    assert np.max(np.abs(solve_spectral(system, TIMES).loss / expected - 1)) < 1e-4
    assert np.max(np.abs(solve_spectral(system, TIMES, rtol=1e-9).loss / expected - 1)) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "rate", "kinks"),
    [
        ("cosine:1e6:0.1", cosine(ETA, 1e6), ()),
        (WSD, warm_stable_decay(ETA, 1e4, 8e5, 1e6), (1e4, 8e5)),
    ],
)
def test_schedules_against_scipy_at_full_size(schedule, rate, kinks) -> None:
    """d = 1024, E over ten decades, against LSODA at rtol 1e-9."""
    system = spectral(learning_rate=ETA, schedule=schedule)
    expected = by_scipy(system, rate, kinks, TIMES)
    assert np.max(np.abs(solve_spectral(system, TIMES).loss / expected - 1)) < 1e-4


def test_a_kink_that_is_not_named_costs_accuracy() -> None:
    """The same schedule as a callable without kinks: the comparison above sees what stepping onto them is for."""
    named = spectral(learning_rate=0.2, modes=48, noise=1e-3, schedule=WSD)
    rate = warm_stable_decay(1.0, 1e4, 8e5, 1e6)
    hidden = spectral(
        learning_rate=0.2,
        modes=48,
        noise=1e-3,
        schedule=lambda t: jnp.minimum(t / 1e4, 1) * (1 - jnp.clip((t - 8e5) / 2e5, 0, 1)),
    )
    assert float(hidden.schedule(9e5)) == pytest.approx(rate(9e5))
    best = solve_spectral(named, TIMES, rtol=1e-9).loss
    errors = [np.max(np.abs(solve_spectral(s, TIMES, rtol=1e-4).loss / best - 1)) for s in (named, hidden)]
    assert errors[1] > 2 * errors[0]


def test_one_step_is_of_order_five() -> None:
    """Half the step: 2^6 less local error (rates below 1/h, cosine under way)."""
    system = spectral(learning_rate=0.01, modes=20, noise=0.5, schedule="cosine:300:0.1")
    start, begin = system.initial_state(), jnp.asarray(20.0)

    def walk(h, count):
        e, t = start, begin
        for _ in range(count):
            e, t = rank_one_step(system, t, t + h, e).end, t + h
        return e

    errors = []
    for h in (16.0, 8.0):
        errors.append(float(jnp.max(jnp.abs(walk(h, 1) - walk(h / 16, 16)))))
    assert 4.5 < np.log2(errors[0] / errors[1]) < 7


def test_states_add_up_and_stay_positive() -> None:
    system = spectral(learning_rate=0.2, modes=48, batch=2, noise=0.1)
    curve = solve_spectral(system, TIMES[::40], states=True)
    assert curve.state is not None and np.all(curve.state > 0)
    np.testing.assert_allclose(curve.state.sum(axis=1), curve.loss, rtol=1e-12)
    # Started again from a state on the way, it goes on as before.
    rest = solve_spectral(system, TIMES[200::40] - TIMES[160], start=curve.state[4], rtol=1e-8)
    np.testing.assert_allclose(rest.loss, constant_rate(system, discrete=False)(TIMES[200::40]), rtol=1e-5)


def test_noise_alone_lifts_the_risk_from_zero() -> None:
    lam = np.arange(1, 31.0) ** -1.5
    system = spectral(eigenvalues=lam, excess=0 * lam, learning_rate=0.2, noise=0.3)
    times = np.geomspace(0.1, 1e5, 80)
    expected = constant_rate(system, discrete=False)(times)
    assert np.max(np.abs(solve_spectral(system, times).loss / expected - 1)) < 1e-4
    assert abs(expected[-1] + 0.3 - float(system.noise_floor())) < 1e-9


def test_what_cannot_be_met_is_a_code_and_no_value() -> None:
    """Too few steps: NaN beyond the last accepted step, right values before it, and an error that says where it stopped."""
    system = spectral(learning_rate=0.2, modes=48)
    curve = solve_spectral(system, TIMES, max_steps=40, on_failure="mask")
    assert curve.code == Code.MAX_STEPS and 0 < curve.reached < TIMES[-1]
    np.testing.assert_array_equal(curve.valid, TIMES <= curve.reached)
    assert np.all(np.isnan(curve.loss[~curve.valid])) and curve.valid.any()
    expected = constant_rate(system, discrete=False)(TIMES)
    assert np.max(np.abs(curve.loss / expected - 1)[curve.valid]) < 1e-4
    with pytest.raises(SolveError, match="stopped after t = .* step cap"):
        solve_spectral(system, TIMES, max_steps=40)
    tight = solve_spectral(system, TIMES, rtol=5e-15, max_steps=40, on_failure="mask")
    assert tight.code != Code.OK and not tight.valid[-1] and np.isnan(tight.loss[-1])


def test_a_rate_that_turns_into_nan_is_a_code() -> None:
    def broken(t):
        return jnp.where(t < 100, 1.0, jnp.nan)

    system = spectral(learning_rate=0.2, modes=48)

    system = eqx.tree_at(lambda s: s.schedule, system, broken)
    from odescale.solve.spectral import log_rate as engine

    out = engine._solve(system, system.initial_state(), jnp.asarray([0.0, 50.0, 1e3]), jnp.asarray(1e-5))
    assert int(out["code"]) != Code.OK and bool(jnp.isnan(out["loss"][-1])) and bool(jnp.isfinite(out["loss"][1]))


@pytest.mark.slow
def test_the_diffrax_solver_takes_the_same_curve_and_gradients() -> None:
    """Curve against eigenmodes; reverse-mode gradient in the learning rate and in one eigenvalue against differences."""
    times = np.array([0.0, 10.0, 1e3, 1e5])
    system = spectral(learning_rate=0.2, modes=16, batch=2, noise=0.01)
    expected = constant_rate(system, discrete=False)(times)

    @jax.jit
    def curve(eta, shift):
        own = eqx.tree_at(
            lambda s: (s.learning_rate, s.eigenvalues), system, (eta, system.eigenvalues.at[3].add(shift))
        )
        states = solve_with_diffrax(own, times, rtol=1e-9).ys
        assert states is not None
        return jnp.sum(states, axis=1)

    at = (jnp.asarray(0.2), jnp.zeros(()))
    np.testing.assert_allclose(curve(*at), expected, rtol=1e-8)
    gradient = jax.grad(lambda *x: curve(*x)[2], (0, 1))(*at)
    for place, step in ((0, 1e-4), (1, 1e-4)):
        ends = [curve(*(x + sign * step * (place == i) for i, x in enumerate(at)))[2] for sign in (1, -1)]
        assert abs(float(gradient[place]) / float((ends[0] - ends[1]) / (2 * step)) - 1) < 1e-5
