"""What a system says of itself before any run; the table against simulation is `python -m benchmarks.coverage`."""

import json
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_cases import linear, two_layers, write_back
from phase_retrieval import phase_retrieval
from scipy import stats

from odescale import (
    InputError,
    aligned_overlaps,
    attention,
    committee,
    coverage,
    mean_field,
    peaked,
    spectral,
    teacher_student,
    transformer,
)
from odescale.expectations.nodes import gauss_hermite_nodes
from odescale.networks import HeadRows, PreNorm, QueryToken, RowNetwork, SelfAttention, build_architecture
from odescale.solve.judges.tails import rare_share
from odescale.spectra import listed, power_law
from odescale.systems.attention import softmax_load
from odescale.systems.kernel import Kernel
from odescale.systems.register import HOOKS, as_system


def judged(problem, **settings):
    start = aligned_overlaps(problem, alignment=0.5, common=0.2)
    return coverage(mean_field(problem, initial_overlaps=start, nodes=64, **{"learning_rate": 0.02, **settings}))


def normed():
    block = PreNorm(SelfAttention((HeadRows("q", "k"),)))
    return teacher_student(RowNetwork(("q", "k", "r"), (block,), QueryToken(("r",))), tokens=2)


def test_numbers_of_a_linear_student_are_known():
    """|G| = c = 1: the step is eta/d, the noise eta/(2 B), the stable learning rate 2 B."""
    found = judged(linear(), learning_rate=0.5, batch=2, dimension=400)
    assert found.inside and not found.reasons
    expected = {"rows": 2 / 400, "step": 0.5 / 400, "noise": 0.125, "spectrum": 1 / 400}
    assert found.numbers.keys() == {*expected, "jumps"}
    np.testing.assert_allclose([found.numbers[k] for k in expected], list(expected.values()), rtol=0.02)
    assert json.loads(json.dumps(found.to_dict()))["inside"] is True
    assert "inside" in str(found)


@pytest.mark.parametrize(
    ("problem", "settings", "word"),
    [
        (two_layers(2), {"dimension": 20}, "rows"),
        (write_back(), {"dimension": 60}, "rows"),
        (linear(), {"learning_rate": 2.5}, "learning_rate"),
        (linear(), {"learning_rate": 100.0, "batch": 100, "dimension": 300}, "step"),
        (linear(), {"learning_rate": 0.01, "momentum": 0.99, "dimension": 500}, "velocities"),
        (linear(), {"spectrum": power_law(2.0, 500, trace=None)}, "d_eff"),
        (normed(), {"dimension": 80}, "norms"),
    ],
)
def test_what_lies_outside_is_said_with_its_reason(problem, settings, word):
    found = judged(problem, **settings)
    assert not found.inside
    assert any(word in reason for reason in found.reasons), found.reasons
    assert str(found).startswith("outside the theory")


@pytest.mark.parametrize(
    ("problem", "settings"),
    [
        (two_layers(2), {"dimension": 500}),
        (linear(), {"learning_rate": 0.02, "momentum": 0.9, "dimension": 1000}),
        (linear(), {"friction": 2.0, "learning_rate": 0.5, "dimension": 500}),
        (linear(), {"spectrum": power_law(1.2, 500, trace=None)}),
        (normed(), {"dimension": 500}),
    ],
)
def test_what_lies_inside_is_not_refused(problem, settings):
    found = judged(problem, **settings)
    assert found.inside, found.reasons


def test_large_corrections_are_warned_of():
    found = judged(linear(), spectrum=power_law(1.2, 500, trace=None))
    assert found.inside and any("d_eff" in warning for warning in found.warnings)


def test_attention_says_what_its_own_number_of_tokens_changes():
    """L at t = 0 against an independent Monte Carlo of the finite softmax, and the three sizes that the issue measured."""
    found = coverage(attention(tokens=64))
    few = coverage(attention(tokens=16))
    many = coverage(attention(tokens=512, strength=0.2))
    assert not few.inside and "tokens" in few.reasons[0] and few.numbers["context"] > found.numbers["context"] > 0
    assert many.inside and many.numbers["context"] < few.numbers["context"]
    system = attention(tokens=16, depth=1)
    rng = np.random.default_rng(0)
    C = np.asarray(system.couple(system.initial_overlaps)[0])
    size, T, n = C.shape[0], 16, 40_000
    phi = rng.standard_normal((n, T + 1, size)) @ np.linalg.cholesky(C + 1e-12 * np.eye(size)).T
    outputs = []
    for network in (system.architecture.student, system.architecture.teacher):
        head, read = network.layers[0][0], network.readouts[0]
        logits = phi[:, :1, head.query] * phi[:, 1:, head.key]  # a query and T context tokens
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        outputs.append(phi[:, 0, read] + (weights * phi[:, 1:, read]).sum(axis=1))
    losses = 0.5 * (outputs[0] - outputs[1]) ** 2
    infinite = float(system.excess_loss(0.0, system.initial_state()))
    off, error = losses.mean() / infinite - 1, losses.std() / n**0.5 / infinite
    assert abs(coverage(system).numbers["context"] - abs(off)) < 4 * error + 0.02 * (1 + off)


def test_rare_events_are_counted():
    """One number of thirty beyond 5, |z|^2 of twenty beyond 70: 5.7e-7 and 2.0e-7, of which plain draws of this size see none."""
    first = np.random.default_rng(1).standard_normal((4096, 30))
    assert rare_share(lambda z: z[:, 3] ** 2 / 25, first) == pytest.approx(2 * stats.norm.sf(5), rel=0.2)
    assert rare_share(lambda z: np.sum(z**2, axis=1) / 70, first[:, :20]) == pytest.approx(
        stats.chi2.sf(70, 20), rel=0.5
    )
    assert rare_share(lambda z: z[:, 0] ** 2, first) == pytest.approx(2 * stats.norm.sf(1), rel=0.05)


@pytest.mark.parametrize("batch", [1, 2])
def test_jumps_of_a_linear_student_are_known(batch):
    """Its gradient is the field of its distance to the teacher, of variance 3: P(eta^2 z^2 3/(B^2 d_eff) > 0.3), N B times."""
    lam = np.repeat([2.0, 0.5], [100, 400])
    cases: list[tuple[dict[str, Any], float, float]] = [
        ({"dimension": 400}, 400, 400),
        ({"spectrum": listed(lam)}, 400, 400**2 / 500),
    ]
    for where, trace, effective in cases:
        system = mean_field(
            linear(), initial_overlaps=aligned_overlaps(linear(), alignment=-0.5), nodes=16, learning_rate=1.4 * batch,
            batch=batch, **where,
        )  # fmt: skip
        rare = 2 * stats.norm.sf(np.sqrt(0.3 * effective / 3) / 1.4)
        assert coverage(system).numbers["jumps"] == pytest.approx(trace * batch * rare, rel=0.1)
    quiet = mean_field(linear(), initial_overlaps=system.initial_overlaps[0], nodes=16, noise=0.0)
    assert coverage(quiet).numbers["jumps"] == coverage(quiet).numbers["noise"] == 0


@eqx.filter_jit
def second_moments(system, three):
    """Jacobian of d/dt (<e^2>, <e U>, <U^2>), e the student's difference to its teacher and U its velocity."""
    own = np.ix_((0, 2), (0, 2))

    def flow(three):
        q = jnp.zeros((3, 3)).at[1, 1].set(1.0).at[own].set(jnp.array([[three[0], three[1]], [three[1], three[2]]]))
        moved = system.vector_field(0.0, jnp.broadcast_to(q, (system.closure.replicates, 1, 3, 3)))[0, 0][own]
        return jnp.array([moved[0, 0], moved[0, 1], moved[1, 1]])

    return jax.jacfwd(flow)(three)


@pytest.mark.parametrize(("gamma", "batch"), [(2.0, 1.0), (0.3, 3.0)])
def test_with_friction_the_noise_outgrows_the_drift_where_the_ode_says_so(gamma, batch):
    """The largest growth rate of (<e^2>, <e U>, <U^2>) changes sign at eta/gamma = 2 B; the fastest rate is that of (e, U)."""
    problem = linear()
    for share in (0.96, 1.04):
        eta = share * 2 * batch * gamma
        system = mean_field(
            problem, initial_overlaps=aligned_overlaps(problem, alignment=0.5), nodes=gauss_hermite_nodes(2, 6),
            learning_rate=eta, friction=gamma, batch=batch, dimension=400,
        )  # fmt: skip
        growth = np.linalg.eigvals(np.asarray(second_moments(system, jnp.array([1.0, 0.1, 1.0]))))
        numbers = coverage(system).numbers
        assert (growth.real.max() > 0) == (share > 1) == (numbers["noise"] > 1)
        assert numbers["noise"] == pytest.approx(share, rel=0.02)
        fastest = np.abs(np.linalg.eigvals([[0.0, -eta], [1.0, -gamma]])).max()  # de = -eta U, dU = e - gamma U
        assert numbers["step"] == pytest.approx(fastest / 400, rel=0.02)


def linear_attention(eta, d=500, **given):
    return transformer(attention="linear", learning_rate=eta, dimension=d, nodes=16, replicates=2, **given)


def quadratic(eta, d=500, **given):
    return committee(activation="quadratic", learning_rate=eta, dimension=d, batch=1, **given)


@pytest.mark.parametrize(
    ("system", "inside"),
    [  # as measured by direct simulation: docs/coverage.md
        (linear_attention(0.3), False),
        (linear_attention(0.3, 1500), False),
        (linear_attention(0.4, 300, batch=1), False),
        (linear_attention(0.04, 400, batch=1, alignment=0.5), True),
        (linear_attention(0.2, batch=1, friction=0.5), False),
        (linear_attention(0.3, batch=1, depth=1, alignment=0.5), True),
        (linear_attention(0.4, batch=1, depth=1, friction=2.0), True),
        (quadratic(0.15, 700), True),
        (quadratic(0.2, friction=1.5), True),
        (quadratic(0.7), False),
        (quadratic(0.8, 150), False),
        (quadratic(0.4, friction=0.5), False),
    ],
)
def test_tails_tell_what_diverges_from_what_follows(system, inside):
    found = coverage(system)
    assert found.inside == inside, found
    assert inside or "throw a row off its path" in str(found)


def test_quadratic_units_diverge_where_it_is_said_and_not_where_it_is_not():
    """SGD of two quadratic units against two, written out: f = v sum_u (h_u^2 - 1)/2, dW_u = -eta (f - f*) v h_u x/sqrt(d)."""
    system = quadratic(0.1, 150)
    weight, q = system.problem.student.readout.weight, np.asarray(system.initial_overlaps[0])
    rng, d, seeds = np.random.default_rng(0), 150, 32
    diverged = {}
    for eta in (0.1, 0.8):
        basis = np.linalg.qr(rng.standard_normal((seeds, d, 4)))[0] * d**0.5
        rows = np.linalg.cholesky(q) @ np.swapaxes(basis, 1, 2)
        for _ in range(6 * d):
            x = rng.standard_normal((seeds, d))
            h = np.clip(np.einsum("sud,sd->su", rows, x) / d**0.5, -1e6, 1e6)
            f = weight * (h**2 - 1).sum(axis=1, where=[True, True, False, False]) / 2
            off = f - weight * (h**2 - 1).sum(axis=1, where=[False, False, True, True]) / 2
            rows[:, :2] -= (eta * weight / d**0.5 * off)[:, None, None] * h[:, :2, None] * x[:, None]
        diverged[eta] = int(np.sum(np.sum(rows**2, axis=(1, 2)) / d > 100))
    assert diverged[0.1] == 0 and diverged[0.8] >= 8
    assert coverage(quadratic(0.1, 150)).inside and not coverage(quadratic(0.8, 150)).inside


@pytest.mark.parametrize("name", ["quickstart", "spectral"])
def test_the_systems_of_the_register_are_judged(name):
    found = coverage(system := as_system(name))
    assert found.inside in (True, False) and found.numbers and json.loads(json.dumps(found.to_dict()))
    assert coverage(system) is found  # asked for twice, measured once


def test_peaked_spectral_and_kernel_have_their_own_reasons():
    crowded = coverage(peaked(classes=3, dimension=10))
    assert not crowded.inside and crowded.numbers["classes"] == 0.2 and "(K - 1)/d" in crowded.reasons[0]
    falling = coverage(peaked(classes=3, schedule="power:0.9:1"), 1e4)
    assert not falling.inside and falling.numbers["lag"] == pytest.approx(0.9, abs=0.01)
    steep = spectral(eigenvalues=np.array([1.0, 0.1]), excess=np.ones(2), learning_rate=0.6, batch=1)
    assert not coverage(steep, 100).inside and coverage(steep, 100).numbers["ode"] > 0.05
    assert coverage(spectral(modes=64, learning_rate=0.05, batch=8), 100).inside
    two, one = jnp.array([1.0, 3.0]), jnp.ones(1)
    nearly = Kernel(
        kernel=jnp.diag(two), test_kernel=jnp.ones((1, 2)), eigenvalues=two, modes=jnp.eye(2), initial=0 * two, targets=two,
        test_initial=one, test_targets=one, learning_rate=jnp.asarray(0.4), samples=jnp.asarray(2.0), test_samples=one[0],
    )  # fmt: skip
    assert coverage(nearly).inside and coverage(nearly).numbers == {"flow": pytest.approx(0.4 * 3 / 2)}
    assert "kernel_regime" in str(coverage(nearly))


def test_a_derived_theory_is_judged_by_what_it_has_and_one_without_a_judge_is_undecided(monkeypatch):
    system = phase_retrieval(learning_rate=0.1)
    found = coverage(system)
    assert found.inside and "not judged: gradient noise" in str(found) and found.numbers["spectrum"] == 1 / system.trace
    assert found.numbers["rows"] == 2 / system.trace
    monkeypatch.setattr("odescale.solve.coverage.JUDGES", {})
    other = phase_retrieval(learning_rate=0.2)
    undecided = coverage(other)
    assert undecided.inside is None and "undecided" in str(undecided) and "judge" in str(undecided)
    monkeypatch.setitem(HOOKS, "derived", {"judge": lambda system, t1: {"heat": 2.0}})
    assert coverage(phase_retrieval(learning_rate=0.3)).reasons == ("heat = 2 (limit 1)",)


def test_what_is_no_system_is_refused():
    with pytest.raises(InputError, match="system: expected a system"):
        coverage("attention")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="traced"):
        jax.jit(lambda eta: coverage(spectral(modes=4, learning_rate=eta)).numbers["ode"])(0.1)


def test_default_overlaps_stay_finite_and_are_as_they_were_up_to_two_layers():
    for depth, heads in ((2, 8), (3, 4)):
        system = attention(depth=depth, heads=heads)
        assert 0.5 < float(system.excess_loss(0.0, system.initial_state())) < 5
        pairs = system.architecture.student, system.architecture.teacher
        assert max(float(softmax_load(*system.couple(system.initial_overlaps), n)) for n in pairs) < 0.95
    two = attention(depth=2, heads=8), attention(depth=2, heads=8, strength=0.5)
    np.testing.assert_array_equal(two[0].initial_overlaps, two[1].initial_overlaps)
    given = attention(depth=4, heads=2, strength=0.5)  # a given strength is taken
    assert float(given.initial_overlaps[0, 0, 0]) == pytest.approx(0.5)


def test_the_softmax_load_of_a_higher_rank_is_that_of_its_worst_direction():
    """E_s exp(c sum_ij s_i s_j Cov(k_i, k_j)) exists up to c = 1/(2 lambda_max(C_KK C_QQ)); the score keeps Q^T K under M, M^-T."""
    architecture = build_architecture(1, rank=3)
    rows = np.random.default_rng(0).normal(size=(architecture.size, 20)) * 0.3
    head = architecture.student.layers[0][0]
    q, k = list(head.query), list(head.key)

    def load(rows):
        C = jnp.asarray(rows @ rows.T)
        return float(softmax_load(C, C, architecture.student))

    queries, keys = (rows[x] @ rows[x].T for x in (q, k))
    expected = 2 * np.linalg.eigvals(keys @ queries).real.max()
    assert load(rows) == pytest.approx(expected, rel=1e-12)
    # 1/sqrt(det) of the Gaussian integral: finite below, infinite above.
    for c, definite in ((0.999 / expected, True), (1.001 / expected, False)):
        lowest = np.linalg.eigvalsh(np.linalg.inv(queries) - 2 * c * keys)[0]
        assert (lowest > 0) == definite
    turned, M = rows.copy(), np.random.default_rng(1).normal(size=(3, 3))
    turned[q], turned[k] = M @ rows[q], np.linalg.inv(M).T @ rows[k]
    assert load(turned) == pytest.approx(expected, rel=1e-9)
    system = attention(rank=4, heads=2)
    assert (
        max(
            float(softmax_load(*system.couple(system.initial_overlaps), n))
            for n in (system.architecture.student, system.architecture.teacher)
        )
        < 0.95
    )


@pytest.mark.parametrize(("kind", "low", "high"), [("softmax", 3.0, 6.0), ("linear", 0.2, 3.0)])
def test_a_deep_transformer_has_outputs_of_the_size_of_a_shallow_one(kind, low, high):
    """Two layers: 4.6 and 1.2. The third alone would make 17 and 31 of it."""
    system = transformer(depth=3, attention=kind, nodes=256, replicates=2)
    assert low < float(system.excess_loss(0.0, system.initial_state())) < high
