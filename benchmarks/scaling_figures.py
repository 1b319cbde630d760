"""The pictures of docs/scaling_laws.md: `python -m benchmarks.scaling_figures [--only NAME ...] [--task digits] [--folder DIR]`.

frontier: loss against compute with its critical compute, and models of fixed sizes; laws: its isolated laws; phases: the phase
diagram of power-law features; kernel: the frozen kernel against real full-batch descent of a transformer at three widths, on the
source text of the standard library or on digits (`pip install "odescale[data]"`). The last takes two minutes on one core, the
others seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks.kernel_regime import function_error
from odescale import Comparison, compare, kernel_system, train
from odescale.cli.frontier import model_curves
from odescale.compare.kernel import TOLERANCE
from odescale.frontier import (
    RiskLaw,
    compute_frontier,
    compute_optimal,
    critical_compute,
    isolated_law,
    phase_map,
    risk_law,
)
from odescale.kernels import lazy_network
from odescale.networks import SequenceTransformer
from odescale.plot import plot
from odescale.plot.frontier import plot_compute_phases, plot_isolated_laws
from odescale.plot.style import CYCLE, new_figure, shared_style
from odescale.systems.kernel_build import SequenceData
from odescale.systems.kernel_descent import record_steps
from odescale.training.patch_digits import digits_sequences, source_text_sequences

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "figures"
WIDTHS = (32, 64, 128)
SCALE, STEPS, SAMPLES = 2.0, 1000, 16
SPECTRA = ((1.8, 1.6), (3.4, 2.2), (4.0, 1.3))


def law() -> RiskLaw:
    """The worked example of docs/derivations/frontier.md: C* = 1.23659e8."""
    return risk_law((1, 1), (0.5, 0.5), (2, 1), decay=50, rate=0.8, time_cost=1, floors=(100, 1000))


def draw_frontier() -> Figure:
    """R*(C), the local exponent, C*, five models of fixed sizes."""
    found = compute_frontier(law(), np.geomspace(1e7, 1e12, 500))
    axes = plot(
        found, critical=critical_compute(law()), curves=model_curves(law(), found), asymptote=float(1 / law().S),
        compute_unit="",
        title=r"$R = m^{-1/2} + n^{-1/2} + 50\,e^{-0.8 t}$,  $C = m^2 n\, t$,  width $m\geq 100$, data $n\geq 1000$",
    )  # fmt: skip
    return figure_of(axes["loss"])


def draw_laws() -> Figure:
    """Width, data and time, each alone."""
    x = np.geomspace(100, 1e6, 200)
    ranges = {"width": x, "data": 10 * x, "time": np.geomspace(0.5, 16, 200)}
    laws = [(isolated_law(law(), name), values) for name, values in ranges.items()]
    return figure_of(plot_isolated_laws(laws, units={"data": "samples", "time": "t, with rate 0.8 per unit"})["width"])


def draw_phases() -> Figure:
    """Phases Ia, II, III over (a, b), a spectrum in each."""
    a, b = np.linspace(1.02, 5, 300), np.linspace(1.02, 3, 250)
    marks = {}
    for spectrum in SPECTRA:
        found = compute_optimal(*spectrum)
        marks[f"a = {found.a:g}, b = {found.b:g}: {found.exponent:.3f} ({found.phase})"] = spectrum
    return figure_of(plot_compute_phases(a, b, *phase_map(a, b), marks=marks))


def data(task: str) -> SequenceData:
    """Sequences of a task in {"text", "digits"}."""
    if task == "digits":
        return digits_sequences(SAMPLES, SAMPLES)
    return source_text_sequences(SAMPLES, SAMPLES, context=4, characters=8)


def measure(width: int, task: SequenceData) -> Comparison:
    """Prediction and run of a two-layer transformer of this width, centred, square loss."""
    sets = (task.x, task.y, task.x_test, task.y_test)
    network = lazy_network(
        SequenceTransformer(task.x.shape[2], task.y.shape[2], task.x.shape[1], width=width, key=jax.random.key(0)),
        SCALE,
    )
    system = kernel_system(network, *sets)
    run = train(system, STEPS, record_times=record_steps(STEPS), precision="float64", progress=False)
    return compare(system, run)


def draw_kernel(task: SequenceData) -> Figure:
    """Train and test loss against steps at each width, prediction dashed; then the function errors."""
    found = {width: measure(width, task) for width in WIDTHS}
    with shared_style():
        figure = new_figure(14.0, 4.2)
        panels = figure.subplots(1, 1 + len(WIDTHS))
        for (width, result), axes in zip(found.items(), panels, strict=False):
            step = result.run.step[1:]
            for kind, name, colour in (("train", "loss", CYCLE[0]), ("test", "test_loss", CYCLE[1])):
                axes.plot(step, result[name].measured[1:], color=colour, label=f"trained, {kind} loss")
                axes.plot(step, result[name].predicted[1:], color="black", linewidth=1.2,
                          linestyle="--", label="frozen kernel" if kind == "test" else None)  # fmt: skip
            axes.set_title(f"width {width}")
            axes.set(xscale="log", xlabel="steps of gradient descent")
            axes.set_ylim(0, 1.05 * max(float(r.run.mean("train_loss")[0]) for r in found.values()))
            axes.tick_params(labelleft=width == WIDTHS[0])
        panels[0].set_ylabel("square loss, summed over outputs")
        panels[0].legend(loc="lower left")
        last = panels[-1]
        for (width, result), colour in zip(found.items(), CYCLE[2:], strict=False):
            error = np.maximum(result["train"].measured, result["test"].measured)
            last.plot(result.run.step[1:], error[1:], color=colour, label=f"width {width}")
        tolerance = next(iter(found.values()))["test"].tolerance or TOLERANCE
        last.axhline(tolerance, color="black", linewidth=1.0, linestyle=":", label="tolerance of the verdict")
        last.set_title("error of the prediction")
        last.set(
            xscale="log", yscale="log", xlabel="steps of gradient descent", ylabel="function error / length of the path"
        )
        last.legend(loc="lower right")
        last.set_ylim(3e-4 * tolerance, 3 * tolerance)
        figure.suptitle(f"Two-layer transformer, scale {SCALE:g}, on {task.source}", fontsize=12.5)
    for width, result in found.items():
        print(f"width {width}: function error {function_error(result):.4f}, train loss {result.loss.max_deviation:.2%}, "
              f"test loss {result['test_loss'].max_deviation:.2%} off, {result.verdict.status}")  # fmt: skip
    return figure


def figure_of(axes: Any) -> Figure:
    """The figure that holds the axes."""
    return axes.figure


DRAWINGS: dict[str, tuple[str, Callable[..., Figure]]] = {
    "frontier": ("frontier.png", draw_frontier),
    "laws": ("isolated_laws.png", draw_laws),
    "phases": ("compute_phases.png", draw_phases),
    "kernel": ("kernel_prediction.png", draw_kernel),
}


def main(arguments: list[str] | None = None) -> int:
    """Writes the pictures and prints what each weighs."""
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(DRAWINGS), default=tuple(DRAWINGS))
    parser.add_argument("--task", choices=("text", "digits"), default="text", help="data of the kernel picture")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        file, draw = DRAWINGS[name]
        path = options.folder / file
        figure = draw(data(options.task)) if name == "kernel" else draw()
        figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
