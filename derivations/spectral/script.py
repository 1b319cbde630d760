"""One-pass SGD of a linear model on any spectrum: from the update of the weights to recursion, log-rate ODE, Volterra form."""

from __future__ import annotations

from functools import cache, partial

import sympy

from derivations.spectral import checks
from derivations.spectral.code import write
from derivations.spectral.notation import (
    AVERAGE,
    CROSS,
    DECAY,
    DELTA,
    EXCESS,
    FORCE,
    MODE,
    MOMENTUM,
    NOISE,
    RISK,
    SHRINK,
    SPEED,
    SPREAD,
    SQUARE,
    STEP,
    SUM,
    VELOCITY,
    HeavyBall,
    SampleMoments,
    Stored,
)
from odescale.errors import InputError
from odescale.symbolic.gaussian import Gaussian
from odescale.symbolic.record import Assumption, Derivation, Equation, Parameter, Step
from odescale.symbolic.sgd import batch, eta, lam


def sample_moments() -> SampleMoments:
    """Isserlis on (x_k, u = x.delta, xi), jointly Gaussian at given weights: Cov(x_k, u) = lam delta_k."""
    x, u, xi = sympy.symbols("x u xi")
    covariance = sympy.ImmutableMatrix([[lam, lam * DELTA, 0], [lam * DELTA, EXCESS, 0], [0, 0, NOISE]])
    fields = Gaussian((x, u, xi), covariance)
    residual = u - xi
    # P = s^2 + E names the mean square of the residual.
    square = sympy.expand(fields.expect(sympy.expand(x**2 * residual**2)).subs(EXCESS, RISK - NOISE))
    return SampleMoments(fields.expect(sympy.expand(x * residual)), square)


def over_batch(expression: sympy.Expr, moments: SampleMoments) -> sympy.Expr:
    """Average of a polynomial of degree two in X over B independent samples: E X^2 = B v + B (B - 1) m^2."""
    polynomial = sympy.Poly(sympy.expand(expression), SUM)
    values = {
        0: sympy.S.One,
        1: batch * moments.mean,
        2: batch * moments.square + batch * (batch - 1) * moments.mean**2,
    }
    terms = polynomial.terms()
    if max(degree for (degree,), _ in terms) > 2:
        raise InputError("expression", expected="degree two in X", got=str(expression), remedy="square it once")
    return sympy.expand(sum(coefficient * values[degree] for (degree,), coefficient in terms))


def over_history(expression: sympy.Expr) -> sympy.Expr:
    """Average over all earlier batches: linear in the second moments, so that delta^2 -> rho, delta v -> c, v^2 -> h."""
    polynomial = sympy.Poly(sympy.expand(expression), DELTA, VELOCITY)
    names = {(2, 0): MODE, (1, 1): CROSS, (0, 2): SPEED, (0, 0): sympy.S.One}
    return sympy.Add(*(coefficient * names[degrees] for degrees, coefficient in polynomial.terms()))


def recursion(moments: SampleMoments) -> tuple[sympy.Expr, sympy.Expr]:
    """(G, c) of rho(r + 1) = G rho(r) + c P(r)."""
    after = over_history(over_batch((DELTA - eta / batch * SUM) ** 2, moments))
    polynomial = sympy.Poly(after, MODE, RISK)
    growth, force = polynomial.coeff_monomial(MODE), polynomial.coeff_monomial(RISK)
    if sympy.expand(after - growth * MODE - force * RISK) != 0:
        raise InputError("step", expected="a linear recursion", got=str(after), remedy="check the moments")
    return sympy.collect(sympy.expand(growth), eta), sympy.factor(force)


def log_rate(growth: sympy.Expr, force: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """(a, b) of d rho/dr = -a rho + b P that takes rho to G rho + c P over one step at constant P."""
    a, b, g, c = sympy.symbols("a b g c", positive=True)
    course = sympy.Function("rho")(STEP)
    solution = sympy.dsolve(course.diff(STEP) + a * course - b * RISK, course, ics={course.subs(STEP, 0): MODE})
    end = sympy.expand(solution.rhs.subs(STEP, 1))
    rate = sympy.solve(sympy.Eq(end.coeff(MODE), 1 - g), a)[0]
    drive = sympy.solve(sympy.Eq(end.coeff(MODE, 0).subs(a, rate), c * RISK), b)[0]
    return rate.subs(g, SHRINK), sympy.simplify(drive.subs({g: SHRINK, c: force}))


def volterra(rate: sympy.Expr, drive: sympy.Expr, growth: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr, sympy.Expr]:
    """(kernel, its integral kappa_k, leading order in eta) of one mode; time in units of eta steps in the last one."""
    a, b, s = sympy.symbols("a b s", positive=True)
    kernel = lam * b * sympy.exp(-a * s)
    mass = sympy.integrate(kernel, (s, 0, sympy.oo)).subs({a: rate, b: drive})
    shrink = sympy.expand(1 - growth)
    mass = sympy.factor(sympy.simplify(mass.subs(SHRINK, shrink)))
    slow = sympy.Symbol("t", positive=True)
    per_time = (kernel / eta).subs({a: rate, b: drive, s: slow / eta}).subs(SHRINK, shrink)
    return kernel.subs({a: DECAY, b: FORCE}), mass, sympy.simplify(sympy.limit(per_time / eta, eta, 0)) * eta


def heavy_ball(moments: SampleMoments) -> HeavyBall:
    """Second moments of weight and velocity: rho = E delta^2, c = E delta v, h = E v^2."""
    velocity = MOMENTUM * VELOCITY - eta / batch * SUM
    weight = DELTA + velocity
    new = [over_history(over_batch(product, moments)) for product in (weight**2, weight * velocity, velocity**2)]
    state = (MODE, CROSS, SPEED)
    still = sympy.solve([e - x for e, x in zip(new, state, strict=True)], state, dict=True)[0]
    mode, cross, speed = (sympy.collect(e, (*state, RISK)) for e in new)
    return HeavyBall(mode, cross, speed, sympy.factor(lam * still[MODE] / RISK))


def stored(moments: SampleMoments) -> Stored:
    """Batches drawn with replacement from n samples, in the eigenbasis of their own second moments.

    The residual of least squares is orthogonal to the data: E[z r] = lam delta over the samples. E[z^2 r^2] stays a name, Q.
    """
    own = SampleMoments(moments.mean, SQUARE)
    mean = over_batch(DELTA - eta / batch * SUM, own).subs(DELTA, AVERAGE)
    square = over_history(over_batch((DELTA - eta / batch * SUM) ** 2, own)).subs(MODE, AVERAGE**2 + SPREAD)
    return Stored(sympy.factor(mean), sympy.collect(sympy.expand(square - mean**2), (SPREAD, SQUARE)))


@cache
def derive() -> Derivation:
    """The whole derivation."""
    moments = sample_moments()
    growth, force = recursion(moments)
    rate, drive = log_rate(growth, force)
    kernel, mass, small = volterra(rate, drive, growth)
    momentum = heavy_ball(moments)
    data = stored(moments)
    shrink = sympy.expand(1 - growth)
    return Derivation(
        name="spectral",
        title="Exact SGD on any spectrum",
        summary="One-pass SGD of a linear model on Gaussian features of any covariance: the exact recursion of the excess modes at "
        "any dimension and batch size, the ODE that reproduces every step, its Volterra form, the bound of stability, and "
        "heavy-ball momentum.",
        states=(
            Parameter(MODE, "excess of mode k, E(theta_k - theta_k*)^2", ">= 0"),
            Parameter(CROSS, "E(theta_k - theta_k*) v_k, with momentum", "real"),
            Parameter(SPEED, "E v_k^2, with momentum", ">= 0"),
            Parameter(AVERAGE, "mean of theta_k - theta_k*, stored data", "real"),
            Parameter(SPREAD, "its variance", ">= 0"),
        ),
        parameters=(
            Parameter(STEP, "time", ">= 0", "SGD steps"),
            Parameter(lam, "eigenvalue lam_k of the covariance of the features", "> 0"),
            Parameter(eta, "learning rate eta(r)", "> 0", "per SGD step"),
            Parameter(batch, "samples per SGD step", ">= 1", "samples"),
            Parameter(NOISE, "variance of the label noise, s^2", ">= 0"),
            Parameter(RISK, "mean square residual, s^2 + sum_k lam_k rho_k", ">= 0"),
            Parameter(SQUARE, "average of z_k^2 r^2 over stored samples", ">= 0"),
            Parameter(MOMENTUM, "heavy-ball momentum", "0 <= beta < 1"),
        ),
        assumptions=(
            Assumption("gaussian", "Features are Gaussian, N(0, diag lam)."),
            Assumption("linear", "The target is theta*.x plus noise of variance s^2, independent of x."),
            Assumption("online", "Every SGD step uses fresh samples."),
            Assumption("stored", "Every sample of a batch is drawn from the n stored ones, with replacement."),
            Assumption("frozen risk", "P is constant during one step."),
            Assumption("small rate", "eta lam is small: leading order only."),
        ),
        steps=(
            Step(
                "sample",
                "Moments of one sample",
                "r = x.delta - xi is the residual of a sample, delta = theta - theta*. At given weights x_k, x.delta and xi are "
                "jointly Gaussian, with Cov(x_k, x.delta) = lam delta_k and E r^2 = P; Isserlis' theorem gives the moments.",
                (
                    Equation(r"\mathrm{E}[x_k r]", moments.mean),
                    Equation(r"\mathrm{E}[x_k^2 r^2]", moments.square),
                ),
                ("gaussian", "linear"),
                partial(checks.sample, moments.mean, moments.square),
            ),
            Step(
                "recursion",
                "The exact recursion",
                "theta_k -> theta_k - (eta/B) sum_b x_bk r_b; squared, averaged over the batch and over the history. Linear in the "
                "second moments and closed on their diagonal: exact at any dimension.",
                (
                    Equation(r"\rho_k(r+1)", sympy.Add(sympy.Mul(growth, MODE, evaluate=False), force * RISK)),
                    Equation(SHRINK, shrink),
                ),
                ("gaussian", "linear", "online"),
                partial(checks.one_step, growth, force),
            ),
            Step(
                "log rate",
                "The ODE that reproduces every step",
                "d rho/dr = -a rho + b P over one step at constant P must end at G rho + c P; that fixes a and b (g = 1 - G). The "
                "kernel keeps its exact mass and every mode its exact rate; what is left is the change of P within a step.",
                (
                    Equation(DECAY, rate),
                    Equation(FORCE, drive),
                ),
                ("frozen risk",),
                partial(checks.log_rate, growth, force, rate, drive),
            ),
            Step(
                "volterra",
                "Volterra form and the bound of stability",
                "Variation of constants: P(r) = s^2 + sum lam rho(0) e^(-a r) + int_0^r K(r - s) P(s) ds, K the sum of the "
                "first line over modes. "
                "The second is its integral kappa_k; P stays finite when all g > 0 and kappa = sum kappa_k < 1, and then tends to "
                "s^2/(1 - kappa).",
                (
                    Equation("K_k(s)", kernel),
                    Equation(r"\kappa_k", mass),
                ),
                ("frozen risk",),
                partial(checks.volterra, growth, force, rate, drive, mass),
            ),
            Step(
                "small rate",
                "The kernel of small learning rates",
                "Leading order in eta, in the time t = eta r.",
                (Equation("K_k(t)", small),),
                ("small rate",),
                partial(checks.small_rate, rate, drive, growth, small),
            ),
            Step(
                "momentum",
                "Heavy-ball momentum",
                "v -> beta v - (eta/B) sum_b x_bk r_b, theta -> theta + v: three second moments per mode, with the moments of the "
                "first step. kappa_k is lam rho/P of its fixed point; with beta = 0 everything is as before.",
                (
                    Equation(r"\rho_k(r+1)", momentum.mode),
                    Equation("c_k(r+1)", momentum.cross),
                    Equation("h_k(r+1)", momentum.speed),
                    Equation(r"\kappa_k", momentum.mass),
                ),
                ("gaussian", "linear", "online"),
                partial(checks.momentum, momentum.mode, momentum.cross, momentum.speed, momentum.mass, growth, force, mass),
            ),
            Step(
                "stored data",
                "Repeated passes over stored data",
                "Batches drawn with replacement from n samples, in the eigenbasis of their own second moments: the error of mode "
                "k has mean m and variance D; Q is the average of z_k^2 r^2 over the samples, r^2 averaged over the history. With "
                "Q = lam P + 2 lam^2 (m^2 + D), what Gaussian samples give for n to infinity, this is the recursion above.",
                (
                    Equation("m(r+1)", data.mean),
                    Equation("D(r+1)", data.variance),
                ),
                ("stored",),
                partial(checks.stored, data.mean, data.variance, growth, force),
            ),
        ),
        sources=(
            "Bordelon, Atanasov & Pehlevan 2024: a dynamical model of neural scaling laws",
            "Paquette, Paquette, Xiao & Pennington 2024: 4+3 phases of compute-optimal neural scaling laws",
        ),
        outputs=write(shrink, force, rate, drive, mass, momentum, data),
        imports=("import jax.numpy as jnp", "from jax import Array"),
    )  # fmt: skip
