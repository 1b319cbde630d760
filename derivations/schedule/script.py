"""Laws of the loss under a learning-rate schedule: from SGD on a spectrum to one power law and one relaxing noise mode."""

from __future__ import annotations

from functools import cache, partial

import sympy

from derivations.schedule import checks, optimal
from derivations.schedule.notation import (
    ALPHA,
    AMPLITUDE,
    CAPACITY,
    END,
    FLOOR,
    HORIZON,
    LAG,
    LAST,
    LEFT,
    LEVEL,
    MEMORY,
    MODE,
    NOISE,
    ONSET,
    PEAK,
    PRICE,
    RATE_MAX,
    RISK,
    SHAPE,
    SOURCE,
    SPEED,
    START,
    TAU,
)
from derivations.spectral import script as spectral
from derivations.spectral.notation import RISK as FULL_RISK
from derivations.spectral.notation import SHRINK
from odescale.errors import InputError
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Assumption, Derivation, Equation, Output, Parameter, Step
from odescale.symbolic.scalar_writer import to_jax
from odescale.symbolic.sgd import batch, eta, lam


def slow_mode() -> tuple[sympy.Expr, sympy.Expr]:
    """(decay, drive) of de/dtau = -decay e + drive, leading order in eta, from the log-rate ODE of `spectral`; e = lam rho."""
    growth, force = spectral.recursion(spectral.sample_moments())
    rate, drive = spectral.log_rate(growth, force)
    shrink = sympy.expand(1 - growth)
    decay = sympy.limit((rate / eta).subs(SHRINK, shrink), eta, 0)
    push = lam * drive.subs(FULL_RISK, RISK) * RISK / eta
    leading = sympy.limit((push / eta).subs(SHRINK, shrink), eta, 0)
    return sympy.simplify(decay), sympy.simplify(leading) * eta


def kernel(decay: sympy.Expr, drive: sympy.Expr) -> sympy.Expr:
    """K_k(s) of e_k = e_k(0) exp(-decay tau) + int eta P K_k ds, by variation of constants."""
    course = sympy.Function("e")(TAU)
    rate, push = sympy.symbols("rate push", positive=True)
    solution = sympy.dsolve(course.diff(TAU) + rate * course - push, course, ics={course.subs(TAU, 0): MODE})
    # The answer to a push that began at 0 is the integral of the kernel.
    answer = sympy.diff(sympy.expand(solution.rhs).coeff(push), TAU)
    return sympy.simplify(answer.subs(rate, decay) * drive / (eta * RISK))


def bias_law() -> tuple[sympy.Expr, sympy.Expr]:
    """(alpha, A) of sum_k k^-a exp(-2 k^-b tau) -> A tau^-alpha: modes per rate (1/b) lam^(-1/b - 1), each with lam^(a/b)."""
    alpha, scale, time = sympy.symbols("x y z", positive=True)
    density = sympy.powsimp(lam ** (SOURCE / CAPACITY) * lam ** (-1 / CAPACITY - 1) / CAPACITY)
    power = sympy.simplify(lam * sympy.diff(sympy.log(density), lam) + 1)
    mixed = sympy.integrate(lam ** (alpha - 1) * sympy.exp(-scale * time * lam), (lam, 0, sympy.oo))
    amplitude = sympy.powsimp(sympy.simplify(mixed.subs(scale, 2) * time**alpha))
    return sympy.factor(power), (amplitude / CAPACITY).subs(alpha, power)


def memory_law() -> tuple[sympy.Expr, sympy.Expr]:
    """(beta, response): int_tau^oo K over the mixture of noise modes with a smooth cut-off, over its value at 0."""
    beta, top = sympy.symbols("x y", positive=True)
    # lam exp(-2 lam tau)/2 per mode, (1/b) lam^(-1/b - 1) modes per rate; the cut-off exp(-2 lam/C) in place of lam <= 1.
    power = sympy.simplify(lam * sympy.diff(sympy.log(lam ** (-1 / CAPACITY - 1) * lam), lam) + 1)
    mixed = sympy.integrate(lam ** (beta - 1) * sympy.exp(-2 * lam * (TAU + top)), (lam, 0, sympy.oo))
    ratio = sympy.simplify(mixed / mixed.subs(TAU, 0))
    response = ratio.subs(top, 1 / SPEED).subs({beta: MEMORY, TAU: LAG})
    expected = (1 + SPEED * LAG) ** -MEMORY
    if sympy.simplify(sympy.expand_log(sympy.log(response) - sympy.log(expected), force=True)) != 0:
        raise InputError("response", expected=str(expected), got=str(response), remedy="check the mixture")
    return power, expected


def one_mode() -> tuple[sympy.Expr, sympy.Expr]:
    """(dn/dtau, n after s at a constant eta) of the mixture with all its weight at the rate C."""
    past = sympy.Function("eta")
    noise = sympy.Integral(LEVEL * SPEED * sympy.exp(-SPEED * (TAU - LAG)) * past(LAG), (LAG, 0, TAU))
    slope = sympy.diff(noise, TAU)
    remainder = sympy.simplify(slope + SPEED * noise - SPEED * LEVEL * past(TAU))
    if remainder != 0:
        raise InputError("noise", expected="dn/dtau = -C (n - B eta)", got=str(remainder), remedy="check the kernel")
    course = sympy.Function("n")(LAG)
    step = sympy.dsolve(course.diff(LAG) + SPEED * (course - LEVEL * eta), course, ics={course.subs(LAG, 0): START})
    return -SPEED * (NOISE - LEVEL * eta), sympy.simplify(step.rhs)


@cache
def derive() -> Derivation:
    """The whole derivation."""
    decay, drive = slow_mode()
    shape = kernel(decay, drive)
    alpha, amplitude = bias_law()
    beta, response = memory_law()
    slope, exact = one_mode()
    instant = sympy.limit(sympy.expand(exact.subs(LAG, sympy.Symbol("s", positive=True))), SPEED, sympy.oo)
    return Derivation(
        name="schedule",
        title="Loss under a learning-rate schedule",
        summary="From one-pass SGD on a power-law spectrum with any learning rate eta(t) to L = L0 + A tau^-alpha + n: "
            "the slow modes "
        "become one power law in intrinsic time, the noise a power-law mixture of relaxing modes, one mode, or B eta. Then the "
        "schedule of least final loss: a power decay, or a plateau and a late decay.",
        states=(
            Parameter(TAU, "intrinsic time int eta dr", "> 0", "learning rate * SGD steps"),
            Parameter(MODE, "excess risk of a mode, lam_k E(theta_k - theta_k*)^2", ">= 0", "loss"),
            Parameter(NOISE, "loss that the noise of the gradient adds", ">= 0", "loss"),
        ),
        parameters=(
            Parameter(eta, "learning rate eta(r)", "> 0", "per SGD step"),
            Parameter(lam, "eigenvalue of the features", "> 0", "1/tau"),
            Parameter(batch, "samples per SGD step", ">= 1", "samples"),
            Parameter(RISK, "mean square residual", "> 0", "loss"),
            Parameter(CAPACITY, "power of the eigenvalues, lam_k = k^-b", "> 1"),
            Parameter(SOURCE, "power of the target, e_k(0) = k^-a", "> 1"),
            Parameter(FLOOR, "loss that is left at eta -> 0, tau -> infinity", ">= 0", "loss"),
            Parameter(AMPLITUDE, "amplitude of the bias", ">= 0", "loss tau^alpha"),
            Parameter(ALPHA, "its exponent", "> 0"),
            Parameter(LEVEL, "noise at rest per learning rate; in the first four steps B is the batch", ">= 0", "loss/eta"),
            Parameter(SPEED, "top rate of the noise modes", "> 0", "1/tau"),
            Parameter(MEMORY, "exponent of their mixture", "> 0"),
            Parameter(LAG, "time since", ">= 0", "that of tau"),
            Parameter(START, "n at the beginning of a step", ">= 0", "loss"),
            Parameter(HORIZON, "horizon of a run", "> 0", "SGD steps"),
            Parameter(LEFT, "steps left", ">= 0", "SGD steps"),
            Parameter(RATE_MAX, "bound of the learning rate", "> 0", "per SGD step"),
            Parameter(LAST, "best rate of the last step", "> 0", "per SGD step"),
            Parameter(PRICE, "what a step less would save, Lagrange multiplier of N", "> 0", "loss per SGD step"),
            Parameter(END, "tau at the end", "> 0", "that of tau"),
            Parameter(ONSET, "tau between the onset of the decay and the end", "> 0", "that of tau"),
            Parameter(SHAPE, "power of a fixed shape", ">= 0"),
            Parameter(PEAK, "peak of a schedule", "> 0", "per SGD step"),
        ),
        assumptions=(
            Assumption("linear", "The network is linear in its features, the spectrum and the target are power laws: see "
                "`spectral`."),
            Assumption("small rate", "eta lam is small: leading order."),
            Assumption("dense", "Modes are so dense that sums over k are integrals over the rate; tau lies between the fastest and "
                       "the slowest mode."),
            Assumption("slow risk", "P changes little while the noise relaxes: it goes into B."),
            Assumption("smooth cut-off", "The top of the spectrum ends like exp(-2 lam/C) instead of at lam = 1."),
            Assumption("separation", "The schedule resolves one rate of the noise only."),
            Assumption("instant", "The noise relaxes faster than the schedule changes: C to infinity."),
            Assumption("real network", "A network with Adam has the same two parts, with constants of its own. Nothing here "
                       "shows this; real curves decide."),
        ),
        steps=(
            Step(
                "intrinsic time", "One mode in intrinsic time",
                "The log-rate ODE of `spectral` for e = lam rho, divided by eta, leading order: de/dtau is minus the "
                "first line times e "
                "plus the second. The learning rate enters through tau, and once more as the strength of the noise.",
                (Equation(r"-\dot e_k/e_k", decay), Equation(r"\dot e_k", drive)),
                ("linear", "small rate"), partial(checks.slow, decay, drive),
            ),
            Step(
                "volterra", "Bias and noise",
                "Variation of constants: P(tau) = s^2 + sum e_k(0) exp(-2 lam_k tau) + int_0^tau eta(s) P(s) sum_k "
                "K_k(tau - s) ds. "
                "The first sum is the bias, a function of tau alone; the integral is the noise, which remembers eta.",
                (Equation(r"K_k(\tau)", shape),),
                ("linear", "small rate"), partial(checks.volterra, shape),
            ),
            Step(
                "bias", "The bias is one power law",
                "lam_k = k^-b has (1/b) lam^(-1/b - 1) modes per unit of lam, each with e(0) = lam^(a/b): a power-law "
                "density of rates. "
                "Its integral over exp(-2 lam tau) is A tau^-alpha.",
                (Equation(ALPHA, alpha), Equation(AMPLITUDE, amplitude)),
                ("linear", "dense"), partial(checks.bias, alpha, amplitude),
            ),
            Step(
                "noise modes", "The noise is a power-law mixture of modes",
                "Mode k answers a step of eta with int_0^tau K_k, its rest is lam_k exp(-2 lam_k tau)/(2 batch): summed "
                "over the same "
                "density, a power law of exponent beta. The cut-off makes it finite at 0; n = B int (1 - response) d eta.",
                (Equation(MEMORY, beta), Equation(r"\int_s^\infty K/\int_0^\infty K", response)),
                ("linear", "small rate", "dense", "smooth cut-off", "slow risk"), partial(checks.memory, beta),
            ),
            Step(
                "step-down", "A step-down of SGD",
                "From rest the noise grows with tau and falls after a step of eta: the mixture with the level and the top "
                "rate of the "
                "spectrum, nothing fitted, against the exact recursion with label noise. What is left is the sharp end of "
                "the spectrum.",
                (Equation(r"n(s) - n(0)", LEVEL * sympy.Symbol(r"\Delta\eta") * (1 - response)),),
                ("linear", "small rate", "dense", "smooth cut-off", "slow risk"), partial(checks.step_down, response),
            ),
            Step(
                "one mode", "One relaxing mode",
                "With all weight at the rate C the kernel is B C exp(-C s), and the integral obeys an ODE. At a constant "
                "rate its solution "
                "over a stretch s of tau is exact: so are fits to logged staircases.",
                (Equation(r"\dot n", slope), Equation("n(s)", exact)),
                ("separation", "slow risk"), partial(checks.one_mode, exact, slope),
            ),
            Step(
                "instant", "Noise without memory",
                "C to infinity.",
                (Equation(NOISE, instant),),
                ("separation", "instant", "slow risk"),
            ),
            Step(
                "law", "The law",
                "Together; L0 holds the label noise s^2 and what the modes beyond the last tau keep.",
                (Equation("L", FLOOR + AMPLITUDE * TAU**-ALPHA + NOISE),),
                ("linear", "dense", "slow risk", "real network"),
            ),
            *optimal.steps(),
        ),
        sources=(
            "Bordelon, Atanasov & Pehlevan 2024: a dynamical model of neural scaling laws",
            "Paquette, Paquette, Xiao & Pennington 2024: 4+3 phases of compute-optimal neural scaling laws",
            "Luo et al. 2025, arXiv 2503.12811: the multi-power law, whose loss drop is the mixture above with rates that "
            "depend on eta",
            "Li et al. 2025, arXiv 2509.19189: functional scaling laws; the same law, alpha = s and the kernel (1 + s)^-(2 - 1/b)",
            "Li et al. 2026, arXiv 2602.06797: the optimal schedules of that law and their phases; here at any C, B and N",
        ),
        outputs=_write(alpha, beta, response, slope, exact),
        imports=("import jax.numpy as jnp", "from jax import Array"),
    )  # fmt: skip


def _write(
    alpha: sympy.Expr, beta: sympy.Expr, response: sympy.Expr, slope: sympy.Expr, exact: sympy.Expr
) -> tuple[Output, ...]:
    """The formulas as functions; scalars, or arrays that broadcast."""
    names: dict[sympy.Basic, str] = {
        TAU: "tau", LAG: "lag", ALPHA: "alpha", SPEED: "speed", MEMORY: "memory", LEVEL: "level", eta: "rate", NOISE: "noise",
        SOURCE: "a", CAPACITY: "b", LEFT: "left", LAST: "last",
    }  # fmt: skip
    keep = sympy.simplify(sympy.diff(exact, START))
    functions: tuple[tuple[str, tuple[sympy.Symbol, ...], str, sympy.Expr], ...] = (
        ("bias_power", (TAU, ALPHA), "tau^-alpha.", TAU**-ALPHA),
        (
            "noise_decay",
            (LAG, SPEED),
            "Share of n - B eta that is left after a stretch `lag` of tau at a constant rate.",
            keep,
        ),
        (
            "noise_memory",
            (LAG, SPEED, MEMORY),
            "(1 + C s)^-beta, what the mixture of noise modes remembers after s.",
            response,
        ),
        ("noise_slope", (NOISE, eta, SPEED, LEVEL), "dn/dtau = -C (n - B eta).", slope),
        ("bias_exponent", (SOURCE, CAPACITY), "alpha of lam_k = k^-b, e_k(0) = k^-a.", alpha),
        ("memory_exponent", (CAPACITY,), "beta of lam_k = k^-b.", beta),
        *optimal.functions(),
    )
    return tuple(
        Output(
            name,
            function_source(
                name, [f"{names[s]}: Array" for s in takes], about, [f"return {to_jax(value, names)}"], "Array"
            ),
        )
        for name, takes, about, value in functions
    )
