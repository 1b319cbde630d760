"""Steps as long as the batch makes them, not its gradient: signs and Muon on the rows of K peaked classes.

sigma: drift of D per unit step, h: contraction of Delta, 1 - rho: noise of two rows' signs; one hardest sample makes a late step.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from derivations.peaked.adam import DRIFT, Normalised
from derivations.peaked.closure import ABOUT, EXCESS_LINES, OPTIONS, STATE, Closure
from derivations.peaked.escapes import Escape
from derivations.peaked.laws import LATE, POWER, SPREAD, conditions
from derivations.peaked.notation import (
    BETA,
    CENTRING,
    CODE,
    DELTA,
    DIMENSION,
    MEAN_TOP,
    OTHERS,
    PER_BATCH,
    RATE,
    SECOND_MOMENT,
    TIME,
    ClassMatrix,
    D,
    K,
    readable,
)
from odescale.errors import InputError
from odescale.symbolic.asymptotics import dominant_balances
from odescale.symbolic.gaussian import arcsine_law
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.power_laws import Balance
from odescale.symbolic.record import Equation, Output, Step
from odescale.symbolic.scalar_writer import to_jax
from odescale.symbolic.sgd import batch, decay, eta

SIGMA = sympy.Symbol("sigma", real=True)
HOLD, RHO = sympy.Symbol("h", positive=True), sympy.Symbol("rho", real=True)
TIES, STRENGTH, GAIN, LENGTH = sympy.symbols("J nu q q_2", positive=True)
"""J of two hardest samples that tie; squared weights of Muon's average; what its polynomial makes of the mean, and its rms."""
FLAT, BEND = sympy.Symbol("f_0", positive=True), sympy.Symbol("f_2", real=True)
"""Density of r = |lam_i - max_(j != i) lam_j| at r = 0, and its second derivative there; its first vanishes."""
ERROR, LOSS, WIDE_LOSS = sympy.sqrt(SPREAD) / LATE, 1 / LATE, SPREAD / LATE


@dataclass(frozen=True)
class Unit:
    """Per step, logits W x, W* W*^T = I: (dD, dDelta) of signs; `gain` sqrt(2/pi); `centred` noise of the rows."""

    flow: tuple[sympy.Expr, sympy.Expr]
    gain: sympy.Expr
    centred: sympy.Expr


def signs() -> tuple[Step, Unit]:
    """The sign of a batch's gradient: E[sgn] linear in a small mean, E[sgn sgn] by the arcsine, projected on P."""
    mean, size, cosine = sympy.Symbol("mu", real=True), sympy.Symbol("g", positive=True), sympy.Symbol("r", real=True)
    chance = sympy.erf(mean / (sympy.sqrt(2) * size))  # E sgn of a normal of mean mu and deviation g
    gain = sympy.simplify(sympy.diff(chance, mean).subs(mean, 0) * size)
    sharp = sympy.Symbol("kappa", positive=True)
    pair = arcsine_law((sharp, sympy.S.Zero), (sympy.S.Zero, sharp), sympy.Matrix([[1, cosine], [cosine, 1]]))
    (law,) = pair.atoms(sympy.asin)
    noise = pair.subs(law, sympy.asin(sympy.limit(sympy.simplify(law.args[0]), sharp, sympy.oo)))
    if noise.subs(cosine, 1) != 1 or noise.subs(cosine, -1) != -1:
        raise InputError("noise", expected="+-1 for rows that agree or oppose", got=str(noise), remedy="check the law")
    # tr(P N P)/tr P for signs with 1 on the diagonal and rho off it.
    rows = CENTRING.trace_of_product(CENTRING)
    centred = sympy.factor(CENTRING.trace_of_product(ClassMatrix(sympy.S.One, RHO)) / rows)
    flow = (
        gain * RATE * SIGMA - decay * D,
        -2 * gain * RATE * BETA * HOLD * DELTA + RATE**2 * DIMENSION * centred - 2 * decay * DELTA,
    )
    step = Step(
        "signs",
        "Signs of the gradient, any batch",
        "W <- W - l sgn(ghat), logits W x, W* W*^T = I, time in steps. Given the fields of a batch an entry of ghat_i = sum_b "
        "g_bi x_b/B is normal, with a mean smaller than its deviation |g_i|/B, |g_i|^2 = sum_b g_bi^2, by 1/sqrt d: the mean of "
        "its sign is the first line. So the rows move by -l sqrt(2/pi) sum_b g_bi x_b/|g_i| on average. Class symmetry and the "
        "shift of all logits that softmax does not see make E[w lam*^T] = sigma P and E[w lam_perp^T] = -Delta h P, "
        "w_i = -sum_b g_bi lam_b/|g_i|: the form D P, (D^2 + Delta) P is kept, although dividing row by row breaks sum_i g_i = "
        "0. Two rows' signs correlate by rho = (2/pi) E asin(cos(g_i, g_j)); the common part of their noise shifts all logits "
        "alike, and 1 - rho is left on P. sigma, h and rho depend on (beta D, beta^2 Delta, B); by 1/|g| = (2/sqrt pi) int "
        "exp(-u^2 |g|^2) du a batch is a power of one sample's average.",
        (
            Equation(r"\mathrm{E}\,\mathrm{sgn}", gain * mean / size),
            Equation(r"\mathrm{E}\,\mathrm{sgn}\,\mathrm{sgn}", noise),
            Equation(r"\frac{dD}{d\,\mathrm{step}}", flow[0]),
            Equation(r"\frac{d\Delta}{d\,\mathrm{step}}", flow[1]),
        ),
        ("gaussian", "online", "dimension", "symmetry"),
    )
    return step, Unit(flow, gain, centred)


def many_samples(closure: Closure, unit: Unit) -> tuple[Step, sympy.Expr, sympy.Expr]:
    """(step, dD, noise on P) of signs when many samples of a batch count: Adam's form."""
    A = sympy.expand(closure.cancel_free.subs(decay, 0) / eta)
    norm = batch * SECOND_MOMENT * BETA**2 / K  # |g_i|^2 concentrates on B E g_i^2
    dD = unit.gain * RATE * batch * DRIFT / sympy.sqrt(norm)
    # Rows of a slope that sums to zero: cos = -1/(K - 1).
    cosine = sympy.simplify((-1 / K) / (1 - 1 / K))
    noise = 1 - sympy.Rational(2) / sympy.pi * sympy.asin(cosine)
    step = Step(
        "signs of many samples",
        "Signs of a batch of which many samples count: Adam's form",
        "While D is well below B, |g_i|^2 is its mean B G/K. Then signs are Adam's closure, v = G/(K B), with sqrt(2/pi) in the "
        "drift and the arcsine in the noise: exponents 2/5 and 1/6. It ends where a batch holds one sample of the boundary "
        "layer, D of order m B.",
        (Equation("A", readable(A)), Equation(r"\frac{dD}{d\,\mathrm{step}}", dD), Equation(r"1-\rho", noise)),
        ("gaussian", "online", "symmetry", "large batch"),
    )
    return step, dD, noise


@dataclass(frozen=True)
class Hardest:
    """Late: sigma and h D; sigma (K - 1) of large batches to leading order in 1/B, by the density's bend at zero."""

    drift: sympy.Expr
    hold: sympy.Expr
    large: sympy.Expr


def hardest() -> tuple[Step, Hardest]:
    """One sample is the step: Stein on sgn(delta) B (1 - F)^(B - 1); integrals by parts decide what large batches do."""
    r = sympy.Symbol("r", positive=True)
    survival = sympy.Function("S")(r)
    f = sympy.Symbol("f", positive=True)
    chosen = batch * survival ** (batch - 1)
    regular = sympy.simplify(sympy.diff(chosen, r).subs(sympy.diff(survival, r), -f))
    pair = sympy.simplify(-regular / (batch * (batch - 1) * f * survival ** (batch - 2)))
    if pair != 1:
        raise InputError("hardest", expected="B (B - 1) f S^(B - 2)", got=str(regular), remedy="check the choice")
    # E[lam_i phi(delta)] = E phi': the jump of the sign at delta = 0, density m/K there, minus J.
    row = 2 * batch * MEAN_TOP / K - TIES
    drift = sympy.simplify(K * row) / (K - 1)
    hold = K * TIES / (K - 1)
    # Large B: r = x/(B f_0); f = f_0 + f_2 r^2/2, S = 1 - f_0 r - f_2 r^3/6, to the order 1/B of J.
    small, x = sympy.symbols("epsilon x", positive=True)
    gap = x * small / FLAT
    density = FLAT + BEND * gap**2 / 2
    log_survival = sympy.series(sympy.log(1 - FLAT * gap - BEND * gap**3 / 6), small, 0, 5).removeO()
    weight = sympy.series(
        density**2 * (1 - small) / small**2 * small / FLAT * sympy.exp(sympy.expand((1 / small - 2) * log_survival + x)),
        small, 0, 2,
    ).removeO()  # fmt: skip
    J = sympy.integrate(sympy.expand(weight * sympy.exp(-x)), (x, 0, sympy.oo))
    # 2 B m/K = B f_0: both sides of the boundary.
    large = sympy.simplify(K * (FLAT / small - J)).subs(small, 1 / batch)
    step = Step(
        "hardest sample",
        "Late, the hardest sample of a batch is the step",
        "log|g_bi| = -D r_bi, r_i = |delta_i|, delta_i = lam*_i - max_(j != i) lam*_j: as D grows past B the sample with the "
        "smallest r_bi outweighs the rest, and w_i = sgn(delta_i) lam_i of it. With f and F of r, a sample is chosen with "
        "weight B (1 - F)^(B - 1). Stein's identity in lam*_i: the sign jumps at delta = 0, where f is 2 m/K, and the choice "
        "falls with r, J = B (B - 1) int f^2 (1 - F)^(B - 2) dr. In lam_perp the sign does not move: h D is the choice alone. "
        "B = 1 has J = 0: the sign of one sample's gradient does not know the student, and the rule is Hebb's. For large B the "
        "two terms of sigma cancel to the order shown, f_2 = f''(0): sigma < 0 wherever the density of delta_i bends upwards at "
        "the boundary, from K = 7 on. Signs then drive D back: it stops at a D_0 of order B with sigma(D_0) = 0.",
        (
            Equation(r"\sigma", drift),
            Equation("hD", hold),
            Equation(r"\sigma_{B=1}", drift.subs({TIES: 0, batch: 1})),
            Equation(r"(K-1)\sigma,\ B\to\infty", large),
        ),
        ("symmetry", "single samples"),
    )
    return step, Hardest(drift, hold, large)


@dataclass(frozen=True)
class UnitLaws:
    """Signs at a rate ~ t^-g: spread growing (g < 1/2), vanishing (g > 1/2), and D at rest (sigma < 0); exponents by name."""

    growing: Balance
    vanishing: Balance
    stopped: Balance
    exponents: dict[str, sympy.Expr]
    floor: sympy.Expr


def laws(unit: Unit, found: Hardest) -> tuple[Step, UnitLaws]:
    """0 and 1/2 at a constant rate; g and 1 - g under a schedule; g/2 of the error where D stops."""
    drift, held = sympy.symbols("sigma_0 q_0", positive=True)
    rate = RATE * TIME**-POWER
    noise = sympy.Symbol("a", positive=True)  # d (1 - rho)
    flow = {LATE: unit.gain * rate * drift, SPREAD: -2 * unit.gain * rate * held * SPREAD / LATE + rate**2 * noise}
    half = sympy.Rational(1, 2)
    (growing,) = [
        b for b in dominant_balances(flow, TIME, assume=(POWER < half,), growth={SPREAD: "growing"}) if not b.free
    ]
    vanishing = [
        b for b in dominant_balances(flow, TIME, assume=(POWER > half, POWER < 1), growth={SPREAD: "vanishing"})
        if not b.free
    ][0]  # fmt: skip
    stop = {SPREAD: -2 * unit.gain * rate * held * SPREAD + rate**2 * noise}
    stopped = [b for b in dominant_balances(stop, TIME, assume=(POWER < 1,)) if not b.free][0]
    exponents = {
        "growing": -growing.exponent(WIDE_LOSS), "growing error": -growing.exponent(ERROR),
        "vanishing": -vanishing.exponent(LOSS), "vanishing error": -vanishing.exponent(ERROR),
        "stopped error": -stopped.exponent(sympy.sqrt(SPREAD)),
    }  # fmt: skip
    # B = 1, constant rate: L -> m Delta/(2 D), no contraction.
    one = {SIGMA: found.drift.subs({TIES: 0, batch: 1}), RHO: 1 - 4 / K, HOLD: 0, decay: 0}
    floor = sympy.simplify(MEAN_TOP / 2 * (unit.flow[1].subs(one) / unit.flow[0].subs(one)))
    step = Step(
        "laws of signs",
        "Signs: no third; a floor of the loss and 1/2 of the error, or a stop",
        "Where sigma > 0, D grows as the sum of the rates and contraction and noise of Delta have the same power: D ~ "
        "alpha^(1-g), Delta ~ alpha^(1-2g), while it grows (g < 1/2) the loss is m Delta/(2 D), later kappa/D. So at a constant "
        "rate the loss ends at a floor proportional to the rate, at g = 1/2 it falls as alpha^(-1/2) up to a logarithm, faster "
        "than any SGD schedule of that kind, and the error has 1/2 at every such g. With B = 1 there is no contraction: for "
        "g > 1/2 Delta stays and loss and error both fall as 1 - g; Delta/D^2 >= d (1 - rho) pi/(2 sigma^2 alpha) for every "
        "schedule (Cauchy-Schwarz), and a constant rate has it. Where sigma < 0, D stops: the loss has a floor "
        "that no schedule moves, the error falls as sqrt(rate).",
        (
            Equation(r"g<1/2:\ -\frac{d\log L}{d\log\alpha}", exponents["growing"]),
            Equation(r"g<1/2:\ -\frac{d\log\mathrm{error}}{d\log\alpha}", exponents["growing error"]),
            Equation(r"\text{if}", conditions(growing)),
            Equation(r"g>1/2:\ -\frac{d\log L}{d\log\alpha}", exponents["vanishing"]),
            Equation(r"g>1/2:\ -\frac{d\log\mathrm{error}}{d\log\alpha}", exponents["vanishing error"]),
            Equation(r"\text{if}", conditions(vanishing)),
            Equation(r"\sigma<0:\ -\frac{d\log\mathrm{error}}{d\log\alpha}", exponents["stopped error"]),
            Equation(r"L_{\infty,\,B=1,\,g=0}", floor),
        ),
        ("symmetry", "single samples"),
    )
    return step, UnitLaws(growing, vanishing, stopped, exponents, floor)


def rows(found: UnitLaws) -> tuple[Escape, ...]:
    """What signs and Muon make of the law once D is above the number of samples in a step."""
    e = found.exponents
    return (
        Escape("sign, or Muon on two classes, rate ~ alpha^-g, g < 1/2", e["growing"], e["growing error"], found.growing,
               "sigma > 0; a floor at g = 0"),
        Escape("the same, g > 1/2", e["vanishing"], e["vanishing error"], found.vanishing, "sigma > 0"),
        Escape("sign, sigma < 0, rate ~ alpha^-g", None, e["stopped error"], found.stopped, "D stops: the loss has a floor"),
    )  # fmt: skip


@dataclass(frozen=True)
class Whitened:
    """Muon while many samples count: v of P v = M M^T, (dD, dDelta); two classes without memory: (dD, dDelta) of any batch."""

    drift: sympy.Expr
    second: sympy.Expr
    flow: tuple[sympy.Expr, sympy.Expr]
    pair: tuple[sympy.Expr, sympy.Expr]


def muon(closure: Closure, forms: Normalised, unit: Unit) -> tuple[Step, Whitened]:
    """M M^T is a multiple of P: Muon is a normalised step; with K = 2 it has rank one, any batch, as signs have."""
    norm = sympy.Symbol("v", positive=True)
    mean_square = DRIFT**2 + (BETA * closure.response.subs(K, OTHERS + 1)) ** 2 * DELTA
    fluctuation = DIMENSION * BETA**2 * SECOND_MOMENT / OTHERS - mean_square
    second = sympy.expand(mean_square + STRENGTH * PER_BATCH * fluctuation)
    # The same number as |ghat|^2 of a batch B/nu over tr P = K - 1.
    rest = sympy.simplify(second - (forms.square / OTHERS).subs(PER_BATCH, STRENGTH * PER_BATCH))
    if sympy.expand(rest) != 0:
        raise InputError("muon", expected="|ghat|^2/(K - 1) at batch B/nu", got=str(rest), remedy="check v")
    plain = closure.dDelta.subs(decay, 0)
    contraction, noise = (sympy.expand(plain).coeff(eta, n) for n in (1, 2))
    step_size = RATE * GAIN / sympy.sqrt(norm)
    flow = (
        step_size * DRIFT - decay * D,
        step_size * contraction + (RATE * LENGTH) ** 2 / norm * DIMENSION * noise - 2 * decay * DELTA,
    )
    # K = 2: ghat = (1, -1) x gamma^T, of Frobenius norm sqrt(2 d) |gamma|: a step l q/sqrt(2 d) of w, |step|^2 = l^2 q^2.
    length = RATE * GAIN / sympy.sqrt(2 * DIMENSION)
    pair = (
        length * SIGMA - decay * D,
        -2 * length * BETA * HOLD * DELTA + 2 * DIMENSION * length**2 - 2 * decay * DELTA,
    )
    step = Step(
        "muon",
        "Muon on the class rows: a normalised step",
        "W <- W - l (M M^T)^(-1/2) M, M the average of ghat, nu its squared weights (kappa = (1 - mu)/(1 + mu), or with "
        "Nesterov). The rows of M sum to zero and the classes are alike: while M holds many samples of the boundary layer, B/nu "
        "well above D, M M^T = v P, and (M M^T)^(-1/2) = P/sqrt(v). So Muon divides as the normalised step with a batch B/nu "
        "does, its length is l sqrt(K - 1), and its noise adds up as that of the gradients, whose weights in M sum to one: "
        "exponents 2/5 and 1/6. Newton and Schulz's polynomial Q is taken at the singular values s of M/|M|, "
        "1/sqrt(K - 1) up to their scatter, of order sqrt(K/d) as M is Gaussian noise: q = E[sum Q(s) s |M|]/((K - 1) sqrt d) "
        "(Stein's identity: how O answers a small mean), q_2^2 = E[sum Q(s)^2]/(K - 1). Beyond, the singular values of M differ by "
        "powers of e^D and a step takes the directions of single samples. With two classes M has rank one, "
        "and with mu = 0 any batch is that of signs, without their sqrt(2/pi): sigma and h of B samples, the last lines.",
        (
            Equation("v", readable(second)),
            Equation(r"\frac{dD}{d\,\mathrm{step}}", flow[0]),
            Equation(r"\frac{d\Delta}{d\,\mathrm{step}}", readable(flow[1])),
            Equation(r"K=2:\ \frac{dD}{d\,\mathrm{step}}", pair[0]),
            Equation(r"K=2:\ \frac{d\Delta}{d\,\mathrm{step}}", pair[1]),
        ),
        ("gaussian", "online", "dimension", "symmetry", "large batch"),
    )
    return step, Whitened(forms.drift, second, flow, pair)


def write(unit: Unit, found: Hardest, whitened: Whitened) -> tuple[Output, ...]:
    """`sign_flow`, `muon_flow`, `muon_pair_flow`, `hardest_drift`, `hardest_contraction`."""
    norm = sympy.Symbol("v", positive=True)
    names = {
        **CODE, SIGMA: "sigma", HOLD: "h", RHO: "rho", TIES: "J", STRENGTH: "strength", GAIN: "gain", LENGTH: "length",
        DRIFT: "drift", norm: "v", batch: "batch",
    }  # fmt: skip
    centred = sympy.Symbol("centred", positive=True)
    names[centred] = "centred"
    sign = tuple(e.subs(unit.centred, centred) for e in unit.flow)
    per_step = "per step, logits W x with `dimension` inputs, W* W*^T = I;"
    own = (
        "`sigma`, `h`, at (beta D, beta^2 Delta) of `odescale.expectations.unit_steps`. `weight_decay` w: W <- W - w W."
    )
    tail = ("weight_decay: Array | float = 0.0", "beta: Array | float = 1.0")

    def plain(flow: tuple[sympy.Expr, sympy.Expr]) -> list[str]:
        return [f"dD = {to_jax(flow[0], names)}", f"dDelta = {to_jax(flow[1], names)}", "return dD, dDelta"]

    outputs = {
        "sign_flow": function_source(
            "sign_flow",
            ("D: Array", "Delta: Array", "sigma: Array", "h: Array", "centred: Array", "learning_rate: Array",
             "dimension: Array", *tail),
            f"(dD, dDelta) of W <- W - l sgn(ghat) {per_step} `centred` = 1 - rho.\n\n{own}",
            plain(sign), "tuple[Array, Array]",
        ),
        "muon_pair_flow": function_source(
            "muon_pair_flow",
            ("D: Array", "Delta: Array", "sigma: Array", "h: Array", "learning_rate: Array", "gain: Array",
             "dimension: Array", *tail),
            f"(dD, dDelta) of Muon without momentum on two classes {per_step} `gain` its polynomial at 1.\n\n{own}",
            plain(whitened.pair), "tuple[Array, Array]",
        ),
        "muon_flow": function_source(
            "muon_flow",
            (*STATE, "learning_rate: Array", "gain: Array", "length: Array", "strength: Array", "batch: Array", "classes: Array",
             "dimension: Array", *OPTIONS),
            f"(dD, dDelta) of Muon {per_step} `gain` q, `length` q_2\n"
            "of its polynomial.\n\n"
            f"{ABOUT}\n`strength` nu: squared weights of its average; B/nu well above D.",
            [
                *EXCESS_LINES,
                f"drift = {to_jax(whitened.drift, names)}",
                f"v = {to_jax(whitened.second, names)}",
                *plain(whitened.flow),
            ],
            "tuple[Array, Array]",
        ),
        "hardest_drift": function_source(
            "hardest_drift", ("m: Array", "J: Array", "batch: Array", "classes: Array"),
            "sigma as D -> infinity: the hardest of `batch` samples is the step; `J` of two that tie.",
            [f"return {to_jax(found.drift, names)}"], "Array",
        ),
        "hardest_contraction": function_source(
            "hardest_contraction", ("J: Array", "classes: Array"),
            "h D as D -> infinity.", [f"return {to_jax(found.hold, names)}"], "Array",
        ),
    }  # fmt: skip
    return tuple(Output(name, source) for name, source in outputs.items())
