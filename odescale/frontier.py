"""The least risk at a given compute: laws, closed forms, numeric search, exponents, phases."""

from odescale._door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
