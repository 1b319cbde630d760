"""What the numeric checks of several theories share: numbers put into formulas, derivatives, the executed code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import sympy
from sympy.matrices.expressions import MatrixExpr, MatrixSymbol

from odescale.symbolic.record import CheckResult

Matrices = dict[str, np.ndarray]


def random_covariance(size: int, seed: int = 0, scale: float = 0.5) -> np.ndarray:
    """A random positive-definite matrix with entries of order `scale`."""
    rows = np.random.default_rng(seed).standard_normal((size, size + 2)) * np.sqrt(scale / (size + 2))
    return rows @ rows.T


def numeric(expression: MatrixExpr, values: Matrices) -> np.ndarray:
    """A matrix expression with numpy arrays put in, by sympy's numpy printer."""
    symbols = sorted(expression.atoms(MatrixSymbol), key=lambda symbol: symbol.name)
    function = sympy.lambdify(symbols, expression, modules="numpy", cse=False)
    return np.asarray(function(*(values[symbol.name] for symbol in symbols)))


def complex_step(function: Callable[[np.ndarray], complex], at: np.ndarray) -> np.ndarray:
    """Derivative of an analytic function in every entry, without cancellation."""
    slope, h = np.zeros(at.shape), 1e-30
    for index in np.ndindex(at.shape):
        moved = at.astype(complex)
        moved[index] += 1j * h
        slope[index] = np.imag(function(moved)) / h
    return slope


def worst(pairs: Sequence[tuple[np.ndarray, np.ndarray]], bound: float, what: str) -> CheckResult:
    """Largest relative error over pairs (got, expected)."""
    errors = [np.max(np.abs(x - y)) / max(np.max(np.abs(y)), 1e-300) for x, y in pairs]
    return CheckResult(float(max(errors)), bound, what)


def executed(sources: Iterable[str]) -> dict[str, Any]:
    """The generated functions, executed from their text."""
    import jax
    import jax.numpy as jnp

    from odescale.errors import InputError

    scope: dict[str, Any] = {"jax": jax, "jnp": jnp, "np": np, "Array": jax.Array, "InputError": InputError}
    for source in sources:
        exec(source, scope)
    return scope
