"""Pruned streams: from the logistic update on kept examples to the ODE of R and Q; the condition of the largest margin."""

from __future__ import annotations

from functools import cache, partial

import sympy

from derivations.pruning import checks
from odescale.errors import InputError
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Assumption, Derivation, Equation, Output, Parameter, Step
from odescale.symbolic.scalar_writer import to_jax

ETA, MARGIN, DIMENSION, NORM = sympy.symbols("eta t d Q", positive=True)
OVERLAP, FIELD, SLOPE, LENGTH, NOISE = sympy.symbols("R lambda g chi z", real=True)
BOUND, PLACE = sympy.symbols("c u", real=True)
CROSS, OWN, SQUARE = sympy.symbols("m_t m_l m_g", real=True)
"""E[g |t|], E[g lambda], E[g^2]."""


def update() -> tuple[Step, sympy.Expr]:
    """g = -dl/dlambda of the logistic loss, for a label turned to one."""
    loss = sympy.log(1 + sympy.exp(-FIELD))
    slope = sympy.simplify(-sympy.diff(loss, FIELD))
    step = Step(
        "update",
        "The update of a logistic perceptron",
        "x ~ N(0, I_d), y = sign(B.x). Turning x to y x makes every label one and every teacher's field t = "
        "|B.x|/sqrt d; the loss is "
        "log(1 + e^-lambda) in the student's field lambda = y J.x/sqrt d. Its slope g moves J by (eta/sqrt d) g y x.",
        (Equation("g", slope), Equation(r"J", r"J+\frac{\eta}{\sqrt d}\,g\,y\,x")),
        ("one pass",),
        partial(checks.slope, slope),
    )
    return step, slope


def overlaps() -> tuple[Step, sympy.Expr, sympy.Expr]:
    """d steps of R = J.B/d and Q = |J|^2/d."""
    moved = sympy.Symbol("k")
    # J -> J + k y x with k = eta g/sqrt d; (y x).B = sqrt d t, (y x).J = sqrt d lambda, x.x = d chi.
    R = (DIMENSION * OVERLAP + moved * sympy.sqrt(DIMENSION) * MARGIN) / DIMENSION
    Q = (DIMENSION * NORM + 2 * moved * sympy.sqrt(DIMENSION) * FIELD + moved**2 * DIMENSION * LENGTH) / DIMENSION
    k = ETA * SLOPE / sympy.sqrt(DIMENSION)
    first = sympy.expand(sympy.simplify(DIMENSION * (R - OVERLAP).subs(moved, k)))
    second = sympy.expand(sympy.simplify(DIMENSION * (Q - NORM).subs(moved, k)).subs(LENGTH, 1))
    flow_R = first.subs(SLOPE * MARGIN, CROSS)
    flow_Q = second.subs({SLOPE * FIELD: OWN}).subs(SLOPE**2, SQUARE)
    if flow_R.free_symbols - {ETA, CROSS} or flow_Q.free_symbols - {ETA, OWN, SQUARE}:
        raise InputError(
            "overlaps", expected="flows in the averages alone", got=f"{flow_R}, {flow_Q}", remedy="check the step"
        )
    step = Step(
        "overlaps",
        "d steps of R = J.B/d and Q = |J|^2/d",
        "One step moves R and Q by order 1/d; d of them, over which R and Q hardly move, are averages over kept "
        "examples. chi = |x|^2/d is "
        "one up to 1/sqrt d, also for kept examples, since one direction out of d is chosen.",
        (
            Equation(r"\frac{dR}{dt}", ETA * sympy.Symbol(r"\mathsf{E}[g|t|]")),
            Equation(r"\frac{dQ}{dt}", r"2\eta\,\mathsf{E}[g\lambda]+\eta^{2}\,\mathsf{E}[g^{2}]"),
        ),
        ("one pass", "large"),
        partial(checks.one_step, flow_R, flow_Q),
    )
    return step, flow_R, flow_Q


def conditioning() -> tuple[Step, sympy.Expr]:
    """The student's field given the teacher's: Gaussian regression, which pruning by t leaves as it is."""
    C = sympy.Matrix([[1, OVERLAP], [OVERLAP, NORM]])
    mean = C[1, 0] / C[0, 0] * MARGIN
    variance = sympy.simplify(C[1, 1] - C[1, 0] ** 2 / C[0, 0])
    field = mean + sympy.sqrt(variance) * NOISE
    step = Step(
        "conditioning",
        "What pruning leaves Gaussian",
        "The rule looks at t alone. Given t the rest of x is as it was: lambda is Gaussian with the regression "
        "on t as its mean. Kept "
        "margins are those of |N(0, 1)| above its (1 - keep)-quantile (easy), below its keep-quantile (hard), or "
        "all.",
        (Equation(r"\lambda", field),),
        ("by margin",),
        partial(checks.regression, field),
    )
    return step, field


def error() -> tuple[Step, sympy.Expr]:
    """P(sign lambda != sign t) on fresh examples."""
    angle = sympy.atan(sympy.sqrt(NORM - OVERLAP**2) / OVERLAP) / sympy.pi
    step = Step(
        "error",
        "The error on unpruned examples",
        "Two Gaussian fields at the angle theta, cos theta = R/sqrt Q, differ in sign with probability theta/pi "
        "(the half-plane that lies "
        "between two lines through the origin; Sheppard 1899).",
        (Equation(r"\epsilon", r"\frac{1}{\pi}\arccos\frac{R}{\sqrt Q}"),),
        (),
        checks.error,
    )
    return step, angle


def margin() -> Step:
    """E (c - u)_+^2, the cost of a margin, in closed form."""
    density = sympy.exp(-(PLACE**2) / 2) / sympy.sqrt(2 * sympy.pi)
    cost = sympy.simplify(sympy.integrate((BOUND - PLACE) ** 2 * density, (PLACE, -sympy.oo, BOUND)))
    inside = (1 + sympy.erf(BOUND / sympy.sqrt(2))) / 2
    closed = (BOUND**2 + 1) * inside + BOUND * density.subs(PLACE, BOUND)
    if sympy.simplify((cost - closed).rewrite(sympy.erf)) != 0:
        raise InputError("margin", expected="(c^2 + 1) Phi(c) + c phi(c)", got=str(cost), remedy="check the integral")
    return Step(
        "margin",
        "The largest margin on kept examples",
        "A unit vector J of overlap R has margins above k on n = a d examples if the distances (k - R t - sqrt(1 "
        "- R^2) u)_+ can be brought to "
        "zero by the d directions at right angles to the teacher. By Gordon's comparison their root mean square "
        "cannot be kept above zero "
        "exactly when a E (c - u)_+^2 <= 1, c = (k - R t)/sqrt(1 - R^2), u Gaussian: Gardner's condition, an "
        "average over kept t. The largest k "
        "for which some R satisfies it is the margin, that R the student's. At R = 0, k = 0 it is Cover's a = 2.",
        (
            Equation(r"\mathsf{E}(c-u)_+^{2}", r"(c^{2}+1)\,\Phi(c)+c\,\varphi(c)"),
            Equation("1", r"\min_R\ a\,\mathsf{E}_t\!\left[(c^{2}+1)\Phi(c)+c\,\varphi(c)\right]"),
        ),
        ("by margin", "large"),
        partial(checks.margin, closed),
    )


def write(slope: sympy.Expr, flow_R: sympy.Expr, flow_Q: sympy.Expr, field: sympy.Expr) -> tuple[Output, ...]:
    """The generated functions."""
    names = {
        ETA: "eta",
        CROSS: "cross",
        OWN: "own",
        SQUARE: "square",
        FIELD: "field",
        OVERLAP: "R",
        NORM: "Q",
        MARGIN: "t",
        NOISE: "z",
    }
    sources = {
        "slope": function_source(
            "slope", ("field: Array",), "g = -dl/dlambda of the logistic loss log(1 + e^-lambda).",
            [f"return jax.nn.sigmoid(-field)  # {to_jax(slope, names)}, without its overflow"], "Array",
        ),
        "student_field": function_source(
            "student_field", ("R: Array", "Q: Array", "t: Array", "z: Array"),
            "lambda of a kept example with the teacher's margin t: Gaussian around R t with variance Q - R^2.",
            [f"return {to_jax(field, names)}"], "Array",
        ),
        "overlap_flow": function_source(
            "overlap_flow", ("eta: Array", "cross: Array"), "dR/dt, `cross` = E[g |t|]; one unit of t is d steps.",
            [f"return {to_jax(flow_R, names)}"], "Array",
        ),
        "norm_flow": function_source(
            "norm_flow", ("eta: Array", "own: Array", "square: Array"), "dQ/dt, `own` = E[g lambda], `square` = "
            "E[g^2].",
            [f"return {to_jax(flow_Q, names)}"], "Array",
        ),
        "error": function_source(
            "error", ("R: Array", "Q: Array"),
            "arccos(R/sqrt Q)/pi by the arctangent, which keeps its digits where student and teacher are nearly "
            "parallel.",
            [f"return jnp.arctan2({to_jax(sympy.sqrt(NORM - OVERLAP**2), names)}, R) / jnp.pi"], "Array",
        ),
    }  # fmt: skip
    return tuple(Output(name, source) for name, source in sources.items())


@cache
def derive() -> Derivation:
    """The whole derivation."""
    update_step, slope = update()
    overlap_step, flow_R, flow_Q = overlaps()
    field_step, field = conditioning()
    error_step, _ = error()
    return Derivation(
        name="pruning",
        title="Pruned streams and the largest margin",
        summary="A perceptron that learns a teacher from examples kept by the teacher's margin: one pass of "
        "logistic SGD as a closed ODE of R and Q, "
        "and the condition of the largest margin on a fixed pool.",
        states=(
            Parameter(OVERLAP, "R = J.B/d, overlap with the teacher", "|R| < sqrt Q"),
            Parameter(NORM, "Q = |J|^2/d of the student", "> 0"),
        ),
        parameters=(
            Parameter(ETA, "learning rate", "> 0"),
            Parameter(MARGIN, "teacher's margin |B.x|/sqrt d of a kept example", "> 0"),
            Parameter(BOUND, "margin left to the directions off the teacher, over their width", "real"),
            Parameter(CROSS, "E[g |t|]", "> 0"),
            Parameter(OWN, "E[g lambda]", "real"),
            Parameter(SQUARE, "E[g^2]", "> 0"),
        ),
        assumptions=(
            Assumption("one pass", "Every kept example is seen once, one at a time."),
            Assumption("by margin", "What is kept depends on the teacher's margin alone."),
            Assumption("large", "d -> infinity, kept examples per dimension fixed."),
        ),
        steps=(update_step, overlap_step, field_step, error_step, margin()),
        outputs=write(slope, flow_R, flow_Q, field),
        sources=(
            "Sorscher, Geirhos, Shekhar, Ganguli & Morcos 2022, arXiv 2206.14486",
            "Gardner, J. Phys. A 21, 257 (1988)",
            "Biehl & Schwarze, J. Phys. A 28, 643 (1995)",
        ),
        imports=("import jax", "import jax.numpy as jnp", "from jax import Array"),
    )  # fmt: skip
