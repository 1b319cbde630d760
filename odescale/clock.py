"""One clock for theory and training: SGD steps, ODE time, intrinsic time, tokens.

One unit of the ODE's time `t` is `steps_per_unit = N = tr Sigma` SGD steps (the dimension d for isotropic tokens, one
step when the covariance is normalised to trace one). The intrinsic time is `tau = int_0^t eta(t') dt'`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.errors import InputError

Schedule = Callable[[Any], Any]

CLOCKS = ("t", "steps", "tau", "tokens")


def _require(name: str, expected: str, value: Any, holds: Callable[[Any], Any]) -> None:
    """Refuses a schedule's number outside its domain; values inside a JAX transformation pass."""
    if isinstance(value, Tracer):
        return
    number = np.asarray(value)
    if not np.all(np.isfinite(number) & holds(number)):
        raise InputError(name, expected=expected, got=number.tolist(), remedy="times are in units of t")


class ConstantSchedule(eqx.Module):
    """s(t) = 1: the learning rate stays at its base value."""

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return jnp.ones_like(1.0 * jnp.asarray(t))  # the time's own precision, so that a float32 run stays one

    def integral(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """int_0^t s = t."""
        return jnp.asarray(t, dtype=float)


class PowerSchedule(eqx.Module):
    """s(t) = (1 + t/onset)^-power, 0 <= power, onset in units of t.

    Good values: power 0.3 to 0.7. Failure regime: with power > 1 the intrinsic time stays finite and learning stops.
    """

    power: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float))
    onset: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float), default=1.0)  # type: ignore[assignment]

    def __check_init__(self) -> None:
        _require("power", "a number >= 0", self.power, lambda power: power >= 0)
        _require("onset", "a positive time", self.onset, lambda onset: onset > 0)

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return (1 + jnp.asarray(t) / self.onset) ** (-self.power)

    def integral(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """int_0^t s, with the logarithm at power = 1."""
        log_ratio = jnp.log1p(jnp.asarray(t) / self.onset)
        exponent = 1 - self.power
        safe = jnp.where(jnp.abs(exponent) < 1e-12, 1.0, exponent)
        return self.onset * jnp.where(jnp.abs(exponent) < 1e-12, log_ratio, jnp.expm1(safe * log_ratio) / safe)


class GrowthSchedule(eqx.Module):
    """s(t) = (1 + t/onset)^power, power >= 0, onset in units of t: for what grows, such as an inverse temperature."""

    power: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float))
    onset: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float), default=1.0)  # type: ignore[assignment]

    def __check_init__(self) -> None:
        _require("power", "a number >= 0", self.power, lambda power: power >= 0)
        _require("onset", "a positive time", self.onset, lambda onset: onset > 0)

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return (1 + jnp.asarray(t) / self.onset) ** self.power

    def integral(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """int_0^t s = onset ((1 + t/onset)^(power + 1) - 1)/(power + 1)."""
        return self.onset * jnp.expm1((self.power + 1) * jnp.log1p(jnp.asarray(t) / self.onset)) / (self.power + 1)


class CosineSchedule(eqx.Module):
    """s(t) = final + (1 - final) (1 + cos(pi t/total))/2 up to `total` (units of t), `final` beyond; 0 <= final <= 1."""

    total: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float))
    final: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float), default=0.1)  # type: ignore[assignment]

    def __check_init__(self) -> None:
        _require("total", "a positive time", self.total, lambda total: total > 0)
        _require("final", "a share in [0, 1]", self.final, lambda final: (final >= 0) & (final <= 1))

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        phase = jnp.clip(jnp.asarray(t) / self.total, 0.0, 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + jnp.cos(jnp.pi * phase))

    def integral(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """int_0^t s in closed form."""
        t = jnp.asarray(t)
        inside = jnp.minimum(t, self.total)
        wave = 0.5 * (inside + self.total / jnp.pi * jnp.sin(jnp.pi * inside / self.total))
        return self.final * t + (1 - self.final) * wave


class WarmupStableDecaySchedule(eqx.Module):
    """Linear warm-up over `warmup`, 1 until `decay_start`, linear decay to `final` at `decay_end` (all in units of t).

    The kinks sit at warmup, decay_start and decay_end.
    """

    warmup: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float))
    decay_start: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float))
    decay_end: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float))
    final: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float), default=0.0)  # type: ignore[assignment]

    def __check_init__(self) -> None:
        _require("warmup", "a time >= 0", self.warmup, lambda warmup: warmup >= 0)
        _require("decay_start", "warmup or later", self.decay_start - self.warmup, lambda rest: rest >= 0)
        _require("decay_end", "later than decay_start", self.decay_end - self.decay_start, lambda rest: rest > 0)
        _require("final", "a share in [0, 1]", self.final, lambda final: (final >= 0) & (final <= 1))

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        t = jnp.asarray(t)
        rise = jnp.where(self.warmup > 0, jnp.clip(t / jnp.where(self.warmup > 0, self.warmup, 1.0), 0.0, 1.0), 1.0)
        fall = jnp.clip((t - self.decay_start) / (self.decay_end - self.decay_start), 0.0, 1.0)
        return rise * (1 - (1 - self.final) * fall)


class StepDownSchedule(eqx.Module):
    """s(t) = 1 up to `at` (units of t), `factor` from there on; at > 0, factor >= 0. A jump at `at`."""

    at: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float))
    factor: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float), default=0.1)  # type: ignore[assignment]

    def __check_init__(self) -> None:
        _require("at", "a positive time", self.at, lambda at: at > 0)
        _require("factor", "a number >= 0", self.factor, lambda factor: factor >= 0)

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return jnp.where(jnp.asarray(t) < self.at, 1.0, self.factor)

    def integral(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """int_0^t s = min(t, at) + factor max(t - at, 0)."""
        t = jnp.asarray(t)
        return jnp.minimum(t, self.at) + self.factor * jnp.maximum(t - self.at, 0.0)


class WarmedSchedule(eqx.Module):
    """min(1, t/warmup) s(t): any schedule after a linear warm-up (units of t), which does not delay it."""

    schedule: Schedule
    warmup: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float))

    def __check_init__(self) -> None:
        _require("warmup", "a positive time", self.warmup, lambda warmup: warmup > 0)

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return jnp.minimum(jnp.asarray(t) / self.warmup, 1.0) * self.schedule(t)


class SampledSchedule(eqx.Module):
    """s(t) by linear interpolation of samples: how a saved run remembers a schedule that was any callable."""

    times: Float[Array, " n"] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float))
    values: Float[Array, " n"] = eqx.field(converter=lambda x: jnp.asarray(x, dtype=float))

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return jnp.interp(jnp.asarray(t), self.times, self.values)


class FunctionSchedule(eqx.Module):
    """s(t) by a plain function of the user's own, known by what it says: its code, and the numbers that it captured as arrays.

    A function made anew at every call would be a program compiled anew at every call, and kept.
    """

    source: _Source = eqx.field(static=True)
    numbers: tuple[Any, ...]

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return self.source.function(self.numbers)(t)


class _Source:
    """A function without its numbers, equal to every other that says the same."""

    def __init__(self, function: FunctionType, known: dict[tuple[str, Any], Any], places: tuple[tuple[str, Any], ...]):
        self.original, self.places = function, places
        shapes = tuple((np.shape(known[place]), np.result_type(known[place])) for place in places)
        rest = tuple((place, type(x).__name__, x) for place, x in known.items() if place not in places)
        self.key = (function.__code__, places, shapes, rest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Source) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def function(self, numbers: tuple[Any, ...]) -> Callable[[Any], Any]:
        """The function with these numbers in their places."""
        own, given = self.original, dict(zip(self.places, numbers, strict=True))
        if not given:
            return own

        def value(kind: str, name: Any, old: Any) -> Any:
            return given.get((kind, name), old)

        spaces = own.__globals__ | {name: x for (kind, name), x in given.items() if kind == "global"}
        defaults = own.__defaults__ and tuple(value("default", i, x) for i, x in enumerate(own.__defaults__))
        cells = own.__closure__ and tuple(
            CellType(value("cell", i, c.cell_contents)) for i, c in enumerate(own.__closure__)
        )
        made = FunctionType(own.__code__, spaces, own.__name__, defaults, cells)
        made.__kwdefaults__ = own.__kwdefaults__ and {
            name: value("keyword", name, x) for name, x in own.__kwdefaults__.items()
        }
        return made


def schedule_by_value(schedule: Any) -> Any:
    """A plain function as a `FunctionSchedule` where all that it uses is known by value; everything else as it is."""
    if type(schedule) is not FunctionType or vars(schedule):
        return schedule
    names, codes = set(), [schedule.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    try:
        known: dict[tuple[str, Any], Any] = {
            **{("default", i): x for i, x in enumerate(schedule.__defaults__ or ())},
            **{("keyword", name): x for name, x in (schedule.__kwdefaults__ or {}).items()},
            **{("cell", i): cell.cell_contents for i, cell in enumerate(schedule.__closure__ or ())},
            **{("global", name): schedule.__globals__[name] for name in sorted(names & set(schedule.__globals__))},
        }
    except ValueError:  # a cell that is still empty
        return schedule
    places = tuple(place for place, x in known.items() if _is_number(x))
    if not all(place in places or _is_constant(x) for place, x in known.items()):
        return schedule
    numbers = tuple(jnp.asarray(known[place], dtype=float) for place in places)
    try:
        found = FunctionSchedule(_Source(schedule, known, places), numbers)
        hash(found.source)
        jax.eval_shape(lambda s, t: s(t), found, jnp.zeros(()))
        return found
    except Exception:  # it does with its numbers what only numbers allow: they are then part of what it says
        try:
            return FunctionSchedule(_Source(schedule, known, ()), ()) if hash(tuple(known.values())) else schedule
        except TypeError:
            return schedule


def _is_number(value: Any) -> bool:
    if isinstance(value, Tracer):
        return False
    if isinstance(value, np.ndarray | jax.Array):
        return bool(jnp.issubdtype(value.dtype, jnp.floating))
    return isinstance(value, float | np.floating)


def _is_constant(value: Any) -> bool:
    """What is the same wherever it looks the same: plain constants, modules, and functions of the packages below."""
    if value is None or isinstance(value, bool | int | str | ModuleType):
        return True
    return callable(value) and (getattr(value, "__module__", None) or "").split(".")[0] in ("jax", "numpy", "math")


def schedule_samples(schedule: Schedule | None, t1: float, count: int = 513) -> dict[str, list[float]] | None:
    """`count` samples {"t": [...], "s": [...]} of s over [0, t1] as plain JSON types; None for a constant one.

    What a run writes down of its schedule, and what decides whether two runs had the same. **Errors**: `InputError` for a schedule
    that is not finite there.
    """
    if schedule is None or isinstance(schedule, ConstantSchedule):
        return None
    times = np.linspace(0.0, t1, count)
    values = np.asarray(jax.vmap(schedule)(jnp.asarray(times)), dtype=float)
    if not np.isfinite(values).all():
        raise InputError(
            "schedule", expected="finite s(t) on the run", got="NaN or infinity", remedy="check its domain"
        )
    return {"t": times.tolist(), "s": values.tolist()}


def schedule_integral(schedule: Schedule, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
    """int_0^t s(t') dt': the schedule's own `integral` where it has one, else composite Gauss-Legendre (64 x 8 nodes).

    Kinks inside a panel cost about (t/64)^2 of absolute accuracy.
    """
    own = getattr(schedule, "integral", None)
    if own is not None:
        return own(t)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    panels = 64
    grid = (np.arange(panels)[:, None] + 0.5 * (nodes[None, :] + 1)).ravel() / panels
    scale = np.tile(weights, panels) * 0.5 / panels
    t = jnp.asarray(t, dtype=float)
    values = jax.vmap(lambda u: schedule(u * t))(jnp.asarray(grid))
    return t * jnp.tensordot(jnp.asarray(scale), values, axes=1)


def schedule_kinks(schedule: Schedule) -> tuple[Any, ...]:
    """Times (units of t) where s(t) has a kink: an integrator should step there exactly.

    Known for the schedules of this module; a callable of the user's own may carry them as an attribute `kinks`.
    """
    if isinstance(schedule, WarmupStableDecaySchedule):
        return (schedule.warmup, schedule.decay_start, schedule.decay_end)
    if isinstance(schedule, CosineSchedule):
        return (schedule.total,)
    if isinstance(schedule, StepDownSchedule):
        return (schedule.at,)
    if isinstance(schedule, WarmedSchedule):
        return (schedule.warmup, *schedule_kinks(schedule.schedule))
    return tuple(getattr(schedule, "kinks", ()))


class Clock(eqx.Module):
    """t = step / steps_per_unit, tau = int_0^t eta dt', tokens seen = step * batch * (context tokens + 1).

    **Arguments**

    - `steps_per_unit`: N = tr Sigma > 0, SGD steps in one unit of t.
    - `learning_rate`: base plain learning rate eta_0 > 0.
    - `schedule`: callable s(t) with eta(t) = eta_0 s(t); `None` is constant.
    - `batch`: sequences per step, `tokens`: context tokens that the query attends to (`inf` in the infinite-context theory).
    - `step`: what one step is, in words, where it is not one of SGD.
    """

    steps_per_unit: float = eqx.field(converter=float)
    learning_rate: Any = 1.0
    schedule: Schedule = eqx.field(default_factory=ConstantSchedule)
    batch: Any = 1.0
    tokens: Any = jnp.inf
    step: str = eqx.field(static=True, default="SGD step")

    def __check_init__(self) -> None:
        if not (np.isfinite(self.steps_per_unit) and self.steps_per_unit > 0):
            raise InputError(
                "steps_per_unit",
                expected="a positive number (tr Sigma)",
                got=self.steps_per_unit,
                remedy="pass tr Sigma",
            )

    @property
    def unit(self) -> str:
        """One unit of t in steps, e.g. "200 SGD steps"."""
        return f"{self.steps_per_unit:g} {self.step}{'' if self.steps_per_unit == 1 else 's'}"

    def steps(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """SGD steps at time t."""
        return jnp.asarray(t) * self.steps_per_unit

    def t_of_steps(self, step: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Time t after `step` SGD steps."""
        return jnp.asarray(step) / self.steps_per_unit

    def tau(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Intrinsic time int_0^t eta dt'."""
        return self.learning_rate * schedule_integral(self.schedule, jnp.asarray(t, dtype=float))

    def t_of_tau(self, tau: Real[ArrayLike, "..."]) -> Float[np.ndarray, "..."]:
        """The t at which the intrinsic time reaches tau; refuses a tau that the schedule never reaches."""
        values = np.atleast_1d(np.asarray(tau, dtype=float))
        if not np.all(values >= 0):
            raise InputError("tau", expected="an intrinsic time >= 0", got=tau, remedy="it counts from t = 0")
        if isinstance(self.schedule, ConstantSchedule):
            return np.asarray(np.asarray(tau, dtype=float) / float(self.learning_rate))
        return np.array([self._solve_tau(value) for value in values]).reshape(np.shape(tau))

    def _solve_tau(self, tau: float) -> float:
        if tau == 0:
            return 0.0
        upper = max(tau / float(self.learning_rate), 1e-12)
        for _ in range(200):
            if float(self.tau(upper)) >= tau:
                return float(
                    scipy.optimize.brentq(lambda t: float(self.tau(t)) - tau, 0.0, upper, xtol=1e-14, rtol=1e-13)
                )
            upper *= 2
        raise InputError(
            "tau", expected="an intrinsic time that the schedule reaches", got=tau, remedy="ask for less, or change it"
        )

    def tokens_seen(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Tokens consumed up to t: steps * batch * (context tokens + 1 query); infinite in the infinite-context theory."""
        return self.steps(t) * self.batch * (self.tokens + 1)

    def to_t(self, value: Any, clock: str) -> Any:
        """Time t for a value given on `clock` in {"t", "steps", "tau", "tokens"}."""
        if clock == "t":
            return value
        if clock == "steps":
            return self.t_of_steps(value)
        if clock == "tau":
            return self.t_of_tau(value)
        if clock == "tokens" and np.isfinite(float(self.tokens)):
            return self.t_of_steps(jnp.asarray(value) / (self.batch * (self.tokens + 1)))
        raise InputError(
            "clock", expected=f"one of {', '.join(CLOCKS)}", got=clock, remedy="tokens need a finite context"
        )

    def from_t(self, t: Any, clock: str) -> Any:
        """The value on `clock` in {"t", "steps", "tau", "tokens"} at time t."""
        readers = {"t": lambda x: x, "steps": self.steps, "tau": self.tau, "tokens": self.tokens_seen}
        if clock not in readers:
            raise InputError("clock", expected=f"one of {', '.join(CLOCKS)}", got=clock, remedy="pick a listed clock")
        return readers[clock](t)

    def describe(self) -> str:
        """One line: what one unit of t is, in steps, intrinsic time and tokens."""
        tokens = (
            f"{self.steps_per_unit * float(self.batch) * (float(self.tokens) + 1):.6g} tokens"
            if np.isfinite(float(self.tokens))
            else "infinitely many tokens (infinite context)"
        )
        return f"one unit of t = {self.unit} = {float(self.tau(1.0)):.6g} of intrinsic time (at t = 0..1) = {tokens}"


_SCHEDULES: dict[str, tuple[type, int, int]] = {
    "constant": (ConstantSchedule, 0, 0),
    "power": (PowerSchedule, 1, 2),
    "growth": (GrowthSchedule, 1, 2),
    "cosine": (CosineSchedule, 1, 2),
    "wsd": (WarmupStableDecaySchedule, 3, 4),
    "step": (StepDownSchedule, 1, 2),
}


def parse_schedule(text: str) -> Schedule:
    """A schedule from its text: `constant`, `power:g[:onset]`, `growth:h[:onset]`, `cosine:total[:final]`,
    `wsd:warmup:start:end[:final]`, `step:at[:factor]`.

    Times are in units of t.
    """
    kind, *numbers = text.split(":")
    if kind in _SCHEDULES:
        build, least, most = _SCHEDULES[kind]
        values = _floats(numbers)
        if values is not None and least <= len(values) <= most:
            try:
                return build(*values)
            except InputError as error:
                raise InputError(
                    "schedule", expected=f"{error.argument}: {error.expected}", got=text, remedy=error.remedy
                ) from None
    raise InputError(
        "schedule",
        expected="constant, power:g[:onset], growth:h[:onset], cosine:total[:final], wsd:warmup:start:end[:final] or "
        "step:at[:factor]",
        got=text,
        remedy="times are in units of t",
    )


def _floats(texts: list[str]) -> list[float] | None:
    try:
        return [float(text) for text in texts]
    except ValueError:
        return None


def schedule_text(schedule: Schedule) -> str | None:
    """The text that `parse_schedule` reads back, or None for a callable of the user's own."""
    for kind, (build, _, _) in _SCHEDULES.items():
        if type(schedule) is build:
            return ":".join([kind, *(f"{float(leaf):.17g}" for leaf in jax.tree_util.tree_leaves(schedule))])
    return None
