"""Importing odescale is cheap, touches no setting of JAX, needs no sympy, and knows every public name."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import odescale

ROOT = Path(__file__).resolve().parents[1]


def run(code: str) -> str:
    """The output of `code` in a fresh interpreter, warnings being errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_no_heavy_package() -> None:
    heavy = ("jax", "numpy", "sympy", "matplotlib", "diffrax", "equinox", "scipy", "xarray")
    loaded = run(f"import sys, odescale\nprint([name for name in {heavy} if name in sys.modules])")
    assert loaded.strip() == "[]"


# Everything but `symbolic` (which is sympy) imports with sympy blocked, changes nothing of JAX's configuration, and
# makes no array at import: it would be float32 for a user who switches 64-bit numbers on one line later.
EVERYTHING = """
import pkgutil, sys
from importlib import import_module
sys.modules["sympy"] = None
import jax
before = dict(jax.config.values)
import odescale
names = [m.name for m in pkgutil.walk_packages(odescale.__path__, "odescale.", onerror=lambda name: None)
         if not m.name.startswith("odescale.symbolic") and not m.name.endswith("__main__")]
modules = [import_module(name) for name in names]
assert len(modules) > 5, names
changed = {k: (before[k], v) for k, v in jax.config.values.items() if k in before and before[k] != v}
assert not changed, changed
arrays = [f"{m.__name__}.{k}" for m in modules for k, v in vars(m).items() if isinstance(v, jax.Array)]
assert not arrays, arrays
for name in odescale.__all__:
    getattr(odescale, name)
"""


def test_every_room_imports_without_sympy_and_leaves_jax_alone() -> None:
    run(EVERYTHING)


def doors() -> dict[str, list[tuple[str, str, str]]]:
    """Door or namespace -> (public name, home, name there), from the stubs."""
    found = {}
    for stub in sorted((ROOT / "odescale").rglob("*.pyi")):
        parts = stub.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[module] = [
            (alias.asname or alias.name, str(node.module), alias.name)
            for node in ast.parse(stub.read_text()).body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        ]
    return found


def test_the_door_is_small() -> None:
    assert len(odescale.__all__) <= 70
    assert sorted(odescale.__all__) == sorted(name for name, _, _ in doors()["odescale"])


def test_every_public_name_has_one_place() -> None:
    homes = [(home, name) for names in doors().values() for _, home, name in names if home != "odescale"]
    assert len(homes) == len(set(homes))


@pytest.mark.parametrize("module", doors())
def test_public_names_load_and_are_documented(module: str) -> None:
    door = import_module(module)
    for name, home, inside in doors()[module]:
        value = getattr(door, name)
        assert value is getattr(door, name) and name in dir(door)
        own = import_module(f"{home}.{inside}") if home == "odescale" else getattr(import_module(home), inside)
        assert getattr(value, "__wrapped__", value) is own or value is own
        assert own.__doc__ and own.__doc__.strip(), f"{module}.{name} has no docstring"


def test_a_public_name_that_is_a_room_can_be_called() -> None:
    # `import odescale.compare` binds the package to that name: it has to be the verb as well.
    rooms = {path.stem for path in (ROOT / "odescale").iterdir()}
    verbs = {name for name, home, _ in doors()["odescale"] if name in rooms and home != "odescale"}
    assert verbs == {"compare", "plot"}
    for name in verbs:
        room = import_module(f"odescale.{name}")
        assert getattr(odescale, name) is room and callable(room)
        assert inspect.signature(room) == inspect.signature(room.__wrapped__)


def test_unknown_name_is_an_attribute_error_that_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="integrat.*public names"):
        odescale.integrat  # noqa: B018


def test_builders_show_their_parameters() -> None:
    from odescale.systems.register import SYSTEMS

    own = {name: entry for name, entry in SYSTEMS.items() if isinstance(entry.builder, str)}
    assert len(own) == 11
    for name, entry in own.items():
        shown = inspect.signature(entry.build).parameters
        for parameter in entry.parameters:
            assert parameter.name in shown and shown[parameter.name].default is not inspect.Parameter.empty, name


def test_version_is_told_once_the_same_everywhere() -> None:
    changelog = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    citation = re.search(r"^version: ['\"]?([\d.]+)", (ROOT / "CITATION.cff").read_text(), re.M)
    assert changelog is not None and citation is not None
    assert changelog[1] == citation[1] == odescale.__version__
