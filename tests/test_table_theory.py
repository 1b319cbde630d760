"""Theories beside a fitted table: known exponents are held, false ones excluded, and nothing is said where nothing is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from odescale import fit_table
from odescale.analysis.tables.forms import Exponent, Form, power_terms
from odescale.analysis.tables.terms import powers_of
from odescale.errors import InputError
from odescale.frontier import critical_compute, risk_law, yang_v1, yang_v3
from odescale.laws import FORMS, TableFit, critical_compute_of, implied_exponents, scaling_table, theories_beside


def table_of(alpha: float, beta: float, rows: int = 60, noise: float = 1e-3, seed: int = 0):
    """L = 1.7 + half of each power in the middle of the table."""
    rng = np.random.default_rng(seed)
    N, D = 10 ** rng.uniform(7, 10, rows), 10 ** rng.uniform(8.5, 11.5, rows)
    loss = 1.7 + 0.5 * (N / 3e8) ** -alpha + 0.5 * (D / 1e10) ** -beta
    return scaling_table(params=N, tokens=D, loss=loss * np.exp(noise * rng.standard_normal(rows)))


@pytest.fixture(scope="module")
def yang() -> TableFit:
    return fit_table(table_of(0.25, 0.5), bootstrap=400)


def answers(fit: TableFit, **how) -> dict[str, str]:
    return {verdict.theory: verdict.answer for verdict in theories_beside(fit, **how)}


def test_a_table_of_the_first_version(yang: TableFit) -> None:
    """alpha = 1/4 is width^-1/2 with params ~ width^2; 1/S = 1/6."""
    said = answers(yang)
    assert {said[name] for name in ("width alone", "data alone", "frontier of yang_v1")} == {"contains"}, said
    for name in ("frontier of yang_v3", "one-third law in time", "features, phase Ia", "features, phases II and III"):
        assert said[name] == "excludes", said
    assert said["inverse depth"] == said["time alone (yang_v3)"] == "cannot tell"
    by_name = {verdict.theory: verdict for verdict in theories_beside(yang)}
    assert by_name["frontier of yang_v1"].expected[0] == pytest.approx(float(1 / yang_v1().S))
    assert by_name["frontier of yang_v3"].expected[0] == pytest.approx(float(1 / yang_v3().S))
    width = by_name["width alone"]
    assert width.value == pytest.approx(2 * yang.values["alpha"]) and "width^2" in width.assumption
    assert width.interval == pytest.approx(tuple(2 * v for v in yang.interval("alpha")))
    assert "no depth" in by_name["inverse depth"].reason
    frontier = by_name["frontier of yang_v1"]
    alpha, beta = (yang.draws[:, yang.form.names.index(n)] for n in ("alpha", "beta"))
    low, high = np.quantile(1 / (1 / alpha + 1 / beta), [0.05, 0.95])
    assert frontier.interval == pytest.approx((low, high)) and "contains at 90%" in str(frontier)
    assert frontier.to_dict()["answer"] == "contains"


def test_wide_intervals_say_nothing() -> None:
    """Fifty times the noise and less than half of the rows: true and false exponents alike are left open."""
    fit = fit_table(table_of(0.25, 0.5, rows=24, noise=5e-2, seed=4), bootstrap=300)
    said = {v.theory: v for v in theories_beside(fit, level=0.95)}
    for name in ("width alone", "data alone", "frontier of yang_v1", "frontier of yang_v3", "one-third law in time"):
        assert said[name].answer == "cannot tell" and said[name].reason, str(said[name])


def test_neighbours_that_are_both_inside_are_not_told_apart(yang: TableFit) -> None:
    """An interval narrow enough, but with 1/6 and 1/7 in it."""
    alpha = yang.form.names.index("alpha")
    spread = np.random.default_rng(0).uniform(0.195, 0.255, len(yang.draws))
    both = replace(yang, draws=np.insert(np.delete(yang.draws, alpha, 1), alpha, spread, 1))
    said = {v.theory: v for v in theories_beside(both)}
    for name, other in (("frontier of yang_v1", "yang_v3"), ("frontier of yang_v3", "yang_v1")):
        assert said[name].answer == "cannot tell" and other in said[name].reason


def test_open_and_unstable_fits_say_nothing() -> None:
    table = table_of(0.25, 0.5)
    one_size = scaling_table(params=np.full(60, 1e8), tokens=table.tokens, loss=table.loss)
    fit = fit_table(one_size, bootstrap=100)
    said = {v.theory: v for v in theories_beside(fit)}
    assert "params" in said["width alone"].reason and "params" in said["frontier of yang_v1"].reason
    assert {v.answer for v in said.values() if "params" in v.reason} == {"cannot tell"}
    assert all(v.value is None for v in implied_exponents(fit) if v.name != "source")
    assert "cannot tell" in critical_compute_of(fit).reason
    whole = fit_table(table, bootstrap=100)
    shaky = replace(whole, unstable=("an outlier decides",))
    assert set(answers(shaky).values()) == {"cannot tell"}
    assert all(v.interval is None for v in implied_exponents(shaky))
    bad: Any
    for bad in (0.0, 1.0, "x"):
        with pytest.raises(InputError, match="level"):
            theories_beside(whole, level=bad)


def test_what_follows(yang: TableFit) -> None:
    found = {v.name: v for v in implied_exponents(yang)}
    alpha, beta = yang.values["alpha"], yang.values["beta"]
    assert found["frontier exponent"].value == pytest.approx(alpha * beta / (alpha + beta))
    assert found["params exponent"].value == pytest.approx(beta / (alpha + beta))
    assert found["tokens exponent"].value == pytest.approx(alpha / (alpha + beta))
    assert found["tokens per parameter"].meaning == "tokens per parameter fall with C"
    assert found["source"].value == pytest.approx(beta) and found["capacity"].value == pytest.approx(alpha / beta)
    assert "outside" in found["capacity"].meaning and "reaches 1" in found["compute-optimal phase"].reason
    assert found["schedule"].value is None
    features = fit_table(table_of(0.6, 0.3, seed=1), bootstrap=300)
    found = {v.name: v for v in implied_exponents(features)}
    assert found["tokens per parameter"].meaning == "tokens per parameter grow with C"
    assert found["capacity"].meaning == "phase Ia is possible"
    phase = found["compute-optimal phase"]
    assert phase.meaning == "phase Ia" and phase.value == pytest.approx(found["frontier exponent"].value)
    assert phase.interval == pytest.approx(found["frontier exponent"].interval)
    assert found["schedule"].meaning.startswith("hard")  # .3 < 1 - .3/.6
    assert answers(features)["features, phase Ia"] == "contains"
    equal = {v.name: v for v in implied_exponents(fit_table(table_of(0.35, 0.36, noise=5e-3), bootstrap=300))}
    assert "a constant ratio is inside" in equal["tokens per parameter"].meaning
    assert "open" in equal["capacity"].meaning and "reaches 1" in equal["schedule"].reason


def test_width_and_depth_apart() -> None:
    """A form with a depth: the inverse-depth law; its frontier has width twice in the compute."""
    log_terms, slopes = power_terms(({}, {"width": "a"}, {"depth": "b"}, {"tokens": "c"}), ("a", "b", "c"))
    ranges = tuple(Exponent(n, 0.05, 4.0) for n in ("a", "b", "c"))
    form = Form("shape", "L = E + A/W^a + B/l^b + C/D^c", ("width", "depth", "tokens"), ("E", "A", "B", "C"), ranges, log_terms,
                slopes)  # fmt: skip
    rng = np.random.default_rng(0)
    W, depth, D = 10 ** rng.uniform(2, 3.5, 120), 2.0 ** rng.uniform(1, 6, 120), 10 ** rng.uniform(8.5, 11.5, 120)
    loss = 1.7 + 0.5 * (W / 500) ** -0.5 + 0.5 * (depth / 8) ** -1.0 + 0.5 * (D / 1e10) ** -0.5
    table = scaling_table(
        tokens=D, loss=loss * np.exp(5e-4 * rng.standard_normal(120)), width=W, depth=depth, params=12 * W**2 * depth
    )  # fmt: skip
    fit = fit_table(table, form, bootstrap=200)
    said = {v.theory: v for v in theories_beside(fit, level=0.99)}
    assert said["inverse depth"].answer == said["width alone"].answer == "contains", [str(v) for v in said.values()]
    assert said["width alone"].assumption == "" and said["width alone"].value == pytest.approx(fit.values["a"])
    a, b, c = (fit.values[n] for n in ("a", "b", "c"))
    assert said["frontier of yang_v1"].value == pytest.approx(1 / (2 / a + 1 / b + 1 / c))


def test_exponents_of_columns_alone() -> None:
    """Kaplan's form, whose exponents are in every term; repeated tokens, fresh ones alone; a bounded size, no plain power."""
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(7, 10, 60), 10 ** rng.uniform(8.5, 11.5, 60)
    loss = ((6.4e13 / N) ** (0.076 / 0.103) + 1.8e13 / D) ** 0.103 * np.exp(1e-3 * rng.standard_normal(60))
    fit = fit_table(scaling_table(params=N, tokens=D, loss=loss), "kaplan", bootstrap=100)
    powers = powers_of(fit)
    assert powers.exponent("params")[0] == pytest.approx(fit.values["alpha_N"], rel=1e-6)
    assert powers.exponent("tokens")[0] == pytest.approx(fit.values["alpha_D"], rel=1e-6)
    assert powers.found["tokens"][2] == ("alpha_D",) and powers.text("params") == "alpha_N"
    said = {v.theory: v for v in theories_beside(fit)}
    assert said["frontier of yang_v1"].answer == "excludes"
    assert said["frontier of yang_v1"].value == pytest.approx(
        1 / (1 / fit.values["alpha_N"] + 1 / fit.values["alpha_D"])
    )
    fresh = D / rng.choice([1.0, 4.0, 20.0], 60)
    columns = {"params": N, "tokens": D, "unique_tokens": fresh}
    form = FORMS["repetition"]
    values = np.array([1.7, 300.0, 2000.0, 0.3, 0.4, 15.0])
    loss = np.exp(form.log_loss(values, columns) + 1e-3 * rng.standard_normal(60))
    fit = fit_table(scaling_table(loss=loss, params=N, tokens=D, unique_tokens=fresh), form, bootstrap=50)
    powers = powers_of(fit)
    assert powers.exponent("tokens")[0] == pytest.approx(fit.values["beta"], rel=1e-6)
    assert powers.found["tokens"][2] == ("beta",) and powers.has("params") and not powers.has("unique_tokens")
    bounded = fit_table(table_of(0.3, 0.4), "bounded", bootstrap=50)
    assert "plain power of params" in powers_of(bounded).why_none("params") and not powers_of(bounded).has("params")


def exponential_form() -> Form:
    def log_terms(exponents, columns):
        size = -exponents[..., 0, None] * np.log(columns["params"])
        time = -exponents[..., 1, None] * columns["steps"] / 1000
        return np.stack(np.broadcast_arrays(np.zeros_like(time), size, time), axis=-1)

    ranges = (Exponent("alpha", 0.02, 3.0), Exponent("k", 0.01, 10.0))
    return Form("fall", "L = E + A/N^alpha + D exp(-k S/1000)", ("params", "steps"), ("E", "A", "D"), ranges, log_terms)


def test_critical_compute_of_a_form_with_an_exponential(yang: TableFit) -> None:
    rng = np.random.default_rng(1)
    N, S = 10 ** rng.uniform(6, 9, 80), rng.uniform(500, 8000, 80)
    loss = 1.7 + 30 * N**-0.3 + 2.0 * np.exp(-0.8 * S / 1000)
    table = scaling_table(params=N, loss=loss * np.exp(1e-3 * rng.standard_normal(80)), steps=S)
    fit = fit_table(table, exponential_form(), bootstrap=200, level=0.99)
    found = critical_compute_of(fit, floors={"params": 1e6}, draws=30)
    law = risk_law([30.0], [0.3], [1.0], names=["params"], floors=[1e6], decay=2.0, rate=8e-4, time_cost=1.0, unit=6.0)
    truth = critical_compute(law)
    assert truth.compute is not None and found.compute is not None and found.interval is not None and found.share > 0.9
    assert found.compute == pytest.approx(truth.compute, rel=0.05)
    assert found.interval[0] < truth.compute < found.interval[1] and "C* =" in str(found)
    # A size whose floor is worth more than the time from the start: no phase.
    assert critical_compute_of(fit, floors={"params": 1.0}).compute is None
    none = critical_compute_of(yang)
    assert none.compute is None and "has no exponential" in none.reason
    with pytest.raises(InputError, match="draws"):
        critical_compute_of(fit, draws=1)


def excluded(tables: int, level: float) -> dict[str, int]:
    """How often a theory that is true of the table was said to be excluded."""
    wrong = {"width alone": 0, "data alone": 0, "frontier of yang_v1": 0, "one-third law in time": 0}
    for seed in range(tables):
        rows = 40 + seed % 3 * 30
        said = answers(fit_table(table_of(0.25, 0.5, rows, 5e-3, seed), bootstrap=300), level=level)
        third = answers(fit_table(table_of(0.4, 1 / 3, rows, 5e-3, 1000 + seed), bootstrap=300), level=level)
        for name in wrong:
            wrong[name] += (third if "third" in name else said)[name] == "excludes"
    return wrong


@pytest.mark.slow
def test_true_exponents_are_rarely_excluded() -> None:
    """Of 200 tables, a share 1 - level at most is said to exclude the exponent that they were made with; 2 binomial errors."""
    tables, level = 200, 0.9
    wrong = excluded(tables, level)
    allowed = tables * (1 - level) + 2 * np.sqrt(tables * level * (1 - level))
    assert max(wrong.values()) <= allowed, wrong
    assert min(wrong.values()) > 0  # an interval that never misses would say nothing
