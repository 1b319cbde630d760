"""Networks twice over: as functions of local fields, and as real equinox networks of d dimensions."""

from odescale._door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
