"""`odescale transition`: where exponential decay hands over to a power law, or why it does not."""

from __future__ import annotations

from odescale.analysis.phases.transition import find_transition
from odescale.cli.verbs import UNITS, Answer, Asked, verb


@verb
def locate(asked: Asked) -> Answer:
    """t_x on all clocks; "no exponential phase" is an answer, exit status 0."""
    options = asked.options
    # Its curve is refined between these times: twice those that show it.
    found = find_transition(
        asked.system, asked.t1, min_depth=options.min_depth, precision=options.precision, points=2 * asked.entry.points
    )
    record, lines = found.to_dict(), [str(found)]
    if found.t_x is not None:
        clocks = {name: float(asked.system.clock.from_t(found.t_x, name)) for name in UNITS}
        record |= clocks
        lines.append(f"= {clocks['steps']:.6g} SGD steps = {clocks['tau']:.6g} of intrinsic time")
    at = None if found.t_x is None else float(asked.on_clock(found.t_x))
    return Answer({"t": at, "transition": record}, lines, found)
