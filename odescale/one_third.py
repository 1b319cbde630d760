"""Peaked targets: asymptotic laws and what escapes from the one-third law."""

from odescale._door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
