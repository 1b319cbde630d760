"""The derivation of the laws under a schedule: its files, its checks, that a check can fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import sympy

from derivations import __main__ as command
from derivations.schedule import checks as schedule_checks
from derivations.schedule import optimal, optimal_checks
from derivations.schedule import script as schedule
from derivations.schedule.notation import ALPHA, CAPACITY, LAG, LAST, LEFT, MEMORY, SOURCE, SPEED
from odescale.symbolic import module_source, run_checks, verify_stamp

ROOT = Path(__file__).resolve().parents[1]


def test_files_are_what_the_derivation_gives() -> None:
    derivation = schedule.derive()
    files = {path: text for path, text in command.texts(derivation).items() if "schedule" in path}
    assert len(files) == 3 and command.differences(ROOT, files) == {}
    text = (ROOT / "odescale/generated/schedule.py").read_text()
    assert verify_stamp(text) and schedule_checks.compare_modules(text, module_source(derivation)) == ""
    wrong = text.replace("(a - 1) / b", "(a + 1) / b")
    assert "bias_exponent" in schedule_checks.compare_modules(wrong, text)


def test_exponents_are_those_of_the_spectrum() -> None:
    """alpha = (a - 1)/b, beta = 1 - 1/b: time exponent and noise kernel 2 - 1/b of one-pass SGD."""
    assert sympy.simplify(schedule.bias_law()[0] - (SOURCE - 1) / CAPACITY) == 0
    assert sympy.simplify(schedule.memory_law()[0] - (1 - 1 / CAPACITY)) == 0


def test_checks_pass_and_can_fail() -> None:
    wrong = schedule_checks.step_down((1 + SPEED * LAG) ** (-2 * MEMORY))
    assert not wrong.passed, str(wrong)
    assert not schedule_checks.memory(1 - 1 / (2 * CAPACITY)).passed
    assert not schedule_checks.bias((SOURCE - 1) / CAPACITY, 2 * schedule.bias_law()[1]).passed


def test_checks_of_the_best_schedule_can_fail() -> None:
    _, price, best = optimal.rate_at_lag()
    count, rate = optimal.steps_of_lag(best)
    assert optimal_checks.power_decay(rate).passed
    assert not optimal_checks.power_decay(LAST * (rate / LAST) ** sympy.Rational(9, 10)).passed
    assert optimal_checks.decay_noise(price * LEFT, rate).passed
    assert not optimal_checks.decay_noise(price * LEFT / 2, rate).passed
    exponents = optimal.easy(count, price)
    assert not optimal_checks.easy(best, count, ALPHA / (ALPHA + 1), exponents["peak exponent"]).passed
    assert not optimal_checks.hard(best, count, (ALPHA - MEMORY) / (ALPHA + 1)).passed
    assert not optimal_checks.best_rate(best, 1.2 * count).passed


@pytest.mark.slow
def test_every_numeric_check_passes() -> None:
    results = run_checks(schedule.derive())
    assert len(results) == 12 and all(result.passed for result in results.values()), results
