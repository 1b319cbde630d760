"""The kernel from activations and signals against the dense Jacobian: parameterisations, shared and hidden matrices, blocks."""

from __future__ import annotations

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odescale import InputError
from odescale.expectations import structured_kernel as module
from odescale.kernels import kernel_structure, lazy_network, structured_kernel, tangent_kernel
from odescale.language import LanguageModel
from odescale.networks import SequenceTransformer
from odescale.networks.sequence_model import PARAMETERISATIONS
from odescale.networks.sequence_model import trainable as default_trainable

X = np.random.default_rng(0).standard_normal((5, 3, 4))


def transformer(parameterisation="ntk", causal=True, depth=2):
    return SequenceTransformer(
        4, 2, 3, width=16, depth=depth, parameterisation=parameterisation, causal=causal, key=jax.random.key(0)
    )


def drawn(make):
    """The module that `make` builds, its arrays drawn by numpy: no time to compile initialisers."""
    rng = np.random.default_rng(3)

    def fill(leaf):
        wanted = isinstance(leaf, jax.ShapeDtypeStruct)
        return jnp.asarray(rng.standard_normal(leaf.shape) / max(leaf.shape[-1:], default=1) ** 0.5) if wanted else leaf

    return jax.tree.map(fill, eqx.filter_eval_shape(make))


def dense(network, x):
    """J J^T in one product, with jax.jacrev alone."""
    moved, rest = eqx.partition(network, default_trainable(network))
    J = jax.jit(jax.jacrev(lambda m: jax.vmap(eqx.combine(m, rest))(jnp.asarray(x)).ravel()))(moved)
    rows = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(J)]
    return np.asarray(sum(a @ a.T for a in rows))


def close(found, exact, tolerance=1e-10):
    return found.shape == exact.shape and np.abs(found - exact).max() <= tolerance * np.abs(exact).max()


def compare_transformer(network):
    exact = tangent_kernel(network, X)
    found = structured_kernel(network, X)
    assert close(found, exact) and np.array_equal(found, found.T)
    assert close(structured_kernel(network, X, X[1:3]), exact[:, 6:18])


def test_kernel_of_a_lazy_transformer_in_one_block_and_across():
    compare_transformer(lazy_network(drawn(lambda: transformer("mean_field", causal=False, depth=1)), 3.0))


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_kernel_of_two_layers_in_every_parameterisation(parameterisation, causal):
    compare_transformer(lazy_network(transformer(parameterisation, causal), 3.0, centred=causal))


@pytest.mark.slow
def test_it_fits_where_one_row_of_the_jacobian_does_not():
    """Width 64, sequences of 8, ten outputs."""
    network = SequenceTransformer(10, 10, 8, width=64, depth=2, key=jax.random.key(0))
    x = np.random.default_rng(0).standard_normal((3, 8, 10))
    told = kernel_structure(network, x)
    assert told.parameters > 8 * told.row_numbers
    limit = 8 * 3 * told.parameters
    with pytest.raises(InputError, match="memory_limit"):
        tangent_kernel(network, x, memory_limit=limit / 1.2)
    last = {"output": lambda f: f[-1]}
    found = structured_kernel(network, x, memory_limit=limit / 1.2, **last)
    assert close(found, tangent_kernel(network, x, **last))


class Ways(eqx.Module):
    """Matrices used in as many ways as there are: looked up and transposed back, sliced, scaled, batched, twice, in a branch."""

    rows: jax.Array
    both: jax.Array
    heads: jax.Array
    pair: jax.Array
    gain: jax.Array
    gate: jax.Array
    filters: jax.Array
    scale: jax.Array
    unused: jax.Array

    def __call__(self, tokens):
        h = self.rows[tokens]  # (T, d)
        h = h + jnp.tanh((0.5 * h) @ (2.0 * self.both[:, :16]).T @ -self.both[:, 16:])  # both halves of one array
        h = jnp.einsum("thd,hdk->thk", h.reshape(-1, 2, 8), self.heads / 3.0).reshape(h.shape)  # one per head
        h = (
            h + jnp.sin(h @ self.pair) + jnp.cos(h @ self.pair) @ self.pair.T
        )  # a matrix, itself again and its transpose
        h = jax.vmap(lambda v: jax.nn.relu((self.scale * self.pair) @ v))(h) + self.gain * h
        h = jax.lax.cond(h[0, 0] > 0, lambda v: v @ self.gate, lambda v: v @ self.gate.T, h)
        filtered = jax.lax.conv_general_dilated(h.T[None], self.filters, (1,), "SAME")[0].T
        return filtered @ self.rows.T  # tied


def ways():
    rng = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape) / shape[-1] ** 0.5)

    return Ways(
        normal(7, 16), normal(8, 32), normal(2, 8, 8), normal(16, 16), normal(16), normal(16, 16), normal(16, 16, 1) / 4,
        jnp.asarray(0.7), normal(50),
    )  # fmt: skip


TOKENS = np.asarray([[0, 3], [2, 2], [6, 1]])


@pytest.mark.slow
def test_shared_sliced_scaled_and_tied_matrices_and_the_rest_by_the_jacobian():
    network = ways()
    found = structured_kernel(network, TOKENS)
    assert close(found, tangent_kernel(network, TOKENS))
    told = kernel_structure(network, TOKENS)
    how = dict(zip(told.names, told.treatment, strict=True))
    why = dict(zip(told.names, told.reasons, strict=True))
    assert {name for name, way in how.items() if way == "matrix"} == {".rows", ".both", ".heads", ".pair", ".unused"}
    assert "cond" in why[".gate"] and "conv_general_dilated" in why[".filters"] and "mul" in why[".scale"]
    assert "4 products" in why[".pair"] and "2 products" in why[".rows"]
    assert told.parameters == sum(leaf.size for leaf in jax.tree.leaves(network))


class Wide(eqx.Module):
    """A matrix used three times, and one that is multiplied with its own entry: no matrix."""

    W: jax.Array
    own: jax.Array

    def __call__(self, x):
        h = jnp.tanh(self.W @ x)
        h = jnp.tanh(self.W.T @ h) + (self.own * self.own[0, 0]) @ h
        return jnp.sin(jnp.einsum("i,ij->j", h, self.W[:, :]))[:3]


def wide():
    rng = np.random.default_rng(2)
    return Wide(*(jnp.asarray(rng.standard_normal((12, 12)) / 3) for _ in range(2))), rng.standard_normal((4, 12))


@pytest.mark.slow
def test_positions_of_several_uses_meet_each_other_as_k_against_o_as_well():
    network, x = wide()
    told = kernel_structure(network, x)
    assert told.treatment == ("matrix", "jacobian") and told.row_numbers == 3 * 12 + 144
    assert close(structured_kernel(network, x), dense(network, x))


@pytest.mark.slow
def test_without_the_products_of_one_use_with_another_it_is_another_kernel(monkeypatch):
    network, x = wide()

    def apart(uses):
        return list(enumerate(flipped for _, flipped in arrangement(uses)))

    arrangement = module._arrangement
    monkeypatch.setattr(module, "_arrangement", apart)
    monkeypatch.setattr(module, "_compiled", type(module._compiled)())
    assert not close(structured_kernel(network, x), dense(network, x), 1e-2)


def test_an_mlp_with_biases_in_any_blocks_below_the_limit():
    network = drawn(lambda: eqx.nn.MLP(6, 4, 24, 1, activation=jnp.tanh, key=jax.random.key(0)))
    x = np.random.default_rng(0).standard_normal((5, 6))
    exact = dense(network, x)
    told = kernel_structure(network, x)
    assert told.treatment == ("matrix", "jacobian") * 2
    with pytest.raises(InputError, match="memory_limit") as refused:
        structured_kernel(network, x, memory_limit=100)
    needed = float(re.search(r"at least ([\d.e+]+) bytes", str(refused.value)).group(1))
    assert needed >= 2 * 8 * told.row_numbers
    # Some outputs of one sample; less than the Jacobian of one row takes twice.
    found = structured_kernel(network, x, memory_limit=1.5 * needed)
    assert 1.5 * needed < 2 * 8 * told.parameters and close(found, exact) and np.array_equal(found, found.T)
    assert close(structured_kernel(network, x, x[1:], memory_limit=1.5 * needed), exact[:, 4:])


def test_bad_input_is_refused_as_by_the_dense_kernel():
    network = drawn(lambda: eqx.nn.Linear(6, 3, use_bias=False, key=jax.random.key(1)))
    x = np.ones((2, 6))
    for bad in (0, np.nan, True, "1e9"):
        with pytest.raises(InputError, match="memory_limit"):
            structured_kernel(network, x, memory_limit=bad)
    with pytest.raises(InputError, match="x2"):
        structured_kernel(network, x, np.ones((2, 5)))
    with pytest.raises(InputError, match="trainable"):
        structured_kernel(network, x, trainable=jax.tree.map(lambda _: False, network))
    with pytest.raises(InputError, match="samples"):
        kernel_structure(network, np.zeros((0, 6)))


@pytest.mark.slow
def test_a_language_model_with_gains_and_its_last_position():
    model = LanguageModel(11, 16, 2, 2, 4, key=jax.random.key(2), dtype=jnp.float64)
    model = eqx.tree_at(lambda m: m.unembedding, model, jax.random.normal(jax.random.key(3), (11, 16)) / 4)
    tokens = np.random.default_rng(0).integers(11, size=(4, 4))
    told = kernel_structure(model, tokens)
    assert {n for n, t in zip(told.names, told.treatment, strict=True) if t == "jacobian"} == {
        n for n in told.names if "gain" in n or "position" in n
    }
    last = {"output": lambda f: f[-1]}
    assert close(structured_kernel(model, tokens), tangent_kernel(model, tokens))
    assert close(structured_kernel(model, tokens, **last), tangent_kernel(model, tokens, **last))
