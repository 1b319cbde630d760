"""Speculative decoding with two real transformers: acceptance, losslessness, lengths, and a drafter behind a moving target.

python -m benchmarks.speculative [acceptance|lossless|variation|lengths|moving|recovery] [--seeds 4] [--steps 160]
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from scipy.optimize import minimize_scalar

from odescale.analysis.rollout.drafter import fit_drafter
from odescale.training.runner import cores
from odescale.training.source_text import SourceText, source_text
from odescale.training.speculative.distributions import (
    Decoding,
    acceptance,
    log_probabilities,
    misalignment,
    total_variation,
)
from odescale.training.speculative.pair import Learner, Pair, distil, train_pair
from odescale.training.speculative.policy import Drift, reinforce
from odescale.training.speculative.sampling import residual, rounds_of, sample, speculate

jax.config.update("jax_enable_x64", True)

CONTEXTS, TRIALS = 8, 20_000
PLAIN = Decoding()
PHASES = (1, 2, 4, 8, 16, 32)  # drafter gradient steps in an idle phase, drawn at random for each step
BURN_IN = 20  # steps left out of the second fit; set on seed 0


@cache
def text() -> SourceText:
    """40 characters of the standard library."""
    return source_text(length=32, vocabulary=40, most=2_000_000)


@cache
def pair() -> Pair:
    """A target of two layers and a well-distilled drafter of one."""
    return train_pair(text(), distillation=6000, stages=10)


def keep_all(p: jax.Array, q: jax.Array) -> jax.Array:
    """The lossy control: a token from the whole of p after a rejection."""
    return p


def acceptance_table(asked: argparse.Namespace) -> None:
    """One proposed token: share accepted beside 1 - TV at contexts of the text."""
    two, zs = pair(), []
    print("| context | 1 - TV | accepted of 20000 | z |\n|---|---|---|---|")
    for number, context in enumerate(text().held_out(CONTEXTS)[:, :8]):
        pq = [jnp.asarray(log_probabilities(m, context[None], PLAIN))[0, -1] for m in (two.target, two.drafter)]
        told = float(acceptance(*pq))
        assert abs(told - 1 + float(total_variation(*pq))) < 1e-12
        run = speculate(
            two.target, two.drafter, jnp.tile(context, (TRIALS, 1)), jax.random.key(number), new=1, branching=(1,)
        )
        zs.append((run.acceptances[0] - told) / np.sqrt(told * (1 - told) / TRIALS))
        words = "".join((text().alphabet + "?")[c] for c in np.asarray(context))
        print(f"| {words!r} | {told:.4f} | {run.acceptances[0]:.4f} | {zs[-1]:+.2f} |")
    square = float(np.sum(np.square(zs)))
    print(f"\nsum of z^2 {square:.1f} for {CONTEXTS} contexts, p = {stats.chi2.sf(square, CONTEXTS):.2f}")


def lossless_table(asked: argparse.Namespace) -> None:
    """Two tokens by chi-square against the target's exact joint distribution, at the context where they differ most.

    Where target and drafter hardly differ nothing is ever rejected, and the lossy control is lossless too.
    """
    two, V, trials = pair(), text().vocabulary, 3 * TRIALS
    contexts = text().held_out(CONTEXTS)[:, :8]
    pq = [log_probabilities(m, contexts, PLAIN)[:, -1] for m in (two.target, two.drafter)]
    worst = int(np.argmin(acceptance(*pq)))
    context, first = contexts[worst], np.exp(np.asarray(pq[0][worst]))
    longer = jnp.concatenate([jnp.tile(context, (V, 1)), jnp.arange(V)[:, None]], axis=1)
    p = (first[:, None] * np.exp(np.asarray(log_probabilities(two.target, longer, PLAIN))[:, -1])).ravel()
    print(f"| draft | sampler | p of chi-square, {trials} trials |\n|---|---|---|")
    for tree in ((1, 1), (3, 2), (2, 2, 1)):
        for name, rest in (("lossless", residual), ("lossy control", keep_all)):
            asks = jnp.tile(context, (trials // 6, 1))
            # In parts: a row for every path of a tree.
            parts = [
                np.asarray(rounds_of(two.target, two.drafter, asks, jax.random.key(i), 2, tree, PLAIN, rest).tokens)
                for i in range(6)
            ]
            tokens = np.concatenate(parts)[:, 8:]
            seen, told = np.bincount(tokens @ [V, 1], minlength=p.size), p * len(tokens)
            rare = told < 8
            seen, told = np.append(seen[~rare], seen[rare].sum()), np.append(told[~rare], told[rare].sum())
            chance = stats.chi2.sf(np.sum((seen - told) ** 2 / told), told.size - 1)
            print(f"| {tree} | {name} | {chance:.3g} |", flush=True)


def variation_table(asked: argparse.Namespace) -> None:
    """c of TV = c sqrt(kappa/pi) while the drafter is distilled."""
    two = pair()
    print(f"target: {two.loss:.3f} nats per character held out\n")
    print("| drafter steps | kappa, nats | TV | c |\n|---|---|---|---|")
    for row in zip(two.steps, two.kappa, two.variation, two.coefficient, strict=True):
        print("| {} | {:.4f} | {:.4f} | {:.3f} |".format(*row))


def lengths_table(asked: argparse.Namespace) -> None:
    """Accepted length by depth beside hazards and one constant acceptance, both set on the deepest chain or on all depths."""
    two, depths = pair(), (1, 2, 3, 4, 6, 8)
    prompts = text().sample(jax.random.key(77), 512)[:, :8]
    runs = {
        d: speculate(two.target, two.drafter, prompts, jax.random.key(d), new=24, branching=(1,) * d) for d in depths
    }
    measured = np.array([runs[d].accepted_length for d in depths])
    a = runs[8].acceptances
    weight = np.sqrt(np.sum(runs[8].reached, axis=0) * a / (1 - a))
    slope, level = np.polyfit(np.arange(8), np.log(a), 1, w=weight)

    def lengths(each: np.ndarray) -> np.ndarray:
        return np.array([1 + np.cumprod(each[:d]).sum() for d in depths])

    def miss(constant: float) -> float:
        return float(np.sum((lengths(np.full(8, constant)) - measured) ** 2))

    best = float(minimize_scalar(miss, bounds=(0.01, 0.999), method="bounded").x)
    told = {
        "measured a_i": lengths(a),
        f"a_1 = {np.exp(level):.3f}, h = {-slope:.4f}": lengths(np.exp(level + slope * np.arange(8))),
        f"constant a_1 = {a[0]:.3f}": lengths(np.full(8, a[0])),
        f"best constant {best:.3f}": lengths(np.full(8, best)),
    }
    print("a_i of the deepest chain: " + " ".join(f"{one:.3f}" for one in a) + "\n")
    print("| depth | measured | " + " | ".join(told) + " |\n|---|---|" + "---|" * len(told))
    for i, d in enumerate(depths):
        row = " | ".join(f"{t[i]:.3f}" for t in told.values())
        print(f"| {d} | {measured[i]:.3f} +- {runs[d].accepted_length_stderr:.3f} | {row} |")
    print("| largest miss | | " + " | ".join(f"{np.abs(t - measured).max():.3f}" for t in told.values()) + " |")
    print("\n| tree, 8 paths or fewer | accepted length | a_i |\n|---|---|---|")
    for tree in ((2, 2, 2), (4, 2, 1), (8, 1, 1), (3, 2, 1, 1)):
        run = speculate(two.target, two.drafter, prompts, jax.random.key(5), new=24, branching=tree)
        print(f"| {tree} | {run.accepted_length:.3f} +- {run.accepted_length_stderr:.3f} | "
              + " ".join(f"{one:.3f}" for one in run.acceptances) + " |", flush=True)  # fmt: skip


def courses(seeds: int, steps: int) -> dict[tuple[int, bool], Drift]:
    """Runs of all seeds with the drafter learning and frozen, two at a time."""
    pair()

    def one(job: tuple[int, bool]) -> Drift:
        seed, adaptive = job
        idle = np.random.default_rng(seed).choice(PHASES, steps) if adaptive else np.zeros(steps, int)
        return reinforce(pair(), text(), steps, idle=idle.tolist(), seed=seed)

    jobs = [(seed, adaptive) for seed in range(seeds) for adaptive in (True, False)]
    with ThreadPoolExecutor(cores()) as pool:
        return dict(zip(jobs, pool.map(one, jobs), strict=True))


def moving_table(asked: argparse.Namespace) -> None:
    """Adaptive beside frozen drafters under policy gradient; the slow map fitted to the first half forecasts the second."""
    runs, n = courses(asked.seeds, asked.steps), asked.steps
    end, half = slice(-(n // 3), None), n // 2
    print("| seed | reward, first and last tenth | A at the start | A, last third: adaptive, frozen | kappa there | c there |\n|"
          + "---|" * 6)  # fmt: skip
    rises = []
    for seed in range(asked.seeds):
        a, f = runs[seed, True], runs[seed, False]
        rises.append(a.length[end].mean() - f.length[end].mean())
        c = [np.mean((1 - r.acceptance[end]) / np.sqrt(r.before[end] / np.pi)) for r in (a, f)]
        print(f"| {seed} | {a.reward[: n // 10].mean():.2f}, {a.reward[-n // 10 :].mean():.2f} | {f.length[:3].mean():.2f} | "
              f"{a.length[end].mean():.3f}, {f.length[end].mean():.3f} | {a.before[end].mean():.3f}, {f.before[end].mean():.3f} | "
              f"{c[0]:.2f}, {c[1]:.2f} |")  # fmt: skip
    error = np.std(rises, ddof=1) / np.sqrt(len(rises))
    rise = np.mean(rises)
    print(f"\nadaptive - frozen: {rise:.3f} +- {error:.3f} tokens per round, {rise / error:.1f} standard errors")
    frozen = [np.polyfit(np.arange(n), runs[seed, False].before, 1)[0] for seed in range(asked.seeds)]
    error = np.std(frozen, ddof=1) / np.sqrt(len(frozen))
    print(f"frozen drafter: kappa moves by {np.mean(frozen):+.5f} +- {error:.5f} nats per update\n")
    print("| seed | steps fitted | r per gradient step | kappa_inf | delta per update | drift, noise | "
          "second half in its 95 % interval | verdict |\n|" + "---|" * 8)  # fmt: skip
    for seed in range(asked.seeds):
        d = runs[seed, True]
        for part in (slice(0, half), slice(BURN_IN, half), slice(0, n)):
            fit = fit_drafter(d.before[part], d.after[part], d.idle[part])
            held = "-"
            if part.stop == half:
                told = fit.forecast(n - half, d.idle[half:])
                held = f"{told.covered(d.before[half:], d.after[half:]):.0%}"
            names = ("r", "kappa_inf", "delta")
            spans = " | ".join(
                "{:.4g} [{:.3g}, {:.3g}]".format(getattr(fit, name), *getattr(fit, f"{name}_interval"))
                for name in names
            )
            print(f"| {seed} | {part.start}..{part.stop} | {spans} | {fit.drift:.4f}, {fit.noise:.4f} | {held} | "
                  f"{fit.verdict} |", flush=True)  # fmt: skip


def recovery_table(asked: argparse.Namespace) -> None:
    """A stale drafter on fresh samples of the moved target: is the way back exponential in gradient steps?"""
    run = reinforce(pair(), text(), asked.steps, idle=0, seed=100)
    target, state, at = run.state.target.model, Learner(pair().drafter, pair().memory), 0
    prompts = text().sample(jax.random.key(5), 512)[:, :8]
    fresh = sample(target, prompts, jax.random.key(6), 24, PLAIN)
    marks, kappas, lengths = [0, 10, 20, 40, 80, 160, 320, 640], [], []
    learn = eqx.filter_jit(partial(distil, prompt=8, batch=64))
    for mark in marks:
        while at < mark:
            count, key = min(mark - at, 40), jax.random.fold_in(jax.random.key(7), at)
            pool = sample(target, text().sample(key, 512)[:, :8], key, 24, PLAIN)
            state = learn(target, state, pool, key, jnp.asarray(count), PLAIN, rate=jnp.asarray(2e-3))
            at += count
        kappas.append(misalignment(target, state.model, fresh, PLAIN, 8))
        lengths.append(speculate(target, state.model, prompts, jax.random.key(8), new=24))
    floor = float(kappas[-1].kappa)
    print(
        "| drafter steps | kappa | TV | c | A | rate of approach to the last kappa since the row before |\n|"
        + "---|" * 6
    )
    for i, mark in enumerate(marks):
        k = float(kappas[i].kappa)
        rate = "-"
        if 0 < i < len(marks) - 1:
            rate = f"{np.log((float(kappas[i - 1].kappa) - floor) / (k - floor)) / (mark - marks[i - 1]):.5f}"
        tv = float(kappas[i].variation)
        print(f"| {mark} | {k:.4f} | {tv:.4f} | {tv / np.sqrt(k / np.pi):.3f} | {lengths[i].accepted_length:.3f} +- "
              f"{lengths[i].accepted_length_stderr:.3f} | {rate} |")  # fmt: skip
    rise = lengths[-1].accepted_length - lengths[0].accepted_length
    error = np.hypot(lengths[-1].accepted_length_stderr, lengths[0].accepted_length_stderr)
    print(f"\nstale to adapted: {rise:+.3f} tokens per round, {rise / error:.1f} standard errors")


PARTS = {
    "acceptance": acceptance_table, "lossless": lossless_table, "variation": variation_table, "lengths": lengths_table,
    "moving": moving_table, "recovery": recovery_table,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all unless named")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=160)
    asked = parser.parse_args()
    for name in asked.parts or PARTS:
        print(f"\n## {name}\n", flush=True)
        PARTS[name](asked)


if __name__ == "__main__":
    main()
