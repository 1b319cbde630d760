"""Pictures of rollouts: live requests and empty slots against time, gain against batch, the map of policies, the drafter."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from odescale.plot.style import COLOURS, CYCLE, panels, shared_style

ROUNDS = "plain rounds at batch 1"


def plot_rollout(found: Any, axes: Any = None, *, title: str = "") -> dict[str, Axes]:
    """Mean live requests of a worker against time, with and without speculation (axes "live"), empty slots as the area above;
    makespans of the drawn rollouts (axes "makespan"). `found`: `RolloutTimes`."""
    with shared_style():
        drawn = panels(axes, ("live", "makespan"), 11.0, 4.2)
        panel, system = drawn["live"], found.system
        most = float(np.mean(system.requests))
        for curve, name, colour in (
            (found.without, "plain decoding", COLOURS["grey"]),
            (found.trajectory, f"policy {system.policy.text()}", COLOURS["theory"]),
        ):
            time, live = np.asarray(curve.observables["time"]), np.asarray(curve.observables["live"])
            panel.plot(time, live, color=colour, label=name)
            # The share at the cap ends at once.
            panel.plot([time[-1], time[-1]], [live[-1], 0], color=colour, linestyle=":", linewidth=1.2)
        time = np.asarray(found.trajectory.observables["time"])
        panel.fill_between(time, np.asarray(found.trajectory.observables["live"]), most, color=COLOURS["theory"], alpha=0.08,
                           linewidth=0, label=f"empty slots: {found.idle_slots / found.time:.0%} of the time")  # fmt: skip
        for live, (_, at) in found.switches.items():
            panel.plot([at], [live], "o", color=COLOURS["run"], markersize=5, zorder=3)
            panel.annotate(
                f"policy changes at {live:g}", (at, live), textcoords="offset points", xytext=(8, 6), fontsize=8.5
            )
        panel.set_xlabel(f"time ({ROUNDS})")
        panel.set_ylabel("live requests of a worker, mean")
        panel.set_ylim(0, 1.02 * most)
        panel.set_xlim(left=0)
        panel.legend(loc="upper right", fontsize=8.5)
        if "makespan" in drawn:
            panel = drawn["makespan"]
            both = np.concatenate([found.drawn, found.drawn_plain])
            bins = np.linspace(both.min(), both.max(), 60)
            panel.hist(found.drawn_plain, bins, density=True, color=COLOURS["grey"], alpha=0.6, label="plain decoding")
            panel.hist(found.drawn, bins, density=True, color=COLOURS["theory"], alpha=0.7, label="under the policy")
            panel.set_xlabel(f"makespan ({ROUNDS})")
            panel.set_ylabel("density of rollouts")
            panel.legend(loc="upper center", fontsize=8.5)
        workers = len(system.requests)
        panel.figure.suptitle(
            title
            or f"{sum(system.requests)} requests, {workers} worker{'' if workers == 1 else 's'}: gain {found.gain[0]:.2f}",
            fontsize=11,
        )
    return drawn


def plot_policy(found: Any, axes: Any = None, *, title: str = "") -> dict[str, Axes]:
    """Gain of the best strategy over plain decoding against the batch (axes "gain"), coloured by strategy, with its interval.
    `found`: `PolicyTable`."""
    with shared_style():
        panel = panels(axes, ("gain",), 7.2, 4.4)["gain"]
        batch, gain = np.asarray(found.batch), np.asarray(found.gain)
        names = [
            "plain" if d == 0 else f"depth {d:g}, verify {v:g}"
            for d, v in zip(found.depth, found.verified, strict=True)
        ]
        colours = dict(zip(dict.fromkeys(names), CYCLE * (1 + len(names) // len(CYCLE)), strict=False))
        panel.plot(batch, gain, color=COLOURS["grey"], linewidth=1.0, zorder=1)
        low, high = np.asarray(found.interval).T
        for name, colour in colours.items():
            own = np.array([n == name for n in names])
            bars = np.stack([gain - low, high - gain])[:, own] if np.isfinite(low[own]).all() else None
            panel.errorbar(batch[own], gain[own], None if bars is None else np.maximum(bars, 0), fmt="o", color=colour, label=name,
                           capsize=2)  # fmt: skip
        panel.axhline(1, color=COLOURS["formula"], linewidth=0.8)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        panel.set_xlabel("live requests (batch)")
        panel.set_ylabel("tokens per second over plain decoding")
        panel.set_title(title or "best strategy by batch")
        panel.legend(fontsize=8.5, title="strategy", title_fontsize=8.5)
    return {"gain": panel}


def plot_policy_map(found: Any, axes: Any = None, *, title: str = "") -> dict[str, Axes]:
    """The best depth over batch and acceptance of the first token (axes "map"), white where plain decoding is best. `found`:
    `PolicyMap`."""
    with shared_style():
        panel = panels(axes, ("map",), 7.2, 4.6)["map"]
        depth = np.asarray(found.depth, float)
        levels = sorted({*depth[depth > 0].tolist()})
        shown = np.where(depth > 0, np.searchsorted(levels, depth) + 1.0, 0.0)
        from matplotlib import colormaps
        from matplotlib.colors import ListedColormap

        tones = [(1.0, 1.0, 1.0), *colormaps["viridis"](np.linspace(0.15, 0.95, max(len(levels), 1)))]
        panel.pcolormesh(
            found.batch,
            found.first,
            shown,
            cmap=ListedColormap(tones),
            vmin=-0.5,
            vmax=len(levels) + 0.5,
            shading="nearest",
        )
        lines = panel.contour(
            found.batch, found.first, found.gain, levels=[1.25, 1.5, 2, 3, 4], colors="black", linewidths=0.8
        )
        panel.clabel(lines, fmt="%g x", fontsize=8)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        panel.set_xlabel("live requests (batch)")
        panel.set_ylabel(r"acceptance of the first drafted token $a_1$")
        panel.set_title(title or "best depth of the draft; lines: gain over plain decoding", fontsize=10.5)
        keep = levels if len(levels) <= 6 else [levels[round(i)] for i in np.linspace(0, len(levels) - 1, 6)]
        marks = [Patch(facecolor="white", edgecolor="grey", label="plain")] if (depth == 0).any() else []
        marks += [Patch(facecolor=tones[levels.index(d) + 1], label=f"depth {d:g}") for d in keep]
        panel.legend(handles=marks, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8.5)
        panel.grid(False)
    return {"map": panel}


def plot_drafter(found: Any, axes: Any = None, *, title: str = "") -> dict[str, Axes]:
    """Misalignment against updates of the policy (axes "kappa") and what it makes of a rollout (axes "gain"). `found`: a trajectory
    of the system `drafter`."""
    with shared_style():
        drawn = panels(axes, ("kappa", "gain"), 10.5, 4.0)
        t = np.asarray(found.t)
        panel = drawn["kappa"]
        panel.plot(t, found.observables["kappa"], color=COLOURS["theory"])
        panel.set_xlabel("updates of the policy")
        panel.set_ylabel(r"$\kappa$ = KL(target || drafter), nats per token")
        panel.set_ylim(bottom=0)
        if "gain" in drawn:
            panel = drawn["gain"]
            panel.plot(
                t, found.observables["gain"], color=COLOURS["theory"], label="gain of the rollout over plain decoding"
            )
            panel.plot(
                t,
                found.observables["accepted"],
                color=COLOURS["run"],
                linestyle="--",
                label="tokens of a round, one request live",
            )
            idle = np.asarray(found.observables["idle"])
            panel.plot(
                t, idle / idle[0], color=COLOURS["third"], linestyle="-.", label="idle time over that at the start"
            )
            panel.set_xlabel("updates of the policy")
            panel.set_ylim(bottom=0)
            panel.legend(fontsize=8.5)
        panel.figure.suptitle(title or "a drafter that learns while workers wait", fontsize=11)
    return drawn


def plot_drafter_fit(found: Any, axes: Any = None, *, steps: int = 0, title: str = "") -> dict[str, Axes]:
    """Measured misalignment before and after the idle phases of a run, the fixed point, and what the fit expects of further steps
    (axes "kappa"). `found`: `DrafterFit`; `steps` ahead, at the mean idle time (default: a third of those measured)."""
    with shared_style():
        panel = panels(axes, ("kappa",), 7.6, 4.4)["kappa"]
        before, after = found.scale * np.asarray(found.series.before), found.scale * np.asarray(found.series.after)
        n = np.arange(before.size)
        panel.plot(n, before, "o", markersize=3.5, color=COLOURS["run"], label="before the idle phase")
        panel.plot(n, after, "o", markersize=3.5, color=COLOURS["theory"], label="after it")
        ahead = steps or max(1, before.size // 3)
        then = found.forecast(ahead, found.mean_idle)
        later = before.size + np.arange(ahead)
        for name, colour in (("before", COLOURS["run"]), ("after", COLOURS["theory"])):
            panel.plot(later, getattr(then, name), color=colour)
            low, high = getattr(then, f"{name}_low"), getattr(then, f"{name}_high")
            panel.fill_between(
                later, low, high, color=colour, alpha=0.15, linewidth=0, label=f"expected {name}, {found.level:.0%}"
            )
        if found.identified:
            panel.axhline(
                found.kappa_inf, color=COLOURS["formula"], linestyle=":", linewidth=1.0, label=r"floor $\kappa_\infty$"
            )
        panel.set_xlabel("updates of the policy")
        panel.set_ylabel(r"$\kappa$ = KL(target || drafter), nats per token")
        panel.set_title(
            title or f"r = {found.r:.3g} per idle unit, delta = {found.delta:.3g} per update", fontsize=10.5
        )
        panel.set_ylim(bottom=0)
        panel.legend(fontsize=8.5)
    return {"kappa": panel}
