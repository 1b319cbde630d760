"""From what a user gives (one optimiser, a word, or one per block of rows) to the optimisers of all rows that move."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.core
import jax.numpy as jnp

from odescale.errors import InputError, OutsideTheoryError
from odescale.optimizers.adam import SGD, Adam
from odescale.optimizers.base import LARGEST_DAMPING, AbstractOptimizer
from odescale.optimizers.flow import Block, RowOptimizers
from odescale.optimizers.muon import Muon
from odescale.optimizers.signs import Lion, Sign

OPTIMIZERS: dict[str, type[AbstractOptimizer]] = {kind.word: kind for kind in (SGD, Adam, Muon, Sign, Lion)}
"""By the word of the command line."""


def row_optimizers(
    given: AbstractOptimizer | Mapping[Any, AbstractOptimizer],
    rows: Sequence[str],
    only_written: Sequence[str],
    trace: float,
    *,
    clip: Any = float("inf"),
    matrices: Sequence[Sequence[str]] | None = None,
) -> tuple[RowOptimizers, Any]:
    """(optimisers of all rows, the learning rate that their rates are multiples of).

    - `given`: one optimiser for all rows, or a mapping from a row or a tuple of rows to one; the key None takes the rest.
    - `rows`: names of the rows that move, in order. `only_written`: those that no block reads. `clip`: largest gradient norm.
    - `matrices`: rows that make one matrix, for optimisers that see a whole one (Muon); default: all rows of a block.
    """
    named = _by_rows(given, rows)
    first = next(iter(named.values())).rate
    blocks = []
    for names, rule in named.items():
        parts = [names]
        if matrices is not None and isinstance(rule, Muon):
            parts = [tuple(r for r in matrix if r in names) for matrix in matrices]
            parts = [part for part in parts if part]
        for part in parts:
            if written := [
                row for row in part if row in only_written and (rule.second_beta is not None or rule.averages == "sign")
            ]:
                raise OutsideTheoryError(
                    "optimizer", expected=f"rows that read tokens under {type(rule).__name__}",
                    got=f"{', '.join(written)}, which only write: their gradient has no noise of order 1/sqrt(N), so that second "
                    "moments are no function of the overlaps", remedy="give these rows SGD or Muon, or freeze them",
                )  # fmt: skip
            blocks.append(_block(part, rule, rows, rule.rate / first, trace))
    clipped = isinstance(clip, jax.core.Tracer) or float(clip) < float("inf")
    _check_together([block.rule for block in blocks], clipped)
    return RowOptimizers(tuple(blocks), jnp.asarray(clip, float), float(trace), clipped), first


def _check_together(rules: Sequence[AbstractOptimizer], clipped: bool) -> None:
    """Signs are averages over whole batches, of one kind for all rows that move; so are the windows of Muon."""
    muon = {
        tuple((k, v) for k, v in rule.numbers().items() if k not in ("rate", "decay"))
        for rule in rules
        if isinstance(rule, Muon)
    }
    if len(muon) > 1 or (muon and clipped):
        raise OutsideTheoryError(
            "clip" if clipped else "optimizer", expected="one momentum of Muon for all rows under it, without clipping",
            got="a largest norm" if clipped else f"{len(muon)} of them", remedy="give them one momentum; rates may differ",
        )  # fmt: skip
    signs = [rule for rule in rules if rule.averages == "sign"]
    if not signs:
        return
    kinds = {(type(rule).__name__, *(str(getattr(rule, name, "")) for name in ("beta1", "beta2"))) for rule in rules}
    if len(kinds) > 1:
        raise OutsideTheoryError(
            "optimizer", expected="Sign or Lion (with one pair of betas) on all rows that move, or on none",
            got=" and ".join(sorted({type(rule).__name__ for rule in rules})), remedy="freeze the other rows",
        )  # fmt: skip
    if clipped:
        raise OutsideTheoryError(
            "clip", expected="inf with Sign and Lion", got="a largest norm", remedy="a sign does not feel it"
        )


def _block(names: tuple[str, ...], rule: AbstractOptimizer, rows: Sequence[str], ratio: Any, trace: float) -> Block:
    beta = rule.beta
    if beta is None or isinstance(beta, jax.core.Tracer):
        carried = beta is not None
    else:
        carried = float(beta) > 0 and trace * (1 - float(beta)) <= LARGEST_DAMPING
    # The rate is the system's learning rate, so that a sweep over it moves every block.
    plain = eqx.tree_at(lambda r: r.rate, rule, jnp.ones(()))
    return Block(tuple(rows.index(name) for name in names), plain, jnp.asarray(ratio, float), carried)


def _by_rows(given: Any, rows: Sequence[str]) -> dict[tuple[str, ...], AbstractOptimizer]:
    if isinstance(given, AbstractOptimizer):
        return {tuple(rows): given}
    if not isinstance(given, Mapping) or not given:
        raise InputError(
            "optimizer", expected="an optimiser, or a mapping from rows to optimisers", got=given,
            remedy="e.g. odescale.optimizers.Adam(rate=0.1)",
        )  # fmt: skip
    found: dict[tuple[str, ...], AbstractOptimizer] = {}
    taken: set[str] = set()
    for key, rule in given.items():
        if not isinstance(rule, AbstractOptimizer):
            raise InputError("optimizer", expected=f"an optimiser for {key}", got=rule, remedy="e.g. SGD(rate=0.1)")
        if key is None:
            continue
        names = (key,) if isinstance(key, str) else tuple(key)
        for name in names:
            if name not in rows or name in taken:
                raise InputError(
                    "optimizer", expected=f"each once of the rows that move: {', '.join(rows)}", got=name, remedy="mend the key"
                )  # fmt: skip
            taken.add(name)
        found[names] = rule
    rest = tuple(row for row in rows if row not in taken)
    if rest and None not in given:
        raise InputError(
            "optimizer", expected=f"an optimiser for {', '.join(rest)}", got="none", remedy="add one under the key None"
        )
    return found | ({rest: given[None]} if rest else {})


def from_words(values: Mapping[str, Any], given: Mapping[str, Any]) -> AbstractOptimizer | None:
    """The optimiser behind the words of a parameter table; None for plain SGD, which needs no object.

    `values`: all of them, `given`: those that were given, since every optimiser has a rate and a momentum of its own by default.
    """
    word = values["optimizer"]
    if word == "sgd":
        return None
    kind = OPTIMIZERS[word]
    fields = [field.name for field in dataclasses.fields(kind)]
    source = {"rate": "learning_rate", "decay": "weight_decay"}
    chosen = {}
    for name in ("learning_rate", "weight_decay", "momentum", "beta1", "beta2", "eps", "nesterov"):
        own = next((field for field, word in source.items() if word == name), name)
        if own in fields:
            if name in given or name == "weight_decay":
                chosen[own] = values[name]
        elif name in given:
            raise InputError(
                name,
                expected=f"a number of {kind.__name__}: {', '.join(fields)}",
                got=given[name],
                remedy="leave it out",
            )
    if "friction" in given and given["friction"] != 0:
        raise InputError("friction", expected=f"0 with {word}", got=given["friction"], remedy="leave it out")
    return kind(**chosen)


def refuse_numbers(given: Mapping[str, Any]) -> None:
    """Numbers that an optimiser object holds itself, given beside it."""
    for name in ("learning_rate", "momentum", "friction", "weight_decay", "beta1", "beta2", "eps", "nesterov"):
        if name in given:
            raise InputError(
                name, expected="nothing beside an optimizer object, which has its own numbers", got=given[name],
                remedy="give it to the object",
            )  # fmt: skip
