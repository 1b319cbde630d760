"""Decisions under budgets: laws as losses of a plan, assumptions, budgets, when to stop, how runs share a budget."""

from odescale._door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
