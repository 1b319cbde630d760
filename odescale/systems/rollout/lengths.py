"""Laws of answer lengths: the survival function S(l) = P(L >= l) and the quantile of a length, both capped."""

from __future__ import annotations

import abc
import os
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.errors import InputError
from odescale.systems.parameters import is_traced

LAWS = ("lognormal", "pareto", "capped")
MOST_KNOTS = 257
"""Places at which the survival function of a list of lengths is kept: an integrator follows straight pieces between them."""


def _number(x: ArrayLike) -> Float[Array, "..."]:
    return jnp.asarray(x, float)


def _positive(**numbers: Array) -> None:
    for name, value in numbers.items():
        if not is_traced(value) and not bool(jnp.isfinite(value) & (value > 0)):
            raise InputError(name, expected="a positive finite number", got=float(value), remedy="tokens, or a shape")


class AbstractLengths(eqx.Module):
    """A law of lengths in tokens with a cap, where what would be longer ends: S(l) has a step at `cap` and is 0 beyond."""

    cap: eqx.AbstractVar[Float[Array, ""]]

    @abc.abstractmethod
    def uncapped(self, length: Float[Array, "..."]) -> Float[Array, "..."]:
        """P(L >= l) without the cap."""

    @abc.abstractmethod
    def uncapped_quantile(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """The length that a share u of the answers exceeds, without the cap."""

    def survival(self, length: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """S(l) = P(L >= l); the share at the cap is still in it at l = cap."""
        length = jnp.asarray(length, float)
        return jnp.where(length > self.cap, 0.0, self.uncapped(jnp.minimum(length, self.cap)))

    def quantile(self, u: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """The length that a share u of the answers reaches, 0 < u < 1: S(l) = u below the cap."""
        return jnp.minimum(self.uncapped_quantile(jnp.asarray(u, float)), self.cap)

    def mean(self) -> Float[Array, ""]:
        """E L = int S, by Gauss-Legendre nodes in log(1 + l)."""
        x, w = np.polynomial.legendre.leggauss(200)
        top = jnp.log1p(self.cap)
        place = jnp.expm1(top * (jnp.asarray(x) + 1) / 2)
        return jnp.sum(jnp.asarray(w) * top / 2 * (1 + place) * self.survival(place))


class LognormalLengths(AbstractLengths):
    """log L ~ N(log median, sigma^2), cut at `cap`: S(l) = Phi(-(log l - log median)/sigma). Good sigma: .6 to 1.5."""

    median: Float[Array, ""] = eqx.field(converter=_number)
    sigma: Float[Array, ""] = eqx.field(converter=_number)
    cap: Float[Array, ""] = eqx.field(converter=_number)

    def __check_init__(self) -> None:
        _positive(median=self.median, sigma=self.sigma, cap=self.cap)

    def uncapped(self, length: Float[Array, "..."]) -> Float[Array, "..."]:
        safe = jnp.where(length > 0, length, 1.0)
        return jnp.where(length > 0, ndtr((jnp.log(self.median) - jnp.log(safe)) / self.sigma), 1.0)

    def uncapped_quantile(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.median * jnp.exp(-self.sigma * ndtri(u))


class ParetoLengths(AbstractLengths):
    """S(l) = (1 + l/scale)^-index, cut at `cap`: a power law beyond `scale` (Lomax 1954), smooth at 0.

    The mean without a cap is scale/(index - 1); for index <= 1 it is the cap that sets it.
    """

    scale: Float[Array, ""] = eqx.field(converter=_number)
    index: Float[Array, ""] = eqx.field(converter=_number)
    cap: Float[Array, ""] = eqx.field(converter=_number)

    def __check_init__(self) -> None:
        _positive(scale=self.scale, index=self.index, cap=self.cap)

    def uncapped(self, length: Float[Array, "..."]) -> Float[Array, "..."]:
        return (1 + length / self.scale) ** -self.index

    def uncapped_quantile(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.scale * jnp.expm1(-jnp.log(u) / self.index)


class CappedLengths(AbstractLengths):
    """S(l) = p + (1 - p) e^(-l/body): an exponential body, and a share p = `at_cap` that runs into the cap whatever it is."""

    body: Float[Array, ""] = eqx.field(converter=_number)
    at_cap: Float[Array, ""] = eqx.field(converter=_number)
    cap: Float[Array, ""] = eqx.field(converter=_number)

    def __check_init__(self) -> None:
        _positive(body=self.body, cap=self.cap)
        if not is_traced(self.at_cap) and not 0 <= float(self.at_cap) < 1:
            raise InputError("at_cap", expected="a share in [0, 1)", got=float(self.at_cap), remedy="e.g. 0.03")

    def uncapped(self, length: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.at_cap + (1 - self.at_cap) * jnp.exp(-length / self.body)

    def uncapped_quantile(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        inside = (u - self.at_cap) / (1 - self.at_cap)
        return jnp.where(inside > 0, -self.body * jnp.log(jnp.where(inside > 0, inside, 1.0)), jnp.inf)


class ListedLengths(AbstractLengths):
    """Lengths that were measured: S(l) goes straight between `knots` (k,) of the list, `shares` (k,) of it being as long or longer.

    The knots are all lengths of a short list, else its quantiles, finer towards the tail. A list knows nothing beyond its longest.
    """

    knots: Float[Array, " k"]
    shares: Float[Array, " k"]
    cap: Float[Array, ""]

    def uncapped(self, length: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.interp(length, self.knots, self.shares)

    def uncapped_quantile(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.interp(u, self.shares[::-1], self.knots[::-1])


def listed_lengths(lengths: ArrayLike, cap: float | None = None) -> ListedLengths:
    """The law of measured lengths (n,), in tokens, all positive, cut at `cap` (default, and at most: the longest)."""
    values = np.asarray(lengths, float).ravel()
    if values.size < 2:
        raise InputError(
            "lengths", expected="two lengths or more", got=f"{values.size} of them", remedy="pass tokens per answer"
        )
    if not (np.isfinite(values) & (values > 0)).all():
        bad = int(np.flatnonzero(~(np.isfinite(values) & (values > 0)))[0])
        raise InputError(
            "lengths", expected="positive numbers of tokens", got=f"{values[bad]} at place {bad}", remedy="drop it"
        )
    top = float(values.max()) if cap is None else float(cap)
    if not (np.isfinite(top) and top > 0):
        raise InputError("cap", expected="a positive number of tokens", got=top, remedy="e.g. 32768")
    if top < values.mean():
        raise InputError(
            "cap", expected=f"a cap above the mean length, {values.mean():.6g}", got=top, remedy="raise it"
        )
    top = min(top, float(values.max()))  # beyond its longest a list knows nothing
    ordered = np.sort(values)
    # Between its order statistics a sample says nothing: the share at the k-th of n is put at its middle, (n - k + 1/2)/n.
    shares = (values.size - np.arange(values.size) - 0.5) / values.size
    wanted = np.unique(
        np.concatenate([np.linspace(0, 1, MOST_KNOTS // 2), 1 - np.geomspace(1 / values.size, 1, MOST_KNOTS // 2)])
    )
    take = (
        np.arange(values.size)
        if values.size <= MOST_KNOTS
        else np.unique(np.round(wanted * (values.size - 1)).astype(int))
    )
    knots, first = np.unique(ordered[take], return_index=True)
    kept = shares[take][first]
    knots, kept = np.concatenate([[0.0], knots]), np.concatenate([[1.0], kept])
    return ListedLengths(knots=jnp.asarray(knots), shares=jnp.asarray(kept), cap=jnp.asarray(top))


def read_lengths(path: str | os.PathLike, cap: float | None = None) -> ListedLengths:
    """The law of lengths in a text or CSV file: one number a line, or a column called length, tokens or the like."""
    file = Path(path)
    if not file.is_file():
        raise InputError(
            "lengths", expected=f"{', '.join(LAWS)}, or a file of lengths", got=str(path), remedy="check the path"
        )
    rows = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if not rows:
        raise InputError(
            "lengths",
            expected="a file with lengths in it",
            got=f"{file.name}, which is empty",
            remedy="one number a line",
        )
    mark = next((m for m in (",", ";", "\t") if m in rows[0]), None)
    cells = [[cell.strip() for cell in (row.split(mark) if mark else [row])] for row in rows]
    column = 0
    if not _is_number(cells[0][0]) or len(cells[0]) > 1:
        names = [name.lower().strip('"') for name in cells[0]]
        known = [i for i, name in enumerate(names) if any(word in name for word in ("length", "tokens", "len"))]
        if len(known) != 1 and len(names) > 1:
            raise InputError(
                "lengths", expected="one column called length or tokens", got=", ".join(cells[0]), remedy="name it so"
            )
        column, cells = (known[0] if known else 0), cells[1:]
    values = []
    for number, row in enumerate(cells, start=2 if len(cells) < len(rows) else 1):
        if column >= len(row) or not _is_number(row[column]):
            raise InputError(
                "lengths",
                expected=f"a number in every line of {file.name}",
                got=f"line {number}",
                remedy="mend that line",
            )
        values.append(float(row[column]))
    return listed_lengths(np.array(values), cap)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
