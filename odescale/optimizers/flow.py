r"""Blocks of rows under optimisers of their own, put together: the flow of the overlaps of rows, velocities and second moments.

    dA = L (gradient) + K A dt        M_k = L_k (lam_k G + H) + K_k        dq_k/dt = M_k q_k + q_k M_k^T + lam_k L_k V L_k^T/B

    without momentum    L = -P on moving rows
    with momentum       L = gamma on velocities, K = -gamma there;  L = -P (1 - beta), K = -P beta on rows,  gamma = N (1 - beta)
                        (with Nesterov's look-ahead 1 - beta^2 and beta^2), divided by 1 - beta e^(-gamma t) for Adam
    decay               K = -s(t) w on moving rows

The state of a mode is a matrix: the P rows of the table, the velocities of rows that have one, and as diagonal entries behind
them the second moments v of rows under Adam. Derived in derivations/optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.errors import InputError, OutsideTheoryError
from odescale.optimizers.base import LARGEST_DAMPING, AbstractOptimizer, Seen


class Block(eqx.Module):
    """Rows under one optimiser, by their numbers among the rows that move; its rate in units of the system's learning rate."""

    rows: tuple[int, ...] = eqx.field(static=True)
    rule: AbstractOptimizer
    ratio: Float[Array, ""]
    has_velocities: bool = eqx.field(static=True)

    @property
    def index(self) -> np.ndarray:
        """`rows` as an array."""
        return np.asarray(self.rows)


class Drift(NamedTuple):
    """Averages at one time as the flow reads them: h_k = lam_k G + H (modes, p, P) and what lam_k multiplies in the noise."""

    mean: Float[Array, "modes p P"]
    noise: Float[Array, "p p"]


class RowOptimizers(eqx.Module):
    """The optimisers of all p rows that move, block by block; see the module. Made by `row_optimizers`.

    `clip`: largest norm of the whole gradient, inf for none; `trace`: N.
    """

    blocks: tuple[Block, ...]
    clip: Float[Array, ""]
    trace: float = eqx.field(static=True)
    clipped: bool = eqx.field(static=True)

    @property
    def averages(self) -> str:
        """The closure that the rows need."""
        return self.blocks[0].rule.averages

    @property
    def joint(self) -> bool:
        """Whether the averages are over the B sequences of a batch at once."""
        return self.clipped or self.averages == "sign"

    def _chosen(self, kind: str) -> np.ndarray:
        found = [r for b in self.blocks for r in b.rows if (b.has_velocities if kind == "velocity" else _second(b.rule))]
        return np.asarray(sorted(found), dtype=int)

    @property
    def velocities(self) -> np.ndarray:
        """Rows, among those that move, that carry a velocity."""
        return self._chosen("velocity")

    @property
    def seconds(self) -> np.ndarray:
        """Rows, among those that move, that carry a second moment."""
        return self._chosen("second")

    @property
    def extra(self) -> int:
        """Rows of the state behind the table."""
        return self.velocities.size + self.seconds.size

    def flow(
        self,
        t: Array,
        q: Float[Array, "modes R R"],
        averages: tuple[Float[Array, "p P"], Float[Array, "p P"], Float[Array, "p p"]],
        eigenvalues: Float[Array, " modes"],
        weights: Float[Array, " modes"],
        batch: Array,
        rate: Array,
        relative: Array,
        moved: np.ndarray,
        own: Float[np.ndarray, "p P"],
    ) -> Float[Array, "modes R R"]:
        """dq_k/dt. `averages` (G, H, V); `rate` a s(t), `relative` s(t); `moved` (p,) places of the rows, `own` (p, P) as rows."""
        G, H, V = averages
        p, P = G.shape
        modes, size = len(eigenvalues), q.shape[1]
        velocity = np.full(p, -1)
        velocity[self.velocities] = P + np.arange(self.velocities.size)
        second = np.full(p, -1)
        second[self.seconds] = P + self.velocities.size + np.arange(self.seconds.size)
        lam = eigenvalues[:, None, None]
        sign = self.averages == "sign"
        h = jnp.sqrt(lam) * G + H / jnp.sqrt(lam) if sign else lam * G + H
        table = q[:, :P, :P]
        means = jnp.einsum("kip,kpq,kjq->kij", h, table, h)
        load = jnp.zeros((modes, size, p), q.dtype)
        linear = jnp.zeros((modes, size, size), q.dtype)
        change = jnp.zeros_like(q)
        for block in self.blocks:
            rows, rule = block.index, block.rule
            v = None
            if _second(rule):
                target = eigenvalues[:, None] * jnp.diag(V)[rows] / batch
                target = target + jnp.einsum("kii->ki", means)[:, rows] / self.trace
                beta2 = rule.second_beta
                forgetting = -self.trace * jnp.log(beta2)
                at = second[rows]
                kept = q[:, at, at]
                change = change.at[:, at, at].set(forgetting * (target - kept))
                # The moment of a step holds its own gradient too.
                v = (kept + (1 - beta2) * (target - kept)) / (1 - beta2 * jnp.exp(-forgetting * t))
            gram = None
            if block.has_velocities:
                at = velocity[rows]
                gram = jnp.tensordot(weights, q[:, at[:, None], at[None, :]], axes=1)
            seen = Seen(
                rate * block.ratio, self.trace, batch, eigenvalues, V[np.ix_(rows, rows)],
                jnp.tensordot(weights, means, axes=1)[np.ix_(rows, rows)], v, gram,
            )  # fmt: skip
            pre = rule.preconditioner(seen)
            place = moved[rows]
            linear = linear.at[:, place, :P].add(-relative * rule.decay * jnp.asarray(own[rows], q.dtype))
            if not block.has_velocities:
                load = load.at[:, place[:, None], rows[None, :]].add(-pre)
                continue
            beta, at = rule.beta, velocity[rows]
            damping = self.trace * (1 - beta)
            ahead = 1 - beta**2 if rule.nesterov else 1 - beta
            if _second(rule):
                pre = pre / (1 - beta * jnp.exp(-damping * t))
            load = load.at[:, at, rows].set(damping)
            linear = linear.at[:, at, at].add(-damping)
            load = load.at[:, place[:, None], rows[None, :]].add(-ahead * pre)
            linear = linear.at[:, place[:, None], at[None, :]].add(-(1 - ahead) * pre)
        M = linear.at[:, :, :P].add(load @ h)
        half = M @ q
        noise = jnp.einsum("kri,ij,ksj->krs", load, V, load)
        noise = noise if sign else lam * noise / batch
        # Second moments sit on the diagonal and are moved by their own equation alone.
        flow = half + jnp.swapaxes(half, 1, 2) + noise
        return flow + change


def _second(rule: AbstractOptimizer) -> bool:
    return rule.second_beta is not None
