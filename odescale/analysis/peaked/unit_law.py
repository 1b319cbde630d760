r"""Late laws of signs, and of Muon without momentum on two classes: the hardest sample of a batch is the step.

    sigma > 0:   D = c sigma int s dt,   Delta = D^-p int a s^2 D^p dt,   p = 2 h D/sigma        L = kappa/D
    sigma < 0:   D stops at sigma(D, Delta) = 0,   Delta = a s/(2 c h)

c and a: what a unit step moves and diffuses, s the schedule. Derived in `derivations/peaked/unit.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from odescale.analysis.peaked.layer import Exponents
from odescale.cache.programs import program
from odescale.expectations.softmax_race import largest_field
from odescale.expectations.unit_steps import ties
from odescale.generated import peaked as formulas
from odescale.systems.peaked import Peaked

FAR = 1e9
"""An overlap at which nothing but the hardest sample is left."""
APPROACH = 0.05
"""Relative distance of sigma, and of the local exponent, from their late values."""


class Late(NamedTuple):
    """`regime`, exponents, D, Delta, and why no clean power law holds."""

    regime: str
    powers: Exponents
    overlap: float
    spread: float
    reasons: list[str]


def hardest(classes: int, batch: int) -> tuple[float, float]:
    """(sigma, h D) as D -> infinity: negative sigma for many classes and B > 1, where signs drive D back."""
    J, m = ties(classes, batch), largest_field(classes)
    return (
        float(formulas.hardest_drift(m, J, float(batch), float(classes))),  # type: ignore[arg-type]
        float(formulas.hardest_contraction(J, float(classes))),  # type: ignore[arg-type]
    )


def unit_exponents(decay: float, contraction: float) -> Exponents:
    r"""Rate ~ t^-g, sigma > 0: D ~ t^(1 - g), Delta ~ t^(1 - 2 g) while g < (1 + p)/(2 + p), `contraction` p = 2 h D/sigma.

    Loss ~ Delta/D while Delta grows, 1/D after; error 1/2. For faster schedules nothing feeds Delta any more, Delta ~ D^-p; with
    one sample (p = 0) it stays.
    """
    overlap = 1 - decay
    spread = max(1 - 2 * decay, -contraction * overlap)
    return Exponents(overlap - max(spread, 0.0), overlap - spread / 2, overlap, spread)


def unit_law(system: Peaked, t: float, g: float) -> Late:
    """The law at time t (steps) of a system whose rate falls as t^-g."""
    assert system.unit is not None and system.unit.steps is not None
    sigma, hold = hardest(int(system.classes), int(system.batch))
    if sigma < 0:
        return _stopped(system, t, g)
    rate = float(system.learning_rate)
    speed, noise = (float(x) for x in _unit_step(system, FAR, 1.0)[:2])
    p = 2 * hold / sigma
    times = np.concatenate([[0.0], np.geomspace(1e-14 * t, t, 3000)])
    along = np.asarray(jax.vmap(system.schedule)(jnp.asarray(times)))
    gains = np.diff(times) * 0.5 * (along[1:] + along[:-1])
    D = float(system.overlap) + rate * speed * np.concatenate([[0.0], np.cumsum(gains)])
    fed = rate**2 * noise * np.diff(times) * 0.5 * (along[1:] ** 2 + along[:-1] ** 2)
    spreads = [float(system.spread)]
    for source, falls in zip(fed, p * np.maximum(0.0, np.log(D[1:] / np.maximum(D[:-1], 1e-12 * D[-1]))), strict=True):
        # Exact where D is a power and the source is even over a step.
        spreads.append(spreads[-1] * np.exp(-falls) + source * (-np.expm1(-falls) / falls if falls > 0 else 1.0))
    overlap, spread = float(D[-1]), float(spreads[-1])
    powers = unit_exponents(g, p)
    losses = np.asarray(formulas.layer_drift(system.race.m, jnp.asarray(np.array(spreads[-60:])))) / D[-60:]
    local = -float(np.gradient(np.log(losses), np.log(times[-60:]))[-1])
    reasons = []
    now = float(system.unit.steps(overlap, spread)[0])
    if abs(now / sigma - 1) > APPROACH:
        reasons.append(
            f"D = {overlap:.3g} at B = {int(system.batch)}: more than one sample of a batch counts, sigma is {now / sigma:.3g} of "
            "its late value"
        )
    if abs(local - powers.loss) > APPROACH:
        reasons.append(
            f"Delta = {spread:.2g} is neither small nor large: exponent {local:.3f}, later {powers.loss:.3g}"
        )
    if g >= 1:
        reasons.append("the rate falls as 1/t or faster: learning stops")
    return Late("single samples", powers, overlap, spread, reasons)


def _unit_step(system: Peaked, overlap: float, spread: float) -> tuple[float, float, float]:
    """(dD, noise of dDelta, contraction of Delta) per step at rate 1 and at (D, Delta)."""
    return tuple(float(x) for x in _unit_flow(system, jnp.asarray(overlap), jnp.asarray(spread)))  # type: ignore[return-value]


@program
def _unit_flow(system: Peaked, overlap: jax.Array, spread: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    steps, d = system.unit.steps, jnp.asarray(system.dimension)  # type: ignore[union-attr]
    sigma, h, centred = steps(overlap, spread)  # type: ignore[misc]
    one, none = jnp.asarray(1.0), jnp.zeros(())
    if system.optimizer == "sign":
        speed, noise = formulas.sign_flow(none, none, sigma, h, centred, one, d)
        held = formulas.sign_flow(none, one, sigma, h, none, one, d)[1]
    else:
        gain = jnp.asarray(system.unit.gain)  # type: ignore[union-attr]
        speed, noise = formulas.muon_pair_flow(none, none, sigma, h, one, gain, d)
        held = formulas.muon_pair_flow(none, one, sigma, h, one, gain, d)[1] - noise
    return speed, noise, -held


def _stopped(system: Peaked, t: float, g: float) -> Late:
    """D where sigma vanishes, with the spread that its own balance has there."""
    rate = float(system.learning_rate) * float(system.schedule(t))
    spread = 0.0
    overlap = 1.0
    for _ in range(30):
        found = np.geomspace(1e-2, 1e5, 60)
        speeds = [_unit_step(system, x, spread)[0] for x in found]
        place = int(np.flatnonzero(np.array(speeds) < 0)[0])
        at = spread
        new = brentq(lambda x, at=at: _unit_step(system, x, at)[0], found[place - 1], found[place], xtol=1e-10)
        _, noise, held = _unit_step(system, float(new), spread)
        settled = abs(new / overlap - 1) < 1e-6 and abs(rate * noise / held - spread) < 1e-6 * max(spread, 1e-9)
        overlap, spread = float(new), rate * noise / held
        if settled:
            break
    reasons = [
        f"the loss has a floor: signs of batches drive D back at K = {int(system.classes)}, B = {int(system.batch)}, it stops at "
        f"{overlap:.4g}"
    ]
    return Late("stop", Exponents(0.0, g / 2, 0.0, -g), overlap, spread, reasons)
