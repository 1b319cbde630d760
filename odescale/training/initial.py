"""Rows of d numbers with exactly given overlaps, so that a run starts where the theory starts."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from odescale.errors import InputError, whole
from odescale.expectations.gaussian_fields import overlap_root


def rows_from_overlaps(
    overlaps: Float[np.ndarray, "*modes P P"],
    *,
    dimension: int | None = None,
    eigenvalues: Float[np.ndarray, " d"] | None = None,
    bins: Int[np.ndarray, " d"] | None = None,
    seed: int = 0,
) -> Float[np.ndarray, "P d"]:
    r"""Rows A (P, d) with (1/m) A_b A_b^T = q_b for the m columns A_b of every bin b of modes.

        A_b = sqrt(m) U sqrt(w) O,   q_b = U diag(w) U^T,   O (rank x m) random with orthonormal rows

    Isotropic tokens are one bin of all d columns, so that A A^T / d = q to rounding; without it the start alone costs
    1/sqrt(d). Random rotations differ with `seed`, the overlaps do not.

    **Arguments**

    - `overlaps`: `(P, P)` for every mode the same, or `(bins, P, P)`, positive semi-definite, rank-deficient allowed.
    - `dimension`: d; may be left out with `eigenvalues`.
    - `eigenvalues`: `(d,)` spectrum, None for isotropic. It fixes the bins when `bins` is None: modes of equal
      eigenvalue share a bin, in the order of first appearance, and `(bins, P, P)` needs one matrix for each. With
      `(P, P)` overlaps neighbouring bins with fewer modes than the rank are merged, so that R stays exact and
      C is exact up to the spread of eigenvalues in a merged bin.
    - `bins`: `(d,)` numbers 0..bins-1, the bin of every mode.
    - `seed`: integer >= 0; float64 numbers from NumPy's PCG64, the same on every machine.

    A bin with fewer modes than its rank cannot have overlaps q_b: its rows are `U sqrt(w) z` with z random signs, whose
    average over seeds is q_b and whose trace is exact. Smooth sums over many such bins (C and R) then err by about
    one over the square root of their number.

    **Errors**: `InputError` for overlaps that are not positive semi-definite (names the mode), for isotropic d < rank,
    and for shapes that do not match.
    """
    q = np.asarray(overlaps, dtype=np.float64)
    if q.ndim not in (2, 3) or q.shape[-1] != q.shape[-2]:
        raise InputError("overlaps", expected="(P, P) or (bins, P, P)", got=f"shape {q.shape}", remedy="reshape them")
    lam = _spectrum(dimension, eigenvalues)
    roots = [
        overlap_root(one, f"overlaps[{i}]" if q.ndim == 3 else "overlaps")
        for i, one in enumerate(q[None] if q.ndim == 2 else q)
    ]
    ranks = [int((np.abs(root).max(axis=0, initial=0.0) > 0).sum()) for root in roots]
    table = _bins(lam, bins, None if q.ndim == 2 else len(q), ranks[0])
    if (eigenvalues is None or np.ptp(lam) == 0) and bins is None and len(lam) < ranks[0]:
        raise InputError(
            "dimension", expected=f"at least the rank {ranks[0]} of the overlaps", got=len(lam), remedy="raise it"
        )
    random = np.random.default_rng([seed, 0x0DE5CA1E])
    rows = np.empty((q.shape[-1], len(lam)))
    for number in range(table.max() + 1):
        columns = np.flatnonzero(table == number)
        which = 0 if q.ndim == 2 else number
        root, rank, m = roots[which][:, : ranks[which]], ranks[which], len(columns)
        if m >= rank:
            directions, triangle = np.linalg.qr(random.normal(size=(m, rank)))
            # Signs of the diagonal make the rotation uniform (Haar), not merely orthonormal.
            directions = np.sqrt(m) * (directions * np.sign(np.diag(triangle))).T
        else:
            directions = random.choice([-1.0, 1.0], size=(rank, m))
        rows[:, columns] = root @ directions
    return rows


def measure_overlaps(
    rows: Float[np.ndarray, "*batch P d"], eigenvalues: Float[np.ndarray, " d"] | None = None
) -> tuple[Float[np.ndarray, "*batch P P"], Float[np.ndarray, "*batch P P"]]:
    """C = A Sigma A^T / N and R = A A^T / N, N = tr Sigma, in float64 whatever the dtype of the rows."""
    A = np.asarray(rows, dtype=np.float64)
    if eigenvalues is None:
        C = A @ np.swapaxes(A, -1, -2) / A.shape[-1]
        return C, C.copy()
    lam = np.asarray(eigenvalues, dtype=np.float64)
    scaled = A * np.sqrt(lam)
    return scaled @ np.swapaxes(scaled, -1, -2) / lam.sum(), A @ np.swapaxes(A, -1, -2) / lam.sum()


def _spectrum(dimension: int | None, eigenvalues: Float[np.ndarray, " d"] | None) -> Float[np.ndarray, " d"]:
    if eigenvalues is not None:
        lam = np.asarray(eigenvalues, dtype=np.float64)
        if dimension is not None and dimension != len(lam):
            raise InputError(
                "dimension", expected=f"{len(lam)} = len(eigenvalues)", got=dimension, remedy="leave it out"
            )
        return lam
    return np.ones(whole("dimension", dimension, remedy="pass it, or eigenvalues"))


def _bins(
    lam: Float[np.ndarray, " d"], bins: Int[np.ndarray, " d"] | None, matrices: int | None, rank: int
) -> Int[np.ndarray, " d"]:
    if bins is not None:
        table = np.asarray(bins)
        expected = table.max(initial=0) + 1 if matrices is None else matrices
        if table.shape != lam.shape or not np.array_equal(np.unique(table), np.arange(expected)):
            raise InputError(
                "bins", expected=f"{len(lam)} numbers covering 0..{expected - 1}", got=bins, remedy="one bin per mode"
            )
        return table
    _, first, table = np.unique(lam, return_index=True, return_inverse=True)
    table = np.argsort(np.argsort(first))[table]
    if matrices is not None:
        if matrices != table.max() + 1:
            raise InputError(
                "overlaps",
                expected=f"{table.max() + 1} matrices, one per distinct eigenvalue",
                got=f"{matrices}",
                remedy="pass bins= to say which modes share one",
            )
        return table
    return _merge(table, rank)


def _merge(table: Int[np.ndarray, " d"], rank: int) -> Int[np.ndarray, " d"]:
    """Joins neighbouring bins until each has at least `rank` modes; a short rest joins the last one."""
    merged = np.zeros(table.max() + 1, dtype=int)
    count, number = 0, 0
    sizes = np.bincount(table)
    for i, size in enumerate(sizes):
        merged[i] = number
        count += size
        if count >= rank and sizes[i + 1 :].sum() >= rank:
            number, count = number + 1, 0
    return merged[table]
