"""Tangent kernel: from one step of full-batch gradient descent to the kernel ODE, its eigenmodes, its stability, its error."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import sympy
from sympy import S

from derivations.kernel import checks
from odescale.errors import InputError
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Assumption, Derivation, Equation, Output, Parameter, Step
from odescale.symbolic.scalar_writer import to_jax

eta, SAMPLES, SCALE, EIGENVALUE = sympy.symbols("eta n alpha lambda", positive=True)
RATE = sympy.Symbol("a", positive=True)
"""a = eta lambda/n, what one step takes off an eigenmode."""
STEPS, STEP = sympy.symbols("r s", integer=True, nonnegative=True)
TIME, PAST = sympy.symbols("t u", nonnegative=True)
OUTPUTS, WEIGHTS = 2, 2
"""Outputs and weights that stand for all: every step is a sum over them, term by term the same."""
THETA = sympy.symbols("theta_1:3", real=True)
SLOPES = sympy.symbols("g_1:3", real=True)
"""g_b = dl/dF_b, the slope of the sample loss in output b."""
F = tuple(sympy.Function(f"F_{a}")(*THETA) for a in (1, 2))


@dataclass(frozen=True)
class Flow:
    """What one step of gradient descent does to the outputs: order eta and order eta^2, and the kernel's own rate of change."""

    first: tuple[sympy.Expr, ...]
    second: tuple[sympy.Expr, ...]
    kernel: sympy.Matrix
    kernel_rate: sympy.Matrix


def expand_step() -> tuple[Step, Flow]:
    """F(theta - eta grad) to second order in eta, and Theta = J J^T as the coefficient of the slopes at first order."""
    gradient = [sum(SLOPES[b] * sympy.diff(F[b], p) for b in range(OUTPUTS)) / SAMPLES for p in THETA]
    step = sympy.Dummy("e")
    moved = [p - step * g for p, g in zip(THETA, gradient, strict=True)]
    first, second = [], []
    for output in F:
        # The chain rule along theta - e grad, at e = 0: derivatives of the undefined function stay what they are.
        slope = sum(sympy.diff(output, p) * sympy.diff(m, step) for p, m in zip(THETA, moved, strict=True))
        bend = sum(
            sympy.diff(output, p, q) * sympy.diff(moved[i], step) * sympy.diff(moved[j], step)
            for i, p in enumerate(THETA)
            for j, q in enumerate(THETA)
        )
        first.append(sympy.expand(eta * slope))
        second.append(sympy.expand(eta**2 * bend / 2))
    kernel = sympy.Matrix(OUTPUTS, OUTPUTS, lambda a, b: sympy.expand(-SAMPLES / eta * sympy.diff(first[a], SLOPES[b])))
    jacobian = sympy.Matrix(OUTPUTS, WEIGHTS, lambda a, p: sympy.diff(F[a], THETA[p]))
    if sympy.expand(kernel - jacobian * jacobian.T) != sympy.zeros(OUTPUTS):
        raise InputError("step", expected="Theta = J J^T", got=str(kernel), remedy="check the expansion of the step")
    rate = kernel.applyfunc(
        lambda entry: sympy.expand(sum(-eta * g * sympy.diff(entry, p) for g, p in zip(gradient, THETA, strict=True)))
    )
    found = Step(
        "step",
        "One step of gradient descent, in the outputs",
        "theta -> theta - (eta/n) sum_b g_b dF_b/dtheta, the gradient of the mean loss over n samples; g_b is the slope of the "
        "sample loss in output b (outputs of all samples in one list). Expanded in eta: the first order is linear in the "
        "slopes, and its coefficient is the tangent kernel Theta = J J^T (the sums over two outputs and two weights stand for "
        "all). The second order bends the outputs and is dropped in the flow; per step it is of relative order eta lambda/n.",
        (
            Equation(r"\Delta F_1", first[0]),
            Equation(r"\Theta_{12}", kernel[0, 1]),
            Equation(r"\frac{dF}{dt}", r"-\frac{\eta}{n}\,\Theta\,g,\qquad t=\text{steps}"),
        ),
        ("full batch", "smooth"),
        checks.one_step,
    )
    return found, Flow(tuple(first), tuple(second), kernel, rate)


def slopes() -> tuple[Step, dict[str, sympy.Expr]]:
    """g of the square loss and of cross-entropy by differentiation; the curvature of cross-entropy is at most 1/2."""
    f, y = sympy.symbols("F_1:4", real=True), sympy.symbols("Y_1:4", nonnegative=True)
    square = sympy.diff(sum((a - b) ** 2 for a, b in zip(f, y, strict=True)) / 2, f[0])
    total = sympy.Add(*map(sympy.exp, f))
    entropy = sympy.log(total) - sum(b * a for a, b in zip(f, y, strict=True))
    p = [sympy.exp(x) / total for x in f]
    for a in range(3):
        if sympy.simplify(sympy.diff(entropy, f[a]) - p[a] + y[a]) != 0:
            raise InputError("loss", expected="slope softmax F - Y", got=str(a), remedy="check the loss")
        for b in range(3):
            wanted = p[a] * (int(a == b) - p[b])
            if sympy.simplify(sympy.diff(entropy, f[a], f[b]) - wanted) != 0:
                raise InputError("loss", expected="diag p - p p^T", got=str((a, b)), remedy="check the loss")
    # Gershgorin: a row of diag p - p p^T sums in modulus to p (1 - p) + p sum_{b != a} p_b = 2 p (1 - p).
    share = sympy.Symbol("p", nonnegative=True)
    radius = 2 * share * (1 - share)
    top = sympy.maximum(radius, share, sympy.Interval(0, 1))
    step = Step(
        "slopes",
        "Slopes and curvature of the two losses",
        "Square loss |F - Y|^2/2 per sample, and cross-entropy log sum_k exp F_k - Y.F with targets that sum to one over the last "
        "axis (checked at K = 3, positions of a sequence summed). The curvature of the square loss is one. That of cross-entropy "
        "is diag p - p p^T, whose rows sum in modulus to 2 p (1 - p): its eigenvalues are at most 1/2, reached at two classes.",
        (
            Equation(r"g^{\mathrm{square}}_1", square),
            Equation(r"g^{\mathrm{ce}}", r"\operatorname{softmax}F-Y"),
            Equation(r"\|\operatorname{diag}p-pp^{T}\|\le\max_p 2p(1-p)", top),
        ),
        (),
        partial(checks.curvature, top),
    )
    return step, {"square": S.One, "cross_entropy": top}


@dataclass(frozen=True)
class Modes:
    """Of an eigenmode with a = eta lambda/n: factor after r steps, after time t, and what it has added up to (per a)."""

    descent: sympy.Expr
    flow: sympy.Expr
    descent_sum: sympy.Expr
    flow_sum: sympy.Expr


def modes() -> tuple[Step, Step, Modes]:
    """Square loss at a frozen kernel: the recursion and the ODE of one eigenmode solved; test outputs by their sums."""
    residual = sympy.Function("q")
    start = sympy.Symbol("q_0")
    recursion = sympy.rsolve(residual(STEPS + 1) - (1 - RATE) * residual(STEPS), residual(STEPS), {residual(0): start})
    decay = sympy.Function("q")(TIME)
    solution = sympy.dsolve(sympy.diff(decay, TIME) + RATE * decay, decay, ics={decay.subs(TIME, 0): start}).rhs
    descent, flow = sympy.simplify(recursion / start), sympy.simplify(solution / start)
    added = sympy.simplify(sympy.summation((1 - RATE) ** STEP, (STEP, 0, STEPS - 1)))
    added = sympy.simplify(added.args[0][0]) if isinstance(added, sympy.Piecewise) else added
    integral = sympy.simplify(sympy.integrate(flow.subs(TIME, PAST), (PAST, 0, TIME)))
    for sums, factor, variable in ((added, descent, STEPS), (integral, flow, TIME)):
        if sympy.simplify(sums - (1 - factor) / RATE) != 0 or sympy.limit(sums, RATE, 0) != variable:
            raise InputError("modes", expected="(1 - factor)/a", got=str(sums), remedy="check the sum")
    first = Step(
        "modes",
        "Eigenmodes at a frozen kernel, square loss",
        "Theta = U diag(lambda) U^T; the mode q = U^T (F - Y) of eigenvalue lambda obeys a scalar recursion, solved with "
        "a = eta lambda/n. Its continuous form is the gradient flow. Both are kept: at a = 0.5 they differ by a factor "
        "(1 - a) e^a = 0.82 per step.",
        (
            Equation("q(r+1)", r"(1-a)\,q(r)"),
            Equation(r"\frac{q(r)}{q(0)}", descent),
            Equation(r"\frac{q(t)}{q(0)}", flow),
        ),
        ("frozen",),
        partial(checks.recursion, descent, flow),
    )
    second = Step(
        "test outputs",
        "Outputs that are not trained",
        "Test outputs move with Theta(test, train) times the slopes of the training outputs: F_test(r) = F_test(0) - (eta/n) "
        "Theta(test, train) U S U^T (F(0) - Y), with S the sum (integral) of the factors of a mode. A mode with lambda = 0 adds "
        "up linearly: the limit of S is r (t).",
        (Equation("S(r)", added), Equation("S(t)", integral)),
        ("frozen",),
        partial(checks.test_outputs, added, integral),
    )
    return first, second, Modes(descent, flow, added, integral)


def stability(curvature: dict[str, sympy.Expr]) -> tuple[Step, dict[str, sympy.Expr]]:
    """|1 - c eta lambda/n| < 1: the largest eigenvalue that a learning rate bears, for a loss of curvature at most c."""
    bounds = {}
    x = sympy.Symbol("x", positive=True)
    for loss, c in curvature.items():
        region = sympy.solveset(sympy.Abs(1 - c * x) < 1, x, sympy.Interval.open(0, sympy.oo))
        bounds[loss] = region.sup
    step = Step(
        "stability",
        "Largest stable learning rate",
        "With curvature at most c, a step multiplies the top mode by 1 - c eta lambda_max/n; gradient descent on a convex loss "
        "converges while its modulus is below one. c = 1 for square loss, 1/2 for cross-entropy (a sufficient bound there: the "
        "curvature falls as the fit sharpens).",
        tuple(
            Equation(rf"\sup\left(\frac{{\eta\lambda_{{\max}}}}{{n}}\right)_{{\mathrm{{{name}}}}}", bound)
            for name, bound in (("square", bounds["square"]), ("ce", bounds["cross_entropy"]))
        ),
        ("frozen",),
        partial(checks.edge_of_stability, bounds),
    )
    return step, bounds


def drift(flow: Flow) -> Step:
    """dTheta/dt by the same step, and how it scales when outputs are multiplied by alpha and eta divided by alpha^2."""
    scaled_outputs = {f: SCALE * f for f in F}

    def scaled(expression: sympy.Expr) -> sympy.Expr:
        return sympy.expand(expression.subs(scaled_outputs).doit().subs(eta, eta / SCALE**2))

    ratios = []
    for a in range(OUTPUTS):
        moved = sympy.simplify(scaled(flow.first[a]) / flow.first[a])
        bent = sympy.simplify(scaled(flow.second[a]) / flow.second[a])
        turned = sympy.simplify(
            scaled(flow.kernel_rate[a, a]) / scaled(flow.kernel[a, a]) * flow.kernel[a, a] / flow.kernel_rate[a, a]
        )
        ratios.append((moved, bent, turned))
    if any(ratio != ratios[0] for ratio in ratios) or ratios[0][0] != 1:
        raise InputError("drift", expected="the same scaling of every output", got=str(ratios), remedy="check the step")
    _, bent, turned = ratios[0]
    return Step(
        "drift",
        "The kernel drifts, and how a lazy scale slows it",
        "The same step moves the kernel: dTheta/dt is linear in the slopes with second derivatives of the outputs in it. With "
        "outputs alpha F and learning rate eta/alpha^2 the first order of the step keeps its size, its second order and the "
        "relative rate of the kernel are divided by alpha. A start with F = 0 (centring) keeps the slopes themselves from "
        "growing with alpha.",
        (
            Equation(r"\frac{\partial}{\partial g_2}\frac{d\Theta_{11}}{dt}", flow.kernel_rate[0, 0].coeff(SLOPES[1])),
            Equation(r"\frac{(\dot\Theta/\Theta)_{\alpha}}{(\dot\Theta/\Theta)_{1}}", turned),
            Equation(r"\frac{(\Delta^{2}F)_{\alpha}}{(\Delta^{2}F)_{1}}", bent),
        ),
        ("full batch", "smooth", "slopes"),
        checks.lazy_drift,
    )


def error() -> Step:
    """The error of the frozen kernel, driven by (Theta_t - Theta_0) g: one mode of the linear recursion, solved."""
    drive = sympy.Symbol("d")
    unknown = sympy.Function("e")
    solution = sympy.rsolve(
        unknown(STEPS + 1) - (1 - RATE) * unknown(STEPS) + drive, unknown(STEPS), {unknown(0): S.Zero}
    )
    if sympy.simplify(solution + drive * (1 - (1 - RATE) ** STEPS) / RATE) != 0:
        raise InputError("error", expected="-d (1 - (1 - a)^r)/a", got=str(solution), remedy="check the recursion")
    return Step(
        "error",
        "What the drift does to the outputs",
        "With e = F - F_frozen and delta = (eta/n)(Theta_t - Theta_0) g, e(r+1) = e(r) - (eta/n) Theta_0 [g(F) - g(F_frozen)] - "
        "delta: the drift in the direction of the slopes, and nothing else of it, moves the outputs. To first order delta may be "
        "evaluated along the frozen path, theta = theta_0 - (eta/n) J_0^T sum g: a handful of Jacobian products, no training. "
        "A mode under a constant drive d settles at -d/a.",
        (Equation("e(r+1)", r"(1-a)\,e(r)-d"), Equation("e(r)", sympy.factor(solution))),
        ("frozen",),
        partial(checks.driven, solution, drive),
    )


def write(solved: Modes, curvature: dict[str, sympy.Expr], bounds: dict[str, sympy.Expr]) -> tuple[Output, ...]:
    """The generated functions."""
    names = {RATE: "a", STEPS: "r", TIME: "t", EIGENVALUE: "eigenvalue", eta: "eta", SAMPLES: "samples"}
    velocity = function_source(
        "kernel_velocity",
        ("kernel: Array", "slopes: Array", "eta: Array", "samples: Array"),
        "dF/dt = -(eta/n) Theta g, one unit of t is one step: `kernel` (M, N) between the outputs that move and those trained,\n"
        "`slopes` g (N,) of the sample loss in the trained outputs.",
        [f"return {to_jax(-eta / SAMPLES, names)} * (kernel @ slopes)"],
        "Array",
    )
    square = function_source(
        "square_slopes", ("F: Array", "Y: Array"), "g = F - Y of |F - Y|^2/2.", ["return F - Y"], "Array"
    )
    entropy = function_source(
        "cross_entropy_slopes",
        ("F: Array", "Y: Array"),
        "g = softmax F - Y of log sum_k exp F_k - Y.F over the last axis; Y sums to one there.",
        ["return jax.nn.softmax(F, axis=-1) - Y"],
        "Array",
    )
    # Small a: nothing of 1 - (1 - a)^r may be lost; large a: (1 - a) changes sign.
    descent = function_source(
        "descent_modes",
        ("a: Array", "r: Array"),
        "(factor, sum) of a mode after r steps of gradient descent, a = eta lambda/n >= 0: (1 - a)^r and\n"
        "(1 - (1 - a)^r)/a (r at a = 0).",
        [
            f"factor = {to_jax(solved.descent, names)}",
            "small = a < 0.5",
            "safe = jnp.where(a > 0, a, 1.0)",
            "log_factor = r * jnp.log1p(-jnp.where(small, a, 0.0))",
            "lost = jnp.where(small, -jnp.expm1(log_factor), 1 - factor)",
            "return factor, jnp.where(a > 0, lost / safe, r)",
        ],
        "tuple[Array, Array]",
    )
    flow = function_source(
        "flow_modes",
        ("a: Array", "t: Array"),
        "(factor, sum) of a mode after time t of gradient flow, a = eta lambda/n >= 0: e^(-a t) and (1 - e^(-a t))/a (t at a = 0).",
        [
            f"factor = {to_jax(solved.flow, names)}",
            "safe = jnp.where(a > 0, a, 1.0)",
            "return factor, jnp.where(a > 0, -jnp.expm1(-a * t) / safe, t)",
        ],
        "tuple[Array, Array]",
    )
    ratio = function_source(
        "stability_ratio",
        ("eigenvalue: Array", "eta: Array", "samples: Array"),
        "eta lambda_max/n; stable below `stability_bound(loss)`.",
        [f"return {to_jax(eta * EIGENVALUE / SAMPLES, names)}"],
        "Array",
    )
    table = function_source(
        "stability_bound",
        ("loss: str",),
        'Largest stable eta lambda_max/n of the "square" loss or of "cross_entropy" (curvature at most 1 and 1/2).',
        [f"return {{{', '.join(f'{name!r}: {float(bound)!r}' for name, bound in bounds.items())}}}[loss]"],
        "float",
    )
    sources = {"kernel_velocity": velocity, "square_slopes": square, "cross_entropy_slopes": entropy}
    sources |= {"descent_modes": descent, "flow_modes": flow, "stability_ratio": ratio, "stability_bound": table}
    return tuple(Output(name, source) for name, source in sources.items())


@cache
def derive() -> Derivation:
    """The whole derivation."""
    step, flow = expand_step()
    slope_step, curvature = slopes()
    mode_step, test_step, solved = modes()
    stable_step, bounds = stability(curvature)
    return Derivation(
        name="kernel",
        title="Kernel ODE of a real network",
        summary="Full-batch gradient descent of any network in the space of its outputs: the tangent kernel, the kernel ODE for "
        "square loss and cross-entropy, its eigenmodes in discrete and continuous time, the largest stable learning rate, the "
        "drift of the kernel and what it does to the outputs.",
        states=(
            Parameter(
                sympy.Symbol("F"), "outputs of the network on all samples, training and test, as one list", "real"
            ),
        ),
        parameters=(
            Parameter(TIME, "time", ">= 0", "one step of gradient descent"),
            Parameter(eta, "learning rate", "> 0", "per step"),
            Parameter(SAMPLES, "samples that the loss is averaged over", ">= 1", "samples"),
            Parameter(sympy.Symbol("Theta"), "tangent kernel J J^T at the start", "positive semi-definite"),
            Parameter(EIGENVALUE, "an eigenvalue of Theta", ">= 0"),
            Parameter(SCALE, "lazy scale: outputs alpha F, learning rate eta/alpha^2", "> 0"),
        ),
        assumptions=(
            Assumption("full batch", "Every step uses the gradient over all n samples."),
            Assumption("smooth", "Outputs are twice differentiable in the weights."),
            Assumption(
                "frozen",
                "The kernel keeps its value at the start: wide or lazy networks. To be measured in every case.",
            ),
            Assumption("slopes", "The slopes of the loss are those of the unscaled network (centred start)."),
        ),
        steps=(step, slope_step, mode_step, test_step, stable_step, drift(flow), error()),
        sources=(
            "Jacot, Gabriel & Hongler, arXiv 1806.07572",
            "Lee et al., arXiv 1902.06720: wide networks evolve as linear models",
            "Chizat, Oyallon & Bach, arXiv 1812.07956: lazy training",
            "Yang, arXiv 2512.22088",
        ),
        outputs=write(solved, curvature, bounds),
        imports=("import jax", "import jax.numpy as jnp", "from jax import Array"),
    )
