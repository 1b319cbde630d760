"""The Lagrange and envelope solution of min R at fixed C, in logarithms: X = log x, u = log t, b = log C/c."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from derivations.frontier.notation import (
    ALPHA,
    BOUND,
    BUDGET,
    COST,
    DECAY,
    FLOOR,
    LOG_SCALE,
    MU,
    RAPIDITY,
    RATE,
    SIZE,
    TIME,
    TIME_COST,
    A,
    S,
)
from odescale.errors import InputError
from odescale.symbolic.record import Equation, Step

LOG_SIZE, LOG_TIME = sympy.symbols("X u", real=True)
RAPIDITY_SIGNED = sympy.Symbol("y", real=True)


def _same(left: sympy.Expr, right: sympy.Expr, what: str) -> None:
    """Refuses to go on when two expressions differ."""
    difference = sympy.simplify(sympy.expand_log(sympy.expand(left - right), force=True))
    if difference != 0:
        raise InputError(what, expected="an identity", got=difference, remedy="check the step before")


@dataclass(frozen=True)
class Size:
    """One released size: its share of the risk, its value, its share of K, and mu at its floor."""

    share: sympy.Expr
    value: sympy.Expr
    log_scale: sympy.Expr
    slope: sympy.Expr
    release: sympy.Expr


def lagrange() -> tuple[Step, Size]:
    """d(A e^(-alpha X) + mu q X)/dX = 0 for one size; the sizes meet in mu alone."""
    term = A * sympy.exp(-ALPHA * LOG_SIZE)
    (place,) = sympy.solve(sympy.Eq(sympy.diff(term, LOG_SIZE) + MU * COST, 0), LOG_SIZE)
    share = sympy.simplify(term.subs(LOG_SIZE, place))
    # q X = K_i - (q/alpha) log mu: what one size spends.
    spent = sympy.expand(sympy.expand_log(COST * place, force=True))
    slope = sympy.simplify(-sympy.diff(spent, MU) * MU)
    scale = sympy.simplify(spent + slope * sympy.log(MU))
    curvature = sympy.simplify(sympy.diff(term, LOG_SIZE, 2).subs(LOG_SIZE, place))
    value = (A * ALPHA / (COST * MU)) ** (1 / ALPHA)
    _same(sympy.log(value), place, "lagrange")
    (release,) = sympy.solve(sympy.Eq(value, FLOOR), MU)
    size = Size(share, value, (COST / ALPHA) * sympy.log(A * ALPHA / COST), slope, release)
    _same(size.log_scale, scale, "lagrange")
    step = Step(
        "lagrange",
        "One multiplier for all sizes",
        "Minimise R + mu (sum q_i X_i + q_t u) with X = log x, u = log t. Every size gives its own equation: marginal risk per "
        "marginal log C is mu for all. The second derivative is positive: the sizes alone have one minimum.",
        (
            Equation(r"A x^{-\alpha}", share),
            Equation("x", value),
            Equation(r"q\,\log x", size.log_scale - slope * sympy.log(MU)),
            Equation(r"\frac{\partial^2 R}{\partial X^2}", curvature),
        ),
        ("smooth",),
    )
    return step, size


def envelope() -> Step:
    """dR*/dlog C = -mu from the stationarity of two sizes whose solution moves with b in any way."""
    b = sympy.Symbol("b", real=True)
    one, two = (sympy.Function(name)(b) for name in ("X_1", "X_2"))
    q1, q2 = sympy.symbols("q_1 q_2", positive=True)
    total = -MU * (q1 * sympy.diff(one, b) + q2 * sympy.diff(two, b))
    (moved,) = sympy.solve(sympy.Eq(sympy.diff(q1 * one + q2 * two, b), 1), sympy.diff(one, b))
    slope = sympy.simplify(total.subs(sympy.diff(one, b), moved))
    if slope != -MU:
        raise InputError("envelope", expected="-mu", got=slope, remedy="check the stationarity")
    return Step(
        "envelope",
        "The multiplier is the slope of the frontier",
        "Along the optimum dR/dX_i = -mu q_i (held sizes do not move) and sum q_i dX_i = dlog C, so that the way in which the "
        "sizes move drops out. The local exponent p of the frontier is exact, not asymptotic.",
        (
            Equation(r"\frac{dR^*}{d\log C}", slope),
            Equation(r"p = -\frac{d\log R^*}{d\log C}", r"\frac{\mu}{R^*}"),
        ),
        ("smooth",),
    )


@dataclass(frozen=True)
class Powers:
    """The frontier of power laws alone."""

    multiplier: sympy.Expr
    risk: sympy.Expr
    exponent: sympy.Expr


def powers(size: Size) -> tuple[Step, Powers]:
    """sum (K_i - (q_i/alpha_i) log mu) = b."""
    m = sympy.Symbol("m", real=True)
    (log_mu,) = sympy.solve(sympy.Eq(LOG_SCALE - S * m, BUDGET), m)
    risk = S * sympy.exp((LOG_SCALE - BUDGET) / S)
    exponent = sympy.simplify(-sympy.diff(sympy.log(risk), BUDGET))
    law = Powers(sympy.exp((LOG_SCALE - BUDGET) / S), risk, exponent)
    _same(sympy.log(law.multiplier), log_mu, "powers")
    ratio = sympy.simplify(size.share / MU)
    step = Step(
        "powers",
        "Power laws alone",
        "Every term is mu q_i/alpha_i: R = S mu with S = sum q_i/alpha_i. The budget b = log C/c fixes mu through K = sum "
        "(q_i/alpha_i) log(alpha_i A_i/q_i). Written out, R* = S prod (A_i alpha_i/q_i)^(q_i/(alpha_i S)) (C/c)^(-1/S). A "
        "power-law time is one more size.",
        (
            Equation(r"\frac{A_ix_i^{-\alpha_i}}{\mu}", ratio),
            Equation(r"\mu", law.multiplier),
            Equation("R^*", law.risk),
            Equation("p", exponent),
            Equation("x_i^*", r"\left(\frac{A_i\alpha_i}{q_i}\right)^{1/\alpha_i}e^{(b-K)/(\alpha_iS)}"),
        ),
        ("smooth",),
    )
    return step, law


@dataclass(frozen=True)
class Exponential:
    """The frontier with an exponential time."""

    multiplier: sympy.Expr
    share: sympy.Expr
    exponent: sympy.Expr
    equation: tuple[sympy.Expr, sympy.Expr, sympy.Expr]
    least: sympy.Expr


def exponential() -> tuple[Step, Step, Exponential]:
    """lam t D e^(-lam t) = mu q_t; then t of C, and where the stationary point is a minimum."""
    term = DECAY * sympy.exp(-RATE * sympy.exp(LOG_TIME))
    stationary = sympy.diff(term, LOG_TIME) + MU * TIME_COST
    (mu,) = sympy.solve(sympy.Eq(stationary, 0), MU)
    mu = sympy.simplify(mu.subs(LOG_TIME, sympy.log(TIME)))
    # The solution through Lambert's function satisfies the stationarity, whatever the branch: W e^W = its argument.
    w = sympy.Symbol("w", negative=True)
    argument = w * sympy.exp(w)
    solved = stationary.subs(LOG_TIME, sympy.log(-w / RATE)).subs(MU, -argument * DECAY / TIME_COST)
    _same(solved, sympy.S.Zero, "lambert")
    share = sympy.simplify(DECAY * sympy.exp(-RATE * TIME) / mu)
    exponent = sympy.simplify(1 / (S + share))
    step = Step(
        "lambert",
        "Exponential time costs logarithms only",
        "The stationarity of the time is w e^w = -mu q_t/D with w = -lam t: Lambert's function, branch W_-1 where lam t > 1. "
        "The term is mu q_t/(lam t), R = mu (S + q_t/(lam t)), and the local exponent is exact at every C. It tends to 1/S with "
        "no exponential phase.",
        (
            Equation(r"\mu", mu),
            Equation(r"\lambda t", r"-W_{-1}\left(-\frac{\mu q_t}{D}\right)"),
            Equation(r"\frac{De^{-\lambda t}}{\mu}", share),
            Equation("R^*", r"\mu\left(S+\frac{q_t}{\lambda t}\right)"),
            Equation("p", exponent),
        ),
        ("smooth", "interior"),
    )
    # b = K - S log mu + q_t log t, as (S lam) t + (q_t - S) log t = right.
    balance = LOG_SCALE - S * sympy.expand_log(sympy.log(mu), force=True) + TIME_COST * sympy.log(TIME) - BUDGET
    linear, logarithm = S * RATE, TIME_COST - S
    right = sympy.expand(sympy.expand_log(linear * TIME + logarithm * sympy.log(TIME) - balance, force=True))
    if right.has(TIME):
        raise InputError("time", expected="a right side without t", got=right, remedy="check the balance")
    # Bordered Hessian: h_i = alpha_i mu q_i for sizes, h_t = mu q_t (lam t - 1) for the time. With h_t < 0 the quadratic form is
    # positive on the tangent space of the budget iff sum q_i^2/h_i + q_t^2/h_t < 0.
    curvature = sympy.simplify(sympy.diff(term, LOG_TIME, 2).subs(LOG_TIME, sympy.log(TIME)) / mu)
    sizes = S / MU
    (least,) = sympy.solve(
        sympy.Eq(sizes + TIME_COST**2 / (MU * curvature.subs(TIME, RAPIDITY_SIGNED / RATE)), 0), RAPIDITY_SIGNED
    )
    least = sympy.expand(least)
    speed = sympy.simplify(TIME * sympy.diff(balance, TIME))
    _same(sympy.expand(speed - S * (RATE * TIME - least)), sympy.S.Zero, "second order")
    # R where the minimum ends, S written through y = 1 - q_t/S.
    (total,) = sympy.solve(sympy.Eq(least, RAPIDITY_SIGNED), S)
    end = (mu * (S + share)).subs({TIME: RAPIDITY_SIGNED / RATE, S: total})
    end = sympy.factor(sympy.simplify(end))
    second = Step(
        "time",
        "The time as a function of compute",
        "Mu eliminated from the budget. For q_t < S and z = S lam t/(S - q_t) it reads z - log z = const, z = -W_-1(-e^-const); "
        "for q_t > S and z = S lam t/(q_t - S), z + log z = const, z = W_0(e^const). The bordered Hessian makes the stationary "
        "point a minimum iff lam t > 1 - q_t/S, which is where b grows with t: the minimum goes on below lam t = 1, on the "
        "branch W_0 of the multiplier, and exactly W_-1 of z. Where it ends, y = lam t, R = D e^-y/(1 - y) > D: before that, not "
        "to train at all (t -> 0 at large sizes, R -> D) is the better use of C, so that the least risk starts to fall at R = D.",
        (
            Equation(r"S\lambda t+(q_t-S)\log t", sympy.collect(right, S)),
            Equation(r"\frac{1}{\mu}\frac{\partial^2R}{\partial u^2}", curvature),
            Equation(r"\frac{db}{d\log t}", sympy.expand(speed)),
            Equation(r"(\lambda t)_{\min}", least),
            Equation(r"R^*\big|_{\min}", end),
        ),
        ("smooth", "interior"),
    )
    return step, second, Exponential(mu, share, exponent, (linear, logarithm, right), least)


@dataclass(frozen=True)
class Floors:
    """Exponent with held terms, its logarithmic derivative, and the jump of that at C*."""

    exponent: sympy.Expr
    slope: sympy.Expr
    jump: sympy.Expr


def floors(size: Size, law: Exponential) -> tuple[Step, Step, Floors]:
    """x >= x_0: only t grows until mu falls to the largest release multiplier."""
    peak = sympy.simplify(law.multiplier.subs(TIME, 1 / RATE))
    exponent = 1 / (BOUND / MU + S + law.share)
    step = Step(
        "floors",
        "Floors: the exponential phase and its end C*",
        "A size at its floor stays there while mu exceeds its marginal value g_i (Kuhn-Tucker). While all do, C = c prod x_0^q "
        "t^q_t and R falls as exp(-lam t): exponentially in C^(1/q_t). The phase ends at mu = g = max g_i; then the sizes leave "
        "their floors one by one, each at mu = g_i, and with F the sum of the terms still held R = F + mu (S + q_t/(lam t)), S "
        "over the released ones. After the last the exponent is the one without floors. The multiplier of the time is at most "
        "its value at lam t = 1: with q_t g/D >= 1/e the floors never all hold and there is no exponential phase.",
        (
            Equation("g_i", size.release),
            Equation(r"\lambda t^*", r"-W_{-1}\left(-\frac{q_t g}{D}\right)"),
            Equation("C^*", r"c\prod_i x_{i0}^{q_i}\,{t^*}^{q_t}"),
            Equation(r"\max_t\mu", peak),
            Equation("p", exponent),
        ),
        ("smooth", "interior", "floors"),
    )
    # dlog mu/dlog t over dlog C/dlog t on both sides.
    turn = sympy.simplify(TIME * sympy.diff(sympy.log(law.multiplier), TIME))
    growth = TIME_COST - S * turn
    # dlog p = dlog mu - dlog R and dlog R = -p dlog C.
    free = turn / growth
    slope = free.subs(TIME, RAPIDITY / RATE)
    jump = sympy.factor(sympy.simplify(slope - slope.subs(S, 0)))
    second = Step(
        "jump",
        "A kink of the exponent at C*",
        "p = mu/R gives dlog p/dlog C = dlog mu/dlog C + p. R, mu and hence p are continuous where a size is released; dlog mu/"
        "dlog C is not, because the released size takes its part of the budget. At C*, y = lam t* and S = q_j/alpha_j of the "
        "size that is released first.",
        (
            Equation(r"\frac{d\log p}{d\log C}", sympy.Symbol("p") + slope),
            Equation(r"\text{jump at }C^*", jump),
        ),
        ("smooth", "interior", "floors"),
    )
    return step, second, Floors(exponent, slope, jump)


def tied() -> Step:
    """x = f z^r in the law of one size."""
    factor, power, z = sympy.symbols("f r z", positive=True)
    term = sympy.expand_power_base((A * SIZE**-ALPHA).subs(SIZE, factor * z**power), force=True)
    cost = sympy.expand_power_base((SIZE**COST).subs(SIZE, factor * z**power), force=True)
    ratio = sympy.simplify((COST * power) / (ALPHA * power))
    return Step(
        "tied",
        "Tied sizes",
        "x = f z^r (data = batch * time with z = t, r = 1; width in proportion to depth) turns a term and a cost of x into those "
        "of z. The ratio q/alpha of the term does not change, but its variable now serves two terms: S counts the sum of the "
        "costs over the slowest exponent of each variable, max over the terms instead of their sum. With two terms in one "
        "variable mu q = sum alpha_k A_k z^-alpha_k has no closed solution; it is monotone, and C of it too.",
        (
            Equation(r"Ax^{-\alpha}", sympy.powdenest(term, force=True)),
            Equation("x^{q}", sympy.powdenest(cost, force=True)),
            Equation(r"\frac{qr}{\alpha r}", ratio),
            Equation("S", r"\sum_{z}\max_{k\in z}\frac{q_z}{\alpha_k}"),
        ),
        ("smooth",),
    )
