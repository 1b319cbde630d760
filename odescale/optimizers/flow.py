r"""Blocks of rows under optimisers of their own, put together: the flow of the overlaps of rows, velocities and second moments.

    dA = L (gradient) + K A dt        M_k = L_k (lam_k G + H) + K_k        dq_k/dt = M_k q_k + q_k M_k^T + lam_k L_k V L_k^T/B

    without momentum    L = -P on moving rows
    with momentum       L = gamma on velocities, K = -gamma there;  L = -P (1 - beta), K = -P beta on rows,  gamma = N (1 - beta)
                        (with Nesterov's look-ahead 1 - beta^2 and beta^2), divided by 1 - beta e^(-gamma t) for Adam
    decay               K = -s(t) w on moving rows
    Adam                the noise sees P at v, the drift at v + 2 (h_k q_k h_k^T)_ii/N: entries with a large mean move less

The state of a mode is a matrix: the P rows of the table, the velocities of rows that have one, and as diagonal entries behind
them the second moments v of rows under Adam. Derived in derivations/optimizers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.expectations.batch import AbstractBatchRule, BatchQuadrature, ClipRule, LionRule
from odescale.expectations.closure import AbstractClosure, Moments, SignOfAverage
from odescale.expectations.window import WindowRule
from odescale.generated import optimizers as derived
from odescale.optimizers.base import AbstractOptimizer, Seen


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

    def batch_rule(self) -> AbstractBatchRule | WindowRule | None:
        """What is done to the gradient of a whole batch before it is averaged; None: nothing that is not linear."""
        if self.clipped:
            return ClipRule(self.clip)
        orthogonal = [block for block in self.blocks if block.rule.window(()) is not None]
        if orthogonal:
            return orthogonal[0].rule.window(tuple(block.rows for block in orthogonal))
        return self.blocks[0].rule.batch_rule()

    def words(self) -> list[dict[str, Any]]:
        """Every block's rows, rule, numbers and rate over the system's; and the clipping: what tells two experiments apart."""
        each = [
            {"rows": list(b.rows), "rule": type(b.rule).__name__, "ratio": float(b.ratio)} | b.rule.words()
            for b in self.blocks
        ]
        return [*each, {"clip": float(self.clip)}] if self.clipped else each

    def text(self) -> str:
        """One line: each block's rule and numbers."""
        found = []
        for words in self.words():
            rule, rows = words.pop("rule", ""), words.pop("rows", [])
            inside = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in words.items())
            found.append(f"{rule} on {len(rows)} rows ({inside})" if rule else inside)
        return "; ".join(found)

    def _chosen(self, kind: str) -> np.ndarray:
        found = [
            r for b in self.blocks for r in b.rows if (b.has_velocities if kind == "velocity" else _second(b.rule))
        ]
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
        moments: Moments,
        spectrum: tuple[Float[Array, " modes"], Float[Array, " modes"]],
        batch: Array,
        rate: Array,
        relative: Array,
        moved: np.ndarray,
        own: Float[np.ndarray, "p P"],
    ) -> Float[Array, "modes R R"]:
        """dq_k/dt. `spectrum` (lam_k, w_k); `rate` a s(t), `relative` s(t); `moved` (p,) places of rows, `own` (p, P) the rows."""
        eigenvalues, weights = spectrum
        G, H, V = moments.G, moments.H, moments.V
        p, P = G.shape
        modes, size = len(eigenvalues), q.shape[1]
        places = self._places(p, P)
        lam = eigenvalues[:, None, None]
        sign = self.averages == "sign"
        h = jnp.sqrt(lam) * G + H / jnp.sqrt(lam) if sign else lam * G + H
        means = jnp.einsum("kip,kpq,kjq->kij", h, q[:, :P, :P], h)
        of_mean = jnp.tensordot(weights, means, axes=1)
        load = jnp.zeros((modes, size, p), q.dtype)
        heat = jnp.zeros_like(load)  # what the load of the noise has beside that of the drift
        linear = jnp.zeros((modes, size, size), q.dtype)
        change = more = jnp.zeros_like(q)
        for block in self.blocks:
            rows, rule = block.index, block.rule
            place, at = moved[rows], places.velocity[rows]
            v = of_noise = None
            if _second(rule):
                squares = jnp.einsum("kii->ki", means)[:, rows]
                noises = jnp.diag(V)[rows]
                target = derived.second_moment_target(eigenvalues[:, None], noises, batch, squares, self.trace)
                of_noise, moves = _second_moment(rule, q, places.second[rows], target, t, self.trace)
                v = derived.second_moment_of_drift(of_noise, squares, self.trace)
                change = change + moves
            gram = jnp.tensordot(weights, q[:, at[:, None], at[None, :]], axes=1) if block.has_velocities else None
            pair = np.ix_(rows, rows)
            seen = Seen(rate * block.ratio, self.trace, batch, eigenvalues, V[pair], of_mean[pair], v, gram)
            step = moments.of_step
            if step is not None and rule.window(()) is not None:
                size = rate * block.ratio
                pre = jnp.broadcast_to(size * step.P[pair], (modes, *step.P[pair].shape))
                linear = linear.at[:, place, :P].add(-size * (lam * step.G[rows] + step.H[rows]))
                own_rows = np.ix_(place, place)
                more = more.at[:, own_rows[0], own_rows[1]].add(size**2 * lam * step.V[pair] / batch)
            else:
                pre = rule.preconditioner(seen)
            linear = linear.at[:, place, :P].add(-relative * rule.decay * jnp.asarray(own[rows], q.dtype))
            if sign:
                load = load.at[:, place[:, None], rows[None, :]].add(-pre)
                continue
            hotter = 0.0 if of_noise is None else rule.preconditioner(seen._replace(second=of_noise)) - pre
            if not block.has_velocities:
                load = load.at[:, place[:, None], rows[None, :]].add(-pre)
                heat = heat.at[:, place[:, None], rows[None, :]].add(-hotter)
                continue
            damping = derived.velocity_damping(self.trace, rule.beta)
            ahead = derived.present_share(rule.beta, rule.nesterov)
            if _second(rule):
                bias = derived.average_bias(ahead, damping, t)
                pre, hotter = pre / bias, hotter / bias
            load = load.at[:, at, rows].set(damping)
            linear = linear.at[:, at, at].add(-damping)
            load = load.at[:, place[:, None], rows[None, :]].add(-ahead * pre)
            heat = heat.at[:, place[:, None], rows[None, :]].add(-ahead * hotter)
            linear = linear.at[:, place[:, None], at[None, :]].add(-(1 - ahead) * pre)
        noise = jnp.einsum("kri,ij,ksj->krs", load + heat, V, load + heat)
        noise = (noise if sign else lam * noise / batch) + more
        if moments.of_average is not None:
            gram = self._gram(q, weights, P) if self.velocities.size else None
            pull, extra = self._signs_of_averages(moments.of_average, load, lam, batch, moved, gram)
            linear, noise = linear + pull, noise + extra
        half = linear.at[:, :, :P].add(load @ h) @ q
        return half + jnp.swapaxes(half, 1, 2) + noise + change

    def _signs_of_averages(
        self, more: SignOfAverage, load: Array, lam: Array, batch: Array, moved: np.ndarray, gram: Array | None
    ) -> tuple[Float[Array, "modes R R"], Float[Array, "modes R R"]]:
        """(what the averages add to the linear part, and to the noise) under Lion; see `odescale.optimizers.signs`."""
        p, P = more.G.shape
        rule = self.blocks[0].rule
        beta2 = rule.beta
        rate = -load[:, moved, np.arange(p)]  # (modes, p): a ratio
        plain, s = lam * more.G + more.H, (1 - beta2) / (1 + beta2)
        usual = more.V / batch
        gains = more.gain[:, None] * more.gain
        own = np.ix_(moved, moved)
        both = rate[:, :, None] * rate[:, None, :]
        linear = jnp.zeros((len(load), load.shape[1], load.shape[1]), load.dtype)
        noise = jnp.zeros_like(linear)
        if gram is None:
            # At once where the average is; and steps share gradients: the correlations of all lags.
            pull = (rate * more.gain)[:, :, None] * plain / jnp.sqrt(lam)
            lags = more.gain[:, None] * more.cross.T + gains * (1 - s) / 2 * usual
            return linear.at[:, moved, :P].add(-pull), noise.at[:, own[0], own[1]].add(both * (lags + lags.T))
        damping, velocity = self.trace * (1 - beta2), P + np.arange(p)
        linear = linear.at[:, velocity, :P].add(damping * plain).at[:, velocity, velocity].add(-damping)
        linear = linear.at[:, moved, velocity].add(-rate * more.gain / jnp.sqrt(lam[:, 0]))
        noise = noise.at[:, own[0], own[1]].add(-both * gains * gram / self.trace)
        noise = noise.at[:, velocity[:, None], velocity].add(damping**2 * lam * usual)
        shared = -damping * jnp.sqrt(lam) * rate[:, :, None] * more.cross
        noise = noise.at[:, moved[:, None], velocity].add(shared)
        return linear, noise.at[:, velocity[:, None], moved].add(jnp.swapaxes(shared, 1, 2))

    def with_averages(
        self, closure: AbstractClosure, q: Float[Array, "modes R R"], weights: Float[Array, " modes"], P: int, t: Array
    ) -> AbstractClosure:
        """The closure with what it must know of the state: the second moments of the averages that Lion and Muon keep."""
        if not (isinstance(closure, BatchQuadrature) and self.velocities.size):
            return closure
        gram = self._gram(q, weights, P) / self.trace
        if isinstance(closure.rule, LionRule):
            return eqx.tree_at(lambda c: c.rule.average, closure, gram, is_leaf=lambda x: x is None)
        if isinstance(closure.rule, WindowRule):
            p = sum(len(block.rows) for block in self.blocks)
            average = jnp.zeros((p, p), gram.dtype).at[np.ix_(self.velocities, self.velocities)].set(gram)
            filled = -jnp.expm1(-2 * self.trace * (1 - closure.rule.beta) * t)
            return eqx.tree_at(
                lambda c: (c.rule.average, c.rule.filled), closure, (average, filled), is_leaf=lambda x: x is None
            )
        return closure

    def _gram(self, q: Array, weights: Array, P: int) -> Float[Array, "p p"]:
        at = P + np.arange(self.velocities.size)
        return jnp.tensordot(weights, q[:, at[:, None], at[None, :]], axes=1)

    def _places(self, p: int, P: int) -> Places:
        velocity, second = np.full(p, -1), np.full(p, -1)
        velocity[self.velocities] = P + np.arange(self.velocities.size)
        second[self.seconds] = P + self.velocities.size + np.arange(self.seconds.size)
        return Places(velocity, second)


class Places(NamedTuple):
    """Where in the state the velocity and the second moment of each row that moves stand; -1 where it has none."""

    velocity: np.ndarray
    second: np.ndarray


def _second(rule: AbstractOptimizer) -> bool:
    return rule.second_beta is not None


def _second_moment(
    rule: AbstractOptimizer, q: Array, at: np.ndarray, target: Float[Array, "modes b"], t: Array, trace: float
) -> tuple[Float[Array, "modes b"], Float[Array, "modes R R"]]:
    """(bias-corrected second moments, how those in the state move) towards `target`."""
    beta2 = rule.second_beta
    forgetting = derived.second_moment_forgetting(trace, beta2)
    kept = q[:, at, at]
    moves = jnp.zeros_like(q).at[:, at, at].set(forgetting * (target - kept))
    return derived.second_moment(kept, target, beta2, forgetting, t), moves
