"""Tables of expectations kept on disk: seconds of quadrature that depend on nothing but a few numbers."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from odescale.cache.place import root, versions
from odescale.errors import CheckpointError
from odescale.files import read_npz, write_npz

FORMAT = "odescale table 1"

Table = dict[str, np.ndarray]


def kept(maker: Callable[..., Table]) -> Callable[..., Table]:
    """`maker` of arrays from numbers; what it made for them is read from `tables` in the cache where there is one.

    The name of a file is a digest of the numbers, of the maker's module and of the versions below: a changed formula, a new table.
    A file that is damaged (checksum) or cannot be written is no error: the table is made anew.
    """

    @functools.wraps(maker)
    def make(*numbers: float) -> Table:
        folder = root()
        if folder is None:
            return maker(*numbers)
        path = folder / "tables" / f"{maker.__name__}-{_digest(maker, numbers)}.npz"
        with suppress(CheckpointError):
            return read_npz(path, FORMAT)[0]
        table = maker(*numbers)
        with suppress(OSError):
            write_npz(path, table, {"format": FORMAT, "maker": maker.__name__, "numbers": repr(numbers)})
        return table

    return make


def _digest(maker: Callable[..., Table], numbers: tuple[float, ...]) -> str:
    parts = (_source(maker.__module__), versions(), repr(tuple(map(float, numbers))))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@functools.cache
def _source(module: str) -> str:
    return Path(inspect.getfile(sys.modules[module])).read_text(encoding="utf-8")
