"""Numeric checks of the steps in `script.py`: each compares a derived formula with something that does not use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import sympy
from scipy.special import erf
from sympy.matrices.expressions import MatrixExpr

from derivations.compare import Call, same_numbers
from derivations.mean_field.linear_attention import SteinRule, covariance_table, token_moment
from derivations.mean_field.momentum import Blocks
from derivations.numeric import complex_step, executed, numeric, random_covariance, worst
from odescale.symbolic.gaussian import Gaussian
from odescale.symbolic.record import CheckResult
from odescale.symbolic.sgd import ENTRY, FLAG, MEAN, SECOND, OverlapFlow, batch, decay, eta, lam, trace


def row_gradient(slope: MatrixExpr) -> CheckResult:
    """Gradient of l = sum tanh(phi) + sum cos(R) w, against complex steps in the entries of the rows."""
    rng = np.random.default_rng(1)
    tokens, rows, n = rng.standard_normal((3, 7)), rng.standard_normal((4, 7)), 7.0
    weight = rng.standard_normal((4, 4))
    back = any(symbol.name == "Lambda" for symbol in slope.atoms(sympy.MatrixSymbol))

    def loss(A: np.ndarray) -> complex:
        overlaps = np.sum(weight * np.cos(A @ A.T / n)) if back else 0.0
        return np.sum(np.tanh(tokens @ A.T / n**0.5)) + overlaps

    values = {"A": rows, "x": tokens, "g": 1 / np.cosh(tokens @ rows.T / n**0.5) ** 2}
    values["Lambda"] = -weight * np.sin(rows @ rows.T / n)
    got = numeric(slope.subs(trace, 7), values)
    return worst([(got, complex_step(loss, rows))], 1e-12, "gradient in the rows against complex steps, relative error")


def conditional_mean() -> CheckResult:
    """Regression of x_tk on all fields of T = 4 correlated tokens, solved numerically, against lambda a^T C^-1 phi_t/sqrt(N)."""
    rng = np.random.default_rng(2)
    root = rng.standard_normal((4, 6))
    rho = root @ root.T
    rho /= np.sqrt(np.outer(np.diag(rho), np.diag(rho)))
    spectrum, rows = rng.uniform(0.5, 2.0, 9), rng.standard_normal((3, 9))
    n = spectrum.sum()
    C = rows * spectrum @ rows.T / n
    cross = np.kron(rho, spectrum[5] * rows[None, :, 5] / n**0.5)
    weights = np.linalg.solve(np.kron(rho, C), cross.T).T
    expected = np.kron(np.eye(4), spectrum[5] * np.linalg.solve(C, rows[:, 5])[None] / n**0.5)
    return worst([(weights, expected)], 1e-10, "regression weights on the fields of all tokens, relative error")


class Example:
    """A network on T = 3 AR(1) tokens with write-back, for single SGD steps: rows w, o, r of the student, r* of the teacher.

    f = mean_t [phi_rt + R_ro tanh(phi_wt)], f* = phi_r*,T + phi_r*,1 phi_r*,2: every slope depends on several tokens.
    """

    def __init__(self, correlation: float = 0.5) -> None:
        self.tokens = 3
        place = np.arange(3)
        self.rho = correlation ** np.abs(place[:, None] - place)
        self.root = np.linalg.cholesky(self.rho)

    def slopes(self, phi: np.ndarray, R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(g (n, T, 4), Lambda (n, 4, 4)) of l = (f - f*)^2/2 at fields phi (n, T, 4)."""
        unit = np.tanh(phi[..., 0])
        error = np.mean(phi[..., 2] + R[2, 1] * unit, axis=1) - phi[:, 2, 3] - phi[:, 0, 3] * phi[:, 1, 3]
        g = np.zeros(phi.shape)
        g[..., 0] = error[:, None] * R[2, 1] * (1 - unit**2) / 3
        g[..., 2] = error[:, None] / 3
        on_R = np.zeros((len(phi), 4, 4))
        on_R[:, 2, 1] = error * unit.mean(axis=1)
        return g, on_R


def _along_tokens(matrix: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """sum_s matrix_ts fields_nsp as one product of matrices: some million sequences at once."""
    n, tokens, size = fields.shape
    return (fields.swapaxes(1, 2).reshape(-1, tokens) @ matrix.T).reshape(n, size, tokens).swapaxes(1, 2)


@lru_cache(maxsize=4)
def _moments(dimension: int, samples: int) -> tuple[np.ndarray, ...]:
    """(G, H, V) of the example at the overlaps of `_setting`, by sampling the fields."""
    example, rng = Example(), np.random.default_rng(4)
    *_, C, R = _setting(dimension)
    D, V, H = np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((4, 4))
    root, block = np.linalg.cholesky(C), 100_000
    for _ in range(samples // block):
        phi = _along_tokens(example.root, rng.standard_normal((block, 3, 4))) @ root.T
        g, on_R = example.slopes(phi, R)
        D += g.reshape(-1, 4).T @ phi.reshape(-1, 4) / samples
        V += g.reshape(-1, 4).T @ _along_tokens(example.rho, g).reshape(-1, 4) / samples
        H += (on_R + np.swapaxes(on_R, 1, 2)).sum(axis=0) / samples
    return np.linalg.solve(C, D.T).T, H, V


def _simulated(example: Example, rows: np.ndarray, spectrum: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Gradients (samples, 4, N) of single sequences of N-dimensional tokens, autodiff-free but exact at every N."""
    rng = np.random.default_rng(seed)
    n = spectrum.sum()
    x = np.einsum("ts,nsd->ntd", example.root, rng.standard_normal((samples, 3, spectrum.size))) * np.sqrt(spectrum)
    g, on_R = example.slopes(x @ rows.T / n**0.5, rows @ rows.T / n)
    along = np.einsum("nti,ntd->nid", g, x) / n**0.5
    return along + (on_R + np.swapaxes(on_R, 1, 2)) @ rows / n


def _setting(dimension: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows, spectrum of two levels, C, R."""
    rng = np.random.default_rng(3)
    spectrum = np.repeat([0.4, 1.6], dimension // 2)
    rows = rng.standard_normal((4, dimension)) * np.array([1.0, 0.8, 0.7, 0.9])[:, None]
    rows[2] += 0.8 * rows[1] + 0.3 * rows[3]
    return rows, spectrum, rows * spectrum @ rows.T / dimension, rows @ rows.T / dimension


def gradient_moments(mean: MatrixExpr, second: sympy.Expr) -> CheckResult:
    """N E[gamma] projected on the rows (exact at every N) and N E[gamma gamma^T], mode by mode, against simulated gradients."""
    example, dimension, samples = Example(), 300, 20_000
    rows, spectrum, *_ = _setting(dimension)
    G, H, V = _moments(dimension, 2_000_000)
    gradients = _simulated(example, rows, spectrum, samples, 5)
    z = []
    for level in (0.4, 1.6):
        place = spectrum == level
        part = rows[:, place]
        expected = numeric(mean.subs(lam, level), {"G": G, "H": H, "a": np.eye(4)}) @ (part @ part.T) / place.sum()
        found = np.einsum("nid,jd->nij", gradients[:, :, place], part) * dimension / place.sum()
        z.append(_z(found, expected, 2_000_000 / samples))
        fluctuation = float(second.subs({lam: level, sympy.Symbol("V_ij"): 1})) * V
        found = np.einsum("nid,njd->nij", gradients[:, :, place], gradients[:, :, place]) * dimension / place.sum()
        # Leading order in 1/N: allow the next one, one per cent of N = 300 times three tokens.
        z.append(_z(found, fluctuation, 2_000_000 / samples, 3 / dimension * np.abs(fluctuation).max()))
    return CheckResult(float(max(z)), 4.0, "moments of the gradient against simulated sequences at N = 300, z-score")


def _z(found: np.ndarray, expected: np.ndarray, ratio: float, bias: float = 0.0) -> float:
    """Largest z-score of the mean of `found` (n, ...), `expected` itself sampled with `ratio` times as many samples."""
    error = found.std(axis=0, ddof=1) / len(found) ** 0.5 * np.sqrt(1 + 1 / ratio) + bias
    moves = found.std(axis=0) > 1e-12
    assert np.all(np.abs(expected[~moves]) < 1e-12)
    return float(np.max(np.abs(found.mean(axis=0) - expected)[moves] / error[moves]))


def one_step(flow: OverlapFlow, moments: tuple[np.ndarray, ...] | None = None) -> CheckResult:
    """N Delta(q_k) of whole SGD steps, B = 2, correlated tokens, write-back, weight decay, against dq_k/dt from the flow.

    `moments`: other (G, H, V) than the sampled ones, to see the check fail.
    """
    example, dimension, steps, size = Example(), 300, 12_000, 2
    rate, shrink = 0.7, 0.3
    rows, spectrum, *_ = _setting(dimension)
    G, H, V = moments or _moments(dimension, 2_000_000)
    gradients = _simulated(example, rows, spectrum, steps * size, 6).reshape(steps, size, 4, dimension).mean(axis=1)
    flags = np.array([1.0, 1.0, 1.0, 0.0])
    moved = rows - flags[:, None] * (rate * gradients + shrink / dimension * rows)
    values = {eta: rate, batch: size, decay: shrink}
    z = []
    for level in (0.4, 1.6):
        place = spectrum == level
        part, after = rows[:, place], moved[:, :, place]
        q = part @ part.T / place.sum()
        change = (np.einsum("nid,njd->nij", after, after) - part @ part.T) * dimension / place.sum()
        matrices = {"G": G, "H": H, "V": V, "S": np.diag(flags), "q": q}
        expected = numeric(flow.matrix.subs({**values, lam: level}), matrices)
        z.append(_z(change, expected, 2_000_000 / (steps * size), 3 / dimension * rate**2 * level / size * V.max()))
        # And the scalar form that it was lifted from, entry by entry.
        u = (level * G + H) @ part
        for i, j in ((0, 2), (1, 2), (2, 3)):
            numbers = {FLAG[0]: flags[i], FLAG[1]: flags[j], SECOND: level * V[i, j], **values, lam: level}
            entry = sympy.lambdify((*ENTRY, *MEAN), flow.flow.subs(numbers))
            scalar = np.mean(entry(part[i], part[j], u[i], u[j]))
            z.append(abs(scalar - expected[i, j]) / 1e-9)
    return CheckResult(float(max(z)), 4.0, "one SGD step at N = 300 against the flow, z-score")


# ---------------------------------------------------------------------------------------------------------------------
# Momentum, on a linear student (row W, teacher W*): G = (1, -1), V = E[(u - v)^2] = e
# ---------------------------------------------------------------------------------------------------------------------


def _momentum_runs(N: int, seeds: int, units: float, rate: float, keep: float, gain: float) -> np.ndarray:
    """Squared distance |W - W*|^2/N of `seeds` runs of u <- keep u + grad, W <- W - gain u after `units` N steps."""
    rng = np.random.default_rng(7)
    target = rng.standard_normal((seeds, N))
    target /= np.sqrt(np.mean(target**2, axis=1, keepdims=True))
    W, u = np.zeros((seeds, N)), np.zeros((seeds, N))
    for _ in range(round(units * N)):
        x = rng.standard_normal((seeds, N))
        error = np.sum((W - target) * x, axis=1, keepdims=True) / N**0.5
        u = keep * u + error * x / N**0.5
        W = W - gain * u
    return np.mean((W - target) ** 2, axis=1)


def heavy_ball(blocks: Blocks) -> CheckResult:
    """The enlarged system of a linear student, integrated, against 32 runs with mu = 1 - 2/N at N = 300 to t = 3."""
    N, rate, friction, units = 300, 1.2, 2.0, 3.0
    numbers = {sympy.Symbol("eta", positive=True): rate, sympy.Symbol("gamma", positive=True): friction,
               sympy.Symbol("B", positive=True): 1, sympy.Symbol("w", positive=True): 0}  # fmt: skip

    def value(table: dict[Any, sympy.Expr], key: object) -> float:
        return float(sympy.sympify(table[key]).subs(numbers))

    order = ("W", "U")
    M = np.array([[value(blocks.rate, (a, b)) for b in order] for a in order])
    M[:, 0] += [value(blocks.gradient, a) for a in order]  # rows (W - W*, U): the mean gradient is W - W*
    n = np.zeros((2, 2))
    for i, j in ((0, 0), (0, 1), (1, 1)):
        n[i, j] = n[j, i] = value(blocks.noise, (order[i], order[j]))
    q, steps = np.diag([1.0, 0.0]), 3000
    for _ in range(steps):
        h = units / steps

        def slope(q: np.ndarray) -> np.ndarray:
            return M @ q + q @ M.T + n * q[0, 0]

        k1 = slope(q)
        k2 = slope(q + h / 2 * k1)
        q = q + h * k2
    runs = _momentum_runs(N, 32, units, rate, 1 - friction / N, rate / N)
    error = runs.std(ddof=1) / len(runs) ** 0.5
    return CheckResult(float(abs(runs.mean() - q[0, 0]) / error), 4.0, "heavy ball at N = 300 against the ODE, z-score")


def fixed_momentum(rate_of: Callable[[float, float], float]) -> CheckResult:
    """mu = 0.8 at N = 400 to t = 2 against plain SGD's ODE d e/dt = (-2 eta + eta^2) e at the derived learning rate."""
    N, step, mu, units = 400, 0.1, 0.8, 2.0
    rate = rate_of(step, mu)
    runs = _momentum_runs(N, 32, units, step, mu, step)
    error = runs.std(ddof=1) / len(runs) ** 0.5
    z = abs(runs.mean() - np.exp((-2 * rate + rate**2) * units)) / error
    return CheckResult(float(z), 4.0, "fixed momentum at N = 400 against plain SGD's ODE, z-score")


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms
# ---------------------------------------------------------------------------------------------------------------------


def gauss_hermite(root: np.ndarray, order: int, tokens: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Fields (n, T, P) = F z of independent tokens on a tensor grid, and weights (n,)."""
    x, w = np.polynomial.hermite_e.hermegauss(order)
    dimension = root.shape[1] * tokens
    z = np.stack(np.meshgrid(*[x] * dimension, indexing="ij"), -1).reshape(-1, tokens, root.shape[1])
    weights = np.ones(1)
    for _ in range(dimension):
        weights = np.multiply.outer(weights, w / w.sum()).ravel()
    return z @ root.T, weights


def committee_moments(phi: np.ndarray, weights: np.ndarray, c: np.ndarray, p: int, unit, slope) -> tuple:
    """(L, E[g phi^T], E[g g^T]) of the first p rows, by the sum over nodes."""
    error = unit(phi) @ c
    g = c[:p] * slope(phi[:, :p]) * error[:, None]
    return weights @ error**2 / 2, np.einsum("n,ni,nj->ij", weights, g, phi), np.einsum("n,ni,nj->ij", weights, g, g)


def erf_committee(third: sympy.Expr, sources: Sequence[str]) -> CheckResult:
    """Two students and one teacher by Gauss-Hermite in three dimensions; and Saad-Solla's sum of I3 equals G C."""
    C = random_covariance(3, 1, 0.5)
    c, p = np.array([1.0, 1.0, -1.3]), 2
    phi, weights = gauss_hermite(np.linalg.cholesky(C), 60)
    loss, D, V = committee_moments(
        phi[:, 0], weights, c, p, lambda x: erf(x / 2**0.5), lambda x: (2 / np.pi) ** 0.5 * np.exp(-(x**2) / 2)
    )
    import jax

    scope = executed(sources)
    # Compiled whole: step by step JAX compiles every operation of it by itself.
    G, got = (np.asarray(x) for x in jax.jit(scope["erf_committee_closure"], static_argnums=2)(C, c, (0, 1), 0.0))
    symbols = {s.name: s for s in third.free_symbols}
    I3 = np.zeros((p, 3))
    for i in range(p):
        for j in range(3):
            for a in range(3):
                place = {"i": i, "j": j, "a": a}
                numbers = {s: C[place[name[2]], place[name[3]]] for name, s in symbols.items()}
                I3[i, j] += c[i] * c[a] * float(third.subs(numbers))
    pairs = [(np.asarray(scope["erf_committee_loss"](C, c)), loss), (G @ C, D), (got, V), (I3, D)]
    return worst(pairs, 1e-9, "erf committee against Gauss-Hermite and the sum of I3, relative error")


def quadratic_committee(sources: Sequence[str]) -> CheckResult:
    """Two students and two teachers by Gauss-Hermite, exact for these polynomials."""
    C = random_covariance(4, 2, 0.7)
    c, p = np.array([0.9, 0.9, -1.0, -1.0]), 2
    phi, weights = gauss_hermite(np.linalg.cholesky(C), 6)
    loss, D, V = committee_moments(phi[:, 0], weights, c, p, lambda x: 0.5 * (x**2 - 1), lambda x: x)
    scope = executed(sources)
    G, got = (np.asarray(x) for x in scope["quadratic_committee_closure"](C, np.diag(c), c.sum(), (0, 1), 0.0))
    pairs = [(np.asarray(scope["quadratic_committee_loss"](C, np.diag(c), c.sum())), loss), (G @ C, D), (got, V)]
    return worst(pairs, 1e-11, "quadratic committee against exact Gauss-Hermite, relative error")


def token_averages(rule: SteinRule, query_attended: bool) -> CheckResult:
    """E[x y U_bc U_ef] by the rule against Isserlis on every token written out, T = 3, as polynomials: number of terms off."""
    tokens = 3
    names = ("x", "y", "b", "c", "e", "f")
    table = covariance_table(names)
    T = sympy.Symbol("T", positive=True)
    got = token_moment(("x", "y"), (("b", "c"), ("e", "f")), table, rule).subs(T, tokens)
    field = {(name, t): sympy.Symbol(f"{name}{t}") for name in names for t in range(tokens)}
    order = list(field)
    covariance = sympy.ImmutableMatrix(
        len(order), len(order),
        lambda m, n: table[frozenset((order[m][0], order[n][0]))] if order[m][1] == order[n][1] else 0,
    )  # fmt: skip
    attended = range(tokens) if query_attended else range(tokens - 1)
    average = [sum(field[a, t] * field[b, t] for t in attended) / len(attended) for a, b in (("b", "c"), ("e", "f"))]
    last = tokens - 1
    written_out = Gaussian(tuple(field.values()), covariance).expect(
        field["x", last] * field["y", last] * average[0] * average[1]
    )
    off = sympy.expand(got - written_out)
    return CheckResult(float(len(sympy.Add.make_args(off)) if off != 0 else 0), 0.0, "monomials off at T = 3")


def linear_attention(sources: Sequence[str], query_attended: bool) -> CheckResult:
    """L, E[sum_t g_t phi_t^T], V with label noise on fields of rank 3 at T = 2 and rank 2 at T = 3, exact Gauss-Hermite."""
    import jax

    scope, noise = executed(sources), 0.3
    run = jax.jit(lambda C, T: (scope["linear_attention_loss"](C, T), *scope["linear_attention_closure"](C, T, noise)))
    pairs = []
    for tokens, rank, seed in ((2, 3, 8), (3, 2, 9)):
        root = 0.6 * np.random.default_rng(seed).standard_normal((6, rank))
        C = root @ root.T
        phi, weights = gauss_hermite(root, 6, tokens)
        loss, D, V = attention_moments(phi, weights, noise, query_attended)
        got, G, got_V = (np.asarray(x) for x in run(C, float(tokens)))
        pairs += [(got, loss), (G @ C, D), (got_V, V)]
    return worst(pairs, 1e-11, "linear attention against exact Gauss-Hermite, relative error")


def attention_moments(phi: np.ndarray, weights: np.ndarray, noise: float, query_attended: bool = True) -> tuple:
    """(L, E[sum_t g_t phi_t^T], sum_t E[g_t g_t^T]) at nodes phi (n, T, 6) of difference and teacher fields, slopes by hand."""
    student, teacher = phi[..., :3] + phi[..., 3:], phi[..., 3:]
    last = slice(None) if query_attended else slice(None, -1)
    count = phi.shape[1] if query_attended else phi.shape[1] - 1

    def output(fields: np.ndarray) -> np.ndarray:
        q, k, r = np.moveaxis(fields, -1, 0)
        return r[:, -1] + q[:, -1] * np.sum(k[:, last] * r[:, last], axis=1) / count

    q, k, r = np.moveaxis(student, -1, 0)
    df = np.zeros(student.shape)
    df[:, -1, 0] = np.sum(k[:, last] * r[:, last], axis=1) / count
    df[:, last, 1] = q[:, -1:] * r[:, last] / count
    df[:, last, 2] = q[:, -1:] * k[:, last] / count
    df[:, -1, 2] += 1
    error = output(student) - output(teacher)
    g = error[:, None, None] * df
    V = np.einsum("n,nti,ntj->ij", weights, g, g) + noise**2 * np.einsum("n,nti,ntj->ij", weights, df, df)
    return weights @ error**2 / 2, np.einsum("n,nti,ntj->ij", weights, g, phi), V


def compare_modules(on_disk: str, derived: str) -> str:
    """Empty when the two module texts give the same numbers, else one line that names the function."""
    return same_numbers(on_disk, derived, _calls, lambda function, arguments: function(*arguments))


def _calls() -> list[Call]:
    import jax.numpy as jnp

    C = jnp.asarray(random_covariance(6, 10, 0.3))
    G, H, V = (jnp.asarray(random_covariance(6, seed, 0.3)) for seed in (11, 12, 13))
    c, moved = np.array([1.0, 1.0, 1.0, -0.8, -0.8, -0.8]), (0, 1, 2)
    rates = (G[:3], H[:3], V[:3, :3], jnp.eye(6)[:3], moved, 0.3, 2.0, 0.1)
    calls: dict[str, tuple] = {
        "overlap_flow": (jnp.stack([C, G]), jnp.ones(2), G, H, V, 0.3, 2.0, 0.1, jnp.ones(6)),
        "plain_sgd": rates,
        "heavy_ball": (*rates, 1.5),
        "erf_committee_loss": (C, c),
        "erf_committee_closure": (C, c, moved, 0.2),
        "quadratic_committee_loss": (C, np.diag(c), c.sum()),
        "quadratic_committee_closure": (C, np.diag(c), c.sum(), moved, 0.2),
        "token_moment": (C, np.array([[0, 1, 2, 3, 4, 5]]), 2, 5.0),
        "linear_attention_loss": (C, 5.0),
        "linear_attention_closure": (C, 5.0, 0.2),
    }
    return [*calls.items()]
