"""`memory_limit` of the tangent kernel: the same numbers in any blocks, blocks that stay below it, and what one row takes."""

from __future__ import annotations

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odescale import InputError
from odescale.expectations import tangent_kernel as module
from odescale.kernels import tangent_kernel

OUTPUTS, SAMPLES = 4, 5


@pytest.fixture(scope="module")
def network():
    return eqx.nn.MLP(6, OUTPUTS, 12, 1, activation=jnp.tanh, key=jax.random.key(0), dtype=jnp.float64)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).standard_normal((SAMPLES, 6))


@pytest.fixture
def blocks(monkeypatch):
    """(rows, bytes of both Jacobian blocks) of every contraction."""
    seen = []
    contract = module._contract

    def counted(left, right):
        seen.append((left[0].shape[0], sum(leaf.nbytes for leaf in [*left, *right])))
        return contract(left, right)

    monkeypatch.setattr(module, "_contract", counted)
    return seen


def test_blocks_shrink_with_the_limit_and_the_kernel_stays(network, x, blocks):
    parameters = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))
    whole, cross = tangent_kernel(network, x), tangent_kernel(network, x[:2], x[1:])
    assert [rows for rows, _ in blocks[:1]] == [SAMPLES * OUTPUTS]
    assert np.allclose(cross, whole[: 2 * OUTPUTS, OUTPUTS:], rtol=1e-12, atol=1e-13)
    largest = []
    for rows in (9, 3):  # two samples at a time; some outputs of one
        blocks.clear()
        limit = 3 * 8 * parameters * rows
        found = tangent_kernel(network, x, memory_limit=limit)
        assert np.abs(found - whole).max() <= 1e-13 * np.abs(whole).max() and np.array_equal(found, found.T)
        assert len(blocks) > 1 and all(taken <= limit for _, taken in blocks)
        largest.append(max(count for count, _ in blocks))
        blocked = tangent_kernel(network, x[:2], x[1:], memory_limit=limit)
        assert np.abs(blocked - cross).max() <= 1e-13 * np.abs(cross).max()
    assert SAMPLES * OUTPUTS > largest[0] >= OUTPUTS > largest[1] >= 1


def test_blocks_are_equal_and_made_once_where_all_fit(network, monkeypatch):
    """130 samples of 4 rows: five blocks of 26 samples, each made once; at a lower limit those that are kept meet the others."""
    made = []
    picks = module.Blocks.picks
    monkeypatch.setattr(module.Blocks, "picks", lambda self, piece: made.append(piece) or picks(self, piece))
    x = np.random.default_rng(1).standard_normal((130, 6))
    whole = tangent_kernel(network, x)
    assert [piece.last_sample - piece.first_sample for piece in made] == [26] * 5
    made.clear()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))
    limit = 8 * parameters * 300  # not three blocks of 128 rows: blocks of 32, of which eight or fewer are kept
    found = tangent_kernel(network, x, memory_limit=limit)
    assert np.abs(found - whole).max() <= 1e-13 * np.abs(whole).max() and np.array_equal(found, found.T)
    blocks = -(-130 // 8)
    # One by one: 17 + 16 + ... + 1. Seven and more at a time: 17 + 10 + 3 or fewer.
    assert blocks < len(made) <= 17 + 10 + 3


def test_a_limit_below_one_row_is_refused_with_what_one_row_takes(network, x, blocks):
    with pytest.raises(InputError, match="memory_limit") as refused:
        tangent_kernel(network, x, memory_limit=100)
    needed = float(re.search(r"at least ([\d.e+]+) bytes", str(refused.value)).group(1))
    assert not blocks  # nothing was computed
    parameters = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))
    assert needed >= 2 * 8 * parameters  # one row, twice
    with pytest.raises(InputError, match="memory_limit"):
        tangent_kernel(network, x, memory_limit=0.9 * needed)
    found = tangent_kernel(network, x[:2], memory_limit=1.1 * needed)
    assert {rows for rows, _ in blocks} == {1} and found.shape == (2 * OUTPUTS, 2 * OUTPUTS)
    for bad in (0, -1.0, np.nan, np.inf, True, "1e9"):
        with pytest.raises(InputError, match="memory_limit"):
            tangent_kernel(network, x, memory_limit=bad)
