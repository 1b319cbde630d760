"""Networks and overlaps that the tests of the mean-field engine share."""

from __future__ import annotations

import numpy as np

from odescale import teacher_student
from odescale.networks import (
    MLP,
    CommitteeReadout,
    CrossEntropy,
    HeadRows,
    PerToken,
    QueryToken,
    RowNetwork,
    SelfAttention,
    SquareLoss,
    TeacherStudent,
)


def two_layers(tokens: int = 3, **settings) -> TeacherStudent:
    first, second = HeadRows("q0", "k0"), HeadRows("q1", "k1")
    blocks = (SelfAttention((first,)), SelfAttention((second,), asking="last"))
    network = RowNetwork(("q0", "k0", "q1", "k1", "r"), blocks, QueryToken(("r",)))
    return teacher_student(network, tokens=tokens, **settings)


def one_layer(tokens: int = 3, kind: str = "softmax", **settings) -> TeacherStudent:
    attention = SelfAttention((HeadRows("q", "k"),), kind=kind, asking="last")  # type: ignore[arg-type]
    return teacher_student(RowNetwork(("q", "k", "r"), (attention,), QueryToken(("r",))), tokens=tokens, **settings)


def write_back(activation: str = "erf", **settings) -> TeacherStudent:
    blocks = (SelfAttention((HeadRows("q", "k", "v", "o"),)), MLP((("w", "u"),), activation))
    network = RowNetwork(("q", "k", "v", "o", "w", "u", "r"), blocks, PerToken(("r",)))
    return teacher_student(network, tokens=2, **settings)


def classes(labels: str = "soft", **settings) -> TeacherStudent:
    attention = SelfAttention((HeadRows("q", "k"), HeadRows("k", "q")), causal=True)
    network = RowNetwork(("q", "k", "r0", "r1", "r2"), (attention,), PerToken(("r0", "r1", "r2")))
    return teacher_student(network, loss=CrossEntropy(labels), tokens=3, **settings)  # type: ignore[arg-type]


def erf_units(noise: float = 0.0, units: int = 2) -> TeacherStudent:
    rows = tuple(f"w{i}" for i in range(units))
    return teacher_student(RowNetwork(rows, (), CommitteeReadout(rows)), loss=SquareLoss(noise), tokens=1)


def linear(noise: float = 0.0) -> TeacherStudent:
    return teacher_student(RowNetwork(("w",), (), QueryToken(("w",))), loss=SquareLoss(noise), tokens=1)


def random_gram(size: int, seed: int = 0, scale: float = 0.6, rank: int | None = None) -> np.ndarray:
    """A random P x P matrix of overlaps with diagonal about scale^2."""
    rows = np.random.default_rng(seed).normal(size=(size, rank or size + 4))
    return scale**2 * rows @ rows.T / rows.shape[1]


def in_differences(problem: TeacherStudent, C: np.ndarray) -> np.ndarray:
    T = problem.difference_basis()
    return T @ C @ T.T
