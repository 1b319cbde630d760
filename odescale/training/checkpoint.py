"""Training state and runs on disk: atomic, with the identity of the configuration and a checksum of the contents."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from odescale.errors import CheckpointError
from odescale.files import read_npz, write_npz

FORMAT = 2


def fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration written as JSON with sorted keys: equal exactly when the configurations are."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def write_arrays(path: str | os.PathLike, kind: str, arrays: dict[str, np.ndarray], header: Mapping[str, Any]) -> Path:
    """Writes an npz of `arrays` and a JSON `header`: a reader sees the old file or the new one, never a part.

    `kind` says what the file is. A checksum over names, dtypes, shapes and bytes goes in with it.
    """
    return write_npz(path, arrays, {**header, "format": _format(kind), "checksum": _checksum(arrays)})


def read_arrays(path: str | os.PathLike, kind: str, argument: str, remedy: str) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and header of a file that `write_arrays` wrote with this `kind`.

    **Errors**: `CheckpointError` naming `argument`, the path and the `remedy`, for a file that is missing, no npz,
    cut short, has a byte changed, or is of another kind or version.
    """
    expected = f"a complete {_format(kind)} at {path}"
    try:
        arrays, header = read_npz(path, _format(kind))
    except CheckpointError as error:
        raise CheckpointError(argument, expected=expected, got=error.got, remedy=remedy) from error
    if header.get("checksum") != _checksum(arrays):
        raise CheckpointError(argument, expected=expected, got="contents that miss their checksum", remedy=remedy)
    return arrays, header


def _format(kind: str) -> str:
    return f"odescale {kind} {FORMAT}"


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype.str}:{np.shape(arrays[name])};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
