"""Two texts of one generated module, compared by the numbers that their functions give."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

Call = tuple[str, tuple[Any, ...]]


def same_numbers(
    on_disk: str,
    derived: str,
    calls: Callable[[], Iterable[Call]],
    evaluate: Callable[[Callable[..., Any], tuple[Any, ...]], Any] | None = None,
    complete: bool = True,
) -> str:
    """Empty when every public function gives the same numbers in both texts (1e-11), else one line that names the function.

    `calls`: (name, arguments), built only where the texts differ; every public function must be among them, unless
    `complete` is False: then the others are reached through these. `evaluate`: how a function meets its arguments;
    numbers become arrays where it is left out.
    """
    import jax.numpy as jnp

    if on_disk == derived:
        return ""
    scopes: list[dict[str, Any]] = []
    for text in (on_disk, derived):
        scope: dict[str, Any] = {}
        try:
            exec(compile(text, "generated", "exec"), scope)
        except Exception as error:  # a hand edit may have broken anything
            return f"the generated module does not run: {error!r}"
        scopes.append(scope)
    listed = list(calls())
    own = {
        name
        for name, value in scopes[1].items()
        if isinstance(value, FunctionType) and value.__globals__ is scopes[1] and not name.startswith("_")
    }
    missing = [name for name, _ in listed if any(name not in scope for scope in scopes)]
    if complete:
        missing += sorted(own - {name for name, _ in listed})
    if missing:
        return f"{missing[0]}: missing from the generated module or from this comparison"
    apply = evaluate or (lambda function, arguments: function(*map(jnp.asarray, arguments)))
    for name, arguments in listed:
        try:
            results = [apply(scope[name], arguments) for scope in scopes]
        except Exception as error:
            return f"{name}: does not run: {error!r}"
        parts = [r if isinstance(r, tuple) else (r,) for r in results]
        for x, y in zip(*parts, strict=True):
            if not bool(jnp.all(jnp.abs(x - y) <= 1e-11 * (1 + jnp.max(jnp.abs(y))))):
                return f"{name}: the file on disk and the derivation give different numbers"
    return ""
