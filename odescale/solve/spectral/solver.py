r"""The rank-one step as a diffrax solver: for events, adjoints and everything else that diffrax offers.

    de_k/dt = -a_k(t) e_k + b_k(t) P,     P = s^2 + sum_k e_k

`integrate(solver="rank_one")` is this one. `odescale.solve.spectral.log_rate.solve_spectral` stays beside it for the loss
alone: the same steps without diffrax, sized by the error of E and not of every mode, some ten times faster; no events, no
reverse mode, no p and q.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.solve.collocation import lagrange
from odescale.solve.spectral.step import NODES, RankOneProblem, rank_one_step


class CollocationInterpolation(diffrax.AbstractLocalInterpolation):
    """e(t) within a step: the cubic through its start and its stages, of order 3."""

    t0: Float[Array, ""]
    t1: Float[Array, ""]
    values: Float[Array, "4 modes"]

    def evaluate(self, t0, t1=None, left: bool = True) -> Float[Array, " modes"]:
        """e(t0), or e(t1) - e(t0)."""
        if t1 is not None:
            return self.evaluate(t1) - self.evaluate(t0)
        h = self.t1 - self.t0
        share = jnp.where(h == 0, 1.0, (t0 - self.t0) / jnp.where(h == 0, 1.0, h))
        return (lagrange(NODES, share) @ self.values).astype(self.values.dtype)


class RankOneSolver(diffrax.AbstractAdaptiveSolver):
    """Radau IIA of order 5 for modes coupled through one number; see `odescale.solve.spectral.step`.

    Use as `diffeqsolve(ODETerm(lambda t, y, args: args.vector_field(t, y)), RankOneSolver(), t0, t1, dt0, system.initial_state(),
    args=system, ...)`, the system in `args`, time in SGD steps, with `ClipStepSizeController(PIDController(rtol, atol),
    jump_ts=system.kinks)`. Linear in the state: no iteration that could fail.
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., CollocationInterpolation]] = CollocationInterpolation

    def order(self, terms: Any) -> int:
        return 5

    def error_order(self, terms: Any) -> int:
        return 4

    def func(self, terms: Any, t0: Any, y0: Any, args: RankOneProblem) -> Any:
        return terms.vf(t0, y0, args)

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: RankOneProblem) -> None:
        return None

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: RankOneProblem, solver_state: None, made_jump: Any
    ) -> tuple[Any, Any, dict[str, Any], None, Any]:
        del terms, solver_state, made_jump
        step = rank_one_step(args, t0, t1, y0)
        # The nodes are double: a single-precision state takes its step in double and is rounded once.
        end, error, stages = (x.astype(y0.dtype) for x in (step.end, step.error, step.stages))
        dense = {"values": jnp.concatenate([y0[None], stages])}
        return end, error, dense, None, diffrax.RESULTS.successful


def solve_with_diffrax(
    system: Any,
    times: Real[ArrayLike, " n"],
    *,
    rtol: Any = 1e-8,
    atol: Any = None,
    start: Float[Array, " modes"] | None = None,
    onto_outputs: bool = False,
    event: diffrax.Event | None = None,
    max_steps: int = 20_000,
    **settings: Any,
) -> diffrax.Solution:
    """e at `times` (SGD steps, the first one the start) by `diffeqsolve` with `RankOneSolver`; reverse-mode differentiable.

    **Arguments**: `times` (n,); errors are measured mode by mode against rtol e_k + `atol`, by default 1e-14 rtol sum e(0);
    `start` e(times[0]), default the system's; `onto_outputs`: step onto every output, for derivatives of the loss along the flow
    (between two steps the cubic is one order less accurate, and the fast rates multiply that); `event`: passed on, e.g. for a
    transition; `settings`: others of `diffeqsolve`.
    """
    grid = jnp.asarray(times)
    state = system.initial_state() if start is None else start
    atol = 1e-14 * rtol * jnp.sum(state) if atol is None else atol
    stops: dict[str, Any] = {"step_ts": grid} if onto_outputs else {}
    if system.kinks:
        kinks = jnp.concatenate([jnp.asarray(kink, grid.dtype).ravel() for kink in system.kinks])
        stops["jump_ts"] = jnp.sort(kinks)
    controller: Any = diffrax.PIDController(rtol=rtol, atol=atol)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: args.vector_field(t, y)),
        RankOneSolver(),
        grid[0],
        grid[-1],
        jnp.minimum(system.time_scale.astype(grid.dtype), grid[-1] - grid[0]),
        state,
        args=system,
        saveat=diffrax.SaveAt(ts=grid),
        stepsize_controller=diffrax.ClipStepSizeController(controller, **stops) if stops else controller,
        event=event,
        max_steps=max_steps,
        **settings,
    )
