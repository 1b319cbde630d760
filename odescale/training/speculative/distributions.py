"""Next-token distributions of a target and a drafter, and how far they are apart: one function makes every logit.

The sampler, the loss of the drafter and all that is measured read `log_probabilities` alone: a mask or a temperature that held
in one of them and not in another would make 1 - TV another number than the share of accepted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from odescale.cache.programs import program
from odescale.errors import InputError, require_number, whole
from odescale.networks.language_model import LanguageModel


class Decoding(eqx.Module):
    """p_k ~ exp(lam_k/temperature) for all tokens k but the `banned` ones, which have p = 0.

    **Arguments**: `temperature` > 0; `banned`: numbers of tokens >= 0, at least one token must be left.
    **Raises** `InputError`.
    """

    temperature: float = eqx.field(static=True)
    banned: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, temperature: float = 1.0, banned: Sequence[int] = ()) -> None:
        self.temperature = require_number("temperature", temperature, open_=True)
        self.banned = tuple(sorted({whole("banned", token, 0) for token in banned}))

    def check(self, vocabulary: int) -> None:
        """Refuses a banned token outside 0..V-1, and a ban of all."""
        if any(token >= vocabulary for token in self.banned) or len(self.banned) >= vocabulary:
            raise InputError("banned", expected=f"tokens below {vocabulary}, not all of them", got=self.banned,
                             remedy="name tokens of the vocabulary")  # fmt: skip


def log_probabilities(
    model: Any, tokens: Int[Array, "B T"], decoding: Decoding, at: Int[Array, "B n"] | None = None
) -> Float[Array, "B n V"]:
    """log p(next | tokens 0..t) at every position t, or at those of `at`, in JAX's widest float; -inf for banned tokens.

    `model`: a `LanguageModel`, or any callable from tokens (B, T) to causal logits (B, T, V).
    """
    logits = jax.vmap(model)(tokens) if isinstance(model, LanguageModel) else model(tokens)
    if at is not None:
        logits = logits[jnp.arange(logits.shape[0])[:, None], at]
    logits = logits.astype(jnp.result_type(float)) / decoding.temperature
    if decoding.banned:
        logits = logits.at[..., jnp.array(decoding.banned)].set(-jnp.inf)
    return jax.nn.log_softmax(logits, axis=-1)


def kl(log_p: Float[Array, "... V"], log_q: Float[Array, "... V"]) -> Float[Array, "..."]:
    """KL(p || q) = sum_k p_k (log p_k - log q_k) in nats; p_k = 0 adds nothing, q_k = 0 < p_k makes it infinite."""
    there = ~jnp.isneginf(log_p)
    # Twice `where`: what is not taken must not be infinite either, else its derivative is NaN.
    p, q = jnp.where(there, log_p, 0.0), jnp.where(there, log_q, 0.0)
    return jnp.sum(jnp.where(there, jnp.exp(p) * (p - q), 0.0), axis=-1)


def total_variation(log_p: Float[Array, "... V"], log_q: Float[Array, "... V"]) -> Float[Array, "..."]:
    """TV = (1/2) sum_k |p_k - q_k|, between 0 and 1."""
    return 0.5 * jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)), axis=-1)


def acceptance(log_p: Float[Array, "... V"], log_q: Float[Array, "... V"]) -> Float[Array, "..."]:
    r"""P(a token x ~ q is accepted) = sum_k q_k min(1, p_k/q_k) = sum_k min(p_k, q_k) = 1 - TV(p, q).

    **Arguments**: `log_p` of the target, `log_q` of the drafter, (..., V), both normalised. **Returns** (...), in [0, 1].
    Exact for one proposed token. **Failure regime**: the next tokens of a draft are only reached where the ones before were
    accepted, in contexts that suit the drafter: their acceptance is not the mean over all contexts.
    Source: Leviathan, Kalman, Matias 2023, arXiv 2211.17192, theorem 3.5.

    ```python
    import jax.numpy as jnp
    from odescale.training.speculative.distributions import acceptance
    print(acceptance(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))))  # 0.6
    ```
    """
    return jnp.sum(jnp.exp(jnp.minimum(log_p, log_q)), axis=-1)


class Misalignment(eqx.Module):
    """Means over contexts that the target wrote: `kappa` = KL(target || drafter) in nats, `variation` = TV, `stderr` of kappa.

    The standard error is over sequences, whose contexts are not independent of each other.
    """

    kappa: Float[Array, ""]
    variation: Float[Array, ""]
    stderr: Float[Array, ""]


@program
def misalignment(target: Any, drafter: Any, tokens: Int[Array, "B T"], decoding: Decoding, prompt: int) -> Misalignment:
    """The `Misalignment` at the predictions of tokens `prompt`..T-1 of sequences `tokens` that the target sampled."""
    pair = [log_probabilities(model, tokens[:, :-1], decoding)[:, prompt - 1 :] for model in (target, drafter)]
    each = kl(*pair).mean(axis=1)
    return Misalignment(each.mean(), total_variation(*pair).mean(), jnp.std(each) / jnp.sqrt(max(each.size - 1, 1)))
