"""Momentum: the velocity becomes more rows (heavy ball with mu = 1 - gamma/N), or nothing but a larger learning rate.

u <- (1 - gamma/N) u + gradient,   W <- W - (eta/N) u - (w/N) W         mu -> 1 as N grows: rows W and U
u <- mu u + gradient,              W <- W - eta u                       mu fixed: plain SGD at eta/(1 - mu)
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy
from sympy import S

from odescale.errors import InputError
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Equation, Output, Step
from odescale.symbolic.scalar_writer import to_jax
from odescale.symbolic.sgd import MEAN, SECOND, batch, batch_average, decay, eta, trace

damping = sympy.Symbol("gamma", positive=True)
MU = sympy.Symbol("mu")
ROWS = {"W": sympy.symbols("W_i W_j"), "U": sympy.symbols("U_i U_j")}
"""Entries of two trained rows i, j in one eigenmode, and of their velocities."""
CODE = {eta: "eta", batch: "batch", decay: "weight_decay", damping: "damping"}


@dataclass(frozen=True)
class Blocks:
    """What moves rows of one kind: `rate[a, b]`, coefficient of row b in dA_a/dt; `gradient[a]`, of (lam G + H) A.

    `noise[a, b]`: coefficient of lam V in d<A_a A_b>/dt.
    """

    rate: dict[tuple[str, str], sympy.Expr]
    gradient: dict[str, sympy.Expr]
    noise: dict[tuple[str, str], sympy.Expr]


def heavy_ball_increments(
    noise: bool, weight_decay: bool
) -> tuple[dict[str, sympy.Expr], dict[tuple[str, str], sympy.Expr]]:
    """N E[Delta a_i] and N E[Delta(a_i b_j)], N to infinity, for a, b among weights W and velocities U."""
    sums = sympy.symbols("X_i X_j")
    w = decay if weight_decay else S.Zero
    after = {}
    for place in (0, 1):
        W, U, X = ROWS["W"][place], ROWS["U"][place], sums[place]
        velocity = (1 - damping / trace) * U + X / batch
        after["U", place] = velocity
        after["W", place] = W - eta / trace * velocity - w / trace * W

    def per_unit(change: sympy.Expr) -> sympy.Expr:
        increment = sympy.expand(trace * batch_average(sympy.expand(change), sums))
        if not noise:
            increment = sympy.expand(increment.subs(SECOND, MEAN[0] * MEAN[1] / trace))
        return sympy.expand(sympy.limit(increment, trace, sympy.oo))

    means = {a: per_unit(after[a, 0] - ROWS[a][0]) for a in ("W", "U")}
    pairs = (("W", "W"), ("W", "U"), ("U", "U"))
    return means, {(a, b): per_unit(after[a, 0] * after[b, 1] - ROWS[a][0] * ROWS[b][1]) for a, b in pairs}


def blocks_of(means: dict[str, sympy.Expr], flows: dict[tuple[str, str], sympy.Expr]) -> Blocks:
    """Reads the small matrices off the flows; a product whose flow is not `M q + q M^T + noise` raises."""
    rate, gradient, noise = {}, {}, {}
    for a, mean in means.items():
        for b in ("W", "U"):
            rate[a, b] = mean.coeff(ROWS[b][0])
        gradient[a] = mean.coeff(MEAN[0])
    for (a, b), flow in flows.items():
        noise[a, b] = flow.coeff(SECOND)
        other = dict(
            zip((*ROWS["W"], *ROWS["U"], *MEAN), (*_flip(ROWS["W"]), *_flip(ROWS["U"]), *_flip(MEAN)), strict=True)
        )
        linear = means[a] * ROWS[b][1] + ROWS[a][0] * means[b].subs(other, simultaneous=True)
        rest = sympy.expand(flow - linear - noise[a, b] * SECOND)
        if rest != 0:
            raise InputError("flow", expected="M q + q M^T + noise", got=str(rest), remedy="check the orders in N")
    return Blocks(rate, gradient, noise)


def _flip(pair: tuple[sympy.Symbol, sympy.Symbol]) -> tuple[sympy.Symbol, sympy.Symbol]:
    return pair[1], pair[0]


def heavy_ball(noise: bool, weight_decay: bool) -> tuple[Step, Blocks]:
    """The enlarged system of weights and velocities."""
    means, flows = heavy_ball_increments(noise, weight_decay)
    blocks = blocks_of(means, flows)
    step = Step(
        "heavy ball",
        "Heavy ball with mu = 1 - gamma/N: velocities are rows",
        "Each trained row W_i has a velocity row U_i, u <- (1 - gamma/N) u + gradient, W <- W - (eta/N) u - (w/N) W. The "
        "products W_i W_j, W_i U_j, U_i U_j are multiplied out and averaged as before (u_i = N E[gamma_i], v_ij = N "
        "E[gamma_i gamma_j]); N to infinity leaves the flows below. The noise enters through the velocities alone. In "
        "matrices M1[U,:] = G, M0[U,:] = H, M0[U,U] = -gamma, M0[W,U] = -eta, M0[W,W] = -w, N1[U,U] = V/B: the same "
        "equation dq/dt = M q + q M^T + lambda N1 for the P + p rows.",
        tuple(
            Equation(rf"\frac{{d}}{{dt}}\langle {a}_i{b}_j\rangle", flow) for (a, b), flow in flows.items()
        ),
        ("online", "dimension"),
    )  # fmt: skip
    return step, blocks


def fixed_momentum() -> tuple[Step, sympy.Expr]:
    """mu fixed: W - eta mu/(1 - mu) u makes exactly a step of plain SGD at the learning rate returned, eta/(1 - mu)."""
    mu, W, u, gradient = MU, *sympy.symbols("W u gamma_k")
    shift = -eta * mu / (1 - mu)
    velocity = mu * u + gradient
    moved = sympy.simplify((W - eta * velocity + shift * velocity) - (W + shift * u))
    rate = sympy.simplify(-moved / gradient)
    # The velocity's own size: a geometric sum of independent gradients of variance v/N.
    power = sympy.Symbol("n", integer=True, nonnegative=True)
    variance = sympy.simplify(sympy.summation((mu**2) ** power, (power, 0, sympy.oo)).args[0][0] * SECOND / trace)
    step = Step(
        "fixed momentum",
        "Momentum fixed as N grows: plain SGD at eta/(1 - mu)",
        "With u <- mu u + grad, W <- W - eta u, the shifted row W - eta mu/(1 - mu) u moves by the first line in one step, "
        "exactly: a step of plain SGD. The entries of u stay of order 1/sqrt(N) (second line: their variance beside the "
        "mean of order 1/N), so that its overlaps with all rows and its local field vanish as N grows, and the shifted "
        "row has the overlaps, fields and gradient of W.",
        (
            Equation(r"\Delta\left(W-\frac{\eta\mu}{1-\mu}u\right)", moved),
            Equation(r"\mathrm{Var}\,u_k", variance),
            Equation(r"\eta_{\mathrm{plain}}", rate),
        ),
        ("online", "dimension"),
    )
    return step, rate


def write(blocks: Blocks, plain: dict[str, sympy.Expr], noise: sympy.Expr) -> tuple[Output, ...]:
    """`plain_sgd` and `heavy_ball`: (M1, M0, N1) of the table's rows, and of the table with velocity rows appended."""
    arguments = (
        "G: Array", "H: Array", "V: Array", "own: Array", "moved: tuple[int, ...]", "eta: Array", "batch: Array",
        "weight_decay: Array",
    )  # fmt: skip
    about = (
        "`G`, `H` (p, P) and `V` (p, p) for the p trained rows, numbers `moved` in the table; `own` (p, P): these rows in the\n"
        "basis of the table (unit rows; rows of T^-1 in difference rows). One unit of t is N SGD steps."
    )
    scale, shrink = (to_jax(plain[name], CODE) for name in ("gradient", "decay"))
    sgd = function_source(
        "plain_sgd",
        arguments,
        "(M1, M0, N1), each (P, P): dq/dt = M q + q M^T + lam N1 with M = lam M1 + M0, for every eigenmode.\n\n"
        + about,
        [
            "rows = np.asarray(moved)",
            "zero = jnp.zeros((G.shape[1], G.shape[1]), G.dtype)",
            f"M1 = zero.at[rows].set({scale} * G)",
            f"M0 = zero.at[rows].set({scale} * H + ({shrink}) * own)",
            f"N1 = zero.at[np.ix_(rows, rows)].set({to_jax(noise, CODE)} * V)",
            "return M1, M0, N1",
        ],
        "tuple[Array, Array, Array]",
    )

    def block(kind: dict, key: object) -> str:
        return to_jax(kind.get(key, S.Zero), CODE)

    ball = function_source(
        "heavy_ball",
        (*arguments, "damping: Array"),
        "(M1, M0, N1), each (P + p, P + p), the table's rows followed by the velocities of the trained ones, for\n"
        "u <- (1 - damping/N) u + gradient, W <- W - (eta/N) u - (w/N) W.\n\n" + about,
        [
            "rows = np.asarray(moved)",
            "p, P = G.shape",
            "velocities = np.arange(P, P + p)",
            "zero = jnp.zeros((P + p, P + p), G.dtype)",
            f"M1 = zero.at[velocities, :P].set({block(blocks.gradient, 'U')} * G)",
            f"M0 = zero.at[velocities, :P].set({block(blocks.gradient, 'U')} * H)",
            f"M0 = M0.at[velocities, velocities].set({block(blocks.rate, ('U', 'U'))})",
            f"M0 = M0.at[rows, velocities].set({block(blocks.rate, ('W', 'U'))})",
            f"M0 = M0.at[rows, :P].add(({block(blocks.rate, ('W', 'W'))}) * own)",
            f"N1 = zero.at[P:, P:].set({block(blocks.noise, ('U', 'U'))} * V)",
            "return M1, M0, N1",
        ],
        "tuple[Array, Array, Array]",
    )
    return Output("plain_sgd", sgd), Output("heavy_ball", ball)
