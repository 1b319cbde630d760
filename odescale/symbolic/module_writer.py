"""A generated module: header with the derivation's name, an API stamp and the hash of the body; then the functions."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Iterable, Sequence

from odescale.errors import InputError
from odescale.symbolic.record import Derivation

# Counts breaking changes of the signatures of generated functions. It does not depend on any version of sympy.
API = 1

_STAMP = "# derivation: {name} | api: {api} | sha256: {digest}"


def function_source(
    name: str, arguments: Sequence[str], docstring: str, body: Iterable[str], returns: str | None = None
) -> str:
    """Source of one function; `body` lines may carry their own indentation relative to the function."""
    text = textwrap.indent(docstring.strip(), "    ")[4:]
    quote = '"""'
    closing = quote if "\n" not in text else f"\n    {quote}"
    lines = [f"def {name}({', '.join(arguments)}){f' -> {returns}' if returns else ''}:", f"    {quote}{text}{closing}"]
    lines += [f"    {line}" if line else "" for line in body]
    return "\n".join(lines) + "\n"


def module_source(derivation: Derivation) -> str:
    """The text of the generated module, byte for byte a function of the derivation."""
    body = "\n".join(derivation.imports) + f"\n\nAPI = {API}\n"
    body += "".join(f"\n\n{output.source}" for output in derivation.outputs)
    digest = hashlib.sha256(body.encode()).hexdigest()
    header = (
        f'"""{derivation.title}: written by `python -m derivations`, do not edit.\n\n'
        f'{textwrap.fill(derivation.summary, 116)}\n"""\n\n'
        f"{_STAMP.format(name=derivation.name, api=API, digest=digest)}\n"
        "# ruff: noqa: E501\n# fmt: off\n\n"
    )
    return header + "from __future__ import annotations\n\n" + body


def body_of(text: str) -> str:
    """The part of a generated module that its hash covers."""
    marker = "from __future__ import annotations\n\n"
    if marker not in text:
        raise InputError("text", expected="a generated module", got=text[:60], remedy="run `python -m derivations`")
    return text.split(marker, 1)[1]


def verify_stamp(text: str) -> bool:
    """True when the hash in the header is the hash of the body: no hand edit since the module was written."""
    digest = hashlib.sha256(body_of(text).encode()).hexdigest()
    return f"sha256: {digest}" in text.split("from __future__", 1)[0]
