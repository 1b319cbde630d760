"""Training of a language model, on a language of known conditionals or on real text, as an experiment for `train`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from odescale.cache.aside import Aside
from odescale.clock import Clock, Schedule
from odescale.errors import InputError, require_number, whole
from odescale.networks.language_model import LanguageModel
from odescale.training.experiment import AbstractTraining, Carry, as_schedule, rate_at, repeat_steps
from odescale.training.grammar import Grammar
from odescale.training.language_probe import measure_language
from odescale.training.runner import seed_key
from odescale.training.source_text import SourceText
from odescale.training.text_probe import KERNEL_OUTPUTS, NOISE_BATCHES, measure_text, sampled_kernel

Language = Grammar | SourceText

OPTIMIZERS = ("sgd", "adamw")
# Streams of a seed's key: held-out sequences, initial weights, training data, batches that measure the gradient's noise.
HELD_OUT, WEIGHTS, DATA, NOISE = 2**32 - 2, 2**32 - 3, 2**32 - 4, 2**32 - 5


class LanguageState(NamedTuple):
    """The model, the optimiser's memory, and on real text the sampled kernel of the fresh weights."""

    model: LanguageModel
    memory: PyTree
    reference: Float[Array, "16 16"] | None


class LanguageExperiment(AbstractTraining):
    r"""theta <- theta - lr s(n) u, u from the gradient of the mean of -log p(x_{t+1} | x_<=t); one unit of t is one step.

    Records on a grammar: `loss` (the excess loss E KL(p* | p)), `loss_common_stderr` (from the held-out sequences, the same for all
    seeds), and the others of `LanguageProbe`; on real text those of `TextProbe`, whose `loss` is the held-out cross-entropy.
    `train_loss`: mean sample cross-entropy since the last record. The model is a tuple of networks, one for each seed.
    """

    build: Aside[Callable[[Array], LanguageModel]]
    grammar: Language
    held_out: Aside[Int[Array, "N window"]]
    learning_rate: Float[Array, ""]
    momentum: Float[Array, ""]
    weight_decay: Float[Array, ""]
    schedule: Schedule
    identity: Aside[dict[str, Any]]
    optimizer: str = eqx.field(static=True)
    batch: int = eqx.field(static=True)

    subject: ClassVar[str] = "language"

    @property
    def clock(self) -> Clock:
        return Clock(1.0, self.learning_rate, self.schedule, float(self.batch), float(self.grammar.length))

    @property
    def rule(self) -> optax.GradientTransformation:
        """From the gradient to u, the decoupled decay included."""
        rule = optax.scale_by_adam() if self.optimizer == "adamw" else optax.trace(self.momentum)  # pyright: ignore[reportArgumentType]
        return optax.chain(rule, optax.add_decayed_weights(self.weight_decay))

    def config(self, t1: float) -> dict[str, Any]:
        return {
            "tokens": self.grammar.length,
            "optimizer": self.optimizer,
            "momentum": float(self.momentum),
            "weight_decay": float(self.weight_decay),
            **self.identity.value,
        }

    def start(self, seed: int) -> LanguageState:
        model = self.build.value(jax.random.fold_in(seed_key(seed), WEIGHTS))
        text = isinstance(self.grammar, SourceText)
        reference = sampled_kernel(model, self.held_out.value) if text else None
        return LanguageState(model, self.rule.init(eqx.filter(model, eqx.is_array)), reference)

    def advance(self, carry: Carry, key: Array, first: Int[Array, ""], count: Int[Array, ""]) -> Carry:
        return repeat_steps(self.step, carry, jax.random.fold_in(key, DATA), first, count)

    def step(self, state: LanguageState, key: Array, n: Int[Array, ""]) -> tuple[LanguageState, Float[Array, ""]]:
        """One step on the sequences of `key`."""
        tokens, order = self.grammar.sample(key, self.batch), self.grammar.order
        arrays, static = eqx.partition(state.model, eqx.is_array)

        def loss(arrays: PyTree) -> Array:
            logits = jax.vmap(eqx.combine(arrays, static))(tokens[:, :-1])[:, order - 1 :]
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, order:]).mean()

        value, gradient = jax.value_and_grad(loss)(arrays)
        direction, memory = self.rule.update(gradient, state.memory, arrays)
        rate = self.learning_rate * rate_at(self.clock, n, self.learning_rate.dtype)
        arrays = jax.tree.map(lambda w, u: w - (rate * u).astype(w.dtype), arrays, direction)
        return LanguageState(eqx.combine(arrays, static), memory, state.reference), value

    def measure(self, states: list[LanguageState], seeds: list[int], step: int) -> dict[str, np.ndarray]:
        probes = [self._probe(state, seed) for state, seed in zip(states, seeds, strict=True)]
        return {name: np.array([float(getattr(probe, name)) for probe in probes]) for name in _names(probes[0])}

    def _probe(self, state: LanguageState, seed: int) -> eqx.Module:
        grammar, held_out = self.grammar, self.held_out.value
        if isinstance(grammar, Grammar):
            return measure_language(state.model, grammar, held_out)
        assert state.reference is not None
        noise = grammar.sample(jax.random.fold_in(seed_key(seed), NOISE), NOISE_BATCHES * self.batch)
        batches = noise.reshape(NOISE_BATCHES, self.batch, grammar.length + 1)
        return measure_text(state.model, held_out, batches, state.reference)

    def model(self, states: list[LanguageState]) -> tuple[LanguageModel, ...]:
        return tuple(state.model for state in states)


def _names(probe: eqx.Module) -> tuple[str, ...]:
    return tuple(type(probe).__dataclass_fields__)


def language(
    build: Callable[[Array], LanguageModel],
    grammar: Language,
    *,
    batch: int,
    learning_rate: float,
    optimizer: str = "sgd",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    schedule: Schedule | str | None = None,
    held_out: int = 512,
    label: str = "language model",
) -> LanguageExperiment:
    r"""theta <- theta - lr s(n) u,  u from the gradient of the mean of -log p(x_{t+1} | x_<=t): an experiment for `train`.

    The mean runs over B sequences and their full contexts. Fresh sequences of the grammar every step; one unit of t is
    **one step**. For the unembedding of a model without gains the clock of the one-third law is eta t = lr step.

    **Arguments**

    - `build`: from a JAX key to a fresh `LanguageModel`; a seed's key decides its weights, its data come from another stream.
    - `grammar`: the language, a `Grammar` or a `SourceText`; the model must have its vocabulary and a context of its length.
    - `batch` >= 1. `learning_rate` > 0. `schedule`: JAX-traceable s(step), its text, None for constant.
    - `optimizer`: "sgd" (u <- momentum u + gradient, 0 <= momentum < 1) or "adamw" (beta 0.9, 0.999, momentum 0);
      `weight_decay` w >= 0, decoupled: theta loses lr s w theta per step.
    - `held_out`: sequences of the probes, the same for all seeds.

    **Errors**: `InputError` before anything is compiled. **Good values**: width 64, depth 2, V = 32, B = 32, SGD at lr .3: 4 ms a
    step and seed on a CPU core; `branch` and `keep_at` of `train` for many ends of one run. **Failure regime**: the probes are
    exact averages over the held-out contexts, whose number (held_out (T - n + 1)) sets their sampling error.
    """
    if optimizer not in OPTIMIZERS:
        raise InputError("optimizer", expected=" or ".join(OPTIMIZERS), got=optimizer, remedy="use sgd")
    memory = require_number("momentum", momentum, 0.0, 1.0)
    if optimizer == "adamw" and memory:
        raise InputError("momentum", expected="0 with adamw, which has its own", got=momentum, remedy="leave it out")
    count = whole("held_out", held_out)
    text = isinstance(grammar, SourceText)
    model = build(jax.random.fold_in(seed_key(0), WEIGHTS))
    if model.vocabulary != grammar.vocabulary or model.context < grammar.length:
        raise InputError(
            "build", expected=f"{grammar.vocabulary} tokens and a context of {grammar.length} or more",
            got=f"{model.vocabulary} tokens, context {model.context}", remedy="match the language",
        )  # fmt: skip
    if isinstance(grammar, SourceText):
        sequences = grammar.held_out(max(count, KERNEL_OUTPUTS))
    else:
        sequences = grammar.sample(jax.random.fold_in(seed_key(0), HELD_OUT), count)
    numbers = {
        "learning_rate": require_number("learning_rate", learning_rate, open_=True),
        "weight_decay": require_number("weight_decay", weight_decay),
        "momentum": memory,
    }
    known = {"label": label, "grammar": grammar.config, "held_out": count, "start": _identity(model), "text": text}
    return LanguageExperiment(
        build=Aside(build),
        grammar=grammar,
        held_out=Aside(sequences),
        **{name: jnp.asarray(value, float) for name, value in numbers.items()},
        schedule=as_schedule(schedule),
        identity=Aside(known),
        optimizer=optimizer,
        batch=whole("batch", batch),
    )


def _identity(model: LanguageModel) -> str:
    """A hash of the first seed's initial weights and of what the modules say beside them."""
    leaves, structure = jax.tree.flatten(model)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        array = np.asarray(leaf)
        digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
