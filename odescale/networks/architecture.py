"""A transformer as a table of rows: which row queries, which keys, which values, outputs, and reads out.

Every weight of a finite-rank transformer is a row of d numbers. A network is then a list of row numbers per head; the
weights themselves, the local fields and the overlaps are arrays beside it. Student and teacher point into one table of
P rows, so that the P x P overlaps describe both.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from odescale.errors import InputError, whole
from odescale.networks.heads import AbstractHead, each, named_heads, one_or_more


class Head(AbstractHead[int]):
    """One attention head: token t adds sum_s softmax_s(sum_i phi_query_i,t phi_key_i,s) v_s, with s over the T context tokens.

    **Arguments** (row numbers):

    - `query`, `key`: rows of the score `(q.h_t)(k.h_s)/N`, or r of each as tuples, whose products add up (rank r). `None` for
      both is uniform attention. Heads with the same `key` (and `value`) are grouped queries.
    - `value`, `output`: `None` for value = identity (v_s = h_s); else v_s = output (value.h_s)/N.

    N is the trace of the token covariance (d for isotropic tokens).
    """

    query: int | tuple[int, ...] | None = eqx.field(static=True, converter=one_or_more)
    key: int | tuple[int, ...] | None = eqx.field(static=True, converter=one_or_more)
    value: int | None = eqx.field(static=True, default=None)
    output: int | None = eqx.field(static=True, default=None)


class FieldNetwork(eqx.Module):
    """Layers of heads and the rows that read out at the query token: f_i = r_i . h_query / sqrt(N)."""

    layers: tuple[tuple[Head, ...], ...] = eqx.field(static=True)
    readouts: tuple[int, ...] = eqx.field(static=True)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def writes_back(self) -> bool:
        """True when a head writes through an output row, so that the overlaps R with metric I enter."""
        return any(head.output is not None for layer in self.layers for head in layer)


class Architecture(eqx.Module):
    """Student and teacher over one table of P rows.

    **Arguments**

    - `rows`: P names, e.g. `("q0", "k0", "r0", "q0*", "k0*", "r0*")`.
    - `trained`: P flags, True for the rows that SGD moves (only student rows may be).
    - `student`, `teacher`: the two networks; frozen readout rows may serve both.
    - `pairs`: (student row, teacher row) of the same role, for difference overlaps that do not cancel late in a run.
    """

    rows: tuple[str, ...] = eqx.field(static=True)
    trained: tuple[bool, ...] = eqx.field(static=True)
    student: FieldNetwork
    teacher: FieldNetwork
    pairs: tuple[tuple[int, int], ...] = eqx.field(static=True, default=())

    def __check_init__(self) -> None:
        n = len(self.rows)
        if len(self.trained) != n:
            raise InputError("trained", expected=f"{n} flags, one per row", got=self.trained, remedy="give one per row")
        for network in (self.student, self.teacher):
            for index in rows_of(network):
                if not 0 <= index < n:
                    raise InputError("rows", expected=f"row numbers 0..{n - 1}", got=index, remedy="add the row")
        for index in rows_of(self.teacher):
            if self.trained[index]:
                raise InputError(
                    "trained", expected="teacher rows frozen", got=self.rows[index], remedy="set its flag to False"
                )
        if len(self.student.readouts) != len(self.teacher.readouts):
            raise InputError(
                "readouts",
                expected="as many teacher as student readouts",
                got=self.teacher.readouts,
                remedy="match them",
            )

    @property
    def size(self) -> int:
        """P, the number of rows."""
        return len(self.rows)

    @property
    def trained_mask(self) -> Float[np.ndarray, " P"]:
        """1.0 for rows that SGD moves, 0.0 for the others."""
        return np.asarray(self.trained, dtype=float)

    @property
    def rank(self) -> int:
        """The largest rank of a head of student or teacher."""
        return max(
            (head.rank for net in (self.student, self.teacher) for layer in net.layers for head in layer), default=0
        )

    @property
    def writes_back(self) -> bool:
        """True when student or teacher has value/output rows."""
        return self.student.writes_back or self.teacher.writes_back

    def index(self, row: str) -> int:
        """Row number of a name."""
        if row not in self.rows:
            raise InputError("row", expected=f"one of {', '.join(self.rows)}", got=row, remedy="pick a listed row")
        return self.rows.index(row)

    def difference_basis(self) -> Float[np.ndarray, "P P"]:
        """T with rows `student - teacher` for the pairs and `e_i` elsewhere: overlaps become T C T^T."""
        basis = np.eye(self.size)
        for student, teacher in self.pairs:
            basis[student, teacher] -= 1.0
        return basis


def rows_of(network: FieldNetwork) -> tuple[int, ...]:
    """The row numbers that a network uses, in order, without repetition."""
    used: dict[int, None] = {}
    for layer in network.layers:
        for head in layer:
            used.update(dict.fromkeys((*head.reads, *each(head.output))))
    used.update(dict.fromkeys(network.readouts))
    return tuple(used)


def build_architecture(
    depth: int = 2,
    heads: int = 1,
    *,
    value: str = "identity",
    outputs: int = 1,
    train_readouts: bool = True,
    rank: int = 1,
    key_value_heads: int | None = None,
) -> Architecture:
    """Student and teacher of equal shape: `depth` layers of `heads` softmax heads and `outputs` readout rows.

    Rows come in the order q, k (v, o) per head and layer, then the readouts, first of the student, then of the
    teacher. With `train_readouts=False` the readout rows are frozen and shared by student and teacher.

    **Arguments**

    - `depth`, `heads`, `outputs`: positive integers.
    - `value`: `"identity"` or `"rows"` (value and output rows).
    - `rank` >= 1: query and key rows of each head, `q0r0`, `q0r1`, ... above one; `key_value_heads`: a divisor of `heads`, so many
      sets of key (and value) rows, each shared by an equal group of heads (None: each head has its own).
    """
    for name, count in (("depth", depth), ("heads", heads), ("outputs", outputs)):
        whole(name, count)
    if value not in ("identity", "rows"):
        raise InputError("value", expected='"identity" or "rows"', got=value, remedy="pass one of the two")

    names: list[str] = []

    def add(name: str) -> int:
        if name not in names:  # a row that several heads share stands once
            names.append(name)
        return names.index(name)

    def add_head(query: tuple[str, ...], key: tuple[str, ...], read: str | None, write: str | None, star: str) -> Head:
        numbers = {row: add(f"{row}{star}") for row in (*query, *key, *each(read), *each(write))}
        return Head(
            tuple(numbers[row] for row in query),
            tuple(numbers[row] for row in key),
            None if read is None else numbers[read],
            None if write is None else numbers[write],
        )

    def layers(star: str) -> tuple[tuple[Head, ...], ...]:
        options: Any = {"rank": rank, "key_value_heads": key_value_heads, "value": value}
        return tuple(
            tuple(add_head(*rows, star) for rows in named_heads(layer, int(heads), **options))
            for layer in range(int(depth))
        )

    student_layers = layers("")
    student_reads = tuple(add(f"r{i}") for i in range(int(outputs)))
    n_student = len(names)
    teacher_layers = layers("*")
    teacher_reads = tuple(add(f"r{i}*") for i in range(int(outputs))) if train_readouts else student_reads
    n_pairs = n_student if train_readouts else student_reads[0]
    trained = tuple(i < n_student and (train_readouts or i not in student_reads) for i in range(len(names)))
    return Architecture(
        rows=tuple(names),
        trained=trained,
        student=FieldNetwork(student_layers, student_reads),
        teacher=FieldNetwork(teacher_layers, teacher_reads),
        pairs=tuple((i, n_student + i) for i in range(n_pairs)),
    )


def logistic_pair_architecture() -> Architecture:
    """Two layers, value = identity, two frozen readouts shared with the teacher, whose second layer is uniform.

    Rows: q0, k0, q1, k1 (trained), r1, r2 (frozen, shared), q0*, k0*.
    """
    return Architecture(
        rows=("q0", "k0", "q1", "k1", "r1", "r2", "q0*", "k0*"),
        trained=(True,) * 4 + (False,) * 4,
        student=FieldNetwork(((Head(0, 1),), (Head(2, 3),)), (4, 5)),
        teacher=FieldNetwork(((Head(6, 7),), (Head(None, None),)), (4, 5)),
        pairs=((0, 6), (1, 7)),
    )


def quickstart_architecture() -> Architecture:
    """Two surplus layers that write through frozen value and output rows, and a trained readout that no layer reaches.

    Rows: q0, k0, q1, k1, r0 (trained), v0, o0, v1, o1 (frozen, shared), r0*. The outputs are read by r0, o0 and o1; the teacher's
    layers are uniform.
    """
    return Architecture(
        rows=("q0", "k0", "q1", "k1", "r0", "v0", "o0", "v1", "o1", "r0*"),
        trained=(True,) * 5 + (False,) * 5,
        student=FieldNetwork(((Head(0, 1, 5, 6),), (Head(2, 3, 7, 8),)), (4, 6, 8)),
        teacher=FieldNetwork(((Head(None, None, 5, 6),), (Head(None, None, 7, 8),)), (9, 6, 8)),
        pairs=((4, 9),),
    )
