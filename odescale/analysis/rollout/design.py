"""What a table of speeds can tell by its design alone: which costs are free, what enters linearly, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from odescale.analysis.rollout.rounds import LEAST_DRAFT, NAMES, as_theta, log_time
from odescale.analysis.rollout.table import CostTable
from odescale.errors import InputError, require_number
from odescale.systems.rollout.cost import Acceptance

SHARPNESS = (0.5, 8.0)
"""Exponents q of the roofline that are tried: above 8 it is a corner, below 1 a pass takes longer than reading and computing one
after the other."""
FAR = 1e3
"""m_0 is looked for up to that many times the most tokens of one pass in the table: there T(m) is 1 to within 1e-3/q at q = 1."""


class Rows(NamedTuple):
    """The problem behind a table: y (n,), rows, P = 1 - Z Z^+, Z^+, groups of strategies without a known A."""

    y: np.ndarray
    table: CostTable
    project: np.ndarray
    inverse: np.ndarray
    linear: np.ndarray
    open_: list[tuple[float, float]]
    has_unit: bool

    def model(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        t = self.table
        log_tau, slopes = log_time(theta, t.batch, t.depth, t.verified)
        if t.measure == "tokens_per_second":
            return np.log(t.batch) - log_tau, -slopes
        plain, more = log_time(theta, t.batch, np.zeros_like(t.depth), t.verified)
        return plain - log_tau, more - slopes


def with_accepted(table: CostTable, accepted: Any) -> CostTable:
    """The table with what is known of A filled in where a row has none."""
    if accepted is None:
        return table
    empty = np.isnan(table.accepted)
    if isinstance(accepted, Acceptance):
        filled = np.asarray(accepted.tokens(table.depth))
    else:
        filled = np.full(len(table), np.nan)
        for (d, v), value in dict(accepted).items():
            here = (table.depth == d) & (table.verified == v)
            if not here.any():
                raise InputError(
                    "accepted", expected="strategies (depth, verified) of the table", got=(d, v), remedy="mend it"
                )
            filled[here] = require_number("accepted", value, 1.0, d + 1.0 + 1e-9)
    parts = table.batch, table.depth, table.verified, table.speed, np.where(empty, filled, table.accepted)
    return CostTable(*parts, measure=table.measure, notes=table.notes, source=table.source)


def held_rows(table: CostTable, hold_out: Mapping[str, float] | None) -> np.ndarray:
    """(n,) True for the rows that have all the values of `hold_out`; one that names no row is refused."""
    out = np.zeros(len(table), bool)
    for k, (name, value) in enumerate((hold_out or {}).items()):
        if name not in ("batch", "depth", "verified"):
            raise InputError("hold_out", expected="batch, depth or verified", got=name, remedy='e.g. {"batch": 8}')
        here = getattr(table, name) == value
        out = here if k == 0 else out & here
    if hold_out and not out.any():
        raise InputError("hold_out", expected="rows of the table", got=dict(hold_out), remedy="name values that it has")
    return out


def problem(table: CostTable) -> Rows:
    """The rows as a least-squares problem: what enters linearly, the unit and tokens that nobody measured, as a projection."""
    spec = table.depth > 0
    open_ = sorted(
        {(d, v) for d, v, a in zip(table.depth, table.verified, table.accepted, strict=True) if d > 0 and np.isnan(a)}
    )
    has_unit = table.measure == "tokens_per_second"
    groups = [spec & np.isnan(table.accepted) & (table.depth == d) & (table.verified == v) for d, v in open_]
    Z = (
        np.stack([*([np.ones(len(table))] if has_unit else []), *groups], axis=1)
        if has_unit or groups
        else np.zeros((len(table), 0))
    )
    inverse = np.linalg.pinv(Z) if Z.shape[1] else np.zeros((0, len(table)))
    y = np.log(table.speed) - np.log(np.where(np.isnan(table.accepted), 1.0, table.accepted))
    return Rows(y, table, np.eye(len(table)) - Z @ inverse, inverse, Z.astype(float), open_, has_unit)


def bounds(rows: Rows, known: dict[str, float], crowding: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """(low, high, starts) of theta, and what is held. Refuses what the design of the table leaves open, whatever it measured."""
    t, notes = rows.table, []
    for name, value in known.items():
        if name not in NAMES:
            raise InputError("known", expected=f"names of {', '.join(NAMES)}", got=name, remedy="mend the name")
        known[name] = require_number(name, value, open_=name in ("saturation", "sharpness"))
    spec = t.depth > 0
    if rows.has_unit and spec.all() and not {"fixed", "draft"} <= set(known):
        raise InputError(
            "table", expected="plain rows (depth 0) beside tokens per second", got="speculative rows alone",
            remedy="measure plain decoding at some batches: without it the unit of time and the fixed costs trade",
        )  # fmt: skip
    batches, depths = np.unique(t.batch), np.unique(t.depth[spec])
    if batches.size < 2 and not {"saturation", "context"} <= set(known):
        raise InputError(
            "batch", expected="two batches or more", got=f"batch {batches[0]:g} alone" if batches.size else "none",
            remedy="measure more, or declare known={saturation: ..., sharpness: ..., context: ...}",
        )  # fmt: skip
    if (
        spec.any()
        and len(rows.open_)
        and not (spec & np.isfinite(t.accepted)).any()
        and not {"fixed", "draft"} <= set(known)
    ):
        raise InputError(
            "accepted_length", expected="tokens of a round of at least one strategy", got="none",
            remedy="pass accepted={(depth, verified): A}: longer A with a larger fixed cost c_0 + c_1 d is nearly the same",
        )  # fmt: skip
    if not rows.has_unit and np.unique(t.verified).size < 2 and not {"saturation", "context"} & set(known):
        # Measured in benchmarks/rollout_costs.py: m_0 and k_v trade there, and tables in which they seem not to are often wrong.
        raise InputError(
            "table", expected="rows that tell saturation m_0 from the key/value cost k_v",
            got=f"speed-ups of V = {t.verified[0]:g} alone",
            remedy="measure plain rows up to the largest batch in tokens per second, or rows of another V, or declare one, "
            "known={'context': ...}",
        )  # fmt: skip
    most = float((t.batch * np.where(spec, t.verified, 1.0)).max())
    low = np.array([0.0, np.log(SHARPNESS[0]), 0.0, 0.0, LEAST_DRAFT, 0.0])
    high = np.array([np.log(FAR * most), np.log(SHARPNESS[1]), 10.0, 100.0, 100.0, 100.0])
    held = dict(known)
    if not spec.any():
        held = {"fixed": 0.0, "draft": 0.0, "crowding": 0.0} | held
    elif depths.size < 2 and not {"fixed", "draft"} & set(held):
        held["fixed"] = 0.0
        notes.append(
            f"one depth: c_0 = 0, and draft c_1 holds c_0 + c_1 d = c_1 {depths[0]:g} of depth {depths[0]:g} alone"
        )
    if not crowding and "crowding" not in held:
        held["crowding"] = 0.0
    elif crowding and batches.size < 2:
        raise InputError("crowding", expected="two batches", got="one", remedy="leave it at 0")
    if rows.open_:
        notes.append(f"A of {len(rows.open_)} strategies is fitted, one number each")
    if "crowding" in held and held["crowding"] > 0 and "draft" not in held:
        raise InputError(
            "known", expected="draft beside a crowding > 0", got="crowding alone", remedy="give both, or neither"
        )
    values = np.array([held.get(name, np.nan) for name in NAMES])
    fixed = np.isfinite(values)
    full = as_theta(np.where(fixed, values, [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]))
    low[fixed], high[fixed] = full[fixed], full[fixed]
    free = int((~fixed).sum()) + int(np.linalg.matrix_rank(rows.linear)) if rows.linear.size else int((~fixed).sum())
    if len(t) < free + 2:
        raise InputError(
            "table", expected=f"{free + 2} rows or more for {free} numbers", got=f"{len(t)} of them", remedy="add rows"
        )
    places = product((0.02 * most, 0.2 * most, 2 * most), (0.8, 1.5, 4.0), (0.005, 0.05), (0.02, 0.2))
    start = as_theta(np.array([[m, q, kv, 0.1, c1, 0.01 if crowding else 0.0] for m, q, kv, c1 in places]))
    return low, high, np.clip(start, low, high), notes
