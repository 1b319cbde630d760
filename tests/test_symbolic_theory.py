"""Theories of one's own from a sample loss: against the known streaming-SGD theory, Saad & Solla, and samples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy
from sympy import erf, pi, sqrt, symbols

from odescale import InputError
from odescale.symbolic import module_source, overlap_theory, run_checks

u, v = symbols("u v")
u1, u2 = symbols("u1 u2")
eta, B, w = (sympy.Symbol(n, positive=True) for n in ("eta", "B", "w"))
Q, T = sympy.Symbol("C_uu", positive=True), sympy.Symbol("C_vv", positive=True)
R = sympy.Symbol("C_uv", real=True)
LOSSES = {
    "linear": ((u - v) ** 2 / 2, [u], [v]),
    "phase retrieval": ((u**2 - v**2) ** 2 / 8, [u], [v]),
    "erf perceptron": ((erf(u / sqrt(2)) - erf(v / sqrt(2))) ** 2 / 2, [u], [v]),
    "quadratic pair": ((u1 * u2 - v) ** 2 / 2, [u1, u2], [v]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_expectations_against_samples(name):
    loss, students, teachers = LOSSES[name]
    results = run_checks(overlap_theory(loss, students, teachers).derivation)
    assert results and all(result.passed for result in results.values()), results


def test_linear_student_is_streaming_sgd():
    """Excess mode rho = C_uu - 2 C_uv + C_vv: d rho/dt = -2 eta rho + (eta^2/B) rho, the leading order of the recursion."""
    theory = overlap_theory((u - v) ** 2 / 2, [u], [v], weight_decay=False)
    flow = theory.isotropic_flow()
    rho = Q - 2 * R + T
    slope = flow[0, 0] - 2 * flow[0, 1] + flow[1, 1]
    assert sympy.expand(slope - (-2 * eta + eta**2 / B) * rho) == 0


def test_linear_student_on_a_spectrum_follows_the_exact_recursion():
    """Against rho_k(r+1) = [1 - 2 e lam + e^2 (1+1/B) lam^2] rho + (e^2/B) lam P with a small step e = eta/N."""
    theory = overlap_theory((u - v) ** 2 / 2, [u], [v], weight_decay=False)
    scope: dict = {}
    exec(module_source(theory.derivation), scope)
    lam = np.array([0.2, 1.0, 1.8])
    eta_, batch, N = 0.4, 2.0, 4000.0  # each eigenvalue has N/3 modes, so that the trace is N
    q = np.stack([np.array([[1.0 + k, 0.1], [0.1, 0.5]]) for k in range(3)])
    rho = np.array([m[0, 0] - 2 * m[0, 1] + m[1, 1] for m in q])
    state = jnp.asarray(q)

    @jax.jit
    def step(state):
        C = jnp.einsum("k,kij->ij", jnp.asarray(lam) / 3, state)
        G, V = scope["closure"](C)
        return state + scope["overlap_flow"](state, jnp.asarray(lam), G, V, eta_, batch, 0.0) / N

    for _ in range(200):
        P = float(np.sum(lam * rho) / 3)
        e = eta_ / N
        rho = (1 - 2 * e * lam + e**2 * (1 + 1 / batch) * lam**2) * rho + eta_**2 / N / batch * lam * P
        state = step(state)
    got = np.asarray(state[:, 0, 0] - 2 * state[:, 0, 1] + state[:, 1, 1])
    assert np.max(np.abs(got / rho - 1)) < 1e-4
    assert np.max(np.abs(rho / np.array([1.3, 2.3, 3.3]) - 1)) > 0.02


def test_erf_perceptron_is_saad_and_solla():
    """dR/dt and dQ/dt of Saad & Solla 1995 / Biehl & Schwarze 1995 for one unit, g(x) = erf(x/sqrt 2)."""
    theory = overlap_theory(*LOSSES["erf perceptron"], weight_decay=False)
    flow = theory.isotropic_flow()
    numbers = {Q: 0.6, R: 0.35, T: 1, eta: 0.8, B: 1}
    r, q = 0.35, 0.6
    drift_r = 0.8 * 2 / np.pi / (1 + q) * ((1 + q - r**2) / np.sqrt(2 * (1 + q) - r**2) - r / np.sqrt(1 + 2 * q))
    drift_q = 2 * 0.8 * 2 / np.pi / (1 + q) * (r / np.sqrt(2 * (1 + q) - r**2) - q / np.sqrt(1 + 2 * q))
    noise = (
        0.8**2 * 4 / np.pi**2 / np.sqrt(1 + 2 * q)
        * (np.arcsin(q / (1 + 3 * q)) + np.arcsin((1 + 2 * (q - r**2)) / (2 * (1 + 2 * q - r**2)))
           - 2 * np.arcsin(r / (np.sqrt(1 + 3 * q) * np.sqrt(2 * (1 + 2 * q - r**2)))))
    )  # fmt: skip
    assert float(flow[0, 1].subs(numbers)) == pytest.approx(drift_r, rel=1e-12)
    assert float(flow[0, 0].subs(numbers)) == pytest.approx(drift_q + noise, rel=1e-12)
    generalisation = (
        sympy.asin(Q / (1 + Q)) + sympy.asin(T / (1 + T)) - 2 * sympy.asin(R / sqrt((1 + Q) * (1 + T)))
    ) / pi
    assert float((theory.loss - generalisation).subs(numbers)) == pytest.approx(0, abs=1e-14)


def test_generated_code_is_the_symbolic_form():
    theory = overlap_theory(*LOSSES["erf perceptron"])
    scope: dict = {}
    exec(module_source(theory.derivation), scope)
    C = jnp.asarray([[0.6, 0.35], [0.35, 1.1]])
    numbers = {Q: 0.6, R: 0.35, T: 1.1, eta: 0.8, B: 4, w: 0.1}
    G, V = scope["closure"](C)
    flow = scope["overlap_flow"](C[None], jnp.ones(1), G, V, 0.8, 4.0, 0.1)[0]
    expected = np.array(theory.isotropic_flow().subs(numbers).tolist(), dtype=float)
    assert np.max(np.abs(np.asarray(flow) - expected)) < 1e-14
    assert float(scope["population_loss"](C)) == pytest.approx(float(theory.loss.subs(numbers)), rel=1e-13)


def test_phase_retrieval_against_simulated_sgd():
    """One unit of t of SGD at N = 400, mean of 48 runs, against the ODE."""
    theory = overlap_theory(*LOSSES["phase retrieval"], weight_decay=False)
    scope: dict = {}
    exec(module_source(theory.derivation), scope)
    N, runs, rate, steps = 400, 48, 0.3, 400
    start = np.array([[0.4, 0.5], [0.5, 1.0]])
    rng = np.random.default_rng(0)
    frame = np.linalg.qr(rng.standard_normal((N, 2)))[0].T * np.sqrt(N)
    W, teacher = np.linalg.cholesky(start[::-1, ::-1])[::-1, ::-1] @ frame
    W = np.repeat(W[None], runs, 0)
    for _ in range(steps):
        x = rng.standard_normal((runs, N))
        a, b = np.sum(W * x, 1) / np.sqrt(N), x @ teacher / np.sqrt(N)
        W = W - rate * ((a**2 - b**2) * a / 2)[:, None] * x / np.sqrt(N)
    measured = np.stack([np.sum(W * W, 1) / N, W @ teacher / N], 1)

    @jax.jit
    def euler(C, _):
        G, V = scope["closure"](C)
        return C + scope["overlap_flow"](C[None], jnp.ones(1), G, V, rate, 1.0, 0.0)[0] / 2000, None

    C, _ = jax.lax.scan(euler, jnp.asarray(start), None, length=2000)
    error = measured.std(0, ddof=1) / np.sqrt(runs)
    assert np.all(np.abs(measured.mean(0) - np.asarray(C[0])) < 4 * error + 2 / N)
    assert abs(float(C[0, 1]) - 0.5) > 10 * error[1]


def test_assumptions_and_refusals():
    loss, students, teachers = LOSSES["linear"]
    plain = module_source(overlap_theory(loss, students, teachers).derivation)
    assert module_source(overlap_theory(loss, students, teachers, noise=False).derivation) != plain
    assert "weight_decay *" not in module_source(
        overlap_theory(loss, students, teachers, weight_decay=False).derivation
    )
    with pytest.raises(InputError, match="tanh"):
        overlap_theory((sympy.tanh(u) - v) ** 2, [u], [v])
    with pytest.raises(InputError, match="distinct"):
        overlap_theory(loss, [u], [u])
