"""Every solver by name with what goes with it: method, default tolerance, cap on steps, and how far its states can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optimistix
from jaxtyping import Array, Float

from odescale.errors import InputError, whole
from odescale.precision import check_tolerance
from odescale.solve.spectral.solver import RankOneSolver
from odescale.systems.base import Integration


class Solver(eqx.Module):
    """A solver as the verbs use it.

    - `method`: builds the diffrax solver; None for the structure-preserving one, which brings its own controller.
    - `rtol`, `max_steps`: defaults. `finer`: factor by which "check" tightens the tolerance.
    - `exact`: states are accurate enough for second derivatives along the flow, and events can be located on them.
    - `derivatives`: its states lie on the flow closely enough for derivatives at all; implicit steps leave fast modes a tolerance
      away from where the slow ones hold them: the loss does not feel it, its derivative multiplies it by the fast rates.
    - `special`: needs more of a system than a vector field; only those that name it in `Integration` can use it.
    """

    method: Callable[[], diffrax.AbstractSolver] | None = eqx.field(static=True)
    rtol: float = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    finer: float = eqx.field(static=True, default=100.0)
    exact: bool = eqx.field(static=True, default=True)
    derivatives: bool = eqx.field(static=True, default=True)
    special: str = eqx.field(static=True, default="")


SOLVERS: dict[str, Solver] = {
    "tsit5": Solver(diffrax.Tsit5, 1e-8, 100_000),
    "bosh3": Solver(diffrax.Bosh3, 3e-4, 100_000, exact=False),
    "dopri8": Solver(diffrax.Dopri8, 1e-10, 100_000),
    "kvaerno5": Solver(diffrax.Kvaerno5, 1e-8, 20_000),
    "structured": Solver(
        None,
        1e-3,
        5_000,
        finer=10.0,
        exact=False,
        derivatives=False,
        special="overlaps of an architecture, mode by mode",
    ),
    "rank_one": Solver(RankOneSolver, 1e-6, 20_000, special="modes coupled through one number (`spectral`)"),
}
"""tsit5, bosh3, dopri8: explicit; kvaerno5: stiff; structured: spectra, positive semi-definite overlaps; rank_one: linear modes."""


def ladder_of(integration: Integration, solver: str, label: str) -> tuple[str, ...]:
    """The solvers to try in turn: the system's own for "auto", else the one that was asked for, if the system can use it."""
    if solver == "auto":
        return integration.solvers
    require_solver(solver)
    special = SOLVERS[solver].special
    if special and solver not in (*integration.solvers, *integration.also):
        raise InputError(
            "solver", expected=f"one for any system: {solver} is for {special}", got=f"{solver} for {label}",
            remedy=f"leave it at auto ({', '.join(integration.solvers)})",
        )  # fmt: skip
    return (solver,)


def require_solver(solver: str) -> None:
    """Refuses a name that is no solver's."""
    if solver != "auto" and solver not in SOLVERS:
        raise InputError("solver", expected=f"one of auto, {', '.join(SOLVERS)}", got=solver, remedy="use auto")


def method_of(solver: str, integration: Integration) -> diffrax.AbstractSolver:
    """The diffrax solver."""
    if solver == "kvaerno5" and integration.time_scale is not None:
        # A slaved variable's relaxation is millions of times faster than the step: Newton's own last iterate is exact, but the
        # rounding of h f is not small against the tolerance of the step, and a chord does not converge at all.
        return diffrax.Kvaerno5(root_finder=optimistix.Newton(rtol=1e-8, atol=1e-8))
    build = SOLVERS[solver].method
    assert build is not None
    return build()


def step_tolerances(
    solver: str, rtol: Any, atol: Any, dtype: np.dtype, asked: Integration
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(rtol, atol) as arrays, so that no value of them compiles anew; defaults per solver, below-rounding ones refused."""
    own = asked.rtol if solver == asked.solvers[0] else None
    default = max(SOLVERS[solver].rtol if own is None else own, 20 * float(jnp.finfo(dtype).eps))
    relative = default if rtol is None else rtol
    check_tolerance(float(relative), dtype)
    absolute = float(relative) * asked.atol_share if atol is None else float(atol)
    if not (np.isfinite(absolute) and absolute >= 0):
        raise InputError("atol", expected="a number >= 0", got=atol, remedy="leave it at rtol/10000")
    return jnp.asarray(relative, dtype=dtype), jnp.asarray(absolute, dtype=dtype)


def cap_on_steps(solver: str, integration: Integration, max_steps: int | None) -> int:
    """The cap asked for, checked; else the solver's, lowered where long runs are those that diverge."""
    if max_steps is None:
        return min(SOLVERS[solver].max_steps, integration.most_steps or 10**9)
    return whole("max_steps", max_steps, 1, 2**31 - 1, remedy="leave it out for the default")
