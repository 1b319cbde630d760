"""float64 by default, without touching anybody's global JAX setting.

Importing odescale never changes a JAX flag. Every public verb that computes asks `resolve_dtype` first: with 64-bit
numbers switched off it raises and names the one line that switches them on. The command line and the notebooks carry
that line themselves. `precision="float32"` is the way to ask for single precision on purpose.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odescale.errors import InputError, PrecisionError

REMEDY = 'run `jax.config.update("jax_enable_x64", True)` once, before any array is made'


def require_x64(what: str) -> None:
    """Raises `PrecisionError` with the one-line remedy when JAX's 64-bit numbers are off; `what` names the caller."""
    if not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise PrecisionError(what, expected="float64 (jax_enable_x64 on)", got="float32 only", remedy=REMEDY)


def with_x64() -> AbstractContextManager[Any]:
    """64-bit numbers in a thread that a public verb starts: what a user has switched on for one thread holds for that one alone."""
    place: Any = jax if hasattr(jax, "enable_x64") else import_module("jax.experimental")  # there before JAX 0.8
    return place.enable_x64(True)


def resolve_dtype(precision: str, what: str) -> np.dtype:
    """The dtype for `precision` in {"float64", "float32"}; float64 requires JAX's 64-bit numbers (see `require_x64`)."""
    if precision not in ("float64", "float32"):
        raise InputError("precision", expected='"float64" or "float32"', got=precision, remedy="pass one of the two")
    if precision == "float64":
        require_x64(what)
    return np.dtype(precision)


def check_tolerance(rtol: float, dtype: np.dtype, argument: str = "rtol") -> None:
    """Refuses a relative tolerance that is not positive and finite, or lies below ten rounding errors of `dtype`."""
    floor = 10 * float(jnp.finfo(dtype).eps)
    if isinstance(rtol, bool | str) or not (np.ndim(rtol) == 0 and 0 < float(rtol) < 1):
        raise InputError(argument, expected="a positive number below 1", got=rtol, remedy="1e-8 is a good value")
    if rtol < floor:
        raise PrecisionError(
            argument,
            expected=f"at least 10 eps = {floor:.1e} in {dtype.name}",
            got=rtol,
            remedy=f"use {argument} >= {floor:.1e}" + (", or float64" if dtype == np.float32 else ""),
        )
