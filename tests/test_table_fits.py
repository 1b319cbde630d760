"""Scaling laws fitted to tables: against scipy's minimiser, published numbers, known truths; and what must be refused."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from real_curves import folder
from scipy.optimize import minimize

from odescale import fit_table
from odescale.errors import InputError
from odescale.laws import FORMS, scaling_table

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


def law(N, D, E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37):
    return E + A / N**alpha + B / D**beta


def synthetic(rows=60, noise=0.003, seed=0):
    rng = np.random.default_rng(seed)
    N, D = 10 ** rng.uniform(7.5, 9.5, rows), 10 ** rng.uniform(9, 11, rows)
    return N, D, law(N, D) * np.exp(noise * rng.normal(size=rows))


def table_of(N, D, L, **more):
    return scaling_table(params=N, tokens=D, loss=L, **more)


def chinchilla_points():
    path = folder() / "chinchilla_points.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [[float(row[name]) for name in ("params", "train_flop", "loss")] for row in csv.DictReader(stream)]
    N, C, L = np.array(rows).T
    return scaling_table(params=N, flop=C, loss=L), np.argsort(C / N**2)[:5]


def test_exact_rows_give_the_law_back():
    N, D, _ = synthetic(30)
    fit = fit_table(table_of(N, D, law(N, D)), bootstrap=20)
    assert fit.identified and fit.stable and not fit.outliers
    for name, value in TRUTH.items():
        assert fit.values[name] == pytest.approx(value, rel=1e-5), name
    at = fit.predict(params=7e10, tokens=1.4e12)
    assert at.loss[0] == pytest.approx(law(7e10, 1.4e12), rel=1e-6) and at.low[0] <= at.loss[0] <= at.high[0]


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """95 % intervals of the exponents over 120 tables; the whole study is benchmarks/table_fits.py."""
    hits = []
    for seed in range(120):
        N, D, L = synthetic(60, 0.003, seed)
        fit = fit_table(table_of(N, D, L), bootstrap=300, level=0.95, seed=seed, starts=4)
        hits.append([low <= TRUTH[n] <= high for n in TRUTH for low, high in [fit.interval(n)]])
    assert (np.abs(np.mean(hits, axis=0) - 0.95) < 0.06).all(), np.mean(hits, axis=0)


@pytest.mark.parametrize("delta", [1e-3, 1e-2, np.inf])
def test_the_minimum_is_that_of_scipy(delta):
    N, D, L = synthetic(40, 0.01, seed=3)
    fit = fit_table(table_of(N, D, L), robust=delta, bootstrap=2)

    def cost(v):
        r = np.log(law(N, D, *np.exp(v[:3]), *v[3:])) - np.log(L)
        size = np.abs(r)
        return np.sum(np.where(size <= delta, r * r / 2, delta * (size - delta / 2) if np.isfinite(delta) else 0.0))

    start = np.array([np.log(fit.values[n]) for n in ("E", "A", "B")] + [fit.values["alpha"], fit.values["beta"]])
    assert fit.cost == pytest.approx(cost(start), rel=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(4):
        moved = start + rng.normal(size=5) * [0.02, 0.2, 0.2, 0.01, 0.01]
        found = minimize(cost, moved, method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-9, "fatol": 1e-14})
        assert found.fun >= fit.cost * (1 - 1e-9)


def test_least_squares_beside_is_the_least_squares_fit():
    from scipy.optimize import least_squares

    N, D, L = synthetic(40, 0.01, seed=4)
    fit = fit_table(table_of(N, D, L), bootstrap=2)
    v = fit.least_squares.values
    found = least_squares(
        lambda u: 1 - law(N, D, *np.exp(u[:3]), *u[3:]) / L,
        np.concatenate([np.log(v[:3]), v[3:]]),
        xtol=1e-15,
        ftol=1e-15,
    )
    assert np.sqrt(2 * found.cost / 40) == pytest.approx(fit.least_squares.rms, rel=1e-9)
    assert found.x[3:] == pytest.approx(v[3:], rel=1e-5)
    assert fit.least_squares.conditioning > 1e6 * fit.least_squares.reduced


def test_published_fit_and_its_standard_errors():
    """Besiroglu et al. 2024, arXiv 2404.10102: values and bootstrap standard errors of their notebook, five rows left out."""
    table, lowest = chinchilla_points()
    fit = fit_table(table, leave_out=lowest, bootstrap=1000, starts=6)
    for name, value, near in (("E", 1.8172, 5e-4), ("alpha", 0.3478, 1e-3), ("beta", 0.3658, 2e-3)):
        assert abs(fit.values[name] - value) < near, name
    assert fit.values["A"] == pytest.approx(482.01, rel=0.03) and fit.values["B"] == pytest.approx(2085.43, rel=0.03)
    published = {"A": 124.52, "B": 1293.28, "E": 0.02566, "alpha": 0.01540, "beta": 0.02060}
    assert {n: fit.stderr[n] for n in published} == pytest.approx(published, rel=0.25)
    assert fit.failed == 0 and fit.identified and fit.stable


def test_the_five_rows_are_named_and_the_answer_with_them_is_unstable():
    table, lowest = chinchilla_points()
    fit = fit_table(table, bootstrap=40, starts=6)
    assert set(lowest) == {o.row for o in fit.outliers[:5]} and len(fit.outliers) <= 10
    assert not fit.stable and "beta" in fit.unstable[0]


def test_clean_tables_have_no_outliers_and_planted_ones_are_found():
    for seed in range(5):
        N, D, L = synthetic(50, 0.005, seed)
        assert not fit_table(table_of(N, D, L), bootstrap=2).outliers
        L[[3, 30]] *= [1.08, 0.93]
        fit = fit_table(table_of(N, D, L), bootstrap=2)
        assert {o.row for o in fit.outliers} == {3, 30}
        without = fit_table(table_of(N, D, L), leave_out="outliers", bootstrap=2)
        assert not without.outliers and "rows 3, 30" in without.notes[0]


def test_a_table_without_span_is_refused_with_the_reason():
    N, D, _ = synthetic(40)
    for tie, name, words in (
        (np.full(40, 1e8), "alpha", "params has one value"),
        (np.where(N > 3e8, 1e8, 2e8), "alpha", "2 different values"),
        (D / 20, "alpha", "tied"),
        ((D / 3e3) ** 2, "beta", "tied"),
    ):
        L = law(tie, D) * np.exp(0.002 * np.random.default_rng(1).normal(size=40))
        fit = fit_table(table_of(tie, D, L), bootstrap=50)
        assert words in fit.unidentified[name], fit.unidentified
        with pytest.raises(InputError, match=words):
            fit.require_identified("a plan")
        assert "unidentified" in str(fit)


def test_rows_of_one_run_are_drawn_together():
    N, D, L = synthetic(20, 0.003, seed=5)
    wide = fit_table(
        table_of(np.repeat(N, 3), np.repeat(D, 3), np.repeat(L, 3), runs=np.repeat(np.arange(20), 3)), bootstrap=300
    )
    narrow = fit_table(table_of(np.repeat(N, 3), np.repeat(D, 3), np.repeat(L, 3)), bootstrap=300)
    assert wide.stderr["alpha"] > 1.3 * narrow.stderr["alpha"]
    assert "whole runs" in wide.notes[0] and "independent runs" in narrow.notes[0]


def test_the_largest_runs_are_predicted_by_the_others():
    N, D, L = synthetic(60, 0.002, seed=6)
    fit = fit_table(table_of(N, D, L), bootstrap=2)
    held = fit.held_out
    assert held is not None and (N * D)[held.rows].min() > np.delete(N * D, held.rows).max()
    again = fit_table(table_of(N, D, L), leave_out=held.rows, bootstrap=2)
    assert held.values["alpha"] == pytest.approx(again.values["alpha"], rel=1e-3)
    predicted = again.predict(params=N[held.rows], tokens=D[held.rows]).loss
    assert held.error == pytest.approx(np.log(L[held.rows] / predicted), abs=1e-5)


def test_a_law_that_bends_is_called_unstable_and_a_true_one_is_not():
    rng = np.random.default_rng(2)
    N, C = 10 ** rng.uniform(7.5, 9.5, 90), 10 ** rng.uniform(18, 22, 90)
    D = C / (6 * N)
    noise = np.exp(0.003 * rng.normal(size=90))
    assert fit_table(table_of(N, D, law(N, D) * noise), bootstrap=120, starts=4).stable
    # From 1e20 FLOP on the data run out: no more than 8e9 tokens are new.
    bent = law(N, np.where(C > 1e20, np.minimum(D, 8e9), D)) * noise
    fit = fit_table(table_of(N, D, bent), bootstrap=120, starts=4)
    assert not fit.stable
    centres, means, errors = fit.residuals_by("tokens", 5)
    assert centres.shape == means.shape == errors.shape == (5,) and np.abs(means / errors).max() > 3


def test_bad_arguments_are_named():
    N, D, L = synthetic(20)
    table = table_of(N, D, L)
    for options, name in (
        ({"form": "nothing"}, "form"), ({"robust": 0}, "robust"), ({"starts": 0}, "starts"), ({"level": 1}, "level"),
        ({"weights": [1.0]}, "weights"), ({"leave_out": [99]}, "leave_out"), ({"leave_out": "marked"}, "leave_out"),
        ({"bootstrap": 1}, "bootstrap"), ({"leave_out": range(16)}, "table"),
    ):  # fmt: skip
        with pytest.raises(InputError) as error:
            fit_table(table, **options)
        assert error.value.argument == name
    with pytest.raises(InputError, match="tokens"):
        fit_table(scaling_table(params=N, loss=L))


def test_slopes_of_every_form_are_the_derivatives_of_its_terms():
    rng = np.random.default_rng(0)
    for form in FORMS.values():
        columns = {name: np.exp(rng.uniform(1, 3, 7)) for name in form.columns}
        exponents = np.array([[np.sqrt(e.low * e.high) for e in form.exponents]])
        slopes = np.broadcast_to(form.log_slopes(exponents, columns), (1, 7, len(form.amplitudes), exponents.size))
        for k in range(exponents.size):
            up, down = exponents.copy(), exponents.copy()
            up[0, k] *= 1 + 1e-6
            down[0, k] *= 1 - 1e-6
            rise = form.log_terms(up, columns) - form.log_terms(down, columns)
            assert slopes[..., k] == pytest.approx(rise / (2e-6 * exponents[0, k]), rel=1e-5, abs=1e-6), form.name
