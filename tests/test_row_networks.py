"""One description of a network: equal outputs on fields and on d-dimensional tokens, for every block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odescale import InputError, teacher_student
from odescale.networks import (
    MLP,
    CommitteeReadout,
    CrossEntropy,
    FunctionLoss,
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
)
from odescale.networks.blocks import ACTIVATIONS

T = 4
ONE = (HeadRows("q", "k"),)
ROWS_HEAD = (HeadRows("q", "k", "v", "o"), HeadRows("k", "q"))


def gate(stream):
    """A block of one's own, that says nothing about what it reads and writes."""
    return stream.write("o", jnp.tanh(stream.read("q")) * stream.read("k")).mix(jnp.full((T, T), 1 / T))


NETWORKS = {
    "softmax": (SelfAttention(ONE),),
    "two layers, last token": (SelfAttention(ONE), SelfAttention((HeadRows("v", "o"),), asking="last")),
    "causal": (SelfAttention(ONE, causal=True),),
    "causal, last token": (SelfAttention(ONE, causal=True, asking="last"),),
    "linear": (SelfAttention(ONE, kind="linear"),),
    "causal linear": (SelfAttention(ONE, kind="linear", causal=True),),
    "uniform": (SelfAttention((HeadRows(None, None),)),),
    "value and output rows": (SelfAttention(ROWS_HEAD),),
    **{f"mlp {name}": (MLP((("q", "o"), ("k", "v")), name),) for name in ACTIVATIONS},
    "own activation": (SelfAttention(ONE), MLP((("v", "o"),), jnp.sin)),
    "positions": (Positions(("p0", "p1", "v", "o")), SelfAttention(ONE)),
    "own block": (gate, SelfAttention(ONE)),
    "none": (),
}
READOUTS = {
    "query": QueryToken(("r", "o")),
    "per token": PerToken(("r", "o")),
    "dropped": PerToken(("r",), drop=1, skip=1),
    "mean": MeanPool(("r", "k")),
    "committee": CommitteeReadout(("r", "o", "k"), "gelu", 0.5),
}
NAMES = ("q", "k", "v", "o", "r", "p0", "p1")


def draw(d, seed=0, rho=None):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(T, d))
    if rho is not None:
        x = np.linalg.cholesky(rho) @ x
    rows = rng.normal(size=(len(NAMES), d))
    return jnp.asarray(rows), jnp.asarray(x), jnp.asarray(x @ rows.T / np.sqrt(d)), jnp.asarray(rows @ rows.T / d)


@pytest.mark.parametrize(
    ("blocks", "readout"),
    [(name, "query") for name in NETWORKS] + [("value and output rows", name) for name in READOUTS if name != "query"],
)
def test_outputs_on_fields_are_those_of_the_real_network(blocks, readout):
    network = RowNetwork(NAMES, NETWORKS[blocks], READOUTS[readout])
    rows, x, phi, R = draw(30)
    f = network.on_fields(phi, R)
    assert f.ndim == 2
    np.testing.assert_allclose(f, network.real(rows, 30.0)(x), rtol=1e-11, atol=1e-12)
    # ... and so are the gradients that SGD takes: chain rule through fields and overlaps.
    direct = jax.grad(lambda A: jnp.sum(jnp.sin(network.real(A, 30.0)(x))))(rows)
    chained = jax.grad(lambda A: jnp.sum(jnp.sin(network.on_fields(x @ A.T / 30**0.5, A @ A.T / 30))))(rows)
    np.testing.assert_allclose(direct, chained, rtol=1e-9, atol=1e-11)


def test_any_function_of_fields_is_a_network():
    network = RowNetwork.from_function(NAMES, lambda phi: jnp.max(phi, axis=0)[:3] * phi[-1, 0])
    rows, x, phi, R = draw(25)
    assert network.on_fields(phi, R).shape == (1, 3)
    np.testing.assert_allclose(network.on_fields(phi, R), network.real(rows, 25.0)(x), rtol=1e-12)


def test_trace_normalises_fields_of_a_spectrum():
    network = RowNetwork(NAMES, (SelfAttention(ONE), MLP((("v", "o"),))), QueryToken(("r",)))
    rows, x, _, _ = draw(20)
    N = 7.5
    on_fields = network.on_fields(x @ rows.T / N**0.5, rows @ rows.T / N)
    np.testing.assert_allclose(on_fields, network.real(rows, N)(x), rtol=1e-12)


@pytest.mark.parametrize("blocks", [(SelfAttention(ONE), RMSNorm()), (PreNorm(SelfAttention(ONE)), RMSNorm())])
def test_norms_take_their_deterministic_limit(blocks):
    """|h_t|^2/N -> (M rho M^T)_tt: the deviation goes down as 1/sqrt(d), with correlated tokens too; without rho it stays."""
    network = RowNetwork(NAMES, blocks, PerToken(("r",)))
    rho = 0.6 ** np.abs(np.subtract.outer(np.arange(T), np.arange(T)))

    def deviation(d, correlation):
        total = 0.0
        for seed in range(12):
            rows, x, phi, R = draw(d, seed, rho)
            f, real = network.on_fields(phi, R, correlation), network.real(rows, float(d))(x)
            total += float(jnp.mean((f - real) ** 2) / jnp.mean(real**2)) / 12
        return total**0.5

    small, large = deviation(100, rho), deviation(10_000, rho)
    assert small < 0.2
    assert 5 < small / large < 20
    assert deviation(10_000, None) > 5 * large


def test_rows_that_nobody_reads_are_dropped_but_change_nothing():
    network = RowNetwork(NAMES, NETWORKS["two layers, last token"], QueryToken(("r",)))
    rows, x, phi, R = draw(30)
    other = phi.at[:, 5:].set(jnp.nan)
    np.testing.assert_allclose(network.on_fields(other, R), network.on_fields(phi, R), rtol=1e-14)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RowNetwork(("q", "k"), (SelfAttention((HeadRows("q", "z"),)),), QueryToken(("q",))),
        lambda: RowNetwork(("q", "q"), (), QueryToken(("q",))),
        lambda: RowNetwork(("q",), (3,), QueryToken(("q",))),
        lambda: HeadRows("q", None),
        lambda: HeadRows("q", "k", "v"),
        lambda: SelfAttention((), "softmax"),
        lambda: SelfAttention(ONE, kind="cosine"),  # type: ignore[arg-type]
        lambda: MLP((("q", "k"),), "swish"),
        lambda: QueryToken(()),
        lambda: PerToken(("q",), drop=-1),
        lambda: SquareLoss(-1.0),
        lambda: CrossEntropy("one-hot"),  # type: ignore[arg-type]
        lambda: CrossEntropy(inverse_temperature=0.0),
        lambda: RowNetwork(NAMES, (Positions(("p0",)),), QueryToken(("r",))).on_fields(jnp.zeros((3, 7)), jnp.eye(7)),
        lambda: RowNetwork(NAMES, (), QueryToken(("r",))).real(jnp.zeros((3, 5)), 5.0),
        lambda: RowNetwork(NAMES, (), QueryToken(("r",))).real(jnp.zeros((7, 5)), 0.0),
        lambda: teacher_student(RowNetwork(NAMES, (), QueryToken(("r",))), tokens=0),
        lambda: teacher_student(RowNetwork(NAMES, (), QueryToken(("r",))), tokens=2, frozen=("z",)),
        lambda: teacher_student(RowNetwork(NAMES, (), QueryToken(("r",))), tokens=2, frozen="r"),
        lambda: teacher_student(RowNetwork(NAMES, (), QueryToken(("r",))), tokens=2, correlation=1.0),
        lambda: teacher_student(RowNetwork(NAMES, (), QueryToken(("r",))), tokens=2, correlation=np.ones((3, 3))),
        lambda: teacher_student(RowNetwork(NAMES, (), QueryToken(("r",))), tokens=2, frozen=NAMES),
        lambda: teacher_student(
            RowNetwork(NAMES, (), QueryToken(("r",))), RowNetwork(NAMES, (), QueryToken(("r", "q"))), tokens=2
        ),
    ],
)
def test_bad_input_is_one_line(make):
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_tables_of_rows():
    net = RowNetwork(("q", "k", "r"), (SelfAttention(ONE),), QueryToken(("r",)))
    own = teacher_student(net, tokens=3)
    assert own.rows == ("q", "k", "r", "q*", "k*", "r*")
    assert own.pairs == ((0, 3), (1, 4), (2, 5))
    assert not own.writes_back
    shared = teacher_student(net, tokens=3, shared=("r",))
    assert shared.rows == ("q", "k", "r", "q*", "k*")
    assert shared.trained == (True, True, False, False, False)
    assert tuple(shared.teacher_columns) == (3, 4, 2)
    assert teacher_student(net, tokens=3, frozen=("r",)).trained == (True, True, False, False, False, False)


@pytest.mark.parametrize("loss", [CrossEntropy("sampled", 1.5), SquareLoss(0.7)])
def test_drawn_labels_average_to_the_mean_loss(loss):
    """E over labels of the sampled gradient is the gradient of the mean: z-scores over 20 000 draws."""
    rng = np.random.default_rng(1)
    f, target = (jnp.asarray(rng.normal(size=(3, 4))) for _ in range(2))
    draws = jnp.asarray(rng.normal(size=(20_000, loss.normals(3, 4))))
    each = np.asarray(jax.vmap(lambda z: jax.grad(loss.sample)(f, target, z))(draws)).reshape(len(draws), -1)
    mean = np.asarray(jax.grad(loss.mean)(f, target)).ravel()
    z = (each.mean(axis=0) - mean) / (each.std(axis=0) / len(draws) ** 0.5)
    assert np.max(np.abs(z)) < 4.5
    assert each.std(axis=0).min() > 0.05


def test_excess_is_zero_at_the_teacher_and_positive_elsewhere():
    rng = np.random.default_rng(2)
    target = jnp.asarray(rng.normal(size=(2, 5)))
    for loss in (SquareLoss(), SquareLoss(0.5), CrossEntropy("soft"), CrossEntropy("sampled")):
        assert abs(float(loss.excess(target, target))) < 1e-15
        small = 1e-7 * jnp.asarray(rng.normal(size=(2, 5)))
        assert 0 < float(loss.excess(target + small, target)) < 1e-12
        assert float(loss.excess(target + 1e7 * small, target)) > 0.1
    logs = jax.nn.log_softmax(target)
    other = jax.nn.log_softmax(target + 1)  # a common shift of all logits changes nothing
    np.testing.assert_allclose(logs, other, atol=1e-14)
    hard = CrossEntropy("hard", irreducible=0.25)
    best = jax.nn.one_hot(jnp.argmax(target, -1), 5)
    expected = -float(jnp.mean(jnp.sum(best * logs, -1))) - 0.25
    np.testing.assert_allclose(hard.excess(target, target), expected, rtol=1e-12)
    own = FunctionLoss(lambda f, t: jnp.sum(jnp.abs(f - t)), 0.5)
    assert float(own.excess(target, target)) == -0.5
