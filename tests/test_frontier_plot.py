"""The pictures of the frontier show the numbers that they are given, where they belong."""

from __future__ import annotations

import numpy as np
import pytest

from odescale import InputError
from odescale.frontier import (
    compute_frontier,
    compute_optimal,
    critical_compute,
    isolated_law,
    phase_map,
    risk_law,
    yang_v1,
)
from odescale.plot import plot
from odescale.plot.frontier import plot_compute_phases, plot_isolated_laws

LAW = risk_law((1.0, 1.0), (0.5, 0.5), (2.0, 1.0), decay=50.0, rate=0.8, time_cost=1.0, floors=(100.0, 1000.0))


def words(axes) -> str:
    legend = axes.get_legend()
    return " | ".join(text.get_text() for text in [*axes.texts, *(legend.get_texts() if legend else [])])


def test_frontier_with_its_critical_compute(tmp_path):
    C = np.geomspace(2e7, 1e12, 60)
    found, critical = compute_frontier(LAW, C), critical_compute(LAW)
    curve = np.geomspace(1e8, 1e11, 20)
    models = {"small": curve**-0.1, "flat": np.full(20, 0.3), "too near": np.full(20, 0.301)}
    axes = plot(found, critical=critical, numeric=compute_frontier(LAW, C[::10]), asymptote=1 / 6,
                         curves={name: (curve, risk) for name, risk in models.items()}, compute_unit="", title="law")  # fmt: skip
    assert list(axes) == ["loss", "exponent"]
    line = next(line for line in axes["loss"].lines if str(line.get_label()).startswith("frontier, closed"))
    np.testing.assert_allclose(line.get_ydata(), found.risk)
    assert "C* = 1.237e+08: width released" in words(axes["loss"]) and "1/S = 0.1667" in words(axes["exponent"])
    marks = [np.unique(line.get_xdata()) for line in axes["exponent"].lines]
    assert any(m.size == 1 and m[0] == pytest.approx(critical.compute) for m in marks)
    # A fixed model that has become flat carries its label, unless that would cover another one.
    assert "flat" in words(axes["loss"]) and "small" not in words(axes["loss"]) and "near" not in words(axes["loss"])
    assert axes["loss"].get_xscale() == axes["loss"].get_yscale() == "log"
    assert "unit c = 1" in axes["loss"].get_xlabel()
    path = tmp_path / "frontier.png"
    axes["loss"].figure.savefig(path)
    assert path.stat().st_size > 20_000


def test_frontier_without_exponential_phase_says_so():
    axes = plot(compute_frontier(yang_v1(), np.geomspace(1e6, 1e9, 9)), critical=critical_compute(yang_v1()))
    assert "no exponential phase" in words(axes["loss"]) and "FLOP" in axes["exponent"].get_xlabel()
    with pytest.raises(InputError, match="frontier"):
        plot(compute_frontier(LAW, [1.0]))


def test_isolated_laws():
    x = np.geomspace(100, 1e5, 30)
    axes = plot_isolated_laws([(isolated_law(LAW, "width"), x), (isolated_law(LAW, "time"), x / 1e3)],
                              units={"time": "SGD steps"})  # fmt: skip
    assert list(axes) == ["width", "time"]
    np.testing.assert_allclose(axes["width"].lines[0].get_ydata(), x**-0.5)
    assert "-0.5" in words(axes["width"]) and "exp(-0.8 t)" in words(axes["time"])
    assert axes["time"].get_xlabel() == "time  (SGD steps)"
    alone = plot(isolated_law(LAW, "width"), values=x, unit="1")
    assert alone.get_xlabel() == "width  (1)"
    with pytest.raises(InputError):
        plot(isolated_law(LAW, "width"), values=-x)
    with pytest.raises(InputError, match="values"):
        plot(isolated_law(LAW, "width"))


def test_phase_diagram():
    a, b = np.linspace(1.05, 5, 80), np.linspace(1.05, 3, 60)
    p, which = phase_map(a, b)
    axes = plot_compute_phases(a, b, p, which, marks={"here": (2.0, 1.5)})
    names = {text.get_text(): text.get_position() for text in axes.texts}
    for name in ("Ia", "II", "III"):
        assert compute_optimal(*map(float, names[name])).phase == name  # each name lies in its phase
    # Every line of equal exponent has its number in every phase that it crosses, inside the axes.
    numbers = [t for t in axes.texts if t.get_text().startswith("0.")]
    for text in numbers:
        u, v = text.get_position()
        assert a[0] < u < a[-1] and b[0] < v < b[-1]
        assert compute_optimal(u, v).exponent == pytest.approx(float(text.get_text()), abs=0.02)
    assert len(numbers) > 15 and len({t.get_text() for t in numbers}) > 8
    assert "here" in words(axes) and "a" in axes.get_xlabel()
    with pytest.raises(InputError, match="phase_map"):
        plot_compute_phases(a, b, p.T, which)


def test_the_pictures_of_the_page_are_small_and_drawn_by_the_script(tmp_path, capsys):
    from benchmarks.scaling_figures import DRAWINGS, FOLDER, main

    page = (FOLDER.parent / "scaling_laws.md").read_text()
    for file, _ in DRAWINGS.values():
        assert (FOLDER / file).stat().st_size < 150_000 and f"(figures/{file})" in page
    assert main(["--only", "phases", "--folder", str(tmp_path)]) == 0
    assert (tmp_path / "compute_phases.png").stat().st_size < 150_000 and "kB" in capsys.readouterr().out
