r"""Student and teacher on one table of P rows, their loss, and the law of their tokens: all that a mean-field theory needs.

x_t in R^d Gaussian,  E[x_t x_s^T] = rho_ts Sigma,   phi_t = A x_t/sqrt(N),   N = tr Sigma,   l(f_student, f_teacher)
"""

from __future__ import annotations

from collections.abc import Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.errors import InputError, whole
from odescale.networks.losses import AbstractLoss, SquareLoss
from odescale.networks.row_network import RowNetwork


class TeacherStudent(eqx.Module):
    """Two `RowNetwork`s over one table of P rows: the student's first, then the teacher's, whose names get a star.

    Row names that are `frozen` are never trained; those in `shared` are the teacher's rows too (implies frozen).

    **Fields**

    - `student`, `teacher`, `loss`: networks and loss. `tokens`: T >= 1.
    - `correlation`: rho (T, T), symmetric positive semi-definite with ones on the diagonal.
    - `frozen`, `shared`: names of student rows.

    Build it with `teacher_student`.
    """

    student: RowNetwork
    teacher: RowNetwork
    loss: AbstractLoss
    tokens: int = eqx.field(static=True)
    correlation: tuple[tuple[float, ...], ...] = eqx.field(static=True)
    frozen: tuple[str, ...] = eqx.field(static=True, default=())
    shared: tuple[str, ...] = eqx.field(static=True, default=())
    label: str = eqx.field(static=True, default="mean_field")

    def __check_init__(self) -> None:
        for name in ("frozen", "shared"):
            for row in getattr(self, name):
                if row not in self.student.rows:
                    raise InputError(
                        name, expected=f"student rows: {', '.join(self.student.rows)}", got=row, remedy="drop it"
                    )
        for row in self.shared:
            if row not in self.teacher.rows:
                raise InputError("shared", expected="rows of both networks", got=row, remedy="drop it")
        if not any(self.trained):
            raise InputError("frozen", expected="at least one trained row", got=self.frozen, remedy="train a row")
        shapes = [jax.eval_shape(self._outputs_of, network) for network in (self.student, self.teacher)]
        if shapes[0].shape != shapes[1].shape or len(shapes[0].shape) != 2:
            raise InputError(
                "teacher", expected=f"outputs of the student's shape {shapes[0].shape}", got=shapes[1].shape,
                remedy="give both the same readout and classes",
            )  # fmt: skip

    def _outputs_of(self, network: RowNetwork) -> Array:
        p = len(network.rows)
        return network.on_fields(jnp.zeros((self.tokens, p)), jnp.eye(p), jnp.asarray(self.correlation))

    @property
    def rows(self) -> tuple[str, ...]:
        """P names: student rows, then the teacher's that are not shared, with a star."""
        return (*self.student.rows, *(f"{row}*" for row in self.teacher.rows if row not in self.shared))

    @property
    def size(self) -> int:
        """P."""
        return len(self.rows)

    @property
    def trained(self) -> tuple[bool, ...]:
        """P flags: rows that SGD moves."""
        still = (*self.frozen, *self.shared)
        return tuple(i < len(self.student.rows) and row not in still for i, row in enumerate(self.rows))

    @property
    def moved(self) -> np.ndarray:
        """Numbers of the rows that SGD moves."""
        return np.flatnonzero(self.trained)

    @property
    def student_columns(self) -> np.ndarray:
        """Places of the student's rows in the table."""
        return np.arange(len(self.student.rows))

    @property
    def teacher_columns(self) -> np.ndarray:
        """Places of the teacher's rows in the table."""
        return np.array([self.rows.index(row if row in self.shared else f"{row}*") for row in self.teacher.rows])

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(trained student row, teacher row of the same name): where both may meet, so that differences are kept."""
        names = self.rows
        return tuple((int(i), names.index(f"{names[i]}*")) for i in self.moved if f"{names[i]}*" in names)

    @property
    def writes_back(self) -> bool:
        """True when the overlaps R with metric I enter the student's or the teacher's outputs."""
        return self.student.writes_back or self.teacher.writes_back

    @property
    def positions(self) -> tuple[int, int]:
        """(positions, K): shape of the outputs."""
        return jax.eval_shape(self._outputs_of, self.student).shape

    @property
    def label_normals(self) -> int:
        """Standard normal numbers that the labels of one sequence take."""
        return self.loss.normals(*self.positions)

    @property
    def token_root(self) -> Float[np.ndarray, "T T"]:
        """Lower triangular (or symmetric, where rho is singular) root: rho = root root^T."""
        rho = np.asarray(self.correlation)
        try:
            return np.linalg.cholesky(rho)
        except np.linalg.LinAlgError:
            w, U = np.linalg.eigh(rho)
            return U * np.sqrt(np.maximum(w, 0.0))

    def difference_basis(self) -> Float[np.ndarray, "P P"]:
        """T with rows `student - teacher` for the pairs and `e_i` elsewhere: overlaps become T C T^T."""
        basis = np.eye(self.size)
        for student, teacher in self.pairs:
            basis[student, teacher] -= 1.0
        return basis

    def outputs_on_fields(
        self, phi: Float[Array, "T P"], R: Float[Array, "P P"]
    ) -> tuple[Float[Array, "n K"], Float[Array, "n K"]]:
        """(student, teacher) outputs at fields of the whole table."""
        rho = jnp.asarray(self.correlation, phi.dtype)
        s, t = self.student_columns, self.teacher_columns
        return (
            self.student.on_fields(phi[:, s], R[np.ix_(s, s)], rho),
            self.teacher.on_fields(phi[:, t], R[np.ix_(t, t)], rho),
        )

    def sample_loss(
        self, rows: Float[Array, "P d"], tokens: Float[Array, "T d"], normal: Float[Array, " m"], trace: float
    ) -> Float[Array, ""]:
        """The loss of the real networks on one sequence of d-dimensional tokens: what SGD differentiates."""
        f = self.student.real(rows[self.student_columns], trace)(tokens)
        target = self.teacher.real(rows[self.teacher_columns], trace)(tokens)
        return self.loss.sample(f, target, normal)


def teacher_student(
    student: RowNetwork,
    teacher: RowNetwork | None = None,
    loss: AbstractLoss | None = None,
    *,
    tokens: int,
    correlation: float | Float[np.ndarray, "T T"] = 0.0,
    frozen: Iterable[str] = (),
    shared: Iterable[str] = (),
    label: str = "mean_field",
) -> TeacherStudent:
    """A student that learns a teacher from Gaussian tokens `E[x_t x_s^T] = rho_ts Sigma`.

    **Arguments**

    - `student`; `teacher`: default a network of the student's shape with rows of its own.
    - `loss`: default `SquareLoss()`. `tokens`: T, tokens of one sequence.
    - `correlation`: r in (-1, 1) for AR(1) tokens rho_ts = r^|t-s|, or the matrix rho (T, T).
    - `frozen`: student rows that are not trained; `shared`: frozen rows that student and teacher have in common.

    **Errors**: `InputError` naming the argument.
    """
    for name, network in (("student", student), ("teacher", teacher)):
        if not (isinstance(network, RowNetwork) or (name == "teacher" and network is None)):
            raise InputError(name, expected="a RowNetwork", got=network, remedy="build one from blocks")
    tokens = whole("tokens", tokens)
    if isinstance(frozen, str) or isinstance(shared, str):
        raise InputError("frozen", expected="a list of row names", got=frozen, remedy='e.g. ("r0",)')
    return TeacherStudent(
        student,
        teacher or student,
        loss or SquareLoss(),
        int(tokens),
        _correlation(correlation, int(tokens)),
        tuple(frozen),
        tuple(shared),
        label,
    )


def _correlation(value: float | np.ndarray, tokens: int) -> tuple[tuple[float, ...], ...]:
    rho = np.asarray(value, dtype=float)
    if rho.ndim == 0:
        if not -1 < rho < 1:
            raise InputError(
                "correlation", expected="a number in (-1, 1) or (T, T)", got=value, remedy="0: independent"
            )
        place = np.arange(tokens)
        rho = float(rho) ** np.abs(place[:, None] - place[None, :]) if rho != 0 else np.eye(tokens)
    if rho.shape != (tokens, tokens) or not np.all(np.isfinite(rho)):
        raise InputError("correlation", expected=f"shape ({tokens}, {tokens})", got=rho.shape, remedy="pass rho")
    if np.abs(rho - rho.T).max() > 1e-12 or np.abs(np.diag(rho) - 1).max() > 1e-12:
        raise InputError("correlation", expected="symmetric with unit diagonal", got=rho, remedy="normalise tokens")
    if np.linalg.eigvalsh(rho)[0] < -1e-10:
        raise InputError("correlation", expected="positive semi-definite", got=rho, remedy="use r^|t-s|")
    return tuple(tuple(float(x) for x in row) for row in rho)
