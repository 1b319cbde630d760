"""Real text that is on every machine: the sources of Python's standard library, character by character."""

from __future__ import annotations

import hashlib
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt8

from odescale.errors import InputError, whole

HELD_OUT_EVERY = 16
"""One file in so many is kept for the test loss."""


class SourceText(eqx.Module):
    """Character windows x_0..x_T of a text, drawn uniformly; the files of `test` are never trained on.

    - `train` (n,), `test` (m,): codes 0..V-1 of the characters. `alphabet`: the V - 1 characters with a code of their own; code
      V - 1 stands for all others. `length`: T, characters that a model reads. `source`: which text. `sha256`: of the codes.

    The conditionals are unknown, so there is a loss and no excess loss. A window may cross from one file to the next.
    """

    train: UInt8[Array, " n"]
    test: UInt8[Array, " m"]
    alphabet: str = eqx.field(static=True)
    length: int = eqx.field(static=True)
    source: str = eqx.field(static=True)
    sha256: str = eqx.field(static=True)

    def __check_init__(self) -> None:
        for name in ("train", "test"):
            if getattr(self, name).shape[0] <= self.length + 1:
                raise InputError(
                    "length", expected=f"fewer than the {getattr(self, name).shape[0]} characters of {name}",
                    got=self.length, remedy="lower it or give more text",
                )  # fmt: skip

    @property
    def vocabulary(self) -> int:
        """V, the characters of `alphabet` and one for the rest."""
        return len(self.alphabet) + 1

    @property
    def order(self) -> int:
        """Predictions count from the first character on."""
        return 1

    @property
    def config(self) -> dict[str, Any]:
        """What decides the language, as plain JSON types."""
        return {"source": self.source, "sha256": self.sha256, "vocabulary": self.vocabulary, "length": self.length}

    def sample(self, key: Key[Array, ""], batch: int) -> Int[Array, "batch window"]:
        """Windows at uniform places of the training text."""
        starts = jax.random.randint(key, (batch,), 0, self.train.shape[0] - self.length)
        return self.train[starts[:, None] + jnp.arange(self.length + 1)].astype(jnp.int32)

    def held_out(self, count: int) -> Int[Array, "count window"]:
        """Windows at equal distances of the test text, overlapping where it is short."""
        starts = np.linspace(0, self.test.shape[0] - self.length - 1, count).astype(int)
        return self.test[jnp.asarray(starts)[:, None] + jnp.arange(self.length + 1)].astype(jnp.int32)


def source_text(*, length: int = 64, vocabulary: int = 96, most: int = 20_000_000) -> SourceText:
    """The modules of the standard library of this Python as a `SourceText`: some 7 million characters, one file in 16 held out.

    **Arguments**: `length` T >= 1; `vocabulary` V from 2 to 256; `most`: characters at most, whole files in order of name.
    The text depends on Python's version, which `source` names: compare runs of one version only.

    **Raises** `InputError` for a bad number, or where the installation has no source files.
    """
    for name, value, least, top in (
        ("length", length, 1, 2**20),
        ("vocabulary", vocabulary, 2, 256),
        ("most", most, 1000, 2**31),
    ):
        whole(name, value, least, top)
    folder = Path(sysconfig.get_path("stdlib"))
    train, test, total = [], [], 0
    for number, path in enumerate(sorted(folder.glob("*.py")) + sorted(folder.glob("*/*.py"))):
        if {"site-packages", "dist-packages", "test", "idlelib", "lib2to3"} & set(path.parts[-2:]):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if total + len(text) > most:
            break
        total += len(text)
        (test if number % HELD_OUT_EVERY == 0 else train).append(text)
    if not train or not test:
        raise InputError("text", expected="the source of the standard library", got=str(folder),
                         remedy="install Python with its .py files")  # fmt: skip
    return text_of("".join(train), "".join(test), length=length, vocabulary=vocabulary,
                   source=f"standard library of Python {sysconfig.get_python_version()}")  # fmt: skip


def text_of(train: str, test: str, *, length: int, vocabulary: int = 96, source: str = "text") -> SourceText:
    """A `SourceText` of a text of one's own; the codes go to the V - 1 most frequent characters of `train`."""
    counted = sorted(Counter(train).items(), key=lambda pair: (-pair[1], pair[0]))
    alphabet = "".join(character for character, _ in counted[: vocabulary - 1])
    arrays = [character_codes(text, alphabet) for text in (train, test)]
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    return SourceText(jnp.asarray(arrays[0]), jnp.asarray(arrays[1]), alphabet, int(length), source, digest)


def character_codes(text: str, alphabet: str) -> UInt8[np.ndarray, " n"]:
    """The place of every character in `alphabet` (at most 255 of them), its length for all others."""
    codes = np.full(0x110000, len(alphabet), np.uint8)
    codes[[ord(character) for character in alphabet]] = np.arange(len(alphabet))
    return codes[np.frombuffer(text.encode("utf-32-le"), np.uint32)]
