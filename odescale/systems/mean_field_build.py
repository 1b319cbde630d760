"""`mean_field`: from a student and a teacher to their ODE, with the nodes and the start chosen or given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Real

from odescale.clock import ConstantSchedule, Schedule, parse_schedule
from odescale.errors import InputError, OutsideTheoryError, whole
from odescale.expectations.automatic import DEFAULT_BUDGET, DEFAULT_MEMORY, choose_nodes, node_dimension, quadrature
from odescale.expectations.closure import AbstractClosure
from odescale.expectations.nodes import Nodes, sobol_nodes
from odescale.expectations.window import WindowRule
from odescale.networks.teacher_student import TeacherStudent
from odescale.optimizers.adam import SGD
from odescale.optimizers.base import AbstractOptimizer
from odescale.optimizers.rows import refuse_numbers, row_optimizers
from odescale.precision import require_x64
from odescale.systems.closed_form import closed_form, has_closed_form
from odescale.systems.mean_field import MeanField
from odescale.systems.mean_field_start import aligned_overlaps
from odescale.systems.parameters import complete, is_traced
from odescale.systems.spectrum import Spectrum, isotropic

NEAR_TEACHER = 2.5
"""How much larger the relative error of the drift may be near the teacher, where it always is two to three times larger."""


def mean_field(
    problem: TeacherStudent,
    *,
    initial_overlaps: Real[ArrayLike, "*modes P P"] | None = None,
    dimension: int = 500,
    spectrum: Spectrum | None = None,
    schedule: Schedule | str | None = None,
    nodes: int | Nodes | None = None,
    accuracy: float = 0.01,
    budget: int = DEFAULT_BUDGET,
    replicates: int = 4,
    memory: float = DEFAULT_MEMORY,
    seed: int = 0,
    closure: AbstractClosure | str = "quadrature",
    optimizer: AbstractOptimizer | Mapping[Any, AbstractOptimizer] | None = None,
    clip: Real[ArrayLike, ""] = float("inf"),
    matrices: Sequence[Sequence[str]] | None = None,
    **given: Any,
) -> MeanField:
    """The d -> infinity ODE of online SGD on `problem`, with an error bar on every trajectory. See `MeanField`.

    One unit of t is N = tr Sigma SGD steps: `dimension` for isotropic tokens.

    **Arguments**

    - `problem`: made by `teacher_student`. `initial_overlaps`: q_k(0), (P, P) for all modes alike or (modes, P, P), rows in the
      order of `problem.rows`; default `aligned_overlaps(problem)`.
    - `dimension`: d of isotropic tokens, or `spectrum` (`isotropic`, `listed`, `power_law` from `odescale.systems.spectrum`).
    - `schedule`: s(t) or its text, eta(t) = learning_rate s(t).
    - `nodes`: nodes of one replicate (a power of two), or `Nodes`; None chooses the fewest that give the drift at the start to
      `accuracy` (relative 95 % half width), and near the teacher to 2.5 times that, up to `budget` nodes;
      `system.expectations` says what was chosen and whether it was enough. `replicates`: R >= 2 for an error bar.
    - `memory`: bytes that the quadrature may take. `seed`: of the nodes.
    - `closure`: "quadrature", "closed" (where a closed form exists, else `OutsideTheoryError`), "auto" (closed where it
      exists), or an object.
    - `optimizer`: of the rows that move (`odescale.optimizers`), or a mapping from a row or a tuple of rows to one, the key None
      for the rest; its rate, momentum and decay take the place of `learning_rate`, `momentum`, `friction`, `weight_decay`.
      None is plain SGD. `clip` > 0: largest norm of a batch's gradient over all rows that move; inf for none.
      `matrices`: rows that make one matrix each, for Muon; default: all rows that an optimiser has.
    - `given`: learning_rate, batch, weight_decay, momentum, friction, noise, write_back.

    **Errors**: `InputError` before anything is compiled. **Good values**: 2^12 nodes give a drift to 1 to 2 % at T = 3.
    """
    require_x64("mean_field")
    if not isinstance(problem, TeacherStudent):
        raise InputError("problem", expected="a TeacherStudent", got=problem, remedy="build it with teacher_student")
    optimizer = _optimizer(optimizer, clip, given)
    values = complete(MeanField.parameters, given, "mean_field")
    if not (schedule is None or isinstance(schedule, str) or callable(schedule)):
        raise InputError("schedule", expected="a callable s(t) or its text", got=schedule, remedy="cosine:30:0.1")
    spectrum = isotropic(dimension) if spectrum is None else spectrum
    start = _start(problem, initial_overlaps, spectrum)
    numbers = {name: jnp.asarray(value, dtype=float) for name, value in values.items()}
    optimizers = rule = None
    if optimizer is not None:
        moving = [problem.rows[i] for i in problem.moved]
        optimizers, numbers["learning_rate"] = row_optimizers(
            optimizer, moving, problem.student.only_written, spectrum.trace, clip=clip, matrices=matrices
        )
        rule = optimizers.batch_rule()
    batch = (
        1 if rule is None else whole("batch", values["batch"], remedy="a whole batch: signs and clipping see all of it")
    )
    settings: dict[str, Any] = {"replicates": replicates, "memory": memory, "seed": seed, "rule": rule, "batch": batch}
    chosen, said = _closure(problem, closure, start, spectrum, nodes, accuracy, budget, **settings)
    return MeanField(
        problem=problem,
        closure=chosen,
        initial_overlaps=jnp.asarray(start),
        eigenvalues=jnp.asarray(spectrum.eigenvalues),
        weights=jnp.asarray(spectrum.weights),
        trace=float(spectrum.trace),
        dimension=spectrum.dimension,
        effective_dimension=spectrum.effective_dimension,
        inertial=bool(is_traced(values["friction"]) or values["friction"] > 0),
        schedule=parse_schedule(schedule) if isinstance(schedule, str) else schedule or ConstantSchedule(),
        label=problem.label,
        expectations=said,
        optimizers=optimizers,
        **numbers,
    )


def _optimizer(
    optimizer: Any, clip: Any, given: dict[str, Any]
) -> AbstractOptimizer | Mapping[Any, AbstractOptimizer] | None:
    """The optimiser as given; plain SGD with clipping becomes an object; numbers that an object holds are refused beside it."""
    if not is_traced(clip) and not (
        isinstance(clip, int | float | np.number | np.ndarray | jax.Array) and float(clip) > 0
    ):
        raise InputError("clip", expected="a positive number, inf for none", got=clip, remedy="1 is in use")
    if optimizer is None:
        if is_traced(clip) or np.isfinite(clip):
            numbers = {name: given.pop(name, 0.0) for name in ("momentum", "friction", "weight_decay")}
            if is_traced(numbers["friction"]) or numbers["friction"] > 0:
                raise InputError("friction", expected="0 with clipping", got=numbers["friction"], remedy="use momentum")
            rate = given.pop("learning_rate", MeanField.parameters[0].default)
            return SGD(rate=rate, momentum=numbers["momentum"], decay=numbers["weight_decay"])
        return None
    refuse_numbers(given)
    return optimizer


def _start(problem: TeacherStudent, overlaps: Any, spectrum: Spectrum) -> Any:
    if overlaps is None:
        overlaps = aligned_overlaps(problem)
    if is_traced(overlaps):
        values = overlaps
    else:
        try:
            values = np.asarray(overlaps, dtype=float)
        except (TypeError, ValueError):
            raise InputError(
                "initial_overlaps", expected="numbers (P, P)", got=overlaps, remedy="see aligned_overlaps"
            ) from None
    P, S = problem.size, spectrum.modes
    if values.shape == (P, P):
        # Numbers stay numbers inside a JAX transformation: what is swept may be another parameter.
        return (jnp if is_traced(values) else np).broadcast_to(values, (S, P, P))
    if values.shape != (S, P, P):
        raise InputError(
            "initial_overlaps", expected=f"({P}, {P}) or ({S}, {P}, {P}), rows {', '.join(problem.rows)}",
            got=values.shape, remedy="build it with aligned_overlaps, or source_overlaps for a spectrum",
        )  # fmt: skip
    return values


def _closure(
    problem, closure, start, spectrum, nodes, accuracy, budget, *, replicates, memory, seed, rule, batch
) -> tuple[AbstractClosure, str]:
    """The closure and what it is in words."""
    if isinstance(closure, AbstractClosure):
        return closure, type(closure).__name__
    if closure not in ("quadrature", "closed", "auto"):
        raise InputError(
            "closure", expected="quadrature, closed, auto or a closure", got=closure, remedy="use quadrature"
        )
    if closure == "closed" and isinstance(rule, WindowRule):  # to leading order in 1 - mu
        rule = None
    if closure == "closed" and rule is not None:
        raise OutsideTheoryError(
            "closure", expected="quadrature for signs and clipping", got=closure, remedy="leave it at auto"
        )
    if closure == "closed" or (closure == "auto" and rule is None and has_closed_form(problem)):
        return closed_form(problem), "closed form"
    joint: dict[str, Any] = {"memory": memory, "rule": rule, "batch": batch}
    if isinstance(nodes, Nodes):
        return quadrature(problem, nodes, **joint), f"{nodes.replicates} x {nodes.count} {nodes.kind} nodes"
    if nodes is not None:
        made = sobol_nodes(node_dimension(problem) * batch, nodes, replicates, seed)
        return quadrature(problem, made, **joint), f"{replicates} x {nodes} scrambled Sobol points"
    if is_traced(start):
        raise InputError("nodes", expected="a number inside a JAX transformation", got=None, remedy="nodes=4096")
    probes = _probes(problem, np.asarray(start), spectrum)
    with jax.ensure_compile_time_eval():  # of the numbers at the start, also where other parameters are swept
        chosen = choose_nodes(
            problem, probes, slack=(1.0, NEAR_TEACHER), accuracy=accuracy, budget=int(budget), replicates=replicates,
            seed=seed, **joint,
        )  # fmt: skip
    return quadrature(problem, chosen.nodes, **joint), chosen.text


def _probes(problem: TeacherStudent, start: np.ndarray, spectrum: Spectrum):
    """(C, R) in difference rows at the start, and with every student row moved nine tenths of the way to its teacher."""
    weights, lam = np.asarray(spectrum.weights), np.asarray(spectrum.eigenvalues)
    C, R = np.tensordot(weights * lam, start, axes=1), np.tensordot(weights, start, axes=1)
    basis = problem.difference_basis()
    near = np.eye(problem.size)
    for student, _ in problem.pairs:
        near[student, student] = 0.1
    C, R = basis @ C @ basis.T, basis @ R @ basis.T
    return ((C, R), (near @ C @ near.T, near @ R @ near.T))
