"""The kernel regime: verdicts without training against what training does, and the error of the prediction at three widths.

    python -m benchmarks.kernel_regime [--task synthetic|text|digits] [--widths]

A table over twenty transformers of several widths, depths, lazy scales, lengths of training and both losses: the function error
expected without training beside the one measured, and the confusion table of the verdicts at a function error of 0.1. The first
eight are those that the rule was looked at on, the others were not. `--widths`: errors of outputs and losses at three widths.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import jax
import numpy as np

from odescale import Comparison, compare, kernel_system, train
from odescale.kernels import kernel_regime, lazy_network
from odescale.networks import SequenceTransformer
from odescale.systems.kernel_build import SequenceData, synthetic_sequences
from odescale.systems.kernel_descent import record_steps
from odescale.training.patch_digits import digits_sequences, source_text_sequences

SAMPLES = 8


class Case(NamedTuple):
    """One network and one run of it."""

    width: int
    scale: float
    centred: bool = True
    depth: int = 2
    steps: int = 200
    loss: str = "square"
    parameterisation: Any = "ntk"
    heads: int | None = None
    seed: int = 0

    def __str__(self) -> str:
        words = [
            f"width {self.width}",
            f"depth {self.depth}",
            f"scale {self.scale:g}",
            f"{self.steps} steps",
            self.loss,
        ]
        words += ["un-centred"] * (not self.centred) + [self.parameterisation] * (self.parameterisation != "ntk")
        return ", ".join(words + [f"{self.heads} heads"] * (self.heads is not None))


CALIBRATION = (
    Case(16, 1.0),
    Case(16, 4.0),
    Case(16, 1.0, centred=False),
    Case(64, 1.0),
    Case(64, 4.0),
    Case(64, 1.0, parameterisation="mean_field"),
    Case(64, 1.0, loss="cross_entropy"),
    Case(64, 8.0, loss="cross_entropy"),
)
CHECK = (
    Case(16, 2.0, seed=1),
    Case(16, 8.0, seed=1),
    Case(32, 1.0, centred=False, seed=1),
    Case(32, 1.0, depth=3, seed=1),
    Case(32, 4.0, depth=3, seed=1),
    Case(32, 1.0, steps=10, seed=1),
    Case(128, 1.0, heads=1, seed=1),
    Case(16, 4.0, depth=1, loss="cross_entropy", seed=1),
    Case(16, 16.0, depth=1, loss="cross_entropy", seed=1),
    Case(32, 4.0, centred=False, seed=1),
    Case(32, 2.0, parameterisation="mean_field", seed=1),
    Case(32, 16.0, parameterisation="standard", seed=1),
)
"""Twelve networks that the rule was not looked at on."""


def data_of(task: str, loss: str) -> SequenceData:
    """Training and test sequences of a task in {"synthetic", "text", "digits"}."""
    if task == "digits":
        return digits_sequences(SAMPLES, SAMPLES, target="next" if loss == "square" else "label")
    if task == "text":
        return source_text_sequences(SAMPLES, SAMPLES, context=4, characters=6)
    return synthetic_sequences(SAMPLES, SAMPLES, 4, 6, 3, loss=loss, seed=1)


def measure(case: Case, task: str = "synthetic") -> Comparison:
    """Verdict without training, then the run, then the comparison."""
    data = data_of(task, case.loss)
    network = lazy_network(
        SequenceTransformer(
            data.x.shape[2], data.y.shape[2], data.x.shape[1], width=case.width, depth=case.depth, heads=case.heads,
            parameterisation=case.parameterisation, key=jax.random.key(case.seed),
        ),
        case.scale,
        centred=case.centred,
    )  # fmt: skip
    sets = (data.x, data.y, data.x_test, data.y_test)
    system = kernel_system(network, *sets, loss=case.loss)
    regime = kernel_regime(network, system, data.x, data.x_test, steps=case.steps)
    run = train(system, case.steps, record_times=record_steps(case.steps), precision="float64", progress=False)
    return compare(system, run, regime=regime)


def function_error(result: Comparison) -> float:
    """Largest measured distance of outputs, training and test, from the frozen kernel's."""
    return max(result["train"].max_deviation, result["test"].max_deviation)


def confusion(results: list[Comparison]) -> np.ndarray:
    """counts[truly inside, called inside] of comparisons that carry a verdict without training."""
    counts = np.zeros((2, 2), int)
    for result in results:
        counts[int(result.verdict.status == "agrees"), int(result.options["regime"].inside)] += 1
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables."""
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=("synthetic", "text", "digits"), default="synthetic")
    parser.add_argument("--widths", action="store_true")
    options = parser.parse_args(arguments)
    if options.widths:
        sets = {"widths": tuple(Case(w, 8.0, loss=loss) for loss in ("square", "cross_entropy") for w in (32, 64, 128))}
    else:
        sets = {"calibration": CALIBRATION, "check": CHECK}
    for name, cases in sets.items():
        print(f"\n| {name}, {options.task} | expected error | measured error | train loss | test loss | called | is |")
        print("|---|---|---|---|---|---|---|")
        results = []
        for case in cases:
            result = measure(case, options.task)
            results.append(result)
            regime = result.options["regime"]
            called, true = (("outside", "inside")[flag] for flag in (regime.inside, result.verdict.status == "agrees"))
            losses = f"{result.loss.max_deviation:.3%} | {result['test_loss'].max_deviation:.3%}"
            errors = f"{regime.expected_error:.4f} | {function_error(result):.4f}"
            print(f"| {case} | {errors} | {losses} | {called} | {true} |", flush=True)
        counts = confusion(results)
        print(
            f"\n{counts[1, 1]} inside called inside, {counts[0, 0]} outside called outside, {counts[1, 0]} inside called "
            f"outside, {counts[0, 1]} outside called inside"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
