r"""Sizes of what the theory neglects where rows move by an optimiser of their own (`odescale.optimizers`).

    rows, spectrum, norms:  as under plain SGD
    step:       largest |P_k lam_k G|/N of all modes            the move of the fastest mode in one step
    mean:       (B (h q h^T)_ii/(N V_ii))^2, Adam               the mean gradient beside the noise, in what divides the step
    saturation: (h q h^T)_ii/N, over (1 - beta1)^2 for Lion     squared mean of a sign: beyond, signs no longer answer linearly
    window:     2 (1 - mu^2)/((1 + mu^2) B), of a closed form      what divides Muon's step is an average over a few batches
    memory:     1 - beta2                                       what divides Adam's step, over 1/(1 - beta2)
    jumps:      as under plain SGD, at the learning rate P, for SGD and Adam; a sign and an orthogonal step have a fixed length

All at the start, V as the noise of the closure there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.cache.programs import program
from odescale.expectations.window import WindowRule
from odescale.optimizers.base import Seen
from odescale.optimizers.flow import Block

if TYPE_CHECKING:
    from odescale.systems.mean_field import MeanField


@program
def _at_start(system: MeanField) -> tuple[Array, Array, Array]:
    """(h_k (modes, p, P), V (p, p), sum_k w_k h q h^T (p, p)) at the start, averaged over replicates."""
    q = system.initial_state()

    def one(replicate):
        m = system.moments(*system.couple(q[replicate]), replicate)
        return m.G, m.H, m.V

    G, H, V = (x.mean(axis=0) for x in jax.lax.map(one, jnp.arange(q.shape[0])))
    lam, P = system.eigenvalues[:, None, None], system.problem.size
    h = jnp.sqrt(lam) * G + H / jnp.sqrt(lam) if _signs(system) else lam * G + H
    return h, V, jnp.einsum("k,kip,kpq,kjq->ij", system.weights, h, q[0, :, :P, :P], h)


def _signs(system: MeanField) -> bool:
    return system.optimizers is not None and system.optimizers.averages == "sign"


def sizes(system: MeanField) -> tuple[dict[str, float], float]:
    """(sizes by name, the plain learning rate whose single steps are as long; 0 where their length is fixed)."""
    assert system.optimizers is not None
    h, V, mean = (np.asarray(x) for x in _at_start(system))
    found = {"step": 0.0}
    longest = 0.0
    for block in system.optimizers.blocks:
        rows = block.index
        P = _preconditioner(system, block, V[np.ix_(rows, rows)], mean[np.ix_(rows, rows)])
        moved = np.einsum("kij,kjp->kip", P, h[:, rows])[:, :, system.problem.moved[rows]]
        fastest = max(float(np.abs(np.linalg.eigvals(x)).max()) for x in moved)
        found["step"] = max(found["step"], fastest / system.trace)
        noise = np.diag(V)[rows]
        ratio = float(np.max(float(system.batch) * np.diag(mean)[rows] / np.maximum(noise, 1e-300))) / system.trace
        if block.rule.second_beta is not None:
            found["mean"] = max(found.get("mean", 0.0), min(ratio, 1e6) ** 2)
            found["memory"] = max(found.get("memory", 0.0), 1 - float(block.rule.second_beta))
        elif _signs(system):
            # Of an average over many steps the mean is as large as of all of them, the noise of a few.
            share = (1 - float(block.rule.beta1)) ** 2 if block.rule.beta is not None else 1.0  # type: ignore[attr-defined]
            signs = float(np.max(np.diag(mean)[rows])) / system.trace / share
            found["saturation"] = max(found.get("saturation", 0.0), signs)
        if block.rule.word in ("sgd", "adam"):
            at = int(np.argmin(np.abs(np.asarray(system.eigenvalues) - 1)))
            longest = max(longest, float(np.abs(P[at]).max()))
        beta = block.rule.beta
        if block.rule.window(()) is not None and not isinstance(getattr(system.closure, "rule", None), WindowRule):
            mu = float(block.rule.beta) ** 2  # type: ignore[arg-type]
            found["window"] = 2 * (1 - mu) / (1 + mu) / float(system.batch)
        if beta is not None and not block.has_velocities and float(beta) > 0:
            found["momentum"] = 1 / ((1 - float(beta)) * system.trace)
    return found, longest


def _preconditioner(
    system: MeanField, block: Block, V: Float[np.ndarray, "b b"], mean: Float[np.ndarray, "b b"]
) -> Float[np.ndarray, "modes b b"]:
    """P_k of a block at rest: second moments at the noise, averages at the gradient."""
    lam = jnp.asarray(system.eigenvalues)
    second = lam[:, None] * np.diag(V) / system.batch + np.diag(mean) / system.trace
    seen = Seen(
        system.learning_rate * block.ratio, system.trace, system.batch, lam, jnp.asarray(V), jnp.asarray(mean),
        jnp.asarray(second), None,
    )  # fmt: skip
    return np.asarray(block.rule.preconditioner(seen))
