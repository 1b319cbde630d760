r"""Online SGD of a soft committee machine against a teacher committee, as a closed ODE for the overlaps (Saad & Solla).

    dQ/dt = -eta (D_Q + D_Q^T) - 2 w Q + (eta^2/B) V,     dR/dt = -eta D_R - w R,     D = E[g phi^T],  V = E[g g^T]

The expectations come from `odescale.generated.mean_field`, written by `derivations/mean_field/script.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale import AbstractSystem, Clock, InputError, Integration, Parameter
from odescale.clock import Schedule
from odescale.generated import mean_field as formulas
from odescale.precision import require_x64
from odescale.schedules import ConstantSchedule, parse_schedule
from odescale.systems.initial import check_overlaps
from odescale.systems.parameters import at_least_one, complete, is_traced, non_negative, positive

PARAMETERS = (
    Parameter("learning_rate", 0.5, "a positive finite number", positive, "1", "plain SGD learning rate eta"),
    Parameter("batch", 1.0, "a number >= 1", at_least_one, "samples", "samples averaged in one step"),
    Parameter("weight_decay", 0.0, "a number >= 0", non_negative, "per unit of t", "W <- W - (w/N) W each step"),
    Parameter("label_noise", 0.0, "a number >= 0", non_negative, "1", "standard deviation of the labels' noise"),
    Parameter("noise", 1.0, "a number in [0, 1]", lambda x: 0 <= x <= 1, "1", "1 keeps the SGD noise, 0 drops it"),
    Parameter("student_weight", 1.0, "a finite number", lambda x: abs(x) < np.inf, "1", "output weight v"),
    Parameter("teacher_weight", 1.0, "a finite number", lambda x: abs(x) < np.inf, "1", "output weight v*"),
    Parameter("dimension", 1000.0, "a positive finite number", positive, "1", "N, SGD steps in one unit of t"),
)


class SaadSolla(AbstractSystem):
    r"""dQ/dt = -eta (D_Q + D_Q^T) - 2 w Q + (eta^2/B) V, dR/dt = -eta D_R - w R; state (K, K + M) = [Q | R].

    Q_ij = W_i.W_j/N, R_in = W_i.W*_n/N, T_nm = W*_n.W*_m/N for K student and M teacher units on Gaussian inputs with
    covariance I; l = 1/2 (sum_i v g(W_i.x/sqrt N) - sum_n v* g(W*_n.x/sqrt N) - sigma xi)^2 with fixed output weights v, v*.
    One unit of t is `steps_per_unit` = N SGD steps (Saad & Solla's alpha, examples per input dimension, times 1/B).

    **Arguments**

    - `initial_overlaps` (K + M, K + M): [[Q, R], [R^T, T]], positive semi-definite. `units`: K.
    - `learning_rate` > 0: plain eta, `W <- W - eta mean_B grad`. `batch` >= 1. `weight_decay` >= 0 per unit of t.
    - `label_noise` sigma >= 0. `noise`: 1.0 keeps V, 0.0 is gradient flow. `student_weight`, `teacher_weight`: v, v*.
    - `activation`: "erf" for erf(x/sqrt 2), "quadratic" for (x^2 - 1)/2. `schedule`: eta(t) = learning_rate schedule(t).

    **Good values**: eta from 0.05 to 0.8 with K = M = 4; from the default start at eta >= 1 a loss above 0.05 remains.

    **Failure regime.** Overlaps of a finite N deviate by 1/sqrt(N) in one run, which the unstable directions of the symmetric
    plateau amplify: only a start with R set exactly is comparable there. Errors of the overlaps enter the loss linearly: what
    is below about ten times `atol` is integration error (1e-11 at rtol 1e-8, 1e-14 at 1e-11), below 1e-15 rounding. Quadratic
    units diverge in finite time at large eta. Source: see `sources`.
    """

    initial_overlaps: Float[Array, "P P"]
    learning_rate: Float[Array, ""]
    batch: Float[Array, ""]
    weight_decay: Float[Array, ""]
    label_noise: Float[Array, ""]
    noise: Float[Array, ""]
    student_weight: Float[Array, ""]
    teacher_weight: Float[Array, ""]
    units: int = eqx.field(static=True)
    activation: Literal["erf", "quadratic"] = eqx.field(static=True, default="erf")
    steps_per_unit: float = eqx.field(static=True, default=1000.0)
    schedule: Schedule = eqx.field(default_factory=ConstantSchedule)
    label: str = eqx.field(static=True, default="committee")

    name: ClassVar[str] = "committee"
    loss_label: ClassVar[str] = "excess loss L  (half squared error)"
    sources: ClassVar[tuple[str, ...]] = (
        "Saad & Solla, Phys. Rev. E 52, 4225 (1995): online learning in soft committee machines",
        "Goldt et al., NeurIPS 2019: label noise and over-parametrised students",
        "derivations/mean_field/script.py: the closure from the SGD step, arcsine laws and tilts",
    )
    parameters: ClassVar[tuple[Parameter, ...]] = PARAMETERS

    @property
    def integration(self) -> Integration:
        """High order at a tight tolerance first, for the digits of a late loss; the implicit one where that is too stiff."""
        return Integration(("dopri8", "kvaerno5"))

    @property
    def clock(self) -> Clock:
        """One unit of t is N SGD steps; one token per sample."""
        return Clock(self.steps_per_unit, self.learning_rate, self.schedule, self.batch, 0.0)

    @property
    def output_weights(self) -> Float[Array, " P"]:
        """c with f - f* = sum_a c_a g(phi_a)."""
        K, P = self.units, self.initial_overlaps.shape[0]
        return jnp.concatenate([jnp.full(K, self.student_weight), jnp.full(P - K, -self.teacher_weight)])

    def to_overlaps(self, y: Float[Array, "K P"]) -> Float[Array, "P P"]:
        """The whole matrix [[Q, R], [R^T, T]] of a state [Q | R]."""
        K = self.units
        teacher = jnp.asarray(self.initial_overlaps, y.dtype)[K:, K:]
        return jnp.concatenate([y, jnp.concatenate([y[:, K:].T, teacher], axis=1)])

    def closure(self, C: Float[Array, "P P"]) -> tuple[Float[Array, "K P"], Float[Array, "K K"]]:
        """(D, V) = (E[g phi^T], E[g g^T]) at the covariance C of the fields."""
        moved, c = tuple(range(self.units)), self.output_weights.astype(C.dtype)
        if self.activation == "erf":
            G, V = formulas.erf_committee_closure(C, c, moved, self.label_noise)
        else:
            G, V = formulas.quadratic_committee_closure(C, jnp.diag(c), jnp.sum(c), moved, self.label_noise)
        return G @ C, V

    def initial_state(self) -> Float[Array, "K P"]:
        return jnp.asarray(self.initial_overlaps)[: self.units]

    def vector_field(self, t: Float[Array, ""], y: Float[Array, "K P"], args: Any = None) -> Float[Array, "K P"]:
        K = self.units
        D, V = self.closure(self.to_overlaps(y))
        eta = self.learning_rate * self.schedule(t)
        half = -eta * D - self.weight_decay * y
        Q = half[:, :K] + half[:, :K].T + eta**2 / self.batch * self.noise * V
        return jnp.concatenate([Q, half[:, K:]], axis=1)

    def excess_loss(self, t: Float[Array, ""], y: Float[Array, "K P"]) -> Float[Array, ""]:
        """Generalisation error without the labels' noise, 1/2 E[(f - f*)^2]."""
        C, c = self.to_overlaps(y), self.output_weights.astype(y.dtype)
        if self.activation == "erf":
            return formulas.erf_committee_loss(C, c)
        return formulas.quadratic_committee_loss(C, jnp.diag(c), jnp.sum(c))

    def observables(self, t: Float[Array, ""], y: Float[Array, "K P"]) -> dict[str, Array]:
        """`overlaps` (P, P), and `specialisation`: mean over students of the largest |cosine| with a teacher unit."""
        C, K = self.to_overlaps(y), self.units
        lengths = jnp.sqrt(jnp.diagonal(C))
        product = lengths[:K, None] * lengths[K:]
        cosines = jnp.abs(y[:, K:]) / jnp.where(product > 0, product, 1.0)
        return {"overlaps": C, "specialisation": jnp.mean(jnp.max(cosines, axis=1))}

    def check(self) -> None:
        if is_traced(self.initial_overlaps):
            return
        size = np.shape(self.initial_overlaps)[-1]
        check_overlaps(np.asarray(self.initial_overlaps)[None], size, modes=1)
        if not 1 <= self.units < size:
            raise InputError("units", expected=f"from 1 to {size - 1}", got=self.units, remedy="K + M rows in all")
        if self.activation not in ("erf", "quadratic"):
            raise InputError("activation", expected="erf or quadratic", got=self.activation, remedy="use erf")
        if not is_traced(self.student_weight) and not float(self.excess_loss(jnp.zeros(()), self.initial_state())) > 0:
            raise InputError(
                "initial_overlaps", expected="a student that differs from its teacher (loss > 0)", got="loss 0",
                remedy="change R",
            )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        names = [parameter.name for parameter in self.parameters if parameter.name != "dimension"]
        values: dict[str, Any] = {name: float(getattr(self, name)) for name in names}
        teachers = int(self.initial_overlaps.shape[0]) - self.units
        return values | {
            "units": self.units,
            "teacher_units": teachers,
            "activation": self.activation,
            "steps_per_unit": self.steps_per_unit,
        }


def committee_overlaps(
    student: Float[np.ndarray, "K K"], cross: Float[np.ndarray, "K M"], teacher: Float[np.ndarray, "M M"]
) -> Float[Array, "P P"]:
    """[[Q, R], [R^T, T]] from its blocks.

    **Arguments**: `student` Q (K, K), `cross` R (K, M), `teacher` T (M, M). **Errors**: `InputError` for shapes that do not
    fit or overlaps that are no Gram matrix.
    """
    Q, R, T = (np.asarray(x, dtype=float) for x in (student, cross, teacher))
    if R.ndim != 2 or Q.shape != (R.shape[0],) * 2 or T.shape != (R.shape[1],) * 2:
        raise InputError(
            "cross", expected="shape (K, M) with Q (K, K) and T (M, M)", got=[x.shape for x in (Q, R, T)],
            remedy="one row per student unit",
        )  # fmt: skip
    overlaps = np.block([[Q, R], [R.T, T]])
    check_overlaps(overlaps[None], overlaps.shape[0])
    return jnp.asarray(overlaps)


def saad_solla(
    *,
    units: int = 4,
    teacher_units: int | None = None,
    initial_overlaps: Float[Array, "P P"] | None = None,
    activation: Literal["erf", "quadratic"] = "erf",
    schedule: Schedule | str | None = None,
    **given: Any,
) -> SaadSolla:
    """A soft committee machine on its way to a teacher committee: see `SaadSolla` for its equations.

    One unit of t is `dimension` SGD steps.

    **Arguments** (all optional): `units` K and `teacher_units` M (default K) from 1 to 16; the words of
    `SaadSolla.parameters`; and

    - `initial_overlaps` (K + M, K + M): default T = I, Q = diag(0.3, 0.4, ...) and R_in = 1e-3 sin(1 + 3 i + 5 n), small and
      without symmetry, so that the plateau and the escape from it are seen.
    - `activation`: "erf" or "quadratic". `schedule`: a callable s(t), or its text.

    **Raises** `InputError` naming the argument.
    """
    require_x64("saad_solla")
    values = complete(SaadSolla.parameters, given, "saad_solla")
    K, M = (_count(name, x) for name, x in (("units", units), ("teacher_units", teacher_units or units)))
    if initial_overlaps is None:
        i, n = np.arange(K)[:, None], np.arange(M)[None, :]
        R = 1e-3 * np.sin(1 + 3 * i + 5 * n)
        initial_overlaps = committee_overlaps(np.diag(0.3 + 0.1 * np.arange(K)), R, np.eye(M))
    elif np.shape(initial_overlaps) != (K + M, K + M):
        raise InputError(
            "initial_overlaps", expected=f"shape {(K + M, K + M)}", got=np.shape(initial_overlaps),
            remedy="pass units and teacher_units to fit",
        )  # fmt: skip
    dimension = float(values.pop("dimension"))
    numbers: dict[str, Any] = {name: jnp.asarray(value, dtype=float) for name, value in values.items()}
    return SaadSolla(
        initial_overlaps=jnp.asarray(initial_overlaps),
        units=K,
        activation=activation,
        steps_per_unit=dimension,
        schedule=parse_schedule(schedule) if isinstance(schedule, str) else schedule or ConstantSchedule(),
        **numbers,
    )


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or int(value) != value or not 1 <= value <= 16:
        raise InputError(name, expected="an integer from 1 to 16", got=value, remedy="4 is a good value")
    return int(value)
