r"""The frozen-kernel dynamics solved: exact discrete gradient descent, and gradient flow where it has a closed form.

F(r+1) = F(r) - (eta/n) Theta g(F(r)),      square loss: modes (1 - eta lambda/n)^r, or e^(-eta lambda t/n) for the flow
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from odescale.cache.programs import program
from odescale.errors import InputError
from odescale.generated import kernel as formulas
from odescale.precision import require_x64
from odescale.systems.kernel import Kernel


class KernelPath(eqx.Module):
    """Outputs along the frozen-kernel dynamics at steps (or times) `t` (R,); one unit is one step of gradient descent.

    - `train` (R, N), `test` (R, M): outputs. `train_loss`, `test_loss` (R,).
    - `summed` (R, N): sum (integral) of the slopes g up to t: F = F(0) - (eta/n) Theta `summed`, and the weights of the linear
      network are theta_0 - (eta/n) J^T `summed`.
    - `dynamics`: "descent" or "flow".
    """

    t: Real[np.ndarray, " R"]
    train: Float[Array, "R N"]
    test: Float[Array, "R M"]
    train_loss: Float[Array, " R"]
    test_loss: Float[Array, " R"]
    summed: Float[Array, "R N"]
    dynamics: str = eqx.field(static=True)


def descent(system: Kernel, steps: Int[np.ndarray, " R"]) -> KernelPath:
    """F(r+1) = F(r) - (eta/n) Theta g(F(r)) at the given steps: by eigenmodes (square loss), step by step (cross-entropy).

    **Arguments**: `steps` (R,), increasing whole numbers >= 0. Exact: no discretisation error; square loss costs nothing more at
    a million steps than at one.

    **Raises** `InputError` for other steps, or for a learning rate beyond the stability bound (naming it).
    """
    counts = check_steps(steps)
    _ready(system)
    if system.loss == "square":
        summed = _mode_sums(system, jnp.asarray(counts, float), False)
    else:
        summed = _stepped_sums(system, jnp.asarray(counts))
    return kernel_path(system, counts, summed, "descent")


def gradient_flow(system: Kernel, t: Real[np.ndarray, " R"]) -> KernelPath:
    """F(t) of dF/dt = -(eta/n) Theta (F - Y), square loss, by eigenmodes; t in steps, increasing, >= 0.

    **Raises** `InputError` for cross-entropy, which has no closed form: `odescale.integrate`, or `predict(dynamics="flow")`.
    """
    times = np.asarray(t, dtype=float)
    if times.ndim != 1 or times.size < 1 or not np.all(np.isfinite(times) & (times >= 0)):
        raise InputError("t", expected="finite times >= 0", got=t, remedy="one unit is one step")
    _ready(system)
    if system.loss != "square":
        raise InputError(
            "loss", expected="square", got=system.loss, remedy="integrate the system with odescale.integrate"
        )
    return kernel_path(system, times, _mode_sums(system, jnp.asarray(times), True), "flow")


def check_steps(steps: Any) -> Int[np.ndarray, " R"]:
    """Increasing whole numbers >= 0, or an `InputError`."""
    counts = np.atleast_1d(np.asarray(steps))
    whole = counts.ndim == 1 and counts.size > 0 and counts.dtype.kind in "iu"
    if not whole or counts[0] < 0 or not np.all(np.diff(counts) > 0):
        raise InputError(
            "steps", expected="increasing whole numbers >= 0", got=steps, remedy="e.g. np.arange(0, 201, 10)"
        )
    return counts


def record_steps(steps: Any) -> Int[np.ndarray, " R"]:
    """The record steps behind `steps`: themselves, or 0 and about 50 up to the last one, denser at the start."""
    if isinstance(steps, int | np.integer) and not isinstance(steps, bool) and steps >= 1:
        return np.unique(np.concatenate([[0], np.round(np.geomspace(1, int(steps), 50)).astype(int)]))
    return check_steps(steps)


def _ready(system: Kernel) -> None:
    require_x64("kernel")
    system.check()


@program
def _mode_sums(system: Kernel, t: Float[Array, " R"], flow: bool) -> Float[Array, "R N"]:
    a = formulas.stability_ratio(system.eigenvalues, system.learning_rate, system.samples)
    solve = formulas.flow_modes if flow else formulas.descent_modes
    sums = jax.vmap(lambda r: solve(a, r)[1])(t)
    return (sums * (system.modes.T @ system.slopes(system.initial))) @ system.modes.T


@program
def _stepped_sums(system: Kernel, steps: Int[Array, " R"]) -> Float[Array, "R N"]:
    def one(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        F, total = carry
        g = system.slopes(F)
        return F + formulas.kernel_velocity(system.kernel, g, system.learning_rate, system.samples), total + g

    def until(carry: tuple[Array, Array], count: Array) -> tuple[tuple[Array, Array], Array]:
        carry = jax.lax.fori_loop(0, count, one, carry)
        return carry, carry[1]

    gaps = jnp.diff(steps, prepend=jnp.zeros(1, steps.dtype))
    return jax.lax.scan(until, (system.initial, jnp.zeros_like(system.initial)), gaps)[1]


def kernel_path(system: Kernel, t: np.ndarray, summed: Float[Array, "R N"], dynamics: str) -> KernelPath:
    """The path whose slopes have added up to `summed` at times t."""
    train, test, train_loss, test_loss = _evaluate(system, summed)
    return KernelPath(np.asarray(t), train, test, train_loss, test_loss, summed, dynamics)


@program
def _evaluate(system: Kernel, summed: Array) -> tuple[Array, Array, Array, Array]:
    rate = system.learning_rate / system.samples
    train = system.initial - rate * summed @ system.kernel.T
    test = system.test_initial - rate * summed @ system.test_kernel.T
    losses = jax.vmap(system.losses)(jnp.concatenate([train, test], axis=1))
    return train, test, *losses
