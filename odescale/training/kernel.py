r"""Exact full-batch gradient descent of the network behind a `Kernel` system: outputs, losses, and the drift of its kernel.

theta <- theta - eta grad L,     L = (1/n) sum_i l(f(x_i), y_i)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy
from jaxtyping import Array, Float, Int, PyTree

from odescale.cache.aside import Aside
from odescale.cache.programs import program
from odescale.clock import Clock
from odescale.errors import InputError
from odescale.expectations.tangent_kernel import tangent_kernel
from odescale.networks.sequence_model import trainable as default_trainable
from odescale.systems.kernel import Kernel, KernelSource, sum_of_losses
from odescale.training.experiment import AbstractExperiment

DRIFTS = ("norm", "spectral", "by_smallest", "alignment")


class KernelExperiment(AbstractExperiment):
    r"""theta <- theta - eta grad (1/n) sum_i l_i, exactly as the kernel system predicts it: no minibatches, no momentum, no chance.

    One unit of t is one step. Records: `train` (1, n, N), `test` (1, n, M) outputs; `train_loss`, `test_loss`; `loss`: train_loss
    less the entropy of the targets; `weights_moved` |theta - theta_0|/|theta_0|. With `drift`, how far the tangent kernel of the
    training outputs has moved, at every record:

    - `drift_norm`: |Theta_t - Theta_0|_F/|Theta_0|_F. `drift_spectral`: the same in spectral norms.
    - `drift_by_smallest`: |Theta_t - Theta_0|_2/lambda_min(Theta_0); below 1/2 no mode of the start is lost. Above it, and that is
      the rule for real data with their many small eigenvalues, it proves nothing either way.
    - `drift_alignment`: <Theta_t, Theta_0>/(|Theta_t|_F |Theta_0|_F).
    """

    system: Aside[Kernel]
    rest: PyTree
    x: Array
    y: Array
    learning_rate: Float[Array, ""]
    output: Callable | None = eqx.field(static=True)
    loss: str = eqx.field(static=True)
    drift: bool = eqx.field(static=True)

    subject: ClassVar[str] = "kernel"
    random: ClassVar[bool] = False

    @property
    def clock(self) -> Clock:
        return self.system.value.clock

    @property
    def source(self) -> KernelSource:
        """Network and data."""
        return network_of(self.system.value)

    def config(self, t1: float) -> dict[str, Any]:
        system = self.system.value
        return {
            "label": system.label,
            "loss": self.loss,
            "outputs": system.kernel.shape[0],
            "test_outputs": system.test_kernel.shape[0],
            "targets": np.asarray(system.targets).tolist(),
            "initial": np.asarray(system.initial).tolist(),
            "largest_eigenvalue": float(system.eigenvalues[-1]),
            "drift": self.drift,
        }

    def start(self, seed: int) -> PyTree:
        return _split(self.source)[0]

    def step(self, state: PyTree, key: Array, n: Int[Array, ""]) -> tuple[PyTree, Float[Array, ""]]:
        def objective(moved: PyTree) -> Array:
            F = all_outputs(eqx.combine(moved, self.rest), self.output, self.x)
            return sum_of_losses(self.loss, _classes(F), F.ravel(), self.y.ravel()) / self.x.shape[0]

        loss, gradient = jax.value_and_grad(objective)(state)
        return jax.tree.map(lambda w, g: w - self.learning_rate.astype(w.dtype) * g, state, gradient), loss

    def measure(self, states: list[PyTree], seeds: list[int], step: int) -> dict[str, np.ndarray]:
        system, source = self.system.value, self.source
        start, rest = _split(source)
        network = eqx.combine(states[0], rest)
        x, y = jnp.asarray(source.x), jnp.asarray(source.y, float)
        test = (
            (x[:0], y[:0]) if source.x_test is None else (jnp.asarray(source.x_test), jnp.asarray(source.y_test, float))
        )
        train, test_outputs, train_loss, test_loss = _measure(network, self.output, x, y, *test, self.loss)
        entropy = -float(jnp.sum(xlogy(y, y))) / x.shape[0] if self.loss == "cross_entropy" else 0.0
        found: dict[str, Any] = {
            "loss": train_loss - entropy, "train_loss": train_loss, "test_loss": test_loss, "train": train,
            "test": test_outputs, "weights_moved": _distance(states[0], start),
        }  # fmt: skip
        if self.drift:
            kernel = tangent_kernel(network, x, trainable=source.trainable, output=source.output)
            change = kernel_change(kernel, np.asarray(system.kernel))
            found |= {f"drift_{name}": value for name, value in zip(DRIFTS, change, strict=True)}
        return {name: np.asarray(value, float)[None] for name, value in found.items()}

    def model(self, states: list[PyTree]) -> tuple[eqx.Module, ...]:
        """The trained network."""
        rest = _split(self.source)[1]
        return tuple(eqx.combine(state, rest) for state in states)


def experiment(system: Kernel, *, drift: bool = False) -> KernelExperiment:
    """The network and data that the system was made from; `drift`: also measure how far its kernel has moved, at every record."""
    if not isinstance(drift, bool):
        raise InputError("drift", expected="true or false", got=drift, remedy="leave it out")
    source = network_of(system)
    return KernelExperiment(
        system=Aside(system),
        rest=_split(source)[1],
        x=jnp.asarray(source.x),
        y=jnp.asarray(source.y, float),
        learning_rate=system.learning_rate,
        output=source.output,
        loss=system.loss,
        drift=drift,
    )


def network_of(system: Kernel) -> KernelSource:
    """Network and data behind a system, or an `InputError` where it was made from bare matrices."""
    if system.source is None:
        raise InputError(
            "subject", expected="a kernel system that keeps its network (kernel, kernel_system)", got="bare matrices",
            remedy="build it with kernel_system",
        )  # fmt: skip
    return system.source.value


def _split(source: KernelSource) -> tuple[PyTree, PyTree]:
    """(arrays that move, everything else) of the network."""
    trainable = default_trainable(source.network) if source.trainable is None else source.trainable
    return eqx.partition(source.network, trainable)


def all_outputs(network: Any, output: Callable | None, x: Array) -> Array:
    """f(x_i) of all samples, (n, *outputs), for use inside a transformation."""
    return jax.vmap(network if output is None else lambda s: output(network(s)))(x)


def _classes(F: Array) -> int:
    return F.shape[-1] if F.ndim > 1 else 1


@program
def _measure(
    network: Any, output: Callable | None, x: Array, y: Array, x_test: Array, y_test: Array, loss: str
) -> tuple[Array, Array, Array, Array]:
    F, F_test = (all_outputs(network, output, samples) for samples in (x, x_test))
    train_loss = sum_of_losses(loss, _classes(F), F.ravel(), y.ravel()) / F.shape[0]
    test_loss = sum_of_losses(loss, _classes(F), F_test.ravel(), y_test.ravel()) / max(F_test.shape[0], 1)
    return F.ravel(), F_test.ravel(), train_loss, test_loss


def kernel_change(
    kernel: Float[np.ndarray, "N N"], reference: Float[np.ndarray, "N N"]
) -> tuple[float, float, float, float]:
    """(norm, spectral, by_smallest, alignment) of a kernel against the one at the start: see `KernelExperiment`."""
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
