"""The closure at finite context by fixed Gaussian nodes: any depth, to all orders in 1/T, with a Monte Carlo error."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odescale.errors import OutsideTheoryError, whole
from odescale.expectations.closure import factor
from odescale.expectations.finite_context import CHUNK_BYTES
from odescale.networks.architecture import Architecture
from odescale.networks.fields import apply_on_queries
from odescale.precision import resolve_dtype


class SampledContext(eqx.Module):
    r"""D = S E sum_t g_t phi_t^T, V = S E[sum_t g_t g_t^T] S, L = E l over fixed nodes: g_t = dl/dphi_t, phi_t ~ N(0, C).

        dC/dt = -eta (D + D^T) + (eta^2/B) V                  (isotropic tokens; one unit of t is d SGD steps)

    are the mean-field equations at T context tokens, d -> infinity. The nodes z stay the same at every C, phi = F z with
    F F^T = C: the right-hand side is a smooth, deterministic function of the overlaps, and solutions on independent
    node sets differ by the sampling error of a whole trajectory.

    One sequence has T context tokens and T queries that share them; D, V and L average over all queries. Its moments
    enter with weights that make the means of z z^T over contexts and over queries exactly I: the least-squares
    regression on these as control variates, which for fixed nodes is the same for every entry of D, V and L.

    - `nodes` (sequences, 2 T, P) standard normal, contexts before queries; `signs` (sequences, T), +1 or -1.
    - `weights` (sequences,), sum 1. `tokens` = T. `precision` of the networks ("float32": about 1.5 times as fast,
      relative error 1e-6); factors and means are float64 in any case. `chunk`: sequences at once, no effect on the numbers.

    Source: the mean-field equations with expectations by sampling (docs, "the softmax transformer", finite context).
    """

    nodes: Float[Array, "sequences n P"]
    signs: Float[Array, "sequences T"]
    weights: Float[Array, " sequences"]
    seed: Int[Array, ""]  # an array, so that another node set is not another compilation
    tokens: int = eqx.field(static=True)
    precision: str = eqx.field(static=True)
    chunk: int = eqx.field(static=True)

    @property
    def sequences(self) -> int:
        """Number of node sequences."""
        return self.nodes.shape[0]

    def another(self, seed: int | None = None) -> SampledContext:
        """The same closure on an independent node set: `seed`, default the next one."""
        return sample_context(
            self.nodes.shape[2],
            self.tokens,
            self.sequences,
            int(self.seed) + 1 if seed is None else seed,
            precision=self.precision,
        )

    def moments(
        self, C: Float[Array, "P P"], architecture: Architecture
    ) -> tuple[Float[Array, "P P"], Float[Array, "P P"], Float[Array, ""]]:
        """(D, V, L) at overlaps C, value = identity; D and V are zero on rows that do not move.

        **Errors**: `OutsideTheoryError` for value/output rows. C may be singular.
        """
        _check_architecture(architecture)
        root = factor(C, architecture.trained)
        loss, D, V = _weighted(self, architecture, root, gradients=True)
        moved = np.flatnonzero(architecture.trained_mask)
        zeros = jnp.zeros_like(C)
        return zeros.at[moved].set(D), zeros.at[np.ix_(moved, moved)].set(V), loss

    def loss(self, C: Float[Array, "P P"], architecture: Architecture) -> Float[Array, ""]:
        """L alone, by the forward pass."""
        _check_architecture(architecture)
        return _weighted(self, architecture, factor(C, architecture.trained), gradients=False)[0]


def sample_context(
    size: int, tokens: int, sequences: int = 1024, seed: int = 0, *, precision: str = "float32"
) -> SampledContext:
    """Nodes for P = `size` rows and T = `tokens`: `sequences` x 2 T standard normal vectors.

    **Arguments**: `tokens` >= 1, `sequences` >= 2 (fewer than 10 per control variate, P (P + 1) of them, use half of the
    control variates, then none); `seed` names the node set; `precision` "float32" or "float64".

    **Good values**: quickstart, T = 64: 1024 sequences give D to 0.4 to 0.7 % and L to 0.7 to 1.2 % up to the drop of the
    loss (there D of the nearly learned layer to 1.4 %), and the loss of a whole trajectory to 0.4 to 2 %; the errors go
    down as 1/sqrt(sequences), the time of one evaluation is 0.06 s on one core.
    """
    for name, value, least in (("tokens", tokens, 1), ("sequences", sequences, 2), ("size", size, 1)):
        whole(name, value, least)
    dtype = resolve_dtype(precision, "sample_context")
    # NumPy draws, so that the nodes are concrete numbers also where a system is built inside a JAX transformation.
    rng = np.random.default_rng((seed, 0x5A))
    shape = int(sequences), 2 * int(tokens), int(size)
    nodes = rng.standard_normal(shape, dtype=np.float32).astype(float)
    signs = rng.integers(0, 2, (shape[0], int(tokens))) * 2.0 - 1.0
    budget = CHUNK_BYTES["cpu" if jax.default_backend() == "cpu" else "other"]
    # The backward passes hold several arrays of weights at once: a smaller share of the cache than a forward pass.
    chunk = int(np.clip(budget // (8 * dtype.itemsize * 2 * tokens**2), 1, min(sequences, 4096)))
    return SampledContext(
        jnp.asarray(nodes),
        jnp.asarray(signs),
        jnp.asarray(_control_weights(nodes, int(tokens))),
        jnp.asarray(int(seed)),
        tokens=int(tokens),
        precision=precision,
        chunk=2 ** (chunk.bit_length() - 1),
    )


def _weighted(
    context: SampledContext, architecture: Architecture, root: Float[Array, "P P"], gradients: bool
) -> tuple[Array, ...]:
    """Weighted means of l and, with `gradients`, of sum_t g_t phi_t^T and sum_t g_t g_t^T, rows that move alone."""
    T, dtype = context.tokens, resolve_dtype(context.precision, "SampledContext")
    moved = np.flatnonzero(architecture.trained_mask)
    root = root.astype(dtype)
    R = jnp.full_like(root, jnp.nan)  # read by heads that write through a row only, and those are refused

    def one(inputs: tuple[Array, Array]) -> tuple[Array, ...]:
        z, signs = inputs[0].astype(dtype), inputs[1].astype(dtype)
        phi = z @ root.T
        teacher = apply_on_queries(architecture.teacher, phi, R, T)

        def student(columns: Array) -> Array:
            return apply_on_queries(architecture.student, phi.at[:, moved].set(columns), R, T)

        if not gradients:
            return (0.5 * jnp.sum((student(phi[:, moved]) - teacher) ** 2) / T,)
        # Only the student depends on rows that move, and only their columns of g are wanted: a third of the time.
        outputs, pull = jax.vjp(student, phi[:, moved])
        e = outputs - teacher
        (g,) = pull(e)
        # Context tokens feel all T queries at once; random signs remove, in the mean, the products of two queries.
        (mixed,) = pull(signs[:, None] * e)
        V = (mixed[:T].T @ mixed[:T] + g[T:].T @ g[T:]) / T
        return 0.5 * jnp.sum(e**2) / T, g.T @ phi / T, V

    with jax.default_matmul_precision("highest"):
        values = jax.lax.map(one, (context.nodes, context.signs), batch_size=context.chunk)
    return tuple(jnp.tensordot(context.weights, x.astype(context.weights.dtype), axes=1) for x in values)


def _control_weights(nodes: np.ndarray, tokens: int) -> Float[np.ndarray, " sequences"]:
    """1/n minus the least-squares projection on the centred second moments, so that their weighted means vanish."""
    parts = [nodes[:, :tokens], nodes[:, tokens:]]
    size, upper = nodes.shape[2], np.triu_indices(nodes.shape[2])
    moments = [(np.swapaxes(z, 1, 2) @ z / tokens - np.eye(size))[:, upper[0], upper[1]] for z in parts]
    controls = np.concatenate(moments, axis=1)
    n = len(nodes)
    if n < 10 * controls.shape[1]:
        controls = moments[0]  # the shared context carries most of the variance
    if n < 10 * controls.shape[1]:
        return np.full(n, 1 / n)
    centred = controls - controls.mean(axis=0)
    return 1 / n - centred @ np.linalg.solve(centred.T @ centred, controls.mean(axis=0))


def _check_architecture(architecture: Architecture) -> None:
    if architecture.writes_back:
        raise OutsideTheoryError(
            "context", expected="heads with value = identity for the sampled closure", got="value/output rows",
            remedy="set context=infinite or value=identity",
        )  # fmt: skip
