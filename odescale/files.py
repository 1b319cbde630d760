"""Saved arrays: one .npz with a JSON header, never half written, and refused when damaged."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from odescale.errors import CheckpointError


def write_npz(path: str | os.PathLike, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> Path:
    """One .npz with a JSON header, written beside its target and moved into place, so that a kill leaves no half file."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".npz")
    try:
        with os.fdopen(handle, "wb") as stream:
            contents = {"header": np.array(json.dumps(header, default=_plain)), **arrays}
            np.savez_compressed(stream, **contents)  # pyright: ignore[reportArgumentType]
        # mkstemp makes files that only their owner may read; a result deserves the permissions of any other file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def read_npz(path: str | os.PathLike, format_: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, header) of a file that `write_npz` wrote; `CheckpointError` when it is missing, truncated or other."""
    target = Path(path)
    if not target.is_file():
        raise CheckpointError("path", expected="a saved file", got=str(target), remedy="check the path")
    try:
        # Opened here and not by NumPy, which leaves the file open when it is no archive.
        with target.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        header = json.loads(str(arrays.pop("header")))
    except Exception as error:
        raise CheckpointError(
            "path", expected="a complete .npz written by odescale", got=f"{target} ({error})", remedy="compute it again"
        ) from error
    if header.get("format") != format_:
        raise CheckpointError(
            "path", expected=format_, got=str(header.get("format")), remedy="load it with its version"
        )
    return arrays, header


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "tolist"):
        return np.asarray(value).tolist()
    return str(value)
