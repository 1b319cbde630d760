"""The d-dimensional transformer, the network on its fields and the infinite-context forward pass are one network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import oracle_functionals, oracle_loss, random_overlaps

from odescale import InputError
from odescale.networks import Architecture, FieldNetwork, Head, HeadRows, build_architecture, logistic_pair_architecture
from odescale.networks.fields import apply_on_fields, apply_on_queries, rows_read_from
from odescale.networks.infinite import infinite_functionals, infinite_loss
from odescale.networks.transformer import Transformer

MIXED = Architecture(
    rows=("q", "k", "v", "o", "r"),
    trained=(False,) * 5,
    student=FieldNetwork(((Head(0, 1), Head(None, None, 2, 3)), (Head(None, None), Head(0, 1, 2, 3))), (4, 1)),
    teacher=FieldNetwork(((Head(None, None),),), (4, 4)),
)
CASES = {
    **{
        f"{value}, depth {depth}, {heads} heads": build_architecture(depth, heads, value=value, outputs=2)
        for value in ("identity", "rows")
        for depth in (1, 2, 3)
        for heads in (1, 2)
    },
    **{
        f"{value}, rank 3, {heads} heads, {shared} sets of keys": build_architecture(
            2, heads, value=value, rank=3, key_value_heads=shared
        )
        for value in ("identity", "rows")
        for heads, shared in ((1, 1), (4, 2))
    },
    "quickstart": logistic_pair_architecture(),
    "mixed": MIXED,
}


def literal_forward(network, rows, tokens, scale):
    """The definition with loops over tokens, written without any of the library's code."""
    h = np.array(tokens)
    for heads in network.layers:
        new = h.copy()
        for head in heads:
            for t in range(len(h)):
                context = range(len(h) - 1)
                if head.query is None:
                    a = np.full(len(context), 1 / len(context))
                else:
                    logits = np.zeros(len(context))
                    for q, k in zip(np.ravel(head.query), np.ravel(head.key), strict=True):
                        logits += np.array([(rows[q] @ h[t]) * (rows[k] @ h[s]) / scale for s in context])
                    a = np.exp(logits) / np.exp(logits).sum()
                for weight, s in zip(a, context, strict=True):
                    new[t] += weight * (
                        h[s] if head.value is None else rows[head.output] * (rows[head.value] @ h[s]) / scale
                    )
        h = new
    return np.array([rows[r] @ h[-1] / np.sqrt(scale) for r in network.readouts])


@pytest.mark.parametrize("name", CASES)
def test_transformer_equals_fields_equals_definition(name):
    architecture = CASES[name]
    d, T, scale = 23, 6, 17.5
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(architecture.size, d))
    tokens = rng.normal(size=(T + 1, d))
    phi, R = tokens @ rows.T / np.sqrt(scale), rows @ rows.T / scale
    for network in (architecture.student, architecture.teacher):
        expected = literal_forward(network, rows, tokens, scale)
        real = Transformer.from_rows(network, jnp.asarray(rows), scale)(jnp.asarray(tokens))
        fields = jax.jit(lambda p, r, n=network: apply_on_fields(n, p, r))(phi, R)
        np.testing.assert_allclose(real, expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(fields, expected, rtol=1e-10, atol=1e-10)


def test_fields_under_vmap():
    architecture = CASES["rows, depth 2, 2 heads"]
    phi = jax.random.normal(jax.random.key(0), (2, 5, architecture.size))
    R = random_overlaps(jax.random.key(1), architecture.size)
    batched = jax.vmap(lambda p: apply_on_fields(architecture.student, p, R))(phi)
    forward = jax.jit(lambda p: apply_on_fields(architecture.student, p, R))
    alone = jnp.stack([forward(p) for p in phi])
    np.testing.assert_allclose(batched, alone, rtol=1e-12)


def test_queries_that_share_a_context_are_independent():
    architecture = CASES["rows, depth 3, 2 heads"]
    T, n = 5, 3
    phi = jax.random.normal(jax.random.key(0), (T + n, architecture.size))
    R = random_overlaps(jax.random.key(1), architecture.size)
    together = apply_on_queries(architecture.student, phi, R, T)
    alone = [
        apply_on_fields(architecture.student, jnp.concatenate([phi[:T], phi[T + i : T + i + 1]]), R) for i in range(n)
    ]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-12)


def test_one_context_token_is_copied():
    """T = 1: the softmax over one context token is 1, whatever the logits, however large."""
    network = FieldNetwork(((Head(0, 1),),), (2,))
    phi = jnp.array([[900.0, -800.0, 0.25], [700.0, 900.0, 0.5]])
    np.testing.assert_allclose(apply_on_fields(network, phi, jnp.eye(3)), [0.75], rtol=1e-15)


@pytest.mark.parametrize("name", ["rows, depth 2, 2 heads", "rows, rank 3, 4 heads, 2 sets of keys"])
def test_rows_there_and_back(name):
    architecture = CASES[name]
    rows = jax.random.normal(jax.random.key(0), (architecture.size, 11))
    back = jnp.zeros_like(rows)
    for network in (architecture.student, architecture.teacher):
        back = Transformer.from_rows(network, rows, 11.0).write_rows(network, back)
    np.testing.assert_array_equal(back, rows)


def test_rows_read_from_lists_what_later_layers_read():
    network = logistic_pair_architecture().student
    assert rows_read_from(network, 0) == (0, 1, 2, 3, 4, 5)
    assert rows_read_from(network, 1) == (2, 3, 4, 5)
    assert rows_read_from(network, 2) == (4, 5)


@pytest.mark.parametrize("name", CASES)
def test_infinite_forward_equals_oracle(name):
    architecture = CASES[name]
    C, R = (random_overlaps(jax.random.key(seed), architecture.size) for seed in (0, 1))
    for network in (architecture.student, architecture.teacher):
        np.testing.assert_allclose(
            infinite_functionals(C, R, network), oracle_functionals(C, R, network), rtol=1e-12, atol=1e-14
        )
    np.testing.assert_allclose(infinite_loss(C, R, architecture), oracle_loss(C, R, architecture), rtol=1e-12)


HEADS = {"identity": Head(0, 1), "rows": Head(0, 1, 2, 3), "rank 2": Head((0, 2), (1, 2))}


@pytest.mark.parametrize("kind", HEADS)
def test_long_context_approaches_the_infinite_one(kind):
    """The two forms of one head meet as T grows: at fixed query within 5 sigma, next to a shift of 100 sigma."""
    network = FieldNetwork(((HEADS[kind],),), (3,))
    C = jnp.array([[0.5, 0.0, 0.0, 0.0], [0.0, 0.5, 0.4, 0.5], [0.0, 0.4, 1.0, 0.3], [0.0, 0.5, 0.3, 1.0]])
    query = jnp.array([1.2, 0.3, -0.5, 0.7])
    samples, T = 200, 2000
    z = jax.random.normal(jax.random.key(4), (samples, T, 4)) @ jnp.linalg.cholesky(C).T
    z = jnp.concatenate([z, jnp.broadcast_to(query, (samples, 1, 4))], axis=1)
    outputs = jax.lax.map(lambda p: apply_on_fields(network, p, C), z)[:, 0]
    expected = (infinite_functionals(C, C, network) @ query)[0]
    error = outputs.std() / np.sqrt(samples)
    assert abs(outputs.mean() - expected) < 5 * error
    assert abs(expected - query[3]) > 100 * error
    if kind == "rank 2":  # one product alone would be seen
        for other in (Head(0, 1), Head(2, 2)):
            alone = (infinite_functionals(C, C, FieldNetwork(((other,),), (3,))) @ query)[0]
            assert abs(outputs.mean() - alone) > 50 * error


def test_rows_of_higher_rank_and_of_shared_keys():
    """Every head has its own query and output rows; keys and values stand once per group, and gradients of all its heads add up."""
    rows = build_architecture(1, 4, value="rows", rank=2, key_value_heads=2).rows
    student = rows[: len(rows) // 2]
    assert student == (
        "q0_0r0", "q0_0r1", "k0_0r0", "k0_0r1", "v0_0", "o0_0", "q0_1r0", "q0_1r1", "o0_1",
        "q0_2r0", "q0_2r1", "k0_1r0", "k0_1r1", "v0_1", "o0_2", "q0_3r0", "q0_3r1", "o0_3", "r0",
    )  # fmt: skip
    assert build_architecture(1, 2, key_value_heads=1).rows[:4] == ("q0_0", "k0", "q0_1", "r0")
    network = CASES["identity, rank 3, 4 heads, 2 sets of keys"].student
    A = jax.random.normal(jax.random.key(0), (CASES["identity, rank 3, 4 heads, 2 sets of keys"].size, 7))
    x = jax.random.normal(jax.random.key(1), (5, 7))
    slope = jax.grad(lambda rows: Transformer.from_rows(network, rows, 7.0)(x)[0])(A)
    key = network.layers[1][0].key[0]
    assert network.layers[1][1].key[0] == key
    steps = 1e-5 * np.eye(7)
    values = [Transformer.from_rows(network, A.at[key].add(step), 7.0)(x)[0] for step in (*steps, *-steps)]
    np.testing.assert_allclose(slope[key], (np.array(values[:7]) - np.array(values[7:])) / 2e-5, rtol=1e-6, atol=1e-9)


def test_a_tuple_of_one_row_is_rank_one():
    assert Head((0,), (1,)) == Head(0, 1) and HeadRows(("q",), ["k"]) == HeadRows("q", "k")
    assert Head((0, 2), (1, 3)).rank == 2 and Head(0, 1).rank == 1 and Head(None, None).rank == 0
    assert build_architecture(2, 2).rows == build_architecture(2, 2, rank=1, key_value_heads=2).rows


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: Head((0, 1), 2), "key"), (lambda: HeadRows(("q", "p"), ("k",)), "key"), (lambda: Head((), ()), "key"),
        (lambda: Head(None, (1, 2)), "key"), (lambda: build_architecture(rank=0), "rank"),
        (lambda: build_architecture(1, 4, key_value_heads=3), "key_value_heads"),
        (lambda: build_architecture(1, 2, key_value_heads=0), "key_value_heads"),
        (lambda: build_architecture(1, 2, key_value_heads=4), "key_value_heads"),
    ],
)  # fmt: skip
def test_refused_heads(build, argument):
    with pytest.raises(InputError) as caught:
        build()
    assert caught.value.argument == argument and "\n" not in str(caught.value)
