"""Standard errors of nodes, seeds and comparisons, and what a theory neglects, from their definitions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from scipy import stats

from odescale import committee, mean_field, teacher_student
from odescale.compare.comparison import _errors, _stderr
from odescale.compare.kernel import _products, function_errors
from odescale.compare.rules.attention import RULES as ATTENTION
from odescale.compare.rules.mean_field import RULES, _paired_stderr, quadrature_stderr
from odescale.compare.sheets import Rules
from odescale.compare.verdict import judge
from odescale.expectations.nodes import gauss_hermite_nodes, sobol_nodes
from odescale.networks import QueryToken, RowNetwork
from odescale.run import Run
from odescale.solve.coverage import coverage
from odescale.spectra import listed
from odescale.training.mean_field import population_loss

RNG = np.random.default_rng(4)
LINEAR = teacher_student(RowNetwork(("r",), (), QueryToken(("r",))), tokens=1)


def test_half_widths_of_nodes_cover_their_mean() -> None:
    """Student's t with R - 1 degrees of freedom: 95 % of 4000 sets of four replicates, 90 % where asked."""
    nodes = sobol_nodes(1, 16, replicates=4)
    values = RNG.normal(size=(4, 4000))
    for confidence in (0.95, 0.9):
        inside = np.abs(nodes.mean(values)) < nodes.half_width(values, confidence)
        assert abs(inside.mean() - confidence) < 3.5 * (confidence * (1 - confidence) / 4000) ** 0.5
    two = gauss_hermite_nodes(1, 8)
    assert two.mean(values[:2])[0] == values[1, 0] and two.half_width(values[:2])[0] == abs(values[1, 0] - values[0, 0])


def test_the_loss_of_a_run_has_the_scatter_of_its_node_sets() -> None:
    """`population_loss`: mean and standard error over R = 4 node sets, s/sqrt(R); for three or more the interval is taken apart."""
    system = committee(units=1, nodes=64, replicates=4, closure="quadrature")
    C = np.asarray(system.initial_overlaps)
    each = np.asarray(system.population_loss(jnp.asarray(C[0]), jnp.asarray(C[0])))
    mean, error = population_loss(system, C, C)
    assert mean[0] == pytest.approx(each.mean(), rel=1e-12)
    assert error[0] == pytest.approx(np.sqrt(np.sum((each - each.mean()) ** 2) / 3) / 2, rel=1e-10)


def test_paired_errors_are_the_scatter_of_ratios_over_node_sets() -> None:
    system = committee(units=1, nodes=64, replicates=4, closure="quadrature")
    C = np.repeat(np.asarray(system.initial_overlaps), 3, axis=0)
    each = np.asarray(system.population_loss(jnp.asarray(C[0]), jnp.asarray(C[0])))
    gains = 1 + 0.1 * RNG.normal(size=(3, 4))
    theory: Any = SimpleNamespace(
        observables={"replicate_loss": gains * each, "overlaps": C, "row_overlaps": C},
        loss=np.ones(3),
        error=np.full(3, 0.2),
    )
    found = _paired_stderr(system, theory, np.array([0, 2]))
    for place, row in enumerate(gains[[0, 2]]):
        scatter = np.sqrt(np.sum((row - row.mean()) ** 2) / 3)
        assert found[place] == pytest.approx(scatter / 4**0.5 / row.mean(), rel=1e-9)
    # The trajectory's own error is the half width of a 95 % interval with three degrees of freedom.
    np.testing.assert_allclose(quadrature_stderr(system, theory), 0.2 / stats.t.ppf(0.975, 3), rtol=1e-12)


def test_what_a_spectrum_neglects_is_of_order_one_over_its_effective_dimension() -> None:
    """(1 + |p|) tr Sigma^2/(tr Sigma)^2: here d = 30, d_eff = 3.4."""
    lam = np.array([10.0] * 2 + [1.0] * 4 + [0.1] * 24)
    system = mean_field(LINEAR, spectrum=listed(lam), nodes=gauss_hermite_nodes(2, 4), learning_rate=0.01)
    order = sum(x**2 for x in lam) / sum(lam) ** 2
    run: Any = None
    np.testing.assert_allclose(
        RULES.neglected(system, run, np.array([0.0, -2.0]))["finite_size"], [order, 3 * order], rtol=1e-12
    )
    numbers = coverage(system).numbers
    assert numbers["spectrum"] == pytest.approx(order, rel=1e-12)
    assert numbers["step"] == pytest.approx(0.01 * 10.0 / sum(lam), rel=0.02)  # the fastest mode has lam = 10, |G| = 1


def test_distances_are_in_units_of_what_they_compare() -> None:
    """Overlaps: |C_run - C|_ij over the lengths of rows i and j. Outputs: the distance over the shorter of path and end."""
    C, off = np.array([[4.0, 1.0], [1.0, 9.0]]), np.array([[0.4, 0.3], [0.3, -0.45]])
    run: Any = SimpleNamespace(records={"overlaps": 0}, mean=lambda name: (C + off)[None])
    system: Any = None
    theory: Any = SimpleNamespace(overlaps=C[None])
    largest = max(abs(off[i, j]) / (C[i, i] * C[j, j]) ** 0.5 for i in range(2) for j in range(2))
    found = ATTENTION.distances(system, run, theory, np.array([0]))["overlaps"]
    np.testing.assert_allclose(found, [largest], rtol=1e-12)
    path = np.array([[0.0, 5.0], [1.0, 3.0], [3.0, 1.0]])  # longer than its end: |(3, -4)| = 5 against |(3, 1)|
    error, of_test = function_errors(*(jnp.asarray(x) for x in (path + 0.2, path[:, :1] + 0.1, path, path[:, :1])))
    np.testing.assert_allclose(error, 0.2 * 2**0.5 / 10**0.5, rtol=1e-12)
    np.testing.assert_allclose(of_test, 0.1 / 3.0, rtol=1e-12)


class Squares(eqx.Module):
    """f(x) = (w.x)^2 in two outputs, (w.x)^2 and (w.x)^2/2: of degree two in its weights."""

    weights: Array

    def __call__(self, x: Array) -> Array:
        return (self.weights @ x) ** 2 * jnp.array([1.0, 0.5])


def test_the_drive_of_a_step_is_exact_for_networks_of_degree_two() -> None:
    """F(theta - h J^T g) = F(theta) - h J(middle) J^T g: what the corrected path of a kernel takes for one step of descent."""
    x, g, h = RNG.normal(size=(3, 4)), RNG.normal(size=6), 0.07
    net = Squares(jnp.asarray(RNG.normal(size=4)))
    moved, rest = eqx.partition(net, eqx.is_array)
    of_train, of_test = _products(
        moved, rest, None, jnp.asarray(x), jnp.asarray(2 * x), jnp.asarray(h), jnp.zeros(6), jnp.asarray(g)
    )
    w = np.asarray(net.weights)
    J = np.array([2 * (w @ row) * row * share for row in x for share in (1.0, 0.5)])
    after = w - h * J.T @ g

    def outputs(v: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        return np.array([(v @ row) ** 2 * share for row in inputs for share in (1.0, 0.5)])

    for found, inputs in ((of_train, x), (of_test, 2 * x)):
        np.testing.assert_allclose(-h * found, outputs(after, inputs) - outputs(w, inputs), rtol=1e-10)


def test_errors_of_a_comparison_add_as_they_should() -> None:
    """Scatter of the seeds over sqrt(s) with s - 1 degrees of freedom; Monte Carlo inside it; other sources in squares."""
    losses = 1 + 0.1 * RNG.normal(size=(9, 5))
    seeds, mc = np.arange(9), np.full((9, 5), 0.3)
    run = Run(
        step=np.arange(1, 6), t=np.arange(1.0, 6.0), seeds=seeds, model=None, clock=committee().clock, config={}, meta={},
        records={"loss": losses, "loss_stderr": mc, "loss_common_stderr": np.full((9, 5), 0.02)},
    )  # fmt: skip
    predicted = np.full(5, 2.0)
    theory: Any = SimpleNamespace(error=np.full(5, 0.004))
    ratio = losses.mean(axis=0) / predicted
    errors = _errors("loss", Rules(tolerance={}), None, run, theory, np.arange(5), predicted, ratio)
    scatter = np.array([np.sqrt(np.sum((x - x.mean()) ** 2) / 8) / 3 for x in losses.T])
    np.testing.assert_allclose(errors["seeds"], scatter / 2, rtol=1e-12)
    np.testing.assert_allclose(errors["monte_carlo"], 0.3 * 9**0.5 / 9 / 2, rtol=1e-12)
    np.testing.assert_allclose(errors["nodes"], 0.01, rtol=1e-12)
    together = np.sqrt(np.maximum(scatter / 2, 0.05) ** 2 + 0.01**2 + 0.004**2)
    np.testing.assert_allclose(_stderr(errors, ratio), together, rtol=1e-12)
    np.testing.assert_allclose(run.stderr(), np.hypot(scatter, 0.02), rtol=1e-12)


def test_a_verdict_of_agreement_is_rarely_wrong() -> None:
    """A ratio at the tolerance leaves it by three standard errors in 0.13 % of 2000 points; at five errors beyond in 97.7 %."""
    t, error = np.arange(1.0), np.array([0.02])
    for ratio, share in ((1.1, stats.norm.sf(3)), (1.2, stats.norm.cdf(2))):
        noisy = ratio + 0.02 * RNG.normal(size=2000)
        differs = sum(judge(t, np.array([x]), error, tolerance=0.1).status == "differs" for x in noisy)
        assert abs(differs / 2000 - share) < 4 * (share * (1 - share) / 2000) ** 0.5
