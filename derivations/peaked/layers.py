"""Boundary layers: late in training all that is left sits where the two largest teacher fields nearly tie.

With u the gap of the two largest teacher fields (density m_K at u = 0), y = D u and xi standard normal, the margin of the
student between the same two classes is z = y + sqrt(2 Delta) xi. Averages are m_K/D int dy E[...].
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from derivations.peaked.closure import Closure
from derivations.peaked.expansion import alternating
from derivations.peaked.notation import (
    BETA,
    CODE,
    CURVATURE,
    DELTA,
    EXCESS,
    GAP,
    MEAN_TOP,
    OTHERS,
    SECOND_MOMENT,
    SMOOTHING,
    SOFTPLUS_MEAN,
    D,
)
from odescale.errors import InputError
from odescale.symbolic.gaussian import Gaussian
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Equation, Output, Step
from odescale.symbolic.scalar_writer import to_jax
from odescale.symbolic.sgd import batch, eta

MARGIN, NORMAL = sympy.symbols("z xi", real=True)
PROBABILITY = sympy.Symbol("p", positive=True)
REST, SURPRISE = sympy.symbols("q surprise", positive=True)
"""1 - p and -log p, kept apart in code so that neither rounds to zero."""
FOCUSING = 2
"""Exponent of (1 - p) in the focal loss."""


def softplus(z: sympy.Expr) -> sympy.Expr:
    """log(1 + e^z)."""
    return sympy.log(1 + sympy.exp(z))


def sigmoid(z: sympy.Expr) -> sympy.Expr:
    """1/(1 + e^-z)."""
    return 1 / (1 + sympy.exp(-z))


def _require_zero(expression: sympy.Expr, what: str) -> None:
    if sympy.simplify(sympy.expand_log(expression, force=True)) != 0:
        raise InputError(what, expected="an identity", got=str(expression), remedy="check the integral")


@dataclass(frozen=True)
class Layer:
    """kappa of drift and loss per m/D^2 and m/D, noise per m/D, curvature per m/D, error per m/D; softplus mean a symbol."""

    kappa: sympy.Expr
    noise: sympy.Expr
    curvature: sympy.Expr
    error: sympy.Expr


def layer() -> tuple[Step, Layer]:
    """Loss, drift, curvature, noise and error of cross-entropy at spread Delta."""
    z = MARGIN
    # h(z) = int_z^oo softplus(-y) dy: h(z) + h(-z) has derivative softplus(z) - softplus(-z) = z.
    odd = softplus(z) - softplus(-z) - z
    _require_zero(sympy.diff(odd, z), "softplus")
    _require_zero(odd.subs(z, 0), "softplus")
    even_part = alternating(2) + sympy.integrate(z, (z, 0, z)) / 2
    spread = 2 * DELTA
    gaussian = Gaussian((z,), sympy.ImmutableMatrix([[spread]]))
    kappa = sympy.expand(gaussian.expect(even_part))
    # int_z^oo sigma(-y)^2 dy = softplus(-z) - sigma(-z).
    tail = softplus(-z) - sigmoid(-z)
    _require_zero(sympy.diff(tail, z) + sigmoid(-z) ** 2, "sigmoid squared")
    _require_zero(sigmoid(z) + sigmoid(-z) - 1, "sigmoid")
    half = sympy.Rational(1, 2)  # E sigma, by symmetry
    noise = sympy.expand(2 * (SOFTPLUS_MEAN - half))
    curvature = 2 * half  # 2 int E sigma' dy = 2 E sigma
    density = sympy.exp(-(NORMAL**2) / 2) / sympy.sqrt(2 * sympy.pi)
    error = sympy.sqrt(spread) * sympy.integrate(NORMAL * density, (NORMAL, 0, sympy.oo))
    form = Layer(kappa, noise, curvature, sympy.simplify(error))
    still = sympy.simplify(2 * tail.subs(z, 0))
    direct = sympy.integrate(2 * sympy.exp(-2 * z) / (1 + sympy.exp(-z)) ** 2, (z, 0, sympy.oo))
    _require_zero(still - direct, "2 int sigma^2")
    step = Step(
        "layer",
        "The boundary layer of cross-entropy",
        "Where the top two teacher fields are u apart the student's margin is z = y + sqrt(2 Delta) xi, y = D u; all other "
        "classes are far below. Per y the loss is softplus(-z), the drift -y dl/dz = y sigma(-z), which by parts is the loss "
        "again, H = 2 sigma(z) sigma(-z), G = 2 sigma(-z)^2, an error is z < 0. With h(z) = int_z^oo softplus(-y) dy the even "
        "part of h is h(0) + z^2/4 (softplus(z) - softplus(-z) = z): kappa. int_z^oo sigma(-y)^2 dy = softplus(-z) - sigma(-z): "
        "the noise; without spread 2 ln 2 - 1. Here E_softplus is the mean of softplus(sqrt(2 Delta) xi).",
        (
            Equation(r"2\int_0^\infty\sigma(-y)^2dy", still),
            Equation(
                r"\frac{D}{m}\left[F-D\,m\right]=\frac{D^2}{m}\mathrm{E}[(y-p)\cdot\lambda^*]=\kappa/m", form.kappa
            ),
            Equation(r"\frac{D}{m}H", form.curvature),
            Equation(r"\frac{D}{m}G", form.noise),
            Equation(r"\frac{D}{m}\,\mathrm{error}", form.error),
        ),
        ("symmetry", "numerical: layer"),
    )
    return step, form


@dataclass(frozen=True)
class MarginLoss:
    """A loss of the margin z through p = sigma(z): l(p), and int_0^oo l dy, the drift per m/D^2."""

    name: str
    loss: sympy.Expr
    drift: sympy.Expr

    def slope(self) -> sympy.Expr:
        """dl/dz in p."""
        return sympy.factor(sympy.diff(self.loss, PROBABILITY) * PROBABILITY * (1 - PROBABILITY))


def margin_losses() -> tuple[Step, tuple[MarginLoss, ...]]:
    """Cross-entropy, focal and Brier: the drift constant of the aligned student, K = 2."""
    p = PROBABILITY
    losses = {
        "cross_entropy": -sympy.log(p),
        "focal": -((1 - p) ** FOCUSING) * sympy.log(p),
        "brier": (1 - p) ** 2,
    }
    found = []
    for name, loss in losses.items():
        # int_0^oo -y dl/dz dy = int_0^oo l dy, dy = dp/(p (1 - p)).
        inside = sympy.expand(sympy.apart(loss.subs(sympy.log(p), 1) / (p * (1 - p)), p))
        if loss.has(sympy.log):
            drift = sum(
                (_log_integral(term, p) for term in sympy.Add.make_args(inside)), sympy.S.Zero
            )  # fmt: skip
        else:
            drift = sympy.integrate(inside, (p, sympy.Rational(1, 2), 1))
        found.append(MarginLoss(name, loss, sympy.simplify(drift)))
    step = Step(
        "margin losses",
        "Other losses of the margin: the same layer, another constant",
        "For a loss l(p), p = sigma(z) the probability of the right class of two, the layer gives the same dD = eta m c_l/D^2 "
        "with c_l = int_0^oo l dy, dy = dp/(p (1 - p)): cross-entropy pi^2/12, focal (1 - p)^2 (-log p), Brier |p - y|^2/2 = "
        "(1 - p)^2. The layer's width 1/D makes the exponent, not the loss.",
        tuple(Equation(rf"c_{{\mathrm{{{x.name.replace('_', ' ')}}}}}", x.drift) for x in found),
        (),
    )
    return step, tuple(found)


def _log_integral(term: sympy.Expr, p: sympy.Symbol) -> sympy.Expr:
    """int_(1/2)^1 term log p dp; 1/(1 - p) by the series of log(1 - q): dilogarithm of 1/2 in closed form."""
    coefficient, rest = term.as_independent(p)
    if sympy.simplify(rest * (p - 1)).is_number:
        # int_(1/2)^1 log(p)/(p - 1) dp = Li_2(1/2).
        scale = sympy.simplify(rest * (p - 1))
        return coefficient * scale * sympy.expand_func(sympy.polylog(2, sympy.Rational(1, 2)))
    return coefficient * sympy.integrate(rest * sympy.log(p), (p, sympy.Rational(1, 2), 1))


def slopes_of(loss: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """(dl/dz, d^2 l/dz^2) in p = sigma(z), q = 1 - p and `surprise` = -log p, by dp/dz = p q."""

    def derivative(e: sympy.Expr) -> sympy.Expr:
        return (sympy.diff(e, PROBABILITY) - sympy.diff(e, REST)) * PROBABILITY * REST - sympy.diff(e, SURPRISE) * REST

    first = sympy.expand(derivative(loss))
    return first, sympy.expand(derivative(first))


def write_margins(closure: Closure) -> tuple[Output, ...]:
    """`margin_flow` of K = 2 and the slopes of the losses."""
    drift, curvature, square = sympy.symbols("drift curvature square")
    # g = (dl/dz, -dl/dz): H stands for 2 E l'', G for 2 E l'^2, m - D H for E[-l' u].
    pair = {OTHERS: 1, BETA: 1, SMOOTHING: 0, CURVATURE: 2 * curvature, SECOND_MOMENT: 2 * square}
    dD = closure.cancel_free.subs({OTHERS: 1, BETA: 1, SMOOTHING: 0, EXCESS: 0, GAP: drift})
    dDelta = closure.dDelta.subs(pair)
    arguments = ("D: Array", "Delta: Array", "drift: Array", "curvature: Array", "square: Array", "eta: Array", "batch: Array",
                 "weight_decay: Array | float = 0.0")  # fmt: skip
    flow = function_source(
        "margin_flow",
        arguments,
        "(dD/dalpha, dDelta/dalpha) of a loss l(z) of the margin, K = 2; one unit of alpha is d SGD steps.\n\n"
        "z = D u + sqrt(2 Delta) xi, u >= 0 half-normal of variance two (density exp(-u^2/4)/sqrt(pi)), xi standard normal;\n"
        "`drift` = E[-l'(z) u], `curvature` = E[l''(z)], `square` = E[l'(z)^2]. `batch` = inf drops the noise.",
        [
            "per_batch = 1 / batch",
            f"dD = {to_jax(dD, CODE)}",
            f"dDelta = {to_jax(dDelta, CODE)}",
            "return dD, dDelta",
        ],
        "tuple[Array, Array]",
    )
    power = sympy.Symbol("focusing", positive=True)
    written = [Output("margin_flow", flow)]
    # The square loss on centred logits: sum_i (lam_i - y_i)^2/2 = (z - 1)^2/4 + what does not depend on z.
    quadratic = (MARGIN - 1) ** 2 / 4
    for name, loss, extra, about in (
        ("focal", REST**power * SURPRISE, ("focusing: Array",), "l = (1 - p)^focusing (-log p)"),
        ("brier", REST**2, (), "l = (1 - p)^2 = |p - y|^2/2"),
        ("square", quadratic, (), "l = (z - 1)^2/4: |lam - y|^2/2 of centred logits"),
    ):
        if loss is quadratic:
            slopes, lines = (sympy.diff(loss, MARGIN), sympy.diff(loss, MARGIN, 2)), []
        else:
            slopes = slopes_of(loss)
            lines = ["p, q = 1 / (1 + jnp.exp(-z)), 1 / (1 + jnp.exp(z))"]
            lines += ["surprise = jnp.logaddexp(0.0, -z)"] if loss.has(SURPRISE) else []
        values = [to_jax(e, {PROBABILITY: "p", REST: "q", SURPRISE: "surprise", MARGIN: "z"}) for e in (loss, *slopes)]
        if loss is quadratic:
            values[2] += " + 0 * z"
        source = function_source(
            f"{name}_slopes",
            ("z: Array", *extra),
            f"(l, dl/dz, d^2 l/dz^2) of {about}, p = sigma(z), z the margin of the right class of two.",
            [*lines, f"return {', '.join(values)}"],
            "tuple[Array, Array, Array]",
        )
        written.append(Output(f"{name}_slopes", source))
    return tuple(written)


def write(form: Layer) -> tuple[Output, ...]:
    """`layer_drift`, `layer_noise`, `layer_error`, `stationary_spread_residual`."""
    names = {**CODE, SOFTPLUS_MEAN: "softplus_mean"}
    drift = function_source(
        "layer_drift",
        ("m: Array", "Delta: Array"),
        "kappa = m (pi^2/12 + Delta/2): late loss kappa/D and dD = eta kappa/((K-1) D^2), hard labels.",
        [f"return {to_jax(MEAN_TOP * form.kappa, names)}"],
        "Array",
    )
    noise = function_source(
        "layer_noise",
        ("m: Array", "softplus_mean: Array"),
        "D G as D -> infinity, hard labels; `softplus_mean` = E log(1 + exp(sqrt(2 Delta) xi)), xi standard normal.",
        [f"return {to_jax(MEAN_TOP * form.noise, names)}"],
        "Array",
    )
    error = function_source(
        "layer_error",
        ("D: Array", "Delta: Array", "m: Array"),
        "Late probability m sqrt(Delta/pi)/D that student and teacher differ in the largest logit.",
        [f"return {to_jax(MEAN_TOP * form.error / D, names)}"],
        "Array",
    )
    # dDelta = 0 with H = m/D and G = m noise/D, both sides times (K-1) D/(eta m).
    residual = eta / batch * form.noise - 2 * DELTA * form.curvature
    spread = function_source(
        "stationary_spread_residual",
        ("Delta: Array", "eta: Array", "batch: Array", "softplus_mean: Array"),
        "(eta/B)(2 E softplus(sqrt(2 Delta) xi) - 1) - 2 Delta: zero at the late spread Delta_inf of SGD on hard labels.",
        [f"return {to_jax(residual, names)}"],
        "Array",
    )
    outputs = (("layer_drift", drift), ("layer_noise", noise), ("layer_error", error))
    return (*(Output(*x) for x in outputs), Output("stationary_spread_residual", spread))
