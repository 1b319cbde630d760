r"""Is a system one that its theory covers? A judgement before any run, from the sizes of what the theory neglects.

    rows:       P/d                                    a finite number of rows in many dimensions
    step:       eta lam_1 |G|/N                        the change of the fastest mode in one step; the ODE takes it as zero
    noise:      eta c/(2 B),  c = E sum_ts rho_ts tr(J_t^T l'' J_s)     beyond 1 the gradient noise outgrows the drift
    spectrum:   1/d_eff,  d_eff = (tr Sigma)^2/tr Sigma^2               fluctuations of norms and fields
    momentum:   (1 - mu) N                             steps per unit of t in which a velocity relaxes

    context:    |L_T(0)/L(0) - 1|                                 an infinite context against the system's own number of tokens
    softmax:    2 C_kk C_qq                                       beyond 1 a few tokens carry the softmax average

J_t = df/dphi_t and l'' the second derivative of the loss in the outputs, averaged at the start and near the teacher. The limits
are those of the table in docs/coverage.md, where each judgement is held against direct simulation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.errors import InputError
from odescale.expectations.automatic import node_dimension
from odescale.expectations.closure import factor
from odescale.expectations.nodes import sobol_nodes
from odescale.expectations.sampled import sample_context
from odescale.generated import attention as formulas
from odescale.networks.architecture import FieldNetwork
from odescale.networks.teacher_student import TeacherStudent
from odescale.systems.attention import Attention
from odescale.systems.base import AbstractSystem
from odescale.systems.mean_field import MeanField

LIMITS = {
    "context": 0.1,
    "softmax": 1.0,
    "rows": 0.1,
    "step": 0.2,
    "noise": 1.0,
    "spectrum": 1 / 8,
    "momentum": 1 / 20,
    "norms": 1 / 100,
}
"""Largest admissible values; `norms` is 1/d_eff for networks that normalise tokens."""
MOST_TOKENS = 512
"""Tokens up to which the sampled closure at the start costs little more than a second."""
LARGE = 0.3
"""Share of a limit above which a warning says that corrections may be visible."""

EXPLAIN = {
    "context": "at its own number of tokens the loss at t = 0 is off by {value:.1%} (limit {limit:.0%}): set context=sampled or "
    "raise tokens",
    "softmax": "2 C_kk C_qq = {value:.3g} (limit {limit:g}) at the start: a few tokens carry the softmax average; weaken the rows",
    "rows": "{value:.3g} rows per dimension (limit {limit:g}): the theory has a fixed number of rows as d grows; raise d",
    "step": "one step moves the fastest mode by {value:.3g} (limit {limit:g}): lower learning_rate or raise d",
    "noise": "learning_rate is {value:.3g} of the stable one, 2 B/c: lower it or raise batch",
    "spectrum": "1/d_eff = {value:.3g} (limit {limit:.3g}): too few directions carry the tokens; flatten the spectrum",
    "momentum": "velocities relax in 1/{inverse:.3g} units of t (limit {limit:g}): use friction = (1 - momentum) N instead",
    "norms": "token norms fluctuate by 1/d_eff = {value:.3g} (limit {limit:g}), the theory takes them as fixed: raise d",
}


class Coverage(eqx.Module):
    """`inside`, the `reasons` why not, `warnings` where corrections may be visible, and the `numbers` behind them."""

    inside: bool = eqx.field(static=True)
    reasons: tuple[str, ...] = eqx.field(static=True)
    warnings: tuple[str, ...] = eqx.field(static=True)
    numbers: dict[str, float] = eqx.field(static=True)

    def __str__(self) -> str:
        if not self.inside:
            return "outside the theory: " + "; ".join(self.reasons)
        return "inside the theory" + ("; " + "; ".join(self.warnings) if self.warnings else "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "inside": self.inside,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            "numbers": dict(self.numbers),
        }


def coverage(system: AbstractSystem) -> Coverage:
    """Whether finite-d SGD of this system should follow its mean-field ODE to some per cent. See the module.

    A judgement of sizes at the start and near the teacher; the comparison with a run (`compare`) has the last
    word. For a `MeanField` system and for `Attention`; takes about a second (one compilation). One unit of t is N = tr Sigma SGD
    steps. **Raises** `InputError` for a theory without such a judgement. **Failure regime**: gradients of heavy tails (two layers
    of linear attention, quadratic units) can diverge in single runs although every size here is small.
    """
    if system.name not in JUDGES:
        raise InputError(
            "system",
            expected=f"one of the theories {', '.join(JUDGES)}",
            got=system.name,
            remedy="compare it with a run",
        )
    return judged(JUDGES[system.name](system))


def judged(numbers: dict[str, float]) -> Coverage:
    """The verdict on sizes by name, against `LIMITS`."""
    reasons, warnings = [], []
    for name, value in numbers.items():
        limit = LIMITS[name]
        text = EXPLAIN[name].format(value=value, limit=limit, inverse=1 / max(value, 1e-300))
        if not value < limit:
            reasons.append(text)
        elif value > LARGE * limit:
            warnings.append(text)
    return Coverage(not reasons, tuple(reasons), tuple(warnings), numbers)


def _of_mean_field(system: MeanField) -> dict[str, float]:
    eta = float(system.learning_rate) / (1 - float(system.momentum))
    if system.inertial:  # the stationary velocity is gradient/gamma
        eta = eta / float(system.friction)
    curvature, spread = _curvature(system)
    lam = float(np.max(np.asarray(system.eigenvalues)))
    numbers = {
        "rows": system.problem.size / system.dimension,
        "step": eta * lam * curvature / system.trace,
        # A velocity averages the noise over its memory.
        "noise": 0.0 if system.inertial else float(system.noise) * eta * spread / (2 * float(system.batch)),
        "spectrum": 1 / system.effective_dimension,
    }
    if float(system.momentum) > 0:
        numbers["momentum"] = 1 / ((1 - float(system.momentum)) * system.dimension)
    if system.problem.student.needs_norm or system.problem.teacher.needs_norm:
        numbers["norms"] = 1 / system.effective_dimension
    return numbers


def _of_attention(system: Attention) -> dict[str, float]:
    """Sizes at the start: tokens against an infinite context, loads of the softmax average, rows and directions."""
    C, R = system.couple(jnp.asarray(system.initial_overlaps))
    tokens, whole = float(system.tokens), float(system.trace)
    numbers = {
        "rows": float(system.trained.sum()) / whole if system.eigenvalues.shape[0] == 1 else 0.0,
        "noise": float(system.noise) * float(system.learning_rate) / float(system.stability_bound()),
        "softmax": max(
            float(softmax_load(C, R, n)) for n in (system.architecture.student, system.architecture.teacher)
        ),
    }
    limitless = not (system.finite_context or system.sampled is not None)
    simple = not system.writes_back and system.eigenvalues.shape[0] == 1
    # Beyond a load of one the sampled average is a few tokens: the first size has said so.
    if limitless and simple and np.isfinite(tokens) and tokens <= MOST_TOKENS and numbers["softmax"] < 1:
        own = sample_context(system.architecture.size, int(tokens)).loss(C, system.architecture)
        numbers["context"] = abs(float(own) / float(system.excess_loss(0.0, system.initial_state())) - 1)
    return numbers


def softmax_load(C: Float[Array, "P P"], R: Float[Array, "P P"], network: FieldNetwork) -> Float[Array, ""]:
    """max over heads of 2 C_kk C_qq in the fields that enter the head's layer; 0 without heads that query."""
    maps = formulas.layers(C, R, network)
    load = jnp.zeros((), C.dtype)
    for depth, layer in enumerate(network.layers):
        covariance = maps[depth] @ C @ maps[depth].T
        for head in layer:
            if head.query is not None and head.key is not None:
                load = jnp.maximum(load, 2 * covariance[head.key, head.key] * covariance[head.query, head.query])
    return load


def _curvature(system: MeanField, count: int = 512) -> tuple[float, float]:
    """Largest (|G|, c) at the start and near the teacher."""
    problem = system.problem
    nodes = jnp.asarray(sobol_nodes(node_dimension(problem), count, 1, seed=1).points[0], dtype=float)
    basis = problem.difference_basis()
    near = np.eye(problem.size)
    for student, _ in problem.pairs:
        near[student, student] = 0.1
    worst = np.zeros(2)
    C, R = (np.asarray(x) for x in system.couple(jnp.asarray(system.initial_overlaps)))
    for move in (np.eye(problem.size), near):
        pair = (jnp.asarray(move @ basis @ x @ basis.T @ move.T) for x in (C, R))
        G, c = _gauss_newton(problem, nodes, *pair)
        worst = np.maximum(worst, [float(np.linalg.eigvalsh(np.asarray(G))[-1]), float(c)])
    return float(worst[0]), float(worst[1])


@eqx.filter_jit
def _gauss_newton(
    problem: TeacherStudent, nodes: Float[Array, "n D"], C: Float[Array, "P P"], R: Float[Array, "P P"]
) -> tuple[Float[Array, "p p"], Float[Array, ""]]:
    """E sum_t J_t^T l'' J_t and E sum_ts rho_ts tr(J_t^T l'' J_s) at overlaps in difference rows."""
    T, P, moved = problem.tokens, problem.size, problem.moved
    back = jnp.asarray(2 * np.eye(P) - problem.difference_basis())
    root, plain_R = back @ factor(C, problem.trained), back @ R @ back.T
    token_root, rho = jnp.asarray(problem.token_root), jnp.asarray(problem.correlation)

    def one(node):
        phi = (token_root @ node[: T * P].reshape(T, P)) @ root.T

        def student(columns):
            return problem.outputs_on_fields(phi.at[:, moved].set(columns), plain_R)[0]

        f, target = problem.outputs_on_fields(phi, plain_R)
        J = jax.jacrev(student)(phi[:, moved]).reshape(f.size, T, moved.size)
        second = jax.hessian(lambda v: problem.loss.mean(v.reshape(f.shape), target))(f.ravel())
        return jnp.einsum("ati,ab,btj->ij", J, second, J), jnp.einsum("ati,ab,bsi,ts->", J, second, J, rho)

    G, c = jax.lax.map(one, nodes, batch_size=64)
    return G.mean(axis=0), c.mean()


JUDGES: dict[str, Callable[[Any], dict[str, float]]] = {"mean_field": _of_mean_field, "attention": _of_attention}
"""By `system.name`: the sizes of what the theory neglects."""
