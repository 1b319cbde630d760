"""The generated functions of the infinite-context theory: derived expressions in loops over layers and heads."""

from __future__ import annotations

import sympy

from derivations.attention.notation import (
    OUTPUTS,
    ROWS,
    Adjoints,
    AttentionOptions,
    C,
    Layer,
    LossMatrices,
    R,
    k,
    o,
    q,
    v,
)
from odescale.symbolic.matrix_writer import MatrixWriter, Selector
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Output
from odescale.symbolic.sgd import S_ROWS, OverlapFlow, V, batch, decay, eta, lam

HEAD = {x: Selector(n, f"unit[{n}]") for x, n in ((q, "query"), (k, "key"), (v, "head.value"), (o, "head.output"))}
WRITER = MatrixWriter(
    selectors=HEAD, symmetric=frozenset({C, R}), diagonals={S_ROWS: "trained"}, sizes={ROWS: 16, OUTPUTS: 2}
)


def _branches(options: AttentionOptions, identity: list[str], rows: list[str]) -> list[str]:
    """Body of the loop over heads: what each pair of rows does by the kind of its head; a uniform head has none, adds nothing."""
    if options.identity and options.write_back:
        body = ["if head.output is None:", *(f"    {x}" for x in identity), "else:", *(f"    {x}" for x in rows)]
    else:
        body = identity if options.identity else rows
    return [f"        {line}" for line in ("for query, key in head.terms:", *(f"    {x}" for x in body))]


def write_functions(
    options: AttentionOptions, layer: Layer, matrices: LossMatrices, adjoints: Adjoints, flow: OverlapFlow
) -> tuple[Output, ...]:
    """The generated functions of the infinite-context theory."""

    def update(expression: sympy.MatrixExpr) -> list[str]:
        return WRITER.lines([("update", expression)], accumulate=True)

    layers = function_source(
        "layers",
        ("C: Array", "R: Array", "network"),
        "[A_0, ..., A_L], each (P, P): the linear maps from the fields of a token to its fields after each layer.",
        [
            "unit = jnp.eye(C.shape[0], dtype=C.dtype)",
            "A = unit",
            "maps = [A]",
            "for layer in network.layers:",
            "    update = jnp.zeros_like(C)",
            "    for head in layer:",
            *_branches(options, update(layer.identity), update(layer.rows)),
            "    A = A + update",
            "    maps.append(A)",
            "return maps",
        ],
        "list[Array]",
    )
    functionals = function_source(
        "functionals",
        ("C: Array", "R: Array", "network"),
        "a (K, P): output i of the network at the query token is a_i . phi.",
        ["return layers(C, R, network)[-1][jnp.asarray(network.readouts)]"],
        "Array",
    )
    loss = function_source(
        "population_loss",
        ("C: Array", "R: Array", "student", "teacher"),
        "L = 1/2 sum_i b_i^T C b_i, the excess loss at infinite context; C (P, P) field covariance, R (P, P) overlaps.",
        [
            "b = functionals(C, R, student) - functionals(C, R, teacher)",
            f"return {WRITER.trace(matrices.loss)}",
        ],
        "Array",
    )
    reverse = [
        WRITER.lines(list(zip(("below", "dC", "dR"), kind, strict=True)), accumulate=True)
        for kind in (adjoints.identity, adjoints.rows)
    ]
    noise = WRITER.lines([("V", matrices.noise)]) if options.noise else ["V = jnp.zeros_like(C)"]
    pull_back = function_source(
        "pull_back",
        ("on_outputs: Array", "C: Array", "R: Array", "network"),
        "(dC, dR): the cotangent (K, P) of the functionals a, pulled back to the overlaps, layer by layer.",
        [
            "unit = jnp.eye(C.shape[0], dtype=C.dtype)",
            "maps = layers(C, R, network)",
            "E = unit[jnp.asarray(network.readouts)]",
            *WRITER.lines([("B", adjoints.readout)]),
            "dC = jnp.zeros_like(C)",
            "dR = jnp.zeros_like(C)",
            "for A, layer in zip(reversed(maps[:-1]), reversed(network.layers), strict=True):",
            "    below = B",
            "    for head in layer:",
            *_branches(options, reverse[0], reverse[1]),
            "    B = below",
            "return dC, dR",
        ],
        "tuple[Array, Array]",
    )
    closure = function_source(
        "closure",
        ("C: Array", "R: Array", "student", "teacher", "trained: Array"),
        "(G, H, V), each (P, P): G = S (dL/dC + dL/dC^T), H = S (dL/dR + dL/dR^T), V = S E[g g^T] S at the query token.\n\n"
        "`trained` (P,): 1 for rows that SGD moves, 0 for the others.",
        [
            "a = functionals(C, R, student)",
            "b = a - functionals(C, R, teacher)",
            *WRITER.lines([("on_outputs", adjoints.loss_a)]),
            "dC, dR = pull_back(on_outputs, C, R, student)",
            *WRITER.lines([("dC", adjoints.loss_c)], accumulate=True),
            "G = trained[:, None] * (dC + dC.T)",
            "H = trained[:, None] * (dR + dR.T)",
            *noise,
            "return G, H, V",
        ],
        "tuple[Array, Array, Array]",
    )
    names = {eta: "eta", batch: "batch", decay: "weight_decay", lam: "eigenvalue"}
    writer = MatrixWriter(names=names, diagonals={S_ROWS: "trained"}, symmetric=frozenset({V}), sizes={ROWS: 16})
    overlap = function_source(
        "overlap_flow",
        (
            "q: Array",
            "lam: Array",
            "G: Array",
            "H: Array",
            "V: Array",
            "eta: Array",
            "batch: Array",
            "weight_decay: Array",
            "trained: Array",
        ),
        "dq/dt (modes, P, P) with q (modes, P, P), lam (modes,) eigenvalues, eta = eta(t); one unit of t is N "
        "SGD steps.",
        [
            "def one_mode(q, eigenvalue):",
            *(f"    {line}" for line in writer.lines([("flow", flow.matrix)])),
            "    return flow",
            "",
            "return jax.vmap(one_mode)(q, lam)",
        ],
        "Array",
    )
    return tuple(
        Output(name, source)
        for name, source in (
            ("layers", layers),
            ("functionals", functionals),
            ("population_loss", loss),
            ("pull_back", pull_back),
            ("closure", closure),
            ("overlap_flow", overlap),
        )
    )
