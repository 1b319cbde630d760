r"""One pass of SGD on a pruned stream: a logistic perceptron that sees each kept example once, as a closed ODE of R and Q.

    dR/dt = eta s E[g |t|]        dQ/dt = 2 eta s E[g lam] + (eta s)^2 E[g^2]        g = 1/(1 + e^lam)
    lam = R |t| + sqrt(Q - R^2) z,  z ~ N(0, 1),  |t| the teacher's margin of a kept example

From the update J <- J + (eta/sqrt d) g y x, y = sign(B.x/sqrt d): derived in `derivations/pruning/script.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.clock import Clock, ConstantSchedule, Schedule, parse_schedule, schedule_by_value
from odescale.errors import InputError
from odescale.expectations.kept import kept_margins
from odescale.generated import pruning as formulas
from odescale.precision import require_x64
from odescale.systems import tables
from odescale.systems.base import AbstractSystem, Integration
from odescale.systems.parameters import Parameter, complete, is_traced, schedule_texts, shown

HERMITE = 40
"""Nodes of the student's field off the teacher's."""


class Pruning(AbstractSystem):
    r"""dR/dt = eta E[g |t|], dQ/dt = 2 eta E[g lam] + eta^2 E[g^2]; state [R, Q]: one pass of logistic SGD over kept examples.

    Inputs x ~ N(0, I_d), labels y = sign(B.x/sqrt d), |B|^2 = d, of which the share `keep` with the largest ("easy"), the
    smallest ("hard") or any ("random") margin |B.x|/sqrt d stays. R = J.B/d, Q = |J|^2/d of the student J; error =
    arccos(R/sqrt Q)/pi on fresh, unpruned inputs. One unit of t is d = `dimension` SGD steps, each on one kept example: 1/keep
    times as many are looked at.

    **Fields**: the parameters of `pruning`; `margins`, `weights` (m,): nodes of the kept margin. **Failure regime**: exact for
    d -> infinity; errors of order 1/d. The rules change places later than for the largest margin, or never
    (`odescale.resources.max_margin`). Source: see `sources`.
    """

    learning_rate: Float[Array, ""]
    overlap: Float[Array, ""]
    norm: Float[Array, ""]
    margins: Float[Array, " m"]
    weights: Float[Array, " m"]
    keep: float = eqx.field(static=True)
    rule: str = eqx.field(static=True, default="easy")
    dimension: float = eqx.field(static=True, default=500.0)
    schedule: Schedule = eqx.field(converter=schedule_by_value, default_factory=ConstantSchedule)
    label: str = eqx.field(static=True, default="pruning")

    name: ClassVar[str] = "pruning"
    loss_label: ClassVar[str] = "error on unpruned inputs"
    sources: ClassVar[tuple[str, ...]] = (
        "Sorscher, Geirhos, Shekhar, Ganguli & Morcos 2022, arXiv 2206.14486: pruning by the teacher's margin",
        "Biehl & Schwarze, J. Phys. A 28, 643 (1995): on-line gradient descent as an ODE of R and Q",
        "derivations/pruning/script.py: the logistic update on a pruned stream",
    )
    parameters: ClassVar[tuple[Parameter, ...]] = tables.PRUNING

    @property
    def integration(self) -> Integration:
        return Integration()

    @property
    def clock(self) -> Clock:
        return Clock(self.dimension, self.learning_rate, self.schedule, 1.0, 0.0)

    def initial_state(self) -> Float[Array, " 2"]:
        """[R, Q] of a student of norm^2 `norm` at the cosine `overlap`."""
        return jnp.stack([self.overlap * jnp.sqrt(self.norm), self.norm])

    def vector_field(self, t: Real[ArrayLike, ""], y: Float[Array, " 2"], args: Any = None) -> Float[Array, " 2"]:
        """[dR/dt, dQ/dt]."""
        rate = self.learning_rate * self.schedule(jnp.asarray(t))
        z, w = np.polynomial.hermite_e.hermegauss(HERMITE)
        lam = formulas.student_field(y[0], y[1], self.margins[:, None], jnp.asarray(z)[None])
        weight = self.weights[:, None] * jnp.asarray(w / w.sum())[None]
        g = formulas.slope(lam)
        moments = jnp.sum(weight * jnp.stack([g * self.margins[:, None], g * lam, g**2]), axis=(1, 2))
        return jnp.stack([formulas.overlap_flow(rate, moments[0]), formulas.norm_flow(rate, moments[1], moments[2])])

    def excess_loss(self, t: Real[ArrayLike, ""], y: Float[Array, " 2"]) -> Float[Array, ""]:
        """arccos(R/sqrt Q)/pi, by the arctangent: it keeps its digits when student and teacher are nearly parallel."""
        return formulas.error(y[0], y[1])

    def observables(self, t: Real[ArrayLike, ""], y: Float[Array, " 2"]) -> dict[str, Array]:
        """`alignment` R/sqrt Q, `overlap` R and `norm` Q."""
        return {"alignment": y[0] / jnp.sqrt(y[1]), "overlap": y[0], "norm": y[1]}

    def check(self) -> None:
        if any(is_traced(leaf) for leaf in jax.tree_util.tree_leaves(self)):
            return
        if not abs(float(self.overlap)) < 1:
            raise InputError("overlap", expected="a cosine in (-1, 1)", got=float(self.overlap), remedy="e.g. 0.1")

    def summary(self) -> dict[str, Any]:
        numbers = {
            name: float(getattr(self, name)) for name in ("learning_rate", "overlap", "norm", "keep", "dimension")
        }
        return numbers | {"rule": self.rule}


@shown(tables.PRUNING)
def pruning(*, schedule: Schedule | str | None = None, **given: Any) -> Pruning:
    """One pass of logistic SGD over a pruned stream: see `Pruning` for its equations.

    One unit of t is `dimension` SGD steps, each on one kept example.

    **Arguments** (all optional): the words of `Pruning.parameters`; `schedule` may be a callable s(t).
    **Raises** `InputError` naming the argument. **Good values**: learning_rate .1 to 5, keep .1 to .9.
    """
    require_x64("pruning")
    values = complete(tables.PRUNING, given | schedule_texts(schedule=schedule), "pruning")
    t, weight = kept_margins(float(values["keep"]), values["rule"])
    return Pruning(
        learning_rate=jnp.asarray(values["learning_rate"], float), overlap=jnp.asarray(values["overlap"], float),
        norm=jnp.asarray(values["norm"], float), margins=jnp.asarray(t), weights=jnp.asarray(weight), keep=float(values["keep"]),
        rule=values["rule"], dimension=float(values["dimension"]),
        schedule=schedule if callable(schedule) else parse_schedule(values["schedule"]),
    )  # fmt: skip
