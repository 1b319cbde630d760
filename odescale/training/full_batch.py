r"""Exact full-batch gradient descent of any equinox network, with its outputs, its losses and the drift of its kernel recorded.

theta <- theta - eta grad L,     L = (1/n) sum_i l(f(x_i), y_i)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree
from tqdm import tqdm

from odescale.errors import InputError, SolveError
from odescale.expectations.tangent_kernel import MEMORY_LIMIT, tangent_kernel
from odescale.networks.sequence_model import trainable as default_trainable
from odescale.precision import require_x64
from odescale.systems.kernel import sum_of_losses
from odescale.systems.kernel_build import check_data
from odescale.systems.kernel_descent import check_steps


class KernelDrift(eqx.Module):
    r"""How far the tangent kernel of the training outputs has moved at steps (D,), measured on the real run.

    - `norm` (D,): |Theta_t - Theta_0|_F/|Theta_0|_F. `spectral` (D,): the same in spectral norms.
    - `by_smallest` (D,): |Theta_t - Theta_0|_2/lambda_min(Theta_0); below 1/2 no mode of the start is lost. Above it, and that is
      the rule for real data with their many small eigenvalues, it proves nothing either way.
    - `alignment` (D,): <Theta_t, Theta_0>/(|Theta_t|_F |Theta_0|_F).
    """

    step: Int[np.ndarray, " D"]
    norm: Float[np.ndarray, " D"]
    spectral: Float[np.ndarray, " D"]
    by_smallest: Float[np.ndarray, " D"]
    alignment: Float[np.ndarray, " D"]


class FullBatchRun(eqx.Module):
    """A run at record steps (R,): `train` (R, N), `test` (R, M) outputs, `train_loss`, `test_loss` (R,); one step is one unit.

    `drift`: of the kernel at the steps asked for, or None. `network`: the trained network. `weights_moved` (R,): |theta -
    theta_0|/|theta_0|. `learning_rate`, `loss`; `meta`: versions, device, seconds.
    """

    step: Int[np.ndarray, " R"]
    train: Float[np.ndarray, "R N"]
    test: Float[np.ndarray, "R M"]
    train_loss: Float[np.ndarray, " R"]
    test_loss: Float[np.ndarray, " R"]
    weights_moved: Float[np.ndarray, " R"]
    drift: KernelDrift | None
    network: eqx.Module
    learning_rate: float = eqx.field(static=True)
    loss: str = eqx.field(static=True)
    meta: dict[str, Any] = eqx.field(static=True)


@eqx.filter_jit
def _advance(
    moved: PyTree,
    rest: PyTree,
    output: Callable | None,
    x: Array,
    y: Array,
    loss: str,
    rate: Float[Array, ""],
    count: Int[Array, ""],
) -> PyTree:
    """`count` steps of gradient descent."""

    def objective(moved: PyTree) -> Array:
        F = all_outputs(eqx.combine(moved, rest), output, x)
        return sum_of_losses(loss, F.shape[-1] if F.ndim > 1 else 1, F.ravel(), y.ravel()) / x.shape[0]

    def step(_: Array, moved: PyTree) -> PyTree:
        return jax.tree.map(lambda w, g: w - rate.astype(w.dtype) * g, moved, jax.grad(objective)(moved))

    return jax.lax.fori_loop(0, count, step, moved)


def all_outputs(network: Any, output: Callable | None, x: Array) -> Array:
    """f(x_i) of all samples, (n, *outputs), for use inside a transformation."""
    return jax.vmap(network if output is None else lambda s: output(network(s)))(x)


@eqx.filter_jit
def _measure(
    network: Any, output: Callable | None, x: Array, y: Array, x_test: Array, y_test: Array, loss: str
) -> tuple[Array, Array, Array, Array]:
    F, F_test = (all_outputs(network, output, samples) for samples in (x, x_test))
    classes = F.shape[-1] if F.ndim > 1 else 1
    train_loss = sum_of_losses(loss, classes, F.ravel(), y.ravel()) / F.shape[0]
    test_loss = sum_of_losses(loss, classes, F_test.ravel(), y_test.ravel()) / max(F_test.shape[0], 1)
    return F.ravel(), F_test.ravel(), train_loss, test_loss


def train_full_batch(
    network: eqx.Module,
    x: Float[ArrayLike, "n ..."],
    y: Float[ArrayLike, "n ..."],
    x_test: Float[ArrayLike, "m ..."] | None = None,
    y_test: Float[ArrayLike, "m ..."] | None = None,
    *,
    learning_rate: float,
    steps: int | Sequence[int] | Int[np.ndarray, " R"],
    loss: str = "square",
    kernel_at: Sequence[int] = (),
    trainable: PyTree | None = None,
    output: Callable[[Array], Array] | None = None,
    memory_limit: int = MEMORY_LIMIT,
    progress: bool = False,
) -> FullBatchRun:
    """theta <- theta - eta grad (1/n) sum_i l_i, exactly as `kernel_system` predicts it: no minibatches, no momentum.

    **Arguments**

    - `network`, `x`, `y`, `x_test`, `y_test`, `loss`, `trainable`, `output`: as in `kernel_system`.
    - `learning_rate` per step (a lazy network of scale alpha: that of alpha = 1 divided by alpha^2).
    - `steps`: the last step (about 50 steps are recorded), or the record steps themselves, increasing, >= 0.
    - `kernel_at`: steps at which the tangent kernel is computed and compared with that at step 0; `memory_limit` as there.
    - `progress`: a bar on stderr.

    **Returns** a `FullBatchRun`. **Raises** `InputError` for bad data, `SolveError` when the loss stops being finite (it says at
    which step). **Good values**: `learning_rate=float(system.learning_rate)` of the kernel system it is compared with.
    """
    require_x64("train_full_batch")
    if not (np.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(
            "learning_rate", expected="a positive number", got=learning_rate, remedy="that of the kernel system"
        )
    if (x_test is None) != (y_test is None):
        raise InputError("y_test", expected="x_test and y_test both or neither", got=None, remedy="give both")
    record = record_steps(steps)
    kernels = np.unique(np.asarray([0, *kernel_at])) if len(kernel_at) else np.zeros(0, int)
    check_steps(kernels) if kernels.size else None
    if kernels.size and kernels[-1] > record[-1]:
        raise InputError("kernel_at", expected=f"steps up to {record[-1]}", got=kernels[-1], remedy="raise `steps`")
    check_data("y", network, x, y, loss, output)
    if x_test is not None:
        check_data("y_test", network, x_test, y_test, loss, output)
    x, y = jnp.asarray(x), jnp.asarray(y, float)
    test = (x[:0], y[:0]) if x_test is None else (jnp.asarray(x_test), jnp.asarray(y_test, float))
    moved, rest = eqx.partition(network, default_trainable(network) if trainable is None else trainable)
    start, began, now = moved, time.perf_counter(), 0
    rate, measured, drifts, reference = jnp.asarray(learning_rate, float), [], [], None
    for step in tqdm(np.unique(np.concatenate([record, kernels])).astype(int), disable=not progress, desc="descent"):
        moved = _advance(moved, rest, output, x, y, loss, rate, jnp.asarray(step - now))
        now, current = step, eqx.combine(moved, rest)
        if step in record:
            values = _measure(current, output, x, y, *test, loss)
            if not bool(jnp.isfinite(values[2])):
                raise SolveError(f"gradient descent left the finite numbers before step {step}: lower learning_rate")
            measured.append((*map(np.asarray, values), _distance(moved, start)))
        if step in kernels:
            kernel = tangent_kernel(current, x, trainable=trainable, output=output, memory_limit=memory_limit)
            reference = kernel if reference is None else reference
            drifts.append(kernel_change(kernel, reference))
    train, test_outputs, train_loss, test_loss, distance = (np.array(values) for values in zip(*measured, strict=True))
    drift = KernelDrift(kernels, *(np.array(v) for v in zip(*drifts, strict=True))) if drifts else None
    meta = {name: version(name) for name in ("jax", "equinox")}
    meta |= {"device": jax.default_backend(), "seconds": round(time.perf_counter() - began, 3)}
    return FullBatchRun(
        record, train, test_outputs, train_loss, test_loss, distance, drift, eqx.combine(moved, rest),
        float(learning_rate), loss, meta,
    )  # fmt: skip


def record_steps(steps: Any) -> Int[np.ndarray, " R"]:
    """The record steps behind `steps`: themselves, or 0 and about 50 up to the last one, denser at the start."""
    if isinstance(steps, int | np.integer) and not isinstance(steps, bool) and steps >= 1:
        return np.unique(np.concatenate([[0], np.round(np.geomspace(1, int(steps), 50)).astype(int)]))
    return check_steps(steps)


def kernel_change(
    kernel: Float[np.ndarray, "N N"], reference: Float[np.ndarray, "N N"]
) -> tuple[float, float, float, float]:
    """(norm, spectral, by_smallest, alignment) of a kernel against the one at the start: see `KernelDrift`."""
    change = kernel - reference
    values = np.linalg.eigvalsh(reference)
    size = float(np.abs(np.linalg.eigvalsh(change)).max())
    smallest = max(float(values[0]), 0.0)
    inner = float(np.sum(kernel * reference) / (np.linalg.norm(kernel) * np.linalg.norm(reference)))
    by_smallest = size / smallest if smallest > 0 else (np.inf if size > 0 else 0.0)
    return float(np.linalg.norm(change) / np.linalg.norm(reference)), size / float(values[-1]), by_smallest, inner


def _distance(moved: PyTree, start: PyTree) -> float:
    pairs = list(zip(jax.tree.leaves(moved), jax.tree.leaves(start), strict=True))
    change, size = (float(sum(jnp.sum(f(a, b) ** 2) for a, b in pairs)) for f in (lambda a, b: a - b, lambda a, b: b))
    return float(np.sqrt(change / max(size, 1e-300)))
