"""The transition of a sampled curve: a training run, several seeds, or a theory sampled where the run was."""

from __future__ import annotations

from typing import Any, Literal

import equinox as eqx
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from odescale.analysis.phases.bootstrap import (
    block_bootstrap,
    block_length,
    correlated_noise,
    memory_bootstrap,
    seed_bootstrap,
    student_factor,
)
from odescale.analysis.phases.exponents import (
    DENSE_POINTS,
    SmoothingSpline,
    bin_curve,
    check_curve,
    grid_in_words,
    spline_in_words,
)
from odescale.analysis.phases.fits import AIC_GAP, CurveFit, compare_models, fit_weights, refit_many
from odescale.analysis.phases.regimes import MIN_DEPTH, Transition, index_crossings, select_transition
from odescale.errors import InputError

# A curve that falls by less than this many e-folds is called constant: its p and q are rounding or noise.
LEAST_FALL = 1e-3


def find_transition_curve(
    t: ArrayLike,
    loss: ArrayLike,
    *,
    stderr: ArrayLike | None = None,
    estimator: Literal["spline", "fit"] = "spline",
    min_depth: float = MIN_DEPTH,
    irreducible: float = 0.0,
    window: tuple[float, float] | None = None,
    bootstrap: int = 200,
    seed: int = 0,
    time_unit: str = "t",
    smoothing: float | None = None,
    loss_start: float | None = None,
    min_aic_gap: float | None = AIC_GAP,
) -> Transition:
    """t_x = the down-crossing of q = 1/2 nearest before the maximum of p, from points of a curve, with 95 % interval.

    p and q come from a natural cubic smoothing spline of log L in log t ("spline") or from the fitted model with an
    exponential and a power law ("fit", see `fits`). Both are estimates on a grid: on 31 points of the quickstart's
    formula in S = 0.2 to 12 the spline gives 2.138, the exact root is 2.149. The record names estimator and grid;
    compare a run with the same estimate on the theory at the same points: pass the run's `transition.smoothing`.

    **Arguments**: `t (n,)` increasing, in any unit, said in `time_unit` (with what one unit is in SGD steps); `loss
    (n,)` or `(seeds, n)`, whose mean over seeds is analysed; more than 400 points are averaged in bins of log t.
    `stderr (n,)`: standard errors of a single `loss` row, all sources; with several rows their scatter is used instead
    and `stderr` only weighs the fit. `min_depth` in e-folds; `irreducible` is subtracted: wrong by 4 % of L(t_x) it
    moves t_x by 5 to 10 %. `window` = (from, to) in t. `bootstrap` draws (0: no interval, for a curve without noise),
    `seed` of their generator. `smoothing` (None: cross-validated). `loss_start`: L(0), `irreducible` included, when the
    curve begins later (default: its first value, which makes the depth a little too small). `min_aic_gap`: how much
    better than exponential + constant and power + constant the model with both terms must be (None: neither fitted
    nor demanded, for a theory curve; then t_eq is not known).

    **Interval**: 3 seeds or more: whole runs are redrawn, and widened by Student's factor. 2 seeds: blocks of half
    their difference, widened as for 2 degrees of freedom. One row: AR(1) noise with the memory that its residuals
    show (or noise of `stderr`), which knows nothing of the scatter between seeds; the record says so. Measured on 31 points
    with noise of 4 % whose neighbours are correlated by .7: 4 seeds cover 90 to 95 %, 2 seeds 97 % and more. On single SGD
    runs of a linear model (an exponential over 6 e-folds, then a power law; along the exponential log L is a random
    walk): spline 86 %, fit 64 %, since the fit holds the curve to its form.

    **Returns** `Transition`; `found` False with the reason when there is none. **Raises** `InputError` on NaN, losses
    not above `irreducible`, unsorted or repeated times, fewer than 8 points.
    """
    if estimator not in ("spline", "fit"):
        raise InputError("estimator", expected='"spline" or "fit"', got=estimator, remedy="spline is the default")
    if bootstrap != 0 and bootstrap < 20:
        raise InputError("bootstrap", expected="0 or at least 20 draws", got=bootstrap, remedy="200 is the default")
    curve = _prepare(t, loss, stderr, irreducible, window)
    start = _log_start(loss_start, irreducible, curve)
    if np.ptp(curve.log_mean) < LEAST_FALL:
        return Transition(
            found=False, t_x=None, depth=None, min_depth=min_depth, estimator=estimator, grid=curve.grid,
            time_unit=time_unit, reason="no exponential phase: the loss is constant in the window",
            window=(float(curve.t[0]), float(curve.t[-1])), fall=start - float(curve.log_mean[-1]),
        )  # fmt: skip
    fit, gap, fits = None, None, {}
    if estimator == "fit" or min_aic_gap is not None:
        fit, gap, fits = compare_models(curve.t, np.exp(curve.log_mean), stderr=curve.stderr)
    if estimator == "spline" or fit is None:
        estimate: _Spline | _Fit = _Spline(curve, smoothing)
    else:
        estimate = _Fit(curve, fit)
    dense = estimate.grid()
    log_loss, p, q = estimate.derivatives(curve.log_mean[None], dense)
    found = select_transition(
        dense, p[0], q[0], log_loss[0], log_loss_start=start, min_depth=min_depth, estimator=estimate.name,
        grid=curve.grid, time_unit=time_unit,
    )  # fmt: skip
    found = _with(found, aic_gap=gap, smoothing=estimate.smoothing)
    if not found.found:
        return found
    if min_aic_gap is not None and gap is not None and gap < min_aic_gap:
        return _refuse(found, fits, min_aic_gap)
    changes: dict[str, Any] = {"t_eq": fit.equal_terms() if fit is not None and fit.converged else None}
    caveats = []
    if isinstance(estimate, _Fit):
        parameters = estimate.fit.parameters
        changes |= {"exponential_rate": parameters["k"], "tail_exponent": parameters["beta"]}
        caveats = [] if estimate.fit.converged else [f"the fit did not settle: {estimate.fit.message}"]
    if bootstrap:
        deviations, widened, how = _deviations(curve, estimate, bootstrap, np.random.default_rng(seed))
        _, many_p, many_q = estimate.derivatives(curve.log_mean + deviations, dense)
        drawn = [_candidate(dense, *one) for one in zip(many_p, many_q, strict=True)]
        times = np.array([time for time in drawn if time is not None])
        caveats.append(how)
        if times.size < 0.8 * bootstrap:
            caveats.append(f"only {times.size} of {bootstrap} draws have a transition at all: no interval")
        else:
            low, lower, upper, high = np.quantile(times, [0.025, 0.1587, 0.8413, 0.975])
            changes["interval"] = (float(low), float(high))
            changes["stderr"] = float(upper - lower) / (2 * widened)
    return _with(found, caveat="; ".join(caveats), **changes)


class _Curve(eqx.Module):
    """A checked curve: excess losses on t > 0 inside the window, binned if long."""

    t: np.ndarray
    rows: np.ndarray
    log_mean: np.ndarray
    stderr: np.ndarray | None
    grid: str


class _Spline(eqx.Module):
    """log L, p, q of many curves by one spline of one smoothing."""

    spline: SmoothingSpline
    smoothing: float
    name: str

    def __init__(self, curve: _Curve, smoothing: float | None) -> None:
        self.spline = SmoothingSpline(np.log(curve.t))
        self.smoothing = self.spline.choose(curve.rows) if smoothing is None else float(smoothing)
        self.name = spline_in_words(self.smoothing, self.spline.degrees(self.smoothing))

    def grid(self) -> np.ndarray:
        # A natural spline has no curvature at its ends, hence q = 0 there whatever the curve: the outermost
        # intervals would show an exponential as ending.
        x = self.spline.x
        return np.geomspace(np.exp(x[1]), np.exp(x[-2]), DENSE_POINTS)

    def derivatives(self, log_losses: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, ...]:
        return self.spline.exponent_and_index(self.spline.smooth(log_losses, self.smoothing), np.log(at))

    def leaves(self, log_loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residual, and the matrix that takes noise to it."""
        # A cross-validated spline may follow correlated noise closely and leave no residual. At most half of the
        # points may be used up as degrees of freedom here.
        smoothing = max(self.smoothing, self.spline.with_degrees(log_loss.size / 2))
        smoother = self.spline.smooth(np.eye(log_loss.size), smoothing).T
        return log_loss - self.spline.smooth(log_loss, smoothing), np.eye(log_loss.size) - smoother


class _Fit(eqx.Module):
    """log L, p, q of many curves by one model, each fitted from where the first ended."""

    curve: _Curve
    fit: CurveFit
    name: str
    smoothing: None = None

    def __init__(self, curve: _Curve, fit: CurveFit) -> None:
        self.curve, self.fit = curve, fit
        self.name = f"least-squares fit of the {fit.model} model to log L"

    def grid(self) -> np.ndarray:
        return np.geomspace(self.curve.t[0], self.curve.t[-1], DENSE_POINTS)

    def derivatives(self, log_losses: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, ...]:
        fits = [self.fit] if len(log_losses) == 1 else refit_many(self.fit, self.curve.t, log_losses, self.curve.stderr)
        return tuple(np.stack(part) for part in zip(*(one.exponent_and_index(at) for one in fits), strict=True))

    def leaves(self, log_loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residual, and the matrix that takes noise to it."""
        weights = fit_weights(self.curve.t, np.exp(log_loss), self.curve.stderr)
        jacobian = self.fit.jacobian(self.curve.t)
        inside = jacobian @ np.linalg.pinv(np.sqrt(weights)[:, None] * jacobian) * np.sqrt(weights)
        return log_loss - self.fit.log_loss(self.curve.t), np.eye(log_loss.size) - inside


def _prepare(t, loss, stderr, irreducible: float, window: tuple[float, float] | None) -> _Curve:
    times, rows = check_curve(t, loss, irreducible=irreducible)
    inside = times > 0
    if window is not None:
        inside &= (times >= window[0]) & (times <= window[1])
    if int(inside.sum()) < 8:
        raise InputError("window", expected="at least 8 points inside", got=int(inside.sum()), remedy="widen it")
    raw, error = int(inside.sum()), None
    if stderr is not None:
        error = np.asarray(stderr, dtype=float)
        if error.shape != times.shape or not np.isfinite(error).all() or (error < 0).any() or not error.max() > 0:
            raise InputError("stderr", expected=f"{times.size} finite errors >= 0, not all 0",
                             got=f"shape {error.shape}", remedy="leave it out")  # fmt: skip
        error = error[inside]
    short, binned = bin_curve(times[inside], rows[:, inside])
    if error is not None and short.size < raw:
        # Neighbouring errors of one run are correlated: averaging them in a bin makes them no smaller.
        error = bin_curve(times[inside], error[None])[1][0]
    seeds = rows.shape[0]
    return _Curve(short, binned, np.log(binned.mean(axis=0)), error, grid_in_words(short, seeds, raw))


def _log_start(loss_start: float | None, irreducible: float, curve: _Curve) -> float:
    if loss_start is None:
        return float(curve.log_mean[0])
    if not (np.isfinite(loss_start) and loss_start > irreducible):
        raise InputError("loss_start", expected="finite, above irreducible", got=loss_start, remedy="pass L(0)")
    return float(np.log(loss_start - irreducible))


def _refuse(found: Transition, fits: dict[str, CurveFit], demanded: float) -> Transition:
    rivals = [name for name in fits if name not in ("two-term", "escape+power")]
    best = min(rivals, key=lambda name: fits[name].aic)
    reason = (
        f"no exponential-to-power transition: {found.reason}, but an exponential and a power law describe the curve "
        f"better than {best} by an AIC gap of {found.aic_gap:.1f} only (at least {demanded:g} demanded)"
    )
    gone = ("t_x", "exponential_rate", "tail_exponent", "conditioning", "finite_size_cutoff")
    return _with(found, found=False, reason=reason, **dict.fromkeys(gone))


def _deviations(
    curve: _Curve, estimate: _Spline | _Fit, draws: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "draws n"], float, str]:
    """Deviations of log L for the bootstrap, by how much they were widened, and the same in words."""
    seeds, n = curve.rows.shape
    if seeds >= 3:
        factor = student_factor(seeds)
        return factor * seed_bootstrap(curve.rows, draws, rng), factor, f"interval by bootstrap over {seeds} seeds"
    if seeds == 2 and (curve.rows > 0).all():
        # The spread of the mean of two is half their difference; Student's factor for its single degree of freedom
        # (6.5) would hold for a common shift only, blocks along the curve add degrees: that for two is a compromise.
        factor = student_factor(3)
        half = 0.5 * (np.log(curve.rows[0]) - np.log(curve.rows[1]))
        noise = block_bootstrap(half, draws, rng, max(block_length(n), n // 5))
        return factor * noise, factor, "interval by blocks of the difference of 2 seeds: indicative, run 4 or more"
    if curve.stderr is not None:
        noise = correlated_noise(curve.stderr / np.exp(curve.log_mean), draws, rng, block_length(n))
        return noise, 1.0, f"interval from the given standard errors, correlated over {block_length(n)} points"
    residual, projection = estimate.leaves(curve.log_mean)
    how = "interval from the residuals of one curve and their memory: it holds nothing of the scatter between seeds"
    return memory_bootstrap(residual, projection, draws, rng), 1.0, how


def _candidate(t: np.ndarray, p: np.ndarray, q: np.ndarray) -> float | None:
    """The selected crossing without the demands on depth: refused draws would cut the interval off on one side."""
    down = [time for time, direction in index_crossings(t, q) if direction == "down" and time <= t[np.argmax(p)]]
    return down[-1] if down else None


def _with(record: Transition, **changes: Any) -> Transition:
    return Transition(**{name: getattr(record, name) for name in record.__dataclass_fields__} | changes)
