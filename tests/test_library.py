"""The named networks: shapes, rows, each equal to its real d-dimensional twin on equal fields, and refused arguments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odescale
from odescale import InputError, OutsideTheoryError, committee, integrate, transformer
from odescale.networks import SelfAttention, committee_network, transformer_network
from odescale.systems.closed_form import ClosedForm

D, T = 40, 4

NETWORKS = {
    "default": transformer_network(),
    "linear model": transformer_network(depth=0, outputs=2),
    "heads and values": transformer_network(depth=1, heads=2, value="rows", outputs=2),
    "linear attention, causal": transformer_network(attention="linear", causal=True),
    "units": transformer_network(depth=1, mlp=2, activation="gelu"),
    "per token, causal, positions": transformer_network(causal=True, positions=True, tokens=T, readout="per_token"),
    "mean pool": transformer_network(depth=1, mlp=1, activation=jnp.sin, readout="mean_pool", outputs=3),
    "rank three": transformer_network(depth=2, rank=3, readout="per_token"),
    "grouped queries of rank two": transformer_network(depth=1, heads=4, key_value_heads=2, rank=2, value="rows"),
    "committee": committee_network(3, "relu", weight=0.5),
}


def weights_and_tokens(network, seed=0, d=D):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((len(network.rows), d))), jnp.asarray(rng.standard_normal((T, d)))


def fields_of(A, x):
    d = x.shape[1]
    return x @ A.T / d**0.5, A @ A.T / d


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_its_real_network_on_equal_fields(name):
    network = NETWORKS[name]
    A, x = weights_and_tokens(network)
    real = network.real(A, float(D))(x)
    np.testing.assert_allclose(real, network.on_fields(*fields_of(A, x)), rtol=1e-11, atol=1e-12)
    if network.writes_back:  # the overlaps with metric I are needed: without them another function
        assert np.abs(real - network.on_fields(fields_of(A, x)[0], jnp.zeros_like(A @ A.T))).max() > 1e-3


def test_norms_are_those_of_many_dimensions():
    """|h_t|^2/d has its limit only as d grows: the deviation falls as 1/sqrt(d)."""
    network = transformer_network(depth=2, mlp=1, norm="rms")
    gaps = []
    for d in (200, 20_000):
        A, x = weights_and_tokens(network, d=d)
        # Fields of order one, as in training, and rows that norms do not notice.
        gaps.append(float(jnp.abs(network.real(A, float(d))(x) - network.on_fields(*fields_of(A, x))).max()))
    assert gaps[1] < 0.05 and gaps[1] < 0.5 * gaps[0]


def test_rows_and_shapes():
    assert transformer_network().rows == ("q0", "k0", "q1", "k1", "r0")
    both = transformer_network(depth=1, heads=2, value="rows", mlp=1, positions=True, tokens=2, outputs=2)
    assert both.rows == (
        "p0",
        "p1",
        "q0_0",
        "k0_0",
        "v0_0",
        "o0_0",
        "q0_1",
        "k0_1",
        "v0_1",
        "o0_1",
        "w0_0",
        "m0_0",
        "r0",
        "r1",
    )
    for name, shape in {
        "default": (1, 1),
        "per token, causal, positions": (T, 1),
        "mean pool": (1, 3),
        "committee": (1, 1),
    }.items():
        A, x = weights_and_tokens(NETWORKS[name])
        assert NETWORKS[name].real(A, float(D))(x).shape == shape


def test_the_last_layer_moves_the_last_token_alone_where_nothing_else_is_read():
    def asking(**words):
        return [block.asking for block in transformer_network(**words).blocks if isinstance(block, SelfAttention)]

    assert asking() == ["all", "last"] and asking(mlp=1) == ["all", "last"]
    assert asking(readout="per_token") == asking(readout="mean_pool") == ["all", "all"]
    # and it changes nothing
    short, A, x = transformer_network(mlp=1), *weights_and_tokens(transformer_network(mlp=1))
    whole = transformer_network(mlp=1, readout="per_token")
    np.testing.assert_allclose(short.real(A, float(D))(x), whole.real(A, float(D))(x)[-1:], rtol=1e-12)


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        ({"depth": -1}, "depth"), ({"depth": 1.5}, "depth"), ({"heads": 0}, "heads"),
        ({"rank": 0}, "rank"), ({"rank": 1.5}, "rank"),
        ({"heads": 4, "key_value_heads": 3}, "key_value_heads"), ({"key_value_heads": 2}, "key_value_heads"),
        ({"key_value_heads": 0}, "key_value_heads"), ({"mlp": True}, "mlp"),
        ({"outputs": "two"}, "outputs"), ({"value": "none"}, "value"), ({"attention": "relu"}, "attention"),
        ({"causal": 1}, "causal"), ({"activation": "swish"}, "activation"), ({"norm": "layer"}, "norm"),
        ({"positions": True}, "tokens"), ({"positions": True, "tokens": 0}, "tokens"), ({"readout": "first"}, "readout"),
    ],
)  # fmt: skip
def test_refused_arguments_of_a_transformer(words, argument):
    with pytest.raises(InputError) as caught:
        transformer_network(**words)
    assert caught.value.argument == argument and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "argument"),
    [({"units": 0}, "units"), ({"activation": "?"}, "activation"), ({"weight": np.inf}, "weight")],
)
def test_refused_arguments_of_a_committee(words, argument):
    with pytest.raises(InputError) as caught:
        committee_network(**words)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        ({"loss": "cross_entropy", "outputs": 1}, "outputs"), ({"labels": "hard"}, "labels"),
        ({"loss": "cross_entropy", "label_noise": 0.1}, "label_noise"), ({"nodes": 1000}, "nodes"),
        ({"correlation": 1.0}, "correlation"), ({"tokens": 0}, "tokens"), ({"closure": "closed"}, "student"),
        ({"momentum": 1.0}, "momentum"), ({"learning_rat": 1.0}, "learning_rat"), ({"schedule": 3}, "schedule"),
    ],
)  # fmt: skip
def test_the_system_refuses(words, argument):
    with pytest.raises((InputError, OutsideTheoryError)) as caught:
        transformer(**({"nodes": 64} | words))
    assert caught.value.argument == argument


def test_the_start_has_the_cosines_that_were_promised():
    system = transformer(nodes=64, value="rows", mlp=1, loss="cross_entropy")
    rows, C = system.problem.rows, np.asarray(system.initial_overlaps[0])
    cosine = C / np.sqrt(np.outer(np.diag(C), np.diag(C)))

    def between(a, b):
        return cosine[rows.index(a), rows.index(b)]

    assert between("k0*", "r0*") == pytest.approx(0.7) and between("q0*", "r0*") == pytest.approx(0.3)
    assert between("o0*", "r0*") == pytest.approx(0.7) and between("v0*", "k0*") == pytest.approx(0.7)
    assert between("w0_0*", "r1*") == pytest.approx(0.3) and between("m0_0*", "r1*") == pytest.approx(0.7)
    assert between("k1*", "r2*") == pytest.approx(0.7) and between("r0*", "r1*") == pytest.approx(0)
    for row in system.problem.student.rows:
        assert between(row, f"{row}*") == pytest.approx(0.3)
    assert np.linalg.eigvalsh(C)[0] > -1e-12


def test_the_start_of_a_higher_rank_and_of_shared_rows():
    """Heads are served in turn, all rows of one head by one readout; a value row points to the mean of its keys."""
    system = transformer(nodes=64, depth=1, heads=2, rank=2, key_value_heads=1, value="rows", loss="cross_entropy")
    rows, C = system.problem.rows, np.asarray(system.initial_overlaps[0])
    cosine = C / np.sqrt(np.outer(np.diag(C), np.diag(C)))

    def between(a, b):
        return cosine[rows.index(a), rows.index(b)]

    for i in range(2):
        assert between(f"k0r{i}*", "r0*") == pytest.approx(0.7) and between("o0_1*", "r1*") == pytest.approx(0.7)
        assert between(f"q0_0r{i}*", "r0*") == pytest.approx(0.3) and between(f"q0_1r{i}*", "r1*") == pytest.approx(0.3)
    first, second, value = (rows.index(row) for row in ("k0r0*", "k0r1*", "v0*"))
    length = np.sqrt(C[first, first] + C[second, second] + 2 * C[first, second])
    assert (C[value, first] + C[value, second]) / length / np.sqrt(C[value, value]) == pytest.approx(0.7)
    assert between("k0r0*", "k0r1*") == pytest.approx(0.49) and np.linalg.eigvalsh(C)[0] > -1e-12
    for row in system.problem.student.rows:
        assert between(row, f"{row}*") == pytest.approx(0.3)


@pytest.mark.parametrize("words", [{"rank": 1}, {"heads": 4, "key_value_heads": 4}])
def test_rank_one_and_rows_of_their_own_are_the_system_as_it_was(words):
    plain = transformer(nodes=64, depth=1, tokens=2, heads=words.get("heads", 1))
    given = transformer(nodes=64, depth=1, tokens=2, **words)
    assert given.problem.rows == plain.problem.rows and given.problem.student == plain.problem.student
    np.testing.assert_array_equal(given.initial_overlaps, plain.initial_overlaps)


def test_closed_forms_are_used_where_they_exist():
    assert isinstance(committee().closure, ClosedForm)
    assert isinstance(transformer(depth=1, attention="linear").closure, ClosedForm)
    assert not isinstance(transformer(depth=1, attention="linear", correlation=0.5, nodes=64).closure, ClosedForm)


def test_a_committee_by_nodes_is_the_closed_form():
    exact = integrate(committee(units=2, teacher_units=1), 3.0, points=8)
    nodes = integrate(committee(units=2, teacher_units=1, closure="quadrature", nodes=1024), 3.0, points=8)
    np.testing.assert_allclose(nodes.loss, exact.loss, rtol=0.02)
    assert np.all(np.abs(nodes.loss - exact.loss) < 3 * nodes.error * nodes.loss + 1e-3 * nodes.loss)


@pytest.mark.slow
def test_sweep_over_the_learning_rate():
    rates = [0.1, 0.3]
    family = odescale.sweep("transformer", 1.0, {"learning_rate": rates}, points=6, depth=1, tokens=2, nodes=64)
    assert family.loss.shape == (2, 6) and family.meta["failed"] == 0
    alone = integrate(transformer(learning_rate=0.3, depth=1, tokens=2, nodes=64), 1.0, points=6)
    np.testing.assert_allclose(family.loss[1], alone.loss, rtol=1e-8)
    np.testing.assert_allclose(family.error[1], alone.error, rtol=1e-6)  # the error bar comes along
    assert family.loss[1, -1] < family.loss[0, -1]


def test_public_names_are_the_builders():
    assert odescale.transformer is transformer and odescale.networks.transformer_network is transformer_network
    assert jax.tree_util.tree_leaves(odescale.committee(nodes=64))
