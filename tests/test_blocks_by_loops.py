"""Every block, readout and sequence network against loops over its definition, in numpy; and no output reads a later token.

Theory and real network share the code of blocks, so their agreement says nothing about a formula. These loops share nothing.
"""

from __future__ import annotations

from math import erf

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odescale.networks import (
    MLP,
    CommitteeReadout,
    CrossEntropy,
    FunctionOfFields,
    HeadRows,
    MeanPool,
    PerToken,
    Positions,
    PreNorm,
    QueryToken,
    RMSNorm,
    RowNetwork,
    SelfAttention,
    SquareLoss,
    transformer_network,
)
from odescale.networks.blocks import ACTIVATIONS
from odescale.networks.language_model import CausalAttention, DecoderBlock, LanguageModel, TokenNorm
from odescale.networks.sequence_model import SequenceTransformer, lazy_network
from odescale.networks.softmax_layer import SoftmaxHead
from odescale.networks.streams import FieldStream, VectorStream

T, D, N = 5, 7, 5.5
NAMES = ("q", "k", "v", "o", "p", "g")
RNG = np.random.default_rng(3)
ROWS = dict(zip(NAMES, RNG.normal(size=(len(NAMES), D)), strict=True))
TOKENS = RNG.normal(size=(T, D))
SCALARS = {
    "erf": lambda x: erf(x / 2**0.5),
    "gelu": lambda x: x * 0.5 * (1 + erf(x / 2**0.5)),
    "relu": lambda x: max(x, 0.0),
    "tanh": np.tanh,
    "linear": lambda x: x,
    "quadratic": lambda x: 0.5 * (x**2 - 1),
}


def vectors(tokens=TOKENS):
    return VectorStream(
        vectors=jnp.asarray(tokens), rows=jnp.asarray(np.stack(list(ROWS.values()))), trace=N, names=NAMES
    )


def field(row, token):
    return float(ROWS[row] @ token) / N**0.5


def added(products):
    """The score of a head of rank r: the sum of its products."""
    return sum(products)


def loop_attention(x, heads, kind, causal, asking, score=added):
    """h_t + sum over heads and over the tokens s that t may see of a_ts v_s."""
    out = []
    for t in range(T):
        if asking == "last" and t < T - 1:
            continue
        seen = range(t + 1) if causal else range(T)
        h = x[t].copy()
        for q, k, v, o in heads:
            pairs = () if q is None else ((q, k),) if isinstance(q, str) else tuple(zip(q, k, strict=True))
            products = [score([field(a, x[t]) * field(b, x[s]) for a, b in pairs] or [0.0]) for s in seen]
            if kind == "linear" and q is not None:
                a = [product / len(seen) for product in products]
            else:
                total = sum(np.exp(product) for product in products)
                a = [np.exp(product) / total for product in products]
            for weight, s in zip(a, seen, strict=True):
                h += weight * (x[s] if v is None else ROWS[o] * field(v, x[s]) / N**0.5)
        out.append(h)
    return np.array(out)


HEADS = {
    "one": (("q", "k", None, None),),
    "uniform": ((None, None, None, None),),
    "two, one with values": (("q", "k", "v", "o"), ("k", "v", None, None)),
    "rank three": ((("q", "p", "g"), ("k", "v", "o"), None, None),),
    "rank two with values": ((("q", "p"), ("k", "g"), "v", "o"),),
    "grouped queries": (("q", "k", "v", "o"), ("p", "k", "v", "g")),
}


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("kind", ["softmax", "linear"])
def test_attention_is_its_loop(kind, heads):
    for causal in (False, True):
        for asking in ("all", "last"):
            block = SelfAttention(tuple(HeadRows(*rows) for rows in HEADS[heads]), kind, causal, asking)
            expected = loop_attention(TOKENS, HEADS[heads], kind, causal, asking)
            np.testing.assert_allclose(block(vectors()).vectors, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("score", [np.prod, lambda products: products[0]], ids=["product", "one alone"])
def test_the_loops_of_a_higher_rank_are_no_others(score):
    """A product in place of the sum over the pairs, or the first pair alone, is another head, far from what the loops allow."""
    for name in ("rank three", "rank two with values"):
        for kind in ("softmax", "linear"):
            block = SelfAttention(tuple(HeadRows(*rows) for rows in HEADS[name]), kind)
            wrong = loop_attention(TOKENS, HEADS[name], kind, False, "all", score)
            assert np.abs(block(vectors()).vectors - wrong).max() > 1e-2


def test_rank_one_is_the_head_of_one_product():
    """The plain formula, entry by entry; a second pair whose key is zero changes nothing, the same pair twice doubles the score."""
    stream = vectors()
    one = SelfAttention((HeadRows("q", "k", "v", "o"),))(stream).vectors
    written_out = jax.nn.softmax(stream.read("q")[:, None] * stream.read("k")[None, :], axis=-1) @ stream.read("v")
    np.testing.assert_array_equal(one, stream.write("o", written_out).vectors)
    zero = eqx.tree_at(lambda s: s.rows, stream, stream.rows.at[NAMES.index("g")].set(0.0))
    two = SelfAttention((HeadRows(("q", "p"), ("k", "g"), "v", "o"),))(zero).vectors
    np.testing.assert_array_equal(two, one)
    halves = eqx.tree_at(lambda s: s.rows, stream, stream.rows.at[NAMES.index("g")].set(stream.rows[NAMES.index("q")]))
    twice = SelfAttention((HeadRows(("q", "g"), ("k", "k"), "v", "o"),))(halves).vectors
    double = eqx.tree_at(lambda s: s.rows, stream, stream.rows.at[NAMES.index("q")].multiply(2.0))
    np.testing.assert_allclose(
        twice, SelfAttention((HeadRows("q", "k", "v", "o"),))(double).vectors, rtol=1e-12, atol=1e-14
    )


def test_units_positions_and_norms_are_their_loops():
    for name, scalar in SCALARS.items():
        expected = TOKENS.copy()
        for t in range(T):
            for read, write in (("q", "o"), ("k", "v")):
                expected[t] += ROWS[write] * scalar(field(read, TOKENS[t])) / N**0.5
        made = MLP((("q", "o"), ("k", "v")), name)(vectors()).vectors
        np.testing.assert_allclose(made, expected, rtol=1e-10, atol=1e-12)
    assert set(SCALARS) == set(ACTIVATIONS)
    places = ("q", "k", "v", "o", "p")
    moved = Positions(places)(vectors()).vectors
    np.testing.assert_allclose(
        moved, [TOKENS[t] + ROWS[row] / N**0.5 for t, row in enumerate(places)], rtol=1e-12, atol=1e-14
    )
    normed = np.array([h / (sum(x**2 for x in h) / N) ** 0.5 for h in TOKENS])
    np.testing.assert_allclose(RMSNorm()(vectors()).vectors, normed, rtol=1e-12)
    inner = SelfAttention((HeadRows("q", "k"),), causal=True)
    step = loop_attention(normed, HEADS["one"], "softmax", True, "all") - normed
    np.testing.assert_allclose(PreNorm(inner)(vectors()).vectors, TOKENS + step, rtol=1e-10, atol=1e-12)


def test_readouts_are_their_loops():
    rows = ("q", "g")
    each = [[field(row, h) for row in rows] for h in TOKENS]
    expected = {
        QueryToken(rows): each[-1:],
        PerToken(rows): each,
        PerToken(rows, skip=1): each[1:],
        PerToken(rows, drop=2): each[:3],
        PerToken(rows, drop=1, skip=1): each[1:4],
        MeanPool(rows): [[sum(one[i] for one in each) / T for i in range(2)]],
        CommitteeReadout(rows, "erf", 0.3): [[0.3 * sum(erf(x / 2**0.5) for x in each[-1])]],
        FunctionOfFields(rows, lambda phi: phi[1] * phi[2]): [[each[1][i] * each[2][i] for i in range(2)]],
    }
    for readout, value in expected.items():
        np.testing.assert_allclose(readout(vectors()), value, rtol=1e-11, atol=1e-13)


def test_field_streams_do_what_vectors_do():
    """read, mix, write, scale, plus, last and the norm, as d -> infinity: h_t = sum_s M_ts x_s has |h_t|^2/N = (M rho M^T)_tt."""
    A = np.stack(list(ROWS.values()))
    phi, R = TOKENS @ A.T / N**0.5, A @ A.T / N
    rho = 0.4 ** np.abs(np.subtract.outer(np.arange(T), np.arange(T)))
    fields = FieldStream(
        fields=jnp.asarray(phi),
        row_overlaps=jnp.asarray(R),
        mixing=jnp.eye(T),
        correlation=jnp.asarray(rho),
        names=NAMES,
    )
    weights, factors = RNG.normal(size=(3, T)), RNG.normal(size=3)
    both = [
        s.mix(jnp.asarray(weights)).scale(jnp.asarray(factors)).write("o", jnp.arange(3.0)) for s in (fields, vectors())
    ]
    expected = factors[:, None] * (weights @ TOKENS) + np.arange(3.0)[:, None] * ROWS["o"] / N**0.5
    np.testing.assert_allclose(both[1].vectors, expected, rtol=1e-12)
    for row in NAMES:
        for stream in (both[0], both[1].plus(both[1]).scale(jnp.full(3, 0.5))):
            np.testing.assert_allclose(stream.read(row), [field(row, h) for h in expected], rtol=1e-10)
    mixing = factors[:, None] * weights
    norms = [sum(mixing[t, s] * rho[s, u] * mixing[t, u] for s in range(T) for u in range(T)) for t in range(3)]
    np.testing.assert_allclose(both[0].mean_square(), norms, rtol=1e-12)
    np.testing.assert_allclose(both[0].plus(both[0]).last().mean_square(), [4 * norms[-1]], rtol=1e-12)


def test_losses_are_their_loops():
    """Cross-entropy and its excess at a teacher temperature, with the labels of each kind; square losses with label noise."""
    f, target = RNG.normal(size=(2, 3, 4))
    beta = 1.7

    def softmax(x):
        return np.exp(x) / np.exp(x).sum()

    entropy, divergence, hard = 0.0, 0.0, 0.0
    for t in range(3):
        p, s = softmax(beta * target[t]), softmax(f[t])
        entropy -= sum(p[c] * np.log(s[c]) for c in range(4)) / 3
        divergence += sum(p[c] * np.log(p[c] / s[c]) for c in range(4)) / 3
        hard -= np.log(s[np.argmax(target[t])]) / 3
    for labels in ("soft", "sampled"):
        loss = CrossEntropy(labels, beta)
        np.testing.assert_allclose(loss.mean(jnp.asarray(f), jnp.asarray(target)), entropy, rtol=1e-12)
        np.testing.assert_allclose(loss.excess(jnp.asarray(f), jnp.asarray(target)), divergence, rtol=1e-10)
    np.testing.assert_allclose(CrossEntropy("hard", beta).excess(jnp.asarray(f), jnp.asarray(target)), hard, rtol=1e-12)
    square = sum((f[t, i] - target[t, i]) ** 2 for t in range(3) for i in range(4)) / 6
    np.testing.assert_allclose(SquareLoss().mean(jnp.asarray(f), jnp.asarray(target)), square, rtol=1e-12)
    normal = RNG.normal(size=12)
    noisy = sum((f.ravel()[i] - target.ravel()[i] - 0.6 * normal[i]) ** 2 for i in range(12)) / 6
    made = SquareLoss(0.6).sample(jnp.asarray(f), jnp.asarray(target), jnp.asarray(normal))
    np.testing.assert_allclose(made, noisy, rtol=1e-12)


def test_losses_of_a_softmax_layer_are_their_loops():
    """The four losses on logits with smoothed labels of each kind, and their gradients by differences."""
    lam, fields, gumbel = RNG.normal(size=(3, 2, 4))
    for labels in ("hard", "soft", "sampled"):
        for loss in ("cross_entropy", "focal", "brier", "square"):
            head = SoftmaxHead(1.7, 0.1, 1.5, labels, loss)
            target = np.asarray(head.target(jnp.asarray(fields), jnp.asarray(gumbel)))
            values, gradients = (np.asarray(x) for x in head.value_and_gradient(jnp.asarray(lam), jnp.asarray(target)))
            for b in range(2):
                soft = np.exp(1.7 * fields[b]) / np.exp(1.7 * fields[b]).sum()
                picked = np.argmax(fields[b] if labels == "hard" else 1.7 * fields[b] + gumbel[b])
                label = soft if labels == "soft" else np.array([float(k == picked) for k in range(4)])
                y = np.array([0.9 * x + 0.1 / 4 for x in label])
                np.testing.assert_allclose(target[b], y, rtol=1e-12)

                def value(logits, y=y, loss=loss):
                    p = np.exp(logits) / sum(np.exp(logits))
                    if loss == "cross_entropy":
                        return -sum(y[k] * np.log(p[k]) for k in range(4))
                    if loss == "focal":
                        return -sum(y[k] * (1 - p[k]) ** 1.5 * np.log(p[k]) for k in range(4))
                    if loss == "brier":
                        return sum((p[k] - y[k]) ** 2 for k in range(4)) / 2
                    off = [logits[k] - y[k] for k in range(4)]
                    return sum((x - sum(off) / 4) ** 2 for x in off) / 2

                assert values[b] == pytest.approx(value(lam[b]), rel=1e-10)
                steps = 1e-6 * np.eye(4)
                slopes = [(value(lam[b] + step) - value(lam[b] - step)) / 2e-6 for step in steps]
                np.testing.assert_allclose(gradients[b], slopes, rtol=1e-6, atol=1e-8)


# Sequence networks


def loop_heads(n, q, k, v, heads, causal, size):
    """concat over heads of sum_s softmax_s(q_t . k_s/sqrt(size)) v_s, from (T, width) queries, keys, values."""
    out = np.zeros_like(v)
    for t in range(len(n)):
        seen = range(t + 1) if causal else range(len(n))
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            a = np.exp([q[t, part] @ k[s, part] / size**0.5 for s in seen])
            out[t, part] = sum(weight * v[s, part] for weight, s in zip(a / a.sum(), seen, strict=True))
    return out


def turned(x, heads):
    """Pairs (i, i + half) of each head turned by t 10000^(-i/half)."""
    size = x.shape[1] // heads
    out = np.zeros_like(x)
    for t in range(len(x)):
        for head in range(heads):
            for i in range(size // 2):
                a, b = head * size + i, head * size + i + size // 2
                angle = t * 10000 ** (-i / (size // 2))
                out[t, a] = x[t, a] * np.cos(angle) - x[t, b] * np.sin(angle)
                out[t, b] = x[t, a] * np.sin(angle) + x[t, b] * np.cos(angle)
    return out


def loop_norm(h, kind):
    out = np.zeros_like(h)
    for t, row in enumerate(h):
        u = row - sum(row) / len(row) if kind == "layer" else row
        out[t] = u / (sum(u**2) / len(u) + 1e-6) ** 0.5
    return out


def loop_units(n, rise, fall):
    hidden = np.array([[SCALARS["gelu"](x) for x in row] for row in n @ rise.T])
    return hidden @ fall.T


@pytest.mark.parametrize("rotary", [False, True])
def test_a_decoder_block_is_its_loop(rotary):
    heads, width = 2, 8
    q, k, v, o = RNG.normal(size=(4, width, width)) / width**0.5
    rise, fall = RNG.normal(size=(12, width)), RNG.normal(size=(width, 12)) / 4
    h = RNG.normal(size=(T, width))
    gain = RNG.normal(size=width)
    attention = CausalAttention(*(jnp.asarray(x) for x in (q, k, v, o)), heads, rotary)
    block = DecoderBlock(
        TokenNorm(jnp.asarray(gain), "rms"), attention, TokenNorm(None, "layer"), jnp.asarray(rise), jnp.asarray(fall)
    )
    n = gain * loop_norm(h, "rms")
    turn = (lambda x: turned(x, heads)) if rotary else (lambda x: x)
    middle = h + loop_heads(n, turn(n @ q.T), turn(n @ k.T), n @ v.T, heads, True, width // heads) @ o.T
    expected = middle + loop_units(loop_norm(middle, "layer"), rise, fall)
    np.testing.assert_allclose(block(jnp.asarray(h)), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("parameterisation", ["ntk", "standard", "mean_field"])
def test_a_sequence_transformer_is_its_loop(parameterisation):
    causal = parameterisation != "standard"
    width, size, depth = 6, 3, 2
    network = SequenceTransformer(
        2, 3, T, width=width, depth=depth, head_size=size, causal=causal, parameterisation=parameterisation,
        key=jax.random.key(1),
    )  # fmt: skip
    x = RNG.normal(size=(T, 2))

    def scaled(layer, inputs):
        inside = np.asarray(layer.weight)
        return inputs @ inside.T / (1.0 if parameterisation == "standard" else inside.shape[1] ** 0.5)

    h = scaled(network.embedding, x) + np.asarray(network.position_rows)
    branch = (2 * depth) ** -0.5
    for block in network.blocks:
        n = loop_norm(h, "layer")
        q, k, v = (scaled(part, n) for part in (block.query, block.key, block.value))
        h = h + branch * scaled(block.output, loop_heads(n, q, k, v, width // size, causal, size))
        n = loop_norm(h, "layer")
        hidden = np.array([[SCALARS["gelu"](y) for y in row] for row in scaled(block.rise, n)])
        h = h + branch * scaled(block.fall, hidden)
    last = scaled(network.readout, loop_norm(h, "layer")) / (width**0.5 if parameterisation == "mean_field" else 1.0)
    made = eqx.filter_jit(network)(jnp.asarray(x))
    np.testing.assert_allclose(made, last, rtol=1e-9, atol=1e-11)
    # The weights are drawn at the scale that the parameterisation says: 36 entries each, 3 sigma of a variance at 0.7.
    drawn = np.concatenate([np.ravel(block.value.weight) for block in network.blocks])
    assert 0.5 < np.mean(drawn**2) * (width if parameterisation == "standard" else 1.0) < 1.7
    lazy, plain = (eqx.filter_jit(lazy_network(network, 3.0, centred=centred)) for centred in (True, False))
    np.testing.assert_allclose(lazy(jnp.asarray(x)), np.zeros_like(made), atol=1e-14)
    np.testing.assert_allclose(plain(jnp.asarray(x)), 3 * made, rtol=1e-12)


# Causality


def _rows(block, readout):
    return RowNetwork(NAMES, (block,), readout).real(vectors().rows, N)


READ = PerToken(("p", "g"))
CAUSAL = {
    **{
        f"{kind}, {heads}": _rows(SelfAttention(tuple(HeadRows(*r) for r in HEADS[heads]), kind, True), READ)
        for kind in ("softmax", "linear")
        for heads in HEADS
    },
    "pre-norm": _rows(PreNorm(SelfAttention((HeadRows("q", "k"),), causal=True)), READ),
    "units": _rows(MLP((("q", "o"),)), READ),
    "positions": _rows(Positions(("q", "k", "v", "o", "p")), READ),
    "sequence transformer": SequenceTransformer(D, 2, T, width=8, depth=2, head_size=4, key=jax.random.key(0)),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_no_output_reads_a_later_token(name):
    network = eqx.filter_jit(CAUSAL[name])
    before = np.asarray(network(jnp.asarray(TOKENS)))
    for t in range(T - 1):
        changed = TOKENS.copy()
        changed[t + 1] += 1.0
        after = np.asarray(network(jnp.asarray(changed)))
        np.testing.assert_allclose(after[: t + 1], before[: t + 1], rtol=0, atol=1e-13)
        assert np.abs(after[t + 1] - before[t + 1]).max() > 1e-3


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_no_logit_of_a_language_model_reads_a_later_token(positions):
    model = LanguageModel(11, 8, 2, 2, T, positions=positions, key=jax.random.key(0), dtype=jnp.float64)
    tokens = np.array([3, 1, 4, 1, 5])
    features = eqx.filter_jit(model.features)
    before = np.asarray(features(jnp.asarray(tokens)))
    for t in range(T - 1):
        changed = tokens.copy()
        changed[t + 1] = 9
        after = np.asarray(features(jnp.asarray(changed)))
        np.testing.assert_allclose(after[: t + 1], before[: t + 1], rtol=0, atol=1e-13)
        assert np.abs(after[t + 1] - before[t + 1]).max() > 1e-3


def test_networks_without_a_mask_read_all_tokens():
    """The test of causality sees it where there is none: without a mask the first output moves with the last token."""
    sequence = SequenceTransformer(D, 2, T, width=8, depth=1, head_size=4, causal=False, key=jax.random.key(0))
    rows = transformer_network(depth=1, causal=False, readout="per_token")
    real = rows.real(jnp.asarray(RNG.normal(size=(len(rows.rows), D))), N)
    changed = TOKENS.copy()
    changed[-1] += 1.0
    for network in (sequence, real):
        assert np.abs(network(jnp.asarray(changed)) - network(jnp.asarray(TOKENS)))[0].max() > 1e-3
    masked = transformer_network(depth=2, causal=True, value="rows", mlp=1, norm="rms", readout="per_token")
    real = masked.real(jnp.asarray(RNG.normal(size=(len(masked.rows), D))), N)
    np.testing.assert_allclose(real(jnp.asarray(changed))[:-1], real(jnp.asarray(TOKENS))[:-1], rtol=0, atol=1e-13)
