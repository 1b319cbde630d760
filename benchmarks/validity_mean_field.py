"""Rows of the validity table for the mean-field engine: one network each, direct SGD against its ODE.

Every row is a `Case`: the network in words, its problem, its start, and how it is trained. `run_case` gives the figures;
`python -m benchmarks.validity` runs what has no result and prints the table.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from odescale import MeanField, aligned_overlaps, mean_field, teacher_student
from odescale.networks import (
    MLP,
    CrossEntropy,
    HeadRows,
    MeanPool,
    PerToken,
    Positions,
    PreNorm,
    QueryToken,
    RowNetwork,
    SelfAttention,
    SquareLoss,
    TeacherStudent,
    transformer_network,
)
from odescale.networks.losses import AbstractLoss
from odescale.spectra import Spectrum, power_law

RECORDS = 10


@dataclasses.dataclass(frozen=True)
class Case:
    """One row. `start`: arguments of `aligned_overlaps`; `system`: of `mean_field`; `without`: theories that must fail.

    `without` maps words to what the theory loses: noise, write_back (numbers), correlation (of its tokens), or another problem
    of the same rows.
    `claim` False: a row that shows how large a neglected term is, and is not held to its tolerance.
    """

    words: str
    problem: Callable[[], TeacherStudent]
    start: Mapping[str, Any]
    t1: float
    seeds: int = 64
    learning_rate: float = 0.2
    dimension: int = 500
    nodes: int = 8192
    system: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    spectrum: Callable[[], Spectrum] | None = None
    tolerance: float = 0.03
    without: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    half: bool = False
    claim: bool = True


def layers(
    depth: int = 1, tokens: int = 3, loss: AbstractLoss | None = None, correlation: float = 0.0, **options: Any
) -> TeacherStudent:
    """`depth` one-head attention layers, the last asked by the last token alone, and one readout row."""
    names = [("q", "k")] if depth == 1 else [(f"q{i}", f"k{i}") for i in range(depth)]
    blocks = tuple(
        SelfAttention((HeadRows(q, k),), asking="last" if i == depth - 1 else "all", **options)
        for i, (q, k) in enumerate(names)
    )
    rows = (*(row for pair in names for row in pair), "r")
    return teacher_student(
        RowNetwork(rows, blocks, QueryToken(("r",))), loss=loss, tokens=tokens, correlation=correlation
    )


def rank_four(pairs: int = 4) -> TeacherStudent:
    """One softmax head with four query and four key rows, of which its score reads `pairs`: fewer in a theory that must fail."""
    rows = tuple(f"q{i}" for i in range(4)), tuple(f"k{i}" for i in range(4))
    heads = SelfAttention((HeadRows(rows[0][:pairs], rows[1][:pairs]),), asking="last")
    return teacher_student(RowNetwork((*rows[0], *rows[1], "r"), (heads,), QueryToken(("r",))), tokens=3)


def grouped_queries() -> TeacherStudent:
    """Three heads, each with its own query and output row, that share one key and one value row; the readout is the teacher's."""
    network = transformer_network(depth=1, heads=3, key_value_heads=1, value="rows")
    return teacher_student(network, tokens=3, shared=("r0",))


def heads_and_classes(labels: Any) -> TeacherStudent:
    """Two heads and four classes."""
    classes = ("r0", "r1", "r2", "r3")
    heads = SelfAttention((HeadRows("q0", "k0"), HeadRows("q1", "k1")), asking="last")
    network = RowNetwork(("q0", "k0", "q1", "k1", *classes), (heads,), QueryToken(classes))
    return teacher_student(network, loss=CrossEntropy(labels), tokens=3)


def attention_and_mlp(activation: str, shared: tuple[str, ...] = ()) -> TeacherStudent:
    """One head, two MLP units that write back, one readout row."""
    units = (("i0", "o0"), ("i1", "o1"))
    blocks = (SelfAttention((HeadRows("q", "k"),), asking="last"), MLP(units, activation))
    network = RowNetwork(("q", "k", "i0", "i1", "o0", "o1", "r"), blocks, QueryToken(("r",)))
    return teacher_student(network, tokens=3, shared=shared)


def mlp_alone() -> TeacherStudent:
    """Two erf units that write back before a readout row that student and teacher share, on one token: H drives o."""
    blocks = (MLP((("i0", "o0"), ("i1", "o1"))),)
    network = RowNetwork(("i0", "i1", "o0", "o1", "r"), blocks, QueryToken(("r",)))
    return teacher_student(network, tokens=1, shared=("r",))


def causal_classes() -> TeacherStudent:
    """Causal attention and three classes at every position, labels from a causal teacher's distribution."""
    classes = ("r0", "r1", "r2")
    network = RowNetwork(("q", "k", *classes), (SelfAttention((HeadRows("q", "k"),), causal=True),), PerToken(classes))
    return teacher_student(network, loss=CrossEntropy("soft", inverse_temperature=2.0), tokens=4)


def next_token(correlation: float = 0.9) -> TeacherStudent:
    """Causal attention that predicts the class of the next token of an AR(1) sequence."""
    classes = ("r0", "r1", "r2")
    attention = SelfAttention((HeadRows("q", "k"),), causal=True)
    student = RowNetwork(("q", "k", *classes), (attention,), PerToken(classes, drop=1))
    teacher = RowNetwork(classes, (), PerToken(classes, skip=1))
    loss = CrossEntropy("hard", irreducible=bayes_risk(correlation))
    return teacher_student(student, teacher, loss, tokens=4, correlation=correlation)


def bayes_risk(correlation: float, classes: int = 3, draws: int = 400_000) -> float:
    """Entropy of the next token's class given the present one: orthogonal class rows of unit length, by Monte Carlo.

    AR(1) is Markov: the past adds nothing. Gaussian noise of variance 1 - r^2 on r phi; a probit of three classes, whose
    probabilities are averaged over a grid of one noise with the other two integrated out.
    """
    from scipy.special import ndtr

    phi = np.random.default_rng(0).standard_normal((draws, classes)) * correlation
    spread = np.sqrt(1 - correlation**2)
    x, w = np.polynomial.hermite_e.hermegauss(24)
    w = w / w.sum()
    p = np.zeros((draws, classes))
    for c in range(classes):
        others = [i for i in range(classes) if i != c]
        for node, weight in zip(x, w, strict=True):
            value = phi[:, c] + spread * node
            p[:, c] += weight * np.prod([ndtr((value - phi[:, i]) / spread) for i in others], axis=0)
    p = np.maximum(p, 1e-300)
    return float(-np.sum(p * np.log(p), axis=1).mean())


def one_block(
    block: Any, rows: tuple[str, ...] = ("q", "k", "r"), readout: Any = None, **options: Any
) -> TeacherStudent:
    """Any blocks before one readout row on the last token."""
    blocks = block if isinstance(block, tuple) else (block,)
    return teacher_student(RowNetwork(rows, blocks, readout or QueryToken(("r",))), tokens=3, **options)


TWO = {
    "alignment": 0.4,
    "lengths": {"q0": 0.5, "k0": 0.5, "q1": 0.25, "k1": 0.25, "r": 0.5},
    "cosines": {("k0", "r"): 0.7, ("k1", "r"): 0.6, ("q0", "r"): 0.3, ("q1", "r"): 0.3, ("k0", "k1"): 0.5},
}
ONE = {"alignment": 0.4, "cosines": {("k", "r"): 0.7, ("q", "r"): 0.3}, "lengths": {"q": 0.5, "k": 0.5}}
HEADS = {
    "alignment": 0.4,
    "cosines": {("k0", "r0"): 0.6, ("k1", "r1"): 0.6, ("q0", "r2"): 0.3, ("q1", "r3"): 0.3},
    "lengths": {f"r{i}": 2.0 for i in range(4)} | {row: 0.5 for row in ("q0", "k0", "q1", "k1")},
}
BLOCK = {
    "alignment": 0.5,
    "cosines": {("k", "r"): 0.4, ("o0", "r"): 0.7, ("o1", "r"): -0.5, ("i0", "k"): 0.3},
    "lengths": {"o0": 4.0, "o1": 4.0, "i0": 3.0, "i1": 3.0, "q": 0.5, "k": 0.5},
}
FOUR = {
    "alignment": 0.5,
    "cosines": {("k0", "r"): 0.5, ("k1", "r"): -0.5, ("k2", "r"): 0.4, ("k3", "r"): 0.3, ("q0", "r"): 0.3},
    "lengths": {f"{role}{i}": 0.5 for role in "qk" for i in range(4)},
}
GROUPED = {
    "alignment": 0.6,
    "cosines": {("o0_0", "r0"): 0.6, ("o0_1", "r0"): -0.5, ("o0_2", "r0"): 0.4, ("k0", "v0"): 0.6, ("q0_0", "v0"): 0.3},
    "lengths": {f"o0_{i}": 6.0 for i in range(3)} | {"v0": 4.0},
}
HEAD = HeadRows("q", "k")
LAST = SelfAttention((HEAD,), asking="last")

CASES: dict[str, Case] = {
    "softmax_two_layers": Case("2-layer softmax attention", lambda: layers(2), TWO, 20.0, learning_rate=0.1),
    "softmax_two_layers_16": Case(
        "2-layer softmax attention", lambda: layers(2, 16), TWO, 16.0, seeds=32, nodes=4096
    ),
    "heads_soft": Case(
        "2 heads, K = 4 cross-entropy, soft labels", lambda: heads_and_classes("soft"), HEADS, 24.0, learning_rate=0.5
    ),
    "heads_sampled": Case(
        "2 heads, K = 4 cross-entropy, sampled labels", lambda: heads_and_classes("sampled"), HEADS, 24.0,
        learning_rate=0.5, system={"batch": 4}, seeds=32,
    ),
    "mlp_erf": Case(
        "softmax attention, 2 erf MLP units that write back", lambda: attention_and_mlp("erf"), BLOCK, 16.0,
        learning_rate=0.1,
    ),
    "mlp_gelu": Case(
        "softmax attention, 2 GELU MLP units that write back", lambda: attention_and_mlp("gelu"), BLOCK, 16.0,
        learning_rate=0.05,
    ),
    "write_back": Case(
        "softmax attention, 2 erf MLP units that write back, readout frozen at the teacher's",
        lambda: attention_and_mlp("erf", ("r",)), BLOCK, 20.0, learning_rate=0.3, without={"H": {"write_back": 0.0}},
    ),
    "write_back_alone": Case(
        "2 erf MLP units that write back on one token, readout frozen at the teacher's", mlp_alone,
        {
            "alignment": 0.3, "cosines": {("o0", "r"): 0.7, ("o1", "r"): -0.5},
            "lengths": {"o0": 8.0, "o1": 8.0, "i0": 2.0, "i1": 2.0},
        },
        12.0, learning_rate=0.3, without={"H": {"write_back": 0.0}},
    ),
    "causal_classes": Case(
        "causal softmax attention, K = 3 cross-entropy at every position, causal teacher", causal_classes,
        {"alignment": 0.4, "cosines": {("k", "r0"): 0.6, ("q", "r1"): 0.4}}, 20.0, learning_rate=0.5,
    ),
    "next_token": Case(
        "causal softmax attention, class (K = 3) of the next token, AR(1) tokens r = 0.9", next_token,
        {"alignment": -0.5, "cosines": {("k", "r0"): 0.4}}, 12.0, learning_rate=0.5,
    ),
    "correlated_tokens": Case(
        "2-layer softmax attention, AR(1) tokens r = 0.5", lambda: layers(2, 4, correlation=0.5), TWO, 20.0,
        learning_rate=0.1,
        without={"rho": {"correlation": 0.0}},
    ),
    "batch": Case("1-layer softmax attention, B = 8", layers, ONE, 8.0, system={"batch": 8}, learning_rate=0.4, seeds=32),
    "noise": Case("1-layer softmax attention", layers, ONE, 8.0, learning_rate=0.4, without={"V": {"noise": 0.0}}),
    "weight_decay": Case("1-layer softmax attention, weight decay 0.05", layers, ONE, 10.0, system={"weight_decay": 0.05}),
    "cosine": Case("1-layer softmax attention, cosine schedule", layers, ONE, 10.0, system={"schedule": "cosine:10:0.1"}),
    "momentum": Case(
        "1-layer softmax attention, momentum 0.9", layers, ONE, 10.0, learning_rate=0.02, system={"momentum": 0.9}
    ),
    "friction": Case(
        "1-layer softmax attention, momentum 1 - 2/d", layers, ONE, 10.0, system={"friction": 2.0}, learning_rate=0.4
    ),
    "rank_four": Case(
        "1-layer softmax attention, one head of rank 4", rank_four, FOUR, 8.0, seeds=32, tolerance=0.02,
        learning_rate=0.3, system={"batch": 4}, nodes=16384, without={"pairs": {"problem": lambda: rank_four(1)}},
    ),
    "grouped_queries": Case(
        "1-layer softmax attention, 3 heads that share a key and a value row, readout frozen at the teacher's",
        grouped_queries, GROUPED, 9.0, seeds=32, tolerance=0.02, learning_rate=0.3, system={"batch": 4}, nodes=32768,
        without={"H": {"write_back": 0.0}},
    ),
    "half_dimension": Case("1-layer softmax attention", layers, ONE, 10.0, half=True),
    "label_noise": Case(
        "1-layer softmax attention, label noise 0.3", lambda: layers(loss=SquareLoss(0.3)), ONE, 10.0, learning_rate=0.1
    ),
    "linear_attention": Case(
        "1-layer linear attention", lambda: layers(kind="linear"), ONE, 10.0, learning_rate=0.1
    ),
    "prenorm": Case(
        "softmax attention, then RMSNorm and softmax attention (PreNorm)",
        lambda: one_block(
            (SelfAttention((HeadRows("q0", "k0"),)), PreNorm(SelfAttention((HeadRows("q1", "k1"),)))),
            ("q0", "k0", "q1", "k1", "r"),
        ),
        TWO, 20.0, learning_rate=0.1,
    ),
    "positions": Case(
        "frozen positional rows, softmax attention",
        lambda: one_block((Positions(("p0", "p1", "p2")), LAST), ("p0", "p1", "p2", "q", "k", "r"), shared=("p0", "p1", "p2")),
        {**ONE, "cosines": {**ONE["cosines"], ("p0", "k"): 0.5, ("p1", "q"): 0.4}, "lengths": {"p0": 0.5, "p1": 0.5, "p2": 0.5}},
        10.0,
    ),
    "mean_pool": Case(
        "softmax attention, mean pool", lambda: one_block(SelfAttention((HEAD,)), readout=MeanPool(("r",))), ONE, 10.0
    ),
    "mild_spectrum": Case(
        "1-layer softmax attention, lam ~ k^-0.3", layers, ONE, 10.0,
        spectrum=lambda: power_law(0.3, 500, trace=None, per_decade=6),
    ),
    "mlp_relu": Case(
        "softmax attention, 2 ReLU MLP units that write back", lambda: attention_and_mlp("relu"), BLOCK, 16.0,
        learning_rate=0.05,
    ),
    "power_law": Case(
        "2-layer softmax attention, lam ~ k^-1.2", lambda: layers(2), TWO, 12.0, nodes=1024, tolerance=0.08,
        learning_rate=0.05, system={"batch": 4}, spectrum=lambda: power_law(1.2, 500, trace=None, per_decade=6), seeds=48,
    ),
    "power_law_large_steps": Case(
        "2-layer softmax attention, lam ~ k^-1.2", lambda: layers(2), TWO, 10.0, nodes=1024, tolerance=0.08,
        learning_rate=0.1, spectrum=lambda: power_law(1.2, 500, trace=None, per_decade=6), claim=False,
    ),
}  # fmt: skip


def build(case: Case, *, dimension: int | None = None, **changes: Any) -> MeanField:
    """The case's system; `changes` are `noise`, `write_back`, `correlation` = 0 for independent tokens, or a `problem`."""
    problem = changes.pop("problem", case.problem)()
    if "correlation" in changes:
        problem = dataclasses.replace(problem, correlation=tuple(map(tuple, np.eye(problem.tokens).tolist())))
        changes = {name: value for name, value in changes.items() if name != "correlation"}
    where: dict[str, Any] = {"dimension": dimension or case.dimension}
    if case.spectrum is not None:
        where = {"spectrum": case.spectrum()}
    return mean_field(
        problem,
        initial_overlaps=aligned_overlaps(problem, **case.start),
        learning_rate=case.learning_rate,
        nodes=case.nodes,
        **where,
        **dict(case.system),
        **changes,
    )


def record_times(case: Case) -> np.ndarray:
    """Log-spaced from t1/20."""
    return np.geomspace(case.t1 / 20, case.t1, RECORDS)


def run_case(case: Case) -> dict[str, Any]:
    """SGD and ODE of one case: the comparison's figures, the theories without a term, and the seconds of both."""
    from odescale import compare, integrate, train
    from odescale.compare.rules.mean_field import quadrature_stderr

    system = build(case)
    options: dict[str, Any] = {"seeds": case.seeds, "record_times": record_times(case), "progress": False}
    began = time.perf_counter()
    run = train(system, case.t1, **options)
    seconds_sgd = time.perf_counter() - began
    times = np.concatenate([[0.0], run.t])
    began = time.perf_counter()
    theory = integrate(system, ts=times)
    seconds_ode = time.perf_counter() - began
    half = None
    if case.half:
        half = train(build(case, dimension=case.dimension // 2), case.t1, **options)
    found = compare(system, run, theory=theory, half=half, tolerance=case.tolerance)
    # What SGD takes until its mean is known as well as the ODE's: seeds and seconds grow as 1/error^2.
    prediction = quadrature_stderr(system, theory)[found.at]
    statistical, quadrature = (
        float(np.sqrt(np.mean(error[found.kept] ** 2))) for error in (found.loss.errors["seeds"], prediction)
    )
    without = {}
    for words, changes in case.without.items():
        other = integrate(build(case, **changes), ts=times)
        lost = compare(system, run, theory=other, half=half, tolerance=case.tolerance)
        without[words] = {
            "max_deviation": lost.loss.max_deviation,
            "rms_z": lost.loss.rms_z,
            "max_z": lost.loss.max_z,
            "status": lost.verdict.status,
        }
    return {
        "words": case.words,
        "tokens": system.problem.tokens,
        "rows": list(system.problem.rows),
        "t1": case.t1,
        "learning_rate": case.learning_rate,
        "system": dict(case.system),
        "alignment": case.start["alignment"],
        "effective_dimension": system.effective_dimension,
        "nodes": case.nodes,
        "dimension": run.config["dimension"],
        "seeds": len(run.seeds),
        "verdict": found.verdict.to_dict(),
        "fall": found.fall,
        "tolerance": case.tolerance,
        "max_deviation": found.loss.max_deviation,
        "rms_z": found.loss.rms_z,
        "max_z": found.loss.max_z,
        "finite_size": "estimated" if half is None else "measured at half the dimension",
        "without": without,
        "stderr": {"seeds": statistical, "quadrature": quadrature},
        "seconds_sgd": seconds_sgd,
        "seconds_ode": seconds_ode,
        "seconds_sgd_equal_error": seconds_sgd * (statistical / quadrature) ** 2,
        "solver": theory.meta["ladder"][-1],
    }


def settings(result: dict[str, Any]) -> str:
    """How the row was trained, in words."""
    named = {
        "batch": "B = {}", "weight_decay": "weight decay {}", "schedule": "schedule {}", "momentum": "momentum {}",
        "friction": "momentum 1 - {:g}/d",
    }  # fmt: skip
    words = [f"eta = {result['learning_rate']:g}", f"t to {result['t1']:g}", f"alignment {result['alignment']:g}"]
    words += [named[name].format(value) for name, value in result["system"].items()]
    words.append(f"2^{int(np.log2(result['nodes']))} nodes")
    if result["effective_dimension"] < 0.999 * result["dimension"]:
        words.append(f"d_eff = {result['effective_dimension']:.3g}")
    if result["finite_size"].startswith("measured"):
        words.append("finite-d error measured at d/2")
    return ", ".join(words)


def section(results: Mapping[str, dict[str, Any]], kept: Mapping[str, str]) -> list[str]:
    """The lines of docs/validity.md on these rows; a row without a result keeps its line."""
    table, lost = [], []
    for name, case in CASES.items():
        if name in results:
            r = results[name]
            status = f"{r['verdict']['status']} ({100 * r['tolerance']:g} %)" if case.claim else "no claim"
            table.append(
                f"| `{name}` | {r['words']} | {r['dimension']} | {r['tokens']} | {r['seeds']} | {r['fall']:.1f} x | "
                f"{100 * r['max_deviation']:.1f} % | {r['rms_z']:.2f} | {r['max_z']:.1f} | {status} | "
                f"{100 * r['stderr']['seeds']:.2f} / {100 * r['stderr']['quadrature']:.2f} % | "
                f"{r['seconds_ode']:.0f} | {r['seconds_sgd']:.0f} | {r['seconds_sgd_equal_error']:.0f} | {settings(r)} |"
            )
        elif name in kept:
            table.append(kept[name])
        for term in case.without:
            key = f"{name} without {term}"
            if name in results:
                o = results[name]["without"][term]
                lost.append(
                    f"| `{key}` | {100 * o['max_deviation']:.0f} % | {o['rms_z']:.1f} | {o['max_z']:.0f} | {o['status']} |"
                )
            elif key in kept:
                lost.append(kept[key])
    return [
        "## Mean-field engine: any network of rows, any T",
        "",
        "One-pass SGD on the real network (float32, all rows trained unless said otherwise, started exactly at the theory's",
        "overlaps) against the ODE of `mean_field`, at ten times log-spaced from t1/20 to t1, one unit of t being d steps.",
        "The loss is the population loss at the seeds' measured overlaps, by the theory's own nodes; deviation: the largest",
        "of mean run / ODE - 1 in size. z counts the scatter of the seeds, that of four independent node sets in the ratio, and",
        "the neglected finite-d term: measured at half the dimension, or its size (1 + |p|)/d_eff. Status: agrees within the",
        "tolerance in brackets, or not significantly outside. Start: rows at `alignment` with the teacher's, whose lengths and",
        "cosines are in `CASES` of `benchmarks/validity_mean_field.py`. `next_token` is the cross-entropy less the Bayes risk.",
        "",
        "On the spectrum k^-1.2 the corrections are of order 1/d_eff = 8 %, times what the SGD noise feeds into the fluctuations,",
        "eta/B: `power_law_large_steps` is the same network with eight times more of it, and is not claimed to agree. With so",
        "few directions the estimated finite-d error is as large as 25 %: z is no test there, the deviation is.",
        "",
        "Errors: relative standard error (root mean square over the times) of the mean run / of the ODE's loss. Seconds on",
        "two cores that may be shared, compilation included. The last number of seconds is SGD at EQUAL standard error: its",
        "seconds times (its error / the ODE's error)^2, what SGD would take for a mean as well known as the ODE's.",
        "",
        "| row | network | d | T | seeds | loss falls | largest deviation | rms z | max abs z | status | errors SGD / ODE | "
        "s, ODE | s, SGD | s, SGD at equal error | settings |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *table,
        "",
        "The same runs against the theory without one of its terms, which must differ: V is the SGD noise, H the write-back",
        "through output rows, rho the correlation of the tokens, pairs all products of a head's score but the first.",
        "",
        "| row | largest deviation | rms z | max abs z | status |",
        "|---|---|---|---|---|",
        *lost,
        "",
    ]
