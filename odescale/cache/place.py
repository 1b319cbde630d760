"""Where things are kept between processes: in the folder of JAX's own cache of compiled programs, if that is on."""

from __future__ import annotations

import hashlib
import os
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "equinox", "diffrax", "optimistix", "lineax", "optax", "numpy", "scipy")
"""What programs and tables are made with besides this package."""


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/odescale/compiled`, under `~/.cache` without it: what the command line uses."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "odescale" / "compiled"


def switch_on(folder: Path) -> None:
    """JAX's cache in `folder`, for all programs however small. Before equinox is imported: it reads its setting then.

    `EQX_ON_ERROR=nan`: what equinox would raise inside a compiled program is a callback, which no cache keeps; there it gives NaN,
    and the library reads result codes instead.
    """
    os.environ.setdefault("EQX_ON_ERROR", "nan")
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def switch_off() -> None:
    """No cache, whatever the environment says."""
    import jax

    jax.config.update("jax_compilation_cache_dir", None)


def root() -> Path | None:
    """The folder of JAX's cache; None where it is off."""
    import jax

    kept = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    return Path(kept) if kept else None


@cache
def versions() -> str:
    """Python and the packages below this one."""
    known = [f"python {sys.version_info[:3]}"]
    for package in PACKAGES:
        try:
            known.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(known)


@cache
def sources() -> str:
    """Digest of every source file of this package and of the versions that it runs on."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256(versions().encode())
    for source in sorted(package.rglob("*.py")):
        digest.update(str(source.relative_to(package)).encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
