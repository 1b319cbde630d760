"""The loss as the planner reads it: named variables, their ranges, what they cost, and draws for the intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from odescale.errors import InputError, require_number

Values = Mapping[str, np.ndarray]
Quantity = Callable[[Values], np.ndarray]
RANGES = {"params": (1e6, 1e14), "tokens": (1e6, 1e17), "batch": (1e3, 1e9), "steps": (1.0, 1e9)}
"""Ranges of variables whose law gives none."""
PROGRESS = ("tokens", "steps", "time", "data")
"""What a factor on the tokens multiplies: the first of these that the law has."""


class BudgetLaw(eqx.Module):
    """L(variables) with what it costs: `function(values)` is the loss at arrays of equal shape by name, > 0.

    - `name` as printed; `variables`; `ranges`: (low, high) of each that is free, > 0. "unique_tokens" is never free: it is the
      tokens or the budget of unique ones, whichever is less. "batch" is in tokens per step.
    - `params`, `tokens`: model size and tokens of a run as functions of the variables, default those variables themselves; None and
      no such variable: memory, or the data, cannot be budgeted. `flop`: of training, default `train_cost` x params x tokens.
    - `drawn`: the function of every draw of the fit behind it, for intervals; empty: none. `seen`: where the data lay, by variable.
    - `notes`: what a plan must repeat.

    **Source of the default cost**: Kaplan et al. 2020, arXiv 2001.08361.
    """

    name: str = eqx.field(static=True)
    variables: tuple[str, ...] = eqx.field(static=True)
    function: Quantity = eqx.field(static=True)
    ranges: Mapping[str, tuple[float, float]]
    params: Quantity | None = eqx.field(static=True, default=None)
    tokens: Quantity | None = eqx.field(static=True, default=None)
    flop: Quantity | None = eqx.field(static=True, default=None)
    drawn: tuple[Quantity, ...] = eqx.field(static=True, default=())
    seen: Mapping[str, tuple[float, float]] = eqx.field(default_factory=dict)
    notes: tuple[str, ...] = eqx.field(static=True, default=())

    def __check_init__(self) -> None:
        for name in self.free:
            pair = self.ranges.get(name)
            if pair is None or not (len(pair) == 2 and 0 < pair[0] < pair[1] < np.inf):
                raise InputError(f"ranges[{name!r}]", expected="(low, high) with 0 < low < high", got=pair,
                                 remedy="give the range of every variable")  # fmt: skip
        if not self.free:
            raise InputError("variables", expected="a variable besides unique_tokens", got=self.variables,
                             remedy='e.g. ("params", "tokens")')  # fmt: skip

    @property
    def free(self) -> tuple[str, ...]:
        """The variables that a plan chooses."""
        return tuple(name for name in self.variables if name != "unique_tokens")

    @property
    def progress(self) -> str | None:
        """The variable that a factor on the tokens multiplies."""
        return next((name for name in PROGRESS if name in self.variables), None)

    def size_of(self, values: Values) -> np.ndarray | None:
        """N, or None for a law that has none."""
        return self.params(values) if self.params is not None else values.get("params")

    def tokens_of(self, values: Values) -> np.ndarray | None:
        """D, or None for a law that has none."""
        return self.tokens(values) if self.tokens is not None else values.get("tokens")


class ChinchillaLaw(eqx.Module):
    """L = E + A N^-alpha + B D''^-beta,  D'' = D'/(1 + b/b*),  D' = U + U R* (1 - exp(-R/R*)),  R = D/U - 1.

    - `E`, `A`, `B`, `alpha`, `beta` (Hoffmann et al. 2022, arXiv 2203.15556). N parameters, D tokens, U unique ones; nats per
      token.
    - `repetition` R*: None: repeated tokens count as fresh, as often as `max_epochs` allows (Muennighoff et al. 2023, arXiv
      2305.16264: R* = 15.39, and nearly fresh up to 4 epochs). The paper's second constant, for a surplus of parameters, is
      left out.
    - `critical_batch` b*: tokens per step at which a token is worth half (McCandlish et al. 2018, arXiv 1812.06162), None: the
      batch does not matter. `batch_exponent`: b* grows as (D/1e9)^this; 0: constant.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    repetition: float | None = None
    critical_batch: float | None = None
    batch_exponent: float = 0.0

    def __check_init__(self) -> None:
        require_number("E", self.E)
        for name in ("A", "B", "alpha", "beta"):
            require_number(name, getattr(self, name), open_=True)
        for name in ("repetition", "critical_batch"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name), open_=True)
        require_number("batch_exponent", self.batch_exponent)

    @property
    def variables(self) -> tuple[str, ...]:
        """params and tokens; unique_tokens with a repetition; batch with a critical one."""
        more = (("unique_tokens", self.repetition), ("batch", self.critical_batch))
        return ("params", "tokens", *(name for name, value in more if value is not None))

    def __call__(self, **values: Any) -> Float[np.ndarray, "..."]:
        """L at arrays by name; `unique_tokens` only with a repetition, `batch` only with a critical one."""
        tokens = np.asarray(values["tokens"], float)
        worth = tokens
        if self.repetition is not None:
            worth = repeated(tokens, np.asarray(values["unique_tokens"], float), self.repetition)
        if self.critical_batch is not None:
            worth = worth / (1 + values["batch"] / (self.critical_batch * (tokens / 1e9) ** self.batch_exponent))
        return self.E + self.A * np.asarray(values["params"], float) ** -self.alpha + self.B * worth**-self.beta


def repeated(tokens: np.ndarray, unique: np.ndarray, scale: float) -> np.ndarray:
    """U + U R* (1 - exp(-R/R*)), R = D/U - 1: what D tokens of which U are unique are worth in fresh ones."""
    again = np.maximum(tokens / unique - 1, 0.0)
    return np.minimum(tokens, unique) * (1 - scale * np.expm1(-again / scale))


def function_of(law: Callable[..., Any]) -> Quantity:
    """A function of a mapping from one of keyword arguments."""

    def function(values: Values) -> np.ndarray:
        return np.asarray(law(**values), float)

    return function


def plain_law(
    loss: Callable[..., Any],
    ranges: Mapping[str, tuple[float, float]],
    *,
    params: Quantity | None = None,
    tokens: Quantity | None = None,
    flop: Quantity | None = None,
    drawn: tuple[Callable[..., Any], ...] = (),
    name: str = "callable",
) -> BudgetLaw:
    """Any callable `loss(params=..., tokens=...)` of keyword arrays, numpy or JAX, as the loss of a plan.

    **Arguments**: `loss`: of arrays of equal shape, smooth, > 0. `ranges`: its variables, name -> (low, high). `params`, `tokens`,
    `flop`: functions of the mapping of values, see `BudgetLaw`. `drawn`: the same law with other parameters, for intervals.
    **Returns** `BudgetLaw`. **Raises** `InputError`: no variables, ranges that are none.

    ```python
    from odescale.resources import plain_law
    law = plain_law(lambda width, time: 40 * width**-0.5 + 9 * time**-0.3, {"width": (8, 1e5), "time": (1, 1e9)},
                    params=lambda v: 12 * v["width"] ** 2, flop=lambda v: 72 * v["width"] ** 2 * v["time"])
    ```
    """
    if not callable(loss):
        raise InputError("loss", expected="a function of keyword arrays", got=loss, remedy="see odescale.resources")
    return BudgetLaw(name, tuple(ranges), function_of(loss), dict(ranges), params, tokens, flop,
                     tuple(function_of(d) for d in drawn))  # fmt: skip
