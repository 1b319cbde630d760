"""Theory beside runs: errors apart, verdicts, reports. The package is its verb: `odescale.compare(system, run)`."""

from odescale._door import callable_room

callable_room(__name__, "odescale.compare.comparison:compare")
