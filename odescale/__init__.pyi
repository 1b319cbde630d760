# Every public name, once, with its home. A new one goes here and nowhere else; seventy are the most (tests/test_import.py).

# Verbs
from odescale.systems.register import register as register
from odescale.systems.register import systems as available_systems
from odescale.solve.integrate import integrate as integrate
from odescale.sweeps.sweep import sweep as sweep
from odescale.analysis.phases.transition import find_transition as find_transition
from odescale.analysis.phases.transition import transition_gradient as transition_gradient
from odescale.analysis.phases.curves import find_transition_curve as find_transition_curve
from odescale.solve.coverage import coverage as coverage
from odescale.training.train import train as train
from odescale.compare.comparison import compare as compare
from odescale.compare.report import write_report as write_report
from odescale.compare.log_report import report_logs as report_logs
from odescale.plot.draw import plot as plot
from odescale.analysis.forecast.fit import fit_law as fit_law
from odescale.analysis.forecast.predict import forecast as forecast
from odescale.analysis.forecast.best_schedule import best_schedule as best_schedule
from odescale.analysis.tables.fit import fit_table as fit_table
from odescale.analysis.budget.planner import plan as plan
from odescale.logs.read import read_log as read_log
from odescale.logs.read import read_logs as read_logs
from odescale.logs.run_table import read_table as read_table

# Systems: builders by name
from odescale.systems.attention_build import attention as attention
from odescale.systems.attention_build import logistic_pair as logistic_pair
from odescale.systems.attention_build import quickstart as quickstart
from odescale.systems.transformer import transformer as transformer
from odescale.systems.transformer import committee as committee
from odescale.systems.peaked import peaked as peaked
from odescale.systems.spectral import spectral as spectral
from odescale.systems.kernel_build import kernel as kernel
from odescale.systems.kernel_build import kernel_system as kernel_system
from odescale.systems.mean_field_build import mean_field as mean_field
from odescale.systems.mean_field_start import aligned_overlaps as aligned_overlaps
from odescale.networks.teacher_student import teacher_student as teacher_student

# Nouns
from odescale.systems.base import AbstractSystem as AbstractSystem
from odescale.systems.base import Integration as Integration
from odescale.systems.parameters import Parameter as Parameter
from odescale.systems.attention import Attention as Attention
from odescale.systems.mean_field import MeanField as MeanField
from odescale.systems.peaked import Peaked as Peaked
from odescale.systems.spectral import Spectral as Spectral
from odescale.systems.kernel import Kernel as Kernel
from odescale.systems.derived import Derived as Derived
from odescale.clock import Clock as Clock
from odescale.solve.trajectory import Trajectory as Trajectory
from odescale.analysis.phases.record import Transition as Transition
from odescale.analysis.phases.stretches import Phases as Phases
from odescale.analysis.phases.stretches import Thresholds as Thresholds
from odescale.run import Run as Run
from odescale.training.experiment import AbstractExperiment as AbstractExperiment
from odescale.compare.comparison import Comparison as Comparison
from odescale.compare.sheets import Rules as Rules

# Namespaces: what is more special
from odescale import frontier as frontier
from odescale import kernels as kernels
from odescale import language as language
from odescale import laws as laws
from odescale import linear as linear
from odescale import logs as logs
from odescale import networks as networks
from odescale import optimizers as optimizers
from odescale import one_third as one_third
from odescale import schedules as schedules
from odescale import spectra as spectra
from odescale import symbolic as symbolic
from odescale import two_tokens as two_tokens

# Errors
from odescale.errors import OdescaleError as OdescaleError
from odescale.errors import InputError as InputError
from odescale.errors import OutsideTheoryError as OutsideTheoryError
from odescale.errors import PrecisionError as PrecisionError
from odescale.errors import CheckpointError as CheckpointError
from odescale.errors import SolveError as SolveError

__version__: str
__all__: list[str]
