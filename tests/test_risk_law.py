"""The risk law: values, costs, ties, isolated laws, presets; 1/S is computed from the isolated laws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odescale import InputError, PrecisionError
from odescale.analysis.frontier.compute import local_exponent
from odescale.analysis.frontier.risk_law import release_multipliers
from odescale.frontier import RiskLaw, compute_frontier, isolated_law, joint_surface, risk_law, yang_v1, yang_v3


def example(**changes) -> RiskLaw:
    given = {"decay": 50.0, "rate": 0.8, "time_cost": 1.0, "floors": (100.0, 1000.0), **changes}
    return risk_law((1.0, 1.0), (0.5, 0.5), (2.0, 1.0), **given)


def test_risk_and_compute_are_the_stated_formulas():
    law = risk_law((1.3, 0.7), (0.4, 0.6), (2.0, 1.0), decay=5.0, rate=0.3, time_cost=1.5, unit=6.0)
    m, n, t = 30.0, 400.0, 7.0
    risk = 1.3 * m**-0.4 + 0.7 * n**-0.6 + 5 * np.exp(-0.3 * t)
    np.testing.assert_allclose(law.risk([m, n], t), risk, rtol=1e-15)
    np.testing.assert_allclose(law.compute([m, n], t), 6 * m**2 * n * t**1.5, rtol=1e-13)
    rows = law.risk(np.array([[m, n], [np.inf, n], [m, np.inf]]), np.array([t, np.inf, np.inf]))
    np.testing.assert_allclose(rows, [risk, 0.7 * n**-0.6, 1.3 * m**-0.4], rtol=1e-15)
    power = risk_law((2.0,), (0.5,), (1.0,), time_amplitude=3.0, time_exponent=0.7, time_cost=1.0)
    np.testing.assert_allclose(power.risk([9.0], 4.0), 2 / 3 + 3 * 4**-0.7, rtol=1e-15)
    assert power.time_kind == "power" and law.time_kind == "exponential" and yang_v1().time_kind == "none"


@pytest.mark.parametrize("preset, denominator", [(yang_v1, 6), (yang_v3, 7)])
def test_presets_are_one_over_S(preset, denominator):
    law = preset()
    shares = [float(q / isolated_law(law, name).exponents[0]) for name, q in zip(law.names, law.costs, strict=True)]
    if law.time_kind == "power":
        shares.append(float(law.time_cost / isolated_law(law, "time").exponents[0]))
    assert sum(shares) == denominator == float(law.S)
    # The exponent comes out of the risk on the frontier, at any amplitude.
    for scaled in (law, preset(amplitudes=(30.0, 0.2), unit=1e3)):
        risk = compute_frontier(scaled, [1e9, 1e13]).risk
        assert -float(jnp.log(risk[1] / risk[0])) / np.log(1e4) == pytest.approx(1 / denominator, rel=1e-12)


def test_another_isolated_law_gives_another_exponent():
    law = risk_law((1.0, 1.0), (0.25, 0.5), (2.0, 1.0))
    assert float(law.S) == 10 and float(local_exponent(law, 1.0)) == pytest.approx(0.1)


def test_isolated_laws_are_the_risk_with_the_others_at_infinity():
    law = example()
    x = np.geomspace(10, 1e6, 7)
    inf = np.full(7, np.inf)
    np.testing.assert_allclose(isolated_law(law, "width")(x), law.risk(np.stack([x, inf], -1), np.inf), rtol=1e-15)
    np.testing.assert_allclose(isolated_law(law, "data")(x), law.risk(np.stack([inf, x], -1), np.inf), rtol=1e-15)
    t = np.linspace(0.1, 20, 7)
    time = isolated_law(law, "time")
    np.testing.assert_allclose(time(t), 50 * np.exp(-0.8 * t), rtol=1e-14)
    np.testing.assert_allclose(time.local_exponent(t), 0.8 * t, rtol=1e-14)
    both = isolated_law(example(floors=None).tie("data", "time", factor=32.0), "time")
    slope = -jax.vmap(jax.grad(lambda u: jnp.log(both(jnp.exp(u)))))(jnp.log(t))
    np.testing.assert_allclose(both.local_exponent(t), slope, rtol=1e-12)


def test_joint_surface():
    law = example()
    width, time = np.array([100.0, 200.0, 400.0]), np.array([1.0, 30.0])
    surface = joint_surface(law, width=width, time=time)
    assert surface.shape == (3, 2)
    np.testing.assert_allclose(surface, width[:, None] ** -0.5 + 50 * np.exp(-0.8 * time), rtol=1e-14)
    np.testing.assert_allclose(joint_surface(law, data=width), width**-0.5, rtol=1e-14)


@pytest.mark.parametrize("to, factor, power", [("time", 32.0, 1.0), ("depth", 64.0, 0.5)])
def test_a_tie_is_the_law_on_the_tied_line(to, factor, power):
    law = risk_law((1.0, 2.0, 0.4), (0.5, 0.8, 0.3), (2.0, 1.0, 1.5), names=("width", "depth", "data"),
                   decay=50.0, rate=0.1, time_cost=0.5, unit=3.0)  # fmt: skip
    tied = law.tie("width", to, factor=factor, power=power)
    assert tied.names == ("depth", "data") and not tied.simple
    for depth, data, t in ((5.0, 300.0, 7.0), (40.0, 1e4, 90.0)):
        width = factor * (t if to == "time" else depth) ** power
        full = np.array([width, depth, data])
        np.testing.assert_allclose(tied.risk(full[1:], t), law.risk(full, t), rtol=1e-13)
        np.testing.assert_allclose(tied.compute(full[1:], t), law.compute(full, t), rtol=1e-13)


def test_a_tie_moves_floors():
    law = risk_law((1.0, 1.0), (0.5, 0.5), (2.0, 1.0), names=("width", "depth"), floors=(6400.0, 10.0))
    assert float(law.tie("width", "depth", factor=64.0).floors[0]) == pytest.approx(100.0)
    assert float(law.tie("width", "depth", factor=6400.0).floors[0]) == pytest.approx(10.0)


def test_release_multipliers():
    np.testing.assert_allclose(release_multipliers(example()), [0.025, 0.5 * 1000**-0.5], rtol=1e-14)


@pytest.mark.parametrize(
    "changes, argument",
    [
        ({"decay": -1.0}, "decay"), ({"rate": 0.0}, "rate"), ({"time_cost": 0.0}, "time_cost"),
        ({"floors": (1.0,)}, "floors"), ({"floors": (-1.0, 1.0)}, "floors"), ({"unit": np.nan}, "unit"),
        ({"names": ("width", "width")}, "names"), ({"names": ("width", "time")}, "names"),
        ({"time_amplitude": 1.0}, "time_amplitude"), ({"time_floor": 3.0}, "time_floor"),
        ({"decay": 0.0, "rate": 0.0}, "time_cost"),
    ],
)  # fmt: skip
def test_bad_input_is_named(changes, argument):
    with pytest.raises(InputError) as caught:
        example(**changes)
    assert caught.value.argument == argument


def test_more_bad_input():
    for values in ((0.0, 1.0), (1.0,), (np.inf, 1.0)):
        with pytest.raises(InputError):
            risk_law((1.0, 1.0), values, (2.0, 1.0))
    law = example()
    for call in (lambda: isolated_law(law, "depth"), lambda: isolated_law(yang_v1(), "time"), lambda: joint_surface(law),
                 lambda: joint_surface(law, width=[0.0]), lambda: law.tie("width", "width"), lambda: law.tie("x", "data"),
                 lambda: law.tie("width", "data", factor=0.0), lambda: law.risk([1.0], 1.0)):  # fmt: skip
        with pytest.raises(InputError):
            call()
    with pytest.raises(InputError, match="floor"):
        law.tie("data", "time", factor=2.0)


def test_needs_float64():
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(PrecisionError, match="jax_enable_x64"):
            yang_v1()
    finally:
        jax.config.update("jax_enable_x64", True)
