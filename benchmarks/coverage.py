"""The confusion table of `coverage`: what it says beforehand against direct SGD of the real network, case by case.

`python -m benchmarks.coverage` runs all cases, some 20 minutes of CPU, and writes docs/coverage.md; `--only CASE` prints one,
`--page results/coverage.json` writes the page of what a run has left there.

SGD follows the theory when no seed diverges, the mean over seeds stays within `TOLERANCE` of the ODE at all record times beyond two
standard errors (seeds and quadrature), and a typical single run (root mean square over seeds) within `SCATTER`. A seed has diverged
when its rows are not finite or its loss is ten times that at the start. Starts that do not exist at this d do not follow.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.validity_mean_field import BLOCK, HEADS, ONE, TWO, attention_and_mlp, heads_and_classes, layers
from odescale import InputError, MeanField, aligned_overlaps, committee, mean_field, teacher_student, transformer
from odescale.networks import CommitteeReadout, HeadRows, PreNorm, QueryToken, RowNetwork, SelfAttention, TeacherStudent
from odescale.spectra import power_law

RESULTS = Path("results/coverage.json")
PAGE = Path("docs/coverage.md")
TOLERANCE = 0.08
SCATTER = 0.3
DIVERGED = 10.0
RECORDS = 6


@dataclasses.dataclass(frozen=True)
class Case:
    """A system by its builder, run to `t1` by `seeds` seeds."""

    words: str
    build: Callable[[], MeanField]
    t1: float
    seeds: int = 12


def units(count: int) -> TeacherStudent:
    """`count` erf units against as many, second layer 1/sqrt(count)."""
    rows = tuple(f"w{i}" for i in range(count))
    return teacher_student(RowNetwork(rows, (), CommitteeReadout(rows, "erf", count**-0.5)), tokens=1)


def linear() -> TeacherStudent:
    """One row against one."""
    return teacher_student(RowNetwork(("r",), (), QueryToken(("r",))), tokens=1)


def prenorm() -> TeacherStudent:
    """Attention on normalised tokens."""
    block = PreNorm(SelfAttention((HeadRows("q", "k"),)))
    return teacher_student(RowNetwork(("q", "k", "r"), (block,), QueryToken(("r",))), tokens=3)


def deep(depth: int) -> dict[str, Any]:
    """A start of `layers(depth)`."""
    names = [f"{row}{i}" for i in range(depth) for row in "qk"]
    cosines = {
        (f"{row}{i}", "r"): cosine
        for i in range(depth)
        for row, cosine in (("k", 0.5 if depth < 4 else 0.38), ("q", 0.2))
    }
    return {"alignment": 0.5, "lengths": dict.fromkeys(names, 0.3) | {"r": 0.5 / 4 ** (depth - 2)}, "cosines": cosines}


WIDE = {"alignment": 0.4}


def of(problem: Callable[[], TeacherStudent], start: Mapping[str, Any], eta: float, d: int = 500, **given: Any):
    """A `mean_field` system of a problem of the validity table, or of one above."""

    def build() -> MeanField:
        p = problem()
        settings: dict[str, Any] = {"dimension": d, "nodes": 2048} | given
        if "decay" in settings:  # lam ~ k^-decay with trace d
            spectrum = power_law(settings.pop("decay"), d, trace=None, per_decade=6)
            settings |= {"spectrum": spectrum, "nodes": 1024}
            del settings["dimension"]
        return mean_field(p, initial_overlaps=aligned_overlaps(p, **start), learning_rate=eta, **settings)

    return build


def tf(eta: float, d: int = 500, **given: Any):
    """A `transformer` of linear attention."""
    common = {"attention": "linear", "batch": 1, "nodes": 2048} | given
    return lambda: transformer(learning_rate=eta, dimension=d, **common)


def quad(eta: float, d: int = 500, **given: Any):
    """A `committee` of quadratic units."""
    common = {"activation": "quadratic", "batch": 1} | given
    return lambda: committee(learning_rate=eta, dimension=d, **common)


CASES: dict[str, Case] = {
    # softmax attention, committees, linear: as in the table of an earlier version
    "one_layer": Case("1-layer softmax", of(layers, ONE, 0.2), 6.0),
    "two_layers": Case("2-layer softmax", of(lambda: layers(2), TWO, 0.1), 8.0),
    "correlated": Case("2-layer softmax, AR(1) tokens", of(lambda: layers(2, 4, correlation=0.5), TWO, 0.1), 8.0),
    "heads": Case("2 heads, cross-entropy", of(lambda: heads_and_classes("soft"), HEADS, 0.5), 10.0),
    "mlp": Case("softmax + erf MLP", of(lambda: attention_and_mlp("erf"), BLOCK, 0.1), 8.0),
    "committee": Case("3 erf units", of(lambda: units(3), WIDE, 0.5), 10.0),
    "linear": Case("linear student", of(linear, WIDE, 0.5), 6.0, 24),
    "batch": Case("1-layer softmax, B = 8", of(layers, ONE, 0.4, batch=8), 4.0),
    "momentum": Case("1-layer softmax, momentum 0.9", of(layers, ONE, 0.02, momentum=0.9), 8.0),
    "friction": Case("1-layer softmax, friction 2", of(layers, ONE, 0.4, friction=2.0), 8.0),
    "norm": Case("PreNorm softmax", of(prenorm, ONE, 0.2), 6.0),
    "mild": Case("1-layer softmax, lam ~ k^-0.5", of(layers, ONE, 0.2, decay=0.5), 6.0),
    "small_d": Case("1-layer softmax", of(layers, ONE, 0.2, 150), 8.0, 24),
    "steep": Case("1-layer softmax, lam ~ k^-1.2", of(layers, ONE, 0.1, decay=1.2), 6.0, 32),
    "d_20": Case("2-layer softmax, d = 20", of(lambda: layers(2), TWO, 0.1, 20), 8.0, 64),
    "d_20_mlp": Case("softmax + erf MLP, d = 20", of(lambda: attention_and_mlp("erf"), BLOCK, 0.1, 20), 8.0, 64),
    "wide": Case("20 erf units, learning rate 4", of(lambda: units(20), WIDE, 4.0, 40), 4.0, 48),
    "wider": Case("40 erf units", of(lambda: units(40), WIDE, 0.5, 40), 4.0, 48),
    "fast_one": Case("1-layer softmax, learning rate 2", of(layers, ONE, 2.0), 4.0),
    "fast_two": Case("2-layer softmax, learning rate 1", of(lambda: layers(2), TWO, 1.0), 4.0),
    "fast_mlp": Case("softmax + erf MLP, learning rate 1.5", of(lambda: attention_and_mlp("erf"), BLOCK, 1.5), 4.0),
    "fast_linear": Case("linear student, learning rate 2.5", of(linear, WIDE, 2.5), 6.0),
    "coarse": Case("linear student, B = 50, learning rate 10", of(linear, WIDE, 10.0, 25, batch=50), 0.4, 96),
    "slow_velocity": Case("1-layer softmax, momentum 0.995", of(layers, ONE, 0.001, 200, momentum=0.995), 8.0),
    "slow_mlp": Case("softmax + erf MLP, momentum 0.995",
                     of(lambda: attention_and_mlp("erf"), BLOCK, 0.0005, 200, momentum=0.995), 10.0),
    "one_direction": Case("1-layer softmax, lam ~ k^-2.5", of(layers, ONE, 0.1, decay=2.5), 6.0, 48),
    "few_directions": Case("2-layer softmax, lam ~ k^-2", of(lambda: layers(2), TWO, 0.1, decay=2.0), 4.0, 48),
    "norm_small": Case("PreNorm softmax, d = 40", of(prenorm, ONE, 0.2, 40), 6.0, 64),
    # deeper, smaller
    "three_layers": Case("3-layer softmax", of(lambda: layers(3), deep(3), 0.03), 6.0),
    "four_layers": Case("4-layer softmax", of(lambda: layers(4), deep(4), 0.01), 5.0),
    "fast_three": Case("3-layer softmax, learning rate 0.1", of(lambda: layers(3), deep(3), 0.1), 8.0),
    "erf_small": Case("2 erf units", lambda: committee(learning_rate=1.0, batch=1, dimension=50), 8.0, 48),
    "relu": Case("softmax + 2 ReLU units",
                 lambda: transformer(depth=1, mlp=2, activation="relu", batch=1, learning_rate=0.15, nodes=2048), 6.0),
    # linear attention
    "linear_one": Case("1-layer linear attention", tf(0.3, depth=1, alignment=0.5), 6.0),
    "linear_one_wide": Case("1-layer linear attention", tf(0.4, 1500, depth=1), 4.0, 8),
    "linear_one_neg": Case("1-layer linear attention, AR(1) r = -0.4", tf(0.2, 800, depth=1, correlation=-0.4), 6.0),
    "linear_one_fast": Case("1-layer linear attention", tf(1.3, depth=1), 6.0),
    "linear_two_slow": Case("2-layer linear attention", tf(0.04, 400, alignment=0.5), 8.0),
    "linear_two_weak": Case("2-layer linear attention, strength 0.1", tf(0.2, strength=0.1), 6.0),
    "linear_two_large": Case("2-layer linear attention, B = 4", tf(0.08, 1500, batch=4), 3.0, 8),
    "linear_two": Case("2-layer linear attention, default", tf(0.3, batch=4), 8.0),
    "linear_two_1500": Case("2-layer linear attention, default", tf(0.3, 1500, batch=4), 5.0, 8),
    "linear_two_neg": Case("2-layer linear attention, AR(1) r = -0.4", tf(0.3, batch=4, correlation=-0.4), 6.0),
    "linear_two_fast": Case("2-layer linear attention", tf(0.4, 300), 6.0, 24),
    "linear_two_strong": Case("2-layer linear attention, strength 0.5", tf(0.08, strength=0.5), 6.0),
    "linear_two_small": Case("2-layer linear attention", tf(0.15, 150), 12.0, 32),
    "linear_three": Case("3-layer linear attention", tf(0.2, depth=3), 6.0),
    "linear_three_strong": Case("3-layer linear attention, strength 0.3", tf(0.04, depth=3, strength=0.3), 6.0),
    "linear_four": Case("4-layer linear attention", tf(0.2, depth=4), 6.0),
    # quadratic units
    "quadratic": Case("2 quadratic units", quad(0.15, 700), 6.0),
    "quadratic_four": Case("4 quadratic units against 3", quad(0.12, 400, units=4, teacher_units=3), 6.0),
    "quadratic_long": Case("2 quadratic units, strength 2", quad(0.06, 300, strength=2.0), 6.0),
    "quadratic_wide": Case("2 quadratic units, B = 4", quad(0.4, 1500, batch=4), 3.0, 8),
    "quadratic_fast": Case("2 quadratic units", quad(0.7), 6.0),
    "quadratic_small": Case("2 quadratic units", quad(0.8, 150), 6.0, 32),
    "quadratic_five": Case("4 quadratic units against 3", quad(0.5, units=4, teacher_units=3), 6.0),
    # friction
    "linear_one_friction": Case("1-layer linear attention, friction 2", tf(0.4, depth=1, friction=2.0), 8.0),
    "quadratic_friction": Case("2 quadratic units, friction 1.5", quad(0.2, friction=1.5), 8.0),
    "fast_linear_friction": Case("linear student, friction 2", of(linear, WIDE, 5.0, friction=2.0), 8.0),
    "fast_one_friction": Case("1-layer softmax, friction 2", of(layers, ONE, 4.0, friction=2.0), 6.0),
    "linear_two_friction": Case("2-layer linear attention, friction 0.5", tf(0.2, friction=0.5), 8.0),
    "quadratic_fast_friction": Case("2 quadratic units, friction 0.5", quad(0.4, friction=0.5), 8.0),
}  # fmt: skip


SIDES = ((True, "inside"), (False, "outside"))
HEAD = """# Coverage: what the theory says of itself beforehand

Written by `python -m benchmarks.coverage`; do not edit. `odescale.coverage(system)` judges, before any run, whether SGD should
follow the ODE of its theory; `solve`, `train` and `compare` say so in one line. Each theory has a judge
(`odescale.solve.judges`), and the sizes that it measures meet the limits of `odescale.solve.coverage`:

| theory | sizes |
|---|---|
| `mean_field` (`transformer`, `committee`) | rows per dimension, step of the fastest mode, learning rate over the stable one, \
jumps, 1/d_eff, memory of momentum |
| `attention` (`quickstart`, `logistic_pair`) | loss at t = 0 at its own number of tokens, softmax load, rows, learning rate over \
the stable one |
| `peaked` | (K - 1)/d, power with which the learning rate falls |
| `spectral` | error of the ODE against the exact recursion |
| `kernel` | step of the fastest mode; whether the network keeps its kernel is said by `kernel_regime` |
| `derived` | rows per dimension, step of the fastest mode, 1/d_eff; noise and tails are not judged |

A theory from outside brings its own with `odescale.register(..., judge=...)`; without one its coverage is undecided.

**Tails.** A polynomial network diverges by single samples whose gradient is large, which no mean shows. The size `jumps` is the
number of SGD steps per unit of t that move a row by more than sqrt(0.3) of its length, from importance sampling of the gradient
at the start, half-way to the teacher and near it; its limit is 0.02. Both numbers were set on 38 systems whose overlaps were
simulated (linear attention, quadratic, ReLU and erf units, softmax; d = 100 to 500). The table below is of other ones, except
the default two layers of linear attention, at AR(1) r = -0.4 too, which gave rise to the question. A short probe run would tell
the same cases apart, at ten times the cost.

**Friction.** dW = -eta U, dU = -gamma U + gradient has the noise of plain SGD at the learning rate eta/gamma: an error is stable
up to eta/gamma = 2 B/c, whatever gamma is (`odescale.solve.judges.mean_field`).

## Mean-field systems against direct SGD

SGD follows when no seed diverges, the mean over seeds stays within {tolerance:.0%} of the ODE at all record times beyond two
standard errors of seeds and quadrature, and a typical single run (root mean square over seeds) within {scatter:.0%}.

| | SGD follows the ODE | it does not |
|---|---|---|
{found}

Each judgement took at most {cpu:.0f} s of CPU, compilation included.

| case | d | eta | said | diverged | worst mean / ODE | single run | follows | right | jumps | noise | reasons |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def run_case(case: Case) -> dict[str, Any]:
    """What `coverage` says, and in how many seconds of CPU; what the runs did."""
    from odescale import coverage, integrate

    system = case.build()
    began = time.process_time()
    said = coverage(system)
    result = {"words": case.words, "said": said.to_dict(), "d": system.dimension, "seeds": case.seeds}
    result |= {"eta": float(system.learning_rate), "cpu": round(time.process_time() - began, 1)}
    try:
        t, losses, diverged = simulate(system, case.t1, case.seeds)
    except InputError as error:
        return result | {"follows": False, "diverged": 0, "why": str(error).split(";")[0][:120]}
    result["diverged"] = int(diverged.sum())
    theory = integrate(system, ts=np.concatenate([[0.0], t]), on_failure="mask")
    seen = np.asarray(theory.valid)[1:] & np.all(np.isfinite(losses[~diverged]), axis=0)
    if not seen.any() or diverged.all():
        return result | {"follows": False}
    ode, single = np.asarray(theory.loss)[1:][seen], losses[~diverged][:, seen]
    error = 0.0 if theory.error is None else np.asarray(theory.error)[1:][seen] / 3.182
    ratio = single.mean(axis=0) / ode
    stderr = np.hypot(single.std(axis=0, ddof=1) / np.sqrt(len(single)) / ode, error) if len(single) > 1 else np.inf
    beyond = float(np.max(np.abs(ratio - 1) - 2 * stderr)) if len(single) > 1 else 0.0
    typical = float(np.sqrt(np.max(np.mean((single / ode - 1) ** 2, axis=0))))
    follows = not diverged.any() and bool(seen.all()) and beyond <= TOLERANCE and typical <= SCATTER
    worst = float(ratio[np.argmax(np.abs(ratio - 1))])
    return result | {
        "follows": follows,
        "ratio": worst,
        "beyond": beyond,
        "single": typical,
        "ode_ends": not bool(seen.all()),
    }


def simulate(system: MeanField, t1: float, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(t, losses (seeds, n), diverged (seeds,)) of the real network in single precision; NaN after a divergence."""
    from odescale.training.experiment import experiment_of
    from odescale.training.initial import measure_overlaps
    from odescale.training.mean_field import population_loss
    from odescale.training.runner import Seeds

    experiment: Any = experiment_of(system)
    seeds = Seeds(experiment, list(range(count)), np.dtype("float32"))
    steps = np.unique(np.maximum(np.rint(np.geomspace(t1 / 16, t1, RECORDS) * system.trace), 1).astype(int))
    lam, bins = experiment.spectrum.value
    losses, diverged, at = np.full((count, steps.size), np.nan), np.zeros(count, bool), 0
    start = float(np.mean(system.replicate_losses(0.0, system.initial_state())))
    for n, step in enumerate(steps):
        seeds.advance(at, int(step) - at)
        at = int(step)
        rows = experiment.table(seeds.states).astype(float)
        diverged |= ~np.isfinite(rows).all(axis=(1, 2)) | (np.abs(rows).max(axis=(1, 2)) > 1e6)
        sound = np.flatnonzero(~diverged)
        if not sound.size:
            break
        # All seeds are measured, so that one shape is compiled; those that have diverged at the place of a sound one.
        C, R = measure_overlaps(rows[np.where(diverged, sound[0], np.arange(count))], None if bins is None else lam)
        losses[:, n] = np.where(diverged, np.nan, population_loss(system, C, R)[0])
        diverged |= ~(np.nan_to_num(losses[:, n], nan=np.inf) < DIVERGED * start)
    return steps / system.trace, losses, diverged


def page(results: Mapping[str, dict[str, Any]]) -> str:
    """docs/coverage.md."""
    count = {(said, follows): 0 for said in (True, False) for follows in (True, False)}
    for r in results.values():
        count[r["said"]["inside"], r["follows"]] += 1
    found = "\n".join(f"| {'said ' + side} | {count[said, True]} | {count[said, False]} |" for said, side in SIDES)
    cpu = max(r["cpu"] for r in results.values())
    lines = [HEAD.format(tolerance=TOLERANCE, scatter=SCATTER, found=found, cpu=cpu)]
    for r in results.values():
        figures = (
            [f"{r['ratio']:.3f}", f"{r['single']:.3f}"] if "ratio" in r else [r.get("why", "").replace("|", "/"), ""]
        )
        figures[0] += " (the ODE ends early)" if r.get("ode_ends") else ""
        said, numbers = r["said"]["inside"], r["said"]["numbers"]
        lines.append(
            f"| {r['words']} | {r['d']:.0f} | {r['eta']:g} | {'inside' if said else 'outside'} | {r['diverged']} of {r['seeds']} | "
            f"{' | '.join(figures)} | {'yes' if r['follows'] else 'no'} | {'yes' if said == r['follows'] else 'no'} | "
            f"{numbers['jumps']:.2g} | {numbers['noise']:.2g} | {'; '.join(x.split(' (')[0] for x in r['said']['reasons'])} |"
        )
    return "\n".join([*lines, ""])


def main(arguments: list[str] | None = None) -> int:
    """Runs the cases and writes the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--only", choices=sorted(CASES), nargs="*", help="some cases, printed")
    parser.add_argument("--page", type=Path, help="write the page of these results")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    if options.page:
        PAGE.write_text(page(json.loads(options.page.read_text(encoding="utf-8"))), encoding="utf-8")
        return 0
    results, began = {}, time.perf_counter()
    for name in options.only or CASES:
        before = time.perf_counter()
        results[name] = run_case(CASES[name])
        results[name]["seconds"] = round(time.perf_counter() - before, 1)
        print(f"{name}: {json.dumps(results[name])}", flush=True)
        if not options.only:
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if not options.only:
        PAGE.write_text(page(results), encoding="utf-8")
        print(f"{time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
