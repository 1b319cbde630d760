"""Compute-optimal phases of power-law features: exponents as functions of (a, b), and the truncated modes that show them."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.errors import InputError, OutsideTheoryError, require_number
from odescale.generated import frontier as formulas
from odescale.precision import require_x64

PHASES = ("Ia", "II", "III")
BALANCE = {
    "Ia": ("bias", "width"),
    "II": ("bias", "features"),
    "III": ("noise", "features"),
}
"""The two terms that are equal at the optimum."""
_SUMMED = 64
"""Modes summed one by one; the others are an integral by the midpoint rule of Euler and Maclaurin."""
_NODES = 24
_PANELS = 24


class ComputeOptimal(eqx.Module):
    """L ~ C^-`exponent` at the optimal width d* ~ C^`width` and time t* ~ C^`time` (SGD steps), with C = d t.

    `phase` in Ia, II, III; `balance`: the two terms that are equal; `a`, `b` of the spectrum and `al` = b/2, `be` = (a - b)/2;
    `margin`: distance of (a, b) to the nearest boundary: corrections die slowly where it is small.
    """

    phase: str
    exponent: float
    width: float
    time: float
    balance: tuple[str, str]
    a: float
    b: float
    al: float
    be: float
    margin: float

    def __str__(self) -> str:
        return (
            f"phase {self.phase} ({' = '.join(self.balance)}): L ~ C^-{self.exponent:.5g}, d* ~ C^{self.width:.4g}, "
            f"t* ~ C^{self.time:.4g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def compute_optimal(
    a: float | None = None, b: float | None = None, *, al: float | None = None, be: float | None = None
) -> ComputeOptimal:
    r"""Phase and exponents of one-pass SGD on features of eigenvalues j^-b, target power lam_j theta_j^2 = j^-a, at C = d t.

        Ia   a < b + 1        p = (a - 1)/(b + 1)                   be < 1/2
        II   b + 1 < a < 2b   p = (a - 1)/a = (2al + 2be - 1)/(2(al + be))    1/2 < be < al
        III  a > 2b           p = 1 - 1/(2b) = 1 - 1/(4al)          be > al

    **Arguments**: `a` > 1 and `b` > 1; or `al` > 1/2 and `be` with b = 2 al, a = 2 al + 2 be. d random features, t in SGD steps.
    On a boundary the phases agree; the first is named. **Returns** `ComputeOptimal`.
    **Raises** `InputError`; `OutsideTheoryError` for b <= 1 (the trace grows with d: other phases) and for a <= 1 (infinite risk).
    **Failure regime**: at d <= 1000 measured exponents of random features are 0.02 to 0.1 off these limits.
    **Source**: Paquette, Paquette, Xiao & Pennington, arXiv 2405.15074; derivation `frontier`.
    """
    a, b = _spectrum(a, b, al, be)
    if b <= 1:
        raise OutsideTheoryError("b", expected="b > 1 (al > 1/2), phases Ia, II, III", got=b, remedy="raise b")
    if a <= 1:
        raise OutsideTheoryError("a", expected="a > 1, a target of finite power", got=a, remedy="raise a")
    phase = phase_name(a, b)
    formula = {"Ia": formulas.phase_ia, "II": formulas.phase_ii, "III": formulas.phase_iii}[phase]
    exponent, width, time = (float(x) for x in formula(a, b))  # type: ignore[arg-type]
    margin = min(abs(a - b - 1) / np.sqrt(2), abs(a - 2 * b) / np.sqrt(5))
    return ComputeOptimal(phase, exponent, width, time, BALANCE[phase], a, b, b / 2, (a - b) / 2, float(margin))


def phase_name(a: float, b: float) -> str:
    """Ia, II or III of (a, b), b > 1."""
    return "Ia" if a <= b + 1 else "II" if a <= 2 * b else "III"


def phase_map(
    a: Real[ArrayLike, " m"], b: Real[ArrayLike, " n"]
) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "n m"]]:
    """(exponent, phase number 0, 1, 2) over the grid of `a` (columns) and `b` (rows); NaN outside a > 1, b > 1."""
    A, B = np.meshgrid(np.asarray(a, float), np.asarray(b, float))
    inside = (A > 1) & (B > 1)
    which = np.where(A <= B + 1, 0.0, np.where(A <= 2 * B, 1.0, 2.0))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = np.choose(which.astype(int), [
            np.asarray(f(A, B)[0]) for f in (formulas.phase_ia, formulas.phase_ii, formulas.phase_iii)  # type: ignore[arg-type]
        ])  # fmt: skip
    return np.where(inside, values, np.nan), np.where(inside, which, np.nan)


def asymptotic_terms(a: float, b: float) -> dict[str, tuple[float, float]]:
    """Name -> (w, s) of the terms d^-w t^-s of the loss, without prefactors: bias, noise, width and, for a > b + 1, features.

    bias t^-(a-1)/b, noise t^-(2-1/b), width d^-min(a-1, b), features d^-1 t^-(1-1/b). Their sum at C = d t has the exponents of
    `compute_optimal`. **Raises** `InputError`, `OutsideTheoryError` as there.
    """
    compute_optimal(a, b)
    terms = {"bias": (0.0, (a - 1) / b), "noise": (0.0, 2 - 1 / b), "width": (min(a - 1, b), 0.0)}
    return {**terms, "features": (1.0, 1 - 1 / b)} if a > b + 1 else terms


class TruncatedModes(eqx.Module):
    r"""L(N, t) = sum_(j <= N) j^-a exp(-2 j^-b t) + sum_(j > N) j^-a: gradient flow on the first N modes.

    N (`width`) is real, N >= 64, t = eta * step. The first 64 modes are summed, the others integrated over j - 1/2 .. j + 1/2
    without gaps (error below 1e-5 of the term). Its frontier at C = N t has the exponent (a-1)/(b+1) at any a > 1, b > 0: no
    features mix. Call it with `width` and `time`; made for `numeric_frontier`.
    """

    a: Float[Array, ""]
    b: Float[Array, ""]

    def __call__(self, width: Real[ArrayLike, ""], time: Real[ArrayLike, ""]) -> Float[Array, ""]:
        j = jnp.arange(1.0, _SUMMED + 1)
        N, t = jnp.asarray(width, float), jnp.asarray(time, float)
        total = jnp.sum(j**-self.a * jnp.exp(-2 * t * j**-self.b))
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        low, high = jnp.log(_SUMMED + 0.5), jnp.log(N + 0.5)
        edges = jnp.linspace(0.0, 1.0, _PANELS + 1)
        u = (edges[:-1, None] + (edges[1:] - edges[:-1])[:, None] * (nodes + 1) / 2).reshape(-1)
        w = ((edges[1:] - edges[:-1])[:, None] * weights / 2).reshape(-1)
        x = jnp.exp(low + (high - low) * u)
        kept = jnp.sum(w * x ** (1 - self.a) * jnp.exp(-2 * t * x**-self.b)) * (high - low)
        return total + kept + (N + 0.5) ** (1 - self.a) / (self.a - 1)


def truncated_modes(a: float, b: float) -> TruncatedModes:
    """`TruncatedModes` of a spectrum j^-b and a target j^-a; a > 1, b > 0. **Raises** `InputError`, `PrecisionError`."""
    require_x64("truncated_modes")
    for name, value, least in (("a", a, 1.0), ("b", b, 0.0)):
        require_number(name, value, least, open_=True)
    return TruncatedModes(jnp.asarray(a, float), jnp.asarray(b, float))


def _spectrum(a: float | None, b: float | None, al: float | None, be: float | None) -> tuple[float, float]:
    pair, other = (a, b), (al, be)
    if (None in pair) == (None in other) or any(v is not None for v in (other if None not in pair else pair)):
        raise InputError("a, b", expected="both a and b, or both al and be", got=(a, b, al, be), remedy="give one pair")
    given = {"a": a, "b": b} if None not in pair else {"al": al, "be": be}
    for name, value in given.items():
        require_number(name, value, -math.inf)
    first, second = (float(v) for v in given.values())  # type: ignore[arg-type]
    return (first, second) if "a" in given else (2 * first + 2 * second, 2 * first)
