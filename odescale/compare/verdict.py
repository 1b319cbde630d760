"""What a comparison concludes, and why: agrees, differs, undecided, or outside the theory."""

from __future__ import annotations

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from odescale.generated import attention as formulas
from odescale.networks.architecture import FieldNetwork
from odescale.solve.trajectory import Trajectory
from odescale.systems.attention import Attention

Status = Literal["agrees", "differs", "undecided", "outside the theory"]

SIGNIFICANT = 3.0


class Verdict(eqx.Module):
    """`status` and the sentences behind it."""

    status: Status = eqx.field(static=True)
    reasons: tuple[str, ...] = eqx.field(static=True)

    def __str__(self) -> str:
        return f"{self.status}: {'; '.join(self.reasons)}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"status": self.status, "reasons": list(self.reasons)}


def judge(
    t: Float[np.ndarray, " n"],
    ratio: Float[np.ndarray, " n"],
    stderr: Float[np.ndarray, " n"],
    z: Float[np.ndarray, " n"],
    *,
    tolerance: float,
    outside: tuple[str, ...] = (),
    kept: Bool[np.ndarray, " n"] | None = None,
) -> Verdict:
    """Differs where run/theory leaves [1 - tolerance, 1 + tolerance] by more than three standard errors of the data.

    **Arguments**: `ratio` run/theory and its `stderr` (statistical and numerical), `z` = (run - theory)/stderr, each
    (n,) at times `t` (tr Sigma SGD steps per unit); `tolerance` (0.1: the size of finite-size corrections that a mean-
    field theory is allowed at a few hundred dimensions); `outside`: reasons why the theory does not apply, which
    override the rest; `kept`: points that count.

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
        worst = int(np.argmax(np.where(significant, np.abs(np.log(ratio)), -1)))
        return Verdict(
            "differs",
            (
                f"{int(significant.sum())} of {int(inside.sum())} points lie outside 1 +- {tolerance:g} by more than "
                f"{SIGNIFICANT:g} standard errors, worst {ratio[worst]:.3f} at t = {t[worst]:.4g} (z = {z[worst]:.1f})",
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


def reasons_outside(system: Attention, theory: Trajectory, *, tokens: float, dimension: float) -> tuple[str, ...]:
    """Why the infinite-context mean-field theory does not describe a run with `tokens` and `dimension`; empty if it may.

    Checked along the theory's own trajectory, per head: `2 C_kk C_qq < 1`, where C is the covariance of the fields that
    enter the layer. Beyond it the softmax average has infinite relative variance, `E e^(s^2 C_kk)` diverges, a few tokens
    carry the whole average and no O(1/T) expansion exists. Also the size of the first correction,
    `1/(tokens sqrt(1 - 2 C_kk C_qq)) + 1/dimension`, which must stay below 1/4.
    """
    valid = np.flatnonzero(np.asarray(theory.valid))
    picks = valid[np.unique(np.linspace(0, valid.size - 1, 24).astype(int))]
    C = jnp.asarray(theory.overlaps[picks])
    R = jax.vmap(lambda y: system.couple(system.to_overlaps(y))[1])(jnp.asarray(theory.state[picks]))
    student, teacher = system.architecture.student, system.architecture.teacher
    loads = {"student": _loads(C, R, student), "teacher": _loads(C, R, teacher)}
    name, worst = max(loads.items(), key=lambda item: item[1])
    if worst >= 1:
        return (
            f"2 C_kk C_qq = {worst:.2f} >= 1 in the {name}: the logits are so large that a few tokens carry the softmax "
            "average, which an infinite context does not describe",
        )
    size = 1 / (tokens * np.sqrt(1 - worst)) + 1 / dimension
    if size > 0.25:
        return (
            f"tokens = {tokens:g} and dimension = {dimension:g} are too small: first correction of order {size:.2f}",
        )
    return ()


def _loads(C, R, network: FieldNetwork) -> float:
    """max over times and heads of 2 C_kk C_qq in the fields that enter the head's layer."""
    heads = [(depth, head) for depth, layer in enumerate(network.layers) for head in layer if head.query is not None]
    if not heads:
        return 0.0

    def at(C, R):
        maps = formulas.layers(C, R, network)
        sizes = []
        for depth, head in heads:
            covariance = maps[depth] @ C @ maps[depth].T
            sizes.append(2 * covariance[head.key, head.key] * covariance[head.query, head.query])
        return jnp.stack(sizes)

    return float(jnp.max(jax.vmap(at)(C, R)))
