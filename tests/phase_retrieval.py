"""A theory from outside the package, in one file: one row learns the modulus of another. See docs/add_a_theory.md."""

from __future__ import annotations

from functools import cache

from sympy import symbols

import odescale
from odescale.symbolic import overlap_theory


@cache
def theory():
    """Sample loss -> closed ODE of the overlaps, derived from the SGD update."""
    u, v = symbols("u v")
    return overlap_theory((u**2 - v**2) ** 2 / 8, students=[u], teachers=[v], name="phase_retrieval")


PARAMETERS = (
    odescale.Parameter("learning_rate", 0.05, "a positive number", lambda x: x > 0, "1", "plain SGD learning rate eta"),
    odescale.Parameter("alignment", 0.4, "a number in (0, 0.7)", lambda x: 0 < x < 0.7, "1", "overlap at the start"),
    odescale.Parameter("batch", 2, "an integer >= 1", lambda x: x >= 1, "samples", "samples in one step", int),
    odescale.Parameter(
        "dimension", 400, "an integer >= 2", lambda x: x >= 2, "1", "d, SGD steps in one unit of t", int
    ),
)


@odescale.register(
    "phase_retrieval", t1=60.0, run_t1=20.0, description="one row learns the modulus of another", parameters=PARAMETERS
)
def phase_retrieval(alignment=0.4, **settings):
    """(u^2 - v^2)^2/8 on Gaussian inputs; one unit of t is `dimension` SGD steps."""
    start = [[0.5, 0.0], [0.0, 1.0]]
    start[0][1] = start[1][0] = alignment
    return theory().system(start, **({"batch": 2, "learning_rate": 0.05, "dimension": 400} | settings))
