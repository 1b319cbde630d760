"""The learning-rate schedule of least final loss under the law with a power-law memory, and what it wins."""

from __future__ import annotations

from functools import partial

import sympy

from derivations.schedule import optimal_checks as checks
from derivations.schedule.notation import (
    ALPHA,
    AMPLITUDE,
    CAPACITY,
    END,
    HORIZON,
    LAG,
    LAST,
    LEFT,
    LEVEL,
    MEMORY,
    ONSET,
    PEAK,
    PRICE,
    RATE_MAX,
    SHAPE,
    SPEED,
)
from odescale.errors import InputError
from odescale.symbolic.record import Equation, Step
from odescale.symbolic.sgd import eta

RESPONSE = (1 + SPEED * LAG) ** -MEMORY


def _must_vanish(what: str, remainder: sympy.Expr) -> None:
    if sympy.simplify(sympy.expand_log(sympy.powsimp(remainder), force=True)) != 0:
        raise InputError(what, expected="0", got=str(remainder), remedy="check the step")


def rate_at_lag() -> tuple[sympy.Expr, sympy.Expr, sympy.Expr]:
    """(kernel, price mu, eta) of the pointwise minimum of K(s) eta + mu/eta; c = eta(0)."""
    kernel = -sympy.diff(LEVEL * RESPONSE, LAG)
    integrand = kernel * eta + PRICE / eta
    (free,) = sympy.solve(sympy.diff(integrand, eta), eta)
    price = sympy.solve(sympy.Eq(free.subs(LAG, 0), LAST), PRICE)[0]
    best = LAST * (1 + SPEED * LAG) ** ((MEMORY + 1) / 2)
    _must_vanish("rate", sympy.log(free.subs(PRICE, price) ** 2) - sympy.log(best**2))
    return sympy.simplify(kernel), price, best


def steps_of_lag(best: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """(steps r within the last s of tau, eta with r steps left): dr = ds/eta(s)."""
    steps = 2 * ((1 + SPEED * LAG) ** ((1 - MEMORY) / 2) - 1) / (LAST * SPEED * (1 - MEMORY))
    _must_vanish("steps", sympy.diff(steps, LAG) * best - 1)
    grown = 1 + LAST * SPEED * (1 - MEMORY) * LEFT / 2
    lag = (grown ** (2 / (1 - MEMORY)) - 1) / SPEED
    _must_vanish("lag", sympy.powdenest(steps.subs(LAG, lag), force=True) - LEFT)
    rate = LAST * grown ** ((1 + MEMORY) / (1 - MEMORY))
    # c (1 + C s)^((m+1)/2) at that lag, exponent by exponent.
    _must_vanish("rate", (MEMORY + 1) / 2 * 2 / (1 - MEMORY) - (1 + MEMORY) / (1 - MEMORY))
    return steps, rate


def decay_noise(kernel: sympy.Expr, price: sympy.Expr, best: sympy.Expr) -> sympy.Expr:
    """n of the last r steps of the decay: along it K eta = mu/eta, so that int K eta ds = mu int ds/eta."""
    _must_vanish("balance", sympy.log(kernel * best**2) - sympy.log(price))
    return price * LEFT


def easy(steps: sympy.Expr, price: sympy.Expr) -> dict[str, sympy.Expr]:
    """Leading order of the unbounded optimum at C T >> 1: T, h = eta(0), L - L0, and their exponents in N."""
    # (1 + C T)^x -> (C T)^x, and the 1 beside it goes.
    last = 2 * (SPEED * END) ** ((1 - MEMORY) / 2) / (SPEED * (1 - MEMORY) * HORIZON)
    exact = sympy.solve(sympy.Eq(steps.subs(LAG, END), HORIZON), LAST)[0]
    half = {MEMORY: sympy.Rational(1, 2), SPEED: 1}
    ratio = sympy.limit((last / exact).subs(half).subs(HORIZON, 1), END, sympy.oo)
    _must_vanish("rate of the last step", ratio - 1)
    noise = sympy.powsimp(sympy.expand_power_base(price.subs(LAST, last) * HORIZON, force=True))
    level = sympy.simplify(noise * END ** (MEMORY - 1))
    if level.has(END):
        raise InputError("noise", expected="a power 1 - beta of T", got=str(noise), remedy="check the step")
    # d/dT (A T^-alpha + level T^(1 - beta)) = 0.
    end = (ALPHA * AMPLITUDE / ((1 - MEMORY) * level)) ** (1 / (ALPHA + 1 - MEMORY))
    end = sympy.powdenest(sympy.simplify(end.base), force=True) ** end.exp
    peak = 2 * END / ((1 - MEMORY) * HORIZON)
    _must_vanish("peak", sympy.log(last * (SPEED * END) ** ((MEMORY + 1) / 2)) - sympy.log(peak))
    return {
        "end": end,
        "peak": peak,
        "end exponent": _power_of_n(end),
        "peak exponent": sympy.factor(_power_of_n(peak.subs(END, end))),
        "loss exponent": sympy.factor(-_power_of_n(AMPLITUDE * end**-ALPHA)),
    }


def _power_of_n(value: sympy.Expr) -> sympy.Expr:
    return sympy.simplify(HORIZON * sympy.diff(sympy.expand_log(sympy.log(value), force=True), HORIZON))


def hard(steps: sympy.Expr) -> dict[str, sympy.Expr]:
    """Leading order of the bounded optimum at C u >> 1 and u << T: the onset u of the decay, its share of N."""
    last = RATE_MAX * (SPEED * ONSET) ** (-(MEMORY + 1) / 2)
    length = sympy.simplify(2 * (SPEED * ONSET) ** ((1 - MEMORY) / 2) / (last * SPEED * (1 - MEMORY)))
    plateau = LEVEL * RATE_MAX * (SPEED * ONSET) ** -MEMORY
    decay = LEVEL * SPEED * MEMORY * last**2 * length
    noise = sympy.simplify(plateau + decay)
    # What the decay costs of T = eta_max (N - r) + u, times the slope of the bias.
    lost = sympy.simplify(RATE_MAX * length - ONSET)
    cost = ALPHA * AMPLITUDE * (RATE_MAX * HORIZON) ** (-ALPHA - 1) * lost
    # noise = n_1 u^-beta and cost = k_1 u: d/du = 0.
    n_1, k_1 = sympy.simplify(noise * ONSET**MEMORY), sympy.simplify(cost / ONSET)
    if n_1.has(ONSET) or k_1.has(ONSET):
        raise InputError("noise", expected="powers of u", got=f"{n_1}, {k_1}", remedy="check the step")
    onset = sympy.simplify(MEMORY * n_1 / k_1) ** (1 / (MEMORY + 1))
    share = 2 * ONSET / ((1 - MEMORY) * RATE_MAX * HORIZON)
    _must_vanish("share", share - length / HORIZON)
    return {
        "length": length,
        "noise": noise,
        "onset": onset,
        "share": share,
        "share exponent": sympy.factor(_power_of_n(share.subs(ONSET, onset))),
    }


def shape_memory() -> tuple[sympy.Expr, sympy.Expr, sympy.Expr]:
    """(eta at lag s of the shape h (r/N)^gamma over h, its tau, g = gamma/(gamma + 1)): eta/h = (s/T)^g."""
    run = PEAK * (LEFT / HORIZON) ** SHAPE
    tau = PEAK * HORIZON * (LEFT / HORIZON) ** (SHAPE + 1) / (SHAPE + 1)
    _must_vanish("tau", sympy.diff(tau, LEFT) / run - 1)
    end = sympy.simplify(tau.subs(LEFT, HORIZON))
    power = SHAPE / (SHAPE + 1)
    _must_vanish("shape", sympy.log((tau / end) ** power) - sympy.log(run / PEAK))
    return (LAG / END) ** power, end, power


def tuned_exponent() -> sympy.Expr:
    """Loss exponent of A T^-alpha + const (T/N) T^-q at the best T, q < alpha + 1."""
    kept = sympy.Symbol("q", positive=True)
    end = HORIZON ** (1 / (ALPHA + 1 - kept))
    # Both terms alike there.
    _must_vanish("balance", sympy.log(end**-ALPHA) - sympy.log(end ** (1 - kept) / HORIZON))
    exponent = ALPHA / (ALPHA + 1 - kept)
    _must_vanish("exponent", exponent + _power_of_n(end**-ALPHA))
    return exponent


def steps() -> tuple[Step, ...]:
    """The steps that follow the law."""
    kernel, price, best = rate_at_lag()
    count, rate = steps_of_lag(best)
    noise = decay_noise(kernel, price, best)
    soft, stiff = easy(count, price), hard(count)
    shape, end, power = shape_memory()
    tuned = tuned_exponent()
    capacity = 1 - 1 / CAPACITY
    of_capacity = sympy.simplify(((1 + MEMORY) / (1 - MEMORY)).subs(MEMORY, capacity))
    q = sympy.Symbol("q", positive=True)
    return (
        Step(
            "best rate", "The best rate at a lag",
            "Fix T = tau at the end. n = int_0^T K(s) eta(s) ds with s = T - tau, and the steps are int ds/eta = N: minimise "
            "K eta + mu/eta at every s alone. It is convex in eta > 0, so that a bound eta <= eta_max cuts it off and changes "
            "nothing else. c is the rate of the last step, mu its price.",
            (Equation("K(s)", kernel), Equation(PRICE, price), Equation(r"\eta(s)", best)),
            ("slow risk", "small rate"), partial(checks.best_rate, best, count),
        ),
        Step(
            "power decay", "In steps it is a power of the steps left",
            "r = int_0^s ds/eta. With beta = 1 - 1/b the power (1 + beta)/(1 - beta) is 2b - 1: quadratic decay at b = 3/2, "
            "power 3 at b = 2. beta = 1 is exponential; beta to infinity, one relaxing mode, is c/(1 - c C r/2).",
            (Equation("r", count), Equation(r"\eta(r)", rate), Equation(r"\frac{1 + \beta}{1 - \beta}", of_capacity)),
            ("slow risk", "small rate"), partial(checks.power_decay, rate),
        ),
        Step(
            "decay noise", "Noise of the decay",
            "Along the decay K eta = mu/eta: r steps of it add mu r. Before it, a plateau at eta_max from s = u on adds B eta_max "
            "((1 + C u)^-beta - (1 + C T)^-beta).",
            (Equation("n(r)", noise),),
            ("slow risk", "small rate"), partial(checks.decay_noise, noise, rate),
        ),
        Step(
            "easy", "Peak and loss without a bound",
            "C T >> 1: n = 4 B beta T^(1 - beta)/((1 - beta)^2 C^beta N) grows with T, the bias falls; the best T, and with it the "
            "peak h, which falls with N if alpha > beta. In the exponents of Li et al. 2026, s = alpha and b: loss "
            "N^-(s/(s + 1/b)), peak N^-((s - 1 + 1/b)/(s + 1/b)).",
            (
                Equation(END, soft["end"]), Equation("h", soft["peak"]),
                Equation(r"-d\log(L - L_0)/d\log N", soft["loss exponent"]), Equation(r"d\log h/d\log N", soft["peak exponent"]),
            ),
            ("slow risk", "small rate", "dense"), partial(checks.easy, best, count, soft["loss exponent"], soft["peak exponent"]),
        ),
        Step(
            "hard", "Under a bound: plateau and late decay",
            "If alpha < beta the peak of the last step would grow with N: the bound eta_max holds. T = eta_max N up to what the "
            "decay costs, L - L0 falls like N^-alpha; the decay begins u before the end. Its share of the steps falls, and so does "
            "what it leaves of the noise over the bias, by the same power. At alpha = beta both phases meet.",
            (
                Equation("u", stiff["onset"]), Equation("r/N", stiff["share"]),
                Equation(r"d\log(r/N)/d\log N", stiff["share exponent"]),
            ),
            ("slow risk", "small rate", "dense"), partial(checks.hard, best, count, stiff["share exponent"]),
        ),
        Step(
            "fixed shapes", "What a fixed shape loses",
            "h (r/N)^gamma has eta = h (s/T)^g, g = gamma/(gamma + 1). Against (1 + C s)^-(1 + beta) it leaves noise h T^-q, q = "
            "min(beta, g): a constant has q = 0, a linear decay and WSD 1/2, a cosine to zero 2/3. With the best h below its bound "
            "alpha/(alpha + 1 - q) if alpha > q, else alpha: the shape is as good as the best one up to a factor if q = beta or "
            "alpha <= q.",
            (
                Equation(r"\eta/h", shape), Equation(END, end), Equation("g", power),
                Equation(r"-d\log(L - L_0)/d\log N", tuned),
            ),
            ("slow risk", "small rate", "dense"), partial(checks.fixed_shapes, tuned, q),
        ),
    )  # fmt: skip


def functions() -> tuple[tuple[str, tuple[sympy.Symbol, ...], str, sympy.Expr], ...]:
    """(name, arguments, docstring, expression) of what is written out."""
    kernel, price, best = rate_at_lag()
    count, rate = steps_of_lag(best)
    soft, stiff = easy(count, price), hard(count)
    return (
        ("best_rate_at_lag", (LAG, LAST, SPEED, MEMORY), "c (1 + C s)^((beta + 1)/2), the best rate s before the end.", best),
        ("best_rate_left", (LEFT, LAST, SPEED, MEMORY), "The best rate with r steps left, beta other than 1.", rate),
        ("step_price", (LAST, SPEED, MEMORY, LEVEL), "mu = B C beta c^2, the noise that a step of the decay adds.", price),
        ("easy_exponent", (ALPHA, MEMORY), "Exponent of the best loss in the horizon, alpha >= beta.", soft["loss exponent"]),
        ("peak_exponent", (ALPHA, MEMORY), "d log peak/d log horizon, alpha >= beta.", soft["peak exponent"]),
        ("share_exponent", (ALPHA, MEMORY), "d log (share of the decay)/d log horizon, alpha < beta.", stiff["share exponent"]),
    )  # fmt: skip
