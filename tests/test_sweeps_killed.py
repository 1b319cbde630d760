"""Real engines, and what is left when workers and drivers are killed: the finished store is that of an undisturbed sweep."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr
from sweep_engines import CHUNK, MEMBERS, run

pytestmark = pytest.mark.slow
CHUNKS = MEMBERS // CHUNK
KILLS = 20
DRIVER = Path(__file__).with_name("sweep_engines.py")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    run("here", str(folder / "r.zarr"), str(folder / "log"))
    return folder / "r.zarr"


def require_equal(path: Path, other: Path) -> None:
    """Bit by bit, everything but the time that chunks took."""
    one, two = (zarr.open_group(str(store), mode="r") for store in (path, other))
    assert sorted(one.array_keys()) == sorted(two.array_keys())
    for name in one.array_keys():
        if name != "seconds":
            np.testing.assert_array_equal(one[name][:], two[name][:], err_msg=name)
    assert np.isfinite(one["seconds"][:]).all()
    assert path.with_suffix(".csv").read_bytes() == other.with_suffix(".csv").read_bytes()


def lines_of(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def started(engine: str, store: Path, log: Path) -> subprocess.Popen:
    with (store.parent / "driver.err").open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, str(DRIVER), engine, str(store), str(log)], stderr=errors, start_new_session=True
        )


def workers_of(driver: subprocess.Popen) -> list[psutil.Process]:
    """The processes below a driver that compute."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one too
                line = " ".join(process.cmdline())
                if "multiprocessing.spawn" in line or "submitit.core._submit" in line:
                    found.append(process)
    return found


@pytest.mark.parametrize("engine", ["dask", "submitit"])
def test_an_engine_computes_what_one_process_does(engine, undisturbed, tmp_path):
    driver = started(engine, tmp_path / "r.zarr", log := tmp_path / "log")
    assert driver.wait(300) == 0, (tmp_path / "driver.err").read_text()[-2000:]
    require_equal(tmp_path / "r.zarr", undisturbed)
    done = Counter(words[1] for words in lines_of(log) if words[0] == "computed")
    assert done == Counter(map(str, range(CHUNKS)))
    pids = {words[2] for words in lines_of(log) if words[0] == "computed"}
    assert len(pids) == 2 and str(driver.pid) not in pids


@pytest.mark.parametrize("engine", ["dask", "submitit"])
def test_killed_workers_and_drivers_lose_nothing(engine, undisturbed, tmp_path):
    """Twenty times a worker or the driver, at random moments after some chunk was done; every driver goes on where it was."""
    store, log = tmp_path / "r.zarr", tmp_path / "log"
    chance = random.Random(engine)
    kills: Counter[str] = Counter()
    drivers = [started(engine, store, log)]
    left: list[psutil.Process] = []
    end = time.monotonic() + 1500
    try:
        while kills.total() < KILLS:
            computed = sum(words[0] == "computed" for words in lines_of(log))
            while drivers[-1].poll() is None and sum(words[0] == "computed" for words in lines_of(log)) <= computed:
                assert time.monotonic() < end, "no chunk was done"
                time.sleep(0.02)
            if drivers[-1].poll() is not None:  # its engine gave up on tasks whose workers were killed too often
                assert drivers[-1].returncode != 0, f"finished after {kills} kills: too few chunks"
                drivers.append(started(engine, store, log))
                continue
            time.sleep(chance.uniform(0, 0.5))
            workers = workers_of(drivers[-1])
            if not workers:  # it has hardly begun, or ends
                continue
            if chance.random() < 0.5:
                left += workers
                os.kill(drivers[-1].pid, signal.SIGKILL)
                drivers[-1].wait()
                kills["driver"] += 1
                for worker in (
                    workers if engine == "submitit" else ()
                ):  # jobs outlive their driver: these are stopped too
                    worker.kill()
                drivers.append(started(engine, store, log))
            else:
                chance.choice(workers).kill()
                kills["worker"] += 1
        while drivers[-1].wait(300) != 0:
            drivers.append(started(engine, store, log))
            assert time.monotonic() < end
    finally:
        for process in [*left, *(worker for driver in drivers for worker in workers_of(driver)), *drivers]:
            if isinstance(process, psutil.Process) or process.poll() is None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    assert min(kills["driver"], kills["worker"]) >= 5
    require_equal(store, undisturbed)
    assert not list(store.rglob("*.partial"))
    # Submitted or computed again is at most what was in flight in the two workers when their driver was killed.
    done: Counter[str] = Counter()
    resubmitted = 0
    for words in lines_of(log):
        if words[0] == "submitted":
            resubmitted += len(set(words[1:-1]) & set(done))
        elif words[0] == "computed":
            done[words[1]] += 1
    twice = done.total() - len(done)
    print(
        f"{engine}: {dict(kills)}, {len(drivers)} drivers, {twice} chunks computed twice, {resubmitted} submitted again"
    )
    assert set(done) <= set(map(str, range(CHUNKS)))
    assert twice <= 2 * kills["driver"] and resubmitted <= 2 * kills["driver"]
