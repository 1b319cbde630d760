# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The long tail of a rollout
#
# Most answers of a reinforcement-learning step are short, a few run into the cap: at the end a handful of requests keep a device
# busy that could write a hundred. How long does it take, what does speculative decoding gain, from which batch on, and what becomes
# of a drafter that learns while workers wait? One unit of t is one token of every live request; times are in plain decoding rounds
# at batch 1.
#
# Theory, and what held: `docs/rollouts.md`.

# %%
import os

import jax

jax.config.update("jax_enable_x64", True)  # odescale never changes this for you

import numpy as np

import odescale
from odescale import rollouts

# %% [markdown]
# ## Parameters

# %%
small = os.environ.get("ODESCALE_NOTEBOOK_SIZE", "full") == "small"

lengths = "capped"  # lognormal, pareto, or the path of a file with your own lengths
requests, workers = (16, 2) if small else (32, 4)
body, cap = (200.0, 2000.0) if small else (2000.0, 32768.0)
draws = 256 if small else 8192
seeds = 4 if small else 32

# %% [markdown]
# ## One rollout, with and without speculation below a threshold

# %%
system = rollouts.rollout(lengths=lengths, body=body, cap=cap, requests=requests, workers=workers, threshold=8)
found = rollouts.rollout_times(system, draws=draws)
print(found)
print("nine rollouts in ten take up to", found.quantile(0.9)[0])
print("a step of which the plain rollout is 85 %: faster by", found.end_to_end(0.85))
odescale.plot(found)

# %% [markdown]
# ## The ODE against a simulation with drawn lengths and drawn acceptances

# %%
run = odescale.train(system, cap, seeds=seeds, records=12)
print(odescale.compare(system, run))

# %% [markdown]
# ## Which strategy at which batch
#
# A table of your own speeds takes the place of assumed costs: `rollouts.fit_costs("speeds.csv")`. Here the speeds are made of known
# costs with 1 % noise, so that the answer can be held against the truth.

# %%
truth, accepted = (
    rollouts.Costs(saturation=300.0, context=0.01, fixed=0.15, draft=0.04),
    rollouts.Acceptance(0.85, 0.03),
)
rng = np.random.default_rng(0)
rows = [(b, d, v) for b in (1, 2, 4, 8, 16, 32, 64, 128) for d, v in ((0, 1), (3, 4), (6, 16), (10, 32))]
batch, depth, verified = np.array(rows, float).T
speed = 60 * batch * accepted.tokens(depth) / rollouts.round_time(truth, batch, depth, verified)
table = {
    "batch": batch,
    "depth": depth,
    "verified": verified,
    "tokens_per_second": np.asarray(speed) * np.exp(0.01 * rng.standard_normal(batch.size)),
    "accepted_length": np.asarray(accepted.tokens(depth)),
}
fit = rollouts.fit_costs(table)
print(fit)
best = rollouts.best_strategies(fit)
print(best)
odescale.plot(best)

# %% [markdown]
# The best policy in the same rollout, and the map over batch and acceptance.

# %%
numbers = {
    name: float(getattr(fit.costs, name))
    for name in ("saturation", "sharpness", "context", "fixed", "draft", "crowding")
}
better = rollouts.rollout(
    lengths=lengths, body=body, cap=cap, requests=requests, workers=workers, policy=best.policy(fit), **numbers
)
print(rollouts.rollout_times(better, draws=draws))
odescale.plot(rollouts.policy_map(fit.costs, hazard=0.03))

# %% [markdown]
# ## What more of anything is worth


# %%
def makespan(costs, acceptance):
    """The mean time of a worker, by quadrature over lengths: differentiable by all costs."""
    import jax.numpy as jnp

    from odescale.systems.rollout.fluid import live_chances
    from odescale.systems.rollout.strategies import token_times

    g = token_times(costs, acceptance, system.policy, requests)[0]
    x, w = np.polynomial.legendre.leggauss(200)
    top = np.log1p(cap)
    place = jnp.expm1(top * (jnp.asarray(x) + 1) / 2)
    weight = jnp.asarray(w) * top / 2 * (1 + place)
    return jnp.sum(weight * (live_chances(requests, system.lengths.survival(place)) @ g))


print(rollouts.sensitivity(makespan, system.costs, system.acceptance))

# %% [markdown]
# ## A drafter that learns in the idle time
#
# It limits itself: the better it is, the less the others wait, and the less time is left to learn. One unit of t is one update of
# the policy. Rate, drift and floor are to be measured (`rollouts.fit_drafter`), here they are assumed.

# %%
learning = rollouts.drafter(
    lengths=lengths, body=body, cap=cap, requests=requests, workers=workers, threshold=8, rate=2e-3 if small else 1e-4
)
course = odescale.integrate(learning, 40.0)
print(course)
print({name: float(values[-1]) for name, values in course.observables.items()})
odescale.plot(course, kind="drafter")
