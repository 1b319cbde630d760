"""Ordinary differential equations for learning dynamics: derive them, integrate them, compare them with real training.

The public names load on first use: importing odescale imports neither JAX nor sympy and changes no setting of JAX.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from odescale.analysis.curves import find_transition_curve as find_transition_curve
    from odescale.analysis.regimes import Transition as Transition
    from odescale.analysis.transition import find_transition as find_transition
    from odescale.analysis.transition import transition_gradient as transition_gradient
    from odescale.clock import Clock as Clock
    from odescale.clock import ConstantSchedule as ConstantSchedule
    from odescale.clock import CosineSchedule as CosineSchedule
    from odescale.clock import PowerSchedule as PowerSchedule
    from odescale.clock import WarmupStableDecaySchedule as WarmupStableDecaySchedule
    from odescale.compare.comparison import Comparison as Comparison
    from odescale.compare.comparison import compare as compare_runs  # noqa: F401
    from odescale.errors import CheckpointError as CheckpointError
    from odescale.errors import InputError as InputError
    from odescale.errors import OdescaleError as OdescaleError
    from odescale.errors import OutsideTheoryError as OutsideTheoryError
    from odescale.errors import PrecisionError as PrecisionError
    from odescale.errors import SolveError as SolveError
    from odescale.networks.architecture import Architecture as Architecture
    from odescale.networks.architecture import FieldNetwork as FieldNetwork
    from odescale.networks.architecture import Head as Head
    from odescale.networks.architecture import build_architecture as build_architecture
    from odescale.networks.architecture import quickstart_architecture as quickstart_architecture
    from odescale.solve.integrate import integrate as integrate
    from odescale.solve.sweep import sweep as sweep
    from odescale.solve.trajectory import Trajectory as Trajectory
    from odescale.systems.attention import Attention as Attention
    from odescale.systems.catalog import attention as attention
    from odescale.systems.catalog import quickstart as quickstart
    from odescale.systems.catalog import systems as available_systems  # noqa: F401
    from odescale.training.of_system import train_system as train_system
    from odescale.training.run import TrainingRun as TrainingRun
    from odescale.training.train import train as train

__version__ = "0.1.0"

# Public name -> (module, name there). Lazy, so that a missing or broken generated module cannot keep the script that
# writes it from starting. A new name goes here, into the block above, and nowhere else. It must not be the name of a
# room (`systems`, `compare`): importing that package would put the module in its place.
_HOMES: dict[str, tuple[str, str]] = {
    "Architecture": ("odescale.networks.architecture", "Architecture"),
    "Attention": ("odescale.systems.attention", "Attention"),
    "CheckpointError": ("odescale.errors", "CheckpointError"),
    "Clock": ("odescale.clock", "Clock"),
    "Comparison": ("odescale.compare.comparison", "Comparison"),
    "ConstantSchedule": ("odescale.clock", "ConstantSchedule"),
    "CosineSchedule": ("odescale.clock", "CosineSchedule"),
    "FieldNetwork": ("odescale.networks.architecture", "FieldNetwork"),
    "Head": ("odescale.networks.architecture", "Head"),
    "InputError": ("odescale.errors", "InputError"),
    "OdescaleError": ("odescale.errors", "OdescaleError"),
    "OutsideTheoryError": ("odescale.errors", "OutsideTheoryError"),
    "PowerSchedule": ("odescale.clock", "PowerSchedule"),
    "PrecisionError": ("odescale.errors", "PrecisionError"),
    "SolveError": ("odescale.errors", "SolveError"),
    "TrainingRun": ("odescale.training.run", "TrainingRun"),
    "Trajectory": ("odescale.solve.trajectory", "Trajectory"),
    "Transition": ("odescale.analysis.regimes", "Transition"),
    "WarmupStableDecaySchedule": ("odescale.clock", "WarmupStableDecaySchedule"),
    "attention": ("odescale.systems.catalog", "attention"),
    "available_systems": ("odescale.systems.catalog", "systems"),
    "build_architecture": ("odescale.networks.architecture", "build_architecture"),
    "compare_runs": ("odescale.compare.comparison", "compare"),
    "find_transition": ("odescale.analysis.transition", "find_transition"),
    "find_transition_curve": ("odescale.analysis.curves", "find_transition_curve"),
    "integrate": ("odescale.solve.integrate", "integrate"),
    "quickstart": ("odescale.systems.catalog", "quickstart"),
    "quickstart_architecture": ("odescale.networks.architecture", "quickstart_architecture"),
    "sweep": ("odescale.solve.sweep", "sweep"),
    "train": ("odescale.training.train", "train"),
    "train_system": ("odescale.training.of_system", "train_system"),
    "transition_gradient": ("odescale.analysis.transition", "transition_gradient"),
}

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'odescale' has no attribute {name!r}; public names: {', '.join(__all__)}")
    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
