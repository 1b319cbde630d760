"""`python -m benchmarks.sweeps [--only NAME ...] [--members N] [--size small]`: sweeps into a store, each in a process of its own.

Throughput: members a second on the wall and CPU seconds a member, compilation included; how often a solve was traced; memory of the
process after the first tenth of the chunks and at its largest after that. Devices: the same sweep on one device pinned to one core
and on two forced host devices on two cores, interleaved; and whether the numbers are the same.
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
    store = tempfile.mkdtemp(dir=folder) + "/sweep.zarr"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FORCED}{devices}".strip()
    cache = ("JAX_COMPILATION_CACHE_DIR",)
    variables = {key: value for key, value in os.environ.items() if key not in cache} | {"XLA_FLAGS": flags}
    variables |= {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.sweeps", "--here", name, str(members), store, str(devices)],
        cwd=ROOT, env=variables, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    if ran.returncode != 0:
        raise SystemExit(ran.stderr.strip().splitlines()[-1])
    return json.loads(ran.stdout.splitlines()[-1])


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
    """Two forced devices on two cores against one on one core."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    pairs = []
    for _ in range(repeats):
        pairs.append([in_process(name, members, count, folder, cores[:count]) for count in (1, 2)])
    # The chunk that other work disturbed least.
    (one, cpu_one), (two, cpu_two) = (
        [1e3 * min(pair[i][name] for pair in pairs) for name in ("least_wall", "least_cpu")] for i in (0, 1)
    )
    same = all(pair[0]["loss"] == pair[1]["loss"] for pair in pairs)
    return (
        f"`{CASES[name].system}`, {members} members, best chunk of {repeats} interleaved runs: {one:.3f} ms a member on one device "
        f"({cpu_one:.3f} ms CPU), {two:.3f} ms on two ({cpu_two:.3f} ms CPU): {one / two:.2f} times as fast; numbers "
        f"{'the same' if same else 'NOT the same'}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


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
            members = 4096 if small else 16_384
            page += ["", scaling("committee", members, 1 if small else chosen.repeats, Path(folder))]
    text = "# Sweeps into a store\n\n" + "\n".join(page) + "\n"
    (chosen.folder / "sweeps.md").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
