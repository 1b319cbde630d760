"""The mean-field ODE of online SGD on any finite-rank network, from one SGD step of its rows, and its closed forms.

    dq_k/dt = M_k q_k + q_k M_k^T + (eta^2/B) lam_k V,     M_k = -eta (lam_k G + H) - w S
    G C = E[sum_t g_t phi_t^T],   V = sum_ts rho_ts E[g_t g_s^T],   H = E[dl/dR + (dl/dR)^T],   g_t = dl/dphi_t

Read from top to bottom: the gradient of a network whose tokens are seen through local fields and overlaps, the conditional
mean of a token's entry, the step of the overlaps, the limit, momentum; then the expectations where they have a closed form:
committees with erf and with quadratic units, and one layer of linear attention at any number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import sympy
from sympy import KroneckerProduct, S
from sympy.matrices.expressions import MatrixSymbol
from sympy.matrices.expressions.kronecker import combine_kronecker

from derivations.mean_field import checks, committee, momentum
from derivations.mean_field import linear_attention as attention
from odescale.errors import InputError
from odescale.symbolic.matrix import adjoint, chains
from odescale.symbolic.matrix_writer import MatrixWriter
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Assumption, Derivation, Equation, Output, Parameter, Step
from odescale.symbolic.sgd import (
    FLAG,
    MEAN,
    S_ROWS,
    SECOND,
    SIZE,
    G,
    H,
    OverlapFlow,
    V,
    batch,
    decay,
    eta,
    lam,
    overlap_flow,
    trace,
)

COUNT, DIMENSION = sympy.symbols("T d", integer=True, positive=True)
A, X = MatrixSymbol("A", SIZE, DIMENSION), MatrixSymbol("x", COUNT, DIMENSION)
SLOPES, ON_R = MatrixSymbol("g", COUNT, SIZE), MatrixSymbol("Lambda", SIZE, SIZE)
"""g_ti = dl/dphi_ti and Lambda = dl/dR, entries of R varied independently."""


@dataclass(frozen=True)
class MeanFieldOptions:
    """What is assumed; changing a field changes the code that comes out.

    - `noise`: keep the fluctuation of the gradient. `weight_decay`: W <- W - (w/N) W each step.
    - `write_back`: blocks add rows to tokens, so that R enters. `query_attended`: the query token is one of its own keys.
    """

    noise: bool = True
    weight_decay: bool = True
    write_back: bool = True
    query_attended: bool = True


# ---------------------------------------------------------------------------------------------------------------------
# 1. The gradient, and the conditional mean of a token's entry
# ---------------------------------------------------------------------------------------------------------------------


def gradient(options: MeanFieldOptions) -> tuple[Step, sympy.MatrixExpr]:
    """d l(phi, R)/dA by the chain rule, phi_t = A x_t/sqrt(N), R = A A^T/N."""
    through_fields = adjoint(X * A.T / sympy.sqrt(trace), SLOPES, A)
    through_overlaps = adjoint(A * A.T / trace, ON_R, A) if options.write_back else sympy.ZeroMatrix(SIZE, DIMENSION)
    slope = through_fields + through_overlaps
    step = Step(
        "gradient",
        "The gradient of a finite-rank network",
        "A block reads tokens through phi_it = A_i.x_t/sqrt(N), mixes them, and adds rows back, h_t <- h_t + A_o s_t/sqrt(N), "
        "which moves the fields by R_jo s_t. So the sample loss is a function l(phi_1..phi_T, R), R = A A^T/N, and by "
        "matrix differentiation the gradient in the rows has two parts: g_ti = dl/dphi_ti along the tokens, and "
        "Lambda = dl/dR along the rows themselves.",
        (Equation(r"\nabla_A\,l", slope),),
        (),
        partial(checks.row_gradient, slope),
    )
    return step, slope


@dataclass(frozen=True)
class Regression:
    """What the fields tell about the k-th entries of the tokens: conditional mean of x_tk, and its residual covariance.

    - `mean`: row vector with E[x_tk | phi] = mean . phi_t. `residual`: factor of rho_ts in Cov(x_tk, x_sk | phi).
    """

    mean: sympy.MatrixExpr
    residual: tuple[sympy.Expr, sympy.MatrixExpr]


def conditional_mean() -> tuple[Step, Regression]:
    """Gaussian regression of (x_1k..x_Tk) on all fields, with the Kronecker structure of separable correlation."""
    rho, C = MatrixSymbol("rho", COUNT, COUNT), MatrixSymbol("C", SIZE, SIZE)
    row = MatrixSymbol("a", SIZE, 1)  # the k-th entries of the rows
    # Cov(x_tk, phi_sj) = rho_ts lam A_jk/sqrt(N), Cov(phi_ti, phi_sj) = rho_ts C_ij, Var x_tk = lam.
    cross, covariance = KroneckerProduct(rho, row.T), KroneckerProduct(rho, C)
    weights = combine_kronecker((cross * covariance.inverse()).doit())
    tokens, fields = weights.args
    if tokens != sympy.Identity(COUNT):
        raise InputError("rho", expected="a correlation that cancels", got=str(tokens), remedy="keep it separable")
    explained = combine_kronecker(weights * KroneckerProduct(rho, row)).args
    scale = lam / sympy.sqrt(trace)
    step = Step(
        "condition",
        "The conditional mean of a token's entry",
        "Along an eigenvector of Sigma with eigenvalue lambda, the entries x_tk and all fields are jointly Gaussian, "
        "Cov(x_tk, phi_sj) = rho_ts lambda A_jk/sqrt(N), Cov(phi_ti, phi_sj) = rho_ts C_ij: with a the column of the A_jk, "
        "rho (x) lambda a^T/sqrt(N) and rho (x) C. In the regression rho cancels (first line: weights of the fields of all "
        "tokens on those of one): x_tk depends on the fields of its own token alone, however the tokens are correlated, "
        "E[x_tk | phi] = lambda a^T C^-1 phi_t/sqrt(N). What is left of x_tk fluctuates independently of the fields with "
        "covariance rho_ts (lambda - second line x lambda^2/N).",
        (
            Equation(r"(\rho\otimes a^T)(\rho\otimes C)^{-1}", sympy.latex(weights)),
            Equation(
                r"(\rho\otimes a^T)(\rho\otimes C)^{-1}(\rho\otimes a)", sympy.latex(sympy.MatMul(*explained[1:]))
            ),
        ),
        ("gaussian", "separable"),
        checks.conditional_mean,
    )
    return step, Regression(scale * fields, (scale**2, explained[1]))


def gradient_moments(options: MeanFieldOptions, slope: sympy.MatrixExpr, regression: Regression) -> Step:
    """N E[gamma] and N E[gamma gamma] of the k-th entry of the gradient: G, H and V appear."""
    D, C = MatrixSymbol("D", SIZE, SIZE), MatrixSymbol("C", SIZE, SIZE)
    row = MatrixSymbol("a", SIZE, 1)
    mean: sympy.MatrixExpr = sympy.ZeroMatrix(SIZE, 1)
    for chain in chains(slope):
        symbols = [symbol for symbol, _ in chain.factors]
        if X in symbols:  # sum_t g_t E[x_tk | phi] = E[sum_t g_t phi_t^T] (regression weights)^T
            mean = mean + trace * chain.coefficient * D * regression.mean.T
        else:  # the k-th entries of the rows, and E[Lambda + Lambda^T] = H from its two chains
            half = H / 2
            mean = mean + trace * chain.coefficient * half * row
    mean = mean.subs(D, G * C).doit()
    mean = sympy.expand(mean.subs(C.T, C).doit()).doit()
    # gamma_i = Y_i/sqrt(N) + h_i/N with Y = sum_t g_t x_tk; E[Y Y'] from the residual and the conditional means.
    explained, m, cross, h = sympy.symbols("kappa m_ij c_ij h_ij")  # a^T C^-1 a, and averages of order one
    v, sqrt_trace = sympy.Symbol("V_ij"), sympy.sqrt(trace)
    fluctuation = (lam - regression.residual[0] * explained) * v + lam**2 / trace * m
    # E[Y_i h_j] = c_ij/sqrt(N): a mean of x_tk, given the fields.
    second = trace * (fluctuation / trace + cross / sqrt_trace / (sqrt_trace * trace) + h / trace**2)
    limit = sympy.limit(sympy.expand(second), trace, sympy.oo)
    return Step(
        "moments",
        "Mean gradient and its second moment",
        "gamma_i, the k-th entry of the gradient, averaged: the tokens' part by the conditional mean, E[sum_t g_t phi_t^T] C^-1 "
        "= G, which defines G by G C = D = E[sum_t g_t phi_t^T] (no second derivative of l, no independence of tokens), the "
        "rows' part by H = E[Lambda + Lambda^T]. Products: V_ij = sum_ts rho_ts E[g_ti g_sj] from the residual covariance; "
        "all else (kappa = a^T C^-1 a; m_ij, c_ij, h_ij averages of order one) is smaller by 1/N.",
        (
            Equation(r"N\,\mathrm{E}[\gamma]", sympy.latex(mean)),
            Equation(r"N\,\mathrm{E}[\gamma_i\gamma_j]", sympy.expand(second)),
            Equation(r"\lim_{N\to\infty}N\,\mathrm{E}[\gamma_i\gamma_j]", limit),
        ),
        ("gaussian", "separable", "dimension"),
        partial(checks.gradient_moments, mean, limit),
    )


# ---------------------------------------------------------------------------------------------------------------------
# 2. The step of the overlaps and its limit
# ---------------------------------------------------------------------------------------------------------------------


def sgd_step(options: MeanFieldOptions) -> tuple[Step, OverlapFlow]:
    """N times the mean increment of a product of entries; N -> infinity."""
    flow = overlap_flow(noise=options.noise, weight_decay=options.weight_decay, write_back=options.write_back)
    step = Step(
        "sgd",
        "One SGD step moves the overlaps; the closed ODE",
        "A_ik -> A_ik - s_i (eta/B) sum_b gamma_ib - s_i (w/N) A_ik, s_i = 1 for trained rows. Multiply out A_ik A_jk, average "
        "over B independent sequences with N E[gamma_i] = u_i and N E[gamma_i gamma_j] = v_ij, and count time in units of N "
        "steps: the first line at finite N, the second for N to infinity. With u = (lambda G + H) A and v = lambda V every "
        "eigenmode moves linearly under the same small matrices; C = (1/N) sum_k lambda_k q_k and R = (1/N) sum_k q_k couple "
        "them. Checked by single steps at N = 300 with correlated tokens, write-back, B = 2 and weight decay.",
        (
            Equation(r"N\,\mathrm{E}[\Delta(A_iA_j)]", flow.increment),
            Equation(r"\frac{d}{dt}\langle A_iA_j\rangle", flow.flow),
            Equation("M", flow.rate),
            Equation(r"\frac{dq}{dt}", flow.matrix),
        ),
        ("online", "dimension") + (("noise",) if options.noise else ("no noise",)),
        partial(checks.one_step, flow),
    )
    return step, flow


def write_flow(flow: OverlapFlow) -> Output:
    """`overlap_flow`: dq/dt of every mode."""
    names = {eta: "eta", batch: "batch", decay: "weight_decay", lam: "eigenvalue"}
    writer = MatrixWriter(names=names, diagonals={S_ROWS: "trained"}, symmetric=frozenset({V}), sizes={SIZE: 16})
    arguments = ("q: Array", "lam: Array", "G: Array", "H: Array", "V: Array", "eta: Array", "batch: Array",
                 "weight_decay: Array", "trained: Array")  # fmt: skip
    source = function_source(
        "overlap_flow",
        arguments,
        "dq/dt (modes, P, P) = M q + q M^T + (eta^2/B) lam V, M = -eta (lam G + H) - weight_decay S, in plain rows.\n\n"
        "q (modes, P, P), lam (modes,), G, H, V (P, P) with zero rows where `trained` (P,) is 0. One unit of t is N SGD steps.",
        [
            "def one_mode(q, eigenvalue):",
            *(f"    {line}" for line in writer.lines([("flow", flow.matrix)])),
            "    return flow",
            "",
            "return jax.vmap(one_mode)(q, lam)",
        ],
        "Array",
    )
    return Output("overlap_flow", source)


def coefficients(flow: OverlapFlow) -> tuple[dict[str, sympy.Expr], sympy.Expr]:
    """What multiplies the gradient and the row itself in dA/dt, and V in the noise."""
    rates = {"gradient": S.Zero, "decay": S.Zero}
    for term in sympy.Add.make_args(flow.flow):
        for name, monomial in (
            ("gradient", FLAG[0] * MEAN[0] * sympy.Symbol("A_j")),
            ("decay", FLAG[0] * sympy.Symbol("A_i") * sympy.Symbol("A_j")),
        ):
            quotient = sympy.cancel(term / monomial)
            if not quotient.free_symbols & {*FLAG, *MEAN, SECOND, sympy.Symbol("A_i"), sympy.Symbol("A_j")}:
                rates[name] += quotient
    return rates, flow.flow.coeff(SECOND).subs({FLAG[0]: 1, FLAG[1]: 1})


# ---------------------------------------------------------------------------------------------------------------------
# 3. The record
# ---------------------------------------------------------------------------------------------------------------------


def sources(outputs: tuple[Output, ...]) -> tuple[str, ...]:
    """The text of generated functions, which their checks execute."""
    return tuple(output.source for output in outputs)


@cache
def derive(options: MeanFieldOptions | None = None) -> Derivation:
    """The whole derivation under `options` (defaults: the shipped one)."""
    options = options or MeanFieldOptions()
    slope_step, slope = gradient(options)
    regression_step, regression = conditional_mean()
    moments_step = gradient_moments(options, slope, regression)
    sgd, flow = sgd_step(options)
    ball, blocks = momentum.heavy_ball(options.noise, options.weight_decay)
    fixed, plain_rate = momentum.fixed_momentum()
    erf_step, erf = committee.erf_forms()
    quadratic_step, quadratic = committee.quadratic_forms()
    rule_step, rule = attention.token_averages(options.query_attended)
    layer_step, layer = attention.linear_attention(rule, options.query_attended)
    erf_code, quadratic_code = committee.write_erf(erf), committee.write_quadratic(quadratic)
    layer_code = attention.write(layer, rule)
    steps = (
        slope_step,
        regression_step,
        moments_step,
        sgd,
        ball.checked(checks.heavy_ball, blocks),
        fixed.checked(checks.fixed_momentum, sympy.lambdify((eta, momentum.MU), plain_rate)),
        erf_step.checked(checks.erf_committee, erf.third, (committee.ARCSINE, *sources(erf_code))),
        quadratic_step.checked(checks.quadratic_committee, sources(quadratic_code)),
        rule_step.checked(checks.token_averages, rule, options.query_attended),
        layer_step.checked(checks.linear_attention, sources(layer_code), options.query_attended),
    )
    outputs = (
        write_flow(flow), *momentum.write(blocks, *coefficients(flow)), *erf_code, *quadratic_code, *layer_code
    )  # fmt: skip
    return Derivation(
        name="mean_field",
        title="Mean-field ODE of a finite-rank network",
        summary="Online SGD on any network whose weights are rows, read and written through local fields: the closed ODE for "
        "the overlaps of the rows under plain SGD and momentum, for Gaussian tokens of any spectrum and any separable "
        "correlation; and its expectations in closed form for committees and for one layer of linear attention.",
        states=(
            Parameter(sympy.Symbol("q_k"), "overlaps of the rows in eigenmode k, P x P", "positive semi-definite"),
        ),
        parameters=(
            Parameter(eta, "learning rate eta(t)", "> 0", "per SGD step"),
            Parameter(batch, "sequences per SGD step", ">= 1", "sequences"),
            Parameter(decay, "weight decay, W -> W - (w/N) W per step", ">= 0", "per unit of t"),
            Parameter(momentum.damping, "heavy ball, mu = 1 - gamma/N", "> 0", "per unit of t"),
            Parameter(lam, "eigenvalue of the token covariance in the mode", "> 0"),
            Parameter(FLAG[0], "1 for a row that SGD moves, else 0", "0 or 1"),
            Parameter(sympy.Symbol("c_a"), "output weight of unit a, the teacher's with a minus", "real"),
            Parameter(committee.SIGMA, "standard deviation of label noise", ">= 0"),
            Parameter(attention.TOKENS, "tokens, the query token among them", ">= 1", "tokens"),
        ),
        assumptions=(
            Assumption("gaussian", "Tokens are Gaussian with zero mean."),
            Assumption("separable", "E[x_t x_s^T] = rho_ts Sigma."),
            Assumption("online", "Every SGD step uses fresh sequences."),
            Assumption("dimension", "N = tr Sigma is large, the number of rows P and of tokens T fixed."),
            Assumption("noise", "The fluctuation of the gradient is kept: eta^2/B.")
            if options.noise
            else Assumption("no noise", "The fluctuation of the gradient is dropped (infinite batch)."),
            Assumption("square loss", "The sample loss is half the squared difference to the teacher's output."),
            Assumption("one token", "Committees read one token."),
            Assumption("independent", "Tokens of a sequence are independent, rho = I."),
        ),
        steps=steps,
        sources=(
            "Saad & Solla, Phys. Rev. E 52, 4225 (1995)",
            "Goldt et al., NeurIPS 2019",
            "Williams, Neural Computation 10, 1203 (1998): arcsine law",
        ),
        outputs=outputs,
        imports=(
            "import jax",
            "import jax.numpy as jnp",
            "import numpy as np",
            "from jax import Array",
            "",
            committee.ARCSINE,
        ),  # fmt: skip
    )
