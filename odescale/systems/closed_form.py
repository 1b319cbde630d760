r"""The closure of a mean-field theory where it has a closed form: no nodes, no error bar.

    committees   f = v sum_u act(phi_u),  act = erf(x/sqrt 2) or (x^2 - 1)/2     arcsine laws, traces of products of C
    attention    f = phi_rT + phi_qT (1/T) sum_s phi_ks phi_rs                   polynomials in C and 1/T

for the square loss against a teacher of the same kind, with or without label noise. The formulas are those of
`odescale.generated.mean_field`, written by `derivations/mean_field/script.py`.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from odescale.errors import OutsideTheoryError
from odescale.expectations.closure import AbstractClosure, Moments
from odescale.generated import mean_field as formulas
from odescale.networks.blocks import SelfAttention
from odescale.networks.losses import SquareLoss
from odescale.networks.readouts import CommitteeReadout, QueryToken
from odescale.networks.row_network import RowNetwork
from odescale.networks.teacher_student import TeacherStudent

COMMITTEES = ("erf", "quadratic")
"""Activations, by name, whose committees have a closed form."""


class ClosedForm(AbstractClosure):
    r"""L = E l, G C = D = E[sum_t g_t phi_t^T], V = E[sum_t g_t g_t^T] exactly, H = 0: one replicate, error zero.

    Works for every `TeacherStudent` that `closed_form_of` names, and raises `OutsideTheoryError` for the others. Rounding: V
    and D of erf units carry 1e-16 times the squared output weights, as does their loss, whose value is meaningful down to
    about 1e-15 (and to ten times the `atol` of an integration); quadratic units and attention keep all digits of L and V
    when trained rows meet teacher rows of their name.

    Sources: Saad & Solla, Phys. Rev. E 52, 4225 (1995); derivations/mean_field/script.py.
    """

    @property
    def replicates(self) -> int:
        """One."""
        return 1

    def moments(self, problem: TeacherStudent, C: Float[Array, "P P"], R: Float[Array, "P P"], replicate=0) -> Moments:
        """L, D, G, H, V at the field covariance C in difference rows; R and `replicate` are not used.

        **Raises** `OutsideTheoryError` where the problem has no closed form.
        """
        kind, loss = closed_form_of(problem), problem.loss
        assert isinstance(loss, SquareLoss)
        sigma = jnp.asarray(loss.label_noise, C.dtype)
        moved = tuple(int(row) for row in problem.moved)
        if kind == "erf":
            back, c = _plain_rows(problem, C), jnp.asarray(_output_weights(problem), C.dtype)
            G, V = formulas.erf_committee_closure(back @ C @ back.T, c, moved, sigma)
            G = G @ back
        elif kind == "quadratic":
            G, V = formulas.quadratic_committee_closure(C, *_quadratic_form(problem, C), moved, sigma)
        else:
            rows, place = (jnp.asarray(x, C.dtype) for x in _attention_rows(problem))
            G, V = formulas.linear_attention_closure(rows @ C @ rows.T, _tokens(problem, C), sigma)
            # Trained rows among q, k, r; a row that the network does not read has no gradient.
            G, V = place @ G @ rows, place @ V @ place.T
        return Moments(self.loss(problem, C, R, replicate), G @ C, G, jnp.zeros_like(G), V)

    def loss(
        self, problem: TeacherStudent, C: Float[Array, "P P"], R: Float[Array, "P P"], replicate=0
    ) -> Float[Array, ""]:
        """The excess loss L at the field covariance C in difference rows."""
        kind = closed_form_of(problem)
        if kind == "erf":
            back = _plain_rows(problem, C)
            return formulas.erf_committee_loss(back @ C @ back.T, jnp.asarray(_output_weights(problem), C.dtype))
        if kind == "quadratic":
            return formulas.quadratic_committee_loss(C, *_quadratic_form(problem, C))
        rows = jnp.asarray(_attention_rows(problem)[0], C.dtype)
        return formulas.linear_attention_loss(rows @ C @ rows.T, _tokens(problem, C))

    def estimate(self, values: Float[Array, "R ..."]) -> tuple[Array, Array]:
        """(the value, zero)."""
        return values[0], jnp.zeros_like(values[0])


def closed_form_of(problem: TeacherStudent) -> str:
    """Which closed form a problem has: "erf" or "quadratic" (committees) or "linear_attention".

    - Committees: both networks without blocks, readout `CommitteeReadout` with that activation, any numbers of units, any output
      weights. Only the last token is read: T and rho do not matter.
    - Linear attention: both networks with one `SelfAttention(kind="linear")` of one head of rank one with value = identity,
      readout `QueryToken` of one row; independent tokens, any T. Query, key and readout are three different rows.
    - Both: `SquareLoss`, with or without label noise; any rows frozen or shared.

    **Raises** `OutsideTheoryError` for every other problem, naming what stands in the way.
    """
    networks = (problem.student, problem.teacher)
    if type(problem.loss) is not SquareLoss:
        raise _outside("loss", "SquareLoss", type(problem.loss).__name__)
    if all(isinstance(network.readout, CommitteeReadout) and not network.blocks for network in networks):
        kinds = [network.readout.activation for network in networks]
        if kinds[0] != kinds[1] or kinds[0] not in COMMITTEES:
            raise _outside("activation", f"{' or '.join(COMMITTEES)}, the same in student and teacher", kinds)
        return kinds[0]
    if all(_is_linear_attention(network) for network in networks):
        if not np.array_equal(np.asarray(problem.correlation), np.eye(problem.tokens)):
            raise _outside("correlation", "independent tokens (0) for linear attention", problem.correlation)
        return "linear_attention"
    raise _outside(
        "student", "committees without blocks, or one layer of linear attention of rank one with one QueryToken row",
        " and ".join(f"{[type(b).__name__ for b in n.blocks]} + {type(n.readout).__name__}" for n in networks),
    )  # fmt: skip


def has_closed_form(problem: TeacherStudent) -> bool:
    """True for the problems that `closed_form_of` names."""
    try:
        closed_form_of(problem)
    except OutsideTheoryError:
        return False
    return True


def closed_form(problem: TeacherStudent) -> ClosedForm:
    """The closure of `problem` in closed form; raises `OutsideTheoryError` naming what stands in the way of one."""
    closed_form_of(problem)
    return ClosedForm()


def _outside(argument: str, expected: str, got: object) -> OutsideTheoryError:
    return OutsideTheoryError(
        argument, expected=f"{expected}, for a closed form", got=got, remedy="use the closure by quadrature"
    )


def _is_linear_attention(network: RowNetwork) -> bool:
    readout = network.readout
    if len(network.blocks) != 1 or type(network.blocks[0]) is not SelfAttention or type(readout) is not QueryToken:
        return False
    # A causal mask hides nothing from the last token, and divides by the same T.
    block = network.blocks[0]
    heads = block.heads
    if block.kind != "linear" or len(heads) != 1 or len(readout.rows) != 1:
        return False
    query, key = heads[0].query, heads[0].key
    return heads[0].value is None and heads[0].rank == 1 and len({query, key, readout.rows[0]}) == 3


def _plain_rows(problem: TeacherStudent, like: Array) -> Float[Array, "P P"]:
    """B with plain fields = B (fields of the difference rows), in the dtype of what it multiplies."""
    return jnp.asarray(2 * np.eye(problem.size) - problem.difference_basis(), like.dtype)


def _tokens(problem: TeacherStudent, like: Array) -> Float[Array, ""]:
    return jnp.asarray(problem.tokens, like.dtype)


def _quadratic_form(problem: TeacherStudent, like: Array) -> tuple[Float[Array, "P P"], Float[Array, ""]]:
    """(A, offset): f - f* = (phi^T A phi - offset)/2 in difference rows."""
    back, c = 2 * np.eye(problem.size) - problem.difference_basis(), _output_weights(problem)
    return jnp.asarray(back.T @ np.diag(c) @ back, like.dtype), jnp.asarray(c.sum(), like.dtype)


def _output_weights(problem: TeacherStudent) -> Float[np.ndarray, " P"]:
    """c with f - f* = sum_a c_a act(phi_a) over the table."""
    c = np.zeros(problem.size)
    for network, columns, sign in (
        (problem.student, problem.student_columns, 1.0),
        (problem.teacher, problem.teacher_columns, -1.0),
    ):
        for row in network.readout.rows:
            c[columns[network.rows.index(row)]] += sign * network.readout.weight
    return c


def _attention_rows(problem: TeacherStudent) -> tuple[Float[np.ndarray, "6 P"], Float[np.ndarray, "p 3"]]:
    """(q - q*, k - k*, r - r*, q*, k*, r*) as combinations of the difference rows, and which of q, k, r is trained."""
    unit = np.eye(problem.size)
    chosen = []
    for network, columns in ((problem.student, problem.student_columns), (problem.teacher, problem.teacher_columns)):
        head = network.blocks[0].heads[0]
        names = (head.query, head.key, network.readout.rows[0])
        chosen.append([int(columns[network.rows.index(name)]) for name in names])
    student, teacher = chosen
    plain = np.concatenate([unit[student] - unit[teacher], unit[teacher]])
    return plain @ (2 * np.eye(problem.size) - problem.difference_basis()), unit[problem.moved][:, student]
