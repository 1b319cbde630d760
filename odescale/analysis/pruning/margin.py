r"""A perceptron of maximum margin that learns a teacher from a pruned pool, exactly as d -> infinity.

Pool of P = pool d Gaussian examples, labels sign(B.x); a share `keep` stays, by the size of the teacher's margin t = |B.x|: the
easy ones (large t), the hard ones (small t), or at random. The student of unit norm and overlap R with the teacher has margins
above k on all kept examples as long as

    min over R of   a E_t[(c^2 + 1) Phi(c) + c phi(c)]  <=  1,      c = (k - R t)/sqrt(1 - R^2),   a = keep pool,

so that the largest k is where the minimum is 1; its R is the student's, error = arccos(R)/pi on fresh examples. Sources: Gardner,
J. Phys. A 21, 257 (1988); Sorscher et al. 2022, arXiv 2206.14486, whose probe is the teacher itself here.
"""

from __future__ import annotations

import equinox as eqx
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float
from scipy.optimize import brentq, minimize_scalar
from scipy.special import ndtr

from odescale.errors import InputError, require_number
from odescale.expectations.kept import RULES, Rule, kept_margins

ANGLES = 60
"""Angles of a first scan: the margin has several maxima over R."""
POOLS = (1.05, 200.0)
"""Pools, in examples per dimension, between which a flip is looked for."""


class MaxMargin(eqx.Module):
    """Students of maximum margin: `pool` (n,) examples per dimension, of which `keep` stay by `rule`.

    `overlap` (n,) R with the teacher, `margin` (n,) k, `error` (n,) = arccos(R)/pi: share of fresh examples that are mistaken.
    """

    pool: Float[np.ndarray, " n"]
    keep: float
    rule: Rule = eqx.field(static=True)
    overlap: Float[np.ndarray, " n"]
    margin: Float[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]

    def __str__(self) -> str:
        rows = [
            f"  {pool:.4g} examples per dimension: error {error:.5g}, R = {R:.6g}, margin {k:.4g}"
            for pool, error, R, k in zip(self.pool, self.error, self.overlap, self.margin, strict=True)
        ]
        return "\n".join([f"maximum margin, {self.rule} {self.keep:.0%} of the pool:", *rows])


class Advice(eqx.Module):
    """What to keep: `rule`, its `error`, that of the `other` rule of the two by margin and of keeping at `random`; the pool of the
    `flip` between them (None: none below `POOLS[1]`)."""

    rule: Rule = eqx.field(static=True)
    pool: float
    keep: float
    error: float
    other: float
    random: float
    flip: float | None

    def __str__(self) -> str:
        where = (
            "no flip was found"
            if self.flip is None
            else f"keep-hard wins beyond {self.flip:.4g} examples per dimension"
        )
        return (
            f"of {self.pool:.4g} examples per dimension keep the {self.rule} {self.keep:.0%}: error {self.error:.4g}, the other "
            f"rule {self.other:.4g}, at random {self.random:.4g}; {where}"
        )


def max_margin(pool: ArrayLike, keep: float, rule: Rule = "easy") -> MaxMargin:
    r"""Largest k with min_R a E_t[(c^2+1) Phi(c) + c phi(c)] = 1, a = keep pool: margin, overlap and error of the student.

    **Arguments**: `pool` > 0, examples per dimension before pruning, a number or (n,); `keep` in (0, 1]; `rule` easy, hard, random.
    **Returns** `MaxMargin`. **Raises** `InputError`.
    **Failure regime**: d -> infinity and exact margins; at d = 100 errors of simulations are within a few per cent (see
    docs/pruning.md). The flip is that of the largest margin alone: one pass of SGD
    (system `pruning`) turns elsewhere, or not at all.

    ```python
    from odescale.resources import max_margin
    print(max_margin([4.0, 16.0], 0.4, "hard"))
    ```
    """
    rule = _rule(rule)
    keep = require_number("keep", keep, open_=True)
    if keep > 1:
        raise InputError("keep", expected="a share in (0, 1]", got=keep, remedy="0.4 keeps four of ten")
    pools = np.atleast_1d(np.asarray(pool, float))
    if pools.ndim != 1 or not (np.isfinite(pools) & (pools > 0)).all():
        raise InputError("pool", expected="examples per dimension > 0, a number or (n,)", got=pool, remedy="e.g. 5")
    t, weight = kept_margins(keep, rule)
    found = np.array([_largest(keep * one, t, weight) for one in pools])
    R = np.cos(found[:, 0])
    return MaxMargin(pools, keep, rule, R, found[:, 1], found[:, 0] / np.pi)


def pruning_flips(keep: float) -> Float[np.ndarray, " k"]:
    """Every pool, in examples per dimension, at which keeping hard and keeping easy examples give the same error.

    Below the first one keep-easy is better, above it keep-hard; scanned between `POOLS` on a grid of 60 and polished to 1e-6.
    **Arguments**: `keep` in (0, 1). **Raises** `InputError`. Empty where there is none.
    """
    keep = require_number("keep", keep, 0.0, 1.0, open_=True)
    # Few kept examples per dimension say nothing of either rule.
    grid = np.geomspace(max(POOLS[0], 0.5 / keep), POOLS[1], 60)

    def gap(pool: float) -> float:
        return float(max_margin(pool, keep, "easy").error[0] - max_margin(pool, keep, "hard").error[0])

    values = np.array([gap(pool) for pool in grid])
    places = np.flatnonzero(np.sign(values[1:]) != np.sign(values[:-1]))
    return np.array([float(brentq(gap, grid[i], grid[i + 1], xtol=1e-9, rtol=1e-6)) for i in places])  # pyright: ignore[reportArgumentType]


def best_rule(pool: float, keep: float) -> Advice:
    """Keep easy examples below the flip, hard ones above it: the rule of the least error for a pool, with what the others cost.

    **Arguments**: `pool` > 0, examples per dimension before pruning; `keep` in (0, 1). **Returns** `Advice`.
    **Raises** `InputError`.
    """
    pool = require_number("pool", pool, open_=True)
    errors = {rule: float(max_margin(pool, keep, rule).error[0]) for rule in RULES}
    rule: Rule = "easy" if errors["easy"] <= errors["hard"] else "hard"
    flips = pruning_flips(keep)
    return Advice(
        rule, pool, float(keep), errors[rule], errors["hard" if rule == "easy" else "easy"], errors["random"],
        float(flips[0]) if flips.size else None,
    )  # fmt: skip


def _rule(rule: str) -> Rule:
    if rule not in RULES:
        raise InputError("rule", expected=f"one of {', '.join(RULES)}", got=rule, remedy="choose one")
    return rule


def _margins(angles: Float[np.ndarray, " m"], a: float, t: np.ndarray, weight: np.ndarray) -> Float[np.ndarray, " m"]:
    """k at which a E[(c^2+1) Phi(c) + c phi(c)] = 1 for every R = cos(angle).

    The expectation is convex and grows with k: Newton's steps from the right come down to it and never cross it.
    """
    R, s = np.cos(angles)[:, None], np.sin(angles)[:, None]
    k = R[:, 0] * t.max() + s[:, 0] * (3 + 1 / np.sqrt(a))
    for _ in range(100):
        c = (k[:, None] - R * t) / s
        inside, density = ndtr(c), np.exp(-(c**2) / 2) / np.sqrt(2 * np.pi)
        value = a * ((c**2 + 1) * inside + c * density) @ weight - 1
        step = value / (2 * a * ((c * inside + density) @ weight) / s[:, 0])
        k = k - step
        if np.all(np.abs(step) < 1e-14 * (1 + np.abs(k))):
            break
    return k


def _largest(a: float, t: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """(angle between student and teacher, margin) of the largest margin: a scan first, because there are several maxima."""
    angles = np.linspace(0, np.pi / 2, ANGLES + 1)[1:]
    best = int(np.argmax(_margins(angles, a, t, weight)))
    span = (angles[best - 1] if best else 1e-9, angles[min(best + 1, ANGLES - 1)])

    def lost(angle: float) -> float:
        return -float(_margins(np.array([angle]), a, t, weight)[0])

    found = minimize_scalar(lost, bounds=span, method="bounded", options={"xatol": 1e-11})
    return float(found.x), -float(found.fun)
