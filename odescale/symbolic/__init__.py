"""Symbolic algebra for deriving theories: sympy in, documented ODEs and JAX code out.

Public names load on first use, so that importing this package costs nothing and a missing `odescale.generated` never
keeps a derivation from writing it anew.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from odescale.symbolic.asymptotics import dominant_balances as dominant_balances
    from odescale.symbolic.asymptotics import next_order as next_order
    from odescale.symbolic.document import to_latex as to_latex
    from odescale.symbolic.document import to_markdown as to_markdown
    from odescale.symbolic.document import to_text as to_text
    from odescale.symbolic.gaussian import Gaussian as Gaussian
    from odescale.symbolic.gaussian import arcsine_law as arcsine_law
    from odescale.symbolic.gaussian import covariance_symbols as covariance_symbols
    from odescale.symbolic.gaussian import quadratic_tilt as quadratic_tilt
    from odescale.symbolic.gaussian import stein as stein
    from odescale.symbolic.matrix import Chain as Chain
    from odescale.symbolic.matrix import adjoint as adjoint
    from odescale.symbolic.matrix import assemble as assemble
    from odescale.symbolic.matrix import chains as chains
    from odescale.symbolic.matrix_writer import MatrixWriter as MatrixWriter
    from odescale.symbolic.matrix_writer import Selector as Selector
    from odescale.symbolic.module_writer import API as API
    from odescale.symbolic.module_writer import body_of as body_of
    from odescale.symbolic.module_writer import function_source as function_source
    from odescale.symbolic.module_writer import module_source as module_source
    from odescale.symbolic.module_writer import verify_stamp as verify_stamp
    from odescale.symbolic.monte_carlo import monte_carlo_check as monte_carlo_check
    from odescale.symbolic.power_laws import Balance as Balance
    from odescale.symbolic.power_laws import Discarded as Discarded
    from odescale.symbolic.record import Assumption as Assumption
    from odescale.symbolic.record import CheckResult as CheckResult
    from odescale.symbolic.record import Derivation as Derivation
    from odescale.symbolic.record import Equation as Equation
    from odescale.symbolic.record import Output as Output
    from odescale.symbolic.record import Parameter as Parameter
    from odescale.symbolic.record import Step as Step
    from odescale.symbolic.record import Table as Table
    from odescale.symbolic.record import run_checks as run_checks
    from odescale.symbolic.scalar_writer import assignments as assignments
    from odescale.symbolic.scalar_writer import count_operations as count_operations
    from odescale.symbolic.scalar_writer import to_jax as to_jax
    from odescale.symbolic.sgd import OverlapFlow as OverlapFlow
    from odescale.symbolic.sgd import SampleMoments as SampleMoments
    from odescale.symbolic.sgd import batch_average as batch_average
    from odescale.symbolic.sgd import overlap_flow as overlap_flow
    from odescale.symbolic.sgd import stein_moments as stein_moments
    from odescale.symbolic.tape import Tape as Tape
    from odescale.symbolic.theory import OverlapTheory as OverlapTheory
    from odescale.symbolic.theory import overlap_theory as overlap_theory

_HOMES = {
    "asymptotics": ("dominant_balances", "next_order"),
    "power_laws": ("Balance", "Discarded"),
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


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME_OF)
