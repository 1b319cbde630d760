"""A target that moves by policy gradient and a drafter that learns between its rollouts, followed step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from odescale.cache.programs import program
from odescale.errors import InputError, require_number, whole
from odescale.networks.language_model import LanguageModel
from odescale.precision import require_x64
from odescale.training.runner import seed_key
from odescale.training.source_text import SourceText
from odescale.training.speculative.distributions import Decoding, kl, log_probabilities, misalignment
from odescale.training.speculative.pair import Learner, Pair, descend, distil, learner
from odescale.training.speculative.sampling import check_branching, check_models, residual, rounds_of

ROLLOUTS = 2**32 - 15  # stream of a seed's key
LEAST_SPREAD = (
    0.05  # of the rewards of a group, added to it: a group of one mind teaches nothing and divides by nothing
)

Reward = Callable[[Int[Array, "B T"]], Float[Array, " B"]]


class Brackets(eqx.Module):
    """1 where the tokens hold a "(" and every bracket is closed in order, else 0: a reward that anybody can check.

    **Arguments**: `opening`, `closing`: the tokens of "(" and ")"; `brackets(text)` looks them up.
    """

    opening: int = eqx.field(static=True)
    closing: int = eqx.field(static=True)

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, " B"]:
        rise, fall = tokens == self.opening, tokens == self.closing
        level = jnp.cumsum(rise.astype(int) - fall.astype(int), axis=1)
        return (jnp.any(rise, axis=1) & jnp.all(level >= 0, axis=1) & (level[:, -1] == 0)).astype(float)


def brackets(text: SourceText) -> Brackets:
    """The reward `Brackets` of a text. **Raises** `InputError` where its alphabet lacks a bracket."""
    if not {"(", ")"} <= set(text.alphabet):
        raise InputError("text", expected="an alphabet with ( and )", got=text.alphabet, remedy="raise its vocabulary")
    return Brackets(text.alphabet.index("("), text.alphabet.index(")"))


class PolicyState(NamedTuple):
    """Where a run stands after `step` steps: target and drafter with the memories of their optimisers, and the last `rollouts`.

    All of it, to go on from. `rollouts` (memory, rows, T): those of step n lie at place n mod memory.
    """

    step: int
    target: Learner
    drafter: Learner
    rollouts: Int[Array, "memory rows T"]


class Drift(eqx.Module):
    """What a run recorded, (n,) each: `step`, `idle` (drafter gradient steps) and, of step i,

    - `before`, `after`: kappa = mean KL(target || drafter) in nats just before and just after the idle phase, on the same
      sequences, which the target has just written and the drafter never learns from; `before_stderr`, `after_stderr` over
      sequences.
    - `acceptance`: 1 - mean TV on them, `length`: accepted tokens per round of the rollout, both before the idle phase.
    - `reward`: mean over the rollout.

    `state`: to go on from, with `reinforce(..., start=state)`.
    """

    step: Int[np.ndarray, " n"]
    idle: Int[np.ndarray, " n"]
    before: Float[np.ndarray, " n"]
    after: Float[np.ndarray, " n"]
    before_stderr: Float[np.ndarray, " n"]
    after_stderr: Float[np.ndarray, " n"]
    acceptance: Float[np.ndarray, " n"]
    length: Float[np.ndarray, " n"]
    reward: Float[np.ndarray, " n"]
    state: PolicyState


def reinforce(
    pair: Pair,
    text: SourceText,
    steps: int,
    *,
    idle: int | Sequence[int] = 8,
    reward: Reward | None = None,
    seed: int = 0,
    prompts: int = 16,
    group: int = 8,
    kept: int = 64,
    learning_rate: float = 1e-3,
    penalty: float = 0.05,
    drafter_rate: float = 2e-3,
    drafter_batch: int = 64,
    memory: int = 8,
    branching: Sequence[int] = (1, 1, 1, 1),
    start: PolicyState | None = None,
    callback: Callable[[int, dict[str, float]], None] | None = None,
) -> Drift:
    r"""theta <- theta + rate Adam(grad mean_i A_i mean_t log p(x_it | x_i,<t)),  A_i = (R_i - mean_g R)/(std_g R + 0.05).

    One step: the target writes `prompts` x `group` continuations by lossless speculation; kappa is measured on `kept` more; the
    drafter takes `idle` gradient steps of KL(target || drafter) on the last continuations; kappa is measured again; the target
    takes its step. The policy gradient compares each continuation with those of the same prompt (group-relative advantages);
    rollouts are fresh, so no ratio is clipped.

    **Arguments**

    - `pair`: of `train_pair`, whose prompt length, new tokens and decoding are kept. `text`: where prompts come from.
    - `steps` >= 1. `idle`: drafter gradient steps in each step, a number or (steps,); **0 keeps the drafter frozen**.
    - `reward`: JAX function from the new tokens (B, new) to (B,), default `brackets(text)`.
    - `prompts`, `group`, `kept` >= 2 sequences. `learning_rate`, `drafter_rate`: of Adam, on the mean over tokens. `penalty` >= 0:
      weight of KL(policy || first target) in nats per token, which keeps the target from settling on one text.
    - `drafter_batch`: sequences of a drafter step, drawn from the rollouts of the last `memory` steps, judged by the target of now.
      With one step's rollouts alone a long idle phase learns them by heart, and kappa on others rises. `branching` of the draft.
    - `seed`: step n draws from its own key, whatever `idle` is. `start`: the `state` of a run, to go on: bit for bit the run
      that was never stopped; `steps` more and an `idle` for those. `callback(step, records)` after each.

    **Returns** `Drift`. **Raises** `InputError`.
    **Failure regime**: a reward that no continuation earns gives no gradient, and the target stays.
    Source: Shao et al. 2024, arXiv 2402.03300 (group-relative); Hu et al., arXiv 2511.16665 (the drafter in idle time).

    ```python
    import jax
    from odescale.training.source_text import source_text
    from odescale.training.speculative.pair import train_pair
    from odescale.training.speculative.policy import reinforce
    jax.config.update("jax_enable_x64", True)
    text = source_text(length=32, vocabulary=40, most=200_000)
    drift = reinforce(train_pair(text, steps=50, distillation=20), text, 3, idle=2, prompts=2)
    print(drift.before, drift.after)
    ```
    """
    rows = []
    for state, row in policy_steps(
        pair, text, steps, idle=idle, reward=reward, seed=seed, prompts=prompts, group=group, kept=kept,
        learning_rate=learning_rate, penalty=penalty,
        drafter_rate=drafter_rate, drafter_batch=drafter_batch, memory=memory, branching=branching, start=start,
    ):  # fmt: skip
        rows.append(row | {"state": state})
        if callback is not None:
            callback(state.step, row)
    names = [name for name in Drift.__dataclass_fields__ if name != "state"]
    return Drift(**{name: np.array([row[name] for row in rows]) for name in names}, state=rows[-1]["state"])


def policy_steps(
    pair: Pair,
    text: SourceText,
    steps: int,
    *,
    idle: int | Sequence[int],
    reward: Reward | None,
    seed: int,
    prompts: int,
    group: int,
    kept: int,
    learning_rate: float,
    penalty: float,
    drafter_rate: float,
    drafter_batch: int,
    memory: int,
    branching: Sequence[int],
    start: PolicyState | None,
) -> Iterator[tuple[PolicyState, dict[str, Any]]]:
    """`reinforce` as it goes: the state after every step and what the step recorded. Stop when you like, go on from the state."""
    require_x64("reinforce")
    steps, tree = whole("steps", steps), check_branching(branching)
    for name, value, least in (("prompts", prompts, 1), ("group", group, 2), ("kept", kept, 2), ("memory", memory, 1),
                               ("drafter_batch", drafter_batch, 1)):  # fmt: skip
        whole(name, value, least)
    rates = {
        name: jnp.asarray(require_number(name, value, open_=True))
        for name, value in (("learning_rate", learning_rate), ("drafter_rate", drafter_rate))
    } | {"penalty": jnp.asarray(require_number("penalty", penalty))}
    times = [whole("idle", n, 0) for n in (np.full(steps, idle) if np.ndim(idle) == 0 else np.asarray(idle))]
    if len(times) != steps:
        raise InputError(
            "idle", expected=f"a number or one for each of the {steps} steps", got=len(times), remedy="mend it"
        )
    if pair.prompt > text.length + 1:
        raise InputError(
            "text", expected=f"windows of {pair.prompt} characters", got=text.length + 1, remedy="raise its length"
        )
    check_models(pair.target, pair.drafter, pair.prompt + pair.new + len(tree) - 1, pair.decoding)
    earned = brackets(text) if reward is None else reward
    if start is None:
        room = jnp.zeros((memory, prompts * group, pair.prompt + pair.new), jnp.int32)
        start = PolicyState(0, learner(pair.target), Learner(pair.drafter, pair.memory), room)
    state = start
    sizes = (pair.prompt, pair.new, prompts, group, kept, drafter_batch)
    for n in times:
        key = jax.random.fold_in(jax.random.fold_in(seed_key(seed), ROLLOUTS), state.step)
        moved, numbers = _step(
            state._replace(step=jnp.asarray(state.step)), pair.target, text, key, jnp.asarray(n), rates, earned,
            pair.decoding, sizes, tree,
        )  # fmt: skip
        record = {name: float(value) for name, value in numbers.items()} | {"step": state.step, "idle": n}
        state = moved._replace(step=state.step + 1)
        yield state, record


@program
def _step(
    state: PolicyState,
    reference: LanguageModel,
    text: SourceText,
    key: Key[Array, ""],
    idle: Int[Array, ""],
    rates: dict[str, Float[Array, ""]],
    reward: Reward,
    decoding: Decoding,
    sizes: tuple[int, ...],
    tree: tuple[int, ...],
) -> tuple[PolicyState, dict[str, Array]]:
    n, target, drafter, rollouts = state
    P, new, prompts, group, kept, batch = sizes
    one, two, three = jax.random.split(key, 3)
    windows = text.sample(one, prompts + kept)[:, :P]
    asked = jnp.concatenate([jnp.repeat(windows[:prompts], group, axis=0), windows[prompts:]])
    run = rounds_of(target.model, drafter.model, asked, two, new, tree, decoding, residual)
    written, fresh = run.tokens[: prompts * group], run.tokens[prompts * group :]
    memory = rollouts.shape[0]
    rollouts = rollouts.at[n % memory].set(written)
    before = misalignment(target.model, drafter.model, fresh, decoding, P)
    seen = jnp.minimum(n + 1, memory) * written.shape[0]
    drafter = distil(target.model, drafter, rollouts.reshape(-1, P + new), three, idle, decoding, prompt=P, batch=batch,
                     rate=rates["drafter_rate"], rows=seen)  # fmt: skip
    after = misalignment(target.model, drafter.model, fresh, decoding, P)
    rewards = reward(written[:, P:])
    grouped = rewards.reshape(prompts, group)
    spread = grouped.std(axis=1, keepdims=True) + LEAST_SPREAD
    gain = ((grouped - grouped.mean(axis=1, keepdims=True)) / spread).reshape(-1)
    uphill = _policy_gradient(target.model, reference, written, gain, rates["penalty"], decoding, P)
    target = descend(target, uphill, rates["learning_rate"])
    return PolicyState(n, target, drafter, rollouts), {
        "before": before.kappa, "after": after.kappa, "before_stderr": before.stderr, "after_stderr": after.stderr,
        "acceptance": 1 - before.variation, "length": jnp.sum(run.emitted) / jnp.sum(run.rounds), "reward": rewards.mean(),
    }  # fmt: skip


def _policy_gradient(
    model: LanguageModel,
    reference: LanguageModel,
    tokens: Int[Array, "B T"],
    gain: Float[Array, " B"],
    penalty: Float[Array, ""],
    decoding: Decoding,
    prompt: int,
) -> PyTree:
    """grad of mean_i mean_t (-A_i log p(x_it) + penalty KL(p || reference)), the KL over the whole vocabulary."""
    log_r = log_probabilities(reference, tokens[:, :-1], decoding)[:, prompt - 1 :]
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(arrays: PyTree) -> Array:
        log_p = log_probabilities(eqx.combine(arrays, static), tokens[:, :-1], decoding)[:, prompt - 1 :]
        said = jnp.take_along_axis(log_p, tokens[:, prompt:, None], axis=2)[..., 0]
        return -jnp.mean(gain * said.mean(axis=1)) + penalty * kl(log_p, log_r).mean()

    return jax.grad(loss)(arrays)
