"""The record of a training run: overlaps and losses of every seed at the record times, with the clock."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odescale.clock import Clock
from odescale.errors import InputError
from odescale.training.checkpoint import read_arrays, write_arrays

ARRAYS = ("step", "t", "seeds", "overlaps", "row_overlaps", "loss", "loss_stderr", "loss_infinite", "rows")


class SampledSchedule(eqx.Module):
    """s(t) by linear interpolation of samples: how a saved run remembers a schedule that was any callable."""

    times: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]

    def __call__(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.interp(jnp.asarray(t), jnp.asarray(self.times), jnp.asarray(self.values))


class TrainingRun(eqx.Module):
    """Seeds s, record times n, rows P of a finite-size SGD run.

    - `step`, `t` `(n,)`: SGD steps and t = step / N (`clock` converts further). `seeds` `(s,)`.
    - `overlaps` `(s, n, P, P)`: C = A Sigma A^T / N, `row_overlaps`: R = A A^T / N, measured exactly in float64.
    - `loss` `(s, n)`: test loss of the finite-context network at those overlaps, `loss_stderr` its Monte Carlo standard
      error; `loss_infinite` `(s, n)`: L(C) of the infinite-context theory at the same overlaps; None for a mean-field run,
      whose `loss` is the population loss at these overlaps itself and `loss_stderr` the error of its quadrature.
    - `rows` `(s, P, d)`: the final weights.
    - `config`: what was trained (JSON-able); `meta`: machine, versions, seconds (never part of the identity of a run).
    """

    step: Int[np.ndarray, " n"]
    t: Float[np.ndarray, " n"]
    seeds: Int[np.ndarray, " s"]
    overlaps: Float[np.ndarray, "s n P P"]
    row_overlaps: Float[np.ndarray, "s n P P"]
    loss: Float[np.ndarray, "s n"]
    loss_stderr: Float[np.ndarray, "s n"]
    loss_infinite: Float[np.ndarray, "s n"] | None
    rows: Float[np.ndarray, "s P d"]
    clock: Clock
    config: dict[str, Any] = eqx.field(static=True)
    meta: dict[str, Any] = eqx.field(static=True)

    def __check_init__(self) -> None:
        shape = (len(self.seeds), len(self.step))
        for name in ("loss", "loss_stderr", "loss_infinite", "overlaps", "row_overlaps"):
            if getattr(self, name) is not None and getattr(self, name).shape[:2] != shape:
                raise InputError(
                    name, expected=f"leading shape {shape}", got=getattr(self, name).shape, remedy="(seeds, times, ...)"
                )

    def mean_loss(self) -> Float[np.ndarray, " n"]:
        """Mean test loss over seeds."""
        return self.loss.mean(axis=0)

    def stderr(self) -> Float[np.ndarray, " n"]:
        """Standard error of `mean_loss` from the spread over seeds (which contains the Monte Carlo error); 2+ seeds."""
        if len(self.seeds) < 2:
            raise InputError(
                "seeds", expected="at least two for a spread", got=len(self.seeds), remedy="train more seeds"
            )
        return self.loss.std(axis=0, ddof=1) / np.sqrt(len(self.seeds))

    def save(self, path: str | os.PathLike) -> Path:
        """One npz with all arrays and a JSON header, written atomically."""
        arrays = {name: np.asarray(getattr(self, name)) for name in ARRAYS if getattr(self, name) is not None}
        return write_arrays(path, "training run", arrays, {"config": self.config, "meta": self.meta})

    @classmethod
    def load(cls, path: str | os.PathLike) -> TrainingRun:
        """Reads what `save` wrote; `CheckpointError` for a file that is missing, cut short or altered.

        A schedule comes back as its samples, linearly interpolated (`SampledSchedule`).
        """
        arrays, header = read_arrays(path, "training run", "path", "train again, or check the path")
        return cls(
            **{name: arrays.get(name) for name in ARRAYS},  # type: ignore[arg-type]
            clock=clock_of(header["config"]),
            config=header["config"],
            meta=header["meta"],
        )


def clock_of(config: dict[str, Any], schedule: Any = None) -> Clock:
    """The clock of a run's configuration; `schedule` overrides the recorded samples."""
    if schedule is None and config["schedule"] is not None:
        schedule = SampledSchedule(np.asarray(config["schedule"]["t"]), np.asarray(config["schedule"]["s"]))
    given = {} if schedule is None else {"schedule": schedule}
    return Clock(
        steps_per_unit=config["scale"],
        learning_rate=config["learning_rate"],
        batch=config["batch"],
        tokens=config["tokens"],
        **given,
    )
