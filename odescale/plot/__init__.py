"""Pictures of results: records go in, matplotlib axes come out; nothing is computed and nothing is shown.

The package is its verb: `odescale.plot(result)` draws whatever it is given, see `odescale.plot.draw`. `register` adds a drawing,
`kinds` lists them. All pictures are drawn on a `matplotlib.figure.Figure` of their own or on axes that are handed in, never through
pyplot, so that it works without a screen; save with `axes.figure.savefig(...)`.
"""

from odescale._door import callable_room
from odescale.plot.draw import kinds as kinds
from odescale.plot.draw import plot as plot
from odescale.plot.draw import register as register

callable_room(__name__, "odescale.plot.draw:plot")
