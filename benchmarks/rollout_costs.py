"""Costs of speculative rounds from published and simulated tables: fits, held-out rows, strategies, refusals, intervals, regret.

python -m benchmarks.rollout_costs [published|places|trees|anchors|coverage|threshold|values|regret] [--tables 100]

Numbers of the tables: Hu et al. 2025, arXiv 2511.16665. Their depth and, for top-k, their V are declared here, not known.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odescale.analysis.rollout.accepted import fit_acceptance, fit_acceptance_by_place
from odescale.analysis.rollout.bandit import EpsilonGreedy, Mapped, bucketed, fixed_threshold, regrets
from odescale.analysis.rollout.calibrate import fit_costs
from odescale.analysis.rollout.fitted import CostFit
from odescale.analysis.rollout.policy import best_strategies, pays_until
from odescale.analysis.rollout.value import sensitivity, value_of_worker
from odescale.errors import InputError
from odescale.systems.rollout.cost import Acceptance, Costs, round_time
from odescale.systems.rollout.lengths import CappedLengths
from odescale.systems.rollout.makespan import draw_chances, tokens_by_live, worker_times
from odescale.systems.rollout.strategies import token_times

jax.config.update("jax_enable_x64", True)

DEPTH = 12.0
"""Declared: the speed-ups of the tables name no depth; c_0 + c_1 d is found together."""
BATCHES = (1, 2, 4, 8, 16, 32)
BY_BATCH = {
    16: (3.22, 3.08, 3.01, 2.73, 2.67, 2.48),
    32: (3.46, 3.28, 3.09, 2.63, 2.52, 2.23),
    48: (3.56, 3.39, 3.13, 2.51, 2.24, 1.90),
    64: (3.62, 3.38, 2.98, 2.27, 1.91, 1.70),
}
"""Speed-ups by verified tokens V and batch."""
TOP_K = (4, 6, 8, 10, 12, 16)
TOP_K_ACCEPTED = (8.29, 8.66, 8.67, 8.67, 8.60, 8.42)
TOP_K_SPEEDUP = (3.51, 3.65, 3.64, 3.64, 3.56, 3.47)
ANCHOR = {(DEPTH, 64.0): 8.67}
"""A of V = 64, declared: that of top-k 8, whose speed-up at batch 1 is 3.64 beside 3.62 here."""

PLACES: dict[str, tuple[tuple[float, ...], float]] = {
    "EAGLE-3, MT-bench": ((0.74, 0.54, 0.41, 0.30, 0.22, 0.16, 0.12, 0.08, 0.05, 0.02), 4687),
    "EAGLE-3, SpecBench": ((0.71, 0.50, 0.36, 0.26, 0.18, 0.13, 0.10, 0.07, 0.04, 0.02), 20468),
    "n-gram, code edits": ((0.81, 0.74, 0.70, 0.68, 0.66), 993),
}
"""Shares of rounds that keep the 1st, 2nd ... token, and rounds: github.com/vllm-project/vllm, pulls 26498 (two) and 24344."""


def batch_table() -> dict[str, Any]:
    """The batch table in columns."""
    return {
        "batch": np.tile(BATCHES, len(BY_BATCH)).astype(float), "verified": np.repeat(list(BY_BATCH), len(BATCHES)).astype(float),
        "speedup": np.ravel(list(BY_BATCH.values())),
    }  # fmt: skip


def batch_fit(**options: Any) -> CostFit:
    """The costs behind the batch table."""
    accepted = options.pop("accepted", ANCHOR)
    return fit_costs(batch_table(), constants={"depth": DEPTH}, accepted=accepted, **options)


def top_k_fit(costs: Costs, keep: Sequence[int] = range(len(TOP_K)), **options: Any) -> CostFit:
    """c_0 + c_1 d of the top-k rows `keep`, saturation and key/value cost declared: one batch cannot tell them."""
    rows = list(keep)
    known = {name: float(getattr(costs, name)) for name in ("saturation", "sharpness", "context")}
    table = {
        "batch": np.ones(len(rows)), "accepted_length": np.array(TOP_K_ACCEPTED)[rows], "speedup": np.array(TOP_K_SPEEDUP)[rows],
    }  # fmt: skip
    return fit_costs(table, constants={"depth": DEPTH, "verified": 64.0}, known=known, **options)


def top_k_left_out(costs: Costs) -> np.ndarray:
    """Measured over forecast - 1 of each top-k row, forecast from the others."""
    errors = []
    for k in range(len(TOP_K)):
        fit = top_k_fit(costs, [i for i in range(len(TOP_K)) if i != k], draws=0)
        gain = TOP_K_ACCEPTED[k] / fit.strategies.accepted[0] * float(fit.gain(1.0, DEPTH, 64.0))
        errors.append(TOP_K_SPEEDUP[k] / gain - 1)
    return np.array(errors)


def left_out(by: str, value: float, **options: Any) -> np.ndarray:
    """Errors of the rows of one batch, or of one V, forecast from the others."""
    if by == "verified" and value == 64:
        options = {"accepted": {(DEPTH, 48.0): ANCHOR[DEPTH, 64.0]}} | options
    return batch_fit(hold_out={by: value}, draws=0, **options).held_out


def one_cell_known(verified: int, **options: Any) -> np.ndarray:
    """Errors of one V of which only the batch 1 is known: its A from that cell, the costs from the other V."""
    errors = left_out("verified", verified, **options)
    return (1 + errors[1:]) / (1 + errors[0]) - 1


def published() -> None:
    """Both tables: fit, rows left out, best strategies."""
    for crowding in (False, True):
        fit = batch_fit(crowding=crowding)
        print(f"\n{fit}\n| left out | largest error | rms | cells, per cent |\n|---|---|---|---|")
        for by, values in (("batch", BATCHES), ("verified", tuple(BY_BATCH))):
            for value in values:
                e = left_out(by, value, crowding=crowding)
                print(
                    f"| {by} {value} | {np.abs(e).max():.1%} | {np.sqrt(np.mean(e**2)):.1%} | {np.round(100 * e, 1)} |"
                )
        e = np.array([batch_fit(hold_out={"batch": b, "verified": v}, draws=0, crowding=crowding).held_out[0]
                      for v in list(BY_BATCH)[:3] for b in BATCHES])  # fmt: skip
        print(f"| each cell, V 16 to 48 | {np.abs(e).max():.1%} | {np.sqrt(np.mean(e**2)):.1%} | |")
        for v in BY_BATCH:
            e = one_cell_known(v, crowding=crowding)
            print(
                f"| V {v} but batch 1 | {np.abs(e).max():.1%} | {np.sqrt(np.mean(e**2)):.1%} | {np.round(100 * e, 1)} |"
            )
        table = best_strategies(fit, batches=BATCHES)
        print(f"\n{table}")
        for b, lost in zip(BATCHES, strategies_lose(fit), strict=True):
            print(f"batch {b}: the model's strategy is {lost:.1%} below the best measured cell")
    fit = top_k_fit(batch_fit(draws=0).costs)
    print(f"\n{fit}\ntop-k {TOP_K}: residuals {np.round(100 * fit.residual, 1)} %")
    print(f"each left out: {np.round(100 * top_k_left_out(fit.costs), 1)} %")


def strategies_lose(fit: CostFit) -> np.ndarray:
    """Speed below the best measured cell, by batch, of the strategy that the model picks."""
    table = best_strategies(fit, batches=BATCHES)
    cells = np.array(list(BY_BATCH.values()))
    mine = [
        BY_BATCH[int(v)][k] if d > 0 else 1.0 for k, (d, v) in enumerate(zip(table.depth, table.verified, strict=True))
    ]
    return 1 - np.array(mine) / cells.max(axis=0)


def anchors() -> None:
    """What the declared A of V = 64 decides: costs, but neither fit nor choice."""
    print(
        "| A of V 64 | rms | m_0 | q | k_v | c_0 + c_1 d | largest error, a batch left out | strategies lose |\n|"
        + "---|" * 8
    )
    for A in (4.5, 5.5, 6.5, 8.67, 11.0):
        fit = batch_fit(accepted={(DEPTH, 64.0): A}, draws=0)
        c = fit.costs
        worst = max(np.abs(left_out("batch", b, accepted={(DEPTH, 64.0): A})).max() for b in BATCHES)
        print(
            f"| {A} | {fit.rms:.2%} | {float(c.saturation):.0f} | {float(c.sharpness):.2f} | {float(c.context):.4f} | "
            f"{float(c.draft) * DEPTH:.2f} | {worst:.1%} | {strategies_lose(fit).max():.1%} |"
        )
    for kv in (0.0, 0.0082, 0.02):
        fit = batch_fit(known={"context": kv}, draws=0)
        print(f"k_v held at {kv}: rms {fit.rms:.2%}, strategies lose {strategies_lose(fit).max():.1%}")


TREES = ((0.75, 0.2, 8), (0.6, 0.35, 8), (0.85, 0.1, 4), (0.7, 0.2, 2), (0.5, 0.4, 16))
"""Chance of the best candidate, of each next one relative to it, candidates at a place."""


def tree_tokens(best: float, next_: float, candidates: int, depth: int, verified: int) -> float:
    """Tokens of a round with the tree of the V likeliest nodes, candidate r accepted with chance best next_^r: 1 + sum of paths."""
    chances = best * next_ ** np.arange(candidates)
    heap, total = [(-chances[0], 1, 0, 1.0)], 1.0
    for _ in range(verified):
        if not heap:
            break
        path, place, rank, parent = heapq.heappop(heap)
        total -= path
        if rank + 1 < candidates:
            heapq.heappush(heap, (-parent * chances[rank + 1], place, rank + 1, parent))
        if place < depth:
            heapq.heappush(heap, (path * chances[0], place + 1, 0, -path))
    return total


def trees() -> None:
    """Exact accepted lengths of trees by depth: hazard and one constant; by V: straight lines of 1/(A - 1) in 1/V."""
    print("| best, next, candidates | V | A at depth 1 to 16 | a_1 | h | miss | constant misses |\n|" + "---|" * 7)
    depths = np.array([1, 2, 4, 6, 8, 10, 12, 16])
    for tree in TREES:
        for V in (16, 64):
            A = np.array([tree_tokens(*tree, int(d), V) for d in depths])
            fit = fit_acceptance(depths, A, draws=0)
            found = f"{fit.first:.3f} | {fit.hazard:.3f} | {fit.miss:.3f} | {fit.miss_constant:.2f}"
            print(f"| {tree} | {V} | {np.round(A, 2)} | {found} |")


def places() -> None:
    """Real logs of acceptance by place: hazard, and one constant."""
    for name, (kept, rounds) in PLACES.items():
        print(f"{name}, {rounds:g} rounds, A = {1 + sum(kept):.2f}: {fit_acceptance_by_place(kept, rounds)}")


TRUTHS = {
    "usual": Costs(),
    "corner": Costs(saturation=150, sharpness=4, context=0.004, fixed=0.05, draft=0.05),
    "additive": Costs(saturation=400, sharpness=1, context=0.02, fixed=0.2, draft=0.02),
    "no context": Costs(context=0.0),
}
DESIGNS: dict[str, tuple[tuple[tuple[int, int], ...], tuple[int, ...], str]] = {
    "9 batches, 3 strategies": (((4, 5), (8, 9), (8, 32)), (1, 2, 4, 8, 16, 32, 64, 128, 256), "tokens_per_second"),
    "4 batches, 2 strategies": (((4, 5), (8, 32)), (1, 4, 16, 64), "tokens_per_second"),
    "6 batches, one V": (((8, 9),), (1, 2, 4, 8, 16, 32), "tokens_per_second"),
    "batches 1 to 4": (((4, 5),), (1, 2, 3, 4), "tokens_per_second"),
    "speed-ups, 3 strategies": (((4, 5), (8, 16), (8, 64)), (1, 2, 4, 8, 16, 32, 64), "speedup"),
    "speed-ups, one V": (((8, 9),), (1, 2, 4, 8, 16, 32), "speedup"),
}


def simulated(
    costs: Costs, design: str, noise: float, seed: int, acceptance: Acceptance | None = None
) -> dict[str, np.ndarray]:
    """A table measured with normal errors of log speed."""
    strategies, batches, measure = DESIGNS[design]
    listed = (((0, 1),) if measure == "tokens_per_second" else ()) + strategies
    b, d, v = np.array([(b, *s) for s in listed for b in batches], float).T
    A = np.asarray((acceptance or Acceptance(0.85, 0.03)).tokens(d))
    speed = A / np.asarray(round_time(costs, b, d, v))
    speed = speed * (35 * b if measure == "tokens_per_second" else np.asarray(round_time(costs, b)))
    speed = speed * np.exp(noise * np.random.default_rng(seed).standard_normal(b.size))
    return {"batch": b, "depth": d, "verified": v, measure: speed, "accepted_length": A}


def coverage(tables: int, first: int = 0) -> None:
    """How often 90 % intervals hold the truth, and how often a table is refused."""
    names = ("saturation", "sharpness", "context", "fixed", "draft")
    print(
        f"| truth | table | noise | refused | {' | '.join(names)} | width of m_0 | of k_v |\n|"
        + "---|" * (len(names) + 6)
    )
    for truth, costs in TRUTHS.items():
        for design in DESIGNS:
            for noise in (0.01, 0.03):
                held, wide, refused = [], [], 0
                for k in range(tables):
                    try:
                        fit = fit_costs(simulated(costs, design, noise, first + k), seed=k)
                    except InputError:
                        refused += 1
                        continue
                    ends = [fit.interval.get(name, (np.nan, np.nan)) for name in names]
                    truth_values = [float(getattr(costs, name)) for name in names]
                    if "fixed" not in fit.interval:  # one depth: c_1 stands for both
                        truth_values[4] += truth_values[3] / DESIGNS[design][0][0][0]
                    held.append(
                        [np.nan if np.isnan(a) else a <= t <= b for (a, b), t in zip(ends, truth_values, strict=True)]
                    )
                    wide.append([b / max(a, 1e-12) for a, b in (ends[0], ends[2])])
                shares = np.mean(np.array(held, float), axis=0) if held else np.full(len(names), np.nan)
                width = np.median(wide, axis=0) if wide else (np.nan, np.nan)
                shown = " | ".join("" if np.isnan(x) else f"{x:.2f}" for x in shares)
                print(
                    f"| {truth} | {design} | {noise:.0%} | {refused}/{tables} | {shown} | {width[0]:.3g} | {width[1]:.3g} |"
                )


def threshold(tables: int) -> None:
    """Batch up to which a strategy pays, and how often its interval holds the truth."""
    costs, strategy, noise = Costs(context=0.001), (8.0, 64.0), 0.02
    acceptance = Acceptance(0.85, 0.03)
    truth = pays_until(costs, strategy, acceptance).batch
    held = 0
    for k in range(tables):
        fit = fit_costs(simulated(costs, "9 batches, 3 strategies", noise, 5000 + k), seed=k)
        found = pays_until(fit, strategy, acceptance)
        held += found.interval[0] <= truth <= found.interval[1]
    print(f"8x64 pays up to batch {truth:.2f}; 90 % intervals hold it in {held} of {tables} tables")


def long_tail(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Lognormal lengths, median 800, sigma 1, cut at 8000 tokens."""
    return np.minimum(800 * np.exp(rng.standard_normal(shape)), 8000)


def regret(seeds: int = 16) -> None:
    """What heuristics lose, 128 requests a rollout."""
    strategies = [(2, 3), (4, 5), (8, 9), (12, 13)]
    for name, costs in (
        ("usual", Costs()),
        ("no context", Costs(context=0.0)),
        ("slow drafter", Costs(draft=0.1, crowding=0.02)),
    ):
        acceptance = Acceptance(0.8, 0.02)
        rules = {
            "plain": Mapped(np.zeros(2, int)),
            "8x9 below 32": fixed_threshold(32, 3),
            "4x5 below 128": fixed_threshold(128, 2),
            "epsilon .1, pooled (fastrl)": EpsilonGreedy(),
            "epsilon .1, median": EpsilonGreedy(score="median"),
            "epsilon .1, mean": EpsilonGreedy(score="mean"),
            "epsilon .02, mean": EpsilonGreedy(0.02, "mean"),
            "bucketed, pooled (fastrl)": bucketed(strategies, 128),
        }
        print(
            f"\n{name}\n{regrets(costs, acceptance, strategies, rules, long_tail, rollouts=10, seeds=seeds, noise=0.02)}"
        )


def values(requests: int = 32, workers: int = 4) -> None:
    """What moves the makespan of a rollout with a long tail, the best strategy at every batch; drawn lengths, the same for all."""
    lengths, acceptance = (
        CappedLengths(body=jnp.asarray(2500.0), at_cap=jnp.asarray(0.03), cap=jnp.asarray(32768.0)),
        Acceptance(0.85, 0.03),
    )
    costs = Costs()
    policy = best_strategies(costs, acceptance, batches=np.arange(1.0, requests * workers + 1)).policy()

    def makespan(costs: Costs, acceptance: Acceptance, share: tuple[int, ...]) -> jax.Array:
        tokens = tokens_by_live(lengths, jnp.asarray(draw_chances(share, 400, 0)), share)
        g = token_times(costs, acceptance, policy, max(share))[0]
        return jnp.mean(worker_times(tokens, g).max(axis=1))

    own = (requests,) * workers
    print(f"{workers} workers of {requests} requests, policy {policy.text()}")
    print(sensitivity(lambda c, a: makespan(c, a, own), costs, acceptance))

    def with_workers(count: int) -> float:
        total = requests * workers
        share = tuple(total // count + (k < total % count) for k in range(count))
        return float(makespan(costs, acceptance, share))

    for count in (2, 4, 8):
        saved, part = value_of_worker(with_workers, count)
        print(f"one worker more than {count}, same requests: saves {saved:.1f}, {part:.1%}")


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["published", "places", "trees", "anchors", "values", "regret"])
    parser.add_argument("--tables", type=int, default=100)
    given = parser.parse_args()
    alone = {
        "published": published,
        "places": places,
        "trees": trees,
        "anchors": anchors,
        "values": values,
        "regret": regret,
    }
    for what in given.what:
        if what in alone:
            alone[what]()
        else:
            {"coverage": coverage, "threshold": threshold}[what](given.tables)


if __name__ == "__main__":
    main()
