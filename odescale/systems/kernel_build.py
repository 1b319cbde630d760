"""The kernel ODE of a given network on given data (`kernel_system`), and of a transformer on a synthetic task (`kernel`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree, Real

from odescale.cache.aside import Aside
from odescale.errors import InputError
from odescale.expectations.tangent_kernel import MEMORY_LIMIT, network_outputs, tangent_kernel
from odescale.networks.sequence_model import SequenceTransformer, lazy_network
from odescale.precision import require_x64
from odescale.systems import tables
from odescale.systems.kernel import LOSSES, Kernel, KernelSource
from odescale.systems.parameters import complete, shown

QUARTER = 0.25
"""Default learning rate, as a share of the largest stable one."""


class SequenceData(NamedTuple):
    """Training and test sequences: `x` (n, T, inputs), `y` (n, T, outputs), `x_test`, `y_test`; `source`: what they are."""

    x: Float[np.ndarray, "n T inputs"]
    y: Float[np.ndarray, "n T outputs"]
    x_test: Float[np.ndarray, "m T inputs"]
    y_test: Float[np.ndarray, "m T outputs"]
    source: str


def kernel_system(
    network: eqx.Module,
    x: Real[ArrayLike, "n ..."],
    y: Real[ArrayLike, "n ..."],
    x_test: Real[ArrayLike, "m ..."] | None = None,
    y_test: Real[ArrayLike, "m ..."] | None = None,
    *,
    learning_rate: float | None = None,
    loss: str = "square",
    trainable: PyTree | None = None,
    output: Callable[[Array], Array] | None = None,
    memory_limit: int = MEMORY_LIMIT,
    progress: bool = False,
) -> Kernel:
    """dF/dt = -(eta/n) Theta g(F) of `network` on the samples x with targets y, Theta its empirical tangent kernel now.

    One unit of t is one step of full-batch gradient descent on the mean over samples of the loss summed over outputs.

    **Arguments**

    - `network`: any equinox module of one sample; `lazy_network(network, scale)` for the lazy, centred version.
    - `x` (n, ...), `y` (n, *outputs): training samples and targets; `x_test`, `y_test` the same for the test outputs.
    - `learning_rate`: eta of this network per step; None takes a quarter of the largest stable one (`Kernel.stability_bound`).
      A lazy network's kernel is scale^2 times larger: divide eta by scale^2 (None does so by itself).
    - `loss`: "square" or "cross_entropy" (over the last axis of the output; targets sum to one there).
    - `trainable`, `output`, `memory_limit`, `progress`: as in `tangent_kernel`.

    **Returns** a `Kernel` system. **Raises** `InputError` for bad data, before the kernel is computed, and for a learning rate
    beyond the stability bound. Cost: the kernel, and one eigendecomposition of N = n K rows (N = 2000: seconds).
    """
    require_x64("kernel_system")
    if loss not in LOSSES:
        raise InputError("loss", expected=f"one of {', '.join(LOSSES)}", got=loss, remedy="use square")
    if (x_test is None) != (y_test is None):
        raise InputError("y_test", expected="x_test and y_test both or neither", got=None, remedy="give both")
    start = check_data("y", network, x, y, loss, output)
    test_start = jnp.zeros((0, *start.shape[1:]))
    if x_test is not None:
        test_start = check_data("y_test", network, x_test, y_test, loss, output)
    options: dict[str, Any] = {
        "trainable": trainable,
        "output": output,
        "memory_limit": memory_limit,
        "progress": progress,
    }
    kernel = tangent_kernel(network, x, **options)
    N, classes = kernel.shape[0], start.shape[-1] if start.ndim > 1 else 1
    test_kernel = np.zeros((0, N)) if x_test is None else tangent_kernel(network, x_test, x, **options)
    values, vectors = np.linalg.eigh(kernel)
    system = Kernel(
        kernel=jnp.asarray(kernel, float),
        test_kernel=jnp.asarray(test_kernel, float),
        eigenvalues=jnp.asarray(np.maximum(values, 0.0), float),
        modes=jnp.asarray(vectors, float),
        initial=jnp.asarray(start, float).ravel(),
        targets=jnp.asarray(y, float).ravel(),
        test_initial=jnp.asarray(test_start, float).ravel(),
        test_targets=jnp.zeros(0) if y_test is None else jnp.asarray(y_test, float).ravel(),
        learning_rate=jnp.asarray(1.0 if learning_rate is None else learning_rate, dtype=float),
        samples=jnp.asarray(float(start.shape[0])),
        test_samples=jnp.asarray(float(test_start.shape[0])),
        loss=loss,
        classes=classes,
        source=Aside(KernelSource(network, x, y, x_test, y_test, trainable, output)),
    )
    if learning_rate is None:
        system = with_learning_rate(system, QUARTER * system.stability_bound())
    system.check()
    return system


def with_learning_rate(system: Kernel, learning_rate: float) -> Kernel:
    """The same kernel at another learning rate: nothing is computed anew."""
    return eqx.tree_at(lambda s: s.learning_rate, system, jnp.asarray(learning_rate, dtype=float))


def check_data(name: str, network: eqx.Module, x: Any, y: Any, loss: str, output: Callable | None = None) -> Array:
    """Outputs of the network on x, after `y` has been found to fit them and the loss."""
    f = network_outputs(network, x, output)
    if np.shape(y) != f.shape:
        raise InputError(name, expected=f"targets of shape {f.shape}", got=np.shape(y), remedy="one target per output")
    if not np.all(np.isfinite(np.asarray(y))):
        raise InputError(name, expected="finite numbers", got="NaN or infinity", remedy="check the data")
    if loss == "cross_entropy":
        targets = np.asarray(y, dtype=float)
        if f.ndim < 2 or np.any(targets < 0) or np.abs(targets.sum(axis=-1) - 1).max() > 1e-6:
            raise InputError(
                name,
                expected="probabilities that sum to one over the last axis",
                got="other targets",
                remedy="one-hot them",
            )
    return f


def synthetic_sequences(
    samples: int, test_samples: int, tokens: int, inputs: int, outputs: int, *, loss: str = "square", seed: int = 0
) -> SequenceData:
    r"""y_t = tanh(A z_t), z_t = (t + 1)^(-1/2) sum_{s <= t} x_s, x standard normal: a causal task with memory.

    A (outputs, inputs) ~ N(0, 1/inputs). For cross-entropy the target is the argmax of A z_t, one-hot. Sequences of length
    `tokens`; the test sequences are drawn from the same law.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples + test_samples, tokens, inputs))
    A = rng.standard_normal((outputs, inputs)) / inputs**0.5
    z = np.cumsum(x, axis=1) / np.sqrt(np.arange(1, tokens + 1))[:, None] @ A.T
    y = np.tanh(z) if loss == "square" else np.eye(outputs)[np.argmax(z, axis=-1)]
    return SequenceData(x[:samples], y[:samples], x[samples:], y[samples:], f"synthetic causal task, seed {seed}")


@shown(tables.KERNEL)
def kernel(**given: Any) -> Kernel:
    """The kernel ODE of a pre-norm transformer at its start, on a synthetic sequence-to-sequence task: see `Kernel`.

    One unit of t is one step of full-batch gradient descent. **Arguments** (all optional): the words of `Kernel.parameters`.
    For a network and data of your own: `kernel_system`. **Raises** `InputError` naming the argument.
    """
    require_x64("kernel")
    values = complete(Kernel.parameters, given, "kernel")
    sizes = {name: values[name] for name in ("samples", "test_samples", "tokens", "inputs", "outputs")}
    data = synthetic_sequences(**sizes, loss=values["loss"], seed=values["seed"])
    if values["width"] % 8:
        raise InputError("width", expected="a multiple of 8", got=values["width"], remedy="heads have size 8")
    network = SequenceTransformer(
        values["inputs"], values["outputs"], values["tokens"], width=values["width"], depth=values["depth"],
        key=jax.random.key(values["seed"]),
    )  # fmt: skip
    scale = float(values["scale"])
    rate = float(values["learning_rate"])
    test = (data.x_test, data.y_test) if values["test_samples"] else (None, None)
    return kernel_system(
        lazy_network(network, scale, centred=values["centred"]),
        data.x,
        data.y,
        *test,
        learning_rate=rate / scale**2 if rate > 0 else None,
        loss=values["loss"],
    )
