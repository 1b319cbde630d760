"""Symbols of the derivation of the laws of loss under a schedule."""

from __future__ import annotations

import sympy

TAU, LAG = sympy.symbols("tau s", nonnegative=True)
"""Intrinsic time int eta dr, and an earlier moment's distance."""
RISK, MODE = sympy.symbols("P e", positive=True)
SOURCE, CAPACITY = sympy.symbols("a b", positive=True)
"""lam_k = k^-b, e_k(0) = k^-a."""
FLOOR, AMPLITUDE, ALPHA = sympy.symbols("L_0 A alpha", positive=True)
LEVEL, SPEED, MEMORY = sympy.symbols("B C beta", positive=True)
"""n = B eta at rest; top rate of the noise modes per tau; exponent of their mixture."""
NOISE, START = sympy.symbols("n n_0", nonnegative=True)

HORIZON, LEFT, RATE_MAX = sympy.symbols("N r eta_max", positive=True)
"""Steps in all, steps left, bound of the learning rate."""
LAST, PRICE = sympy.symbols("c mu", positive=True)
"""Rate of the last step of the best schedule; price of a step, a Lagrange multiplier."""
END, ONSET = sympy.symbols("T u", positive=True)
"""tau at the end; how far before it, in tau, a decay begins."""
SHAPE, PEAK = sympy.symbols("gamma h", positive=True)
"""A fixed shape h (r/N)^gamma."""
