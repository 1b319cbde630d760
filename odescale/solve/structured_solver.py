"""The structure-preserving step as a diffrax solver, its dense output, and the step control that goes with it.

    dq_k/dt = M_k q_k + q_k M_k^T + lam_k N,    M_k = lam_k M1 + M0,    (M1, M0, N) = problem.drift(t, C, R)
    C = sum_k w_k lam_k q_k,    R = sum_k w_k q_k

Radau IIA collocation: the coefficients are those of the stages, solved for the couplings (C, R) there, and nothing else:
some p P numbers per stage whatever the number of modes. See `odescale.solve.flow` for the step of a mode. Of order 3 with
two stages (5 with three), also where fast modes are slaved and turn the equations into differential-algebraic ones of
index 2; L-stable; positive semi-definite. The implicit function theorem differentiates the couplings, so that reverse and
forward mode both work, through whichever adjoint `diffrax.diffeqsolve` is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from odescale.solve.collocation import Tableau, after, lagrange, positive_part, radau
from odescale.solve.flow import Coefficients, congruence, drift_matrices, embed, embedded_error, factors, noise_content
from odescale.solve.jacobian import coupling_jacobian
from odescale.solve.stages import Couplings, extrapolate, implicit, newton


@runtime_checkable
class StructuredProblem(Protocol):
    """What the solver reads of a system; an `equinox.Module` whose arrays may be traced.

    - `eigenvalues`, `weights` (modes,): lam_k and w_k.
    - `trained` (P,): static flags, the rows that move. `writes_back`: static, whether R enters the drift.
    - `kinks`: times at which eta(t) has a kink or a jump; static length, may be empty.
    """

    eigenvalues: Any
    weights: Any

    @property
    def trained(self) -> Any: ...

    @property
    def writes_back(self) -> bool: ...

    @property
    def kinks(self) -> Any: ...

    def drift(self, t: Any, C: Array, R: Array) -> tuple[Array, Array, Array]:
        """(M1, M0, N), each (P, P): zero on rows that do not move, N symmetric positive semi-definite."""
        ...


def overlap_flow(t: Any, q: Any, problem: StructuredProblem) -> Float[Array, "modes P P"]:
    """dq/dt = M q + q M^T + lam N: the field of `diffrax.ODETerm`, for `StructuredSolver` and for any other solver."""
    lam, weights = (jnp.asarray(v, q.dtype) for v in (problem.eigenvalues, problem.weights))
    C, R = (jnp.tensordot(measure, q, axes=1) for measure in (weights * lam, weights))
    M1, M0, N = problem.drift(t, C, R)
    lam = lam[:, None, None]
    half = (lam * M1 + M0) @ q
    return half + jnp.swapaxes(half, 1, 2) + lam * N


class FlowInterpolation(diffrax.AbstractLocalInterpolation):
    """q(t) within a step: the collocated factors applied to the overlaps at its start, plus the noise content."""

    t0: Float[Array, ""]
    t1: Float[Array, ""]
    signal: Float[Array, "modes P P"]
    factors: Float[Array, "modes s p P"]
    start: Float[Array, "modes p p"]
    noise: Float[Array, "modes s p p"]
    rows: Float[Array, "p P"]

    def evaluate(self, t0, t1=None, left: bool = True) -> Float[Array, "modes P P"]:
        """q(t0), or q(t1) - q(t0)."""
        if t1 is not None:
            return self.evaluate(t1) - self.evaluate(t0)
        nodes = np.concatenate([[0.0], radau(self.factors.shape[1]).nodes])
        h = self.t1 - self.t0
        share = jnp.where(h == 0, 1.0, (t0 - self.t0) / jnp.where(h == 0, 1.0, h))
        weights = lagrange(nodes, share.astype(self.signal.dtype))
        X = jnp.einsum("i,kipq->kpq", weights[1:], self.factors)
        S = weights[0] * self.start + jnp.einsum("i,kipq->kpq", weights[1:], self.noise)
        q = congruence(self.signal, X, self.rows)
        return q + embed(positive(S, self.rows @ _diagonal(q)[..., None]), self.rows)


class StructuredState(eqx.Module):
    """What a step hands to the next.

    - `noise` (modes, p, p): the noise content S. `start`, `width`, `path`: couplings at the nodes of the last step.
    - `inverse`, `inverse_h`: frozen inverse Jacobian and the step it was made for; `refresh`: renew it.
    - `t`: end of the last accepted step. `iterations`, `jacobians`: over accepted steps.
    - `smallest`: lowest eigenvalue met after an accepted step in any mode, over the largest entry on its diagonal.
    """

    noise: Float[Array, "modes p p"]
    start: Float[Array, ""]
    width: Float[Array, ""]
    path: Float[Array, "nodes u"]
    inverse: Float[Array, "n n"]
    inverse_h: Float[Array, ""]
    refresh: Bool[Array, ""]
    t: Float[Array, ""]
    iterations: Int[Array, ""]
    jacobians: Int[Array, ""]
    smallest: Float[Array, ""]


class StructuredSolver(diffrax.AbstractAdaptiveSolver):
    """Radau IIA collocation of q = D + S, `D <- E D E^T`, S the noise content: see the module.

    Use as `diffeqsolve(ODETerm(overlap_flow), StructuredSolver(), t0, t1, dt0, q0, args=problem, ...)`, with
    `ClipStepSizeController(OverlapController(rtol, atol), jump_ts=problem.kinks)`; `PIDController` works too, entry by entry.

    - `stages`: 2 (order 3) or 3 (order 5, for tolerances below 1e-6 or so).
    - `tolerance`: of the couplings at the stages, relative to sqrt(C_ii C_jj). A ten-thousandth of rtol is good.

    A step whose equations do not converge reports an infinite error, so that the controller shortens it.
    """

    stages: int = eqx.field(static=True, default=2)
    tolerance: Any = 1e-8

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., FlowInterpolation]] = FlowInterpolation

    def order(self, terms: Any) -> int:
        return 2 * self.stages - 1

    def error_order(self, terms: Any) -> int:
        return self.stages + 1

    def func(self, terms: Any, t0: Any, y0: Any, args: StructuredProblem) -> Any:
        return terms.vf(t0, y0, args)

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: StructuredProblem) -> StructuredState:
        frame = Couplings.of(args, y0)
        p, u = frame.rows.shape[0], frame.pack(y0)
        n = self.stages * u.shape[0]
        zero = jnp.asarray(0, jnp.int32)
        t0 = jnp.asarray(t0)
        return StructuredState(
            noise=jnp.zeros((y0.shape[0], p, p), y0.dtype),
            start=t0 - 1,
            width=jnp.ones_like(t0),
            path=jnp.broadcast_to(u, (self.stages + 1, *u.shape)),
            inverse=jnp.eye(n, dtype=y0.dtype),
            inverse_h=jnp.ones_like(t0),
            refresh=jnp.asarray(True),
            t=t0,
            iterations=zero,
            jacobians=zero,
            smallest=lowest_eigenvalue(y0),
        )

    def step(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        args: StructuredProblem,
        solver_state: StructuredState,
        made_jump: Any,
    ) -> tuple[Any, Any, dict[str, Any], StructuredState, Any]:
        del terms, made_jump
        state, rule, frame = solver_state, radau(self.stages), Couplings.of(args, y0)
        rows, lam, dtype = frame.rows, frame.lam, y0.dtype
        moving = np.flatnonzero(frame.trained)
        h = (t1 - t0).astype(dtype)
        D = y0 - embed(state.noise, rows)

        def coefficients(u: Array, t: Array) -> Coefficients:
            M1, M0, N = args.drift(t, *frame.unpack(u))
            K = Coefficients(M1[moving], M0[moving], N[np.ix_(moving, moving)])
            return jax.tree.map(lambda v: v.astype(dtype), K)

        times = t0 + jnp.asarray(rule.nodes, t0.dtype) * (t1 - t0)
        times = times.at[-1].set(t1)

        def stages(u: Array, noisy: Bool[Array, ""] | None = None):
            """Factors, noise content and overlaps at the stages for couplings u (s, u) there."""
            K = jax.vmap(coefficients)(u, times)
            M = drift_matrices(lam, K)
            X = factors(M, frame.trained, h, rule)
            q = congruence(D[:, None], X, rows)

            def content():
                return noise_content(M[..., moving], lam, K.noise, state.noise, after(h, X), rule)

            # the derivative by the noise does not vanish where the noise does: skip it in the iteration only
            S = content() if noisy is None else lax.cond(noisy, content, lambda: jnp.zeros_like(X[..., moving]))
            return X, S, q + embed(S, rows)

        u0 = frame.pack(y0)
        K0 = coefficients(u0, t0)
        noisy = jnp.any(state.noise != 0) | jnp.any(K0.noise != 0)
        shape = (self.stages, u0.shape[0])
        guess = _guess(state, times, rule)
        scale = jnp.broadcast_to(frame.scale(u0), shape).ravel()
        tolerance = jnp.maximum(jnp.asarray(self.tolerance, dtype), 50 * jnp.finfo(dtype).eps)
        # the Jacobian changes with h: a factor of 1.6 is still a good approximation
        ratio = h / state.inverse_h
        refresh = state.refresh | (ratio > 1.6) | (ratio < 0.6)

        def residual(v: Array, noisy: Bool[Array, ""] | None = None) -> Array:
            return v - frame.pack(stages(v.reshape(shape), noisy)[2]).ravel()

        def jacobian(v: Array) -> Array:
            u = v.reshape(shape)
            K, slopes = jax.vmap(coefficients)(u, times), jax.vmap(jax.jacfwd(coefficients))(u, times)
            return coupling_jacobian(frame, D, state.noise, K, slopes, h, rule)

        v, record = newton(
            lambda v: residual(v, noisy), jacobian, guess.ravel(), state.inverse, refresh, scale, tolerance
        )
        v = lax.stop_gradient(v)
        rest = residual(v)
        v = implicit(v, rest, lax.stop_gradient(jacobian(after(v, rest))))
        X, S, _ = stages(v.reshape(shape))
        carried = congruence(D, X[:, -1], rows)
        kept = positive(S[:, -1], rows @ _diagonal(carried)[..., None])
        y1 = carried + embed(kept, rows)

        inputs = lax.stop_gradient((D, X, S, state.noise, drift_matrices(lam, K0), K0.noise, lam, after(h, kept)))
        error = jnp.where(record.converged, embedded_error(*inputs, rows, rule), jnp.inf)
        error = jnp.where(jnp.all(jnp.isfinite(error)), error, jnp.inf)
        new = StructuredState(
            noise=kept,
            start=t0,
            width=t1 - t0,
            path=jnp.concatenate([u0[None], v.reshape(shape)]),
            inverse=record.inverse,
            inverse_h=jnp.where(record.jacobians > 0, h, state.inverse_h),
            refresh=record.rate > 0.3,
            t=t1,
            iterations=state.iterations + record.iterations,
            jacobians=state.jacobians + record.jacobians,
            smallest=jnp.minimum(state.smallest, lowest_eigenvalue(after(y1, error))),
        )
        dense = {"signal": D, "factors": X, "start": state.noise, "noise": S, "rows": jnp.asarray(rows, dtype)}
        return y1, error, dense, new, diffrax.RESULTS.successful


class OverlapController(diffrax.AbstractAdaptiveStepSizeController):
    """Step control by max over modes and entries of |error_ij| / (atol + rtol sqrt(q_ii q_jj)), PI with halved memory.

    An entry of a positive matrix is to be compared with sqrt(q_ii q_jj), which bounds it, and not with itself. Ends a run
    with `RESULTS.dt_min_reached` when the step falls to the rounding of t.
    """

    rtol: Any
    atol: Any
    norm: Callable[[Any], Any] = jnp.max

    @property
    def _inner(self) -> diffrax.PIDController:
        return diffrax.PIDController(
            rtol=0.0, atol=1.0, pcoeff=0.4, icoeff=0.3, factormin=0.2, factormax=4.0, norm=self.norm
        )

    def wrap(self, direction: Any) -> OverlapController:
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        if dt0 is None:
            dt0 = first_step(args, t0, y0)
        scalar = jnp.zeros((), y0.dtype)
        return self._inner.init(terms, t0, t1, scalar, dt0, args, func, error_order)

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        worst = lax.stop_gradient(_relative_error(y0, y1_candidate, y_error, self.rtol, self.atol))
        # a zero estimate has no power law
        worst = jnp.where(jnp.isfinite(worst), jnp.maximum(worst, 1e-10), jnp.inf)
        unit = jnp.zeros_like(worst)
        keep, next_t0, next_t1, jump, controller_state, result = self._inner.adapt_step_size(
            t0, t1, unit, unit, args, worst, error_order, controller_state
        )
        smallest = 8 * jnp.finfo(jnp.result_type(t0)).eps * jnp.maximum(jnp.abs(t0), jnp.finfo(jnp.result_type(t0)).eps)
        result = diffrax.RESULTS.where(~keep & (next_t1 - next_t0 < smallest), diffrax.RESULTS.dt_min_reached, result)
        return keep, next_t0, next_t1, jump, controller_state, result


def first_step(problem: StructuredProblem, t0: Any, q: Float[Array, "modes P P"]) -> Float[Array, ""]:
    """A twentieth of the fastest mode's time at the start."""
    lam, weights = (jnp.asarray(v, q.dtype) for v in (problem.eigenvalues, problem.weights))
    C, R = (jnp.tensordot(measure, q, axes=1) for measure in (weights * lam, weights))
    M1, M0, _ = problem.drift(t0, C, R)
    fastest = jnp.max(jnp.sum(jnp.abs(M1), axis=1)) * jnp.max(lam) + jnp.max(jnp.sum(jnp.abs(M0), axis=1))
    return lax.stop_gradient(0.05 / jnp.maximum(fastest, 1e-12)).astype(q.dtype)


def positive(S: Float[Array, "modes p p"], sizes: Float[Array, "modes p 1"]) -> Float[Array, "modes p p"]:
    """S projected onto the positive matrices, with its rows scaled by the signal's: rows may have different units."""
    own = jnp.abs(jnp.diagonal(S, axis1=-2, axis2=-1))[..., None]
    size = lax.stop_gradient(jnp.sqrt(jnp.maximum(sizes, 0.0) + own))
    size = jnp.where(size > 0, size, 1.0)
    unit = size * jnp.swapaxes(size, -1, -2)
    return positive_part(S / unit) * unit


def lowest_eigenvalue(q: Float[Array, "*k P P"]) -> Float[Array, ""]:
    """Smallest eigenvalue of any mode over the largest entry of that mode's diagonal."""
    q = lax.stop_gradient(q)
    top = jnp.max(_diagonal(q), axis=-1)
    return jnp.min(jnp.linalg.eigvalsh(q)[..., 0] / jnp.maximum(top, jnp.finfo(q.dtype).tiny))


def _guess(state: StructuredState, times: Float[Array, " s"], rule: Tableau) -> Float[Array, "s u"]:
    nodes = np.concatenate([[0.0], rule.nodes])
    share = (times - state.start) / jnp.where(state.width == 0, 1.0, state.width)
    weights = jax.vmap(lambda x: lagrange(nodes, x))(share.astype(state.path.dtype))
    # far outside the last step a polynomial says less than its last value
    last = jnp.zeros_like(weights).at[:, -1].set(1.0)
    far = (state.width == 0) | (share[-1] > 6.0)
    return lax.stop_gradient(extrapolate(jnp.where(far, last, weights), state.path))


def _relative_error(before: Any, after: Any, error: Any, rtol: Any, atol: Any) -> Float[Array, ""]:
    d = jnp.maximum(jnp.abs(_diagonal(before)), jnp.abs(_diagonal(after)))
    # a row that starts at zero is measured against its mode, not against itself
    d = jnp.sqrt(jnp.maximum(d, 1e-3 * jnp.max(d, axis=-1, keepdims=True)))
    return jnp.max(jnp.abs(error) / (atol + rtol * d[..., :, None] * d[..., None, :]))


def _diagonal(q: Float[Array, "*k P P"]) -> Float[Array, "*k P"]:
    return jnp.diagonal(q, axis1=-2, axis2=-1)
