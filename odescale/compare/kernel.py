r"""The frozen-kernel prediction against a real run, and the verdict inside or outside the kernel regime.

The verdict needs no training: it corrects the prediction to first order for the drift of the kernel along the frozen path,

    F~(r+1) = F~(r) - (eta/n) [Theta_0 g(F~(r)) + (Theta(theta_r) - Theta_0) g_r],   theta_r = theta_0 - (eta/n) J_0^T sum_{s<r} g_s

with the drift in the direction of the slopes alone, a few Jacobian products at a handful of steps (Theta = J J^T with the first J
at the middle of a step, so that the second order of a step is in it). How far F~ is from the
frozen path is the function error to expect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree, Real

from odescale.cache.programs import program
from odescale.compare.verdict import Verdict
from odescale.errors import InputError, require_number, whole
from odescale.generated import kernel as formulas
from odescale.networks.sequence_model import trainable as default_trainable
from odescale.solve.integrate import integrate
from odescale.systems.kernel import Kernel
from odescale.systems.kernel_descent import KernelPath, descent, gradient_flow, record_steps
from odescale.training.kernel import all_outputs

TOLERANCE = 0.1
"""Function error up to which the frozen kernel counts as a description of a run."""
NODES = 12
"""Steps at which the drift along the frozen path is evaluated."""


class KernelRegime(eqx.Module):
    """Whether the frozen kernel will describe a run of `steps[-1]` steps, from quantities that need no training.

    - `verdict`: "agrees" means inside the kernel regime, "outside the theory" outside; its reasons carry the numbers.
    - `steps` (J,): where the drift was evaluated. `error` (J,): expected function error there, `function_errors` of F~
      against the frozen path, the larger of training and test outputs; `expected_error` the largest.
    - `drift` (J,): |(Theta_t - Theta_0) g|/|Theta_0 g| on the training outputs, the drift that the run feels.
    - `corrected`: the path F~ at those steps, a better prediction than the frozen one while the error is small.
    - `tolerance`: what counts as inside.
    """

    verdict: Verdict
    steps: Int[np.ndarray, " J"]
    error: Float[np.ndarray, " J"]
    drift: Float[np.ndarray, " J"]
    corrected: KernelPath
    tolerance: float

    @property
    def expected_error(self) -> float:
        """Largest expected function error."""
        return float(np.max(self.error))

    @property
    def inside(self) -> bool:
        """True inside the kernel regime."""
        return self.verdict.status == "agrees"


def predict(
    system: Kernel, steps: int | Sequence[int] | np.ndarray, *, dynamics: str = "descent", **options: Any
) -> KernelPath:
    """Outputs and losses of the frozen kernel at `steps`: exact gradient descent, or gradient flow.

    **Arguments**: `steps` a last step or record steps; `dynamics` "descent" (eigenmodes for square loss, step by step for
    cross-entropy) or "flow" (eigenmodes, or diffrax through `odescale.integrate`, to which `options` go).

    **Raises** `InputError`, also for a learning rate beyond the stability bound.
    """
    if dynamics == "descent":
        return descent(system, record_steps(steps))
    if dynamics != "flow":
        raise InputError("dynamics", expected='"descent" or "flow"', got=dynamics, remedy="descent is exact for a run")
    record = record_steps(steps)
    if system.loss == "square":
        return gradient_flow(system, record)
    if record[-1] == 0:
        raise InputError("steps", expected="a last step >= 1", got=steps, remedy="raise it")
    times = np.unique(np.concatenate([[0], record])).astype(float)
    trajectory = integrate(system, ts=times, **options)
    states = jnp.asarray(np.asarray(trajectory.state)[np.isin(times, record)])
    # Summed slopes follow from the outputs through the modes; those of no eigenvalue move no output.
    train, test = system.split(states)
    scale = system.learning_rate / system.samples * system.eigenvalues
    floor = 1e-12 * system.eigenvalues[-1] * system.learning_rate / system.samples
    moved = (system.initial - train) @ system.modes
    summed = jnp.where(scale > floor, moved / jnp.maximum(scale, floor), 0.0) @ system.modes.T
    losses = jax.vmap(system.losses)(states)
    return KernelPath(record, train, test, *losses, summed, "flow")


def kernel_regime(
    network: eqx.Module,
    system: Kernel,
    x: Real[ArrayLike, "n ..."],
    x_test: Real[ArrayLike, "m ..."] | None = None,
    *,
    steps: int,
    tolerance: float = TOLERANCE,
    nodes: int = NODES,
    trainable: PyTree | None = None,
    output: Callable[[Array], Array] | None = None,
) -> KernelRegime:
    """Inside or outside the kernel regime over `steps` steps of gradient descent, without training.

    **Arguments**: `network`, `x`, `x_test`, `trainable`, `output`: what `system` (by `kernel_system`) was built from. `steps` >= 1.
    `tolerance` > 0: function error up to which a run counts as inside. `nodes` >= 3: steps where the drift is evaluated.

    **Cost**: 4 `nodes` passes over the data, and `steps` products with the kernel. **Returns** a `KernelRegime`.

    The estimate is first order in the drift: below the tolerance it is right within some ten per cent, around it within a third
    (too small by that much for un-centred starts), far above it only large.
    """
    require_number("tolerance", tolerance, open_=True)
    whole("nodes", nodes, 3, remedy="12 is a good value")
    whole("steps", steps, remedy="the length of the run")
    at = np.unique(np.concatenate([[0], np.round(np.geomspace(1, steps, int(nodes) - 1)).astype(int)]))
    path = descent(system, at)
    moved, rest = eqx.partition(network, default_trainable(network) if trainable is None else trainable)
    train = jnp.asarray(x)
    test = train[:0] if x_test is None else jnp.asarray(x_test)
    slopes = jax.vmap(system.slopes)(path.train)
    rate = system.learning_rate / system.samples
    pulled = [_products(moved, rest, output, train, test, rate, s, g) for s, g in zip(path.summed, slopes, strict=True)]
    train_drive = jnp.stack([p[0] for p in pulled]) - slopes @ system.kernel.T
    test_drive = jnp.stack([p[1] for p in pulled]) - slopes @ system.test_kernel.T
    corrected = _corrected(system, jnp.asarray(at), train_drive, test_drive)
    error = np.maximum(*function_errors(*corrected, path.train, path.test))
    drift = np.linalg.norm(train_drive, axis=1) / np.maximum(np.linalg.norm(slopes @ system.kernel.T, axis=1), 1e-300)
    losses = jax.vmap(system.losses)(jnp.concatenate(corrected, axis=1))
    best = KernelPath(at, *corrected, *losses, path.summed, "descent")
    return KernelRegime(_judge(error, drift, at, tolerance), at, error, np.asarray(drift), best, float(tolerance))


def function_errors(
    train: Array, test: Array, train_path: Array, test_path: Array
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    r"""|F - F_path|(t)/min(max_t |F_path - F_0|, |F_path(end)|), of training and of test outputs (two arrays).

    The distance to a path in units of its own length, or of the outputs at its end where these are smaller: a start far from
    zero makes a path long, and an error no better.

    **Arguments**: `train` (R, N), `test` (R, M) at the times of the paths, whose first time is 0. inf where a value is not finite.
    """
    found = []
    for values, predicted in ((train, train_path), (test, test_path)):
        length = np.linalg.norm(np.asarray(predicted - predicted[0]), axis=1).max()
        length = min(length, float(np.linalg.norm(np.asarray(predicted[-1]))))
        error = np.linalg.norm(np.asarray(values - predicted), axis=1) / max(length, 1e-300)
        found.append(np.where(np.isfinite(error), error, np.inf))
    return found[0], found[1]


def _judge(error: np.ndarray, drift: np.ndarray, at: np.ndarray, tolerance: float) -> Verdict:
    worst, felt = int(np.argmax(error)), float(np.max(drift))
    numbers = (
        f"expected function error {error[worst]:.3g} at step {at[worst]} (tolerance {tolerance:g})",
        f"kernel drift in the direction of the slopes {felt:.3g}",
    )
    if error[worst] <= tolerance:
        return Verdict("agrees", ("inside the kernel regime", *numbers))
    return Verdict("outside the theory", ("outside the kernel regime", *numbers))


@program
def _products(
    moved: PyTree, rest: PyTree, output: Callable | None, x: Array, x_test: Array, rate: Array, summed: Array, g: Array
) -> tuple[Array, Array]:
    """J(theta - rate/2 J^T g) J(theta)^T g on training and test outputs, at theta = theta_0 - rate J_0^T summed."""

    def outputs(m: PyTree, samples: Array) -> Array:
        return all_outputs(eqx.combine(m, rest), output, samples)

    def pull(m: PyTree, v: Array) -> PyTree:
        value, back = jax.vjp(lambda m: outputs(m, x), m)
        return back(v.reshape(value.shape).astype(value.dtype))[0]

    there = jax.tree.map(lambda w, d: w - rate.astype(w.dtype) * d, moved, pull(moved, summed))
    direction = pull(there, g)
    # At the middle of the step: that takes in the second order of a step, which is of the size of the drift over one step.
    middle = jax.tree.map(lambda w, d: w - 0.5 * rate.astype(w.dtype) * d, there, direction)
    return (
        jax.jvp(lambda m: outputs(m, x), (middle,), (direction,))[1].ravel(),
        jax.jvp(lambda m: outputs(m, x_test), (middle,), (direction,))[1].ravel(),
    )


@program
def _corrected(system: Kernel, at: Array, train_drive: Array, test_drive: Array) -> tuple[Array, Array]:
    """F~ at the nodes: the recursion with the drive interpolated linearly between them."""
    rate = system.learning_rate / system.samples
    zero = jnp.zeros_like(system.initial)

    def between(carry: tuple, interval: tuple) -> tuple[tuple, tuple]:
        (first, last), drives, test_drives = interval

        def step(r: Array, carry: tuple) -> tuple:
            F, driven, total = carry
            share = (r - first) / (last - first)
            g = system.slopes(F)
            F = F + formulas.kernel_velocity(system.kernel, g, system.learning_rate, system.samples)
            F = F - rate * ((1 - share) * drives[0] + share * drives[1])
            return F, driven - rate * ((1 - share) * test_drives[0] + share * test_drives[1]), total + g

        F, driven, total = jax.lax.fori_loop(first, last, step, carry)
        return (F, driven, total), (F, driven - rate * system.test_kernel @ total)

    intervals = tuple((values[:-1], values[1:]) for values in (at, train_drive, test_drive))
    _, (train, test) = jax.lax.scan(between, (system.initial, system.test_initial, zero), intervals)
    return jnp.vstack([system.initial, train]), jnp.vstack([system.test_initial, test])
