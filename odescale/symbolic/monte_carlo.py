"""A closed-form expectation against samples, in standard errors."""

from __future__ import annotations

import sympy

from odescale.symbolic.gaussian import Gaussian
from odescale.symbolic.record import CheckResult


def monte_carlo_check(
    gaussian: Gaussian,
    expression: sympy.Expr,
    value: float,
    *,
    samples: int = 200_000,
    seed: int = 0,
    bound: float = 4.0,
    what: str = "Monte Carlo z-score",
) -> CheckResult:
    """|mean of `expression` over samples - value| in standard errors of the mean; the covariance must be numeric."""
    import numpy as np
    from scipy.special import erf

    covariance = np.array(gaussian.covariance.tolist(), dtype=float)
    mean = np.array([float(m) for m in gaussian.mean or (0,) * len(covariance)])
    draws = np.random.default_rng(seed).multivariate_normal(mean, covariance, size=samples)
    function = sympy.lambdify(gaussian.fields, expression, modules=[{"erf": erf}, "numpy"])
    values = np.broadcast_to(function(*draws.T), (samples,))
    error = float(values.std(ddof=1)) / samples**0.5
    return CheckResult(abs(float(values.mean()) - float(value)) / max(error, 1e-300), bound, what)
