"""The frontier of anything: least risk over sizes, data and time at fixed compute, by zooming grids, all computes at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.analysis.frontier.compute import Frontier, check_compute, compute_frontier
from odescale.analysis.frontier.risk_law import TIME, RiskLaw
from odescale.analysis.frontier.tied import tied_frontier
from odescale.cache.programs import program
from odescale.errors import InputError, require_number
from odescale.precision import require_x64

_FIRST, _NEXT = 4096, 1000
"""Points of the first grid and of the later ones, all axes together."""
_SHRINK = 0.7
_EDGE = 1e-7
"""Distance in the logarithm at which a variable counts as on its bound."""
_BISECTIONS = 60


class PowerCost(eqx.Module):
    """C = c prod_i z_i^q_i of named variables: `powers` q, `unit` c."""

    powers: dict[str, Float[Array, ""]]
    unit: Float[Array, ""]

    def __call__(self, **values: Real[ArrayLike, ""]) -> Float[Array, ""]:
        total = jnp.log(self.unit)
        for name, q in self.powers.items():
            total = total + q * jnp.log(values[name])
        return jnp.exp(total)


class LawRisk(eqx.Module):
    """`RiskLaw.risk` with the variables by name, as `numeric_frontier` calls it."""

    law: RiskLaw

    def __call__(self, **values: Real[ArrayLike, ""]) -> Float[Array, ""]:
        x = [values[name] for name in self.law.names]
        return self.law.risk(jnp.stack(x) if x else jnp.zeros(0), values.get(TIME, jnp.asarray(jnp.inf)))


def numeric_frontier(
    risk: Callable[..., Any],
    compute: Real[ArrayLike, " m"] | Sequence[float],
    bounds: Mapping[str, tuple[float, float]],
    cost: Callable[..., Any] | Mapping[str, float],
    *,
    unit: float = 1.0,
    rounds: int = 80,
    smooth: bool = True,
) -> Frontier:
    r"""min R(z) at C(z) = `compute` over z_low <= z <= z_high, for any risk and any cost.

    In log z, the last variable eliminated by the budget: a grid over the box, then ever smaller grids around the best point;
    no gradient needed and the first grid sees the whole box. All computes in one vmapped call.
    **Arguments**

    - `risk`: `risk(width=..., data=..., time=...)` -> scalar > 0, traceable by JAX (a formula, an ODE solved by diffrax, a table
      under `jnp.interp`); an `equinox.Module` compiles once for all its leaves.
    - `compute` (m,) > 0. `bounds`: name -> (low, high), 0 < low < high; the last one is eliminated ("time": put it last).
    - `cost`: name -> power q of C = `unit` prod z^q, or a callable like `risk` that grows with the last variable.
    - `rounds`: grids, each 0.7 times as wide as the one before (80: widths fall by 4e-13). `smooth`: finish with two Newton steps
      and take p from the envelope, -(dR/dlog z)/(R dlog C/dlog z) of a free variable, exact; without (a risk without second
      derivatives) p is a difference along `compute`, as good as its spacing.

    **Returns** `Frontier`, `names` without the variable "time"; `held`: on a bound, where the answer is about the box. Where C buys
    less than the low bounds `valid` is False; where it buys more than all high bounds, the risk is that at the high bound.
    **Raises** `InputError`. **Good values**: bounds of four decades around the answer. More than four variables: coarse grids.
    """
    require_x64("numeric_frontier")
    C = check_compute(compute)
    names = tuple(bounds)
    if not names:
        raise InputError("bounds", expected="at least one variable", got=dict(bounds), remedy='{"width": (1, 1e6)}')
    for name, pair in bounds.items():
        if not (len(pair) == 2 and 0 < pair[0] < pair[1] < np.inf):
            raise InputError(f"bounds[{name!r}]", expected="0 < low < high", got=pair, remedy="a finite positive range")
    if not callable(cost):
        if set(cost) != set(names) or not cost[names[-1]] > 0:
            raise InputError("cost", expected=f"powers of {names}, the last positive", got=dict(cost),
                             remedy="one power per variable")  # fmt: skip
        cost = PowerCost({n: jnp.asarray(q, float) for n, q in cost.items()}, jnp.asarray(unit, float))
    low, high = (jnp.log(jnp.asarray([bounds[n][i] for n in names], float)) for i in (0, 1))
    X, R, p = _solve(risk, cost, jnp.log(C), low, high, names, int(rounds), bool(smooth))
    valid = jnp.isfinite(R) & (R > 0)
    if not smooth:
        if C.size < 3:
            raise InputError("compute", expected="at least 3 values when smooth=False", got=C.size, remedy="add some")
        p = jnp.asarray(-np.gradient(np.log(np.asarray(R)), np.log(np.asarray(C))))
    held = (X - low < _EDGE) | (high - X < _EDGE)
    z = jnp.where(valid[:, None], jnp.exp(X), jnp.nan)
    sizes = tuple(n for n in names if n != TIME)
    columns = np.array([names.index(n) for n in sizes], int)
    time = z[:, names.index(TIME)] if TIME in names else jnp.full(C.shape, jnp.nan)
    end = held[:, names.index(TIME)] if TIME in names else jnp.zeros(C.shape, bool)
    held = jnp.concatenate([held[:, columns], end[:, None]], axis=-1)
    R, p = jnp.where(valid, R, jnp.nan), jnp.where(valid, p, jnp.nan)
    return Frontier(sizes, C, z[:, columns], time, R, p, p * R, held, valid, "numeric")


@program
def _solve(
    risk: Callable[..., Any], cost: Callable[..., Any], targets: Float[Array, " m"], low: Float[Array, " v"],
    high: Float[Array, " v"], names: tuple[str, ...], rounds: int, smooth: bool,
) -> tuple[Float[Array, "m v"], Float[Array, " m"], Float[Array, " m"]]:  # fmt: skip
    def values(X: Array) -> dict[str, Array]:
        return dict(zip(names, jnp.exp(X), strict=True))

    def log_cost(X: Array) -> Array:
        return jnp.log(cost(**values(X)))

    def log_risk(X: Array) -> Array:
        return jnp.log(jnp.asarray(risk(**values(X)), float).reshape(()))

    def whole(free: Array, target: Array) -> tuple[Array, Array]:
        """All variables, and whether the budget reaches the low bound of the last."""
        if isinstance(cost, PowerCost):
            start = log_cost(jnp.append(free, 0.0))
            last = (target - start) / cost.powers[names[-1]]
            return jnp.append(free, jnp.minimum(last, high[-1])), last >= low[-1] - 1e-12

        def halve(_: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = (pair[0] + pair[1]) / 2
            under = log_cost(jnp.append(free, middle)) <= target
            return jnp.where(under, middle, pair[0]), jnp.where(under, pair[1], middle)

        below, above = jax.lax.fori_loop(0, _BISECTIONS, halve, (low[-1], high[-1]))
        # Two Newton steps from a start without derivatives: exact first and second derivatives go through.
        inside = jax.lax.stop_gradient((below + above) / 2)
        for _ in range(2):
            value, rate = jax.jvp(lambda u: log_cost(jnp.append(free, u)), (inside,), (jnp.ones(()),))
            inside = inside - (value - target) / rate
        capped = log_cost(jnp.append(free, high[-1])) <= target
        feasible = log_cost(jnp.append(free, low[-1])) <= target + 1e-12
        return jnp.append(free, jnp.where(capped, high[-1], inside)), feasible

    def objective(free: Array, target: Array) -> Array:
        X, feasible = whole(free, target)
        value = log_risk(X)
        return jnp.where(feasible & jnp.isfinite(value), value, jnp.inf)

    v = len(names) - 1

    def unit_grid(total: int) -> Array:
        # An odd number of points, so that the best point stays on the next grid.
        points = max(3, int(total ** (1 / max(v, 1)))) // 2 * 2 + 1
        axes = np.meshgrid(*[np.linspace(-1, 1, points)] * v, indexing="ij")
        return jnp.asarray(np.stack(axes, axis=-1).reshape(-1, v) if v else np.zeros((1, 0)))

    def search(target: Array) -> Array:
        many = jax.vmap(objective, in_axes=(0, None))
        lower, upper = low[:-1], high[:-1]

        def look(centre: Array, half: Array, unit: Array) -> Array:
            points = jnp.clip(centre + half * unit, lower, upper)
            return points[jnp.argmin(many(points, target))]

        half = (upper - lower) / 2
        first, later = unit_grid(_FIRST), unit_grid(_NEXT if v > 1 else 15)
        centre = look((lower + upper) / 2, half, first)
        spacing = 4.0 / max(int(round(first.shape[0] ** (1 / max(v, 1)))) - 1, 1)
        centre, _ = jax.lax.fori_loop(
            0, rounds, lambda _, s: (look(s[0], s[1], later), s[1] * _SHRINK), (centre, half * spacing)
        )
        if not (smooth and v):
            return centre
        stuck = (centre - lower < _EDGE) | (upper - centre < _EDGE)
        for _ in range(2):
            slope = jax.jacfwd(objective)(centre, target)
            curve = jax.jacfwd(jax.jacfwd(objective))(centre, target)
            slope = jnp.where(stuck, 0.0, slope)
            curve = jnp.where(stuck[:, None] | stuck[None, :], jnp.eye(v), curve)
            moved = jnp.clip(centre - jnp.linalg.solve(curve, slope), lower, upper)
            # A step that leaves the grid's accuracy is no polish; nor is one uphill.
            kept = jnp.all(jnp.isfinite(moved)) & jnp.all(jnp.abs(moved - centre) < 1e-3)
            kept &= objective(jnp.where(kept, moved, centre), target) <= objective(centre, target) + 1e-13
            centre = jnp.where(kept, moved, centre)
        return centre

    def finish(target: Array) -> tuple[Array, Array, Array]:
        free = search(target)
        X, feasible = whole(free, target)
        log_R = jnp.where(feasible, log_risk(X), jnp.nan)
        if not smooth:
            return X, jnp.exp(log_R), jnp.asarray(jnp.nan)
        ratio = -jax.jacfwd(log_risk)(X) / jax.jacfwd(log_cost)(X)
        open_ = (X - low > _EDGE) & (high - X > _EDGE)
        # A free variable far from its bounds; all of them agree at the optimum.
        room = jnp.where(open_ & jnp.isfinite(ratio), jnp.minimum(X - low, high - X), -jnp.inf)
        p = jnp.where(jnp.any(open_), ratio[jnp.argmax(room)], 0.0)
        return X, jnp.exp(log_R), p

    return jax.lax.map(finish, targets) if v > 2 else jax.vmap(finish)(targets)


class FrontierComparison(eqx.Module):
    """A closed-form frontier beside the numeric one of the same law, both valid at `compute`.

    `risk_error`, `exponent_error`, `size_error`, `time_error`: largest relative differences. `points`: computes compared.
    """

    analytic: Frontier
    numeric: Frontier
    risk_error: float
    exponent_error: float
    size_error: float
    time_error: float
    points: int

    def __str__(self) -> str:
        return (
            f"{self.analytic.method} against {self.numeric.method} at {self.points} computes: risk {self.risk_error:.1e}, "
            f"exponent {self.exponent_error:.1e}, sizes {self.size_error:.1e}, time {self.time_error:.1e} (relative)"
        )


def compare_frontiers(
    law: RiskLaw, compute: Real[ArrayLike, " m"] | Sequence[float], *, decades: float = 1.5
) -> FrontierComparison:
    """The frontier of `law` by its formulas and by `numeric_frontier`, which knows nothing but R and C.

    **Arguments**: `compute` (m,) where the formulas are valid; `decades`: the box around their answer, ended by the floors (and
    for an exponential time by the least lam t of a minimum, below which not to train would win).
    **Returns** `FrontierComparison`. **Raises** `InputError` when no compute is valid.
    """
    analytic = (compute_frontier if law.simple else tied_frontier)(law, compute)
    kept = np.asarray(analytic.valid)
    if not kept.any():
        raise InputError("compute", expected="values where the frontier exists", got="none", remedy="raise C")
    C = np.asarray(analytic.compute)[kept]
    factor = 10.0 ** require_number("decades", decades, 0.0, 100.0, open_=True)
    bounds, powers = {}, {}
    for i, name in enumerate(law.names):
        x = np.asarray(analytic.sizes)[kept, i]
        bounds[name] = (max(float(law.floors[i]), x.min() / factor), x.max() * factor)
        powers[name] = float(law.costs[i])
    if law.time_kind != "none":
        t = np.asarray(analytic.time)[kept]
        least = t.min() / factor
        if law.exponential:
            least = max(least, t.min() / 3)
        bounds[TIME] = (max(float(law.time_floor), least), t.max() * factor)
        powers[TIME] = float(law.time_cost)
    numeric = numeric_frontier(LawRisk(law), C, bounds, powers, unit=float(law.unit))

    def off(a: Array, b: Array) -> float:
        return float(np.max(np.abs(np.asarray(b) / np.asarray(a)[kept] - 1), initial=0.0))

    time = off(analytic.time, numeric.time) if law.time_kind != "none" else 0.0
    return FrontierComparison(
        analytic, numeric, off(analytic.risk, numeric.risk), off(analytic.exponent, numeric.exponent),
        off(analytic.sizes, numeric.sizes), time, int(kept.sum()),
    )  # fmt: skip
