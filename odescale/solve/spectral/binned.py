"""SGD on a spectrum of any size in log bins, with the error of the bins measured on the curve itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from odescale.errors import InputError, whole
from odescale.solve.spectral.log_rate import SpectralCurve, solve_spectral
from odescale.systems.spectral import spectral


class BinnedCurve(NamedTuple):
    """The curve of the binned spectrum; `error` (n,), its relative distance to one node more per bin; `nodes` integrated."""

    curve: SpectralCurve
    error: Float[np.ndarray, " n"]
    nodes: int


def solve_binned(
    eigenvalues: Float[np.ndarray, " d"],
    excess: Float[np.ndarray, " d"],
    steps: Float[np.ndarray, " n"],
    *,
    per_decade: float = 10.0,
    nodes: int = 3,
    rtol: float = 1e-6,
    **given: Any,
) -> BinnedCurve:
    """E at `steps` of the spectrum in `per_decade` log bins of `nodes` Gauss nodes per measure, and what the bins cost.

    One unit of t is one SGD step. **Arguments**: lam_k > 0 and rho_k(0) >= 0 (d,), `steps` (n,) as in `solve_spectral`, `nodes` 1
    to 3; the other words of `spectral` (learning_rate, batch, noise, floor, schedule). The error is that of these bins against the
    bins with one node more; against every mode it is the same to leading order. Memory: ten arrays of d numbers while binning, then
    2 `nodes` numbers per bin: 1e6 modes need 80 MB and end as some 500 nodes.
    """
    nodes = whole("nodes", nodes, 1, 3, remedy="3 is good")
    lam, rho = np.asarray(eigenvalues, dtype=float), np.asarray(excess, dtype=float)
    if lam.shape != rho.shape or lam.ndim != 1 or lam.size == 0:
        raise InputError(
            "excess", expected=f"shape {lam.shape}, one per eigenvalue", got=rho.shape, remedy="match them"
        )
    curves, sizes = [], []
    for count in (nodes, nodes + 1):
        system = spectral(eigenvalues=lam, excess=rho, per_decade=per_decade, bin_nodes=count, **given)
        curves.append(solve_spectral(system, steps, rtol=rtol))
        sizes.append(int(system.eigenvalues.size))
    error = np.abs(curves[0].loss / curves[1].loss - 1)
    return BinnedCurve(curves[0], error, sizes[0])
