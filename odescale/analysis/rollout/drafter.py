"""The slow map of a drafter fitted to measured misalignments: how fast it learns, how far the target moves, what comes next."""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from odescale.analysis.phases.bootstrap import block_length, student_factor
from odescale.analysis.rollout.map_checks import checks_of, words_of
from odescale.analysis.rollout.slow_map import Series, gains, generate, innovations, minimise
from odescale.errors import MOST_DRAWS, InputError, require_number, whole
from odescale.precision import require_x64

Numbers = Real[ArrayLike, "..."] | Sequence[float]

LEAST_STEPS = 12
STARTS = (-4.0, -2.5, -1.0, 0.5)  # log(r mean idle)
ITERATIONS, REFITS = 40, 12  # of Newton's method: from a rough start, and from the fit to a resampled series
FUTURES = 16  # per draw of the parameters
OPEN = 4.0  # r is not told where its interval spans more than this factor


class Forecast(eqx.Module):
    """Observed kappa of steps to come, (n,) each: middle and interval before and after the idle phase."""

    before: Float[np.ndarray, " n"]
    before_low: Float[np.ndarray, " n"]
    before_high: Float[np.ndarray, " n"]
    after: Float[np.ndarray, " n"]
    after_low: Float[np.ndarray, " n"]
    after_high: Float[np.ndarray, " n"]

    def covered(self, before: Numbers, after: Numbers) -> float:
        """Share of the measured values (n,) that lie in the intervals, befores and afters together."""
        inside = [
            (low <= np.asarray(value)) & (np.asarray(value) <= high)
            for value, low, high in (
                (before, self.before_low, self.before_high), (after, self.after_low, self.after_high)
            )
        ]  # fmt: skip
        return float(np.mean(inside))


class DrafterFit(eqx.Module):
    r"""kappa_after = kappa_inf + (kappa_before - kappa_inf) e^(-r idle),  kappa_before of the next step = kappa_after + delta.

    - `r`: per unit of the `idle` given (per drafter gradient step, or per second). `kappa_inf`, `delta` (per update of the
      target): nats.
    - `r_interval`, `kappa_inf_interval`, `delta_interval`: at `level`.
    - `noise`: standard deviation of a measured kappa around the true one; `drift`: of delta from step to step.
    - `identified`: whether the interval of r spans less than a factor of 4. If not, idle hardly varied and kappa hardly moved: only
      r (kappa - kappa_inf) is known, r and kappa_inf are not.
    - `checks`: chance of what was seen if the map holds, by name; `verdict`: in words.
    """

    r: float
    kappa_inf: float
    delta: float
    r_interval: tuple[float, float]
    kappa_inf_interval: tuple[float, float]
    delta_interval: tuple[float, float]
    noise: float
    drift: float
    level: float
    identified: bool
    checks: dict[str, float]
    verdict: str = eqx.field(static=True)
    scale: float
    mean_idle: float
    draws: Float[np.ndarray, "draws 7"]
    series: Series
    shocks: Float[np.ndarray, "n 2"]
    seed: int = eqx.field(static=True)

    def fixed_point(self, idle: float) -> float:
        """kappa_inf + delta/(e^(r idle) - 1): after idle phases of this constant length; before them it is delta more."""
        idle = require_number("idle", idle, open_=True)
        return self.kappa_inf + self.delta / np.expm1(self.r * idle)

    def forecast(self, steps: int, idle: Numbers) -> Forecast:
        """The `steps` after the fitted ones, with `idle` units each, a number or (steps,): median and interval at `level`.

        The intervals hold what one will measure: noise of the measurement, drift of the steps, and uncertainty of the fit. Not
        that the map may change: read `verdict`. **Raises** `InputError`.
        """
        steps = whole("steps", steps)
        pauses = _idle(idle, steps) / self.mean_idle
        rng = np.random.default_rng(self.seed + 1)
        theta = np.repeat(self.draws, FUTURES, axis=0)
        gain, P = gains(theta, np.asarray(self.series.idle), None)
        _, m = innovations(theta, self.series, gain)
        ahead, _ = gains(theta, pauses, P)
        z = _blocks(self.shocks, steps, len(theta), rng)
        parts = []
        for values in generate(theta, ahead, m, z):
            low, middle, high = np.quantile(
                self.scale * values, [(1 - self.level) / 2, 0.5, (1 + self.level) / 2], axis=1
            )
            parts += [middle, low, high]
        return Forecast(*parts)

    def __str__(self) -> str:
        rows = [("r per idle unit", self.r, self.r_interval), ("kappa_inf, nats", self.kappa_inf, self.kappa_inf_interval),
                ("delta per update, nats", self.delta, self.delta_interval)]  # fmt: skip
        lines = [f"{name:24s}{value:.4g}  [{low:.4g}, {high:.4g}]" for name, value, (low, high) in rows]
        return "\n".join([*lines, self.verdict])


def fit_drafter(
    before: Numbers,
    after: Numbers,
    idle: Numbers,
    *,
    level: float = 0.95,
    draws: int = 200,
    seed: int = 0,
) -> DrafterFit:
    r"""x' = kappa_inf + (x - kappa_inf) e^(-r idle) + delta + drift, x seen in noise: r, kappa_inf, delta of greatest likelihood.

    The state is scalar and the map linear in it, so a Kalman filter gives the likelihood exactly. Intervals: the filter's
    standardised innovations are resampled in blocks, since what the map misses stays for some steps, and the map is fitted to
    every series made of them. **Never from independent rows**: kappa is autocorrelated, and a regression of `after` on `before`
    would be biased by the noise of `before`.

    **Arguments**

    - `before`, `after` (n,), n >= 12: kappa = KL(target || drafter) >= 0 of consecutive steps, measured before and after the
      idle phase (on the same sequences or not, but on none that the drafter learnt from in that phase).
    - `idle`: >= 0, a number or (n,), in any unit: drafter gradient steps, seconds. Some of it > 0. r is per that unit.
    - `level` of the intervals, `draws` of the bootstrap, `seed`.

    **Returns** `DrafterFit`. **Raises** `InputError`.
    **Good values**: 50 steps or more whose idle times vary by a factor of three, or that begin far from the fixed point.
    **Failure regime**: constant idle at the fixed point leaves r and kappa_inf open (`identified`); a target that settles, so
    that delta or kappa_inf falls, ends the forecast (`verdict`). A drafter far from its floor approaches it at many rates (.13
    down to .005 per gradient step: `python -m benchmarks.speculative recovery`), and r is that of where it was. Source: Hu et
    al., arXiv 2511.16665, for the setting; Stoffer and Wall 1991, J. Amer. Statist. Assoc. 86, 1024, for resampled innovations.

    ```python
    import jax
    import numpy as np
    from odescale.analysis.rollout.drafter import fit_drafter
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    idle, x, rows = rng.uniform(2, 20, 80), 0.5, []
    for t in idle:
        after = 0.1 + (x - 0.1) * np.exp(-0.05 * t)
        rows.append(np.array([x, after]) + rng.normal(0, 0.01, 2))
        x = after + 0.05 + rng.normal(0, 0.005)
    print(fit_drafter(*np.transpose(rows), idle, draws=50))
    ```
    """
    require_x64("fit_drafter")
    level = require_number("level", level, 0.0, 1.0, open_=True)
    draws = whole("draws", draws, 20, MOST_DRAWS, remedy="200 is good")
    seed = whole("seed", seed, 0)
    b, a = _kappa("before", before), _kappa("after", after)
    if b.size != a.size:
        raise InputError("after", expected=f"as many as before, {b.size}", got=a.size, remedy="one pair a step")
    pauses = _idle(idle, b.size)
    if not pauses.any():
        raise InputError(
            "idle", expected="some idle units > 0", got="none", remedy="a frozen drafter has no r: nothing to fit"
        )
    if not np.any(b > 0):
        raise InputError("before", expected="kappa > 0 somewhere", got="all 0", remedy="the drafter is the target")
    if np.ptp(b) == 0 or np.ptp(a - b) == 0 and np.ptp(b[1:] - a[:-1]) == 0:
        raise InputError(
            "before", expected="measured values that vary", got="constants", remedy="nothing is told by them"
        )
    scale, mean_idle = float(b.mean()), float(pauses.mean())
    series = Series(b / scale, a / scale, pauses / mean_idle)
    theta = _fit(series)
    gain, _ = gains(theta[None], np.asarray(series.idle), None)
    shocks = innovations(theta[None], series, gain)[0][:, 0]
    inflated = _resampled_from(shocks)
    rng = np.random.default_rng(seed)
    found = _refit(theta, series, inflated, draws, rng)
    ends = [(1 - level) / 2, (1 + level) / 2]
    # As many independent values as blocks: few of them ask for Student's factor.
    wider = student_factor(max(len(inflated) // block_length(len(inflated)), 3))
    low, high = theta[:3] + wider * (np.quantile(found[:, :3], ends, axis=0) - theta[:3])
    units = (lambda x: np.exp(x) / mean_idle, lambda x: scale * x, lambda x: scale * x)
    spans = [(float(unit(start)), float(unit(end))) for unit, start, end in zip(units, low, high, strict=True)]
    identified = spans[0][1] < OPEN * spans[0][0]
    checks = checks_of(shocks, np.asarray(series.idle))
    return DrafterFit(
        r=float(np.exp(theta[0])) / mean_idle, kappa_inf=float(scale * theta[1]), delta=float(scale * theta[2]),
        r_interval=spans[0], kappa_inf_interval=spans[1], delta_interval=spans[2],
        noise=float(scale * np.exp(theta[3])), drift=float(scale * np.exp(theta[5])), level=level, identified=identified,
        checks=checks, verdict=words_of(checks, identified), scale=scale, mean_idle=mean_idle, draws=found, series=series,
        shocks=inflated, seed=seed,
    )  # fmt: skip


def _kappa(name: str, values: Numbers) -> Float[np.ndarray, " n"]:
    try:
        array = np.asarray(values, float)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.ndim != 1 or array.size < LEAST_STEPS:
        raise InputError(
            name, expected=f"numbers (n,), n >= {LEAST_STEPS}", got=np.shape(values), remedy="one for each step"
        )
    if not (np.isfinite(array) & (array >= 0)).all():
        raise InputError(name, expected="finite KL divergences >= 0", got=array[~(np.isfinite(array) & (array >= 0))][0],
                         remedy="a drafter that bans what the target says has kappa = inf: ban it in both")  # fmt: skip
    return array


def _idle(idle: Numbers, steps: int) -> Float[np.ndarray, " n"]:
    try:
        array = np.asarray(idle, float)
    except (TypeError, ValueError):
        array = np.full(2, np.nan)
    if array.shape not in ((), (steps,)) or not (np.isfinite(array) & (array >= 0)).all():
        raise InputError(
            "idle", expected=f"units >= 0, a number or ({steps},)", got=idle, remedy="e.g. drafter gradient steps"
        )
    return np.broadcast_to(array, steps).copy()


def _fit(series: Series) -> Float[np.ndarray, " 7"]:
    """The best of several starts."""
    b, a, idle = (np.asarray(part) for part in series)
    fall, rise = float(np.mean(a - b)), b[1:] - a[:-1]
    size = np.log(max(float(np.std(rise)), 1e-6))
    steps = np.log(max(float(np.std(a - b)), 1e-6))
    starts = []
    for log_r in STARTS:
        closed = 1 - np.exp(-np.exp(log_r) * idle)
        level = 1 + fall / closed.mean()
        for noise, drift in ((0.0, -1.5), (-1.5, 0.0)):
            starts.append((log_r, max(level, -5.0), rise.mean(), size + noise, steps, size + drift, 0.9))
    repeated = Series(*(jnp.asarray(np.broadcast_to(part, (len(starts), part.size))) for part in (b, a, idle)))
    ends, values = (np.asarray(part) for part in minimise(jnp.asarray(starts), repeated, ITERATIONS))
    return ends[np.nanargmin(values)]


def _resampled_from(shocks: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "m 2"]:
    """Innovations to draw from: mean 0, and as large as before the seven numbers of the fit took their part. Not the first b."""
    kept = shocks[1:] - shocks[1:].mean(axis=0)
    rows = kept.size
    return kept * np.sqrt(rows / (rows - 7))


def _blocks(
    shocks: Float[np.ndarray, "m 2"], steps: int, draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "n draws 2"]:
    """Innovations of `steps` steps put together from blocks of neighbours, which begin anywhere; the series is closed to a ring."""
    length = block_length(len(shocks))
    count = -(-steps // length) + 1
    starts = rng.integers(0, len(shocks), (draws, count, 1))
    places = ((starts + np.arange(length)) % len(shocks)).reshape(draws, -1)
    offset = rng.integers(0, length, (draws, 1))
    places = np.take_along_axis(places, offset + np.arange(steps), axis=1)
    return shocks[places].transpose(1, 0, 2)


def _refit(
    theta: Float[np.ndarray, " 7"],
    series: Series,
    shocks: Float[np.ndarray, "m 2"],
    draws: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "draws 7"]:
    b, idle = np.asarray(series.before), np.asarray(series.idle)
    many = np.repeat(theta[None], draws, axis=0)
    gain, _ = gains(many, idle, None)
    # Blocks around their own mean vary too little by the share of one block in the series.
    wide = shocks / np.sqrt(1 - block_length(len(shocks)) / len(shocks))
    before, after = generate(many, gain, np.full(draws, b[0]), _blocks(wide, b.size, draws, rng))
    pauses = np.broadcast_to(idle, before.T.shape)
    made = Series(jnp.asarray(before.T), jnp.asarray(after.T), jnp.asarray(pauses))
    found, values = (np.asarray(part) for part in minimise(jnp.asarray(many), made, REFITS))
    return found[np.isfinite(values)]
