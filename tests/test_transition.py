"""The transition of a system and of a formula: six digits, gradients, depth, and the answers without a transition."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from odescale import InputError, PrecisionError, find_transition, quickstart, transition_gradient
from odescale.analysis.phases.transition import transition_time
from odescale.generated.attention import quickstart_loss

S_PER_T = 0.2 * 2.0  # learning_rate sqrt(readout_scale)
LAST = 12.0


def closed_form(S):
    return quickstart_loss(S, 1.0, 0.05, 0.3)


@pytest.fixture(scope="module")
def formula():
    return find_transition(closed_form, LAST, min_depth=2.0, time_unit="S")


@pytest.fixture(scope="module")
def noisy():
    return find_transition(quickstart(), LAST / S_PER_T, min_depth=2.0)


@pytest.fixture(scope="module")
def silent():
    return find_transition(quickstart(noise=0.0), LAST / S_PER_T, min_depth=2.0)


def dense_root() -> float:
    """The down-crossing of q = 1/2 from derivatives of the closed form written out by hand, no autodiff."""
    beta, y0, y1 = 1.0, 0.05, 0.3

    def q(S):
        # L = f^2/2 + g^2/2 with f' = -2 f (beta - f), g' = -2 g^2
        f = beta * (beta - y0) / (beta - y0 + y0 * np.exp(2 * beta * S))
        g = y1 / (1 + 2 * y1 * S)
        f1, g1 = -2 * f * (beta - f), -2 * g * g
        f2, g2 = -2 * f1 * (beta - 2 * f), -4 * g * g1
        L, L1 = (f * f + g * g) / 2, f * f1 + g * g1
        L2 = f1 * f1 + f * f2 + g1 * g1 + g * g2
        return 1 + S * L2 / L1 - S * L1 / L

    grid = np.linspace(0.5, LAST, 40_001)
    p_max = np.argmax([-S * (np.log(closed_form(S * 1.0001)) - np.log(closed_form(S * 0.9999))) / (2e-4 * S)
                       for S in grid[::100]])  # fmt: skip
    values = np.array([q(S) - 0.5 for S in grid])
    down = [i for i in range(grid.size - 1) if values[i] > 0 >= values[i + 1] and grid[i] <= grid[::100][p_max]]
    return brentq(lambda S: q(S) - 0.5, grid[down[-1]], grid[down[-1] + 1], xtol=1e-14)


def test_transition_of_the_closed_form_to_six_digits(formula):
    assert formula.found and formula.t_x == pytest.approx(2.148782, abs=5e-7)
    assert formula.t_x == pytest.approx(dense_root(), rel=1e-9)
    assert formula.depth == pytest.approx(2.817, abs=5e-4)
    assert formula.depth == pytest.approx(np.log(closed_form(0.0) / closed_form(formula.t_x)), rel=1e-12)
    # all crossings are listed, the start-up transient at small S too
    times = [time for time, direction in formula.crossings if direction == "down"]
    assert len(times) >= 1 and times[-1] == pytest.approx(formula.t_x, rel=1e-3)
    # q falls there; the tail is a power law in S + 1/(2 y1), whose local exponent is 2 S/(S + 1/(2 y1)): the median over
    # the later half, in log S, of the power-law regime
    middle = (formula.t_x * LAST**3) ** 0.25
    assert formula.conditioning < 0
    assert formula.tail_exponent == pytest.approx(2 * middle / (middle + 1 / 0.6), rel=5e-3)


@pytest.mark.slow
def test_transition_of_the_noisy_system_to_six_digits(noisy):
    assert noisy.found and noisy.t_x * S_PER_T == pytest.approx(2.153729, abs=5e-7)
    assert noisy.depth == pytest.approx(2.692, abs=5e-4)
    assert "2.692 e-folds" in str(noisy) and "200 SGD steps" in noisy.time_unit


def test_event_is_the_root_of_the_closed_form(silent, formula):
    assert silent.t_x * S_PER_T == pytest.approx(formula.t_x, rel=1e-6)
    assert silent.depth == pytest.approx(formula.depth, rel=1e-6)
    # dq/dt, in t here and in S there
    assert silent.conditioning == pytest.approx(formula.conditioning * S_PER_T, rel=1e-4)


@pytest.mark.slow
def test_gradient_is_the_exact_scaling_and_the_finite_difference(silent):
    system = quickstart(noise=0.0)
    slopes = transition_gradient(system, silent)
    # without noise t_x = S_x / (eta sqrt R): d t_x / d eta = -t_x / eta
    assert float(slopes.learning_rate) == pytest.approx(-silent.t_x / 0.2, rel=1e-5)
    # one direction of the start: the closed form at another surplus y1
    h = 1e-4

    def t_x(y1):
        return find_transition(lambda S: quickstart_loss(S, 1.0, 0.05, y1), LAST, min_depth=2.0).t_x / S_PER_T

    difference = (t_x(0.3 + h) - t_x(0.3 - h)) / (2 * h)
    up, down = (np.asarray(quickstart(noise=0.0, surplus=0.3 + s * h).initial_overlaps) for s in (1, -1))
    along = float(np.sum(np.asarray(slopes.initial_overlaps) * (up - down)) / (2 * h))
    assert along == pytest.approx(difference, rel=1e-5)


@pytest.mark.slow
def test_noise_makes_the_gradient_differ_from_pure_scaling(noisy):
    slopes = transition_gradient(quickstart(), noisy)
    h = 2e-4
    moved = [find_transition(quickstart(learning_rate=0.2 + s * h), LAST / S_PER_T, min_depth=2.0).t_x for s in (1, -1)]
    difference = (moved[0] - moved[1]) / (2 * h)
    assert float(slopes.learning_rate) == pytest.approx(difference, rel=1e-5)
    assert abs(float(slopes.learning_rate) / (-noisy.t_x / 0.2) - 1) > 1e-3


def test_power_law_has_no_exponential_phase():
    found = find_transition(lambda t: (1 + t) ** -1.5, 1e4)
    assert not found.found and found.t_x is None and found.reason.startswith("no exponential phase")
    # at q = 1/2, t = 1: 1.5 log 2 e-folds deep
    assert found.depth == pytest.approx(1.5 * np.log(2), abs=1e-3)
    assert "e-folds" in str(found)


def test_pure_exponential_is_still_exponential():
    found = find_transition(lambda t: jnp.exp(-t), 20.0)
    assert not found.found and "exponential to the end of the window" in found.reason


def test_exponential_into_a_constant_is_not_a_transition():
    found = find_transition(lambda t: jnp.exp(-t) + 1e-6, 100.0)
    assert not found.found and "constant" in found.reason


def test_too_shallow_a_phase_is_refused_with_its_depth(formula):
    found = find_transition(closed_form, LAST, min_depth=2.9)
    # located on the grid only: a refused candidate is not refined
    assert not found.found and found.depth == pytest.approx(formula.depth, abs=5e-3)
    assert f"only {found.depth:.3f} e-folds down (min_depth 2.9)" in found.reason
    assert f"candidate depth {found.depth:.3f} e-folds" in str(found)


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
        ({"min_depth": 0.0}, InputError, "min_depth: expected a positive number"),
        ({"min_depth": np.nan}, InputError, "min_depth: expected a positive number"),
        ({"window": (0.0, 5.0)}, InputError, "window: expected 0 < first < last"),
        ({"window": (5.0, 1.0)}, InputError, "window: expected 0 < first < last"),
        ({"t1": -1.0}, InputError, "window: expected 0 < first < last"),
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
