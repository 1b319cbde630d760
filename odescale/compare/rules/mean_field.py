"""Runs of any finite-rank transformer against the d -> infinity ODE: its closure has an error bar that both sides may share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import special

from odescale.cache.programs import program
from odescale.compare.sheets import Errors, Rules, relative_of_order, shared_settings
from odescale.run import Run
from odescale.solve.coverage import coverage
from odescale.solve.trajectory import Trajectory
from odescale.systems.mean_field import MeanField


def _same(system: MeanField) -> dict[str, Any]:
    return shared_settings(system) | {
        "problem": repr(system.problem),
        "momentum": float(system.momentum),
        "friction": float(system.friction),
        "initial_overlaps": np.asarray(system.initial_overlaps),
        "optimizers": None if system.optimizers is None else system.optimizers.words(),
    }


def _errors(system: MeanField, run: Run, theory: Trajectory, at: np.ndarray, name: str) -> Errors:
    """`quadrature`: of the ratio where run and theory have their nodes in common, else that of both sides in full."""
    if name != "loss":
        return {}
    if _same_nodes(system, run):
        return {"quadrature": _paired_stderr(system, theory, at)}
    prediction = quadrature_stderr(system, theory)[at]
    if "loss_common_stderr" not in run.records:
        return {"quadrature": prediction}
    return {"quadrature": np.hypot(prediction, run.mean("loss_common_stderr") / np.asarray(theory.loss)[at])}


def quadrature_stderr(system: MeanField, theory: Trajectory) -> Float[np.ndarray, " n"]:
    """Relative standard error of the theory's loss: the half width of its 95 % interval over Student's t, R - 1 degrees.

    Zero for a closed form, which carries no error; for two Gauss-Hermite orders their whole difference.
    """
    if theory.error is None:
        return np.zeros_like(np.asarray(theory.loss))
    half_width = np.nan_to_num(np.asarray(theory.error))
    nodes = getattr(system.closure, "nodes", None)
    if nodes is None or nodes.kind != "sobol" or system.closure.replicates < 2:
        return half_width
    return half_width / float(special.stdtrit(system.closure.replicates - 1, 0.975))


@program
def _losses(system: MeanField, C: Float[Array, "n P P"], R: Float[Array, "n P P"]) -> Float[Array, "n r"]:
    return jax.lax.map(lambda pair: system.population_loss(*pair), (C, R))


def _same_nodes(system: MeanField, run: Run) -> bool:
    """Whether the run's losses were measured with the system's own node sets: then their error is common to both sides."""
    if not {"overlaps", "row_overlaps"} <= set(run.records):
        return False
    C, R = (run[name][:1, -1] for name in ("overlaps", "row_overlaps"))
    if C.shape[1:] != (system.problem.size,) * 2:
        return False
    here = float(system.estimate(_losses(system, jnp.asarray(C), jnp.asarray(R))[0])[0])
    return bool(np.isclose(here, run["loss"][0, -1], rtol=1e-6))


def _paired_stderr(system: MeanField, theory: Trajectory, at: np.ndarray) -> Float[np.ndarray, " n"]:
    """Standard error that the nodes give to the ratio: node set r measures L_r(C_run) and predicts L_r(C_r), so that
    the scatter of L_r(C_r)/L_r(C) over r counts, C the mean of the C_r, and what L_r itself is off cancels.
    """
    replicates = theory.observables.get("replicate_loss")
    if replicates is None or np.shape(replicates)[-1] < 3:
        return quadrature_stderr(system, theory)[at]
    P = system.problem.size
    C, R = (np.asarray(theory.observables[name])[at][:, :P, :P] for name in ("overlaps", "row_overlaps"))
    gain = np.asarray(replicates)[at] / np.asarray(_losses(system, jnp.asarray(C), jnp.asarray(R)))
    return gain.std(axis=1, ddof=1) / np.sqrt(gain.shape[1]) / gain.mean(axis=1)


def _outside(system: MeanField, run: Run, theory: Trajectory) -> tuple[str, ...]:
    found = coverage(system)
    return () if found.inside else tuple(found.reasons)


RULES = Rules(
    tolerance={"loss": 0.03},
    same=_same,
    neglected=lambda system, run, p: {"finite_size": relative_of_order(1 / system.effective_dimension, p)},
    errors=_errors,
    outside=_outside,
    half=True,
    words={
        "quadrature": "closure of the theory (scatter of its node sets)",
        "finite_size": "finite dimension, (1 + |p|)/d_eff unless measured at half the dimension",
    },
)
