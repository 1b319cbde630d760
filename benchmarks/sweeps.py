"""`python -m benchmarks.sweeps [--only NAME ...] [--members N] [--size small]`: sweeps into a store, each in a process of its own.

Throughput: members a second on the wall and CPU seconds a member, compilation included; how often a solve was traced; memory of the
process after the first tenth of the chunks and at its largest after that. Devices: the same sweep on one device pinned to one core;
on two forced host devices on two cores, as XLA does by default and with its threads within an operation off; and on one device in
each of two processes at once, which says what a second core gives at all. Interleaved; and whether the numbers are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FORCED = "--xla_force_host_platform_device_count="
UNTHREADED = "--xla_cpu_multi_thread_eigen=false"
"""Otherwise XLA hands parts of an operation to the other cores: more CPU time, and they have a device of their own to serve."""


class Case(NamedTuple):
    """A system, its end time, ranges of its parameters, what is kept, output times, members at full and at small size."""

    system: str
    t1: float
    ranges: dict[str, tuple[float, float]]
    keep: tuple[str, ...]
    points: int
    members: int
    small: int


RATES, STRENGTHS = {"learning_rate": (0.05, 0.3)}, {"strength": (0.3, 0.7)}
CASES = {
    "committee": Case("committee", 40.0, {"learning_rate": (0.05, 0.5)}, ("loss",), 50, 1_000_000, 640),
    "committee_summary": Case("committee", 40.0, {"learning_rate": (0.05, 0.5)}, (), 20, 100_000, 640),
    "attention": Case("attention", 40.0, RATES | STRENGTHS, ("loss",), 50, 10_000, 320),
    "attention_transition": Case("attention", 40.0, RATES | STRENGTHS, ("transition",), 200, 10_000, 320),
}


def run_case(name: str, members: int, store: str, devices: int) -> dict[str, Any]:
    """One sweep, in this process."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import numpy as np
    import psutil

    import odescale
    from odescale.cache.programs import made

    assert len(jax.devices()) == devices
    case, process = CASES[name], psutil.Process()
    random = np.random.default_rng(0)
    values = {parameter: random.uniform(*ends, members) for parameter, ends in case.ranges.items()}
    memory: list[tuple[int, int]] = []
    wall, cpu = time.perf_counter(), time.process_time()
    marks: list[tuple[int, float, float]] = []

    def note(done: int, total: int) -> None:
        memory.append((done, process.memory_info().rss))
        marks.append((done, time.perf_counter(), time.process_time()))

    found = odescale.sweep(case.system, case.t1, values, points=case.points, store=store, keep=case.keep, progress=note)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    early = max(rss for done, rss in memory if done <= max(members / 10, memory[0][0]))
    warm, least = [None, None], [None, None]
    if len(marks) > 1:  # after the first chunk, which compiles
        fewer = marks[-1][0] - marks[0][0]
        warm = [(marks[-1][i] - marks[0][i]) / fewer for i in (1, 2)]
        chunks = list(zip(marks, marks[1:], strict=False))
        least = [min((b[i] - a[i]) / (b[0] - a[0]) for a, b in chunks) for i in (1, 2)]
    return {
        "members": members, "wall": wall, "cpu": cpu, "warm_wall": warm[0], "warm_cpu": warm[1],
        "least_wall": least[0], "least_cpu": least[1],
        "traces": made["odescale.solve.sweep:_solve_group"],
        "early": early, "late": max(rss for _, rss in memory), "failed": int((found["code"] != 0).sum()),
        "steps": float(found["solver_steps"].mean()), "chunks": len(memory), "loss": float(found["loss_end"].sum()),
    }  # fmt: skip


def in_process(name: str, members: int, devices: int, folder: Path, cores: list[int]) -> dict[str, Any]:
    """The same in a fresh process on these cores."""
    return _found(_begun(name, members, devices, folder, cores))


def _begun(name: str, members: int, devices: int, folder: Path, cores: list[int], more: str = "") -> subprocess.Popen:
    store = tempfile.mkdtemp(dir=folder) + "/sweep.zarr"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FORCED}{devices} {more}".strip()
    cache = ("JAX_COMPILATION_CACHE_DIR",)
    variables = {key: value for key, value in os.environ.items() if key not in cache} | {"XLA_FLAGS": flags}
    variables |= {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.sweeps", "--here", name, str(members), store, str(devices)], cwd=ROOT, env=variables,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip


def _found(process: subprocess.Popen) -> dict[str, Any]:
    said, complaint = process.communicate()
    if process.returncode != 0:
        raise SystemExit(complaint.strip().splitlines()[-1])
    return json.loads(said.splitlines()[-1])


def throughput(names: list[str], members: int | None, small: bool, folder: Path) -> list[str]:
    """One line for each case."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    lines = [
        "| sweep | kept | members | solver steps, mean | wall | members/s | CPU a member, after the first chunk | traced | "
        "memory at a tenth / at most | failed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        case = CASES[name]
        size = members or (case.small if small else case.members)
        found = in_process(name, size, len(cores), folder, cores)
        warm = found["warm_cpu"]
        lines.append(
            f"| `{case.system}` to t = {case.t1:g} | {', '.join(case.keep) or 'summary'}, {case.points} times | {size} | "
            f"{found['steps']:.0f} | {found['wall']:.1f} s | {size / found['wall']:.0f} | "
            f"{'-' if warm is None else f'{1e3 * warm:.2f} ms'} | {found['traces']} in {found['chunks']} chunks | "
            f"{found['early'] / 2**20:.0f} / {found['late'] / 2**20:.0f} MB | {found['failed']} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def scaling(name: str, members: int, repeats: int, folder: Path) -> str:
    """One device on one core, two forced devices on two, and two processes at once with a device and a core each."""
    cores, turns = sorted(os.sched_getaffinity(0))[:2], []
    for _ in range(repeats):
        asked = ((1, cores[:1], UNTHREADED), (2, cores, UNTHREADED), (2, cores, ""))
        turn = [_found(_begun(name, members, count, folder, some, more)) for count, some, more in asked]
        both = [_begun(name, members, 1, folder, [core], UNTHREADED) for core in cores]
        turns.append([*turn, *map(_found, both)])

    def least(what: str, *places: int) -> float:
        """ms a member in the chunk that other work disturbed least."""
        return 1e3 * min(turn[i][what] for turn in turns for i in places)

    one, two, threaded, apart = (
        [least(f"least_{of}", *i) for of in ("wall", "cpu")] for i in ((0,), (1,), (2,), (3, 4))
    )
    losses = {turn[i]["loss"] for turn in turns for i in (0, 1, 3, 4)}  # another flag is another program
    same = "the same to the bit" if len(losses) == 1 else f"the same to {max(losses) / min(losses) - 1:.0e}"
    lines = [
        f"`{CASES[name].system}`, {members} members, best chunk of {repeats} interleaved runs, ms a member; numbers {same}; load "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores:",
        "",
        "| devices | wall | CPU | times as fast | for each second of CPU |",
        "|---|---|---|---|---|",
    ]
    for what, (wall, cpu), at_once in (
        ("one, on one core", one, 1), (f"two, `{UNTHREADED}`", two, 1), ("two", threaded, 1),
        ("one in each of two processes, a core each", apart, 2),
    ):  # fmt: skip
        ratios = f"{at_once * one[0] / wall:.2f} | {one[1] / cpu:.2f}"
        lines.append(f"| {what} | {wall / at_once:.3f} | {cpu:.3f} | {ratios} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables and writes them to `--folder`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps")
    parser.add_argument("--only", nargs="+", choices=(*CASES, "devices"), default=[*CASES, "devices"])
    parser.add_argument("--members", type=int, help="instead of the case's own number")
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--repeats", type=int, default=5, help="of the comparison of devices")
    parser.add_argument("--folder", type=Path, default=ROOT / "results")
    parser.add_argument("--here", nargs=4, metavar=("CASE", "MEMBERS", "STORE", "DEVICES"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.here:
        name, members, store, devices = chosen.here
        print(json.dumps(run_case(name, int(members), store, int(devices))))
        return 0
    chosen.folder.mkdir(parents=True, exist_ok=True)
    small = chosen.size == "small"
    with tempfile.TemporaryDirectory() as folder:
        names = [name for name in chosen.only if name != "devices"]
        page = throughput(names, chosen.members, small, Path(folder)) if names else []
        if "devices" in chosen.only:
            members = chosen.members or (4096 if small else 16_384)
            page += ["", scaling("committee", members, 1 if small else chosen.repeats, Path(folder))]
    text = "# Sweeps into a store\n\n" + "\n".join(page) + "\n"
    (chosen.folder / "sweeps.md").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
