"""Critical batch and best rate from tables: numbers found again, intervals that cover, refusals, and curves of SGD theory."""

from __future__ import annotations

import json

import numpy as np
import pytest
from spectral_recursion import excess_risk

from benchmarks.sgd_closed_form import ConstantRate
from benchmarks.table_relatives import basins, fewest_steps, power_law
from odescale.errors import InputError
from odescale.laws import fit_batch_law, fit_critical_batch, fit_rate_law

BATCHES = 4.0 ** np.arange(2, 8)


def test_critical_batch_is_found_again_and_means_twice_the_least():
    fit = fit_critical_batch(BATCHES, 1000 * (1 + 300 / BATCHES))
    assert (fit.critical_batch, fit.least_steps, fit.least_examples) == pytest.approx((300, 1000, 3e5), rel=1e-6)
    assert fit.power == pytest.approx(1, rel=1e-6)
    steps, examples = fit.steps(300.0), 300 * fit.steps(300.0)
    assert (steps / 1000 - 1) * (examples / 3e5 - 1) == pytest.approx(1, rel=1e-5)
    assert json.loads(json.dumps(fit.to_dict()))["identified"] and "critical batch 300" in str(fit)


def test_intervals_of_the_critical_batch_cover():
    """400 tables of 6 batches with 5 % noise: 92 to 98 % of the 95 % intervals hold B_crit, S_min, E_min, and the power 1."""
    rng, held = np.random.default_rng(0), np.zeros(4)
    for _ in range(400):
        fit = fit_critical_batch(BATCHES, 1000 * (1 + 300 / BATCHES) * np.exp(0.05 * rng.normal(size=6)))
        pairs = (
            (fit.interval, 300),
            (fit.least_steps_interval, 1000),
            (fit.least_examples_interval, 3e5),
            (fit.power_interval, 1),
        )
        held += [interval[0] <= truth <= interval[1] for interval, truth in pairs]
    assert (held >= 368).all() and (held <= 392).all(), held


@pytest.mark.parametrize(
    ("critical", "noise", "words", "end"),
    [
        (1e5, 0.02, "add larger ones", 1),
        (0.05, 0.02, "add smaller ones", 0),
        (300, 3.0, "too noisy", None),
        (1e6, 0.0, "outside", None),
    ],
)
def test_batches_on_one_side_are_refused(critical, noise, words, end):
    batch = np.array([16.0, 32, 64, 128, 256])
    rng = np.random.default_rng(3)
    fit = fit_critical_batch(batch, 1000 * (1 + critical / batch) * np.exp(noise * rng.normal(size=5)))
    assert not fit.identified and fit.critical_batch is None and "unidentified" in str(fit)
    assert words in fit.reason
    if end is not None:
        assert fit.interval[end] in (0, np.inf) and fit.interval[0] <= critical <= fit.interval[1]


def test_runs_that_never_arrive_are_left_out_and_bad_columns_named():
    steps = 1000 * (1 + 300 / BATCHES)
    fit = fit_critical_batch(np.append(BATCHES, 2.0), np.append(steps, np.inf))
    assert fit.points == 6 and fit.critical_batch == pytest.approx(300, rel=1e-6)
    for batch, count, name in (
        ([1, 2], [3, 4], "batch"), ([1, 2, 3, -4], [3, 4, 5, 6], "batch"), ([1, 2, 3, 4], [3, 4, np.nan, 6], "steps"),
        ([8, 8, 8, 16], [3, 4, 5, 6], "batch"),
    ):  # fmt: skip
        with pytest.raises(InputError) as error:
            fit_critical_batch(batch, count)
        assert error.value.argument == name


def test_closed_form_of_constant_rates_is_the_recursion():
    lam, rho = power_law(16, 1.5, 1.5)
    steps = np.array([0, 1, 7, 60])
    run = ConstantRate(lam, rho, 0.2, 4, 0.3)
    assert run.excess(steps) == pytest.approx(
        excess_risk(lam, rho, eta=0.2, batch=4, steps=steps, noise=0.3), rel=1e-10
    )


def test_sgd_has_the_hyperbola_with_the_best_rate_of_each_batch_and_not_with_a_shared_one():
    """Exact SGD of a power-law spectrum with label noise: nothing in it is made from the formula."""
    rates, batches = np.geomspace(1e-3, 1.95, 36), 4.0 ** np.arange(1, 8)
    critical = []
    for fraction in (0.2, 0.05):
        fit = fit_critical_batch(batches, fewest_steps(1.0, fraction, rates, batches))
        assert fit.identified and fit.rms < 0.05, (fraction, fit)
        critical.append(fit.critical_batch)
    # The noise of the labels stays while the gradient falls: a lower target has a larger critical batch.
    assert critical[1] > 1.5 * critical[0]
    shared = fit_critical_batch(batches, fewest_steps(1.0, 0.2, [0.02], batches))
    assert not shared.identified or shared.rms > 0.05 or abs(np.log(shared.critical_batch / critical[0])) > 1


def curves(batches, z=4.8, scale=3e5, noise=0.0, seed=0):
    rng, rows = np.random.default_rng(seed), []
    for batch in batches:
        loss = np.geomspace(6, 2.2, 4000)
        steps = (loss / 30) ** -4 * (1 + scale * loss**-z / batch) * np.exp(noise * rng.normal())
        at = np.geomspace(steps[0], steps[-1], 60)
        rows.append([np.full(60, batch), at, np.exp(np.interp(np.log(at), np.log(steps), np.log(loss)))])
    return np.concatenate(rows, axis=1)


def test_critical_batch_as_a_power_of_the_loss():
    fit = fit_batch_law(*curves(2.0 ** np.arange(3, 15)))
    assert (
        fit.identified
        and fit.exponent == pytest.approx(4.8, rel=1e-3)
        and fit.prefactor == pytest.approx(3e5, rel=1e-2)
    )
    assert fit.critical_batch(3.0) == pytest.approx(3e5 * 3**-4.8, rel=1e-2)
    # Along E_min = S_min B_crit ~ L^-8.8: B_crit ~ E_min^(4.8/8.8).
    assert fit.examples_exponent == pytest.approx(4.8 / 8.8, rel=1e-2)
    noisy = fit_batch_law(*curves(2.0 ** np.arange(3, 15), noise=0.05, seed=4))
    assert noisy.interval[0] <= 4.8 <= noisy.interval[1] and noisy.interval[1] - noisy.interval[0] < 1
    few = fit_batch_law(*curves([8, 128, 2048, 8192]))
    assert not few.identified and "4 runs" in few.reason
    with pytest.raises(InputError, match="identified"):
        few.critical_batch(3.0)
    with pytest.raises(InputError, match="loss"):
        fit_batch_law([1, 1, 2, 2], [1, 2, 1, 2], [5, 4, 3, 2])


def test_the_published_rate_is_found_again_and_what_is_extrapolated_is_said():
    columns, truth = basins("parabola", 0.0, 0)
    law = fit_rate_law(*columns)
    assert (law.prefactor, law.params_exponent, law.tokens_exponent) == pytest.approx((1.79, 0.713, -0.307), rel=2e-2)
    assert all(o.rate == pytest.approx(truth[o.params, o.tokens], rel=5e-3) for o in law.optima)
    inside, far = law.predict(5e8, 2e10), law.predict(7e9, 2e10)
    assert not inside.extrapolated and far.extrapolated and "params 7 times the largest" in far.how
    assert far.rate == pytest.approx(1.79 * 7e9**-0.713 * 2e10**0.307, rel=2e-2)
    assert law.rate([5e8, 7e9], 2e10) == pytest.approx([inside.rate, far.rate])
    assert json.loads(json.dumps(law.to_dict()))["identified"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "noise", "scatter"),
    [("parabola", 0.002, 0.0), ("parabola", 0.002, 0.1), ("steep", 0.002, 0.0), ("steep", 0.002, 0.1)],
)
def test_intervals_of_the_rate_law_cover(kind, noise, scatter):
    """80 tables: at least 67 of the 95 % intervals hold each exponent (binomial, 99.9 % at a true coverage of 95 %)."""
    held = np.zeros(2)
    for seed in range(80):
        law = fit_rate_law(*basins(kind, noise, seed, scatter=scatter)[0])
        held += [
            law.params_interval[0] <= 0.713 <= law.params_interval[1],
            law.tokens_interval[0] <= -0.307 <= law.tokens_interval[1],
        ]
    assert (held >= 67).all(), held


def test_optima_at_the_end_of_the_grid_are_refused():
    (n, d, rate, loss), truth = basins("parabola", 0.0, 0, rates=9)
    best = np.array([truth[key] for key in zip(n, d, strict=True)])
    for kept, words in (
        (rate >= 1.1 * best, "smallest tried"),
        (rate <= 0.9 * best, "largest tried"),
        (np.isin(np.tile(np.arange(9), 9), (3, 4, 5)), "are needed"),
    ):
        law = fit_rate_law(n[kept], d[kept], rate[kept], loss[kept])
        assert not law.identified and all(o.rate is None and words in o.reason for o in law.optima), law.optima[0]
    lost = np.where(rate > 0.9 * best, np.nan, loss)
    assert all("diverge" in o.reason for o in fit_rate_law(n, d, rate, lost).optima)
    with pytest.raises(InputError, match="identified"):
        law.predict(1e9, 1e10)


def test_what_the_sizes_do_not_tell_is_refused():
    law = fit_rate_law(*basins("parabola", 0.0, 0, sizes=[(3e8, d) for d in (1e9, 4e9, 2e10, 1e11)])[0])
    assert law.params_exponent is None and "factor 1.00" in law.reasons["params"]
    assert law.tokens_exponent == pytest.approx(-0.307, rel=2e-2)
    with pytest.raises(InputError, match="params"):
        law.predict(1e10, 2e10)
    ray = fit_rate_law(*basins("parabola", 0.0, 0, sizes=[(n, 20 * n) for n in (1e8, 3e8, 1e9, 3e9, 1e10)])[0])
    assert ray.params_exponent is None and "ray" in ray.reasons["tokens"]
    assert ray.ray_slope == pytest.approx(1) and ray.ray_exponent == pytest.approx(0.713 - 0.307, rel=2e-2)
    assert ray.predict(1e9, 2e10).rate == pytest.approx(1.79 * 1e9**-0.713 * 2e10**0.307, rel=2e-2)
    with pytest.raises(InputError, match="ray"):
        ray.predict(1e9, 2e12)


def test_the_best_constant_rate_of_sgd_falls_with_the_horizon_as_theory_says():
    """Bias C (eta T)^-p and noise V eta: eta* ~ T^-(p/(1 + p)), p = (a - 1)/b of the spectrum. Here p = 2/3: y = 0.4."""
    lam, rho = power_law(128, 2.0, 1.5)
    horizons, rates = 2.0 ** np.arange(8, 15), np.geomspace(1e-3, 0.6, 11) / lam.sum()
    loss = np.array([ConstantRate(lam, rho, rate, 1, 1.0).excess(horizons) for rate in rates]) + 1.0
    law = fit_rate_law(1.0, np.tile(horizons, 11), np.repeat(rates, 7), loss.ravel())
    assert law.tokens_exponent == pytest.approx(0.4, abs=0.02), law
    assert law.tokens_interval[0] <= 0.395 <= law.tokens_interval[1], law
