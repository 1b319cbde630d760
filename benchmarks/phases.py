"""Are phases named rightly? Random curves of ten families, their names by `find_transition_curve` against those of the exact curve.

    python -m benchmarks.phases [--curves 200] [--families NAMES]

Every curve draws its parameters over a decade each, 60 to 400 points (log or linear), noise of 0, 1 or 3 % (independent or
AR(1) with
.5 or .9), one row or four seeds. What it is called is compared with the name of its exact p and q in the same window, by the
same thresholds. Printed for each family: right, wrong, "cannot be told apart"; how often "exponential, then power law" is said
where it is
not so; how often the right name is given where both phases are twice the established length; how often 95 % intervals hold the
truth.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from odescale.analysis.phases.contest import UNDECIDED, phases_of, stem
from odescale.analysis.phases.curves import find_transition_curve
from odescale.analysis.phases.record import crossing
from odescale.analysis.phases.shapes import TERMS, derivatives, evaluate
from odescale.analysis.phases.stretches import EXPONENTIAL_TO_POWER, Phases, Thresholds

FAMILIES = (
    "exponential then power law", "exponential", "exponential with floor", "power law", "power law with floor",
    "power law with cut-off", "two exponentials", "two power laws", "stretched exponential", "steps",
)  # fmt: skip


class Curve(NamedTuple):
    """One drawn curve: times, losses (seeds, n), the exact terms with their vector, and its noise."""

    t: np.ndarray
    loss: np.ndarray
    terms: tuple[str, ...]
    vector: np.ndarray
    noise: float
    memory: float


def draw_curve(family: str, number: int) -> Curve:
    """Curve `number` of a family; the same number is the same curve."""
    rng = np.random.default_rng([FAMILIES.index(family), number])
    terms, values, last, k = _parameters(family, rng)
    vector = np.array(
        [
            np.log(one[name[4:]]) if name.startswith("log_") else one[name]
            for term, one in zip(terms, values, strict=True)
            for name in TERMS[term]
        ]
    )
    n = round(_decade(rng, 60, 400))
    first = (0.2 if family == "steps" else 0.02) / k
    t = np.geomspace(first, last, n) if rng.random() < 0.6 else np.linspace(last / n, last, n)
    noise, memory = float(rng.choice([0.0, 0.01, 0.03])), float(rng.choice([0.0, 0.5, 0.9]))
    seeds = int(rng.choice([1, 4]))
    e = rng.standard_normal((seeds, n))
    for i in range(1, n):
        e[:, i] = memory * e[:, i - 1] + np.sqrt(1 - memory**2) * e[:, i]
    return Curve(t, np.exp(evaluate(terms, vector, t)[0] + noise * e), terms, vector, noise, memory)


def _decade(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _parameters(family: str, rng: np.random.Generator) -> tuple[tuple[str, ...], list[dict[str, float]], float, float]:
    """(terms, their parameters, last time, rate of the first term)."""
    k = _decade(rng, 0.3, 3.0)
    beta = _decade(rng, 0.2, 2.0)
    fast: dict[str, float] = {"a": 0.0, "k": k}
    slow: dict[str, float] = {"a": 0.0, "beta": beta, "tau": 1 / k}
    if family == "exponential then power law":
        depth = rng.uniform(2, 9)
        tail = {"a": -depth, "beta": beta, "tau": _decade(rng, 0.5, 5) / k}
        return ("exponential", "power"), [fast, tail], _decade(rng, 30, 1000) * depth / k, k
    if family == "exponential":
        return ("exponential",), [fast], rng.uniform(3, 9) / k, k
    if family == "exponential with floor":
        return ("exponential", "constant"), [fast, {"a": -rng.uniform(2, 8)}], _decade(rng, 10, 100) / k, k
    if family == "power law":
        return ("power",), [slow], _decade(rng, 1e2, 1e4) / k, k
    if family == "power law with floor":
        return ("power", "constant"), [slow, {"a": -rng.uniform(1, 5)}], _decade(rng, 1e2, 1e4) / k, k
    if family == "power law with cut-off":
        late = k * _decade(rng, 0.002, 0.02)
        return ("cutoff",), [slow | {"k": late}], rng.uniform(2, 8) / late, k
    if family == "two exponentials":
        late = k * _decade(rng, 0.003, 0.03)
        return (
            ("exponential", "exponential"),
            [fast, {"a": -rng.uniform(2, 8), "k": late}],
            rng.uniform(1.5, 6) / late,
            k,
        )
    if family == "two power laws":
        steep = _decade(rng, 1, 6)
        shallow = {"a": -rng.uniform(2, 6), "beta": steep * _decade(rng, 0.05, 0.4), "tau": 1 / k}
        return ("power", "power"), [slow | {"beta": steep}, shallow], _decade(rng, 1e3, 1e5) / k, k
    if family == "stretched exponential":
        g = rng.uniform(0.25, 0.75)
        return ("stretched",), [{"a": 0.0, "g": g, "tau": 1 / k}], rng.uniform(3, 10) ** (1 / g) / k, k
    first = _decade(rng, 5, 20) / k
    second = first * _decade(rng, 8, 60)
    falls = [
        {"a": 0.0, "k": 2 * k, "t_e": first},
        {"a": -rng.uniform(1, 4), "k": _decade(rng, 5, 30) / second, "t_e": second},
    ]
    return ("escape", "escape", "constant"), [*falls, {"a": -9.0}], 3 * second, k


def truth(curve: Curve) -> Phases:
    """The phases of the exact curve in the window of its points."""
    grid = np.geomspace(curve.t[0], curve.t[-1], 600)
    return phases_of(curve.terms, curve.vector, grid, curve.t, None, Thresholds())


def judge(family: str, number: int) -> dict[str, Any]:
    """What is said of one curve, and whether it is so."""
    curve = draw_curve(family, number)
    exact = truth(curve)
    found = find_transition_curve(curve.t, curve.loss)
    right = found.name != UNDECIDED and stem(found.name) == stem(exact.name)
    both = exact.handover
    record: dict[str, Any] = {
        "said": found.name, "exact": exact.name, "right": right, "undecided": found.name == UNDECIDED,
        "false": found.found and both is None,
        "long": both is not None and both[0].efolds >= 6 and both[1].ratio >= 100 and both[1].efolds >= 2,
        "noise": curve.noise,
    }  # fmt: skip
    if both is not None and found.found and curve.noise > 0 and family == FAMILIES[0]:
        dense = np.geomspace(curve.t[0], curve.t[-1], 20_000)
        t_x = crossing(dense, derivatives(curve.terms, curve.vector, dense)[2], both)
        record["t_x"] = _holds(found.interval, t_x)
        if found.model.startswith("exponential + power law"):
            record["rate"] = _holds(found.rate_interval, float(np.exp(curve.vector[1])))
            record["exponent"] = _holds(found.exponent_interval, float(np.exp(curve.vector[3])))
    return record


def _holds(interval: tuple[float, float] | None, value: float) -> bool | None:
    return None if interval is None else bool(interval[0] <= value <= interval[1])


def judge_family(family: str, curves: Sequence[int], workers: int = 2) -> list[dict[str, Any]]:
    """`judge` on many curves, in as many processes."""
    if workers == 1:
        return [judge(family, number) for number in curves]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(judge, [family] * len(curves), curves, chunksize=5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=int, default=200)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    began = time.perf_counter()
    print(f"{'family':28} right wrong undecided  '{EXPONENTIAL_TO_POWER}' where it is not so")
    for family in options.families.split(","):
        records = judge_family(family, range(options.curves), options.workers)
        wrong = [one for one in records if not one["right"] and not one["undecided"]]
        counts = [sum(one[key] for one in records) for key in ("right", "undecided", "false")]
        print(f"{family:28} {counts[0]:5d} {len(wrong):5d} {counts[1]:9d}  {counts[2]}", flush=True)
        for (exact, said), many in Counter((one["exact"], one["said"]) for one in wrong).most_common(3):
            print(f"    {many} of '{exact}' called '{said}'")
        long = [one for one in records if one["long"]]
        if long:
            print(
                f"    both phases twice the established length: {sum(one['right'] for one in long)} of {len(long)} named rightly"
            )
        for key in ("t_x", "rate", "exponent"):
            held = [one[key] for one in records if one.get(key) is not None]
            if held:
                print(
                    f"    95 % intervals of {key}: {sum(held)} of {len(held)} hold the truth ({sum(held) / len(held):.1%})"
                )
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
