"""The transition of a system and of a formula: six digits, gradients, depth, and the answers without a transition."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from odescale import InputError, PrecisionError, Thresholds, find_transition, quickstart, transition_gradient
from odescale.analysis.phases.transition import transition_time
from odescale.systems.attention_build import quickstart_loss

U_PER_T = 0.4  # learning_rate
LAST = 34.0
A, Y, R = 14.0, 0.3, 4.0


def closed_form(u):
    return quickstart_loss(u, A, Y, R)


@pytest.fixture(scope="module")
def formula():
    return find_transition(closed_form, LAST, time_unit="u")


@pytest.fixture(scope="module")
def noisy():
    return find_transition(quickstart(), LAST / U_PER_T)


@pytest.fixture(scope="module")
def silent():
    return find_transition(quickstart(noise=0.0), LAST / U_PER_T)


def by_hand(u):
    """q of the closed form from derivatives written out by hand, no autodiff."""
    s = 2 * Y * np.sqrt(R)
    first, second = A / 2 * np.exp(-2 * u), (Y / (1 + s * u)) ** 2
    slope = -2 * first - 2 * s * second / (1 + s * u)
    curve = 4 * first + 6 * s**2 * second / (1 + s * u) ** 2
    return 1 + u * curve / slope - u * slope / (first + second)


def test_transition_of_the_closed_form_to_six_digits(formula):
    root = brentq(lambda u: by_hand(u) - 0.5, 2.0, 4.0, xtol=1e-14)
    assert formula.found and formula.t_x == pytest.approx(2.836739, abs=5e-7)
    assert formula.t_x == pytest.approx(root, rel=1e-9)
    assert formula.depth == pytest.approx(np.log(closed_form(0.0) / closed_form(formula.t_x)), rel=1e-12)
    first, second = formula.phases.handover
    assert first.end == pytest.approx(brentq(lambda u: by_hand(u) - 0.8, 1.0, 2.8), rel=1e-3)
    assert second.start == pytest.approx(brentq(lambda u: by_hand(u) + 0.2, 4.0, 12.0), rel=1e-3)
    # the tail is a power law in u + 1/(2 y sqrt R), whose local exponent is 2 u/(u + 1/(2 y sqrt R)): its median on the phase
    middle = (second.start * LAST) ** 0.5
    assert formula.conditioning < 0
    assert formula.tail_exponent == pytest.approx(2 * middle / (middle + 1 / 1.2), rel=1e-2)


def test_the_quickstart_earns_its_title(noisy):
    """3.5 e-folds with |q - 1| <= .1, then |q| <= .1 over a ratio of 4 in t, in the ODE with its SGD noise."""
    narrow = find_transition(quickstart(), LAST / U_PER_T, thresholds=Thresholds(near=0.1))
    first, second = narrow.phases.handover
    assert first.efolds >= 3.5 and second.ratio >= 4
    assert narrow.t_x == noisy.t_x and noisy.name == "exponential, then power law"


@pytest.mark.slow
def test_transition_of_the_noisy_system_to_six_digits(noisy):
    assert noisy.found and noisy.t_x == pytest.approx(7.322016, abs=5e-7)
    assert "5.549 e-folds" in str(noisy) and "64 SGD steps" in noisy.time_unit


def test_event_is_the_root_of_the_closed_form(silent, formula):
    assert silent.t_x * U_PER_T == pytest.approx(formula.t_x, rel=1e-6)
    assert silent.depth == pytest.approx(formula.depth, rel=1e-6)
    # dq/dt, in t here and in S there
    assert silent.conditioning == pytest.approx(formula.conditioning * U_PER_T, rel=1e-4)


@pytest.mark.slow
def test_gradient_is_the_exact_scaling_and_the_finite_difference(silent):
    system = quickstart(noise=0.0)
    slopes = transition_gradient(system, silent)
    # without noise t_x = u_x / eta: d t_x / d eta = -t_x / eta
    assert float(slopes.learning_rate) == pytest.approx(-silent.t_x / U_PER_T, rel=1e-5)
    # one direction of the start: the closed form at another surplus
    h = 1e-4

    def t_x(y):
        return find_transition(lambda u: quickstart_loss(u, A, y, R), LAST).t_x / U_PER_T

    difference = (t_x(0.3 + h) - t_x(0.3 - h)) / (2 * h)
    up, down = (np.asarray(quickstart(noise=0.0, surplus=0.3 + s * h).initial_overlaps) for s in (1, -1))
    along = float(np.sum(np.asarray(slopes.initial_overlaps) * (up - down)) / (2 * h))
    assert along == pytest.approx(difference, rel=1e-5)


@pytest.mark.slow
def test_noise_makes_the_gradient_differ_from_pure_scaling(noisy):
    slopes = transition_gradient(quickstart(), noisy)
    h = 2e-4
    moved = [find_transition(quickstart(learning_rate=0.4 + s * h), LAST / U_PER_T).t_x for s in (1, -1)]
    difference = (moved[0] - moved[1]) / (2 * h)
    assert float(slopes.learning_rate) == pytest.approx(difference, rel=1e-5)
    assert abs(float(slopes.learning_rate) / (-noisy.t_x / U_PER_T) - 1) > 1e-3


def test_two_term_curve_has_its_transition_at_the_bracketed_root():
    # L = e^-kt + A (1 + t)^-1: six e-folds of exponential before the power law
    def loss(t):
        return jnp.exp(-3.0 * t) + 1e-3 / (1 + t)

    found = find_transition(loss, 100.0)
    assert found.found and found.depth > 5

    def log_loss(u):
        return jnp.log(loss(jnp.exp(u)))

    u = jnp.log(found.t_x)
    q = jax.grad(jax.grad(log_loss))(u) / jax.grad(log_loss)(u)
    assert float(q) == pytest.approx(0.5, abs=1e-9)
    assert found.exponential_rate == pytest.approx(3.0, rel=0.02)


@pytest.mark.slow
def test_transition_time_of_the_crossing_is_the_crossing(silent):
    value = eqx.filter_jit(transition_time)(quickstart(noise=0.0), jnp.asarray(silent.t_x))
    assert float(value) == pytest.approx(silent.t_x, rel=1e-8)


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"precision": "float32"}, PrecisionError, "precision: expected float64 for a transition"),
        ({"window": (0.0, 5.0)}, InputError, "window: expected 0 < first < last"),
        ({"window": (5.0, 1.0)}, InputError, "window: expected 0 < first < last"),
        ({"t1": -1.0}, InputError, "t1: expected a finite number"),
        ({"t1": np.inf}, InputError, "t1: expected a finite number"),
        ({"points": 3}, InputError, "points: expected a whole number >= 20"),
        ({"points": 10**30}, InputError, "points: expected a whole number"),
        ({}, InputError, "window: expected"),
    ],
)
def test_bad_requests_are_refused(given, kind, words):
    t1 = given.pop("t1", None)
    if t1 is None and "window" not in given and given:
        t1 = LAST
    with pytest.raises(kind) as error:
        find_transition(closed_form, t1, **given)
    assert str(error.value).startswith(words)


def test_a_system_without_an_end_and_data_are_refused():
    with pytest.raises(InputError, match="t1: expected the end"):
        find_transition(quickstart())
    with pytest.raises(InputError, match="find_transition_curve"):
        find_transition(np.ones(5), 1.0)
    with pytest.raises(PrecisionError):
        find_transition(quickstart(), 30.0, precision="float32")
    with pytest.raises(InputError, match="transition that was found"):
        transition_gradient(quickstart(), find_transition(lambda t: jnp.exp(-t), 20.0))
