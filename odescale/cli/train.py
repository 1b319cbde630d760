"""`odescale train`: the real network behind a system."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from odescale.cli.output import table
from odescale.cli.verbs import Answer, Asked, verb
from odescale.run import Run
from odescale.training.train import train


def trained(asked: Asked) -> Run:
    """The real run of the options."""
    options = asked.options
    return train(
        asked.system, asked.t1, seeds=options.seeds, records=options.records, checkpoint=options.checkpoint,
        progress=not options.json,
    )  # fmt: skip


@verb
def train_network(asked: Asked) -> Answer:
    """Means over the seeds at the record times; the run goes to OUT/run.npz."""
    run = trained(asked)
    path = run.save(Path(asked.options.out) / "run.npz")
    error = run.stderr() if len(run.seeds) > 1 else run.mean("loss_stderr") if "loss_stderr" in run.records else None
    means = {name: run.mean(name) for name in run.records if name != "loss" and not name.endswith("_stderr")}
    t = asked.on_clock(run.t)
    columns = {asked.options.clock: t} if asked.options.clock != "steps" else {}
    columns = {"step": run.step} | columns | {"loss": run.mean(), "+-": [None] * t.size if error is None else error}
    columns |= {name: values for name, values in means.items() if np.ndim(values) == 1}
    rows = ([column[i] for column in columns.values()] for i in range(t.size))
    record = {
        "t": t, "loss": run.mean(), "error": error, "observables": means, "steps": run.step, "seeds": run.seeds,
        "path": str(path),
    }  # fmt: skip
    return Answer(record, [*table(columns, rows), f"saved to {path}"], run)
