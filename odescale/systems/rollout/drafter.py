r"""The drafter across updates of the policy: it learns in the idle time of workers, and leaves less of it the better it is.

    dkappa/dt = -r tau (kappa - kappa_inf - delta/(1 - e^(-r tau))),   tau = tau_idle(a_1),   a_1 = 1 - c sqrt(kappa/pi)

With t in updates the flow passes through all points of the slow map kappa -> kappa_inf + (kappa - kappa_inf) e^(-r tau) + delta
while tau stays: `derivations/rollout/script.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.clock import Clock
from odescale.errors import InputError
from odescale.generated import rollout as formulas
from odescale.precision import require_x64
from odescale.systems import tables
from odescale.systems.base import AbstractSystem, Integration
from odescale.systems.parameters import Parameter, complete, is_traced, shown
from odescale.systems.rollout.cost import COSTS, Acceptance, Costs, costs_in
from odescale.systems.rollout.fluid import lengths_of, requests_of, text_of, unread
from odescale.systems.rollout.lengths import AbstractLengths
from odescale.systems.rollout.makespan import draw_chances, idle_time, tokens_by_live, worker_times
from odescale.systems.rollout.strategies import Policy, parse_policy, token_times

DRAWS = 256
"""Drawn rollouts over which the idle time is an average: the same for every kappa, so that the flow is smooth."""
UPDATE = "update of the policy"


class Drafter(AbstractSystem):
    r"""dkappa/dt = -r tau (kappa - kappa_inf - delta/(1 - e^(-r tau))): misalignment that rollouts see, t in updates of the policy.

    kappa = KL(target || drafter) in nats per token right after an update; the loss is kappa - kappa_inf. The idle time tau is that
    of the workers of a rollout with the acceptance that belongs to kappa: an average over drawn lengths. One unit of t is one
    update of the policy.

    **Fields**: `kappa` at the start, `floor` kappa_inf, `drift` delta, `rate` r per plain round of idle time, `shape` c; `hazard`,
    `lengths`, `policy`, numbers of the costs, `requests` of every worker as in `Rollout`; `chances` of `draw_chances`.
    **Observables**: `kappa`; `acceptance` a_1; `accepted`, tokens of a round with one request live; `idle`, `makespan` in plain
    rounds; `gain`, plain makespan over that. **Failure regime**: exact at integer t while tau stays; where it moves by a share x
    per update, within about x of the map. Relaxation at one rate and drift that adds up are assumptions: measure them
    (`odescale.rollouts.fit_drafter`). Source: see `sources`.
    """

    kappa: Float[Array, ""]
    floor: Float[Array, ""]
    drift: Float[Array, ""]
    rate: Float[Array, ""]
    shape: Float[Array, ""]
    hazard: Float[Array, ""]
    lengths: AbstractLengths
    policy: Policy
    saturation: Float[Array, ""]
    sharpness: Float[Array, ""]
    context: Float[Array, ""]
    fixed: Float[Array, ""]
    draft: Float[Array, ""]
    crowding: Float[Array, ""]
    chances: Float[Array, "d w n"]
    requests: tuple[int, ...] = eqx.field(static=True)
    law: str = eqx.field(static=True, default="lengths")
    label: str = eqx.field(static=True, default="drafter")

    name: ClassVar[str] = "drafter"
    loss_label: ClassVar[str] = "KL(target || drafter) above its floor"
    sources: ClassVar[tuple[str, ...]] = (
        "Hu et al. 2025, arXiv 2511.16665: a drafter trained on idle workers",
        "derivations/rollout/script.py: slow map, fixed point and the flow through its points",
    )
    parameters: ClassVar[tuple[Parameter, ...]] = tables.DRAFTER

    @property
    def integration(self) -> Integration:
        return Integration(fine_rtol=None)

    @property
    def clock(self) -> Clock:
        return Clock(1.0, tokens=0.0, step=UPDATE)

    @property
    def costs(self) -> Costs:
        """tau."""
        return costs_in(self)

    def initial_state(self) -> Float[Array, " 1"]:
        """[kappa(0)]."""
        return self.kappa[None]

    def acceptance(self, kappa: Float[Array, ""]) -> Acceptance:
        """a_1 = 1 - c sqrt(kappa/pi), not below 0, with the hazard of further places."""
        return Acceptance(jnp.clip(1 - formulas.total_variation(kappa, self.shape), 0.0, 1.0), self.hazard)

    def stretches(self) -> Float[Array, "d w m"]:
        """Tokens of the drawn rollouts by live requests."""
        return tokens_by_live(self.lengths, self.chances, self.requests)

    def idle(self, kappa: Float[Array, ""]) -> Float[Array, ""]:
        """Mean idle time of a worker in a rollout at kappa, in plain rounds."""
        return idle_time(self.stretches(), self.token_time(kappa))

    def token_time(self, kappa: Float[Array, ""]) -> Float[Array, " m"]:
        """g(n) at kappa."""
        return token_times(self.costs, self.acceptance(kappa), self.policy, max(self.requests))[0]

    def vector_field(self, t: Real[ArrayLike, ""], y: Float[Array, " 1"], args: Any = None) -> Float[Array, " 1"]:
        """[dkappa/dt]."""
        kappa, idle = y[0], self.idle(y[0])
        # Without any idle time the flow's limit is the drift.
        safe = jnp.maximum(idle, 1e-12 / jnp.maximum(self.rate, 1e-300))
        flow = formulas.drafter_flow(kappa, self.floor, self.drift, self.rate, safe)
        return jnp.where(self.rate * idle > 1e-12, flow, self.drift)[None]

    def excess_loss(self, t: Real[ArrayLike, ""], y: Float[Array, " 1"]) -> Float[Array, ""]:
        """kappa - kappa_inf."""
        return y[0] - self.floor

    def observables(self, t: Real[ArrayLike, ""], y: Float[Array, " 1"]) -> dict[str, Array]:
        """`kappa`, `acceptance`, `accepted`, `idle`, `makespan`, `gain`."""
        own, stretches = self.acceptance(y[0]), self.stretches()
        g = token_times(self.costs, own, self.policy, max(self.requests))[0]
        plain = token_times(self.costs, own, Policy(), max(self.requests))[0]
        makespan, without = (worker_times(stretches, x).max(axis=1).mean() for x in (g, plain))
        depth, _ = self.policy.at(jnp.ones(1))
        return {
            "kappa": y[0], "acceptance": own.first, "accepted": own.tokens(depth)[0], "idle": idle_time(stretches, g),
            "makespan": makespan, "gain": without / makespan,
        }  # fmt: skip

    def check(self) -> None:
        if any(is_traced(leaf) for leaf in jax.tree_util.tree_leaves(self)):
            return
        if len(self.requests) < 2:
            raise InputError("workers", expected="two workers or more: one alone never waits", got=len(self.requests),
                             remedy="e.g. workers=8")  # fmt: skip
        if not bool(jnp.all(jnp.isnan(self.policy.tokens))):
            raise InputError("policy", expected="strategies without measured tokens: the drafter's are those of kappa",
                             got=self.policy.text(), remedy="leave @TOKENS out")  # fmt: skip
        if not float(self.kappa) > float(self.floor):
            raise InputError("kappa", expected=f"a start above floor = {float(self.floor):g}", got=float(self.kappa),
                             remedy="raise kappa")  # fmt: skip

    def summary(self) -> dict[str, Any]:
        names = ("kappa", "floor", "drift", "rate", "shape", "hazard")
        numbers: dict[str, Any] = {name: float(getattr(self, name)) for name in names}
        numbers |= {"requests": list(self.requests), "lengths": self.law, "policy": self.policy.text()}
        for part in (self.lengths, self.costs):
            numbers |= {n: float(v) for n, v in vars(part).items() if np.ndim(v) == 0}
        return numbers


@shown(tables.DRAFTER)
def drafter(
    *, lengths: AbstractLengths | str | None = None, policy: Policy | str | None = None, **given: Any
) -> Drafter:
    """A drafter that learns while workers wait: see `Drafter` for its equations. One unit of t is one update of the policy.

    **Arguments** (all optional): the words of `Drafter.parameters`; `lengths` and `policy` as in `rollout`.
    **Raises** `InputError` naming the argument. **Good values**: t1 20 to 200 updates; `rate` such that r tau is of order one.
    """
    require_x64("drafter")
    built = lengths if isinstance(lengths, AbstractLengths) else None
    words = {
        k: v for k, v in {"lengths": None if built else lengths, "policy": text_of(policy)}.items() if v is not None
    }
    v = complete(tables.DRAFTER, given | words, "drafter")
    unread(None if built else v["lengths"], given, v["policy"] != "")
    below = Policy([v["threshold"]], [v["depth"]], [v["verified"]]) if not v["policy"] else None
    requests = requests_of(v["requests"], v["workers"], float(v["imbalance"]))
    names = ("kappa", "floor", "drift", "rate", "shape", "hazard", *COSTS)
    return Drafter(
        **{name: jnp.asarray(v[name], float) for name in names},  # pyright: ignore[reportArgumentType]
        lengths=built or lengths_of(v["lengths"], v["body"], v["spread"], v["at_cap"], v["cap"]),
        policy=policy if isinstance(policy, Policy) else (below or parse_policy(v["policy"])),
        chances=jnp.asarray(draw_chances(requests, DRAWS, 0)),
        requests=requests,
        law=type(built).__name__ if built else v["lengths"],
    )
