"""The logistic pair: two layers, frozen orthogonal readouts, reduced to two numbers and solved.

The rows of the ansatz are put into the derived gradient of the two-layer network; the flow is seen to keep them in their
directions, what is left are two products y0, y1, and sympy solves their equations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import sympy
from sympy import S
from sympy.matrices.expressions import MatrixExpr, MatrixSymbol

from odescale.errors import InputError
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Equation, Output, Step
from odescale.symbolic.scalar_writer import assignments

NAMES = ("q0", "k0", "q1", "k1", "r1", "r2", "q0*", "k0*")
beta, y0, y1, rho = sympy.symbols("beta y0 y1 rho", positive=True)
Time = sympy.Symbol("S", nonnegative=True)


@dataclass(frozen=True)
class Reduction:
    """dy/dS of the two order parameters and the loss, as functions of (y0, y1), and the loss as a function of S."""

    slopes: tuple[sympy.Expr, sympy.Expr]
    loss: sympy.Expr
    solutions: tuple[sympy.Expr, sympy.Expr]
    curve: sympy.Expr


def _explicit(expression: MatrixExpr, values: dict[MatrixSymbol, sympy.Matrix]) -> sympy.Matrix:
    """A matrix expression with explicit matrices put in."""
    size = values[next(iter(values))].shape[0]
    concrete = {x: MatrixSymbol(x.name, *m.shape) for x, m in values.items()}
    dimensions = {x.shape[0]: sympy.Integer(size) for x in values}
    swapped = expression.xreplace(dimensions).xreplace({MatrixSymbol(x.name, *c.shape): c for x, c in concrete.items()})
    result = swapped.subs({c: sympy.ImmutableMatrix(values[x]) for x, c in concrete.items()}).doit()
    return sympy.Matrix(result)


def ansatz() -> tuple[sympy.Matrix, tuple[sympy.Symbol, ...]]:
    """Rows (8 x 4) in an orthonormal frame (u, r1, r2, w), in units of sqrt(N), and the six lengths that appear."""
    lengths = sympy.symbols("a0 b0 a1 b1 astar bstar", positive=True)
    a0, b0, a1, b1, a_star, b_star = lengths
    rows = sympy.Matrix(
        [
            [a0, 0, 0, 0],
            [0, b0, 0, 0],
            [0, 0, 0, a1],
            [0, 0, b1, 0],
            [0, rho, 0, 0],
            [0, 0, rho, 0],
            [a_star, 0, 0, 0],
            [0, b_star, 0, 0],
        ]
    )
    return rows, lengths


def two_layer_flow(
    update: MatrixExpr, back: tuple[MatrixExpr, MatrixExpr], symbols: dict[str, MatrixSymbol]
) -> tuple[sympy.Matrix, sympy.Expr, sympy.Matrix, tuple[sympy.Symbol, ...]]:
    """(-G A, loss, A, lengths) at the ansatz, from the derived layer and its adjoint."""
    rows, lengths = ansatz()
    overlaps = rows * rows.T
    one = sympy.eye(8)

    def head(function: MatrixExpr, functionals: sympy.Matrix, query: int, key: int, bar: sympy.Matrix | None = None):
        values = {
            symbols["A"]: functionals,
            symbols["C"]: overlaps,
            symbols["q"]: one[:, query],
            symbols["k"]: one[:, key],
        }
        if bar is not None:
            values[symbols["B"]] = bar
        return _explicit(function, values).applyfunc(sympy.expand)

    first = one + head(update, one, 0, 1)
    second = first + head(update, first, 2, 3)
    teacher = one + head(update, one, 6, 7)  # its second layer is uniform and adds nothing
    residual = (second - teacher)[4:6, :].applyfunc(sympy.expand)
    loss = sympy.expand((residual * overlaps * residual.T).trace() / 2)
    bar = sympy.zeros(8)
    bar[4:6, :] = residual * overlaps
    slope = residual.T * residual / 2
    slope += head(back[1], first, 2, 3, bar)
    bar = bar + head(back[0], first, 2, 3, bar)
    slope += head(back[1], one, 0, 1, bar)
    trained = sympy.diag(1, 1, 1, 1, 0, 0, 0, 0)
    force = (-trained * (slope + slope.T) * rows).applyfunc(sympy.factor)
    return force, loss, rows, lengths


@cache
def reduce_and_solve(
    update: MatrixExpr,
    back: tuple[MatrixExpr, MatrixExpr],
    symbols: tuple[tuple[str, MatrixSymbol], ...],
) -> tuple[Step, Reduction]:
    """The step and the `Reduction`, once for all options that leave the layer as it is."""
    force, loss, rows, lengths = two_layer_flow(update, back, dict(symbols))
    a0, b0, a1, b1, a_star, b_star = lengths
    for i in range(4):
        for j in range(4):
            if rows[i, j] == 0 and force[i, j] != 0:
                raise InputError(
                    "ansatz",
                    expected=f"row {NAMES[i]} to keep its direction",
                    got=str(force[i, j]),
                    remedy="this assumption breaks the invariant manifold of The logistic pair",
                )
    rate = {a0: force[0, 0], b0: force[1, 1], a1: force[2, 3], b1: force[3, 2]}

    def slope(expression: sympy.Expr) -> sympy.Expr:
        return sympy.factor(sum((sympy.diff(expression, x) * dx for x, dx in rate.items()), S.Zero))

    imbalance = [slope(x**2 - y**2) for x, y in ((a0, b0), (a1, b1))]
    if any(value != 0 for value in imbalance):
        raise InputError(
            "ansatz", expected="the balance |q|^2 = |k|^2 to be conserved", got=str(imbalance), remedy="none"
        )
    # y = (k.r/N) |q|/sqrt(N); balanced rows; beta the teacher's product; S = eta sqrt(R) t with rho = sqrt(R).
    products = (rho * b0 * a0, rho * b1 * a1)
    balanced = {
        a0: sympy.sqrt(y0 / rho), b0: sympy.sqrt(y0 / rho), a1: sympy.sqrt(y1 / rho), b1: sympy.sqrt(y1 / rho),
        b_star: beta / (rho * a_star),
    }  # fmt: skip
    slopes = tuple(sympy.factor(sympy.simplify(slope(y).subs(balanced) / rho)) for y in products)
    reduced_loss = sympy.factor(sympy.simplify(loss.subs(balanced)))
    solutions = tuple(_solve(slopes[i], (y0, y1)[i], (y0, y1)[1 - i]) for i in range(2))
    reduced_loss = sympy.expand(reduced_loss)
    parts = (reduced_loss.subs(y1, 0), reduced_loss.subs(y0, beta))
    assert sympy.expand(parts[0] + parts[1] - reduced_loss) == 0
    curve = sum(
        (_decaying(part.subs(y, solution)) for part, y, solution in zip(parts, (y0, y1), solutions, strict=True)),
        S.Zero,
    )
    step = Step(
        "logistic pair",
        "The logistic pair: two order parameters, solved",
        "Two layers, two frozen orthogonal readouts of squared length R N. Put the rows q0 || q0* || u, k0 || "
        "k0* || r1, "
        "k1 || r2, q1 orthogonal to all of these into G: every trained row stays in its direction, |q|^2 - |k|^2 is "
        "conserved in each layer, and for balanced rows the products y_l = (k_l.r/N) |q_l|/sqrt(N) obey, with "
        "S = eta sqrt(R) t and beta the product of the teacher, the two equations below. sympy's dsolve gives L(S): an "
        "exponential escape and fall, then a tail 1/(8 S^2).",
        (
            Equation(r"\frac{dy_0}{dS}", slopes[0]),
            Equation(r"\frac{dy_1}{dS}", slopes[1]),
            Equation("L", sympy.factor(parts[0]) + parts[1]),
            Equation("L(S)", curve),
        ),
        ("dimension", "context", "square loss"),
    )
    return step, Reduction(slopes, reduced_loss, solutions, curve)


def _solve(slope: sympy.Expr, own: sympy.Symbol, other: sympy.Symbol) -> sympy.Expr:
    """y(S) with y(0) = `own`, by dsolve; the equations must be decoupled."""
    if other in slope.free_symbols:
        raise InputError("ansatz", expected="decoupled equations", got=str(slope), remedy="none")
    y = sympy.Function("y")
    equation = sympy.Eq(y(Time).diff(Time), slope.subs(own, y(Time)))
    general = sympy.dsolve(equation, y(Time))
    general = general[0] if isinstance(general, list) else general
    (constant,) = general.free_symbols - equation.free_symbols
    for value in sympy.solve(general.rhs.subs(Time, 0) - own, constant):
        solution = sympy.simplify(general.rhs.subs(constant, value))
        if sympy.simplify(sympy.diff(solution, Time) - slope.subs(own, solution)) == 0:
            return solution
    raise InputError("ansatz", expected="an equation that dsolve can solve", got=str(slope), remedy="none")


def _decaying(expression: sympy.Expr) -> sympy.Expr:
    """The same function with e^(-2 beta S) in place of e^(2 beta S), which overflows at late times."""
    decay = sympy.Dummy("decay", positive=True)
    growth = sympy.exp(2 * beta * Time)
    rewritten = sympy.factor(sympy.simplify(expression).subs(growth, 1 / decay))
    assert not rewritten.has(sympy.exp), rewritten
    return rewritten.subs(decay, 1 / growth)


def write(reduction: Reduction) -> Output:
    """`logistic_pair_loss`."""
    body = assignments([("loss", reduction.curve)], {Time: "S"}, prefix="u") + ["return loss"]
    return Output(
        "logistic_pair_loss",
        function_source(
            "logistic_pair_loss",
            ("S: Array", "beta: Array", "y0: Array", "y1: Array"),
            "L(S) of the noise-free logistic_pair system, S = eta sqrt(R) t; 0 < y0 < beta, y1 > 0.",
            body,
            "Array",
        ),
    )
