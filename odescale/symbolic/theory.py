"""From a sample loss of local fields to the closed ODE of the overlaps, with its derivation and its JAX code.

The verb for a theory of one's own: write the loss as a sympy expression of the fields of student and teacher rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import sympy

from odescale.errors import InputError
from odescale.symbolic.gaussian import Gaussian, covariance_symbols
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.monte_carlo import monte_carlo_check
from odescale.symbolic.record import Assumption, CheckResult, Derivation, Equation, Output, Parameter, Step, Table
from odescale.symbolic.scalar_writer import assignments
from odescale.symbolic.sgd import FLAG, OverlapFlow, batch, decay, eta, lam, overlap_flow


@dataclass(frozen=True)
class OverlapTheory:
    """The closed theory: P fields, the first p of them of student rows.

    **Fields**

    - `gaussian`: the fields with their covariance C (symbols `C_uv`).
    - `sample_loss`, `loss`: l of the fields and L = E[l].
    - `G` (p x P): E[d^2 l/dphi_i dphi_j], so that E[g phi^T] = G C (Stein). `V` (p x p): E[g g^T].
    - `flow`: dq/dt of one eigenmode as matrices. `derivation`: text and generated functions.
    """

    gaussian: Gaussian
    students: int
    sample_loss: sympy.Expr
    loss: sympy.Expr
    G: sympy.ImmutableMatrix
    V: sympy.ImmutableMatrix
    flow: OverlapFlow
    derivation: Derivation

    def system(self, initial_overlaps: Any, **settings: Any) -> Any:
        """The theory as a system: dq_k/dt = M_k q_k + q_k M_k^T + (eta^2/B) lam_k V, for `integrate` and every other verb.

        One unit of t is N SGD steps, N the trace of the token covariance (`dimension` for isotropic tokens).

        **Arguments**

        - `initial_overlaps` (P, P), or (modes, P, P) with a spectrum: rows in the order students, teachers; positive semi-definite.
        - `learning_rate` (0.1), `batch` (1), `weight_decay` (0), `noise` (1; 0 drops the SGD noise), `dimension` (1000),
          `schedule` (text or callable), `spectrum` (a `Spectrum`), `floor` (irreducible part of the loss, 0), `label`.
        - every parameter of the loss, by its name.

        **Returns** an `odescale.systems.derived.Derived`, which `integrate`, `sweep`, `find_transition`, `plot`, `train` (real SGD
        on rows with this sample loss) and `compare` take. **Errors**: `InputError` naming the argument.
        """
        from odescale.symbolic.module_writer import module_source
        from odescale.systems.derived import derived_system

        constants = self.sample_loss.free_symbols - set(self.gaussian.fields)
        names = tuple(sorted(symbol.name for symbol in constants))
        return derived_system(
            module_source(self.derivation), self.students, names, initial_overlaps,
            **({"label": self.derivation.name} | settings),  # type: ignore[arg-type]
        )  # fmt: skip

    def isotropic_flow(self) -> sympy.Matrix:
        """dC/dt for isotropic tokens (one mode, C = q), entry by entry; frozen pairs are zero."""
        size, p = len(self.gaussian.fields), self.students
        C = sympy.Matrix(self.gaussian.covariance)
        G = sympy.Matrix(self.G).col_join(sympy.zeros(size - p, size))
        V = sympy.diag(sympy.Matrix(self.V), sympy.zeros(size - p))
        S = sympy.diag(*[1] * p, *[0] * (size - p))
        names = {"G": G, "V": V, "S": S, "q": C, "H": sympy.zeros(size)}
        total = sympy.zeros(size)
        from odescale.symbolic.matrix import chains

        for chain in chains(self.flow.matrix):
            product = sympy.eye(size)
            for symbol, flipped in chain.factors:
                factor = names[symbol.name]
                product = product * (factor.T if flipped else factor)
            total += chain.coefficient.subs(lam, 1) * product
        return total.applyfunc(sympy.expand)


def overlap_theory(
    loss: sympy.Expr,
    students: Sequence[sympy.Symbol],
    teachers: Sequence[sympy.Symbol] = (),
    *,
    name: str = "theory",
    noise: bool = True,
    weight_decay: bool = True,
    test_covariance: sympy.Matrix | None = None,
) -> OverlapTheory:
    """dq_k/dt = M_k q_k + q_k M_k^T + (eta^2/B) lam_k V, M_k = -eta lam_k G - w S: derived for any closed-form loss.

    One unit of t is N SGD steps, N the trace of the token covariance.

    **Arguments**

    - `loss`: sample loss, a polynomial of the fields, of erf of linear forms, and of exp of quadratic forms.
    - `students`, `teachers`: the field symbols of the rows that SGD moves and of the frozen ones.
    - `noise`, `weight_decay`: assumptions; see `overlap_flow`.
    - `test_covariance`: P x P numbers at which the derivation checks its expectations by sampling.

    **Returns** an `OverlapTheory`. Raises `InputError` when the loss has no closed expectation or another free field.
    """
    fields = (*students, *teachers)
    if not students or len(set(fields)) != len(fields):
        raise InputError("students", expected="at least one row, all fields distinct", got=fields, remedy="rename them")
    stray = loss.free_symbols - set(fields)
    p, size = len(students), len(fields)
    gaussian = Gaussian(fields, sympy.ImmutableMatrix(covariance_symbols(fields)))
    if stray & gaussian.covariance.free_symbols:
        raise InputError("loss", expected="a function of the fields", got=str(stray), remedy="rename the symbols C_..")
    slopes = [sympy.diff(loss, u) for u in students]
    expected = _tidy(gaussian.expect(loss))
    G = sympy.ImmutableMatrix(p, size, lambda i, j: _tidy(gaussian.expect(sympy.diff(slopes[i], fields[j]))))
    upper = {(i, j): _tidy(gaussian.expect(slopes[i] * slopes[j])) for i in range(p) for j in range(i, p)}
    V = sympy.ImmutableMatrix(p, p, lambda i, j: upper[min(i, j), max(i, j)] if noise else sympy.S.Zero)
    flow = overlap_flow(noise=noise, weight_decay=weight_decay, write_back=False)
    numbers = test_covariance if test_covariance is not None else _default_covariance(size)
    check = partial(_sampled, gaussian, loss, slopes, expected, G, upper, numbers)
    steps = (
        Step("loss", "Sample loss and its slopes", "The loss of one sample as a function of the local fields, and its "
             "slopes g in the fields of the student rows.",
             (Equation("l", loss), *(Equation(f"g_{{{u}}}", g) for u, g in zip(students, slopes, strict=True)))),
        Step("expectations", "Expectations in closed form", "Isserlis and Stein moments, tilts and arcsine laws give the "
             "population loss, G with E[g phi^T] = G C, and V = E[g g^T].",
             (Equation("L", expected), *(Equation(f"G_{{{students[i]}{fields[j]}}}", G[i, j])
                                         for i in range(p) for j in range(size)),
              *(Equation(f"V_{{{students[i]}{students[j]}}}", e) for (i, j), e in upper.items() if noise)),
             ("gaussian",), check),
        Step("ode", "The flow of the overlaps", "One SGD step moves A_ik A_jk; averaged over the batch and taken to N "
             "to infinity, per eigenmode of eigenvalue lambda.",
             (Equation(r"\frac{d}{dt}\langle A_iA_j\rangle", flow.flow), Equation(r"\frac{dq}{dt}", flow.matrix)),
             ("online", "dimension")),
    )  # fmt: skip
    derivation = Derivation(
        name=name,
        title=f"Overlap theory {name}",
        summary=f"Online SGD on rows with fields {', '.join(map(str, students))}"
        + (f" against frozen rows {', '.join(map(str, teachers))}." if teachers else "."),
        states=(Parameter(sympy.Symbol("q_k"), "overlaps of the rows in eigenmode k", "positive semi-definite"),),
        parameters=(
            Parameter(eta, "learning rate", "> 0", "per SGD step"),
            Parameter(batch, "samples per SGD step", ">= 1", "samples"),
            Parameter(decay, "weight decay", ">= 0", "per unit of t"),
            Parameter(lam, "eigenvalue of the mode", "> 0"),
            Parameter(FLAG[0], "1 for rows that SGD moves", "0 or 1"),
            *(Parameter(s, "parameter of the loss", "real") for s in sorted(stray, key=lambda s: s.name)),
        ),
        assumptions=(
            Assumption("gaussian", "Tokens are Gaussian with zero mean."),
            Assumption("online", "Every SGD step uses fresh samples."),
            Assumption("dimension", "N is large, the number of rows fixed."),
        ),
        steps=steps,
        sources=("Saad & Solla, Phys. Rev. E 52, 4225 (1995)",),
        outputs=_functions(gaussian, p, loss, expected, G, V, flow, sorted(stray, key=lambda s: s.name)),
        tables=(Table("Rows", ("row", "field", "trained"),
                      tuple((str(i), f"${sympy.latex(f)}$", "yes" if i < p else "no") for i, f in enumerate(fields))),),
        imports=("import jax", "import jax.numpy as jnp", "import jax.scipy.special", "from jax import Array"),
    )  # fmt: skip
    return OverlapTheory(gaussian, p, loss, expected, G, V, flow, derivation)


def _tidy(expression: sympy.Expr) -> sympy.Expr:
    """One fraction inside every root and arcsine; cheap, and the same on every run."""

    def roots(e: sympy.Basic) -> bool:
        return isinstance(e, sympy.asin) or (isinstance(e, sympy.Pow) and not e.exp.is_integer)

    tidy = sympy.expand(expression.replace(roots, lambda e: e.func(*(sympy.factor(x) for x in e.args))))
    atoms = sorted((e for e in tidy.atoms(sympy.Pow, sympy.asin) if roots(e)), key=sympy.default_sort_key)
    return sympy.collect(tidy, atoms, sympy.factor) if atoms else sympy.factor_terms(tidy)


def _default_covariance(size: int) -> sympy.Matrix:
    """A fixed positive-definite matrix of numbers (diagonally dominant)."""
    return sympy.Matrix(
        size,
        size,
        lambda i, j: sympy.Rational(1, 2) if i == j else sympy.Rational((-1) ** (i + j), 4 * max(size - 1, 1)),
    )


def _sampled(
    gaussian: Gaussian,
    loss: sympy.Expr,
    slopes: list[sympy.Expr],
    expected: sympy.Expr,
    G: sympy.ImmutableMatrix,
    V: dict[tuple[int, int], sympy.Expr],
    numbers: sympy.Matrix,
) -> CheckResult:
    """Largest z-score of L, of E[g phi^T] = G C and of V against samples at the covariance `numbers`."""
    size = len(gaussian.fields)
    values = {gaussian.covariance[i, j]: numbers[i, j] for i in range(size) for j in range(size)}
    extra = {s: sympy.Rational(1, 2) for s in loss.free_symbols - set(gaussian.fields)}
    numeric = Gaussian(gaussian.fields, sympy.ImmutableMatrix(numbers))
    targets = [(loss, expected)]
    product = sympy.Matrix(G) * sympy.Matrix(gaussian.covariance)
    targets += [(g * f, product[i, j]) for i, g in enumerate(slopes) for j, f in enumerate(gaussian.fields)]
    targets += [(slopes[i] * slopes[j], e) for (i, j), e in V.items()]
    results = [
        monte_carlo_check(numeric, e.subs(extra), float(v.subs(values).subs(extra)), seed=seed)
        for seed, (e, v) in enumerate(targets)
    ]
    bound = 4.5
    return CheckResult(max(r.value for r in results), bound, f"largest z-score of {len(results)} sampled expectations")


def _functions(
    gaussian: Gaussian,
    p: int,
    sample_loss: sympy.Expr,
    loss: sympy.Expr,
    G: sympy.ImmutableMatrix,
    V: sympy.ImmutableMatrix,
    flow: OverlapFlow,
    extra: list[sympy.Symbol],
) -> tuple[Output, ...]:
    from odescale.symbolic.matrix_writer import MatrixWriter
    from odescale.symbolic.sgd import S_ROWS, SIZE

    size = len(gaussian.fields)
    names = {gaussian.covariance[i, j]: f"C[{i}, {j}]" for i in range(size) for j in range(i, size)}
    arguments = ("C: Array", *(f"{s.name}: Array" for s in extra))
    entries = [(f"G_{i}_{j}", G[i, j]) for i in range(p) for j in range(size)]
    entries += [(f"V_{i}_{j}", V[i, j]) for i in range(p) for j in range(i, p)]
    zero = "0.0"

    def table(letter: str) -> list[str]:
        lines = []
        for i in range(size):
            row = []
            for j in range(size):
                inside = i < p and (letter == "G" or j < p)
                indices = (i, j) if letter == "G" else (min(i, j), max(i, j))
                row.append(f"{letter}_{indices[0]}_{indices[1]}" if inside else zero)
            lines.append(f"    [{', '.join(row)}],")
        return [f"{letter} = jnp.asarray([", *lines, "], dtype=C.dtype)"]

    closure = function_source(
        "closure",
        arguments,
        "(G, V), each (P, P) with zero rows for frozen rows: E[g phi^T] = G C and V = E[g g^T].",
        [*assignments(entries, names, prefix="u"), *table("G"), *table("V"), "return G, V"],
        "tuple[Array, Array]",
    )
    population = function_source(
        "population_loss",
        arguments,
        "L = E[l] (scalar) at the field covariance C (P, P).",
        [*assignments([("loss", loss)], names, prefix="u"), "return loss"],
        "Array",
    )
    writer = MatrixWriter(
        names={eta: "eta", batch: "batch", decay: "weight_decay", lam: "eigenvalue"},
        diagonals={S_ROWS: "trained"},
        sizes={SIZE: 16},
    )
    overlap = function_source(
        "overlap_flow",
        ("q: Array", "lam: Array", "G: Array", "V: Array", "eta: Array", "batch: Array", "weight_decay: Array"),
        "dq/dt (modes, P, P) with q (modes, P, P), lam (modes,); one unit of t is N SGD steps.",
        [
            f"trained = jnp.asarray({[1.0] * p + [0.0] * (size - p)}, dtype=q.dtype)",
            "",
            "def one_mode(q, eigenvalue):",
            *(f"    {line}" for line in writer.lines([("flow", flow.matrix)])),
            "    return flow",
            "",
            "return jax.vmap(one_mode)(q, lam)",
        ],
        "Array",
    )
    of_fields = {field: f"phi[{i}]" for i, field in enumerate(gaussian.fields)}
    sample = function_source(
        "sample_loss",
        ("phi: Array", *arguments[1:]),
        "l (scalar) of one sample at its local fields phi (P,).",
        [*assignments([("loss", sample_loss)], of_fields, prefix="u"), "return loss"],
        "Array",
    )
    outputs = {"population_loss": population, "closure": closure, "overlap_flow": overlap, "sample_loss": sample}
    return tuple(Output(name, source) for name, source in outputs.items())
