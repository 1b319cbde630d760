r"""L(e, m) = sigma^2 E |T - S|_F^2, two tokens: the map of positional (e) against semantic (m) learning of softmax attention.

Model (Cui et al. 2024, L = 2 tokens, one tied row; docs/phase_map.md). Tokens x_a ~ N(0, sigma^2 I_d), a = 1, 2; positions
p_1 = -p_2 = p / sqrt(d), |p|^2 = d; student row w, |w|^2 = d length^2; teacher row w*, |w*|^2 = d.

    chi_a  = w.(x_a + p_a)/sqrt(d) = sigma length xi_a +- e      S_ab = softmax_b(chi_a chi_b)
    chi*_a = w*.x_a/sqrt(d)        = sigma xi*_a                 T_ab = (1 - omega) softmax_b(chi*_a chi*_b) + omega A_ab
    e = w.p/d,  m = w.w*/d,  E xi_a xi*_a = r = m/length

Rows of S and T sum to one, so |T - S|_F^2 = 2 sum_a (T_aa - S_aa)^2, and with the sum and difference of the fields,
u = (chi_1 + chi_2)/sqrt(2), v = (chi_1 - chi_2)/sqrt(2),

    s = S_11 = sigmoid((u + v) v),   u = sigma length z_1,   v = sigma length z_2 + sqrt(2) e;   tau the same for the teacher.

Swapping the tokens and flipping all signs give E S_22 = E S_11 and the like, hence, with a = A_11 + A_22,

    L = 2 sigma^2 { (1-omega)^2 2 E tau^2 + 2 omega (1-omega) a E tau + omega^2 (A_11^2 + A_22^2)
                    + 2 E s^2 - 2 omega a E s - 4 (1-omega) E[tau s] },
    E[tau s] = sum_n r^(2n) c_n(e),   c_n(e) = sum_(|alpha| = 2n) tau_alpha s_alpha(e)          (Mehler 1866)

with the coefficients tau_alpha, s_alpha in normalised Hermite polynomials of z. Odd degrees vanish because tau is even.
One 2-D quadrature per value of e gives the whole line in m; L is even in e and in m.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real
from scipy.optimize import minimize
from scipy.special import roots_hermitenorm

from odescale.errors import InputError, SolveError
from odescale.precision import check_tolerance, require_x64

LEVELS = (24, 36, 54, 80, 120, 180, 270, 400)
"""Gauss-Hermite nodes per dimension, tried in this order; degrees up to half of that. The error of one level is read off
from the change since the level before."""

CUT = 1e-28
"""Nodes of weight below CUT are left out: s and tau are at most one, so this changes E[tau s] by about sqrt(CUT)."""

_AT_ONCE = 16
_EXAMPLE = ((0.6, 0.4), (0.4, 0.6))


class TwoTokenMinimum(NamedTuple):
    """A local minimum of L on the disc e^2 + m^2 <= length^2, e >= 0, m >= 0; its mirror images have the same loss.

    `e`, `m` positional and semantic overlap, `loss` L there; `kind` "semantic" (e = 0), "positional" (m = 0 < e) or "mixed".
    """

    e: float
    m: float
    loss: float
    kind: str


class TwoTokenTransition(NamedTuple):
    """The mixing omega at which the global minimum leaves e = 0.

    `mixing`, `minima` the local minima just above it, lowest first. `coexist`: the semantic solution is still one of them, e
    jumps (first order); else the semantic minimum itself moves off e = 0 and becomes mixed (continuous). `width` of the last
    bracket.
    """

    mixing: float
    minima: tuple[TwoTokenMinimum, ...]
    coexist: bool
    width: float


class _Means(NamedTuple):
    """E f, E f^2, and for one e or many: c_n, and what of E f^2 lies beyond the last degree."""

    mean: Any
    square: Any
    cross: Any
    rest: Any


def two_token_loss(
    e: Real[ArrayLike, "..."] | Sequence[float],
    m: Real[ArrayLike, "..."] | Sequence[float],
    *,
    mixing: float = 0.3,
    positional: Real[ArrayLike, "2 2"] | Sequence[Sequence[float]] = _EXAMPLE,
    variance: float = 0.25,
    length: float = 1.0,
    accuracy: float = 1e-8,
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    r"""L(e, m) = lim_d (1/d) E |T(x) x - S(x) x|^2 = sigma^2 E |T - S|_F^2, summed over the two tokens.

    The test error of a student with overlaps e and m, without a factor 1/2. A student that reads no token exactly as the
    teacher does pays for it: L = 0 only at omega = 0, |m| = length = 1. Every distinct |e| costs one quadrature in two
    dimensions, every m a polynomial.

    **Arguments**

    - `e`, `m`: positional and semantic overlap, e = w.p/d, m = w.w*/d, any shapes that broadcast, e^2 + m^2 <= length^2.
    - `mixing`: omega in [0, 1], the positional share of the teacher.
    - `positional`: A `(2, 2)`, rows of non-negative weights with sum one. L depends on A_11 + A_22 and A_11^2 + A_22^2 only.
    - `variance`: sigma^2 > 0 of a token's entries. `length`: |w|/sqrt(d) > 0.
    - `accuracy`: absolute error of L asked for, > 0; nodes are added until the estimate meets it at every point.

    **Returns** (loss, error), both of the broadcast shape, dimensionless. The error is an estimate: the terms that changed since
    the coarser level, their absolute values added up, plus the Cauchy-Schwarz bound r^(2N+2) sqrt(rest_tau rest_s) on the
    degrees left out, plus rounding.

    **Errors**: `InputError` for a bad argument, `PrecisionError` without 64-bit numbers; `SolveError` when the finest level misses
    `accuracy`.

    **Good values**: the defaults are the paper's (sigma = 0.5, omega = 0.3, A_11 = 0.6).

    **Failure regime**: sigma^2 max(1, length^2) well above 1 makes the sigmoid a step and the coefficients fall slowly. At length
    1 the finest level reaches 1e-10 at sigma^2 = 1, 6e-7 at 2, 3e-4 at 4.

    Source: Cui, Behrens, Krzakala & Zdeborova 2024, arXiv:2402.03902; docs/phase_map.md.
    """
    require_x64("two_token_loss")
    omega, A = _check_teacher(mixing, positional)
    sigma, length = _check_scales(variance, length)
    check_tolerance(accuracy, np.dtype(np.float64), "accuracy")
    e, m = _check_overlaps(e, m, length)
    lines, line = np.unique(np.abs(e), return_inverse=True)
    line = line.reshape(e.shape)
    teacher, student, error, _ = _converged(
        lines, sigma, length, accuracy, lambda change: _error(change, omega, A, sigma, line, (m / length) ** 2)
    )
    here = _Means(student.mean[line], student.square[line], student.cross[line], None)
    return np.asarray(_loss(teacher, here, omega, A, sigma, (m / length) ** 2)), np.asarray(error)


def two_token_minima(
    *,
    mixing: float = 0.3,
    positional: Real[ArrayLike, "2 2"] | Sequence[Sequence[float]] = _EXAMPLE,
    variance: float = 0.25,
    length: float = 1.0,
    accuracy: float = 1e-8,
) -> tuple[TwoTokenMinimum, ...]:
    r"""All (e, m) with L(e, m) <= L nearby on the disc e^2 + m^2 <= length^2, e, m >= 0; the lowest, the global one, first.

    Minima may lie on the rim, on an axis, or inside. In the coordinates e and s = m^2/(length^2 - e^2) the quarter disc is a
    rectangle on which L is smooth: candidates come from 129 x 33 points there, each is polished with exact derivatives.

    **Arguments**: as in `two_token_loss`, but 0 <= omega < 1: at omega = 1 the loss does not depend on m.

    **Returns** a tuple of `TwoTokenMinimum`, one or more, of kind semantic (e = 0 < m), positional (m = 0 < e) or mixed. Losses
    to `accuracy`.

    **Errors**: as in `two_token_loss`.

    **Failure regime**: two minima closer than length/128 count as one, an overlap below length/1000 counts as zero. A minimum
    narrower than a cell of the 129 x 33 points would be missed.

    Source: Cui et al. 2024; docs/phase_map.md.
    """
    omega, A = _check_minima(mixing, positional)
    return _Landscape("two_token_minima", A, variance, length, accuracy).minima(omega)


def two_token_transition(
    *,
    positional: Real[ArrayLike, "2 2"] | Sequence[Sequence[float]] = _EXAMPLE,
    variance: float = 0.25,
    length: float = 1.0,
    between: tuple[float, float] = (0.0, 0.99),
    accuracy: float = 1e-8,
) -> TwoTokenTransition | None:
    r"""omega_c: the global minimum of L has e = 0 below it and e > 0 above, by bisection in omega.

    **Arguments**: as in `two_token_minima`; `between` = (low, high), 0 <= low < high < 1, the omegas to search between.

    **Returns** a `TwoTokenTransition`, or None when e = 0, or e > 0, holds at both ends. Between them one change is assumed: with
    several, one of them is found. A first-order omega_c is good to its `width`, 1e-7, and the `accuracy` of the two losses; a
    continuous one to about 1e-5, because e must exceed length/1000 to be seen.

    **Errors**: as in `two_token_minima`.

    **Good values**: `positional=((0.95, 0.05), (0.05, 0.95))`, `variance=1`: first order. With the paper's A_11 = 0.6 and
    length 1 there is none: at e = 0 the student's weights are already as diagonal as A asks for.

    Source: Cui et al. 2024; docs/phase_map.md.
    """
    try:
        low, high = between
    except (TypeError, ValueError):
        raise InputError("between", expected="(low, high)", got=between, remedy="take the default") from None
    low, _ = _check_minima(low, positional, "between")
    high, A = _check_minima(high, positional, "between")
    if not low < high:
        raise InputError("between", expected="low < high", got=between, remedy="(0.0, 0.99) searches everywhere")
    landscape = _Landscape("two_token_transition", A, variance, length, accuracy)

    def tilted(omega: float) -> bool:
        return landscape.minima(omega)[0].e > 0

    at_low = tilted(low)
    if at_low == tilted(high):
        return None
    while high - low > 1e-7:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if tilted(middle) == at_low else (low, middle)
    minima = landscape.minima(high)
    coexist = minima[0].e > 0 and any(point.e == 0 for point in minima)
    return TwoTokenTransition(0.5 * (low + high), minima, coexist, high - low)


class _Landscape:
    """L over the quarter disc at fixed A, sigma and length, for any omega: the quadratures do not depend on omega."""

    def __init__(self, what: str, A: np.ndarray, variance: float, length: float, accuracy: float) -> None:
        require_x64(what)
        self.A = A
        self.sigma, self.length = _check_scales(variance, length)
        check_tolerance(accuracy, np.dtype(np.float64), "accuracy")
        self.e = self.length * np.linspace(0, 1, 129)
        self.share = np.linspace(0, 1, 33)
        # m^2 / length^2 at the points of the rectangle
        self.r2 = (1 - (self.e / self.length) ** 2)[:, None] * self.share
        lines = np.arange(len(self.e))[:, None] + 0 * self.share.astype(int)
        # The estimate is quadratic in omega: three values fix it.
        self.teacher, self.student, _, self.rule = _converged(
            self.e, self.sigma, self.length, accuracy,
            lambda change: np.max([_error(change, w, A, self.sigma, lines, self.r2) for w in (0.0, 0.5, 1.0)], axis=0),
        )  # fmt: skip

    def minima(self, omega: float) -> tuple[TwoTokenMinimum, ...]:
        student = _Means(self.student.mean[:, None], self.student.square[:, None], self.student.cross[:, None], None)
        values = _loss(self.teacher, student, omega, self.A, self.sigma, self.r2)
        found: list[TwoTokenMinimum] = []
        for i, j in _lowest_of_neighbours(values):
            point = self._polish(omega, self.e[i], self.share[j])
            if all(np.hypot(point.e - old.e, point.m - old.m) > self.length / 128 for old in found):
                found.append(point)
        return tuple(sorted(found, key=lambda point: point.loss))

    def _polish(self, omega: float, e: float, share: float) -> TwoTokenMinimum:
        def value(at: np.ndarray) -> tuple[float, np.ndarray]:
            loss, slope = _loss_and_slope(at, self.teacher, self.rule, self.A, omega, self.sigma, self.length)
            return float(loss) / scale, np.asarray(slope) / scale

        # At e = 0 the slope in e vanishes by symmetry even at a maximum: start half a step away from it.
        start = np.array([max(e / self.length, 1 / 256), share])
        scale = 2 * self.sigma**2
        done = minimize(
            value, start, jac=True, method="L-BFGS-B", bounds=[(0, 1), (0, 1)], options={"ftol": 0.0, "gtol": 1e-13}
        )
        position, share = (float(x) for x in done.x)
        loss = float(done.fun)
        on_axis = value(np.array([0.0, share]))[0]
        # An e that cannot be told from zero, in itself or in its loss, is zero.
        if position < 1e-3 or (position < 0.02 and on_axis <= loss + 1e-15):
            position, loss = 0.0, on_axis
        if share * (1 - position**2) < 1e-6:
            share = 0.0
        e = self.length * position
        m = float(np.sqrt(share * (self.length**2 - e**2)))
        return TwoTokenMinimum(e, m, loss * scale, "semantic" if e == 0 else "positional" if m == 0 else "mixed")


def _lowest_of_neighbours(values: Float[np.ndarray, "a b"]) -> list[tuple[int, int]]:
    """Indices whose value is not above any of the 8 neighbours; the last row is one point, the tip e = length, m = 0."""
    rows, columns = values.shape
    padded = np.pad(values[:-1], 1, constant_values=np.inf)
    padded[-1, 1:-1] = values[-1]
    body = np.ones((rows - 1, columns), dtype=bool)
    for i in range(3):
        for j in range(3):
            body &= values[:-1] <= padded[i : i + rows - 1, j : j + columns]
    found = [(int(i), int(j)) for i, j in np.argwhere(body)]
    return [*found, (rows - 1, 0)] if (values[-1, 0] <= values[-2]).all() else found


class _Rule(NamedTuple):
    """Nodes, and normalised Hermite polynomials times the roots of the weights at them, of degree 0 to N."""

    x: Float[Any, " k"]
    psi: Float[Any, "N k"]


@lru_cache(maxsize=16)
def _rule(degree: int) -> _Rule:
    """Gauss-Hermite with 2 x degree nodes for the standard normal, nodes of negligible weight left out."""
    x, weights = roots_hermitenorm(2 * degree)
    weights = weights / weights.sum()
    kept = weights > CUT
    x, root = x[kept], np.sqrt(weights[kept])
    # The recurrence on polynomial times root of the weight stays of order one where the polynomial alone is huge.
    psi = [root, x * root]
    for n in range(1, degree):
        psi.append((x * psi[n] - np.sqrt(n) * psi[n - 1]) / np.sqrt(n + 1))
    return _Rule(x, np.stack(psi))


def _coefficients(e: Array, scale: Array, rule: _Rule) -> tuple[Array, Array, Array]:
    """(E s, E s^2, s_alpha) at positional overlap e, fields of standard deviation `scale`."""
    u = scale * rule.x[:, None]
    v = scale * rule.x + jnp.sqrt(2.0) * e
    s = jax.nn.sigmoid((u + v) * v)
    root = rule.psi[0]
    weighted = s * root[:, None] * root
    return root @ weighted @ root, jnp.sum(weighted**2), rule.psi @ weighted @ rule.psi.T


def _by_degree(product: Float[Array, "N N"], degree: int) -> Float[Array, " n"]:
    """Sums over total degree 0, 2, ..., `degree` of an array over the degrees of z_1 and z_2."""
    a, b = np.divmod(np.arange((degree + 1) ** 2), degree + 1)
    kept = np.flatnonzero((a + b <= degree) & ((a + b) % 2 == 0))
    return jax.ops.segment_sum(product.ravel()[kept], (a + b)[kept] // 2, num_segments=degree // 2 + 1)


@jax.jit
def _expand(e: Float[Array, " n"], sigma: Array, length: Array, rule: _Rule) -> tuple[_Means, _Means]:
    degree = rule.psi.shape[0] - 1
    mean, square, tau = _coefficients(jnp.zeros(()), sigma, rule)
    own = _by_degree(tau**2, degree)
    teacher = _Means(mean, square, tau, square - jnp.sum(own))

    def line(e: Array) -> _Means:
        mean, square, s = _coefficients(e, sigma * length, rule)
        # Odd degrees of s do not meet tau, but they would count as missing: keep the even part of E s^2 only.
        parity = (-1.0) ** np.add.outer(np.arange(degree + 1), np.arange(degree + 1))
        odd = jnp.sum(jnp.where(parity < 0, s**2, 0.0))
        return _Means(mean, square, _by_degree(tau * s, degree), square - odd - jnp.sum(_by_degree(s**2, degree)))

    return teacher, jax.lax.map(line, e, batch_size=min(_AT_ONCE, e.shape[0]))


def _converged(
    e: Float[np.ndarray, " n"],
    sigma: float,
    length: float,
    accuracy: float,
    error_of: Callable[[tuple[_Means, _Means, np.ndarray]], np.ndarray | np.floating],
) -> tuple[_Means, _Means, np.ndarray | np.floating, _Rule]:
    """Teacher, student, error and rule of the first level whose error is at most `accuracy` everywhere."""
    # A size out of few, so that another number of lines is seldom another compilation.
    size = 2 ** max(4, (max(len(e), 1) - 1).bit_length())
    padded = np.concatenate([e, np.zeros(size - len(e))])
    before: tuple[_Means, _Means] | None = None
    reached = np.inf
    for nodes in LEVELS:
        rule = _rule(nodes // 2)
        teacher, student = jax.device_get(_expand(padded, sigma, length, rule))
        student = _Means(*(x[: len(e)] for x in student))
        if before is not None:
            missing = student.cross.shape[-1] - before[1].cross.shape[-1]
            change = (
                _Means(teacher.mean - before[0].mean, teacher.square - before[0].square, None, teacher.rest),
                _Means(
                    student.mean - before[1].mean,
                    student.square - before[1].square,
                    student.cross - np.pad(before[1].cross, ((0, 0), (0, missing))),
                    student.rest,
                ),
            )
            error = error_of((*change, np.asarray(nodes // 2)))
            reached = float(error.max(initial=0.0))
            if reached <= accuracy:
                return teacher, student, error, rule
        before = teacher, student
    raise SolveError(
        f"the quadrature of the two-token loss reached an error of {reached:.1e} with {LEVELS[-1]} nodes per field, "
        f"accuracy={accuracy:.1e} was asked; likely cause: sigma^2 = {sigma**2:g} with length {length:g} makes the sigmoid a "
        f"step; remedy: accuracy={1.1 * reached:.0e} or larger, or a smaller variance"
    )


def _loss(teacher: _Means, student: _Means, omega: Any, A: Any, sigma: Any, r2: Any) -> Any:
    """L from the means, for numpy and JAX arrays alike; `student.cross` has one axis more than `r2`, the degree."""
    cross = student.cross[..., -1]
    for n in range(student.cross.shape[-1] - 2, -1, -1):
        cross = cross * r2 + student.cross[..., n]
    a = A[0, 0] + A[1, 1]
    target = (1 - omega) ** 2 * 2 * teacher.square + 2 * omega * (1 - omega) * a * teacher.mean
    target = target + omega**2 * (A[0, 0] ** 2 + A[1, 1] ** 2)
    return 2 * sigma**2 * (target + 2 * student.square - 2 * omega * a * student.mean - 4 * (1 - omega) * cross)


def _error(
    change: tuple[_Means, _Means, np.ndarray],
    omega: float,
    A: np.ndarray,
    sigma: float,
    line: np.ndarray,
    r2: np.ndarray | np.floating,
) -> np.ndarray | np.floating:
    """The terms of `_loss` that changed, absolute values added up so that they cannot cancel, and the degrees left out."""
    teacher, student, degree = change
    spacing = np.finfo(np.float64).eps
    cross = np.zeros(r2.shape)
    for column in np.abs(student.cross).T[::-1]:
        cross = cross * r2 + column[line]
    # Differences of numbers of order one: below 8 spacings they are rounding.
    rest = np.maximum(teacher.rest, 8 * spacing) * np.maximum(student.rest, 8 * spacing)[line]
    cross = cross + r2 ** (degree // 2 + 1) * np.sqrt(rest)
    a = abs(A[0, 0] + A[1, 1])
    target = (1 - omega) ** 2 * 2 * abs(teacher.square) + 2 * omega * (1 - omega) * a * abs(teacher.mean)
    own = 2 * np.abs(student.square) + 2 * omega * a * np.abs(student.mean)
    return 2 * sigma**2 * (target + own[line] + 4 * (1 - omega) * cross + 64 * spacing)


@jax.jit
def _loss_and_slope(
    at: Float[Array, "2"],
    teacher: _Means,
    rule: _Rule,
    A: Float[Array, "2 2"],
    omega: Array,
    sigma: Array,
    length: Array,
) -> tuple[Array, Array]:
    """L and its derivatives in (e/length, s); `teacher.cross` holds the coefficients tau_alpha."""

    def loss(at: Array) -> Array:
        mean, square, s = _coefficients(length * at[0], sigma * length, rule)
        student = _Means(mean, square, _by_degree(teacher.cross * s, rule.psi.shape[0] - 1), None)
        return _loss(teacher, student, omega, A, sigma, at[1] * (1 - at[0] ** 2))

    return jax.value_and_grad(loss)(at)


def _number(name: str, value: Any, expected: str, holds: Callable[[float], bool], remedy: str) -> float:
    """`value` as a float, or the error that names it."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not (np.isfinite(number) and holds(number)):
        raise InputError(name, expected=expected, got=value, remedy=remedy)
    return number


def _check_teacher(mixing: Any, positional: Any, name: str = "mixing") -> tuple[float, np.ndarray]:
    omega = _number(name, mixing, "a share omega in [0, 1]", lambda x: 0 <= x <= 1, "0 is a purely semantic teacher")
    expected = "a (2, 2) matrix of weights >= 0, rows of sum one"
    remedy = "((0.6, 0.4), (0.4, 0.6)) is the paper's"
    try:
        A = np.asarray(positional, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("positional", expected=expected, got=positional, remedy=remedy) from None
    if A.shape != (2, 2) or not np.isfinite(A).all() or (A < 0).any() or np.abs(A.sum(axis=1) - 1).max() > 1e-9:
        raise InputError("positional", expected=expected, got=positional, remedy=remedy)
    return omega, A


def _check_minima(mixing: Any, positional: Any, name: str = "mixing") -> tuple[float, np.ndarray]:
    omega, A = _check_teacher(mixing, positional, name)
    if omega == 1:
        raise InputError(name, expected="omega < 1", got=mixing, remedy="at omega = 1 m is undetermined: take 0.99")
    return omega, A


def _check_scales(variance: Any, length: Any) -> tuple[float, float]:
    sigma2 = _number(
        "variance", variance, "sigma^2 > 0, 1e-30 to 1e30", lambda x: 1e-30 <= x <= 1e30, "0.25 is the paper's"
    )
    length = _number(
        "length", length, "|w|/sqrt(d) > 0, 1e-30 to 1e30", lambda x: 1e-30 <= x <= 1e30, "1 is the teacher's length"
    )
    return float(np.sqrt(sigma2)), length


def _check_overlaps(e: Any, m: Any, length: float) -> tuple[np.ndarray, np.ndarray]:
    pair: list[np.ndarray] = []
    for name, value in (("e", e), ("m", m)):
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            array = np.array(np.nan)
        if not np.isfinite(array).all():
            raise InputError(name, expected="finite overlaps", got=value, remedy="leave points without a value out")
        pair.append(array)
    try:
        e, m = np.broadcast_arrays(*pair)
    except ValueError:
        shapes = f"shapes {pair[0].shape} and {pair[1].shape}"
        raise InputError("m", expected="a shape that broadcasts with e's", got=shapes, remedy="match them") from None
    outside = e**2 + m**2 > length**2 * (1 + 1e-12)
    if outside.any():
        first = np.argwhere(outside)[0]
        raise InputError(
            "e, m",
            expected=f"e^2 + m^2 <= length^2 = {length**2:g}",
            got=f"e = {e[tuple(first)]:g}, m = {m[tuple(first)]:g}",
            remedy="leave out the points outside the disc, or raise length",
        )
    return e, m
