"""The closed-form frontier: against Lagrange systems solved in 40 digits, brute force on R and C, and published numbers."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.special import lambertw

from derivations.frontier.checks import zoom
from odescale import InputError, OutsideTheoryError
from odescale.analysis.frontier.compute import local_exponent
from odescale.analysis.frontier.lambert import lambert_lower, lambert_upper, solve_balance
from odescale.frontier import compute_frontier, critical_compute, risk_law, tied_frontier, yang_v1, yang_v3

EXAMPLE = {"decay": 50.0, "rate": 0.8, "time_cost": 1.0, "floors": (100.0, 1000.0)}


def example(**changes):
    return risk_law((1.0, 1.0), (0.5, 0.5), (2.0, 1.0), **{**EXAMPLE, **changes})


def no_floors(q_t=1.0):
    return risk_law((1.3, 0.7), (0.45, 0.6), (2.0, 1.0), decay=50.0, rate=0.8, time_cost=q_t, unit=6.0)


def brute(law, C, lower, upper):
    """Least risk over two log sizes in a box by zooming grids; the time takes what is left. Knows R and C alone."""
    q, q_t, c = np.asarray(law.costs), float(law.time_cost), float(law.unit)
    A, alpha = np.asarray(law.amplitudes), np.asarray(law.exponents)

    def risk(X):
        u = (np.log(C / c) - X @ q) / q_t
        return (A * np.exp(-alpha * X)).sum(-1) + float(law.decay) * np.exp(-float(law.rate) * np.exp(u))

    X, R = zoom(risk, np.log(lower), np.log(upper))
    return np.exp(X), R


# ---------------------------------------------------------------------------------------------------------------------
# Lambert's function
# ---------------------------------------------------------------------------------------------------------------------


def test_lambert_against_scipy():
    r = np.concatenate([[1 + 1e-3, 1.01], np.linspace(1.1, 600, 60)])
    np.testing.assert_allclose(lambert_lower(r), -lambertw(-np.exp(-r), -1).real, rtol=1e-12)
    s = np.linspace(-40, 600, 80)
    np.testing.assert_allclose(lambert_upper(s), lambertw(np.exp(s)).real, rtol=1e-13)
    assert np.isnan(lambert_lower(0.999)) and float(lambert_lower(1.0)) == 1.0
    # Next to the branch point, where -W_-1 loses half its digits in any formula through e^-r.
    y = 1 + 1e-6
    r = float(mpmath.mpf(1) + mpmath.mpf(1e-6) - mpmath.log1p(mpmath.mpf(1e-6)))
    assert float(lambert_lower(r)) == pytest.approx(y, abs=1e-9)


@pytest.mark.parametrize(
    "s, k, r", [(2.0, -3.0, 4.0), (2.0, 3.0, 4.0), (2.0, 0.0, 4.0), (0.0, 2.0, 4.0), (5.0, -1e-9, 4.0)]
)
def test_balance_is_solved_at_its_larger_root(s, k, r):
    t = float(solve_balance(s, k, r))
    assert s * t + k * np.log(t) == pytest.approx(r, rel=1e-14)
    assert s * t + k > 0  # grows there
    if s:
        slope = jax.grad(lambda x: solve_balance(s, k, x))(r)
        assert float(slope) == pytest.approx(t / (s * t + k), rel=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Without floors
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [yang_v1(), yang_v1(amplitudes=(20.0, 0.3), unit=6.0)])
def test_power_laws_against_brute_force_and_the_product_formula(law):
    C = np.geomspace(1e4, 1e15, 5)
    found = compute_frontier(law, C)
    A, alpha, q, c = (np.asarray(v) for v in (law.amplitudes, law.exponents, law.costs, law.unit))
    S = (q / alpha).sum()
    written_out = S * np.prod((A * alpha / q) ** (q / (alpha * S))) * (C / c) ** (-1 / S)
    np.testing.assert_allclose(found.risk, written_out, rtol=1e-13)
    for compute, R in zip(C, found.risk, strict=True):

        def risk(X, compute=compute):
            data = (np.log(compute / c) - q[0] * X[:, 0]) / q[1]
            return A[0] * np.exp(-alpha[0] * X[:, 0]) + A[1] * np.exp(-alpha[1] * data)

        _, least = zoom(risk, [-20.0], [np.log(compute / c) / q[0] + 20])
        assert float(R) == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("q_t", [0.5, 1.0, 8.0])  # S = 6.1: both signs of q_t - S
def test_exponential_time_against_the_lagrange_system_in_40_digits(q_t):
    law = no_floors(q_t)
    C = np.geomspace(1e8, 1e22, 4)
    found = compute_frontier(law, C)
    assert bool(found.valid.all()) and not bool(found.held.any())
    for i, compute in enumerate(C):
        with mpmath.workdps(40):
            A, a, q = ([mpmath.mpf(float(v)) for v in row] for row in (law.amplitudes, law.exponents, law.costs))
            D, lam, qt, b = *map(mpmath.mpf, (50.0, float(law.rate), q_t)), mpmath.log(mpmath.mpf(compute) / 6)

            def system(x, y, u, log_mu, A=A, a=a, q=q, D=D, lam=lam, qt=qt, b=b):
                t = mpmath.exp(u)
                return [
                    mpmath.log(a[0] * A[0] / q[0]) - a[0] * x - log_mu, mpmath.log(a[1] * A[1] / q[1]) - a[1] * y - log_mu,
                    mpmath.log(lam * D / qt) + u - lam * t - log_mu, q[0] * x + q[1] * y + qt * u - b,
                ]  # fmt: skip

            start = [float(jnp.log(v)) + 1e-3 for v in (*found.sizes[i], found.time[i], found.multiplier[i])]
            x, y, u, log_mu = mpmath.findroot(system, start)
            t = mpmath.exp(u)
            R = A[0] * mpmath.exp(-a[0] * x) + A[1] * mpmath.exp(-a[1] * y) + D * mpmath.exp(-lam * t)
            p = mpmath.exp(log_mu) / R
        got = [*found.sizes[i], found.time[i], found.multiplier[i], found.risk[i], found.exponent[i]]
        np.testing.assert_allclose(np.array(got, float), [float(v) for v in (
            mpmath.exp(x), mpmath.exp(y), t, mpmath.exp(log_mu), R, p)], rtol=1e-11)  # fmt: skip


def test_exponential_time_against_brute_force():
    law = no_floors()
    for C in (1e8, 1e12, 1e18):
        found = compute_frontier(law, [C])
        x = np.asarray(found.sizes)[0]
        _, R = brute(law, C, x / 20, x * np.array([1.5, 1.5]))
        assert float(found.risk[0]) == pytest.approx(R, rel=1e-12)


def test_local_exponent_is_the_slope_of_brute_force():
    """1/(S + q_t/(lam t)) to 1e-5 against differences of log R, R from zooming grids."""
    law, h = no_floors(), 0.02
    for C in (1e8, 1e11, 1e16):
        found = compute_frontier(law, [C])
        x = np.asarray(found.sizes)[0]
        logs = [np.log(brute(law, C * np.exp(k * h), x / 20, x * 1.6)[1]) for k in (-2, -1, 1, 2)]
        slope = -(logs[0] - 8 * logs[1] + 8 * logs[2] - logs[3]) / (12 * h)
        assert float(local_exponent(law, found.time[0])) == pytest.approx(slope, rel=1e-5)
        assert float(found.exponent[0]) == pytest.approx(slope, rel=1e-5)


def test_an_exponential_time_alone_makes_no_exponential_phase():
    """p < 1/S at every C, and it tends to 1/S from below: logarithms only."""
    law = no_floors()
    p = np.asarray(compute_frontier(law, np.geomspace(1e6, 1e60, 60)).exponent)
    assert (p < 1 / float(law.S)).all() and (np.diff(p) > 0).all()
    assert p[-1] == pytest.approx(1 / float(law.S), rel=0.01)
    assert not critical_compute(law).found and critical_compute(law).reason.startswith("no exponential phase")


def test_below_the_branch_point_the_minimum_goes_on():
    """q_t < S < 1.7 q_t: optima with lam t < 1 that beat not training; brute force agrees. They end where R = D."""
    law = risk_law((1.0,), (1.0,), (1.3,), decay=5.0, rate=0.8, time_cost=1.0)
    found = compute_frontier(law, np.geomspace(0.05, 1e3, 200))
    rapid, valid = np.asarray(0.8 * found.time), np.asarray(found.valid)
    assert (rapid[valid] < 1).any() and not valid.all()
    assert (rapid[valid] > 1 - 1 / 1.3).all() and (np.asarray(found.risk)[valid] <= 5).all()
    i = int(np.flatnonzero(valid & (rapid < 0.95))[0])
    C, t = float(found.compute[i]), float(found.time[i])
    risk = lambda u: (C * np.exp(-u[:, 0])) ** (-1 / 1.3) + 5 * np.exp(-0.8 * np.exp(u[:, 0]))  # noqa: E731
    u, R = zoom(risk, [np.log(t) - 0.5], [np.log(t) + 2])
    assert float(found.risk[i]) == pytest.approx(R, rel=1e-12) and np.exp(u[0]) == pytest.approx(t, rel=1e-6)
    # Just outside, not to train (t -> 0, infinite size) is as good: the branch ends where R = D.
    assert float(found.risk[int(np.flatnonzero(valid)[0])]) == pytest.approx(5.0, rel=0.02)


def test_envelope_theorem_by_autodiff():
    law = example()
    C = jnp.asarray([5e7, 3e8, 1e12])  # none, one and two sizes released
    slope = jax.vmap(jax.grad(lambda u: jnp.log(compute_frontier(law, jnp.exp(u)[None]).risk[0])))(jnp.log(C))
    found = compute_frontier(law, C)
    np.testing.assert_allclose(-slope, found.exponent, rtol=1e-10)
    # dR*/dA_i = x_i^-alpha_i and dR*/dD = e^(-lam t): the sizes move, R does not feel it.
    grads = eqx.filter_grad(lambda law: compute_frontier(law, C[2:]).risk[0])(law)
    np.testing.assert_allclose(grads.amplitudes, np.asarray(found.sizes)[2] ** -0.5, rtol=1e-10)
    np.testing.assert_allclose(grads.decay, np.exp(-0.8 * float(found.time[2])), rtol=1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# Floors
# ---------------------------------------------------------------------------------------------------------------------


def test_worked_example():
    critical = critical_compute(example())
    assert critical.found and critical.first == "width" and critical.multiplier == pytest.approx(0.025)
    assert critical.time == pytest.approx(12.36587, rel=5e-7)
    assert critical.compute == pytest.approx(1.23659e8, rel=3e-6)
    t, C = critical.time, critical.compute
    assert critical.jump is not None and critical.slopes is not None
    with mpmath.workdps(30):
        y = -mpmath.lambertw(-mpmath.mpf("0.025") / 50, -1).real
        assert t == pytest.approx(float(y / mpmath.mpf("0.8")), rel=1e-10)
        assert C == pytest.approx(float(y / mpmath.mpf("0.8")) * 1e7, rel=1e-10)
        assert critical.jump == pytest.approx(float(4 * (y - 1) ** 2 / (1 + 4 * (y - 1))), rel=1e-10)
    assert [name for name, _, _ in critical.releases] == ["width", "data"]
    assert critical.last == critical.releases[1][1] > C


def test_frontier_with_floors_against_brute_force():
    law = example()
    C = np.geomspace(1.1e7, 1e13, 12)
    found = compute_frontier(law, C)
    assert bool(found.valid.all()) and set(np.asarray(found.released).tolist()) == {0, 1, 2}
    for i, compute in enumerate(C):
        x, R = brute(law, compute, (100.0, 1000.0), np.asarray(found.sizes)[i] * 1.7)
        assert float(found.risk[i]) == pytest.approx(R, rel=1e-12)
        np.testing.assert_allclose(found.sizes[i], x, rtol=2e-6)


def test_local_exponent_is_continuous_at_releases_and_its_slope_jumps():
    law = example()
    critical = critical_compute(law)
    for C in [c for _, c, _ in critical.releases]:
        below, above = np.asarray(compute_frontier(law, np.array([C * (1 - 1e-9), C * (1 + 1e-9)])).exponent)
        assert above == pytest.approx(below, rel=1e-6)
    # Measured on brute-force optima, not on the formula: p = -dlog R/dlog C = lam t D e^(-lam t)/(q_t R).
    C, h = critical.compute, 2e-3
    slopes = []
    for sign in (-1, 1):
        logs = []
        for k in range(4):
            compute = C * np.exp(sign * k * h)
            x, R = brute(law, compute, (100.0, 1000.0), (130.0, 1300.0))
            y = 0.8 * compute / (x[0] ** 2 * x[1])
            logs.append(np.log(y * 50 * np.exp(-y) / R))
        slopes.append((-11 * logs[0] + 18 * logs[1] - 9 * logs[2] + 2 * logs[3]) / (6 * sign * h))
    np.testing.assert_allclose(slopes, critical.slopes, rtol=1e-3, atol=1e-3)
    assert slopes[1] - slopes[0] == pytest.approx(critical.jump, rel=1e-3)


def test_exponential_up_to_the_critical_compute_and_one_over_S_after_the_last_release():
    law, critical = example(), critical_compute(example())
    C = np.geomspace(1.5e7, critical.compute, 30)
    found = compute_frontier(law, C)
    held = 0.1 + 1000**-0.5
    # log of what the time leaves is linear in C^(1/q_t).
    np.testing.assert_allclose(np.log(found.risk - held), np.log(50) - 0.8 * C / 1e7, rtol=1e-10, atol=1e-9)
    late = compute_frontier(law, critical.last * np.array([1.001, 1e4, 1e40]))
    np.testing.assert_allclose(late.exponent, local_exponent(law, late.time), rtol=1e-12)
    assert float(late.exponent[-1]) == pytest.approx(1 / 6, rel=0.01)


@pytest.mark.parametrize("D, found", [(0.0679, False), (0.0680, True)])  # q_t g e = 0.06796
def test_no_exponential_phase_when_time_is_worth_too_little(D, found):
    critical = critical_compute(example(decay=D))
    assert critical.found is found
    if not found:
        assert "1/e" in critical.reason and critical.compute is None and critical.releases[0][1] == 0


def test_reasons():
    assert "data" in critical_compute(example(floors=(100.0, 0.0))).reason
    assert "no time" in critical_compute(yang_v1()).reason
    assert "no exponential" in critical_compute(yang_v3()).reason
    assert str(critical_compute(example())).startswith("C* = 1.236587e+08")


def test_power_law_time_with_floors_against_brute_force():
    law = risk_law((1.0, 2.0), (0.5, 0.4), (2.0, 1.0), time_amplitude=3.0, time_exponent=0.9, time_cost=1.0,
                   floors=(20.0, 300.0), time_floor=5.0)  # fmt: skip
    C = np.geomspace(7e5, 1e10, 6)
    found = compute_frontier(law, C)
    assert bool(found.valid.all())
    for i, compute in enumerate(C):

        def risk(X, compute=compute):
            u = np.log(compute) - 2 * X[:, 0] - X[:, 1]
            R = np.exp(-0.5 * X[:, 0]) + 2 * np.exp(-0.4 * X[:, 1]) + 3 * np.exp(-0.9 * u)
            return np.where(u >= np.log(5) - 1e-12, R, np.inf)

        _, R = zoom(risk, np.log([20.0, 300.0]), np.log(np.asarray(found.sizes)[i] * 1.7))
        # A time on its floor is an oblique edge of the box, which a grid meets to first order only.
        assert float(found.risk[i]) == pytest.approx(R, rel=1e-10 if not found.held[i, 2] else 1e-4)
    assert not bool(compute_frontier(law, [1e5]).valid[0])  # the floors alone cost 6e5


def test_what_the_frontier_does_not_cover_is_nan():
    found = compute_frontier(example(), [1e-3, 1e9])
    assert np.asarray(found.valid).tolist() == [False, True] and np.isnan(found.risk[0])


# ---------------------------------------------------------------------------------------------------------------------
# Tied sizes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tied_frontier_is_the_closed_form_where_there_is_one():
    C = np.geomspace(1.1e7, 1e14, 12)
    for law in (example(), no_floors(), yang_v1(), yang_v3()):
        one, other = compute_frontier(law, C), tied_frontier(law, C)
        np.testing.assert_allclose(other.risk, one.risk, rtol=1e-12)
        np.testing.assert_allclose(other.sizes, one.sizes, rtol=1e-10)
        np.testing.assert_allclose(other.exponent, one.exponent, rtol=1e-10)


def test_tied_data_against_brute_force():
    """data = 32 t: one-pass training. The slope tends to 1/S with S of the slower of the two terms in t."""
    law = risk_law((1.0, 2.0), (0.5, 0.5), (2.0, 1.0), decay=50.0, rate=0.1, time_cost=0.5).tie(
        "data", "time", factor=32.0
    )
    C = np.array([1e5, 1e8, 1e12])
    found = tied_frontier(law, C)
    for compute, R in zip(C, found.risk, strict=True):

        def risk(X, compute=compute):
            t = np.exp((np.log(compute / 32) - 2 * X[:, 0]) / 1.5)
            return np.exp(-0.5 * X[:, 0]) + 2 * (32 * t) ** -0.5 + 50 * np.exp(-0.1 * t)

        assert float(R) == pytest.approx(zoom(risk, [-5.0], [np.log(compute) / 2])[1], rel=1e-12)
    assert float(law.S) == 7 and float(tied_frontier(law, [1e30]).exponent[0]) == pytest.approx(1 / 7, rel=1e-10)


def test_bad_input_is_named():
    law = example()
    tied = example(floors=None).tie("data", "time", factor=2.0)
    for call in (compute_frontier, lambda law, C: critical_compute(law), lambda law, C: local_exponent(law, 1.0)):
        with pytest.raises(OutsideTheoryError, match="tied_frontier"):
            call(tied, [1e9])
    for bad in ([-1.0], [np.nan], [], [[1.0]]):
        with pytest.raises(InputError, match="compute"):
            compute_frontier(law, bad)
    with pytest.raises(InputError, match="depth"):
        compute_frontier(law, [1e9]).size("depth")
    assert float(compute_frontier(law, [1e9]).size("time")[0]) > 12
