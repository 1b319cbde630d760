"""`--threshold NAME=VALUE`: from what length on a stretch of a curve counts as a phase."""

from __future__ import annotations

from collections.abc import Sequence

from odescale.analysis.phases.stretches import Thresholds
from odescale.cli.named_values import named_value
from odescale.errors import InputError


def thresholds(texts: Sequence[str]) -> Thresholds | None:
    """The record of --threshold NAME=VALUE, or None where none was given."""
    if not texts:
        return None
    known = Thresholds.__dataclass_fields__
    given: dict[str, float] = {}
    for text in texts:
        name, value = named_value("--threshold", text, "NAME=VALUE", "efolds=2")
        if name not in known:
            raise InputError("--threshold", expected=f"one of {', '.join(known)}", got=name, remedy="name one of these")
        try:
            given[name] = float(value)
        except ValueError:
            raise InputError("--threshold", expected=f"a number for {name}", got=value, remedy="efolds=2") from None
    return Thresholds(**given)  # pyright: ignore[reportArgumentType]
