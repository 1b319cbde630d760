"""Forecasts of real curves: the accuracy that the laws reach on MultiPowerLaw's runs and the OLMo ladder, and what they refuse.

Every number is in `python -m benchmarks.forecast`; the bounds are those stated before the library's fits were run.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.forecast import LADDER, SIZES, interval_quality, multi_power_split, olmo_split, published_law
from odescale import OutsideTheoryError, fit_law, forecast
from odescale.analysis.forecast.predict import Forecast
from odescale.laws import choose_law, fit_isolated
from tests.real_curves import folder, gemstones_end, multi_power_curves, pythia_curve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not folder().is_dir(), reason="no real curves: set ODESCALE_DATA to their folder"),
]


@pytest.fixture(scope="module")
def multi_power() -> dict[str, Forecast]:
    return {size: multi_power_split(size) for size in SIZES}


@pytest.fixture(scope="module")
def ladder() -> dict[str, Forecast]:
    return {size: olmo_split(size) for size in LADDER}


@pytest.mark.parametrize("size", SIZES)
def test_seven_curves_from_two(multi_power, size: str) -> None:
    made = multi_power[size]
    assert len(made.runs) == 7 and made.fit.law in ("relaxing", "spectral")
    errors = made.errors()
    assert errors["mean_absolute"] <= 0.005 and errors["r2"] >= 0.997 and errors["unseen"] <= 0.009, errors
    assert errors["mean_absolute"] <= made.errors("power_tau")["mean_absolute"] / 4


@pytest.mark.parametrize("size", SIZES)
def test_two_runs_do_as_well_as_the_multi_power_law_with_three(multi_power, size: str) -> None:
    own = multi_power[size].errors()["mean_absolute"]
    published, refitted = (published_law(size, refit=refit)["mean_absolute"] for refit in (False, True))
    # The authors print .0038 and .0044 for their test curves: the law here is theirs.
    assert published < 0.0055
    assert own <= 1.15 * published and own <= 1.15 * refitted, (own, published, refitted)


def test_ladder_from_its_two_short_runs(ladder) -> None:
    for run, bound in (("cosine 5xC", 0.011), ("cosine 10xC", 0.015)):
        errors = [made[run].errors()["mean_absolute"] for made in ladder.values()]
        rivals = [made[run].errors("power_tau")["mean_absolute"] for made in ladder.values()]
        assert np.mean(errors) <= bound and np.mean(errors) <= np.mean(rivals) / 4, (run, errors)
    assert all(made.fit.law == "instant" for made in ladder.values())


def test_intervals_hold_the_truth(multi_power, ladder) -> None:
    """104 cases, 90 % nominal; a Gaussian error of known size would need 4.9 median errors. The size of what laws miss was set on
    these runs among others: the benchmark of the calibration has the families left out."""
    quality = interval_quality([*multi_power.values(), *ladder.values()])
    assert 0.85 <= quality["coverage"] <= 0.99 and quality["width/error"] <= 6.5, quality


LENGTHS = (("cosine_24000", "cosine_72000"), ("cosine_72000", "cosine_24000"), ("wsd_20000_24000", "constant_72000"))


def test_one_run_forecasts_another_length() -> None:
    """From one run, a cosine or WSD, to another length: all four places of the unseen part are held."""
    for size in SIZES:
        curves = multi_power_curves(size)
        for known, asked in (
            ("cosine_24000", "cosine_72000"),
            ("cosine_72000", "cosine_24000"),
            ("wsd_20000_24000", "constant_72000"),
        ):
            rows = forecast(curves[known], curves[asked], draws=30).at_horizons()
            assert all(row["covered"] for row in rows), (size, known, rows)


@pytest.mark.parametrize("law", ["instant", "relaxing", "spectral"])
def test_refusals(law: str) -> None:
    curves = multi_power_curves("25M")
    constant = curves["constant_24000"]
    for name, curve in (
        ("Pythia, first tenth", pythia_curve("70m").between(1430, 14300)),
        ("constant rate", constant),
        ("ten points", constant.between(2000, 3400)),
    ):
        found = fit_law(curve, law=law)
        assert not found.identified and found.reason, name
        assert set(found.parameters.values()) == {None}, name
        with pytest.raises(OutsideTheoryError, match="unidentified"):
            choose_law(curve, laws=(law,), draws=0)


def test_gemstones() -> None:
    """Width and depth together are identified and both are below the 1/2 of Yang's isolated laws; width alone is not identified."""
    end = gemstones_end("hot")
    fit = fit_isolated({n: end[n] for n in ("width", "depth")}, end["loss"])
    for name in ("width", "depth"):
        law = fit[name]
        assert law.identified and law.interval is not None and law.agrees(0.5) is False, str(law)
    assert fit.rms < 0.01
    alone = fit_isolated({"width": end["width"]}, end["loss"])
    assert not alone["width"].identified and alone["width"].exponent is None
