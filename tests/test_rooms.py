"""Data goes one way through the house: a room imports only from rooms to its left. Lazy imports count too."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The whole rule, in one place.
LINE = (
    "errors",
    "precision",
    "files",
    "clock",
    "networks",
    "expectations",
    "generated",
    "systems",
    "solve",
    "analysis",
    "plot",
    "logs",
    "run",
    "training",
    "compare",
    "cli",
)
# Rooms beside the line: what they may import of odescale. Nobody imports them.
BESIDE = {"symbolic": ("errors",)}
# Inside a function only: a derived theory becomes a system when it is asked to.
BESIDE_LAZILY = {"symbolic": ("systems",)}
# The scripts outside the package, and what they may import of it. `generated` only inside a function: the scripts must
# start, and write it anew, when it is missing or broken.
DERIVATIONS = ("errors", "precision", "networks", "symbolic")
DERIVATIONS_LAZILY = ("generated",)
# Outside packages that are not for every room.
RESERVED = {"sympy": ("symbolic", "derivations"), "matplotlib": ("plot",)}
# `derivations` exists in a checkout only: the command line looks for it when it is asked to derive again.
DERIVATIONS_CALLERS = ("cli",)


class Import(NamedTuple):
    """An imported dotted name, its line, and whether it runs only when a function is called."""

    name: str
    line: int
    lazy: bool


def imports_of(source: str, package: str) -> list[Import]:
    """Every import in `source`, relative ones resolved against `package`, `import_module("...")` included."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(parents[: len(parents) - node.level + 1] + ([node.module] if node.module else []))
            found.extend(Import(f"{base}.{alias.name}", node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__") and node.args:
            name = _leading_text(node.args[0])
            if name:
                found.append(Import(name, node.lineno, lazy))
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _leading_text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]  # f"odescale.generated.{name}" names its room before the brace
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def violations(source: str, path: str) -> list[str]:
    """What the file at `path` (from the repository's root) imports against the rule, one line each."""
    parts = Path(path).with_suffix("").parts
    package = ".".join(parts[:-1])
    room = parts[1] if parts[0] == "odescale" else parts[0]
    where = room if room in LINE or room in BESIDE or parts[0] == "derivations" else None
    if where is None:
        return [f"{path}: {room} is no room; add it to the line in tests/test_rooms.py"]
    bad = []
    for item in imports_of(source, package):
        top, _, rest = item.name.partition(".")
        fault = ""
        if top == "odescale":
            fault = _fault_within(room, rest.split(".")[0], item.lazy)
        elif top == "derivations" and room != "derivations":
            if room not in DERIVATIONS_CALLERS or not item.lazy:
                fault = f"only {', '.join(DERIVATIONS_CALLERS)} may look for the scripts, inside a function"
        elif top in RESERVED and room not in RESERVED[top]:
            fault = f"{top} is for {' and '.join(RESERVED[top])}"
        if fault:
            bad.append(f"{path}:{item.line}: {room} imports {item.name}: {fault}")
    return bad


def _fault_within(room: str, target: str, lazy: bool) -> str:
    if target == "__version__" or target == room:
        return ""
    if target not in LINE and target not in BESIDE:
        return "import a name from the module that holds it, not from odescale"
    if room == "derivations":
        if target in DERIVATIONS or (lazy and target in DERIVATIONS_LAZILY):
            return ""
        return f"the scripts may use {', '.join(DERIVATIONS)}, and {', '.join(DERIVATIONS_LAZILY)} inside a function"
    if room in BESIDE:
        allowed = BESIDE[room] + (BESIDE_LAZILY[room] if lazy else ())
        return "" if target in allowed else f"{room} may use {', '.join(BESIDE[room])}"
    if target in BESIDE:
        return f"{target} is imported by derivations and by users, by no room"
    return "" if LINE.index(target) < LINE.index(room) else "an arrow backwards"


def _files() -> list[str]:
    folders = [ROOT / "odescale", ROOT / "derivations"]
    files = [path for folder in folders if folder.is_dir() for path in folder.rglob("*.py")]
    # odescale/__init__.py is the door: it names every room, in strings, and test_import.py watches it.
    return sorted(str(path.relative_to(ROOT)) for path in files if path != ROOT / "odescale" / "__init__.py")


@pytest.mark.parametrize("path", _files())
def test_no_arrow_backwards(path: str) -> None:
    assert not violations((ROOT / path).read_text(), path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("odescale/clock.py", "from odescale.systems.base import AbstractSystem"),
        ("odescale/clock.py", "def f():\n    from odescale.systems import base"),
        ("odescale/solve/integrate.py", "import odescale.plot.curves"),
        ("odescale/solve/integrate.py", "from ..plot import curves"),
        ("odescale/solve/integrate.py", "from importlib import import_module\nimport_module('odescale.plot.curves')"),
        (
            "odescale/solve/integrate.py",
            "import importlib\ndef f(n):\n    importlib.import_module(f'odescale.cli.{n}')",
        ),
        ("odescale/solve/integrate.py", "if TYPE_CHECKING:\n    from odescale.compare import verdict"),
        ("odescale/solve/integrate.py", "from odescale import integrate"),
        ("odescale/solve/integrate.py", "import odescale"),
        ("odescale/systems/attention.py", "import sympy"),
        ("odescale/systems/attention.py", "def f():\n    from sympy.abc import x"),
        ("odescale/systems/attention.py", "def f():\n    import odescale.symbolic"),
        ("odescale/solve/integrate.py", "from matplotlib.figure import Figure"),
        ("odescale/cli/main.py", "from odescale.symbolic import writers"),
        ("odescale/cli/main.py", "import derivations"),
        ("odescale/systems/attention.py", "def f():\n    import derivations"),
        ("odescale/symbolic/gaussian.py", "from odescale.networks import architecture"),
        ("odescale/symbolic/theory.py", "from odescale.systems import derived"),
        ("derivations/attention.py", "from odescale.generated import attention"),
        ("derivations/attention.py", "from odescale.solve import integrate"),
        ("odescale/utils.py", "import numpy"),
    ],
)
def test_the_check_sees_a_violation(path: str, source: str) -> None:
    assert len(violations(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("odescale/precision.py", "from odescale.errors import InputError"),
        ("odescale/systems/attention.py", "from odescale.generated import attention\nfrom .base import AbstractSystem"),
        ("odescale/cli/main.py", "from odescale import __version__\nfrom odescale.compare import verdict"),
        ("odescale/cli/main.py", "def f():\n    from derivations import attention"),
        ("odescale/symbolic/gaussian.py", "import sympy\nfrom odescale.errors import InputError"),
        ("odescale/symbolic/theory.py", "def f():\n    from odescale.systems import derived"),
        ("derivations/attention.py", "import sympy\nfrom odescale.symbolic.writers import write"),
        ("derivations/attention.py", "def check():\n    from odescale.generated import attention"),
    ],
)
def test_the_check_passes_what_is_allowed(path: str, source: str) -> None:
    assert not violations(source, path)
