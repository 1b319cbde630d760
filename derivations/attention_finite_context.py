"""Finite context, order 1/T: one layer with value = identity, any number of heads and readouts.

The softmax average of T tokens is a ratio of two empirical means. Expand it around T = infinity, average over the
context by exponential tilts, then over the query token by quadratic tilts `E[p exp(kappa s s')]`. Drift: gradient of the
corrected loss. Noise: the query token with fluctuating functionals, and the context tokens, whose T slopes of size 1/T
add up to order 1/T.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import sympy

from derivations import attention_checks as checks
from odescale.symbolic.gaussian import Gaussian, covariance_symbols
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Equation, Output, Step
from odescale.symbolic.scalar_writer import assignments

# Two heads g, h with s = phi_q of head g and t = phi_q of head h at the query token; v, w the fields they average,
# k, l their keys. Capital letters are covariances of fields.
s, t = sympy.symbols("s t")
v, k, w, l = sympy.symbols("v k w l")  # noqa: E741
COVARIANCE = covariance_symbols((v, k, w, l))
PAIR = Gaussian((v, k, w, l), sympy.ImmutableMatrix(COVARIANCE))
vk, vw, vl, kk, kw, kl = (COVARIANCE[i, j] for i, j in ((0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)))


@dataclass(frozen=True)
class Average:
    """The softmax average m = m_0 + (1/T) `bias` + fluctuation, Cov(m_g, m_h) = `kernel`/T; `weights` = T sum_s a_s b_s.

    `shift_v`, `spread`: mean of w, and of v w, around the averages of their heads under the product of both weights.
    """

    bias: sympy.Expr
    kernel: sympy.Expr
    weights: sympy.Expr
    shift: sympy.Expr
    spread: sympy.Expr


def softmax_average(scale: sympy.Expr | int) -> tuple[Step, Average]:
    """Mean and covariance of the softmax average to order 1/T, by expanding the ratio of empirical means."""
    c = sympy.sympify(scale)
    up, down = sympy.exp(c * s * k), sympy.exp(c * t * l)
    numerator, denominator = PAIR.expect(v * up), PAIR.expect(up)
    mean = sympy.simplify(numerator / denominator)
    # m = (N + e n)/(D + e d), e = T^(-1/2), n and d the normalised fluctuations of the two empirical means.
    n, d, e, top, bottom = sympy.symbols("n d epsilon N_0 D_0")
    ratio = sympy.series((top + e * n) / (bottom + e * d), e, 0, 3).removeO()
    second = sympy.Poly(sympy.expand(ratio.coeff(e, 2)), n, d)
    moments = {
        (1, 1): PAIR.expect(v * up**2) - numerator * denominator,
        (0, 2): PAIR.expect(up**2) - denominator**2,
    }
    bias = sum(
        (
            coefficient.subs({top: numerator, bottom: denominator}) * moments[power]
            for power, coefficient in second.terms()
        ),
        sympy.S.Zero,
    )
    bias = sympy.simplify(sympy.expand(bias))
    other_mean = sympy.simplify(PAIR.expect(w * down) / PAIR.expect(down))
    norm = denominator * PAIR.expect(down)

    def together(polynomial: sympy.Expr) -> sympy.Expr:
        return sympy.factor_terms(
            sympy.simplify(sympy.expand(PAIR.expect(sympy.expand(polynomial) * up * down) / norm))
        )

    kernel = together((v - mean) * (w - other_mean))
    average = Average(bias, kernel, together(sympy.S.One), together(w - other_mean), kernel)
    step = Step(
        "ratio",
        "Finite context: the softmax average to order 1/T",
        "With T tokens the average is a ratio of empirical means (N_0 + n/sqrt(T))/(D_0 + d/sqrt(T)). Expand to second "
        "order in T^(-1/2) and average over the independent tokens; every moment is an exponential tilt. s and t "
        "are the "
        "query fields of two heads, v and w the fields averaged, k and l their keys. First line: what 1/T adds to the "
        "mean; second: T times the covariance of the two averages.",
        (
            Equation(r"T\,(\mathrm{E}[m_g]-m_g^\infty)", average.bias),
            Equation(r"T\,\mathrm{Cov}(m_g, m_h)", average.kernel),
        ),
        ("gaussian", "independent", "finite context"),
        partial(checks.softmax_ratio, average.bias, average.kernel),
    )
    return step, average


# The fields of the query token that enter: residuals a, b of two outputs, s, t of two heads; M their tilted covariance.
a, b = sympy.symbols("a b")
M_SYMBOLS = covariance_symbols((a, b, s, t), "M")
TILTED = Gaussian((a, b, s, t), sympy.ImmutableMatrix(M_SYMBOLS))
x, y, z, kappa, root = sympy.symbols("x y z kappa n")


def strip(expression: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    """The polynomial in front of `exp(exponent)`."""
    polynomial = sympy.expand(sympy.simplify(expression * sympy.exp(-exponent)))
    assert not polynomial.has(sympy.exp), polynomial
    return polynomial


@dataclass(frozen=True)
class QueryMoments:
    """Averages over the query token; polynomials in the tilted covariance M times n unless a closed form is named."""

    weight: sympy.Expr
    tilt: tuple[sympy.Expr, sympy.Expr, sympy.Expr]
    pair: sympy.Expr
    product: sympy.Expr
    polynomials: dict[str, sympy.Expr]


def query_average(average: Average, scale: sympy.Expr | int) -> tuple[Step, QueryMoments]:
    """Expectations over the query token by quadratic tilts with Omega = kappa (e_s e_t^T + e_t e_s^T)."""
    c = sympy.sympify(scale)
    one = c**2 * s**2 * kk
    both = c**2 * s * t * kl
    query = Gaussian((s, t), sympy.ImmutableMatrix([[x, z], [z, y]]))
    weight, tilted = query.tilt(kappa * s * t)
    weight = sympy.factor(sympy.simplify(weight**-2)) ** sympy.Rational(-1, 2)
    # Response of the covariance of any two fields: M_uw = C_uw + sum W_st (C_us C_tw + C_ut C_sw) + ...
    omega = sympy.Matrix([[0, kappa], [kappa, 0]])
    block = sympy.Matrix([[x, z], [z, y]])
    determinant = sympy.expand((sympy.eye(2) - block * omega).det())
    response = (omega * (sympy.eye(2) - block * omega).adjugate() / determinant).applyfunc(sympy.factor)
    kernel = strip(average.kernel, both)
    pair = (weight * query_polynomial(kernel, tilted.covariance)).subs(kl, kappa / c**2)
    residual = sympy.Symbol("r")
    single = Gaussian((a, s), sympy.ImmutableMatrix([[sympy.Symbol("C_aa"), residual], [residual, x]]))
    product = sympy.simplify(single.expect(a * average.bias))
    expect = {
        "bias": TILTED.expect(a * strip(average.bias, one)),
        "bias_slope": TILTED.expect(sympy.expand(a * b * strip(sympy.diff(average.bias, s), one))),
        "kernel": TILTED.expect(kernel),
        "kernel_slope": TILTED.expect(sympy.expand(a * strip(sympy.diff(average.kernel, t), both))),
        "kernel_slopes": TILTED.expect(sympy.expand(a * b * strip(sympy.diff(average.kernel, s, t), both))),
        "read_read": TILTED.expect(sympy.expand(a * b * strip(average.weights, both))),
        "read_key": TILTED.expect(sympy.expand(a * b * c * t * strip(average.shift, both))),
        "key_key": TILTED.expect(sympy.expand(a * b * c**2 * s * t * strip(average.spread, both))),
    }
    step = Step(
        "query",
        "Averages over the query token: quadratic tilts",
        "Left to do are Gaussian averages of polynomials times exp(kappa s t), kappa = C_kl. A quadratic tilt "
        "changes the "
        "covariance: M = (1 - C Omega)^-1 C with weight n = det(1 - C Omega)^(-1/2); x, y, z are the variances "
        "of s and t "
        "and their covariance. They exist for (1 - kappa z)^2 > kappa^2 x y, which for one head reads 2 C_kk C_qq < 1: "
        "outside, the expansion diverges. First line: n; second: the mean of T Cov(m_g, m_h); third: E[a bias] with "
        "r = Cov(a, s), a the residual of an output at infinite context.",
        (
            Equation("n", weight),
            Equation(r"T\,\mathrm{E}\,\mathrm{Cov}(m_g,m_h)", pair),
            Equation(r"T\,\mathrm{E}[a\,(\mathrm{E}[m_g]-m_g^\infty)]", product),
        ),
        ("gaussian", "finite context"),
        partial(checks.query_average, pair, scale),
    )
    moments = QueryMoments(weight, (response[0, 0], response[0, 1], response[1, 1]), pair, product, expect)
    return step, moments


def query_polynomial(polynomial: sympy.Expr, covariance: sympy.Matrix) -> sympy.Expr:
    """Isserlis for a polynomial of s, t with the covariance given."""
    return Gaussian((s, t), sympy.ImmutableMatrix(covariance.applyfunc(sympy.simplify))).expect(polynomial)


def corrected_theory(moments: QueryMoments, outputs: tuple[Output, ...], scale: sympy.Expr | int) -> Step:
    """Loss, drift and noise put together."""
    return Step(
        "finite",
        "Loss, drift and noise with the terms of order 1/T",
        "The loss below sums over outputs i and over heads g, h, those "
        "of the student with sigma = +1, of the teacher with -1, Delta_i = b_i.phi at infinite context. Drift: "
        "G = S (dL_T/dC + transpose), which holds every context token's share by the chain rule. Noise: to order 1/T, "
        "V = S E[g g^T] S of the query token, Delta_i and the functionals a_i (through the slope of m in s) "
        "fluctuating "
        "together, plus sum over context tokens of E[g_s g_s^T], with slopes Delta_i a_s in a readout's field and "
        "c Delta_i s a_s (v_s - m) in a key's. The last lines give the context part for one head and one output, "
        "Delta = a = b, "
        "s = t: readout-readout, readout-key, key-key.",
        (
            Equation(
                "L_T",
                r"L + \frac{1}{T}\sum_i\Big[\sum_h \sigma_h\, "
                r"T\,\mathrm{E}[\Delta_i\,(\mathrm{E}[m_{ih}]-m_{ih}^\infty)]"
                r" + \tfrac12\sum_{gh}\sigma_g\sigma_h\, T\,\mathrm{E}\,\mathrm{Cov}(m_{ig},m_{ih})\Big]",
            ),
        )
        + tuple(
            Equation(label, (root * moments.polynomials[name]))
            for label, name in (
                (r"T\,V_{rr}", "read_read"),
                (r"T\,V_{rk}", "read_key"),
                (r"T\,V_{kk}", "key_key"),
            )
        ),
        ("gaussian", "finite context", "square loss"),
        partial(checks.finite_context, outputs, scale),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Writing it out: all outputs and pairs of heads at once, as arrays
# ---------------------------------------------------------------------------------------------------------------------

_NAMES: dict[sympy.Basic, str] = {
    vw: "vw", vl: "vl", kw: "kw", vk: "vk", kk: "kk", kl: "kl", x: "x", y: "y", z: "z", kappa: "kappa", root: "n",
    sympy.Symbol("r"): "r",
    **{M_SYMBOLS[i, j]: f"M_{f}{g}" for i, f in enumerate("abst") for j, g in enumerate("abst") if i <= j},
}  # fmt: skip


def _helper(name: str, arguments: str, doc: str, targets: list[tuple[str, sympy.Expr]]) -> Output:
    body = assignments([(n, e) for n, e in targets], _NAMES, prefix="u")
    body.append(f"return {', '.join(n for n, _ in targets)}")
    returns = "Array" if len(targets) == 1 else f"tuple[{', '.join(['Array'] * len(targets))}]"
    return Output(name, function_source(name, tuple(f"{a}: Array" for a in arguments.split()), doc, body, returns))


def helpers(moments: QueryMoments) -> list[Output]:
    """The scalar formulas, each elementwise on arrays."""
    p = moments.polynomials
    pair_arguments = (kappa, x, y, z, vw, vl, kw)
    product_arguments = (sympy.Symbol("r"), x, kk, vk)
    out = [
        _helper("pair_covariance", "kappa x y z vw vl kw", "T E Cov(m_g, m_h) over the query token.",
                [("value", moments.pair)]),
        _helper("pair_slopes", "kappa x y z vw vl kw", "Derivatives of `pair_covariance` in its arguments.",
                [(f"d_{_NAMES[q]}", sympy.diff(moments.pair, q)) for q in pair_arguments]),
        _helper("bias_product", "r x kk vk", "T E[Delta (E[m] - m at infinite context)] over the query token.",
                [("value", moments.product)]),
        _helper("bias_slopes", "r x kk vk", "Derivatives of `bias_product` in its arguments.",
                [(f"d_{_NAMES[q]}", sympy.diff(moments.product, q)) for q in product_arguments]),
        _helper("query_tilt", "kappa x y z", "n and the response W of `M_uw = C_uw + (C_us, C_ut) W (C_sw, C_tw)^T`.",
                [("n", moments.weight), *zip(("W_ss", "W_st", "W_tt"), moments.tilt, strict=True)]),
    ]  # fmt: skip
    for name, arguments, doc in (
        ("bias", "M_as vk", "T E[a bias] / n"),
        ("bias_slope", "M_ab M_as M_bs M_ss kk vk", "T E[a b d bias/ds] / n"),
        ("kernel", "M_st vw vl kw", "T E[Cov(m_g, m_h)] / n"),
        ("kernel_slope", "M_as M_at M_ss M_st kl vw vl kw", "T E[a d Cov(m_g, m_h)/dt] / n"),
        ("kernel_slopes", "M_ab M_as M_at M_bs M_bt M_ss M_st M_tt kl vw vl kw", "T E[a b d2 Cov(m_g, m_h)/ds dt] / n"),
        ("read_read", "M_ab", "context noise, readout with readout"),
        ("read_key", "M_ab M_as M_at M_bs M_bt M_st kw", "context noise, readout (g) with key (h)"),
        ("key_key", "M_ab M_as M_at M_bs M_bt M_ss M_st M_tt vw vl kw", "context noise, key with key"),
    ):
        needed = {_NAMES[symbol] for symbol in p[name].free_symbols}
        assert needed <= set(arguments.split()), (name, needed)
        out.append(_helper(f"moment_{name}", arguments, f"{doc}.", [("value", p[name])]))
    return out


_TABLES = [
    "sides = [(1.0, head, student) for head in student.layers[0]] + [(-1.0, head, teacher) for head in "
    "teacher.layers[0]]",
    "sign = jnp.asarray([side[0] for side in sides], dtype=C.dtype)",
    "active = jnp.asarray([0.0 if side[1].query is None else 1.0 for side in sides], dtype=C.dtype)",
    "query = jnp.asarray([side[1].query or 0 for side in sides])",
    "key = jnp.asarray([side[1].key or 0 for side in sides])",
    "read = jnp.asarray([[side[2].readouts[i] for side in sides] for i in range(len(student.readouts))])",
]

_REFUSE = [
    "for network in (student, teacher):",
    "    if len(network.layers) != 1 or any(head.output is not None for head in network.layers[0]):",
    '        raise InputError("tokens", expected="one layer of heads with value = identity for the order-1/T correction",',
    '                         got=f"{len(network.layers)} layers or value/output rows",'
    ' remedy="use the infinite-context theory (tokens = inf)")',
]

_COVARIANCES = [
    "x = active[:, None] * C[query, query][:, None] + 0 * active",
    "y = x.T",
    "z = active[:, None] * active * C[query[:, None], query]",
    "kl = C[key[:, None], key]",
    "vw = C[read[:, None, :, None], read[None, :, None, :]]",
    "vl = C[read[:, :, None], key]",
    "r = active * (b @ C)[:, query]",
]


_NOISE_BODY = [
    # V of the query token is sum_ij E[(D+delta)_i (D+delta)_j (a+alpha)_i (a+alpha)_j^T], alpha_i = sum_h dm_hi/ds
    # e_qh.
    "kw = jnp.swapaxes(vl, 1, 2)",
    "own = jnp.arange(len(sides))",
    "m = len(student.layers[0])",
    "M_ab = (K[:, :, None, None] + W_ss * r_s[:, None] * r_s + W_tt * r_t[:, None] * r_t",
    "        + W_st * (r_s[:, None] * r_t + r_t[:, None] * r_s))",
    "A_s, A_t, B_s, B_t = M_s[:, None], M_t[:, None], M_s[None], M_t[None]",
    "kernel = n * moment_kernel(M_st, full_vw, vl[:, None], kw[None])",
    'residuals = jnp.einsum("ijgh,g,h->ij", kernel, sign, sign)',
    "bias = jnp.sum(sign * n[own, own] * moment_bias(M_s[:, None, own, own], vk[None]), axis=-1)",
    "residuals = residuals + bias + bias.T",
    "slope = n[own, own] * moment_bias_slope(",
    "    M_ab[:, :, own, own], M_s[:, None, own, own], M_s[None, :, own, own], M_ss[own, own], kk, vk[None])",
    "slope = slope + jnp.sum((sign[:, None] * n * (",
    "    moment_kernel_slope(A_s, A_t, M_ss, M_st, kl, vw[None], vl[None], kw[None])",
    "    + moment_kernel_slope(B_s, B_t, M_ss, M_st, kl, full_vw, vl[:, None], kw[None]))), axis=2)",
    "mixed = (active * jnp.sum(slope, axis=1))[:, :m]",
    "slopes = n * moment_kernel_slopes(",
    "    M_ab, A_s, A_t, B_s, B_t, M_ss, M_st, M_tt, kl, full_vw, vl[:, None], kw[None])",
    "slopes = (on * jnp.sum(slopes, axis=(0, 1)))[:m, :m]",
    "read_read = jnp.sum((n * moment_read_read(M_ab))[:, :, :m, :m], axis=(2, 3))",
    "read_key = n * moment_read_key(M_ab, A_s, A_t, B_s, B_t, M_st, kw[None])",
    "read_key = (active * jnp.sum(read_key[:, :, :m], axis=(1, 2)))[:, :m]",
    "key_key = n * moment_key_key(M_ab, A_s, A_t, B_s, B_t, M_ss, M_st, M_tt, full_vw, vl[:, None], kw[None])",
    "key_key = (on * jnp.sum(key_key, axis=(0, 1)))[:m, :m]",
    "U_q, U_k, U_r = unit[query[:m]], unit[key[:m]], unit[jnp.asarray(student.readouts)]",
    "across = a.T @ mixed @ U_q + U_r.T @ read_key @ U_k",
    "V = a.T @ residuals @ a + U_q.T @ slopes @ U_q + U_r.T @ read_read @ U_r + U_k.T @ key_key @ U_k",
    "V = V + across + across.T",
]


def write_functions(moments: QueryMoments, scale: sympy.Expr | int, noise_on: bool = True) -> list[Output]:
    """`finite_context_loss`, `finite_context_closure` and their helpers."""
    c2 = sympy.sympify(scale) ** 2
    times = "" if c2 == 1 else f"{float(c2)!r} * "
    arguments = "kappa, x, y, z, vw, vl, jnp.swapaxes(vl, 1, 2)"
    same = [
        "kappa = " + times + "kl",
        "vw = vw[jnp.arange(read.shape[0]), jnp.arange(read.shape[0])]",
        "vk = vl[:, jnp.arange(len(sides)), jnp.arange(len(sides))]",
        "kk = jnp.diagonal(kl)",
        "variance = jnp.diagonal(x)",
    ]
    loss = function_source(
        "finite_context_loss",
        ("C: Array", "tokens: Array", "student", "teacher"),
        "L_T (scalar) to order 1/T: one layer, value = identity, `tokens` = T context tokens.\n\n"
        "The expansion diverges where (1 - kappa z)^2 <= kappa^2 x y for a pair of heads, for one head where\n"
        "2 C_kk C_qq >= 1 (query and key rows of student or teacher); values there are meaningless or NaN.",
        [
            *_REFUSE,
            "b = functionals(C, C, student) - functionals(C, C, teacher)",
            *_TABLES,
            *_COVARIANCES,
            *same,
            f"covariance = pair_covariance({arguments})",
            "bias = bias_product(r, variance, kk, vk)",
            'correction = jnp.sum(bias * sign) + 0.5 * jnp.einsum("igh,g,h->", covariance, sign, sign)',
            "return population_loss(C, C, student, teacher) + correction / tokens",
        ],
        "Array",
    )
    scatter = [
        "dC = jnp.zeros_like(C)",
        "weight = 0.5 * sign[:, None] * sign / tokens",
        f"d_kappa, d_x, d_y, d_z, d_vw, d_vl, d_kw = pair_slopes({arguments})",
        "d_r, d_xx, d_kk, d_vk = bias_slopes(r, variance, kk, vk)",
        "q_g, q_h, k_g, k_h = query[:, None], query[None, :], key[:, None], key[None, :]",
        "v_g, v_h = read[:, :, None], read[:, None, :]",
        "on = active[:, None] * active",
        "shape = (read.shape[0], len(sides), len(sides))",
        "for row, column, slope in (",
        f"    (k_g, k_h, {times}d_kappa),",
        "    (q_g, q_g, active[:, None] * d_x),",
        "    (q_h, q_h, active * d_y),",
        "    (q_g, q_h, on * d_z),",
        "    (v_g, v_h, d_vw),",
        "    (v_g, k_h, d_vl),",
        "    (k_g, v_h, d_kw),",
        "):",
        "    dC = dC.at[jnp.broadcast_to(row, shape), jnp.broadcast_to(column, shape)].add(weight * slope)",
        "d_r = active * sign * d_r / tokens",
        "for row, column, slope in ((query, query, active * d_xx), (key, key, d_kk), (read, key, d_vk)):",
        "    indices = jnp.broadcast_to(row, read.shape), jnp.broadcast_to(column, read.shape)",
        "    dC = dC.at[indices].add(sign * slope / tokens)",
        "on_outputs = d_r @ C[query]",
        "dC = dC + b.T @ (d_r @ unit[query])",
    ]
    noise = [
        "n, W_ss, W_st, W_tt = query_tilt(kappa, x, y, z)",
        "r_s, r_t = r[:, :, None], r[:, None, :]",
        "M_s = r_s * (1 + W_ss * x + W_st * z) + r_t * (W_st * x + W_tt * z)",
        "M_t = r_s * (W_ss * z + W_st * y) + r_t * (1 + W_st * z + W_tt * y)",
        "M_ss = x + W_ss * x * x + 2 * W_st * x * z + W_tt * z * z",
        "M_tt = y + W_ss * z * z + 2 * W_st * z * y + W_tt * y * y",
        "M_st = z + W_ss * x * z + W_st * (x * y + z * z) + W_tt * z * y",
        "K = b @ C @ b.T",
    ]
    closure = function_source(
        "finite_context_closure",
        ("C: Array", "tokens: Array", "student", "teacher", "trained: Array"),
        "(G, V), each (P, P), to order 1/T: one layer, value = identity, `tokens` = T context tokens.\n\n"
        "G = S (dL_T/dC + dL_T/dC^T) with L_T of `finite_context_loss` (same domain); V = S E[sum_s g_s g_s^T] S over the\n"
        "query token and the T context tokens.",
        [
            *_REFUSE,
            "unit = jnp.eye(C.shape[0], dtype=C.dtype)",
            "a = functionals(C, C, student)",
            "b = a - functionals(C, C, teacher)",
            *_TABLES,
            *_COVARIANCES,
            *(("full_vw = vw",) if noise_on else ()),
            *same,
            *scatter,
            "G0, H0, V0 = closure(C, C, student, teacher, trained)",
            "dC = dC + pull_back(on_outputs, C, C, student)[0]",
            "G = G0 + trained[:, None] * (dC + dC.T)",
            *((*noise, *_NOISE_BODY, "V = V0 + trained[:, None] * V * trained / tokens") if noise_on else ("V = V0",)),
            "return G, V",
        ],
        "tuple[Array, Array]",
    )
    return [*helpers(moments), Output("finite_context_loss", loss), Output("finite_context_closure", closure)]
