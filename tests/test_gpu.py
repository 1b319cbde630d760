"""CPU and accelerator give the same numbers in float64; skips with its reason where there is no accelerator."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from engine_cases import two_layers

from odescale import aligned_overlaps, attention, integrate, logistic_pair, mean_field, sweep

pytestmark = pytest.mark.gpu


def accelerator():
    """The first device that is not a CPU, or a skip with the reason."""
    devices = [device for device in jax.devices() if device.platform != "cpu"]
    if not devices:
        pytest.skip(f"no accelerator: JAX {jax.__version__} sees {', '.join(str(d) for d in jax.devices())} only")
    return devices[0]


@pytest.mark.parametrize(
    ("build", "t1", "settings"),
    [
        (logistic_pair, 30.0, {}),
        (lambda: attention(depth=1, value="rows"), 20.0, {}),
        (lambda: attention(capacity=1.5, modes=1000), 1e3, {"points": 40}),
    ],
)
def test_solves_agree_to_1e_8(build, t1, settings):
    device = accelerator()
    results = []
    for place in (jax.devices("cpu")[0], device):
        with jax.default_device(place):
            results.append(integrate(build(), t1, **settings))
    host, other = results
    assert other.meta["solver"] == host.meta["solver"]
    np.testing.assert_allclose(other.loss, host.loss, rtol=1e-8)
    np.testing.assert_allclose(other.overlaps, host.overlaps, rtol=1e-8, atol=1e-10)


def test_sweeps_agree_to_1e_8():
    device = accelerator()
    results = []
    for place in (jax.devices("cpu")[0], device):
        with jax.default_device(place):
            results.append(sweep("logistic_pair", 20.0, {"learning_rate": np.linspace(0.05, 0.4, 16)}, points=50))
    np.testing.assert_allclose(results[1].loss, results[0].loss, rtol=1e-8)


def test_the_engine_agrees_to_1e_8():
    device = accelerator()
    results = []
    for place in (jax.devices("cpu")[0], device):
        with jax.default_device(place):
            problem = two_layers(3)
            start = aligned_overlaps(problem, alignment=0.5, common=0.3)
            system = mean_field(problem, initial_overlaps=start, nodes=2**12, learning_rate=0.1)
            results.append(integrate(system, 4.0, points=20, rtol=1e-8, solver="tsit5"))
    np.testing.assert_allclose(results[1].loss, results[0].loss, rtol=1e-8)
