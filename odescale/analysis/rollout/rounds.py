r"""Times of rounds and their slopes for many sets of costs at once, and least squares of many copies of a table.

    log tau(b; d, V),  theta = (log m_0, log q, k_v, c_0, c_1, c_1 c_2):  the costs of `odescale.systems.rollout.cost`

The product c_1 c_2 stands for c_2: tau is linear in it, and it may be 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from odescale.systems.rollout.cost import COSTS, Costs

NAMES = COSTS
LEAST_DRAFT = 1e-9
"""c_1 below which c_2 = (c_1 c_2)/c_1 would leave the numbers."""
STEPS = 200
LONGEST = 1.0
"""Longest step of a logarithm: a Gauss-Newton step may leave the place where it was linear."""
Numbers = ArrayLike | Sequence[Any]
"""A number, an array or a list of numbers."""
Model = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def as_theta(values: Float[np.ndarray, "... 6"]) -> Float[np.ndarray, "... 6"]:
    """theta of costs in the order of `NAMES`."""
    theta = np.array(values, float)
    theta[..., :2] = np.log(theta[..., :2])
    theta[..., 5] *= theta[..., 4]
    return theta


def as_values(theta: Float[np.ndarray, "... 6"]) -> Float[np.ndarray, "... 6"]:
    """Costs in the order of `NAMES`."""
    values = np.array(theta, float)
    values[..., :2] = np.exp(values[..., :2])
    values[..., 5] /= np.maximum(values[..., 4], LEAST_DRAFT)
    return values


def values_of(costs: Costs) -> Float[np.ndarray, " 6"]:
    """The costs in the order of `NAMES`."""
    return np.array([float(getattr(costs, name)) for name in NAMES])


def costs_of(values: Float[np.ndarray, " 6"]) -> Costs:
    """The way back from `values_of`."""
    return Costs(**dict(zip(NAMES, map(float, values), strict=True)))


def log_time(
    theta: Float[np.ndarray, "c 6"],
    batch: Float[np.ndarray, "... n"],
    depth: Float[np.ndarray, "... n"],
    verified: Float[np.ndarray, "... n"],
) -> tuple[Float[np.ndarray, "c n"], Float[np.ndarray, "c n 6"]]:
    """log tau and d log tau/d theta; depth 0 is plain decoding."""
    spec = depth > 0
    m0, sharp, context, fixed, draft, crowd = (theta[:, k, None] for k in range(6))
    q = np.exp(sharp)
    off = np.log(batch * np.where(spec, verified, 1.0)) - m0
    s = np.logaddexp(0.0, q * off)
    share = np.exp(q * off - s)
    T = np.exp(s / q)
    tau = T + context * (batch - 1) + np.where(spec, fixed + depth * (draft + crowd * batch), 0.0)
    slopes = np.zeros((*tau.shape, 6))
    slopes[..., 0] = -T * share
    slopes[..., 1] = T * (share * off - s / q)
    slopes[..., 2] = batch - 1
    slopes[..., 3] = spec
    slopes[..., 4] = depth * spec
    slopes[..., 5] = depth * batch * spec
    return np.log(tau), slopes / tau[..., None]


def round_times(
    values: Float[np.ndarray, "c 6"],
    batch: Float[np.ndarray, "... n"],
    depth: Float[np.ndarray, "... n"],
    verified: Float[np.ndarray, "... n"],
) -> Float[np.ndarray, "c n"]:
    """tau for many sets of costs in the order of `NAMES`."""
    return np.exp(log_time(as_theta(values), batch, depth, verified)[0])


def least_squares(
    model: Model,
    target: Float[np.ndarray, "c n"],
    start: Float[np.ndarray, "c p"],
    low: Float[np.ndarray, " p"],
    high: Float[np.ndarray, " p"],
    project: Float[np.ndarray, "n n"],
) -> tuple[Float[np.ndarray, "c p"], Float[np.ndarray, " c"]]:
    """(theta, sum of squares) of min |P (y - f(theta))|^2 within bounds, for every copy: damped Gauss-Newton steps.

    P takes out what enters linearly. A component with equal bounds stays; one at a bound moves only away from it.
    """
    theta = np.clip(start, low, high)
    f, slopes = model(theta)
    residual, J = (target - f) @ project, project @ slopes
    total = np.einsum("cn,cn->c", residual, residual)
    damping = np.full(theta.shape[0], 1e-2)
    running = np.arange(theta.shape[0])
    for _ in range(STEPS):
        if not running.size:
            break
        here, old = theta[running], total[running]
        pull = np.einsum("cnp,cn->cp", J[running], residual[running])
        free = (low < high) & ~((here <= low) & (pull < 0)) & ~((here >= high) & (pull > 0))
        pull = np.where(free, pull, 0.0)
        slope = J[running] * free[:, None]
        H = np.swapaxes(slope, 1, 2) @ slope
        size = np.einsum("cpp->cp", H)
        lift = damping[running, None] * size + 1e-14 * size.max(axis=1, keepdims=True) + 1e-300
        H[:, np.arange(low.size), np.arange(low.size)] += np.where(free & (size > 0), lift, 1.0)
        step = np.linalg.solve(H, pull[..., None])[..., 0]
        step[:, :2] = np.clip(step[:, :2], -LONGEST, LONGEST)
        trial = np.clip(here + step, low, high)
        f, slopes = model(trial)
        left = (target[running] - f) @ project
        new = np.einsum("cn,cn->c", left, left)
        better = new < old
        kept = running[better]
        theta[kept], total[kept], residual[kept] = trial[better], new[better], left[better]
        J[kept] = project @ slopes[better]
        damping[running] = np.clip(np.where(better, damping[running] / 5, damping[running] * 4), 1e-12, 1e12)
        # Settled: a step that was nearly free of damping gains nothing, or none gains however short.
        settled = (better & (old - new <= 1e-13 * old + 1e-30) & (damping[running] < 1e-3)) | (
            ~better & ((damping[running] > 1e8) | (np.abs(trial - here).max(axis=1) < 1e-12))
        )
        running = running[~settled]
    return theta, total
