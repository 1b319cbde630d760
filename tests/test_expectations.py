"""Exact field draws, and the Monte Carlo loss at finite context against brute force and exact limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from monte_carlo_closure import sampled_closure
from oracles import oracle_closure, oracle_loss, random_overlaps

from odescale import InputError
from odescale.expectations.finite_context import finite_context_loss
from odescale.expectations.gaussian_fields import overlap_root, sample_fields
from odescale.networks import build_architecture, logistic_pair_architecture
from odescale.networks.fields import apply_on_fields


def singular_overlaps(size, rank, seed=0):
    rows = np.random.default_rng(seed).normal(size=(size, rank)) * np.sqrt(0.4 / rank)
    return rows @ rows.T


def test_root_of_singular_overlaps():
    C = singular_overlaps(6, 3)
    root = overlap_root(C)
    np.testing.assert_allclose(root @ root.T, C, atol=1e-14)
    assert (np.abs(root[:, 3:]) == 0).all()


def test_sampled_fields_have_covariance_C():
    C = singular_overlaps(5, 3)
    phi = np.asarray(sample_fields(jax.random.key(0), C, 4000, 5)).reshape(-1, 5)
    error = np.sqrt((np.outer(np.diag(C), np.diag(C)) + C**2) / len(phi))
    assert np.abs((phi.T @ phi / len(phi) - C) / error).max() < 4.5
    # Two equal rows have equal fields, exactly: the singular direction carries no noise.
    twin = np.ones((2, 2))
    phi = sample_fields(jax.random.key(1), twin, 3, 4)
    np.testing.assert_allclose(phi[..., 0], phi[..., 1], rtol=1e-14)


@pytest.mark.parametrize(
    ("C", "word"),
    [
        (np.array([[1.0, 2.0], [2.0, 1.0]]), "positive semi-definite"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), "finite"),
        (np.array([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (np.ones((2, 3)), "square"),
    ],
)
def test_bad_overlaps_are_refused(C, word):
    with pytest.raises(InputError, match=f"C: expected .*{word}"):
        overlap_root(C)


@pytest.mark.parametrize("value", ["identity", "rows"])
def test_loss_agrees_with_last_token_brute_force(value):
    """Many queries per context with moment controls = the definition at the last token, within 4 combined errors."""
    architecture = build_architecture(2, value=value)
    C = np.asarray(random_overlaps(jax.random.key(5), architecture.size, scale=0.25))
    R = 1.3 * C
    mean, error = finite_context_loss(architecture, C, R, 8, jax.random.key(1), 8192)
    phi = sample_fields(jax.random.key(2), C, 40_000, 9)
    outputs = [
        jax.jit(jax.vmap(lambda p, n=n: apply_on_fields(n, p, R)))(phi)
        for n in (architecture.student, architecture.teacher)
    ]
    losses = 0.5 * jnp.sum((outputs[0] - outputs[1]) ** 2, axis=-1)
    brute_error = float(losses.std()) / np.sqrt(len(losses))
    assert abs(mean - float(losses.mean())) < 4 * np.hypot(error, brute_error)
    assert error < 0.02 * mean


def test_controls_reduce_the_error_and_keep_the_mean():
    architecture = logistic_pair_architecture()
    C = np.asarray(random_overlaps(jax.random.key(3), architecture.size, scale=0.3))
    loss = {
        control: finite_context_loss(architecture, C, None, 64, jax.random.key(4), 1024, control=control)
        for control in ("moments", "infinite", "none")
    }
    assert loss["moments"][1] < 0.5 * loss["none"][1]
    for mean, _ in loss.values():
        assert abs(mean - loss["moments"][0]) < 4 * loss["none"][1]


def test_standard_error_is_honest():
    """Spread of repeats equals the quoted error: ratio within the chi-square band of 40 repeats."""
    architecture = build_architecture(1)
    C = singular_overlaps(6, 4)
    runs = np.array([finite_context_loss(architecture, C, None, 16, jax.random.key(i), 512) for i in range(40)])
    assert 0.65 < runs[:, 0].std(ddof=1) / runs[:, 1].mean() < 1.4


@pytest.mark.slow
def test_long_context_meets_the_infinite_loss_as_one_over_T():
    architecture = build_architecture(2)
    C = np.asarray(random_overlaps(jax.random.key(5), architecture.size, scale=0.2))
    exact = float(oracle_loss(C, C, architecture))
    short, short_error = finite_context_loss(architecture, C, None, 64, jax.random.key(0), 4096)
    long, long_error = finite_context_loss(architecture, C, None, 256, jax.random.key(1), 1024)
    assert short - exact > 10 * short_error  # there is a finite-context effect to remove
    limit, error = (4 * long - short) / 3, np.hypot(4 * long_error, short_error) / 3
    # What 1/T extrapolation leaves is of second order: the shift at T = 64 times the shift at T = 256, relative to L.
    assert abs(limit - exact) < 4 * error + (short - exact) * (long - exact) / exact


def test_student_equal_to_teacher_has_no_loss():
    architecture = build_architecture(2)
    half = singular_overlaps(5, 5)
    mean, error = finite_context_loss(architecture, np.tile(half, (2, 2)), None, 6, jax.random.key(0), 64)
    assert mean < 1e-25 and error < 1e-25


@pytest.mark.slow
def test_chunk_and_precision_keep_the_numbers():
    architecture = logistic_pair_architecture()
    C = singular_overlaps(8, 6)
    call = lambda **options: finite_context_loss(architecture, C, None, 12, jax.random.key(0), 512, **options)  # noqa: E731
    np.testing.assert_allclose(call(chunk=7), call(chunk=512), rtol=1e-9)
    single = call(precision="float32")  # draws differ between the dtypes: equal within the errors
    assert abs(single[0] - call()[0]) < 4 * np.hypot(single[1], call()[1])


def test_bad_arguments():
    architecture = build_architecture(1)
    C = singular_overlaps(6, 4)
    with pytest.raises(InputError, match="tokens"):
        finite_context_loss(architecture, C, None, 0, jax.random.key(0))
    with pytest.raises(InputError, match="sequences"):
        finite_context_loss(architecture, C, None, 4, jax.random.key(0), 1)
    with pytest.raises(InputError, match="overlaps of 6 rows"):
        finite_context_loss(architecture, C[:5, :5], None, 4, jax.random.key(0))
    with pytest.raises(InputError, match="control"):
        finite_context_loss(architecture, C, None, 4, jax.random.key(0), control="other")


@pytest.mark.slow
@pytest.mark.parametrize("value", ["identity", "rows"])
def test_sampled_closure_extrapolates_to_the_infinite_one(value):
    """T = 16 and 64 extrapolated as 1/T: drift, write-back drift and noise within 4.5 errors of the oracle's closure."""
    architecture = build_architecture(2 if value == "identity" else 1, value=value)
    # All rows correlated, so that every head reads, writes and matters; the teacher's rows are half as long.
    length = np.where(np.arange(architecture.size) < architecture.size // 2, 1.0, 0.5)
    C = (0.3 * np.eye(architecture.size) + 0.2) * np.outer(length, length)
    R = 1.5 * C
    short = sampled_closure(architecture, C, R, 16, jax.random.key(0), 6000, precision="float32")
    long = sampled_closure(architecture, C, R, 64, jax.random.key(1), 3000, precision="float32")
    G, H, V = (np.asarray(m) for m in oracle_closure(jnp.asarray(C), jnp.asarray(R), architecture))
    for name, expected in (("GC", G @ C), ("H", H), ("V", V)):
        limit = (4 * getattr(long, name) - getattr(short, name)) / 3
        error = np.hypot(4 * getattr(long, f"{name}_stderr"), getattr(short, f"{name}_stderr")) / 3
        second_order = np.abs(getattr(short, name) - getattr(long, name)) / 16
        assert (np.abs(limit - expected) <= 4.5 * error + second_order + 1e-14).all(), name
        if np.abs(expected).max() > 0:
            assert np.abs(expected / np.where(error > 0, error, np.inf)).max() > 6, name
    assert (short.GC[architecture.size // 2 :] == 0).all()
    drift = short.GC + short.H @ C
    np.testing.assert_allclose(short.flow(C, 0.5, 2), -0.5 * (drift + drift.T) + 0.125 * short.V, rtol=1e-12)
