r"""Lossless speculative sampling, chains and trees: a drafter proposes, the target verifies in one pass.

x ~ q is accepted with probability min(1, p(x)/q(x)); after a rejection p <- (p - q)+/sum (p - q)+, and the next candidate is tried
against that; what is left after the last one gives the token. Every token is then distributed as p.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from odescale.cache.programs import program
from odescale.errors import InputError, whole
from odescale.precision import require_x64
from odescale.training.speculative.distributions import Decoding, log_probabilities

MOST_LEAVES = 256
"""Paths of a draft tree: each is a row of the target's one pass."""

Residual = Callable[[Float[Array, "B V"], Float[Array, "B V"]], Float[Array, "B V"]]


class Speculation(eqx.Module):
    r"""What a batch of B sequences did: `tokens` (B, prompt + new), `rounds` (B,), `emitted` (B,), `reached` and `accepted` (B, d).

    One round is one pass of the target. `emitted` counts all tokens that the rounds gave, those past the end too, which are cut
    from `tokens`: a last round that is cut short would bias the length. `reached[:, i]` counts rounds in which the draft's token
    i was judged, `accepted[:, i]` those in which one of its candidates stayed.
    """

    tokens: Int[Array, "B T"]
    rounds: Int[Array, " B"]
    emitted: Int[Array, " B"]
    reached: Int[Array, "B d"]
    accepted: Int[Array, "B d"]

    @property
    def accepted_length(self) -> float:
        """A = tokens per round, all sequences together; 1 without a drafter."""
        return float(np.sum(self.emitted) / np.sum(self.rounds))

    @property
    def accepted_length_stderr(self) -> float:
        """Of A, by the spread over sequences, which are independent (a ratio of sums, to first order)."""
        emitted, rounds = np.asarray(self.emitted, float), np.asarray(self.rounds, float)
        rest = emitted - self.accepted_length * rounds
        return float(np.sqrt(np.sum(rest**2) * rest.size / max(rest.size - 1, 1)) / rounds.sum())

    @property
    def acceptances(self) -> Float[np.ndarray, " d"]:
        """a_i, the share of rounds that keep token i of the draft among those that come to judge it; NaN where none did."""
        reached = np.sum(self.reached, axis=0)
        return np.where(reached > 0, np.sum(self.accepted, axis=0) / np.maximum(reached, 1), np.nan)


def speculate(
    target: Any,
    drafter: Any,
    prompt: Int[Array, "B P"],
    key: Key[Array, ""],
    *,
    new: int,
    branching: Sequence[int] = (1, 1, 1, 1),
    temperature: float = 1.0,
    banned: Sequence[int] = (),
) -> Speculation:
    r"""x_(t+1) ~ p(. | x_<=t) exactly, in fewer passes of the target: A = 1 + sum_j prod_(i<=j) a_i tokens each.

    At every node of the draft the candidates are independent draws from the drafter's q; they are tried in order, each accepted
    with min(1, p/q), and after each rejection p becomes the normalised (p - q)+ (recursive rejection). An accepted candidate is
    the next node; if none stays, the token is drawn from what is left of p and the round ends; a whole path gives one more token
    from p.

    **Arguments**

    - `target`, `drafter`: `LanguageModel`s, or callables from tokens (B, T) to causal logits (B, T, V), of the same vocabulary.
    - `prompt` (B, P), P >= 1: tokens to begin with. `new` >= 1: tokens to add. `key`: of all draws.
    - `branching`: candidates per node at each depth, from the root: (1, 1, 1) is a chain of depth 3, (3, 2, 1) a tree with 6
      leaves.
    - `temperature` > 0 and `banned` tokens: of target and drafter alike (`Decoding`).

    **Returns** `Speculation`. **Raises** `InputError`: a context shorter than P + new + depth - 1, another vocabulary, over 256
    leaves.
    **Good values**: depth 3 to 6 for a drafter that keeps 70 % of its tokens. **Failure regime**: no keys and values are kept,
    each pass reads the whole sequence, each path of a tree is a row of its own: for measuring lengths and acceptances, not for
    speed. Source: Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318; Miao et al. 2023, arXiv
    2305.09781 (trees).

    ```python
    import jax
    from odescale.training.speculative.sampling import speculate
    jax.config.update("jax_enable_x64", True)
    target = lambda tokens: jax.nn.one_hot(tokens + 1, 5) * 2.0  # after k mostly comes k + 1
    drafter = lambda tokens: jax.nn.one_hot(tokens + 1, 5)
    run = speculate(target, drafter, jax.numpy.zeros((64, 1), int), jax.random.key(0), new=8, branching=(2, 1))
    print(run.accepted_length, run.acceptances)
    ```
    """
    require_x64("speculate")
    new, tree = whole("new", new), check_branching(branching)
    decoding = Decoding(temperature, banned)
    prompt = jnp.asarray(prompt)
    if prompt.ndim != 2 or 0 in prompt.shape or not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise InputError("prompt", expected="integer tokens (B, P), P >= 1", got=f"{prompt.dtype}{prompt.shape}",
                         remedy="begin with one token or more")  # fmt: skip
    check_models(target, drafter, prompt.shape[1] + new + len(tree) - 1, decoding)
    return rounds_of(target, drafter, prompt, key, new, tree, decoding, residual)


def check_branching(branching: Sequence[int]) -> tuple[int, ...]:
    """The branching as whole numbers >= 1 with at most `MOST_LEAVES` leaves."""
    tree = tuple(whole("branching", count, 1, MOST_LEAVES) for count in branching)
    if not tree or np.prod(tree, dtype=float) > MOST_LEAVES:
        raise InputError("branching", expected=f"candidates per node, one number or more, product <= {MOST_LEAVES}",
                         got=tree, remedy="(1, 1, 1) is a chain of depth 3")  # fmt: skip
    return tree


def check_models(target: Any, drafter: Any, length: int, decoding: Decoding) -> None:
    """Refuses contexts below `length` and different vocabularies, before a long compilation."""
    for name, model in (("target", target), ("drafter", drafter)):
        context = getattr(model, "context", None)
        if context is not None and context < length:
            raise InputError(name, expected=f"a context of {length} or more (prompt + new + depth - 1)", got=context,
                             remedy="lower new or the depth")  # fmt: skip
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    sizes = [
        eqx.filter_eval_shape(log_probabilities, model, tokens, Decoding()).shape[-1] for model in (target, drafter)
    ]
    if sizes[0] != sizes[1]:
        raise InputError("drafter", expected=f"the target's vocabulary of {sizes[0]}", got=sizes[1], remedy="match it")
    decoding.check(sizes[0])


def residual(p: Float[Array, "B V"], q: Float[Array, "B V"]) -> Float[Array, "B V"]:
    """(p - q)+/sum (p - q)+; p itself where p = q, which is never rejected."""
    rest = jnp.maximum(p - q, 0.0)
    total = rest.sum(axis=-1, keepdims=True)
    return jnp.where(total > 0, rest / jnp.where(total > 0, total, 1.0), p)


class _Carry(NamedTuple):
    round: Int[Array, ""]
    buffer: Int[Array, "B L"]
    length: Int[Array, " B"]
    rounds: Int[Array, " B"]
    reached: Int[Array, "B d"]
    accepted: Int[Array, "B d"]


@program
def rounds_of(
    target: Any,
    drafter: Any,
    prompt: Array,
    key: Array,
    new: int,
    tree: tuple[int, ...],
    decoding: Decoding,
    rest: Residual,
) -> Speculation:
    """Rounds until every sequence has its tokens. `rest` is what a rejection leaves of p: `residual`, or the sampler is lossy."""
    (B, P), d = prompt.shape, len(tree)
    goal = P + new
    buffer = jnp.zeros((B, goal + d), prompt.dtype).at[:, :P].set(prompt)
    none = jnp.zeros((B, d), jnp.int32)

    def more(carry: _Carry) -> Array:
        return jnp.any(carry.length < goal)

    def advance(carry: _Carry) -> _Carry:
        draws = jax.random.fold_in(key, carry.round)
        live = carry.length < goal
        # A finished row goes on at its last place, for nothing: all rows have one shape.
        start = jnp.minimum(carry.length, goal - 1)
        tokens, count = _round(target, drafter, carry.buffer[:, :-1], start, draws, tree, decoding, rest)
        places = start[:, None] + jnp.arange(d + 1)
        rows = jnp.arange(B)[:, None]
        kept = jnp.where(live[:, None] & (jnp.arange(d + 1) <= count[:, None]), tokens, carry.buffer[rows, places])
        stages = jnp.arange(d)
        return _Carry(
            carry.round + 1,
            carry.buffer.at[rows, places].set(kept),
            jnp.where(live, carry.length + count + 1, carry.length),
            carry.rounds + live,
            carry.reached + (live[:, None] & (stages <= count[:, None])),
            carry.accepted + (live[:, None] & (stages < count[:, None])),
        )

    begin = _Carry(jnp.zeros((), jnp.int32), buffer, jnp.full(B, P, jnp.int32), jnp.zeros(B, jnp.int32), none, none)
    end = lax.while_loop(more, advance, begin)
    return Speculation(end.buffer[:, :goal], end.rounds, end.length - P, end.reached, end.accepted)


def _round(
    target: Any,
    drafter: Any,
    buffer: Int[Array, "B L"],
    length: Int[Array, " B"],
    key: Array,
    tree: tuple[int, ...],
    decoding: Decoding,
    rest: Residual,
) -> tuple[Int[Array, "B stages"], Int[Array, " B"]]:
    """One round after `length` tokens: (d + 1 tokens, of which the first `count` + 1 are good; `count`, accepted ones)."""
    (B, L), rows = buffer.shape, jnp.arange(buffer.shape[0])
    paths = buffer[:, None]
    drafts, tokens = [], []
    for depth, candidates in enumerate(tree):
        nodes = paths.shape[1]
        places = jnp.repeat(length + depth - 1, nodes)[:, None]
        log_q = log_probabilities(drafter, paths.reshape(B * nodes, L), decoding, places).reshape(B, nodes, -1)
        drawn = jax.random.categorical(
            jax.random.fold_in(key, depth), log_q[:, :, None], shape=(B, nodes, candidates)
        ).astype(buffer.dtype)
        drafts.append(jnp.exp(log_q))
        tokens.append(drawn)
        paths = jnp.repeat(paths, candidates, axis=1)
        paths = paths.at[rows, :, length + depth].set(drawn.reshape(B, -1))
    leaves = paths.shape[1]
    places = jnp.repeat(length[:, None] - 1 + jnp.arange(len(tree) + 1), leaves, axis=0)
    log_p = log_probabilities(target, paths.reshape(B * leaves, L), decoding, places)
    log_p = log_p.reshape(B, leaves, len(tree) + 1, -1)

    node, count = jnp.zeros(B, jnp.int32), jnp.zeros(B, jnp.int32)
    live = jnp.ones(B, bool)
    left = jnp.zeros((B, log_p.shape[-1]), log_p.dtype)
    path = []
    for depth, candidates in enumerate(tree):
        p = jnp.exp(log_p[rows, node * (leaves // drafts[depth].shape[1]), depth])
        q, offered = drafts[depth][rows, node], tokens[depth][rows, node]
        luck = jax.random.uniform(jax.random.fold_in(key, len(tree) + depth), (B, candidates), p.dtype)
        chosen = jnp.full(B, -1, jnp.int32)
        for i in range(candidates):
            x = offered[:, i]
            # q(x) > 0, since x was drawn from q.
            taken = (chosen < 0) & (luck[:, i] * q[rows, x] < p[rows, x])
            chosen = jnp.where(taken, i, chosen)
            p = jnp.where((chosen < 0)[:, None], rest(p, q), p)
        stays = chosen >= 0
        left = jnp.where((live & ~stays)[:, None], p, left)
        live = live & stays
        count = count + live
        chosen = jnp.maximum(chosen, 0)
        path.append(offered[rows, chosen])
        node = node * candidates + chosen
    bonus = jnp.exp(log_p[rows, node, len(tree)])
    last = jax.random.categorical(
        jax.random.fold_in(key, 2 * len(tree)), jnp.log(jnp.where(live[:, None], bonus, left))
    )
    emitted = jnp.stack([*path, path[-1]], axis=1)
    return emitted.at[rows, count].set(last.astype(buffer.dtype)), count


@program
def sample(
    model: Any, prompt: Int[Array, "B P"], key: Key[Array, ""], new: int, decoding: Decoding
) -> Int[Array, "B T"]:
    """`new` tokens after each prompt, one pass of the model for each: what speculation must not be told from."""
    B, P = prompt.shape
    buffer = jnp.zeros((B, P + new), prompt.dtype).at[:, :P].set(prompt)

    def one(place: Array, buffer: Array) -> Array:
        log_p = log_probabilities(model, buffer[:, :-1], decoding)[:, place - 1]
        drawn = jax.random.categorical(jax.random.fold_in(key, place), log_p)
        return buffer.at[:, place].set(drawn.astype(buffer.dtype))

    return lax.fori_loop(P, P + new, one, buffer)
