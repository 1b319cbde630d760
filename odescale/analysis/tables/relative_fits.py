"""What follows from fits of the relatives: Kaplan's Nc and Dc, the best batch at given tokens."""

from __future__ import annotations

import equinox as eqx
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from odescale.analysis.tables.relatives import KAPLAN_SIZE
from odescale.analysis.tables.result import TableFit, quantiles
from odescale.errors import InputError


class KaplanScales(eqx.Module):
    """Nc and Dc of L(N) = (Nc/N)^alpha_N, L(D) = (Dc/D)^alpha_D, with intervals at the fit's level."""

    params_scale: float
    params_interval: tuple[float, float]
    tokens_scale: float
    tokens_interval: tuple[float, float]


def kaplan_scales(fit: TableFit) -> KaplanScales:
    """Nc = 1e9 Nc_r^(alpha_D/alpha_N) and Dc. **Errors**: `InputError` for a fit of another form."""
    if fit.form.name != "kaplan":
        raise InputError(
            "fit", expected="a fit of the form kaplan", got=fit.form.name, remedy='fit_table(table, "kaplan")'
        )
    rows = np.concatenate([fit.vector[None], fit.draws])
    with np.errstate(divide="ignore"):
        logs = np.stack(
            [np.log(KAPLAN_SIZE) + np.log(rows[:, 0]) * rows[:, 3] / rows[:, 2], np.log(rows[:, 1])], axis=1
        )
    low, high = quantiles(logs[1:], fit.level)
    n, d = np.exp(logs[0])
    return KaplanScales(
        float(n),
        (float(np.exp(low[0])), float(np.exp(high[0]))),
        float(d),
        (float(np.exp(low[1])), float(np.exp(high[1]))),
    )


class BestBatch(eqx.Module):
    """b* at given tokens with its interval: `batch`, `low`, `high` (n,); b* ~ D^`exponent`, with interval."""

    batch: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]
    exponent: float
    interval: tuple[float, float]


def best_batch(fit: TableFit, tokens: ArrayLike) -> BestBatch:
    """b* = (gamma C/(beta B))^(1/(beta + gamma)) D^(beta/(beta + gamma)) of a fit of `steps_batch`: dL/db = 0 at S = D/b.

    **Errors**: `InputError` for another form, or where beta or gamma is unidentified.
    """
    if fit.form.name != "steps_batch":
        raise InputError(
            "fit", expected="a fit of the form steps_batch", got=fit.form.name, remedy='fit_table(table, "steps_batch")'
        )
    open_ = {name: why for name, why in fit.unidentified.items() if name in ("beta", "gamma")}
    if open_:
        raise InputError(
            "fit", expected="beta and gamma that the table determines", got=open_, remedy="vary batch and steps apart"
        )
    d = np.atleast_1d(np.asarray(tokens, float))
    rows = np.concatenate([fit.vector[None], fit.draws])
    b, c, beta, gamma = rows[:, 2], rows[:, 3], rows[:, 5], rows[:, 6]
    share = beta / (beta + gamma)
    with np.errstate(divide="ignore"):
        logs = (np.log(gamma * c) - np.log(beta * b))[:, None] / (beta + gamma)[:, None] + share[:, None] * np.log(d)
    low, high = quantiles(logs[1:], fit.level)
    ends = quantiles(share[1:], fit.level)
    return BestBatch(np.exp(logs[0]), np.exp(low), np.exp(high), float(share[0]), (float(ends[0]), float(ends[1])))
