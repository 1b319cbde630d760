r"""Expectations of a softmax of K Gaussian fields, for any K, without cancellation: the race of exponential clocks.

`p_i = e^{s z_i}/sum_j e^{s z_j}` is the probability that clock i, exponential with rate e^{s z_i}, rings first (the Gumbel-max
identity). With x the largest field, its clock ringing at scaled time lambda, and each of the K - 1 other clocks later with
probability A(lambda, x), products over classes become powers:

    m - Phi(s) = K (K - 1)/s^2 int phi(x) dx int e^-lambda A^(K-2) dlambda int_0^inf phi(x - y/s) y e^-y exp(-lambda e^-y) dy

All terms are positive, so the distance to the limit keeps its digits where `m - Phi` itself would lose them.
"""

from __future__ import annotations

from functools import lru_cache

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real
from numpy.polynomial import chebyshev
from scipy.interpolate import CubicSpline, PPoly, make_interp_spline
from scipy.special import log_ndtr, ndtr

from odescale.cache.tables import kept

CELLS = 512
"""Cells of a table in one variable; quintic pieces, so that even second derivatives keep nine digits."""
ORDER = 72
"""Chebyshev nodes at which a table in one variable is computed."""
FIELD_LIMIT = 9.5
CLOCK_START = -42.0
CLOCK_END = 4.3
"""ln of an exponential time lies between these two but for 1e-18."""


def _phi(x: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)


def _panels(edges: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(order)
    half = np.diff(edges) / 2
    return (edges[:-1, None] + half[:, None] * (nodes + 1)).ravel(), (half[:, None] * weights).ravel()


def _one_minus_power(beaten: np.ndarray, log_below: np.ndarray, power: int) -> np.ndarray:
    """Phi_N^power - (Phi_N - beaten)^power, with log_below = log Phi_N, and no cancellation."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip(beaten / np.exp(log_below), 0.0, 1.0)
        value = np.exp(power * log_below) * -np.expm1(power * np.log1p(-share))
    return np.nan_to_num(value)


def largest_field(classes: int) -> float:
    """m_K = E max of K standard normals = K (K - 1) int phi^2 Phi_N^(K-2), the density of the top gap at zero."""
    x = np.arange(-FIELD_LIMIT, FIELD_LIMIT, 0.05)
    return float(classes * (classes - 1) * 0.05 * np.sum(_phi(x) ** 2 * np.exp((classes - 2) * log_ndtr(x))))


def race_integrals(s: float, classes: int) -> tuple[float, float]:
    """(m - Phi(s), F(s) - s m) for s > 0: gradient and loss of an aligned student with hard labels."""
    x = np.arange(-FIELD_LIMIT, FIELD_LIMIT, 0.06)
    step = 0.22
    log_time = np.arange(CLOCK_START, CLOCK_END, step)
    time = np.exp(log_time)
    reach = min(45.0, 19.5 * s)
    y, weights = _panels(np.linspace(0, reach, max(3, int(np.ceil(reach / 3))) + 1), 14)
    density = _phi(x[:, None] - y / s) * weights
    rate = time[:, None] * np.exp(-y)
    beaten = density @ -np.expm1(-rate).T / s
    slope = density @ (np.exp(-rate) * (y * np.exp(-y))).T
    below = log_ndtr(x)[:, None]
    with np.errstate(divide="ignore"):
        later = np.log1p(-np.clip(beaten / np.exp(below), 0.0, 1.0))
    alive = np.exp((classes - 2) * (below + later)) if classes > 2 else np.ones_like(later)
    outer = 0.06 * step * _phi(x)[:, None] * np.exp(-time)
    gap = classes * (classes - 1) / s**2 * np.sum(outer * time * alive * slope)
    loss = classes * np.sum(outer * _one_minus_power(beaten, below, classes - 1))
    return float(gap), float(loss)


def response_at(s: float, classes: int) -> float:
    """H(s) = E[1 - |p|^2] = K (K - 1) int psi^2 Psi^(K-2) du, u = s z + Gumbel with density psi, for s of order one."""
    z, weights = np.polynomial.hermite_e.hermegauss(80)
    log_k = np.log(classes)
    u = np.arange(-12 - 6 * s, 45 + log_k + 6 * s, 0.05)
    shifted = u[:, None] - s * z
    weights = weights / weights.sum()
    density, below = np.exp(-shifted - np.exp(-shifted)) @ weights, np.exp(-np.exp(-shifted)) @ weights
    return float(classes * (classes - 1) * 0.05 * np.sum(density**2 * below ** (classes - 2)))


def _pieces(grid: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(6, cells) coefficients of the quintic spline through the values, highest power first, about the left end of every cell."""
    pieces = PPoly.from_spline(make_interp_spline(grid, values, 5))
    # Not `pieces.c`: some of its cells have no width, by the end conditions.
    return np.stack([_taylor(pieces, grid[:-1], 5 - power) for power in range(6)])


def _taylor(pieces: PPoly, at: np.ndarray, order: int) -> np.ndarray:
    factorial = float(np.prod(np.arange(1, order + 1)))
    return pieces.derivative(order)(at) / factorial if order else pieces(at)


class Clocks:
    """ln of an exponential time minus `deviation` times a normal: density and distribution, quintic splines on a uniform grid."""

    def __init__(self, grid: np.ndarray, density: np.ndarray, distribution: np.ndarray, scale: float) -> None:
        self.grid, self.scale = grid, scale
        self._density, self._distribution = (_pieces(grid, values) for values in (density, distribution))

    def density(self, at: np.ndarray) -> np.ndarray:
        """Density at places on the grid."""
        return self._read(self._density, at)

    def distribution(self, at: np.ndarray) -> np.ndarray:
        """Distribution function anywhere; 0 below the grid, and above it its last value."""
        value, inside = np.zeros(at.shape), at >= self.grid[0]
        value[inside] = self._read(self._distribution, np.minimum(at[inside], self.grid[-1]))
        return value

    def _read(self, pieces: np.ndarray, at: np.ndarray) -> np.ndarray:
        # The cell of a uniform grid needs no search, and a power series no recursion: ten times faster than scipy's splines.
        step = (self.grid[-1] - self.grid[0]) / (self.grid.size - 1)
        cell = np.clip(((at - self.grid[0]) / step).astype(np.intp), 0, self.grid.size - 2)
        x = at - self.grid[cell]
        value = pieces[0].take(cell)
        for coefficients in pieces[1:]:
            value *= x
            value += coefficients.take(cell)
        return value

    @classmethod
    def noisy(cls, deviation: float) -> Clocks:
        """Clocks whose log rate has a normal part."""
        scale = float(np.sqrt(1 + deviation**2))
        low, high = CLOCK_START - 9 * deviation, CLOCK_END + 9 * deviation
        v = np.linspace(low, high, int((high - low) / (0.05 * scale)) + 1)
        if deviation <= 1:
            a = np.arange(-9, 9.01, 0.1)
            weights = 0.1 * _phi(a)
            u = v[:, None] + deviation * a
            return cls(v, np.exp(u - np.exp(u)) @ weights, -np.expm1(-np.exp(u)) @ weights, scale)
        log_time = np.arange(CLOCK_START, CLOCK_END, 0.2)
        weights = 0.2 * np.exp(log_time - np.exp(log_time))
        u = (v[:, None] - log_time) / deviation
        return cls(v, _phi(u) @ weights / deviation, ndtr(u) @ weights, scale)

    @classmethod
    def none(cls) -> Clocks:
        """No clocks, only the normals: the class with the largest field wins."""
        v = np.linspace(-FIELD_LIMIT, FIELD_LIMIT, 381)
        return cls(v, _phi(v), ndtr(v), 1.0)


def defeat(overlap: float, clocks: Clocks, classes: int) -> float:
    """1 - E p_top: the class with the largest z does not win the race of clocks with log rates `overlap` z + noise.

    With `Clocks.none()` and overlap = 1/r: the share of inputs on which argmax(z) and argmax(z + r xi) differ.
    """
    low, high = clocks.grid[0], clocks.grid[-1]
    step, h = 0.25 * clocks.scale, 0.08
    time = np.arange(low, high, step)
    density = clocks.density(time)
    x = np.arange(-FIELD_LIMIT, FIELD_LIMIT, h)
    reach = min(2 * FIELD_LIMIT + 0.5, (high - low) / overlap) if overlap > 0 else 2 * FIELD_LIMIT + 0.5
    count = int(np.clip(np.ceil(reach * max(overlap / (3 * clocks.scale), 1.0)), 4, 60))
    distance, weights = _panels(np.linspace(0, reach, count + 1), 12)
    earlier = clocks.distribution(time[:, None] - overlap * distance)
    beaten = (_phi(x[:, None] - distance) * weights) @ earlier.T
    lost = _one_minus_power(beaten, log_ndtr(x)[:, None], classes - 1)
    return float(classes * h * step * np.sum(_phi(x)[:, None] * lost * density))


def disagreement(inverse_temperature: float, overlap: float, clocks: Clocks, classes: int) -> float:
    """1 - E[p.p*]: two races on the same z, with log rates b* z and `overlap` z + noise, have different winners (to 1e-8)."""
    step = 0.5
    teacher_time = np.arange(-22.0, 3.7, step)
    first = np.exp(teacher_time - np.exp(teacher_time)) * step
    low, high = clocks.grid[0] * 22 / 42, clocks.grid[-1]
    time = np.arange(low, high, step * clocks.scale)
    second = clocks.density(time) * step * clocks.scale
    top = max(0.0, np.sqrt(2 * np.log(classes)))
    x = np.arange(max(-6.5, top - 9), top + 5.5, 0.2)
    sharp, wide = 1 / inverse_temperature, clocks.scale / max(overlap, 1e-9)
    edges = {0.0, 13.0}
    for scale, reach in ((sharp, 26.0), (wide, 26.0 if clocks.scale < 1.5 else 20.0)):
        edges |= set(np.minimum(np.arange(0.0, reach + 4, 4.0) * scale, 13.0))
    edges |= set(np.linspace(0, 13.0, 14))
    half = np.array(sorted(edges))
    half = half[np.concatenate([[True], np.diff(half) > 1e-9])]
    distance, weights = _panels(np.concatenate([-half[:0:-1], half]), 8)
    kernel_first = np.exp(-np.exp(np.clip(teacher_time[:, None] - inverse_temperature * distance, -700, 5)))
    kernel_second = 1 - clocks.distribution(time[:, None] - overlap * distance)
    total = 0.0
    for value in x:
        density = _phi(value - distance) * weights
        # Both clocks of another class ring later: its field lies lower, or is unlucky.
        both = (kernel_first * density) @ kernel_second.T
        total += np.exp(-0.5 * value**2) * (first @ np.clip(both, 0.0, 1.0) ** (classes - 1) @ second)
    return float(1 - classes * 0.2 * total / np.sqrt(2 * np.pi))


class Spline(eqx.Module):
    """Quintic pieces on a uniform grid of [0, 1]."""

    coefficients: Float[Array, "6 cells"]

    @classmethod
    def of_chebyshev(cls, series: np.ndarray) -> Spline:
        """The table of a Chebyshev series in 2 v - 1."""
        v = np.linspace(0, 1, CELLS + 1)
        return cls(jnp.asarray(_pieces(v, chebyshev.chebval(2 * v - 1, series))))

    def __call__(self, v: Real[ArrayLike, ""]) -> Float[Array, ""]:
        cell = jnp.clip(jnp.floor(v * CELLS).astype(int), 0, CELLS - 1)
        x = v - cell / CELLS
        c = self.coefficients[:, cell]
        return ((((c[0] * x + c[1]) * x + c[2]) * x + c[3]) * x + c[4]) * x + c[5]


class SoftmaxRace(eqx.Module):
    """Expectations over z ~ N(0, I_K) of p = softmax(s z), for one K, at any s >= 0: tables, smooth and cheap.

    `m` = E max z, `c` = pi^2 m/12. `gap` m - Phi(s) ~ c/s^2, `aligned_loss` F(s) - s m ~ c/s, `response` H(s) = Phi(s)/s =
    E[1 - |p|^2] ~ m/s, `curvature` Phi'(s) = E Var_p z ~ 2 c/s^3, `error` P(argmax z != argmax(z + r xi)) ~ m r/sqrt(pi).
    Relative accuracy 1e-11 (K <= 128) to 1e-9 (K = 1e5).
    """

    m: Float[Array, ""]
    scale: Float[Array, ""]
    gap_table: Spline
    loss_table: Spline
    response_table: Spline
    curvature_table: Spline
    error_table: Spline

    @property
    def c(self) -> Float[Array, ""]:
        """c = pi^2 m_K/12."""
        return jnp.pi**2 * self.m / 12

    def _place(self, s: Real[ArrayLike, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        total = jnp.asarray(s) + self.scale
        return jnp.asarray(s) / total, total

    def gap(self, s: Real[ArrayLike, ""]) -> Float[Array, ""]:
        """m - Phi(s) > 0."""
        v, total = self._place(s)
        return self.gap_table(v) / total**2

    def aligned_loss(self, s: Real[ArrayLike, ""]) -> Float[Array, ""]:
        """F(s) - s m > 0, with F(s) = E log sum_i exp(s z_i); log K at s = 0."""
        v, total = self._place(s)
        return self.loss_table(v) / total

    def response(self, s: Real[ArrayLike, ""]) -> Float[Array, ""]:
        """H(s) = E[1 - |p|^2]; 1 - 1/K at s = 0."""
        v, total = self._place(s)
        return self.response_table(v) / total

    def curvature(self, s: Real[ArrayLike, ""]) -> Float[Array, ""]:
        """Phi'(s) = E[sum_i p_i z_i^2 - (sum_i p_i z_i)^2] > 0."""
        v, total = self._place(s)
        return self.curvature_table(v) / total**3

    def error(self, ratio: Real[ArrayLike, ""]) -> Float[Array, ""]:
        """P(argmax z != argmax(z + ratio xi)), ratio = sqrt(Delta)/D >= 0."""
        q = jnp.where(jnp.isinf(ratio), 1.0, ratio / (1 + ratio))
        return q * self.error_table(q)


@lru_cache(maxsize=32)
def softmax_race(classes: int) -> SoftmaxRace:
    """The tables for K = `classes` >= 2, made once per process (.3 s), or read from the cache."""
    m = largest_field(classes)
    tables = {f"{name}_table": Spline.of_chebyshev(fit) for name, fit in _race_series(classes).items()}
    return SoftmaxRace(m=jnp.asarray(m), scale=jnp.asarray(max(1.0, m)), **tables)


@kept
def _race_series(classes: int) -> dict[str, np.ndarray]:
    """Chebyshev series in 2 v - 1, v = s/(s + scale), of what `SoftmaxRace` tabulates."""
    v = (chebyshev.chebpts1(ORDER) + 1) / 2
    m = largest_field(classes)
    scale = max(1.0, m)
    s = scale * v / (1 - v)
    gap, loss = np.array([race_integrals(x, classes) for x in s]).T
    total = s + scale
    response = np.where(s < 1, [response_at(min(x, 1.0), classes) for x in s], (m - gap) / s)
    series = {"gap": gap * total**2, "loss": loss * total, "response": response * total}
    fits = {name: _series(v, values) for name, values in series.items()}
    # Phi' = -d(m - Phi)/ds by the chain rule through v = s/(s + scale).
    slope = chebyshev.chebval(2 * v - 1, 2 * chebyshev.chebder(fits["gap"]))
    fits["curvature"] = _series(v, 2 * series["gap"] - slope * (1 - v))
    errors = np.array([defeat((1 - q) / q, Clocks.none(), classes) / q for q in v])
    return fits | {"error": _series(v, errors)}


def _series(v: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.linalg.solve(chebyshev.chebvander(2 * v - 1, v.size - 1), values)


class Surface(eqx.Module):
    """Bicubic pieces on a uniform grid of the unit square."""

    coefficients: Float[Array, "rows columns 4 4"]

    @classmethod
    def of_chebyshev(cls, series: np.ndarray) -> Surface:
        """The table of a double Chebyshev series in 2 w - 1 and 2 q - 1."""
        w, q = np.linspace(0, 1, 161), np.linspace(0, 1, 97)
        grid = chebyshev.chebgrid2d(2 * w - 1, 2 * q - 1, series)
        along = CubicSpline(w, grid, axis=0).c  # (4, rows, columns + 1)
        both = CubicSpline(q, along, axis=2).c  # (4, columns, 4, rows)
        return cls(jnp.asarray(both.transpose(3, 1, 2, 0)))

    def __call__(self, w: Real[ArrayLike, ""], q: Real[ArrayLike, ""]) -> Float[Array, ""]:
        rows, columns = self.coefficients.shape[:2]
        i = jnp.clip(jnp.floor(w * rows).astype(int), 0, rows - 1)
        j = jnp.clip(jnp.floor(q * columns).astype(int), 0, columns - 1)
        x, y = w - i / rows, q - j / columns
        powers = jnp.stack([x**3, x**2, x, jnp.ones_like(x)])
        return powers @ self.coefficients[i, j] @ jnp.stack([y**3, y**2, y, jnp.ones_like(y)])


class Disagreement(eqx.Module):
    """U = 1 - E[p.p*]: student fields D z + sqrt(Delta) xi, teacher fields b* z (inf: p* the one-hot of argmax z).

    b* = inf: U/(1 - w) is tabulated, w = D/(D + m + sqrt Delta); relative accuracy 1e-8 (K <= 128), 3e-7 at K = 1e5. Finite
    b*: the ratio to that and H(b*), w = D/(D + b* + sqrt Delta); error 1e-5 of U, and at the teacher 1e-5 of H(b*).
    """

    surface: Surface
    scale: Float[Array, ""]
    hard: Disagreement | None
    floor: Float[Array, ""]

    def __call__(self, overlap: Real[ArrayLike, ""], spread: Real[ArrayLike, ""]) -> Float[Array, ""]:
        # The square root has no derivative at zero: a start with Delta = 0 must still have one.
        deviation = jnp.sqrt(jnp.maximum(spread, 1e-24))
        overlap = jnp.maximum(overlap, 0.0)
        total = overlap + self.scale + deviation
        value = self.surface(overlap / total, deviation / (1 + deviation))
        if self.hard is None:
            return value * (self.scale + deviation) / total
        return value * (self.hard(overlap, spread) + self.floor)


@lru_cache(maxsize=16)
def disagreement_table(classes: int, inverse_temperature: float = np.inf) -> Disagreement:
    """The table for one K and b*, once per process (3 s for b* = inf, 8 s for a finite one), or from the cache."""
    hard = None if np.isinf(inverse_temperature) else disagreement_table(classes)
    scale = max(1.0, largest_field(classes)) if hard is None else inverse_temperature
    floor = 0.0 if hard is None else float(softmax_race(classes).response(jnp.asarray(inverse_temperature)))
    series = _disagreement_series(classes, inverse_temperature, scale, floor)["series"]
    return Disagreement(Surface.of_chebyshev(series), jnp.asarray(scale), hard, jnp.asarray(floor))


@kept
def _disagreement_series(classes: int, inverse_temperature: float, scale: float, floor: float) -> dict[str, np.ndarray]:
    """`series`: the double Chebyshev series in 2 w - 1 and 2 q - 1 of what `Disagreement` tabulates."""
    hard = np.isinf(inverse_temperature)
    shape = ((32, 24) if classes <= 1000 else (44, 24)) if hard else (32, 16)
    w, q = ((chebyshev.chebpts1(size) + 1) / 2 for size in shape)
    values = np.empty(shape)
    for j, share in enumerate(q):
        deviation = share / (1 - share)
        clocks = Clocks.noisy(deviation)
        for i, place in enumerate(w):
            overlap = (scale + deviation) * place / (1 - place)
            lost = defeat(overlap, clocks, classes)
            if hard:
                values[i, j] = lost / (1 - place)
            else:
                values[i, j] = disagreement(inverse_temperature, overlap, clocks, classes) / (lost + floor)
    return {"series": _series(q, _series(w, values).T).T}
