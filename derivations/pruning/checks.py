"""Numeric checks of the pruned streams: each compares a derived formula with something that does not use it."""

from __future__ import annotations

import numpy as np
import sympy
from scipy.integrate import quad

from derivations.compare import Call, same_numbers
from derivations.numeric import worst
from odescale.symbolic.record import CheckResult


def _at(expression: sympy.Expr, **values: float) -> float:
    return float(expression.subs({s: values[s.name] for s in expression.free_symbols}))


def slope(derived: sympy.Expr) -> CheckResult:
    """Against a central difference of the loss."""
    pairs = []
    for field in (-3.0, 0.2, 4.0):
        up, down = (np.log1p(np.exp(-(field + s))) for s in (1e-5, -1e-5))
        pairs.append((np.array(_at(derived, **{"lambda": field})), np.array(-(up - down) / 2e-5)))
    return worst(pairs, 1e-8, "slope against a difference of the loss, relative error")


def one_step(flow_R: sympy.Expr, flow_Q: sympy.Expr) -> CheckResult:
    """Mean of d (R after - R before) over real vectors at d = 4000 against the flow of the measured averages."""
    rng, d, eta = np.random.default_rng(1), 4000, 0.7
    B, J = np.linalg.qr(rng.standard_normal((d, 2)))[0].T * np.sqrt(d)
    J = 0.4 * B + 0.8 * J
    moved, averages = [], []
    for _ in range(400):
        x = rng.standard_normal(d)
        y = np.sign(B @ x)
        t, lam = y * (B @ x) / np.sqrt(d), y * (J @ x) / np.sqrt(d)
        g = 1 / (1 + np.exp(lam))
        after = J + eta / np.sqrt(d) * g * y * x
        moved.append(((after - J) @ B, after @ after - J @ J))
        averages.append((g * t, g * lam, g * g))
    m_t, m_l, m_g = np.mean(averages, axis=0)
    got = [_at(flow_R, eta=eta, m_t=m_t), _at(flow_Q, eta=eta, m_l=m_l, m_g=m_g)]
    return worst(
        [(np.array(got), np.mean(moved, axis=0))], 5e-3, "d times the mean step, relative error (|x|^2/d at d = 4000)"
    )


def regression(field: sympy.Expr) -> CheckResult:
    """Mean and variance of lambda among samples near t = 1, against those of the formula, in standard errors."""
    rng = np.random.default_rng(2)
    R, Q = 0.6, 1.5
    t = rng.standard_normal(2_000_000)
    lam = R * t + np.sqrt(Q - R**2) * rng.standard_normal(t.size)
    near = lam[np.abs(t - 1) < 0.02]
    mean, width = (
        _at(field, R=R, Q=Q, t=1.0, z=0.0),
        _at(field, R=R, Q=Q, t=1.0, z=1.0) - _at(field, R=R, Q=Q, t=1.0, z=0.0),
    )
    z = [(near.mean() - mean) / (width / np.sqrt(near.size)), (near.std() - width) / (width / np.sqrt(2 * near.size))]
    return CheckResult(float(np.max(np.abs(z))), 4.0, "mean and width of lambda given t, standard errors")


def error() -> CheckResult:
    """arccos(R/sqrt Q)/pi against the share of differing signs, in standard errors."""
    rng = np.random.default_rng(3)
    R, Q = 0.5, 1.2
    t, z = rng.standard_normal((2, 1_000_000))
    wrong = np.mean(np.sign(R * t + np.sqrt(Q - R**2) * z) != np.sign(t))
    theory = np.arccos(R / np.sqrt(Q)) / np.pi
    return CheckResult(float(abs(wrong - theory) / np.sqrt(theory * (1 - theory) / 1e6)), 4.0, "error, standard errors")


def margin(closed: sympy.Expr) -> CheckResult:
    """E (c - u)_+^2 by quadrature, and 1/2 at c = 0, which is Cover's capacity of two examples per dimension."""
    pairs = [(np.array(_at(closed, c=0.0)), np.array(0.5))]
    for c in (-2.0, 0.7, 3.0):
        value = quad(lambda u, c=c: (c - u) ** 2 * np.exp(-u * u / 2) / np.sqrt(2 * np.pi), -np.inf, c, epsabs=1e-13)[0]
        pairs.append((np.array(_at(closed, c=c)), np.array(value)))
    return worst(pairs, 1e-8, "cost of a margin against quadrature, relative error")


def compare_modules(on_disk: str, derived: str) -> str:
    """Empty when the two module texts give the same numbers, else one line that names the function."""
    return same_numbers(on_disk, derived, _calls, lambda function, arguments: function(*arguments))


def _calls() -> list[Call]:
    import jax.numpy as jnp

    rng = np.random.default_rng(4)
    field = jnp.asarray(rng.standard_normal(5))
    calls: dict[str, tuple] = {
        "slope": (field,), "student_field": (0.6, 1.5, jnp.abs(field), field[::-1]), "overlap_flow": (0.3, field),
        "norm_flow": (0.3, field, field**2), "error": (0.6, 1.5),
    }  # fmt: skip
    return list(calls.items())
