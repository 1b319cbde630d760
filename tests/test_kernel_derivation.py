"""The derivation of the kernel ODE: its checks, the files it writes, and that a spoiled formula is seen."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import pytest
import sympy

from derivations import __main__ as command
from derivations.kernel import checks as kernel_checks
from derivations.kernel import script
from odescale.generated import kernel as formulas
from odescale.symbolic import module_source, run_checks

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def derivation():
    return script.derive()


def test_files_are_what_the_derivation_gives(derivation):
    assert command.differences(ROOT, command.texts(derivation)) == {}
    assert command.hand_edited(ROOT, "kernel") == ""


def test_numeric_checks_pass(derivation):
    results = run_checks(derivation)
    assert set(results) == {"step", "slopes", "modes", "test outputs", "stability", "drift", "error"}
    assert all(result.passed for result in results.values()), {k: str(v) for k, v in results.items()}


def test_the_kernel_is_that_of_the_step_and_the_drift_has_second_derivatives():
    _, flow = script.expand_step()
    assert sympy.expand(flow.kernel - flow.kernel.T) == sympy.zeros(2)
    derivatives = [d for entry in flow.kernel_rate for d in entry.atoms(sympy.Derivative)]
    assert max(d.derivative_count for d in derivatives) == 2


def test_checks_see_a_spoiled_formula():
    a, r = script.RATE, script.STEPS
    t = script.TIME
    assert not kernel_checks.recursion(sympy.exp(-a * r), sympy.exp(-a * t)).passed  # the flow is not the descent
    assert not kernel_checks.test_outputs((1 - (1 - a) ** r) / a**2, (1 - sympy.exp(-a * t)) / a).passed
    assert not kernel_checks.curvature(sympy.Rational(1, 4)).passed
    assert not kernel_checks.edge_of_stability({"square": sympy.Integer(1), "cross_entropy": sympy.Integer(4)}).passed


@pytest.mark.parametrize(
    "old, new, named",
    [
        ("-eta / samples", "-eta", "kernel_velocity"),
        ("-jnp.expm1(-a * t) / safe", "-jnp.expm1(-a * t)", "flow_modes"),
        ("'cross_entropy': 4.0", "'cross_entropy': 2.0", "stability_bound"),
    ],
)
def test_another_sympy_is_compared_by_numbers(derivation, old, new, named):
    source = module_source(derivation)
    assert kernel_checks.compare_modules(source + "\n# a comment\n", source) == ""
    assert old in source and named in kernel_checks.compare_modules(source.replace(old, new), source)


def test_sums_of_modes_keep_their_digits_at_small_rates():
    a = jnp.asarray([0.0, 1e-18, 1e-12, 1e-6])
    factor, total = formulas.descent_modes(a, 1000.0)
    exact = jnp.asarray([1000.0, 1000.0, 1000.0 * (1 - 0.5 * 999 * 1e-12), 1000.0 * (1 - 0.5 * 999 * 1e-6)])
    assert jnp.allclose(total, exact, rtol=3e-7) and float(total[2]) == pytest.approx(float(exact[2]), rel=1e-12)
    assert jnp.allclose(factor, (1 - a) ** 1000)
    assert jnp.allclose(formulas.flow_modes(a, 1000.0)[1][:2], 1000.0, rtol=1e-12)
    assert jnp.allclose(formulas.descent_modes(jnp.asarray([1.5]), 3.0)[0], -0.125)
