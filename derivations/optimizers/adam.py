"""Adam and AdamW: the memory of the second moment, the preconditioner, the basis it works in, and rows that only write."""

from __future__ import annotations

from dataclasses import dataclass

import sympy
from sympy import S

from derivations.optimizers.notation import (
    BETA1,
    BETA2,
    EPS,
    FORGETTING,
    KEPT,
    KURTOSIS,
    MEAN_SQUARE,
    NOISE,
    RATE,
    SECOND,
    TARGET,
    TIME,
)
from derivations.optimizers.step import Coordinates, tidy
from odescale.errors import InputError
from odescale.symbolic.gaussian import Gaussian, covariance_symbols
from odescale.symbolic.record import Equation, Step
from odescale.symbolic.sgd import MEAN, batch, lam, trace
from odescale.symbolic.sgd import SECOND as SINGLE

SLOPE, OTHER = sympy.Symbol("G", real=True), sympy.Symbol("V_jj", positive=True)
EXCESS = sympy.Symbol("X", nonnegative=True)
"""E[mean |g|^2]/(E[mean] E|g|^2) - 1 over batches."""
WEIGHT = sympy.Symbol("lambda_c", positive=True)
"""sum_k O_ck^2 lam_k: variance of coordinate c of a token, seen in the optimiser's own basis."""


@dataclass(frozen=True)
class SecondMoment:
    """T that v relaxes to, the rate g2 of that, and the moment of a step from what was kept before it."""

    target: sympy.Expr
    forgetting: sympy.Expr
    held: sympy.Expr
    bias: sympy.Expr


def second_moment(coordinates: Coordinates) -> tuple[Step, SecondMoment]:
    """v <- beta2 v + (1 - beta2) N g^^2 as a row of the ODE."""
    # The factor (B - 1)/B of the mean is among the terms left out in `coordinates`.
    raw = coordinates.leading + MEAN[0] * MEAN[1] / trace
    target = raw.subs({SINGLE: lam * NOISE}).subs(MEAN[0] * MEAN[1], MEAN_SQUARE)
    count = sympy.Symbol("n", integer=True, nonnegative=True)
    moment = sympy.Function("v")
    # v_n of a constant target, n steps after v_0 = u.
    course = sympy.rsolve(
        moment(count + 1) - BETA2 * moment(count) - (1 - BETA2) * TARGET, moment(count), {moment(0): KEPT}
    )
    course = sympy.expand(course)
    (forgetting,) = sympy.solve(
        sympy.Eq(sympy.log(BETA2) * trace, -FORGETTING), FORGETTING, check=False, simplify=False
    )
    decayed = sympy.exp(-FORGETTING * TIME)
    expected = TARGET + (KEPT - TARGET) * decayed
    at = course.subs(count, trace * TIME) - expected.subs(FORGETTING, forgetting)
    if sympy.simplify(sympy.expand(at)) != 0:
        raise InputError("v", expected=str(expected), got=str(course), remedy="check the rate of forgetting")
    kept = KEPT + (1 - BETA2) * (TARGET - KEPT)
    # From zero, with the step's own gradient: T (1 - beta2 exp(-g2 t)), exactly Adam's 1 - beta2^n of step n = N t + 1.
    bias = 1 - BETA2 * decayed
    gap = kept.subs(KEPT, TARGET * (1 - decayed)) - TARGET * bias
    if sympy.simplify(gap) != 0:
        raise InputError("bias", expected="T (1 - beta2 exp(-g2 t))", got=str(gap), remedy="check the step's own share")
    step = Step(
        "second moment", "Adam's second moment and its memory",
        "v is N times the average of squares, T what it relaxes to: the second moment of a coordinate (step 1), noise and the "
        "mean squared. From v <- beta2 v + (1 - beta2) T after N t steps at a constant T follows the exponential with g2 = -N "
        "log beta2: dv/dt = g2 (T - v). g2 t is of order one at beta2 = .999 and N = 1000: v lags and the lag is seen. The "
        "step at t divides by a moment that holds its own gradient, third line; from zero that is T (1 - beta2 exp(-g2 t)), "
        "and the bias correction takes away the bracket: at a constant T the first step already sees v = T.",
        (
            Equation("T", target),
            Equation(FORGETTING, forgetting),
            Equation(r"\hat v", kept / bias),
        ),
        ("online", "dimension", "next order"),
    )  # fmt: skip
    return step, SecondMoment(target, forgetting, kept / bias, bias)


def preconditioner() -> tuple[Step, sympy.Expr]:
    """P_k, and what the eigenbasis makes of drift and noise."""
    move = sympy.Symbol("m_i", real=True)
    raw = RATE / sympy.sqrt(trace) * move / (sympy.sqrt(SECOND / trace) + EPS)
    entry = RATE / (sympy.sqrt(SECOND) + EPS * sympy.sqrt(trace))
    if sympy.simplify(sympy.radsimp(raw - entry * move)) != 0:
        raise InputError("P", expected=str(entry), got=str(raw), remedy="check the width in the step")
    silent = entry.subs(EPS, 0)
    own, others = (silent.subs(SECOND, lam * v / batch) for v in (NOISE, OTHER))
    drift = sympy.simplify(own * lam * SLOPE)
    cross = sympy.Symbol("V_ij", real=True)
    noise = sympy.simplify(own * others * lam * cross / batch)
    if noise.has(lam):
        raise InputError("noise", expected="no eigenvalue", got=str(noise), remedy="check P")
    step = Step(
        "adam", "Adam in the eigenbasis: rates of sqrt(lambda)",
        "The step a/sqrt(N) makes a the number that stays fixed: W moves by P_k m with P_k = diag_i of the first line, e = "
        "eps sqrt(N) beside it. Where the coordinates of the weights are the eigenvectors of Sigma and v = lambda V_ii/B (no "
        "lag, eps = 0), the drift of the mode is minus the second line: sqrt(lambda_k) and not lambda_k; and in the noise "
        "lambda cancels, third line: every mode is heated alike. AdamW: decay passes by P_k; w = a sqrt(N) wd for optax's wd.",
        (
            Equation("P_{k,ii}", entry),
            Equation(r"P_{k,ii}\,\lambda_kG_{ij}", drift.subs(SLOPE, sympy.Symbol("G_ij"))),
            Equation(r"\lambda_k(P_kVP_k)_{ij}/B", noise),
        ),
        ("dimension", "aligned", "frozen"),
    )  # fmt: skip
    return step, entry


def mean_in_v() -> tuple[Step, sympy.Expr]:
    """What the mean's own square does to drift and noise at first order; returns the moment that the drift sees."""
    u, A = sympy.symbols("u A")
    entries = Gaussian((u, A), sympy.ImmutableMatrix(covariance_symbols((u, A))))
    order = sympy.Symbol("h", positive=True)
    moment = SECOND + order * u**2  # v without the mean, h = 1/N

    def seen(power: sympy.Expr, weight: sympy.Expr) -> sympy.Expr:
        """x of (v + h x)^power with the first order of E[moment^power weight]/E[weight]."""
        slope = sympy.diff(moment**power, order).subs(order, 0)
        average = entries.expect(sympy.expand(slope * weight)) / entries.expect(weight)
        return sympy.simplify(average / (power * SECOND ** (power - 1)))

    square = entries.expect(u**2)
    drift, noise = (sympy.simplify(x / square) for x in (seen(-S.Half, u * A), seen(-S.One, S.One)))
    if noise != 1:
        raise InputError("noise", expected="the mean square once", got=str(noise), remedy="check the weight")
    moved = SECOND + (drift - noise) * MEAN_SQUARE / trace
    step = Step(
        "mean in v", "The mean's square counts three times in the drift",
        "The 1/N term of v is the square of the coordinate's own mean, u_k^2/N, not its average over the mode: where the mean "
        "is large the step is small. With Gaussian entries the overlaps move by E[u A/sqrt(v + u^2/N)], to first order E[u A] "
        "over the root of v + first line times m/N, m = E[u^2] = (h q h^T)_ii; the noise, a mean of 1/(v + u^2/N), sees m/N "
        "once. So with v the moment that holds m/N once, the drift divides by the root of the second line (m of now for the "
        "remembered one, a difference of the order of the lag). The term is B/N beside one: at N = 300 and B = 16 the loss of "
        "the linear model at t = 1.5 (a = .12, beta = (.9, .99), fallen 8 times) is 27 per cent above an ODE without the "
        "term, 19 with m/N once, 6 with three times in the drift; at B = 4 5, 4 and 2 per cent.",
        (Equation(r"x_{\mathrm{drift}}/m", drift), Equation(r"v_{\mathrm{drift}}", moved)),
        ("online", "dimension", "next order", "gaussian rows"),
    )  # fmt: skip
    return step, moved


def own_noise() -> tuple[Step, sympy.Expr, sympy.Expr]:
    """(step, drift, noise): factors of P and of P V P^T from the fluctuation of v, first order in 1 - beta2."""
    order, spread, own = sympy.symbols("h E_2 s_o", positive=True)
    j = sympy.Symbol("x")
    # v = (1 - beta2) sum_j beta2^j xi_j^2/E[xi^2] = 1 + y with E[y^2] = spread.
    y = sympy.Symbol("y", real=True)

    def averaged(function: sympy.Expr) -> sympy.Expr:
        flat = sympy.series(function, y, 0, 3).removeO()
        return flat.coeff(y, 0) + flat.coeff(y, 2) * spread

    geometric = 1 / (1 - j)
    spread_of = sympy.factor((1 - BETA2) ** 2 * geometric.subs(j, BETA2**2) * (KURTOSIS - 1))
    # Shift all gradients by a common mean: d/dmean of (mean + xi_j) f(v) is f + 2 (1 - beta2) beta2^j xi_j^2 f'; beta1 weighs j.
    share = (1 - BETA1) * (1 - BETA2) * geometric.subs(j, BETA1 * BETA2)
    power = (1 + y) ** -S.Half
    # Where the mean of a batch's gradient given its fields goes with |g|^2, so does its weight in v, in both places: X.
    drift = averaged(power) + own * (2 * (1 + EXCESS) + EXCESS) * sympy.diff(power, y).subs(y, 0)
    # The noise is uncorrelated between gradients, as v is even in them: E[xi_j^2/v], v seen through the weights of xi_j.
    noise = averaged(1 / (1 + y)) + own * (KURTOSIS - 1) * sympy.diff(1 / (1 + y), y).subs(y, 0)
    numbers = {spread: spread_of, own: share}
    leading = [
        sympy.diff(x.subs(numbers).subs({BETA2: 1 - order, KURTOSIS: 3, EXCESS: 0}), order).subs(order, 0)
        for x in (drift, noise)
    ]
    found = [sympy.simplify(x) for x in leading]
    step = Step(
        "noise of v", "What the fluctuation of v costs",
        "v is an average of 1/(1 - beta2) squares and fluctuates: E_2 is its relative variance, with k_4 = E[g^^4]/E[g^^2]^2, "
        "3 for a Gaussian coordinate. And it holds the gradients that it divides, each with (1 - beta2) beta2^j; s_o is that "
        "weight averaged over the gradients in m. To second order in the fluctuation the drift P h has the factor f_1, and "
        "the noise P V P^T has f_2 where fluctuations of v are slow beside beta_1. X is the excess of |g|^2 in batches "
        "weighed by their mean gradient: 2/B in the linear model, where k_4 = 3 (1 + 2/B). At large B X = 0, k_4 = 3, and the "
        "first orders in 1 - beta2 are the last two lines: .06 and .1 per cent at beta2 = .999, .6 and 1 per cent at .99. The "
        "ODE leaves them out.",
        (
            Equation("E_2", tidy(spread_of)),
            Equation("s_o", share),
            Equation("f_1", drift),
            Equation("f_2", noise),
            Equation(r"\left.df_1/d(1-\beta_2)\right|_{B\to\infty}", found[0]),
            Equation(r"\left.df_2/d(1-\beta_2)\right|_{B\to\infty}", found[1]),
        ),
        ("online", "dimension"),
    )  # fmt: skip
    return step, drift.subs(numbers), noise.subs(numbers)


def rotated(entry: sympy.Expr) -> tuple[Step, sympy.Expr]:
    """v where the coordinates of the weights are not eigenvectors; returns the rate of a mode."""
    spectrum = sympy.Function("lambda")
    k, size = sympy.symbols("k d", integer=True, positive=True)
    weight = sympy.Sum(spectrum(k), (k, 1, size)) / size
    v = WEIGHT * NOISE / batch
    rate = sympy.simplify(entry.subs(EPS, 0).subs(SECOND, v) * lam)
    step = Step(
        "rotated", "Adam in any other basis: nothing gained over SGD",
        "If coordinate c of the weights is sum_k O_ck of the eigenmodes, the noise of its gradient is sum_k O_ck^2 lambda_k "
        "V_ii/B: v is an average over the spectrum. For a rotation that knows nothing of Sigma every c has the same average "
        "lambda_c, first line, up to a relative fluctuation of sqrt(2/d_eff - 2/d), d_eff = (tr Sigma)^2/tr Sigma^2. (The "
        "mean's 1/N term averages alike, to sum_k w_k h_k q_k h_k^T/N.) P is then one number for all modes and commutes with "
        "O: mode k moves at the second line times G, lambda_k as under SGD at the learning rate a sqrt(B/(lambda_c V)). "
        "Adam's gain is a learning rate that follows 1/sqrt(V), which any schedule can have.",
        (Equation(r"\lambda_c", weight), Equation(r"P\lambda_k", rate)),
        ("rotated", "dimension", "frozen"),
    )  # fmt: skip
    return step, rate


def written() -> Step:
    """Rows that only write: the step is sqrt(N) too large, and no function of the overlaps."""
    size, first, second = sympy.symbols("Lambda_o A_1 A_2", real=True)
    # g^ = Lambda A_k/N (one read row A); v = N g^^2 without any noise of order 1/sqrt N.
    gradient = size * first / trace
    move = sympy.simplify(-RATE / sympy.sqrt(trace) * gradient / sympy.sqrt(gradient**2))
    drift = sympy.simplify(trace * move)
    overlap = sympy.simplify(drift * first)
    step = Step(
        "written rows", "Rows that only write are outside",
        "An output row reads no token: V_oo = 0, and the k-th entry of its gradient is sum_j Lambda_oj A_jk/N, of order 1/N "
        "with a fluctuation of the same order. Its second moment is of the order of the mean squared: Adam's step is "
        "a/sqrt(N) in a direction that stays, and N of them make the first line (one row A_1 is read, Lambda fluctuates "
        "little): sqrt(N) too large beside reading rows. And the overlap with A_1 moves by the second line, -a sqrt(N) "
        "<|A_1k|> times a sign: sqrt(2/pi) of the root of <A_1k^2> for Gaussian entries, 1 of it for entries +-1: overlaps do "
        "not know the difference. With several rows v_k = N sum_jl E[Lambda_oj Lambda_ol] A_jk A_lk/N^2 is a number per "
        "coordinate, and the move a mean of ratios of entries. Even from a Gaussian start the entries do not stay Gaussian, "
        "since the move is no linear function of them. So these rows do not close under Adam, nor under sign; SGD and Muon, "
        "whose K is a sum over all coordinates, do.",
        (
            Equation(r"N\,\Delta W_{ok}", drift),
            Equation(r"N\,A_{1k}\Delta W_{ok}", overlap),
        ),
        ("dimension",),
    )  # fmt: skip
    return step
