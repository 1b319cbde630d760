"""Laws of the loss along a learning-rate schedule, each linear in its amplitudes and nonlinear in one to three numbers.

    instant      L = L0 + A tau^-alpha + B eta                                                   4 parameters
    relaxing     L = L0 + A tau^-alpha + n,  dn/dtau = -C (n - B eta)                            5
    spectral     L = L0 + A tau^-alpha + n,  n = B int (1 + C (tau - s))^-beta d eta(s)          6
    two_phase    L = L0 + A tau^-alpha + D exp(-k tau)                                           5
    power_tau    L = L0 + A tau^-alpha                                                           3
    one_third    L = L0 + A tau^(-1/3)                                                           2
    multi_power  L = L0 + A tau^-alpha - B sum_k (eta_(k-1) - eta_k) G_k                         7
                 G_k = 1 - (1 + C eta_k^-gamma (tau - tau_(k-1)))^-beta
    chinchilla   L = E + A N^-a + B D^-b, N parameters and D tokens                              5

tau = int eta dstep, warm-up included, in learning rate times SGD steps; C and k per unit of tau, B in loss per unit of
learning rate. The first three come from `derivations/schedule/script.py`. `multi_power` is the multi-power law in its published
form (Luo et al., arXiv 2503.12811), the sum beginning with the warm-up. eta is constant between grid points, and the
solutions are exact for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from odescale.analysis.forecast.loss_curve import LossCurve
from odescale.errors import InputError
from odescale.generated import schedule as generated

LawName = Literal["instant", "relaxing", "spectral", "two_phase", "power_tau", "one_third", "multi_power", "chinchilla"]
Columns = Float[np.ndarray, "n k"]

formulas: Any = generated  # plain arithmetic: NumPy arrays and floats pass as well


class Course(NamedTuple):
    """What the laws need of a curve: tau (n,) at its points, the grid of its schedule, the lags since every change of the rate.

    `place` (n,): grid index of every point. `step_up` (c,): changes of eta; `at` (c,): tau where they happen; `after` (c,): the
    rate after them. `known_start`: the grid begins at step 0 with n = 0; otherwise n = B eta there.
    """

    name: str
    tau: Float[np.ndarray, " n"]
    rate: Float[np.ndarray, " n"]
    grid_rate: Float[np.ndarray, " m"]
    grid_tau: Float[np.ndarray, " m"]
    place: np.ndarray
    step_up: Float[np.ndarray, " c"]
    at: Float[np.ndarray, " c"]
    after: Float[np.ndarray, " c"]
    base: float
    peak: int
    tokens: Float[np.ndarray, " n"] | None
    parameters: float | None


def course_of(curve: LossCurve, law: str = "relaxing") -> Course:
    """The course of a logged curve. **Errors**: `InputError` without learning rates or with tau = 0 at a point."""
    if law == "chinchilla" and curve.learning_rate is None and curve.schedule_rate is None:
        step, rate, tau = curve.step, np.ones(curve.step.size), curve.step  # a law of sizes: no rate is asked for
    else:
        step, rate, tau = curve.grid
    place = np.searchsorted(step, curve.step)
    if not tau[place[0]] > 0:
        raise InputError(
            "curves",
            expected="points at tau > 0",
            got=f"{curve.name!r} at tau = {tau[place[0]]:g}",
            remedy="drop step 0",
        )
    before = rate.copy()
    if step[0] == 0:
        before[0] = 0.0  # no noise before the first step
    jump = np.concatenate([[0.0], np.diff(before)])
    changes = np.nonzero(jump != 0)[0]
    peak = int(np.argmax(rate >= 0.999 * rate.max()))
    return Course(
        curve.name, tau[place], rate[place], rate, tau, place, jump[changes], tau[changes - 1], rate[changes],
        float(before[0]), peak, curve.tokens, curve.parameters,
    )  # fmt: skip


def relaxing_noise(course: Course, speed: float) -> Float[np.ndarray, " n"]:
    """n/B at the points: the exact solution of dn/dtau = -C (n - eta), C = `speed`, for a rate constant between grid points."""
    keep = np.asarray(formulas.noise_decay(np.diff(course.grid_tau), speed)).tolist()
    rates = course.grid_rate.tolist()
    out = np.empty(len(rates))
    noise = out[0] = course.base
    for i, share in enumerate(keep, start=1):
        noise = out[i] = rates[i] + (noise - rates[i]) * share
    return out[course.place]


def remembered_noise(course: Course, speed: float, memory: float) -> Float[np.ndarray, " n"]:
    """n/B = eta - sum over changes of eta of change * (1 + C lag)^-beta: the power-law mixture of noise modes."""
    out = np.full(course.tau.size, course.base)
    if course.at.size:
        lag = course.tau[:, None] - course.at
        answer = 1 - formulas.noise_memory(np.maximum(lag, 0.0), speed, memory)
        out = out + (np.where(lag > 0, answer, 0.0) @ course.step_up)
    return out


def multi_power_noise(course: Course, speed: float, memory: float, power: float) -> Float[np.ndarray, " n"]:
    """-LD/B = sum_k (eta_k - eta_(k-1)) G(eta_k^-gamma S_k), G(x) = 1 - (1 + C x)^-beta, warm-up included, as published."""
    out = np.full(course.tau.size, course.base)
    if course.at.size:
        lag = course.tau[:, None] - course.at
        scaled = np.maximum(lag, 0.0) * np.maximum(course.after, 1e-12 * course.grid_rate.max()) ** -power
        out = out + np.where(lag > 0, 1 - (1 + speed * scaled) ** -memory, 0.0) @ course.step_up
    return out


class Nonlinear(NamedTuple):
    """A searched parameter: its name, range and grid; searched by its logarithm, or linearly from 0."""

    name: str
    low: float
    high: float
    grid: tuple[float, ...]
    logarithmic: bool = True

    def inward(self, value: float) -> float:
        return float(np.log(value)) if self.logarithmic else value

    def outward(self, value: float) -> float:
        return float(np.exp(value)) if self.logarithmic else value


class Law(NamedTuple):
    """A law: `linear` amplitude names, all >= 0; `searched` parameters; `columns(course, values)` (n, amplitudes)."""

    name: str
    linear: tuple[str, ...]
    searched: tuple[Nonlinear, ...]
    columns: Callable[[Course, tuple[float, ...]], Columns]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.linear, *(s.name for s in self.searched))

    @property
    def noisy(self) -> bool:
        """Whether the law has a noise term that follows the learning rate."""
        return self.name in ("instant", "relaxing", "spectral", "multi_power")


ALPHA = Nonlinear("alpha", 0.02, 3.0, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.1, 1.5))


def _speed(name: str = "C") -> Nonlinear:
    # In units of 1/tau at the end of the fitting window: see `scaled`.
    return Nonlinear(name, 0.3, 1e6, (3.0, 20.0, 100.0, 300.0, 1000.0, 1e4))


def _bias(course: Course, alpha: float) -> list[np.ndarray]:
    return [np.ones(course.tau.size), np.asarray(formulas.bias_power(course.tau, alpha))]


def _stack(*parts: np.ndarray) -> Columns:
    return np.stack(parts, axis=1)


def _chinchilla(course: Course, values: tuple[float, ...]) -> Columns:
    if course.tokens is None or course.parameters is None:
        raise InputError(
            "curves", expected="tokens and parameters with this law", got=f"{course.name!r} without", remedy="pass them"
        )
    data = np.asarray(course.tokens) ** -values[1]
    return _stack(np.ones(data.size), np.full(data.size, course.parameters ** -values[0]), data)


_MEMORY = Nonlinear("beta", 0.05, 20.0, (0.3, 0.6, 1.2, 4.0))
_POWERS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.9)

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law("instant", ("L0", "A", "B"), (ALPHA,), lambda c, v: _stack(*_bias(c, v[0]), c.rate)),
        Law(
            "relaxing", ("L0", "A", "B"), (ALPHA, _speed()),
            lambda c, v: _stack(*_bias(c, v[0]), relaxing_noise(c, v[1])),
        ),
        Law(
            "spectral", ("L0", "A", "B"), (ALPHA, _speed(), _MEMORY),
            lambda c, v: _stack(*_bias(c, v[0]), remembered_noise(c, v[1], v[2])),
        ),
        Law(
            "two_phase", ("L0", "A", "D"), (ALPHA, _speed("k")),
            lambda c, v: _stack(*_bias(c, v[0]), np.exp(-v[1] * c.tau)),
        ),
        Law("power_tau", ("L0", "A"), (ALPHA,), lambda c, v: _stack(*_bias(c, v[0]))),
        Law("one_third", ("L0", "A"), (), lambda c, v: _stack(*_bias(c, 1 / 3))),
        Law(
            "multi_power", ("L0", "A", "B"),
            (ALPHA, _speed(), _MEMORY, Nonlinear("gamma", 0.0, 1.5, (0.0, 0.3, 0.6, 0.9), logarithmic=False)),
            lambda c, v: _stack(*_bias(c, v[0]), multi_power_noise(c, v[1], v[2], v[3])),
        ),
        Law(
            "chinchilla", ("E", "A", "B"),
            (Nonlinear("a", 0.02, 3.0, _POWERS), Nonlinear("b", 0.02, 3.0, _POWERS)), _chinchilla,
        ),
    )
}  # fmt: skip


def law_named(name: str) -> Law:
    """The law of that name; `InputError` for an unknown one."""
    if name not in LAWS:
        raise InputError("law", expected=f"one of {', '.join(LAWS)}", got=name, remedy="relaxing is the default")
    return LAWS[name]


def scaled(law: Law, end_tau: float, top_rate: float) -> Law:
    """The law with the ranges of C and k in the curve's own unit: per `end_tau`, times eta^gamma for the multi-power law."""
    out = []
    for s in law.searched:
        if s.name not in ("C", "k"):
            out.append(s)
            continue
        # eta^-gamma multiplies C: with gamma to 1.5 the same memory has a smaller C.
        low = s.low * (top_rate**1.5 if law.name == "multi_power" else 1.0)
        grid = tuple(g / end_tau for g in s.grid)
        if law.name == "multi_power":
            grid = tuple(g * top_rate**p for g in grid for p in (0.0, 0.6))
        out.append(Nonlinear(s.name, low / end_tau, s.high / end_tau, grid))
    return law._replace(searched=tuple(out))
