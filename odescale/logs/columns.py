"""Which column is the step, which the loss: names that loggers use, then the content."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from odescale.errors import InputError
from odescale.logs.table import Table

ROLES = ("step", "loss", "learning_rate", "tokens", "flops", "logit_scale", "gradient_norm")

SELDOM = 0.2
"""Share of the rows of the most frequent training loss below which another one is a summary."""

# Lower-case letters and digits only, in order of preference; matched against the whole name, then its last part.
NAMES: dict[str, tuple[str, ...]] = {
    "step": (
        "step", "steps", "globalstep", "traininglobalstep", "trainglobalstep", "trainerglobalstep", "trainstep", "trainingstep",
        "optimizerstep", "optimizersteps", "iteration", "iterations", "iter", "iters", "it", "its", "itnum", "iternum", "nsteps",
        "numsteps", "stepnum", "stepidx", "update", "updates", "numupdates", "nupdates", "batch", "batches", "numbatches",
        "nbatches", "batchidx", "batchnum", "completedstep", "trainstepcount", "t",
    ),
    "loss": (
        "trainloss", "trainingloss", "losstrain", "trainlossstep", "traincrossentropyloss", "traincrossentropy", "traince",
        "trainnll", "trainlmloss", "lmloss", "loss", "losses", "trainlosses", "batchloss", "totalloss", "lossmean", "meanloss",
        "reducedtrainloss", "trainceloss", "avgloss", "lossavg", "globalavgloss", "crossentropyloss", "crossentropy", "xent",
        "xentloss", "celoss", "ce", "nllloss", "nll", "trainlossepoch", "valloss",
        "validationloss", "evalloss", "devloss", "testloss", "lossval", "losseval",
        "losstest", "evalcrossentropyloss", "valcrossentropyloss", "valnll", "evalnll", "valce",
    ),
    "tokens": (
        "tokens", "totaltokens", "consumedtokens", "consumedtraintokens", "tokensseen", "seentokens", "numtokens", "ntokens",
        "numinputtokensseen", "numtokensseen", "tokensprocessed", "traintokens", "trainedtokens", "tokenstrained", "tokencount",
        "cumulativetokens", "tokenstotal",
    ),
    "flops": (
        "flops", "flop", "totalflops", "totalflos", "trainflops", "cumulativeflops", "totalflop", "compute", "traingflops",
        "totalgflops", "traintflops", "totaltflops", "trainpflops", "totalpflops",
    ),
    "logit_scale": (
        "logitscale", "maxlogit", "maxlogits", "logitmax", "logitsmax", "maxattentionlogit", "maxattnlogit", "logitstd",
        "logitsstd", "logitnorm", "outputscale", "logits",
    ),
    "gradient_norm": (
        "gradnorm", "gradientnorm", "totalgradnorm", "globalgradnorm", "globalgradientnorm", "gnorm", "normgrad", "l2normgradtotal",
        "gradnormtotal", "traingradnorm", "gradl2norm",
    ),
}  # fmt: skip
_RATE = re.compile(
    r"(train|training|optim|optimizer|sched|scheduler)?(lr|learningrate)(s|(group|pg|param|params)?\d*|(sgd|adam|adamw|lion|muon).*)"
)
# "lr/embed", "learning_rate_hidden", "optim/muon_lr": one rate of several.
_RATE_WORD = re.compile(r"(^|[/._ \-])(lr|learning[_ ]?rate)s?([/._ \-]|$)", re.I)
_MULTIPLIER = re.compile(
    r"(train|training|optim|optimizer|sched|scheduler)?(lrm|lrmult|lrmultiplier|lrmultiple|lrscale|lrfactor)"
)
_MULTIPLES = {"gflops": 1e9, "tflops": 1e12, "pflops": 1e15}
_NOT_LOSS = re.compile(
    r"scale|aux|zloss|weight|std|var|min$|max$|count|norm|grad|time|acc|lr|rate|step|iter|epoch|token|flop|seed|ppl|perplex|"
    r"batch|memory|speed|tput|throughput|param|width|depth|layer|sec|hour|temp|momentum|beta|mfu|bleu|f1|score|reward"
)
_NOT_STEP = re.compile(
    r"epoch|time|date|token|flop|unnamed|sec|hour|seed|loss|lr|rate|batchsize|param|width|depth|layer|index|id$|sample|count"
)


@lru_cache(1 << 14)
def plain(name: str) -> str:
    """Lower case, letters and digits only: "Train/Loss" and "train_loss" are one name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@lru_cache(1 << 14)
def tail(name: str) -> str:
    """The last part of a path-like name: "optim/learning_rate_group0" -> "learningrategroup0"."""
    return plain(re.split(r"[/.:]", name)[-1])


def choose_columns(table: Table, given: dict[str, object]) -> tuple[dict[str, str], list[str]]:
    """(role -> column, what was picked beside which candidates). `given`: role -> column name of the caller."""
    chosen: dict[str, str] = {}
    notes: list[str] = []
    free = [name for name in table.columns if _usable(table, name)]
    for role in ROLES:
        wanted = given.get(role)
        if isinstance(wanted, str):
            chosen[role] = find_column(table, role, wanted)
            continue
        found = [name for name in candidates(role, free) if name not in chosen.values()]
        if role == "learning_rate":
            found, said = _rates(table, found, free)
            notes += said
        # A value logged once (the mean over the run, at its end) is no curve.
        found.sort(
            key=lambda name: table.columns[name].dtype.kind == "f" and np.isfinite(table.columns[name]).sum() < 2
        )
        if role == "loss":
            found = _often_first(table, found)
        if role == "step":
            found.sort(key=lambda name: _fractional(table.columns[name]))
        if role in ("tokens", "flops"):
            counted = [name for name in found if _counts_up(table.columns[name])]
            notes += [f"column {name} does not count up: not taken as {role}" for name in found if name not in counted]
            found = counted
        if not found and role in ("step", "loss"):
            found = _by_content(table, role, free, set(chosen.values()))
            notes += [f"no column has a {role}'s name: {found[0]!r} taken by its values"] if found else []
        if found:
            chosen[role] = found[0]
            others = [name for name in found[1:] if role != "step" or plain(name) != plain(found[0])]
            notes += [f"{role}: column {found[0]!r}; others: {', '.join(others[:6])}"] if others else []
    return chosen, notes


def candidates(role: str, columns: list[str]) -> list[str]:
    """Columns whose name says the role, best first: whole names before last parts, the list's order within each."""
    if role == "learning_rate":
        return _unique([name for form in (plain, tail) for name in columns if _RATE.fullmatch(form(name))])
    names = NAMES[role]
    found = [name for known in names for name in columns if plain(name) == known]
    if role != "step" or not found:
        # "eval/loss" ends on "loss" as "train/loss" does, and must come after it.
        ends = [name for known in names for name in columns if tail(name) == known and not is_held_out(name)]
        found += ends
    if role == "loss":
        found += [n for n in columns if "loss" in plain(n) and not _NOT_LOSS.search(plain(n)) and not is_held_out(n)]
        found += [n for n in columns if "loss" in plain(n) and not _NOT_LOSS.search(plain(n))]
        found += [n for n in columns if plain(n) == "value"]
    return _unique(found)


def flop_unit(name: str) -> float:
    """FLOP per unit of the column: "train_gflops" counts 1e9."""
    return next((size for suffix, size in _MULTIPLES.items() if plain(name).endswith(suffix)), 1.0)


def find_column(table: Table, role: str, wanted: str) -> str:
    """The column that a caller named: exactly, then ignoring case, then ignoring separators."""
    forms: tuple[Callable[[str], str], ...] = (str, str.lower, plain)
    for form in forms:
        found = [name for name in table.columns if form(name) == form(wanted)]
        if found:
            return found[0]
    raise InputError(
        role,
        expected=f"a column of {table.file}: {', '.join(list(table.columns)[:12])}",
        got=wanted,
        remedy="name one of them",
    )


def is_held_out(name: str) -> bool:
    """Whether the name is of validation, evaluation or test."""
    return bool(re.search(r"(^|[^a-z])(val|valid|validation|eval|test|dev|heldout)([^a-z]|$)", name.lower()))


def looks_like_rate(name: str) -> bool:
    """Whether the name is of a learning rate, of one of several, or of a multiplier of one."""
    forms = (plain(name), tail(name))
    return any(_RATE.fullmatch(form) or _MULTIPLIER.fullmatch(form) for form in forms) or bool(_RATE_WORD.search(name))


def _rates(table: Table, found: list[str], free: list[str]) -> tuple[list[str], list[str]]:
    """The rate's columns and what is said of them: one of several groups is the caller's to name, a multiplier has no unit."""
    if found:
        return found, []
    numbers = [
        name for name in free if table.columns[name].dtype.kind == "f" and np.isfinite(table.columns[name]).sum() > 1
    ]
    groups = [name for name in numbers if _RATE_WORD.search(name) and not is_held_out(name)]
    multipliers = [name for name in numbers if any(_MULTIPLIER.fullmatch(form) for form in (plain(name), tail(name)))]
    if len(groups) == 1:
        return groups, []
    if groups:
        named = f"{', '.join(groups[:6])}{' and more' if len(groups) > 6 else ''} look like rates: name one (learning_rate=, --lr)"
        shapes = [_in_units_of_its_peak(table.columns[name]) for name in groups]
        same = all(np.allclose(shapes[0], shape, rtol=1e-3, atol=1e-6, equal_nan=True) for shape in shapes[1:])
        return [], [named + ("; they are multiples of one another, so tau differs by a factor only" if same else "")]
    if multipliers:
        return multipliers[:1], [
            f"rate: column {multipliers[0]!r} is a multiplier, so the rate is in units of its peak"
        ]
    return [], []


def _in_units_of_its_peak(values: np.ndarray) -> np.ndarray:
    top = np.nanmax(np.abs(values[np.isfinite(values)]), initial=0.0)
    return values / top if top else values


def _often_first(table: Table, found: list[str]) -> list[str]:
    """Training losses logged at hardly any row (an epoch's mean, an evaluation's) after the one of every row."""
    counts = {
        name: int(np.isfinite(v).sum()) if (v := table.columns[name]).dtype.kind == "f" else v.size for name in found
    }
    training = [name for name in found if not is_held_out(name)]
    most = max((counts[name] for name in training), default=0)
    return sorted(found, key=lambda name: name in training and counts[name] < SELDOM * most)


def _fractional(values: np.ndarray) -> bool:
    """Numbers that are mostly no whole ones: fairseq's "update" .096 is a share of an epoch beside `num_updates`."""
    if values.dtype.kind != "f":
        return False
    finite = values[np.isfinite(values)]
    return finite.size > 0 and float(np.mean(finite == np.round(finite))) < 0.5


def _unique(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _usable(table: Table, name: str) -> bool:
    """Numbers, or a column that was meant to be: all text under a known name is an error to show, not to pass over."""
    values = table.columns[name]
    if values.dtype.kind == "O":
        return any(known == plain(name) for role in ("step", "loss") for known in NAMES[role])
    return True


def _counts_up(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    if finite.size < 2 or finite.max() <= finite.min():
        return False
    steps = np.diff(finite)
    return float(np.mean(steps >= 0)) > 0.5 and not np.median(steps) == 0 or bool((steps >= 0).all())


def _by_content(table: Table, role: str, free: list[str], taken: set[str]) -> list[str]:
    """Whole numbers that count up are steps; positive fractions that fall are a loss."""
    numbers = [name for name in table.numeric() if name in free and name not in taken]
    if role == "step":
        numbers = [name for name in numbers if not _NOT_STEP.search(plain(name))]
        return [name for name in numbers if _is_counter(table.columns[name])]
    numbers = [name for name in numbers if not _NOT_LOSS.search(plain(name))]
    return [name for name in numbers if _falls(table.columns[name])]


def _is_counter(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    whole = bool((finite >= 0).all() and (finite == np.round(finite)).all())
    return whole and finite.size >= 3 and float(np.mean(np.diff(finite) > 0)) > 0.8


def _falls(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    if finite.size < 3 or (finite <= 0).any() or (finite == np.round(finite)).all():
        return False
    rank = np.argsort(np.argsort(finite))
    return bool(np.corrcoef(rank, np.arange(finite.size))[0, 1] < -0.3)
