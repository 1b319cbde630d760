"""`compare_mean_field`: SGD on a finite-rank transformer against its d -> infinity ODE, with every error apart."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import stats

from odescale.compare.verdict import Verdict, judge
from odescale.errors import InputError
from odescale.run import Run
from odescale.solve.integrate import integrate
from odescale.solve.trajectory import Trajectory
from odescale.systems.coverage import coverage
from odescale.systems.mean_field import MeanField

MIN_POINTS = 4
"""Record times that a comparison needs."""


class MeanFieldComparison(eqx.Module):
    """Mean run against theory at the run's record times (n,); errors are standard errors relative to the theory.

        ratio = <L_run> / L_ode,      z = (ratio - 1)/sqrt(seeds^2 + quadrature^2 + finite_size^2)

    - `run`, `theory`: what was compared; `at`: places of the record times among the theory's; `kept`: times that count.
    - `errors`: `seeds` (scatter / sqrt(seeds)), `quadrature` (scatter of the theory's independent node sets; where the run's
      losses were measured with the same nodes, that of the ratio, in which their common error cancels), `finite_size` (a
      neglected term: its size, not its sign), each (n,). `prediction`: standard error of the theory's loss itself, (n,).
    - `extrapolated`: (2 <L_d> - <L_{d/2}>)/L_ode, free of the 1/d term, where a run at half the dimension was given.
    - `measured_finite_size`: True when `finite_size` comes from such a run. `verdict`, `tolerance`.

    One unit of t is tr Sigma SGD steps.
    """

    run: Run
    theory: Trajectory
    at: Int[np.ndarray, " n"]
    kept: Bool[np.ndarray, " n"]
    ratio: Float[np.ndarray, " n"]
    errors: dict[str, Float[np.ndarray, " n"]]
    prediction: Float[np.ndarray, " n"]
    extrapolated: Float[np.ndarray, " n"] | None
    verdict: Verdict
    tolerance: float

    @property
    def measured_finite_size(self) -> bool:
        """Whether the finite-size error was measured at half the dimension."""
        return self.extrapolated is not None

    @property
    def theory_loss(self) -> Float[np.ndarray, " n"]:
        """The theory's excess loss at the run's times."""
        return np.asarray(self.theory.loss)[self.at]

    @property
    def stderr(self) -> Float[np.ndarray, " n"]:
        """All three errors in quadrature, relative to the theory."""
        return np.sqrt(sum(error**2 for error in self.errors.values()))

    @property
    def z(self) -> Float[np.ndarray, " n"]:
        """(run - theory)/error."""
        return (self.ratio - 1) / self.stderr

    @property
    def rms_z(self) -> float:
        """Root mean square of z over the times that count: about 1 where the errors explain the deviation."""
        return float(np.sqrt(np.mean(self.z[self.kept] ** 2)))

    @property
    def max_z(self) -> float:
        """Largest |z|."""
        return float(np.abs(self.z[self.kept]).max())

    @property
    def max_deviation(self) -> float:
        """Largest |ratio - 1|."""
        return float(np.abs(self.ratio[self.kept] - 1).max())

    @property
    def fall(self) -> float:
        """L(0)/L(last time that counts) of the theory: how much of the training the comparison covers."""
        return float(self.theory.loss[0] / self.theory_loss[self.kept][-1])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: verdict, figures, and the curves at the run's times."""
        curves = {name: error.tolist() for name, error in self.errors.items()}
        return {
            "verdict": self.verdict.to_dict(),
            "tolerance": self.tolerance,
            "dimension": self.run.config["dimension"],
            "seeds": len(self.run.seeds),
            "fall": self.fall,
            "max_deviation": self.max_deviation,
            "rms_z": self.rms_z,
            "max_z": self.max_z,
            "largest_errors": {name: float(error[self.kept].max()) for name, error in self.errors.items()},
            "finite_size": "measured at half the dimension" if self.measured_finite_size else "estimated",
            "t": self.run.t.tolist(),
            "kept": self.kept.tolist(),
            "loss_run": self.run.mean().tolist(),
            "loss_theory": self.theory_loss.tolist(),
            "ratio": self.ratio.tolist(),
            "extrapolated": None if self.extrapolated is None else self.extrapolated.tolist(),
            "errors": curves,
            "prediction_error": self.prediction.tolist(),
        }


def compare_mean_field(
    system: MeanField,
    run: Run,
    *,
    theory: Trajectory | None = None,
    half: Run | None = None,
    tolerance: float = 0.03,
    window: tuple[float, float] | None = None,
) -> MeanFieldComparison:
    """<L_run(t)> / L_ode(t) at the run's record times, three sources of error apart, and a verdict.

    One unit of t is N = tr Sigma SGD steps, for both. The run's loss is the population loss at its measured overlaps.

    **Arguments**

    - `system`: the theory whose experiment the run is: same problem, start, spectrum, learning rate, batch, weight decay,
      momentum and friction. Its `noise` and `write_back` are free (0.0 shows what the term does).
    - `run`: what `train` returned, 16 or more seeds; with one seed the verdict is "undecided".
    - `theory`: a trajectory to compare with instead of the system's own, at least at the run's times: another theory of
      the same experiment.
    - `half`: the same experiment at half the dimension. Then the finite-size error is |<L_{d/2}> - <L_d>|, the shift that
      an error of order 1/d has at d; else the estimate (1 + |p|)/d_eff with p = -dlog L/dlog t, since a relative error of
      a rate moves the loss |p| times as much.
    - `tolerance`: relative deviation that counts as agreement; the finite-size shift must fit in it.
    - `window`: times (first, last) that count; default: all > 0.

    **Returns** a `MeanFieldComparison`. The verdict is "differs" where the deviation exceeds the tolerance by three
    standard errors of seeds and quadrature, "undecided" where these are wider than the tolerance, "outside the theory"
    where `odescale.systems.coverage` says so.
    **Errors**: `InputError` when run, half and system are different experiments or fewer than 4 times count.
    **Failure regime.** Points along one run are correlated: count seeds, not points. A spectrum with d_eff of order 10
    has an estimated finite-size error of 10 % or more: its z is no test, its deviation is.
    """
    if not (np.isfinite(tolerance) and 0 < tolerance < 1):
        raise InputError("tolerance", expected="a number between 0 and 1", got=tolerance, remedy="0.03 at d = 500")
    same_experiment(system, run)
    if theory is None:
        theory = integrate(system, ts=np.unique(np.concatenate([[0.0], run.t])), on_failure="mask")
    at = np.searchsorted(theory.t, run.t)
    if np.ndim(theory.loss) != 1 or at.max() >= theory.t.size or not np.allclose(theory.t[at], run.t, rtol=1e-9):
        raise InputError("theory", expected="one trajectory at the run's record times", got="others", remedy="pass ts=")
    kept = (run.t > 0) if window is None else (run.t >= window[0]) & (run.t <= window[1]) & (run.t > 0)
    if kept.sum() < MIN_POINTS:
        raise InputError(
            "window", expected=f"at least {MIN_POINTS} record times", got=int(kept.sum()), remedy="widen it"
        )
    predicted = np.asarray(theory.loss)[at]
    mean = run.mean()
    ratio = mean / predicted
    several, prediction = len(run.seeds) > 1, quadrature_stderr(system, theory)[at]
    errors = {
        "seeds": run.scatter() / predicted if several else np.zeros_like(mean),
        "quadrature": _paired_stderr(system, theory, at)
        if _same_nodes(system, run)
        else np.hypot(prediction, run.mean("loss_common_stderr") / predicted),  # the nodes are common to all seeds
    }
    extrapolated = None
    if half is None:
        errors["finite_size"] = (1 + np.abs(np.asarray(theory.exponent)[at])) / system.effective_dimension
    else:
        smaller = _loss_at_half(run, half)
        errors["finite_size"] = np.abs(smaller - mean) / predicted
        extrapolated = (2 * mean - smaller) / predicted
    data = np.sqrt(errors["seeds"] ** 2 + errors["quadrature"] ** 2)
    z = (ratio - 1) / np.sqrt(data**2 + errors["finite_size"] ** 2)
    verdict = judge(run.t, ratio, data, z, tolerance=tolerance, outside=_outside(system), kept=kept)
    if not several and verdict.status in ("agrees", "differs"):
        verdict = Verdict("undecided", ("one seed: the scatter between runs is unknown", *verdict.reasons))
    return MeanFieldComparison(
        run=run, theory=theory, at=at, kept=kept, ratio=ratio, errors=errors,
        prediction=prediction, extrapolated=extrapolated,
        verdict=verdict, tolerance=tolerance,
    )  # fmt: skip


def quadrature_stderr(system: MeanField, theory: Trajectory) -> Float[np.ndarray, " n"]:
    """Relative standard error of the theory's loss: the half width of its 95 % interval over Student's t, R - 1 degrees.

    Zero for a closed form, which carries no error; for two Gauss-Hermite orders their whole difference.
    """
    if theory.error is None:
        return np.zeros_like(np.asarray(theory.loss))
    half_width = np.nan_to_num(np.asarray(theory.error))
    nodes = getattr(system.closure, "nodes", None)
    if nodes is None or nodes.kind != "sobol" or system.closure.replicates < 2:
        return half_width
    return half_width / float(stats.t.ppf(0.975, system.closure.replicates - 1))


@eqx.filter_jit
def _losses(system: MeanField, C: Float[Array, "n P P"], R: Float[Array, "n P P"]) -> Float[Array, "n r"]:
    return jax.lax.map(lambda pair: system.population_loss(*pair), (C, R))


def _same_nodes(system: MeanField, run: Run) -> bool:
    """Whether the run's losses were measured with the system's own node sets: then their error is common to both sides."""
    C, R = (np.asarray(x)[:1, -1] for x in (run["overlaps"], run["row_overlaps"]))
    if C.shape[1:] != (system.problem.size,) * 2:
        return False
    here = float(system.estimate(_losses(system, jnp.asarray(C), jnp.asarray(R))[0])[0])
    return bool(np.isclose(here, run["loss"][0, -1], rtol=1e-6))


def _paired_stderr(system: MeanField, theory: Trajectory, at: np.ndarray) -> Float[np.ndarray, " n"]:
    """Standard error that the nodes give to the ratio: node set r measures L_r(C_run) and predicts L_r(C_r), so that
    the scatter of L_r(C_r)/L_r(C) over r counts, C the mean of the C_r, and what L_r itself is off cancels.
    """
    replicates = theory.observables.get("replicate_loss")
    if replicates is None or np.shape(replicates)[-1] < 3:
        return quadrature_stderr(system, theory)[at]
    P = system.problem.size
    C, R = (np.asarray(theory.observables[name])[at][:, :P, :P] for name in ("overlaps", "row_overlaps"))
    gain = np.asarray(replicates)[at] / np.asarray(_losses(system, jnp.asarray(C), jnp.asarray(R)))
    return gain.std(axis=1, ddof=1) / np.sqrt(gain.shape[1]) / gain.mean(axis=1)


def _outside(system: MeanField) -> tuple[str, ...]:
    """Reasons why no mean-field theory describes the system."""
    found = coverage(system)
    return () if found.inside else tuple(found.reasons)


def _loss_at_half(run: Run, half: Run) -> Float[np.ndarray, " n"]:
    """Mean loss of the run at half the dimension at the other's times, which differ by rounding to whole steps."""
    for name in ("problem", "learning_rate", "batch", "weight_decay", "momentum", "friction", "schedule"):
        one, other = (x.config.get(name) for x in (run, half))
        same = _same_schedule(one, other) if name == "schedule" else one == other
        if not same:
            raise InputError(
                "half", expected=f"the run's {name}", got="another", remedy="the same experiment at half the dimension"
            )
    ratio = run.config["dimension"] / half.config["dimension"]
    if not 1.95 < ratio < 2.05:
        raise InputError(
            "half", expected=f"a run at dimension {run.config['dimension'] / 2:g}", got=half.config["dimension"],
            remedy="train at half the dimension",
        )  # fmt: skip
    started, there = run.t > 0, half.t > 0
    off = 2 / run.clock.steps_per_unit  # one step at half the dimension
    if run.t[started][0] < half.t[there][0] - off or run.t[-1] > half.t[-1] + off:
        raise InputError("half", expected="a run over the same times", got=half.t, remedy="pass the same record_times")
    # Mean losses are smooth on the spacing of the record times, and these are the same to one step.
    return np.exp(np.interp(run.t, half.t, np.log(half.mean())))


def _same_schedule(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return np.allclose(one["s"], other["s"], rtol=0.01, atol=0.01)


def same_experiment(system: MeanField, run: Run) -> None:
    """Refuses, by name, whatever makes the run another experiment than the system's."""
    if run.config.get("subject") != "mean_field":
        raise InputError(
            "run", expected="a run of a mean-field system", got="another kind of run", remedy="see odescale.compare"
        )
    if repr(system.problem) != run.config["problem"]:
        raise InputError(
            "run",
            expected=f"a run of {system.problem.rows}",
            got="a run of another problem",
            remedy="compare like with like",
        )
    for name in ("learning_rate", "batch", "weight_decay", "momentum", "friction"):
        value, theirs = float(getattr(system, name)), float(run.config[name])
        if not np.isclose(value, theirs, rtol=1e-9, atol=0):
            raise InputError(name, expected=f"the run's {theirs:g}", got=value, remedy="compare like with like")
    if not np.isclose(system.trace, run.config["scale"], rtol=1e-9):
        raise InputError(
            "dimension", expected=f"{run.config['scale']:g} steps per unit of t", got=system.trace,
            remedy="compare like with like",
        )  # fmt: skip
    start = np.asarray(run.config["initial_overlaps"])
    here = np.asarray(system.initial_overlaps)
    if start.shape != here.shape or not np.allclose(start, here, rtol=1e-6, atol=1e-9):
        raise InputError("initial_overlaps", expected="the run's", got="others", remedy="compare like with like")
    elapsed = [float(clock.tau(run.t[-1])) for clock in (system.clock, run.clock)]
    if not np.isclose(*elapsed, rtol=2e-3):
        raise InputError(
            "schedule", expected=f"the run's, which ends at intrinsic time {elapsed[1]:.6g}", got=f"{elapsed[0]:.6g}",
            remedy="compare like with like",
        )  # fmt: skip
