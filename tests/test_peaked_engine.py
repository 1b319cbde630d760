"""`peaked` is the one-token case of the mean-field engine: K student rows, K teacher rows, no attention, cross-entropy.

The engine knows neither the class symmetry nor the Gumbel-max identity: it integrates over all 2 K fields by its nodes and
moves all (2 K)^2 overlaps. Each scramble of the nodes gives one trajectory; their scatter is the error bar.

A set of n nodes is also a training set of n samples, used again and again: too small a one is overfitted, Delta too large and the
loss on the nodes too low by a share that falls like the square of the error bar. So nodes are many and replicates few.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from odescale import MeanField, Peaked, integrate, mean_field, peaked, teacher_student
from odescale.networks import CrossEntropy, QueryToken, RowNetwork

REPLICATES = 8
TEACHER = {"hard": np.inf, "soft": 3.0, "sampled": 3.0}
OVERLAP, SPREAD = 0.5, 0.2


def engine(classes: int, labels: str, nodes: int, seed: int = 0, replicates: int = REPLICATES, **settings) -> MeanField:
    """Student rows D w*_i + sqrt(Delta) x directions of their own. Their common mean does not enter a softmax."""
    rows = tuple(f"w{i}" for i in range(classes))
    temperature = 1.0 if labels == "hard" else TEACHER[labels]
    loss = CrossEntropy(labels, temperature)  # type: ignore[arg-type]
    problem = teacher_student(RowNetwork(rows, (), QueryToken(rows)), loss=loss, tokens=1)
    return mean_field(
        problem, initial_overlaps=overlaps_at(classes, OVERLAP, SPREAD), nodes=nodes, replicates=replicates, seed=seed,
        **{"learning_rate": 1.0, **settings},
    )  # fmt: skip


def overlaps_at(classes: int, overlap: float, spread: float) -> np.ndarray:
    return np.kron([[overlap**2 + spread, overlap], [overlap, 1.0]], np.eye(classes))


def theory(classes: int, labels: str, **settings) -> Peaked:
    start = {"overlap": OVERLAP, "spread": SPREAD}
    return peaked(classes=classes, labels=labels, inverse_temperature=TEACHER[labels], **{**start, **settings})


def order_parameters(overlaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D, Delta) of the centred rows: tr(P R)/(K-1), tr(P Q)/(K-1) - D^2."""
    K = overlaps.shape[-1] // 2
    P = np.eye(K) - 1 / K
    D = np.einsum("ij,...ji->...", P, overlaps[..., :K, K:]) / (K - 1)
    return D, np.einsum("ij,...ji->...", P, overlaps[..., :K, :K]) / (K - 1) - D**2


class Deviation(NamedTuple):
    """Of one quantity over the times: z = (mean of replicates - theory)/standard error, relative deviation and error."""

    z: np.ndarray
    relative: np.ndarray
    stderr: np.ndarray


@lru_cache
def followed(
    classes: int, labels: str, nodes: int, t1: float, rtol: float = 1e-4, **settings
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Times, and D, Delta and loss (times, replicates) of the engine."""
    system = engine(classes, labels, nodes, **settings)
    run = integrate(system, ts=np.concatenate([[0.0], np.geomspace(0.3, t1, 8)]), rtol=rtol)
    D, spread = order_parameters(np.asarray(system.to_overlaps(jnp.asarray(run.state)))[:, :, 0])
    return run.t, {"overlap": D, "spread": spread, "loss": run.observables["replicate_loss"]}


def deviations(run: tuple[np.ndarray, dict[str, np.ndarray]], prediction: Peaked) -> dict[str, Deviation]:
    times, measured = run
    expected = integrate(prediction, ts=times)
    found = {}
    for name, values in measured.items():
        exact = (expected.loss if name == "loss" else expected.observables[name])[1:]
        error = values[1:].std(axis=1, ddof=1) / np.sqrt(values.shape[1])
        gap = values[1:].mean(axis=1) - exact
        found[name] = Deviation(gap / error, gap / exact, error / exact)
    return found


def agree(found: dict[str, Deviation], widest: dict[str, float]) -> None:
    """Within the error bars, all of them below `widest`: wider ones would show nothing."""
    z = np.stack([found[name].z for name in widest])
    inside = np.mean(np.abs(z) < 1.96)
    for name in widest:
        worst, off, bar = (np.max(np.abs(x)) for x in found[name])
        print(f"{name}: {off:.1e} off, |z| up to {worst:.2f}, error bar {bar:.1e}; {inside:.0%} of all inside 95 %")
        assert bar < widest[name], name
    assert np.sqrt(np.mean(z**2)) < 2 and np.max(np.abs(z)) < 4


@pytest.mark.parametrize(
    ("classes", "labels", "settings"),
    [
        (3, "hard", {}),
        pytest.param(5, "hard", {}, marks=pytest.mark.slow),
        pytest.param(3, "soft", {}, marks=pytest.mark.slow),
        pytest.param(3, "sampled", {}, marks=pytest.mark.slow),
        pytest.param(3, "hard", {"batch": 4.0, "weight_decay": 0.1, "schedule": "power:0.3"}, marks=pytest.mark.slow),
    ],
)
def test_same_trajectory_as_the_engine(classes: int, labels: str, settings: dict) -> None:
    """D, Delta and loss up to t = 10 inside the error bar of the nodes, itself a small fraction of a per cent of D."""
    found = deviations(followed(classes, labels, 2**12, 10.0, **settings), theory(classes, labels, **settings))
    agree(found, {"overlap": 5e-4, "spread": 1.5e-2, "loss": 4e-3})


def test_without_its_noise_the_closure_is_refuted() -> None:
    """The engine keeps SGD's noise, `peaked` without G does not: Delta is then wrong by many error bars."""
    found = deviations(followed(3, "hard", 2**12, 10.0), theory(3, "hard", noise=0.0))
    assert found["spread"].z[-1] > 30 and found["spread"].relative[-1] > 0.3
    assert np.abs(found["loss"].z[-1]) > 10


@pytest.mark.slow
@pytest.mark.parametrize("classes", [3, 5])
def test_tighter(classes: int) -> None:
    """2^15 nodes to t = 20: error bars below 1.5e-4 of D, 4e-3 of Delta, 1e-3 of the loss."""
    found = deviations(followed(classes, "hard", 2**15, 20.0, 1e-6, seed=1), theory(classes, "hard"))
    agree(found, {"overlap": 1.5e-4, "spread": 4e-3, "loss": 1e-3})


@pytest.mark.slow
def test_too_few_nodes_are_overfitted() -> None:
    """256 nodes for K = 5: Delta too large, the loss too low, by many error bars; four times as many nodes, three times less."""
    few, more = (
        deviations(followed(5, "hard", nodes, 10.0, replicates=32), theory(5, "hard")) for nodes in (2**8, 2**10)
    )
    assert few["spread"].z[-1] > 4 and few["loss"].z[-1] < -4
    for name in ("spread", "loss"):
        print(f"{name}: {few[name].relative[-1]:.1e}, then {more[name].relative[-1]:.1e}")
        assert 0 < 3 * more[name].relative[-1] / few[name].relative[-1] < 1


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["hard", "soft", "sampled"])
def test_same_right_hand_side(labels: str) -> None:
    """dD/dt and dDelta/dt at four states, aligned and not, K = 3: |z| with 2^13 nodes, rms over the states."""
    system, prediction = engine(3, labels, 2**13, seed=2), theory(3, labels)
    flow = eqx.filter_jit(lambda system, y: system.vector_field(jnp.zeros(()), y))
    z = []
    for D, spread in ((0.2, 0.05), (1.0, 0.3), (2.0, 0.1), (4.0, 1.0)):
        C = jnp.asarray(overlaps_at(3, D, spread))
        y = jnp.broadcast_to(system.to_state(C), (REPLICATES, 1, 6, 6))
        dC = np.asarray(system.to_overlaps(flow(system, y)))[:, 0]
        dD, dsquare = order_parameters(dC)[0], np.trace(dC[:, :3, :3] @ (np.eye(3) - 1 / 3), axis1=1, axis2=2) / 2
        rates = np.stack([dD, dsquare - 2 * D * dD])
        exact = np.asarray(prediction.vector_field(jnp.zeros(()), jnp.asarray([D, spread])))
        z.append((rates.mean(axis=1) - exact) / (rates.std(axis=1, ddof=1) / np.sqrt(REPLICATES)))
        assert np.max(np.abs(rates.mean(axis=1) / exact - 1)) < 0.02
    print(f"{labels}: rms z {np.sqrt(np.mean(np.square(z))):.2f}, largest {np.max(np.abs(z)):.2f}")
    assert np.sqrt(np.mean(np.square(z))) < 2 and np.max(np.abs(z)) < 5
