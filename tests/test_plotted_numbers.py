"""What the pictures draw are the numbers they are about: error bars, bands, tolerances, guides."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from odescale.compare.comparison import Quantity
from odescale.plot.comparison import _draw_losses, _draw_ratio
from odescale.plot.escapes import plot_escapes
from odescale.plot.style import slope_guide

T = np.array([1.0, 2.0, 4.0, 8.0])
MEASURED, PREDICTED, STDERR = (
    np.array([0.9, 0.5, 0.21, 0.1]),
    np.array([1.0, 0.4, 0.2, 0.1]),
    np.array([0.05, 0.02, 0.01, 0.004]),
)


def comparison() -> Any:
    loss = Quantity(
        MEASURED, PREDICTED, MEASURED / PREDICTED, {"seeds": STDERR / PREDICTED}, {}, np.ones(4, bool), 0.15, None
    )
    theory = SimpleNamespace(t=T, loss=PREDICTED, error=np.full(4, 0.1), valid=np.ones(4, bool), meta={})
    run: Any = type("Records", (dict,), {"seeds": np.arange(2), "config": {}})({"loss": np.stack([MEASURED, MEASURED])})
    return SimpleNamespace(theory=theory, run=run, kept=np.ones(4, bool), quantities={"loss": loss}, context_loss=None)


def bars_of(axes: Any) -> tuple[np.ndarray, np.ndarray]:
    """(heights of the points, half lengths of their bars)."""
    (made,) = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    ends = np.array(made[2][0].get_segments())[:, :, 1]
    return np.asarray(made[0].get_ydata()), (ends[:, 1] - ends[:, 0]) / 2


def test_error_bars_and_bands_of_a_comparison_are_its_errors() -> None:
    panel, ratio = Figure().subplots(1, 2)
    _draw_losses({"loss": panel}, comparison(), T, None, "")
    heights, half = bars_of(panel)
    np.testing.assert_allclose(heights, MEASURED)
    np.testing.assert_allclose(half, STDERR)
    edges = panel.collections[0].get_paths()[0].vertices
    for t, value in zip(T, PREDICTED, strict=True):
        at = edges[edges[:, 0] == t, 1]
        assert at.min() == pytest.approx(0.9 * value) and at.max() == pytest.approx(1.1 * value)
    _draw_ratio(ratio, comparison(), T)
    heights, half = bars_of(ratio)
    np.testing.assert_allclose(heights, MEASURED / PREDICTED)
    np.testing.assert_allclose(half, STDERR / PREDICTED)
    extent = ratio.patches[0].get_extents().transformed(ratio.transData.inverted())
    assert (extent.y0, extent.y1) == pytest.approx((0.85, 1.15))


def test_a_slope_guide_has_its_slope() -> None:
    axes = Figure().subplots()
    slope_guide(axes, T, PREDICTED, 0.75)
    x, y = (np.asarray(v) for v in axes.lines[0].get_data())
    np.testing.assert_allclose(np.diff(np.log(y)) / np.diff(np.log(x)), -0.75, rtol=1e-12)
    assert y[-1] == pytest.approx(1.6 * PREDICTED[-1]) and axes.lines[0].get_label() == "slope -3/4"


def test_the_guide_of_escapes_falls_as_a_cube_root() -> None:
    clock = SimpleNamespace(steps=lambda t: 50 * np.asarray(t))
    curve = SimpleNamespace(t=T, system=SimpleNamespace(clock=clock), values=lambda name: PREDICTED)
    axes = plot_escapes(SimpleNamespace(rows=[SimpleNamespace(name="one", curve=curve)]))
    drawn, guide = ((np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in axes.lines[:2])
    np.testing.assert_allclose(drawn[0], 50 * T)
    np.testing.assert_allclose(np.diff(np.log(guide[1])) / np.diff(np.log(guide[0])), -1 / 3, rtol=1e-12)
    assert guide[1][-1] == pytest.approx(1.6 * PREDICTED[-1])
