"""Readouts: from the hidden tokens to outputs of shape (positions, K)."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from odescale.errors import InputError
from odescale.networks.blocks import activation_of
from odescale.networks.streams import AbstractStream


def _fields(stream: AbstractStream, rows: tuple[str, ...]) -> Float[Array, "T K"]:
    return jnp.stack([stream.read(row) for row in rows], axis=-1)


def _check_rows(rows: tuple[str, ...]) -> None:
    if not rows or not all(isinstance(row, str) for row in rows):
        raise InputError("rows", expected="one or more row names", got=rows, remedy='e.g. ("r0", "r1")')


class QueryToken(eqx.Module):
    """f_i = A_i . h_T / sqrt(N): K outputs at the last token, shape (1, K)."""

    rows: tuple[str, ...] = eqx.field(static=True)

    def __check_init__(self) -> None:
        _check_rows(self.rows)

    @property
    def reads(self) -> tuple[str, ...]:
        """The readout rows."""
        return self.rows

    def __call__(self, stream: AbstractStream) -> Float[Array, "1 K"]:
        return _fields(stream.last(), self.rows)


class PerToken(eqx.Module):
    """f_it = A_i . h_t / sqrt(N): K outputs at every token, shape (T, K); without the last `drop` or first `skip` tokens.

    `PerToken(rows, drop=1)` is a next-token predictor: its labels are `PerToken(rows, skip=1)` of a teacher without blocks.
    """

    rows: tuple[str, ...] = eqx.field(static=True)
    drop: int = eqx.field(static=True, default=0)
    skip: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        _check_rows(self.rows)
        for name in ("drop", "skip"):
            if getattr(self, name) < 0:
                raise InputError(name, expected="an integer >= 0", got=getattr(self, name), remedy="0 keeps all tokens")

    @property
    def reads(self) -> tuple[str, ...]:
        """The readout rows."""
        return self.rows

    def __call__(self, stream: AbstractStream) -> Float[Array, "n K"]:
        return _fields(stream, self.rows)[self.skip : stream.tokens - self.drop]


class MeanPool(eqx.Module):
    """f_i = (1/T) sum_t A_i . h_t / sqrt(N): K outputs of the average token, shape (1, K)."""

    rows: tuple[str, ...] = eqx.field(static=True)

    def __check_init__(self) -> None:
        _check_rows(self.rows)

    @property
    def reads(self) -> tuple[str, ...]:
        """The readout rows."""
        return self.rows

    def __call__(self, stream: AbstractStream) -> Float[Array, "1 K"]:
        return _fields(stream, self.rows).mean(axis=0, keepdims=True)


class CommitteeReadout(eqx.Module):
    """f = sum_u weight act(phi_u,T): a soft committee machine on the last token with fixed second layer, shape (1, 1).

    `weight` is common to all units (1: Saad & Solla). Source: Saad & Solla, Phys. Rev. E 52, 4225 (1995).
    """

    rows: tuple[str, ...] = eqx.field(static=True)
    activation: str | Callable[[Array], Array] = eqx.field(static=True, default="erf")
    weight: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        _check_rows(self.rows)
        activation_of(self.activation)

    @property
    def reads(self) -> tuple[str, ...]:
        """The units' rows."""
        return self.rows

    def __call__(self, stream: AbstractStream) -> Float[Array, "1 1"]:
        units = activation_of(self.activation)(_fields(stream.last(), self.rows))
        return self.weight * units.sum(axis=-1, keepdims=True)


class FunctionOfFields(eqx.Module):
    """f = function(phi), phi (T, p) the fields of all rows in the order of `rows`; returns (positions, K), (K,) or a scalar.

    The plain-function route: any JAX-traceable function of the local fields is a network.
    """

    rows: tuple[str, ...] = eqx.field(static=True)
    function: Callable[[Array], Array] = eqx.field(static=True)

    def __check_init__(self) -> None:
        _check_rows(self.rows)
        if not callable(self.function):
            raise InputError("function", expected="a function of fields (T, p)", got=self.function, remedy="pass one")

    @property
    def reads(self) -> tuple[str, ...]:
        """All its rows."""
        return self.rows

    def __call__(self, stream: AbstractStream) -> Float[Array, "n K"]:
        values = jnp.asarray(self.function(_fields(stream, self.rows)))
        return values if values.ndim == 2 else values.reshape(1, -1)
