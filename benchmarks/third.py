"""The one-third law by optimiser: real softmax layers under signs and Muon against the flow, and time to a loss.

    python -m benchmarks.optimizers third [--seeds 16]

The layers are NumPy's, in double precision with slopes kept as logarithms: float32 has none below 88 nats of margin.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from odescale.analysis.peaked.optimizer_rows import OPTIMIZER_ROWS
from odescale.clock import PowerSchedule
from odescale.expectations.unit_steps import log_slopes
from odescale.one_third import compare_escapes, predict_law
from odescale.optimizers import Muon, Sign
from odescale.solve.integrate import integrate
from odescale.systems.peaked import Peaked, peaked
from odescale.training.softmax_population import FieldNodes

CASES: dict[str, tuple[dict[str, Any], Any, float, float]] = {
    "sign, K = 3, B = 1": ({"classes": 3, "dimension": 150.0}, Sign(rate=3e-3), 0.0, 1e5),
    "sign, K = 3, B = 1, g = 1/4": ({"classes": 3, "dimension": 150.0}, Sign(rate=1e-2), 0.25, 1e5),
    "sign, K = 3, B = 1, g = 1/2": ({"classes": 3, "dimension": 150.0}, Sign(rate=2e-3), 0.5, 1e5),
    "sign, K = 2, B = 4, g = 1/4": ({"classes": 2, "dimension": 100.0, "batch": 4.0}, Sign(rate=3e-2), 0.25, 1e5),
    "sign, K = 10, B = 4, g = 1/4": (
        {"classes": 10, "dimension": 300.0, "batch": 4.0},
        Sign(rate=5e-3),
        0.25,
        6e4,
    ),
    "Muon, K = 2, B = 2, g = 1/4": (
        {"classes": 2, "dimension": 100.0, "batch": 2.0},
        Muon.exact(rate=0.3, momentum=0.0, nesterov=False),
        0.25,
        1e5,
    ),
    "Muon, K = 3, B = 16": (
        {"classes": 3, "dimension": 100.0, "batch": 16.0},
        Muon.exact(rate=0.01, momentum=0.9, nesterov=False),
        0.0,
        1e5,
    ),
}
"""Name -> (the layer, its optimiser, g of the rate ~ t^-g from 100 steps on, steps)."""
ONSET, WINDOW, POINTS = 100.0, 10**1.5, 7
"""Steps after which rates fall; the last factor of t in which exponents are measured; record times in it."""


class Runs(NamedTuple):
    """Overlap, spread, loss and error (times, seeds) of real layers at `t` steps."""

    t: np.ndarray
    overlap: np.ndarray
    spread: np.ndarray
    loss: np.ndarray
    error: np.ndarray


def system_of(name: str) -> tuple[Peaked, float]:
    """(system, steps) of a case."""
    layer, rule, g, steps = CASES[name]
    return peaked(optimizer=rule, schedule=PowerSchedule(g, ONSET), **layer), steps


def simulate(system: Peaked, times: np.ndarray, seeds: int, seed: int = 0, nodes: int | None = None) -> Runs:
    """`seeds` layers with logits W x from W = 0, all at once, recorded at the whole steps `times`."""
    K, B, d = int(system.classes), int(system.batch), int(system.dimension)
    unit = system.unit
    assert unit is not None
    rng = np.random.default_rng([seed, 0x3D])
    teacher = np.stack([np.linalg.qr(rng.standard_normal((d, K)))[0].T for _ in range(seeds)])
    W, momentum = np.zeros((seeds, K, d)), np.zeros((seeds, K, d))
    mu = dict(unit.muon).get("momentum", 0.0)
    last = int(times[-1])
    rates = float(system.learning_rate) * np.asarray(system.schedule(np.arange(last + 1.0)))
    population, found, due = FieldNodes(K, nodes=nodes), [], {int(x) for x in times}
    P = np.eye(K) - 1 / K
    for n in range(last + 1):
        if n in due:
            R, Q = W @ np.swapaxes(teacher, 1, 2), W @ np.swapaxes(W, 1, 2)
            D = np.einsum("ij,sji->s", P, R) / (K - 1)
            measured = [population.population(r, q, soft=False, inverse_temperature=np.inf, scale=1.0)
                        for r, q in zip(R, Q, strict=True)]  # fmt: skip
            found.append([D, np.einsum("ij,sji->s", P, Q) / (K - 1) - D**2, [x.loss for x in measured],
                          [x.error for x in measured]])  # fmt: skip
        x = rng.standard_normal((seeds, B, d))
        logits, label = x @ np.swapaxes(W, 1, 2), (x @ np.swapaxes(teacher, 1, 2)).argmax(axis=-1)
        size, sign, _ = log_slopes(logits, label)
        if system.optimizer == "sign":  # the scale of a row of slopes is no matter
            slopes = sign * np.exp(size - size.max(axis=1, keepdims=True))
            W -= rates[n] * np.sign(np.swapaxes(slopes, 1, 2) @ x)
            continue
        top = size.max(axis=(1, 2), keepdims=True) if mu == 0 else 0.0
        gradient = np.swapaxes(sign * np.exp(size - top), 1, 2) @ x
        momentum = mu * momentum + (1 - mu) * gradient
        W -= rates[n] * _polar(momentum, K)
    return Runs(np.asarray(times, float), *np.array(found, float).transpose(1, 0, 2))


def _polar(M: np.ndarray, K: int) -> np.ndarray:
    """(M M^T)^(-1/2) M on the K - 1 directions that the slopes have."""
    if K == 2:
        return M / np.sqrt(np.sum(M**2, axis=(1, 2), keepdims=True))
    values, vectors = np.linalg.eigh(M @ np.swapaxes(M, 1, 2))
    inverse = np.where(np.arange(K) > 0, 1 / np.sqrt(np.maximum(values, 1e-300)), 0.0)
    return (vectors * inverse[:, None]) @ np.swapaxes(vectors, 1, 2) @ M


def slope(t: np.ndarray, values: np.ndarray) -> np.ndarray:
    """-dlog/dlog t of columns, least squares."""
    return -np.polyfit(np.log(t), np.log(values), 1)[0]


def exponents(name: str, seeds: int) -> str:
    """A row: exponents of loss and error over the last factor 10^1.5 of t, derived, of the flow and of the runs; deviations."""
    system, steps = system_of(name)
    times = np.unique(np.geomspace(steps / WINDOW, steps, POINTS).astype(int))
    runs = simulate(system, times, seeds, seed=list(CASES).index(name))
    flow = integrate(system, ts=np.concatenate([[0.0], times]), exponents=False)
    law = predict_law(system, steps)
    cells = []
    for derived, values, theory in (
        (law.loss_exponent, runs.loss, np.asarray(flow.loss)[1:]),
        (law.error_exponent, runs.error, np.asarray(flow.observables["error"])[1:]),
    ):
        each = slope(times, values)
        mean, error = values.mean(axis=1), values.std(axis=1, ddof=1) / seeds**0.5
        off, z = mean / theory - 1, (mean - theory) / error
        worst = int(np.argmax(np.abs(off)))
        cells += [
            f"{derived:.3f}", f"{slope(times, theory):.3f}", f"{each.mean():.3f} +- {each.std(ddof=1) / seeds**0.5:.3f}",
            f"{off[worst]:+.1%} +- {error[worst] / theory[worst]:.1%}, {np.sqrt(np.mean(z**2)):.1f}",
        ]  # fmt: skip
    fell = float(np.asarray(flow.loss)[0] / np.asarray(flow.loss)[-1])
    return f"| {name} | {fell:.3g} | {' | '.join(cells)} |"


def third(seeds: int) -> Iterator[str]:
    """Lines of both tables, as they come."""
    columns = "derived | flow | runs | largest deviation, rms z"
    yield f"| layer | loss falls by | loss: {columns} | error: {columns} |"
    yield "|---" * 10 + "|"
    for name in CASES:
        yield exponents(name, seeds)
    yield ""
    yield "| rule | settings | loss: derived | flow | error: derived | flow | L at 1e9 | to 0.1 | to 0.02 | to 0.005 | remark |"
    yield "|---" * 11 + "|"
    for name in OPTIMIZER_ROWS:
        (row,) = compare_escapes(np.array([0.1, 0.02, 0.005]), names=[name]).rows
        powers = zip(row.predicted, row.measured, strict=True)
        cells = [f"{x:.3f}" for pair in powers for x in pair] + [f"{row.curve.loss[-1]:.3g}"]
        cells += [f"{reach.steps:.3g}" if reach.reached else "-" for reach in row.reaches]
        yield f"| {row.name} | {row.settings} | {' | '.join(cells)} | {row.cost} |"
