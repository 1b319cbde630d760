"""The system `spectral`: the golden problem, exact SGD against the ODE, limits, stability, schedules, bins, bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spectral_recursion import excess_risk

from odescale import InputError, OutsideTheoryError, integrate, spectral
from odescale.linear import (
    StoredData,
    constant_rate,
    exact_recursion,
    gaussian_projection,
    ode_distance,
    random_features,
    solve_binned,
    solve_spectral,
    stored_spectrum,
    volterra_force,
    volterra_kernel,
)
from odescale.schedules import CosineSchedule
from odescale.systems.spectral_bins import bin_modes
from odescale.systems.spectral_schedules import LoggedSchedule, peak_of

RANKS = np.arange(1, 1025.0)
ETA = 0.5 / np.sum(RANKS**-1.5)
AT = np.array([0, 1e3, 1e4, 1e6])
EXACT = np.array([1.6439579810, 0.022155137199, 0.0037832918398, 4.8312595e-10])
LOG_RATE = np.array([1.6439579810, 0.022139304194, 0.0037826451084, 4.8310203e-10])


@pytest.fixture(scope="module")
def golden():
    return spectral(learning_rate=ETA)


@pytest.fixture(scope="module")
def golden_exact(golden):
    return constant_rate(golden)


def log_steps(last: float) -> np.ndarray:
    """Forty whole steps from 1 to `last`: one number of them, so that one program serves all."""
    return np.concatenate([np.arange(1.0, 9.0), np.round(np.geomspace(10, last, 32))])


# ---------------------------------------------------------------------------------------------------------------------
# The golden problem: lam_j = j^-1.5, rho_j(0) = j^-0.5, d = 1024, eta = 0.5/tr, B = 1
# ---------------------------------------------------------------------------------------------------------------------


def test_golden_problem_to_eight_digits(golden, golden_exact) -> None:
    assert abs(float(golden.kappa()) - 0.2780) < 5e-5
    np.testing.assert_allclose(golden_exact(AT), EXACT, rtol=2e-8)
    np.testing.assert_allclose(constant_rate(golden, discrete=False)(AT), LOG_RATE, rtol=2e-8)
    np.testing.assert_allclose(solve_spectral(golden, AT, rtol=1e-9).loss, LOG_RATE, rtol=2e-8)
    np.testing.assert_allclose(exact_recursion(golden, AT[:3]), EXACT[:3], rtol=1e-9)


@pytest.mark.slow
def test_golden_recursion_to_a_million_steps(golden) -> None:
    np.testing.assert_allclose(exact_recursion(golden, AT), EXACT, rtol=1e-8)


def test_golden_exponents(golden_exact) -> None:
    """.668 at 1e2, .705 at 1e3, .88 at 1e4, 1.17 at 3e4 steps: a power law, then the cut-off of d = 1024."""
    at = np.array([1e2, 1e3, 1e4, 3e4])
    curve = golden_exact
    slope = -np.log(curve(at * 1.001) / curve(at / 1.001)) / np.log(1.001**2)
    np.testing.assert_allclose(slope, [0.668, 0.705, 0.88, 1.17], atol=5e-3)


def test_without_the_correction_the_golden_problem_is_missed(golden) -> None:
    """The rate 2 lam for all modes ends 4 % off at 1e3 and 1e6 steps: the comparison above sees what the log-rate form adds."""
    lam = np.asarray(golden.eigenvalues)
    root = ETA * lam
    values, vectors = np.linalg.eigh(np.diag(2 * ETA * lam) - np.outer(root, root))
    amplitudes = (vectors.T @ (np.asarray(golden.start) / root)) * (vectors.T @ root)
    plain = np.exp(-np.outer(AT, values)) @ amplitudes
    assert abs(plain[1] / EXACT[1] - 1) > 0.03 and abs(plain[3] / EXACT[3] - 1) > 0.03
    np.testing.assert_allclose(plain[[1, 3]], [0.0213, 4.65e-10], rtol=5e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Exact against the plain loop, the ODE against exact
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "noise"), [(1, 0.0), (8, 0.3)])
def test_recursion_and_eigenmodes_are_the_plain_loop(batch, noise) -> None:
    lam, rho = RANKS[:50] ** -1.2, RANKS[:50] ** -0.3
    steps = np.unique(np.round(np.geomspace(1, 3000, 30)))
    plain = excess_risk(lam, rho, eta=0.1, batch=batch, steps=steps, noise=noise)
    system = spectral(eigenvalues=lam, excess=rho, learning_rate=0.1, batch=batch, noise=noise)
    np.testing.assert_allclose(exact_recursion(system, steps), plain, rtol=1e-12)
    np.testing.assert_allclose(constant_rate(system)(steps), plain, rtol=1e-10)
    if noise:
        late = constant_rate(system)(np.array([1e7])) + noise
        np.testing.assert_allclose(late, float(system.noise_floor()), rtol=1e-10)


@pytest.mark.parametrize(("batch", "bound"), [(8, 1e-3), (32, 1e-3), (1, 1e-2)])
@pytest.mark.parametrize("exponents", [(1.5, 2.0), (1.2, 1.5)])
def test_ode_against_exact_sgd(batch, bound, exponents) -> None:
    """eta lam_max = .1: 1e-3 for B >= 8, 1e-2 for B = 1, with and without label noise, from the first step on."""
    steps = log_steps(3e4)
    for noise in (0.0, 0.1):
        b, a = exponents
        system = spectral(spectrum_exponent=b, risk_exponent=a, learning_rate=0.1, batch=batch, noise=noise, modes=256)
        assert np.max(np.abs(ode_distance(system, steps))) < bound
    # and not by virtue of a rate at which any ODE would do
    assert np.max(np.abs(ode_distance(system, steps))) > bound / 50


@pytest.mark.parametrize("schedule", ["cosine:5000:0.1", "wsd:500:3000:5000:0.05", "power:0.5:100"])
def test_ode_against_exact_sgd_under_schedules(schedule) -> None:
    system = spectral(learning_rate=0.1, batch=8, noise=0.02, modes=256, schedule=schedule)
    steps = log_steps(5000)
    assert np.max(np.abs(ode_distance(system, steps))) < 1e-3


def test_reading_the_schedule_half_a_step_early_matters() -> None:
    """A warm-up of 50 steps: without the half step the ODE would be a percent off."""
    system = spectral(learning_rate=0.1, batch=8, modes=256, schedule="wsd:50:300:400")
    steps = np.arange(10, 410, 10)
    assert np.max(np.abs(ode_distance(system, steps))) < 1e-3
    # Half a step later is what the ODE would read without it.
    late = spectral(learning_rate=0.1, batch=8, modes=256, schedule="wsd:49.5:299.5:399.5")
    assert np.max(np.abs(exact_recursion(late, steps) / exact_recursion(system, steps) - 1)) > 2e-3


def test_infinite_batch_is_gradient_descent() -> None:
    lam, rho = RANKS[:30] ** -1.0, np.ones(30)
    system = spectral(eigenvalues=lam, excess=rho, learning_rate=0.3, batch=np.inf, noise=0.5)
    steps = np.array([1, 10, 100])
    expected = [np.sum(lam * rho * (1 - 0.3 * lam) ** (2 * r)) for r in steps]
    np.testing.assert_allclose(exact_recursion(system, steps), expected, rtol=1e-12)
    np.testing.assert_allclose(solve_spectral(system, steps.astype(float), rtol=1e-9).loss, expected, rtol=1e-8)
    np.testing.assert_allclose(constant_rate(system)(steps), expected, rtol=1e-12)


def test_volterra_form(golden) -> None:
    """P = F + int K P by Gauss-Legendre in pieces of log time, P from the eigenmodes; int K = kappa."""
    system = spectral(learning_rate=0.2, noise=0.1, modes=100)
    curve, residual = constant_rate(system, discrete=False), float(system.residual_noise)
    x, w = np.polynomial.legendre.leggauss(20)

    def integral(function, end, pieces=40):
        edges = np.concatenate([[0.0], np.geomspace(1e-3, end, pieces)])
        half = np.diff(edges)[:, None] / 2
        points = (edges[:-1, None] + half * (x + 1)).ravel()
        return np.sum(function(points) * (half * w).ravel())

    for t in (3.0, 200.0):
        driven = integral(lambda s, t=t: np.asarray(volterra_kernel(system, s)) * (residual + curve(t - s)), t)
        expected = residual + curve(np.array([t]))[0]
        assert abs((float(volterra_force(system, jnp.array([t]))[0]) + driven) / expected - 1) < 1e-8
    assert abs(integral(lambda s: np.asarray(volterra_kernel(system, s)), 1e6) / float(system.kappa()) - 1) < 1e-8


# ---------------------------------------------------------------------------------------------------------------------
# Stability
# ---------------------------------------------------------------------------------------------------------------------


def test_the_bound_that_broke_is_named() -> None:
    lam = np.ones(100)
    with pytest.raises(OutsideTheoryError, match=r"kappa = sum .* got kappa = "):
        spectral(eigenvalues=lam, excess=lam, learning_rate=0.05, batch=2)
    with pytest.raises(OutsideTheoryError, match=r"eta \(1 \+ 1/B\) lam_max < 2"):
        spectral(eigenvalues=lam, excess=lam, learning_rate=2.1, batch=1000)
    with pytest.raises(OutsideTheoryError, match="kappa"):
        spectral(eigenvalues=lam, excess=lam, learning_rate=0.01, batch=2, schedule=lambda r: 1.0 + 5 * (r > 100))
    gentle = spectral(eigenvalues=lam, excess=lam, learning_rate=0.01, batch=2)
    with pytest.raises(OutsideTheoryError, match="momentum"):
        exact_recursion(gentle, np.array([10]), momentum=0.99)
    single = spectral(eigenvalues=np.ones(1), excess=np.ones(1), learning_rate=0.6, batch=1)
    with pytest.raises(OutsideTheoryError, match="spectral radius"):
        exact_recursion(single, np.array([10]), momentum=0.9)


def test_both_bounds_are_sharp() -> None:
    """One per cent inside: the risk falls. One per cent outside: the plain recursion grows."""
    lam = np.concatenate([np.ones(3), RANKS[:40] ** -1.5])
    for batch in (1, 4, 400):
        low, high = 0.0, 2.0 / (1 + 1 / batch)
        for _ in range(60):
            mid = (low + high) / 2
            kappa = np.sum(mid / batch * lam / (2 - mid * (1 + 1 / batch) * lam))
            low, high = (mid, high) if kappa < 1 else (low, mid)
        spectral(eigenvalues=lam, excess=lam, learning_rate=0.99 * low, batch=batch)
        with pytest.raises(OutsideTheoryError):
            spectral(eigenvalues=lam, excess=lam, learning_rate=1.01 * low, batch=batch)
        steps = np.array([20_000, 21_000])
        inside = excess_risk(lam, lam, eta=0.99 * low, batch=batch, steps=steps)
        with np.errstate(over="ignore", invalid="ignore"):
            outside = excess_risk(lam, lam, eta=1.01 * low, batch=batch, steps=steps)
        assert inside[1] < inside[0] and not outside[1] < outside[0]


# ---------------------------------------------------------------------------------------------------------------------
# Bins
# ---------------------------------------------------------------------------------------------------------------------


def test_bins_keep_their_moments() -> None:
    lam = RANKS**-1.5
    risk = RANKS**-2.0
    x, free, kernel = bin_modes(lam, risk, per_decade=5, nodes=2)
    assert x.size < 120
    for power in range(2):
        assert abs(np.sum(free * x**power) / np.sum(risk * lam**power) - 1) < 1e-13
        assert abs(np.sum(kernel * x**power) / np.sum(lam ** (2 + power)) - 1) < 1e-13
    same = bin_modes(lam[:8], risk[:8], per_decade=1000)
    for got, given in zip(same, (lam[:8], risk[:8], lam[:8] ** 2), strict=True):
        np.testing.assert_allclose(np.sort(got), np.sort(given), rtol=1e-15)


@pytest.mark.slow
def test_binned_modes_against_all_of_them() -> None:
    """1e4 modes, 10 bins per decade: 1e-3 in the power law and after twelve e-folds of the slowest mode; the stated error holds."""
    ranks = np.arange(1, 10_001.0)
    lam, rho = ranks**-1.5, ranks**-0.5
    eta = 0.5 / lam.sum()
    times = np.geomspace(1, 6 / (eta * lam[-1]), 120)
    full = solve_spectral(spectral(eigenvalues=lam, excess=rho, learning_rate=eta), times, rtol=1e-7).loss
    binned = solve_binned(lam, rho, times, learning_rate=eta, rtol=1e-7)
    error = np.abs(binned.curve.loss / full - 1)
    early = times < times[-1] / 100
    assert binned.nodes < 300
    assert error[early].max() < 1e-6 and error.max() < 1e-3
    assert 0.5 < error.max() / binned.error.max() < 2
    coarse = solve_binned(lam, rho, times, per_decade=10, nodes=1, learning_rate=eta)
    assert np.abs(coarse.curve.loss / full - 1).max() > 0.05  # one node per bin is not enough at the cut-off


@pytest.mark.slow
def test_a_million_modes_in_bounded_memory() -> None:
    import tracemalloc

    tracemalloc.start()
    ranks = np.arange(1, 1e6 + 1)
    lam, rho = ranks**-1.5, ranks**-0.5
    eta = 0.5 / lam.sum()
    binned = solve_binned(lam, rho, np.geomspace(1, 6 / (eta * lam[-1]), 100), learning_rate=eta)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert binned.nodes < 600 and binned.error.max() < 1e-3
    assert peak < 150e6


# ---------------------------------------------------------------------------------------------------------------------
# Schedules, the common interface, random features, data
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_array_of_rates_is_the_schedule() -> None:
    cosine = spectral(learning_rate=0.1, batch=4, modes=64, schedule="cosine:2000:0.1")
    rates = 0.1 * np.asarray(CosineSchedule(2000.0, 0.1)(jnp.arange(2001.0)))
    logged = spectral(batch=4, modes=64, schedule=rates)
    steps = np.array([10, 100, 1000, 2000])
    np.testing.assert_allclose(exact_recursion(logged, steps), exact_recursion(cosine, steps), rtol=1e-12)
    np.testing.assert_allclose(
        solve_spectral(logged, steps.astype(float)).loss, solve_spectral(cosine, steps.astype(float)).loss, rtol=1e-5
    )
    dropped = np.where(np.arange(2001) < 900, 0.1, 0.01)
    system = spectral(batch=4, modes=64, schedule=dropped)
    assert np.max(np.abs(ode_distance(system, steps))) < 2e-3
    assert peak_of(LoggedSchedule(dropped)) == 0.1


def test_integrate_gives_the_same_curve() -> None:
    system = spectral(learning_rate=0.1, batch=4, modes=24, noise=0.01)
    times = np.geomspace(1, 1e4, 12)
    generic = integrate(system, ts=times)
    np.testing.assert_allclose(generic.loss[1:], solve_spectral(system, times, rtol=1e-9).loss, rtol=1e-6)
    assert generic.clock.steps(1.0) == 1.0


def test_projection_onto_everything_is_no_projection() -> None:
    lam, theta = RANKS[:40] ** -1.5, RANKS[:40] ** -0.25
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((40, 40)))[0]
    steps = np.array([1, 30, 1000])
    full = spectral(eigenvalues=lam, excess=theta**2, learning_rate=0.1)
    turned = random_features(lam, theta, rotation, learning_rate=0.1)
    assert float(turned.floor) < 1e-25
    np.testing.assert_allclose(exact_recursion(turned, steps), exact_recursion(full, steps), rtol=1e-8)
    floors = [float(random_features(lam, theta, rotation[:n], learning_rate=0.1).floor) for n in (5, 10, 20, 39)]
    assert np.all(np.diff(floors) < 0)
    narrow = gaussian_projection(10, 40, seed=2)
    system = random_features(lam, theta, narrow, learning_rate=0.1)
    start = np.sum(lam * theta**2)
    assert abs(float(jnp.sum(system.start) + system.floor) / start - 1) < 1e-12


def test_stored_data_starts_at_its_own_error() -> None:
    rng = np.random.default_rng(3)
    X = rng.standard_normal((60, 20))
    y = rng.standard_normal(60)
    system = stored_spectrum(StoredData(X, y), learning_rate=0.05, batch=4)
    assert abs(float(jnp.sum(system.start) + system.noise) / np.mean(y**2) - 1) < 1e-12
    fitted = stored_spectrum(StoredData(X.T, y[:20]), learning_rate=0.05, batch=4)
    assert float(fitted.noise) < 1e-20


def test_parameters_do_not_compile_anew() -> None:
    from odescale.cache.programs import made

    times = np.geomspace(1, 100, 7)
    solve_spectral(spectral(learning_rate=0.1, modes=12), times)
    before = dict(made)
    for eta, batch in ((0.05, 2.0), (0.2, 8.0)):
        solve_spectral(spectral(learning_rate=eta, batch=batch, modes=12, noise=0.1), times, rtol=1e-6)
    assert dict(made) == before


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("eigenvalues", lambda: spectral(eigenvalues=np.array([1.0, -1.0]), excess=np.ones(2))),
        ("excess", lambda: spectral(eigenvalues=np.ones(2), excess=np.ones(3))),
        ("excess", lambda: spectral(eigenvalues=np.ones(2))),
        ("modes", lambda: spectral(eigenvalues=np.ones(2), excess=np.ones(2), modes=2)),
        ("learning_rate", lambda: spectral(learning_rate=-1.0)),
        ("learning_rate", lambda: spectral(learning_rate=0.1, schedule=np.ones(10))),
        ("schedule", lambda: spectral(schedule=np.array([0.1, np.nan]))),
        ("floor", lambda: spectral(floor=-1.0)),
        ("steps", lambda: exact_recursion(spectral(), np.array([1.5]))),
        ("steps", lambda: solve_spectral(spectral(), np.array([3.0, 2.0]))),
        ("momentum", lambda: exact_recursion(spectral(), np.array([1]), momentum=1.0)),
        ("schedule", lambda: constant_rate(spectral(schedule="power:0.5"))),
        ("system", lambda: constant_rate(spectral(per_decade=10.0))),
        ("start", lambda: spectral(eigenvalues=np.ones(2), excess=np.zeros(2))),
        ("projection", lambda: random_features(np.ones(3), np.ones(3), np.ones((2, 4)))),
        ("targets", lambda: StoredData(np.ones((3, 2)), np.ones(2))),
        ("noise", lambda: stored_spectrum(StoredData(np.eye(3), np.ones(3)), noise=0.1)),
        ("rtol", lambda: solve_spectral(spectral(), np.array([1.0]), rtol=1e-17)),
    ],
)
def test_bad_input_names_the_argument(argument, call) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.argument == argument


@pytest.mark.slow
def test_gradients_through_the_vector_field_and_the_solver() -> None:
    """Forward mode through the adaptive loop against differences."""
    times = jnp.array([0.0, 10.0, 300.0])

    def late(eta):
        from odescale.solve.spectral.log_rate import solve_arrays

        system = spectral(learning_rate=eta, batch=4, modes=16)
        return solve_arrays(system, system.initial_state(), times, jnp.asarray(1e-9))["loss"][-1]

    slope = jax.jvp(late, (jnp.asarray(0.1),), (jnp.asarray(1.0),))[1]
    step = 1e-4
    expected = (late(jnp.asarray(0.1 + step)) - late(jnp.asarray(0.1 - step))) / (2 * step)
    assert abs(float(slope) / float(expected) - 1) < 1e-5
