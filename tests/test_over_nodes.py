"""A function of one node at many, the axis of nodes last: the numbers of `jax.vmap`, for listed primitives and for others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_cases import classes, erf_units, random_gram, two_layers, write_back

from odescale.expectations import over_nodes as module
from odescale.expectations.over_nodes import over_nodes

WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)))

FUNCTIONS = {
    "products": lambda x: jnp.einsum("ti,ij,sj->ts", x, WEIGHTS, WEIGHTS[:3] @ WEIGHTS.T @ x.T @ jnp.ones((3, 5))),
    "batched products": lambda x: jnp.einsum("ti,tij->tj", x, jnp.tanh(x)[:, :, None] * WEIGHTS),
    "axes": lambda x: (x.sum(0) / x.max(axis=1).sum(), jnp.cumsum(x, axis=0)[::-1], jnp.argmax(x, axis=-1)),
    "shapes": lambda x: jnp.pad(x.T.reshape(2, 6)[:, 1:5:2], ((1, 0), (0, 2)), constant_values=0.5),
    "places": lambda x: (x[np.array([2, 0])], x.at[:, np.array([1, 3])].set(7.0), x[:, jnp.argmax(x[0])]),
    "conditions": lambda x: jnp.where(x > 0, jnp.log1p(x**2), jax.nn.relu(x) - 1.0),
    "slopes": jax.grad(lambda x: jnp.sum(jax.nn.softmax(x @ WEIGHTS) ** 2 * jax.scipy.special.erf(x[:, :1]))),
    "loops": lambda x: jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(y) + i, x),
    "constants": lambda x: (jnp.arange(3.0), x[0, 0]),
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_every_node_has_the_numbers_that_it_has_alone(name: str) -> None:
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 7)))
    found = jax.jit(lambda x: over_nodes(FUNCTIONS[name], x))(x)
    expected = jax.vmap(FUNCTIONS[name], -1, -1)(x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_several_arguments_long_sums_and_derivatives() -> None:
    """A product of more terms than are written out, and both kinds of derivatives through all nodes."""
    rng = np.random.default_rng(2)
    x, y = jnp.asarray(rng.normal(size=(50, 6))), jnp.asarray(rng.normal(size=(50, 2, 6)))

    def function(a, b):
        return jnp.tanh(a @ b)

    assert x.shape[0] > module.LONGEST_SUM
    plain = jax.vmap(function, -1, -1)
    np.testing.assert_allclose(over_nodes(function, x, y), plain(x, y), rtol=1e-12)
    for derivative in (jax.jacrev, jax.jacfwd):
        ours, theirs = (
            derivative(lambda x, f=f: f(x, y))(x) for f in (lambda *given: over_nodes(function, *given), plain)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("problem", [two_layers(3), write_back(), classes("sampled"), erf_units(0.5)])
def test_networks_and_their_gradients(problem) -> None:
    """Outputs, losses and slopes of whole networks."""
    rng = np.random.default_rng(3)
    phi = jnp.asarray(rng.normal(size=(problem.tokens, problem.size, 9)))
    normals = jnp.asarray(rng.normal(size=(problem.label_normals, 9)))
    R = jnp.asarray(random_gram(problem.size))

    def function(phi, normals):
        def loss(phi):
            return problem.loss.sample(*problem.outputs_on_fields(phi, R), normals)

        return *problem.outputs_on_fields(phi, R), *jax.value_and_grad(loss)(phi)

    found, expected = over_nodes(function, phi, normals), jax.vmap(function, -1, -1)(phi, normals)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_attention_weights_have_their_slopes() -> None:
    """d softmax = a (dx - a.dx), also second, and beside logits of minus infinity."""
    from odescale.networks.blocks import _softmax

    x = jnp.asarray(np.random.default_rng(4).normal(size=(3, 5)) * 4)
    masked = jnp.where(jnp.arange(5) <= jnp.arange(3)[:, None], x, -jnp.inf)
    for logits in (x, masked):
        np.testing.assert_allclose(_softmax(logits), jax.nn.softmax(logits, axis=-1), rtol=1e-14)

    def through(softmax):
        def function(x):
            logits = jnp.where(jnp.arange(5) <= jnp.arange(3)[:, None], x, -jnp.inf)
            return jnp.sum(jnp.sin(3 * softmax(logits)) * x)

        return jax.grad(function)(x), jax.hessian(function)(x)

    for a, b in zip(through(_softmax), through(lambda z: jax.nn.softmax(z, axis=-1)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
