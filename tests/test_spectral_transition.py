"""The transition from exponential to power law on the spectral system: a gap in the spectrum, then a power law.

20 modes with lam = 1 share the risk 1, and lam_j = j^-1.5 has the risk 1e-3 j^-2.1; eta = .02, B = 8. In intrinsic time.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from odescale.analysis.phases.curves import find_transition_curve
from odescale.analysis.phases.transition import find_transition, transition_gradient
from odescale.solve.spectral.exact import constant_rate
from odescale.systems.spectral import Spectral, spectral

ETA = 0.02
RANKS = np.arange(1, 381)
LAM = np.concatenate([np.ones(20), RANKS**-1.5])
RISK = np.concatenate([np.full(20, 0.05), 1e-3 * RANKS**-2.1])


def gap(rate: float = ETA) -> Spectral:
    return spectral(eigenvalues=LAM, excess=RISK / LAM, learning_rate=rate, batch=8.0)


def crossing(system: Spectral, discrete: bool, between: tuple[float, float] = (2.5 / ETA, 4.0 / ETA)) -> float:
    """The step where q = 1/2 by the eigenmodes, E(r) = sum c exp(-mu r): q = 1 + r E''/E' - r E'/E."""
    modes = constant_rate(system, discrete=discrete)

    def off(r: float) -> float:
        e = modes.amplitudes * np.exp(modes.rates * r)
        first, second = e @ modes.rates, e @ modes.rates**2
        return 0.5 + r * second / first - r * first / e.sum()

    return float(brentq(off, *between, xtol=1e-12))


@pytest.fixture(scope="module")
def found():
    return find_transition(gap(), 3e4)


@pytest.fixture(scope="module")
def runs():
    """(steps, risk (64, n)) of 64 runs at B = 8, by a loop of their own: the counts below are those of these numbers."""
    steps = np.unique(np.round(np.geomspace(5, 5000, 60))).astype(int)
    key, target = jax.random.key(0, impl="threefry2x32"), jnp.sqrt(RISK / LAM)

    def one(r, theta):
        x = jax.random.normal(jax.random.split(jax.random.fold_in(key, r))[0], (64, 8, LAM.size), jnp.float32)
        x = x * jnp.sqrt(jnp.asarray(LAM))
        residual = jnp.einsum("sbk,sk->sb", x, theta) - x @ target
        return theta - ETA * jnp.einsum("sbk,sb->sk", x, residual) / 8

    def until(carry, step):
        theta = jax.lax.fori_loop(carry[0], step, one, carry[1])
        return (step, theta), jnp.sum(LAM * (theta - target) ** 2, axis=1)

    start = (jnp.zeros((), int), jnp.zeros((64, LAM.size)))
    risk = jax.jit(lambda at: jax.lax.scan(until, start, at)[1])(jnp.asarray(steps))
    return steps, np.asarray(risk).T


@pytest.mark.slow
def test_event_is_the_crossing_of_the_eigenmodes(found) -> None:
    assert found.found and found.t_x == pytest.approx(crossing(gap(), discrete=False), rel=1e-6)
    assert found.t_x * ETA == pytest.approx(3.06088, abs=5e-6)
    assert crossing(gap(), discrete=True) * ETA == pytest.approx(3.0606, abs=5e-5)
    assert [phase.kind for phase in found.phases.counted()] == ["exponential", "power law"]


@pytest.mark.slow
def test_event_on_a_small_gap() -> None:
    """The same spectrum, 60 modes of it, through the rank-one solver: an event, not a reading from the grid."""
    kept = np.r_[:10, 20:70]
    lam, risk = LAM[kept], RISK[kept] * np.where(kept < 20, 2.0, 1.0)
    system = spectral(eigenvalues=lam, excess=risk / lam, learning_rate=ETA, batch=8.0)
    small = find_transition(system, 3e3)
    assert small.found and "event" in small.estimator
    assert small.t_x == pytest.approx(crossing(system, discrete=False), rel=1e-8)


@pytest.mark.slow
def test_golden_problem_is_the_reverse_a_power_law_with_a_cut_off() -> None:
    """lam_j = j^-1.5, rho_j(0) = j^-0.5, d = 1024, B = 1: a power law from the first steps on, until the last mode is learned."""
    system = spectral(learning_rate=0.5 / np.sum(np.arange(1, 1025) ** -1.5))
    golden = find_transition(system, 1e6)
    assert not golden.found and golden.name == "power law, then exponential cut-off"
    cutoff = golden.finite_size_cutoff
    assert cutoff is not None and cutoff == pytest.approx(crossing(system, False, (3e4, 1e5)), rel=1e-5)
    (plateau,) = golden.phases.counted("power law")
    # The local exponent on the plateau is near 2/3 (a - 1)/b; at the cut-off it has left it, and the modes' own time is reached.
    assert plateau.exponent == pytest.approx(0.69, abs=0.04)
    slowest = float(2 * system.learning_rate * system.eigenvalues[-1])
    assert 0.3 < cutoff * slowest < 3


@pytest.mark.slow
def test_gradient_is_the_finite_difference(found) -> None:
    gradient = transition_gradient(gap(), found)
    assert isinstance(gradient, Spectral)
    h = 1e-4 * ETA
    slope = (crossing(gap(ETA + h), False) - crossing(gap(ETA - h), False)) / (2 * h)
    assert float(gradient.learning_rate) == pytest.approx(slope, rel=1e-5)
    parts = []
    for sign in (1, -1):
        start = gap().start.at[25].multiply(1 + sign * 1e-3)
        parts.append(crossing(eqx.tree_at(lambda s: s.start, gap(), start), False))
    change = 2e-3 * float(gap().start[25])
    assert float(gradient.start[25]) == pytest.approx((parts[0] - parts[1]) / change, rel=1e-5)


@pytest.mark.slow
def test_mean_of_runs(runs) -> None:
    """64 runs, and eight means of 8: within 3 and 8 % of the exact recursion; where a claim is made its interval is not far off.

    The curve is none of the models (20 equal modes and a power law of modes), so that the intervals are not those of a true
    model: of the eight at least five hold the crossing of the eigenmodes, six did when this was written.
    """
    steps, risk = runs
    whole = find_transition_curve(steps * ETA, risk)
    assert whole.found and whole.established and whole.t_x == pytest.approx(3.0606, rel=0.03)
    parts = [find_transition_curve(steps * ETA, risk[i : i + 8]) for i in range(0, 64, 8)]
    claimed = [one for one in parts if one.found]
    assert len(claimed) >= 6 and all(one.t_x == pytest.approx(3.0606, rel=0.08) for one in claimed)
    assert sum(one.interval[0] < 3.0606 < one.interval[1] for one in claimed) >= 5


@pytest.mark.slow
def test_single_runs_claim_only_what_they_show(runs) -> None:
    """Along an exponential log L of one run is a random walk: half of the single runs "cannot be told apart", none
    is another shape.
    """
    steps, risk = runs
    found = [find_transition_curve(steps * ETA, row) for row in risk[:32]]
    assert {one.name for one in found} <= {"exponential, then power law", "cannot be told apart"}
    claimed = [one for one in found if one.found]
    assert claimed and all("scatter between seeds" in one.caveat for one in claimed)
    assert np.median([abs(one.t_x / 3.0606 - 1) for one in claimed]) < 0.06


@pytest.mark.slow
def test_no_exponential_phase() -> None:
    """A pure power law, a constant, an increasing curve, noise: answered, never a number."""
    t = np.geomspace(0.1, 100, 60)
    rng = np.random.default_rng(0)
    curves = {
        "power law": (1 + t) ** -0.7 * np.exp(0.02 * rng.standard_normal(t.size)),
        "constant": np.ones(t.size),
        "increasing": 1 + 0.1 * t,
        "noise": np.exp(0.3 * rng.standard_normal(t.size)),
    }
    for name, curve in curves.items():
        found = find_transition_curve(t, curve)
        assert not found.found and found.t_x is None and "no exponential" in found.reason, (name, found.reason)
    flat = spectral(modes=60, spectrum_exponent=1.5, risk_exponent=1.8, learning_rate=0.05, batch=8.0)
    assert not find_transition(flat, 1e3).found
    assert jnp.isfinite(flat.kappa())
