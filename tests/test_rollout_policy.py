"""Which strategy at which batch, where speculation pays, values by derivatives, and the regret of heuristics."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.rollout_costs import simulated
from odescale.analysis.rollout.accepted import fit_acceptance_by_place
from odescale.analysis.rollout.bandit import EpsilonGreedy, Mapped, bucketed, fixed_threshold, oracle, regrets
from odescale.analysis.rollout.calibrate import fit_costs
from odescale.analysis.rollout.policy import best_strategies, pays_until
from odescale.analysis.rollout.value import sensitivity, value_of_worker
from odescale.errors import InputError
from odescale.systems.rollout.cost import Acceptance, Costs, round_time, speedup
from odescale.systems.rollout.strategies import Policy, token_times

ACCEPTANCE = Acceptance(0.85, 0.03)
LISTED = [(2, 3), (4, 5), (8, 9), (8, 32)]


def test_the_best_strategy_is_that_of_a_search_through_all() -> None:
    costs = Costs(saturation=120, context=0.001, fixed=0.4)
    batches = np.array([1, 3, 9, 27, 81, 243, 729.0])
    table = best_strategies(costs, ACCEPTANCE, batches=batches, strategies=LISTED)
    for k, b in enumerate(batches):
        gains = {(0, 1): 1.0} | {s: float(speedup(costs, ACCEPTANCE, b, *s)) for s in LISTED}
        best = max(gains, key=lambda s: gains[s])
        assert (table.depth[k], table.verified[k]) == best
        assert table.gain[k] == pytest.approx(gains[best], rel=1e-12)
    assert table.depth[-1] == 0 and "plain" in str(table)
    depths = best_strategies(costs, ACCEPTANCE, batches=[2.0])
    own = [float(speedup(costs, ACCEPTANCE, 2.0, d, d + 1)) for d in range(1, 17)]
    assert depths.depth[0] == 1 + np.argmax(own)


def test_the_policy_of_a_table_is_the_table() -> None:
    costs, batches = Costs(saturation=120, context=0.001, fixed=0.4), np.arange(1.0, 400)
    table = best_strategies(costs, ACCEPTANCE, batches=batches, strategies=LISTED)
    depth, verified = table.policy().at(jnp.asarray(batches))
    np.testing.assert_array_equal(depth, table.depth)
    np.testing.assert_array_equal(verified, table.verified)
    assert len(table.policy().batch) < 8
    table_fit = fit_costs(simulated(costs, "9 batches, 3 strategies", 0.0, 0), draws=0)
    measured = best_strategies(table_fit).policy(table_fit)
    own = {
        (d, v): a
        for d, v, a in zip(*(getattr(table_fit.strategies, x) for x in ("depth", "verified", "accepted")), strict=True)
    }
    for d, v, a in zip(measured.depth.tolist(), measured.verified.tolist(), measured.tokens.tolist(), strict=True):
        assert np.isnan(a) if d == 0 else a == pytest.approx(own[d, v], rel=1e-12)
    never = best_strategies(Costs(fixed=50.0), ACCEPTANCE, batches=[1.0, 2.0])
    assert never.policy().text() == "plain"


def test_the_threshold_is_the_root_and_has_its_closed_form() -> None:
    """q = 1, no key/value cost: A (1 + b/m_0) = 1 + b V/m_0 + c_0 + c_1 d is straight in b."""
    costs = Costs(saturation=100, sharpness=1, context=0, fixed=0.3, draft=0.05)
    A = float(ACCEPTANCE.tokens(8))
    found = pays_until(costs, (8, 32), ACCEPTANCE)
    assert found.batch == pytest.approx(100 * (A - 1 - 0.3 - 0.4) / (32 - A), rel=1e-12)
    assert found.ranges == ((1.0, found.batch),)
    other = Costs(saturation=90, sharpness=2.7, context=0.001, fixed=0.3, draft=0.05, crowding=0.01)
    root = pays_until(other, (8, 32), ACCEPTANCE).batch
    assert float(speedup(other, ACCEPTANCE, root, 8, 32)) == pytest.approx(1, abs=1e-12)


def test_a_strategy_may_pay_nowhere_everywhere_or_again_at_large_batches() -> None:
    assert pays_until(Costs(fixed=50.0, context=0.0), (4, 5), Acceptance(0.1, 0)).batch == 0
    always = pays_until(Costs(context=0.1), (4, 5), ACCEPTANCE)
    assert always.batch == np.inf and always.ranges == ((1.0, np.inf),)
    # At b = m_0 the fixed cost stands beside 32 tokens a request and loses; far beyond nothing stands beside keys and values.
    costs, law = Costs(saturation=1000, sharpness=8, context=0.0115, fixed=2.5, draft=0.0), Acceptance(0.8, 0.05)
    again = pays_until(costs, (8, 32), law)
    assert len(again.ranges) == 2 and again.ranges[1][1] == np.inf
    assert 1 < again.batch == again.ranges[0][1] < 1000 < again.ranges[1][0]
    for edge in (again.batch, again.ranges[1][0]):
        assert float(speedup(costs, law, edge, 8, 32)) == pytest.approx(1, abs=1e-11)


def test_the_interval_of_a_threshold_holds_it_as_often_as_it_says() -> None:
    costs, held, count = Costs(context=0.001, saturation=200), 0, 40
    truth = pays_until(costs, (8, 64), ACCEPTANCE).batch
    assert 5 < truth < 50
    for k in range(count):
        fit = fit_costs(simulated(costs, "4 batches, 2 strategies", 0.02, 3000 + k), seed=k, draws=80)
        low, high = pays_until(fit, (8, 64), ACCEPTANCE).interval
        held += low <= truth <= high
    assert abs(held / count - 0.9) < 3.5 * (0.09 / count) ** 0.5, held


def test_draws_say_how_sure_a_choice_is() -> None:
    fit = fit_costs(simulated(Costs(), "9 batches, 3 strategies", 0.03, 1))
    table = best_strategies(fit)
    assert table.batch[-1] == 256 and ((table.sure > 0) & (table.sure <= 1)).all()
    assert (table.interval[:, 0] < table.gain).all() and (table.gain < table.interval[:, 1]).all()
    # Beside a strategy that is its twin a choice is a toss; beside a hopeless one it is sure.
    twin = best_strategies(fit, ACCEPTANCE, batches=[8.0], strategies=[(8, 9), (9, 10)])
    alone = best_strategies(fit, ACCEPTANCE, batches=[8.0], strategies=[(8, 9), (1, 64)])
    assert alone.sure[0] == 1 and alone.regret[0] == 0
    assert twin.sure[0] < 1 and 0 < twin.regret[0] < 0.02
    # The estimate chooses, not the draws: it turns at the batch where its own two gains cross.
    low, high = 1.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        eight, seven = (float(speedup(fit.costs, ACCEPTANCE, middle, d, d + 1)) for d in (8, 7))
        deeper = eight > seven
        low, high = (middle, high) if deeper else (low, middle)
    assert 1.1 < low < 60
    beside = best_strategies(fit, ACCEPTANCE, batches=[low - 1e-6, low + 1e-6], strategies=[(7, 8), (8, 9)])
    assert beside.depth.tolist() == [8, 7]
    law = fit_acceptance_by_place([0.8, 0.6, 0.45, 0.33], 400)
    wide = pays_until(Costs(context=0.0), (4, 64), law)
    assert 1 < wide.interval[0] < wide.batch < wide.interval[1]


def _makespan(policy: Policy, lengths: np.ndarray) -> Any:
    """sum_k g(N - k + 1) (L_(k) - L_(k-1)): the time of these lengths in tokens, whatever the order."""
    gaps = jnp.asarray(np.diff(np.sort(lengths), prepend=0.0))

    def time(costs: Costs, acceptance: Acceptance) -> Any:
        g = token_times(costs, acceptance, policy, lengths.size)[0]
        return jnp.sum(g[1:][::-1] * gaps)

    return time


def test_values_are_the_slopes_of_the_best_makespan() -> None:
    """Envelope theorem: the policy is chosen again for the finite differences, and held for the derivatives."""
    lengths = np.exp(6 + np.random.default_rng(2).standard_normal(96))
    costs, acceptance = Costs(context=0.002, saturation=150, crowding=0.01), Acceptance(0.8, 0.03)

    def best(costs: Costs, acceptance: Acceptance) -> tuple[Policy, float]:
        policy = best_strategies(costs, acceptance, batches=np.arange(1.0, 97)).policy()
        return policy, float(_makespan(policy, lengths)(costs, acceptance))

    policy, T = best(costs, acceptance)
    found = sensitivity(_makespan(policy, lengths), costs, acceptance)
    assert found.time == pytest.approx(T, rel=1e-12)
    names = ("saturation", "sharpness", "context", "fixed", "draft", "crowding")
    at = {name: float(getattr(costs, name)) for name in names} | {"first": 0.8, "hazard": 0.03}
    assert set(found.slope) == set(at)
    for name, value in at.items():
        ends = []
        for sign in (1, -1):
            moved = at | {name: value * (1 + sign * 1e-4)}
            law = Acceptance(moved.pop("first"), moved.pop("hazard"))
            ends.append(best(Costs(**moved), law)[1])
        assert (ends[0] - ends[1]) / (2e-4 * value) == pytest.approx(found.slope[name], rel=2e-3), name
        assert found.elasticity[name] == pytest.approx(found.slope[name] * value / T, rel=1e-12)
    assert found.slope["first"] < 0 < found.slope["context"]
    assert "0.01 more of a_1 saves" in str(found)


def test_the_value_of_a_worker_is_a_difference() -> None:
    assert value_of_worker(lambda w: 120 / w, 3) == pytest.approx((10, 0.25))
    with pytest.raises(InputError, match="workers"):
        value_of_worker(lambda w: 120 / w, 0)
    with pytest.raises(InputError, match="makespan"):
        value_of_worker(lambda w: float("nan"), 1)


CHAINS = [(2, 3), (4, 5), (8, 9)]


def _lengths(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.minimum(300 * np.exp(rng.standard_normal(shape)), 3000)


def test_simulated_rounds_take_the_time_of_the_fluid() -> None:
    """The oracle of a rollout of many tokens against sum_k g(N-k+1) (L_(k) - L_(k-1)); plain decoding exactly."""
    costs, acceptance, N, seeds = Costs(), Acceptance(0.8, 0.03), 24, 12
    drawn = np.ceil(_lengths(np.random.default_rng(7), (seeds, N)))
    plain = Mapped(np.zeros(2, int))
    found = regrets(costs, acceptance, CHAINS, {"plain": plain}, _lengths, requests=N, rollouts=1, seeds=seeds, seed=7)
    rule = oracle(costs, acceptance, CHAINS, N).chosen
    d, v = np.array([(0, 1), *CHAINS])[rule[1:]].T
    fluid = np.mean([float(_makespan(Policy(np.arange(1, N + 1), d, v), row)(costs, acceptance)) for row in drawn])
    # The end of a request falls within a round: up to A tokens a request, and the largest of N decides the last rounds.
    assert found.oracle[0] == pytest.approx(fluid, rel=0.03) and found.oracle[0] > fluid
    exact = np.array([float(_makespan(Policy(), row)(costs, acceptance)) for row in drawn])
    assert (1 + found.regret[0, 0]) * found.oracle[0] == pytest.approx(exact.mean(), rel=0.02)


def test_a_long_request_alone_takes_tokens_at_the_rate_of_the_law() -> None:
    costs, acceptance, L = Costs(), Acceptance(0.75, 0.05), 40_000
    one = regrets(
        costs,
        acceptance,
        [(6, 7)],
        {"x": Mapped(np.array([1]))},
        lambda rng, s: np.full(s, L),
        requests=1,
        rollouts=1,
        seeds=4,
    )
    A, square = float(acceptance.tokens(6)), float(acceptance.square(6))
    expected = L * float(round_time(costs, 1, 6, 7)) / A
    error = expected * (square - A**2) ** 0.5 / A / (L / A) ** 0.5 / 2
    assert abs(one.oracle[0] - expected) < 4 * error


def test_a_bandit_learns_between_rollouts_and_never_beats_the_oracle() -> None:
    costs, acceptance = Costs(draft=0.08), Acceptance(0.8, 0.02)
    strategies = [(2, 3), (4, 5), (8, 64), (16, 17)]
    rules = {
        "threshold": fixed_threshold(8, 3),
        "pooled": EpsilonGreedy(0.05),
        "mean": EpsilonGreedy(0.05, "mean"),
        "lot": EpsilonGreedy(1.0),
        "buckets": bucketed(strategies, 32, buckets=(1, 4, 12, 24)),
    }
    how: dict[str, Any] = {"requests": 32, "rollouts": 5, "seeds": 10, "noise": 0.02}
    found = regrets(costs, acceptance, strategies, rules, _lengths, **how)
    mean, error = dict(zip(found.names, found.regret, strict=True)), dict(zip(found.names, found.error, strict=True))
    for name in rules:
        assert (mean[name] > -3 * error[name]).all(), name
    for name in ("pooled", "mean"):
        first, late = mean[name][0], mean[name][3:].mean()
        assert first - late > 3 * np.hypot(error[name][0], error[name][3:].max()), name
        assert late < 0.25 * mean["lot"].mean()
    assert abs(mean["lot"][0] - mean["lot"][1:].mean()) < 3.5 * error["lot"][0]
    assert "rollout 5" in str(found) and "pooled" in str(found)


def test_a_seed_gives_the_same_rollouts_again() -> None:
    rules = {"pooled": EpsilonGreedy(), "threshold": fixed_threshold(8, 3)}
    runs = [
        regrets(Costs(), ACCEPTANCE, CHAINS, rules, _lengths, requests=8, rollouts=2, seeds=3, noise=0.1, seed=s)
        for s in (1, 1, 2)
    ]
    np.testing.assert_array_equal(runs[0].regret, runs[1].regret)
    assert (runs[0].regret != runs[2].regret).all()


def test_rules_take_what_they_are_allowed() -> None:
    live = np.array([1, 4, 8, 9, 100])
    rule = fixed_threshold(8, 2)
    assert rule.choose(None, live).tolist() == [2, 2, 2, 0, 0]
    rng = np.random.default_rng(0)
    buckets = bucketed([(2, 3), (4, 5), (3, 5)], 100, buckets=(1, 9), plain_above=50)
    memory = buckets.start(5, 3, rng)
    seen = np.array([buckets.choose(memory, live) for _ in range(60)])
    assert [sorted(set(column)) for column in seen.T.tolist()] == [[2, 3], [2, 3], [2, 3], [1], [0]]


def test_scores_are_the_median_or_mean_of_the_last_rewards() -> None:
    rewards = [5.0, 1.0, 9.0, 2.0, 4.0]
    for score, expected in (("median", [5, 3, 5, 2, 4]), ("mean", [5, 3, 5, 4, 5])):
        rule = EpsilonGreedy(0.0, score, window=3)
        memory = rule.start(1, 2, np.random.default_rng(0))
        for reward, value in zip(rewards, expected, strict=True):
            rule.learn(memory, np.array([2]), np.array([1]), np.array([reward]), np.array([1.0]))
            assert memory["score"][0, 1, 1] == pytest.approx(value)
        assert np.isinf(memory["score"][0, 1, 2])
    pooled = EpsilonGreedy(0.0, "pooled")
    memory = pooled.start(1, 1, np.random.default_rng(0))
    # 3 tokens a request at batch 1, 1 and 2 at batch 4: the median of what came so far, times batch over time.
    for live, brought, score in ((1, 3.0, 3.0), (4, 4.0, 8.0), (4, 8.0, 8.0)):
        pooled.learn(memory, np.array([live]), np.array([1]), np.array([brought]), np.array([1.0]))
        assert memory["score"][0, live - 1, 1] == pytest.approx(score)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: best_strategies(Costs()), "accepted: expected a law"),
        (lambda: best_strategies(Costs(), ACCEPTANCE, batches=[2, 1]), "batches: expected numbers >= 1, rising"),
        (lambda: best_strategies(Costs(), ACCEPTANCE, batches=[0.5]), "batches"),
        (lambda: best_strategies(Costs(), ACCEPTANCE, strategies=[]), "strategies: expected a strategy"),
        (lambda: best_strategies(Costs(), ACCEPTANCE, strategies=[(8, 4)]), "strategies: .*verified >= depth"),
        (lambda: pays_until(Costs(), (0, 1), ACCEPTANCE), "strategies"),
        (lambda: pays_until(Costs(), (4, 5), ACCEPTANCE, most=1.0), "most"),
        (lambda: sensitivity(lambda c, a: jnp.asarray(0.0), Costs(), ACCEPTANCE), "makespan"),
        (lambda: EpsilonGreedy(1.5), "epsilon"),
        (lambda: EpsilonGreedy(score="best"), "score: expected one of pooled, median, mean"),
        (lambda: EpsilonGreedy(groups=(2, 4)), "groups"),
        (lambda: EpsilonGreedy(window=0), "window"),
        (lambda: bucketed(CHAINS, 10, buckets=(1, 2)), "buckets"),
        (lambda: regrets(Costs(), ACCEPTANCE, CHAINS, {}, _lengths), "seeds"),
        (lambda: regrets(Costs(), ACCEPTANCE, [], {"x": fixed_threshold(4)}, _lengths), "strategies"),
        (lambda: regrets(Costs(), ACCEPTANCE, CHAINS, {"x": fixed_threshold(4, 9)}, _lengths), "heuristic"),
        (lambda: regrets(Costs(), ACCEPTANCE, CHAINS, {"x": fixed_threshold(4)}, lambda r, s: np.zeros(s)), "lengths"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_clear_line(call: Any, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
