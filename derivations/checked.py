"""One derivation checked in a process of its own."""

from __future__ import annotations

import contextlib
import io
import time
from pathlib import Path

from derivations.registry import derive_function


def checked(root: Path, name: str, exact: bool) -> tuple[bool, str]:
    """Whether all is well with a derivation, and what `derivations.__main__.check` printed."""
    # Not at the top: the command imports this module, which a worker process can find by name, as it cannot `__main__`.
    import jax

    from derivations.__main__ import check

    jax.config.update("jax_enable_x64", True)
    start, out = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(out):
        derivation = derive_function(name)()
        fine = check(root, derivation, exact)
        print(f"{name}: {len(derivation.steps)} steps in {time.perf_counter() - start:.1f} s")
    return fine, out.getvalue()
