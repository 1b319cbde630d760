"""The best learning rate against size and tokens: rate* = c N^-x D^-y, with intervals, and a flag on what is extrapolated."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import optimize, special

from odescale.analysis.tables.rate import Group, RateOptimum, find_optima
from odescale.errors import InputError, require_number

RANGE = 2.0
"""Largest over smallest value that a size needs, and how far off a ray of (N, D) a law along it may be asked."""
ALIGNED = 0.98
"""Correlation of log N with log D from which their exponents are not told apart."""


class RateLaw(eqx.Module):
    """rate* = c N^-x D^-y over the groups that show a best rate.

    `params_exponent` x, `tokens_exponent` y with intervals at `level`, None where the table cannot tell (`reasons` by name). A
    table on one ray of (N, D) gives `ray_exponent` w of rate* = c N^-w with `ray_slope` r of D ~ N^r instead. `scatter`: standard
    deviation of log rate* between groups beyond their own errors. `optima`: every group, refused ones with their reasons.
    """

    optima: tuple[RateOptimum, ...]
    prefactor: float | None
    params_exponent: float | None
    params_interval: tuple[float, float] | None
    tokens_exponent: float | None
    tokens_interval: tuple[float, float] | None
    ray_exponent: float | None
    ray_interval: tuple[float, float] | None
    ray_slope: float | None
    scatter: float | None
    level: float
    identified: bool
    reasons: dict[str, str]
    centre: Float[np.ndarray, " 2"]
    covariance: Float[np.ndarray, "p p"]
    freedom: int

    def rate(self, params: ArrayLike, tokens: ArrayLike) -> Float[np.ndarray, "..."]:
        """rate* at any size and tokens. **Errors**: `InputError` off what the table identifies (see `predict`)."""
        n, d = np.broadcast_arrays(np.asarray(params, float), np.asarray(tokens, float))
        return np.array(
            [self.predict(float(a), float(b)).rate for a, b in zip(n.ravel(), d.ravel(), strict=True)]
        ).reshape(n.shape)

    def predict(self, params: float, tokens: float) -> RatePrediction:
        """rate* of one run with the interval of a new group, and how far it is from the table.

        **Errors**: `InputError` without a law; where the tokens (or params) never varied and others than the table's are asked
        for; more than a factor 2 off the ray of a table on one ray.
        """
        n, d = require_number("params", params, open_=True), require_number("tokens", tokens, open_=True)
        seen = np.array([(o.params, o.tokens) for o in self.optima if o.rate is not None])
        if not self.identified or self.prefactor is None or self.scatter is None:
            raise InputError(
                "params", expected="an identified law", got="; ".join(self.reasons.values()), remedy="add runs"
            )
        point = np.log([n, d]) - self.centre
        row = [1.0]
        if self.ray_exponent is not None and self.ray_slope is not None:
            if abs(point[1] - self.ray_slope * point[0]) > np.log(RANGE):
                raise InputError(
                    "tokens", expected=f"about {np.exp(self.centre[1] + self.ray_slope * point[0]):.3g}, on the table's ray",
                    got=d, remedy="train at other tokens per parameter to tell N from D",
                )  # fmt: skip
            row.append(point[0])
        for j, (name, exponent, value) in enumerate(
            (("params", self.params_exponent, n), ("tokens", self.tokens_exponent, d))
        ):
            if exponent is not None:
                row.append(point[j])
            elif self.ray_exponent is None and abs(point[j]) > np.log(RANGE):
                raise InputError(
                    name,
                    expected=f"{np.exp(self.centre[j]):.3g}, the table's",
                    got=value,
                    remedy=f"train at other {name}",
                )
        weights = np.array(row)
        known = [-e for e in (self.ray_exponent, self.params_exponent, self.tokens_exponent) if e is not None]
        middle = float(np.log(self._at_centre()) + weights[1:] @ np.array(known))
        spread = np.sqrt(weights @ self.covariance @ weights + self.scatter**2)
        wide = float(special.stdtrit(self.freedom, 0.5 + self.level / 2)) * spread
        outside = []
        for name, value, column in (("params", n, seen[:, 0]), ("tokens", d, seen[:, 1])):
            if value > 1.01 * column.max():
                outside.append(f"{name} {value / column.max():.3g} times the largest")
            elif value < column.min() / 1.01:
                outside.append(f"{name} {column.min() / value:.3g} times below the smallest")
        return RatePrediction(
            float(np.exp(middle)),
            (float(np.exp(middle - wide)), float(np.exp(middle + wide))),
            bool(outside),
            ", ".join(outside),
        )

    def _at_centre(self) -> float:
        assert self.prefactor is not None
        x, y = (self.ray_exponent or self.params_exponent or 0.0), (self.tokens_exponent or 0.0)
        return float(np.exp(np.log(self.prefactor) - x * self.centre[0] - y * self.centre[1]))

    def __str__(self) -> str:
        good = sum(o.rate is not None for o in self.optima)
        said = [
            f"{label} {value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
            for label, value, interval in (
                ("N^-x: x", self.params_exponent, self.params_interval),
                ("D^-y: y", self.tokens_exponent, self.tokens_interval),
                (f"N^-w along D ~ N^{self.ray_slope or 0:.2f}: w", self.ray_exponent, self.ray_interval),
            )
            if value is not None and interval is not None
        ]
        said += [f"{name}: unidentified ({reason})" for name, reason in self.reasons.items()]
        return f"best rate of {good} of {len(self.optima)} groups: " + "; ".join(said)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        plain = {n: getattr(self, n) for n in self.__dataclass_fields__ if n not in ("centre", "covariance")}
        return plain | {"optima": [o.to_dict() for o in self.optima]}


class RatePrediction(eqx.Module):
    """`rate` with its `interval`; `extrapolated` with `how` far from the table's groups."""

    rate: float
    interval: tuple[float, float]
    extrapolated: bool
    how: str

    def __str__(self) -> str:
        tail = f"; extrapolated: {self.how}" if self.extrapolated else ""
        return f"{self.rate:.3g} ({self.interval[0]:.3g} to {self.interval[1]:.3g}){tail}"


def fit_rate_law(
    params: ArrayLike,
    tokens: ArrayLike,
    rate: ArrayLike,
    loss: ArrayLike,
    *,
    level: float = 0.95,
) -> RateLaw:
    """rate* = c N^-x D^-y: the bottom of L against rate for every (N, D), then generalised least squares through them.

    **Arguments**: `params`, `tokens`, `rate`, `loss`: one entry a run, (n,), or one number for all; runs of one (N, D) are a
    group. A loss that is not finite is a run that diverged. `level` of all intervals.

    The basins are m + c f(rate/rate*), f a sum of two powers that all groups share (`rate.find_optima`).

    **Returns** `RateLaw`. A group is refused where the best rate is the first or the last of its grid, or its interval leaves the
    grid. Intervals of the exponents hold the groups' own errors, their scatter about the law (Paule and Mandel 1982) and
    Student's t.
    **Errors**: `InputError` for bad columns. **Good values**: 6 rates a factor 2 apart and 6 groups, N and D varied separately.
    **Failure regime**: rates of which all fail but one (an edge of stability is no basin); batch or schedule that change with N. A
    basin with a kink at its bottom moves all best rates together (by 15 % where one side is 2.5 times steeper), outside their
    intervals; the exponents do not move.
    Sources: Li et al. 2025 (Step Law), arXiv:2503.04715: 1.79 N^-0.713 D^0.307; Bjorck et al. 2024, arXiv:2409.19913.
    """
    level = require_number("level", level, 0.5, 1.0)
    groups = _groups(params, tokens, rate, loss)
    found_all = find_optima(groups, level)
    optima = found_all.groups
    good = [o for o in optima if o.rate is not None]
    sizes = np.log([(o.params, o.tokens) for o in good]).reshape(-1, 2)
    columns, reasons, slope = _columns(sizes, len(good))
    names = [c for c in ("ray", "params", "tokens") if c in columns]
    if "law" not in reasons and len(good) < len(names) + 2:
        reasons["law"] = f"{len(good)} groups show a best rate, {len(names) + 2} are needed for {len(names)} exponents"
    if "law" in reasons:
        empty = np.zeros((0, 0))
        return RateLaw(
            tuple(optima),
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            level,
            False,
            reasons,
            np.zeros(2),
            empty,
            0,
        )
    centre = sizes.mean(axis=0)
    design = np.stack([np.ones(len(good)), *[sizes[:, columns[c]] - centre[columns[c]] for c in names]], axis=1)
    known = found_all.covariance
    y = np.log([o.rate for o in good if o.rate is not None])
    between = _between(design, y, known)
    found, covariance, misfit = _general(design, y, known + between * np.eye(y.size))
    left = y.size - design.shape[1]
    covariance = covariance * max(misfit / left, 1.0)
    # Without scatter between groups the noise of the losses is what is left to be known, and that is known better; that there is no
    # scatter is itself a finding from few groups, hence twice and not more.
    used = left if between > 0 else min(2 * left, max(found_all.freedom, left))
    wide = float(special.stdtrit(used, 0.5 + level / 2)) * np.sqrt(np.diag(covariance))
    value = {c: float(-found[1 + i]) for i, c in enumerate(names)}
    interval = {c: (value[c] - float(wide[1 + i]), value[c] + float(wide[1 + i])) for i, c in enumerate(names)}
    shift = found[0] + sum(value[c] * centre[columns[c]] for c in names)
    return RateLaw(
        tuple(optima), float(np.exp(shift)), value.get("params"), interval.get("params"), value.get("tokens"),
        interval.get("tokens"), value.get("ray"), interval.get("ray"), slope, float(np.sqrt(between)), level, True, reasons,
        centre, covariance, int(used),
    )  # fmt: skip


def _groups(params: ArrayLike, tokens: ArrayLike, rate: ArrayLike, loss: ArrayLike) -> list[Group]:
    try:
        n, d, r, v = np.broadcast_arrays(*(np.asarray(c, float) for c in (params, tokens, rate, np.atleast_1d(loss))))
    except ValueError as error:
        raise InputError(
            "params, tokens, rate, loss", expected="columns of one length, or single numbers",
            got=[np.shape(c) for c in (params, tokens, rate, loss)], remedy="one entry a run",
        ) from error  # fmt: skip
    for name, column in (("params", n), ("tokens", d), ("rate", r)):
        if column.ndim != 1 or not np.isfinite(column).all() or (column <= 0).any():
            raise InputError(name, expected="positive numbers, shape (n,)", got=column, remedy="mend them")
    finite = np.isfinite(v)
    if not finite.any() or (v[finite] <= 0).any():
        raise InputError(
            "loss", expected="losses > 0, not finite where a run diverged", got=v, remedy="pass the whole loss"
        )
    groups = []
    for size, count in sorted({*zip(n.tolist(), d.tolist(), strict=True)}):
        mine = (n == size) & (d == count)
        kept = mine & finite
        if kept.any():
            groups.append(Group(size, count, np.log(r[kept]), np.log(v[kept]), np.log(r[mine & ~finite])))
    return groups


def _columns(sizes: np.ndarray, count: int) -> tuple[dict[str, int], dict[str, str], float | None]:
    """Which exponents the groups can tell: by name, the column of (log N, log D)."""
    if count < 3:
        return {}, {"law": f"{count} groups show a best rate, 3 are needed"}, None
    spans = np.exp(np.ptp(sizes, axis=0))
    columns: dict[str, int] = {}
    reasons = {}
    for j, name in enumerate(("params", "tokens")):
        if spans[j] < RANGE:
            reasons[name] = (
                f"{name} of the groups with a best rate span a factor {spans[j]:.2f} only, {RANGE:g} are needed"
            )
        else:
            columns[name] = j
    if not columns:
        return {}, reasons | {"law": "neither size nor tokens vary"}, None
    if len(columns) == 2:
        together = float(np.corrcoef(sizes.T)[0, 1])
        if abs(together) > ALIGNED:
            slope = float(np.polyfit(sizes[:, 0], sizes[:, 1], 1)[0])
            reason = (
                f"log N and log D are correlated by {together:.3f}: only the exponent along their ray is identified"
            )
            return {"ray": 0}, {"params": reason, "tokens": reason}, slope
    return columns, reasons, None


def _general(design: np.ndarray, y: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    weight = np.linalg.pinv(covariance, hermitian=True)
    spread = np.linalg.pinv(design.T @ weight @ design)
    found = spread @ design.T @ weight @ y
    rest = y - design @ found
    return found, spread, float(rest @ weight @ rest)


def _between(design: np.ndarray, y: np.ndarray, known: np.ndarray) -> float:
    """The variance between groups that makes the weighted misfit what chance makes it (Paule and Mandel)."""
    left = y.size - design.shape[1]
    if left < 1:
        return 0.0

    def excess(variance: float) -> float:
        return _general(design, y, known + variance * np.eye(y.size))[2] - left

    # Rounding: without any noise the known covariance is zero, and so is the misfit.
    smallest = 1e-18
    if excess(smallest) <= 0:
        return 0.0
    top = float(np.var(y)) + 1e-12
    while excess(top) > 0:
        top *= 4
    return float(optimize.brentq(excess, smallest, top))
