"""Numeric checks of learning in context: each compares a derived formula with something that does not use it."""

from __future__ import annotations

import numpy as np
import sympy
from scipy.integrate import solve_ivp

from derivations.compare import Call, same_numbers
from derivations.numeric import worst
from odescale.symbolic.record import CheckResult


def _at(expression: sympy.Expr, **values: float) -> float:
    return float(expression.subs({s: values[s.name] for s in expression.free_symbols}))


def forward(tokens: np.ndarray, labels: np.ndarray, query: np.ndarray, gamma: np.ndarray) -> float:
    """The prediction of the residual stream, token by token."""
    depth, count = gamma.size, labels.size
    r, out = labels.copy(), 0.0
    for g in gamma:
        heard = [sum(g * (tokens[m] @ at) * r[m] for m in range(count)) / (depth * count) for at in (*tokens, query)]
        r, out = r - np.array(heard[:-1]), out + heard[-1]
    return out


def stream(factor: sympy.Expr) -> CheckResult:
    """The prediction of the product formula on the eigenvectors of the sample covariance against the forward pass."""
    rng, pairs = np.random.default_rng(1), []
    for depth in (1, 2, 5):
        X, w, query = rng.standard_normal((7, 4)), rng.standard_normal(4), rng.standard_normal(4)
        gamma = rng.uniform(0.2, 1.5, depth)
        lam, V = np.linalg.eigh(X.T @ X / 7)
        left = np.prod([[_at(factor, gamma=g, lam=v, L=depth) for v in lam] for g in gamma], axis=0)
        error = query @ (V @ (left * (V.T @ w)))
        pairs.append((np.array(error), np.array(query @ w - forward(X, X @ w, query, gamma))))
    return worst(pairs, 1e-10, "error of the prediction against a forward pass, relative error")


def moments(exact: dict[int, sympy.Expr]) -> CheckResult:
    """Sampled traces of Wishart matrices at D = 3, P = 5 against the exact moments, in standard errors."""
    rng, n = np.random.default_rng(2), 200_000
    X = rng.standard_normal((n, 3, 5))
    lam = np.linalg.eigvalsh(X @ X.transpose(0, 2, 1) / 5)
    z = []
    for k, formula in exact.items():
        sampled = np.mean(lam**k, axis=1)
        z.append((sampled.mean() - _at(formula, D=3, P=5)) / (sampled.std() / np.sqrt(n)))
    return CheckResult(float(np.max(np.abs(z))), 4.0, "Wishart moments, standard errors")


def descent(flow: sympy.Expr, gammas: tuple[sympy.Symbol, ...]) -> CheckResult:
    """dgamma_1/dt against central differences of the mean squared error over the eigenvalues of sampled contexts.

    The formula is given the moments of the same sample: no sampling noise is left.
    """
    rng = np.random.default_rng(3)
    X = rng.standard_normal((50, 3, 5))
    lam = np.linalg.eigvalsh(X @ X.transpose(0, 2, 1) / 5).ravel()
    at, depth = np.array([0.7, 1.1, 0.4]), 3

    def loss(gamma: np.ndarray) -> float:
        return float(np.mean(np.prod([1 - g * lam / depth for g in gamma], axis=0) ** 2))

    step = np.array([1e-5, 0.0, 0.0])
    slope = -(loss(at + step) - loss(at - step)) / 2e-5
    values = {f"m_{k}": float(np.mean(lam**k)) for k in range(7)}
    values |= {g.name: v for g, v in zip(gammas, at, strict=True)}
    return worst([(np.array(_at(flow, **values)), np.array(slope))], 1e-7, "flow of gamma_1, relative error")


def mode(flow: sympy.Expr, closed: sympy.Expr) -> CheckResult:
    """The loss of a mode integrated by scipy against the closed form."""
    pairs = []
    for depth in (2, 3, 8):
        given = {"lam": 0.8, "om": 1.3, "L": depth}
        end = solve_ivp(
            lambda _, g, given=given: [_at(flow, gamma=g[0], **given)], (0, 5.0), [0.0], rtol=1e-10, atol=1e-12
        ).y[0, -1]
        pairs.append((np.array(_at(closed, t=5.0, **given)), np.array(1.04 * (1 - end * 0.8 / depth) ** (2 * depth))))
    return worst(pairs, 1e-7, "loss of a mode against its integrated ODE, relative error")


def compare_modules(on_disk: str, derived: str) -> str:
    """Empty when the two module texts give the same numbers, else one line that names the function."""
    return same_numbers(on_disk, derived, _calls, lambda function, arguments: function(*arguments))


def _calls() -> list[Call]:
    import jax.numpy as jnp

    rng = np.random.default_rng(4)
    gamma, nodes, weights = (jnp.asarray(rng.uniform(0.2, 1.0, n)) for n in (3, 5, 5))
    calls: dict[str, tuple] = {
        "remainder": (gamma, nodes), "loss": (gamma, nodes, weights), "flow": (gamma, nodes, weights),
        "mode_flow": (0.3, 0.8, 1.3, 4.0), "mode_loss": (2.0, 0.8, 1.3, 4.0), "hand_over": (0.8, 1.3, 4.0),
        "second_moment": (4.0, 9.0), "third_moment": (4.0, 9.0),
    }  # fmt: skip
    return list(calls.items())
