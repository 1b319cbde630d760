"""The pages of two dozen logs of every kind: no two statements of the page, the terminal and the record contradict each other."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from page_claims import Page, contradictions, read_page

from odescale import read_logs, report_logs
from odescale.cli.logs import report_in_words
from odescale.compare import log_pages
from odescale.compare.report import write_report

ROWS = 80
Columns = dict[str, np.ndarray]


def rates(kind: str, step: np.ndarray, total: float, warmup: float = 0.0) -> np.ndarray:
    """Learning rate at a step of a run of `total` steps."""
    x = step / total
    shape = {
        "constant": np.ones_like(x), "down": np.where(x < 0.5, 1.0, 0.2), "cosine": 0.1 + 0.45 * (1 + np.cos(np.pi * x)),
        "wsd": np.minimum(1.0, (1 - x) / 0.3 + 0.02), "linear": 1 - 0.98 * x, "rising": 0.01 + x,
    }[kind]  # fmt: skip
    return 1e-3 * shape * (np.minimum((step + 1) / warmup, 1) if warmup else 1)


def noisy(loss: np.ndarray, seed: int, size: float) -> np.ndarray:
    return loss * np.exp(size * np.random.default_rng(seed).standard_normal(loss.size))


def curve(
    formula: Callable,
    seed: int,
    rate: str = "",
    warmup: float = 0.0,
    first: int = 10,
    last: int = 10000,
    noise: float = 0.003,
) -> Columns:
    """A loss that is a formula of the step, logged at equal distances of log t; `rate`: of its schedule, none by default."""
    step = np.unique(np.round(np.geomspace(first, last, ROWS)))
    rated = {"lr": rates(rate, step, last, warmup)} if rate else {}
    return {"step": step, "loss": noisy(formula(step), seed, noise), **rated}


def lawful(kind: str, seed: int, noise: float = 0.002, every: int = 80) -> Columns:
    """L = 2 + .9 tau^-.5 + n with dn/dtau = -8 (n - 150 eta), stepped exactly over 6000 steps."""
    eta = rates(kind, np.arange(6000.0), 6000, 100)
    tau, n = np.cumsum(eta), np.zeros(6000)
    for r in range(1, 6000):
        n[r] = 150 * eta[r] + (n[r - 1] - 150 * eta[r]) * np.exp(-8 * eta[r])
    at = np.arange(200, 6000, every)
    return {"step": at + 1, "lr": eta[at], "loss": noisy(2 + 0.9 * tau[at] ** -0.5 + n[at], seed, noise)}


def scaled(log: Columns, factor: float) -> Columns:
    return log | {"loss": factor * log["loss"]}


def handover(t: np.ndarray) -> np.ndarray:
    return 3 * np.exp(-t / 150) + 0.02 * (1 + t / 150) ** -0.5


def resumed() -> Columns:
    """A run that was stopped and whose counter began again."""
    first, second = (
        curve(lambda t: 1 + 3 * t**-0.4, 20, last=4000),
        curve(lambda t: 1 + 3 * (t + 4000) ** -0.4, 21, last=4000),
    )
    return {key: np.concatenate([first[key], second[key]]) for key in first}


def with_gaps() -> Columns:
    log = curve(lambda t: 1 + 3 * t**-0.4, 22)
    log["loss"][[3, 40, 41, 70]] = np.nan
    return log


TOLD: dict[str, tuple[dict[str, Columns], dict]] = {
    "hand-over": ({"a": curve(handover, 0)}, {}),
    "hand-over, rate known": ({"a": curve(handover, 1, rate="constant")}, {}),
    "power law": ({"a": curve(lambda t: 3 * (1 + t) ** -0.3, 2)}, {}),
    "stretched exponential": ({"a": curve(lambda t: 3 * np.exp(-((t / 500) ** 0.45)), 3)}, {}),
    "cut-off power law": ({"a": curve(lambda t: 3 * t**-0.4 * np.exp(-t / 3000), 4)}, {}),
    "exponential, small losses": ({"a": curve(lambda t: 1e-6 * np.exp(-t / 2000), 5)}, {}),
    "two exponentials": ({"a": curve(lambda t: 3 * np.exp(-t / 30) + 0.1 * np.exp(-t / 2000), 6, first=1)}, {}),
    "two falls": ({"a": curve(lambda t: 2 / (1 + (t / 55) ** 6) + 0.4 / (1 + (t / 1800) ** 6) + 0.05, 7)}, {}),
    "step down": ({"a": lawful("down", 8)}, {}),
    "cosine, huge losses": ({"a": scaled(lawful("cosine", 9), 1e6)}, {}),
    "warm-up, stable, decay": ({"a": curve(lambda t: 2 + 3 * t**-0.3, 10, rate="wsd", warmup=50)}, {"law": "instant"}),
    "warm-up told": ({"a": curve(lambda t: 2 + 3 * t**-0.3, 11, first=1)}, {"warmup_steps": 200}),
    "constant with noise": ({"a": curve(lambda t: 2 + 0 * t, 12, noise=0.01)}, {}),
    "diverged": ({"a": curve(lambda t: 1.5 + 2 * t**-0.4 + np.exp((t - 8500) / 400.0), 13, rate="constant")}, {}),
    "rising": ({"a": curve(lambda t: 1 + 1e-4 * t, 14)}, {}),
    "warm-up only": ({"a": curve(lambda t: 2 + 3 * t**-0.3, 15, rate="rising")}, {}),
    "flat fine-tuning": ({"a": curve(lambda t: 1.2 - 0.02 * np.log(t), 16, rate="linear", noise=0.02)}, {"law": "power_tau"}),
    "few rows": ({"a": {key: v[:6] for key, v in curve(lambda t: 1 + 3 * t**-0.5, 17, rate="constant").items()}}, {}),
    "bunched rows": ({"a": {"step": np.r_[1, 2, 5000:5120], "loss": noisy(3 - 0.01 * np.arange(122), 18, 0.003)}}, {}),
    "resumed": ({"a": resumed()}, {}),
    "gaps": ({"a": with_gaps()}, {}),
    "tokens": ({"a": {"tokens": 524288 * (one := curve(lambda t: 1 + 3 * t**-0.4, 23))["step"], **one}}, {}),
    "exponential on four points": (
        {"a": {"step": (at := np.arange(10.0, 810, 10)), "loss": noisy(3 * np.exp(-at / 12) + 0.02 / (1 + at) ** 0.3, 25, 0.003)}},
        {},
    ),
    "from step 0": ({"a": {"step": np.arange(0.0, 1200, 10), "loss": noisy(4 - 0.001 * np.arange(120), 24, 0.003)}}, {}),
    "one of three held out": (
        {kind: lawful(kind, i) for i, kind in enumerate(("constant", "down", "cosine"))},
        {"fit_on": ("constant", "down"), "predict": "cosine"},
    ),
    "two held out, of another network": (
        {"cosine": lawful("cosine", 1), **{kind: scaled(lawful(kind, 2), 1.2) for kind in ("down", "constant")}},
        {"fit_on": "cosine", "predict": ("down", "constant"), "law": "instant"},
    ),
    "held out, and nothing identified": (
        {"constant": lawful("constant", 0), "down": lawful("down", 1)}, {"fit_on": "constant", "predict": "down"}
    ),
}  # fmt: skip


class Written:
    """A report as files and words."""

    def __init__(self, folder: Path, logs: dict[str, Columns], options: dict) -> None:
        folder.mkdir()
        for name, columns in logs.items():
            rows = np.column_stack(list(columns.values()))
            np.savetxt(folder / f"{name}.csv", rows, delimiter=",", header=",".join(columns), comments="", fmt="%.9g")
        warmup = options.pop("warmup_steps", None)
        report = report_logs(read_logs(folder, warmup_steps=warmup), draws=8, **options)
        page = write_report(report, folder / "page", title="Logs")
        self.markdown = (page.parent / "report.md").read_text(encoding="utf-8")
        self.html = page.read_text(encoding="utf-8")
        self.json = (page.parent / "report.json").read_text(encoding="utf-8")
        self.terminal = report_in_words(report, page)

    def page(self, change: tuple[str, str, str] | None = None) -> Page:
        """What the report claims; `change`: in which of its texts to put what in the place of what."""
        texts = {name: getattr(self, name) for name in ("markdown", "terminal", "json")}
        if change is not None:
            where, before, after = change
            assert re.search(before, texts[where]), f"nothing like {before!r} to change"
            texts[where] = re.sub(before, after, texts[where], count=1)
        return read_page(texts["markdown"], texts["terminal"], json.loads(texts["json"]))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Written]]:
    """The report of a kind of log, made once. Nothing is drawn: `test_log_report` looks at the pictures."""
    place, made = tmp_path_factory.mktemp("pages"), {}
    patch = pytest.MonkeyPatch()
    for name in ("plot_curves", "plot_forecast", "plot_indices", "plot_residuals"):
        patch.setattr(log_pages, name, lambda *given, **options: None)
    patch.setattr(log_pages, "png", lambda axes: b"")

    def make(name: str) -> Written:
        if name not in made:
            logs, options = TOLD[name]
            made[name] = Written(place / str(len(made)), logs, dict(options))
        return made[name]

    yield make
    patch.undo()


@pytest.mark.parametrize("name", TOLD)
def test_no_two_statements_of_a_page_contradict_each_other(name, written):
    report = written(name)
    page = report.page()
    assert contradictions(page) == []
    # Every statement of the Markdown is on the HTML page as well.
    shown = html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", "\n", report.html, flags=re.S))
    lines = {line.strip() for line in shown.splitlines()}
    for part in page.sections.values():
        said = [*part.texts, *(cell for table in part.tables for row in table for cell in row.values())]
        assert [words for words in said if words.strip("*") not in lines] == []


def test_the_kinds_of_logs_give_the_kinds_of_pages(written):
    """What the reader has to judge is there: a hand-over in both clocks, every verdict, a rise, a refusal of each sort."""
    pages = {name: written(name).page() for name in TOLD}
    for name in ("hand-over", "hand-over, rate known"):
        assert (
            pages[name].one("a", "name") == "exponential, then power law"
            and pages[name].one("a", "t_x interval") is not None
        )
    assert pages["power law"].one("a", "name") == "power law"
    assert pages["cut-off power law"].one("a", "name") == "power law, then exponential cut-off"
    assert pages["constant with noise"].one("a", "name") == "constant"
    statuses = {page.one("", "status") for page in pages.values()}
    assert statuses == {"agrees", "differs", "undecided"}
    assert float(pages["diverged"].one("a", "rises from")) < 9000
    assert re.search(
        r"^\d points after warm-up before the loss rises, from step 1\d on", pages["rising"].one("a", "reason")
    )
    assert pages["held out, and nothing identified"].one("", "forecast") is False
    assert "unidentified" in pages["held out, and nothing identified"].one("", "why no forecast")
    assert "no learning rate in a" in pages["power law"].one("", "why no law")
    assert "power with floor" not in {claim.kind for claim in pages["bunched rows"].claims}


DOCTORED = {
    "t_x of the answer": ("hand-over", "markdown", r"handing over at step \d", "handing over at step 9"),
    "t_x of the clocks": ("hand-over", "markdown", r"(\| a \| t_x \| )\d", r"\g<1>9"),
    "t_x of the record": ("hand-over", "json", r'("t_x_step": )\d', r"\g<1>9"),
    "t_x where no hand-over is named": (
        "power law", "markdown", r"a: power law \(", "a: power law, handing over at step 100 (95 %: 90 to 110) ("
    ),
    "name in the details": ("power law", "markdown", r"(?<=Phases: )power law(?= \()", "exponential to the end"),
    "name on the terminal": ("cut-off power law", "terminal", r"a: power law, then exponential cut-off", "a: power law"),
    "a phase that is too short": ("hand-over", "markdown", r"(\| a \| exponential \|.*?\|.*?\| )[\d\\.]+", r"\g<1>1.2"),
    "phases that overlap": ("hand-over", "markdown", r"(\| a \| exponential \| [\d\\.]+ \| )[\d\\.]+", r"\g<1>9000"),
    "a phase of another kind": ("power law", "markdown", r"\| a \| power law \|", "| a | exponential |"),
    "a phase in the warm-up": ("warm-up told", "markdown", r"(\| a \| warm-up \| \d+ \| )\d+", r"\g<1>400"),
    "a rise on one side": ("diverged", "markdown", r"(\(steps \d+ to \d+\)); the loss rises from step \d+ on", r"\1"),
    "the least AIC": ("step down", "markdown", r"(\| (?:relaxing|instant) \|.*\| )0\\\.0 \|", r"\g<1>7\\.0 |"),
    "laws that the table does not have": ("step down", "markdown", r"laws of the theory instant", "laws of the theory spectral"),
    "an interval beside its number": ("step down", "markdown", r"alpha = 0\.\d+ \(", "alpha = 0.9 ("),
    "the law of the forecast": ("one of three held out", "markdown", r"(?<=\n)By [a-z]+", "By spectral"),
    "the loss at the end": ("one of three held out", "terminal", r"(cosine: loss )\d", r"\g<1>3"),
    "the interval of the record": ("one of three held out", "json", r'(?s)("low": \[.*?)[\d.]+\n( *\],)', r"\g<1>2.0\n\g<2>"),
    "points inside": ("one of three held out", "markdown", r"(intervals hold )\d+", r"\g<1>1"),
    "the verdict": ("one of three held out", "markdown", r"agrees with|differs from", "has nothing to do with"),
    "a verdict on the terminal": ("one of three held out", "terminal", r"verdict: \w+", "verdict: undecided"),
    "agreement against the counts": (
        "two held out, of another network", "markdown", r"The forecast differs from", "The forecast agrees with"
    ),
    "a reason beside a forecast": (
        "one of three held out", "terminal", r"verdict: \w+", r"\g<0>\n    no forecast: no run to predict was named (predict)"
    ),
    "nothing held out, and a run asked for": (
        "held out, and nothing identified", "markdown", r"\*\*No forecast can be made.*\*\*",
        "**Nothing was held out, so nothing here is a test of a forecast.**",
    ),
    "numbers of points": ("gaps", "terminal", r"a: \d+ points", "a: 80 points"),
}  # fmt: skip


@pytest.mark.parametrize("what", DOCTORED)
def test_the_reader_notices_one_changed_statement(what, written):
    name, *change = DOCTORED[what]
    report = written(name)
    assert contradictions(report.page()) == []
    try:
        found = contradictions(report.page(tuple(change)))
    except AssertionError as error:  # words that no page has
        found = [str(error)] if "nothing like" not in str(error) else []
    assert found
