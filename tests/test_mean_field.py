"""The mean-field system: limits that are known exactly, conservation of structure, refusals."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from engine_cases import erf_units, in_differences, linear, one_layer, random_gram, two_layers, write_back
from oracles import oracle_closure
from spectral_recursion import excess_risk

from odescale import InputError, aligned_overlaps, integrate, mean_field, teacher_student
from odescale.expectations.automatic import node_dimension, quadrature
from odescale.expectations.closure import factor
from odescale.expectations.nodes import gauss_hermite_nodes, sobol_nodes
from odescale.networks import MLP, QueryToken, RowNetwork, build_architecture, transformer_network
from odescale.optimizers import Adam
from odescale.schedules import parse_schedule
from odescale.spectra import listed, power_law

LINEAR = gauss_hermite_nodes(2, 4)  # exact: everything is quadratic


def start_of_modes(spectrum, profile):
    """(modes, 2, 2): teacher of squared entries `profile`, student at zero."""
    q = np.zeros((spectrum.modes, 2, 2))
    q[:, 1, 1] = profile
    return q


@pytest.mark.parametrize("batch", [1, 4])
def test_linear_student_is_the_exact_spectral_recursion_to_order_eta(batch):
    """Streaming SGD on a spectrum (exact at any d) against the ODE, whose gap is O(eta) at equal eta t.

    At batch 1 the first order cancels, 2 (1 - 1/B) = 0 (the rate is -log G/eta, see the log-rate form): the gap falls 4 times.
    """
    spectrum = power_law(1.0, 60, trace=None, per_decade=1000)
    profile = np.arange(1, 61.0) ** -0.5
    gaps = []
    for eta in (0.2, 0.1, 0.05):
        steps = np.unique(np.geomspace(30, 1500, 12).astype(int)) * round(0.4 / eta)
        system = mean_field(linear(), initial_overlaps=start_of_modes(spectrum, profile), spectrum=spectrum, nodes=LINEAR,
                            learning_rate=eta, batch=batch)  # fmt: skip
        t = np.concatenate([[0.0], steps / spectrum.trace])
        theory = integrate(system, ts=t, solver="tsit5", rtol=1e-9).loss
        lam = np.asarray(spectrum.eigenvalues) / spectrum.trace
        exact = 0.5 * excess_risk(lam, profile, eta=eta, batch=batch, steps=np.concatenate([[0], steps]))
        assert exact[0] / exact[-1] > 20
        gaps.append(np.max(np.abs(theory / exact - 1)))
    assert gaps[0] < 0.01
    np.testing.assert_allclose(np.divide(gaps[:-1], gaps[1:]), 4.0 if batch == 1 else 2.0, rtol=0.15)


def test_weight_decay_and_schedule_of_a_linear_student():
    """One mode: W = (m, rest); dm/dt = -eta s (m - 1) - w m is solved by quadrature of the integrating factor."""
    schedule = parse_schedule("cosine:6:0.2")
    system = mean_field(linear(), initial_overlaps=np.diag([0.0, 1.0]), dimension=1000, nodes=LINEAR, learning_rate=0.5,
                        weight_decay=0.3, schedule=schedule, noise=0.0)  # fmt: skip
    t = np.linspace(0, 8, 17)
    run = integrate(system, ts=t, rtol=1e-8, solver="tsit5")
    grid = np.linspace(0, 8, 80_001)
    rate = 0.5 * np.asarray(schedule(grid))
    total = np.concatenate([[0.0], np.cumsum(0.5 * (rate[1:] + rate[:-1]) * np.diff(grid))]) + 0.3 * grid
    grown = np.concatenate(
        [[0.0], np.cumsum(0.5 * ((rate * np.exp(total))[1:] + (rate * np.exp(total))[:-1]) * np.diff(grid))]
    )
    m = np.interp(t, grid, grown * np.exp(-total))
    np.testing.assert_allclose(run.overlaps[:, 0, 1], m, atol=2e-7)
    np.testing.assert_allclose(run.loss, 0.5 * (m - 1) ** 2, atol=2e-7)


def heavy_ball_recursion(d, eta, friction, batch, steps, noise_variance):
    """Exact second moments of (w - w*, u) summed over d isotropic modes, for u <- mu u + g, w <- w - (eta/d) u."""
    mu, rate = 1 - friction / d, eta / d
    ww, wu, uu = 1.0, 0.0, 0.0  # per coordinate (1/d) sum of squares, start: w* of unit length, w = 0
    out = [ww]
    for _ in range(steps):
        # g = mean over the batch of (e + noise) x/sqrt(d), e = (w - w*).x/sqrt(d)
        gg = ((1 + (d + 2 - 1) / batch) * ww / d + noise_variance / batch) / d  # E g^2 per coordinate
        gw, gu = ww / d, wu / d
        uu, wu, ww = (
            mu**2 * uu + 2 * mu * gu + gg,
            mu * wu + gw - rate * (mu**2 * uu + 2 * mu * gu + gg),
            ww - 2 * rate * (mu * wu + gw) + rate**2 * (mu**2 * uu + 2 * mu * gu + gg),
        )
        out.append(ww)
    return np.asarray(out)


def test_slow_momentum_is_the_heavy_ball_of_a_linear_student():
    """The oscillating loss of mu = 1 - gamma/d: recursion at d and 2 d approach the ODE as 1/d."""
    eta, friction, batch, sigma = 4.0, 1.0, 8, 0.3
    system = mean_field(linear(sigma), initial_overlaps=np.diag([0.0, 1.0]), dimension=1000, learning_rate=eta, batch=batch,
                        friction=friction, nodes=gauss_hermite_nodes(3, 4))  # fmt: skip
    t = np.linspace(0, 6, 25)
    theory = integrate(system, ts=t, rtol=1e-7, solver="tsit5").loss
    gaps = []
    for d in (200, 400):
        exact = 0.5 * heavy_ball_recursion(d, eta, friction, batch, 6 * d, sigma**2)[:: d // 4]
        gaps.append(exact - theory)
    assert np.max(np.abs(gaps[1])) < 0.02 * theory[0]
    limit = 2 * gaps[1] - gaps[0]  # the 1/d term removed
    assert np.max(np.abs(limit)) < 1e-4 * theory[0]
    assert np.max(np.diff(theory)) > 0.01  # it does oscillate


def test_fixed_momentum_is_plain_sgd_at_a_larger_rate():
    settings = {"initial_overlaps": np.diag([0.3, 1.0]), "nodes": LINEAR, "dimension": 500}
    one = integrate(mean_field(linear(), learning_rate=0.05, momentum=0.8, **settings), 5.0, points=20)
    two = integrate(mean_field(linear(), learning_rate=0.25, **settings), 5.0, points=20)
    np.testing.assert_allclose(one.loss, two.loss, rtol=1e-10)


@pytest.mark.parametrize("problem", [two_layers(2), write_back()])
@pytest.mark.slow
def test_modes_and_difference_rows_are_bookkeeping(problem):
    """A spectrum of equal eigenvalues in two bins is one mode; the drift by G equals the direct one."""
    C = random_gram(problem.size, scale=0.7)
    settings = {"learning_rate": 0.3, "batch": 2, "weight_decay": 0.1, "nodes": 256, "replicates": 2}
    one = mean_field(problem, initial_overlaps=C, dimension=40, **settings)
    two = mean_field(problem, initial_overlaps=np.stack([C] * 40), spectrum=listed(np.ones(40)), **settings)
    y, z = one.initial_state(), two.initial_state()
    flow = eqx.filter_jit(lambda system, y: system.vector_field(jnp.asarray(0.0), y))
    f, g = flow(one, y), flow(two, z)
    scale = float(jnp.max(jnp.abs(f)))
    for k in range(2):
        np.testing.assert_allclose(g[:, k], f[:, 0], atol=2e-7 * scale)
    np.testing.assert_allclose(one.to_overlaps(one.to_state(jnp.asarray(C))), C, atol=1e-14)
    # teacher rows stay where they are
    still = np.flatnonzero(~np.asarray(problem.trained))
    assert float(jnp.max(jnp.abs(f[0, 0][np.ix_(still, still)]))) == 0.0


def infinite_drift(C, M):
    """E of the sample drift of the infinite-context one-layer network with moments M of the query token in place of C.

    Rows q, k, r, q*, k*, r*: f = phi_r + phi_q C_kr; g on the query for r and q, on the context, averaged, for k and r.
    """
    q, k, r = 0, 1, 2
    b = np.zeros(6)
    b[r], b[q], b[5], b[3] = 1.0, C[k, r], -1.0, -C[4, 5]
    error = b @ M  # E e phi_j
    D = np.zeros((3, 6))
    D[r] = error + error[q] * C[k]
    D[q] = C[k, r] * error
    D[k] = error[q] * C[r]
    return D


@pytest.mark.slow
def test_drift_approaches_the_infinite_context_closure_as_one_over_T():
    """At three overlaps with 2 K C_qq < .4; the query's own moments are the control variate. Slope -1 +- .2 over T = 16..256."""
    architecture = build_architecture(1, 1)
    tokens = np.array([16, 32, 64, 128, 256])
    for seed in range(3):
        C = random_gram(6, seed=40 + seed, scale=1.0)
        C *= np.outer(s := np.array([0.45, 0.9, 1.0, 0.45, 0.9, 1.0]) / np.sqrt(np.diag(C)), s)
        assert max(2 * C[1, 1] * C[0, 0], 2 * C[4, 4] * C[3, 3]) < 0.4
        G, _, _ = oracle_closure(jnp.asarray(C), jnp.asarray(C), architecture)
        exact = (np.asarray(G) @ C)[:3]
        np.testing.assert_allclose(infinite_drift(C, C), exact, atol=1e-12)
        deviation, error = [], []
        for T in tokens:
            problem = one_layer(int(T))
            gaps = []
            for batch in range(4):
                nodes = sobol_nodes(node_dimension(problem), 2**13, 1, seed=10 * seed + batch)
                Y = jnp.asarray(in_differences(problem, C))
                m = quadrature(problem, nodes).moments(problem, Y, Y, 0)
                D = np.asarray(m.D) @ np.linalg.inv(problem.difference_basis()).T
                root = np.linalg.inv(problem.difference_basis()) @ np.asarray(factor(Y, problem.trained))
                query = np.asarray(nodes.points[0], float).reshape(-1, T, 6)[:, -1] @ root.T
                gaps.append(D - (infinite_drift(C, query.T @ query / len(query)) - exact) - exact)
            gaps = np.asarray(gaps)
            deviation.append(gaps.mean(axis=0))
            error.append(gaps.std(axis=0, ddof=1) / 2)
        size = np.array([np.linalg.norm(x) for x in deviation])
        noise = np.array([np.linalg.norm(x) for x in error])
        size = np.sqrt(np.maximum(size**2 - noise**2, 1e-300))
        slope = np.polyfit(np.log(tokens), np.log(size), 1)[0]
        print(f"overlaps {seed}: slope {slope:.3f}, relative error of the largest T {noise[-1] / size[-1]:.2f}")
        assert abs(slope + 1) < 0.2


@pytest.mark.slow
def test_trajectory_carries_its_error_bar():
    problem = two_layers(2)
    C = aligned_overlaps(problem, alignment=0.5, common=0.3)
    system = mean_field(problem, initial_overlaps=C, nodes=2**9, replicates=4, learning_rate=0.1)
    fine = mean_field(problem, initial_overlaps=C, nodes=2**13, replicates=4, learning_rate=0.1, seed=5)
    a, b = (integrate(s, 4.0, points=12) for s in (system, fine))
    assert a.error is not None and b.error is not None
    assert a.observables["replicate_loss"].shape == (12, 4)
    np.testing.assert_allclose(a.observables["replicate_loss"].mean(axis=1), a.loss, rtol=1e-12)
    assert 2 < np.median(a.error / b.error) < 60
    z = (a.loss - b.loss) / (np.hypot(a.error * a.loss, b.error * b.loss) / 3.18)
    assert np.sqrt(np.mean(z**2)) < 3.0


def test_gauss_hermite_error_is_the_difference_of_orders():
    problem = erf_units(units=1)
    system = mean_field(problem, initial_overlaps=np.array([[0.5, 0.2], [0.2, 1.0]]), nodes=gauss_hermite_nodes(2, 40))
    run = integrate(system, 5.0, points=10, rtol=1e-8, solver="tsit5")
    assert run.error is not None and np.max(run.error) < 1e-5


def test_aligned_overlaps_are_what_they_say():
    problem = two_layers(3)
    C = aligned_overlaps(problem, alignment=0.4, scale=0.5, lengths={"k0": 2.0}, cosines={("k0", "r"): 0.7}, common=0.1)
    names = list(problem.rows)
    k, r, ks, rs = (names.index(x) for x in ("k0", "r", "k0*", "r*"))
    np.testing.assert_allclose([C[ks, ks], C[rs, rs], C[k, k]], [2.0, 1.0, 0.5])
    np.testing.assert_allclose(C[ks, rs] / np.sqrt(2.0), 0.7)
    np.testing.assert_allclose(C[k, ks] / np.sqrt(C[k, k] * C[ks, ks]), 0.4)
    assert np.linalg.eigvalsh(C)[0] > 0


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": -1.0},
        {"batch": 0.5},
        {"momentum": 1.0},
        {"initial_overlaps": np.eye(3)},
        {"initial_overlaps": "nonsense"},
        {"nodes": 100},
        {"accuracy": 0.0, "nodes": None},
        {"closure": "guess"},
        {"schedule": "sometimes"},
        {"schedule": 3},
        {"learning_rat": 0.1},
        {"dimension": 0},
        {"memory": 10.0},
    ],
)
def test_bad_input_is_one_line(change):
    with pytest.raises(InputError) as caught:
        mean_field(linear(), **{"nodes": 64, "initial_overlaps": np.diag([0.5, 1.0]), **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"momentum": 0.5, "friction": 1.0}, {"initial_overlaps": np.ones((2, 2))},
               {"initial_overlaps": np.array([[1.0, 2.0], [2.0, 1.0]])}],
)  # fmt: skip
def test_systems_that_cannot_run_are_refused_before_compilation(change):
    system = mean_field(linear(), **{"nodes": 64, "initial_overlaps": np.diag([0.5, 1.0]), **change})
    with pytest.raises(InputError):
        integrate(system, 1.0)


@pytest.mark.parametrize("change", [{"alignment": 2.0}, {"scale": 0.0}, {"lengths": {"z": 1.0}}, {"lengths": -1.0},
                                    {"cosines": {("q0", "z"): 0.1}}, {"common": -0.9}])  # fmt: skip
def test_starts_that_do_not_fit_are_refused(change):
    with pytest.raises(InputError):
        aligned_overlaps(two_layers(2), **change)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"friction": 2.0, "learning_rate": 1.0}, marks=pytest.mark.slow),
    ],
)
def test_implicit_flows_and_an_explicit_solver_agree_on_a_spectrum(settings):
    """The engine's closure under the structure-preserving solver and under Tsit5, replicate by replicate."""
    spectrum = power_law(1.0, 40, trace=None, per_decade=4)
    problem = teacher_student(RowNetwork(("w", "u", "r"), (MLP((("w", "u"),)),), QueryToken(("r",))), tokens=1)
    C = random_gram(problem.size, seed=8, scale=0.8)
    system = mean_field(problem, initial_overlaps=C, spectrum=spectrum, nodes=128, replicates=2,
                        **{"learning_rate": 0.2, "weight_decay": 0.05, "schedule": "wsd:0.5:2:3:0.2", **settings})  # fmt: skip
    assert system.integration.solvers == ("structured",) and len(system.kinks) == 3
    t = np.array([0.0, 0.3, 1.0, 2.5, 4.0])
    implicit = integrate(system, ts=t, rtol=1e-4)
    explicit = integrate(system, ts=t, rtol=1e-8, solver="tsit5")
    assert implicit.meta["solver"] == "structured"
    np.testing.assert_allclose(
        implicit.observables["replicate_loss"], explicit.observables["replicate_loss"], rtol=1e-4
    )  # fmt: skip
    assert implicit.meta["ladder"][-1]["min_eigenvalue"] > -1e-10


def test_velocities_of_an_optimiser_are_no_divergence():
    """Their variance starts at zero and rises to N (1 - beta) V/(2 B): hundreds here, where the rows have hardly moved."""
    network = transformer_network(depth=1, heads=3, key_value_heads=1)
    problem = teacher_student(network, tokens=2)
    start = aligned_overlaps(problem, alignment=0.5, lengths={"r0": 3.0})
    options = {"nodes": 64, "dimension": 1000, "batch": 4, "optimizer": Adam(rate=0.1)}
    system = mean_field(problem, initial_overlaps=start, **options)
    theory = integrate(system, 0.1, points=3)
    assert np.abs(theory.state[-1]).max() > 100 * np.abs(start).max()
    assert 0.7 < theory.loss[-1] / theory.loss[0] < 1
