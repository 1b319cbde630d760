"""Optimisers as preconditioners per mode: Adam, AdamW, momentum, Muon, sign, Lion and clipping, from the update of the weights.

    dq_k/dt = M_k q_k + q_k M_k^T + lam_k P_k V P_k^T/B,      M_k = -P_k (lam_k G + H) - w S

Read from top to bottom: the noise of a coordinate of the gradient, the general step, momentum; then what P_k is for each
optimiser, and what follows for the exponents of the loss.
"""

from __future__ import annotations

from functools import cache

import sympy

from derivations.optimizers import (
    adam,
    checks,
    checks_exponents,
    checks_laws,
    checks_signs,
    code,
    exponents,
    laws,
    muon,
    signs,
    step,
)
from derivations.optimizers.notation import (
    ALPHA,
    AMPLITUDE,
    BETA,
    BETA1,
    BETA2,
    CAPACITY,
    CLIP,
    DAMPING,
    EPS,
    FORGETTING,
    INTRINSIC,
    KURTOSIS,
    RATE,
    ROOT,
    SECOND,
    SHARE,
    SOURCE,
    SQUARE,
    TIME,
)
from odescale.symbolic.record import Assumption, Derivation, Parameter
from odescale.symbolic.sgd import batch, decay, lam, trace


@cache
def derive() -> Derivation:
    """The whole derivation."""
    coordinates_step, coordinates = step.coordinates()
    preconditioned, flow, _ = step.preconditioned()
    momentum, increments = step.momentum()
    average_step, average = step.average()
    moment_step, moment = adam.second_moment(coordinates)
    adam_step, entry = adam.preconditioner()
    mean_step, drift_moment = adam.mean_in_v()
    own, drift_factor, noise_factor = adam.own_noise()
    rotated, rotated_rate = adam.rotated(entry)
    muon_step, gram = muon.gram(average)
    few, few_drift, few_noise = muon.few_batches()
    schulz, exact, scalar = muon.newton_schulz()
    shampoo, _, shampoo_error = muon.shampoo()
    sign_step, sign = signs.sign()
    lion_step, lion = signs.lion(average)
    clip_step, clip = signs.clip()
    silent = entry.subs(EPS, 0)
    exponent_step, powers = laws.exponents(silent)
    floor_step, floors = laws.floors(silent, rotated_rate, sign)
    race_step, race = laws.race(silent, powers, floors.adam)
    muon_law_step, muon_laws = exponents.muon_power_law()
    noisy_step, noisy = exponents.noisy_race(silent)
    memory_step, memory = exponents.memory_of_v()
    outputs = (
        *code.averages(average), *code.adam(moment, entry, drift_moment), *code.muon(gram, exact, scalar),
        *code.signs(sign, lion, clip), *code.laws(powers, floors),
    )  # fmt: skip
    sources = tuple(output.source for output in outputs)
    return Derivation(
        name="optimizers",
        title="Optimisers as preconditioners per mode",
        summary="As d grows the noise of a coordinate's gradient sets its second moment, a function of the overlaps: "
        "an optimiser is a preconditioner P_k for each eigenmode. From the update of the weights: momentum, Adam and AdamW, Muon, "
        "Shampoo's left factor, sign and Lion at any batch, clipping; what stays outside; exponents and floors of the loss.",
        states=(
            Parameter(
                sympy.Symbol("q_k"), "overlaps of the rows and velocities in eigenmode k", "positive semi-definite"
            ),
            Parameter(SECOND, "N times Adam's second moment, per mode and row", ">= 0"),
        ),
        parameters=(
            Parameter(TIME, "time", ">= 0", "N = tr Sigma steps"),
            Parameter(trace, "tr Sigma", "> 0"),
            Parameter(
                RATE,
                "rate that stays fixed as N grows; per step a/sqrt(N) in Adam, sign and Lion, a in Muon",
                "> 0",
            ),
            Parameter(batch, "sequences per step", ">= 1", "sequences"),
            Parameter(lam, "eigenvalue of the token covariance in the mode", "> 0"),
            Parameter(decay, "decoupled decay, W -> W - (w/N) W per step", ">= 0", "per unit of t"),
            Parameter(BETA, "memory of the average of gradients (mu in Muon)", "0 <= beta < 1"),
            Parameter(SHARE, "share of the present gradient in the move", "0 < s <= 1"),
            Parameter(DAMPING, "rate of the velocities", "> 0", "per unit of t"),
            Parameter(BETA1, "Adam's and Lion's beta_1", "0 <= beta_1 < 1"),
            Parameter(BETA2, "Adam's and Lion's beta_2", "0 <= beta_2 < 1"),
            Parameter(FORGETTING, "rate at which v forgets", "> 0", "per unit of t"),
            Parameter(EPS, "Adam's eps, in units of the gradient", ">= 0"),
            Parameter(CLIP, "largest norm of the whole gradient", "> 0"),
            Parameter(SQUARE, "|g|_i^2 of a batch, sum_b sum_ts rho_ts g_bti g_bsi/B^2", ">= 0"),
            Parameter(KURTOSIS, "E[ghat^4]/E[ghat^2]^2 of a coordinate of the gradient", ">= 1"),
            Parameter(SOURCE, "power of the start, lambda_k q_k(0) = k^-c", "> 1"),
            Parameter(CAPACITY, "power of the eigenvalues, lambda_k = k^-b", "> 1"),
            Parameter(ALPHA, "SGD's exponent (c - 1)/b", "> 0"),
            Parameter(INTRINSIC, "intrinsic time int a sqrt(B/V) dt", "> 0"),
            Parameter(AMPLITUDE, "amplitude of the bias, 2L = A tau^(-2 alpha)", "> 0"),
            Parameter(ROOT, "mean root of the spectrum, (1/N) sum_k sqrt lambda_k", "> 0"),
            Parameter(exponents.SQUARES, "squared weights of Muon's average of gradients", "0 < nu <= 1"),
            Parameter(exponents.LABELS, "root of the labels' variance", "> 0"),
            Parameter(exponents.FLOOR, "excess mean square error at rest", "> 0"),
            Parameter(exponents.PLAIN, "amplitude of SGD's bias, 2L = A_1 (eta t)^-alpha", "> 0"),
            Parameter(laws.FRACTION, "rate over the rate whose floor is the present loss", "0 < theta < 1"),
        ),
        assumptions=(
            Assumption("gaussian", "Tokens are Gaussian with zero mean."),
            Assumption("separable", "E[x_t x_s^T] = rho_ts Sigma."),
            Assumption("online", "Every step uses fresh sequences."),
            Assumption("dimension", "N = tr Sigma and d_eff = N^2/tr Sigma^2 are large, the number of rows fixed."),
            Assumption("next order", "Of the 1/N terms of a second moment the one that grows with B is kept."),
            Assumption("gaussian rows", "The entries of the rows in a mode are Gaussian, as at a random start."),
            Assumption(
                "frozen",
                "P is independent of the gradient of its own step: it is an average over many steps or coordinates.",
            ),
            Assumption("long memory", "1/(1 - beta_2) is large: the past of Lion's average does not fluctuate."),
            Assumption("aligned", "The coordinates of the weights are the eigenvectors of Sigma."),
            Assumption("rotated", "They are a rotation of them that knows nothing of Sigma."),
            Assumption("linear", "One row, square loss, linear model, no label noise: G = 1, H = 0, V = 2L."),
            Assumption("dense", "Modes are so dense that sums over k are integrals."),
            Assumption("no lag", "v and the average of gradients are those of now, eps = 0, without the 1/N term."),
            Assumption("noise-free", "The heat of the noise is left out."),
        ),
        steps=(
            coordinates_step.checked(checks.coordinates, coordinates),
            preconditioned.checked(checks.one_step, flow),
            momentum.checked(checks.momentum, increments),
            average_step.checked(checks.average, average, sources),
            moment_step.checked(checks.adam_run, sources),
            adam_step,
            mean_step.checked(checks.adam_run, sources, 16),
            own.checked(checks.noise_of_v, drift_factor, noise_factor),
            rotated.checked(checks.rotated),
            adam.written().checked(checks.written),
            muon_step.checked(checks.muon_run, sources),
            few.checked(checks.few_batches, few_drift, few_noise),
            schulz.checked(checks.newton_schulz, sources),
            shampoo.checked(checks.shampoo, shampoo_error),
            sign_step.checked(checks_signs.sign_step, sources),
            lion_step.checked(checks_signs.lion_lags, lion, sources),
            clip_step.checked(checks_signs.clip_step, sources),
            exponent_step.checked(checks_laws.exponents, powers),
            floor_step.checked(checks_laws.floors, floors),
            race_step.checked(checks_laws.race, race),
            muon_law_step.checked(checks_exponents.muon_power_law, muon_laws),
            noisy_step.checked(checks_exponents.noisy_race, noisy),
            memory_step.checked(checks_exponents.memory_of_v, memory),
        ),
        sources=(
            "Kingma & Ba 2015: Adam; Loshchilov & Hutter 2019: AdamW",
            "Jordan et al. 2024: Muon; Gupta, Koren & Singer 2018: Shampoo; Chen et al. 2023: Lion",
            "derivations `mean_field` (moments of a gradient) and `schedule` (SGD's law on a power-law spectrum)",
        ),
        outputs=outputs,
        imports=(
            "from typing import Any",
            "",
            "import jax.numpy as jnp",
            "from jax import Array",
            "from jax.scipy.special import gammaln",
            "",
            "from odescale.expectations.arcsine import arcsine",
            "",
            "Number = Any",
            '"""An array or a float."""',
        ),
    )
