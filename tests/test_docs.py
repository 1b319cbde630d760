"""The pages hold: their `>>>` lines give what they show, their links lead somewhere, the README's example runs."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")] if path.is_file()
)


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


# The solves of this page are small in number and long in time.
LONG = ("docs/one_third_law.md",)
SHOWING = [
    pytest.param(page, marks=[pytest.mark.slow] if page in LONG else []) for page in PAGES if "\n>>> " in text_of(page)
]


@pytest.mark.parametrize("page", SHOWING)
def test_examples_give_what_they_show(page: str) -> None:
    # A closing fence would be read as expected output: blank it, keeping the line numbers.
    text = re.sub(r"^```.*$", "", text_of(page), flags=re.M)
    test = doctest.DocTestParser().get_doctest(text, {}, page, page, 0)
    report: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    assert tried and not failed, "".join(report)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text_of(page))
    missing = [t for t in targets if "://" not in t and not (ROOT / page).parent.joinpath(t).exists()]
    assert not missing


def test_readme_example_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", text_of("README.md"), flags=re.M | re.S)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})


def test_readme_commands_exist() -> None:
    targets = set(re.findall(r"^make ([a-z-]+)", text_of("README.md"), flags=re.M))
    assert targets
    makefile = text_of("Makefile")
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets)
