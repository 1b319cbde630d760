"""The clock: conversions that invert each other, schedules and their integrals against quadrature."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from odescale import Clock, InputError
from odescale.clock import schedule_integral, schedule_kinks
from odescale.schedules import (
    ConstantSchedule,
    CosineSchedule,
    PowerSchedule,
    StepDownSchedule,
    WarmedSchedule,
    WarmupStableDecaySchedule,
    parse_schedule,
    schedule_text,
)

SCHEDULES = {
    "constant": ConstantSchedule(),
    "power": PowerSchedule(0.4, 3.0),
    "power at one": PowerSchedule(1.0, 2.0),
    "cosine": CosineSchedule(7.0, 0.1),
    "step": StepDownSchedule(5.0, 0.3),
    "own": lambda t: jnp.exp(-0.3 * t),
}


def test_one_unit_is_the_trace_in_steps_and_tokens_count_the_query():
    clock = Clock(200.0, learning_rate=0.2, batch=4.0, tokens=64.0)
    assert float(clock.steps(1.5)) == 300.0
    assert float(clock.t_of_steps(300)) == 1.5
    assert float(clock.tau(1.5)) == pytest.approx(0.3, rel=1e-14)
    # 300 steps of 4 sequences of 64 context tokens and one query
    assert float(clock.tokens_seen(1.5)) == 300 * 4 * 65
    assert np.isinf(float(Clock(200.0, tokens=jnp.inf).tokens_seen(1.0)))


@pytest.mark.parametrize("unit", ["t", "steps", "tau", "tokens"])
def test_every_clock_inverts(unit):
    clock = Clock(37.0, learning_rate=0.3, schedule=PowerSchedule(0.5, 2.0), batch=4.0, tokens=16.0)
    t = np.array([0.0, 0.2, 5.0, 80.0])
    np.testing.assert_allclose(np.asarray(clock.to_t(clock.from_t(t, unit), unit)), t, rtol=1e-11)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("t", [0.3, 4.0, 11.0])
def test_schedule_integral_is_the_quadrature(name, t):
    schedule = SCHEDULES[name]
    exact = quad(lambda u: float(schedule(u)), 0.0, t, points=[7.0] if t > 7 else None, epsabs=1e-13, epsrel=1e-13)[0]
    assert float(schedule_integral(schedule, t)) == pytest.approx(exact, rel=1e-11)


def test_intrinsic_time_of_warmup_stable_decay_is_the_area_of_its_trapezium():
    schedule = WarmupStableDecaySchedule(2.0, 6.0, 10.0, 0.25)
    clock = Clock(1.0, learning_rate=0.5, schedule=schedule)
    # 0.5 * (rise 1 + plateau 4 + fall 4 * (1 + .25)/2 + tail 2 * .25); kinks inside a panel cost (t/64)^2
    assert float(clock.tau(12.0)) == pytest.approx(0.5 * (1 + 4 + 2.5 + 0.5), abs=(12 / 64) ** 2)
    assert [float(schedule(t)) for t in (0.0, 1.0, 4.0, 8.0, 20.0)] == pytest.approx([0.0, 0.5, 1.0, 0.625, 0.25])
    assert float(WarmupStableDecaySchedule(0.0, 6.0, 10.0)(0.0)) == 1.0


def test_a_time_that_the_schedule_never_reaches_is_refused():
    finite = Clock(1.0, learning_rate=1.0, schedule=PowerSchedule(2.0, 1.0))  # tau(inf) = 1
    assert float(finite.t_of_tau(0.5)) == pytest.approx(1.0, rel=1e-12)
    with pytest.raises(InputError, match="schedule reaches"):
        finite.t_of_tau(1.5)
    stopped = Clock(1.0, learning_rate=1.0, schedule=CosineSchedule(4.0, 0.0))  # tau(inf) = 2
    with pytest.raises(InputError, match="tau"):
        stopped.t_of_tau(2.5)


@pytest.mark.parametrize("value", [np.nan, -1.0])
@pytest.mark.parametrize("schedule", [ConstantSchedule(), PowerSchedule(0.5)])
def test_no_intrinsic_time_that_is_negative_or_not_a_number(schedule, value):
    with pytest.raises(InputError, match="tau"):
        Clock(1.0, learning_rate=1.0, schedule=schedule).t_of_tau(value)


@pytest.mark.parametrize(
    "text", ["constant", "power:0.4", "power:0.4:3", "cosine:30:0.1", "wsd:1:20:30:0.05", "step:20:0.3"]
)
def test_schedule_text_reads_back(text):
    schedule = parse_schedule(text)
    again = parse_schedule(schedule_text(schedule))
    t = jnp.linspace(0.0, 40.0, 9)
    np.testing.assert_array_equal(np.asarray(schedule(t)), np.asarray(again(t)))
    assert type(again) is type(schedule)


def test_a_schedule_of_the_users_own_has_no_text():
    assert schedule_text(lambda t: 1.0) is None


@pytest.mark.parametrize(
    "text",
    [
        "cosin:30",
        "power",
        "power:a",
        "power:-1",
        "power:nan",
        "power:0.5:0",
        "cosine:0",
        "cosine:3:2",
        "wsd:1:5:5",
        "wsd:3:2:5",
        "step:0",
        "step:4:-1",
    ],
)
def test_bad_schedules_are_refused_in_one_line(text):
    with pytest.raises(InputError) as error:
        parse_schedule(text)
    assert str(error.value).startswith("schedule: expected") and "\n" not in str(error.value)


def test_a_warm_up_multiplies_and_keeps_the_kinks():
    schedule = WarmedSchedule(StepDownSchedule(5.0, 0.2), 4.0)
    np.testing.assert_allclose(schedule(jnp.asarray([0.0, 1.0, 4.0, 4.9, 6.0])), [0.0, 0.25, 1.0, 1.0, 0.2])
    assert [float(k) for k in schedule_kinks(schedule)] == [4.0, 5.0]
    with pytest.raises(InputError, match="warmup"):
        WarmedSchedule(StepDownSchedule(5.0), 0.0)


def test_clock_refuses_what_it_cannot_convert():
    with pytest.raises(InputError, match="steps_per_unit"):
        Clock(0.0)
    with pytest.raises(InputError, match="finite context"):
        Clock(1.0).to_t(5.0, "tokens")
    with pytest.raises(InputError, match="clock"):
        Clock(1.0).from_t(5.0, "epochs")


def test_description_names_every_clock():
    text = Clock(200.0, learning_rate=0.2, batch=4.0, tokens=64.0).describe()
    assert text == "one unit of t = 200 SGD steps = 0.2 of intrinsic time (at t = 0..1) = 52000 tokens"
    assert "infinite context" in Clock(200.0, learning_rate=0.2).describe()


def test_schedules_keep_single_precision():
    t = jnp.asarray(0.5, dtype=jnp.float32)
    assert ConstantSchedule()(t).dtype == jnp.float32
    assert ConstantSchedule()(jnp.asarray(2)).dtype == jnp.float64
