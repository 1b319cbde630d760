r"""Online SGD of softmax cross-entropy on peaked targets, as a closed ODE for two order parameters, for any number of classes.

    dD/dt     = eta beta/(K-1) [m - beta D H(beta s)] - w D                               s = sqrt(D^2 + Delta)
    dDelta/dt = eta beta/(K-1) [-2 beta Delta H + (eta beta/B) G(D, Delta)] - 2 w Delta

The right-hand side comes from `odescale.generated.peaked`, written by `derivations/peaked/script.py`; its expectations H, m - s H,
and G from the tables of `odescale.expectations.softmax_race`.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.cache.programs import program
from odescale.clock import Clock, ConstantSchedule, Schedule, parse_schedule, schedule_by_value
from odescale.errors import InputError, OutsideTheoryError
from odescale.expectations.margin import margin_moments
from odescale.expectations.softmax_race import Disagreement, SoftmaxRace, disagreement_table, softmax_race
from odescale.generated import peaked as formulas
from odescale.optimizers.base import AbstractOptimizer
from odescale.precision import require_x64
from odescale.systems import tables
from odescale.systems.base import AbstractSystem, Integration, loss_at_start
from odescale.systems.parameters import (
    Parameter,
    complete,
    is_traced,
    schedule_texts,
    shown,
)
from odescale.systems.peaked_unit import UNIT, PeakedArguments, UnitRule, of_object, unit_rule

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2
_SMALL = 0.02
"""A spread next to the teacher, where G is linear in it."""


class _Fields(NamedTuple):
    """What the flow and the observables share at one state: effective scale, H, m - beta s H, s - D, beta."""

    s: Array
    response: Array
    mean_gap: Array
    excess: Array
    beta: Array


class Peaked(AbstractSystem):
    r"""dD/dt = eta/(K-1) [m - D H(s)], dDelta/dt = 1/(K-1) [-2 eta Delta H(s) + (eta^2/B) G(D, Delta)]; state [D, Delta].

    x ~ N(0, I_d), logits W x/sqrt d, teacher W* W*^T/d = I_K; W <- W - (eta/sqrt d) mean_B (p - y) x^T. With the rows centred,
    W W*^T/d = D P and W W^T/d = (D^2 + Delta) P, P = I - 11^T/K: D is the overlap (an inverse temperature), Delta the spread
    that noise feeds. H = E[1 - |p|^2], m = E[y.lam*], G = E|p - y|^2. One unit of t is d = `dimension` SGD steps; for adam, sign
    and muon it is one step, logits are W x and W* W*^T = I (`odescale.systems.peaked_unit` has the flows of the last two).

    **Fields**: the parameters of `peaked`; `race` and `disagreement` the tables of the expectations; `beta1` and `eps` of Adam,
    which a training has and the flow does not: at times long beside 1/(1 - beta1) momentum drops out. `unit`: signs and Muon.

    `excess_loss` is the cross-entropy without smoothing minus the entropy of the teacher's labels (KL; the loss itself for hard
    labels), whatever is trained. **Failure regime**: exact for d -> infinity at fixed K; errors of order K/d. Adam's moments
    are taken at their stationary values: not for the first 1/(1 - beta2) steps. Source: see `sources`.
    """

    classes: Float[Array, ""]
    inverse_temperature: Float[Array, ""]
    learning_rate: Float[Array, ""]
    batch: Float[Array, ""]
    weight_decay: Float[Array, ""]
    noise: Float[Array, ""]
    overlap: Float[Array, ""]
    spread: Float[Array, ""]
    smoothing: Float[Array, ""]
    focusing: Float[Array, ""]
    memory: Float[Array, ""]
    race: SoftmaxRace
    disagreement: Disagreement | None
    unit: UnitRule | None = None
    labels: str = eqx.field(static=True, default="hard")
    optimizer: str = eqx.field(static=True, default="sgd")
    beta1: float = eqx.field(static=True, default=0.9)
    eps: float = eqx.field(static=True, default=1e-8)
    loss: str = eqx.field(static=True, default="cross_entropy")
    dimension: float = eqx.field(static=True, default=1000.0)
    schedule: Schedule = eqx.field(converter=schedule_by_value, default_factory=ConstantSchedule)
    logit_schedule: Schedule = eqx.field(converter=schedule_by_value, default_factory=ConstantSchedule)
    label: str = eqx.field(static=True, default="peaked")

    name: ClassVar[str] = "peaked"
    loss_label: ClassVar[str] = "excess cross-entropy L  (nats)"
    sources: ClassVar[tuple[str, ...]] = (
        "Liu, Liu, Pehlevan & Gore, arXiv 2602.03685: universal one-third time scaling in learning peaked distributions",
        "Kuehn, Thelge & Rosenow, arXiv 2605.22341: a boundary-layer mechanism for one-third scaling",
        "derivations/peaked/script.py: the closure for any number of classes, and its asymptotics",
    )
    parameters: ClassVar[tuple[Parameter, ...]] = tables.PEAKED

    @property
    def integration(self) -> Integration:
        """Implicit first where Delta relaxes faster than D grows; explicit without noise.

        Delta falls as beta^-2 under a logit schedule, and must keep its digits.
        """
        explicit = self.disagreement is None and self.loss == "cross_entropy"
        return Integration(
            ("tsit5", "kvaerno5") if explicit else ("kvaerno5",),
            time_scale=self.time_scale,
            atol_share=1e-4 if isinstance(self.logit_schedule, ConstantSchedule) else 1e-16,
        )

    @property
    def clock(self) -> Clock:
        """One unit of t is d SGD steps (adam, sign, muon: one step); one token per sample."""
        steps = 1.0 if self.optimizer in ("adam", *UNIT) else self.dimension
        return Clock(steps, self.learning_rate, self.schedule, self.batch, 0.0)

    @property
    def time_scale(self) -> Float[Array, ""]:
        """A time (units of t) at which D is about a tenth: before it log(1 + t/time_scale) is linear."""
        others = self.classes - 1
        if self.optimizer == "adam":
            return 0.1 / (self.learning_rate * jnp.sqrt(self.dimension))
        if self.unit is not None:
            return 0.1 / (self.learning_rate * self.unit.speed(self.optimizer, self.dimension))
        if self.optimizer == "normalised":
            return 0.1 * jnp.sqrt(others) / self.learning_rate
        return 0.1 * others / (self.learning_rate * self.race.m)

    @property
    def peaked_labels(self) -> bool:
        """True when the label is one class: hard."""
        return self.labels == "hard"

    @property
    def label_moment(self) -> Float[Array, ""]:
        """m = E[y.lam*]: m_K for hard labels, Phi(b*) for soft and sampled ones."""
        return self.race.m - (0.0 if self.peaked_labels else self.race.gap(self.inverse_temperature))

    @property
    def irreducible(self) -> Float[Array, ""]:
        """Entropy of the teacher's labels, F(b*) - b* Phi(b*); 0 for hard ones."""
        if self.peaked_labels:
            return jnp.zeros(())
        b = self.inverse_temperature
        return self.race.aligned_loss(b) + b * self.race.gap(b)

    def _fields(self, t: Real[ArrayLike, ""], y: Float[Array, " n"]) -> _Fields:
        D, spread = y[0], jnp.maximum(y[1], 0.0)
        beta = self.logit_schedule(t)
        square = D**2 + spread
        s = jnp.sqrt(jnp.where(square > 0, square, 1e-300))
        return _Fields(beta * s, self.race.response(beta * s), self._mean_gap(beta * s), spread / (s + D), beta)

    def _mean_gap(self, s: Float[Array, ""]) -> Float[Array, ""]:
        """m - s H(s) = m - Phi(s), without cancellation also next to the teacher's own temperature."""
        if self.peaked_labels:
            return self.race.gap(s)
        b = self.inverse_temperature
        places = s + (b - s) * jnp.asarray(_NODES)
        near = (b - s) * jnp.sum(jnp.asarray(_WEIGHTS) * jax.vmap(self.race.curvature)(places))
        return jnp.where(jnp.abs(s - b) < 0.5 * b, near, self.race.gap(s) - self.race.gap(b))

    def second_moment(self, y: Float[Array, " n"], fields: _Fields) -> Float[Array, ""]:
        """G = E|p - y|^2 with the smoothed label, at effective logits beta lam."""
        if self.disagreement is None:
            return jnp.zeros(())
        U = self.disagreement(fields.beta * y[0], fields.beta**2 * y[1])
        label = self.race.response(self.inverse_temperature) if self.labels == "soft" else jnp.zeros(())
        G = formulas.second_moment(fields.response, U, label, self.classes, self.smoothing)
        return jnp.maximum(G, 0.0)

    def initial_state(self) -> Float[Array, " n"]:
        start = jnp.stack([jnp.asarray(self.overlap, float), jnp.asarray(self.spread, float)])
        if self.optimizer != "adam":
            return start
        now = self._arguments(jnp.zeros(()), start)
        return jnp.append(start, jnp.log(formulas.adam_second_moment(*now.moments, *now.sizes, *now.options[1:])))

    def vector_field(self, t: Real[ArrayLike, ""], y: Float[Array, " n"], args: Any = None) -> Float[Array, " n"]:
        now = self._arguments(t, y)
        rate = self.learning_rate * self.schedule(t)
        if self.optimizer == "adam":
            # The average of v over steps 1, 2, ... with weights memory^age, as Adam corrects it for its start.
            forgets = -jnp.log(jnp.maximum(self.memory, 1e-3))
            v = formulas.adam_second_moment(*now.moments, *now.sizes, *now.options[1:])
            follow = forgets / -jnp.expm1(-forgets * (t + 1)) * (v * jnp.exp(-y[2]) - 1)
            flow = formulas.adam_flow(*now.moments, rate, *now.sizes, *now.options, jnp.exp(y[2]))
            return jnp.stack([*flow, follow])
        if self.unit is not None:
            return jnp.stack(self.unit.flow(self.optimizer, self.dimension, now, rate))
        if self.optimizer == "normalised":
            return jnp.stack(formulas.normalised_flow(*now.moments, rate, *now.sizes, *now.options))
        return jnp.stack(formulas.overlap_flow(*now.moments, rate, *now.sizes[:2], *now.options))

    def _arguments(self, t: Real[ArrayLike, ""], y: Float[Array, " n"]) -> PeakedArguments:
        fields = self._fields(t, y)
        D, spread = y[0], jnp.maximum(y[1], 0.0)
        if self.loss == "cross_entropy":
            mean_gap, response, G = fields.mean_gap, fields.response, self.second_moment(y, fields)
        else:
            beta = fields.beta
            moments = margin_moments(self.loss, beta * D, beta**2 * spread, self.focusing)
            # The flow adds H times (s - D) to the gap of an aligned student.
            response, G = moments.response, moments.second_moment
            mean_gap = moments.drift - response * beta * fields.excess
        return PeakedArguments(
            (D, spread, self.label_moment, mean_gap, response, G),
            (self.batch / self.noise, self.classes, jnp.asarray(self.dimension)),
            (self.weight_decay, self.smoothing, fields.beta),
        )

    def excess_loss(self, t: Real[ArrayLike, ""], y: Float[Array, " n"]) -> Float[Array, ""]:
        """F(s) - D m for hard labels, F(s) - F(b*) - (D - b*) Phi(b*) else, at the effective logits beta lam."""
        fields = self._fields(t, y)
        s, misaligned = fields.s, fields.beta * fields.excess * self.label_moment
        if self.peaked_labels:
            return self.race.aligned_loss(s) + misaligned
        b = self.inverse_temperature
        places = b + (s - b) * jnp.asarray(_NODES)
        weights = jnp.asarray(_WEIGHTS * (1 - _NODES))
        near = (s - b) ** 2 * jnp.sum(weights * jax.vmap(self.race.curvature)(places))
        far = self.race.aligned_loss(s) - self.race.aligned_loss(b) + (s - b) * self.race.gap(b)
        return jnp.where(jnp.abs(s - b) < 0.5 * b, near, far) + misaligned

    def observables(self, t: Real[ArrayLike, ""], y: Float[Array, " n"]) -> dict[str, Array]:
        """`overlap` D, `spread` Delta, `logit_scale` beta s, `error` P(argmax differs from the teacher's), `loss_total`
        (cross-entropy), `calibrated_loss` (hard labels: the cross-entropy at the best temperature), `rate` eta(t)."""
        fields = self._fields(t, y)
        D, spread = y[0], jnp.maximum(y[1], 0.0)
        ratio = jnp.sqrt(spread) / jnp.where(D > 0, D, 1e-300)
        named: dict[str, Array] = {
            "overlap": D,
            "spread": spread,
            "logit_scale": fields.s,
            "error": self.race.error(ratio),
            "loss_total": self.excess_loss(t, y) + self.irreducible,
            "rate": self.learning_rate * self.schedule(t),
        }
        if self.peaked_labels:
            named["calibrated_loss"] = self._calibrated_loss(fields.excess * fields.beta / fields.s)
        return named

    def _calibrated_loss(self, misalignment: Float[Array, ""]) -> Float[Array, ""]:
        """min over s of F(s) - s m D/s_0 = F(s) - s m + s m (1 - D/s_0): at m - Phi(s) = m (1 - D/s_0), by Newton in log s."""
        target = self.race.m * jnp.clip(misalignment, 1e-30, 1.0)

        def newton(log_s, _):
            s = jnp.exp(log_s)
            gap = self.race.gap(s)
            step = (jnp.log(gap) - jnp.log(target)) * gap / (s * self.race.curvature(s))
            return log_s + jnp.clip(step, -2.0, 2.0), None

        start = 0.5 * jnp.log(self.race.c / target)
        s = jnp.exp(jax.lax.scan(newton, start, None, length=12)[0])
        return self.race.aligned_loss(s) + s * target

    def stability_bound(self) -> float:
        """Largest eta at which Delta relaxes next to the teacher: 2 B H/(dG/dDelta) for soft labels, 2 B for square; else inf.

        With hard and sampled labels G is bounded and does not vanish: Delta stays finite at any eta.
        """
        if self.optimizer != "sgd":
            return np.inf
        if self.loss == "square":
            return 2 * float(self.batch) / max(float(self.noise), 1e-300)
        if self.labels != "soft" or self.disagreement is None:
            return np.inf
        G, response = map(float, _next_to_teacher(self))
        return 2 * float(self.batch) / float(self.noise) * response * _SMALL / max(G, 1e-300)

    def check(self) -> None:
        if any(is_traced(leaf) for leaf in jax.tree_util.tree_leaves(self)):
            return
        if self.optimizer != "adam" and not float(self.weight_decay) < self.clock.steps_per_unit:
            raise InputError(
                "weight_decay",
                expected=f"less than the {self.clock.steps_per_unit:g} steps of a unit of t",
                got=float(self.weight_decay),
                remedy="one step multiplies W by 1 - w/d",
            )
        if self.optimizer == "normalised" and float(self.noise) > 0 and float(self.batch) < 32:
            raise OutsideTheoryError(
                "batch", expected=">= 32 with optimizer=normalised: the norm of one sample's gradient fluctuates",
                got=float(self.batch), remedy="raise batch, or set noise=0",
            )  # fmt: skip
        bound = self.stability_bound()
        if not float(self.learning_rate) < bound:
            raise OutsideTheoryError(
                "learning_rate", expected=f"less than {bound:.4g} at batch {float(self.batch):g}: beyond it the noise of "
                "the gradient outgrows its drift next to the teacher", got=float(self.learning_rate),
                remedy="lower it, or raise batch",
            )  # fmt: skip
        if not float(loss_at_start(self)) > 0:
            raise InputError(
                "overlap", expected="a student that differs from its teacher (loss > 0)", got=float(self.overlap),
                remedy="change overlap or spread",
            )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        words = ("schedule", "logit_schedule")
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.name not in words:
                value = getattr(self, parameter.name)
                values[parameter.name] = value if isinstance(value, str) else float(value)
        return values | {"m": float(self.race.m), "irreducible": float(self.irreducible)}


def falling_rate(system: Peaked, t1: float) -> float | None:
    """g of the effective rate eta beta^2 ~ t^-g over the last factor of ten before t1; None where no bound on it holds.

    Without noise there is no spread to lag; with smoothed labels D stays finite.
    """
    if float(system.noise) == 0 or float(system.smoothing) > 0 or system.optimizer != "sgd":
        return None

    def effective(t: float) -> float:
        return float(system.schedule(jnp.asarray(t)) * system.logit_schedule(jnp.asarray(t)) ** 2)

    early, late = effective(t1 / 10), effective(t1)
    return float(-np.log10(late / early)) if late > 0 and early > 0 else float("inf")


def samples_share(system: Peaked, overlap: float) -> float:
    """D nu/(m B): one over the samples of the boundary layer that Muon's step is divided by; 0 where that is no question."""
    unit = system.unit
    if unit is None or unit.steps is not None or float(system.noise) == 0:
        return 0.0
    return overlap / float(system.race.m) / (float(system.batch / system.noise) * unit.samples)


@shown(tables.PEAKED)
def peaked(
    *,
    schedule: Schedule | str | None = None,
    logit_schedule: Schedule | str | None = None,
    optimizer: AbstractOptimizer | str = "sgd",
    **given: Any,
) -> Peaked:
    """Softmax cross-entropy on K classes with peaked targets: see `Peaked` for its equations. L ~ t^(-1/3) with the defaults.

    One unit of t is `dimension` SGD steps (adam, sign, muon: one step). A layer with logits W x and a learning rate lr on d
    inputs is learning_rate = lr d.

    **Arguments** (all optional): the words of `Peaked.parameters`; `schedule` and `logit_schedule` may be callables s(t),
    `optimizer` an `Adam`, `Sign` or `Muon` of `odescale.optimizers`, whose rate, beta2 and decay are `learning_rate` (N = 1 in the
    unit of one step: that of weights W with logits W x), `memory` and `weight_decay`.

    **Raises** `InputError` naming the argument; `OutsideTheoryError` for a combination without a closure.
    **Good values**: learning_rate/batch <= 1, classes 2 to 1e5; times up to 1e10.
    """
    require_x64("peaked")
    texts = schedule_texts(schedule=schedule, logit_schedule=logit_schedule)
    fields: dict[str, Any] = {}
    muon = None
    if not isinstance(optimizer, str):
        given, fields, muon = of_object(optimizer, given)
    else:
        texts = texts | {"optimizer": optimizer}
    values = complete(Peaked.parameters, given | texts, "peaked")
    functions: dict[str, Schedule] = {
        name: value if callable(value) else parse_schedule(values[name])
        for name, value in (("schedule", schedule), ("logit_schedule", logit_schedule))
    }
    classes, labels, b = values["classes"], values["labels"], values["inverse_temperature"]
    if labels != "hard" and not is_traced(b) and np.isinf(b):
        labels = "hard"  # an infinitely cold teacher: its softmax is the one-hot of its argmax
    if labels == "hard" and not is_traced(b) and np.isfinite(b):
        raise InputError(
            "inverse_temperature", expected="inf with labels=hard", got=b, remedy="set labels=soft or sampled"
        )
    if values["loss"] != "cross_entropy" and (classes != 2 or labels != "hard" or values["smoothing"] != 0):
        raise OutsideTheoryError(
            "loss", expected="cross_entropy, or two classes with hard labels and no smoothing", got=values["loss"],
            remedy="set classes=2, labels=hard, smoothing=0",
        )  # fmt: skip
    numbers = (
        "learning_rate",
        "batch",
        "weight_decay",
        "noise",
        "overlap",
        "spread",
        "smoothing",
        "focusing",
        "memory",
    )
    unit = unit_rule(values, labels, muon)
    return Peaked(
        classes=jnp.asarray(float(classes)),
        inverse_temperature=jnp.asarray(b, dtype=float),
        race=softmax_race(classes),
        disagreement=_table(values, labels) if unit is None or unit.steps is None else None,
        unit=unit,
        labels=labels,
        optimizer=values["optimizer"],
        loss=values["loss"],
        dimension=float(values["dimension"]),
        **(fields | functions),  # type: ignore[arg-type]
        **{name: jnp.asarray(values[name], dtype=float) for name in numbers},  # type: ignore[arg-type]
    )


@program
def _next_to_teacher(system: Peaked) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(G at a small spread, H) at the teacher's own temperature."""
    y = jnp.stack([jnp.asarray(system.inverse_temperature, float), jnp.asarray(_SMALL)])
    G = system.second_moment(y, system._fields(jnp.zeros(()), y))
    return G, system.race.response(system.inverse_temperature)


def _table(values: dict[str, Any], labels: str) -> Disagreement | None:
    """The table behind G; none for a flow without noise, which is then free to vary its temperature under one compilation."""
    noise, b = values["noise"], values["inverse_temperature"]
    if values["loss"] != "cross_entropy" or (not is_traced(noise) and noise == 0):
        return None
    if labels == "hard":
        return disagreement_table(values["classes"])
    if is_traced(b):
        raise InputError(
            "noise", expected="0 in a sweep over inverse_temperature", got=noise, remedy="set noise=0, or loop over it"
        )
    return disagreement_table(values["classes"], float(b))
