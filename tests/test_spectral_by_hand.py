"""Spectral solvers against enumeration, loops and closed forms: schedules, bins and kinks that nothing else would notice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_problem import Golden, golden

from odescale import spectral
from odescale.solve.integrate import _term_and_time
from odescale.solve.spectral.binned import solve_binned
from odescale.solve.spectral.exact import exact_recursion, ode_distance
from odescale.solve.spectral.passes import repeated_passes
from odescale.solve.structure import solve_structured
from odescale.systems.spectral_bins import bin_modes
from odescale.systems.spectral_features import StoredData, random_features

RATES = np.array([0.3, 0.1, 0.25, 0.05])


def test_repeated_passes_follow_their_schedule() -> None:
    """Three samples, one weight, batches of one: all 81 draws of four steps, each with its own rate."""
    x, y = np.array([1.0, -0.5, 2.0]), np.array([0.3, 0.4, -0.2])
    thetas = np.zeros(1)
    for eta in RATES:
        thetas = (thetas[:, None] - eta * x * (x * thetas[:, None] - y)).ravel()
    on_data = np.mean((thetas[:, None] * x - y) ** 2)
    fresh = np.mean(2.0 * (thetas - 0.7) ** 2) + 0.3  # inputs of variance 2, target .7, noise .3
    got = repeated_passes(
        StoredData(x[:, None], y), np.array([4]), schedule=RATES, covariance=np.array([[2.0]]), target=np.array([0.7]),
        test_noise=0.3, batch=1,
    )  # fmt: skip
    assert got.test is not None
    np.testing.assert_allclose([got.train[0], got.test[0]], [on_data, fresh], rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_recursion_follows_its_schedule(momentum: float) -> None:
    """Second moments of (theta - theta*, last move) of every mode by a loop: E over a batch of B Gaussian samples, step by step."""
    lam, rho, noise, batch = np.array([1.0, 0.4]), np.array([0.5, 2.0]), 0.2, 3.0
    m = np.array([np.diag([one, 0.0]) for one in rho])
    expected = []
    for eta in RATES:
        P = noise + sum(x * one[0, 0] for x, one in zip(lam, m, strict=True))
        after = []
        for x, (ww, wv, vv) in zip(lam, ((o[0, 0], o[0, 1], o[1, 1]) for o in m), strict=True):
            # gradient g = (1/B) sum z (z.w - noise): E g w = x ww, E g^2 = x^2 ww + (x P + x^2 ww)/B
            gw, gv, gg = x * ww, x * wv, x**2 * ww + (x * P + x**2 * ww) / batch
            new_vv = momentum**2 * vv - 2 * momentum * eta * gv + eta**2 * gg
            new_wv = momentum * wv - eta * gw + new_vv
            new_ww = ww + 2 * (momentum * wv - eta * gw) + new_vv
            after.append(np.array([[new_ww, new_wv], [new_wv, new_vv]]))
        m = np.array(after)
        expected.append(sum(x * one[0, 0] for x, one in zip(lam, m, strict=True)))
    system = spectral(eigenvalues=lam, excess=rho, noise=noise, batch=batch, schedule=RATES)
    np.testing.assert_allclose(exact_recursion(system, np.arange(1, 5), momentum=momentum), expected, rtol=1e-12)


def test_three_nodes_of_a_bin_keep_six_moments() -> None:
    """Of 60 modes in one bin: sum e lam^n and sum lam^2 lam^n for n = 0 to 5, and not for n = 6."""
    lam = np.linspace(1.0, 2.0, 60)
    risk = 1 + np.cos(7 * lam) ** 2
    x, free, kernel = bin_modes(lam, risk, per_decade=1.0, nodes=3)
    assert x.size == 6
    for power in range(7):
        exact = np.sum(risk * lam**power), np.sum(lam ** (2 + power))
        off = np.abs(np.array([free @ x**power, kernel @ x**power]) / exact - 1)
        assert (off < 1e-12).all() if power < 6 else (off > 1e-9).all()


def test_the_stated_error_of_bins_is_their_error() -> None:
    """800 modes in coarse bins against all of them: the error is there, and stated within a factor of two."""
    ranks = np.arange(1, 801.0)
    lam, rho = ranks**-1.5, ranks**-0.5
    eta = 0.5 / lam.sum()
    steps = np.geomspace(10, 3 / (eta * lam[-1]), 12)
    full = solve_binned(lam, rho, steps, per_decade=1000, learning_rate=eta)  # a node for every mode
    coarse = solve_binned(lam, rho, steps, per_decade=3, nodes=1, learning_rate=eta)
    assert full.nodes == 800 and full.error.max() < 1e-12
    error = np.abs(coarse.curve.loss / full.curve.loss - 1)
    assert error.max() > 0.01 and coarse.nodes < 40
    assert 0.5 * coarse.error.max() < error.max() < 2 * coarse.error.max()
    assert np.argmax(error) == np.argmax(coarse.error)


def test_the_distance_of_the_ode_is_its_distance() -> None:
    """One mode, no noise, a large batch: e(r) = G^r exactly in both, so that only the force of the noise is left."""
    lam = np.array([1.0])
    steps = np.array([1, 5, 20])
    quiet = spectral(eigenvalues=lam, excess=np.array([1.0]), learning_rate=0.4, batch=1e12)
    assert np.abs(ode_distance(quiet, steps)).max() < 1e-6
    # With B = 2: e <- (G + eta^2/B) e exactly, and log(G + eta^2/B) is what the log-rate ODE replaces by -a + a eta^2/(B g).
    loud = spectral(eigenvalues=lam, excess=np.array([1.0]), learning_rate=0.4, batch=2)
    G = 1 - 0.8 + 0.16 * 1.5
    a, g = -np.log(G), 1 - G
    expected = np.exp((-a + a / g * 0.08) * steps) / (G + 0.08) ** steps - 1
    np.testing.assert_allclose(ode_distance(loud, steps), expected, rtol=1e-4)


def test_random_features_begin_and_end_where_least_squares_says() -> None:
    """Risk of theta(0) and of the best weights in the data's own space, without an eigenbasis."""
    rng = np.random.default_rng(4)
    lam, theta, W, start = (
        np.array([3.0, 1.0, 0.5, 0.2]),
        rng.normal(size=4),
        rng.normal(size=(2, 4)),
        rng.normal(size=2),
    )
    system = random_features(lam, theta, W, start=start, learning_rate=0.01, noise=0.1)
    miss = W.T @ start - theta
    assert float(system.residual_noise + jnp.sum(system.start)) == pytest.approx(miss @ (lam * miss) + 0.1, rel=1e-12)
    design = np.sqrt(lam)[:, None] * W.T
    best = np.linalg.lstsq(design, np.sqrt(lam) * theta, rcond=None)[0]
    rest = W.T @ best - theta
    assert float(system.floor) == pytest.approx(rest @ (lam * rest), rel=1e-12)


class Pulse(Golden):
    """The learning rate is zero but for one unit of t, which a solver that does not know of it steps over."""

    kinks: tuple[float, ...] = (30.0, 31.0)

    def drift(self, t: jax.Array, C: jax.Array, R: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        M1, M0, N = super().drift(t, C, R)
        on = jnp.where((t > 30.0) & (t <= 31.0), 1.0, 0.0)
        return 200 * on * M1, M0, 0.0 * N


def test_the_structured_solver_ends_steps_on_kinks() -> None:
    """e_k(t) = e_k(0) exp(-2 eta lam_k 200) past the pulse and e_k(0) before, whatever the step was."""
    plain, q = golden(6)
    problem = Pulse(plain.eigenvalues, plain.weights, plain.learning_rate, plain.batch, plain.rows)
    solution = solve_structured(problem, q, jnp.asarray([29.0, 200.0]), rtol=1e-5)
    before = np.asarray(q[:, 0, 0])
    after = before * np.exp(-2 * 200 * float(plain.learning_rate) * np.asarray(plain.eigenvalues))
    np.testing.assert_allclose(solution.ys[0, :, 0, 0], before, rtol=1e-12)
    np.testing.assert_allclose(problem.loss(solution.ys[1]), after @ np.asarray(plain.eigenvalues), rtol=1e-4)


def test_a_flow_in_log_time_is_the_flow() -> None:
    """theta = log(1 + t/tau): the integral of dy/dtheta from 0 is y(t), also before tau."""
    system: Any = SimpleNamespace(
        integration=SimpleNamespace(time_scale=jnp.asarray(2.0)), vector_field=lambda t, y: jnp.cos(t) + 0 * y
    )
    term, own = _term_and_time(system, jnp.asarray([0.0, 0.5, 30.0]))
    for end, t in zip(own, (0.0, 0.5, 30.0), strict=True):
        x, w = np.polynomial.legendre.leggauss(60)
        theta = jnp.asarray(float(end) * (x + 1) / 2)
        field = jax.vmap(lambda u: term.vf(u, jnp.asarray(0.0), system))(theta)
        np.testing.assert_allclose(float(end) / 2 * w @ field, np.sin(t), atol=1e-9)
