"""Covariance spectra of the tokens: isotropic, power law in log bins, or a list; and overlaps with a source condition.

    (1/N) sum over modes of lam f(lam)  =  sum_k w_k lam_k f(lam_k),      N = tr Sigma,      sum_k w_k lam_k = 1

A power law over 1e8 modes is carried by some 150 bins. A bin keeps the number of its modes and their trace exactly;
everything smooth in log lam is then right to second order in the bin's width.
"""

from __future__ import annotations

import equinox as eqx
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from odescale.errors import InputError, require_number, whole


class Spectrum(eqx.Module):
    """Eigenvalues of the token covariance with the weights of the mean-field sums.

        C = sum_k w_k lam_k q_k,      R = sum_k w_k q_k,      w_k = multiplicity_k / N,      N = sum multiplicity_k lam_k

    One unit of t is N SGD steps: N = d for isotropic tokens with unit variance, N = 1 (t = steps) for a power law
    normalised to trace 1.

    **Fields**

    - `eigenvalues`: lam_k, the mean of the bin's eigenvalues, positive, shape (modes,).
    - `weights`: w_k = multiplicity_k / N, shape (modes,).
    - `multiplicity`: how many eigenvalues the bin holds, shape (modes,).
    - `trace`: N = tr Sigma.
    - `squares`: sum of lam^2 over the bin, shape (modes,), exact, for the effective dimension.
    """

    eigenvalues: Float[np.ndarray, " modes"]
    weights: Float[np.ndarray, " modes"]
    multiplicity: Float[np.ndarray, " modes"]
    squares: Float[np.ndarray, " modes"]
    trace: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        for name in ("eigenvalues", "multiplicity"):
            values = np.asarray(getattr(self, name))
            if values.ndim != 1 or values.size == 0 or not np.all(np.isfinite(values)) or np.any(values <= 0):
                raise InputError(
                    name, expected="positive finite numbers, shape (modes,)", got=values, remedy="drop zeros"
                )
        for name in ("weights", "multiplicity", "squares"):
            if np.shape(getattr(self, name)) != np.shape(self.eigenvalues):
                raise InputError(
                    name,
                    expected=f"shape {np.shape(self.eigenvalues)}, one per eigenvalue",
                    got=np.shape(getattr(self, name)),
                    remedy="give one per eigenvalue",
                )
        total = float(np.sum(np.asarray(self.weights) * np.asarray(self.eigenvalues)))
        if abs(total - 1.0) > 1e-10:
            raise InputError(
                "weights", expected="sum of weight * eigenvalue = 1", got=total, remedy="divide by the trace"
            )

    @property
    def modes(self) -> int:
        """Number of bins that are integrated."""
        return int(np.size(self.eigenvalues))

    @property
    def dimension(self) -> float:
        """d, the number of eigenvalues before binning."""
        return float(np.sum(self.multiplicity))

    @property
    def effective_dimension(self) -> float:
        """d_eff = (tr Sigma)^2 / tr Sigma^2: finite-size corrections are of order 1/d_eff, not 1/d."""
        return self.trace**2 / float(np.sum(self.squares))

    @property
    def ranks(self) -> Float[np.ndarray, " edges"]:
        """First rank (from 1) of every bin and one past the last: bin j holds the ranks [ranks[j], ranks[j+1])."""
        return np.concatenate([[1.0], 1.0 + np.cumsum(np.asarray(self.multiplicity))])


def isotropic(dimension: float) -> Spectrum:
    """Sigma = I in `dimension` dimensions: one mode, lam = 1, w = 1, N = d, one unit of t is d SGD steps."""
    require_number("dimension", dimension, 1e-100, 1e100)
    one = np.ones(1)
    return Spectrum(one, one, one * float(dimension), one * float(dimension), float(dimension))


def listed(eigenvalues: object) -> Spectrum:
    """The spectrum with exactly these eigenvalues, each once, in decreasing order; N is their sum.

    `eigenvalues`: positive finite numbers, shape (d,). One unit of t is N = sum of them SGD steps.
    """
    values = np.sort(np.asarray(eigenvalues, dtype=float).ravel())[::-1]
    # Their squares and the inverse of their sum are needed too.
    if values.size == 0 or not np.all((values > 1e-150) & (values < 1e150)):
        raise InputError(
            "eigenvalues", expected="positive finite numbers, 1e-150 to 1e150", got=eigenvalues,
            remedy="drop zeros and NaN",
        )  # fmt: skip
    trace = float(values.sum())
    return Spectrum(values.copy(), np.ones_like(values) / trace, np.ones_like(values), values**2, trace)


def power_law(exponent: float, modes: float, *, trace: float | None = 1.0, per_decade: int = 20) -> Spectrum:
    """lam_k ~ k^-a for k = 1..modes, in log bins, normalised to a trace.

    Ranks below `per_decade` / 2 stay single; above, bins of equal width in log k. Conserved exactly (1e-14): the
    number of modes and the trace, bin by bin and in sum, and sum lam^2; a bin's eigenvalue is the mean of its lam.

    **Arguments**

    - `exponent`: capacity exponent a > 0, dimensionless. Above 1 the trace converges.
    - `modes`: number of eigenvalues d (an integer up to 1e15). The loss feels the cut-off when
      `learning_rate * lam_d * t` reaches 1, and the missing tail long before: at source exponent s a share
      `(k_t / d)^(s a)` of the loss at the time when rank k_t is learnt. For 0.3 % at a = 1.5, s = .5 keep 3 decades.
    - `trace`: N = tr Sigma. 1 makes one unit of t one SGD step; `None` gives N = d, one unit of t is d steps.
    - `per_decade`: bins per decade of k. 20 is good (a bin spans 12 % in k, loss right to 0.1 %).
    """
    require_number("exponent", exponent, open_=True)
    whole("modes", modes, most=1e15, remedy="1e8 is a good value")
    whole("per_decade", per_decade, remedy="20 is a good value")
    if trace is not None:
        require_number("trace", trace, 1e-100, 1e100)
    edges = _log_edges(float(modes), int(per_decade))
    counts = np.diff(edges)
    sums = power_sums(exponent, edges)
    total = float(trace) if trace is not None else float(modes)
    scale = total / sums.sum()
    return Spectrum(
        eigenvalues=scale * sums / counts,
        weights=counts / total,
        multiplicity=counts,
        squares=scale**2 * power_sums(2 * exponent, edges),
        trace=total,
    )


def power_sums(exponent: float, edges: object) -> Float[np.ndarray, " bins"]:
    """sum of k^-exponent over edges[j] <= k < edges[j+1], for integer edges >= 1: exact to rounding for any length.

    Term by term before k = 32 and for up to 64 terms, else Euler-Maclaurin (next term below 1e-15 of the sum).
    """
    edges = np.asarray(edges, dtype=float)
    return np.array([_power_sum(exponent, a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)])


def source_profile(spectrum: Spectrum, source: float, capacity: float) -> Float[np.ndarray, " modes"]:
    """g_k with `lam_k g_k ~ k^(-s a - 1)` and `sum_k w_k lam_k g_k = 1`: the shape of beta_k^2 under the source condition.

    The bin's value is such that its part of the field covariance, `w_k lam_k g_k`, is the exact sum over its ranks.

    **Arguments**

    - `source`: s > 0. A linear student's loss falls as t^-s while noise does not limit it (`s < 2 - 1/a`).
    - `capacity`: a > 0, the exponent of the spectrum lam ~ k^-a.
    """
    for name, value in (("source", source), ("capacity", capacity)):
        if not 0 < float(value) < np.inf:
            raise InputError(name, expected="a positive number", got=value, remedy="s = .5, a = 1.5 are good values")
    share = power_sums(source * capacity + 1.0, spectrum.ranks)
    share /= share.sum()
    return share / (np.asarray(spectrum.weights) * np.asarray(spectrum.eigenvalues))


def source_overlaps(
    spectrum: Spectrum, covariance: Real[ArrayLike, "P P"], *, source: float, capacity: float
) -> Float[np.ndarray, "modes P P"]:
    """Initial overlaps q_k(0) = g_k C0: every row carries the same source condition, the fields start with covariance C0.

        lam_k g_k ~ k^(-s a - 1),      sum_k w_k lam_k q_k(0) = C0

    Rows drawn mode by mode as Gaussians with covariance `g_k C0` have these overlaps: a teacher of any geometry in the
    fields with a tail of risk `lam_k b^T q_k b ~ k^(-s a - 1)` whatever combination b of the rows the loss looks at. That
    is why the exponent of the loss is read off cleanly: attention moves b and the clock, never the profile.

    **Arguments**

    - `covariance`: C0, positive semi-definite (P, P).
    - `source`, `capacity`: s and a, see `source_profile`.
    """
    C0 = np.asarray(covariance, dtype=float)
    if C0.ndim != 2 or C0.shape[0] != C0.shape[1] or not np.all(np.isfinite(C0)):
        raise InputError("covariance", expected="a finite (P, P) matrix", got=C0.shape, remedy="pass C0")
    floor = -1e-12 * max(float(np.trace(C0)), 1e-300)
    if not np.allclose(C0, C0.T, atol=-floor, rtol=1e-12) or float(np.linalg.eigvalsh(0.5 * (C0 + C0.T)).min()) < floor:
        raise InputError(
            "covariance", expected="symmetric positive semi-definite", got=C0, remedy="build it as rows @ rows.T"
        )
    return source_profile(spectrum, source, capacity)[:, None, None] * C0


def _log_edges(modes: float, per_decade: int) -> Float[np.ndarray, " edges"]:
    ratio = 10.0 ** (1.0 / per_decade)
    edges = [1.0]
    while edges[-1] < modes + 1:
        edges.append(min(max(edges[-1] + 1, float(np.round(edges[-1] * ratio))), modes + 1))
    return np.array(edges)


def _power_sum(exponent: float, first: float, past: float) -> float:
    if past - first <= 64:
        return float(np.sum(np.arange(first, past) ** -exponent))
    head = 0.0
    if first < 32:
        stop = min(past, 32.0)
        head = float(np.sum(np.arange(first, stop) ** -exponent))
        first = stop
    x, y = first, past

    def powers(s: float) -> float:
        return x**-s - y**-s

    log = np.log1p((y - x) / x)
    s1 = 1.0 - exponent
    # expm1 keeps the difference of two nearly equal powers
    integral = log if s1 == 0 else x**s1 * np.expm1(s1 * log) / s1
    s = exponent
    terms = powers(s) / 2 + s / 12 * powers(s + 1) - s * (s + 1) * (s + 2) / 720 * powers(s + 3)
    terms += s * (s + 1) * (s + 2) * (s + 3) * (s + 4) / 30240 * powers(s + 5)
    return head + float(integral) + terms
