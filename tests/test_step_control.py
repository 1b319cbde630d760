"""Integrations that cannot end well end soon, and those that can are left alone."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odescale.solve.step_control import patient

FIELDS = {
    "infinite at t = 1": lambda t, y: y**2,
    "nowhere finite": lambda t, y: jnp.nan * y,
    "a power law": lambda t, y: 2 / 3 * y / (t + 1),
    "an escape from a small start": lambda t, y: 20 * y,
    "a jump of the rate": lambda t, y: jnp.where(t < 10, -y, -1e-3 * y),
}


@eqx.filter_jit
def _solve(which, y0, t0, t1, rtol, growth):
    def field(t, y, args):
        return jax.lax.switch(which, list(FIELDS.values()), t - t0, y)

    controller = patient(diffrax.PIDController(rtol=rtol, atol=1e-12), growth)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field), diffrax.Tsit5(), t0, t1, None, y0, stepsize_controller=controller, max_steps=20_000, throw=False
    )  # fmt: skip


def solve(name, y0, t1, *, growth=100.0, rtol=1e-8, t0=0.0):
    return _solve(list(FIELDS).index(name), *map(jnp.asarray, (y0, t0, t0 + t1, rtol, growth)))


@pytest.mark.parametrize("t0", [0.0, -1e6])
def test_a_flow_that_reaches_infinity_is_left_early(t0):
    """dy/dt = y^2 is infinite at t = 1; without the limit on growth its step shrinks until it is rounding."""
    found = solve("infinite at t = 1", 1.0, 3.0, t0=t0)
    assert found.result == diffrax.RESULTS.event_occurred and int(found.stats["num_steps"]) < 100
    forbearing = solve("infinite at t = 1", 1.0, 3.0, t0=t0, growth=np.inf)
    assert forbearing.result == diffrax.RESULTS.dt_min_reached and int(forbearing.stats["num_steps"]) < 2000


def test_a_field_that_is_nowhere_finite_takes_forty_steps():
    found = solve("nowhere finite", 1.0, 3.0)
    assert found.result == diffrax.RESULTS.dt_min_reached and int(found.stats["num_steps"]) <= 41


@pytest.mark.parametrize(
    ("name", "y0", "t1", "end"),
    [
        ("a power law", 1.0, 1e6, 1.000001e6 ** (2 / 3)),  # a classifier's overlaps
        ("an escape from a small start", 1e-6, 0.9, 1e-6 * np.exp(18)),
        ("a jump of the rate", 1.0, 20.0, np.exp(-10.01)),
    ],
)
def test_what_only_grows_or_jumps_is_followed_to_the_end(name, y0, t1, end):
    found: Any = solve(name, y0, t1, rtol=1e-10)
    assert found.result == diffrax.RESULTS.successful
    np.testing.assert_allclose(found.ys[-1], end, rtol=1e-6)
