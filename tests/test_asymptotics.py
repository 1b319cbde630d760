"""Dominant balance: textbook answers, conditions that come out, numbers from integration, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import sympy
from scipy.integrate import solve_ivp
from sympy import Rational, S

from odescale import InputError
from odescale.symbolic import dominant_balances, next_order
from odescale.symbolic.inequalities import Inequality, implied, informative, possible

t, x, y, z, a, b, c, g, h = sympy.symbols("t x y z a b c g h", positive=True)


def test_cube_root() -> None:
    (balance,) = dominant_balances({x: c / x**2}, t)
    assert balance.exponents == {x: Rational(1, 3)}
    assert sympy.simplify(balance.prefactors[x] ** 3 - 3 * c) == 0
    assert balance.conditions == () and balance.slaved == () and balance.free == ()
    assert balance.exponent(a / x) == -Rational(1, 3)
    assert sympy.simplify(balance.power_law(a / x) - a * (3 * c * t) ** -Rational(1, 3)) == 0


def test_annihilation_of_two_species() -> None:
    """A + B -> 0 at equal numbers: both 1/(k t)."""
    (balance,) = dominant_balances({x: -c * x * y, y: -c * x * y}, t)
    assert balance.exponents == {x: -1, y: -1} and set(balance.prefactors.values()) == {1 / c}


def test_thomas_fermi() -> None:
    """Sommerfeld's 144/t^3 of y'' = y^(3/2)/sqrt t."""
    (balance,) = dominant_balances({y: -z, z: -(y ** Rational(3, 2)) / sympy.sqrt(t)}, t)
    assert balance.exponents == {y: -3, z: -4} and balance.prefactors == {y: 144, z: 432}


def test_slaved_unknown_and_its_next_order() -> None:
    """z' = t - z^2 follows sqrt t - 1/(4 t) (Airy); y' = y^2 - t is repelled from sqrt t."""
    (balance,) = dominant_balances({z: t - z**2}, t)
    assert balance.exponents == {z: Rational(1, 2)} and balance.prefactors == {z: 1} and balance.slaved == (z,)
    assert balance.discarded[z][0].gap == Rational(3, 2)
    assert next_order({z: t - z**2}, balance) == ({z: -Rational(1, 4)}, Rational(3, 2))
    with pytest.raises(InputError, match="no consistent balance") as error:
        dominant_balances({y: y**2 - t}, t)
    assert "repelled" in str(error.value) or "repelled" in error.value.remedy


def test_finite_time_blow_up_has_no_power_law() -> None:
    with pytest.raises(InputError, match="no consistent balance"):
        dominant_balances({y: y**2}, t)
    with pytest.raises(InputError, match="is not smaller"):
        dominant_balances({y: a * y**2 + b}, t)


def test_three_terms_balance() -> None:
    """y' = a/t^2 - b y^2: C/t with b C^2 - C = a."""
    (balance,) = dominant_balances({y: a / t**2 - b * y**2}, t)
    C = balance.prefactors[y]
    assert balance.exponents == {y: -1} and sympy.simplify(b * C**2 - C - a) == 0 and len(balance.dominant[y]) == 3


def test_conditions_on_the_schedule_come_out() -> None:
    """x' = t^-g/x^2 with a slaved y: y follows only for g < 1; beyond, all stands still."""
    flow = {x: t**-g / x**2, y: -(t**-g) * y / x + t ** (-2 * g) / x}
    frozen, follows = sorted(dominant_balances(flow, t), key=lambda b: len(b.slaved))
    assert follows.exponents == {x: Rational(1, 3) - g / 3, y: -g} and follows.conditions == (g < 1,)
    assert follows.slaved == (y,) and follows.discarded[y][0].gap == Rational(2, 3) - 2 * g / 3
    assert frozen.free == (x, y) and frozen.conditions == (g > 1,)
    assert dominant_balances(flow, t, assume=[g >= 1]) == (
        *(b for b in dominant_balances(flow, t, assume=[g >= 1]) if b.free),
    )
    assert len(dominant_balances(flow, t, assume=[g < Rational(1, 2)])) == 1
    with pytest.raises(InputError, match="no consistent balance"):
        dominant_balances(flow, t, assume=[g > 1], growth={y: "vanishing"})


def test_terms_that_scale_as_the_derivative() -> None:
    """x' = c/x^2 + h x/t: exponent 1/3 for h < 1/3 with its prefactor, h with the start's prefactor beyond."""
    flow = {x: c / x**2 + h * x / t}
    driven, own = sorted(dominant_balances(flow, t), key=lambda b: len(b.free), reverse=True)
    assert own.exponents == {x: Rational(1, 3)} and own.conditions == (h < Rational(1, 3),)
    assert sympy.simplify(own.prefactors[x] ** 3 * (1 - 3 * h) - 3 * c) == 0
    assert driven.exponents == {x: h} and driven.free == (x,) and driven.conditions == (h > Rational(1, 3),)


def test_algebraic_unknown_and_functions_of_constants() -> None:
    F = sympy.Function("F", positive=True)
    flow = {x: a / (x**2 * sympy.sqrt(y)), y: b / x + c / x**4 - y}
    (balance,) = dominant_balances(flow, t, algebraic=(y,))
    assert balance.exponents == {x: Rational(2, 5), y: -Rational(2, 5)}
    assert balance.discarded[y][0].term == c / x**4 and balance.discarded[y][0].gap == Rational(6, 5)
    (implicit,) = dominant_balances({x: F(z) / x**2, z: -a * z / x + b * F(z) / x}, t)
    C = implicit.constants[z]
    assert implicit.exponents == {x: Rational(1, 3), z: 0} and implicit.prefactors[z] == b * F(C) / a
    with pytest.raises(InputError, match="is no constant"):
        dominant_balances({x: F(x) / x**2}, t)


@pytest.mark.parametrize("seed", range(6))
def test_single_power_against_the_exact_solution(seed: int) -> None:
    """x' = a t^p x^q, separable: x^(1-q)/(1-q) = a t^(p+1)/(p+1)."""
    rng = np.random.default_rng(seed)
    p, q = Rational(int(rng.integers(-3, 8)), 4), Rational(int(rng.integers(-8, 3)), 4)
    (balance,) = dominant_balances({x: a * t**p * x**q}, t)
    theta = (p + 1) / (1 - q)
    assert balance.exponents[x] == theta
    assert sympy.simplify(balance.prefactors[x] ** (1 - q) - (1 - q) * a / (p + 1)) == 0


def test_against_integration() -> None:
    """Prefactors, exponents and the next order of two coupled unknowns at t = 1e9, by scipy."""
    flow = {x: 2 / (x**2 * y) + 1 / x**3, y: 3 * t ** -Rational(1, 2) - y**2 / x}
    (balance,) = dominant_balances(flow, t)
    shift, gamma = next_order(flow, balance)
    right = sympy.lambdify((t, x, y), list(flow.values()))
    ends = np.log([1.0, 1e9])
    done = solve_ivp(
        lambda u, s: np.exp(u) * np.array(right(np.exp(u), *s)),
        ends,
        [1.0, 1.0],
        method="LSODA",
        rtol=1e-10,
        atol=1e-14,
    )
    assert done.success and balance.slaved == (y,)
    for unknown, value in zip((x, y), done.y[:, -1], strict=True):
        leading = float(balance.power_law(unknown).subs(t, 1e9))
        first = leading * (1 + float(shift[unknown]) * 1e9 ** -float(gamma))
        assert abs(value / leading - 1) < 0.02
        assert abs(value / first - 1) < 0.05 * abs(value / leading - 1)


def test_quantities_of_the_solution() -> None:
    (balance,) = dominant_balances({x: c / x**2}, t)
    assert balance.leading(x + t) == (1, 1)
    assert balance.exponent(x**2 + a * t**2 / x**4) == Rational(2, 3)
    assert sympy.simplify(balance.leading(x - x / 2)[0] - balance.prefactors[x] / 2) == 0
    (free,) = [b for b in dominant_balances({x: t**-g}, t) if not b.free]
    with pytest.raises(InputError, match="largest"):
        free.exponent(x + t ** Rational(1, 2))
    with pytest.raises(InputError, match="exp"):
        free.exponent(sympy.exp(x))


def test_refusals_name_the_culprit() -> None:
    with pytest.raises(InputError, match=r"equation of x: .*exp\(x\)"):
        dominant_balances({x: sympy.exp(x)}, t)
    with pytest.raises(InputError, match=r"sin\(t\)"):
        dominant_balances({x: sympy.sin(t) / x}, t)
    with pytest.raises(InputError, match="growth"):
        dominant_balances({x: c / x}, t, growth={y: "vanishing"})
    with pytest.raises(InputError, match="assume"):
        dominant_balances({x: c / x}, t, assume=[sympy.Eq(g, 1)])
    with pytest.raises(InputError, match="time not among them"):
        dominant_balances({t: c / t}, t)
    (exact,) = dominant_balances({x: c / x}, t)
    with pytest.raises(InputError, match="exact"):
        next_order({x: c / x}, exact)
    resonant = {x: 1 / x**2 + 1 / (t * x**2)}
    (balance,) = dominant_balances(resonant, t)
    with pytest.raises(InputError, match="logarithm"):  # a relative 1/t is the shift of t itself
        next_order(resonant, balance)


def test_inequalities() -> None:
    between = [Inequality(g), Inequality(1 - g)]
    assert possible(between) and not possible([*between, Inequality(g - 1, False)])
    assert possible([Inequality(g, False), Inequality(-g, False)]) and not possible(
        [Inequality(g), Inequality(-g, False)]
    )
    assert implied(Inequality(2 - g), between) and not implied(Inequality(Rational(1, 2) - g), between)
    kept = informative(
        [Inequality(2 - g), Inequality(1 - g), Inequality(h - g), Inequality(2 * h - 2 * g)], [Inequality(g)]
    )
    assert {str(i.relational()) for i in kept} == {"g < 1", "g < h"}
    assert not possible([Inequality(h - g), Inequality(g - 2), Inequality(1 - h)])
    assert Inequality(S(0)).linear and not possible([Inequality(S(0))]) and possible([Inequality(S(0), False)])
