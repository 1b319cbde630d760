"""Test loss of a finite-context transformer at given overlaps, by Monte Carlo with control variates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.cache.programs import program
from odescale.errors import InputError, whole
from odescale.expectations.gaussian_fields import overlap_root
from odescale.networks.architecture import Architecture
from odescale.networks.fields import apply_on_queries
from odescale.networks.infinite import infinite_functionals
from odescale.precision import resolve_dtype

# The T x T attention weights of one chunk fill about this many bytes: small enough to stay in a core's cache on a
# CPU, large enough to keep an accelerator busy.
CHUNK_BYTES = {"cpu": 2**20, "other": 2**28}
CONTROLS = ("moments", "infinite", "none")


def finite_context_loss(
    architecture: Architecture,
    C: Float[np.ndarray, "P P"],
    R: Float[np.ndarray, "P P"] | None,
    tokens: int,
    key: Array,
    sequences: int = 4096,
    *,
    control: str = "moments",
    precision: str = "float64",
    chunk: int | None = None,
) -> tuple[float, float]:
    r"""L_T = E[l], l = 1/2 sum_i (f_i - f*_i)^2 at a query token with T context tokens, fields phi_t ~ N(0, C).

        estimate = mean over sequences of [ l - sum_jk c_jk (M_jk - C_jk) - sum_jk c'_jk (M'_jk - C_jk) ]

    A sequence is T context tokens and T query tokens that each read this context; l is the mean over its queries, and
    M, M' are the empirical covariances of the fields of its context and of its queries. Both have mean C exactly and
    serve as control variates; the loss of the infinite-context network at the same queries, 1/2 sum_i b_i^T M' b_i
    with mean L(C), is one linear function of them. Coefficients c come from least squares on the same samples.

    **Arguments**

    - `architecture`: student and teacher over P rows.
    - `C`, `R`: `(P, P)` overlaps with metric Sigma and with metric I. C may be singular. R is read by value/output
      heads only; `None` takes R = C (isotropic tokens).
    - `tokens`: T >= 1, context tokens that a query attends to. `sequences`: samples, >= 2; 4096 is a good value.
    - `key`: JAX random key. Sample i depends on (key, i) alone, so `chunk` never changes the numbers.
    - `control`: `"moments"` (all entries of M and M'), `"infinite"` (the infinite-context loss alone), `"none"`. With
      fewer than 10 samples per coefficient `"moments"` falls back to the entries of M + M', then to `"infinite"`, so
      that the bias of estimated coefficients, of order coefficients/sequences, stays small.
    - `precision`: `"float64"`, or `"float32"` for speed: then networks are evaluated in float32 (relative error of the
      loss about 1e-5), means in float64.
    - `chunk`: sequences held in memory at once; chosen from the memory of the 2 T^2 weights when None.

    **Returns** (mean, standard error), both floats, dimensionless.

    **Good values**: 4096 sequences, for a standard error well below one per cent of the loss at T = 64.

    **Failure regime**: 2 K C_qq near 1 and above (exponentiated
    squares of Gaussians) makes l heavy-tailed and the standard error too small.

    Source: docs, "the softmax transformer", comparison at finite context.
    """
    for name, value, least in (("tokens", tokens, 1), ("sequences", sequences, 2)):
        whole(name, value, least)
    if control not in CONTROLS:
        raise InputError("control", expected=f"one of {', '.join(CONTROLS)}", got=control, remedy="take the default")
    dtype = resolve_dtype(precision, "finite_context_loss")
    C = np.asarray(C, dtype=np.float64)
    R = C if R is None else np.asarray(R, dtype=np.float64)
    if C.shape != (architecture.size,) * 2 or R.shape != C.shape:
        raise InputError(
            "C",
            expected=f"overlaps of {architecture.size} rows",
            got=f"shapes {C.shape}, {R.shape}",
            remedy="match them",
        )
    size = _chunk(tokens, sequences, dtype) if chunk is None else int(chunk)
    root = jnp.asarray(overlap_root(C), dtype=dtype)
    with jax.default_matmul_precision("highest"):
        loss, moments = _losses_and_moments(
            architecture, root, jnp.asarray(R, dtype=dtype), key, int(tokens), int(sequences), size
        )
    loss = np.asarray(loss, dtype=np.float64)
    deviations = np.asarray(moments, dtype=np.float64) - C  # (sequences, 2, P, P): context, queries
    return _controlled_mean(loss, _controls(architecture, C, R, deviations, control))


def _chunk(tokens: int, sequences: int, dtype: np.dtype) -> int:
    budget = CHUNK_BYTES["cpu" if jax.default_backend() == "cpu" else "other"]
    most = int(np.clip(budget // (dtype.itemsize * 2 * tokens**2), 1, sequences))
    return 2 ** (most.bit_length() - 1)  # a power of two mostly divides `sequences`: no second compile for a rest


def _controls(
    architecture: Architecture, C: np.ndarray, R: np.ndarray, deviations: Float[np.ndarray, "n 2 P P"], control: str
) -> Float[np.ndarray, "n c"]:
    samples, entries = len(deviations), C.shape[0] * (C.shape[0] + 1) // 2
    if control == "none":
        return np.zeros((samples, 0))
    if control == "moments" and samples >= 10 * (entries + 1):
        if samples < 10 * (2 * entries + 1):
            deviations = deviations.mean(axis=1, keepdims=True)
        return deviations[(..., *np.triu_indices(C.shape[0]))].reshape(samples, -1)
    b = infinite_functionals(C, R, architecture.student) - infinite_functionals(C, R, architecture.teacher)  # type: ignore[arg-type]
    return 0.5 * np.einsum("ip,npq,iq->n", b, deviations[:, 1], b)[:, None]


def _controlled_mean(loss: Float[np.ndarray, " n"], controls: Float[np.ndarray, "n c"]) -> tuple[float, float]:
    """Mean of `loss` minus its regression on `controls`, whose exact mean is zero, and the standard error."""
    centred = controls - controls.mean(axis=0)
    spread = centred.std(axis=0)
    scaled = centred / np.where(spread > 0, spread, 1.0)
    # Least squares in the principal axes of the controls: singular overlaps make them collinear, and the cut-off drops
    # directions that are rounding.
    w, axes = np.linalg.eigh(scaled.T @ scaled)
    kept = axes[:, w > 1e-9 * w.max(initial=0.0)]
    w = w[w > 1e-9 * w.max(initial=0.0)]
    coefficients = kept @ ((scaled @ kept).T @ loss / w)
    residual = loss - (controls / np.where(spread > 0, spread, 1.0)) @ coefficients
    variance = np.square(residual - residual.mean()).sum() / max(len(loss) - 1 - len(w), 1)
    return float(residual.mean()), float(np.sqrt(variance / len(loss)))


@program
def _losses_and_moments(
    architecture: Architecture,
    root: Float[Array, "P P"],
    R: Float[Array, "P P"],
    key: Array,
    tokens: int,
    sequences: int,
    chunk: int,
) -> tuple[Float[Array, " n"], Float[Array, "n 2 P P"]]:
    def one(index: Array) -> tuple[Array, Array]:
        normal = jax.random.normal(jax.random.fold_in(key, index), (2 * tokens, root.shape[0]), root.dtype)
        phi = normal @ root.T
        outputs = [
            apply_on_queries(network, phi, R, tokens) for network in (architecture.student, architecture.teacher)
        ]
        parts = phi.reshape(2, tokens, -1)
        moments = jnp.swapaxes(parts, -1, -2) @ parts / tokens
        return 0.5 * jnp.sum((outputs[0] - outputs[1]) ** 2) / tokens, moments

    return jax.lax.map(one, jnp.arange(sequences), batch_size=chunk)
