r"""The learning-rate schedule of least final loss in closed form, under L = L0 + A tau^-alpha + int K eta dtau.

K(s) = B C beta (1 + C s)^-(1 + beta), s the intrinsic time left. Formulas from `odescale.generated.schedule`, derived in
`derivations/schedule/optimal.py`. The gradient search `best_schedule` needs none of them and finds the same schedules.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real
from scipy.special import gamma, zeta

from odescale.analysis.forecast.fit import LawFit
from odescale.analysis.forecast.law_mean import LawMean
from odescale.clock import ConstantSchedule, CosineSchedule, Schedule, WarmupStableDecaySchedule
from odescale.errors import OutsideTheoryError, require_number
from odescale.generated import schedule as generated
from odescale.precision import require_x64

formulas: Any = generated  # plain arithmetic: NumPy arrays and floats pass as well

STAIRS = 4000
"""Stairs on which `loss_of` reads a schedule, log-spaced towards the end."""
ONE_MODE = 1e6
"""beta that stands for one relaxing mode: (1 + C s/beta)^-beta is exp(-C s) up to 1e-6."""


def _array(x: ArrayLike) -> Array:
    return jnp.asarray(x, dtype=float)


class OptimalSchedule(eqx.Module):
    r"""s(t) = min(1, (c/peak) (1 + c C (1 - beta) r/2)^((1 + beta)/(1 - beta))),  r = N - step: eta = peak s.

    A schedule as those of `odescale.schedules`: s(0) = 1, so that `peak` is the learning rate to give with it; beyond the horizon
    the last rate stays. With beta = 1 - 1/b the power is 2b - 1.

    - `horizon` N, SGD steps; `steps_per_unit` of the system's time t. `peak`, `last` (c, the rate of the last step), `max_rate`.
    - `decay`: steps of the decay, N where there is no plateau.
    - `source` alpha (the exponent s of the bias), `memory` beta = 1 - 1/capacity; `signal` A, `level` B, `speed` C, `floor` L0.
    - `loss`: predicted L at N; `bias`, `noise`: its two terms above L0. `tau`: intrinsic time at N.
    """

    horizon: Float[Array, ""] = eqx.field(converter=_array)
    steps_per_unit: Float[Array, ""] = eqx.field(converter=_array)
    max_rate: Float[Array, ""] = eqx.field(converter=_array)
    peak: Float[Array, ""] = eqx.field(converter=_array)
    last: Float[Array, ""] = eqx.field(converter=_array)
    decay: Float[Array, ""] = eqx.field(converter=_array)
    source: Float[Array, ""] = eqx.field(converter=_array)
    memory: Float[Array, ""] = eqx.field(converter=_array)
    signal: Float[Array, ""] = eqx.field(converter=_array)
    level: Float[Array, ""] = eqx.field(converter=_array)
    speed: Float[Array, ""] = eqx.field(converter=_array)
    floor: Float[Array, ""] = eqx.field(converter=_array)
    tau: Float[Array, ""] = eqx.field(converter=_array)
    bias: Float[Array, ""] = eqx.field(converter=_array)
    noise: Float[Array, ""] = eqx.field(converter=_array)

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        left = jnp.clip(self.horizon - jnp.asarray(t) * self.steps_per_unit, 0.0, self.decay)
        rate = formulas.best_rate_left(left, self.last, self.speed, self.memory)
        return jnp.minimum(rate / self.peak, 1.0)

    def integral(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """int_0^t s in closed form, up to the horizon and beyond."""
        step = jnp.asarray(t, dtype=float) * self.steps_per_unit
        flat = jnp.minimum(step, self.horizon - self.decay)
        left = jnp.clip(self.horizon - step, 0.0, self.decay)
        fallen = _lag(self.decay, self.last, self.speed, self.memory) - _lag(left, self.last, self.speed, self.memory)
        beyond = jnp.maximum(step - self.horizon, 0.0) * self.last / self.peak
        return (flat + fallen / self.peak + beyond) / self.steps_per_unit

    @property
    def kinks(self) -> tuple[Float[Array, ""], ...]:
        """Times (units of t) at which an integrator should step: the onset of the decay and the horizon."""
        return ((self.horizon - self.decay) / self.steps_per_unit, self.horizon / self.steps_per_unit)

    @property
    def loss(self) -> Float[Array, ""]:
        """L0 + A tau^-alpha + n at the horizon."""
        return self.floor + self.bias + self.noise

    @property
    def phase(self) -> str:
        """What long horizons want: "easy" (source >= 1 - 1/capacity, a power decay) or "hard" (a plateau and a late decay)."""
        return "easy" if float(self.source) >= float(self.memory) else "hard"

    @property
    def shape(self) -> str:
        """What this horizon wants: "power decay", or "plateau and decay" where the bound holds."""
        return "power decay" if float(self.decay) >= float(self.horizon) else "plateau and decay"

    @property
    def decay_share(self) -> float:
        """Share of the steps that the decay takes; 1 without a plateau."""
        return float(self.decay / self.horizon)

    @property
    def power(self) -> float:
        """(1 + beta)/(1 - beta) = 2 capacity - 1, the power of the decay; negative for beta > 1."""
        return float((1 + self.memory) / (1 - self.memory))

    @property
    def exponent(self) -> float:
        """p of L - L0 ~ N^-p at long horizons: alpha/(alpha + 1 - beta) if easy, alpha if hard."""
        easy = self.phase == "easy"
        return float(formulas.easy_exponent(self.source, self.memory)) if easy else float(self.source)

    @property
    def peak_exponent(self) -> float:
        """d log peak/d log N at long horizons; 0 if hard."""
        return float(formulas.peak_exponent(self.source, self.memory)) if self.phase == "easy" else 0.0

    @property
    def share_exponent(self) -> float:
        """d log decay_share/d log N at long horizons; 0 if easy."""
        return 0.0 if self.phase == "easy" else float(formulas.share_exponent(self.source, self.memory))

    def loss_of(self, schedule: Schedule, peak: float) -> float:
        """L at the horizon under the same law for rates peak * schedule(t): how another schedule fares.

        Read on 4000 stairs, fine towards the end, on which the noise is exact.
        """
        return float(self._losses(schedule, np.array([peak]))[0])

    def _losses(self, schedule: Schedule, peaks: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
        N = float(self.horizon)
        left = np.concatenate([N * np.geomspace(1.0, 1e-7, STAIRS), [0.0]])
        middle, width = 0.5 * (left[1:] + left[:-1]), -np.diff(left)
        shape = np.asarray(jax.vmap(schedule)(jnp.asarray((N - middle) / float(self.steps_per_unit))))
        stretch = np.concatenate([np.cumsum((shape * width)[::-1])[::-1], [0.0]])
        answer = formulas.noise_memory(peaks[:, None] * stretch, float(self.speed), float(self.memory))
        bias = float(self.signal) * formulas.bias_power(peaks * stretch[0], float(self.source))
        return float(self.floor) + bias + float(self.level) * peaks * (np.diff(answer, axis=1) @ shape)

    def references(self) -> dict[str, tuple[float, float, float]]:
        """Name -> (L at `max_rate`, L at its own best peak, that peak) of constant, cosine and WSD, to a tenth and to zero.

        WSD falls linearly in the last fifth, as in `best_schedule`; peaks on a grid of 60 from 1e-4 `max_rate` up.
        """
        end = float(self.horizon / self.steps_per_unit)
        top = float(self.max_rate)
        shapes: dict[str, Schedule] = {
            "constant": ConstantSchedule(),
            "cosine": CosineSchedule(end, 0.1),
            "cosine to zero": CosineSchedule(end, 0.0),
            "wsd": WarmupStableDecaySchedule(0.0, 0.8 * end, end, 0.1),
            "wsd to zero": WarmupStableDecaySchedule(0.0, 0.8 * end, end, 0.0),
        }
        out = {}
        for name, shape in shapes.items():
            peaks = top * np.geomspace(1e-4, 1.0, 60)
            losses = self._losses(shape, peaks)
            best = int(np.argmin(losses))
            out[name] = (float(losses[-1]), float(losses[best]), float(peaks[best]))
        return out

    def __str__(self) -> str:
        sign = ">=" if self.phase == "easy" else "<"
        if self.shape == "power decay":
            how = f"decay from the first step, about (1 - step/N)^{self.power:.3g}"
        else:
            how = f"{float(self.peak):.4g} held, then a decay over the last {self.decay_share:.1%}"
        return (
            f"{self.phase} task (alpha = {float(self.source):.4g} {sign} beta = {float(self.memory):.4g}): {how}; peak "
            f"{float(self.peak):.4g}, last rate {float(self.last):.3g}; L = {float(self.loss):.5g}, bias {float(self.bias):.3g} "
            f"and noise {float(self.noise):.3g} above the floor; L - L0 ~ N^-{self.exponent:.4g} at long horizons"
        )


def optimal_schedule(
    source: float,
    capacity: float,
    horizon: float,
    *,
    max_rate: float,
    signal: float | None = None,
    noise: float | None = None,
    speed: float | None = None,
    floor: float = 0.0,
    steps_per_unit: float = 1.0,
) -> OptimalSchedule:
    r"""min over 0 < eta <= max_rate of L0 + A tau_N^-s + int_0^tau_N K(tau_N - tau) eta dtau,  tau_N = int_0^N eta dr.

        K(u) = B C beta (1 + C u)^-(1 + beta),   beta = 1 - 1/capacity
        eta = min(max_rate, c (1 + c C r/(2 capacity))^(2 capacity - 1))    with r steps left

    The shape is exact at any horizon; only c is searched, on a line. **Easy** tasks, s >= beta: at long horizons the bound does not
    bind, eta = peak (1 - step/N)^(2 capacity - 1), peak ~ N^-((s - beta)/(s + 1 - beta)), L - L0 ~ N^-(s/(s + 1 - beta)).
    **Hard** ones, s < beta: max_rate up to a late decay whose share falls like N^-((beta - s)/(1 + beta)), L - L0 ~ N^-s.

    **Arguments**

    - `source` s > 0, `capacity` b > 1: lam_k ~ k^-b, lam_k theta_k^2 ~ k^-(s b + 1), as in `attention` and `transformer`; the
      bias falls like tau^-s. In `compute_optimal(a, b)` and `truncated_modes` a = s b + 1; Li et al. write s and beta = b.
    - `horizon` N > 0, SGD steps, `max_rate` > 0 per step: the largest rate that is stable; the law itself has no bound.
    - `signal` A, `noise` B (loss per rate at rest), `speed` C (1/tau), of a fit; without them those of one sample per step of
      lam_k = k^-b, e_k(0) = k^-(s b + 1), label noise 1. `floor` L0.
    - `steps_per_unit`: SGD steps in one unit of the system's t: `system.clock.steps_per_unit`.

    **Returns** `OptimalSchedule`: give it as `schedule` with `learning_rate=float(found.peak)`; after a warm-up as
    `WarmedSchedule(found, w)`.
    **Raises** `InputError`. **Good values**: A, B, C from `fit_law(runs, law="spectral")`, see `optimal_schedule_of`.
    **Failure regime**: the noise takes P = L0 + label noise as constant: rates so large that they double the loss, or an excess
    loss beside which the label noise is small; horizons whose tau passes the slowest mode.
    **Source**: Li et al. 2025, arXiv 2509.19189; Li et al. 2026, arXiv 2602.06797; derivation `schedule`.

    ```python
    from odescale import integrate, spectral
    from odescale.schedules import optimal_schedule
    found = optimal_schedule(1.0, 1.5, 2000, max_rate=0.1)
    print(found)  # easy: a power decay, L - L0 ~ N^-0.6
    rates = dict(learning_rate=float(found.peak), schedule=found)
    integrate(spectral(modes=100, spectrum_exponent=1.5, risk_exponent=2.5, batch=1, noise=1.0, **rates), 2000)
    ```
    """
    require_x64("optimal_schedule")
    s = require_number("source", source, open_=True)
    b = require_number("capacity", capacity, 1.0, open_=True)
    memory = float(formulas.memory_exponent(b))
    A, B, C = _of_spectrum(s, b)
    return _best(
        s, memory, horizon, max_rate, A if signal is None else signal, B if noise is None else noise,
        C if speed is None else speed, floor, steps_per_unit,
    )  # fmt: skip


def optimal_schedule_of(
    fit: LawFit | LawMean, horizon: float, *, max_rate: float, steps_per_unit: float = 1.0
) -> OptimalSchedule:
    r"""`optimal_schedule` with alpha, A, B, C, beta and L0 of a fitted law: spectral, or relaxing as its limit beta -> infinity.

        relaxing: K(u) = B C exp(-C u),   eta = min(max_rate, c/(1 - c C r/2))

    **Arguments**: `fit`: from `fit_law`, identified; or the `mean` of a `forecast`, whose heavier law of these two is taken.
    `horizon` in SGD steps, warm-up left out; `max_rate`: the peak that training bears. beta >= 1 has no capacity: always hard
    where alpha < beta, and the decay ends faster than any power.
    **Raises** `OutsideTheoryError` for an unidentified fit and for the other laws. **Failure regime**: that of the fit.
    """
    require_x64("optimal_schedule_of")
    if isinstance(fit, LawMean):
        able = [law for law in ("relaxing", "spectral") if law in fit.weights] or [fit.law]
        fit = fit.fits[max(able, key=fit.weights.__getitem__)]
    fit.require()
    if fit.law not in ("relaxing", "spectral"):
        raise OutsideTheoryError(
            "fit", expected="a law whose noise takes time to relax: relaxing or spectral", got=fit.law,
            remedy="with n = B eta the best rate is the peak up to the last step",
        )  # fmt: skip
    p = {name: float(value) for name, value in fit.parameters.items() if value is not None}
    memory = p.get("beta", ONE_MODE)
    speed = p["C"] if fit.law == "spectral" else p["C"] / ONE_MODE
    return _best(p["alpha"], memory, horizon, max_rate, p["A"], p["B"], speed, p["L0"], steps_per_unit)


def _of_spectrum(source: float, capacity: float) -> tuple[float, float, float]:
    """(A, B, C) of lam_k = k^-b, e_k(0) = k^-(s b + 1), one sample per step, label noise 1: steps "bias" and "step-down"."""
    memory, trace = float(formulas.memory_exponent(capacity)), float(zeta(capacity))
    bias = 2.0**-source * float(gamma(source)) / capacity
    return bias, trace / 2, 2 * (capacity * trace / float(gamma(memory))) ** (1 / memory)


def _lag(left: Any, last: Any, speed: Any, memory: Any) -> Any:
    """tau in the last `left` steps of the decay."""
    grown = jnp.log1p(last * speed * (1 - memory) * left / 2)
    return jnp.expm1(2 / (1 - memory) * grown) / speed


def _best(
    alpha: float, memory: float, horizon: float, max_rate: float, A: float, B: float, C: float, floor: float, unit: float
) -> OptimalSchedule:  # fmt: skip
    names = ("horizon", "max_rate", "signal", "noise", "speed", "steps_per_unit")
    N, top, A, B, C, unit = (
        require_number(name, value, open_=True)
        for name, value in zip(names, (horizon, max_rate, A, B, C, unit), strict=True)
    )
    floor = require_number("floor", floor, -np.inf)
    if abs(memory - 1) < 1e-7:  # exponential decay, as its neighbour
        memory = 1 - 1e-7
    low, high = np.log(top) - 90.0, np.log(top)
    for _ in range(6):  # a grid of log c, refined around its best
        c = np.exp(np.linspace(low, high, 601))
        family = _family(c, alpha, memory, N, top, A, B, C)
        i = int(np.argmin(family[-2] + family[-1]))
        step = (high - low) / 600
        low, high = np.log(c[i]) - 2 * step, min(np.log(c[i]) + 2 * step, np.log(top))
    decay, peak, tau, bias, noise = (float(v[i]) for v in family)
    best = float(c[i])
    return OptimalSchedule(N, unit, top, peak, best, decay, alpha, memory, A, B, C, floor, tau, bias, noise)


def _family(
    c: np.ndarray, alpha: float, memory: float, N: float, top: float, A: float, B: float, C: float
) -> tuple[np.ndarray, ...]:
    """(decay, peak, tau, bias, noise) of the schedules whose last rate is c (n,)."""
    half = (1 - memory) / 2
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        bound = np.expm1(2 / (1 + memory) * np.log(top / c)) / C
        met = np.expm1(half * np.log1p(C * bound)) / (half * c * C)
        free = met >= N
        reached = np.expm1(np.log1p(half * c * C * N) / half) / C
        lag = np.where(free, reached, bound)
        decay = np.where(free, N, met)
        tau = np.where(free, reached, bound + top * (N - met))
        before = formulas.noise_memory(lag, C, memory) - formulas.noise_memory(tau, C, memory)
        noise = formulas.step_price(c, C, memory, B) * decay + np.where(free, 0.0, B * top * before)
        peak = np.where(free, formulas.best_rate_at_lag(lag, c, C, memory), top)
        bias = A * formulas.bias_power(tau, alpha)
    return decay, np.minimum(peak, top), tau, np.where(tau > 0, bias, np.inf), noise
