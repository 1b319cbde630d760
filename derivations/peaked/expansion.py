"""Softmax as a race of exponential clocks: an exact form of loss and gradient without cancellation, and its late limit.

p_i is the probability that clock i, of rate exp(lam_i), rings first. With x the largest field and lambda the time of its clock
(rate scaled to one), the other clocks are independent given (x, lambda): every average over K classes is a (K-1)-th power.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from derivations.peaked.notation import DRIFT_CONSTANT, MEAN_TOP, SIZE, K
from odescale.errors import InputError
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Equation, Output, Step
from odescale.symbolic.scalar_writer import to_jax

CLOCK, GAP, SUM = sympy.symbols("lambda y S", positive=True)
FIELD, OTHER = sympy.symbols("x z", real=True)
PLACE = sympy.Symbol("n", integer=True, positive=True)
TERMS = 3


def density(x: sympy.Expr) -> sympy.Expr:
    """Standard normal density."""
    return sympy.exp(-(x**2) / 2) / sympy.sqrt(2 * sympy.pi)


def distribution(x: sympy.Expr) -> sympy.Expr:
    """Standard normal distribution function."""
    return (1 + sympy.erf(x / sympy.sqrt(2))) / 2


def race() -> Step:
    """Loss of the aligned student and its derivative in s, exact for every K."""
    # Under the integral by S, which vanishes at S = 0.
    inside = (sympy.exp(-CLOCK) - sympy.exp(-CLOCK * (1 + SUM))) / CLOCK
    by_sum = sympy.integrate(sympy.simplify(sympy.diff(inside, SUM)), (CLOCK, 0, sympy.oo))
    frullani = sympy.integrate(by_sum, (SUM, 0, SUM))
    if sympy.simplify(frullani - sympy.log(1 + SUM)) != 0:
        raise InputError("integral", expected="log(1 + S)", got=str(frullani), remedy="check Frullani's integral")
    # d/ds of A = int phi(z) exp(-lambda e^(-s (x - z))) dz, then z = x - y/s.
    inside = sympy.exp(-CLOCK * sympy.exp(-SIZE * (FIELD - OTHER)))
    slope = sympy.diff(inside, SIZE).subs(OTHER, FIELD - GAP / SIZE) / SIZE
    expected = CLOCK * GAP * sympy.exp(-GAP) * sympy.exp(-CLOCK * sympy.exp(-GAP)) / SIZE**2
    if sympy.simplify(slope - expected) != 0:
        raise InputError("slope", expected=str(expected), got=str(slope), remedy="check the substitution")
    return Step(
        "race",
        "Softmax as a race of exponential clocks",
        "F(s) = E log sum_i exp(s z_i), Phi = F', m = E max z. With the top field x, F(s) - s m = E log(1 + S), S = "
        "sum_j exp(-s (x - z_j)) over the other classes, and Frullani's integral (first line, by sympy) turns the logarithm of a "
        "sum into a product over classes. Each factor averages to A; z = x - y/s. Differentiating A under the integral (by "
        "sympy) gives m - Phi with full relative precision at any s and any K.",
        (
            Equation(r"\int_0^\infty\frac{e^{-\lambda}-e^{-\lambda(1+S)}}{\lambda}d\lambda", frullani),
            Equation(
                "A(\\lambda,x;s)",
                r"\int_0^\infty\phi(x-y/s)\,e^{-\lambda e^{-y}}\frac{dy}{s}"
                r"=\Phi_N(x)-\int_0^\infty\phi(x-y/s)\left(1-e^{-\lambda e^{-y}}\right)\frac{dy}{s}",
            ),
            Equation(
                r"F(s)-s\,m",
                r"K\int\phi(x)\,dx\int_0^\infty\frac{d\lambda}{\lambda}e^{-\lambda}\left[\Phi_N(x)^{K-1}-A^{K-1}\right]",
            ),
            Equation(
                r"\frac{\partial A}{\partial s}",
                r"\int_0^\infty\phi(x-y/s)\left[" + sympy.latex(expected) + r"\right]dy",
            ),
            Equation(
                r"s^2\left(m-\Phi(s)\right)",
                r"K(K-1)\int\phi(x)\,dx\int_0^\infty d\lambda\,e^{-\lambda}A^{K-2}"
                r"\int_0^\infty\phi(x-y/s)\,y\,e^{-y}e^{-\lambda e^{-y}}dy",
            ),
        ),
        ("symmetry",),
    )


@dataclass(frozen=True)
class Expansion:
    """c/m of Phi = m - c/s^2, and with it loss - s m = c/s; `gap`: m - s H of the aligned student."""

    ratio: sympy.Expr
    gap: sympy.Expr
    loss: sympy.Expr


def alternating(power: int) -> sympy.Expr:
    """sum_n (-1)^(n+1)/n^power."""
    return sympy.summation((-1) ** (PLACE + 1) / PLACE**power, (PLACE, 1, sympy.oo))


def top_gap() -> Step:
    """Density of the gap of the two largest fields at zero: m_K, by parts."""
    phi, cumulative = density(FIELD), distribution(FIELD)
    total = sympy.diff(phi * cumulative ** (K - 1), FIELD)
    parts = -FIELD * phi * cumulative ** (K - 1) + (K - 1) * phi**2 * cumulative ** (K - 2)
    if sympy.simplify(total - parts) != 0:
        raise InputError("derivative", expected=str(parts), got=str(total), remedy="check the density")
    ends = [sympy.limit(phi, FIELD, end) for end in (sympy.oo, -sympy.oo)]
    if any(end != 0 for end in ends):
        raise InputError("density", expected="zero at both ends", got=str(ends), remedy="check the density")
    return Step(
        "top gap",
        "The density of the top gap at zero is m_K",
        "Two classes tie at the top at x with density K (K-1) phi(x)^2 Phi_N(x)^(K-2). The derivative of phi Phi_N^(K-1) (first "
        "line, by sympy) integrates to zero, since phi vanishes at both ends: the density of ties is the mean of the "
        "largest field. So one number, m_K, sets the signal and the width of the boundary layer.",
        (
            Equation(r"\frac{d}{dx}\left[\phi\,\Phi_N^{K-1}\right]",
                     r"-x\,\phi\,\Phi_N^{K-1}+(K-1)\phi^2\Phi_N^{K-2}"),
            Equation(r"K(K-1)\int\phi^2\Phi_N^{K-2}dx", r"K\int x\,\phi\,\Phi_N^{K-1}dx=m_K"),
        ),
        ("symmetry",),
    )  # fmt: skip


def low_temperature() -> tuple[Step, Expansion]:
    """s -> infinity under the integrals of the race: c = pi^2 m_K/12."""
    first = sympy.exp(-CLOCK) * sympy.exp(-CLOCK * sympy.exp(-GAP))
    over_clock = sympy.integrate(sympy.powsimp(first), (CLOCK, 0, sympy.oo))
    # y e^-y/(1 + e^-y) = sum_n (-1)^(n+1) y e^(-n y): term by term, then summed.
    term = sympy.integrate(GAP * sympy.exp(-PLACE * GAP), (GAP, 0, sympy.oo))
    over_gap = sympy.summation((-1) ** (PLACE + 1) * term, (PLACE, 1, sympy.oo))
    ratio = over_gap
    gap = DRIFT_CONSTANT / SIZE**2
    start, above = sympy.symbols("s_0 s_1", positive=True)
    loss = sympy.integrate(gap.subs(SIZE, above), (above, start, sympy.oo)).subs(start, SIZE)
    step = Step(
        "low temperature",
        "The low-temperature limit: c = pi^2 m_K/12",
        "As s grows phi(x - y/s) -> phi(x) and A -> Phi_N(x). The integral over lambda (first line) and over y (second line, "
        "as a series) are done by sympy; what is left is the density of ties, m_K. Hence m - Phi = c/s^2, and integrated from "
        "s to infinity the loss of the aligned student, F - s m = c/s. That the limit may be taken under the integrals is "
        "assumed and checked numerically for K = 2, 3, 10, 128.",
        (
            Equation(r"\int_0^\infty e^{-\lambda(1+e^{-y})}d\lambda", over_clock),
            Equation(r"\int_0^\infty\frac{y\,e^{-y}}{1+e^{-y}}dy", over_gap),
            Equation(r"c=\lim_{s\to\infty}s^2(m_K-\Phi(s))", ratio * sympy.Symbol("m_K")),
            Equation(r"m_K-s\,H(s)=m_K-\Phi(s)", gap),
            Equation(r"F(s)-s\,m_K", loss),
        ),
        ("numerical: limits",),
    )
    return step, Expansion(ratio, gap, loss)


@dataclass(frozen=True)
class TwoClasses:
    """Asymptotic series of K = 2: `gap[n]` of m - Phi = sum gap[n] s^-(2n+2), `loss[n]` of F - s m = sum loss[n] s^-(2n+1)."""

    mean: sympy.Expr
    loss: tuple[sympy.Expr, ...]
    gap: tuple[sympy.Expr, ...]


def two_classes(terms: int = TERMS) -> tuple[Step, TwoClasses]:
    """K = 2 to any order: moments of log(1 + e^-y) by zeta values."""
    distance = sympy.Symbol("u", positive=True)
    half_normal = sympy.exp(-(distance**2) / 4) / sympy.sqrt(sympy.pi)  # density of |z_1 - z_2|
    mean = sympy.integrate(distance * half_normal, (distance, 0, sympy.oo)) / 2
    taylor = sympy.series(half_normal, distance, 0, 2 * terms).removeO()
    loss = []
    for n in range(terms):
        # log(1 + e^-y) = sum_j (-1)^(j+1) e^(-j y)/j.
        single = sympy.integrate(GAP ** (2 * n) * sympy.exp(-PLACE * GAP), (GAP, 0, sympy.oo)) / PLACE
        moment = sympy.simplify(sympy.summation((-1) ** (PLACE + 1) * single, (PLACE, 1, sympy.oo)))
        loss.append(sympy.simplify(taylor.coeff(distance, 2 * n) * moment))
    series = sum(x / SIZE ** (2 * n + 1) for n, x in enumerate(loss))
    slope = -sympy.diff(series, SIZE)
    gap = tuple(sympy.simplify(slope.coeff(SIZE, -(2 * n + 2))) for n in range(terms))
    form = TwoClasses(mean, tuple(loss), gap)
    step = Step(
        "two classes",
        "K = 2: the whole low-temperature series",
        "F(s) = E log(e^(s z_1) + e^(s z_2)) = s m + E log(1 + e^(-s u)), u = |z_1 - z_2|, a half-normal of variance two. Its "
        "density expanded in u, each moment of log(1 + e^-y) a zeta value: only odd powers of 1/s. The series is asymptotic.",
        (
            Equation("m_2", mean),
            Equation(r"F(s)-s\,m_2", series),
            Equation(r"m_2-\Phi(s)", slope),
        ),
        (),
    )
    return step, form


def write(expansion: Expansion) -> tuple[Output, ...]:
    """`drift_constant`."""
    source = function_source(
        "drift_constant",
        ("m: Array",),
        "c = pi^2 m/12 of m_K - Phi(s) = c/s^2 as s -> infinity; `m` = m_K, mean of the largest of K standard normals.",
        [f"return {to_jax(expansion.ratio * MEAN_TOP, {MEAN_TOP: 'm'})}"],
        "Array",
    )
    return (Output("drift_constant", source),)
