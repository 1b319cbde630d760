"""The systems by name, and the builders that turn parameters in whole words into a system."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.clock import Schedule, parse_schedule
from odescale.errors import InputError, OutsideTheoryError
from odescale.expectations.sampled import SampledContext, sample_context
from odescale.networks.architecture import Architecture, build_architecture, quickstart_architecture
from odescale.precision import require_x64
from odescale.systems.attention import Attention
from odescale.systems.base import AbstractSystem
from odescale.systems.initial import quickstart_overlaps, teacher_student_overlaps
from odescale.systems.kernel import Kernel
from odescale.systems.kernel_build import kernel
from odescale.systems.parameters import Parameter, complete, is_traced, positive
from odescale.systems.peaked import Peaked, peaked
from odescale.systems.spectral import Spectral, spectral
from odescale.systems.spectrum import Spectrum, isotropic, power_law, source_overlaps
from odescale.systems.transformer import COMMITTEE_PARAMETERS, TRANSFORMER_PARAMETERS, committee, transformer

_SHARED = (
    *Attention.parameters,
    Parameter(
        "sequences", 1024, "an integer from 64 to 1e6", lambda x: 64 <= x <= 1e6, "1", "nodes of context=sampled", int
    ),
    Parameter("dimension", 200, "an integer >= 4", lambda x: x >= 4, "1", "d, SGD steps in one unit of t", int),
    Parameter(
        "schedule", "constant", "a schedule such as cosine:30:0.1", lambda x: True, "times in t", "eta(t)/eta", str
    ),
)

ATTENTION_PARAMETERS = (
    Parameter("depth", 2, "an integer from 1 to 8", lambda x: 1 <= x <= 8, "layers", "attention layers", int),
    Parameter("heads", 1, "an integer from 1 to 8", lambda x: 1 <= x <= 8, "1", "softmax heads per layer", int),
    Parameter("outputs", 1, "an integer from 1 to 16", lambda x: 1 <= x <= 16, "1", "readout rows", int),
    Parameter(
        "value",
        "identity",
        "identity or rows",
        lambda x: x in ("identity", "rows"),
        "word",
        "value = identity, or value and output rows",
        str,
    ),  # fmt: skip
    Parameter("train_readouts", True, "true or false", lambda x: True, "flag", "false: frozen, shared readouts", bool),
    Parameter("strength", 0.5, "a positive finite number", positive, "1", "squared length of the teacher's rows"),
    Parameter("alignment", 0.3, "a number in [-1, 1]", lambda x: -1 <= x <= 1, "cosine", "student/teacher cosine at 0"),
    Parameter("scale", 1.0, "a positive finite number", positive, "1", "student/teacher row length at 0"),
    Parameter(
        "context",
        "infinite",
        "infinite, finite or sampled",
        lambda x: x in ("infinite", "finite", "sampled"),
        "word",
        "finite: add the O(1/tokens) correction (one layer); sampled: all orders (isotropic, value = identity)",
        str,
    ),  # fmt: skip
    Parameter(
        "capacity",
        0.0,
        "0 (isotropic) or a number > 1",
        lambda x: x == 0 or 1 < x < 10,
        "1",
        "a in lam_k ~ k^-a, normalised to trace 1, so that t counts steps",
    ),  # fmt: skip
    Parameter(
        "modes", 1e8, "a number from 1e2 to 1e15", lambda x: 1e2 <= x <= 1e15, "1", "eigenvalues, with capacity", int
    ),
    Parameter("source", 0.5, "a positive number", positive, "1", "s in lam_k beta_k^2 ~ k^(-s a - 1), with capacity"),
    *_SHARED,
)

QUICKSTART_PARAMETERS = (
    Parameter("strength", 1.0, "a positive finite number", positive, "1", "beta, the teacher's attention y*"),
    Parameter("aligned", 0.05, "a positive finite number", positive, "1", "y0(0), the layer that must learn beta"),
    Parameter("surplus", 0.3, "a positive finite number", positive, "1", "y1(0), the layer that must vanish"),
    Parameter("readout_scale", 4.0, "a positive finite number", positive, "1", "R = |r|^2/d of the frozen readouts"),
    Parameter(
        "context",
        "infinite",
        "infinite or sampled",
        lambda x: x in ("infinite", "sampled"),
        "word",
        "sampled: dynamics and loss at `tokens` context tokens, by fixed random nodes",
        str,
    ),  # fmt: skip
    *_SHARED,
)


def attention(
    *,
    architecture: Architecture | None = None,
    initial_overlaps: Float[Array, "modes P P"] | None = None,
    spectrum: Spectrum | None = None,
    schedule: Schedule | str | None = None,
    **given: Any,
) -> Attention:
    """The general infinite-context softmax transformer: see `Attention` for its equations.

    One unit of t is tr Sigma SGD steps: `dimension` for isotropic tokens, one step for a power-law `capacity`.

    **Arguments** (all optional): the words of `ATTENTION_PARAMETERS`, and from Python also

    - `architecture`: rows and networks instead of depth, heads, outputs, value, train_readouts.
    - `initial_overlaps` (modes, P, P): q_k(0) instead of strength, alignment, scale (and source).
    - `spectrum`: eigenvalues and weights instead of capacity and dimension.
    - `schedule`: a callable s(t) with eta(t) = learning_rate s(t), or its text.

    **Raises** `InputError` naming the argument. Good values: learning_rate 0.05 to 0.5 times 2 batch/|S a|^2.
    """
    require_x64("attention")
    values = complete(ATTENTION_PARAMETERS, given | _text_schedule(schedule), "attention")
    rows = architecture or build_architecture(
        values["depth"],
        values["heads"],
        value=values["value"],
        outputs=values["outputs"],
        train_readouts=values["train_readouts"],
    )
    if spectrum is None:
        power = values["capacity"] > 0
        spectrum = power_law(values["capacity"], values["modes"]) if power else isotropic(values["dimension"])
    if initial_overlaps is None:
        start = {name: values[name] for name in ("strength", "alignment", "scale")}
        if spectrum.modes == 1:
            initial_overlaps = teacher_student_overlaps(rows, **start)
        elif values["capacity"] > 0:
            covariance = teacher_student_overlaps(rows, **start)[0]
            exponents = {name: values[name] for name in ("source", "capacity")}
            initial_overlaps = jnp.asarray(source_overlaps(spectrum, covariance, **exponents))
        else:
            raise InputError(
                "initial_overlaps",
                expected="overlaps per mode for this spectrum",
                got=None,
                remedy="pass (modes, P, P)",
            )
    finite = values["context"] == "finite"
    if finite and (rows.student.depth > 1 or rows.teacher.depth > 1 or rows.writes_back):
        raise OutsideTheoryError(
            "context", expected="infinite, or one layer with value = identity for the O(1/T) correction", got="finite",
            remedy="set context=infinite or depth=1",
        )  # fmt: skip
    if finite and not (is_traced(values["tokens"]) or jnp.isfinite(values["tokens"])):
        raise InputError("tokens", expected="a finite number with context=finite", got="inf", remedy="set tokens=64")
    return _system(rows, initial_overlaps, spectrum, values, schedule, "attention")


def quickstart(*, schedule: Schedule | str | None = None, **given: Any) -> Attention:
    """Exponential, then t^-2: two softmax layers, two frozen readouts, a surplus layer that only a product can remove.

    `L = beta^2/2 / (1 + y0/(beta - y0) e^(2 beta S))^2 + y1^2/2 / (1 + 2 y1 S)^2`, `S = learning_rate sqrt(R) t`, without
    noise, where `beta = strength`, `y0 = aligned`, `y1 = surplus`, `R = readout_scale`. One unit of t is `dimension` SGD
    steps. Good values: aligned >= 0.05 (a smaller start amplifies a 1 % error of rate into 10 % of loss).

    **Arguments**: the words of `QUICKSTART_PARAMETERS`; `schedule` may be a callable. **Raises** `InputError`.
    Source: docs/attention.md and derivations/attention.py.
    """
    require_x64("quickstart")
    values = complete(QUICKSTART_PARAMETERS, given | _text_schedule(schedule), "quickstart")
    if not any(is_traced(values[name]) for name in ("aligned", "strength")) and values["aligned"] >= values["strength"]:
        raise InputError(
            "aligned", expected=f"less than strength = {values['strength']}", got=values["aligned"], remedy="lower it"
        )
    overlaps = quickstart_overlaps(**{k: values[k] for k in ("strength", "aligned", "surplus", "readout_scale")})
    spectrum = isotropic(values["dimension"])
    return _system(quickstart_architecture(), overlaps, spectrum, values, schedule, "quickstart")


def _text_schedule(schedule: Schedule | str | None) -> dict[str, str]:
    if not (schedule is None or isinstance(schedule, str) or callable(schedule)):
        raise InputError(
            "schedule", expected="a callable s(t) or its text", got=schedule, remedy="e.g. schedule='cosine:30:0.1'"
        )
    return {"schedule": schedule} if isinstance(schedule, str) else {}


def _system(
    architecture: Architecture,
    overlaps: Any,
    spectrum: Spectrum,
    values: dict[str, Any],
    schedule: Any,
    label: str,
) -> Attention:
    numbers = {
        name: jnp.asarray(values[name], dtype=float) for name in ("learning_rate", "batch", "weight_decay", "noise")
    }
    return Attention(
        architecture=architecture,
        initial_overlaps=jnp.asarray(overlaps, dtype=float),
        eigenvalues=jnp.asarray(spectrum.eigenvalues),
        weights=jnp.asarray(spectrum.weights),
        trace=float(spectrum.trace),
        schedule=schedule if callable(schedule) else parse_schedule(values["schedule"]),
        tokens=jnp.asarray(values["tokens"], dtype=float),
        finite_context=values["context"] == "finite",
        sampled=_sampled(architecture, spectrum, values) if values["context"] == "sampled" else None,
        label=label,
        **numbers,
    )


def _sampled(architecture: Architecture, spectrum: Spectrum, values: dict[str, Any]) -> SampledContext:
    if spectrum.modes > 1 or architecture.writes_back:
        raise OutsideTheoryError(
            "context", expected="infinite, or isotropic tokens and value = identity for sampled", got="sampled",
            remedy="set context=infinite",
        )  # fmt: skip
    tokens = values["tokens"]
    if is_traced(tokens) or not np.isfinite(tokens) or tokens != int(tokens):
        raise InputError("tokens", expected="a whole number with context=sampled", got=tokens, remedy="set tokens=64")
    return sample_context(architecture.size, int(tokens), values["sequences"])


class Entry(eqx.Module):
    """A named system: how to build it, its parameters, what it is, and an end time (units of t) that shows it."""

    build: Callable[..., AbstractSystem] = eqx.field(static=True)
    parameters: tuple[Parameter, ...]
    description: str = eqx.field(static=True)
    t1: float = eqx.field(static=True)


SYSTEMS: dict[str, Entry] = {
    "attention": Entry(
        attention, ATTENTION_PARAMETERS, "softmax transformer at infinite context: any depth, heads, spectrum", 40.0
    ),
    "quickstart": Entry(
        quickstart, QUICKSTART_PARAMETERS, "two layers, frozen readouts: exponential decay, then t^-2", 30.0
    ),
    "transformer": Entry(
        transformer,
        TRANSFORMER_PARAMETERS,
        "any transformer at finite context: heads, MLPs, masks, norms, correlated tokens, cross-entropy; with an error bar",
        10.0,
    ),
    "committee": Entry(
        committee, COMMITTEE_PARAMETERS, "soft committee machine against a teacher committee (Saad & Solla)", 40.0
    ),
    "peaked": Entry(
        peaked,
        Peaked.parameters,
        "softmax cross-entropy on peaked targets, any number of classes: the one-third law",
        1e5,
    ),
    "kernel": Entry(
        kernel, Kernel.parameters, "full-batch gradient descent of a real transformer at its tangent kernel", 200.0
    ),
    "spectral": Entry(
        spectral,
        Spectral.parameters,
        "one-pass SGD of a linear model on any spectrum, every mode exact: scaling laws",
        1e6,
    ),
}


def find_system(name: str) -> Entry:
    """The entry of a named system; an unknown name is refused with a hint."""
    if name not in SYSTEMS:
        close = get_close_matches(name, SYSTEMS, n=1)
        hint = f"did you mean {close[0]}?" if close else "run `odescale systems`"
        raise InputError("system", expected=f"one of {', '.join(SYSTEMS)}", got=name, remedy=hint)
    return SYSTEMS[name]


def systems() -> dict[str, str]:
    """Names of the systems and what they are."""
    return {name: entry.description for name, entry in SYSTEMS.items()}
