"""The shipped derivation: its checks, its assumptions, and the files it writes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from derivations import __main__ as command
from derivations import files
from derivations.attention import checks as attention_checks
from derivations.attention.script import AttentionOptions, derive
from derivations.attention.tape import entry, operation_table, scalar_closure
from derivations.registry import NAMES, derive_function
from odescale import InputError
from odescale.generated import attention as generated
from odescale.networks import build_architecture
from odescale.symbolic import module_source, run_checks, to_latex, to_text, verify_stamp
from tests.oracles import random_overlaps

ROOT = Path(__file__).resolve().parents[1]
FILES = (
    "odescale/generated/__init__.py",
    "odescale/generated/attention.py",
    "odescale/generated/attention.md",
    "docs/derivations/attention.md",
)


# One theory in this process: whoever patches what the command calls must not let it start others.
ONLY = ("--only", "attention")


@pytest.fixture(scope="module")
def derivation():
    return derive()


@pytest.fixture
def tree(tmp_path):
    """A copy of what the command reads and writes."""
    for part in ("odescale", "derivations"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "docs").mkdir()
    shutil.copytree(ROOT / "docs" / "derivations", tmp_path / "docs" / "derivations")
    return tmp_path


def test_files_are_what_the_derivation_gives(derivation):
    written = command.texts(derivation)
    assert tuple(written) == FILES
    assert command.differences(ROOT, written) == {}
    assert command.hand_edited(ROOT, "attention") == ""


def test_numeric_checks_pass(derivation):
    results = run_checks(derivation)
    assert set(results) >= {
        "sgd",
        "gradient",
        "tilt",
        "loss",
        "adjoint",
        "ode",
        "ratio",
        "query",
        "finite",
        "logistic pair",
    }
    assert all(result.passed for result in results.values()), {k: str(v) for k, v in results.items()}


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("odescale/generated/attention.py", "return G, H, V", "return G, H, 2 * V"),
        ("odescale/generated/attention.md", "Isserlis", "Isserliss"),
        ("docs/derivations/attention.md", "C_{vk} s", "2 C_{vk} s"),
    ],
)
def test_a_hand_edit_is_shown_and_fails(tree, monkeypatch, capsys, name, old, new):
    path = tree / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    monkeypatch.setattr(files, "run_checks", lambda _: {})
    assert command.main(["--check", *ONLY], root=tree) == 1
    shown = capsys.readouterr().out
    assert name in shown and "\n+" in shown and "\n-" in shown and new in shown
    assert command.main([*ONLY], root=tree) == 0 and path.read_text() == text
    assert command.main(["--check", *ONLY], root=tree) == 0


def test_theories_checked_side_by_side_are_all_reported(tree, monkeypatch, capsys):
    path = tree / "docs/derivations/spectral.md"
    path.write_text(path.read_text().replace("Isserlis", "Isserliss", 1))
    monkeypatch.setattr(command, "NAMES", ("spectral", "kernel"))
    assert command.main(["--check"], root=tree) == 1
    shown = capsys.readouterr().out
    assert "Isserliss" in shown and "kernel.stability: pass" in shown
    assert shown.index("spectral: 7 steps") < shown.index("kernel: 7 steps") < shown.index("FAILED")


def test_another_sympy_is_compared_by_numbers(tree, monkeypatch, capsys):
    monkeypatch.setattr(files, "run_checks", lambda _: {})
    monkeypatch.setattr(command.sympy, "__version__", "1.99.0")
    assert command.main(["--check", *ONLY], root=tree) == 0
    assert command.main([*ONLY], root=tree) == 2
    assert "1.14" in capsys.readouterr().err
    path = tree / FILES[1]
    path.write_text(path.read_text().replace("dC += 0.5 * (b.T @ b)", "dC += 0.6 * (b.T @ b)"))
    assert command.main(["--check", *ONLY], root=tree) == 1
    shown = capsys.readouterr().out
    assert "edited by hand" in shown and "closure: the file on disk and the derivation give different numbers" in shown


def test_a_failing_numeric_check_fails_the_command(tree, monkeypatch, capsys):
    from odescale.symbolic import CheckResult

    monkeypatch.setattr(files, "run_checks", lambda _: {"loss": CheckResult(float("nan"), 1.0, "error")})
    assert command.main(["--check", *ONLY], root=tree) == 1
    assert "FAIL" in capsys.readouterr().out


def test_unknown_name_is_one_line_and_status_2(capsys):
    assert command.main(["--only", "nonsense"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "nonsense" in captured.err and "attention" in captured.err
    with pytest.raises(InputError):
        derive_function("nonsense")
    assert NAMES == (
        "attention",
        "mean_field",
        "peaked",
        "frontier",
        "kernel",
        "spectral",
        "schedule",
        "in_context",
        "optimizers",
        "pruning",
        "rollout",
    )


@pytest.mark.slow
def test_deleted_generated_code_is_restored_byte_for_byte(tree):
    """In a fresh process with another hash seed: the text depends on the derivation alone."""
    before = {name: (tree / name).read_bytes() for name in FILES}
    shutil.rmtree(tree / "odescale" / "generated")
    shutil.rmtree(tree / "docs" / "derivations")
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-m", "derivations"], cwd=tree, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert {name: (tree / name).read_bytes() for name in FILES} == before


def test_generated_code_runs_with_sympy_blocked():
    code = (
        "import sys; sys.modules['sympy'] = None\n"
        "import odescale, odescale.symbolic, odescale.generated.attention as g, odescale.networks.architecture\n"
        "assert g.API == 1 and 'Gaussian' in dir(odescale.symbolic)\n"
        "try:\n    odescale.symbolic.Gaussian\nexcept ImportError:\n    print('blocked')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "blocked\n", done.stderr


def test_every_assumption_changes_the_output(derivation):
    plain = {output.name: output.source for output in derivation.outputs}

    def sources(**changes):
        return {output.name: output.source for output in derive(AttentionOptions(**changes)).outputs}

    silent = sources(noise=False, context="infinite")
    assert "V = jnp.zeros_like(C)" in silent["closure"] and "/ batch" not in silent["overlap_flow"]
    assert "finite_context_loss" not in silent and "finite_context_loss" in plain
    assert "weight_decay" not in sources(weight_decay=False, context="infinite")["overlap_flow"].split('"""')[2]
    identity = sources(values="identity", context="infinite")
    assert "R[" not in identity["layers"] and "R[" in plain["layers"] and "H @ q" not in identity["overlap_flow"]
    rows = sources(values="rows", context="infinite")
    assert "head.output is None" not in rows["layers"] and "logistic_pair_loss" not in rows
    with pytest.raises(InputError, match="value = identity"):
        AttentionOptions(values="rows")
    with pytest.raises(InputError, match="depth"):
        AttentionOptions(depth=0)


@pytest.mark.slow
def test_the_written_out_network_follows_its_options():
    titles = []
    for changes in ({}, {"depth": 1}, {"heads": 2}, {"outputs": 2}, {"train_readouts": False}):
        tables = derive(AttentionOptions(context="infinite", values="identity", **changes)).tables
        titles.append((tables[0].title, tables[0].rows))
    assert len({str(t) for t in titles}) == len(titles)


@pytest.mark.slow
def test_logit_scale_reaches_the_generated_functions():
    """Logits twice as large are keys twice as long: scale 2 at C equals scale 1 with the key rows doubled."""
    scaled = derive(AttentionOptions(logit_scale=2))
    for name in ("tilt", "ode", "ratio", "query"):
        check = scaled.step(name).check
        assert check is not None and check().passed, name
    scope: dict = {}
    exec(module_source(scaled), scope)
    network = build_architecture(1, 1)
    trained = jnp.asarray(network.trained_mask)
    C = random_overlaps(jax.random.key(1), network.size, 0.15)
    D = jnp.asarray([2.0 if row.startswith("k") else 1.0 for row in network.rows])
    longer = D[:, None] * C * D
    pair = (network.student, network.teacher)
    assert float(scope["population_loss"](C, C, *pair)) == pytest.approx(
        float(generated.population_loss(longer, longer, *pair)), rel=1e-13
    )
    corrected = jax.jit(lambda C: scope["finite_context_loss"](C, 20.0, *pair))(C)
    plain = jax.jit(lambda C: generated.finite_context_loss(C, 20.0, *pair))(longer)
    assert float(corrected) == pytest.approx(float(plain), rel=1e-13)
    got = jax.jit(lambda C: scope["finite_context_closure"](C, 20.0, *pair, trained))(C)
    expected = jax.jit(lambda C: generated.finite_context_closure(C, 20.0, *pair, trained))(longer)
    for x, y in zip(got, expected, strict=True):
        assert np.max(np.abs(x - D[:, None] * y * D)) < 1e-13


@pytest.mark.parametrize(
    "case",
    [
        *((depth, 1, "identity", 1, True) for depth in (1, 2, 3, 4)),
        *((depth, 2, "identity", 1, True) for depth in (1, 2, 3)),
        (1, 1, "rows", 1, True),
        (2, 1, "rows", 1, True),
        (2, 1, "identity", 2, True),
        (2, 1, "identity", 2, False),
        (1, 1, "identity", 2, True, 3),
        (1, 2, "rows", 1, True, 2),
    ],
    ids=str,
)
def test_generated_closure_equals_the_scalar_tape(case):
    """The tape is evaluated with Python floats; it shares no code with the matrix writer."""
    depth, heads, value, outputs, train, *rank = case
    shared = {"rank": rank[0], "key_value_heads": 1} if rank else {}
    network = build_architecture(depth, heads, value=value, outputs=outputs, train_readouts=train, **shared)
    size = network.size
    C, R = (np.asarray(random_overlaps(key, size, 0.6)) for key in jax.random.split(jax.random.key(4)))
    closure = scalar_closure(network)
    numbers = {
        entry(letter, i, j): M[i, j] for letter, M in (("C", C), ("R", R)) for i in range(size) for j in range(i, size)
    }
    flat = [e for matrix in (closure.G, closure.H, closure.V) for row in matrix for e in row]
    *values, loss = closure.tape.evaluate(numbers, [*flat, closure.loss])
    expected = np.array(values).reshape(3, size, size)
    trained = jnp.asarray(network.trained_mask)
    both = jax.jit(
        lambda C, R: (
            generated.closure(C, R, network.student, network.teacher, trained),
            generated.population_loss(C, R, network.student, network.teacher),
        )
    )
    got, got_loss = both(C, R)
    for part, reference in zip(got, expected, strict=True):
        assert np.max(np.abs(part - reference)) <= 1e-12 * max(np.max(np.abs(reference)), 1e-300)
    assert float(got_loss) == pytest.approx(loss, rel=1e-12)


def test_operation_counts_are_those_of_the_docs(derivation):
    assert derivation.tables[1].rows == operation_table().rows
    assert [row[1] for row in operation_table().rows] == ["15", "40", "77", "126"]


def test_checks_can_fail(derivation):
    """A wrong average, and a wrong closure, are noticed."""
    import sympy

    s, t, vk, vl = *sympy.symbols("s t"), *sympy.symbols("C_vk C_vl", real=True)
    assert attention_checks.softmax_average(s * vk + t * vl, 1).passed
    for wrong in (1.1 * (s * vk + t * vl), s * vk, s * vk * t * vl):
        assert not attention_checks.softmax_average(wrong, 1).passed
    outputs = [o for o in derivation.outputs]
    broken = [
        type(o)(o.name, o.source.replace("below += jnp.outer(B_A_q", "below += 1.01 * jnp.outer(B_A_q"))
        for o in outputs
    ]
    assert broken != outputs
    assert not attention_checks.closure_against_tape(broken, build_architecture(2, 1), 1).passed


def test_texts_print(derivation):
    assert "softmax" in to_text(derivation) and "\\subsection" in to_latex(derivation)
    assert verify_stamp((ROOT / FILES[1]).read_text())
