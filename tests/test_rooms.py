"""Data goes one way through the house: a room imports only from rooms to its left, and no imports run in a circle.

Lazy imports count too, and those for type checkers.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The whole rule, in one place.
LINE = (
    "_door",
    "errors",
    "plain_text",
    "precision",
    "files",
    "cache",
    "clock",
    "networks",
    "expectations",
    "generated",
    "optimizers",
    "systems",
    "solve",
    "analysis",
    "sweeps",
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
    """Every import in `source`, relative ones resolved against `package`, `import_module("...")` included.

    What is filled in when the program runs is a star: `import_module(f"odescale.cli.{name}")` imports `odescale.cli.*`.
    """
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(parents[: len(parents) - node.level + 1] + ([node.module] if node.module else []))
            names = (base if alias.name == "*" else f"{base}.{alias.name}" for alias in node.names)
            found.extend(Import(name, node.lineno, lazy) for name in names)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__") and node.args:
            name = _pattern(node.args[0], package)
            if name:
                found.append(Import(name, node.lineno, lazy))
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _pattern(node: ast.expr, package: str) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_pattern(part, package) or "*" for part in node.values)
    if isinstance(node, ast.FormattedValue) and getattr(node.value, "id", "") in ("__name__", "__package__"):
        return package  # the lazy door of a package: f"{__name__}.{name}"
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
    # A module with a stub beside it is the door or a namespace of it: `test_doors_only_open` watches those.
    return sorted(str(path.relative_to(ROOT)) for path in files if not path.with_suffix(".pyi").exists())


@pytest.mark.parametrize("path", _files())
def test_no_arrow_backwards(path: str) -> None:
    assert not violations((ROOT / path).read_text(), path)


def test_doors_only_open() -> None:
    """The door and its namespaces name other rooms in their stubs and import nothing but the way to read those."""
    doors = [stub.with_suffix(".py") for stub in (ROOT / "odescale").rglob("*.pyi")]
    assert len(doors) > 5
    for door in doors:
        assert {item.name for item in imports_of(door.read_text(), "")} <= {"odescale._door.open_door"}, door


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
        ("derivations/attention/code.py", "from odescale.generated import attention"),
        ("derivations/attention/code.py", "from odescale.solve import integrate"),
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
        ("odescale/cli/main.py", "def f():\n    from derivations.attention import script"),
        ("odescale/symbolic/gaussian.py", "import sympy\nfrom odescale.errors import InputError"),
        ("odescale/symbolic/theory.py", "def f():\n    from odescale.systems import derived"),
        ("derivations/attention/code.py", "import sympy\nfrom odescale.symbolic.writers import write"),
        ("derivations/attention/code.py", "def check():\n    from odescale.generated import attention"),
    ],
)
def test_the_check_passes_what_is_allowed(path: str, source: str) -> None:
    assert not violations(source, path)


def import_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """{module: modules it imports} of {path from the repository's root: source}, within these files.

    A name counts for the longest module that it begins with. That Python also runs the packages above it does not count.
    """
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources}

    def targets(name: str) -> set[str]:
        if "*" in name:
            return {module for module in modules if fnmatchcase(module, name)}
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return {name} if name else set()

    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        package = ".".join(Path(path).parts[:-1])
        graph[module] = set().union(*(targets(item.name) for item in imports_of(sources[path], package))) - {module}
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Largest groups of modules that all import each other, directly or through others of the group."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        todo = [start]
        while todo:
            new = graph[todo.pop()] - seen
            seen |= new
            todo += new
        reached[start] = seen
    groups = {frozenset(b for b in reached[a] if a in reached[b]) for a in graph if a in reached[a]}
    return sorted(sorted(group) for group in groups)


@cache
def _graph() -> dict[str, set[str]]:
    return import_graph({path: (ROOT / path).read_text() for path in _files()})


def test_no_imports_in_a_circle() -> None:
    assert not circles(_graph())


def test_only_a_theorys_script_imports_its_checks() -> None:
    """A formula must stand without the check that was written against it; `files` compares modules by their numbers."""
    callers = {
        (importer, module)
        for importer, modules in _graph().items()
        for module in modules
        if module.startswith("derivations.") and module.split(".")[-1].startswith("checks")
    }
    assert callers
    for importer, module in callers:
        own = importer.rpartition(".")[0] == module.rpartition(".")[0]
        own = own and importer.split(".")[-1].split("_")[0] in ("script", "checks")
        assert own or importer == "derivations.files", f"{importer} imports {module}"


@pytest.mark.parametrize(
    "closing",
    [
        "from derivations.t.formula import f",
        "from derivations.t import formula",
        "from . import formula",
        "from .formula import *",
        "def check():\n    from derivations.t.formula import f",
        "if TYPE_CHECKING:\n    from derivations.t.formula import Form",
        "import importlib\nimportlib.import_module('derivations.t.formula')",
        "from importlib import import_module\ndef f(n):\n    import_module(f'derivations.{n}.formula')",
        "import derivations.t.notation",
        "import_module(f'{__package__}.form{name}')",
    ],
)
def test_a_circle_is_seen(closing: str) -> None:
    sources = {
        "derivations/t/__init__.py": "",
        "derivations/t/notation.py": "from derivations.t.formula import f",
        "derivations/t/formula.py": "from derivations.t.checks import check",
        "derivations/t/checks.py": closing,
        "derivations/t/script.py": "from derivations.t import checks, formula",
    }
    (circle,) = circles(import_graph(sources))
    assert circle[:2] == ["derivations.t.checks", "derivations.t.formula"] and "derivations.t.script" not in circle
    sources["derivations/t/formula.py"] = "from derivations.t import notation"
    sources["derivations/t/notation.py"] = "import sympy"
    assert circles(import_graph(sources)) == []


def concrete_systems() -> set[str]:
    """Names of the classes in `odescale/systems` that are systems."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "odescale" / "systems").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name] = {base.id for base in node.bases if isinstance(base, ast.Name)}
    systems = {"AbstractSystem"}
    while more := {name for name, bases in found.items() if bases & systems} - systems:
        systems |= more
    return systems - {"AbstractSystem"}


def asked_types(source: str, names: set[str]) -> list[str]:
    """Lines of `source` that ask by `isinstance` (or by the identity of its type) whether something is one of `names`."""
    bad = []
    for node in ast.walk(ast.parse(source)):
        asks = isinstance(node, ast.Call) and _called(node) in ("isinstance", "issubclass")
        compares = isinstance(node, ast.Compare) and any(isinstance(op, (ast.Is, ast.IsNot, ast.Eq)) for op in node.ops)
        inside = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} if asks or compares else set()
        if inside & names:
            bad.append(f"line {node.lineno}: {ast.unparse(node)}")
    return bad


def test_no_verb_asks_which_theory_it_has() -> None:
    names = concrete_systems()
    assert {"Attention", "MeanField", "Peaked", "Kernel", "Spectral", "Derived", "AbstractEnsemble"} <= names
    outside = [path for path in _files() if path.startswith("odescale/") and not path.startswith("odescale/systems/")]
    assert not {path: bad for path in outside if (bad := asked_types((ROOT / path).read_text(), names))}


def test_a_question_about_a_type_is_seen() -> None:
    names = concrete_systems()
    assert asked_types("if isinstance(system, (Peaked, MeanField)): pass", names)
    assert asked_types("type(system) is Peaked", names)
    assert not asked_types("isinstance(subject, AbstractSystem)", names)
