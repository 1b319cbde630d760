"""Standard errors of nodes, seeds and comparisons, and what a theory neglects, from their definitions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from odescale import committee, mean_field, teacher_student
from odescale.compare.comparison import _errors, _stderr
from odescale.compare.rules.mean_field import RULES, _paired_stderr, quadrature_stderr
from odescale.compare.sheets import Rules
from odescale.compare.verdict import judge
from odescale.expectations.nodes import gauss_hermite_nodes, sobol_nodes
from odescale.networks import QueryToken, RowNetwork
from odescale.run import Run
from odescale.spectra import listed
from odescale.systems.coverage import coverage
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
    assert coverage(system).numbers["spectrum"] == pytest.approx(order, rel=1e-12)


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
