"""A decoder-only softmax transformer over tokens: the real network of language-model training, as equinox modules."""

from __future__ import annotations

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from odescale.errors import InputError
from odescale.networks.blocks import activation_of

EPSILON = 1e-6  # under the root of a norm: far below the mean square of any token that training meets
ROTARY_BASE = 1e4


class TokenNorm(eqx.Module):
    r"""n_i = g_i u_i/sqrt(mean_j u_j^2 + 1e-6), u = h ("rms") or u = h - mean h ("layer"); g = 1 when `gain` is None.

    **Arguments**: `gain` (width,) or None; `kind` "rms" or "layer". There is no shift: the next linear map has none either.
    """

    gain: Float[Array, " width"] | None
    kind: Literal["rms", "layer"] = eqx.field(static=True, default="rms")

    def __check_init__(self) -> None:
        if self.kind not in ("rms", "layer"):
            raise InputError("norm", expected='"rms" or "layer"', got=self.kind, remedy="use rms")

    def __call__(self, h: Float[Array, "... width"]) -> Float[Array, "... width"]:
        if self.kind == "layer":
            h = h - h.mean(axis=-1, keepdims=True)
        n = h * jax.lax.rsqrt(jnp.mean(h**2, axis=-1, keepdims=True) + EPSILON)
        return n if self.gain is None else self.gain * n


class CausalAttention(eqx.Module):
    r"""o_t = W_o concat_heads sum_{s<=t} softmax_s(q_t . k_s/sqrt(width/heads)) v_s,  q, k, v = W_q n, W_k n, W_v n.

    **Arguments**: `query`, `key`, `value`, `output` (width, width), rows are outputs; `heads` divides the width;
    `rotary`: turn the pairs (i, i + half) of each head's q and k by the angle position * 10000^(-i/half).
    """

    query: Float[Array, "width width"]
    key: Float[Array, "width width"]
    value: Float[Array, "width width"]
    output: Float[Array, "width width"]
    heads: int = eqx.field(static=True)
    rotary: bool = eqx.field(static=True, default=False)

    def __call__(self, n: Float[Array, "T width"]) -> Float[Array, "T width"]:
        T, width = n.shape
        q, k, v = (
            (n @ weight.T).reshape(T, self.heads, width // self.heads) for weight in (self.query, self.key, self.value)
        )
        if self.rotary:
            q, k = rotate(q), rotate(k)
        scores = jnp.einsum("thi,shi->hts", q, k) * (width // self.heads) ** -0.5
        visible = jnp.tril(jnp.ones((T, T), bool))
        weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
        return jnp.einsum("hts,shi->thi", weights, v).reshape(T, width) @ self.output.T


def rotate(x: Float[Array, "T heads size"]) -> Float[Array, "T heads size"]:
    """Pairs (x_i, x_{i + half}) turned by position * 10000^(-i/half): products depend on the difference of positions only."""
    T, _, size = x.shape
    half = size // 2
    # Angles in double precision on the host: they are constants of the compiled network.
    angles = np.arange(T)[:, None] * ROTARY_BASE ** (-np.arange(half) / half)
    cos, sin = (jnp.asarray(f(angles), x.dtype)[:, None, :] for f in (np.cos, np.sin))
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


class DecoderBlock(eqx.Module):
    """h <- h + attention(norm h), then h <- h + W_2 act(W_1 norm h): pre-norm, no biases, W_1 (hidden, width)."""

    attention_norm: TokenNorm
    attention: CausalAttention
    mlp_norm: TokenNorm
    rise: Float[Array, "hidden width"]
    fall: Float[Array, "width hidden"]
    activation: str = eqx.field(static=True, default="gelu")

    def __call__(self, h: Float[Array, "T width"]) -> Float[Array, "T width"]:
        h = h + self.attention(self.attention_norm(h))
        return h + activation_of(self.activation)(self.mlp_norm(h) @ self.rise.T) @ self.fall.T


class LanguageModel(eqx.Module):
    r"""lam_t = W norm(block_L(... block_1(h))_t),  h_t = E[x_t] + P[t]:  next-token logits at every position, causal.

    A pre-norm decoder with untied embedding E and unembedding W, no biases. p(x_{t+1} = k | x_1..x_t) = softmax(lam_t)_k.

    **Arguments**

    - `vocabulary`: V >= 2 tokens. `width`, `depth` >= 1, `heads` dividing the width, `context`: longest sequence T >= 1.
    - `positions`: "learned" (a row of P per position) or "rotary" (an even width per head; P is absent).
    - `norm`: "rms" or "layer". `mlp_ratio`: hidden units of the MLP per unit of width, > 0. `activation`: by name.
    - `gains`: whether norms carry a trained gain. **Without**, features have root mean square one and the logit scale sits in
      W alone, the case of the one-third law; a gain multiplies W and makes the logits of degree two in the parameters.
    - `key`: of the weights. `dtype`: float32, or float64 with 64-bit numbers on.

    Start: E, P ~ N(0, 1); matrices N(0, 1/fan-in), those that write to the residual stream divided by sqrt(2 depth); W = 0,
    so that training starts from uniform predictions and logit scale 0.

    **Errors**: `InputError` for a bad size, before an array is made; tokens longer than `context` or not one-dimensional.

    **Good values**: width 32 to 128, depth 2, heads 4, context 16 to 256: a CPU trains it in minutes. **Failure regime**:
    rotary positions do not extrapolate beyond the trained length; tokens outside 0..V-1 are clipped by JAX, not refused.
    """

    embedding: Float[Array, "V width"]
    position_rows: Float[Array, "context width"] | None
    blocks: tuple[DecoderBlock, ...]
    norm: TokenNorm
    unembedding: Float[Array, "V width"]
    context: int = eqx.field(static=True)

    def __init__(
        self,
        vocabulary: int,
        width: int,
        depth: int,
        heads: int,
        context: int,
        *,
        positions: Literal["learned", "rotary"] = "learned",
        norm: Literal["rms", "layer"] = "rms",
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        gains: bool = True,
        key: Key[Array, ""],
        dtype: Any = jnp.float32,
    ) -> None:
        _check_sizes(
            vocabulary=(vocabulary, 2), width=(width, 1), depth=(depth, 1), heads=(heads, 1), context=(context, 1)
        )
        if width % heads:
            raise InputError("heads", expected=f"a divisor of width = {width}", got=heads, remedy="e.g. heads = 4")
        if positions not in ("learned", "rotary"):
            raise InputError("positions", expected='"learned" or "rotary"', got=positions, remedy="use learned")
        if positions == "rotary" and (width // heads) % 2:
            raise InputError("heads", expected="an even width per head for rotary positions", got=width // heads,
                             remedy="change width or heads, or use learned positions")  # fmt: skip
        if not (np.isfinite(mlp_ratio) and round(mlp_ratio * width) >= 1):
            raise InputError("mlp_ratio", expected="a positive number", got=mlp_ratio, remedy="4 is a good value")
        activation_of(activation)
        hidden = round(mlp_ratio * width)
        keys = jax.random.split(key, 2 + 6 * depth)

        def normal(key: Array, rows: int, columns: int, scale: float) -> Array:
            return scale * jax.random.normal(key, (rows, columns), dtype)

        def token_norm() -> TokenNorm:
            return TokenNorm(jnp.ones(width, dtype) if gains else None, norm)

        def block(keys: Array) -> DecoderBlock:
            inner, residual = width**-0.5, (2 * depth) ** -0.5
            query, key, value = (normal(k, width, width, inner) for k in keys[:3])
            output = normal(keys[3], width, width, inner * residual)
            attention = CausalAttention(query, key, value, output, heads, positions == "rotary")
            rise, fall = normal(keys[4], hidden, width, inner), normal(keys[5], width, hidden, hidden**-0.5 * residual)
            return DecoderBlock(token_norm(), attention, token_norm(), rise, fall, activation)

        self.embedding = normal(keys[0], vocabulary, width, 1.0)
        self.position_rows = normal(keys[1], context, width, 1.0) if positions == "learned" else None
        self.blocks = tuple(block(keys[2 + 6 * layer : 8 + 6 * layer]) for layer in range(depth))
        self.norm = token_norm()
        self.unembedding = jnp.zeros((vocabulary, width), dtype)
        self.context = context

    @property
    def vocabulary(self) -> int:
        """V, the number of tokens."""
        return self.unembedding.shape[0]

    @property
    def width(self) -> int:
        """Numbers per token in the residual stream."""
        return self.unembedding.shape[1]

    def features(self, tokens: Int[Array, " T"]) -> Float[Array, "T width"]:
        """What the unembedding reads at each of the T <= context positions; root mean square 1 without gains."""
        if tokens.ndim != 1 or not 1 <= tokens.shape[0] <= self.context:
            raise InputError(
                "tokens", expected=f"one sequence of 1 to {self.context} tokens", got=tokens.shape,
                remedy="cut it; use jax.vmap for a batch",
            )  # fmt: skip
        h = self.embedding[tokens]
        if self.position_rows is not None:
            h = h + self.position_rows[: tokens.shape[0]]
        for block in self.blocks:
            h = block(h)
        return self.norm(h)

    def __call__(self, tokens: Int[Array, " T"]) -> Float[Array, "T V"]:
        """Logits (T, V) of the next token after each of the T <= context tokens; those at t read tokens 0..t only."""
        return self.features(tokens) @ self.unembedding.T


def _check_sizes(**sizes: tuple[int, int]) -> None:
    for name, (value, least) in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InputError(name, expected=f"an integer >= {least}", got=value, remedy=f"pass {least} or more")
