"""`odescale derive`, and the derivation scripts where there is a checkout; an installed package ships only what they wrote."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType

from odescale.cli.output import emit
from odescale.errors import InputError, OdescaleError

SHIPPED = Path(__file__).parents[1] / "generated"


def derive(options: argparse.Namespace) -> int:
    """Prints the shipped derivation, or derives it again: set for a terminal, with --markdown as it is."""
    from odescale.cli.terminal import as_text

    shipped = shipped_text(options.name)
    record = {"system": options.name, "derivation": shipped}
    if options.rerun:
        again = derive_again(options.name)
        record |= {"derivation": again, "matches_shipped": again == shipped}
    text = record["derivation"]
    emit(record, text.rstrip("\n") if options.markdown else as_text(text), options.json)
    return 0


def shipped_derivations() -> tuple[str, ...]:
    """Names of the derivations whose text is in the package."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.md")))


def shipped_text(name: str) -> str:
    """The derivation as Markdown; `InputError` for a name that is not shipped."""
    known = shipped_derivations()
    if name not in known:
        raise InputError("NAME", expected=f"one of {', '.join(known)}", got=name, remedy="pick a listed derivation")
    return (SHIPPED / f"{name}.md").read_text(encoding="utf-8")


def derive_again(name: str) -> str:
    """The derivation run from its first line, as Markdown; needs a checkout as working directory."""
    shipped_text(name)
    scripts = _scripts()
    if scripts is None:
        raise InputError(
            "--rerun",
            expected="a checkout of the repository as working directory",
            got=str(Path.cwd()),
            remedy="clone it and run the command there, or drop --rerun",
        )
    from derivations.registry import derive_function

    return scripts.to_markdown(derive_function(name)())


def shipped_in_sync(name: str) -> str:
    """Derives again and compares every generated file; one sentence. `OdescaleError` when they differ.

    Without a checkout there is nothing to derive from, and the sentence says so.
    """
    scripts = _scripts()
    if scripts is None:
        return f"{name}: shipped text and code used as they are (no checkout here to derive again)"
    from derivations.registry import derive_function

    derivation = derive_function(name)()
    different = scripts.differences(scripts.ROOT, scripts.texts(derivation))
    if different:
        raise OdescaleError(
            f"generated files differ from their derivation: {', '.join(different)}; run `python -m derivations`"
        )
    return (
        f"{name}: {len(derivation.steps)} steps derived from the SGD update; generated code and text are what they give"
    )


def _scripts() -> ModuleType | None:
    here = Path.cwd()
    if (here / "derivations" / "registry.py").is_file() and str(here) not in sys.path:
        sys.path.append(str(here))
    try:
        import derivations.__main__ as scripts
    except ModuleNotFoundError:
        return None
    return scripts
