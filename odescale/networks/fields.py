"""A finite-context softmax transformer as a function of its local fields alone.

A network whose weights are rows needs of every token only its fields phi_j = A_j . x / sqrt(N): logits are sums of products
of two fields, and a head moves the fields of a token by attention averages of fields (value = identity) or by overlaps
R_jo times an average (value/output rows). `odescale.networks.transformer` is the same network on d-dimensional tokens.

Who attends to whom: a query token attends to its T context tokens and is not among them; the context tokens attend to
the T context tokens, themselves included, and never see the query. With a mask on themselves they would move by O(1/T)
less in every layer but the last: another finite-context correction, the same theory at infinite context.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.networks.architecture import FieldNetwork


def attention_weights(queries: Sequence[Float[Array, " n"]], keys: Sequence[Float[Array, " T"]]) -> Float[Array, "n T"]:
    """a_ts = exp(sum_i s_it k_is) / sum_{s'} exp(sum_i s_it k_is') over the T context tokens; s_i query, k_i key fields."""
    scores = reduce(add, (s[:, None] * k[None, :] for s, k in zip(queries, keys, strict=True)))
    return jax.nn.softmax(scores, axis=-1)


def rows_read_from(network: FieldNetwork, layer: int) -> tuple[int, ...]:
    """Rows whose fields are still read in layers `layer`, `layer + 1`, ... or by the readouts, in increasing order."""
    used = set(network.readouts)
    for heads in network.layers[layer:]:
        for head in heads:
            used.update(head.reads)
    return tuple(sorted(used))


def apply_on_fields(
    network: FieldNetwork, phi: Float[Array, "tokens_plus_query P"], R: Float[Array | np.ndarray, "P P"]
) -> Float[Array, " K"]:
    r"""f_i = phi^L_{r_i, query}: the K outputs at the query token, which is the last one.

        a_ts = exp(score_ts) / sum_{s'} exp(score_ts'),   s in the context (uniform head: a_ts = 1/T)
        score_ts = sum_i phi_q_i,t phi_k_i,s                                       (one product at rank one)
        phi_jt <- phi_jt + sum_s a_ts phi_js                                       (value = identity)
        phi_jt <- phi_jt + R_jo sum_s a_ts phi_vs                                  (value row v, output row o)

    for all heads of a layer at once and for all tokens t; the last layer is computed for the query token alone.

    **Arguments**

    - `network`: student or teacher, row numbers into the P columns.
    - `phi`: `(T + 1, P)` fields of one sequence, T >= 1 context tokens, then the query token.
    - `R`: `(P, P)` overlaps A A^T / N with metric I; read only by value/output heads. For isotropic tokens R = C.

    **Returns** the `(K,)` outputs, dimensionless. Works under `jit`, `vmap` and `grad`.

    Source: finite-context form of the attention theory (docs, "the softmax transformer").
    """
    return apply_on_queries(network, phi, R, phi.shape[0] - 1)[0]


def apply_on_queries(
    network: FieldNetwork, phi: Float[Array, "tokens_plus_queries P"], R: Float[Array | np.ndarray, "P P"], tokens: int
) -> Float[Array, "n K"]:
    """Outputs `(n, K)` of `apply_on_fields` at each of n query tokens that share one context.

    `phi` is `(T + n, P)`: the `tokens` = T context tokens, then the queries, which see neither each other nor
    themselves. `network` and `R` as in `apply_on_fields`.
    """
    columns = {row: phi[:, row] for row in rows_read_from(network, 0)}
    for number, heads in enumerate(network.layers):
        if number == network.depth - 1:
            asking = {row: column[tokens:] for row, column in columns.items()}
        else:
            asking = columns
        needed = rows_read_from(network, number + 1)
        moved = {row: asking[row] for row in needed}
        for head in heads:
            read = needed if head.value is None else (head.value,)
            context = jnp.stack([columns[row][:tokens] for row in read], axis=-1)
            if head.uniform:
                average = context.mean(axis=0, keepdims=True)
            else:
                queries = [asking[q] for q, _ in head.terms]
                average = attention_weights(queries, [columns[k][:tokens] for _, k in head.terms]) @ context
            for j, row in enumerate(needed):
                moved[row] = moved[row] + (
                    average[:, j] if head.output is None else R[row, head.output] * average[:, 0]
                )
        columns = moved
    return jnp.stack([columns[row][-(phi.shape[0] - tokens) :] for row in network.readouts], axis=-1)
