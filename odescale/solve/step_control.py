"""When to give an integration up: a state that runs off, a step that shrinks without end. Either takes a few steps to see.

A flow that reaches infinity at a finite time is followed there by ever smaller steps, thousands of them, and none of their numbers
is of use: overlaps run off where the gradient noise outgrows the drift.
"""

from __future__ import annotations

from typing import Any

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, Float

MOST_REJECTIONS = 40
"""Rejected steps in a row, each a fifth of the one before at best: 1e-28 of a step that was fine."""
SHORTEST_STEP = 450
"""In eps of the time passed: 1e-13 of it in double precision. A jump of the rate at rtol 1e-10 asks for 1e-11."""
AT_ONCE = 10.0
"""Growth while the time passed at most quadruples that is no power law of a training: overlaps of a classifier grow as t^(2/3)."""


class PatientController(diffrax.AbstractAdaptiveStepSizeController):
    """`controller`, which ends the run where patience is of no use.

    - `RESULTS.dt_min_reached`: after `MOST_REJECTIONS` rejections in a row, or when a rejected step was shorter than
      `SHORTEST_STEP` eps of the time passed since the start.
    - `RESULTS.event_occurred`: the largest number of the state exceeds `growth` times that of the start (at least 1), and
      `AT_ONCE` times its own value at a moment that the time passed has doubled since at most twice.
    """

    rtol: Any  # of the controller within: implicit solvers take their own tolerances from here
    atol: Any
    norm: Any
    controller: Any
    growth: float

    def wrap(self, direction: Any) -> PatientController:
        return patient(self.controller.wrap(direction), self.growth)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        first, inner = self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)
        size = jnp.maximum(_size(y0), 1.0)
        zero = jnp.zeros_like(jnp.asarray(t0))
        return first, (inner, jnp.asarray(t0), jnp.zeros((), jnp.int32), size, (zero, size), (zero, size))

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        inner, begin, rejected, start, older, newer = controller_state
        keep, next_t0, next_t1, jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, inner
        )
        rejected = jnp.where(keep, 0, rejected + 1).astype(jnp.int32)
        short = t1 - t0 < SHORTEST_STEP * jnp.finfo(jnp.result_type(t0)).eps * (t0 - begin)
        stuck = ~keep & (short | (rejected >= MOST_REJECTIONS))
        result = diffrax.RESULTS.where(stuck, diffrax.RESULTS.dt_min_reached, result)
        size, passed = _size(y1_candidate), t1 - begin
        off = keep & (size > self.growth * start) & (size > AT_ONCE * older[1])
        result = diffrax.RESULTS.where(off, diffrax.RESULTS.event_occurred, result)
        # Two moments are kept, each a doubling of the time passed after the one before.
        turn = keep & (passed >= 2 * newer[0])
        older = tuple(jnp.where(turn, new, old) for new, old in zip(newer, older, strict=True))
        newer = tuple(jnp.where(turn, now, new) for now, new in zip((passed, size), newer, strict=True))
        return keep, next_t0, next_t1, jump, (inner, begin, rejected, start, older, newer), result


def patient(controller: Any, growth: float) -> PatientController:
    """`controller` in a `PatientController`."""
    return PatientController(controller.rtol, controller.atol, controller.norm, controller, growth)


def _size(y: Array) -> Float[Array, ""]:
    return jnp.max(jnp.abs(y))
