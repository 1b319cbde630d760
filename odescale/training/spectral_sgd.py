r"""Real SGD of a linear model, many seeds at once: fresh Gaussian data, random features of them, or stored samples.

    v <- beta v - (eta(r)/B) sum_b z_b (z_b.theta - y_b),     theta <- theta + v

The risk at the output steps is the population's (or, for stored data, the data set's), without sampling error.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from odescale.clock import ConstantSchedule, Schedule, parse_schedule
from odescale.errors import InputError
from odescale.precision import require_x64


class GaussianTask(eqx.Module):
    """x ~ N(0, diag lam), z = W x (or x), y = theta*.x + s xi; risk E(z.theta - theta*.x)^2 + s^2.

    - `eigenvalues`, `target` (d,); `noise`: s^2; `projection` (N, d) or None.
    """

    eigenvalues: Float[Array, " d"]
    target: Float[Array, " d"]
    noise: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, float), default=0.0)  # type: ignore[assignment]
    projection: Float[Array, "N d"] | None = None

    @property
    def size(self) -> int:
        """Trained weights."""
        return self.target.shape[0] if self.projection is None else self.projection.shape[0]

    def draw(self, key: Array, shape: tuple[int, int]) -> tuple[Array, Array]:
        """(z, y) of (seeds, batch) samples."""
        of_x, of_noise = jax.random.split(key)
        # Single-precision normals: their moments are right to 1e-7, at half the cost.
        x = jax.random.normal(of_x, (*shape, self.target.shape[0]), jnp.float32) * jnp.sqrt(self.eigenvalues)
        y = x @ self.target + jnp.sqrt(self.noise) * jax.random.normal(of_noise, shape)
        return (x if self.projection is None else x @ self.projection.T), y

    def risk(self, theta: Float[Array, "seeds N"]) -> Float[Array, " seeds"]:
        """E(z.theta - y)^2 of every seed."""
        back = theta if self.projection is None else theta @ self.projection
        return jnp.sum(self.eigenvalues * (back - self.target) ** 2, axis=1) + self.noise


class StoredTask(eqx.Module):
    """Samples drawn with replacement from (features, targets); risk over the data, or on fresh data of a diagonal covariance.

    - `features` (n, d), `targets` (n,). `population`: a `GaussianTask` whose risk is reported instead of the data's, or None.
    """

    features: Float[Array, "n d"]
    targets: Float[Array, " n"]
    population: GaussianTask | None = None

    @property
    def size(self) -> int:
        """Trained weights."""
        return self.features.shape[1]

    def draw(self, key: Array, shape: tuple[int, int]) -> tuple[Array, Array]:
        """(z, y) of (seeds, batch) samples."""
        place = jax.random.randint(key, shape, 0, self.targets.shape[0])
        return self.features[place], self.targets[place]

    def risk(self, theta: Float[Array, "seeds d"]) -> Float[Array, " seeds"]:
        """Mean square residual of every seed."""
        if self.population is not None:
            return self.population.risk(theta)
        return jnp.mean((theta @ self.features.T - self.targets) ** 2, axis=1)


class LinearRun(eqx.Module):
    """Risk of every seed at the output steps.

    - `steps` (n,): SGD steps. `risk` (seeds, n): mean square error, noise included.
    """

    steps: Float[np.ndarray, " n"]
    risk: Float[np.ndarray, "seeds n"]

    @property
    def mean(self) -> Float[np.ndarray, " n"]:
        """Average over seeds."""
        return self.risk.mean(axis=0)

    @property
    def stderr(self) -> Float[np.ndarray, " n"]:
        """Standard error of `mean`."""
        return self.risk.std(axis=0, ddof=1) / self.risk.shape[0] ** 0.5

    def z_scores(self, theory: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """(mean - theory)/stderr at every output step."""
        return (self.mean - np.asarray(theory)) / self.stderr


def train_linear(
    task: GaussianTask | StoredTask,
    steps: Float[np.ndarray, " n"],
    *,
    learning_rate: float,
    batch: int = 1,
    momentum: float = 0.0,
    schedule: Schedule | str = "constant",
    start: Float[np.ndarray, " N"] | None = None,
    seeds: int = 256,
    seed: int = 0,
) -> LinearRun:
    """SGD of theta.z against y, `seeds` independent runs in one program: see the module for the update. Step r uses eta s(r).

    **Arguments**: `task`; `steps` (n,) increasing whole numbers >= 1; `learning_rate` > 0, `batch`, `momentum` in [0, 1),
    `schedule` in SGD steps; `start` theta(0), zeros by default; `seed` of the random numbers. seeds x batch x d normals per step.
    """
    require_x64("train_linear")
    times = np.asarray(steps, dtype=float)
    if (
        times.ndim != 1
        or times.size == 0
        or np.any(times != np.round(times))
        or np.any(np.diff(times) <= 0)
        or times[0] < 1
    ):
        raise InputError("steps", expected="increasing whole numbers >= 1", got=steps, remedy="np.unique(np.round(..))")
    for name, value, least in (("batch", batch, 1), ("seeds", seeds, 2)):
        if isinstance(value, bool) or value != int(value) or value < least:
            raise InputError(name, expected=f"an integer >= {least}", got=value, remedy="256 seeds are good")
    if not (np.isfinite(learning_rate) and learning_rate > 0 and 0 <= momentum < 1):
        raise InputError(
            "learning_rate", expected="> 0, with momentum in [0, 1)", got=(learning_rate, momentum), remedy="mend it"
        )
    begin = np.zeros(task.size) if start is None else np.asarray(start, dtype=float)
    if begin.shape != (task.size,):
        raise InputError("start", expected=f"shape ({task.size},)", got=begin.shape, remedy="one number per weight")
    shape = parse_schedule(schedule) if isinstance(schedule, str) else schedule
    numbers = jnp.asarray([learning_rate, momentum])
    theta = jnp.broadcast_to(jnp.asarray(begin), (int(seeds), begin.size))
    key = jax.random.key(seed, impl="threefry2x32")
    risk = _train(task, theta, jnp.asarray(times.astype(np.int64)), numbers, shape, key, int(batch))
    return LinearRun(times, np.asarray(risk).T)


@eqx.filter_jit
def _train(task: Any, theta: Array, times: Array, numbers: Array, schedule: Any, key: Array, batch: int) -> Array:
    constant = isinstance(schedule, ConstantSchedule)

    def one(r: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        theta, v = state
        z, y = task.draw(jax.random.fold_in(key, r), (theta.shape[0], batch))
        residual = jnp.einsum("sbk,sk->sb", z, theta) - y
        gradient = jnp.einsum("sbk,sb->sk", z, residual) / batch
        eta = numbers[0] * (1.0 if constant else schedule(r.astype(float)))
        v = numbers[1] * v - eta * gradient
        return theta + v, v

    def advance(carry, until):
        r, state = carry
        state = lax.fori_loop(r, until, one, state)
        return (until, state), task.risk(state[0])

    return lax.scan(advance, (jnp.zeros((), times.dtype), (theta, jnp.zeros_like(theta))), times)[1]
