r"""Hidden tokens as blocks see them: through their local fields alone, or as vectors of length d. One code for both.

    read(j):        s_t = A_j . h_t / sqrt(N)                            fields: phi_jt
    mix(a):         h_t <- sum_s a_ts h_s                                fields: phi_jt <- sum_s a_ts phi_js
    write(o, s):    h_t <- h_t + A_o s_t / sqrt(N)                       fields: phi_jt <- phi_jt + R_jo s_t
    mean_square:    |h_t|^2 / N                                          fields: (M rho M^T)_tt, exact as d -> infinity

A_j are the rows (weights) of a network, N = tr Sigma, R = A A^T/N their overlaps with metric I. A finite-rank network does
nothing else to its tokens, so a block written with these four operations is at once a function of local fields, for the
mean-field theory, and a layer of a real network. M collects what `mix` and `scale` did, h_t = sum_s M_ts x_s + rows.
"""

from __future__ import annotations

import abc
from typing import TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from odescale.errors import InputError

Stream = TypeVar("Stream", bound="AbstractStream")


class AbstractStream(eqx.Module):
    """T hidden tokens h_t with the operations of the module's docstring; rows are addressed by name."""

    names: eqx.AbstractVar[tuple[str, ...]]

    @property
    @abc.abstractmethod
    def tokens(self) -> int:
        """T, how many tokens the stream holds."""

    @abc.abstractmethod
    def read(self, row: str) -> Float[Array, " T"]:
        """A_row . h_t / sqrt(N), the local field of a row on every token."""

    @abc.abstractmethod
    def mix(self: Stream, weights: Float[Array, "n T"]) -> Stream:
        """n new tokens sum_s weights_ts h_s."""

    @abc.abstractmethod
    def write(self: Stream, row: str, amounts: Float[Array, " T"]) -> Stream:
        """h_t + A_row amounts_t / sqrt(N)."""

    @abc.abstractmethod
    def scale(self: Stream, factors: Float[Array, " T"]) -> Stream:
        """factors_t h_t."""

    @abc.abstractmethod
    def mean_square(self) -> Float[Array, " T"]:
        """|h_t|^2/N."""

    @abc.abstractmethod
    def plus(self: Stream, other: Stream) -> Stream:
        """h_t + other_t."""

    @abc.abstractmethod
    def last(self: Stream) -> Stream:
        """The last token alone."""

    @abc.abstractmethod
    def restrict(self: Stream, rows: tuple[str, ...]) -> Stream:
        """The same tokens where only these rows will be read or written: lets fields that nobody needs be dropped."""


def _column(names: tuple[str, ...], row: str) -> int:
    if row not in names:
        raise InputError("row", expected=f"one of {', '.join(names)}", got=row, remedy="add it to the network's rows")
    return names.index(row)


class FieldStream(AbstractStream):
    """Tokens through their local fields: what the mean-field theory integrates over.

    - `fields` (T, p): phi_t of the rows `names`. `row_overlaps` (p, p): R of these rows.
    - `mixing` (T, T0) and `correlation` (T0, T0): M and rho; both None where no block asks for the norm of a token.
    """

    fields: Float[Array, "T p"]
    row_overlaps: Float[Array, "p p"]
    mixing: Float[Array, "T T0"] | None
    correlation: Float[Array, "T0 T0"] | None
    names: tuple[str, ...] = eqx.field(static=True)

    @property
    def tokens(self) -> int:
        return self.fields.shape[0]

    def _with(self, fields: Array, mixing: Array | None) -> FieldStream:
        return FieldStream(
            fields=fields, row_overlaps=self.row_overlaps, mixing=mixing, correlation=self.correlation, names=self.names
        )

    def read(self, row: str) -> Float[Array, " T"]:
        return self.fields[:, _column(self.names, row)]

    def mix(self, weights: Float[Array, "n T"]) -> FieldStream:
        return self._with(weights @ self.fields, None if self.mixing is None else weights @ self.mixing)

    def write(self, row: str, amounts: Float[Array, " T"]) -> FieldStream:
        reach = self.row_overlaps[_column(self.names, row)]
        return self._with(self.fields + amounts[:, None] * reach[None, :], self.mixing)

    def scale(self, factors: Float[Array, " T"]) -> FieldStream:
        mixing = None if self.mixing is None else factors[:, None] * self.mixing
        return self._with(factors[:, None] * self.fields, mixing)

    def mean_square(self) -> Float[Array, " T"]:
        if self.mixing is None or self.correlation is None:
            raise InputError(
                "needs_norm", expected="True on the block that reads mean_square", got=False,
                remedy="give the block an attribute needs_norm = True",
            )  # fmt: skip
        return jnp.sum((self.mixing @ self.correlation) * self.mixing, axis=1)

    def plus(self, other: FieldStream) -> FieldStream:
        mixing = None if self.mixing is None or other.mixing is None else self.mixing + other.mixing
        return self._with(self.fields + other.fields, mixing)

    def last(self) -> FieldStream:
        return self._with(self.fields[-1:], None if self.mixing is None else self.mixing[-1:])

    def restrict(self, rows: tuple[str, ...]) -> FieldStream:
        columns = [_column(self.names, row) for row in rows]
        if rows == self.names:
            return self
        R = self.row_overlaps[jnp.asarray(columns)][:, jnp.asarray(columns)]
        picked = jnp.stack([self.fields[:, column] for column in columns], axis=1)
        return FieldStream(fields=picked, row_overlaps=R, mixing=self.mixing, correlation=self.correlation, names=rows)


class VectorStream(AbstractStream):
    """Tokens as vectors of length d beside the rows: what a real network computes with.

    - `vectors` (T, d), `rows` (p, d), `trace` = N = tr Sigma (d for isotropic tokens).
    """

    vectors: Float[Array, "T d"]
    rows: Float[Array, "p d"]
    trace: float = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)

    @property
    def tokens(self) -> int:
        return self.vectors.shape[0]

    def _with(self, vectors: Array) -> VectorStream:
        return VectorStream(vectors=vectors, rows=self.rows, trace=self.trace, names=self.names)

    def read(self, row: str) -> Float[Array, " T"]:
        return self.vectors @ self.rows[_column(self.names, row)] / self.trace**0.5

    def mix(self, weights: Float[Array, "n T"]) -> VectorStream:
        return self._with(weights @ self.vectors)

    def write(self, row: str, amounts: Float[Array, " T"]) -> VectorStream:
        return self._with(self.vectors + amounts[:, None] * self.rows[_column(self.names, row)] / self.trace**0.5)

    def scale(self, factors: Float[Array, " T"]) -> VectorStream:
        return self._with(factors[:, None] * self.vectors)

    def mean_square(self) -> Float[Array, " T"]:
        return jnp.sum(self.vectors**2, axis=1) / self.trace

    def plus(self, other: VectorStream) -> VectorStream:
        return self._with(self.vectors + other.vectors)

    def last(self) -> VectorStream:
        return self._with(self.vectors[-1:])

    def restrict(self, rows: tuple[str, ...]) -> VectorStream:
        return self
