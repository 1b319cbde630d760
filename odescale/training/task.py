"""Teacher tasks: Gaussian tokens of any spectrum, labelled by a teacher transformer."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.errors import InputError, whole
from odescale.networks.architecture import FieldNetwork
from odescale.networks.transformer import Transformer


class TeacherTask(eqx.Module):
    """x_t ~ N(0, diag(lam)), t = 0..T, the last one the query; labels y = teacher(x_0..x_T).

    **Arguments**

    - `teacher`: the network that labels, row numbers into the table of P rows.
    - `tokens`: T >= 1 context tokens. `batch`: B >= 1 sequences per step.
    - `dimension`: d >= 1, or None to take it from `eigenvalues`.
    - `eigenvalues`: `(d,)` positive eigenvalues of the token covariance in its eigenbasis, None for isotropic tokens.

    N = `scale` = tr Sigma: one unit of t is N SGD steps (d for isotropic tokens, 1 when the eigenvalues sum to 1).
    """

    teacher: FieldNetwork
    dimension: int = eqx.field(static=True)
    tokens: int = eqx.field(static=True)
    batch: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    deviations: Float[Array, " d"] | None

    def __init__(
        self,
        teacher: FieldNetwork,
        *,
        tokens: int,
        batch: int,
        dimension: int | None = None,
        eigenvalues: Float[np.ndarray, " d"] | None = None,
    ) -> None:
        tokens, batch = whole("tokens", tokens), whole("batch", batch)
        dimension = None if dimension is None else whole("dimension", dimension)
        if eigenvalues is None:
            if dimension is None:
                raise InputError("dimension", expected="an integer >= 1", got=None, remedy="pass it, or eigenvalues")
            self.deviations, self.scale = None, float(dimension)
        else:
            lam = np.asarray(eigenvalues, dtype=np.float64)
            if lam.ndim != 1 or lam.size == 0 or not (np.isfinite(lam).all() and (lam > 0).all()):
                raise InputError(
                    "eigenvalues", expected="(d,) positive numbers", got=lam, remedy="drop modes that are zero"
                )
            if dimension is not None and dimension != len(lam):
                raise InputError(
                    "dimension", expected=f"{len(lam)} = len(eigenvalues)", got=dimension, remedy="leave it out"
                )
            dimension = len(lam)
            self.deviations, self.scale = np.sqrt(lam), float(lam.sum())  # type: ignore[assignment]
        self.teacher = teacher
        self.dimension, self.tokens, self.batch = dimension, tokens, batch

    @property
    def eigenvalues(self) -> Float[np.ndarray, " d"]:
        """`(d,)` eigenvalues of the token covariance; ones for isotropic tokens."""
        return np.ones(self.dimension) if self.deviations is None else np.asarray(self.deviations) ** 2

    def sample_tokens(self, key: Array, dtype: np.dtype | type = np.float64) -> Float[Array, "B n d"]:
        """`(B, T + 1, d)` fresh tokens, drawn in `dtype`."""
        x = jax.random.normal(key, (self.batch, self.tokens + 1, self.dimension), dtype)
        return x if self.deviations is None else x * jnp.asarray(self.deviations, dtype)

    def labels(self, rows: Float[Array, "P d"], tokens: Float[Array, "B n d"]) -> Float[Array, "B K"]:
        """`(B, K)` teacher outputs at the query tokens, teacher rows taken from the `(P, d)` table."""
        return jax.vmap(Transformer.from_rows(self.teacher, rows, self.scale))(tokens)

    def sample_batch(self, key: Array, rows: Float[Array, "P d"]) -> tuple[Float[Array, "B n d"], Float[Array, "B K"]]:
        """Fresh tokens and their labels, in the dtype of `rows`."""
        tokens = self.sample_tokens(key, rows.dtype)
        return tokens, self.labels(rows, tokens)
