"""Notation of the attention derivation: its assumptions, its matrices, and what one step hands to the next."""

from __future__ import annotations

from dataclasses import dataclass

import sympy
from sympy.matrices.expressions import MatrixSymbol

from odescale.errors import InputError
from odescale.symbolic.sgd import SIZE

ROWS = SIZE
OUTPUTS = sympy.Symbol("K", integer=True, positive=True)
A, B, C, R = (MatrixSymbol(n, ROWS, ROWS) for n in ("A", "B", "C", "R"))
q, k, v, o = (MatrixSymbol(n, ROWS, 1) for n in ("q", "k", "v", "o"))
a, b = (MatrixSymbol(n, OUTPUTS, ROWS) for n in ("a", "b"))
E, ON_OUTPUTS = (MatrixSymbol(n, OUTPUTS, ROWS) for n in ("E", "on_outputs"))


@dataclass(frozen=True)
class AttentionOptions:
    """What is assumed. The defaults give the generated module; every field changes the derivation when changed.

    - `values`: `"any"` (heads with value = identity and heads with value/output rows), `"identity"` or `"rows"`.
    - `noise`: keep the SGD noise, of order eta^2/B. `weight_decay`: keep `-(w/N) W` in the update.
    - `schedule`: a learning rate eta(t) (True) or one constant eta (False); the ODE is the same function of eta.
    - `logit_scale`: logits are this number times the sum of `(q.h)(k.h)/N` over the pairs of a head.
    - `context`: `"infinite"`, or `"order 1/T"` to add the finite-context correction of one layer.
    - `depth`, `heads`, `rank`, `outputs`, `train_readouts`: the network that is written out in scalars (tape, tables);
      the matrix form covers all of them.
    """

    values: str = "any"
    noise: bool = True
    weight_decay: bool = True
    schedule: bool = True
    logit_scale: sympy.Expr | int = 1
    context: str = "order 1/T"
    depth: int = 2
    heads: int = 1
    rank: int = 1
    outputs: int = 1
    train_readouts: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (("values", ("any", "identity", "rows")), ("context", ("infinite", "order 1/T"))):
            if getattr(self, name) not in allowed:
                raise InputError(
                    name, expected=f"one of {', '.join(allowed)}", got=getattr(self, name), remedy="pass a listed one"
                )
        if self.context == "order 1/T" and not self.identity:
            raise InputError(
                "context",
                expected='"infinite" with value/output rows alone',
                got=self.context,
                remedy='pass context="infinite"; the order-1/T terms are derived for value = identity',
            )
        for name in ("depth", "heads", "rank", "outputs"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InputError(name, expected="an integer >= 1", got=getattr(self, name), remedy="pass 1 or more")

    @property
    def identity(self) -> bool:
        """Heads with value = identity are covered."""
        return self.values in ("any", "identity")

    @property
    def write_back(self) -> bool:
        """Heads with value and output rows are covered, so that the overlaps R enter."""
        return self.values in ("any", "rows")


@dataclass(frozen=True)
class Layer:
    """What one pair (q, k) of a head adds to the functionals A: `identity` and `rows`; the scalar average they come from."""

    average: sympy.Expr
    identity: sympy.MatrixExpr
    rows: sympy.MatrixExpr


@dataclass(frozen=True)
class LossMatrices:
    """Loss and noise as matrix expressions of a (K x P, student), b (K x P, student minus teacher) and C."""

    product: sympy.MatrixExpr
    loss: sympy.MatrixExpr
    noise: sympy.MatrixExpr


@dataclass(frozen=True)
class Adjoints:
    """Cotangents of one pair's update on (A, C, R), for both kinds of value, and those of the loss on (a, C)."""

    identity: tuple[sympy.MatrixExpr, sympy.MatrixExpr, sympy.MatrixExpr]
    rows: tuple[sympy.MatrixExpr, sympy.MatrixExpr, sympy.MatrixExpr]
    loss_a: sympy.MatrixExpr
    loss_c: sympy.MatrixExpr
    readout: sympy.MatrixExpr
