"""Language models on real text: the text, its probes against independent evaluations, branches from shared checkpoints."""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from odescale.errors import InputError
from odescale.networks.language_model import LanguageModel
from odescale.training.source_text import source_text, text_of
from odescale.training.text_probe import measure_text, sampled_kernel

TEXT = text_of("def f(x):\n    return x + 1\n" * 30, "def g(y):\n    return y - 1\n" * 20, length=8, vocabulary=12)
build = partial(LanguageModel, TEXT.vocabulary, 16, 1, 2, 8)


def small_model() -> LanguageModel:
    """A model whose unembedding is not zero: at the start all its logits are."""
    model = build(key=jax.random.key(0), dtype=jnp.float64)
    weights = jax.random.normal(jax.random.key(1), model.unembedding.shape, model.unembedding.dtype)
    return eqx.tree_at(lambda m: m.unembedding, model, weights)


def test_the_codes_spell_the_text():
    """Windows decode to pieces of the text they were drawn from; what is rare has the last code."""
    letters = TEXT.alphabet + "?"
    text = "".join(letters[c] for c in np.asarray(TEXT.train))
    assert len(TEXT.alphabet) == 11 and "?" in text
    assert all(a in (b, "?") for a, b in zip(text, "def f(x):\n    return x + 1\n" * 30, strict=True))
    for window in np.asarray(TEXT.sample(jax.random.key(3), 5)):
        assert "".join(letters[c] for c in window) in text
    held = np.asarray(TEXT.held_out(7))
    np.testing.assert_array_equal(held[-1], np.asarray(TEXT.test)[-9:])
    assert text_of("aab" * 9, "bab" * 9, length=4, vocabulary=3).alphabet == "a" + "b"


def test_the_standard_library_is_text_with_disjoint_files():
    text = source_text(length=16, most=400_000)
    assert 200_000 < text.train.size + text.test.size <= 400_000
    assert text.vocabulary == 96 and int(text.train.max()) <= 95
    again = source_text(length=16, most=400_000)
    assert again.sha256 == text.sha256
    start = bytes(np.asarray(text.test[:2000]).tobytes())
    assert start not in np.asarray(text.train).tobytes()
    for bad in ({"length": 0}, {"vocabulary": 300}, {"most": 10}):
        with pytest.raises(InputError, match=next(iter(bad))):
            source_text(**bad)
    with pytest.raises(InputError, match="length"):
        text_of("abc" * 9, "ab", length=4)


@pytest.mark.slow
def test_probes_against_plain_evaluations():
    """Loss by log-softmax, gradient and noise from the batches' own gradients, the kernel from a dense Jacobian."""
    model = small_model()
    sequences, batches = TEXT.held_out(16), TEXT.sample(jax.random.key(5), 32).reshape(8, 4, 9)
    reference = 1.5 * sampled_kernel(model, sequences)
    probe = measure_text(model, sequences, batches, reference)
    logits = np.asarray(jax.vmap(model)(sequences[:, :-1]))
    log_p = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    right = np.take_along_axis(log_p, np.asarray(sequences)[:, 1:, None], 2)
    assert float(probe.loss) == pytest.approx(-right.mean(), rel=1e-12)
    assert float(probe.loss_common_stderr) == pytest.approx(right.mean(axis=(1, 2)).std(ddof=1) / 4, rel=1e-12)
    assert float(probe.logit_scale) == pytest.approx(np.sqrt(logits.var(axis=-1).mean() * 12 / 11), rel=1e-12)
    flat, back = ravel_pytree(model)

    def loss(w, tokens):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(back(w))(tokens[:, :-1]), tokens[:, 1:]).mean()

    rows = np.stack([jax.grad(loss)(flat, tokens) for tokens in batches])
    noise = rows.var(axis=0, ddof=1).sum()
    signal = max((rows.mean(axis=0) ** 2).sum() - noise / 8, 0)
    assert float(probe.gradient_norm) == pytest.approx(np.sqrt(signal), rel=1e-9)
    assert float(probe.noise_share) == pytest.approx(noise / (noise + signal), rel=1e-9)
    assert float(probe.kernel_drift) == pytest.approx(1 / 3, rel=1e-12)

    def outputs(w):
        ends = jax.vmap(back(w))(sequences[:, :-1])[:, -1]
        return jnp.take_along_axis(ends, sequences[:, -1:], 1)[:, 0] - ends.mean(axis=-1)

    J = np.asarray(jax.jacobian(outputs)(flat))
    np.testing.assert_allclose(sampled_kernel(model, sequences), J @ J.T, rtol=1e-9, atol=1e-12)
