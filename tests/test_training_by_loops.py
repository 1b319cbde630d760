"""Steps of real training against loops over the written update, gradients by differences; and no two seeds share their data."""

from __future__ import annotations

from math import erf
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odescale import logistic_pair, mean_field, peaked, spectral, teacher_student, transformer
from odescale.clock import GrowthSchedule, parse_schedule
from odescale.networks import CommitteeReadout, RowNetwork, SquareLoss
from odescale.networks.language_model import LanguageModel
from odescale.spectra import listed
from odescale.training.experiment import experiment_of
from odescale.training.grammar import Grammar
from odescale.training.language import language
from odescale.training.peaked import layer_step
from odescale.training.runner import Seeds, seed_key
from odescale.training.spectral import GaussianTask, linear_sgd
from odescale.training.toy import toy_layer
from odescale.training.train import train

SCHEDULE = parse_schedule("cosine:2:0.3")


def rate(t: float) -> float:
    return 0.3 + 0.7 * 0.5 * (1 + np.cos(np.pi * t / 2))


D, TOKENS, BATCH, SIGMA, RHO = 6, 2, 3, 0.4, 0.5
LAM = np.array([2.0, 2.0, 1.0, 1.0, 0.5, 0.5])
PROBLEM = teacher_student(
    RowNetwork(("a", "b"), (), CommitteeReadout(("a", "b"), "erf", 0.7)),
    loss=SquareLoss(SIGMA),
    tokens=TOKENS,
    correlation=RHO,
)


@eqx.filter_jit
def step_of(trained: Any, state: Any, key: Any, n: Any) -> Any:
    return trained.step(state, key, n)


@pytest.mark.parametrize(
    ("given", "spread"),
    [({}, False), ({"momentum": 0.7}, False), ({"friction": 1.5}, False), ({"momentum": 0.7}, True)],
    ids=["plain", "momentum", "friction", "spectrum"],
)
def test_rows_move_as_written(given: dict[str, Any], spread: bool) -> None:
    """u <- mu u + grad, W <- W - eta s(t) u - (w/N) W on three steps: mu fixed, or 1 - gamma/N with step eta/N."""
    eta, decay = 0.3, 0.2
    where: dict[str, Any] = {"spectrum": listed(LAM)} if spread else {"dimension": D}
    system = mean_field(
        PROBLEM, nodes=16, replicates=2, learning_rate=eta, weight_decay=decay, batch=BATCH, schedule=SCHEDULE, **where, **given,
    )  # fmt: skip
    trained: Any = experiment_of(system)
    N = float(LAM.sum()) if spread else float(D)
    scale = np.sqrt(LAM) if spread else np.ones(D)
    mu, step = given.get("momentum", 0.0), eta
    if "friction" in given:
        mu, step = 1 - given["friction"] / D, eta / D
    state = trained.start(5)
    table = np.array(state.rows)
    velocity = np.zeros((2, D))

    def loss(student: np.ndarray, x: np.ndarray, noise: np.ndarray) -> float:
        total = 0.0
        for tokens, xi in zip(x, noise, strict=True):
            last = tokens[-1] / N**0.5
            f = 0.7 * sum(erf(row @ last / 2**0.5) for row in student)
            target = 0.7 * sum(erf(row @ last / 2**0.5) for row in table[2:])
            total += 0.5 * (f - target - SIGMA * xi) ** 2
        return total / BATCH

    for n in range(3):
        key = jax.random.fold_in(jax.random.key(7), n)
        first, second = jax.random.split(key)
        xi = np.asarray(jax.random.normal(first, (BATCH, TOKENS, D)))
        x = xi * scale
        x[:, 1] = (RHO * xi[:, 0] + np.sqrt(1 - RHO**2) * xi[:, 1]) * scale
        noise = np.asarray(jax.random.normal(second, (BATCH, 1)))[:, 0]
        gradient = np.zeros((2, D))
        for i in np.ndindex(2, D):
            up, down = table[:2].copy(), table[:2].copy()
            up[i] += 1e-5
            down[i] -= 1e-5
            gradient[i] = (loss(up, x, noise) - loss(down, x, noise)) / 2e-5
        state, said = step_of(trained, jax.tree.map(jnp.asarray, state), key, jnp.asarray(n))
        assert float(said) == pytest.approx(loss(table[:2], x, noise), rel=1e-10)
        velocity = mu * velocity + gradient
        table[:2] = table[:2] - step * rate(n / N) * velocity - decay / N * table[:2]
        np.testing.assert_allclose(state.trained, table[:2], rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(state.memory, velocity, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(trained.table([state])[0][2:], table[2:])


def test_a_linear_model_moves_as_written() -> None:
    """v <- beta v - (eta s/B) sum_b z_b (z_b.theta - y_b), theta <- theta + v, three steps."""
    task = GaussianTask(jnp.asarray(LAM), jnp.arange(6.0), 0.5)
    trained = linear_sgd(task, learning_rate=0.1, batch=4, momentum=0.6, schedule=SCHEDULE)
    state = jax.tree.map(jnp.asarray, trained.start(0))
    theta, move = np.zeros(6), np.zeros(6)
    for n in range(3):
        key = jax.random.key(n)
        z, y = (np.asarray(part, dtype=float) for part in task.draw(key, 4))
        state, said = trained.step(state, key, jnp.asarray(n))
        assert float(said) == pytest.approx(np.mean((z @ theta - y) ** 2), rel=1e-6)
        move = 0.6 * move - 0.1 * rate(n) / 4 * sum(
            (one @ theta - label) * one for one, label in zip(z, y, strict=True)
        )
        theta = theta + move
        np.testing.assert_allclose(state.theta, theta, rtol=1e-6, atol=1e-7)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def test_a_peaked_layer_moves_as_written() -> None:
    """W <- W - (eta s/sqrt d) mean_B beta (softmax(beta W x/sqrt d) - y) x^T - (w/d) W at a growing inverse temperature beta."""
    K, d, batch, n = 3, 12, 4, 7
    system = peaked(
        classes=K, dimension=d, batch=batch, noise=0.0, learning_rate=0.8, weight_decay=0.3, schedule=SCHEDULE,
        logit_schedule=GrowthSchedule(0.5),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    W, teacher = rng.normal(size=(2, K, d))
    x = rng.normal(size=(batch, d))
    t = n / d
    beta = (1 + t) ** 0.5
    move, loss = np.zeros((K, d)), 0.0
    for one in x:
        p = softmax(beta * W @ one / d**0.5)
        y = np.eye(K)[np.argmax(teacher @ one)]
        move += 0.8 * rate(t) / d**0.5 * beta * np.outer(p - y, one) / batch
        loss -= y @ np.log(p) / batch
    after, _, said = layer_step(system)(
        *(jnp.asarray(v) for v in (W, np.zeros((0, d)), teacher, x)), None, jnp.asarray(n)
    )
    np.testing.assert_allclose(after, W - move - 0.3 / d * W, rtol=1e-10, atol=1e-12)
    assert float(said) == pytest.approx(loss, rel=1e-10)


def test_the_toy_network_moves_as_written() -> None:
    """W <- W - lr mean_B (softmax(W x) - softmax(W* x/T)) x^T from W = 0 on inputs of |x|^2 = d, two steps."""
    trained = toy_layer(0.3, "sgd", 0.5, classes=4, inputs=3, batch=5, test_inputs=8)
    state, W = trained.start(1), np.zeros((4, 3))
    teacher = np.asarray(state.teacher.weight, dtype=float)
    for n in range(2):
        key = jax.random.key(n)
        x = np.asarray(jax.random.normal(key, (5, 3), jnp.float32), dtype=float)
        x = np.array([row * (3 / sum(row**2)) ** 0.5 for row in x])
        state, _ = step_of(trained, state, key, jnp.asarray(n))
        W = W - 0.5 * sum(np.outer(softmax(W @ row) - softmax(teacher @ row / 0.3), row) for row in x) / 5
        np.testing.assert_allclose(state.layer.weight, W, rtol=1e-4, atol=1e-6)


def test_sample_losses_are_averaged_since_the_last_record() -> None:
    """Weights that do not move: the mean squared residual of the batches of steps 0 and 1, and of steps 2 to 6, per seed."""
    task = GaussianTask(jnp.asarray(LAM), jnp.arange(6.0), 0.5)
    run = train(
        linear_sgd(task, learning_rate=1e-12, batch=2),
        7,
        seeds=(0, 3),
        record_times=[2, 7],
        progress=False,
        precision="float64",
    )
    for row, seed in zip(run["train_loss"], (0, 3), strict=True):
        losses = [float(jnp.mean(task.draw(jax.random.fold_in(seed_key(seed), n), 2)[1] ** 2)) for n in range(7)]
        np.testing.assert_allclose(row, [sum(losses[:2]) / 2, sum(losses[2:]) / 5], rtol=1e-6)


def test_fresh_data_have_the_moments_that_are_said() -> None:
    """E z z^T = diag lam, E (y - theta*.x)^2 = s^2: z-scores over 40 000 draws."""
    theta, noise, count = np.arange(6.0), 0.5, 40_000
    z, y = (np.asarray(part, dtype=float) for part in GaussianTask(jnp.asarray(LAM), jnp.asarray(theta), noise).draw(
        jax.random.key(3), count))  # fmt: skip
    products = z[:, :, None] * z[:, None, :]
    off = (products.mean(axis=0) - np.diag(LAM)) / (products.std(axis=0) / count**0.5)
    assert np.abs(off).max() < 4.5
    rest = (y - z @ theta) ** 2
    assert abs(rest.mean() - noise) < 4.5 * rest.std() / count**0.5


CHAIN = Grammar(4, order=1, inverse_temperature=1.0, length=4)
EXPERIMENTS = {
    "attention": lambda: logistic_pair(dimension=12, tokens=4),
    "mean field": lambda: transformer(depth=1, tokens=2, nodes=16, dimension=12),
    "peaked": lambda: experiment_of(peaked(classes=2, dimension=12, noise=0.0), nodes=64),
    "spectral": lambda: spectral(modes=4),
    "toy": lambda: toy_layer(0.1, classes=4, inputs=3, batch=4, test_inputs=8),
    "language": lambda: language(
        lambda key: LanguageModel(4, 4, 1, 1, 4, key=key), CHAIN, batch=2, learning_rate=0.1, held_out=4
    ),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_seeds_that_begin_alike_part_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every error bar over seeds rests on it: with the start of one seed for all, the batches are still other ones."""
    trained = experiment_of(EXPERIMENTS[name]())
    start = type(trained).start
    own = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(trained.start(seed)) if np.ndim(x)]) for seed in (0, 1)]
    if name != "spectral":  # which begins at zero
        assert np.abs(own[0] - own[1]).max() > 0.01
    monkeypatch.setattr(type(trained), "start", lambda self, seed: start(self, 0))
    seeds = Seeds(trained, [0, 1, 5], np.dtype("float64"))
    seeds.advance(0, 2)
    states = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(state) if np.ndim(x)]) for state in seeds.states]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(states[one] - states[other]).max() > 1e-3 * np.abs(states[one]).max()


def test_one_seed_is_the_same_twice() -> None:
    runs = [train(spectral(modes=4), 3, seeds=(2,), record_times=[1, 3], progress=False) for _ in range(2)]
    np.testing.assert_array_equal(runs[0]["loss"], runs[1]["loss"])
