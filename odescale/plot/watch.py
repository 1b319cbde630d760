"""The picture of a run that is still going: loss, law, forecast with its interval, spikes."""

from __future__ import annotations

from typing import IO, Any

import numpy as np


def draw_look(shown: Any, stream: IO[bytes]) -> None:
    """One panel, steps and loss logarithmic where they can be: rows, running median, forecast band, spikes as bars."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    log = shown.log
    axes.plot(log.step, log.loss, ".", ms=2, color="0.6", label="logged loss")
    if shown.spikes is not None:
        axes.plot(log.step[np.isfinite(log.loss)], shown.spikes.law, lw=1.2, color="tab:blue", label="running median")
        for place, spike in enumerate(shown.spikes.spikes):
            label = "spike" if place == 0 else None
            axes.axvspan(
                spike.first_step,
                max(spike.last_step, spike.first_step * 1.002),
                color="tab:red",
                alpha=0.3,
                label=label,
            )
    if shown.forecast is not None:
        found = shown.forecast
        axes.fill_between(found.step, found.low, found.high, color="tab:orange", alpha=0.25, label="90 % interval")
        axes.plot(found.step, found.loss, color="tab:orange", lw=1.2, label="law")
    axes.set_xscale("symlog" if log.step[0] <= 0 else "log")
    if (log.loss > 0).all():
        axes.set_yscale("log")
    axes.set(xlabel="SGD steps", ylabel="loss (as logged)", title=log.name)
    axes.legend(fontsize=8)
    figure.savefig(stream, format="png", dpi=120)
