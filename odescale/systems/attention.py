"""Online SGD of a multi-layer softmax transformer at infinite context, as a closed ODE for the overlaps of its rows.

The right-hand side comes from `odescale.generated.attention`, written by `derivations/attention/script.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.cache.programs import program
from odescale.clock import Clock, ConstantSchedule, Schedule, schedule_by_value, schedule_kinks
from odescale.errors import InputError, OutsideTheoryError
from odescale.expectations.closure import Moments
from odescale.expectations.sampled import SampledContext
from odescale.generated import attention as formulas
from odescale.networks.architecture import Architecture, FieldNetwork
from odescale.optimizers.flow import RowOptimizers
from odescale.systems import tables
from odescale.systems.base import DIVERGED, AbstractSystem, Integration, loss_at_start
from odescale.systems.initial import check_overlaps
from odescale.systems.parameters import Parameter, is_traced


class Attention(AbstractSystem):
    """dq_k/dt = M_k q_k + q_k M_k^T + (eta^2/B) lam_k V,  M_k = -eta (lam_k G + H) - w S.

    q_k are the overlaps of the P rows in mode k of the token covariance, `C = sum_k w_k lam_k q_k` the covariance of the
    local fields, `R = sum_k w_k q_k` the overlaps with metric I; G, H, V are the derivatives and the gradient noise of
    the population loss `L = 1/2 sum_i b_i^T C b_i`. One unit of t is `trace` = tr Sigma SGD steps (the dimension for
    isotropic tokens, one step for a covariance of trace one). `eta(t) = learning_rate schedule(t)`.

    The state holds T q_k T^T with T taking (student - teacher) differences of paired rows: late in a run the loss is
    a sum of small squares there, where in the plain overlaps it would be lost to cancellation.

    **Arguments**

    - `architecture`: rows and networks. `initial_overlaps` (modes, P, P): q_k(0), positive semi-definite.
    - `learning_rate` > 0, `batch` >= 1 sequences, `weight_decay` >= 0 (`W <- W - (w/N) W` per step).
    - `noise`: 1.0 keeps the SGD noise V, 0.0 is the gradient flow of the population loss.
    - `eigenvalues`, `weights` (modes,): lam_k and multiplicity/trace, with `sum w_k lam_k = 1`.
    - `tokens`: context length T; used by the dynamics only with `finite_context=True` (one layer, value = identity) and
      with `sampled` (isotropic tokens, value = identity, any depth): drift, noise and loss at T context tokens to all
      orders in 1/T, `dC/dt = -eta (D + D^T) + (eta^2/B) V`, by fixed Gaussian nodes.

    - `optimizers`: of the rows that move (`odescale.optimizers`), in the place of learning rate and decay; None: plain SGD. The
      state then has their velocities and second moments behind the rows.

    **Failure regime.** `eta |S a|^2 >= 2 B` diverges and is refused; `eta lam_1/trace` and 1/d_eff measure the finite-size
    error of the theory. A loss below 2e-14 of its start is rounding and masked. Source: see `sources`.
    """

    architecture: Architecture
    initial_overlaps: Float[Array, "modes P P"]
    learning_rate: Float[Array, ""]
    batch: Float[Array, ""]
    weight_decay: Float[Array, ""]
    noise: Float[Array, ""]
    eigenvalues: Float[Array, " modes"]
    weights: Float[Array, " modes"]
    trace: float = eqx.field(static=True)
    schedule: Schedule = eqx.field(converter=schedule_by_value, default_factory=ConstantSchedule)
    tokens: Any = jnp.inf
    finite_context: bool = eqx.field(static=True, default=False)
    sampled: SampledContext | None = None
    label: str = eqx.field(static=True, default="attention")
    optimizers: RowOptimizers | None = None

    name: ClassVar[str] = "attention"
    loss_label: ClassVar[str] = "excess loss L  (half squared error)"
    sources: ClassVar[tuple[str, ...]] = (
        "Saad & Solla, Phys. Rev. E 52, 4225 (1995): online SGD as a closed ODE for overlaps",
        "Goldt et al., NeurIPS 2019: teacher-student dynamics of two-layer networks",
        "derivations/attention/script.py: the softmax average as a Gaussian tilt, layer by layer",
    )
    parameters: ClassVar[tuple[Parameter, ...]] = tables.ATTENTION_NUMBERS

    @property
    def integration(self) -> Integration:
        """Explicit first for one mode; the structure-preserving implicit solver for a spectrum; low order when sampled."""
        if self.sampled is not None:
            # Second derivatives through random nodes would be noise.
            return Integration(
                ("bosh3",), exponents="outputs", over_nodes=True, resampled=True, fine_rtol=None, growth=DIVERGED
            )
        if self.eigenvalues.shape[0] == 1 or self.optimizers is not None:
            also = ("structured",) if self.optimizers is None else ()
            return Integration(("tsit5", "kvaerno5"), also=also, growth=DIVERGED)
        return Integration(("structured",), exponents="outputs", fine_rtol=None, growth=DIVERGED)

    @property
    def clock(self) -> Clock:
        """One unit of t is `trace` SGD steps."""
        return Clock(self.trace, self.learning_rate, self.schedule, self.batch, self.tokens)

    @property
    def writes_back(self) -> bool:
        """True when value/output rows bring in R and H."""
        return self.architecture.writes_back

    @property
    def trained(self) -> np.ndarray:
        """(P,) mask of the rows that SGD moves."""
        return self.architecture.trained_mask

    def to_state(self, overlaps: Float[Array, "... P P"]) -> Float[Array, "... P P"]:
        """Plain overlaps q into the difference basis of the state."""
        return self._add_teachers(overlaps, -1)

    def to_overlaps(self, y: Float[Array, "... P P"]) -> Float[Array, "... P P"]:
        """The state back into plain overlaps q."""
        return self._add_teachers(y, 1)

    def _add_teachers(self, q: Float[Array, "... P P"], sign: int) -> Float[Array, "... P P"]:
        """Every paired row plus or minus its teacher, on both sides: sums of slices, a quarter of the time of T q T^T."""
        for axis in (q.ndim - 2, q.ndim - 1):
            parts = []
            for first, end, teacher in _runs(self.architecture):
                own = jax.lax.slice_in_dim(q, first, end, axis=axis)
                if teacher is not None:
                    own = own + sign * jax.lax.slice_in_dim(q, teacher, teacher + end - first, axis=axis)
                parts.append(own)
            if q.shape[axis] > self.architecture.size:  # what the optimisers carry
                parts.append(jax.lax.slice_in_dim(q, self.architecture.size, q.shape[axis], axis=axis))
            q = jnp.concatenate(parts, axis=axis)
        return q

    def _basis(self, like: Array) -> Float[Array, "P P"]:
        # In the dtype of what it multiplies: a NumPy float64 matrix would lift a float32 run to float64.
        return jnp.asarray(self.architecture.difference_basis(), dtype=like.dtype)

    def couple(self, overlaps: Float[Array, "modes P P"]) -> tuple[Float[Array, "P P"], Float[Array, "P P"]]:
        """(C, R): field covariance and overlaps with metric I, in whichever basis the argument has."""
        C = jnp.tensordot(self.weights * self.eigenvalues, overlaps, axes=1)
        R = jnp.tensordot(self.weights, overlaps, axes=1) if self.writes_back else C
        return C, R

    def closure(
        self, C: Float[Array, "P P"], R: Float[Array, "P P"]
    ) -> tuple[Float[Array, "P P"], Float[Array, "P P"], Float[Array, "P P"]]:
        """(G, H, V): drift coefficients along C and R and the gradient noise, zero on rows that do not move."""
        student, teacher = self.architecture.student, self.architecture.teacher
        trained = jnp.asarray(self.trained, dtype=C.dtype)
        if self.finite_context:
            G, V = formulas.finite_context_closure(C, self.tokens, student, teacher, trained)
            return G, jnp.zeros_like(G), V
        return formulas.closure(C, R, student, teacher, trained)

    @property
    def kinks(self) -> tuple[Any, ...]:
        """Times at which eta(t) has a kink: the structure-preserving solver ends a step there."""
        return schedule_kinks(self.schedule)

    def drift(
        self, t: Real[ArrayLike, ""], C: Float[Array, "P P"], R: Float[Array, "P P"]
    ) -> tuple[Float[Array, "P P"], Float[Array, "P P"], Float[Array, "P P"]]:
        """(M1, M0, N) = (-eta G, -eta H - w S, (eta^2/B) V) at time t, so that `dq_k/dt = M_k q_k + q_k M_k^T + lam_k N`.

        `M_k = lam_k M1 + M0`; per unit of t. See `odescale.solve.structure`.
        """
        G, H, V = self.closure(C, R)
        eta = self.learning_rate * self.schedule(t)
        decay = self.weight_decay * jnp.diag(jnp.asarray(self.trained, dtype=C.dtype))
        return -eta * G, -eta * H - decay, self.noise * eta**2 / self.batch * V

    def members(self, y: Float[Array, "modes P P"]) -> Float[Array, "1 modes P P"]:
        """The state as the structure-preserving solver moves it: plain overlaps, mode by mode, one member."""
        return self.to_overlaps(y)[None]

    def member(self, replicate: Any) -> Attention:
        """The problem of that solver."""
        return self

    def of_members(self, q: Float[Array, "1 n modes P P"]) -> Float[Array, "n modes P P"]:
        """The way back from `members`, at n times."""
        return self.to_state(q[0])

    def resampled(self, seed: int | None = None) -> Attention:
        """The same system with an independent node set in its sampled closure; itself where nothing is sampled."""
        if self.sampled is None:
            return self
        return eqx.tree_at(lambda system: system.sampled, self, self.sampled.another(seed))

    def initial_state(self) -> Float[Array, "modes P P"]:
        return _start(self)

    def _table(self, y: Float[Array, "modes R R"]) -> Float[Array, "modes P P"]:
        """The rows of the table in a state, without what the optimisers carry."""
        P = self.architecture.size
        return y if self.optimizers is None else y[..., :P, :P]

    def _optimized(
        self, t: Array, q: Float[Array, "modes R R"], optimizers: RowOptimizers
    ) -> Float[Array, "modes R R"]:
        G, H, V = self.closure(*self.couple(self._table(q)))
        moved = np.flatnonzero(self.trained)
        pair = np.ix_(moved, moved)
        moments = Moments(jnp.zeros(()), G[moved], G[moved], H[moved], self.noise * V[pair])  # D is not read
        relative = jnp.asarray(self.schedule(t))
        own = np.eye(self.architecture.size)[moved]
        spectrum = (self.eigenvalues, self.weights)
        return optimizers.flow(t, q, moments, spectrum, self.batch, self.learning_rate * relative, relative, moved, own)

    def vector_field(self, t: Real[ArrayLike, ""], y: Float[Array, "modes P P"], args: Any = None):
        q = self.to_overlaps(y)
        if self.optimizers is not None:
            return self.to_state(self._optimized(jnp.asarray(t), q, self.optimizers))
        eta = self.learning_rate * self.schedule(t)
        if self.sampled is not None:
            D, V, _ = self.sampled.moments(self.couple(q)[0], self.architecture)
            half = -eta * D - self.weight_decay * self.trained.astype(q.dtype)[:, None] * q[0]
            return self.to_state((half + half.T + eta**2 / self.batch * self.noise * V)[None])
        M1, M0, N = self.drift(t, *self.couple(q))
        lam = self.eigenvalues[:, None, None]
        half = (lam * M1 + M0) @ q
        return self.to_state(half + jnp.swapaxes(half, 1, 2) + lam * N)

    def excess_loss(self, t: Real[ArrayLike, ""], y: Float[Array, "modes P P"]) -> Float[Array, ""]:
        """L = 1/2 sum_i b_i^T C b_i in the difference basis (finite context: the O(1/T) loss; sampled: E l at T)."""
        y = self._table(y)
        C, R = self.couple(self.to_overlaps(y))
        if self.sampled is not None:
            return self.sampled.loss(C, self.architecture)
        student, teacher = self.architecture.student, self.architecture.teacher
        if self.finite_context:
            return formulas.finite_context_loss(C, self.tokens, student, teacher)
        errors = formulas.functionals(C, R, student) - formulas.functionals(C, R, teacher)
        inverse = 2 * jnp.eye(self.architecture.size, dtype=errors.dtype) - self._basis(errors)
        small = errors @ inverse
        return 0.5 * jnp.einsum("ip,pq,iq->", small, self.couple(y)[0], small)

    def observables(self, t: Real[ArrayLike, ""], y: Float[Array, "modes P P"]) -> dict[str, Array]:
        """`overlaps` C (P, P), the learning speed `c = tr S a a^T S`, and the cosine of each student/teacher pair."""
        y = self._table(y)
        C, R = self.couple(self.to_overlaps(y))
        a = formulas.functionals(C, R, self.architecture.student)
        named: dict[str, Array] = {"overlaps": C, "learning_speed": jnp.sum((a * self.trained.astype(a.dtype)) ** 2)}
        for student, teacher in self.architecture.pairs:
            product = C[student, student] * C[teacher, teacher]
            cosine = C[student, teacher] / jnp.sqrt(jnp.where(product > 0, product, 1.0))
            named[f"cosine_{self.architecture.rows[student]}"] = cosine
        return named

    def stability_bound(self) -> float:
        """Largest stable learning rate, `2 B / max |S a|^2` over the start and the teacher (largest eigenvalue over outputs).

        The error e of one output obeys `dE e^2/dt = (-2 eta c + eta^2 c^2/B) E e^2`, c = |S a|^2: the gradient noise of
        the error itself outgrows the drift beyond eta c = 2 B.
        """
        speeds = [np.linalg.eigvalsh(a @ a.T)[-1] for a in np.asarray(_functionals_at_ends(self))]
        return 2 * float(self.batch) / max(max(speeds), 1e-300)

    def check(self) -> None:
        if any(is_traced(x) for x in (self.initial_overlaps, self.learning_rate, self.batch, self.eigenvalues)):
            return
        check_overlaps(self.initial_overlaps, self.architecture.size, modes=self.eigenvalues.shape[0])
        if self.finite_context:
            self._check_finite_context()
        if self.sampled is not None:
            self._check_sampled(self.sampled)
        bound = float(self.stability_bound()) if self.optimizers is None else np.inf
        if float(self.noise) > 0 and float(self.learning_rate) >= bound:
            raise InputError(
                "learning_rate",
                expected=f"less than 2 batch/|S a|^2 = {bound:.4g}, where the gradient noise outgrows the drift",
                got=float(self.learning_rate),
                remedy="lower learning_rate or raise batch",
            )
        if not float(loss_at_start(self)) > 0:
            raise InputError(
                "initial_overlaps", expected="a student that differs from its teacher (loss > 0)", got="loss 0",
                remedy="start elsewhere",
            )  # fmt: skip

    def _check_finite_context(self) -> None:
        C = np.asarray(self.couple(self.initial_overlaps)[0])
        both = (*_heads(self.architecture.student), *_heads(self.architecture.teacher))
        if any(head.rank > 1 for head in both):
            raise OutsideTheoryError(
                "context", expected="heads of rank one for the O(1/T) correction", got="a higher rank",
                remedy="set context=sampled or context=infinite",
            )  # fmt: skip
        heads = [head.terms[0] for head in both if not head.uniform]
        for place, (q, k) in enumerate(heads):
            for other_q, other_k in heads[place:]:
                # One head: 2 C_kk C_qq < 1. Two heads share the context, and their product has a Gaussian tilt of its own.
                kappa = C[k, other_k]
                slack = 1 - kappa * C[q, other_q] - abs(kappa) * np.sqrt(C[q, q] * C[other_q, other_q])
                if slack <= 0:
                    names = " and ".join(dict.fromkeys((self.architecture.rows[q], self.architecture.rows[other_q])))
                    raise OutsideTheoryError(
                        "context",
                        expected="2 C_kk C_qq < 1 for every pair of heads (the domain of the O(1/T) expansion)",
                        got=f"{1 - slack:.3g} for {names}",
                        remedy="use weaker rows, or context=infinite",
                    )

    def _check_sampled(self, sampled: SampledContext) -> None:
        if self.eigenvalues.shape[0] > 1 or self.writes_back:
            raise OutsideTheoryError(
                "context", expected="isotropic tokens and value = identity for the sampled closure",
                got=f"{self.eigenvalues.shape[0]} modes" + (", value/output rows" if self.writes_back else ""),
                remedy="set context=infinite",
            )  # fmt: skip
        if sampled.tokens != float(self.tokens):
            raise InputError(
                "tokens", expected=f"the {sampled.tokens} of the sampled closure", got=float(self.tokens),
                remedy="build both with the same tokens",
            )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        values = {
            name: float(getattr(self, name)) for name in ("learning_rate", "batch", "weight_decay", "noise", "tokens")
        }
        return (
            values
            | {
                "rows": list(self.architecture.rows),
                "trained": [
                    row for row, moves in zip(self.architecture.rows, self.architecture.trained, strict=True) if moves
                ],
                "depth": self.architecture.student.depth,
                "modes": int(self.eigenvalues.shape[0]),
                "steps_per_unit": self.trace,
                "context": "finite" if self.finite_context else "infinite" if self.sampled is None else "sampled",
            }
            | ({} if self.sampled is None else {"sequences": self.sampled.sequences})
            | ({} if self.optimizers is None else {"optimizer": self.optimizers.text()})
        )


def _runs(architecture: Architecture) -> list[tuple[int, int, int | None]]:
    """(first, end, teacher of the first) of maximal runs of rows whose teachers follow one another; None without a teacher."""
    teachers = dict(architecture.pairs)
    runs: list[tuple[int, int, int | None]] = []
    for row in range(architecture.size):
        teacher = teachers.get(row)
        if runs:
            first, end, begins = runs[-1]
            if teacher == (None if begins is None else begins + end - first):
                runs[-1] = (first, row + 1, begins)
                continue
        runs.append((row, row + 1, teacher))
    return runs


@program
def _start(system: Attention) -> Float[Array, "modes P P"]:
    extra = 0 if system.optimizers is None else system.optimizers.extra
    state = system.to_state(system.initial_overlaps)
    return jnp.pad(state, [(0, 0)] + [(0, extra)] * 2) if extra else state


@program
def largest_load(C: Float[Array, "P P"], R: Float[Array, "P P"], architecture: Architecture) -> Float[Array, ""]:
    """The larger `softmax_load` of student and teacher."""
    return jnp.maximum(*(softmax_load(C, R, network) for network in (architecture.student, architecture.teacher)))


@program
def couple_at_start(system: Attention) -> tuple[Float[Array, "P P"], Float[Array, "P P"]]:
    """(C, R) of the initial overlaps."""
    return system.couple(system.initial_overlaps)


@program
def _functionals_at_ends(system: Attention) -> Float[Array, "2 K P"]:
    """S a at the start, and with every student row put onto its teacher's."""
    architecture = system.architecture
    copy = np.eye(architecture.size)
    for student, teacher in architecture.pairs:
        copy[student] = np.eye(architecture.size)[teacher]
    start = system.couple(system.initial_overlaps)
    ends = (start, tuple(jnp.asarray(copy @ x @ copy.T) for x in start))
    return jnp.stack([formulas.functionals(C, R, architecture.student) for C, R in ends]) * system.trained


def softmax_load(C: Float[Array, "P P"], R: Float[Array, "P P"], network: FieldNetwork) -> Float[Array, ""]:
    """max over heads of 2 lambda_max(C_KK C_QQ) in the fields that enter the head's layer; 0 without heads that query.

    C_KK and C_QQ (r, r) are the covariances of the head's key and query fields: 2 C_kk C_qq at rank one. Beyond 1 the mean of
    exp(score^2) over the query token, and with it the variance of the softmax weights, is infinite.
    """
    maps = formulas.layers(C, R, network)
    load = jnp.zeros((), C.dtype)
    for depth, layer in enumerate(network.layers):
        covariance = maps[depth] @ C @ maps[depth].T
        for head in layer:
            if head.rank == 1:
                ((query, key),) = head.terms
                load = jnp.maximum(load, 2 * covariance[key, key] * covariance[query, query])
            elif head.rank:
                queries, keys = (jnp.asarray(rows) for rows in zip(*head.terms, strict=True))
                w, U = jnp.linalg.eigh(covariance[queries[:, None], queries])
                root = U * jnp.sqrt(jnp.maximum(w, 0.0))
                product = root.T @ covariance[keys[:, None], keys] @ root
                load = jnp.maximum(load, 2 * jnp.linalg.eigvalsh(product)[-1])
    return load


def _heads(network: FieldNetwork) -> list:
    return [head for layer in network.layers for head in layer]
