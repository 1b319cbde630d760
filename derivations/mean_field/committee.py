"""Closed forms for committees Delta = sum_a c_a g(phi_a): arcsine laws for erf units, traces for quadratic ones.

    l = Delta^2/2,   g_i = c_i g'(phi_i) Delta,   G_ij = E[d^2 l/dphi_i dphi_j],   V_ij = E[g_i g_j]

c holds the student's output weights and minus the teacher's, so that one formula covers every number of units of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy
from sympy.matrices.expressions import MatrixSymbol

from odescale.errors import InputError
from odescale.symbolic.gaussian import Gaussian, arcsine_law, covariance_symbols
from odescale.symbolic.matrix import adjoint, assemble, chains
from odescale.symbolic.matrix_writer import MatrixWriter
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Equation, Output, Step
from odescale.symbolic.scalar_writer import assignments, to_jax
from odescale.symbolic.sgd import SIZE

FIELDS = sympy.symbols("i j a b")
WEIGHTS = sympy.symbols("c_i c_j c_a c_b")
SIGMA = sympy.Symbol("sigma", nonnegative=True)
GAUSSIAN = Gaussian(FIELDS, covariance_symbols(FIELDS).as_immutable())


def unit(x: sympy.Expr) -> sympy.Expr:
    """erf(x/sqrt 2)."""
    return sympy.erf(x / sympy.sqrt(2))


# ---------------------------------------------------------------------------------------------------------------------
# erf units
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ErfForms:
    """Entries as functions of covariances C_xy of the fields i, j (slopes) and a, b (units).

    `kernel` E[g_a g_b], `slopes` E[g'_i g'_j], `curvature` E[g''_i g_a], `third` E[g'_i phi_j g_a]; the slopes' product tilts
    the Gaussian: `weight` its normalisation with prefactors, `tilted` M_ab, and `law` E_M[g_a g_b] in symbols M_xy.
    """

    kernel: sympy.Expr
    slopes: sympy.Expr
    curvature: sympy.Expr
    weight: sympy.Expr
    tilted: sympy.Expr
    law: sympy.Expr
    third: sympy.Expr


def _one_fraction(expression: sympy.Expr) -> sympy.Expr:
    """One fraction under every root, roots of products kept apart where their factors are positive."""

    def root(e: sympy.Basic) -> bool:
        return isinstance(e, sympy.Pow) and not e.exp.is_integer

    tidy = sympy.expand(expression).replace(root, lambda e: e.func(sympy.factor(e.base), e.exp))
    return sympy.factor(sympy.powsimp(tidy, force=True))


def erf_forms() -> tuple[Step, ErfForms]:
    """The expectations of an erf committee, by the arcsine law and by tilts."""
    i, j, a, b = FIELDS
    c_i, c_j, c_a, c_b = WEIGHTS
    delta = sum(c * unit(x) for c, x in zip(WEIGHTS, FIELDS, strict=True))
    loss = sympy.expand(delta**2 / 2)
    kernel = GAUSSIAN.expect(loss.coeff(c_a * c_b))
    hessian = sympy.expand(sympy.diff(loss, i, j))
    slopes = _one_fraction(GAUSSIAN.expect(hessian.coeff(c_i * c_j)))
    bending = sympy.expand(sympy.diff(loss, i, 2)).coeff(c_i * c_a)
    curvature = _one_fraction(GAUSSIAN.expect(bending))
    # g'_i g'_j = prefactor exp(exponent): a tilt, under which the two units left are again an arcsine law.
    product = sympy.expand(hessian.coeff(c_i * c_j))
    exponent = sum(e.args[0] for e in product.atoms(sympy.exp))
    prefactor = sympy.simplify(product / sympy.exp(exponent))
    weight, tilted = GAUSSIAN.tilt(exponent)
    M = covariance_symbols(FIELDS, "M")
    law = arcsine_law((0, 0, 1 / sympy.sqrt(2), 0), (0, 0, 0, 1 / sympy.sqrt(2)), M)
    third = _one_fraction(GAUSSIAN.expect(sympy.diff(unit(i), i) * j * unit(a)))
    forms = ErfForms(
        kernel, slopes, curvature, _one_fraction(prefactor * weight), sympy.factor(tilted.covariance[2, 3]), law, third
    )
    step = Step(
        "erf committee",
        "Committee of erf(x/sqrt 2) units: arcsine laws and tilts",
        "Delta = sum_a c_a g(phi_a). E[g_a g_b] is the arcsine law, so L = 1/2 sum_ab c_a c_b E[g_a g_b]. The mean Hessian has "
        "G_ij = c_i c_j E[g'_i g'_j] + delta_ij c_i sum_a c_a E[g''_i g_a]; by Stein G C = D = E[g_i phi_j], which is Saad & "
        "Solla's sum of integrals I3 (fifth line), checked. In V_ij = c_i c_j sum_ab c_a c_b E[g'_i g'_j g_a g_b] the slopes "
        "are Gaussian densities: they tilt C into M, and E = weight x arcsine law of M (Saad & Solla's I4). (i, j) may "
        "be exchanged: for K = M = 4, 10 x 64 = 640 arcsines of 1024. Label noise of variance sigma^2 adds "
        "sigma^2 c_i c_j E[g'_i g'_j].",
        (
            Equation(r"\mathrm{E}[g_ag_b]", forms.kernel),
            Equation(r"\mathrm{E}[g'_ig'_j]", forms.slopes),
            Equation(r"\mathrm{E}[g''_ig_a]", forms.curvature),
            Equation(r"M_{ab}", forms.tilted),
            Equation(r"\mathrm{E}[g'_i\phi_jg_a]", forms.third),
            Equation(r"\mathrm{E}[g'_ig'_jg_ag_b]", forms.weight * forms.law),
        ),
        ("gaussian", "square loss", "one token"),
    )
    return step, forms


def _exchange(expression: sympy.Expr, old: str, new: str, letter: str = "C") -> sympy.Expr:
    """The expression with field `old` replaced by `new` in every covariance symbol, indices in the order of FIELDS."""
    order = [f.name for f in FIELDS]
    table = covariance_symbols(FIELDS, letter)
    change = {}
    for symbol in expression.free_symbols:
        if symbol.name.startswith(f"{letter}_"):
            pair = [new if x == old else x for x in symbol.name[2:]]
            change[symbol] = table[order.index(pair[0]), order.index(pair[1])]
    return expression.subs(change, simultaneous=True)


ANGLE = sympy.Symbol("arcsine_of_cosine")
ARCSINE = "from odescale.expectations.arcsine import arcsine"
"""Line of the generated module that its erf committee needs; executed with the code that is checked."""


def arcsine_apart(law: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """(law in ANGLE, the argument of its asin): the code calls the library's own `arcsine`, which is sooner done than XLA's."""
    (arcsine,) = law.atoms(sympy.asin)
    return law.subs(arcsine, ANGLE), arcsine.args[0]


def write_erf(forms: ErfForms) -> tuple[Output, Output]:
    """Array code for every number of units: roots taken per field, pairs of slopes of the upper triangle only."""
    C, M = covariance_symbols(FIELDS), covariance_symbols(FIELDS, "M")
    half = sympy.Rational(-1, 2)
    angle = {ANGLE: "arcsine(cosine)"}
    kernel, kernel_cosine = arcsine_apart(forms.kernel)
    law, law_cosine = arcsine_apart(forms.law)
    roots = {(1 + C[2, 2]) ** half: "root[:, None]", (1 + C[3, 3]) ** half: "root"}
    loss = function_source(
        "erf_committee_loss",
        ("C: Array", "c: Array"),
        "L = 1/2 E[(sum_a c_a erf(phi_a/sqrt 2))^2] (scalar); C (P, P) covariance of the fields, c (P,) output weights, "
        "the\nteacher's with a minus. Rounding: 1e-16 times sum |c|^2, not relative to L.",
        [
            "root = 1 / jnp.sqrt(1 + jnp.diagonal(C))",
            f"cosine = {to_jax(kernel_cosine, {**roots, C[2, 3]: 'C'})}",
            f"kernel = {to_jax(kernel, angle)}",
            "return 0.5 * jnp.sum(c[:, None] * c * kernel)",
        ],
        "Array",
    )
    tilt = sympy.factor(forms.tilted - C[2, 3])
    gens = (C[0, 2], C[0, 3], C[1, 2], C[1, 3])
    numerator, denominator = sympy.fraction(sympy.together(tilt))
    coefficients = sympy.Poly(numerator, *gens)
    names = {C[0, 0]: "C_ii", C[1, 1]: "C_jj", C[0, 1]: "C_ij"}
    entries = {
        "k_ii": coefficients.coeff_monomial(C[0, 2] * C[0, 3]) / denominator,
        "k_jj": coefficients.coeff_monomial(C[1, 2] * C[1, 3]) / denominator,
        "k_ij": coefficients.coeff_monomial(C[0, 2] * C[1, 3]) / denominator,
    }
    k_ii, k_jj, k_ij = sympy.symbols("k_ii k_jj k_ij")
    update = k_ii * C[0, 2] * C[0, 3] + k_jj * C[1, 2] * C[1, 3] + k_ij * (C[0, 2] * C[1, 3] + C[0, 3] * C[1, 2])
    back = {k_ii: entries["k_ii"], k_jj: entries["k_jj"], k_ij: entries["k_ij"]}
    if sympy.simplify(update.subs(back) - tilt) != 0:
        raise InputError("tilt", expected="an update of rank two", got=str(tilt), remedy="check the slopes")
    of_pair = {
        C[0, 2]: "at_i[:, :, None]",
        C[0, 3]: "at_i[:, None]",
        C[1, 2]: "at_j[:, :, None]",
        C[1, 3]: "at_j[:, None]",
        **{k: f"{k.name}[:, None]" for k in (k_ii, k_jj, k_ij)},
    }
    of_field = {C[0, 2]: "at_i", C[1, 2]: "at_j", C[2, 2]: "variance"}
    tilted_roots = {(1 + M[2, 2]) ** half: "tilted_root[:, :, None]", (1 + M[3, 3]) ** half: "tilted_root[:, None]"}
    closure = function_source(
        "erf_committee_closure",
        ("C: Array", "c: Array", "moved: tuple[int, ...]", "label_noise: Array"),
        "(G, V), (p, P) and (p, p), for the p trained rows `moved`: E[g phi^T] = G C and V = E[g g^T], "
        "g_i = c_i g'(phi_i) Delta.\n\n`label_noise`: standard deviation sigma of labels, Delta - sigma xi in V.",
        [
            "rows = np.asarray(moved)",
            "variance = jnp.diagonal(C)",
            "C_ii, C_jj, C_ij = variance[rows][:, None], variance[None, :], C[rows]",
            f"slopes = {to_jax(forms.slopes, names)}",
            "C_aa, C_ia = C_jj, C_ij",
            f"curvature = {to_jax(forms.curvature, {C[0, 0]: 'C_ii', C[2, 2]: 'C_aa', C[0, 2]: 'C_ia'})}",
            "own = np.eye(C.shape[0], dtype=C.dtype)[rows]",
            "G = c[rows][:, None] * (c * slopes + own * jnp.sum(c * curvature, axis=1)[:, None])",
            "",
            "# The tilt of each pair of slopes, then the arcsine law of each pair of units under it.",
            "i, j = np.triu_indices(rows.size)",
            "at_i, at_j = C[rows[i]], C[rows[j]]",
            "C_ii, C_jj, C_ij = (x[:, None] for x in (variance[rows[i]], variance[rows[j]], C[rows[i], rows[j]]))",
            *assignments([*entries.items(), ("weight", forms.weight)], names, prefix="u"),
            f"tilted_variance = {to_jax(_exchange(C[2, 3] + update, 'b', 'a'), of_field)}",
            "tilted_root = 1 / jnp.sqrt(1 + tilted_variance)",
            f"tilted = {to_jax(C[2, 3] + update, {**of_pair, C[2, 3]: 'C'})}",
            f"cosine = {to_jax(law_cosine, {**tilted_roots, M[2, 3]: 'tilted'})}",
            f"law = {to_jax(law, angle)}",
            "# Both orders of a pair of units: picking one costs more than its arcsine.",
            "upper = weight[:, 0] * jnp.sum(c[:, None] * c * law, axis=(1, 2)) + label_noise**2 * slopes[i, rows[j]]",
            "place = np.zeros((rows.size, rows.size), dtype=int)",
            "place[i, j] = place[j, i] = np.arange(i.size)",
            "V = c[rows][:, None] * c[rows] * upper[place]",
            "return G, V",
        ],
        "tuple[Array, Array]",
    )
    return Output("erf_committee_loss", loss), Output("erf_committee_closure", closure)


# ---------------------------------------------------------------------------------------------------------------------
# Quadratic units
# ---------------------------------------------------------------------------------------------------------------------

A_FORM, C_FIELDS = MatrixSymbol("A", SIZE, SIZE), MatrixSymbol("C", SIZE, SIZE)
TAU, POWER = sympy.symbols("tau t_2")
"""tr(A C) - offset, and tr(A C A C)."""


@dataclass(frozen=True)
class QuadraticForms:
    """L in tau and t_2; G (all rows) and V as sums of chains in A and C with coefficients in tau, t_2; V of label noise."""

    loss: sympy.Expr
    G: sympy.MatrixExpr
    V: sympy.MatrixExpr
    label: sympy.MatrixExpr


def contract(factors: int, ends: bool) -> dict[tuple[int, tuple[int, ...]], sympy.Expr]:
    """E[(phi_i phi_j) prod_l (phi^T A phi)] by Isserlis on named fields, each pairing read as a path and cycles.

    Returns {(m, cycles): number of pairings}: the path C (A C)^m from i to j (m = 0 without ends) and cycles tr (A C)^n.
    """
    forms = [sympy.symbols(f"x{n} y{n}") for n in range(factors)]
    fields = (*(sympy.symbols("i j") if ends else ()), *(x for pair in forms for x in pair))
    covariance = covariance_symbols(fields)
    gaussian = Gaussian(fields, covariance.as_immutable())
    nodes = {
        covariance[a, b]: (fields[a], fields[b]) for a in range(len(fields)) for b in range(a, len(fields))
    }  # fmt: skip
    partner_in_form = {x: y for pair in forms for x, y in (pair, pair[::-1])}
    found: dict[tuple[int, tuple[int, ...]], sympy.Expr] = {}
    for term in sympy.Add.make_args(sympy.expand(gaussian.expect(sympy.Mul(*fields)))):
        count, factors_of = term.as_coeff_mul()
        edges = {}
        for symbol in factors_of:
            x, y = nodes[symbol]
            edges[x], edges[y] = y, x
        path = 0
        left = set(fields)
        if ends:
            at = edges[fields[0]]
            left -= {fields[0], at}
            while at != fields[1]:
                across = partner_in_form[at]
                at = edges[across]
                left -= {across, partner_in_form[across], at}
                path += 1
        cycles = []
        while left:
            start = at = min(left, key=lambda f: f.name)
            length = 0
            while True:
                across = partner_in_form[at]
                left -= {at, across}
                at = edges[across]
                length += 1
                if at == start:
                    break
            cycles.append(length)
        key = (path, tuple(sorted(cycles)))
        found[key] = found.get(key, sympy.S.Zero) + count
    return found


def _chain(length: int) -> sympy.MatrixExpr:
    product: sympy.MatrixExpr = C_FIELDS
    for _ in range(length):
        product = product * A_FORM * C_FIELDS
    return product


def quadratic_forms() -> tuple[Step, QuadraticForms]:
    """Everything of a committee of (x^2 - 1)/2 units from contractions of the form A = diag(c)."""
    offset = sympy.Symbol("n_0")
    cycle = {1: TAU + offset, 2: POWER}

    def average(power_of: dict[int, sympy.Expr], ends: bool) -> dict[int, sympy.Expr]:
        """{path length: coefficient} of E[(phi phi^T) p(phi^T A phi)], p given by its coefficients."""
        total: dict[int, sympy.Expr] = {}
        for power, coefficient in power_of.items():
            for (path, cycles), count in contract(power, ends).items():
                weight = coefficient * count * sympy.Mul(*(cycle[n] for n in cycles))
                total[path] = sympy.expand(total.get(path, sympy.S.Zero) + weight)
        return total

    half = sympy.Rational(1, 2)
    first = {1: half, 0: -half * offset}  # Delta = (phi^T A phi - n_0)/2
    square = {2: half**2, 1: -2 * half**2 * offset, 0: half**2 * offset**2}
    loss = sympy.factor_terms(half * average(square, False)[0])
    slope_tau, slope_power = sympy.diff(loss, TAU), sympy.diff(loss, POWER)
    seed = MatrixSymbol("I", SIZE, SIZE)

    def on_c(function: sympy.MatrixExpr) -> sympy.MatrixExpr:
        derivative = adjoint(function, seed, C_FIELDS, (A_FORM, C_FIELDS)).subs(seed, sympy.Identity(SIZE)).doit()
        return assemble(chains(derivative, (A_FORM, C_FIELDS)), (SIZE, SIZE))

    gradient = slope_tau * on_c(A_FORM * C_FIELDS) + slope_power * on_c(A_FORM * C_FIELDS * A_FORM * C_FIELDS)
    G = (2 * gradient).doit()
    drift: sympy.MatrixExpr = sympy.ZeroMatrix(SIZE, SIZE)
    for path, coefficient in average(first, True).items():
        drift = drift + coefficient * A_FORM * _chain(path)
    difference = sympy.expand((drift - G * C_FIELDS).doit())
    if chains(difference, (A_FORM, C_FIELDS)):
        raise InputError("G", expected="E[g phi^T] = G C", got=str(difference), remedy="check the contraction")
    V: sympy.MatrixExpr = sympy.ZeroMatrix(SIZE, SIZE)
    for path, coefficient in average(square, True).items():
        V = V + coefficient * A_FORM * _chain(path) * A_FORM
    forms = QuadraticForms(loss, G, V.doit(), SIGMA**2 * A_FORM * C_FIELDS * A_FORM)
    step = Step(
        "quadratic committee",
        "Committee of (x^2 - 1)/2 units: traces of products",
        "Delta = (phi^T A phi - n_0)/2 with A = diag(c), n_0 = sum c. Each Isserlis pairing is a path C A C ... and cycles "
        "tr(A C ...); with tau = tr(A C) - n_0 and t_2 = tr(A C A C) the offset drops out of everything. G = S (dL/dC + "
        "transpose) by matrix differentiation, and G C = E[g phi^T], contracted separately, is required. All of it holds in "
        "any basis of rows, A carried along: in difference rows nothing cancels.",
        (
            Equation("L", forms.loss),
            Equation("G", forms.G),
            Equation("V", forms.V),
            Equation(r"V_{\mathrm{label\ noise}}", forms.label),
        ),
        ("gaussian", "square loss", "one token"),
    )
    return step, forms


def write_quadratic(forms: QuadraticForms) -> tuple[Output, Output]:
    """Matrix code for every number of units."""
    names = {TAU: "deviation", POWER: "square", SIGMA: "label_noise"}
    writer = MatrixWriter(names=names, symmetric=frozenset({A_FORM, C_FIELDS}), sizes={SIZE: 16})
    scalars = [
        f"deviation = {writer.trace(A_FORM * C_FIELDS)} - offset",
        f"square = {writer.trace(A_FORM * C_FIELDS * A_FORM * C_FIELDS)}",
    ]
    about = (
        "Delta = (phi^T A phi - offset)/2: A (P, P) is diag(c) in plain rows, B^T diag(c) B for fields with plain = B phi; "
        "offset\nis sum(c) in every basis."
    )
    loss = function_source(
        "quadratic_committee_loss",
        ("C: Array", "A: Array", "offset: Array"),
        f"L = 1/2 E[Delta^2] (scalar), {about}",
        [*scalars, f"return {to_jax(forms.loss, names)}"],
        "Array",
    )
    closure = function_source(
        "quadratic_committee_closure",
        ("C: Array", "A: Array", "offset: Array", "moved: tuple[int, ...]", "label_noise: Array"),
        "(G, V), (p, P) and (p, p), for the p trained rows `moved`: E[g phi^T] = G C and V = E[g g^T].\n\n" + about,
        [
            "rows = np.asarray(moved)",
            *scalars,
            *writer.lines([("G", forms.G), ("V", forms.V + forms.label)], taken=("rows",)),
            "return G[rows], V[np.ix_(rows, rows)]",
        ],
        "tuple[Array, Array]",
    )
    return Output("quadratic_committee_loss", loss), Output("quadratic_committee_closure", closure)
