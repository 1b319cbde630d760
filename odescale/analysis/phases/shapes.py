"""Sums of decaying terms as models of a loss curve: values, derivatives in their parameters and in time.

    exponential  a - k t                     power law  A - beta log(1 + t/tau)       cut-off   A - beta log(1 + t/tau) - k t
    stretched    a - (t/tau)^g               escape     a - 2 log(1 + e^(k (t - t_e)/2))       constant  c

are the logarithms of the terms; log L is the logarithm of their sum. tau is the start time of a power law: (t + tau)^-beta. An
escape waits near a saddle until t_e and then falls with rate k (a logistic overlap, squared).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import expit

TERMS: dict[str, tuple[str, ...]] = {
    "exponential": ("a", "log_k"),
    "power": ("a", "log_beta", "log_tau"),
    "cutoff": ("a", "log_beta", "log_tau", "log_k"),
    "stretched": ("a", "log_g", "log_tau"),
    "escape": ("a", "log_k", "t_e"),
    "constant": ("a",),
}

MODELS: dict[str, tuple[str, ...]] = {
    "exponential": ("exponential",),
    "exponential + floor": ("exponential", "constant"),
    "power law": ("power",),
    "power law + floor": ("power", "constant"),
    "power law with cut-off": ("cutoff",),
    "power law with cut-off + floor": ("cutoff", "constant"),
    "two exponentials": ("exponential", "exponential"),
    "two exponentials + floor": ("exponential", "exponential", "constant"),
    "exponential + power law": ("exponential", "power"),
    "exponential + power law + floor": ("exponential", "power", "constant"),
    "exponential + power law with cut-off": ("exponential", "cutoff"),
    "two power laws": ("power", "power"),
    "two power laws + floor": ("power", "power", "constant"),
    "stretched exponential": ("stretched",),
    "stretched exponential + floor": ("stretched", "constant"),
    "escape + floor": ("escape", "constant"),
    "escape + power law": ("escape", "power"),
    "two steps": ("escape", "escape", "constant"),
}
"""Name of a model: its terms."""


class Shape(NamedTuple):
    """The logarithm of one term at n times, with derivatives in its parameters (columns) and once and twice in time."""

    log: np.ndarray
    columns: tuple[np.ndarray | float, ...]


def size(terms: Sequence[str]) -> int:
    """Number of parameters of a sum of terms."""
    return sum(len(TERMS[term]) for term in terms)


def parameters(terms: Sequence[str], vector: Float[np.ndarray, " k"]) -> list[dict[str, float]]:
    """The parameters of each term by name, positive ones out of their logarithms."""
    out, place = [], 0
    for term in terms:
        names = TERMS[term]
        values = vector[place : place + len(names)]
        out.append(
            {
                name.removeprefix("log_"): float(np.exp(value)) if name.startswith("log_") else float(value)
                for name, value in zip(names, values, strict=True)
            }
        )
        place += len(names)
    return out


def evaluate(
    terms: Sequence[str], vector: Float[np.ndarray, " k"], t: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n k"]]:
    """log L and its derivatives in the parameters."""
    value, rows = evaluate_rows(terms, vector, t)
    return value, np.ascontiguousarray(rows.T)


def evaluate_rows(
    terms: Sequence[str], vector: Float[np.ndarray, " k"], t: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "k n"]]:
    """`evaluate` with a row of derivatives to a parameter: what a fit asks for some hundred thousand times."""
    shapes, place = [], 0
    for term in terms:
        width = len(TERMS[term])
        shapes.append(_shape(term, vector[place : place + width], t))
        place += width
    rows = np.empty((place, t.size))
    if len(shapes) == 1:
        for row, column in zip(rows, shapes[0].columns, strict=True):
            row[:] = column
        return shapes[0].log, rows
    top = shapes[0].log
    for shape in shapes[1:]:
        top = np.maximum(top, shape.log)
    parts = [np.exp(shape.log - top) for shape in shapes]
    total = sum(parts[1:], start=parts[0])
    place = 0
    for shape, part in zip(shapes, parts, strict=True):
        share = part / total
        for column in shape.columns:
            np.multiply(share, column, out=rows[place])
            place += 1
    return top + np.log(total), rows


def _shape(term: str, v: np.ndarray, t: np.ndarray) -> Shape:
    if term == "exponential":
        kt = np.exp(v[1]) * t
        return Shape(v[0] - kt, (1.0, -kt))
    if term in ("power", "cutoff"):
        beta, ratio = np.exp(v[1]), t * np.exp(-v[2])
        grown = -beta * np.log1p(ratio)
        slope = beta * ratio / (1 + ratio)
        if term == "power":
            return Shape(v[0] + grown, (1.0, grown, slope))
        kt = np.exp(v[3]) * t
        return Shape(v[0] + grown - kt, (1.0, grown, slope, -kt))
    if term == "stretched":
        g = np.exp(v[1])
        log_ratio = np.log(t) - v[2]
        fallen = np.exp(np.minimum(g * log_ratio, 300.0))
        return Shape(v[0] - fallen, (1.0, -fallen * g * log_ratio, g * fallen))
    if term == "escape":
        k = np.exp(v[1])
        u = 0.5 * k * (t - v[2])
        gate = expit(u)
        return Shape(v[0] - 2 * np.logaddexp(0.0, u), (1.0, -2 * gate * u, gate * k))
    return Shape(v[0] + np.zeros_like(t), (1.0,))


def derivatives(
    terms: Sequence[str], vector: Float[np.ndarray, " k"], t: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """(log L, p, q) at times t > 0, exact: p = -dlog L/dlog t, q = dlog p/dlog t."""
    logs, first, second = [], [], []
    place = 0
    for term, p in zip(terms, parameters(terms, vector), strict=True):
        width = len(TERMS[term])
        logs.append(_shape(term, vector[place : place + width], t).log)
        place += width
        slope, curve = np.zeros_like(t), np.zeros_like(t)
        if term in ("exponential", "cutoff"):
            slope = slope - p["k"]
        if term in ("power", "cutoff"):
            slope = slope - p["beta"] / (p["tau"] + t)
            curve = p["beta"] / (p["tau"] + t) ** 2
        if term == "stretched":
            slope = -p["g"] / p["tau"] * (t / p["tau"]) ** (p["g"] - 1)
            curve = slope * (p["g"] - 1) / t
        if term == "escape":
            gate = expit(0.5 * p["k"] * (t - p["t_e"]))
            slope, curve = -p["k"] * gate, -0.5 * p["k"] ** 2 * gate * (1 - gate)
        first.append(slope)
        second.append(curve)
    logs = np.stack(logs)
    top = logs.max(axis=0)
    shares = np.exp(logs - top)
    total = shares.sum(axis=0)
    shares = shares / total
    slope = (shares * np.stack(first)).sum(axis=0)
    curvature = (shares * (np.stack(second) + np.stack(first) ** 2)).sum(axis=0) - slope**2
    falling = slope < 0
    q = 1 + t * np.divide(curvature, slope, out=np.zeros_like(t), where=falling)
    return top + np.log(total), -t * slope, np.where(falling, np.clip(q, -1e3, 1e3), 0.0)


def bounds(terms: Sequence[str], t: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> np.ndarray:
    """(k, 2): where each parameter may lie for a curve y = log L at t; the rates and times reach well beyond the window."""
    first, wide = t[t > 0][0], np.ptp(y) + 10.0
    known = {
        "a": (y.min() - wide, y.max() + 2 * wide),
        "log_k": (np.log(1e-3 / t[-1]), np.log(30.0 / first)),
        "log_beta": (np.log(0.01), np.log(60.0)),
        "log_tau": (np.log(1e-3 * first), np.log(30.0 * t[-1])),
        "log_g": (np.log(0.05), np.log(0.9)),
        "t_e": (-t[-1], t[-1]),
    }
    return np.array([known[name] for term in terms for name in TERMS[term]])
