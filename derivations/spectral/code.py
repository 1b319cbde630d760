"""The generated functions of SGD on a spectrum, from the expressions of the derivation."""

from __future__ import annotations

import sympy

from derivations.spectral.notation import (
    AVERAGE,
    CROSS,
    KICK,
    MODE,
    MOMENTUM,
    RISK,
    SHRINK,
    SIZE,
    SPEED,
    SPREAD,
    SQUARE,
    HeavyBall,
    Stored,
)
from odescale.errors import InputError
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Output
from odescale.symbolic.scalar_writer import to_jax
from odescale.symbolic.sgd import batch, eta, lam

CODE = {
    lam: "lam", eta: "eta", batch: "batch", MOMENTUM: "momentum", RISK: "risk", MODE: "mode", CROSS: "cross",
    SPEED: "speed", SHRINK: "g", KICK: "per_batch", SIZE: "square", SQUARE: "square", AVERAGE: "mean", SPREAD: "variance",
}  # fmt: skip


def _code(expression: sympy.Expr) -> str:
    # 1/B, so that an infinite batch is allowed.
    return to_jax(sympy.expand(sympy.expand(expression).subs(batch, 1 / KICK)), CODE)


def write(
    shrink: sympy.Expr,
    force: sympy.Expr,
    rate: sympy.Expr,
    drive: sympy.Expr,
    mass: sympy.Expr,
    momentum: HeavyBall,
    data: Stored,
) -> tuple[Output, ...]:
    """`shrinkage`, `force`, `log_rate`, `kernel_mass`, `momentum_step`, `momentum_mass`, `stored_step`; e = lam rho per mode."""
    about = "`batch` = inf drops the noise. Scalars, or arrays that broadcast."
    per_batch = "per_batch = 1 / batch"
    series = " + ".join(["1"] + [f"g ** {n} / {n + 1}" if n > 1 else "g / 2" for n in range(1, 5)])
    ratio = sympy.simplify(drive / force)
    if sympy.simplify(ratio - rate / SHRINK) != 0:
        raise InputError("b", expected="c a/g", got=str(drive), remedy="check the log-rate form")
    # lam c: the force on e = lam rho, in the sum of lam^2 over the modes of a node.
    on_excess = sympy.expand(lam * force).subs(lam**2, SIZE)
    per_node = sympy.simplify(mass / lam**2)
    return (
        Output(
            "shrinkage",
            function_source(
                "shrinkage",
                ("lam: Array", "eta: Array", "batch: Array"),
                f"g = 1 - G of rho -> G rho + c P, one SGD step. {about}",
                [per_batch, f"return {_code(shrink)}"],
                "Array",
            ),
        ),
        Output(
            "force",
            function_source(
                "force",
                ("square: Array", "eta: Array", "batch: Array"),
                "c of e -> (1 - g) e + c P, e = lam rho the excess risk of a mode, `square` = lam^2 (a bin: the sum of lam^2).\n"
                f"{about}",
                [per_batch, f"return {_code(on_excess)}"],
                "Array",
            ),
        ),
        Output(
            "log_rate",
            function_source(
                "log_rate",
                ("g: Array",),
                "(a, a/g) of d e/dr = -a e + (a/g) c P, r in SGD steps, from `shrinkage` 0 <= g < 1: exact where P is constant.",
                [
                    "small = g < 1e-3",
                    "safe = jnp.where(small, 0.5, jnp.minimum(g, 1 - 1e-16))",
                    f"ratio = jnp.where(small, {series}, -jnp.log1p(-safe) / safe)",
                    "return g * ratio, ratio",
                ],
                "tuple[Array, Array]",
            ),
        ),
        Output(
            "kernel_mass",
            function_source(
                "kernel_mass",
                ("lam: Array", "square: Array", "eta: Array", "batch: Array"),
                f"kappa_k, the integral of the noise kernel of a mode; stable where all g > 0 and the sum is < 1. {about}",
                [per_batch, f"return square * {to_jax(sympy.factor(sympy.simplify(per_node.subs(batch, 1 / KICK))), CODE)}"],
                "Array",
            ),
        ),
        Output(
            "momentum_step",
            function_source(
                "momentum_step",
                ("mode: Array", "cross: Array", "speed: Array", "risk: Array", "lam: Array", "eta: Array", "batch: Array",
                 "momentum: Array"),
                "(E d^2, E d v, E v^2) after v -> beta v - eta ghat, d -> d + v, d the error of a weight; `risk` = s^2 +\n"
                "sum lam E d^2. "
                f"{about}",
                [
                    per_batch,
                    f"new_mode = {_code(momentum.mode)}",
                    f"new_cross = {_code(momentum.cross)}",
                    f"new_speed = {_code(momentum.speed)}",
                    "return new_mode, new_cross, new_speed",
                ],
                "tuple[Array, Array, Array]",
            ),
        ),
        Output(
            "momentum_mass",
            function_source(
                "momentum_mass",
                ("lam: Array", "eta: Array", "batch: Array", "momentum: Array"),
                f"kappa_k of heavy-ball SGD: lam E d^2/P at its fixed point. {about}",
                [per_batch, f"return {to_jax(sympy.factor(sympy.simplify(momentum.mass.subs(batch, 1 / KICK))), CODE)}"],
                "Array",
            ),
        ),
        Output(
            "stored_step",
            function_source(
                "stored_step",
                ("mean: Array", "variance: Array", "square: Array", "lam: Array", "eta: Array", "batch: Array"),
                "Mean and variance of a mode's error after a step on stored samples; `square` = mean over samples of z^2 E r^2.\n"
                f"{about}",
                [per_batch, f"return {_code(data.mean)}, {_code(data.variance)}"],
                "tuple[Array, Array]",
            ),
        ),
    )  # fmt: skip
