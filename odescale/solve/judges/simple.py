r"""Sizes of what theories of one or two lines neglect.

peaked     rows    (K - 1)/d                       each centred row takes one direction out of d
           lag     g of an effective rate ~ t^-g   the spread lags behind its stationary value
           samples  D nu/(m B) at t1              one over the samples of the boundary layer behind a step of Muon
spectral   ode     |E_ODE/E_exact - 1|             what the ODE loses because a step is not small, largest up to t1
optimized  step    rate of the fastest mode per step, the larger of those at the start and at the floor of a constant rate
           spectrum  1/d_eff of the noise in the risk
kernel     flow    eta lambda_max/n                one step of descent on the fastest mode, which a flow takes as small
derived    rows    P/d
           step    eta lam_1 |G|/N                 change of the fastest mode in one step, at the start
           spectrum  1/d_eff
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from odescale.generated import kernel as kernel_formulas
from odescale.solve.integrate import integrate
from odescale.solve.spectral.step_error import step_error
from odescale.systems.derived import Derived, functions_of
from odescale.systems.kernel import Kernel
from odescale.systems.peaked import Peaked, falling_rate, samples_share
from odescale.systems.pruning import Pruning
from odescale.systems.spectral import Spectral
from odescale.systems.spectral_optimized import SpectralOptimized

HORIZON = {"peaked": 1e4, "spectral": 1000.0}
"""End times (units of t) of a judgement that is not told one."""


def of_peaked(system: Peaked, t1: float | None) -> dict[str, float]:
    """Adam has its moments at their stationary values, and no noise to lag; Muon's matrix is taken for its mean."""
    numbers = {"classes": float(system.classes - 1) / system.dimension}
    end = HORIZON["peaked"] if t1 is None else t1
    if samples_share(system, 1.0) > 0:
        found = integrate(system, ts=np.array([0.0, end]), exponents=False)
        return numbers | {"samples": samples_share(system, float(found.observables["overlap"][-1]))}
    power = falling_rate(system, end)
    return numbers if power is None else numbers | {"lag": power}


def of_spectral(system: Spectral, t1: float | None) -> dict[str, float]:
    """The learning rates that are unstable are refused before (`Spectral.check`)."""
    found = step_error(system, HORIZON["spectral"] if t1 is None else t1)
    return {} if found is None else {"ode": abs(found.error)}


def of_spectral_optimized(system: SpectralOptimized, t1: float | None) -> dict[str, float]:
    """Adam and signs raise the rates of all modes as the risk falls, down to the floor that they leave."""
    start = float(system.residual_noise + system.start.sum())
    risks = (start, min(start, float(system.residual_noise + system.noise_floor())))
    rates = [system.steady_rates(jnp.asarray(risk), system.learning_rate) for risk in risks]
    return {"step": max(float(rate.max()) for rate in rates), "spectrum": float(system.concentration())}


def of_kernel(system: Kernel, t1: float | None) -> dict[str, float]:
    """The drift of the kernel is measured by `kernel_regime`, which needs the network."""
    return {
        "flow": float(kernel_formulas.stability_ratio(system.eigenvalues[-1], system.learning_rate, system.samples))
    }


def of_derived(system: Derived, t1: float | None) -> dict[str, float]:
    """The closure gives |G| at the start; what its noise does to single runs is not in it."""
    lam, weights = np.asarray(system.eigenvalues), np.asarray(system.weights)
    G = np.asarray(functions_of(system.source)["closure"](system.couple(system.initial_state()), **system.constants)[0])
    fastest = float(np.linalg.norm(G[: system.students], 2))
    return {
        "rows": system.initial_overlaps.shape[-1] / (system.trace * float(weights.sum())),
        "step": float(system.learning_rate) * lam.max() * fastest / system.trace,
        "spectrum": float((weights * lam**2).sum()) / system.trace,
    }


def of_pruning(system: Pruning, t1: float | None) -> dict[str, float]:
    """One row, and the length of a step beside its own norm: the flow has no other small number."""
    return {"rows": 1 / system.dimension, "step": float(system.learning_rate) / system.dimension}
