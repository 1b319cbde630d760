"""Symbols of the derivation of SGD on a spectrum, and what one step hands to the next."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

DELTA, VELOCITY = sympy.symbols("delta v", real=True)
"""theta_k - theta_k* and the velocity of heavy-ball momentum."""
MODE, SPEED = sympy.symbols("rho h", nonnegative=True)
CROSS = sympy.Symbol("c_k", real=True)
EXCESS, NOISE, RISK = sympy.symbols("E s2 P", positive=True)
"""Excess risk sum lam rho, variance of the label noise, and their sum."""
AVERAGE = sympy.Symbol("m", real=True)
SPREAD, SQUARE = sympy.symbols("D Q", nonnegative=True)
"""Mean and variance of a mode's error over stored samples, and the average of z^2 r^2 over them."""
MOMENTUM = sympy.Symbol("beta", nonnegative=True)
SHRINK, DECAY, FORCE = sympy.symbols("g a b", positive=True)
"""g = 1 - G, and the rates of the log-rate ODE."""
STEP = sympy.Symbol("r", nonnegative=True)
KICK, SIZE = sympy.symbols("per_batch square", positive=True)
"""1/B and the sum of lam^2 over the modes of a node, in generated code."""
SUM = sympy.Symbol("X")
"""sum_b x_bk (x_b.delta - xi_b), the gradient of a batch times B."""


@dataclass(frozen=True)
class SampleMoments:
    """E[x_k r] and E[x_k^2 r^2] of one sample at given weights, r = x.delta - xi."""

    mean: sympy.Expr
    square: sympy.Expr


@dataclass(frozen=True)
class HeavyBall:
    """(rho, c, h) after one step of v -> beta v - eta ghat, delta -> delta + v, and kappa_k of its stationary state."""

    mode: sympy.Expr
    cross: sympy.Expr
    speed: sympy.Expr
    mass: sympy.Expr


@dataclass(frozen=True)
class Stored:
    """(m, D) of one mode after a step on stored samples: mean and variance of its error; Q = E[z^2 r^2] over the samples."""

    mean: sympy.Expr
    variance: sympy.Expr
