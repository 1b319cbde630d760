"""Training state and runs on disk: atomic, with the identity of the configuration and a checksum of the contents."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from odescale.files import read_npz, write_npz

FORMAT = 2


def fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration written as JSON with sorted keys: equal exactly when the configurations are."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def write_arrays(path: str | os.PathLike, kind: str, arrays: dict[str, np.ndarray], header: Mapping[str, Any]) -> Path:
    """Writes an npz of `arrays` and a JSON `header`; `kind` says what the file is."""
    return write_npz(path, arrays, {**header, "format": _format(kind)})


def read_arrays(path: str | os.PathLike, kind: str, argument: str, remedy: str) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and header of a file that `write_arrays` wrote with this `kind`; `CheckpointError` naming `argument` otherwise."""
    return read_npz(path, _format(kind), argument=argument, remedy=remedy)


def _format(kind: str) -> str:
    return f"odescale {kind} {FORMAT}"
