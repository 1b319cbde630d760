"""The closure at finite context by fixed nodes: against plain Monte Carlo, its two limits, and as a system."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from monte_carlo_closure import sampled_closure
from oracles import oracle_closure, oracle_loss

from odescale import InputError, OutsideTheoryError, attention, integrate, logistic_pair
from odescale.cache.programs import made
from odescale.expectations.closure import factor
from odescale.expectations.finite_context import finite_context_loss
from odescale.expectations.sampled import sample_context
from odescale.generated import attention as formulas
from odescale.networks import FieldNetwork, Head, build_architecture, logistic_pair_architecture
from odescale.systems.initial import logistic_pair_overlaps, teacher_student_overlaps

QUICKSTART = logistic_pair_architecture()
moments = eqx.filter_jit(lambda context, C, architecture: context.moments(C, architecture))


def overlaps_of(architecture, seed=0, strength=0.2):
    """Overlaps of full rank: the named start, its rows tilted a little."""
    start = np.asarray(teacher_student_overlaps(architecture, strength=strength, alignment=0.5, scale=1.0))[0]
    tilt = np.eye(len(start)) + 0.1 * np.random.default_rng(seed).normal(size=start.shape)
    return tilt @ (start + 0.01 * np.eye(len(start))) @ tilt.T


def over_node_sets(context, C, architecture, sets):
    """Mean and standard error of (D, V, L) over independent node sets."""
    values = [moments(context.another(seed), jnp.asarray(C), architecture) for seed in range(sets)]
    columns = [np.stack([np.asarray(v[i]) for v in values]) for i in range(3)]
    return [(x.mean(0), x.std(0, ddof=1) / np.sqrt(sets)) for x in columns]


@pytest.mark.parametrize("architecture", [build_architecture(2, 1), QUICKSTART], ids=["two layers", "quickstart"])
@pytest.mark.slow
def test_moments_agree_with_plain_monte_carlo(architecture):
    tokens, size = 8, architecture.size
    C = overlaps_of(architecture) if architecture.size == 10 else np.asarray(overlaps_of_quickstart())
    (D, D_error), (V, V_error), (L, L_error) = over_node_sets(sample_context(size, tokens, 1100), C, architecture, 8)
    plain = sampled_closure(architecture, C, None, tokens, jax.random.key(7), 40_000, precision="float32")
    loss, loss_error = finite_context_loss(architecture, C, None, tokens, jax.random.key(8), 20_000, control="none")
    moved = np.flatnonzero(architecture.trained_mask)
    rows, block = np.ix_(moved, np.arange(size)), np.ix_(moved, moved)
    z_D = (D - plain.GC)[rows] / np.hypot(D_error, plain.GC_stderr)[rows]
    z_V = (V - plain.V)[block] / np.hypot(V_error, plain.V_stderr)[block]
    # Eight node sets: Student's t with 7 degrees of freedom where their error dominates, hence 5 and not 4.
    assert np.abs(z_D).max() < 5 and np.abs(z_V).max() < 5 and abs(L - loss) < 5 * np.hypot(L_error, loss_error)
    assert np.sqrt(np.mean(z_D**2)) < 1.7 and np.sqrt(np.mean(z_V**2)) < 1.7
    assert not D[architecture.trained_mask == 0].any() and not V[:, architecture.trained_mask == 0].any()


def overlaps_of_quickstart():
    rows = np.asarray(logistic_pair_overlaps(strength=1.0, aligned=0.2, surplus=0.3, readout_scale=1.5))[0]
    return rows + 0.02 * np.diag([1, 1, 1, 1, 0, 0, 0, 0])


@pytest.mark.slow
def test_long_contexts_tend_to_the_infinite_closure():
    C = overlaps_of_quickstart()
    G, _, V_limit = jax.jit(lambda C: oracle_closure(C, C, QUICKSTART))(jnp.asarray(C))
    limits = [
        np.asarray(G @ C),
        np.asarray(V_limit),
        np.asarray(oracle_loss(jnp.asarray(C), jnp.asarray(C), QUICKSTART)),
    ]
    distance = {}
    for tokens in (8, 32, 128):
        got = over_node_sets(sample_context(8, tokens, 1024), C, QUICKSTART, 2)
        distance[tokens] = [
            np.abs(mean - limit).max() / np.abs(limit).max() for (mean, _), limit in zip(got, limits, strict=True)
        ]
    for i in range(3):
        assert distance[128][i] < 0.5 * distance[32][i] < 0.3 * distance[8][i], distance
    assert distance[128][0] < 0.03 and distance[128][2] < 0.03


@pytest.mark.slow
def test_two_layers_of_rank_two_extrapolate_to_their_infinite_closure():
    """D and L at T = 32 and 128, extrapolated as 1/T, are those at infinite context, and not those of the first pairs alone."""
    architecture = build_architecture(2, rank=2)
    C = overlaps_of(architecture)
    short, long = (over_node_sets(sample_context(architecture.size, T, 1024), C, architecture, 6) for T in (32, 128))
    (D, D_error), (L, L_error) = (
        ((4 * long[i][0] - short[i][0]) / 3, np.hypot(4 * long[i][1], short[i][1]) / 3) for i in (0, 2)
    )
    GC, loss = infinite_moments(jnp.asarray(C), architecture)
    # Six node sets: Student's t with 5 degrees of freedom; 1 % is what 1/T^2 leaves.
    assert (
        np.all(np.abs(D - GC) < 5 * D_error + 0.01 * np.abs(GC).max()) and abs(L / loss - 1) < 5 * L_error / loss + 0.01
    )
    assert np.abs(long[0][0] - GC).max() > 3 * np.abs(D - GC).max()

    def first(network):
        heads = tuple(tuple(Head(h.query[0], h.key[0]) for h in layer) for layer in network.layers)
        return FieldNetwork(heads, network.readouts)

    alone = dataclasses.replace(architecture, student=first(architecture.student), teacher=first(architecture.teacher))
    GC, loss = infinite_moments(jnp.asarray(C), alone)
    assert np.any(np.abs(D - GC) > 20 * D_error + 0.05 * np.abs(GC).max())
    assert abs(L / loss - 1) > 5 * L_error / loss + 0.01  # 5 % off


def infinite_moments(C, architecture):
    G, _, _ = jax.jit(lambda C: oracle_closure(C, C, architecture))(C)
    return np.asarray(G @ C), float(oracle_loss(C, C, architecture))


@pytest.mark.slow
def test_one_layer_agrees_with_the_expansion_in_the_inverse_context():
    architecture, tokens = build_architecture(1, 1), 64
    C = overlaps_of(architecture, strength=0.1)
    student, teacher = architecture.student, architecture.teacher
    trained = jnp.asarray(architecture.trained_mask)
    G, V_expanded = jax.jit(
        lambda C: formulas.finite_context_closure(C, jnp.asarray(tokens), student, teacher, trained)
    )(C)
    G0, _, V0 = jax.jit(lambda C: formulas.closure(C, C, student, teacher, trained))(C)
    (D, D_error), (V, V_error), (L, L_error) = over_node_sets(sample_context(6, tokens, 1024), C, architecture, 6)
    for mean, error, limit, expanded in ((D, D_error, G0 @ C, G @ C), (V, V_error, V0, V_expanded)):
        correction = np.abs(np.asarray(expanded - limit)).max()
        assert np.abs(mean - limit).max() > 0.7 * correction  # what is tested is not lost in the noise
        assert np.all(np.abs(mean - expanded) < 5 * error + 0.1 * correction)
    expanded = float(formulas.finite_context_loss(jnp.asarray(C), jnp.asarray(tokens), student, teacher))
    assert abs(L - expanded) < 5 * L_error + 0.1 * abs(expanded - float(oracle_loss(jnp.asarray(C), C, architecture)))


def test_control_variates_reduce_the_variance_and_are_exact_on_second_moments():
    context = sample_context(8, 16, 1024)
    z, w = np.asarray(context.nodes), np.asarray(context.weights)
    for part in (z[:, :16], z[:, 16:]):
        assert np.abs(np.einsum("n,nti,ntj->ij", w, part, part) / 16 - np.eye(8)).max() < 1e-12
    assert w.sum() == pytest.approx(1, abs=1e-12)
    C, uniform = overlaps_of_quickstart(), np.full(1024, 1 / 1024)
    plain = eqx.tree_at(lambda c: c.weights, context, jnp.asarray(uniform))
    seeds = range(6)
    spread = []
    for weighted in (True, False):
        sets = [context.another(s) for s in seeds]
        sets = sets if weighted else [eqx.tree_at(lambda c: c.weights, s, plain.weights) for s in sets]
        spread.append(np.std([float(moments(s, jnp.asarray(C), QUICKSTART)[0][0, 6]) for s in sets], ddof=1))
    assert spread[0] < 0.8 * spread[1]


def test_singular_overlaps_and_overlaps_positive_only_to_rounding():
    C = np.asarray(logistic_pair_overlaps(strength=1.0, aligned=0.05, surplus=0.3, readout_scale=4.0))[0]
    assert np.linalg.matrix_rank(C) == 4
    F = np.asarray(factor(jnp.asarray(C), QUICKSTART.trained))
    assert np.abs(F @ F.T - C).max() < 1e-12
    context = sample_context(8, 16, 256)
    exact = moments(context, jnp.asarray(C), QUICKSTART)
    noise = np.random.default_rng(0).normal(size=(8, 8)) * 1e-9
    rough = moments(context, jnp.asarray(C + noise + noise.T), QUICKSTART)
    assert np.linalg.eigvalsh(C + noise + noise.T)[0] < 0
    for a, b in zip(exact, rough, strict=True):
        assert np.all(np.isfinite(b)) and np.abs(a - b).max() < 1e-3 * np.abs(a).max()
    # The teacher's and the frozen rows keep their fields when trained rows move.
    moved = C + 0.1 * np.diag([1, 1, 1, 1, 0, 0, 0, 0])
    assert np.abs(np.asarray(factor(jnp.asarray(moved), QUICKSTART.trained)) - F)[4:].max() == 0


def test_float32_networks_agree_with_float64_ones():
    C = jnp.asarray(overlaps_of_quickstart())
    single, double = (sample_context(8, 16, 128, precision=p) for p in ("float32", "float64"))
    for a, b in zip(moments(single, C, QUICKSTART), moments(double, C, QUICKSTART), strict=True):
        assert np.abs(a - b).max() < 1e-5 * np.abs(b).max()
    assert float(single.loss(C, QUICKSTART)) == pytest.approx(float(moments(single, C, QUICKSTART)[2]), rel=1e-6)


@pytest.mark.slow
def test_a_sampled_system_integrates_and_checks_itself_on_other_nodes():
    system = logistic_pair(context="sampled", tokens=16, sequences=512)
    times = np.array([0.0, 0.5, 1.0, 2.0, 3.0])
    out = integrate(system, ts=times)
    before = dict(made)
    checked = integrate(system, ts=times, accuracy="check")
    assert dict(made) == before  # another node set is not another program
    assert np.array_equal(out.loss, checked.loss)
    other = integrate(system.resampled(), ts=times)
    assert checked.error is not None
    assert np.allclose(checked.error, np.abs(out.loss - other.loss) / other.loss, rtol=1e-12)
    assert 0 < checked.error.max() < 0.1
    assert out.meta["exponents"] == "differences on the output times" and out.meta["solver"] == "bosh3"
    assert out.meta["parameters"]["context"] == "sampled" and out.meta["parameters"]["sequences"] == 512
    finer = integrate(system, ts=times, rtol=1e-5)
    assert np.abs(out.loss / finer.loss - 1).max() < 3e-3
    infinite = integrate(logistic_pair(), ts=times)
    assert 1.05 < out.loss[0] / infinite.loss[0] < 1.2  # later the losses cross: a faster drop from a higher start


def test_learning_rate_schedule_noise_and_decay_enter_the_sampled_flow():
    C = jnp.asarray(overlaps_of_quickstart())[None]
    options = {"context": "sampled", "tokens": 8, "sequences": 64, "learning_rate": 0.3, "batch": 2.0}
    system = eqx.tree_at(lambda s: s.initial_overlaps, logistic_pair(**options, weight_decay=0.1), C)
    assert system.sampled is not None
    D, V, _ = system.sampled.moments(C[0], QUICKSTART)
    S = jnp.diag(jnp.asarray(QUICKSTART.trained_mask))
    expected = -0.3 * (D + D.T) + 0.3**2 / 2 * V - 0.1 * (S @ C[0] + C[0] @ S)
    got = system.to_overlaps(system.vector_field(jnp.asarray(0.0), system.to_state(C)))[0]
    assert np.abs(got - expected).max() < 1e-9


def test_refused_cases():
    with pytest.raises(OutsideTheoryError, match="context"):
        attention(context="sampled", value="rows")
    with pytest.raises(OutsideTheoryError, match="context"):
        attention(context="sampled", capacity=1.5)
    with pytest.raises(InputError, match="tokens"):
        logistic_pair(context="sampled", tokens=np.inf)
    with pytest.raises(InputError, match="tokens"):
        logistic_pair(context="sampled", tokens=8.5)
    with pytest.raises(InputError, match="context"):
        logistic_pair(context="finite")
    with pytest.raises(InputError, match="sequences"):
        sample_context(8, 8, 1)
    system = logistic_pair(context="sampled", tokens=8, sequences=64)
    with pytest.raises(InputError, match="solver"):
        integrate(system, 1.0, solver="structured")
    with pytest.raises(InputError, match="tokens"):
        integrate(eqx.tree_at(lambda s: s.tokens, system, jnp.asarray(16.0)), 1.0)
    rows = build_architecture(1, 1, value="rows")
    with pytest.raises(OutsideTheoryError, match="value"):
        sample_context(rows.size, 8, 64).moments(jnp.eye(rows.size), rows)
