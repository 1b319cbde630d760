"""What a comparison concludes, and why: agrees, differs, undecided, or outside the theory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float

Status = Literal["agrees", "differs", "undecided", "outside the theory"]

SIGNIFICANT = 3.0
ORDER: tuple[Status, ...] = ("outside the theory", "differs", "undecided", "agrees")
"""From the worst to the best."""


class Verdict(eqx.Module):
    """`status` and the sentences behind it."""

    status: Status = eqx.field(static=True)
    reasons: tuple[str, ...] = eqx.field(static=True)

    def __str__(self) -> str:
        return f"{self.status}: {'; '.join(self.reasons)}"

    def __repr__(self) -> str:
        return f"Verdict({self})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"status": self.status, "reasons": list(self.reasons)}


def judge(
    t: Float[np.ndarray, " n"],
    ratio: Float[np.ndarray, " n"],
    stderr: Float[np.ndarray, " n"],
    *,
    tolerance: float,
    outside: tuple[str, ...] = (),
    kept: Bool[np.ndarray, " n"] | None = None,
) -> Verdict:
    """Differs where run/theory leaves [1 - tolerance, 1 + tolerance] by more than three standard errors of the data.

    **Arguments**: `ratio` run/theory and its `stderr` (statistical and numerical), each (n,) at times `t` (in units of the
    system's clock); `tolerance` (0.1: the size of finite-size corrections that a mean-field theory is allowed at a few hundred
    dimensions); `outside`: reasons why the theory does not apply, which override the rest; `kept`: points that count.

    "undecided" when the error bars are wider than the tolerance: such a comparison could not have failed.
    """
    if outside:
        return Verdict("outside the theory", outside)
    inside = np.ones(t.size, bool) if kept is None else kept
    if not np.all(np.isfinite(ratio[inside])):
        return Verdict("differs", ("the theory has no value at some of the run's times",))
    beyond = inside & (np.abs(ratio - 1) > tolerance)
    significant = beyond & (np.abs(ratio - 1) - tolerance > SIGNIFICANT * stderr)
    span = f"run/theory from {ratio[inside].min():.3f} to {ratio[inside].max():.3f} over {int(inside.sum())} points"
    if significant.any():
        worst = int(np.argmax(np.where(significant, np.abs(ratio - 1), -1)))
        z = "" if stderr[worst] == 0 else f" (z = {(ratio[worst] - 1) / stderr[worst]:.1f})"
        return Verdict(
            "differs",
            (
                f"{int(significant.sum())} of {int(inside.sum())} points lie outside 1 +- {tolerance:g} by more than "
                f"{SIGNIFICANT:g} standard errors, worst {ratio[worst]:.3f} at t = {t[worst]:.4g}{z}",
                span,
            ),
        )
    loose = inside & (stderr > tolerance)
    if loose.any():
        where = f"t = {t[loose][0]:.4g} to {t[loose][-1]:.4g}"
        return Verdict("undecided", (f"error bars exceed {tolerance:g} at {where}: train more seeds", span))
    if beyond.any():
        return Verdict("agrees", (f"{span}; {int(beyond.sum())} outside 1 +- {tolerance:g}, none significantly",))
    return Verdict("agrees", (f"{span}, all within 1 +- {tolerance:g}",))


def judge_distance(
    distance: Float[np.ndarray, " n"], *, tolerance: float, outside: tuple[str, ...], kept: Bool[np.ndarray, " n"]
) -> Verdict:
    """Differs where a relative distance, which has no sign and no scatter of its own, exceeds the tolerance."""
    if outside:
        return Verdict("outside the theory", outside)
    worst = float(np.max(distance[kept]))
    words = f"largest relative distance {worst:.3g} (tolerance {tolerance:g})"
    return Verdict("agrees" if worst <= tolerance else "differs", (words,))


def worst(verdicts: Mapping[str, Verdict]) -> Verdict:
    """The worst of several verdicts by quantity, with the first reason of every one that is so."""
    status = ORDER[min(ORDER.index(one.status) for one in verdicts.values())]
    found = {name: one for name, one in verdicts.items() if one.status == status}
    if len({one.reasons for one in found.values()}) == 1 and (len(verdicts) == 1 or status == "outside the theory"):
        return Verdict(status, next(iter(found.values())).reasons)
    return Verdict(status, tuple(f"{name}: {one.reasons[0]}" for name, one in found.items()))
