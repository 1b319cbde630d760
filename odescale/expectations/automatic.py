"""How many nodes: chunks that bound the memory, and a node count chosen from the accuracy that was asked for."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.cache.programs import program
from odescale.errors import InputError
from odescale.expectations.batch import AbstractBatchRule, BatchQuadrature
from odescale.expectations.closure import AbstractClosure, Quadrature
from odescale.expectations.nodes import Nodes, gauss_hermite_nodes, largest_order, sobol_nodes
from odescale.expectations.window import WindowRule
from odescale.networks.teacher_student import TeacherStudent

CACHE_NUMBERS = 2**18
"""On a CPU a chunk's working set should stay in cache: numbers of 8 bytes; measured best at T = 3 and T = 16."""
DEFAULT_MEMORY = 2**30
DEFAULT_BUDGET = 2**16


def node_dimension(problem: TeacherStudent) -> int:
    """T P + m: the fields of T tokens and the numbers behind random labels."""
    return problem.tokens * problem.size + problem.label_normals


def numbers_per_node(problem: TeacherStudent) -> int:
    """Rough count of 8-byte numbers that one node holds while its gradient is computed (an upper estimate)."""
    blocks = len(problem.student.blocks) + len(problem.teacher.blocks) + 1
    return node_dimension(problem) * (4 + 2 * blocks) + 8 * problem.tokens**2 * blocks


def quadrature(
    problem: TeacherStudent,
    nodes: Nodes,
    *,
    memory: float = DEFAULT_MEMORY,
    rule: AbstractBatchRule | None = None,
    batch: int = 1,
) -> Quadrature | BatchQuadrature:
    """The closure over these nodes within `memory` bytes: the nodes themselves, one working copy, and the chunk in flight.

    With a `rule` averages are over batches of `batch` sequences: a node then holds all of them.

    **Errors**: `InputError` when the nodes alone do not fit; says how many would.
    """
    each = batch if rule is not None else 1
    if isinstance(rule, WindowRule) and nodes.kind != "sobol":
        raise InputError("nodes", expected="Sobol points, all of one weight, for the momentum of Muon", got=nodes.kind,
                         remedy="use sobol_nodes, or a number of nodes")  # fmt: skip
    need = node_dimension(problem) * each
    if nodes.points.shape[-1] != need:
        times = ", B times" * (each > 1)
        raise InputError(
            "nodes", expected=f"{need} dimensions (T P + label normals{times})", got=nodes.points.shape[-1],
            remedy="build them with node_dimension(problem)",
        )  # fmt: skip
    stored = nodes.points.size * nodes.points.dtype.itemsize * (1 + 1 / nodes.replicates)
    per_node = 8 * numbers_per_node(problem) * each
    room = (memory - stored) / per_node
    if room < 1:
        fits = int(memory / (nodes.replicates + 1) / (nodes.points.dtype.itemsize * need + 8))
        raise InputError(
            "memory", expected=f"at least {stored + 64 * per_node:.3g} bytes for {nodes.count} nodes", got=memory,
            remedy=f"raise it, or use at most {max(fits, 1)} nodes",
        )  # fmt: skip
    if jax.default_backend() == "cpu":
        room = min(room, CACHE_NUMBERS / numbers_per_node(problem) / each)
    chunk = 2 ** int(np.log2(np.clip(room, 1, nodes.count)))
    if nodes.count % chunk:  # tensor grids: fill up with nodes of weight zero
        missing = -nodes.count % chunk
        points = jnp.pad(nodes.points, ((0, 0), (0, missing), (0, 0)))
        nodes = Nodes(points, jnp.pad(nodes.weights, ((0, 0), (0, missing))), nodes.kind)
    return Quadrature(nodes, chunk) if rule is None else BatchQuadrature(nodes, rule, batch, chunk)


@program
def estimate_drift(
    closure: AbstractClosure, problem: TeacherStudent, C: Float[Array, "P P"], R: Float[Array, "P P"]
) -> tuple[Float[Array, "R p P"], Float[Array, "R p p"], Float[Array, " R"]]:
    """(D, V, L) of every replicate at C and R in difference rows: E[sum_t g_t phi_t^T] + H R, the drift of all rows."""

    def one(replicate):
        m = closure.moments(problem, C, R, replicate)
        return m.D + m.H @ R, m.V, m.loss

    return jax.lax.map(one, jnp.arange(closure.replicates))


class NodeChoice(eqx.Module):
    """Nodes and how they were chosen: `accuracy` reached (relative 95 % half width of the drift), `met` or not, by `budget`."""

    nodes: Nodes
    accuracy: float = eqx.field(static=True)
    met: bool = eqx.field(static=True)
    text: str = eqx.field(static=True)


def choose_nodes(
    problem: TeacherStudent,
    overlaps: tuple[tuple[Float[np.ndarray, "P P"], Float[np.ndarray, "P P"]], ...],
    *,
    slack: tuple[float, ...] = (),
    accuracy: float = 0.01,
    budget: int = DEFAULT_BUDGET,
    replicates: int = 4,
    memory: float = DEFAULT_MEMORY,
    seed: int = 0,
    rule: AbstractBatchRule | None = None,
    batch: int = 1,
) -> NodeChoice:
    """The fewest nodes whose drift D has a relative 95 % half width (Frobenius) of at most `accuracy` at the given overlaps.

    Gauss-Hermite where its tensor grid fits the budget and converges, else scrambled Sobol points, doubled until the accuracy
    or the `budget` (nodes of one replicate) is reached; a budget that was too small is said in `met` and `text`.

    **Arguments**: `overlaps`: pairs (C, R) in difference rows, e.g. the start and a point near the teacher, where the
    relative error is two to three times larger; `slack`: by how much `accuracy` may be missed at each (default 1).
    `accuracy`: 0.01 is a good value; 0.001 takes 10 to 100 times the nodes. `rule`, `batch`: as `quadrature` has them.
    """
    if not 0 < accuracy < 1:
        raise InputError("accuracy", expected="a number in (0, 1)", got=accuracy, remedy="0.01 is a good value")
    if not budget >= 64:
        raise InputError("budget", expected="at least 64 nodes", got=budget, remedy=f"{DEFAULT_BUDGET} is the default")
    dimension = node_dimension(problem) * (batch if rule is not None else 1)
    points = tuple((jnp.asarray(C, dtype=float), jnp.asarray(R, dtype=float)) for C, R in overlaps)

    def reached(nodes: Nodes) -> float:
        closure = quadrature(problem, nodes, memory=memory, rule=rule, batch=batch)
        worst = 0.0
        for (C, R), more in zip(points, slack or (1.0,) * len(points), strict=True):
            D = np.asarray(estimate_drift(closure, problem, C, R)[0])
            size = float(np.linalg.norm(nodes.mean(D)))
            worst = max(worst, float(np.linalg.norm(nodes.half_width(D))) / max(size, 1e-300) / more)
        return worst

    # Windows of a momentum are runs of nodes of one weight.
    top = 0 if isinstance(rule, WindowRule) else largest_order(dimension, budget)
    for order in (8, 12, 16, 24, 32, 48, 64, 96, 128):
        if order > top:
            break
        nodes = gauss_hermite_nodes(dimension, order)
        error = reached(nodes)
        if error <= accuracy:
            return NodeChoice(nodes, error, True, f"Gauss-Hermite, {order} per dimension, {dimension} dimensions")
    most = 2 ** int(np.log2(budget))
    count = min(2**10, most)
    while True:
        nodes = sobol_nodes(dimension, count, replicates, seed)
        error = reached(nodes)
        said = f"{replicates} x {count} scrambled Sobol points, {dimension} dimensions"
        if error <= accuracy:
            return NodeChoice(nodes, error, True, said)
        if count >= most:
            said += f"; {accuracy:g} was asked for, {error:.2g} reached within the budget of {budget} nodes"
            return NodeChoice(nodes, error, False, said)
        # Between 1/sqrt(n) and 1/n: jump by the optimistic law, then double.
        count = min(most, count * max(2, 2 ** int(np.log2(max(error / accuracy, 1.0)))))
