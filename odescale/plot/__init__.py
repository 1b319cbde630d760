"""Pictures of results: arrays and records go in, matplotlib axes come out; nothing is computed and nothing is shown.

`comparison` is the picture of the report (theory against runs), `trajectory` the smaller ones, `style` what they share.
Every function draws on a `matplotlib.figure.Figure` of its own or on axes that are handed in, never through pyplot, so
that it works without a screen; save with `axes.figure.savefig(...)`.
"""
