"""`python -m benchmarks [--device cpu|gpu] [--only NAME ...]`: a table of timings, cold and warm apart.

With `--peers`: odescale beside other programs (`benchmarks.peers`).

Every case runs in a process of its own, so that cold is cold; the threads of numpy and scipy are pinned to one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    "single",
    "quickstart",
    "sweep",
    "spectrum",
    "transition",
    "mean_field",
    "members",
    "routes",
    "modes",
    "training",
)
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


def environment(device: str) -> dict[str, str]:
    """Variables of a case's process. A compilation cache on disk would make cold times warm: it is left out."""
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    if device == "cpu":
        kept["JAX_PLATFORMS"] = "cpu"
    else:
        kept.pop("JAX_PLATFORMS", None)
    return kept | ONE_THREAD


def missing(device: str) -> str | None:
    """Why JAX cannot use the device, in one line; None when it can."""
    probe = [sys.executable, "-c", "import sys, jax; jax.devices(sys.argv[1])", device]
    ran = subprocess.run(probe, env=environment(device), capture_output=True, text=True)
    if ran.returncode == 0:
        return None
    why = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"JAX finds no {device} here ({why}); install odescale[gpu] on a machine that has one, or use --device cpu"


def run_case(
    name: str,
    device: str,
    size: str,
    limit: float | None = None,
    module: str = "benchmarks.cases",
    more: Sequence[str] = (),
) -> dict[str, Any]:
    """What a case prints on its last line, or {"failed": last line of its stderr}; stopped after `limit` seconds."""
    words = [sys.executable, "-m", module, name, device, size, *more]
    variables = environment(device) | {"ODESCALE_BENCHMARK_STARTED": str(time.time())}
    try:
        ran = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped by the clock after {limit:.0f} s"}
    if ran.returncode != 0:
        return {"failed": (ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"])[-1]}
    return json.loads(ran.stdout.splitlines()[-1])


def seconds(value: float | None) -> str:
    """Three digits with a unit that suits."""
    if value is None:
        return "-"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def table(results: dict[str, dict[str, Any]], device: str) -> str:
    """The page: where and with what it was measured, then one line per row."""
    kinds = {found["device"] for found in results.values() if "device" in found}
    cores = os.cpu_count() or 1
    load = os.getloadavg()[1] if hasattr(os, "getloadavg") else 0.0
    busy = ""
    if load > cores:
        busy = f" **Other work kept the machine busy (load average {load:.1f}): wall times are upper bounds.**"
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "diffrax", "equinox", "scipy"))
    lines = [
        "# Timings",
        "",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, device {device} ({', '.join(sorted(kinds)) or 'unknown'}), "
        f"{cores} CPU cores, Python {platform.python_version()}, {packages}.",
        "Cold: compilation and the first run in a fresh process, on the wall and in CPU time of all threads. Warm: median of "
        "the runs after it, on the wall." + busy,
        "",
        "| case | what | cold | cold, CPU | warm | remarks |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        for entry in found.get("rows", ()):
            numbers = " | ".join(seconds(entry[column]) for column in ("cold", "cpu", "warm"))
            lines.append(f"| {name} | {entry['what']} | {numbers} | {entry['remarks']} |")
        if "failed" in found:
            lines.append(f"| {name} | failed | - | - | - | {found['failed'].replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Runs the cases one after the other; 0, or 1 when a case failed, or 2 when there is no such device."""
    given = sys.argv[1:] if arguments is None else arguments
    if "--peers" in given:
        from benchmarks import peers

        return peers.main([word for word in given if word != "--peers"])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Timings, cold and warm apart. With --peers: beside other programs (--peers --help).",
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="where JAX computes (default: cpu)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--size", choices=("full", "small"), default="full", help="small: does it run at all?")
    parser.add_argument("--folder", type=Path, default=ROOT / "results", help="where the table is written")
    chosen = parser.parse_args(given)
    why = missing(chosen.device)
    if why is not None:
        print(f"error: {why}", file=sys.stderr)
        return 2
    results = {}
    for name in chosen.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = run_case(name, chosen.device, chosen.size)
    page = table(results, chosen.device)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    path = chosen.folder / ("benchmarks.md" if chosen.device == "cpu" else f"benchmarks-{chosen.device}.md")
    path.write_text(page, encoding="utf-8")
    print(page, end="")
    print(f"written to {path}", file=sys.stderr)
    return int(any("failed" in found for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
