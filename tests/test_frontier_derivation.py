"""The derivation of the frontier: its checks, its assumptions, and the files it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sympy

from derivations import __main__ as command
from derivations.frontier import checks as frontier_checks
from derivations.frontier.phases import BIAS, CAPACITY_LIMIT, FEATURES, NOISE, balance
from derivations.frontier.script import derive
from odescale.generated import frontier as generated
from odescale.symbolic import module_source, run_checks, to_latex, to_text, verify_stamp

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def derivation():
    return derive()


def test_files_are_what_the_derivation_gives(derivation):
    files = command.texts(derivation)
    if sympy.__version__.startswith(command.PINNED_SYMPY):
        assert command.differences(ROOT, files) == {}
    assert command.hand_edited(ROOT, "frontier") == "" and command.numerically_equal(ROOT, derivation) == ""
    assert verify_stamp(module_source(derivation))


def test_numeric_checks_pass(derivation):
    results = run_checks(derivation)
    assert set(results) == {
        "lagrange", "envelope", "powers", "lambert", "time", "floors", "jump", "tied", "phases",
    }  # fmt: skip
    assert all(result.passed for result in results.values()), {k: str(v) for k, v in results.items()}


@pytest.mark.parametrize(
    "check, wrong",
    [
        ("jump", lambda form: frontier_checks.jump(form * sympy.Rational(101, 100))),
        ("lambert", lambda parts: frontier_checks.lambert(parts[0], parts[1] * sympy.Rational(10001, 10000))),
    ],
)
def test_a_wrong_formula_fails_its_check(derivation, check, wrong):
    arguments = derivation.step(check).check.args
    assert not wrong(arguments[0] if check == "jump" else arguments).passed


def test_every_assumption_is_used(derivation):
    used = {key for step in derivation.steps for key in step.uses}
    assert used == {assumption.key for assumption in derivation.assumptions}


def test_another_module_text_is_compared_by_numbers(derivation):
    text = module_source(derivation)
    assert frontier_checks.compare_modules(text, text) == ""
    changed = text.replace("jnp.exp((log_scale - log_budget) / S)", "jnp.exp((log_scale - log_budget) / (S + 1))")
    assert changed != text and "power_multiplier" in frontier_checks.compare_modules(changed, text)
    assert "phase_iii: missing" in frontier_checks.compare_modules(text.replace("def phase_iii", "def phase_iv"), text)


def test_balances():
    a, b = sympy.symbols("a b", positive=True)
    for terms, exponent in (
        ((BIAS, CAPACITY_LIMIT), (a - 1) / (b + 1)),
        ((BIAS, FEATURES), (a - 1) / a),
        ((NOISE, FEATURES), 1 - 1 / (2 * b)),
    ):
        assert sympy.simplify(balance(*terms)[1] - exponent) == 0


def test_presets_are_derived(derivation):
    (table,) = (t for t in derivation.tables if t.title == "Presets")
    assert [row[-1] for row in table.rows] == ["$C^{-1/6}$", "$C^{-1/7}$"]


def test_text_and_latex_name_what_matters(derivation):
    text, latex = to_text(derivation), to_latex(derivation)
    assert "no exponential phase" in text and "W_{-1}" in latex and "2512.22088" in text


def test_generated_jump_is_the_difference_of_the_slopes():
    y, S, q_t, p = np.linspace(1.1, 30, 9), 4.0, 1.5, 0.2
    slopes = [np.asarray(generated.exponent_log_slope(p, s, y, q_t)) for s in (0.0, S)]  # type: ignore[arg-type]
    np.testing.assert_allclose(slopes[1] - slopes[0], generated.exponent_jump(S, y, q_t), rtol=1e-12)  # type: ignore[arg-type]
