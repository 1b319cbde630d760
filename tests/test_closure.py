"""Drift, noise and loss by quadrature: against gradients of real networks, against exact results, with honest error bars."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_cases import classes, erf_units, in_differences, linear, one_layer, random_gram, two_layers, write_back

from odescale import InputError, teacher_student
from odescale.expectations.automatic import choose_nodes, estimate_drift, node_dimension, quadrature
from odescale.expectations.closure import factor, solve_right
from odescale.expectations.nodes import Nodes, gauss_hermite_nodes, largest_order, sobol_nodes
from odescale.networks import RowNetwork, SquareLoss


def moments(problem, C, R=None, *, count=2**12, replicates=4, seed=0, nodes=None):
    """Moments of all replicates at plain overlaps."""
    nodes = nodes or sobol_nodes(node_dimension(problem), count, replicates, seed)
    closure = quadrature(problem, nodes)
    C, R = (jnp.asarray(in_differences(problem, x)) for x in (C, C if R is None else R))
    return eqx.filter_jit(
        lambda closure: jax.lax.map(lambda r: closure.moments(problem, C, R, r), jnp.arange(nodes.replicates))
    )(closure), nodes


REAL = {
    "two layers": two_layers(3),
    "correlated tokens": two_layers(3, correlation=0.6),
    "write back": write_back(),
    "relu, correlated": write_back("relu", correlation=-0.4),
    "cross-entropy": classes(),
    "hard labels": classes("hard"),
    "sampled labels": classes("sampled", correlation=0.5),
    "label noise": one_layer(2, loss=SquareLoss(0.8)),
}


QUICK = ("correlated tokens", "write back", "sampled labels")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in REAL])
def test_drift_and_noise_are_those_of_the_gradients_of_the_real_network(name):
    """E[grad_i . A_j] = D + H R exactly at any d, E[grad_i . grad_j] = V + O(1/d): z-scores over 20 000 sequences."""
    problem, d, count = REAL[name], 200, 20_000
    P, moved = problem.size, problem.moved
    C = random_gram(P, seed=3, scale=0.8)
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(d, P)))
    A = jnp.asarray(np.linalg.cholesky(C) @ basis.T * np.sqrt(d))
    root = jnp.asarray(problem.token_root)

    def one(inputs, normal):
        x = root @ inputs
        g = jax.grad(lambda W: problem.sample_loss(A.at[moved].set(W), x, normal, float(d)))(A[moved])
        return g @ A.T, g @ g.T

    # NumPy draws the sequences, a batch at a time: compiled with little effort, JAX takes longer to draw than to differentiate.
    of_batch, found = jax.jit(jax.vmap(one)), []
    for _ in range(count // 500):
        normals = (rng.standard_normal((500, problem.tokens, d)), rng.standard_normal((500, problem.label_normals)))
        found.append(tuple(np.asarray(x) for x in of_batch(*normals)))
    drift, noise = (np.concatenate(x) for x in zip(*found, strict=True))
    m, nodes = moments(problem, C, count=2**13)
    inverse = np.linalg.inv(problem.difference_basis())
    # Columns in difference rows back to plain ones; H acts on the rows in differences.
    plain_D = np.asarray(m.D) @ inverse.T
    plain_H = np.asarray(m.H) @ problem.difference_basis()
    theory = plain_D + plain_H @ C
    for samples, values, shift in ((drift, theory, 0.0), (noise, np.asarray(m.V), 3 / d)):
        mean, error = samples.mean(axis=0), samples.std(axis=0) / count**0.5
        bar = values.std(axis=0, ddof=1) / nodes.replicates**0.5
        # An output row's gradient comes through R alone: its square is of order 1/d where V is zero.
        size = np.diag(mean) + np.diag(mean).mean() if shift else np.zeros(1)
        scale = shift * np.sqrt(size[:, None] * size)
        z = (mean - values.mean(axis=0)) / np.sqrt(error**2 + bar**2 + scale**2)
        assert np.max(np.abs(z)) < 5.5
        assert np.sqrt(np.mean(z**2)) < 1.7
    if problem.student.writes_back:  # the test would notice a missing H
        gap = (plain_H @ C) / (drift.std(axis=0) / count**0.5)
        assert np.max(np.abs(gap)) > 8
    np.testing.assert_allclose(m.G @ in_differences(problem, C), m.D, rtol=1e-8, atol=1e-9)


def test_gauss_hermite_is_exact_for_polynomials():
    problem = teacher_student(
        RowNetwork.from_function(("a", "b"), lambda phi: phi[0, 0] ** 2 - phi[0, 0] * phi[0, 1]), tokens=1
    )
    C = random_gram(4, seed=5)
    m, nodes = moments(problem, C, nodes=gauss_hermite_nodes(4, 8))
    # L = 1/2 E (f - f*)^2 by Isserlis, with a sampler-free formula: E of products of quadratic forms.
    F = np.zeros((4, 4))
    F[0, 0], F[0, 1], F[1, 0] = 1.0, -0.5, -0.5
    F[2, 2], F[2, 3], F[3, 2] = -1.0, 0.5, 0.5
    expected = 0.5 * (np.trace(F @ C) ** 2 + 2 * np.trace(F @ C @ F @ C))
    np.testing.assert_allclose(nodes.mean(np.asarray(m.loss)), expected, rtol=1e-12)
    np.testing.assert_allclose(m.loss[0], expected, rtol=1e-12)
    grad = 2 * (np.trace(F @ C) * F + 2 * F @ C @ F) @ C  # E[g phi^T] = 2 dL/dC C for the rows of both
    D = np.asarray(m.D[1]) @ np.linalg.inv(problem.difference_basis()).T
    np.testing.assert_allclose(D, grad[:2], rtol=1e-11, atol=1e-12)


@pytest.mark.slow
def test_chunks_bound_the_memory_and_change_nothing():
    problem = two_layers(3)
    nodes = sobol_nodes(node_dimension(problem), 1024, 1)
    C = jnp.asarray(in_differences(problem, random_gram(problem.size)))
    results = []
    for memory in (2**20, 2**28):
        closure = quadrature(problem, nodes, memory=memory)
        results.append((closure.chunk, closure.moments(problem, C, C, 0)))
    assert results[0][0] < results[1][0]
    for a, b in zip(jax.tree.leaves(results[0][1]), jax.tree.leaves(results[1][1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    with pytest.raises(InputError, match="memory.*nodes"):
        quadrature(problem, nodes, memory=1e4)


def test_difference_rows_keep_the_digits_where_student_and_teacher_meet():
    """At a distance of 1e-6 the loss is 1e-12 of the start and the drift 1e-6, both to the accuracy of the nodes."""
    problem = two_layers(3)
    student = random_gram(5, seed=1, scale=0.8)
    nodes = sobol_nodes(node_dimension(problem), 2**12, 4)
    closure, values = quadrature(problem, nodes), []
    for distance in (1e-2, 1e-6):
        own = random_gram(5, seed=2, scale=distance)
        y = jnp.asarray(np.block([[own, np.zeros((5, 5))], [np.zeros((5, 5)), student]]))  # differences, teacher
        values.append(closure.moments(problem, y, y, 0))
    np.testing.assert_allclose(values[1].loss / values[0].loss, 1e-8, rtol=0.05)
    np.testing.assert_allclose(values[1].D[:, :5], 1e-8 * values[0].D[:, :5], rtol=0.1, atol=1e-10 * 1e-2)
    np.testing.assert_allclose(values[1].G[:, :5], values[0].G[:, :5], rtol=0.1, atol=0.02)


def test_singular_overlaps_give_finite_coefficients():
    problem = two_layers(2)
    C = random_gram(problem.size, rank=4)
    m, _ = moments(problem, C)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(m))
    same = np.tile(random_gram(5, seed=1), (2, 2))  # student = teacher
    m, _ = moments(problem, same)
    assert float(jnp.max(jnp.abs(m.loss))) < 1e-28
    assert float(jnp.max(jnp.abs(m.D))) < 1e-14
    root = factor(jnp.asarray(C), problem.trained)
    np.testing.assert_allclose(root @ root.T, C, atol=1e-8)
    # A drift that comes from coefficients B is given back on every direction that C has.
    B = jnp.asarray(np.random.default_rng(0).normal(size=(2, problem.size)))
    X = solve_right(B @ root, root, problem.trained)
    np.testing.assert_allclose(X @ C, B @ C, atol=1e-6)
    full = random_gram(problem.size)
    root = factor(jnp.asarray(full), problem.trained)
    np.testing.assert_allclose(solve_right(B @ root, root, problem.trained), B, rtol=1e-7, atol=1e-8)


def test_linear_student_has_its_closed_form():
    """G = (1, -1) on (student, teacher), i.e. 1 on the difference row; V = E e^2 + sigma^2; L = E e^2/2."""
    problem = linear(0.5)
    C = random_gram(2, seed=7)
    m, nodes = moments(problem, C, count=2**14)
    gap = C[0, 0] - 2 * C[0, 1] + C[1, 1]
    np.testing.assert_allclose(m.G.mean(0), [[1.0, 0.0]], atol=2e-3)
    np.testing.assert_allclose(m.loss.mean(), gap / 2, rtol=1e-3)
    np.testing.assert_allclose(m.V.mean(), gap + 0.25, rtol=1e-2)


@pytest.mark.slow
def test_automatic_choice_reaches_the_accuracy_or_says_that_it_did_not():
    problem = one_layer(2)
    C = in_differences(problem, random_gram(problem.size))
    chosen = choose_nodes(problem, ((C, C),), accuracy=0.02, budget=2**14)
    assert chosen.met and chosen.accuracy <= 0.02 and chosen.nodes.kind == "sobol"
    D = np.asarray(estimate_drift(quadrature(problem, chosen.nodes), problem, jnp.asarray(C), jnp.asarray(C))[0])
    reference = sobol_nodes(node_dimension(problem), 2**17, 1, seed=9)
    exact = np.asarray(estimate_drift(quadrature(problem, reference), problem, jnp.asarray(C), jnp.asarray(C))[0])[0]
    assert np.linalg.norm(D.mean(0) - exact) < 2 * 0.02 * np.linalg.norm(exact)
    poor = choose_nodes(problem, ((C, C),), accuracy=1e-5, budget=2**11)
    assert not poor.met and "within the budget" in poor.text
    low = choose_nodes(erf_units(), ((random_gram(4), random_gram(4)),), accuracy=1e-6, budget=2**17)
    assert low.met and low.nodes.kind == "gauss_hermite"


@pytest.mark.parametrize(
    "make",
    [
        lambda: sobol_nodes(3, 1000),
        lambda: sobol_nodes(0, 1024),
        lambda: sobol_nodes(3, 1024, 0),
        lambda: gauss_hermite_nodes(8, 64),
        lambda: quadrature(linear(), sobol_nodes(5, 64)),
        lambda: choose_nodes(linear(), (), accuracy=2.0),
        lambda: choose_nodes(linear(), (), budget=3),
    ],
)
def test_bad_input_is_one_line(make):
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_nodes_are_normal_and_reproducible():
    nodes = sobol_nodes(7, 2**12, 3, seed=4)
    again = sobol_nodes(7, 2**12, 3, seed=4)
    np.testing.assert_array_equal(nodes.points, again.points)
    assert not np.array_equal(nodes.points, sobol_nodes(7, 2**12, 3, seed=5).points)
    points = np.asarray(nodes.points, float)
    assert np.all(np.isfinite(points))
    np.testing.assert_allclose(points.mean(axis=1), 0, atol=2e-3)
    np.testing.assert_allclose(
        np.einsum("rni,rnj->rij", points, points) / 2**12, np.tile(np.eye(7), (3, 1, 1)), atol=0.02
    )
    assert largest_order(40, 10**6) == 0
    assert largest_order(2, 10**5) == 128
    assert isinstance(nodes, Nodes) and nodes.replicates == 3 and nodes.count == 2**12
    values = np.array([1.0, 2.0, 3.0])
    assert nodes.mean(values) == 2.0
    np.testing.assert_allclose(nodes.half_width(values), 4.302653 / 3**0.5, rtol=1e-6)


ARCHITECTURES = {
    "two layers": (two_layers(3), 1.0),
    "one layer": (one_layer(4), 1.0),
    "write back": (write_back(), 0.8),
    "classes": (classes("hard"), 1.2),
    "units": (erf_units(units=3), 1.0),
}


def component(problem, nodes, C):
    """The drift of every replicate, as flat vectors."""
    D = estimate_drift(quadrature(problem, nodes), problem, jnp.asarray(C), jnp.asarray(C))[0]
    return np.asarray(D).reshape(nodes.replicates, -1)


@pytest.mark.slow
def test_error_bars_are_honest():
    """20 random networks: the 95 % bar of the drift (its component along itself) covers a 2^18-node reference in >= 17."""
    covered, entries, network = 0, [], 0
    for problem, scale in ARCHITECTURES.values():
        reference = sobol_nodes(node_dimension(problem), 2**18, 1, seed=1000)
        for _ in range(4):
            C = in_differences(problem, random_gram(problem.size, seed=network, scale=scale))
            exact = component(problem, reference, C)[0]
            nodes = sobol_nodes(node_dimension(problem), 2**11, 4, seed=network)
            D = component(problem, nodes, C)
            along = D @ exact / np.linalg.norm(exact)
            covered += abs(along.mean() - np.linalg.norm(exact)) <= nodes.half_width(along)
            entries.append(np.mean(np.abs(D.mean(0) - exact) <= nodes.half_width(D)))
            network += 1
    print(f"covered {covered} of {network}; entries {np.mean(entries):.3f}")
    assert network == 20 and covered >= 17
    assert 0.88 < np.mean(entries) < 0.99
