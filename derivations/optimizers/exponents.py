"""Power-law spectra under Muon, Adam against SGD with label noise, and what Adam's second moment remembers of a falling loss."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from derivations.optimizers.laws import mode_slope
from derivations.optimizers.notation import (
    ALPHA,
    AMPLITUDE,
    BETA2,
    INTRINSIC,
    KURTOSIS,
    RATE,
    ROOT,
    SECOND,
    TIME,
    VARIANCE,
)
from odescale.errors import InputError
from odescale.symbolic.record import Equation, Step
from odescale.symbolic.sgd import batch, eta, lam, trace

SQUARES = sympy.Symbol("nu", positive=True)
"""Squared weights of the average of gradients."""
LABELS = sympy.Symbol("sigma", positive=True)
"""Root of the variance of the labels."""
FLOOR = sympy.Symbol("E_f", positive=True)
"""Excess mean square error at rest."""
PLAIN = sympy.Symbol("A_1", positive=True)
"""Amplitude of SGD's bias, 2L = A_1 (eta t)^-alpha."""


@dataclass(frozen=True)
class MuonLaws:
    """P; the tau at which noise and mean are alike in K; exponents in t while the noise, or the mean, rules; floor of V."""

    entry: sympy.Expr
    crossing: sympy.Expr
    of_noise: sympy.Expr
    of_mean: sympy.Expr
    floor: sympy.Expr


@dataclass(frozen=True)
class NoisyRace:
    """Rate of a mode under Adam over SGD's at one floor; the time at which their biases cross, and the bias there."""

    ratio: sympy.Expr
    crossing: sympy.Expr
    level: sympy.Expr


@dataclass(frozen=True)
class Memory:
    """What a step adds to Cov(v, phi^2): from its own gradient, and from the fluctuation of v before it."""

    own: sympy.Expr
    held: sympy.Expr


def muon_power_law() -> tuple[Step, MuonLaws]:
    """Rows of independent targets: P a number, the same in every mode."""
    mean = sympy.Symbol("m", positive=True)  # (1/N) sum_k lam_k^2 x_k
    entry = RATE / sympy.sqrt(SQUARES * VARIANCE / batch + mean / trace)
    bias = AMPLITUDE * INTRINSIC**-ALPHA
    # dx_k/dtau = -2 lam_k x_k summed with lam_k: dV/dtau = -2 m.
    drop = sympy.simplify(-sympy.diff(bias, INTRINSIC) / 2)
    if sympy.simplify(drop - ALPHA * bias / (2 * INTRINSIC)) != 0:
        raise InputError("m", expected="alpha V/(2 tau)", got=str(drop), remedy="check the bias")
    share = sympy.simplify((drop / trace) / (SQUARES * bias / batch))
    (crossing,) = sympy.solve(sympy.Eq(share, 1), INTRINSIC)

    def in_time(inside: sympy.Expr) -> sympy.Expr:
        # t = int dtau/P goes as a power of tau, P as 1/root(inside).
        power = sympy.simplify(INTRINSIC * sympy.diff(sympy.log(sympy.sqrt(inside)), INTRINSIC)) + 1
        return sympy.simplify(ALPHA / power)

    of_noise, of_mean = in_time(bias), in_time(drop)
    # At rest, step by step: phi' = phi - r f', f' = mu f + (1 - mu)(phi + noise of variance V/B + phi^2/B), r = P lam/N.
    pp, ff, pf, r, mu = sympy.symbols("E_1 E_2 E_3 r mu", real=True)
    cross = mu * pf + (1 - mu) * pp
    fed = mu**2 * ff + 2 * mu * (1 - mu) * pf + (1 - mu) ** 2 * (pp * (1 + 1 / batch) + VARIANCE / batch)
    (rest,) = sympy.solve([fed - ff, r**2 * ff - 2 * r * cross, cross - r * ff - pf], [pp, ff, pf], dict=True)
    strength = (1 - mu) / (1 + mu)
    held = sympy.factor(sympy.limit(rest[ff], r, 0))
    if sympy.simplify(held - strength * VARIANCE / batch) != 0:
        raise InputError("K", expected="the noise alone at rest", got=str(held), remedy="check the moments")
    per_mode = sympy.simplify(sympy.limit(rest[pp] / r, r, 0))  # of lam x, with sum r = P
    P = sympy.Symbol("P", positive=True)
    (edge,) = sympy.solve(P * per_mode - VARIANCE, P)
    (floor,) = sympy.solve(sympy.Eq(entry.subs(mean, 0) ** 2, edge**2), VARIANCE)
    step = Step(
        "muon exponents", "Muon on a power-law spectrum is SGD in its own time",
        "K sums over coordinates: it knows the rows and no mode. For p rows of independent targets q_k = x_k 1, V = v 1 on "
        "average, and K is diagonal; rows of different sizes have different V_ii, each its own clock. P is the first line, "
        "the same in every mode: in tau = int P dt the flow is SGD's, and the bias goes as A tau^-alpha, alpha = (c - 1)/b, "
        "in whatever basis: the update commutes with rotations of the tokens. Since dv/dtau = -2 m without heat, the mean's "
        "part of K is the second line of the noise's, and falls like 1/tau: noise rules from the third line on. Before, dt = "
        "dtau/P gives the exponent in t of the fifth line (alpha < 1, else the loss ends: a gradient over its norm goes a "
        "finite way), after it the fourth (alpha < 2), that of rotated Adam. At a constant a the rate P grows as the loss "
        "falls until it is what SGD can bear, P = 2 B: v rests at the last line, whatever the spectrum. (There the mean is "
        "no part of K: the weights hold the noise that the average remembers, and their covariance takes the mean's square "
        "away.) Fluctuations of K, of order 1/d_eff, change the clock by a factor: with b > 1 d_eff is finite at any d, "
        "exponents stay. With d modes the power law ends at tau = 1/lambda_d, as under SGD.",
        (
            Equation("P", entry),
            Equation(r"\frac{m/N}{\nu V/B}", share),
            Equation(r"\tau_x", crossing),
            Equation(r"\left.-d\log L/d\log t\right|_{noise}", of_noise),
            Equation(r"\left.-d\log L/d\log t\right|_{mean}", of_mean),
            Equation("V_{rest}", floor),
        ),
        ("linear", "dense", "no lag"),
    )  # fmt: skip
    return step, MuonLaws(entry, crossing, of_noise, of_mean, floor)


def noisy_race(silent: sympy.Expr) -> tuple[Step, NoisyRace]:
    """Label noise sets V = sigma^2: Adam is SGD with another spectrum, and both rest on a floor linear in the rate."""
    decay, drive = (x.subs(VARIANCE, LABELS**2) for x in mode_slope(silent))
    plain_decay, plain_drive = 2 * eta * lam, eta**2 * lam * LABELS**2 / batch

    def rest(loss: sympy.Expr, heat: sympy.Expr) -> sympy.Expr:
        weighted = sympy.simplify(heat / loss * lam)
        power = sympy.simplify(lam * sympy.diff(sympy.log(weighted), lam))
        return sympy.simplify(weighted / lam**power) * {sympy.S.Half: ROOT, sympy.S.One: sympy.S.One}[power]

    (a,) = sympy.solve(rest(decay, drive) - FLOOR, RATE)
    (slow,) = sympy.solve(rest(plain_decay, plain_drive) - FLOOR, eta)
    ratio = sympy.simplify(decay.subs(RATE, a) / plain_decay.subs(eta, slow))
    pace = sympy.simplify(decay.subs(RATE, a) / (2 * sympy.sqrt(lam)))  # of tau
    sgd, adam = PLAIN * (slow * TIME) ** -ALPHA, AMPLITUDE * (pace * TIME) ** (-2 * ALPHA)
    crossing = (AMPLITUDE / PLAIN) ** (1 / ALPHA) * slow / pace**2
    gap = sympy.expand_log(sympy.log((sgd / adam).subs(TIME, crossing)), force=True)
    if sympy.simplify(sympy.expand(gap)) != 0:
        raise InputError("crossing", expected="equal biases", got=str(gap), remedy="check the powers")
    level = PLAIN**2 / AMPLITUDE * ROOT ** (-2 * ALPHA)
    off = sympy.expand_log(sympy.log(sgd.subs(TIME, crossing) / level), force=True)
    if sympy.simplify(sympy.expand(off)) != 0:
        raise InputError("level", expected=str(level), got=str(off), remedy="check the floors")
    step = Step(
        "race with noise", "With label noise both have a floor, and Adam is behind down to a loss that no rate changes",
        "With labels of variance sigma^2 beside which the excess is small, V = sigma^2: Adam at eps = 0 is a linear flow at "
        "rates a root(B lambda_k)/sigma, and its floor is linear in the rate as SGD's is: a Lambda sigma/(2 root B) and eta "
        "sigma^2/(2B) of the excess mean square error. At rates of one floor E_f a mode's rate under Adam is the first line "
        "times SGD's: slow modes, lambda_k < Lambda^-2, learn faster, the others more slowly. So Adam is behind until the "
        "loss is that of slow modes: biases cross at the second line, where they are the third, independent of floor, batch "
        "and noise. Which of the two is better for a floor is a question of whether the floor lies below that loss. In a "
        "rotated basis P knows no mode: the flow is SGD's with eta(t) = P(t), heat included, so that SGD with that schedule "
        "has the same loss at every time, with or without noise; nothing is gained. The same holds for Muon.",
        (
            Equation(r"\lambda_k^{Adam}/\lambda_k^{SGD}", ratio),
            Equation("t", sympy.simplify(crossing)),
            Equation("2L", level),
        ),
        ("linear", "aligned", "dense", "no lag"),
    )  # fmt: skip
    return step, NoisyRace(ratio, crossing, level)


def memory_of_v() -> tuple[Step, Memory]:
    """First order in the fluctuation of v, for a loss that falls within v's memory."""
    A, e, s, S, h = sympy.symbols("A e s S h", positive=True)  # s = E g^2, S = sum W^2, h the size of the fluctuation
    delta = sympy.Symbol("delta", real=True)
    spread = (KURTOSIS - 1) * S
    # phi'^2 = phi^2 - 2 A (1 - delta/2) phi g + A^2 (1 - delta) g^2; E[phi g] = lam e.
    moved = -2 * A * (1 - h * delta / 2) * lam * e + A**2 * (1 - h * delta) * s
    held = sympy.expand(sympy.diff(sympy.expand(moved), h) / delta) * spread  # times E delta^2
    # Cov(g^2, phi'^2): E[g^3 phi] = k_4 s lam e for a product of Gaussians, as E g^4 = k_4 s^2.
    cube, fourth = KURTOSIS * s * lam * e, KURTOSIS * s**2
    own = sympy.factor(-2 * A * (cube - s * lam * e) + A**2 * (fourth - s**2))
    gained = A**2 * s - 2 * A * lam * e
    if sympy.simplify(own - (KURTOSIS - 1) * s * gained) != 0:
        raise InputError("own", expected="what phi^2 gains", got=str(own), remedy="check the kurtosis")
    C = sympy.Symbol("C", real=True)
    v = SECOND
    change = BETA2 * (C * (1 - 2 * A * lam) + v * held) + (1 - BETA2) * own
    step = Step(
        "memory of v", "A loss that falls within v's memory: few squares rule v, and v goes with the weights",
        "For mode k of the linear model v = sum_j w_j g_j^2, w_j = (1 - beta_2) beta_2^j, holds its squares with the shares "
        "W_j = w_j E g_j^2/E v. In a steady state S = sum W^2 is (1 - beta_2)/2. After a fall v is what it remembers of the "
        "start, some tens of steps, and S is that number's inverse: it follows d/dn of U = sum w_j^2 (E g_j^2)^2, U <- "
        "beta_2^2 U + (1 - beta_2)^2 (E g^2)^2, S = U/v^2, and the weight of the present square is (1 - beta_2) E g^2/v. The "
        "drift has the factor 1 - (k_4 - 1)(W_0/2 - 3 S/8) - C/(2 v e), the noise 1 - (k_4 - 1)(W_0 - S) - R/(v_0 P), k_4 - 1 "
        "= 2 + 6/B: C = Cov(v, phi^2) starts from zero and moves by the first line: the gradient that phi gained from is in "
        "v, nothing where phi^2 is at rest; and where v is high phi falls less, second line. R, of the share 2/B of the "
        "fluctuation that the modes have in common (the residual's square) with the risk P, moves alike. Last, e_k is an "
        "average over runs: where phi^2 is high so are the squares, (1 + 2/B) 2 (e^2 - m^4) in C's source, m the mean of "
        "phi, and 1/B of it in R's: a 1/d_eff term, 1.1 per cent at d = 400, b = .5.",
        (
            Equation("C", change),
            Equation(r"\Delta C/v", held),
        ),
        ("linear", "aligned", "online"),
    )  # fmt: skip
    return step, Memory(own, held)
