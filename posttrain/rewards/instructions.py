"""Constraints that a program can check: IFEval's 25, by its names and arguments, so that its files run as they are.

Zhou et al. 2023, arXiv:2311.07911, table 1. Our own code; the deviations from the authors':

1. Sentences are split at . ! ? and line ends, without a trained splitter.
2. The language of a response is told by `posttrain.rewards.language`, which knows fewer languages.
3. A constraint that the row states wrongly is an error, not a failure of the model.

    {"prompt": "...", "instructions": [{"id": "keywords:frequency", "keyword": "a", "frequency": 2, ...}]}
    {"prompt": "...", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}         # IFEval's own files
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.errors import RewardError, nearest
from posttrain.rewards.language import share
from posttrain.rewards.text import answer_of
from posttrain.types import Message, Task

Checker = Callable[..., bool]


def instructions(prompt: Sequence[Message], completion: str, task: Task, *, partial: bool = True) -> float | None:
    """The share of the row's constraints that the response meets; abstains where the row has none.

    Args:
        partial: False gives 1 only if it meets them all (IFEval's prompt-level accuracy).

    Raises:
        RewardError: the row names a constraint that there is not, or arguments that it does not take.
    """
    wanted = constraints(task)
    if not wanted:
        return None
    answer = answer_of(completion)
    met = [check(answer, name, arguments, task) for name, arguments in wanted]
    return sum(met) / len(met) if partial else float(all(met))


def constraints(task: Task) -> list[tuple[str, dict[str, Any]]]:
    """The row's constraints: (name, arguments)."""
    metadata = task.metadata
    if "instructions" in metadata:
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
    return [(n, {k: v for k, v in (one or {}).items() if v is not None}) for n, one in zip(names, given, strict=True)]


def check(answer: str, name: str, arguments: Mapping[str, Any], task: Task) -> bool:
    """Whether an answer meets one constraint; an empty answer meets none, as in IFEval."""
    checker = CONSTRAINTS.get(name)
    if checker is None:
        near = nearest(name, CONSTRAINTS)
        raise RewardError(
            f"there is no constraint {name!r}",
            where=task.row,
            expected=f"one of {', '.join(CONSTRAINTS)}",
            remedy=f"did you mean {near!r}?" if near else "docs/rewards.md lists them",
        )
    known = list(inspect.signature(checker).parameters)[1:]
    try:
        inspect.signature(checker).bind(answer, **arguments)
        return bool(answer.strip()) and checker(answer, **arguments)
    except (TypeError, ValueError) as error:
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


def _occurrences(answer: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE))


# ---------------------------------------------------------------- words and letters


def _keywords(answer: str, keywords: Sequence[str]) -> bool:
    return all(_occurrences(answer, word) for word in keywords)


def _keyword_frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(_occurrences(answer, keyword), relation, frequency)


def _forbidden_words(answer: str, forbidden_words: Sequence[str]) -> bool:
    return not any(_occurrences(answer, word) for word in forbidden_words)


def _letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compare(answer.lower().count(letter.lower()), let_relation, let_frequency)


def _language(answer: str, language: str) -> bool:
    found = share(answer, language)
    return found is not None and found > 0.5


def _number_words(answer: str, num_words: int, relation: str) -> bool:
    return _compare(len(re.findall(r"\w+(?:['\u2019-]\w+)*", answer)), relation, num_words)


def _number_sentences(answer: str, num_sentences: int, relation: str) -> bool:
    pieces = re.split(r"(?<=[.!?])[\"')\]\u201d]*\s+|\n+", answer.strip())
    return _compare(sum(bool(re.search(r"\w", piece)) for piece in pieces), relation, num_sentences)


def _capital_word_frequency(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    words = re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", answer)
    return _compare(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _capital(answer: str) -> bool:
    return answer.isupper() and _language(answer.lower(), "en")


def _lowercase(answer: str) -> bool:
    return answer.islower() and _language(answer, "en")


def _no_comma(answer: str) -> bool:
    return "," not in answer


# ---------------------------------------------------------------- parts


def _number_paragraphs(answer: str, num_paragraphs: int) -> bool:
    """Paragraphs stand between lines of `***`."""
    parts = re.split(r"\s?\*\*\*\s?", answer)
    inner = parts[1:-1] if len(parts) > 2 else []
    if any(not part.strip() for part in inner):
        return False
    return sum(bool(part.strip()) for part in parts) == num_paragraphs


def _nth_paragraph_first_word(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs stand between empty lines."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", answer) if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    word = parts[nth_paragraph - 1].split()[0].strip("\"'\u201c\u2018*_")
    return re.split(r"[.,?!:;'\"]", word)[0].lower() == first_word.lower()


def _placeholders(answer: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]+\]", answer)) >= num_placeholders


def _postscript(answer: str, postscript_marker: str) -> bool:
    letters = [re.escape(letter) for letter in postscript_marker.strip() if letter.isalnum()]
    return re.search(r"(?:^|\n)\s*" + r"\.?\s?".join(letters) + r"[.:\s]", answer, re.IGNORECASE) is not None


def _bullets(answer: str, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*(?!\*)|-)\s*\S", answer, re.MULTILINE)) == num_bullets


def _highlights(answer: str, num_highlights: int) -> bool:
    bold = re.findall(r"\*\*([^\n*]+)\*\*", answer)
    italic = re.findall(r"(?<!\*)\*([^\n*]+)\*(?!\*)", answer)
    return sum(bool(text.strip()) for text in bold + italic) >= num_highlights


def _sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", answer)) >= num_sections


def _title(answer: str) -> bool:
    return any(title.strip(" <>") for title in re.findall(r"<<([^\n]+?)>>", answer))


def _json(answer: str) -> bool:
    text = re.sub(r"^```(?:json)?\s*\n?|\n?```$", "", answer.strip(), flags=re.IGNORECASE)
    try:
        json.loads(text)
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
