"""Numeric checks of the steps in `step.py`, `adam.py` and `muon.py` against real updates of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import sympy
from scipy.signal import lfilter
from scipy.special import gammaln
from sympy.matrices.expressions import MatrixExpr

from derivations.compare import Call, same_numbers
from derivations.numeric import numeric
from derivations.optimizers import simulate
from derivations.optimizers.adam import EXCESS
from derivations.optimizers.notation import BETA, BETA1, BETA2, KURTOSIS, SHARE
from derivations.optimizers.simulate import Example, Linear, z_score
from derivations.optimizers.step import ENTRY, PAIRS, ROWS, Average, Coordinates
from odescale.symbolic.record import CheckResult
from odescale.symbolic.sgd import MEAN, SECOND, batch, decay, lam, trace

START = np.array([[1.0, 0.4], [0.4, 0.7]])


def numpy_functions(sources: Sequence[str]) -> dict[str, Any]:
    """The generated functions on numpy: small arrays, many calls."""
    scope: dict[str, Any] = {"jnp": np, "Array": np.ndarray, "Number": Any, "gammaln": gammaln, "arcsine": np.arcsin}
    for source in sources:
        exec(source, scope)
    return scope


@cache
def example() -> Example:
    """One for all checks."""
    return Example()


@cache
def gradients(count: int, size: int) -> np.ndarray:
    """Of the example: (count, 2, d), batches of `size`."""
    return example().gradients(count, size, 5)


def coordinates(found: Coordinates) -> CheckResult:
    """N E[g^ g^] of batches of 48 real sequences, mode by mode: noise and the 1/N term, a fifth of it."""
    model, size = example(), 48
    at, sample, z = model.averages(), gradients(120, size), []
    for level in model.levels:
        place = model.spectrum == level
        u = (level * at.G + at.H) @ model.rows[:, place]
        moments = {batch: size, trace: model.dimension}
        second = sympy.lambdify((SECOND, *MEAN), found.second.subs(moments), "numpy")
        expected = np.array([[np.mean(second(level * at.V[i, j], u[i], u[j])) for j in (0, 1)] for i in (0, 1)])
        part = sample[:, :, place]
        # The terms of v that are left out are of order 1/N beside it.
        z.append(
            z_score(
                part @ part.swapaxes(1, 2) * model.dimension / place.sum(), expected,
                3 / model.dimension * level * at.V.max() / size,
            )
        )  # fmt: skip
    return CheckResult(max(z), 4.0, "second moments of a coordinate's gradient at N = 300, B = 48, z-score")


def one_step(flow: MatrixExpr, keep_noise: bool = True) -> CheckResult:
    """N Delta(q_k) of W <- W - P_k g^ - (w/N) W, P_k of mixed rows and another in each mode, B = 2, against dq_k/dt."""
    model, size, shrink = example(), 2, 0.3
    at, z = model.averages(), []
    mixing = {0.4: np.array([[0.9, 0.3], [-0.2, 0.6]]), 1.6: np.array([[0.4, -0.3], [0.1, 0.7]])}

    def padded(matrix: np.ndarray) -> np.ndarray:
        return np.pad(matrix, ((0, 1), (0, 3 - matrix.shape[1])))

    for level, P in mixing.items():
        moved = -np.einsum("ij,njd->nid", P, gradients(4000, size)) - shrink / model.dimension * model.rows[:2]
        matrices = {
            "P_k": padded(P), "G": padded(at.G), "H": padded(at.H), "V": padded(at.V), "S": np.diag([1.0, 1.0, 0.0]),
            "q": model.overlaps(level),
        }  # fmt: skip
        expected = numeric(flow.subs({batch: size, decay: shrink, lam: level}), matrices)
        if not keep_noise:
            expected = expected - level * padded(P) @ padded(at.V) @ padded(P).T / size + level * padded(at.V) / size
        z.append(z_score(model.changes(moved, level), expected, 3 / model.dimension * level / size * at.V.max()))
    return CheckResult(max(z), 4.0, "one preconditioned step at N = 300 against the flow, z-score")


def momentum(increments: dict[tuple[str, str], sympy.Expr]) -> CheckResult:
    """N Delta of the products of rows and velocities in one step, beta = .97, s = .2, against the increments at finite N."""
    model, size, beta, share, scale, shrink = example(), 2, 0.97, 0.2, 0.7, 0.3
    at, N, z = model.averages(), model.dimension, []
    velocities = np.random.default_rng(8).standard_normal((2, N)) + 0.5 * model.rows[:2]
    sample = gradients(4000, size)
    U = beta * velocities + (1 - beta) * N * sample
    W = model.rows[:2] - scale * (share * sample + (1 - share) * velocities / N) - shrink / N * model.rows[:2]
    numbers = {BETA: beta, SHARE: share, ENTRY: scale, batch: size, decay: shrink, trace: N}
    after, before = {"W": W, "U": U}, {"W": model.rows[:2], "U": velocities}
    for level in model.levels:
        place = model.spectrum == level
        u = (level * at.G + at.H) @ model.rows[:, place]
        for a, b in PAIRS:
            entry = sympy.lambdify((*ROWS["W"], *ROWS["U"], *MEAN, SECOND), increments[a, b].subs(numbers), "numpy")
            for i, j in ((0, 0), (0, 1)):
                w, v = before["W"][:, place], before["U"][:, place]
                expected = np.mean(entry(w[i], w[j], v[i], v[j], u[i], u[j], level * at.V[i, j]))
                change = np.mean(
                    after[a][:, i, place] * after[b][:, j, place] - before[a][i, place] * before[b][j, place], axis=1
                )
                noise = sympy.expand(increments[a, b].subs(numbers)).coeff(SECOND)
                z.append(z_score(N * change, expected, 3 / N * abs(float(noise)) * level * at.V.max()))
    return CheckResult(max(z), 4.0, "one step with momentum at N = 300 against the products, z-score")


def average(found: Average, sources: Sequence[str]) -> CheckResult:
    """Weights of momentum and of Nesterov's, by the recursion itself, against total, delay, noise and bias."""
    scope, errors, beta, N = numpy_functions(sources), [], 0.9, 300.0
    for nesterov in (False, True):
        m, weights = 1.0, []
        impulse = np.zeros(400)
        impulse[0] = 1.0
        m = 0.0
        for g in impulse:
            m = beta * m + (1 - beta) * g
            weights.append(beta * m + (1 - beta) * g if nesterov else m)
        w, j = np.array(weights), np.arange(400)
        share = scope["present_share"](beta, nesterov)
        delay = (1 - share) / scope["velocity_damping"](N, beta) * N
        errors += [w.sum() - 1, delay / (j @ w) - 1, scope["average_noise"](beta, share) / (w @ w) - 1, share - w[0]]
        symbolic = [sympy.lambdify((BETA, SHARE), x)(beta, share) for x in (found.total, found.delay, found.noise)]
        errors += [symbolic[0] - 1, symbolic[1] / (j @ w) - 1, symbolic[2] / (w @ w) - 1]
    share = scope["present_share"](beta, False)
    grown = np.cumsum((1 - beta) * beta ** np.arange(60))
    # Continuous velocities grow like exp(-gamma t) for beta^n: the first step is exact, the later ones to (1 - beta)/2.
    errors.append(scope["average_bias"](share, N * (1 - beta), 0.0) - grown[0])
    return CheckResult(float(np.max(np.abs(errors))), 1e-12, "weights of averages against their recursion, error")


def adam_terms(
    scope: dict[str, Any], rate: float, model: Linear, beta1: float, beta2: float, *, thrice: bool = True
) -> dict[str, Any]:
    """Arguments of `simulate.course` for Adam, by the generated functions; `thrice`: the mean's square so in the drift."""
    N = float(model.dimension)
    share, damping = scope["present_share"](beta1), scope["velocity_damping"](N, beta1)
    forgetting = scope["second_moment_forgetting"](N, beta2)
    levels = np.asarray(model.levels)

    def preconditioner(t: float, q: np.ndarray, v: np.ndarray, V: np.ndarray, drift: bool = thrice) -> np.ndarray:
        p = len(V)
        means = levels[:, None] ** 2 * np.einsum("kii->ki", q[:, :p, :p])
        target = scope["second_moment_target"](levels[:, None], np.diag(V), model.batch, means, N)
        held = scope["second_moment"](v, target, beta2, forgetting, t)
        held = scope["second_moment_of_drift"](held, means, N) if drift else held
        size = scope["adam_preconditioner"](rate, held, 0.0, N) / scope["average_bias"](share, damping, t)
        return size[:, :, None] * np.eye(p)

    return {
        "preconditioner": preconditioner, "heating": partial(preconditioner, drift=False), "share": share, "damping": damping,
        "forgetting": forgetting,
    }  # fmt: skip


@cache
def adam_losses(batch: int, rate: float, steps: tuple[int, ...]) -> np.ndarray:
    """Of sixteen runs: (16, len(steps))."""
    model = Linear(batch, START, levels=(0.4, 1.6))
    return model.losses(simulate.adam(rate, model.dimension, 0.9, 0.998), steps, 16, 11)


def adam_run(sources: Sequence[str], batch: int = 4, beta2: float = 0.998, *, thrice: bool = True) -> CheckResult:
    """The loss of real Adam, two rows, two levels, beta = (.9, .998), against the ODE with that beta2, or another."""
    scope, model, rate = numpy_functions(sources), Linear(batch, START, levels=(0.4, 1.6)), 0.12
    times = (0.1, 0.4, 0.8)
    terms = adam_terms(scope, rate, model, 0.9, beta2, thrice=thrice)
    expected = simulate.course(model, terms.pop("preconditioner"), times, steps=160, **terms)
    runs = adam_losses(batch, rate, tuple(round(300 * t) for t in times))
    return CheckResult(
        z_score(runs, expected, 3e-3 * expected), 4.0, f"Adam at N = 300, B = {batch} to t = .8 against the ODE, z-score"
    )  # fmt: skip


def noise_of_v(drift: sympy.Expr, noise: sympy.Expr) -> CheckResult:
    """Response of m/sqrt v to a mean, and E[xi^2/v], of coordinates at beta2 = .97, B = 8, by samples of all the past."""
    beta2, length, size = 0.97, 220, 8
    rng = np.random.default_rng(6)
    # Fields of batches of 8 in the linear model: |g|^2 and the mean both go with sum_b e_b^2.
    x = rng.chisquare(size, (8000, length)) / size
    xi = rng.standard_normal((8000, length)) * np.sqrt(x)
    past = np.arange(length)
    squares = (1 - beta2) * beta2**past
    numbers = {BETA2: beta2, KURTOSIS: 3 * (1 + 2 / size), EXCESS: 2 / size}
    errors = []
    for beta1 in (0.0, 0.5):
        weights = (1 - beta1) * beta1 ** past.astype(float)
        up, down = (((xi + s * x) @ weights) / np.sqrt((xi + s * x) ** 2 @ squares) for s in (0.02, -0.02))
        expected = float(drift.subs({BETA1: beta1, **numbers}))
        errors.append(np.mean(up - down) / 0.04 - expected)
    pairs = xi[:, 0] ** 2 / (xi**2 @ squares)
    errors.append(np.mean(pairs) - np.mean(xi[:, 0] ** 2) + 1 - float(noise.subs({BETA1: 0, **numbers})))
    return CheckResult(
        float(np.max(np.abs(errors))), 8e-3, "factors from the fluctuation of v at beta2 = .97, B = 8, error"
    )


def rotated() -> CheckResult:
    """Variances of the coordinates of a rotated power-law token: mean tr Sigma/d exactly, spread sqrt(2/d_eff - 2/d)."""
    size = 400
    spectrum = np.arange(1, size + 1.0) ** -0.5
    turn, _ = np.linalg.qr(np.random.default_rng(4).standard_normal((size, size)))
    v = turn**2 @ spectrum
    effective = spectrum.sum() ** 2 / np.sum(spectrum**2)
    spread = v.std() / v.mean() / np.sqrt(2 / effective - 2 / size)
    return CheckResult(
        abs(v.mean() / spectrum.mean() - 1) + abs(spread - 1), 0.15, "coordinates of a rotated spectrum, relative error"
    )


def written() -> CheckResult:
    """Adam on an output row that sees one row A of the same |A|^2, Gaussian or of entries +-1: its overlap over a sqrt(N)."""
    rng, N, beta = np.random.default_rng(2), 20_000, 0.99
    gaussian = rng.standard_normal(N)
    gaussian /= np.sqrt(np.mean(gaussian**2))
    errors = []
    for A, expected in ((gaussian, np.sqrt(2 / np.pi)), (rng.choice([-1.0, 1.0], N), 1.0)):
        slopes = 1 + 0.05 * rng.standard_normal(400)
        # The gradient of step n is slopes_n A/N in every coordinate, so is its second moment.
        v = (1 - beta) * np.sum(beta ** np.arange(400) * slopes[::-1] ** 2) / (1 - beta**400) * (A / N) ** 2
        step = slopes[-1] / np.mean(slopes) * A / N / np.sqrt(v) / N**0.5
        errors.append(np.mean(A * step) * N / N**0.5 / expected * np.mean(slopes) / slopes[-1] - 1)
    return CheckResult(
        float(np.max(np.abs(errors))), 0.02, "an output row under Adam: .80 and 1 of a sqrt(N), relative error"
    )


def inverse_root(K: np.ndarray) -> np.ndarray:
    """K^-1/2."""
    values, vectors = np.linalg.eigh(K)
    return vectors / np.sqrt(values) @ vectors.T


def muon_terms(
    scope: dict[str, Any], rate: float, model: Linear, mu: float, nesterov: bool, carried: bool = True
) -> dict[str, Any]:
    """Arguments of `simulate.course` for Muon; K from carried velocities or from the closure."""
    N, p = float(model.dimension), len(model.start)
    share, damping = scope["present_share"](mu, nesterov), scope["velocity_damping"](N, mu)
    levels = np.asarray(model.levels)[:, None, None]

    def preconditioner(t: float, q: np.ndarray, v: np.ndarray, V: np.ndarray) -> np.ndarray:
        if carried:
            mix = np.concatenate(
                [share * levels * np.eye(p), np.broadcast_to((1 - share) * np.eye(p), (len(levels), p, p))], 2
            )
            r = np.mean(mix @ q @ mix.swapaxes(1, 2), axis=0)
            K = r + scope["missing_noise"](mu, share, damping, t) * N * V / model.batch
        else:
            means = np.mean(levels**2 * q[:, :p, :p], axis=0)
            K = scope["gram_of_average"](scope["average_noise"](mu, share), V, model.batch, means, N)
        return np.broadcast_to(rate * N**0.5 * inverse_root(K), (len(levels), p, p))

    return {"preconditioner": preconditioner, "share": share, "damping": damping}


@cache
def muon_losses(rate: float, steps: tuple[int, ...]) -> np.ndarray:
    """Of twenty runs with Nesterov's look-ahead: (20, len(steps))."""
    return Linear(8, START, levels=(0.4, 1.6)).losses(simulate.muon(rate, 0.9, True), steps, 20, 12)


def muon_run(sources: Sequence[str], keep_k: bool = True) -> CheckResult:
    """The loss of real Muon with Nesterov's look-ahead, mu = .9, B = 8, to t = .8 against the ODE; or with K = its trace."""
    scope, model, rate, times = numpy_functions(sources), Linear(8, START, levels=(0.4, 1.6)), 0.05, (0.02, 0.2, 0.8)
    terms = muon_terms(scope, rate, model, 0.9, True)
    found = terms.pop("preconditioner")

    def unmixed(t: float, q: np.ndarray, v: np.ndarray, V: np.ndarray) -> np.ndarray:
        P = found(t, q, v, V)
        size = np.trace(np.linalg.inv(P[0] @ P[0])) / len(V)
        return np.broadcast_to(np.eye(len(V)) / np.sqrt(size), P.shape)

    expected = simulate.course(model, found if keep_k else unmixed, times, steps=240, **terms)
    runs = muon_losses(rate, tuple(round(300 * t) for t in times))
    return CheckResult(
        z_score(runs, expected, 4e-3 * expected.min()), 4.0, "Muon at N = 300 to t = .8 against the ODE, z-score"
    )


def few_batches(drift: sympy.Expr, noise: sympy.Expr) -> CheckResult:
    """E[A x] and E[A^2 x] of one row at mu = .6, B = 8: chains of |g|^2, K by its recursion, A by the one backward in time."""
    mu, size = 0.6, 8
    x = np.random.default_rng(9).chisquare(size, (2000, 240)) / size
    K = lfilter([1 - mu**2], [1, -(mu**2)], x, axis=1)
    K, x = K[:, 40:], x[:, 40:]
    A = lfilter([1 - mu], [1, -mu], K[:, ::-1] ** -0.5, axis=1)[:, ::-1]
    A, x = A[:, :-40], x[:, :-40]
    numbers = {BETA: mu, batch: size}
    errors = [np.mean(A**n * x) - float(law.subs(numbers)) for n, law in ((1, drift), (2, noise))]
    return CheckResult(
        float(np.max(np.abs(errors))), 2e-3, "factors from the fluctuation of K at mu = .6, B = 8, error"
    )


def newton_schulz(sources: Sequence[str]) -> CheckResult:
    """The iteration on X (3, 50) itself against the polynomial of its Gram matrix; twenty exact ones against (X X^T)^-1/2 X."""
    scope = numpy_functions(sources)
    X = np.random.default_rng(7).standard_normal((3, 50)) * np.array([[1.0], [0.3], [2.0]])
    errors = []
    for coefficients, count in (((3.4445, -4.775, 2.0315), 5), (scope["exact_coefficients"](), 20)):
        a, b, c = coefficients
        Y, Q, A = X / np.linalg.norm(X), np.eye(3), X @ X.T / np.sum(X**2)
        for _ in range(count):
            S = Y @ Y.T
            Y = a * Y + b * S @ Y + c * S @ S @ Y
            factor = scope["newton_schulz_factor"](A, a, b, c)
            Q, A = factor @ Q, factor @ A @ factor
        errors.append(np.max(np.abs(Q @ X / np.linalg.norm(X) - Y)))
    errors.append(np.max(np.abs(Y - inverse_root(X @ X.T) @ X)))
    return CheckResult(float(max(errors)), 1e-10, "Newton-Schulz on the Gram matrix against the iteration on X, error")


def shampoo(error: sympy.Expr) -> CheckResult:
    """E tr R^-1/4/d of n p = 1600 vectors in d = 80 isotropic dimensions, R their mean square, against 1 + error at y = .05."""
    size, count = 80, 1600
    X = np.random.default_rng(1).standard_normal((12, count, size))
    values = np.linalg.eigvalsh(X.swapaxes(1, 2) @ X / count)
    values /= values.mean(axis=1, keepdims=True)
    (ratio,) = error.free_symbols
    return CheckResult(
        abs(float(np.mean(values**-0.25) - 1) / float(error.subs(ratio, size / count)) - 1), 0.1,
        "right factor of Shampoo at y = .05: relative error of its excess",
    )  # fmt: skip


def compare_modules(on_disk: str, derived: str) -> str:
    """Empty when the two module texts give the same numbers, else one line that names the function."""
    return same_numbers(on_disk, derived, _calls, lambda function, arguments: function(*arguments))


def _calls() -> list[Call]:
    import jax.numpy as jnp

    K = jnp.asarray(START)
    calls: dict[str, tuple] = {
        "velocity_damping": (300.0, 0.9), "present_share": (0.9, True), "average_bias": (0.1, 30.0, 0.02),
        "average_noise": (0.9, 0.19),
        "second_moment_target": (0.4, 1.2, 4.0, 0.7, 300.0), "second_moment_forgetting": (300.0, 0.99),
        "second_moment": (0.2, 0.3, 0.99, 3.0, 0.1), "second_moment_of_drift": (0.3, 0.7, 300.0),
        "adam_preconditioner": (0.1, 0.3, 1e-3, 300.0),
        "gram_of_average": (0.05, K, 4.0, K, 300.0), "missing_noise": (0.9, 0.19, 30.0, 0.02),
        "newton_schulz_factor": (K, 3.4, -4.8, 2.0), "exact_coefficients": (), "sign_weight": (0.7,), "sign_noise": (0.4,),
        "lion_square": (0.7, 1.2, 4.0, 0.9, 0.99), "lion_past": (0.9, 0.99), "lion_lags": (0.9, 0.99), "clip_weight": (0.7, 0.5),
        "adam_exponent": (1.5, 1.2), "adam_exponent_of_time": (0.4,), "adam_loss_slope": (0.3, 0.1, 4.0, 1.2, 0.4),
        "adam_floor": (0.1, 4.0, 1.1), "sign_gain": (3.0,), "sign_floor": (0.1, 3.0, 1.1),
    }  # fmt: skip
    return [
        (name, tuple(jnp.asarray(x) if not isinstance(x, bool) else x for x in arguments))
        for name, arguments in calls.items()
    ]
