r"""Sizes of what the mean-field theory of a `MeanField` system neglects.

    rows:       P/d                                    a finite number of rows in many dimensions
    step:       eta lam_1 |G|/N                        the change of the fastest mode in one step; the ODE takes it as zero
    noise:      eta c/(2 B),  c = E sum_ts rho_ts tr(J_t^T l'' J_s)     beyond 1 the gradient noise outgrows the drift
    jumps:      steps per unit of t that throw a row off its path: `odescale.solve.judges.tails`
    spectrum:   1/d_eff,  d_eff = (tr Sigma)^2/tr Sigma^2               fluctuations of norms and fields
    momentum:   (1 - mu) N                             steps per unit of t in which a velocity relaxes

J_t = df/dphi_t and l'' the second derivative of the loss in the outputs, averaged at the start and near the teacher. With
momentum mu eta is eta/(1 - mu). With friction, dW = -eta U, dU = -gamma U + gradient, an error e of curvature kappa whose gradient
has the noise c e^2/B obeys

    d<e^2> = -2 eta <e U>,   d<e U> = -gamma <e U> + kappa <e^2> - eta <U^2>,
    d<U^2> = -2 gamma <U^2> + 2 kappa <e U> + (kappa c/B) <e^2>

which stands still at eta/gamma = 2 B/c: the noise is that of plain SGD at the learning rate eta/gamma. Its fastest rate is the
larger root of s^2 - gamma s + eta kappa lam_1 = 0, at most gamma or sqrt(eta kappa lam_1).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.cache.programs import program
from odescale.expectations.automatic import node_dimension
from odescale.expectations.nodes import sobol_nodes
from odescale.networks.teacher_student import TeacherStudent
from odescale.solve.judges import optimizers
from odescale.solve.judges.tails import JUMP, rare_share
from odescale.systems.mean_field import MeanField

NODES = 2**12
"""Nodes of the averages in each state, for three tokens; four times as many for the tails."""
STATES = (1.0, 0.5, 0.1)
"""The start, and every student row moved half and nine tenths of its way to the teacher's."""


def sizes(system: MeanField, t1: float | None) -> dict[str, float]:
    """See the module, and `odescale.solve.judges.optimizers` for what is not plain SGD."""
    if system.optimizers is not None:
        return _under_optimizers(system)
    eta = float(system.learning_rate) / (1 - float(system.momentum))
    gamma = float(system.friction)
    batch, noise = float(system.batch), float(system.noise)
    # A single gradient moves its row by eta in all, or with friction by eta/gamma.
    effective = eta / gamma if system.inertial else eta
    curvature, spread, rare = _averages(system, (effective / batch) ** 2 / system.effective_dimension)
    fastest = eta * float(np.max(np.asarray(system.eigenvalues))) * curvature
    if system.inertial:
        fastest = abs(gamma / 2 + np.emath.sqrt(gamma**2 / 4 - fastest))
    numbers = {
        "rows": system.problem.size / system.dimension,
        "step": float(fastest) / system.trace,
        "noise": noise * effective * spread / (2 * batch),
        "jumps": noise * _steps(system) * batch * rare,
    }
    if float(system.momentum) > 0:
        numbers["momentum"] = 1 / ((1 - float(system.momentum)) * system.dimension)
    return numbers | _of_tokens(system)


def _under_optimizers(system: MeanField) -> dict[str, float]:
    found, longest = optimizers.sizes(system)
    batch = float(system.batch)
    numbers = {"rows": system.problem.size / system.dimension} | found
    if longest > 0 and float(system.noise) > 0:
        rare = _averages(system, (longest / batch) ** 2 / system.effective_dimension)[2]
        numbers["jumps"] = _steps(system) * batch * rare
    return numbers | _of_tokens(system)


def _of_tokens(system: MeanField) -> dict[str, float]:
    numbers = {"spectrum": 1 / system.effective_dimension}
    if system.problem.student.needs_norm or system.problem.teacher.needs_norm:
        numbers["norms"] = 1 / system.effective_dimension
    return numbers


def _steps(system: MeanField) -> float:
    """SGD steps in one unit of t; of a spectrum of trace one, whose unit is one step, those in which its fast modes relax."""
    return max(system.trace, system.effective_dimension)


def _averages(system: MeanField, step: float) -> tuple[float, float, float]:
    """Largest |G| and c over the start and near the teacher, largest share of samples over all `STATES` that make a jump.

    `step`: (eta/B)^2/d_eff, what sum_ts rho_ts g_ti g_si is multiplied by in a jump of row i.
    """
    problem = system.problem
    count = max(2**10, int(NODES * min(1.0, 9 / problem.tokens**2)))
    nodes = np.asarray(sobol_nodes(node_dimension(problem), 2 ** int(np.log2(count)), 1, seed=1).points[0], dtype=float)
    basis = problem.difference_basis()
    plain = 2 * np.eye(problem.size) - basis
    C, R = (np.asarray(x) for x in system.couple(jnp.asarray(system.initial_overlaps)))
    changes = [_moved(problem, share) @ basis for share in STATES]
    lengths = np.max([np.diag(plain @ A @ C @ A.T @ plain.T)[problem.moved] for A in changes], axis=0)
    lengths = np.maximum(lengths, 1e-3 * lengths.max())  # a row that starts at zero has no length of its own yet
    curvature, spread, rare = [], [], []
    for A in changes:
        pair = (jnp.asarray(plain @ _root(A @ C @ A.T)), jnp.asarray(plain @ A @ R @ A.T @ plain.T))
        G, c, moves = (np.asarray(x) for x in _samples(problem, jnp.asarray(nodes), *pair))
        curvature.append(np.linalg.eigvalsh(G.mean(axis=0))[-1])
        spread.append(c.mean())
        known = {id(nodes): moves}

        def jump(z: np.ndarray, known=known, pair=pair) -> np.ndarray:
            moves = known[id(z)] if id(z) in known else np.asarray(_samples(problem, jnp.asarray(z), *pair)[2])
            return step * np.max(moves / lengths, axis=1)

        rare.append(rare_share(jump, nodes, JUMP))
    return float(np.max(curvature)), float(np.max(spread)), float(np.max(rare))


def _moved(problem: TeacherStudent, share: float) -> Float[np.ndarray, "P P"]:
    """What takes difference rows to a `share` of themselves: students on their way to their teachers."""
    move = np.eye(problem.size)
    for student, _ in problem.pairs:
        move[student, student] = share
    return move


def _root(C: Float[np.ndarray, "P P"]) -> Float[np.ndarray, "P P"]:
    """F with F F^T = C, small rows as exact as large ones. Outside of JAX, which takes seconds to compile one of eighty rows."""
    scale = np.sqrt(np.maximum(np.diag(C), np.finfo(float).tiny))
    lam, U = np.linalg.eigh(C / (scale[:, None] * scale))
    return scale[:, None] * U * np.sqrt(np.maximum(lam, 0.0))


@program
def _samples(
    problem: TeacherStudent, nodes: Float[Array, "n D"], root: Float[Array, "P P"], plain_R: Float[Array, "P P"]
) -> tuple[Float[Array, "n p p"], Float[Array, " n"], Float[Array, "n p"]]:
    """sum_t J_t^T l'' J_t, sum_ts rho_ts tr(J_t^T l'' J_s) and sum_ts rho_ts g_ti g_si, fields root z of plain rows."""
    T, P, rows = problem.tokens, problem.size, problem.moved
    token_root, rho = jnp.asarray(problem.token_root), jnp.asarray(problem.correlation)

    def one(node):
        phi = (token_root @ node[: T * P].reshape(T, P)) @ root.T

        def student(columns):
            return problem.outputs_on_fields(phi.at[:, rows].set(columns), plain_R)[0]

        f, target = problem.outputs_on_fields(phi, plain_R)
        J = jax.jacrev(student)(phi[:, rows]).reshape(f.size, T, rows.size)
        second = jax.hessian(lambda v: problem.loss.mean(v.reshape(f.shape), target))(f.ravel())
        slope = (
            jax.grad(problem.loss.sample)(f, target, node[T * P :])
            if problem.label_normals
            else jax.grad(problem.loss.mean)(f, target)
        )
        g = jnp.einsum("ati,a->ti", J, slope.ravel())
        return (
            jnp.einsum("ati,ab,btj->ij", J, second, J),
            jnp.einsum("ati,ab,bsi,ts->", J, second, J, rho),
            jnp.einsum("ti,ts,si->i", g, rho, g),
        )

    return jax.lax.map(one, nodes, batch_size=256)
