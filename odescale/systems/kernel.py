r"""Full-batch gradient descent of any network at its frozen tangent kernel, as an ODE for the network's outputs.

    dF/dt      = -(eta/n) Theta g(F),             g = F - Y (square loss),  g = softmax F - Y (cross-entropy)
    dF_test/dt = -(eta/n) Theta(test, train) g(F)

The right-hand side comes from `odescale.generated.kernel`, written by `derivations/kernel/script.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp, xlogy
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.cache.aside import Aside
from odescale.clock import Clock
from odescale.errors import InputError
from odescale.generated import kernel as formulas
from odescale.systems import tables
from odescale.systems.base import AbstractSystem, Integration
from odescale.systems.parameters import Parameter, is_traced

LOSSES = ("square", "cross_entropy")


class KernelSource(NamedTuple):
    """The network and the data that a kernel was computed of: what a real run needs and the ODE does not."""

    network: Any
    x: Any
    y: Any
    x_test: Any = None
    y_test: Any = None
    trainable: Any = None
    output: Callable | None = None


class Kernel(AbstractSystem):
    r"""dF/dt = -(eta/n) Theta g(F): outputs of a network on its samples under gradient descent; state [F_train, F_test].

    One unit of t is one step of full-batch gradient descent on L = (1/n) sum_i l_i, the sample loss l summed over the outputs of
    a sample: |F - Y|^2/2, or cross-entropy over the last axis of the output (`classes`), summed over positions. This is the
    gradient flow; the exact discrete descent is `odescale.systems.kernel_descent.descent`.

    **Fields**

    - `kernel` (N, N), `test_kernel` (M, N): tangent kernel at the start, N = n K training and M test outputs, sample by sample.
    - `eigenvalues` (N,), `modes` (N, N): Theta = modes diag(eigenvalues) modes^T, eigenvalues >= 0 ascending.
    - `initial`, `targets` (N,), `test_initial`, `test_targets` (M,): outputs at the start and what they should be.
    - `learning_rate` eta per step, `samples` n, `test_samples`: what the losses are averaged over.
    - `loss`: "square" or "cross_entropy"; `classes`: length of the last axis of an output.
    - `source`: the network and its data, for `train`; None where the system was made from bare matrices.

    `excess_loss` is the training loss minus the entropy of the targets (zero for labels and square loss). **Failure regime**: the
    kernel of a real network drifts; whether that matters is measured by `odescale.compare.kernel`. Source: see `sources`.
    """

    kernel: Float[Array, "N N"]
    test_kernel: Float[Array, "M N"]
    eigenvalues: Float[Array, " N"]
    modes: Float[Array, "N N"]
    initial: Float[Array, " N"]
    targets: Float[Array, " N"]
    test_initial: Float[Array, " M"]
    test_targets: Float[Array, " M"]
    learning_rate: Float[Array, ""]
    samples: Float[Array, ""]
    test_samples: Float[Array, ""]
    loss: str = eqx.field(static=True, default="square")
    classes: int = eqx.field(static=True, default=1)
    source: Aside[KernelSource] | None = None
    label: str = eqx.field(static=True, default="kernel")

    name: ClassVar[str] = "kernel"
    sources: ClassVar[tuple[str, ...]] = (
        "Jacot, Gabriel & Hongler, arXiv 1806.07572: the tangent kernel",
        "Lee et al., arXiv 1902.06720: wide networks evolve as linear models",
        "Yang, arXiv 2512.22088: learning dynamics of transformers as an ODE in the kernel regime",
        "derivations/kernel/script.py: from one step of gradient descent to the kernel ODE",
    )
    parameters: ClassVar[tuple[Parameter, ...]] = tables.KERNEL

    def __check_init__(self) -> None:
        N, M = self.kernel.shape[0], self.test_kernel.shape[0]
        wanted = {
            "kernel": (N, N), "test_kernel": (M, N), "eigenvalues": (N,), "modes": (N, N), "initial": (N,),
            "targets": (N,), "test_initial": (M,), "test_targets": (M,),
        }  # fmt: skip
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise InputError(
                    name, expected=f"shape {shape}", got=getattr(self, name).shape, remedy="N training, M test outputs"
                )
        if self.loss not in LOSSES:
            raise InputError("loss", expected=f"one of {', '.join(LOSSES)}", got=self.loss, remedy="use square")
        if self.classes < 1 or N % self.classes or M % self.classes:
            raise InputError("classes", expected=f"a divisor of {N} and {M}", got=self.classes, remedy="last axis of f")

    @property
    def loss_label(self) -> str:
        """What the loss is, for pictures."""
        words = {"square": "half squared error", "cross_entropy": "cross-entropy, nats"}
        return f"excess training loss L  ({words[self.loss]})"

    @property
    def integration(self) -> Integration:
        """Explicit: within the stable learning rates the fastest mode takes a step or so."""
        return Integration(("tsit5", "kvaerno5"))

    @property
    def clock(self) -> Clock:
        """One unit of t is one step of gradient descent on the n samples."""
        return Clock(1.0, self.learning_rate, batch=self.samples, tokens=jnp.inf)

    @property
    def time_scale(self) -> Float[Array, ""]:
        """n/(eta lambda_max): the relaxation time of the fastest mode, in steps."""
        return self.samples / (self.learning_rate * self.eigenvalues[-1])

    def split(self, y: Float[Array, "... NM"]) -> tuple[Float[Array, "... N"], Float[Array, "... M"]]:
        """(training outputs, test outputs) of a state."""
        return y[..., : self.kernel.shape[0]], y[..., self.kernel.shape[0] :]

    def slopes(self, F: Float[Array, " N"]) -> Float[Array, " N"]:
        """g: slope of the sample loss in every training output."""
        return self._slopes(F, self.targets)

    def _slopes(self, F: Array, Y: Array) -> Array:
        if self.loss == "square":
            return formulas.square_slopes(F, Y)
        shape = (-1, self.classes)
        return formulas.cross_entropy_slopes(F.reshape(shape), Y.reshape(shape)).ravel()

    def losses(self, y: Float[Array, " NM"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(training loss, test loss) of a state; the test loss is 0 without test samples."""
        train, test = self.split(y)
        return (
            sum_of_losses(self.loss, self.classes, train, self.targets) / self.samples,
            sum_of_losses(self.loss, self.classes, test, self.test_targets) / jnp.maximum(self.test_samples, 1.0),
        )

    def initial_state(self) -> Float[Array, " NM"]:
        return jnp.concatenate([self.initial, self.test_initial])

    def vector_field(self, t: Real[ArrayLike, ""], y: Float[Array, " NM"], args: Any = None) -> Float[Array, " NM"]:
        g = self.slopes(self.split(y)[0])
        moved = [
            formulas.kernel_velocity(kernel, g, self.learning_rate, self.samples)
            for kernel in (self.kernel, self.test_kernel)
        ]
        return jnp.concatenate(moved)

    def excess_loss(self, t: Real[ArrayLike, ""], y: Float[Array, " NM"]) -> Float[Array, ""]:
        floor = jnp.zeros(())
        if self.loss == "cross_entropy":
            floor = -jnp.sum(xlogy(self.targets, self.targets)) / self.samples
        return self.losses(y)[0] - floor

    def observables(self, t: Real[ArrayLike, ""], y: Float[Array, " NM"]) -> dict[str, Array]:
        """`train_loss`, `test_loss`, `moved`: root mean square change of the training outputs since the start."""
        train_loss, test_loss = self.losses(y)
        moved = jnp.sqrt(jnp.mean((self.split(y)[0] - self.initial) ** 2) + 1e-300)
        return {"train_loss": train_loss, "test_loss": test_loss, "moved": moved}

    def stability_bound(self) -> float:
        """Largest learning rate at which gradient descent is stable: eta lambda_max/n < 2, for cross-entropy (sufficient) < 4."""
        top = float(self.eigenvalues[-1])
        return np.inf if top <= 0 else formulas.stability_bound(self.loss) * float(self.samples) / top

    def check(self) -> None:
        """Refuses what is not finite, and a learning rate beyond `stability_bound`."""
        if is_traced(self.learning_rate) or is_traced(self.eigenvalues):
            return
        for name in ("kernel", "test_kernel", "initial", "targets", "test_initial", "test_targets"):
            if not bool(jnp.all(jnp.isfinite(getattr(self, name)))):
                raise InputError(name, expected="finite numbers", got="NaN or infinity", remedy="check the network")
        rate, bound = float(self.learning_rate), self.stability_bound()
        if not (np.isfinite(rate) and rate > 0):
            raise InputError("learning_rate", expected="a positive number", got=rate, remedy=f"try {bound / 4:.3g}")
        if rate >= bound:
            ratio = float(formulas.stability_ratio(self.eigenvalues[-1], self.learning_rate, self.samples))
            raise InputError(
                "learning_rate", expected=f"eta lambda_max/n < {formulas.stability_bound(self.loss):g}, i.e. below {bound:.4g}",
                got=f"{rate:.4g} (eta lambda_max/n = {ratio:.3g})", remedy=f"try {bound / 4:.3g}",
            )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        numbers = {"learning_rate": float(self.learning_rate), "samples": float(self.samples), "loss": self.loss}
        numbers |= {"outputs": self.kernel.shape[0], "test_outputs": self.test_kernel.shape[0], "classes": self.classes}
        return numbers | {
            "largest_eigenvalue": float(self.eigenvalues[-1]),
            "smallest_eigenvalue": float(self.eigenvalues[0]),
        }


def sum_of_losses(loss: str, classes: int, F: Float[Array, " N"], Y: Float[Array, " N"]) -> Float[Array, ""]:
    """sum_i l_i: |F - Y|^2/2, or sum of log sum_k exp F_k - Y.F over groups of `classes` outputs."""
    if loss == "square":
        return 0.5 * jnp.sum((F - Y) ** 2)
    F, Y = F.reshape(-1, classes), Y.reshape(-1, classes)
    return jnp.sum(logsumexp(F, axis=-1)) - jnp.sum(F * Y)
