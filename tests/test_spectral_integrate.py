"""`integrate`, `sweep` and the numeric frontier on the spectral system: the rank-one solver behind the one verb."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odescale import InputError, SolveError, Spectral, integrate, logistic_pair, spectral, sweep
from odescale.cache.programs import made
from odescale.frontier import compute_optimal, frontier_exponent, numeric_frontier, truncated_modes
from odescale.linear import constant_rate
from odescale.solve.codes import Code
from odescale.solve.integrate import output_times
from odescale.systems.spectral_bins import bin_modes

T1 = 1e5
MODES = 640
"""One shape for the fast tests, so that one program serves them."""


def example(**changes) -> Spectral:
    return spectral(**({"learning_rate": 0.2, "modes": MODES, "batch": 2, "noise": 0.01} | changes))


def small(**changes) -> Spectral:
    return example(modes=32, **changes)


def eigenmodes(system: Spectral, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(L, p, q) from E(t) = sum c exp(mu t) + constant."""
    modes = constant_rate(system, discrete=False)
    e = modes.amplitudes * np.exp(np.outer(t, modes.rates))
    loss, first, second = modes(t), e @ modes.rates, e @ modes.rates**2
    return loss, -t * first / loss, 1 + t * second / first - t * first / loss


# ---------------------------------------------------------------------------------------------------------------------
# One solve
# ---------------------------------------------------------------------------------------------------------------------


def test_loss_and_exponents_are_those_of_the_eigenmodes_and_nothing_compiles_twice() -> None:
    before = made["odescale.solve.integrate:solve_arrays"]
    for changes in ({}, {"learning_rate": 0.1, "batch": 8.0, "noise": 1e-3}):
        system = example(**changes)
        curve = integrate(system, T1)
        assert curve.meta["solver"] == "rank_one" and curve.code == Code.OK and curve.valid.all()
        assert [entry["solver"] for entry in curve.meta["ladder"]] == ["rank_one"]
        loss, p, q = eigenmodes(system, curve.t[1:])
        # Where label noise has stopped the fall p vanishes, and its logarithmic derivative says nothing.
        falls = p > 1e-3
        np.testing.assert_allclose(curve.loss[1:], loss, rtol=2e-6)
        np.testing.assert_allclose(curve.exponent[1:][falls], p[falls], rtol=1e-4)
        np.testing.assert_allclose(curve.index[1:][falls], q[falls], atol=1e-3)
        checked = integrate(system, T1, accuracy="check")
        assert np.max(checked.error) < 2e-6
        np.testing.assert_allclose(checked.loss[1:], loss, rtol=2e-8)
        integrate(system, T1, rtol=1e-9)
    assert made["odescale.solve.integrate:solve_arrays"] == before + 1


def test_what_stops_early_is_masked_with_its_code() -> None:
    found = integrate(example(), T1, max_steps=40, on_failure="mask")
    assert found.code == Code.MAX_STEPS and found.valid[0] and not found.valid[-1]
    assert np.isnan(found.loss[~found.valid]).all()
    kept = found.valid & (found.t > 0)
    np.testing.assert_allclose(found.loss[kept], eigenmodes(example(), found.t[kept])[0], rtol=2e-6)
    with pytest.raises(SolveError, match="rank_one stopped after t = .* step cap"):
        integrate(example(), T1, max_steps=40)


def test_a_start_without_risk_is_lifted_by_the_noise() -> None:
    lam = np.arange(1, MODES + 1.0) ** -1.5
    system = spectral(eigenvalues=lam, excess=0 * lam, noise=0.3, learning_rate=0.2)
    curve = integrate(system, T1)
    assert curve.valid.all() and curve.loss[0] == 0 and np.isfinite(curve.exponent).all()
    np.testing.assert_allclose(curve.loss[1:], constant_rate(system, discrete=False)(curve.t[1:]), rtol=2e-6)


def test_two_points_are_the_start_and_the_end() -> None:
    assert output_times(5.0, 2).tolist() == [0.0, 5.0] and output_times(5.0, 3, t0=1.0)[-1] == 5.0


def test_other_systems_have_no_rank_one_solver() -> None:
    with pytest.raises(InputError, match="rank_one is for modes .* leave it at auto"):
        integrate(logistic_pair(), 2.0, solver="rank_one")
    with pytest.raises(InputError, match="rank_one is for modes"):
        sweep("logistic_pair", 2.0, {"aligned": np.array([0.05, 0.06])}, solver="rank_one")
    with pytest.raises(InputError, match="trace t1"):
        jax.jit(lambda t: integrate(small(), ts=jnp.stack([0 * t, t])).loss)(1.0)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["wsd:100:500:1000", "wsd:0:500:1000", "cosine:1000:0.1"])
def test_kinks_against_a_generic_solver(schedule) -> None:
    system = small(schedule=schedule)
    found, other = integrate(system, 2e3), integrate(system, 2e3, solver="kvaerno5", rtol=1e-10)
    np.testing.assert_allclose(found.loss, other.loss, rtol=2e-6)
    smooth = integrate(small(), 2e3)
    assert np.max(np.abs(found.loss / smooth.loss - 1)) > 0.01


@pytest.mark.slow
def test_single_precision() -> None:
    found = integrate(small(), T1, precision="float32")
    assert found.loss.dtype == np.float32 and found.code == Code.OK
    np.testing.assert_allclose(found.loss[1:], eigenmodes(small(), found.t[1:].astype(float))[0], rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Transformations
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gradients_and_a_traced_end() -> None:
    """dL/d eta, dL/d lam_3, dL/dt and a batch of times, against the eigenmodes."""
    system, t = small(), 1e3

    def exact(eta=0.2, shift=0.0, at=t) -> float:
        own = eqx.tree_at(lambda s: s.eigenvalues, small(learning_rate=eta), small().eigenvalues.at[3].add(shift))
        return float(constant_rate(own, discrete=False)(np.array([at]))[0])

    @eqx.filter_jit
    def risk(system, t):
        return integrate(system, t, points=2).loss[-1]

    assert float(risk(system, jnp.asarray(t))) == pytest.approx(exact(), rel=2e-6)
    gradient = eqx.filter_grad(lambda s: risk(s, jnp.asarray(t)))(system)
    h = 1e-4
    assert float(gradient.learning_rate) == pytest.approx((exact(0.2 + h) - exact(0.2 - h)) / (2 * h), rel=1e-5)
    assert float(gradient.eigenvalues[3]) == pytest.approx((exact(shift=h) - exact(shift=-h)) / (2 * h), rel=1e-5)
    assert float(jax.grad(lambda t: risk(system, t))(t)) == pytest.approx(
        (exact(at=t + 1) - exact(at=t - 1)) / 2, rel=1e-5
    )
    several = jax.vmap(lambda t: risk(system, t))(jnp.asarray([10.0, 1e3]))
    np.testing.assert_allclose(several, [exact(at=10.0), exact()], rtol=2e-6)


@pytest.mark.slow
def test_sweeps() -> None:
    rates = np.linspace(0.05, 0.2, 5)
    found = sweep("spectral", T1, {"learning_rate": rates, "noise": np.full(5, 0.01)}, modes=32, batch=2)
    assert found.meta["solver"] == "rank_one" and (found.code == Code.OK).all()
    for eta, row in zip(rates, found.loss, strict=True):
        np.testing.assert_allclose(row[1:], eigenmodes(small(learning_rate=eta), found.t[1:])[0], rtol=2e-6)
    found = sweep("spectral", 1e3, {"spectrum_exponent": np.array([1.2, 1.5])}, modes=32)
    expected = constant_rate(spectral(modes=32, spectrum_exponent=1.2), discrete=False)(found.t)
    np.testing.assert_allclose(found.loss[0], expected, rtol=2e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Power laws in time and in compute
# ---------------------------------------------------------------------------------------------------------------------


def flow(a: float, b: float, modes: int = 1_000_000, eta: float = 0.1) -> Spectral:
    """Gradient flow of a power law of a million modes in bins, filled up with modes without risk to one shape."""
    j = np.arange(1.0, modes + 1)
    lam, start, squares = bin_modes(j**-b, j**-a, per_decade=10)
    columns = [np.pad(x, (0, MODES - x.size), constant_values=c) for x, c in ((lam, 1.0), (start, 0.0), (squares, 0.0))]
    return Spectral(*(jnp.asarray(x) for x in columns), *(jnp.asarray(x) for x in (eta, jnp.inf, 0.0, 0.0)))


def test_time_exponents_of_gradient_flow() -> None:
    """(a-1)/b within .005 at 2 eta t from 20 to 200: past the first mode, far from the last one."""
    for a, b in ((2.0, 1.5), (1.6, 1.2)):
        curve = integrate(flow(a, b), 1000.0)
        inside = curve.t > 100
        t = curve.t[inside]
        assert t.size > 40
        np.testing.assert_allclose(curve.exponent[inside], (a - 1) / b, atol=5e-3)
        # and the prefactor: L = Gamma((a-1)/b)/b (2 eta t)^-((a-1)/b), less the modes beyond the last
        p = (a - 1) / b
        expected = np.exp(jax.scipy.special.gammaln(p)) / b * (0.2 * t) ** -p - 1_000_000.5 ** (1 - a) / (a - 1)
        np.testing.assert_allclose(curve.loss[inside], expected, rtol=5e-3)


class FlowRisk(eqx.Module):
    """Gradient flow on the first N modes of j^-b, j^-a by `integrate`, plus what the others hold; time is 1/eta steps.

    The first 32 modes are themselves, the others Gauss nodes between 32.5 and N + 1/2 in log j.
    """

    a: jax.Array
    b: jax.Array

    def __call__(self, width, time):
        first = jnp.arange(1.0, 33)
        x, w = np.polynomial.legendre.leggauss(24)
        span = jnp.log((width + 0.5) / 32.5)
        nodes = 32.5 * jnp.exp(span * (x + 1) / 2)
        j, share = jnp.concatenate([first, nodes]), jnp.concatenate([jnp.ones(32), w * span / 2 * nodes])
        system = spectral(
            eigenvalues=j**-self.b, excess=share * j ** (self.b - self.a), learning_rate=ETA, batch=jnp.inf
        )
        left = (width + 0.5) ** (1 - self.a) / (self.a - 1)
        return integrate(system, time / ETA, points=2, rtol=1e-4, atol=1e-9).loss[-1] + left


ETA = 0.01


@pytest.mark.slow
def test_numeric_frontier_of_a_system() -> None:
    """Through `integrate` as through the closed form: 1e-4 in risk, and (a-1)/(b+1) within .005."""
    a, b = 1.6, 1.3
    C = np.geomspace(1e7, 1e10, 5)
    box, cost = {"width": (200.0, 1e5), "time": (10.0, 1e8)}, {"width": 1.0, "time": 1.0}
    closed = numeric_frontier(truncated_modes(a, b), C, box, cost)
    found = numeric_frontier(FlowRisk(jnp.asarray(a), jnp.asarray(b)), C, box, cost, rounds=12, smooth=False)
    assert bool(found.valid.all()) and not bool(found.held.any())
    np.testing.assert_allclose(found.risk, closed.risk, rtol=1e-4)
    measured = frontier_exponent(C, found.risk)
    assert measured.exponent == pytest.approx(compute_optimal(a, b).exponent, abs=5e-3)
