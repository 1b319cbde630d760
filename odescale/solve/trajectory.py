"""The record of an integration: times, state, loss, exponents, observables, masks, errors, clocks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from odescale.clock import Clock, parse_schedule, schedule_text
from odescale.errors import InputError
from odescale.files import read_npz, write_npz

if TYPE_CHECKING:  # with pandas the slowest of all imports, for one method
    import xarray

FORMAT = "odescale-trajectory-1"
_ARRAYS = ("t", "state", "loss", "exponent", "index", "valid", "code", "error")


class Trajectory(eqx.Module):
    """L(t), p(t), q(t), overlaps and observables of one system, or of a batch of parameter sets (leading axis).

    - `t` (n,): ODE time; one unit is `clock.steps_per_unit` SGD steps.
    - `state` (..., n, modes, P, P): the solver's state. `loss` (..., n): excess loss.
    - `exponent` p = -dlog L/dlog t and `index` q = dlog p/dlog t (..., n): exact along the flow.
    - `observables`: name -> (..., n, ...), among them `overlaps` (..., n, P, P).
    - `valid` (..., n): False (and NaN elsewhere) beyond the time reached. `code` (...): see `odescale.solve.codes`.
    - `error` (..., n) or None: estimated relative error of the loss (`accuracy="check"`; always for `MeanField`, where it
      is the 95 % half width over independent node sets, whose losses are the observable `replicate_loss` (..., n, R)).
    - `clock`: conversions. `meta`: solver, ladder, steps, tolerances, parameters, versions.
    """

    t: Float[Array | np.ndarray, " n"]
    state: Any
    loss: Float[Array | np.ndarray, "*batch n"]
    exponent: Float[Array | np.ndarray, "*batch n"]
    index: Float[Array | np.ndarray, "*batch n"]
    observables: dict[str, Any]
    valid: Bool[Array | np.ndarray, "*batch n"]
    code: Int[Array | np.ndarray, "*batch"]
    error: Float[Array | np.ndarray, "*batch n"] | None
    clock: Clock
    meta: dict[str, Any]

    def __repr__(self) -> str:
        members = np.shape(self.loss)[:-1]
        one = self if not members else self.member(0)
        unit = f"one unit of t = {self.clock.unit}"
        head = f"Trajectory of {self.meta.get('system', 'a system')}: {len(self.t)} times from 0 to {self.t[-1]:.6g} ({unit})"
        shown = np.flatnonzero(np.asarray(one.valid))
        first, last = (shown[0], shown[-1]) if shown.size else (0, 0)
        course = (
            f"  loss {one.loss[first]:.4g} -> {one.loss[last]:.4g} at t = {self.t[last]:.6g}, there "
            f"p = {one.exponent[last]:.3g}, q = {one.index[last]:.3g}"
            + ("" if one.error is None else f", relative error {one.error[last]:.1g}")
        )
        if members:
            names = ", ".join(self.meta.get("members", {}))
            head = (
                f"{members[0]} parameter sets ({names}), {int(np.sum(np.asarray(self.code) != 0))} with a code; {head}"
            )
            course = f"  first:{course[1:]}"
        if not members and int(self.code) != 0:
            course += f"; code {int(self.code)}"
        remarks = "".join(f"\n  {line}" for line in self.meta.get("remarks", ()))
        return f"{head}\n{course}{remarks}\n  observables: {', '.join(self.observables)}"

    def __str__(self) -> str:
        return repr(self)

    @property
    def excess_loss(self) -> Float[Array | np.ndarray, "*batch n"]:
        """The loss minus its irreducible part (the same numbers: these systems have none)."""
        return self.loss

    @property
    def overlaps(self) -> Float[Array | np.ndarray, "*batch n P P"]:
        """C(t), the covariance of the local fields."""
        return self.observables["overlaps"]

    def steps(self) -> Float[np.ndarray, " n"]:
        """SGD steps at the output times."""
        return np.asarray(self.clock.steps(self.t))

    def to_xarray(self) -> xarray.Dataset:
        """An `xarray.Dataset` over `t` (and `member`, `row`, `column`), with `steps` and `tau` as further coordinates."""
        import xarray

        batch = ("member",) * (np.ndim(self.loss) - 1)
        data: dict[str, Any] = {
            name: (batch + ("t",), np.asarray(getattr(self, name))) for name in ("loss", "exponent")
        }
        data |= {"index": (batch + ("t",), np.asarray(self.index)), "valid": (batch + ("t",), np.asarray(self.valid))}
        data["code"] = (batch, np.asarray(self.code))
        if self.error is not None:
            data["error"] = (batch + ("t",), np.asarray(self.error))
        for name, values in self.observables.items():
            values = np.asarray(values)
            extra = (
                ("replicate",) if name == "replicate_loss" else ("row", "column")[: values.ndim - np.ndim(self.loss)]
            )
            data[name] = (batch + ("t",) + extra, values)
        coords: dict[str, Any] = {"t": np.asarray(self.t), "steps": ("t", self.steps())}
        if not batch:
            coords["tau"] = ("t", np.asarray(self.clock.tau(self.t)))
        rows = self.meta.get("parameters", {}).get("rows")
        if rows:
            coords |= {"row": rows, "column": rows}
        dataset = xarray.Dataset(data, coords, attrs={"meta": json.dumps(self.meta, default=str)})
        dataset["t"].attrs["long_name"] = f"ODE time, one unit = {self.clock.unit}"
        return dataset

    def save(self, path: str | os.PathLike) -> Path:
        """Writes everything to one .npz file, atomically; `Trajectory.load` reads it back."""
        header = {
            "format": FORMAT,
            "meta": self.meta,
            "steps_per_unit": self.clock.steps_per_unit,
            "step": self.clock.step,
            "schedule": schedule_text(self.clock.schedule),
        }
        arrays = {name: np.asarray(getattr(self, name)) for name in _ARRAYS if getattr(self, name) is not None}
        arrays |= {f"observable:{name}": np.asarray(value) for name, value in self.observables.items()}
        arrays |= {
            f"clock:{name}": np.asarray(getattr(self.clock, name)) for name in ("learning_rate", "batch", "tokens")
        }
        return write_npz(path, arrays, header)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Trajectory:
        """Reads what `save` wrote. A schedule of the user's own comes back as constant, and `meta` says so."""
        arrays, header = read_npz(path, FORMAT)
        meta = dict(header["meta"])
        text = header["schedule"]
        if text is None:
            meta["schedule_lost"] = "a callable schedule cannot be saved; intrinsic time is not available"
        clock = Clock(
            header["steps_per_unit"],
            arrays["clock:learning_rate"],
            parse_schedule(text or "constant"),
            arrays["clock:batch"],
            arrays["clock:tokens"],
            header.get("step", "SGD step"),  # earlier files do not have it
        )
        observables = {name.split(":", 1)[1]: value for name, value in arrays.items() if name.startswith("observable:")}
        fields = {name: arrays.get(name) for name in _ARRAYS}
        return cls(observables=observables, clock=clock, meta=meta, **fields)  # type: ignore[arg-type]

    def member(self, number: int) -> Trajectory:
        """One parameter set of a batch."""
        if np.ndim(self.loss) == 1:
            raise InputError("number", expected="a batched trajectory", got="a single one", remedy="use it as it is")
        arrays = {
            name: None if getattr(self, name) is None else np.asarray(getattr(self, name)[number])
            for name in _ARRAYS[1:]
        }
        eta, batch, tokens = (
            np.asarray(leaf)[number] if np.ndim(leaf) else leaf
            for leaf in (self.clock.learning_rate, self.clock.batch, self.clock.tokens)
        )
        clock = Clock(self.clock.steps_per_unit, eta, self.clock.schedule, batch, tokens, self.clock.step)
        observables = {name: value[number] for name, value in self.observables.items()}
        meta = dict(self.meta)
        own = {name: column[number] for name, column in meta.pop("members", {}).items()}
        meta["parameters"] = meta.get("parameters", {}) | own
        if "stats" in meta:
            entry = {name: column[number] for name, column in meta.pop("stats").items()}
            meta["ladder"] = [entry | {"solver": meta["solver"], "code": int(self.code[number])}]
        return Trajectory(t=self.t, observables=observables, clock=clock, meta=meta, **arrays)  # type: ignore[arg-type]
