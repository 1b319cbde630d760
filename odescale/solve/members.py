"""Members of a sweep: from values of parameters to systems of one shape, checked before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from odescale.errors import InputError
from odescale.systems.base import AbstractSystem
from odescale.systems.register import Entry, entry_of

Columns = dict[str, Float[np.ndarray, " members"]]
Family = Callable[[dict[str, Any]], AbstractSystem]


class Building(eqx.Module):
    """Member -> system by a builder and common parameters, static under jit: a change of either is a change of program."""

    build: Any = eqx.field(static=True)
    fixed: tuple = eqx.field(static=True)

    def __call__(self, member: dict[str, Any]) -> AbstractSystem:
        return self.build(**dict(self.fixed), **member)


class Replacing(eqx.Module):
    """Member -> the template with some of its numbers replaced, each in units of `units`."""

    template: AbstractSystem
    units: tuple[float, ...]

    def __call__(self, member: dict[str, Any]) -> AbstractSystem:
        names = tuple(member)
        like = [getattr(self.template, name).dtype for name in names]
        new = [
            jnp.asarray(member[name] * unit, dtype)
            for name, unit, dtype in zip(names, self.units, like, strict=True)
        ]  # fmt: skip
        return eqx.tree_at(lambda system: [getattr(system, name) for name in names], self.template, new)


def columns_of(values: Mapping[str, Any]) -> Columns:
    """name -> (members,) numbers of equal length; anything else is refused."""
    arrays = {name: _column(name, column) for name, column in values.items()}
    if not arrays:
        raise InputError("values", expected="at least one parameter with its values", got={}, remedy="or use integrate")
    shapes = {column.shape for column in arrays.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or next(iter(shapes)) == (0,):
        raise InputError("values", expected="1-d arrays of equal length", got=sorted(shapes), remedy="ravel the grid")
    return arrays


def family_of(system: Any, arrays: Columns, fixed: Mapping[str, Any]) -> Family:
    """The systems of all members: of a name or builder with its common parameters, or a built system with numbers replaced.

    The values are checked against the domains of their parameters. A builder that computes with its numbers (`Entry.fields`) runs
    once, for the first member; the others replace its numbers.
    """
    if isinstance(system, AbstractSystem):
        if fixed:
            raise InputError(
                next(iter(fixed)), expected="a parameter of a name or builder", got=f"a built {system.label}",
                remedy="build the system with it",
            )  # fmt: skip
        return _replacing(system, arrays)
    entry = entry_of(system)
    _check_parameters(entry, arrays, fixed)
    if entry.fields is None:
        others = {name: value for name, value in fixed.items() if name not in arrays}
        return Building(entry.build, tuple(sorted(others.items(), key=lambda item: item[0])))
    first = {name: float(column[0]) for name, column in arrays.items()}
    template = entry.build(**fixed, **first)
    units = tuple(float(getattr(template, name)) / first[name] for name in arrays)
    return Replacing(template, units)


def require_one_shape(family: Family, arrays: Columns) -> None:
    """Refuses parameters on whose values the builder branches: a spectrum's exponent, or its source."""
    try:
        jax.eval_shape(
            lambda member: family(member).initial_state(), {name: jnp.asarray(column[0]) for name, column in arrays.items()}
        )  # fmt: skip
    except jax.errors.JAXTypeError:
        raise InputError(
            ", ".join(arrays), expected="parameters that keep all shapes", got="a sweep over them",
            remedy="loop over them, or build the system and sweep its own numbers",
        ) from None  # fmt: skip


def _check_parameters(entry: Entry, arrays: Columns, fixed: Mapping[str, Any]) -> None:
    known = {parameter.name: parameter for parameter in entry.parameters}
    for name, column in arrays.items():
        if name not in known:
            entry.build(**fixed, **{name: column[0]})  # raises the error with its hint
            raise InputError(
                name, expected=f"one of {', '.join(known)}", got=name, remedy="a parameter in the register"
            )
        if known[name].kind is not float:
            raise InputError(
                name, expected="a parameter that keeps all shapes", got="a sweep over it", remedy="loop over it"
            )
        if entry.fields is not None and name not in entry.fields:
            raise InputError(
                name, expected=f"a number that {entry.name} keeps its tables under: {', '.join(entry.fields)}",
                got="a sweep over it", remedy="loop over it",
            )  # fmt: skip
        for value in np.unique(column):
            known[name].check(value)
        if entry.fields is not None and not column.min() > 0:
            raise InputError(
                name, expected=f"values of {name} above 0", got=float(column.min()),
                remedy="0 stands for the default, which is no value to begin from",
            )  # fmt: skip
    if unkept := [
        name for name, value in fixed.items() if name not in arrays and isinstance(value, (np.ndarray, jax.Array, list))
    ]:  # fmt: skip
        raise InputError(
            "fixed", expected="numbers and words common to all members", got=unkept,
            remedy="build the system with them and sweep that",
        )  # fmt: skip


def _replacing(system: AbstractSystem, arrays: Columns) -> Replacing:
    numbers = [n for n, v in vars(system).items() if eqx.is_inexact_array(v) and v.ndim == 0]
    known = {parameter.name: parameter for parameter in system.parameters}
    for name, column in arrays.items():
        if name not in numbers:
            raise InputError(
                name, expected=f"one of its numbers: {', '.join(numbers)}", got=name, remedy="sweep its builder instead"
            )
        for value in np.unique(column) if name in known else ():
            known[name].check(value)
    return Replacing(system, (1.0,) * len(arrays))


def _column(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise InputError(name, expected="numbers, shape (members,)", got=values, remedy="pass an array") from None
