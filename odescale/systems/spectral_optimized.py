r"""One-pass training of a linear model on Gaussian features of any spectrum, under Adam or by signs, in two bases.

With phi = sqrt(lam_k) (theta_k - theta_k*), e_k = <phi^2>, P = s^2 + F_0 + sum_k e_k, gradient g_k of a batch of B:

    <g_k^2>/lam_k = P/B + (1 + 1/B) e_k,        its noise alone P/B + e_k/B
    Adam, eigenbasis   A_k = a/(sqrt(lam_k nu_k) + eps),   dnu_k/dt = g2 (P/B + (1 + 1/B) e_k - nu_k)/(1 - sqrt(beta2) e^(-g2 t))
    Adam, rotated      A = a/(sqrt(v) + eps) for all modes,  v follows (1/d) sum_k lam_k (P/B + (1 + 1/B) e_k)
    without beta1      e_k(r+1) = (1 - 2 A lam + (1 + 1/B) A^2 lam^2) e_k + A^2 lam^2 P/B, at its log-rate as for SGD
    with beta1         dphi = -A lam psi dt,  dpsi = g1 (phi - psi) dt + g1 noise,  g1 = 2 (1 - beta1)/(1 + beta1), bias corrected
    sign, eigenbasis   dphi = -a sqrt(lam) I(e_k/P; 1/2, B/2) sgn phi,   noise a^2 lam_k
    sign, rotated      dphi = -a lam_k/sqrt(l P) sqrt(2/pi) c(B) phi,  noise a^2 lam_k (1 - 2/pi + (2/pi) lam_k/l), l = tr Sigma/d

g2 = -log beta2. The average of gradients with rate g1 has the delay beta1/(1 - beta1) + 1/2 from the middle of a step and the
variance (1 - beta1)/(1 + beta1), both exact. v holds the gradient that it divides, those that moved the weights, and noise of its
own: in the eigenbasis the rows of `odescale.systems.spectral_memory`. Rotated, where a coordinate's v has parts of all modes, their
steady values: with the kurtosis 3 + 6/B of a gradient, drift and noise are divided by

    1 + (2 + 6/B) (w/2 - 3 S/8) - A l_k x_1,    1 + (2 + 6/B) (w - S) - A l_k x_2,    x_n = (1 - beta2)/(1 - beta2 + n A lam)

l_k = (2 + 4/B) l + (2/B) lam_k, w the weight of the present square, S the sum of squared weights: 1 - beta2 and (1 - beta2)/2 late,
both 1 at the first step, whose length is the sign's.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.clock import Clock, Schedule, schedule_by_value, schedule_kinks
from odescale.errors import InputError, OutsideTheoryError
from odescale.generated import spectral as formulas
from odescale.optimizers.adam import Adam
from odescale.optimizers.base import AbstractOptimizer
from odescale.optimizers.rows import OPTIMIZERS, from_words
from odescale.optimizers.signs import Sign
from odescale.systems import spectral_memory, tables
from odescale.systems.base import AbstractSystem, Integration
from odescale.systems.parameters import Parameter, is_traced
from odescale.systems.spectral_bins import check_modes
from odescale.systems.spectral_memory import moves_of_memory, remembered
from odescale.systems.spectral_schedules import peak_of

BASES = ("eigen", "rotated")
USUAL_RATE = 1e-3
"""Learning rate of an optimiser that was named by its word alone; the steps of Adam and of signs do not fall with the gradient."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


class SpectralOptimized(AbstractSystem):
    r"""Mode by mode under Adam or signs, see the module; one unit of t is one step, `learning_rate` a is the optimiser's own.

    State (rows, modes): e_k; with beta1 <phi psi> and <psi^2>; with decay <phi* phi> (and
    <phi* psi>); with beta2 nu_k (rotated: v), and in the eigenbasis what it remembers.

    **Fields**

    - `eigenvalues`, `start` (modes,): lam_k > 0; e_k(0) >= 0, all weights zero. `batch` B (finite), `noise` s^2, `floor` F_0.
    - `optimizer`: `Adam` or `Sign`, its rate in units of `learning_rate`. `schedule`: s(r), r in steps.
    - `basis`: "eigen", the optimiser's coordinates are the eigenvectors of the features; "rotated", coordinates that all have the
      same variance tr Sigma/d and carry every mode alike, as a random rotation has up to 1/d_eff.

    `excess_loss` is E = sum_k e_k, the mean square error (no factor 1/2) above s^2 + F_0.

    **Failure regime**: P must not fluctuate: few modes that carry all the noise, sum lam/(sum sqrt lam)^2 (rotated: 1/d_eff) not
    small. Steps small on the fastest mode, A lam << 1, a/sqrt(q_1) << 1 under signs. Source: see `sources`.
    """

    eigenvalues: Float[Array, " modes"]
    start: Float[Array, " modes"]
    learning_rate: Float[Array, ""]
    batch: Float[Array, ""]
    noise: Float[Array, ""]
    floor: Float[Array, ""]
    optimizer: AbstractOptimizer
    schedule: Schedule = eqx.field(converter=schedule_by_value)
    basis: str = eqx.field(static=True)
    carried: tuple[str, ...] = eqx.field(static=True)
    """Rows of the state behind e_k, of "cross", "speed", "target", "target_speed", "second", and those of its memory."""
    label: str = eqx.field(static=True, default="spectral")

    name: ClassVar[str] = "spectral_optimized"
    loss_label: ClassVar[str] = "excess risk  (mean squared error)"
    sources: ClassVar[tuple[str, ...]] = (
        "Kingma & Ba 2015: Adam",
        "Bernstein et al. 2018: signSGD",
        "docs/optimisers.md: linear models, exponents and floors",
    )
    parameters: ClassVar[tuple[Parameter, ...]] = tables.SPECTRAL

    def __check_init__(self) -> None:
        if any(is_traced(leaf) for leaf in jax.tree_util.tree_leaves(self)):
            return
        check_modes(eigenvalues=self.eigenvalues, start=self.start)

    @property
    def integration(self) -> Integration:
        """Explicit: rates go as sqrt(lam_k), so that the fastest mode is not far from the others."""
        return Integration(("tsit5",), time_scale=self.time_scale, atol_share=1e-14)

    @property
    def clock(self) -> Clock:
        """One unit of t is one step; intrinsic time is the learning rate times steps; one token per sample."""
        return Clock(1.0, self.learning_rate, self.schedule, self.batch, 0.0)

    @property
    def is_sign(self) -> bool:
        """Whether it moves by signs."""
        return self.optimizer.averages == "sign"

    @property
    def time_scale(self) -> Float[Array, ""]:
        """Steps in which the fastest mode loses a tenth at the start."""
        risk = self.residual_noise + jnp.sum(self.start)
        return 0.05 / jnp.max(self.steady_rates(risk, self.learning_rate))

    @property
    def kinks(self) -> tuple[Any, ...]:
        """Times at which a(t) of the ODE bends: those of the schedule, half a step later."""
        return tuple(kink + 0.5 for kink in schedule_kinks(self.schedule))

    @property
    def residual_noise(self) -> Float[Array, ""]:
        """s^2 + F_0, the mean square error at the best weights."""
        return self.noise + self.floor

    @property
    def mean_variance(self) -> Float[Array, ""]:
        """l = tr Sigma/d, the variance of every coordinate of the rotated basis."""
        return jnp.mean(self.eigenvalues)

    def relative_rate(self, t: Real[ArrayLike, ""]) -> Float[Array, ""]:
        """s(t) of the ODE, the schedule half a step earlier."""
        return self.schedule(jnp.maximum(t - 0.5, 0.0))

    def steady_rates(self, risk: Float[Array, ""], rate: Float[Array, ""]) -> Float[Array, " modes"]:
        """Rate of every mode per step where second moments have followed the risk P and e_k << P."""
        lam, noise = self.eigenvalues, risk / (1 if self.is_sign else self.batch)
        width = jnp.sqrt(noise * (lam if self.basis == "eigen" else self.mean_variance))
        factor = sign_gain(jnp.zeros(()), self.batch) if self.is_sign else 1.0
        return rate * factor * lam / width

    def noise_floor(self) -> Float[Array, ""]:
        """E where a constant rate ends, to leading order in A lam: E = b sqrt(E + s^2 + F_0).

        b = a sum sqrt(lam)/(2 sqrt B) for Adam in the eigenbasis, a sqrt(d tr Sigma)/(2 sqrt B) rotated; for signs c(B) in the
        place of sqrt B. No noise: E = b^2. Without eps, decay and schedule.
        """
        size = jnp.sum(jnp.sqrt(self.eigenvalues))
        if self.basis == "rotated":
            size = self.eigenvalues.size * jnp.sqrt(self.mean_variance)
        gain = sign_gain(jnp.zeros(()), self.batch) if self.is_sign else jnp.sqrt(self.batch)
        square = (self.learning_rate * size / (2 * gain)) ** 2
        return (square + jnp.sqrt(square**2 + 4 * square * self.residual_noise)) / 2

    def concentration(self) -> Float[Array, ""]:
        """1/d_eff of the noise that the optimiser leaves in the risk: the square of its relative fluctuation is of that order."""
        lam = self.eigenvalues
        share = lam if self.basis == "rotated" else jnp.sqrt(lam)
        return jnp.sum(share**2) / jnp.sum(share) ** 2

    def initial_state(self) -> Float[Array, "rows modes"]:
        """All means at their values, noise none: the average of one gradient is that gradient."""
        e = jnp.asarray(self.start)
        rows = {"cross": e, "speed": e, "target": -e, "target_speed": -e, "second": self._square(e)}
        rows |= {"spread": jnp.ones_like(e), "moved": 0 * e, "shared": 0 * e, "mean": e}
        return jnp.stack([e, *(rows[name] for name in self.carried)])

    def _risk(self, e: Float[Array, " modes"]) -> Float[Array, ""]:
        return self.residual_noise + jnp.sum(e)

    def _square(self, e: Float[Array, " modes"]) -> Float[Array, " modes"]:
        """E g_k^2/lam_k, or in the rotated basis the mean square of a coordinate."""
        each = self._risk(e) / self.batch + (1 + 1 / self.batch) * e
        return each if self.basis == "eigen" else jnp.broadcast_to(jnp.mean(self.eigenvalues * each), e.shape)

    def vector_field(
        self, t: Real[ArrayLike, ""], y: Float[Array, "rows modes"], args: Any = None
    ) -> Float[Array, "rows modes"]:
        row = dict(zip(("e", *self.carried), y, strict=True))
        return jnp.stack([*(self._by_signs(t, row) if self.is_sign else self._by_adam(t, row))])

    def _by_signs(self, t: Any, row: dict[str, Array]) -> list[Array]:
        lam, e = self.eigenvalues, row["e"]
        risk, relative = self._risk(e), self.relative_rate(t)
        a = self.learning_rate * relative
        if self.basis == "eigen":
            speed = a * jnp.sqrt(lam / risk) * sign_gain(e / risk, self.batch)
            force = a**2 * lam
        else:
            # A gradient's coordinate has a Gaussian mean among coordinates: three times its square to the first order.
            coordinate = 3 * jnp.mean(lam * e) / (self.mean_variance * risk)
            speed = a * lam / jnp.sqrt(self.mean_variance * risk) * sign_gain(coordinate, self.batch)
            force = a**2 * lam * (1 - 2 / jnp.pi + 2 / jnp.pi * lam / self.mean_variance)
        moves = [-2 * speed * e + force]
        return self._with_decay(row, moves, relative, speed)

    def _by_adam(self, t: Any, row: dict[str, Array]) -> list[Array]:
        rule: Any = self.optimizer
        lam, B, e = self.eigenvalues, self.batch, row["e"]
        risk, relative = self._risk(e), self.relative_rate(t)
        square = self._square(e)
        second, moves_second = square, []
        forgetting = -jnp.log(jnp.maximum(rule.beta2, 1e-300))
        if "second" in row:
            pace = forgetting / (1 - jnp.sqrt(rule.beta2) * jnp.exp(-forgetting * t))
            second, moves_second = row["second"], [pace * (square - row["second"])]
        width = jnp.sqrt(lam * second if self.basis == "eigen" else second)
        A = self.learning_rate * relative / (width + rule.eps)
        pulled = jnp.zeros_like(e)
        if "spread" in row:
            share = (1 - rule.beta2) / (1 - rule.beta2 * jnp.exp(-forgetting * t)) * square / second
            held = remembered(row, share, risk, B)
            drift, noise, pulled = held
            moves_second += moves_of_memory(row, share, A * lam, square, risk, B, held)
        else:
            drift, noise = self._of_own_square(t, A)
        if self.basis == "rotated":
            # Coordinates with a large mean gradient have a large v: Gaussian among coordinates, E m^4 = 3 (E m^2)^2.
            drift = drift * jnp.sqrt(1 + 2 * (1 + 1 / B) * jnp.mean(lam * e) / square)
        speed = A * lam / drift
        if "cross" not in row:
            shrink = 2 * speed - (1 + 1 / B) * (A * lam) ** 2 / noise
            decay, ratio = formulas.log_rate(jnp.maximum(shrink, -0.5))
            moves = [-decay * e + ratio * ((A * lam) ** 2 / noise * risk / B + speed * pulled)]
            return [*self._with_decay(row, moves, relative, speed * (1 + speed / 2)), *moves_second]
        damping = 2 * (1 - rule.beta1) / (1 + rule.beta1)
        damping = damping / (1 - jnp.sqrt(rule.beta1) * jnp.exp(-damping * t))
        force = damping**2 * (risk + e) / B * drift**2 / noise
        c, u = row["cross"], row["speed"]
        moves = [-2 * speed * c + speed * pulled, damping * (e - c) - speed * u, 2 * damping * (c - u) + force]
        return [*self._with_decay(row, moves, relative, speed, damping), *moves_second]

    def _of_own_square(self, t: Any, A: Array) -> tuple[Array, Array]:
        """What divides drift and noise because v holds the same gradients as the step and the weights; see the module."""
        beta2, B, lam = self.optimizer.second_beta, self.batch, self.eigenvalues
        gone = jnp.exp(jnp.log(jnp.maximum(beta2, 1e-300)) * t)
        left = beta2 * gone
        present = (1 - beta2) / (1 - left)
        squares = (1 - beta2) / (1 + beta2) * (1 + left) / (1 - left)
        moved = A * ((2 + 4 / B) * self.mean_variance + 2 / B * lam) * (beta2 > 0)
        once, twice = ((1 - beta2) / (1 - beta2 + n * A * lam) for n in (1, 2))
        excess = 2 + 6 / B
        return (
            1 + excess * (present / 2 - 3 * squares / 8) - moved * once,
            1 + excess * (present - squares) - moved * twice,
        )

    def _with_decay(
        self, row: dict[str, Array], moves: list[Array], relative: Array, speed: Array, damping: Any = None
    ) -> list[Array]:
        if "target" not in row:
            return moves
        w = relative * self.optimizer.decay
        mean = row["target"]
        moves[0] = moves[0] - 2 * w * (row["e"] + mean)
        if damping is None:
            return [*moves, -speed * mean - w * (mean + self.start)]
        lagged = row["target_speed"]
        moves[1] = moves[1] - w * (row["cross"] + lagged)
        return [*moves, -speed * lagged - w * (mean + self.start), damping * (mean - lagged)]

    def excess_loss(self, t: Real[ArrayLike, ""], y: Float[Array, "rows modes"]) -> Float[Array, ""]:
        """E = sum_k e_k."""
        return jnp.sum(y[0])

    def observables(self, t: Real[ArrayLike, ""], y: Float[Array, "rows modes"]) -> dict[str, Array]:
        """`loss_total` P, the mean square error on fresh data; `rate` a(t); `pace` a(t) sqrt(B/P), whose integral is s."""
        risk, rate = self._risk(y[0]), self.learning_rate * self.relative_rate(t)
        return {"loss_total": risk, "rate": rate, "pace": rate * jnp.sqrt(self.batch / risk)}

    def check(self, end: float = 1e8) -> None:
        """Refuses a risk that is zero, and a schedule that is not finite up to `end` steps."""
        if any(is_traced(leaf) for leaf in jax.tree_util.tree_leaves(self)):
            return
        if not np.isfinite(float(self.batch)):
            raise OutsideTheoryError(
                "batch", expected=f"finite under {type(self.optimizer).__name__}: the noise of the gradient sets its steps",
                got=float(self.batch), remedy="e.g. batch=32",
            )  # fmt: skip
        if not (float(self.learning_rate) > 0 and np.isfinite(float(self.learning_rate))):
            raise InputError(
                "learning_rate", expected="a positive finite number", got=float(self.learning_rate), remedy="e.g. 1e-3"
            )
        peak_of(self.schedule, end)
        if not float(jnp.sum(self.start)) > 0:
            raise InputError("start", expected="a positive risk", got="zeros", remedy="start away from theta*")

    def rule_numbers(self) -> dict[str, float]:
        """Numbers of the optimiser beside its rate."""
        return {
            field.name: float(getattr(self.optimizer, field.name))
            for field in fields(self.optimizer)
            if field.name != "rate"
        }

    def summary(self) -> dict[str, Any]:
        words = ("learning_rate", "batch", "noise", "floor")
        rule = self.rule_numbers()
        return {name: float(getattr(self, name)) for name in words} | {
            "optimizer": self.optimizer.word, **rule, "basis": self.basis, "modes": int(self.eigenvalues.size),
            "trace": float(jnp.sum(self.eigenvalues)), "noise_floor": float(self.noise_floor()),
        }  # fmt: skip


def sign_gain(square: Float[Array, "..."], batch: Float[Array, ""]) -> Float[Array, "..."]:
    r"""E sign(g)/rho at rho^2 = `square`, rho the correlation of a feature with the residual, g the mean over a batch of B.

    I(rho^2; 1/2, B/2)/rho = k int_0^(asin rho) cos^(B-1)/rho,    k = sqrt(2/pi) c(B) its value at 0,
    c = sqrt 2 Gamma((B+1)/2)/Gamma(B/2).
    """
    gamma = jax.scipy.special.gammaln
    linear = 2 / jnp.sqrt(jnp.pi) * jnp.exp(gamma((batch + 1) / 2) - gamma(batch / 2))
    half = batch / 2 - 1
    small = square * batch < 1e-3
    near = jnp.where(small, square, 0.0)
    series = 1 - half * near / 3 * (1 - (half - 1) * near * 3 / 10 * (1 - (half - 2) * near * 5 / 21))
    rho = jnp.sqrt(jnp.where(small, 1e-3 / batch, jnp.minimum(square, 1 - 1e-9)))
    top = jnp.minimum(jnp.arcsin(rho), 8 / jnp.sqrt(batch))
    angles = top[..., None] * (1 + jnp.asarray(_NODES)) / 2
    whole = top / 2 * jnp.sum(jnp.asarray(_WEIGHTS) * jnp.cos(angles) ** (batch - 1), axis=-1)
    return linear * jnp.where(small, series, whole / rho)


def optimized_spectral(
    optimizer: AbstractOptimizer | str, values: dict[str, Any], given: dict[str, Any], parts: dict[str, Any]
) -> SpectralOptimized:
    """The system behind `spectral(optimizer=...)`: `values` and `given` words of its table, `parts` the fields that SGD has too."""
    if isinstance(optimizer, str):
        words = values | {"learning_rate": values["learning_rate"] if "learning_rate" in given else USUAL_RATE}
        found = from_words(words, given | {"learning_rate": words["learning_rate"]})
        assert found is not None
        optimizer = found
    else:
        for name in ("learning_rate", "beta1", "beta2", "eps", "weight_decay"):
            if name in given:
                raise InputError(
                    name, expected="nothing beside an optimizer object, which has its own", got=given[name],
                    remedy=f"give it to {type(optimizer).__name__}",
                )  # fmt: skip
    if not isinstance(optimizer, Adam | Sign):
        raise OutsideTheoryError(
            "optimizer", expected="Adam or Sign, or plain SGD by learning_rate", got=type(optimizer).__name__,
            remedy=f"one of {', '.join(word for word in OPTIMIZERS if word in tables.SPECTRAL_OPTIMIZERS)}",
        )  # fmt: skip
    if values["per_decade"]:
        raise OutsideTheoryError(
            "per_decade", expected="0: a second moment belongs to a single mode", got=values["per_decade"],
            remedy="keep every mode",
        )  # fmt: skip
    rate, beta1, beta2 = optimizer.rate, getattr(optimizer, "beta1", 0.0), getattr(optimizer, "beta2", 0.0)
    moving = is_traced(beta1) or float(beta1) > 0
    carried = ["cross", "speed"] if moving else []
    if is_traced(optimizer.decay) or float(optimizer.decay) > 0:
        carried += ["target", "target_speed"] if moving else ["target"]
    if is_traced(beta2) or float(beta2) > 0:
        carried += ["second", *(spectral_memory.ROWS if values["basis"] == "eigen" else ())]
    parts = parts | {"learning_rate": rate} | {"carried": tuple(carried), "basis": values["basis"]}
    return SpectralOptimized(optimizer=eqx.tree_at(lambda rule: rule.rate, optimizer, jnp.ones(())), **parts)
