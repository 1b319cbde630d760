"""`odescale rollout`: how long a rollout takes, what speculation gains, and the best strategy at every batch."""

from __future__ import annotations

import argparse
from typing import Any

from odescale.analysis.rollout.calibrate import fit_costs
from odescale.analysis.rollout.policy import best_strategies
from odescale.analysis.rollout.times import rollout_times
from odescale.cli.laws import pairs_by_name
from odescale.cli.output import draw, emit, require_picture
from odescale.cli.verbs import settings_of
from odescale.errors import InputError
from odescale.systems.register import find_system
from odescale.systems.rollout.cost import COSTS
from odescale.systems.rollout.fluid import rollout

MEASURED = (*COSTS, "first", "hazard")
"""Numbers that a table of speeds takes the place of."""


def report_rollout(options: argparse.Namespace) -> int:
    """Makespan, gain, quantiles, the step's gain; costs of a table; the best strategy by batch."""
    require_picture(options.plot)
    settings = settings_of(options.set, find_system("rollout").parameters, "rollout")
    fit = None
    if options.costs:
        taken = [name for name in settings if name in MEASURED]
        if taken:
            raise InputError(taken[0], expected="nothing beside --costs, which measures it", got=settings[taken[0]],
                             remedy="drop the --set")  # fmt: skip
        columns = pairs_by_name(options.column, "--column", "NAME=COLUMN, e.g. batch=concurrency")
        fit = fit_costs(options.costs, columns=columns or None)
        settings |= {name: float(getattr(fit.costs, name)) for name in COSTS}
    own = rollout(**settings)
    table = best_strategies(own.costs if fit is None else fit, own.acceptance if fit is None else None)
    if options.best or (fit is not None and not {"policy", "threshold", "depth", "verified"} & set(settings)):
        own = rollout(**(settings | {"policy": table.policy(fit).text()}))
    found = rollout_times(own, **({} if options.draws is None else {"draws": options.draws}))
    quantiles = {q: found.quantile(q)[0] for q in (0.5, 0.9)}
    lines = [] if fit is None else str(fit).splitlines()
    lines += str(found).splitlines()
    lines.append(f"  half of the rollouts take up to {quantiles[0.5]:.5g}, nine in ten up to {quantiles[0.9]:.5g}")
    lines.append(
        f"  end to end, if the rollout without speculation is {options.share:.0%} of a step: {found.end_to_end(options.share):.3f}"
    )
    lines += ["best strategy by batch, DEPTHxVERIFIED:", *str(table).splitlines()]
    draw(found, options.plot)
    record: dict[str, Any] = {"system": "rollout", "loss": found.makespan[0], "time_unit": "plain rounds at batch 1"}
    record |= {"share": options.share, "end_to_end": found.end_to_end(options.share), "policy_table": table.to_dict()}
    record |= found.to_dict() | ({} if fit is None else {"costs": fit.to_dict()})
    emit(record, "\n".join(lines), options.json)
    return 0
