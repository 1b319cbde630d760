"""A transformer whose weights are rows: one description, evaluated on local fields or on d-dimensional tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.errors import InputError
from odescale.networks.readouts import FunctionOfFields
from odescale.networks.streams import AbstractStream, FieldStream, VectorStream


class RowNetwork(eqx.Module):
    r"""f = readout(block_L(... block_1(h))), h_t = x_t: a function of the fields phi_jt = A_j . x_t/sqrt(N) and of R = A A^T/N.

    **Arguments**

    - `rows`: p names of the weights, each a vector of d numbers.
    - `blocks`: callables from stream to stream, in order (`odescale.networks.blocks`, or your own).
    - `readout`: from stream to outputs (positions, K) (`odescale.networks.readouts`, or your own).

    **Errors**: `InputError` for a row that a block or the readout names and `rows` lacks.

    `on_fields` is what the theory integrates, `real(weights, N)` the equinox network that SGD trains: the same blocks.
    """

    rows: tuple[str, ...] = eqx.field(static=True)
    blocks: tuple[Any, ...]
    readout: Any

    def __check_init__(self) -> None:
        if not self.rows or len(set(self.rows)) != len(self.rows):
            raise InputError("rows", expected="distinct row names", got=self.rows, remedy="name every weight once")
        for part in (*self.blocks, self.readout):
            if not callable(part):
                raise InputError("blocks", expected="callables on a stream", got=part, remedy="see networks.blocks")
            for row in (*(getattr(part, "reads", None) or ()), *(getattr(part, "writes", None) or ())):
                if row not in self.rows:
                    raise InputError(
                        "rows", expected=f"every row that {type(part).__name__} uses", got=f"{row} missing",
                        remedy=f"add {row!r}",
                    )  # fmt: skip

    @classmethod
    def from_function(cls, rows: tuple[str, ...], function: Callable[[Array], Array]) -> RowNetwork:
        """The network f = function(phi), phi `(T, p)` the fields of `rows` on all tokens: the plain-function route."""
        return cls(tuple(rows), (), FunctionOfFields(tuple(rows), function))

    @property
    def writes_back(self) -> bool:
        """True when a block may write through a row, so that the overlaps R with metric I enter."""
        # A block that does not say what it writes might write anything.
        return any(getattr(block, "writes", None) is None or len(block.writes) > 0 for block in self.blocks)

    @property
    def needs_norm(self) -> bool:
        """True when a block reads the norm of a token."""
        return any(getattr(block, "needs_norm", False) for block in self.blocks)

    @property
    def only_written(self) -> tuple[str, ...]:
        """Rows that a block writes and nothing reads: output and positional rows. A part that does not say it reads all."""
        reads = [getattr(part, "reads", None) for part in (*self.blocks, self.readout)]
        if any(names is None for names in reads):
            return ()
        read = {row for names in reads for row in names or ()}
        written = {row for block in self.blocks for row in getattr(block, "writes", None) or ()}
        return tuple(row for row in self.rows if row in written - read)

    def _apply(self, stream: AbstractStream) -> Float[Array, "n K"]:
        for number, block in enumerate(self.blocks):
            needed = self._needed_from(number)
            stream = block(stream if needed is None else stream.restrict(needed))
        return self.readout(stream)

    def _needed_from(self, number: int) -> tuple[str, ...] | None:
        """Rows read or written by block `number` and everything after it; None when some part does not say."""
        used: set[str] = set()
        for part in (*self.blocks[number:], self.readout):
            reads, writes = getattr(part, "reads", None), getattr(part, "writes", ())
            if reads is None or writes is None:
                return None
            used.update(reads)
            used.update(writes)
        return tuple(row for row in self.rows if row in used)

    def on_fields(
        self, phi: Float[Array, "T p"], R: Float[Array, "p p"], correlation: Real[ArrayLike, "T T"] | None = None
    ) -> Float[Array, "n K"]:
        """Outputs from the local fields, as d -> infinity (exact at any d for networks that read no norms).

        **Arguments**: `phi` (T, p) fields in the order of `rows`; `R` (p, p) overlaps with metric I (read only by blocks
        that write back); `correlation` rho (T, T) of the tokens (read only where norms are; default: independent).
        """
        mixing = rho = None
        if self.needs_norm:
            mixing = jnp.eye(phi.shape[0], dtype=phi.dtype)
            rho = mixing if correlation is None else jnp.asarray(correlation, phi.dtype)
        return self._apply(FieldStream(fields=phi, row_overlaps=R, mixing=mixing, correlation=rho, names=self.rows))

    def real(self, weights: Float[Array, "p d"], trace: float) -> TokenNetwork:
        """The d-dimensional network with these weights; `trace` N = tr Sigma (d for isotropic tokens)."""
        return TokenNetwork(self, weights, trace)


class TokenNetwork(eqx.Module):
    """The real network: f(x) for T tokens of d numbers, differentiable in `weights` (p, d); made by `RowNetwork.real`."""

    network: RowNetwork
    weights: Float[Array, "p d"]
    trace: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        if self.weights.ndim != 2 or self.weights.shape[0] != len(self.network.rows):
            raise InputError(
                "weights", expected=f"shape ({len(self.network.rows)}, d), one per row", got=self.weights.shape,
                remedy="stack the rows in the order of network.rows",
            )  # fmt: skip
        if not self.trace > 0:
            raise InputError("trace", expected="a positive number (tr Sigma)", got=self.trace, remedy="pass d")

    def __call__(self, tokens: Float[Array, "T d"]) -> Float[Array, "n K"]:
        stream = VectorStream(vectors=tokens, rows=self.weights, trace=self.trace, names=self.network.rows)
        return self.network._apply(stream)
