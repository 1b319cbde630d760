"""Real SGD of many seeds against the exact theory: rms z <= 1.6, max |z| < 4 over log-spaced steps.

256 seeds or more of d = 400 weights where the time of a slow test is there, of 100 in the fast one.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from odescale import InputError, spectral, train
from odescale.linear import (
    GaussianTask,
    StoredData,
    StoredTask,
    exact_recursion,
    gaussian_projection,
    linear_sgd,
    random_features,
    repeated_passes,
    stored_spectrum,
)
from odescale.training.experiment import experiment_of

RANKS = np.arange(1, 401.0)
LAM, THETA = RANKS**-1.5, RANKS**-0.25
STEPS = np.unique(np.round(np.geomspace(1, 500, 15)))
NOISE, ETA = 0.05, 0.15


def fit(task, steps=STEPS, *, seeds=256, **settings):
    """Runs of so many seeds, recorded at these steps."""
    return train(linear_sgd(task, **settings), steps[-1], seeds=seeds, record_times=steps, progress=False)


def agrees(run, risk) -> bool:
    """Whether the mean risk of the runs is the theory's."""
    z = (run.mean("risk") - np.asarray(risk)) / run.scatter("risk")
    return bool(np.sqrt(np.mean(z**2)) <= 1.6 and np.max(np.abs(z)) < 4)


def task(projection=None) -> GaussianTask:
    return GaussianTask(
        jnp.asarray(LAM), jnp.asarray(THETA), NOISE, None if projection is None else jnp.asarray(projection)
    )


@pytest.mark.parametrize(("batch", "schedule"), [(2, "constant"), (1, "cosine:500:0.1")])
def test_online_sgd(batch, schedule) -> None:
    lam, theta = RANKS[:100] ** -1.5, RANKS[:100] ** -0.25
    few = GaussianTask(jnp.asarray(lam), jnp.asarray(theta), NOISE)
    run = fit(few, learning_rate=ETA, batch=batch, schedule=schedule)
    given = {"learning_rate": ETA, "batch": batch, "schedule": schedule}
    system = spectral(eigenvalues=lam, excess=theta**2, noise=NOISE, **given)
    assert agrees(run, exact_recursion(system, STEPS) + NOISE)
    # Without gradient noise, and with that of another batch size, the same runs say no.
    quiet = spectral(eigenvalues=lam, excess=theta**2, noise=NOISE, **given | {"batch": np.inf})
    assert not agrees(run, exact_recursion(quiet, STEPS) + NOISE)
    other = spectral(eigenvalues=lam, excess=theta**2, noise=NOISE, **given | {"batch": 1.5 * batch})
    assert not agrees(run, exact_recursion(other, STEPS) + NOISE)


@pytest.mark.slow
def test_momentum() -> None:
    run = fit(task(), learning_rate=0.04, batch=2, momentum=0.8)
    system = spectral(eigenvalues=LAM, excess=THETA**2, noise=NOISE, learning_rate=0.04, batch=2)
    assert agrees(run, exact_recursion(system, STEPS, momentum=0.8) + NOISE)
    # An effective learning rate eta/(1 - beta) is not the same thing.
    effective = spectral(eigenvalues=LAM, excess=THETA**2, noise=NOISE, learning_rate=0.2, batch=2)
    assert not agrees(run, exact_recursion(effective, STEPS) + NOISE)


@pytest.mark.slow
def test_random_features_in_data_space() -> None:
    W = gaussian_projection(100, 400, seed=3)
    start = 0.1 * np.random.default_rng(4).standard_normal(100)
    run = fit(task(W), learning_rate=ETA, batch=2, start=start)
    system = random_features(LAM, THETA, W, start=start, learning_rate=ETA, batch=2, noise=NOISE)
    assert float(system.floor) > 0.01
    assert agrees(run, exact_recursion(system, STEPS) + float(system.residual_noise))
    # The unreachable part of the target is noise as well, not only a floor.
    silent = random_features(LAM, THETA, W, start=start, learning_rate=ETA, batch=2, noise=0.0)
    deaf = spectral(
        eigenvalues=np.asarray(silent.eigenvalues),
        excess=np.asarray(silent.start / silent.eigenvalues),
        learning_rate=ETA,
        batch=2,
        noise=NOISE,
    )
    assert not agrees(run, exact_recursion(deaf, STEPS) + float(system.residual_noise))


@pytest.mark.slow
@pytest.mark.parametrize("samples", [300, 800])
def test_repeated_passes_over_stored_data(samples) -> None:
    """n below and above d; three passes and one. Training and test error from the same runs' law."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((samples, 400)) * LAM**0.5
    y = X @ THETA + NOISE**0.5 * rng.standard_normal(samples)
    data, given = StoredData(X, y), {"learning_rate": ETA, "batch": 2}
    steps = np.unique(np.round(np.geomspace(1, 1000, 15)))
    theory = repeated_passes(data, steps, covariance=np.diag(LAM), target=THETA, test_noise=NOISE, **given)
    stored = StoredTask(jnp.asarray(X), jnp.asarray(y))
    on_data = fit(stored, steps, seeds=1024, **given)
    on_fresh = fit(StoredTask(jnp.asarray(X), jnp.asarray(y), task()), steps, seeds=1024, **given)
    assert theory.test is not None
    assert agrees(on_data, theory.train) and agrees(on_fresh, theory.test)
    # Fresh data in the place of stored ones: another curve.
    fresh = spectral(eigenvalues=LAM, excess=THETA**2, noise=NOISE, **given)
    assert not agrees(on_data, exact_recursion(fresh, steps) + NOISE)


def test_stored_spectrum_is_the_limit_of_many_samples() -> None:
    """The spectrum's own gradient noise against the samples': the distance falls with n."""
    rng = np.random.default_rng(7)
    steps, distances = np.unique(np.round(np.geomspace(1, 300, 12))), []
    for samples in (100, 1600):
        X = rng.standard_normal((samples, 60)) * LAM[:60] ** 0.5
        y = X @ THETA[:60] + NOISE**0.5 * rng.standard_normal(samples)
        data = StoredData(X, y)
        exact = repeated_passes(data, steps, learning_rate=ETA, batch=2).train
        system = stored_spectrum(data, learning_rate=ETA, batch=2)
        distances.append(np.max(np.abs((exact_recursion(system, steps) + float(system.noise)) / exact - 1)))
    assert distances[1] < 0.6 * distances[0] and distances[1] < 0.01


def test_stored_data_by_hand() -> None:
    """Three samples, one weight: every batch of one drawn with replacement, enumerated for three steps."""
    x, y, eta = np.array([1.0, -0.5, 2.0]), np.array([0.3, 0.4, -0.2]), 0.1
    data = StoredData(x[:, None], y)
    thetas = np.zeros(1)
    for _ in range(3):
        thetas = (thetas[:, None] - eta * x * (x * thetas[:, None] - y)).ravel()
    expected = np.mean((thetas[:, None] * x - y) ** 2)
    got = repeated_passes(data, np.array([3]), learning_rate=eta, batch=1)
    assert abs(got.train[0] / expected - 1) < 1e-12


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("batch", lambda: linear_sgd(task(), learning_rate=0.1, batch=0)),
        ("start", lambda: linear_sgd(task(), learning_rate=0.1, start=np.ones(3))),
        ("learning_rate", lambda: linear_sgd(task(), learning_rate=np.nan)),
        ("momentum", lambda: linear_sgd(task(), learning_rate=0.1, momentum=1.0)),
        ("modes", lambda: experiment_of(spectral(modes=5000, learning_rate=0.1))),
        ("per_decade", lambda: experiment_of(spectral(learning_rate=0.1, per_decade=10))),
        ("batch", lambda: experiment_of(spectral(learning_rate=0.1, batch=np.inf))),
        ("covariance", lambda: repeated_passes(StoredData(np.eye(2), np.ones(2)), [1], covariance=np.eye(2))),
    ],
)
def test_bad_input_names_the_argument(argument, call) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.argument == argument
