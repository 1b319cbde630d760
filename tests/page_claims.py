"""What a report page claims, statement by statement, and which two of its statements cannot both be true.

Read from what a user sees (report.md, the words on the terminal) and from report.json; nothing of the package is used, so that a
page cannot be excused by the code that wrote it.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf|nan)"
HANDOVER = "exponential, then power law"
UNDECIDED = "cannot be told apart"
KINDS = ("exponential", "power law", "stretched exponential", "plateau", "floor")
THEORY = ("instant", "relaxing", "spectral")


class Claim(NamedTuple):
    """`value` of `kind` for `run` ("" for the whole report), stated at `where`."""

    run: str
    kind: str
    value: Any
    where: str


class Section(NamedTuple):
    texts: list[str]
    tables: list[list[dict[str, str]]]


@dataclass
class Page:
    """A report as it was read: sections of report.md by title, lines of the terminal, report.json."""

    sections: dict[str, Section]
    terminal: list[str]
    record: dict[str, Any]
    claims: list[Claim] = field(default_factory=list)

    def values(self, run: str, kind: str) -> list[Any]:
        return [claim.value for claim in self.claims if (claim.run, claim.kind) == (run, kind)]

    def one(self, run: str, kind: str) -> Any:
        found = self.values(run, kind)
        return found[0] if found else None


def read_page(markdown: str, terminal: str, record: dict[str, Any]) -> Page:
    """All claims of one report."""
    page = Page(_sections(markdown), terminal.splitlines(), record)
    page.claims = [*_of_markdown(page), *_of_terminal(page), *_of_record(page)]
    return page


def contradictions(page: Page) -> list[str]:
    """Every pair of statements that disagree, and every statement that another one forbids; empty for a page in order."""
    found = []
    by_kind: dict[tuple[str, str], list[Claim]] = {}
    for claim in page.claims:
        by_kind.setdefault((claim.run, claim.kind), []).append(claim)
    for (run, kind), claims in by_kind.items():
        for i, first in enumerate(claims):
            for second in claims[i + 1 :]:
                if not _same(first.value, second.value):
                    found.append(
                        f"{run or 'report'}, {kind}: {first.value} ({first.where}), {second.value} ({second.where})"
                    )
    for run in page.record["runs"]:
        found += [f"{run}: {words}" for words in (*_of_phases(page, run), *_of_handover(page, run))]
    return found + _of_laws(page) + _of_forecast(page) + _of_intervals(page)


# ---- reading


def _plain(text: str) -> str:
    return html.unescape(re.sub(r"\\(.)", r"\1", text)).strip()


def _sections(markdown: str) -> dict[str, Section]:
    out: dict[str, Section] = {}
    title, head = "", None
    for line in markdown.splitlines():
        if line.startswith("## "):
            title, head = _plain(line[3:]), None
            out[title] = Section([], [])
        elif line.startswith("|"):
            cells = [_plain(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if head is None:
                head = cells
                out[title].tables.append([])
            elif set(line) != {"|", "-"}:
                out[title].tables[-1].append(dict(zip(head, cells, strict=True)))
        else:
            head = None
            if line.strip() and title and not line.startswith("!["):
                out[title].texts.append(_plain(line.removeprefix("- ")))
    return out


def _of_sentence(run: str, words: str, where: str) -> list[Claim]:
    """The claims of the sentence on a run's phases."""
    if not (place := re.search(r" \(steps (\S+) to (\S+)\)", words)):
        return [
            Claim(run, "looked for", False, where),
            Claim(run, "reason", words.split("not looked for: ")[-1], where),
        ]
    out = [Claim(run, "looked for", True, where), Claim(run, "window", (place[1], place[2]), where)]
    rising = re.search(r"the loss rises from step (\S+) on", words)
    out.append(Claim(run, "rises from", rising and rising[1], where))
    name = words[: place.start()]
    if at := re.search(r", handing over at step (\S+)(?: \(95 %: (\S+) to (\S+)\))?", name):
        out += [Claim(run, "t_x", at[1], where), Claim(run, "t_x interval", at[2] and (at[2], at[3]), where)]
        out.append(Claim(run, "established", "not established" not in name, where))
        name = name[: at.start()]
    else:
        out += [Claim(run, "t_x", None, where), Claim(run, "t_x interval", None, where)]
    out.append(Claim(run, "name", UNDECIDED if UNDECIDED in name else name, where))
    return out


def _of_reasons(reasons: list[str], runs: list[str], where: str) -> list[Claim]:
    """The claims of the sentences behind the verdict."""
    out = []
    for words in reasons:
        if words.startswith("no forecast: "):
            out += [Claim("", "forecast", False, where), Claim("", "why no forecast", words[13:], where)]
        elif found := re.match(r"forecast by (.+?)(?: against \d+ |, nothing held out)", words):
            out += [Claim("", "forecast", True, where), Claim("", "forecast law", found[1], where)]
            out.append(Claim("", "held out", "nothing held out" not in words, where))
            if found := re.search(
                r"against (\d+) .*absolute error (\S+) .*power law in tau (\S+)\);.* hold (\d+) of (\d+) ", words
            ):
                out += [Claim("", "runs held out", int(found[1]), where), Claim("", "mean error", found[2], where)]
                out += [Claim("", "mean error of power_tau", found[3], where)]
                out.append(Claim("", "inside", (int(found[4]), int(found[5])), where))
        elif words.startswith("no law: "):
            out += [Claim("", "laws fitted", False, where), Claim("", "why no law", words[8:], where)]
        elif found := re.match(r"the fitted runs identify (no law|the laws) of the theory", words):
            names = () if found[1] == "no law" else tuple(words[found.end() :].strip().split(", "))
            out += [Claim("", "laws fitted", True, where), Claim("", "laws of the theory", names, where)]
        elif words.startswith("kernel: "):
            pass
        elif name := next((run for run in sorted(runs, key=len, reverse=True) if words.startswith(f"{run}: ")), ""):
            rest = words[len(name) + 2 :]
            if found := re.match(r"loss (\S+) \(90 %: (\S+) to (\S+)\) forecast at step (\S+)$", rest):
                out += [
                    Claim(name, "forecast at the end", found.groups()[:3], where),
                    Claim(name, "last step", found[4], where),
                ]
            else:
                out += _of_sentence(name, rest, where)
        else:
            raise AssertionError(f"a reason that the reader does not know, at {where}: {words}")
    return out


def _of_markdown(page: Page) -> list[Claim]:
    runs, parts = page.record["names"], page.sections
    head, *reasons = parts["Answer"].texts
    out = _of_reasons(reasons, runs, "Answer")
    head = head.strip("*")
    if found := re.match(r"The forecast (agrees|differs)", head):
        out += [Claim("", "status", found[1], "Answer"), Claim("", "forecast", True, "Answer, first line")]
    elif head.startswith("Nothing was held out"):
        out += [Claim("", "status", "undecided", "Answer"), Claim("", "held out", False, "Answer, first line")]
    else:
        assert head.startswith("No forecast can be made"), head
        out += [Claim("", "status", "undecided", "Answer"), Claim("", "forecast", False, "Answer, first line")]
        out.append(Claim("", "asked", "held out" in head, "Answer, first line"))
    if "Forecast" in parts:
        words = parts["Forecast"].texts[0]
        if found := re.match(r"By (.+?); ", words):
            out += [Claim("", "forecast", True, "Forecast"), Claim("", "forecast law", found[1], "Forecast")]
        out += [claim for row in parts["Forecast"].tables[0] for claim in _of_forecast_row(row, "Forecast")]
    words = parts["Laws and baselines"].texts[0]
    if found := re.match(r"None was fitted: (.*)\.$", words):
        out += [Claim("", "laws fitted", False, "Laws"), Claim("", "why no law", found[1], "Laws")]
    else:
        found = re.match(r"Fitted to (.*?), steps (\S+) to ([^\s,]+?)[.,]", words)
        assert found, words
        out += [Claim("", "laws fitted", True, "Laws"), Claim("", "fitted", found[1], "Laws")]
        out.append(Claim("", "fit window", (found[2], found[3]), "Laws"))
        out += [claim for row in parts["Laws and baselines"].tables[0] for claim in _of_law_row(row, "Laws")]
    data, clocks = parts["Data and clocks"].tables
    for row in data:
        first, last = row["steps"].split(" to ")
        out += [Claim(row["run"], "points", row["points"], "Data"), Claim(row["run"], "last step", last, "Data")]
        out.append(Claim(row["run"], "first step", first, "Data"))
    for row in clocks:
        kind = {"t_x": "t_x", "last": "last step", "first": "first step"}.get(row["moment"])
        out += [Claim(row["run"], kind, row["steps"], "clocks")] if kind else []
    for title, part in parts.items():
        if title.startswith("Details of "):
            out += _of_details(title.removeprefix("Details of "), part.texts)
    return out


def _of_details(run: str, texts: list[str]) -> list[Claim]:
    out = []
    for words in texts:
        if words.startswith("Phases: "):
            out += _of_sentence(run, words.removeprefix("Phases: ").removesuffix("."), "Details")
        elif found := re.match(r"In (SGD steps|intrinsic time tau), ?.*?: (.*)|In SGD steps: (.*)", words):
            said = found[2] or found[3]
            at = re.match(rf"(.*?): (?:tau|t)_x = ({NUMBER}), ", said)
            out.append(Claim(run, "t_x stated", bool(at), "Details, in its clock"))
            out += [Claim(run, "name", at[1], "Details, in its clock")] if at else []
            if not at:
                out.append(Claim(run, "refusal", said.split("; estimator: ")[0], "Details, in its clock"))
        elif found := re.match(
            r"Fitted as a power law with a floor over the whole run, whatever its phases: (.*)\.$", words
        ):
            out.append(Claim(run, "power with floor", found[1], "Details"))
        else:
            out.append(Claim(run, "reason", words, "Details"))
    return out


def _of_law_row(row: dict[str, str], where: str) -> list[Claim]:
    numbers = row["parameters, 90 % interval"]
    return [
        Claim("", f"{row['law']} is identified", not numbers.startswith("unidentified"), where),
        *(Claim("", f"{key} of {row['law']}", row[key], where) for key in row if key != "law"),
    ]


def _of_forecast_row(row: dict[str, str], where: str) -> list[Claim]:
    found = re.match(r"(\S+) \(90 %: (\S+) to (\S+)\)$", row["loss at the end"])
    assert found, row
    out = [Claim(row["run"], "forecast at the end", found.groups(), where)]
    if "truth" in row:
        inside = row["inside"].split(" of ")
        out += [
            Claim(row["run"], "inside", (int(inside[0]), int(inside[1])), where),
            Claim("", "held out", True, where),
        ]
        out += [Claim(row["run"], key, row[key], where) for key in ("truth", "mean abs. error")]
    return out


def _of_terminal(page: Page) -> list[Claim]:
    out, lines, runs = [], page.terminal, page.record["names"]
    verdict = next(i for i, line in enumerate(lines) if line.startswith("verdict: "))
    out.append(Claim("", "status", lines[verdict].removeprefix("verdict: "), "terminal"))
    out += _of_reasons([line.strip() for line in lines[verdict + 1 :] if line.startswith("    ")], runs, "terminal")
    name = ""
    for i, line in enumerate(lines[:verdict]):
        if found := re.match(r"(.+): (\d+) points, column ", line):
            name = found[1]
            out.append(Claim(name, "points", found[2], "terminal"))
        elif line.startswith("    over the whole run: "):
            out.append(Claim(name, "power with floor", line.strip().removeprefix("over the whole run: "), "terminal"))
        elif line.startswith("laws: "):
            out += [Claim("", "laws fitted", False, "terminal"), Claim("", "why no law", line[6:], "terminal")]
        elif re.match(r"(law|run) +\S", line):
            heads = [(found[0], found.start()) for found in re.finditer(r"\S+(?: \S+)*", line)]
            ends = [*(start for _, start in heads[1:]), None]
            for row in lines[i + 1 : verdict]:
                if re.match(r"(law|run) +\S", row):
                    break
                cells = {key: row[start:end].strip() for (key, start), end in zip(heads, ends, strict=True)}
                read = _of_law_row if "law" in cells else _of_forecast_row
                out += read(cells, "terminal")
    return out


def _of_record(page: Page) -> list[Claim]:
    record, where = page.record, "report.json"
    out = [Claim("", "status", record["verdict"]["status"], where), Claim("", "asked", bool(record["asked"]), where)]
    out += _of_reasons(record["verdict"]["reasons"], record["names"], where)
    for run, entry in record["runs"].items():
        found = entry["transition"]
        out += [Claim(run, "points", entry["points"], where), Claim(run, "looked for", found is not None, where)]
        if found is not None:
            out += [Claim(run, "name", found["name"], where), Claim(run, "t_x stated", found["t_x"] is not None, where)]
            out += [Claim(run, "t_x", entry["t_x_step"], where), Claim(run, "rises from", entry["rises_from"], where)]
            interval = entry["t_x_interval_step"]
            out.append(Claim(run, "t_x interval", interval and tuple(interval), where))
            out.append(Claim(run, "window", tuple(entry["phases_window"]), where))
            out += [Claim(run, "established", found["established"], where)] if found["found"] else []
    laws = record["laws"]
    out.append(Claim("", "laws fitted", laws is not None, where))
    out += [Claim("", "why no law", record["laws_reason"], where)] if laws is None else []
    for name, fit in (laws or {}).items():
        out.append(Claim("", f"{name} is identified", fit["identified"], where))
    if laws is not None:
        out += [
            Claim("", "fit window", tuple(record["fit_window"]), where),
            Claim("", "fitted", ", ".join(record["fitted"]), where),
        ]
    forecast = record["forecast"]
    out.append(Claim("", "forecast", forecast is not None, where))
    if forecast is None:
        out.append(Claim("", "why no forecast", record["forecast_reason"], where))
        return out
    weights = sorted(forecast["weights"].items(), key=lambda pair: -pair[1])
    shares = [f"{name} ({weight:.0%})" for name, weight in weights]
    out.append(Claim("", "forecast law", ", ".join(shares) if len(weights) > 1 else weights[0][0], where))
    for run, series in forecast["runs"].items():
        out.append(Claim(run, "forecast at the end", tuple(series[key][-1] for key in ("loss", "low", "high")), where))
        out.append(Claim(run, "inside", tuple(forecast["inside"][run][key] for key in ("inside", "points")), where))
        out.append(Claim(run, "mean abs. error", forecast["errors"][run]["mean_absolute"], where))
    counts = list(forecast["inside"].values())
    out.append(Claim("", "inside", (sum(c["inside"] for c in counts), sum(c["points"] for c in counts)), where))
    errors = [one["mean_absolute"] for one in forecast["errors"].values()]
    out += [Claim("", "runs held out", len(errors), where), Claim("", "held out", bool(errors), where)]
    out.append(Claim("", "mean error", sum(errors) / len(errors), where))
    return out


# ---- judging


def _same(first: Any, second: Any) -> bool:
    """Words by letters, a number of the record by the digits that the page prints of it."""
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, str) and isinstance(second, float | int) and not isinstance(second, bool):
        return _printed(first, second)
    if isinstance(second, str) and isinstance(first, float | int) and not isinstance(first, bool):
        return _printed(second, first)
    return first == second


def _printed(text: str, value: float) -> bool:
    """Whether `text` is `value`, rounded to the digits that it has."""
    if not re.fullmatch(NUMBER, text):
        return False
    mantissa, _, power = text.partition("e")
    last = 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))
    # %g drops zeros at the end: the digits printed can be fewer than those meant, and then the value is that number.
    return abs(float(text) - value) <= 0.5000001 * last


def _rows(page: Page, run: str) -> list[dict[str, str]]:
    return [row for row in page.sections["Phases"].tables[0] if row["run"] == run]


def _of_phases(page: Page, run: str) -> list[str]:
    """The table of phases in itself, against the name of the whole, the window, the thresholds, and the record."""
    found, rows = [], _rows(page, run)
    name, window = page.one(run, "name"), page.one(run, "window")
    spans = [
        (row["phase"], float(row["from step"]), float(row["to step"]))
        for row in rows
        if row.get("from step", "-") != "-"
    ]
    for (kind, _, end), (other, start, _) in zip(spans[:-1], spans[1:], strict=True):
        if abs(start - end) > 1e-5 * max(abs(end), 1):
            found.append(f"'{other}' begins at step {start:g}, '{kind}' before it ends at {end:g}")
    found += [f"'{kind}' ends before it begins" for kind, start, end in spans if end < start]
    inner = [span for span in spans if span[0] not in ("warm-up", "schedule", "rising")]
    if window is None:
        return found + [f"'{kind}' in the table, and phases were not looked for" for kind, *_ in inner]
    low, high = map(float, window)
    for kind, start, end in inner:
        if start < low * (1 - 1e-5) or end > high * (1 + 1e-5):
            found.append(f"'{kind}' from {start:g} to {end:g} outside steps {low:g} to {high:g}")
    if inner and not (abs(inner[0][1] - low) <= 1e-5 * low and abs(inner[-1][2] - high) <= 1e-5 * high):
        found.append(f"the table covers steps {inner[0][1]:g} to {inner[-1][2]:g}, the sentence {low:g} to {high:g}")
    rising = [start for kind, start, _ in spans if kind == "rising"]
    if [page.one(run, "rises from")] != [f"{x:g}" for x in rising] and bool(rising) != (
        page.one(run, "rises from") is not None
    ):
        found.append(f"the loss rises from {page.one(run, 'rises from')}, in the table from {rising}")
    shown = [kind for kind, *_ in inner if kind in KINDS]
    found += _against_name(name, shown, [kind for kind, *_ in inner])
    found += _against_thresholds(page, run, rows)
    for claim in page.claims:
        if claim.run == run and claim.kind == "refusal":
            if claim.value.startswith("no exponential phase") and "exponential" in shown:
                found.append("'no exponential phase', and the table has one")
            if name not in (UNDECIDED, "constant") and name not in claim.value:
                found.append(f"refused as {claim.value!r}, named {name!r}")
            found += _shortfalls(claim.value)
            fall = re.search(rf"the loss falls ({NUMBER}) e-folds", claim.value)
            if fall and name == "constant" and float(fall[1]) >= 0.1:
                found.append(f"constant, and the loss falls {fall[1]} e-folds")
            if fall and float(fall[1]) < -0.1:
                found.append(f"phases of a falling loss, and it rises {fall[1]} e-folds")
    phases = [phase for phase in (page.record["runs"][run]["transition"] or {}).get("phases", [])]
    if phases and [p["kind"] if p["counts"] else "between" for p in phases] != [kind for kind, *_ in inner]:
        found.append("the phases of the record are not those of the table")
    return found


def _against_name(name: str, shown: list[str], all_kinds: list[str]) -> list[str]:
    falling = [kind for kind in shown if kind in KINDS[:3]]
    if name in (UNDECIDED, "constant", "no phase long enough"):
        return [f"{name!r}, and the table has {falling}"] if falling else []
    wanted = {
        "two exponentials": ["exponential"] * 2, "broken power law": ["power law"] * 2,
        "power law, then exponential cut-off": ["power law", "exponential"],
        "exponential, then power law, then exponential cut-off": ["exponential", "power law", "exponential"],
        "exponential to the end": ["exponential"], "exponential at the end": ["exponential"], "a fall to a floor": [],
        "steps": None,
    }  # fmt: skip
    bare = name.removesuffix(", then a floor")
    kinds = wanted.get(bare, [part for part in bare.split(", then ") if part])
    out = []
    if kinds is not None and falling != kinds:
        out.append(f"named {name!r}, and the table has {falling}")
    if name.endswith(", then a floor") and all_kinds[-1:] != ["floor"]:
        out.append(f"named {name!r}, and the table ends in {all_kinds[-1:]}")
    return out


def _against_thresholds(page: Page, run: str, rows: list[dict[str, str]]) -> list[str]:
    words = " ".join(page.sections["Phases"].texts)
    found = re.search(
        rf"over ({NUMBER}) e-folds; power law: \|q\| <= {NUMBER} over a ratio of ({NUMBER}) and ({NUMBER}) e-folds",
        words,
    )
    assert found, words
    exponential, ratio, power = map(float, found.groups())
    out = []
    for row in rows:
        least = {"exponential": exponential, "power law": power}.get(row["phase"])
        if least is not None and float(row["e-folds"]) < least:
            out.append(f"a phase '{row['phase']}' over {row['e-folds']} e-folds, {least:g} count")
    for phase in (page.record["runs"][run]["transition"] or {}).get("phases", []):
        if phase["kind"] == "power law" and phase["counts"] and phase["end"] < ratio * phase["start"] * (1 - 1e-9):
            out.append(f"a power law over a ratio of {phase['end'] / phase['start']:.2f}, {ratio:g} count")
    return out


def _shortfalls(words: str) -> list[str]:
    """'for 1.7 e-folds at the most (1.5 count)' refuses what it admits."""
    out = []
    if found := re.search(rf"for ({NUMBER}) e-folds at the most \(({NUMBER}) count\)", words):
        out += [f"refused by {found[0]!r}"] if float(found[1]) > float(found[2]) else []
    both = rf"over a ratio of ({NUMBER}) and ({NUMBER}) e-folds at the most \(({NUMBER}) and ({NUMBER}) count\)"
    if found := re.search(both, words):
        ratio, fall, least, least_fall = map(float, found.groups())
        out += [f"refused by {found[0]!r}"] if ratio > least and fall > least_fall else []
    return out


def _of_handover(page: Page, run: str) -> list[str]:
    """t_x is there where both phases are, lies between them, in the window and in its interval; and nowhere else."""
    t_x, name, interval = page.one(run, "t_x"), page.one(run, "name") or "", page.one(run, "t_x interval")
    moments = [
        row for row in page.sections["Data and clocks"].tables[1] if row["run"] == run and row["moment"] == "t_x"
    ]
    if t_x is None:
        out = [f"no t_x, and the name is {name!r}"] if HANDOVER in name else []
        return out + (["no t_x, and the clocks have one"] if moments else [])
    out = [] if moments else ["t_x, and the clocks have none"]
    if HANDOVER not in name:
        return [*out, f"t_x of a curve named {name!r}"]
    at = float(t_x)
    if interval is not None and not float(interval[0]) <= at <= float(interval[1]):
        out.append(f"t_x {t_x} outside its interval {interval}")
    rows = [row for row in _rows(page, run) if row["phase"] in ("exponential", "power law")]
    pairs = [
        (a, b)
        for a, b in zip(rows[:-1], rows[1:], strict=True)
        if (a["phase"], b["phase"]) == ("exponential", "power law")
    ]
    if not any(float(a["to step"]) * (1 - 1e-5) <= at <= float(b["from step"]) * (1 + 1e-5) for a, b in pairs):
        out.append(f"t_x {t_x} is not between an exponential and the power law after it")
    fitted, window = page.one("", "fitted"), page.one("", "fit window")
    if fitted == run and window is not None and at < 0.5 * float(window[1]) and float(window[0]) < at * (1 - 1e-5):
        out.append(f"laws of the slow part fitted from step {window[0]}, before t_x {t_x}")
    return out


def _of_laws(page: Page) -> list[str]:
    known, out = page.one("", "laws of the theory"), []
    if known is None:
        return out
    said = {name for name in THEORY if page.one("", f"{name} is identified")}
    law = (page.record["forecast"] or {}).get("law")
    if set(known) - {law} != said - {law} or not set(known) <= said | {law}:
        out.append(f"the answer says that the laws {sorted(known)} are identified, the table {sorted(said)}")
    leads = [claim.value for claim in page.claims if claim.kind.startswith("AIC - least of ") and claim.value != "-"]
    if leads and min(map(float, leads)) != 0.0:
        out.append(f"the least AIC is {min(map(float, leads))} above the least")
    for claim in page.claims:
        if claim.kind.startswith("parameters, 90 % interval of ") and " = nan" in claim.value:
            out.append(f"{claim.kind}: {claim.value}")
    return out


def _of_forecast(page: Page) -> list[str]:
    """A forecast or a reason for none; a verdict only over runs held out; a law that is identified; the share that it says."""
    out = []
    there, status = page.one("", "forecast"), page.one("", "status")
    if there and any(claim.kind == "why no forecast" for claim in page.claims):
        out.append("a forecast, and a reason why there is none")
    for law in page.record["forecast"]["weights"] if there else ():
        if not page.one("", f"{law} is identified"):
            out.append(f"a forecast by the law {law!r}, which is not identified")
    if there != ("Forecast" in page.sections):
        out.append("the answer and the section on the forecast disagree on whether there is one")
    if status in ("agrees", "differs"):
        inside = page.one("", "inside")
        if inside is None:
            return [*out, f"{status}, and nothing is said of points held out"]
        if (inside[0] / inside[1] >= 0.8) != (status == "agrees"):
            out.append(f"{status}, and intervals hold {inside[0]} of {inside[1]} points")
    if there and status == "undecided" and page.one("", "held out"):
        out.append("undecided, and something was held out")
    held = any(value is False for value in page.values("", "held out"))
    if held and page.record["asked"]:
        out.append(f"nothing was held out, and {page.record['asked']} were asked for")
    runs = [claim.run for claim in page.claims if claim.kind == "forecast at the end" and claim.where == "Forecast"]
    if there and (runs != page.record["asked"] or set(runs) & set(page.record["fitted"])):
        out.append(f"forecasts of {runs}, asked for {page.record['asked']}, fitted to {page.record['fitted']}")
    if there and page.one("", "runs held out") == 1:
        out += (
            []
            if _same(page.one("", "mean error"), page.one(runs[0], "mean abs. error"))
            else ["two mean errors of one run"]
        )
    for row in page.record["forecast"]["horizons"] if there else ():
        if row.get("covered") is not None and row["covered"] != (row["low"] <= row["truth"] <= row["high"]):
            out.append(f"'covered' of the record at step {row['step']:g}")
    return out


def _of_intervals(page: Page) -> list[str]:
    """Every "x (a to b)" of the page holds its x."""
    texts = [text for part in page.sections.values() for text in part.texts]
    texts += [
        cell for part in page.sections.values() for table in part.tables for row in table for cell in row.values()
    ]
    out = []
    pattern = (
        rf"({NUMBER}),? \((?:\d+ %: )?({NUMBER}) to ({NUMBER})\)|({NUMBER}), 95 % interval ({NUMBER}) to ({NUMBER})"
    )
    for text in [*texts, *page.terminal]:
        for found in re.finditer(pattern, text):
            value, low, high = (float(x) for x in found.groups() if x is not None)
            if not low <= value <= high:
                out.append(f"outside its own interval: {found[0]}")
    return out
