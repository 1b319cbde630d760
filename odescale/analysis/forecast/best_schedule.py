"""The learning-rate schedule of least final loss under a fitted law, by the gradient through its ODE."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float
from scipy.special import ndtri

from odescale.analysis.forecast.fit import LawFit, evaluate
from odescale.analysis.forecast.law_mean import LawMean
from odescale.analysis.forecast.laws import course_of, law_named
from odescale.analysis.forecast.loss_curve import planned_curve
from odescale.cache.programs import program
from odescale.errors import InputError, OutsideTheoryError
from odescale.generated import schedule as formulas
from odescale.precision import require_x64

STAIRS = 200
ITERATIONS = 1000
REFERENCES = ("constant", "cosine", "wsd")


class BestSchedule(eqx.Module):
    """`step`, `rate` (m,): rate j holds on the interval that ends at step j, warm-up first; the final `loss`, 90 % `interval`.

    `references`: final losses of constant, cosine to a tenth and WSD (last fifth linear to a tenth) at the same steps and peak;
    `gain`: reference - best with its 90 % interval from the bootstrap, in which errors that both share cancel.
    """

    step: Float[np.ndarray, " m"]
    rate: Float[np.ndarray, " m"]
    loss: float
    interval: tuple[float, float]
    references: dict[str, float]
    gain: dict[str, tuple[float, float, float]]

    def __str__(self) -> str:
        rows = [
            f"best {self.loss:.4f} ({self.interval[0]:.4f} to {self.interval[1]:.4f}), last rate {self.rate[-1]:.3g}"
        ]
        for name, (middle, low, high) in self.gain.items():
            rows.append(f"{name} {self.references[name]:.4f}: {middle:.4f} ({low:.4f} to {high:.4f}) above")
        return "; ".join(rows)


def final_loss(
    law: str, vector: Float[Array, " parameters"], rate: Float[Array, " m"], width: Float[Array, " m"]
) -> Float[Array, ""]:
    """L at the end of a staircase of rates (m,) on intervals of `width` (m,) SGD steps from step 0, n(0) = 0; differentiable."""
    p = dict(zip(law_named(law).names, vector, strict=True))
    tau = jnp.cumsum(rate * width)
    bias = p["L0"] + p["A"] * formulas.bias_power(tau[-1], p["alpha"])
    if law == "relaxing":
        keep = formulas.noise_decay(rate * width, p["C"])

        def advance(noise: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
            eta, share = now
            return eta + (noise - eta) * share, None

        return bias + p["B"] * lax.scan(advance, jnp.zeros(()), (rate, keep))[0]
    before = jnp.concatenate([jnp.zeros(1), tau[:-1]])
    change = jnp.diff(rate, prepend=0.0)
    return bias + p["B"] * jnp.sum(change * (1 - formulas.noise_memory(tau[-1] - before, p["C"], p["beta"])))


def best_schedule(
    fit: LawFit | LawMean,
    *,
    steps: float,
    peak: float,
    warmup: float = 0.0,
    floor: float = 0.0,
) -> BestSchedule:
    """min over eta(r) of L(steps): monotone from `peak` after linear warm-up, >= `floor`, by Adam on 200 stairs.

        eta_j = peak - (peak - floor) sum_(i <= j) softmax(z)_i,   one more weight than stairs: the end may stay above the floor

    Stairs are finer towards the end, where the optimum bends. Started from four decays; the best is returned.

    **Arguments**: `fit`: relaxing or spectral, identified; or the `mean` of a `forecast`, whose heavier law of these two is
    taken. `steps`: budget in SGD steps, warm-up included; `peak`: eta, that of the fit or near it (the law says nothing of
    stability). `floor`: least rate.

    **The 90 % interval** is that of `forecast` for this schedule with a `mean`. A bare fit knows nothing of what its law misses:
    +- 1.645 (s_fit^2 + s_noise^2)^(1/2) then, too narrow for a promise.

    **Raises** `OutsideTheoryError` for an unidentified fit and for the instant law, under which any schedule is best that falls to
    its floor in the last step.
    **Failure regime**: rates below all fitted ones; the gain is then the law's extrapolation.
    """
    require_x64("best_schedule")
    mean = None
    if isinstance(fit, LawMean):
        able = [law for law in ("relaxing", "spectral") if law in fit.weights] or [fit.law]
        mean = fit.alone(max(able, key=fit.weights.__getitem__))
        fit = mean.fits[mean.law]
    fit.require()
    if fit.law not in ("relaxing", "spectral"):
        raise OutsideTheoryError(
            "fit", expected="a law whose noise takes time to relax: relaxing or spectral", got=fit.law,
            remedy="with n = B eta the best rate is the peak up to the last step",
        )  # fmt: skip
    for name, value, fine in (
        ("steps", steps, steps > warmup), ("peak", peak, peak > 0),
        ("floor", floor, 0 <= floor < peak), ("warmup", warmup, warmup >= 0),
    ):  # fmt: skip
        if not (np.isfinite(float(value)) and fine):
            raise InputError(name, expected="0 <= warmup < steps and 0 <= floor < peak", got=value, remedy="mend it")
    rise = np.linspace(0, warmup, 17)[1:] if warmup > 0 else np.zeros(0)
    # Quadratically finer towards the end: down to 1/40000 of the run.
    body = steps - (steps - warmup) * (1 - np.arange(1, STAIRS + 1) / STAIRS) ** 2
    step = np.concatenate([rise, body])
    width = np.diff(step, prepend=0.0)
    up = peak * (np.arange(rise.size) + 0.5) / max(rise.size, 1)
    vector = jnp.asarray(fit.vector)

    starts = _starts(step[rise.size :], warmup, steps)
    rise_rates, top, least = (jnp.asarray(v, float) for v in (up, peak, floor))
    rate = np.asarray(_minimise(fit.law, vector, jnp.asarray(width), rise_rates, top, least, starts))
    places = (step[rise.size :] - 0.5 * width[rise.size :] - warmup) / (steps - warmup)
    shapes = {
        "constant": np.ones(STAIRS),
        "cosine": 0.1 + 0.9 * (1 + np.cos(np.pi * places)) / 2,
        "wsd": 1 - 0.9 * np.clip((places - 0.8) / 0.2, 0, 1),
    }
    runs = {"best": rate} | {name: np.concatenate([up, peak * shape]) for name, shape in shapes.items()}
    law = law_named(fit.law)
    plans = {name: planned_curve(name, step, values, step[-1:]) for name, values in runs.items()}
    courses = {name: course_of(plan) for name, plan in plans.items()}
    middle = {name: float(evaluate(law, course, fit.vector)[-1]) for name, course in courses.items()}
    drawn = {name: np.array([evaluate(law, c, v)[-1] for v in fit.draws]) for name, c in courses.items()}
    if mean is None:
        spread = float(drawn["best"].std()) / middle["best"] if fit.draws.size else 0.0
        share = float(ndtri(0.95)) * float(np.hypot(spread, fit.rms))
    else:
        share = float(mean.parts(plans["best"]).half(np.ones(1, bool))[0])
    half = share * middle["best"]
    gain: dict[str, tuple[float, float, float]] = {}
    for name in REFERENCES:
        low, high = np.percentile(drawn[name] - drawn["best"], [5, 95]) if fit.draws.size else (np.nan, np.nan)
        gain[name] = (middle[name] - middle["best"], float(low), float(high))
    best = middle["best"]
    return BestSchedule(step, rate, best, (best - half, best + half), {n: middle[n] for n in REFERENCES}, gain)


def _starts(step: np.ndarray, warmup: float, steps: float) -> Float[Array, "starts stairs"]:
    place = (step - warmup) / (steps - warmup)
    drops = [np.diff(np.clip((place - onset) / (1 - onset), 0, 1), prepend=0.0) for onset in (0.0, 0.4, 0.7, 0.9)]
    return jnp.asarray(np.log(np.concatenate([np.array(drops), np.full((4, 1), 0.05)], axis=1) + 1e-4))


def _staircase(
    z: Float[Array, " edges"], up: Float[Array, " rise"], peak: Float[Array, ""], floor: Float[Array, ""]
) -> Float[Array, " m"]:
    return jnp.concatenate([up, peak - (peak - floor) * jnp.cumsum(jax.nn.softmax(z))[:-1]])


@program
def _minimise(
    law: str, vector: Array, width: Array, up: Array, peak: Array, floor: Array, starts: Float[Array, "starts edges"]
) -> Float[Array, " m"]:
    rule = optax.adam(optax.cosine_decay_schedule(0.1, ITERATIONS))

    def loss(z: Array) -> Array:
        return final_loss(law, vector, _staircase(z, up, peak, floor), width)

    def one(z: Array) -> tuple[Array, Array]:
        def advance(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
            z, memory = carry
            # The loss hardly moves beside its floor: in units of the noise that is to be saved.
            slope = jax.grad(loss)(z) * 1e3
            updates, memory = rule.update(slope, memory)
            return (jnp.asarray(optax.apply_updates(z, updates)), memory), None

        (end, _), _ = lax.scan(advance, (z, rule.init(z)), None, length=ITERATIONS)
        return loss(end), end

    losses, ends = jax.vmap(one)(starts)
    return _staircase(ends[jnp.argmin(losses)], up, peak, floor)
