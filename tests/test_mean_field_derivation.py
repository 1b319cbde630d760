"""The mean-field derivation: its files, its checks, its assumptions, and that the checks can fail."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy
from scipy.linalg import solve_continuous_lyapunov

from derivations import __main__ as command
from derivations.mean_field import checks
from derivations.mean_field.committee import contract
from derivations.mean_field.linear_attention import stein_rule
from derivations.mean_field.script import MeanFieldOptions, coefficients, derive, sgd_step
from odescale.expectations.arcsine import arcsine
from odescale.generated import mean_field as generated
from odescale.symbolic import module_source, run_checks, to_latex, to_text, verify_stamp

jax.config.update("jax_enable_x64", True)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def derivation():
    return derive()


@pytest.fixture(scope="module")
def single_step():
    """The flow of one SGD step and its Gaussian moments (G, H, V), by two million samples."""
    return sgd_step(MeanFieldOptions())[1], checks._moments(300, 2_000_000)


def test_files_are_what_the_derivation_gives(derivation) -> None:
    assert command.differences(ROOT, command.texts(derivation)) == {}
    assert command.hand_edited(ROOT, "mean_field") == ""
    assert verify_stamp((ROOT / "odescale/generated/mean_field.py").read_text())
    assert "Mean-field" in to_text(derivation) and "\\subsection" in to_latex(derivation)


def test_text_does_not_depend_on_the_hash_seed(derivation) -> None:
    code = (
        "import hashlib; from derivations.mean_field.script import derive; from derivations.__main__ import texts\n"
        "print(hashlib.sha256(repr(texts(derive())).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4321", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    expected = hashlib.sha256(repr(command.texts(derivation)).encode()).hexdigest()
    assert done.returncode == 0 and done.stdout.strip() == expected, done.stderr


@pytest.mark.slow
def test_numeric_checks_pass(derivation) -> None:
    results = run_checks(derivation)
    assert len(results) == len(derivation.steps) == 10
    assert all(result.passed for result in results.values()), {k: str(v) for k, v in results.items()}


@pytest.mark.parametrize("spoiled", ["no write-back", "independent tokens", "gradient 10 % off"])
def test_the_single_step_sees_a_wrong_closure(single_step, spoiled: str) -> None:
    """The check of the whole closure fails without H, without rho in V, and with G 10 % off (5 % is within its noise)."""
    flow, (G, H, V) = single_step
    if spoiled == "no write-back":
        H = 0 * H
    elif spoiled == "gradient 10 % off":
        G = 1.1 * G
    else:
        example = checks.Example()
        *_, C, R = checks._setting(300)
        phi = np.einsum("ts,nsp->ntp", example.root, np.random.default_rng(0).standard_normal((200_000, 3, 4)))
        g, _ = example.slopes(phi @ np.linalg.cholesky(C).T, R)
        V = np.einsum("nti,ntj->ij", g, g) / len(g)
    assert not checks.one_step(flow, (G, H, V)).passed


def test_other_checks_can_fail(derivation) -> None:
    rule = stein_rule(True)
    wrong = type(rule)(rule.at_query, rule.within, 2 * rule.across)
    assert not checks.token_averages(wrong, True).passed
    sources = [output.source for output in derivation.outputs]
    broken = [s.replace("A_C_A = A @ (C @ A)", "A_C_A = 1.001 * A @ (C @ A)") for s in sources]
    assert broken != sources
    assert checks.quadratic_committee(sources).passed and not checks.quadratic_committee(broken).passed
    assert not checks.fixed_momentum(lambda eta, mu: eta).passed


def test_the_check_of_the_erf_committee_runs_and_can_fail(derivation) -> None:
    """As the derivation binds it: with all that the generated code needs besides itself."""
    (step,) = (step for step in derivation.steps if step.name == "erf committee")
    third, sources = step.check.args
    assert step.check().passed
    broken = [source.replace("law = 2 * arcsine", "law = 2.001 * arcsine") for source in sources]
    assert broken != list(sources) and not checks.erf_committee(third, broken).passed


def test_an_edited_module_differs_by_numbers(derivation) -> None:
    text = module_source(derivation)
    edited = text.replace(
        "return 0.5 * jnp.sum(c[:, None] * c * kernel)", "return 0.6 * jnp.sum(c[:, None] * c * kernel)"
    )
    assert checks.compare_modules(text, text) == ""
    assert edited != text and checks.compare_modules(edited, text).startswith("erf_committee_loss")


def test_every_assumption_changes_the_output(derivation) -> None:
    plain = {output.name: output.source for output in derivation.outputs}

    def sources(**changes):
        return {output.name: output.source for output in derive(MeanFieldOptions(**changes)).outputs}

    bare = sources(noise=False, weight_decay=False, write_back=False)
    assert ".set(0 * V)" in bare["plain_sgd"] and "eta ** 2" in plain["plain_sgd"]
    assert "/ batch" not in bare["overlap_flow"] and ".set(0 * V)" in bare["heavy_ball"]
    assert "weight_decay *" in plain["overlap_flow"] and "weight_decay *" not in bare["overlap_flow"].split('"""')[2]
    assert "H @ q" in plain["overlap_flow"] and "H @ q" not in bare["overlap_flow"]
    apart = derive(MeanFieldOptions(query_attended=False))
    assert "tokens - 1" in apart.output("token_moment").source
    for name in ("token averages", "linear attention"):
        check = apart.step(name).check
        assert check is not None and check().passed, name


def test_pairings_are_counted_by_path_and_cycles() -> None:
    """All (2n - 1)!! pairings, and the cumulants of a chi-square: E[(z^2)^n] = (2n - 1)!! with A = C = 1."""
    for forms, ends, total in ((1, True, 3), (2, True, 15), (3, True, 105), (2, False, 3), (3, False, 15)):
        assert sum(contract(forms, ends).values()) == total
    assert contract(2, False) == {(0, (1, 1)): 1, (0, (2,)): 2}


def test_plain_sgd_is_the_overlap_flow() -> None:
    rng = np.random.default_rng(1)
    q = rng.standard_normal((3, 5, 5))
    q = jnp.asarray(q @ np.swapaxes(q, 1, 2))
    lam = jnp.asarray([0.3, 1.0, 2.5])
    G, H, V = np.zeros((3, 5, 5))
    moved = (0, 2)
    G[list(moved)], H[list(moved)] = rng.standard_normal((2, 2, 5))
    V[np.ix_(moved, moved)] = [[1.0, 0.3], [0.3, 0.8]]
    trained = jnp.asarray([1.0, 0, 1, 0, 0])
    expected = generated.overlap_flow(q, lam, *map(jnp.asarray, (G, H, V)), 0.4, 2.0, 0.1, trained)
    rows = list(moved)
    M1, M0, N1 = generated.plain_sgd(
        jnp.asarray(G[rows]), jnp.asarray(H[rows]), jnp.asarray(V[np.ix_(rows, rows)]), jnp.eye(5)[jnp.asarray(rows)],
        moved, 0.4, 2.0, 0.1,
    )  # fmt: skip
    M = lam[:, None, None] * M1 + M0
    got = M @ q + q @ jnp.swapaxes(M, 1, 2) + lam[:, None, None] * N1
    assert np.abs(got - expected).max() < 1e-13


def test_strong_damping_is_plain_sgd() -> None:
    """gamma -> infinity at fixed eta/gamma: the same stationary overlaps as plain SGD at eta/gamma, to order 1/gamma."""
    G, H = np.array([[1.0, 0.4], [0.3, 0.8]]), np.zeros((2, 2))
    V, rate = np.array([[1.0, 0.2], [0.2, 0.6]]), 0.2

    def stationary(matrices):
        M1, M0, N1 = (np.asarray(x) for x in matrices)
        return solve_continuous_lyapunov(M1 + M0, -N1)[:2, :2]

    expected = stationary(generated.plain_sgd(G, H, V, np.eye(2), (0, 1), rate, 3.0, 0.05))
    for gamma, tolerance in ((100.0, 1e-2), (1e4, 1e-4)):
        got = stationary(generated.heavy_ball(G, H, V, np.eye(2), (0, 1), rate * gamma, 3.0, 0.05, gamma))
        assert np.abs(got / expected - 1).max() < tolerance


def test_coefficients_are_read_off_the_flow() -> None:
    rates, noise = coefficients(sgd_step(MeanFieldOptions())[1])
    assert {name: str(value) for name, value in rates.items()} == {"gradient": "-eta", "decay": "-w"}
    assert str(noise) == "eta**2/B" and isinstance(noise, sympy.Expr)


def test_only_the_needed_arcsines_are_taken() -> None:
    """K = M = 4: 10 pairs of slopes x 64 pairs of units, 640 of 1024."""
    c = jnp.asarray([1.0] * 4 + [-1.0] * 4)
    jaxpr = jax.make_jaxpr(lambda C: generated.erf_committee_closure(C, c, (0, 1, 2, 3), 0.0))(jnp.eye(8))
    taken = [eqn.outvars[0].aval.size for eqn in jaxpr.eqns if eqn.primitive.name == "custom_jvp_call"]
    assert taken == [640]


def test_the_polynomial_is_the_arcsine_to_rounding() -> None:
    x = np.concatenate([np.linspace(-1, 1, 2001), 1 - np.geomspace(1e-16, 0.1, 99), np.geomspace(1e-300, 1e-3, 99)])
    np.testing.assert_allclose(arcsine(jnp.asarray(x)), np.arcsin(x), rtol=6e-16)
    assert np.isnan(arcsine(jnp.asarray([-1.1, 1.1, np.nan]))).all()
    inside = jnp.asarray(np.linspace(-0.99, 0.99, 41))
    first, second = (jax.vmap(f)(inside) for f in (jax.grad(arcsine), jax.grad(jax.grad(arcsine))))
    np.testing.assert_allclose(first, 1 / np.sqrt(1 - inside**2), rtol=1e-14)
    np.testing.assert_allclose(second, inside / (1 - inside**2) ** 1.5, rtol=1e-12, atol=1e-15)
    single = arcsine(jnp.asarray(x, jnp.float32))
    assert single.dtype == jnp.float32
