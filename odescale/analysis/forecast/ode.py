"""The laws of `schedule_laws` as ODEs in SGD steps, for any learning rate eta(step), through diffrax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import gammaln

from odescale.analysis.forecast.loss_curve import LossCurve
from odescale.errors import InputError
from odescale.generated import schedule as formulas
from odescale.precision import require_x64

SPACING = 0.45
"""Of the mixture's rates in log c: the quadrature error is exp(-pi^2/SPACING), 3e-10; the cut below costs 5e-9."""


def mixture(speed: float, memory: float) -> tuple[Float[np.ndarray, " modes"], Float[np.ndarray, " modes"]]:
    """(c_i, w_i) with sum_i w_i exp(-c_i tau) = (1 + C tau)^-beta to 1e-8: noise modes with power-law weights up to the cut-off C.

    The trapezoidal rule in log c of int c^(beta-1) exp(-c/C) exp(-c tau) dc/(Gamma(beta) C^beta).
    """
    low = -24.0 / memory
    u = np.arange(low, np.log(36.0 + memory) + SPACING, SPACING)
    weights = SPACING * np.exp(memory * u - np.exp(u) - gammaln(memory))
    # What lies below the lowest node relaxes in no run: it is one more mode, at rest.
    weights[0] += 1.0 - weights.sum()
    return np.exp(u) * speed, weights


def solve_schedule(
    law: str,
    parameters: Mapping[str, float],
    rate: Callable[[Float[Array, ""]], Float[Array, ""]] | LossCurve,
    steps: Float[np.ndarray, " n"] | None = None,
    *,
    start_tau: float = 0.0,
    start_noise: float = 0.0,
    rtol: float = 1e-10,
    kinks: tuple[float, ...] = (),
) -> Float[Array, " n"]:
    """dtau/dr = eta(r), dn_i/dr = -eta c_i (n_i - B w_i eta), L = L0 + A tau^-alpha + sum_i n_i; r in SGD steps.

    **Arguments**

    - `law`: instant (no noise mode: n = B eta), relaxing (one mode, c = C), spectral (`mixture`). `parameters`: by name.
    - `rate`: eta(r), traceable; then `steps` (n,) increasing are the output times, the first one the start, with `start_tau` > 0
      and the noise `start_noise` there. Or a `LossCurve`: its schedule from its first grid point on, output at its points.
    - `kinks`: steps at which eta jumps or bends.

    **Returns** L at `steps`. Differentiable. **Raises** `InputError`.
    """
    require_x64("solve_schedule")
    if law not in ("instant", "relaxing", "spectral"):
        raise InputError("law", expected="instant, relaxing or spectral", got=law, remedy="the others are closed forms")
    eta: Any
    p = {name: jnp.asarray(value, float) for name, value in parameters.items()}
    if isinstance(rate, LossCurve):
        grid, values, tau = rate.grid
        edges, levels = jnp.asarray(grid), jnp.asarray(values)
        start_tau, start_noise = float(tau[0]), 0.0 if grid[0] == 0 else float(p["B"]) * float(values[0])
        times, jumps = np.concatenate([grid[:1], rate.step[rate.step > grid[0]]]), grid[1:-1]

        def logged(r: Float[Array, ""]) -> Float[Array, ""]:
            return levels[jnp.clip(jnp.searchsorted(edges, r), 1, levels.size - 1)]

        eta, drop = logged, times.size - rate.step.size
    elif steps is None:
        raise InputError("steps", expected="output steps with a callable rate", got=None, remedy="pass them")
    else:
        times, jumps, eta, drop = np.asarray(steps, float), np.asarray(kinks, float), rate, 0
    if not (np.diff(times) > 0).all() or times.size < 2:
        raise InputError("steps", expected="two or more increasing steps", got=times, remedy="sort them")
    speeds, weights = np.zeros(0), np.zeros(0)
    if law == "relaxing":
        speeds, weights = np.ones(1), np.ones(1)
    elif law == "spectral":
        speeds, weights = mixture(1.0, float(p["beta"]))
    c = jnp.asarray(speeds) * p.get("C", jnp.asarray(0.0))
    w = jnp.asarray(weights) * p["B"]

    def field(r: Any, y: Any, args: Any) -> Any:
        now = eta(r)
        return {"tau": now, "noise": now * formulas.noise_slope(y["noise"], now, c, w)}

    start = {"tau": jnp.asarray(start_tau, float), "noise": jnp.asarray(start_noise * weights, float)}
    control = diffrax.PIDController(rtol=rtol, atol=1e-3 * rtol, dtmax=None)
    if jumps.size:
        control = diffrax.ClipStepSizeController(control, jump_ts=jnp.asarray(jumps))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field), diffrax.Kvaerno5() if law == "spectral" else diffrax.Tsit5(),
        float(times[0]), float(times[-1]), None, start,
        saveat=diffrax.SaveAt(ts=jnp.asarray(times)), stepsize_controller=control, max_steps=200_000,
    )  # fmt: skip
    assert solution.ys is not None
    tau, noise = solution.ys["tau"][drop:], jnp.sum(solution.ys["noise"], axis=1)[drop:]
    if law == "instant":
        noise = p["B"] * jax.vmap(eta)(jnp.asarray(times[drop:]))
    return p["L0"] + p["A"] * formulas.bias_power(tau, p["alpha"]) + noise
