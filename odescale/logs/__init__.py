"""Training logs as they lie on disk: every format read into one `TrainingLog`."""

from odescale._door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
