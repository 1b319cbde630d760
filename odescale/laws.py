"""Laws of the loss: under a schedule (curves, candidates, choice, floors), and of finished runs (tables, scaling laws)."""

from odescale._door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
