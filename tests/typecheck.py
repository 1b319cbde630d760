"""The checker of annotations in test runs: types and array shapes of every call in `odescale` (jaxtyping with beartype)."""

from collections.abc import Callable
from typing import Any

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

# As in every other checker an int is a float; and a number of NumPy is a number, with 32 bits as with 64.
_INTEGER = int | np.integer
_NUMBERS = FrozenDict({int: _INTEGER, float: float | _INTEGER | np.floating})
_check = beartype(conf=BeartypeConf(hint_overrides=_NUMBERS))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its arguments and its result checked; generated formulas, whose `Array` is any number, as they are."""
    return function if function.__module__.startswith("odescale.generated.") else _check(function)
