"""Batches of parameters: one compilation, members equal to single solves, failures masked member by member."""

from __future__ import annotations

import numpy as np
import pytest

from odescale import InputError, attention, integrate, logistic_pair, sweep
from odescale.cache.programs import made
from odescale.solve.codes import Code

FIXED = {"depth": 1, "strength": 0.4}
T1 = 12.0
CAP = 2000  # steps, so that a diverging member does not hold up its batch for long


@pytest.fixture(scope="module")
def batch():
    before = made["odescale.solve.sweep:_solve_group"]
    # 100 members in groups of 64, the last one padded
    # 8.0 lies beyond the stable learning rates at batch 1.5: those members must blow up, and only those
    rates = np.linspace(0.02, 0.5, 100)
    rates[[17, 60]] = 8.0
    result = sweep("attention", T1, {"learning_rate": rates, "batch": np.full(100, 1.5)}, max_steps=CAP, **FIXED)
    assert made["odescale.solve.sweep:_solve_group"] == before + 1
    return result


def test_other_values_do_not_compile_again(batch):
    before = dict(made)
    again = sweep(
        "attention",
        5.0,
        {"learning_rate": np.full(100, 0.1), "batch": np.linspace(1, 9, 100)},
        max_steps=CAP,
        rtol=1e-6,
        **FIXED,
    )
    assert dict(made) == before
    assert again.loss.shape == (100, 200) and (np.diff(again.loss[:, -1]) < 0).all()  # a larger batch, less noise


@pytest.mark.parametrize("number", [0, 59, 99])
def test_a_member_is_the_single_solve(batch, number):
    eta = batch.meta["members"]["learning_rate"][number]
    member = batch.member(number)
    single = integrate(attention(learning_rate=eta, batch=1.5, **FIXED), T1)
    np.testing.assert_allclose(member.loss, single.loss, rtol=1e-9)
    np.testing.assert_allclose(member.exponent, single.exponent, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(member.overlaps, single.overlaps, rtol=1e-8, atol=1e-10)
    # its own learning rate on its clock and in its record
    np.testing.assert_allclose(member.clock.tau(member.t), single.clock.tau(single.t), rtol=1e-14)
    assert member.clock.describe() == single.clock.describe()
    assert {name: member.meta["parameters"][name] for name in single.meta["parameters"]} == single.meta["parameters"]
    assert member.meta["ladder"][0]["accepted"] == single.meta["ladder"][0]["accepted"]


def test_a_failed_member_is_masked_with_its_own_code(batch):
    failed = np.flatnonzero(batch.code != Code.OK)
    assert failed.tolist() == [17, 60] and batch.meta["failed"] == 2
    assert set(batch.code[failed].tolist()) == {Code.DIVERGED}
    for number in failed:
        valid = batch.valid[number]
        assert valid[0] and not valid[-1] and np.isnan(batch.loss[number][~valid]).all()
    fine = np.setdiff1d(np.arange(100), failed)
    assert batch.valid[fine].all() and np.isfinite(batch.loss[fine]).all()


def test_batches_are_datasets_and_files(batch, tmp_path):
    dataset = batch.to_xarray()
    assert dataset["loss"].dims == ("member", "t") and dataset["overlaps"].dims == ("member", "t", "row", "column")
    loaded = type(batch).load(batch.save(tmp_path / "sweep.npz"))
    np.testing.assert_array_equal(loaded.loss, batch.loss)
    assert loaded.member(3).clock.describe() == batch.member(3).clock.describe()


@pytest.mark.parametrize(
    ("name", "values", "given", "words"),
    [
        ("depth", [1, 2], {}, "depth: expected a parameter that keeps all shapes"),
        ("value", [1.0], {}, "value: expected a parameter that keeps all shapes"),
        ("dimension", [100, 200], {}, "dimension: expected a parameter that keeps all shapes"),
        ("capacity", [1.5, 1.6], {}, "capacity: expected parameters that keep all shapes"),
        ("source", [0.5, 0.6], {"capacity": 1.5, "modes": 100}, "source: expected parameters that keep all shapes"),
        ("strength", [0.5, 0.6], {"capacity": 1.5, "modes": 100}, "strength: expected parameters that keep all shapes"),
        ("learning_rat", [0.1], {}, "learning_rat: expected a parameter of system attention"),
        ("learning_rate", [0.1, -0.1], {}, "learning_rate: expected a positive finite number"),
        ("learning_rate", [0.1, np.nan], {}, "learning_rate: expected a positive finite number"),
        ("learning_rate", [[0.1], [0.2]], {}, "values: expected 1-d arrays"),
        ("learning_rate", [], {}, "values: expected 1-d arrays"),
        ("learning_rate", ["slow"], {}, "learning_rate: expected numbers"),
        ("learning_rate", [0.1], {"solver": "euler"}, "solver: expected one of"),
        ("learning_rate", [0.1], {"lanes": 0}, "lanes: expected a whole number"),
        (
            "learning_rate",
            [0.1],
            {"initial_overlaps": np.eye(6)[None], "depth": 1},
            "fixed: expected numbers and words",
        ),
    ],
)
def test_what_cannot_be_swept_is_refused_before_compilation(name, values, given, words):
    before = made["odescale.solve.sweep:_solve_group"]
    with pytest.raises(InputError) as error:
        sweep("attention", 1.0, {name: values}, **given)
    assert str(error.value).startswith(words) and "\n" not in str(error.value)
    assert made["odescale.solve.sweep:_solve_group"] == before


def test_an_unknown_system_and_an_empty_sweep_are_refused():
    with pytest.raises(InputError, match="did you mean quickstart"):
        sweep("quickstar", 1.0, {"learning_rate": [0.1]})
    with pytest.raises(InputError, match="at least one parameter"):
        sweep("logistic_pair", 1.0, {})


@pytest.mark.slow
def test_a_thousand_members_compile_once():
    before = made["odescale.solve.sweep:_solve_group"]
    rates = np.geomspace(0.02, 0.6, 1000)
    result = sweep("logistic_pair", 10.0, {"learning_rate": rates}, points=50)
    assert made["odescale.solve.sweep:_solve_group"] == before + 1
    assert result.loss.shape == (1000, 50) and result.meta["failed"] == 0
    single = integrate(logistic_pair(learning_rate=rates[777]), 10.0, points=50)
    np.testing.assert_allclose(result.loss[777], single.loss, rtol=1e-9)
