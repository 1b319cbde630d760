"""Covariance spectra of the tokens, and overlaps with a source condition."""

from odescale._door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
