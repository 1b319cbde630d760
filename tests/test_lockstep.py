"""The loop of a batch: every member takes the steps that diffrax takes for it alone, to the same states, codes and outputs."""

from __future__ import annotations

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odescale.solve.codes import Code
from odescale.solve.integrate import solve_arrays
from odescale.solve.lockstep import can_step, solve_together
from odescale.solve.step_control import patient
from odescale.systems.register import entry_of


def lanes(field, starts, times, method, rtol=1e-7, growth=jnp.inf, max_steps=500):
    """The same members by one loop, and one by one."""
    control = patient(diffrax.PIDController(rtol=rtol, atol=1e-4 * rtol), growth)
    numbers = jnp.arange(starts.shape[0], dtype=float)

    def of_all(t, y):
        return jax.vmap(field)(t, y, numbers)

    def alone(y, t, number):
        term = diffrax.ODETerm(lambda t, y, args: field(t, y, args))
        found = diffrax.diffeqsolve(
            term, method, t[0], t[-1], None, y, args=number, saveat=diffrax.SaveAt(ts=t), stepsize_controller=control,
            max_steps=max_steps, throw=False,
        )  # fmt: skip
        return found.ys, found.result, found.stats["num_accepted_steps"], found.stats["num_rejected_steps"]

    together = jax.jit(lambda: solve_together(of_all, starts, times, method, control, max_steps))()
    return together, jax.jit(lambda: jax.lax.map(lambda given: alone(*given), (starts, times, numbers)))()


def kicked(t, y, number):
    """A pendulum, faster from member to member, that is damped within a moment of t = 2: steps are rejected there."""
    late = 0.5 * (1 + jnp.tanh(40 * (t - 2)))
    pull = jnp.stack([y[1], -(1 + number) * jnp.sin(y[0]) - 3.0 * late * y[1]])
    return pull * (1 + number * late)


@pytest.mark.parametrize(
    "method",
    [diffrax.Tsit5(), diffrax.Bosh3(), pytest.param(diffrax.Dopri8(), marks=pytest.mark.slow)],
    ids=["tsit5", "bosh3", "dopri8"],
)
def test_every_member_takes_its_own_steps(method) -> None:
    assert can_step(method)
    starts = jnp.asarray([[1.0, 0.0], [0.3, 0.1], [2.0, -1.0]])
    # times of their own, as many: in log time every member has its own scale
    times = jnp.linspace(0.0, 5.0, 40) * jnp.asarray([1.0, 0.7, 1.1])[:, None]
    together, (states, result, accepted, rejected) = lanes(kicked, starts, times, method)
    assert together.accepted.tolist() == accepted.tolist() and len(set(accepted.tolist())) > 1
    assert together.rejected.tolist() == rejected.tolist() and max(rejected.tolist()) > 0
    np.testing.assert_allclose(together.states, states, rtol=1e-10, atol=1e-11)
    assert [str(r) for r in np.asarray(together.result._value)] == [str(r) for r in np.asarray(result._value)]


def test_members_that_fail_stop_alone_and_leave_the_others_be() -> None:
    def field(t, y, number):  # the first blows up at t = 1, the second asks for too many steps, the third is easy
        return jnp.where(number == 0, y**2, jnp.where(number == 1, jnp.cos(300 * t) * 30, -y))

    starts, times = jnp.ones((3, 1)), jnp.broadcast_to(jnp.linspace(0.0, 3.0, 7), (3, 7))
    together, (states, result, accepted, rejected) = lanes(field, starts, times, diffrax.Tsit5(), growth=100.0)
    np.testing.assert_array_equal(np.isfinite(together.states), np.isfinite(states))
    reached = np.isfinite(np.asarray(states))
    np.testing.assert_allclose(np.asarray(together.states)[reached], np.asarray(states)[reached], rtol=1e-10)
    assert reached[0].sum() < 7 and reached[1].sum() < 7 and reached[2].all()
    assert together.accepted.tolist() == accepted.tolist() and together.rejected.tolist() == rejected.tolist()
    np.testing.assert_array_equal(together.result._value, result._value)
    assert len(set(np.asarray(result._value).tolist())) == 3


def test_a_batch_of_systems_in_log_time_is_the_members_alone() -> None:
    base = entry_of("peaked").build(noise=0.0)
    times = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1.0, 50.0, 20)])

    def one(rate, together):
        system = eqx.tree_at(lambda s: s.learning_rate, base, rate)
        tolerances = jnp.asarray(1e-7), jnp.asarray(1e-11)
        return solve_arrays(
            system, system.initial_state(), times, *tolerances, "tsit5", 1000, exponents=False, together=together
        )

    rates = jnp.asarray([0.5, 1.0])
    found = jax.jit(jax.vmap(lambda rate: one(rate, True)))(rates)
    alone = jax.jit(jax.vmap(lambda rate: one(rate, False)))(rates)
    assert found["code"].tolist() == [Code.OK] * 2
    np.testing.assert_array_equal(found["stats"]["accepted"], alone["stats"]["accepted"])
    for name in ("state", "loss", "exponent", "index"):
        np.testing.assert_allclose(found[name], alone[name], rtol=1e-8, atol=1e-10)
