"""Spikes of a training loss: which rows no noise explains, what they cost in tau, and whether the curve came back to its law."""

from __future__ import annotations

import equinox as eqx
import numpy as np
from jaxtyping import Float
from scipy.ndimage import median_filter
from scipy.optimize import brentq
from scipy.stats import t as student

from odescale.errors import InputError, require_number

WINDOW = 41
"""Rows of the running median that stands for the law; a spike of half of them is still outside it."""
KNOTS = 40
"""Bins of the coarse law under the running median."""
LEVEL = 0.01
"""Chance of a false spike in a whole log, under its own noise: at most, since the tail is drawn heavier than it is seen."""
LEAST_ROWS = 60
TAILS = (0.95, 0.5)
"""Quantiles of |residual| whose ratio gives the degrees of freedom of the noise."""
FEWEST, MOST = 2.5, 60.0
"""Degrees of freedom: heavier tails have no error bar, lighter ones are Gaussian."""
SCALE_ROWS = 8
"""Windows of the running median over which the noise's size is taken: it may fall as the loss does."""
RETURNED = 3.0
"""Standard errors within which a curve is back on its law."""


class Spike(eqx.Module):
    """One excursion above the law: rows from `first_step` to `last_step`, `height` above it, `surprise` its largest z.

    `cost`: int (L - law) dtau over it, in loss times the unit of `clock`. `delay`: how much tau later the curve afterwards
    reaches its losses than it would have, delta L / |dL/dtau|, with `delay_error`, one standard error; NaN where no rows
    follow. `returned`: whether the curve afterwards is within `RETURNED` standard errors of the law before; `back_at`: the first
    step below half the threshold.
    """

    first_step: float
    last_step: float
    height: float
    surprise: float
    cost: float
    delay: float
    delay_error: float
    returned: bool | None
    back_at: float | None


class Spikes(eqx.Module):
    """All of a log: `spikes` in order, `threshold` in units of the noise, its `dof`, the row-wise `law` and `noise` (n,)."""

    name: str = eqx.field(static=True)
    clock: str = eqx.field(static=True)
    spikes: tuple[Spike, ...]
    threshold: float
    dof: float
    law: Float[np.ndarray, " n"]
    noise: Float[np.ndarray, " n"]
    diverged_at: float | None

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.spikes)} spikes beyond {self.threshold:.1f} local standard deviations"
                 f" (noise of {self.dof:.0f} degrees of freedom)"]  # fmt: skip
        for spike in self.spikes[:12]:
            back = {
                True: "back on the law",
                False: "NOT back on the law",
                None: "too early to say whether it comes back",
            }[spike.returned]
            delay = "" if np.isnan(spike.delay) else f", delay {spike.delay:.3g} +- {spike.delay_error:.2g}"
            lines.append(
                f"    steps {spike.first_step:g} to {spike.last_step:g}: +{spike.height:.3g}, "
                f"cost {spike.cost:.3g} (loss x {self.clock}){delay}; {back}"
            )
        lines += [f"    and {len(self.spikes) - 12} more"] if len(self.spikes) > 12 else []
        lines += [] if self.diverged_at is None else [f"    DIVERGED from step {self.diverged_at:g} on"]
        return "\n".join(lines)


def find_spikes(
    step: Float[np.ndarray, " n"],
    loss: Float[np.ndarray, " n"],
    *,
    tau: Float[np.ndarray, " n"] | None = None,
    level: float = LEVEL,
    name: str = "run",
) -> Spikes:
    """z_i = (L_i - median(L)_i) / s_i > F^-1(1 - level/n): rows that the log's own noise would give once in 1/level logs.

    The median runs over `WINDOW` rows; s_i is 1.4826 times the median of |L - median| over `SCALE_ROWS` windows, so that noise may
    shrink with the loss; F is Student's t, scaled to the positive z, whose degrees of freedom are those of their quantiles
    `TAILS`. The median is that of loss minus a coarse law, medians of bins in log(step).
    Rows beyond the threshold that are less than half a window apart are one spike; it ends where z falls below half of it.

    **Arguments**: `step` (n,) SGD steps, increasing; `loss` (n,) as logged, not smoothed (a smoothed one has no noise to compare
    with); `tau` (n,) intrinsic time, one unit 1/eta SGD steps; without it costs and delays are in SGD steps. `level`: chance of a
    false spike in the whole log.

    **Returns** `Spikes`; `diverged_at` is the step from which on the loss stays beyond the threshold to the end over more than
    a window, or is not finite.

    **Errors**: `InputError` for fewer than `LEAST_ROWS` finite rows. **Failure regime**: the first half window is not judged;
    a spike longer than half a window is a step
    of the median and found at its edges only; a warm-up bump or a drop of the rate is followed by the median and is none.

    **Source**: running-median outliers as in Hampel, JASA 69, 383 (1974); family-wise level by Bonferroni.

    >>> import numpy as np
    >>> from odescale.laws import find_spikes
    >>> step = np.arange(1.0, 401.0)
    >>> loss = 2 + 3 * step**-0.3 + 0.01 * np.random.default_rng(0).normal(size=400)
    >>> loss[200:204] += 0.5
    >>> [(s.first_step, s.last_step, s.returned) for s in find_spikes(step, loss).spikes]
    [(201.0, 204.0, True)]
    """
    require_number("level", level, open_=True)
    if not level < 1:
        raise InputError("level", expected="a chance below 1", got=level, remedy="e.g. .01")
    step, loss = np.asarray(step, dtype=float), np.asarray(loss, dtype=float)
    finite = np.isfinite(loss)
    if step.shape != loss.shape or finite.sum() < LEAST_ROWS:
        raise InputError("loss", expected=f"{LEAST_ROWS} finite rows or more, one a step",
                         got=f"{int(finite.sum())} of shape {loss.shape}",
                         remedy="log more often, or wait")  # fmt: skip
    clock = np.asarray(tau if tau is not None else step, dtype=float)
    if clock.shape != step.shape:
        raise InputError("tau", expected=f"shape {step.shape}", got=clock.shape, remedy="log.tau()")
    blown = None if finite.all() or finite[-1] else float(step[np.flatnonzero(finite)[-1] + 1])
    step, loss, clock = step[finite], loss[finite], clock[finite]
    coarse = _coarse(step, loss)
    law = coarse + _running_median(loss - coarse, WINDOW)
    residual = loss - law
    noise = 1.4826 * _running_median(np.abs(residual), WINDOW * SCALE_ROWS)
    # Rounded losses repeat: less than the last printed digit is no noise.
    noise = np.maximum(noise, max(_digit(loss), 1e-12))
    z = residual / noise
    z[: WINDOW // 2] = 0.0  # the first fall is steeper than its knots, and no spike
    # The upper side alone: a logged loss is skewed upwards, and so is what would be taken for a spike.
    upper = z[z > 0]
    dof = _degrees(upper)
    threshold = float(student.isf(level / step.size, dof) / student.ppf(0.75, dof) * np.median(upper))
    spikes = [_spike(step, loss, clock, law, noise, z, group) for group in _groups(z, threshold)]
    diverged = blown
    # The median follows what lasts longer than half of it: growth to the end shows against the best that was reached.
    best = np.minimum.accumulate(law)
    above = (law - best) > threshold * noise
    if diverged is None and above[-1]:
        begin = int(np.flatnonzero(~above)[-1]) + 1 if (~above).any() else 0
        if step.size - begin > WINDOW and loss[begin:].mean() > loss[max(0, begin - WINDOW) : begin].mean():
            diverged = float(step[begin])
    return Spikes(name, "SGD steps" if tau is None else "tau", tuple(spikes), threshold, dof, law, noise, diverged)


def _coarse(step: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Medians of bins at equal distances in log(step), joined: what falls steeply within a window is no noise."""
    edges = np.unique(np.geomspace(5, step.size, KNOTS).astype(int))
    parts = np.split(np.arange(step.size), edges[:-1])
    where = np.log(step + 1.0)
    knots = np.array([[where[part].mean(), np.median(loss[part])] for part in parts if part.size])
    return np.interp(where, knots[:, 0], knots[:, 1])


def _running_median(values: np.ndarray, width: int) -> np.ndarray:
    width = min(width, values.size - (values.size + 1) % 2)
    return median_filter(values, size=width | 1, mode="reflect")


def _digit(loss: np.ndarray) -> float:
    """Half of the smallest difference of two different losses: the resolution of what was printed."""
    steps = np.diff(np.unique(loss))
    return 0.5 * float(steps.min()) if steps.size else 0.0


def _degrees(size: np.ndarray) -> float:
    """Degrees of freedom of the t whose quantiles of |z| have the ratio of those seen."""
    high, middle = np.quantile(size, TAILS)
    seen = high / middle if middle > 0 else np.inf

    def excess(dof: float) -> float:
        return student.ppf(0.5 + TAILS[0] / 2, dof) / student.ppf(0.5 + TAILS[1] / 2, dof) - seen

    if excess(MOST) >= 0:
        return MOST
    return FEWEST if excess(FEWEST) <= 0 else float(brentq(excess, FEWEST, MOST))


def _groups(z: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """First and last row of every spike: beyond the threshold, joined over gaps of less than half a window, to z = threshold/2."""
    rows = np.flatnonzero(z > threshold)
    groups: list[list[int]] = []
    for row in rows:
        if groups and row - groups[-1][1] < WINDOW // 2:
            groups[-1][1] = int(row)
        else:
            groups.append([int(row), int(row)])
    result = []
    for begin, end in groups:
        while begin > 0 and z[begin - 1] > threshold / 2:
            begin -= 1
        while end + 1 < z.size and z[end + 1] > threshold / 2:
            end += 1
        result.append((begin, end))
    return result


def _spike(
    step: np.ndarray, loss: np.ndarray, clock: np.ndarray, law: np.ndarray, noise: np.ndarray, z: np.ndarray, rows: tuple[int, int]
) -> Spike:  # fmt: skip
    begin, end = rows
    inside = slice(begin, end + 1)
    gaps = np.diff(clock, prepend=clock[0])
    cost = float(np.sum((loss - law)[inside] * gaps[inside]))
    before, after = slice(max(0, begin - WINDOW), begin), slice(end + 1, end + 1 + WINDOW)
    delay = error = float("nan")
    returned = None
    if begin >= WINDOW // 2 and loss[after].size >= WINDOW // 2:
        # One line in log(step) on both sides, and a step between them: what the spike left behind.
        x = np.log(np.concatenate([step[before], step[after]]) + 1.0)
        y = np.concatenate([loss[before], loss[after]])
        jump = np.concatenate([np.zeros(loss[before].size), np.ones(loss[after].size)])
        design = np.stack([np.ones(x.size), x - x.mean(), jump], axis=1)
        solution, *_ = np.linalg.lstsq(design, y, rcond=None)
        scatter = float(np.sqrt(np.sum((y - design @ solution) ** 2) / (y.size - 3)))
        shift, shift_error = float(solution[2]), scatter * float(np.sqrt(np.linalg.inv(design.T @ design)[2, 2]))
        returned = bool(shift < RETURNED * shift_error)
        slope = (
            abs(float(solution[1]))
            / (step[end] + 1.0)
            * float(gaps[inside].mean() / np.diff(step, prepend=0.0)[inside].mean()) ** -1
        )
        if slope > 0:
            delay, error = shift / slope, shift_error / slope
    back = float(step[end + 1]) if end + 1 < step.size else None
    return Spike(
        float(step[begin]), float(step[end]), float((loss - law)[inside].max()), float(z[inside].max()),
        cost, delay, error, returned, back,
    )  # fmt: skip
