"""Peaked distributions: from one SGD step of softmax regression to the one-third law, its ends and its escapes."""

from __future__ import annotations

from functools import cache

from derivations.peaked import (
    adam,
    checks,
    checks_integrals,
    checks_laws,
    checks_unit,
    closure,
    escapes,
    expansion,
    laws,
    layers,
    unit,
)
from derivations.peaked.notation import BETA, DELTA, DIMENSION, RATE, SMOOTHING, TEACHER_BETA, TIME, D, K
from odescale.symbolic.record import Assumption, Derivation, Parameter
from odescale.symbolic.sgd import batch, decay, eta


@cache
def derive() -> Derivation:
    """The whole derivation."""
    gradient, slope = closure.gradient()
    overlaps, flow = closure.overlaps(slope)
    adam_step, normalised, forms = adam.derive_normalised(flow)
    low_temperature, limit = expansion.low_temperature()
    two_classes, pair = expansion.two_classes()
    layer_step, layer = layers.layer()
    margin_step, margins = layers.margin_losses()
    third_step, third = laws.one_third(limit, pair)
    late_step, late = laws.with_noise(layer)
    schedule_step, scheduled = laws.schedule(layer)
    decay_step, decayed = laws.weight_decay()
    finite_step, finite = laws.finite_temperature(limit)
    adam_laws, normalised_laws, adam_rows = escapes.adam(forms, layer)
    losses, loss_errors, loss_rows = escapes.losses(margins)
    temperature, heated, temperature_rows = escapes.temperature(layer)
    sign_step, signs = unit.signs()
    many_step, many_drift, many_noise = unit.many_samples(flow, signs)
    hardest_step, hardest = unit.hardest()
    sign_laws, unit_laws = unit.laws(signs, hardest)
    muon_step, whitened = unit.muon(flow, forms, signs)
    rows = (*escapes.sgd_rows(late, scheduled), *adam_rows, *unit.rows(unit_laws), *loss_rows, *temperature_rows)
    return Derivation(
        name="peaked",
        title="Peaked distributions: the one-third law",
        summary="Online SGD of softmax cross-entropy with K classes on Gaussian inputs and a linear teacher: the closed flow "
        "of overlap D and spread Delta, its exact representation without cancellation, the power law of its late stage from a "
        "balance of powers, where that ends (finite teacher temperature, weight decay), and what would beat it.",
        states=(
            Parameter(D, "overlap with the teacher, P W W*^T/d = D P", "real"),
            Parameter(DELTA, "spread at right angles to the teacher, P W W^T/d = (D^2 + Delta) P", ">= 0"),
        ),
        parameters=(
            Parameter(TIME, "time", ">= 0", "d SGD steps (Adam: one step)"),
            Parameter(K, "classes", ">= 2"),
            Parameter(eta, "learning rate eta(t)", "> 0", "per SGD step"),
            Parameter(RATE, "Adam's learning rate per weight", "> 0", "per step"),
            Parameter(batch, "samples per SGD step", ">= 1", "samples"),
            Parameter(decay, "weight decay, W -> W - (w/d) W per step", ">= 0", "per unit of alpha"),
            Parameter(DIMENSION, "inputs", ">= 2 K"),
            Parameter(TEACHER_BETA, "inverse temperature of the teacher; infinite for hard labels", "> 0"),
            Parameter(BETA, "inverse temperature of the student's softmax", "> 0"),
            Parameter(SMOOTHING, "label smoothing, y -> (1 - eps) y + eps/K", "0 <= eps < 1"),
        ),
        assumptions=(
            Assumption("gaussian", "Inputs are standard Gaussian, x ~ N(0, I_d)."),
            Assumption("online", "Every SGD step uses fresh samples."),
            Assumption("dimension", "d is large, K fixed."),
            Assumption(
                "symmetry",
                "The classes are equivalent: W* W*^T/d = I, and the start has P R = D P, P Q P = (D^2 + Delta) P.",
            ),
            Assumption("noise", "The fluctuation of the gradient is kept: eta^2/B."),
            Assumption(
                "one scale", "Adam divides every weight by the same sqrt(v); in the asymptotics v is that of now."
            ),
            Assumption("large batch", "B is large, so that the norm of the minibatch gradient does not fluctuate."),
            Assumption(
                "single samples",
                "D is well above the number of samples that a step divides by: the hardest of them is the whole step.",
            ),
            Assumption("aligned", "No spread: s = D."),
            Assumption("continuous time", "eta is small beside the curvature: no noise, no discrete steps."),
            Assumption(
                "numerical: limits",
                "s -> infinity may be taken under the integrals of the race (not proved; checked numerically).",
            ),
            Assumption(
                "numerical: layer",
                "Late in training the averages over all K classes are those of the two largest teacher "
                "fields near a tie, to leading order in 1/D (not proved; checked numerically).",
            ),
        ),
        steps=(
            gradient.checked(checks.slopes),
            overlaps.checked(checks.one_step, flow),
            closure.cancellation_free(flow).checked(checks.no_cancellation, flow),
            expansion.race().checked(checks_integrals.race),
            expansion.top_gap().checked(checks_integrals.top_gap),
            low_temperature.checked(checks_integrals.low_temperature, limit.ratio),
            two_classes.checked(checks_integrals.two_classes, pair),
            layer_step.checked(checks_integrals.layer, layer),
            margin_step.checked(checks_integrals.margin_losses, margins),
            third_step.checked(checks_laws.one_third, third),
            late_step.checked(checks_laws.with_noise, layer),
            schedule_step.checked(checks_laws.schedule, scheduled),
            decay_step.checked(checks_laws.weight_decay, decayed),
            finite_step.checked(checks_laws.finite_temperature, finite),
            adam_step.checked(checks.minibatch_square, forms),
            normalised.checked(checks.normalised_step, forms),
            adam_laws.checked(checks_laws.adam_laws, forms, layer, normalised_laws),
            sign_step.checked(checks_unit.signs, signs),
            many_step.checked(checks_unit.many, many_drift, many_noise),
            hardest_step.checked(checks_unit.hardest, hardest),
            sign_laws.checked(checks_unit.laws, unit_laws),
            muon_step.checked(checks_unit.muon, signs, whitened),
            losses.checked(checks_laws.saturating_losses, *loss_errors),
            temperature.checked(checks_laws.temperature, layer, heated),
            escapes.learning_rate(late.balance).checked(checks_laws.best_learning_rate, layer),
        ),
        sources=(
            "Liu, Liu, Pehlevan & Gore, arXiv 2602.03685",
            "K\u00fchn, Thelge & Rosenow, arXiv 2605.22341",
        ),
        outputs=(
            *closure.write(flow),
            *adam.write(forms),
            *unit.write(signs, hardest, whitened),
            *layers.write_margins(flow),
            *expansion.write(limit),
            *layers.write(layer),
            *laws.write(third, decayed, finite),
        ),
        tables=(escapes.table(rows),),
        imports=("import jax.numpy as jnp", "from jax import Array"),
    )
