"""The grammar of the command line, and errors as one clear line with exit status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from odescale.errors import InputError


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
    solve.add_argument("--solver", default="auto", help="auto, tsit5, bosh3, dopri8, kvaerno5 or structured")
    solve.add_argument("--precision", default="float64", help="float64 or float32")
    solve.add_argument("--save", metavar="FILE", help="write the trajectory to FILE (.npz)")
    solve.add_argument("--plot", metavar="FILE", help="draw the trajectory to FILE (.png)")
    transition = add("transition", "where exponential decay hands over to a power law", system=True)
    transition.add_argument("--min-depth", type=_number, default=2.5, help="e-folds the exponential must cover (2.5)")
    transition.add_argument("--precision", default="float64", help="float64; the transition needs it")
    for name, text in (("train", "train the real transformer"), ("compare", "theory against its own finite-size run")):
        command = add(name, text, system=True)
        command.add_argument("--seeds", type=_whole, default=2, help="how many seeds, side by side (default 2)")
        command.add_argument("--checkpoint", metavar="FILE", help="write and resume from FILE")
        command.add_argument("--out", metavar="FOLDER", default=f"results/{name}", help="where results go")
        command.add_argument("--records", type=_whole, default=31, help="record times (default 31)")
        if name == "compare":
            command.add_argument("--min-depth", type=_number, default=2.5, help="e-folds of the exponential phase")
            command.add_argument(
                "--tolerance",
                type=_number,
                default=0.05,
                help="deviation that counts as agreement (transformer, committee)",
            )
    report = add("report", "regimes and transition of loss curves of your own (CSV with step and loss columns)")
    report.add_argument("logs", nargs="+", metavar="LOG", help="CSV files")
    report.add_argument("--min-depth", type=_number, default=2.5, help="e-folds of the exponential phase")
    report.add_argument("--irreducible", type=_number, default=0.0, help="irreducible loss to subtract")
    quick = add("quickstart", "derive, integrate, train, compare: the whole line on a small system")
    quick.add_argument("--seeds", type=_whole, default=2, help="how many seeds (default 2)")
    quick.add_argument("--out", metavar="FOLDER", default="results/quickstart", help="where the report goes")
    return parser


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
