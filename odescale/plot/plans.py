"""Pictures of plans: what each resource is worth, and how the loss hangs on the assumptions."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from odescale.plot.style import COLOURS, panels, shared_style

MOST_ROWS = 8


def plot_plan(found: Any, axes: Any = None, *, title: str = "") -> dict[str, Axes]:
    """Bars of -dL*/dlog X for every budget (axes "worth", from below and above where a choice switches) and of dL*/dlog a for the
    assumptions that matter most (axes "sensitivity"). `found`: a `Plan`."""
    with shared_style():
        drawn = panels(axes, ("worth", "sensitivity"), 10.5, 4.0)
        worth = found.worth[::-1]
        place = np.arange(len(worth))
        panel = drawn["worth"]
        switched = any(one.left != one.right for one in worth)
        height = 0.36 if switched else 0.6
        panel.barh(place + (height / 2 if switched else 0), [one.right for one in worth], height, color=COLOURS["theory"],
                   label="one more (from above)" if switched else "loss taken off by an e-fold more")  # fmt: skip
        if switched:
            panel.barh(
                place - height / 2,
                [one.left for one in worth],
                height,
                color=COLOURS["run"],
                label="one less (from below)",
            )
        for i, one in enumerate(worth):
            pair = found.intervals.get(f"worth {one.name}")
            if pair is not None:
                panel.plot(
                    pair,
                    [i, i],
                    color=COLOURS["formula"],
                    linewidth=1.4,
                    label="interval of the law" if i == 0 else None,
                )
        panel.set_yticks(place, [one.name.replace("_", " ") for one in worth])
        panel.axvline(0, color=COLOURS["formula"], linewidth=0.8)
        panel.set_xlabel(r"worth  $-\,dL^*/d\log X$  (loss per e-fold)")
        panel.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, fontsize=8.5, frameon=False)
        if "sensitivity" in drawn:
            most = [one for one in found.sensitivity if one.loss != 0][:MOST_ROWS][::-1]
            drawn["sensitivity"].barh(np.arange(len(most)), [one.loss for one in most], 0.6, color=COLOURS["grey"])
            drawn["sensitivity"].set_yticks(np.arange(len(most)), [one.name.replace("_", " ") for one in most])
            drawn["sensitivity"].axvline(0, color=COLOURS["formula"], linewidth=0.8)
            drawn["sensitivity"].set_xlabel(r"$dL^*/d\log a$  of an assumption a")
        panel.figure.suptitle(title or f"{found.setup}: loss {found.loss:.4g}", fontsize=11)
    return drawn
