r"""A spectrum of any size in few nodes: Gauss quadrature of its two measures in bins of equal width in log lam.

    free part     sum_k e_k(0) f(lam_k)     =  sum_i p_i f(x_i)
    noise kernel  sum_k lam_k^2 f(lam_k)    =  sum_i w_i f(y_i)

`nodes` Gauss nodes per bin and measure integrate every polynomial of degree 2 nodes - 1 exactly there: in particular the risk,
its first derivatives, and sum lam^2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from odescale.errors import InputError


def bin_modes(
    eigenvalues: Float[np.ndarray, " d"],
    risk: Float[np.ndarray, " d"],
    *,
    per_decade: float = 10.0,
    nodes: int = 3,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    r"""(lam_i, e_i(0), w_i) of the nodes that stand for d modes: `Spectral`'s eigenvalues, start and squares.

        sum_k e_k(0) exp(-2 lam_k t) = sum_i e_i(0) exp(-2 lam_i t),     sum_k lam_k^2 exp(-2 lam_k t) likewise

    up to (n!)^4 (2 lam t D)^(2 n) / ((2 n + 1) ((2 n)!)^3) per bin of n nodes and width D = log(10)/per_decade while that is small:
    `odescale.solve.spectral.binned.solve_binned` measures the error of a curve.

    **Arguments**: `eigenvalues` (d,) > 0, `risk` (d,) = lam_k rho_k(0) >= 0, `per_decade` bins per factor of ten in lam,
    `nodes` from 1 to 4 per bin and measure. A bin with `nodes` modes or fewer keeps them. Two measures, two sets of nodes:
    those of the free part have w = 0, those of the kernel e(0) = 0. Memory: a few arrays of d numbers once, here.
    """
    lam, risk = np.asarray(eigenvalues, dtype=float), np.asarray(risk, dtype=float)
    if lam.ndim != 1 or lam.shape != risk.shape or lam.size == 0 or np.any(lam <= 0):
        raise InputError(
            "eigenvalues", expected="positive, shape (d,), with one risk each", got=lam.shape, remedy="mend it"
        )
    if not 1 <= nodes <= 4 or not per_decade > 0:
        raise InputError(
            "nodes", expected="from 1 to 4, and per_decade > 0", got=(nodes, per_decade), remedy="use 3 and 10"
        )
    order = np.argsort(lam)[::-1]
    lam, risk = lam[order], risk[order]
    number = np.floor(np.log10(lam[0] / lam) * per_decade * (1 - 1e-12)).astype(int)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(number)) + 1, [lam.size]])
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        x, free, kernel = lam[first:last], risk[first:last], lam[first:last] ** 2
        if last - first <= nodes:
            found.append((x, free, kernel))
            continue
        for weights, is_free in ((free, True), (kernel, False)):
            if weights.sum() > 0:
                places, sizes = _gauss(x, weights, nodes)
                zero = np.zeros_like(sizes)
                found.append((places, sizes, zero) if is_free else (places, zero, sizes))
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    return columns[0], columns[1], columns[2]


def _gauss(x: Float[np.ndarray, " m"], weights: Float[np.ndarray, " m"], nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the Gauss rule of a discrete measure, by its three-term recurrence (Stieltjes)."""
    total = weights.sum()
    middle, half = (x[0] + x[-1]) / 2, max(abs(x[0] - x[-1]) / 2, 1e-300)
    z, share = (x - middle) / half, weights / total
    before, now, norm_before, norm = np.zeros_like(z), np.ones_like(z), 1.0, 1.0
    diagonal, off = [], []
    for n in range(nodes):
        diagonal.append(float(share @ (z * now**2)) / norm)
        ratio = norm / norm_before if n else 0.0
        following = (z - diagonal[-1]) * now - ratio * before
        before, now, norm_before, norm = now, following, norm, float(share @ following**2)
        if norm <= 1e-14 * norm_before:  # a measure on fewer points: exact already
            break
        off.append(np.sqrt(norm / norm_before))
    size = len(diagonal)
    jacobi = np.diag(diagonal) + np.diag(off[: size - 1], 1) + np.diag(off[: size - 1], -1)
    values, vectors = np.linalg.eigh(jacobi)
    return middle + half * values, total * vectors[0] ** 2


def check_modes(**numbers: Any) -> None:
    """Refuses, by name, what is not one finite number >= 0 per mode; `eigenvalues`, which give the number of modes, are > 0."""
    shape = np.shape(numbers["eigenvalues"])
    for name, given in numbers.items():
        values, floor = np.asarray(given), "> 0" if name == "eigenvalues" else ">= 0"
        if values.ndim != 1 or values.size == 0 or values.shape != shape:
            raise InputError(
                name, expected=f"shape {shape}, one number per mode", got=values.shape, remedy="match them"
            )
        if not np.all(np.isfinite(values)) or np.any(values < 0) or (floor == "> 0" and np.any(values == 0)):
            raise InputError(name, expected=f"finite numbers {floor}", got=values, remedy="drop or mend them")
