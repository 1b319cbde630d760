"""Relatives of the Chinchilla form: published values, limits, numbers found again, and tables that cannot tell them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.table_relatives import PUBLISHED, published_form, repeated
from odescale import fit_table
from odescale.analysis.tables.relatives import effective
from odescale.errors import InputError
from odescale.laws import FORMS, best_batch, fit_repetition, kaplan_scales, scaling_table

R_D = PUBLISHED["R_D"]


def exact(name, values, columns, seed=0, rows=40):
    """A table on the law itself, columns uniform in their logarithm between the bounds given."""
    rng = np.random.default_rng(seed)
    drawn = {c: np.exp(rng.uniform(np.log(low), np.log(high), rows)) for c, (low, high) in columns.items()}
    form = FORMS[name]
    L = np.exp(form.log_loss(np.array([values[n] for n in form.names]), drawn))
    return scaling_table(loss=L, **drawn)


@pytest.mark.parametrize(
    ("N", "D", "U", "loss"), [(6.34e9, 242e9, 25e9, 2.2256440889984477), (8.67e9, 178e9, 25e9, 2.2269634075087867)]
)
def test_repeated_data_has_the_published_values(N, D, U, loss):
    """The two losses that the README of huggingface/datablations prints for its own numbers."""
    form = published_form()
    at = form.read({"params": N, "tokens": D, "unique_tokens": U})
    assert np.exp(form.log_loss(np.array([PUBLISHED[n] for n in form.names]), at))[0] == pytest.approx(loss, rel=1e-13)


def test_limits_of_what_repeated_tokens_are_worth():
    U = np.full(3, 1e9)
    worth = np.exp(effective(np.array([1e9, 2e9, 1e15]), U, np.array(15.0)))
    assert worth == pytest.approx([1e9, 1e9 * (1 + 15 * (1 - np.exp(-1 / 15))), 16e9], rel=1e-12)
    # Fewer tokens than there are unique ones: nothing repeats.
    assert np.exp(effective(np.array([3e8]), np.array([1e9]), np.array(15.0)))[0] == pytest.approx(3e8)


def test_repetition_is_found_again_exactly_with_the_size_that_the_data_can_use():
    fit = fit_repetition(repeated(60, 0.0, 1), bootstrap=2, robust=np.inf, starts=4)
    assert fit.values == pytest.approx(PUBLISHED, rel=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_r_star_from_a_table_with_one_per_cent_noise(seed):
    fit = fit_repetition(repeated(180, 0.01, seed, sizes=False), sizes=False, bootstrap=200, robust=np.inf, starts=4)
    z = np.log(fit.values["R_D"] / R_D) / np.std(np.log(fit.draws[:, fit.form.names.index("R_D")]))
    low, high = fit.interval("R_D", 0.95)
    assert fit.identified and low <= R_D <= high and abs(z) < 2.5, (fit.values["R_D"], z)


@pytest.mark.slow
def test_intervals_of_r_star_cover():
    """All seven numbers of the published law over 40 tables with 1 % noise: at least 31 of the 90 % intervals hold R_D, and
    R_N (binomial, 99.9 % at a true coverage of 90 %); z has no mean."""
    held, z = np.zeros(2), []
    for seed in range(40):
        fit = fit_repetition(repeated(180, 0.01, 100 + seed), bootstrap=200, robust=np.inf, starts=4)
        for k, name in enumerate(("R_D", "R_N")):
            low, high = fit.interval(name, 0.9)
            held[k] += low <= PUBLISHED[name] <= high
        z.append(np.log(fit.values["R_D"] / R_D) / np.std(np.log(fit.draws[:, 5])))
    assert (held >= 31).all(), held
    assert abs(np.mean(z)) < 3.3 / np.sqrt(40), np.mean(z)


def test_a_table_without_repeats_says_so():
    table = repeated(40, 0.003, 2, sizes=False)
    fresh = table.take(np.isclose(table.column("tokens"), table.column("unique_tokens")))
    rows = scaling_table(
        params=np.tile(fresh.column("params"), 3), tokens=np.tile(fresh.column("tokens"), 3), epochs=np.ones(3 * len(fresh)),
        loss=np.tile(fresh.loss, 3) * np.exp(0.003 * np.random.default_rng(0).normal(size=3 * len(fresh))),
    )  # fmt: skip
    fit = fit_table(rows, "repetition", bootstrap=20, starts=2)
    assert "no run repeats" in fit.unidentified["R_D"] and "unidentified" in str(fit)
    columns = {"params": (1e7, 2e8), "unique_tokens": (5e9, 5e10), "tokens": (5e10, 1e12)}
    small = fit_repetition(exact("repetition", PUBLISHED, columns), bootstrap=2, starts=2)
    assert "R_N" not in small.values and "no R_N" in small.notes[-1]
    assert small.values["R_D"] == pytest.approx(R_D, rel=1e-3)


def test_kaplan_is_found_again_with_its_scales():
    """Kaplan et al. 2020, table 2: alpha_N .076, alpha_D .103, Nc 6.4e13, Dc 1.8e13."""
    a, d, Nc, Dc = 0.076, 0.103, 6.4e13, 1.8e13
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(6, 9, 40), 10 ** rng.uniform(7.5, 10.5, 40)
    L = ((Nc / N) ** (a / d) + Dc / D) ** d
    fit = fit_table(scaling_table(params=N, tokens=D, loss=L), "kaplan", bootstrap=20)
    scales = kaplan_scales(fit)
    assert (fit.values["alpha_N"], fit.values["alpha_D"]) == pytest.approx((a, d), rel=1e-5)
    assert (scales.params_scale, scales.tokens_scale) == pytest.approx((Nc, Dc), rel=1e-3)
    assert fit.predict(params=1e12, tokens=1e16).loss[0] == pytest.approx((Nc / 1e12) ** a, rel=1e-3)
    with pytest.raises(InputError, match="kaplan"):
        kaplan_scales(fit_table(scaling_table(params=N, tokens=D, loss=L), bootstrap=2, starts=2))


def test_a_bound_on_the_size_is_found_where_there_is_one():
    values = {"E": 1.7, "A": 400.0, "B": 1500.0, "alpha": 0.35, "beta": 0.36, "N_max": 2e9}
    columns = {"params": (1e7, 2e10), "tokens": (1e9, 1e11)}
    fit = fit_table(exact("bounded", values, columns), "bounded", bootstrap=20)
    assert fit.values == pytest.approx(values, rel=1e-3) and fit.identified
    free = fit_table(exact("chinchilla", values, columns), "bounded", bootstrap=20)
    assert "N_max" in free.unidentified and free.values["alpha"] == pytest.approx(0.35, rel=1e-2)


def test_steps_and_batch_and_the_best_batch():
    values = {"E": 1.8, "A": 480.0, "B": 30.0, "C": 60.0, "alpha": 0.35, "beta": 0.4, "gamma": 0.45}
    table = exact("steps_batch", values, {"params": (1e7, 1e9), "steps": (1e3, 1e6), "batch": (1e4, 1e7)})
    fit = fit_table(table, "steps_batch", bootstrap=20)
    assert fit.identified and fit.values == pytest.approx(values, rel=1e-4)
    best = best_batch(fit, [1e9, 1e11])
    grid = np.geomspace(1e3, 1e8, 200_001)
    for D, found in zip((1e9, 1e11), best.batch, strict=True):
        assert found == pytest.approx(grid[np.argmin(30 * (grid / D) ** 0.4 + 60 * grid**-0.45)], rel=1e-3)
    assert best.exponent == pytest.approx(0.4 / 0.85, rel=1e-4)
    one = table.take(np.arange(40) < 40)
    held = scaling_table(params=one.column("params"), steps=one.column("steps"), batch=np.full(40, 1e5), loss=one.loss)
    assert "batch has 1" in fit_table(held, "steps_batch", bootstrap=5, starts=2).unidentified["gamma"]


def test_steps_are_tokens_over_batch_where_the_table_has_no_steps():
    values = {"E": 1.8, "A": 480.0, "B": 30.0, "alpha": 0.35, "beta": 0.4, "B_crit": 3e5}
    table = exact("minimum_steps", values, {"params": (1e7, 1e9), "steps": (1e3, 1e6), "batch": (1e4, 1e7)})
    other = scaling_table(
        params=table.column("params"), batch=table.column("batch"), tokens=table.column("steps") * table.column("batch"),
        loss=table.loss,
    )  # fmt: skip
    fit = fit_table(other, "minimum_steps", bootstrap=20)
    assert fit.identified and fit.values == pytest.approx(values, rel=1e-3)


def test_width_and_depth_apart_or_refused():
    values = {"E": 1.8, "A": 50.0, "B": 2.5, "C": 900.0, "a": 1.0, "b": 1.0, "c": 0.33}
    columns = {"width": (256, 4096), "depth": (4, 64), "tokens": (1e9, 1e11)}
    table = exact("width_depth", values, columns)
    fit = fit_table(table, "width_depth", bootstrap=20)
    assert fit.identified and fit.values == pytest.approx(values, rel=1e-3)
    W = table.column("width")
    tied = scaling_table(
        width=W, depth=W / 64, tokens=table.column("tokens"), loss=1.8 + 200 / W + 900 * table.column("tokens") ** -0.33
    )
    assert "vary the shape" in fit_table(tied, "width_depth", bootstrap=5, starts=2).unidentified["b"]


def test_on_a_ray_two_exponents_change_places():
    """On D = g N^c the loss is E + A N^-alpha + B' N^-(c beta): alpha' = c beta, beta' = alpha/c give every row the same loss.

    They are one description where alpha = c beta (beta = 2 alpha for c = 1/2): there only the sum of the two amplitudes is seen.
    """
    N, g, c = np.geomspace(1e7, 1e10, 30), 3e5, 0.5
    D = g * N**c
    alpha, beta, a, b = 0.34, 0.42, 400.0, 2000.0
    L = 1.8 + a * N**-alpha + b * D**-beta
    a2, b2 = b * g**-beta, a * g ** (alpha / c)
    assert 1.8 + a2 * N ** -(c * beta) + b2 * D ** -(alpha / c) == pytest.approx(L, rel=1e-13)
    noisy = L * np.exp(0.003 * np.random.default_rng(0).normal(size=30))
    fit = fit_table(scaling_table(params=N, tokens=D, loss=noisy), bootstrap=50)
    assert "tied" in fit.unidentified["alpha"] and "tied" in fit.unidentified["beta"]
    with pytest.raises(InputError, match="tied"):
        fit.require_identified("a plan")
