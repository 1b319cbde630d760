"""The same network on real d-dimensional tokens, as equinox modules with arrays of length d."""

from __future__ import annotations

from collections.abc import Iterable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from odescale.errors import InputError
from odescale.networks.architecture import FieldNetwork, Head
from odescale.networks.fields import attention_weights
from odescale.networks.heads import each


class AttentionHead(eqx.Module):
    """One softmax head of rank r: (t) <- sum_s softmax_s(sum_i (q_i.h_t)(k_i.h_s)/N) v_s, s over the T context tokens.

    v_s = h_s when `value` is None, else o (v.h_s)/N. `query = key = None` is a uniform head, a_ts = 1/T.

    **Arguments**: `query`, `key` (r, d) or (d,), `value`, `output` arrays of length d or None; `scale` is N = tr Sigma.
    """

    query: Float[Array, "*r d"] | None
    key: Float[Array, "*r d"] | None
    value: Float[Array, " d"] | None
    output: Float[Array, " d"] | None
    scale: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        if not self.scale > 0:
            raise InputError("scale", expected="a positive number", got=self.scale, remedy="pass N = tr Sigma")

    def __call__(self, asking: Float[Array, "n d"], context: Float[Array, "T d"]) -> Float[Array, "#n d"]:
        """What the head adds to each of the tokens `asking` when it reads the `(T, d)` context (one row if all get the same)."""
        root = self.scale**0.5
        values = context if self.value is None else context @ self.value / root
        if self.query is None or self.key is None:
            average = values.mean(axis=0, keepdims=True)
        else:
            pairs = zip(jnp.atleast_2d(self.query), jnp.atleast_2d(self.key), strict=True)
            queries, keys = zip(*((asking @ q / root, context @ k / root) for q, k in pairs), strict=True)
            average = attention_weights(queries, keys) @ values
        return average if self.output is None else average[:, None] * self.output / root


class Transformer(eqx.Module):
    """f_i = r_i . h^L_query / sqrt(N), with residual layers h^{l+1}_t = h^l_t + sum_heads head(h^l)_t.

    The d-dimensional network whose function of the local fields is `odescale.networks.fields.apply_on_fields`.

    **Arguments**

    - `layers`: per layer a tuple of `AttentionHead`s.
    - `readouts`: `(K, d)` readout rows.
    - `scale`: N = tr Sigma, the trace of the token covariance (d for isotropic tokens).
    """

    layers: tuple[tuple[AttentionHead, ...], ...]
    readouts: Float[Array, "K d"]
    scale: float = eqx.field(static=True)

    @property
    def dimension(self) -> int:
        """d, the length of tokens and rows."""
        return self.readouts.shape[-1]

    def __call__(self, tokens: Float[Array, "n d"]) -> Float[Array, " K"]:
        """Outputs `(K,)` at the last of the `(T + 1, d)` tokens, the query; the T before it are the context.

        Every token attends to the T context tokens; the last layer is computed for the query alone.
        """
        for heads in self.layers[:-1]:
            tokens = tokens + sum(head(tokens, tokens[:-1]) for head in heads)
        query = tokens[-1:] + sum(head(tokens[-1:], tokens[:-1]) for head in self.layers[-1])
        return self.readouts @ query[0] / self.scale**0.5

    @classmethod
    def from_rows(cls, network: FieldNetwork, rows: Float[Array, "P d"], scale: float) -> Transformer:
        """The network whose weights are the given rows; a row that is used twice is a tied weight.

        **Arguments**: `network` row numbers; `rows` `(P, d)`; `scale` N = tr Sigma.
        """

        def row(index: int | tuple[int, ...] | None) -> Float[Array, "*r d"] | None:
            return None if index is None else rows[jnp.asarray(index) if isinstance(index, tuple) else index]

        def head(h: Head) -> AttentionHead:
            return AttentionHead(row(h.query), row(h.key), row(h.value), row(h.output), scale)

        layers = tuple(tuple(head(h) for h in heads) for heads in network.layers)
        return cls(layers, rows[jnp.asarray(network.readouts)], scale)

    def write_rows(self, network: FieldNetwork, rows: Float[Array, "P d"]) -> Float[Array, "P d"]:
        """The way back: `rows` with those that `network` uses replaced by this transformer's weights.

        With tied weights that have come apart the last one in the order of layers and readouts is kept.
        """
        for index, weight in self._weights(network):
            rows = rows.at[index].set(weight)
        return rows

    def _weights(self, network: FieldNetwork) -> Iterable[tuple[int, Float[Array, " d"]]]:
        for heads, table in zip(self.layers, network.layers, strict=True):
            for head, numbers in zip(heads, table, strict=True):
                for name in ("query", "key", "value", "output"):
                    indices, weights = each(getattr(numbers, name)), getattr(head, name)
                    if weights is not None:
                        yield from zip(indices, jnp.atleast_2d(weights), strict=True)
        yield from zip(network.readouts, self.readouts, strict=True)
