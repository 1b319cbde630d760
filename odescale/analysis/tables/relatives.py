"""Relatives of the Chinchilla form: Kaplan's, repeated data, sizes with a bound, steps and batch apart, width and depth apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from odescale.analysis.tables.forms import Columns, Exponent, Form, power_terms

REPEATED = 1.05
"""Epochs from which a run counts as one that repeats its data."""
ALPHA = Exponent("alpha", 0.02, 3.0, "of the parameters")
BETA = Exponent("beta", 0.02, 3.0, "of the tokens")
SIZE_BOUND = (1e5, 1e16)
KAPLAN_SIZE = 1e9
"""Unit of N in Kaplan's form: large powers of N itself leave the range of the numbers."""


def effective(total: np.ndarray, fresh: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """log of U + U R* (1 - exp(-R/R*)), R = max(total/U - 1, 0), U = min(`fresh`, `total`); R* = `decay`, broadcast.

    What repeated tokens (or parameters beyond those that the data can use) are worth: all at first, U (1 + R*) at most.
    Source: Muennighoff et al. 2023, arXiv 2305.16264, equations 5 and 6.
    """
    own = np.minimum(fresh, total)
    repeats = total / own - 1
    return np.log(own) + np.log1p(decay * -np.expm1(-repeats / decay))


def kaplan_form() -> Form:
    """L = ((Nc/N)^(alpha_N/alpha_D) + Dc/D)^alpha_D: no constant, every exponent in every term.

    For given exponents L^(1/alpha_D) is linear in Nc^(alpha_N/alpha_D) and Dc, so the form is fitted like the others. `Nc_r` is
    (Nc/1e9)^(alpha_N/alpha_D): `kaplan_scales` gives Nc itself. Kaplan et al.: alpha_N .076, alpha_D .103, Nc 6.4e13, Dc 1.8e13.
    """

    def log_terms(exponents: np.ndarray, columns: Columns) -> np.ndarray:
        ratio = (exponents[..., 0] / exponents[..., 1])[..., None]
        size = -ratio * np.log(np.asarray(columns["params"]) / KAPLAN_SIZE)
        return np.stack([size, np.broadcast_to(-np.log(columns["tokens"]), size.shape)], axis=-1)

    def doubts(columns: Columns) -> dict[str, str]:
        return {"alpha_N": _span(columns, "params"), "alpha_D": _span(columns, "tokens")}

    return Form(
        "kaplan", "L = ((Nc/N)^(alpha_N/alpha_D) + Dc/D)^alpha_D", ("params", "tokens"), ("Nc_r", "Dc"),
        (Exponent("alpha_N", 0.02, 0.5, "of the parameters"), Exponent("alpha_D", 0.02, 0.5, "of the tokens")),
        log_terms, power=lambda exponents: exponents[..., 1], doubts=doubts,
        source="Kaplan et al. 2020, arXiv 2001.08361, equation 1.5",
    )  # fmt: skip


def repetition_form(unique_params: Callable[[np.ndarray], np.ndarray] | None = None) -> Form:
    """L = E + A/N'^alpha + B/D'^beta, D' = U + U R_D (1 - exp(-(D/U - 1)/R_D)), U the unique tokens.

    `unique_params(U)` U_N: the size that U tokens can use; N' is then made of N and U_N as D' is of D and U,
    with R_N. None: N' = N. U_N is given, not fitted: it is the compute-optimal size for U tokens, a number of the law itself
    (`fit_repetition`). R_D and R_N are the R* of the source: repeats after which a repeated token is worth 1/e of a fresh one.
    """

    def log_terms(exponents: np.ndarray, columns: Columns) -> np.ndarray:
        n, d, u = (np.asarray(columns[c], float) for c in ("params", "tokens", "unique_tokens"))
        e = [exponents[..., None, k] for k in range(exponents.shape[-1])]
        size = np.log(n) if unique_params is None else effective(n, unique_params(u), e[3])
        data = -e[1] * effective(d, u, e[2])
        return np.stack(np.broadcast_arrays(np.zeros_like(data), -e[0] * size, data), axis=-1)

    def doubts(columns: Columns) -> dict[str, str]:
        n, d, u = columns["params"], columns["tokens"], columns["unique_tokens"]
        said = {"alpha": _span(columns, "params"), "beta": _span(columns, "tokens")}
        epochs = d / u
        if not (epochs > REPEATED).any():
            said["R_D"] = f"no run repeats its data: at most {epochs.max():.3g} epochs"
        elif np.unique(np.round(np.log(epochs[epochs > REPEATED]), 2)).size < 2:
            said["R_D"] = (
                f"one number of epochs only beside fresh data, {epochs.max():.3g}: worth and decay are one number"
            )
        if unique_params is not None and not (n > REPEATED * unique_params(u)).any():
            said["R_N"] = "no run has more parameters than its unique tokens can use"
        return said

    own = (ALPHA, BETA, Exponent("R_D", 0.2, 1000.0, "repeats until a token is worth 1/e"))
    size = "N" if unique_params is None else "N'"
    if unique_params is not None:
        own = (*own, Exponent("R_N", 0.05, 1000.0, "multiples of U_N until a parameter is worth 1/e"))
    return Form(
        "repetition", f"L = E + A/{size}^alpha + B/(U + U R_D (1 - exp(-(D/U - 1)/R_D)))^beta",
        ("params", "tokens", "unique_tokens"), ("E", "A", "B"), own, log_terms, doubts=doubts,
        source="Muennighoff et al. 2023, arXiv 2305.16264, equation 7",
    )  # fmt: skip


def bounded_form() -> Form:
    """L = E + A (1/N + 1/N_max)^alpha + B/D^beta: parameters beyond N_max buy nothing.

    An N_max at the upper end of its range means that the table shows no bound. The saturation is that of Clark et al. 2022 for
    the number of experts (1/E' = 1/E + 1/E_max), on the whole size.
    """

    def log_terms(exponents: np.ndarray, columns: Columns) -> np.ndarray:
        a, b, most = (exponents[..., None, k] for k in range(3))
        size = a * (np.log1p(np.asarray(columns["params"]) / most) - np.log(columns["params"]))
        data = -b * np.log(columns["tokens"])
        return np.stack(np.broadcast_arrays(np.zeros_like(size), size, data), axis=-1)

    def doubts(columns: Columns) -> dict[str, str]:
        said = {"alpha": _span(columns, "params"), "beta": _span(columns, "tokens")}
        sizes = np.unique(np.round(np.log(columns["params"]), 2)).size
        if sizes < 4:
            said["N_max"] = f"{sizes} sizes: a power with a bound and a constant needs 4"
        return said

    return Form(
        "bounded", "L = E + A (1/N + 1/N_max)^alpha + B/D^beta", ("params", "tokens"), ("E", "A", "B"),
        (ALPHA, BETA, Exponent("N_max", *SIZE_BOUND, "size beyond which parameters buy nothing")), log_terms, doubts=doubts,
        source="Clark et al. 2022, arXiv 2202.01169, equation 8, for sizes",
    )  # fmt: skip


def steps_batch_form() -> Form:
    """L = E + A/N^alpha + B/S^beta + C/b^gamma: S steps, b tokens a step.

    At D = S b tokens the best batch is b* = (gamma C/(beta B))^(1/(beta + gamma)) D^(beta/(beta + gamma)) (`best_batch`). Theory
    of SGD has these two terms: a bias that falls with the steps and a noise that falls with the batch.
    """
    log_terms, slopes = power_terms(
        ({}, {"params": "alpha"}, {"steps": "beta"}, {"batch": "gamma"}), ("alpha", "beta", "gamma")
    )

    def doubts(columns: Columns) -> dict[str, str]:
        together = _aligned(columns["steps"], columns["batch"])
        said = {"alpha": _span(columns, "params"), "beta": _span(columns, "steps"), "gamma": _span(columns, "batch")}
        if not said["beta"] and not said["gamma"] and together > 0.995:
            said["gamma"] = f"log steps and log batch are correlated by {together:.3f}: vary the batch at fixed tokens"
        return said

    return Form(
        "steps_batch", "L = E + A/N^alpha + B/S^beta + C/b^gamma", ("params", "steps", "batch"), ("E", "A", "B", "C"),
        (ALPHA, Exponent("beta", 0.02, 3.0, "of the steps"), Exponent("gamma", 0.02, 3.0, "of the batch")),
        log_terms, slopes, doubts=doubts, source="after Schaipp 2026, arXiv 2607.01487",
    )  # fmt: skip


def minimum_steps_form() -> Form:
    """L = E + A/N^alpha + B/S_min^beta, S_min = S/(1 + B_crit/b): a run of S steps at batch b counts as S_min at a very large one.

    B_crit is one number for the table here; where the losses differ much it moves (`fit_batch_law`).
    """

    def log_terms(exponents: np.ndarray, columns: Columns) -> np.ndarray:
        a, b, critical = (exponents[..., None, k] for k in range(3))
        steps = b * (np.log1p(critical / np.asarray(columns["batch"])) - np.log(columns["steps"]))
        size = -a * np.log(columns["params"])
        return np.stack(np.broadcast_arrays(np.zeros_like(steps), size, steps), axis=-1)

    def doubts(columns: Columns) -> dict[str, str]:
        return {"alpha": _span(columns, "params"), "beta": _span(columns, "steps"), "B_crit": _span(columns, "batch")}

    return Form(
        "minimum_steps", "L = E + A/N^alpha + B ((1 + B_crit/b)/S)^beta", ("params", "steps", "batch"), ("E", "A", "B"),
        (ALPHA, Exponent("beta", 0.02, 3.0, "of the steps"), Exponent("B_crit", 1.0, 1e10, "in the unit of the batch")),
        log_terms, doubts=doubts, source="Kaplan et al. 2020, arXiv 2001.08361, equations 5.4 and 5.6",
    )  # fmt: skip


def width_depth_form(tokens: bool = True) -> Form:
    """L = E + A/W^a + B/depth^b (+ C/D^c with `tokens`): b near 1 is the inverse-depth law."""
    powers = ({}, {"width": "a"}, {"depth": "b"}, {"tokens": "c"})[: 4 if tokens else 3]
    names = ("a", "b", "c")[: len(powers) - 1]
    log_terms, slopes = power_terms(powers, names)
    columns = ("width", "depth", "tokens")[: len(names)]

    def doubts(values: Columns) -> dict[str, str]:
        said = {name: _span(values, column) for name, column in zip(names, columns, strict=True)}
        together = _aligned(values["width"], values["depth"])
        if not said["a"] and not said["b"] and together > 0.98:
            tied = f"log width and log depth are correlated by {together:.3f}: vary the shape at fixed size"
            said |= {"a": tied, "b": tied}
        return said

    return Form(
        "width_depth" if tokens else "width_depth_only", "L = E + A/W^a + B/depth^b" + " + C/D^c" * tokens, columns,
        ("E", "A", "B", "C")[: len(powers)],
        tuple(Exponent(n, 0.05, 4.0, f"of the {c}") for n, c in zip(names, columns, strict=True)),
        log_terms, slopes, doubts=doubts, source="Liu et al. 2026, arXiv 2602.05970",
    )  # fmt: skip


def _span(columns: Columns, name: str) -> str:
    """Why a column has no exponent of its own, or nothing."""
    values = np.sort(np.asarray(columns[name], float))
    distinct = 1 + int(np.sum(np.diff(np.log(values)) > 0.02))
    if distinct < 3:
        return f"{name} has {distinct} different value{'s' * (distinct > 1)}, 3 are needed"
    return (
        "" if values[-1] / values[0] >= 2 else f"{name} spans a factor {values[-1] / values[0]:.2f} only, 2 are needed"
    )


def _aligned(one: np.ndarray, other: np.ndarray) -> float:
    """Size of the correlation of the logarithms; 0 where one does not vary."""
    x, y = np.log(one) - np.mean(np.log(one)), np.log(other) - np.mean(np.log(other))
    scale = np.sqrt((x @ x) * (y @ y))
    return float(abs(x @ y) / scale) if scale > 1e-12 else 0.0


RELATIVES = (
    kaplan_form(), repetition_form(), bounded_form(), steps_batch_form(), minimum_steps_form(), width_depth_form(),
    width_depth_form(tokens=False),
)  # fmt: skip
