r"""Gradient and loss of a student aligned with its teacher, averaged over inputs of fluctuating length: the published numerics.

fields x W*, x ~ N(0, I_d), entries of W* N(0, 1/d):   given |x| they are |x|/sqrt(d) times standard normals, |x| ~ chi_d
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import special, stats

from odescale import InputError
from odescale.expectations.softmax_race import softmax_race
from odescale.precision import require_x64

RADIAL_NODES = 24
"""Gauss-Laguerre nodes of |x|^2/2; twice as many change no digit that is printed."""
GRADIENT_POINTS, LOSS_POINTS = slice(2, 60), slice(1, 10)
"""Points of the two published fits, as array slices: 0 is the student at zero, the last place is left out."""


class AlignedCurve(eqx.Module):
    """`student` b (n,), `gradient` dKL/db > 0 with its sign turned (n,), `loss` KL (n,) at the teacher's `teacher` b*."""

    student: Float[np.ndarray, " n"]
    gradient: Float[np.ndarray, " n"]
    loss: Float[np.ndarray, " n"]
    teacher: float

    def slope(self, name: str, points: slice) -> tuple[float, float]:
        """(slope, its standard error) of log `name` ("gradient" or "loss") against log b over `points`, by least squares."""
        x, y = self.student[points], getattr(self, name)[points]
        if x.size < 3 or not ((x > 0).all() and (y > 0).all()):
            raise InputError("points", expected="3 or more with b, gradient and loss above 0", got=points,
                             remedy="leave out the first and the last")  # fmt: skip
        fit: Any = stats.linregress(np.log(x), np.log(y))
        return float(fit.slope), float(fit.stderr)


def aligned_gradient_curve(
    temperature: float = 0.01,
    *,
    classes: int = 128,
    inputs: int = 32,
    points: int = 100,
    normalised: bool = False,
) -> AlignedCurve:
    r"""-dKL/db = E_r[r (Phi(r b*) - Phi(r b))] and KL = E_r[F(r b) - F(r b*) - r (b - b*) Phi(r b*)], r = |x|/sqrt(d).

    Student softmax(b z), teacher softmax(b* z) with the same fields z = x W, b* = 1/T; b = linspace(0, 1, points)/T. No time and
    no training is involved: the gradient is the speed of b per unit of learning rate.

    **Arguments** (defaults: the published numerics): `temperature` T > 0, `classes` K, `inputs` d, `points`; `normalised`: True
    for inputs of length sqrt(d), r = 1.
    **Returns** an `AlignedCurve`. **Errors**: `InputError`. **Good values**: T = 0.01, where the fitted slopes are -2.26 and
    -1.15; -2 and -1 are the limits of large b far below b*. **Failure regime**: fields of one input are normal over draws of W,
    which the average over inputs and W takes; a single W of K > d has correlated fields.
    Source: Liu, Liu, Pehlevan & Gore, arXiv 2602.03685, public code.
    """
    require_x64("aligned_gradient_curve")
    if not (np.isfinite(temperature) and temperature > 0):
        raise InputError("temperature", expected="a positive finite number", got=temperature, remedy="e.g. 0.01")
    for name, value, least in (("classes", classes, 2), ("inputs", inputs, 1), ("points", points, 3)):
        if isinstance(value, bool) or int(value) != value or value < least:
            raise InputError(name, expected=f"a whole number >= {least}", got=value, remedy="see the defaults")
    if normalised:
        r, weights = np.ones(1), np.ones(1)
    else:  # |x|^2/2 is Gamma(d/2)
        nodes, weights = special.roots_genlaguerre(RADIAL_NODES, inputs / 2 - 1)
        r, weights = np.sqrt(2 * nodes / inputs), weights / weights.sum()
    race = softmax_race(int(classes))
    b = np.linspace(0, 1, points) / temperature
    s, end = jnp.asarray(b[:, None] * r), jnp.asarray(r / temperature)

    def table(function: Any, at: Array) -> Array:
        return jax.vmap(function)(at.ravel()).reshape(at.shape)

    gap, last = table(race.gap, s), table(race.gap, end)
    loss = table(race.aligned_loss, s) - table(race.aligned_loss, end) - (end - s) * last
    return AlignedCurve(b, np.asarray((gap - last) * r) @ weights, np.asarray(loss) @ weights, 1 / temperature)
