"""Finite context, order 1/T: one layer with value = identity, any number of heads and readouts.

The softmax average of T tokens is a ratio of two empirical means. Expand it around T = infinity, average over the
context by exponential tilts, then over the query token by quadratic tilts `E[p exp(kappa s s')]`. Drift: gradient of the
corrected loss. Noise: the query token with fluctuating functionals, and the context tokens, whose T slopes of size 1/T
add up to order 1/T.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from odescale.symbolic.gaussian import Gaussian, covariance_symbols
from odescale.symbolic.record import Equation, Step

# Two heads g, h with s = phi_q of head g and t = phi_q of head h at the query token; v, w the fields they average,
# k, l their keys. Capital letters are covariances of fields.
s, t = sympy.symbols("s t")
v, k, w, l = sympy.symbols("v k w l")  # noqa: E741
COVARIANCE = covariance_symbols((v, k, w, l))
PAIR = Gaussian((v, k, w, l), sympy.ImmutableMatrix(COVARIANCE))
vk, vw, vl, kk, kw, kl = (COVARIANCE[i, j] for i, j in ((0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)))


@dataclass(frozen=True)
class Average:
    """The softmax average m = m_0 + (1/T) `bias` + fluctuation, Cov(m_g, m_h) = `kernel`/T; `weights` = T sum_s a_s b_s.

    `shift_v`, `spread`: mean of w, and of v w, around the averages of their heads under the product of both weights.
    """

    bias: sympy.Expr
    kernel: sympy.Expr
    weights: sympy.Expr
    shift: sympy.Expr
    spread: sympy.Expr


def softmax_average(scale: sympy.Expr | int) -> tuple[Step, Average]:
    """Mean and covariance of the softmax average to order 1/T, by expanding the ratio of empirical means."""
    c = sympy.sympify(scale)
    up, down = sympy.exp(c * s * k), sympy.exp(c * t * l)
    numerator, denominator = PAIR.expect(v * up), PAIR.expect(up)
    mean = sympy.simplify(numerator / denominator)
    # m = (N + e n)/(D + e d), e = T^(-1/2), n and d the normalised fluctuations of the two empirical means.
    n, d, e, top, bottom = sympy.symbols("n d epsilon N_0 D_0")
    ratio = sympy.series((top + e * n) / (bottom + e * d), e, 0, 3).removeO()
    second = sympy.Poly(sympy.expand(ratio.coeff(e, 2)), n, d)
    moments = {
        (1, 1): PAIR.expect(v * up**2) - numerator * denominator,
        (0, 2): PAIR.expect(up**2) - denominator**2,
    }
    bias = sum(
        (
            coefficient.subs({top: numerator, bottom: denominator}) * moments[power]
            for power, coefficient in second.terms()
        ),
        sympy.S.Zero,
    )
    bias = sympy.simplify(sympy.expand(bias))
    other_mean = sympy.simplify(PAIR.expect(w * down) / PAIR.expect(down))
    norm = denominator * PAIR.expect(down)

    def together(polynomial: sympy.Expr) -> sympy.Expr:
        return sympy.factor_terms(
            sympy.simplify(sympy.expand(PAIR.expect(sympy.expand(polynomial) * up * down) / norm))
        )

    kernel = together((v - mean) * (w - other_mean))
    average = Average(bias, kernel, together(sympy.S.One), together(w - other_mean), kernel)
    step = Step(
        "ratio",
        "Finite context: the softmax average to order 1/T",
        "With T tokens the average is a ratio of empirical means (N_0 + n/sqrt(T))/(D_0 + d/sqrt(T)). Expand to second "
        "order in T^(-1/2) and average over the independent tokens; every moment is an exponential tilt. s and t "
        "are the "
        "query fields of two heads, v and w the fields averaged, k and l their keys. First line: what 1/T adds to the "
        "mean; second: T times the covariance of the two averages.",
        (
            Equation(r"T\,(\mathrm{E}[m_g]-m_g^\infty)", average.bias),
            Equation(r"T\,\mathrm{Cov}(m_g, m_h)", average.kernel),
        ),
        ("gaussian", "independent", "finite context"),
    )
    return step, average


# The fields of the query token that enter: residuals a, b of two outputs, s, t of two heads; M their tilted covariance.
a, b = sympy.symbols("a b")
M_SYMBOLS = covariance_symbols((a, b, s, t), "M")
TILTED = Gaussian((a, b, s, t), sympy.ImmutableMatrix(M_SYMBOLS))
x, y, z, kappa, root = sympy.symbols("x y z kappa n")


def strip(expression: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    """The polynomial in front of `exp(exponent)`."""
    polynomial = sympy.expand(sympy.simplify(expression * sympy.exp(-exponent)))
    assert not polynomial.has(sympy.exp), polynomial
    return polynomial


@dataclass(frozen=True)
class QueryMoments:
    """Averages over the query token; polynomials in the tilted covariance M times n unless a closed form is named."""

    weight: sympy.Expr
    tilt: tuple[sympy.Expr, sympy.Expr, sympy.Expr]
    pair: sympy.Expr
    product: sympy.Expr
    polynomials: dict[str, sympy.Expr]


def query_average(average: Average, scale: sympy.Expr | int) -> tuple[Step, QueryMoments]:
    """Expectations over the query token by quadratic tilts with Omega = kappa (e_s e_t^T + e_t e_s^T)."""
    c = sympy.sympify(scale)
    one = c**2 * s**2 * kk
    both = c**2 * s * t * kl
    query = Gaussian((s, t), sympy.ImmutableMatrix([[x, z], [z, y]]))
    weight, tilted = query.tilt(kappa * s * t)
    weight = sympy.factor(sympy.simplify(weight**-2)) ** sympy.Rational(-1, 2)
    # Response of the covariance of any two fields: M_uw = C_uw + sum W_st (C_us C_tw + C_ut C_sw) + ...
    omega = sympy.Matrix([[0, kappa], [kappa, 0]])
    block = sympy.Matrix([[x, z], [z, y]])
    determinant = sympy.expand((sympy.eye(2) - block * omega).det())
    response = (omega * (sympy.eye(2) - block * omega).adjugate() / determinant).applyfunc(sympy.factor)
    kernel = strip(average.kernel, both)
    pair = (weight * query_polynomial(kernel, tilted.covariance)).subs(kl, kappa / c**2)
    residual = sympy.Symbol("r")
    single = Gaussian((a, s), sympy.ImmutableMatrix([[sympy.Symbol("C_aa"), residual], [residual, x]]))
    product = sympy.simplify(single.expect(a * average.bias))
    expect = {
        "bias": TILTED.expect(a * strip(average.bias, one)),
        "bias_slope": TILTED.expect(sympy.expand(a * b * strip(sympy.diff(average.bias, s), one))),
        "kernel": TILTED.expect(kernel),
        "kernel_slope": TILTED.expect(sympy.expand(a * strip(sympy.diff(average.kernel, t), both))),
        "kernel_slopes": TILTED.expect(sympy.expand(a * b * strip(sympy.diff(average.kernel, s, t), both))),
        "read_read": TILTED.expect(sympy.expand(a * b * strip(average.weights, both))),
        "read_key": TILTED.expect(sympy.expand(a * b * c * t * strip(average.shift, both))),
        "key_key": TILTED.expect(sympy.expand(a * b * c**2 * s * t * strip(average.spread, both))),
    }
    step = Step(
        "query",
        "Averages over the query token: quadratic tilts",
        "Left to do are Gaussian averages of polynomials times exp(kappa s t), kappa = C_kl. A quadratic tilt "
        "changes the "
        "covariance: M = (1 - C Omega)^-1 C with weight n = det(1 - C Omega)^(-1/2); x, y, z are the variances "
        "of s and t "
        "and their covariance. They exist for (1 - kappa z)^2 > kappa^2 x y, which for one head reads 2 C_kk C_qq < 1: "
        "outside, the expansion diverges. First line: n; second: the mean of T Cov(m_g, m_h); third: E[a bias] with "
        "r = Cov(a, s), a the residual of an output at infinite context.",
        (
            Equation("n", weight),
            Equation(r"T\,\mathrm{E}\,\mathrm{Cov}(m_g,m_h)", pair),
            Equation(r"T\,\mathrm{E}[a\,(\mathrm{E}[m_g]-m_g^\infty)]", product),
        ),
        ("gaussian", "finite context"),
    )
    moments = QueryMoments(weight, (response[0, 0], response[0, 1], response[1, 1]), pair, product, expect)
    return step, moments


def query_polynomial(polynomial: sympy.Expr, covariance: sympy.Matrix) -> sympy.Expr:
    """Isserlis for a polynomial of s, t with the covariance given."""
    return Gaussian((s, t), sympy.ImmutableMatrix(covariance.applyfunc(sympy.simplify))).expect(polynomial)


def corrected_theory(moments: QueryMoments) -> Step:
    """Loss, drift and noise put together."""
    return Step(
        "finite",
        "Loss, drift and noise with the terms of order 1/T",
        "The loss below sums over outputs i and over heads g, h, those "
        "of the student with sigma = +1, of the teacher with -1, Delta_i = b_i.phi at infinite context. Drift: "
        "G = S (dL_T/dC + transpose), which holds every context token's share by the chain rule. Noise: to order 1/T, "
        "V = S E[g g^T] S of the query token, Delta_i and the functionals a_i (through the slope of m in s) "
        "fluctuating "
        "together, plus sum over context tokens of E[g_s g_s^T], with slopes Delta_i a_s in a readout's field and "
        "c Delta_i s a_s (v_s - m) in a key's. The last lines give the context part for one head and one output, "
        "Delta = a = b, "
        "s = t: readout-readout, readout-key, key-key.",
        (
            Equation(
                "L_T",
                r"L + \frac{1}{T}\sum_i\Big[\sum_h \sigma_h\, "
                r"T\,\mathrm{E}[\Delta_i\,(\mathrm{E}[m_{ih}]-m_{ih}^\infty)]"
                r" + \tfrac12\sum_{gh}\sigma_g\sigma_h\, T\,\mathrm{E}\,\mathrm{Cov}(m_{ig},m_{ih})\Big]",
            ),
        )
        + tuple(
            Equation(label, (root * moments.polynomials[name]))
            for label, name in (
                (r"T\,V_{rr}", "read_read"),
                (r"T\,V_{rk}", "read_key"),
                (r"T\,V_{kk}", "key_key"),
            )
        ),
        ("gaussian", "finite context", "square loss"),
    )
