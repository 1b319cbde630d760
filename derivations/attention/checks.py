"""Numeric checks of the steps in `script.py`: each compares a derived formula with something that does not
use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sympy
from sympy.matrices.expressions import MatrixExpr, MatrixSymbol

from derivations.attention.tape import entry, scalar_closure
from derivations.compare import Call, same_numbers
from derivations.numeric import Matrices, complex_step, executed, numeric, random_covariance, worst
from odescale.networks.architecture import Architecture, FieldNetwork, build_architecture, logistic_pair_architecture
from odescale.symbolic.gaussian import Gaussian
from odescale.symbolic.monte_carlo import monte_carlo_check
from odescale.symbolic.record import CheckResult, Output
from odescale.symbolic.sgd import ENTRY, FLAG, MEAN, SECOND, OverlapFlow, batch, decay, eta, lam, stein_moments, trace


def one_sgd_step(flow: OverlapFlow) -> CheckResult:
    """N E[Delta(A_i A_j)] at N = 12 modes of an SGD step with B = 3 and weight decay, against simulated steps."""
    rng = np.random.default_rng(1)
    modes, size, samples = 12, 3, 100_000
    step, rate = 0.4, 0.3
    spectrum = np.linspace(0.5, 1.5, modes)
    n = float(spectrum.sum())
    rows = rng.standard_normal((2, modes))
    x = rng.standard_normal((samples, size, modes)) * np.sqrt(spectrum)
    fields = x @ rows.T / np.sqrt(n)
    slope = fields[..., 0] - fields[..., 1]  # linear student (row 0, trained) and teacher (row 1)
    gradient = np.mean(slope[..., None] * x, axis=1) / np.sqrt(n)
    moved = rows[0] - step * gradient - rate / n * rows[0]
    phi = sympy.symbols("phi_1 phi_2")
    product = rows * spectrum @ rows.T / n
    covariance = sympy.ImmutableMatrix((product + product.T) / 2)
    moments = stein_moments((phi[0] - phi[1]) ** 2 / 2, Gaussian(phi, covariance), 0, 0)
    z = []
    for mode in (0, 5, 11):
        entries = {sympy.Symbol("A_phi_1"): rows[0, mode], sympy.Symbol("A_phi_2"): rows[1, mode]}
        numbers = {lam: spectrum[mode], trace: n, **entries}
        mean, second = (float(m.subs(numbers)) for m in (moments.mean, moments.second))
        values = {
            ENTRY[0]: rows[0, mode], ENTRY[1]: rows[0, mode], MEAN[0]: mean, MEAN[1]: mean, SECOND: second,
            FLAG[0]: 1, FLAG[1]: 1, eta: step, batch: size, decay: rate, trace: n,
        }  # fmt: skip
        change = n * (moved[:, mode] ** 2 - rows[0, mode] ** 2)
        error = change.std() / np.sqrt(samples)
        z.append(abs(change.mean() - float(flow.increment.subs(values))) / error)
    return CheckResult(float(max(z)), 4.0, "increment of an overlap against simulated SGD steps, z-score")


def mean_gradient(chain_rule: MatrixExpr) -> CheckResult:
    """Gradient of a function of C = A Sigma A^T in the rows, against complex steps."""
    rng = np.random.default_rng(2)
    rows, spectrum = rng.standard_normal((3, 5)), np.diag(rng.uniform(0.5, 2.0, 5))
    weight = rng.standard_normal((3, 3))
    slope = complex_step(lambda A: np.sum(weight * np.sin(A @ spectrum @ A.T)), rows)
    inner = weight * np.cos(rows @ spectrum @ rows.T)
    got = numeric(chain_rule, {"A": rows, "L": inner, "Sigma": spectrum})
    return worst([(got, slope)], 1e-12, "mean gradient against complex steps, relative error")


def softmax_average(average: sympy.Expr, scale: sympy.Expr | int) -> CheckResult:
    """E[(v - average) exp(c (s k + t l))] = 0, sampled."""
    v, k, l = sympy.symbols("v k l")  # noqa: E741
    covariance = sympy.ImmutableMatrix([[0.7, 0.3, -0.2], [0.3, 0.9, 0.25], [-0.2, 0.25, 0.6]])
    numbers = {"C_vk": 0.3, "C_kk": 0.9, "C_vl": -0.2, "C_kl": 0.25, "C_ll": 0.6, "s": 0.8, "t": 0.5}
    value = average.subs({symbol: numbers[symbol.name] for symbol in average.free_symbols})
    weight = sympy.exp(scale * (numbers["s"] * k + numbers["t"] * l))
    return monte_carlo_check(Gaussian((v, k, l), covariance), (v - value) * weight, 0.0, what="tilted mean, z-score")


def population_loss(loss: MatrixExpr, noise: MatrixExpr) -> CheckResult:
    """Loss and noise of a random pair of functionals against samples of the fields."""
    size, outputs, samples = 4, 2, 200_000
    rng = np.random.default_rng(3)
    C = random_covariance(size, 4)
    a, b = rng.standard_normal((2, outputs, size))
    S = np.diag([1.0, 1.0, 1.0, 0.0])
    phi = rng.multivariate_normal(np.zeros(size), C, size=samples)
    residual = phi @ b.T
    slope = (residual @ a) @ S
    values = {"a": a, "b": b, "C": C, "S": S}
    sampled_loss = 0.5 * (residual**2).sum(1)
    z = [abs(sampled_loss.mean() - np.trace(numeric(loss, values))) / (sampled_loss.std() / samples**0.5)]
    expected = numeric(noise, values)
    for i in range(3):
        for j in range(3):
            product = slope[:, i] * slope[:, j]
            z.append(abs(product.mean() - expected[i, j]) / (product.std() / samples**0.5))
    return CheckResult(float(max(z)), 4.0, "loss and noise against samples, largest z-score of ten")


def layer_adjoint(updates: Sequence[MatrixExpr], adjoints: Sequence[Sequence[MatrixExpr]]) -> CheckResult:
    """Cotangents of one head on A, C and R against complex steps of tr(B^T F); C and R symmetric where evaluated."""
    size = 4
    rng = np.random.default_rng(5)
    values: Matrices = {n: rng.standard_normal((size, size)) for n in "AB"}
    values |= {n: random_covariance(size, s) for s, n in enumerate("CR")}
    values |= {n: np.eye(size)[:, [i]] for i, n in enumerate("qkvo")}
    pairs = []
    for update, gradient in zip(updates, adjoints, strict=True):
        for name, expression in zip("ACR", gradient, strict=True):

            def objective(x: np.ndarray, name: str = name, update: MatrixExpr = update) -> complex:
                return np.sum(values["B"] * numeric(update, {**values, name: x}))

            slope = complex_step(objective, values[name])
            got = numeric(expression, values) if expression.atoms(MatrixSymbol) else np.zeros((size, size))
            pairs.append((got, slope))
    return worst(
        [p for p in pairs if np.any(p[1])], 1e-12, "cotangents of a head against complex steps, relative error"
    )


def closure_against_tape(outputs: Sequence[Output], architecture: Architecture, scale: sympy.Expr | int) -> CheckResult:
    """The generated closure against the scalar tape evaluated with Python floats."""
    import jax
    import jax.numpy as jnp

    size = architecture.size
    C, R = random_covariance(size, 6), random_covariance(size, 7)
    closure = scalar_closure(architecture, scale)
    numbers = {
        entry(letter, i, j): M[i, j] for letter, M in (("C", C), ("R", R)) for i in range(size) for j in range(i, size)
    }
    flat = [e for matrix in (closure.G, closure.H, closure.V) for row in matrix for e in row]
    expected = np.array(closure.tape.evaluate(numbers, flat)).reshape(3, size, size)
    scope = executed(output.source for output in outputs)
    got = jax.jit(scope["closure"], static_argnums=(2, 3))(
        jnp.asarray(C),
        jnp.asarray(R),
        architecture.student,
        architecture.teacher,
        jnp.asarray(architecture.trained_mask),
    )
    pairs = [(np.asarray(g), e) for g, e in zip(got, expected, strict=True) if np.any(e) and np.any(np.asarray(g))]
    return worst(pairs, 1e-12, "generated closure against the scalar tape, relative error")


def closures_against_tape(
    outputs: Sequence[Output], architectures: Sequence[Architecture], scale: sympy.Expr | int
) -> CheckResult:
    """The worst of `closure_against_tape` over several networks."""
    results = [closure_against_tape(outputs, architecture, scale) for architecture in architectures]
    return max(results, key=lambda result: (not result.passed, result.value))


def softmax_ratio(bias: sympy.Expr, kernel: sympy.Expr) -> CheckResult:
    """Mean and variance of the softmax average of T = 64 tokens at fixed s, linear fluctuation as control variate."""
    tokens, samples, s = 64, 30_000, 0.4
    rng = np.random.default_rng(8)
    numbers = {
        "C_vk": 0.3,
        "C_vv": 0.7,
        "C_kk": 0.9,
        "C_vw": 0.7,
        "C_vl": 0.3,
        "C_kw": 0.3,
        "C_kl": 0.9,
        "s": s,
        "t": s,
    }

    def value(expression: sympy.Expr) -> float:
        return float(expression.subs({x: numbers[x.name] for x in expression.free_symbols}))

    scale = float(sympy.sqrt(_scale_of(bias)))
    fields = rng.multivariate_normal([0, 0], [[0.7, 0.3], [0.3, 0.9]], size=(samples, tokens))
    v, weight = fields[..., 0], np.exp(scale * s * fields[..., 1])
    mean = scale * s * 0.3
    average = (v * weight).mean(1) / weight.mean(1)
    linear = ((v - mean) * weight).mean(1) / np.exp(0.5 * (scale * s) ** 2 * 0.9)
    rest = average - mean - linear  # what the first-order fluctuation leaves has mean bias/T
    # 5/T^2 allows for the next order of the expansion.
    z_mean = abs(rest.mean() - value(bias) / tokens) / (rest.std() / samples**0.5 + 5 / tokens**2 * abs(value(bias)))
    square = (average - average.mean()) ** 2
    z_cov = abs(square.mean() - value(kernel) / tokens) / (square.std() / samples**0.5 + 5 / tokens**2 * value(kernel))
    return CheckResult(float(max(z_mean, z_cov)), 4.0, "mean and variance of the softmax average at T = 64, z-score")


def _scale_of(bias: sympy.Expr) -> sympy.Expr:
    """c^2, read from the exponent c^2 s^2 K of the bias."""
    (exponent,) = (e.args[0] for e in bias.atoms(sympy.exp))
    s = sympy.Symbol("s")
    k = next(x for x in exponent.free_symbols if x.name == "C_kk")
    return sympy.simplify(exponent / (s**2 * k))


def query_average(pair: sympy.Expr, scale: sympy.Expr | int) -> CheckResult:
    """The mean of the kernel over the query token, sampled."""
    numbers = {"x": 0.5, "y": 0.6, "z": 0.2, "kappa": 0.3, "C_vw": 0.4, "C_vl": 0.3, "C_kw": -0.2}
    value = float(pair.subs({s: numbers[s.name] for s in pair.free_symbols}))
    s, t = sympy.symbols("s t")
    gaussian = Gaussian((s, t), sympy.ImmutableMatrix([[0.5, 0.2], [0.2, 0.6]]))
    expression = sympy.exp(0.3 * s * t) * (0.4 - 0.06 * scale**2 * s * t)
    return monte_carlo_check(gaussian, expression, value, what="query average of the covariance, z-score")


def finite_context(outputs: Sequence[Output], scale: sympy.Expr | int) -> CheckResult:
    """Drift of the corrected loss against jax.grad of it, two heads and two readouts, inside the domain 2 c^2 K Q < 1."""
    import jax
    import jax.numpy as jnp

    architecture = build_architecture(1, 2, outputs=2)
    trained = jnp.asarray(architecture.trained_mask)
    C = jnp.asarray(random_covariance(architecture.size, 9, 0.3 / float(scale)))
    scope = executed(output.source for output in outputs)
    student, teacher = architecture.student, architecture.teacher
    slope = jax.jit(jax.grad(lambda C: scope["finite_context_loss"](C, 16.0, student, teacher)))(C)
    got, _ = jax.jit(lambda C: scope["finite_context_closure"](C, 16.0, student, teacher, trained))(C)
    expected = trained[:, None] * (slope + slope.T)
    return worst([(np.asarray(got), np.asarray(expected))], 1e-12, "G at order 1/T against autodiff, relative error")


def logistic_pair(outputs: Sequence[Output], curve: sympy.Expr) -> CheckResult:
    """The reduced solution against the full noise-free ODE of the eight rows, integrated with RK4 to S = 12."""
    import jax
    import jax.numpy as jnp

    architecture = logistic_pair_architecture()
    trained = jnp.asarray(architecture.trained_mask)
    R, beta, y0, y1 = 4.0, 1.0, 0.05, 0.3
    rows = np.zeros((8, 4))
    for row, axis, length in (
        (0, 0, np.sqrt(y0 / 2)), (1, 1, np.sqrt(y0 / 2)), (2, 3, np.sqrt(y1 / 2)), (3, 2, np.sqrt(y1 / 2)),
        (4, 1, np.sqrt(R)), (5, 2, np.sqrt(R)), (6, 0, np.sqrt(beta / 2)), (7, 1, np.sqrt(beta / 2)),
    ):  # fmt: skip
        rows[row, axis] = length
    scope = executed(output.source for output in outputs)
    student, teacher = architecture.student, architecture.teacher

    def slope(C):
        G, H, V = scope["closure"](C, C, student, teacher, trained)
        zero = 0 * V
        return scope["overlap_flow"](C[None], jnp.ones(1), G, H, zero, 1.0 / np.sqrt(R), 1.0, 0.0, trained)[0]

    steps, h = 6000, 12.0 / 6000

    def rk4(C, _):
        k1 = slope(C)
        k2 = slope(C + h / 2 * k1)
        k3 = slope(C + h / 2 * k2)
        k4 = slope(C + h * k3)
        C = C + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return C, scope["population_loss"](C, C, student, teacher)

    _, losses = jax.jit(lambda C: jax.lax.scan(rk4, C, None, length=steps))(jnp.asarray(rows @ rows.T))
    times = h * np.arange(1, steps + 1)
    symbols = {x.name: x for x in curve.free_symbols}
    exact = sympy.lambdify(symbols["S"], curve.subs({symbols["beta"]: beta, symbols["y0"]: y0, symbols["y1"]: y1}))(
        times
    )
    return worst([(np.asarray(losses) / exact, np.ones(steps))], 1e-6, "L(S) against the full ODE, relative error")


def compare_modules(on_disk: str, derived: str) -> str:
    """Empty when the two module texts give the same numbers, else one line that names the function."""
    import jax

    def evaluate(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        networks = tuple(i for i, x in enumerate(arguments) if isinstance(x, FieldNetwork))
        return jax.jit(function, static_argnums=networks)(*arguments)

    return same_numbers(on_disk, derived, _calls, evaluate, complete=False)


def _calls() -> list[Call]:
    import jax.numpy as jnp

    calls: list[Call] = []
    for heads, value, depth, rank in (
        (1, "identity", 1, 1),
        (2, "identity", 2, 1),
        (1, "rows", 2, 1),
        (1, "identity", 2, 2),
    ):
        network = build_architecture(depth, heads, value=value, outputs=2, rank=rank)
        trained = jnp.asarray(network.trained_mask)
        C, R = (jnp.asarray(random_covariance(network.size, seed, 0.3)) for seed in (10, 11))
        pair = (network.student, network.teacher)
        calls += [
            ("population_loss", (C, R, *pair)),
            ("closure", (C, R, *pair, trained)),
            ("overlap_flow", (jnp.stack([C, R]), jnp.ones(2), C, R, C, 0.3, 2.0, 0.1, trained)),
            ("logistic_pair_loss", (jnp.asarray(2.0), 1.0, 0.05, 0.3)),
        ]
        if depth == 1:
            calls += [
                ("finite_context_loss", (C, 20.0, *pair)),
                ("finite_context_closure", (C, 20.0, *pair, trained)),
            ]
    return calls
