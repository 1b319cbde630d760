"""Models of a loss curve with an exponential and a power law, their fits, and which of them the data prefer.

    two-term              log L = logaddexp(a - k t, A - beta log(1 + t/tau))
    exponential+constant  log L = logaddexp(a - k t, A)
    power+constant        log L = logaddexp(A - beta log(1 + t/tau), c)
    escape+power          log L = logaddexp(a - 2 log(1 + exp(k (t - t_e)/2)), A - beta log(1 + t/tau))
    escape+constant       log L = logaddexp(a - 2 log(1 + exp(k (t - t_e)/2)), A)

and, for the two models with both terms and if asked, an irreducible loss on top. The last two hold for a curve that
waits near a saddle until t_e before it falls with rate k (a logistic overlap, squared: the quickstart system). Least
squares on log L from several starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.optimize import least_squares, root_scalar
from scipy.special import expit

from odescale.analysis.phases.bootstrap import autocorrelation
from odescale.analysis.phases.exponents import bin_curve, check_curve
from odescale.errors import InputError

Model = Literal["two-term", "exponential+constant", "power+constant", "escape+power", "escape+constant"]
MODELS: tuple[Model, ...] = ("two-term", "exponential+constant", "power+constant", "escape+power", "escape+constant")
AIC_GAP = 10.0

_NAMES: dict[str, tuple[str, ...]] = {
    "two-term": ("a", "log_k", "A", "log_beta", "log_tau"),
    "exponential+constant": ("a", "log_k", "A"),
    "power+constant": ("A", "log_beta", "log_tau", "c"),
    "escape+power": ("a", "log_k", "t_e", "A", "log_beta", "log_tau"),
    "escape+constant": ("a", "log_k", "t_e", "A"),
}


class CurveFit(eqx.Module):
    """A fitted model: log L(t) with t, t_e, tau in the curve's unit, `k` per unit of t, `irreducible` in L.

    - `parameters`, `stderr`: by name (a, k, t_e, A, beta, tau, c, irreducible), what the model has; the errors are
      those of independent points; for runs use the bootstrap of `find_transition_curve`.
    - `converged`: the optimiser stopped inside the bounds by its tolerances; `message` says what stopped it.
    - `rms`: root mean square residual of log L (weighted). `deviance` = -2 log likelihood with residuals of an unknown
      variance and a correlation rho between neighbours (AR(1), rho by least squares); `aic` = deviance + 2 * (number of
      parameters + 2). With rho = 0 it is the usual n log(RSS/n). `vector`: the optimiser's parameters.
    """

    model: Model
    parameters: dict[str, float]
    stderr: dict[str, float]
    converged: bool
    message: str
    rms: float
    deviance: float
    aic: float
    points: int
    vector: np.ndarray
    names: tuple[str, ...]
    residual: np.ndarray

    def log_loss(self, t: ArrayLike) -> np.ndarray:
        """log L(t) of the fit; t >= 0."""
        return _evaluate(self.names, self.vector, np.asarray(t, dtype=float))[0]

    def jacobian(self, t: ArrayLike) -> np.ndarray:
        """d log L/d(optimiser's parameters), (n, parameters)."""
        return _evaluate(self.names, self.vector, np.asarray(t, dtype=float))[1]

    def exponent_and_index(self, t: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """log L, p = -dlog L/dlog t, q = dlog p/dlog t of the fitted excess loss (irreducible part removed)."""
        return _derivatives(self.names, self.vector, np.asarray(t, dtype=float))

    def equal_terms(self) -> float | None:
        """t_eq where the first term and the power law are equal: the last time at which the first is the larger."""
        if self.model not in ("two-term", "escape+power"):
            return None
        p = self.parameters

        def gap(t: float) -> float:
            logs = _terms(self.names, self.vector, np.array([t]))[0]
            return float(logs[0][0] - logs[1][0])

        # The gap of the two-term model rises up to t = beta/k - tau and falls for ever after; an escape adds its wait.
        low = max(p["beta"] / p["k"] - p["tau"], p.get("t_e", 0.0), 0.0)
        if gap(low) <= 0:
            return None
        high = max(2 * low, 1 / p["k"])
        while gap(high) > 0:
            high *= 2
        return float(root_scalar(gap, bracket=(low, high), method="brentq").root)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: model, parameters, standard errors, quality."""
        finite = {k: (v if np.isfinite(v) else None) for k, v in self.stderr.items()}
        return {"model": self.model, "parameters": dict(self.parameters), "stderr": finite, "converged": self.converged,
                "message": self.message, "rms": self.rms, "aic": self.aic, "points": self.points}  # fmt: skip


def fit_curve(
    t: ArrayLike,
    loss: ArrayLike,
    *,
    model: Model = "two-term",
    stderr: ArrayLike | None = None,
    irreducible: float | None = 0.0,
    start: ArrayLike | None = None,
) -> CurveFit:
    """min over parameters of sum_i w_i (log L_i - model(t_i))^2, from several starts.

    **Arguments**: `t (n,)`, `loss (n,)` or `(seeds, n)` (their mean is fitted), at least 8 points; `stderr (n,)` of the
    loss: weights (L/stderr)^2 capped at 100 times the smallest; `irreducible`: a number is subtracted, None (two-term
    and escape+power) is fitted along; `start`: a `vector` of an earlier fit, instead of the search.

    **Returns** `CurveFit`; look at `converged`. **Failure**: k and beta are badly determined when the window ends
    before the power law or begins after the exponential; tau and A trade against each other when all t << tau (then
    only A and beta/tau matter) or t >> tau. A curve that waits before it falls (an escape from a saddle) is not of
    this form: compare `rms` with the noise. An irreducible loss wrong by 4 % of L(t_x) moves t_x by 5 to 10 %.
    """
    if model not in MODELS:
        raise InputError("model", expected=f"one of {MODELS}", got=model, remedy="two-term is the default")
    fitted = irreducible is None
    if fitted and model not in ("two-term", "escape+power"):
        raise InputError(
            "irreducible", expected="a number with this model", got=None, remedy="it has a constant already"
        )
    times, rows = check_curve(t, loss, irreducible=0.0 if irreducible is None else irreducible)
    mean = rows.mean(axis=0, keepdims=True)
    weights = fit_weights(times, mean[0], stderr)
    if times.size > 400:
        first = times > 0
        times, stacked = bin_curve(times[first], np.concatenate([mean, weights[None]])[:, first])
        mean, weights = stacked[:1], stacked[1]
    names = _NAMES[model] + (("log_irreducible",) if fitted else ())
    return _fit(names, model, times, np.log(mean[0]), weights, None if start is None else [np.asarray(start)])


def compare_models(
    t: ArrayLike, loss: ArrayLike, *, stderr: ArrayLike | None = None, irreducible: float | None = 0.0
) -> tuple[CurveFit, float, dict[str, CurveFit]]:
    """The better of the two models with an exponential and a power law, its AIC gap to the best rival, all fits.

    The escape is taken if its AIC is 10 lower than that of the plain exponential, and then has the escape with a
    constant as a further rival. Gap = min over rivals of AIC(rival) - AIC(chosen); a gap of 10, e^5 in likelihood, is
    demanded before a transition is read off data; negative: a rival does better.

    The likelihood is that of AR(1) residuals with the correlation rho of the rival's residuals, for both: otherwise
    autocorrelated noise on a pure power law passes for a second term. It makes the gap the smaller one of the two.
    """
    fits: dict[str, CurveFit] = {}
    for model in MODELS:
        both = model in ("two-term", "escape+power")
        fits[model] = fit_curve(
            t, loss, model=model, stderr=stderr, irreducible=irreducible if both else irreducible or 0.0
        )
    escapes = fits["escape+power"].aic < fits["two-term"].aic - AIC_GAP
    chosen = fits["escape+power" if escapes else "two-term"]
    rivals = ["exponential+constant", "power+constant"] + (["escape+constant"] if escapes else [])
    return chosen, min(_gap(fits[name], chosen) for name in rivals), fits


def _gap(rival: CurveFit, chosen: CurveFit) -> float:
    rho = float(np.clip(autocorrelation(rival.residual), 0.0, 0.95))
    deviance = _deviance(rival.residual, rho) - _deviance(chosen.residual, rho)
    return deviance + 2 * (len(rival.names) - len(chosen.names))


def _deviance(r: np.ndarray, rho: float) -> float:
    innovation = r[1:] - rho * r[:-1]
    square = float((1 - rho**2) * r[0] ** 2 + innovation @ innovation) / r.size
    # Below a millionth in log L the residuals are those of the optimiser: no model is preferred for stopping later.
    return r.size * float(np.log(max(square, 1e-12))) - float(np.log(1 - rho**2))


def refit_many(
    fit: CurveFit,
    t: Float[np.ndarray, " n"],
    log_losses: Float[np.ndarray, "draws n"],
    stderr: Float[np.ndarray, " n"] | None = None,
) -> list[CurveFit]:
    """The model of `fit` fitted to each row of `log_losses`, started at `fit`: for bootstrap draws."""
    weights = fit_weights(t, np.exp(log_losses.mean(axis=0)), stderr)
    return [_fit(fit.names, fit.model, t, row, weights, [fit.vector]) for row in log_losses]


def fit_weights(t: np.ndarray, mean: np.ndarray, stderr: ArrayLike | None) -> np.ndarray:
    """Least-squares weights (L/stderr)^2 of log L, the largest 1, capped at 100 times the smallest; ones without errors."""
    if stderr is None:
        return np.ones(t.size)
    error = np.asarray(stderr, dtype=float)
    if error.shape != t.shape or not np.isfinite(error).all() or (error < 0).any() or not error.max() > 0:
        raise InputError("stderr", expected=f"{t.size} finite errors >= 0, not all 0", got=f"shape {error.shape}",
                         remedy="leave it out")  # fmt: skip
    relative = error / mean
    # A few points with tiny errors would otherwise decide the fit of a model that is never exact.
    relative = np.maximum(relative, 0.1 * relative.max())
    return (relative.min() / relative) ** 2


def _split(names: tuple[str, ...], vector: np.ndarray) -> dict[str, float]:
    out = {}
    for name, value in zip(names, vector, strict=True):
        out[name.removeprefix("log_")] = float(np.exp(value)) if name.startswith("log_") else float(value)
    return out


def _terms(names: tuple[str, ...], vector: np.ndarray, t: np.ndarray) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """The logarithms of the terms, and of each the derivatives with respect to the optimiser's parameters."""
    p = _split(names, vector)
    logs, jacobians = [], []
    if "t_e" in p:
        u = 0.5 * p["k"] * (t - p["t_e"])
        gate = expit(u)
        logs.append(p["a"] - 2 * np.logaddexp(0.0, u))
        jacobians.append({"a": 1.0, "log_k": -2 * gate * u, "t_e": gate * p["k"]})
    elif "k" in p:
        logs.append(p["a"] - p["k"] * t)
        jacobians.append({"a": 1.0, "log_k": -p["k"] * t})
    if "beta" in p:
        ratio = t / p["tau"]
        logs.append(p["A"] - p["beta"] * np.log1p(ratio))
        jacobians.append(
            {"A": 1.0, "log_beta": -p["beta"] * np.log1p(ratio), "log_tau": p["beta"] * ratio / (1 + ratio)}
        )
    elif "A" in p:
        logs.append(np.full_like(t, p["A"]))
        jacobians.append({"A": 1.0})
    for name in ("c", "irreducible"):
        if name in p:
            logs.append(np.full_like(t, p["c"] if name == "c" else np.log(p["irreducible"])))
            jacobians.append({"c" if name == "c" else "log_irreducible": 1.0})
    return logs, jacobians


def _evaluate(names: tuple[str, ...], vector: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logs, jacobians = _terms(names, vector, t)
    total = np.logaddexp.reduce(logs, axis=0)
    jacobian = np.zeros((t.size, len(names)))
    for log, derivatives in zip(logs, jacobians, strict=True):
        share = np.exp(log - total)
        for name, value in derivatives.items():
            jacobian[:, names.index(name)] += share * value
    return total, jacobian


def _derivatives(names: tuple[str, ...], vector: np.ndarray, t: np.ndarray):
    p = _split(names, vector)
    logs, first, second = [], [], []
    if "t_e" in p:
        u = 0.5 * p["k"] * (t - p["t_e"])
        gate = expit(u)
        logs.append(p["a"] - 2 * np.logaddexp(0.0, u))
        first.append(-p["k"] * gate)
        second.append(-0.5 * p["k"] ** 2 * gate * (1 - gate))
    elif "k" in p:
        logs.append(p["a"] - p["k"] * t)
        first.append(np.full_like(t, -p["k"]))
        second.append(np.zeros_like(t))
    if "beta" in p:
        logs.append(p["A"] - p["beta"] * np.log1p(t / p["tau"]))
        first.append(-p["beta"] / (p["tau"] + t))
        second.append(p["beta"] / (p["tau"] + t) ** 2)
    total = np.logaddexp.reduce(logs, axis=0)
    shares = np.exp(np.stack(logs) - total)
    slope = (shares * np.stack(first)).sum(axis=0)
    curvature = (shares * (np.stack(second) + np.stack(first) ** 2)).sum(axis=0) - slope**2
    return total, -t * slope, 1 + t * curvature / slope


def _starts(names: tuple[str, ...], t: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Where the search begins: a hand-over at several places of the curve, an exponential before, a power law after."""
    starts, n = [], t.size
    for place in (0.2, 0.35, 0.5, 0.65, 0.8):
        i = min(max(int(place * n), 2), n - 3)
        rate = max((y[0] - y[i]) / max(t[i] - t[0], 1e-300), 1e-3 / t[-1])
        late = max(-(y[-1] - y[i]) / np.log(t[-1] / t[i]), 0.05)
        for tau in (t[i], 0.1 * t[i]):
            values = {
                "a": y[0], "log_k": np.log(rate), "log_beta": np.log(late), "log_tau": np.log(tau), "c": y[-1] - 0.1,
                "A": y[-1] + late * np.log1p(t[-1] / tau) if "log_beta" in names else y[-1],
                "log_irreducible": y[-1] - 2.0, "t_e": 0.5 * t[i],
            }  # fmt: skip
            if "t_e" in names:  # it falls after the wait only, hence faster
                values["log_k"] = np.log(2 * rate)
            starts.append(np.array([values[name] for name in names]))
            if "log_tau" not in names:
                break
    return starts


def _bounds(names: tuple[str, ...], t: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first = t[t > 0][0]
    wide = np.ptp(y) + 10.0
    bounds: dict[str, tuple[float, float]] = {
        "a": (y.min() - wide, y.max() + 2 * wide),
        "A": (y.min() - wide, y.max() + 2 * wide),
        "c": (y.min() - 30.0, y.max() + 1.0),
        "t_e": (-t[-1], t[-1]),
        "log_k": (np.log(1e-4 / t[-1]), np.log(1e2 / first)),
        "log_beta": (np.log(1e-3), np.log(50.0)),
        "log_tau": (np.log(1e-3 * first), np.log(1e2 * t[-1])),
        "log_irreducible": (y.min() - 30.0, y.max()),
    }
    return np.array([bounds[n][0] for n in names]), np.array([bounds[n][1] for n in names])


def _fit(names, model: Model, t, y, weights, starts: list[np.ndarray] | None) -> CurveFit:
    root = np.sqrt(weights)
    low, high = _bounds(names, t, y)

    def residual(vector: np.ndarray) -> np.ndarray:
        return root * (_evaluate(names, vector, t)[0] - y)

    def jacobian(vector: np.ndarray) -> np.ndarray:
        return root[:, None] * _evaluate(names, vector, t)[1]

    def run(start: np.ndarray, jac: Callable[[np.ndarray], np.ndarray] = jacobian):
        inside = np.clip(start, low + 1e-6, high - 1e-6)
        return least_squares(residual, inside, jac=jac, bounds=(low, high), x_scale="jac", max_nfev=200, xtol=1e-10)  # pyright: ignore[reportArgumentType]

    best = min((run(start) for start in (starts or _starts(names, t, y))), key=lambda result: result.cost)
    vector, r = best.x, np.asarray(best.fun)
    stuck = [name for name, v, lo, hi in zip(names, vector, low, high, strict=True) if min(v - lo, hi - v) < 1e-3]
    message = f"at the bound of {', '.join(stuck)}" if stuck else str(best.message)
    n = t.size
    deviance = _deviance(r, float(np.clip(autocorrelation(r), -0.95, 0.95)))
    variance = float(r @ r) / max(n - len(names), 1)
    covariance = np.linalg.pinv(best.jac.T @ best.jac) * variance
    parameters = _split(names, vector)
    errors = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    stderr = {
        name.removeprefix("log_"): float(error * (parameters[name.removeprefix("log_")] if name[:4] == "log_" else 1))
        for name, error in zip(names, errors, strict=True)
    }
    return CurveFit(
        model=model, parameters=parameters, stderr=stderr, converged=bool(best.success and not stuck), message=message,
        rms=float(np.sqrt(r @ r / weights.sum())), deviance=deviance, aic=deviance + 2 * (len(names) + 2),
        points=n, vector=vector, names=tuple(names), residual=r,
    )  # fmt: skip
