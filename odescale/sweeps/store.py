"""The store of a sweep: one zarr group, its member axis in chunks of the work, each written whole; a marker after its data.

    PATH/                   a zarr group (format 3), opened by `xarray.open_zarr(PATH, consolidated=False)`
      learning_rate (member,)   the values of the parameters, as coordinates; t (t,) the output times, steps (t,) in SGD steps
      loss (member, t), ...     outputs; NaN, or -1 for integers, where a chunk has not been computed
      seconds (chunk,)          the markers: what each chunk took, NaN until all its data are there

A file of a chunk is written beside its target and moved into place by zarr, so that a killed writer leaves no half of one. No two
chunks share a file: the member axis of every output is cut as the work is.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from odescale.errors import CheckpointError, InputError
from odescale.files import whole_file
from odescale.solve.members import Columns
from odescale.sweeps.chunk import Array
from odescale.sweeps.plan import FORMAT, Plan

MARKER = "seconds"
ATTRIBUTE = "odescale"
INSTALL = 'pip install "odescale[cluster]"'


def require_zarr() -> Any:
    """The package zarr, or an `InputError` with the command that installs it."""
    try:
        import zarr
    except ImportError as error:
        raise InputError("store", expected="the package zarr", got=str(error), remedy=INSTALL) from error
    return zarr


class Store:
    """An existing store: the plan that it was made for, the values of its members, its chunks."""

    def __init__(self, path: Path, write: bool = False) -> None:
        zarr = require_zarr()
        self.path = path
        try:
            self._group = zarr.open_group(str(path), mode="r+" if write else "r", zarr_format=3)
            record = self._group.attrs[ATTRIBUTE]
            assert record["format"] == FORMAT
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise _of_the_disk(error, path) from error
            raise CheckpointError(
                "store", expected=f"a new path or a sweep ({FORMAT})", got=f"{path}, which is something else",
                remedy="choose another path",
            ) from error  # fmt: skip
        self.record: dict[str, Any] = dict(record)
        self.plan = Plan.of(record)
        self.fingerprint = str(self._group.attrs["fingerprint"])
        self._parameters = list(self._group.attrs["parameters"])
        self.outputs = list(self._group.attrs["outputs"])

    def columns(self, members: slice = slice(None)) -> Columns:
        """Values of the parameters by name."""
        return {name: np.asarray(self._group[name][members]) for name in self._parameters}

    def read(self, name: str, members: slice) -> np.ndarray:
        """One output of some members."""
        return np.asarray(self._group[name][members])

    def missing(self) -> list[int]:
        """Chunks without a marker."""
        return np.flatnonzero(np.isnan(np.asarray(self._group[MARKER][:]))).tolist()

    def is_done(self, number: int) -> bool:
        return bool(np.isfinite(self._group[MARKER][number]))

    def write(self, number: int, arrays: Mapping[str, np.ndarray], seconds: float) -> None:
        """All data of a chunk, then its marker. Written again it gives the same files."""
        members = self.plan.members_of(number)
        with _disk(self.path):
            for name in self.outputs:
                self._group[name][members] = arrays[name]
            self._group[MARKER][number] = seconds

    @property
    def summary(self) -> Path:
        """Where the table of members stands."""
        return self.path.with_suffix(".csv")

    def write_summary(self) -> Path:
        """What is one number a member, as a CSV beside the store: the values, then the outputs; empty where there is nothing."""
        target = self.summary
        single = [name for name in self.outputs if self._group[name].ndim == 1]
        heads = ["member", *self._parameters, *single]
        with _disk(target), whole_file(target, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(heads)
            for number in range(self.plan.chunks):
                members = self.plan.members_of(number)
                columns = [np.arange(members.start, members.stop)]
                columns += [self._group[name][members] for name in heads[1:]]
                rows = zip(*(np.asarray(column).tolist() for column in columns), strict=True)
                writer.writerows(["" if value != value else value for value in row] for row in rows)
        return target

    def tidy(self) -> None:
        """Removes what killed writers left beside their targets; only once nobody writes any more."""
        for left in self.path.rglob("*.partial"):
            left.unlink(missing_ok=True)


def create_store(
    path: Path,
    plan: Plan,
    fingerprint: str,
    columns: Columns,
    times: Float[np.ndarray, " n"],
    steps: Float[np.ndarray, " n"],
    arrays: Mapping[str, Array],
    described: Mapping[str, Any],
) -> None:
    """An empty store with plan and values, made beside its place and moved there whole; one that is there already stays."""
    zarr = require_zarr()
    with _disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            group = zarr.open_group(str(temporary / "new"), mode="w", zarr_format=3)
            group.attrs.update(
                {
                    ATTRIBUTE: plan.record(), "fingerprint": fingerprint, "parameters": list(columns), "outputs": list(arrays),
                    # Where xarray looks for the names of coordinates.
                    "coordinates": " ".join([*columns, "steps"]), "described": json.loads(json.dumps(described, default=str)),
                }
            )  # fmt: skip
            unit = {"long_name": str(described.get("time_unit", "t"))}
            for name, values, dims, attributes in (
                *((name, column, "member", {}) for name, column in columns.items()),
                ("t", times, "t", unit),
                ("steps", steps, "t", {"long_name": "SGD steps"}),
            ):
                chunk = plan.chunk if dims == "member" else values.size
                made = group.create_array(
                    name, shape=values.shape, chunks=(chunk,), dtype="float64", fill_value=np.nan, dimension_names=(dims,),
                    attributes=attributes,
                )  # fmt: skip
                made[:] = values
            for name, array in arrays.items():
                group.create_array(
                    name, shape=(plan.members, *array.shape), chunks=(plan.chunk, *array.shape), dtype=array.dtype,
                    fill_value=array.fill, dimension_names=("member", *array.dimensions),
                )  # fmt: skip
            group.create_array(
                MARKER, shape=(plan.chunks,), chunks=(1,), dtype="float64", fill_value=np.nan, dimension_names=("chunk",),
                attributes={"long_name": "time taken by each chunk, NaN: not computed"},
            )  # fmt: skip
            try:
                os.rename(temporary / "new", path)
            except OSError:
                if not path.is_dir():  # else another driver was first
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _of_the_disk(error, path) from error


def _of_the_disk(error: OSError, path: Path) -> CheckpointError:
    return CheckpointError(
        "store", expected="room and permission to write", got=f"{error.strerror or error}: {path}",
        remedy="make room or choose another place; what is done stays, and the same call goes on from there",
    )  # fmt: skip
