"""Is the run of the experiment that the system describes? Settings by name, the clock, the schedule, the start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from odescale.clock import ConstantSchedule, SampledSchedule
from odescale.errors import InputError
from odescale.run import Run
from odescale.systems.base import AbstractSystem

REMEDY = "compare like with like"
UNSAID = {"optimizers": None, "memory": 0.999}
"""What a run had whose config is older than the setting: plain SGD, or Adam with this beta2."""


def same_experiment(system: AbstractSystem, run: Run, settings: Mapping[str, Any]) -> None:
    """Refuses, by name, whatever makes the run another experiment than the system's.

    `settings`: name -> the system's value, which `run.config` must hold too: numbers to 1e-9, arrays to 1e-6, words exactly,
    schedules by their samples. Steps per unit of t and the clock's own schedule are compared as well.
    """
    theory = run.config.get("subject", system.name)
    own = {name: float(getattr(run.clock, name)) for name in ("learning_rate", "batch", "tokens")}
    held: dict[str, Any] = UNSAID | own | run.config
    missing = [name for name in settings if name not in held]
    if theory != system.name or missing:
        raise InputError(
            "run", expected=f"a run of the theory {system.name!r}", got=f"one of {theory!r}" if theory != system.name
            else f"a run without {', '.join(missing)} in its config", remedy="train it with odescale.train(system, t1)",
        )  # fmt: skip
    for name, value in settings.items():
        theirs = held[name]
        if callable(value):
            same = same_schedule(value, schedule_of(theirs), float(run.t[-1]))
        else:
            same = _equal(value, theirs)
        if not same:
            raise InputError(name, expected=f"the run's, {_short(theirs)}", got=_short(value), remedy=REMEDY)
    here, theirs = float(system.clock.steps_per_unit), float(run.clock.steps_per_unit)
    if not np.isclose(here, theirs, rtol=1e-9):
        raise InputError(
            "dimension", expected=f"{theirs:g} SGD steps per unit of t, as in the run", got=here, remedy=REMEDY
        )
    if not same_schedule(system.clock.schedule, run.clock.schedule, float(run.t[-1])):
        raise InputError("schedule", expected="that of the run", got="another one", remedy=REMEDY)


def same_schedule(one: Any, other: Any, t1: float) -> bool:
    """Whether two schedules agree to 1e-4 on [0, t1]: at the samples of one that was saved, else at 65 times."""
    sampled = [x for x in (other, one) if isinstance(x, SampledSchedule)]
    times = np.asarray(sampled[0].times) if sampled else np.linspace(0.0, t1, 65)
    times = times[times <= t1] if np.any(times <= t1) else times[:1]
    here, there = (np.asarray([float(s(jnp.asarray(t))) for t in times]) for s in (one, other))
    return bool(np.allclose(here, there, rtol=1e-4, atol=1e-6))


def schedule_of(samples: Mapping[str, Any] | None) -> Any:
    """The schedule that a config keeps as samples {"t", "s"}, constant for None."""
    return (
        ConstantSchedule() if samples is None else SampledSchedule(np.asarray(samples["t"]), np.asarray(samples["s"]))
    )


def same_but_half(run: Run, half: Run, settings: Iterable[str]) -> None:
    """Refuses a second run that is not the first one's experiment at half its dimension, over the same times."""
    remedy = "the same experiment at half the dimension"
    size = [float(x.config.get("dimension", np.nan)) for x in (run, half)]
    if not 1.95 < size[0] / size[1] < 2.05:
        raise InputError("half", expected=f"a run at half the dimension {size[0]}", got=size[1], remedy=remedy)
    for name in settings:
        # A start may have other modes at another dimension.
        if name not in ("dimension", "initial_overlaps") and not _equal(run.config.get(name), half.config.get(name)):
            raise InputError("half", expected=f"the run's {name}", got=_short(half.config.get(name)), remedy=remedy)
    if not np.isclose(float(half.clock.learning_rate), float(run.clock.learning_rate), rtol=1e-9):
        raise InputError("half", expected="the run's learning_rate", got="another", remedy=remedy)
    if not same_schedule(half.clock.schedule, run.clock.schedule, float(run.t[-1])):
        raise InputError("half", expected="the run's schedule", got="another one", remedy=remedy)
    started, there = run.t[run.t > 0], half.t[half.t > 0]
    off = 2 / run.clock.steps_per_unit  # one step at half the dimension
    if started[0] < there[0] - off or run.t[-1] > half.t[-1] + off:
        raise InputError("half", expected="a run over the same times", got=half.t, remedy="pass the same record_times")


def _equal(value: Any, theirs: Any) -> bool:
    if value is None or theirs is None or isinstance(value, str | bool):
        return value == theirs
    if isinstance(value, Mapping):
        return isinstance(theirs, Mapping) and all(_equal(x, theirs.get(name)) for name, x in value.items())
    try:
        here, there = np.asarray(value, dtype=float), np.asarray(theirs, dtype=float)
    except (TypeError, ValueError):
        return value == theirs
    if here.shape != there.shape:
        return False
    return bool(np.allclose(here, there, rtol=1e-9, atol=0) if here.ndim == 0 else np.allclose(here, there, 1e-6, 1e-9))


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | None) else f"values of shape {np.shape(value)}"
    return text if len(text) <= 60 else f"{text[:57]}..."
