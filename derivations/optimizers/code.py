"""The formulas as functions of the generated module: what `odescale.optimizers` reads, and the laws of the pages."""

from __future__ import annotations

import sympy

from derivations.optimizers.adam import SecondMoment
from derivations.optimizers.laws import GAIN, Exponents, Floors
from derivations.optimizers.muon import NOISE, STRENGTH, Gram
from derivations.optimizers.notation import (
    ALPHA,
    AMPLITUDE,
    BETA,
    BETA1,
    BETA2,
    CAPACITY,
    CODE,
    DAMPING,
    EPS,
    FORGETTING,
    KEPT,
    LOSS,
    MEAN_SQUARE,
    RATE,
    ROOT,
    SECOND,
    SHARE,
    SOURCE,
    SQUARE,
    TARGET,
    TIME,
)
from derivations.optimizers.notation import NOISE as VARIANCE
from derivations.optimizers.signs import COSINE, Lion, Signs
from derivations.optimizers.step import Average
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Output
from odescale.symbolic.scalar_writer import to_jax
from odescale.symbolic.sgd import batch, lam, trace

MEANS = sympy.Symbol("m", positive=True)
NAMES = {
    **CODE, STRENGTH: "strength", NOISE: "noise", MEANS: "mean", COSINE: "cosine",
    sympy.asin(COSINE): "arcsine(cosine)",
}  # fmt: skip


def _function(
    name: str, takes: tuple[sympy.Symbol, ...], about: str, value: sympy.Expr, names: dict[sympy.Basic, str] = NAMES
) -> Output:
    arguments = [f"{names[symbol]}: Number" for symbol in takes]
    return Output(name, function_source(name, arguments, about, [f"return {to_jax(value, names)}"], "Array"))


def averages(found: Average) -> tuple[Output, ...]:
    """Momentum: rate of the velocities, share of the present gradient, bias, noise."""
    plain, ahead = (to_jax(share, NAMES) for share in found.presents)
    share = function_source(
        "present_share", ("beta: Number", "nesterov: bool = False"),
        "s of a move by s g + (1 - s) m, m the average before the step: 1 - beta, or 1 - beta^2 with Nesterov's look-ahead.",
        [f"return {ahead} if nesterov else {plain}"], "Array",
    )  # fmt: skip
    return (
        _function(
            "velocity_damping", (trace, BETA), "gamma per unit of t, which keeps the mean delay of the average.",
            found.damping,
        ),
        Output("present_share", share),
        _function(
            "average_bias", (SHARE, DAMPING, TIME),
            "What an average that began with zero velocities weighs in all: Adam divides by it.", found.bias,
        ),
        _function(
            "average_noise", (BETA, SHARE), "Squared weights of the average, its noise in units of lam V/(B N).", found.noise
        ),
    )  # fmt: skip


def adam(moment: SecondMoment, entry: sympy.Expr, drift: sympy.Expr) -> tuple[Output, ...]:
    """Adam's second moment and its preconditioner."""
    return (
        _function(
            "second_moment_target", (lam, VARIANCE, batch, MEAN_SQUARE, trace),
            "What N times the second moment relaxes to: noise lam V_ii/B, and (h_k q_k h_k^T)_ii/N of the mean.", moment.target,
        ),
        _function("second_moment_forgetting", (trace, BETA2), "g2 per unit of t.", moment.forgetting),
        _function(
            "second_moment", (KEPT, TARGET, BETA2, FORGETTING, TIME),
            "Bias-corrected moment of the step at t, its own gradient included; `kept` obeys du/dt = g2 (target - u), u(0) = 0.",
            moment.held,
        ),
        _function(
            "second_moment_of_drift", (SECOND, MEAN_SQUARE, trace),
            "What the drift divides by in place of v: the square of the mean counts three times, once in v.", drift,
        ),
        _function("adam_preconditioner", (RATE, SECOND, EPS, trace), "Diagonal of P_k: a/(sqrt v + eps sqrt N).", entry),
    )  # fmt: skip


def muon(gram: Gram, exact: tuple[sympy.Expr, ...], scalar: sympy.Expr) -> tuple[Output, ...]:
    """K with and without velocities; one iteration of Newton and Schulz."""
    coefficients = ", ".join(to_jax(value) for value in exact)
    value = sympy.Symbol("sigma", real=True)
    # Each power of the singular value is a power of the Gram matrix times X.
    powers = {1: "one", 3: "gram", 5: "gram @ gram"}
    terms = [(str(scalar.coeff(value, n)), powers[n]) for n in powers]
    named = dict(zip((name for name, _ in terms), ("a", "b", "c"), strict=True))
    body = " + ".join(f"{named[name]} * {power}" for name, power in terms)
    iteration = function_source(
        "newton_schulz_factor", ("gram: Array", "a: Number", "b: Number", "c: Number"),
        "f(A), A (b, b) the Gram matrix of X: one iteration is X <- f(A) X, A <- f(A) A f(A).",
        ["one = jnp.eye(len(gram), dtype=gram.dtype)", f"return {body}"], "Array",
    )  # fmt: skip
    quintic = function_source(
        "exact_coefficients", (), "(a, b, c) of the quintic whose fixed point 1 is of third order.",
        [f"return {coefficients}"], "tuple[float, float, float]",
    )  # fmt: skip
    return (
        _function(
            "gram_of_average", (STRENGTH, NOISE, batch, MEANS, trace),
            "K = nu N V/B + m, `strength` nu of `average_noise`, `mean` m = sum_k w_k h_k q_k h_k^T.", gram.closed,
        ),
        _function(
            "missing_noise", (BETA, SHARE, DAMPING, TIME),
            "What K = r + this N V/B needs beside the overlaps r of s h + (1 - s) U, velocities U from zero at t = 0.",
            gram.missing,
        ),
        Output("newton_schulz_factor", iteration),
        Output("exact_coefficients", quintic),
    )  # fmt: skip


def signs(sign: Signs, lion: Lion, clip: sympy.Expr) -> tuple[Output, ...]:
    """Weights of a batch and noise under sign, Lion and clipping."""
    condition, quotient = sorted(clip.args, key=lambda x: bool(x.free_symbols))
    bound = function_source(
        "clip_weight", ("square: Number", "clip: Number"),
        "min(1, c/|g|) of a batch, `square` |g|^2 = sum_i g_ii over all rows that move.",
        [f"return jnp.minimum({to_jax(condition)}.0, {to_jax(quotient, NAMES)})"], "Array",
    )  # fmt: skip
    return (
        _function(
            "sign_weight", (SQUARE,),
            "Weight sqrt(2/pi)/|g|_i of a batch in drift, `square` = |g|_i^2 = g_ii (Lion: `lion_square`).", sign.weight,
        ),
        _function(
            "sign_noise", (COSINE,), "E[sgn sgn] of two rows whose coordinates correlate by `cosine` given the fields.", sign.noise
        ),
        _function(
            "lion_square", (SQUARE, VARIANCE, batch, BETA1, BETA2),
            "sigma_i^2: variance of Lion's c over lam/N given the fields of the present batch; entry i, j with g_ij and V_ij.",
            lion.square,
        ),
        _function(
            "lion_past", (BETA1, BETA2), "Squared weights of the past in c; carried velocities take this linear part of the noise.",
            lion.past
        ),
        _function(
            "lion_lags", (BETA1, BETA2),
            "sum over l != 0 of the correlations of c at lag l (first order of the arcsine), where velocities are not carried.",
            lion.summed,
        ),
        Output("clip_weight", bound),
    )  # fmt: skip


def laws(found: Exponents, floors: Floors) -> tuple[Output, ...]:
    """Exponents and floors of the linear model."""
    half = batch / 2 + sympy.Rational(1, 2)
    ratio = sympy.gamma(half) / sympy.gamma(batch / 2)
    front = floors.sign_gain / ratio
    assert not front.free_symbols
    gain = front * sympy.exp(sympy.loggamma(half) - sympy.loggamma(batch / 2))
    logs = {
        sympy.loggamma(batch / 2): "gammaln(batch / 2)",
        sympy.loggamma(half): "gammaln(batch / 2 + 0.5)",
    }
    sign_floor = function_source(
        "sign_floor", ("rate: Number", "batch: Number", "root: Number"),
        "L at rest under the sign, linear model, one row; `root` = (1/N) sum_k sqrt lam_k.",
        [f"return {to_jax(floors.sign_by_gain, NAMES | {GAIN: 'sign_gain(batch)'})}"], "Array",
    )  # fmt: skip
    return (
        _function(
            "adam_exponent", (SOURCE, CAPACITY), "2 alpha of 2L = A tau^(-2 alpha), lam_k = k^-b, lam_k q_k(0) = k^-c.", found.power
        ),
        _function(
            "adam_exponent_of_time", (ALPHA,), "-d log L/d log t at a constant rate before the floor, alpha < 1.",
            found.in_time,
        ),
        _function(
            "adam_loss_slope", (LOSS, RATE, batch, AMPLITUDE, ALPHA),
            "dL/dt of the bias alone, `amplitude` A of 2L = A tau^(-2 alpha), alpha = (c - 1)/b.", found.slope,
        ),
        _function(
            "adam_floor", (RATE, batch, ROOT), "L at rest under Adam in the eigenbasis, `root` = (1/N) sum_k sqrt lam_k.",
            floors.adam,
        ),
        _function(
            "sign_gain", (batch,), "c_B: the sign's drift is -a c_B sqrt(lam_k/V), linear model, one row.",
            gain, NAMES | logs,
        ),
        Output("sign_floor", sign_floor),
    )  # fmt: skip
