"""Pictures hold what they are given, without a screen, and refuse what does not fit together."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from test_analysis_curves import POINTS, correlated, quickstart

from odescale.analysis.phases.curves import find_transition_curve
from odescale.analysis.phases.exponents import local_exponent
from odescale.errors import InputError
from odescale.plot.comparison import plot_comparison
from odescale.plot.style import CYCLE, RC
from odescale.plot.trajectory import plot_exponent, plot_overlaps, plot_trajectory

DENSE = np.geomspace(0.05, 15, 200)
UNIT = r"$S=\eta\sqrt{R}\,t$ (one unit = 500 SGD steps)"


@pytest.fixture(scope="module")
def results():
    seeds = quickstart(POINTS) * np.exp(correlated(np.random.default_rng(0), (4, 31), 0.03))
    run = find_transition_curve(POINTS, seeds, min_depth=2, bootstrap=40, min_aic_gap=None)
    theory = find_transition_curve(
        POINTS, quickstart(POINTS), min_depth=2, bootstrap=0, min_aic_gap=None, smoothing=run.smoothing
    )
    assert run.found and theory.found
    return SimpleNamespace(seeds=seeds, run=run, theory=theory)


def compare(results, **changes):
    options = {
        "run_stderr": results.seeds.std(0, ddof=1) / 2,
        "seed_losses": results.seeds,
        "theory_error": 0.01 * quickstart(DENSE),
        "theory_at_run": quickstart(POINTS),
        "formula": (DENSE, quickstart(DENSE)),
        "theory_exponent": local_exponent(POINTS, quickstart(POINTS)),
        "run_exponent": local_exponent(POINTS, results.seeds),
        "theory_transition": results.theory,
        "run_transition": results.run,
        "steps_per_unit": 500.0,
        "time_label": UNIT,
    } | changes
    return plot_comparison(DENSE, quickstart(DENSE), POINTS, results.seeds.mean(0), **options)


def words(axes) -> str:
    return " ".join(text.get_text() for text in axes.texts)


def test_comparison_shows_everything(results, tmp_path):
    axes = compare(results, title="theory and runs")
    assert set(axes) == {"loss", "ratio", "exponent", "index"}
    loss = axes["loss"]
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    assert any("theory" in x for x in labels) and any("mean over seeds" in x for x in labels)
    assert any("closed form" in x for x in labels) and any("single seeds" in x for x in labels)
    assert "power law" in words(loss) and f"{results.run.t_x:.4g}" in words(loss) and "95 %" in words(loss)
    assert axes["ratio"].get_xlabel() == UNIT and loss.get_xscale() == loss.get_yscale() == "log"
    bars = [c for c in axes["ratio"].containers if isinstance(c, ErrorbarContainer)]
    assert bars[0][0].get_ydata() == pytest.approx(results.seeds.mean(0) / quickstart(POINTS))
    # The interval is a band of its exact width, the line stands at t_x, on every panel.
    for axis in axes.values():
        edges = [patch.get_extents().transformed(axis.transData.inverted()) for patch in axis.patches]
        assert any(
            box.x0 == pytest.approx(results.run.interval[0]) and box.x1 == pytest.approx(results.run.interval[1])
            for box in edges
        )
        assert any(np.allclose(line.get_xdata(), results.run.t_x) for line in axis.lines)
    path = tmp_path / "picture.png"
    loss.figure.savefig(path)
    assert path.stat().st_size > 20_000
    second = loss.child_axes[0]
    assert second.get_xlabel() == "SGD steps" and second.get_xlim() == pytest.approx(500 * np.array(loss.get_xlim()))


def test_legend_and_words_cover_no_points(results):
    loss = compare(results)["loss"]
    loss.figure.draw_without_rendering()
    renderer = loss.figure.canvas.get_renderer()
    boxes = [loss.get_legend().get_window_extent(renderer), *(x.get_window_extent(renderer) for x in loss.texts[:1])]
    points = loss.transData.transform(np.column_stack([POINTS, results.seeds.mean(0)]))
    # An annotation's extent holds its arrow, which may touch the line at t_x but no data point.
    assert not any(box.contains(x, y) for box in boxes for x, y in points)


def test_comparison_with_the_bare_minimum():
    axes = plot_comparison(DENSE, quickstart(DENSE), POINTS, quickstart(POINTS))
    assert set(axes) == {"loss"}
    assert "SGD steps" in axes["loss"].get_xlabel()
    axes["loss"].figure.draw_without_rendering()


def test_no_transition_is_said(results):
    none = find_transition_curve(POINTS, np.exp(-POINTS), bootstrap=0)
    axes = compare(results, theory_transition=none, run_transition=none)
    assert "no exponential-to-power transition" in words(axes["loss"])


def test_noisy_index_is_not_drawn(results):
    run = local_exponent(POINTS, results.seeds)
    axes = plot_exponent(run, quantity="index", label="run")
    drawn = axes.lines[0].get_ydata()
    assert np.isnan(drawn[run.index_stderr > 1]).all() and np.isfinite(drawn).any()


def trajectory() -> SimpleNamespace:
    exact = local_exponent(DENSE, quickstart(DENSE), at=DENSE)
    valid = DENSE < 12
    return SimpleNamespace(
        t=DENSE, loss=np.where(valid, quickstart(DENSE), np.nan), exponent=exact.exponent, index=exact.index,
        valid=valid, error=np.full(DENSE.size, 1e-3), clock=SimpleNamespace(steps_per_unit=200.0),
    )  # fmt: skip


def test_trajectory_pictures(results):
    axes = plot_trajectory(trajectory(), transition=results.theory)
    assert "200 SGD steps" in axes.get_xlabel() and axes.child_axes[0].get_xlabel() == "SGD steps"
    assert axes.lines[0].get_xdata().max() < 12, "what is not valid is not drawn"
    assert any("e-folds" in text.get_text() for text in axes.get_legend().get_texts())
    figure = Figure()
    mine = figure.add_subplot()
    assert plot_exponent(trajectory(), axes=mine) is mine and mine.get_ylabel().startswith("local exponent")
    for one in (axes, mine):
        one.figure.draw_without_rendering()


def test_overlaps():
    rng = np.random.default_rng(1)
    C = np.tanh(DENSE)[:, None, None] * np.array([[1.0, 0.3], [0.3, 0.5]])
    runs = np.tanh(POINTS)[None, :, None, None] * np.array([[1.0, 0.3], [0.3, 0.5]])
    runs = runs * (1 + 0.02 * rng.standard_normal((3, 31, 1, 1)))
    axes = plot_overlaps(DENSE, C, ["q0", "k0"], [("q0", "q0"), ("q0", "k0")], run_t=POINTS, run_overlaps=runs)
    assert axes.lines[0].get_ydata() == pytest.approx(np.tanh(DENSE))
    assert [text.get_text() for text in axes.get_legend().get_texts()][:2] == ["q0 · q0", "q0 · k0"]
    with pytest.raises(InputError, match="names among"):
        plot_overlaps(DENSE, C, ["q0", "k0"], [("q0", "r1")])
    with pytest.raises(InputError, match="pairs"):
        plot_overlaps(DENSE, C, ["q0", "k0"], [("q0", "q0")] * (len(CYCLE) + 1))
    with pytest.raises(InputError, match="overlaps"):
        plot_overlaps(DENSE, C[:, 0], ["q0", "k0"], [("q0", "q0")])


def test_wrong_lengths_and_names():
    with pytest.raises(InputError, match="theory_loss"):
        plot_comparison(DENSE, quickstart(POINTS), POINTS, quickstart(POINTS))
    with pytest.raises(InputError, match="theory_at_run"):
        plot_comparison(DENSE, quickstart(DENSE), POINTS, quickstart(POINTS), theory_at_run=quickstart(DENSE))
    with pytest.raises(InputError, match="quantity"):
        plot_exponent(trajectory(), quantity="loss")


def test_no_pyplot_and_no_lasting_settings(results):
    import matplotlib

    before = dict(matplotlib.rcParams)
    compare(results)
    assert dict(matplotlib.rcParams) == before and RC["axes.grid"] is True
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
