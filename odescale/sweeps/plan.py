"""What a sweep in a store is: system, values and settings as plain text and numbers, so that any process can go on with it."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from odescale.errors import CheckpointError, InputError
from odescale.solve.members import Columns
from odescale.systems.base import AbstractSystem
from odescale.systems.register import entry_of

FORMAT = "odescale-sweep-1"
PACKAGES = ("odescale", "jax", "jaxlib", "diffrax", "equinox")
"""Packages whose versions decide over the numbers: chunks of one store are all computed with the same."""


@dataclass(frozen=True)
class Subject:
    """The system of a sweep: its `text` ("name", "file.py:builder", "package.module:builder", or what a built one is called), a
    `digest` of the builder's file or of the built system's numbers (empty for the library's own), and the built system itself.
    """

    text: str
    digest: str = ""
    built: AbstractSystem | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that decides over the numbers of a sweep but the values of its members, JSON-ready.

    `solver`, `rtol`, `atol`, `max_steps` as the first member has them; `chunk`: members computed and written at once; `lanes`: see
    `odescale.solve.sweep.solve_members`; `members`: how many.
    """

    system: str
    digest: str
    fixed: dict[str, Any]
    t1: float
    points: int
    solver: str
    rtol: float
    atol: float
    max_steps: int
    keep: list[str]
    chunk: int
    lanes: int | None
    members: int
    versions: dict[str, str]

    def record(self) -> dict[str, Any]:
        """As plain values, with tuples as JSON has them."""
        return json.loads(json.dumps({"format": FORMAT, **asdict(self)}))

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Plan:
        """The plan of a record."""
        return cls(**{name: value for name, value in record.items() if name != "format"})

    @property
    def chunks(self) -> int:
        return -(-self.members // self.chunk)

    def members_of(self, number: int) -> slice:
        """The members of a chunk."""
        return slice(number * self.chunk, min((number + 1) * self.chunk, self.members))

    def arguments(self) -> dict[str, Any]:
        """`fixed` as a builder takes it: JSON knows no tuples."""
        return {name: tuple(value) if isinstance(value, list) else value for name, value in self.fixed.items()}

    def require_versions(self) -> None:
        """Refuses to compute here with packages of other versions than the store's."""
        for name, there in self.versions.items():
            here = installed_versions()[name]
            if here != there:
                raise CheckpointError(
                    "store", expected=f"{name} {there}, with which it was begun", got=f"{name} {here} here",
                    remedy="use the same versions everywhere, or another store",
                )  # fmt: skip


def subject_of(system: Any) -> Subject:
    """Name and digest of a system, name or builder; a builder that another process cannot find is refused."""
    if isinstance(system, AbstractSystem):
        return Subject(f"a built {system.label}", _digest_of_system(system), system)
    entry = entry_of(system)
    if isinstance(entry.builder, str):
        return Subject(entry.name)
    build = entry.builder
    name = getattr(build, "__qualname__", "")
    module = sys.modules.get(getattr(build, "__module__", ""))
    file = getattr(module, "__file__", None)
    if not name.isidentifier() or file is None or not Path(file).is_file():
        raise InputError(
            "system", expected="a builder that other processes find, for a store: a function of a file or package",
            got=name or build, remedy="put it into a file, and pass the function or file.py:builder",
        )  # fmt: skip
    assert module is not None
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    if "." in module.__name__:
        return Subject(f"{module.__name__}:{name}", digest)
    return Subject(f"{Path(file).resolve()}:{name}", digest)


def plain_arguments(fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Common parameters as a store can keep them: numbers, words, truth values, and tuples of these."""

    def plain(name: str, value: Any) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, str | bool | int | float):
            return value
        if isinstance(value, tuple):
            return [plain(name, item) for item in value]
        raise InputError(
            name, expected="a number, a word or a tuple of them, which a store can keep", got=value,
            remedy="e.g. a schedule by its text; or build the system and sweep that",
        )  # fmt: skip

    return {name: plain(name, value) for name, value in sorted(fixed.items())}


def installed_versions() -> dict[str, str]:
    """Versions of what decides over the numbers."""
    return {name: _version(name) for name in PACKAGES}


def fingerprint(plan: Plan, columns: Columns) -> str:
    """A digest of plan and values: what a task expects to find in its store."""
    digest = hashlib.sha256(json.dumps(plan.record(), sort_keys=True).encode())
    for name in sorted(columns):
        digest.update(name.encode() + np.ascontiguousarray(columns[name]).tobytes())
    return digest.hexdigest()


def require_same(stored: Mapping[str, Any], stored_columns: Columns, plan: Plan, columns: Columns, path: Path) -> None:
    """Refuses to go on with a store that was made for something else, by the first difference."""

    def refuse(what: str, there: Any, here: Any) -> None:
        raise CheckpointError(
            "store", expected=f"the sweep that {path} holds, with {what} {there}", got=f"{what} {here}",
            remedy="pass what it was begun with, or another store",
        )  # fmt: skip

    wanted = plan.record()
    for name in wanted:
        there, here = stored.get(name), wanted[name]
        if isinstance(there, dict) and isinstance(here, dict):
            for key in sorted({*there, *here}):
                if there.get(key, "unset") != here.get(key, "unset"):
                    refuse(key, there.get(key, "unset"), here.get(key, "unset"))
        elif there != here:
            words = {
                "digest": "the builder's file or numbers of digest",
                "t1": "t1 =",
                "members": "a number of members of",
            }
            short = [x[:12] if name == "digest" else x for x in (str(there), str(here))]
            refuse(words.get(name, name), *short)
    if sorted(stored_columns) != sorted(columns):
        refuse("values of", ", ".join(sorted(stored_columns)), ", ".join(sorted(columns)))
    for name, column in columns.items():
        other = np.flatnonzero(stored_columns[name] != column)
        if other.size:
            i = int(other[0])
            refuse(f"{name} of member {i} =", repr(float(stored_columns[name][i])), repr(float(column[i])))


def _digest_of_system(system: AbstractSystem) -> str:
    digest = hashlib.sha256()
    leaves, structure = jax.tree_util.tree_flatten(system)
    # Addresses of functions are others in every process.
    digest.update(re.sub(r" at 0x[0-9a-f]+", "", str(structure)).encode())
    for leaf in leaves:
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _version(name: str) -> str:
    if name == "odescale":
        from odescale import __version__

        return __version__
    try:
        return version(name)
    except PackageNotFoundError:  # a checkout on the path
        return "unknown"
