"""The builders of `attention`, `quickstart` and `logistic_pair`: parameters in whole words turned into a system at
infinite context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Real

from odescale.clock import Schedule, parse_schedule
from odescale.errors import InputError, OutsideTheoryError
from odescale.expectations.sampled import SampledContext, sample_context
from odescale.networks.architecture import (
    Architecture,
    build_architecture,
    logistic_pair_architecture,
    quickstart_architecture,
)
from odescale.optimizers.base import AbstractOptimizer
from odescale.optimizers.rows import from_words, refuse_numbers, row_optimizers
from odescale.precision import require_x64
from odescale.systems import tables
from odescale.systems.attention import Attention, largest_load
from odescale.systems.initial import logistic_pair_overlaps, quickstart_overlaps, teacher_student_overlaps
from odescale.systems.parameters import complete, is_traced, schedule_texts, shown
from odescale.systems.spectrum import Spectrum, isotropic, power_law, source_overlaps

MOST_LOAD = 0.95
"""Of default overlaps; at a load of one the softmax average is carried by a few tokens."""


@shown(tables.ATTENTION)
def attention(
    *,
    architecture: Architecture | None = None,
    initial_overlaps: Real[ArrayLike, "modes P P"] | None = None,
    spectrum: Spectrum | None = None,
    schedule: Schedule | str | None = None,
    optimizer: AbstractOptimizer | Mapping[Any, AbstractOptimizer] | str = "sgd",
    **given: Any,
) -> Attention:
    """The general infinite-context softmax transformer: see `Attention` for its equations.

    One unit of t is tr Sigma SGD steps: `dimension` for isotropic tokens, one step for a power-law `capacity`.

    **Arguments** (all optional): the words of `odescale.systems.tables.ATTENTION`, and from Python also

    - `architecture`: rows and networks instead of depth, heads, outputs, value, train_readouts.
    - `initial_overlaps` (modes, P, P): q_k(0) instead of strength, alignment, scale (and source).
    - `spectrum`: eigenvalues and weights instead of capacity and dimension.
    - `schedule`: a callable s(t) with eta(t) = learning_rate s(t), or its text.
    - `optimizer`: an object of `odescale.optimizers` (SGD, Adam, Muon to leading order), one per block of rows, or a word.

    Beyond two layers, and above rank one, the default `strength` is halved until every head's softmax load 2 C_kk C_qq
    (`odescale.systems.attention.softmax_load`) is below 0.95.

    **Raises** `InputError` naming the argument. Good values: learning_rate 0.05 to 0.5 times 2 batch/|S a|^2.
    """
    require_x64("attention")
    word = {"optimizer": optimizer} if isinstance(optimizer, str) else {}
    values = complete(tables.ATTENTION, given | schedule_texts(schedule=schedule) | word, "attention")
    rows = architecture or build_architecture(
        values["depth"],
        values["heads"],
        value=values["value"],
        outputs=values["outputs"],
        train_readouts=values["train_readouts"],
        rank=values["rank"],
        key_value_heads=values["key_value_heads"] or None,
    )
    if spectrum is None:
        power = values["capacity"] > 0
        spectrum = power_law(values["capacity"], values["modes"]) if power else isotropic(values["dimension"])
    if initial_overlaps is None:
        start = {name: values[name] for name in ("strength", "alignment", "scale")}
        if "strength" not in given and architecture is None and (values["depth"] > 2 or values["rank"] > 1):
            start["strength"] = _bearable(rows, **start)
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
    if finite and (rows.student.depth > 1 or rows.teacher.depth > 1 or rows.writes_back or rows.rank > 1):
        raise OutsideTheoryError(
            "context", expected="infinite, or one layer of rank-one heads with value = identity for the O(1/T) correction",
            got="finite", remedy="set context=infinite, or depth=1 and rank=1",
        )  # fmt: skip
    if finite and not (is_traced(values["tokens"]) or jnp.isfinite(values["tokens"])):
        raise InputError("tokens", expected="a finite number with context=finite", got="inf", remedy="set tokens=64")
    system = _system(rows, initial_overlaps, spectrum, values, schedule, "attention")
    chosen = _optimizer(optimizer, values, given)
    return system if chosen is None else _under(system, chosen)


@shown(tables.LOGISTIC_PAIR)
def logistic_pair(*, schedule: Schedule | str | None = None, **given: Any) -> Attention:
    """A logistic rise, then t^-2: two softmax layers, two frozen readouts, a surplus layer that only a product can remove.

    `L = beta^2/2 / (1 + y0/(beta - y0) e^(2 beta S))^2 + y1^2/2 / (1 + 2 y1 S)^2`, `S = learning_rate sqrt(R) t`, without
    noise, where `beta = strength`, `y0 = aligned`, `y1 = surplus`, `R = readout_scale`. One unit of t is `dimension` SGD
    steps. Good values: aligned >= 0.05 (a smaller start amplifies a 1 % error of rate into 10 % of loss).

    Its rate climbs all along its fall, so that it has no exponential phase: q = dlog p/dlog t stays within 0.2 of 1 for 0.3
    e-folds. An example of what `find_transition` refuses, although a two-term model fits it.

    **Arguments**: the words of `odescale.systems.tables.LOGISTIC_PAIR`; `schedule` may be a callable. **Raises** `InputError`.
    Source: docs/attention.md and derivations/attention/script.py.
    """
    require_x64("logistic_pair")
    values = complete(tables.LOGISTIC_PAIR, given | schedule_texts(schedule=schedule), "logistic_pair")
    if not any(is_traced(values[name]) for name in ("aligned", "strength")) and values["aligned"] >= values["strength"]:
        raise InputError(
            "aligned", expected=f"less than strength = {values['strength']}", got=values["aligned"], remedy="lower it"
        )
    overlaps = logistic_pair_overlaps(**{k: values[k] for k in ("strength", "aligned", "surplus", "readout_scale")})
    spectrum = isotropic(values["dimension"])
    return _system(logistic_pair_architecture(), overlaps, spectrum, values, schedule, "logistic_pair")


@shown(tables.QUICKSTART)
def quickstart(*, schedule: Schedule | str | None = None, **given: Any) -> Attention:
    """Exponential, then t^-2: a readout row that is trained alone, and two surplus softmax layers that only a product can remove.

        L(u) = A/2 e^(-2 u) + y^2/(1 + 2 y sqrt(R) u)^2,    u = learning_rate t,

    without noise, where `A = readout`, `y = surplus`, `R = value_scale`. One unit of t is `dimension` SGD steps. The exponential
    (|q - 1| <= 0.1 over 3.9 e-folds) hands over at u = 2.93 by default, and is a power law from u = 7.8 on. The readout is
    orthogonal to all that the layers write, so that neither disturbs the other, at a finite number of tokens too.

    **Arguments**: the words of `odescale.systems.tables.QUICKSTART`; `schedule` may be a callable. **Raises** `InputError`.
    **Good values**: readout * value_scale >= 50, or the exponential is short; learning_rate/batch <= 1/20, or the noise bends
    the tail.
    Source: `quickstart_loss`, docs/attention.md; the two decays are those of A. M. Saxe et al., ICLR 2014 (one and two factors).
    """
    require_x64("quickstart")
    values = complete(tables.QUICKSTART, given | schedule_texts(schedule=schedule), "quickstart")
    overlaps = quickstart_overlaps(**{k: values[k] for k in ("readout", "surplus", "value_scale")})
    values |= {"context": "infinite"}
    return _system(quickstart_architecture(), overlaps, isotropic(values["dimension"]), values, schedule, "quickstart")


def quickstart_loss(u: Any, readout: Any, surplus: Any, value_scale: Any) -> Array:
    """L(u) = A/2 e^(-2 u) + y^2/(1 + 2 y sqrt(R) u)^2 of the quickstart system without noise, u = learning_rate t >= 0."""
    A, y, R = (jnp.asarray(x, dtype=float) for x in (readout, surplus, value_scale))
    return A / 2 * jnp.exp(-2 * u) + (y / (1 + 2 * y * jnp.sqrt(R) * u)) ** 2


def _optimizer(optimizer: Any, values: dict[str, Any], given: dict[str, Any]) -> Any:
    """The optimiser as it is or behind its word; None for plain SGD. Numbers beside an object are refused."""
    if isinstance(optimizer, str):
        return from_words(values, given)
    refuse_numbers(given)
    return optimizer


def _under(system: Attention, optimizer: Any) -> Attention:
    """The same system with its rows under an optimiser: only those that the infinite-context closure can serve."""
    architecture, rows = system.architecture, [system.architecture.rows[i] for i in np.flatnonzero(system.trained)]
    if system.sampled is not None:
        raise OutsideTheoryError(
            "optimizer", expected="sgd with context=sampled", got=optimizer, remedy="use the system transformer"
        )
    layers = architecture.student.layers
    written = {architecture.rows[h.output] for layer in layers for h in layer if h.output is not None}
    optimizers, rate = row_optimizers(optimizer, rows, sorted(written & set(rows)), system.trace)
    if optimizers.averages == "sign":
        raise OutsideTheoryError(
            "optimizer", expected="sgd, adam or muon at infinite context: signs see every batch",
            got=optimizers.text(), remedy="use the system transformer",
        )  # fmt: skip
    found: Any = optimizers
    return eqx.tree_at(
        lambda s: (s.optimizers, s.learning_rate, s.weight_decay), system, (found, rate, jnp.zeros(())),
        is_leaf=lambda x: x is None,
    )  # fmt: skip


def _system(
    architecture: Architecture,
    overlaps: Any,
    spectrum: Spectrum,
    values: dict[str, Any],
    schedule: Any,
    label: str,
) -> Attention:
    numbers: dict[str, Any] = {
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


def _bearable(rows: Architecture, *, strength: float, alignment: Any, scale: Any) -> float:
    """`strength`, halved until no head's softmax load 2 C_kk C_qq exceeds `MOST_LOAD`: with each head and layer fields grow."""
    if is_traced(alignment) or is_traced(scale):
        return strength
    for _ in range(20):
        C = teacher_student_overlaps(rows, strength=strength, alignment=alignment, scale=scale)[0]
        if float(largest_load(C, C, rows)) <= MOST_LOAD:
            break
        strength /= 2
    return strength


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
