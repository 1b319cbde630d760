"""Importing odescale is cheap, touches no setting of JAX, needs no sympy, and knows every public name."""

from __future__ import annotations

import ast
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


@pytest.mark.parametrize("name", odescale.__all__)
def test_public_name_loads(name: str) -> None:
    assert getattr(odescale, name) is not None
    assert name in dir(odescale)


def test_public_name_is_documented() -> None:
    for module, attribute in odescale._HOMES.values():
        value = getattr(import_module(module), attribute)
        assert value.__doc__ and value.__doc__.strip(), f"{module}.{attribute} has no docstring"


def test_no_public_name_is_a_room() -> None:
    # `import odescale.systems` binds the package to that name: a function of the same name would come and go.
    rooms = {path.stem for path in (ROOT / "odescale").iterdir()}
    assert not rooms & set(odescale._HOMES)


def test_unknown_name_is_an_attribute_error_that_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="integrat.*public names"):
        odescale.integrat  # noqa: B018


def test_type_checkers_see_what_loads_lazily() -> None:
    tree = ast.parse((ROOT / "odescale" / "__init__.py").read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: (node.module, alias.name)
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == odescale._HOMES


def test_version_is_told_once_the_same_everywhere() -> None:
    changelog = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    citation = re.search(r"^version: ['\"]?([\d.]+)", (ROOT / "CITATION.cff").read_text(), re.M)
    assert changelog is not None and citation is not None
    assert changelog[1] == citation[1] == odescale.__version__
