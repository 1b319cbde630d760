"""Runs of a softmax transformer against its infinite-context theory: off by 1/T and 1/d, outside where few tokens carry it all."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from odescale.compare.sheets import Errors, Rules, relative_of_order, shared_settings
from odescale.compare.verdict import Status
from odescale.errors import InputError
from odescale.networks.architecture import FieldNetwork
from odescale.run import Run
from odescale.solve.integrate import integrate, output_times
from odescale.solve.trajectory import Trajectory
from odescale.systems.attention import Attention, softmax_load
from odescale.training.rows import rates_of


def _same(system: Attention) -> dict[str, Any]:
    if float(system.noise) not in (0.0, 1.0):
        raise InputError("noise", expected="0 or 1 in a comparison", got=float(system.noise), remedy="set noise=1")
    settings = shared_settings(system) | {
        "optimizers": None if system.optimizers is None else rates_of(system.optimizers, system.learning_rate).words()
    }
    settings |= {"initial_overlaps": np.asarray(system.initial_overlaps)}
    return settings | ({"tokens": float(system.tokens)} if np.isfinite(float(system.tokens)) else {})


def _predict(system: Attention, t: Float[np.ndarray, " n"]) -> Trajectory:
    """The run's times among log-spaced ones, 400 in all as in `find_transition`: one solve is compiled for both then."""
    total, points, times = max(400, 2 * t.size), 300, t
    for _ in range(2):  # the second pass knows how many times coincide
        times = np.unique(np.concatenate([t, output_times(float(t[-1]), points)]))
        points += total - times.size
    return integrate(system, ts=times, accuracy="check", on_failure="mask")


def _neglected(system: Attention, run: Run, steepness: Float[np.ndarray, " n"]) -> Errors:
    sizes = {"finite_context": run.config["tokens"], "finite_size": run.config["dimension"]}
    return {source: relative_of_order(1 / float(size), steepness) for source, size in sizes.items()}


def _distances(system: Attention, run: Run, theory: Trajectory, at: np.ndarray) -> Errors:
    """Largest |C_run - C_theory| over sqrt(C_ii C_jj)."""
    if "overlaps" not in run.records:
        return {}
    C = np.asarray(theory.overlaps)[at]
    lengths = np.sqrt(np.maximum(np.diagonal(C, axis1=1, axis2=2), 1e-12))
    off = np.abs(run.mean("overlaps") - C) / (lengths[:, :, None] * lengths[:, None, :])
    return {"overlaps": np.max(off, axis=(1, 2))}


def outside(system: Attention, run: Run, theory: Trajectory) -> tuple[str, ...]:
    """Why the infinite-context mean-field theory does not describe a run; empty if it may.

    Checked along the theory's own trajectory, per head: `2 C_kk C_qq < 1`, where C is the covariance of the fields that
    enter the layer. Beyond it the softmax average has infinite relative variance, `E e^(s^2 C_kk)` diverges, a few tokens
    carry the whole average and no O(1/T) expansion exists. Also the size of the first correction,
    `1/(tokens sqrt(1 - 2 C_kk C_qq)) + 1/dimension`, which must stay below 1/4.
    """
    tokens, dimension = float(run.config["tokens"]), float(run.config["dimension"])
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


def _loads(C: Any, R: Any, network: FieldNetwork) -> float:
    """The largest softmax load over times."""
    return float(jnp.max(jax.vmap(lambda C, R: softmax_load(C, R, network))(C, R)))


def _remarks(system: Attention, run: Run, status: Status, options: dict[str, Any]) -> tuple[str, ...]:
    if status != "differs" or system.finite_context or system.sampled is not None:
        return ()
    return (f"terms of order 1/T are left out, T = {run.config['tokens']}: compare with context=sampled as well",)


RULES = Rules(
    tolerance={"loss": 0.1, "overlaps": None},
    same=_same,
    predict=_predict,
    neglected=_neglected,
    distances=_distances,
    outside=outside,
    remarks=_remarks,
    half=True,
    transitions=True,
    words={
        "finite_context": "neglected terms of order 1/T, (1 + |p|)/T",
        "finite_size": "neglected terms of order 1/d, (1 + |p|)/d",
    },
)
