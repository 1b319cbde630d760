"""What follows for the linear model, one row, square loss, no label noise: exponents, floors, and who is ahead when.

dq_k/dt = -2 a sqrt(lam_k B/V) q_k + a^2,     V = 2L = (1/N) sum_k lam_k q_k
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from derivations.optimizers.notation import (
    ALPHA,
    AMPLITUDE,
    CAPACITY,
    INTRINSIC,
    LOSS,
    NOISE,
    RATE,
    ROOT,
    SECOND,
    SOURCE,
    SQUARE,
    TIME,
    VARIANCE,
)
from derivations.optimizers.signs import MEAN, Signs
from derivations.schedule import script as schedule
from derivations.schedule.notation import CAPACITY as SGD_CAPACITY
from derivations.schedule.notation import SOURCE as SGD_SOURCE
from odescale.errors import InputError
from odescale.symbolic.record import Equation, Step
from odescale.symbolic.sgd import batch, eta, lam

GAIN = sympy.Symbol("c_B", positive=True)
"""The sign's drift is -a c_B sqrt(lam_k/V)."""
FRACTION = sympy.Symbol("theta", positive=True)
"""Rate over the rate whose floor is the present loss."""


@dataclass(frozen=True)
class Exponents:
    """2L = A tau^-power in intrinsic time; dL/dt; the exponent in t where alpha < 1, and the time at which L ends else."""

    power: sympy.Expr
    amplitude: sympy.Expr
    slope: sympy.Expr
    in_time: sympy.Expr
    end: sympy.Expr


@dataclass(frozen=True)
class Floors:
    """L at rest at a constant rate: Adam in the eigenbasis, in any other, sign at batch B, by c_B, c_B itself, sign at large B."""

    adam: sympy.Expr
    rotated: sympy.Expr
    sign: sympy.Expr
    sign_by_gain: sympy.Expr
    sign_gain: sympy.Expr
    sign_large: sympy.Expr


def mode_slope(entry: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """(rate of decay, drive) of q_k from P: 2 P lam and P^2 lam V/B at v = lam V/B; G = 1, H = 0 for the linear model."""
    P = entry.subs(SECOND, lam * NOISE / batch).subs(NOISE, VARIANCE)
    return sympy.simplify(2 * P * lam), sympy.simplify(P**2 * lam * VARIANCE / batch)


def exponents(entry: sympy.Expr) -> tuple[Step, Exponents]:
    """The bias in tau = int a sqrt(B/V) dt, then in t."""
    decay, drive = mode_slope(entry)
    speed = RATE * sympy.sqrt(batch / VARIANCE)
    per_tau = sympy.simplify(decay / speed)
    if sympy.simplify(per_tau - 2 * sympy.sqrt(lam)) != 0:
        raise InputError("rate", expected="2 sqrt(lam) per tau", got=str(per_tau), remedy="check P")
    heat = sympy.simplify(drive / speed)
    # SGD has 2 lam per int eta dt: its law with sqrt(lam) = k^(-b/2) for lam.
    law, size = schedule.bias_law()
    numbers = {SGD_SOURCE: SOURCE, SGD_CAPACITY: CAPACITY}
    sgd = law.subs(numbers)
    power, amplitude = (x.subs(SGD_CAPACITY, SGD_CAPACITY / 2).subs(numbers) for x in (law, size))
    if sympy.simplify(power - 2 * sgd) != 0:
        raise InputError("power", expected="twice that of SGD", got=str(power), remedy="check the spectrum")
    # 2L = A tau^(-2 alpha) with alpha SGD's exponent.
    loss = AMPLITUDE * INTRINSIC ** (-2 * ALPHA) / 2
    growth = speed.subs(VARIANCE, 2 * loss)
    (inverse,) = sympy.solve(
        sympy.Eq(sympy.log(LOSS), sympy.expand_log(sympy.log(loss))), INTRINSIC, check=False, simplify=False
    )
    slope = (sympy.diff(loss, INTRINSIC) * growth).subs(INTRINSIC, inverse)
    compact = -ALPHA * RATE * sympy.sqrt(2 * batch * LOSS) * (2 * LOSS / AMPLITUDE) ** (1 / (2 * ALPHA))
    gap = sympy.expand_log(sympy.log(-slope) - sympy.log(-compact), force=True)
    if sympy.expand(sympy.expand_log(gap, force=True)) != 0:
        raise InputError("slope", expected=str(compact), got=str(slope), remedy="check the elimination of tau")
    elapsed = sympy.integrate(sympy.powsimp(1 / growth), INTRINSIC)
    branch = sympy.piecewise_fold(elapsed).args[0][0]  # the other one is alpha = 1
    per_time = sympy.simplify(INTRINSIC * sympy.diff(branch, INTRINSIC) / branch)  # t ~ tau^per_time
    above, below = sympy.fraction(sympy.cancel(2 * ALPHA / per_time))
    in_time = -above / sympy.expand(-below)
    # alpha > 1: int_tau^oo dtau/(dtau/dt).
    end = sympy.simplify(-branch)
    step = Step(
        "exponents", "Power-law spectra: Adam doubles the exponent in its intrinsic time, and time runs ever faster",
        "The linear model (G = 1, H = 0, V = 2L) with lambda_k = k^-b, lambda_k q_k(0) = k^-c, in the eigenbasis. In tau = "
        "int a sqrt(B/V) dt mode k decays at 2 sqrt(lambda_k), and is heated by the first line. SGD's law with sqrt(lambda) "
        "for lambda gives the bias 2L = A tau^(-2 alpha) (sums over dense modes), 2 alpha the second line, twice SGD's alpha "
        "= (c - 1)/b in int eta dt. But dtau/dt grows as the loss falls: without the heat dL/dt is the fourth line. At "
        "constant a the loss goes like t to minus the fifth line for alpha < 1, exponentially at alpha = 1, and for alpha > 1 "
        "it ends within the last line from tau on: 1/sqrt(V) diverges. That is the normalisation by the gradient's noise, "
        "which SGD at eta ~ 1/sqrt(V) has too: with its alpha/(1 - alpha/2). All this before the floor of the next step.",
        (
            Equation(r"\left.dq_k/d\tau\right|_{\mathrm{heat}}", heat),
            Equation(r"2\alpha", power),
            Equation(AMPLITUDE, amplitude),
            Equation(r"\frac{dL}{dt}", compact),
            Equation(r"-d\log L/d\log t", in_time),
            Equation("t_{end}-t", end),
        ),
        ("linear", "aligned", "dense", "no lag", "noise-free"),
    )  # fmt: skip
    return step, Exponents(power, amplitude, compact, in_time, end)


def floors(entry: sympy.Expr, rotated_rate: sympy.Expr, signs: Signs) -> tuple[Step, Floors]:
    """dq_k/dt = 0 in every mode, summed to V; then V solved for."""

    def rest(decay: sympy.Expr, drive: sympy.Expr) -> sympy.Expr:
        # q_k at rest, times lam: a power of lam whose average is ROOT, or 1 = <lam>.
        weighted = sympy.powsimp(sympy.simplify(drive / decay * lam))
        power = sympy.simplify(lam * sympy.diff(sympy.log(weighted), lam))
        average = {sympy.S.Half: ROOT, sympy.S.One: sympy.S.One}[power]
        coefficient = sympy.simplify(weighted / lam**power)
        # V = coefficient V^(1/2) average.
        ratio = sympy.simplify(coefficient / sympy.sqrt(VARIANCE)) * average
        return sympy.simplify(ratio**2 / 2)

    adam = rest(*mode_slope(entry))
    P = sympy.simplify(rotated_rate / lam).subs(NOISE, VARIANCE)
    rotated = rest(2 * P * lam, sympy.simplify(P**2 * lam * VARIANCE / batch))
    # |g|^2 = sum_b e_b^2/B^2, sum_b g_b phi_b/B = sum_b e_b^2/B: E sqrt(sum e^2) = sqrt(V) E sqrt(chi^2_B).
    x = sympy.Symbol("x", positive=True)
    chi = x ** (batch / 2 - 1) * sympy.exp(-x / 2) / (2 ** (batch / 2) * sympy.gamma(batch / 2))
    root = sympy.simplify(sympy.integrate(sympy.powsimp(sympy.sqrt(x) * chi), (x, 0, sympy.oo)))
    # m = lam e^2 summed over B, |g|_i = sqrt(sum e^2)/B: drift of W in units of W.
    total = sympy.Symbol("S", positive=True)
    moved = -signs.drift.subs({MEAN: lam * total / batch, SQUARE: total / batch**2})
    gain = sympy.simplify(moved / sympy.sqrt(total) / RATE / sympy.sqrt(lam)) * root
    by_gain = rest(2 * RATE * GAIN * sympy.sqrt(lam / VARIANCE), RATE**2)
    sign = by_gain.subs(GAIN, gain)
    large = rest(2 * RATE * sympy.sqrt(2 / sympy.pi) * sympy.sqrt(lam * batch / VARIANCE), RATE**2)
    step = Step(
        "floors", "A constant rate leaves a floor",
        "Adam's heat a^2 does not fall with the loss. At rest q_k = a^2/(its rate), V = (1/N) sum_k lambda_k q_k is an "
        "equation for V: the first line, Lambda = (1/N) sum_k sqrt(lambda_k). In a rotated basis it is the second line, "
        "larger, since Lambda^2 <= 1/lambda_c = d/N. Sign: E[sum_b e_b^2/(B |g|)] = sqrt(V) E sqrt(chi^2_B) makes the drift "
        "-a c_B sqrt(lambda_k/V) q_k with the third line, sqrt(2B/pi) at large B and 2/pi at B = 1, and the floor of the "
        "fourth; the fifth at large B, pi/2 of Adam's. SGD has none: its heat is eta^2 lambda V/B, and the loss goes on to "
        "zero.",
        (
            Equation("L", adam),
            Equation("L_{rot}", rotated),
            Equation("c_B", gain),
            Equation("L_{sign}", by_gain),
            Equation(r"\left.L_{sign}\right|_{B\to\infty}", large),
        ),
        ("linear", "no lag"),
    )  # fmt: skip
    return step, Floors(adam, rotated, sign, by_gain, gain, large)


@dataclass(frozen=True)
class Race:
    """When SGD passes a floor; and the decay a = theta 2 sqrt(B V)/Lambda: dtau/dt, 2L at t, exponent of the memory, best theta."""

    crossing: sympy.Expr
    rate: sympy.Expr
    speed: sympy.Expr
    loss: sympy.Expr
    memory: sympy.Expr
    best: sympy.Expr


def race(entry: sympy.Expr, found: Exponents, floor: sympy.Expr) -> tuple[Step, Race]:
    """The crossing with SGD at a constant rate, and the loss under a rate that follows sqrt(V)."""
    plain = sympy.Symbol("A_1", positive=True)
    sgd = plain * (eta * TIME) ** -ALPHA / 2
    crossing = (plain / (2 * floor)) ** (1 / ALPHA) / eta
    if sympy.expand(sympy.expand_log(sympy.log(sgd.subs(TIME, crossing)) - sympy.log(floor), force=True)) != 0:
        raise InputError("crossing", expected="SGD's law at the floor", got=str(crossing), remedy="check the power")
    # The rate whose floor is the present loss, V = 2 floor(a), times theta.
    (level,) = sympy.solve(sympy.Eq(sympy.sqrt(2 * floor), sympy.sqrt(VARIANCE)), RATE, check=False, simplify=False)
    rate = FRACTION * level
    speed = sympy.simplify(rate * sympy.sqrt(batch / VARIANCE))
    # V = bias + int V(tau') K(tau - tau') dtau': heat per tau over V, times lam_k, times what is left of it.
    decay, heat = (sympy.simplify(x / (RATE * sympy.sqrt(batch / VARIANCE))) for x in mode_slope(entry))
    per_mode = sympy.simplify(lam * heat.subs(RATE, rate) / VARIANCE / decay)
    weight = sympy.simplify(per_mode / sympy.sqrt(lam) * ROOT)
    if weight != FRACTION:
        raise InputError("weight", expected="theta", got=str(weight), remedy="check heat and decay")
    bias = AMPLITUDE * (speed * TIME) ** (-2 * ALPHA)
    loss = bias / (1 - weight)
    (best,) = sympy.solve(sympy.diff(sympy.expand_log(sympy.log(loss), force=True), FRACTION), FRACTION, check=False)
    # lam_k exp(-2 sqrt(lam_k) tau) in place of k^-c exp(..): the same law with c = b.
    memory = found.power.subs(SOURCE, CAPACITY)
    step = Step(
        "race", "When Adam loses to SGD, and the decay that keeps it ahead",
        "SGD's bias is A_1 (eta t)^-alpha/2 and has no floor: from the first line on (aligned spectrum, no label noise, eta "
        "small enough for its own noise) it is below Adam at any constant a. A smaller a only moves that later. With decay: "
        "let a be a share theta < 1 of the rate whose floor is the present loss, second line. Then dtau/dt is the third line, "
        "constant: tau grows like t. The heat is proportional to V, and V = bias + int V K dtau with int K = theta: V = "
        "bias/(1 - theta) where the bias falls more slowly than K, which goes like tau to minus the fourth line. So for c < b "
        "the loss is the fifth line: t^(-2 alpha), Adam's doubled exponent in t, under a rate that falls like t^-alpha; theta "
        "= the last line is best. For c > b the memory of the heat rules and the exponent is the fourth line, still above "
        "SGD's (c - 1)/b as long as c < 2b - 1. Lambda is finite for b > 2; for b <= 2 it grows with d, and the gain shrinks.",
        (
            Equation("t", crossing),
            Equation(RATE, rate),
            Equation(r"\frac{d\tau}{dt}", speed),
            Equation(r"-d\log K/d\log\tau", memory),
            Equation("2L", loss),
            Equation(FRACTION, best),
        ),
        ("linear", "aligned", "dense", "no lag"),
    )  # fmt: skip
    return step, Race(crossing, rate, speed, loss, memory, best)
