"""`compare_peaked`: SGD on a real softmax layer against the closed ODE of overlap and spread, quantity by quantity."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from odescale.analysis.phases.exponents import LocalExponent, TailExponent, local_exponent, tail_exponent
from odescale.compare.report import plain
from odescale.compare.verdict import Status, Verdict, judge
from odescale.errors import InputError
from odescale.plot.comparison import plot_comparison
from odescale.run import Run
from odescale.solve.integrate import integrate
from odescale.solve.trajectory import Trajectory
from odescale.systems.peaked import Peaked

QUANTITIES = ("overlap", "spread", "loss", "error")
TOLERANCES = {"overlap": 0.015, "spread": 0.04, "loss": 0.01, "error": 0.02}
"""Relative deviations that count as agreement at d = 1000 and K = 3."""
MIN_POINTS = 4
"""Record times that a comparison needs."""
FASTEST_DECAY = 0.7
"""Power g of eta(t) ~ t^-g from which on the spread lags behind its stationary value in any run of a practical length."""


class PeakedComparison(eqx.Module):
    r"""Mean run against theory at the run's record times (n,), for each of "overlap", "spread", "loss" and "error".

        ratio = <X_run>/X_ode,      z = (ratio - 1)/sqrt(seeds^2 + finite_size^2)

    - `run`, `theory`: what was compared; `at`: places of the record times among the theory's; `kept` (n,): times that count.
    - `ratio`, `seeds`, `finite_size`: name -> (n,). `seeds` is the standard error of the mean (scatter of the seeds and, for
      loss and error, of the nodes that they were measured with), `finite_size` the size of the neglected O(K/d) terms, both
      relative to the theory.
    - `verdicts`: name -> `Verdict`; `verdict`: the worst of them. `tolerances`.

    One unit of t is d SGD steps (Adam: one step).
    """

    run: Run
    theory: Trajectory
    at: Int[np.ndarray, " n"]
    kept: Bool[np.ndarray, " n"]
    ratio: dict[str, Float[np.ndarray, " n"]]
    seeds: dict[str, Float[np.ndarray, " n"]]
    finite_size: dict[str, Float[np.ndarray, " n"]]
    verdicts: dict[str, Verdict]
    verdict: Verdict
    tolerances: dict[str, float]

    def predicted(self, name: str) -> Float[np.ndarray, " n"]:
        """The theory's value of a quantity at the run's times."""
        return theory_values(self.theory, name)[self.at]

    def z(self, name: str) -> Float[np.ndarray, " n"]:
        """(run - theory)/error."""
        return (self.ratio[name] - 1) / np.hypot(self.seeds[name], self.finite_size[name])

    def max_z(self, name: str) -> float:
        """Largest |z| over the times that count."""
        return float(np.abs(self.z(name)[self.kept]).max())

    def max_deviation(self, name: str) -> float:
        """Largest |ratio - 1| over the times that count."""
        return float(np.abs(self.ratio[name][self.kept] - 1).max())

    def tail(self, name: str = "loss", window: tuple[float, float] | None = None) -> tuple[TailExponent, TailExponent]:
        """(run, theory): exponent of a power law fitted in `window` to the same points, by the same estimator."""
        window = window or self._kept_window()
        t = self.run.t
        fits = [tail_exponent(t, curve, window=window) for curve in (self.run[name], self.predicted(name)[None])]
        return fits[0], fits[1]

    def local(self, name: str = "loss") -> tuple[LocalExponent, LocalExponent]:
        """(run, theory): -dlog X/dlog t by one spline with one smoothing at the same points; 8 or more record times."""
        own = local_exponent(self.run.t[self.kept], self.run[name][:, self.kept], at=self.run.t[self.kept])
        same = local_exponent(
            self.run.t[self.kept], self.predicted(name)[self.kept], at=self.run.t[self.kept], smoothing=own.smoothing
        )
        return own, same

    def _kept_window(self) -> tuple[float, float]:
        times = self.run.t[self.kept]
        return float(times[0]), float(times[-1])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: verdicts, figures, and the curves at the run's times."""
        tail = self.tail()
        return {
            "verdict": self.verdict.to_dict(),
            "config": self.run.config,
            "seeds": len(self.run.seeds),
            "t": self.run.t.tolist(),
            "kept": self.kept.tolist(),
            "loss_exponent": {"run": tail[0].exponent, "stderr": tail[0].stderr, "theory": tail[1].exponent},
            "quantities": {
                name: {
                    "verdict": self.verdicts[name].to_dict(),
                    "tolerance": self.tolerances[name],
                    "max_deviation": self.max_deviation(name),
                    "max_z": self.max_z(name),
                    "run": self.run.mean(name).tolist(),
                    "theory": self.predicted(name).tolist(),
                    "ratio": self.ratio[name].tolist(),
                    "stderr": self.seeds[name].tolist(),
                    "finite_size": self.finite_size[name].tolist(),
                }
                for name in QUANTITIES
            },
        }


def theory_values(theory: Trajectory, name: str) -> Float[np.ndarray, " n"]:
    """One quantity of a `Peaked` trajectory by its name."""
    return np.asarray(theory.loss if name == "loss" else theory.observables[name])


def compare_peaked(
    system: Peaked,
    run: Run,
    *,
    theory: Trajectory | None = None,
    tolerances: dict[str, float] | None = None,
    window: tuple[float, float] | None = None,
) -> PeakedComparison:
    r"""<X_run(t)>/X_ode(t) for overlap D, spread Delta, loss and error, with z-scores and a verdict for each.

    One unit of t is d SGD steps (Adam: one step), for both. The run's loss and error are averages over its real fields.

    **Arguments**

    - `system`: the theory whose experiment the run is; its `noise` is free (0 shows what the SGD noise does).
    - `run`: what `train` returned; with one seed the verdict is "undecided".
    - `theory`: another trajectory of the same experiment at the run's times. `tolerances`: name -> relative deviation that
      counts as agreement, over the defaults 1.5 % (overlap), 4 % (spread), 1 % (loss), 2 % (error).
    - `window`: times (first, last) that count; default: all > 0.

    **Returns** a `PeakedComparison`. A quantity "differs" where it leaves the tolerance by three standard errors, is
    "undecided" where these are wider than the tolerance; the whole is "outside the theory" where `reasons_outside_peaked`
    says so. **Errors**: `InputError` when run and system are different experiments or fewer than 4 times count.
    **Failure regime.** Points along one run are correlated: count seeds, not points. Terms of order K/d shift every quantity:
    K/d = 0.1 moves D by several per cent.
    """
    limits = TOLERANCES | (tolerances or {})
    for name, value in limits.items():
        if name not in QUANTITIES or not (np.isfinite(value) and 0 < value < 1):
            raise InputError("tolerances", expected=f"numbers in (0, 1) for {', '.join(QUANTITIES)}", got={name: value},
                             remedy="e.g. {'loss': 0.02}")  # fmt: skip
    same_peaked_experiment(system, run)
    kept = (run.t > 0) if window is None else (run.t >= window[0]) & (run.t <= window[1]) & (run.t > 0)
    if kept.sum() < MIN_POINTS:
        raise InputError(
            "window", expected=f"at least {MIN_POINTS} record times", got=int(kept.sum()), remedy="widen it"
        )
    if theory is None:
        theory = integrate(system, ts=np.unique(np.concatenate([[0.0], run.t])))
    at = np.searchsorted(theory.t, run.t)
    if np.ndim(theory.loss) != 1 or at.max() >= theory.t.size or not np.allclose(theory.t[at], run.t, rtol=1e-9):
        raise InputError("theory", expected="one trajectory at the run's record times", got="others", remedy="pass ts=")
    outside = reasons_outside_peaked(system, float(run.t[-1]))
    several = len(run.seeds) > 1
    ratio, seeds, finite, verdicts = {}, {}, {}, {}
    for name in QUANTITIES:
        predicted = theory_values(theory, name)[at]
        # A flow without noise may have no spread at all: the ratio is then infinite, and the verdict says so.
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio[name] = run.mean(name) / predicted
            seeds[name] = run.stderr(name) / predicted if several else np.zeros_like(predicted)
            finite[name] = _finite_size(run, predicted)
            z = (ratio[name] - 1) / np.hypot(seeds[name], finite[name])
        found = judge(run.t, ratio[name], seeds[name], z, tolerance=limits[name], outside=outside, kept=kept)
        if not several and found.status in ("agrees", "differs"):
            found = Verdict("undecided", ("one seed: the scatter between runs is unknown", *found.reasons))
        verdicts[name] = found
    return PeakedComparison(
        run=run, theory=theory, at=at, kept=kept, ratio=ratio, seeds=seeds, finite_size=finite, verdicts=verdicts,
        verdict=_worst(verdicts), tolerances=limits,
    )  # fmt: skip


def _finite_size(run: Run, predicted: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """(1 + |p|)(K - 1)/d, p = dlog X/dlog t: each of the K - 1 centred rows takes one direction out of d, and a relative
    error of a rate moves X |p| times as much.
    """
    started = run.t > 0
    slope = np.zeros_like(predicted)
    if started.sum() > 1:
        with np.errstate(divide="ignore", invalid="ignore"):
            steep = np.gradient(np.log(np.abs(predicted[started])), np.log(run.t[started]))
        slope[started] = np.where(np.isfinite(steep), steep, 0.0)
    return (1 + np.abs(slope)) * (run.config["classes"] - 1) / run.config["dimension"]


def _worst(verdicts: dict[str, Verdict]) -> Verdict:
    order: tuple[Status, ...] = ("outside the theory", "differs", "undecided", "agrees")
    status = order[min(order.index(one.status) for one in verdicts.values())]
    reasons = tuple(f"{name}: {one.reasons[0]}" for name, one in verdicts.items() if one.status == status)
    return Verdict(status, verdicts["loss"].reasons if status == "outside the theory" else reasons)


def reasons_outside_peaked(system: Peaked, t1: float) -> tuple[str, ...]:
    """Why the law of the boundary layer does not describe a run to time t1 (d steps per unit); empty if it may.

    With eta ~ t^-g the spread relaxes at a rate that falls as t^-(1 + 2 g)/3 while eta itself changes at the rate g/t: at
    g >= 0.7 it does not reach, within a practical time, the stationary value from which the exponents follow. g is that of
    the effective rate eta beta^2 over the last factor of ten. With smoothed labels D stays finite, and no such bound holds.
    """
    if float(system.noise) == 0 or float(system.smoothing) > 0 or system.optimizer != "sgd":
        return ()

    def effective(t: float) -> float:
        return float(system.schedule(jnp.asarray(t)) * system.logit_schedule(jnp.asarray(t)) ** 2)

    early, late = effective(t1 / 10), effective(t1)
    power = -np.log10(late / early) if late > 0 and early > 0 else np.inf
    if power >= FASTEST_DECAY - 0.02:  # a schedule (1 + t/onset)^-g comes to its g from below
        return (
            f"the effective learning rate falls as t^-{power:.2f} over the last decade: the spread lags behind its "
            "stationary value",
        )
    return ()


def same_peaked_experiment(system: Peaked, run: Run) -> None:
    """Refuses, by name, whatever makes the run another experiment than the system's."""
    if run.config.get("subject") != "peaked":
        raise InputError("run", expected="a run of a peaked system", got="another kind of run", remedy="see docs")
    for name in ("labels", "loss", "optimizer"):
        if getattr(system, name) != run.config[name]:
            raise InputError(
                name,
                expected=f"the run's {run.config[name]}",
                got=getattr(system, name),
                remedy="compare like with like",
            )
    numbers = ("classes", "dimension", "batch", "learning_rate", "weight_decay", "overlap", "spread", "smoothing")
    for name in (*numbers, "focusing", "inverse_temperature"):
        value, theirs = float(getattr(system, name)), float(run.config[name])
        if not (value == theirs or np.isclose(value, theirs, rtol=1e-9, atol=0)):
            raise InputError(name, expected=f"the run's {theirs:g}", got=value, remedy="compare like with like")
    for name in ("schedule", "logit_schedule"):
        samples, own = run.config[name], getattr(system, name)
        times = np.asarray(samples["t"] if samples else np.linspace(0, run.t[-1], 33))
        theirs = np.asarray(samples["s"]) if samples else np.ones_like(times)
        here = np.array([float(own(jnp.asarray(t))) for t in times])
        if not np.allclose(here, theirs, rtol=1e-6):
            raise InputError(name, expected="the run's", got="another", remedy="compare like with like")


def draw_peaked(comparison: PeakedComparison, *, title: str) -> Any:
    """L(t) of theory and runs, their ratio and exponents, as a matplotlib figure; one unit of t is d SGD steps."""
    run, kept = comparison.run, comparison.kept
    several = len(run.seeds) > 1
    steps = run.clock.steps_per_unit
    shown = np.asarray(comparison.theory.t) > 0
    axes = plot_comparison(
        comparison.theory.t[shown],
        comparison.theory.loss[shown],
        run.t[kept],
        run.mean("loss")[kept],
        run_stderr=run.stderr("loss")[kept] if several else None,
        seed_losses=run["loss"][:, kept] if several else None,
        theory_at_run=comparison.predicted("loss")[kept],
        theory_exponent=comparison.theory,
        ratio_band=(1 - comparison.tolerances["loss"], 1 + comparison.tolerances["loss"]),
        steps_per_unit=steps if steps != 1 else None,
        theory_label="theory (ODE)",
        time_label=f"t  (one unit = {steps:g} SGD step{'' if steps == 1 else 's'})",
        title=title,
    )
    axes["loss"].set_ylabel("excess cross-entropy L")
    return axes["loss"].figure


def write_peaked_report(comparison: PeakedComparison, folder: str | os.PathLike, *, title: str) -> Path:
    """Writes report.md, comparison.png, comparison.json, theory.npz and run.npz into `folder`; returns the report's path."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    draw_peaked(comparison, title=title).savefig(place / "comparison.png", dpi=150)
    (place / "comparison.json").write_text(
        json.dumps(plain(comparison.to_dict()), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    comparison.theory.save(place / "theory.npz")
    comparison.run.save(place / "run.npz")
    page = place / "report.md"
    page.write_text(peaked_markdown(comparison, title=title), encoding="utf-8")
    return page


def peaked_markdown(comparison: PeakedComparison, *, title: str) -> str:
    """The report as a page: verdicts, clock, exponents, table."""
    run, kept = comparison.run, comparison.kept
    own, theirs = comparison.tail()
    lines = [
        f"# {title}",
        "",
        f"**Verdict: {comparison.verdict.status}.** {'. '.join(comparison.verdict.reasons)}.",
        "",
        "![theory and run](comparison.png)",
        "",
        f"- {run.clock.describe()}",
        f"- {len(run.seeds)} seeds, {int(run.step[-1])} steps, d = {run.config['dimension']}, K = {run.config['classes']}.",
        f"- Loss exponent over t = {own.window[0]:.4g} to {own.window[1]:.4g}: run {own.exponent:.4f} +- {own.stderr:.4f}, "
        f"theory by the same fit {theirs.exponent:.4f}.",
        "",
        "| quantity | verdict | largest deviation | tolerance | largest z |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {comparison.verdicts[name].status} | {comparison.max_deviation(name):.2g} | "
            f"{comparison.tolerances[name]:g} | {comparison.max_z(name):.1f} |"
            for name in QUANTITIES
        ),
        "",
        "| step | t | " + " | ".join(f"{name}: run | theory | z" for name in QUANTITIES) + " |",
        "|---|---|" + "---|---|---|" * len(QUANTITIES),
    ]
    for i in np.flatnonzero(kept):
        cells = [
            f"{run.mean(name)[i]:.5g} | {comparison.predicted(name)[i]:.5g} | {comparison.z(name)[i]:+.1f}"
            for name in QUANTITIES
        ]
        lines.append(f"| {int(run.step[i])} | {run.t[i]:.4g} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
