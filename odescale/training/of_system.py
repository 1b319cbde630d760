"""The finite-size run that a system predicts: same rows, same start, same clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from odescale.clock import ConstantSchedule
from odescale.errors import InputError
from odescale.systems.attention import Attention
from odescale.training.run import TrainingRun
from odescale.training.train import train

LARGEST_DIMENSION = 20_000


def train_system(
    system: Attention,
    t1: float,
    *,
    seeds: int | Sequence[int] = 2,
    record_times: Float[np.ndarray, " n"] | None = None,
    records: int = 31,
    **settings: Any,
) -> TrainingRun:
    """SGD on the real transformer behind a system, up to time t1 (one unit of t is tr Sigma SGD steps).

    **Arguments**

    - `system`: its context length (`tokens`, finite), batch, learning rate, schedule, weight decay and initial overlaps
      are the run's; a spectrum is trained with each bin's eigenvalue repeated, up to 20 000 dimensions.
    - `t1` > 0. `record_times`: increasing times in (0, t1]; default `records` times log-spaced from t1/60.
    - `seeds`: how many (0, 1, ...), or which.
    - `settings`: further arguments of `train` (precision, checkpoint, progress, test_sequences, ...).

    **Returns** a `TrainingRun`; **raises** `InputError` where no finite network exists (tokens = inf, too many modes).
    """
    system.check()
    if not np.isfinite(float(system.tokens)) or float(system.tokens) != int(system.tokens):
        raise InputError(
            "tokens", expected="a whole number of context tokens", got=float(system.tokens), remedy="tokens=64"
        )
    if float(system.batch) != int(system.batch):
        raise InputError("batch", expected="a whole number of sequences", got=float(system.batch), remedy="batch=4")
    if not (np.isfinite(t1) and t1 > 0):
        raise InputError("t1", expected="a positive finite time", got=t1, remedy="one unit is tr Sigma SGD steps")
    if isinstance(seeds, int):
        if seeds < 1:
            raise InputError("seeds", expected="an integer >= 1", got=seeds, remedy="two or more show the scatter")
        seeds = tuple(range(seeds))
    if record_times is None:
        record_times = np.geomspace(t1 / 60, t1, records)
    return train(
        system.architecture,
        np.asarray(system.initial_overlaps),
        tokens=int(system.tokens),
        batch=int(system.batch),
        learning_rate=float(system.learning_rate),
        weight_decay=float(system.weight_decay),
        schedule=None if _is_constant(system) else system.schedule,
        record_times=record_times,
        seeds=seeds,
        **_tokens_covariance(system),
        **settings,
    )


def _is_constant(system: Attention) -> bool:
    return isinstance(system.schedule, ConstantSchedule)


def _tokens_covariance(system: Attention) -> dict[str, Any]:
    multiplicity = np.asarray(system.weights) * system.trace
    counts = np.rint(multiplicity).astype(int)
    dimension = int(counts.sum())
    if np.abs(counts - multiplicity).max() > 1e-6 * np.maximum(counts, 1).max() or dimension > LARGEST_DIMENSION:
        raise InputError(
            "modes", expected=f"at most {LARGEST_DIMENSION} whole eigenvalues in a real run", got=f"{multiplicity.sum():.4g}",
            remedy="set modes to a few thousand",
        )  # fmt: skip
    if counts.size == 1:
        return {"dimension": dimension}
    bins = np.repeat(np.arange(counts.size), counts)
    return {"eigenvalues": np.asarray(system.eigenvalues)[bins], "bins": bins}
