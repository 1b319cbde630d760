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

from odescale.cache.programs import program
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
    exact, ode = first, first
    steps = _Steps(system, noise)
    left, numbers = MOST_STEPS, MOST_NUMBERS
    worst, where, r, change = 0.0, 0, 0, np.inf
    least = RESOLVED * (first.sum() + noise)
    while r < int(end):
        parts = FINE[1] if change > FINE[0] else MIDDLE[1] if change > MIDDLE[0] else 1
        many = min(CHUNK, int(end) - r, left // parts, numbers // (parts * first.size))
        if many < 1:
            break
        left, numbers = left - many * parts, numbers - many * parts * first.size
        before = noise + ode.sum()
        exact, risk = steps.recursion(r, many, exact)
        ode, flowed = steps.flow(r, many, parts, ode)
        fine = (risk > least) & np.isfinite(flowed)
        kept = many if fine.all() else int(np.argmin(fine))
        if kept:
            errors = flowed[:kept] / risk[:kept] - 1
            at = int(np.argmax(np.abs(errors)))
            if abs(errors[at]) > abs(worst):
                worst, where = float(errors[at]), r + at + 1
        if kept < many:
            return StepError(worst, where, r + kept + 1, float(end))
        r += many
        change = abs(noise + ode.sum() - before) / before / many if before > 0 else np.inf
    return StepError(worst, where, r, float(end))


class _Steps:
    """Both paths, chunk by chunk: e -> (e after `many` SGD steps, E after each). What a constant rate repeats is made once."""

    def __init__(self, system: Spectral, noise: float):
        self.system, self.noise = system, noise
        self.constant = isinstance(system.schedule, ConstantSchedule)
        self.known: dict[int, Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {}

    def recursion(self, r: int, many: int, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Exact SGD from step r on: e <- G e + (eta^2/B) w P."""
        if self.constant:
            if 0 not in self.known:
                shrink, force = (values[0] for values in self._steps(np.zeros(1)))
                self.known[0] = _repeated(1 - shrink, force, np.zeros_like(force), self.noise)
            return self.known[0](many, e)
        shrink, force = self._steps(r + np.arange(CHUNK, dtype=float))
        sums = np.empty(many)
        for i in range(many):
            e = (1 - shrink[i]) * e + force[i] * (self.noise + e.sum())
            sums[i] = e.sum()
        return e, sums

    def flow(self, r: int, many: int, parts: int, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ODE from step r on, `parts` exponential steps to each: de = -a e + b P with P linear in between, exact for that."""
        h = 1 / parts
        if self.constant:
            if parts not in self.known:
                kept, begin, ramp = (values[0] for values in self._exponential(np.ones(1), h))
                self.known[parts] = _repeated(kept, begin - ramp, ramp, self.noise)
            e, sums = self.known[parts](many * parts, e)
            return e, sums[parts - 1 :: parts]
        # Always a whole chunk: another shape would be compiled.
        kept, begin, ramp = self._exponential(r + h * (np.arange(CHUNK * parts) + 0.5), h)
        solved = 1 / (1 - ramp.sum(axis=1))
        sums = np.empty(many)
        for j in range(many * parts):
            P = self.noise + e.sum()
            e = kept[j] * e + begin[j] * P
            # P at the end depends on the ramp that leads to it: solved for.
            e = e + ramp[j] * ((self.noise + e.sum() - P) * solved[j])
            if (j + 1) % parts == 0:
                sums[j // parts] = e.sum()
        return e, sums

    def _steps(self, times: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(values) for values in _of_steps(self.system, jnp.asarray(times)))

    def _exponential(self, times: np.ndarray, h: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(e^-x, the share of P at the begin, that of its rise) over a length h, x = a h."""
        decay, push = (np.asarray(values) for values in _of_flow(self.system, jnp.asarray(times)))
        x = decay * h
        # (1 - e^-x)/x and (1 - (1 - e^-x)/x)/x; their series where they cancel.
        small = x < 1e-4
        safe = np.where(small, 1.0, x)
        one = np.where(small, 1 - x / 2, -np.expm1(-x) / safe)
        two = np.where(small, 0.5 - x / 6, (1 - one) / safe)
        return np.exp(-x), h * push * one, h * push * two


def _repeated(
    kept: np.ndarray, begin: np.ndarray, end: np.ndarray, noise: float
) -> Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """n times e <- kept e + begin P + end P', P = noise + E before and P' after: (n, e) -> (e, E after each).

    E after n steps is `sum kept^n e` and a convolution of E itself with the powers of `kept`: blocks of `CHUNK` steps are one
    triangular system for E and one product with the powers, no loop over the steps.
    """
    powers = np.ones((CHUNK + 1, kept.size))
    np.multiply.accumulate(np.broadcast_to(kept, (CHUNK, kept.size)), axis=0, out=powers[1:])
    before, after = powers[:-1] @ begin, powers[:-1] @ end
    lag = np.subtract.outer(np.arange(CHUNK), np.arange(CHUNK))
    felt = np.where(lag >= 0, after[lag], 0.0) + np.where(lag >= 1, before[lag - 1], 0.0)
    solved = np.linalg.inv(np.eye(CHUNK) - felt)  # its leading blocks are those of shorter runs
    pushed = noise * np.cumsum(before + after)

    def block(n: int, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        E = solved[:n, :n] @ (powers[1 : n + 1] @ e + pushed[:n] + before[:n] * e.sum())
        P = noise + np.append(e.sum(), E)
        backwards = np.stack([P[n - 1 :: -1], P[:0:-1]]) @ powers[:n]
        return powers[n] * e + begin * backwards[0] + end * backwards[1], E

    def run(n: int, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sums = []
        for first in range(0, n, CHUNK):
            e, E = block(min(CHUNK, n - first), e)
            sums.append(E)
        return e, np.concatenate(sums)

    return run


@program
def _of_steps(system: Spectral, times: Array) -> tuple[Array, Array]:
    """1 - G_k and (eta^2/B) w_k of the SGD steps that begin at `times`."""
    eta = (system.learning_rate * jax.vmap(system.schedule)(times))[:, None]
    return formulas.shrinkage(system.eigenvalues, eta, system.batch), formulas.force(system.squares, eta, system.batch)


@program
def _of_flow(system: Spectral, times: Array) -> tuple[Array, Array]:
    return system.coefficients(jax.vmap(system.rate)(times))
