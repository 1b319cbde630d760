r"""How far the log-rate ODE of a spectrum is from exact SGD because a step is not small, measured before anybody believes it.

    exact    e_k(r+1) = G_k e_k(r) + (eta^2/B) w_k P(r)
    ODE      de_k/dr = -a_k e_k + b_k P(t)

The ODE lets P change within a step. Both are followed side by side, step by step in NumPy: the ODE by exponential
steps with P linear in each, as many to an SGD step as the change of P asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.clock import ConstantSchedule
from odescale.generated import spectral as formulas
from odescale.systems.parameters import is_traced
from odescale.systems.spectral import Spectral

THRESHOLD = 0.02
"""Relative error of the excess risk beyond which it is said: `compare` lets theory and run differ by 5 %, and runs of a few
seeds are good to 1 or 2 %; what is smaller changes no conclusion."""
MOST_STEPS, MOST_NUMBERS = 5000, 20_000_000
"""Of the exponential steps, and of modes times steps: some tenths of a second."""
CHUNK = 64
FINE, MIDDLE = (0.02, 16), (0.002, 4)
"""(change of P in one SGD step, exponential steps that it takes beyond that)."""
RESOLVED = 1e-12
"""Share of the risk at the start below which the excess risk is rounding and its error nobody's concern."""


class StepError(NamedTuple):
    """`error`: E of the ODE over E of exact SGD, minus one, the largest in size over the SGD steps 1 to `measured`; at `step`.

    `asked`: the steps that were to be judged; beyond `measured` nothing was.
    """

    error: float
    step: int
    measured: int
    asked: float

    def __str__(self) -> str:
        whole = "" if self.measured >= self.asked - 1 else f" of {self.asked:.6g}"
        side = "below" if self.error < 0 else "above"
        return (
            f"an SGD step is not small here: the ODE's excess risk is {abs(self.error):.1%} {side} the exact recursion at step "
            f"{self.step}, the largest over the first {self.measured}{whole} steps; odescale.linear.exact_recursion has none of it"
        )

    def to_dict(self) -> dict[str, float]:
        """JSON-ready."""
        return dict(self._asdict())

    def remarks(self, threshold: float = THRESHOLD) -> list[str]:
        """One line where the error exceeds `threshold` (relative), otherwise none."""
        return [str(self)] if abs(self.error) > threshold else []


def step_error(
    system: Spectral, end: float, *, start: Float[np.ndarray, " modes"] | Float[Array, " modes"] | None = None
) -> StepError | None:
    """The largest relative distance of the ODE from exact SGD up to step `end`, from the system's start or from `start` (modes,).

    One unit of t is one SGD step. A constant rate errs most in its first steps, while P still falls fast, or grows with the
    number of e-folds of a risk that falls exponentially; where the run is longer than what is measured, `measured` says so.
    None under a JAX transformation and for a run of less than one step. **Failure regime**: a schedule that rises later.
    """
    leaves = [leaf for leaf in (*jax.tree_util.tree_leaves(system), start) if eqx.is_array(leaf) or is_traced(leaf)]
    if any(is_traced(leaf) for leaf in leaves) or is_traced(end) or not end >= 1:
        return None
    noise = float(system.residual_noise)
    first = np.asarray(system.start if start is None else start, dtype=float)
    exact, ode = first.copy(), first.copy()
    left, numbers = MOST_STEPS, MOST_NUMBERS
    worst, where, r, change = 0.0, 0, 0, np.inf
    least = RESOLVED * (first.sum() + noise)
    while r < int(end):
        parts = FINE[1] if change > FINE[0] else MIDDLE[1] if change > MIDDLE[0] else 1
        many = min(CHUNK, int(end) - r, left // parts, numbers // (parts * first.size))
        if many < 1:
            break
        left, numbers = left - many * parts, numbers - many * parts * first.size
        exact_step, ode_step = _recursion(system, r), _flow(system, r, parts, noise)
        before = noise + ode.sum()
        for i in range(many):
            exact = exact_step(i, exact)
            for j in range(i * parts, (i + 1) * parts):
                ode = ode_step(j, ode)
            r += 1
            if not (exact.sum() > least and np.isfinite(ode.sum())):
                return StepError(worst, where, r, float(end))
            error = float(ode.sum() / exact.sum() - 1)
            if abs(error) > abs(worst):
                worst, where = error, r
        change = abs(noise + ode.sum() - before) / before / many if before > 0 else np.inf
    return StepError(worst, where, r, float(end))


def _recursion(system: Spectral, r: int) -> Callable[[int, np.ndarray], np.ndarray]:
    """(i, e) -> e after SGD step r + i."""
    times = np.zeros(1) if _constant(system) else r + np.arange(CHUNK, dtype=float)
    shrink, force = (np.asarray(values) for values in _of_steps(system, jnp.asarray(times)))
    kept = 1 - shrink
    noise, last = float(system.residual_noise), len(kept) - 1

    def step(i: int, e: np.ndarray) -> np.ndarray:
        row = min(i, last)
        return kept[row] * e + force[row] * (noise + e.sum())

    return step


def _flow(system: Spectral, r: int, parts: int, noise: float) -> Callable[[int, np.ndarray], np.ndarray]:
    """(j, e) -> e after part j of the steps from r on: de = -a e + b P with P linear in between, exact for that."""
    h = 1 / parts
    # Always a whole chunk: another shape would be compiled.
    times = np.ones(1) if _constant(system) else r + h * (np.arange(CHUNK * parts) + 0.5)
    decay, push = (np.asarray(values) for values in _of_flow(system, jnp.asarray(times)))
    x = decay * h
    # (1 - e^-x)/x and (1 - (1 - e^-x)/x)/x; their series where they cancel.
    small = x < 1e-4
    safe = np.where(small, 1.0, x)
    one = np.where(small, 1 - x / 2, -np.expm1(-x) / safe)
    two = np.where(small, 0.5 - x / 6, (1 - one) / safe)
    left, begin, ramp = np.exp(-x), h * push * one, h * push * two
    solved = 1 / (1 - ramp.sum(axis=1))
    last = len(left) - 1

    def step(j: int, e: np.ndarray) -> np.ndarray:
        row = min(j, last)
        P = noise + e.sum()
        e = left[row] * e + begin[row] * P
        # P at the end depends on the ramp that leads to it: solved for.
        return e + ramp[row] * ((noise + e.sum() - P) * solved[row])

    return step


@eqx.filter_jit
def _of_steps(system: Spectral, times: Array) -> tuple[Array, Array]:
    """1 - G_k and (eta^2/B) w_k of the SGD steps that begin at `times`."""
    eta = (system.learning_rate * jax.vmap(system.schedule)(times))[:, None]
    return formulas.shrinkage(system.eigenvalues, eta, system.batch), formulas.force(system.squares, eta, system.batch)


@eqx.filter_jit
def _of_flow(system: Spectral, times: Array) -> tuple[Array, Array]:
    return system.coefficients(jax.vmap(system.rate)(times))


def _constant(system: Spectral) -> bool:
    return isinstance(system.schedule, ConstantSchedule)
