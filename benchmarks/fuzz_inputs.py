"""Seeded damage for `benchmarks.fuzz` and `tests/test_fuzz.py`: logs in every format, mutated; command lines with bad values."""

from __future__ import annotations

import gzip
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from odescale.cli.arguments import COMMANDS
from odescale.logs.events import masked_crc
from odescale.systems.register import SYSTEMS

LONG = 200_000
"""Characters of the longest line that is put in."""
REAL_BYTES = 20_000
"""Of a real log, its beginning."""
NUMBERS = (
    "nan", "inf", "-inf", "-1", "0", "1e400", "-1e400", "1e-400", "9" * 400, "", " ", "٣", "0x10", "1_000", "1,5", "--1", "1e",
    "half", "NaN", "1e308", "4.9e-324", "-0.0", "9223372036854775808", "é", "\x1b[31m", "1;2", "true",
)  # fmt: skip
WORDS = (
    "", " ", "nothing", "é", "漢字", "a b", "*", "../..", "\x1b[31mred", "`x`|<b>", "x" * 300, "0", "-", "a=b", ":", "a:b",
    "\u202e", "%s", "\udc80", "--", "{}", "$x$",
)  # fmt: skip
PIECES = (
    b"nan", b"inf", b"-1", b"1e400", b"9" * 500, b'"', b"\r", b"\n", b"\0", b"\x1b[31m", b"\xff\xfe", b"\xef\xbb\xbf", b",",
    b";", b"\t", b"|", b"#", b"{", b"}", b"[", b"]", b":", b"tensor(", b"%", b" ", b"\xc3\x28", b"step", b"loss",
    "é".encode(), b"\\ud800", b"true", b"null", b"-", b"e", b".", b"<td>|`", b"$\\frac$",
)  # fmt: skip

RUNS = (b"a", b" ", b"_1", b"_ 1", b"a.", b"1", b"=", b":1", b"a: ", b"nan ")
"""What a pattern that tries every place again would take hours with, said often enough."""


def curve(rng: random.Random, rows: int) -> list[tuple[int, float, float]]:
    """(step, loss, rate) of a run."""
    gap = rng.choice((1, 10, 100))
    return [
        (i * gap, 2 + 6 / (1 + i) ** 0.4 * (1 + 0.02 * rng.random()), 1e-3 * (1 - i / (2 * rows))) for i in range(rows)
    ]


def _csv(rng: random.Random, rows: int) -> bytes:
    mark = rng.choice((",", ";", "\t", "|", "  "))
    named = rng.random() < 0.3
    lines = [mark.join((["run"] if named else []) + ["step", "train_loss", "lr"])]
    lines += [
        mark.join(([f"r{i * 3 // rows}"] if named else []) + [str(s), f"{x:.5f}", f"{e:.3g}"])
        for i, (s, x, e) in enumerate(curve(rng, rows))
    ]
    return "\n".join(lines).encode() + b"\n"


def _json_lines(rng: random.Random, rows: int) -> bytes:
    nested = rng.random() < 0.5
    entries = (
        {"step": s} | ({"train": {"loss": x, "lr": e}} if nested else {"loss": x, "lr": e})
        for s, x, e in curve(rng, rows)
    )
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


def _document(rng: random.Random, rows: int) -> bytes:
    history = [{"step": s, "loss": x, "learning_rate": e} for s, x, e in curve(rng, rows)]
    lists = {key: [entry[key] for entry in history] for key in history[0]}
    return json.dumps(
        rng.choice((history, lists, {"log_history": history, "global_step": rows, "best_metric": None}))
    ).encode()


def _printed(rng: random.Random, rows: int) -> bytes:
    form = rng.choice(
        (
            "iter {}: loss {:.4f}, lr {:.3g}",
            "[INFO] step={} loss={:.4f} lr={:.3g}",
            "step {} | loss {:.3f} | lr {:.1e} | 12 tok/s",
        )
    )
    return "".join(form.format(*row) + "\n" for row in curve(rng, rows)).encode()


def _charts(rng: random.Random, rows: int) -> bytes:
    lines = ['"Step","a - train/loss","a - train/loss__MIN","b - train/loss"']
    lines += [f'"{s}","{x:.4f}","{x - 1:.4f}","{x + 1:.4f}"' for s, x, _ in curve(rng, rows)]
    return "\n".join(lines).encode() + b"\n"


def _long_table(rng: random.Random, rows: int) -> bytes:
    lines = ["run_id,key,value,step"]
    lines += [
        f"r,{key},{value:.4g},{s}" for s, x, e in curve(rng, rows) for key, value in (("train_loss", x), ("lr", e))
    ]
    return "\n".join(lines).encode() + b"\n"


def _events(rng: random.Random, rows: int) -> bytes:
    def varint(value: int) -> bytes:
        out = b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    def part(field: int, data: bytes) -> bytes:
        return varint(field << 3 | 2) + varint(len(data)) + data

    out = b""
    for step, loss, _ in curve(rng, rows):
        value = part(1, part(1, b"train/loss") + b"\x15" + struct.pack("<f", loss))
        record = b"\x10" + varint(step) + part(5, value)
        if rng.random() < 0.02:  # damaged, with a checksum that holds
            record = mutated(rng, record, 1)
        head = struct.pack("<Q", len(record))
        out += head + struct.pack("<I", masked_crc(head)) + record + struct.pack("<I", masked_crc(record))
    return out


SHAPES: dict[str, Callable[[random.Random, int], bytes]] = {
    "run.csv": _csv, "run.jsonl": _json_lines, "trainer_state.json": _document, "train.log": _printed, "wandb.csv": _charts,
    "mlflow.csv": _long_table, "events.out.tfevents.1": _events,
}  # fmt: skip


def _bomb(rng: random.Random) -> bytes:
    """What is large, deep or long on purpose, in few bytes."""
    head = b"step,loss\n"
    return rng.choice((
        lambda: gzip.compress(bytes(1 << rng.randint(20, 26)), 1),
        lambda: gzip.compress(head + b"1,2\n" * (1 << rng.randint(10, 16)), 1),
        lambda: b'{"a":' * rng.randint(20, 2000) + b"1" + b"}" * rng.randint(20, 2000),
        lambda: (b'{"step":1,"loss":' + b"[" * rng.randint(1, 60_000) + b"\n") * 2,
        lambda: head + b"1," + rng.choice(PIECES) * (LONG // 8) + b"\n2,3\n",
        lambda: b"step 1 loss 2 " + rng.choice(RUNS) * (LONG // 4) + b"\nstep 2 loss 3\n",
        lambda: head + b"".join(b"%d,%d.5\n" % (i % rng.randint(1, 9), i) for i in range(5000)),
        lambda: b"".join(b'{"step":%d,"loss":2.5,"k%d":1}\n' % (i, i) for i in range(rng.randint(10, 5000))),
        lambda: b",".join(b"c%d - loss" % i for i in range(3000)) + b"\n" + b",".join([b"1"] * 3000) + b"\n",
        lambda: b"run,step,loss\n" + b"".join(b"r%d,%d,2\n" % (i // 2, i % 2) for i in range(rng.randint(10, 6000))),
    ))()  # fmt: skip


def real_shapes(folder: Path) -> tuple[bytes, ...]:
    """The beginnings of real logs, where there are any."""
    names = sorted(path for path in (*folder.glob("logs/*"), *folder.glob("*.csv")) if path.is_file())
    return tuple(path.read_bytes()[:REAL_BYTES] for path in names if path.suffix != ".md")


def data_folder() -> Path:
    """`ODESCALE_DATA`, or the folder beside the checkout."""
    return Path(os.environ.get("ODESCALE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))


def mutated(rng: random.Random, data: bytes, times: int) -> bytes:
    """The bytes with damage: flipped, cut out, doubled, exchanged, with pieces of another format put in."""
    for _ in range(times):
        if not data:
            return data
        a, b = sorted(rng.randrange(len(data)) for _ in range(2))
        kind = rng.randrange(9)
        if kind == 0:
            data = data[:a] + bytes([rng.randrange(256)]) + data[a + 1 :]
        elif kind == 1:
            data = data[:a] + data[min(b, a + rng.choice((1, 5, 50))) :]
        elif kind == 2:
            data = data[:b] + data[a:b] + data[b:]
        elif kind == 3:
            data = data[:a] + rng.choice(PIECES) * rng.choice((1, 1, 1, 3, 40)) + data[a:]
        elif kind == 4:
            data = data[:a]
        elif kind == 5:
            lines = data.split(b"\n")
            rng.shuffle(lines)
            data = b"\n".join(lines)
        elif kind == 6:
            data = data.replace(rng.choice((b",", b";", b"\t", b":", b"=", b'"', b"\n")), rng.choice(PIECES))
        elif kind == 7:
            lines = data.split(b"\n")
            at = rng.randrange(len(lines))
            lines[at] = lines[at].replace(b"2", rng.choice(NUMBERS).encode("utf-8", "replace"))
            data = b"\n".join(lines)
        else:
            data = data[:a] + rng.choice(NUMBERS).encode() + data[b:]
        data = data[: 4 * LONG]
    return data


def log_file(rng: random.Random, real: tuple[bytes, ...] = ()) -> tuple[str, bytes]:
    """(file name, content) of a log that is damaged as a rule."""
    if rng.random() < 0.1:
        return rng.choice(("bomb.csv", "bomb.json", "bomb.log", "bomb.csv.gz")), _bomb(rng)
    name = rng.choice(tuple(SHAPES))
    data = rng.choice(real) if real and rng.random() < 0.4 else SHAPES[name](rng, rng.choice((2, 5, 30, 200)))
    data = mutated(rng, data, rng.choice((0, 1, 1, 2, 4, 8)))
    if rng.random() < 0.1:
        data = mutated(rng, gzip.compress(data), rng.choice((0, 1)))
    if rng.random() < 0.05:
        data = data.decode("latin-1").encode(rng.choice(("utf-16", "utf-16-le", "utf-8-sig", "utf-32")))
    return name, data


def reader_options(rng: random.Random) -> dict[str, Any]:
    """Words of `read_logs`, most of the time none."""
    given: dict[str, Any] = {}
    if rng.random() < 0.25:
        name = rng.choice(("step", "loss", "learning_rate", "tokens", "run", "format"))
        given[name] = rng.choice((*WORDS, "step", "loss", "lr", "row", "csv", "jsonl", "printed", "tensorboard"))
    if rng.random() < 0.15:
        name = rng.choice(("warmup_steps", "batch_tokens", "learning_rate", "max_bytes"))
        given[name] = rng.choice((0, -1, 1, 1e3, float("nan"), float("inf"), 1e400, 10**30, "x", None, True, 1000))
    return given


BAD = {
    "--t1": ("nan", "inf", "-inf", "-1", "0", "1e400", "", "x", "٣x"),
    "--points": ("0", "-1", "nan", "1e3", "1.5", "x", ""),
    "--rtol": ("nan", "0", "-1", "inf", "1e-30", "x", "2"),
    "--clock": ("", "tt", "T", "nan", "é"),
    "--solver": ("", "euler", "AUTO", "é"),
    "--accuracy": ("", "slow", "é"),
    "--precision": ("", "float16", "float128", "é"),
    "--plot": ("a.txt", "a", "\x1b[31m.gif", "x" * 300),
    "--seeds": ("0", "-1", "nan", "1.5", "x", "", "9" * 5000),
    "--records": ("0", "-1", "x", "1e3"),
    "--tolerance": ("nan", "-1", "x", "=", "loss=", "loss=x", "nothing=1", "0", "inf"),
    "--threshold": ("efolds=nan", "efolds=inf", "efolds=-1", "efolds=x", "efolds=0", "nothing=1", "efolds", "", "near=0.7"),
    "--vary": ("", "learning_rate", "learning_rate=", "learning_rate=1:2", "learning_rate=nan:1:3", "learning_rate=0:1:3:log",
               "nothing=1:2:3", "learning_rate=1:2:0", "learning_rate=1:2:1e9", "learning_rate=1:2:3:cube",
               "learning_rate=-1:-2:3"),
}  # fmt: skip
"""Values that every verb with the option must refuse before anything is compiled."""
VERBS = {
    "solve": ("--t1", "--points", "--rtol", "--clock", "--solver", "--accuracy", "--precision", "--plot"),
    "sweep": ("--t1", "--points", "--rtol", "--clock", "--solver", "--plot", "--vary"),
    "transition": ("--t1", "--clock", "--threshold", "--precision", "--plot"),
    "train": ("--t1", "--clock", "--seeds", "--records", "--plot"),
    "compare": ("--t1", "--clock", "--seeds", "--records", "--tolerance", "--threshold", "--plot"),
}
"""Verbs on systems, and their options with a bad value in `BAD`."""


def _on_system(rng: random.Random, folder: Path) -> list[str]:
    verb = rng.choice(tuple(VERBS))
    known = tuple(SYSTEMS)
    name, line = rng.choice(known), []
    spoilt = rng.randrange(3)
    if spoilt == 0:
        name = rng.choice(
            (
                *WORDS,
                "quickstrat",
                "nothing.py:f",
                "json:dumps",
                "odescale:nothing",
                "os:",
                ":f",
                "a.b.c:d",
                str(folder / "x.py:f"),
            )
        )
        if name in known:
            name += "x"
    elif spoilt == 1:
        parameter = rng.choice(SYSTEMS[name].parameters)
        text = rng.choice(
            (
                f"{parameter.name}=nan",
                f"{parameter.name}=x y",
                "=1",
                "nothing=1",
                f"{parameter.name}",
                f"{parameter.name}=",
            )
        )
        if parameter.kind is str:
            text = rng.choice(("=1", "nothing=1", parameter.name))
        line += ["--set", text]
    else:
        option = rng.choice(VERBS[verb])
        line += [option, rng.choice(BAD[option])]
    if verb == "sweep" and "--vary" not in line:
        line += ["--vary", "learning_rate=0.01:0.02:2"]
    if verb in ("train", "compare"):
        line += ["--out", str(folder / "out")]
    return [verb, name, *line]


def _number_options(rng: random.Random, names: tuple[str, ...], most: int = 3) -> list[str]:
    chosen = rng.sample(names, rng.randint(0, min(most, len(names))))
    return [word for name in chosen for word in (name, rng.choice((*NUMBERS, "1", "2.5", "100")))]


def _frontier(rng: random.Random, folder: Path) -> list[str]:
    number = lambda: rng.choice((*NUMBERS, "1", "2", ".5", "100", "1e3"))  # noqa: E731
    line = ["frontier"]
    for _ in range(rng.randint(0, 2)):
        line += [
            "--term",
            ":".join([rng.choice(("width", "data", "time", "", "é")), *(number() for _ in range(rng.randint(2, 5)))]),
        ]
    if rng.random() < 0.3:
        line += ["--preset", rng.choice(("yang_v1", "yang_v3", "x", ""))]
    if rng.random() < 0.3:
        line += ["--spectrum", ",".join(number() for _ in range(rng.randint(1, 3)))]
    if rng.random() < 0.4:
        line += ["--compute", ":".join(rng.choice((number(), "1e6", "1e12")) for _ in range(rng.randint(1, 4)))]
    return line + _number_options(rng, ("--decay", "--rate", "--time-cost", "--unit"))


def _on_logs(rng: random.Random, folder: Path) -> list[str]:
    """A report or forecast that must be refused: a damaged log that names no loss, or an option that fits no log."""
    verb = rng.choice(("report", "forecast", "schedule"))
    path = folder / rng.choice(("good.csv", "two.csv"))
    line = [verb, str(path)]
    bad: list[list[str]] = [
        ["--step", rng.choice(WORDS[2:])], ["--loss", rng.choice(WORDS[2:])], ["--run", "no such run\x1b[2J"],
        ["--warmup-steps", rng.choice(("nan", "-1", "inf", "x"))], ["--fit-on", "no such run"],
        ["--max-bytes", rng.choice(("0", "10", "x"))], ["--learning-rate", rng.choice(("nan", "-1", "inf", "no such"))],
    ]  # fmt: skip
    if verb == "forecast":
        planned = ["--fit-on", "r0", "--schedule", "cosine:9999:0.1"]
        bad += [
            ["--fit-on", "r0"], ["--fit-on", "r0", "--schedule", "é", "--steps", "9", "--peak", "1"], ["--predict", "r1"],
            [*planned, "--steps", rng.choice(("nan", "-1", "inf", "0", "1e400")), "--peak", "1"],
            [*planned, "--steps", "9999", "--peak", rng.choice(("nan", "-1", "inf"))],
            ["--fit-on", "r0", "--law", "nothing", "--predict", "r1"], ["--fit-on", "r0", "--predict", "r1", "--after", "nan"],
        ]  # fmt: skip
    elif verb == "schedule":
        bad += [
            ["--law", "nothing", "--steps", "100"],
            ["--plot", "a.txt"],
            ["--after", rng.choice(("nan", "inf", "1e9"))],
        ]
    else:
        bad += [
            ["--threshold", rng.choice(("efolds=nan", "ratio=inf", "x"))],
            ["--irreducible", rng.choice(("nan", "inf", "x"))],
        ]
    line += rng.choice(bad)
    if verb == "report":
        line += ["--out", str(folder / "page")]
    return line


def _plain(rng: random.Random, folder: Path) -> list[str]:
    return rng.choice((
        lambda: ["systems", *([rng.choice((*WORDS, *SYSTEMS))] if rng.random() < 0.8 else [])],
        lambda: ["derive", rng.choice((*WORDS, "attention", "spectral", "peaked")), *rng.choice(([], ["--markdown"]))],
        lambda: [rng.choice((*WORDS, "solve", "sweep", "report")), *rng.choices((*WORDS, *NUMBERS), k=rng.randint(0, 2))],
        lambda: ["quickstart", "--seeds", rng.choice(BAD["--seeds"])],
        lambda: ["--version"],
        lambda: [rng.choice(("solve", "report", "frontier")), "--help"],
    ))()  # fmt: skip


def prepare(folder: Path) -> None:
    """The logs that command lines name: one run, two runs."""
    rows = [(i * 10, 2 + 6 / (1 + i) ** 0.4, 1e-3 * (0.1 if i > 200 else 1)) for i in range(300)]
    text = "".join(f"{s},{x:.5f},{e}\n" for s, x, e in rows)
    (folder / "good.csv").write_text("step,loss,lr\n" + text)
    (folder / "two.csv").write_text(
        "run,step,loss,lr\n" + "".join(f"r{r},{line}\n" for r in (0, 1) for line in text.splitlines())
    )


def command_line(rng: random.Random, folder: Path) -> list[str]:
    """Words behind `odescale` that are answered or refused within a second: nothing that would have to be integrated."""
    line = rng.choice((_on_system, _on_system, _frontier, _on_logs, _plain))(rng, folder)
    if rng.random() < 0.5 and "--help" not in line and line[0] in COMMANDS:
        line.insert(1, "--json")
    return line
