"""`odescale transition`: where exponential decay hands over to a power law, or why it does not."""

from __future__ import annotations

from odescale.analysis.phases.transition import find_transition
from odescale.cli.thresholds import thresholds
from odescale.cli.verbs import UNITS, Answer, Asked, effort, verb


@verb
def locate(asked: Asked) -> Answer:
    """Phases and t_x, on all clocks; "no exponential phase" is an answer, exit status 0."""
    options = asked.options
    # Its curve is refined between these times: twice those that show it.
    with effort(asked.system):
        found = find_transition(
            asked.system, asked.t1, thresholds=thresholds(options.threshold), precision=options.precision,
            points=2 * asked.entry.points,
        )  # fmt: skip
    record, lines = found.to_dict(), [str(found)]
    lines += [] if found.phases is None else [f"  {phase}" for phase in found.phases.list]
    if found.t_x is not None:
        clocks = {name: float(asked.system.clock.from_t(found.t_x, name)) for name in UNITS}
        record |= clocks
        lines.append(f"= {clocks['steps']:.6g} {asked.system.clock.step}s = {clocks['tau']:.6g} of intrinsic time")
    at = None if found.t_x is None else float(asked.on_clock(found.t_x))
    return Answer({"t": at, "transition": record}, lines, found)
