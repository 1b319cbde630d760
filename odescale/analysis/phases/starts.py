"""Where the fit of each model begins: the best of a dictionary of terms on a grid, with amplitudes solved for.

For terms f_j on a grid of rates, exponents and times, min over c >= 0 of sum_i (1 - sum_j c_j f_j(t_i)/L_i)^2 is a
least-squares problem in
2 or 3 amplitudes, solved for all pairs of the grid at once: relative errors, hence close to the fit of log L.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from odescale.analysis.phases.shapes import MODELS, TERMS, _shape

MOST_POINTS = 60
KEPT = 2


def starting_points(
    t: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], models: Sequence[str]
) -> dict[str, list[np.ndarray]]:
    """Up to `KEPT` parameter vectors for each of these models, for a curve y = log L at t > 0."""
    if t.size > MOST_POINTS:
        kept = np.unique(np.linspace(0, t.size - 1, MOST_POINTS).round().astype(int))
        t, y = t[kept], y[kept]
    tables = {term: _grid(term, t) for term in TERMS}
    columns, sizes = [], {}
    place = 0
    for term, rows in tables.items():
        logs = _shape(term, rows.T[..., None], t).log
        columns.append(np.exp(np.clip(logs - y, -700.0, 50.0)))
        sizes[term] = slice(place, place + len(rows))
        place += len(rows)
    design = np.concatenate(columns)
    # Unit columns: amplitudes of terms that differ by many orders are solved for together.
    norms = np.maximum(np.sqrt((design**2).sum(axis=1)), 1e-300)
    design = design / norms[:, None]
    gram, target = design @ design.T, design.sum(axis=1)
    return {model: _best(MODELS[model], tables, sizes, gram, target, norms, float(t.size)) for model in models}


def _grid(term: str, t: np.ndarray) -> np.ndarray:
    """Parameter rows with a = 0."""
    last, first = t[-1], max(t[0], t[-1] * 1e-6)
    rates = np.log(np.geomspace(0.2 / last, 5.0 / first, 28))
    times = np.log(np.geomspace(0.3 * first, 3.0 * last, 12))
    if term == "exponential":
        axes = [rates]
    elif term == "power":
        axes = [np.log([0.1, 0.2, 0.35, 0.6, 1.0, 1.6, 2.5, 4.0, 8.0]), times]
    elif term == "cutoff":
        axes = [np.log([0.15, 0.3, 0.6, 1.2, 2.5]), times[::2], np.log(np.geomspace(0.3 / last, 30.0 / last, 7))]
    elif term == "stretched":
        axes = [np.log([0.15, 0.25, 0.35, 0.5, 0.65, 0.8]), np.log(np.geomspace(1e-3 * first, last, 16))]
    elif term == "escape":
        axes = [np.log(np.geomspace(2.0 / last, 2.0 / first, 12)), last * np.geomspace(0.01, 1.0, 9)]
    else:
        axes = []
    mesh = [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]
    rows = np.stack(mesh, axis=1) if mesh else np.zeros((1, 0))
    return np.concatenate([np.zeros((len(rows), 1)), rows], axis=1)


def _best(terms, tables, sizes, gram, target, norms, n: float) -> list[np.ndarray]:
    floor = terms[-1] == "constant"
    leading = terms[:-1] if floor else terms
    last = sizes["constant"].start
    first = np.arange(sizes[leading[0]].start, sizes[leading[0]].stop)
    if len(leading) == 1:
        sets = first[:, None]
    else:
        other = np.arange(sizes[leading[1]].start, sizes[leading[1]].stop)
        pairs = np.stack(np.meshgrid(first, other, indexing="ij"), axis=-1).reshape(-1, 2)
        sets = pairs[pairs[:, 0] < pairs[:, 1]] if leading[0] == leading[1] else pairs
    if floor:
        sets = np.concatenate([sets, np.full((len(sets), 1), last)], axis=1)
    k = sets.shape[1]
    matrices = gram[sets[:, :, None], sets[:, None, :]] + 1e-9 * np.eye(k)
    right = target[sets]
    amplitudes = np.linalg.solve(matrices, right[..., None])[..., 0]
    cost = n - (right * amplitudes).sum(axis=1)
    cost = np.where((amplitudes > 0).all(axis=1), cost, np.inf)
    out: list[np.ndarray] = []
    order = np.argsort(cost)
    for place in order[: 40 * KEPT]:
        if len(out) == KEPT or not np.isfinite(cost[place]):
            break
        rows = [tables[term][index - sizes[term].start].copy() for term, index in zip(terms, sets[place], strict=True)]
        for row, amplitude, index in zip(rows, amplitudes[place], sets[place], strict=True):
            row[0] = np.log(amplitude / norms[index])
        vector = np.concatenate(rows)
        # Neighbours on the grid lead to one minimum: the next start is one that lies elsewhere.
        if all(np.abs(vector - other)[np.abs(vector) > 0].max() > 1.0 for other in out):
            out.append(vector)
    return out
