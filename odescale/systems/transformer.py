"""The named systems of the mean-field engine: `transformer` and `committee`, from parameters in whole words.

    dq_k/dt = M_k q_k + q_k M_k^T + (eta^2/B) lam_k V      (`odescale.systems.mean_field`),   t = SGD step / tr Sigma

Student and teacher are the same network of `odescale.networks.library`; what these builders add is a start from which learning
is worth looking at, and words for the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from odescale.clock import Schedule
from odescale.errors import InputError
from odescale.networks.library import committee_network, transformer_network
from odescale.networks.losses import AbstractLoss, CrossEntropy, SquareLoss
from odescale.networks.row_network import RowNetwork
from odescale.networks.teacher_student import TeacherStudent, teacher_student
from odescale.optimizers.base import AbstractOptimizer
from odescale.optimizers.rows import from_words, refuse_numbers
from odescale.precision import require_x64
from odescale.systems import tables
from odescale.systems.mean_field import MeanField
from odescale.systems.mean_field_build import mean_field
from odescale.systems.mean_field_start import aligned_overlaps
from odescale.systems.parameters import complete, is_traced, schedule_texts, shown
from odescale.systems.spectrum import Spectrum, isotropic, power_law, source_overlaps

Optimizers = AbstractOptimizer | Mapping[Any, AbstractOptimizer]
"""One optimiser for all rows that move, or one by row or tuple of rows, the key None for the rest."""

KEY_READS = 0.7
"""Cosine between a teacher's key (output) row and the readout it serves: without it attention would not reach the loss."""
LINEAR_DEPTH = 8.0
"""By what `strength` is less, unless given, for every layer of linear attention beyond the second."""
QUERY_READS = 0.3
"""Cosine between a query (unit's input) row and that readout."""


@shown(tables.TRANSFORMER)
def transformer(
    *,
    schedule: Schedule | str | None = None,
    spectrum: Spectrum | None = None,
    optimizer: Optimizers | str = "sgd",
    **given: Any,
) -> MeanField:
    """SGD on any transformer of the library at T tokens: see `MeanField` for the equations, `transformer_network` for the network.

    One unit of t is tr Sigma SGD steps: `dimension` for isotropic tokens, one step for a power-law `capacity`.

    Start: orthogonal teacher readouts, `|r*|^2/N = 1`, less beyond two layers; every key and output row has cosine 0.7 with one of
    them (in turn, head by head), every query and input row cosine 0.3, value rows 0.7 with their key (the mean of their keys above
    rank one); all of squared length `strength`, each with a direction of its own besides. Student row = scale (alignment x teacher
    row + sqrt(1 - alignment^2) x own direction).

    **Arguments** (all optional): the words of `odescale.systems.tables.TRANSFORMER`; from Python `schedule` may be a callable,
    `spectrum` any `Spectrum` and `optimizer` an object of `odescale.optimizers`, or one per block of rows. A matrix to Muon is
    what the heads (units) of a layer have in one role: all queries, all keys.

    **Returns** a `MeanField`. **Errors**: `InputError` naming the argument, before anything is compiled.
    **Good values**: `budget` 8192 for a look, 65536 for a comparison with a run; `nodes` fixed for a sweep.
    """
    require_x64("transformer")
    values = complete(tables.TRANSFORMER, given | schedule_texts(schedule=schedule) | _word(optimizer), "transformer")
    classes = values["loss"] == "cross_entropy"
    outputs = values["outputs"] or (tables.CLASSES if classes else 1)
    if classes and outputs < 2:
        raise InputError("outputs", expected="two or more classes with cross_entropy", got=outputs, remedy="outputs=3")
    words = ("depth", "heads", "value", "attention", "causal", "mlp", "activation", "positions", "tokens", "readout")
    network = transformer_network(
        **{name: values[name] for name in words},
        rank=values["rank"],
        key_value_heads=values["key_value_heads"] or None,
        norm=None if values["norm"] == "none" else values["norm"],
        outputs=outputs,
    )
    problem = teacher_student(
        network, loss=_loss(values), tokens=values["tokens"], correlation=values["correlation"], label="transformer"
    )
    start = aligned_overlaps(
        problem,
        **_aligned(values),
        lengths=_lengths(network, values, given),
        cosines=_cosines(network, outputs),
    )
    return _system(problem, start, values, schedule, spectrum, _optimizer(optimizer, values, given))


@shown(tables.COMMITTEE)
def committee(
    *,
    schedule: Schedule | str | None = None,
    spectrum: Spectrum | None = None,
    optimizer: Optimizers | str = "sgd",
    **given: Any,
) -> MeanField:
    """Soft committee machine of K units learning one of M units: f = sum_u act(w_u . x/sqrt(N)), second layers fixed.

    One unit of t is tr Sigma SGD steps. Teacher rows orthogonal, of squared length `strength`; student unit u starts at cosine
    `alignment` with teacher unit u; students beyond the teacher's number have directions of their own.

    **Arguments**: the words of `odescale.systems.tables.COMMITTEE`; `schedule` may be a callable, `optimizer` an object of
    `odescale.optimizers`. **Errors**: `InputError`.
    Source: Saad & Solla, Phys. Rev. E 52, 4225 (1995); Goldt et al., NeurIPS 2019.
    """
    require_x64("committee")
    values = complete(tables.COMMITTEE, given | schedule_texts(schedule=schedule) | _word(optimizer), "committee")
    student, teacher = (committee_network(values[name], values["activation"]) for name in ("units", "teacher_units"))
    problem = teacher_student(student, teacher, _loss(values), tokens=1, label="committee")
    start = aligned_overlaps(problem, **_aligned(values), lengths=values["strength"])
    return _system(problem, start, values, schedule, spectrum, _optimizer(optimizer, values, given))


def _aligned(values: dict[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in ("alignment", "scale")}


def _lengths(network: RowNetwork, values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Squared lengths of the teacher's rows: `strength`, and of readouts what keeps the outputs of a deep network finite.

    Without value rows and norm each layer of softmax adds the average token once for every head, so that outputs would grow with
    every layer beyond the second; those of linear attention are polynomials of degree 3^depth. Readouts have length 1 up to two
    layers, and at any depth with linear attention, whose default strength is less instead.
    """
    beyond = max(values["depth"] - 2, 0)
    strength, readout = values["strength"], 1.0
    if values["value"] == "identity" and values["norm"] == "none":
        if values["attention"] == "softmax":
            readout = float(1 + values["heads"]) ** (-2 * beyond)
        elif "strength" not in given:
            strength = strength * LINEAR_DEPTH**-beyond
    return {row: readout if row.startswith("r") else strength for row in network.rows}


def _loss(values: dict[str, Any]) -> AbstractLoss:
    noise = values["label_noise"]
    if values.get("loss", "square") == "square":
        if values.get("labels", "soft") != "soft":
            raise InputError(
                "labels", expected="soft with loss=square", got=values["labels"], remedy="label_noise adds noise"
            )
        return SquareLoss(noise if is_traced(noise) else float(noise))
    if not is_traced(noise) and noise > 0:
        raise InputError(
            "label_noise", expected="0 with cross_entropy", got=noise, remedy="labels=sampled is its noise"
        )
    return CrossEntropy(values["labels"])


def _cosines(network: RowNetwork, outputs: int) -> dict[tuple[str, str], float]:
    """Cosines between the teacher's rows as the docstring of `transformer` has them, from explicit directions."""
    own = dict(zip(network.rows, np.eye(len(network.rows)), strict=True))
    served = -1
    begun: set[str] = set()
    directions: dict[str, np.ndarray] = {}
    for row in network.rows:
        role, stem = row[0], row.split("r")[0]  # q0r2 is a row of the head q0
        if role in "qw" and stem not in begun:  # a head or a unit begins: the next readout
            served += 1
            begun.add(stem)
        readout = own[f"r{max(served, 0) % outputs}"]
        if role in "kom":
            directions[row] = _towards(KEY_READS, readout, own[row])
        elif role in "qw":
            directions[row] = _towards(QUERY_READS, readout, own[row])
        elif role == "v":
            keys = np.sum([directions[key] for key in directions if key.split("r")[0] == "k" + row[1:]], axis=0)
            directions[row] = _towards(KEY_READS, keys / np.linalg.norm(keys), own[row])
        else:
            directions[row] = own[row]
    names = network.rows
    return {(a, b): float(directions[a] @ directions[b]) for i, a in enumerate(names) for b in names[:i]}


def _towards(
    cosine: float, direction: Float[np.ndarray, " P"], own: Float[np.ndarray, " P"]
) -> Float[np.ndarray, " P"]:
    return cosine * direction + np.sqrt(1 - cosine**2) * own


def _word(optimizer: Any) -> dict[str, str]:
    """What the table checks: a word as it is, an object as none."""
    return {"optimizer": optimizer} if isinstance(optimizer, str) else {}


def _optimizer(optimizer: Any, values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What `mean_field` takes instead of learning rate, momentum and decay: an optimiser by its word or as it is."""
    if isinstance(optimizer, str):
        found = from_words(values, given)
        return {} if found is None else {"optimizer": found}
    refuse_numbers(given)
    return {"optimizer": optimizer}


def _matrices(problem: TeacherStudent) -> list[list[str]]:
    """Rows of one role in one layer: q0_0, q0_1 of two heads are one matrix, w0, w1 of a committee another."""
    found: dict[str, list[str]] = {}
    for row in problem.student.rows:
        layer, _, _ = row.partition("_")
        found.setdefault(layer if layer[:1] in "qkvowm" and problem.student.blocks else layer[:1], []).append(row)
    return list(found.values())


def _system(
    problem: TeacherStudent,
    start: Float[np.ndarray, "P P"],
    values: dict[str, Any],
    schedule: Any,
    spectrum: Any,
    optimizer: dict[str, Any],
) -> MeanField:
    overlaps: Any = start
    if values["capacity"] > 0 and spectrum is None:
        spectrum = power_law(values["capacity"], values["modes"])
        overlaps = jnp.asarray(
            source_overlaps(spectrum, jnp.asarray(start), source=values["source"], capacity=values["capacity"])
        )
    elif spectrum is None:
        spectrum = isotropic(values["dimension"])
    elif values["capacity"] > 0:
        raise InputError("spectrum", expected="a spectrum or capacity", got="both", remedy="leave capacity at 0")
    numbers = {parameter.name: values[parameter.name] for parameter in MeanField.parameters}
    if optimizer:
        for name in ("learning_rate", "momentum", "friction", "weight_decay"):
            del numbers[name]
    return mean_field(
        problem,
        initial_overlaps=overlaps,
        spectrum=spectrum,
        schedule=schedule if callable(schedule) else values["schedule"],
        nodes=values["nodes"] or None,
        closure=values["closure"],
        clip=values["clip"],
        matrices=_matrices(problem),
        **{name: values[name] for name in ("accuracy", "budget", "replicates", "seed")},
        **numbers,
        **optimizer,
    )
