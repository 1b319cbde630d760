"""The derivation of peaked distributions: its files, its laws, its checks, that the checks can fail, its functions."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import sympy
from scipy.optimize import brentq
from sympy import Rational

from derivations import __main__ as command
from derivations.peaked import adam as peaked_adam
from derivations.peaked import checks as peaked_checks
from derivations.peaked import checks_integrals as integrals
from derivations.peaked import checks_laws as laws
from derivations.peaked import closure as peaked_closure
from derivations.peaked import escapes as peaked_escapes
from derivations.peaked import expansion as peaked_expansion
from derivations.peaked import laws as peaked_laws
from derivations.peaked import layers as peaked_layers
from derivations.peaked.notation import CURVATURE, DELTA, MEAN_TOP, SECOND_MOMENT, TIME
from derivations.peaked.script import derive
from odescale import InputError
from odescale.generated import peaked as generated
from odescale.symbolic import dominant_balances, module_source, to_latex, to_text, verify_stamp

ROOT = Path(__file__).resolve().parents[1]
SLOW = ("schedule", "adam laws", "temperature schedule", "learning rate")
g, h = peaked_laws.POWER, peaked_escapes.HEAT


@pytest.fixture(scope="module")
def derivation():
    return derive()


@pytest.fixture(scope="module")
def closure():
    return peaked_closure.overlaps(peaked_closure.gradient()[1])[1]


@pytest.fixture(scope="module")
def layer():
    return peaked_layers.layer()[1]


@pytest.fixture(scope="module")
def expansion():
    return peaked_expansion.low_temperature()[1]


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def test_files_are_what_the_derivation_gives(derivation) -> None:
    assert command.differences(ROOT, command.texts(derivation)) == {}
    assert command.hand_edited(ROOT, "peaked") == ""
    assert verify_stamp((ROOT / "odescale/generated/peaked.py").read_text())
    assert "one-third" in to_text(derivation) and "\\subsection" in to_latex(derivation)


def test_what_is_not_proved_is_visible(derivation) -> None:
    text = command.texts(derivation)["docs/derivations/peaked.md"]
    for key in ("numerical: limits", "numerical: layer"):
        assert f"**{key}**" in text and any(key in step.uses for step in derivation.steps)
        assert all(step.check is not None for step in derivation.steps if key in step.uses)


@pytest.mark.slow
def test_text_does_not_depend_on_the_hash_seed(derivation) -> None:
    code = (
        "import hashlib; from derivations.peaked.script import derive; from derivations.__main__ import texts\n"
        "print(hashlib.sha256(repr(texts(derive())).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4321", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    expected = hashlib.sha256(repr(command.texts(derivation)).encode()).hexdigest()
    assert done.returncode == 0 and done.stdout.strip() == expected, done.stderr


def test_an_edited_module_differs_by_numbers(derivation) -> None:
    text = module_source(derivation)
    edited = text.replace("return c * (x - 1) ** 2", "return 1.01 * c * (x - 1) ** 2")
    assert peaked_checks.compare_modules(text, text) == ""
    assert peaked_checks.compare_modules(text + "\n", text) == ""
    assert edited != text and peaked_checks.compare_modules(edited, text).startswith("finite_temperature_loss")
    without = text.replace("def brier_slopes", "def brier")
    assert peaked_checks.compare_modules(without, text).startswith("brier_slopes: missing")
    # A function that the comparison does not call would pass unseen.
    assert peaked_checks.compare_modules(without, without + "\n").startswith("brier_slopes: missing")


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------


def _run(derivation, names) -> None:
    results = {step.name: step.check() for step in derivation.steps if step.check is not None and step.name in names}
    assert len(results) == len(names)
    assert all(result.passed for result in results.values()), {k: str(v) for k, v in results.items()}


@pytest.mark.slow
def test_numeric_checks_pass(derivation) -> None:
    assert all(step.check is not None for step in derivation.steps)
    _run(derivation, [step.name for step in derivation.steps if step.name not in SLOW])


@pytest.mark.slow
def test_long_numeric_checks_pass(derivation) -> None:
    _run(derivation, SLOW)


@pytest.mark.parametrize("symbol", [MEAN_TOP, CURVATURE, SECOND_MOMENT], ids=str)
def test_the_single_step_sees_a_wrong_closure(closure, symbol) -> None:
    spoiled = {symbol: 1.05 * peaked_checks.field_moments("hard")[symbol]}
    assert not peaked_checks.one_step(closure, spoiled).passed


def test_the_checks_of_the_integrals_can_fail(layer, expansion) -> None:
    assert not integrals.low_temperature(expansion.ratio * Rational(101, 100)).passed
    for change in (
        {"kappa": layer.kappa + DELTA / 100},
        {"noise": 1.001 * layer.noise},
        {"error": 1.001 * layer.error},
    ):
        assert not integrals.layer(dataclasses.replace(layer, **change)).passed
    pair = peaked_expansion.two_classes()[1]
    assert not integrals.two_classes(dataclasses.replace(pair, loss=(*pair.loss[:2], 2 * pair.loss[2]))).passed


def test_the_checks_of_the_laws_can_fail(layer, expansion) -> None:
    law = peaked_laws.one_third(expansion, peaked_expansion.two_classes()[1])[1]
    assert not laws.one_third(dataclasses.replace(law, loss=law.loss * (1 + 3e-5))).passed
    assert not laws.one_third(dataclasses.replace(law, correction=(1.1 * law.correction[0], law.correction[1]))).passed
    form = peaked_laws.finite_temperature(expansion)[1]
    x = peaked_laws.RATIO
    assert not laws.finite_temperature(dataclasses.replace(form, exponent=form.exponent * (1 + x / 100))).passed
    assert not laws.finite_temperature(dataclasses.replace(form, cutoff=1.02 * form.cutoff)).passed
    assert not laws.with_noise(dataclasses.replace(layer, noise=1.01 * layer.noise)).passed


# ---------------------------------------------------------------------------------------------------------------------
# Laws
# ---------------------------------------------------------------------------------------------------------------------


def test_the_constant_and_the_series(expansion) -> None:
    assert expansion.ratio == sympy.pi**2 / 12
    pair = peaked_expansion.two_classes(4)[1]
    assert pair.mean == 1 / sympy.sqrt(sympy.pi) and sympy.simplify(pair.loss[0] - expansion.ratio * pair.mean) == 0
    assert pair.loss[1] == -7 * sympy.pi ** Rational(7, 2) / 1440
    assert pair.loss[2] == 31 * sympy.pi ** Rational(11, 2) / 40320
    # (2n)! eta(2n + 2) (-1/4)^n/n! of the half-normal, n = 3.
    fourth = -sympy.factorial(6) * sympy.dirichlet_eta(8).doit() / (64 * 6) / sympy.sqrt(sympy.pi)
    assert sympy.simplify(pair.loss[3] - fourth) == 0


def test_schedules_and_where_the_spread_stops_following(layer) -> None:
    law = peaked_laws.schedule(layer)[1]
    assert sympy.simplify(law.loss - (1 - g) / 3) == 0 and sympy.simplify(law.error - Rational(1, 3) - g / 6) == 0
    assert law.follows.conditions == (g < 1,) and law.frozen.conditions == (g > 1,)
    flow = peaked_laws.late_flow(*peaked_laws.still(layer), rate=TIME**-g)
    with pytest.raises(InputError, match="no consistent balance"):
        dominant_balances(flow, TIME, assume=[g >= 1], growth={peaked_laws.SPREAD: "vanishing"})
    assert all(not balance.slaved for balance in dominant_balances(flow, TIME, assume=[g >= 1]))


def test_adam_and_normalised_steps(layer, closure) -> None:
    forms = peaked_adam.derive_normalised(closure)[2]
    found = peaked_escapes.adam(forms, layer)[1]
    assert found.exponents["small"] == Rational(2, 5) and found.exponents["late"] == Rational(1, 6)
    assert found.late.exponents[peaked_laws.SPREAD] == Rational(1, 3)
    assert found.exponents["noiseless"] == 1
    assert set(found.scheduled.conditions) == {g > Rational(1, 6), g < 1}
    # No falling learning rate beats 1/3 for good.
    assert found.exponents["scheduled"].subs(g, Rational(1, 6)) == Rational(1, 3)


def test_temperature_schedules(layer) -> None:
    found = peaked_escapes.temperature(layer)[1]
    assert found.exponents["balanced"] == h and found.exponents["balanced error"] == h
    assert set(found.balanced.conditions) == {h > Rational(1, 3), h < 1}
    assert sympy.simplify(found.exponents["noiseless"] - (1 + 2 * h) / 3) == 0 and found.noiseless.conditions == (
        h < 1,
    )
    assert found.exponents["driven"] == h and found.exponents["driven error"] == g / 2
    # The three regimes meet at g = 2 h.
    assert found.exponents["wide"].subs(g, 2 * h) == h and found.exponents["driven error"].subs(g, 2 * h) == h


def test_saturating_losses_speed_up_the_error_alone() -> None:
    rows = {row.name: row for row in peaked_escapes.losses(peaked_layers.margin_losses()[1])[2]}
    for name, row in rows.items():
        if "focal" in name:
            assert row.loss == row.error == Rational(1, 3)
        else:
            assert row.loss is None and row.error == g / 2 and (g < 1) in row.balance.conditions


def test_the_best_learning_rate_is_a_stationary_point(layer) -> None:
    ratio, spread, figure = laws.best_rate(layer)
    assert spread == pytest.approx(laws.stationary_spread(layer, ratio))
    kappa = sympy.lambdify(DELTA, layer.kappa)
    near = [kappa(laws.stationary_spread(layer, ratio * x)) ** 2 / (ratio * x) for x in (0.9, 1.1)]
    assert min(near) > figure and max(near) < 1.01 * figure


def test_the_hand_over(expansion) -> None:
    form = peaked_laws.finite_temperature(expansion)[1]
    x = peaked_laws.RATIO
    assert sympy.simplify(form.clock - sympy.atanh(x) + x) == 0
    assert sympy.simplify(form.exponent - (1 + x) ** 2 * (sympy.atanh(x) - x) / x**3) == 0
    assert form.series.coeff(x, 0) == Rational(1, 3) and form.series.coeff(x, 1) == Rational(2, 3)


# ---------------------------------------------------------------------------------------------------------------------
# Generated functions
# ---------------------------------------------------------------------------------------------------------------------


def test_the_flow_starts_from_nothing_and_differentiates() -> None:
    """D = Delta = 0, uniform p: dD = eta m/(K-1), dDelta = eta^2 (1 - 1/K)/(B (K-1)); gradients are finite."""

    def flow(state):
        return generated.overlap_flow(state[0], state[1], 0.8, 0.8, 2 / 3, 2 / 3, 0.5, 2.0, 3.0)

    dD, dDelta = flow(jnp.zeros(2))
    assert float(dD) == pytest.approx(0.5 * 0.8 / 2) and float(dDelta) == pytest.approx(0.25 / 2 / 2 * 2 / 3)
    assert np.all(np.isfinite(jax.jacobian(lambda s: jnp.stack(flow(s)))(jnp.zeros(2))))
    assert np.all(np.isfinite(flow(jnp.asarray([-0.5, 0.2]))))


def test_no_digit_is_lost_late() -> None:
    """At D = 1e6 the drift (m - D H) of order 1e-12 comes out to 1e-14 relative; the plain difference would have none."""
    D, spread, H, gap = 1e6, 0.25, 8.46e-7, 7.0e-13
    dD, _ = generated.overlap_flow(D, spread, D * H, gap, H, 1e-6, 1.0, 1.0, 3.0)
    expected = sympy.Rational(7, 10**13) + (sympy.sqrt(sympy.Integer(10) ** 12 + Rational(1, 4)) - 10**6) * Rational(
        846, 10**9
    )
    assert float(dD) == pytest.approx(float(sympy.N(expected / 2, 30)), rel=1e-14)


def test_smoothing_temperature_decay_and_an_infinite_batch() -> None:
    """beta enters as in effective variables: (beta D, beta^2 Delta) move as (D, Delta) with eta beta^2."""
    beta, eta = 1.7, 0.3
    state = (0.9, 0.4)
    plain = generated.overlap_flow(
        beta * state[0], beta**2 * state[1], 0.8, 0.1, 0.3, 0.5, beta**2 * eta, 2.0, 4.0, 0.2, 0.1
    )
    heated = generated.overlap_flow(*state, 0.8, 0.1, 0.3, 0.5, eta, 2.0, 4.0, 0.2, 0.1, beta)
    assert float(heated[0] * beta) == pytest.approx(float(plain[0])) and float(heated[1] * beta**2) == pytest.approx(
        float(plain[1])
    )
    still = generated.overlap_flow(*state, 0.8, 0.1, 0.3, 0.5, eta, jnp.inf, 4.0)
    assert float(still[1]) == pytest.approx(-2 * eta * 0.4 * 0.3 / 3)
    # At the fixed point of smoothing, (1 - eps) m = D H, the drift is zero.
    m, H, D = 0.8, 0.3, 0.9 * 0.8 / 0.3
    dD, _ = generated.overlap_flow(D, 0.0, m, m - D * H, H, 0.5, eta, 2.0, 4.0, 0.0, 0.1)
    assert abs(float(dD)) < 1e-16


def test_second_moment_against_samples() -> None:
    rng = np.random.default_rng(0)
    p, y, eps = rng.dirichlet(np.ones(4), 1000), rng.dirichlet(np.ones(4), 1000), 0.2
    direct = np.mean(np.sum((p - (1 - eps) * y - eps / 4) ** 2, axis=1))
    got = generated.second_moment(
        1 - np.mean(np.sum(p * p, 1)), 1 - np.mean(np.sum(p * y, 1)), 1 - np.mean(np.sum(y * y, 1)), 4.0, eps
    )
    assert float(got) == pytest.approx(direct, rel=1e-12)


def test_cross_entropy_as_a_margin_loss_is_the_closure_of_two_classes() -> None:
    """margin_flow with l = softplus(-z) on a grid over u and xi against overlap_flow with exact K = 2 averages."""
    averages, D, spread = integrals.TwoClassAverages(), 1.4, 0.5
    u, w = integrals.legendre(0.0, 14.0, 20, 8)
    xi = np.linspace(-9, 9, 201)
    weight = (w * np.exp(-(u**2) / 4) / np.sqrt(np.pi))[:, None] * integrals.density(xi) * (xi[1] - xi[0])
    z = D * u[:, None] + np.sqrt(2 * spread) * xi
    first, second = -1 / (1 + np.exp(z)), 1 / (4 * np.cosh(z / 2) ** 2)
    parts = (np.sum(weight * -first * u[:, None]), np.sum(weight * second), np.sum(weight * first**2))
    got = generated.margin_flow(D, spread, *parts, 0.7, 2.0, 0.1)
    s = np.hypot(D, spread**0.5)
    gap = averages.aligned(s)[1]
    H, G = (averages.m - gap) / s, averages.noise(D, spread)[0]
    expected = generated.overlap_flow(D, spread, averages.m, gap, H, G, 0.7, 2.0, 2.0, 0.1)
    assert np.allclose(np.asarray(got), np.asarray(expected), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["focal", "brier", "square"])
def test_slopes_of_margin_losses(name: str) -> None:
    function = getattr(generated, f"{name}_slopes")
    extra = (2.5,) if name == "focal" else ()
    z = [-40.0, -3.0, 0.4, 2.0, 40.0]
    loss = {
        "focal": lambda z: (1 / (1 + mpmath.exp(z))) ** 2.5 * mpmath.log1p(mpmath.exp(-z)),
        "brier": lambda z: (1 / (1 + mpmath.exp(z))) ** 2,
        "square": lambda z: (z - 1) ** 2 / 4,
    }[name]
    found = np.asarray(function(jnp.asarray(z), *extra))
    with mpmath.workdps(60):
        expected = [[float(mpmath.diff(loss, mpmath.mpf(x), n)) for x in z] for n in (0, 1, 2)]
    assert np.allclose(found, expected, rtol=1e-11, atol=0)


def test_normalised_steps_without_noise_have_constant_speed() -> None:
    for gap in (0.5, 1e-3, 1e-9):
        dD, dDelta = generated.normalised_flow(3.0, 0.0, 0.8, gap, 0.2, 0.1, 0.6, jnp.inf, 5.0, 100.0)
        assert float(dD) == pytest.approx(0.6 / 2) and float(dDelta) == 0.0


def test_adam_ignores_the_scale_of_the_loss() -> None:
    """All slopes times b (label and student sharper by b at the same logits): the same step."""
    plain = generated.adam_flow(1.2, 0.3, 0.8, 0.05, 0.2, 0.1, 0.01, 4.0, 5.0, 30.0)
    doubled = generated.adam_flow(1.2, 0.3, 2 * 0.8, 2 * 0.05, 2 * 0.2, 4 * 0.1, 0.01, 4.0, 5.0, 30.0)
    assert np.allclose(np.asarray(plain), np.asarray(doubled), rtol=1e-13)


def test_stationary_spread_of_the_note() -> None:
    found = brentq(
        lambda x: float(generated.stationary_spread_residual(x, 1.0, 1.0, integrals.softplus_mean(x))), 1e-6, 5.0
    )
    assert found == pytest.approx(0.25292, abs=5e-6)
    noise = generated.layer_noise(1.0, integrals.softplus_mean(found))
    assert float(noise) == pytest.approx(2 * found, rel=1e-10)


def test_power_laws_and_their_ends() -> None:
    c = generated.drift_constant(0.8462843753)
    D = generated.power_law_overlap(1e5, 0.5, c, 3.0)
    assert float(generated.power_law_loss(1e5, 0.5, c, 3.0)) == pytest.approx(float(c / D), rel=1e-13)
    slope = jax.grad(lambda t: generated.power_law_overlap(t, 0.5, c, 3.0))(1e5)
    assert float(slope) == pytest.approx(0.5 * float(c) / (2 * float(D) ** 2), rel=1e-12)
    stop = generated.weight_decay_overlap(0.5, c, 3.0, 1e-4)
    assert float(0.5 * c / (2 * stop**2) - 1e-4 * stop) == pytest.approx(0.0, abs=1e-15)


def test_functions_of_a_finite_temperature() -> None:
    """Time, loss and exponent belong together; series and closed form meet; 1/3 at the start."""
    c, K, eta, b = 0.7, 5.0, 0.4, 300.0
    x = jnp.concatenate([jnp.geomspace(1e-8, 0.2, 20), jnp.linspace(0.2501, 0.9999, 30)])
    dx_dt = jax.vmap(lambda x: 1 / jax.grad(lambda x: generated.finite_temperature_time(x, eta, c, K, b))(x))(x)
    assert np.allclose(dx_dt, eta * c / ((K - 1) * b**3) * (1 - x**2) / x**2, rtol=1e-10)
    time = generated.finite_temperature_time(x, eta, c, K, b)
    slope = jax.vmap(jax.grad(lambda x: jnp.log(generated.finite_temperature_loss(x, c, b))))(x) * dx_dt * time
    assert np.allclose(-slope, generated.finite_temperature_exponent(x), rtol=1e-10)
    assert float(generated.finite_temperature_exponent(0.0)) == pytest.approx(1 / 3, rel=1e-15)
    below, above = (generated.artanh_ratio(0.25 + e) for e in (-1e-13, 1e-13))
    assert float(below) == pytest.approx(float(above), rel=1e-12)
    scale = generated.hand_over_time(eta, c, K, b)
    assert float(generated.power_law_overlap(scale, eta, c, K)) == pytest.approx(b, rel=1e-13)

    def bend(x):
        log = jax.grad(lambda x: jnp.log(generated.finite_temperature_exponent(x)))(x)
        return float(log / jax.grad(lambda x: jnp.log(generated.finite_temperature_time(x, eta, c, K, b)))(x)) - 0.5

    at = brentq(bend, 0.3, 0.95)
    cut = float(generated.finite_temperature_time(at, eta, c, K, b))
    assert float(generated.cutoff_time(eta, c, K, b)) == pytest.approx(cut, rel=1e-10)
