r"""Sign descent and Lion: every coordinate moves by the same length, whatever its gradient.

    drift  -a ( sqrt(lam_k) G~ + H~/sqrt(lam_k) ) q_k,      noise  a^2 V,  V = (2/pi) E asin(correlation of two rows' gradients)

No lam_k in the noise. G~, H~, V are averages over whole batches (`odescale.expectations.batch`). Lion moves by the sign of
c = beta1 m + (1 - beta1) gradient. The average is a velocity row U = N m, gamma = N (1 - beta2), noise and all; in it the sign is
linear (Bussgang 1952) with the gain kappa = sqrt(2/pi) beta1 E[1/sigma], up to the cube of a correlation:

    dW = -a ( (sqrt(lam_k) G~ + H~/sqrt(lam_k)) W + kappa U/sqrt(lam_k) ) - a zeta,      dU = gamma (gradient - U)
    <zeta_i zeta_j> = V_ij - kappa_i kappa_j R_UU,ij/N,    <zeta_i gradient_j> = sqrt(2/pi) (1 - beta1) E[S_ij/sigma_i] sqrt(lam_k)

R_UU/N in sigma holds the noise of the average and its mean, whose signs saturate at small N. Where gamma is too large to carry
U, its noise is (1 - beta2)/(1 + beta2) V^g/B, V^g of the gradient itself, and that of all lags is summed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import optax
from jaxtyping import Array, Float

from odescale.expectations.batch import AbstractBatchRule, LionRule, SignRule
from odescale.optimizers.base import AbstractOptimizer, Seen, alike, as_number, require


class Sign(AbstractOptimizer):
    r"""W <- W - (a s(t)/sqrt N) sign(gradient) - s(t) (w/N) W: signSGD, at any batch.

    - `rate` a > 0: learning rate times sqrt(N), fixed as the width grows. `decay` w >= 0: decoupled weight decay per unit of t.

    Rows that only write are outside. Source: Bernstein et al. 2018; derivations/optimizers.
    """

    rate: Float[Array, ""] = eqx.field(converter=as_number, default=0.1)  # type: ignore[assignment]
    decay: Float[Array, ""] = eqx.field(converter=as_number, default=0.0)  # type: ignore[assignment]

    word: ClassVar[str] = "sign"
    averages: ClassVar[str] = "sign"

    def __check_init__(self) -> None:
        require("rate", self.rate, open_=True)
        require("decay", self.decay)

    def batch_rule(self) -> AbstractBatchRule:
        return SignRule()

    def step(self, trace: float) -> Float[Array, ""]:
        return self.rate / trace**0.5

    @staticmethod
    def transformation(numbers: Mapping[str, Any]) -> optax.GradientTransformation:
        return optax.scale_by_sign()

    def preconditioner(self, seen: Seen) -> Float[Array, "modes b b"]:
        return alike(seen, seen.rate)


class Lion(AbstractOptimizer):
    r"""W <- W - (a s(t)/sqrt N) sign(beta1 m + (1 - beta1) g) - s(t) (w/N) W,  m <- beta2 m + (1 - beta2) g.

    - `rate` a > 0: learning rate times sqrt(N). `beta1`, `beta2` in [0, 1). `decay` w >= 0: decoupled, per unit of t.

    Rows that only write are outside. Source: Chen et al. 2023 (Lion); derivations/optimizers.
    """

    rate: Float[Array, ""] = eqx.field(converter=as_number, default=0.05)  # type: ignore[assignment]
    beta1: Float[Array, ""] = eqx.field(converter=as_number, default=0.9)  # type: ignore[assignment]
    beta2: Float[Array, ""] = eqx.field(converter=as_number, default=0.99)  # type: ignore[assignment]
    decay: Float[Array, ""] = eqx.field(converter=as_number, default=0.0)  # type: ignore[assignment]

    word: ClassVar[str] = "lion"
    averages: ClassVar[str] = "sign"

    def __check_init__(self) -> None:
        require("rate", self.rate, open_=True)
        for name in ("beta1", "beta2"):
            require(name, getattr(self, name), 0.0, 1.0)
        require("decay", self.decay)

    @property
    def beta(self) -> Any:
        return self.beta2

    def batch_rule(self) -> AbstractBatchRule:
        return LionRule(self.beta1, self.beta2)

    def step(self, trace: float) -> Float[Array, ""]:
        return self.rate / trace**0.5

    @staticmethod
    def transformation(numbers: Mapping[str, Any]) -> optax.GradientTransformation:
        return optax.scale_by_lion(numbers["beta1"], numbers["beta2"])

    def preconditioner(self, seen: Seen) -> Float[Array, "modes b b"]:
        return alike(seen, seen.rate)
