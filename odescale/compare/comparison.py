"""`compare`: one theory, one set of runs, one clock; every quantity with its errors apart, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float, Int

from odescale.analysis.phases.contest import UNDECIDED
from odescale.analysis.phases.curves import find_transition_curve
from odescale.analysis.phases.exponents import LocalExponent, TailExponent, local_exponent, tail_exponent
from odescale.analysis.phases.record import Transition
from odescale.analysis.phases.stretches import Thresholds
from odescale.analysis.phases.transition import find_transition
from odescale.compare.same import same_but_half, same_experiment
from odescale.compare.sheets import Errors, Rules, rules_of
from odescale.compare.verdict import Verdict, judge, judge_distance, worst
from odescale.errors import InputError
from odescale.run import Run
from odescale.solve.coverage import Coverage, coverage
from odescale.solve.trajectory import Trajectory
from odescale.systems.base import AbstractSystem

MIN_POINTS = 4
"""Record times that a comparison needs; 8 where transitions are looked for."""
FEW_SEEDS = 8
"""Fewer seeds make a noisy error bar: their variance is then pooled over five neighbouring times."""


class Quantity(eqx.Module):
    """One measured quantity against its theory at the record times (n,); errors are relative to the theory.

        ratio = <X_run>/X_theory,      z = (ratio - 1)/sqrt(stderr^2 + allowance^2)

    - `measured` <X_run>, `predicted` X_theory; of what is no single number, `measured` is the relative distance of run and theory,
      `predicted` zero and `ratio` = 1 + distance.
    - `errors`: standard errors by source. `seeds`: scatter/sqrt(seeds), absent for one seed; `monte_carlo`: each seed's own
      measurement, contained in the scatter; `nodes`, `numerical`, `quadrature`: of common nodes and of the theory.
    - `neglected`: sizes, not signs, of what the theory leaves out, by source.
    - `extrapolated`: (2 <X_d> - <X_{d/2}>)/X_theory, free of the 1/d term, where a run at half the dimension was given: then
      `neglected["finite_size"]` is measured, not estimated.
    - `tolerance`, `verdict`: None for a quantity that is shown and not judged.
    """

    measured: Float[np.ndarray, " n"]
    predicted: Float[np.ndarray, " n"]
    ratio: Float[np.ndarray, " n"]
    errors: Errors
    neglected: Errors
    kept: Bool[np.ndarray, " n"]
    tolerance: float | None
    verdict: Verdict | None
    extrapolated: Float[np.ndarray, " n"] | None = None

    @property
    def statistical(self) -> Float[np.ndarray, " n"]:
        """The scatter of the seeds, or the Monte Carlo error where that is larger or the only one."""
        zero = np.zeros_like(self.ratio)
        return np.maximum(self.errors.get("seeds", zero), self.errors.get("monte_carlo", zero))

    @property
    def stderr(self) -> Float[np.ndarray, " n"]:
        """Standard error of `ratio`: statistics, nodes and numerics in squares."""
        return _stderr(self.errors, self.ratio)

    @property
    def allowance(self) -> Float[np.ndarray, " n"]:
        """Size of all neglected terms."""
        return sum(self.neglected.values(), np.zeros_like(self.ratio))

    @property
    def z(self) -> Float[np.ndarray, " n"]:
        """(run - theory)/error, the size of the neglected terms counted as an error."""
        return _over(self.ratio - 1, np.hypot(self.stderr, self.allowance))

    @property
    def z_of_data(self) -> Float[np.ndarray, " n"]:
        """(run - theory)/`stderr`, as if the theory left nothing out."""
        return _over(self.ratio - 1, self.stderr)

    @property
    def has_errors(self) -> bool:
        """Whether any error of it is known; without, `z` says nothing."""
        return bool(np.any(self.stderr + self.allowance > 0))

    @property
    def max_deviation(self) -> float:
        """Largest |ratio - 1| over the times that count."""
        return float(np.abs(self.ratio[self.kept] - 1).max())

    @property
    def max_z(self) -> float:
        """Largest |z|."""
        return float(np.abs(self.z[self.kept]).max())

    @property
    def rms_z(self) -> float:
        """Root mean square of z: about 1 where the errors explain the deviation."""
        return float(np.sqrt(np.mean(self.z[self.kept] ** 2)))

    def to_dict(self) -> dict[str, Any]:
        """The record as it goes into comparison.json."""
        names = ("measured", "predicted", "ratio", "stderr", "allowance", "z", "z_of_data", "errors", "neglected")
        figures = ("tolerance", "max_deviation", "max_z", "rms_z", "extrapolated")
        verdict = None if self.verdict is None else self.verdict.to_dict()
        return {"verdict": verdict} | {name: getattr(self, name) for name in (*figures, *names)}


class Comparison(eqx.Module):
    """Theory and run at the run's record times (n,): quantities by name, their verdicts and the worst of these.

    - `system`, `run`, `theory`: what was compared; `at` (n,): places of the record times among the theory's; `kept` (n,): those
      that count. `quantities`: name -> `Quantity`, "loss" always.
    - `transitions`: `run` by the contest of models, `theory` by the model that won it on the same points, and `exact`, by the
      event,
      where the theory is the system's own; `exponents`: the local exponent of the run, by a smoothing spline. Both empty where
      they were not looked for.
    - `coverage`: what was known before the run, `odescale.coverage` up to its end; no part of the verdict unless the sheet says so.
    - `context`: a second theory of the loss, which does not enter the verdict, or None. `options`: what else was given.
    """

    system: AbstractSystem
    run: Run
    theory: Trajectory
    at: Int[np.ndarray, " n"]
    kept: Bool[np.ndarray, " n"]
    quantities: dict[str, Quantity]
    verdict: Verdict
    transitions: dict[str, Transition]
    exponents: dict[str, LocalExponent]
    context: Trajectory | None
    options: dict[str, Any]
    coverage: Coverage

    def __getitem__(self, name: str) -> Quantity:
        """The quantity of that name."""
        if name not in self.quantities:
            raise InputError("name", expected=f"one of {', '.join(self.quantities)}", got=name, remedy="see quantities")
        return self.quantities[name]

    @property
    def loss(self) -> Quantity:
        """The quantity that every theory has."""
        return self.quantities["loss"]

    @property
    def fall(self) -> float:
        """L(0)/L(last time that counts) of the theory: how much of the training the comparison covers."""
        return float(self.theory.loss[0] / self.loss.predicted[self.kept][-1])

    @property
    def context_loss(self) -> Float[np.ndarray, " n"] | None:
        """The loss of the second theory at the run's times."""
        return (
            None if self.context is None else np.asarray(self.context.loss)[places(self.context, self.run.t, "context")]
        )

    @property
    def context_ratio(self) -> Float[np.ndarray, " n"] | None:
        """Mean run over the second theory."""
        return None if self.context is None else self.loss.measured / self.context_loss

    @property
    def transition_agrees(self) -> bool | None:
        """Within 5 % of each other, or the theory inside the run's interval; without a t_x in either, whether their names are one.

        None where only one of them is known, or a curve cannot be told apart.
        """
        if not self.transitions:
            return None
        theory, run = self.transitions["theory"], self.transitions["run"]
        if theory.t_x is None or run.t_x is None:
            known = (theory.t_x is None) == (run.t_x is None) and UNDECIDED not in (theory.name, run.name)
            return theory.name == run.name if known else None
        inside = run.interval is not None and run.interval[0] <= theory.t_x <= run.interval[1]
        return bool(inside or abs(run.t_x / theory.t_x - 1) <= 0.05)

    def tail(self, name: str = "loss", window: tuple[float, float] | None = None) -> tuple[TailExponent, TailExponent]:
        """(run, theory): exponent of a power law fitted in `window` to the same points, by the same estimator."""
        times = self.run.t[self.kept]
        window = window or (float(times[0]), float(times[-1]))
        curves = (self.run[name], self[name].predicted[None])
        fits = [tail_exponent(self.run.t, curve, window=window) for curve in curves]
        return fits[0], fits[1]

    def local(self, name: str = "loss") -> tuple[LocalExponent, LocalExponent]:
        """(run, theory): -dlog X/dlog t by one spline with one smoothing at the same points; 8 or more record times."""
        t = self.run.t[self.kept]
        own = local_exponent(t, self.run[name][:, self.kept], at=t)
        return own, local_exponent(t, self[name].predicted[self.kept], at=t, smoothing=own.smoothing)

    def __repr__(self) -> str:
        count = len(self.run.seeds)
        lines = [
            f"Comparison of {count} run{'' if count == 1 else 's'} with {self.theory.meta.get('system', self.system.name)}: "
            f"{self.verdict}",
            f"{int(self.kept.sum())} of {self.run.t.size} times up to t = {self.run.t[-1]:.6g} (one unit = "
            f"{self.run.clock.unit}); the theory's loss falls {self.fall:.3g} times",
            f"before the run: {self.coverage}",
        ]
        for name, one in self.quantities.items():
            judged = "not judged" if one.verdict is None else f"{one.verdict.status}, tolerance {one.tolerance:g}"
            scores = f", z {one.rms_z:.2g} in the mean square" if one.has_errors else ""
            lines.append(f"{name}: largest deviation {one.max_deviation:.2g}{scores}; {judged}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return repr(self)


def compare(
    system: AbstractSystem,
    run: Run,
    *,
    theory: Trajectory | None = None,
    window: tuple[float, float] | None = None,
    tolerance: float | Mapping[str, float] | None = None,
    context: Trajectory | None = None,
    half: Run | None = None,
    transitions: bool | None = None,
    thresholds: Thresholds | None = None,
    seed: int | None = None,
    **options: Any,
) -> Comparison:
    r"""<X_run>(t)/X_theory(t) at the run's record times, its errors by source, and a verdict: the same for every theory.

    One unit of t is `system.clock.steps_per_unit` SGD steps, for both.

    **Arguments**

    - `system`: the theory; every setting that makes a run its experiment must be the run's, else `InputError` by name. What only
      the theory has (`noise`, `write_back`) is free: 0 shows what the term does.
    - `run`: what `train` returned. With one seed the scatter between runs is unknown and the verdict "undecided".
    - `theory`: a trajectory of the same experiment at the run's times, to compare with instead of the system's own.
    - `window`: times (first, last) that count; default all > 0.
    - `tolerance`: relative deviation that counts as agreement, of the loss (of a kernel: of the outputs), or name -> value for any
      record that the theory predicts. None: the theory's own sheet, e.g. 0.1 for the loss of `attention`, 0.03 of `mean_field`.
    - `context`: a second trajectory at the run's times, e.g. at its own context length: shown beside, no part of the verdict.
    - `half`: the same experiment at half the dimension: the finite-size error is then |<X_{d/2}> - <X_d>|, not an estimate.
    - `transitions`: whether exponential-to-power transitions are looked for in theory and run; None: where the sheet says so, or
      `thresholds` (from what length on a phase counts) or `seed` (of the draws behind the verdict, 0) is given.
    - `options`: what the theory's sheet names, such as `regime=kernel_regime(...)` of a kernel system.

    **Returns** a `Comparison`; its verdict is the worst of its quantities'. A quantity "differs" where it leaves the tolerance by
    three standard errors, is "undecided" where these are wider than the tolerance; all is "outside the theory" where the sheet
    says so. **Errors**: `InputError` when run and system are different experiments, or too few times count.
    **Good values**: 8 or more seeds, a dozen times over the whole fall of the loss. **Failure regime**: points along one run
    are correlated: count seeds, not points.
    """
    rules = rules_of(system)
    asked = {"tolerance": tolerance, "half": half, "transitions": transitions, "thresholds": thresholds, "seed": seed}
    limits = check_options(system, **asked, **options)
    if not isinstance(run, Run):
        raise InputError("run", expected="a Run", got=type(run).__name__, remedy="odescale.train(system, t1)")
    searching = rules.transitions if transitions is None else transitions
    searching = bool(searching or thresholds is not None or seed is not None)
    settings = rules.same(system)
    same_experiment(system, run, settings)
    if half is not None:
        same_but_half(run, half, settings)
    kept = (run.t > 0) if window is None else (run.t >= window[0]) & (run.t <= window[1]) & (run.t > 0)
    _enough(kept, 8 if searching else MIN_POINTS)
    own = theory is None
    theory = rules.predict(system, run.t) if theory is None else theory
    at = places(theory, run.t, "theory")
    if context is not None:
        places(context, run.t, "context")
    kept &= np.asarray(theory.valid)[at]
    _enough(kept, 8 if searching else MIN_POINTS)
    before = coverage(system, float(run.t[-1]))
    outside = rules.outside(system, run, theory)
    quantities = _distances(rules, system, run, theory, at, kept, limits, outside)
    names = [name for name in limits if name not in quantities]
    quantities = {
        n: _quantity(n, rules, system, run, theory, at, kept, limits[n], half, outside) for n in names
    } | quantities
    judged = {name: one.verdict for name, one in quantities.items() if one.verdict is not None}
    verdict = worst(judged)
    verdict = Verdict(verdict.status, (*verdict.reasons, *rules.remarks(system, run, verdict.status, options)))
    found, exponents = {}, {}
    if searching:
        found = _transitions(system, run, theory, at, kept, own, thresholds, seed or 0)
        exponents = {"run": local_exponent(run.t[kept], run["loss"][:, kept])}
    return Comparison(system, run, theory, at, kept, quantities, verdict, found, exponents, context, options, before)


def places(theory: Trajectory, t: Float[np.ndarray, " n"], argument: str) -> Int[np.ndarray, " n"]:
    """Where the times t stand among those of one trajectory, or an `InputError` naming `argument`."""
    times = np.asarray(theory.t)
    at = np.clip(np.searchsorted(times, t * (1 - 1e-9)), 0, times.size - 1)
    if np.ndim(theory.loss) != 1 or not np.allclose(times[at], t, rtol=1e-9, atol=0):
        raise InputError(argument, expected="one trajectory at the run's record times", got="others", remedy="pass ts=")
    return at


def theory_values(theory: Trajectory, name: str) -> Float[np.ndarray, " n"]:
    """A loss or scalar observable of a trajectory by its name."""
    return np.asarray(theory.loss if name == "loss" else theory.observables[name])


def check_options(
    system: AbstractSystem,
    *,
    tolerance: Any = None,
    half: Any = None,
    transitions: bool | None = None,
    thresholds: Thresholds | None = None,
    seed: int | None = None,
    **options: Any,
) -> dict[str, float | None]:
    """Refuses, by name, what `compare` could not honour for this system, before a run is made; the tolerances by quantity."""
    rules = rules_of(system)
    for name in options:
        if name not in rules.options:
            known = ", ".join(rules.options) or "none beside the arguments of compare"
            raise InputError(name, expected=f"an option of {system.name}: {known}", got=options[name], remedy="drop it")
    if half is not None and not rules.half:
        raise InputError(
            "half", expected="a theory whose corrections are of order 1/d", got=system.name, remedy="leave it out"
        )
    for name, value in (("thresholds", thresholds), ("seed", seed)):
        if transitions is False and value is not None:
            raise InputError(name, expected="transitions to be looked for", got="transitions=False", remedy="drop one")
    if thresholds is not None and not isinstance(thresholds, Thresholds):
        raise InputError("thresholds", expected="odescale.Thresholds(...)", got=thresholds, remedy="see its docstring")
    return _limits(tolerance, rules)


def _limits(tolerance: Any, rules: Rules) -> dict[str, float | None]:
    given = tolerance if isinstance(tolerance, Mapping) else dict.fromkeys(rules.leading, tolerance)
    limits = dict(rules.tolerance)
    for name, value in () if tolerance is None else given.items():
        number = float(value) if isinstance(value, int | float | np.number) and not isinstance(value, bool) else np.nan
        if not 0 < number < 1:
            raise InputError(
                "tolerance", expected="numbers between 0 and 1", got={name: value}, remedy="0.05, or {'loss': 0.05}"
            )
        limits[name] = number
    return limits


def _enough(kept: Bool[np.ndarray, " n"], least: int) -> None:
    if kept.sum() < least:
        raise InputError("window", expected=f"at least {least} record times", got=int(kept.sum()), remedy="widen it")


def _quantity(name, rules: Rules, system, run: Run, theory, at, kept, limit, half, outside) -> Quantity:
    known = ["loss", *(k for k, x in theory.observables.items() if np.shape(x) == np.shape(theory.loss))]
    if name not in run.records or run[name].ndim != 2 or name not in known:
        shared = sorted(k for k in known if k in run.records and run[k].ndim == 2)
        raise InputError("tolerance", expected=f"quantities among {', '.join(shared)}", got=name, remedy="name others")
    measured, predicted = run.mean(name), theory_values(theory, name)[at]
    steepness = np.abs(np.asarray(theory.exponent)[at]) if name == "loss" else _steepness(run.t, predicted)
    extrapolated = None
    # A flow without noise may have no spread at all: the ratio is then infinite, and the verdict says so.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = measured / predicted
        errors = _errors(name, rules, system, run, theory, at, predicted, ratio)
        neglected = dict(rules.neglected(system, run, np.nan_to_num(steepness)))
        if half is not None:
            # Means are smooth on the spacing of the record times, and these are the same to one step.
            smaller = np.exp(np.interp(run.t, half.t, np.log(half.mean(name))))
            neglected["finite_size"] = np.abs(smaller - measured) / predicted
            extrapolated = (2 * measured - smaller) / predicted
    verdict = None
    if limit is not None:
        found = judge(run.t, ratio, _stderr(errors, ratio), tolerance=limit, outside=outside, kept=kept)
        verdict = _as_ruled(found, rules, run)
    return Quantity(measured, predicted, ratio, errors, neglected, kept, limit, verdict, extrapolated)


def _distances(rules: Rules, system, run: Run, theory, at, kept, limits, outside) -> dict[str, Quantity]:
    found = {}
    for name, distance in rules.distances(system, run, theory, at).items():
        limit, verdict = limits.get(name), None
        if limit is not None:
            verdict = _as_ruled(judge_distance(distance, tolerance=limit, outside=outside, kept=kept), rules, run)
        found[name] = Quantity(distance, np.zeros_like(distance), 1 + distance, {}, {}, kept, limit, verdict)
    return found


def _as_ruled(found: Verdict, rules: Rules, run: Run) -> Verdict:
    if len(run.seeds) < 2 and not rules.deterministic and found.status in ("agrees", "differs"):
        return Verdict("undecided", ("one seed: the scatter between runs is unknown", *found.reasons))
    return Verdict(rules.beyond, found.reasons) if found.status == "differs" else found


def _errors(name, rules: Rules, system, run: Run, theory, at, predicted, ratio) -> Errors:
    errors: Errors = {}
    if len(run.seeds) > 1:
        errors["seeds"] = run.scatter(name) / np.abs(predicted)
        if len(run.seeds) < FEW_SEEDS:
            relative = np.nan_to_num(run.scatter(name) / np.abs(run.mean(name)), posinf=0.0)
            pooled = np.convolve(np.pad(relative**2, 2, mode="edge"), np.full(5, 0.2), mode="valid")
            errors["seeds"] = np.sqrt(pooled) * np.abs(ratio)
    if f"{name}_stderr" in run.records:
        of_each = np.sqrt(np.sum(run[f"{name}_stderr"] ** 2, axis=0))
        errors["monte_carlo"] = of_each / len(run.seeds) / np.abs(predicted)
    if rules.errors is not None:
        return errors | rules.errors(system, run, theory, at, name)
    if f"{name}_common_stderr" in run.records:
        errors["nodes"] = run.mean(f"{name}_common_stderr") / np.abs(predicted)
    if name == "loss" and theory.error is not None:
        errors["numerical"] = np.nan_to_num(np.asarray(theory.error)[at])
    return errors


def _stderr(errors: Errors, ratio: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    zero = np.zeros_like(ratio)
    statistical = np.maximum(errors.get("seeds", zero), errors.get("monte_carlo", zero))
    others = (error**2 for name, error in errors.items() if name not in ("seeds", "monte_carlo"))
    return np.sqrt(statistical**2 + sum(others, zero))


def _over(deviation: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Deviation over error; zero where both vanish."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(deviation == 0, 0.0, deviation / error)


def _steepness(t: Float[np.ndarray, " n"], predicted: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """|dlog X/dlog t| on the run's times > 0."""
    started, slope = t > 0, np.zeros_like(predicted)
    if started.sum() > 1:
        with np.errstate(divide="ignore", invalid="ignore"):
            slope[started] = np.abs(np.gradient(np.log(np.abs(predicted[started])), np.log(t[started])))
    return np.where(np.isfinite(slope), slope, 0.0)


def _transitions(system, run: Run, theory, at, kept, own: bool, thresholds, seed: int) -> dict[str, Transition]:
    """By one model on the same points, or the two estimates differ by the estimator alone; and the exact one."""
    unit = f"t, one unit = {theory.clock.unit}"
    common: dict[str, Any] = {"thresholds": thresholds, "time_unit": unit, "seed": seed}
    common["loss_start"] = float(theory.loss[0])
    t, predicted = run.t[kept], np.asarray(theory.loss)[at][kept]
    measured = find_transition_curve(t, run["loss"][:, kept], **common)
    model = measured.model if measured.found else None
    predicted = find_transition_curve(t, predicted, model=model, **common).without_intervals()
    found = {"theory": predicted, "run": measured}
    # Another theory's transition is not the system's.
    return ({"exact": find_transition(system, float(run.t[-1]), thresholds=thresholds)} if own else {}) | found
