"""Access to the derivation scripts, where there is a checkout; an installed package ships only what they wrote."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from types import ModuleType

from odescale.errors import InputError, OdescaleError


def shipped_derivations() -> tuple[str, ...]:
    """Names of the derivations whose text is in the package."""
    names = (entry.name for entry in files("odescale.generated").iterdir())
    return tuple(sorted(name.removesuffix(".md") for name in names if name.endswith(".md")))


def shipped_text(name: str) -> str:
    """The derivation as Markdown; `InputError` for a name that is not shipped."""
    known = shipped_derivations()
    if name not in known:
        raise InputError("NAME", expected=f"one of {', '.join(known)}", got=name, remedy="pick a listed derivation")
    return files("odescale.generated").joinpath(f"{name}.md").read_text(encoding="utf-8")


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
