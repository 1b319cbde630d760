r"""Optimisers that act on each row by itself: plain SGD, Adam and AdamW.

    SGD    P = a                                             step a
    Adam   P_k = a diag_i [ sqrt(v_ki) + e ]^-1              step a/sqrt(N),   e = eps sqrt(N)

    dv_ki/dt = g2 (lam_k V_ii/B + (h_k q_k h_k^T)_ii/N - v_ki),   h_k = lam_k G + H,   g2 = -N log beta2,   / (1 - e^(-g2 t))

As d grows the noise of a gradient's coordinate is sqrt(N) times its mean: it alone sets v, and v_k = lam_k V_ii/B + O(1/N). The
1/N term is the square of the coordinate's own mean: with Gaussian entries it counts three times in the drift, once in the noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from odescale.generated import optimizers as derived
from odescale.optimizers.base import AbstractOptimizer, Seen, alike, as_number, require


class SGD(AbstractOptimizer):
    r"""W <- W - a s(t) u,  u <- momentum u + gradient: one unit of t is N steps, the learning rate is `rate` at any width.

    - `rate` a > 0: learning rate. `momentum` in [0, 1): heavy ball, fixed as d grows; `nesterov`: its look-ahead.
    - `decay` w >= 0: decoupled, W <- W - s(t) (w/N) W per step.

    In the theory P = a/(1 - momentum), with velocities carried where N (1 - momentum) is at most 1000. Source: Saad & Solla 1995.
    """

    rate: Float[Array, ""] = eqx.field(converter=as_number, default=0.2)  # type: ignore[assignment]
    momentum: Float[Array, ""] = eqx.field(converter=as_number, default=0.0)  # type: ignore[assignment]
    nesterov: bool = eqx.field(static=True, default=False)
    decay: Float[Array, ""] = eqx.field(converter=as_number, default=0.0)  # type: ignore[assignment]

    word: ClassVar[str] = "sgd"

    def __check_init__(self) -> None:
        require("rate", self.rate, open_=True)
        require("momentum", self.momentum, 0.0, 1.0)
        require("decay", self.decay)

    @property
    def beta(self) -> Any:
        return self.momentum

    def step(self, trace: float) -> Float[Array, ""]:
        return self.rate

    @staticmethod
    def transformation(numbers: Mapping[str, Any]) -> optax.GradientTransformation:
        mu = numbers["momentum"]
        return optax.trace(mu, nesterov=numbers["nesterov"]) if mu > 0 else optax.identity()

    def preconditioner(self, seen: Seen) -> Float[Array, "modes b b"]:
        return alike(seen, seen.rate / (1 - self.momentum))


class Adam(AbstractOptimizer):
    r"""W <- W - (a s(t)/sqrt N) [ m^/(sqrt v^ + eps) ] - s(t) (w/N) W: Adam, with `decay` AdamW.

    - `rate` a > 0: learning rate times sqrt(N), N = tr Sigma: what stays fixed as the width grows, for rows that read tokens.
    - `beta1`, `beta2` in [0, 1): of the averages of gradients and of their squares. `eps` >= 0 of the denominator.
    - `decay` w >= 0: decoupled weight decay per unit of t; `optax.adamw` calls w/(a sqrt N) `weight_decay`.

    **Failure regime**: rows that only write (their gradient has no noise of order 1/sqrt N) are outside and refused. The square of
    the mean gradient, of order B/N beside the noise, is kept to first order; the noise of v itself is not: at large B it takes
    (5/8) (1 - beta2) from the drift and 1 - beta2 from the noise.
    Source: Kingma & Ba 2015; Loshchilov & Hutter 2019; derivations/optimizers.
    """

    rate: Float[Array, ""] = eqx.field(converter=as_number, default=0.1)  # type: ignore[assignment]
    beta1: Float[Array, ""] = eqx.field(converter=as_number, default=0.9)  # type: ignore[assignment]
    beta2: Float[Array, ""] = eqx.field(converter=as_number, default=0.999)  # type: ignore[assignment]
    eps: Float[Array, ""] = eqx.field(converter=as_number, default=1e-8)  # type: ignore[assignment]
    decay: Float[Array, ""] = eqx.field(converter=as_number, default=0.0)  # type: ignore[assignment]

    word: ClassVar[str] = "adam"

    def __check_init__(self) -> None:
        require("rate", self.rate, open_=True)
        for name in ("beta1", "beta2"):
            require(name, getattr(self, name), 0.0, 1.0)
        for name in ("eps", "decay"):
            require(name, getattr(self, name))

    @property
    def beta(self) -> Any:
        return self.beta1

    @property
    def second_beta(self) -> Any:
        return self.beta2

    def step(self, trace: float) -> Float[Array, ""]:
        return self.rate / trace**0.5

    @staticmethod
    def transformation(numbers: Mapping[str, Any]) -> optax.GradientTransformation:
        return optax.scale_by_adam(numbers["beta1"], numbers["beta2"], numbers["eps"])

    def preconditioner(self, seen: Seen) -> Float[Array, "modes b b"]:
        assert seen.second is not None
        size = derived.adam_preconditioner(seen.rate, seen.second, self.eps, seen.trace)
        return size[:, :, None] * jnp.eye(size.shape[1])
