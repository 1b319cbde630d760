"""Tables of finished runs: what is derived, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from odescale.errors import InputError
from odescale.laws import scaling_table


def test_the_missing_size_is_derived_and_said():
    N, D, L = np.array([1e8, 2e8]), np.array([2e9, 5e9]), np.array([3.0, 2.8])
    C = 6 * N * D
    for given in ({"params": N, "tokens": D}, {"params": N, "flop": C}, {"tokens": D, "flop": C}):
        table = scaling_table(loss=L, **given)
        assert table.params == pytest.approx(N) and table.tokens == pytest.approx(D) and table.flop == pytest.approx(C)
        assert "6 " in table.notes[0]
    assert not scaling_table(loss=L, params=N, tokens=D, flop=C).notes
    other = scaling_table(loss=L, params=N, tokens=D, flop=1.2 * C)
    assert other.flop == pytest.approx(1.2 * C) and "1.2" in other.notes[0]
    alone = scaling_table(loss=L, params=N)
    assert alone.tokens is None
    with pytest.raises(InputError, match="tokens"):
        alone.column("tokens")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"loss": []}, "loss"), ({"loss": [1.0, np.nan]}, "loss"), ({"loss": [1.0, 0.0]}, "loss"),
        ({"loss": [[1.0], [2.0]]}, "loss"), ({"loss": ["a", "b"]}, "loss"), ({"params": [1e8]}, "params"),
        ({"params": [1e8, -1.0]}, "params"), ({"tokens": [np.inf, 1.0]}, "tokens"), ({"batch": [1.0]}, "batch"),
        ({"runs": ["a"]}, "runs"), ({"dataset": ["a"]}, "dataset"), ({"marked": [True]}, "marked"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_by_name(fields, name):
    whole = {"loss": [3.0, 2.8], "params": [1e8, 2e8], "tokens": [2e9, 5e9]}
    with pytest.raises(InputError) as error:
        scaling_table(**(whole | fields))
    assert error.value.argument == name


def test_rows_are_taken_with_all_their_columns():
    table = scaling_table(
        loss=[3.0, 2.8, 2.7], params=[1e8, 2e8, 3e8], tokens=[2e9, 5e9, 6e9], batch=[1.0, 2.0, np.nan], runs=["a", "b", "b"],
        marked=[0, 1, 0],
    )  # fmt: skip
    part = table.take(~table.marked, "marked rows dropped")
    assert len(part) == 2 and part.runs.tolist() == ["a", "b"] and part.notes[-1] == "marked rows dropped"
    assert table.take([0, 1]).has("batch") and not table.has("batch")
    with pytest.raises(InputError, match="batch"):
        table.column("batch")
    assert "3 runs" in str(table) and "batch" in str(table)
