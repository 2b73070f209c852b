"""Constraints that a program can check: IFEval's 25, by its names and arguments, so that its files run as they are.

Zhou et al. 2023, arXiv:2311.07911, table 1. Our own code, in two variants:

- `strict` decides as the authors' checkers do (google-research/instruction_following_eval), also where those surprise:
  keywords are regular expressions found inside other words ("mom" in "moment"), "don't" and "well-known" are two words
  each, a postscript may stand in the middle of a line, `[]` is a placeholder, *word* is not the first word `word`, a
  line of "-" alone is a bullet, and a text too short to tell its language is in every language.
- `own` reads the constraints as people do: whole words, "don't" as one word, a postscript at the beginning of a line,
  and so on (the functions whose names begin with `_own`).

Deviations of `strict` from the authors':

1. Sentences are split at . ! ? and line ends, without a trained splitter, and the tokens in which capital words are
   counted are made by a few rules instead of nltk's tokenizer: both need data that is not in any package.
2. langdetect's draws are seeded, so that a response gets the same score each time; the authors' are not.
3. A constraint that the row states wrongly is an error, not a failure of the model.

    {"prompt": "...", "instructions": [{"id": "keywords:frequency", "keyword": "a", "frequency": 2, ...}]}
    {"prompt": "...", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}         # IFEval's own files
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from posttrain.errors import RewardError, unknown
from posttrain.rewards.building import plain
from posttrain.rewards.language import published_language, share
from posttrain.rewards.scorer import Scorer
from posttrain.rewards.text import answer_of
from posttrain.types import Message, Task

if TYPE_CHECKING:
    from posttrain.config.rewards import InstructionsReward


Checker = Callable[..., bool]
Variant = Literal["strict", "own"]


def instructions(
    prompt: Sequence[Message], completion: str, task: Task, *, partial: bool = True, variant: Variant = "strict"
) -> float | None:
    """The share of the row's constraints that the response meets; abstains where the row has none.

    Args:
        partial: False gives 1 only if it meets them all (IFEval's prompt-level accuracy).
        variant: `strict`: as the authors' checkers; `own`: as people read the constraints. See above.

    Raises:
        RewardError: the row names a constraint that there is not, or arguments that it does not take.
        MissingExtraError: `strict` on the language of a response needs langdetect.
    """
    wanted = constraints(task)
    if not wanted:
        return None
    answer = answer_of(completion)
    met = [check(answer, name, arguments, task, variant) for name, arguments in wanted]
    return sum(met) / len(met) if partial else float(all(met))


def constraints(task: Task) -> list[tuple[str, dict[str, Any]]]:
    """The row's constraints: (name, arguments)."""
    metadata = task.metadata
    if "instructions" in metadata:
        # Copied: `id` is taken out below, and the row is asked again for every response.
        rows = [dict(row) for row in metadata["instructions"]]
        return [(str(row.pop("id", "")), row) for row in rows]
    names = metadata.get("instruction_id_list") or []
    given = metadata.get("kwargs") or [{}] * len(names)
    if len(given) != len(names):
        raise RewardError(
            "the row has another number of arguments than of constraints",
            where=task.row,
            found=f"{len(names)} in `instruction_id_list`, {len(given)} in `kwargs`",
            remedy="give each constraint its own group of arguments, {} if it takes none",
        )
    # `datasets` fills the arguments that a constraint does not have with null
    return [
        (n, {k: v for k, v in (arguments or {}).items() if v is not None})
        for n, arguments in zip(names, given, strict=True)
    ]


def check(answer: str, name: str, arguments: Mapping[str, Any], task: Task, variant: Variant = "strict") -> bool:
    """Whether an answer meets one constraint; an empty answer meets none, as in IFEval."""
    checker = (OWN if variant == "own" else {}).get(name) or CONSTRAINTS.get(name)
    if checker is None:
        otherwise = "docs/rewards.md lists them"
        raise unknown("constraint", name, CONSTRAINTS, error=RewardError, where=task.row, otherwise=otherwise)
    # Without the answer itself: what the error lists are the arguments that a row can give.
    known = list(inspect.signature(checker).parameters)[1:]
    try:
        inspect.signature(checker).bind(answer, **arguments)
        # As IFEval does: an empty answer has no comma, and would otherwise meet every prohibition.
        return bool(answer.strip()) and checker(answer, **arguments)
    except (TypeError, ValueError, re.error) as error:
        raise RewardError(
            f"the arguments of {name!r} are wrong",
            where=task.row,
            found=f"{dict(arguments)} ({error})",
            expected=f"{', '.join(known)}" if known else "none",
            remedy="correct the row",
        ) from None


def _compare(count: int, relation: str, number: int) -> bool:
    if relation == "less than":
        return count < number
    if relation == "at least":
        return count >= number
    raise ValueError(f"the relation {relation!r} is neither 'at least' nor 'less than'")


# ---------------------------------------------------------------- words and letters


def _keywords(answer: str, keywords: Sequence[str]) -> bool:
    """Each is a regular expression, found in any case and inside other words."""
    return all(re.search(word, answer, re.IGNORECASE) for word in keywords)


def _keyword_frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(len(re.findall(keyword.strip(), answer, re.IGNORECASE)), relation, frequency)


def _forbidden_words(answer: str, forbidden_words: Sequence[str]) -> bool:
    # Not escaped, as published: files of IFEval's kind hold patterns here.
    return not any(re.search(rf"\b{word}\b", answer, re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    if len(letter) != 1:
        raise ValueError(f"{letter!r} is no letter")
    return _compare(answer.lower().count(letter.lower()), let_relation, let_frequency)


def _language(answer: str, language: str) -> bool:
    """As langdetect says; a text without a letter, of which it says nothing, is in every language."""
    detected = published_language(answer, language)
    return detected is None or detected == language


def _number_words(answer: str, num_words: int, relation: str) -> bool:
    """Runs of letters, digits and _: "don't" and "well-known" are two."""
    return _compare(len(re.findall(r"\w+", answer)), relation, num_words)


def _number_sentences(answer: str, num_sentences: int, relation: str) -> bool:
    pieces = re.split(r"(?<=[.!?])[\"')\]\u201d]*\s+|\n+", answer.strip())
    return _compare(sum(bool(re.search(r"\w", piece)) for piece in pieces), relation, num_sentences)


_PUNCTUATION = re.compile(r"[^\w\s.'\u2019/=+\-]|--+|\.\.\.+")
_CLITIC = re.compile(r"(?i)(?:n't|['\u2019](?:s|m|d|ll|re|ve))$")


def _capital_word_frequency(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    """Tokens as a treebank has them: COVID-19 and A/B are one, DON'T is DO and N'T."""
    count = 0
    for word in _PUNCTUATION.sub(" ", answer).split():
        clitic = _CLITIC.search(word)
        parts = [word] if clitic is None else [word[: clitic.start()], clitic.group()]
        count += sum(part.isupper() for part in parts)
    return _compare(count, capital_relation, capital_frequency)


def _capital(answer: str) -> bool:
    return answer.isupper() and _language(answer, "en")


def _lowercase(answer: str) -> bool:
    return answer.islower() and _language(answer, "en")


def _no_comma(answer: str) -> bool:
    return "," not in answer


# ---------------------------------------------------------------- parts


def _number_paragraphs(answer: str, num_paragraphs: int) -> bool:
    """Paragraphs stand between lines of `***`."""
    # As published: an empty first or last part is a divider at the edge, an empty one inside is a fault.
    parts = re.split(r"\s?\*\*\*\s?", answer)
    inner = parts[1:-1] if len(parts) > 2 else []
    if any(not part.strip() for part in inner):
        return False
    return sum(bool(part.strip()) for part in parts) == num_paragraphs


def _nth_paragraph_first_word(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs stand between two line ends; of an empty one between four, the number counts, and it has no word."""
    if not 1 <= nth_paragraph <= num_paragraphs:
        raise ValueError(f"of {num_paragraphs} paragraphs, paragraph {nth_paragraph} is none")
    parts = answer.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    if count != num_paragraphs or nth_paragraph > count or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def _placeholders(answer: str, num_placeholders: int) -> bool:
    """From each [ to the next ] of its line, `[]` too."""
    count = 0
    for line in answer.split("\n"):
        place = line.find("[")
        while place >= 0:
            end = line.find("]", place)
            if end < 0:
                break
            count += 1
            place = line.find("[", end)
    return count >= num_placeholders


_POSTSCRIPTS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}


def _postscript(answer: str, postscript_marker: str) -> bool:
    """Anywhere, in any case; the dots of the usual two markers are required, and a blank may follow each."""
    marker = postscript_marker.strip()
    return re.search(_POSTSCRIPTS.get(marker, marker.lower()), answer.lower()) is not None


_STAR_BULLET = re.compile(r"^[^\S\n]*\*[^*].*$", re.MULTILINE)
_DASH_BULLET = re.compile(r"^[^\S\n]*-.*$", re.MULTILINE)


def _bullets(answer: str, num_bullets: int) -> bool:
    """Lines that begin with * (not **) or -; a rule of dashes and a line of - alone count."""
    return len(_STAR_BULLET.findall(answer)) + len(_DASH_BULLET.findall(answer)) == num_bullets


def _highlights(answer: str, num_highlights: int) -> bool:
    """Text between two stars of a line, and between two pairs of them."""
    single = sum(bool(text.strip()) for text in re.findall(r"\*([^\n*]*)\*", answer))
    double = sum(bool(text.strip()) for text in re.findall(r"\*\*([^\n*]*)\*\*", answer))
    return single + double >= num_highlights


def _sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    """The word, which is a regular expression, before a number."""
    return sum(1 for _ in re.finditer(rf"{section_spliter.strip()}\s?\d+", answer)) >= num_sections


def _title(answer: str) -> bool:
    """<<a title>>; on a line the first << belongs to the last >>."""
    return any(title.lstrip("<").rstrip(">").strip() for title in _titles(answer))


def _titles(answer: str) -> list[str]:
    titles = []
    for line in answer.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and start + 2 < end:
            titles.append(line[start : end + 2])
    return titles


# In the authors' order: each is taken off once, so "```json" before the bare fence.
_FENCES = ("```json", "```Json", "```JSON", "```")


def _json(answer: str) -> bool:
    text = answer.strip()
    for fence in _FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _one_of_three(answer: str) -> bool:
    return any(text in answer for text in ("My answer is yes.", "My answer is no.", "My answer is maybe."))


def _two_responses(answer: str) -> bool:
    parts = [part.strip() for part in answer.split("******")]
    if len(parts) > 2 and any(not part for part in parts[1:-1]):
        return False
    kept = [part for part in parts if part]
    return len(kept) == 2 and kept[0] != kept[1]


def _repeats_prompt(answer: str, prompt_to_repeat: str) -> bool:
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(answer: str, end_phrase: str) -> bool:
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(answer: str) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


# ---------------------------------------------------------------- as people read them


def _occurrences(answer: str, word: str) -> int:
    # Not `\b`: it would miss a keyword that begins or ends with a sign, such as C++.
    return len(re.findall(rf"(?<!\w){re.escape(word.strip())}(?!\w)", answer, re.IGNORECASE))


def _own_keywords(answer: str, keywords: Sequence[str]) -> bool:
    return all(_occurrences(answer, word) for word in keywords)


def _own_keyword_frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(_occurrences(answer, keyword), relation, frequency)


def _own_forbidden_words(answer: str, forbidden_words: Sequence[str]) -> bool:
    return not any(_occurrences(answer, word) for word in forbidden_words)


def _own_language(answer: str, language: str) -> bool:
    detected = share(answer, language)
    # A text too short to tell meets nothing here, where the published checker lets it pass.
    return detected is not None and detected > 0.5


def _own_number_words(answer: str, num_words: int, relation: str) -> bool:
    return _compare(len(re.findall(r"\w+(?:['\u2019-]\w+)*", answer)), relation, num_words)


def _own_capital_words(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    words = re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", answer)
    return _compare(sum(word.isupper() for word in words), capital_relation, capital_frequency)


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


CONSTRAINTS: dict[str, Checker] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _language,
    "length_constraints:number_words": _number_words,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:constrained_response": _one_of_three,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats_prompt,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": _capital,
    "change_case:english_lowercase": _lowercase,
    "punctuation:no_comma": _no_comma,
}
"""The authors' names and decisions: the variant `strict`."""

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


def build(settings: InstructionsReward, folder: Path | None) -> Scorer:
    """It verifies the rows that have constraints; of others it says nothing, whatever their answer is."""
    made = plain(instructions)(settings, folder)
    columns = ("instructions", "instruction_id_list")

    def gold(task: Task) -> str | None:
        return task.answer if any(task.metadata.get(column) for column in columns) else None

    needs = "constraints, in `instructions` or `instruction_id_list`"
    return Scorer(made.name, made.function, made.weight, gold, needs=needs)
