"""The algebra: Gaussian moments, tilts and arcsine laws, the writers, the tape, the record."""

from __future__ import annotations

import numpy as np
import pytest
import sympy
from sympy import Rational, erf, exp, gamma, sqrt, symbols
from sympy.matrices.expressions import MatrixSymbol

from odescale import InputError
from odescale.symbolic import (
    Assumption,
    Derivation,
    Equation,
    Gaussian,
    MatrixWriter,
    Output,
    Selector,
    Step,
    Tape,
    adjoint,
    assignments,
    body_of,
    covariance_symbols,
    monte_carlo_check,
    overlap_flow,
    stein,
    stein_moments,
    to_jax,
    to_latex,
    to_markdown,
    to_text,
    verify_stamp,
)
from odescale.symbolic.module_writer import module_source

u, v, w = symbols("u v w")
NUMBERS = sympy.ImmutableMatrix([[Rational(7, 10), Rational(1, 5), Rational(-1, 10)],
                                 [Rational(1, 5), Rational(1, 2), Rational(3, 20)],
                                 [Rational(-1, 10), Rational(3, 20), Rational(3, 5)]])  # fmt: skip


def gaussian() -> Gaussian:
    return Gaussian((u, v, w), sympy.ImmutableMatrix(covariance_symbols((u, v, w))))


def test_isserlis_pairings():
    g = gaussian()
    uu, uv, uw, vv, vw = (g.covariance[i, j] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2)))
    assert sympy.expand(g.expect(u**2 * v**2) - uu * vv - 2 * uv**2) == 0
    assert sympy.expand(g.expect(u**2 * v * w) - uu * vw - 2 * uv * uw) == 0
    assert g.expect(u**6) == 15 * uu**3
    assert g.expect(u**3) == 0


def test_stein_is_the_moment():
    g = gaussian()
    function = v**3 + u * v * w
    assert sympy.expand(stein(g, 0, function) - g.expect(u * function)) == 0


def test_linear_tilt_is_the_softmax_average():
    g, s = gaussian(), symbols("s")
    ratio = g.expect(v * exp(s * u)) / g.expect(exp(s * u))
    assert sympy.simplify(ratio - s * g.covariance[0, 1]) == 0


@pytest.mark.parametrize(
    "expression",
    [
        u**2 * v * exp(u * v / 4 + w / 3),
        exp(-(u**2) + v / 2) * (1 + u * w),
        erf(u / sqrt(2)) * erf(v + w / 2),
        u * erf(v),
        u * v * erf(u / sqrt(2)) * erf(w),
        exp(-(u**2) / 2 - v**2 / 2) * erf(v / sqrt(2)) * erf(w / sqrt(2)),
        w * exp(-(u**2) / 2) * erf(v),
        u**2 * w * erf(v / sqrt(2)),
    ],
    ids=str,
)
def test_expectations_against_samples(expression):
    value = Gaussian((u, v, w), NUMBERS).expect(expression)
    assert monte_carlo_check(Gaussian((u, v, w), NUMBERS), expression, float(value), samples=100_000).passed


def test_a_wrong_expectation_fails_the_sampling_check():
    g = Gaussian((u, v, w), NUMBERS)
    assert not monte_carlo_check(g, u**2, 0.75, samples=100_000).passed


def test_a_field_with_a_mean():
    g = Gaussian((u,), sympy.ImmutableMatrix([[Rational(1, 2)]]), (Rational(1, 3),))
    for expression in (u**3, erf(u), u * exp(u / 2)):
        assert monte_carlo_check(g, expression, float(g.expect(expression)), samples=100_000).passed


@pytest.mark.parametrize(
    "expression, named",
    [
        (sympy.sin(u), "sin"),
        (erf(u) ** 2 * erf(v) * erf(w), "4 factors"),
        (exp(u**3), "degree two"),
        (erf(u + 1), "linear form"),
        (1 / (1 + u**2), "u"),
    ],
)
def test_no_closed_form_is_refused_by_name(expression, named):
    with pytest.raises(InputError, match=named):
        gaussian().expect(expression)


def test_scalar_writer_values_and_refusals():
    import jax.numpy as jnp
    import jax.scipy.special

    expression = (u - v) ** 2 / 3 - sqrt(u) * exp(-v / 2) + erf(u) * sympy.pi - 2 / (u * v) + Rational(1, 3) * u**-1.5
    code = to_jax(expression)
    scope = {"jax": jax, "jnp": jnp, "u": jnp.asarray(0.7), "v": jnp.asarray(1.3)}
    assert "jax.scipy.special.erf" in code
    assert float(eval(code, scope)) == pytest.approx(float(expression.subs({u: 0.7, v: 1.3})), rel=1e-14)
    for bad, name in ((gamma(u), "gamma"), (sympy.besselj(1, u), "besselj"), (sympy.Function("f")(u), "f")):
        with pytest.raises(InputError, match=name):
            to_jax(bad)
    with pytest.raises(InputError, match="Python name"):
        to_jax(symbols("q0*"))


def test_assignments_share_and_keep_the_order():
    lines = assignments([("b", sympy.sin(u * v) ** 2 + u), ("a", sympy.sin(u * v) + v)])
    assert [line.split(" = ")[0] for line in lines][-2:] == ["b", "a"]
    assert len(lines) > 2


def test_matrix_writer_associates_vectors_first():
    n = sympy.Symbol("n", integer=True, positive=True)
    A, C = MatrixSymbol("A", n, n), MatrixSymbol("C", n, n)
    q, k = MatrixSymbol("q", n, 1), MatrixSymbol("k", n, 1)
    writer = MatrixWriter(selectors={q: Selector("1", "e[1]"), k: Selector("2", "e[2]")}, symmetric=frozenset({C}))
    (line,) = writer.lines([("F", A * C * A.T * k * q.T * A)])
    assert line == "F = jnp.outer(A @ (C @ A[2]), A[1])"
    B = MatrixSymbol("B", n, n)
    lines = writer.lines([("dA", adjoint(A * C * A.T * k * q.T * A, B, A, (C,))), ("dC", A.T * B * A.T * q * k.T * A)])
    rng = np.random.default_rng(0)
    scope = {"jnp": np, "e": np.eye(4), "A": rng.normal(size=(4, 4)), "B": rng.normal(size=(4, 4))}
    scope["C"] = scope["A"] @ scope["A"].T
    exec("\n".join(lines), scope)
    a, b, c, e = scope["A"], scope["B"], scope["C"], scope["e"]
    expected = a.T @ b @ a.T @ np.outer(e[1], e[2]) @ a
    assert np.allclose(scope["dC"], expected, rtol=1e-13)
    h = 1e-30
    slope = np.zeros((4, 4))
    for i in range(4):
        for j in range(4):
            moved = a.astype(complex)
            moved[i, j] += 1j * h
            slope[i, j] = np.imag(np.sum(b * (moved @ c @ moved.T @ np.outer(e[2], e[1]) @ moved))) / h
    assert np.allclose(scope["dA"], slope, rtol=1e-12)


def test_tape_adjoint_sees_bare_inputs():
    tape = Tape()
    x, y = symbols("x y")
    bare = tape.record("bare", x)
    square = tape.record("square", bare * y)
    out = tape.record("out", square**2 + bare)
    gradient = tape.adjoint(out, [x, y])
    assert tape.evaluate({x: 1.5, y: -0.5}, [out, *gradient]) == pytest.approx([
        (1.5 * -0.5) ** 2 + 1.5, 2 * 1.5 * 0.25 + 1, 2 * 1.5**2 * -0.5])  # fmt: skip
    with pytest.raises(InputError, match="new name"):
        tape.record("out", x)


def test_sgd_step_gives_the_flow_and_assumptions_change_it():
    full = overlap_flow()
    assert full.flow.has(sympy.Symbol("v_ij")) and full.rate.has(MatrixSymbol("H", *full.rate.shape))
    assert not overlap_flow(noise=False).flow.has(sympy.Symbol("v_ij"))
    assert not overlap_flow(weight_decay=False).flow.has(sympy.Symbol("w", positive=True))
    assert not overlap_flow(write_back=False).rate.has(MatrixSymbol("H", *full.rate.shape))
    assert full.increment != full.flow


def test_second_moment_has_corrections_of_order_one_over_n():
    g = Gaussian((u, v), sympy.ImmutableMatrix(covariance_symbols((u, v))))
    moments = stein_moments((u - v) ** 2 / 2, g, 0, 0)
    n, lam, A_u, A_v = (
        sympy.Symbol("N", positive=True), sympy.Symbol("lambda", positive=True), *symbols("A_u A_v")
    )  # fmt: skip
    correction = sympy.expand(moments.second - moments.second_limit)
    assert sympy.expand(correction - 2 * lam**2 * (A_u - A_v) ** 2 / n) == 0


def record(**changes) -> Derivation:
    fields = dict(
        name="toy", title="A toy", summary="Nothing.", states=(), parameters=(),
        assumptions=(Assumption("gaussian", "Tokens are Gaussian."),),
        steps=(Step("one", "One", "Prose.", (Equation("L", u**2 / 2),), ("gaussian",)),),
        sources=("nobody",), outputs=(Output("f", "def f(x):\n    return x\n"),),
    )  # fmt: skip
    return Derivation(**{**fields, **changes})


def test_record_prints_and_refuses_unknown_assumptions():
    toy = record()
    assert "\\frac{u^{2}}{2}" in to_markdown(toy) and "\\subsection{One}" in to_latex(toy) and "u**2/2" in to_text(toy)
    assert toy.step("one").title == "One" and toy.output("f").name == "f"
    with pytest.raises(InputError, match="list the assumption"):
        record(assumptions=())
    with pytest.raises(InputError, match="pick a listed step"):
        toy.step("two")


def test_stamp_covers_the_body():
    text = module_source(record())
    assert verify_stamp(text) and "sympy" not in text
    assert not verify_stamp(text.replace("return x", "return 2 * x"))
    with pytest.raises(InputError, match="generated module"):
        body_of("import os")
