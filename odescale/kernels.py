"""Tangent kernels of real networks, and whether a run stays in their regime."""

from odescale._door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
