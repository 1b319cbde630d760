"""The definition of the transition and its estimate from points, on curves whose answer is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.interpolate import make_smoothing_spline
from scipy.optimize import brentq

from odescale import InputError, Transition, find_transition_curve
from odescale.analysis.phases.exponents import SmoothingSpline, local_exponent, tail_exponent
from odescale.analysis.phases.fits import compare_models, fit_curve
from odescale.analysis.phases.regimes import select_transition

BETA, Y0, Y1 = 1.0, 0.05, 0.3
POINTS = np.geomspace(0.2, 12, 31)


def quickstart(S):
    """L(S) of the quickstart system, noise dropped."""
    return 0.5 * BETA**2 / (1 + Y0 / (BETA - Y0) * np.exp(2 * BETA * S)) ** 2 + 0.5 * Y1**2 / (1 + 2 * Y1 * S) ** 2


def quickstart_exact(S):
    """log L, p, q of it, differentiated by hand."""
    c = Y0 / (BETA - Y0) * np.exp(2 * BETA * S)
    u, v = 1 + c, 1 + 2 * Y1 * S
    first = -2 * BETA**3 * c / u**3 - 2 * Y1**3 / v**3
    second = -4 * BETA**4 * c / u**3 + 12 * BETA**4 * c**2 / u**4 + 12 * Y1**4 / v**4
    loss = quickstart(S)
    return np.log(loss), -S * first / loss, 1 + S * second / first - S * first / loss


def gap_like(t):
    """An exponential and a shifted power law: what the two-term model describes exactly."""
    return np.exp(-2 * t) + 0.02 * (1 + t / 0.7) ** -1.3


def select(f, t, **options):
    """The definition applied to a function log L(t), by central differences in log t."""
    x, h = np.log(t), 1e-4
    y, up, down = f(t), f(np.exp(x + h)), f(np.exp(x - h))
    p = -(up - down) / (2 * h)
    q = -(up - 2 * y + down) / h**2 / p
    return select_transition(t, p, q, y, estimator="differences", grid="dense", time_unit="t", **options)


def correlated(rng, shape, size, rho=0.7):
    noise = rng.standard_normal(shape)
    for i in range(1, shape[-1]):
        noise[..., i] = rho * noise[..., i - 1] + np.sqrt(1 - rho**2) * noise[..., i]
    return size * noise


DENSE = np.geomspace(1e-2, 1e2, 4000)


# ---------------------------------------------------------------- the definition


def test_quickstart_closed_form():
    S = np.geomspace(1e-3, 60, 200_001)
    log_loss, p, q = quickstart_exact(S)
    root = brentq(lambda s: quickstart_exact(s)[2] - 0.5, 2.0, 2.3, xtol=1e-13)
    found = select_transition(
        S, p, q, log_loss, log_loss_start=float(np.log(quickstart(0.0))), min_depth=2, estimator="closed form",
        grid="dense", time_unit="S",
    )  # fmt: skip
    assert found.found
    assert round(root, 6) == 2.148782
    assert found.t_x == pytest.approx(root, abs=1e-8)
    assert found.depth == pytest.approx(2.817, abs=5e-4)
    # p still rises at t_x: "max p >= 1 before it" is satisfied by the escape itself, not by the maximum beyond it.
    assert p[S <= found.t_x].max() > 1 and S[np.argmax(p)] > found.t_x
    assert found.crossings == ((found.t_x, "down"),)
    assert [regime.kind for regime in found.regimes] == ["exponential", "power law"]
    refused = select_transition(S, p, q, log_loss, min_depth=3, estimator="closed form", grid="dense", time_unit="S")
    assert not refused.found and refused.t_x is None and "only 2.8" in refused.reason


def test_pure_exponential_has_no_transition():
    found = select(lambda t: -0.7 * t, DENSE)
    assert not found.found
    assert found.reason.startswith("no exponential-to-power transition")
    assert found.crossings == () and [regime.kind for regime in found.regimes] == ["exponential"]
    assert found.regimes[0].rate == pytest.approx(0.7)


@pytest.mark.parametrize("power", [lambda t: -2 * np.log1p(t), lambda t: -1.5 * np.log(t)])
def test_pure_power_law_has_no_exponential_phase(power):
    found = select(power, DENSE)
    assert not found.found
    assert found.reason.startswith("no exponential phase")


def test_power_law_that_reaches_one_only_later_is_refused():
    # Deep enough with min_depth 0.5, but p(tau) = beta/2 < 1: the second condition refuses it.
    found = select(lambda t: -1.5 * np.log1p(t), DENSE, min_depth=0.5)
    assert found.crossings[0][0] == pytest.approx(1.0, abs=1e-4)
    assert not found.found and "p never reaches 1" in found.reason


def test_cut_off_and_start_up_are_listed_apart():
    def log_loss(t):
        fast = np.logaddexp(np.log(0.4) - 100 * t, np.log(0.6) - 2 * t)
        return np.logaddexp(fast, np.log(1e-2) - 0.5 * np.log1p(t)) - 0.02 * t

    t = np.geomspace(1e-3, 400, 6000)
    found = select(log_loss, t)
    assert found.found
    assert 1 < found.t_x < 3, "between the start-up at 0.02 and the cut-off beyond 10"
    assert found.crossings[0][1] == "down" and found.crossings[0][0] < 0.1, "the start-up transient"
    assert found.finite_size_cutoff == pytest.approx(found.crossings[-1][0])
    assert found.finite_size_cutoff > 5 * found.t_x and found.crossings[-1][1] == "up"
    assert [regime.kind for regime in found.regimes][-3:] == ["exponential", "power law", "exponential"]


def test_exponential_into_a_constant_is_no_transition():
    found = select(lambda t: np.logaddexp(-2 * t, np.log(1e-3)), DENSE[DENSE < 12])
    assert not found.found and "constant" in found.reason
    # A power law between the two is one, even if a floor comes later.
    later = select(lambda t: np.logaddexp(np.logaddexp(-2 * t, np.log(1e-2) - np.log1p(t)), np.log(1e-6)), DENSE)
    assert later.found


def test_record_prints_depth_and_is_json():
    found = find_transition_curve(POINTS, quickstart(POINTS), min_depth=2, bootstrap=0, time_unit="S, 500 SGD steps")
    for part in ("e-folds", "spline", "31 points", "500 SGD steps"):
        assert part in str(found)
    assert "e-folds" in str(find_transition_curve(POINTS, np.exp(-POINTS)))
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["interval"] is None
    with pytest.raises(InputError):
        Transition(found=True, t_x=None, depth=None, reason="", min_depth=2, estimator="", grid="", time_unit="t")


# ---------------------------------------------------------------- exponents


def test_spline_is_the_smoothing_spline():
    x, y = np.log(POINTS), np.log(quickstart(POINTS))
    weights = np.linspace(1, 2, 31)
    ours = SmoothingSpline(x, weights)
    reference = make_smoothing_spline(x, y, w=weights / weights.mean(), lam=1e-4)
    values = ours.smooth(y, 1e-4)
    assert values == pytest.approx(reference(x), abs=1e-10)
    _, p, _ = ours.exponent_and_index(values, x[3:-3])
    assert p == pytest.approx(-reference(x[3:-3], 1), abs=1e-8)


def test_local_exponent_and_its_error():
    exact = quickstart_exact(POINTS[3:-3])[1]
    smooth = local_exponent(POINTS, quickstart(POINTS), at=POINTS[3:-3])
    assert smooth.exponent == pytest.approx(exact, abs=0.08)
    rng = np.random.default_rng(0)
    noisy = local_exponent(
        POINTS, quickstart(POINTS) * np.exp(correlated(rng, (16, 31), 0.02)), at=POINTS[3:-3], smoothing=1e-5
    )
    same = local_exponent(POINTS, quickstart(POINTS), at=POINTS[3:-3], smoothing=1e-5)
    z = (noisy.exponent - same.exponent) / noisy.exponent_stderr
    assert 0.5 < np.sqrt(np.mean(z**2)) < 2


def test_tail_exponent_against_shifted_time():
    tail = tail_exponent(POINTS, quickstart(POINTS), shift=1 / (2 * Y1), window=(6, 12))
    assert tail.exponent == pytest.approx(2.0, abs=1e-4)
    unshifted = tail_exponent(POINTS, quickstart(POINTS), window=(6, 12))
    assert unshifted.exponent < 1.8
    rng = np.random.default_rng(1)
    z = []
    for _ in range(40):
        rows = quickstart(POINTS) * np.exp(correlated(rng, (4, 31), 0.02))
        noisy = tail_exponent(POINTS, rows, shift=1 / (2 * Y1), window=(4, 12))
        z.append((noisy.exponent - 2) / noisy.stderr)
    # Errors from 4 seeds follow Student's distribution with 3 degrees of freedom: its middle half is |z| < 0.76.
    assert 0.25 < np.mean(np.abs(z) < 0.765) < 0.75


# ---------------------------------------------------------------- fits


def test_fit_recovers_both_models():
    gap = fit_curve(POINTS, gap_like(POINTS))
    assert gap.converged
    for name, value in {"k": 2.0, "beta": 1.3, "tau": 0.7}.items():
        assert gap.parameters[name] == pytest.approx(value, rel=1e-4)
    quick, aic_gap, _ = compare_models(POINTS, quickstart(POINTS))
    assert quick.model == "escape+power" and quick.converged and aic_gap > 100
    for name, value in {"k": 4 * BETA, "t_e": np.log(BETA / Y0 - 1) / 2, "beta": 2.0, "tau": 1 / (2 * Y1)}.items():
        assert quick.parameters[name] == pytest.approx(value, rel=1e-4)
    t_eq = quick.equal_terms()
    assert t_eq is not None
    c = Y0 / (BETA - Y0) * np.exp(2 * t_eq)
    assert 0.5 / (1 + c) ** 2 == pytest.approx(0.5 * Y1**2 / (1 + 2 * Y1 * t_eq) ** 2, rel=1e-5)


def test_fitted_derivatives_are_those_of_the_fit():
    for fit in (fit_curve(POINTS, gap_like(POINTS)), fit_curve(POINTS, quickstart(POINTS), model="escape+power")):
        exact = select(fit.log_loss, POINTS, min_depth=0.1)
        log_loss, p, q = fit.exponent_and_index(POINTS)
        h = 1e-4
        up, down = fit.log_loss(POINTS * np.exp(h)), fit.log_loss(POINTS * np.exp(-h))
        assert p == pytest.approx(-(up - down) / (2 * h), abs=1e-6)
        assert p * q == pytest.approx(-(up - 2 * log_loss + down) / h**2, abs=1e-5)
        assert exact.max_exponent == pytest.approx(p.max(), abs=1e-5)


def test_fitted_irreducible_loss():
    fit = fit_curve(POINTS, gap_like(POINTS) + 1e-4, irreducible=None)
    assert fit.converged
    assert fit.parameters["irreducible"] == pytest.approx(1e-4, rel=1e-3)
    assert fit.parameters["beta"] == pytest.approx(1.3, rel=1e-3)
    with pytest.raises(InputError, match="irreducible"):
        fit_curve(POINTS, gap_like(POINTS), model="power+constant", irreducible=None)


def test_bound_is_reported_as_not_converged():
    # A straight exponential leaves nothing for the power law to describe.
    fit = fit_curve(POINTS, np.exp(-0.5 * POINTS), model="exponential+constant")
    assert not fit.converged and "bound" in fit.message
