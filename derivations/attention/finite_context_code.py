"""The generated functions at order 1/T: all outputs and pairs of heads at once, as arrays."""

from __future__ import annotations

import sympy

from derivations.attention.finite_context import M_SYMBOLS, QueryMoments, kappa, kk, kl, kw, root, vk, vl, vw, x, y, z
from odescale.symbolic.module_writer import function_source
from odescale.symbolic.record import Output
from odescale.symbolic.scalar_writer import assignments, to_jax

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
    "    if len(network.layers) != 1 or any(head.output is not None or head.rank > 1 for head in network.layers[0]):",
    '        raise InputError("tokens", expected="one layer of rank-one heads, value = identity, for the order-1/T correction",',
    '                         got=f"{len(network.layers)} layers, value/output rows or a higher rank",'
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


def _tilted_lines() -> list[str]:
    """`M_uw = C_uw + (C_us, C_ut) W (C_sw, C_tw)^T` for the fields s, t of two heads and residuals a, b of two outputs."""
    response = sympy.Matrix([sympy.symbols("W_ss W_st"), sympy.symbols("W_st W_tt")])
    r_s, r_t, a_s, a_t, residuals = sympy.symbols("r_s r_t a_s a_t K")
    names = {**_NAMES, a_s: "r_s[:, None]", a_t: "r_t[:, None]", residuals: "K[:, :, None, None]"}
    s, t, one, first = (sympy.Matrix([pair]) for pair in ((x, z), (z, y), (r_s, r_t), (a_s, a_t)))
    return [
        f"{name} = {to_jax(sympy.expand(covariance + (u * response * w.T)[0]), names)}"
        for name, covariance, u, w in (
            ("M_s", r_s, one, s),
            ("M_t", r_t, one, t),
            ("M_ss", x, s, s),
            ("M_tt", y, t, t),
            ("M_st", z, s, t),
            ("M_ab", residuals, first, one),
        )
    ]


_NOISE_BODY = [
    # V of the query token is sum_ij E[(D+delta)_i (D+delta)_j (a+alpha)_i (a+alpha)_j^T], alpha_i = sum_h dm_hi/ds
    # e_qh.
    "kw = jnp.swapaxes(vl, 1, 2)",
    "own = jnp.arange(len(sides))",
    "m = len(student.layers[0])",
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
        "K = b @ C @ b.T",
        *_tilted_lines(),
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
