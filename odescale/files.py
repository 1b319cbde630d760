"""Saved arrays: one .npz with a JSON header, never half written, and refused when damaged."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from odescale.errors import CheckpointError


@contextmanager
def whole_file(target: Path, mode: str = "wb", **how: Any) -> Iterator[IO[Any]]:
    """A stream beside `target` that becomes it when the block ends, so that a kill leaves no half file; an error leaves nothing."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    try:
        with os.fdopen(handle, mode, **how) as stream:
            yield stream
        # mkstemp makes files that only their owner may read; a result deserves the permissions of any other file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_npz(path: str | os.PathLike, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> Path:
    """One .npz with a JSON header, written beside its target and moved into place, so that a kill leaves no half file.

    `header["format"]` says what the file is. A checksum over names, dtypes, shapes and bytes of the arrays goes in with it.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    whole = {**header, "checksum": _checksum(arrays)}
    contents = {"header": np.array(json.dumps(whole, default=_plain)), **arrays}
    with whole_file(target) as stream:
        np.savez_compressed(stream, **contents)  # pyright: ignore[reportArgumentType]
    return target


def read_npz(
    path: str | os.PathLike, format_: str, *, argument: str = "path", remedy: str = "compute it again"
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, header) of a file that `write_npz` wrote with this format.

    **Errors**: `CheckpointError` naming `argument`, the path and the `remedy`, for a file that is missing, no npz, cut short, has a
    byte changed, or is of another kind or version.
    """
    target, expected = Path(path), f"a complete {format_} file"
    if not target.is_file():
        raise CheckpointError(argument, expected=expected, got=f"nothing at {target}", remedy="check the path")
    try:
        # Opened here and not by NumPy, which leaves the file open when it is no archive.
        with target.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        header = json.loads(str(arrays.pop("header")))
    except Exception as error:
        raise CheckpointError(argument, expected=expected, got=f"{target} ({error})", remedy=remedy) from error
    if header.get("format") != format_:
        raise CheckpointError(argument, expected=expected, got=f"{header.get('format')} at {target}", remedy=remedy)
    if header.get("checksum") != _checksum(arrays):
        raise CheckpointError(
            argument, expected=expected, got=f"{target}, whose contents miss their checksum", remedy=remedy
        )
    return arrays, header


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype.str}:{np.shape(arrays[name])};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "tolist"):
        return np.asarray(value).tolist()
    return str(value)


def plain(value: Any) -> Any:
    """JSON-ready: arrays to lists, NaN and infinities to null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist") and not isinstance(value, float):
        return plain(np.asarray(value).tolist())
    return value if isinstance(value, float) and np.isfinite(value) else None
