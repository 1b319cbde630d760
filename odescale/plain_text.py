"""Text from files and users where somebody else reads it: on a terminal, in Markdown, in a picture."""

from __future__ import annotations

import re

# Whole sequences first, so that "\x1b[31m" leaves nothing behind: commands of the terminal, strings up to their end, two letters.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*+(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*+[0-~]?"
)
# C0 without tab and line end, DEL, C1; marks that turn the direction of writing; line ends of Unicode.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_MARKS = re.compile(r"([\\`*\[\]|~$])|(?<![^\W_])_|_(?![^\W_])")
_OPENING = re.compile(r"^(\s*)(?:([-+#=])|(\d+)([.)]))")


def printable(text: str) -> str:
    """The text without what a terminal would obey: escape sequences, control codes, turns of the writing direction.

    Tabs and line ends stay; half a character (a lone surrogate) goes too, since no encoding has it.
    """
    return _CONTROL.sub("", _SEQUENCE.sub("", text))


def one_line(text: str) -> str:
    """The printable text with every white space a single blank."""
    return " ".join(printable(text).split())


def in_markdown(text: str) -> str:
    """One line of Markdown that shows the text itself: its marks, pipes and HTML have no meaning.

    An underscore within a word has none anyway and stays as it is.
    """
    safe = _MARKS.sub(lambda found: "\\" + found[0], one_line(text))
    safe = _OPENING.sub(lambda m: f"{m[1]}\\{m[2]}" if m[2] else f"{m[1]}{m[3]}\\{m[4]}", safe)
    return safe.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def in_picture(text: str) -> str:
    """One line for a picture, where a dollar would begin a formula."""
    return one_line(text).replace("$", r"\$")
