"""Speculative sampling against exact distributions by enumeration; a drafter and a target that moves."""

from __future__ import annotations

from functools import cache, partial
from itertools import product

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from odescale.errors import InputError
from odescale.networks.language_model import LanguageModel
from odescale.training.source_text import text_of
from odescale.training.speculative import policy
from odescale.training.speculative.distributions import (
    Decoding,
    acceptance,
    kl,
    log_probabilities,
    misalignment,
    total_variation,
)
from odescale.training.speculative.pair import train_pair
from odescale.training.speculative.policy import Brackets, brackets, reinforce
from odescale.training.speculative.sampling import residual, rounds_of, sample, speculate

V, TRIALS = 4, 20_000
TEXT = text_of("f(x) = g(y) + 1\n" * 40, "f(x) = g(y) + 1\n" * 30, length=12, vocabulary=12)


def random_model(seed: int, scale: float = 1.0) -> LanguageModel:
    """A model whose unembedding is not zero, or it would be uniform."""
    model = LanguageModel(V, 8, 1, 2, 8, key=jax.random.key(seed), dtype=jnp.float64)
    weights = scale * jax.random.normal(jax.random.key(seed + 100), (V, 8), jnp.float64)
    return eqx.tree_at(lambda m: m.unembedding, model, weights)


TARGET, DRAFTER = random_model(0), random_model(1, 0.5)
MODELS = {"target": TARGET, "drafter": DRAFTER}


@cache
def table(name: str, temperature: float = 1.0, banned: tuple[int, ...] = ()) -> dict[tuple[int, ...], np.ndarray]:
    """p(next | context) of all contexts of one to three tokens, by numpy from the logits."""
    words = np.array(list(product(range(V), repeat=3)))
    logits = np.asarray(jax.jit(jax.vmap(MODELS[name]))(words)) / temperature
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p[..., list(banned)] = 0
    p /= p.sum(axis=-1, keepdims=True)
    return {tuple(word[: t + 1].tolist()): row[t] for word, row in zip(words, p, strict=True) for t in range(3)}


def joint(start: int, tokens: int, **decoding) -> np.ndarray:
    """P of all V^tokens continuations of `start`."""
    steps = table("target", **decoding)
    words = product(range(V), repeat=tokens)
    return np.array([np.prod([steps[start, *w[:i]][w[i]] for i in range(tokens)]) for w in words])


def chance(tokens: np.ndarray, p: np.ndarray) -> float:
    """Of a chi-square as large, rare outcomes together."""
    places = tokens @ V ** np.arange(tokens.shape[1] - 1, -1, -1)
    seen, told = np.bincount(places, minlength=p.size), p * len(places)
    assert seen[p == 0].sum() == 0
    rare = told < 8
    seen, told = np.append(seen[~rare], seen[rare].sum()), np.append(told[~rare], told[rare].sum())
    seen, told = seen[told > 0], told[told > 0]
    return float(stats.chi2.sf(np.sum((seen - told) ** 2 / told), told.size - 1))


def keep_all(p: jax.Array, q: jax.Array) -> jax.Array:
    """The lossy control: after a rejection the token comes from p and not from what is left of it."""
    return p


@pytest.mark.parametrize(
    ("tree", "decoding"),
    [((1, 1, 1), {}), ((2, 2), {}), ((3, 1), {"temperature": 0.7, "banned": (2,)})],
)
def test_tokens_are_the_targets(tree, decoding):
    """Three tokens from chains and trees by chi-square against the target's exact distribution."""
    prompt = jnp.zeros((TRIALS, 1), jnp.int32)
    run = speculate(TARGET, DRAFTER, prompt, jax.random.key(3), new=3, branching=tree, **decoding)
    assert chance(np.asarray(run.tokens[:, 1:]), joint(0, 3, **decoding)) > 0.01
    assert run.accepted_length > 1.3


@pytest.mark.parametrize("tree", [(1, 1), (2,)])
def test_without_the_residual_tokens_are_not_the_targets(tree):
    """The same test refuses a sampler that draws from the whole of p after a rejection."""
    prompt = jnp.zeros((TRIALS, 1), jnp.int32)
    lossy = rounds_of(TARGET, DRAFTER, prompt, jax.random.key(3), 2, tree, Decoding(), keep_all)
    assert chance(np.asarray(lossy.tokens[:, 1:]), joint(0, 2)) < 1e-6


def test_plain_samples_are_the_targets():
    tokens = sample(TARGET, jnp.ones((TRIALS, 1), jnp.int32), jax.random.key(4), 2, Decoding())
    assert chance(np.asarray(tokens[:, 1:]), joint(1, 2)) > 0.01


def test_one_token_is_accepted_as_often_as_the_distributions_overlap():
    """1 - TV for every first token; a whole chain with sum over paths of prod min(p, q); two candidates by hand."""
    for start in (0, 1):
        prompt = jnp.full((TRIALS, 1), start, jnp.int32)
        run = speculate(TARGET, DRAFTER, prompt, jax.random.key(start), new=1, branching=(1, 1, 1))
        p, q = table("target")[start,], table("drafter")[start,]
        overlap = 1 - 0.5 * np.abs(p - q).sum()
        assert abs(run.acceptances[0] - overlap) < 3 * np.sqrt(overlap * (1 - overlap) / TRIALS)
        assert (np.asarray(run.rounds) == 1).all() and (np.asarray(run.reached[:, 0]) == 1).all()
        kept = [_kept(start, depth) for depth in (1, 2, 3)]
        length = 1 + sum(kept)
        assert abs(run.accepted_length - length) < 3 * np.std(run.emitted) / np.sqrt(TRIALS)
        assert abs(kept[1] / kept[0] - overlap) > 1e-3  # one acceptance for all places would be wrong here

        tree = speculate(TARGET, DRAFTER, prompt, jax.random.key(50 + start), new=1, branching=(2,))
        rest = np.maximum(p - q, 0) / np.maximum(p - q, 0).sum()
        both = 1 - (1 - overlap) * (1 - np.minimum(rest, q).sum())
        assert abs(tree.acceptances[0] - both) < 3 * np.sqrt(both * (1 - both) / TRIALS)


def _kept(start: int, depth: int) -> float:
    """P(the first `depth` tokens of a chain are accepted) = sum over words of prod min(p, q)."""
    total = 0.0
    for word in product(range(V), repeat=depth):
        contexts = [(start, *word[:i]) for i in range(depth)]
        pairs = [(table("target")[c][w], table("drafter")[c][w]) for c, w in zip(contexts, word, strict=True)]
        total += np.prod([min(pair) for pair in pairs])
    return total


def test_a_drafter_that_is_the_target_is_never_refused():
    run = speculate(TARGET, TARGET, jnp.zeros((50, 1), jnp.int32), jax.random.key(0), new=5, branching=(1, 1))
    assert run.accepted_length == 3 and run.accepted_length_stderr == 0
    np.testing.assert_array_equal(run.acceptances, 1)
    np.testing.assert_array_equal(run.rounds, 2)


def test_what_is_measured_is_what_the_sampler_sees():
    """KL, TV and acceptance in numpy under a mask, and the gradient of the KL is finite there."""
    tokens = jax.random.randint(jax.random.key(7), (5, 3), 0, V)
    decoding = Decoding(0.8, (1,))
    told = eqx.filter_jit(log_probabilities)
    log_p, log_q = (told(model, tokens, decoding) for model in (TARGET, DRAFTER))
    for row, t in product(range(5), range(3)):
        context = tuple(np.asarray(tokens)[row, : t + 1].tolist())
        p, q = (table(name, 0.8, (1,))[context] for name in MODELS)
        there = p > 0
        assert float(kl(log_p, log_q)[row, t]) == pytest.approx(
            np.sum(p[there] * np.log(p[there] / q[there])), rel=1e-9
        )
        assert float(total_variation(log_p, log_q)[row, t]) == pytest.approx(0.5 * np.abs(p - q).sum(), rel=1e-9)
        assert float(acceptance(log_p, log_q)[row, t]) == pytest.approx(np.minimum(p, q).sum(), rel=1e-9)
    found = misalignment(TARGET, DRAFTER, tokens, decoding, 2)
    assert float(found.kappa) == pytest.approx(float(kl(log_p, log_q)[:, 1:-1].mean()), rel=1e-12)
    assert float(found.variation) < np.sqrt(float(found.kappa) / 2)
    arrays, static = eqx.partition(DRAFTER, eqx.is_array)

    @jax.jit
    @jax.grad
    def slopes(arrays):
        return kl(log_p, log_probabilities(eqx.combine(arrays, static), tokens, decoding)).mean()

    slope = slopes(arrays)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    rest = residual(jnp.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]), jnp.array([[0.2, 0.4, 0.4], [0.2, 0.3, 0.5]]))
    np.testing.assert_allclose(rest, [[0.75, 0.25, 0.0], [0.2, 0.3, 0.5]])


def test_bad_input_is_one_line():
    prompt, key = jnp.zeros((2, 1), jnp.int32), jax.random.key(0)
    run = partial(speculate, TARGET, DRAFTER, prompt, key)
    for word, call in {
        "target": partial(run, new=6, branching=(1, 1, 1)),
        "branching": partial(run, new=1, branching=()),
        "new": partial(run, new=0),
        "banned": partial(run, new=1, branching=(1,), banned=(V,)),
        "temperature": partial(run, new=1, branching=(1,), temperature=0.0),
        "prompt": partial(speculate, TARGET, DRAFTER, jnp.zeros((2, 0), jnp.int32), key, new=1),
        "drafter": partial(
            speculate, TARGET, LanguageModel(5, 8, 1, 2, 8, key=key), prompt, key, new=1, branching=(1,)
        ),
        "text": partial(brackets, text_of("abc" * 9, "abc" * 9, length=4)),
    }.items():
        with pytest.raises(InputError, match=f"^{word}: "):
            call()
    with pytest.raises(InputError, match="branching"):
        run(new=1, branching=(64, 64))


@pytest.fixture(scope="module")
def pair():
    return train_pair(
        TEXT, prompt=3, new=8, steps=150, distillation=60, target=(16, 2, 2), drafter=(8, 1, 2), stages=3, batch=16,
        learning_rate=1e-2,
    )  # fmt: skip


def test_the_drafter_is_distilled_from_what_the_target_writes(pair):
    """A uniform drafter first: kappa = log V - entropy of the target; then kappa falls, and c stays below Pinsker's bound."""
    assert pair.loss < 0.6 * np.log(12)
    assert pair.steps[0] == 0 and pair.steps[-1] == 60
    assert (np.diff(pair.kappa) < 0).all() and pair.kappa[-1] < 0.8 * pair.kappa[0]
    assert (pair.coefficient < np.sqrt(np.pi / 2)).all()
    prompt = TEXT.sample(jax.random.key(8), 400)[:, :3]
    tokens = sample(pair.target, prompt, jax.random.key(9), 8, pair.decoding)
    log_p = eqx.filter_jit(log_probabilities)(pair.target, tokens[:, :-1], pair.decoding)[:, 2:]
    each = np.log(12) + np.sum(np.exp(log_p) * log_p, axis=-1).mean(axis=1)
    assert abs(each.mean() - pair.kappa[0]) < 4 * each.std() * np.sqrt(1 / 400 + 1 / 256)


class Share(eqx.Module):
    """Of one token among those that a sequence adds."""

    token: int = eqx.field(static=True)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return jnp.mean(tokens == self.token, axis=1).astype(float)


def test_the_target_climbs_and_a_run_goes_on_where_it_stopped(pair):
    """Twelve steps in one piece and in two are the same bits; the reward rises; the idle phase lowers kappa."""
    words = {
        "reward": Share(TEXT.alphabet.index("x")), "prompts": 4, "group": 8, "kept": 32, "learning_rate": 3e-2,
        "drafter_rate": 1e-2, "drafter_batch": 16, "memory": 3, "branching": (1, 1),
    }  # fmt: skip
    idle = np.tile([2, 6, 0], 4)
    whole = reinforce(pair, TEXT, 12, idle=idle, **words)
    half = reinforce(pair, TEXT, 5, idle=idle[:5], **words)
    rest = reinforce(pair, TEXT, 7, idle=idle[5:], start=half.state, **words)
    for name in ("step", "before", "after", "reward", "length"):
        np.testing.assert_array_equal(getattr(whole, name), np.append(getattr(half, name), getattr(rest, name)))
    assert whole.reward[-4:].mean() > whole.reward[:4].mean() + 0.1
    np.testing.assert_array_equal(whole.before[idle == 0], whole.after[idle == 0])
    assert (whole.after - whole.before)[idle == 6].mean() < 0
    frozen = reinforce(pair, TEXT, 2, idle=0, **words)
    for a, b in zip(jax.tree.leaves(frozen.state.drafter.model), jax.tree.leaves(pair.drafter), strict=True):
        np.testing.assert_array_equal(a, b)
    assert frozen.before[0] == whole.before[0]
    for bad, word in (({"idle": [1, 2]}, "idle"), ({"group": 1}, "group"), ({"learning_rate": -1.0}, "learning_rate"),
                      ({"drafter_batch": 0}, "drafter_batch")):  # fmt: skip
        with pytest.raises(InputError, match=f"^{word}: "):
            reinforce(pair, TEXT, 3, **(words | bad))


def test_the_policy_gradient_by_loops(pair):
    """Against a plain sum over sequences and places, by differences along a random direction."""
    tokens = TEXT.sample(jax.random.key(2), 3)
    gain, penalty, P = jnp.array([1.0, -0.5, 0.2]), jnp.asarray(0.3), 4
    wide = jax.tree.map(lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x, pair.target)
    other = eqx.tree_at(lambda m: m.unembedding, wide, 0.7 * wide.unembedding)
    slope = eqx.filter_jit(policy._policy_gradient)(wide, other, tokens, gain, penalty, Decoding(), P)
    way = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), eqx.filter(wide, eqx.is_array))

    logits = eqx.filter_jit(lambda model, tokens: jax.vmap(model)(tokens))

    def objective(step: float) -> float:
        model = jax.tree.map(lambda w, u: w + step * u if eqx.is_array(w) else w, wide, way)
        ps, rs = (np.asarray(jax.nn.softmax(logits(m, tokens[:, :-1]))) for m in (model, other))
        total = 0.0
        for i, row in enumerate(np.asarray(tokens)):
            for t in range(P, len(row)):
                p, r = ps[i, t - 1], rs[i, t - 1]
                total += -float(gain[i]) * np.log(p[row[t]]) + 0.3 * np.sum(p * np.log(p / r))
        return total / tokens.shape[0] / (tokens.shape[1] - P)

    told = sum(float(jnp.sum(g * u)) for g, u in zip(jax.tree.leaves(slope), jax.tree.leaves(way), strict=True))
    assert told == pytest.approx((objective(1e-5) - objective(-1e-5)) / 2e-5, rel=1e-5)


def test_brackets_are_checked_in_order():
    codes = {"(": 0, ")": 1, "x": 2}
    rows = ["x(x)", "xxxx", "()()", "(())", ")(x)", "((x)", "x)(x"]
    tokens = jnp.array([[codes[c] for c in row] for row in rows])
    np.testing.assert_array_equal(Brackets(0, 1)(tokens), [1, 0, 1, 1, 0, 0, 0])
    assert brackets(TEXT)(TEXT.train[None, :16].astype(jnp.int32))[0] == 1  # "f(x) = g(y) + 1"
