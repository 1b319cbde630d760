"""The real softmax layer: exact starts, gradients by autodiff, drift and noise of the closure, resumption, toy network."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate as quadrature
from scipy import special

from benchmarks.peaked_data import GRADIENT_POINTS, LOSS_POINTS, aligned_gradient_curve
from odescale.clock import GrowthSchedule
from odescale.errors import InputError, SolveError
from odescale.networks.softmax_layer import SoftmaxHead
from odescale.solve.integrate import integrate
from odescale.systems.peaked import Peaked, peaked
from odescale.training.peaked import LayerStep, layer_start, layer_step
from odescale.training.softmax_population import FieldNodes
from odescale.training.toy import toy_layer, toy_theory
from odescale.training.train import train

QUIET: dict[str, Any] = {"progress": False}


def system(**given: Any) -> Peaked:
    """Without the theory's noise no table is made: the run has its noise all the same."""
    return peaked(**{"classes": 3, "dimension": 60, "noise": 0.0} | given)


# Start and measurement


@pytest.mark.parametrize(("classes", "overlap", "spread"), [(2, 0.0, 0.0), (3, 1.5, 0.4), (7, 4.0, 2.0)])
def test_start_has_the_asked_order_parameters(classes: int, overlap: float, spread: float) -> None:
    W, teacher = layer_start(classes, 2 * classes, overlap, spread, seed=1)
    d, P = 2 * classes, np.eye(classes) - 1 / classes
    np.testing.assert_allclose(teacher @ teacher.T / d, np.eye(classes), atol=1e-13)
    np.testing.assert_allclose(W @ teacher.T / d, overlap * P, atol=1e-12)
    np.testing.assert_allclose(W @ W.T / d, (overlap**2 + spread) * P, atol=1e-12)


def test_the_first_record_of_a_run_is_its_start() -> None:
    run = train(system(overlap=2.0, spread=0.3), 1.0, seeds=2, record_times=[0.0, 1.0], precision="float64", **QUIET)
    np.testing.assert_allclose(run["overlap"][:, 0], 2.0, rtol=1e-12)
    np.testing.assert_allclose(run["spread"][:, 0], 0.3, rtol=1e-12)
    assert np.all(run["asymmetry"][:, 0] < 1e-12) and np.all(run["asymmetry"][:, 1] > 1e-3)


# Loss and error at given overlaps, against quadrature


@pytest.mark.parametrize(("D", "spread"), [(3.0, 0.3), (10.0, 0.3), (30.0, 0.0)])
def test_population_of_two_classes(D: float, spread: float) -> None:
    """F(s) - D/sqrt(pi) by quadrature of one margin; the error is arccos(D/s)/pi."""
    P, s = np.eye(2) - 0.5, np.sqrt(D**2 + spread)

    def integrand(z: float) -> float:
        return float(np.exp(-z * z / 2) / np.sqrt(2 * np.pi) * np.logaddexp(0, np.sqrt(2) * s * z))

    F = sum(quadrature.quad(integrand, *ends, epsabs=1e-13, epsrel=1e-13)[0] for ends in ((-12, 0), (0, 12)))
    found = FieldNodes(2).population(D * P, s**2 * P, soft=False)
    exact, wrong = F - D / np.sqrt(np.pi), np.arccos(D / s) / np.pi
    assert abs(found.loss - exact) < 5.5 * found.loss_stderr and found.loss_stderr < 3e-4 * exact
    assert abs(found.error - wrong) <= 5.5 * found.error_stderr and found.error_stderr <= 1e-3 * wrong


def test_population_of_unequal_classes_and_soft_labels() -> None:
    """Overlaps without class symmetry: plain Monte Carlo over 4e5 draws, within 4.5 standard errors; soft and scaled as well."""
    random = np.random.default_rng(3)
    W, teacher = layer_start(4, 40, 3.0, 1.0, seed=2)
    W = W + 0.5 * random.standard_normal(W.shape)
    R, Q = W @ teacher.T / 40, W @ W.T / 40
    root = np.linalg.cholesky(np.block([[Q, R], [R.T, np.eye(4)]]))
    fields = random.standard_normal((400_000, 8)) @ root.T
    beta, b = 1.3, 5.0
    lam, target = beta * fields[:, :4], fields[:, 4:]
    log_p = special.log_softmax(lam, axis=1)
    top = target.argmax(axis=1)
    log_q = special.log_softmax(b * target, axis=1)
    expected = {
        False: -log_p[np.arange(len(top)), top],
        True: np.sum(np.exp(log_q) * (log_q - log_p), axis=1),
    }
    wrong = lam.argmax(axis=1) != top
    for soft, samples in expected.items():
        found = FieldNodes(4).population(R, Q, soft=soft, inverse_temperature=b, scale=beta)
        pairs = ((found.loss, found.loss_stderr, samples), (found.error, found.error_stderr, wrong))
        for value, stderr, draws in pairs:
            error = np.hypot(stderr, draws.std() / np.sqrt(len(draws)))
            assert abs(value - draws.mean()) < 4.5 * error


# One step


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "brier", "square"])
def test_gradients_are_those_of_the_loss_and_sum_to_zero(loss: Any) -> None:
    head = SoftmaxHead(jnp.inf, 0.0, 1.5, loss=loss)
    lam, fields = np.random.default_rng(0).standard_normal((2, 5, 2))
    y = head.target(jnp.asarray(fields), None)
    np.testing.assert_array_equal(np.asarray(y).argmax(axis=1), fields.argmax(axis=1))
    value, g = head.value_and_gradient(jnp.asarray(2 * lam), y)
    for k in range(2):
        shift = 1e-6 * np.eye(2)[k]
        numeric = (np.asarray(head.value(2 * lam + shift, y)) - np.asarray(head.value(2 * lam - shift, y))) / 2e-6
        np.testing.assert_allclose(np.asarray(g)[:, k], numeric, atol=1e-8)
    np.testing.assert_allclose(np.asarray(g).sum(axis=1), 0, atol=1e-12)
    p = special.softmax(2 * lam, axis=1)[np.arange(5), fields.argmax(axis=1)]
    u = np.log(p / (1 - p))
    closed = {"cross_entropy": -np.log(p), "focal": -((1 - p) ** 1.5) * np.log(p), "brier": (1 - p) ** 2}
    np.testing.assert_allclose(np.asarray(value), closed.get(loss, 0.25 * (u - 1) ** 2), rtol=1e-10)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "normalised"])
def test_a_step_is_the_optimiser_s_on_a_layer_without_root_d(optimizer: Any) -> None:
    """Three steps from optax on logits V x, V = W/sqrt d, with the loss differentiated by JAX: V = W/sqrt d afterwards."""
    d, K, B, eta, beta, decay = 12, 3, 5, 0.7, 1.4, 0.2
    random = np.random.default_rng(1)
    W, teacher = layer_start(K, d, 1.0, 0.5, seed=0)
    x = random.standard_normal((3, B, d))
    units = 1.0 if optimizer == "adam" else d
    head = SoftmaxHead(jnp.asarray(jnp.inf), 0.1)
    step = LayerStep(
        head, jnp.asarray(eta), jnp.asarray(decay), None, lambda t: beta + 0 * t, units, B, optimizer
    )  # fmt: skip

    def loss(V: Any, x: Any) -> Any:
        y = 0.9 * jax.nn.one_hot(jnp.argmax(x @ teacher.T, axis=1), K) + 0.1 / K
        return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(beta * x @ V.T), axis=1))

    rate = eta if optimizer == "adam" else eta / d
    V, rows, moments = jnp.asarray(W / np.sqrt(d)), jnp.asarray(W), jnp.zeros((2 * K if optimizer == "adam" else 0, d))
    rule = optax.adam(rate) if optimizer == "adam" else optax.sgd(rate)
    memory = rule.init(V)
    for n in range(3):
        gradient = jax.grad(loss)(V, x[n])
        if optimizer == "normalised":
            gradient = gradient / jnp.linalg.norm(gradient)
        updates, memory = rule.update(gradient, memory)
        V = V + updates - decay / units * V
        rows, moments, _ = step(rows, moments, jnp.asarray(teacher), jnp.asarray(x[n]), None, jnp.asarray(n))
    np.testing.assert_allclose(np.asarray(rows) / np.sqrt(d), np.asarray(V), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "given",
    [
        {"batch": 2},
        {"labels": "sampled", "inverse_temperature": 3.0},
        {"smoothing": 0.1, "logit_schedule": GrowthSchedule(0.5, 1.0)},
    ],
)
def test_one_step_moves_the_overlaps_as_the_closure_says(given: dict[str, Any]) -> None:
    """20 000 single steps from the same weights, Delta = 0.5: mean changes of D and D^2 + Delta within 4.5 errors, below 4 %."""
    d, K, eta, D0 = 200, 3, 1.5, 1.0
    theory = system(dimension=d, learning_rate=eta, overlap=D0, spread=0.5, **given)
    batch, random = int(theory.batch), np.random.default_rng(8)
    update = layer_step(theory)
    W, teacher = (jnp.asarray(x) for x in layer_start(K, d, D0, 0.5, seed=0))

    def change(key: jax.Array) -> jax.Array:
        inputs, labels = jax.random.split(key)
        x, gumbel = jax.random.normal(inputs, (batch, d)), jax.random.gumbel(labels, (batch, K))
        rows, _, _ = update(W, jnp.zeros((0, d)), teacher, x, gumbel, jnp.asarray(0))
        D = jnp.sum(rows * (teacher - teacher.mean(axis=0))) / d / (K - 1)
        square = jnp.sum((rows - rows.mean(axis=0)) ** 2) / d / (K - 1)
        return d * jnp.stack([D - D0, square - D0**2 - 0.5])

    keys = jax.random.split(jax.random.key(5), 20_000)
    moved = np.asarray(jax.jit(lambda k: jax.lax.map(change, k, batch_size=100))(keys))
    dD, dDelta = np.asarray(theory.vector_field(jnp.zeros(()), theory.initial_state()))  # without noise
    # G = E|p - y|^2 of the theory's Gaussian fields, by plain Monte Carlo.
    z = random.standard_normal((1_000_000, K))
    p = special.softmax(D0 * z + np.sqrt(0.5) * random.standard_normal(z.shape), axis=1)
    score = z if theory.labels == "hard" else 3.0 * z + random.gumbel(size=z.shape)
    eps = float(theory.smoothing)
    y = (1 - eps) * np.eye(K)[score.argmax(axis=1)] + eps / K
    G = np.mean(np.sum((p - y) ** 2, axis=1))
    expected = np.array([dD, 2 * D0 * dD + dDelta + eta**2 / batch * G / (K - 1)])
    error = moved.std(axis=0) / np.sqrt(len(moved))
    # |x|^2/d and the fields are correlated: what the noise adds is off by a few parts in d.
    assert np.all(np.abs(moved.mean(axis=0) - expected) < 4.5 * error + [0, 3 / d * eta**2 * G / (K - 1)])
    assert np.all(error < 0.04 * np.abs(expected))


# Runs


def test_divergence_names_seed_and_step() -> None:
    runaway = eqx.tree_at(lambda s: s.learning_rate, system(classes=2, loss="square"), jnp.asarray(50.0))
    with pytest.raises(SolveError, match=r"seed 0 at step \d+"):
        train(runaway, 5.0, seeds=1, **QUIET)


@pytest.mark.parametrize(
    ("given", "run", "name"),
    [
        ({"dimension": 5}, {}, "dimension"),
        ({"batch": 1.5}, {}, "batch"),
        ({"dimension": 60.5}, {}, "dimension"),
        ({"batch": 1e8}, {}, "batch"),
        ({}, {"t1": 0.0}, "t1"),
        ({}, {"seeds": ()}, "seeds"),
        ({}, {"precision": "half"}, "precision"),
        ({}, {"nodes": 1000}, "nodes"),
    ],
)
def test_bad_input_is_named(given: dict[str, Any], run: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError) as caught:
        train(system(**given), run.pop("t1", 1.0), **QUIET, **run)
    assert caught.value.argument == name


# The published numerics and the toy network


def test_published_slopes() -> None:
    """Within one published standard error, with no parameter to fit; neighbouring conventions of the fit fall outside."""
    curve = aligned_gradient_curve()
    assert abs(curve.slope("gradient", GRADIENT_POINTS)[0] + 2.26147) < 0.0104
    assert abs(curve.slope("loss", LOSS_POINTS)[0] + 1.15062) < 0.0406
    assert abs(curve.slope("gradient", slice(1, 60))[0] + 2.26147) > 0.0104
    assert abs(curve.slope("loss", slice(2, 10))[0] + 1.15062) > 0.0406
    # The gradient is the derivative of the loss.
    slope = -np.gradient(curve.loss, curve.student)
    np.testing.assert_allclose(slope[20:60], curve.gradient[20:60], rtol=0.01)


@pytest.mark.slow
def test_toy_network_is_gradient_descent_to_its_teacher() -> None:
    """Six steps from zero: the overlap follows the flow without noise to 12 % (K = 16 rows in 32 dimensions)."""
    toy = toy_layer(0.05, "sgd", 0.5, classes=16, inputs=32, batch=2048, test_inputs=512)
    run = train(toy, 6 / 32, seeds=4, record_times=np.arange(1, 7) / 32, **QUIET)
    theory = toy_theory(0.05, "sgd", 0.5, classes=16, inputs=32, batch=2048, noise=0.0)
    flow = integrate(theory, ts=np.concatenate([[0.0], run.t]))
    D = np.asarray(flow.observables["overlap"])[1:]
    np.testing.assert_allclose(run.mean("overlap"), D, rtol=0.12)
    assert np.all(np.diff(run.mean("loss")) < 0) and run.mean("loss")[0] < np.log(16)
    again = train(toy, 6 / 32, seeds=[3], record_times=np.arange(1, 7) / 32, **QUIET)
    np.testing.assert_array_equal(again["loss"][0], run["loss"][3])


def exponent(steps: np.ndarray, loss: np.ndarray) -> float:
    late = steps >= 400
    return -float(np.polyfit(np.log(steps[late]), np.log(loss[late]), 1)[0])


@pytest.mark.slow
def test_toy_network_by_sgd() -> None:
    """T = 1e-3, lr 10: row norm within 4 % from step 10 on, loss within 15 %, exponent over 400 to 2000 within .025."""
    run = train(toy_layer(1e-3, "sgd", 10.0), 62.5, seeds=3, record_times=np.geomspace(1, 2000, 40) / 32, **QUIET)
    flow = integrate(toy_theory(1e-3, "sgd", 10.0), ts=np.concatenate([[0.0], run.t]))
    loss, norm = np.asarray(flow.loss)[1:], np.asarray(flow.observables["logit_scale"])[1:]
    late = run.step >= 10
    np.testing.assert_allclose(run.mean("row_norm")[late], norm[late], rtol=0.04)
    np.testing.assert_allclose(run.mean("loss"), loss, rtol=0.15)
    assert abs(exponent(run.step, run.mean("loss")) - exponent(run.step, loss)) < 0.025


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "tolerance"),
    [
        (0.0123, 0.1),
        (0.0811, 0.1),
        (0.534, 0.2),
    ],
)
def test_toy_network_by_adam(rate: float, tolerance: float) -> None:
    """T = 1e-3: loss within 10 % from step 500 on (20 % at the largest rate), exponent over 400 to 2000 within .03."""
    run = train(toy_layer(1e-3, "adam", rate), 2000, seeds=3, record_times=np.geomspace(1, 2000, 40), **QUIET)
    flow = integrate(toy_theory(1e-3, "adam", rate), ts=np.concatenate([[0.0], run.t]))
    loss, late = np.asarray(flow.loss)[1:], run.step >= 500
    np.testing.assert_allclose(run.mean("loss")[late], loss[late], rtol=tolerance)
    assert abs(exponent(run.step, run.mean("loss")) - exponent(run.step, loss)) < 0.03
