"""Gauss's nodes for the teacher's margin t = |N(0, 1)| of the examples that a pruning rule keeps."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

Rule = Literal["easy", "hard", "random"]
RULES: tuple[Rule, ...] = ("easy", "hard", "random")
NODES = 100
_FAR = 9.5
"""Margin beyond which a Gaussian holds nothing in double precision."""


def kept_margins(keep: float, rule: str, nodes: int = NODES) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """(t, weight) of the kept margins: keep = P(t > t_0) for the easy ones, P(t < t_0) for the hard ones, "random" keeps any.

    Nodes on the interval that the rule leaves, `keep` in (0, 1].
    """
    low, high = 0.0, _FAR
    if rule == "easy":
        low = float(-ndtri(keep / 2))
        high = low + _FAR
    elif rule == "hard" and keep < 1:
        high = min(float(ndtri((1 + keep) / 2)), _FAR)
    x, w = np.polynomial.legendre.leggauss(nodes)
    t = low + (high - low) * (x + 1) / 2
    # The peak of the weight at the near end is taken out: nothing underflows for few kept examples.
    weight = w * np.exp(-(t**2 - low**2) / 2)
    return t, weight / weight.sum()
