"""The phase map of two-token attention: positional against semantic minima."""

from odescale._door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
