"""The compute-optimal frontier: from R and C through one Lagrange multiplier to exponents, critical compute and phases."""

from __future__ import annotations

from functools import cache

import sympy

from derivations.frontier import checks, laws
from derivations.frontier import phases as frontier_phases
from derivations.frontier.notation import (
    ALPHA,
    BOUND,
    BUDGET,
    CAPACITY,
    CODE,
    COST,
    DECAY,
    FLOOR,
    LOG_SCALE,
    MU,
    RAPIDITY,
    RATE,
    SIZE,
    SOURCE,
    TIME,
    TIME_COST,
    A,
    S,
)
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Assumption, Derivation, Output, Parameter, Table
from odescale.symbolic.scalar_writer import to_jax


@cache
def derive() -> Derivation:
    """The whole derivation."""
    lagrange, size = laws.lagrange()
    powers, power_law = laws.powers(size)
    lambert, time, exponential = laws.exponential()
    floors, jump, held = laws.floors(size, exponential)
    phase_step, phase_table, phases = frontier_phases.phases()
    return Derivation(
        name="frontier",
        title="The compute-optimal frontier",
        summary="The least risk R = sum A_i x_i^-alpha_i + D exp(-lam t) at compute C = c prod x_i^q_i t^q_t: exponent 1/S for "
        "power laws, 1/(S + q_t/(lam t)) with exponential time, a true exponential phase with an end C* only where sizes have "
        "floors, and the compute-optimal phases of power-law features.",
        states=(
            Parameter(SIZE, "a size: width, data, depth", "> 0"),
            Parameter(TIME, "time", "> 0", "that of 1/lambda (lambda per step: SGD steps)"),
        ),
        parameters=(
            Parameter(A, "amplitude of a size's term A x^-alpha", "> 0", "risk"),
            Parameter(ALPHA, "exponent of that term", "> 0"),
            Parameter(COST, "power of the size in the compute", "> 0"),
            Parameter(FLOOR, "least value of the size", ">= 0"),
            Parameter(DECAY, "amplitude of the exponential", "> 0", "risk"),
            Parameter(RATE, "its rate", "> 0", "1/time"),
            Parameter(TIME_COST, "power of the time in the compute", "> 0"),
            Parameter(MU, "multiplier: -dR*/dlog C", "> 0", "risk"),
            Parameter(BUDGET, "log(C/c) less sum of q log x_0 over the held sizes", "real"),
            Parameter(S, "sum of q/alpha over the released sizes", ">= 0"),
            Parameter(LOG_SCALE, "sum of (q/alpha) log(alpha A/q) over the released sizes", "real"),
            Parameter(BOUND, "sum of the terms of the held sizes", ">= 0", "risk"),
            Parameter(RAPIDITY, "y = lambda t at C*", "> 1"),
            Parameter(SOURCE, "power of the target, lam_j theta_j^2 = j^-a", "> 1"),
            Parameter(CAPACITY, "power of the eigenvalues, lam_j = j^-b", "> 1"),
        ),
        assumptions=(
            Assumption("smooth", "Sizes and time are real numbers, R and C are the laws stated at all of them."),
            Assumption("interior", "The optimum is the local minimum with training, lam t > 1 - q_t/S, and its R is below D."),
            Assumption("floors", "x_i >= x_i0."),
            Assumption("terms", "The loss of power-law features is the sum of the four terms stated; b > 1."),
        ),
        steps=(
            lagrange.checked(checks.lagrange, size),
            laws.envelope().checked(checks.envelope),
            powers.checked(checks.powers, power_law, size),
            lambert.checked(checks.lambert, exponential.multiplier, exponential.exponent),
            time.checked(checks.time, exponential.equation, exponential.multiplier, exponential.least),
            floors.checked(checks.floors),
            jump.checked(checks.jump, held.jump),
            laws.tied().checked(checks.tied),
            phase_step.checked(checks.phases, phases),
        ),
        sources=(
            "Yang, arXiv 2512.22088",
            "Bordelon, Atanasov & Pehlevan, arXiv 2402.01092",
            "Paquette, Paquette, Xiao & Pennington, arXiv 2405.15074",
        ),
        outputs=(*write(size, power_law, exponential, held), *write_phases(phases)),
        tables=(presets(), phase_table),
        imports=("import jax.numpy as jnp", "from jax import Array"),
    )  # fmt: skip


def presets() -> Table:
    """1/S of the two versions, from the isolated laws that give them."""
    rows = []
    half = sympy.Rational(1, 2)
    for name, shares, law, cost in (
        ("yang_v1", ((2, half), (1, half)), "$m^{-1/2}, n^{-1/2}$", "$m^2n$"),
        ("yang_v3", ((2, half), (1, half), (1, sympy.S.One)), "$m^{-1/2}, n^{-1/2}, t^{-1}$", "$m^2nt$"),
    ):
        total = sum((q / alpha for q, alpha in shares), sympy.S.Zero)
        rows.append((name, law, cost, f"${total}$", f"$C^{{-1/{total}}}$"))
    return Table("Presets", ("preset", "isolated laws", "C", "S", "frontier"), tuple(rows))


def write(
    size: laws.Size, power_law: laws.Powers, exponential: laws.Exponential, held: laws.Floors
) -> tuple[Output, ...]:
    """The formulas as functions; arrays broadcast."""
    y = sympy.Symbol("rapidity", positive=True)
    at_y = {TIME: y / RATE}
    linear, logarithm, right = exponential.equation
    constant = sympy.expand(
        sympy.expand_log(sympy.log(y) - y - sympy.log(exponential.multiplier.subs(at_y) / MU), force=True)
    )
    functions: dict[str, tuple[tuple[sympy.Symbol, ...], str, tuple[sympy.Expr, ...]]] = {
        "size_of_multiplier": (
            (MU, A, ALPHA, COST), "x = (alpha A/(q mu))^(1/alpha), the size of a term A x^-alpha at multiplier mu.", (size.value,)
        ),
        "release_multiplier": (
            (FLOOR, A, ALPHA, COST), "g = alpha A x_0^-alpha/q: the multiplier at which a size leaves its floor (inf without one).",
            (size.release,),
        ),
        "log_scale": (
            (A, ALPHA, COST), "(q/alpha) log(alpha A/q): the part of one size in K.", (size.log_scale,)
        ),
        "power_multiplier": (
            (BUDGET, S, LOG_SCALE), "mu = exp((K - b)/S) of power laws alone; R* = S mu.", (power_law.multiplier,)
        ),
        "time_multiplier": (
            (TIME, DECAY, RATE, TIME_COST), "mu = lam t D exp(-lam t)/q_t.", (exponential.multiplier,)
        ),
        "time_balance": (
            (BUDGET, S, LOG_SCALE, DECAY, RATE, TIME_COST),
            "(s, k, r) of s t + k log t = r, whose larger root is the optimal time.", (linear, logarithm, right),
        ),
        "least_rapidity": ((S, TIME_COST), "lam t above which the stationary point is a minimum.", (exponential.least,)),
        "rapidity_constant": (
            (MU, DECAY, TIME_COST), "r of y - log y = r, whose larger root is lam t at multiplier mu; none where r < 1.",
            (-constant,),
        ),
        "local_exponent": (
            (S, y, TIME_COST), "-dlog R*/dlog C = 1/(S + q_t/(lam t)) without floors; `rapidity` = lam t.",
            (sympy.simplify(exponential.exponent.subs(at_y)),),
        ),
        "held_exponent": (
            (MU, BOUND, S, y, TIME_COST), "-dlog R*/dlog C with terms F (`held`) at their floors; `rapidity` = lam t.",
            (held.exponent.subs(at_y),),
        ),
        "exponent_log_slope": (
            (sympy.Symbol("p"), S, y, TIME_COST), "dlog p/dlog C where p is the local exponent; `rapidity` = lam t.",
            (sympy.Symbol("p") + sympy.simplify(held.slope.subs(RAPIDITY, y)),),
        ),
        "exponent_jump": (
            (S, y, TIME_COST), "Jump of dlog p/dlog C at C*, S = q/alpha of the size released there; `rapidity` = lam t*.",
            (held.jump.subs(RAPIDITY, y),),
        ),
    }  # fmt: skip
    names = {**CODE, y: "rapidity"}
    return tuple(_function(name, names, *parts) for name, parts in functions.items())


def write_phases(phases: tuple[frontier_phases.Phase, ...]) -> tuple[Output, ...]:
    """(exponent, power of the optimal width, power of the time) of each phase."""
    names = {SOURCE: "a", CAPACITY: "b"}
    return tuple(
        _function(
            f"phase_{phase.name.lower()}", names, (SOURCE, CAPACITY),
            f"(p, w, s) of phase {phase.name}: L ~ C^-p, d ~ C^w, t ~ C^s; {' = '.join(t.name for t in phase.terms)}.",
            (phase.exponent, sympy.factor(1 - phase.share), sympy.factor(phase.share)),
        )
        for phase in phases
    )  # fmt: skip


def _function(
    name: str,
    names: dict[sympy.Symbol, str],
    arguments: tuple[sympy.Symbol, ...],
    about: str,
    values: tuple[sympy.Expr, ...],
) -> Output:
    takes = [f"{names.get(s, s.name)}: Array" for s in arguments]
    code = [f"jnp.asarray({to_jax(v, names)})" if v.is_number else to_jax(v, names) for v in values]
    body = [f"return {', '.join(code)}"]
    returns = "Array" if len(values) == 1 else f"tuple[{', '.join(['Array'] * len(values))}]"
    return Output(name, function_source(name, takes, about, body, returns))
