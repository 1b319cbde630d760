"""Optimisers: the note's golden values, an oracle in NumPy, the real update of optax, and what is outside and refused."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import odescale
from odescale import Run, compare, integrate, train
from odescale.errors import InputError, OutsideTheoryError
from odescale.expectations.batch import arcsine_noise
from odescale.expectations.window import newton_schulz
from odescale.optimizers import SGD, Adam, Lion, Muon, Sign
from odescale.optimizers.base import AbstractOptimizer
from odescale.optimizers.flow import Block, RowOptimizers
from odescale.optimizers.muon import EXACT
from odescale.systems.attention_build import attention
from odescale.systems.peaked import peaked
from odescale.systems.spectrum import listed
from odescale.systems.transformer import committee, transformer
from odescale.training.rows import rates_of
from tests.adam_by_hand import adam

TIMES = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
MANY = 4e8
"""N at which terms of order 1/N are gone."""


def erf_pair(optimizer: AbstractOptimizer, dimension: float = 400, **given: Any) -> Any:
    """K = M = 2, alignment .3, B = 4, isotropic, closed form: the note's case."""
    return committee(optimizer=optimizer, dimension=dimension, alignment=0.3, batch=4.0, closure="closed", **given)


def losses(system: Any, times: list[float] = TIMES) -> np.ndarray:
    return np.asarray(integrate(system, ts=[0.0, *times], exponents=False).loss)[1:]


def without_velocities(system: Any) -> Any:
    """The same system with the lag of its momentum left out."""
    blocks = tuple(Block(b.rows, b.rule, b.ratio, False) for b in system.optimizers.blocks)
    return eqx.tree_at(lambda s: s.optimizers.blocks, system, blocks)


@pytest.mark.parametrize(
    ("forgetting", "expected"),
    [
        (-400 * np.log(0.999), (0.39213, 0.31849, 0.20078, 0.071526, 0.020258, 0.013648)),
        (-400 * np.log(0.99), (0.39187, 0.31671, 0.19160, 0.051142, 0.018081, 0.010909)),
        (-1600 * np.log(0.999), (0.39204, 0.31784, 0.19683, 0.060023, 0.018651, 0.011455)),
    ],
)
def test_golden_values_of_adam(forgetting: float, expected: tuple[float, ...]) -> None:
    """As N grows at fixed g_2 = -N log beta2."""
    rule = Adam(rate=0.1, beta1=0.0, beta2=np.exp(-forgetting / MANY), eps=0.0)
    np.testing.assert_allclose(losses(erf_pair(rule, MANY)), expected, rtol=6e-5)


def test_golden_values_without_the_memory_of_v() -> None:
    """v = V at once, by the oracle: up to 1.7 times off."""
    start = np.asarray(erf_pair(Adam()).initial_overlaps)
    told: dict[str, Any] = {"rate": 0.1, "batch": 4.0, "eigenvalues": np.ones(1), "weights": np.ones(1)}
    expected = (0.39077, 0.31327, 0.18337, 0.043131, 0.017697, 0.010551)
    np.testing.assert_allclose(adam(start, 2, TIMES, forgetting=None, **told), expected, rtol=6e-5)


def test_golden_values_of_muon_and_sgd() -> None:
    """Muon exact with its 1/N term at N = 2000 and mu = .9, without lag; and SGD through the same door."""
    system = without_velocities(erf_pair(Muon.exact(rate=0.05, momentum=0.9, nesterov=False), 2000))
    expected = (0.34511, 0.23909, 0.094546, 0.018385, 0.0035765, 0.0017994)
    np.testing.assert_allclose(losses(system), expected, rtol=6e-5)
    expected = (0.40445, 0.34217, 0.24178, 0.12038, 0.039908, 0.019153)
    np.testing.assert_allclose(losses(erf_pair(SGD(rate=0.3))), expected, rtol=6e-5)


def test_the_plain_system_and_sgd_as_an_object_are_one() -> None:
    """The same flow on a spectrum, with decay and momentum whose lag is left out."""
    given = {"spectrum": listed([2.0, 1.0, 0.5]), "alignment": 0.3, "closure": "closed", "batch": 2.0}
    plain = committee(learning_rate=0.2, weight_decay=0.05, momentum=0.5, **given)
    ours = without_velocities(committee(optimizer=SGD(rate=0.2, momentum=0.5, decay=0.05), **given))
    flow, other = (jax.jit(lambda s: s.vector_field(0.3, s.initial_state()))(s) for s in (plain, ours))
    np.testing.assert_allclose(other, flow, rtol=1e-10, atol=1e-14)


def test_infinite_context_takes_the_same_objects() -> None:
    """The flow under SGD as an object is the plain one; Adam in blocks; signs, which see every batch, are refused there."""
    given: dict[str, Any] = {"depth": 2, "batch": 4.0, "dimension": 300}
    plain = attention(learning_rate=0.2, weight_decay=0.1, **given)
    ours = attention(optimizer=SGD(rate=0.2, decay=0.1), **given)
    flow, other = (jax.jit(lambda s: s.vector_field(0.3, s.initial_state()))(s) for s in (plain, ours))
    np.testing.assert_allclose(other, flow, rtol=1e-10, atol=1e-13)
    mixed: Any = attention(optimizer={("r0",): SGD(rate=0.2), None: Adam(rate=0.1)}, **given)
    state = mixed.initial_state()
    assert state.shape[-1] == mixed.architecture.size + 8
    assert float(mixed.excess_loss(0.0, state)) == pytest.approx(float(plain.excess_loss(0.0, plain.initial_state())))
    for wrong in ("sign", "lion"):
        with pytest.raises(OutsideTheoryError, match="infinite context"):
            attention(optimizer=wrong, **given)
    with pytest.raises(OutsideTheoryError, match="only write"):
        attention(optimizer="adam", value="rows", **given)


def test_rates_are_swept_where_nodes_choose_themselves() -> None:
    """A sweep over a rate builds its system once, nodes by accuracy included: each member is the system at that rate."""
    given: dict[str, Any] = {"depth": 1, "tokens": 2, "optimizer": "adam", "budget": 64, "points": 2}
    found = odescale.sweep("transformer", 0.5, {"learning_rate": [0.05, 0.1]}, **given)
    one = integrate(transformer(**{k: v for k, v in given.items() if k != "points"}, learning_rate=0.1), 0.5, points=2)
    np.testing.assert_allclose(np.asarray(found.loss)[1, -1], one.loss[-1], rtol=2e-3)


def test_peaked_takes_the_same_object() -> None:
    """`Adam` is the word with its numbers, and its betas reach the training: another beta2 trains otherwise."""
    ours, word = (
        peaked(optimizer=Adam(rate=0.01, beta2=0.9), classes=4),
        peaked(optimizer="adam", learning_rate=0.01, memory=0.9, classes=4),
    )
    state = jnp.asarray([0.2, 0.1])
    np.testing.assert_array_equal(ours.vector_field(5.0, state), word.vector_field(5.0, state))
    end = {}
    for beta2 in (0.9, 0.999):
        system = peaked(optimizer=Adam(rate=0.01, beta2=beta2), classes=4, dimension=32, batch=4.0)
        end[beta2] = train(system, 40.0, seeds=1, record_times=[40.0], progress=False, nodes=64)["overlap"][0, -1]
    assert abs(end[0.9] / end[0.999] - 1) > 0.01
    with pytest.raises(OutsideTheoryError, match="optimizer"):
        peaked(optimizer=Lion())  # pyright: ignore[reportArgumentType]


@cache
def hand_case() -> tuple[Any, np.ndarray, dict[str, Any]]:
    """A committee on three modes under Adam, its overlaps, and what the oracle is told."""
    spectrum = listed([3.0, 1.0, 0.25])
    forgetting = 0.8
    rule = Adam(rate=0.1, beta1=0.0, beta2=np.exp(-forgetting / MANY), eps=0.0)
    system: Any = committee(optimizer=rule, spectrum=spectrum, alignment=0.3, batch=4.0, closure="closed")
    system = eqx.tree_at(
        lambda s: s.optimizers,
        system,
        RowOptimizers(system.optimizers.blocks, jnp.asarray(np.inf), MANY, False),
    )
    told = {"rate": 0.1, "batch": 4.0, "forgetting": forgetting}
    told |= {"eigenvalues": np.asarray(system.eigenvalues), "weights": np.asarray(system.weights)}
    return system, np.asarray(system.initial_overlaps), told


def test_adam_on_a_spectrum_is_the_oracle() -> None:
    """Every mode has its own preconditioner; without lam_k in it, or in the noise, the answer is another."""
    system, start, told = hand_case()
    times = [0.5, 2.0, 5.0]
    ours = losses(system, times)
    np.testing.assert_allclose(ours, adam(start, 2, times, **told), rtol=2e-5)
    for drop in ("lam", "noise"):
        assert abs(adam(start, 2, times, **told, drop=drop)[-1] / ours[-1] - 1) > 0.05, drop


@cache
def adam_run() -> Any:
    system = erf_pair(Adam(rate=0.1))
    return system, train(system, 4.0, seeds=6, record_times=[0.5, 1.0, 2.0, 4.0], progress=False)


def test_adam_agrees_with_training_and_v_at_once_does_not() -> None:
    """d = 400, beta1 = .9, beta2 = .999: 1.5 % of finite d; a theory without the memory of v is a third off."""
    system, run = adam_run()
    found = compare(system, run, tolerance=0.03)
    assert found.verdict.status == "agrees", found.verdict
    ts = np.concatenate([[0.0], run.t])
    at_once = integrate(erf_pair(Adam(rate=0.1, beta2=0.5)), ts=ts, exponents=False)
    assert compare(system, run, theory=at_once).verdict.status == "differs"


def test_a_run_under_another_optimiser_is_another_experiment(tmp_path: Any) -> None:
    """Saved and read again it is still the same; a system under SGD, or under another beta2, is refused by name."""
    system, run = adam_run()
    run.save(tmp_path / "run.npz")
    again = Run.load(tmp_path / "run.npz")
    assert compare(system, again, tolerance=0.03).verdict.status == "agrees"
    for other in (erf_pair(Adam(rate=0.1, beta2=0.99)), committee(learning_rate=0.1, batch=4.0, dimension=400)):
        with pytest.raises(InputError, match="optimizers"):
            compare(other, again)
    json.dumps(erf_pair(Muon()).optimizers.words())


@pytest.mark.parametrize(
    ("rule", "real"),
    [
        (SGD(rate=0.2, momentum=0.9), lambda N: optax.sgd(0.2, 0.9)),
        (Adam(rate=0.1, decay=0.3), lambda N: optax.adamw(0.1 / N**0.5, weight_decay=0.3 / (0.1 * N**0.5))),
        (Sign(rate=0.1), lambda N: optax.sign_sgd(0.1 / N**0.5)),
        (Lion(rate=0.1, decay=0.2), lambda N: optax.lion(0.1 / N**0.5, weight_decay=0.2 / (0.1 * N**0.5))),
        (Muon(rate=0.1), lambda N: optax.chain(optax.contrib.scale_by_muon(), optax.scale(-0.1))),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, AbstractOptimizer) else "",
)
def test_a_training_makes_the_steps_of_optax(rule: AbstractOptimizer, real: Any) -> None:
    """100 steps in float32, clipped at a norm that binds now and then, to 1e-6 of the rows."""
    d, clip = 64, 8.0
    system: Any = committee(optimizer=rule, dimension=d, batch=1.0, nodes=64)
    mine = rates_of(system.optimizers, system.learning_rate)
    mine = eqx.tree_at(lambda r: r.clip, mine, jnp.asarray(clip, jnp.float32))
    mine = jax.tree_util.tree_map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, mine)
    update = optax.chain(optax.clip_by_global_norm(clip), real(float(d)))
    random = np.random.default_rng(0)
    rows = jnp.asarray(random.normal(size=(2, d)), jnp.float32)
    gradients = jnp.asarray(random.normal(size=(100, 2, d)) * random.uniform(0.2, 2.0, (100, 1, 1)), jnp.float32)
    one = jnp.ones((), jnp.float32)

    @jax.jit
    def both(rows):
        def body(carry, g):
            theirs, state, ours, memory = carry
            change, state = update.update(g, state, theirs)
            return (optax.apply_updates(theirs, change), state, *mine.move(ours, memory, g, one, float(d))), None

        return jax.lax.scan(body, (rows, update.init(rows), rows, mine.begin(rows)), gradients)[0]

    theirs, _, ours, _ = both(rows)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * float(jnp.abs(theirs).max()))


def test_newton_schulz_is_a_polynomial_of_the_gram_matrix() -> None:
    """Q of K times X is the iterate of X itself, for the standard coefficients; the exact one is K^-1/2."""
    X = np.random.default_rng(1).normal(size=(3, 50)) * np.array([[1.0], [0.3], [2.0]])
    theirs = optax.contrib._muon.orthogonalize_via_newton_schulz(jnp.asarray(X), jnp.asarray((3.4445, -4.775, 2.0315)))
    K = jnp.asarray(X @ X.T)
    np.testing.assert_allclose(newton_schulz(K, (3.4445, -4.775, 2.0315), 5) @ X, theirs, atol=1e-6)
    lam, U = np.linalg.eigh(K)
    np.testing.assert_allclose(newton_schulz(K, EXACT, 20), U @ np.diag(lam**-0.5) @ U.T, rtol=1e-8)


def test_arcsine_noise_against_draws() -> None:
    """E sign x_i sign x_j by 2e5 draws, |z| < 4; a row is correlated with itself, and none with a row of no gradient."""
    S = np.array([[1.0, 0.7, -0.2], [0.7, 2.0, 0.1], [-0.2, 0.1, 0.5]])
    draws = np.sign(np.random.default_rng(0).multivariate_normal(np.zeros(3), S, 200_000))
    products = draws[:, :, None] * draws[:, None, :]
    found = np.asarray(arcsine_noise(jnp.asarray(S)))
    z = (products.mean(0) - found) / np.maximum(products.std(0), 1e-9) * 200_000**0.5
    assert np.abs(z[~np.eye(3, dtype=bool)]).max() < 4
    np.testing.assert_allclose(np.diag(found), 1.0)
    assert np.all(np.asarray(arcsine_noise(jnp.diag(jnp.asarray([1.0, 0.0])))) == np.diag([1.0, 0.0]))


def test_a_node_without_gradient_is_no_fault() -> None:
    """Gauss-Hermite grids hold nodes of weight zero at the origin, where gradients vanish; windows of Muon take Sobol points."""
    cases: tuple[dict[str, Any], ...] = (
        {"optimizer": Lion()},
        {"optimizer": Sign()},
        {"clip": 0.5},
        {"optimizer": Muon()},
    )
    for given in cases:
        system = committee(units=1, teacher_units=1, batch=1.0, budget=4096, **given)
        assert system.expectations.startswith("Gauss-Hermite") == ("Muon" not in str(given))
        assert np.all(np.isfinite(jax.jit(lambda s: s.vector_field(0.0, s.initial_state()))(system))), given


def test_what_an_optimiser_neglects_is_judged() -> None:
    """Inside: Adam as it is used. Outside: a memory of ten steps, Muon by the mean of K alone, Lion whose signs saturate."""
    assert odescale.coverage(erf_pair(Adam(rate=0.1))).inside
    outside = {
        "memory": erf_pair(Adam(rate=0.1, beta2=0.9)),
        "window": erf_pair(Muon()),
        "mean": erf_pair(Adam(rate=0.1), 40),
        "saturation": committee(optimizer=Lion(), batch=4.0, dimension=600, alignment=0.3, nodes=256),
    }
    outside["mean"] = eqx.tree_at(lambda s: s.batch, outside["mean"], jnp.asarray(256.0))
    for name, system in outside.items():
        found = odescale.coverage(system)
        assert not found.inside and found.numbers[name] > 0, (name, found)


def step_moments(system: Any, seed: int, rule: str, largest: float = np.inf) -> tuple[np.ndarray, np.ndarray]:
    """(N E[Delta C], its standard error) of one real step from the start, by 400 draws of rows at d = 400."""
    from odescale.training.initial import rows_from_overlaps

    d, B, rate = 400, int(system.batch), float(system.learning_rate)
    rows = jnp.asarray(rows_from_overlaps(np.asarray(system.initial_overlaps), dimension=d, seed=seed))
    moved = system.problem.moved

    def one(key):
        x = jax.random.normal(key, (B, 1, d))

        def loss(trained):
            table = rows.at[moved].set(trained)
            return jnp.mean(jax.vmap(lambda x: system.problem.sample_loss(table, x, jnp.zeros(0), float(d)))(x))

        g = jax.grad(loss)(rows[moved])
        if rule == "sign":
            step = rate / d**0.5 * jnp.sign(g)
        else:
            norm = jnp.sqrt(jnp.sum(g**2))
            step = rate * g * jnp.minimum(1.0, largest / norm)
        new = rows.at[moved].add(-step)
        return new @ new.T - rows @ rows.T

    draws = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), 8000)))
    return draws.mean(0), draws.std(0) / 8000**0.5


@pytest.mark.parametrize("rule", ["sign", "clip"])
def test_one_real_step_moves_the_overlaps_as_the_flow_says(rule: str) -> None:
    """N E[Delta C] by 8000 steps from one table of rows at d = 400 against dC/dt, |z| < 4 beside 1 % of finite d."""
    given: dict[str, Any] = {"batch": 2.0, "alignment": 0.3, "dimension": 400, "nodes": 4096}
    given |= {"optimizer": Sign(rate=0.3)} if rule == "sign" else {"optimizer": SGD(rate=0.5), "clip": 0.4}
    system = committee(**given)
    measured, error = step_moments(system, 3, rule, 0.4)
    flow = jax.jit(lambda s: s.vector_field(0.0, s.initial_state()))(system).mean(0)[0]
    basis = 2 * np.eye(system.problem.size) - system.problem.difference_basis()
    expected = basis @ np.asarray(flow) @ basis.T
    moved = np.abs(expected) > 1e-9
    z = (measured - expected) / np.hypot(error, 0.01 * np.abs(expected).max())
    assert np.abs(z[moved]).max() < 4
    plain = committee(
        batch=2.0, alignment=0.3, dimension=400, learning_rate=float(system.learning_rate), closure="closed"
    )
    other = basis @ np.asarray(plain.vector_field(0.0, plain.initial_state()))[0, 0] @ basis.T
    assert np.abs((measured - other) / np.hypot(error, 0.01 * np.abs(expected).max())).max() > 8


def test_what_is_outside_or_wrong_is_refused_by_name() -> None:
    """Output rows under Adam and sign; numbers beside an object; unknown rows; batches that are not whole; clip below zero."""
    with pytest.raises(OutsideTheoryError, match="only write"):
        transformer(depth=1, value="rows", tokens=2, optimizer="adam", nodes=64)
    assert transformer(depth=1, value="rows", tokens=2, optimizer="muon", nodes=64).optimizers is not None
    mixed = {("o0",): SGD(rate=0.1), None: Adam()}
    built: Any = transformer(depth=1, value="rows", tokens=2, optimizer=mixed, nodes=64)
    assert built.optimizers.extra == 8
    wrong: tuple[tuple[str, dict[str, Any]], ...] = (
        ("learning_rate", {"optimizer": Adam(), "learning_rate": 0.1}),
        ("w9", {"optimizer": {"w9": Adam(), None: SGD()}}),
        ("w1", {"optimizer": {"w0": Adam()}}),
        ("batch", {"optimizer": "sign", "batch": 2.5}),
        ("clip", {"clip": 0.0}),
        ("clip", {"optimizer": "sign", "clip": 1.0}),
        ("closure", {"optimizer": "sign", "closure": "closed", "batch": 1.0}),
        ("Sign or Lion", {"optimizer": {"w0": Sign(), None: Adam()}}),
        ("eps", {"optimizer": "muon", "eps": 1e-6}),
        ("friction", {"optimizer": "adam", "friction": 1.0}),
        ("optimizer", {"optimizer": "adamm"}),
        ("optimizer", {"optimizer": 3}),
    )
    for match, given in wrong:
        with pytest.raises(InputError, match=match):
            committee(nodes=64, **given)
    for build in (
        lambda: Adam(rate=0.0),
        lambda: Adam(beta2=1.0),
        lambda: Muon(iterations=0),
        lambda: SGD(momentum=-1),
    ):
        with pytest.raises(InputError):
            build()


def test_blocks_have_rates_of_their_own() -> None:
    """Two units, Adam on one and SGD on the other: each moves as its rule says; the learning rate scales both."""
    system = committee(
        optimizer={"w0": Adam(rate=0.1, beta1=0.0), None: SGD(rate=0.4)}, closure="closed", batch=4.0, alignment=0.3
    )
    alone = [
        committee(optimizer=o, closure="closed", batch=4.0, alignment=0.3)
        for o in (Adam(rate=0.1, beta1=0.0), SGD(rate=0.4))
    ]
    flow, first, second = (s.vector_field(0.0, s.initial_state())[0, 0] for s in (system, *alone))
    np.testing.assert_allclose(flow[0, 2:4], first[0, 2:4], rtol=1e-12)
    np.testing.assert_allclose(flow[1, 2:4], second[1, 2:4], rtol=1e-12)
    assert float(system.learning_rate) == pytest.approx(0.1)
    assert odescale.optimizers.Adam is Adam


@pytest.mark.slow
def test_a_theory_that_lacks_a_term_differs_from_training() -> None:
    """Adam on three eigenvalues, d = 600: v without lam_k, the noise without its preconditioner; and Muon with a constant for K."""
    counts = np.array([60, 200, 340])
    lam = np.repeat([3.0, 1.0, 0.25], counts)
    spectrum = listed(lam * 600 / lam.sum())
    system = committee(
        optimizer=Adam(rate=0.15, beta1=0.0), spectrum=spectrum, alignment=0.3, batch=4.0, closure="closed"
    )
    run = train(system, 6.0, seeds=8, record_times=[1.0, 2.0, 4.0, 6.0], progress=False)
    found = compare(system, run, tolerance=0.03)
    assert found.verdict.status == "agrees", found.verdict
    few = np.array([3.0, 1.0, 0.25]) * 600 / lam.sum()
    told = {"rate": 0.15, "batch": 4.0, "forgetting": -600 * np.log(0.999), "eigenvalues": few, "weights": counts / 600}
    start = np.broadcast_to(np.asarray(system.initial_overlaps)[0], (3, 4, 4))
    whole = adam(start, 2, list(run.t), **told)
    np.testing.assert_allclose(np.asarray(found.theory.loss)[found.at], whole, rtol=0.02)
    for drop in ("lam", "noise"):
        other = np.asarray(found.theory.loss).copy()
        other[found.at] = adam(start, 2, list(run.t), **told, drop=drop)
        wrong = eqx.tree_at(lambda x: x.loss, found.theory, other)
        assert compare(system, run, theory=wrong, tolerance=0.03).verdict.status == "differs", drop
    muon = committee(optimizer=Muon(rate=0.05), dimension=600, alignment=0.3, batch=4.0, nodes=1024)
    muon_run = train(muon, 3.0, seeds=6, record_times=[0.5, 1.0, 2.0, 3.0], progress=False)
    constant = erf_pair(SGD(rate=0.3), 600)  # as fast at the start
    without = integrate(constant, ts=[0.0, *muon_run.t], exponents=False)
    assert compare(muon, muon_run, theory=without, tolerance=0.03).verdict.status == "differs"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "t1", "bound"),
    [
        ({"optimizer": Adam(rate=0.1), "dimension": 1600, "batch": 4.0}, 4.0, 0.015),
        ({"optimizer": Sign(rate=0.2), "dimension": 600, "batch": 1.0, "budget": 8192}, 6.0, 0.02),
        ({"optimizer": Sign(rate=0.2), "dimension": 600, "batch": 2.0, "budget": 8192}, 6.0, 0.02),
        ({"optimizer": Sign(rate=0.2), "dimension": 600, "batch": 8.0, "budget": 8192}, 6.0, 0.02),
        ({"optimizer": Muon(rate=0.05), "dimension": 600, "batch": 4.0, "nodes": 4096}, 6.0, 0.03),
        ({"optimizer": SGD(rate=0.5), "clip": 0.3, "dimension": 600, "batch": 2.0, "budget": 8192}, 6.0, 0.03),
        ({"optimizer": Adam(rate=0.1), "clip": 0.3, "dimension": 600, "batch": 2.0, "budget": 8192}, 5.0, 0.03),
        (
            {
                "optimizer": Adam(rate=0.2, decay=0.1),
                "dimension": 600,
                "batch": 4.0,
                "schedule": odescale.schedules.WarmedSchedule(odescale.schedules.CosineSchedule(6.0, 0.1), 0.3),
            },
            6.0,
            0.02,
        ),
    ],
    ids=["adam", "sign1", "sign2", "sign8", "muon", "clip", "adam clip", "adamw"],
)
def test_real_networks_follow(given: dict[str, Any], t1: float, bound: float) -> None:
    """Mean over 16 seeds, the loss falls 5 times or more (4.7 of sign, B = 1): within the bound and three standard errors."""
    system = committee(alignment=0.3, **given)
    run = train(system, t1, seeds=16, records=8, progress=False)
    found = compare(system, run, tolerance=bound)
    assert found.fall > 4.5
    assert found.verdict.status != "differs", found.verdict
    ratio, error = found.loss.ratio, run.stderr("loss") / run.mean("loss")
    assert np.all(np.abs(ratio - 1) < bound + 3 * error)
    assert np.sqrt(np.mean(((ratio - 1) / np.hypot(error, bound / 3)) ** 2)) < 2
