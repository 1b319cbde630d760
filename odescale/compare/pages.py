"""Pages of results: the same parts as one self-contained HTML file, as Markdown with pictures beside it, and a record as JSON."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from odescale.compare.log_phases import in_steps
from odescale.plain_text import in_markdown, one_line

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .92rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .7rem; text-align: left; vertical-align: top; }
th { background: #f4f4f4; } td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
img { max-width: 100%; height: auto; } .verdict { background: #eef4fa; padding: .6rem 1rem; border-left: 4px solid #0072b2; }
"""


class Part(NamedTuple):
    """A heading with paragraphs, bullets, tables (rows of equal keys) and pictures (name, words, PNG), in this order."""

    title: str
    paragraphs: tuple[str, ...] = ()
    bullets: tuple[str, ...] = ()
    tables: tuple[Sequence[dict[str, Any]], ...] = ()
    pictures: tuple[tuple[str, str, bytes], ...] = ()


def write_page(parts: Sequence[Part], record: dict[str, Any], folder: str | os.PathLike, *, title: str) -> Path:
    """Writes report.html (self-contained), report.md with its pictures, and report.json into `folder`; returns the page's path.

    **Arguments**: `record`: JSON-ready, the title is added to it.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    (place / "report.html").write_text(to_html(parts, title), encoding="utf-8")
    for part in parts:
        for name, _, figure in part.pictures:
            (place / f"{name}.png").write_bytes(figure)
    (place / "report.md").write_text(to_markdown(parts, title), encoding="utf-8")
    (place / "report.json").write_text(
        json.dumps(record | {"title": title}, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    return place / "report.html"


def png(axes: Any) -> bytes:
    """The figure of axes, or of a dict of them."""
    stream = io.BytesIO()
    one = next(iter(axes.values())) if isinstance(axes, dict) else axes
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name may hold letters that no font here has
        one.figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def stem_of(name: str) -> str:
    """A file name from a name: letters, digits, - and _, at most 60."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:60]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return in_steps(float(value)) if isinstance(value, float | np.floating) else str(value)


def to_markdown(parts: Sequence[Part], title: str) -> str:
    """The page in Markdown."""
    lines = [f"# {in_markdown(title)}", ""]
    for part in parts:
        lines += [f"## {in_markdown(part.title)}", ""]
        for text in part.paragraphs:
            lines += [_marked(text), ""]
        lines += [*(f"- {_marked(text)}" for text in part.bullets), ""] if part.bullets else []
        for rows in part.tables:
            names = _columns(rows)
            if names:
                lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
                lines += ["| " + " | ".join(in_markdown(_cell(row.get(n))) for n in names) + " |" for row in rows]
                lines.append("")
        for name, words, _ in part.pictures:
            lines += [f"![{in_markdown(words)}]({name}.png)", ""]
    return "\n".join(lines).rstrip() + "\n"


def to_html(parts: Sequence[Part], title: str) -> str:
    """The page as one HTML file, without anything from elsewhere."""
    out = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{_escaped(title)}</title><style>{STYLE}</style></head><body><h1>{_escaped(title)}</h1>",
    ]
    for part in parts:
        boxed = part.title == "Answer"
        out.append(f"<h2>{_escaped(part.title)}</h2>" + ('<div class="verdict">' if boxed else ""))
        out += [f"<p>{_bold(text)}</p>" for text in part.paragraphs]
        if part.bullets:
            out.append("<ul>" + "".join(f"<li>{_bold(text)}</li>" for text in part.bullets) + "</ul>")
        out.append("</div>" if boxed else "")
        for rows in part.tables:
            names = _columns(rows)
            if names:
                out.append("<table><tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in names) + "</tr>")
                out += ["<tr>" + "".join(_html_cell(row.get(name)) for name in names) + "</tr>" for row in rows]
                out.append("</table>")
        for _, words, figure in part.pictures:
            data = base64.b64encode(figure).decode()
            out.append(f'<p><img alt="{_escaped(words)}" src="data:image/png;base64,{data}"></p>')
    return "\n".join([*out, "</body></html>", ""])


def _marked(text: str) -> str:
    """A paragraph of Markdown: bold where all of it is, otherwise plain text."""
    bold = text.startswith("**") and text.endswith("**") and len(text) > 4
    return f"**{in_markdown(text[2:-2])}**" if bold else in_markdown(text)


def _escaped(text: str) -> str:
    return html.escape(one_line(text))


def _bold(text: str) -> str:
    safe = _escaped(text)
    return f"<strong>{safe[2:-2]}</strong>" if safe.startswith("**") and safe.endswith("**") else safe


def _html_cell(value: Any) -> str:
    start = '<td class="number">' if isinstance(value, int | float | np.number) else "<td>"
    return f"{start}{_escaped(_cell(value))}</td>"


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))
