r"""The toy network of the one-third law: a linear layer and a softmax, distilled from a random teacher at low temperature.

q = softmax(W* x/T),   p = softmax(W x),   minimise KL(q || p) over W from zero on fresh x,   |x|^2 = number of inputs
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from odescale.cache.programs import program
from odescale.clock import Clock
from odescale.errors import InputError, require_number, whole
from odescale.systems.peaked import Peaked, peaked
from odescale.training.experiment import AbstractTraining, Carry, repeat_steps
from odescale.training.runner import over_seeds, seed_key

CLASSES, INPUTS, BATCH, TEST_INPUTS = 128, 32, 1024, 16_384
"""Sizes of the published experiment."""


def rms_normalised(key: Array, shape: tuple[int, ...], dtype: Any) -> Float[Array, "... d"]:
    """Gaussian vectors scaled to |x|^2 = d each, so that components have mean square one."""
    x = jax.random.normal(key, shape, dtype)
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))


def divergence(layer: eqx.nn.Linear, teacher: eqx.nn.Linear, temperature: Array, x: Array) -> Float[Array, " B"]:
    """KL(softmax(W* x/T) || softmax(W x)) of every input."""
    log_q = jax.nn.log_softmax(jax.vmap(teacher)(x) / temperature)
    log_p = jax.nn.log_softmax(jax.vmap(layer)(x))
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def _streams(key: Array) -> Array:
    """Keys of a seed's teacher, held-out inputs and training inputs."""
    return jax.random.split(key, 3)


class ToyState(NamedTuple):
    """The layer, the optimiser's memory, and the teacher."""

    layer: eqx.nn.Linear
    memory: Any
    teacher: eqx.nn.Linear


class ToyExperiment(AbstractTraining):
    r"""W <- W - lr grad_W mean_B KL(softmax(W* x/T) || softmax(W x)) or Adam's step, W(0) = 0; each seed has its own teacher.

    One unit of t is `inputs` steps for SGD and one step for Adam. Records:

    - `loss`: KL(q || p) on held-out inputs, the same at all steps of a seed; `loss_stderr` its standard error.
    - `row_norm`: s = sqrt(tr(P W W^T)/(K-1)), the root mean square norm of the centred rows, which is the logit scale on unit
      inputs; `overlap`: D = tr(P W w*^T)/(K-1) with the teacher's rows w* = sqrt(3) W* of mean square norm 1; `logit_scale`:
      standard deviation over classes of W x, root mean square over held-out inputs.
    """

    temperature: Float[Array, ""]
    learning_rate: Float[Array, ""]
    optimizer: str = eqx.field(static=True)
    classes: int = eqx.field(static=True)
    inputs: int = eqx.field(static=True)
    batch: int = eqx.field(static=True)
    test_inputs: int = eqx.field(static=True)

    subject: ClassVar[str] = "toy"

    @property
    def rule(self) -> optax.GradientTransformation:
        return (optax.adam if self.optimizer == "adam" else optax.sgd)(self.learning_rate)

    @property
    def clock(self) -> Clock:
        sgd = self.optimizer == "sgd"
        eta = self.learning_rate * (self.inputs if sgd else 1)
        return Clock(float(self.inputs) if sgd else 1.0, eta, batch=float(self.batch), tokens=0.0)

    def config(self, t1: float) -> dict[str, Any]:
        sizes = {name: getattr(self, name) for name in ("classes", "inputs", "batch", "test_inputs", "optimizer")}
        return sizes | {
            "label": "toy network", "dimension": self.inputs, "tokens": 0, "temperature": float(self.temperature),
            "learning_rate": float(self.learning_rate),
        }  # fmt: skip

    def start(self, seed: int) -> ToyState:
        key = _streams(seed_key(seed))[0]
        # U(-1/sqrt d, 1/sqrt d), drawn in single precision whatever the run's.
        teacher = eqx.nn.Linear(self.inputs, self.classes, use_bias=False, key=key, dtype=jnp.float32)
        layer = eqx.tree_at(lambda one: one.weight, teacher, jnp.zeros_like(teacher.weight))
        return ToyState(layer, self.rule.init(eqx.filter(layer, eqx.is_array)), teacher)

    def advance(self, carry: Carry, key: Array, first: Int[Array, ""], count: Int[Array, ""]) -> Carry:
        return repeat_steps(self.step, carry, _streams(key)[2], first, count)

    def step(self, state: ToyState, key: Array, n: Int[Array, ""]) -> tuple[ToyState, Float[Array, ""]]:
        """One step on the fresh inputs of `key`."""
        x = rms_normalised(key, (self.batch, self.inputs), state.teacher.weight.dtype)
        layer, memory, teacher = state
        loss, gradient = jax.value_and_grad(lambda one: jnp.mean(divergence(one, teacher, self.temperature, x)))(layer)
        updates, memory = self.rule.update(gradient, memory)
        return ToyState(optax.apply_updates(layer, updates), memory, teacher), loss

    def measure(self, states: list[ToyState], seeds: list[int], step: int) -> dict[str, np.ndarray]:
        temperature = self.temperature.astype(states[0].teacher.weight.dtype)

        def one(i: int) -> dict[str, Array]:
            state, shape = states[i], (self.test_inputs, self.inputs)
            return jax.block_until_ready(_measure(state.layer, state.teacher, temperature, seed_key(seeds[i]), shape))

        found = over_seeds(one, len(seeds))
        return {name: np.array([float(values[name]) for values in found]) for name in found[0]}

    def model(self, states: list[ToyState]) -> dict[str, Any]:
        """`weights` and `teacher` (s, K, d)."""
        return {
            "weights": np.stack([np.asarray(state.layer.weight) for state in states]),
            "teacher": np.stack([np.asarray(state.teacher.weight) for state in states]),
        }


@program
def _measure(
    layer: eqx.nn.Linear, teacher: eqx.nn.Linear, temperature: Float[Array, ""], key: Array, shape: tuple[int, int]
) -> dict[str, Float[Array, ""]]:
    classes = layer.weight.shape[0]
    held_out = rms_normalised(_streams(key)[1], shape, layer.weight.dtype)
    # Summed in double precision where it is on: late losses are small next to the logits.
    loss = divergence(layer, teacher, temperature, held_out).astype(float)
    W = (layer.weight - layer.weight.mean(axis=0)).astype(float)
    target = np.sqrt(3) * (teacher.weight - teacher.weight.mean(axis=0)).astype(float)
    logits = jax.vmap(layer)(held_out).astype(float)
    return {
        "loss": loss.mean(),
        "loss_stderr": loss.std() / np.sqrt(shape[0]),
        "row_norm": jnp.sqrt(jnp.sum(W**2) / (classes - 1)),
        "overlap": jnp.sum(W * target) / (classes - 1),
        "logit_scale": jnp.sqrt(jnp.mean(jnp.var(logits, axis=1, ddof=1))),
    }


def toy_layer(
    temperature: float,
    optimizer: Literal["sgd", "adam"] = "sgd",
    learning_rate: float = 10.0,
    *,
    classes: int = CLASSES,
    inputs: int = INPUTS,
    batch: int = BATCH,
    test_inputs: int = TEST_INPUTS,
) -> ToyExperiment:
    r"""q = softmax(W* x/T), p = softmax(W x), minimise KL(q || p): the toy network of the one-third law, an experiment for `train`.

    W* has entries uniform in (-1, 1)/sqrt(inputs); x Gaussian, scaled to |x|^2 = inputs. One unit of t is `inputs` steps for
    SGD and one step for Adam. See `ToyExperiment` for the records.

    **Arguments** (sizes default to the published experiment: 128 classes, 32 inputs, batches of 1024; there 2000 steps, t1 = 62.5)

    - `temperature`: T > 0, from 1e-3 (labels nearly hard) to 1 (flat). `optimizer`: "sgd" or "adam" (betas .9, .999).
    - `learning_rate`: lr > 0 of logits W x: published grids are 1e-2 to 10 (SGD) and 1e-3 to 1 (Adam).

    **Errors**: `InputError`. **Good values**: seconds per seed. Source: Liu, Liu, Pehlevan & Gore, arXiv 2602.03685.
    """
    if optimizer not in ("sgd", "adam"):
        raise InputError("optimizer", expected="sgd or adam", got=optimizer, remedy="sgd is the default")
    return ToyExperiment(
        temperature=jnp.asarray(require_number("temperature", temperature, open_=True), float),
        learning_rate=jnp.asarray(require_number("learning_rate", learning_rate, open_=True), float),
        optimizer=optimizer,
        classes=whole("classes", classes, 2),
        inputs=whole("inputs", inputs),
        batch=whole("batch", batch),
        test_inputs=whole("test_inputs", test_inputs, 2),
    )


def toy_theory(
    temperature: float,
    optimizer: Literal["sgd", "adam"] = "sgd",
    learning_rate: float = 10.0,
    *,
    classes: int = CLASSES,
    inputs: int = INPUTS,
    batch: int = BATCH,
    noise: float = 1.0,
) -> Peaked:
    r"""The `Peaked` system of a toy network: soft labels, b* = 1/(sqrt 3 T), eta = lr inputs for SGD, lr per step for Adam.

    Teacher entries have variance 1/(3 inputs T^2) and inputs mean square one, hence teacher fields of deviation 1/(sqrt 3 T).
    **Arguments** as for `toy_layer`; `noise` as for `peaked`, 0 for the flow without SGD noise. One unit of t is `inputs`
    steps (Adam: one step).
    **Failure regime**: K rows in fewer than K dimensions are not orthogonal as the theory has them, and |x| does not vary.
    """
    temperature = require_number("temperature", temperature, 1e-100, 1e100)
    eta = learning_rate * inputs if optimizer == "sgd" else learning_rate
    return peaked(
        classes=classes, labels="soft", inverse_temperature=1 / (np.sqrt(3) * temperature), learning_rate=eta,
        batch=batch, optimizer=optimizer, dimension=inputs, noise=noise,
    )  # fmt: skip
