"""Optimisers that a theory and a training share: their numbers stay fixed as the width grows.

odescale.mean_field(problem, optimizer=odescale.optimizers.Adam(rate=0.1), dimension=500)
"""

from odescale._door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
