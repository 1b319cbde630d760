"""What a system says of itself before any run; the table against simulation is `python -m benchmarks.coverage`."""

import json

import numpy as np
import pytest
from engine_cases import linear, two_layers, write_back

from odescale import InputError, aligned_overlaps, attention, coverage, mean_field, spectral, teacher_student
from odescale.networks import HeadRows, PreNorm, QueryToken, RowNetwork, SelfAttention
from odescale.spectra import power_law


def judged(problem, **settings):
    start = aligned_overlaps(problem, alignment=0.5, common=0.2)
    return coverage(mean_field(problem, initial_overlaps=start, nodes=64, **{"learning_rate": 0.02, **settings}))


def normed():
    block = PreNorm(SelfAttention((HeadRows("q", "k"),)))
    return teacher_student(RowNetwork(("q", "k", "r"), (block,), QueryToken(("r",))), tokens=2)


def test_numbers_of_a_linear_student_are_known():
    """|G| = c = 1: the step is eta/d, the noise eta/(2 B), the stable learning rate 2 B."""
    found = judged(linear(), learning_rate=0.5, batch=2, dimension=400)
    assert found.inside and not found.reasons
    expected = {"rows": 2 / 400, "step": 0.5 / 400, "noise": 0.125, "spectrum": 1 / 400}
    assert found.numbers.keys() == expected.keys()
    np.testing.assert_allclose([found.numbers[k] for k in expected], list(expected.values()), rtol=0.02)
    assert json.loads(json.dumps(found.to_dict()))["inside"] is True
    assert "inside" in str(found)


@pytest.mark.parametrize(
    ("problem", "settings", "word"),
    [
        (two_layers(2), {"dimension": 20}, "rows"),
        (write_back(), {"dimension": 60}, "rows"),
        (linear(), {"learning_rate": 2.5}, "learning_rate"),
        (linear(), {"learning_rate": 100.0, "batch": 100, "dimension": 300}, "step"),
        (linear(), {"learning_rate": 0.01, "momentum": 0.99, "dimension": 500}, "velocities"),
        (linear(), {"spectrum": power_law(2.0, 500, trace=None)}, "d_eff"),
        (normed(), {"dimension": 80}, "norms"),
    ],
)
def test_what_lies_outside_is_said_with_its_reason(problem, settings, word):
    found = judged(problem, **settings)
    assert not found.inside
    assert any(word in reason for reason in found.reasons), found.reasons
    assert str(found).startswith("outside the theory")


@pytest.mark.parametrize(
    ("problem", "settings"),
    [
        (two_layers(2), {"dimension": 500}),
        (linear(), {"learning_rate": 0.02, "momentum": 0.9, "dimension": 1000}),
        (linear(), {"friction": 2.0, "learning_rate": 0.5, "dimension": 500}),
        (linear(), {"spectrum": power_law(1.2, 500, trace=None)}),
        (normed(), {"dimension": 500}),
    ],
)
def test_what_lies_inside_is_not_refused(problem, settings):
    found = judged(problem, **settings)
    assert found.inside, found.reasons


def test_large_corrections_are_warned_of():
    found = judged(linear(), spectrum=power_law(1.2, 500, trace=None))
    assert found.inside and any("d_eff" in warning for warning in found.warnings)


def test_attention_says_what_its_own_number_of_tokens_changes():
    """L at t = 0 against an independent Monte Carlo of the finite softmax, and the three sizes that the issue measured."""
    found = coverage(attention(tokens=64))
    few = coverage(attention(tokens=16))
    many = coverage(attention(tokens=512, strength=0.2))
    assert not few.inside and "tokens" in few.reasons[0] and few.numbers["context"] > found.numbers["context"] > 0
    assert many.inside and many.numbers["context"] < few.numbers["context"]
    system = attention(tokens=16, depth=1)
    rng = np.random.default_rng(0)
    C = np.asarray(system.couple(system.initial_overlaps)[0])
    size, T, n = C.shape[0], 16, 40_000
    phi = rng.standard_normal((n, T + 1, size)) @ np.linalg.cholesky(C + 1e-12 * np.eye(size)).T
    outputs = []
    for network in (system.architecture.student, system.architecture.teacher):
        head, read = network.layers[0][0], network.readouts[0]
        logits = phi[:, :1, head.query] * phi[:, 1:, head.key]  # a query and T context tokens
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        outputs.append(phi[:, 0, read] + (weights * phi[:, 1:, read]).sum(axis=1))
    losses = 0.5 * (outputs[0] - outputs[1]) ** 2
    infinite = float(system.excess_loss(0.0, system.initial_state()))
    off, error = losses.mean() / infinite - 1, losses.std() / n**0.5 / infinite
    assert abs(coverage(system).numbers["context"] - abs(off)) < 4 * error + 0.02 * (1 + off)


def test_other_theories_are_refused_by_name():
    with pytest.raises(InputError, match="system: expected one of the theories"):
        coverage(spectral(modes=8))
