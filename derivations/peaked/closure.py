"""From the gradient of softmax cross-entropy to the flow of (D, Delta), for any number of classes.

dD/dalpha     = eta beta/(K-1) [(1 - eps) m - beta D H] - w D
dDelta/dalpha = 1/(K-1) [-2 eta beta^2 Delta H + (eta^2 beta^2/B) G] - 2 w Delta
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from derivations.peaked.notation import (
    BETA,
    CENTRING,
    CODE,
    CURVATURE,
    DELTA,
    EXCESS,
    GAP,
    MEAN_TOP,
    SECOND_MOMENT,
    SIZE,
    SMOOTHING,
    ClassMatrix,
    D,
    K,
    compact,
    readable,
)
from odescale.errors import InputError
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Equation, Output, Step
from odescale.symbolic.scalar_writer import assignments, to_jax
from odescale.symbolic.sgd import ENTRY, FLAG, MEAN, SECOND, eta, overlap_flow

ON_TEACHER, ON_STUDENT, SQUARE = sympy.symbols("T_* T_lam T_g")
"""E[g.lam*], E[g.lam] and E[|g|^2] of the slope g of the sample loss in the logits."""
AGREEMENT, LABEL = sympy.symbols("C Y", nonnegative=True)
"""C = E[p.y] and Y = E[|y|^2] of the labels before smoothing."""


@dataclass(frozen=True)
class Slope:
    """g = beta (p - (1 - eps) y - eps/K): gradient of the sample loss in the logits lam, p = softmax(beta lam)."""

    weights: dict[str, sympy.Expr]


def gradient() -> tuple[Step, Slope]:
    """The slope by differentiation at K = 3; rows sum to zero; smoothing is linear in the label."""
    logits, labels = sympy.symbols("lambda_1:4"), sympy.symbols("y_1:4")
    smooth = [(1 - SMOOTHING) * y + SMOOTHING / 3 for y in labels]
    total = sympy.Add(*(sympy.exp(BETA * x) for x in logits))
    loss = sympy.log(total) - sum(y * BETA * x for y, x in zip(smooth, logits, strict=True))
    labels_sum = {labels[2]: 1 - labels[0] - labels[1]}
    slopes = [sympy.diff(loss, x) for x in logits]
    p = [sympy.exp(BETA * x) / total for x in logits]
    for g, share, y in zip(slopes, p, smooth, strict=True):
        if sympy.simplify(g - BETA * (share - y)) != 0:
            raise InputError("loss", expected="slope beta (p - y)", got=str(g), remedy="check the loss")
    if sympy.simplify(sympy.Add(*slopes).subs(labels_sum)) != 0:
        raise InputError("loss", expected="slopes that sum to zero", got=str(sum(slopes)), remedy="check the labels")
    weights = {"p": BETA, "y": -BETA * (1 - SMOOTHING), "one": -BETA * SMOOTHING / K}
    step = Step(
        "gradient",
        "Gradient of softmax cross-entropy",
        "l = log sum_j exp(beta lam_j) - beta y_eps.lam with lam = W x/sqrt d and smoothed labels y_eps = (1 - eps) y + eps/K. "
        "The slopes in the logits sum to zero over the classes, so that only the centred rows move: P = I - 11^T/K.",
        (
            Equation(r"g=\frac{\partial\ell}{\partial\lambda}", r"\beta\left(p-(1-\epsilon)y-\epsilon/K\right)"),
            Equation(r"\textstyle\sum_i g_i", sympy.S.Zero),
        ),
        (),
    )
    return step, Slope(weights)


@dataclass(frozen=True)
class Closure:
    """dD and dDelta per unit of alpha in n = K - 1 and b = 1/B; `cancel_free`: dD in m - beta s H and s - D; `second`: G.

    `response`, `label_response`: x of E[dp/dlam] = x P and of E[dy/dlam*] = x P.
    """

    dD: sympy.Expr
    dDelta: sympy.Expr
    cancel_free: sympy.Expr
    second: sympy.Expr
    response: sympy.Expr
    label_response: sympy.Expr


def overlaps(slope: Slope) -> tuple[Step, Closure]:
    """dR and dQ of the SGD step, traced with the centring, Stein's identity, class symmetry."""
    flow = overlap_flow().flow
    with_teacher = sympy.expand(flow.subs({FLAG[0]: 1, FLAG[1]: 0}))
    with_student = sympy.expand(flow.subs({FLAG[0]: 1, FLAG[1]: 1}))
    square = D**2 + DELTA
    # Rows summed over the entries k and over the classes: u_i A_j -> g_i phi_j (Stein undone), A_i A_j -> the overlap.
    traced = {"R": sympy.S.Zero, "Q": sympy.S.Zero}
    for name, expression, correlation, size in (
        ("R", with_teacher, ON_TEACHER, D * (K - 1)),
        ("Q", with_student, ON_STUDENT, square * (K - 1)),
    ):
        values = {
            MEAN[0] * ENTRY[1]: correlation, MEAN[1] * ENTRY[0]: correlation,
            ENTRY[0] * ENTRY[1]: size, SECOND: SQUARE,
        }  # fmt: skip
        for term in sympy.Add.make_args(expression):
            coefficient, monomial = term.as_independent(*ENTRY, *MEAN, SECOND)
            traced[name] += coefficient * values[monomial]
    # Class symmetry: E[p_i^2] = (1 - H)/K, E[p_i p_j] = H/(K (K - 1)); dp_i/dlam_j = beta (p_i delta_ij - p_i p_j).
    same, other = (1 - CURVATURE) / K, CURVATURE / (K * (K - 1))
    response = ClassMatrix(BETA * (1 / K - same), -BETA * other).multiple_of(CENTRING)
    trace = CENTRING.trace_of_product(CENTRING)  # tr P = K - 1
    label_response = sympy.solve(sympy.Symbol("x") * trace - MEAN_TOP, sympy.Symbol("x"))[0]
    stein = {
        ("p", "teacher"): response * D * trace,
        ("p", "student"): response * square * trace,
        ("y", "teacher"): label_response * trace,
        ("y", "student"): label_response * D * trace,
        ("one", "teacher"): sympy.S.Zero,
        ("one", "student"): sympy.S.Zero,
    }
    averages = {
        ON_TEACHER: sum(weight * stein[name, "teacher"] for name, weight in slope.weights.items()),
        ON_STUDENT: sum(weight * stein[name, "student"] for name, weight in slope.weights.items()),
    }
    gram = {
        ("p", "p"): 1 - CURVATURE, ("y", "y"): LABEL, ("one", "one"): K, ("p", "y"): AGREEMENT, ("one", "p"): 1,
        ("one", "y"): 1,
    }  # fmt: skip
    weights = slope.weights
    second = sum(weights[a] * weights[b] * gram[min(a, b), max(a, b)] for a in weights for b in weights)
    second = sympy.expand(sympy.simplify(second / BETA**2))
    averages[SQUARE] = BETA**2 * SECOND_MOMENT
    dD = sympy.factor(traced["R"].subs(averages) / (K - 1))
    dsquare = traced["Q"].subs(averages) / (K - 1)
    dD, dDelta = compact(dD), compact(dsquare - 2 * D * dD)
    # m = m_gap + beta s H where eps does not multiply it: nothing of order one is subtracted late.
    plain = dD.coeff(SMOOTHING, 0).subs(MEAN_TOP, GAP + BETA * SIZE * CURVATURE)
    cancel_free = sympy.expand(sympy.expand(plain).subs(SIZE, EXCESS + D)) + SMOOTHING * dD.coeff(SMOOTHING, 1)
    closure = Closure(dD, dDelta, cancel_free, second, response, label_response)
    step = Step(
        "closure",
        "The closed flow of overlap and spread",
        "One SGD step moves the overlaps R = W W*^T/d and Q = W W^T/d (mean-field flow of one token, eigenvalue one). Class "
        "symmetry keeps P R = D P and P Q P = (D^2 + Delta) P. By Stein's identity E[dp/dlam] and E[dy/dlam*] are multiples of "
        "P (first two lines), H = E[1 - |p|^2], m = E[y.lam*] (hard labels m_K, soft and sampled Phi(b*)), G = E|p - y_eps|^2 "
        "with C = E[p.y] and Y = E|y|^2 (hard and sampled 1). The terms of order D^2 leave dDelta: H multiplies Delta alone. "
        "One unit of alpha is d SGD steps; W -> W - (w/d) W each step.",
        (
            Equation(r"\mathrm{E}[\partial p/\partial\lambda]", sympy.Mul(response, sympy.Symbol("P"))),
            Equation(r"\mathrm{E}[\partial y/\partial\lambda^*]", sympy.Mul(label_response, sympy.Symbol("P"))),
            Equation(r"\frac{dD}{d\alpha}", readable(sympy.collect(dD, eta, sympy.factor))),
            Equation(r"\frac{d\Delta}{d\alpha}", readable(dDelta)),
            Equation("G", second),
        ),
        ("gaussian", "online", "dimension", "symmetry", "noise"),
    )
    return step, closure


def cancellation_free(closure: Closure) -> Step:
    """dD in the tabulated gap m - beta s H(beta s) and in s - D = Delta/(s + D)."""
    return Step(
        "no cancellation",
        "The same flow without cancellation",
        "Late, m - beta D H is a small difference of numbers of order one. It is split into m_gap = m - beta s H(beta s), which "
        "the race representation gives with full relative precision, and beta (s - D) H with s - D = Delta/(s + D).",
        (
            Equation(r"\frac{dD}{d\alpha}", readable(closure.cancel_free)),
            Equation(EXCESS, DELTA / (SIZE + D)),
        ),
        (),
    )


EXCESS_LINES = (
    "others, per_batch = classes - 1, 1 / batch",
    "square = D ** 2 + Delta",
    "s = jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0)",
    "total = s + jnp.abs(D)",
    "excess = jnp.where(D >= 0, Delta / jnp.where(total > 0, total, 1.0), s - D)",
)
"""s - D without cancellation for D >= 0, differentiable at the origin."""

STATE = ("D: Array", "Delta: Array", "m: Array", "mean_gap: Array", "H: Array", "G: Array")
OPTIONS = ("weight_decay: Array | float = 0.0", "smoothing: Array | float = 0.0", "beta: Array | float = 1.0")
ABOUT = (
    "`m` = E[y.lam*] of the labels before smoothing (hard: m_K; soft, sampled: Phi(b*)), `mean_gap` = m - beta s H, `H` = E[1 -\n"
    "|p|^2] at beta s, s = sqrt(D^2 + Delta), `G` = E|p - y|^2 with the smoothed label (`second_moment`). `classes` K,\n"
    "`smoothing` eps, p = softmax(beta lam). `batch` = inf drops the noise. Scalars, or arrays that broadcast."
)


def write(closure: Closure) -> tuple[Output, ...]:
    """`overlap_flow` and `second_moment`."""
    source = function_source(
        "overlap_flow",
        (*STATE, "eta: Array", "batch: Array", "classes: Array", *OPTIONS),
        "(dD/dalpha, dDelta/dalpha) of online SGD; one unit of alpha is d SGD steps W <- W - (eta/sqrt d) mean_B g x^T.\n\n"
        f"{ABOUT}\n`weight_decay` w: W <- W - (w/d) W in each step.",
        [
            *EXCESS_LINES,
            f"dD = {to_jax(closure.cancel_free, CODE)}",
            f"dDelta = {to_jax(closure.dDelta, CODE)}",
            "return dD, dDelta",
        ],
        "tuple[Array, Array]",
    )
    # Late p is nearly y: what C and |y|^2 lack of one is small, and the ones cancel here instead of in floating point.
    lack, spread_label = sympy.symbols("U V", nonnegative=True)
    small = sympy.expand(closure.second.subs({AGREEMENT: 1 - lack, LABEL: 1 - spread_label}))
    names = {**CODE, lack: "disagreement", spread_label: "label_response"}
    second = function_source(
        "second_moment",
        (
            "H: Array",
            "disagreement: Array",
            "label_response: Array",
            "classes: Array",
            "smoothing: Array | float = 0.0",
        ),
        "G = E|p - (1 - eps) y - eps/K|^2 from H = E[1 - |p|^2], `disagreement` U = 1 - E[p.y] and `label_response` 1 - E|y|^2\n"
        "(zero for hard and sampled labels, H(b*) for soft ones).",
        [*assignments([("G", small)], names, prefix="u"), "return G"],
        "Array",
    )
    return Output("overlap_flow", source), Output("second_moment", second)
