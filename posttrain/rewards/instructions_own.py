"""IFEval's constraints as people read them: the variant `own` of `instructions`, where it decides in another way."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from posttrain.rewards.language import share

Checker = Callable[..., bool]
"""(answer, the constraint's own arguments) -> whether the answer meets it."""


def compare(count: int, relation: str, number: int) -> bool:
    """Whether a count is "less than" a number, or "at least" that; raises ValueError for any other relation."""
    if relation == "less than":
        return count < number
    if relation == "at least":
        return count >= number
    raise ValueError(f"the relation {relation!r} is neither 'at least' nor 'less than'")


def _occurrences(answer: str, word: str) -> int:
    # Not `\b`: it would miss a keyword that begins or ends with a sign, such as C++.
    return len(re.findall(rf"(?<!\w){re.escape(word.strip())}(?!\w)", answer, re.IGNORECASE))


def _own_keywords(answer: str, keywords: Sequence[str]) -> bool:
    return all(_occurrences(answer, word) for word in keywords)


def _own_keyword_frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    return compare(_occurrences(answer, keyword), relation, frequency)


def _own_forbidden_words(answer: str, forbidden_words: Sequence[str]) -> bool:
    return not any(_occurrences(answer, word) for word in forbidden_words)


def _own_language(answer: str, language: str) -> bool:
    detected = share(answer, language)
    # A text too short to tell meets nothing here, where the published checker lets it pass.
    return detected is not None and detected > 0.5


def _own_number_words(answer: str, num_words: int, relation: str) -> bool:
    return compare(len(re.findall(r"\w+(?:['\u2019-]\w+)*", answer)), relation, num_words)


def _own_capital_words(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    words = re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", answer)
    return compare(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _own_capital(answer: str) -> bool:
    return answer.isupper() and _own_language(answer.lower(), "en")


def _own_lowercase(answer: str) -> bool:
    return answer.islower() and _own_language(answer, "en")


def _own_first_word(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs stand between empty lines; stars and quotation marks around the word do not matter."""
    parts = [part.strip() for part in re.split(r"\n[^\S\n]*\n", answer) if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    word = parts[nth_paragraph - 1].split()[0].strip("\"'\u201c\u2018*_")
    return re.split(r"[.,?!:;'\"]", word)[0].lower() == first_word.lower()


def _own_placeholders(answer: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]+\]", answer)) >= num_placeholders


def _own_postscript(answer: str, postscript_marker: str) -> bool:
    letters = [re.escape(letter) for letter in postscript_marker.strip() if letter.isalnum()]
    pattern = r"^[^\S\n]*" + r"\.?\s?".join(letters) + r"[.:\s]"
    return re.search(pattern, answer, re.IGNORECASE | re.MULTILINE) is not None


def _own_bullets(answer: str, num_bullets: int) -> bool:
    return len(re.findall(r"^[^\S\n]*(?:\*(?!\*)|-)[^\S\n]*\S", answer, re.MULTILINE)) == num_bullets


def _own_highlights(answer: str, num_highlights: int) -> bool:
    bold = re.findall(r"\*\*([^\n*]+)\*\*", answer)
    italic = re.findall(r"(?<!\*)\*([^\n*]+)\*(?!\*)", answer)
    return sum(bool(text.strip()) for text in bold + italic) >= num_highlights


OWN: dict[str, Checker] = {
    "keywords:existence": _own_keywords,
    "keywords:frequency": _own_keyword_frequency,
    "keywords:forbidden_words": _own_forbidden_words,
    "language:response_language": _own_language,
    "length_constraints:number_words": _own_number_words,
    "length_constraints:nth_paragraph_first_word": _own_first_word,
    "detectable_content:number_placeholders": _own_placeholders,
    "detectable_content:postscript": _own_postscript,
    "detectable_format:number_bullet_lists": _own_bullets,
    "detectable_format:number_highlighted_sections": _own_highlights,
    "change_case:capital_word_frequency": _own_capital_words,
    "change_case:english_capital": _own_capital,
    "change_case:english_lowercase": _own_lowercase,
}
"""What the variant `own` decides in another way."""
