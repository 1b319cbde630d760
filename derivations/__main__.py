"""`python -m derivations [--check] [--only NAME]`: write, or compare, the generated code and the derivation texts.

Exit status: 0 when all is well, 1 when `--check` finds a difference or a numeric check fails, 2 on bad input.
"""

from __future__ import annotations

import argparse
import difflib
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path

import sympy

from derivations.checked import checked
from derivations.registry import NAMES, derive_function
from odescale.errors import InputError
from odescale.symbolic.document import to_markdown
from odescale.symbolic.module_writer import module_source
from odescale.symbolic.record import Derivation, run_checks

ROOT = Path(__file__).resolve().parents[1]
# The version of sympy whose text is compared byte for byte; others are compared numerically.
PINNED_SYMPY = "1.14"
LONG = ("mean_field", "peaked", "attention")
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
    from odescale.symbolic.module_writer import verify_stamp

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
    checks = import_module(f"derivations.{derivation.name}_checks")
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


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m derivations", description="Write or check the derived theories.")
    parser.add_argument(
        "--check", action="store_true", help="compare with the files on disk and run the numeric checks"
    )
    parser.add_argument("--only", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    options = parser.parse_args(arguments)
    import jax

    jax.config.update("jax_enable_x64", True)
    exact = sympy.__version__.startswith(f"{PINNED_SYMPY}.") or sympy.__version__ == PINNED_SYMPY
    names = NAMES if options.only is None else (options.only,)
    fine = True
    try:
        if options.check and len(names) > 1:
            # Each in a process of its own, the longest first, which leaves no long one for the end.
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(len(names), os.cpu_count() or 1), mp_context=spawn) as pool:
                jobs = {
                    name: pool.submit(checked, root, name, exact)
                    for name in sorted(names, key=lambda name: LONG.index(name) if name in LONG else len(LONG))
                }
                for name in names:
                    good, text = jobs[name].result()
                    fine = good and fine
                    print(text, end="", flush=True)
        else:
            for name in names:
                start = time.perf_counter()
                derivation = derive_function(name)()
                if options.check:
                    fine = check(root, derivation, exact) and fine
                else:
                    if not exact:
                        raise InputError(
                            "sympy",
                            expected=f"version {PINNED_SYMPY}.x to write files",
                            got=sympy.__version__,
                            remedy="install the pinned version (constraints.txt), or use --check",
                        )
                    for path in write(root, texts(derivation)):
                        print(f"wrote {path}")
                print(f"{name}: {len(derivation.steps)} steps in {time.perf_counter() - start:.1f} s")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check:
        print("all derivations agree with the files" if fine else "FAILED: see above")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
