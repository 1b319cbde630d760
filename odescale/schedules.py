"""Learning-rate schedules s(t), t in units of the system's clock, and their texts."""

from odescale._door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
