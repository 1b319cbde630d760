"""The phases and the transition of a system or of a formula: exact p and q along the flow, one root, and its gradient.

A sampled curve goes to `odescale.analysis.phases.curves` instead. The definitions are in `odescale.analysis.phases.stretches`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float
from scipy import special

from odescale.analysis.phases.curves import find_transition_curve
from odescale.analysis.phases.record import Transition, acceptance, select_transition
from odescale.analysis.phases.stretches import Thresholds
from odescale.cache.programs import program
from odescale.errors import InputError, PrecisionError, SolveError, require_number, whole
from odescale.precision import require_x64
from odescale.solve.integrate import integrate
from odescale.solve.solvers import SOLVERS, method_of
from odescale.solve.trajectory import Trajectory
from odescale.systems.base import AbstractSystem, local_exponents
from odescale.systems.register import as_system

LossFormula = Callable[[Float[Array, ""]], Float[Array, ""]]


def find_transition(
    subject: AbstractSystem | str | LossFormula,
    t1: float | None = None,
    *,
    window: tuple[float, float] | None = None,
    thresholds: Thresholds | None = None,
    points: int = 400,
    rtol: float | None = None,
    precision: str = "float64",
    time_unit: str | None = None,
) -> Transition:
    """The phases of L(t), and t_x: where `q = dlog p/dlog t` falls through 1/2 between an exponential and the power law after it.

    p = -dlog L/dlog t. For a system, p and q are exact derivatives along the flow on `points` log-spaced times; the crossing is
    then located by the same solve on as many times within the grid cell that holds it, and within a cell of those. For a formula
    L(t) they come from automatic differentiation and the root is bracketed. One unit of t: see `time_unit` in the
    answer (tr Sigma SGD steps for a system).

    **Arguments**

    - `subject`: a system or its name in the register, or a JAX-traceable function of one time (domain t > 0, values > 0).
    - `t1`: end of the window; or `window` = (first, last) for a formula.
    - `thresholds`: how near q must be to 1 or 0, and for how long, before a phase counts: see `Thresholds`.
    - `rtol`: tolerance of the integration (1e-10). `precision`: float64; anything else is refused, since the
      transition needs second derivatives.

    For a `MeanField` system p and q are those of the model that fits its losses best (`find_transition_curve`), and `interval`
    is the 95 % interval over its independent node sets.

    **Returns** a `Transition`; "no exponential phase" is an answer (`found=False`, with its name, phases and reason).
    **Failure regime.** Two crossings closer than a grid cell are missed: raise `points`.
    """
    if precision != "float64":
        raise PrecisionError(
            "precision",
            expected="float64 for a transition (it needs second derivatives)",
            got=precision,
            remedy="leave precision at float64",
        )
    require_x64("find_transition")
    points = whole("points", points, 20, 100_000, remedy="400 is the default")
    if t1 is not None and not isinstance(subject, np.ndarray):
        require_number("t1", t1, open_=True)
    if isinstance(subject, AbstractSystem | str):
        return _of_system(subject, t1, thresholds, points, rtol, time_unit)
    if not callable(subject):
        raise InputError(
            "subject", expected="a system or a function L(t)", got=subject, remedy="for data use find_transition_curve"
        )
    return _of_formula(subject, t1, window, thresholds, points, time_unit)


def transition_time(
    system: AbstractSystem,
    near: Float[Array, ""],
    *,
    rtol: Float[Array, ""] | float = 1e-10,
    solver: str = "tsit5",
    max_steps: int = 16_384,
) -> Float[Array, ""]:
    """t_x = t* - (q(t*) - 1/2) / (dq/dt), the crossing next to t* = `near`, differentiable in the arrays of `system`.

    One Newton step from a t* that `find_transition` returned: the value is t_x itself, and its derivative is that of
    the implicit-function theorem, `dt_x = -(dq)/(dq/dt)`, exactly. One unit of t is tr Sigma SGD steps. Use
    `eqx.filter_grad(lambda s: transition_time(s, t_star))(system)`.

    **Failure regime.** Where dq/dt is near zero t_x is ill-determined, and the gradient large.
    """
    near = jax.lax.stop_gradient(jnp.asarray(near, dtype=float))
    solution = diffrax.diffeqsolve(
        _term(),
        method_of(solver, system.integration),
        jnp.zeros_like(near),
        near,
        None,
        system.initial_state(),
        args=system,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=jnp.asarray(rtol) * 1e-4),
        max_steps=max_steps,
    )
    assert solution.ys is not None
    y = solution.ys[-1]
    index = local_exponents(system, near, y)[2]
    slope = jax.lax.stop_gradient(_index_slope(system, near, y))
    return near - (index - 0.5) / slope


def transition_gradient(system: AbstractSystem, transition: Transition, *, rtol: float = 1e-10) -> AbstractSystem:
    """dt_x/d(every array of the system), as a system of the same shape: `.learning_rate`, `.initial_overlaps`, ...

    `dt_x = -(dq)/(dq/dt)` by reverse-mode differentiation of the integration up to t_x; `transition.conditioning` is
    dq/dt at t_x. In units of t (tr Sigma SGD steps). Gradients with respect to overlaps treat all P x P entries as
    free: symmetrise for a symmetric change. **Raises** `InputError` for a transition that was not found.
    """
    if not transition.found or transition.t_x is None:
        raise InputError("transition", expected="a transition that was found", got=transition.reason, remedy="widen t1")
    return _gradient(system, jnp.asarray(transition.t_x), jnp.asarray(rtol))


@program
def _gradient(system, near, rtol):
    return eqx.filter_grad(lambda s: transition_time(s, near, rtol=rtol))(system)


def _term() -> diffrax.ODETerm:
    return diffrax.ODETerm(lambda t, y, args: args.vector_field(t, y))


def _index_slope(system, t, y) -> Float[Array, ""]:
    """dq/dt along the flow."""
    tangent = system.vector_field(t, y)
    return jax.jvp(lambda t, y: local_exponents(system, t, y)[2], (t, y), (jnp.ones_like(t), tangent))[1]


def _of_system(system, t1, thresholds, points, rtol, time_unit) -> Transition:
    if t1 is None:
        raise InputError("t1", expected="the end of the window", got=None, remedy="pass t1=...")
    system = as_system(system)
    asked = system.integration
    trajectory = integrate(system, t1, points=points, rtol=asked.fine_rtol if rtol is None else rtol)
    unit = time_unit or f"t, one unit = {system.clock.unit}"
    if asked.over_nodes:
        return _over_nodes(system, trajectory, thresholds, unit)
    exact = SOLVERS[trajectory.meta["solver"]].exact
    chosen = transition_of_trajectory(trajectory, thresholds=thresholds, time_unit=unit)
    if exact and chosen.finite_size_cutoff is not None:
        cutoff = _located(system, trajectory, chosen.finite_size_cutoff, upwards=True)[0]
        chosen = chosen.changed(finite_size_cutoff=cutoff)
    if not chosen.found or chosen.t_x is None or not exact:
        # Between output times of the structure-preserving solver the grid's own interpolation is as good as its steps.
        return chosen
    t_x, loss, slope = _located(system, trajectory, chosen.t_x)
    first = np.flatnonzero(np.asarray(trajectory.valid))[0]
    return _replace(chosen, t_x, float(np.log(trajectory.loss[first] / loss)), slope)


def _located(system, trajectory, near: float, upwards: bool = False) -> tuple[float, float, float]:
    """(time, loss, dq/dt) of the crossing of q = 1/2 between the two output times around `near`.

    The solve that made the trajectory, on as many output times, so the same compiled program: over the bracket, up to the cell
    of it that holds the crossing (whose state is then the end of a step and not interpolated), and around that cell. What is left
    between two times is linear to 1e-14.
    """
    place = int(np.searchsorted(trajectory.t, near))
    points = trajectory.t.size

    def between(first: Any, last: Any, state: Any) -> Trajectory:
        return integrate(
            system, t0=float(first), ts=np.linspace(first, last, points), start=state, solver=trajectory.meta["solver"],
            rtol=trajectory.meta["rtol"], atol=trajectory.meta["atol"],
        )  # fmt: skip

    def crossing(curve: Trajectory) -> int:
        above = np.asarray(curve.index) > 0.5
        cells = np.flatnonzero(~above[:-1] & above[1:] if upwards else above[:-1] & ~above[1:])
        if cells.size == 0:
            raise SolveError(f"the crossing of q = 1/2 near t = {near:.6g} was not located: raise points")
        return int(cells[0])

    bracket = between(trajectory.t[place - 1], trajectory.t[place], trajectory.state[place - 1])
    cell = crossing(bracket)
    # A cell more on both sides: where fast modes multiply the rounding of the state, a crossing beside an end may fall out.
    first, last = max(cell - 1, 0), min(cell + 2, points - 1)
    start, end = bracket.t[first], bracket.t[last]
    state = bracket.state[0] if first == 0 else between(bracket.t[0], start, bracket.state[0]).state[-1]
    fine = between(start, end, state)
    left = crossing(fine)
    ends = fine.index[left : left + 2] - 0.5
    share = ends[0] / (ends[0] - ends[1])
    time = fine.t[left] + share * (fine.t[left + 1] - fine.t[left])
    loss = fine.loss[left] + share * (fine.loss[left + 1] - fine.loss[left])
    around = slice(max(cell - 3, 0), cell + 5)
    curve = np.polynomial.Polynomial.fit(bracket.t[around], bracket.index[around], 4)
    return float(time), float(loss), float(curve.deriv()(time))


def _over_nodes(system: Any, trajectory: Trajectory, thresholds: Thresholds | None, unit: str) -> Transition:
    """The transition of a loss that is an average over nodes, known to a few digits: that of the model that fits it.

    Where independent node sets were followed, the 95 % interval is that of their own transitions: every curve is fitted by one
    model, so that the scatter is that of the closure alone.
    """
    keep = np.asarray(trajectory.valid) & (trajectory.t > 0)
    t = trajectory.t[keep]
    common: dict[str, Any] = {"thresholds": thresholds, "time_unit": unit}
    found = find_transition_curve(t, trajectory.loss[keep], loss_start=float(trajectory.loss[0]), **common)
    found = found.without_intervals()
    if "replicate_loss" not in trajectory.observables or not found.found or found.t_x is None:
        return found
    curves = np.asarray(trajectory.observables["replicate_loss"])
    sets = curves.shape[1]
    estimator = f"{found.estimator}; interval from {sets} independent node sets"
    if sets < 2:
        return found.changed(estimator=f"{found.estimator}; one node set, no interval")
    each = [
        find_transition_curve(t, curve, loss_start=float(start), model=found.model, **common)
        for curve, start in zip(curves[keep].T, curves[0], strict=True)
    ]
    times = np.array([one.t_x for one in each if one.t_x is not None])
    if times.size < sets:
        caveat = f"{times.size} of {sets} node sets have a transition: no interval; raise nodes"
        return found.changed(estimator=estimator, caveat=caveat)
    half = float(system.estimate(times)[1])
    quantile = float(special.stdtrit(sets - 1, 0.975)) if sets > 2 else 2.0
    interval = (found.t_x - half, found.t_x + half)
    return found.changed(estimator=estimator, interval=interval, stderr=half / quantile)


def transition_of_trajectory(
    trajectory: Trajectory, *, thresholds: Thresholds | None = None, time_unit: str | None = None
) -> Transition:
    """The phases and the transition read off a trajectory's own p and q, by interpolation on its output times."""
    keep = np.asarray(trajectory.valid) & (trajectory.t > 0)
    first = np.flatnonzero(np.asarray(trajectory.valid))[0]
    return select_transition(
        trajectory.t[keep],
        trajectory.exponent[keep],
        trajectory.index[keep],
        np.log(trajectory.loss[keep]),
        log_loss_start=float(np.log(trajectory.loss[first])),
        thresholds=thresholds,
        estimator="exact derivatives along the flow, solved again around q = 1/2"
        if SOLVERS[trajectory.meta["solver"]].exact
        else "differences of log L on the output times",
        grid=f"{int(keep.sum())} times from {trajectory.t[keep][0]:.4g} to {trajectory.t[keep][-1]:.4g}",
        time_unit=time_unit or f"t, one unit = {trajectory.clock.unit}",
    )


def _replace(chosen: Transition, t_x: float, depth: float, slope: float) -> Transition:
    both = None if chosen.phases is None else chosen.phases.handover
    assert both is not None
    return chosen.changed(t_x=t_x, depth=depth, conditioning=slope, reason=acceptance(both, t_x))


def formula_exponents(loss: LossFormula, t: Float[Array, " n"]) -> tuple[Array, Array, Array]:
    """(L, p, q) of a formula at times t > 0, by automatic differentiation of log L in log t."""

    def log_loss(u):
        return jnp.log(loss(jnp.exp(u)))

    first, second = jax.grad(log_loss), jax.grad(jax.grad(log_loss))

    def at(u):
        slope = first(u)
        return jnp.exp(log_loss(u)), -slope, second(u) / slope

    return jax.vmap(at)(jnp.log(t))


def _of_formula(loss, t1, window, thresholds, points, time_unit) -> Transition:
    if window is None:
        if t1 is None:
            raise InputError("window", expected="(first, last) times", got=None, remedy="pass t1 or window")
        window = (1e-4 * t1, t1)
    first, last = (float(x) for x in window)
    if not (0 < first < last and np.isfinite(last)):
        raise InputError("window", expected="0 < first < last", got=window, remedy="the start is at t = 0")
    t = np.geomspace(first, last, int(points))
    values, p, q = (np.asarray(x) for x in formula_exponents(loss, jnp.asarray(t)))
    start = float(loss(jnp.asarray(0.0)))
    if not (np.isfinite(start) and start > 0):
        start = float(values[0])
    chosen = select_transition(
        t, p, q, np.log(values), log_loss_start=float(np.log(start)), thresholds=thresholds,
        estimator="automatic differentiation of the formula, bracketed root of q = 1/2",
        grid=f"{t.size} times from {t[0]:.4g} to {t[-1]:.4g}", time_unit=time_unit or "t of the formula",
    )  # fmt: skip
    if not chosen.found or chosen.t_x is None:
        return chosen
    place = int(np.searchsorted(t, chosen.t_x))

    def gap(x: float) -> float:
        return float(formula_exponents(loss, jnp.asarray([x]))[2][0]) - 0.5

    t_x = float(scipy.optimize.brentq(gap, t[place - 1], t[place], xtol=1e-13, rtol=1e-13))
    slope = (gap(t_x * (1 + 1e-6)) - gap(t_x * (1 - 1e-6))) / (2e-6 * t_x)
    return _replace(chosen, t_x, float(np.log(start) - np.log(float(loss(jnp.asarray(t_x))))), slope)
