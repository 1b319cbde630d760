"""The mean-field ODE of online SGD on a multi-layer softmax transformer with infinite context.

Read from top to bottom: an SGD step of the weights, the overlaps it moves, the softmax average over a long context, the
layer as a map of linear functionals, the population loss, its gradient layer by layer, the noise, the ODE. Every step
returns what the next one needs; the assumptions are the fields of `AttentionOptions`, and changing one changes the code
that comes out.
"""

from __future__ import annotations

from functools import cache, partial

import sympy
from sympy import S
from sympy.matrices.expressions import MatrixSymbol, Trace

from derivations.attention import checks, logistic_pair
from derivations.attention import finite_context as finite
from derivations.attention import finite_context_code as finite_code
from derivations.attention.code import write_functions
from derivations.attention.notation import (
    ON_OUTPUTS,
    OUTPUTS,
    ROWS,
    A,
    Adjoints,
    AttentionOptions,
    B,
    C,
    E,
    Layer,
    LossMatrices,
    R,
    a,
    b,
    k,
    o,
    q,
    v,
)
from derivations.attention.tape import operation_table, scalar_table
from odescale.errors import InputError
from odescale.networks.architecture import Architecture, build_architecture
from odescale.symbolic.gaussian import Gaussian, covariance_symbols
from odescale.symbolic.matrix import adjoint
from odescale.symbolic.record import Assumption, Derivation, Equation, Output, Parameter, Step
from odescale.symbolic.sgd import (
    FLAG,
    S_ROWS,
    OverlapFlow,
    batch,
    decay,
    eta,
    lam,
    overlap_flow,
    stein_moments,
)

__all__ = ["AttentionOptions", "derive"]

# ---------------------------------------------------------------------------------------------------------------------
# 1. The SGD update, and the overlaps it moves
# ---------------------------------------------------------------------------------------------------------------------


def sgd_step(options: AttentionOptions) -> tuple[Step, OverlapFlow]:
    """One SGD step of the rows; N times the mean increment of a product of entries; N -> infinity."""
    flow = overlap_flow(noise=options.noise, weight_decay=options.weight_decay, write_back=options.write_back)
    step = Step(
        "sgd",
        "One SGD step moves the overlaps",
        "Row i of the weights, entry k along the eigenvector of the token covariance with eigenvalue lambda, moves by "
        "plain SGD with batch B: A_ik -> A_ik - s_i (eta/B) sum_b g_ib x_bk / sqrt(N) - s_i (w/N) A_ik, where "
        "g_i = dl/dphi_i is the slope of the sample loss in the local field phi_i = A_i.x/sqrt(N) and s_i is 1 for "
        "trained rows. Multiply out A_ik A_jk, average over B independent samples with E[g_i x_k]/sqrt(N) = u_i/N and "
        "E[g_i g_j x_k^2]/N = v_ij/N, and count time in units of N steps. First line: the increment per unit of "
        "time at "
        "finite N; second line: N to infinity.",
        (
            Equation(r"N\,\mathrm{E}[\Delta(A_iA_j)]", flow.increment),
            Equation(r"\frac{d}{dt}\langle A_iA_j\rangle", flow.flow),
        ),
        ("online", "dimension") + (("noise",) if options.noise else ("no noise",)),
        partial(checks.one_sgd_step, flow),
    )
    return step, flow


def mean_gradient() -> Step:
    """E[g_i x_k] by Stein, for any loss of the fields of one token; E[g_i g_j x_k^2] at large N."""
    fields = sympy.symbols("u v")
    gaussian = Gaussian(fields, sympy.ImmutableMatrix(covariance_symbols(fields)))
    moments = stein_moments((fields[0] - fields[1]) ** 2 / 2 + fields[0] ** 4 / 4, gaussian, 0, 0)
    rows_matrix, slope, spectrum = (
        MatrixSymbol("A", ROWS, sympy.Symbol("d")),
        MatrixSymbol("L", ROWS, ROWS),
        MatrixSymbol("Sigma", sympy.Symbol("d"), sympy.Symbol("d")),
    )
    chain_rule = adjoint(rows_matrix * spectrum * rows_matrix.T, slope, rows_matrix, (spectrum,))
    return Step(
        "gradient",
        "Mean gradient and its second moment",
        "The entry x_k and the fields are jointly Gaussian, Cov(x_k, phi_j) = lambda A_jk/sqrt(N), so Stein's identity "
        "gives N E[gamma_i] = lambda sum_j G_ij A_jk and N E[gamma_i gamma_j] = lambda V_ij + O(1/N), V = E[g g^T]. "
        "Shown for l = (u - v)^2/2 + u^4/4, fields u and v. With context tokens the same matrix follows from the chain "
        "rule: the mean gradient is the gradient of the population loss L(C, R), C = A Sigma A^T/N, R = A A^T/N, hence "
        "u = (lambda G + H) A with G = 2 S (dL/dC)_sym, H = 2 S (dL/dR)_sym. Third line: d tr(L^T A Sigma A^T)/dA by "
        "matrix differentiation, L = dL/dC.",
        (
            Equation(r"N\,\mathrm{E}[\gamma_u]", moments.mean_limit),
            Equation(r"N\,\mathrm{E}[\gamma_u^2]", moments.second_limit),
            Equation(r"\nabla_A L", chain_rule),
        ),
        ("gaussian", "dimension"),
        partial(checks.mean_gradient, chain_rule),
    )


# ---------------------------------------------------------------------------------------------------------------------
# 2. The softmax average of a long context, and a layer as a map of functionals
# ---------------------------------------------------------------------------------------------------------------------


def softmax_average(options: AttentionOptions) -> tuple[Step, Layer]:
    """E[v e^{c (s k + t l)}] / E[e^{c (s k + t l)}] by the exponential tilt, then lifted from one field to all of them."""
    fields = sympy.symbols("v k l")
    s, t = sympy.symbols("s t")
    covariance = covariance_symbols(fields)
    gaussian = Gaussian(fields, sympy.ImmutableMatrix(covariance))
    weight = sympy.exp(sympy.sympify(options.logit_scale) * (s * fields[1] + t * fields[2]))
    average = sympy.simplify(gaussian.expect(fields[0] * weight) / gaussian.expect(weight))
    coefficient = sympy.simplify(average / (s * covariance[0, 1] + t * covariance[0, 2]))
    if coefficient.free_symbols & {s, t, *covariance.free_symbols}:
        raise InputError(
            "logit_scale",
            expected="a number, so that the average stays linear in s",
            got=str(average),
            remedy="pass a constant",
        )
    # The two products of the score add up: a head is the sum of what each of its pairs does alone, with the factor `coefficient`.
    # s is the functional q^T A of the query token's fields, Cov(v, k) the entry v^T A C A^T k of the layer's
    # covariance.
    layer = Layer(
        average, coefficient * A * C * A.T * k * q.T * A, coefficient * R * o * v.T * A * C * A.T * k * q.T * A
    )
    equations = [
        Equation(r"\frac{\mathrm{E}[v\,e^{c (s k + t l)}]}{\mathrm{E}[e^{c (s k + t l)}]}", sympy.expand(average))
    ]
    if options.identity:
        equations.append(Equation(r"A_{l+1}-A_l\ \text{(value = identity)}", layer.identity))
    if options.write_back:
        equations.append(Equation(r"A_{l+1}-A_l\ \text{(value/output rows)}", layer.rows))
    step = Step(
        "tilt",
        "The softmax average tilts a Gaussian; a layer maps linear functionals to linear functionals",
        "A head of rank r adds a softmax average of v over the context tokens, with logits c times the sum over its pairs of "
        "rows (q, k) of s k, s = phi_q at the query token and k the key's field of the token. With "
        "infinitely many independent context tokens this is the mean of v under a tilted Gaussian: shown for two pairs, s k + "
        "t l. It is the sum of what each pair gives alone, and so for any r, since the logit is one Gaussian field whatever "
        "the number of pairs; and linear in the s. So the fields of the query token move by a linear map of themselves, "
        "context tokens by "
        "the same map, all stay Gaussian, and with phi_l = A_l phi, A_0 = 1, each pair of each head adds the terms below "
        "(e_q, e_k, e_v, e_o written q, k, v, o; all heads of a layer read the A of its input; heads may share rows). "
        "Value = identity moves "
        "every field by its covariance with the key; an output row writes R_jo. A uniform head (no query) "
        "averages v to "
        "its mean, zero.",
        tuple(equations),
        ("gaussian", "context", "independent"),
        partial(checks.softmax_average, average, options.logit_scale),
    )
    return step, layer


# ---------------------------------------------------------------------------------------------------------------------
# 3. Population loss, its gradient and the noise
# ---------------------------------------------------------------------------------------------------------------------


def population_loss(options: AttentionOptions) -> tuple[Step, LossMatrices]:
    """E of the square loss and of the products of its slopes, by Isserlis, lifted to matrices."""
    fields = sympy.symbols("i j")
    gaussian = Gaussian(fields, sympy.ImmutableMatrix(covariance_symbols(fields, "K")))
    second = gaussian.expect(fields[0] * fields[1])
    loss = gaussian.expect(fields[0] ** 2 / 2)
    # Delta_i = b_i.phi, so K_ij = b_i^T C b_j; the slope of the sample loss is g = sum_i Delta_i a_i.
    product = b * C * b.T
    half = loss / gaussian.covariance[0, 0]
    noise = (second / gaussian.covariance[0, 1]) * S_ROWS * a.T * product * a * S_ROWS
    step = Step(
        "loss",
        "Population loss and noise by Isserlis",
        "Output i at the query token is f_i = a_i.phi, a_i the row r_i of A_L; the teacher likewise; Delta_i = b_i.phi "
        "with b = a - a*. The sample loss is 1/2 sum_i Delta_i^2, its slope in the fields of the query token "
        "g = sum_i Delta_i a_i (fields of context tokens carry O(1/T)). Isserlis gives E[Delta_i Delta_j] = K_ij = "
        "b_i^T C b_j, hence the loss (half the trace) and V = S E[g g^T] S with all cross terms between outputs.",
        (
            Equation(r"\mathrm{E}[\Delta_i\Delta_j]", second),
            Equation("L", half * Trace(product)),
            Equation("V", noise if options.noise else S.Zero),
        ),
        ("gaussian", "square loss", "context"),
        partial(checks.population_loss, half * product, noise),
    )
    return step, LossMatrices(product, half * product, noise)


# A layer is the same under most options.
_adjoint = cache(adjoint)


def layer_adjoint(options: AttentionOptions, layer: Layer, matrices: LossMatrices) -> tuple[Step, Adjoints]:
    """One layer by matrix differentiation; layers compose from the last to the first."""
    one = sympy.Identity(OUTPUTS)
    readers = MatrixSymbol("I", OUTPUTS, OUTPUTS)
    symmetric = (C, R)
    loss_a = _adjoint(matrices.loss, readers, b, symmetric).subs(readers, one).doit()
    loss_c = _adjoint(matrices.loss, readers, C, symmetric).subs(readers, one).doit()
    result = Adjoints(
        identity=tuple(_adjoint(layer.identity, B, x, symmetric) for x in (A, C, R)),
        rows=tuple(_adjoint(layer.rows, B, x, symmetric) for x in (A, C, R)),
        loss_a=loss_a,
        loss_c=loss_c,
        readout=_adjoint(E * A, ON_OUTPUTS, A),
    )
    equations = [Equation(r"\partial L/\partial a", loss_a), Equation(r"\partial L/\partial C|_a", loss_c)]
    equations.append(Equation("B_L", result.readout.subs(ON_OUTPUTS, loss_a)))
    kinds = [("identity", result.identity)] if options.identity else []
    kinds += [("rows", result.rows)] if options.write_back else []
    for kind, (on_a, on_c, on_r) in kinds:
        equations += [
            Equation(rf"B_l - B_{{l+1}}\ \text{{({kind})}}", on_a),
            Equation(rf"\partial L/\partial C\ \text{{({kind})}}", on_c),
        ]
        if kind == "rows":
            equations.append(Equation(r"\partial L/\partial R\ \text{(rows)}", on_r))
    step = Step(
        "adjoint",
        "Gradient of the loss, layer by layer",
        "Degrees triple with every layer, so nothing is expanded: B_l is the cotangent of A_l, started from the "
        "readouts (E picks the rows r_i), and one layer turns B_{l+1} into B_l and adds to dL/dC and dL/dR. Each "
        "formula "
        "is sympy's matrix derivative of tr(B^T F) for the update F of one pair of rows (q, k) of one head; pairs and heads of "
        "a layer add up, and what they share gathers the sum. The "
        "entries of C "
        "are varied independently here and symmetrised in G = S (dL/dC + dL/dC^T). The teacher's functionals depend on "
        "overlaps of frozen rows only, which S removes.",
        tuple(equations),
        (),
        partial(checks.layer_adjoint, (layer.identity, layer.rows), (result.identity, result.rows)),
    )
    return step, result


def assembled(options: AttentionOptions, flow: OverlapFlow, outputs: tuple[Output, ...]) -> Step:
    """The ODE per eigenmode."""
    network = _written_out(options)
    # Heads of rank two, two of which share their keys (and values).
    kinds = [kind for kind, covered in (("identity", options.identity), ("rows", options.write_back)) if covered]
    higher = tuple(build_architecture(1, 2, value=kind, rank=2, key_value_heads=1) for kind in kinds)
    return Step(
        "ode",
        "The closed ODE",
        "Put together: every eigenmode k moves linearly under the same small matrices, M the rate of the rows; "
        "the modes "
        "couple through C = sum_k w_k lambda_k q_k and R = sum_k w_k q_k alone (w_k: multiplicity over N, so "
        "that sum_k "
        "w_k lambda_k = 1). Isotropic tokens: one mode, C = R = q. "
        + ("The learning rate is eta(t). " if options.schedule else "The learning rate eta is constant. ")
        + "One unit of t is N SGD steps.",
        (Equation("M", flow.rate), Equation(r"\frac{dq_k}{dt}", flow.matrix)),
        ("dimension", "online"),
        partial(checks.closures_against_tape, outputs, (network, *higher), options.logit_scale),
    )


def _written_out(options: AttentionOptions) -> Architecture:
    """The network of the scalar form."""
    return build_architecture(
        options.depth,
        options.heads,
        rank=options.rank,
        value="rows" if options.values == "rows" else "identity",
        outputs=options.outputs,
        train_readouts=options.train_readouts,
    )


# ---------------------------------------------------------------------------------------------------------------------
# 4. The record
# ---------------------------------------------------------------------------------------------------------------------


@cache
def derive(options: AttentionOptions | None = None) -> Derivation:
    """The whole derivation under `options` (defaults: the shipped one)."""
    options = options or AttentionOptions()
    sgd, flow = sgd_step(options)
    tilt, layer = softmax_average(options)
    loss, matrices = population_loss(options)
    backward, adjoints = layer_adjoint(options, layer, matrices)
    outputs = list(write_functions(options, layer, matrices, adjoints, flow))
    steps = [sgd, mean_gradient(), tilt, loss, backward, assembled(options, flow, tuple(outputs))]
    if options.context == "order 1/T":
        ratio, average = finite.softmax_average(options.logit_scale)
        query, moments = finite.query_average(average, options.logit_scale)
        corrected = finite_code.write_functions(moments, options.logit_scale, options.noise)
        outputs += corrected
        steps += [
            ratio.checked(checks.softmax_ratio, average.bias, average.kernel),
            query.checked(checks.query_average, moments.pair, options.logit_scale),
            finite.corrected_theory(moments).checked(checks.finite_context, tuple(outputs), options.logit_scale),
        ]
    if options.identity and options.logit_scale == 1:
        symbols = (("A", A), ("B", B), ("C", C), ("q", q), ("k", k))
        reduction, solved = logistic_pair.reduce_and_solve(layer.identity, adjoints.identity[:2], symbols)
        steps.append(reduction.checked(checks.logistic_pair, tuple(outputs), solved.curve))
        outputs.append(logistic_pair.write(solved))
    network = _written_out(options)
    tables = (scalar_table(network, options.logit_scale),)
    if options.identity:
        tables += (operation_table(options.logit_scale),)
    return Derivation(
        name="attention",
        title="Infinite-context softmax transformer",
        summary="Mean-field ODE of online SGD on a transformer with softmax attention, any depth, number and rank of heads, "
        "square loss on K readout rows against a teacher of the same kind, Gaussian tokens of any covariance spectrum.",
        states=(
            Parameter(sympy.Symbol("q_k"), "overlaps of the rows in eigenmode k, P x P", "positive semi-definite"),
        ),
        parameters=(
            Parameter(eta, "learning rate eta(t)", "> 0", "per SGD step"),
            Parameter(batch, "sequences per SGD step", ">= 1", "sequences"),
            Parameter(decay, "weight decay, W -> W - (w/N) W per step", ">= 0", "per unit of t"),
            Parameter(lam, "eigenvalue of the token covariance in the mode", "> 0"),
            Parameter(FLAG[0], "1 for a row that SGD moves, else 0", "0 or 1"),
        ),
        assumptions=(
            Assumption("gaussian", "Tokens are Gaussian with zero mean and covariance Sigma."),
            Assumption("independent", "Tokens of a sequence are independent."),
            Assumption("online", "Every SGD step uses fresh sequences."),
            Assumption("dimension", "N = tr Sigma is large, the number of rows P fixed."),
            Assumption("context", "The context is infinitely long (corrections of order 1/T)."),
            *(
                (
                    Assumption(
                        "finite context", "One layer of rank-one heads, value = identity, T tokens, to order 1/T."
                    ),
                )
                if options.context == "order 1/T"
                else ()
            ),
            Assumption("square loss", "The sample loss is half the squared error at one query token."),
            Assumption("noise", "The fluctuation of the gradient is kept: eta^2/B.")
            if options.noise
            else Assumption("no noise", "The fluctuation of the gradient is dropped (infinite batch)."),
        ),
        steps=tuple(steps),
        sources=("Saad & Solla, Phys. Rev. E 52, 4225 (1995)", "Goldt et al., NeurIPS 2019"),
        outputs=tuple(outputs),
        tables=tables,
        imports=("import jax", "import jax.numpy as jnp", "from jax import Array")
        + (("", "from odescale.errors import InputError") if options.context == "order 1/T" else ()),
    )
