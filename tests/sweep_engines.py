"""A driver of a sweep, as a process of its own that can be killed: `python tests/sweep_engines.py ENGINE STORE LOG`.

Every task notes in LOG when it begins a chunk and when the chunk is done, so that a test can count what was computed how often.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import jax
import numpy as np

FILE = f"{Path(__file__).with_name('two_rates.py')}:two_rates"
MEMBERS, CHUNK, T1 = 960, 8, 200.0
VALUES = {"rate": np.linspace(0.3, 3.0, MEMBERS), "start": np.linspace(0.5, 1.5, MEMBERS)}
SETTINGS = {"points": 60, "chunk": CHUNK, "lanes": 4, "keep": ("loss", "transition")}


class Noted:
    """A task that writes down each of its chunks, and takes its time, so that a kill finds chunks in flight."""

    def __init__(self, task, log: str, pause: float) -> None:
        self.task, self.log, self.pause = task, log, pause

    def __call__(self):
        from dataclasses import replace

        for number in self.task.chunks:
            computed = replace(self.task, chunks=(number,))()
            note(self.log, f"{'computed' if computed else 'found'} {number}")
            time.sleep(self.pause)
        return list(self.task.chunks)


class Noting:
    """An engine whose tasks are noted."""

    def __init__(self, engine, log: str, pause: float = 0.2) -> None:
        self.engine, self.log, self.pause = engine, log, pause
        if hasattr(engine, "batch"):
            self.batch = engine.batch

    def submit(self, task):
        note(self.log, f"submitted {' '.join(map(str, task.chunks))}")
        return self.engine.submit(Noted(task, self.log, self.pause))


def note(log: str, text: str) -> None:
    with open(log, "ab", buffering=0) as stream:
        stream.write(f"{text} {os.getpid()}\n".encode())


def run(engine: str, store: str, log: str) -> None:
    jax.config.update("jax_enable_x64", True)
    import odescale

    if engine == "dask":
        from distributed import Client, LocalCluster

        # Real processes, started anew and not forked: JAX is not made for forks.
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            note(log, f"workers {' '.join(str(pid) for pid in client.run(os.getpid).values())}")
            odescale.sweep(FILE, T1, VALUES, store=store, executor=Noting(client.get_executor(), log), **SETTINGS)
    elif engine == "submitit":
        import submitit

        executor = submitit.AutoExecutor(folder=f"{store}.jobs", cluster="local")
        executor.update_parameters(timeout_min=30)
        odescale.sweep(FILE, T1, VALUES, store=store, executor=Noting(executor, log), jobs=2, **SETTINGS)
    else:
        odescale.sweep(FILE, T1, VALUES, store=store, **SETTINGS)


if __name__ == "__main__":
    run(*sys.argv[1:])
