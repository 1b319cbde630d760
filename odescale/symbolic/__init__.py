"""Symbolic algebra for deriving theories: sympy in, documented ODEs and JAX code out.

Public names load on first use, so that importing this package costs nothing and a missing `odescale.generated` never
keeps a derivation from writing it anew.
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "record": (
        "Assumption",
        "CheckResult",
        "Derivation",
        "Equation",
        "Output",
        "Parameter",
        "Step",
        "Table",
        "run_checks",
    ),
    "gaussian": ("Gaussian", "arcsine_law", "covariance_symbols", "quadratic_tilt", "stein"),
    "sgd": ("OverlapFlow", "SampleMoments", "batch_average", "overlap_flow", "stein_moments"),
    "matrix": ("Chain", "adjoint", "assemble", "chains"),
    "matrix_writer": ("MatrixWriter", "Selector"),
    "scalar_writer": ("assignments", "count_operations", "to_jax"),
    "tape": ("Tape",),
    "module_writer": ("API", "body_of", "function_source", "module_source", "verify_stamp"),
    "document": ("to_latex", "to_markdown", "to_text"),
    "theory": ("OverlapTheory", "overlap_theory"),
    "monte_carlo": ("monte_carlo_check",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
