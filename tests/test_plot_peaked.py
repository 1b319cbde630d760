"""The pictures of the one-third law show the numbers that they are given, where they belong."""

from __future__ import annotations

import numpy as np
import pytest

from odescale import InputError, integrate, peaked, sweep
from odescale.expectations.softmax_race import softmax_race
from odescale.generated.peaked import hand_over_time, power_law_loss
from odescale.plot import plot

CLASSES = 10
TEMPERATURES = np.array([300.0, 0.5, 3.0, 20.0])


@pytest.fixture(scope="module")
def phase():
    settings = {"classes": CLASSES, "labels": "soft", "noise": 0.0}
    # Flat targets are learned to rounding long before the end; then an explicit solver would only take step after step.
    return sweep("peaked", 1e8, {"inverse_temperature": TEMPERATURES}, points=60, max_steps=10_000, **settings)


@pytest.fixture(scope="module")
def hand_over():
    return np.asarray(hand_over_time(1.0, float(softmax_race(CLASSES).c), CLASSES, TEMPERATURES))


def words(axes) -> str:
    legend = axes.get_legend()
    return " | ".join(text.get_text() for text in [*axes.texts, *(legend.get_texts() if legend else [])])


def test_one_third_draws_loss_law_and_exponent(tmp_path):
    runs = {f"K = {K}": integrate(peaked(classes=K, noise=0.0), 1e6, points=50) for K in (2, 10)}
    laws = {}
    for K in (2, 10):
        t = runs[f"K = {K}"].t
        with np.errstate(divide="ignore"):
            laws[f"K = {K}"] = np.asarray(power_law_loss(t, 1.0, float(softmax_race(K).c), K))
    axes = plot(runs, kind="law", asymptotes=laws, exponent=1 / 3, title="flow")
    assert list(axes) == ["loss", "exponent"]
    lines = axes["loss"].lines
    np.testing.assert_allclose(lines[0].get_ydata(), runs["K = 2"].loss[1:])
    # The dashed law lies on its run at the end of the axis: the picture's message.
    for run, law in ((lines[0], lines[1]), (lines[2], lines[3])):
        assert law.get_linestyle() == "--" and law.get_color() == run.get_color()
        assert law.get_ydata()[-1] == pytest.approx(run.get_ydata()[-1], rel=2e-3)
    np.testing.assert_allclose(axes["exponent"].lines[1].get_ydata(), runs["K = 10"].exponent[1:])
    assert "1/3" in words(axes["exponent"]) and "SGD steps" in axes["exponent"].get_xlabel()
    path = tmp_path / "law.png"
    axes["loss"].figure.savefig(path)
    assert path.stat().st_size > 20_000


@pytest.mark.slow
def test_phase_diagram_colours_by_the_exponent_and_hides_rounding(phase, hand_over):
    axes = plot(phase, kind="phases", hand_over=hand_over, peaked_from=2.1, cutoff=[7e7, None, np.nan, 1e4])
    image = axes.collections[0]
    shown = image.get_array().reshape(4, 59)
    order = np.argsort(TEMPERATURES)
    loss, exponent = phase.loss[order][:, 1:], phase.exponent[order][:, 1:]
    visible = np.isfinite(loss) & (loss > 1e-11)
    np.testing.assert_array_equal(~np.ma.getmaskarray(shown), visible)
    np.testing.assert_allclose(shown[visible], exponent[visible])
    assert not visible[0].all() and visible[-1].all()
    line, points = axes.lines[:2]
    # No end of a power law is drawn where there is none.
    np.testing.assert_allclose(line.get_xdata(), np.append(np.nan, np.sort(hand_over)[1:]))
    assert np.isfinite(points.get_xdata()).sum() == 2
    said = words(axes)
    for part in ("exponential\nfrom the start", "power law 1/3", "exponential beyond", "alpha_c", "transition finder"):
        assert part in said
    axes.figure.draw_without_rendering()


def test_words_of_the_regimes_stand_in_them(phase, hand_over):
    """At the place of each label the exponent is what the label says."""
    axes = plot(phase, kind="phases", hand_over=hand_over, peaked_from=2.1)
    scale = float(softmax_race(CLASSES).c)
    for text in axes.texts:
        t, b = text.get_position()
        alpha_c = float(np.asarray(hand_over_time(1.0, scale, CLASSES, b)))
        if "power law" in text.get_text():
            assert 10 < t < alpha_c / 3
        elif "beyond" in text.get_text():
            assert t > 3 * alpha_c
        else:
            assert b < 2.1


def test_bad_input(phase, hand_over):
    run = integrate(peaked(classes=2, noise=0.0), 10.0, points=10)
    with pytest.raises(InputError, match="inverse_temperature alone"):
        plot(run, kind="phases")
    with pytest.raises(InputError, match="hand_over"):
        plot(phase, kind="phases", hand_over=hand_over[:2])
    with pytest.raises(InputError, match="asymptotes"):
        plot({"a": run}, kind="law", asymptotes={"b": run.loss})
    with pytest.raises(InputError, match="asymptotes"):
        plot({"a": run}, kind="law", asymptotes={"a": run.loss[1:]})
    with pytest.raises(InputError, match="1 to 8 curves"):
        plot({}, kind="law")
    with pytest.raises(InputError, match="one curve"):
        plot({"a": phase}, kind="law")
