"""Rollouts: the fluid ODE against quadrature, limits and simulation; lengths, policies, costs; the drafter against its map."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

import odescale
from odescale.analysis.rollout.times import rollout_times
from odescale.errors import InputError
from odescale.systems.rollout.cost import Acceptance, Costs, round_time, speedup
from odescale.systems.rollout.drafter import drafter
from odescale.systems.rollout.fluid import live_chances, rollout
from odescale.systems.rollout.lengths import (
    CappedLengths,
    LognormalLengths,
    ParetoLengths,
    listed_lengths,
    read_lengths,
)
from odescale.systems.rollout.makespan import draw_chances, tokens_by_live, worker_times
from odescale.systems.rollout.strategies import parse_policy, token_times

SMALL: dict[str, Any] = {"body": 300.0, "cap": 3000.0, "requests": 24, "threshold": 6, "depth": 5, "verified": 8}
LAWS = {
    "lognormal": LognormalLengths(median=300.0, sigma=0.9, cap=3000.0),
    "pareto": ParetoLengths(scale=300.0, index=1.6, cap=3000.0),
    "capped": CappedLengths(body=300.0, at_cap=0.05, cap=3000.0),
}


def end(system, t1: float = 3000.0) -> dict[str, float]:
    found = odescale.integrate(system, t1, points=3, exponents=False)
    return {name: float(value[-1]) for name, value in found.observables.items()}


def by_hand(system, requests: int) -> tuple[float, float]:
    """(E T, idle slots) by scipy's binomial and quadrature, one length after the other."""
    g = np.asarray(token_times(system.costs, system.acceptance, system.policy, requests)[0])
    n = np.arange(requests + 1)

    def mean(l: float, what: np.ndarray) -> float:  # noqa: E741
        return float(stats.binom.pmf(n, requests, float(system.lengths.survival(l))) @ what)

    free = (1 - n / requests) * g
    return tuple(quad(mean, 0, 3000.0, args=(what,), limit=200, epsrel=1e-7)[0] for what in (g, free))  # type: ignore[return-value]


@pytest.mark.parametrize("law", LAWS)
def test_the_ode_is_the_integral_of_the_binomial_mean(law: str) -> None:
    system = rollout(lengths=LAWS[law], requests=10, policy="2:6x12,5:3x4", first=0.0)  # nothing accepted: no scatter
    time, idle = by_hand(system, 10)
    got = end(system)
    assert got["time"] == pytest.approx(time, rel=1e-5) and got["idle_slots"] == pytest.approx(idle, rel=1e-5)


def test_the_naive_mean_fails() -> None:
    """g at n = N S(l) instead of its mean over the binomial: off by far more than any tolerance here."""
    system = rollout(**SMALL)
    l = np.linspace(0, 3000, 20001)[:-1] + 0.075  # noqa: E741
    live = np.asarray(24 * system.lengths.survival(l))
    depth, verified = system.policy.at(jnp.asarray(live))
    g = np.asarray(round_time(system.costs, live, depth, verified) / system.acceptance.tokens(depth))
    assert abs(g.sum() * 0.15 / end(system)["time"] - 1) > 0.05


def test_limits() -> None:
    """No speculation, one request, speculation that always succeeds: closed forms."""
    plain = rollout(**(SMALL | {"threshold": 0}))
    assert plain.policy.text() == "0:5x8" and end(plain)["time"] == pytest.approx(end(rollout(
        body=300.0, cap=3000.0, requests=24, policy="plain"))["time"], rel=1e-9)  # fmt: skip
    one = rollout(body=300.0, cap=3000.0, requests=1, policy="plain", saturation=1e6)
    assert end(one)["time"] == pytest.approx(float(one.lengths.mean()), rel=1e-5) and end(one)["idle_slots"] == 0
    sure = rollout(body=300.0, cap=3000.0, requests=1, first=1.0, hazard=0.0, depth=4, verified=5, saturation=1e6)
    # Five tokens a round: the last one brings two too much on average.
    assert end(sure)["time"] == pytest.approx((float(sure.lengths.mean()) + 2) * (1 + 0.1 + 4 * 0.03) / 5, rel=1e-3)


def test_costs_and_acceptance() -> None:
    costs, own = (
        Costs(saturation=100.0, sharpness=3.0, context=0.01, fixed=0.2, draft=0.05, crowding=0.1),
        Acceptance(0.8, 0.1),
    )
    assert float(round_time(costs, 1)) == pytest.approx((1 + 0.01**3) ** (1 / 3))
    assert float(round_time(costs, 50, 4, 8)) == pytest.approx((1 + 4.0**3) ** (1 / 3) + 0.49 + 0.2 + 0.05 * 4 * 6)
    a = 0.8 * np.exp(-0.1 * np.arange(6))
    assert float(own.tokens(6)) == pytest.approx(1 + np.cumprod(a).sum()) and float(own.tokens(0)) == 1
    k = np.arange(1, 8)
    chance = np.concatenate([[1.0], np.cumprod(a)]) * np.concatenate([1 - a, [1.0]])
    assert float(own.square(6)) == pytest.approx((k**2 * chance).sum())
    assert float(speedup(costs, own, 1, 6, 8)) == pytest.approx(
        float(own.tokens(6) * round_time(costs, 1) / round_time(costs, 1, 6, 8))
    )
    assert float(Acceptance(0.0, 0.0).tokens(5)) == 1 and float(Acceptance(1.0, 0.0).tokens(5)) == 6


@pytest.mark.parametrize("law", LAWS)
def test_quantiles_invert_the_survival(law: str) -> None:
    own, u = LAWS[law], np.array([0.9, 0.5, 0.2, 0.08])
    assert np.asarray(own.survival(own.quantile(u))) == pytest.approx(u, rel=1e-9)
    grid = np.linspace(0, 3000, 200_001)
    assert float(own.mean()) == pytest.approx(np.trapezoid(np.asarray(own.survival(grid)), grid), rel=1e-4)
    assert float(own.survival(3000.0)) > 0 and float(own.survival(3000.1)) == 0


def test_live_chances_at_the_ends() -> None:
    for S in (0.0, 0.3, 1.0):
        assert np.asarray(live_chances(7, jnp.asarray(S))) == pytest.approx(
            stats.binom.pmf(np.arange(8), 7, S), abs=1e-13
        )
    slope = jax.grad(lambda S: live_chances(7, S) @ jnp.arange(8.0))(jnp.asarray(1.0))
    assert np.isfinite(float(slope))


def test_drawn_rollouts_have_the_mean_of_the_ode() -> None:
    system = rollout(**(SMALL | {"workers": 3, "imbalance": 0.5}))
    assert system.requests == (12, 24, 36)
    tokens = tokens_by_live(system.lengths, jnp.asarray(draw_chances(system.requests, 4000, 1)), system.requests)
    g = token_times(system.costs, system.acceptance, system.policy, 36)[0]
    times = np.asarray(worker_times(tokens, g)).mean(axis=1)
    assert abs(times.mean() - end(system)["time"]) < 4 * times.std() / np.sqrt(4000)


def test_a_list_of_lengths(tmp_path) -> None:
    rng = np.random.default_rng(0)
    values = np.round(rng.lognormal(5.5, 0.8, 3000))
    own = listed_lengths(values)
    assert float(own.mean()) == pytest.approx(values.mean(), rel=5e-3) and float(own.cap) == values.max()
    grid = np.quantile(values, [0.1, 0.5, 0.9, 0.99])
    assert np.asarray(own.survival(grid)) == pytest.approx([0.9, 0.5, 0.1, 0.01], abs=4e-3)
    (tmp_path / "own.csv").write_text("id,response_length\n" + "\n".join(f"{i},{v}" for i, v in enumerate(values)))
    (tmp_path / "bare.txt").write_text("\n".join(map(str, values)))
    first, second = read_lengths(tmp_path / "own.csv"), read_lengths(tmp_path / "bare.txt")
    assert np.array_equal(first.knots, own.knots) and np.array_equal(second.shares, own.shares)
    whole = rollout(lengths=str(tmp_path / "own.csv"), requests=8)  # the default cap lies beyond the longest
    assert float(whole.lengths.cap) == values.max() and float(whole.lengths.survival(values.max() + 1)) == 0
    cut = rollout(lengths=str(tmp_path / "own.csv"), cap=1000.0, requests=8)
    assert end(cut, 1000.0)["time"] > 0 and float(cut.lengths.cap) == 1000.0


def test_policies() -> None:
    own = parse_policy("32:6x16, 8:12x64")
    depth, verified = own.at(jnp.asarray([0.0, 8.0, 9.0, 32.0, 33.0]))
    assert depth.tolist() == [12, 12, 6, 6, 0] and verified.tolist() == [64, 64, 16, 16, 1]
    assert (
        parse_policy(own.text()).text() == own.text() == "8:12x64,32:6x16" and parse_policy("plain").text() == "plain"
    )
    assert parse_policy([(4, 3, 4)]).text() == "4:3x4"
    measured = parse_policy("8:6x16@4.2,32:4x5")
    assert measured.text() == "8:6x16@4.2,32:4x5"
    system = rollout(policy=measured, first=0.8, hazard=0.05)
    _, _, tokens = token_times(system.costs, system.acceptance, system.policy, 40)
    assert np.asarray(tokens)[[1, 9, 33]] == pytest.approx([4.2, float(Acceptance(0.8, 0.05).tokens(4)), 1.0])


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"workers": 0}, "workers"), ({"requests": 0}, "requests"), ({"lengths": "no/such/file.csv"}, "lengths"),
        ({"policy": "32:6"}, "policy"), ({"policy": "32:6x16@9"}, "tokens"), ({"policy": "32:6x4"}, "verified"),
        ({"policy": "plain", "depth": 3}, "depth"),
        ({"at_cap": 0.1, "lengths": "pareto"}, "at_cap"), ({"first": 1.2}, "first"), ({"depth": 9, "verified": 4}, "verified"),
        ({"spread": 2.0}, "spread"), ({"cap": -1.0}, "cap"), ({"cap": 1000.0}, "cap"), ({"imbalance": 0.2}, "imbalance"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(given, word: str) -> None:
    with pytest.raises(InputError) as caught:
        rollout(**given)
    assert str(caught.value).startswith(word) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "word"),
    [("", "empty"), ("length\n", "two lengths"), ("length\n3\nx\n", "line 3"), ("a,b\n1,2\n", "column"), ("1\n-2\n", "positive"),
     ("10\nnan\n", "positive"), ("100\n200\n", "cap")],
)  # fmt: skip
def test_bad_lists_are_one_line(tmp_path, text: str, word: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(InputError, match=word):
        read_lengths(tmp_path / "bad.csv", cap=120.0)


def test_simulation_follows_the_ode() -> None:
    """Two workers, lognormal lengths, depth 5 below 6 live requests: time and idle slots of 48 runs within their errors."""
    system = rollout(**(SMALL | {"lengths": "lognormal", "spread": 0.8, "cap": 1500.0, "requests": 12, "workers": 2}))
    run = odescale.train(system, 1500.0, seeds=48, records=6, progress=False)
    found = odescale.compare(system, run)
    assert found.coverage.inside and all(found[name].rms_z < 2 for name in ("loss", "time", "idle_slots"))
    assert np.all(run["makespan"] >= run["time"] - 1e-6) and run["idle"] == pytest.approx(
        run["makespan"] - run["time"], abs=1e-3
    )
    wrong = end(eqx.tree_at(lambda s: s.first, system, jnp.asarray(0.6)), 1500.0)["time"]
    assert abs(run.mean("time")[-1] - wrong) > 4 * run.stderr("time")[-1]


def test_what_runs_into_the_cap_ends_around_it() -> None:
    """All answers at the cap, one strategy: places scatter by sqrt(l Var k/A), and the last of 8 requests is late by 1.42 of it."""
    own = CappedLengths(body=1.0, at_cap=0.999999, cap=900.0)
    system = rollout(lengths=own, requests=8, policy="8:6x7", saturation=1e6, context=0.0)
    found = rollout_times(system, draws=512)
    a = 0.85 * np.exp(-0.02 * np.arange(6))
    k, chance = np.arange(1, 8), np.concatenate([[1.0], np.cumprod(a)]) * np.concatenate([1 - a, [1.0]])
    A, square = (k * chance).sum(), (k**2 * chance).sum()
    last = 900 + (square - A) / (2 * A) + 1.4236 * np.sqrt(900 * (square - A**2) / A)
    assert found.makespan[0] == pytest.approx(last / A * (1 + 0.1 + 0.18), rel=3e-3)
    run = odescale.train(system, 1200.0, seeds=64, record_times=[1200.0], progress=False)
    assert abs(run.mean("time")[-1] - found.time) < 3 * run.stderr("time")[-1]
    assert abs(found.drawn.mean() - found.time) < 4 * found.drawn.std() / np.sqrt(512)


def test_short_answers_are_outside() -> None:
    found = odescale.coverage(rollout(body=20.0, cap=100.0, requests=8, depth=12, verified=16))
    assert found.inside is False and "last round" in str(found)


def test_drafter_passes_through_its_map() -> None:
    """An idle time that stays: the flow at integer t is the map, and its end the fixed point."""
    system = drafter(workers=2, requests=4, body=300.0, cap=3000.0, hazard=0.0, policy="plain", rate=2e-3)
    tau = float(system.idle(system.kappa))
    found = odescale.integrate(system, ts=np.arange(6.0))
    kappa = [0.3]
    for _ in range(5):
        kappa.append(0.02 + (kappa[-1] - 0.02) * np.exp(-2e-3 * tau) + 0.03)
    assert np.asarray(found.observables["kappa"]) == pytest.approx(kappa, rel=1e-6)
    fixed = odescale.integrate(system, 400.0, points=3).observables["kappa"][-1]
    assert float(fixed) == pytest.approx(0.02 + 0.03 / -np.expm1(-2e-3 * tau), rel=1e-6)


def test_a_better_drafter_leaves_less_idle_time() -> None:
    """Self-limiting: the fixed point lies above that of the idle time at the start; drawn maps scatter around the flow."""
    system = drafter(workers=4, requests=8, body=300.0, cap=3000.0, rate=1e-3)
    found = odescale.integrate(system, 60.0, points=20)
    idle, kappa = found.observables["idle"], found.observables["kappa"]
    assert idle[-1] < idle[0] and found.observables["gain"][-1] > found.observables["gain"][0]
    frozen = 0.02 + 0.03 / -np.expm1(-1e-3 * float(idle[0]))
    assert float(kappa[-1]) > 1.02 * frozen
    run = odescale.train(system, 60.0, seeds=16, records=6, progress=False)
    assert odescale.compare(system, run)["loss"].rms_z < 2


def test_drafter_refuses_one_worker() -> None:
    with pytest.raises(InputError, match="workers"):
        drafter(workers=1)
    with pytest.raises(InputError, match="floor"):
        odescale.integrate(drafter(kappa=0.01), 5.0)


def test_sweeps_compile_once_over_thresholds() -> None:
    found = odescale.sweep(
        "rollout", 3000.0, {"threshold": np.array([0.0, 4.0, 8.0])}, points=4, body=300.0, cap=3000.0, requests=16
    )
    times = np.asarray(found.observables["time"])[:, -1]
    alone = [end(rollout(body=300.0, cap=3000.0, requests=16, threshold=b))["time"] for b in (0.0, 4.0, 8.0)]
    assert times == pytest.approx(alone, rel=1e-5) and times[0] > times[1] > times[2]
