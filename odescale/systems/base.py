"""What every system offers: a state, a vector field, a loss, a clock; and the exponents that follow from those."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from odescale.clock import Clock
from odescale.systems.parameters import Parameter


class AbstractSystem(eqx.Module):
    """dy/dt = f(t, y), one unit of t being `clock.steps_per_unit` SGD steps, with excess loss L(t, y) > 0."""

    name: eqx.AbstractClassVar[str]
    parameters: eqx.AbstractClassVar[tuple[Parameter, ...]]
    sources: eqx.AbstractClassVar[tuple[str, ...]]

    @property
    @abc.abstractmethod
    def solvers(self) -> tuple[str, ...]:
        """Solvers that suit the system, first choice first: the fallback ladder of `integrate`."""

    @property
    @abc.abstractmethod
    def clock(self) -> Clock:
        """How t converts into SGD steps, intrinsic time and tokens."""

    @abc.abstractmethod
    def initial_state(self) -> PyTree[Array]:
        """y(0)."""

    @abc.abstractmethod
    def vector_field(self, t: Float[Array, ""], y: PyTree[Array], args: Any = None) -> PyTree[Array]:
        """f(t, y) = dy/dt, in diffrax's argument order."""

    @abc.abstractmethod
    def excess_loss(self, t: Float[Array, ""], y: PyTree[Array]) -> Float[Array, ""]:
        """The population loss minus its irreducible part."""

    @abc.abstractmethod
    def observables(self, t: Float[Array, ""], y: PyTree[Array]) -> dict[str, Array]:
        """Named order parameters at one time: scalars, and `overlaps` (P, P) where the theory has them."""

    @abc.abstractmethod
    def check(self) -> None:
        """Raises `InputError` where the parameters are inadmissible or unstable; run before compilation."""

    @abc.abstractmethod
    def summary(self) -> dict[str, Any]:
        """Parameters as plain numbers and words, for reports and saved files."""


class AbstractSlowSystem(AbstractSystem):
    """A system that is followed over many decades of time: integrated in log(1 + t/time_scale), output from time_scale on."""

    @property
    @abc.abstractmethod
    def time_scale(self) -> Float[Array, ""]:
        """A time (units of t) before which hardly anything has happened."""

    @property
    @abc.abstractmethod
    def atol_share(self) -> float:
        """Default absolute tolerance of the state, in units of the relative one: 1e-4, less where a component decays far."""


class AbstractEnsemble(AbstractSystem):
    """A system whose state has a leading axis of replicates: one ODE closed by independent node sets.

    The prediction is their `estimate`; their scatter is its error bar, carried through the whole trajectory.
    """

    @abc.abstractmethod
    def replicate_losses(self, t: Float[Array, ""], y: PyTree[Array]) -> Float[Array, " R"]:
        """The excess loss of every replicate."""

    @abc.abstractmethod
    def estimate(self, values: Float[Array, "R ..."]) -> tuple[Array, Array]:
        """(value, half width of its 95 % interval) from one value per replicate."""

    @abc.abstractmethod
    def member(self, replicate: Any) -> Any:
        """One replicate as a problem of the structure-preserving solver."""


def loss_derivatives(
    system: AbstractSystem, t: Float[Array, ""], y: PyTree[Array]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """(L, dL/dt, d2L/dt2) along the flow, exactly: `dL/dt = d_t L + dL.f`, and once more.

    Needs float64: the second derivative of a loss that has fallen by ten e-folds is lost in single precision.
    """

    def along(function, t, y):
        tangent = system.vector_field(t, y)
        return jax.jvp(function, (t, y), (jnp.ones_like(t), tangent))

    def slope(t, y):
        return along(system.excess_loss, t, y)[1]

    loss = system.excess_loss(t, y)
    first, second = along(slope, t, y)
    return loss, first, second


def local_exponents(
    system: AbstractSystem, t: Float[Array, ""], y: PyTree[Array]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """(L, p, q) at one time: `p = -dlog L/dlog t`, `q = dlog p/dlog t = 1 + t L''/L' - t L'/L`.

    q = 1 is exponential decay, q = 0 a power law. At t = 0, p = 0 and q = 1.
    """
    loss, first, second = loss_derivatives(system, t, y)
    safe_first = jnp.where(first == 0, 1.0, first)
    exponent = -t * first / loss
    index = 1 + t * second / safe_first - t * first / loss
    index = jnp.where(first == 0, jnp.nan, index)
    return loss, exponent, jnp.where(t == 0, 1.0, index)
