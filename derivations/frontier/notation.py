"""Symbols of the derivation of the compute-optimal frontier."""

from __future__ import annotations

import sympy

A, ALPHA, COST = sympy.symbols("A alpha q", positive=True)
"""One size: R_i = A x^-alpha, C ~ x^q."""
SIZE, FLOOR = sympy.symbols("x x_0", positive=True)
TIME, DECAY, RATE, TIME_COST = sympy.symbols("t D lambda q_t", positive=True)
"""Time: R_t = D exp(-lambda t), C ~ t^q_t."""
MU, BUDGET, S, LOG_SCALE = sympy.symbols("mu b S K", positive=True)
"""Multiplier; b = log C/c less the floored sizes; S and K summed over the released sizes."""
BOUND = sympy.Symbol("F", nonnegative=True)
"""Sum of the terms held at their floors."""
RAPIDITY = sympy.Symbol("y", positive=True)
"""y = lambda t."""
COMPUTE, UNIT = sympy.symbols("C c", positive=True)
SOURCE, CAPACITY = sympy.symbols("a b", positive=True)
"""Spectra: eigenvalues j^-b, target power j^-a."""

CODE = {
    A: "amplitude", ALPHA: "exponent", COST: "cost", SIZE: "size", FLOOR: "floor", TIME: "t", DECAY: "decay", RATE: "rate",
    TIME_COST: "time_cost", MU: "multiplier", BUDGET: "log_budget", S: "S", LOG_SCALE: "log_scale", BOUND: "held",
    RAPIDITY: "rapidity",
}  # fmt: skip
"""Names of the symbols in generated code."""
