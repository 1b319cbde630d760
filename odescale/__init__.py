"""Ordinary differential equations for learning dynamics: derive them, integrate them, compare them with real training.

The public names load on first use: importing odescale imports neither JAX nor sympy and changes no setting of JAX.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from odescale.analysis.regimes import Transition as Transition
    from odescale.clock import Clock as Clock
    from odescale.networks.architecture import Architecture as Architecture
    from odescale.networks.architecture import FieldNetwork as FieldNetwork
    from odescale.networks.architecture import Head as Head
    from odescale.networks.architecture import build_architecture as build_architecture
    from odescale.networks.architecture import quickstart_architecture as quickstart_architecture

__version__ = "0.1.0"

# Public name -> the module that holds it, under the same name. Lazy, so that a missing or broken generated module
# cannot keep the script that writes it from starting. A new name goes here, into the block above, and nowhere else.
_HOMES: dict[str, str] = {
    "Architecture": "odescale.networks.architecture",
    "Clock": "odescale.clock",
    "FieldNetwork": "odescale.networks.architecture",
    "Head": "odescale.networks.architecture",
    "Transition": "odescale.analysis.regimes",
    "build_architecture": "odescale.networks.architecture",
    "quickstart_architecture": "odescale.networks.architecture",
}

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Load a public name from its module."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'odescale' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(import_module(home), name)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
