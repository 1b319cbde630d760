"""Sign of the gradient and Lion at any batch, and clipping by the global norm: averages over the fields of a whole batch."""

from __future__ import annotations

from dataclasses import dataclass

import sympy
from sympy import S

from derivations.optimizers.notation import (
    BETA,
    BETA1,
    BETA2,
    CLIP,
    NOISE,
    RATE,
    SHARE,
    SQUARE,
)
from derivations.optimizers.step import Average
from odescale.errors import InputError
from odescale.symbolic.gaussian import Gaussian, arcsine_law
from odescale.symbolic.record import Equation, Step
from odescale.symbolic.sgd import batch, lam, trace

MEAN, COSINE = sympy.Symbol("m", real=True), sympy.Symbol("r", real=True)
"""N times the mean of a coordinate given the fields; correlation of two rows' coordinates given the fields."""
SHARP = sympy.Symbol("kappa", positive=True)
LAG = sympy.Symbol("l", integer=True, positive=True)


@dataclass(frozen=True)
class Signs:
    """Given the fields of a batch: `drift` of N E[Delta W] from m, `weight` of a batch in it, `noise` of two rows."""

    drift: sympy.Expr
    weight: sympy.Expr
    noise: sympy.Expr


@dataclass(frozen=True)
class Lion:
    """Lion's c given the fields of the present batch, and its noise.

    - `square`: variance in units of lam/N. `past`: squared weights of m alone, beta1 included.
    - `correlation`: of c at lag l >= 1 over the variance, V one and the same. `summed`: over all lags l != 0, first order.
    - `third`: the next order of the arcsine over the first, at its largest. `direct`: noise beside carried velocities.
    """

    square: sympy.Expr
    past: sympy.Expr
    correlation: sympy.Expr
    summed: sympy.Expr
    third: sympy.Expr
    direct: sympy.Expr


def sign() -> tuple[Step, Signs]:
    """E[sgn] by the erf of a mean, E[sgn sgn] by the arcsine law, both sharpened."""
    y, z = sympy.symbols("y z")
    size = sympy.sqrt(lam * SQUARE / trace)
    one = Gaussian((y,), sympy.ImmutableMatrix([[size**2]]), (MEAN / trace,)).expect(sympy.erf(SHARP * y))
    inner = sympy.limit(sympy.simplify(one.args[0]), SHARP, sympy.oo)
    exact = sympy.erf(inner)
    root = sympy.Symbol("x", positive=True)
    drift = sympy.simplify(sympy.limit((-RATE * sympy.sqrt(trace) * exact).subs(trace, root**2), root, sympy.oo))
    weight = sympy.simplify(-drift / RATE / MEAN * sympy.sqrt(lam))
    covariance = sympy.Matrix([[1, COSINE], [COSINE, 1]])
    pair = arcsine_law((SHARP, S.Zero), (S.Zero, SHARP), covariance)
    (law,) = pair.atoms(sympy.asin)
    noise = pair.subs(law, sympy.asin(sympy.limit(sympy.simplify(law.args[0]), SHARP, sympy.oo)))
    large = sympy.simplify(drift.subs(SQUARE, NOISE / batch))
    step = Step(
        "sign", "Sign of the gradient at any batch",
        "Given the fields of the B sequences of a batch the entries x_btk are Gaussian, so a coordinate of the batch's "
        "gradient is: mean m/N, m = sum_b sum_t g_bti lambda a^T C^-1 phi_bt/B + (the same for H), variance lambda |g|_i^2/N "
        "with g_ij = sum_b sum_ts rho_ts g_bti g_bsj/B^2, |g|_i^2 = g_ii. Its sign has the mean of the first line, exactly at "
        "this Gaussian; with the step a/sqrt(N), N steps make the second line. Averaged over batches the drift of mode k is "
        "-a (sqrt(lambda_k) G^s + H^s/sqrt(lambda_k)), with G^s C = E[sum_b sum_t g_bti phi_bt/B times the third line] and "
        "H^s alike: every batch counts by its direction alone. Noise: two rows' signs correlate by the arcsine of r_ij = "
        "g_ij/(|g|_i |g|_j), fourth line; a^2 E of it, a^2 itself on the diagonal, and no lambda. At large B |g|_i^2 does not "
        "fluctuate and is V_ii/B, last line: Adam's drift times sqrt(2/pi); the noise keeps its arcsine. Zero slopes must "
        "have probability zero.",
        (
            Equation(r"\mathrm{E}\,\mathrm{sgn}", exact),
            Equation(r"N\,\Delta W", drift),
            Equation(r"\sqrt{2/\pi}/|g|_i", weight),
            Equation(r"\mathrm{E}\,\mathrm{sgn}_i\,\mathrm{sgn}_j", noise),
            Equation(r"\left.N\,\Delta W\right|_{B\to\infty}", large),
        ),
        ("gaussian", "separable", "online", "dimension", "aligned"),
    )  # fmt: skip
    return step, Signs(drift, weight, noise)


def lion(found: Average) -> tuple[Step, Lion]:
    """c = beta1 m + (1 - beta1) g^ is the average with s = 1 - beta1 and the memory beta2."""
    numbers = {SHARE: 1 - BETA1, BETA: BETA2}
    past = (found.noise - SHARE**2).subs(numbers)
    square = (1 - BETA1) ** 2 * SQUARE + past * NOISE / batch
    # Shared gradients of c_n and c_(n+l): s w_l + sum_j w_j w_(j+l), by the geometric sum that made the noise.
    (j,) = (symbol for symbol in found.weight.free_symbols if symbol.name == "j")
    shared = SHARE * found.weight.subs(j, LAG) + BETA**LAG * (found.noise - SHARE**2)
    shared, variance = shared.subs(numbers), found.noise.subs(numbers)
    front = sympy.factor(sympy.powsimp(sympy.expand(shared / BETA2**LAG)))
    correlation = front * BETA2**LAG / variance
    # sum over l >= 1 of beta2^l, both signs of the lag.
    summed = sympy.factor(2 * front * BETA2 / (1 - BETA2) / variance)
    closed = (1 - variance) / variance
    gap = sympy.cancel(summed - closed)
    if gap != 0:
        raise InputError(
            "lags", expected="all covariances to add up to one", got=str(gap), remedy="check the shared gradients"
        )
    # asin r = r + r^3/6: sum of cubes over sum, r of lag one at the head.
    first = sympy.Symbol("r_1", positive=True)
    third = first**2 / 6 * (1 - BETA2) / (1 - BETA2**3)
    sizes = sympy.Symbol("sigma_i", positive=True) * sympy.Symbol("sigma_j", positive=True)
    direct = 2 / sympy.pi * (sympy.asin(COSINE) - past * sympy.Symbol("V_ij", real=True) / (batch * sizes))
    own = sympy.Symbol("sigma^2", positive=True)
    head = BETA1 * (1 - BETA2) * (1 - BETA1 + BETA2) / (1 + BETA2) * BETA2 ** (LAG - 1)
    if sympy.simplify(head / (front * BETA2**LAG)) != 1:
        raise InputError("correlation", expected=str(head), got=str(front), remedy="check the shared gradients")
    step = Step(
        "lion", "Lion: the sign of an average, its noise summed over lags",
        "W <- W - (a/sqrt N) sgn(c), c = beta_1 m + (1 - beta_1) g^, m <- beta_2 m + (1 - beta_2) g^: the average of step 4 "
        "with s = 1 - beta_1 and beta = beta_2. Given the fields of the present batch its variance is lambda/N times the "
        "first line, sigma_i^2 (the past as its average, of relative fluctuation 1 - beta_2), its mean (1 - beta_1) times "
        "that of the sign and beta_1 U/N: the drift is sign's with sigma_i for |g|_i and a part -a sqrt(2/pi) E[1/sigma_i] "
        "beta_1 U/sqrt(lambda). Signs of different steps correlate through shared gradients: with sigma^2 the variance in "
        "units of V/B (second line, one V for all batches) the correlation at lag l >= 1 is the third line, a geometric "
        "sequence. Summed over both signs of l at first order of the arcsine it is the fourth line, since all covariances add "
        "up to one: the noise of W at long times is a^2 (2/pi) (E asin r_ij + (1 - sigma^2) V_ij/(sigma^2 sqrt(V_ii V_jj))). "
        "The next order adds the fifth line's share to the sum, r_1 the correlation at lag one: .7 per cent at beta_1 = .9, "
        "beta_2 = .99, 1/18 at most. With velocities carried the later lags come by themselves, since U holds the noise of "
        "the past and moves W linearly: what remains at one step is the last line, the arcsine less the linear part of the "
        "past; and W and U share the noise of the present, load (1 - beta_1) sqrt(2/pi) E[g_ij/sigma_i] against gamma. Signs "
        "saturate where beta_1^2 U^2/(N lambda sigma_i^2) is not small: sigma^2 = .014 at (.9, .99) leaves a seventieth of N "
        "for that.",
        (
            Equation(r"\sigma_i^2", square),
            Equation(own, variance),
            Equation("r_l", head / own),
            Equation(r"\sum_{l\neq0}r_l", (1 - own) / own),
            Equation(r"\sum_l\left(\arcsin r_l-r_l\right)/\sum_lr_l", third),
            Equation(r"\mathrm{noise}_{ij}/a^2", direct),
        ),
        ("gaussian", "separable", "online", "dimension", "aligned", "long memory"),
    )  # fmt: skip
    return step, Lion(square, past, correlation, closed, third, direct)


def clip() -> tuple[Step, sympy.Expr]:
    """The weight of a batch under a largest norm of the whole gradient."""
    # sum_k lam_k z_k^2/N of unit Gaussians: mean and variance of |g^_i|^2/|g|_i^2.
    spread = sympy.sqrt(2 / sympy.Symbol("d_eff", positive=True))
    weight = sympy.Min(1, CLIP / sympy.sqrt(SQUARE))
    step = Step(
        "clip", "Clipping by the global norm",
        "g^ <- g^ min(1, c/|g^|), |g^|^2 over all rows that move and all their entries. Given the fields, |g^_i|^2 = sum_k "
        "lambda_k |g|_i^2 z_k^2/N: it concentrates on |g|_i^2, relative fluctuation first line, and the norm on |g|^2 = sum_i "
        "|g|_i^2. So a batch has the weight of the second line, g_ii summed over rows, a function of its fields: it stands in "
        "every average, once in the drift, G C = E[weight sum_b sum_t g_bt phi_bt^T/B] and H alike, twice in the noise, V/B = "
        "E[weight^2 g_ij]. Rows that only write add a norm of order 1/N: nothing. Whatever follows the clipping, momentum, "
        "Adam or Muon, reads these G, H, V.",
        (Equation(r"\sqrt{\mathrm{Var}\,|\hat g_i|^2}/|g|_i^2", spread), Equation("weight", weight)),
        ("gaussian", "separable", "online", "dimension"),
    )  # fmt: skip
    return step, weight
