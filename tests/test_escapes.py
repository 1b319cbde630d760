"""Time to a loss by its inverse, escapes by their exponents, and escapes that are none."""

from __future__ import annotations

import numpy as np
import pytest

from odescale import InputError, integrate
from odescale.analysis.peaked.escapes import ESCAPES, MAX_STEPS, POINTS, best_settings, follow, time_by_horizon
from odescale.analysis.peaked.layer import decay_exponent
from odescale.analysis.peaked.schedules import decayed, heated, heated_until, hot_start, sgd
from odescale.one_third import compare_escapes, time_to_loss
from odescale.plot import plot
from odescale.schedules import PowerSchedule


@pytest.mark.slow
def test_the_flow_has_the_loss_at_the_time_found() -> None:
    system = sgd(3, 1.0, batch=4.0)
    for observable in ("loss", "error", "calibrated_loss"):
        reach = time_to_loss(system, 4e-3, observable=observable, t_max=1e7)
        assert reach.reached
        # As many times as `follow` has: no second compilation.
        found = integrate(system, ts=np.geomspace(reach.t, 2 * reach.t, POINTS), max_steps=MAX_STEPS, solver="kvaerno5")
        value = found.loss[1] if observable == "loss" else found.observables[observable][1]
        assert value == pytest.approx(4e-3, rel=1e-5)
        assert reach.steps == pytest.approx(1000 * reach.t) and reach.samples == pytest.approx(4 * reach.steps)
        assert reach.tau == pytest.approx(reach.t)


def test_what_is_never_reached_is_infinite() -> None:
    reach = time_to_loss(sgd(3, 1.0, smoothing=0.1), 0.2, t_max=1e6)
    assert not reach.reached and np.isinf([reach.t, reach.steps, reach.samples, reach.tau]).all()
    assert time_to_loss(sgd(3, 1.0, smoothing=0.1), 0.27, t_max=1e6).reached


def test_bad_input() -> None:
    with pytest.raises(InputError, match="target"):
        time_to_loss(sgd(3, 1.0), -1.0, t_max=1e3)
    with pytest.raises(InputError, match="observable"):
        time_to_loss(sgd(3, 1.0), 0.1, observable="accuracy", t_max=1e3)
    with pytest.raises(InputError, match="names"):
        compare_escapes([0.1], names=["prayer"])


@pytest.mark.parametrize("h", [0.5, 0.7])
def test_a_growing_inverse_temperature_escapes(h: float) -> None:
    """Loss and error fall as t^-h, h up to one: the spread follows, the logits' scale alone pays."""
    curve = follow(heated(3, 1.0, h, 1.0), 1e8)
    assert abs(curve.exponent("loss") - h) < 5e-3 and abs(curve.exponent("error") - h) < 5e-3
    plain = follow(sgd(3, 1.0), 1e8)
    assert curve.loss[-1] < 0.05 * plain.loss[-1] and curve.error[-1] < 0.05 * plain.error[-1]
    # Heating at a constant learning rate is none: the spread grows with beta^2 eta.
    wrong = follow(sgd(3, 1.0, heat=heated(3, 1.0, 0.3, 1.0).logit_schedule), 1e6)
    assert wrong.loss[-1] > follow(sgd(3, 1.0), 1e6).loss[-1]


def test_a_hot_start_escapes_at_its_horizon() -> None:
    g, horizons = 0.6, (1e4, 1e5, 1e6)
    ends = np.array([(c.loss[-1], c.error[-1]) for T in horizons for c in [follow(hot_start(3, 2.0, g, T), T)]])
    slopes = -np.diff(np.log10(ends), axis=0)
    assert np.abs(slopes[-1] - g).max() < 5e-3
    # Before its horizon such a run is worse than a constant rate.
    curve, plain = follow(hot_start(3, 2.0, g, 1e6), 1e6), follow(sgd(3, 2.0), 1e6)
    assert curve.loss[200] > plain.loss[200] and curve.loss[-1] < 0.05 * plain.loss[-1]


def test_shortest_horizon() -> None:
    reach = time_by_horizon(lambda T: hot_start(3, 2.0, 0.6, T), 2e-3, longest=1e6)
    assert follow(hot_start(3, 2.0, 0.6, reach.t), reach.t).loss[-1] == pytest.approx(2e-3, rel=1e-3)
    assert not time_by_horizon(lambda T: sgd(3, 2.0), 1e-4, longest=1e5).reached


def test_a_falling_rate_trades_the_loss_for_the_error() -> None:
    falling, plain = follow(sgd(3, 1.0, power=PowerSchedule(0.5)), 1e7), follow(sgd(3, 1.0), 1e7)
    assert falling.loss[-1] > plain.loss[-1] and falling.error[-1] < plain.error[-1]
    assert falling.calibrated_loss is not None and plain.calibrated_loss is not None
    # The direction is what improves: at the best temperature the loss would have gained.
    assert falling.calibrated_loss[-1] < plain.calibrated_loss[-1] < plain.loss[-1]


def test_a_larger_batch_gains_steps_and_loses_samples() -> None:
    table = compare_escapes([0.01], horizon=1e6, names=["constant", "batch 16, eta times 16"])
    small, large = (row.reaches[0] for row in table.rows)
    # L^3 alpha ~ kappa^2/eta at the same eta/B: 16 times fewer steps, the same samples, up to the start.
    assert small.steps / large.steps == pytest.approx(16, rel=2e-3)
    assert small.samples == pytest.approx(large.samples, rel=2e-3)


def test_best_settings_find_a_known_minimum() -> None:
    from odescale.analysis.peaked.layer import best_learning_rate

    found, _ = best_settings(lambda x: sgd(3, float(np.exp(x))), (0.0,), ((-2.0, 4.0),), 1e6)
    assert np.exp(found[0]) == pytest.approx(best_learning_rate().ratio, rel=0.03)


def test_the_figure_draws_every_row() -> None:
    table = compare_escapes([0.01], horizon=1e5 * 1.1, names=["constant", "power, g = 0.5"])
    axes = plot(table, observable="error")
    assert {line.get_label() for line in axes.get_lines()} >= {"constant", "power, g = 0.5"}
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_every_row_says_its_cost() -> None:
    assert all(cost for _, cost in ESCAPES.values())


@pytest.mark.slow
def test_a_linear_decay_has_two_thirds_at_the_best_start() -> None:
    """The best eta_0 for each horizon grows as T^(1/3), and the loss at the end falls as T^(-2/3)."""
    horizons, scales = (1e4, 1e5, 1e6), np.geomspace(0.8, 5, 9)
    ends = np.array([[follow(decayed(3, a * T ** (1 / 3), T, 0.99), T).loss[-1] for a in scales] for T in horizons])
    best = ends.argmin(axis=1)
    assert np.ptp(best) <= 1 and 0 < best.min() and best.max() < scales.size - 1
    slopes = -np.diff(np.log10(ends.min(axis=1)))
    assert decay_exponent() == pytest.approx(2 / 3) and abs(slopes[-1] - 2 / 3) < 0.01
    # A start that does not grow with the horizon gains a factor only.
    fixed = [follow(decayed(3, 2.0, T, 0.5), T).loss[-1] for T in horizons]
    assert -np.log10(fixed[-1] / fixed[-2]) == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.slow
def test_label_noise_leaves_a_head_start_only() -> None:
    """Labels sampled at b* = 30: heating until beta D = b* reaches KL = .01 ten times earlier, then stops."""
    labels = {"labels": "sampled", "inverse_temperature": 30.0}
    plain = follow(sgd(3, 1.0, power=PowerSchedule(0.9, 1e4), **labels), 1e6)
    until = follow(heated_until(3, 2.0, 0.6, 100.0, 0.9, **labels), 1e6)
    beyond = follow(heated(3, 2.0, 0.6, 1.0, **labels), 1e6)
    assert 10 * until.reach(0.01).t < plain.reach(0.01).t
    assert plain.loss[-1] < 0.1 * until.loss[-1] and beyond.loss[-1] > 1
    # Beyond alpha_c the loss is a parabola around the teacher: KL falls as the rate does.
    assert plain.exponent() == pytest.approx(0.9, abs=0.01)
