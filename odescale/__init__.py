"""Ordinary differential equations for learning dynamics: derive them, integrate them, compare them with real training.

The public names load on first use: importing odescale imports neither JAX nor sympy and changes no setting of JAX.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from odescale.analysis.forecast.best_schedule import best_schedule as best_schedule
    from odescale.analysis.forecast.choice import choose_law as choose_law
    from odescale.analysis.forecast.choice import compare_laws as compare_laws
    from odescale.analysis.forecast.fit import fit_law as fit_law
    from odescale.analysis.forecast.isolated import fit_isolated as fit_isolated
    from odescale.analysis.forecast.loss_curve import LossCurve as LossCurve
    from odescale.analysis.forecast.loss_curve import curve_from_rates as curve_from_rates
    from odescale.analysis.forecast.ode import solve_schedule as solve_schedule
    from odescale.analysis.forecast.predict import forecast as forecast
    from odescale.analysis.frontier.compute import compute_frontier as compute_frontier
    from odescale.analysis.frontier.compute import critical_compute as critical_compute
    from odescale.analysis.frontier.exponent import envelope_of_curves as envelope_of_curves
    from odescale.analysis.frontier.exponent import frontier_exponent as frontier_exponent
    from odescale.analysis.frontier.numeric import compare_frontiers as compare_frontiers
    from odescale.analysis.frontier.numeric import numeric_frontier as numeric_frontier
    from odescale.analysis.frontier.power_law_phases import compute_optimal as compute_optimal
    from odescale.analysis.frontier.power_law_phases import truncated_modes as truncated_modes
    from odescale.analysis.frontier.risk_law import RiskLaw as RiskLaw
    from odescale.analysis.frontier.risk_law import isolated_law as isolated_law
    from odescale.analysis.frontier.risk_law import joint_surface as joint_surface
    from odescale.analysis.frontier.risk_law import risk_law as risk_law
    from odescale.analysis.frontier.risk_law import yang_v1 as yang_v1
    from odescale.analysis.frontier.risk_law import yang_v3 as yang_v3
    from odescale.analysis.frontier.tied import tied_frontier as tied_frontier
    from odescale.analysis.peaked.escapes import compare_escapes as compare_escapes
    from odescale.analysis.peaked.escapes import time_to_loss as time_to_loss
    from odescale.analysis.peaked.one_third import PeakedLaw as PeakedLaw
    from odescale.analysis.peaked.one_third import predict_law as predict_law
    from odescale.analysis.phases.curves import find_transition_curve as find_transition_curve
    from odescale.analysis.phases.power_floor import fit_power_floor as fit_power_floor
    from odescale.analysis.phases.regimes import Transition as Transition
    from odescale.analysis.phases.transition import find_transition as find_transition
    from odescale.analysis.phases.transition import transition_gradient as transition_gradient
    from odescale.analysis.two_tokens import two_token_loss as two_token_loss
    from odescale.analysis.two_tokens import two_token_minima as two_token_minima
    from odescale.analysis.two_tokens import two_token_transition as two_token_transition
    from odescale.clock import Clock as Clock
    from odescale.clock import ConstantSchedule as ConstantSchedule
    from odescale.clock import CosineSchedule as CosineSchedule
    from odescale.clock import GrowthSchedule as GrowthSchedule
    from odescale.clock import PowerSchedule as PowerSchedule
    from odescale.clock import StepDownSchedule as StepDownSchedule
    from odescale.clock import WarmedSchedule as WarmedSchedule
    from odescale.clock import WarmupStableDecaySchedule as WarmupStableDecaySchedule
    from odescale.compare.comparison import Comparison as Comparison
    from odescale.compare.comparison import compare as compare_runs  # noqa: F401
    from odescale.compare.kernel import compare_kernel as compare_kernel
    from odescale.compare.kernel import kernel_regime as kernel_regime
    from odescale.compare.log_pages import write_log_report as write_log_report
    from odescale.compare.log_report import LogReport as LogReport
    from odescale.compare.log_report import report_logs as report_logs
    from odescale.compare.mean_field import compare_mean_field as compare_mean_field
    from odescale.compare.mean_field_report import draw_mean_field as draw_mean_field
    from odescale.compare.peaked import compare_peaked as compare_peaked
    from odescale.errors import CheckpointError as CheckpointError
    from odescale.errors import InputError as InputError
    from odescale.errors import OdescaleError as OdescaleError
    from odescale.errors import OutsideTheoryError as OutsideTheoryError
    from odescale.errors import PrecisionError as PrecisionError
    from odescale.errors import SolveError as SolveError
    from odescale.expectations.structured_kernel import kernel_structure as kernel_structure
    from odescale.expectations.structured_kernel import structured_kernel as structured_kernel
    from odescale.expectations.tangent_kernel import tangent_kernel as tangent_kernel
    from odescale.logs.read import TrainingLog as TrainingLog
    from odescale.logs.read import read_log as read_log
    from odescale.logs.read import read_logs as read_logs
    from odescale.networks.architecture import Architecture as Architecture
    from odescale.networks.architecture import FieldNetwork as FieldNetwork
    from odescale.networks.architecture import Head as Head
    from odescale.networks.architecture import build_architecture as build_architecture
    from odescale.networks.architecture import quickstart_architecture as quickstart_architecture
    from odescale.networks.blocks import MLP as MLP
    from odescale.networks.blocks import HeadRows as HeadRows
    from odescale.networks.blocks import Positions as Positions
    from odescale.networks.blocks import PreNorm as PreNorm
    from odescale.networks.blocks import RMSNorm as RMSNorm
    from odescale.networks.blocks import SelfAttention as SelfAttention
    from odescale.networks.language_model import LanguageModel as LanguageModel
    from odescale.networks.library import committee_network as committee_network
    from odescale.networks.library import transformer_network as transformer_network
    from odescale.networks.losses import CrossEntropy as CrossEntropy
    from odescale.networks.losses import FunctionLoss as FunctionLoss
    from odescale.networks.losses import SquareLoss as SquareLoss
    from odescale.networks.readouts import Committee as Committee
    from odescale.networks.readouts import FunctionOfFields as FunctionOfFields
    from odescale.networks.readouts import MeanPool as MeanPool
    from odescale.networks.readouts import PerToken as PerToken
    from odescale.networks.readouts import QueryToken as QueryToken
    from odescale.networks.row_network import RowNetwork as RowNetwork
    from odescale.networks.sequence_model import SequenceTransformer as SequenceTransformer
    from odescale.networks.sequence_model import lazy as lazy
    from odescale.networks.teacher_student import TeacherStudent as TeacherStudent
    from odescale.networks.teacher_student import teacher_student as teacher_student
    from odescale.solve.integrate import integrate as integrate
    from odescale.solve.spectral.binned import solve_binned as solve_binned
    from odescale.solve.spectral.exact import constant_rate as constant_rate
    from odescale.solve.spectral.exact import exact_recursion as exact_recursion
    from odescale.solve.spectral.exact import ode_distance as ode_distance
    from odescale.solve.spectral.log_rate import solve_spectral as solve_spectral
    from odescale.solve.spectral.passes import repeated_passes as repeated_passes
    from odescale.solve.sweep import sweep as sweep
    from odescale.solve.trajectory import Trajectory as Trajectory
    from odescale.systems.attention import Attention as Attention
    from odescale.systems.attention_build import attention as attention
    from odescale.systems.attention_build import quickstart as quickstart
    from odescale.systems.coverage import coverage as coverage
    from odescale.systems.kernel import Kernel as Kernel
    from odescale.systems.kernel_build import kernel_system as kernel_system
    from odescale.systems.mean_field import MeanField as MeanField
    from odescale.systems.mean_field_build import mean_field as mean_field
    from odescale.systems.mean_field_start import aligned_overlaps as aligned_overlaps
    from odescale.systems.peaked import Peaked as Peaked
    from odescale.systems.peaked import peaked as peaked
    from odescale.systems.register import systems as available_systems  # noqa: F401
    from odescale.systems.spectral import Spectral as Spectral
    from odescale.systems.spectral import spectral as spectral
    from odescale.systems.spectral_features import StoredData as StoredData
    from odescale.systems.spectral_features import gaussian_projection as gaussian_projection
    from odescale.systems.spectral_features import random_features as random_features
    from odescale.systems.spectral_features import stored_spectrum as stored_spectrum
    from odescale.systems.spectrum import isotropic as isotropic
    from odescale.systems.spectrum import listed as listed
    from odescale.systems.spectrum import power_law as power_law
    from odescale.systems.spectrum import source_overlaps as source_overlaps
    from odescale.systems.transformer import committee as committee
    from odescale.systems.transformer import transformer as transformer
    from odescale.training.full_batch import train_full_batch as train_full_batch
    from odescale.training.grammar import Grammar as Grammar
    from odescale.training.language import train_language as train_language
    from odescale.training.of_mean_field import train_mean_field as train_mean_field
    from odescale.training.of_system import train_system as train_system
    from odescale.training.run import TrainingRun as TrainingRun
    from odescale.training.softmax_layer import train_peaked as train_peaked
    from odescale.training.source_text import SourceText as SourceText
    from odescale.training.source_text import source_text as source_text
    from odescale.training.source_text import text_of as text_of
    from odescale.training.spectral_sgd import GaussianTask as GaussianTask
    from odescale.training.spectral_sgd import StoredTask as StoredTask
    from odescale.training.spectral_sgd import train_linear as train_linear
    from odescale.training.train import train as train

__version__ = "0.1.0"

# Public name -> (module, name there). Lazy, so that a missing or broken generated module cannot keep the script that
# writes it from starting. A new name goes here, into the block above, and nowhere else. It must not be the name of a
# room (`systems`, `compare`): importing that package would put the module in its place.
_HOMES: dict[str, tuple[str, str]] = {
    "Architecture": ("odescale.networks.architecture", "Architecture"),
    "Attention": ("odescale.systems.attention", "Attention"),
    "CheckpointError": ("odescale.errors", "CheckpointError"),
    "Clock": ("odescale.clock", "Clock"),
    "Committee": ("odescale.networks.readouts", "Committee"),
    "Comparison": ("odescale.compare.comparison", "Comparison"),
    "ConstantSchedule": ("odescale.clock", "ConstantSchedule"),
    "CosineSchedule": ("odescale.clock", "CosineSchedule"),
    "CrossEntropy": ("odescale.networks.losses", "CrossEntropy"),
    "FieldNetwork": ("odescale.networks.architecture", "FieldNetwork"),
    "FunctionLoss": ("odescale.networks.losses", "FunctionLoss"),
    "FunctionOfFields": ("odescale.networks.readouts", "FunctionOfFields"),
    "GaussianTask": ("odescale.training.spectral_sgd", "GaussianTask"),
    "Grammar": ("odescale.training.grammar", "Grammar"),
    "GrowthSchedule": ("odescale.clock", "GrowthSchedule"),
    "Head": ("odescale.networks.architecture", "Head"),
    "HeadRows": ("odescale.networks.blocks", "HeadRows"),
    "InputError": ("odescale.errors", "InputError"),
    "Kernel": ("odescale.systems.kernel", "Kernel"),
    "LanguageModel": ("odescale.networks.language_model", "LanguageModel"),
    "LogReport": ("odescale.compare.log_report", "LogReport"),
    "LossCurve": ("odescale.analysis.forecast.loss_curve", "LossCurve"),
    "MLP": ("odescale.networks.blocks", "MLP"),
    "MeanField": ("odescale.systems.mean_field", "MeanField"),
    "MeanPool": ("odescale.networks.readouts", "MeanPool"),
    "OdescaleError": ("odescale.errors", "OdescaleError"),
    "OutsideTheoryError": ("odescale.errors", "OutsideTheoryError"),
    "Peaked": ("odescale.systems.peaked", "Peaked"),
    "PeakedLaw": ("odescale.analysis.peaked.one_third", "PeakedLaw"),
    "PerToken": ("odescale.networks.readouts", "PerToken"),
    "Positions": ("odescale.networks.blocks", "Positions"),
    "PowerSchedule": ("odescale.clock", "PowerSchedule"),
    "PreNorm": ("odescale.networks.blocks", "PreNorm"),
    "PrecisionError": ("odescale.errors", "PrecisionError"),
    "QueryToken": ("odescale.networks.readouts", "QueryToken"),
    "RMSNorm": ("odescale.networks.blocks", "RMSNorm"),
    "RiskLaw": ("odescale.analysis.frontier.risk_law", "RiskLaw"),
    "RowNetwork": ("odescale.networks.row_network", "RowNetwork"),
    "SelfAttention": ("odescale.networks.blocks", "SelfAttention"),
    "SequenceTransformer": ("odescale.networks.sequence_model", "SequenceTransformer"),
    "SolveError": ("odescale.errors", "SolveError"),
    "SourceText": ("odescale.training.source_text", "SourceText"),
    "Spectral": ("odescale.systems.spectral", "Spectral"),
    "SquareLoss": ("odescale.networks.losses", "SquareLoss"),
    "StepDownSchedule": ("odescale.clock", "StepDownSchedule"),
    "StoredData": ("odescale.systems.spectral_features", "StoredData"),
    "StoredTask": ("odescale.training.spectral_sgd", "StoredTask"),
    "TeacherStudent": ("odescale.networks.teacher_student", "TeacherStudent"),
    "TrainingLog": ("odescale.logs.read", "TrainingLog"),
    "TrainingRun": ("odescale.training.run", "TrainingRun"),
    "Trajectory": ("odescale.solve.trajectory", "Trajectory"),
    "Transition": ("odescale.analysis.phases.regimes", "Transition"),
    "WarmedSchedule": ("odescale.clock", "WarmedSchedule"),
    "WarmupStableDecaySchedule": ("odescale.clock", "WarmupStableDecaySchedule"),
    "aligned_overlaps": ("odescale.systems.mean_field_start", "aligned_overlaps"),
    "attention": ("odescale.systems.attention_build", "attention"),
    "available_systems": ("odescale.systems.register", "systems"),
    "best_schedule": ("odescale.analysis.forecast.best_schedule", "best_schedule"),
    "build_architecture": ("odescale.networks.architecture", "build_architecture"),
    "choose_law": ("odescale.analysis.forecast.choice", "choose_law"),
    "committee": ("odescale.systems.transformer", "committee"),
    "committee_network": ("odescale.networks.library", "committee_network"),
    "compare_escapes": ("odescale.analysis.peaked.escapes", "compare_escapes"),
    "compare_frontiers": ("odescale.analysis.frontier.numeric", "compare_frontiers"),
    "compare_kernel": ("odescale.compare.kernel", "compare_kernel"),
    "compare_laws": ("odescale.analysis.forecast.choice", "compare_laws"),
    "compare_mean_field": ("odescale.compare.mean_field", "compare_mean_field"),
    "compare_peaked": ("odescale.compare.peaked", "compare_peaked"),
    "compare_runs": ("odescale.compare.comparison", "compare"),
    "compute_frontier": ("odescale.analysis.frontier.compute", "compute_frontier"),
    "compute_optimal": ("odescale.analysis.frontier.power_law_phases", "compute_optimal"),
    "constant_rate": ("odescale.solve.spectral.exact", "constant_rate"),
    "coverage": ("odescale.systems.coverage", "coverage"),
    "critical_compute": ("odescale.analysis.frontier.compute", "critical_compute"),
    "curve_from_rates": ("odescale.analysis.forecast.loss_curve", "curve_from_rates"),
    "draw_mean_field": ("odescale.compare.mean_field_report", "draw_mean_field"),
    "envelope_of_curves": ("odescale.analysis.frontier.exponent", "envelope_of_curves"),
    "exact_recursion": ("odescale.solve.spectral.exact", "exact_recursion"),
    "find_transition": ("odescale.analysis.phases.transition", "find_transition"),
    "find_transition_curve": ("odescale.analysis.phases.curves", "find_transition_curve"),
    "fit_isolated": ("odescale.analysis.forecast.isolated", "fit_isolated"),
    "fit_law": ("odescale.analysis.forecast.fit", "fit_law"),
    "fit_power_floor": ("odescale.analysis.phases.power_floor", "fit_power_floor"),
    "forecast": ("odescale.analysis.forecast.predict", "forecast"),
    "frontier_exponent": ("odescale.analysis.frontier.exponent", "frontier_exponent"),
    "gaussian_projection": ("odescale.systems.spectral_features", "gaussian_projection"),
    "integrate": ("odescale.solve.integrate", "integrate"),
    "isolated_law": ("odescale.analysis.frontier.risk_law", "isolated_law"),
    "isotropic": ("odescale.systems.spectrum", "isotropic"),
    "joint_surface": ("odescale.analysis.frontier.risk_law", "joint_surface"),
    "kernel_regime": ("odescale.compare.kernel", "kernel_regime"),
    "kernel_structure": ("odescale.expectations.structured_kernel", "kernel_structure"),
    "kernel_system": ("odescale.systems.kernel_build", "kernel_system"),
    "lazy": ("odescale.networks.sequence_model", "lazy"),
    "listed": ("odescale.systems.spectrum", "listed"),
    "mean_field": ("odescale.systems.mean_field_build", "mean_field"),
    "numeric_frontier": ("odescale.analysis.frontier.numeric", "numeric_frontier"),
    "ode_distance": ("odescale.solve.spectral.exact", "ode_distance"),
    "peaked": ("odescale.systems.peaked", "peaked"),
    "power_law": ("odescale.systems.spectrum", "power_law"),
    "predict_law": ("odescale.analysis.peaked.one_third", "predict_law"),
    "quickstart": ("odescale.systems.attention_build", "quickstart"),
    "quickstart_architecture": ("odescale.networks.architecture", "quickstart_architecture"),
    "random_features": ("odescale.systems.spectral_features", "random_features"),
    "read_log": ("odescale.logs.read", "read_log"),
    "read_logs": ("odescale.logs.read", "read_logs"),
    "repeated_passes": ("odescale.solve.spectral.passes", "repeated_passes"),
    "report_logs": ("odescale.compare.log_report", "report_logs"),
    "risk_law": ("odescale.analysis.frontier.risk_law", "risk_law"),
    "solve_binned": ("odescale.solve.spectral.binned", "solve_binned"),
    "solve_schedule": ("odescale.analysis.forecast.ode", "solve_schedule"),
    "solve_spectral": ("odescale.solve.spectral.log_rate", "solve_spectral"),
    "source_overlaps": ("odescale.systems.spectrum", "source_overlaps"),
    "source_text": ("odescale.training.source_text", "source_text"),
    "spectral": ("odescale.systems.spectral", "spectral"),
    "stored_spectrum": ("odescale.systems.spectral_features", "stored_spectrum"),
    "structured_kernel": ("odescale.expectations.structured_kernel", "structured_kernel"),
    "sweep": ("odescale.solve.sweep", "sweep"),
    "tangent_kernel": ("odescale.expectations.tangent_kernel", "tangent_kernel"),
    "teacher_student": ("odescale.networks.teacher_student", "teacher_student"),
    "text_of": ("odescale.training.source_text", "text_of"),
    "tied_frontier": ("odescale.analysis.frontier.tied", "tied_frontier"),
    "time_to_loss": ("odescale.analysis.peaked.escapes", "time_to_loss"),
    "train": ("odescale.training.train", "train"),
    "train_full_batch": ("odescale.training.full_batch", "train_full_batch"),
    "train_language": ("odescale.training.language", "train_language"),
    "train_linear": ("odescale.training.spectral_sgd", "train_linear"),
    "train_mean_field": ("odescale.training.of_mean_field", "train_mean_field"),
    "train_peaked": ("odescale.training.softmax_layer", "train_peaked"),
    "train_system": ("odescale.training.of_system", "train_system"),
    "transformer": ("odescale.systems.transformer", "transformer"),
    "transformer_network": ("odescale.networks.library", "transformer_network"),
    "transition_gradient": ("odescale.analysis.phases.transition", "transition_gradient"),
    "truncated_modes": ("odescale.analysis.frontier.power_law_phases", "truncated_modes"),
    "two_token_loss": ("odescale.analysis.two_tokens", "two_token_loss"),
    "two_token_minima": ("odescale.analysis.two_tokens", "two_token_minima"),
    "two_token_transition": ("odescale.analysis.two_tokens", "two_token_transition"),
    "write_log_report": ("odescale.compare.log_pages", "write_log_report"),
    "yang_v1": ("odescale.analysis.frontier.risk_law", "yang_v1"),
    "yang_v3": ("odescale.analysis.frontier.risk_law", "yang_v3"),
}

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'odescale' has no attribute {name!r}; public names: {', '.join(__all__)}")
    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
