"""Rollouts with a long tail: from random lengths and a device's step time to the fluid ODE; speculation; the drafter's slow map."""

from __future__ import annotations

from functools import cache, partial

import sympy

from derivations.rollout import checks
from odescale.errors import InputError
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Assumption, Derivation, Equation, Output, Parameter, Step
from odescale.symbolic.scalar_writer import to_jax

LIVE, REQUESTS = sympy.symbols("n N", positive=True)
SURVIVAL = sympy.Symbol("S", positive=True)
BATCH, VERIFIED, DEPTH, PASSED, SATURATION, SHARPNESS = sympy.symbols("b V d m m_0 q", positive=True)
CONTEXT, DRAFT, LEVEL, CROWD = sympy.symbols("k_v c_0 c_1 c_2", nonnegative=True)
FIRST, HAZARD, PLACE = sympy.symbols("a_1 h i", positive=True)
KAPPA, FLOOR, DRIFT, RATE, IDLE, TIME = sympy.symbols("kappa kappa_inf delta r tau t", positive=True)
SHAPE, SHARE, GAIN = sympy.symbols("c f G", positive=True)
ACCEPTED, SQUARE, LENGTH = sympy.symbols("A A_2 L", positive=True)


def live() -> Step:
    """How many requests are live after l tokens, and what the device's time is then on average."""
    return Step(
        "live",
        "Live requests and the fluid ODE",
        "N requests have independent lengths L with S(l) = P(L >= l). After l tokens each of them is live with probability S(l): "
        "n(l) is "
        "binomial. While n are live, a token of all of them takes g(n) = tau(n)/A(n), g(0) = 0: the round's time over the tokens "
        "that "
        "a request takes from it. The policy looks at n alone, so that T = int g(n(l)) dl, and its mean is the integral of the "
        "mean, "
        "without any closure. Putting n = N S(l) into g instead is wrong by as much as g bends between its integers: most where a "
        "request or two is left.",
        (
            Equation(r"\mathsf{P}(n(l)=n)", r"\binom{N}{n}S^{n}(1-S)^{N-n}"),
            Equation(r"\frac{d\,\mathsf{E}T}{dl}", r"\sum_{n=1}^{N}\binom{N}{n}S^{n}(1-S)^{N-n}\,g(n)"),
        ),
        ("independent", "live only"),
        checks.order_statistics,
    )


def spread() -> Step:
    """The covariance of g(n) at two places by thinning, hence the variance of T."""
    return Step(
        "spread",
        "The spread of the time",
        "Those live at y > x are a thinning of those live at x: given n(x), n(y) is binomial with S(y)/S(x). The variance of T "
        "is the "
        "double integral of the covariance of g(n(x)) and g(n(y)).",
        (
            Equation(r"\mathsf{P}(n(y)=k\mid n(x)=n)", r"\binom{n}{k}s^{k}(1-s)^{n-k},\quad s=S(y)/S(x)"),
            Equation(r"\mathrm{Var}\,T", r"2\int_{x<y}\mathrm{Cov}[g(n(x)),\,g(n(y))]\,dx\,dy"),
        ),
        ("independent", "live only"),
        checks.variance,
    )


def round_time() -> tuple[Step, dict[str, sympy.Expr]]:
    """The time of a pass of m tokens, of a plain round and of a speculative one."""
    roof = (1 + (PASSED / SATURATION) ** SHARPNESS) ** (1 / SHARPNESS)
    plain = roof.subs(PASSED, BATCH) + CONTEXT * (BATCH - 1)
    speculative = (
        roof.subs(PASSED, BATCH * VERIFIED) + CONTEXT * (BATCH - 1) + DRAFT + LEVEL * DEPTH * (1 + CROWD * BATCH)
    )
    small = sympy.limit(roof.subs(SHARPNESS, 2), PASSED, 0)
    large = sympy.limit(roof.subs(SHARPNESS, 2) / PASSED, PASSED, sympy.oo)
    none = (speculative - plain).subs({VERIFIED: 1, DRAFT: 0, LEVEL: 0})
    if (small, large, sympy.simplify(none)) != (1, 1 / SATURATION, 0):
        raise InputError(
            "round_time", expected="limits 1, 1/m_0 and the plain round", got=str((small, large, none)), remedy="check"
        )
    step = Step(
        "round",
        "The time of a round",
        "A pass of m tokens takes the time of reading the weights, the unit, while m is far below m_0, and m/m_0 beyond: a smooth "
        "roofline T(m) with sharpness q. Every further request adds the reading of its keys and values, k_v. A speculative round "
        "verifies V tokens of each of b requests, after d passes of the drafter that take c_1 (1 + c_2 b) each, and c_0 beside. "
        "Without speculation V = 1 and there is no drafter; at b = 1 nothing but the weights is read.",
        (Equation("T(m)", roof), Equation(r"\tau(b)", plain), Equation(r"\tau(b;\,d,V)", speculative)),
        ("roofline",),
        partial(checks.roofline, roof),
    )
    return step, {"roofline": roof, "plain": plain, "speculative": speculative}


def acceptance() -> Step:
    """One token: accepted with probability 1 - TV, and what is emitted follows the target."""
    p, q = sympy.symbols("p q", positive=True)
    # One token's value: min(p, q) = (p + q - |p - q|)/2, whose sum over the vocabulary is 1 - TV.
    least = sympy.simplify(sympy.Min(p, q).rewrite(sympy.Abs) - (p + q - sympy.Abs(p - q)) / 2)
    if least != 0:
        raise InputError("acceptance", expected="min(p, q) = (p + q - |p - q|)/2", got=str(least), remedy="check")
    return Step(
        "acceptance",
        "A drafted token is accepted with probability 1 - TV",
        "The drafter draws x from q; it stays with probability min(1, p(x)/q(x)), else x is drawn from the residual (p - q)_+/TV. "
        "Accepted: sum_x min(p, q) = 1 - TV. Emitted: min(p, q) + TV (p - q)_+/TV = p, so that nothing is lost.",
        (
            Equation("a", r"\sum_x\min(p(x),q(x))"),
            Equation("a", r"1-\tfrac12\sum_x|p(x)-q(x)|"),
            Equation("p", r"\min(p,q)+(p-q)_+"),
        ),
        (),
        checks.one_token,
    )


def accepted_length() -> tuple[Step, dict[str, sympy.Expr]]:
    """Tokens of a round by the hazard of each place."""
    place = FIRST * sympy.exp(-HAZARD * (PLACE - 1))
    j = sympy.Symbol("j", positive=True, integer=True)
    kept = sympy.simplify(
        sympy.exp(sympy.summation(sympy.expand_log(sympy.log(FIRST)) - HAZARD * (PLACE - 1), (PLACE, 1, j)))
    )
    constant = sympy.simplify(1 + sympy.summation(FIRST**j, (j, 1, DEPTH)))
    step = Step(
        "accepted",
        "Tokens of a round",
        "A round ends at the first drafted token that is refused; the target's own token is added in any case. Places further "
        "down are "
        "drafted from tokens that the target has not seen, so that their acceptance falls: a_i = a_1 e^(-h (i-1)). P(j or more are "
        "accepted) is the product of the first j. With h = 0 it is the geometric sum of one constant acceptance.",
        (
            Equation("a_i", place),
            Equation(r"\prod_{i\le j}a_i", kept),
            Equation("A(d)", r"1+\sum_{j=1}^{d}\prod_{i\le j}a_i"),
        ),
        ("places",),
        partial(checks.rounds, kept, constant),
    )
    return step, {"place": place, "kept": kept.subs(j, PLACE)}


def overshoot() -> tuple[Step, sympy.Expr]:
    """Rounds until L tokens are there: the last round brings more than were missing."""
    # Lattice renewal: E rounds = L/A + (E k^2 + E k)/(2 A^2) - 1/A for sums >= L, k tokens a round.
    extra = sympy.simplify((SQUARE + ACCEPTED) / (2 * ACCEPTED) - 1)
    step = Step(
        "overshoot",
        "What the last round wastes",
        "k tokens a round, in sums: the number of rounds until L are there is L/A + (E k^2 + A)/(2 A^2) - 1/A on average (renewal "
        "theorem on a lattice). In tokens of the fluid a request is therefore longer by (E k^2 + A)/(2 A) - 1, nothing without "
        "speculation: of order d/L of a length, which the fluid leaves out.",
        (Equation(r"\Delta L", extra),),
        ("fluid",),
        partial(checks.renewal, extra),
    )
    return step, extra


def scatter() -> tuple[Step, sympy.Expr]:
    """How far drawn acceptances carry the place of a request from the fluid's."""
    per_token = sympy.simplify((SQUARE - ACCEPTED**2) / ACCEPTED)
    step = Step(
        "scatter",
        "What drawn acceptances scatter",
        "After l/A rounds of k tokens each the place of a request is l on average and has the variance l (E k^2 - A^2)/A: per "
        "token of "
        "the fluid w grows by Var k/A, at the strategy of the moment. Lengths that are spread wider than sqrt(w) do not feel it; "
        "what "
        "runs into the cap ends over sqrt(w) tokens around it, one request after the other, and the last of them is late.",
        (Equation(r"\frac{dw}{dl}", per_token), Equation(r"S(l)", r"S_{\infty}(l)\,\Phi((c-l)/\sqrt w)")),
        ("fluid",),
        partial(checks.places, per_token),
    )
    return step, per_token


def drafter() -> tuple[Step, dict[str, sympy.Expr]]:
    """Relaxation in the idle time, drift at each update: the slow map, its fixed point, and a flow through its points."""
    k = sympy.Function("k")
    solved = sympy.dsolve(k(TIME).diff(TIME) + RATE * (k(TIME) - FLOOR), k(TIME), ics={k(0): KAPPA})
    after = FLOOR + (KAPPA - FLOOR) * sympy.exp(-RATE * IDLE)
    seen = after + DRIFT
    star = FLOOR + DRIFT / (1 - sympy.exp(-RATE * IDLE))
    found = (solved.rhs.subs(TIME, IDLE) - after, sympy.solve(sympy.Eq(seen, KAPPA), KAPPA)[0] - star)
    if any(sympy.simplify(difference) != 0 for difference in found):
        raise InputError("drafter", expected="relaxation and its fixed point", got=str(found), remedy="check")
    flow = -RATE * IDLE * (KAPPA - star)
    # One unit of the flow is one step of the map, if the idle time stays.
    through = sympy.dsolve(k(TIME).diff(TIME) + RATE * IDLE * (k(TIME) - star), k(TIME), ics={k(0): KAPPA}).rhs.subs(
        TIME, 1
    )
    rest = (sympy.simplify(through - seen), sympy.limit(star - DRIFT, RATE, sympy.oo) - FLOOR)
    if rest != (0, 0):
        raise InputError("drafter", expected="the flow through the map's points", got=str(rest), remedy="check")
    step = Step(
        "drafter",
        "The drafter across updates",
        "Misalignment kappa = KL(target || drafter) relaxes while workers are idle and train it, and grows by delta at each "
        "update of "
        "the policy. What a rollout right after an update sees obeys kappa -> kappa_inf + (kappa - kappa_inf) e^(-r tau) + "
        "delta; its "
        "fixed point is kappa_inf + delta/(1 - e^(-r tau)), and delta/(e^(r tau) - 1) above kappa_inf at the end of the idle time. "
        "With t in updates the linear flow below passes through all points of the map. Infinite idle: kappa_inf + delta. A better "
        "drafter shortens the rollout's tail and with it tau: the fixed point limits itself.",
        (
            Equation(r"\kappa_{\mathrm{after}}", after),
            Equation(r"\kappa^{\ast}", star),
            Equation(r"\frac{d\kappa}{dt}", flow),
        ),
        ("relaxation", "drift"),
        partial(checks.slow_map, seen, star),
    )
    return step, {"after": after, "star": star, "flow": flow}


def misalignment() -> tuple[Step, sympy.Expr]:
    """TV from KL for many small independent differences."""
    width = sympy.Symbol("s", positive=True)
    x = sympy.Symbol("x", real=True)
    density = sympy.exp(-(x**2) / 2) / sympy.sqrt(2 * sympy.pi)
    mean = 2 * sympy.integrate(x * density, (x, 0, sympy.oo))
    gaussian = sympy.simplify((width * mean / 2).subs(width, sympy.sqrt(2 * KAPPA)))
    if sympy.simplify(gaussian - sympy.sqrt(KAPPA / sympy.pi)) != 0:
        raise InputError("misalignment", expected="sqrt(kappa/pi)", got=str(gaussian), remedy="check")
    pinsker = sympy.sqrt(sympy.pi / 2)
    step = Step(
        "misalignment",
        "Acceptance from misalignment",
        "Write q = p (1 + s z) with z of mean zero and variance one under p: for small s KL(p || q) = s^2/2 and TV = s E|z|/2. "
        f"Gaussian z give TV = sqrt(kappa/pi); heavier tails a smaller factor c. Pinsker's inequality is c <= sqrt(pi/2) = "
        f"{float(pinsker):.4f}. Averages over contexts of different kappa lower c (the root is concave).",
        (
            Equation(r"\mathrm{TV}", SHAPE * gaussian),
            Equation(r"c\,\sqrt{\kappa/\pi}", r"\mathrm{TV}\le\sqrt{\kappa/2}"),
        ),
        ("small",),
        partial(checks.total_variation, gaussian),
    )
    return step, SHAPE * gaussian


def gain() -> tuple[Step, sympy.Expr]:
    """What a faster rollout is worth when it is a share f of the step."""
    whole = 1 / (1 - SHARE + SHARE / GAIN)
    limits = (whole.subs(GAIN, 1), sympy.limit(whole, GAIN, sympy.oo))
    if limits[0] != 1 or sympy.simplify(limits[1] - 1 / (1 - SHARE)) != 0:
        raise InputError("gain", expected="1 and 1/(1 - f)", got=str(limits), remedy="check")
    step = Step(
        "gain",
        "End to end",
        "A share f of the step is the rollout, the rest (prefill, update) is not made faster: Amdahl's law. No speculation: 1.",
        (Equation(r"G_{\mathrm{end}}", whole),),
        ("share",),
        partial(checks.amdahl, whole),
    )
    return step, whole


def write(found: dict[str, sympy.Expr]) -> tuple[Output, ...]:
    """The generated functions."""
    names = {
        PASSED: "m", SATURATION: "m0", SHARPNESS: "q", BATCH: "b", VERIFIED: "verified", DEPTH: "depth", CONTEXT: "kv", DRAFT: "c0",
        LEVEL: "c1", CROWD: "c2", FIRST: "first", HAZARD: "hazard", PLACE: "i", KAPPA: "kappa", FLOOR: "floor", DRIFT: "drift",
        RATE: "rate", IDLE: "idle", SHAPE: "shape", SHARE: "share", GAIN: "gain", ACCEPTED: "accepted", SQUARE: "square",
    }  # fmt: skip

    def arguments(*symbols: sympy.Symbol) -> tuple[str, ...]:
        return tuple(f"{names[s]}: Array" for s in symbols)

    costs = (SATURATION, SHARPNESS, CONTEXT)
    rows = (
        ("roofline", (PASSED, SATURATION, SHARPNESS), "T(m): a pass of m tokens; reading the weights is 1.", found["roofline"]),
        ("plain_time", (BATCH, *costs), "tau(b): a plain round of b requests.", found["plain"]),
        ("speculative_time", (BATCH, DEPTH, VERIFIED, *costs, DRAFT, LEVEL, CROWD),
         "tau(b; d, V): d tokens drafted, V of each request verified.", found["speculative"]),
        ("kept", (PLACE, FIRST, HAZARD), "P(i or more drafted tokens are accepted).", found["kept"]),
        ("overshoot", (ACCEPTED, SQUARE), "Tokens of its rounds beyond a request's length; `square` = E k^2.", found["overshoot"]),
        ("scatter", (ACCEPTED, SQUARE), "dw/dl: variance of a request's place per token of the fluid.", found["scatter"]),
        ("after_idle", (KAPPA, FLOOR, RATE, IDLE), "kappa after an idle time.", found["after"]),
        ("drafter_flow", (KAPPA, FLOOR, DRIFT, RATE, IDLE), "dkappa/dt, one unit of t is one update of the policy.", found["flow"]),
        ("total_variation", (KAPPA, SHAPE), "TV = c sqrt(kappa/pi).", found["variation"]),
        ("end_to_end", (SHARE, GAIN), "Gain of the whole step from that of the rollout, a share f of it.", found["gain"]),
    )  # fmt: skip
    return tuple(
        Output(
            name, function_source(name, arguments(*symbols), words, [f"return {to_jax(expression, names)}"], "Array")
        )
        for name, symbols, words, expression in rows
    )


@cache
def derive() -> Derivation:
    """The whole derivation."""
    round_step, times = round_time()
    accepted_step, places = accepted_length()
    overshoot_step, extra = overshoot()
    scatter_step, per_token = scatter()
    drafter_step, slow = drafter()
    variation_step, variation = misalignment()
    gain_step, whole = gain()
    found = times | places | slow | {"overshoot": extra, "scatter": per_token, "variation": variation, "gain": whole}
    return Derivation(
        name="rollout",
        title="Rollouts with a long tail, speculation, and a drafter that learns in the idle time",
        summary="The time of a rollout of N requests of random lengths on a device whose rounds take a time that depends on the "
            "batch "
        "and on the strategy of speculation, as an ODE in tokens; the tokens of a speculative round; and the misalignment of a "
        "drafter "
        "that is trained in the idle time while the policy moves.",
        states=(
            Parameter(sympy.Symbol("T"), "time of the rollout until every live request has l tokens", ">= 0", "plain round at "
                "batch 1"),
            Parameter(KAPPA, "KL(target || drafter) that a rollout sees", "> 0", "nats per token"),
        ),
        parameters=(
            Parameter(REQUESTS, "requests of a worker", "integer >= 1"),
            Parameter(SURVIVAL, "P(L >= l)", "[0, 1]"),
            Parameter(SATURATION, "tokens of a pass at which computing takes over from reading weights", "> 0", "tokens"),
            Parameter(SHARPNESS, "sharpness of the roofline", "> 0"),
            Parameter(CONTEXT, "reading the keys and values of one more request", ">= 0", "plain rounds at batch 1"),
            Parameter(DRAFT, "fixed time of a speculative round", ">= 0", "plain rounds at batch 1"),
            Parameter(LEVEL, "one pass of the drafter", ">= 0", "plain rounds at batch 1"),
            Parameter(CROWD, "growth of a drafter's pass with the batch", ">= 0"),
            Parameter(FIRST, "acceptance of the first drafted token", "(0, 1]"),
            Parameter(HAZARD, "fall of log acceptance from place to place", ">= 0"),
            Parameter(RATE, "rate at which idle training aligns the drafter", "> 0", "1/time"),
            Parameter(DRIFT, "misalignment added by one update of the policy", ">= 0", "nats per token"),
            Parameter(FLOOR, "misalignment that the drafter cannot get below", ">= 0", "nats per token"),
            Parameter(SHAPE, "TV over sqrt(kappa/pi)", "(0, 1.2533]"),
            Parameter(SHARE, "share of the step that the rollout takes", "(0, 1)"),
        ),
        assumptions=(
            Assumption("independent", "Lengths of requests are independent and of one law."),
            Assumption("live only", "What a round takes and which strategy is used depends on the number of live requests alone."),
            Assumption("roofline", "A pass is bound by reading weights or by computing; keys and values are read per request."),
            Assumption("places", "Acceptance depends on the place in the draft alone."),
            Assumption("fluid", "A request takes the mean number of tokens from each round: lengths are far above the depth."),
            Assumption("relaxation", "Idle training brings kappa down at a rate proportional to its distance from kappa_inf."),
            Assumption("drift", "Every update of the policy adds the same delta."),
            Assumption("small", "Target and drafter differ little, so that KL and TV are those of their first difference."),
            Assumption("share", "What is not the rollout takes the same time whatever the rollout does."),
        ),
        steps=(
            live(), spread(), round_step, acceptance(), accepted_step, overshoot_step, scatter_step, drafter_step,
            variation_step, gain_step,
        ),
        outputs=write(found),
        sources=(
            "Hu et al. 2025, arXiv 2511.16665: adaptive drafter, threshold, case of 128 requests",
            "Leviathan, Kalman & Matias 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318: speculative sampling",
            "Williams, Waterman & Patterson, Commun. ACM 52, 65 (2009): roofline",
            "Amdahl, AFIPS 30, 483 (1967)",
            "Feller, An Introduction to Probability Theory II, ch. XI: renewal theorem",
        ),
        imports=("import jax.numpy as jnp", "from jax import Array"),
    )  # fmt: skip
