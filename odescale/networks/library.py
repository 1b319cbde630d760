"""Networks by name: the `RowNetwork`s that most questions begin with, from a few words.

    f = readout(block_L(... block_1(x))),   fields phi_jt = A_j . x_t / sqrt(N)

Each is put together from `odescale.networks.blocks` and `odescale.networks.readouts`; take one apart, or build beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from odescale.errors import InputError, whole
from odescale.networks.blocks import MLP, HeadRows, Positions, PreNorm, SelfAttention, activation_of
from odescale.networks.heads import each, named_heads
from odescale.networks.readouts import CommitteeReadout, MeanPool, PerToken, QueryToken
from odescale.networks.row_network import RowNetwork

READOUTS = {"query": QueryToken, "per_token": PerToken, "mean_pool": MeanPool}
"""Readouts by name: the last token, every token, the average token."""


def transformer_network(
    *,
    depth: int = 2,
    heads: int = 1,
    rank: int = 1,
    key_value_heads: int | None = None,
    value: str = "identity",
    attention: str = "softmax",
    causal: bool = False,
    mlp: int = 0,
    activation: str | Callable[[Array], Array] = "erf",
    norm: str | None = None,
    positions: bool = False,
    tokens: int | None = None,
    readout: str = "query",
    outputs: int = 1,
) -> RowNetwork:
    r"""h <- x + positions, then `depth` times h <- h + attention(h), h <- h + MLP(h), and f_i = r_i . h / sqrt(N).

    **Arguments**

    - `depth` >= 0 layers, each of `heads` >= 1 attention heads and, with `mlp` >= 1, that many units after them.
      `depth` = 0 is a linear model.
    - `rank` >= 1: query and key rows of a head, whose products add up, score_ts = sum_i phi_q_i,t phi_k_i,s.
    - `key_value_heads`: a divisor of `heads`; so many sets of key (and value) rows, each shared by an equal group of heads
      (grouped queries). None: every head has its own.
    - `value`: "identity" (h_t <- h_t + sum_s a_ts h_s) or "rows" (one value and one output row per head).
    - `attention`: "softmax" or "linear"; `causal`: a token attends to s <= t only, itself included.
    - `activation` of the units: a name of `odescale.networks.blocks.ACTIVATIONS` or a callable.
    - `norm`: None, or "rms": every block reads tokens divided by their root mean square, the residual stream is kept.
    - `positions`: one positional row per token, for which `tokens` T must be given.
    - `readout`: "query" (outputs at the last token), "per_token" (at each) or "mean_pool" (of their average).
    - `outputs` >= 1 readout rows.

    **Returns** a `RowNetwork`. Rows in the order p0 ... (positions), q0, k0 (v0, o0) per head, w0_0, m0_0 (input and output
    row of a unit) per layer, r0 ...; with several heads q0_1 is head 1 of layer 0, above rank one q0r2 is row 2 of its head. In the
    last layer only the last token moves where the readout needs no other (the others change nothing then, and cost).

    **Errors**: `InputError` naming the argument. **Good values**: depth 1 to 4; every row adds T dimensions to the quadrature.
    """
    for name, count, least in (("depth", depth, 0), ("heads", heads, 1), ("mlp", mlp, 0), ("outputs", outputs, 1)):
        whole(name, count, least)
    _choice("value", value, ("identity", "rows"))
    _choice("attention", attention, ("softmax", "linear"))
    _choice("norm", norm, (None, "rms"))
    _choice("readout", readout, tuple(READOUTS))
    for name, flag in (("causal", causal), ("positions", positions)):
        if not isinstance(flag, bool):
            raise InputError(name, expected="True or False", got=flag, remedy="pass a flag")
    activation_of(activation)
    if positions and tokens is None:
        raise InputError("tokens", expected="an integer >= 1 with positions", got=None, remedy="pass tokens=T")
    if tokens is not None:
        whole("tokens", tokens, 1)
    rows: list[str] = []

    def add(*names: str) -> tuple[str, ...]:
        rows.extend(name for name in names if name not in rows)  # what several heads share stands once
        return names

    blocks: list[Any] = []
    if positions:
        blocks.append(Positions(add(*(f"p{t}" for t in range(int(tokens or 0))))))
    for layer in range(int(depth)):
        # Normalised blocks hand all tokens on; so does every layer whose successor or readout reads them.
        last = layer == depth - 1 and readout == "query" and norm is None
        which = []
        for query, key, read, write in named_heads(
            layer, int(heads), rank=rank, key_value_heads=key_value_heads, value=value
        ):
            add(*query, *key, *each(read), *each(write))
            which.append(HeadRows(query, key, read, write))
        blocks.append(SelfAttention(tuple(which), attention, causal, "last" if last else "all"))  # type: ignore[arg-type]
        if mlp:
            units = tuple(add(f"w{layer}_{unit}", f"m{layer}_{unit}") for unit in range(int(mlp)))
            blocks.append(MLP(tuple((read, write) for read, write in units), activation))
    if norm == "rms":
        blocks = [block if isinstance(block, Positions) else PreNorm(block) for block in blocks]
    return RowNetwork(tuple(rows + [f"r{i}" for i in range(int(outputs))]), tuple(blocks),
                      READOUTS[readout](tuple(f"r{i}" for i in range(int(outputs)))))  # fmt: skip


def committee_network(
    units: int = 2, activation: str | Callable[[Array], Array] = "erf", *, weight: float = 1.0
) -> RowNetwork:
    """f = weight sum_u act(w_u . x_T / sqrt(N)): a soft committee machine, one layer of `units` with equal output weights.

    **Arguments**: `units` >= 1; `activation`: a name of `ACTIVATIONS` or a callable; `weight`: a finite number, 1 in the source.
    Rows w0, w1, ... Source: Saad & Solla, Phys. Rev. E 52, 4225 (1995).
    """
    whole("units", units, 1)
    activation_of(activation)
    if isinstance(weight, (bool, str)) or not abs(weight) < float("inf"):
        raise InputError("weight", expected="a finite number", got=weight, remedy="1 is Saad and Solla's")
    rows = tuple(f"w{u}" for u in range(int(units)))
    return RowNetwork(rows, (), CommitteeReadout(rows, activation, float(weight)))


def _choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise InputError(name, expected=f"one of {', '.join(map(str, allowed))}", got=value, remedy=f"use {allowed[0]}")
