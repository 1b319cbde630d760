"""One printed line as a record: names and numbers picked out of whatever a training loop prints."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from functools import lru_cache

from odescale.logs.columns import NAMES, is_held_out, looks_like_rate, plain, tail

Record = dict[str, float]

# Everything is possessive, and a value begins right behind a separator, so that a line of any length is read once.
_NUMBER = (
    r"[+-]?(?:\d{1,3}+(?:,\d{3}(?!\d))++(?:\.\d++)?+|\d++(?:\.\d*+)?+|\.\d++)(?:e[+-]?\d++)?+|[+-]?(?:nan|inf)(?!\w)"
)
_VALUE = re.compile(rf"(?<=[A-Za-z_0-9)])(?:\s*+[:=]\s*+|(?=[^\S ]* )\s++)(?P<value>{_NUMBER})(?![\w.]*[A-Za-z])", re.I)
_KEY = re.compile(r"[A-Za-z0-9_/.\- ]*+")
_INDENTED = re.compile(rf"\s+(?P<key>[^=:\s][^=:]{{0,200}}?)\s*+[=:]\s*+(?P<value>{_NUMBER})\s*", re.I)
_LIST = re.compile(r"(?<![A-Za-z_])(?P<key>[A-Za-z_]++)=\[(?P<values>[^\[\]()]{1,400}+)\]")
_WORD_ROW = re.compile(rf"\s*(?P<step>\d++)\s++(?P<word>[A-Za-z_]++)\s++(?P<value>{_NUMBER})\s*", re.I)
_TAG = re.compile(r"\| (?P<tag>train|valid\w*|dev|test\w*) \| ")
_HEADER = re.compile(r"\[step=(?P<step>\d++)")
# "10/4000 [00:10<01:00, ..." of tqdm, "1.20kit/10.0kit rate:" of its log-friendly relative, "10/100 ---- 1s 5ms/step" of Keras.
_BAR = re.compile(
    r"(?<![\d.])(?P<step>\d++(?:\.\d++)?+)(?P<unit>[kM]?)(?:it)?/(?:\d[\d.]*+[kM]?|\?)(?:it)?"
    r"(?= \[\d+:\d|\s+rate:| \S{0,60} ?\d+\w*s?[ :].*loss)"
)
_UPDATE = re.compile(r"\]\s*\[(?P<step>\d++)\](?: collection=\S++)? (?=\w)")
_POSTFIX = re.compile(rf"postfix:(?P<key>\w+)=(?P<value>{_NUMBER})", re.I)
# karpathy/llm.c writes main.log with one or three letters a name; its "eval" is an accuracy (HellaSwag).
_LLMC = {"s": "step", "trl": "train_loss", "tel": "val_loss", "lr": "lr", "norm": "grad_norm", "eval": "eval_accuracy"}
LONGEST = 400
"""Characters of a name that are read."""
LONGEST_OBJECT = 20_000
"""Characters of an object in a line that are read."""


def number(text: str) -> float:
    """The number of a cell as printed; thousands in groups of three."""
    return float(text.replace(",", ""))


def record_of(line: str) -> Record:
    """Names and numbers of a line, empty where there are none; a progress bar's counter and "[100]" are its `step`."""
    place = line.find("{")
    if place >= 0 and len(line) - place <= LONGEST_OBJECT and line.rstrip().endswith("}"):
        entry = _object(line[place:])
        if entry:
            return entry
    # Plain searches first: a log may have a million lines.
    if line.lstrip()[:1].isdigit() and (row := _WORD_ROW.fullmatch(line)) is not None:
        return {"step": float(row["step"]), _word(row["word"]): number(row["value"])}
    if "[step=" in line and (header := _HEADER.search(line)) is not None:
        return {"step": float(header["step"])} | _rest(pairs(line[header.end() :]))
    record = pairs(line)
    if record.keys() <= _LLMC.keys() and {"s"} < record.keys():
        return {_LLMC[key]: value for key, value in record.items()}
    if " | " in line and (tag := _TAG.search(line)) is not None:
        record = {f"{tag['tag']}_{key}" if "loss" in key else key: value for key, value in record.items()}
    if not any(is_step(key) for key in record):
        for pattern in (_UPDATE, _BAR):
            if (found := pattern.search(line)) is not None:
                unit = {"": 1.0, "k": 1e3, "M": 1e6}[found.groupdict().get("unit") or ""]
                return {"step": float(found["step"]) * unit} | record | _postfix(line)
    return record


def member_of(line: str) -> Record:
    """An indented line "name=number" of a record over several lines, empty where it is none."""
    found = _INDENTED.fullmatch(line) if line[:1] in " \t" else None
    return {found["key"]: number(found["value"])} if found else {}


def pairs(line: str) -> Record:
    """Name and number of every pair: the number first, then the words that stand before it."""
    found: Record = {}
    if "=[" in line:
        line = _LIST.sub(_spread, line)
    begin = place = 0
    while match := _VALUE.search(line, place):
        before = line[max(begin, match.start() - LONGEST) : match.start()]
        key = _name(before[len(before) - _KEY.match(before[::-1]).end() :])  # type: ignore[union-attr]
        if key:
            found.setdefault(key, number(match["value"]))
            begin = place = match.end()
        else:
            place = match.start() + 1
    return found


@lru_cache(1 << 12)
def is_step(name: str) -> bool:
    """Whether a printed name is that of the counter of steps."""
    return plain(name) in NAMES["step"] or tail(name) in NAMES["step"]


@lru_cache(1 << 12)
def is_loss(name: str) -> bool:
    """Whether a printed name has a loss in it, of training or held out."""
    return "loss" in plain(name) or plain(name) in NAMES["loss"] or tail(name) in NAMES["loss"]


@lru_cache(1 << 12)
def is_known(name: str) -> bool:
    """Whether a printed name is of something that a log of training is read for."""
    known = any(
        plain(name) in NAMES[role] or tail(name) in NAMES[role] for role in ("tokens", "gradient_norm", "flops")
    )
    return known or is_loss(name) or looks_like_rate(name) or is_held_out(name)


@lru_cache(1 << 12)
def _name(text: str) -> str:
    """The last words of what stands before a number: behind " - ", behind a word without a letter, and no log level."""
    words = text.rsplit(" - ", 1)[-1].split(" ")
    last = max((place for place, word in enumerate(words) if re.match(r"\d|[^A-Za-z]+$", word)), default=-1)
    words = [word for word in words[last + 1 :] if word not in ("INFO", "DEBUG", "WARNING", "ERROR", "NOTICE")]
    name = " ".join(words).strip("/.- ").lstrip("_")
    return name if re.search("[A-Za-z]", name) else ""


def _word(word: str) -> str:
    """ "train" of "10 train 9.86" is the training loss; what is neither train nor held out keeps its name."""
    kind = plain(word)
    if kind in ("train", "trn"):
        return "train_loss"
    return f"{word}_loss" if kind in ("val", "valid", "validation", "test", "eval", "dev") else word


def _rest(record: Record) -> Record:
    return {key: value for key, value in record.items() if not is_step(key) and plain(key) not in ("epoch", "eta")}


def _postfix(line: str) -> Record:
    return {found["key"]: number(found["value"]) for found in _POSTFIX.finditer(line)} if "postfix:" in line else {}


def _spread(found: re.Match[str]) -> str:
    """ "lr=[1e-3, 1e-3]" as "lr=1e-3"; with different numbers as one name per group."""
    values = [value.strip() for value in found["values"].split(",")]
    if len(set(values)) == 1:
        return f"{found['key']}={values[0]}"
    return " ".join(f"{found['key']}_group{place}={value}" for place, value in enumerate(values))


def _object(text: str) -> Record:
    """The numbers of a JSON object or Python dict, also where they are strings; empty where it is none."""
    readers: tuple[Callable[[str], object], ...] = (json.loads, _literal)
    for read in readers:
        try:
            entry = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(entry, dict):
            return {str(key): value for key, raw in entry.items() if (value := _plain_number(raw)) is not None}
    return {}


def _literal(text: str) -> object:
    """A Python literal with nan and inf, which `repr` writes and `literal_eval` does not know."""
    return ast.literal_eval(
        re.sub(r"(?<=[:\[,\s-])(nan|inf)(?=\s*[,}\]])", lambda m: {"nan": "'nan'", "inf": "1e999"}[m[0]], text)
    )


def _plain_number(raw: object) -> float | None:
    if isinstance(raw, bool) or raw is None:
        return None
    if isinstance(raw, int | float | str):
        try:
            return float(raw)
        except (ValueError, OverflowError):
            return None
    return None
