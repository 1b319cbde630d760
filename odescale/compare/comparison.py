"""`compare`: one theory, one set of runs, one clock."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from odescale.analysis.phases.curves import find_transition_curve
from odescale.analysis.phases.regimes import MIN_DEPTH, Transition
from odescale.analysis.phases.transition import find_transition
from odescale.compare.verdict import Verdict, judge, reasons_outside
from odescale.errors import InputError
from odescale.run import Run
from odescale.solve.integrate import integrate, output_times
from odescale.solve.trajectory import Trajectory
from odescale.systems.attention import Attention


class Comparison(eqx.Module):
    """Theory and run at the run's record times (n,), with every source of error apart.

    - `ratio` = mean run / theory; `stderr` its standard error: scatter of the seeds (or Monte Carlo for one seed) and the
      theory's numerical error. `z` = (ratio - 1)/stderr.
    - `allowance`: size, not sign, of the theory's first neglected terms, `(1/T + 1/d)(1 + |p|)`: a relative error of a
      rate moves the loss |p| times as much. `z_total` counts it as an error too.
    - `exact`: the theory's transition (event); `theory_transition`, `run_transition`: the same spline on the same points.
    - `context`: a second theory at the run's own context length, or None; `context_ratio` = mean run / it.
    - `overlap_deviation`: largest |C_run - C_theory| over the scale sqrt(C_ii C_jj), (n,).
    """

    run: Run
    theory: Trajectory
    at: Int[np.ndarray, " n"]
    kept: Any
    ratio: Float[np.ndarray, " n"]
    stderr: Float[np.ndarray, " n"]
    z: Float[np.ndarray, " n"]
    z_total: Float[np.ndarray, " n"]
    allowance: Float[np.ndarray, " n"]
    sources: dict[str, Any]
    overlap_deviation: Float[np.ndarray, " n"]
    exact: Transition | None
    theory_transition: Transition
    run_transition: Transition
    verdict: Verdict
    tolerance: float
    context: Trajectory | None = None

    @property
    def context_loss(self) -> Float[np.ndarray, " n"] | None:
        """The loss of the theory at the run's own context, at the run's times."""
        if self.context is None:
            return None
        return self.context.loss[np.searchsorted(self.context.t, self.run.t)]

    @property
    def context_ratio(self) -> Float[np.ndarray, " n"] | None:
        """Mean run over the theory at the run's own context."""
        return None if self.context_loss is None else self.run.mean() / self.context_loss

    @property
    def theory_loss(self) -> Float[np.ndarray, " n"]:
        """The theory's loss at the run's times."""
        return self.theory.loss[self.at]

    def points_error(self) -> Float[np.ndarray, " n"]:
        """Relative standard error of run/theory, statistical and numerical, at the run's times."""
        return self.stderr / self.ratio

    @property
    def transition_agrees(self) -> bool | None:
        """Within 5 % of each other, or the theory inside the run's interval; None when one of them has none."""
        theory, run = self.theory_transition, self.run_transition
        if theory.t_x is None or run.t_x is None:
            return None if (theory.t_x is None) != (run.t_x is None) else True
        inside = run.interval is not None and run.interval[0] <= theory.t_x <= run.interval[1]
        return bool(inside or abs(run.t_x / theory.t_x - 1) <= 0.05)


def compare(
    system: Attention,
    run: Run,
    *,
    theory: Trajectory | None = None,
    context: Trajectory | None = None,
    window: tuple[float, float] | None = None,
    tolerance: float = 0.1,
    min_depth: float = MIN_DEPTH,
    exact: bool = True,
    seed: int = 0,
) -> Comparison:
    """run/theory(t) at the run's record times, its errors, both transitions, and a verdict.

    One unit of t is tr Sigma SGD steps, the same clock for both; the report prints steps, intrinsic time and tokens.

    **Arguments**

    - `system`: the theory; its learning rate, batch, context, dimension and start must be the run's, else `InputError`.
    - `run`: what `train` returned. Two or more seeds, or the scatter between runs is unknown and the verdict undecided.
    - `theory`: a trajectory to compare with instead of the system's own (it must contain the run's times).
    - `context`: a trajectory at the run's own context length and times (`context="sampled"` or `"finite"`), to see how
      much of the deviation a finite context explains. It does not enter the verdict.
    - `window`: times (first, last) that count; default: all record times > 0.
    - `tolerance`: relative deviation that counts as agreement (finite-size corrections; 0.1 at d = 200).
    - `min_depth`: e-folds of the exponential phase. `exact`: also locate the theory's transition by its event.

    **Returns** a `Comparison`. **Failure regime.** Points along one run are correlated: count seeds, not points.
    """
    if not 0 < tolerance < 1:
        raise InputError("tolerance", expected="a number between 0 and 1", got=tolerance, remedy="0.1 is the default")
    _same_experiment(system, run)
    if theory is None:
        theory = integrate(system, ts=_theory_times(run.t), accuracy="check", on_failure="mask")
    at = np.searchsorted(theory.t, run.t)
    if at.max() >= theory.t.size or not np.allclose(theory.t[at], run.t, rtol=1e-12, atol=0):
        raise InputError("theory", expected="a trajectory at the run's record times", got="others", remedy="pass ts=")
    if context is not None and not np.all(np.isin(run.t, context.t)):
        raise InputError("context", expected="a trajectory at the run's record times", got="others", remedy="pass ts=")
    kept = (run.t > 0) if window is None else (run.t >= window[0]) & (run.t <= window[1])
    kept &= np.asarray(theory.valid)[at]
    if kept.sum() < 8:
        raise InputError("window", expected="at least 8 record times", got=int(kept.sum()), remedy="widen it")
    predicted = theory.loss[at]
    mean = run.mean()
    sources = _errors(run, theory, at)
    relative = np.sqrt(sources["statistical"] ** 2 + sources["numerical"] ** 2)
    ratio = mean / predicted
    first_terms = 1 / float(run.config["tokens"]) + 1 / float(run.config["dimension"])
    allowance = first_terms * (1 + np.abs(theory.exponent[at]))
    z = (ratio - 1) / relative
    outside = reasons_outside(
        system, theory, tokens=float(run.config["tokens"]), dimension=float(run.config["dimension"])
    )
    verdict = judge(run.t, ratio, relative, z, tolerance=tolerance, outside=outside, kept=kept)
    if verdict.status == "differs" and not (system.finite_context or system.sampled is not None):
        hint = f"terms of order 1/T are left out, T = {run.config['tokens']}: compare with context=sampled as well"
        verdict = Verdict("differs", (*verdict.reasons, hint))
    if len(run.seeds) < 2 and verdict.status in ("agrees", "differs"):
        verdict = Verdict("undecided", ("one seed: the scatter between runs is unknown", *verdict.reasons))
    unit = f"t, one unit = {theory.clock.steps_per_unit:g} SGD steps"
    common: dict[str, Any] = {"min_depth": min_depth, "time_unit": unit, "seed": seed}
    start = float(theory.loss[0])
    measured = find_transition_curve(run.t[kept], run["loss"][:, kept], loss_start=start, **common)
    # The same spline on the same points, or the two estimates differ by the estimator alone.
    same = find_transition_curve(
        run.t[kept],
        predicted[kept],
        loss_start=start,
        bootstrap=0,
        smoothing=measured.smoothing,
        min_aic_gap=None,
        **common,
    )
    located = find_transition(system, float(run.t[-1]), min_depth=min_depth) if exact else None
    return Comparison(
        run=run,
        theory=theory,
        at=at,
        kept=kept,
        ratio=ratio,
        stderr=ratio * relative,
        z=z,
        z_total=(ratio - 1) / np.sqrt(relative**2 + allowance**2),
        allowance=allowance,
        sources=sources,
        overlap_deviation=_overlap_deviation(run, theory, at),
        exact=located,
        theory_transition=same,
        run_transition=measured,
        verdict=verdict,
        tolerance=tolerance,
        context=context,
    )


def _theory_times(recorded: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """The run's times among log-spaced ones: 400 in all where that many suffice, as in `find_transition`.

    One solve is compiled for both then.
    """
    total, points = max(400, 2 * recorded.size), 300
    for _ in range(2):  # the second pass knows how many times coincide
        times = np.unique(np.concatenate([recorded, output_times(float(recorded[-1]), points)]))
        points += total - times.size
    return times


def _errors(run: Run, theory: Trajectory, at: np.ndarray) -> dict[str, Any]:
    """Relative errors (n,): `seeds` (scatter / sqrt(seeds)), `monte_carlo` (test loss), `numerical` (theory), `statistical`."""
    mean = run.mean()
    monte_carlo = np.sqrt(np.sum(run["loss_stderr"] ** 2, axis=0)) / len(run.seeds) / mean
    numerical = np.zeros_like(mean) if theory.error is None else np.nan_to_num(theory.error[at])
    if len(run.seeds) < 2:
        return {"seeds": None, "monte_carlo": monte_carlo, "numerical": numerical, "statistical": monte_carlo}
    scatter = run.scatter() / mean
    # A few seeds make a noisy error bar: pool the variance over five neighbouring times, which share their noise level.
    padded = np.pad(scatter**2, 2, mode="edge")
    seeds = np.sqrt(np.convolve(padded, np.full(5, 0.2), mode="valid"))
    return {
        "seeds": seeds,
        "monte_carlo": monte_carlo,
        "numerical": numerical,
        "statistical": np.maximum(seeds, monte_carlo),
    }


def _overlap_deviation(run: Run, theory: Trajectory, at: np.ndarray) -> Float[np.ndarray, " n"]:
    C = theory.overlaps[at]
    lengths = np.sqrt(np.maximum(np.diagonal(C, axis1=1, axis2=2), 1e-12))
    scale = lengths[:, :, None] * lengths[:, None, :]
    return np.max(np.abs(run["overlaps"].mean(axis=0) - C) / scale, axis=(1, 2))


def _same_experiment(system: Attention, run: Run) -> None:
    pairs = {
        "learning_rate": float(system.learning_rate),
        "batch": float(system.batch),
        "weight_decay": float(system.weight_decay),
    }
    if np.isfinite(float(system.tokens)):
        pairs["tokens"] = float(system.tokens)
    if float(system.noise) not in (0.0, 1.0):
        raise InputError("noise", expected="0 or 1 in a comparison", got=float(system.noise), remedy="set noise=1")
    for name, value in pairs.items():
        if not np.isclose(value, float(run.config[name]), rtol=1e-6):
            raise InputError(name, expected=f"the run's {run.config[name]}", got=value, remedy="compare like with like")
    elapsed = [float(clock.tau(run.t[-1])) for clock in (system.clock, run.clock)]
    if not np.isclose(*elapsed, rtol=1e-3):
        raise InputError(
            "schedule", expected=f"the run's, which ends at intrinsic time {elapsed[1]:.6g}", got=f"{elapsed[0]:.6g}",
            remedy="compare like with like",
        )  # fmt: skip
    if not np.isclose(system.trace, run.clock.steps_per_unit, rtol=1e-9):
        raise InputError(
            "dimension", expected=f"{run.clock.steps_per_unit:g} steps per unit of t", got=system.trace,
            remedy="compare like with like",
        )  # fmt: skip
    if run["overlaps"].shape[-1] != system.architecture.size:
        raise InputError(
            "run",
            expected=f"a run of {system.architecture.size} rows",
            got=run["overlaps"].shape[-1],
            remedy="same system",
        )
    start = np.asarray(system.couple(system.initial_overlaps)[0])
    if run.t[0] == 0 and np.abs(run["overlaps"][:, 0] - start).max() > 1e-3 * np.abs(start).max():
        raise InputError(
            "run", expected="a run that starts at the theory's initial overlaps", got="another start",
            remedy="train from system.initial_overlaps",
        )  # fmt: skip
