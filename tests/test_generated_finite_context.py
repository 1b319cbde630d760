"""Order-1/T loss, drift and noise of one layer against samples of the finite-context network at fixed overlaps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odescale import InputError
from odescale.generated import attention as generated
from odescale.networks import Architecture, FieldNetwork, Head, build_architecture
from tests.oracles import random_overlaps


def uniform_head() -> Architecture:
    """One softmax head and one uniform head; the teacher's uniform head comes first."""
    return Architecture(
        rows=("q", "k", "r", "q*", "k*", "r*"),
        trained=(True,) * 3 + (False,) * 3,
        student=FieldNetwork(((Head(0, 1), Head(None, None)),), (2,)),
        teacher=FieldNetwork(((Head(None, None), Head(3, 4)),), (5,)),
    )


def grouped(heads: int, **options) -> Architecture:
    """`heads` heads; 0: one and a uniform one; -2: two that share a key."""
    if heads == 0:
        return uniform_head()
    return build_architecture(1, abs(heads), key_value_heads=None if heads > 0 else 1, **options)


def outputs_and_slopes(network: FieldNetwork, query: np.ndarray, context: np.ndarray):
    """f (n, K), df_i/dquery fields (n, K, P), df_i/dcontext fields (n, K, T, P): a plain one-layer softmax network."""
    n, tokens, size = context.shape
    reads = list(network.readouts)
    f = query[:, reads].copy()
    on_query = np.zeros((n, len(reads), size))
    on_context = np.zeros((n, len(reads), tokens, size))
    for i, r in enumerate(reads):
        on_query[:, i, r] += 1
    for head in network.layers[0]:
        if head.query is None:
            weight = np.full((n, tokens), 1 / tokens)
        else:
            logits = query[:, head.query, None] * context[:, :, head.key]
            weight = np.exp(logits - logits.max(1, keepdims=True))
            weight /= weight.sum(1, keepdims=True)
        for i, r in enumerate(reads):
            value = context[:, :, r]
            mean = (weight * value).sum(1)
            f[:, i] += mean
            on_context[:, i, :, r] += weight
            if head.query is not None:
                key = context[:, :, head.key]
                centred = weight * (value - mean[:, None])
                on_query[:, i, head.query] += (centred * key).sum(1)
                on_context[:, i, :, head.key] += query[:, head.query, None] * centred
    return f, on_query, on_context


def sampled(architecture: Architecture, C: np.ndarray, tokens: int, samples: int, noise: bool, seed: int = 0):
    """Mean and standard error of loss_T - loss_infinite (same query), and of V_T - V_infinite if `noise`."""
    rng = np.random.default_rng(seed)
    size = architecture.size
    root = np.linalg.cholesky(C)
    pair = jax.jit(lambda C: [generated.functionals(C, C, net) for net in (architecture.student, architecture.teacher)])
    a, a_star = (np.asarray(x) for x in pair(C))
    b = a - a_star
    losses, noises = [], []
    for _ in range(max(1, samples * tokens // 400_000)):
        n = min(samples, 400_000 // tokens)
        query = rng.standard_normal((n, size)) @ root.T
        context = rng.standard_normal((n, tokens, size)) @ root.T
        f, on_query, on_context = outputs_and_slopes(architecture.student, query, context)
        g, _, _ = outputs_and_slopes(architecture.teacher, query, context)
        residual, infinite = f - g, query @ b.T
        losses.append(0.5 * (residual**2).sum(1) - 0.5 * (infinite**2).sum(1))
        if noise:
            slope = np.einsum("ni,nip->np", residual, on_query)
            spread = np.einsum("ni,nitp->ntp", residual, on_context)
            still = infinite @ a
            noises.append(
                slope[:, :, None] * slope[:, None] + np.einsum("ntp,ntq->npq", spread, spread)
                - still[:, :, None] * still[:, None]
            )  # fmt: skip
    out = []
    for values in (losses, noises) if noise else (losses,):
        stacked = np.concatenate(values)
        out += [stacked.mean(0), stacked.std(0) / len(stacked) ** 0.5]
    return out


def setting(heads: int, outputs: int, scale: float, seed: int = 7):
    architecture = grouped(heads, outputs=outputs)
    C = random_overlaps(jax.random.key(seed), architecture.size, scale)
    return architecture, C


SETTINGS = [(1, 1), (2, 2), (0, 1), (-2, 2)]
SETTING_NAMES = ["one head", "two heads", "with uniform head", "two heads, one key"]


@pytest.mark.parametrize("heads, outputs", SETTINGS, ids=SETTING_NAMES)
@pytest.mark.parametrize("tokens", [16, 32, 64])
def test_loss_at_fixed_overlaps(heads, outputs, tokens):
    architecture, C = setting(heads, outputs, 0.3)
    pair = (architecture.student, architecture.teacher)
    mean, error = sampled(architecture, np.asarray(C), tokens, 40_000, noise=False)

    @jax.jit
    def corrections(C):
        return generated.finite_context_loss(C, float(tokens), *pair) - generated.population_loss(C, C, *pair)

    shift = float(corrections(C))
    assert abs(mean - shift) < 3 * error + 3 / tokens**2
    assert abs(mean - shift) < 0.5 * abs(mean) + 3 * error


@pytest.mark.parametrize("heads, outputs", SETTINGS, ids=SETTING_NAMES)
def test_noise_at_fixed_overlaps(heads, outputs):
    """V at T = 64, small logits so that the next order stays below the sampling error."""
    architecture, C = setting(heads, outputs, 0.12)
    student, teacher = architecture.student, architecture.teacher
    trained = jnp.asarray(architecture.trained_mask)
    tokens = 64
    _, _, mean, error = sampled(architecture, np.asarray(C), tokens, 40_000, noise=True)

    @jax.jit
    def noises(C):
        finite = generated.finite_context_closure(C, float(tokens), student, teacher, trained)
        return finite[1], generated.closure(C, C, student, teacher, trained)[2]

    V, V0 = noises(C)
    moving = np.flatnonzero(architecture.trained_mask)
    block = np.ix_(moving, moving)
    shift, mean, error = np.asarray(V - V0)[block], mean[block], error[block]
    assert np.all(np.abs(shift - mean) < 4.5 * error + 8 / tokens * np.abs(mean) + 1e-12)
    # The test has power: the parts that only exist at finite T are many standard errors away from zero.
    assert np.max(np.abs(shift) / np.maximum(error, 1e-300) * (error > 0)) > 20


@pytest.mark.parametrize(
    "heads, outputs, train", [(1, 1, True), (2, 2, True), (2, 2, False), (0, 1, True), (-2, 2, True)]
)
def test_drift_is_the_gradient_of_the_loss(heads, outputs, train):
    architecture = grouped(heads, outputs=outputs, train_readouts=train)
    C = random_overlaps(jax.random.key(3), architecture.size, 0.3)
    trained = jnp.asarray(architecture.trained_mask)
    student, teacher = architecture.student, architecture.teacher

    @jax.jit
    def both(C):
        slope = jax.grad(lambda C: generated.finite_context_loss(C, 16.0, student, teacher))(C)
        return generated.finite_context_closure(C, 16.0, student, teacher, trained), slope + slope.T

    (G, V), slope = both(C)
    expected = trained[:, None] * slope
    assert float(jnp.max(jnp.abs(G - expected))) < 1e-12 * float(jnp.max(jnp.abs(expected)))
    assert float(jnp.max(jnp.abs(V - V.T))) < 1e-14
    assert not np.any(np.asarray(V)[np.asarray(trained) == 0])


def test_infinite_tokens_give_the_infinite_context_closure():
    architecture, C = setting(1, 1, 0.3)
    trained = jnp.asarray(architecture.trained_mask)
    student, teacher = architecture.student, architecture.teacher

    @jax.jit
    def both(C):
        finite = generated.finite_context_closure(C, jnp.inf, student, teacher, trained)
        return finite, generated.closure(C, C, student, teacher, trained)

    (G, V), (G0, _, V0) = both(C)
    assert float(jnp.max(jnp.abs(G - G0))) < 1e-15 and float(jnp.max(jnp.abs(V - V0))) < 1e-15


def test_two_layers_value_rows_and_a_higher_rank_are_refused():
    for architecture in (
        build_architecture(2, 1),
        build_architecture(1, 1, value="rows"),
        build_architecture(1, rank=2),
    ):
        C = random_overlaps(jax.random.key(0), architecture.size)
        with pytest.raises(InputError, match="one layer"):
            generated.finite_context_loss(C, 16.0, architecture.student, architecture.teacher)


def test_quickstart_loss_is_the_formula():
    S, beta, y0, y1 = 12.0, 1.0, 0.05, 0.3
    first = 0.5 * beta**2 / (1 + y0 / (beta - y0) * np.exp(2 * beta * S)) ** 2
    second = 0.5 * y1**2 / (1 + 2 * y1 * S) ** 2
    assert float(generated.logistic_pair_loss(S, beta, y0, y1)) == pytest.approx(first + second, rel=1e-13)
    assert float(generated.logistic_pair_loss(0.0, beta, y0, y1)) == pytest.approx(0.49625, rel=1e-12)
    assert float(generated.logistic_pair_loss(12.0, beta, y0, y1)) == pytest.approx(6.6924e-4, rel=1e-4)
