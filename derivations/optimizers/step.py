"""From the update of the weights to a preconditioner per mode, with momentum: for every optimiser that divides an average.

W <- W - P^ (s g^ + (1 - s) m) - (w/N) W,    m <- beta m + (1 - beta) g^,    U = N m
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy
from sympy import S

from derivations.optimizers.notation import (
    BETA,
    BETA1,
    BETA2,
    DAMPING,
    PRECONDITIONER,
    SHARE,
    TIME,
)
from odescale.errors import InputError
from odescale.symbolic.record import Equation, Step
from odescale.symbolic.sgd import (
    MEAN,
    SECOND,
    G,
    H,
    V,
    batch,
    batch_average,
    decay,
    eta,
    overlap_flow,
    trace,
)

SUMS = sympy.symbols("X_i X_j")
ROWS = {"W": sympy.symbols("W_i W_j"), "U": sympy.symbols("U_i U_j")}
PAIRS = (("W", "W"), ("W", "U"), ("U", "U"))
ENTRY = sympy.Symbol("P", positive=True)
"""The preconditioner of one row: several rows follow by linearity."""


@dataclass(frozen=True)
class Coordinates:
    """N E[g^] and N E[g^ g^] of a coordinate of a batch's mean gradient, the latter with its limit and its 1/N term."""

    mean: sympy.Expr
    second: sympy.Expr
    leading: sympy.Expr
    correction: sympy.Expr


@dataclass(frozen=True)
class Average:
    """What moves the rows, s g^_n + (1 - s) m_(n-1), as weights on the past gradients and as the ODE carries it.

    - `weight`: of the gradient j >= 1 steps ago. `total`, `delay` in steps, `noise` sum of squared weights.
    - `damping`: the gamma of the velocities that gives `delay`; `carried`: squared weights of velocities in the ODE.
    - `bias`: what divides an average that began with zero velocities. `presents`: s of momentum and of Nesterov's.
    """

    weight: sympy.Expr
    total: sympy.Expr
    delay: sympy.Expr
    noise: sympy.Expr
    damping: sympy.Expr
    carried: sympy.Expr
    bias: sympy.Expr
    presents: tuple[sympy.Expr, sympy.Expr]


def tidy(expression: sympy.Expr) -> sympy.Expr:
    """A quotient in 1 - beta and 1 - s, which sympy would turn round."""
    small = {symbol: sympy.Dummy(symbol.name, positive=True) for symbol in (BETA, SHARE, BETA1, BETA2)}
    above, below = sympy.fraction(sympy.factor(expression.subs({symbol: 1 - x for symbol, x in small.items()})))
    if below.subs(dict.fromkeys(small.values(), S.Half)).is_negative:
        above, below = sympy.expand(-above), sympy.expand(-below)
    return (sympy.factor(above) / below).subs({x: 1 - symbol for symbol, x in small.items()})


def at_large_width(expression: sympy.Expr) -> sympy.Expr:
    """N to infinity of a polynomial in 1/N and, where they cancel, N."""
    small = sympy.Dummy("h", positive=True)
    limit = sympy.expand(expression.subs(trace, 1 / small)).subs(small, 0)
    if limit.has(S.ComplexInfinity, S.NaN):
        raise InputError("expression", expected="a limit", got=str(expression), remedy="check the orders in N")
    return limit


def coordinates() -> tuple[Step, Coordinates]:
    """Mean and second moment of one coordinate of the gradient of a batch."""
    mean = sympy.expand(trace * batch_average(SUMS[0] / batch, SUMS))
    second = sympy.expand(trace * batch_average(SUMS[0] * SUMS[1] / batch**2, SUMS))
    leading = at_large_width(second)
    correction = sympy.factor(at_large_width(trace * (second - leading)))
    ratio = leading * trace / mean**2
    step = Step(
        "coordinates", "A coordinate of the gradient is noise",
        "g^_i, the k-th entry of the mean gradient of a batch of B in row i, has N E[gamma_i] = u_i = (h_k A)_i with h_k = "
        "lambda_k G + H, and N E[gamma_i gamma_j] = v_ij = lambda_k V_ij to leading order (both from `mean_field`). Its mean "
        "is of order 1/N, its variance too: the variance is N times the mean squared (third line). So the noise alone sets "
        "every second moment as N grows, and the noise is a function of the overlaps. The next order (second line) is the "
        "mean squared, averaged over the entries of the mode u_i u_j -> (h_k q_k h_k^T)_ij. Its factor (B - 1)/B is left out "
        "below: what it removes is as small as the 1/N terms of v_ij themselves, which do not grow with B.",
        (
            Equation(r"N\,\mathrm{E}[\hat g_i\hat g_j]", second),
            Equation(r"N\left(N\,\mathrm{E}[\hat g_i\hat g_j]-\lim\right)", correction),
            Equation(r"\mathrm{Var}\,\hat g_i/\mathrm{E}[\hat g_i]^2", ratio.subs({SECOND: sympy.Symbol("v_ii")})),
        ),
        ("online", "dimension", "next order"),
    )  # fmt: skip
    return step, Coordinates(mean, second, leading, correction)


def preconditioned() -> tuple[Step, sympy.MatrixExpr, sympy.MatrixExpr]:
    """(step, dq/dt, M): SGD's flow for the gradient P gamma, whose moments are P u and P v P^T."""
    plain = overlap_flow()
    change = {G: PRECONDITIONER * G, H: PRECONDITIONER * H, V: PRECONDITIONER * V * PRECONDITIONER.T}

    def lifted(expression: sympy.MatrixExpr) -> sympy.MatrixExpr:
        return sympy.expand(expression.subs(eta, 1).subs(change).doit()).doit()

    flow, rate = lifted(plain.matrix), lifted(plain.rate)
    step = Step(
        "preconditioned", "A preconditioner per mode",
        "W <- W - P_k g^ - (w/N) W on the entries of mode k. P_k mixes the rows (Muon), rescales them (Adam), or is eta "
        "(SGD); it depends on averages over the past or over all coordinates, so that it is a number beside the present g^. "
        "Then P_k g^ is itself a gradient with N E = P_k u and N E[..] = P_k v P_k^T, and the flow of SGD holds with P_k G, "
        "P_k H and P_k V P_k^T: every mode moves under matrices of its own. Decay is decoupled: it does not pass through P_k, "
        "and follows the schedule s(t) where the update multiplies it by the learning rate: w = N step wd.",
        (Equation("M_k", rate), Equation(r"\frac{dq_k}{dt}", flow)),
        ("online", "dimension", "frozen"),
    )  # fmt: skip
    return step, flow, rate


def momentum_increments(share: sympy.Expr) -> dict[tuple[str, str], sympy.Expr]:
    """N E[Delta(a_i b_j)] at finite N of rows W and velocities U = N m, `share` of the present gradient in the move."""
    after = {}
    for place in (0, 1):
        W, U, X = ROWS["W"][place], ROWS["U"][place], SUMS[place]
        after["U", place] = BETA * U + (1 - BETA) * trace * X / batch
        after["W", place] = W - ENTRY * (share * X / batch + (1 - share) * U / trace) - decay / trace * W
    return {
        (a, b): sympy.expand(
            trace * batch_average(sympy.expand(after[a, 0] * after[b, 1] - ROWS[a][0] * ROWS[b][1]), SUMS)
        )
        for a, b in PAIRS
    }


def momentum_form(share: sympy.Expr) -> dict[tuple[str, str], sympy.Expr]:
    """The same as M q + q M^T + L v L^T/B: load L = -P s on W and gamma on U, K = -P (1 - s) and -gamma on U, -w on W."""
    load = {"W": -ENTRY * share, "U": DAMPING}
    slopes = {}
    for place in (0, 1):
        W, U = ROWS["W"][place], ROWS["U"][place]
        slopes["W", place] = load["W"] * MEAN[place] - ENTRY * (1 - share) * U - decay * W
        slopes["U", place] = load["U"] * MEAN[place] - DAMPING * U
    return {
        (a, b): sympy.expand(slopes[a, 0] * ROWS[b][1] + ROWS[a][0] * slopes[b, 1] + load[a] * load[b] * SECOND / batch)
        for a, b in PAIRS
    }


def momentum() -> tuple[Step, dict[tuple[str, str], sympy.Expr]]:
    """Velocities as rows: the increments at finite N, and that the form has their limit at beta = 1 - gamma/N."""
    increments = momentum_increments(SHARE)
    form = momentum_form(SHARE)
    for present in (1 - BETA, 1 - BETA**2):
        for pair in PAIRS:
            gap = (increments[pair] - form[pair]).subs(SHARE, present).subs(BETA, 1 - DAMPING / trace)
            if at_large_width(gap) != 0:
                raise InputError(
                    "form", expected="the limit of the increments", got=str(gap), remedy="check the orders in N"
                )
    step = Step(
        "momentum", "Momentum: velocities are rows",
        "The rows move by P (s g^ + (1 - s) m) with the average m of the steps before: s = 1 - beta is momentum as an average "
        "(Adam, Muon; heavy ball u <- mu u + g^ is the same with P/(1 - mu)), s = 1 - beta^2 Nesterov's beta m + (1 - beta) "
        "g^ after the average, s = 1 - beta_1 with beta = beta_2 is Lion's. U = N m has entries of order one in the mean. The "
        "products are multiplied out and averaged at finite N, and for beta = 1 - gamma/N, N to infinity, all three go over "
        "into the lines below, for both momenta: load L = -P s on W, gamma on U; K = -P (1 - s) from U to W, -gamma on U; "
        "noise lambda L V L^T/B. In this limit s itself is of order 1/N; the lines keep it because of what follows. Checked "
        "by single steps against the products at finite N.",
        tuple(Equation(rf"\frac{{d}}{{dt}}\langle {a}_i{b}_j\rangle", form[a, b]) for a, b in PAIRS),
        ("online", "dimension", "frozen"),
    )  # fmt: skip
    return step, increments


def average() -> tuple[Step, Average]:
    """Weights of the past gradients, and the velocities that keep total and delay."""
    j, x = sympy.Symbol("j", integer=True, positive=True), sympy.Symbol("x")
    first = (1 - SHARE) * (1 - BETA)
    weight = first * BETA ** (j - 1)
    # sum_j x^(j-1), and by its derivative sum_j j x^(j-1).
    geometric = 1 / (1 - x)
    total = sympy.cancel(SHARE + first * geometric.subs(x, BETA))
    delay = sympy.factor(first * sympy.diff(x * geometric, x).subs(x, BETA))
    noise = SHARE**2 + tidy(first**2 * geometric.subs(x, BETA**2))
    # In the ODE: s at once, and (1 - s) gamma exp(-gamma y).
    lag = sympy.Symbol("y", positive=True)
    memory = (1 - SHARE) * DAMPING * sympy.exp(-DAMPING * lag)
    carried_delay = sympy.integrate(lag * memory, (lag, 0, sympy.oo))
    damping = sympy.cancel(carried_delay * DAMPING * trace / delay)  # carried_delay = delay/N
    carried = sympy.integrate(memory**2, (lag, 0, sympy.oo)) / trace
    bias = 1 - (1 - SHARE) * sympy.exp(-DAMPING * TIME)
    gap = sympy.expand(bias - SHARE - sympy.integrate(memory, (lag, 0, TIME)))
    if gap != 0:
        raise InputError("bias", expected=str(bias), got=str(gap), remedy="check the memory")
    presents = (1 - BETA, 1 - BETA**2)
    kappa = tidy(noise.subs(SHARE, presents[0])), noise.subs(SHARE, presents[1])
    found = Average(weight, total, tidy(delay), noise, tidy(damping), tidy(carried), bias, presents)
    step = Step(
        "average", "Share, delay and noise of the average",
        "As weights on past gradients the move is s on the present one and the first line on that j steps ago. They add up to "
        "one: at long times every momentum has the drift P h and the noise P V P^T of none. Their mean delay is the second "
        "line, beta/(1 - beta) steps for momentum. The ODE weighs s at once and (1 - s) gamma exp(-gamma y): the same delay "
        "asks for the gamma of the third line, whatever s. So M = -P (s h + (1 - s) U) has total and delay right at every N "
        "and every beta, 1 - beta of order 1/N or not. The squared weights are the noise of the average in units of lambda "
        "V/(B N): the fourth line, with kappa = (1 - mu)/(1 + mu) for momentum and the sixth line for Nesterov; velocities in "
        "the ODE have (1 - s)^2 (1 - beta)/2 instead, which lacks a share (1 - beta)/2 of the average's own and the square of "
        "s. Where gradients are as large as the moments, in Muon, the difference is added. Velocities that start at zero "
        "weigh the last line in all: what Adam divides by.",
        (
            Equation("w_j", weight),
            Equation(r"\sum_j j w_j", found.delay),
            Equation(DAMPING, found.damping),
            Equation(r"s^2+\sum_j w_j^2", found.noise),
            Equation(r"\left.s^2+\sum_jw_j^2\right|_{s=1-\beta}", kappa[0]),
            Equation(r"\left.s^2+\sum_jw_j^2\right|_{s=1-\beta^2}", kappa[1]),
            Equation(r"\frac1N\int(1-s)^2\gamma^2e^{-2\gamma y}dy", tidy(found.carried.subs(DAMPING, damping))),
            Equation(r"s+(1-s)\int_0^t\gamma e^{-\gamma y}dy", bias),
        ),
        ("online",),
    )  # fmt: skip
    if total != S.One:
        raise InputError("weights", expected="a sum of one", got=str(total), remedy="check the average")
    return step, found
