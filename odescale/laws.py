"""Loss laws under a learning-rate schedule: curves, candidates, choice, isolated sizes, floors."""

from odescale._door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
