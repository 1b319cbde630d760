"""Schedules made anew at every call: equal ones are one program, whatever their numbers, and the process does not grow."""

from __future__ import annotations

import gc
import math

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import compilations, memory_mappings

from odescale import attention, integrate
from odescale.clock import FunctionSchedule, PowerSchedule, schedule_by_value
from odescale.networks import Architecture, FieldNetwork

ROWS = Architecture(("r", "r*"), (True, False), FieldNetwork((), (0,)), FieldNetwork((), (1,)), pairs=((0, 1),))
POWER = 0.5


def solve(schedule):
    return integrate(
        attention(architecture=ROWS, learning_rate=0.5, schedule=schedule), 4.0, points=20, exponents=False
    )


def test_two_hundred_new_schedules_compile_three_programs() -> None:
    kinds = (
        lambda onset: f"power:0.5:{onset}",
        lambda onset: PowerSchedule(0.5, onset),
        lambda onset: lambda t: (1 + t / onset) ** -POWER,
    )
    onsets = np.linspace(1.0, 3.0, 67)
    first = [solve(kind(onsets[0])) for kind in kinds]
    solve(kinds[2](onsets[1]))
    gc.collect()
    before = memory_mappings()
    with compilations() as found:
        last = [[solve(kind(onset)) for kind in kinds] for onset in onsets]
    gc.collect()
    assert found == [] and memory_mappings() <= before + 20
    for text, made, function in last:
        np.testing.assert_allclose(made.loss, text.loss, rtol=1e-12)
        np.testing.assert_allclose(function.loss, text.loss, rtol=1e-9)
    assert first[2].loss[-1] != last[-1][2].loss[-1]  # the numbers are read, not remembered


def test_what_a_function_says_decides() -> None:
    def of(a, b=2.0):
        return lambda t, c=b: a * jnp.exp(-c * t) + math.pi

    one, other = schedule_by_value(of(1.0)), schedule_by_value(of(3.0, 4.0))
    assert isinstance(one, FunctionSchedule) and one.source == other.source and hash(one.source) == hash(other.source)
    for schedule, a, c in ((one, 1.0, 2.0), (other, 3.0, 4.0)):
        assert float(schedule(jnp.asarray(0.7))) == pytest.approx(a * math.exp(-c * 0.7) + math.pi, rel=1e-14)
    assert one.source != schedule_by_value(lambda t, c=2.0: jnp.exp(-c * t)).source
    # an array that was captured is read as one
    tables = [
        schedule_by_value((lambda x: lambda t: jnp.interp(t, x, x**2))(np.array([0.0, 1.0, end]))) for end in (2.0, 3.0)
    ]
    assert tables[0].source == tables[1].source and float(tables[1](2.5)) == pytest.approx(1 + 8 * 0.75)


def test_numbers_that_steer_python_are_part_of_what_is_said() -> None:
    def of(power):
        return lambda t: (1 + t) ** -power if power > 0 else 1.0 + 0 * t

    found = [schedule_by_value(of(power)) for power in (0.5, 0.0, 0.5)]
    assert found[0].source == found[2].source != found[1].source
    assert [float(schedule(3.0)) for schedule in found] == [0.5, 1.0, 0.5]


def test_what_cannot_be_known_by_value_stays_what_it_is() -> None:
    changing, helper = [1.0], lambda t: t
    marked = lambda t: t  # noqa: E731
    marked.kinks = (1.0,)
    for function in (lambda t: changing[0] * t, lambda t: helper(t), marked, PowerSchedule(0.5, 1.0), np.cos):
        assert schedule_by_value(function) is function


def test_a_global_that_has_changed_is_another_number(monkeypatch) -> None:
    make = lambda: schedule_by_value(lambda t: POWER * t)  # noqa: E731
    one = make()
    monkeypatch.setitem(globals(), "POWER", 2.0)
    assert (float(one(1.0)), float(make()(1.0))) == (0.5, 2.0) and one.source == make().source
