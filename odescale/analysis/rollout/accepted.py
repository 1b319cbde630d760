r"""First acceptance and hazard from measured accepted lengths, against one constant acceptance.

    A(d) = 1 + sum_{j<=d} prod_{i<=j} a_i,   a_i = min(a_1 e^(-h (i-1)), 1)

In a tree with k candidates at a place a_i is the chance that one of them is accepted; V tokens are verified, so that a tree of few
V holds fewer candidates at its deep places, which looks like a hazard.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float
from scipy import special

from odescale.analysis.rollout.rounds import Numbers, least_squares
from odescale.errors import MOST_DRAWS, InputError, OutsideTheoryError, require_number, whole
from odescale.precision import require_x64
from odescale.systems.rollout.cost import MOST_DEPTH, Acceptance

LEAST_FIRST = 1e-3
HAZARDS = (-1.0, 3.0)
"""Hazards that are tried; below 0 acceptance rises with the place, which the law of the rollout does not have."""
ROUNDING = 1e-6
ROUNDS = 60
"""Most steps of the likelihood's scoring."""


class AcceptanceFit(eqx.Module):
    """a_i = a_1 e^(-h (i-1)) from `points` measured numbers, and one `constant` acceptance beside it.

    - `first` a_1, `hazard` h, `interval` of both at `level`, `draws` (c, 2) of (a_1, h).
    - `miss`, `miss_constant`: largest |A fitted - A measured| in tokens, of the law and of the constant.
    - `p_value`: of the test that h = 0 fits as well. `answer`: "falls", "constant" or "rises"; `overdispersion`: mean squared
      standardised residual (1: as the errors say; NaN: none were given).
    """

    first: float
    hazard: float
    interval: dict[str, tuple[float, float]]
    draws: Float[np.ndarray, "c 2"]
    constant: float
    miss: float
    miss_constant: float
    p_value: float
    overdispersion: float
    points: int
    level: float
    answer: str = eqx.field(static=True)

    @property
    def acceptance(self) -> Acceptance:
        """The law for a system. **Raises** `OutsideTheoryError` where acceptance rises with the place."""
        if self.answer == "rises":
            raise OutsideTheoryError(
                "hazard", expected="an acceptance that does not rise with the place", got=f"h = {self.hazard:.3g}",
                remedy="pass the measured accepted length of every strategy",
            )  # fmt: skip
        return Acceptance(self.first, self.hazard) if self.hazard >= 0 else Acceptance(self.constant, 0.0)

    def __str__(self) -> str:
        (a, b), (c, d) = self.interval["first"], self.interval["hazard"]
        head = (
            f"acceptance: a_1 = {self.first:.4g} ({a:.3g} to {b:.3g}), hazard {self.hazard:.3g} a place ({c:.2g} to {d:.2g}) at "
            f"{self.level:.0%}, largest miss {self.miss:.2g} token; "
            f"one constant {self.constant:.3g} misses by {self.miss_constant:.2g}"
        )
        words = {
            "falls": f"acceptance falls with the place (p = {self.p_value:.1g} of no fall)",
            "constant": f"one constant acceptance fits as well (p = {self.p_value:.1g})",
            "rises": f"acceptance rises with the place (p = {self.p_value:.1g} of no rise): the law does not hold",
        }[self.answer]
        return f"{head}\n    {words}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the draws."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "draws"}


def fit_acceptance(
    depth: Numbers,
    accepted: Numbers,
    *,
    error: Numbers | None = None,
    level: float = 0.9,
    draws: int = 200,
    seed: int = 0,
) -> AcceptanceFit:
    r"""a_1 and h from accepted lengths A(d) = 1 + sum_{j<=d} prod_{i<=j} a_1 e^(-h (i-1)) at several depths: least squares.

    **Arguments**: `depth` (n,) drafted tokens, whole numbers from 1 to 64, two different at least; `accepted` (n,) mean tokens of a
    round, the target's own included, 1 to d + 1; `error` (n,) their standard errors (default: alike, from the residuals).
    **Returns** `AcceptanceFit`: intervals from tables drawn from the fitted law, the test of h = 0 by F (chi^2 with `error`).
    **Raises** `InputError` naming the argument; under 3 rows without errors. **Good values**: depths from 1 to twice A.
    **Failure regime**: depths of one log share their rounds: errors are then not independent, and `fit_acceptance_by_place` is
    sharper. Source: `derivations/rollout`; one constant a is Leviathan et al. 2023, arXiv 2211.17192.

    ```python
    import jax
    jax.config.update("jax_enable_x64", True)
    from odescale.rollouts import fit_acceptance
    print(fit_acceptance([2, 4, 6, 8, 12], [2.6, 3.8, 4.6, 5.1, 5.6]))
    ```
    """
    require_x64("fit_acceptance")
    d, A = (np.atleast_1d(np.asarray(x, float)) for x in (depth, accepted))
    errors = np.ones_like(A) if error is None else np.atleast_1d(np.asarray(error, float))
    if d.ndim != 1 or not d.shape == A.shape == errors.shape:
        shapes = [x.shape for x in (d, A, errors)]
        raise InputError(
            "accepted", expected="as many lengths (and errors) as depths", got=shapes, remedy="match the rows"
        )
    for name, values, good, text in (
        ("depth", d, (d >= 1) & (d <= MOST_DEPTH) & (d == np.round(d)), f"whole numbers from 1 to {MOST_DEPTH}"),
        ("accepted", A, (A >= 1) & (A <= d + 1), "1 to depth + 1 tokens of a round"),
        ("error", errors, np.isfinite(errors) & (errors > 0), "standard errors > 0"),
    ):
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            raise InputError(
                name, expected=text, got=f"{values[row]:g} in row {row + 1}", remedy="mend or drop that row"
            )
    least = 2 if error is not None else 3
    if d.size < least or np.unique(d).size < 2:
        raise InputError(
            "depth", expected=f"{least} rows or more of two depths", got=d.tolist(), remedy="measure another depth"
        )
    level, count = require_number("level", level, 0.5, 1.0), whole("draws", draws, 0, MOST_DRAWS, remedy="200, or 0")
    scale = np.diag(1 / errors)
    low, high = np.array([np.log(LEAST_FIRST), HAZARDS[0]]), np.array([0.0, HAZARDS[1]])

    def model(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _lengths(theta, d)

    starts = np.array([[np.log(a), h] for a in (0.5, 0.8, 0.95) for h in (-0.02, 0.02, 0.2)])
    target = np.tile(A, (len(starts), 1))
    found, totals = least_squares(model, target, starts, low, high, scale)
    theta, total = found[np.argmin(totals)], float(totals.min())
    flat = np.array([0.0, 0.0])
    one, one_totals = least_squares(model, target[:3], starts[::3] * [1, 0], low * [1, 0], high * [1, 0] + flat, scale)
    constant, constant_total = one[np.argmin(one_totals)], float(one_totals.min())
    dof = d.size - 2
    spread = max(total / dof, ROUNDING**2) if dof else 1.0
    # Errors that are given are believed, unless the rows scatter more.
    noise = spread if error is None else max(1.0, spread)
    gain = max(constant_total - total, 0.0) / noise
    p_value = float(special.fdtrc(1, dof, gain)) if error is None else float(special.chdtrc(1, gain))
    rng = np.random.default_rng(seed)
    size = np.sqrt(spread * dof / rng.chisquare(dof, count)) if error is None else np.full(count, np.sqrt(noise))
    y = np.clip(model(theta[None])[0] + size[:, None] * errors * rng.standard_normal((count, d.size)), 1, d + 1)
    drawn, _ = least_squares(model, y, np.tile(theta, (count, 1)), low, high, scale)
    misses = [float(np.abs(model(t[None])[0][0] - A).max()) for t in (theta, constant)]
    return _found(
        theta,
        float(np.exp(constant[0])),
        drawn,
        misses,
        p_value,
        float("nan") if error is None else spread,
        d.size,
        level,
    )


def fit_acceptance_by_place(
    kept: Numbers,
    rounds: float | None = None,
    *,
    conditional: bool = False,
    level: float = 0.9,
    draws: int = 200,
    seed: int = 0,
) -> AcceptanceFit:
    r"""a_1 and h from the shares of rounds that keep the 1st, 2nd ... drafted token: the likelihood of nested binomials.

        k_j of k_{j-1} rounds keep token j if they kept those before it:  k_j ~ Binomial(k_{j-1}, a_1 e^(-h (j-1)))

    **Arguments**: `kept` (n,) shares in [0, 1] by place, falling ("per-position acceptance rate" of an engine's log), or, with
    `conditional`, the acceptance of a token whose predecessors were kept; `rounds` that they are shares of (default: unknown, the
    errors then from the scatter about the law, for 3 places or more).
    **Returns** `AcceptanceFit`; `overdispersion` is Pearson's chi^2 per degree of freedom, and widens the intervals above 1.
    **Raises** `InputError`. **Failure regime**: with many rounds every law is rejected; `miss` says whether it matters.

    ```python
    import jax
    jax.config.update("jax_enable_x64", True)
    from odescale.rollouts import fit_acceptance_by_place
    print(fit_acceptance_by_place([0.74, 0.54, 0.41, 0.30, 0.22], rounds=4687))
    ```
    """
    require_x64("fit_acceptance_by_place")
    share = np.atleast_1d(np.asarray(kept, float))
    if (
        share.ndim != 1
        or not 2 <= share.size <= MOST_DEPTH
        or not (np.isfinite(share) & (share >= 0) & (share <= 1)).all()
    ):
        raise InputError(
            "kept", expected=f"2 to {MOST_DEPTH} shares in [0, 1], one a place", got=share.tolist(), remedy="mend them"
        )
    share = np.cumprod(share) if conditional else share
    if share[0] <= 0 or (np.diff(share) > 1e-12).any():
        raise InputError(
            "kept", expected="shares that start above 0 and fall with the place", got=share.tolist(),
            remedy="conditional=True if each is given that those before it were kept",
        )  # fmt: skip
    if rounds is None and share.size < 3:
        raise InputError(
            "rounds", expected="a number beside 2 places", got="none", remedy="pass how many rounds were counted"
        )
    total = 1e6 if rounds is None else require_number("rounds", rounds, 1.0)
    level, count = require_number("level", level, 0.5, 1.0), whole("draws", draws, 0, MOST_DRAWS, remedy="200, or 0")
    trials = total * np.concatenate([[1.0], share[:-1]])
    seen = trials > 0
    trials, hits, place = trials[seen], total * share[seen], np.flatnonzero(seen).astype(float)
    theta, covariance, fitted = _scoring(hits, trials, np.stack([np.ones_like(place), -place], axis=1))
    dof = place.size - 2
    pearson = float(np.sum((hits - trials * fitted) ** 2 / (trials * fitted * (1 - fitted))) / dof) if dof else 1.0
    noise = max(pearson, ROUNDING) if rounds is None else max(1.0, pearson)
    flat, _, flat_fitted = _scoring(hits, trials, np.ones((place.size, 1)))
    gain = max(2 * (_likelihood(hits, trials, fitted) - _likelihood(hits, trials, flat_fitted)), 0.0) / noise
    exact = rounds is not None and noise == 1.0
    p_value = float(special.chdtrc(1, gain) if exact or not dof else special.fdtrc(1, dof, gain))
    rng = np.random.default_rng(seed)
    widen = np.ones(count) if exact or not dof else np.sqrt(dof / rng.chisquare(dof, count))
    root = np.linalg.cholesky(covariance * noise)
    drawn = theta + widen[:, None] * rng.standard_normal((count, 2)) @ root.T
    depth = np.arange(1.0, share.size + 1)
    A = 1 + np.cumsum(share)
    misses = [float(np.abs(_lengths(t[None], depth)[0][0] - A).max()) for t in (theta, np.array([flat[0], 0.0]))]
    drawn[:, 0] = np.minimum(drawn[:, 0], 0.0)
    over = float("nan") if rounds is None else pearson
    return _found(theta, float(np.exp(flat[0])), drawn, misses, p_value, over, share.size, level)


def _lengths(theta: Float[np.ndarray, "c 2"], depth: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """A (c, n) and its slopes by (log a_1, h) (c, n, 2)."""
    place = np.arange(int(depth.max()), dtype=float)
    log_a = theta[:, :1] - theta[:, 1:] * place
    inside = log_a <= 0
    kept = np.exp(np.cumsum(np.where(inside, log_a, 0.0), axis=1))
    slope = np.stack([np.cumsum(inside, axis=1), np.cumsum(np.where(inside, -place, 0.0), axis=1)], axis=-1)
    at = depth.astype(int) - 1
    return 1 + np.cumsum(kept, axis=1)[:, at], np.cumsum(kept[..., None] * slope, axis=1)[:, at]


def _likelihood(hits: np.ndarray, trials: np.ndarray, a: np.ndarray) -> float:
    return float(np.sum(special.xlogy(hits, a) + special.xlogy(trials - hits, 1 - a)))


def _scoring(hits: np.ndarray, trials: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(theta, covariance, a) of a binomial regression with log a = x theta, by Fisher scoring with halved steps."""

    def chances(theta: np.ndarray) -> np.ndarray:
        return np.exp(np.minimum(x @ theta, -1e-9))

    theta = np.zeros(x.shape[1])
    theta[0] = np.log(np.clip(hits.sum() / trials.sum(), 1e-6, 1 - 1e-6))
    best = _likelihood(hits, trials, chances(theta))
    for _ in range(ROUNDS):
        a = chances(theta)
        weight = trials * a / (1 - a)
        step = np.linalg.solve((x.T * weight) @ x, x.T @ ((hits - trials * a) / (1 - a)))
        for _ in range(40):
            new = _likelihood(hits, trials, chances(theta + step)) if (x @ (theta + step) <= 0).all() else -np.inf
            if new >= best:
                break
            step = step / 2
        else:
            break
        theta, gained, best = theta + step, new - best, new
        if gained < 1e-12 * abs(best):
            break
    a = chances(theta)
    return theta, np.linalg.inv((x.T * (trials * a / (1 - a))) @ x), a


def _found(
    theta: np.ndarray,
    constant: float,
    drawn: np.ndarray,
    misses: list[float],
    p_value: float,
    over: float,
    points: int,
    level: float,
) -> AcceptanceFit:
    values = np.stack([np.exp(drawn[:, 0]), drawn[:, 1]], axis=1)
    ends = np.full((2, 2), np.nan)
    if len(values):
        ends = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    interval = {name: (float(ends[0, k]), float(ends[1, k])) for k, name in enumerate(("first", "hazard"))}
    answer = "constant" if p_value > 1 - level else "falls" if theta[1] > 0 else "rises"
    return AcceptanceFit(
        first=float(np.exp(theta[0])), hazard=float(theta[1]), interval=interval, draws=values, constant=constant, miss=misses[0],
        miss_constant=misses[1], p_value=p_value, overdispersion=over, points=points, level=level, answer=answer,
    )  # fmt: skip
