"""Linear models: exact SGD on any spectrum, random features, stored data, repeated passes."""

from odescale._door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
