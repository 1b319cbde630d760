"""The grammar of the command line: one table of commands, read without JAX; errors as one clear line with exit status 2."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from odescale import __version__
from odescale.cli.derivation import shipped_derivations
from odescale.plain_text import one_line


class Parser(argparse.ArgumentParser):
    """argparse without the usage block: one line on stderr, exit status 2. `--debug` goes before or after the command."""

    def __init__(self, **words: Any) -> None:
        # A word cut short would mean another option as soon as there is one.
        super().__init__(**words, allow_abbrev=False)
        # Suppressed: without it the command's own default would overwrite what stood before the command.
        self.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show where an error came from"
        )

    def error(self, message: str) -> NoReturn:
        """Prints one line and exits with status 2."""
        words = one_line(message)
        words = words if len(words) <= 400 else words[:397] + "..."
        self.exit(2, f"odescale: {words}; see `{self.prog} --help`\n")


class Command(NamedTuple):
    """A command: its line of help, "module:function" in `odescale.cli`, its options, and whether it computes with JAX."""

    text: str
    where: str
    options: tuple[Callable[[Parser], None], ...]
    jax: bool = True


def build_parser() -> Parser:
    """All commands and their options."""
    parser = Parser(
        prog="odescale", description="ODEs of transformer training: derive, solve, train, compare, forecast."
    )
    parser.set_defaults(debug=False)
    parser.add_argument("--version", action="version", version=f"odescale {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.text, description=command.text)
        own.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else there")
        if command.jax:
            own.add_argument(
                "--no-cache", action="store_true", help="neither read nor keep compiled programs and tables"
            )
        for options in command.options:
            options(own)
    return parser


def _systems(command: Parser) -> None:
    command.add_argument("system", metavar="SYSTEM", nargs="?", help="one system in detail: a name or FILE.py:BUILDER")


def _derive(command: Parser) -> None:
    command.add_argument("name", metavar="NAME", help=", ".join(shipped_derivations()))
    command.add_argument("--rerun", action="store_true", help="derive again from the first line (needs a checkout)")
    command.add_argument("--markdown", action="store_true", help="as shipped: Markdown with formulas in LaTeX")


def _system(command: Parser) -> None:
    """What every verb on a system takes."""
    add = command.add_argument
    add("system", metavar="SYSTEM", help="a name from `odescale systems`, FILE.py:BUILDER or PACKAGE.MODULE:BUILDER")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter (repeat)")
    add("--t1", type=_number, help="end time on --clock (default: the system's own)")
    add("--clock", default="t", help="t, steps or tau: what --t1 and the times of the output mean")
    _plot(command)


def _plot(command: Parser) -> None:
    command.add_argument("--plot", metavar="FILE", help="draw the result to FILE (.png, .pdf, .svg)")


def _solution(command: Parser) -> None:
    """What `solve` and `sweep` share."""
    add = command.add_argument
    add("--points", type=_whole, help="output times (default: the system's own, 200 or 60)")
    add("--rtol", type=_number, help="relative tolerance")
    add("--solver", default="auto", help="auto, tsit5, bosh3, dopri8, kvaerno5, structured or rank_one")
    add("--max-steps", type=_whole, help="cap on steps of the solver (default: the solver's own)")
    add("--save", metavar="FILE", help="write the trajectory to FILE (.npz)")


def _solve(command: Parser) -> None:
    command.add_argument("--accuracy", default="fast", help="fast, or check: estimate the error of the loss")
    command.add_argument("--precision", default="float64", help="float64 or float32")


def _sweep(command: Parser) -> None:
    add = command.add_argument
    add("--vary", action="append", default=[], metavar="NAME=LO:HI:N[:log]",
        help="N values of a parameter (repeat: equally many, varied together)")  # fmt: skip
    command.description = (
        "A few members in memory: odescale sweep committee --vary learning_rate=0.1:1:8. Many, into a store that a second call "
        "goes on with: odescale sweep PLAN.toml, which names system, t1, values and store (docs/sweeps.md)."
    )
    add("--executor", metavar="ENGINE", help="of a plan: dask or submitit computes its chunks (default: this process)")
    add("--address", help="of a running Dask scheduler (default: workers on this machine)")


def _transition(command: Parser) -> None:
    _thresholds(command)
    command.add_argument("--precision", default="float64", help="float64; the transition needs it")


def _thresholds(command: Parser) -> None:
    command.add_argument("--threshold", action="append", default=[], metavar="NAME=VALUE",
                         help="what makes a phase: efolds=1.5, ratio=3, power_efolds=0.5, near=0.2 (repeat)")  # fmt: skip


def _run(command: Parser) -> None:
    """What `train` and `compare` share."""
    add = command.add_argument
    add("--seeds", type=_whole, help="how many seeds (default 4, or 1 where nothing is random)")
    add("--records", type=_whole, default=31, help="record times (default 31)")
    add("--checkpoint", metavar="FILE", help="write and resume from FILE")
    _out(command)


def _out(command: Parser) -> None:
    name = command.prog.split()[-1]
    command.add_argument(
        "--out", metavar="FOLDER", default=f"results/{name}", help=f"results go there (results/{name})"
    )


def _compare(command: Parser) -> None:
    add = command.add_argument
    add("--tolerance", action="append", default=[], metavar="[NAME=]VALUE",
        help="deviation that counts as agreement, of the loss or of a quantity (repeat; default: the theory's own)")  # fmt: skip
    _thresholds(command)


READ_COLUMNS = {
    "tokens": "tokens seen", "flops": "FLOP spent", "logit_scale": "the size of logits", "gradient_norm": "the gradient's norm",
}  # fmt: skip
READ_CLOCKS = {
    "batch_tokens": "tokens per SGD step: tokens as the clock, or of a log of steps",
    "batch_samples": "samples per SGD step, with samples as the clock",
    "steps_per_epoch": "SGD steps per epoch, with epochs as the clock",
    "steps_per_row": "SGD steps per row, in a log that counts nothing",
    "step_flops": "FLOP per SGD step, with FLOP as the clock",
}
"""Options of `read_logs` that the command line passes on under their own names."""


def _reading(command: Parser) -> None:
    """How a log is read: every option of `read_logs`."""
    add = command.add_argument
    add("--step", metavar="COLUMN", help="column of steps (default: guessed, and said)")
    add("--loss", metavar="COLUMN", help="column of the loss (default: guessed, and said)")
    add("--learning-rate", "--lr", metavar="COLUMN|NUMBER", help="column of rates, or the one rate")
    for name, what in READ_COLUMNS.items():
        add(f"--{name.replace('_', '-')}", metavar="COLUMN", help=f"column of {what}")
    add(
        "--format",
        help="how the file is read: csv, jsonl, json, printed, tensorboard, ... (default: told by the content)",
    )
    add("--run", metavar="NAME", help="only runs of this name or pattern")
    add("--warmup-steps", type=_number, help="linear warm-up before the first row, for tau")
    for name, what in READ_CLOCKS.items():
        add(f"--{name.replace('_', '-')}", type=_number, metavar="N", help=what)
    add("--max-bytes", type=_whole, help="longest file, unpacked (default 128 MiB)")


def _logs(command: Parser) -> None:
    """How logs are read, and which of them are fitted."""
    add = command.add_argument
    add("logs", nargs="+", metavar="LOG",
        help="files or folders: CSV, JSON lines, W&B, MLflow, trainer_state, TensorBoard")  # fmt: skip
    _reading(command)
    add("--fit-on", action="append", metavar="NAMES", help="runs to fit, by commas (repeat)")
    add("--law", help="instant, relaxing, spectral, ... (default: by cross-validation)")
    add("--after", type=_number, help="first step to fit (default: past warm-up and 1/20 of the run)")


def _watch(command: Parser) -> None:
    """A log that grows, and when to stop looking at it."""
    add = command.add_argument
    add("log", metavar="LOG", help="the file that the run appends to")
    _reading(command)
    _short_warmup(command)
    add(
        "--with",
        dest="beside",
        action="append",
        metavar="LOG",
        help="finished runs that are fitted together with it (repeat)",
    )
    add(
        "--final",
        type=_number,
        metavar="STEP",
        help="last SGD step of the run, which the forecast is for (default: a quarter beyond the last row)",
    )
    add(
        "--schedule",
        help="the run's whole learning rate in units of its peak (default: held at its last value, and said)",
    )
    add("--law", help="instant, relaxing, spectral, ... (default: by cross-validation)")
    add("--every", type=_number, default=30.0, metavar="SECONDS", help="between two looks")
    add("--idle", type=_number, metavar="SECONDS", help="stop when nothing was written for so long")
    add("--once", action="store_true", help="look once and stop")
    add("--gate", action="store_true",
        help="exit with 3 on divergence, 4 on a forecast above --limit, 5 where the loss left its earlier forecast")  # fmt: skip
    add("--limit", type=_number, metavar="LOSS", help="highest final loss that the gate lets pass")
    add(
        "--out",
        default="results/watch",
        metavar="FOLDER",
        help="the page, and what was read (a restarted watch goes on from it)",
    )


def _predicted(command: Parser) -> None:
    command.add_argument("--predict", action="append", metavar="NAMES", help="runs to predict, by commas (repeat)")


def _short_warmup(command: Parser) -> None:
    """Beside a planned run, `--warmup` is that run's; elsewhere it is the log's."""
    same = "the same as --warmup-steps"
    command.add_argument("--warmup", dest="warmup_steps", type=_number, default=argparse.SUPPRESS, help=same)


def _report(command: Parser) -> None:
    add = command.add_argument
    _short_warmup(command)
    _thresholds(command)
    add("--irreducible", type=_number, default=0.0, help="irreducible loss to subtract")
    add("--title", help="of the page")


def _tables(command: Parser) -> None:
    """How tables of finished runs are read, and which law is fitted."""
    add = command.add_argument
    for name, what in (
        ("params", "parameters N"),
        ("tokens", "tokens D"),
        ("flop", "compute C"),
        ("loss", "the final loss"),
    ):
        add(f"--{name}", metavar="COLUMN", help=f"column of {what} (default: guessed, and said)")
    add("--run", metavar="COLUMN", help="column that names the training run of a row, where several rows are of one")
    add("--column", action="append", default=[], metavar="NAME=COLUMN",
        help="batch, rate, epochs, unique_tokens, steps, width, depth, ... (repeat)")  # fmt: skip
    add("--where", action="append", default=[], metavar="COLUMN=LABEL", help="keep these rows (repeat)")
    add("--leave-out", metavar="ROWS", help="outliers, marked (by the file), or rows from 0 by commas")
    add("--bootstrap", type=_whole, help="resampled tables (default 1000)")
    add("--level", type=_number, help="of the intervals (default .9)")
    add("--title", help="of the page")
    add("--max-bytes", type=_whole, help="longest file, unpacked (default 128 MiB)")


def _laws(command: Parser) -> None:
    """What is asked of tables."""
    command.description = (
        "Laws of the loss against parameters, tokens and compute from a table, one finished run a row; best sizes for a budget, "
        "and how far to believe them. Example: odescale laws runs.csv --compute 1e22,1e24 --leave-out outliers"
    )
    add = command.add_argument
    add(
        "logs",
        nargs="+",
        metavar="TABLE",
        help="CSV, JSON, JSON lines or Parquet, one finished run a row; several are joined",
    )
    add("--form", action="append", metavar="NAME", help="chinchilla, ... (repeat; default: all that the columns allow)")
    add("--compute", action="append", metavar="FLOP", help="budgets to answer for, by commas (repeat)")
    add("--served", type=_number, help="tokens of inference that the same budget pays for")


def _budgets(command: Parser) -> None:
    """Law, budgets, choices and assumptions of a plan."""
    command.description = (
        "What to train under budgets, what binds, what more of each resource is worth. Example: odescale plan runs.csv "
        "--budget flop=1e21 --budget memory=80e9 --budget devices=8 --budget hours=240"
    )
    add = command.add_argument
    add("logs", nargs="*", metavar="TABLE", help="of finished runs, for the law: see `odescale laws`")
    add(
        "--law",
        metavar="NAME=VALUE,...",
        help="its numbers in the place of a table: E=1.82,A=482,B=2085,alpha=.348,beta=.366",
    )
    add("--form", metavar="NAME", help="of the law of the table (default chinchilla)")
    add("--budget", action="append", default=[], metavar="NAME=VALUE",
        help="flop, memory (bytes per device), hours, devices, unique_tokens, served_tokens, max_batch, ... (repeat)")  # fmt: skip
    add("--choice", action="append", default=[], metavar="NAME=VALUE,...",
        help="optimizer, checkpointing, zero, adapter: values to choose from (repeat)")  # fmt: skip
    add("--assume", action="append", default=[], metavar="NAME=VALUE",
        help="utilisation=.35, token_factor.adam-8bit=.98, ... (repeat; the page lists all)")  # fmt: skip
    add("--range", action="append", default=[], metavar="NAME=LO:HI", help="of params, tokens, batch, ... (repeat)")
    add("--draws", type=_whole, help="of the law's fit, planned again (default 100)")


def _rollout(command: Parser) -> None:
    """A rollout by the numbers of its system, or with the costs of a table."""
    add = command.add_argument
    add("--set", action="append", default=[], metavar="NAME=VALUE",
        help="a parameter of the system rollout, e.g. lengths=lengths.csv, requests=64 (repeat)")  # fmt: skip
    add(
        "--costs",
        metavar="TABLE",
        help="measured speeds by batch, depth, verified tokens (.csv): costs are fitted to it",
    )
    add(
        "--column",
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="which column is batch, depth, ... (repeat)",
    )
    add(
        "--best", action="store_true", help="take the best strategy at every batch as the policy (default with --costs)"
    )
    add(
        "--share", type=_number, default=0.85, help="of a step that the rollout without speculation takes (default .85)"
    )
    add("--draws", type=_whole, help="of all lengths (default 8192)")


def _planned(command: Parser) -> None:
    """A run that does not exist yet."""
    add = command.add_argument
    add("--steps", type=_number, help="SGD steps of the planned run, warm-up included")
    add("--peak", type=_number, help="its peak learning rate")
    add("--warmup", type=_number, help="its linear warm-up in SGD steps")


def _forecast(command: Parser) -> None:
    command.add_argument("--schedule", metavar="TEXT", help="a planned run, e.g. cosine:20000:0.1 (SGD steps)")


def _schedule(command: Parser) -> None:
    command.add_argument("--save", metavar="FILE", help="write the schedule to FILE (.csv)")


def _frontier(command: Parser) -> None:
    """A law from a preset, from terms or from a spectrum; then computes."""
    command.description = (
        "R = sum A x^-alpha + D exp(-lam t), C = c prod x^q t^q_t. Example: odescale frontier --term width:1:.5:2:100 "
        "--term data:1:.5:1:1000 --decay 50 --rate .8 --time-cost 1 --compute 2e7:1e12:12"
    )
    add = command.add_argument
    add("--preset", metavar="NAME", help="yang_v1 or yang_v3")
    add("--term", action="append", default=[], metavar="NAME:A:ALPHA:Q[:FLOOR]",
        help="A x^-ALPHA at cost x^Q, x no smaller than FLOOR (repeat); the name `time` makes t a power law")  # fmt: skip
    add("--decay", type=_number, help="D of D exp(-lam t)")
    add("--rate", type=_number, help="lam, per unit of t")
    add("--time-cost", type=_number, help="q_t of C ~ t^q_t")
    add("--unit", type=_number, help="c, FLOP at x = t = 1 (default 1)")
    add("--spectrum", metavar="A,B", help="phase of SGD on lam_j = j^-B, lam_j theta_j^2 = j^-A")
    add("--compute", metavar="LO:HI[:N]", help="N computes from LO to HI (default N 13)")


def _quickstart(command: Parser) -> None:
    command.add_argument("--seeds", type=_whole, default=2, help="how many seeds (default 2)")


COMMANDS: dict[str, Command] = {
    "systems": Command("list the systems, or one with its parameters", "systems:list_systems", (_systems,), jax=False),
    "derive": Command("read a shipped derivation", "derivation:derive", (_derive,), jax=False),
    "solve": Command("integrate a system's ODE", "solve:solve", (_system, _solution, _solve)),
    "sweep": Command("integrate for many values of a parameter", "sweep:sweep_command", (_system, _sweep, _solution)),
    "transition": Command(
        "where exponential decay hands over to a power law", "transition:locate", (_system, _transition)
    ),
    "train": Command("train the real network behind a system", "train:train_network", (_system, _run)),
    "compare": Command("theory against its own finite-size run", "compare:compare_theory", (_system, _run, _compare)),
    "report": Command("regimes, laws, forecast and verdict of training curves of your own, as a page",
                      "logs:report_on_logs", (_logs, _predicted, _report, _out)),
    "laws": Command("scaling laws of a table of finished runs, and the best sizes for a budget, as a page",
                    "laws:report_on_tables", (_laws, _tables, _out, _plot)),
    "plan": Command("what to train under budgets, and what more of each resource is worth",
                    "resources:plan_run", (_budgets, _tables, _out, _plot)),
    "rollout": Command("how long a rollout of answers takes, what speculation gains, the best strategy by batch",
                       "rollouts:report_rollout", (_rollout, _plot)),
    "forecast": Command("the loss of another run, schedule or horizon from the runs you have",
                        "logs:forecast_runs", (_logs, _predicted, _forecast, _planned, _plot)),
    "watch": Command("a log that is still growing: forecast of its final loss, spikes, a page that reloads itself, a gate for CI",
                     "watch:watch_run", (_watch,)),
    "schedule": Command("the best learning-rate schedule for a budget, under the law that your runs identify",
                        "logs:plan_schedule", (_logs, _schedule, _planned, _plot)),
    "frontier": Command("the least risk at a given compute: sizes, time, C*, exponents of a risk law",
                        "frontier:show_frontier", (_frontier, _plot)),
    "quickstart": Command("derive, integrate, train, compare: the whole line on a small system",
                          "quickstart:quickstart_line", (_quickstart, _out)),
}  # fmt: skip
"""Every command by name. Those whose options hold `_system` are verbs: any of them takes any system."""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None


def _whole(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return number
