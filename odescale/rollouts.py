"""Rollouts with a long tail: lengths, costs, policies of speculation, times; calibration from tables; the drafter."""

from odescale._door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
