"""Full-batch descent of a network against the frozen kernel: distances of its outputs, beyond which the kernel regime was left."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.cache.programs import program
from odescale.compare.kernel import TOLERANCE, function_errors
from odescale.compare.sheets import Errors, Rules
from odescale.compare.verdict import Status
from odescale.errors import InputError
from odescale.run import Run
from odescale.solve.trajectory import Trajectory
from odescale.systems.base import local_exponents
from odescale.systems.kernel import Kernel
from odescale.systems.kernel_descent import descent

OUTPUTS = ("train", "test")
"""Records of the outputs of a run, (seeds, times, outputs)."""


def _same(system: Kernel) -> dict[str, Any]:
    data = {name: np.asarray(getattr(system, name)) for name in ("targets", "initial")}
    return {"loss": system.loss, "learning_rate": float(system.learning_rate)} | data


def predict(system: Kernel, t: Float[np.ndarray, " n"]) -> Trajectory:
    """The exact discrete descent at steps t and 0 as a trajectory; p and q are those of the gradient flow through its states."""
    t = np.unique(np.append(0.0, t))
    path = descent(system, np.rint(t).astype(int))
    state = jnp.concatenate([path.train, path.test], axis=1)
    times = jnp.asarray(t, dtype=float)
    (loss, exponent, index), observables = jax.tree.map(np.asarray, _along(system, times, state))
    meta = {
        "system": system.label,
        "loss": system.loss_label,
        "solver": "descent",
        "ladder": [{"solver": "exact descent", "accepted": int(t[-1])}],
        "parameters": system.summary(),
        "time_unit": "one unit of t = 1 step of gradient descent",
        "versions": {"jax": jax.__version__},
        "device": jax.default_backend(),
    }
    return Trajectory(
        t=np.asarray(t, dtype=float), state=np.asarray(state), loss=loss, exponent=exponent, index=index,
        observables=observables, valid=np.isfinite(loss), code=np.asarray(0),
        error=None, clock=system.clock, meta=meta,
    )  # fmt: skip


@program
def _along(system: Kernel, times: Array, states: Array) -> tuple[tuple[Array, Array, Array], dict[str, Array]]:
    """((L, p, q), observables) at every time."""
    exponents = jax.vmap(lambda t, y: local_exponents(system, t, y))(times, states)
    return exponents, jax.vmap(system.observables)(times, states)


def _distances(system: Kernel, run: Run, theory: Trajectory, at: np.ndarray) -> Errors:
    """Function errors of the training and of the test outputs, the larger of the seeds; they need the start too."""
    states = [system.initial_state()[None], jnp.asarray(theory.state)[at]]
    ours = system.split(jnp.concatenate(states))
    shapes = [run[name].shape[1:] if name in run.records else None for name in OUTPUTS]
    if shapes != [(run.t.size, one.shape[1]) for one in ours]:
        wanted = [one.shape[1] for one in ours]
        raise InputError(
            "run", expected=f"{wanted} training and test outputs", got=shapes, remedy="the system's own data"
        )
    found = []
    for outputs in zip(*(jnp.asarray(run[name]) for name in OUTPUTS), strict=True):
        train, test = (jnp.concatenate([one[:1], own]) for one, own in zip(ours, outputs, strict=True))
        found.append(function_errors(train, test, *ours))
    return dict(zip(OUTPUTS, np.max(found, axis=0)[:, 1:], strict=True))


def _remarks(system: Kernel, run: Run, status: Status, options: dict[str, Any]) -> tuple[str, ...]:
    said = []
    if "drift_norm" in run.records:
        norm, smallest = (float(np.max(run[f"drift_{name}"])) for name in ("norm", "by_smallest"))
        said.append(f"kernel drift {norm:.3g} in norm, {smallest:.3g} times the smallest eigenvalue")
    if options.get("regime") is not None:
        said.append(f"expected without training: {options['regime'].expected_error:.3g}")
    return tuple(said)


RULES = Rules(
    tolerance={"loss": None, "test_loss": None} | dict.fromkeys(OUTPUTS, TOLERANCE),
    leading=OUTPUTS,
    same=_same,
    predict=predict,
    distances=_distances,
    remarks=_remarks,
    deterministic=True,
    beyond="outside the theory",
    options=("regime",),
)
