"""Phases of a loss curve: which stretches are exponential, which are a power law, and the name of the whole.

    p = -dlog L/dlog t,    q = dlog p/dlog t        (q = 1: exponential, q = 0: power law, q = g: exp(-t^g))

A phase is a stretch on which q stays near one of these for long enough. Whatever has p and q, exactly or from a fitted model,
is cut here; `odescale.analysis.phases.contest` does the same for noisy points.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Float

from odescale.errors import InputError, require_number

PhaseKind = Literal["exponential", "power law", "stretched exponential", "plateau", "floor", "between"]

EXPONENTIAL_TO_POWER = "exponential, then power law"
CONSTANT = "constant"
NO_PHASE = "no phase long enough"


class Thresholds(eqx.Module):
    """How near q must be, and for how long, before a stretch is called a phase.

    - `near`: |q - 1| (exponential) or |q| (power law) up to this. 0.2.
    - `efolds`: fall log L(start)/L(end) from which an exponential counts (1.5), `efolds_established` (3).
    - `ratio`, `power_efolds`: ratio of the ends and fall from which a power law counts (3 and 0.5);
      `ratio_established`, `power_efolds_established` (10 and 1).
    - `steady`: a stretched exponential holds q in (near, 1 - near) within this of its middle over `ratio_stretched`, and falls
      `efolds`. 0.1 and 8: the hand-over of a power law in t + t0, q = t0/(t + t0), stays so for a ratio of 2.7 only.
    - `flat`: a plateau falls less than this over a ratio of 3 in t. 0.1 e-folds.
    - `points`: measured points that a phase must hold, where there are points. 5.
    """

    near: float = 0.2
    efolds: float = 1.5
    efolds_established: float = 3.0
    ratio: float = 3.0
    power_efolds: float = 0.5
    ratio_established: float = 10.0
    power_efolds_established: float = 1.0
    steady: float = 0.1
    ratio_stretched: float = 8.0
    flat: float = 0.1
    points: int = 5

    def __check_init__(self) -> None:
        for name in self.__dataclass_fields__:
            require_number(f"thresholds.{name}", getattr(self, name), open_=True)
        if not self.near < 0.5:
            raise InputError(
                "thresholds.near", expected="less than 0.5, or q = 1/2 is both", got=self.near, remedy="leave it out"
            )
        if self.ratio <= 1 or self.ratio_stretched <= 1:
            raise InputError("thresholds.ratio", expected="more than 1", got=self.ratio, remedy="leave it out")

    def __str__(self) -> str:
        return (
            f"exponential: |q - 1| <= {self.near:g} over {self.efolds:g} e-folds; "
            f"power law: |q| <= {self.near:g} over a ratio of {self.ratio:g} and {self.power_efolds:g} e-folds"
        )


class Phase(eqx.Module):
    """One stretch of a curve: `kind`, `start` and `end` in the curve's time, and how much of it there is.

    `efolds` = log L(start)/L(end); `ratio` = end/start (infinite from t = 0); `exponent` and `rate`: the medians of p and of
    r = p/t on it, r per unit of t; `counts`: long enough to be named; `established`: long enough to be relied on.
    """

    kind: PhaseKind
    start: float
    end: float
    efolds: float
    exponent: float
    rate: float
    counts: bool
    established: bool

    def __check_init__(self) -> None:
        if not self.start < self.end:
            raise InputError("Phase", expected="start < end", got=(self.start, self.end), remedy="sort the times")

    @property
    def ratio(self) -> float:
        return self.end / self.start if self.start > 0 else float("inf")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __str__(self) -> str:
        number = {"exponential": f", rate {self.rate:.3g}", "power law": f", exponent {self.exponent:.3g}"}.get(
            self.kind, ""
        )
        return f"{self.kind} from {self.start:.4g} to {self.end:.4g} ({self.efolds:.2f} e-folds{number})"


class Stretch(NamedTuple):
    """A `Phase` without its medians: a contest cuts a thousand stretches and shows three."""

    kind: PhaseKind
    start: float
    end: float
    efolds: float
    counts: bool
    established: bool


class Phases(eqx.Module):
    """The ordered phases of one curve and its name.

    `list`: without gaps from the first time to the last. `nearest`: the longest stretches that are near q = 1 and near q = 0,
    whether they count or not; a kind that does not occur is absent.
    """

    name: str
    list: tuple[Phase, ...]
    nearest: dict[str, Phase]
    thresholds: Thresholds

    def counted(self, *kinds: PhaseKind) -> tuple[Phase, ...]:
        """The phases that count, of these kinds (default: all)."""
        return tuple(phase for phase in self.list if phase.counts and (not kinds or phase.kind in kinds))

    @property
    def handover(self) -> tuple[Phase, Phase] | None:
        """The exponential and the power law that follows it with nothing but `between` in the middle, or None."""
        counted = self.counted()
        for first, second in zip(counted[:-1], counted[1:], strict=True):
            if first.kind == "exponential" and second.kind == "power law":
                return first, second
        return None

    @property
    def established(self) -> bool:
        """True when both phases of the hand-over are long enough to be relied on."""
        both = self.handover
        return both is not None and all(phase.established for phase in both)

    def why_not(self) -> str:
        """What is missing for an exponential phase followed by a power law, in one clause."""
        limits = self.thresholds
        counted = self.counted()
        if not any(phase.kind == "exponential" for phase in counted):
            most = self.nearest.get("exponential")
            seen = f"for {most.efolds:.2f} e-folds at the most" if most is not None else "nowhere"
            if most is not None and most.efolds >= limits.efolds:
                return f"|q - 1| <= {limits.near:g} for {most.efolds:.2f} e-folds on fewer than {limits.points} points"
            return f"|q - 1| <= {limits.near:g} {seen} ({limits.efolds:g} count)"
        if not any(phase.kind == "power law" for phase in counted):
            most = self.nearest.get("power law")
            seen = (
                "nowhere"
                if most is None
                else f"over a ratio of {most.ratio:.2g} and {most.efolds:.2f} e-folds at the most"
            )
            if most is not None and most.ratio >= limits.ratio and most.efolds >= limits.power_efolds:
                return f"|q| <= {limits.near:g} over a ratio of {most.ratio:.2g} on fewer than {limits.points} points"
            return f"|q| <= {limits.near:g} {seen} ({limits.ratio:g} and {limits.power_efolds:g} count)"
        return "no power law follows an exponential phase directly"

    def shortcoming(self) -> str:
        """What keeps a hand-over from being established, in one clause."""
        both, limits = self.handover, self.thresholds
        if both is None or self.established:
            return ""
        words = []
        if not both[0].established:
            words.append(f"an exponential over {both[0].efolds:.1f} e-folds, {limits.efolds_established:g} asked")
        if not both[1].established:
            asked = f"{limits.ratio_established:g} and {limits.power_efolds_established:g} asked"
            words.append(f"a power law over a ratio of {both[1].ratio:.1f} and {both[1].efolds:.1f} e-folds, {asked}")
        return f"named, not established ({'; '.join(words)})"

    def moved(self, origin: float) -> Phases:
        """The same phases on a clock that runs `origin` behind."""
        at = [eqx.tree_at(lambda x: (x.start, x.end), one, (one.start - origin, one.end - origin)) for one in self.list]
        return Phases(self.name, tuple(at), self.nearest, self.thresholds)

    def __str__(self) -> str:
        return f"{self.name}: " + "; ".join(str(phase) for phase in self.list if phase.counts)


def find_phases(
    t: Float[np.ndarray, " n"],
    exponent: Float[np.ndarray, " n"],
    index: Float[np.ndarray, " n"],
    log_loss: Float[np.ndarray, " n"],
    *,
    log_loss_start: float | None = None,
    thresholds: Thresholds | None = None,
    points: Float[np.ndarray, " m"] | None = None,
) -> Phases:
    """The phases of a curve given by p, q and log L on a grid, with the name of the whole.

    Exponential: a maximal stretch with |q - 1| <= near; power law: with |q| <= near; both with the lengths of `Thresholds`. What
    remains is a stretched exponential (q steady between), a plateau (hardly falls over a ratio of 3), a floor (a plateau at the
    end) or `between`. Edges are interpolated in log t.

    **Arguments**: `t (n,)` > 0 increasing and dense (20 points or more to a phase); `log_loss_start` = log L(0): an exponential
    that begins with the grid began at t = 0; `points (m,)`: the measured times, if the grid is that of a model fitted to them.
    **Returns** `Phases`. **Failure regime**: q that is noisy on the grid ends a phase at every excursion.
    """
    limits = Thresholds() if thresholds is None else thresholds
    return Cutter(np.asarray(t), exponent, index, log_loss, log_loss_start, limits, points).phases()


def _cut(cut: Cutter) -> tuple[str, list[Stretch], dict[str, Stretch]]:
    """(name, stretches without gaps, the longest near each of q = 1 and q = 0)."""
    limits, t = cut.limits, cut.t
    found = [
        *cut.band("exponential", 1 - limits.near, 1 + limits.near),
        *cut.band("power law", -limits.near, limits.near),
    ]
    nearest = {
        kind: max((x for x in found if x.kind == kind), key=lambda x: x.efolds) for kind in {x.kind for x in found}
    }
    found = [phase for phase in found if phase.counts]
    for more in (cut.stretched(), cut.plateaus()):
        for phase in more:
            found += cut.outside(phase, found)
    ordered = sorted(found, key=lambda phase: phase.start)
    filled: list[Stretch] = []
    last = float(t[0])
    for phase in ordered:
        if phase.start > last * (1 + 1e-9):
            filled.append(cut.phase("between", last, phase.start))
        filled.append(phase)
        last = phase.end
    if last < float(t[-1]) * (1 - 1e-9):
        filled.append(cut.phase("between", last, float(t[-1])))
    end = float(t[-1])
    if filled and filled[-1].kind == "plateau" and filled[-1].end >= end and len(filled) > 1:
        filled[-1] = filled[-1]._replace(kind="floor")
    fall = float(cut.start) - float(cut.y[-1])
    return _name(filled, fall, limits), filled, nearest


def _name(phases: Sequence[Stretch], fall: float, limits: Any) -> str:
    if fall < limits.flat:
        return CONSTANT
    falls = _falls(phases)
    if len(falls) > 1 and min(falls) >= limits.power_efolds:
        return "steps"
    kinds = tuple(phase.kind for phase in phases if phase.counts and phase.kind not in ("plateau", "floor"))
    floor = phases[-1].kind == "floor"
    known = {
        ("exponential", "power law"): EXPONENTIAL_TO_POWER,
        ("power law", "exponential"): "power law, then exponential cut-off",
        ("exponential", "exponential"): "two exponentials",
        ("power law", "power law"): "broken power law",
        ("exponential", "power law", "exponential"): "exponential, then power law, then exponential cut-off",
        (): NO_PHASE,
    }
    words = known.get(kinds, ", then ".join(kinds))
    if kinds == ("exponential",) and phases[-1].kind == "exponential":
        before = sum(phase.efolds for phase in phases[:-1])
        words = "exponential to the end" if before < limits.power_efolds else "exponential at the end"
    if floor:
        return f"{words}, then a floor" if kinds else "a fall to a floor"
    return words


def _falls(phases: Sequence[Stretch]) -> list[float]:
    """E-folds between plateaus: of what comes before the first, between two, and after the last."""
    falls = [0.0]
    for phase in phases:
        if phase.kind in ("plateau", "floor"):
            falls.append(0.0)
        else:
            falls[-1] += phase.efolds
    return [fall for fall in falls if fall > 0]


class Cutter:
    """A curve on its grid, cut into stretches."""

    def __init__(self, t, p, q, log_loss, log_loss_start, limits: Thresholds, points) -> None:
        self.t, self.x, self.p, self.q, self.y = t, np.log(t), np.asarray(p), np.asarray(q), np.asarray(log_loss)
        self.asked = limits
        # Plain attributes: a module looks each of its own up at length, and a contest cuts some fifty curves.
        self.limits = SimpleNamespace(**{name: getattr(limits, name) for name in limits.__dataclass_fields__})
        self.points = None if points is None else np.sort(points)
        self.start = self.y[0] if log_loss_start is None else float(log_loss_start)

    def phases(self) -> Phases:
        """See `find_phases`."""
        name, filled, nearest = _cut(self)
        longest = {kind: self.whole(stretch) for kind, stretch in nearest.items()}
        return Phases(name, tuple(self.whole(stretch) for stretch in filled), longest, self.asked)

    def kinds(self) -> tuple[str, tuple[str, ...]]:
        """(name, kinds of the phases that count), a third of the work: what a draw of a contest is asked for."""
        name, filled, _ = _cut(self)
        return name, tuple(stretch.kind for stretch in filled if stretch.counts)

    def stretches(self) -> tuple[str, list[Stretch]]:
        """(name, what the phases are made of), without their medians."""
        return _cut(self)[:2]

    def whole(self, stretch: Stretch) -> Phase:
        """The stretch with the medians of p and of p/t on it."""
        a, b = np.log(stretch.start), np.log(stretch.end)
        inside = np.concatenate([[a], self.x[(self.x > a) & (self.x < b)], [b]])
        p = np.interp(inside, self.x, self.p)
        return Phase(
            stretch.kind, stretch.start, stretch.end, stretch.efolds, float(np.median(p)), float(np.median(p / np.exp(inside))),
            stretch.counts, stretch.established,
        )  # fmt: skip

    def phase(self, kind: PhaseKind, start: float, end: float) -> Stretch:
        ya, yb = np.interp([np.log(start), np.log(end)], self.x, self.y)
        if kind == "exponential" and start <= self.t[0]:
            ya = self.start
        efolds, ratio = float(ya - yb), end / start
        held = True
        if self.points is not None:
            first, last = self.points.searchsorted(start), self.points.searchsorted(end, side="right")
            held = int(last - first) >= self.limits.points
        limits = self.limits
        long = {
            "exponential": (efolds >= limits.efolds, efolds >= limits.efolds_established),
            "power law": (
                ratio >= limits.ratio and efolds >= limits.power_efolds,
                ratio >= limits.ratio_established and efolds >= limits.power_efolds_established,
            ),
            "stretched exponential": (True, efolds >= limits.efolds_established),
            "plateau": (True, ratio >= limits.ratio_established),
        }.get(kind, (False, False))
        return Stretch(kind, float(start), float(end), efolds, bool(long[0] and held), bool(long[1] and held))

    def band(self, kind: PhaseKind, low: float, high: float) -> list[Stretch]:
        """Maximal stretches with low <= q <= high, edges interpolated in log t."""
        inside = (self.q >= low) & (self.q <= high) & (self.p > 0)
        out = []
        for first, last in _runs(inside):
            a, b = self.x[first], self.x[last]
            if first > 0:
                a = self._edge(first - 1, first, low, high)
            if last < self.x.size - 1:
                b = self._edge(last + 1, last, low, high)
            if b > a:
                out.append(self.phase(kind, float(np.exp(a)), float(np.exp(b))))
        return out

    def _edge(self, outer: int, inner: int, low: float, high: float) -> float:
        level = low if self.q[outer] < low else high
        span = self.q[inner] - self.q[outer]
        share = 0.0 if span == 0 else np.clip((level - self.q[outer]) / span, 0.0, 1.0)
        return float(self.x[outer] + share * (self.x[inner] - self.x[outer]))

    def stretched(self) -> list[Stretch]:
        """The longest stretches on which q lies in (near, 1 - near) and within `steady` of its middle."""
        limits, out = self.limits, []
        inside = (self.q > limits.near) & (self.q < 1 - limits.near) & (self.p > 0)
        for first, last in _runs(inside):
            if self.x[last] - self.x[first] < np.log(limits.ratio_stretched):
                continue
            best = self._steadiest(first, last)
            start, end = self.t[best[0]], self.t[best[1]]
            if end >= limits.ratio_stretched * start:
                phase = self.phase("stretched exponential", float(start), float(end))
                if phase.efolds >= limits.efolds and phase.counts:
                    out.append(phase)
        return out

    def _steadiest(self, first: int, last: int) -> tuple[int, int]:
        """The longest part of [first, last] on which q stays within twice `steady`: a window that carries its extremes along."""
        q, x, most = self.q.tolist(), self.x.tolist(), 2 * self.limits.steady
        best, left = (first, first), first
        highest, lowest = deque[int](), deque[int]()
        for right in range(first, last + 1):
            while highest and q[highest[-1]] <= q[right]:
                highest.pop()
            while lowest and q[lowest[-1]] >= q[right]:
                lowest.pop()
            highest.append(right)
            lowest.append(right)
            while q[highest[0]] - q[lowest[0]] > most:
                left += 1
                if highest[0] < left:
                    highest.popleft()
                if lowest[0] < left:
                    lowest.popleft()
            if x[right] - x[left] > x[best[1]] - x[best[0]]:
                best = (left, right)
        return best

    def plateaus(self) -> list[Stretch]:
        """Unions of windows [t, 3 t] over which the loss falls less than `flat`."""
        width = np.log(3.0)
        fits = self.x + width <= self.x[-1] + 1e-12
        later = np.interp(self.x + width, self.x, self.y)
        flat = fits & (self.y - later < self.limits.flat)
        out = []
        for first, last in _runs(flat):
            end = min(float(np.exp(self.x[last] + width)), float(self.t[-1]))
            if last + 1 < self.x.size and self.x[last + 1] + width > self.x[-1]:
                end = float(self.t[-1])
            out.append(self.phase("plateau", float(self.t[first]), end))
        return out

    def outside(self, phase: Stretch, others: Sequence[Stretch]) -> list[Stretch]:
        """What of a stretch lies outside the phases already found, if that is a ratio of 3 at least."""
        pieces = [(phase.start, phase.end)]
        for other in others:
            pieces = [
                piece
                for a, b in pieces
                for piece in ((a, min(b, other.start)), (max(a, other.end), b))
                if piece[1] > piece[0]
            ]
        return [self.phase(phase.kind, a, b) for a, b in pieces if b >= 3 * a * (1 - 1e-9)]


def _runs(inside: np.ndarray) -> list[tuple[int, int]]:
    """(first, last) of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(int), [0]])))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]
