r"""Online SGD of any finite-rank transformer as a closed ODE for the overlaps of its rows, at finite context, on any spectrum.

    dq_k/dt = M_k q_k + q_k M_k^T + (eta^2/B) lam_k V,    M_k = -eta (lam_k G + H) - w S
    G C = E[sum_t g_t phi_t^T],   V = sum_ts rho_ts E[g_t g_s^T],   H = E[dl/dR + (dl/dR)^T],   g_t = dl/dphi_t

Derived in derivations/mean_field/script.py; expectations by quadrature with an error bar, or in closed form.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.clock import Clock, ConstantSchedule, Schedule, schedule_by_value, schedule_kinks
from odescale.errors import InputError
from odescale.expectations.closure import AbstractClosure, Moments
from odescale.networks.teacher_student import TeacherStudent
from odescale.optimizers.flow import RowOptimizers
from odescale.systems import tables
from odescale.systems.base import DIVERGED, AbstractEnsemble, Integration, loss_at_start
from odescale.systems.initial import check_overlaps
from odescale.systems.parameters import Parameter, is_traced

NODES_RTOL = 1e-3
"""Of a step where node sets differ by a per cent or so."""


class MeanField(AbstractEnsemble):
    """Overlaps q_k of P rows per mode; see the module for the equations. One unit of t is `trace` = tr Sigma SGD steps.

    The state has a leading axis of replicates: the same ODE closed by independent node sets. Their mean is the prediction,
    their scatter its error bar. Overlaps are held in difference rows (student - teacher for paired rows), so that late
    losses are not lost to cancellation. With `friction` > 0 p velocity rows follow the P rows of the table.

    **Arguments**

    - `problem`: student, teacher, loss, tokens. `closure`: quadrature or closed form.
    - `initial_overlaps` (modes, P, P): q_k(0) in plain rows. `eigenvalues`, `weights` (modes,): `sum w_k lam_k = 1`.
    - `learning_rate` > 0, `batch` >= 1, `weight_decay` >= 0 (`W <- W - (w/N) W` per step), `schedule`.
    - `momentum`: mu in [0, 1), fixed as d grows: plain SGD at eta/(1 - mu). `friction`: gamma > 0 for mu = 1 - gamma/N with
      `W <- W - (eta/N) u`: velocities are then order parameters; 0 switches it off.
    - `noise`, `write_back`: 1.0 keeps V, H; 0.0 leaves them out (to see what they do).
    - `optimizers`: of the rows that move (`odescale.optimizers`), whose momentum and decay take the place of the three above; None:
      plain SGD. The state then has their velocities and second moments behind the rows of the table.
    - `expectations`: the closure in words, for reports.
    - `effective_dimension`: d_eff = (tr Sigma)^2/tr Sigma^2, and `dimension` d, for the size of finite-d corrections.

    **Failure regime.** Corrections are of order eta lam_1/N and 1/d_eff; `odescale.coverage` judges them.
    Source: Saad & Solla 1995; Goldt et al. 2019; Arnaboldi et al. 2023; derivations/mean_field/script.py.
    """

    problem: TeacherStudent
    closure: AbstractClosure
    initial_overlaps: Float[Array, "modes P P"]
    eigenvalues: Float[Array, " modes"]
    weights: Float[Array, " modes"]
    learning_rate: Float[Array, ""]
    batch: Float[Array, ""]
    weight_decay: Float[Array, ""]
    momentum: Float[Array, ""]
    friction: Float[Array, ""]
    noise: Float[Array, ""]
    write_back: Float[Array, ""]
    trace: float = eqx.field(static=True)
    dimension: float = eqx.field(static=True)
    effective_dimension: float = eqx.field(static=True)
    inertial: bool = eqx.field(static=True)
    schedule: Schedule = eqx.field(converter=schedule_by_value, default_factory=ConstantSchedule)
    label: str = eqx.field(static=True, default="mean_field")
    expectations: str = eqx.field(static=True, default="")
    optimizers: RowOptimizers | None = None

    name: ClassVar[str] = "mean_field"
    sources: ClassVar[tuple[str, ...]] = (
        "Saad & Solla, Phys. Rev. E 52, 4225 (1995): online SGD as a closed ODE for overlaps",
        "Goldt et al., NeurIPS 2019: teacher-student dynamics of two-layer networks",
        "Arnaboldi et al., COLT 2023: high-dimensional and mean-field limits",
        "derivations/mean_field/script.py: the closure for any finite-rank network, from the SGD update",
    )
    parameters: ClassVar[tuple[Parameter, ...]] = tables.MEAN_FIELD

    def __check_init__(self) -> None:
        if self.initial_overlaps.ndim != 3 or self.initial_overlaps.shape[1:] != (self.problem.size,) * 2:
            raise InputError(
                "initial_overlaps", expected=f"(modes, {self.problem.size}, {self.problem.size})",
                got=self.initial_overlaps.shape, remedy="one block per mode, rows in the order of problem.rows",
            )  # fmt: skip

    @property
    def loss_label(self) -> str:
        """What the loss is, for pictures."""
        what = getattr(self.problem.loss, "label", "")
        return f"excess loss L  ({what})" if what else "excess loss L"

    @property
    def integration(self) -> Integration:
        """For one mode explicit steps, loose ones where the closure has an error bar; implicit exact flows for a spectrum."""
        common: dict[str, Any] = {"exponents": "outputs", "over_nodes": True, "most_steps": 5_000, "growth": DIVERGED}
        if self.optimizers is not None:  # a preconditioner is no polynomial of lam_k, which the implicit flows rely on
            if self.optimizers.extra:  # velocities start at zero; their variance N (1 - beta) V/(2 B) is no divergence
                common["growth"] = DIVERGED * max(1.0, self.trace)
            ladder = ("bosh3", "kvaerno5") if self.closure.replicates > 1 else ("tsit5", "kvaerno5")
            return Integration(ladder, fine_rtol=1e-5, **common)
        if self.eigenvalues.shape[0] > 1:
            return Integration(("structured",), fine_rtol=None, **common)
        if self.closure.replicates > 1:
            # At 1e-3 the loss is good to 1e-4 in 6 evaluations a step, where order 3 takes more of them for 2e-3.
            return Integration(("tsit5", "bosh3"), also=("structured",), fine_rtol=1e-5, rtol=NODES_RTOL, **common)
        return Integration(("tsit5", "kvaerno5"), also=("structured",), fine_rtol=1e-5, **common)

    @property
    def clock(self) -> Clock:
        """One unit of t is `trace` SGD steps; tau is the intrinsic time of plain SGD."""
        tokens = jnp.asarray(self.problem.tokens - 1.0)  # the clock counts the last token apart
        return Clock(self.trace, self.learning_rate, self.schedule, self.batch, tokens)

    @property
    def kinks(self) -> tuple[Any, ...]:
        """Times at which the learning rate has a kink."""
        return schedule_kinks(self.schedule)

    @property
    def writes_back(self) -> bool:
        """True when R enters the closure."""
        return self.problem.writes_back

    @property
    def size(self) -> int:
        """Rows of the state: P, and p velocities with friction, or what the optimisers carry."""
        behind = self.problem.moved.size if self.inertial else self.optimizers.extra if self.optimizers else 0
        return self.problem.size + behind

    @property
    def trained(self) -> np.ndarray:
        """(P',) flags of the rows that move, velocities included."""
        extra = [True] * (self.size - self.problem.size)
        return np.asarray([*self.problem.trained, *extra], dtype=bool)

    def _basis(self, inverse: bool = False) -> Float[np.ndarray, "P P"]:
        basis = np.eye(self.size)
        T = self.problem.difference_basis()
        basis[: self.problem.size, : self.problem.size] = 2 * np.eye(self.problem.size) - T if inverse else T
        return basis

    def to_state(self, overlaps: Float[Array, "... p p"]) -> Float[Array, "... P P"]:
        """Plain overlaps into difference rows; velocities start at rest when they are missing."""
        missing = self.size - overlaps.shape[-1]
        if missing:
            overlaps = jnp.pad(overlaps, [(0, 0)] * (overlaps.ndim - 2) + [(0, missing)] * 2)
        basis = jnp.asarray(self._basis(), overlaps.dtype)
        return basis @ overlaps @ basis.T

    def to_overlaps(self, y: Float[Array, "... P P"]) -> Float[Array, "... P P"]:
        """Difference rows back into plain rows (velocity rows as they are)."""
        inverse = jnp.asarray(self._basis(inverse=True), y.dtype)
        return inverse @ y @ inverse.T

    def initial_state(self) -> Float[Array, "R modes P P"]:
        state = self.to_state(self.initial_overlaps)
        return jnp.broadcast_to(state, (self.closure.replicates, *state.shape))

    def couple(self, q: Float[Array, "modes P P"]) -> tuple[Float[Array, "P P"], Float[Array, "P P"]]:
        """(C, R) = sum_k w_k (lam_k, 1) q_k, in whichever rows the argument has."""
        return jnp.tensordot(self.weights * self.eigenvalues, q, axes=1), jnp.tensordot(self.weights, q, axes=1)

    def moments(self, C: Float[Array, "P P"], R: Float[Array, "P P"], replicate: Any = 0) -> Moments:
        """The closure at couplings in difference rows, without `noise` and `write_back` where they are switched off."""
        P = self.problem.size
        m = self.closure.moments(self.problem, C[:P, :P], R[:P, :P], replicate)
        of_average = m.of_average
        if of_average is not None:
            of_average = eqx.tree_at(lambda x: x.H, of_average, self.write_back * of_average.H)
        of_step = m.of_step
        if of_step is not None:
            of_step = eqx.tree_at(lambda x: (x.H, x.V), of_step, (self.write_back * of_step.H, self.noise * of_step.V))
        return Moments(m.loss, m.D, m.G, self.write_back * m.H, self.noise * m.V, of_average, of_step)

    def rates(
        self, t: Real[ArrayLike, ""], C: Float[Array, "P P"], R: Float[Array, "P P"], replicate: Any = 0
    ) -> tuple[Float[Array, "P P"], Float[Array, "P P"], Float[Array, "P P"]]:
        """(M1, M0, N): dq_k/dt = M_k q_k + q_k M_k^T + lam_k N, M_k = lam_k M1 + M0, in difference rows.

        Plain SGD: M1 = -eta G, M0 = -eta H - w S, N = eta^2 V/B. Heavy ball: gradients push the velocity rows U, and
        dW/dt = -eta U - w W, dU/dt = -gamma U + gradient.
        """
        m = self.moments(C, R, replicate)
        P, moved = self.problem.size, self.problem.moved
        eta = self.learning_rate * self.schedule(t)
        zeros = jnp.zeros((self.size, self.size), C.dtype)
        T = self.problem.difference_basis()
        decay = T @ np.diag(np.asarray(self.problem.trained, float)) @ (2 * np.eye(P) - T)
        M0 = zeros.at[:P, :P].set(-self.weight_decay * jnp.asarray(decay, C.dtype))
        if self.inertial:
            velocity = np.arange(P, self.size)
            M1 = zeros.at[velocity[:, None], np.arange(P)].set(m.G)
            M0 = M0.at[velocity[:, None], np.arange(P)].set(m.H)
            M0 = M0.at[velocity, velocity].set(-self.friction).at[moved, velocity].set(-eta)
            return M1, M0, zeros.at[np.ix_(velocity, velocity)].set(m.V / self.batch)
        eta = eta / (1 - self.momentum)
        M1 = zeros.at[moved].set(-eta * m.G)
        M0 = M0.at[moved].add(-eta * m.H)
        return M1, M0, zeros.at[np.ix_(moved, moved)].set(eta**2 / self.batch * m.V)

    def vector_field(self, t: Real[ArrayLike, ""], y: Float[Array, "R modes P P"], args: Any = None):
        flow = self._direct if self.eigenvalues.shape[0] == 1 and not self.inertial else self._by_modes
        flow = flow if self.optimizers is None else self._optimized
        return jax.lax.map(lambda pair: flow(t, *pair), (jnp.arange(y.shape[0]), y))

    def _by_modes(
        self, t: Real[ArrayLike, ""], replicate: Array, q: Float[Array, "modes P P"]
    ) -> Float[Array, "modes P P"]:
        M1, M0, N = self.rates(t, *self.couple(q), replicate)
        lam = self.eigenvalues[:, None, None]
        half = (lam * M1 + M0) @ q
        return half + jnp.swapaxes(half, 1, 2) + lam * N

    def _direct(self, t: Real[ArrayLike, ""], replicate: Array, q: Float[Array, "1 P P"]) -> Float[Array, "1 P P"]:
        # One mode has G q = E[sum g phi^T]: no factor is inverted where student and teacher meet.
        C, R = self.couple(q)
        m = self.moments(C, R, replicate)
        moved, lam = self.problem.moved, self.eigenvalues[0]
        eta = self.learning_rate * self.schedule(t) / (1 - self.momentum)
        T = self.problem.difference_basis()
        decay = T @ np.diag(np.asarray(self.problem.trained, float)) @ (2 * np.eye(self.problem.size) - T)
        half = (-self.weight_decay * jnp.asarray(decay, q.dtype) @ q[0]).at[moved].add(-eta * (lam * m.D + m.H @ q[0]))
        noise = jnp.zeros_like(C).at[np.ix_(moved, moved)].set(eta**2 / self.batch * lam * m.V)
        return (half + half.T + noise)[None]

    def _optimized(
        self, t: Real[ArrayLike, ""], replicate: Array, q: Float[Array, "modes P P"]
    ) -> Float[Array, "modes P P"]:
        assert self.optimizers is not None
        closure = self.optimizers.with_averages(self.closure, q, self.weights, self.problem.size, jnp.asarray(t))
        there = eqx.tree_at(lambda s: s.closure, self, closure)
        m, relative = there.moments(*self.couple(q), replicate), self.schedule(t)
        own = (2 * np.eye(self.problem.size) - self.problem.difference_basis())[self.problem.moved]
        return self.optimizers.flow(
            jnp.asarray(t), q, m, (self.eigenvalues, self.weights), self.batch, self.learning_rate * relative,
            jnp.asarray(relative), self.problem.moved, own,
        )  # fmt: skip

    def replicate_losses(self, t: Real[ArrayLike, ""], y: Float[Array, "R modes P P"]) -> Float[Array, " R"]:
        P = self.problem.size

        def one(pair):
            C, R = self.couple(pair[1])
            return self.closure.loss(self.problem, C[:P, :P], R[:P, :P], pair[0])

        return jax.lax.map(one, (jnp.arange(y.shape[0]), y))

    def estimate(self, values: Float[Array, "R ..."]) -> tuple[Array, Array]:
        return self.closure.estimate(values)

    def excess_loss(self, t: Real[ArrayLike, ""], y: Float[Array, "R modes P P"]) -> Float[Array, ""]:
        return self.estimate(self.replicate_losses(t, y))[0]

    def population_loss(self, C: Float[Array, "P P"], R: Float[Array, "P P"]) -> Float[Array, " R"]:
        """Excess loss at plain overlaps C, R (P, P) by every node set: the loss of a run at its measured overlaps."""
        basis = jnp.asarray(self.problem.difference_basis(), C.dtype)
        C, R = basis @ C @ basis.T, basis @ R @ basis.T
        return jax.lax.map(lambda r: self.closure.loss(self.problem, C, R, r), jnp.arange(self.closure.replicates))

    def observables(self, t: Real[ArrayLike, ""], y: Float[Array, "R modes P P"]) -> dict[str, Array]:
        """`overlaps` C, `row_overlaps` R of the rows (with friction and their velocities), estimated over replicates; cosines."""
        C, R = (self.estimate(x)[0] for x in jax.vmap(lambda q: self.couple(self.to_overlaps(q)))(y))
        if self.optimizers is not None:  # what optimisers carry are no overlaps of rows
            P = self.problem.size
            C, R = C[:P, :P], R[:P, :P]
        named: dict[str, Array] = {"overlaps": C, "row_overlaps": R}
        for student, teacher in self.problem.pairs:
            product = C[student, student] * C[teacher, teacher]
            cosine = C[student, teacher] / jnp.sqrt(jnp.where(product > 0, product, 1.0))
            named[f"cosine_{self.problem.rows[student]}"] = cosine
        return named

    def members(self, y: Float[Array, "R modes P P"]) -> Float[Array, "R modes P P"]:
        """The state as the structure-preserving solver moves it, replicate by replicate: it is in difference rows already."""
        return y

    def of_members(self, q: Float[Array, "R n modes P P"]) -> Float[Array, "n R modes P P"]:
        """The way back from `members`, at n times."""
        return jnp.swapaxes(q, 0, 1)

    def member(self, replicate: Any) -> MeanFieldMember:
        """The spectral problem of one node set, for the structure-preserving solver (difference rows)."""
        return MeanFieldMember(self, jnp.asarray(replicate))

    def check(self) -> None:
        if any(is_traced(x) for x in (self.initial_overlaps, self.learning_rate, self.batch, self.eigenvalues)):
            return
        check_overlaps(self.initial_overlaps, self.problem.size, modes=self.eigenvalues.shape[0])
        if self.inertial and float(self.momentum) > 0:
            raise InputError(
                "momentum", expected="0 with friction (one of the two scalings)", got=float(self.momentum),
                remedy="mu fixed: momentum; mu = 1 - gamma/N: friction",
            )  # fmt: skip
        loss = float(loss_at_start(self))
        if not loss > 0:
            raise InputError(
                "initial_overlaps", expected="a student that differs from its teacher (excess loss > 0)", got=loss,
                remedy="start elsewhere",
            )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        names = ("learning_rate", "batch", "weight_decay", "momentum", "friction", "noise", "write_back")
        values: dict[str, Any] = {name: float(getattr(self, name)) for name in names}
        lam = float(np.max(np.asarray(self.eigenvalues)))
        return (
            values
            | {
                "rows": list(self.problem.rows)
                + [f"u_{self.problem.rows[i]}" for i in self.problem.moved] * self.inertial,
                "trained": [self.problem.rows[i] for i in self.problem.moved],
                "tokens": self.problem.tokens,
                "modes": int(self.eigenvalues.shape[0]),
                "dimension": self.dimension,
                "steps_per_unit": self.trace,
                "effective_dimension": self.effective_dimension,
                "largest_step": values["learning_rate"] * lam / self.trace,
                "replicates": self.closure.replicates,
                "expectations": self.expectations,
            }
            | ({} if self.optimizers is None else {"optimizer": self.optimizers.text()})
        )


class MeanFieldMember(eqx.Module):
    """One replicate of a `MeanField` as `odescale.solve.structure` reads it: coefficients from couplings, nothing else."""

    system: MeanField
    replicate: Array

    @property
    def eigenvalues(self) -> Float[Array, " modes"]:
        """lam_k."""
        return self.system.eigenvalues

    @property
    def weights(self) -> Float[Array, " modes"]:
        """w_k."""
        return self.system.weights

    @property
    def trained(self) -> np.ndarray:
        """Rows that move."""
        return self.system.trained

    @property
    def writes_back(self) -> bool:
        """Whether R enters."""
        return self.system.writes_back

    @property
    def kinks(self) -> tuple[Any, ...]:
        """Kinks of the learning rate."""
        return self.system.kinks

    def drift(self, t: Array, C: Float[Array, "P P"], R: Float[Array, "P P"]) -> tuple[Array, Array, Array]:
        """(M1, M0, N) at couplings in difference rows."""
        return self.system.rates(t, C, R, self.replicate)
