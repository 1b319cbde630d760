"""Arrays and a JSON header in one npz file, written atomically and read back only if every byte is as it was."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from odescale.errors import CheckpointError

FORMAT = 1


def fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration written as JSON with sorted keys: equal exactly when the configurations are."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> Path:
    """Writes `arrays` and a JSON `header` to `path` so that a reader sees the old file or the new one, never a part.

    The file is written beside its destination, synced to the disk and renamed. A checksum over names, dtypes, shapes
    and bytes goes in with it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**header, "format": FORMAT, "checksum": _checksum(arrays)}, sort_keys=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, header=np.array(text), **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def read_arrays(
    path: str | os.PathLike, kind: str, argument: str = "path"
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and header of a file of `write_arrays` whose header says `kind`.

    **Errors**: `CheckpointError` naming the path and the remedy for a file that is missing, is no npz, is cut short,
    has a byte changed, comes from another format version, or holds something else than `kind`.
    """

    def bad(got: str, remedy: str = "delete it, or give another path") -> CheckpointError:
        return CheckpointError(argument, expected=f"an odescale {kind} at {path}", got=got, remedy=remedy)

    if not Path(path).exists():
        raise bad("no file", "give the path of an existing file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop("header")))
        checksum = header["checksum"]
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise bad(f"an unreadable or truncated file ({type(error).__name__})") from error
    if header.get("format") != FORMAT:
        raise bad(f"format {header.get('format')}, this version reads {FORMAT}")
    if header.get("kind") != kind:
        raise bad(f"a file of kind {header.get('kind')!r}")
    if checksum != _checksum(arrays):
        raise bad("a file whose checksum does not match its contents")
    return arrays, header


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype.str}:{np.shape(arrays[name])};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
