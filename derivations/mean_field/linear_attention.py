"""One layer of linear attention at T tokens, student and teacher: L, G and V exact in C and T, by Stein's identity for averages.

    f = phi_r + phi_q U_kr,     U_bc = (1/T) sum_t phi_bt phi_ct over all T tokens, fields without a sum at the query token

Everything is written in difference rows (student - teacher): each term of f - f* has one of them as a factor, so that
the loss is a sum of products of small things when the student is near its teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement

import sympy
from sympy import S

from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Equation, Output, Step
from odescale.symbolic.scalar_writer import assignments, to_jax

TOKENS = sympy.Symbol("T", positive=True)
SMALL, TEACHER, STUDENT = ("dq", "dk", "dr"), ("q*", "k*", "r*"), ("q", "k", "r")
BASIS = (*SMALL, *TEACHER)
ROWS = (*BASIS, *STUDENT)
"""Rows that the formulas name: differences, teacher, and student = difference + teacher."""

Form = tuple[str, str]
Term = tuple[tuple[str, ...], tuple[Form, ...]]
"""A product of fields at the query token and of token averages U_bc."""


# ---------------------------------------------------------------------------------------------------------------------
# Stein's identity for token averages
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SteinRule:
    """`at_query`: what pairing a field of the query token with one of U_bc leaves of the other: coefficient x field.

    `within`: coefficient of C_bc when the two fields of U_bc are paired; `across`: of C_be U_cf when U_bc meets U_ef.
    """

    at_query: sympy.Expr
    within: sympy.Expr
    across: sympy.Expr


def stein_rule(query_attended: bool) -> SteinRule:
    """The three coefficients, by differentiating U_bc in the fields of one of its tokens."""
    b, c, e, f, rest = sympy.symbols("b c e f rest")
    count = TOKENS if query_attended else TOKENS - 1

    def average(x: sympy.Expr, y: sympy.Expr, contains: bool) -> sympy.Expr:
        return ((x * y if contains else S.Zero) + rest) / count

    # x at the query token: E[x F] = sum_y C_xy E[dF/dy at that token].
    at_query = sympy.diff(average(b, c, query_attended), b) / c
    # (1/count) sum_t b_t c_t F: Stein on b_t gives C_bc E[F] and sum_t c_t (1/count) C_be dU_ef/de_t = C_be U_cf / count.
    within = count / count
    across = sympy.diff(average(e, f, True), e) / f
    return SteinRule(at_query, S(within), across)


def token_moment(
    singles: tuple[str, ...], forms: tuple[Form, ...], covariance: Mapping[frozenset[str], sympy.Expr], rule: SteinRule
) -> sympy.Expr:
    """E[prod x prod U_bc]: Stein's identity until nothing is left; the same recursion as in the generated code."""
    if singles:
        x, *others = singles
        total = S.Zero
        for n, y in enumerate(others):
            left = (*others[:n], *others[n + 1 :])
            total += covariance[frozenset((x, y))] * token_moment(left, forms, covariance, rule)
        for n, (b, c) in enumerate(forms):
            left = (*forms[:n], *forms[n + 1 :])
            for met, free in ((b, c), (c, b)):
                link = rule.at_query * covariance[frozenset((x, met))]
                total += link * token_moment((free, *others), left, covariance, rule)
        return sympy.expand(total)
    if forms:
        (b, c), *rest = forms
        total = rule.within * covariance[frozenset((b, c))] * token_moment((), tuple(rest), covariance, rule)
        for n, (e, f) in enumerate(rest):
            left = (*rest[:n], *rest[n + 1 :])
            for met, free in ((e, f), (f, e)):
                link = rule.across * covariance[frozenset((b, met))]
                total += link * token_moment((), ((c, free), *left), covariance, rule)
        return sympy.expand(total)
    return S.One


def covariance_table(names: tuple[str, ...], letter: str = "C") -> dict[frozenset[str], sympy.Symbol]:
    """{pair of names: its covariance symbol}."""
    return {
        frozenset((x, y)): sympy.Symbol(f"{letter}_{x}{y}") for n, x in enumerate(names) for y in names[n:]
    }  # fmt: skip


def token_averages(query_attended: bool) -> tuple[Step, SteinRule]:
    """The rule, with the moment of two averages as its first use."""
    rule = stein_rule(query_attended)
    table = covariance_table(("x", "y", "b", "c", "e", "f"))
    single = token_moment(("x", "y"), (("b", "c"),), table, rule)
    pair = token_moment((), (("b", "c"), ("e", "f")), table, rule)
    step = Step(
        "token averages",
        "Stein's identity for averages over independent tokens",
        "A field x of the query token is paired with another field of that token, C_xy, or with one factor of an average "
        "U_bc = (1/T) sum_t b_t c_t, of which only the query token's summand depends on it: C_xb c/T is left. Without "
        "single fields, the two factors of U_bc are paired with each other, C_bc, or with a factor of another average, "
        "whose token must then be the same: C_be U_cf/T. The recursion ends after one pairing per pair of fields; every "
        "moment is a polynomial in C and 1/T.",
        (
            Equation(r"\mathrm{E}[x\,y\,U_{bc}]", single),
            Equation(r"\mathrm{E}[U_{bc}U_{ef}]", pair),
        ),
        ("gaussian", "independent"),
    )
    return step, rule


# ---------------------------------------------------------------------------------------------------------------------
# The layer
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionForms:
    """`error`: the terms of f - f*; `loss` in covariances of `ROWS`; `products[i, j]`: sum_t df/dphi_it df/dphi_jt.

    `products` are {(singles, forms): coefficient} for student rows i <= j in the order q, k, r.
    """

    error: tuple[Term, ...]
    loss: sympy.Expr
    products: dict[tuple[int, int], dict[Term, sympy.Expr]]


def _error_terms() -> tuple[Term, ...]:
    """f - f* telescoped: one factor at a time is replaced by its difference; checked by multiplying out."""
    terms: list[Term] = [(("dr",), ())]
    names, stars, small = STUDENT, TEACHER, SMALL
    for place in range(3):
        chosen = [names[n] if n > place else stars[n] if n < place else small[n] for n in range(3)]
        terms.append(((chosen[0],), ((chosen[1], chosen[2]),)))
    symbols = {name: sympy.Symbol(name) for name in BASIS}
    student = {name: symbols[d] + symbols[t] for name, d, t in zip(names, small, stars, strict=True)}
    values = symbols | student

    def value(term: Term) -> sympy.Expr:
        return sympy.Mul(*(values[x] for x in term[0]), *(values[x] * values[y] for x, y in term[1]))

    direct = (
        values["r"]
        + values["q"] * values["k"] * values["r"]
        - values["r*"]
        - values["q*"] * values["k*"] * values["r*"]
    )
    assert sympy.expand(sum(map(value, terms)) - direct) == 0
    return tuple(terms)


def _slope_products(query_attended: bool) -> dict[tuple[int, int], dict[Term, sympy.Expr]]:
    """sum_t df/dphi_it df/dphi_jt: the query token's slopes, and those of a context token summed over the context."""
    at = {name: sympy.Symbol(name) for name in STUDENT}
    other = {name: sympy.Symbol(f"{name}_s") for name in STUDENT}
    rest = sympy.Symbol("rest")
    count = TOKENS if query_attended else TOKENS - 1
    own = at["k"] * at["r"] if query_attended else S.Zero
    average = (own + other["k"] * other["r"] + rest) / count
    f = at["r"] + at["q"] * average
    U = {pair: sympy.Symbol(f"U_{pair[0]}{pair[1]}") for pair in (("k", "k"), ("k", "r"), ("r", "r"))}
    whole = sympy.solve(average - U["k", "r"], rest)[0]
    query = [sympy.expand(sympy.diff(f, at[name]).subs(rest, whole)) for name in STUDENT]
    context = [sympy.diff(f, other[name]) for name in STUDENT]
    products = {}
    for i, j in combinations_with_replacement(range(3), 2):
        one = sympy.Poly(context[i] * context[j], *other.values())
        summed = S.Zero
        for powers, coefficient in one.terms():
            x, y = sorted(name for name, n in zip(STUDENT, powers, strict=True) for _ in range(n)) or ("", "")
            if x:
                inside = at[x] * at[y] if query_attended else S.Zero
                summed += coefficient * (count * U[x, y] - inside)
        total = sympy.Poly(sympy.expand(query[i] * query[j] + summed), *at.values(), *U.values())
        table: dict[Term, sympy.Expr] = {}
        for powers, coefficient in total.terms():
            singles = tuple(name for name, n in zip(STUDENT, powers[:3], strict=True) for _ in range(n))
            forms = tuple(pair for pair, n in zip(U, powers[3:], strict=True) for _ in range(n))
            table[singles, forms] = sympy.factor(coefficient)
        products[i, j] = table
    return products


def linear_attention(rule: SteinRule, query_attended: bool) -> tuple[Step, AttentionForms]:
    """Population loss, and the moments that V is made of."""
    error = _error_terms()
    table = covariance_table(ROWS)
    loss = S.Zero
    for (x, forms), (y, others) in ((m, n) for m in error for n in error):
        loss += token_moment((*x, *y), (*forms, *others), table, rule) / 2
    forms_of = AttentionForms(error, sympy.expand(loss), _slope_products(query_attended))
    text = {pair: sum(_symbol(term) * c for term, c in terms.items()) for pair, terms in forms_of.products.items()}
    step = Step(
        "linear attention",
        "One layer of linear attention at T tokens",
        "Square loss of the query token's output against a teacher of the same form. In difference rows dq = q - q*, ... the "
        "error is the first line (q, k, r the student's rows), the loss the sum of its moments: a polynomial in C and 1/T. G = "
        "S (dL/dC + transpose), rows of tokens being independent. V = sum_t E[g_t g_t^T] = E[Delta^2 h_ij] with "
        "h_ij = sum_t df/dphi_it df/dphi_jt below: the slopes at the query token, and those at context tokens, summed. "
        "Fields of degree ten; the code applies the rule above to arrays of rows, one array for each number of fields and "
        "averages. Label noise adds sigma^2 E[h_ij].",
        (
            Equation(r"\Delta", sum(_symbol(term) for term in error)),
            Equation("L", rf"\text{{{len(sympy.Add.make_args(forms_of.loss))} monomials in }} C_{{xy}}, T"),
            *(Equation(f"h_{{{STUDENT[i]}{STUDENT[j]}}}", value) for (i, j), value in text.items()),
        ),
        ("gaussian", "square loss", "independent"),
    )
    return step, forms_of


def _symbol(term: Term) -> sympy.Expr:
    names = {"dq": r"\delta_q", "dk": r"\delta_k", "dr": r"\delta_r", "q*": "q^*", "k*": "k^*", "r*": "r^*"}
    singles = (sympy.Symbol(names.get(x, x)) for x in term[0])
    forms = (sympy.Symbol(f"U_{{{names.get(x, x)} {names.get(y, y)}}}") for x, y in term[1])
    return sympy.Mul(*singles, *forms)


# ---------------------------------------------------------------------------------------------------------------------
# Code
# ---------------------------------------------------------------------------------------------------------------------


def _requests(forms: AttentionForms) -> dict[tuple[int, int], list[tuple[list[int], int, sympy.Expr, bool]]]:
    """{(singles, averages): [(rows of ROWS slot by slot, entry 3 i + j, coefficient, label noise?)]}."""
    found: dict[tuple[int, int], list[tuple[list[int], int, sympy.Expr, bool]]] = {}
    squares: list[tuple[Term | None, sympy.Expr]] = [(None, S.One)]
    for m, n in combinations_with_replacement(range(len(forms.error)), 2):
        (x, first), (y, second) = forms.error[m], forms.error[n]
        squares.append((((*x, *y), (*first, *second)), S(1 if m == n else 2)))
    for (i, j), terms in forms.products.items():
        for (singles, averages), coefficient in terms.items():
            for square, twice in squares:
                fields = (*(square[0] if square else ()), *singles)
                pairs = (*(square[1] if square else ()), *averages)
                slots = [ROWS.index(x) for x in (*fields, *(x for pair in pairs for x in pair))]
                request = (slots, 3 * i + j, twice * coefficient, square is None)
                found.setdefault((len(fields), len(pairs)), []).append(request)
    return found


def write(forms: AttentionForms, rule: SteinRule) -> tuple[Output, ...]:
    """`token_moment`, `linear_attention_loss`, `linear_attention_closure`."""
    names: dict[sympy.Basic, str] = {TOKENS: "tokens"}
    moment = function_source(
        "token_moment",
        ("C: Array", "fields: np.ndarray", "singles: int", "tokens: Array"),
        "E[prod x prod U_bc] (n,) for n products of `singles` fields of the query token and averages\nU_bc = (1/T) sum_t "
        "b_t c_t; `fields` (n, singles + 2 averages): rows of C (P, P), the averages' two by two. By Stein's identity.",
        [
            "pair = C[fields[:, :, None], fields[:, None, :]]",
            "known = {}",
            "",
            "def moment(single, forms):",
            "    key = (single[:1], frozenset(single[1:]), frozenset(forms))",
            "    if key in known:",
            "        return known[key]",
            "    total = jnp.zeros(fields.shape[0], C.dtype)",
            "    if single:",
            "        x, others = single[0], single[1:]",
            "        for n, y in enumerate(others):",
            "            total += pair[:, x, y] * moment(others[:n] + others[n + 1 :], forms)",
            *(
                [
                    "        for n, (b, c) in enumerate(forms):",
                    "            left = forms[:n] + forms[n + 1 :]",
                    "            for met, free in ((b, c), (c, b)):",
                    f"                total += {to_jax(rule.at_query, names)} * pair[:, x, met] * moment((free, *others), left)",
                ]
                if rule.at_query != 0
                else []
            ),
            "    elif forms:",
            "        (b, c), rest = forms[0], forms[1:]",
            f"        total += {to_jax(rule.within, names)} * pair[:, b, c] * moment((), rest)",
            "        for n, (e, f) in enumerate(rest):",
            "            left = rest[:n] + rest[n + 1 :]",
            "            for met, free in ((e, f), (f, e)):",
            f"                total += {to_jax(rule.across, names)} * pair[:, b, met] * moment((), ((c, free), *left))",
            "    else:",
            "        total = jnp.ones(fields.shape[0], C.dtype)",
            "    known[key] = total",
            "    return total",
            "",
            "start = tuple((n, n + 1) for n in range(singles, fields.shape[1], 2))",
            "return moment(tuple(range(singles)), start)",
        ],
        "Array",
    )
    about = (
        "C (6, 6): covariance of the fields of rows (q - q*, k - k*, r - r*, q*, k*, r*); `tokens` T >= 1, the query token\n"
        "among them."
    )
    size = len(BASIS)
    rows = [[int(name == base) for base in BASIS] for name in BASIS]
    rows += [[rows[n][m] + rows[n + 3][m] for m in range(size)] for n in range(3)]
    extend = [
        f"rows = jnp.array({rows}, dtype=C.dtype)  # and the student's rows as sums",
        "C = rows @ C @ rows.T",
    ]
    table = covariance_table(ROWS)
    for pair, symbol in table.items():
        first, *second = sorted(ROWS.index(x) for x in pair)
        names[symbol] = f"C[{first}, {second[0] if second else first}]"
    loss = function_source(
        "linear_attention_loss",
        ("C: Array", "tokens: Array"),
        "L = 1/2 E[(f - f*)^2] (scalar), every term the product of two covariances with differences. " + about,
        [*extend, *assignments([("loss", forms.loss)], names, prefix="u"), "return loss"],
        "Array",
    )
    slopes, entries = [], [["0.0"] * len(ROWS) for _ in ROWS]
    for pair, symbol in table.items():
        first, *second = sorted(ROWS.index(x) for x in pair)
        derivative = sympy.diff(forms.loss, symbol)
        if derivative != 0:
            last = second[0] if second else first
            entries[first][last] = f"d_{first}_{last}"
            slopes.append((entries[first][last], derivative))
    noise: list[str] = []
    for (singles, averages), requests in sorted(_requests(forms).items()):
        table_of = [request[0] for request in requests]
        weight = [_weight(coefficient, label) for _, _, coefficient, label in requests]
        place = [request[1] for request in requests]
        noise += [
            f"fields = np.array({table_of}, dtype=int)",
            f"weight = jnp.stack([jnp.asarray(x, C.dtype) for x in [{', '.join(weight)}]])",
            f"place = np.array({place})",
            f"total = total.at[place].add(weight * token_moment(C, fields.reshape({len(requests)}, "
            f"{singles + 2 * averages}), {singles}, tokens))",
        ]
    closure = function_source(
        "linear_attention_closure",
        ("C: Array", "tokens: Array", "label_noise: Array"),
        "(G, V), (3, 6) and (3, 3), for the student's rows q, k, r: sum_t E[g_t phi_t^T] = G C, V = sum_t E[g_t g_t^T].\n\n"
        "`label_noise`: standard deviation of labels. " + about,
        [
            *extend,
            *assignments(slopes, names, prefix="u"),
            "slope = jnp.array([",
            *(f"    [{', '.join(line)}]," for line in entries),
            "])",
            "G = (rows.T @ (slope + slope.T) @ rows)[:3]",
            "",
            "# V = E[Delta^2 h]: rows of fields, coefficients and the entry 3 i + j, by numbers of single fields and averages.",
            "total = jnp.zeros(9, C.dtype)",
            *noise,
            "upper = total.reshape(3, 3)",
            "V = upper + upper.T - jnp.diag(jnp.diagonal(upper))",
            "return G, V",
        ],
        "tuple[Array, Array]",
    )
    return (
        Output("token_moment", moment),
        Output("linear_attention_loss", loss),
        Output("linear_attention_closure", closure),
    )


def _weight(coefficient: sympy.Expr, label: bool) -> str:
    return to_jax(coefficient * (sympy.Symbol("label_noise") ** 2 if label else 1), {TOKENS: "tokens"})
