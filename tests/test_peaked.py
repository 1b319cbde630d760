"""The system `peaked`: the one-third law, its noise, its ends, its domain. Everything here is an acceptance line or a limit."""

from __future__ import annotations

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odescale
from odescale import InputError, OutsideTheoryError, find_transition, integrate, peaked
from odescale.cache.programs import made
from odescale.solve import integrate as engine


def course(system, *times, **settings):
    """The trajectory at `times`, on a grid of twelve: one compiled program for all systems of a kind."""
    extra = np.geomspace(times[0] / 2, times[0] / 1.1, 12 - len(times))
    theory = integrate(system, ts=np.concatenate([extra, times]), **settings)
    return theory, np.arange(13 - len(times), 13)


@pytest.mark.parametrize(("classes", "bound"), [(2, 1e-3), (3, 1e-3), (10, 1e-3), (128, 5e-3)])
def test_one_third_of_the_aligned_flow(classes, bound):
    """|e - 1/3| at t = 1e5 and 1e8, and the prefactor c^(2/3) ((K - 1)/(3 eta t))^(1/3) within .2 % for K <= 10."""
    system = peaked(classes=classes, noise=0.0)
    theory, at = course(system, 1e5, 1e8)
    exponent, loss = theory.exponent[at], theory.loss[at]
    assert abs(exponent[0] - 1 / 3) <= bound
    assert abs(exponent[1] - 1 / 3) <= 5e-5
    law = system.race.c ** (2 / 3) * ((classes - 1) / (3 * theory.t[at])) ** (1 / 3)
    assert abs(loss[0] / law[0] - 1) <= (2e-3 if classes <= 10 else 5e-3)
    np.testing.assert_allclose(loss[1] / law[1], 1, atol=3e-5)


@pytest.mark.parametrize(
    ("classes", "at", "value"), [(2, 1e3, 0.33849), (2, 1e5, 0.33361), (2, 1e8, 0.33334), (10, 1e3, 0.34888), (10, 1e5, 0.33402)]
)  # fmt: skip
def test_local_exponents_that_were_computed_elsewhere(classes, at, value):
    theory, _ = course(peaked(classes=classes, noise=0.0), at)
    # Their start is not on record: a D(0) of .02 shifts time by .1, and the exponent at t = 1e3 by 4e-5.
    assert abs(theory.exponent[-1] - value) < (1e-4 if at < 1e4 else 1e-5)


@pytest.mark.slow
def test_log_time_reaches_ten_decades():
    """t = 1e10 with noise, whose slaved spread relaxes a million times faster than D grows: few steps, one third."""
    system = peaked(classes=3)
    theory, _ = course(system, 1.0, 1e10)
    assert theory.meta["ladder"][-1]["accepted"] < 400
    assert abs(theory.exponent[-1] - 1 / 3) < 1e-4
    assert engine.output_times(1e10, 50, first=engine.first_time(system))[1] < 1  # where something happens


@pytest.mark.slow
def test_exponent_is_the_slope_of_the_curve():
    theory, at = course(peaked(classes=5), *np.geomspace(50, 60, 5))
    slope = -np.diff(np.log(theory.loss[at])) / np.diff(np.log(theory.t[at]))
    np.testing.assert_allclose(slope, (theory.exponent[at[1:]] + theory.exponent[at[:-1]]) / 2, rtol=1e-4)


def test_number_of_classes_costs_nothing():
    """K = 1e5 takes no more steps than K = 10, in the same compiled program."""
    few, many = (course(peaked(classes=K, noise=0.0), 1e8)[0] for K in (10, 100_000))
    before = dict(made)
    course(peaked(classes=77, noise=0.0), 1e8)
    assert dict(made) == before
    assert many.meta["ladder"][-1]["accepted"] <= few.meta["ladder"][-1]["accepted"]


@pytest.mark.slow
def test_gradient_flow_of_the_loss():
    """Without noise the flow descends dL/dD: dL/dt = -(K - 1) (dD/dt)^2/eta for the aligned student."""
    for labels, b in (("hard", np.inf), ("soft", 7.0)):
        system = peaked(classes=4, noise=0.0, labels=labels, inverse_temperature=b, learning_rate=0.7)
        for D in (0.5, 3.0, 6.9):
            y = jnp.asarray([D, 0.0])
            flow = system.vector_field(jnp.asarray(1.0), y)
            gradient = jax.grad(lambda D, system=system: system.excess_loss(jnp.asarray(1.0), jnp.stack([D, 0.0])))(D)
            np.testing.assert_allclose(flow[0], -0.7 / 3 * gradient, rtol=1e-7)
            assert float(flow[1]) == 0


@pytest.mark.slow
def test_phases_from_one_sweep_over_temperature():
    """Flat targets: exponential throughout. Peaked: power law. Between: a cut-off at .651 alpha_c, where q passes 1/2."""
    b = np.array([0.5, 30.0, 300.0])
    theory = odescale.sweep("peaked", 3e6, {"inverse_temperature": b}, classes=3, labels="soft", noise=0.0, points=400)
    flat = theory.member(0)
    assert (flat.index[flat.valid & (flat.t > 0)] > 0.5).all()
    for place in (1, 2):
        system = peaked(classes=3, labels="soft", noise=0.0, inverse_temperature=b[place])
        alpha_c = 2 * b[place] ** 3 / (3 * float(system.race.c))
        found = find_transition(system, 8 * alpha_c)
        assert not found.found and "cut-off" in found.reason
        assert [one.kind for one in found.phases.counted("power law", "exponential")] == ["power law", "exponential"]
        # q = dlog p/dlog t = 1/2 of p = (1 + x)^2/x^3 (artanh x - x)/3 ..., by bisection of the formula itself.
        assert found.finite_size_cutoff == pytest.approx(artanh_cutoff() * alpha_c, rel=2.5 / b[place] ** 0.5)
    peaked_one = find_transition(peaked(classes=3, noise=0.0), 1e8)
    assert peaked_one.name == "power law" and peaked_one.finite_size_cutoff is None


def artanh_cutoff() -> float:
    """t/alpha_c at which q = 1/2, with t/alpha_c = 3 (artanh x - x) and p = (1 + x)^2 (artanh x - x)/x^3."""
    x = np.linspace(1e-3, 1 - 1e-6, 200_000)
    t = 3 * (np.arctanh(x) - x)
    p = (1 + x) ** 2 / x**3 * (np.arctanh(x) - x)
    q = np.gradient(np.log(p), np.log(t))
    return float(t[np.argmax(q > 0.5)])


@pytest.mark.parametrize("labels", ["soft", "sampled"])
def test_an_infinitely_cold_teacher_gives_hard_labels(labels):
    assert peaked(classes=3, labels=labels).labels == "hard"


@pytest.mark.slow
def test_soft_labels_of_a_cold_teacher_start_as_hard_ones():
    """b* = 5000: the same course as hard labels as long as D << b*; what they lack is of order D/b*."""
    times = np.geomspace(1, 100, 6)
    cold, at = course(peaked(classes=3, labels="soft", inverse_temperature=5e3), *times)
    hard, _ = course(peaked(classes=3), *times)
    for name, bound in (("overlap", 1.0), ("spread", 4.0), ("loss_total", 2.0)):
        got, expected = cold.observables[name][at], hard.observables[name][at]
        assert (np.abs(got / expected - 1) < bound * (hard.observables["overlap"][at] + 0.5) / 5e3).all(), name


@pytest.mark.slow
def test_soft_labels_end_in_the_teacher_and_sampled_ones_do_not():
    soft, _ = course(peaked(classes=3, labels="soft", inverse_temperature=5.0), *np.geomspace(3, 2000, 9))
    sampled, _ = course(peaked(classes=3, labels="sampled", inverse_temperature=5.0), 1e4)
    valid = soft.valid
    assert soft.loss[valid][-1] < 1e-4 and soft.observables["overlap"][valid][-1] == pytest.approx(5, abs=0.1)
    assert sampled.loss[-1] > 0.01 and sampled.exponent[-1] == pytest.approx(0, abs=1e-3)


@pytest.mark.slow
def test_calibrated_loss_is_the_least_over_temperatures():
    system = peaked(classes=5)
    theory, at = course(system, 3.0, 40.0)
    for place in at:
        D, spread = theory.state[place]
        scales = np.geomspace(0.02, 50, 4001)
        losses = jax.vmap(lambda x, D=D, v=spread: system.excess_loss(0.0, jnp.stack([x * D, x**2 * v])))(scales)
        np.testing.assert_allclose(theory.observables["calibrated_loss"][place], losses.min(), rtol=1e-5)


@pytest.mark.slow
def test_gradient_through_the_integration():
    def late(eta):
        import equinox as eqx

        system = eqx.tree_at(lambda s: s.learning_rate, peaked(classes=3, noise=0.0), eta)
        return integrate(system, ts=np.array([10.0, 1e3])).loss[-1]

    slope = jax.grad(late)(jnp.asarray(1.0))
    np.testing.assert_allclose(slope, (late(jnp.asarray(1.001)) - late(jnp.asarray(0.999))) / 0.002, rtol=1e-4)


@pytest.mark.parametrize("loss", ["focal", "brier", "square"])
def test_losses_of_the_margin_follow_their_own_derived_flow(loss):
    """The system sends them through the flow of the cross-entropy; `margin_flow` was derived for them separately."""
    from odescale.expectations.margin import margin_moments
    from odescale.generated.peaked import margin_flow

    system = peaked(classes=2, loss=loss, learning_rate=0.4, batch=2, weight_decay=0.1)
    D, spread = jnp.asarray(2.3), jnp.asarray(0.2)
    moments = margin_moments(loss, D, spread, system.focusing)
    halves = (moments.response / 2, moments.second_moment / 2)
    derived = margin_flow(D, spread, moments.drift, *halves, 0.4, 2.0, 0.1)
    np.testing.assert_allclose(system.vector_field(jnp.zeros(()), jnp.stack([D, spread])), derived, rtol=1e-12)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"classes": 1}, "classes"),
        ({"classes": 2.5}, "classes"),
        ({"inverse_temperature": -2.0, "labels": "soft"}, "inverse_temperature"),
        ({"inverse_temperature": 3.0}, "inverse_temperature"),
        ({"labels": "noisy"}, "labels"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"overlap": -1.0}, "overlap"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"schedule": 3}, "schedule"),
        ({"logit_schedule": "growth:-1"}, "schedule"),
        ({"clases": 3}, "clases"),
    ],
)
def test_bad_input_is_refused_by_name(given, name):
    with pytest.raises(InputError, match=name):
        peaked(**given)


@pytest.mark.slow
def test_outside_the_theory():
    """Unstable steps, losses without a closure, decay that would overshoot: refused before anything is compiled."""
    soft = peaked(classes=3, labels="soft", inverse_temperature=5.0, learning_rate=20.0)
    with pytest.raises(OutsideTheoryError, match="learning_rate"):
        integrate(soft, 10.0)
    with pytest.raises(OutsideTheoryError, match="learning_rate"):
        integrate(peaked(classes=2, loss="square", learning_rate=2.5), 10.0)
    with pytest.raises(OutsideTheoryError, match="loss"):
        peaked(classes=3, loss="focal")
    with pytest.raises(InputError, match="weight_decay"):
        integrate(peaked(classes=3, weight_decay=2000.0), 10.0)
    with pytest.raises(InputError, match="noise"):
        odescale.sweep("peaked", 10.0, {"inverse_temperature": np.array([1.0, 2.0])}, labels="soft", classes=3)


def test_stability_bound_is_where_the_teacher_loses_its_hold():
    """Just below the bound the KL falls to nothing, at 1.6 times the bound it stays."""
    system = peaked(classes=3, labels="soft", inverse_temperature=5.0)
    bound = system.stability_bound()
    late = {}

    @jax.jit
    def followed(rate):
        tried = eqx.tree_at(lambda s: s.learning_rate, system, rate)
        start = jnp.asarray([5.0, 0.3])
        return tried, jax.lax.fori_loop(0, 20_000, lambda _, y: y + 0.02 * tried.vector_field(jnp.zeros(()), y), start)

    for factor in (0.7, 1.6):
        tried, y = followed(jnp.asarray(factor * bound))
        late[factor] = float(tried.excess_loss(0.0, y))
    assert late[0.7] < 1e-8 and late[1.6] > 1e-4


@pytest.mark.slow
def test_ode_is_much_faster_than_the_simulation_it_replaces():
    """At least 20 times, warm, one process; tables included after first use."""
    from odescale import train

    system = peaked(classes=3, dimension=1000)
    ts = np.geomspace(1, 80, 20)
    run = {"seeds": 1, "record_times": ts, "progress": False}
    train(system, 80.0, **run)
    integrate(system, ts=ts)
    began = time.perf_counter()
    train(system, 80.0, **run)
    simulated = time.perf_counter() - began
    began = time.perf_counter()
    integrate(peaked(classes=3, dimension=1000), ts=ts)
    assert simulated / (time.perf_counter() - began) > 20
