"""L = c/t^a + L0: recovered where the curve contains it, refused where it does not."""

from __future__ import annotations

import numpy as np
import pytest

from odescale import InputError
from odescale.laws import fit_power_floor

T = np.geomspace(1, 1e4, 200)


def test_recovers_what_is_there():
    fit = fit_power_floor(T, 2 * T**-0.34 + 1.5, draws=20)
    # Bins average the power over 1/60 of the window: a bias of 1e-3.
    np.testing.assert_allclose([fit.exponent, fit.amplitude, fit.floor], [0.34, 2, 1.5], rtol=1e-3)
    assert fit.identified and abs(fit.late_exponent - 0.34) < 1e-3


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """95 % intervals over 40 noisy curves: at least 34 cover a (binomial, 99.9 % at a true coverage of 95 %)."""
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(40):
        fit = fit_power_floor(T, (2 * T**-0.34 + 1.5) * np.exp(0.01 * rng.standard_normal(T.size)), draws=100)
        covered += fit.interval[0] <= 0.34 <= fit.interval[1]
    assert covered >= 34, covered


@pytest.mark.parametrize("curve", ["noise", "exponential", "two powers", "short"])
def test_unidentified_is_said(curve):
    rng = np.random.default_rng(1)
    t, loss = T, {
        "noise": np.exp(0.1 * rng.standard_normal(T.size)),
        "exponential": np.exp(-T / 300) + 1,
        "two powers": T**-0.2 / (1 + T / 100) + 0.3,
        "short": 2 * T**-0.34 + 1.5,
    }[curve]  # fmt: skip
    if curve == "short":
        t, loss = np.linspace(100, 300, 100), 2 * np.linspace(100, 300, 100) ** -0.34 + 1.5
    fit = fit_power_floor(t, loss, draws=50)
    assert not fit.identified and fit.reason and "unidentified" in str(fit)


def test_bad_input():
    with pytest.raises(InputError, match="window"):
        fit_power_floor(T, T**-0.3, window=(10, 5))
    with pytest.raises(InputError, match="loss"):
        fit_power_floor(T, np.where(T > 100, np.nan, 1.0))
