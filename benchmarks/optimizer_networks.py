"""Trained networks on a power-law spectrum under four optimisers and two bases, their ODE, and both exponents.

Erf units learn as many; lam_k ~ k^-b in levels of `MULTIPLICITY` coordinates each (so that d_eff is large
and overlaps are exact in every level), overlaps with the source condition lam_k q_k ~ k^-c. Intrinsic time: t for SGD, s = int
dt/sqrt(L) for the optimisers that divide by the size of the gradient's noise, whose square is proportional to L late in a run.
"""

from __future__ import annotations

import time
from typing import Any

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import odescale  # noqa: E402
from odescale.networks.library import committee_network  # noqa: E402
from odescale.networks.losses import SquareLoss  # noqa: E402
from odescale.networks.teacher_student import teacher_student  # noqa: E402
from odescale.optimizers import SGD, Adam, Muon, Sign  # noqa: E402
from odescale.systems.mean_field import MeanField  # noqa: E402
from odescale.systems.mean_field_build import mean_field  # noqa: E402
from odescale.systems.mean_field_start import aligned_overlaps  # noqa: E402
from odescale.systems.spectrum import Spectrum, source_overlaps  # noqa: E402
from odescale.training.spectral_optimized import even_rotation  # noqa: E402

CAPACITY, SOURCE, LEVELS, MULTIPLICITY, BATCH = 1.5, 0.75, 64, 32, 2.0
"""b, alpha = (c - 1)/b of SGD, levels, coordinates in each, sequences per step."""
ALIGNMENT, BETA2, MOMENTUM = 0.8, 0.998, 0.95
WINDOW = (0.2, 0.02)
"""Losses, over that of the start, between which slopes are taken."""
CASES: dict[str, tuple[Any, str, float, bool, float, float]] = {
    "SGD": (SGD(rate=1.0), "sgd", 8.0, False, 1.0, 1.0),
    "Adam, eigenbasis": (Adam(rate=0.02, beta1=0.0, beta2=BETA2), "adam", 8.0, False, 0.02, 0.5),
    "Adam, rotated": (None, "adam", 8.0, True, 0.02, 1.0),
    "Muon": (
        Muon.exact(rate=0.002, momentum=MOMENTUM, nesterov=False), "muon", 8.0, False, 0.002, 1.0,
    ),
    "sign, eigenbasis": (Sign(rate=0.02), "sign", 8.0, False, 0.02, 0.5),
}  # fmt: skip
"""Name -> optimiser of the ODE (None: `rotated_course`), word of the update, end, rotated, rate, power of lam_k in a rate."""


def levels(number: int = LEVELS, multiplicity: int = MULTIPLICITY) -> Spectrum:
    """lam_k ~ k^-b, each on `multiplicity` coordinates, mean 1: N = d."""
    lam = np.arange(1.0, number + 1) ** -CAPACITY
    lam *= number / lam.sum()
    many = np.full(number, float(multiplicity))
    return Spectrum(lam, many / (number * multiplicity), many, many * lam**2, float(number * multiplicity))


def system_of(spectrum: Spectrum, optimizer: Any, units: int = 1, nodes: int = 1024) -> MeanField:
    """The committee; closed form under SGD and Adam."""
    network = committee_network(units, "erf")
    problem = teacher_student(network, network, SquareLoss(0.0), tokens=1, label="committee")
    start = aligned_overlaps(problem, alignment=0.8, scale=1.0, lengths=1.0)
    closed = isinstance(optimizer, SGD | Adam)
    return mean_field(
        problem,
        initial_overlaps=jnp.asarray(source_overlaps(spectrum, start, source=SOURCE, capacity=CAPACITY)),
        spectrum=spectrum,
        optimizer=optimizer,
        batch=BATCH,
        closure="closed" if closed else "quadrature",
        nodes=None if closed else nodes,
        matrices=[list(problem.student.rows)],
    )


def rotated_course(spectrum: Spectrum, rate: float, times: np.ndarray, units: int = 1) -> np.ndarray:
    """Adam in coordinates of one variance l: P_i = a/sqrt(v_i) for all modes, v_i follows l V_ii/B + <(h q h^T)_ii>/N.

    The flow of the overlaps as `MeanField` has it, in steps that move the fastest mode by a twentieth.
    """
    system = system_of(spectrum, SGD(rate=1.0), units)
    moments = jax.jit(lambda C, R: system.moments(C, R))
    lam, weights = spectrum.eigenvalues, spectrum.weights
    q, v, t, found = np.asarray(system.initial_state()[0]), np.zeros(units), 0.0, []
    moved, N, d = system.problem.moved, spectrum.trace, spectrum.dimension
    forgetting = -N * np.log(BETA2)
    for end in times:
        while t < end - 1e-12:
            C, R = np.tensordot(weights * lam, q, axes=1), np.tensordot(weights, q, axes=1)
            m = moments(C, R)
            G, V = np.asarray(m.G), np.asarray(m.V)
            h = lam[:, None, None] * G
            means = np.einsum("kip,kpq,kiq,k->i", h, q, h, weights) / d
            target = N / d * np.diag(V) / BATCH + means
            P = rate / np.sqrt(v / (1 - np.exp(-forgetting * t)) if t > 0 else target)
            step = min(0.05 / (lam[0] * float(P.max())), 0.2 / forgetting if t < 5 / forgetting else 0.05, end - t)
            pull = np.zeros_like(q)
            pull[:, moved] = -P[:, None] * (h @ q)
            noise = np.zeros_like(q)
            noise[:, moved[:, None], moved] = lam[:, None, None] * (P[:, None] * V * P) / BATCH
            # Midpoint of the linear part: the fastest mode relaxes within the run.
            half = q + step / 2 * (pull + pull.swapaxes(1, 2) + noise)
            pull[:, moved] = -P[:, None] * (h @ half)
            q = q + step * (pull + pull.swapaxes(1, 2) + noise)
            v = target + (v - target) * np.exp(-forgetting * step)
            t += step
        found.append(float(system.excess_loss(jnp.asarray(t), jnp.asarray(q)[None])))
    return np.array(found)


def course(spectrum: Spectrum, name: str, times: np.ndarray, units: int = 1) -> np.ndarray:
    """Loss of the ODE."""
    optimizer, _, _, _, rate, _ = CASES[name]
    if optimizer is None:
        return rotated_course(spectrum, rate, times, units)
    found = odescale.integrate(system_of(spectrum, optimizer, units), ts=np.r_[0.0, times], exponents=False)
    return np.asarray(found.loss)[1:]


def linear_slope(spectrum: Spectrum, power: float) -> float:
    """The slope of sum k^-c exp(-2 s lam_k^power) over the same levels, between the same losses over the start."""
    k = np.arange(1.0, len(spectrum.eigenvalues) + 1)
    size = k ** -(1 + SOURCE * CAPACITY)
    s = np.geomspace(1e-3, 1e4, 4000)
    loss = np.exp(-2 * s[:, None] * spectrum.eigenvalues**power) @ (size / size.sum())
    chosen = (loss <= WINDOW[0]) & (loss >= WINDOW[1])
    return -float(np.polyfit(np.log(s[chosen]), np.log(loss[chosen]), 1)[0])


def intrinsic(name: str, t: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """t under SGD, else int dt/sqrt(L), by trapezia on a grid that starts close to zero; `loss` (..., times)."""
    if name == "SGD":
        return np.broadcast_to(t, loss.shape)
    pace = loss**-0.5
    steps = np.diff(t) * (pace[..., 1:] + pace[..., :-1]) / 2
    return t[0] * pace[..., :1] + np.concatenate([np.zeros_like(loss[..., :1]), np.cumsum(steps, axis=-1)], axis=-1)


def clean_window(x: np.ndarray, loss: np.ndarray, tolerance: float = 0.1) -> tuple[int, int, float]:
    """(first, last, mean slope) of the longest stretch in log x in which the local slope stays within `tolerance` of its mean."""
    slope = -np.gradient(np.log(loss), np.log(x))
    best = (0, 0, np.nan)
    for i in range(2, len(x) - 3):
        for j in range(i + 3, len(x) - 1):
            part = slope[i : j + 1]
            mean = float(np.mean(part))
            if np.max(np.abs(part / mean - 1)) < tolerance and x[j] / x[i] > x[best[1]] / x[best[0]]:
                best = (i, j, mean)
    return best


def networks(seeds: int, names: tuple[str, ...] = tuple(CASES), units: int = 1) -> None:
    """Slopes of the loss in intrinsic time: derived for endless modes, of the linear model at these levels, of the ODE, of runs."""
    from benchmarks.optimizer_exponents import Update, committee_runs, local_exponent, orthogonal_rows

    spectrum = levels()
    print(
        f"{units} unit(s), d = {spectrum.dimension:.0f}, d_eff = {spectrum.effective_dimension:.0f}, {seeds} seeds, "
        f"lam from {spectrum.eigenvalues[0]:.3g} to {spectrum.eigenvalues[-1]:.3g}"
    )
    q = np.asarray(system_of(spectrum, SGD(rate=1.0), units).initial_overlaps)
    rotation = even_rotation(np.repeat(spectrum.eigenvalues, MULTIPLICITY)) if "Adam, rotated" in names else None
    for name in names:
        _, kind, end, turned, rate, power = CASES[name]
        began = time.perf_counter()
        steps = np.unique(np.round(np.geomspace(10, end * spectrum.trace, 48)).astype(int))
        t = steps / spectrum.trace
        ode = course(spectrum, name, t, units)
        solved = time.perf_counter()
        step = rate if kind in ("sgd", "muon") else rate / spectrum.trace**0.5
        update = Update(kind, step, rotation if turned else None, beta2=BETA2)
        rows = orthogonal_rows(q, MULTIPLICITY, seeds)
        runs = committee_runs(np.repeat(spectrum.eigenvalues, MULTIPLICITY), rows, update, int(BATCH), tuple(steps))
        mean, error = runs.mean(axis=0), runs.std(axis=0, ddof=1) / seeds**0.5
        print(f"{name}: ODE {solved - began:.0f} s, runs {time.perf_counter() - solved:.0f} s")
        for n in range(0, len(t), 4):
            print(f"  t {t[n]:7.3f} ODE {ode[n]:.3e} run/ODE {mean[n] / ode[n]:.4f} +- {error[n] / ode[n]:.4f}")
        x, start = intrinsic(name, t, ode), committee_loss_of(q, spectrum)
        first, last = WINDOW[0] * start, WINDOW[1] * start
        own = intrinsic(name, t, runs)
        among = np.array([float(local_exponent(u, one, first, last)) for u, one in zip(own, runs, strict=True)])
        inside = (ode <= first) & (ode >= last)
        i, j, slope = clean_window(x, ode)
        clean = f"{slope:.3f} over {x[j] / x[i]:.1f} times in s" if x[j] / x[i] > 3 else "none over 3 times in s"
        print(
            f"  derived {SOURCE / power:.2f}, linear model at these levels {linear_slope(spectrum, power):.3f}, "
            f"ODE {float(local_exponent(x, ode, first, last)):.3f}, "
            f"runs {among.mean():.3f} +- {among.std(ddof=1) / seeds**0.5:.3f}, "
            f"largest deviation of the loss {np.max(np.abs(mean / ode - 1)[inside]):.1%}, "
            f"window {x[inside][-1] / x[inside][0]:.1f} times in s; slope steady to 10 %: {clean}",
            flush=True,
        )


def committee_loss_of(overlaps: np.ndarray, spectrum: Spectrum) -> float:
    """Loss at the start."""
    from benchmarks.optimizer_exponents import committee_loss, orthogonal_rows

    rows = orthogonal_rows(overlaps, MULTIPLICITY, 1)
    return float(committee_loss(rows, np.repeat(spectrum.eigenvalues, MULTIPLICITY))[0])
