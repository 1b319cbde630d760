"""The risk law R = sum_i A_i x_i^-alpha_i + D exp(-lam t) and what it costs, C = c prod_i x_i^q_i t^q_t.

Sizes x_i are numbers of anything (width, data, depth); t is the time of the exponential in its own unit: with lam in 1/steps
one unit of t is one SGD step. The exponent of the frontier is 1/S with S = sum_i q_i/alpha_i, always computed, never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.errors import InputError, require_number
from odescale.generated import frontier as formulas
from odescale.precision import require_x64

TIME = "time"


class RiskLaw(eqx.Module):
    r"""R(x, t) = sum_k A_k z_k^-alpha_k + D exp(-lam t),  C(x, t) = c prod_i x_i^q_i t^q_t;  z_k is a size or the time.

    Build it with `risk_law`; `tie` gives laws in which one variable carries several terms. R is the excess risk: what no
    size and no time removes is not in it. Leaves are arrays, so that a sweep over them compiles once.

    - `names` (n): sizes. `amplitudes` A, `exponents` alpha (k,): one per term, all > 0; `terms` (k): names of the terms,
      `variable` (k): index into `names`, n meaning the time.
    - `costs` q (n,) > 0, `floors` x_0 (n,) >= 0, 0 meaning none.
    - `time_cost` q_t >= 0, `time_floor` >= 0 (power-law time only), `decay` D >= 0 and `rate` lam > 0 (per unit of t); D = 0: no
      exponential.
    - `unit` c > 0, FLOP (or whatever C counts) at x = t = 1.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    terms: tuple[str, ...] = eqx.field(static=True)
    variable: tuple[int, ...] = eqx.field(static=True)
    amplitudes: Float[Array, " k"]
    exponents: Float[Array, " k"]
    costs: Float[Array, " n"]
    floors: Float[Array, " n"]
    time_cost: Float[Array, ""]
    time_floor: Float[Array, ""]
    decay: Float[Array, ""]
    rate: Float[Array, ""]
    unit: Float[Array, ""]
    exponential: bool = eqx.field(static=True)

    def __check_init__(self) -> None:
        if len(set(self.names)) != len(self.names) or TIME in self.names:
            raise InputError("names", expected=f"distinct names other than {TIME!r}", got=self.names, remedy="rename")
        k, n = len(self.terms), len(self.names)
        shapes = {"amplitudes": k, "exponents": k, "costs": n, "floors": n}
        for name, size in shapes.items():
            if jnp.shape(getattr(self, name)) != (size,):
                raise InputError(name, expected=f"shape ({size},)", got=jnp.shape(getattr(self, name)),
                                 remedy="one value per size")  # fmt: skip
        if set(range(n)) - set(self.variable):
            idle = self.names[min(set(range(n)) - set(self.variable))]
            raise InputError("terms", expected="a term for every size", got=f"none for {idle}", remedy="leave it out")

    @property
    def simple(self) -> bool:
        """Every variable carries one term only: the frontier has a closed form. Ties may end that."""
        counts = np.bincount(np.asarray(self.variable, int), minlength=len(self.names) + 1)
        return bool(np.all(counts[:-1] == 1) and counts[-1] <= (0 if self.exponential else 1))

    @property
    def time_kind(self) -> str:
        """What the time does: "exponential", "power", "both" (data tied to the time, for example) or "none"."""
        power = len(self.names) in self.variable
        if self.exponential:
            return "both" if power else "exponential"
        return "power" if power else "none"

    @property
    def S(self) -> Float[Array, ""]:
        """sum over variables of cost/exponent, the slowest term of each; an exponential alone counts nothing."""
        total = jnp.zeros(())
        for place, cost in enumerate([*self.costs, self.time_cost]):
            powers = [self.exponents[k] for k, v in enumerate(self.variable) if v == place]
            if powers:
                total = total + cost / jnp.min(jnp.stack(powers))
        return total

    def risk(
        self, sizes: Real[ArrayLike, "... n"] | Sequence[float], t: Real[ArrayLike, "..."] = np.inf
    ) -> Float[Array, "..."]:
        """R at `sizes` (last axis in the order of `names`) and time `t`; infinite values drop their terms."""
        values = self._variables(sizes, t)
        powers = self.amplitudes * values[..., jnp.asarray(self.variable, int)] ** -self.exponents
        total = jnp.sum(powers, axis=-1)
        if self.exponential:
            total = total + self.decay * jnp.exp(-self.rate * values[..., -1])
        return total

    def compute(
        self, sizes: Real[ArrayLike, "... n"] | Sequence[float], t: Real[ArrayLike, "..."] = 1.0
    ) -> Float[Array, "..."]:
        """C at `sizes` (last axis in the order of `names`) and time `t`, in units of `unit`."""
        return self.unit * jnp.exp(jnp.sum(self._all_costs * jnp.log(self._variables(sizes, t)), axis=-1))

    @property
    def _all_costs(self) -> Float[Array, " variables"]:
        return jnp.append(self.costs, self.time_cost)

    def _variables(
        self, sizes: Real[ArrayLike, "... n"] | Sequence[float], t: Real[ArrayLike, "..."]
    ) -> Float[Array, "... variables"]:
        x, time = jnp.asarray(sizes, float), jnp.asarray(t, float)
        if x.ndim == 0 or x.shape[-1] != len(self.names):
            raise InputError("sizes", expected=f"a last axis {self.names}", got=x.shape, remedy="one entry per size")
        shape = jnp.broadcast_shapes(x.shape[:-1], time.shape)
        x, time = jnp.broadcast_to(x, (*shape, x.shape[-1])), jnp.broadcast_to(time, shape)
        return jnp.concatenate([x, time[..., None]], axis=-1)

    def tie(self, name: str, to: str, *, factor: float = 1.0, power: float = 1.0) -> RiskLaw:
        """x_name = factor * z^power with z another size or the time: data = batch * time, width tied to depth.

            A x^-alpha -> A factor^-alpha z^(-alpha power),  q_z -> q_z + power q_x,  c -> c factor^q_x,
            z_0 -> max(z_0, (x_0/factor)^(1/power))

        **Arguments**: `name` of a size; `to`: another size, or "time"; `factor`, `power` > 0 (a batch: samples per unit of t).
        **Returns** the law without `name`. **Raises** `InputError`; also for a floor that would become one of an exponential time.
        """
        if name not in self.names:
            raise InputError("name", expected=f"one of {self.names}", got=name, remedy="pick a size")
        if to == name or (to != TIME and to not in self.names):
            raise InputError("to", expected=f"another size, or {TIME!r}", got=to, remedy=f"sizes: {self.names}")
        for label, value in (("factor", factor), ("power", power)):
            _positive(label, value)
        old = self.names.index(name)
        names = tuple(n for n in self.names if n != name)
        new = len(names) if to == TIME else names.index(to)

        def moved(place: int) -> int:
            return new if place == old else place - (place > old)

        tied = jnp.asarray([v == old for v in self.variable])
        costs = [*jnp.delete(self.costs, old), self.time_cost]
        floors = [*jnp.delete(self.floors, old), self.time_floor]
        costs[new] = costs[new] + power * self.costs[old]
        floors[new] = jnp.maximum(floors[new], (self.floors[old] / factor) ** (1 / power))
        if to == TIME and self.exponential and float(self.floors[old]) > 0:
            raise InputError("floors", expected=f"no floor of {name!r} when it is tied to an exponential time",
                             got=float(self.floors[old]), remedy="drop the floor")  # fmt: skip
        return RiskLaw(
            names, self.terms, tuple(moved(v) for v in self.variable),
            jnp.where(tied, self.amplitudes * factor**-self.exponents, self.amplitudes),
            jnp.where(tied, self.exponents * power, self.exponents),
            jnp.asarray(costs[:-1]), jnp.asarray(floors[:-1]), costs[-1], floors[-1], self.decay, self.rate,
            self.unit * factor ** self.costs[old], self.exponential,
        )  # fmt: skip

    def __str__(self) -> str:
        where = (*self.names, "t")
        parts = [f"{float(a):.4g} {where[v]}^-{float(e):.4g}"
                 for a, e, v in zip(self.amplitudes, self.exponents, self.variable, strict=True)]  # fmt: skip
        if self.exponential:
            parts.append(f"{float(self.decay):.4g} exp(-{float(self.rate):.4g} t)")
        costs = [f"{n}^{float(q):.4g}" for n, q in zip(where, self._all_costs, strict=True) if float(q) > 0]
        return f"R = {' + '.join(parts)}; C = {float(self.unit):.4g} {' '.join(costs)}; S = {float(self.S):.6g}"


def risk_law(
    amplitudes: Sequence[float] | Real[ArrayLike, " n"],
    exponents: Sequence[float] | Real[ArrayLike, " n"],
    costs: Sequence[float] | Real[ArrayLike, " n"],
    *,
    names: Sequence[str] | None = None,
    floors: Sequence[float] | Real[ArrayLike, " n"] | None = None,
    decay: float = 0.0,
    rate: float = 0.0,
    time_amplitude: float = 0.0,
    time_exponent: float = 0.0,
    time_cost: float = 0.0,
    time_floor: float = 0.0,
    unit: float = 1.0,
) -> RiskLaw:
    r"""R = sum_i A_i x_i^-alpha_i + (D exp(-lam t) or A_t t^-beta),  C = c prod_i x_i^q_i t^q_t.

    **Arguments**

    - `amplitudes` A, `exponents` alpha, `costs` q: one per size, > 0. `names`: default width, data, x3, ...
    - `floors`: smallest sizes x_0 (a minimum width, a minimum data set); 0 or None: no floor.
    - `decay` D and `rate` lam > 0 (per unit of t): exponential time; or `time_amplitude` A_t and `time_exponent` beta > 0: a power
      law in t, with `time_floor`; neither: t does not enter. `time_cost` q_t > 0 with either. `unit` c.

    **Returns** `RiskLaw`. **Raises** `InputError` for values outside these domains, `PrecisionError` without 64-bit numbers.
    **Good values**: `risk_law((1, 1), (.5, .5), (2, 1), decay=50, rate=.8, time_cost=1, floors=(100, 1000))`.
    **Source**: derivation `frontier`; Yang, arXiv 2512.22088.
    """
    require_x64("risk_law")
    rows = {}
    for label, values in (("amplitudes", amplitudes), ("exponents", exponents), ("costs", costs)):
        rows[label] = _row(label, values)
    n = rows["amplitudes"].size
    for label, row in rows.items():
        if row.size != n:
            raise InputError(label, expected=f"{n} values, as many as amplitudes", got=row.size, remedy="one per size")
        if not (row > 0).all():
            raise InputError(label, expected="positive finite numbers", got=row.tolist(), remedy="leave a size out")
    least = np.zeros(n) if floors is None else _row("floors", floors)
    if least.size != n or (least < 0).any():
        raise InputError("floors", expected=f"{n} numbers >= 0", got=least.tolist(), remedy="0 means no floor")
    exponential, power = decay != 0 or rate != 0, time_amplitude != 0 or time_exponent != 0
    if exponential and power:
        raise InputError("time_amplitude", expected="0 beside an exponential decay", got=time_amplitude,
                         remedy="tie a size to the time for a law with both")  # fmt: skip
    required = {"decay": decay, "rate": rate, "time_cost": time_cost} if exponential else {}
    if power:
        required = {"time_amplitude": time_amplitude, "time_exponent": time_exponent, "time_cost": time_cost}
    for label, value in {**required, "unit": unit}.items():
        _positive(label, value)
    if not (exponential or power) and time_cost != 0:
        raise InputError("time_cost", expected="0 where the risk does not depend on t", got=time_cost,
                         remedy="give decay and rate, or time_amplitude and time_exponent")  # fmt: skip
    if not (np.isfinite(time_floor) and time_floor >= 0) or (time_floor > 0 and not power):
        raise InputError("time_floor", expected="a number >= 0, and 0 unless the time is a power law", got=time_floor,
                         remedy="drop it")  # fmt: skip
    defaults = ("width", "data", *(f"x{i}" for i in range(3, n + 1)))[:n]
    chosen = tuple(defaults if names is None else names)
    if len(chosen) != n:
        raise InputError("names", expected=f"{n} names", got=chosen, remedy="one per size")
    amplitudes_, exponents_ = rows["amplitudes"], rows["exponents"]
    terms, variable = chosen, tuple(range(n))
    if power:
        amplitudes_, exponents_ = np.append(amplitudes_, time_amplitude), np.append(exponents_, time_exponent)
        terms, variable = (*terms, TIME), (*variable, n)
    arrays = [jnp.asarray(v, float) for v in
              (amplitudes_, exponents_, rows["costs"], least, time_cost, time_floor, decay, rate, unit)]  # fmt: skip
    return RiskLaw(chosen, terms, variable, *arrays, exponential=exponential)


def yang_v1(*, amplitudes: tuple[float, float] = (1.0, 1.0), unit: float = 1.0) -> RiskLaw:
    """R = A_m m^-1/2 + A_n n^-1/2,  C = c m^2 n: S = 2/(1/2) + 1/(1/2) = 6, the C^-1/6 of version 1 of arXiv 2512.22088.

    m: width, n: data. `amplitudes` A and `unit` c set the scale, not the exponent.
    """
    return risk_law(amplitudes, (0.5, 0.5), (2.0, 1.0), unit=unit)


def yang_v3(*, amplitudes: tuple[float, float] = (1.0, 1.0), time_amplitude: float = 1.0, unit: float = 1.0) -> RiskLaw:
    """R = A_m m^-1/2 + A_n n^-1/2 + A_t t^-1,  C = c m^2 n t: S = 4 + 2 + 1 = 7, the C^-1/7 of version 3 of arXiv 2512.22088.

    m: width, n: data, t: time in units of its own power law. Amplitudes and `unit` c set the scale, not the exponent.
    """
    return risk_law(
        amplitudes, (0.5, 0.5), (2.0, 1.0), time_amplitude=time_amplitude, time_exponent=1.0, time_cost=1.0, unit=unit
    )


class IsolatedLaw(eqx.Module):
    """R of one variable with all others at infinity: sum_k A_k z^-alpha_k, for the time also D exp(-lam t).

    `name` of the variable, `amplitudes`, `exponents` (k,), `decay`, `rate` (0 without exponential). Call it with values of z.
    """

    name: str = eqx.field(static=True)
    amplitudes: Float[Array, " k"]
    exponents: Float[Array, " k"]
    decay: Float[Array, ""]
    rate: Float[Array, ""]

    def __call__(self, value: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        z = jnp.asarray(value, float)
        powers = jnp.sum(self.amplitudes * z[..., None] ** -self.exponents, axis=-1)
        return powers + self.decay * jnp.exp(-self.rate * z)

    def local_exponent(self, value: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """-dlog R/dlog z: alpha for one power, lam t for an exponential."""
        z = jnp.asarray(value, float)
        powers = jnp.sum(self.exponents * self.amplitudes * z[..., None] ** -self.exponents, axis=-1)
        return (powers + self.rate * z * self.decay * jnp.exp(-self.rate * z)) / self(z)


def isolated_law(law: RiskLaw, name: str) -> IsolatedLaw:
    """The law of `name` (a size, or "time") alone, the other variables at infinity. **Raises** `InputError`."""
    place = _place(law, name)
    mine = np.array([k for k, v in enumerate(law.variable) if v == place], int)
    timed = name == TIME and law.exponential
    zero = jnp.zeros(())
    return IsolatedLaw(
        name, law.amplitudes[mine], law.exponents[mine], law.decay if timed else zero, law.rate if timed else zero
    )


def joint_surface(law: RiskLaw, **values: Real[ArrayLike, " _"]) -> Float[Array, "..."]:
    """R over the grid of the variables given, the others at infinity; axes in the order of the arguments.

    `joint_surface(law, width=w (m,), time=t (p,))` is (m, p). **Raises** `InputError` for an unknown variable or a value <= 0.
    """
    if not values:
        raise InputError("values", expected="at least one variable", got="none", remedy="joint_surface(law, width=...)")
    rows = {}
    for name, given in values.items():
        _place(law, name)
        rows[name] = _row(name, given)
        if not (rows[name] > 0).all():
            raise InputError(name, expected="values > 0", got=rows[name].min(), remedy="sizes and times are positive")
    grids = dict(zip(rows, np.meshgrid(*rows.values(), indexing="ij"), strict=True))
    shape = tuple(row.size for row in rows.values())
    missing = np.full(shape, np.inf)
    sizes = [grids.get(name, missing) for name in law.names]
    x = np.stack(sizes, axis=-1) if sizes else np.zeros((*shape, 0))
    return law.risk(x, grids.get(TIME, missing))


def release_multipliers(law: RiskLaw) -> Float[Array, " n"]:
    """mu_i = alpha_i A_i x_i0^-alpha_i/q_i at which size i leaves its floor (inf without one); the law must be `simple`."""
    k = np.array([law.variable.index(i) for i in range(len(law.names))], int)
    return formulas.release_multiplier(law.floors, law.amplitudes[k], law.exponents[k], law.costs)


def _place(law: RiskLaw, name: str) -> int:
    known = (*law.names, TIME) if law.time_kind != "none" else law.names
    if name not in known:
        raise InputError("name", expected=f"one of {', '.join(known)}", got=name, remedy="pick a variable of the law")
    return len(law.names) if name == TIME else law.names.index(name)


def _row(label: str, values: Any) -> Float[np.ndarray, " n"]:
    row = np.atleast_1d(np.asarray(values, float))
    if row.ndim != 1 or not np.isfinite(row).all():
        raise InputError(label, expected="finite numbers, one per size", got=values, remedy="a flat sequence")
    return row


def _positive(label: str, value: Any) -> None:
    require_number(label, value, open_=True)
