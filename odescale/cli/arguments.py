"""The grammar of the command line, and errors as one clear line with exit status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from odescale.errors import InputError

PICTURES = (".png", ".pdf", ".svg")


class Parser(argparse.ArgumentParser):
    """argparse without the usage block: one line on stderr, exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Prints one line and exits with status 2."""
        text = " ".join(message.split())
        print(f"odescale: {text}; see `{self.prog} --help`", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> Parser:
    """All commands and their options."""
    parser = Parser(prog="odescale", description="Mean-field ODEs of transformer training: derive, solve, compare.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def add(name: str, text: str, *, system: bool = False) -> Parser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else there")
        if system:
            command.add_argument("system", metavar="SYSTEM", help="a name from `odescale systems`")
            command.add_argument(
                "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter (repeat)"
            )
            command.add_argument("--t1", type=_number, default=None, help="end time on --clock (default: the system's)")
            command.add_argument("--clock", default="t", help="t, steps or tau: what --t1 and the output mean")
        return command

    add("systems", "list the systems and their parameters")
    derive = add("derive", "print a shipped derivation")
    derive.add_argument("name", metavar="NAME", help="attention")
    derive.add_argument("--rerun", action="store_true", help="derive again from the first line (needs a checkout)")
    solve = add("solve", "integrate a system's ODE", system=True)
    solve.add_argument(
        "--points", type=_whole, default=None, help="output times (default 200; 60 for an average over nodes)"
    )
    solve.add_argument("--accuracy", default="fast", help="fast, or check: estimate the error of the loss")
    solve.add_argument("--rtol", type=_number, default=None, help="relative tolerance")
    solve.add_argument("--solver", default="auto", help="auto, tsit5, bosh3, dopri8, kvaerno5, structured or rank_one")
    solve.add_argument("--precision", default="float64", help="float64 or float32")
    solve.add_argument("--save", metavar="FILE", help="write the trajectory to FILE (.npz)")
    solve.add_argument("--plot", metavar="FILE", help="draw the trajectory to FILE (.png)")
    transition = add("transition", "where exponential decay hands over to a power law", system=True)
    transition.add_argument("--min-depth", type=_number, default=2.5, help="e-folds the exponential must cover (2.5)")
    transition.add_argument("--precision", default="float64", help="float64; the transition needs it")
    for name, text in (("train", "train the real transformer"), ("compare", "theory against its own finite-size run")):
        command = add(name, text, system=True)
        command.add_argument("--seeds", type=_whole, help="how many seeds, side by side (default 4)")
        command.add_argument("--checkpoint", metavar="FILE", help="write and resume from FILE")
        command.add_argument("--out", metavar="FOLDER", default=f"results/{name}", help="where results go")
        command.add_argument("--records", type=_whole, default=31, help="record times (default 31)")
        if name == "compare":
            command.add_argument(
                "--min-depth", type=_number, help="e-folds of the exponential phase: look for transitions"
            )
            command.add_argument(
                "--tolerance", type=_number, help="deviation that counts as agreement (the theory's own)"
            )
    _logs(add)
    _frontier(add("frontier", "the least risk at a given compute: sizes, time, C*, exponents of a risk law"))
    quick = add("quickstart", "derive, integrate, train, compare: the whole line on a small system")
    quick.add_argument("--seeds", type=_whole, default=2, help="how many seeds (default 2)")
    quick.add_argument("--out", metavar="FOLDER", default="results/quickstart", help="where the report goes")
    return parser


def _logs(add: Callable[..., Parser]) -> None:
    """Options of the commands on logs: how to read them, what to fit, what to predict."""
    report = add("report", "regimes, laws, forecast and verdict of training curves of your own, as a page")
    forecast = add("forecast", "the loss of another run, schedule or horizon from the runs you have")
    schedule = add("schedule", "the best learning-rate schedule for a budget, under the law that your runs identify")
    for command in (report, forecast, schedule):
        formats = "CSV, JSON lines, W&B, MLflow, trainer_state, TensorBoard"
        command.add_argument("logs", nargs="+", metavar="LOG", help=f"files or folders: {formats}")
        command.add_argument("--step", metavar="COLUMN", help="column of steps (default: guessed, and said)")
        command.add_argument("--loss", metavar="COLUMN", help="column of the loss (default: guessed, and said)")
        command.add_argument("--learning-rate", metavar="COLUMN|NUMBER", help="column of rates, or the one rate")
        command.add_argument("--run", metavar="NAME", help="only runs of this name or pattern")
        command.add_argument("--warmup-steps", type=_number, help="linear warm-up before the first row, for tau")
        command.add_argument("--fit-on", action="append", metavar="NAMES", help="runs to fit, by commas (repeat)")
        command.add_argument("--law", help="instant, relaxing, spectral, ... (default: by cross-validation)")
        command.add_argument(
            "--after", type=_number, help="first step to fit (default: past warm-up and 1/20 of the run)"
        )
    for command in (report, forecast):
        command.add_argument("--predict", action="append", metavar="NAMES", help="runs to predict, by commas (repeat)")
    report.add_argument("--min-depth", type=_number, default=2.5, help="e-folds of the exponential phase")
    report.add_argument("--irreducible", type=_number, default=0.0, help="irreducible loss to subtract")
    report.add_argument("--title", help="of the page")
    report.add_argument("--out", metavar="FOLDER", default="results/report", help="where the page goes")
    forecast.add_argument("--schedule", metavar="TEXT", help="a planned run, e.g. cosine:20000:0.1 (SGD steps)")
    schedule.add_argument("--save", metavar="FILE", help="write the schedule to FILE (.csv)")
    for command in (forecast, schedule):
        command.add_argument("--steps", type=_number, help="SGD steps of the planned run, warm-up included")
        command.add_argument("--peak", type=_number, help="its peak learning rate")
        command.add_argument("--warmup", type=_number, help="its linear warm-up in SGD steps")


def _frontier(command: Parser) -> None:
    """Options of `odescale frontier`: a law from a preset, from terms or from a spectrum; then computes and outputs."""
    command.description = (
        "R = sum A x^-alpha + D exp(-lam t), C = c prod x^q t^q_t. Example: odescale frontier --term width:1:.5:2:100 "
        "--term data:1:.5:1:1000 --decay 50 --rate .8 --time-cost 1 --compute 2e7:1e12:12"
    )
    command.add_argument("--preset", metavar="NAME", default=None, help="yang_v1 or yang_v3")
    command.add_argument(
        "--term", action="append", default=[], metavar="NAME:A:ALPHA:Q[:FLOOR]",
        help="A x^-ALPHA at cost x^Q, x no smaller than FLOOR (repeat); the name `time` makes t a power law",
    )  # fmt: skip
    command.add_argument("--decay", type=_number, default=None, help="D of D exp(-lam t)")
    command.add_argument("--rate", type=_number, default=None, help="lam, per unit of t")
    command.add_argument("--time-cost", type=_number, default=None, help="q_t of C ~ t^q_t")
    command.add_argument("--unit", type=_number, default=None, help="c, FLOP at x = t = 1 (default 1)")
    command.add_argument(
        "--spectrum", metavar="A,B", default=None, help="phase of SGD on lam_j = j^-B, lam_j theta_j^2 = j^-A"
    )
    command.add_argument("--compute", metavar="LO:HI[:N]", default=None, help="N computes from LO to HI (default N 13)")
    command.add_argument("--plot", metavar="FILE", help="draw to FILE (.png, .pdf, .svg)")


def require_picture(path: str | None) -> None:
    """Refuses a --plot target that is no picture, before anything is computed; None passes."""
    if path and Path(path).suffix.lower() not in PICTURES:
        raise InputError(
            "--plot", expected=f"a file ending in {', '.join(PICTURES)}", got=path, remedy="e.g. --plot loss.png"
        )


def settings(pairs: Sequence[str], parameters: Sequence[Any], system: str) -> dict[str, Any]:
    """`--set name=value` pairs as checked parameters; unknown names and bad values are refused in one line."""
    from odescale.systems.parameters import complete

    known = {parameter.name: parameter for parameter in parameters}
    given: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        name = name.strip()
        if not separator or not name:
            raise InputError("--set", expected="NAME=VALUE", got=pair, remedy="e.g. --set learning_rate=0.1")
        if name not in known:
            complete(parameters, {name: text}, system)  # type: ignore[arg-type]
        if name in given:
            raise InputError(name, expected="one value", got="two --set of it", remedy="keep one")
        given[name] = known[name].parse(text)
    return given


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
