"""Starts of a mean-field system: Gram matrices of teacher rows, students at a given alignment, spectra."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from odescale.errors import InputError
from odescale.networks.teacher_student import TeacherStudent


def aligned_overlaps(
    problem: TeacherStudent,
    *,
    alignment: float = 0.3,
    scale: float = 1.0,
    lengths: Mapping[str, float] | float = 1.0,
    cosines: Mapping[tuple[str, str], float] | None = None,
    common: float = 0.0,
) -> Float[np.ndarray, "P P"]:
    """C0 for student rows = scale (alignment x teacher row of the same name + sqrt(1 - alignment^2) x a direction of its own).

    **Arguments**

    - `alignment` in [-1, 1]; `scale` > 0: student length over teacher length.
    - `lengths`: squared length |A_j|^2/N of the teacher's rows (and of frozen and unpaired ones), by name without star, or one
      for all. Names that are missing get 1.
    - `cosines`: cosines between teacher rows by pair of names without star, e.g. {("k0", "r"): 0.8}; `common`: the cosine of
      all other pairs. Without any, queries, keys and readouts are orthogonal and attention hardly reaches the loss.

    **Errors**: `InputError` when the cosines do not fit together (not positive semi-definite).
    """
    for name, value, least, most in (("alignment", alignment, -1, 1), ("common", common, -1, 1)):
        if not least <= value <= most:
            raise InputError(name, expected=f"a number in [{least}, {most}]", got=value, remedy="it is a cosine")
    if not scale > 0:
        raise InputError("scale", expected="a positive number", got=scale, remedy="1 starts at the teacher's length")
    names = [row.removesuffix("*") for row in problem.rows]
    sources = dict.fromkeys([*(row for row in problem.student.rows), *(row for row in problem.teacher.rows)])
    index = {row: i for i, row in enumerate(sources)}
    gram = np.full((len(index), len(index)), float(common))
    np.fill_diagonal(gram, 1.0)
    for (a, b), value in (cosines or {}).items():
        for row in (a, b):
            if row not in index:
                raise InputError("cosines", expected=f"pairs among {', '.join(index)}", got=row, remedy="drop it")
        gram[index[a], index[b]] = gram[index[b], index[a]] = value
    w, U = np.linalg.eigh(gram)
    if w[0] < -1e-10:
        raise InputError(
            "cosines", expected="cosines that fit together (positive semi-definite)", got=f"eigenvalue {w[0]:.3g}",
            remedy="lower them",
        )  # fmt: skip
    directions = U * np.sqrt(np.maximum(w, 0.0))
    size = _lengths(lengths, index)
    rows = np.zeros((problem.size, len(index) + problem.size))
    paired = {student for student, _ in problem.pairs}
    for i, name in enumerate(names):
        base = np.sqrt(size[name]) * directions[index[name]]
        if i in paired:
            rows[i, : len(index)] = scale * alignment * base
            rows[i, len(index) + i] = scale * np.sqrt(1 - alignment**2) * np.sqrt(size[name])
        else:
            rows[i, : len(index)] = base
    return rows @ rows.T


def _lengths(lengths: Mapping[str, float] | float, index: Mapping[str, int]) -> dict[str, float]:
    given: dict[str, Any] = dict(lengths) if isinstance(lengths, Mapping) else dict.fromkeys(index, lengths)
    for row, value in given.items():
        if row not in index:
            raise InputError("lengths", expected=f"rows among {', '.join(index)}", got=row, remedy="drop it")
        if not (np.isfinite(value) and value > 0):
            raise InputError("lengths", expected="positive squared lengths", got=f"{row}: {value}", remedy="1 is good")
    return {row: float(given.get(row, 1.0)) for row in index}
