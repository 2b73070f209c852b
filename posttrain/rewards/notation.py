r"""From an answer's text to tokens: one spelling for what LaTeX, Unicode and plain text write in many ways.

    tokens(r"3\tfrac{1}{2}\,\text{cm}")
    # number 3, command \frac, open {, number 1, close }, open {, number 2, close }, text cm

Everything here is one pass over the text, and texts beyond `LONGEST` characters are refused: an answer that a policy
writes may be eight thousand letters long, and reading it must not take longer than scoring it is worth.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

LONGEST = 1_000
"""Characters of an answer that is read as mathematics; MATH's longest answer has fewer than 160."""
MOST_TOKENS = 400
MOST_DIGITS = 2_000
"""Of one literal number. Python refuses to convert 4,300 digits, and needs quadratic time below that."""

TokenKind = Literal["number", "letter", "word", "text", "command", "sign"]


class UnreadableError(ValueError):
    """The text is no answer of a form that is read here; never shown to a user."""


@dataclass(frozen=True, slots=True)
class Token:
    """Token("number", "3.50", blank=True, value=Fraction(7, 2)): 3.50 after a blank."""

    kind: TokenKind
    text: str
    blank: bool = False
    """White space stands before it: "3 1/2" is a mixed number, "31/2" is not."""
    value: Fraction = Fraction(0)
    """Of a number."""


_SPELLINGS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∗": "*", "÷": "/", "∕": "/", "⁄": "/",
    "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "φ": r"\phi ",
    "∞": r"\infty ", "√": r"\sqrt ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "≃": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ",
    "±": r"\pm ", "∓": r"\mp ", "°": r"\degree ", "º": r"\degree ", "ℝ": r"\R ", "→": r"\to ", "∖": r"\setminus ",
    "⟨": r"\langle ", "⟩": r"\rangle ", "′": "'", "’": "'", "…": r"\ldots ", "\u00a0": " ", "\u2009": " ",
    "\u202f": " ", "∫": r"\int ", "∑": r"\sum ", "ⅈ": "i", "∨": r"\lor ", "∧": r"\land ",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}", "⅗": r"\frac{3}{5}", "⅘": r"\frac{4}{5}", "⅙": r"\frac{1}{6}",
    "⅚": r"\frac{5}{6}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}",
}  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_RAISED_RUN, _LOWERED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+"), re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_SPELLED = str.maketrans(_SPELLINGS)

_ROWS = re.compile(
    r"\\begin\s*\{(?:cases|aligned|array|align\*?)\}(?:\{[lcr|]*\})?|\\end\s*\{(?:cases|aligned|array|align\*?)\}"
)
_LAYOUT = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|bigl|bigr|Bigl|Bigr|biggl|biggr|big|Big|bigg|Bigg|middle)(?![a-zA-Z])"
    r"(?:\s*\.(?!\d))?|(?<!\\)\\[()\[\]]|\\checkmark|\\blacksquare|`|(?<![\w)}\]])\*\*|\*\*(?![\w({\\])"
)
_SPACES = re.compile(
    r"(?<!\\)\\[,;:! ]|\\(?:quad|qquad|enspace|thinspace|hspace\{[^{}]{0,20}\})(?![a-zA-Z])|~|(?<!\\)\\\n"
)
_FONT = re.compile(
    r"\\(?:mathbf|mathit|mathsf|boldsymbol|bm|mathcal|mathscr|operatorname\*?|ensuremath|textstyle)\s*(?=\{)"
)
_TEXT = r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|mathrm|mbox|hbox|emph|underline)\s*"
_MATH = re.compile(r"(?<!\\)\$\$?(?=\S)([^$]*[^$\s\\])\$\$?(?!\d)")
"""Formulas between dollars, by pandoc's rule: no blank inside them, and no digit behind, as in "$5 or $6"."""

_TOKEN = re.compile(
    rf"""
    (?P<blank>\s+)
  | {_TEXT}\{{(?P<text>[^{{}}]*)\}}
  | (?P<number>
        \d{{1,3}}(?:(?:,|\{{,\}})\d{{3}})+(?!\d|,\d)(?:\.\d+)?            # 1,200  1{{,}}200  1,234.5
      | \d{{1,3}}(?:[ ]\d{{3}})+(?!\d)(?:\.\d+)?                           # 1 000 000, as the standard writes it
      | \d+\{{,\}}\d+(?!\d)                                                # 3{{,}}5: LaTeX's decimal comma
      | \d+(?:\.\d*)?(?![\d]) | \.\d+
    )(?P<exponent>[eE][-+]?\d{{1,4}}(?![\w.]))?
  | (?P<command>\\(?:[a-zA-Z]+|[{{}}%$&#_|\\]))
  | (?P<word>[^\W\d_]+)
  | (?P<sign><=|>=|!=|==|:=|=|<|>|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_MARKS = {
    "\\{": "\\{",
    "\\}": "\\}",
    "\\%": "%",
    "\\$": "$",
    "\\lvert": "|",
    "\\rvert": "|",
    "\\vert": "|",
    "\\mid": "|",
}
_COMMANDS = {
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\leq": "\\le", "\\leqslant": "\\le",
    "\\geq": "\\ge", "\\geqslant": "\\ge", "\\neq": "\\ne", "\\lt": "<", "\\gt": ">", "\\varnothing": "\\emptyset",
    "\\lbrace": "\\{", "\\rbrace": "\\}", "\\circ": "\\degree", "\\tbinom": "\\binom", "\\dbinom": "\\binom",
    "\\ast": "*", "\\cdot": "*", "\\times": "*", "\\div": "/", "\\infin": "\\infty", "\\mathbb": "\\mathbb",
    "\\rightarrow": "\\to", "\\longrightarrow": "\\to", "\\smallsetminus": "\\setminus", "\\backslash": "\\setminus",
    "\\lparen": "(", "\\rparen": ")", "\\lbrack": "[", "\\rbrack": "]", "\\vee": "\\lor", "\\wedge": "\\land",
    "\\dots": "\\ldots", "\\cdots": "\\ldots", "\\thickapprox": "\\approx", "\\simeq": "\\approx",
    "\\approxeq": "\\approx", "\\doteq": "\\approx", "\\Re": "\\R", "\\reals": "\\R", "\\euro": "€", "\\pounds": "£",
    "\\varphi": "\\phi", "\\vartheta": "\\theta", "\\varepsilon": "\\epsilon", "\\notin": "\\notin",
    "\\colon": ":", "\\langle": "\\langle", "\\lfloor": "\\lfloor", "\\lceil": "\\lceil", "\\iff": "\\iff",
}  # fmt: skip
_WORD_COMMANDS = {
    "sqrt": "\\sqrt", "pi": "\\pi", "infinity": "\\infty", "inf": "\\infty", "infty": "\\infty", "oo": "\\infty",
    "or": "\\lor", "oder": "\\lor", "ou": "\\lor", "and": "\\land", "und": "\\land", "et": "\\land", "theta": "\\theta",
    "alpha": "\\alpha", "beta": "\\beta", "approximately": "\\approx", "about": "\\approx", "roughly": "\\approx",
    "minus": "-", "negative": "-", "union": "\\cup", "plus": "+", "cdot": "*", "times": "*", "frac": "\\frac",
    "divided": "",
}  # fmt: skip
FUNCTIONS = (
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "sinh", "cosh", "tanh", "ln",
    "log", "exp", "lg", "asin", "acos", "atan",
)  # fmt: skip
_RELATION_SIGNS = {"<=": "\\le", ">=": "\\ge", "!=": "\\ne", "==": "=", ":=": "="}


def tokens(text: str) -> list[Token]:
    """The tokens of an answer.

    Raises:
        UnreadableError: it is longer than an answer is.
    """
    if len(text) > LONGEST:
        raise UnreadableError("too long")
    read: list[Token] = []
    blank = False
    for match in _TOKEN.finditer(spelled(text)):
        if match.lastgroup == "blank":
            blank = True
            continue
        made = list(_tokens_of(match, blank))
        read += made
        blank = not made and blank
    if len(read) > MOST_TOKENS:
        raise UnreadableError("too many signs")
    return read


def spelled(text: str) -> str:
    """The text in ASCII LaTeX, without layout: "½ π" becomes "\\frac{1}{2} \\pi "."""
    text = _RAISED_RUN.sub(lambda run: f"^{{{run.group().translate(_RAISED)}}}", text)
    text = _LOWERED_RUN.sub(lambda run: f"_{{{run.group().translate(_LOWERED)}}}", text)
    text = text.translate(_SPELLED)
    text = _FONT.sub("", _SPACES.sub(" ", _LAYOUT.sub("", _ROWS.sub(" ", text))))
    text = _MATH.sub(r"\1", text)
    return text.strip()


def _tokens_of(match: re.Match[str], blank: bool) -> list[Token]:
    text = match.group()
    if match["number"] is not None:
        return [Token("number", text, blank, number_value(match["number"], match["exponent"]))]
    if match["text"] is not None:
        inner = match["text"].strip()
        known = _WORD_COMMANDS.get(inner.lower())
        if known is not None:
            return [_command(known, blank)] if known else []
        if len(inner) == 1 and inner.isalpha():
            return [Token("text", inner, blank)]
        return _of_text(inner) if inner else []
    if match["command"] is not None:
        text = _MARKS.get(text, _COMMANDS.get(text, text))
        return [_command(text, blank)]
    if match["word"] is not None:
        return _of_word(text, blank)
    return (
        [Token("sign", _RELATION_SIGNS.get(text, text), blank)]
        if text not in _RELATION_SIGNS
        else [_command(_RELATION_SIGNS[text], blank)]
    )


def _of_text(inner: str) -> list[Token]:
    r"""\text{ and } joins answers, \text{5 or 6} says two of them, \text{square cm} is one unit."""
    if re.search(r"\d|\b(?:or|and|oder|und)\b|[=<>]|^\W*[A-Za-z]\W*$", inner):
        return [
            token if token.kind != "word" else Token("text", token.text, blank=True)
            for match in _TOKEN.finditer(inner)
            if match.lastgroup != "blank"
            for token in _tokens_of(match, True)
        ]
    return [Token("text", inner, True)]


def _of_word(text: str, blank: bool) -> list[Token]:
    if len(text) == 1:
        return [Token("letter", text, blank)]
    known = _WORD_COMMANDS.get(text.lower() if text.lower() in ("or", "and", "about", "approximately") else text)
    if known is not None:
        return [_command(known, blank)] if known else []
    if text in FUNCTIONS:
        return [Token("command", "\\" + text, blank)]
    return [Token("word", text, blank)]


def _command(text: str, blank: bool) -> Token:
    return Token("command" if text.startswith("\\") else "sign", text, blank)


_SEPARATOR = re.compile(r",| |\{,\}")


def number_value(digits: str, exponent: str | None = None) -> Fraction:
    """The value of a literal: number_value("1{,}200") == 1200, number_value("3{,}5") == Fraction(7, 2).

    Raises:
        UnreadableError: more digits than a number has.
    """
    if len(digits) > MOST_DIGITS:
        raise UnreadableError("too many digits")
    if re.fullmatch(r"\d+\{,\}(?:\d{1,2}|\d{4,})", digits):
        digits = digits.replace("{,}", ".")  # not a group of thousands: a decimal comma
    whole, _, part = _SEPARATOR.sub("", digits).partition(".")
    value = Fraction(int((whole + part) or "0"), 10 ** len(part))
    power = int((exponent or "e0")[1:])
    return value * Fraction(10) ** power


# ---------------------------------------------------------------- brackets

_OPENING = {"(", "[", "{", "\\{", "\\langle", "\\begin", "\\lfloor", "\\lceil"}

_CLOSED_BY = {")", "]", "}", "\\}", "\\rangle", "\\end", "\\rfloor", "\\rceil"}


def depths(given: Sequence[Token]) -> list[int]:
    """How many brackets are open before each token."""
    levels, depth = [], 0
    for token in given:
        if token.kind != "text" and token.text in _CLOSED_BY:
            depth -= 1
        levels.append(depth)
        if token.kind != "text" and token.text in _OPENING:
            depth += 1
    return levels


def closing(given: Sequence[Token], start: int) -> int:
    """Where the bracket at `start` is closed, by whatever bracket: [2, 5) is one pair."""
    depth = 0
    for place in range(start, len(given)):
        text = given[place].text if given[place].kind != "text" else ""
        depth += (text in _OPENING) - (text in _CLOSED_BY)
        if depth == 0:
            return place
    raise UnreadableError("a bracket is open")


def split_at(given: Sequence[Token], separators: Sequence[str]) -> list[list[Token]]:
    """The parts between separators that stand in no bracket: "1, (2, 3)" at "," has two."""
    parts: list[list[Token]] = [[]]
    for token, depth in zip(given, depths(given), strict=True):
        if depth == 0 and token.kind != "text" and token.text in separators:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts
