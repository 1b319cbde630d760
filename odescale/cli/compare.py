"""`odescale compare`: a theory against its own finite-size run."""

from __future__ import annotations

from typing import Any

from odescale.cli.thresholds import thresholds
from odescale.cli.train import trained
from odescale.cli.verbs import Answer, Asked, tolerances, verb
from odescale.compare.comparison import check_options, compare
from odescale.compare.report import to_json, write_report


@verb
def compare_theory(asked: Asked) -> Answer:
    """Trains, compares, writes the report into OUT; the verdict on stdout."""
    options = asked.options
    given: dict[str, Any] = {"tolerance": tolerances(options.tolerance), "thresholds": thresholds(options.threshold)}
    check_options(asked.system, **given)  # before the training, not after it
    found = compare(asked.system, trained(asked), **given)
    page = write_report(found, options.out)
    record = to_json(found) | {
        "t": asked.on_clock(found.run.t), "loss": found.loss.predicted, "error": found.loss.stderr, "path": str(page),
    }  # fmt: skip
    del record["time_unit"]  # that of --clock
    lines = [f"{name}: {transition}" for name, transition in found.transitions.items()]
    return Answer(record, [str(found), *lines, f"report: {page}  (picture: {page.parent / 'comparison.png'})"], found)
