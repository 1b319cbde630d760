"""Linear models under Adam and by signs: the ODE against direct simulation, its exponents and its floor, and every verb."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import betainc

import odescale
from odescale.cli.main import main
from odescale.errors import InputError, OutsideTheoryError
from odescale.optimizers import Adam, Muon, Sign
from odescale.systems.spectral import spectral
from odescale.systems.spectral_memory import ROWS
from odescale.systems.spectral_optimized import SpectralOptimized, sign_gain
from odescale.training.spectral_optimized import even_rotation

D = 400
SPECTRUM = np.arange(1.0, D + 1) ** -0.5
TIMES = (3, 10, 30, 100, 200, 400, 700)


def test_gain_of_a_sign_is_the_incomplete_beta_function() -> None:
    square = np.array([1e-12, 1e-6, 1e-4, 0.01, 0.3, 0.9, 0.999])
    for batch in (1.0, 2.0, 4.0, 64.0):
        exact = betainc(0.5, batch / 2, square) / np.sqrt(square)
        np.testing.assert_allclose(sign_gain(jnp.asarray(square), jnp.asarray(batch)), exact, rtol=1e-12)


def test_moments_of_a_gradient_by_sampling() -> None:
    """<g_k^2> and <sign g_k> of minibatches, from samples of the model itself."""
    rng, lam, theta, batch, noise = (
        np.random.default_rng(0),
        np.array([1.0, 0.5, 0.2]),
        np.array([0.6, -0.9, 1.1]),
        3,
        0.3,
    )
    x = rng.standard_normal((400_000, batch, 3)) * np.sqrt(lam)
    residual = x @ theta + np.sqrt(noise) * rng.standard_normal((400_000, batch))
    gradient = np.mean(residual[:, :, None] * x, axis=1)
    system: Any = spectral(
        eigenvalues=lam, excess=theta**2, noise=noise, batch=batch, optimizer=Adam(rate=1e-3, beta1=0.0)
    )
    e = jnp.asarray(lam * theta**2)
    np.testing.assert_allclose(system._square(e) * lam, np.mean(gradient**2, axis=0), rtol=0.012)
    gain = np.asarray(sign_gain(e / system._risk(e), system.batch) * jnp.sqrt(e / system._risk(e)))
    np.testing.assert_allclose(gain * np.sign(theta), np.mean(np.sign(gradient), axis=0), atol=0.005)


def test_first_step_of_adam_is_the_sign_s() -> None:
    """v holds the one gradient that it divides: drift 2/pi at B = 1 and sqrt(2/pi) at large B, the step's length exactly."""
    for batch, drift in ((1.0, 2 / np.pi), (1e6, np.sqrt(2 / np.pi))):
        system: Any = spectral(
            eigenvalues=SPECTRUM, excess=np.ones(D), batch=batch, optimizer=Adam(rate=1e-6, beta1=0.0)
        )
        slower, less = system._of_own_square(jnp.zeros(()), jnp.zeros(D))
        # A resummed first order: exact in the length, the drift 1/2 for 2/pi at B = 1 and .8 for .798 at large B.
        np.testing.assert_allclose(1 / less, 1.0)
        np.testing.assert_allclose(1 / slower, drift, atol=0.15 if batch == 1 else 0.004)


@pytest.mark.parametrize("basis", ["eigen", "rotated"])
@pytest.mark.parametrize("optimizer", [Adam(rate=1e-4, beta1=0.0, eps=0.0), Sign(rate=1e-4)], ids=["adam", "sign"])
def test_floor_is_where_the_flow_stands_still(optimizer: Any, basis: str) -> None:
    """b^2 with b = a sum sqrt(lam)/(2 sqrt B), rotated a sqrt(d tr Sigma)/(2 sqrt B): to 1 % where no mode carries the noise."""
    d, batch = 20_000, 2.0
    lam = np.random.default_rng(1).uniform(0.5, 2.0, d)
    found: Any = spectral(eigenvalues=lam, excess=np.ones(d), batch=batch, optimizer=optimizer, basis=basis)
    size = np.sqrt(lam).sum() if basis == "eigen" else np.sqrt(d * lam.sum())
    gain = np.sqrt(batch) if optimizer.word == "adam" else np.sqrt(2 / np.pi) * np.sqrt(2) * np.sqrt(np.pi) / 2
    expected = (1e-4 * size / (2 * gain)) ** 2
    np.testing.assert_allclose(found.noise_floor(), expected, rtol=1e-9)
    shape = np.sqrt(lam) if basis == "eigen" else lam
    if optimizer.word == "sign" and basis == "rotated":
        shape = 1 - 2 / np.pi + 2 / np.pi * lam / lam.mean()

    def growth(E: float) -> float:
        """dlog E/dt in units of the mean rate of decay."""
        e = jnp.asarray(E * shape / shape.sum())
        steady = {
            "second": found._square(e), "spread": jnp.full(d, 5e-4), "moved": 0 * e, "shared": 0 * e, "mean": 0 * e,
        }  # fmt: skip
        rows = [e, *(steady[name] for name in found.carried)]
        rate = jnp.sum(found.steady_rates(jnp.asarray(E), found.learning_rate) * e) / E
        return float(jnp.sum(found.vector_field(jnp.asarray(1e9), jnp.stack(rows))[0]) / (2 * E * rate))

    # growth is linear in log E with slope -1/2: its value is half the relative error of the floor
    assert abs(growth(expected)) < 0.005
    assert growth(1.1 * expected) < -0.03 and growth(0.9 * expected) > 0.03


def test_words_and_objects_build_the_same_and_refusals_name_what_broke() -> None:
    by_word: Any = spectral(modes=16, optimizer="adam", beta1=0.5, learning_rate=0.01, weight_decay=0.1)
    by_object = spectral(modes=16, optimizer=Adam(rate=0.01, beta1=0.5, decay=0.1))
    assert isinstance(by_word, SpectralOptimized) and eqx.tree_equal(by_word, by_object)
    assert by_word.carried == ("cross", "speed", "target", "target_speed", "second", *ROWS)
    default: Any = spectral(modes=16, optimizer="sign")
    assert float(default.learning_rate) == 1e-3 and default.carried == ()
    assert "optimizer = sign" in str(default) and "basis = eigen" in str(default)
    outside: tuple[dict[str, Any], ...] = (
        {"optimizer": Muon()}, {"optimizer": "adam", "batch": np.inf}, {"optimizer": "adam", "per_decade": 10},
    )  # fmt: skip
    for wrong in outside:
        with pytest.raises(OutsideTheoryError):
            spectral(modes=16, **wrong)
    refused: tuple[dict[str, Any], ...] = (
        {"beta1": 0.5}, {"basis": "rotated"}, {"optimizer": "muon"}, {"optimizer": 3}, {"optimizer": "sign", "beta2": 0.9},
        {"optimizer": Sign(), "learning_rate": 0.1}, {"optimizer": "adam", "basis": "fourier"},
    )  # fmt: skip
    for wrong in refused:
        with pytest.raises(InputError):
            spectral(modes=16, **wrong)


def test_rotation_gives_every_coordinate_one_variance() -> None:
    lam = np.arange(1.0, 65) ** -1.5
    R = even_rotation(lam)
    np.testing.assert_allclose(R @ R.T, np.eye(64), atol=1e-12)
    np.testing.assert_allclose((R**2) @ lam, lam.mean(), rtol=1e-9)


def test_decay_and_momentum_enter_the_mean_of_a_mode() -> None:
    """Without noise (a large batch, a fixed second moment) rows of means and squares stay consistent: <phi>^2 = <phi^2>."""
    system: Any = spectral(eigenvalues=SPECTRUM, excess=np.ones(D), batch=1e12, optimizer=Adam(rate=1e-3, decay=0.01))
    y = system.initial_state()
    step = 0.25
    for n in range(40):
        y = y + step * system.vector_field(jnp.asarray(n * step), y)
    row = dict(zip(("e", *system.carried), y, strict=True))
    np.testing.assert_allclose(row["target"] ** 2 / system.start, row["e"], rtol=2e-3)
    assert float(row["e"][0]) < float(system.start[0])


CASES = {
    "adam": (Adam(rate=1.3e-2, beta1=0.0), 1, 2.0),
    "momentum": (Adam(rate=1.3e-2), 1, 2.0),
    "sign": (Sign(rate=1.3e-2), 1, 3.0),
    "sign of four": (Sign(rate=1e-2), 4, 1.3),
    "floor": (Adam(rate=0.05, beta1=0.0, beta2=0.99), 1, 1.0),
}
"""Optimiser, batch, and the factor on `TIMES`."""


@functools.partial(jax.jit, static_argnums=(0, 3))
def _many_steps(case: str, state: Any, first: Any, steps: int, rotation: Any, key: Any) -> Any:
    """256 seeds of real steps by optax, one program, weights in the optimiser's coordinates with the target at zero."""
    rule, batch, _ = CASES[case]
    update, root = rule.update(), jnp.asarray(np.sqrt(SPECTRUM), jnp.float32)

    def step(i, state):
        theta, memory = state
        x = jax.random.normal(jax.random.fold_in(key, first + i), (256, batch, D), jnp.float32) * root
        z = x @ rotation.T
        gradient = jnp.einsum("sb,sbd->sd", jnp.einsum("sbd,sd->sb", z, theta), z) / batch
        direction, memory = jax.vmap(update.update)(gradient, memory)
        return theta - jnp.float32(rule.step(1.0)) * direction, memory

    return jax.lax.fori_loop(0, steps, step, state)


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["eigen", "rotated"])
@pytest.mark.parametrize("case", [name for name in CASES if name != "floor"])
def test_ode_against_direct_simulation(case: str, basis: str) -> None:
    rule, batch, factor = CASES[case]
    times = np.unique(np.round(np.asarray(TIMES) * factor).astype(int))
    R = np.eye(D) if basis == "eigen" else even_rotation(SPECTRUM)
    rotation = jnp.asarray(R, jnp.float32)
    theta = jnp.broadcast_to(-rotation @ jnp.ones(D, jnp.float32), (256, D))
    state, before, risks = (theta, jax.vmap(rule.update().init)(theta)), 0, []
    for time in times:
        state = _many_steps(case, state, before, int(time - before), rotation, jax.random.key(0, impl="unsafe_rbg"))
        before = int(time)
        risks.append(((np.asarray(state[0], float) @ R) ** 2) @ SPECTRUM)
    system = spectral(eigenvalues=SPECTRUM, excess=np.ones(D), batch=batch, optimizer=rule, basis=basis)
    theory = odescale.integrate(system, ts=[0.0, *times.astype(float)], exponents=False).loss
    mean, error = np.mean(risks, axis=1), np.std(risks, axis=1, ddof=1) / 16
    z = (mean - theory[1:]) / error
    print(case, basis, "fall", theory[0] / theory[-1], "ratio", mean / theory[1:], "z", z)
    assert theory[0] / theory[-1] > 5
    assert np.max(np.abs(z)) < 4
    if case == "adam" and basis == "eigen":
        # lam_k left out of v
        other = spectral(eigenvalues=SPECTRUM, excess=np.ones(D), batch=batch, optimizer=rule, basis="rotated")
        wrong = odescale.integrate(other, ts=[0.0, *times.astype(float)], exponents=False).loss
        assert np.max(np.abs((mean - wrong[1:]) / error)) > 10


def _exponent(a: float, b: float, t1: float, basis: str) -> float:
    """-dlog E/dlog s, s = int a sqrt(B/P) dt, while the risk falls from 1e-2 to 1e-3 of its start; that of absent modes added."""
    k = np.arange(1.0, 4001)
    system: Any = spectral(
        eigenvalues=k**-b, excess=k ** (b - a), optimizer=Adam(rate=1e-5, beta1=0.0, beta2=0.99), basis=basis
    )
    found = odescale.integrate(system, t1, points=200, exponents=False, rtol=1e-6)
    t, E, pace = found.t, np.asarray(found.loss), np.asarray(found.observables["pace"])
    s = np.concatenate([[0], np.cumsum(np.diff(t) * (pace[1:] + pace[:-1]) / 2)])
    chosen = (E < 1e-2 * E[0]) & (E > 1e-3 * E[0])
    assert np.sum(chosen) > 5 and E[-1] < 1e-3 * E[0] and float(system.noise_floor()) < 1e-3 * E[chosen][-1]
    absent = 4000.5 ** (1 - a) / (a - 1)
    return -float(np.polyfit(np.log(s[chosen]), np.log(E[chosen] + absent), 1)[0])


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b", "t1"), [(2.0, 1.5, 2e6), (2.2, 2.0, 4e6)])
def test_exponents_of_adam_on_a_power_law(a: float, b: float, t1: float) -> None:
    """2 (a - 1)/b in the eigenbasis; with lam_k left out of v, as in a rotated basis, that of SGD in its own time."""
    aligned, rotated = _exponent(a, b, t1, "eigen"), _exponent(a, b, t1, "rotated")
    print("exponents", a, b, "aligned", aligned, "rotated", rotated)
    assert abs(aligned - 2 * (a - 1) / b) < 0.03
    assert abs(rotated - (a - 1) / b) < 0.03


@pytest.mark.slow
def test_floor_of_a_constant_rate_against_simulation() -> None:
    """Memory short against the relaxation, or v overshoots; the formula leaves out terms of order (1 - beta2) (1 + 3/B), 4 %."""
    rule, _, _ = CASES["floor"]
    theta, eye = jnp.full((256, D), -1.0, jnp.float32), jnp.eye(D, dtype=jnp.float32)
    state = (theta, jax.vmap(rule.update().init)(theta))
    state = _many_steps("floor", state, 0, 1300, eye, jax.random.key(0, impl="unsafe_rbg"))
    risk = (np.asarray(state[0], float) ** 2) @ SPECTRUM
    mean, error = np.mean(risk), np.std(risk, ddof=1) / 16
    system: Any = spectral(eigenvalues=SPECTRUM, excess=np.ones(D), optimizer=rule)
    theory = odescale.integrate(system, ts=[0.0, 1300.0], exponents=False).loss[-1]
    print("floor", float(system.noise_floor()), "ODE", theory, "simulation", mean, error)
    assert abs(mean - theory) < 4 * error
    np.testing.assert_allclose(mean, float(system.noise_floor()), rtol=0.05)


@pytest.mark.slow
def test_every_verb_has_the_same_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system: Any = spectral(modes=200, spectrum_exponent=0.5, risk_exponent=0.5, optimizer="adam", learning_rate=0.01)
    found = odescale.integrate(system, 200.0)
    back = odescale.Trajectory.load(found.save(tmp_path / "theory.npz"))
    np.testing.assert_array_equal(back.loss, found.loss)
    swept = odescale.sweep(system, 200.0, {"learning_rate": [0.005, 0.01]})
    np.testing.assert_allclose(swept.loss[1], found.loss, rtol=1e-5)
    assert odescale.find_transition(system, 200.0).reason
    run = odescale.train(system, 200.0, seeds=32, records=9, progress=False)
    compared = odescale.compare(system, run)
    assert compared.verdict.status == "agrees", str(compared)
    odescale.plot(compared)
    covered = odescale.coverage(system)
    assert covered.inside and set(covered.numbers) == {"step", "spectrum"}
    other: Any = spectral(
        modes=200, spectrum_exponent=0.5, risk_exponent=0.5, optimizer="adam", learning_rate=0.01, basis="rotated"
    )
    with pytest.raises(InputError, match="basis"):
        odescale.compare(other, run)
    words = ["--set", "optimizer=adam", "--set", "modes=64", "--t1", "600", "--json", "--no-cache"]
    assert main(["solve", "spectral", *words]) == 0
    assert "floor" in capsys.readouterr().out
