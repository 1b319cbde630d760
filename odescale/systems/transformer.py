"""The named systems of the mean-field engine: `transformer` and `committee`, from parameters in whole words.

    dq_k/dt = M_k q_k + q_k M_k^T + (eta^2/B) lam_k V      (`odescale.systems.mean_field`),   t = SGD step / tr Sigma

Student and teacher are the same network of `odescale.networks.library`; what these builders add is a start from which learning
is worth looking at, and words for the command line.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from odescale.clock import Schedule
from odescale.errors import InputError
from odescale.networks.blocks import ACTIVATIONS
from odescale.networks.library import READOUTS, committee_network, transformer_network
from odescale.networks.losses import AbstractLoss, CrossEntropy, SquareLoss
from odescale.networks.row_network import RowNetwork
from odescale.networks.teacher_student import TeacherStudent, teacher_student
from odescale.precision import require_x64
from odescale.systems.mean_field import MeanField
from odescale.systems.mean_field_build import mean_field
from odescale.systems.mean_field_start import aligned_overlaps
from odescale.systems.parameters import Parameter, at_least_one, complete, is_traced, non_negative, positive
from odescale.systems.spectrum import Spectrum, isotropic, power_law, source_overlaps

KEY_READS = 0.7
"""Cosine between a teacher's key (output) row and the readout it serves: without it attention would not reach the loss."""
QUERY_READS = 0.3
"""Cosine between a query (unit's input) row and that readout."""
CLASSES = 3
"""Classes of cross_entropy where `outputs` is left to the system."""


def _words(name: str, default: str, allowed: tuple[str, ...], meaning: str) -> Parameter:
    return Parameter(name, default, f"one of {', '.join(allowed)}", lambda x: x in allowed, "word", meaning, str)


def _count(name: str, default: int, least: int, most: int, meaning: str, unit: str = "1") -> Parameter:
    domain = f"an integer from {least} to {most}"
    return Parameter(name, default, domain, lambda x: least <= x <= most, unit, meaning, int)


_START = (
    Parameter(
        "strength", 0.3, "a positive finite number", positive, "1", "squared length of the teacher's rows but readouts"
    ),
    Parameter("alignment", 0.3, "a number in [-1, 1]", lambda x: -1 <= x <= 1, "cosine", "student/teacher cosine at 0"),
    Parameter("scale", 1.0, "a positive finite number", positive, "1", "student/teacher row length at 0"),
)
_LABELS = (
    Parameter("label_noise", 0.0, "a number >= 0", non_negative, "1", "sigma of noise on the labels, square loss"),
)
_SPECTRUM = (
    Parameter("dimension", 500, "an integer >= 4", lambda x: x >= 4, "1", "d, SGD steps in one unit of t", int),
    Parameter(
        "capacity", 0.0, "0 (isotropic) or a number > 1", lambda x: x == 0 or 1 < x < 10, "1",
        "a in lam_k ~ k^-a, normalised to trace 1, so that t counts steps",
    ),
    Parameter("modes", 1e8, "a number from 1e2 to 1e15", lambda x: 1e2 <= x <= 1e15, "1", "eigenvalues, with capacity",
              int),
    Parameter("source", 0.5, "a positive number", positive, "1", "s in lam_k beta_k^2 ~ k^(-s a - 1), with capacity"),
)  # fmt: skip
BATCH = 4
LEARNING_RATE = 0.3
_TRAINING = (
    Parameter("learning_rate", LEARNING_RATE, "a positive finite number", positive, "1", "plain SGD learning rate eta"),
    Parameter("batch", BATCH, "a number >= 1", at_least_one, "sequences", "sequences averaged in one step"),
    *(parameter for parameter in MeanField.parameters if parameter.name not in ("learning_rate", "batch")),
    Parameter(
        "schedule", "constant", "a schedule such as cosine:30:0.1", lambda x: True, "times in t", "eta(t)/eta", str
    ),
)
_NODES = (
    Parameter(
        "nodes", 0, "0 (automatic) or a power of two from 16 to 4194304",
        lambda x: x == 0 or (16 <= x <= 2**22 and x == int(x) and int(x) & (int(x) - 1) == 0), "1",
        "quadrature nodes of one replicate", int,
    ),
    Parameter("accuracy", 0.02, "a number in (0, 1)", lambda x: 0 < x < 1, "relative",
              "half width of the drift that nodes=0 aims at"),
    _count("budget", 8192, 64, 2**22, "most nodes of one replicate that nodes=0 may take"),
    _count("replicates", 4, 2, 64, "independent node sets behind the error bar"),
    _count("seed", 0, 0, 2**31, "of the nodes"),
    _words("closure", "auto", ("auto", "quadrature", "closed"), "auto: a closed form where there is one, else quadrature"),
)  # fmt: skip

TRANSFORMER_PARAMETERS = (
    _count("depth", 2, 1, 8, "attention layers", "layers"),
    _count("heads", 1, 1, 8, "attention heads per layer"),
    _count("tokens", 3, 1, 256, "T, tokens of a sequence", "tokens"),
    _words("value", "identity", ("identity", "rows"), "value = identity, or value and output rows"),
    _words("attention", "softmax", ("softmax", "linear"), "kernel of attention"),
    Parameter("causal", False, "true or false", lambda x: True, "flag", "attend to s <= t only", bool),
    _count("mlp", 0, 0, 64, "units after the attention of each layer, 0: none"),
    _words("activation", "erf", tuple(ACTIVATIONS), "of the units"),
    _words("norm", "none", ("none", "rms"), "rms: blocks read normalised tokens"),
    Parameter("positions", False, "true or false", lambda x: True, "flag", "one trained row per position", bool),
    _words("readout", "query", tuple(READOUTS), "last token, every token, or the average token"),
    _count("outputs", 0, 0, 16, f"readout rows; 0: one, or {CLASSES} classes with cross_entropy"),
    _words("loss", "square", ("square", "cross_entropy"), "against the teacher's outputs"),
    _words("labels", "soft", ("soft", "hard", "sampled"), "labels of cross_entropy"),
    *_LABELS,
    Parameter(
        "correlation", 0.0, "a number in (-1, 1)", lambda x: -1 < x < 1, "1", "r of tokens with rho_ts = r^|t-s|"
    ),
    *_START,
    *_SPECTRUM,
    *_TRAINING,
    *_NODES,
)

COMMITTEE_PARAMETERS = (
    _count("units", 2, 1, 16, "K, units of the student"),
    _count("teacher_units", 2, 1, 16, "M, units of the teacher"),
    _words("activation", "erf", tuple(ACTIVATIONS), "of the units"),
    *_LABELS,
    *(parameter for parameter in _START if parameter.name != "strength"),
    Parameter("strength", 1.0, "a positive finite number", positive, "1", "squared length of the teacher's rows"),
    *_SPECTRUM,
    *_TRAINING,
    *_NODES,
)


def transformer(*, schedule: Schedule | str | None = None, spectrum: Spectrum | None = None, **given: Any) -> MeanField:
    """SGD on any transformer of the library at T tokens: see `MeanField` for the equations, `transformer_network` for the network.

    One unit of t is tr Sigma SGD steps: `dimension` for isotropic tokens, one step for a power-law `capacity`.

    Start: orthonormal teacher readouts, `|r*|^2/N = 1`; every key and output row has cosine 0.7 with one of them (in turn),
    every query and input row cosine 0.3, value rows 0.7 with their key; all of squared length `strength`, each with a direction of
    its own besides. Student row = scale (alignment x teacher row + sqrt(1 - alignment^2) x own direction).

    **Arguments** (all optional): the words of `TRANSFORMER_PARAMETERS`; from Python `schedule` may be a callable and `spectrum`
    any `Spectrum`.

    **Returns** a `MeanField`. **Errors**: `InputError` naming the argument, before anything is compiled.
    **Good values**: `budget` 8192 for a look, 65536 for a comparison with a run; `nodes` fixed for a sweep.
    """
    require_x64("transformer")
    values = complete(TRANSFORMER_PARAMETERS, given | _text(schedule), "transformer")
    classes = values["loss"] == "cross_entropy"
    outputs = values["outputs"] or (CLASSES if classes else 1)
    if classes and outputs < 2:
        raise InputError("outputs", expected="two or more classes with cross_entropy", got=outputs, remedy="outputs=3")
    words = ("depth", "heads", "value", "attention", "causal", "mlp", "activation", "positions", "tokens", "readout")
    network = transformer_network(
        **{name: values[name] for name in words},
        norm=None if values["norm"] == "none" else values["norm"],
        outputs=outputs,
    )
    problem = teacher_student(
        network, loss=_loss(values), tokens=values["tokens"], correlation=values["correlation"], label="transformer"
    )
    start = aligned_overlaps(
        problem,
        **_aligned(values),
        lengths={row: values["strength"] for row in network.rows if not row.startswith("r")},
        cosines=_cosines(network, outputs),
    )
    return _system(problem, start, values, schedule, spectrum)


def committee(*, schedule: Schedule | str | None = None, spectrum: Spectrum | None = None, **given: Any) -> MeanField:
    """Soft committee machine of K units learning one of M units: f = sum_u act(w_u . x/sqrt(N)), second layers fixed.

    One unit of t is tr Sigma SGD steps. Teacher rows orthogonal, of squared length `strength`; student unit u starts at cosine
    `alignment` with teacher unit u; students beyond the teacher's number have directions of their own.

    **Arguments**: the words of `COMMITTEE_PARAMETERS`; `schedule` may be a callable. **Errors**: `InputError`.
    Source: Saad & Solla, Phys. Rev. E 52, 4225 (1995); Goldt et al., NeurIPS 2019.
    """
    require_x64("committee")
    values = complete(COMMITTEE_PARAMETERS, given | _text(schedule), "committee")
    student, teacher = (committee_network(values[name], values["activation"]) for name in ("units", "teacher_units"))
    problem = teacher_student(student, teacher, _loss(values), tokens=1, label="committee")
    start = aligned_overlaps(problem, **_aligned(values), lengths=values["strength"])
    return _system(problem, start, values, schedule, spectrum)


def _text(schedule: Any) -> dict[str, str]:
    if not (schedule is None or isinstance(schedule, str) or callable(schedule)):
        raise InputError(
            "schedule", expected="a callable s(t) or its text", got=schedule, remedy="e.g. schedule='cosine:30:0.1'"
        )
    return {"schedule": schedule} if isinstance(schedule, str) else {}


def _aligned(values: dict[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in ("alignment", "scale")}


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
    directions: dict[str, np.ndarray] = {}
    for row in network.rows:
        role = row[0]
        served += role in "qw"  # a head or a unit begins: the next readout
        readout = own[f"r{max(served, 0) % outputs}"]
        if role in "kom":
            directions[row] = _towards(KEY_READS, readout, own[row])
        elif role in "qw":
            directions[row] = _towards(QUERY_READS, readout, own[row])
        elif role == "v":
            directions[row] = _towards(KEY_READS, directions["k" + row[1:]], own[row])
        else:
            directions[row] = own[row]
    names = network.rows
    return {(a, b): float(directions[a] @ directions[b]) for i, a in enumerate(names) for b in names[:i]}


def _towards(
    cosine: float, direction: Float[np.ndarray, " P"], own: Float[np.ndarray, " P"]
) -> Float[np.ndarray, " P"]:
    return cosine * direction + np.sqrt(1 - cosine**2) * own


def _system(
    problem: TeacherStudent, start: Float[np.ndarray, "P P"], values: dict[str, Any], schedule: Any, spectrum: Any
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
    return mean_field(
        problem,
        initial_overlaps=overlaps,
        spectrum=spectrum,
        schedule=schedule if callable(schedule) else values["schedule"],
        nodes=values["nodes"] or None,
        closure=values["closure"],
        **{name: values[name] for name in ("accuracy", "budget", "replicates", "seed")},
        **numbers,
    )
