"""The record of a transition, and exponents of sampled curves whose answer is known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.interpolate import make_smoothing_spline

from odescale import InputError, Thresholds, Transition, find_transition_curve
from odescale.analysis.phases.exponents import SmoothingSpline, local_exponent, tail_exponent

BETA, Y0, Y1 = 1.0, 0.05, 0.3
POINTS = np.geomspace(0.2, 12, 31)


def logistic_pair(S):
    """L(S) of the quickstart system, noise dropped."""
    return 0.5 * BETA**2 / (1 + Y0 / (BETA - Y0) * np.exp(2 * BETA * S)) ** 2 + 0.5 * Y1**2 / (1 + 2 * Y1 * S) ** 2


def quickstart_exact(S):
    """log L, p, q of it, differentiated by hand."""
    c = Y0 / (BETA - Y0) * np.exp(2 * BETA * S)
    u, v = 1 + c, 1 + 2 * Y1 * S
    first = -2 * BETA**3 * c / u**3 - 2 * Y1**3 / v**3
    second = -4 * BETA**4 * c / u**3 + 12 * BETA**4 * c**2 / u**4 + 12 * Y1**4 / v**4
    loss = logistic_pair(S)
    return np.log(loss), -S * first / loss, 1 + S * second / first - S * first / loss


def gap_like(t):
    """An exponential and a shifted power law: what the two-term model describes exactly."""
    return np.exp(-2 * t) + 0.02 * (1 + t / 0.7) ** -1.3


def correlated(rng, shape, size, rho=0.7):
    noise = rng.standard_normal(shape)
    for i in range(1, shape[-1]):
        noise[..., i] = rho * noise[..., i - 1] + np.sqrt(1 - rho**2) * noise[..., i]
    return size * noise


GRID = np.geomspace(0.02, 200, 60)


# ---------------------------------------------------------------- the record


def test_record_prints_its_numbers_and_is_json():
    found = find_transition_curve(GRID, gap_like(GRID), time_unit="S, 500 SGD steps")
    for part in ("e-folds", "exponential + power law", "60 points", "500 SGD steps", "|q - 1| <= 0.2"):
        assert part in str(found)
    assert "e-folds" in str(find_transition_curve(POINTS, np.exp(-POINTS)))
    text = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert text["t_x"] == found.t_x and [phase["kind"] for phase in text["phases"]] == [
        "exponential",
        "between",
        "power law",
    ]
    bare: dict[str, Any] = {
        "name": "x",
        "phases": None,
        "thresholds": Thresholds(),
        "estimator": "",
        "grid": "",
        "time_unit": "t",
    }
    for broken in (
        {"found": True, "reason": ""},
        {"found": False, "reason": ""},
        {"found": False, "reason": "no", "t_x": 1.0},
    ):
        with pytest.raises(InputError):
            Transition(**bare, **broken)


def test_an_estimate_lies_in_its_own_interval():
    found = find_transition_curve(GRID, gap_like(GRID))
    with pytest.raises(InputError, match="interval"):
        found.changed(interval=(2 * found.t_x, 3 * found.t_x))


# ---------------------------------------------------------------- exponents


def test_spline_is_the_smoothing_spline():
    x, y = np.log(POINTS), np.log(logistic_pair(POINTS))
    weights = np.linspace(1, 2, 31)
    ours = SmoothingSpline(x, weights)
    reference = make_smoothing_spline(x, y, w=weights / weights.mean(), lam=1e-4)
    values = ours.smooth(y, 1e-4)
    assert values == pytest.approx(reference(x), abs=1e-10)
    _, p, _ = ours.exponent_and_index(values, x[3:-3])
    assert p == pytest.approx(-reference(x[3:-3], 1), abs=1e-8)


def test_local_exponent_and_its_error():
    exact = quickstart_exact(POINTS[3:-3])[1]
    smooth = local_exponent(POINTS, logistic_pair(POINTS), at=POINTS[3:-3])
    assert smooth.exponent == pytest.approx(exact, abs=0.08)
    rng = np.random.default_rng(0)
    noisy = local_exponent(
        POINTS, logistic_pair(POINTS) * np.exp(correlated(rng, (16, 31), 0.02)), at=POINTS[3:-3], smoothing=1e-5
    )
    same = local_exponent(POINTS, logistic_pair(POINTS), at=POINTS[3:-3], smoothing=1e-5)
    z = (noisy.exponent - same.exponent) / noisy.exponent_stderr
    assert 0.5 < np.sqrt(np.mean(z**2)) < 2


def test_tail_exponent_against_shifted_time():
    tail = tail_exponent(POINTS, logistic_pair(POINTS), shift=1 / (2 * Y1), window=(6, 12))
    assert tail.exponent == pytest.approx(2.0, abs=1e-4)
    unshifted = tail_exponent(POINTS, logistic_pair(POINTS), window=(6, 12))
    assert unshifted.exponent < 1.8
    rng = np.random.default_rng(1)
    z = []
    for _ in range(40):
        rows = logistic_pair(POINTS) * np.exp(correlated(rng, (4, 31), 0.02))
        noisy = tail_exponent(POINTS, rows, shift=1 / (2 * Y1), window=(4, 12))
        z.append((noisy.exponent - 2) / noisy.stderr)
    # Errors from 4 seeds follow Student's distribution with 3 degrees of freedom: its middle half is |z| < 0.76.
    assert 0.25 < np.mean(np.abs(z) < 0.765) < 0.75
