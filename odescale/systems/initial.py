"""Initial overlaps as Gram matrices of explicit directions, so that they are positive semi-definite by construction."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.errors import InputError
from odescale.networks.architecture import Architecture, FieldNetwork
from odescale.systems.parameters import is_traced

KEY_READS = 0.8
"""Cosine between a teacher's key (or output) row and the mean readout: without it attention would not reach the loss."""


def teacher_student_overlaps(
    architecture: Architecture, *, strength: Any, alignment: Any, scale: Any
) -> Float[Array, "1 P P"]:
    """Isotropic overlaps of a student that starts at cosine `alignment` with its teacher.

    Teacher: orthonormal readouts `|r*|^2/N = 1`; every query has its own direction; every key and output row has
    cosine 0.8 with the mean readout and a direction of its own, every value row cosine 0.8 with its head's key (with the mean
    of its keys above rank one); all of squared length `strength`. Student row = `scale (alignment x teacher row +
    sqrt(1 - alignment^2) x own direction)`.

    **Arguments**: `strength` > 0, `alignment` in [-1, 1], `scale` > 0. With frozen readouts both share the teacher's.
    """
    size = architecture.size
    teacher = _teacher_rows(architecture.teacher, size)
    basis = 2 * size
    norms = np.linalg.norm(teacher, axis=1, keepdims=True)
    readouts = np.zeros((size, 1))
    readouts[list(architecture.teacher.readouts)] = 1.0
    xp = _module(strength, alignment, scale)
    lengths = xp.where(readouts > 0, 1.0, xp.sqrt(xp.asarray(strength, dtype=float)))
    begin = xp.concatenate([teacher / np.where(norms > 0, norms, 1.0) * lengths, np.zeros((size, size))], 1)
    rows = list(begin)
    for student, star in architecture.pairs:
        own = np.eye(basis)[size + student]
        length = lengths[star, 0]
        rows[student] = scale * (alignment * rows[star] + xp.sqrt(1 - xp.asarray(alignment) ** 2) * length * own)
    return jnp.asarray(_gram(xp.stack(rows)))


def _module(*numbers: Any) -> Any:
    """NumPy for numbers, whose operations need no compilation; jax.numpy where one of them is traced."""
    return jnp if any(is_traced(number) for number in numbers) else np


def _gram(rows: Any) -> Any:
    return (rows @ rows.T)[None]


def _teacher_rows(network: FieldNetwork, size: int) -> np.ndarray:
    rows = np.zeros((size, size))
    for index in network.readouts:
        rows[index, index] = 1.0
    mean = rows[list(network.readouts)].sum(axis=0)
    mean /= np.linalg.norm(mean)
    for layer in network.layers:
        for head in layer:
            if head.uniform:
                continue
            own = np.eye(size)
            rest = np.sqrt(1 - KEY_READS**2)
            for query, key in head.terms:
                rows[query] = own[query]
                rows[key] = KEY_READS * mean + rest * own[key]
            if head.value is not None and head.output is not None:
                keys = sum(rows[key] for _, key in head.terms)
                rows[head.value] = KEY_READS * keys / np.linalg.norm(keys) + rest * own[head.value]
                rows[head.output] = KEY_READS * mean + rest * own[head.output]
    return rows


def logistic_pair_overlaps(*, strength: Any, aligned: Any, surplus: Any, readout_scale: Any) -> Float[Array, "1 8 8"]:
    """Overlaps of (q0, k0, q1, k1, r1, r2, q0*, k0*) for the balanced start of the logistic pair, rank 4.

    With `y = (k.r/N) sqrt(|q|^2/N)` equal to `aligned` (layer 1), `surplus` (layer 2) and `strength` (teacher), and
    `|r|^2/N = readout_scale = R`: balance `kappa^2/R = |q|^2/N` gives `|q|^2/N = |k|^2/N = y/sqrt(R)`. The queries q0
    and q0* share a direction, k0 and k0* lie along r1, k1 along r2, and q1 is orthogonal to all of them.
    """
    xp = _module(strength, aligned, surplus, readout_scale)
    root = xp.sqrt(xp.asarray(readout_scale, dtype=float))
    own = np.eye(4)  # directions: q0, r1, r2, q1
    small, extra, star = (xp.sqrt(xp.asarray(y, dtype=float) / root) for y in (aligned, surplus, strength))
    rows = xp.stack(
        [small * own[0], small * own[1], extra * own[3], extra * own[2], root * own[1], root * own[2]]
        + [star * own[0], star * own[1]]
    )
    return jnp.asarray(_gram(rows))


def quickstart_overlaps(*, readout: Any, surplus: Any, value_scale: Any) -> Float[Array, "1 10 10"]:
    """Overlaps of (q0, k0, q1, k1, r0, v0, o0, v1, o1, r0*) for the start of the quickstart system.

    `|r0*|^2/N = readout = A`, r0 = 0; `|v|^2/N = value_scale = R` and `|o|^2/N = 1`. In each layer k lies along v, q has a
    direction of
    its own and `|q|^2/N = |k|^2/N = surplus/sqrt(R)`, so that `y = (k.v/N) sqrt(|q|^2/N) = surplus`. All directions are orthogonal.
    """
    xp = _module(readout, surplus, value_scale)
    root = xp.sqrt(xp.asarray(value_scale, dtype=float))
    own = np.eye(7)  # directions: q0, q1, v0, v1, r0*, o0, o1
    small = xp.sqrt(xp.asarray(surplus, dtype=float) / root)
    far = xp.sqrt(xp.asarray(readout, dtype=float))
    rows = xp.stack(
        [small * own[0], small * own[2], small * own[1], small * own[3], 0 * own[4]]
        + [root * own[2], own[5], root * own[3], own[6], far * own[4]]
    )
    return jnp.asarray(_gram(rows))


def check_overlaps(overlaps: Any, size: int, argument: str = "initial_overlaps", modes: int | None = None) -> None:
    """Refuses overlaps that are not finite, symmetric and positive semi-definite per mode. Traced values pass."""
    if is_traced(overlaps):
        return
    values = np.asarray(overlaps, dtype=float)
    shape = f"({'modes' if modes is None else modes}, {size}, {size})"
    if values.ndim != 3 or values.shape[1:] != (size, size) or (modes is not None and values.shape[0] != modes):
        raise InputError(argument, expected=f"an array of shape {shape}", got=values.shape, remedy="one block per mode")
    if not np.all(np.isfinite(values)):
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise InputError(
            argument, expected="finite numbers", got=f"{values[where]} at {where}", remedy="mend the entry"
        )
    scale = np.maximum(np.abs(values).max(axis=(1, 2)), 1e-300)
    skew = np.abs(values - np.swapaxes(values, 1, 2)).max(axis=(1, 2)) / scale
    if skew.max() > 1e-8:
        raise InputError(
            argument, expected="symmetric overlaps", got=f"asymmetry {skew.max():.1e} in mode {skew.argmax()}",
            remedy="use (Q + Q^T)/2",
        )  # fmt: skip
    lowest = np.linalg.eigvalsh(values)[:, 0] / scale
    if lowest.min() < -1e-8:
        raise InputError(
            argument,
            expected="positive semi-definite overlaps (a Gram matrix of rows)",
            got=f"relative eigenvalue {lowest.min():.2e} in mode {lowest.argmin()}",
            remedy="build them as rows @ rows.T / N",
        )
