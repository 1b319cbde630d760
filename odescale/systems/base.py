"""What every system offers: a state, a vector field, a loss, a clock; and the exponents that follow from those."""

from __future__ import annotations

import abc
import textwrap
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree, Real

from odescale.cache.programs import program
from odescale.clock import Clock
from odescale.systems.parameters import Parameter, is_traced

DIVERGED = 100.0
"""`Integration.growth` of overlaps: rows ten times as long as the longest at the start (at least 1), all at once."""


class Integration(eqx.Module):
    """How a system wants to be integrated: what the solvers and the search for transitions ask instead of its type.

    - `solvers`: first choice first, the ladder of `integrate`; `also`: solvers that only some systems can use, and this one can.
    - `exponents`: "flow", p and q are exact derivatives along the flow; "outputs", slopes of the loss on the output times.
    - `over_nodes`: the loss is an average over quadrature nodes, evaluated time by time (a batch of times would not fit), and its
      curve is smooth to a few digits only. `resampled`: another node set of the same size estimates its error (`resampled()`).
    - `fine_rtol`: tolerance at which second derivatives of the loss mean something, None for the solver's default.
    - `most_steps`: cap on steps where a run that needs more is one that diverges.
    - `time_scale`: a time (units of t) before which hardly anything happens. The system is then followed over many decades, in
      log(1 + t/time_scale), with output from `time_scale` on; None for plain t.
    - `growth`: factor beyond which a state that runs off has diverged, in units of its largest number at the start (at least 1).
    - `rtol`: default relative tolerance of the first solver where the system is known less well than the solver would follow it.
    - `atol_share`: default absolute tolerance of the state in units of the relative one; less where a component decays far.
    """

    solvers: tuple[str, ...] = eqx.field(static=True, default=("tsit5", "kvaerno5"))
    also: tuple[str, ...] = eqx.field(static=True, default=())
    exponents: Literal["flow", "outputs"] = eqx.field(static=True, default="flow")
    over_nodes: bool = eqx.field(static=True, default=False)
    resampled: bool = eqx.field(static=True, default=False)
    fine_rtol: float | None = eqx.field(static=True, default=1e-10)
    most_steps: int | None = eqx.field(static=True, default=None)
    time_scale: Float[Array, ""] | None = None
    rtol: float | None = eqx.field(static=True, default=None)
    atol_share: float = eqx.field(static=True, default=1e-4)
    growth: float = eqx.field(static=True, default=float("inf"))


class AbstractSystem(eqx.Module):
    """dy/dt = f(t, y), one unit of t being `clock.steps_per_unit` SGD steps, with excess loss L(t, y) > 0.

    `name`: of the theory; `label`: of this system, in reports. `parameters`: the table of its numbers; `sources`: who to cite.
    """

    name: eqx.AbstractClassVar[str]
    parameters: eqx.AbstractClassVar[tuple[Parameter, ...]]
    sources: eqx.AbstractClassVar[tuple[str, ...]]

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """What this system is called in reports; a field with a default in every system of the library."""

    @property
    @abc.abstractmethod
    def integration(self) -> Integration:
        """Solvers that suit the system, and how its exponents are had."""

    @property
    @abc.abstractmethod
    def clock(self) -> Clock:
        """How t converts into SGD steps, intrinsic time and tokens."""

    @abc.abstractmethod
    def initial_state(self) -> PyTree[Array]:
        """y(0)."""

    @abc.abstractmethod
    def vector_field(self, t: Real[ArrayLike, ""], y: PyTree[Array], args: Any = None) -> PyTree[Array]:
        """f(t, y) = dy/dt, in diffrax's argument order."""

    @abc.abstractmethod
    def excess_loss(self, t: Real[ArrayLike, ""], y: PyTree[Array]) -> Float[Array, ""]:
        """The population loss minus its irreducible part."""

    @abc.abstractmethod
    def observables(self, t: Real[ArrayLike, ""], y: PyTree[Array]) -> dict[str, Array]:
        """Named order parameters at one time: scalars, and `overlaps` (P, P) where the theory has them."""

    @abc.abstractmethod
    def check(self) -> None:
        """Raises `InputError` where the parameters are inadmissible or unstable; run before compilation."""

    @abc.abstractmethod
    def summary(self) -> dict[str, Any]:
        """Parameters as plain numbers and words, for reports and saved files."""

    def __repr__(self) -> str:
        if any(is_traced(leaf) for leaf in jax.tree_util.tree_leaves(self)):
            return f"{self.label} ({type(self).__name__}, inside a JAX transformation)"
        words = [f"{name} = {_short(value)}" for name, value in self.summary().items()]
        lines = [f"{self.label} ({type(self).__name__}): {self.clock.describe()}"]
        return "\n".join([*lines, *textwrap.wrap(", ".join(words), 116, initial_indent="  ", subsequent_indent="  ")])

    def __str__(self) -> str:
        return repr(self)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) if len(value) <= 12 else f"{len(value)} values"
    return str(value)


class AbstractEnsemble(AbstractSystem):
    """A system whose state has a leading axis of replicates: one ODE closed by independent node sets.

    The prediction is their `estimate`; their scatter is its error bar, carried through the whole trajectory.
    """

    @abc.abstractmethod
    def replicate_losses(self, t: Real[ArrayLike, ""], y: PyTree[Array]) -> Float[Array, " R"]:
        """The excess loss of every replicate."""

    @abc.abstractmethod
    def estimate(self, values: Float[Array, "R ..."]) -> tuple[Array, Array]:
        """(value, half width of its 95 % interval) from one value per replicate."""


def losses(
    system: AbstractSystem, times: Float[Array, " n"], states: PyTree[Array], few: int | None = None
) -> tuple[Float[Array, " n"], Float[Array, " n"] | None, Float[Array, "n R"] | None]:
    """(L, half width of its 95 % interval, loss of every replicate) at times with states (n, ...); None where there are none.

    `few`: times evaluated at once, all by default; an average over nodes is taken time by time in any case.
    """
    if isinstance(system, AbstractEnsemble):
        # One pass over the nodes per time, never a batch of times: memory stays that of one evaluation.
        replicates = jax.lax.map(lambda ty: system.replicate_losses(*ty), (times, states))
        return *system.estimate(jnp.swapaxes(replicates, 0, 1)), replicates
    if system.integration.over_nodes:
        return jax.lax.map(lambda ty: system.excess_loss(*ty), (times, states)), None, None
    return over_times(system.excess_loss, times, states, few), None, None


def over_times(
    function: Callable[..., Any], times: Float[Array, " n"], states: PyTree[Array], few: int | None = None
) -> Any:
    """function(t, y) at all times with states (n, ...), `few` at once (default: all)."""
    if few is None or few >= times.shape[0]:
        return jax.vmap(function)(times, states)
    return jax.lax.map(lambda ty: function(*ty), (times, states), batch_size=few)


@program
def loss_at_start(system: AbstractSystem) -> Float[Array, ""]:
    """L(0, y(0)), compiled once per shape: every solve begins with `check`, which asks whether it is positive."""
    return system.excess_loss(jnp.zeros(()), system.initial_state())


def loss_derivatives(
    system: AbstractSystem, t: Real[ArrayLike, ""], y: PyTree[Array]
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
    system: AbstractSystem, t: Real[ArrayLike, ""], y: PyTree[Array]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """(L, p, q) at one time: `p = -dlog L/dlog t`, `q = dlog p/dlog t = 1 + t L''/L' - t L'/L`.

    q = 1 is exponential decay, q = 0 a power law. At t = 0, p = 0 and q = 1.
    """
    loss, first, second = loss_derivatives(system, t, y)
    safe_first = jnp.where(first == 0, 1.0, first)
    t = jnp.asarray(t)
    exponent = -t * first / loss
    index = 1 + t * second / safe_first - t * first / loss
    index = jnp.where(first == 0, jnp.nan, index)
    return loss, exponent, jnp.where(t == 0, 1.0, index)
