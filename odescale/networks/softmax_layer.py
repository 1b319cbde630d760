r"""One softmax layer with its labels and losses, on logits: targets of a teacher, sample losses, their gradients.

p = softmax(beta lam),   y = (1 - eps) label + eps/K,   l(p, y),   g = dl/dlam
"""

from __future__ import annotations

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.errors import InputError

Labels = Literal["hard", "soft", "sampled"]
LogitLoss = Literal["cross_entropy", "focal", "brier", "square"]

LABELS = ("hard", "soft", "sampled")
LOSSES = ("cross_entropy", "focal", "brier", "square")


class SoftmaxHead(eqx.Module):
    r"""Loss of one sample as a function of its K logits lam and of the teacher's K fields lam*.

        cross_entropy: -sum_k y_k log p_k          focal:  -sum_k y_k (1 - p_k)^gamma log p_k
        brier:         |p - y|^2 / 2               square: |P (beta lam - y)|^2 / 2,   P = I - 11^T/K

    **Arguments**

    - `labels`: "hard" (argmax lam*), "soft" (softmax(b* lam*)) or "sampled" (one draw from it). `loss`: as above.
    - `inverse_temperature`: b* > 0, infinite for hard labels. `smoothing`: eps in [0, 1), y = (1 - eps) label + eps/K.
    - `focusing`: gamma >= 0 of the focal loss; 0 is cross-entropy.

    Every loss is invariant when one number is added to all logits, so that gradients sum to zero over classes.
    **Errors**: `InputError` for a name that is not listed.
    """

    inverse_temperature: Real[ArrayLike, ""]
    smoothing: Real[ArrayLike, ""] = 0.0
    focusing: Real[ArrayLike, ""] = 2.0
    labels: Labels = eqx.field(static=True, default="hard")
    loss: LogitLoss = eqx.field(static=True, default="cross_entropy")

    def __check_init__(self) -> None:
        for name, known in (("labels", LABELS), ("loss", LOSSES)):
            if getattr(self, name) not in known:
                raise InputError(name, expected=", ".join(known), got=getattr(self, name), remedy=f"e.g. {known[0]}")

    def target(self, fields: Float[Array, "... K"], gumbel: Float[Array, "... K"] | None) -> Float[Array, "... K"]:
        """y from the teacher's fields; `gumbel` is standard Gumbel noise, read for sampled labels only."""
        K = fields.shape[-1]
        if self.labels == "soft":
            label = jax.nn.softmax(jnp.asarray(self.inverse_temperature, fields.dtype) * fields, axis=-1)
        else:
            score = fields
            if self.labels == "sampled":
                assert gumbel is not None
                score = jnp.asarray(self.inverse_temperature, fields.dtype) * fields + gumbel
            label = jax.nn.one_hot(jnp.argmax(score, axis=-1), K, dtype=fields.dtype)
        eps = jnp.asarray(self.smoothing, fields.dtype)
        return (1 - eps) * label + eps / K

    def value(
        self, logits: Float[Array | np.ndarray, "... K"], target: Float[Array | np.ndarray, "... K"]
    ) -> Float[Array, "..."]:
        """l at the scaled logits beta lam."""
        if self.loss == "square":
            off = logits - target
            return 0.5 * jnp.sum((off - off.mean(axis=-1, keepdims=True)) ** 2, axis=-1)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        if self.loss == "brier":
            return 0.5 * jnp.sum((jnp.exp(log_p) - target) ** 2, axis=-1)
        if self.loss == "focal":
            # The power of a zero would have an infinite derivative for gamma < 1, where p rounds to one.
            rest = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(logits.dtype).tiny)
            log_p = log_p * rest ** jnp.asarray(self.focusing, logits.dtype)
        return -jnp.sum(target * log_p, axis=-1)

    def value_and_gradient(
        self, logits: Float[Array, "B K"], target: Float[Array, "B K"]
    ) -> tuple[Float[Array, " B"], Float[Array, "B K"]]:
        """(l, dl/dlogits) of every sample; p - y in closed form for cross-entropy."""
        if self.loss == "cross_entropy":
            return self.value(logits, target), jax.nn.softmax(logits, axis=-1) - target
        return jax.vmap(jax.value_and_grad(self.value))(logits, target)
