"""The two-token phase map: against real attention, against plain quadrature, its symmetries, its minima, bad input."""

from __future__ import annotations

from itertools import product

import jax
import numpy as np
import pytest
from scipy.special import roots_hermitenorm, softmax

from odescale import InputError, PrecisionError, SolveError
from odescale.two_tokens import two_token_loss, two_token_minima, two_token_transition

PAPER = ((0.6, 0.4), (0.4, 0.6))
SKEW = ((0.3, 0.7), (0.8, 0.2))
DIAGONAL = ((0.95, 0.05), (0.05, 0.95))


def weights_of(fields):
    """The 2 x 2 attention weights, softmax over keys of chi_a chi_b; fields (..., 2)."""
    return softmax(fields[..., :, None] * fields[..., None, :], axis=-1)


def difference(student, teacher, mixing, positional):
    return (1 - mixing) * weights_of(teacher) + mixing * np.asarray(positional) - weights_of(student)


def plain_quadrature(e, m, *, mixing, positional, variance, length, nodes):
    """sigma^2 E |T - S|_F^2 over four Gaussians, all 2 x 2 weights written out: no symmetry, no expansion."""
    x, w = roots_hermitenorm(nodes)
    w = w / w.sum()
    sigma, r = np.sqrt(variance), m / length
    total = 0.0
    for i, j in product(range(nodes), repeat=2):
        own = np.array([x[i], x[j]])
        other = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1)
        student = sigma * length * own + np.array([e, -e])
        teacher = sigma * (r * own + np.sqrt(max(1 - r**2, 0.0)) * other)
        gap = difference(np.broadcast_to(student, teacher.shape), teacher, mixing, positional)
        total += w[i] * w[j] * np.einsum("a,b,abij->", w, w, gap**2)
    return variance * total


def attention_samples(e, m, *, mixing, positional, variance, length, dimension, samples, rng):
    """(1/d) |T(x) x - S(x) x|^2 of the real layers, tokens with positions p/sqrt(d), -p/sqrt(d) in the student's logits."""
    d = dimension
    basis = np.linalg.qr(rng.normal(size=(d, 3)))[0].T * np.sqrt(d)
    p, w_star, rest = basis
    w = e * p + m * w_star + np.sqrt(max(length**2 - e**2 - m**2, 0.0)) * rest
    losses = []
    for _ in range(samples // 250):
        x = np.sqrt(variance) * rng.normal(size=(250, 2, d))
        read = x + np.stack([p, -p]) / np.sqrt(d)
        gap = difference(read @ w / np.sqrt(d), x @ w_star / np.sqrt(d), mixing, positional)
        losses.append(np.square(gap @ x).sum(axis=(1, 2)) / d)
    return np.concatenate(losses)


CASES = [
    (0.0, 0.0, {"mixing": 0.3, "positional": PAPER, "variance": 0.25, "length": 1.0}),
    (0.5, 0.6, {"mixing": 0.3, "positional": PAPER, "variance": 0.25, "length": 1.0}),
    (-0.8, 0.6, {"mixing": 0.5, "positional": SKEW, "variance": 0.25, "length": 1.0}),
    (0.9, -1.1, {"mixing": 0.6, "positional": DIAGONAL, "variance": 0.2, "length": 1.5}),
    (0.1, 0.3, {"mixing": 1.0, "positional": SKEW, "variance": 0.4, "length": 0.5}),
]


@pytest.mark.parametrize(("e", "m", "settings"), CASES)
def test_real_attention_in_high_dimension(e, m, settings):
    loss, _ = two_token_loss(e, m, **settings)
    rng = np.random.default_rng(int(100 * (e + 2) + 10 * (m + 2)))
    samples = attention_samples(e, m, **settings, dimension=2000, samples=1500, rng=rng)
    z = (samples.mean() - loss) / (samples.std(ddof=1) / np.sqrt(len(samples)))
    assert abs(z) < 4
    assert samples.std() / np.sqrt(len(samples)) < 0.05 * loss  # or the test could not fail


def test_real_attention_tells_a_wrong_overlap():
    settings = {"mixing": 0.3, "positional": DIAGONAL, "variance": 1.0, "length": 1.0}
    samples = attention_samples(0.4, 0.9, **settings, dimension=2000, samples=1500, rng=np.random.default_rng(0))
    error = samples.std(ddof=1) / np.sqrt(len(samples))
    right, wrong_e, wrong_m = two_token_loss([0.4, 0.0, 0.4], [0.9, 0.9, 0.6], **settings, accuracy=1e-5)[0]
    assert abs(samples.mean() - right) < 4 * error
    assert abs(samples.mean() - wrong_e) > 5 * error and abs(samples.mean() - wrong_m) > 5 * error


@pytest.mark.parametrize(("e", "m", "settings"), [*CASES, (0.0, 1.0, CASES[0][2]), (1.0, 0.0, CASES[1][2])])
def test_plain_quadrature_in_four_dimensions(e, m, settings):
    loss, error = two_token_loss(e, m, **settings)
    assert abs(loss - plain_quadrature(e, m, **settings, nodes=28)) < 1e-6
    assert error < 1e-8


def test_the_whole_grid():
    axis = np.linspace(-1, 1, 200)
    e, m = np.meshgrid(axis, axis, indexing="ij")
    inside = e**2 + m**2 <= 1
    e, m = e[inside], m[inside]
    settings = CASES[1][2]
    loss, error = two_token_loss(e, m, **settings, accuracy=1e-4)
    assert loss.shape == e.shape == (31064,) and error.max() < 1e-4 and (loss > 0).all()
    rim = np.argsort(e**2 + m**2)[-4:]
    for i in [*rim, *np.random.default_rng(3).integers(0, len(e), 6)]:
        direct = plain_quadrature(e[i], m[i], **settings, nodes=24)
        assert abs(loss[i] - direct) < 1e-4
        assert abs(loss[i] - direct) < 1e-4 * direct  # and relative to the loss itself


@pytest.mark.parametrize("settings", [CASES[1][2], CASES[2][2], CASES[3][2]])
def test_even_in_both_overlaps(settings):
    loss, _ = two_token_loss([0.4, -0.4, 0.4, -0.4], [0.5, 0.5, -0.5, -0.5], **settings)
    assert np.ptp(loss) == 0
    # For a skew A this is a statement about the model, not about the code's abs(e): ask the plain quadrature too.
    direct = [plain_quadrature(e, 0.5, **settings, nodes=16) for e in (0.4, -0.4)]
    assert abs(direct[0] - direct[1]) < 1e-12


def test_only_the_diagonal_of_the_positional_matrix_counts():
    settings = CASES[2][2] | {"positional": ((0.2, 0.8), (0.7, 0.3))}  # tokens swapped
    assert two_token_loss(0.4, 0.5, **settings)[0] == pytest.approx(two_token_loss(0.4, 0.5, **CASES[2][2])[0], 1e-14)


def test_teacher_and_student_alike_have_no_loss():
    loss, error = two_token_loss(0.0, 1.0, mixing=0.0)
    assert abs(loss) <= error < 1e-8
    assert two_token_loss(0.0, 0.999, mixing=0.0)[0] > 1e-6


@pytest.mark.parametrize("variance", [0.25, 1.0, 2.0])
def test_the_error_estimate_covers_the_error(variance):
    e = np.array([0.0, 0.0, 0.1, 0.6, 1.0])
    m = np.array([1.0, 0.5, np.sqrt(0.99), 0.8, 0.0])
    settings = {"mixing": 0.3, "positional": DIAGONAL, "variance": variance}
    reference, reference_error = two_token_loss(e, m, **settings, accuracy=1e-8 if variance < 2 else 1e-5)
    for accuracy in (1e-2, 1e-3, 1e-4):
        loss, error = two_token_loss(e, m, **settings, accuracy=accuracy)
        assert (error <= accuracy).all() and (np.abs(loss - reference) <= error + reference_error).all()


def test_shapes_and_scalars():
    loss, error = two_token_loss(np.zeros((3, 1)), np.linspace(0, 1, 4))
    assert loss.shape == error.shape == (3, 4)
    assert two_token_loss(0.0, 0.5)[0].shape == ()
    assert two_token_loss([], [])[0].shape == (0,)


def brute_minimum(settings):
    """The lowest point of a fine grid of the quarter disc, and its loss."""
    e, share = np.meshgrid(np.linspace(0, 1, 101), np.linspace(0, 1, 101), indexing="ij")
    m = share * np.sqrt(1 - e**2)
    loss, _ = two_token_loss(e, m, **settings)
    at = np.unravel_index(np.argmin(loss), loss.shape)
    return e[at], m[at], loss[at]


@pytest.mark.parametrize(
    ("mixing", "variance", "positional", "kinds"),
    [
        (0.3, 0.25, PAPER, ["semantic"]),
        (0.5, 0.25, DIAGONAL, ["positional"]),  # inside the disc, on the axis m = 0
        (0.4, 0.25, DIAGONAL, ["mixed"]),
        (0.45, 0.5, DIAGONAL, ["semantic", "positional"]),
        (0.53, 0.5, DIAGONAL, ["positional", "semantic"]),
    ],
)
def test_minima(mixing, variance, positional, kinds):
    settings = {"mixing": mixing, "variance": variance, "positional": positional, "accuracy": 1e-6}
    minima = two_token_minima(**settings)
    assert [point.kind for point in minima] == kinds
    e, m, loss = brute_minimum(settings)
    assert minima[0].loss <= loss + 2e-6 and loss - minima[0].loss < 1e-4
    assert np.hypot(minima[0].e - e, minima[0].m - m) < 0.03
    for point in minima:  # no point nearby is lower, and the loss is that of the map
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        near_e, near_m = point.e + 0.01 * np.cos(angle), point.m + 0.01 * np.sin(angle)
        inside = near_e**2 + near_m**2 <= 1
        assert (two_token_loss(near_e[inside], near_m[inside], **settings)[0] > point.loss - 2e-6).all()
        assert two_token_loss(point.e, point.m, **settings)[0] == pytest.approx(point.loss, abs=2e-6)


def test_first_order_transition():
    settings = {"positional": DIAGONAL, "variance": 0.5, "accuracy": 1e-6}
    found = two_token_transition(**settings)
    assert found is not None and found.coexist and found.width < 1.01e-7
    # The two solutions sit at the corners here, so that the crossing of their losses, quadratic in omega, is a root.
    omega = np.linspace(0.2, 0.8, 3)
    gap = [np.diff(two_token_loss([0.0, 1.0], [1.0, 0.0], mixing=w, **settings)[0])[0] for w in omega]
    roots = np.roots(np.polyfit(omega, gap, 2))
    assert np.abs(roots - found.mixing).min() < 1e-5
    below, above = (two_token_minima(mixing=found.mixing + d, **settings)[0] for d in (-1e-3, 1e-3))
    assert (below.kind, above.kind) == ("semantic", "positional")
    assert two_token_transition(**settings, between=(0.0, 0.5)) is None


def test_continuous_transition_is_where_the_slope_along_the_rim_changes_sign():
    settings = {"positional": ((0.8, 0.2), (0.2, 0.8)), "variance": 0.25, "accuracy": 1e-9}
    found = two_token_transition(**settings)
    assert found is not None and not found.coexist and found.minima[0].kind == "mixed"
    # dL/d(e^2) at e = 0 along e^2 + m^2 = 1, from three points by Richardson; quadratic in omega.
    e = np.array([0.0, 0.05, 0.1])
    omega, slopes = np.linspace(0.4, 0.6, 3), []
    for w in omega:
        loss, _ = two_token_loss(e, np.sqrt(1 - e**2), mixing=w, **settings)
        coarse, fine = (loss[2] - loss[0]) / e[2] ** 2, (loss[1] - loss[0]) / e[1] ** 2
        slopes.append((4 * fine - coarse) / 3)
    roots = np.roots(np.polyfit(omega, slopes, 2))
    assert np.abs(roots - found.mixing).min() < 1e-4


def test_papers_matrix_has_no_transition_at_fixed_length():
    assert two_token_transition() is None


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"e": 0.9}, "e, m"),
        ({"e": np.nan}, "e"),
        ({"m": "half"}, "m"),
        ({"e": [0.1, 0.2], "m": [0.1, 0.2, 0.3]}, "m"),
        ({"mixing": 1.1}, "mixing"),
        ({"mixing": True}, "mixing"),
        ({"positional": ((0.6, 0.5), (0.4, 0.6))}, "positional"),
        ({"positional": ((1.6, -0.6), (0.4, 0.6))}, "positional"),
        ({"positional": (0.6, 0.4)}, "positional"),
        ({"positional": "A"}, "positional"),
        ({"variance": 0.0}, "variance"),
        ({"variance": None}, "variance"),
        ({"length": -1.0}, "length"),
        ({"accuracy": 0.0}, "accuracy"),
        ({"accuracy": 1e-17}, "accuracy"),
    ],
)
def test_bad_input(arguments, name):
    with pytest.raises(InputError) as raised:
        two_token_loss(**({"e": 0.5, "m": 0.5} | arguments))
    assert raised.value.argument == name and raised.value.remedy


def test_bad_input_of_the_finders():
    with pytest.raises(InputError, match="mixing: expected omega < 1"):
        two_token_minima(mixing=1.0)
    with pytest.raises(InputError, match="between: expected low < high"):
        two_token_transition(between=(0.5, 0.5))
    for between in ((0.0, 1.0), 0.5, (0.1, 0.2, 0.3), ("low", 0.9)):
        with pytest.raises(InputError, match="between"):
            two_token_transition(between=between)


def test_accuracy_out_of_reach_is_said():
    with pytest.raises(SolveError, match="reached an error of .* remedy: accuracy="):
        two_token_loss(0.0, 1.0, variance=25.0, accuracy=1e-9)


def test_float64_is_required():
    with jax.enable_x64(False), pytest.raises(PrecisionError):
        two_token_loss(0.0, 0.5)
