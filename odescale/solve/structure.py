"""Structure-preserving implicit integration of mean-field overlaps on any spectrum, over many decades of time.

    dq_k/dt = M_k q_k + q_k M_k^T + lam_k N,    M_k = lam_k M1 + M0,    (M1, M0, N) = drift(t, C, R)
    C = sum_k w_k lam_k q_k,    R = sum_k w_k q_k

Softmax attention with G, H, V: M1 = -eta G, M0 = -eta H - w S, N = (eta^2/B) V. Heavy-ball momentum adds velocity rows to q
and a damped or oscillating block to M0. One unit of t is tr Sigma SGD steps.

An explicit solver is bound to steps of 1/(lam_max |M1|); steps that freeze the coefficients are first order once fast modes
are slaved to the loss, because the direction in which they relax turns within the step. Here the rows are collocated with
the coefficients of the stages (`odescale.solve.structured_solver`). Measured, error of the loss against a 100 times tighter
solve: depth-2 attention on 1e8 modes to t = 1e6 at rtol 1e-3, 111 steps and 3e-5 without noise, 138 and 2e-5 with; golden
problem of one-pass SGD (1024 modes, exact solution), 252 steps and 4e-6 in its power law, order 2.9 there.
"""

from __future__ import annotations

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Real

from odescale.cache.programs import program
from odescale.errors import InputError
from odescale.solve.codes import code_of
from odescale.solve.step_control import patient
from odescale.solve.structured_solver import (
    OverlapController,
    StructuredProblem,
    StructuredSolver,
    StructuredState,
    first_step,
    overlap_flow,
)


class StructuredSolution(eqx.Module):
    """Overlaps at the requested times and the record of how they were reached.

    **Fields**

    - `ys`: (n, modes, P, P); NaN after `t_reached`, never a value beyond the last accepted step.
    - `accepted`, `rejected`: steps; rejected counts those that missed the tolerance and those whose Newton iteration failed.
    - `newton_iterations`, `jacobians`: solves with, and evaluations of, the Jacobian of the couplings, in accepted steps.
    - `code`: 0 finished, else see `odescale.solve.codes`.
    - `t_reached`: end of the last accepted step.
    - `min_eigenvalue`: smallest eigenvalue met in any mode after any accepted step, over the largest entry on that mode's
      diagonal; -1e-15 is rounding.
    """

    ys: Float[Array, "n modes P P"]
    accepted: Int[Array, ""]
    rejected: Int[Array, ""]
    newton_iterations: Int[Array, ""]
    jacobians: Int[Array, ""]
    code: Int[Array, ""]
    t_reached: Float[Array, ""]
    min_eigenvalue: Float[Array, ""]


def solve_structured(
    problem: StructuredProblem,
    y0: Real[ArrayLike, "modes P P"],
    ts: Real[ArrayLike, " n"],
    *,
    t0: float | Float[Array, ""] = 0.0,
    rtol: float | Float[Array, ""] = 1e-4,
    atol: float | Float[Array, ""] = 1e-12,
    max_steps: int = 4096,
    dt0: float | Float[Array, ""] | None = None,
    stages: int = 2,
    adjoint: diffrax.AbstractAdjoint | None = None,
    growth: float = float("inf"),
) -> StructuredSolution:
    """Integrates dq_k/dt = M_k q_k + q_k M_k^T + lam_k N from t0 to ts[-1] by Radau IIA collocation, through diffrax.

    L-stable, of order 2 `stages` - 1 whether fast modes are resolved or slaved, positive semi-definite. The number of steps
    grows with the logarithm of time, not with `lam_max * t`. One compiled solve per shape: tolerances, times and parameters
    are traced. Works under `jax.vmap` and `jax.lax.map`; the second is faster on a CPU.

    **Arguments**

    - `problem`: see `odescale.solve.structured_solver.StructuredProblem`. One unit of t is N = tr Sigma SGD steps. Steps end
      on its `kinks`.
    - `y0` (modes, P, P): initial overlaps q_k, positive semi-definite.
    - `ts` (n,): increasing output times, at or after `t0`. Outputs are interpolated: they do not change the steps.
    - `rtol`: local error per step of every mode's overlaps, over sqrt(q_ii q_jj). 1e-3 is a good value: the loss is then
      right to 1e-4 or better along a power law. In difference rows it bounds the relative error of every mode's excess.
      In an exponential phase the relative error of the loss grows with t.
    - `atol`: absolute part of the same, in units of q.
    - `max_steps`: cap on attempted steps, accepted or not; static, another value compiles anew.
    - `dt0`: first step in units of t; by default a twentieth of the fastest mode's time.
    - `stages`: 2, or 3 for rtol below 1e-5: fewer steps, each twice as dear.
    - `growth`: the run ends with `Code.DIVERGED` where overlaps run off beyond that many times the start's largest.
    - `adjoint`: how diffrax differentiates; reverse mode by default. Pass `diffrax.ForwardMode()` for `jax.jvp`. Step
      sizes are not differentiated.

    **Returns** a `StructuredSolution`. **Errors**: `InputError` for shapes and times; a failed run returns its `code`
    with NaN after `t_reached`. **Failure regime**: with p moving rows a mode costs (stages p^2/2)^3 operations per
    iteration: p = 5 takes a millisecond for 150 modes, p = 20 seconds. A loss that is a difference of plain overlaps is lost
    to rounding below 1e-14 of its start: pose the problem in difference rows.

    **Source**: E. Hairer, G. Wanner, Solving Ordinary Differential Equations II, IV.5, IV.8, VII.4.
    """
    trained = tuple(bool(flag) for flag in np.asarray(problem.trained))
    shape, times = np.shape(y0), jnp.asarray(ts)
    size = len(trained)
    if len(shape) != 3 or shape[1:] != (size, size) or shape[0] != np.shape(problem.eigenvalues)[0]:
        expected = f"shape {(*np.shape(problem.eigenvalues), size, size)} (modes, P, P)"
        raise InputError("y0", expected=expected, got=shape, remedy="one P x P matrix of overlaps per eigenvalue")
    if not any(trained):
        raise InputError("trained", expected="at least one trained row", got=trained, remedy="train a row")
    if times.ndim != 1 or times.shape[0] == 0:
        raise InputError("ts", expected="a non-empty vector of times", got=times.shape, remedy="pass output times")
    if not isinstance(times, jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
        grid = np.asarray(times)
        if not np.all(np.isfinite(grid)) or np.any(np.diff(grid) < 0) or grid[0] < float(t0):
            raise InputError("ts", expected=f"finite increasing times from t0 = {t0}", got=grid, remedy="sort them")
    dtype = jnp.result_type(y0, 1.0)
    first = None if dt0 is None else jnp.asarray(dt0, dtype)
    begin, rtol_, atol_ = (jnp.asarray(v, dtype) for v in (t0, rtol, atol))
    adjoint = diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
    y0, times = jnp.asarray(y0, dtype), times.astype(dtype)
    return _solve(problem, y0, times, begin, rtol_, atol_, first, int(max_steps), stages, adjoint, growth)


@program
def _solve(
    problem, y0, ts, t0, rtol, atol, dt0, max_steps: int, stages: int, adjoint, growth: float
) -> StructuredSolution:
    dtype = y0.dtype
    h0 = first_step(problem, t0, y0) if dt0 is None else dt0
    finite = jnp.all(jnp.isfinite(y0)) & jnp.isfinite(h0)
    # a start that is not finite is not integrated: no time passes
    start = jnp.where(finite, y0, 0.0)
    times = jnp.where(finite, ts, t0)
    h0 = jnp.where(finite, h0, 1.0)
    controller: Any = patient(OverlapController(rtol, atol), growth)
    kinks = jnp.asarray(problem.kinks, dtype).reshape(-1)
    if kinks.shape[0] > 0:
        controller = diffrax.ClipStepSizeController(controller, jump_ts=jax.lax.stop_gradient(kinks))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(overlap_flow),
        StructuredSolver(stages, 1e-4 * rtol),
        t0,
        times[-1],
        jnp.minimum(h0, jnp.where(times[-1] > t0, times[-1] - t0, 1.0)),
        start,
        args=problem,
        saveat=diffrax.SaveAt(ts=times, solver_state=True),
        stepsize_controller=controller,
        max_steps=max_steps,
        adjoint=adjoint,
        throw=False,
    )
    state, found = solution.solver_state, solution.ys
    assert isinstance(state, StructuredState) and found is not None
    code = code_of(solution.result, finite)
    reached = jnp.where(finite, state.t, t0)
    ys = jnp.where(finite & (ts <= reached)[:, None, None, None], found, jnp.nan)
    ys = jnp.where((ts <= t0)[:, None, None, None], y0, ys)
    return StructuredSolution(
        ys,
        jnp.asarray(solution.stats["num_accepted_steps"]),
        jnp.asarray(solution.stats["num_rejected_steps"]),
        state.iterations,
        state.jacobians,
        code,
        reached,
        state.smallest,
    )
