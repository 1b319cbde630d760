r"""One-pass SGD of a linear model on Gaussian features of any spectrum, as the log-rate ODE of its excess risks.

    de_k/dr = -a_k e_k + (a_k/g_k) (eta^2/B) w_k P,     P = s^2 + sum_k e_k,     g_k = 1 - G_k,     a_k = -log G_k
    G_k = 1 - 2 eta lam_k + eta^2 (1 + 1/B) lam_k^2

The formulas come from `odescale.generated.spectral`, written by `derivations/spectral/script.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.clock import Clock, ConstantSchedule, Schedule, parse_schedule, schedule_by_value, schedule_kinks
from odescale.errors import InputError, OutsideTheoryError
from odescale.generated import spectral as formulas
from odescale.optimizers.base import AbstractOptimizer
from odescale.precision import require_x64
from odescale.systems import tables
from odescale.systems.base import AbstractSystem, Integration
from odescale.systems.parameters import Parameter, complete, is_traced, non_negative, shown
from odescale.systems.spectral_bins import bin_modes, check_modes
from odescale.systems.spectral_optimized import SpectralOptimized, optimized_spectral
from odescale.systems.spectral_schedules import LoggedSchedule, peak_of


class Spectral(AbstractSystem):
    r"""de_k/dr = -a_k e_k + (a_k/g_k)(eta^2/B) w_k P, P = s^2 + sum_k e_k; state e_k = lam_k E(theta_k - theta_k*)^2.

    Features N(0, diag lam), targets theta*.x plus noise of variance s^2, theta -> theta - (eta/B) sum_b x_b (x_b.theta - y_b)
    with fresh batches. One unit of t is one SGD step. Each mode takes exactly the steps of SGD; what the ODE leaves out is
    the change of P within a step, and a schedule's within a step: it is read half a step earlier, s(r - 1/2), so that its mean
    over step r is s(r). `odescale.solve.spectral.exact.exact_recursion` is exact.

    **Fields**

    - `eigenvalues`, `start`, `squares` (modes,): lam_k > 0; e_k(0) >= 0; w_k = lam_k^2, of a bin the sum over its modes.
    - `learning_rate`, `batch` (inf allowed), `noise` (s^2).
    - `floor`: F_0 >= 0, the part of the target that no weights can express; it acts as noise.
    - `schedule`: s(r), eta(r) = learning_rate s(r), r in SGD steps.

    `excess_loss` is E = sum_k e_k, the mean square error (no factor 1/2) above s^2 + F_0.

    **Failure regime**: refused where unstable, kappa >= 1 or eta (1 + 1/B) lam_max >= 2 at the largest rate of the schedule.
    Against exact SGD: 1e-3 for eta lam_max <= 0.1 and B >= 8, 1e-2 for B = 1; beyond 2 % `integrate`, `compare` and the commands
    say so, with the error measured (`odescale.solve.spectral.step_error`). The index q of `integrate` loses 1e-16 (eta lam_max
    t)^2 to rounding: 1e-6 at 1e6 steps, all of it beyond 1e8. Source: see `sources`.
    """

    eigenvalues: Float[Array, " modes"]
    start: Float[Array, " modes"]
    squares: Float[Array, " modes"]
    learning_rate: Float[Array, ""]
    batch: Float[Array, ""]
    noise: Float[Array, ""]
    floor: Float[Array, ""]
    schedule: Schedule = eqx.field(converter=schedule_by_value, default_factory=ConstantSchedule)
    label: str = eqx.field(static=True, default="spectral")

    name: ClassVar[str] = "spectral"
    loss_label: ClassVar[str] = "excess risk  (mean squared error)"
    sources: ClassVar[tuple[str, ...]] = (
        "Bordelon, Atanasov & Pehlevan 2024: a dynamical model of neural scaling laws",
        "Paquette, Paquette, Xiao & Pennington 2024: 4+3 phases of compute-optimal neural scaling laws",
        "derivations/spectral/script.py: recursion, log-rate ODE, Volterra form",
    )
    parameters: ClassVar[tuple[Parameter, ...]] = tables.SPECTRAL

    def __check_init__(self) -> None:
        if any(is_traced(leaf) for leaf in jax.tree_util.tree_leaves(self)):
            return
        check_modes(eigenvalues=self.eigenvalues, start=self.start, squares=self.squares)

    @property
    def integration(self) -> Integration:
        """Implicit: the fastest modes relax millions of times within a run. Linear: nothing that a second one could do better.

        The slowest modes decide the late loss: they keep their digits however far it falls.
        """
        return Integration(("rank_one",), time_scale=self.time_scale, atol_share=1e-14)

    @property
    def clock(self) -> Clock:
        """One unit of t is one SGD step; intrinsic time is eta times steps; one token per sample."""
        return Clock(1.0, self.learning_rate, self.schedule, self.batch, 0.0)

    @property
    def time_scale(self) -> Float[Array, ""]:
        """SGD steps in which the fastest mode loses a tenth."""
        return 0.05 / (self.learning_rate * jnp.max(self.eigenvalues))

    @property
    def kinks(self) -> tuple[Any, ...]:
        """Times at which eta(t) of the ODE bends: those of the schedule, half a step later."""
        return tuple(kink + 0.5 for kink in schedule_kinks(self.schedule))

    @property
    def residual_noise(self) -> Float[Array, ""]:
        """s^2 + F_0, the mean square error at the best weights."""
        return self.noise + self.floor

    def rate(self, t: Real[ArrayLike, ""]) -> Float[Array, ""]:
        """eta(t) of the ODE: learning_rate s(t - 1/2), s(0) before."""
        return self.learning_rate * self.schedule(jnp.maximum(t - 0.5, 0.0))

    def coefficients(self, eta: Float[Array, "..."]) -> tuple[Float[Array, "... modes"], Float[Array, "... modes"]]:
        """(a, b) of de/dr = -a e + b P at learning rates eta."""
        eta = jnp.asarray(eta)[..., None]
        decay, ratio = formulas.log_rate(formulas.shrinkage(self.eigenvalues, eta, self.batch))
        return decay, ratio * formulas.force(self.squares, eta, self.batch)

    def initial_state(self) -> Float[Array, " modes"]:
        return jnp.asarray(self.start)

    def vector_field(
        self, t: Real[ArrayLike, ""], y: Float[Array, " modes"], args: Any = None
    ) -> Float[Array, " modes"]:
        decay, force = self.coefficients(self.rate(t))
        return -decay * y + force * (self.residual_noise + jnp.sum(y))

    def excess_loss(self, t: Real[ArrayLike, ""], y: Float[Array, " modes"]) -> Float[Array, ""]:
        """E = sum_k e_k."""
        return jnp.sum(y)

    def observables(self, t: Real[ArrayLike, ""], y: Float[Array, " modes"]) -> dict[str, Array]:
        """`loss_total` P = s^2 + F_0 + E, the mean square error on fresh data, and `rate` eta(t)."""
        return {"loss_total": self.residual_noise + jnp.sum(y), "rate": self.rate(t)}

    def kappa(self, eta: Float[Array, ""] | None = None) -> Float[Array, ""]:
        """kappa = sum_k (eta/B) w_k/(lam_k (2 - eta (1 + 1/B) lam_k)), the integral of the noise kernel; < 1 is stable."""
        eta = self.learning_rate if eta is None else eta
        return jnp.sum(formulas.kernel_mass(self.eigenvalues, self.squares, eta, self.batch))

    def noise_floor(self) -> Float[Array, ""]:
        """P_inf = (s^2 + F_0)/(1 - kappa), where a constant learning rate ends."""
        return self.residual_noise / (1 - self.kappa())

    def check(self, end: float = 1e8) -> None:
        """Refuses what is unstable at the largest learning rate up to `end` SGD steps, naming the bound that broke."""
        if any(is_traced(leaf) for leaf in jax.tree_util.tree_leaves(self)):
            return
        peak = float(self.learning_rate) * peak_of(self.schedule, end)
        top, per_batch = float(jnp.max(self.eigenvalues)), 1 / float(self.batch)
        steepest = peak * (1 + per_batch) * top
        if not steepest < 2:
            raise OutsideTheoryError(
                "learning_rate", expected=f"eta (1 + 1/B) lam_max < 2: below {2 / ((1 + per_batch) * top):.6g} at lam_max = "
                f"{top:.6g}, B = {float(self.batch):g}", got=f"eta = {peak:.6g}, that is {steepest:.6g}", remedy="lower it",
            )  # fmt: skip
        kappa = float(self.kappa(jnp.asarray(peak)))
        if not kappa < 1:
            raise OutsideTheoryError(
                "learning_rate", expected="kappa = sum (eta/B) lam/(2 - eta (1 + 1/B) lam) < 1, the gradient noise that one "
                "unit of it brings back", got=f"kappa = {kappa:.6g} at eta = {peak:.6g}, B = {float(self.batch):g}",
                remedy="lower learning_rate or raise batch",
            )  # fmt: skip
        if not (float(jnp.sum(self.start)) > 0 or float(self.residual_noise) > 0):
            raise InputError(
                "start", expected="a positive risk, or noise", got="zeros", remedy="start away from theta*"
            )

    def summary(self) -> dict[str, Any]:
        words = ("learning_rate", "batch", "noise", "floor")
        return {name: float(getattr(self, name)) for name in words} | {
            "modes": int(self.eigenvalues.size),
            "trace": float(jnp.sum(self.squares / self.eigenvalues)),
            "kappa": float(self.kappa()),
        }


@overload
def spectral(
    *,
    eigenvalues: Float[np.ndarray, " d"] | None = None,
    excess: Float[np.ndarray, " d"] | None = None,
    floor: float = 0.0,
    schedule: Schedule | str | Float[np.ndarray, " n"] | None = None,
    optimizer: Literal["sgd"] = "sgd",
    **given: Any,
) -> Spectral: ...
@overload
def spectral(
    *,
    eigenvalues: Float[np.ndarray, " d"] | None = None,
    excess: Float[np.ndarray, " d"] | None = None,
    floor: float = 0.0,
    schedule: Schedule | str | Float[np.ndarray, " n"] | None = None,
    optimizer: AbstractOptimizer | str,
    **given: Any,
) -> SpectralOptimized: ...
@shown(tables.SPECTRAL)
def spectral(
    *,
    eigenvalues: Float[np.ndarray, " d"] | None = None,
    excess: Float[np.ndarray, " d"] | None = None,
    floor: float = 0.0,
    schedule: Schedule | str | Float[np.ndarray, " n"] | None = None,
    optimizer: AbstractOptimizer | str = "sgd",
    **given: Any,
) -> Spectral | SpectralOptimized:
    """rho_k(r+1) = G_k rho_k(r) + (eta^2/B) lam_k P(r): exact SGD on any spectrum, see `Spectral`. One unit of t is one SGD step.

    **Arguments** (all optional)

    - the words of `Spectral.parameters`: a power law of `modes` features with lam_j = j^-b and lam_j rho_j(0) = j^-a.
    - `eigenvalues` (d,) > 0 and `excess` (d,) >= 0: lam_k and rho_k(0) = E(theta_k(0) - theta_k*)^2 instead of the power law.
    - `floor`: F_0, the mean square of the target that lies outside the model, see `random_features`.
    - `schedule`: s(r) as text or callable, r in SGD steps; or an array of learning rates, one per step, read from a log:
      then `learning_rate` is their maximum and must not be given.
    - `per_decade` > 0: log bins, see `bin_modes`; 10 is good to 4e-4 at the cut-off, 1e-7 before.
    - `optimizer`: "adam", "sign", or an object `Adam(rate=...)`, `Sign(rate=...)` of `odescale.optimizers`, whose rate is the
      learning rate itself here; acting in the `basis` "eigen" or "rotated": a `SpectralOptimized`.

    **Raises** `InputError`; `OutsideTheoryError` (from `check`, before any solve) where SGD is unstable.
    """
    require_x64("spectral")
    logged = schedule is not None and not callable(schedule) and not isinstance(schedule, str)
    if logged:
        if "learning_rate" in given:
            raise InputError(
                "learning_rate", expected="to be left out with an array of learning rates", got=given["learning_rate"],
                remedy="the array holds the rates themselves",
            )  # fmt: skip
        rates = np.asarray(schedule, dtype=float)
        top = float(rates.max()) if rates.size and np.all(np.isfinite(rates)) and rates.max() > 0 else 1.0
        schedule, given = LoggedSchedule(rates / top), given | {"learning_rate": top}
    texts: dict[str, Any] = {"schedule": schedule} if isinstance(schedule, str) else {}
    texts |= {"optimizer": optimizer} if isinstance(optimizer, str) else {}
    _refuse_numbers_of_others(optimizer, given)
    values = complete(Spectral.parameters, given | texts, "spectral")
    with np.errstate(all="ignore"):  # exponents that no number carries are refused with the modes that they make
        lam, rho = _modes(eigenvalues, excess, values, given)
        start, squares = lam * rho, lam**2
    if values["per_decade"]:
        lam, start, squares = bin_modes(lam, start, per_decade=values["per_decade"], nodes=values["bin_nodes"])
    numbers = {name: jnp.asarray(values[name], dtype=float) for name in ("learning_rate", "batch", "noise")}
    parts: dict[str, Any] = numbers | {
        "eigenvalues": jnp.asarray(lam), "start": jnp.asarray(start),
        "floor": jnp.asarray(Parameter("floor", 0.0, "a number >= 0", non_negative, "target^2", "F_0").check(floor), float),
        "schedule": schedule if callable(schedule) else parse_schedule(values["schedule"]),
    }  # fmt: skip
    if isinstance(optimizer, str) and optimizer == "sgd":
        system = Spectral(squares=jnp.asarray(squares), **parts)
    else:
        system = optimized_spectral(optimizer, values, given, parts)
    system.check()
    return system


def _refuse_numbers_of_others(optimizer: Any, given: dict[str, Any]) -> None:
    if isinstance(optimizer, str) and optimizer == "sgd":
        for name in ("beta1", "beta2", "eps", "weight_decay", "basis"):
            if name in given:
                raise InputError(
                    name, expected="nothing with plain SGD", got=given[name], remedy="optimizer='adam', or leave it out"
                )
    elif not isinstance(optimizer, str | AbstractOptimizer):
        raise InputError(
            "optimizer", expected="a word or an optimiser", got=optimizer, remedy="e.g. odescale.optimizers.Adam(rate=1e-3)"
        )  # fmt: skip


def _modes(eigenvalues: Any, excess: Any, values: dict[str, Any], given: dict[str, Any]) -> tuple[Any, Any]:
    if eigenvalues is None and excess is None:
        ranks = np.arange(1, values["modes"] + 1, dtype=float)
        a, b = values["risk_exponent"], values["spectrum_exponent"]
        if is_traced(a) or is_traced(b):
            ranks = jnp.asarray(ranks)
        return ranks**-b, ranks ** (b - a)
    if eigenvalues is None or excess is None:
        missing = "eigenvalues" if eigenvalues is None else "excess"
        raise InputError(missing, expected="to be given with the other of the two", got=None, remedy="pass both")
    for name in ("modes", "spectrum_exponent", "risk_exponent"):
        if name in given:
            raise InputError(
                name, expected="to be left out with eigenvalues", got=given[name], remedy="drop one of them"
            )
    if is_traced(eigenvalues) or is_traced(excess):
        return jnp.asarray(eigenvalues), jnp.asarray(excess)
    lam, rho = np.asarray(eigenvalues, dtype=float), np.asarray(excess, dtype=float)
    if lam.shape != rho.shape:
        raise InputError(
            "excess", expected=f"shape {lam.shape}, one per eigenvalue", got=rho.shape, remedy="match them"
        )
    return lam, rho
