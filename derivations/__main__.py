"""`python -m derivations [--check] [--only NAME]`: write, or compare, the generated code and the derivation texts.

Exit status: 0 when all is well, 1 when `--check` finds a difference or a numeric check fails, 2 on bad input.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import sympy

from derivations.files import check, checked, differences, hand_edited, numerically_equal, texts, write
from derivations.registry import NAMES, derive_function
from odescale.errors import InputError
from odescale.symbolic.document import to_markdown

__all__ = ["ROOT", "differences", "hand_edited", "main", "numerically_equal", "texts", "to_markdown"]

ROOT = Path(__file__).resolve().parents[1]
# The version of sympy whose text is compared byte for byte; others are compared numerically.
PINNED_SYMPY = "1.14"
LONG = ("mean_field", "peaked", "attention", "optimizers")


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
