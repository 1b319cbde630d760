"""What is measured of a language model on a language of known conditionals: exact excess loss, logit scale, alignment."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from odescale.cache.programs import program
from odescale.networks.language_model import LanguageModel
from odescale.training.grammar import Grammar


class LanguageProbe(eqx.Module):
    r"""Averages over the full contexts of held-out sequences; lam are the centred logits, f the centred true fields.

    f is in units where E |f|^2 = V - 1 (variance one per independent field), as in the theory of peaked distributions.

    - `loss`: the excess loss E KL(p* | p), the cross-entropy less the entropy, in nats, from the known p* and not from labels;
      `loss_common_stderr`: its standard error over sequences.
    - `entropy`: E H(p*). `error`: share of contexts with argmax lam != argmax f.
    - `logit_scale`: s, s^2 = E |lam|^2/(V - 1). `overlap`: D = E lam . f/(V - 1). `spread`: Delta = s^2 - D^2.
    - `aligned_loss`: the excess loss of logits D f on the same contexts: what is left when nothing but the scale is wrong.
    - `gradient_norm`: |grad_theta E KL| over all parameters.
    """

    loss: Float[Array, ""]
    loss_common_stderr: Float[Array, ""]
    entropy: Float[Array, ""]
    error: Float[Array, ""]
    logit_scale: Float[Array, ""]
    overlap: Float[Array, ""]
    spread: Float[Array, ""]
    aligned_loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]


def excess_losses(log_true: Float[Array, "... V"], logits: Float[Array, "... V"]) -> Float[Array, "..."]:
    """KL(p* | softmax(logits)) = sum_k p*_k (log p*_k - log p_k) at every context; p* = 0 contributes nothing."""
    log_model = jax.nn.log_softmax(logits, axis=-1)
    present = ~jnp.isneginf(log_true)
    safe = jnp.where(present, log_true, 0.0)
    return jnp.sum(jnp.where(present, jnp.exp(safe) * (safe - log_model), 0.0), axis=-1)


def true_fields(
    grammar: Grammar, sequences: Int[Array, "B window"]
) -> tuple[Float[Array, "B m V"], Float[Array, "B m V"]]:
    """(log p*, centred fields with E |f|^2 = V - 1) at the m full contexts of every sequence, in JAX's widest float."""
    fields = jax.vmap(grammar.fields)(sequences[:, :-1]).astype(jnp.result_type(float))
    centred = fields - fields.mean(axis=-1, keepdims=True)
    scale = jnp.sqrt(jnp.mean(jnp.sum(centred**2, axis=-1)) / (grammar.vocabulary - 1))
    return grammar.log_conditionals(fields), centred / scale


@program
def measure_language(model: LanguageModel, grammar: Grammar, sequences: Int[Array, "B window"]) -> LanguageProbe:
    """The `LanguageProbe` of `model` on `sequences` (B, T + 1) of `grammar`; exact in everything but the choice of contexts."""
    log_true, fields = true_fields(grammar, sequences)
    independent = grammar.vocabulary - 1
    arrays, static = eqx.partition(model, eqx.is_array)

    def predict(arrays: LanguageModel) -> Float[Array, "B m V"]:
        logits = jax.vmap(eqx.combine(arrays, static))(sequences[:, :-1])[:, grammar.order - 1 :]
        # Softmax in the widest float: a margin of 20 leaves a loss of 2e-9, which float32 rounds away.
        return logits.astype(fields.dtype)

    def objective(arrays: LanguageModel) -> tuple[Float[Array, ""], tuple[Array, Array]]:
        logits = predict(arrays)
        losses = excess_losses(log_true, logits)
        return losses.mean(), (logits, losses.mean(axis=1))

    with jax.default_matmul_precision("highest"):
        (excess, (logits, each)), gradient = jax.value_and_grad(objective, has_aux=True)(arrays)
    logits = logits - logits.mean(axis=-1, keepdims=True)
    square = jnp.mean(jnp.sum(logits**2, axis=-1)) / independent
    overlap = jnp.mean(jnp.sum(logits * fields, axis=-1)) / independent
    squares = [jnp.sum(leaf.astype(fields.dtype) ** 2) for leaf in jax.tree.leaves(gradient)]
    return LanguageProbe(
        loss=excess,
        loss_common_stderr=jnp.std(each) / jnp.sqrt(max(each.size - 1, 1)),
        entropy=jnp.mean(-jnp.sum(jnp.where(jnp.isneginf(log_true), 0.0, jnp.exp(log_true) * log_true), axis=-1)),
        error=jnp.mean(jnp.argmax(logits, axis=-1) != jnp.argmax(fields, axis=-1)),
        logit_scale=jnp.sqrt(square),
        overlap=overlap,
        spread=square - overlap**2,
        aligned_loss=excess_losses(log_true, overlap * fields).mean(),
        gradient_norm=jnp.sqrt(sum(squares, jnp.zeros((), fields.dtype))),
    )
