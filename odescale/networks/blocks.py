r"""Blocks of a finite-rank transformer: attention, MLP, positional vectors, RMS normalisation; and how to write another.

A block is a function of a stream (`odescale.networks.streams`), an `equinox.Module` or any callable: it reads local
fields, mixes tokens and writes rows back, and never sees whether the stream holds fields or d-dimensional vectors. Give a
block of your own the attributes `reads` and `writes` (row names) and it drops what nobody reads; without them all rows of
the network are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.special
from jaxtyping import Array, Float

from odescale.errors import InputError
from odescale.networks.heads import AbstractHead, one_or_more
from odescale.networks.streams import AbstractStream

Block = Callable[[Any], Any]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "erf": lambda x: jax.scipy.special.erf(x / 2**0.5),
    "gelu": lambda x: x * 0.5 * (1 + jax.scipy.special.erf(x / 2**0.5)),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
    "quadratic": lambda x: 0.5 * (x**2 - 1),
}
"""By name: erf(x/sqrt 2), x Phi(x) (exact GELU), max(x, 0), tanh x, x, (x^2 - 1)/2."""


def activation_of(name: str | Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The activation of that name, or the callable itself (elementwise, JAX-traceable)."""
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        raise InputError(
            "activation", expected=f"one of {', '.join(ACTIVATIONS)} or a callable", got=name, remedy="use erf"
        )
    return ACTIVATIONS[name]


@jax.custom_jvp
def _softmax(logits: Float[Array, "*n T"]) -> Float[Array, "*n T"]:
    """softmax over the last axis; da = a (dx - sum a dx) instead of the derivatives of its quotient, which cost twice as much."""
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    return weights * (1 / weights.sum(axis=-1, keepdims=True))


@_softmax.defjvp
def _softmax_slope(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    a, dx = _softmax(*primals), tangents[0]
    share = a * dx
    return a, share - a * share.sum(axis=-1, keepdims=True)


class HeadRows(AbstractHead[str]):
    """score_ts = sum_i phi_q_i,t phi_k_i,s: the rows of one attention head, by name.

    **Arguments**

    - `query`, `key`: one row each (rank one), or r of each as tuples, `HeadRows(("q0", "q1"), ("k0", "k1"))`; None, None: uniform.
    - `value`, `output`: one row each; None, None: value = identity. Heads that name the same rows share them: several heads with
      one `key` (and `value`) are grouped queries, several with one query and key are a head whose value has a higher rank.

    **Errors**: `InputError` for a row without its partner, or for unequal numbers of queries and keys.
    """

    query: str | tuple[str, ...] | None = eqx.field(static=True, converter=one_or_more)
    key: str | tuple[str, ...] | None = eqx.field(static=True, converter=one_or_more)
    value: str | None = eqx.field(static=True, default=None)
    output: str | None = eqx.field(static=True, default=None)


class SelfAttention(eqx.Module):
    r"""h_t <- h_t + sum_heads sum_s a_ts v_s, every token attending to all T tokens, itself included (or to s <= t).

        softmax:  a_ts = exp(score_ts) / sum_s' exp(score_ts')        linear:  a_ts = score_ts / T
        score_ts = sum_i phi_q_i,t phi_k_i,s      over the r (query, key) pairs of the head; phi_qt phi_ks at rank one
        v_s = h_s (value = identity),      or      v_s = A_o phi_vs / sqrt(N) (value and output rows)

    **Arguments**

    - `heads`: rows of each head, see `HeadRows`; a head without query and key averages uniformly.
    - `kind`: "softmax" or "linear" (causal linear attention divides by the number of visible tokens, t).
    - `causal`: attend to s <= t only. `asking`: "all" tokens move, or the "last" alone (others are then gone).
    """

    heads: tuple[HeadRows, ...] = eqx.field(static=True)
    kind: Literal["softmax", "linear"] = eqx.field(static=True, default="softmax")
    causal: bool = eqx.field(static=True, default=False)
    asking: Literal["all", "last"] = eqx.field(static=True, default="all")

    def __check_init__(self) -> None:
        for name, allowed in (("kind", ("softmax", "linear")), ("asking", ("all", "last"))):
            if getattr(self, name) not in allowed:
                raise InputError(
                    name, expected=f"one of {', '.join(allowed)}", got=getattr(self, name), remedy=f"use {allowed[0]}"
                )
        if not self.heads or not all(isinstance(head, HeadRows) for head in self.heads):
            raise InputError("heads", expected="one or more HeadRows", got=self.heads, remedy='HeadRows("q", "k")')

    @property
    def reads(self) -> tuple[str, ...]:
        """Rows whose fields the block reads."""
        return tuple(row for head in self.heads for row in head.reads)

    @property
    def writes(self) -> tuple[str, ...]:
        """Rows that the block adds to tokens."""
        return tuple(head.output for head in self.heads if head.output is not None)

    def weights(self, head: HeadRows, asking: AbstractStream, stream: AbstractStream) -> Float[Array, "n T"]:
        """a_ts of one head, rows t the asking tokens."""
        T = stream.tokens
        position = jnp.arange(T - asking.tokens, T)
        visible = jnp.arange(T)[None, :] <= position[:, None]
        if head.uniform:
            logits = jnp.zeros((asking.tokens, T), asking.read(asking.names[0]).dtype)
        else:
            logits = reduce(add, (asking.read(q)[:, None] * stream.read(k)[None, :] for q, k in head.terms))
            if self.kind == "linear":
                seen = (position[:, None] + 1) if self.causal else T
                return (jnp.where(visible, logits, 0.0) if self.causal else logits) / seen
        if self.causal:
            logits = jnp.where(visible, logits, -jnp.inf)
        return _softmax(logits)

    def __call__(self, stream: AbstractStream) -> AbstractStream:
        asking = stream.last() if self.asking == "last" else stream
        moved = asking
        for head in self.heads:
            a = self.weights(head, asking, stream)
            if head.value is None or head.output is None:
                moved = moved.plus(stream.mix(a))
            else:
                moved = moved.write(head.output, a @ stream.read(head.value))
        return moved


class MLP(eqx.Module):
    """h_t <- h_t + sum_u A_out(u) act(phi_in(u),t) / sqrt(N): units that read one row and write another back.

    **Arguments**

    - `units`: pairs (input row, output row), one per unit. `activation`: a name of `ACTIVATIONS` or a callable.
    """

    units: tuple[tuple[str, str], ...] = eqx.field(static=True)
    activation: str | Callable[[Array], Array] = eqx.field(static=True, default="erf")

    def __check_init__(self) -> None:
        activation_of(self.activation)

    @property
    def reads(self) -> tuple[str, ...]:
        """Input rows."""
        return tuple(read for read, _ in self.units)

    @property
    def writes(self) -> tuple[str, ...]:
        """Output rows."""
        return tuple(write for _, write in self.units)

    def __call__(self, stream: AbstractStream) -> AbstractStream:
        act = activation_of(self.activation)
        amounts = [act(stream.read(read)) for read, _ in self.units]
        for (_, write), amount in zip(self.units, amounts, strict=True):
            stream = stream.write(write, amount)
        return stream


class Positions(eqx.Module):
    """h_t <- h_t + A_p(t) / sqrt(N): one positional row per token (fields move by R_j,p(t)), frozen or trained."""

    rows: tuple[str, ...] = eqx.field(static=True)

    @property
    def reads(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def writes(self) -> tuple[str, ...]:
        """The positional rows."""
        return self.rows

    def __call__(self, stream: AbstractStream) -> AbstractStream:
        if stream.tokens != len(self.rows):
            raise InputError(
                "rows", expected=f"{stream.tokens} positional rows, one per token", got=len(self.rows),
                remedy="give one per token",
            )  # fmt: skip
        dtype = stream.read(stream.names[0]).dtype
        for t, row in enumerate(self.rows):
            stream = stream.write(row, jnp.zeros(stream.tokens, dtype).at[t].set(1.0))
        return stream


class RMSNorm(eqx.Module):
    """h_t <- h_t / sqrt(|h_t|^2/N). As d grows |h_t|^2/N = (M rho M^T)_tt: what the token mixing left of the norm."""

    needs_norm: bool = eqx.field(static=True, default=True)

    @property
    def reads(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def writes(self) -> tuple[str, ...]:
        """None."""
        return ()

    def __call__(self, stream: AbstractStream) -> AbstractStream:
        return stream.scale(1 / jnp.sqrt(stream.mean_square()))


class PreNorm(eqx.Module):
    """h_t <- h_t + (block(n) - n)_t with n = RMSNorm(h): the block reads normalised tokens, the residual stream is kept.

    The block must keep all tokens (`asking="all"`).
    """

    block: Any
    needs_norm: bool = eqx.field(static=True, default=True)

    @property
    def reads(self) -> tuple[str, ...] | None:
        """Those of the block."""
        return getattr(self.block, "reads", None)

    @property
    def writes(self) -> tuple[str, ...] | None:
        """Those of the block."""
        return getattr(self.block, "writes", None)

    def __call__(self, stream: AbstractStream) -> AbstractStream:
        normed = RMSNorm()(stream)
        moved = self.block(normed)
        if moved.tokens != stream.tokens:
            raise InputError("block", expected="a block that keeps all tokens", got=self.block, remedy='asking="all"')
        minus = -jnp.ones(stream.tokens, stream.read(stream.names[0]).dtype)
        return stream.plus(moved).plus(normed.scale(minus))
