r"""The fluid ODE of a rollout: N requests of random lengths, live ones share the rounds of a device.

    d E T/dl = E_n[g(n)],   n ~ Bin(N, S(l)),   g(n) = tau(n)/A(n),  g(0) = 0

T in plain rounds at batch 1, l in tokens: derived in `derivations/rollout/script.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, ndtr, xlog1py, xlogy
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.clock import Clock
from odescale.errors import InputError
from odescale.precision import require_x64
from odescale.systems import tables
from odescale.systems.base import AbstractSystem, Integration
from odescale.systems.parameters import Parameter, complete, is_traced, shown
from odescale.systems.rollout.cost import COSTS, Acceptance, Costs, costs_in
from odescale.systems.rollout.lengths import (
    AbstractLengths,
    CappedLengths,
    LognormalLengths,
    ParetoLengths,
    read_lengths,
)
from odescale.systems.rollout.strategies import Policy, parse_policy, round_spread, token_times

TOKEN = "token of every live request"


def live_chances(requests: int, survival: Float[Array, "..."]) -> Float[Array, "... n"]:
    """P(n live), n = 0 ... N, of N requests that are live with probability `survival` each: the binomial weights."""
    n = jnp.arange(requests + 1, dtype=float)
    ways = gammaln(requests + 1.0) - gammaln(n + 1) - gammaln(requests - n + 1)
    # At S = 0 and 1 the logarithms have no slope; so near to them it makes no difference.
    S = jnp.clip(survival, 1e-300, 1 - 2e-16)[..., None]
    return jnp.exp(ways + xlogy(n, S) + xlog1py(requests - n, -S))


class Rollout(AbstractSystem):
    r"""d E T/dl = E g(n), n ~ Bin(N, S(l)): time of a rollout against tokens, with strategies of speculation by batch.

    The loss is S(l), the share of answers that are still being written: a body that ends exponentially and a heavy tail are its two
    phases. State (3, workers of different size): E T; E int (1 - n/N) dT, the time that slots of finished requests stand idle; w,
    the variance that drawn acceptances give the place of a request: what is at the cap ends over sqrt(w) tokens, not at once.
    One unit of t is one token of every live request: no SGD step passes, the whole rollout is one update of the policy.

    **Fields**: `lengths` (S), `policy`; the numbers of `costs` (tau) and `acceptance` (A); `requests`: of each worker.
    **Observables**: `time` E T and `idle_slots` in plain rounds at batch 1, means over workers; `live` requests of a worker.
    **Failure regime**: exact in the mean for independent lengths and a policy that looks at the batch, up to
    (d/L)^2. Makespan, idle workers, quantiles: `odescale.rollouts.rollout_times`.
    Source: see `sources`.
    """

    lengths: AbstractLengths
    policy: Policy
    saturation: Float[Array, ""]
    sharpness: Float[Array, ""]
    context: Float[Array, ""]
    fixed: Float[Array, ""]
    draft: Float[Array, ""]
    crowding: Float[Array, ""]
    first: Float[Array, ""]
    hazard: Float[Array, ""]
    requests: tuple[int, ...] = eqx.field(static=True)
    law: str = eqx.field(static=True, default="lengths")
    label: str = eqx.field(static=True, default="rollout")

    name: ClassVar[str] = "rollout"
    loss_label: ClassVar[str] = "share of answers still being written"
    sources: ClassVar[tuple[str, ...]] = (
        "Hu et al. 2025, arXiv 2511.16665: rollouts with a long tail, speculation below a threshold",
        "Leviathan, Kalman & Matias 2023, arXiv 2211.17192: speculative decoding",
        "derivations/rollout/script.py: the fluid ODE with the binomial expectation",
    )
    parameters: ClassVar[tuple[Parameter, ...]] = tables.ROLLOUT

    def __check_init__(self) -> None:
        if not self.requests or min(self.requests) < 1:
            raise InputError("requests", expected="one worker or more with a request or more each", got=self.requests,
                             remedy="e.g. (128,)")  # fmt: skip

    @property
    def integration(self) -> Integration:
        return Integration(fine_rtol=1e-9)

    @property
    def clock(self) -> Clock:
        return Clock(1.0, tokens=0.0, step=TOKEN)

    @property
    def costs(self) -> Costs:
        """tau."""
        return costs_in(self)

    @property
    def acceptance(self) -> Acceptance:
        """A."""
        return Acceptance(self.first, self.hazard)

    @property
    def sizes(self) -> dict[int, float]:
        """Requests of a worker -> share of the workers that have so many."""
        return {n: self.requests.count(n) / len(self.requests) for n in sorted(set(self.requests))}

    def initial_state(self) -> Float[Array, "3 k"]:
        """[E T, idle slots, w] = 0, for every size of worker."""
        return jnp.zeros((3, len(self.sizes)))

    def vector_field(self, t: Real[ArrayLike, ""], y: Float[Array, "3 k"], args: Any = None) -> Float[Array, "3 k"]:
        """[E g, E (1 - n/N) g, E v] at t tokens."""
        rows = []
        for k, requests in enumerate(self.sizes):
            chance, scatter, _ = self.live(t, y[2, k], requests)
            g = token_times(self.costs, self.acceptance, self.policy, requests)[0]
            free = 1 - jnp.arange(requests + 1) / requests
            rows.append(jnp.stack([chance @ g, chance @ (free * g), scatter]))
        return jnp.stack(rows, axis=1)

    def live(
        self, t: Real[ArrayLike, ""], w: Float[Array, ""], requests: int
    ) -> tuple[Float[Array, " n"], Float[Array, ""], Float[Array, ""]]:
        """(P(n live), E v, S) of a worker at t tokens; v is that of a worker that is still at work."""
        scatter, surplus = round_spread(self.acceptance, self.policy, requests)
        first = live_chances(requests, self.survival(t, w, jnp.zeros(())))
        going = jnp.maximum(first[1:].sum(), 1e-300)  # 1 - P(0) would be noise where nearly all are done
        S = self.survival(t, w, first[1:] @ surplus[1:] / going)
        return live_chances(requests, S), first[1:] @ scatter[1:] / going, S

    def survival(self, t: Real[ArrayLike, ""], w: Float[Array, ""], surplus: Float[Array, ""]) -> Float[Array, ""]:
        """Share still being written at t tokens of the fluid: lengths are longer by the surplus of the last round, and what runs
        into the cap ends around it, with the standard deviation sqrt(w)."""
        length = jnp.clip(jnp.asarray(t, float) - surplus, 0.0, None)
        below = self.lengths.uncapped(jnp.minimum(length, self.lengths.cap))
        width = jnp.sqrt(jnp.maximum(w, 1e-12))
        smooth = ndtr((self.lengths.cap - length) / width)
        return below * jnp.where(w > 1e-9, smooth, jnp.where(length > self.lengths.cap, 0.0, 1.0))

    def excess_loss(self, t: Real[ArrayLike, ""], y: Float[Array, "3 k"]) -> Float[Array, ""]:
        """S(t), mean over the workers by their requests."""
        weight = jnp.asarray([n * share for n, share in self.sizes.items()])
        each = jnp.stack([self.live(t, y[2, k], n)[2] for k, n in enumerate(self.sizes)])
        return each @ weight / weight.sum()

    def observables(self, t: Real[ArrayLike, ""], y: Float[Array, "3 k"]) -> dict[str, Array]:
        """`time`, `idle_slots` and `live`, means over the workers; `spread` sqrt(w) of a request's place, in tokens."""
        share = jnp.asarray(list(self.sizes.values()))
        mean = float(np.mean(self.requests))
        return {
            "time": y[0] @ share, "idle_slots": y[1] @ share, "live": mean * self.excess_loss(t, y),
            "spread": jnp.sqrt(jnp.maximum(y[2] @ share, 0.0)),
        }  # fmt: skip

    def check(self) -> None:
        if any(is_traced(leaf) for leaf in jax.tree_util.tree_leaves(self)):
            return
        mean, cap = float(self.lengths.mean()), float(self.lengths.cap)
        if not mean < cap * (1 - 1e-9):
            raise InputError(
                "cap", expected="a cap above the mean length", got=f"{cap:g}, mean {mean:g}", remedy="raise it"
            )

    def summary(self) -> dict[str, Any]:
        numbers: dict[str, Any] = {"requests": list(self.requests), "lengths": self.law}
        for part in (self.lengths, self.costs, self.acceptance):
            numbers |= {n: float(v) for n, v in vars(part).items() if np.ndim(v) == 0}
        return numbers | {"mean_length": float(self.lengths.mean()), "policy": self.policy.text()}


def lengths_of(law: str, body: Any, spread: Any, at_cap: Any, cap: Any) -> AbstractLengths:
    """The law by its name with the numbers of the table; anything else is a file of lengths. A cap below the body is refused."""
    if (
        law in ("lognormal", "pareto", "capped")
        and not (is_traced(body) or is_traced(cap))
        and float(cap) <= float(body)
    ):
        raise InputError(
            "cap", expected=f"a cap above body = {float(body):g}", got=float(cap), remedy="raise it, or lower body"
        )
    if law == "lognormal":
        return LognormalLengths(median=body, sigma=spread, cap=cap)
    if law == "pareto":
        return ParetoLengths(scale=body, index=spread, cap=cap)
    if law == "capped":
        return CappedLengths(body=body, at_cap=at_cap, cap=cap)
    return read_lengths(law, cap)


def requests_of(requests: int, workers: int, imbalance: float) -> tuple[int, ...]:
    """Requests of each worker: `requests` on average, from 1 - imbalance to 1 + imbalance of it in even steps."""
    if workers == 1:
        return (requests,)
    return tuple(max(1, round(requests * (1 + imbalance * x))) for x in np.linspace(-1, 1, workers))


@shown(tables.ROLLOUT)
def rollout(
    *, lengths: AbstractLengths | str | None = None, policy: Policy | str | None = None, **given: Any
) -> Rollout:
    """A rollout of requests with random lengths under a policy of speculation: see `Rollout` for its equations.

    One unit of t is one token of every live request; the time that the ODE yields is in plain rounds at batch 1.

    **Arguments** (all optional): the words of `Rollout.parameters`; `lengths` may be a law (`odescale.rollouts`), a name
    (lognormal, pareto, capped) or a file of lengths; `policy` a `Policy` or its text. What the chosen law or policy does not read
    is refused. **Raises** `InputError` naming the argument. **Good values**: t1 = cap.
    """
    require_x64("rollout")
    built = lengths if isinstance(lengths, AbstractLengths) else None
    words = {
        k: v for k, v in {"lengths": None if built else lengths, "policy": text_of(policy)}.items() if v is not None
    }
    v = complete(tables.ROLLOUT, given | words, "rollout")
    law = type(built).__name__ if built else v["lengths"]
    unread(None if built else law, given, v["policy"] != "")
    law_of = built or lengths_of(law, v["body"], v["spread"], v["at_cap"], v["cap"])
    alone(v["workers"], given)
    below = Policy([v["threshold"]], [v["depth"]], [v["verified"]]) if not v["policy"] else None
    return Rollout(
        lengths=law_of,
        **{name: jnp.asarray(v[name], float) for name in (*COSTS, "first", "hazard")},  # pyright: ignore[reportArgumentType]
        policy=policy if isinstance(policy, Policy) else (below or parse_policy(v["policy"])),
        requests=requests_of(v["requests"], v["workers"], float(v["imbalance"])),
        law=law,
    )


def text_of(policy: Policy | str | None) -> str | None:
    """A policy as the text of its parameter; None where none is given."""
    return policy.text() if isinstance(policy, Policy) else policy


def alone(workers: int, given: dict[str, Any]) -> None:
    """One worker has no imbalance."""
    if workers == 1 and "imbalance" in given and float(given["imbalance"]) != 0:
        raise InputError(
            "imbalance", expected="two workers or more beside it", got=given["imbalance"], remedy="set workers"
        )


def unread(law: str | None, given: dict[str, Any], by_policy: bool) -> None:
    """An argument that the chosen law or policy would not read is an error, not a silence."""
    read = {
        "lognormal": ("body", "spread", "cap"),
        "pareto": ("body", "spread", "cap"),
        "capped": ("body", "at_cap", "cap"),
    }
    own = () if law is None else read.get(law, ("cap",))
    for name in ("body", "spread", "at_cap", "cap"):
        if name in given and name not in own:
            what = "a law that is passed as it is" if law is None else f"lengths = {law}"
            raise InputError(name, expected=f"nothing beside {what}", got=given[name], remedy="leave it out")
    for name in ("threshold", "depth", "verified"):
        if name in given and by_policy:
            raise InputError(name, expected="nothing beside a policy", got=given[name], remedy="put it into the policy")
