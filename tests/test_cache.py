"""What is kept on disk: the program that was traced and no other, tables by formula and numbers, never half a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odescale import logistic_pair
from odescale.cache import place, programs
from odescale.cache.aside import Aside
from odescale.cache.programs import made, program
from odescale.cache.tables import kept
from odescale.cli.main import main
from odescale.clock import parse_schedule
from odescale.systems.attention import Attention
from odescale.systems.base import local_exponents

LOSS = Attention.excess_loss
NAME = f"{LOSS.__module__}:{LOSS.__qualname__}"
AT = jnp.asarray(2.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own: JAX's goes on where it was, ours asks for the folder at each call."""
    monkeypatch.setattr(programs, "root", lambda: tmp_path)
    monkeypatch.setattr("odescale.cache.tables.root", lambda: tmp_path)
    monkeypatch.setenv("EQX_ON_ERROR", "nan")
    return tmp_path


@pytest.fixture(scope="module")
def state() -> jax.Array:
    """Made before there is a folder: it is a program too."""
    return logistic_pair().initial_state()


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.bin"))


def test_a_loaded_program_is_the_traced_one(state: jax.Array, folder: Path) -> None:
    system = logistic_pair()
    answers = [np.array(program(LOSS)(system, AT, state))]
    assert len(files(folder)) == 1
    before, written = made[NAME], files(folder)[0].stat().st_mtime_ns
    again = program(LOSS)  # as in another process: nothing in memory
    answers += [np.array(again(system, AT, state)), np.array(again(system, AT, state))]
    assert made[NAME] == before + 1 and files(folder)[0].stat().st_mtime_ns == written
    assert np.array_equal(answers[0], answers[1]) and np.array_equal(answers[1], answers[2])
    np.testing.assert_allclose(answers[0], eqx.filter_jit(LOSS)(system, AT, state), rtol=1e-14)


def test_numbers_share_a_program_and_all_else_has_its_own(state: jax.Array, folder: Path) -> None:
    def count(system: Any, t: jax.Array) -> int:
        program(LOSS)(system, t, state)
        return len(files(folder))

    assert count(logistic_pair(), AT) == 1
    assert count(logistic_pair(learning_rate=0.11), AT + 1) == 1
    assert count(logistic_pair(schedule="cosine:100"), AT) == 2
    assert count(logistic_pair(schedule="power:0.5"), AT) == 3
    assert count(logistic_pair(schedule="power:0.6"), AT) == 3
    assert count(logistic_pair(), AT.astype("float32")) == 4
    with jax.default_matmul_precision("highest"):
        assert count(logistic_pair(), AT) == 5


def test_values_that_are_not_traced_are_in_the_key(folder: Path) -> None:
    def key(*given: object) -> bytes:
        return programs._digest("f", given, [x for x in jax.tree_util.tree_leaves(given) if eqx.is_array(x)])

    step = parse_schedule("cosine:100")
    different = [1, 1.0, True, "1", b"1", None, (1,), [1], {"a": 1}, {"b": 1}, np.dtype("float32"), jnp.sin, jnp.cos]
    different += [np.add, eqx.nn.Linear, step, parse_schedule("power:0.5"), local_exponents, Aside(1)]
    keys = [key(value) for value in different]
    assert len(set(keys)) == len(keys) and keys == [key(value) for value in different]
    moved = eqx.tree_at(lambda one: one.learning_rate, logistic_pair(), replace_fn=lambda rate: 0.9 * rate)
    assert key(moved) == key(logistic_pair())
    assert key(Aside(1)) == key(Aside(2))  # no program may read what is set aside
    assert key(step) == key(parse_schedule("cosine:101"))
    assert key(np.ones(3)) == key(np.zeros(3)) != key(np.ones(4))
    with pytest.raises(programs._Unnamed):
        key(lambda x: x)


def test_what_is_not_of_this_package_is_traced_in_each_process(folder: Path) -> None:
    factor = 2.0

    class Outside(eqx.Module):
        weight: jax.Array

    def double(module: Outside) -> jax.Array:
        return factor * module.weight

    call, before = program(double), sum(made.values())
    for value in (1.0, 2.0):
        assert call(Outside(jnp.asarray(value))) == 2 * value
    assert sum(made.values()) == before + 1 and not files(folder)


class Beside(eqx.Module):
    """Of a module outside the package, in a folder that the test run names."""

    weight: jax.Array
    factor: float = eqx.field(static=True, default=2.0)


def test_classes_of_a_named_folder_are_kept_until_a_source_there_changes(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(value: object) -> bytes:
        return programs._digest("f", value, [x for x in jax.tree_util.tree_leaves(value) if eqx.is_array(x)])

    one = Beside(jnp.ones(3))
    first = key(one)
    assert first == key(Beside(jnp.zeros(3))) and first != key(Beside(jnp.ones(4)))
    assert first != key(Beside(jnp.ones(3), 3.0))
    project = tmp_path_factory.mktemp("project")
    monkeypatch.setattr(programs, "_beside", {})
    monkeypatch.setattr(sys.modules[__name__], "__file__", str(project / "theory.py"))
    with pytest.raises(programs._Unnamed):
        key(one)
    keys = []
    for text in ("slope = 1", "slope = 2"):  # of another file, which the class may call
        (project / "helper.py").write_text(text)
        programs.name_also(project)
        keys.append(key(one))
    assert len({first, *keys}) == 3
    with pytest.raises(programs._Unnamed):
        key(Beside.__init__)  # a function: its constants are not in its name


def test_a_transformation_goes_through(folder: Path) -> None:
    cube = program(lambda x: x**3)
    assert jax.grad(cube)(AT) == 12.0 and np.array_equal(jax.vmap(cube)(jnp.arange(3.0)), [0, 1, 8])
    assert jax.jit(cube)(AT) == 8.0


def test_other_sources_and_damaged_files_are_traced_anew(
    state: jax.Array, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = logistic_pair()
    arguments = (system, AT, state)
    right = np.array(program(LOSS)(*arguments))
    path = files(folder)[0]
    path.write_bytes(path.read_bytes()[:-100])
    assert np.array_equal(program(LOSS)(*arguments), right)
    monkeypatch.setattr(programs, "sources", lambda: "another version")
    assert np.array_equal(program(LOSS)(*arguments), right)
    assert len(files(folder)) == 2
    assert {path.parent.name for path in files(folder)} >= {"another version"}


def test_the_last_versions_stay(state: jax.Array, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = logistic_pair()
    for number in range(programs.MOST_VERSIONS + 2):
        monkeypatch.setattr(programs, "sources", lambda number=number: f"version {number}")
        program(LOSS)(system, AT, state)
        for path in (folder / "programs").iterdir():  # clocks of file systems may not tell them apart
            os.utime(path, (0, int(path.name.split()[1])))
    kept = sorted(path.name for path in (folder / "programs").iterdir())
    assert kept == sorted(f"version {number}" for number in range(2, programs.MOST_VERSIONS + 2))


def test_sources_see_every_file_and_version(tmp_path: Path) -> None:
    assert place.sources() == place.sources.__wrapped__()
    assert all(f"{name} " in place.versions() for name in ("jax", "diffrax", "equinox", "numpy"))


def test_a_cache_that_cannot_be_written_is_none(state: jax.Array, folder: Path) -> None:
    (folder / "programs").write_text("a file where the folder should be")
    system = logistic_pair()
    assert np.isfinite(program(LOSS)(system, AT, state))


def test_a_table_is_made_once(folder: Path) -> None:
    calls: list[float] = []

    @kept
    def squares(limit: float) -> dict[str, np.ndarray]:
        calls.append(limit)
        return {"squares": np.arange(limit) ** 2}

    first, again = squares(5), squares(5)
    assert calls == [5] and np.array_equal(first["squares"], again["squares"])
    assert squares(6)["squares"].size == 6 and calls == [5, 6]
    damaged = next(folder.glob("tables/squares-*.npz"))
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert {squares(5)["squares"].size, squares(6)["squares"].size} == {5, 6} and len(calls) == 3


def test_the_command_line_keeps_unless_told_not_to(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    asked: list[object] = []
    monkeypatch.setattr(place, "switch_on", asked.append)
    monkeypatch.setattr(place, "switch_off", lambda: asked.append("off"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    for words in (["solve", "nosuch"], ["solve", "nosuch", "--no-cache"]):
        monkeypatch.setattr(sys, "argv", ["odescale", *words])
        assert main() == 2
    assert main(["solve", "nosuch"]) == 2  # called as a function it leaves the setting alone
    assert asked == [Path("/somewhere/odescale/compiled"), "off"]
    assert capsys.readouterr().err.count("nosuch") == 3


def test_a_long_compilation_is_announced(state: jax.Array, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    system = logistic_pair()
    monkeypatch.setattr(programs, "tell", [said.append])
    monkeypatch.setattr(programs, "PATIENCE", 60.0)
    program(LOSS)(system, AT, state)
    assert said == []
    monkeypatch.setattr(programs, "PATIENCE", 0.0)
    for _ in range(2):
        program(LOSS)(system, AT, state)
        assert said == ["compiling, once for each shape"]


def test_least_effort_is_another_program_of_the_same_values(state: jax.Array, folder: Path) -> None:
    system = logistic_pair()
    call, before = program(LOSS), made[NAME]
    with programs.lightly():
        light = call(system, AT, state)
    assert made[NAME] == before + 1 and len(files(folder)) == 1
    np.testing.assert_allclose(call(system, AT, state), light, rtol=1e-13)
    assert made[NAME] == before + 2
