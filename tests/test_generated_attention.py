"""The generated right-hand side against automatic differentiation of a plain forward pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odescale.generated import attention as generated
from odescale.networks import Architecture, build_architecture, logistic_pair_architecture
from tests.oracles import oracle_closure, oracle_functionals, oracle_loss, random_overlaps

CASES = [
    *((depth, 1, "identity", 1, True) for depth in (1, 2, 3, 4)),
    *((depth, 2, "identity", 1, True) for depth in (1, 2, 3)),
    *((depth, 1, "rows", 1, True) for depth in (1, 2)),
    (1, 2, "rows", 2, True),
    (2, 1, "identity", 2, True),
    (2, 1, "identity", 2, False),
    (1, 1, "identity", 1, False),
    (3, 2, "identity", 2, False),
    (2, 2, "rows", 2, False),
]
# Heads of a higher rank and with shared keys and values, depth 1 and 2, identity and rows.
HIGHER = [(1, 1, 4, 1), (2, 1, 2, 1), (2, 2, 2, 1), (1, 4, 2, 2)]


def relative(x, y) -> float:
    """Largest deviation over the largest entry of the reference."""
    return float(jnp.max(jnp.abs(x - y)) / jnp.maximum(jnp.max(jnp.abs(y)), 1e-300))


def overlaps(architecture: Architecture, seed: int):
    """C and R, both random positive definite and different from each other."""
    return tuple(random_overlaps(key, architecture.size, 0.6) for key in jax.random.split(jax.random.key(seed)))


@pytest.mark.parametrize("value", ["identity", "rows"])
@pytest.mark.parametrize("case", HIGHER, ids=lambda c: f"L{c[0]}H{c[1]}-rank{c[2]}-G{c[3]}")
def test_closure_of_higher_rank_equals_autodiff(case, value):
    depth, heads, rank, shared = case
    equals_autodiff(build_architecture(depth, heads, value=value, outputs=2, rank=rank, key_value_heads=shared))


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"L{c[0]}H{c[1]}-{c[2]}-K{c[3]}-{'trained' if c[4] else 'frozen'}"
)
def test_closure_equals_autodiff(case):
    depth, heads, value, outputs, train = case
    equals_autodiff(build_architecture(depth, heads, value=value, outputs=outputs, train_readouts=train))


def equals_autodiff(architecture: Architecture) -> None:
    trained = jnp.asarray(architecture.trained_mask)
    student, teacher = architecture.student, architecture.teacher

    @jax.jit
    @jax.vmap
    def both(C, R):
        got = (
            generated.functionals(C, R, student),
            generated.population_loss(C, R, student, teacher),
            *generated.closure(C, R, student, teacher, trained),
        )
        expected = (
            oracle_functionals(C, R, student),
            oracle_loss(C, R, architecture),
            *oracle_closure(C, R, architecture),
        )
        return got, expected

    points = [overlaps(architecture, seed) for seed in range(3)]
    got, expected = both(*(jnp.stack(x) for x in zip(*points, strict=True)))
    for seed in range(3):
        for part, reference in zip(got, expected, strict=True):
            assert relative(part[seed], reference[seed]) <= 1e-12
    assert (float(jnp.max(jnp.abs(got[3]))) > 0) == architecture.writes_back


def test_uniform_heads_contribute_nothing():
    architecture = logistic_pair_architecture()
    C, R = overlaps(architecture, 3)
    trained = jnp.asarray(architecture.trained_mask)
    got = jax.jit(lambda C, R: generated.closure(C, R, architecture.student, architecture.teacher, trained))(C, R)
    for part, expected in zip(got, jax.jit(lambda C, R: oracle_closure(C, R, architecture))(C, R), strict=True):
        assert relative(part, expected) <= 1e-12


def test_overlap_flow_is_the_flow_of_moving_rows():
    """Rows that move by dA_k/dt = M_k A_k, plus noise: the flow of their products, mode by mode."""
    architecture = build_architecture(1, 1)
    size, modes = architecture.size, 3
    keys = jax.random.split(jax.random.key(5), 6)
    rows = jax.random.normal(keys[0], (modes, size, 4))
    q = rows @ rows.swapaxes(1, 2)
    lam = jnp.array([0.3, 1.0, 2.5])
    trained = jnp.asarray(architecture.trained_mask)
    G, H = (trained[:, None] * jax.random.normal(k, (size, size)) for k in keys[1:3])
    V = jnp.diag(trained) @ random_overlaps(keys[3], size) @ jnp.diag(trained)
    eta, batch, decay = 0.3, 4.0, 0.2
    expected = []
    for mode in range(modes):
        rate = -eta * (lam[mode] * G + H) - decay * jnp.diag(trained)

        def moved(h, rate=rate, mode=mode):
            after = rows[mode] + h * rate @ rows[mode]
            return after @ after.T

        drift = jax.jvp(moved, (0.0,), (1.0,))[1]
        expected.append(drift + eta**2 / batch * lam[mode] * V)
    got = generated.overlap_flow(q, lam, G, H, V, eta, batch, decay, trained)
    assert relative(got, jnp.stack(expected)) < 1e-13


def test_float32_vmap_and_gradients():
    architecture = build_architecture(2, 1)
    student, teacher = architecture.student, architecture.teacher
    trained = jnp.asarray(architecture.trained_mask)
    C = jnp.stack([overlaps(architecture, s)[0] for s in range(3)])
    G, H, V = jax.jit(jax.vmap(lambda c: generated.closure(c, c, student, teacher, trained)))(C)
    assert G.shape == H.shape == V.shape == C.shape
    single = jax.jit(lambda c: generated.closure(c, c, student, teacher, trained.astype(c.dtype)))(
        C[0].astype("float32")
    )
    assert all(part.dtype == jnp.float32 for part in single)
    assert relative(single[0], G[0]) < 1e-4
    gradient = jax.jit(jax.grad(lambda c: generated.closure(c, c, student, teacher, trained)[0].sum()))(C[0])
    assert bool(jnp.all(jnp.isfinite(gradient)))
    assert np.abs(gradient).max() > 0
