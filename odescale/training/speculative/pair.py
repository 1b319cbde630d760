"""A target trained on real text and a small drafter distilled from what it writes: two equinox transformers."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from odescale.cache.programs import program
from odescale.errors import InputError, require_number, whole
from odescale.networks.language_model import LanguageModel
from odescale.precision import require_x64
from odescale.training.language import language
from odescale.training.runner import seed_key
from odescale.training.source_text import SourceText
from odescale.training.speculative.distributions import Decoding, kl, log_probabilities, misalignment
from odescale.training.speculative.sampling import sample
from odescale.training.train import train

# Streams of a seed's key, apart from those of `language`.
WEIGHTS, PROMPTS, PROBE = 2**32 - 12, 2**32 - 13, 2**32 - 14
POOL = 100  # drafter steps on one pool of samples
PROBED = 256  # sequences on which a stage is measured


class Learner(NamedTuple):
    """A network under Adam: the model and the moments of its gradient."""

    model: LanguageModel
    memory: PyTree


def learner(model: LanguageModel) -> Learner:
    """`model` with a fresh memory."""
    return Learner(model, optax.scale_by_adam().init(eqx.filter(model, eqx.is_inexact_array)))


def descend(state: Learner, gradient: PyTree, rate: Float[Array, ""]) -> Learner:
    """theta <- theta - rate Adam(gradient)."""
    arrays, static = eqx.partition(state.model, eqx.is_inexact_array)
    direction, memory = optax.scale_by_adam().update(gradient, state.memory)
    arrays = jax.tree.map(lambda w, u: w - (rate * u).astype(w.dtype), arrays, direction)
    return Learner(eqx.combine(arrays, static), memory)


def distil(
    target: Any,
    drafter: Learner,
    tokens: Int[Array, "N T"],
    key: Key[Array, ""],
    steps: Int[Array, ""],
    decoding: Decoding,
    *,
    prompt: int,
    batch: int,
    rate: Float[Array, ""],
    rows: Int[Array, ""] | int | None = None,
) -> Learner:
    """`steps` times phi <- phi - rate Adam(grad_phi mean KL(target || drafter)), each on `batch` of the target's sequences.

    The mean runs over the predictions of tokens `prompt`..T-1, those that speculation has to guess. `steps` may be traced, and
    so may `rows`, how many of the sequences there are yet (all by default).
    """
    count = tokens.shape[0] if rows is None else rows

    def one(n: Array, state: Learner) -> Learner:
        seen = tokens[jax.random.randint(jax.random.fold_in(key, n), (batch,), 0, count)]
        log_p = lax.stop_gradient(log_probabilities(target, seen[:, :-1], decoding)[:, prompt - 1 :])
        arrays, static = eqx.partition(state.model, eqx.is_inexact_array)

        def loss(arrays: PyTree) -> Array:
            log_q = log_probabilities(eqx.combine(arrays, static), seen[:, :-1], decoding)[:, prompt - 1 :]
            return kl(log_p, log_q).mean()

        return descend(state, jax.grad(loss)(arrays), rate)

    arrays, static = eqx.partition(drafter, eqx.is_array)

    def step(n: Array, arrays: PyTree) -> PyTree:
        return eqx.filter(one(n, eqx.combine(arrays, static)), eqx.is_array)

    return eqx.combine(lax.fori_loop(0, steps, step, arrays), static)


class Pair(eqx.Module):
    """`target` and `drafter`, how they are decoded, and the course of the distillation.

    - `memory`: of the drafter's Adam, for whoever trains it on. `decoding`: temperature and banned tokens.
    - `prompt`, `new`: tokens given and added in the samples of the distillation.
    - `loss`: the target's held-out loss in nats per character.
    - `steps` (k,), `kappa` (k,), `variation` (k,): drafter steps, mean KL(target || drafter) in nats and mean TV on fresh
      samples of the target; the first before any step, where the drafter is uniform.
    """

    target: LanguageModel
    drafter: LanguageModel
    memory: PyTree
    decoding: Decoding
    loss: float
    steps: np.ndarray
    kappa: np.ndarray
    variation: np.ndarray
    prompt: int = eqx.field(static=True)
    new: int = eqx.field(static=True)

    @property
    def coefficient(self) -> Float[np.ndarray, " k"]:
        """c = TV/sqrt(kappa/pi) at every stage, at most sqrt(pi/2) = 1.2533 by Pinsker's inequality."""
        return self.variation / np.sqrt(self.kappa / np.pi)


def train_pair(
    text: SourceText,
    *,
    seed: int = 0,
    prompt: int = 8,
    new: int = 24,
    steps: int = 2000,
    distillation: int = 600,
    target: tuple[int, int, int] = (48, 2, 4),
    drafter: tuple[int, int, int] = (24, 1, 2),
    batch: int = 32,
    learning_rate: float = 3e-3,
    stages: int = 8,
    temperature: float = 1.0,
    banned: tuple[int, ...] = (),
    context: int | None = None,
) -> Pair:
    r"""target: min E -log p(x_(t+1) | x_<=t) on `text`;  drafter: min E_(x ~ target) KL(target(. | x_<=t) || drafter(. | x_<=t)).

    **Arguments**

    - `text`: a `SourceText` (`source_text`, `text_of`); its `length` is the longest sequence that the target sees in training.
    - `prompt`, `new` >= 1: tokens of text given and tokens that the target adds, in the samples for the drafter.
    - `steps`, `distillation`: Adam steps of the target and of the drafter, `batch` sequences each, at `learning_rate` (falling to a
      tenth along a cosine for the target, constant for the drafter, which learns on in operation).
    - `target`, `drafter`: (width, layers, heads). `stages`: measurements of the drafter, log-spaced. `seed`.
    - `temperature`, `banned`: of decoding. `context`: tokens that both models can read, default the longer of the text's length and
      prompt + new, plus 8 for drafts.

    **Returns** `Pair`. **Raises** `InputError`.
    **Good values**: the defaults on 40 characters of the standard library take half a minute on two cores.
    **Failure regime**: a text of fewer characters than the target has numbers is learnt by heart.

    ```python
    import jax
    from odescale.training.source_text import source_text
    from odescale.training.speculative.pair import train_pair
    jax.config.update("jax_enable_x64", True)
    pair = train_pair(source_text(length=32, vocabulary=40, most=200_000), steps=50, distillation=20)
    print(pair.kappa[0], pair.kappa[-1])
    ```
    """
    require_x64("train_pair")
    sizes = {
        name: whole(name, value)
        for name, value in (("prompt", prompt), ("new", new), ("steps", steps), ("distillation", distillation),
                            ("batch", batch), ("stages", stages))
    }  # fmt: skip
    rate = jnp.asarray(require_number("learning_rate", learning_rate, open_=True))
    decoding = Decoding(temperature, banned)
    decoding.check(text.vocabulary)
    for name, value in (("target", target), ("drafter", drafter)):
        if len(value) != 3:
            raise InputError(name, expected="(width, layers, heads)", got=value, remedy="(48, 2, 4) is a good value")
    long = max(text.length, sizes["prompt"] + sizes["new"])
    if sizes["prompt"] > text.length + 1:
        raise InputError("prompt", expected=f"at most the {text.length + 1} characters of a window", got=prompt,
                         remedy="lower it")  # fmt: skip
    reach = long + 8 if context is None else whole("context", context, long)

    build = partial(_build, text.vocabulary, *target, reach)
    run = train(
        language(build, text, batch=batch, learning_rate=learning_rate, optimizer="adamw", schedule=f"cosine:{steps}:0.1",
                 label="target"),
        float(steps), seeds=(seed,), record_times=[float(steps)], progress=False,
    )  # fmt: skip
    model: LanguageModel = run.model[0]
    key = seed_key(seed)
    state = learner(_build(text.vocabulary, *drafter, reach, jax.random.fold_in(key, WEIGHTS)))
    words = (decoding, prompt)
    probes = sample(model, _prompts(text, jax.random.fold_in(key, PROBE), PROBED, prompt), jax.random.fold_in(key, PROBE),
                    new, decoding)  # fmt: skip
    marks = np.unique(np.rint(np.geomspace(1, distillation, stages)).astype(int))
    at, found = 0, [misalignment(model, state.model, probes, *words)]
    for mark in marks:
        while at < mark:
            pool = at // POOL
            draws = jax.random.fold_in(jax.random.fold_in(key, PROMPTS), pool)
            until = min(int(mark), (pool + 1) * POOL)
            state = _learn(
                model, state, text, draws, jnp.asarray(at), jnp.asarray(until), rate, decoding, prompt, new, batch
            )
            at = until
        found.append(misalignment(model, state.model, probes, *words))
    return Pair(
        model, state.model, state.memory, decoding, float(run.records["loss"][0, -1]), np.append(0, marks),
        np.array([float(one.kappa) for one in found]), np.array([float(one.variation) for one in found]), prompt, new,
    )  # fmt: skip


def _build(vocabulary: int, width: int, depth: int, heads: int, context: int, key: Key[Array, ""]) -> LanguageModel:
    return LanguageModel(vocabulary, width, depth, heads, context, key=key)


def _prompts(text: SourceText, key: Key[Array, ""], count: int, length: int) -> Int[Array, "count length"]:
    return text.sample(key, count)[:, :length]


@program
def _learn(
    target: LanguageModel,
    state: Learner,
    text: SourceText,
    key: Key[Array, ""],
    first: Int[Array, ""],
    until: Int[Array, ""],
    rate: Float[Array, ""],
    decoding: Decoding,
    prompt: int,
    new: int,
    batch: int,
) -> Learner:
    """Drafter steps `first`..`until` - 1 on the pool of `key`, drawn anew in every call: the same at every call."""
    tokens = sample(target, _prompts(text, key, 8 * batch, prompt), key, new, decoding)
    return distil(
        target, state, tokens, jax.random.fold_in(key, first), until - first, decoding,
        prompt=prompt, batch=batch, rate=rate,
    )  # fmt: skip
