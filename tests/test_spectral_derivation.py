"""The derivation of SGD on a spectrum: its files, its checks, that the checks can fail, its functions."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import sympy

from derivations import __main__ as command
from derivations.spectral import checks as spectral_checks
from derivations.spectral import script as spectral
from derivations.spectral.notation import CROSS, MODE, MOMENTUM, RISK, SHRINK, SPEED, SUM, SampleMoments
from odescale import InputError
from odescale.generated import spectral as generated
from odescale.symbolic import module_source, run_checks, to_latex, to_text, verify_stamp
from odescale.symbolic.sgd import batch, eta, lam

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def derivation():
    return spectral.derive()


@pytest.fixture(scope="module")
def moments():
    return spectral.sample_moments()


def test_files_are_what_the_derivation_gives(derivation) -> None:
    files = {path: text for path, text in command.texts(derivation).items() if "spectral" in path}
    assert len(files) == 3 and command.differences(ROOT, files) == {}
    assert verify_stamp((ROOT / "odescale/generated/spectral.py").read_text())
    assert "Volterra" in to_text(derivation) and "\\subsection" in to_latex(derivation)


def test_checks_pass(derivation) -> None:
    results = run_checks(derivation)
    assert len(results) == 7 and all(result.passed for result in results.values()), results


def test_recursion_is_the_published_one(moments) -> None:
    growth, force = spectral.recursion(moments)
    assert sympy.expand(growth - (1 - 2 * eta * lam + eta**2 * (1 + 1 / batch) * lam**2)) == 0
    assert sympy.expand(force - eta**2 / batch * lam) == 0


def test_log_rate_ode_and_kappa(moments) -> None:
    growth, force = spectral.recursion(moments)
    rate, drive = spectral.log_rate(growth, force)
    assert sympy.simplify(sympy.exp(-rate) - (1 - SHRINK)) == 0
    assert sympy.simplify(drive - rate / SHRINK * force) == 0
    _, mass, small = spectral.volterra(rate, drive, growth)
    assert sympy.simplify(mass - eta / batch * lam / (2 - eta * (1 + 1 / batch) * lam)) == 0
    t = sympy.Symbol("t", positive=True)
    assert sympy.simplify(small - eta / batch * lam**2 * sympy.exp(-2 * lam * t)) == 0


@pytest.mark.parametrize("without", ["isserlis", "batch"])
def test_spoiled_derivations_fail_their_checks(moments, without) -> None:
    """Without the correlation of sample and residual, or with the batch averaged as if its samples were one: z-scores say no."""
    if without == "isserlis":
        spoiled = SampleMoments(moments.mean, lam * RISK)
        assert not spectral_checks.sample(spoiled.mean, spoiled.square).passed
        growth, force = spectral.recursion(spoiled)
    else:
        growth, force = (e.subs(batch, 1) for e in spectral.recursion(moments))
    assert not spectral_checks.one_step(growth, force).passed


def test_other_spoiled_formulas_fail(moments) -> None:
    growth, force = spectral.recursion(moments)
    rate, drive = spectral.log_rate(growth, force)
    _, mass, small = spectral.volterra(rate, drive, growth)
    assert not spectral_checks.log_rate(growth, force, 2 * eta * lam, force).passed
    assert not spectral_checks.volterra(growth, force, rate, drive, eta / batch * lam / 2).passed
    assert not spectral_checks.small_rate(rate, drive, growth, 1.01 * small).passed
    ball = spectral.heavy_ball(moments)
    lost = ball.mode.subs(CROSS, 0)
    assert not spectral_checks.momentum(lost, ball.cross, ball.speed, ball.mass, growth, force, mass).passed
    wrong = ball.mode + eta * MODE
    assert not spectral_checks.momentum(wrong, ball.cross, ball.speed, ball.mass, growth, force, mass).passed


def test_degree_three_is_refused(moments) -> None:
    with pytest.raises(InputError, match="degree two"):
        spectral.over_batch(SUM**3, moments)


def test_generated_functions_are_the_expressions(moments) -> None:
    growth, force = spectral.recursion(moments)
    values = {lam: 0.7, eta: 0.3, batch: 2.0, RISK: 1.3, MODE: 0.4, CROSS: -0.1, SPEED: 0.2, MOMENTUM: 0.8}
    numbers = [jnp.asarray(values[s]) for s in (lam, eta, batch)]
    g = float(generated.shrinkage(*numbers))
    assert abs(g - float((1 - growth).subs(values))) < 1e-14
    assert abs(float(generated.force(numbers[0] ** 2, *numbers[1:])) - float((lam * force).subs(values))) < 1e-14
    ball = spectral.heavy_ball(moments)
    step = generated.momentum_step(
        *(jnp.asarray(values[s]) for s in (MODE, CROSS, SPEED, RISK, lam, eta, batch, MOMENTUM))
    )
    for got, expression in zip(step, (ball.mode, ball.cross, ball.speed), strict=True):
        assert abs(float(got) - float(expression.subs(values))) < 1e-14
    mass = float(generated.momentum_mass(*numbers, jnp.asarray(values[MOMENTUM])))
    assert abs(mass - float(ball.mass.subs(values))) < 1e-14
    plain = float(generated.momentum_mass(*numbers, jnp.zeros(())))
    assert abs(plain - float(generated.kernel_mass(numbers[0], numbers[0] ** 2, *numbers[1:]))) < 1e-14


def test_log_rate_joins_its_series() -> None:
    """The series below g = 1e-3 and the logarithm above it, in relative error."""
    g = np.array([1e-12, 1e-6, 9.99e-4, 1.001e-3, 0.1, 0.999])
    decay, ratio = generated.log_rate(jnp.asarray(g))
    np.testing.assert_allclose(decay, -np.log1p(-g), rtol=2e-15)
    np.testing.assert_allclose(ratio, -np.log1p(-g) / g, rtol=2e-15)
    assert float(generated.log_rate(jnp.zeros(()))[1]) == 1.0


def test_comparison_sees_a_changed_module(derivation) -> None:
    text = module_source(derivation)
    assert spectral_checks.compare_modules(text, text) == ""
    changed = text.replace("2 * eta * lam", "3 * eta * lam", 1)
    assert "shrinkage" in spectral_checks.compare_modules(changed, text)
    assert "missing" in spectral_checks.compare_modules(text.replace("def force", "def farce"), text)
