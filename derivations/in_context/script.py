"""Learning in context: from the residual stream of linear attention and its gradient flow to the ODE of gamma_1..gamma_L."""

from __future__ import annotations

from functools import cache, partial

import sympy

from derivations.in_context import checks
from derivations.in_context.moments import CONTEXT, DIMENSION, RATIO, limit_moment, marchenko_pastur, wishart_moment
from odescale.errors import InputError
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Assumption, Derivation, Equation, Output, Parameter, Step
from odescale.symbolic.scalar_writer import to_jax

GAMMA, LAM, OM, DEPTH, TIME = sympy.symbols("gamma lam om L t", positive=True)
SHRINK = sympy.Symbol("u", positive=True)
LABEL = sympy.Symbol("v", real=True)


def strengths(depth: int, tied: bool) -> tuple[sympy.Symbol, ...]:
    """gamma_1..gamma_L, or one symbol L times."""
    return (GAMMA,) * depth if tied else sympy.symbols(f"gamma_1:{depth + 1}", positive=True)


def moment_symbol(k: int) -> sympy.Expr:
    """m_k; m_0 = 1."""
    return sympy.Symbol(f"m_{k}", positive=True) if k else sympy.Integer(1)


def stream() -> tuple[Step, sympy.Expr]:
    """What a layer leaves of the error, along an eigenvector of the context's covariance."""
    # Context residuals are r_nu = v x_nu along the eigenvector; (1/P) sum_nu x_nu x_nu = lam there.
    heard = GAMMA / DEPTH * LAM * LABEL
    context = LABEL - heard
    predicted = sympy.Symbol("f", real=True) + heard
    # What context still carries and what the query has heard add up to the label after every layer.
    if sympy.expand(context + predicted - LABEL - sympy.Symbol("f", real=True)) != 0:
        raise InputError(
            "stream", expected="context and query move oppositely", got=str(context), remedy="check the signs"
        )
    factor = sympy.expand(context / LABEL)
    step = Step(
        "stream",
        "What a layer leaves of the error",
        "Labels are y = w.x. With G_l = gamma_l I each layer takes (gamma_l/L) S_hat v from v in the context's "
        "residuals r_nu = "
        "v.x_nu and adds it to the query's prediction, S_hat = (1/P) sum_nu x_nu x_nu^T. v + (what was "
        "predicted) = w is conserved, so "
        "the error of the prediction is x.prod_l (1 - gamma_l S_hat/L) w.",
        (Equation("v", sympy.Mul(factor, LABEL, evaluate=False)),),
        ("decoupled", "isotropic"),
        partial(checks.stream, factor),
    )
    return step, factor


def loss_in_moments(factor: sympy.Expr, depth: int, tied: bool) -> sympy.Expr:
    """E tr prod_l factor_l^2 / D in the moments m_k, through the elementary symmetric polynomials of the strengths."""
    slope = -sympy.diff(factor, LAM).subs(DEPTH, depth)
    if sympy.diff(slope, LAM) != 0 or factor.subs(LAM, 0) != 1:
        raise InputError("factor", expected="1 - c lam", got=str(factor), remedy="check the step 'stream'")
    # e[k] of L numbers by adding one at a time: L^2/2 products, where expansion has 3^L.
    e: list[sympy.Expr] = [sympy.Integer(1)]
    for gamma in strengths(depth, tied):
        c = slope.subs(GAMMA, gamma)
        e = [a + c * b for a, b in zip([*e, sympy.Integer(0)], [sympy.Integer(0), *e], strict=True)]
    if tied:
        e = [sympy.expand(term) for term in e]
    squares = [
        sympy.Add(*(e[j] * e[k - j] for j in range(max(0, k - depth), min(k, depth) + 1))) for k in range(2 * depth + 1)
    ]
    return sympy.Add(*((-1) ** k * (sympy.expand(s) if tied else s) * moment_symbol(k) for k, s in enumerate(squares)))


def averages() -> tuple[Step, dict[int, sympy.Expr]]:
    """The moments m_k."""
    exact = {k: wishart_moment(k) for k in (1, 2, 3, 4)}
    for k in range(1, 13):
        if sympy.expand(limit_moment(k) - marchenko_pastur(k)) != 0:
            raise InputError("moments", expected="Narayana numbers", got=f"k = {k}", remedy="check the recursion")
    step = Step(
        "moments",
        "Moments of the sample covariance, exact and in the limit",
        "Stein's lemma on the first X of tr (X X^T)^k gives a recursion over products of traces (partitions), "
        "each step of one degree "
        "less: the average of any product of traces of a real Wishart matrix is a polynomial in D and P. Its "
        "terms of the highest "
        "degree are the moments of Marchenko and Pastur, Narayana numbers times powers of D/P (compared to k = 12).",
        (
            Equation("m_2", sympy.factor(sympy.cancel(exact[2]))),
            Equation("m_3", sympy.factor(sympy.cancel(exact[3]))),
            Equation("m_3^{\\infty}", limit_moment(3)),
        ),
        ("isotropic",),
        partial(checks.moments, exact),
    )
    return step, exact


def gradient(factor: sympy.Expr) -> tuple[Step, sympy.Expr]:
    """Gradient flow in the strengths."""
    gammas = strengths(3, tied=False)
    flow = -sympy.diff(loss_in_moments(factor, 3, tied=False), gammas[0])
    step = Step(
        "flow",
        "Gradient flow of the strengths",
        "dG_l/dt = -D dLoss/dG_l keeps G_l = gamma_l I (the loss is unchanged when data are rotated) and gives "
        "dgamma_l/dt = "
        "-dLoss/dgamma_l. Loss = sum_k (-1/L)^k m_k sum_j e_j e_(k-j), e_j the elementary symmetric polynomials "
        "of gamma_1..gamma_L; "
        "tied layers: sum_k C(2L, k) (-gamma/L)^k m_k. In the module the average is a sum over the nodes of a "
        "quadrature: L + 1 Gauss "
        "nodes are exact, and nothing cancels as it does in the alternating sum.",
        (Equation(r"\mathcal{L}_{L=2}", loss_in_moments(factor, 2, tied=True)), Equation(r"\dot\gamma_1\ (L=3)", flow)),
        ("decoupled", "isotropic", "gradient flow"),
        partial(checks.descent, flow, gammas),
    )
    return step, flow


def modes(factor: sympy.Expr) -> tuple[Step, dict[str, sympy.Expr]]:
    """Fixed structured covariance, infinite context: every eigenvector by itself."""
    loss = OM * LAM * SHRINK ** (2 * DEPTH)
    # By the chain rule in u: the power stays whole, where expanding it would overflow at large depth.
    flow = -sympy.powsimp(sympy.diff(loss, SHRINK)) * sympy.diff(factor, GAMMA)
    flow = sympy.powsimp(flow).subs(SHRINK, factor)
    # u = 1 - gamma lam/L moves by -c u^(2L-1); separation of variables from u = 1 at gamma = 0.
    speed = sympy.simplify(-sympy.diff(factor, GAMMA) * flow / factor ** (2 * DEPTH - 1))
    base = 1 + (2 * DEPTH - 2) * speed * TIME
    u = base ** (-1 / (2 * DEPTH - 2))
    # u^(2L-2) = 1/base by construction.
    if sympy.simplify(sympy.diff(u, TIME) / u * base + speed) != 0:
        raise InputError("modes", expected="a solution of du/dt = -c u^(2L-1)", got=str(u), remedy="check the step")
    closed = OM * LAM * base ** (-DEPTH / (DEPTH - 1))
    handover = sympy.simplify(1 / ((base - 1) / TIME))
    step = Step(
        "modes",
        "Fixed covariance, infinite context: one ODE per mode",
        "S_hat is the covariance itself; tied G has the strength gamma in the direction of eigenvalue lam, task "
        "power om. Separation of "
        "variables from gamma = 0: exponential exp(-4 om lam^3 t) at one layer (the limit L -> 1), a power law "
        "from t_c on at L >= 2.",
        (
            Equation(r"\dot\gamma", flow), Equation(r"\mathcal{L}(t)", closed), Equation("t_c", handover),
            Equation(r"\mathcal{L}_{L=1}(t)", sympy.simplify(OM * LAM * sympy.exp(-2 * speed.subs(DEPTH, 1) * TIME))),
        ),
        ("decoupled", "gradient flow", "infinite context"),
        partial(checks.mode, flow, closed),
    )  # fmt: skip
    return step, {"flow": flow, "closed": closed, "handover": handover}


def write(factor: sympy.Expr, exact: dict[int, sympy.Expr], mode: dict[str, sympy.Expr]) -> tuple[Output, ...]:
    """The generated functions."""
    plain = {s: s.name for s in (GAMMA, LAM, OM, DEPTH, TIME, DIMENSION, CONTEXT)}
    layered = plain | {GAMMA: "gamma[:, None]", LAM: "lam[None, :]", DEPTH: "gamma.shape[0]"}
    slope = sympy.simplify(-sympy.diff(factor, GAMMA))
    nodes = ("gamma: Array", "lam: Array", "weights: Array")
    sources = {
        "remainder": function_source(
            "remainder", ("gamma: Array", "lam: Array"), "prod_l (1 - gamma_l lam/L), shape of `lam`; gamma has shape (L,).",
            [f"return jnp.prod({to_jax(factor, layered)}, axis=0)"], "Array",
        ),
        "loss": function_source(
            "loss", nodes, "Mean squared error: the average of remainder^2 over eigenvalues `lam` with `weights`.",
            ["return jnp.sum(weights * remainder(gamma, lam) ** 2)"], "Array",
        ),
        "flow": function_source(
            "flow", nodes, "dgamma_l/dt = -dLoss/dgamma_l of untied layers, shape (L,); tied layers move by the sum.",
            [
                # The product without its own factor: no division, which fails where a factor is zero.
                f"factors = {to_jax(factor, layered)}",
                "others = jnp.where(jnp.eye(gamma.shape[0], dtype=bool)[:, :, None], 1.0, factors[None])",
                f"slopes = jnp.broadcast_to({to_jax(slope, layered)}, factors.shape)",
                "return jnp.sum(2 * weights * jnp.prod(factors, axis=0) * slopes * jnp.prod(others, axis=1), axis=1)",
            ], "Array",
        ),
        "mode_flow": function_source(
            "mode_flow", ("gamma: Array", "lam: Array", "om: Array", "L: Array"), "dgamma/dt of a mode at infinite context, tied.",
            [f"return {to_jax(mode['flow'], plain)}"], "Array",
        ),
        "mode_loss": function_source(
            "mode_loss", ("t: Array", "lam: Array", "om: Array", "L: Array"),
            "Loss of a mode at time t, started at gamma = 0, L >= 2.",
            [f"return {to_jax(mode['closed'], plain)}"], "Array",
        ),
        "hand_over": function_source(
            "hand_over", ("lam: Array", "om: Array", "L: Array"), "t_c of a mode, L >= 2.",
            [f"return {to_jax(mode['handover'], plain)}"], "Array",
        ),
        "second_moment": function_source(
            "second_moment", ("D: Array", "P: Array"), "m_2 of a real Wishart matrix, exact.",
            [f"return {to_jax(sympy.factor(sympy.cancel(exact[2])), plain)}"], "Array",
        ),
        "third_moment": function_source(
            "third_moment", ("D: Array", "P: Array"), "m_3 of a real Wishart matrix, exact.",
            [f"return {to_jax(sympy.factor(sympy.cancel(exact[3])), plain)}"], "Array",
        ),
    }  # fmt: skip
    return tuple(Output(name, source) for name, source in sources.items())


@cache
def derive() -> Derivation:
    """The whole derivation."""
    stream_step, factor = stream()
    moment_step, exact = averages()
    flow_step, _ = gradient(factor)
    mode_step, mode = modes(factor)
    return Derivation(
        name="in_context",
        title="Regression learned in context by linear attention",
        summary="L layers of linear attention that learn to regress on the labelled tokens of their context: "
        "the closed ODE of the layer "
        "strengths gamma_1..gamma_L, with the exact moments of a context of P tokens in D dimensions.",
        states=(Parameter(GAMMA, "strength of a layer, G_l = gamma_l I", "real"),),
        parameters=(
            Parameter(LAM, "eigenvalue of the covariance", "> 0"),
            Parameter(OM, "task power of a mode", "> 0"),
            Parameter(DEPTH, "layers", ">= 1"),
            Parameter(DIMENSION, "dimension of a token", ">= 1"),
            Parameter(CONTEXT, "labelled tokens in a context", ">= 1"),
            Parameter(RATIO, "P/D", "> 0"),
        ),
        assumptions=(
            Assumption("decoupled", "Keys and queries read the tokens as they came; the stream carries labels alone."),
            Assumption("isotropic", "x ~ N(0, I_D), w isotropic; no label noise."),
            Assumption("gradient flow", "Steps small enough for SGD noise to be left out."),
            Assumption("infinite context", "P -> infinity at fixed covariance."),
        ),
        steps=(stream_step, moment_step, flow_step, mode_step),
        outputs=write(factor, exact, mode),
        sources=("Bordelon, Letey & Pehlevan 2025, arXiv 2510.01098", "Stein, Ann. Statist. 9, 1135 (1981)"),
        imports=("import jax.numpy as jnp", "from jax import Array"),
    )
