"""Drift and noise of the overlaps at finite context, by sampling fields: any depth, heads and context length."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale import InputError
from odescale.expectations.gaussian_fields import overlap_root
from odescale.networks import Architecture
from odescale.networks.fields import apply_on_fields
from odescale.precision import resolve_dtype


class SampledClosure(eqx.Module):
    r"""Sample means and their standard errors, `(P, P)` each, rows of untrained weights zero.

        dC/dt = -eta (D + D^T) + (eta^2/B) V,      D = GC + H C        (isotropic tokens; one unit of t is d SGD steps)

    - `GC` = S E[sum_t g_t phi_t^T], g_t = dl/dphi_t: the drift through the fields.
    - `H` = S E[dl/dR + (dl/dR)^T]: the drift through write-back overlaps, zero for value = identity.
    - `V` = S E[sum_t g_t g_t^T] S: the noise of one sample.
    """

    GC: Float[np.ndarray, "P P"]
    H: Float[np.ndarray, "P P"]
    V: Float[np.ndarray, "P P"]
    GC_stderr: Float[np.ndarray, "P P"]
    H_stderr: Float[np.ndarray, "P P"]
    V_stderr: Float[np.ndarray, "P P"]

    def flow(self, C: Float[np.ndarray, "P P"], learning_rate: float, batch: float) -> Float[np.ndarray, "P P"]:
        """dC/dt for isotropic tokens at plain learning rate eta(t) and batch B, without weight decay."""
        drift = self.GC + self.H @ C
        return -learning_rate * (drift + drift.T) + learning_rate**2 / batch * self.V


def sampled_closure(
    architecture: Architecture,
    C: Float[np.ndarray, "P P"],
    R: Float[np.ndarray, "P P"] | None,
    tokens: int,
    key: Array,
    sequences: int = 4096,
    *,
    precision: str = "float64",
) -> SampledClosure:
    r"""Means of g phi^T, dl/dR and g g^T over sequences of fields phi_t ~ N(0, C), T context tokens and one query.

    The exact moment equations of the mean-field theory at finite T (d -> infinity), with expectations replaced by
    averages: at T -> infinity the closure of the infinite-context theory, before it with corrections of every order in
    1/T and for any number of layers. Independent keys at each step of an integrator average the sampling noise out.

    **Arguments**: as in `finite_context_loss`. **Returns** a `SampledClosure`.

    **Good values**: 2048 sequences per evaluation and 100 log-spaced Heun steps follow the quickstart to about 1 %.
    **Failure regime**: 2 K C_qq near 1 and above, where exponentiated squares of Gaussians make the averages heavy-tailed.

    Source: the mean-field equations for any network, way 3 of the theory (expectations by sampling).
    """
    for name, value, least in (("tokens", tokens, 1), ("sequences", sequences, 2)):
        if isinstance(value, bool) or not np.isfinite(value) or int(value) != value or value < least:
            raise InputError(name, expected=f"an integer >= {least}", got=value, remedy=f"pass {least} or more")
    dtype = resolve_dtype(precision, "sampled_closure")
    C = np.asarray(C, dtype=np.float64)
    R = C if R is None else np.asarray(R, dtype=np.float64)
    if C.shape != (architecture.size,) * 2 or R.shape != C.shape:
        raise InputError(
            "C",
            expected=f"overlaps of {architecture.size} rows",
            got=f"shapes {C.shape}, {R.shape}",
            remedy="match them",
        )
    root = jnp.asarray(overlap_root(C), dtype=dtype)
    with jax.default_matmul_precision("highest"):
        means, squares = _moments(architecture, root, jnp.asarray(R, dtype), key, int(tokens), int(sequences))
    GC, H, V = (np.asarray(mean, dtype=np.float64) for mean in means)
    errors = (
        np.sqrt(np.maximum(np.asarray(square, dtype=np.float64) - mean**2, 0.0) / (sequences - 1))
        for mean, square in zip((GC, H, V), squares, strict=True)
    )
    return SampledClosure(GC, H, V, *errors)


@eqx.filter_jit
def _moments(
    architecture: Architecture,
    root: Float[Array, "P P"],
    R: Float[Array, "P P"],
    key: Array,
    tokens: int,
    sequences: int,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    mask = jnp.asarray(architecture.trained_mask, root.dtype)[:, None]

    def loss(phi: Array, R: Array) -> Array:
        error = apply_on_fields(architecture.student, phi, R) - apply_on_fields(architecture.teacher, phi, R)
        return 0.5 * jnp.sum(error**2)

    def one(index: Array) -> tuple[Array, Array, Array]:
        phi = jax.random.normal(jax.random.fold_in(key, index), (tokens + 1, root.shape[0]), root.dtype) @ root.T
        g, dR = jax.grad(loss, argnums=(0, 1))(phi, R)
        g = g * mask[:, 0]
        return g.T @ phi, mask * (dR + dR.T), g.T @ g

    samples = jax.lax.map(one, jnp.arange(sequences), batch_size=min(64, sequences))
    return tuple(s.mean(axis=0) for s in samples), tuple((s**2).mean(axis=0) for s in samples)
