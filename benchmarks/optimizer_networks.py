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
from scipy.special import gamma  # noqa: E402

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
CASES: dict[str, tuple[Any, str, float, bool, float, float]] = {
    "SGD": (SGD(rate=1.0), "sgd", 6.0, False, 1.0, 1.0),
    "Adam, eigenbasis": (Adam(rate=0.02, beta1=0.0, beta2=BETA2), "adam", 11.0, False, 0.02, 0.5),
    "Adam, rotated": (None, "adam", 6.0, True, 0.02, 1.0),
    "Muon": (
        Muon.exact(rate=0.002, momentum=MOMENTUM, nesterov=False), "muon", 6.0, False, 0.002, 1.0,
    ),
    "sign, eigenbasis": (Sign(rate=0.02), "sign", 6.0, False, 0.02, 0.5),
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


def linear_slope(name: str, spectrum: Spectrum, s: np.ndarray) -> float:
    """The slope of the linear model that one unit is at its teacher, over the same levels and times: no number is fitted.

    Fields of variance 1: E g'^2 = (2/pi)/sqrt(3) is G, and V/2L = E g'^4/E g'^2 = (2/pi) sqrt(3/5), at unit noise per coordinate.
    """
    _, kind, _, turned, rate, power = CASES[name]
    k = np.arange(1.0, len(spectrum.eigenvalues) + 1)
    G, noise = 2 / np.pi / 3**0.5, 2 / np.pi * (3 / 5) ** 0.5
    pace = {
        "sgd": rate * G,
        "adam": rate * G * np.sqrt(BATCH / (2 * noise)),
        "sign": rate * G * 2 / np.pi**0.5 * gamma((BATCH + 1) / 2) / gamma(BATCH / 2) / np.sqrt(2 * noise),
        "muon": rate * G * np.sqrt(BATCH * (1 + MOMENTUM) / (1 - MOMENTUM) / (2 * noise)),
    }[kind]  # fmt: skip
    if turned:
        pace = pace * np.sqrt(spectrum.dimension / spectrum.trace)
    loss = np.exp(-2 * pace * s[:, None] * spectrum.eigenvalues**power) @ k ** -(1 + SOURCE * CAPACITY)
    return slope_of(s, loss)


def intrinsic(name: str, t: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """t under SGD, else int dt/sqrt(L), by trapezia on a grid that starts close to zero; `loss` (..., times)."""
    if name == "SGD":
        return np.broadcast_to(t, loss.shape)
    pace = loss**-0.5
    steps = np.diff(t) * (pace[..., 1:] + pace[..., :-1]) / 2
    return t[0] * pace[..., :1] + np.concatenate([np.zeros_like(loss[..., :1]), np.cumsum(steps, axis=-1)], axis=-1)


def slope_of(x: np.ndarray, loss: np.ndarray) -> float:
    """-dlog loss/dlog x by least squares."""
    return -float(np.polyfit(np.log(x), np.log(loss), 1)[0])


def clean_window(x: np.ndarray, loss: np.ndarray, tolerance: float = 0.1) -> tuple[int, int]:
    """(first, last) of the longest stretch in log x in which the local slope stays within `tolerance` of its mean."""
    slope = -np.gradient(np.log(loss), np.log(x))
    best = (0, 0)
    for i in range(2, len(x) - 3):
        for j in range(i + 3, len(x) - 1):
            part = slope[i : j + 1]
            mean = float(np.mean(part))
            if np.max(np.abs(part / mean - 1)) < tolerance and x[j] / x[i] > x[best[1]] / x[best[0]]:
                best = (i, j)
    return best


def networks(seeds: int, names: tuple[str, ...] = tuple(CASES), units: int = 1) -> None:
    """Slopes of the loss in intrinsic time: derived for endless modes, of the linear model there, of the ODE, of runs."""
    from benchmarks.optimizer_exponents import Update, committee_runs, orthogonal_rows

    spectrum = levels()
    # A rotation multiplies by a d x d matrix at every step.
    if any(CASES[name][3] for name in names):
        spectrum = levels(multiplicity=MULTIPLICITY // 2)
    many = int(spectrum.multiplicity[0])
    print(
        f"{units} unit(s), d = {spectrum.dimension:.0f}, d_eff = {spectrum.effective_dimension:.0f}, {seeds} seeds, "
        f"lam from {spectrum.eigenvalues[0]:.3g} to {spectrum.eigenvalues[-1]:.3g}"
    )
    q = np.asarray(system_of(spectrum, SGD(rate=1.0), units).initial_overlaps)
    rotation = even_rotation(np.repeat(spectrum.eigenvalues, many)) if "Adam, rotated" in names else None
    for name in names:
        _, kind, end, turned, rate, power = CASES[name]
        began = time.perf_counter()
        steps = np.unique(np.round(np.geomspace(10, end * spectrum.trace, 48)).astype(int))
        t = steps / spectrum.trace
        ode = course(spectrum, name, t, units)
        solved = time.perf_counter()
        step = rate if kind in ("sgd", "muon") else rate / spectrum.trace**0.5
        update = Update(kind, step, rotation if turned else None, beta2=BETA2)
        rows = orthogonal_rows(q, many, seeds)
        runs = committee_runs(np.repeat(spectrum.eigenvalues, many), rows, update, int(BATCH), tuple(steps))
        mean, error = runs.mean(axis=0), runs.std(axis=0, ddof=1) / seeds**0.5
        print(f"{name}: ODE {solved - began:.0f} s, runs {time.perf_counter() - solved:.0f} s")
        for n in range(0, len(t), 4):
            print(f"  t {t[n]:7.3f} ODE {ode[n]:.3e} run/ODE {mean[n] / ode[n]:.4f} +- {error[n] / ode[n]:.4f}")
        x = intrinsic(name, t, ode)
        i, j = clean_window(x, ode)
        inside = slice(i, j + 1)
        off = np.abs(mean / ode - 1)
        if x[j] < 3 * x[i]:
            print(
                f"  derived {SOURCE / power:.2f}; no stretch of 3 times in s with a steady slope; loss off by {off.max():.1%}"
            )
            continue
        own = intrinsic(name, t, runs)[:, inside]
        among = np.array([slope_of(u, one) for u, one in zip(own, runs[:, inside], strict=True)])
        print(
            f"  derived {SOURCE / power:.2f}; slope steady over {x[j] / x[i]:.1f} times in s, loss {ode[i]:.1e} to {ode[j]:.1e}: "
            f"linear model there {linear_slope(name, spectrum, x[inside]):.3f}, ODE {slope_of(x[inside], ode[inside]):.3f}, "
            f"runs {among.mean():.3f} +- {among.std(ddof=1) / seeds**0.5:.3f}; "
            f"loss off by {off[inside].max():.1%} there, {off.max():.1%} before",
            flush=True,
        )
