"""A derivation for a terminal: Markdown without its markup, formulas in plain letters, lines of at most 100 columns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from textwrap import wrap

WIDTH = 100
SIGNS = {
    "infty": "inf", "partial": "d", "nabla": "grad", "int": "int", "sum": "sum", "prod": "prod", "le": "<=", "ge": ">=",
    "to": "->", "in": "in", "cdot": "*", "otimes": "(x)", "langle": "<", "rangle": ">", "|": "|", ",": " ", " ": " ",
    ";": " ", "!": "", "qquad": "    ", "quad": "  ", "\\": "  ", "{": "{", "}": "}", "times": "x", "approx": "~", "ell": "l",
    "Big": "", "big": "", "left": "", "right": "", "textstyle": "", "displaystyle": "",
}  # fmt: skip
"""Commands that are not their own name, as \\eta and \\log are."""
WORDS = ("mathrm", "text", "operatorname", "mathbb", "mathbf", "mathcal")
"""Commands that only choose letters."""
ACCENTS = {"dot": "'", "hat": "^", "bar": "_bar", "tilde": "~"}
TIGHT = ("partial", "langle")
"""Commands that stand at what follows them."""
SPACES = ("\\,", "\\ ", "\\;", "\\!")
ENDS = ("+", "-", "=", ",", ".", ")", "]", "}", "/", "^", "<", ">", "&", "|", "\\right", "\\qquad", "\\quad", "\\le", "\\ge",
        "\\to", "\\rangle", "\\text", "\\\\")  # fmt: skip
"""What ends a product: a fraction before anything else is one of its factors."""
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\s+|[A-Za-z]|\d+(?:\.\d+)?|.", re.DOTALL)


def as_text(markdown: str, width: int = WIDTH) -> str:
    """The page as paragraphs, lists and indented formulas."""
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", re.sub(r"<!--.*?-->", "", markdown, flags=re.DOTALL).strip()):
        lines += [*_block(block.strip(), width), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip()


def _block(block: str, width: int) -> Iterator[str]:
    if block.startswith("$$"):
        yield from wrap(plain_formula(block.strip("$")), width, initial_indent="    ", subsequent_indent="        ",
                        break_long_words=False, break_on_hyphens=False)  # fmt: skip
    elif block.startswith("#"):
        marks, _, title = block.partition(" ")
        lines = wrap(_inline(title), width)
        yield from (*lines, ("=" if len(marks) == 1 else "-") * len(lines[-1]))
    elif block.startswith("|"):
        rows = [[_inline(cell.strip()) for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in block.splitlines()]
        for cells in [row for row in rows if not set("".join(row)) <= set("-: ")]:
            yield from wrap(f"{cells[0]:<12} {'; '.join(filter(None, cells[1:]))}", width, initial_indent="    ",
                            subsequent_indent=" " * 17)  # fmt: skip
    elif block.startswith("- "):
        for item in re.split(r"\n(?=- )", block):
            yield from wrap(_inline(item), width, subsequent_indent="  ")
    else:
        yield from wrap(_inline(block), width, break_on_hyphens=False)


def _inline(text: str) -> str:
    text = re.sub(r"\$([^$]+)\$", lambda found: plain_formula(found[1]), text)
    return re.sub(
        r"`([^`]*)`|\*\*([^*]*)\*\*|\[([^\]]*)\]\([^)]*\)", lambda found: next(filter(None, found.groups())), text
    )


def plain_formula(latex: str) -> str:
    r"""LaTeX in letters: \frac{a + b}{c} is (a + b)/c, \sqrt{x} sqrt(x), x_{ij}^{2} x_ij^2, \eta eta."""
    tokens = TOKEN.findall(latex.strip())
    tokens.reverse()
    return re.sub(r" +", " ", _sequence(tokens)).replace("( ", "(").replace(" )", ")").strip()


def _sequence(tokens: list[str]) -> str:
    """Everything up to the closing brace, or to the end."""
    text = last = ""
    while tokens and tokens[-1] != "}":
        tight = tokens[-1] != "\\partial" and last == "\\partial"
        last, piece = tokens[-1], _piece(tokens)
        # A word must not run into its neighbours: 2 eta lambda; but dtheta.
        word = len(piece) > 1 or re.search(r"\w\w$", text)
        text += " " + piece if text[-1:].isalnum() and piece[:1].isalpha() and word and not tight else piece
    if tokens:
        tokens.pop()
    return text


def _piece(tokens: list[str]) -> str:
    token = tokens.pop()
    if token.isspace():
        return " "
    if token == "{":
        return _sequence(tokens)
    if token in "^_":
        inside = _argument(tokens)
        return token + (inside if re.fullmatch(r"\w+|\*|'+|-\d+", inside) else f"({inside})")
    if not token.startswith("\\"):
        return token
    name = token[1:]
    if name in ("frac", "tfrac", "dfrac"):
        whole = f"{_factor(_argument(tokens), products=True)}/{_factor(_argument(tokens))}"
        following = next((token for token in reversed(tokens) if not (token.isspace() or token in SPACES)), "+")
        return whole if following in ENDS else f"({whole})"
    if name == "sqrt":
        if tokens[-1:] != ["["]:
            return f"sqrt({_argument(tokens)})"
        tokens.pop()
        root = tokens.pop()
        tokens.pop()
        return f"{_factor(_argument(tokens))}^(1/{root})"
    if name in ACCENTS:
        return _argument(tokens) + ACCENTS[name]
    if name in WORDS:
        tokens.pop()
        letters = ""
        while (letter := tokens.pop()) != "}":
            letters += SIGNS.get(letter[1:], letter) if letter.startswith("\\") else letter
        return letters
    if name in TIGHT and tokens and tokens[-1].isspace():
        tokens.pop()
    if name in ("left", "right") and tokens and tokens[-1] == ".":
        tokens.pop()
    return SIGNS.get(name, name)


def _argument(tokens: list[str]) -> str:
    while tokens and tokens[-1].isspace():
        tokens.pop()
    return _piece(tokens).strip() if tokens else ""


def _factor(text: str, products: bool = False) -> str:
    """In brackets unless it is one term; a product may stay bare over a fraction line, not under it."""
    single = r"[\w^.'{} ]*" if products else r"[\w^.'{}]*"
    whole = re.fullmatch(r"\w*(\([^()]*\)|\[[^\[\]]*\])", text)
    return text if re.fullmatch(single, text) or whole else f"({text})"
