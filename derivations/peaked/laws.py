"""The one-third law and its ends: powers by dominant balance, the finite teacher temperature in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from derivations.peaked.expansion import Expansion, TwoClasses
from derivations.peaked.layers import Layer
from derivations.peaked.notation import (
    CODE,
    DELTA,
    DRIFT_CONSTANT,
    MEAN_TOP,
    OTHERS,
    SOFTPLUS_MEAN,
    TEACHER_BETA,
    TIME,
    readable,
)
from odescale.symbolic.asymptotics import dominant_balances, next_order
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.power_laws import Balance
from odescale.symbolic.record import Equation, Output, Step
from odescale.symbolic.scalar_writer import to_jax
from odescale.symbolic.sgd import batch, decay, eta

LATE = sympy.Symbol("D", positive=True)
SPREAD = sympy.Symbol("Delta", positive=True)
POWER = sympy.Symbol("g", positive=True)
"""eta ~ alpha^-g."""
KAPPA, NOISE = (sympy.Function(name, positive=True) for name in ("kappa", "S"))
"""kappa(Delta) of the drift and S(Delta) of the noise per m/D, while Delta tends to a constant."""
RATIO = sympy.Symbol("x", positive=True)
"""x = D/b_*."""


def conditions(balance: Balance) -> str:
    """The conditions of a balance as LaTeX; `always` when it has none."""
    return r",\ ".join(sympy.latex(c) for c in balance.conditions) or r"\text{always}"


def still(form: Layer) -> tuple[sympy.Expr, sympy.Expr]:
    """(kappa, S) of the layer without spread, E softplus -> ln 2."""
    return form.kappa.subs(DELTA, 0), form.noise.subs(SOFTPLUS_MEAN, sympy.log(2))


def late_flow(kappa: sympy.Expr, noise: sympy.Expr, rate: sympy.Expr = eta) -> dict[sympy.Symbol, sympy.Expr]:
    """dD and dDelta of SGD in the layer: H = m/D, G = m S/D."""
    return {
        LATE: rate * MEAN_TOP * kappa / (OTHERS * LATE**2),
        SPREAD: -2 * rate * MEAN_TOP * SPREAD / (OTHERS * LATE)
        + rate**2 / batch * MEAN_TOP * noise / (OTHERS * LATE),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The one-third law
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneThird:
    """D and L of the aligned, noiseless student; `correction`: (epsilon, gamma) of L for K = 2."""

    balance: Balance
    overlap: sympy.Expr
    loss: sympy.Expr
    correction: tuple[sympy.Expr, sympy.Expr]


def one_third(expansion: Expansion, pair: TwoClasses) -> tuple[Step, OneThird]:
    """dD = eta c/((K-1) D^2): D ~ alpha^(1/3)."""
    drift = eta / OTHERS * expansion.gap.subs(sympy.Symbol("s", nonnegative=True), LATE)
    (balance,) = dominant_balances({LATE: drift}, TIME)
    overlap, loss = balance.power_law(LATE), balance.power_law(DRIFT_CONSTANT / LATE)
    # K = 2: the next term of the series, carried through drift and loss.
    flow = {LATE: eta * (pair.gap[0] / LATE**2 + pair.gap[1] / LATE**4)}
    (second,) = dominant_balances(flow, TIME)
    epsilon, gamma = next_order(flow, second)
    shift = sympy.simplify(-epsilon[LATE] + pair.loss[1] / pair.loss[0] / second.prefactors[LATE] ** 2)
    law = OneThird(balance, overlap, loss, (shift, gamma))
    step = Step(
        "one third",
        "The one-third law",
        "Aligned and without noise, s = D, dD = eta c/((K-1) D^2). The derivative can balance nothing but this term: the solver "
        "returns exponent and prefactor. The exponent of the loss is that of the width 1/D of the layer. For K = 2 the next term "
        "of the series gives L = L_0 (1 + a alpha^-gamma).",
        (
            Equation("D", readable(overlap)),
            Equation("L", readable(loss)),
            Equation(r"-\frac{d\log L}{d\log\alpha}", -balance.exponent(DRIFT_CONSTANT / LATE)),
            Equation("a_{K=2}", shift),
            Equation(r"\gamma_{K=2}", gamma),
        ),
        ("symmetry", "aligned", "continuous time"),
    )
    return step, law


@dataclass(frozen=True)
class Late:
    """SGD at constant eta: the balance with Delta -> Delta_inf, the exponents of loss and error."""

    balance: Balance
    loss: sympy.Expr
    error: sympy.Expr


def with_noise(form: Layer) -> tuple[Step, Late]:
    """Delta tends to a constant that solves its own balance; both exponents are 1/3."""
    flow = late_flow(KAPPA(SPREAD), NOISE(SPREAD))
    (balance,) = dominant_balances(flow, TIME)
    loss, error = (-balance.exponent(x) for x in (1 / LATE, sympy.sqrt(SPREAD) / LATE))
    law = Late(balance, loss, error)
    step = Step(
        "with noise",
        "With SGD noise: a stationary spread, the same exponent",
        "In the layer H = m/D and G = m S(Delta)/D with S = 2 E softplus(sqrt(2 Delta) xi) - 1, kappa(Delta) = m-free drift of "
        "the layer. Contraction and noise of Delta have the same power of D, so that Delta tends to a constant (it is slaved: its "
        "derivative is smaller by the gap shown), which solves an implicit equation; larger batches and smaller eta act through "
        "eta/B alone. L = m kappa/D and the error m sqrt(Delta/pi)/D both fall with 1/3.",
        (
            Equation(r"\Delta_\infty", balance.prefactors[SPREAD].subs(batch, sympy.Symbol("B", positive=True))),
            Equation("D", readable(balance.power_law(LATE))),
            Equation(r"\text{gap of }d\Delta/d\alpha", balance.discarded[SPREAD][0].gap),
            Equation(r"-\frac{d\log L}{d\log\alpha}", loss),
            Equation(r"-\frac{d\log\mathrm{error}}{d\log\alpha}", error),
        ),
        ("symmetry", "noise", "numerical: layer"),
    )
    return step, law


@dataclass(frozen=True)
class Scheduled:
    """eta ~ alpha^-g: the balance in which Delta follows, exponents, and the balance in which all stands still."""

    follows: Balance
    frozen: Balance
    loss: sympy.Expr
    error: sympy.Expr


def schedule(form: Layer) -> tuple[Step, Scheduled]:
    """Power schedules: exponents and where Delta follows, both from the solver."""
    flow = late_flow(*still(form), rate=eta * TIME**-POWER)
    balances = dominant_balances(flow, TIME)
    (follows,) = [b for b in balances if SPREAD in b.slaved]
    (frozen,) = [b for b in balances if LATE in b.free]
    loss, error = (-follows.exponent(x) for x in (1 / LATE, sympy.sqrt(SPREAD) / LATE))
    law = Scheduled(follows, frozen, loss, error)
    step = Step(
        "schedule",
        "Power schedules eta ~ alpha^-g",
        "With eta falling the spread falls with it, Delta ~ eta: the loss is slower, the error faster. The solver keeps this "
        "balance only while the derivative of Delta is the smaller term (first condition); beyond it nothing moves any more. The "
        "gap shrinks to zero there: at finite times the spread lags well before (from g about 0.7 up to alpha = 1e8).",
        (
            Equation(r"\Delta", follows.power_law(SPREAD)),
            Equation(r"-\frac{d\log L}{d\log\alpha}", loss),
            Equation(r"-\frac{d\log\mathrm{error}}{d\log\alpha}", error),
            Equation(r"\text{Delta follows if}", conditions(follows)),
            Equation(r"\text{gap of }d\Delta/d\alpha", follows.discarded[SPREAD][0].gap),
            Equation(r"\text{frozen if}", conditions(frozen)),
        ),
        ("symmetry", "noise", "numerical: layer"),
    )
    return step, law


def weight_decay() -> tuple[Step, sympy.Expr]:
    """The fixed point of drift and decay."""
    flow = {LATE: eta * DRIFT_CONSTANT / (OTHERS * LATE**2) - decay * LATE}
    (balance,) = dominant_balances(flow, TIME)
    overlap = balance.prefactors[LATE]
    step = Step(
        "weight decay",
        "Weight decay stops the law",
        "The drift falls as 1/D^2, the decay grows as D: the derivative becomes the smaller term and D stands.",
        (Equation(r"D_\infty", readable(overlap)), Equation(r"D_\infty^3", readable(sympy.simplify(overlap**3)))),
        ("aligned",),
    )
    return step, overlap


# ---------------------------------------------------------------------------------------------------------------------
# Finite teacher temperature
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FiniteTemperature:
    """In x = D/b_*: `clock` eta c alpha/((K-1) b_*^3); `loss` KL; `exponent` -dlog KL/dlog alpha and its series.

    `scale` alpha_c; `cutoff` alpha/alpha_c at which dlog(exponent)/dlog alpha passes one half.
    """

    clock: sympy.Expr
    loss: sympy.Expr
    exponent: sympy.Expr
    series: sympy.Expr
    scale: sympy.Expr
    cutoff: sympy.Expr
    cutoff_ratio: sympy.Expr


def finite_temperature(expansion: Expansion) -> tuple[Step, FiniteTemperature]:
    """Soft or sampled labels of inverse temperature b_*: power law, then exponential."""
    x, b, c = RATIO, TEACHER_BETA, DRIFT_CONSTANT
    size = sympy.Symbol("s", nonnegative=True)
    gap = expansion.gap
    speed = sympy.simplify(gap.subs(size, x * b) - gap.subs(size, b))  # Phi(b_*) - Phi(D)
    rate = sympy.factor(speed * b**2 / c)  # dx/d(eta c alpha/((K-1) b^3))
    clock = sympy.integrate(sympy.apart(1 / rate, x), x)
    clock = sympy.simplify(clock - clock.subs(x, 0))
    clock = sympy.atanh(x) - x if sympy.simplify(sympy.diff(clock - sympy.atanh(x) + x, x)) == 0 else clock
    loss = expansion.loss.subs(size, x * b) - expansion.loss.subs(size, b) + (x - 1) * b * gap.subs(size, b)
    loss = sympy.factor(sympy.simplify(loss))
    growth = rate * clock  # dx/dlog alpha
    exponent = sympy.simplify(-sympy.diff(sympy.log(loss), x)) * growth
    exponent = sympy.factor(sympy.cancel(exponent / clock)) * clock
    series = sympy.series(exponent, x, 0, 3)
    scale = sympy.solve(TIME * eta * c / (OTHERS * b**3) - sympy.Rational(1, 3), TIME)[0]
    bend = sympy.diff(sympy.log(exponent), x) * growth
    at = sympy.nsolve(bend - sympy.Rational(1, 2), x, (sympy.Rational(3, 10), sympy.Rational(9, 10)), solver="bisect",
                      prec=30)  # fmt: skip
    cutoff = sympy.N(3 * clock.subs(x, at), 15)
    form = FiniteTemperature(clock, loss, exponent, series.removeO(), scale, cutoff, sympy.N(at, 15))
    step = Step(
        "finite temperature",
        "Finite teacher temperature: power law, then exponential",
        "Soft labels (noiseless, aligned) have drift Phi(b_*) - Phi(D) = c (1/D^2 - 1/b_*^2). In x = D/b_* time is an integral of "
        "a rational function (by sympy), the excess loss is KL = F(D) - F(b_*) - (D - b_*) Phi(b_*), and the local exponent "
        "leaves 1/3 at first order in x: a clean 1/3 needs D < b_*/20. alpha_c is when D^3 = 3 eta c alpha/(K-1) would reach "
        "b_*^3; the exponent's own logarithmic slope passes 1/2, the hand-over to the exponential, at the last number times "
        "alpha_c.",
        (
            Equation(r"\frac{\eta c\alpha}{(K-1)b_*^3}", clock),
            Equation(r"\mathrm{KL}", loss),
            Equation(r"-\frac{d\log\mathrm{KL}}{d\log\alpha}", exponent),
            Equation(r"-\frac{d\log\mathrm{KL}}{d\log\alpha}", series),
            Equation(r"\alpha_c", readable(scale)),
            Equation(r"\alpha_{\mathrm{cutoff}}/\alpha_c", sympy.N(cutoff, 6)),
        ),
        ("aligned", "continuous time", "numerical: limits"),
    )
    return step, form


# ---------------------------------------------------------------------------------------------------------------------
# Generated functions
# ---------------------------------------------------------------------------------------------------------------------

SERIES_TERMS, SERIES_BELOW = 14, 0.25


def write(law: OneThird, decayed: sympy.Expr, form: FiniteTemperature) -> tuple[Output, ...]:
    """Power laws of D and L, the fixed point, and the functions of x = D/b_*."""
    names = {**CODE, LATE: "D", SPREAD: "Delta", RATIO: "x"}
    del names[OTHERS]
    names[OTHERS] = "(classes - 1)"

    def code(expression: sympy.Expr) -> str:
        return to_jax(expression, names)

    arguments = ("alpha: Array", "eta: Array", "c: Array", "classes: Array")
    about = "`c` from `drift_constant`; alpha in units of d SGD steps, eta constant."
    # (artanh x - x)/x^3, by its series where the difference would cancel.
    coefficients = sympy.Poly(
        sympy.expand(sympy.series(form.clock, RATIO, 0, 2 * SERIES_TERMS + 3).removeO() / RATIO**3), RATIO
    )
    horner = [coefficients.coeff_monomial(RATIO ** (2 * k)) for k in range(SERIES_TERMS)]
    text = code(horner[-1])
    for coefficient in reversed(horner[:-1]):
        text = f"{code(coefficient)} + square * ({text})"
    ratio = sympy.Symbol("ratio")
    shape = sympy.simplify(form.exponent / form.clock * RATIO**3)
    outputs = {
        "power_law_overlap": (
            arguments, f"D = (3 eta c alpha/(K-1))^(1/3) of the aligned, noiseless student. {about}",
            [f"return {code(law.overlap)}"],
        ),
        "power_law_loss": (
            arguments, f"L = c^(2/3) ((K-1)/(3 eta alpha))^(1/3) of the aligned, noiseless student. {about}",
            [f"return {code(law.loss)}"],
        ),
        "weight_decay_overlap": (
            ("eta: Array", "c: Array", "classes: Array", "weight_decay: Array"),
            "D_inf = (eta c/((K-1) w))^(1/3), where weight decay w > 0 per unit of alpha stops the aligned student.",
            [f"return {code(decayed)}"],
        ),
        "artanh_ratio": (
            ("x: Array",), f"(artanh x - x)/x^3 for 0 <= x < 1, by {SERIES_TERMS} terms of its series below {SERIES_BELOW}.",
            [
                "square = x ** 2", f"series = {text}", f"large = jnp.where(x < {SERIES_BELOW}, {SERIES_BELOW}, x)",
                f"direct = {to_jax(_logarithmic(form.clock) / RATIO**3, {RATIO: 'large'})}",
                f"return jnp.where(x < {SERIES_BELOW}, series, direct)",
            ],
        ),
        "finite_temperature_time": (
            ("x: Array", "eta: Array", "c: Array", "classes: Array", "inverse_temperature: Array"),
            "alpha at which x = D/b_*, 0 <= x < 1, of the aligned, noiseless student of soft labels: (K-1) b_*^3/(eta c)\n"
            "(artanh x - x). Valid for b_* large, D large.",
            [f"return {code(_time(form, ratio))}".replace("ratio", "artanh_ratio(x)")],
        ),
        "finite_temperature_loss": (
            ("x: Array", "c: Array", "inverse_temperature: Array"), "KL = c (1 - x)^2/(b_* x) to the soft teacher, x = D/b_*.",
            [f"return {code(form.loss)}"],
        ),
        "finite_temperature_exponent": (
            ("x: Array",), "-dlog KL/dlog alpha = (1 + x)^2 (artanh x - x)/x^3, x = D/b_*: 1/3 at x = 0.",
            [f"return {code(shape * ratio)}".replace("ratio", "artanh_ratio(x)")],
        ),
        "hand_over_time": (
            ("eta: Array", "c: Array", "classes: Array", "inverse_temperature: Array"),
            "alpha_c = (K-1) b_*^3/(3 eta c): scale of the hand-over from power law to exponential.",
            [f"return {code(form.scale)}"],
        ),
        "cutoff_time": (
            ("eta: Array", "c: Array", "classes: Array", "inverse_temperature: Array"),
            "alpha at which dlog(local exponent)/dlog alpha passes 1/2, a number times alpha_c (`hand_over_time`).",
            [f"return {code(form.cutoff * form.scale)}"],
        ),
    }  # fmt: skip
    return tuple(
        Output(name, function_source(name, takes, about, body, "Array"))
        for name, (takes, about, body) in outputs.items()
    )


def _logarithmic(expression: sympy.Expr) -> sympy.Expr:
    return expression.subs(sympy.atanh(RATIO), (sympy.log(1 + RATIO) - sympy.log(1 - RATIO)) / 2)


def _time(form: FiniteTemperature, ratio: sympy.Symbol) -> sympy.Expr:
    """alpha of x: the clock in units of 3 alpha_c, its cube split off."""
    return sympy.simplify(3 * form.scale) * RATIO**3 * ratio
