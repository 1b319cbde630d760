"""Signs and Muon on peaked classes: averages over a batch, the late law, refusals, the real update, real layers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import odescale
from benchmarks.third import CASES, POINTS, WINDOW, simulate, slope, system_of
from odescale.analysis.peaked.escapes import follow
from odescale.analysis.peaked.one_third import predict_law
from odescale.analysis.peaked.optimizer_rows import OPTIMIZER_ROWS
from odescale.analysis.peaked.unit_law import hardest, unit_exponents
from odescale.clock import PowerSchedule
from odescale.errors import InputError, OutsideTheoryError
from odescale.expectations.softmax_race import largest_field
from odescale.expectations.unit_steps import averages, log_slopes, sampled_fields, ties, unit_steps
from odescale.optimizers import Lion, Muon, Sign
from odescale.solve.integrate import integrate
from odescale.systems.peaked import Peaked
from odescale.systems.peaked import peaked as build
from odescale.systems.peaked_unit import gains
from odescale.training.peaked import layer_step

peaked: Any = build  # arguments from dictionaries


def layer(rule: Any, g: float = 0.0, **given: Any) -> Peaked:
    """A small layer, its rate ~ t^-g from 100 steps on."""
    return peaked(optimizer=rule, schedule=PowerSchedule(g, 100.0), **({"classes": 3, "dimension": 100} | given))


# ---------------------------------------------------------------------------------------------------------------------
# Averages
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "batch", "overlap", "deviation"), [(3, 4, 5.0, 1.0), (2, 2, 3.0, 0.5), (5, 3, 0.7, 0.4)]
)
def test_averages_are_those_of_whole_batches(classes: int, batch: int, overlap: float, deviation: float) -> None:
    """By their definition, sum_b g_b X_b/|g| over sampled batches; both have errors of half a per cent."""
    rng, count = np.random.default_rng(1), 150_000
    teacher, other = rng.standard_normal((2, count, batch, classes))
    other -= other.mean(axis=-1, keepdims=True)
    size, sign, _ = log_slopes(overlap * teacher + deviation * other, teacher.argmax(axis=-1))
    w = sign * np.exp(size - size.max(axis=1, keepdims=True))
    w /= np.sqrt((w**2).sum(axis=1, keepdims=True))
    drift = -(w * teacher).sum(axis=(1, 2)) / (classes - 1)
    hold = (w * other).sum(axis=(1, 2)) / (classes - 1) / deviation
    cosine = np.einsum("nbi,nbj->nij", w, w)[:, ~np.eye(classes, dtype=bool)]
    noise = 1 - 2 / np.pi * np.arcsin(np.clip(cosine, -1, 1)).mean(axis=1)
    found = averages(overlap, deviation, batch, *sampled_fields(classes))
    for ours, sampled, share in zip(found, (drift, hold, noise), (0.006, 0.012, 0.012), strict=True):
        error = 4 * sampled.std() / count**0.5
        assert abs(ours - sampled.mean()) < error + share * abs(ours)


def test_late_averages_are_the_hardest_samples() -> None:
    """At D = 1e5 the table's values are those of Stein's identity; two of two classes tie with J = sqrt(2/pi)."""
    np.testing.assert_allclose(ties(2, 2), np.sqrt(2 / np.pi), rtol=1e-6)
    for classes, batch in ((2, 2), (3, 8), (10, 4)):
        sigma, h, _ = averages(1e5, 3.0, batch, *sampled_fields(classes))
        late = hardest(classes, batch)
        assert abs(sigma - late[0]) < 0.005 and abs(1e5 * h / late[1] - 1) < 0.02


def test_signs_of_many_classes_drive_the_overlap_back() -> None:
    """sigma of large batches turns negative between six and seven classes, where the gap's density bends upwards."""
    assert [hardest(K, 256)[0] > 0 for K in (2, 3, 6, 7, 10, 32)] == [True, True, True, False, False, False]
    assert hardest(10, 2)[0] > 0 > hardest(10, 3)[0]


def test_one_sample_is_hebbs_rule() -> None:
    """sigma = 2 m/(K - 1), no contraction, 1 - rho = 4/K at any state; a floor of the loss, (K - 1)/K l d sqrt(pi/2)."""
    found = unit_steps(3, 1)(7.0, 2.0)
    np.testing.assert_allclose([float(x) for x in found], [largest_field(3), 0.0, 4 / 3], rtol=1e-12)
    system = layer(Sign(rate=1e-2))
    law = predict_law(system, 1e9)
    assert law.inside and law.regime == "sign, single samples" and (law.loss_exponent, law.error_exponent) == (0.0, 0.5)
    np.testing.assert_allclose(law.loss, 2 / 3 * 1e-2 * 100 * np.sqrt(np.pi / 2), rtol=1e-4)


@pytest.mark.parametrize(("g", "loss", "error"), [(0.25, 0.25, 0.5), (0.5, 0.5, 0.5), (0.75, 0.25, 0.25)])
def test_law_of_signs_is_the_flow(g: float, loss: float, error: float) -> None:
    """Values to .2 % of the integrated flow, exponents of the derivation."""
    law, curve = predict_law(layer(Sign(rate=1e-2), g), 1e10), follow(layer(Sign(rate=1e-2), g), 1e10)
    assert (law.loss_exponent, law.error_exponent) == (loss, error)
    np.testing.assert_allclose([law.loss, law.error], [curve.loss[-1], curve.error[-1]], rtol=2e-3)


def test_exponents_of_unit_steps() -> None:
    """Best at g = 1/2; beyond (1 + p)/(2 + p) the spread is no longer fed."""
    assert unit_exponents(0.0, 3.0)[:2] == (0.0, 0.5)
    assert max(unit_exponents(g, 3.0).loss for g in np.linspace(0, 0.9, 19)) == 0.5
    late = unit_exponents(0.9, 1.0)  # p = 1: up to g = 2/3
    np.testing.assert_allclose(late[:2], (0.1, 0.1 + 0.05))


# ---------------------------------------------------------------------------------------------------------------------
# Muon
# ---------------------------------------------------------------------------------------------------------------------


def test_muon_is_a_normalised_step() -> None:
    """Without memory, to rounding: eta = d l q sqrt(K - 1) per d steps; the 1/N term and the 1 - 1/B of the mean with it."""
    given: dict[str, Any] = {"classes": 4, "batch": 64.0, "dimension": 100, "spread": 0.2, "overlap": 2.0}
    rule = Muon.exact(rate=0.01, momentum=0.0, nesterov=False)
    muon = peaked(optimizer=rule, **given)
    q, length = gains(3, 100.0, rule.coefficients, rule.iterations)
    assert length == pytest.approx(1.0) and 0.99 < q < 1
    plain = peaked(optimizer="normalised", learning_rate=100 * 0.01 * 3**0.5, **given)
    y = muon.initial_state()
    ours, theirs = (np.asarray(s.vector_field(jnp.zeros(()), y)) for s in (muon, plain))
    assert 100 * ours[0] == pytest.approx(q * theirs[0], rel=1e-10)
    noiseless = peaked(optimizer="normalised", learning_rate=100 * 0.01 * 3**0.5, **(given | {"spread": 0.0}))
    bare = peaked(optimizer=rule, **(given | {"spread": 0.0}))
    noise = [float(s.vector_field(jnp.zeros(()), s.initial_state())[1]) for s in (bare, noiseless)]
    assert 100 * noise[0] == pytest.approx(noise[1], rel=1e-10)


def test_laws_of_muon() -> None:
    """2/5 while D is well below its samples, as Adam; later single samples outweigh the rest, and the law says so."""
    law = predict_law(layer(Muon.exact(rate=1e-4), batch=64.0), 1e8)
    assert law.inside and law.regime == "muon, small spread" and law.loss_exponent == pytest.approx(0.4)
    beyond = predict_law(layer(Muon.exact(rate=1e-3), batch=32.0), 1e9)
    assert not beyond.inside and any("outweigh" in reason for reason in beyond.reasons)
    few = layer(Muon.exact(rate=1e-2, momentum=0.0, nesterov=False), batch=32.0, dimension=400)
    assert not odescale.coverage(few, 1e6).inside


# ---------------------------------------------------------------------------------------------------------------------
# Refusals and the real update
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("labels", {"optimizer": Sign(), "labels": "soft", "inverse_temperature": 3.0}),
        ("smoothing", {"optimizer": Sign(), "smoothing": 0.1}),
        ("noise", {"optimizer": Sign(), "noise": 0.0}),
        ("batch", {"optimizer": Sign(), "batch": 1.5}),
        ("classes", {"optimizer": Sign(), "classes": 1000}),
        ("batch", {"optimizer": Muon(momentum=0.0), "batch": 4.0}),
        ("loss", {"optimizer": Muon(), "classes": 2, "loss": "focal", "batch": 64.0}),
        ("optimizer", {"optimizer": Lion()}),
        ("learning_rate", {"optimizer": Sign(), "learning_rate": 0.1}),
    ],
)
def test_what_has_no_closure_is_refused_by_name(argument: str, given: dict[str, Any]) -> None:
    with pytest.raises((InputError, OutsideTheoryError)) as refused:
        peaked(**({"classes": 3} | given))
    assert refused.value.argument == argument


@pytest.mark.parametrize("rule", [Sign(rate=0.03), Muon(rate=0.02), Muon.exact(rate=0.02, momentum=0.5)])
def test_update_of_training_is_optax(rule: Any) -> None:
    """Eight steps of the real layer against optax on its own gradients: logits W x, step the rate itself."""
    system = peaked(optimizer=rule, classes=3, dimension=12, batch=64.0)
    step = jax.jit(layer_step(system).__call__)
    theirs = rule.update()
    rng, K, d = np.random.default_rng(3), 3, 12
    teacher = jnp.asarray(np.linalg.qr(rng.standard_normal((d, K)))[0].T) * d**0.5
    ours = weights = jnp.zeros((K, d))
    moments, state = jnp.zeros((K if rule.word == "muon" else 0, d)), theirs.init(weights)
    pull = jax.jit(theirs.update)
    for n in range(8):
        x = jnp.asarray(rng.standard_normal((64, d)))
        ours, moments, _ = step(ours, moments, teacher, x, None, jnp.asarray(n))
        y = jax.nn.one_hot(jnp.argmax(x @ teacher.T, axis=1), K)
        gradient = (jax.nn.softmax(x @ weights.T, axis=1) - y).T @ x / 64
        direction, state = pull(gradient, state, weights)
        weights = optax.apply_updates(weights, -rule.step(1.0) * direction)
        np.testing.assert_allclose(ours / d**0.5, weights, atol=1e-7)


def test_words_of_the_command_line_and_rows_by_optimiser() -> None:
    """The word is the object with its defaults; every row of the table by optimiser builds its system."""
    word, rule = peaked(optimizer="sign", learning_rate=0.1, classes=3), peaked(optimizer=Sign(rate=0.1), classes=3)
    assert float(word.vector_field(0.0, word.initial_state())[0]) == float(
        rule.vector_field(0.0, rule.initial_state())[0]
    )
    table = odescale.one_third.compare_escapes(0.3, names=["sign", "sign, g = 1/2"], horizon=1e3)
    assert [row.predicted for row in table.rows] == [(0.0, 0.5), (0.5, 0.5)] and table["sign"].reaches[0].reached
    assert all(OPTIMIZER_ROWS[name][1] for name in ("SGD", "Adam", "sign", "Muon, B = 32"))


# ---------------------------------------------------------------------------------------------------------------------
# Real layers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "given"),
    [
        (Sign(rate=3e-3), {"classes": 3}),
        (Muon.exact(rate=2e-2, momentum=0.0, nesterov=False), {"classes": 2, "batch": 2.0}),
    ],
)
def test_real_layers_follow_the_flow(rule: Any, given: dict[str, Any]) -> None:
    """Sixteen layers, d = 100, 1500 steps: overlap and spread within four standard errors and the order K/d."""
    system, times = layer(rule, **given), np.array([300, 1500])
    runs = simulate(system, times, 16, nodes=64)
    flow = integrate(system, ts=np.concatenate([[0.0], times]), exponents=False).observables
    for name, found in (("overlap", runs.overlap), ("spread", runs.spread)):
        expected = np.asarray(flow[name])[1:]
        error = found.std(axis=1, ddof=1) / 4
        assert np.all(np.abs(found.mean(axis=1) - expected) < 4 * error + 0.03 * expected), name
        # Uncorrelated rows, 1 - rho = 1, or a drift without sqrt(2/pi): told apart.
        if rule.word == "sign":
            wrong = expected[-1] * (3 / 4 if name == "spread" else (np.pi / 2) ** 0.5)
            assert abs(found[-1].mean() - wrong) > 5 * error[-1] + 0.03 * expected[-1], name


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_exponents_of_real_layers(name: str) -> None:
    """Over 1.5 decades of steps: loss and error fall with the flow's own exponents, within four standard errors and .01."""
    system, steps = system_of(name)
    times = np.unique(np.geomspace(steps / WINDOW, steps, POINTS).astype(int))
    runs = simulate(system, times, 16, seed=list(CASES).index(name))
    flow = integrate(system, ts=np.concatenate([[0.0], times]), exponents=False)
    for values, theory in ((runs.loss, flow.loss), (runs.error, flow.observables["error"])):
        each, expected = slope(times, values), float(slope(times, np.asarray(theory)[1:]))
        assert abs(each.mean() - expected) < 4 * each.std(ddof=1) / 4 + 0.01
    # A third is told apart wherever the derived law is not one.
    if name not in ("Muon, K = 3, B = 16",):
        assert abs(slope(times, runs.error).mean() - 1 / 3) > 0.08


@pytest.mark.slow
def test_signs_of_ten_classes_stop() -> None:
    """K = 10, B = 4: the law has D_0 and the floor of the loss, the error falls as t^(-g/2)."""
    system = layer(Sign(rate=1e-3), 0.5, classes=10, batch=4.0)
    law, curve = predict_law(system, 1e9), follow(system, 1e9)
    assert not law.inside and law.regime == "sign, stop" and (law.loss_exponent, law.error_exponent) == (0.0, 0.25)
    np.testing.assert_allclose([law.loss, law.error], [curve.loss[-1], curve.error[-1]], rtol=3e-3)
