"""Systems: vector field against a closure assembled by hand, starts, losses late in a run, and what `check` refuses."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import oracle_closure, oracle_functionals, oracle_loss

from odescale import Attention, InputError, OutsideTheoryError, attention, integrate, logistic_pair
from odescale import available_systems as systems
from odescale.networks import Architecture, FieldNetwork, build_architecture
from odescale.spectra import listed
from odescale.systems.base import local_exponents
from odescale.systems.initial import logistic_pair_overlaps
from odescale.systems.register import SYSTEMS, find_system


def linear_rows() -> Architecture:
    """One student row against one teacher row, no attention: f = r.h/sqrt(N)."""
    return Architecture(("r", "r*"), (True, False), FieldNetwork((), (0,)), FieldNetwork((), (1,)), pairs=((0, 1),))


def random_spectral(depth: int, value: str, **given) -> Attention:
    """A system with three modes and random overlaps in each."""
    rows = build_architecture(depth, value=value)
    spectrum = listed([1.9, 0.8, 0.3])
    random = np.random.default_rng(depth)
    A = random.normal(size=(3, rows.size, rows.size + 2)) * 0.3
    return attention(
        architecture=rows, spectrum=spectrum, initial_overlaps=jnp.asarray(A @ np.swapaxes(A, 1, 2)), **given
    )


def flow_by_hand(system: Attention, q: np.ndarray, eta: float) -> np.ndarray:
    """dq_k/dt in plain overlaps, mode by mode in NumPy, with the closure by automatic differentiation."""
    lam, w = np.asarray(system.eigenvalues), np.asarray(system.weights)
    C, R = np.einsum("k,kij->ij", w * lam, q), np.einsum("k,kij->ij", w, q)
    G, H, V = (np.asarray(x) for x in oracle_closure(jnp.asarray(C), jnp.asarray(R), system.architecture))
    S = np.diag(system.architecture.trained_mask)
    decay, batch, noise = (float(x) for x in (system.weight_decay, system.batch, system.noise))
    out = []
    for k in range(lam.size):
        M = -eta * (lam[k] * G + H) - decay * S
        out.append(M @ q[k] + q[k] @ M.T + noise * eta**2 / batch * lam[k] * V)
    return np.stack(out)


@pytest.mark.parametrize(
    ("depth", "value", "given"),
    [
        (1, "identity", {"weight_decay": 0.3}),
        (2, "identity", {"noise": 0.0}),
        (1, "rows", {"batch": 2.0, "weight_decay": 0.1}),
    ],
)
def test_vector_field_is_the_closure_assembled_by_hand(depth, value, given):
    system = random_spectral(depth, value, learning_rate=0.7, schedule="power:0.5:2", **given)
    t = 3.0
    flow = np.asarray(system.vector_field(jnp.asarray(t), system.initial_state()))
    by_hand = flow_by_hand(system, np.asarray(system.initial_overlaps), 0.7 * (1 + t / 2) ** -0.5)
    T = system.architecture.difference_basis()
    np.testing.assert_allclose(flow, T @ by_hand @ T.T, rtol=1e-11, atol=1e-12)
    # the difference basis is that of rows: first student row minus its teacher's
    n = system.architecture.pairs[0][1]
    D = by_hand[:, 0, 0] - 2 * by_hand[:, 0, n] + by_hand[:, n, n]
    np.testing.assert_allclose(flow[:, 0, 0], D, rtol=1e-10, atol=1e-12)


def test_field_covariance_and_overlaps_are_the_weighted_sums_over_modes():
    system = random_spectral(1, "rows")
    q = np.asarray(system.initial_overlaps)
    C, R = system.couple(system.initial_overlaps)
    # N = tr Sigma = 3: C = A Sigma A^T / N, R = A A^T / N
    np.testing.assert_allclose(np.asarray(C), (1.9 * q[0] + 0.8 * q[1] + 0.3 * q[2]) / 3.0, rtol=1e-13)
    np.testing.assert_allclose(np.asarray(R), (q[0] + q[1] + q[2]) / 3.0, rtol=1e-13)
    loss = system.excess_loss(jnp.asarray(0.0), system.initial_state())
    assert float(loss) == pytest.approx(float(oracle_loss(C, R, system.architecture)), rel=1e-12)
    # t counts 3 steps per unit
    assert system.clock.steps_per_unit == pytest.approx(3.0)


def test_state_and_overlaps_invert_each_other():
    system = random_spectral(2, "identity")
    np.testing.assert_allclose(
        np.asarray(system.to_overlaps(system.initial_state())), np.asarray(system.initial_overlaps), atol=1e-15
    )


def test_weight_decay_alone_shrinks_student_overlaps_and_leaves_the_teacher():
    system = eqx.tree_at(
        lambda s: s.learning_rate, random_spectral(1, "identity", weight_decay=0.4, noise=0.0), jnp.asarray(0.0)
    )
    q = np.asarray(system.initial_overlaps)
    flow = np.asarray(system.to_overlaps(system.vector_field(jnp.asarray(0.0), system.initial_state())))
    s = np.flatnonzero(system.architecture.trained_mask)
    o = np.flatnonzero(system.architecture.trained_mask == 0)
    # student-student overlaps decay at 2 w, student-teacher at w
    np.testing.assert_allclose(flow[np.ix_(range(3), s, s)], -0.8 * q[np.ix_(range(3), s, s)], atol=1e-14)
    np.testing.assert_allclose(flow[np.ix_(range(3), s, o)], -0.4 * q[np.ix_(range(3), s, o)], atol=1e-14)
    np.testing.assert_allclose(flow[np.ix_(range(3), o, o)], 0.0, atol=1e-14)


def test_gradient_flow_conserves_the_balance_of_query_and_key():
    # W_q and W_k enter only as a product along r: |q|^2/N - kappa^2/R with kappa = k.r/N stays what it was
    system = logistic_pair(noise=0.0)
    flow = np.asarray(system.to_overlaps(system.vector_field(jnp.asarray(0.0), system.initial_state())))[0]
    q = np.asarray(system.initial_overlaps)[0]
    for query, key, read in ((0, 1, 4), (2, 3, 5)):
        change = flow[query, query] - 2 * q[key, read] * flow[key, read] / q[read, read]
        assert change == pytest.approx(0.0, abs=1e-14)
        assert abs(flow[query, query]) > 1e-4


def test_quickstart_overlaps_are_the_published_table():
    table = np.diag([0.025, 0.025, 0.15, 0.15, 4.0, 4.0, 0.5, 0.5])
    for i, j, value in (
        (0, 6, 0.1118033989),
        (1, 7, 0.1118033989),
        (1, 4, 0.3162277660),
        (4, 7, 1.4142135624),
        (3, 5, 0.7745966692),
    ):
        table[i, j] = table[j, i] = value
    overlaps = np.asarray(logistic_pair_overlaps(strength=1.0, aligned=0.05, surplus=0.3, readout_scale=4.0))
    assert overlaps.shape == (1, 8, 8)
    np.testing.assert_allclose(overlaps[0], table, atol=1e-10)
    assert np.linalg.matrix_rank(overlaps[0], tol=1e-10) == 4
    assert logistic_pair().architecture.rows == ("q0", "k0", "q1", "k1", "r1", "r2", "q0*", "k0*")
    np.testing.assert_allclose(np.asarray(logistic_pair().initial_overlaps), overlaps, atol=1e-15)
    # both layers start with y = (k.r/N) sqrt(|q|^2/N), the teacher with beta
    C = overlaps[0]
    for query, key, read, y in ((0, 1, 4, 0.05), (2, 3, 5, 0.3), (6, 7, 4, 1.0)):
        assert C[key, read] * np.sqrt(C[query, query]) == pytest.approx(y, rel=1e-12)


def test_loss_late_in_a_run_keeps_its_digits_where_plain_overlaps_lose_all_of_them():
    # student = teacher + 1e-9 of a random direction, evaluated in long double from the rows themselves
    rows = build_architecture(2)
    random = np.random.default_rng(3)
    A = random.normal(size=(rows.size, 14)).astype(np.longdouble) * np.longdouble(0.3)
    for student, teacher in rows.pairs:
        A[student] = A[teacher] + np.longdouble(1e-9) * random.normal(size=14).astype(np.longdouble)
    plain = A @ A.T
    D = A.copy()
    for student, teacher in rows.pairs:
        D[student] = A[student] - A[teacher]
    state = (D @ D.T).astype(float)[None]

    def functionals(network):
        maps = np.eye(rows.size, dtype=np.longdouble)
        for (head,) in network.layers:
            maps = maps + np.outer(maps @ plain @ maps[head.key], maps[head.query])
        return maps[network.readouts[0]]

    # b . phi = b . A x: small because the rows nearly cancel, exact in the longer format
    error = (functionals(rows.student) - functionals(rows.teacher)) @ A
    exact = float(0.5 * error @ error)
    system = attention(architecture=rows, initial_overlaps=plain.astype(float)[None])
    loss = float(system.excess_loss(jnp.asarray(0.0), jnp.asarray(state)))
    assert 1e-20 < exact < 1e-16
    assert loss == pytest.approx(exact, rel=1e-6)
    C = jnp.asarray(plain.astype(float))
    assert abs(float(oracle_loss(C, C, rows)) / exact - 1) > 1e-2


def test_observables_are_the_overlaps_the_speed_and_the_cosines():
    system = logistic_pair()
    seen = system.observables(jnp.asarray(0.0), system.initial_state())
    C = np.asarray(system.initial_overlaps[0])
    np.testing.assert_allclose(np.asarray(seen["overlaps"]), C, atol=1e-15)
    assert float(seen["cosine_q0"]) == pytest.approx(1.0, abs=1e-14)
    a = np.asarray(oracle_functionals(jnp.asarray(C), jnp.asarray(C), system.architecture.student))
    assert float(seen["learning_speed"]) == pytest.approx(np.sum(a[:, :4] ** 2), rel=1e-12)


def test_local_exponents_of_a_linear_student_are_those_of_an_exponential():
    # L = exp(-k t)/2 x const with k = 2 eta - eta^2/B: p = k t, q = 1
    system = attention(architecture=linear_rows(), learning_rate=0.5, batch=4.0)
    loss, p, q = local_exponents(system, jnp.asarray(3.0), system.initial_state())
    assert float(p) == pytest.approx(3.0 * (2 * 0.5 - 0.25 / 4), rel=1e-13)
    assert float(q) == pytest.approx(1.0, abs=1e-12)


def test_stability_bound_of_one_row_is_where_the_noise_outgrows_the_drift():
    # dE e^2/dt = (-2 eta + eta^2/B) E e^2: the bound is eta = 2 B
    batch = 2.0
    just_below = attention(architecture=linear_rows(), learning_rate=2 * batch * 0.98, batch=batch)
    just_above = attention(architecture=linear_rows(), learning_rate=2 * batch * 1.02, batch=batch)
    assert float(just_below.stability_bound()) == pytest.approx(2 * batch, rel=1e-12)
    low = integrate(just_below, 2.0)
    eta = 2 * batch * 0.98
    assert low.loss[-1] / low.loss[0] == pytest.approx(np.exp(2.0 * (-2 * eta + eta**2 / batch)), rel=1e-6)
    assert low.loss[-1] < low.loss[0]
    _, growth, _ = local_exponents(just_above, jnp.asarray(1.0), just_above.initial_state())
    assert float(growth) < 0
    with pytest.raises(InputError, match="learning_rate.*2 batch"):
        just_above.check()
    attention(architecture=linear_rows(), learning_rate=2 * batch * 1.02, batch=batch, noise=0.0).check()


def bad(**given):
    return pytest.param(given, id=",".join(f"{name}={value}" for name, value in given.items()))


@pytest.mark.parametrize(
    "given",
    [
        bad(learning_rate=0.0),
        bad(learning_rate=-0.1),
        bad(learning_rate=np.nan),
        bad(learning_rate="fast"),
        bad(learning_rate=None),
        bad(learning_rate=True),
        bad(learning_rate=[0.1, 0.2]),
        bad(batch=0.5),
        bad(batch=np.inf),
        bad(noise=2.0),
        bad(tokens=1.0),
        bad(weight_decay=-1.0),
        bad(dimension=2.5),
        bad(dimension=np.inf),
        bad(depth=0),
        bad(heads=9),
        bad(rank=0),
        bad(rank=1.5),
        bad(key_value_heads=2),
        bad(key_value_heads=-1),
        bad(value="matrix"),
        bad(train_readouts="yes"),
        bad(alignment=1.5),
        bad(capacity=0.5),
        bad(context="short"),
        bad(schedule="cosine:0"),
        bad(schedule=3.0),
    ],
)
def test_out_of_domain_parameters_are_refused_by_name(given):
    with pytest.raises(InputError) as error:
        attention(**given)
    (name,) = given
    assert str(error.value).startswith(f"{name}: expected") and "\n" not in str(error.value)


def test_unknown_names_are_refused_with_a_hint():
    with pytest.raises(InputError, match="did you mean learning_rate"):
        logistic_pair(learning_rat=0.1)
    with pytest.raises(InputError, match="did you mean quickstart"):
        find_system("quickstrat")
    with pytest.raises(InputError, match="odescale systems"):
        find_system("perceptron")
    assert set(systems()) == set(SYSTEMS)
    with pytest.raises(InputError, match="aligned.*strength"):
        logistic_pair(aligned=1.0)


def with_overlaps(change) -> Attention:
    overlaps = np.array(logistic_pair().initial_overlaps)
    return eqx.tree_at(lambda s: s.initial_overlaps, logistic_pair(), jnp.asarray(change(overlaps)))


def _nan(q):
    q[0, 2, 3] = np.nan
    return q


def _negative(q):
    q[0, 0, 6] = q[0, 6, 0] = 0.9
    return q


def _skew(q):
    q[0, 0, 6] = 0.0
    return q


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_nan, r"finite numbers, got nan at \(0, 2, 3\)"),
        (_negative, "positive semi-definite"),
        (_skew, "symmetric"),
        (lambda q: q[:, :7, :7], "shape"),
        (lambda q: q[0], "shape"),
        (lambda q: np.concatenate([q, q]), "shape"),
    ],
)
def test_bad_initial_overlaps_are_refused_before_anything_is_compiled(change, words):
    with pytest.raises(InputError, match=words) as error:
        integrate(with_overlaps(change), 10.0)
    assert error.value.argument == "initial_overlaps"


def test_a_student_that_is_its_teacher_is_refused():
    rows = linear_rows()
    with pytest.raises(InputError, match="loss 0"):
        attention(architecture=rows, initial_overlaps=jnp.ones((1, 2, 2))).check()


def test_unstable_learning_rate_is_refused():
    with pytest.raises(InputError, match="learning_rate.*outgrows the drift"):
        attention(learning_rate=50.0, batch=1.0).check()


def test_finite_context_outside_its_domain_is_refused():
    attention(depth=1, context="finite", strength=0.6).check()
    with pytest.raises(OutsideTheoryError, match="2 C_kk C_qq < 1"):
        attention(depth=1, context="finite", strength=0.8).check()  # 2 * .8^2 = 1.28
    with pytest.raises(OutsideTheoryError, match="context"):
        attention(depth=2, context="finite")
    with pytest.raises(OutsideTheoryError, match="context"):
        attention(depth=1, value="rows", context="finite")
    with pytest.raises(OutsideTheoryError, match="context.*rank"):
        attention(depth=1, rank=2, context="finite")
    infinite = attention(depth=1, rank=2, tokens=64.0)
    with pytest.raises(OutsideTheoryError, match="context.*rank"):
        dataclasses.replace(infinite, finite_context=True).check()
    with pytest.raises(InputError, match="tokens"):
        attention(depth=1, context="finite", tokens=np.inf)


def test_finite_context_corrects_the_infinite_one_by_order_one_over_tokens():
    start = jnp.asarray(0.0)

    def loss(tokens, context="finite"):
        system = attention(depth=1, strength=0.3, context=context, tokens=tokens)
        return float(system.excess_loss(start, system.initial_state()))

    infinite = loss(64.0, "infinite")
    shifts = [tokens * (loss(tokens) - infinite) for tokens in (32.0, 128.0)]
    assert shifts[0] == pytest.approx(shifts[1], rel=1e-10)
    assert abs(shifts[0]) > 0.05 * infinite


def test_summary_is_plain_numbers_and_words():
    summary = logistic_pair(learning_rate=0.1).summary()
    assert summary["learning_rate"] == 0.1 and summary["steps_per_unit"] == 200.0
    assert summary["trained"] == ["q0", "k0", "q1", "k1"] and summary["depth"] == 2 and summary["context"] == "infinite"
