"""Exponents under SGD, Adam, sign and Muon on power-law spectra: linear models and trained networks against their ODE.

    python -m benchmarks.optimizer_exponents [muon] [race] [memory] [networks] [--seeds 16]

`muon`: the linear model of p rows under Muon, simulated and against its closed moments; local exponents of those moments in
intrinsic time and in steps. `race`: when Adam is below SGD with label noise, both closed moments and a simulation. `memory`: the
effects of Adam's fluctuating second moment switched on one by one. `networks`: an erf committee trained in the eigenbasis and
rotated, its loss and its local exponent against the ODE. docs/optimisers.md has what this prints; plain NumPy, all seeds at once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import erf

from derivations.optimizers.moments import MemoryOfV, muon_moments, noisy_courses, sgd_losses

Array = np.ndarray
MOMENTUM = 0.95


def orthogonal_rows(
    overlaps: Float[Array, "levels P P"], multiplicity: int, seeds: int, seed: int = 0
) -> Float[Array, "seeds P d"]:
    """Rows whose overlaps in every level, `multiplicity` coordinates of one eigenvalue, are exactly `overlaps`."""
    rng = np.random.default_rng(seed)
    size = overlaps.shape[-1]
    values, vectors = np.linalg.eigh(overlaps)
    half = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
    shape = (seeds, len(overlaps), multiplicity, multiplicity)
    turned = np.linalg.qr(rng.standard_normal(shape))[0][:, :, :size] * np.sqrt(multiplicity)
    return np.einsum("kij,skjm->sikm", half, turned).reshape(seeds, size, -1)


def orthogonalized(momentum: Float[Array, "seeds p d"]) -> Float[Array, "seeds p d"]:
    """(m m^T)^-1/2 m."""
    gram = (momentum @ momentum.swapaxes(1, 2)).astype(float)
    values, vectors = np.linalg.eigh(gram)
    root = vectors / np.sqrt(np.maximum(values, 1e-14 * values[:, -1:]))[:, None, :] @ vectors.swapaxes(1, 2)
    return root.astype(momentum.dtype) @ momentum


class Update:
    """One optimiser's real update of (seeds, rows, d) weights; `rotation` turns to the coordinates that it works in."""

    def __init__(self, kind: str, rate: float, rotation: Array | None = None, beta1: float = 0.0, beta2: float = 0.99):
        self.kind, self.rate, self.beta1, self.beta2 = kind, np.float32(rate), beta1, beta2
        self.rotation = None if rotation is None else rotation.astype(np.float32)
        self.m: Any = 0.0
        self.v: Any = 0.0
        self.n = 0

    def __call__(self, gradient: Array) -> Array:
        """What is taken off the weights."""
        self.n += 1
        g = gradient if self.rotation is None else gradient @ self.rotation.T
        if self.kind == "adam":
            self.m = self.beta1 * self.m + (1 - self.beta1) * g
            self.v = self.beta2 * self.v + (1 - self.beta2) * g * g
            g = self.m / (1 - self.beta1**self.n) / (np.sqrt(self.v / (1 - self.beta2**self.n)) + 1e-12)
        elif self.kind == "sign":
            g = np.sign(g)
        elif self.kind == "muon":
            self.m = MOMENTUM * self.m + (1 - MOMENTUM) * g
            g = orthogonalized(self.m)
        return self.rate * (g if self.rotation is None else g @ self.rotation)


def linear_runs(
    spectrum: Float[Array, " d"],
    start: Float[Array, "seeds p d"],
    update: Callable[[Array], Array],
    batch: int,
    times: Sequence[int],
    noise: float = 0.0,
    seed: int = 0,
) -> Float[Array, "seeds p times"]:
    """Excess mean square errors sum_k lam_k D_k^2 of every row after so many steps on fresh Gaussian features."""
    rng = np.random.default_rng(seed)
    root, D, found = np.sqrt(spectrum).astype(np.float32), start.astype(np.float32), []
    for n in range(1, max(times) + 1):
        x = rng.standard_normal((len(D), batch, len(spectrum)), dtype=np.float32) * root
        errors = x @ D.swapaxes(1, 2)
        if noise:
            errors = errors + np.float32(noise**0.5) * rng.standard_normal(errors.shape, dtype=np.float32)
        D = D - update(errors.swapaxes(1, 2) @ x / batch)
        if n in times:
            found.append(D.astype(float) ** 2 @ spectrum)
    return np.stack(found, axis=2)


def committee_runs(
    spectrum: Float[Array, " d"], rows: Float[Array, "seeds P d"], update: Callable[[Array], Array], batch: int,
    times: Sequence[int], seed: int = 0,
) -> Float[Array, "seeds times"]:  # fmt: skip
    """Population losses (half squared error) of erf units that learn as many frozen ones; `rows`: students, then teachers."""
    rng = np.random.default_rng(seed)
    units, N = rows.shape[1] // 2, spectrum.sum()
    root = np.sqrt(spectrum / N).astype(np.float32)
    W, T, found = rows[:, :units].astype(np.float32), rows[:, units:].astype(np.float32), []
    half, slope = np.float32(0.5**0.5), np.float32((2 / np.pi) ** 0.5)
    for n in range(1, max(times) + 1):
        x = rng.standard_normal((len(W), batch, len(spectrum)), dtype=np.float32) * root
        s, t = x @ W.swapaxes(1, 2), x @ T.swapaxes(1, 2)
        error = np.sum(erf(s * half) - erf(t * half), axis=2, keepdims=True)
        W = W - update((error * slope * np.exp(-s * s / 2)).swapaxes(1, 2) @ x / batch)
        if n in times:
            found.append(committee_loss(np.concatenate([W, T], axis=1).astype(float), spectrum))
    return np.stack(found, axis=1)


def committee_loss(rows: Float[Array, "seeds P d"], spectrum: Float[Array, " d"]) -> Float[Array, " seeds"]:
    """E (sum erf(s/sqrt 2) - sum erf(t/sqrt 2))^2/2 over Gaussian fields, by the arcsine law."""
    C = (rows * spectrum) @ rows.swapaxes(1, 2) / spectrum.sum()
    size = np.sqrt(1 + np.einsum("sii->si", C))
    sign = np.repeat([1.0, -1.0], rows.shape[1] // 2)
    return np.einsum("i,sij,j->s", sign, np.arcsin(C / (size[:, :, None] * size[:, None, :])), sign) / np.pi


def local_exponent(x: Array, loss: Array, first: float, last: float) -> Array:
    """-dlog loss/dlog x by least squares where the mean loss is between `last` and `first`; `loss` (..., times)."""
    mean = loss if loss.ndim == 1 else loss.mean(axis=0)
    chosen = (mean <= first) & (mean >= last)
    if chosen.sum() < 3:
        return np.full(loss.shape[:-1], np.nan)
    u = np.log(x[..., chosen])
    u = u - u.mean(axis=-1, keepdims=True)
    return -np.sum(u * np.log(loss[..., chosen]), axis=-1) / np.sum(u * u, axis=-1)


def muon(seeds: int) -> None:
    """Simulation at two effective dimensions, then exponents of the closed moments over ten decades."""
    print("| d | b | c | rows | d_eff | loss falls | largest deviation | worst z | exponent in s, runs | moments |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for d, b, sources, rate, last, many in (
        (400, 0.5, (1.5,), 0.01, 700, 256),
        (400, 0.5, (1.5, 1.5), 0.01, 700, 256),
        (4000, 0.6, (1.6,), 0.01, 1000, 8 * seeds),
        (4000, 0.6, (1.6, 1.3), 0.01, 1000, 8 * seeds),
    ):
        p = len(sources)
        levels = np.arange(1.0, d // p + 1)
        lam = levels**-b
        spectrum, times = np.repeat(lam, p), np.unique(np.round(np.geomspace(10, last, 14)).astype(int))
        overlaps = np.stack([levels**-c / lam for c in sources], axis=1)[:, :, None] * np.eye(p)
        runs = linear_runs(
            spectrum, orthogonal_rows(overlaps, p, many), Update("muon", rate), 4, tuple(times)
        )  # fmt: skip
        for row, c in enumerate(sources):
            theory = muon_moments(lam, levels**-c, float(p), 4.0, MOMENTUM, rate, tuple(times))
            mean, error = runs[:, row].mean(axis=0), runs[:, row].std(axis=0, ddof=1) / many**0.5
            ratio, z = mean / theory.loss, (mean - theory.loss) / error
            worst = int(np.argmax(np.abs(ratio - 1)))
            first, least = 0.5 * theory.loss[0], 1.5 * theory.loss[-1]
            got = local_exponent(theory.s, runs[:, row], first, least)
            print(
                f"| {d} | {b} | {c} | {row + 1} of {p} | {p * lam.sum() ** 2 / (lam**2).sum():.0f} "
                f"| {theory.loss[0] / theory.loss[-1]:.0f} times | {ratio[worst] - 1:+.1%} +- {error[worst] / mean[worst]:.1%} "
                f"| {np.max(np.abs(z)):.1f} | {got.mean():.3f} +- {got.std(ddof=1) / many**0.5:.3f} "
                f"| {float(local_exponent(theory.s, theory.loss, first, least)):.3f} |",
                flush=True,
            )


def race(seeds: int) -> None:
    """With label noise, at one floor: the time from which Adam is below SGD, by closed moments and by simulation."""
    print("| b | c | batch | noise | floor | step of the crossing: formula | moments | loss there: formula | moments |")
    print("|---|---|---|---|---|---|---|---|---|")
    for b, c, batch, noise, floor in (
        (1.5, 2.0, 1.0, 1.0, 1e-4),
        (1.5, 2.0, 4.0, 0.25, 1e-4),
        (2.5, 2.5, 1.0, 1.0, 1e-4),
    ):
        found = noisy_courses(b, c, batch, noise, floor)
        print(
            f"| {b} | {c} | {batch:g} | {noise:g} | {floor:g} | {found.predicted:.3g} | {found.crossing:.3g} "
            f"| {found.level:.3g} | {found.loss:.3g} |"
        )
    d, b, c, noise, many = 400, 0.8, 1.6, 1.0, 4 * seeds
    k = np.arange(1.0, d + 1)
    lam, floor = k**-b, 0.02
    eta, a = 2 * floor / noise / lam.sum(), 2 * floor / noise**0.5 / np.sqrt(lam).sum()
    times = tuple(np.unique(np.round(np.geomspace(30, 14000, 10)).astype(int)))
    start = np.broadcast_to(np.sqrt(k**-c / lam), (many, 1, d))
    print(f"d = {d}, b = {b}, c = {c}, B = 1, noise 1, both floors {floor}: excess risk of {many} runs by step")
    updates = {"SGD": Update("sgd", eta), "Adam": Update("adam", a, beta2=0.999)}
    theories = {
        "SGD": sgd_losses(lam, k**-c, eta, 1.0, noise, times),
        "Adam": MemoryOfV(lam, a, 0.999, 1.0, noise=noise).losses(k**-c, times),
    }
    for name, update in updates.items():
        runs = linear_runs(lam, start, update, 1, times, noise)[:, 0]
        mean, error = runs.mean(axis=0), runs.std(axis=0, ddof=1) / many**0.5
        print(
            f"  {name}: "
            + " ".join(
                f"{n}: {m:.4f} ({m / y:.3f} +- {e / y:.3f} of the moments)"
                for n, m, e, y in zip(times, mean, error, theories[name], strict=True)
            ),
            flush=True,
        )


def memory(seeds: int) -> None:
    """Adam's spectral ODE with one effect of its second moment after the other, over the ODE that assumes a steady one."""
    lam = np.arange(1.0, 401.0) ** -0.5
    for rate, beta2, times in (
        (0.05, 0.999, (50, 200, 500, 800, 1200, 1500)),
        (0.05, 0.99, (20, 100, 200, 300, 500, 1300)),
        (0.013, 0.999, (20, 200, 800, 1400)),
    ):
        start = np.broadcast_to(-np.ones(400), (64 * seeds, 1, 400))
        runs = linear_runs(lam, start, Update("adam", rate, beta2=beta2), 1, times, seed=5)[:, 0]
        mean, error = runs.mean(axis=0), runs.std(axis=0, ddof=1) / len(runs) ** 0.5
        steady = MemoryOfV(lam, rate, beta2, 1.0, effects=("steady",)).losses(lam, times)
        print(f"a = {rate}, beta2 = {beta2}, steps {times}: relative to the ODE with a steady second moment")
        for name, effects in MemoryOfV.STAGES.items():
            found = MemoryOfV(lam, rate, beta2, 1.0, effects=effects).losses(lam, times)
            print(f"  {name:34s} " + " ".join(f"{x:+7.2%}" for x in found / steady - 1))
        print(f"  {f'{len(runs)} runs':34s} " + " ".join(f"{x:+7.2%}" for x in mean / steady - 1))
        print(f"  {'standard error':34s} " + " ".join(f"{x:7.2%}" for x in error / steady), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    from benchmarks.optimizer_networks import networks

    modes = {"muon": muon, "race": race, "memory": memory, "networks": networks}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizer_exponents", description=__doc__)
    parser.add_argument("what", nargs="*", default=list(modes), help=f"of {', '.join(modes)}")
    parser.add_argument("--seeds", type=int, default=16)
    options = parser.parse_args(arguments)
    for name in options.what:
        began = time.perf_counter()
        modes[name](options.seeds)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
