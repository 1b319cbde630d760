"""The confusion table of `coverage`: what it says beforehand against direct SGD, case by case, resumable.

`python -m benchmarks.coverage [--only CASE] [--again]` runs the cases that have no result in results/coverage/, then writes
docs/coverage.md. A case takes 10 to 60 seconds on two cores.

SGD follows the theory when, at all record times, the mean over seeds stays within `TOLERANCE` of the ODE beyond two standard
errors (seeds and quadrature), and a typical single run (root mean square over seeds) within `SCATTER`; runs that diverge, and
starts that do not exist at this d, do not follow.
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

from benchmarks.validity_mean_field import BLOCK as MLP_START
from benchmarks.validity_mean_field import HEADS, ONE, TWO, attention_and_mlp, heads_and_classes, layers
from odescale import InputError, SolveError, teacher_student
from odescale.networks import CommitteeReadout, HeadRows, PreNorm, QueryToken, RowNetwork, SelfAttention, TeacherStudent
from odescale.spectra import Spectrum, power_law

RESULTS = Path("results/coverage")
PAGE = Path("docs/coverage.md")
TOLERANCE = 0.08
SCATTER = 0.3
RECORDS = 8


@dataclasses.dataclass(frozen=True)
class Case:
    """A system by its problem, start, dimension and numbers, run to `t1`; `expected` is what was put into the list for."""

    words: str
    problem: Callable[[], TeacherStudent]
    start: Mapping[str, Any]
    t1: float
    learning_rate: float
    dimension: int = 500
    system: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    spectrum: Callable[[], Spectrum] | None = None
    seeds: int = 24


def committee(units: int) -> TeacherStudent:
    """`units` erf units against as many, second layer 1/sqrt(units)."""
    rows = tuple(f"w{i}" for i in range(units))
    return teacher_student(RowNetwork(rows, (), CommitteeReadout(rows, "erf", units**-0.5)), tokens=1)


def linear() -> TeacherStudent:
    """One row against one."""
    return teacher_student(RowNetwork(("r",), (), QueryToken(("r",))), tokens=1)


def prenorm() -> TeacherStudent:
    """Attention on normalised tokens."""
    block = PreNorm(SelfAttention((HeadRows("q", "k"),)))
    return teacher_student(RowNetwork(("q", "k", "r"), (block,), QueryToken(("r",))), tokens=3)


def decaying(exponent: float, dimension: int = 500) -> Callable[[], Spectrum]:
    """lam ~ k^-exponent with trace d."""
    return lambda: power_law(exponent, dimension, trace=None, per_decade=6)


WIDE = {"alignment": 0.4}
CASES: dict[str, Case] = {
    # meant to be inside
    "one_layer": Case("1-layer attention", layers, ONE, 8.0, 0.2),
    "two_layers": Case("2-layer attention", lambda: layers(2), TWO, 12.0, 0.1),
    "correlated": Case("2-layer attention, AR(1) tokens", lambda: layers(2, 4, correlation=0.5), TWO, 12.0, 0.1),
    "heads": Case("2 heads, cross-entropy", lambda: heads_and_classes("soft"), HEADS, 16.0, 0.5),
    "mlp": Case("attention + erf MLP", lambda: attention_and_mlp("erf"), MLP_START, 10.0, 0.1),
    "committee": Case("3 erf units", lambda: committee(3), WIDE, 10.0, 0.5),
    "linear": Case("linear student", linear, WIDE, 6.0, 0.5),
    "batch": Case("1-layer attention, B = 8", layers, ONE, 6.0, 0.4, system={"batch": 8}),
    "momentum": Case("1-layer attention, momentum 0.9", layers, ONE, 8.0, 0.02, system={"momentum": 0.9}),
    "friction": Case("1-layer attention, momentum 1 - 2/d", layers, ONE, 8.0, 0.4, system={"friction": 2.0}),
    "norm": Case("PreNorm attention", prenorm, ONE, 8.0, 0.2),
    "mild": Case("1-layer attention, lam ~ k^-0.5", layers, ONE, 8.0, 0.2, spectrum=decaying(0.5)),
    "small_d": Case("1-layer attention, d = 150", layers, ONE, 8.0, 0.2, 150),
    "steep": Case("1-layer attention, lam ~ k^-1.2", layers, ONE, 8.0, 0.1, spectrum=decaying(1.2), seeds=64),
    # meant to be outside
    "d_20": Case("2-layer attention, d = 20", lambda: layers(2), TWO, 12.0, 0.1, 20, seeds=96),
    "d_20_mlp": Case("attention + erf MLP, d = 20", lambda: attention_and_mlp("erf"), MLP_START, 10.0, 0.1, 20, seeds=96),
    "wide": Case("d/2 = 20 erf units, learning rate 4", lambda: committee(20), WIDE, 4.0, 4.0, 40, seeds=48),
    "wider": Case("d = 40 erf units", lambda: committee(40), WIDE, 4.0, 0.5, 40, seeds=48),
    "fast_one": Case("1-layer attention, learning rate 2", layers, ONE, 8.0, 2.0),
    "fast_two": Case("2-layer attention, learning rate 1", lambda: layers(2), TWO, 12.0, 1.0),
    "fast_mlp": Case("attention + erf MLP, learning rate 1.5", lambda: attention_and_mlp("erf"), MLP_START, 10.0, 1.5),
    "fast_linear": Case("linear student, learning rate 2.5", linear, WIDE, 6.0, 2.5),
    "coarse": Case("linear student, d = 25, B = 50, learning rate 10", linear, WIDE, 0.4, 10.0, 25, system={"batch": 50},
                   seeds=96),
    "slow_velocity": Case("1-layer attention, momentum 0.995, d = 200", layers, ONE, 8.0, 0.001, 200,
                          system={"momentum": 0.995}),
    "slow_velocity_mlp": Case("attention + erf MLP, momentum 0.995, d = 200", lambda: attention_and_mlp("erf"), MLP_START,
                              10.0, 0.0005, 200, system={"momentum": 0.995}),
    "one_direction": Case("1-layer attention, lam ~ k^-2.5", layers, ONE, 8.0, 0.1, spectrum=decaying(2.5), seeds=96),
    "few_directions": Case("2-layer attention, lam ~ k^-2", lambda: layers(2), TWO, 8.0, 0.1, spectrum=decaying(2.0),
                           seeds=96),
    "norm_small": Case("PreNorm attention, d = 40", prenorm, ONE, 8.0, 0.2, 40, seeds=96),
}  # fmt: skip


def run_case(case: Case) -> dict[str, Any]:
    """What `coverage` says and what the run did."""
    from odescale import aligned_overlaps, coverage, integrate, mean_field, train

    problem = case.problem()
    where: dict[str, Any] = {"dimension": case.dimension} if case.spectrum is None else {"spectrum": case.spectrum()}
    nodes = 1024 if case.spectrum is not None else 4096
    system = mean_field(problem, initial_overlaps=aligned_overlaps(problem, **case.start), nodes=nodes,
                        learning_rate=case.learning_rate, **where, **dict(case.system))  # fmt: skip
    said = coverage(system)
    result: dict[str, Any] = {"words": case.words, "said": said.to_dict(), "d": system.dimension, "seeds": case.seeds}
    steps = np.geomspace(case.t1 / 20, case.t1, RECORDS) * system.trace
    times = np.unique(np.maximum(np.rint(steps), 1)) / system.trace
    try:
        run = train(system, case.t1, seeds=case.seeds, record_times=times, progress=False)
    except (SolveError, InputError) as error:
        return result | {"follows": False, "why": str(error).split(";")[0][:120]}
    theory = integrate(system, ts=np.concatenate([[0.0], run.t]), on_failure="mask")
    if int(theory.code) != 0:
        return result | {"follows": False, "why": f"the ODE stops early (code {int(theory.code)})"}
    assert theory.error is not None
    ratio = run.mean() / theory.loss[1:]
    error = np.hypot(run.scatter() / theory.loss[1:], theory.error[1:] / 3.182)
    beyond = float(np.max(np.abs(ratio - 1) - 2 * error))
    worst = float(ratio[np.argmax(np.abs(ratio - 1))])
    single = float(np.sqrt(np.max(np.mean((run["loss"] / theory.loss[1:] - 1) ** 2, axis=0))))
    follows = bool(beyond <= TOLERANCE and single <= SCATTER)
    fall = float(theory.loss[0] / theory.loss[-1])
    return result | {"follows": follows, "ratio": worst, "beyond": beyond, "single": single, "fall": fall}


def result_of(name: str, again: bool = False) -> dict[str, Any]:
    """From its file, or computed and saved."""
    path = RESULTS / f"{name}.json"
    if path.exists() and not again:
        return json.loads(path.read_text(encoding="utf-8"))
    began = time.perf_counter()
    result = run_case(CASES[name])
    result["seconds"] = round(time.perf_counter() - began, 1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return result


def page(results: Mapping[str, dict[str, Any]]) -> str:
    """docs/coverage.md."""
    count = {(said, follows): 0 for said in (True, False) for follows in (True, False)}
    for r in results.values():
        count[r["said"]["inside"], r["follows"]] += 1
    lines = [
        "# Coverage: what the theory says of itself beforehand",
        "",
        "Written by `python -m benchmarks.coverage`; do not edit. `odescale.coverage(system)` judges, before any run, whether SGD",
        "of a mean-field system should follow its ODE: rows per dimension, the step of the fastest mode, the learning rate over",
        "the stable one, the effective dimension, the memory of momentum (`odescale.systems.coverage`, where the limits stand).",
        "Here each judgement meets direct SGD of the real network: it follows when the mean over seeds stays within",
        f"{TOLERANCE:.0%} of the ODE at all record times, beyond two standard errors of seeds and quadrature, and a typical single",
        f"run (root mean square over seeds) within {SCATTER:.0%}. The limits of `coverage` were set before the table and not moved",
        "after it.",
        "The second half of the criterion was added when the first cases were in: at d = 20 and a small learning rate the mean",
        "over 96 seeds still follows the ODE to some per cent, while a typical single run of the attention network is a third off.",
        "",
        "| | SGD follows the ODE | it does not |",
        "|---|---|---|",
        f"| said inside | {count[True, True]} | {count[True, False]} |",
        f"| said outside | {count[False, True]} | {count[False, False]} |",
        "",
        "| case | d | seeds | said | worst mean / ODE | beyond 2 s.e. | single run | follows | reasons |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results.values():
        ratio = f"{r['ratio']:.3f}" if "ratio" in r else r["why"].replace("|", "/")
        beyond, single = (f"{r[key]:.3f}" if key in r else "" for key in ("beyond", "single"))
        lines.append(
            f"| {r['words']} | {r['d']:.0f} | {r['seeds']} | {'inside' if r['said']['inside'] else 'outside'} | {ratio} | "
            f"{beyond} | {single} | {'yes' if r['follows'] else 'no'} | {'; '.join(r['said']['reasons'])} |"
        )
    return "\n".join([*lines, ""])


def main(arguments: list[str] | None = None) -> int:
    """Runs cases and writes the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--only", choices=sorted(CASES), help="one case")
    parser.add_argument("--again", action="store_true", help="run cases that have a result, too")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    for name in [options.only] if options.only else CASES:
        result = result_of(name, options.again)
        print(f"{name}: {json.dumps(result)}", flush=True)
    known = {name: result_of(name) for name in CASES if (RESULTS / f"{name}.json").exists()}
    PAGE.write_text(page(known), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
