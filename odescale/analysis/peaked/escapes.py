r"""What would beat the one-third law: time to a given loss under schedules, other losses, other steps, larger batches.

Every number is the flow's of `odescale.systems.peaked`; predicted exponents are those of `odescale.analysis.peaked.one_third` and
`odescale.analysis.peaked.layer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import equinox as eqx
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Real
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq, minimize

from odescale.analysis.peaked.layer import best_learning_rate, decay_exponent
from odescale.analysis.peaked.one_third import predict_law
from odescale.analysis.peaked.optimizer_rows import OPTIMIZER_ROWS
from odescale.analysis.peaked.schedules import decayed, heated, hot_start, sgd
from odescale.clock import GrowthSchedule, PowerSchedule, WarmupStableDecaySchedule
from odescale.errors import InputError, SolveError, require_number
from odescale.solve.integrate import integrate
from odescale.systems.peaked import Peaked, peaked

OBSERVABLES = ("loss", "error", "calibrated_loss", "loss_total")
POINTS = 400
"""Output times of every solve, equal in log t: one shape, one compilation."""
SPREAD_FLOOR = 1e-26
"""Absolute tolerance: under a temperature schedule Delta itself falls as beta^-2, far below the default."""
RELATIVE = 1e-6
"""Relative tolerance: with stiff, large Delta the tables' own 1e-8 would be met as noise by a tighter one."""
MAX_STEPS = 40_000
BATCH = 16.0
HEAT_RANGE = (0.4, 0.9)
"""Exponents of beta among which the best is looked for."""
HOT = 0.6
"""Power of the hot start."""
LOG_RATES = (-2.0, 8.5)
"""ln eta among which the best is looked for: beyond, Delta starts at 1e7 and the flow takes too many steps."""


class Reach(eqx.Module):
    """When `observable` first falls to `target`: `t` (one unit = d SGD steps; Adam: one step), SGD `steps`, `samples` = batch *
    steps, intrinsic time `tau` = int eta dt; all inf when it does not by `t_max`."""

    target: float
    observable: str
    t: float
    steps: float
    samples: float
    tau: float
    t_max: float

    @property
    def reached(self) -> bool:
        """True when the target is met by `t_max`."""
        return bool(np.isfinite(self.t))


class Curve(eqx.Module):
    """Curves of one system on `t` (n,): `loss` excess loss, `error`, and `calibrated_loss` (n,) (None for soft labels)."""

    system: Peaked
    t: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    calibrated_loss: np.ndarray | None
    loss_total: np.ndarray

    def values(self, observable: str) -> Float[np.ndarray, " n"]:
        """One of `OBSERVABLES`."""
        if observable not in OBSERVABLES:
            raise InputError(
                "observable", expected=" or ".join(OBSERVABLES), got=observable, remedy="pick one of these"
            )
        values = getattr(self, observable)
        if values is None:
            raise InputError(
                "observable", expected="loss, error or loss_total with soft labels", got=observable,
                remedy="calibration is defined for hard labels",
            )  # fmt: skip
        return values

    def exponent(self, observable: str = "loss") -> float:
        """-dlog/dlog t, mean over the last decade of t; NaN where the observable vanishes."""
        values = self.values(observable)
        if not values[-1] > 0:
            return np.nan
        early = np.exp(np.interp(np.log(self.t[-1] / 10), np.log(self.t), np.log(np.maximum(values, 1e-300))))
        return float(np.log10(early / values[-1]))

    def reach(self, target: float, observable: str = "loss") -> Reach:
        """The first time at which `observable` is at most `target`: the root of a cubic spline of its logarithm in log t."""
        require_number("target", target, open_=True)
        values, end = self.values(observable), float(self.t[-1])
        below = np.flatnonzero(values <= target)
        if below.size == 0:
            return Reach(float(target), observable, np.inf, np.inf, np.inf, np.inf, end)
        place, t = int(below[0]), float(self.t[0])
        if place > 0:
            x = np.log(self.t)
            around = slice(max(0, place - 4), place + 4)
            spline = CubicSpline(x[around], np.log(np.maximum(values[around], 1e-300)) - np.log(target))
            t = float(np.exp(brentq(spline, x[place - 1], x[place], xtol=1e-14)))
        return _reach_at(self.system, t, float(target), observable, end)


def follow(system: Peaked, t_max: float) -> Curve:
    """The `Curve` of `system` up to `t_max` (one unit of t is d SGD steps), tight enough for any schedule of the logits."""
    t_max = require_number("t_max", t_max, 1e-100, 1e100)
    first = min(float(system.time_scale), 1e-4 * t_max)
    times = np.geomspace(first, t_max, POINTS)
    solver = system.integration.solvers[0]
    found = integrate(system, ts=times, rtol=RELATIVE, atol=SPREAD_FLOOR, max_steps=MAX_STEPS, solver=solver)
    seen = found.observables
    columns = {name: np.asarray(seen[name])[1:] for name in ("error", "calibrated_loss", "loss_total") if name in seen}
    return Curve(
        system, np.asarray(found.t)[1:], np.asarray(found.loss)[1:], columns["error"], columns.get("calibrated_loss"),
        columns["loss_total"],
    )  # fmt: skip


def time_to_loss(system: Peaked, target: float, *, observable: str = "loss", t_max: float = 1e8) -> Reach:
    r"""min {t : L(t) <= target} of the flow, as time, SGD steps, samples and intrinsic time.

    One unit of t is d SGD steps (Adam: one step). `target` > 0, in units of the observable: "loss" (excess loss; KL for soft and
    sampled labels), "error" (share of inputs), "calibrated_loss" (cross-entropy at the best temperature; hard labels),
    "loss_total". `t_max`: how far to look.

    **Returns** `Reach`, all its times inf where the target is not met by `t_max`. **Raises** `InputError`. Relative error of
    the time: some 1e-5, set by the solver; next to a kink of the schedule that of a grid with 400 points.
    """
    return follow(system, t_max).reach(target, observable)


class Escape(eqx.Module):
    """One row: what is changed, its exponents as derived (loss, error; NaN: none, 0: a floor) and as the flow has them over its
    last decade, its curve, when it reaches the targets, its cost in words."""

    name: str
    curve: Curve
    predicted: tuple[float, float]
    measured: tuple[float, float]
    reaches: tuple[Reach, ...]
    settings: str
    cost: str


class EscapeTable(eqx.Module):
    """`rows` at one `horizon` (t, one unit = d SGD steps) and `targets` of `observable`."""

    rows: tuple[Escape, ...]
    horizon: float
    targets: tuple[float, ...]
    observable: str

    def __getitem__(self, name: str) -> Escape:
        return {row.name: row for row in self.rows}[name]


def best_settings(
    build: Callable[..., Peaked], start: Sequence[float], bounds: Sequence[tuple[float, float]], horizon: float,
    observable: str = "loss",
) -> tuple[Float[np.ndarray, " n"], Curve]:  # fmt: skip
    """(settings (n,), curve) with the least `observable` at `horizon`, by Nelder-Mead within `bounds`; `build(*settings)`."""

    def cost(x: np.ndarray) -> float:
        try:
            return float(np.log(follow(build(*x), horizon).values(observable)[-1]))
        except SolveError:  # settings that cannot be followed are not recommended
            return 50.0

    low, high = np.array(bounds).T
    simplex = np.array([start, *(np.array(start) + 0.25 * (high - low) * row for row in np.eye(len(start)))])
    simplex = np.where(simplex > high, 2 * np.array(start) - simplex, simplex).clip(low, high)
    done = minimize(
        cost, np.array(start), method="Nelder-Mead", bounds=bounds,
        options={"xatol": 1e-3, "fatol": 1e-5, "maxfev": 150, "initial_simplex": simplex},
    )  # fmt: skip
    return np.asarray(done.x), follow(build(*done.x), horizon)


def time_by_horizon(
    build: Callable[[float], Peaked], target: float, *, observable: str = "loss", longest: float = 1e8
) -> Reach:
    """The shortest horizon T from 10 on whose own run, `build(T)`, ends at `target`, to 1e-4 of T; inf when none up to `longest`.

    For schedules that must know where they end. One unit of T is d SGD steps.
    """

    def excess(log_t: float) -> float:
        T = float(np.exp(log_t))
        return float(np.log(follow(build(T), T).values(observable)[-1] / target))

    low, high = np.log(10.0), float(np.log(longest))
    if excess(high) > 0:
        return Reach(float(target), observable, np.inf, np.inf, np.inf, np.inf, longest)
    T = 10.0 if excess(low) <= 0 else float(np.exp(brentq(excess, low, high, xtol=1e-4)))
    return _reach_at(build(T), T, float(target), observable, longest)


def _reach_at(system: Peaked, t: float, target: float, observable: str, t_max: float) -> Reach:
    steps = float(system.clock.steps(t))
    return Reach(target, observable, t, steps, steps * float(system.batch), float(system.clock.tau(t)), t_max)


def compare_escapes(
    targets: Real[ArrayLike, " n"], *, classes: int = 3, horizon: float = 1e6, observable: str = "loss",
    names: Sequence[str] | None = None, dimension: float = 1000.0,
) -> EscapeTable:  # fmt: skip
    r"""Time to each of `targets` under every escape of `ESCAPES`, with derived and measured exponents.

    **Arguments**: `targets (n,)` > 0 in units of `observable`; `classes` K (losses of the margin are run at K = 2); `horizon`
    t at which schedules are optimised and curves end (one unit = `dimension` SGD steps); `names` of rows to run (default
    all of `ESCAPES`; those of `odescale.analysis.peaked.optimizer_rows` go by optimiser).
    Batch 1 unless the row says otherwise.

    **Returns** `EscapeTable`. **Raises** `InputError`. Takes minutes: some rows search for their best schedule.
    """
    values = tuple(float(x) for x in np.atleast_1d(np.asarray(targets, dtype=float)))
    chosen = tuple(ESCAPES) if names is None else tuple(names)
    known = ESCAPES | OPTIMIZER_ROWS
    for name in chosen:
        if name not in known:
            raise InputError("names", expected=", ".join(known), got=name, remedy="pick from the list")
    for x in values:
        if not (np.isfinite(x) and x > 0):
            raise InputError("targets", expected="positive finite numbers", got=x, remedy="excess losses or rates")
    rows = [_row(name, classes, float(horizon), float(dimension), values, observable) for name in chosen]
    return EscapeTable(tuple(rows), float(horizon), values, observable)


def _row(name: str, K: int, T: float, d: float, targets: tuple[float, ...], observable: str) -> Escape:
    build, cost = (ESCAPES | OPTIMIZER_ROWS)[name]
    system, end, settings = build(K, T, d)
    curve = follow(system, end)
    if name in BY_HORIZON:
        # Along one run the exponent means nothing: the run of a tenth of the horizon has another schedule.
        shorter = build(K, T / 10, d)
        before = follow(shorter[0], shorter[1])
        measured = (
            float(np.log10(before.loss[-1] / curve.loss[-1])),
            float(np.log10(before.error[-1] / curve.error[-1])),
        )
        same = BY_HORIZON[name](system, K, d)
        powers = {"hot start": HOT, "warm-up-stable-decay": decay_exponent()}
        predicted = (powers.get(name, np.nan), powers.get(name, np.nan))
        reaches = tuple(time_by_horizon(same, x, observable=observable, longest=end) for x in targets)
    else:
        law = predict_law(system, end)
        predicted = (law.loss_exponent, law.error_exponent)
        measured = (curve.exponent("loss"), curve.exponent("error"))
        reaches = tuple(curve.reach(x, observable) for x in targets)
    return Escape(name, curve, predicted, measured, reaches, settings, cost)


Case = tuple[Peaked, float, str]


def _rate() -> float:
    return best_learning_rate().ratio


def _constant(K: int, T: float, d: float) -> Case:
    return sgd(K, _rate(), dimension=d), T, f"eta = {_rate():.3f}"


def _power(K: int, T: float, d: float, observable: str = "loss") -> Case:
    def build(g: float, log_onset: float, log_rate: float) -> Peaked:
        return sgd(K, float(np.exp(log_rate)), power=PowerSchedule(g, float(np.exp(log_onset))), dimension=d)

    edge = float(np.log(T))
    bounds = ((0.0, 0.95), (0.0, edge), LOG_RATES)
    (g, onset, rate), curve = best_settings(build, (0.5, 1.0, 5.0), bounds, T, observable)
    return curve.system, T, f"g = {g:.3f}, onset {np.exp(onset):.3g}, eta = {np.exp(rate):.3g}"


def _wsd(K: int, T: float, d: float) -> Case:
    def build(fraction: float, log_rate: float) -> Peaked:
        return decayed(K, float(np.exp(log_rate)), T, fraction, dimension=d)

    (fraction, rate), curve = best_settings(build, (0.5, 3.0), ((0.01, 1.0), LOG_RATES), T)
    return curve.system, T, f"decay {fraction:.1%}, eta = {np.exp(rate):.3g}"


def _hot(K: int, T: float, d: float) -> Case:
    return (
        hot_start(K, _rate(), HOT, T, dimension=d),
        T,
        f"g = {HOT:g}, eta from {_rate() * (1 + T) ** HOT:.3g} to {_rate():.3f}",
    )


def _warm(K: int, T: float, d: float) -> Case:
    return heated(K, _rate(), 0.6, 1.0, dimension=d), T, f"h = 0.6, onset 1, eta beta^2 = {_rate():.3f}"


def _heat(K: int, T: float, d: float, observable: str = "loss") -> Case:
    def build(h: float, log_onset: float) -> Peaked:
        return heated(K, _rate(), h, float(np.exp(log_onset)), dimension=d)

    bounds = (HEAT_RANGE, (0.0, float(np.log(T))))
    (h, onset), curve = best_settings(build, (0.7, 2.0), bounds, T, observable)
    return curve.system, T, f"h = {h:.3f}, onset {np.exp(onset):.3g}, eta beta^2 = {_rate():.3f}"


def _margin(loss: str, g: float = 0.0) -> Callable[[int, float, float], Case]:
    def case(K: int, T: float, d: float) -> Case:
        schedule = PowerSchedule(g)
        return peaked(classes=2, loss=loss, schedule=schedule, dimension=d), T, f"K = 2, eta = 1, g = {g:g}"

    return case


ESCAPES: dict[str, tuple[Callable[[int, float, float], Case], str]] = {
    "constant": (_constant, "none: the reference, eta/B the best constant"),
    "power, best for the loss": (_power, "the horizon must be known; a large loss before it"),
    "power, best for the error": (lambda K, T, d: _power(K, T, d, "error"), "the horizon must be known"),
    "power, g = 0.5": (
        lambda K, T, d: (sgd(K, _rate(), power=PowerSchedule(0.5), dimension=d), T, f"eta = {_rate():.3f}, onset 1"),
        "the loss slows down",
    ),
    "warm-up-stable-decay": (_wsd, "the horizon must be known; a large loss before the decay"),
    "hot start": (_hot, "the horizon must be known; a large loss before it"),
    "temperature, h = 0.6": (_warm, "logits multiplied by a growing beta, eta falling as beta^-2"),
    "temperature, best h": (_heat, "logits multiplied by a growing beta, eta falling as beta^-2"),
    "label smoothing, g = 0.5": (
        lambda K, T, d: (sgd(K, 1.0, power=PowerSchedule(0.5), smoothing=0.1, dimension=d), T, "eps = 0.1, eta = 1"),
        "cross-entropy has a floor; the error alone gains",
    ),
    "cross-entropy, K = 2": (
        lambda K, T, d: (sgd(2, 1.0, dimension=d), T, "K = 2, eta = 1"), "none: the reference of the next rows",
    ),
    "focal, K = 2": (_margin("focal"), "another constant"),
    "brier, K = 2": (_margin("brier"), "another constant"),
    "square, g = 0.5, K = 2": (_margin("square", 0.5), "cross-entropy has a floor; the error alone gains"),
    "normalised, no noise": (
        lambda K, T, d: (peaked(classes=K, optimizer="normalised", noise=0.0, dimension=d), T, "eta = 1"),
        "the whole population in every step",
    ),
    "normalised, B = 1e6": (
        lambda K, T, d: (peaked(classes=K, optimizer="normalised", batch=1e6, dimension=d), T, "eta = 1"),
        "1e6 samples per step; 2/5, later 1/6",
    ),
    "normalised, B = 32": (
        lambda K, T, d: (peaked(classes=K, optimizer="normalised", batch=32.0, dimension=d), T, "eta = 1"),
        "2/5, later 1/6; the smallest batch that its closure admits",
    ),
    "adam": (
        lambda K, T, d: (peaked(classes=K, optimizer="adam", learning_rate=1e-3, dimension=d), T * d, "lr = 0.001"),
        "2/5 while the spread is small, then 1/6",
    ),
    "adam, g = 1/2": (
        lambda K, T, d: (
            peaked(classes=K, optimizer="adam", learning_rate=1e-2, schedule=PowerSchedule(0.5, 100.0), dimension=d),
            T * d, "lr = 0.01, onset 100 steps",
        ),
        "the loss slows down to 2(1 - g)/5",
    ),
    "batch 16, same eta": (
        lambda K, T, d: (sgd(K, _rate(), batch=BATCH, dimension=d), T, f"eta = {_rate():.3f}"),
        "16 times the samples per step",
    ),
    "batch 16, eta times 16": (
        lambda K, T, d: (sgd(K, BATCH * _rate(), batch=BATCH, dimension=d), T, f"eta = {BATCH * _rate():.1f}"),
        "16 times the samples per step",
    ),
    "growing eta, q = 0.2": (
        lambda K, T, d: (peaked(classes=K, schedule=GrowthSchedule(0.2), dimension=d), T, "eta = (1 + t)^0.2"),
        "the spread grows as eta^2: slower",
    ),
    "growing eta, no noise": (
        lambda K, T, d: (peaked(classes=K, schedule=GrowthSchedule(0.2), noise=0.0, dimension=d), T, "eta = (1 + t)^0.2"),
        "the whole population in every step",
    ),
}  # fmt: skip
"""Name -> (classes, horizon, dimension) -> (system, end of the run, settings in words), and the cost in words."""


def _same_power(system: Peaked, K: int, d: float) -> Callable[[float], Peaked]:
    return lambda T: system


def _same_decay(system: Peaked, K: int, d: float) -> Callable[[float], Peaked]:
    schedule = system.schedule
    assert isinstance(schedule, WarmupStableDecaySchedule)
    fraction = 1 - float(schedule.decay_start / schedule.decay_end)
    return lambda T: decayed(K, float(system.learning_rate), T, fraction, dimension=d)


def _same_start(system: Peaked, K: int, d: float) -> Callable[[float], Peaked]:
    return lambda T: hot_start(K, _rate(), HOT, T, dimension=d)


BY_HORIZON: dict[str, Callable[[Peaked, int, float], Callable[[float], Peaked]]] = {
    "power, best for the loss": _same_power,
    "power, best for the error": _same_power,
    "warm-up-stable-decay": _same_decay,
    "hot start": _same_start,
}
"""Rows whose schedule depends on where it ends: exponents compare the ends of the runs to T/10 and to T; times are horizons, with
the settings found for T (power, decay) or those of the row itself (hot start)."""
