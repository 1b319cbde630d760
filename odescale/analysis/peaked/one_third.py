r"""The asymptotic law of a `Peaked` system: exponents, prefactors, and whether a run at time t is inside it.

The layer functions (drift, noise, error, fixed points, artanh law) are those of `odescale.generated.peaked`; the exponents are the
balances of `derivations/peaked/escapes.py`, which the tests hold them against.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import brentq

from odescale.analysis.peaked.layer import Exponents, adam_exponents, sgd_exponents, softplus_table, stationary_spread
from odescale.analysis.peaked.unit_law import unit_law
from odescale.cache.programs import program
from odescale.clock import (
    ConstantSchedule,
    GrowthSchedule,
    PowerSchedule,
    Schedule,
    schedule_integral,
)
from odescale.errors import InputError, require_number
from odescale.expectations.softmax_race import SoftmaxRace
from odescale.generated import peaked as formulas
from odescale.solve.coverage import LIMITS
from odescale.systems.parameters import is_traced
from odescale.systems.peaked import Peaked, samples_share

MAX_LAG_SHARE = 0.01
"""Share of the error exponent that the lag of the spread may cost."""
FASTEST_DECAY = 0.7
"""Power g of eta beta^2 ~ t^-g from which on the spread lags in any run of a practical length."""
LAYER_SHARE = 0.05
"""Relative deviation of the aligned loss from c/D below which the loss counts as that of the boundary layer."""
CLEAN = 1 / 20
"""D/b* up to which a finite teacher temperature leaves a clean power law."""
STOPPED = 0.01
"""(D/D_inf)^3 from which on weight decay is felt; share of the mean in the squared gradient that divided steps feel."""
CROSSOVER = 0.05
"""Relative distance of the local exponent from the asymptotic one, and lag of the spread, that divided steps may have."""
_LEAST = 1e-12


class PeakedLaw(eqx.Module):
    r"""L ~ kappa/D and error ~ m sqrt(Delta/pi)/D at late times, D and Delta as the balance of powers gives them.

    - `regime`: which law. `loss_exponent`, `error_exponent`: -dlog/dlog t of excess loss and of error as t -> infinity; 0 at a
      floor, NaN where there is no power law (no spread, hence no error; a schedule without a power). For a finite teacher
      temperature without noise `loss_exponent` is the local one of the artanh law, which holds on both sides of `hand_over`.
    - `loss`, `error`, `overlap`, `spread`: their asymptotic values at t, with logits beta lam: D is beta D, Delta is beta^2 Delta.
      NaN where the law gives exponents alone.
    - `kappa` = L D. `stationary_spread` Delta_inf at the rate of time t.
    - `hand_over` alpha_c and `cutoff` in units of t, where the power law becomes exponential; inf for hard labels.
    - `lag` (Delta - Delta_inf)/Delta_inf, as the ratio of rates gives it.
    - `inside`: a clean power law holds at t; `reasons`: why not, in words. One unit of t is d SGD steps (Adam: one step).
    """

    regime: str
    loss_exponent: float
    error_exponent: float
    loss: float
    error: float
    overlap: float
    spread: float
    kappa: float
    stationary_spread: float
    hand_over: float
    cutoff: float
    lag: float
    inside: bool
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        place = "inside" if self.inside else "outside: " + "; ".join(self.reasons)
        return f"{self.regime}: loss ~ t^-{self.loss_exponent:.4g}, error ~ t^-{self.error_exponent:.4g} ({place})"


def predict_law(system: Peaked, t: float) -> PeakedLaw:
    r"""The law that applies to `system` at time `t`, and whether that is a clean power law there.

        L = kappa/D,  kappa = m (pi^2/12 + Delta/2),  D^3 = 3/(K-1) int eta kappa/beta dt,  2 Delta = (eta/B) S(Delta)

    and its relatives: weight decay, finite teacher temperature, label smoothing, other losses of the margin, Adam, normalised
    steps, signs, Muon, schedules of eta and of the logits' inverse temperature. Nothing is integrated but the law itself.

    **Arguments**: `system`; `t` > 0, one unit being d SGD steps (Adam, signs, Muon: one step).
    **Returns** `PeakedLaw`. It is outside when the boundary layer does not make the loss yet (`LAYER_SHARE`), when the spread
    lags (bias of the error exponent above `MAX_LAG_SHARE` of it, or eta beta^2 falling as t^-g with g >= `FASTEST_DECAY`), when
    D > b*/20, when weight decay has stopped D, at a floor, and for schedules that are no power.
    **Good values**: K = 3, eta = 1: inside from t of a few hundred on. **Raises** `InputError`.
    """
    if any(is_traced(leaf) for leaf in (system.learning_rate, system.batch, system.classes)):
        raise InputError("system", expected="a concrete system", got="a traced one", remedy="call it outside jit")
    t = require_number("t", t, 1e-250)
    system.check()
    if system.unit is not None and system.unit.steps is not None:
        return _single_law(system, float(t))
    if system.optimizer != "sgd":
        return _divided_law(system, float(t))
    if float(system.smoothing) > 0 or system.loss == "square":
        return _stopped_law(system, float(t))
    return _layer_law(system, float(t))


# ---------------------------------------------------------------------------------------------------------------------
# SGD in the boundary layer
# ---------------------------------------------------------------------------------------------------------------------


def _layer_law(system: Peaked, t: float) -> PeakedLaw:
    m, others = float(system.race.m), float(system.classes) - 1
    noisy = float(system.noise) > 0
    spread_at = _stationary(system)
    times = np.concatenate([[0.0], np.geomspace(1e-6 * min(1.0, t), t, 600)])
    eta, beta = _along(system, times)
    spreads = np.array([spread_at(x) for x in eta * beta**2])
    drift = _drift(system, spreads)
    decay = float(system.weight_decay)
    gains = _middle(eta * drift / beta) * 3 / others
    cubes = [float(system.overlap) ** 3]
    for gain, step in zip(gains, np.diff(times), strict=True):  # d(D^3)/dt = gain - 3 w D^3
        kept = np.exp(-3 * decay * step)
        cubes.append(cubes[-1] * kept + gain * (-np.expm1(-3 * decay * step) / (3 * decay) if decay > 0 else step))
    cube = cubes[-1]
    D = float(beta[-1]) * cube ** (1 / 3)
    spread = spreads[-1]
    kappa = float(formulas.layer_drift(m, spread))  # type: ignore[arg-type]
    g, h = _slope(system.schedule, t), -_slope(system.logit_schedule, t)
    powers = sgd_exponents(g, h, noise=noisy)
    loss, regime, reasons = kappa / D, "one third" if g == h == 0 else "schedules", []
    reasons += _schedule_reasons(system)
    loss_exponent, error_exponent = powers.loss, powers.error
    error = float(formulas.layer_error(D, spread, m)) if noisy else 0.0  # type: ignore[arg-type]
    # Rate at which the spread relaxes, linearised about Delta_inf.
    effective = eta[-1] * beta[-1] ** 2
    lag, bias = _lag(system, t, spread_at, lambda time: float(beta[-1] * np.interp(time, times, cubes) ** (1 / 3)))
    if noisy and bias > MAX_LAG_SHARE * abs(error_exponent):
        reasons.append(f"the spread lags by {lag:.2g}: its exponent is off by {bias:.2g}")
    if noisy and g - 2 * h >= FASTEST_DECAY - 1e-9:
        reasons.append(f"the spread lags: eta beta^2 falls as t^-{g - 2 * h:.3g}, {FASTEST_DECAY:g} or faster")
    if g >= 1 + h:
        reasons.append(f"eta falls as t^-{g:.3g}, the logits' scale grows as t^{h:.3g}: learning stops")
    hand_over = cutoff = np.inf
    if not system.peaked_labels:
        b, c = float(system.inverse_temperature), float(system.race.c)
        arguments = (float(system.learning_rate), c, others + 1, b)
        hand_over, cutoff = (float(f(*arguments)) for f in (formulas.hand_over_time, formulas.cutoff_time))  # type: ignore[arg-type]
        if not noisy and g == h == 0:
            regime = "finite temperature"
            x = _place(t / (3 * hand_over))
            D, loss = b * x, float(formulas.finite_temperature_loss(x, c, b))  # type: ignore[arg-type]
            loss_exponent = float(formulas.finite_temperature_exponent(jnp.asarray(x)))
        if D > CLEAN * b:
            reasons.append(f"D = {D:.3g} is beyond b*/20 = {CLEAN * b:.3g}: the power law hands over to an exponential")
    reasons += _layer_reasons(system, D)
    if h > 0 and powers.overlap <= h:
        # D itself has come to rest, at what the early stage left: the law has the exponent, not the prefactor.
        D = loss = error = np.nan
    if decay > 0:
        limit = float(
            formulas.weight_decay_overlap(effective, drift[-1], others + 1, decay)  # type: ignore[arg-type]
        )
        if cube > STOPPED * (limit / beta[-1]) ** 3:
            regime = "weight decay"
            reasons.append(f"weight decay stops D at {limit:.4g}")
            if cube > 0.99 * (limit / beta[-1]) ** 3 and g == h == 0:
                loss_exponent = error_exponent = 0.0
    return PeakedLaw(
        regime, float(loss_exponent), float(error_exponent), float(loss), error, float(D), float(spread), kappa,
        float(spread), hand_over, cutoff, float(lag), not reasons, tuple(reasons),
    )  # fmt: skip


def _middle(values: np.ndarray) -> np.ndarray:
    return 0.5 * (values[1:] + values[:-1])


def _along(system: Peaked, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(eta, beta) at `times`."""
    eta = np.asarray(jax.vmap(system.schedule)(jnp.asarray(times))) * float(system.learning_rate)
    return eta, np.asarray(jax.vmap(system.logit_schedule)(jnp.asarray(times)))


def _stationary(system: Peaked) -> Callable[[float], float]:
    """Effective rate -> Delta_inf in the layer."""
    if float(system.noise) == 0:
        return lambda rate: 0.0
    per_batch = float(system.noise) / float(system.batch)
    known: dict[float, float] = {}

    def solved(rate: float) -> float:
        if system.loss == "cross_entropy":
            return stationary_spread(rate * per_batch)
        return _margin_spread(system, rate * per_batch)

    def cached(rate: float) -> float:
        key = float(f"{rate:.9e}")
        if key not in known:
            known[key] = solved(float(rate))
        return known[key]

    return cached


def _margin(system: Peaked, spread: float) -> tuple[float, float, float]:
    """(D^2 drift, D H, D G) of a loss of the margin in the layer, at an overlap where nothing else is left."""
    from odescale.expectations.margin import margin_moments

    far = 1e6
    found = margin_moments(system.loss, jnp.asarray(far), jnp.asarray(spread), system.focusing)
    return float(found.drift) * far**2, float(found.response) * far, float(found.second_moment) * far


def _margin_spread(system: Peaked, ratio: float) -> float:
    def residual(log_spread: float) -> float:
        spread = float(np.exp(log_spread))
        _, response, noise = _margin(system, spread)
        return -2 * response + ratio * noise / spread

    return float(np.exp(brentq(residual, np.log(1e-3 * ratio), np.log(10 * (ratio + ratio**2)), xtol=1e-10)))


def _drift(system: Peaked, spreads: np.ndarray) -> np.ndarray:
    """kappa of what is trained: D^2 (K-1)/eta dD/dt."""
    if system.loss == "cross_entropy":
        return np.asarray(formulas.layer_drift(system.race.m, jnp.asarray(spreads)))
    values = {x: _margin(system, x)[0] for x in set(spreads.tolist())}
    return np.array([values[x] for x in spreads.tolist()])


def _lag(
    system: Peaked, t: float, spread_at: Callable[[float], float], overlap_at: Callable[[float], float]
) -> tuple[float, float]:
    """((Delta - Delta_inf)/Delta_inf, what that adds to the error's exponent), to first order in the ratio of rates."""
    if float(system.noise) == 0:
        return 0.0, 0.0
    m, others = float(system.race.m), float(system.classes) - 1
    h = 0.02

    def at(time: float) -> float:
        eta, beta = (x[0] for x in _along(system, np.array([time])))
        later = [
            spread_at(float(np.prod(np.power(_along(system, np.array([time * np.exp(x)])), [[1], [2]]))))
            for x in (-h, h)
        ]
        moves = -(np.log(later[1]) - np.log(later[0])) / (2 * h) / time
        heats = (np.log(float(system.logit_schedule(time * (1 + h)))) - np.log(beta)) / np.log1p(h) / time
        relaxes = 2 * eta * beta**2 * m / (others * overlap_at(time))
        return (moves + 2 * heats) / relaxes

    low, high = at(t * np.exp(-5 * h)), at(t)
    return float(high), abs(float((np.log1p(high) - np.log1p(low)) / (10 * h)))


def _slope(schedule: Schedule, t: float) -> float:
    """-dlog s/dlog t as t -> infinity for the powers, at t for any other schedule."""
    if isinstance(schedule, ConstantSchedule):
        return 0.0
    if isinstance(schedule, (PowerSchedule, GrowthSchedule)):
        return float(schedule.power) * (1 if isinstance(schedule, PowerSchedule) else -1)
    h = 1e-3
    low, high = (float(schedule(t * np.exp(x))) for x in (-h, h))
    return -(np.log(max(high, 1e-300)) - np.log(max(low, 1e-300))) / (2 * h)


def _schedule_reasons(system: Peaked) -> list[str]:
    known = (ConstantSchedule, PowerSchedule, GrowthSchedule)
    return [
        f"{name} is no power of t: exponents are those of its local slope"
        for name in ("schedule", "logit_schedule")
        if not isinstance(getattr(system, name), known)
    ]


def _place(clock: float) -> float:
    """x = D/b* at artanh x - x = `clock` = eta c alpha/((K-1) b*^3)."""

    def residual(rapidity: float) -> float:
        x = jnp.tanh(rapidity)
        return float(formulas.finite_temperature_time(x, 1.0, 1.0, 2.0, 1.0)) - clock  # type: ignore[arg-type]

    if clock > 15:  # artanh x = clock + x, x = 1 within rounding
        return float(np.tanh(clock + 1))
    return float(np.tanh(brentq(residual, 1e-8, 18.0, xtol=1e-15)))


def _layer_reasons(system: Peaked, D: float) -> list[str]:
    off = abs(float(system.race.aligned_loss(jnp.asarray(D))) * D / float(system.race.c) - 1)
    if off <= LAYER_SHARE:
        return []
    edge = np.sqrt(2 * np.log(float(system.classes)))
    return [f"D = {D:.3g} against sqrt(2 ln K) = {edge:.3g}: the loss is off c/D by {off:.0%}, no boundary layer yet"]


# ---------------------------------------------------------------------------------------------------------------------
# A stop: label smoothing and the square loss
# ---------------------------------------------------------------------------------------------------------------------


@program
def _gap(race: SoftmaxRace, s: Float[Array, ""]) -> Float[Array, ""]:
    return race.gap(s)


@program
def _spread_flow(
    system: Peaked, t: Float[Array, ""], overlap: Float[Array, ""], spread: Float[Array, ""]
) -> Float[Array, ""]:
    """dDelta/dt at (D, Delta)."""
    return system.vector_field(t, jnp.stack([overlap, spread]))[1]


def _stopped_law(system: Peaked, t: float) -> PeakedLaw:
    """D where its drift vanishes, Delta where its own does, both of the exact flow; the error falls as sqrt(eta)."""
    m, others = float(system.race.m), float(system.classes) - 1
    g, h = _slope(system.schedule, t), -_slope(system.logit_schedule, t)
    beta = float(system.logit_schedule(t))
    if system.loss == "square":
        D = m / others
    else:
        kept = float(system.smoothing) * m
        D = float(brentq(lambda s: float(_gap(system.race, jnp.asarray(s))) - kept, 1e-9, 1e9, xtol=1e-12, rtol=1e-13))
    spread = 0.0
    time = jnp.asarray(t)
    if float(system.noise) > 0:
        place, width = jnp.asarray(D / beta), jnp.asarray(beta**2)

        def relative(x: float) -> float:
            return float(_spread_flow(system, time, place, jnp.exp(x) / width)) / np.exp(x)

        spread = float(np.exp(brentq(relative, np.log(_LEAST), np.log(1e4), xtol=1e-10)))
    reasons = ["the loss has a floor: D stops", *_schedule_reasons(system)]
    if not system.peaked_labels:
        reasons.append("finite teacher temperature")
    if float(system.weight_decay) > 0:
        reasons.append("weight decay moves the floor")
    if g >= 1:
        reasons.append("eta falls as 1/t or faster: learning stops")
    y = jnp.asarray([D / beta, spread / beta**2])
    loss = float(system.excess_loss(time, y))
    error = float(system.race.error(jnp.sqrt(spread) / D))
    return PeakedLaw(
        "stop", 0.0, (g - 2 * h) / 2 if float(system.noise) > 0 else np.nan, loss, error, D, spread, loss * D, spread,
        np.inf, np.inf, 0.0, False, tuple(reasons),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Signs and Muon where one sample is the step
# ---------------------------------------------------------------------------------------------------------------------


def _single_law(system: Peaked, t: float) -> PeakedLaw:
    """`unit_law`, with the loss and the error of the layer, or of the exact flow where D stops."""
    m, h = float(system.race.m), -_slope(system.logit_schedule, t)
    late = unit_law(system, t, _slope(system.schedule, t))
    reasons = [*late.reasons, *_schedule_reasons(system)]
    if h != 0:
        reasons.append("no law for a logit schedule with steps of one length")
    if float(system.weight_decay) > 0:
        reasons.append("weight decay is not part of this law")
    D, spread = late.overlap, late.spread
    if late.regime == "stop":
        loss = float(system.excess_loss(jnp.asarray(t), jnp.asarray([D, spread])))
        error = float(system.race.error(jnp.sqrt(spread) / D))
    else:
        reasons += _layer_reasons(system, D)
        loss = float(formulas.layer_drift(m, spread)) / D  # type: ignore[arg-type]
        error = float(formulas.layer_error(D, spread, m))  # type: ignore[arg-type]
    return PeakedLaw(
        f"{system.optimizer}, {late.regime}", late.powers.loss, late.powers.error, loss, error, D, spread, loss * D, spread,
        np.inf, np.inf, 0.0, not reasons, tuple(reasons),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Adam, normalised steps, Muon
# ---------------------------------------------------------------------------------------------------------------------


def _divided_law(system: Peaked, t: float) -> PeakedLaw:
    """The generated flow with the layer's limits: Delta at rest for every D, then t of D by quadrature."""
    m = float(system.race.m)
    g, h = _slope(system.schedule, t), -_slope(system.logit_schedule, t)
    reasons = _schedule_reasons(system)
    if h != 0:
        reasons.append("no law for a logit schedule with divided steps")
    if not system.peaked_labels or float(system.smoothing) > 0 or system.loss != "cross_entropy":
        reasons.append("the law of divided steps is that of cross-entropy on hard labels")
    noisy = float(system.noise) > 0
    rate = float(system.learning_rate) * float(system.schedule(t))
    D = np.geomspace(1.0, 1e12, 800)
    spreads = _divided_spread(system, D, rate) if noisy else np.zeros_like(D)
    speed, _, share = _divided_flow(system, D, spreads, rate)
    clock = float(schedule_integral(system.schedule, t)) * float(system.learning_rate) / rate
    passed = np.concatenate([[0.0], np.cumsum(np.diff(np.log(D)) * _middle(D / speed))]) + D[0] / speed[0]
    log_D = float(np.interp(np.log(clock), np.log(passed), np.log(D)))
    place = int(np.clip(np.searchsorted(np.log(D), log_D), 1, D.size - 2))
    overlap, spread = float(np.exp(log_D)), float(np.interp(log_D, np.log(D), spreads))
    kappa = float(formulas.layer_drift(m, spread))  # type: ignore[arg-type]
    mean, lag = float(share[place]), 0.0
    if not noisy or mean > 0.5:
        regime, powers = "mean gradient alone", Exponents(1 - g, np.nan, 1 - g, 0.0)
        if noisy:
            reasons.append(f"{mean:.0%} of the squared gradient is its mean: no power law between the two regimes")
    else:
        # Delta ~ D^(1/2) while it is small, D^(2/3) when it has grown.
        slope = float(np.gradient(np.log(spreads), np.log(D))[place])
        late = slope > (1 / 2 + 2 / 3) / 2
        regime, powers = ("late" if late else "small spread"), adam_exponents(g, late=late)
        losses = np.asarray(formulas.layer_drift(system.race.m, jnp.asarray(spreads))) / D
        local = -float(np.gradient(np.log(losses), np.log(passed))[place])
        steady = adam_exponents(0.0, late=late).loss
        if abs(local / steady - 1) > CROSSOVER:
            reasons.append(f"Delta = {spread:.2g} is neither small nor large: exponent {local:.3f} between 2/5 and 1/6")
        near = spread * np.array([0.99, 1.01])
        growth = _divided_flow(system, np.full(2, overlap), near, rate)[1]
        lag = powers.spread / t * (near[1] - near[0]) / (growth[1] - growth[0])
        if abs(lag) > CROSSOVER:
            reasons.append(f"the spread lags by {lag:.2g}")
        beyond = _samples_share(system, overlap)
        if beyond > LIMITS["samples"]:
            reasons.append(
                f"D is {beyond:.2g} of m times the samples that a step divides by (limit {LIMITS['samples']:g}): single ones "
                "outweigh the rest, and it is no longer their mean square"
            )
        if mean > STOPPED:
            reasons.append(f"{mean:.1%} of the squared gradient is its mean")
    if float(system.weight_decay) > 0:
        reasons.append("weight decay is not part of this law")
    reasons += _layer_reasons(system, overlap)
    error = float(formulas.layer_error(overlap, spread, m)) if noisy else 0.0  # type: ignore[arg-type]
    return PeakedLaw(
        f"{system.optimizer}, {regime}", powers.loss, powers.error, kappa / overlap, error, overlap, spread, kappa, spread,
        np.inf, np.inf, lag, not reasons, tuple(reasons),
    )  # fmt: skip


def _samples_share(system: Peaked, overlap: float) -> float:
    """`samples_share`, also of normalised steps; Adam's samples, over its memory, are many."""
    if system.optimizer == "normalised":
        return overlap / float(system.race.m * system.batch)
    return samples_share(system, overlap)


def _divided_flow(system: Peaked, D: np.ndarray, spreads: np.ndarray, rate: float) -> tuple[np.ndarray, ...]:
    """(dD/dt, dDelta/dt, share of the mean in the squared gradient) of the generated flow in the layer."""
    m, K, d = float(system.race.m), float(system.classes), system.dimension
    H = m / D
    noise = np.asarray(formulas.layer_noise(system.race.m, jnp.asarray(softplus_table()(spreads)))) / D
    gap = float(formulas.layer_drift(m, 0.0)) / D**2  # type: ignore[arg-type]
    batch = float(system.batch) / float(system.noise) if float(system.noise) > 0 else np.inf
    own: tuple[float, ...] = ()
    flow = formulas.adam_flow if system.optimizer == "adam" else formulas.normalised_flow
    if system.unit is not None:
        flow, own = formulas.muon_flow, (system.unit.gain, system.unit.length, system.unit.strength)
    speed, growth = flow(*map(jnp.asarray, (D, spreads, m, gap, H, noise, rate, *own, batch, K, d)))
    if system.unit is not None:
        batch = batch * system.unit.samples
    mean = (K - 1) * ((gap + H * spreads / (2 * D)) / (K - 1)) ** 2
    return np.asarray(speed), np.asarray(growth), mean / (mean + noise * d / batch)


def _divided_spread(system: Peaked, D: np.ndarray, rate: float) -> np.ndarray:
    """Delta at which the generated flow keeps it, for every D: bisection in log Delta, all at once."""
    low, high = np.full(D.shape, np.log(1e-20)), np.full(D.shape, np.log(1e12))
    for _ in range(60):
        middle = 0.5 * (low + high)
        grows = _divided_flow(system, D, np.exp(middle), rate)[1] > 0
        low, high = np.where(grows, middle, low), np.where(grows, high, middle)
    return np.exp(0.5 * (low + high))
