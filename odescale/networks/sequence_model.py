"""A pre-norm transformer from sequences of vectors to sequences of vectors, of any width and depth, and its lazy version."""

from __future__ import annotations

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from odescale.errors import InputError
from odescale.networks.blocks import activation_of
from odescale.networks.language_model import EPSILON

PARAMETERISATIONS = ("ntk", "standard", "mean_field")


class ScaledLinear(eqx.Module):
    r"""y = s W x, W (outputs, inputs); `scale` s is a constant of the network, never trained."""

    weight: Float[Array, "outputs inputs"]
    scale: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        return self.scale * (x @ self.weight.T)


class SequenceBlock(eqx.Module):
    r"""h <- h + b attention(norm h), then h <- h + b W_2 act(W_1 norm h), b = (2 depth)^(-1/2): pre-norm, no biases.

    attention_t = W_o concat_heads sum_{s visible} softmax_s(q_t . k_s / head_size^(1/2)) v_s, `heads` of equal size.
    """

    query: ScaledLinear
    key: ScaledLinear
    value: ScaledLinear
    output: ScaledLinear
    rise: ScaledLinear
    fall: ScaledLinear
    heads: int = eqx.field(static=True)
    branch: float = eqx.field(static=True)
    causal: bool = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def __call__(self, h: Float[Array, "T width"]) -> Float[Array, "T width"]:
        h = h + self.branch * self._attend(layer_norm(h))
        return h + self.branch * self.fall(activation_of(self.activation)(self.rise(layer_norm(h))))

    def _attend(self, n: Float[Array, "T width"]) -> Float[Array, "T width"]:
        T, width = n.shape
        size = width // self.heads
        q, k, v = (f(n).reshape(T, self.heads, size) for f in (self.query, self.key, self.value))
        scores = jnp.einsum("thi,shi->hts", q, k) * size**-0.5
        if self.causal:
            scores = jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -jnp.inf)
        return self.output(jnp.einsum("hts,shi->thi", jax.nn.softmax(scores, axis=-1), v).reshape(T, width))


def layer_norm(h: Float[Array, "... width"]) -> Float[Array, "... width"]:
    """(h - mean h)/sqrt(var h + 1e-6) over the last axis, without gain or shift."""
    h = h - h.mean(axis=-1, keepdims=True)
    return h * jax.lax.rsqrt(jnp.mean(h**2, axis=-1, keepdims=True) + EPSILON)


class SequenceTransformer(eqx.Module):
    r"""f(x)_t = c W norm(block_L(... block_1(E x + P))_t),  x (T, inputs) -> f (T, outputs): pre-norm attention + MLP.

    A sequence-to-sequence transformer whose tangent kernel has a limit at infinite width.

    **Arguments**

    - `inputs`, `outputs` >= 1: entries of a token and of an output. `context` T >= 1: tokens of every sequence.
    - `width`, `depth` >= 1, `head_size` dividing the width: heads = width/head_size, so that their number grows with the width.
      `heads` instead fixes their number; the attention scores then move by O(1) at any width, however wide the network, and its
      kernel never freezes.
    - `parameterisation`: with W ~ N(0, 1) and y = W x/fan_in^(1/2), "ntk": c = 1, a kernel of order one at any width.
      "mean_field": c = width^(-1/2) more, kernel and initial output of order 1/width and width^(-1/2): with the learning rate
      multiplied by the width, features move at any width. "standard": W ~ N(0, 1/fan_in), y = W x: kernel of order width.
    - `causal`: position t reads 0..t only. `mlp_ratio` > 0: hidden units per unit of width. `activation`: by name.
    - `key`: of the weights. `dtype`: float64 by default (64-bit numbers on).

    **Errors**: `InputError` for a bad size, before an array is made, and for a sequence of another shape.

    **Good values**: width 32 to 256, depth 2 or 3, head_size 8. **Failure regime** of its kernel: narrow, large steps; see
    `odescale.compare.kernel`. Source: Jacot, Gabriel & Hongler, arXiv 1806.07572; Hron et al., arXiv 2006.10540 (attention).
    """

    embedding: ScaledLinear
    position_rows: Float[Array, "context width"]
    blocks: tuple[SequenceBlock, ...]
    readout: ScaledLinear

    def __init__(
        self,
        inputs: int,
        outputs: int,
        context: int,
        *,
        width: int = 64,
        depth: int = 2,
        head_size: int = 8,
        heads: int | None = None,
        parameterisation: Literal["ntk", "standard", "mean_field"] = "ntk",
        causal: bool = True,
        mlp_ratio: float = 2.0,
        activation: str = "gelu",
        key: Key[Array, ""],
        dtype: Any = jnp.float64,
    ) -> None:
        sizes = {"inputs": inputs, "outputs": outputs, "context": context, "width": width, "depth": depth}
        sizes |= {"head_size": head_size} if heads is None else {"heads": heads}
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise InputError(name, expected="an integer >= 1", got=value, remedy="see the good values")
        count = width // head_size if heads is None else heads
        if count == 0 or width % count or (heads is None and width % head_size):
            raise InputError(
                "head_size" if heads is None else "heads", expected=f"a divisor of width = {width}",
                got=head_size if heads is None else heads, remedy="e.g. head_size = 8",
            )  # fmt: skip
        if parameterisation not in PARAMETERISATIONS:
            raise InputError(
                "parameterisation",
                expected=f"one of {', '.join(PARAMETERISATIONS)}",
                got=parameterisation,
                remedy="use ntk",
            )
        if not (np.isfinite(mlp_ratio) and round(mlp_ratio * width) >= 1):
            raise InputError("mlp_ratio", expected="a positive number", got=mlp_ratio, remedy="2 is a good value")
        activation_of(activation)
        hidden = round(mlp_ratio * width)
        keys = jax.random.split(key, 3 + 6 * depth)

        def linear(key: Array, rows: int, columns: int, extra: float = 1.0) -> ScaledLinear:
            inside, outside = (columns**-0.5, 1.0) if parameterisation == "standard" else (1.0, columns**-0.5)
            return ScaledLinear(inside * jax.random.normal(key, (rows, columns), dtype), outside * extra)

        def block(keys: Array) -> SequenceBlock:
            query, key, value, output = (linear(k, width, width) for k in keys[:4])
            rise, fall = linear(keys[4], hidden, width), linear(keys[5], width, hidden)
            branch = (2 * depth) ** -0.5
            return SequenceBlock(query, key, value, output, rise, fall, count, branch, causal, activation)

        self.embedding = linear(keys[0], width, inputs)
        self.position_rows = jax.random.normal(keys[1], (context, width), dtype)
        self.blocks = tuple(block(keys[3 + 6 * layer : 9 + 6 * layer]) for layer in range(depth))
        self.readout = linear(keys[2], outputs, width, width**-0.5 if parameterisation == "mean_field" else 1.0)

    def __call__(self, x: Float[Array, "T inputs"]) -> Float[Array, "T outputs"]:
        """Outputs (T, outputs) of one sequence; `jax.vmap` for a batch."""
        expected = (self.position_rows.shape[0], self.embedding.weight.shape[1])
        if x.shape != expected:
            raise InputError("x", expected=f"one sequence {expected}", got=x.shape, remedy="use jax.vmap for a batch")
        h = self.embedding(x) + self.position_rows
        for block in self.blocks:
            h = block(h)
        return self.readout(layer_norm(h))


class LazyNetwork(eqx.Module):
    r"""F(x) = alpha (f(x; theta) - f(x; theta_0)), or alpha f(x; theta) when not centred: lazy training by output scale.

    The tangent kernel of F is alpha^2 that of f: with the learning rate divided by alpha^2 the frozen-kernel dynamics of a
    centred F is that of f, while the weights, and with them the drift of the kernel, move alpha times less.

    **Fields**: `network` f; `initial` f at theta_0, never trained, or None; `scale` alpha > 0. Build it with `lazy`.

    Source: Chizat, Oyallon & Bach, arXiv 1812.07956.
    """

    network: eqx.Module
    initial: eqx.Module | None
    scale: Float[Array, ""]

    def __call__(self, x: Array) -> Array:
        output = self.network(x)  # pyright: ignore[reportCallIssue]
        if self.initial is not None:
            output = output - self.initial(x)  # pyright: ignore[reportCallIssue]
        return self.scale * output


def lazy_network(network: eqx.Module, scale: float = 1.0, *, centred: bool = True) -> LazyNetwork:
    """F = scale (f - f at the start), `centred` or not; divide the learning rate by scale^2 to keep the speed in function space.

    **Raises** `InputError` for a scale that is not a positive finite number. Good values: 1 to 30.
    """
    if not (isinstance(scale, int | float | np.number) and np.isfinite(scale) and scale > 0):
        raise InputError(
            "scale", expected="a positive finite number", got=scale, remedy="1 leaves the network as it is"
        )
    return LazyNetwork(network, network if centred else None, jnp.asarray(scale, dtype=float))


def trainable(network: PyTree) -> PyTree:
    """Filter (a tree of booleans) of what gradient descent moves: every inexact array, of a `LazyNetwork` those of `network`."""
    spec = jax.tree.map(eqx.is_inexact_array, network)
    if isinstance(network, LazyNetwork):
        frozen = jax.tree.map(lambda _: False, network.initial)
        spec = eqx.tree_at(lambda n: (n.initial, n.scale), spec, (frozen, False), is_leaf=lambda x: x is None)
    return spec
