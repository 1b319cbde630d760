"""Numeric checks of the kernel ODE: each compares a derived formula with something that does not use it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import sympy
from scipy.integrate import solve_ivp
from scipy.special import softmax

from derivations.compare import Call, same_numbers
from derivations.numeric import worst
from odescale.symbolic.record import CheckResult

SIZE, INPUTS, HIDDEN, OUTPUTS = 5, 3, 7, 2


def _network(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Outputs of a two-layer tanh network on x (n, INPUTS), flattened."""
    first, second = (
        weights[: HIDDEN * INPUTS].reshape(HIDDEN, INPUTS),
        weights[HIDDEN * INPUTS :].reshape(OUTPUTS, HIDDEN),
    )
    return (np.tanh(x @ first.T) @ second.T).ravel()


def _jacobian(function: Callable[[np.ndarray], np.ndarray], at: np.ndarray) -> np.ndarray:
    columns = []
    for k in range(at.size):
        moved = at.astype(complex)
        moved[k] += 1e-30j
        columns.append(np.imag(function(moved)) / 1e-30)
    return np.array(columns).T


def _setting() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal(HIDDEN * (INPUTS + OUTPUTS)),
        rng.standard_normal((SIZE, INPUTS)),
        rng.standard_normal(SIZE * OUTPUTS),
    )


def _moved(eta: float, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(F after a step minus F before, -(eta/n) Theta g) of the square loss, outputs times `scale`, slopes those of scale one."""
    weights, x, y = _setting()

    def outputs(w: np.ndarray) -> np.ndarray:
        return scale * _network(w, x)

    J, g = _jacobian(outputs, weights), _network(weights, x) - y
    after = outputs(weights - eta / SIZE * J.T @ g)
    return after - outputs(weights), -eta / SIZE * J @ (J.T @ g)


def one_step() -> CheckResult:
    """A step of a small network against -(eta/n) Theta g: the rest must fall as eta^2 (order 2 within 1 %)."""
    rests = [np.linalg.norm(np.subtract(*_moved(eta))) for eta in (2e-4, 1e-4)]
    return CheckResult(
        abs(float(np.log2(rests[0] / rests[1])) - 2), 0.01, "order of what the kernel leaves of a step, minus 2"
    )


def curvature(top: sympy.Expr) -> CheckResult:
    """Largest eigenvalue of diag p - p p^T over 4000 draws of p (2 to 6 classes), and at two equal shares."""
    rng, found = np.random.default_rng(1), [np.linalg.eigvalsh(np.diag([0.5, 0.5]) - 0.25)[-1]]
    excess = 0.0
    for _ in range(4000):
        p = softmax(3 * rng.standard_normal(rng.integers(2, 7)))
        found.append(np.linalg.eigvalsh(np.diag(p) - np.outer(p, p))[-1])
        excess = max(excess, found[-1] - float(top))
    return CheckResult(
        max(abs(max(found) - float(top)), excess), 1e-12, "largest curvature of cross-entropy minus its bound"
    )


def recursion(descent: sympy.Expr, flow: sympy.Expr) -> CheckResult:
    """The factors against 40 steps done one by one and against a Runge-Kutta solution, at a = 0.3 and 1.7."""
    a, r, t = _symbols(descent, "a"), _symbols(descent, "r"), _symbols(flow, "t")
    pairs = []
    for value in (0.3, 1.7):
        q = 1.0
        for _ in range(40):
            q = q - value * q
        pairs.append((np.array(float(descent.subs({a: value, r: 40}))), np.array(q)))
        ode = solve_ivp(lambda _, q, value=value: -value * q, (0, 4), [1.0], rtol=1e-12, atol=1e-14)
        pairs.append((np.array(float(flow.subs({_symbols(flow, "a"): value, t: 4}))), ode.y[0, -1:]))
    return worst(pairs, 1e-9, "factors of a mode against steps done one by one, relative error")


def test_outputs(added: sympy.Expr, integral: sympy.Expr) -> CheckResult:
    """Gradient descent and gradient flow of a linear model, done in its weights, against the sums over modes on test points."""
    rng = np.random.default_rng(2)
    X, Z, y, w = (
        rng.standard_normal((6, 9)),
        rng.standard_normal((4, 9)),
        rng.standard_normal(6),
        rng.standard_normal(9),
    )
    rate, steps, time, start = 0.05 * 6, 30, 12.5, w.copy()
    for _ in range(steps):
        w = w - rate / 6 * X.T @ (X @ w - y)
    flow = solve_ivp(lambda _, v: -rate / 6 * X.T @ (X @ v - y), (0, time), start, rtol=1e-11, atol=1e-13).y[:, -1]
    values, U = np.linalg.eigh(X @ X.T)
    pairs = []
    for sums, number, found in ((added, steps, w), (integral, time, flow)):
        name = "r" if sums is added else "t"
        S = np.array(
            [float(sums.subs({_symbols(sums, "a"): rate / 6 * v, _symbols(sums, name): number})) for v in values]
        )
        pairs.append((Z @ start - rate / 6 * Z @ X.T @ U @ (S * (U.T @ (X @ start - y))), Z @ found))
    return worst(pairs, 1e-8, "test outputs of a linear model trained in its weights, relative error")


def edge_of_stability(bounds: dict[str, sympy.Expr]) -> CheckResult:
    """Square loss 1 % below and above its bound, cross-entropy of two classes at equal shares likewise: shrinks, grows."""
    wrong = 0
    for loss, bound in bounds.items():
        for factor, grows in ((0.99, False), (1.01, True)):
            x, F = float(bound) * factor, np.array([1e-3, -1e-3])
            for _ in range(200):
                F = F - x * (F if loss == "square" else softmax(F) - 0.5)
            wrong += (abs(F[0]) > 1e-3) != grows
    return CheckResult(float(wrong), 0.0, "runs on the wrong side of the edge of stability")


def lazy_drift() -> CheckResult:
    """Second order of a step at alpha = 4, eta/16 against alpha = 1, relative to the step: a quarter."""
    sizes = []
    for scale in (1.0, 4.0):
        # Slopes of the unscaled network times its kernel alpha^2, at eta/alpha^2: the first order is the same.
        moved, linear = _moved(1e-4 / scale**2, scale)
        sizes.append(np.linalg.norm(moved - linear) / np.linalg.norm(linear))
    return CheckResult(
        abs(float(sizes[1] / sizes[0]) * 4 - 1), 0.01, "bend of a step at lazy scale 4, times 4, minus 1"
    )


def driven(solution: sympy.Expr, drive: sympy.Symbol) -> CheckResult:
    """e(r) under a constant drive against 25 steps done one by one."""
    e = 0.0
    for _ in range(25):
        e = (1 - 0.2) * e - 0.3
    r = next(s for s in solution.free_symbols if s.name == "r")
    got = float(solution.subs({r: 25, drive: 0.3, _symbols(solution, "a"): sympy.Rational(1, 5)}))
    return worst([(np.array(got), np.array(e))], 1e-12, "error under a constant drive, relative error")


def _symbols(expression: sympy.Expr, name: str) -> sympy.Symbol:
    return next(s for s in expression.free_symbols if s.name == name)  # pyright: ignore[reportReturnType]


def compare_modules(on_disk: str, derived: str) -> str:
    """Empty when the two module texts give the same numbers, else one line that names the function."""
    return same_numbers(on_disk, derived, _calls, lambda function, arguments: function(*arguments))


def _calls() -> list[Call]:
    import jax.numpy as jnp

    rng = np.random.default_rng(3)
    F, Y = jnp.asarray(rng.standard_normal((4, 3))), jnp.asarray(rng.dirichlet(np.ones(3), 4))
    modes = jnp.asarray([0.0, 1e-9, 0.3, 1.4])
    calls: dict[str, tuple] = {
        "kernel_velocity": (jnp.asarray(rng.standard_normal((5, 4))), F[:, 0], 0.3, 7.0),
        "square_slopes": (F, Y), "cross_entropy_slopes": (F, Y), "descent_modes": (modes, 11.0), "flow_modes": (modes, 11.5),
        "stability_ratio": (2.0, 0.3, 7.0), "stability_bound": ("square",),
    }  # fmt: skip
    return [*calls.items(), ("stability_bound", ("cross_entropy",))]
