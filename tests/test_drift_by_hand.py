"""Right-hand sides of overlap systems from rows that are moved one by one, by loops: modes, momentum, friction, batch, R, H.

The expectations are put in by hand (a closure that depends on C and on R in a known way), so that nothing but the assembly is
tested, and nothing of the assembly is shared.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import oracle_closure, random_overlaps

from odescale import mean_field, teacher_student
from odescale.clock import parse_schedule
from odescale.expectations.closure import AbstractClosure, Moments
from odescale.expectations.nodes import gauss_hermite_nodes
from odescale.networks import MLP, HeadRows, QueryToken, RMSNorm, RowNetwork, SelfAttention, build_architecture
from odescale.spectra import Spectrum
from odescale.systems.attention import Attention
from odescale.systems.initial import teacher_student_overlaps

PROBLEM = teacher_student(
    RowNetwork(("a", "b", "c"), (MLP((("a", "b"),)),), QueryToken(("c",))), tokens=1, frozen=("c",)
)
MOVED, P = (0, 1), 6
RNG = np.random.default_rng(8)
G0, H0 = RNG.normal(size=(2, 2, P))
V0 = np.array([[1.0, 0.3], [0.3, 0.6]])


class Known(AbstractClosure):
    """G = G0 (1 + tr C), H = H0 (1 + tr R), V = V0 (1 + tr C tr R): what enters where, and from which overlaps, shows."""

    replicates: int = 2

    def moments(self, problem, C, R, replicate):
        c, r = jnp.trace(C), jnp.trace(R)
        G = G0 * (1 + c)
        return Moments(jnp.asarray(1.0), G @ C, G, H0 * (1 + r), V0 * (1 + c * r))

    def loss(self, problem, C, R, replicate):
        return jnp.asarray(1.0)

    def estimate(self, values):
        return values.mean(axis=0), values.std(axis=0)


ETA, DECAY, BATCH, T0 = 0.3, 0.2, 5.0, 1.3
SCHEDULE = parse_schedule("cosine:4:0.2")


def build(eigenvalues, weights, start, **given):
    counts = 50.0 * weights
    spectrum = Spectrum(eigenvalues, weights, counts, counts * eigenvalues**2, trace=50.0)
    return mean_field(
        PROBLEM, initial_overlaps=start, spectrum=spectrum, closure=Known(), learning_rate=ETA, weight_decay=DECAY,
        batch=BATCH, schedule=SCHEDULE, **given,
    )  # fmt: skip


def flow_of_rows(lam, weights, rows, momentum=0.0, friction=0.0, noise=1.0, write_back=1.0):
    """d(rows rows^T)/dt per mode in difference rows, every row by itself; with friction the velocities stand below the rows."""
    T = np.eye(P)
    T[0, 3] = T[1, 4] = -1.0  # a - a*, b - b*; c, which does not move, stays by itself
    q = np.array([T @ A[:P] @ A[:P].T @ T.T for A in rows])
    C = sum(w * x * one for w, x, one in zip(weights, lam, q, strict=True))
    R = sum(w * one for w, one in zip(weights, q, strict=True))
    c, r = np.trace(C), np.trace(R)
    G, H, V = G0 * (1 + c), write_back * H0 * (1 + r), noise * V0 * (1 + c * r)
    eta = ETA * (0.2 + 0.8 * 0.5 * (1 + np.cos(np.pi * T0 / 4)))
    out = []
    for x, A in zip(lam, rows, strict=True):
        small, moves, full = T @ A[:P], np.zeros_like(A), np.eye(len(A))
        full[:P, :P] = T
        spread = np.zeros((len(A), len(A)))
        for i, row in enumerate(MOVED):
            gradient = sum((x * G[i, j] + H[i, j]) * small[j] for j in range(P))
            if friction:
                moves[row] = -eta * A[P + i] - DECAY * A[row]
                moves[P + i] = gradient - friction * A[P + i]
            else:
                moves[row] = -eta / (1 - momentum) * gradient - DECAY * A[row]
            for j, other in enumerate(MOVED):
                if friction:
                    spread[P + i, P + j] = x * V[i, j] / BATCH
                else:
                    spread[row, other] = x * (eta / (1 - momentum)) ** 2 * V[i, j] / BATCH
        half = full @ moves @ A.T @ full.T
        out.append(half + half.T + spread)
    return np.array(out)


@pytest.mark.parametrize(
    "given",
    [{}, {"momentum": 0.6}, {"friction": 0.9}, {"noise": 0.0, "momentum": 0.5}, {"write_back": 0.0}],
    ids=["plain", "momentum", "friction", "no noise", "no write-back"],
)
@pytest.mark.parametrize("modes", [1, 3])
def test_mean_field_moves_every_row_of_every_mode(modes, given):
    lam = np.array([2.5]) if modes == 1 else np.array([3.0, 1.0, 0.4])
    weights = np.array([0.4]) if modes == 1 else np.array([0.1, 0.3, 1.0])
    rows = RNG.normal(size=(modes, P, 9)) / 3
    system = build(lam, weights, rows @ rows.swapaxes(1, 2), **given)
    y = np.asarray(system.initial_state())
    if "friction" in given:  # velocities that already move
        rows = np.concatenate([rows, RNG.normal(size=(modes, 2, 9)) / 3], axis=1)
        basis = np.asarray(system._basis())
        y = np.broadcast_to(basis @ rows @ rows.swapaxes(1, 2) @ basis.T, y.shape)
    expected = flow_of_rows(lam, weights, rows, **given)
    np.testing.assert_allclose(system.vector_field(T0, jnp.asarray(y))[1], expected, rtol=1e-11, atol=1e-12)
    # ... and in the form that the structure-preserving solver reads.
    C, R = system.couple(jnp.asarray(y[0]))
    M1, M0, N = (np.asarray(x) for x in system.member(0).drift(T0, C, R))
    half = [(x * M1 + M0) @ one for x, one in zip(lam, y[0], strict=True)]
    drifted = np.array([one + one.T + x * N for x, one in zip(lam, half, strict=True)])
    np.testing.assert_allclose(drifted, expected, rtol=1e-11, atol=1e-12)


def test_attention_moves_every_mode_by_its_closure():
    """dq_k/dt and (M1, M0, N) of three modes from the closure by automatic differentiation: eta s(t), batch, decay, noise."""
    architecture = build_architecture(1, value="rows")
    size = architecture.size
    lam, weights = np.array([3.0, 1.0, 0.4]), np.array([0.1, 0.3, 1.0])
    q = np.stack([np.asarray(random_overlaps(jax.random.key(i), size)) for i in range(3)])
    system = Attention(
        architecture, jnp.asarray(q), jnp.asarray(ETA), jnp.asarray(BATCH), jnp.asarray(DECAY), jnp.asarray(0.7),
        jnp.asarray(lam), jnp.asarray(weights), 50.0, SCHEDULE,
    )  # fmt: skip
    C = sum(w * x * one for w, x, one in zip(weights, lam, q, strict=True))
    R = sum(w * one for w, one in zip(weights, q, strict=True))
    G, H, V = (np.asarray(x) for x in eqx.filter_jit(oracle_closure)(jnp.asarray(C), jnp.asarray(R), architecture))
    eta = ETA * (0.2 + 0.8 * 0.5 * (1 + np.cos(np.pi * T0 / 4)))
    S = np.diag(architecture.trained_mask.astype(float))
    expected = []
    for x, one in zip(lam, q, strict=True):
        half = -(eta * (x * G + H) + DECAY * S) @ one
        expected.append(half + half.T + 0.7 * eta**2 / BATCH * x * V)
    field, drift = (eqx.filter_jit(f) for f in (system.vector_field, system.drift))
    moved = system.to_overlaps(field(T0, system.initial_state()))
    np.testing.assert_allclose(moved, expected, rtol=1e-10, atol=1e-12)
    M1, M0, N = (np.asarray(x) for x in drift(T0, *system.couple(system.initial_overlaps)))
    np.testing.assert_allclose(M1, -eta * G, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(M0, -eta * H - DECAY * S, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(N, 0.7 * eta**2 / BATCH * V, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("normed", ["student", "teacher"])
def test_norms_of_correlated_tokens_enter_student_and_teacher(normed):
    """h = x_T + mean of x, divided by its norm as d -> infinity, n^2 = m rho m: the loss in closed form.

    f = r.h/n and f* = r*.x_T have variances C_ss, C_tt and covariance C_st (m rho)_T/n.
    """
    rho = np.array([[1.0, 0.7], [0.7, 1.0]])
    m = np.array([0.5, 1.5])
    blocks = (SelfAttention((HeadRows(None, None),)), RMSNorm())
    networks = {
        name: RowNetwork(("r",), blocks if name == normed else (), QueryToken(("r",)))
        for name in ("student", "teacher")
    }
    problem = teacher_student(networks["student"], networks["teacher"], tokens=2, correlation=0.7)
    system = mean_field(problem, nodes=gauss_hermite_nodes(4, 6))
    C = np.array([[0.8, 0.3], [0.3, 1.1]])
    expected = 0.5 * (0.8 + 1.1 - 2 * 0.3 * (rho @ m)[1] / (m @ rho @ m) ** 0.5)
    assert float(system.population_loss(jnp.asarray(C), jnp.asarray(C))[1]) == pytest.approx(expected, rel=1e-6)


def test_starts_have_the_cosines_that_are_said():
    """Key and output rows at cosine .8 with the mean readout, values with their key, students with their teacher."""
    architecture = build_architecture(1, value="rows", outputs=2)
    C = np.asarray(teacher_student_overlaps(architecture, strength=0.6, alignment=0.4, scale=1.5))[0]
    names = list(architecture.rows)

    def cosine(a, b):
        return float(a @ C @ b / np.sqrt((a @ C @ a) * (b @ C @ b)))

    of = {name: np.eye(len(names))[names.index(name)] for name in names}
    student, teacher = names[: len(names) // 2], names[len(names) // 2 :]
    q, k, v, o, first, second = (of[name] for name in teacher)
    mean = first + second
    assert cosine(k, mean) == pytest.approx(0.8) and cosine(o, mean) == pytest.approx(0.8)
    assert cosine(v, k) == pytest.approx(0.8) and cosine(q, k) == cosine(q, mean) == cosine(first, second) == 0.0
    for row in (q, k, v, o):
        assert row @ C @ row == pytest.approx(0.6)
    assert first @ C @ first == second @ C @ second == pytest.approx(1.0)
    for name, star in zip(student, teacher, strict=True):
        assert cosine(of[name], of[star]) == pytest.approx(0.4)
        assert of[name] @ C @ of[name] == pytest.approx(1.5**2 * (of[star] @ C @ of[star]))
