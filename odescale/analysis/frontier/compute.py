"""The compute-optimal frontier of a `RiskLaw` in closed form: optimal sizes, risk, exact local exponent, critical compute C*."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Real

from odescale.analysis.frontier.lambert import lambert_lower, solve_balance
from odescale.analysis.frontier.risk_law import TIME, RiskLaw
from odescale.cache.programs import program
from odescale.errors import InputError, OutsideTheoryError
from odescale.generated import frontier as formulas
from odescale.precision import require_x64
from odescale.systems.parameters import is_traced


class Frontier(eqx.Module):
    """The least risk at every compute: sizes x*, time t*, R*, the local exponent p = -dlog R*/dlog C, the multiplier mu = p R*.

    - `names` (n): sizes. `compute`, `time`, `risk`, `exponent`, `multiplier` (m,); `sizes` (m, n). Time in the law's unit (with
      a rate per SGD step: steps); NaN where the law has no time.
    - `held` (m, n + 1): the size (last: the time) is at its floor or bound. `valid` (m,): the numbers there are the least risk
      among trained models and beat not training at all; NaN elsewhere.
    - `method`: how it was found.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    compute: Float[Array, " m"]
    sizes: Float[Array, "m n"]
    time: Float[Array, " m"]
    risk: Float[Array, " m"]
    exponent: Float[Array, " m"]
    multiplier: Float[Array, " m"]
    held: Bool[Array, "m n+1"]
    valid: Bool[Array, " m"]
    method: str = eqx.field(static=True)

    def __check_init__(self) -> None:
        if self.compute.ndim != 1 or self.sizes.shape != (*self.compute.shape, len(self.names)):
            raise InputError("Frontier", expected="one row of sizes per compute", got=self.sizes.shape,
                             remedy="use compute_frontier or numeric_frontier")  # fmt: skip

    @property
    def released(self) -> Int[Array, " m"]:
        """How many sizes are free at each compute."""
        return jnp.sum(~self.held[:, : len(self.names)], axis=-1)

    def size(self, name: str) -> Float[Array, " m"]:
        """The optimal values of one size, or of the time. **Raises** `InputError`."""
        if name == TIME:
            return self.time
        if name not in self.names:
            raise InputError("name", expected=f"one of {(*self.names, TIME)}", got=name, remedy="pick one")
        return self.sizes[:, self.names.index(name)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: lists, sizes and `held` by name, None for NaN. Time in the law's unit."""

        def numbers(values: Any) -> list[float | None]:
            return [float(v) if np.isfinite(v) else None for v in np.asarray(values)]

        rows = ("compute", "time", "risk", "exponent", "multiplier")
        names = (*self.names, TIME)
        return {name: numbers(getattr(self, name)) for name in rows} | {
            "sizes": {name: numbers(self.size(name)) for name in self.names},
            "held": {name: np.asarray(self.held[:, i]).tolist() for i, name in enumerate(names)},
            "valid": np.asarray(self.valid).tolist(),
            "method": self.method,
        }


class CriticalCompute(eqx.Module):
    """C*, the end of the exponential phase of the frontier, or the reason why there is none.

    - `found`, `reason`. `time` t* (unit of the law), `compute` C* (unit of C), `multiplier` g; None without one.
    - `first`: the size that is released at C*. `releases`: (size, C at which it leaves its floor, mu there) in order; C = 0 for a
      size without floor or never held.
    - `exponent`: local exponent p at C*, continuous there; `slopes`: dlog p/dlog C just below and above; `jump`: their
      difference. `last`: C from which the exponent is that without floors, 1/(S + q_t/(lam t)).
    """

    found: bool
    reason: str
    time: float | None
    compute: float | None
    multiplier: float | None
    first: str | None
    releases: tuple[tuple[str, float, float], ...]
    exponent: float | None
    slopes: tuple[float, float] | None
    jump: float | None
    last: float

    def __str__(self) -> str:
        if not self.found:
            return self.reason
        return (
            f"C* = {self.compute:.7g} at t* = {self.time:.7g}: {self.first} is released; local exponent {self.exponent:.4g}, "
            f"its log-derivative jumps by {self.jump:.4g}; 1/S rules from {self.last:.4g} on"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class _Ordered(eqx.Module):
    """Sizes in the order of release (largest mu first), with what is summed over the released ones, (n + 1,) each."""

    order: Int[Array, " n"]
    amplitudes: Float[Array, " n"]
    exponents: Float[Array, " n"]
    costs: Float[Array, " n"]
    floors: Float[Array, " n"]
    release: Float[Array, " n"]
    S: Float[Array, " n+1"]
    log_scale: Float[Array, " n+1"]
    log_held: Float[Array, " n+1"]


def compute_frontier(law: RiskLaw, compute: Real[ArrayLike, " m"] | Sequence[float]) -> Frontier:
    r"""Sizes and time that minimise R at C = `compute`, each in closed form.

        A_i x_i^-alpha_i = mu q_i/alpha_i,  lam t exp(-lam t) D = mu q_t,  R = F + mu (S + q_t/(lam t)),  p = mu/R

    With F the terms held at floors and S over the released sizes; mu of C through Lambert's function.
    **Arguments**: `law` (`simple`: one term per variable; otherwise `tied_frontier`); `compute` (m,) > 0 in the unit of C.
    **Returns** `Frontier`; differentiable in the leaves of `law` and in `compute`. Not `valid`, and NaN: C below the floors; below
    the point where a minimum with training exists, lam t = 1 - q_t/S; R above D (not to train is better).
    With q_t > S and floors on some sizes only, optima that have hardly begun to train (lam t << 1, R next to D) are left out too.
    **Raises** `InputError`, `OutsideTheoryError` for a law that is not simple.
    **Source**: derivation `frontier`.
    """
    require_x64("compute_frontier")
    if not law.simple:
        raise OutsideTheoryError("law", expected="one term per variable (closed form)", got=str(law),
                                 remedy="use tied_frontier")  # fmt: skip
    return _closed_form(law, check_compute(compute))


@program
def _closed_form(law: RiskLaw, C: Float[Array, " m"]) -> Frontier:
    timed = law.time_kind == "exponential"
    parts = _ordered(law)
    log_c = jnp.log(C / law.unit)
    thresholds = _release_budgets(law, parts)
    k = jnp.sum(log_c[:, None] >= thresholds, axis=-1)
    if not timed:
        k = jnp.maximum(k, 1)  # below the first release the floors cost more than C
    S, scale, budget = parts.S[k], parts.log_scale[k], log_c - parts.log_held[k]
    if timed:
        t = solve_balance(*formulas.time_balance(budget, S, scale, law.decay, law.rate, law.time_cost))
        mu = formulas.time_multiplier(t, law.decay, law.rate, law.time_cost)
    else:
        t, mu = jnp.full(C.shape, jnp.nan), formulas.power_multiplier(budget, S, scale)
    free = jnp.arange(parts.order.size) < k[:, None]
    grown = formulas.size_of_multiplier(mu[:, None], parts.amplitudes, parts.exponents, parts.costs)
    x = jnp.where(free, grown, parts.floors)
    held = jnp.sum(jnp.where(free, 0.0, parts.amplitudes * _safe(parts.floors) ** -parts.exponents), axis=-1)
    if timed:
        p = formulas.held_exponent(mu, held, S, law.rate * t, law.time_cost)
    else:
        p = 1 / (held / mu + S)
    risk = mu / p
    # Kuhn-Tucker: a held size is worth at most mu at its floor, a released one has left it.
    slack = 1 + 1e-9
    valid = jnp.all(jnp.where(free, grown * slack >= parts.floors, mu[:, None] * slack >= parts.release), axis=-1)
    valid &= jnp.isfinite(risk) & (risk > 0)
    if timed:
        valid &= risk <= law.decay
    back = jnp.argsort(parts.order)
    x, fixed = x[:, back], ~free[:, back]
    if law.time_kind == "power":
        t, x, fixed_time = x[:, -1], x[:, :-1], fixed[:, -1:]
        fixed = jnp.concatenate([fixed[:, :-1], fixed_time], axis=-1)
    else:
        fixed = jnp.concatenate([fixed, jnp.zeros((C.size, 1), bool)], axis=-1)
    t, risk, p, mu = (jnp.where(valid, v, jnp.nan) for v in (t, risk, p, mu))
    x = jnp.where(valid[:, None], x, jnp.nan)
    return Frontier(law.names, C, x, t, risk, p, mu, fixed, valid, "closed form")


def critical_compute(law: RiskLaw) -> CriticalCompute:
    r"""t* = -(1/lam) W_-1(-q_t g/D), C* = c prod x_i0^q_i t*^q_t with g = max_i alpha_i A_i x_i0^-alpha_i/q_i.

    The frontier falls exponentially in C^(1/q_t) up to C*, since only t grows; then the sizes are released one by one.
    **Returns** `CriticalCompute`, with a reason instead of C* when a size has no floor, when the time is no exponential, and when
    q_t g/D >= 1/e. **Raises** `OutsideTheoryError` for a law that is not `simple`.
    """
    require_x64("critical_compute")
    if not law.simple:
        raise OutsideTheoryError("law", expected="one term per variable", got=str(law), remedy="use tied_frontier")
    parts = _ordered(law)
    names = (*law.names, TIME)
    order = [names[int(i)] for i in parts.order]
    budgets = np.asarray(_release_budgets(law, parts)) + float(jnp.log(law.unit))
    releases = tuple((name, float(np.exp(b)), float(mu)) for name, b, mu in
                     zip(order, budgets, parts.release, strict=True))  # fmt: skip
    last = max((c for _, c, _ in releases), default=0.0)

    def none(reason: str) -> CriticalCompute:
        text = f"no exponential phase: {reason}"
        return CriticalCompute(False, text, None, None, None, None, releases, None, None, None, last)

    if law.time_kind != "exponential":
        return none("the time is no exponential" if law.time_kind == "power" else "the law has no time")
    if not law.names:
        return none("no size competes with the time: it is exponential for ever")
    bare = [name for name, floor in zip(law.names, law.floors, strict=True) if float(floor) == 0]
    if bare:
        return none(f"{', '.join(bare)} has no floor, sizes grow from the start and the time costs logarithms only")
    g, D, q_t, rate = float(parts.release[0]), float(law.decay), float(law.time_cost), float(law.rate)
    if q_t * g / D >= np.exp(-1):
        return none(
            f"q_t g/D = {q_t * g / D:.4g} is not below 1/e: {order[0]} is worth more than the time from the start"
        )
    y = float(lambert_lower(formulas.rapidity_constant(*map(jnp.asarray, (g, D, q_t)))))
    S = float(parts.costs[0] / parts.exponents[0])
    held = float(jnp.sum(parts.amplitudes * parts.floors**-parts.exponents))
    p = 1 / (held / g + q_t / y)
    slopes = tuple(float(formulas.exponent_log_slope(*map(jnp.asarray, (p, s, y, q_t)))) for s in (0.0, S))
    jump = float(formulas.exponent_jump(*map(jnp.asarray, (S, y, q_t))))
    return CriticalCompute(
        True, f"only the time grows up to C*, then {order[0]} is released", y / rate, releases[0][1], g, order[0], releases, p,
        (slopes[0], slopes[1]), jump, last,
    )  # fmt: skip


def local_exponent(law: RiskLaw, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
    """1/(S + q_t/(lam t)), the exponent of the frontier where its optimal time is t and no size is at its floor.

    `t` in the law's unit; without exponential time 1/S whatever t. **Raises** `OutsideTheoryError` for a law that is not `simple`.
    """
    if not law.simple:
        raise OutsideTheoryError("law", expected="one term per variable", got=str(law), remedy="use tied_frontier")
    time = jnp.asarray(t, float)
    if law.time_kind != "exponential":
        return jnp.broadcast_to(1 / law.S, time.shape)
    return formulas.local_exponent(law.S, law.rate * time, law.time_cost)


def fixed_size_risk(
    law: RiskLaw, sizes: Real[ArrayLike, " n"], compute: Real[ArrayLike, " m"] | Sequence[float]
) -> Float[Array, " m"]:
    """R(x, t) at fixed sizes x, with t = (C/(c prod x_i^q_i))^(1/q_t): one model, trained ever longer.

    **Arguments**: `sizes` (n,) in the order of `law.names`; `compute` (m,) > 0 in the unit of C. **Returns** (m,), nowhere below
    the frontier of sizes that x may take. **Raises** `InputError`, `OutsideTheoryError` for a law in which time costs nothing.
    """
    require_x64("fixed_size_risk")
    if law.time_kind == "none" or not float(law.time_cost) > 0:
        raise OutsideTheoryError("law", expected="a time that costs compute", got=str(law), remedy="give time_cost")
    C, x = check_compute(compute), jnp.asarray(sizes, float)
    if x.shape != (len(law.names),) or not bool(jnp.all(jnp.isfinite(x) & (x > 0))):
        raise InputError(
            "sizes", expected=f"one positive number for each of {law.names}", got=sizes, remedy="see names"
        )
    t = (C / law.compute(x)) ** (1 / law.time_cost)
    return law.risk(jnp.broadcast_to(x, (C.size, x.size)), t)


def check_compute(compute: Any) -> Float[Array, " m"]:
    """`compute` as a flat array of positive finite numbers; `InputError` otherwise. Traced values pass."""
    C = jnp.atleast_1d(jnp.asarray(compute, float))
    if C.ndim != 1 or C.size == 0:
        raise InputError("compute", expected="one axis of values", got=C.shape, remedy="np.geomspace(1e6, 1e12, 50)")
    if not is_traced(C) and not bool(jnp.all(jnp.isfinite(C) & (C > 0))):
        raise InputError("compute", expected="positive finite numbers", got=compute, remedy="use the unit of the law")
    return C


def _ordered(law: RiskLaw) -> _Ordered:
    """A power-law time is one more size, the last."""
    places = [*range(len(law.names)), *([len(law.names)] if law.time_kind == "power" else [])]
    k = np.array([law.variable.index(i) for i in places], int)
    A, alpha = law.amplitudes[k], law.exponents[k]
    power = law.time_kind == "power"
    q = jnp.append(law.costs, law.time_cost) if power else law.costs
    x0 = jnp.append(law.floors, law.time_floor) if power else law.floors
    release = jnp.where(x0 > 0, formulas.release_multiplier(_safe(x0), A, alpha, q), jnp.inf)
    order = jnp.argsort(-release)
    A, alpha, q, x0, release = (v[order] for v in (A, alpha, q, x0, release))

    def summed(v: Float[Array, " n"]) -> Float[Array, " n+1"]:
        return jnp.concatenate([jnp.zeros(1), jnp.cumsum(v)])

    logs = q * jnp.log(_safe(x0))
    held = jnp.flip(summed(jnp.flip(logs)))
    return _Ordered(order, A, alpha, q, x0, release, summed(q / alpha), summed(formulas.log_scale(A, alpha, q)), held)


def _release_budgets(law: RiskLaw, parts: _Ordered) -> Float[Array, " n"]:
    """log C/c at which each size, in order, leaves its floor; -inf for one that no trained optimum holds there."""
    n = parts.order.size
    mu = jnp.where(jnp.isfinite(parts.release), parts.release, 1.0)
    before = jnp.arange(n)
    budget = parts.log_scale[before] - parts.S[before] * jnp.log(mu) + parts.log_held[before]
    known = jnp.isfinite(parts.release)
    if law.time_kind == "exponential":
        y = lambert_lower(formulas.rapidity_constant(mu, law.decay, law.time_cost))
        known &= jnp.isfinite(y)
        budget = budget + law.time_cost * jnp.log(jnp.where(known, y, 1.0) / law.rate)
    return jnp.where(known, budget, -jnp.inf)


def _safe(x0: Float[Array, " n"]) -> Float[Array, " n"]:
    """Floors with 1 in place of "none", where neither a power nor a logarithm may see a zero."""
    return jnp.where(x0 > 0, x0, 1.0)
