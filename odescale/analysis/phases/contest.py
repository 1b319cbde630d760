"""Which model of `shapes` the points of a loss curve prefer, on equal terms, and the phases that it has.

Every model is fitted to log L with AR(1) errors of its own memory rho and size sigma,

    -2 log likelihood = n log(sum_i e_i^2/n) - log(1 - rho^2),   e_i = (r_i - rho r_(i-1))/s_i,   r = residual of log L,

and weighed by the Akaike criterion with its small-sample term. Names are those of the fitted curves' phases: two models of one name
do not compete. An answer is given only where no model of another name comes within `AIC_GAP` of the best, and where the name
survives the uncertainty of the parameters; otherwise the curve "cannot be told apart", with the names in question.
Source: H. Akaike, IEEE Trans. Autom. Control 19 (1974) 716; C. M. Hurvich and C.-L. Tsai, Biometrika 76 (1989) 297.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np
import scipy
from jaxtyping import Float
from scipy import special

from odescale.analysis.phases.bootstrap import autocorrelation, residual_memory
from odescale.analysis.phases.shapes import MODELS, bounds, derivatives, evaluate, evaluate_rows, parameters
from odescale.analysis.phases.starts import starting_points
from odescale.analysis.phases.stretches import Cutter, Phases, Thresholds
from odescale.errors import SolveError

AIC_GAP = 10.0
SAFE_GAP = 100.0
"""Up to this lead a model that misses the points by five times as much needs no second look."""
DRAWS = 40
AGREE = 0.95
GRID = 240
MOST_MEMORY = 0.98
SCALE_SEEDS = 4
"""Seeds from which on their scatter tells how the noise changes along the curve."""
# Residuals below this in log L are those of the optimiser: no model is preferred for having stopped later.
LEAST_RESIDUAL = 1e-6
UNDECIDED = "cannot be told apart"


class CurveFit(eqx.Module):
    """One fitted model: `terms` with the optimiser's `vector`, AR(1) `memory` and innovation size `sigma`, `aic`, `rms` of log L.

    `residual (n,)` of log L; `jacobian (n, k)` of log L in the vector; `phases` are those of the fitted curve.
    """

    model: str
    vector: np.ndarray
    memory: float
    sigma: float
    aic: float
    rms: float
    residual: np.ndarray
    jacobian: np.ndarray
    phases: Phases

    @property
    def terms(self) -> tuple[str, ...]:
        return MODELS[self.model]

    def log_loss(self, t: Any) -> np.ndarray:
        """log L of the fit at times t >= 0."""
        return evaluate(self.terms, self.vector, np.asarray(t, dtype=float))[0]

    def exponent_and_index(self, t: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(log L, p, q) of the fit at times t > 0."""
        return derivatives(self.terms, self.vector, np.asarray(t, dtype=float))

    def parameters(self) -> list[dict[str, float]]:
        """By term: a, k (per unit of t), beta, tau, g, t_e."""
        return parameters(self.terms, self.vector)


class Contest(eqx.Module):
    """The outcome: `fits` of all models in order of AIC, `name` of the whole, and what could not be told apart.

    `weights`: Akaike weights by name; `contenders`: the names that remain (one: the answer). `gap`: AIC of the best model of
    another name minus that of the best. `deciding`: what would tell, in words. `covariance (k, k)` of the best model's vector, for
    noise with
    the memory that its residuals show (those of several seeds if there are any); `degrees`: effective degrees of freedom behind it.
    """

    fits: tuple[CurveFit, ...]
    name: str
    contenders: tuple[str, ...]
    weights: dict[str, float]
    gap: float
    deciding: str
    covariance: np.ndarray
    degrees: float

    @property
    def best(self) -> CurveFit:
        return self.fits[0]

    @property
    def decided(self) -> bool:
        return len(self.contenders) == 1


def hold_contest(
    t: Float[np.ndarray, " n"],
    log_loss: Float[np.ndarray, " n"],
    *,
    deviations: Float[np.ndarray, "s n"] | None = None,
    scale: Float[np.ndarray, " n"] | None = None,
    log_loss_start: float | None = None,
    thresholds: Thresholds | None = None,
    gap: float = AIC_GAP,
    seed: int = 0,
    only: str | None = None,
) -> Contest:
    """Fits every model of `shapes.MODELS` to y = log L at t > 0 and compares them by the names of their phases.

    **Arguments**: `deviations (seeds, n)`: log of each seed minus log of their mean: memory and size of the noise are then theirs.
    `scale (n,)`: relative size of the noise along the curve (1). `gap`: AIC by which the best must lead. `seed`: of the draws.
    `only`: fit this model alone and ask for no lead.
    """
    limits = Thresholds() if thresholds is None else thresholds
    t, y = np.asarray(t, dtype=float), np.asarray(log_loss, dtype=float)
    if deviations is not None and np.abs(deviations).max() < LEAST_RESIDUAL:
        deviations = None  # seeds of a curve without noise tell nothing
    s = np.ones(t.size) if scale is None else np.asarray(scale, dtype=float)
    if deviations is not None and len(deviations) >= SCALE_SEEDS:
        s = _scale_of(deviations)
    s = s / s.min()
    known = None if deviations is None or len(deviations) < 2 else _memory_of(deviations / s)
    grid = np.geomspace(t[0], t[-1], GRID)
    rho = known or 0.0
    found = {}
    for model, starts in starting_points(t, y, (only,) if only else tuple(MODELS)).items():
        if starts:
            walls = bounds(MODELS[model], t, y)
            tried = [_least_squares(MODELS[model], start, t, y, s, rho, walls) for start in starts]
            found[model] = min(tried, key=lambda pair: pair[1])
    if not found:
        raise SolveError(f"the model {only} has no term that falls within the window")
    # A model that misses the points by five times as much as another is out of the contest, whatever the memory of the noise.
    most = 25 * max(min(cost for _, cost in found.values()), t.size * LEAST_RESIDUAL**2)
    fits = [
        _fit(model, vector, t, y, s, known, grid, log_loss_start, limits)
        for model, (vector, cost) in found.items()
        if cost <= most or only or gap > SAFE_GAP
    ]
    fits.sort(key=lambda fit: fit.aic)
    best = fits[0]
    covariance, degrees = _covariance(best, t, y, s, deviations)
    names = {stem(best.phases.name): 0.0}
    for fit in fits:
        names.setdefault(stem(fit.phases.name), fit.aic - best.aic)
    lead = min([distance for name, distance in names.items() if name != stem(best.phases.name)], default=np.inf)
    contenders = [name for name, distance in names.items() if distance < gap]
    shares = {} if only else _drawn_names(best, covariance, degrees, t, s, grid, log_loss_start, limits, seed)
    if only is None and shares.get(stem(best.phases.name), 0.0) < AGREE:
        contenders += [name for name, share in shares.items() if share > 1 - AGREE and name not in contenders]
    raw = np.exp(-0.5 * np.array([min(fit.aic - best.aic, 1400.0) for fit in fits]))
    weights: dict[str, float] = {}
    for fit, weight in zip(fits, raw / raw.sum(), strict=True):
        weights[fit.phases.name] = weights.get(fit.phases.name, 0.0) + float(weight)
    name = best.phases.name if len(contenders) == 1 else UNDECIDED
    rival = next((fit for fit in fits if stem(fit.phases.name) != stem(best.phases.name)), None)
    deciding = "" if len(contenders) == 1 else _deciding(best, rival, t, contenders, names, gap)
    return Contest(tuple(fits), name, tuple(contenders), weights, float(lead), deciding, covariance, float(degrees))


def stem(name: str) -> str:
    """What a name claims: a floor at the end, or none, does not make another curve of what comes before it."""
    return name.removesuffix(", then a floor").removesuffix(" to the end")


def _scale_of(deviations: np.ndarray) -> np.ndarray:
    """Size of the noise along the curve, from the scatter of the seeds over neighbouring points; within a factor of ten."""
    n = deviations.shape[1]
    width = np.ones(2 * max(n // 16, 2) + 1)
    local = np.convolve((deviations**2).mean(axis=0), width, mode="same") / np.convolve(np.ones(n), width, mode="same")
    size = np.sqrt(local)
    return np.maximum(size, 0.1 * size.max())


def _memory_of(deviations: np.ndarray) -> float:
    """AR(1) memory of rows of noise, with the bias of its estimate put back."""
    centred = deviations - deviations.mean(axis=1, keepdims=True)
    total = float((centred**2).sum())
    rho = float((centred[:, 1:] * centred[:, :-1]).sum()) / total if total > 0 else 0.0
    return float(np.clip(rho + (1 + 3 * rho) / deviations.shape[1], 0.0, MOST_MEMORY))


def _whitened(values: np.ndarray, s: np.ndarray, rho: float) -> np.ndarray:
    """Innovations of values along their first axis."""
    scaled = (values.T / s).T
    out = np.empty_like(scaled)
    out[0] = scaled[0] * np.sqrt(1 - rho**2)
    out[1:] = scaled[1:] - rho * scaled[:-1]
    return out


def _least_squares(terms, start, t, y, s, rho: float, limits: np.ndarray, most: int = 60) -> tuple[np.ndarray, float]:
    low, high = limits[:, 0], limits[:, 1]
    n, k = t.size, len(limits)
    last: list[Any] = [None, None]
    first, inverse = np.sqrt(1 - rho**2), 1 / s

    def both(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # MINPACK asks for the Jacobian where it has just asked for the residual.
        key = v.tobytes()
        if last[0] != key:
            last[:] = key, evaluate_rows(terms, v, t)
        return last[1]

    def whiten(rows: np.ndarray, out: np.ndarray) -> None:
        """`_whitened` along the last axis."""
        scaled = rows * inverse
        out[..., 0] = scaled[..., 0] * first
        np.subtract(scaled[..., 1:], rho * scaled[..., :-1], out=out[..., 1:])

    def residual(v: np.ndarray) -> np.ndarray:
        out = np.empty(n + k)
        whiten(both(v)[0] - y, out[:n])
        # A wall of the noise's own size keeps what the points do not determine within reach.
        out[n:] = 0.3 * (np.maximum(v - high, 0.0) - np.maximum(low - v, 0.0))
        return out

    def jacobian(v: np.ndarray) -> np.ndarray:
        out = np.zeros((k, n + k))
        whiten(both(v)[1], out[:, :n])
        out[np.arange(k), n + np.arange(k)] = 0.3 * ((v > high) | (v < low))
        return out

    with np.errstate(over="ignore", invalid="ignore"):
        vector, _, info, _, _ = scipy.optimize.leastsq(
            residual, np.clip(start, low, high), Dfun=jacobian, col_deriv=True, full_output=True, maxfev=most,
            xtol=1e-9, ftol=1e-9,
        )  # fmt: skip
    cost = float(info["fvec"] @ info["fvec"])
    return (vector, cost) if np.isfinite(vector).all() and np.isfinite(cost) else (np.asarray(start), np.inf)


def _fit(model, vector, t, y, s, known: float | None, grid, log_loss_start, thresholds) -> CurveFit:
    terms = MODELS[model]
    limits = bounds(terms, t, y)
    rho = known or 0.0
    if known is None:
        for _ in range(3):
            value, _ = evaluate(terms, vector, t)
            before = rho
            rho = float(np.clip(autocorrelation((value - y) / s), 0.0, MOST_MEMORY))
            if abs(rho - before) < 0.02:
                break
            vector, _ = _least_squares(terms, vector, t, y, s, rho, limits)
    else:
        vector, _ = _least_squares(terms, vector, t, y, s, rho, limits, most=120)
    value, jacobian = evaluate(terms, vector, t)
    r = value - y
    e = _whitened(r, s, rho)
    n, k = t.size, vector.size + 2
    sigma2 = max(float(e @ e) / n, LEAST_RESIDUAL**2)
    aic = n * np.log(sigma2) - np.log(1 - rho**2) + 2 * k + 2 * k * (k + 1) / max(n - k - 1, 1)
    phases = phases_of(terms, vector, grid, t, log_loss_start, thresholds)
    return CurveFit(
        model, vector, rho, float(np.sqrt(sigma2)), float(aic), float(np.sqrt(np.mean(r**2))), r, jacobian, phases
    )


def phases_of(terms, vector, grid, t, log_loss_start, thresholds) -> Phases:
    """The phases of a sum of terms on `grid`, held by the points `t`; a power law that comes first has them in its own time."""
    plain, own, origin = _curves(terms, vector, grid, t, log_loss_start, thresholds)
    found = plain.phases()
    if own is None or _several(tuple(phase.kind for phase in found.counted())):
        return found
    # A power law in t + tau that begins with the window: its phases are those in its own time.
    moved = own.phases()
    if len(moved.counted("exponential", "power law")) <= len(found.counted()):
        return found
    return moved.moved(origin)


def _name_of(terms, vector, grid, t, log_loss_start, thresholds) -> str:
    """The name of `phases_of`."""
    plain, own, _ = _curves(terms, vector, grid, t, log_loss_start, thresholds)
    name, kinds = plain.kinds()
    if own is None or _several(kinds):
        return name
    other, theirs = own.kinds()
    return name if sum(kind in ("exponential", "power law") for kind in theirs) <= len(kinds) else other


def _several(kinds: tuple[str, ...]) -> bool:
    return sum(kind in ("exponential", "power law", "stretched exponential") for kind in kinds) > 1


def _curves(terms, vector, grid, t, log_loss_start, thresholds) -> tuple[Cutter, Cutter | None, float]:
    """The curve, and one that begins with a power law in that law's own time, with the start of that time; None without."""
    log_loss, p, q = derivatives(terms, vector, grid)
    start = None
    if log_loss_start is not None:
        start = float(evaluate(terms, vector, np.array([min(grid[0] * 1e-9, 1e-9)]))[0][0])
    limits = Thresholds() if thresholds is None else thresholds
    plain = Cutter(grid, p, q, log_loss, start, limits, t)
    origin = _origin(terms, vector)
    if origin is None:
        return plain, None, 0.0
    later = grid + origin
    own = Cutter(later, p * later / grid, 1 + (q - 1) * later / grid, log_loss, None, limits, t + origin)
    return plain, own, origin


def _origin(terms: Sequence[str], vector: np.ndarray) -> float | None:
    """The start time of a model whose first term is a power law."""
    if terms[0] not in ("power", "cutoff"):
        return None
    times = [p["tau"] for term, p in zip(terms, parameters(terms, vector), strict=True) if term in ("power", "cutoff")]
    return min(times)


def _covariance(fit: CurveFit, t, y, s, deviations) -> tuple[np.ndarray, float]:
    """Covariance of the parameters, (J^T W J)^-1 J^T W Omega W J (J^T W J)^-1 with the noise Omega that the data
    show, and its degrees.
    """
    terms, n, k = fit.terms, t.size, fit.vector.size
    limits = bounds(terms, t, y)
    half_width = 0.5 * (limits[:, 1] - limits[:, 0])
    white = _whitened(fit.jacobian, s, fit.memory)
    r = fit.residual / s
    variance = max(float(np.mean(_whitened(fit.residual, s, fit.memory) ** 2)), LEAST_RESIDUAL**2)
    # What the points leave open is as wide as the bounds, no wider.
    normal = white.T @ white + np.diag(variance / half_width**2)
    inverse = np.linalg.inv(normal)
    if deviations is not None and len(deviations) > 1:
        seeds = len(deviations)
        rho = _memory_of(deviations / s)
        size2 = float(((deviations / s) ** 2).sum()) / (n * (seeds - 1)) / seeds * (1 - rho**2)
        size2 = max(size2, LEAST_RESIDUAL**2)
        degrees = (seeds - 1) * n * (1 - rho) / (1 + rho)
        # Seeds say nothing of a misfit of the model: the residuals may say that the noise is larger.
        left = variance * n / max(n - k, 1)
        return inverse * max(size2, left), max(degrees, 2.0)
    to_fit = inverse @ white.T @ _whitened(np.eye(n), s, fit.memory)
    projection = np.eye(n) - (fit.jacobian / s[:, None]) @ (to_fit * s)
    rho = min(residual_memory(r, projection, slack=0.0), MOST_MEMORY)
    lag = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    noise = rho**lag
    expected = float(np.trace(projection @ noise @ projection.T))
    size2 = max(float(r @ r), n * LEAST_RESIDUAL**2) / max(expected, 1e-12)
    omega = noise * np.outer(s, s) * size2
    degrees = max(n * (1 - rho) / (1 + rho) - k, 3.0)
    return to_fit @ omega @ to_fit.T, degrees


def _drawn_names(fit: CurveFit, covariance, degrees, t, s, grid, log_loss_start, limits, seed: int) -> dict[str, float]:
    """Shares of the names over parameters drawn from their errors."""
    rng = np.random.default_rng(seed)
    roots, axes = np.linalg.eigh(covariance)
    widen = np.sqrt(degrees / rng.chisquare(degrees, DRAWS))
    steps = rng.standard_normal((DRAWS, roots.size)) * np.sqrt(np.maximum(roots, 0.0)) * widen[:, None]
    # What the points leave open lets a linear draw run far outside what they allow: back until the curve itself is likely.
    white = _whitened(fit.jacobian, s, fit.memory)
    noise2 = max(float(np.trace(white @ covariance @ white.T)) / roots.size, 1e-300)
    most = float(special.chdtri(roots.size, 0.01)) * noise2
    names: dict[str, float] = {}
    fitted = fit.log_loss(t)
    for step, wide in zip(steps @ axes.T, widen, strict=True):
        with np.errstate(all="ignore"):
            for _ in range(8):
                moved = evaluate_rows(fit.terms, fit.vector + step, t)[0] - fitted
                if float((_whitened(moved, s, fit.memory) ** 2).sum()) <= most * wide**2:
                    break
                step = 0.5 * step
            name = stem(_name_of(fit.terms, fit.vector + step, grid, t, log_loss_start, limits))
        names[name] = names.get(name, 0.0) + 1 / DRAWS
    return names


def _deciding(best: CurveFit, rival: CurveFit | None, t, contenders, names, gap: float) -> str:
    """Which further points would tell the contenders apart: where two fitted curves part by five times the noise."""
    if rival is None or names.get(stem(rival.phases.name), np.inf) >= gap:
        return "the phases are near the length from which they count: longer ones would tell"
    ahead = np.geomspace(t[-1], 100 * t[-1], 200)
    apart = np.abs(best.log_loss(ahead) - rival.log_loss(ahead)) > 5 * max(best.rms, rival.rms)
    words = "less noise or more seeds in this window would tell"
    if apart.any():
        words = f"a run to t = {ahead[np.argmax(apart)]:.3g} would tell; so would less noise"
    return words
