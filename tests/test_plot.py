"""Pictures hold what they are given, without a screen, and refuse what does not fit together."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from types import SimpleNamespace

import equinox as eqx
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

import odescale
from odescale import Clock, InputError, Run, Trajectory, find_transition, find_transition_curve, sweep
from odescale.analysis.phases.exponents import local_exponent
from odescale.compare.comparison import Quantity
from odescale.compare.verdict import Verdict
from odescale.plot import draw, kinds, plot, register
from odescale.plot.style import CYCLE, RC
from odescale.systems.attention_build import quickstart_loss

DENSE = np.geomspace(0.05, 40, 200)
POINTS = np.geomspace(0.1, 34, 31)
UNIT = "t  (one unit = 500 SGD steps)"
CLOCK = Clock(500.0, 0.2, batch=4.0, tokens=64.0)


def two_phases(t):
    """The loss of the quickstart system in u, noise dropped."""
    return np.asarray(quickstart_loss(t, 14.0, 0.3, 4.0))


def correlated(rng, shape, size, rho=0.7):
    noise = rng.standard_normal(shape)
    for i in range(1, shape[-1]):
        noise[..., i] = rho * noise[..., i - 1] + np.sqrt(1 - rho**2) * noise[..., i]
    return size * noise


@pytest.fixture(scope="module")
def results():
    seeds = two_phases(POINTS) * np.exp(correlated(np.random.default_rng(0), (4, 31), 0.02))
    run = find_transition_curve(POINTS, seeds)
    theory = find_transition_curve(POINTS, two_phases(POINTS), model=run.model).without_intervals()
    exact = find_transition(lambda t: quickstart_loss(t, 14.0, 0.3, 4.0), window=(0.01, 34.0))
    exact = exact.changed(estimator="exact derivatives")
    assert run.found and theory.found and exact.found
    return SimpleNamespace(seeds=seeds, run=run, theory=theory, exact=exact)


def curve(t, loss, *, valid=None, error=1e-2, clock=CLOCK) -> Trajectory:
    exact = local_exponent(POINTS, two_phases(POINTS), at=np.maximum(t, POINTS[0]))
    return Trajectory(
        t=t, state=np.zeros((t.size, 1)), loss=loss, exponent=exact.exponent, index=exact.index, observables={},
        valid=np.ones(t.size, bool) if valid is None else valid, code=np.asarray(0), error=np.full(t.size, error),
        clock=clock, meta={"loss": "excess cross-entropy L  (nats)"},
    )  # fmt: skip


def run_of(seeds) -> Run:
    steps = np.rint(500 * POINTS).astype(int)
    return Run(
        steps, POINTS, np.arange(len(seeds)), {"loss": seeds, "speed": 0 * seeds - 1}, None, CLOCK, {"tokens": 64}, {}
    )


def quantity(measured, predicted, stderr, tolerance: float | None = 0.1) -> Quantity:
    kept = np.ones(measured.size, bool)
    ratio = measured / predicted
    verdict = None if tolerance is None else Verdict("agrees", ("made by hand",))
    return Quantity(measured, predicted, ratio, {"seeds": stderr / predicted}, {}, kept, tolerance, verdict)


def comparison(results, **changes) -> SimpleNamespace:
    """A comparison by hand: theory as a dense line, four seeds around it."""
    mean, stderr = results.seeds.mean(0), results.seeds.std(0, ddof=1) / 2
    fields = {
        "run": run_of(results.seeds), "theory": curve(DENSE, two_phases(DENSE)), "kept": np.ones(31, bool),
        "quantities": {"loss": quantity(mean, two_phases(POINTS), stderr)},
        "exponents": {"run": local_exponent(POINTS, results.seeds)},
        "transitions": {"theory": results.theory, "run": results.run, "exact": results.exact}, "context_loss": None,
    } | changes  # fmt: skip
    return type("Comparison", (SimpleNamespace,), {})(**fields)


def compare(results, changes=None, **options):
    return plot(comparison(results, **(changes or {})), **options)


def words(axes) -> str:
    return " ".join(text.get_text() for text in axes.texts)


def test_comparison_shows_everything(results, tmp_path):
    axes = compare(results, title="theory and runs", formula=(DENSE, two_phases(DENSE)), slope=2.0)
    assert set(axes) == {"loss", "semilog", "ratio", "exponent", "index"}
    loss = axes["loss"]
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    assert any("theory" in x for x in labels) and any("mean of 4 seeds" in x for x in labels)
    assert any("closed form" in x for x in labels) and any("single seeds" in x for x in labels) and "slope -2" in labels
    lines = words(loss).split("\n")
    assert lines[0] == "exponential, then power law, $t_x$:" and lines[2].startswith("95 %")
    assert lines[1] == f"run, by fit: {results.run.t_x:.4g} (solid)"
    assert lines[3] == f"theory, same fit and points: {results.theory.t_x:.4g} (dashed)"
    assert lines[4] == f"theory, exact: {results.exact.t_x:.7g}", "all the digits that the command line prints"
    assert axes["ratio"].get_xlabel() == UNIT and loss.get_xscale() == loss.get_yscale() == "log"
    assert loss.get_ylabel() == "excess cross-entropy L  (nats)"
    # An exponential is straight in the second panel.
    assert axes["semilog"].get_xscale() == "linear" and axes["semilog"].get_yscale() == "log"
    bars = [c for c in axes["ratio"].containers if isinstance(c, ErrorbarContainer)]
    assert bars[0][0].get_ydata() == pytest.approx(results.seeds.mean(0) / two_phases(POINTS))
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


def test_comparison_of_several_quantities_and_of_distances(results):
    mean, stderr = results.seeds.mean(0), results.seeds.std(0, ddof=1) / 2
    loss = quantity(mean, two_phases(POINTS), stderr)
    spread = quantity(1.02 * mean, two_phases(POINTS), stderr, 0.05)
    axes = compare(results, {"quantities": {"loss": loss, "spread": spread}})["quantities"]
    assert axes.containers[0][0].get_ydata() == pytest.approx(spread.ratio)
    assert "spread, tolerance 0.05" in axes.get_legend().get_texts()[0].get_text()
    distance = Quantity(0.01 * POINTS, 0 * POINTS, 1 + 0.01 * POINTS, {}, {}, loss.kept, 0.1, Verdict("agrees", ("",)))
    axes = compare(results, {"quantities": {"loss": loss, "train": distance}})["quantities"]
    assert axes.get_yscale() == "log" and axes.lines[0].get_ydata() == pytest.approx(0.01 * POINTS)


def test_legend_and_words_cover_no_points(results):
    loss = compare(results)["loss"]
    loss.figure.draw_without_rendering()
    renderer = loss.figure.canvas.get_renderer()
    boxes = [loss.get_legend().get_window_extent(renderer), *(x.get_window_extent(renderer) for x in loss.texts[:1])]
    points = loss.transData.transform(np.column_stack([POINTS, results.seeds.mean(0)]))
    # An annotation's extent holds its arrow, which may touch the line at t_x but no data point.
    assert not any(box.contains(x, y) for box in boxes for x, y in points)


def test_comparison_with_the_bare_minimum(results):
    """One seed, no transitions looked for, one panel."""
    mine = Figure().add_subplot()
    one = quantity(two_phases(POINTS), two_phases(POINTS), 0 * POINTS, None)
    bare = {"run": run_of(results.seeds[:1]), "exponents": {}, "transitions": {}, "quantities": {"loss": one}}
    assert plot(comparison(results, **bare), mine) is mine
    assert "SGD steps" in mine.get_xlabel() and "one seed" in mine.get_legend().get_texts()[-1].get_text()
    mine.figure.draw_without_rendering()


def test_no_transition_is_said(results):
    none = find_transition_curve(POINTS, np.exp(-POINTS))
    axes = compare(results, {"transitions": {"theory": none, "run": none}})
    assert "run: exponential to the end, no $t_x$" in words(axes["loss"])
    unsure = none.changed(name="cannot be told apart", contenders=("two exponentials", "exponential, then power law"))
    said = words(compare(results, {"transitions": {"run": unsure}})["loss"])
    assert "cannot be told apart" in said and "two exponentials?" in said and "exponential, then power law?" in said


def test_noisy_index_is_not_drawn(results):
    run = local_exponent(POINTS, results.seeds)
    axes = plot(run, kind="index", label="run")
    drawn = axes.lines[0].get_ydata()
    assert np.isnan(drawn[run.index_stderr > 1]).all() and np.isfinite(drawn).any()


def test_trajectory_pictures(results):
    valid = DENSE < 12
    one = curve(DENSE, np.where(valid, two_phases(DENSE), np.nan), valid=valid)
    drawn = plot(one, transition=results.theory, slope=1 / 3)
    axes, second = drawn["loss"], drawn["semilog"]
    assert "500 SGD steps" in axes.get_xlabel() and axes.child_axes[0].get_xlabel() == "SGD steps"
    assert axes.get_ylabel() == "excess cross-entropy L  (nats)"
    assert axes.lines[0].get_xdata().max() < 12, "what is not valid is not drawn"
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert f"exponential, then power law: t_x = {results.theory.t_x:.4g}" in told and "slope -1/3" in told
    guide = next(line for line in axes.lines if line.get_label() == "slope -1/3")
    t, loss = guide.get_data()
    assert np.log(loss[-1] / loss[0]) / np.log(t[-1] / t[0]) == pytest.approx(-1 / 3)
    assert second.get_xscale() == "linear" and second.get_xlim()[1] == pytest.approx(3 * results.theory.t_x)
    mine = Figure().add_subplot()
    assert plot(one, mine, kind="exponent") is mine and mine.get_ylabel().startswith("local exponent")
    for picture in (axes, mine):
        picture.figure.draw_without_rendering()
    assert plot(results.run).get_title(loc="left") == f"exponential, then power law: $t_x$ = {results.run.t_x:.4g}"


def test_runs_and_several_curves_by_label(results):
    run = run_of(results.seeds)
    drawn = plot(run)
    assert drawn["loss"].containers[0][0].get_ydata() == pytest.approx(results.seeds.mean(0))
    assert plot(run, record="speed")["loss"].get_yscale() == "linear"
    both = plot({"theory": curve(DENSE, two_phases(DENSE)), "run": run})["loss"]
    assert [text.get_text() for text in both.get_legend().get_texts()] == ["theory", "run"]
    assert both.lines[1].get_ydata() == pytest.approx(results.seeds.mean(0))
    with pytest.raises(InputError, match="local exponents"):
        plot({"run": run}, kind="exponent")
    with pytest.raises(InputError, match="result"):
        plot({})


def test_members_of_a_sweep_by_label_or_on_a_scale():
    few, many = (
        sweep("spectral", 100.0, {"learning_rate": np.geomspace(0.02, 0.2, n)}, points=12, modes=8) for n in (3, 9)
    )
    axes = plot(few)["loss"]
    assert [text.get_text() for text in axes.get_legend().get_texts()][0] == "learning_rate = 0.02"
    assert axes.get_ylabel() == "excess risk  (mean squared error)" and "one unit = 1 SGD step)" in axes.get_xlabel()
    np.testing.assert_allclose(axes.lines[2].get_ydata(), few.loss[2][1:])
    drawn = plot(many, slope=0.5)
    assert len(drawn["loss"].lines) == 10 and drawn["loss"].figure.axes[2].get_ylabel() == "learning_rate"
    assert [text.get_text() for text in drawn["loss"].get_legend().get_texts()] == ["slope -1/2"]
    assert len(plot(few, kind="exponent").lines) == 3


def test_overlaps(results):
    rng = np.random.default_rng(1)
    C = np.tanh(DENSE)[:, None, None] * np.array([[1.0, 0.3], [0.3, 0.5]])
    runs = np.tanh(POINTS)[None, :, None, None] * np.array([[1.0, 0.3], [0.3, 0.5]])
    runs = runs * (1 + 0.02 * rng.standard_normal((4, 31, 1, 1)))
    theory = curve(DENSE, two_phases(DENSE))
    theory = eqx.tree_at(
        lambda tr: tr.observables, theory, {"overlaps": C}, is_leaf=lambda x: isinstance(x, dict) and not x
    )
    run = eqx.tree_at(lambda r: r.records, run_of(results.seeds), {"loss": results.seeds, "overlaps": runs})
    axes = plot(theory, kind="overlaps", names=["q0", "k0"], pairs=[("q0", "q0"), ("q0", "k0")], run=run)
    assert axes.lines[0].get_ydata() == pytest.approx(np.tanh(DENSE))
    assert [text.get_text() for text in axes.get_legend().get_texts()][:2] == ["q0 · q0", "q0 · k0"]
    own = comparison(results, theory=theory, run=run)
    assert len(plot(own, kind="overlaps").get_legend().get_texts()) == 4
    with pytest.raises(InputError, match="names among"):
        plot(theory, kind="overlaps", names=["q0", "k0"], pairs=[("q0", "r1")])
    with pytest.raises(InputError, match="pairs"):
        plot(theory, kind="overlaps", names=["q0", "k0"], pairs=[("q0", "q0")] * (len(CYCLE) + 1))
    with pytest.raises(InputError, match="overlaps"):
        plot(curve(DENSE, two_phases(DENSE)), kind="overlaps")


def test_one_verb_for_every_result_refuses_by_name():
    line = curve(DENSE, two_phases(DENSE))
    cases = {"result": (3.0, {}), "kind": (line, {"kind": "regimes"}), "colour": (line, {"colour": "red"})}
    for argument, (result, options) in cases.items():
        with pytest.raises(InputError) as error:
            plot(result, **options)
        assert error.value.argument == argument
    with pytest.raises(InputError, match="one curve"):
        plot(curve(DENSE, two_phases(POINTS)[:3]))
    assert callable(odescale.plot) and "result" in inspect.signature(odescale.plot).parameters
    assert kinds()["Trajectory"][0] == "loss"


def test_a_drawing_of_ones_own():
    class Landscape:
        height = 2.0

    register(Landscape, lambda result, axes, shift=0.0: result.height + shift)
    try:
        assert plot(Landscape(), shift=1.0) == 3.0
        with pytest.raises(InputError, match="option of this picture: shift"):
            plot(Landscape(), colour="red")
    finally:
        del draw.DRAWINGS["Landscape"]


def test_every_drawing_of_the_table_exists():
    for drawings in draw.DRAWINGS.values():
        for place in drawings.values():
            module, _, name = place.partition(":")
            assert (
                list(inspect.signature(getattr(import_module(f"odescale.plot.{module}"), name)).parameters)[1] == "axes"
            )


def test_no_pyplot_and_no_lasting_settings(results):
    import matplotlib

    before = dict(matplotlib.rcParams)
    compare(results)
    assert dict(matplotlib.rcParams) == before and RC["axes.grid"] is True
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
