"""A logged loss curve with the learning rate that produced it, and its intrinsic time."""

from __future__ import annotations

import equinox as eqx
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from odescale.errors import InputError, require_number


def _series(value: ArrayLike) -> Float[np.ndarray, " n"]:
    return np.asarray(value, dtype=float)


def _maybe(value: ArrayLike | None) -> Float[np.ndarray, " n"] | None:
    return None if value is None else np.asarray(value, dtype=float)


class LossCurve(eqx.Module):
    """tau_i = tau_0 + sum_(j <= i) eta_j (step_j - step_(j-1)): one run's loss along steps and intrinsic time.

    **Fields**

    - `name`: of the run. `step` (n,): SGD steps, increasing, >= 0. `loss` (n,): finite, nats; all NaN for a planned run.
    - `learning_rate` (n,) or None: eta_i >= 0, in force on the interval that ends at step_i; eta_0 holds just before step_0. For
      a rate that changes between two logged steps this is its mean over the interval; see `curve_from_rates`.
    - `start_tau`: intrinsic time at step_0, warm-up included, in units of learning rate times SGD steps.
    - `tokens` (n,) or None: seen up to step_i. `parameters`: N of the network, or None.
    - `schedule_step`, `schedule_rate` (m,) or None: the same schedule on a finer grid that may begin earlier (warm-up) and end
      later: rate j is in force on the interval that ends at schedule_step_j. It takes over where both speak, and
      tau at step_0 stays `start_tau`.

    One unit of tau is 1/eta SGD steps. **Errors**: `InputError` for unequal shapes, decreasing steps, NaN, negative rates.
    """

    name: str = eqx.field(static=True)
    step: Float[np.ndarray, " n"] = eqx.field(converter=_series)
    loss: Float[np.ndarray, " n"] = eqx.field(converter=_series)
    learning_rate: Float[np.ndarray, " n"] | None = eqx.field(converter=_maybe, default=None)
    start_tau: float = eqx.field(converter=float, default=0.0)
    tokens: Float[np.ndarray, " n"] | None = eqx.field(converter=_maybe, default=None)
    parameters: float | None = None
    schedule_step: Float[np.ndarray, " m"] | None = eqx.field(converter=_maybe, default=None)
    schedule_rate: Float[np.ndarray, " m"] | None = eqx.field(converter=_maybe, default=None)

    def __check_init__(self) -> None:
        _increasing("step", self.step)
        for name in ("loss", "learning_rate", "tokens"):
            values = getattr(self, name)
            planned = name == "loss" and values is not None and bool(np.isnan(values).all())
            if values is not None and not planned:
                _finite(name, values, self.step.shape, negative=name == "loss")
        if not (np.isfinite(self.start_tau) and self.start_tau >= 0):
            raise InputError(
                "start_tau", expected="a number >= 0", got=self.start_tau, remedy="sum of rates up to step[0]"
            )
        if self.parameters is not None:
            require_number("parameters", self.parameters, open_=True)
        if (self.schedule_step is None) != (self.schedule_rate is None):
            raise InputError(
                "schedule_rate", expected="to be given with schedule_step", got=None, remedy="pass both or neither"
            )
        if self.schedule_step is not None and self.schedule_rate is not None:
            _increasing("schedule_step", self.schedule_step)
            _finite("schedule_rate", self.schedule_rate, self.schedule_step.shape, negative=False)
            if self.schedule_step[-1] < self.step[-1]:
                raise InputError(
                    "schedule_step", expected=f"to reach the last step, {self.step[-1]:g}",
                    got=float(self.schedule_step[-1]), remedy="extend it",
                )  # fmt: skip

    @property
    def planned(self) -> bool:
        """Whether the run has a schedule and no losses yet."""
        return bool(np.isnan(self.loss).all())

    @property
    def grid(self) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """(step, rate, tau): rate j holds on the interval ending at step j; every logged step is among them, up to the last.

        Steps before the first logged one are there only with a finer schedule that begins earlier.
        """
        if self.learning_rate is None and self.schedule_rate is None:
            raise InputError(
                "learning_rate", expected="a rate per logged step", got=None,
                remedy=f"curve {self.name!r}: pass it; intrinsic time needs it",
            )  # fmt: skip
        if self.schedule_step is None or self.schedule_rate is None:
            step, rate = self.step, np.asarray(self.learning_rate)
        else:
            step = np.union1d(self.schedule_step[self.schedule_step <= self.step[-1]], self.step)
            place = np.searchsorted(self.schedule_step, step)
            rate = self.schedule_rate[np.minimum(place, self.schedule_rate.size - 1)]
        tau = np.concatenate([[0.0], np.cumsum(rate[1:] * np.diff(step))])
        return step, rate, tau + self.start_tau - tau[np.searchsorted(step, self.step[0])]

    @property
    def tau(self) -> Float[np.ndarray, " n"]:
        """Intrinsic time at every logged step; `InputError` without a learning rate."""
        step, _, tau = self.grid
        return tau[np.searchsorted(step, self.step)]

    @property
    def rate(self) -> Float[np.ndarray, " n"]:
        """The rate just before every logged step."""
        step, rate, _ = self.grid
        return rate[np.searchsorted(step, self.step)]

    def between(self, first: float, last: float) -> LossCurve:
        """The part with first <= step <= last; its past, tau and schedule stay."""
        keep = (self.step >= first) & (self.step <= last)
        if not keep.any():
            raise InputError("first", expected="logged steps inside", got=(first, last), remedy="widen the window")
        finer_step, finer_rate = self.schedule_step, self.schedule_rate
        if finer_step is None and self.learning_rate is not None:
            finer_step, finer_rate = self.step, self.learning_rate
        start = float(self.tau[keep][0]) if finer_step is not None else self.start_tau

        def part(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[keep]

        return LossCurve(
            self.name, self.step[keep], self.loss[keep], part(self.learning_rate), start, part(self.tokens),
            self.parameters, finer_step, finer_rate,
        )  # fmt: skip


def curve_from_rates(
    name: str,
    step: ArrayLike,
    loss: ArrayLike,
    rate_at_step: ArrayLike,
    *,
    warmup: float = 0.0,
    jump: float = 0.2,
    tokens: ArrayLike | None = None,
    parameters: float | None = None,
) -> LossCurve:
    """A `LossCurve` from rates read at the logged steps themselves, as loggers write them.

    The rate of an interval is the mean of its ends, or that at its later end where the rate jumps by more than the share `jump`.
    Before step_0: linear warm-up from zero over `warmup` SGD steps, then the rate at step_0.

    **Arguments**: `step`, `loss`, `rate_at_step` (n,); `warmup`: steps, 0 <= warmup <= step_0 in the usual case; a run logged from
    within its warm-up has its own rates there.
    """
    steps, rates = _series(step), _series(rate_at_step)
    if rates.shape != steps.shape:
        raise InputError("rate_at_step", expected=f"shape {steps.shape}", got=rates.shape, remedy="one per logged step")
    _increasing("step", steps)
    mean = 0.5 * (rates[1:] + rates[:-1])
    jumps = np.abs(np.diff(rates)) > jump * np.maximum(rates[1:], rates[:-1])
    inside = steps[:-1] < warmup
    interval = np.concatenate([rates[:1], np.where(jumps & ~inside, rates[1:], mean)])
    rise = min(float(warmup), float(steps[0]))
    start = rates[0] * (0.5 * rise + max(float(steps[0]) - float(warmup), 0.0))
    # The warm-up itself in sixteen stairs: noise modes remember it.
    edges = np.linspace(0.0, rise, 17)[1:] if rise > 0 else np.zeros(0)
    stairs = rates[0] * (edges - 0.5 * rise / 16) / rise if rise > 0 else edges
    before = np.concatenate([[0.0], edges])
    early = before < steps[0]
    fine_step = np.concatenate([before[early], steps])
    fine_rate = np.concatenate([np.concatenate([[0.0], stairs])[early], interval])
    return LossCurve(name, steps, _series(loss), interval, start, _maybe(tokens), parameters, fine_step, fine_rate)


def planned_curve(name: str, step: ArrayLike, rate: ArrayLike, at: ArrayLike) -> LossCurve:
    """A run not yet made: rate_j in force on the interval that ends at step_j, the first one from step 0 on; losses NaN.

    **Arguments**: `step`, `rate` (m,), warm-up included; `at` (n,): the steps to forecast at, each one of `step`.
    """
    steps, rates, points = _series(step), _series(rate), _series(at)
    _increasing("step", steps)
    _finite("rate", rates, steps.shape, negative=False)
    place = np.searchsorted(steps, points)
    if not np.array_equal(steps[np.minimum(place, steps.size - 1)], points):
        raise InputError("at", expected="steps of the schedule", got=points, remedy="take them from `step`")
    tau = np.cumsum(rates * np.diff(steps, prepend=0.0))
    grid, values = np.concatenate([[0.0], steps]), np.concatenate([[0.0], rates])
    return LossCurve(
        name, points, np.full(points.size, np.nan), rates[place], float(tau[place[0]]), None, None, grid, values
    )


def _increasing(name: str, values: np.ndarray) -> None:
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all() or (np.diff(values) <= 0).any():
        raise InputError(
            name, expected="increasing finite numbers, shape (n,)", got=values, remedy="sort and mend them"
        )
    if values[0] < 0:
        raise InputError(name, expected="steps >= 0", got=values[0], remedy="count from the start of training")


def _finite(name: str, values: np.ndarray, shape: tuple[int, ...], *, negative: bool) -> None:
    if values.shape != shape or not np.isfinite(values).all() or (not negative and (values < 0).any()):
        kind = "finite numbers" if negative else "finite numbers >= 0"
        raise InputError(name, expected=f"{kind}, shape {shape}", got=values, remedy="one per step, without gaps")
