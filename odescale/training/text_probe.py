"""What is measured of a language model on real text: test loss, logit scale, gradient and its noise, kernel drift."""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from odescale.cache.programs import program
from odescale.networks.language_model import LanguageModel

NOISE_BATCHES = 8
KERNEL_OUTPUTS = 16


class TextProbe(eqx.Module):
    r"""Averages over held-out windows, and two numbers of the training gradient.

    - `loss`: E -log p(x_{t+1} | x_<=t), in nats per character; `loss_common_stderr`: its standard error over windows.
    - `logit_scale`: s, s^2 = E |lam - mean lam|^2/(V - 1).
    - `gradient_norm`: |G|, of the expected training gradient, and `noise_share`: (tr Sigma/B)/(|G|^2 + tr Sigma/B), how much of
      the squared gradient of one batch is noise. Both from the spread over 8 batches, unbiased for |G|^2 (0 where that is < 0).
    - `kernel_drift`: |Theta - Theta(0)|/|Theta(0)| of the tangent kernel of 16 outputs: the centred logit of the right next
      character at the end of 16 windows.
    """

    loss: Float[Array, ""]
    loss_common_stderr: Float[Array, ""]
    logit_scale: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    noise_share: Float[Array, ""]
    kernel_drift: Float[Array, ""]


@program
def measure_text(
    model: LanguageModel,
    sequences: Int[Array, "N window"],
    batches: Int[Array, "8 B window"],
    reference: Float[Array, "16 16"],
) -> TextProbe:
    """The `TextProbe` of `model` on held-out `sequences`, training `batches`, and the kernel at the start, `sampled_kernel`."""
    logits = jax.lax.map(model, sequences[:, :-1], batch_size=64)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, sequences[:, 1:]).mean(axis=1)
    centred = logits - logits.mean(axis=-1, keepdims=True)
    square = jnp.mean(jnp.sum(centred**2, axis=-1)) / (model.vocabulary - 1)
    gradients = jax.lax.map(partial(_gradient, model), batches)
    mean = gradients.mean(axis=0)
    noise = jnp.sum((gradients - mean) ** 2) / (len(batches) - 1)
    signal = jnp.maximum(jnp.sum(mean**2) - noise / len(batches), 0.0)
    change = sampled_kernel(model, sequences) - reference
    return TextProbe(
        loss=losses.mean(),
        loss_common_stderr=jnp.std(losses) / jnp.sqrt(max(losses.size - 1, 1)),
        logit_scale=jnp.sqrt(square),
        gradient_norm=jnp.sqrt(signal),
        noise_share=noise / (signal + noise),
        kernel_drift=jnp.linalg.norm(change) / jnp.linalg.norm(reference),
    )


@program
def sampled_kernel(model: LanguageModel, sequences: Int[Array, "N window"]) -> Float[Array, "16 16"]:
    """Theta = J J^T of 16 outputs, J their derivatives with respect to all parameters; the first 16 windows (N >= 16)."""
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def row(window: Int[Array, " window"]) -> Float[Array, " p"]:
        def output(arrays: LanguageModel) -> Float[Array, ""]:
            logits = eqx.combine(arrays, static)(window[:-1])[-1]
            return logits[window[-1]] - logits.mean()

        return ravel_pytree(jax.grad(output)(arrays))[0]

    rows = jax.lax.map(row, sequences[:KERNEL_OUTPUTS])
    return rows @ rows.T


def _gradient(model: LanguageModel, tokens: Int[Array, "B window"]) -> Float[Array, " p"]:
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(arrays: LanguageModel) -> Float[Array, ""]:
        logits = jax.vmap(eqx.combine(arrays, static))(tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    return ravel_pytree(jax.grad(loss)(arrays))[0]
