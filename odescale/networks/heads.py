r"""What a head of rank r is, whether its rows have names (blocks) or numbers (architecture).

    score_ts = sum_i (q_i . h_t)(k_i . h_s) / N,   i = 1 ... r         rank one: (q . h_t)(k . h_s) / N

Heads that name the same key, value or output rows share these weights: grouped queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import equinox as eqx

from odescale.errors import InputError, whole

Row = TypeVar("Row", str, int)


def one_or_more(rows: Row | tuple[Row, ...] | None) -> Row | tuple[Row, ...] | None:
    """A row, several as a tuple, or None; a tuple of one is that row, so that rank one is written in one way only."""
    if not isinstance(rows, (tuple, list)):
        return rows
    return rows[0] if len(rows) == 1 else tuple(rows)


def each(rows: Row | tuple[Row, ...] | None) -> tuple[Row, ...]:
    """The rows as a tuple; () for None."""
    if rows is None:
        return ()
    return rows if isinstance(rows, tuple) else (rows,)


class AbstractHead(eqx.Module, Generic[Row]):
    """Query and key rows of a head, as many keys as queries, and its value and output row; None where it has none."""

    query: eqx.AbstractVar[Row | tuple[Row, ...] | None]
    key: eqx.AbstractVar[Row | tuple[Row, ...] | None]
    value: eqx.AbstractVar[Row | None]
    output: eqx.AbstractVar[Row | None]

    def __check_init__(self) -> None:
        for first, second in (("query", "key"), ("value", "output")):
            if (getattr(self, first) is None) != (getattr(self, second) is None):
                raise InputError(
                    second, expected=f"{first} and {second} both rows or both None", got=getattr(self, second),
                    remedy="give both",
                )  # fmt: skip
        queries, keys = each(self.query), each(self.key)
        if len(queries) != len(keys) or (self.query is not None and not queries):
            raise InputError(
                "key", expected=f"one key row for each of {len(queries) or 'one or more'} query rows", got=self.key,
                remedy="the rank of a head is the number of its (query, key) pairs; None for both is a uniform head",
            )  # fmt: skip

    @property
    def terms(self) -> tuple[tuple[Row, Row], ...]:
        """(query, key) of each product in the score; () for a uniform head."""
        return tuple(zip(each(self.query), each(self.key), strict=True))

    @property
    def rank(self) -> int:
        """r, the number of products in the score; 0 for a uniform head."""
        return len(self.terms)

    @property
    def uniform(self) -> bool:
        """True when the head averages uniformly (no query row)."""
        return self.query is None

    @property
    def reads(self) -> tuple[Row, ...]:
        """Rows whose fields the head reads: queries, keys, value."""
        return (*each(self.query), *each(self.key), *each(self.value))


def named_heads(
    layer: int, heads: int, *, rank: int = 1, key_value_heads: int | None = None, value: str = "identity"
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str | None, str | None]]:
    """(query rows, key rows, value row, output row) of each head of a layer, in the names of the named networks.

    q0, k0, v0, o0 in layer 0; q0_1 of its head 1, k0_1 of its set 1 of shared rows; q0r2 is row 2 of a head of higher rank.

    **Arguments**: `rank` >= 1; `key_value_heads` g, a divisor of `heads` (None: `heads`): heads in g equal groups, each with one
    set of key rows and, with `value` "rows", one value row; query and output rows are a head's own.

    **Errors**: `InputError` naming the argument.
    """
    whole("rank", rank, 1)
    groups = heads if key_value_heads is None else whole("key_value_heads", key_value_heads, 1)
    if heads % groups:
        raise InputError(
            "key_value_heads", expected=f"a divisor of heads = {heads}", got=groups, remedy="equal groups share rows"
        )

    def rows(role: str, number: int, of: int) -> tuple[str, ...]:
        stem = f"{role}{layer}" + ("" if of == 1 else f"_{number}")
        return (stem,) if rank == 1 else tuple(f"{stem}r{i}" for i in range(rank))

    for head in range(heads):
        group = head // (heads // groups)
        both = value == "rows"
        yield (
            rows("q", head, heads),
            rows("k", group, groups),
            f"v{layer}" + ("" if groups == 1 else f"_{group}") if both else None,
            f"o{layer}" + ("" if heads == 1 else f"_{head}") if both else None,
        )
