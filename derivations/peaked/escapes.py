"""What would beat the one-third law: every exponent by the same dominant balance, on the flow that the escape changes."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from derivations.peaked.adam import DRIFT as MEAN_DRIFT
from derivations.peaked.adam import NORM, Normalised
from derivations.peaked.laws import KAPPA, LATE, NOISE, POWER, SPREAD, Late, Scheduled, conditions, late_flow, still
from derivations.peaked.layers import NORMAL, Layer, MarginLoss
from derivations.peaked.notation import (
    BETA,
    CURVATURE,
    DELTA,
    MEAN_TOP,
    OTHERS,
    PER_BATCH,
    RATE,
    SECOND_MOMENT,
    SMOOTHING,
    SOFTPLUS_MEAN,
    TIME,
    K,
)
from odescale.errors import InputError
from odescale.symbolic.asymptotics import dominant_balances
from odescale.symbolic.power_laws import Balance
from odescale.symbolic.record import Equation, Step, Table
from odescale.symbolic.sgd import batch, decay, eta

HEAT = sympy.Symbol("h", positive=True)
"""beta ~ alpha^h."""
ERROR, LOSS = sympy.sqrt(SPREAD) / LATE, 1 / LATE


@dataclass(frozen=True)
class Escape:
    """Exponents of excess loss and error (None: it has a floor, or is none), what they need, and the cost in words."""

    name: str
    loss: sympy.Expr | None
    error: sympy.Expr | None
    balance: Balance
    cost: str

    def row(self) -> tuple[str, str, str, str, str]:
        """A row of the table."""

        def text(e: sympy.Expr | None) -> str:
            return "-" if e is None else f"${sympy.latex(e)}$"

        return self.name, text(self.loss), text(self.error), f"${conditions(self.balance)}$", self.cost


def wide(form: Layer) -> tuple[sympy.Expr, sympy.Expr]:
    """(kappa, S) of the layer at large spread: softplus(a xi) -> a xi_+, the Delta term of kappa alone."""
    density = sympy.exp(-(NORMAL**2) / 2) / sympy.sqrt(2 * sympy.pi)
    positive_part = sympy.integrate(NORMAL * density, (NORMAL, 0, sympy.oo))
    kappa = form.kappa.coeff(DELTA) * SPREAD
    noise = form.noise.coeff(SOFTPLUS_MEAN) * sympy.sqrt(2 * SPREAD) * positive_part
    return kappa, sympy.simplify(noise)


# ---------------------------------------------------------------------------------------------------------------------
# Adam and normalised steps
# ---------------------------------------------------------------------------------------------------------------------


def _in_layer(expression: sympy.Expr, kappa: sympy.Expr, noise: sympy.Expr) -> sympy.Expr:
    """A flow of `adam` late: A = m kappa/((K-1) D^2), H = m/D, G = m S/D, beta = 1, no decay."""
    values = {
        MEAN_DRIFT: MEAN_TOP * kappa / (OTHERS * LATE**2), CURVATURE: MEAN_TOP / LATE,
        SECOND_MOMENT: MEAN_TOP * noise / LATE, BETA: 1, decay: 0, DELTA: SPREAD, PER_BATCH: 1 / batch,
    }  # fmt: skip
    return expression.subs(values)


@dataclass(frozen=True)
class AdamLaws:
    """Small learning rate (spread still negligible), late (spread grows), and normalised steps without noise."""

    small: Balance
    late: Balance
    scheduled: Balance
    noiseless: Balance
    exponents: dict[str, sympy.Expr]


def adam_flow(forms: Normalised, kappa: sympy.Expr, noise: sympy.Expr, rate: sympy.Expr = RATE) -> dict:
    """D, Delta and the algebraic v of Adam in the layer."""
    second = sympy.expand(_in_layer(forms.second, kappa, noise))
    return {
        LATE: _in_layer(forms.adam[0], kappa, noise).subs(RATE, rate),
        SPREAD: sympy.expand(_in_layer(forms.adam[1], kappa, noise).subs(RATE, rate)),
        NORM: second - NORM,
    }


def adam(forms: Normalised, form: Layer) -> tuple[Step, AdamLaws, tuple[Escape, ...]]:
    """2/5, 1/6 and what a falling learning rate makes of them; 1 for normalised steps without noise."""
    first = adam_flow(forms, *still(form))
    narrow = {LATE: first[LATE], NORM: sympy.expand(first[NORM]).subs(SPREAD, 0)}
    (small,) = dominant_balances(narrow, TIME, algebraic=(NORM,))
    try:  # the spread cannot stay small at a constant learning rate
        dominant_balances(first, TIME, algebraic=(NORM,), growth={SPREAD: "vanishing"})
        stays = True
    except InputError:
        stays = False
    if stays:
        raise InputError("adam", expected="a spread that grows", got="one that vanishes", remedy="check the flow")
    (late,) = dominant_balances(adam_flow(forms, *wide(form)), TIME, algebraic=(NORM,), growth={SPREAD: "growing"})
    falling = adam_flow(forms, *still(form), rate=RATE * TIME**-POWER)
    (scheduled,) = [
        b for b in dominant_balances(falling, TIME, algebraic=(NORM,), growth={SPREAD: "vanishing"}) if not b.free
    ]
    # Without noise |ghat| is the mean gradient itself.
    kappa = form.kappa.subs(DELTA, 0)
    square = sympy.expand(_in_layer(forms.frobenius.subs(PER_BATCH, 0), kappa, sympy.S.Zero)).subs(SPREAD, 0)
    steady = {LATE: _in_layer(forms.normalised[0], kappa, sympy.S.Zero), NORM: square - NORM}
    (noiseless,) = dominant_balances(steady, TIME, algebraic=(NORM,))
    exponents = {
        "small": -small.exponent(LOSS),
        "late": -late.exponent(SPREAD / LATE),
        "late error": -late.exponent(ERROR),
        "scheduled": -scheduled.exponent(LOSS),
        "scheduled error": -scheduled.exponent(ERROR),
        "noiseless": -noiseless.exponent(LOSS),
    }
    laws = AdamLaws(small, late, scheduled, noiseless, exponents)
    step = Step(
        "adam laws",
        "Adam and normalised steps: 2/5, then 1/6; 1 without noise",
        "In the layer v = G/(K B) ~ 1/D (the solver finds the mean square smaller): dividing by sqrt(v) speeds D up to "
        "alpha^(2/5) while the spread is negligible. It cannot stay so at a constant learning rate: no balance with vanishing "
        "Delta is consistent; kappa ~ Delta/2 and S ~ 2 sqrt(Delta/pi) then give the late law, loss ~ Delta/D. A learning rate "
        "falling as t^-g keeps the spread small under the condition shown: the loss never beats 1/3 for good. A normalised "
        "gradient without noise moves D at constant speed. With noise it is dominated by G, like Adam.",
        (
            Equation(r"\text{small spread: }-\frac{d\log L}{d\log t}", exponents["small"]),
            Equation(r"\text{late: }D", rf"t^{{{sympy.latex(late.exponents[LATE])}}}"),
            Equation(r"\text{late: }\Delta", rf"t^{{{sympy.latex(late.exponents[SPREAD])}}}"),
            Equation(r"\text{late: }-\frac{d\log L}{d\log t}", exponents["late"]),
            Equation(r"\text{falling: }-\frac{d\log L}{d\log t}", exponents["scheduled"]),
            Equation(r"\text{falling: }-\frac{d\log\mathrm{error}}{d\log t}", exponents["scheduled error"]),
            Equation(r"\text{Delta vanishes if}", conditions(scheduled)),
            Equation(r"\text{normalised, no noise: }D", noiseless.power_law(LATE).subs(OTHERS, K - 1)),
            Equation(r"\text{normalised, no noise: }-\frac{d\log L}{d\log\alpha}", exponents["noiseless"]),
        ),
        ("symmetry", "one scale", "numerical: layer"),
    )
    rows = (
        Escape("normalised gradient, no noise", exponents["noiseless"], None, noiseless, "no noise left: B >> d D^3"),
        Escape("Adam, while the spread is small", exponents["small"], None, small, "transient; ends when Delta reaches one"),
        Escape("Adam, late", exponents["late"], exponents["late error"], late, "slower than SGD"),
        Escape("Adam, learning rate ~ t^-g", exponents["scheduled"], exponents["scheduled error"], scheduled, "none"),
    )  # fmt: skip
    return step, laws, rows


# ---------------------------------------------------------------------------------------------------------------------
# Losses, smoothing, temperature
# ---------------------------------------------------------------------------------------------------------------------


def losses(
    others: tuple[MarginLoss, ...],
) -> tuple[Step, tuple[sympy.Expr, sympy.Expr], tuple[Escape, ...]]:
    """Focal and Brier: the layer's powers are those of cross-entropy. Square loss and label smoothing: D stops.

    The exponents between step and rows are those of the error: label smoothing, square loss.
    """
    curvature, focus = (sympy.Function(name, positive=True) for name in ("H_l", "kappa_l"))
    flow = {
        LATE: eta * MEAN_TOP * focus(SPREAD) / LATE**2,
        SPREAD: -2 * eta * MEAN_TOP * curvature(SPREAD) * SPREAD / LATE
        + eta**2 / batch * MEAN_TOP * NOISE(SPREAD) / LATE,
    }
    (same,) = dominant_balances(flow, TIME)
    rate = eta * TIME**-POWER
    stop = sympy.Function("H", positive=True)
    smoothed = {
        LATE: rate / OTHERS * ((1 - SMOOTHING) * MEAN_TOP - LATE * stop(LATE)),
        SPREAD: -2 * rate / OTHERS * stop(LATE) * SPREAD + rate**2 / (OTHERS * batch) * SECOND_MOMENT,
    }
    (smoothing,) = [b for b in dominant_balances(smoothed, TIME) if not b.free]
    squared = {
        LATE: rate * (MEAN_TOP / OTHERS - LATE),
        SPREAD: -2 * rate * SPREAD + rate**2 * SECOND_MOMENT / (OTHERS * batch),
    }
    (square,) = [b for b in dominant_balances(squared, TIME) if not b.free]
    errors = -smoothing.exponent(ERROR), -square.exponent(ERROR)
    step = Step(
        "other losses",
        "Other losses: the same third, or a stop",
        "Losses of the margin (focal, Brier) have the layer of cross-entropy with other functions of Delta: 1/3. Label smoothing "
        "and the square loss on logits have a fixed point in D: the excess loss is lost, but with eta ~ alpha^-g the spread "
        "falls as eta and the error as its root, for all g below one (from the solver): up to 1/2.",
        (
            Equation(r"\text{focal, Brier: }-\frac{d\log L}{d\log\alpha}", -same.exponent(LOSS)),
            Equation(r"\text{smoothing: }D", smoothing.prefactors[LATE]),
            Equation(r"\text{smoothing: }-\frac{d\log\mathrm{error}}{d\log\alpha}", errors[0]),
            Equation(r"\text{if}", conditions(smoothing)),
            Equation(r"\text{square loss: }D", square.prefactors[LATE].subs(OTHERS, K - 1)),
            Equation(r"\text{square loss: }-\frac{d\log\mathrm{error}}{d\log\alpha}", errors[1]),
            Equation(r"\text{if}", conditions(square)),
        ),
        ("symmetry", "numerical: layer"),
    )
    names = " and ".join(x.name for x in others if x.name != "cross_entropy")
    rows = (
        Escape(f"{names} loss", -same.exponent(LOSS), -same.exponent(ERROR), same, "another constant"),
        Escape("label smoothing, eta ~ alpha^-g", None, errors[0], smoothing, "loss has a floor; error alone"),
        Escape("square loss on logits, eta ~ alpha^-g", None, errors[1], square, "loss has a floor; error alone"),
    )  # fmt: skip
    return step, errors, rows


@dataclass(frozen=True)
class Heated:
    """beta ~ alpha^h, eta ~ alpha^-g, in D_e = beta D and Delta_e = beta^2 Delta.

    `noiseless`: eta constant; `driven`: D_e = beta D with D at rest, spread vanishing; `balanced`: g = 2 h.
    """

    noiseless: Balance
    driven: Balance
    slow: Balance
    balanced: Balance
    wide: Balance
    exponents: dict[str, sympy.Expr]


def heated_flow(kappa: sympy.Expr, noise: sympy.Expr, power: sympy.Expr) -> dict[sympy.Symbol, sympy.Expr]:
    """SGD of p = softmax(beta lam): eta_e = beta^2 eta, and dlog beta moves D_e and Delta_e."""
    rate = eta * TIME ** (2 * HEAT - power)
    flow = late_flow(kappa, noise, rate)
    return {LATE: flow[LATE] + HEAT / TIME * LATE, SPREAD: flow[SPREAD] + 2 * HEAT / TIME * SPREAD}


def temperature(form: Layer) -> tuple[Step, Heated, tuple[Escape, ...]]:
    """Logit-temperature schedules: exponents in h and g with their conditions."""
    quiet = heated_flow(form.kappa.subs(DELTA, 0), sympy.S.Zero, sympy.S.Zero)
    (noiseless,) = [b for b in dominant_balances({LATE: quiet[LATE]}, TIME) if not b.free]
    cold = dominant_balances(heated_flow(*still(form), POWER), TIME, growth={SPREAD: "vanishing"})
    (driven,) = [b for b in cold if b.free == (LATE,)]
    (slow,) = [b for b in cold if not b.free]
    balanced = dominant_balances(heated_flow(KAPPA(SPREAD), NOISE(SPREAD), 2 * HEAT), TIME)
    (balanced_driven,) = [b for b in balanced if b.free == (LATE,) and SPREAD in b.slaved]
    hot = dominant_balances(heated_flow(*wide(form), POWER), TIME, growth={SPREAD: "growing"})
    (wide_driven,) = [b for b in hot if b.free == (LATE,) and SPREAD in b.slaved]
    exponents = {
        "noiseless": -noiseless.exponent(LOSS),
        "driven": -driven.exponent(LOSS),
        "driven error": -driven.exponent(ERROR),
        "slow": -slow.exponent(LOSS),
        "balanced": -balanced_driven.exponent(LOSS),
        "balanced error": -balanced_driven.exponent(ERROR),
        "wide": -wide_driven.exponent(SPREAD / LATE),
        "wide error": -wide_driven.exponent(ERROR),
    }
    form_ = Heated(noiseless, driven, slow, balanced_driven, wide_driven, exponents)
    step = Step(
        "temperature schedule",
        "A falling temperature of the logits: p = softmax(beta lam), beta ~ alpha^h",
        "With D_e = beta D, Delta_e = beta^2 Delta, eta_e = beta^2 eta the closure is that of beta = 1, and beta itself adds "
        "h/alpha to the growth. Without noise and at constant eta the exponent is (1 + 2h)/3. With noise eta must fall, as "
        "alpha^-g. "
        "If g = 2h, eta_e is constant and so is Delta_e: for h above 1/3, D_e ~ alpha^h whatever the drift, loss and error fall "
        "with h, as long as the spread follows, h < 1. The limit h -> 1 is the rate 1/alpha of the best online learning of a "
        "realisable rule. For g > 2h the spread vanishes (loss h, error g/2); for g < 2h it grows (loss 2g - 3h).",
        (
            Equation(r"\text{no noise: }-\frac{d\log L}{d\log\alpha}", exponents["noiseless"]),
            Equation(r"\text{if}", conditions(noiseless)),
            Equation(r"g=2h:\ -\frac{d\log L}{d\log\alpha}", exponents["balanced"]),
            Equation(r"g=2h:\ -\frac{d\log\mathrm{error}}{d\log\alpha}", exponents["balanced error"]),
            Equation(r"\text{if}", conditions(balanced_driven)),
            Equation(r"g>2h:\ -\frac{d\log L}{d\log\alpha}", exponents["driven"]),
            Equation(r"g>2h:\ -\frac{d\log\mathrm{error}}{d\log\alpha}", exponents["driven error"]),
            Equation(r"\text{if}", conditions(driven)),
            Equation(r"g<2h:\ -\frac{d\log L}{d\log\alpha}", exponents["wide"]),
            Equation(r"\text{if}", conditions(wide_driven)),
            Equation(r"\text{weak heating: }-\frac{d\log L}{d\log\alpha}", exponents["slow"]),
            Equation(r"\text{if}", conditions(slow)),
        ),
        ("symmetry", "noise", "numerical: layer"),
    )
    rows = (
        Escape("logit temperature beta ~ alpha^h, no noise", exponents["noiseless"], None, noiseless, "no noise"),
        Escape("beta ~ alpha^h, eta ~ alpha^-2h", exponents["balanced"], exponents["balanced error"], balanced_driven,
               "a schedule for beta, and a constant eta_e"),
        Escape("beta ~ alpha^h, eta ~ alpha^-g, g > 2h", exponents["driven"], exponents["driven error"], driven,
               "two schedules"),
    )  # fmt: skip
    return step, form_, rows


# ---------------------------------------------------------------------------------------------------------------------
# The learning rate and the batch
# ---------------------------------------------------------------------------------------------------------------------


def learning_rate(late: Balance) -> Step:
    """The best constant eta, and what a decay phase (WSD) or a larger batch changes: prefactors."""
    kappa = sympy.Symbol("kappa", positive=True)
    D = late.power_law(LATE).replace(lambda e: isinstance(e, type(KAPPA(SPREAD))), lambda _: kappa)
    loss = sympy.powsimp(MEAN_TOP * kappa / D)
    figure = sympy.simplify(loss**3 * eta / kappa**2)
    if figure.has(kappa) or figure.has(eta):
        raise InputError("loss", expected="L^3 ~ kappa^2/eta", got=str(loss), remedy="check the late law")
    clock = sympy.Symbol("tau", positive=True)
    (by_clock,) = dominant_balances({LATE: MEAN_TOP * kappa / (OTHERS * LATE**2)}, clock)
    return Step(
        "learning rate",
        "Learning rate, batch and warm-up-stable-decay change prefactors",
        "At constant eta L^3 alpha is kappa(Delta_inf)^2/eta times the second line, and Delta_inf depends on r = eta/B alone: the "
        "best eta/B minimises kappa^2/r, one number for all K (the check finds it). At fixed r a larger batch gives the "
        "same loss at the same number of samples, proportional to B alpha (third line). In the clock "
        "tau = int eta dalpha the law is the same for any schedule: a "
        "decay phase (WSD) takes kappa to pi^2/12 m, once, and D grows with int eta.",
        (
            Equation("L", loss.subs(OTHERS, K - 1)),
            Equation(r"L^3\eta/\kappa^2", figure.subs(OTHERS, K - 1)),
            Equation(
                "L(r)", sympy.simplify(loss.subs(eta, sympy.Symbol("r", positive=True) * batch)).subs(OTHERS, K - 1)
            ),
            Equation(r"D(\tau)", by_clock.power_law(LATE).subs(OTHERS, K - 1)),
        ),
        ("symmetry", "noise", "numerical: layer"),
    )


def sgd_rows(late: Late, scheduled: Scheduled) -> tuple[Escape, ...]:
    """What the escapes are measured against: SGD at constant eta and under a power schedule."""
    return (
        Escape("SGD, constant eta (any batch)", late.loss, late.error, late.balance, "none"),
        Escape("SGD, eta ~ alpha^-g", scheduled.loss, scheduled.error, scheduled.follows, "the loss slows down"),
    )


def table(rows: tuple[Escape, ...]) -> Table:
    """All escapes side by side."""
    return Table(
        "Escapes",
        ("what", "exponent of the excess loss", "of the error", "needs", "cost"),
        tuple(r.row() for r in rows),
    )
