"""`plot`: one verb for every result. A table from the name of a record's class to the functions that draw it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from odescale.errors import InputError

DRAWINGS: dict[str, dict[str, str | Callable[..., Any]]] = {
    "Trajectory": {
        "loss": "trajectory:plot_loss",
        "exponent": "trajectory:plot_exponent",
        "index": "trajectory:plot_index",
        "overlaps": "trajectory:plot_overlaps",
        "law": "trajectory:plot_law",
        "phases": "peaked:plot_phase_diagram",
        "drafter": "rollouts:plot_drafter",
    },
    "dict": {
        "loss": "trajectory:plot_loss",
        "exponent": "trajectory:plot_exponent",
        "index": "trajectory:plot_index",
        "law": "trajectory:plot_law",
    },
    "list": {"loss": "logs:plot_curves"},
    "tuple": {"loss": "logs:plot_curves"},
    "LocalExponent": {"exponent": "trajectory:plot_exponent", "index": "trajectory:plot_index"},
    "Transition": {"phases": "trajectory:plot_transition"},
    "Run": {"loss": "trajectory:plot_run"},
    "Comparison": {"comparison": "comparison:plot_comparison", "overlaps": "comparison:plot_compared_overlaps"},
    "KernelRegime": {"error": "comparison:plot_regime"},
    "TrainingLog": {"loss": "logs:plot_curves"},
    "LossCurve": {"loss": "logs:plot_curves"},
    "LogReport": {"loss": "logs:plot_report"},
    "LawFit": {"residuals": "logs:plot_residuals"},
    "RunForecast": {"forecast": "logs:plot_forecast"},
    "Forecast": {"forecast": "logs:plot_forecasts"},
    "BestSchedule": {"schedule": "logs:plot_schedule"},
    "TableFit": {"isoflop": "tables:plot_isoflop", "residuals": "tables:plot_table_residuals"},
    "TableReport": {"frontier": "tables:plot_best_sizes"},
    "RolloutTimes": {"rollout": "rollouts:plot_rollout"},
    "DrafterFit": {"kappa": "rollouts:plot_drafter_fit"},
    "PolicyTable": {"gain": "rollouts:plot_policy"},
    "PolicyMap": {"map": "rollouts:plot_policy_map"},
    "Plan": {"worth": "plans:plot_plan"},
    "Frontier": {"frontier": "frontier:plot_frontier"},
    "FrontierComparison": {"frontier": "frontier:plot_both_frontiers"},
    "IsolatedLaw": {"law": "frontier:plot_isolated_law"},
    "EscapeTable": {"loss": "escapes:plot_escapes"},
}
"""Name of a class -> kind -> where the drawing is, the first kind being drawn unless asked."""


def plot(result: Any, axes: Any = None, *, kind: str | None = None, **options: Any) -> Any:
    """Draws a result: axes, units and labels come from the record itself.

    **Arguments**

    - `result`: a trajectory, a sweep (its members as a family), a run, a comparison, a transition, a log, a law fit, a forecast, a
      frontier, ...; a dict of trajectories and runs by label, or a list of logs, drawn together. `kinds()` lists all.
    - `axes`: where to draw. None makes a figure, with all panels that the picture has; a `Figure` is filled with these; one `Axes`
      gets the main panel.
    - `kind`: of several pictures of one record, such as "loss", "exponent", "index", "overlaps" of a trajectory.
    - `options`: of that picture; `help(odescale.plot.trajectory.plot_loss)` and so on name them.

    Time axes are in the record's unit of t, with SGD steps on the upper axis. **Returns** the axes, or a dict of them by name.
    **Raises** `InputError` for a result without a picture, a kind or an option that it does not have.
    """
    found = _drawings(result)
    if not found:
        raise InputError(
            "result", expected=f"a record with a picture: {', '.join(sorted(DRAWINGS))}", got=type(result).__name__,
            remedy="or odescale.plot.register(type, function)",
        )  # fmt: skip
    kind = next(iter(found)) if kind is None else kind
    if kind not in found:
        raise InputError("kind", expected=f"one of {', '.join(found)}", got=kind, remedy="leave it out for the first")
    draw = found[kind]
    if isinstance(draw, str):
        module, _, name = draw.partition(":")
        draw = getattr(import_module(f"odescale.plot.{module}"), name)
    parameters = inspect.signature(draw).parameters
    known = list(parameters)[2:]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in options:
            if name not in known:
                raise InputError(name, expected=f"an option of this picture: {', '.join(known)}", got=options[name],
                                 remedy="drop it")  # fmt: skip
    for name in known:
        if parameters[name].default is inspect.Parameter.empty and parameters[name].kind is not inspect.Parameter.VAR_KEYWORD \
                and name not in options:  # fmt: skip
            raise InputError(name, expected="to be given for this picture", got=None, remedy=f"plot(..., {name}=...)")
    return draw(result, axes, **options)


def register(result: type | str, function: Callable[..., Any], kind: str = "own") -> None:
    """Makes `plot` draw records of a class (or of its name) by `function(result, axes, **options)`, first of their kinds.

    It returns the axes; `axes` is None, an `Axes` or a `Figure`.
    """
    name = result if isinstance(result, str) else result.__name__
    if not callable(function):
        raise InputError("function", expected="function(result, axes, **options)", got=function, remedy="pass one")
    others = {k: draw for k, draw in DRAWINGS.get(name, {}).items() if k != kind}
    DRAWINGS[name] = {kind: function, **others}


def kinds() -> dict[str, tuple[str, ...]]:
    """Every class that has pictures, with their kinds, the default first."""
    return {name: tuple(drawings) for name, drawings in DRAWINGS.items()}


def _drawings(result: Any) -> dict[str, Any]:
    """By the first class of the record's ancestry that the table names."""
    return next((DRAWINGS[one.__name__] for one in type(result).__mro__ if one.__name__ in DRAWINGS), {})
