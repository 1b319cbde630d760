"""The distance of a spectrum's ODE from exact SGD: measured right, said where it matters, and nowhere else."""

from __future__ import annotations

import json

import equinox as eqx
import jax
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import odescale
from odescale.solve.spectral.step_error import MOST_STEPS, THRESHOLD, step_error

LAM = np.array([1.0, 0.4, 0.1, 0.02])


def system(**given):
    return odescale.spectral(**{"eigenvalues": LAM, "excess": np.ones(4), **given})


def independent(rates, batch: float, noise: float, start: np.ndarray, stairs=None) -> np.ndarray:
    """E_ODE/E_SGD - 1 after each step: the recursion written out, the ODE by scipy, nothing of odescale.

    The recursion is that of SGD on Gaussian features, E (theta - eta x (x.theta - e))^2 mode by mode:
    e_k -> e_k (1 - 2 eta lam_k + eta^2 lam_k^2 (1 + 1/B)) + eta^2 lam_k^2 P/B. The ODE keeps each mode's factor at constant P.
    """
    steps = len(rates)
    e, exact = start.copy(), []
    for eta in rates:
        e = e * (1 - 2 * eta * LAM + (eta * LAM) ** 2 * (1 + 1 / batch)) + (eta * LAM) ** 2 / batch * (noise + e.sum())
        exact.append(e.sum())

    def flow(t, y):
        eta = rates[0] if stairs is None else stairs(t)
        g = 2 * eta * LAM - (eta * LAM) ** 2 * (1 + 1 / batch)
        a = -np.log1p(-g)
        return -a * y + a / g * (eta * LAM) ** 2 / batch * (noise + y.sum())

    found = solve_ivp(flow, (0, steps), start, t_eval=np.arange(1, steps + 1), rtol=1e-10, atol=1e-14, max_step=0.5)
    return found.y.sum(axis=0) / np.array(exact) - 1


@pytest.mark.parametrize(
    ("eta", "batch", "noise"), [(0.5, 1.0, 0.0), (0.5, 1.0, 0.3), (0.2, 1.0, 0.1), (0.6, 4.0, 0.0), (0.05, 1.0, 1.0)]
)
def test_the_figure_is_that_of_an_independent_recursion(eta: float, batch: float, noise: float) -> None:
    judged = step_error(system(learning_rate=eta, batch=batch, noise=noise), 300.0)
    true = independent([eta] * 300, batch, noise, LAM * 1.0)
    worst = int(np.argmax(np.abs(true)))
    assert judged is not None and judged.measured == 300
    assert judged.error == pytest.approx(true[worst], rel=5e-3, abs=2e-5)
    assert judged.error == pytest.approx(true[judged.step - 1], rel=5e-3, abs=2e-5)


def test_a_schedule_is_read_half_a_step_earlier() -> None:
    """s(r - 1/2) for the ODE, s(r) for the step."""
    one = system(learning_rate=0.5, batch=1.0, noise=0.1, schedule=lambda t: 1 / (1 + t / 20))
    rates = 0.5 / (1 + np.arange(300) / 20)
    true = independent(rates, 1.0, 0.1, LAM * 1.0, lambda t: 0.5 / (1 + max(t - 0.5, 0.0) / 20))
    judged = step_error(one, 300)
    assert judged is not None
    assert judged.error == pytest.approx(true[np.argmax(np.abs(true))], rel=1e-2)


@pytest.mark.parametrize(("eta", "noise", "end"), [(0.5, 0.2, 200), (0.5, 0.0, 90), (0.1, 0.0, 700), (0.6, 1e6, 130)])
def test_a_constant_rate_in_blocks_is_the_loop_over_its_steps(eta: float, noise: float, end: int) -> None:
    """A schedule that never falls is followed step by step."""
    blocks, loop = (
        step_error(system(learning_rate=eta, batch=2.0, noise=noise, schedule=text), end)
        for text in ("constant", "power:0:1")
    )
    assert blocks is not None and loop is not None
    assert blocks[1:] == loop[1:] and blocks.error == pytest.approx(loop.error, rel=1e-6, abs=1e-12)


def test_one_mode_at_a_rate_of_two_thirds_is_a_tenth_off_and_says_so() -> None:
    """eta lam = .66, B = 1."""
    ratios = []
    for noise in (0.0, 0.5):
        one = odescale.spectral(eigenvalues=np.ones(1), excess=np.ones(1), learning_rate=0.66, batch=1.0, noise=noise)
        judged = step_error(one, 40)
        assert judged is not None
        ratios.append(judged.error)
        assert judged.remarks() == [str(judged)] and f"{abs(judged.error):.1%}" in str(judged)
    assert max(map(abs, ratios)) > 0.1


def test_bins_start_and_what_cannot_be_judged() -> None:
    every, bins = (
        step_error(odescale.spectral(modes=400, learning_rate=0.3, batch=1.0, per_decade=n), 500) for n in (0, 10)
    )
    assert every is not None and bins is not None and bins.error == pytest.approx(every.error, rel=0.02)
    one = system(learning_rate=0.5, batch=1.0)
    start = np.array([0.0, 0.0, 0.0, 1.0])
    true = independent([0.5] * 50, 1.0, 0.0, start)
    own = step_error(one, 50, start=start)
    assert own is not None and own.error == pytest.approx(true[np.argmax(np.abs(true))], rel=5e-3) and own.error > 0.05
    assert step_error(one, 0.5) is None
    endless = step_error(one, 1e9)
    assert endless is not None and endless.measured <= MOST_STEPS and "of 1e+09 steps" in str(endless)
    grads = eqx.filter_grad(lambda s: odescale.integrate(s, 5.0, points=5).loss[-1])(one)
    assert np.isfinite(float(grads.learning_rate))
    jax.block_until_ready(grads.learning_rate)


def test_a_trajectory_says_it_where_the_error_is_large_and_only_there() -> None:
    loud = odescale.integrate(system(learning_rate=0.5, batch=1.0), 200.0, points=20)
    true = independent([0.5] * 200, 1.0, 0.0, LAM * 1.0)
    worst = true[np.argmax(np.abs(true))]
    (line,) = loud.meta["remarks"]
    assert abs(worst) > THRESHOLD and f"{abs(worst):.1%} {'below' if worst < 0 else 'above'} the exact" in line
    assert line in str(loud) and loud.meta["step_error"]["error"] == pytest.approx(worst, rel=5e-3)
    quiet = odescale.integrate(system(learning_rate=0.05, batch=8.0), 200.0, points=20)
    assert quiet.meta["remarks"] == [] and 0 < abs(quiet.meta["step_error"]["error"]) < THRESHOLD
    assert "an SGD step is not small" not in str(quiet)


def test_compare_says_it_too() -> None:
    one = system(learning_rate=0.5, batch=1.0, noise=0.1)
    found = odescale.compare(one, odescale.train(one, 60.0, seeds=3, records=12))
    assert any("an SGD step is not small here" in reason for reason in found.verdict.reasons)


@pytest.mark.parametrize("verb", ["solve", "transition"])
def test_commands_say_it(cli, verb: str) -> None:
    line = (verb, "spectral", "--t1", "100", "--set", "modes=20", "--set", "learning_rate=0.3", "--set", "batch=1")
    status, out, err = cli(*line)
    assert status == 0 and out.count("an SGD step is not small here: the ODE's excess risk is 4.") == 1
    status, out, err = cli(*line, "--json")
    assert json.loads(out)["step_error"]["error"] == pytest.approx(-0.04, abs=0.01)
    status, out, err = cli(*line[:-2], "--set", "learning_rate=0.01") if verb == "solve" else (0, "", "")
    assert "not small" not in out
