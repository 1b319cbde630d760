"""What a derivation writes, how it is compared with the files on disk, and a whole theory checked."""

from __future__ import annotations

import contextlib
import difflib
import io
import time
from importlib import import_module
from pathlib import Path

from derivations.registry import derive_function
from odescale.errors import InputError
from odescale.symbolic.document import to_markdown
from odescale.symbolic.module_writer import module_source, verify_stamp
from odescale.symbolic.record import Derivation, run_checks

PACKAGE = "odescale/generated/__init__.py"
PACKAGE_TEXT = (
    '"""Plain JAX written by `python -m derivations`; no sympy. Every file says in its header what wrote it."""\n'
)


def texts(derivation: Derivation) -> dict[str, str]:
    """Path from the repository's root -> text of every file that a derivation writes."""
    page = to_markdown(derivation)
    return {
        PACKAGE: PACKAGE_TEXT,
        f"odescale/generated/{derivation.name}.py": module_source(derivation),
        # An installed package has no docs folder; this copy is what `odescale derive` prints.
        f"odescale/generated/{derivation.name}.md": page,
        f"docs/derivations/{derivation.name}.md": page,
    }


def write(root: Path, files: dict[str, str]) -> list[str]:
    """Writes what differs; returns the paths written."""
    written = []
    for name, text in files.items():
        path = root / name
        if path.exists() and path.read_bytes() == text.encode():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        written.append(name)
    return written


def differences(root: Path, files: dict[str, str]) -> dict[str, str]:
    """Path -> unified diff from the derivation to the file, for every file that is not byte for byte the same."""
    found = {}
    for name, text in files.items():
        path = root / name
        present = path.read_bytes().decode(errors="replace") if path.exists() else ""
        if present != text:
            lines = difflib.unified_diff(
                text.splitlines(keepends=True),
                present.splitlines(keepends=True),
                f"{name} (derived)",
                f"{name} (on disk)",
            )
            found[name] = "".join(lines) or f"{name}: line endings differ\n"
    return found


def hand_edited(root: Path, name: str) -> str:
    """A line when the stamp of a generated module does not fit its body, else the empty string."""
    path = root / f"odescale/generated/{name}.py"
    if not path.exists():
        return f"{path.name}: missing"
    try:
        intact = verify_stamp(path.read_text())
    except InputError:
        intact = False
    return "" if intact else f"{path.name}: its hash does not fit its text; it was edited by hand"


def numerically_equal(root: Path, derivation: Derivation) -> str:
    """On another sympy the text may differ: the functions on disk must give the numbers of the derived ones."""
    checks = import_module(f"derivations.{derivation.name}.checks")
    return checks.compare_modules(
        (root / f"odescale/generated/{derivation.name}.py").read_text(), module_source(derivation)
    )


def check(root: Path, derivation: Derivation, exact: bool) -> bool:
    """Compares and runs the numeric checks; prints what is wrong. True when all is well."""
    fine = True
    if exact:
        for name, diff in differences(root, texts(derivation)).items():
            fine = False
            print(f"{name} is not what the derivation gives (run `python -m derivations`):\n{diff}", end="")
    else:
        for line in (hand_edited(root, derivation.name), numerically_equal(root, derivation)):
            if line:
                fine = False
                print(line)
    for name, result in run_checks(derivation).items():
        print(f"  {derivation.name}.{name}: {result}")
        fine = fine and result.passed
    return fine


def checked(root: Path, name: str, exact: bool) -> tuple[bool, str]:
    """Whether all is well with a derivation, and what `check` printed: for a process of its own, which finds this by name."""
    import jax

    jax.config.update("jax_enable_x64", True)
    start, out = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(out):
        derivation = derive_function(name)()
        fine = check(root, derivation, exact)
        print(f"{name}: {len(derivation.steps)} steps in {time.perf_counter() - start:.1f} s")
    return fine, out.getvalue()
