"""What an integration ended with: one small integer per member, and the sentence that says what to do."""

from __future__ import annotations

from enum import IntEnum

import diffrax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int


class Code(IntEnum):
    """0 is success; outputs beyond the time reached are NaN and masked."""

    OK = 0
    MAX_STEPS = 1
    IMPLICIT_FAILED = 2
    NOT_FINITE = 3
    STEP_TOO_SMALL = 4
    LOSS_NOT_POSITIVE = 5
    DIVERGED = 6


REMEDIES = {
    Code.OK: "finished",
    Code.MAX_STEPS: "step cap reached, probably stiff there: raise max_steps (--max-steps of solve and sweep), loosen rtol, "
    "or use an implicit solver",
    Code.NOT_FINITE: "the overlaps became infinite or NaN, probably unstable: lower learning_rate or raise batch",
    Code.IMPLICIT_FAILED: "the implicit equations did not converge: loosen rtol or try another solver",
    Code.STEP_TOO_SMALL: "the step size fell to rounding (divergence, or rtol too small): lower learning_rate or loosen rtol",
    Code.DIVERGED: "the overlaps run off to infinity there: the equations diverge where the gradient noise "
    "outgrows the drift: lower learning_rate, raise batch or stop earlier",
    Code.LOSS_NOT_POSITIVE: "the loss fell to its rounding error; the outputs beyond are masked: stop earlier",
}


def code_of(result: diffrax.RESULTS, finite: Bool[Array, ""]) -> Int[Array, ""]:
    """The code of a diffrax result; a state that is not finite says more than the solver's own verdict."""
    code = jnp.asarray(int(Code.IMPLICIT_FAILED))
    for name, meaning in (
        (diffrax.RESULTS.successful, Code.OK),
        (diffrax.RESULTS.event_occurred, Code.DIVERGED),  # said by `PatientController`; integrations have no events
        (diffrax.RESULTS.max_steps_reached, Code.MAX_STEPS),
        (diffrax.RESULTS.max_steps_rejected, Code.MAX_STEPS),
        (diffrax.RESULTS.dt_min_reached, Code.STEP_TOO_SMALL),
    ):
        code = jnp.where(result == name, int(meaning), code)
    return jnp.where(finite, code, int(Code.NOT_FINITE))


def explain(code: int | Int[Array | np.ndarray, ""]) -> str:
    """The sentence for a code."""
    return REMEDIES[Code(int(code))]
