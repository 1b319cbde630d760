"""Initial rows have exactly the overlaps that were asked for, tokens the covariance of their spectrum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odescale import InputError
from odescale.networks import build_architecture, logistic_pair_architecture
from odescale.networks.fields import apply_on_fields
from odescale.training.initial import measure_overlaps, rows_from_overlaps
from odescale.training.task import TeacherTask


def overlaps_of_rank(size, rank, seed=0):
    rows = np.random.default_rng(seed).normal(size=(size, rank))
    return rows @ rows.T / rank


@pytest.mark.parametrize(("size", "rank", "dimension"), [(8, 4, 200), (5, 5, 5), (6, 2, 2), (3, 3, 1000)])
def test_isotropic_overlaps_are_exact(size, rank, dimension):
    q = overlaps_of_rank(size, rank)
    for seed in (0, 1):
        rows = rows_from_overlaps(q, dimension=dimension, seed=seed)
        C, R = measure_overlaps(rows)
        np.testing.assert_allclose(C, q, atol=1e-12)
        np.testing.assert_array_equal(C, R)
    other = rows_from_overlaps(q, dimension=dimension, seed=0)
    assert np.abs(rows - other).max() > 0.1  # another rotation, the same overlaps


def test_overlaps_per_bin_are_exact():
    lam = np.repeat([3.0, 1.0, 0.2], [10, 20, 70])
    q = np.stack([overlaps_of_rank(4, 3, seed) for seed in range(3)])
    rows = rows_from_overlaps(q, eigenvalues=lam)
    for value, target in zip((3.0, 1.0, 0.2), q, strict=True):
        part = rows[:, lam == value]
        np.testing.assert_allclose(part @ part.T / part.shape[1], target, atol=1e-12)
    C, R = measure_overlaps(rows, lam)
    weights = np.array([10, 20, 70]) / lam.sum()
    np.testing.assert_allclose(C, np.einsum("k,kij->ij", weights * [3.0, 1.0, 0.2], q), atol=1e-12)
    np.testing.assert_allclose(R, np.einsum("k,kij->ij", weights, q), atol=1e-12)


def test_one_matrix_on_a_continuous_spectrum():
    """Bins are merged until they hold the rank: R exact, C exact up to the spread of eigenvalues in a bin."""
    lam = np.linspace(2.0, 0.5, 300)
    q = overlaps_of_rank(4, 4)
    C, R = measure_overlaps(rows_from_overlaps(q, eigenvalues=lam), lam)
    np.testing.assert_allclose(R, q * 300 / lam.sum(), atol=1e-12)
    np.testing.assert_allclose(C, q, rtol=0.02, atol=0.01)


def test_bins_with_too_few_modes_are_right_in_the_mean():
    """One mode cannot carry rank 2: traces exact, the mean over seeds within 4.5 standard errors of q."""
    lam = np.array([2.0, 1.0, 0.5])
    q = np.stack([overlaps_of_rank(3, 2, seed) for seed in range(3)])
    rows = np.stack([rows_from_overlaps(q, eigenvalues=lam, seed=seed) for seed in range(400)])
    products = np.einsum("sik,sjk->skij", rows, rows)
    np.testing.assert_allclose(np.trace(products, axis1=2, axis2=3), np.tile(np.trace(q, axis1=1, axis2=2), (400, 1)))
    error = products.std(axis=0) / 20
    assert (np.abs(products.mean(axis=0) - q) < 4.5 * error + 1e-12).all()


def test_refusals():
    bad = np.array([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(InputError, match=r"overlaps: expected positive semi-definite"):
        rows_from_overlaps(bad, dimension=10)
    with pytest.raises(InputError, match=r"overlaps\[1\]: expected positive semi-definite"):
        rows_from_overlaps(np.stack([np.eye(2), bad]), eigenvalues=np.repeat([2.0, 1.0], 5))
    with pytest.raises(InputError, match="dimension: expected at least the rank 3"):
        rows_from_overlaps(np.eye(3), dimension=2)
    with pytest.raises(InputError, match="one per distinct eigenvalue"):
        rows_from_overlaps(np.stack([np.eye(2)] * 3), eigenvalues=np.repeat([2.0, 1.0], 5))
    with pytest.raises(InputError, match="bins"):
        rows_from_overlaps(np.stack([np.eye(2)] * 2), eigenvalues=np.ones(4), bins=np.zeros(4, dtype=int))
    with pytest.raises(InputError, match="dimension"):
        rows_from_overlaps(np.eye(2))
    with pytest.raises(InputError, match="finite"):
        rows_from_overlaps(np.full((2, 2), np.nan), dimension=10)


def test_tokens_have_the_covariance_of_their_spectrum():
    lam = np.array([2.0, 1.0, 0.3, 0.05])
    task = TeacherTask(build_architecture(1).teacher, tokens=50, batch=400, eigenvalues=lam)
    assert task.scale == pytest.approx(3.35) and task.dimension == 4
    x = np.asarray(task.sample_tokens(jax.random.key(0))).reshape(-1, 4)
    covariance = x.T @ x / len(x)
    error = np.sqrt((np.outer(lam, lam) + np.diag(lam**2)) / len(x))
    assert np.abs((covariance - np.diag(lam)) / error).max() < 4.5


def test_labels_are_the_teacher_on_its_fields():
    """Also for a teacher whose second layer is uniform."""
    architecture = logistic_pair_architecture()
    task = TeacherTask(architecture.teacher, tokens=7, batch=3, dimension=30)
    rows = jax.random.normal(jax.random.key(0), (8, 30))
    tokens, labels = task.sample_batch(jax.random.key(1), rows)
    assert tokens.shape == (3, 8, 30)
    phi = tokens @ rows.T / np.sqrt(30)
    expected = jnp.stack([apply_on_fields(architecture.teacher, p, jnp.eye(8)) for p in phi])
    np.testing.assert_allclose(labels, expected, rtol=1e-10)


def test_bad_tasks():
    teacher = build_architecture(1).teacher
    with pytest.raises(InputError, match="tokens"):
        TeacherTask(teacher, tokens=0, batch=1, dimension=5)
    with pytest.raises(InputError, match="eigenvalues"):
        TeacherTask(teacher, tokens=2, batch=1, eigenvalues=np.array([1.0, -1.0]))
    with pytest.raises(InputError, match="dimension"):
        TeacherTask(teacher, tokens=2, batch=1)
    with pytest.raises(InputError, match="dimension"):
        TeacherTask(teacher, tokens=2, batch=1, dimension=3, eigenvalues=np.ones(4))
