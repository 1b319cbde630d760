"""Muon: K of the averaged gradients of a block of rows, as the closure or the velocities give it; Newton-Schulz; Shampoo."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from derivations.optimizers.notation import BETA, DAMPING, RATE, SHARE, TIME
from derivations.optimizers.step import Average, tidy
from odescale.errors import InputError
from odescale.symbolic.record import Equation, Step
from odescale.symbolic.sgd import batch, lam, trace

STRENGTH, NOISE = sympy.symbols("nu V", positive=True)
"""Squared weights of the average, and V for one row."""
MEANS, GRAM = sympy.symbols("m r", positive=True)
"""sum_k w_k h_k q_k h_k^T, and the same overlaps of s h + (1 - s) U."""


@dataclass(frozen=True)
class Gram:
    """K, N times the Gram matrix of the average, entry by entry.

    - `closed`: from V and the mean gradients. `carried`: from the overlaps r of carried averages, which hold some noise.
    - `steady`: what multiplies N V/B in `carried` at rest; `missing`: from zero velocities, at t.
    """

    closed: sympy.Expr
    carried: sympy.Expr
    steady: sympy.Expr
    missing: sympy.Expr


def gram(found: Average) -> tuple[Step, Gram]:
    """K = nu N V/B + means, and the noise that carried velocities lack."""
    # Sum over coordinates: noise nu lam_k V/(B N) each, sum_k lam_k = N; means h_k q_k h_k^T/N^2, (1/N) sum_k = sum_k w_k.
    eigenvalues = trace
    closed = sympy.expand(trace * (STRENGTH * NOISE / (batch * trace) * eigenvalues + MEANS / trace))
    # P g^ = a (m m^T)^-1/2 m with m m^T = K/N.
    whitened = sympy.simplify(RATE / sympy.sqrt(sympy.Symbol("K", positive=True) / trace))
    steady = found.noise - found.carried.subs(DAMPING, found.damping)
    excess = tidy(steady - SHARE**2)
    # From zero velocities both sums have run for t: beta^(2 N t) is exp(-2 gamma t) to the order in 1 - beta that is kept.
    grown = 1 - sympy.exp(-2 * DAMPING * TIME)
    missing = SHARE**2 + grown * excess
    if missing.subs(TIME, 0) != SHARE**2:
        raise InputError("K", expected="s^2 at the first step", got=str(missing), remedy="check the transient")
    carried = GRAM + missing * trace * NOISE / batch
    step = Step(
        "muon", "Muon: a block of rows whitened by K",
        "Muon moves the rows by a (m m^T)^-1/2 m, m the average of the rows' gradients, p x d. m m^T is a sum over all "
        "coordinates: it concentrates, relative fluctuation 1/sqrt(d_eff), on noise and means: K = N m m^T is the first line, "
        "with nu the squared weights of the average (kappa = (1 - mu)/(1 + mu), or kappa mu^4 + (1 - mu^2)^2 with Nesterov). "
        "So P = the second line, K^-1/2 as a matrix: rows are whitened by their overlaps, the same in every mode; a is the "
        "length that a row moves in a step. The means are a 1/N term beside nu N V/B; at nu = .05 they are not small at N = "
        "400. With velocities carried, the mean of the average is s h + (1 - s) U, overlaps r: they hold the noise (1 - s)^2 "
        "(1 - mu)/2, and the third line adds what is missing: s^2 from the present gradient, and, grown with the velocities "
        "from zero, the excess of the sum over steps over the integral. K is s^2 N V/B and h's means at the first step. At "
        "rest, r of U for r of s h + (1 - s) U and all that is missing without its growth is the same noise; it takes K for "
        "too small while t < 1/gamma, by .25 per cent of the loss of the linear model at N = 400, B = 4, mu = .95 with "
        "Nesterov.",
        (
            Equation("K", closed),
            Equation("P", whitened),
            Equation("K", carried),
        ),
        ("online", "dimension", "frozen"),
    )  # fmt: skip
    return step, Gram(closed, carried, SHARE**2 + excess, missing)


def few_batches() -> tuple[Step, sympy.Expr, sympy.Expr]:
    """(step, drift, noise): factors of one row's P when the memory holds few batches; second order in their fluctuation."""
    x, y = sympy.Symbol("x"), sympy.Symbol("y", real=True)
    spread = sympy.Symbol("X", positive=True)
    geometric = 1 / (1 - x)
    # Shares of the batches in K, w_j^2 over their sum, are (1 - mu^2) mu^(2 j) for momentum; in the average (1 - mu) mu^j.
    square = (1 - BETA**2) / (1 + BETA**2)
    if sympy.cancel(square - (1 - BETA**2) ** 2 * geometric.subs(x, BETA**4)) != 0:
        raise InputError("square", expected=str(square), got="another sum", remedy="check the shares")
    joint = (1 - BETA) * (1 - BETA**2) * geometric.subs(x, BETA**3)
    # K at n and n + m correlates by mu^(2 m): sum over n, n' of w w' mu^(2 |n - n'|), both orders of n and n'.
    same = (1 - BETA) ** 2 * geometric.subs(x, BETA**2)
    windows = sympy.factor(same * (2 * geometric.subs(x, BETA**3) - 1))
    root = (1 + y) ** -sympy.S.Half
    slope, curve = (sympy.diff(root, y, n).subs(y, 0) for n in (1, 2))
    # A = sum_n w K_n^(-1/2): its mean, its square, and how it goes with the |g|^2 of its own batch.
    mean = curve / 2 * square * spread
    drift = 1 + mean + slope * joint * spread
    noise = 1 + 2 * mean + slope**2 * square * windows * spread + 2 * slope * joint * spread
    step = Step(
        "few batches", "Where K does not concentrate: few sequences in the memory",
        "The sum over coordinates takes away what the fields leave open, but not the fields: with S_j the matrix g_ij of "
        "batch j, K_n/N = sum_j w_j^2 S_(n-j) and the means, of the batches in memory, which fluctuates at any N. A gradient "
        "moves its rows over all steps that remember it, by A_j = sum_n w_(n-j) P(K_n): the drift is E[A_j D_j], D_j = sum_b "
        "sum_t g_bt phi_bt^T/B of the batch, the noise E[A_j S_j A_j^T]. For one row without means, X = Var |g|^2/(E|g|^2)^2 "
        "(2/B in the linear model), Var K/K^2 is X times the first line; to second order the drift has the factor f_1 (linear "
        "model, where D goes with |g|^2) and the noise f_2, in which r is the correlation of K along the memory of a "
        "gradient. At mu = .95 and B = 4 they are 1.001 and 1.004; at mu = 0 K is the batch's own: Muon on one row is then "
        "the gradient over its norm, weight 1/|g| in every average as in the sign, sqrt(2/pi) = .80 of the drift at B = 1.",
        (
            Equation(r"\sum_j(w_j^2/\nu)^2", square),
            Equation("r", windows),
            Equation("f_1", drift),
            Equation("f_2", noise.subs(windows, sympy.Symbol("r"))),
        ),
        ("online", "dimension"),
    )  # fmt: skip
    return step, drift.subs(spread, 2 / batch), noise.subs(spread, 2 / batch)


def newton_schulz() -> tuple[Step, tuple[sympy.Expr, ...], sympy.Expr]:
    """The iteration as a polynomial of the Gram matrix, and the quintic of third order."""
    a, b, c, value = sympy.symbols("c_1 c_3 c_5 sigma", real=True)
    rows, size = sympy.symbols("p d", integer=True, positive=True)
    X = sympy.MatrixSymbol("X", rows, size)
    A = X * X.T
    iterate = a * X + b * A * X + c * A * A * X
    factor = a * sympy.Identity(rows) + b * A + c * A * A
    if sympy.expand((iterate - (factor * X)).doit()).doit() != sympy.ZeroMatrix(rows, size):
        raise InputError(
            "iterate", expected="a polynomial of X X^T times X", got=str(iterate), remedy="check the order"
        )
    scalar = a * value + b * value**3 + c * value**5
    at_one = [sympy.diff(scalar, value, n).subs(value, 1) for n in range(3)]
    exact = sympy.solve([at_one[0] - 1, at_one[1], at_one[2]], [a, b, c])
    third = sympy.diff(scalar.subs(exact), value, 3).subs(value, 1)
    step = Step(
        "newton schulz", "Newton and Schulz's iteration needs the b x b Gram matrix only",
        "Each iteration X <- c_1 X + c_3 (X X^T) X + c_5 (X X^T)^2 X is a polynomial f of A = X X^T times X, exactly and at "
        "every d: Q <- f(A) Q, A <- f(A) A f(A), b x b. It starts at A = K/tr K, since |X|_F^2 = tr X X^T, and Q/sqrt(tr K) "
        "takes the place of K^-1/2. Singular values move by the first line. The quintic with fixed point 1, no first and no "
        "second derivative there is the second line: the error of a value goes with its third power, factor third line; small "
        "values grow by c_1 per iteration.",
        (
            Equation(r"\sigma", scalar),
            Equation("(c_1,c_3,c_5)", sympy.Tuple(*(exact[x] for x in (a, b, c)))),
            Equation(r"f'''(1)/6", third / 6),
        ),
        ("frozen",),
    )  # fmt: skip
    return step, tuple(exact[x] for x in (a, b, c)), scalar


def shampoo() -> tuple[Step, sympy.Expr, sympy.Expr]:
    """The left factor closes; the right one only with memory x rows >> d. Returns (P of both factors, the error of the right)."""
    left, total, memory, size, rows = sympy.symbols("V_L V_tr n d p", positive=True)
    # L = sum over coordinates of lam_k V/(B N); R_kk = sum over rows of the same.
    L, R = left / batch, lam * total / (batch * trace)
    quarter = sympy.Rational(-1, 4)
    both = sympy.powsimp(L**quarter * R**quarter / trace**-quarter)
    # Marchenko-Pastur of ratio y: mean 1, variance y.
    ratio, x = sympy.symbols("y x", positive=True)
    series = sympy.series((1 + x) ** quarter, x, 0, 3).removeO()
    error = series.coeff(x, 2) * ratio
    step = Step(
        "shampoo", "Shampoo: the left factor closes, the right one needs memory",
        "L = <g^ g^^T>, p x p, is a sum over coordinates as in Muon: V/B (and means/N). One-sided Shampoo closes: P = step "
        "(V/B)^-1/4, or with the power -1/2, Muon's P of a long memory. R = <g^^T g^> is d x d: on average diagonal with the "
        "first line, so that both factors give P = step N^1/4 times the second line, rates lambda^(3/4), in place of which "
        "L^-1/2 (x) R^-1/2 has sqrt(lambda) as Adam. But n steps of memory, n = (1 + beta)/(1 - beta), hold n p vectors in d "
        "dimensions: R has the spectrum of Marchenko and Pastur, ratio y = d/(n p), about that diagonal, and R^-1/4 is off by "
        "the third line at first order. At fixed beta y grows with d: the right factor closes only for n p >> d, a memory of "
        "many units of t.",
        (
            Equation("R_{kk}", R),
            Equation(r"L^{-1/4}R_{kk}^{-1/4}N^{-1/4}", both),
            Equation(r"\mathrm{E}\,R^{-1/4}/(\mathrm{E}R)^{-1/4}-1", error),
        ),
        ("dimension", "aligned", "frozen"),
    )  # fmt: skip
    return step, both, error
