"""Closed-form expectations against quadrature of the same networks, exact Gauss-Hermite, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odescale import OutsideTheoryError, teacher_student
from odescale.expectations.closure import Quadrature
from odescale.expectations.nodes import gauss_hermite_nodes, sobol_nodes
from odescale.generated import mean_field as generated
from odescale.networks import (
    MLP,
    CommitteeReadout,
    CrossEntropy,
    HeadRows,
    MeanPool,
    QueryToken,
    RowNetwork,
    SelfAttention,
    SquareLoss,
)
from odescale.systems.closed_form import ClosedForm, closed_form, closed_form_of, has_closed_form

jax.config.update("jax_enable_x64", True)

NAMES = ("loss", "D", "G", "V")


def committee(units: int, activation: str = "erf", weight: float = 1.0) -> RowNetwork:
    rows = tuple(f"w{i}" for i in range(units))
    return RowNetwork(rows, (), CommitteeReadout(rows, activation, weight))


def attention(names: tuple[str, str, str] = ("q", "k", "r"), **changes) -> RowNetwork:
    head = SelfAttention((HeadRows(names[0], names[1]),), kind="linear", **changes)
    return RowNetwork(names, (head,), QueryToken((names[2],)))


def overlaps(problem, seed: int, scale: float = 0.6, rank: int | None = None) -> jax.Array:
    """Random overlaps, in difference rows."""
    P = problem.size
    rank = rank or P + 2
    rows = np.random.default_rng(seed).standard_normal((P, rank)) * np.sqrt(scale / rank)
    T = problem.difference_basis()
    return jnp.asarray(T @ rows @ rows.T @ T.T)


PROBLEMS = {
    "erf, K = M = 2": lambda: teacher_student(committee(2), tokens=1),
    "erf, K = 3, M = 2, weights": lambda: teacher_student(committee(3, weight=0.7), committee(2, weight=1.2), tokens=1),
    "erf, label noise, a frozen unit": lambda: teacher_student(
        committee(2), loss=SquareLoss(label_noise=0.4), tokens=1, frozen=("w1",)
    ),
    "erf, three tokens": lambda: teacher_student(committee(1), tokens=3, correlation=0.5),
    "quadratic, K = 2, M = 1": lambda: teacher_student(committee(2, "quadratic"), committee(1, "quadratic"), tokens=1),
    "quadratic, label noise": lambda: teacher_student(
        committee(2, "quadratic"), loss=SquareLoss(label_noise=0.4), tokens=1
    ),
    "linear attention, T = 3": lambda: teacher_student(attention(), tokens=3),
    "linear attention, causal, shared readout, noise": lambda: teacher_student(
        attention(causal=True), tokens=2, shared=("r",), loss=SquareLoss(label_noise=0.4)
    ),
    "linear attention, unpaired names": lambda: teacher_student(
        attention(), attention(("a", "b", "c"), asking="last"), tokens=2
    ),
}  # fmt: skip


def exactly(problem, C):
    """Moments in closed form, compiled: hundreds of small operations one by one would take seconds."""
    return jax.jit(lambda C: ClosedForm().moments(problem, C, C))(C)


def z_scores(problem, C, exact, count: int = 2**12, replicates: int = 8) -> dict[str, float]:
    """|mean over scramblings - `exact`| in standard errors, the largest entry of each moment."""
    dimension = problem.tokens * problem.size + problem.label_normals
    quadrature = Quadrature(sobol_nodes(dimension, count, replicates, seed=3), chunk=1024)
    run = jax.jit(lambda r: quadrature.moments(problem, C, C, r))
    sampled = [run(jnp.asarray(r)) for r in range(replicates)]
    scores = {}
    for name in NAMES:
        values = np.stack([np.asarray(getattr(m, name)) for m in sampled])
        expected = np.asarray(getattr(exact, name))
        assert values.shape[1:] == expected.shape, name
        # A floor for entries that the nodes integrate to rounding (float32 nodes, pivots of the factor).
        error = values.std(axis=0, ddof=1) / replicates**0.5 + 1e-7 * np.abs(expected).max()
        scores[name] = float(np.max(np.abs(values.mean(axis=0) - expected) / error))
    return scores


# With 7 degrees of freedom and some 60 entries, |t| > 7 has a probability of 1 %.
BOUND = 7.0


@pytest.mark.parametrize("name", PROBLEMS)
def test_quadrature_of_the_same_network_agrees(name: str) -> None:
    problem = PROBLEMS[name]()
    C = overlaps(problem, 1)
    scores = z_scores(problem, C, exactly(problem, C))
    assert max(scores.values()) < BOUND, scores


def test_the_comparison_sees_a_wrong_number_of_tokens() -> None:
    """1/T off by one token: negative test of the comparison above."""
    three, four = (teacher_student(attention(), tokens=T) for T in (3, 4))
    C = overlaps(three, 1)
    scores = z_scores(three, C, exactly(four, C))
    assert max(scores.values()) > 2 * BOUND, scores


@pytest.mark.parametrize(("activation", "order", "tolerance"), [("erf", 44, 1e-8), ("quadratic", 8, 1e-12)])
def test_tight_gauss_hermite(activation: str, order: int, tolerance: float) -> None:
    problem = teacher_student(committee(2, activation), committee(1, activation, 1.3), tokens=1)
    C = overlaps(problem, 2)
    nodes = gauss_hermite_nodes(3, order)
    # Nodes are numbers like any other; Gauss-Hermite keeps its in float64.
    other = jax.jit(lambda: Quadrature(nodes, chunk=nodes.count).moments(problem, C, C, 1))()
    exact = exactly(problem, C)
    for name in NAMES:
        expected = np.asarray(getattr(exact, name))
        assert np.abs(np.asarray(getattr(other, name)) - expected).max() < tolerance * np.abs(expected).max(), name


@pytest.mark.parametrize("name", ["erf, K = 3, M = 2, weights", "quadratic, K = 2, M = 1", "linear attention, T = 3"])
def test_drift_is_the_slope_of_the_loss(name: str) -> None:
    """For independent tokens G = S (dL/dC + transpose), by automatic differentiation of the generated loss."""
    problem = PROBLEMS[name]()
    C = overlaps(problem, 4)
    slope = jax.jit(jax.grad(lambda C: ClosedForm().loss(problem, C, C)))(C)
    moments = exactly(problem, C)
    expected = (slope + slope.T)[problem.moved]
    assert np.abs(moments.G - expected).max() < 1e-13 * np.abs(expected).max()
    assert np.abs(moments.D - expected @ C).max() < 1e-13
    assert not np.any(moments.H)


@pytest.mark.parametrize(("tokens", "rank"), [(1, 5), (2, 3), (3, 2)])
def test_linear_attention_is_exact(tokens: int, rank: int) -> None:
    """Gauss-Hermite with six nodes is exact up to degree 11; V has degree ten. Slopes by automatic differentiation."""
    root = 0.6 * np.random.default_rng(tokens).standard_normal((6, rank))
    C = jnp.asarray(root @ root.T)
    x, w = np.polynomial.hermite_e.hermegauss(6)
    axes = np.meshgrid(*[x] * (tokens * rank), indexing="ij")
    phi = np.stack(axes, -1).reshape(-1, tokens, rank) @ root.T
    weights = np.ones(1)
    for _ in range(tokens * rank):
        weights = np.multiply.outer(weights, w / w.sum()).ravel()
    network = attention()
    eye = jnp.eye(3)
    student, teacher = jnp.asarray(phi[..., :3] + phi[..., 3:]), jnp.asarray(phi[..., 3:])

    def loss(fields, target):
        return 0.5 * jnp.sum((network.on_fields(fields, eye) - network.on_fields(target, eye)) ** 2)

    values, g = jax.jit(jax.vmap(jax.value_and_grad(loss)))(student, teacher)
    got = jax.jit(generated.linear_attention_loss)(C, float(tokens))
    G, V = jax.jit(generated.linear_attention_closure)(C, float(tokens), 0.0)
    assert float(got) == pytest.approx(float(weights @ values), rel=1e-13)
    D = np.einsum("n,nti,ntj->ij", weights, g, phi)
    expected = np.einsum("n,nti,ntj->ij", weights, g, g)
    assert np.abs(G @ C - D).max() < 1e-12 * np.abs(D).max()
    assert np.abs(V - expected).max() < 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["linear attention, T = 3", "quadratic, label noise"])
def test_digits_are_kept_where_student_and_teacher_meet(name: str) -> None:
    """Rows at distance e of the teacher's: L and V are of order e^2 and keep their relative precision at e = 1e-9."""
    problem = PROBLEMS[name]()
    student = problem.student
    problem = teacher_student(student, tokens=problem.tokens)  # without label noise
    rng = np.random.default_rng(5)
    teacher, small = rng.standard_normal((2, len(student.rows), 9)) / 3
    values, run = [], jax.jit(lambda C: ClosedForm().moments(problem, C, C))
    for e in (1e-3, 1e-6, 1e-9):
        rows = np.concatenate([e * small, teacher])  # already difference rows
        moments = run(jnp.asarray(rows @ rows.T))
        values.append(np.append(np.asarray(moments.V).ravel(), moments.loss) / e**2)
    assert np.abs(values[1] / values[2] - 1).max() < 1e-4  # the next order in e
    assert np.abs(values[0] / values[2] - 1).max() > 1e-5  # which is there


def test_interface() -> None:
    closure, problem = ClosedForm(), PROBLEMS["erf, K = M = 2"]()
    assert closure.replicates == 1
    value, width = closure.estimate(jnp.asarray([3.0]))
    assert (float(value), float(width)) == (3.0, 0.0)
    assert closed_form_of(problem) == "erf" and has_closed_form(problem)
    assert isinstance(closed_form(problem), ClosedForm)
    C = overlaps(problem, 1)
    moments = jax.jit(lambda C: closure.moments(problem, C, C, 0))(C)
    assert moments.G.shape == moments.D.shape == moments.H.shape == (2, 4) and moments.V.shape == (2, 2)


def test_single_precision_stays_single() -> None:
    for name in ("erf, K = M = 2", "quadratic, label noise", "linear attention, T = 3"):
        problem = PROBLEMS[name]()
        C = overlaps(problem, 1).astype(jnp.float32)
        shapes = jax.eval_shape(lambda C, problem=problem: ClosedForm().moments(problem, C, C), C)
        assert {leaf.dtype for leaf in jax.tree_util.tree_leaves(shapes)} == {jnp.dtype("float32")}, name
    problem = PROBLEMS["erf, K = M = 2"]()
    C = overlaps(problem, 1)
    single, double = exactly(problem, C.astype(jnp.float32)), exactly(problem, C)
    for moment in NAMES:
        expected = np.asarray(getattr(double, moment))
        assert np.abs(getattr(single, moment) - expected).max() < 2e-5 * np.abs(expected).max(), moment


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: teacher_student(committee(2, "tanh"), tokens=1), "activation"),
        (lambda: teacher_student(committee(2), committee(2, "quadratic"), tokens=1), "activation"),
        (lambda: teacher_student(attention(), tokens=3, correlation=0.5), "correlation"),
        (lambda: teacher_student(attention(), tokens=3, loss=CrossEntropy()), "loss"),
        (lambda: teacher_student(RowNetwork(("q", "k", "r"), (SelfAttention((HeadRows("q", "k"),)),), QueryToken(("r",))),
                                 tokens=3), "student"),
        (lambda: teacher_student(RowNetwork(("a", "b", "r"), (MLP((("a", "b"),)),), QueryToken(("r",))), tokens=1), "student"),
        (lambda: teacher_student(RowNetwork(("w",), (), MeanPool(("w",))), tokens=2), "student"),
        (lambda: teacher_student(RowNetwork(
            ("q", "k"), (SelfAttention((HeadRows("q", "k"),), kind="linear"),), QueryToken(("k",))), tokens=2), "student"),
        (lambda: teacher_student(RowNetwork(("q", "p", "k", "l", "r"), (SelfAttention(
            (HeadRows(("q", "p"), ("k", "l")),), kind="linear"),), QueryToken(("r",))), tokens=2), "student"),
    ],
)  # fmt: skip
def test_what_has_no_closed_form_is_refused_by_name(build, argument: str) -> None:
    problem = build()
    with pytest.raises(OutsideTheoryError, match=f"^{argument}: .*quadrature"):
        ClosedForm().moments(problem, jnp.eye(problem.size), jnp.eye(problem.size))
    with pytest.raises(OutsideTheoryError, match=f"^{argument}: "):
        closed_form(problem)
    assert not has_closed_form(problem)
