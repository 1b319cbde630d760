"""The derivation of optimisers: its files, its checks, that each can fail, and that the library's flow is what it derives."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy

from derivations import __main__ as command
from derivations.optimizers import checks, checks_laws, checks_signs, script, step
from derivations.optimizers.simulate import Linear
from odescale.expectations.closure import Moments
from odescale.optimizers.adam import SGD, Adam
from odescale.optimizers.base import AbstractOptimizer
from odescale.optimizers.flow import Block, RowOptimizers
from odescale.optimizers.muon import EXACT, Muon
from odescale.symbolic import module_source, run_checks, verify_stamp

ROOT = Path(__file__).resolve().parents[1]
SLOW = {
    "preconditioned",
    "momentum",
    "second moment",
    "mean in v",
    "muon",
    "sign",
    "lion",
    "clip",
    "exponents",
    "floors",
    "race",
    "muon exponents",
    "memory of v",
}
"""Steps whose checks are run one by one below, or only in the slow test."""


@pytest.fixture(scope="module")
def derivation():
    return script.derive()


@pytest.fixture(scope="module")
def sources(derivation):
    return tuple(output.source for output in derivation.outputs)


def test_files_are_what_the_derivation_gives(derivation) -> None:
    files = {path: text for path, text in command.texts(derivation).items() if "optimizers" in path}
    assert len(files) == 3 and command.differences(ROOT, files) == {}
    text = (ROOT / "odescale/generated/optimizers.py").read_text()
    assert verify_stamp(text) and checks.compare_modules(text, module_source(derivation)) == ""
    wrong = text.replace("second + 2 * mean / trace", "second + 3 * mean / trace")
    assert "second_moment_of_drift" in checks.compare_modules(wrong, text)


def test_quick_checks_pass(derivation) -> None:
    results = {s.name: s.check() for s in derivation.steps if s.check is not None and s.name not in SLOW}
    assert len(results) == 9 and all(result.passed for result in results.values()), {
        k: str(v) for k, v in results.items()
    }


@pytest.mark.slow
def test_every_numeric_check_passes(derivation) -> None:
    results = run_checks(derivation)
    assert len(results) == 22 and all(result.passed for result in results.values()), results


def test_one_step_needs_the_preconditioner_in_drift_and_noise() -> None:
    """Single preconditioned steps at N = 300; SGD's noise in place of P V P^T differs."""
    flow = step.preconditioned()[1]
    right, wrong = checks.one_step(flow), checks.one_step(flow, keep_noise=False)
    assert right.passed, str(right)
    assert wrong.value > 10, str(wrong)


def test_adam_needs_the_lag_of_v_and_the_square_of_the_mean_thrice(sources) -> None:
    """Runs of Adam at N = 300: a memory of a tenth differs, and so does the mean's square once in the drift at B = 16."""
    right = checks.adam_run(sources, 16)
    assert right.passed, str(right)
    for wrong in (checks.adam_run(sources, 16, beta2=0.98), checks.adam_run(sources, 16, thrice=False)):
        assert not wrong.passed, str(wrong)


def test_muon_needs_its_matrix(sources) -> None:
    """Runs of Muon with Nesterov's look-ahead at N = 300; a K that leaves the rows unmixed differs."""
    right, wrong = checks.muon_run(sources), checks.muon_run(sources, keep_k=False)
    assert right.passed, str(right)
    assert not wrong.passed, str(wrong)


def test_sign_and_clipping_are_averages_over_batches(sources) -> None:
    """Single steps at B = 2: Adam's form for the sign, and a clipping weight once in the noise, differ."""
    for right in (checks_signs.sign_step(sources), checks_signs.clip_step(sources)):
        assert right.passed, str(right)
    for wrong in (checks_signs.sign_step(sources, large_batch=True), checks_signs.clip_step(sources, once=True)):
        assert not wrong.passed, str(wrong)


def test_adam_rests_on_its_floor(sources) -> None:
    """Real Adam on a linear model of two eigenvalues, N = 200, about its floor for 6 N steps; heat with lam_k does not fit."""
    rate, batch, levels = 0.2, 4, (0.4, 1.6)
    root, three = (np.mean(np.array(levels) ** power) for power in (0.5, 1.5))
    floor = float(checks.numpy_functions(sources)["adam_floor"](rate, batch, root))
    model = Linear(batch, np.array([[2 * floor]]), 200, levels)
    losses = model.losses(checks.simulate.adam(rate, 200, 0.0, 0.999), tuple(range(600, 1201, 100)), 32, 3).mean(axis=1)
    error = losses.std(ddof=1) / 32**0.5
    # At B = 4 and N = 200 the 1/N terms are of order B/N: two per cent.
    assert abs(losses.mean() / floor - 1) < 3 * error / floor + 0.02
    assert abs(losses.mean() / (floor * (three / root) ** 2) - 1) > 0.2


def test_laws_can_fail(derivation) -> None:
    silent = script.adam.preconditioner()[1].subs(script.EPS, 0)
    found = script.laws.exponents(silent)[1]
    assert sympy.simplify(found.power - 2 * (checks_laws.SOURCE - 1) / checks_laws.CAPACITY) == 0
    assert not checks_laws.exponents(script.laws.Exponents(found.power / 2, *list(vars(found).values())[1:])).passed


CASES = {
    "sgd momentum": SGD(rate=0.03, momentum=0.9, nesterov=True, decay=0.2),
    "adamw": Adam(rate=0.2, beta1=0.9, beta2=0.99, eps=1e-3, decay=0.3),
    "muon": Muon(rate=0.1, momentum=0.95, coefficients=EXACT, iterations=25),
}


@pytest.mark.parametrize("case", CASES)
def test_the_librarys_flow_is_the_derived_one(case: str, sources) -> None:
    """dq_k/dt = M q + q M^T + lam L V L^T/B of two moving rows and a frozen one, from P, share and damping alone."""
    rule: AbstractOptimizer = CASES[case]
    scope = checks.numpy_functions(sources)
    N, B, t, rate = 300.0, 4.0, 0.13, float(rule.rate)
    lam, weights = np.array([0.4, 1.6]), np.array([0.5, 0.5])
    rng = np.random.default_rng(1)
    second, size = case == "adamw", 5
    q = np.zeros((2, size + 2 * second, size + 2 * second))
    for k in (0, 1):
        half = rng.standard_normal((size, size + 3))
        q[k, :size, :size] = half @ half.T / size
    v = rng.uniform(0.2, 0.6, (2, 2))
    if second:
        q[:, [5, 6], [5, 6]] = v
    G, H = rng.standard_normal((2, 3)), 0.3 * rng.standard_normal((2, 3))
    V = np.array([[1.2, 0.3], [0.3, 0.7]])
    whole = RowOptimizers((Block((0, 1), rule, jnp.ones(()), True),), jnp.asarray(jnp.inf), N, False)
    moments = Moments(jnp.zeros(()), jnp.asarray(G), jnp.asarray(G), jnp.asarray(H), jnp.asarray(V))
    flow = jax.jit(
        lambda q: whole.flow(
            jnp.asarray(t), q, moments, (jnp.asarray(lam), jnp.asarray(weights)), jnp.asarray(B), jnp.asarray(rate),
            jnp.asarray(1.0), np.array([0, 1]), np.eye(3)[:2],
        )
    )  # fmt: skip
    got = np.asarray(flow(jnp.asarray(q)))

    beta = float(rule.beta) if rule.beta is not None else 0.0
    share = float(scope["present_share"](beta, rule.nesterov))
    damping = float(scope["velocity_damping"](N, beta))
    h = lam[:, None, None] * G + H
    means = h @ q[:, :3, :3] @ h.swapaxes(1, 2)
    if case.startswith("sgd"):
        P = hot = np.broadcast_to(rate / (1 - beta) * np.eye(2), (2, 2, 2))
    elif second:
        diagonal = np.einsum("kii->ki", means)
        target = scope["second_moment_target"](lam[:, None], np.diag(V), B, diagonal, N)
        forgetting = float(scope["second_moment_forgetting"](N, 0.99))
        held = scope["second_moment"](v, target, 0.99, forgetting, t)
        slower = scope["second_moment_of_drift"](held, diagonal, N)
        P, hot = (
            (scope["adam_preconditioner"](rate, x, 1e-3, N) / scope["average_bias"](share, damping, t))[:, :, None]
            * np.eye(2)
            for x in (slower, held)
        )
    else:
        # Of the velocities alone, and the noise that they lack at rest.
        K = np.tensordot(weights, q[:, 3:5, 3:5], axes=1)
        K = K + (float(scope["average_noise"](beta, share)) - (1 - beta) / 2) * N * V / B
        P = hot = np.broadcast_to(rate * N**0.5 * checks.inverse_root(K), (2, 2, 2))
    load, heat = np.zeros((2, size, 2)), np.zeros((2, size, 2))
    load[:, :2], heat[:, :2] = -share * P, -share * hot
    M = np.zeros((2, size, size))
    load[:, 3:] = heat[:, 3:] = damping * np.eye(2)
    M[:, :2, 3:] = -(1 - share) * P
    M[:, 3:, 3:] = -damping * np.eye(2)
    M[:, :, :3] += load @ h
    M[:, [0, 1], [0, 1]] -= float(rule.decay)
    part = q[:, :size, :size]
    expected = M @ part + part @ M.swapaxes(1, 2) + lam[:, None, None] * heat @ V @ heat.swapaxes(1, 2) / B
    np.testing.assert_allclose(got[:, :size, :size], expected, rtol=1e-9, atol=1e-11)
    if second:
        np.testing.assert_allclose(got[:, [5, 6], [5, 6]], forgetting * (target - v), rtol=1e-12)
