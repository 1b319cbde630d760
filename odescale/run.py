"""The one record of a training: what was measured of every seed at the record times, with the clock that it ran on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from odescale.clock import Clock, SampledSchedule, parse_schedule, schedule_samples, schedule_text
from odescale.errors import InputError
from odescale.files import read_npz, write_npz
from odescale.logs.read import TrainingLog, digest

if TYPE_CHECKING:  # with pandas the slowest of all imports, for one method
    import xarray

FORMAT = "odescale run 3"


class Run(eqx.Module):
    r"""X_s(t_n) of seeds s = 1..S at record times n: <X>(t_n) = mean over s, with its standard error.

    One unit of t is `clock.steps_per_unit` SGD steps (tr Sigma for a mean-field run, one step for a language model).

    - `step`, `t` (n,): SGD steps and t = step/`clock.steps_per_unit`. `seeds` (s,): which.
    - `records`: name -> (s, n, ...). "loss" (s, n) is always among them: the excess loss that a theory predicts. `NAME_stderr`:
      error of each seed's own number (part of the scatter between seeds). `NAME_common_stderr`: error that all seeds share
      (common quadrature nodes, a common test set), which no number of seeds averages away.
    - `model`: final weights, a dict of arrays with leading axis s, or any pytree; None where they were not kept.
    - `config`: what was trained, JSON-able, the identity of the run; `meta`: machine, versions, seconds, never part of it.

    **Errors**: `InputError` for records that do not fit. Source: one seed is one draw of start, data and labels; averages over
    seeds are what mean-field theories predict.
    """

    step: Int[np.ndarray, " n"]
    t: Float[np.ndarray, " n"]
    seeds: Int[np.ndarray, " s"]
    records: dict[str, Any]
    model: Any
    clock: Clock
    config: dict[str, Any] = eqx.field(static=True)
    meta: dict[str, Any] = eqx.field(static=True)

    def __check_init__(self) -> None:
        shape = (len(self.seeds), len(self.step))
        if "loss" not in self.records:
            raise InputError("records", expected='"loss" among them', got=sorted(self.records), remedy="measure it")
        for name, values in self.records.items():
            if np.shape(values)[:2] != shape:
                raise InputError(
                    name, expected=f"leading shape {shape}", got=np.shape(values), remedy="(seeds, times, ...)"
                )

    def __getitem__(self, name: str) -> np.ndarray:
        """The record of that name, (s, n, ...)."""
        if name not in self.records:
            raise InputError(
                "name", expected=f"one of {', '.join(sorted(self.records))}", got=name, remedy="see records"
            )
        return np.asarray(self.records[name])

    def mean(self, name: str = "loss") -> Float[np.ndarray, "n ..."]:
        """Mean of a record over seeds."""
        return self[name].mean(axis=0)

    def scatter(self, name: str = "loss") -> Float[np.ndarray, "n ..."]:
        """Standard error of `mean` from the spread over seeds alone; two or more seeds."""
        if len(self.seeds) < 2:
            raise InputError(
                "seeds", expected="at least two for a spread", got=len(self.seeds), remedy="train more seeds"
            )
        return self[name].std(axis=0, ddof=1) / np.sqrt(len(self.seeds))

    def stderr(self, name: str = "loss") -> Float[np.ndarray, "n ..."]:
        """Standard error of `mean`: the scatter of the seeds and, in squares, what is common to all of them."""
        common = self.records.get(f"{name}_common_stderr")
        scatter = self.scatter(name)
        return scatter if common is None else np.hypot(scatter, np.asarray(common).mean(axis=0))

    def learning_rate(self) -> Float[np.ndarray, " n"]:
        """eta(t_n) of plain SGD steps at the record times."""
        shape = jax.vmap(self.clock.schedule)(jnp.asarray(self.t, dtype=float))
        return np.asarray(self.clock.learning_rate * shape, dtype=float) * np.ones(self.t.size)

    def log(self, name: str = "loss", seed: int | None = None) -> TrainingLog:
        """The run as the `TrainingLog` that the readers give: for `report_logs`, `fit_law` and `forecast`.

        **Arguments**: `name` of a record (s, n); `seed`: one of `seeds`, default the mean over all of them. The learning rate
        is the schedule's at every record; steps before the first one belong to its history: intrinsic time starts at step 0.
        """
        if seed is not None and seed not in self.seeds:
            raise InputError("seed", expected=f"one of {self.seeds.tolist()}", got=seed, remedy="or None for the mean")
        if self[name].ndim != 2:
            raise InputError("name", expected="a record of one number per time", got=name, remedy="e.g. loss")
        loss = self.mean(name) if seed is None else self[name][self.seeds.tolist().index(seed)]
        keep = np.isfinite(loss)
        tokens = self.clock.tokens_seen(self.t) if np.isfinite(float(self.clock.tokens)) else None
        who = f"mean of {len(self.seeds)} seeds" if seed is None else f"seed {seed}"
        label = str(self.config.get("label", "run"))
        series: dict[str, Any] = {
            "step": np.asarray(self.step, dtype=float)[keep],
            "loss": np.asarray(loss, dtype=float)[keep],
            "learning_rate": self.learning_rate()[keep],
            "tokens": None if tokens is None else np.asarray(tokens, dtype=float)[keep],
        }
        return TrainingLog(
            name=f"{label}, {who}",
            **series,
            columns=(("loss", name), ("learning_rate", "schedule")),
            notes=() if keep.all() else (f"{int((~keep).sum())} records without a number left out",),
            source="odescale.train",
            sha256=digest(series),
            warmup_steps=0.0,
        )

    def to_xarray(self) -> xarray.Dataset:
        """An `xarray.Dataset` over `seed` and `t` with `step` as a further coordinate; other axes are numbered."""
        import xarray

        data = {}
        for name in self.records:
            values = self[name]
            extra = tuple(f"{name}_{i}" for i in range(values.ndim - 2))
            data[name] = (("seed", "t", *extra), values)
        coords = {"seed": self.seeds, "t": self.t, "step": ("t", self.step)}
        attrs = {"config": json.dumps(self.config), "meta": json.dumps(self.meta, default=str)}
        dataset = xarray.Dataset(data, coords, attrs=attrs)
        dataset["t"].attrs["long_name"] = f"time, one unit = {self.clock.unit}"
        return dataset

    def save(self, path: str | os.PathLike) -> Path:
        """One npz with all arrays and a JSON header, written atomically; `Run.load` reads it back."""
        arrays = {name: np.asarray(getattr(self, name)) for name in ("step", "t", "seeds")}
        arrays |= {f"record:{name}": np.asarray(values) for name, values in self.records.items()}
        if isinstance(self.model, dict):
            arrays |= {f"model:{name}": np.asarray(values) for name, values in self.model.items()}
        else:
            leaves = jax.tree_util.tree_leaves(eqx.filter(self.model, eqx.is_array))
            arrays |= {f"leaf:{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        clock: dict[str, Any] = {
            name: float(getattr(self.clock, name)) for name in ("steps_per_unit", "learning_rate", "batch", "tokens")
        }
        clock |= {"schedule": schedule_text(self.clock.schedule), "step": self.clock.step}
        if clock["schedule"] is None:
            clock["samples"] = schedule_samples(self.clock.schedule, float(self.t[-1]))
        return write_npz(path, arrays, {"format": FORMAT, "config": self.config, "meta": self.meta, "clock": clock})

    @classmethod
    def load(cls, path: str | os.PathLike, like: Any = None) -> Run:
        """Reads what `save` wrote; `CheckpointError` for a file that is missing, cut short or altered.

        A schedule of the user's own comes back as its samples, linearly interpolated. A model that was no dict of arrays comes back
        in the shape of `like` (a pytree of the same structure), and as None without it.
        """
        arrays, header = read_npz(path, FORMAT, remedy="train again, or check the path")
        parts: dict[str, dict[str, np.ndarray]] = {"record": {}, "model": {}, "leaf": {}}
        for name, values in arrays.items():
            kind, _, rest = name.partition(":")
            if rest:
                parts[kind][rest] = values
        model: Any = parts["model"] or None
        if parts["leaf"] and like is not None:
            held, rest = eqx.partition(like, eqx.is_array)
            found = [jnp.asarray(parts["leaf"][str(i)]) for i in range(len(parts["leaf"]))]
            model = eqx.combine(jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(held), found), rest)
        noted = header["clock"]
        samples = noted.pop("samples", None)
        text = noted.pop("schedule")
        schedule = parse_schedule(text) if text is not None else SampledSchedule(samples["t"], samples["s"])
        return cls(
            step=arrays["step"],
            t=arrays["t"],
            seeds=arrays["seeds"],
            records=parts["record"],
            model=model,
            clock=Clock(**noted, schedule=schedule),
            config=header["config"],
            meta=header["meta"],
        )

    def __repr__(self) -> str:
        lines = [
            f"Run of {self.config.get('label', 'a network')}: {len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}, "
            f"{len(self.step)} records up to step {int(self.step[-1])} = {self.t[-1]:.6g} units of t "
            f"(one unit = {self.clock.unit})",
            _course("loss", self.mean("loss"), self.scatter("loss") if len(self.seeds) > 1 else None),
            f"records: {', '.join(f'{name} {np.shape(values)[2:] or str()}'.strip() for name, values in self.records.items())}",
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return repr(self)


def _course(name: str, values: Sequence[float] | np.ndarray, error: np.ndarray | None) -> str:
    last = f"{values[-1]:.4g}" + ("" if error is None else f" +- {error[-1]:.1g}")
    return f"{name} {values[0]:.4g} -> {last}"
