"""Peaked distributions: from one SGD step of softmax regression to the one-third law, its ends and its escapes."""

from __future__ import annotations

from derivations import peaked_adam, peaked_closure, peaked_escapes, peaked_expansion, peaked_laws, peaked_layers
from derivations.peaked_notation import BETA, DELTA, DIMENSION, RATE, SMOOTHING, TEACHER_BETA, TIME, D, K
from odescale.symbolic.record import Assumption, Derivation, Parameter
from odescale.symbolic.sgd import batch, decay, eta


def derive() -> Derivation:
    """The whole derivation."""
    gradient, slope = peaked_closure.gradient()
    overlaps, closure = peaked_closure.overlaps(slope)
    adam, normalised, forms = peaked_adam.derive_normalised(closure)
    low_temperature, expansion = peaked_expansion.low_temperature()
    two_classes, pair = peaked_expansion.two_classes()
    layer_step, layer = peaked_layers.layer()
    margin_step, margins = peaked_layers.margin_losses()
    third_step, third = peaked_laws.one_third(expansion, pair)
    late_step, late = peaked_laws.with_noise(layer)
    schedule_step, scheduled = peaked_laws.schedule(layer)
    decay_step, decayed = peaked_laws.weight_decay()
    finite_step, finite = peaked_laws.finite_temperature(expansion)
    adam_laws, _, adam_rows = peaked_escapes.adam(forms, layer)
    losses, loss_rows = peaked_escapes.losses(margins)
    temperature, _, temperature_rows = peaked_escapes.temperature(layer)
    rows = (*peaked_escapes.sgd_rows(late, scheduled), *adam_rows, *loss_rows, *temperature_rows)
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
            gradient,
            overlaps,
            peaked_closure.cancellation_free(closure),
            peaked_expansion.race(),
            peaked_expansion.top_gap(),
            low_temperature,
            two_classes,
            layer_step,
            margin_step,
            third_step,
            late_step,
            schedule_step,
            decay_step,
            finite_step,
            adam,
            normalised,
            adam_laws,
            losses,
            temperature,
            peaked_escapes.learning_rate(layer, late.balance),
        ),
        sources=(
            "Liu, Liu, Pehlevan & Gore, arXiv 2602.03685",
            "K\u00fchn, Thelge & Rosenow, arXiv 2605.22341",
        ),
        outputs=(
            *peaked_closure.write(closure),
            *peaked_adam.write(forms),
            *peaked_layers.write_margins(closure),
            *peaked_expansion.write(expansion),
            *peaked_layers.write(layer),
            *peaked_laws.write(third, decayed, finite),
        ),
        tables=(peaked_escapes.table(rows),),
        imports=("import jax.numpy as jnp", "from jax import Array"),
    )
