r"""The system of a theory that a user derived: a sample loss of local fields, its closure written by sympy, run like any other.

dq_k/dt = M_k q_k + q_k M_k^T + (eta^2/B) lam_k V,    M_k = -eta lam_k G - w S,    C = sum_k w_k lam_k q_k
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.clock import Clock, ConstantSchedule, Schedule, parse_schedule, schedule_by_value
from odescale.errors import InputError
from odescale.precision import require_x64
from odescale.systems import tables
from odescale.systems.base import DIVERGED, AbstractSystem, Integration, loss_at_start
from odescale.systems.initial import check_overlaps
from odescale.systems.parameters import Parameter, complete, is_traced, schedule_texts
from odescale.systems.spectrum import Spectrum, isotropic


@lru_cache(maxsize=64)
def functions_of(source: str) -> Mapping[str, Any]:
    """The functions of a generated module, among its globals; one set per text, so that one theory compiles once."""
    scope: dict[str, Any] = {}
    exec(compile(source, "<derived theory>", "exec"), scope)
    return scope


class Derived(AbstractSystem):
    r"""dq_k/dt = M_k q_k + q_k M_k^T + (eta^2/B) lam_k V: overlaps q_k of P rows per eigenmode, closure derived by sympy.

    One unit of t is `trace` = tr Sigma SGD steps (the dimension for isotropic tokens).

    **Fields**

    - `initial_overlaps` (modes, P, P), positive semi-definite; the first `students` rows are trained, the others frozen.
    - `eigenvalues`, `weights` (modes,): lam_k and multiplicity/trace, with `sum w_k lam_k = 1`.
    - `learning_rate` > 0, `batch` >= 1, `weight_decay` >= 0, `noise` (1 keeps V, 0 drops it), `schedule`.
    - `constants`: parameters of the loss by name. `floor`: irreducible part of the loss, subtracted.
    - `source`: the generated module, text of `odescale.symbolic.module_source`; it is the theory's identity.

    **Failure regime**: overlaps are plain, so that a loss below 1e-14 of its terms is rounding, and masked. Source: Saad &
    Solla 1995, and the derivation behind `source`.
    """

    initial_overlaps: Float[Array, "modes P P"]
    eigenvalues: Float[Array, " modes"]
    weights: Float[Array, " modes"]
    learning_rate: Float[Array, ""]
    batch: Float[Array, ""]
    weight_decay: Float[Array, ""]
    noise: Float[Array, ""]
    floor: Float[Array, ""]
    constants: dict[str, Float[Array, ""]]
    students: int = eqx.field(static=True)
    trace: float = eqx.field(static=True)
    source: str = eqx.field(static=True)
    schedule: Schedule = eqx.field(converter=schedule_by_value, default_factory=ConstantSchedule)
    label: str = eqx.field(static=True, default="derived")

    name: ClassVar[str] = "derived"
    loss_label: ClassVar[str] = "excess loss L"
    sources: ClassVar[tuple[str, ...]] = (
        "Saad & Solla, Phys. Rev. E 52, 4225 (1995): online SGD as a closed ODE for overlaps",
        "odescale.symbolic.overlap_theory: the closure, from the sample loss",
    )
    parameters: ClassVar[tuple[Parameter, ...]] = tables.DERIVED

    def __check_init__(self) -> None:
        shape = np.shape(self.initial_overlaps)
        if len(shape) != 3 or shape[1] != shape[2] or shape[0] != np.shape(self.eigenvalues)[0]:
            raise InputError(
                "initial_overlaps", expected=f"({np.shape(self.eigenvalues)[0]}, P, P)", got=shape,
                remedy="one block per mode, rows in the order students, teachers",
            )  # fmt: skip

    @property
    def integration(self) -> Integration:
        """Explicit first; implicit where a spectrum makes it stiff."""
        ladder = ("tsit5", "kvaerno5") if self.eigenvalues.shape[0] == 1 else ("kvaerno5",)
        return Integration(ladder, growth=DIVERGED)

    @property
    def clock(self) -> Clock:
        """One unit of t is `trace` SGD steps; one token per sample."""
        return Clock(self.trace, self.learning_rate, self.schedule, self.batch, 0.0)

    def couple(self, q: Float[Array, "modes P P"]) -> Float[Array, "P P"]:
        """C = sum_k w_k lam_k q_k, the covariance of the local fields."""
        return jnp.tensordot(self.weights * self.eigenvalues, q, axes=1)

    def initial_state(self) -> Float[Array, "modes P P"]:
        return self.initial_overlaps

    def vector_field(self, t: Real[ArrayLike, ""], y: Float[Array, "modes P P"], args: Any = None):
        formulas = functions_of(self.source)
        G, V = formulas["closure"](self.couple(y), **self.constants)
        eta = self.learning_rate * self.schedule(t)
        return formulas["overlap_flow"](
            y, self.eigenvalues, G, self.noise * V, eta, self.batch, self.weight_decay
        )  # fmt: skip

    def loss_at(self, C: Float[Array, "P P"]) -> Float[Array, ""]:
        """L(C) - floor: the excess loss of rows whose fields have the covariance C."""
        return functions_of(self.source)["population_loss"](C, **self.constants) - self.floor

    def excess_loss(self, t: Real[ArrayLike, ""], y: Float[Array, "modes P P"]) -> Float[Array, ""]:
        return self.loss_at(self.couple(y))

    def observables(self, t: Real[ArrayLike, ""], y: Float[Array, "modes P P"]) -> dict[str, Array]:
        """`overlaps` C (P, P)."""
        return {"overlaps": self.couple(y)}

    def check(self) -> None:
        if any(is_traced(leaf) for leaf in jax.tree_util.tree_leaves(self)):
            return
        check_overlaps(self.initial_overlaps, self.initial_overlaps.shape[-1], modes=self.eigenvalues.shape[0])
        loss = float(loss_at_start(self))
        if not (np.isfinite(loss) and loss > 0):
            raise InputError(
                "initial_overlaps", expected="a start whose excess loss is positive", got=loss,
                remedy="start elsewhere, or give the irreducible part as floor",
            )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        names = ("learning_rate", "batch", "weight_decay", "noise", "floor")
        values: dict[str, Any] = {name: float(getattr(self, name)) for name in names}
        values |= {name: float(value) for name, value in self.constants.items()}
        return values | {
            "students": self.students,
            "rows": int(self.initial_overlaps.shape[-1]),
            "modes": int(self.eigenvalues.shape[0]),
            "steps_per_unit": self.trace,
        }


def derived_system(
    source: str,
    students: int,
    constants: tuple[str, ...],
    initial_overlaps: Any,
    *,
    spectrum: Spectrum | None = None,
    schedule: Schedule | str | None = None,
    floor: float = 0.0,
    label: str = "derived",
    **given: Any,
) -> Derived:
    """The `Derived` system of a generated module: what `OverlapTheory.system` calls, whose docstring has the arguments."""
    require_x64("system")
    texts = schedule_texts(schedule=schedule)
    known = {parameter.name for parameter in tables.DERIVED}
    missing = [name for name in constants if name not in given]
    if missing:
        raise InputError(
            missing[0], expected=f"a number for every parameter of the loss: {', '.join(constants)}", got=None,
            remedy=f"pass {missing[0]}=...",
        )  # fmt: skip
    values = complete(
        tables.DERIVED, {n: v for n, v in given.items() if n in known or n not in constants} | texts, label
    )
    overlaps = jnp.asarray(initial_overlaps, dtype=float)
    overlaps = overlaps[None] if overlaps.ndim == 2 else overlaps
    spectrum = isotropic(values["dimension"]) if spectrum is None else spectrum
    if overlaps.shape[0] == 1 and spectrum.modes > 1:
        overlaps = jnp.broadcast_to(overlaps, (spectrum.modes, *overlaps.shape[1:]))
    numbers = {name: jnp.asarray(values[name], float) for name in ("learning_rate", "batch", "weight_decay", "noise")}
    return Derived(
        initial_overlaps=overlaps,
        eigenvalues=jnp.asarray(spectrum.eigenvalues),
        weights=jnp.asarray(spectrum.weights),
        floor=jnp.asarray(floor, float),
        constants={name: jnp.asarray(given[name], float) for name in constants},
        students=students,
        trace=float(spectrum.trace),
        source=source,
        schedule=schedule if callable(schedule) else parse_schedule(values["schedule"]),
        label=label,
        **numbers,
    )
