r"""How long a rollout takes: means by the fluid ODE, makespan, waiting workers and quantiles by drawn lengths.

T = sum_n g(n) x tokens with n live,   makespan = max over workers,   gain = plain makespan/makespan,
end to end = 1/(1 - f + f/gain)
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import stats

from odescale.cache.programs import program
from odescale.errors import InputError, require_number, whole
from odescale.generated import rollout as formulas
from odescale.precision import require_x64
from odescale.solve.integrate import integrate
from odescale.solve.trajectory import Trajectory
from odescale.systems.parameters import is_traced
from odescale.systems.rollout.fluid import Rollout
from odescale.systems.rollout.makespan import MOST_NUMBERS, draw_chances, tokens_by_live, worker_times
from odescale.systems.rollout.strategies import Policy, round_spread, token_times


class RolloutTimes(eqx.Module):
    """Times of a rollout, in plain rounds at batch 1 (weights read once).

    `time`: mean over workers, by the ODE; `makespan`: until the last worker is done, `idle`: what a worker waits for it,
    `idle_slots`: what the slots of finished requests stand empty; (mean, standard error). `plain`: the makespan without speculation
    on the same draws; `gain`: their ratio, with its error. `drawn` (d,), `drawn_plain` (d,): makespans of the draws.
    `switches`: live requests at which the policy changes -> (tokens, time) where the mean of a worker passes them.
    `trajectory`, `without`: of the ODE under the policy and of plain decoding, observables against tokens.
    """

    system: Rollout
    trajectory: Trajectory
    without: Trajectory
    time: float
    makespan: tuple[float, float]
    idle: tuple[float, float]
    idle_slots: float
    plain: tuple[float, float]
    gain: tuple[float, float]
    drawn: Float[np.ndarray, " d"]
    drawn_plain: Float[np.ndarray, " d"]
    switches: dict[float, tuple[float, float]]

    def quantile(self, q: float, level: float = 0.95) -> tuple[float, tuple[float, float]]:
        """(the makespan that a share q of rollouts does not exceed, its interval from order statistics of the draws)."""
        q = require_number("q", q, 0.0, 1.0, open_=True)
        level = require_number("level", level, 0.0, 1.0, open_=True)
        ordered, n = np.sort(self.drawn), self.drawn.size
        low, high = stats.binom.ppf([(1 - level) / 2, (1 + level) / 2], n, q).astype(int)
        if low < 1 or high >= n:
            raise InputError("q", expected=f"a quantile that {n} draws have on both sides", got=q, remedy="raise draws")
        return float(np.quantile(self.drawn, q)), (float(ordered[low - 1]), float(ordered[high]))

    def end_to_end(self, share: float) -> float:
        """1/(1 - f + f/gain): gain of a step of which the plain rollout takes the share f."""
        share = require_number("share", share, 0.0, 1.0)
        return float(formulas.end_to_end(jnp.asarray(share), jnp.asarray(self.gain[0])))

    def __str__(self) -> str:
        system = self.system
        workers = len(system.requests)
        lines = [
            f"{sum(system.requests)} requests on {workers} worker{'' if workers == 1 else 's'}, {system.law} lengths of mean "
            f"{float(system.lengths.mean()):.5g} up to {float(system.lengths.cap):g} tokens, policy {system.policy.text()}",
            f"  makespan {_said(self.makespan)} plain rounds at batch 1; without speculation {_said(self.plain)}: gain "
            f"{_said(self.gain, 4)}",
            f"  of it, slots of finished requests stand empty {self.idle_slots:.5g}"
            + (f"; a worker waits {_said(self.idle)} for the slowest" if workers > 1 else ""),
        ]
        for live, (tokens, time) in self.switches.items():
            lines.append(f"  {live:g} live requests of a worker: after {tokens:.5g} tokens, at {time:.5g}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the draws."""
        names = ("time", "makespan", "idle", "idle_slots", "plain", "gain")
        return {name: getattr(self, name) for name in names} | {
            "switches": {f"{k:g}": v for k, v in self.switches.items()}, "parameters": self.system.summary(),
        }  # fmt: skip


@program
def _drawn(system: Rollout, chances: Any, z: Any, both: Any, curve: Any) -> Any:
    """Worker times of the draws under the policy, whose acceptances scatter the ends, and without speculation."""
    t, spread, surplus = curve

    def ends(length: Any) -> Any:
        return length + jnp.interp(length, t, surplus) + jnp.interp(length, t, spread) * z

    own = tokens_by_live(system.lengths, chances, system.requests, ends)
    plain = tokens_by_live(system.lengths, chances, system.requests)
    return jnp.stack([worker_times(own, both[0]), worker_times(plain, both[1])])


def _surplus(system: Rollout, live: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Tokens of the last round beyond a length, at mean numbers of live requests."""
    most = max(system.requests)
    each = np.asarray(round_spread(system.acceptance, system.policy, most)[1])
    return each[np.clip(np.round(live), 1, most).astype(int)]


def rollout_times(system: Rollout, *, draws: int = 8192, seed: int = 0) -> RolloutTimes:
    r"""Mean, makespan, idle time and quantiles of a rollout under its policy, and its gain over plain decoding.

    Means over workers are the ODE's; what needs the slowest worker is an average over drawn lengths, of which the ODE's mean takes
    most of the noise: E max T = E T + E[max T - mean T].

    **Arguments**: `system`: of `rollout(...)`. `draws` of all lengths, `seed`. **Returns** `RolloutTimes`.
    **Raises** `InputError`. **Good values**: 8192 draws leave .1 to .5 % of the makespan. **Failure regime**: rounds are those of
    the fluid: acceptances scatter a request's end by about sqrt(d L) tokens, which few requests of short answers feel.
    Source: Hu et al. 2025, arXiv 2511.16665 (setting); `derivations/rollout/script.py`.

    ```python
    import jax
    jax.config.update("jax_enable_x64", True)
    from odescale.rollouts import rollout, rollout_times
    print(rollout_times(rollout(requests=32, workers=4, threshold=8)))
    ```
    """
    require_x64("rollout_times")
    parts = [getattr(system, name, None) for name in ("lengths", "policy", "requests", "saturation")]
    if any(part is None or is_traced(part) for part in parts):
        raise InputError("system", expected="a system of odescale.rollouts.rollout, outside of transformations",
                         got=type(system).__name__, remedy="build one")  # fmt: skip
    draws, seed = whole("draws", draws, 16, 10_000_000), whole("seed", seed, 0)
    system.check()
    cap, most = float(system.lengths.cap), max(system.requests)
    scatter, extra = (float(x.max()) for x in round_spread(system.acceptance, system.policy, most))
    beyond = cap + 8 * np.sqrt(cap * scatter) + 2 * extra  # drawn acceptances spread what ends at the cap
    ts = np.concatenate([[0.0], np.geomspace(cap / 1e4, cap, 200)])
    never = eqx.tree_at(lambda s: s.policy.depth, system, jnp.zeros_like(system.policy.depth))
    further = np.linspace(cap, beyond, 40)[1:] if scatter > 0 else np.empty(0)
    found, without = (
        integrate(own, ts=t, exponents=False) for own, t in ((system, np.append(ts, further)), (never, ts))
    )
    # Where nobody is left the share of live requests is 0, which no logarithm has: the times before are whole.
    kept = np.flatnonzero(found.valid)
    times, live, spread = (np.asarray(found.observables[name])[kept] for name in ("time", "live", "spread"))
    both = jnp.stack([token_times(system.costs, system.acceptance, p, most)[0] for p in (system.policy, Policy())])
    curve = [jnp.asarray(x) for x in (found.t[kept], spread, _surplus(system, live))]
    size = max(1, min(draws, MOST_NUMBERS // (most * len(system.requests))))
    parts = []
    for k, begin in enumerate(range(0, draws, size)):
        chances = draw_chances(system.requests, size, seed + 7919 * k)
        z = np.random.default_rng([seed, k]).standard_normal(chances.shape)
        parts.append(np.asarray(_drawn(system, jnp.asarray(chances), jnp.asarray(z), both, curve))[:, : draws - begin])
    drawn = np.concatenate(parts, axis=1)
    slowest, wait = drawn.max(axis=2), drawn.max(axis=2) - drawn.mean(axis=2)
    means = np.array([float(times[-1]), float(without.observables["time"][-1])])[:, None]
    # The mean of a worker is the ODE's, without noise; both policies have the same draws, so that their ratio has little of it.
    spans, wait = means + wait, wait[0]
    (makespan, error), (plain, plain_error) = (_mean(x) for x in spans)
    ratio = plain / makespan
    gain_error = _mean(spans[1] - ratio * spans[0])[1] / makespan
    places = system.policy.batch[(system.policy.batch > 0) & (system.policy.batch < np.mean(system.requests))]
    tokens = [float(system.lengths.quantile(float(b) / np.mean(system.requests))) for b in places]
    switches = {float(b): (x, float(np.interp(x, found.t[kept], times))) for b, x in zip(places, tokens, strict=True)}
    return RolloutTimes(
        system=system, trajectory=found, without=without, time=float(times[-1]), makespan=(makespan, error), idle=_mean(wait),
        idle_slots=float(found.observables["idle_slots"][kept[-1]]), plain=(plain, plain_error), gain=(ratio, gain_error),
        drawn=slowest[0], drawn_plain=slowest[1], switches=switches,
    )  # fmt: skip


def _said(pair: tuple[float, float], digits: int = 5) -> str:
    value, error = pair
    return f"{value:.{digits}g}" + (f" +- {error:.2g}" if error > 1e-9 * abs(value) else "")


def _mean(x: Float[np.ndarray, " d"]) -> tuple[float, float]:
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(x.size))
