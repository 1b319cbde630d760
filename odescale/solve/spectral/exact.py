r"""SGD on a spectrum without approximation: the discrete recursion of any schedule; constant rates by one eigendecomposition.

    e_k(r+1) = G_k e_k(r) + (eta^2/B) w_k P(r),     P = s^2 + sum_k e_k

What the log-rate ODE leaves out is the distance between the two: `ode_distance`.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.cache.programs import program
from odescale.clock import ConstantSchedule
from odescale.errors import InputError, OutsideTheoryError
from odescale.generated import spectral as formulas
from odescale.precision import require_x64
from odescale.solve.spectral.log_rate import require_plain_sgd, solve_spectral
from odescale.systems.spectral import Spectral
from odescale.systems.spectral_schedules import peak_of


def exact_recursion(
    system: Spectral, steps: Real[np.ndarray, " n"], *, momentum: float = 0.0
) -> Float[np.ndarray, " n"]:
    """E after each of `steps` SGD steps: e_k <- G_k e_k + (eta(r)^2/B) w_k P, the exact mean over batches at any dimension.

    **Arguments**: `steps` (n,) increasing whole numbers >= 0; `momentum` beta in [0, 1) of the heavy ball v <- beta v - eta ghat,
    theta <- theta + v, three second moments per mode. One unit of t is one SGD step; step r uses eta s(r). 1e6 steps of a thousand
    modes take seconds. **Raises** `InputError`, `OutsideTheoryError` where unstable.
    """
    require_x64("exact_recursion")
    require_plain_sgd(system)
    times = whole_steps(steps)
    if not (isinstance(momentum, (int, float, np.number)) and 0 <= momentum < 1):
        raise InputError("momentum", expected="a number in [0, 1)", got=momentum, remedy="0.9 is common")
    if momentum == 0:
        system.check(float(max(times[-1], 1)))
        return np.asarray(_plain(system, jnp.asarray(times)))
    if not np.allclose(np.asarray(system.squares), np.asarray(system.eigenvalues) ** 2, rtol=1e-12):
        raise InputError("system", expected="every mode (per_decade=0) with momentum", got="bins", remedy="do not bin")
    check_momentum(system, float(momentum), float(max(times[-1], 1)))
    return np.asarray(_heavy(system, jnp.asarray(times), jnp.asarray(float(momentum))))


def whole_steps(steps: Any) -> np.ndarray:
    """`steps` as increasing integers >= 0, or an `InputError`."""
    values = np.asarray(steps, dtype=float)
    if values.ndim != 1 or values.size == 0 or np.any(values != np.round(values)) or np.any(np.diff(values) <= 0):
        raise InputError(
            "steps", expected="increasing whole numbers, shape (n,)", got=steps, remedy="np.unique(np.round(..))"
        )
    if values[0] < 0:
        raise InputError("steps", expected="numbers >= 0", got=values[0], remedy="0 is the start")
    return values.astype(np.int64)


@program
def _plain(system: Spectral, times: Array) -> Float[Array, " n"]:
    noise = system.residual_noise

    def one(r: Array, e: Array) -> Array:
        eta = system.learning_rate * system.schedule(r.astype(float))
        risk = noise + jnp.sum(e)
        shrink = formulas.shrinkage(system.eigenvalues, eta, system.batch)
        return e - shrink * e + formulas.force(system.squares, eta, system.batch) * risk

    return _at_steps(one, system.initial_state(), times, jnp.sum)


@program
def _heavy(system: Spectral, times: Array, momentum: Array) -> Float[Array, " n"]:
    lam, noise = system.eigenvalues, system.residual_noise

    def one(r: Array, y: Array) -> Array:
        eta = system.learning_rate * system.schedule(r.astype(float))
        risk = noise + jnp.sum(lam * y[0])
        return jnp.stack(formulas.momentum_step(y[0], y[1], y[2], risk, lam, eta, system.batch, momentum))

    start = jnp.zeros((3, lam.size)).at[0].set(system.initial_state() / lam)
    return _at_steps(one, start, times, lambda y: jnp.sum(lam * y[0]))


def _at_steps(one: Any, start: Array, times: Array, read: Any) -> Float[Array, " n"]:
    def advance(carry, until):
        r, y = carry
        y = lax.fori_loop(r, until, one, y)
        return (until, y), read(y)

    return lax.scan(advance, (jnp.zeros((), times.dtype), start), times)[1]


def check_momentum(system: Spectral, momentum: float, end: float) -> None:
    """Refuses an unstable heavy ball: a mode whose second moments grow by themselves, or kappa >= 1; names the bound that broke."""
    eta = float(system.learning_rate) * peak_of(system.schedule, end)
    lam = system.eigenvalues
    numbers = (lam, jnp.asarray(eta), system.batch, jnp.asarray(momentum))
    units = jnp.eye(3)[:, :, None] * jnp.ones_like(lam)
    # One column of the 3 x 3 map of every mode per unit vector, without the coupling P.
    columns = [jnp.stack(formulas.momentum_step(u[0], u[1], u[2], jnp.zeros(()), *numbers)) for u in units]
    matrices = np.transpose(np.asarray(columns), (2, 1, 0))
    radius = np.max(np.abs(np.linalg.eigvals(matrices)))
    if not radius < 1:
        raise OutsideTheoryError(
            "learning_rate", expected="eta lam_max below the bound of heavy-ball SGD: every mode's second moments must shrink "
            f"(spectral radius < 1; without noise eta lam < 2 (1 + beta) = {2 * (1 + momentum):.4g})",
            got=f"spectral radius {radius:.6g} at eta lam_max = {eta * lam.max():.4g}", remedy="lower it",
        )  # fmt: skip
    kappa = float(jnp.sum(formulas.momentum_mass(*numbers)))
    if not kappa < 1:
        raise OutsideTheoryError(
            "learning_rate", expected="kappa < 1, the gradient noise that one unit of it brings back with momentum "
            f"{momentum:g}", got=f"kappa = {kappa:.6g} at eta = {eta:.6g}", remedy="lower it, or raise batch",
        )  # fmt: skip


class ConstantRate(eqx.Module):
    """E(r) = E_inf + sum_m c_m Lambda_m^r at a constant learning rate, from one symmetric eigendecomposition.

    - `rates` (modes,): Lambda_m as log Lambda_m per SGD step. `amplitudes` (modes,): c_m. `floor`: E_inf.
    """

    rates: Float[np.ndarray, " modes"]
    amplitudes: Float[np.ndarray, " modes"]
    floor: float

    def __call__(self, steps: Real[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """E at `steps` >= 0 (n,), whole or not."""
        return self.floor + np.exp(np.outer(np.asarray(steps, dtype=float), self.rates)) @ self.amplitudes


def constant_rate(system: Spectral, *, discrete: bool = True) -> ConstantRate:
    """The exact recursion (`discrete`) or its log-rate ODE at a constant rate: diag + rank one, symmetric in e_k/sqrt(w_k).

    d^3 once (d = 1024: a second), then any number of times. Error 1e-13 of E(0), absolute: values that far below the start are
    for the recursion. **Raises** `InputError` for a schedule, and for bins, whose two measures are not symmetric.
    """
    require_x64("constant_rate")
    if not isinstance(system.schedule, ConstantSchedule):
        raise InputError(
            "schedule", expected="constant", got=type(system.schedule).__name__, remedy="use solve_spectral"
        )
    w = np.asarray(system.squares)
    if np.any(w == 0):
        raise InputError("system", expected="every mode (per_decade=0)", got="bins", remedy="use solve_spectral")
    system.check()
    eta, root = system.learning_rate, np.sqrt(w)
    shrink = np.asarray(formulas.shrinkage(system.eigenvalues, eta, system.batch))
    force = np.asarray(formulas.force(system.squares, eta, system.batch))
    if discrete:
        decay = shrink
    else:
        both = formulas.log_rate(jnp.asarray(shrink))
        decay, force = np.asarray(both[0]), force * np.asarray(both[1])
    # de = -decay e + force sum e; force is no multiple of w in the ODE, so symmetrise in sqrt(force).
    root = np.sqrt(force)
    if not np.any(root > 0):  # an infinite batch: no coupling
        rates = np.log1p(-decay) if discrete else -decay
        return ConstantRate(rates, np.asarray(system.start), 0.0)
    values, vectors = np.linalg.eigh(np.diag(decay) - np.outer(root, root))
    mass = np.asarray(formulas.kernel_mass(system.eigenvalues, system.squares, eta, system.batch))
    still = mass * float(system.noise_floor())
    amplitudes = (vectors.T @ ((np.asarray(system.start) - still) / root)) * (vectors.T @ root)
    return ConstantRate(np.log1p(-values) if discrete else -values, amplitudes, float(still.sum()))


def volterra_force(system: Spectral, t: Real[ArrayLike, " n"]) -> Float[Array, " n"]:
    """F(t) = s^2 + F_0 + sum_k e_k(0) e^(-a_k t) (n,), constant rate, t in SGD steps: P = F + int_0^t K(t - s) P(s) ds."""
    decay, _ = system.coefficients(system.learning_rate)
    return system.residual_noise + jnp.exp(-jnp.outer(jnp.asarray(t), decay)) @ system.start


def volterra_kernel(system: Spectral, t: Real[ArrayLike, " n"]) -> Float[Array, " n"]:
    """K(t) = sum_k (a_k/g_k)(eta^2/B) w_k e^(-a_k t) (n,), per SGD step; its integral is kappa. See `volterra_force`."""
    decay, force = system.coefficients(system.learning_rate)
    return jnp.exp(-jnp.outer(jnp.asarray(t), decay)) @ force


def ode_distance(system: Spectral, steps: Real[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """E of the log-rate ODE over E of exact SGD, minus one, at `steps` (n,) whole SGD steps: what the ODE costs here.

    Small where eta lam_max is small and the batch large: 1e-3 for eta lam_max <= 0.1, B >= 8; 1e-2 for B = 1.
    """
    times = whole_steps(steps)
    constant = isinstance(system.schedule, ConstantSchedule) and not np.any(np.asarray(system.squares) == 0)
    exact = constant_rate(system)(times) if constant else exact_recursion(system, times)
    return solve_spectral(system, times.astype(float), rtol=1e-8, max_steps=20_000).loss / exact - 1
