r"""Sizes of what the theory of softmax attention at infinite context neglects.

rows, noise:  as of a mean-field system
context:      |L_T(0)/L(0) - 1|                    an infinite context against the system's own number of tokens
softmax:      2 C_kk C_qq                          beyond 1 a few tokens carry the softmax average
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Float

from odescale.cache.programs import program
from odescale.expectations.sampled import SampledContext, sample_context
from odescale.networks.architecture import Architecture
from odescale.systems.attention import Attention, couple_at_start, largest_load
from odescale.systems.base import loss_at_start

MOST_TOKENS, MOST_HEADS = 512, 16
"""Up to which the sampled closure at the start costs little more than a second."""


def sizes(system: Attention, t1: float | None) -> dict[str, float]:
    """Sizes at the start: tokens against an infinite context, loads of the softmax average, rows and directions."""
    C, R = couple_at_start(system)
    tokens, whole = float(system.tokens), float(system.trace)
    numbers = {
        "rows": float(system.trained.sum()) / whole if system.eigenvalues.shape[0] == 1 else 0.0,
        "noise": float(system.noise) * float(system.learning_rate) / float(system.stability_bound()),
        "softmax": float(largest_load(C, R, system.architecture)),
    }
    heads = sum(map(len, system.architecture.student.layers))
    limitless = not (system.finite_context or system.sampled is not None) and np.isfinite(tokens)
    simple = not system.writes_back and system.eigenvalues.shape[0] == 1
    cheap = tokens <= MOST_TOKENS and heads <= MOST_HEADS
    # Beyond a load of one the sampled average is a few tokens: the first size has said so.
    if limitless and simple and cheap and numbers["softmax"] < 1:
        own = _loss_at_tokens(sample_context(system.architecture.size, int(tokens)), C, system.architecture)
        numbers["context"] = abs(float(own) / float(loss_at_start(system)) - 1)
    return numbers


@program
def _loss_at_tokens(context: SampledContext, C: Float[Array, "P P"], architecture: Architecture) -> Float[Array, ""]:
    return context.loss(C, architecture)
