"""Adam and normalised gradient descent: the closure divided by the root mean square of the minibatch gradient.

v = E[ghat_ik^2] averaged over the weights,  |ghat|^2 = sum over the weights
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from derivations.peaked.closure import ABOUT, EXCESS_LINES, OPTIONS, STATE, Closure
from derivations.peaked.notation import (
    BETA,
    CENTRING,
    CODE,
    DELTA,
    DIMENSION,
    RATE,
    SECOND_MOMENT,
    D,
    K,
    compact,
    readable,
)
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Equation, Output, Step
from odescale.symbolic.scalar_writer import to_jax
from odescale.symbolic.sgd import MEAN, SECOND, batch, batch_average, decay, eta, trace

DRIFT = sympy.Symbol("A", real=True)
"""A: the mean gradient is -A P W* + (beta^2 H/(K-1)) P W_perp, with logits W x and W* W*^T = I."""
NORM = sympy.Symbol("v", positive=True)


@dataclass(frozen=True)
class Normalised:
    """`drift`: A without cancellation; `square`: E|ghat|^2 of logits W x; (dD, dDelta) of Adam and of normalised steps."""

    drift: sympy.Expr
    square: sympy.Expr
    second: sympy.Expr
    adam: tuple[sympy.Expr, sympy.Expr]
    frobenius: sympy.Expr
    normalised: tuple[sympy.Expr, sympy.Expr]


def minibatch_square(closure: Closure) -> sympy.Expr:
    """E|ghat|^2 summed over the weights, ghat = mean_B g x^T, logits W x, W* W*^T = I: mean and fluctuation."""
    sums = sympy.symbols("X_i X_j")
    # One weight, from the algebra of the SGD step: gamma = g x_k/sqrt N, so ghat^2 = N (X/B)^2.
    single = sympy.expand(trace * batch_average(sums[0] * sums[1], sums) / batch**2)
    # Summed over rows and entries: sum v = d E|g|^2; sum u u/N = |mean gradient|^2, by W = D W* + W_perp.
    rows = CENTRING.trace_of_product(CENTRING)
    perp = BETA * closure.response
    mean_square = rows * (DRIFT**2 + perp**2 * DELTA)
    moments = {SECOND: DIMENSION * BETA**2 * SECOND_MOMENT, MEAN[0]: sympy.sqrt(trace * mean_square)}
    return compact(single.subs(MEAN[1], MEAN[0]).subs(moments))


def derive_normalised(closure: Closure) -> tuple[Step, Step, Normalised]:
    """Adam and normalised SGD from the closure of plain SGD: dD and dDelta per step, divided by the norm."""
    plain = closure.cancel_free.subs(decay, 0)
    drift = sympy.expand(plain / eta)
    square = minibatch_square(closure)
    second = square / (K * DIMENSION)
    # dDelta of SGD has a part of order eta (contraction) and one of order eta^2 (noise).
    contraction, noise = (sympy.expand(closure.dDelta.subs(decay, 0)).coeff(eta, n) for n in (1, 2))
    # Logits W x, per step: |x|^2 = d stands in the noise where the SGD of W x/sqrt d has it divided out.
    adam = (
        RATE * DRIFT / sympy.sqrt(NORM) - decay * D,
        RATE * contraction / sympy.sqrt(NORM) + RATE**2 * DIMENSION * noise / NORM - 2 * decay * DELTA,
    )
    # ghat/|ghat|: with logits W x/sqrt d and W* W*^T = d I the same |ghat|^2 = |mean|^2 + noise.
    normalised = (
        eta * DRIFT / sympy.sqrt(NORM) - decay * D,
        eta * contraction / sympy.sqrt(NORM) + eta**2 * noise / NORM - 2 * decay * DELTA,
    )
    forms = Normalised(drift, square, second, adam, square, normalised)
    adam_step = Step(
        "adam",
        "Adam: divided by the root mean square gradient of a weight",
        "Logits W x, W* W*^T = I, time in steps. By Stein the mean gradient is -A P W* + beta^2 H/(K-1) P W_perp. The second "
        "moment of the minibatch gradient averaged over the K d weights is v: its mean squared and G/(K B). Adam divides the "
        "step by sqrt(v); its momentum does not change the diffusion at times long beside 1/(1 - beta_1).",
        (
            Equation("A", readable(drift)),
            Equation("v", readable(second)),
            Equation(r"\frac{dD}{d\,\mathrm{step}}", adam[0]),
            Equation(r"\frac{d\Delta}{d\,\mathrm{step}}", readable(adam[1])),
        ),
        ("gaussian", "online", "dimension", "symmetry", "one scale"),
    )
    normalised_step = Step(
        "normalised",
        "Normalised gradient descent",
        "W <- W - (eta/sqrt d) ghat/|ghat|, |ghat| the Frobenius norm of ghat = mean_B g x^T, logits W x/sqrt d; one unit of "
        "alpha is d steps. For many samples in a batch the norm does not fluctuate.",
        (
            Equation(r"|\hat g|^2=v", readable(square)),
            Equation(r"\frac{dD}{d\alpha}", normalised[0]),
            Equation(r"\frac{d\Delta}{d\alpha}", readable(normalised[1])),
        ),
        ("gaussian", "online", "dimension", "symmetry", "large batch"),
    )
    return adam_step, normalised_step, forms


def write(forms: Normalised) -> tuple[Output, ...]:
    """`adam_flow`, `adam_second_moment` and `normalised_flow`."""
    names = {**CODE, DRIFT: "drift", NORM: "v"}

    def body(second: sympy.Expr, flow: tuple[sympy.Expr, sympy.Expr], *, remembered: str = "") -> list[str]:
        return [
            *EXCESS_LINES,
            f"drift = {to_jax(forms.drift, names)}",
            f"v = {to_jax(second, names)}{remembered}",
            f"dD = {to_jax(flow[0], names)}",
            f"dDelta = {to_jax(flow[1], names)}",
            "return dD, dDelta",
        ]

    adam = function_source(
        "adam_flow",
        (*STATE, "learning_rate: Array", "batch: Array", "classes: Array", "dimension: Array", *OPTIONS,
         "remembered: Array | None = None"),
        "(dD, dDelta) per Adam step, logits W x with `dimension` inputs, W* W*^T = I; `learning_rate` per weight.\n\n"
        f"{ABOUT}\n`weight_decay` w: W <- W - w W in each step (decoupled). `remembered`: Adam's average of v; None: v of now.",
        body(forms.second, forms.adam, remembered=" if remembered is None else remembered"),
        "tuple[Array, Array]",
    )  # fmt: skip
    second = function_source(
        "adam_second_moment",
        (*STATE, "batch: Array", "classes: Array", "dimension: Array", *OPTIONS[1:]),
        "v, the mean square of a minibatch gradient's entries, logits W x with `dimension` inputs; Adam remembers it.\n\n"
        f"{ABOUT}",
        [*EXCESS_LINES, f"drift = {to_jax(forms.drift, names)}", f"return {to_jax(forms.second, names)}"],
        "Array",
    )
    normalised = function_source(
        "normalised_flow",
        (*STATE, "eta: Array", "batch: Array", "classes: Array", "dimension: Array", *OPTIONS),
        "(dD/dalpha, dDelta/dalpha) of W <- W - (eta/sqrt d) ghat/|ghat|, |ghat| the Frobenius norm of ghat = mean_B g x^T;\n"
        "one unit of alpha is d = `dimension` steps.\n\n"
        f"{ABOUT}\n`weight_decay` w: W <- W - (w/d) W in each step. Needs B >> 1: the norm must not fluctuate.",
        body(forms.frobenius, forms.normalised),
        "tuple[Array, Array]",
    )
    written = {"adam_flow": adam, "adam_second_moment": second, "normalised_flow": normalised}
    return tuple(Output(name, source) for name, source in written.items())
