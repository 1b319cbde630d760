"""Which column of a table of runs is which: names that people use, units in names and cells, labels that must not be mixed."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from odescale.errors import InputError
from odescale.logs.columns import NAMES as CURVE_NAMES
from odescale.logs.columns import plain, tail
from odescale.logs.table import Table

# Lower-case letters and digits only, in order of preference.
NAMES: dict[str, tuple[str, ...]] = {
    "params": (
        "params", "nparams", "numparams", "parameters", "nparameters", "numparameters", "totalparams", "totalparameters",
        "modelparams", "modelparameters", "paramcount", "parametercount", "modelsize", "modelsizeparams", "nonembeddingparams",
        "nonembparams", "paramsnonembedding", "paramsnoembed", "activeparams", "trainableparams", "size", "n",
    ),
    "tokens": (
        "tokens", "ntokens", "numtokens", "traintokens", "trainingtokens", "totaltokens", "tokensseen", "seentokens", "tokencount",
        "tokenstotal", "tokenstrained", "trainedtokens", "datasize", "datasetsize", "numtraintokens", "d",
    ),
    "flop": (
        "flop", "flops", "trainflop", "trainflops", "trainingflop", "trainingflops", "totalflop", "totalflops", "totalflos",
        "compute", "traincompute", "trainingcompute", "computeflop", "computeflops",
        "budget", "budgetflop", "budgetflops", "computebudget",
        "flopbudget", "flopsbudget", "flopcount", "pfdays", "petaflopdays", "petaflopsdays", "c",
    ),
    "loss": (
        "valloss", "validationloss", "finalvalloss", "finalvalidationloss", "bestvalloss", "evalloss", "finalevalloss", "devloss",
        "testloss", "testlossnats", "heldoutloss", "lossval", "losseval", "losstest", "loss", "finalloss", "lossfinal",
        "finaltrainloss", "trainloss", "trainingloss", "losstrain", "crossentropy", "crossentropyloss",
        "celoss", "ce", "nll", "xent", "bpb",
        "bitsperbyte", "valbpb", "bpc", "l",
    ),
    "batch": (
        "batch", "batchsize", "batchtokens", "tokensperbatch", "batchsizetokens", "globalbatchsize", "globalbatch", "bs", "b",
    ),
    "rate": ("rate", "lr", "learningrate", "peaklr", "lrpeak", "maxlr", "lrmax", "peaklearningrate", "maxlearningrate", "baselr"),
    "epochs": ("epochs", "epoch", "numepochs", "nepochs", "passes"),
    "unique_tokens": ("uniquetokens", "uniquedata", "nuniquetokens", "tokensunique", "datasettokens", "corpustokens", "u"),
    "steps": (
        "steps", "nsteps", "numsteps", "trainsteps", "trainingsteps", "totalsteps", "maxsteps", "iterations", "iters", "updates",
    ),
    "width": ("width", "dmodel", "hiddensize", "hiddendim", "embeddim", "embdim", "nembd", "modeldim", "dim"),
    "depth": ("depth", "nlayers", "numlayers", "nlayer", "layers", "numhiddenlayers", "nhiddenlayers"),
    "heads": ("heads", "nheads", "nhead", "numheads", "numattentionheads"),
    "vocabulary": ("vocabulary", "vocab", "vocabsize", "vocabularysize", "nvocab"),
    "context": ("context", "contextlength", "seqlen", "seqlength", "sequencelength", "contextsize", "ctx", "nctx", "blocksize"),
    "embedding": ("embedding", "embeddingparams", "embedparams", "paramsembedding", "embparams"),
}  # fmt: skip
SIZES = ("params", "tokens", "flop")
RUNS = ("run", "runid", "runname")
DATASETS = ("dataset", "datasetname", "corpus", "trainset", "data")
MARKS = ("outlier", "outliers", "isoutlier", "excluded", "exclude", "excludedfromfit")
KINDS = re.compile(
    r"(loss|metric|eval|evaluation|val|validation)(kind|type|name|set|dataset|metric)|metric|split|subset|domain|benchmark|task|kind"
)
"""Columns of labels that say which loss a row holds."""
ORIGINS = re.compile(
    r"dataset(name)?|corpus|trainset|data|source|family|modelfamily|arch(itecture)?|optimi[sz]er|schedule|experiment|tokeni[sz]er"
)
"""Columns of labels with a law of their own for each label."""
ALWAYS = ("step", "globalstep", "iteration", "iter", "trainstep", "trainingstep", "optimizerstep")
"""Steps of one curve, never a number that a finished run has once."""
UNITS = {
    "k": 1e3, "thousand": 1e3, "thousands": 1e3, "m": 1e6, "mm": 1e6, "mio": 1e6, "million": 1e6, "millions": 1e6, "b": 1e9,
    "bn": 1e9, "billion": 1e9, "billions": 1e9, "t": 1e12, "trillion": 1e12, "trillions": 1e12,
}  # fmt: skip
_FLOPS = {"gflop": 1e9, "tflop": 1e12, "pflop": 1e15, "eflop": 1e18, "zflop": 1e21}
_PF_DAY = 1e15 * 86400
_SUFFIXED = re.compile(
    r"([+]?\d[\d_,]*\.?\d*(?:e[+-]?\d+)?)\s*(k|m|mm|b|bn|t|million|billion|trillion)?(?:params?|tokens?)?", re.I
)


@lru_cache(1 << 12)
def base_and_unit(name: str) -> tuple[str, float]:
    """("params", 1e6) of "params (M)", ("tokens", 1e9) of "tokens_b"; ("flop", 1e15) of "train_pflops"; 1 without a unit."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    for prefix, size in _FLOPS.items():
        for i, word in enumerate(words):
            if word.startswith(prefix):
                return "".join([*words[:i], "flops", *words[i + 1 :]]), size
    if plain(name) in ("pfdays", "petaflopdays", "petaflopsdays"):
        return plain(name), _PF_DAY
    while len(words) > 1 and words[0] in ("in", "of"):
        words = words[1:]
    if len(words) > 1 and words[-1] in UNITS:
        rest = words[:-1]
        return "".join(rest[:-1] if len(rest) > 1 and rest[-1] == "in" else rest), UNITS[words[-1]]
    return "".join(words), 1.0


def candidates(role: str, table: Table) -> list[str]:
    """Columns whose name says the role, best first: the whole name, then without its unit, then the last part of a path."""
    found: list[str] = []
    for known in NAMES[role]:
        found += [name for name in table.columns if plain(name) == known]
    for known in NAMES[role]:
        found += [name for name in table.columns if base_and_unit(name)[0] == known and base_and_unit(name)[1] != 1]
    for known in (known for known in NAMES[role] if len(known) > 1):
        found += [name for name in table.columns if tail(name) == known]
    if role == "loss":
        found += [name for name in table.columns if plain(name).endswith("loss") and plain(name) != "loss"]
    if role == "params" and not found:
        # "70M", "1.4B" in a column of models' names.
        found = [name for name in table.text() if plain(name) in ("model", "modelname") and _all_suffixed(table, name)]
    return list(dict.fromkeys(found))


def choose_run_columns(table: Table, given: dict[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """(role -> column, what was picked beside which others); roles of `NAMES` that no column has are left out."""
    chosen: dict[str, str] = {}
    notes: list[str] = []
    for role, wanted in given.items():
        if wanted is not None:
            chosen[role] = find(table, role, wanted)
    for role in NAMES:
        if role in chosen:
            continue
        found = [name for name in candidates(role, table) if name not in chosen.values()]
        found = [name for name in found if table.columns[name].dtype.kind == "f" or _all_suffixed(table, name)]
        if role == "loss":
            found = [name for name in found if not _whole(table.columns[name])]
        if not found:
            continue
        chosen[role] = found[0]
        if len(found) > 1 and role in (*SIZES, "loss"):
            notes.append(f"{role}: column {found[0]!r}; others: {', '.join(found[1:6])}")
    return chosen, notes


def find(table: Table, role: str, wanted: str) -> str:
    """The column that a caller named: exactly, else ignoring case and separators."""
    for form in (str, plain):
        found = [name for name in table.columns if form(name) == form(wanted)]
        if found:
            return found[0]
    columns = ", ".join(list(table.columns)[:12])
    raise InputError(role, expected=f"a column of {table.file}: {columns}", got=wanted, remedy="name one of them")


def numbers_of(table: Table, column: str) -> tuple[np.ndarray, float, list[int]]:
    """(values (n,) in counts, the unit taken from the column's name, positions of cells that are no numbers).

    "70M", "1.4 B" and "300k" are read as what they say; a unit in the column's name multiplies the others.
    """
    values = table.columns[column]
    unit = base_and_unit(column)[1]
    if values.dtype.kind != "O":
        out, bad = values * unit, []
        texts = table.broken.get(column, {})
        for place in np.flatnonzero(np.isin(table.rows, list(texts))):
            number = suffixed(texts[int(table.rows[place])])
            if np.isnan(number):
                bad.append(int(place))
            else:
                out[place] = number
        return out, unit, bad
    out = np.array([suffixed(str(cell)) for cell in values])
    return out, unit, [int(i) for i in np.flatnonzero(np.isnan(out) & (values != ""))]


def suffixed(text: str) -> float:
    """7e7 of "70M", NaN of what is no number with a unit."""
    match = _SUFFIXED.fullmatch(text.strip())
    if match is None:
        return float("nan")
    return float(match[1].replace(",", "").replace("_", "")) * (UNITS[match[2].lower()] if match[2] else 1.0)


def looks_like_runs(table: Table) -> dict[str, str] | None:
    """The roles of a table of finished runs (a loss and two of N, D, C, of several values), or None for a curve.

    A column that counts the steps of a curve decides against it, and so does a single size of model.
    """
    named = {plain(name) for name in table.columns}
    if named & set(ALWAYS):
        return None
    chosen = {}
    for role in (*SIZES, "loss"):
        found = [name for name in candidates(role, table) if name not in chosen.values()]
        found = [name for name in found if table.columns[name].dtype.kind == "f" or _all_suffixed(table, name)]
        if found:
            chosen[role] = found[0]
    if "loss" not in chosen or len(chosen) < 3:
        return None
    sizes = {role: numbers_of(table, name)[0] for role, name in chosen.items() if role != "loss"}
    values = {role: np.unique(v[np.isfinite(v)]) for role, v in sizes.items()}
    if "params" in values and values["params"].size < 2:
        return None
    if "params" not in values and (np.diff(sizes["tokens"]) > 0).all():
        return None  # tokens and FLOP of one run, counting up together
    counted = [name for name in table.columns if plain(name) in CURVE_NAMES["step"] and name not in chosen.values()]
    steps = [name for name in counted if plain(name) not in (*NAMES["batch"], *NAMES["steps"], "n")]
    if steps and "params" in sizes and any(_runs_of_steps(table, name, sizes["params"]) for name in steps):
        return None
    return chosen


def _runs_of_steps(table: Table, step: str, params: np.ndarray) -> bool:
    """Whether a column counts up within stretches of one model size, five rows or more in most."""
    values = table.columns[step]
    if values.dtype.kind != "f":
        return False
    cuts = np.flatnonzero((np.diff(params) != 0) | ~(np.diff(values) > 0)) + 1
    lengths = np.diff(np.concatenate([[0], cuts, [params.size]]))
    return bool(np.median(lengths) >= 5)


def _all_suffixed(table: Table, name: str) -> bool:
    values = table.columns[name]
    if values.dtype.kind != "O":
        return False
    filled = [str(cell) for cell in values if cell != ""]
    good = [cell for cell in filled if not np.isnan(suffixed(cell))]
    return len(filled) > 0 and len(good) >= 0.5 * len(filled)


def _whole(values: np.ndarray) -> bool:
    if values.dtype.kind != "f":
        return False
    finite = values[np.isfinite(values)]
    return finite.size > 0 and bool((finite == np.round(finite)).all() and finite.max() > 30)
