"""Sweeps in a store: numbers, codes, markers, what goes on and what is refused; tasks as an engine runs them."""

from __future__ import annotations

import csv
import errno
import pickle
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import zarr
from two_rates import exact_loss, two_rates

import odescale
from odescale import InputError, sweep
from odescale.analysis.phases.numbers import MEANINGS, TransitionCode, numbers_of, transition_numbers
from odescale.analysis.phases.transition import transition_of_trajectory
from odescale.cache.programs import made
from odescale.errors import CheckpointError, SolveError
from odescale.solve.codes import Code
from odescale.sweeps.store import Store
from odescale.sweeps.sweep import open_sweep
from odescale.sweeps.task import Task

FILE = f"{Path(__file__).with_name('two_rates.py')}:two_rates"
T1 = 200.0
RATES = np.linspace(0.3, 3.0, 40)
STARTS = np.where(np.arange(40) == 23, -0.05, 1.0)
VALUES = {"rate": RATES, "start": STARTS}
SETTINGS = {
    "points": 120,
    "atol": 1e-16,
    "chunk": 16,
    "lanes": 4,
    "keep": ("loss", "transition", "end", "power_law"),
}


class Pickling:
    """An engine that runs a task at once, as another process would get it; `broken`: calls that end without running."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.broken, self.ran = broken, []

    def submit(self, task):
        future: Future = Future()
        number = len(self.ran)
        try:
            self.ran.append([] if number in self.broken else pickle.loads(pickle.dumps(task))())
            if number in self.broken:
                raise RuntimeError("worker was killed")
            future.set_result(self.ran[-1])
        except Exception as error:
            future.set_exception(pickle.loads(pickle.dumps(error)))
        return future


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A finished sweep; what it holds is tested below."""
    path = tmp_path_factory.mktemp("sweeps") / "rates.zarr"
    seen: list[tuple[int, int]] = []
    before = made["odescale.solve.sweep:_solve_group"]
    sweep(FILE, T1, VALUES, store=path, progress=lambda *pair: seen.append(pair), **SETTINGS)
    assert seen == [(16, 40), (32, 40), (40, 40)]
    # One program for all chunks.
    assert made["odescale.solve.sweep:_solve_group"] == before + 1
    return path


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_the_numbers_are_those_of_the_closed_form(store):
    data = open_sweep(store)
    assert data["loss"].dims == ("member", "t") and data["loss"].shape == (40, 120)
    exact = exact_loss(data["t"].values, RATES[:, None], start=STARTS[:, None])
    fine = np.arange(40) != 23
    np.testing.assert_allclose(data["loss"].values[fine], exact[fine], rtol=1e-6)
    np.testing.assert_allclose(data["rate"], RATES)
    np.testing.assert_allclose(data["steps"], 10 * data["t"])
    np.testing.assert_allclose(data["power_law"][0], 1 / (1 + data["t"]), rtol=1e-6)
    np.testing.assert_allclose(data["loss_end"][fine], exact[fine, -1], rtol=1e-6)
    np.testing.assert_allclose(data["exponent_end"][fine], 2 * T1 / (1 + T1), rtol=1e-4)
    assert (data["solver_steps"] > 10).all()


def test_t_x_of_each_member_is_that_of_its_formula(store):
    data = open_sweep(store)
    assert set(data["transition"].values.tolist()) >= {TransitionCode.ESTABLISHED, TransitionCode.NO_POWER_LAW}
    assert set(MEANINGS) == set(TransitionCode)
    for member in (6, 20, 39):
        rate = RATES[member]
        formula = odescale.find_transition(lambda t, r=rate: jnp.exp(-r * t) + 1e-3 / (1 + t) ** 2, T1)
        assert float(data["t_x"][member]) == pytest.approx(formula.t_x, rel=1e-2)  # output times are 8 % apart
        assert float(data["transition_depth"][member]) == pytest.approx(formula.depth, rel=1e-2)


def test_a_last_chunk_of_fewer_members_than_lanes_shares_the_program(tmp_path):
    before = made["odescale.solve.sweep:_solve_group"]
    values = {"rate": RATES[:19], "start": STARTS[:19]}
    data = sweep(FILE, T1, values, store=tmp_path / "r.zarr", **SETTINGS)  # 16 and 3, by fours
    assert made["odescale.solve.sweep:_solve_group"] == before
    np.testing.assert_allclose(data["loss_end"], exact_loss(T1, RATES[:19]), rtol=1e-6)


def test_a_member_that_runs_off_has_its_code_and_the_time_reached(store):
    data = open_sweep(store)
    assert np.flatnonzero(data["code"] != Code.OK).tolist() == [23] and data["code"][23] == Code.DIVERGED
    assert 5 < data["t_end"][23] < 20 and np.isnan(data["loss"][23, -1])
    assert np.isfinite(data["loss_end"]).all() and data["t_end"][0] == T1


def test_the_summary_beside_the_store_has_a_row_for_each_member(store):
    with store.with_suffix(".csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    data = open_sweep(store)
    assert [int(row["member"]) for row in rows] == list(range(40))
    for name in ("rate", "start", "loss_end", "t_x", "exponent_end"):
        read = [float(row[name] or "nan") for row in rows]
        np.testing.assert_array_equal(read, data[name])
    assert [int(row["code"]) for row in rows] == data["code"].values.tolist()


@pytest.mark.slow
def test_in_memory_and_in_a_store_are_the_same_integration(store):
    found = sweep(FILE, T1, VALUES, points=120, atol=1e-16, lanes=4)
    np.testing.assert_allclose(found.loss, open_sweep(store)["loss"], rtol=1e-9)
    assert found.code.tolist() == open_sweep(store)["code"].values.tolist()


def test_no_two_chunks_share_a_file(store):
    group = zarr.open_group(str(store), mode="r")
    for name, array in group.arrays():
        if array.metadata.dimension_names[0] == "member":
            assert array.chunks[0] == 16 and array.chunks[1:] == array.shape[1:], name
    assert not list(store.rglob("*.partial"))


def test_a_finished_sweep_computes_nothing(store):
    before, written = made["odescale.solve.sweep:_solve_group"], files_of(store)
    engine = Pickling()
    sweep(FILE, T1, VALUES, store=store, executor=engine, **SETTINGS)
    assert engine.ran == [] and made["odescale.solve.sweep:_solve_group"] == before and files_of(store) == written


def test_only_chunks_without_a_marker_are_computed_and_give_the_same_bytes(store, tmp_path):
    """Chunks lost of a copy: once without a marker, once half written, by an engine's tasks."""
    import shutil

    copy = tmp_path / "copy.zarr"
    shutil.copytree(store, copy)
    group = zarr.open_group(str(copy), mode="r+")
    for number in (0, 2):
        group["seconds"][number] = np.nan
    group["loss"][0:16] = 7.0
    (copy / "loss" / "c" / "0" / "0.abc.partial").write_bytes(b"half")
    engine = Pickling()
    sweep(FILE, T1, VALUES, store=copy, executor=engine, **SETTINGS)
    assert engine.ran == [[0], [2]]
    took = "seconds"
    kept, now = ({k: v for k, v in files_of(path).items() if not k.startswith(took)} for path in (store, copy))
    assert kept == now


def test_jobs_share_the_chunks_and_leave_alone_what_is_done(tmp_path):
    engine = Pickling()
    path = tmp_path / "r.zarr"
    sweep(two_rates, T1, VALUES, store=path, executor=engine, jobs=2, **SETTINGS)
    assert engine.ran == [[0, 2], [1]]
    fingerprint = Store(path).fingerprint
    assert (task := Task(str(path), (0, 1), fingerprint))() == []
    assert task.checkpoint().function == task  # what submitit queues again at the time limit
    with pytest.raises(CheckpointError, match="the sweep that this task is part of"):
        Task(str(path), (0,), "another")()


def test_lost_tasks_are_said_and_the_same_call_goes_on(tmp_path):
    path = tmp_path / "r.zarr"
    with pytest.raises(SolveError, match="1 of 3 chunks were not computed .*RuntimeError: worker was killed"):
        sweep(FILE, T1, VALUES, store=path, executor=Pickling(broken=(1,)), **SETTINGS)
    assert np.isnan(open_sweep(path)["loss"][16:32]).all() and np.isfinite(open_sweep(path)["loss"][:16]).all()
    engine = Pickling()
    sweep(FILE, T1, VALUES, store=path, executor=engine, **SETTINGS)
    assert engine.ran == [[1]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"values": VALUES | {"rate": RATES + 1e-9}}, "rate of member 0 = 0.3, got rate of member 0 = 0.300000001"),
        ({"values": {"rate": RATES}, "start": 1.0}, "start unset, got start 1.0"),
        ({"values": {"rate": RATES[:39], "start": STARTS[:39]}}, "a number of members of 40, got"),
        ({"t1": 100.0}, "t1 = 200.0, got t1 = 100.0"),
        ({"rtol": 1e-6}, "rtol 1e-08, got rtol 1e-06"),
        ({"points": 60}, "points 120, got points 60"),
        ({"solver": "dopri8"}, "solver tsit5, got solver dopri8"),
        ({"keep": ("loss",)}, "keep ["),
        ({"chunk": 8}, "chunk 16, got chunk 8"),
        ({"system": two_rates()}, "got system a built two rates"),
    ],
)
def test_a_store_of_another_sweep_is_refused_by_the_difference(store, given, words):
    asked = {"system": FILE, "t1": T1, "values": VALUES} | SETTINGS | given
    written = files_of(store)
    with pytest.raises(CheckpointError) as error:
        sweep(asked.pop("system"), asked.pop("t1"), asked.pop("values"), store=store, **asked)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert files_of(store) == written


def test_other_versions_are_refused_by_driver_and_task(store, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(store, copy := tmp_path / "copy.zarr")
    zarr.open_group(str(copy), mode="r+")["seconds"][1] = np.nan
    monkeypatch.setattr("odescale.sweeps.plan._version", lambda name: "0.0.1")
    with pytest.raises(CheckpointError, match=r"with diffrax .*, got diffrax 0\.0\.1"):
        sweep(FILE, T1, VALUES, store=copy, **SETTINGS)
    with pytest.raises(CheckpointError, match="got odescale 0.0.1 here; use the same versions everywhere"):
        Task(str(copy), (1,), Store(copy).fingerprint)()


def test_a_built_system_goes_with_its_tasks(tmp_path):
    engine = Pickling()
    path = tmp_path / "built.zarr"
    given = {"points": 120, "atol": 1e-16, "lanes": 4, "keep": (), "store": path}
    data = sweep(two_rates(tail=0.01), T1, {"rate": RATES}, executor=engine, **given)
    assert engine.ran == [[0]] and set(data.data_vars) == {"code", "solver_steps", "t_end", "loss_end", "seconds"}
    np.testing.assert_allclose(data["loss_end"], exact_loss(T1, RATES, tail=0.01), rtol=1e-6)
    with pytest.raises(CheckpointError, match="numbers of digest"):
        sweep(two_rates(tail=0.02), T1, {"rate": RATES}, **given)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_disk_and_a_read_only_store_are_one_line(tmp_path, monkeypatch, number):
    from zarr.storage import _local

    path = tmp_path / "r.zarr"
    put, calls = _local._put, []

    def fails(target, *rest, **named):
        calls.extend([target] * (path in target.parents))
        if len(calls) > 12:
            raise OSError(number, "No space left on device" if number == errno.ENOSPC else "Read-only", str(target))
        return put(target, *rest, **named)

    monkeypatch.setattr(_local, "_put", fails)
    with pytest.raises(CheckpointError, match="store: expected room and permission to write, got ") as error:
        sweep(FILE, T1, VALUES, store=path, executor=Pickling(), **SETTINGS)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    monkeypatch.undo()
    sweep(FILE, T1, VALUES, store=path, **SETTINGS)
    assert np.isfinite(open_sweep(path)["seconds"]).all()


@pytest.mark.slow
def test_a_disk_that_is_full_and_then_read_only(tmp_path):
    """A real one of 300 kB, where this process may mount it."""

    def mounted(*words: str) -> bool:
        return subprocess.run(["mount", *words, str(tmp_path)], capture_output=True).returncode == 0

    if sys.platform != "linux" or not mounted("-t", "tmpfs", "-o", "size=300k", "tmpfs"):
        pytest.skip("no permission to mount a file system")
    asked = {"store": tmp_path / "r.zarr", "points": 60, "keep": ("loss",), "chunk": 200, "lanes": 50}
    values = {"rate": np.linspace(0.3, 3.0, 2000)}
    try:
        with pytest.raises(CheckpointError, match="store: expected room .*, got No space left on device: .*r.zarr"):
            sweep(FILE, 20.0, values, **asked)
        done = np.isfinite(open_sweep(asked["store"])["seconds"].values)
        assert done.any() and not done.all()
        assert mounted("-o", "remount,ro")
        with pytest.raises(CheckpointError, match="got Read-only file system"):
            sweep(FILE, 20.0, values, **asked)
        assert mounted("-o", "remount,rw,size=20m")
        data = sweep(FILE, 20.0, values, **asked)
        assert np.isfinite(data["loss"]).all() and np.isfinite(data["seconds"]).all()
        assert mounted("-o", "remount,ro")
        assert np.isfinite(sweep(FILE, 20.0, values, **asked)["seconds"]).all()  # finished: nothing is written
        data.close()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("system", "given", "words"),
    [
        (FILE, {"keep": ("risk",)}, "keep: expected some of loss, exponent, index, transition, end, state, power_law, got"),
        (FILE, {"chunk": 0}, "chunk: expected a whole number"),
        (FILE, {"jobs": 0}, "jobs: expected a whole number"),
        (FILE, {"executor": "dask"}, "executor: expected something with submit"),
        (FILE, {"resume": False}, "store: expected nothing there yet"),
        (FILE, {"store": None, "chunk": 8}, "chunk: expected a store to go with it"),
        (FILE, {"start": [1.0]}, "start: expected a number, a word or a tuple"),
        (lambda rate=1.0: two_rates(rate), {}, "system: expected a builder that other processes find"),
        ("no_such_system", {}, "system: expected one of"),
    ],
)  # fmt: skip
def test_what_a_store_cannot_take_is_refused(system, given, words, store, tmp_path):
    path = store if "resume" in given else tmp_path / "new.zarr"
    asked = {"store": path, "points": 20, "keep": ("loss",)} | given
    with pytest.raises(InputError) as error:
        sweep(system, T1, {"rate": RATES}, **asked)
    assert str(error.value).startswith(words) and "\n" not in str(error.value)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="which is something else"):
        sweep(FILE, T1, {"rate": RATES}, store=tmp_path / "notes", points=20)
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["a.txt"]


def test_without_zarr_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(InputError, match=r'store: expected the package zarr.*pip install "odescale\[cluster\]"'):
        sweep(FILE, T1, {"rate": RATES}, store=tmp_path / "r.zarr")


def test_the_numbers_of_a_transition_are_those_of_the_record():
    cases = [
        (1.0, 1e-3, 1.0, T1),
        (1.0, 0.0, 1.0, 20.0),
        (1.0, 0.8, 30.0, T1),
        (1e-6, 0.0, 1.0, 1.0),
        (0.3, 1e-2, 1.0, 60.0),
    ]
    codes = set()
    for rate, tail, start, t1 in cases:
        one = odescale.integrate(two_rates(rate, tail, start), t1, points=120)
        record = transition_of_trajectory(one)
        numbers = transition_numbers(one.t, one.loss, one.exponent, one.index, one.valid)
        np.testing.assert_array_equal(numbers[:2], [np.nan if x is None else x for x in (record.t_x, record.depth)])
        assert numbers.code == numbers_of(record).code
        codes.add(numbers.code)
    assert len(codes) >= 4
    one = odescale.integrate(two_rates(0.1, -1.0, 1.0), 2.0, points=120)
    assert one.valid[0] and one.loss[0] == 0  # a start without risk
    assert transition_numbers(one.t, one.loss, one.exponent, one.index, one.valid).code == TransitionCode.CONSTANT
    short = transition_numbers(one.t[:5], one.loss[:5], one.exponent[:5], one.index[:5], one.valid[:5])
    assert short.code == TransitionCode.TOO_FEW


TWO_DEVICES = """
import sys, jax, numpy as np
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, "tests")
import odescale
from two_rates import two_rates
assert len(jax.devices()) == 2
rates = np.linspace(0.3, 3.0, 40)
starts = np.where(np.arange(40) == 23, -0.05, 1.0)
found = odescale.sweep(two_rates, 200.0, {"rate": rates, "start": starts}, points=120, lanes=4)
np.save(sys.argv[1], found.loss)
"""


@pytest.mark.slow
def test_two_devices_give_the_same_numbers(tmp_path):
    import os

    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, str(tmp_path / "loss.npy")],
        cwd=root, env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, check=True, timeout=300,
    )  # fmt: skip
    alone = sweep(two_rates, T1, VALUES, points=120, lanes=4)
    np.testing.assert_array_equal(np.load(tmp_path / "loss.npy"), alone.loss)
