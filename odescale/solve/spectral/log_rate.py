r"""The log-rate ODE of SGD on a spectrum, fast: adaptive Radau IIA with the rank-one step, any schedule, any output times.

Outputs between steps are quintic Hermite interpolants of log E in log(t + tau), from E, E', E'' at the ends of the step: a power
law is carried exactly, an exponential to the order of the step.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from odescale.cache.programs import program
from odescale.errors import InputError, SolveError, whole
from odescale.precision import check_tolerance, require_x64
from odescale.solve.codes import Code, explain
from odescale.solve.spectral.step import RULE, rank_one_step
from odescale.systems.spectral import Spectral

MAX_STEPS = 4096
SAFETY, BETWEEN = 4.0, 3.0
"""What a step may spend, in units of rtol: on its end (the estimate is two orders below the step), and between its ends."""
FLOOR = 1e-30
"""Share of E(0) + s^2 below which E is no longer resolved."""


class SpectralCurve(eqx.Module):
    """E(t) of SGD on a spectrum, NaN beyond the time reached.

    - `t` (n,): SGD steps. `loss` (n,): excess risk E = sum lam rho. `loss_total` (n,): P = s^2 + F_0 + E.
    - `state` (n, modes) or None: e_k = lam_k rho_k. `valid` (n,). `code`: see `odescale.solve.codes`.
    - `accepted`, `rejected` steps; `reached`: end of the last accepted one. `seconds`: of this call, compilation included.
    """

    t: Float[np.ndarray, " n"]
    loss: Float[np.ndarray, " n"]
    loss_total: Float[np.ndarray, " n"]
    state: Float[np.ndarray, "n modes"] | None
    valid: Bool[np.ndarray, " n"]
    code: int
    accepted: int
    rejected: int
    reached: float
    seconds: float


class _Loop(NamedTuple):
    """Time, step, modes; the last step's error; counters; the code; a row of `record` per accepted step; states at outputs."""

    t: Float[Array, ""]
    h: Float[Array, ""]
    e: Float[Array, " modes"]
    accepted: Int[Array, ""]
    rejected: Int[Array, ""]
    code: Int[Array, ""]
    record: Float[Array, "steps 8"]
    states: Float[Array, "n modes"]
    written: Int[Array, ""]


def solve_arrays(
    system: Spectral,
    start: Float[Array, " modes"],
    times: Float[Array, " n"],
    rtol: Float[Array, ""],
    states: bool = False,
    max_steps: int = MAX_STEPS,
) -> dict[str, Any]:
    """The pure function under `solve_spectral`: arrays in, arrays out, for `jit`, `vmap` and `jvp` (forward mode).

    **Returns** loss (n,), state (n, modes) or None, valid (n,), code, accepted, rejected, reached.
    """
    t0, t1 = times[0], times[-1]
    scale = system.time_scale.astype(times.dtype)
    kinks = jnp.concatenate([t1[None], *(jnp.asarray(kink, times.dtype).ravel() for kink in system.kinks)])
    stops = jnp.concatenate([kinks, *([times] if states else [])])
    tiny = 1e-13
    least = FLOOR * (jnp.sum(start) + system.residual_noise)

    def running(c: _Loop) -> Bool[Array, ""]:
        return (c.t < t1) & (c.code == int(Code.OK))

    def advance(c: _Loop) -> _Loop:
        # The next stop ahead by more than rounding; a step that would end just short of it goes there.
        ahead = jnp.where(stops > c.t * (1 + tiny), stops, jnp.inf)
        stop = jnp.minimum(jnp.min(ahead), t1)
        rest = stop - c.t
        end = jnp.where(c.h >= 0.999 * rest, stop, jnp.where(c.h > 0.55 * rest, c.t + 0.5 * rest, c.t + c.h))
        step = rank_one_step(system, c.t, end, c.e)
        E0, E1 = jnp.sum(c.e), jnp.sum(step.end)
        size = jnp.maximum(jnp.maximum(jnp.abs(E0), jnp.abs(E1)), least)
        ratio = jnp.sum(jnp.abs(step.error)) / (SAFETY * rtol * size)
        row = jnp.concatenate([jnp.stack([c.t, end, E0, E1]), step.slopes.ravel()])
        # Where every mode is slaved to the learning rate a step of any length ends right: what lies between must be right too.
        inner = jnp.sum(step.stages[:2], axis=1)
        places = c.t + jnp.asarray(RULE.nodes[:2]) * (end - c.t)
        missed = jnp.abs(jax.vmap(_between, (None, 0, None))(row, places, scale) - inner)
        ratio = jnp.maximum(ratio, jnp.max(missed / jnp.maximum(jnp.abs(inner), least)) / (BETWEEN * rtol))
        finite = jnp.all(jnp.isfinite(step.end))
        ratio = jnp.where(finite & jnp.isfinite(ratio), ratio, 1e6)
        accept = ratio <= 1
        used = end - c.t
        factor = jnp.clip(0.85 * jnp.maximum(ratio, 1e-12) ** -0.25, 0.1, 6.0)
        wanted = used * factor
        # A step cut short by a stop says nothing against the longer one it replaced.
        h = jnp.where(accept & (used < c.h), jnp.maximum(wanted, jnp.minimum(c.h, 6.0 * used)), wanted)
        # Past a kink the fast modes find their new balance, one after the other: start small again.
        h = jnp.where(accept & jnp.any(jnp.abs(kinks - end) <= tiny * end), jnp.minimum(h, scale), h)
        small = ~accept & (wanted <= 16 * jnp.finfo(times.dtype).eps * jnp.maximum(c.t, used))
        full = c.accepted + c.rejected + 1 >= max_steps
        code = jnp.where(small, int(Code.STEP_TOO_SMALL), int(Code.OK))
        code = jnp.where(full & ~(accept & (end >= t1)), int(Code.MAX_STEPS), code)
        code = jnp.where(jnp.isfinite(E0), code, int(Code.NOT_FINITE))
        # A rejected step leaves its row to the next one.
        record = c.record.at[c.accepted].set(row)
        kept, written = c.states, c.written
        if states:
            due = accept & (end >= times[jnp.minimum(written, times.size - 1)] * (1 - tiny)) & (written < times.size)
            place = jnp.minimum(written, times.size - 1)
            kept = kept.at[place].set(jnp.where(due, step.end, kept[place]))
            written = written + due
        return _Loop(
            jnp.where(accept, end, c.t),
            h,
            jnp.where(accept, step.end, c.e),
            c.accepted + accept,
            c.rejected + ~accept,
            code.astype(c.code.dtype),
            record,
            kept,
            written,
        )

    zero = jnp.zeros((), jnp.int32)
    kept = jnp.zeros((times.size if states else 1, start.size), start.dtype).at[0].set(start)
    record = jnp.full((max_steps + 1, 8), jnp.inf, times.dtype)
    begin = _Loop(t0, jnp.minimum(scale, t1 - t0), start, zero, zero, zero, record, kept, zero + 1)
    last = lax.while_loop(running, advance, begin)
    done = jnp.arange(max_steps + 1) < last.accepted
    ends = jnp.where(done, last.record[:, 1], jnp.inf)
    place = jnp.clip(jnp.searchsorted(ends, times), 0, jnp.maximum(last.accepted - 1, 0))
    loss = jax.vmap(_between, (0, 0, None))(last.record[place], times, scale)
    loss = jnp.where(times == t0, jnp.sum(start), loss)
    valid = (times <= last.t) & jnp.isfinite(loss)
    return {
        "loss": jnp.where(valid, loss, jnp.nan),
        "state": jnp.where(valid[:, None], last.states, jnp.nan) if states else None,
        "valid": valid,
        "code": last.code,
        "accepted": last.accepted,
        "rejected": last.rejected,
        "reached": last.t,
    }


def _between(row: Float[Array, " 8"], t: Float[Array, ""], scale: Float[Array, ""]) -> Float[Array, ""]:
    """E(t) within a step: quintic Hermite of log E in log(t + tau); cubic of E where E starts from next to nothing."""
    begin, end, E0, E1, f0, s0, f1, s1 = row
    width = jnp.log((end + scale) / (begin + scale))
    x = jnp.clip(jnp.log((t + scale) / (begin + scale)) / width, 0.0, 1.0)

    def in_log(at, E, f, s):
        rate = f / E * (at + scale) * width
        return rate, (s / E * (at + scale) ** 2 * width + f / E * (at + scale) * width) * width - rate**2

    safe0, safe1 = jnp.maximum(E0, 1e-300), jnp.maximum(E1, 1e-300)
    p0, c0 = in_log(begin, safe0, f0, s0)
    p1, c1 = in_log(end, safe1, f1, s1)
    y = _quintic(x, jnp.log(safe1 / safe0), p0, p1, c0, c1)
    h = end - begin
    u = jnp.clip((t - begin) / h, 0.0, 1.0)
    plain = E0 + _quintic(u, E1 - E0, h * f0, h * f1, h * h * s0, h * h * s1)
    use_log = (E0 > 1e-3 * E1) & (E1 > 0)
    return jnp.where(use_log, safe0 * jnp.exp(jnp.where(use_log, y, 0.0)), plain)


def _quintic(x: Array, rise: Array, p0: Array, p1: Array, c0: Array, c1: Array) -> Array:
    """The quintic with value 0 and `rise`, slopes p, curvatures c at x = 0 and 1."""
    a = rise - p0 - c0 / 2
    b = p1 - p0 - c0
    c = c1 - c0
    return x * (
        p0 + x * (c0 / 2 + x * ((10 * a - 4 * b + c / 2) + x * ((-15 * a + 7 * b - c) + x * (6 * a - 3 * b + c / 2))))
    )


_solve = program(solve_arrays)


def require_plain_sgd(system: Any) -> None:
    """Refuses what has no log-rate ODE: anything but one-pass SGD of a linear model, its optimisers included."""
    name = getattr(system, "name", None)
    if name != Spectral.name:
        raise InputError(
            "system", expected="a linear model under plain SGD, from spectral(...)",
            got=type(system).__name__ if name is None else f"one of the theory {name!r}", remedy="use odescale.integrate",
        )  # fmt: skip


def solve_spectral(
    system: Spectral,
    steps: Float[np.ndarray, " n"],
    *,
    rtol: float = 1e-5,
    states: bool = False,
    start: Float[np.ndarray, " modes"] | None = None,
    max_steps: int = MAX_STEPS,
    on_failure: str = "raise",
) -> SpectralCurve:
    """E(t) of the log-rate ODE of `Spectral` at increasing times, in milliseconds at a thousand modes. One unit of t: an SGD step.

    **Arguments**

    - `steps` (n,): SGD steps, increasing, >= 0; 0 is put in front of the integration, not of the outputs.
    - `rtol`: relative error of E. 1e-5 is good; 1e-10 works and takes ten times as many steps.
    - `states`: also e_k at the outputs; then the integrator steps onto every one of them.
    - `start` (modes,): e(0) >= 0 instead of the system's. `max_steps`: cap on attempted steps.
    - `on_failure`: "raise" `SolveError`, or "mask": NaN beyond the last accepted step, and the code.

    **Raises** `InputError`, `OutsideTheoryError` before compilation. **Failure regime**: a logged schedule that jumps at every
    step makes the integrator follow the jumps.
    """
    require_x64("solve_spectral")
    require_plain_sgd(system)
    rtol = float(rtol)
    check_tolerance(rtol, np.dtype(float))
    # Each one has its row of memory.
    max_steps = whole("max_steps", max_steps, 1, 10_000_000, remedy=f"the default is {MAX_STEPS}")
    times = np.asarray(steps, dtype=float)
    if (
        times.ndim != 1
        or times.size < 1
        or not np.all(np.isfinite(times))
        or np.any(np.diff(times) <= 0)
        or times[0] < 0
    ):
        raise InputError("steps", expected="finite increasing numbers >= 0, shape (n,)", got=steps, remedy="sort them")
    if times[-1] == 0:
        raise InputError("steps", expected="a step after 0", got=steps, remedy="ask for a later one")
    if on_failure not in ("raise", "mask"):
        raise InputError("on_failure", expected="raise or mask", got=on_failure, remedy="use raise")
    system.check(float(times[-1]))
    state = system.initial_state() if start is None else jnp.asarray(_start(start, system.eigenvalues.size))
    own = times if times[0] == 0 else np.concatenate([[0.0], times])
    began = time.perf_counter()
    out = jax.block_until_ready(_solve(system, state, jnp.asarray(own), jnp.asarray(rtol), states, max_steps))
    seconds = time.perf_counter() - began
    cut = slice(own.size - times.size, None)
    loss = np.asarray(out["loss"])[cut]
    curve = SpectralCurve(
        times,
        loss,
        loss + float(system.residual_noise),
        np.asarray(out["state"])[cut] if states else None,
        np.asarray(out["valid"])[cut],
        int(out["code"]),
        int(out["accepted"]),
        int(out["rejected"]),
        float(out["reached"]),
        seconds,
    )
    if curve.code != Code.OK and on_failure == "raise":
        raise SolveError(
            f"stopped after t = {curve.reached:.6g} of {times[-1]:.6g} SGD steps with {curve.accepted} accepted and "
            f"{curve.rejected} rejected steps: {explain(curve.code)}"
        )
    return curve


def _start(start: Any, modes: int) -> np.ndarray:
    values = np.asarray(start, dtype=float)
    if values.shape != (modes,) or not np.all(np.isfinite(values)) or np.any(values < 0):
        raise InputError(
            "start", expected=f"finite numbers >= 0, shape ({modes},)", got=start, remedy="e_k = lam_k rho_k"
        )
    return values
