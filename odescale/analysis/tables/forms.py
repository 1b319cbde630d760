"""Forms of scaling laws as data: log L = p log sum_j a_j t_j(x; exponents), amplitudes a_j >= 0, few nonlinear exponents."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import equinox as eqx
import numpy as np
from jaxtyping import Float

from odescale.errors import InputError

Columns = Mapping[str, np.ndarray]


class Exponent(eqx.Module):
    """A nonlinear number of a form, > 0: its `name`, the range `low` to `high` that is searched, what it is."""

    name: str = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)
    meaning: str = eqx.field(static=True, default="")

    def __check_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise InputError(self.name, expected="0 < low < high", got=(self.low, self.high), remedy="mend the range")


class Form(eqx.Module):
    """L = (sum_j a_j t_j)^p, t_j > 0: `log_terms(exponents (..., k), columns) -> (..., n, m)` gives log t_j.

    - `name`, `equation` (as printed), `source`. `columns`: the table's columns that it reads.
    - `amplitudes`: names of the m linear numbers a_j >= 0, in the order of the terms; a constant term has log t = 0.
    - `exponents`: the k nonlinear numbers. Leading axes of `exponents` are draws, all evaluated at once.
    - `slopes(exponents, columns) -> (..., n, m, k)`: d log t_j/d exponent_k, or anything that broadcasts to it; None: central
      differences. `power(exponents (..., k)) -> (...)`: p; None: 1.
    - `doubts(columns)`: exponent -> why these rows cannot tell it, "" where they can; for what slopes and spans do not show.
    """

    name: str = eqx.field(static=True)
    equation: str = eqx.field(static=True)
    columns: tuple[str, ...] = eqx.field(static=True)
    amplitudes: tuple[str, ...] = eqx.field(static=True)
    exponents: tuple[Exponent, ...] = eqx.field(static=True)
    log_terms: Callable[[np.ndarray, Columns], np.ndarray] = eqx.field(static=True)
    slopes: Callable[[np.ndarray, Columns], np.ndarray] | None = eqx.field(static=True, default=None)
    power: Callable[[np.ndarray], np.ndarray] | None = eqx.field(static=True, default=None)
    source: str = eqx.field(static=True, default="")
    doubts: Callable[[Columns], Mapping[str, str]] | None = eqx.field(static=True, default=None)

    @property
    def names(self) -> tuple[str, ...]:
        """Amplitudes, then exponents: the order of every vector of values."""
        return (*self.amplitudes, *(e.name for e in self.exponents))

    @property
    def constant(self) -> str | None:
        """The name of the irreducible loss, if the form has one."""
        return "E" if "E" in self.amplitudes else None

    def read(self, columns: Columns) -> dict[str, Float[np.ndarray, " n"]]:
        """The form's own columns as arrays. **Errors**: `InputError` for a column that is missing or not > 0."""
        own = {}
        for name in self.columns:
            values = np.asarray(columns.get(name, np.nan), float)
            if not (np.isfinite(values) & (values > 0)).all():
                expected = f"finite numbers > 0 for {self.name}: {self.equation}"
                raise InputError(name, expected=expected, got=columns.get(name), remedy=f"pass {name}=...")
            own[name] = values
        shape = np.broadcast_shapes(*(v.shape for v in own.values()))
        return {name: np.broadcast_to(v, shape).reshape(-1) for name, v in own.items()}

    def terms(self, exponents: Float[np.ndarray, "... k"], columns: Columns) -> Float[np.ndarray, "... n m"]:
        """t_j: the design, so that L^(1/p) = terms @ amplitudes."""
        return np.exp(self.log_terms(exponents, columns))

    def log_loss(self, values: Float[np.ndarray, "... p"], columns: Columns) -> Float[np.ndarray, "... n"]:
        """log L of values (amplitudes, exponents) at the columns' rows."""
        m = len(self.amplitudes)
        values = np.asarray(values, float)
        exponents = values[..., m:]
        with np.errstate(divide="ignore"):
            z = np.log(values[..., None, :m]) + self.log_terms(exponents, columns)
        top = z.max(axis=-1)
        total = top + np.log(np.exp(z - top[..., None]).sum(axis=-1))
        return total if self.power is None else np.asarray(self.power(exponents))[..., None] * total

    def log_slopes(self, exponents: Float[np.ndarray, "... k"], columns: Columns) -> Float[np.ndarray, "... n m k"]:
        """d log t_j/d exponent_k, by the form or by central differences of relative step 1e-5."""
        if self.slopes is not None:
            return self.slopes(exponents, columns)
        parts = []
        for k in range(len(self.exponents)):
            step = 1e-5 * exponents[..., k]
            up, down = exponents.copy(), exponents.copy()
            up[..., k] += step
            down[..., k] -= step
            rise = self.log_terms(up, columns) - self.log_terms(down, columns)
            parts.append(rise / (2 * step[..., None, None]))
        return np.stack(np.broadcast_arrays(*parts), axis=-1)


def power_terms(powers: tuple[Mapping[str, str], ...], names: tuple[str, ...]) -> tuple[Callable, Callable]:
    """(`log_terms`, `slopes`) of terms that are products of powers: one {column: exponent's name} a term, each column to the
    minus exponent; {} is the constant term."""

    def slopes(exponents: np.ndarray, columns: Columns) -> np.ndarray:
        first = np.asarray(next(iter(columns.values())))
        table = np.zeros((first.size, len(powers), len(names)))
        for j, term in enumerate(powers):
            for column, name in term.items():
                table[:, j, names.index(name)] -= np.log(columns[column])
        return table

    def log_terms(exponents: np.ndarray, columns: Columns) -> np.ndarray:
        first = np.asarray(next(iter(columns.values())))
        out = np.zeros((*exponents.shape[:-1], first.size, len(powers)))
        for j, term in enumerate(powers):
            for column, name in term.items():
                out[..., j] -= exponents[..., None, names.index(name)] * np.log(columns[column])
        return out

    return log_terms, slopes


def chinchilla_form() -> Form:
    """L = E + A/N^alpha + B/D^beta."""
    log_terms, slopes = power_terms(({}, {"params": "alpha"}, {"tokens": "beta"}), ("alpha", "beta"))
    return Form(
        "chinchilla", "L = E + A/N^alpha + B/D^beta", ("params", "tokens"), ("E", "A", "B"),
        (Exponent("alpha", 0.02, 3.0, "of the parameters"), Exponent("beta", 0.02, 3.0, "of the tokens")),
        log_terms, slopes, source="Hoffmann et al. 2022, arXiv 2203.15556, equation 2",
    )  # fmt: skip
