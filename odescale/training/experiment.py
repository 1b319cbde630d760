"""What the one training loop asks of whatever is trained, and which experiment belongs to which theory."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from odescale.clock import Clock, ConstantSchedule, Schedule, parse_schedule
from odescale.errors import InputError
from odescale.systems.register import HOOKS, as_system

DIVERGED = 1e8
"""A sample loss beyond this is a run away: losses of a working run are of order one."""

EXPERIMENTS = {
    "attention": "odescale.training.attention:experiment",
    "mean_field": "odescale.training.mean_field:experiment",
    "peaked": "odescale.training.peaked:experiment",
    "spectral": "odescale.training.spectral:experiment",
    "spectral_optimized": "odescale.training.spectral_optimized:experiment",
    "kernel": "odescale.training.kernel:experiment",
    "pruning": "odescale.training.pruning:experiment",
    "rollout": "odescale.training.rollout:experiment",
    "drafter": "odescale.training.rollout:drafter_experiment",
    "derived": "odescale.training.derived:experiment",
}
"""The function that makes a theory's experiment from one of its systems, by the system's `name`; imported when it is asked for."""


class Carry(NamedTuple):
    """What one seed carries: its state, the sum of sample losses since the last record, the first diverged step (-1: none)."""

    state: PyTree
    loss_sum: Float[Array, ""]
    diverged_at: Int[Array, ""]

    def after(self, state: PyTree, loss: Float[Array, ""], n: Int[Array, ""]) -> Carry:
        """One step later: `loss` is that of the batch of step n, before the step."""
        bad = (self.diverged_at < 0) & ~(loss < DIVERGED)  # written so that NaN counts as diverged
        loss_sum = self.loss_sum + loss.astype(self.loss_sum.dtype)
        return Carry(state, loss_sum, jnp.where(bad, n, self.diverged_at))


def repeat_steps(
    step: Callable[[Any, Array, Array], tuple[Any, Array]],
    carry: Carry,
    key: Array,
    first: Int[Array, ""],
    count: Int[Array, ""],
) -> Carry:
    """`count` times `step(state, fold_in(key, n), n)` from step n = `first`: how steps are cut into calls changes nothing."""
    arrays, static = eqx.partition(carry.state, eqx.is_array)

    def body(i: Array, carry: Carry) -> Carry:
        n = first + i
        state, loss = step(eqx.combine(carry.state, static), jax.random.fold_in(key, n), n)
        return carry.after(eqx.filter(state, eqx.is_array), loss, n)

    carry = jax.lax.fori_loop(0, count, body, carry._replace(state=arrays))
    return carry._replace(state=eqx.combine(carry.state, static))


class AbstractTraining(eqx.Module):
    """Anything that `train` can run: a start, many steps at once, and what is measured. Subclass `AbstractExperiment` instead,
    unless steps must draw their data many at a time.

    Arrays in the fields are converted to the run's precision for `advance`; what only `start`, `measure` and `model` read, and
    what is not to be converted, goes into an `odescale.cache.aside.Aside`.
    """

    subject: eqx.AbstractClassVar[str]
    """The theory that the run belongs to: the `name` of its systems."""
    together: ClassVar[int] = 1
    """Seeds that one compiled loop advances on a CPU: more than one where a step of a single seed is too small a job."""
    random: ClassVar[bool] = True
    """False where nothing is drawn: all seeds would be one run."""

    @property
    @abc.abstractmethod
    def clock(self) -> Clock:
        """SGD steps in one unit of t, learning rate, its schedule, batch, tokens."""

    @abc.abstractmethod
    def config(self, t1: float) -> dict[str, Any]:
        """What decides the numbers, JSON-able; schedules beside the clock's as `schedule_samples` up to t1."""

    @abc.abstractmethod
    def start(self, seed: int) -> PyTree:
        """State of a seed before the first step: a pytree of arrays, numbers that never change beside them allowed."""

    @abc.abstractmethod
    def advance(self, carry: Carry, key: Array, first: Int[Array, ""], count: Int[Array, ""]) -> Carry:
        """`count` steps from step number `first`, JAX-traceable; `key` is the seed's own, the same at every call."""

    @abc.abstractmethod
    def measure(self, states: list[PyTree], seeds: list[int], step: int) -> dict[str, np.ndarray]:
        """Name -> (seeds, ...) after `step` steps; "loss" among them, the excess loss that the theory predicts."""

    @abc.abstractmethod
    def model(self, states: list[PyTree]) -> Any:
        """The weights of all seeds: a dict of arrays with leading axis seeds, or a tuple of networks."""


class AbstractExperiment(AbstractTraining):
    """A training that is one step after another: give `clock`, `config`, `start`, `step`, `measure`, `model` to `train`."""

    @abc.abstractmethod
    def step(self, state: PyTree, key: Array, n: Int[Array, ""]) -> tuple[PyTree, Float[Array, ""]]:
        """(state, sample loss before the step) of step n = 0, 1, ...; all that it draws comes from `key`, its own."""

    def advance(self, carry: Carry, key: Array, first: Int[Array, ""], count: Int[Array, ""]) -> Carry:
        return repeat_steps(self.step, carry, key, first, count)


def rate_at(clock: Clock, n: Int[Array, ""], dtype: Any) -> Float[Array, ""]:
    """s(t) of step n, t = n/N, in `dtype`; the time itself in the widest float, which counts steps exactly."""
    if isinstance(clock.schedule, ConstantSchedule):
        return jnp.ones((), dtype)
    return jnp.asarray(clock.schedule(n.astype(float) / clock.steps_per_unit), dtype)


def as_schedule(schedule: Schedule | str | None) -> Schedule:
    """A schedule from itself, its text, or None for a constant one."""
    if schedule is None:
        return ConstantSchedule()
    return parse_schedule(schedule) if isinstance(schedule, str) else schedule


def experiment_of(subject: Any, **settings: Any) -> AbstractTraining:
    """The experiment behind a system, its name or builder (`odescale.systems.register`), or an experiment, which passes through.

    `settings` go to the theory's experiment (`test_sequences` of attention, `nodes` of peaked, ...). **Errors**: one `InputError`
    for a system without a real network, for a setting that nobody takes, and whatever the system's `check` refuses.
    """
    if isinstance(subject, AbstractTraining):
        _refuse(settings, (), "an experiment holds its settings already")
        return subject
    system = as_system(subject)
    build = HOOKS.get(system.name, {}).get("experiment")
    if build is None and system.name in EXPERIMENTS:
        module, _, function = EXPERIMENTS[system.name].partition(":")
        build = getattr(import_module(module), function)
    if build is None:
        raise InputError(
            "subject", expected=f"a system with a real network ({', '.join(EXPERIMENTS)}), its name, or an experiment",
            got=f"{system.label}, a {type(system).__name__}", remedy="register an experiment for it",
        )  # fmt: skip
    _refuse(settings, tuple(inspect.signature(build).parameters)[1:], f"of train or of its {system.name} experiment")
    system.check()
    return build(system, **settings)


def _refuse(settings: dict[str, Any], known: Sequence[str], whose: str) -> None:
    for name, value in settings.items():
        if name not in known:
            close = get_close_matches(name, known, n=1)
            words = f"an argument {whose}" if known else f"no such argument: {whose}"
            raise InputError(
                name, expected=words + (f" ({', '.join(known)})" if known else ""), got=value,
                remedy=f"did you mean {close[0]}?" if close else "leave it out",
            )  # fmt: skip
