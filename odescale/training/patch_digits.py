"""Real data as sequences: scikit-learn's handwritten digits in patches, and Python's own standard-library source as text."""

from __future__ import annotations

import sysconfig
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np

from odescale.errors import InputError, whole
from odescale.systems.kernel_build import SequenceData
from odescale.training.source_text import character_codes

TEXT_FILES = (
    "argparse",
    "ast",
    "csv",
    "datetime",
    "difflib",
    "inspect",
    "json/decoder",
    "random",
    "statistics",
    "textwrap",
)
"""Modules of the standard library whose source is read: plain prose and code, in every Python."""


def digits_sequences(
    samples: int, test_samples: int, *, patch: int = 4, target: str = "next", seed: int = 0
) -> SequenceData:
    """Handwritten digits (8 x 8 pixels) as sequences of (8/patch)^2 patches of patch^2 pixels, row by row.

    **Arguments**: `patch` 2 or 4. `target`: "next", at each position but the last the patch that follows (T = (8/patch)^2 - 1,
    square loss); or "label", the digit at every position, one-hot (either loss). Pixels are centred and scaled to unit variance
    over all images. `samples`, `test_samples`: disjoint, drawn by `seed`, at most 1797 together.

    **Raises** `InputError` when scikit-learn is not installed (`pip install "odescale[data]"`), or for a bad size.
    Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI; as shipped with scikit-learn.
    """
    try:
        images, labels = import_module("sklearn.datasets").load_digits(return_X_y=True)
    except ImportError as error:
        raise InputError(
            "data", expected="scikit-learn, which ships the digits", got=str(error),
            remedy='pip install "odescale[data]", or use source_text_sequences',
        ) from error  # fmt: skip
    if patch not in (2, 4):
        raise InputError("patch", expected="2 or 4", got=patch, remedy="4 gives sequences of four patches")
    if target not in ("next", "label"):
        raise InputError("target", expected='"next" or "label"', got=target, remedy="use next")
    order = _picks(samples, test_samples, len(images), seed)
    side = 8 // patch
    images = (images - images.mean()) / images.std()
    patches = (
        images.reshape(-1, side, patch, side, patch).transpose(0, 1, 3, 2, 4).reshape(-1, side**2, patch**2)[order]
    )
    if target == "next":
        x, y = patches[:, :-1], patches[:, 1:]
    else:
        x, y = patches, np.repeat(np.eye(10)[labels[order]][:, None], side**2, axis=1)
    return SequenceData(
        x[:samples], y[:samples], x[samples:], y[samples:], f"digits, patches of {patch} x {patch}, {target}"
    )


def source_text_sequences(
    samples: int, test_samples: int, *, context: int = 8, characters: int = 12, seed: int = 0
) -> SequenceData:
    """Characters of the standard library's source: one-hot sequences of `context` characters, and the next one at each position.

    The `characters` - 1 most frequent ones and one class for all others, V = `characters`: x, y (n, context, V). Either loss.
    Training and test sequences come from disjoint stretches of the text of the Python that runs this (`TEXT_FILES`): the numbers
    depend a little on its version, which `source` names.

    **Raises** `InputError` for a bad size, or where the installation has no source files.
    """
    whole("context", context, 1, remedy="8 is a good value")
    whole("characters", characters, 2)
    folder = Path(sysconfig.get_path("stdlib"))
    files = [folder / f"{name}.py" for name in TEXT_FILES]
    text = "".join(path.read_text(encoding="utf-8") for path in files if path.exists())
    if not text:
        raise InputError(
            "data", expected="the source of the standard library", got=str(folder), remedy="use digits_sequences"
        )
    text = " ".join(text.split())
    codes = character_codes(text, "".join(c for c, _ in Counter(text).most_common(characters - 1)))
    starts = np.arange(0, len(codes) - context - 1, context + 1)
    order = starts[_picks(samples, test_samples, len(starts), seed)]
    windows = np.eye(characters)[codes[order[:, None] + np.arange(context + 1)]]
    x, y = windows[:, :-1], windows[:, 1:]
    version = sysconfig.get_python_version()
    return SequenceData(x[:samples], y[:samples], x[samples:], y[samples:], f"source text of Python {version}")


def _picks(samples: int, test_samples: int, available: int, seed: int) -> np.ndarray:
    whole("samples", samples)
    whole("test_samples", test_samples, 0)
    if samples + test_samples > available:
        raise InputError("samples", expected=f"at most {available} with the test samples", got=samples + test_samples,
                         remedy="ask for less")  # fmt: skip
    return np.random.default_rng(seed).permutation(available)[: samples + test_samples]
