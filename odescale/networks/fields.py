"""A finite-context softmax transformer as a function of its local fields alone.

A network whose weights are rows needs of every token only its fields phi_j = A_j . x / sqrt(N): logits are products of
two fields, and a head moves the fields of a token by attention averages of fields (value = identity) or by overlaps
R_jo times an average (value/output rows). `odescale.networks.transformer` is the same network on d-dimensional tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from odescale.networks.architecture import FieldNetwork


def attention_weights(query: Float[Array, " n"], key: Float[Array, " m"]) -> Float[Array, "n m"]:
    """a_ts = exp(s_t k_s) / sum_{s' != t} exp(s_t k_s'), zero on the diagonal: a token never attends to itself.

    `query` holds the query fields s_t, `key` the key fields k_s. With one query fewer tokens than keys are not
    supported: n = m attends within one list of tokens (diagonal masked), n = 1 and any m is a query token outside the
    list `key` (nothing masked).
    """
    logits = query[:, None] * key[None, :]
    if query.shape[0] > 1:
        logits = jnp.where(jnp.eye(key.shape[0], dtype=bool), -jnp.inf, logits)
    return jax.nn.softmax(logits, axis=-1)


def rows_read_from(network: FieldNetwork, layer: int) -> tuple[int, ...]:
    """Rows whose fields are still read in layers `layer`, `layer + 1`, ... or by the readouts, in increasing order."""
    used = set(network.readouts)
    for heads in network.layers[layer:]:
        for head in heads:
            used.update(index for index in (head.query, head.key, head.value) if index is not None)
    return tuple(sorted(used))


def apply_on_fields(
    network: FieldNetwork, phi: Float[Array, "tokens_plus_query P"], R: Float[Array, "P P"]
) -> Float[Array, " K"]:
    r"""f_i = phi^L_{r_i, query}: the K outputs at the query token, which is the last one.

        a_ts = exp(phi_qt phi_ks) / sum_{s' != t} exp(phi_qt phi_ks')          (uniform head: a_ts = 1/T)
        phi_jt <- phi_jt + sum_s a_ts phi_js                                   (value = identity)
        phi_jt <- phi_jt + R_jo sum_s a_ts phi_vs                              (value row v, output row o)

    for all heads of a layer at once; every token attends to the T others, never to itself. The last layer is computed
    for the query token alone.

    **Arguments**

    - `network`: student or teacher, row numbers into the P columns.
    - `phi`: `(T + 1, P)` fields of one sequence, T >= 1, the query token last.
    - `R`: `(P, P)` overlaps A A^T / N with metric I; read only by value/output heads. For isotropic tokens R = C.

    **Returns** the `(K,)` outputs, dimensionless. Works under `jit`, `vmap` and `grad`.

    Source: finite-context form of the network in Methods of the attention theory (docs, "the softmax transformer").
    """
    return _forward(network, phi, R, query_only=True)[0]


def apply_at_every_token(
    network: FieldNetwork, phi: Float[Array, "n P"], R: Float[Array, "P P"]
) -> Float[Array, "n K"]:
    """The outputs `(T + 1, K)` of `apply_on_fields` with each of the T + 1 tokens as the query in turn.

    One sequence then gives T + 1 draws of the loss with nearly independent queries, for one more T x T layer.
    Arguments as in `apply_on_fields`.
    """
    return _forward(network, phi, R, query_only=False)


def _forward(
    network: FieldNetwork, phi: Float[Array, "n P"], R: Float[Array, "P P"], *, query_only: bool
) -> Float[Array, "queries K"]:
    columns = {row: phi[:, row] for row in rows_read_from(network, 0)}
    for number, heads in enumerate(network.layers):
        last_token = query_only and number == network.depth - 1
        needed = rows_read_from(network, number + 1)
        moved = {row: columns[row][-1:] if last_token else columns[row] for row in needed}
        for head in heads:
            read = needed if head.value is None else (head.value,)
            average = _attend([columns[row] for row in read], head.query, head.key, columns, last_token)
            for j, row in enumerate(needed):
                moved[row] = moved[row] + (
                    average[:, j] if head.output is None else R[row, head.output] * average[:, 0]
                )
        columns = moved
    return jnp.stack([columns[row] for row in network.readouts], axis=-1)


def _attend(
    values: list[Float[Array, " n"]],
    query: int | None,
    key: int | None,
    columns: dict[int, Float[Array, " n"]],
    query_only: bool,
) -> Float[Array, "queries values"]:
    stacked = jnp.stack(values, axis=-1)
    if query is None or key is None:
        total = stacked.sum(axis=0, keepdims=True)
        own = stacked[-1:] if query_only else stacked
        return (total - own) / (stacked.shape[0] - 1)
    if query_only:
        return attention_weights(columns[query][-1:], columns[key][:-1]) @ stacked[:-1]
    return attention_weights(columns[query], columns[key]) @ stacked
